"""How good is a reward? Reliability, ties and cost of each, measured by training every self-edit under several seeds.

    python -m experiments.rewards demo                     # embedded model, invented facts, 20 passages
    python -m experiments.rewards paper                    # the paper's model and inner loop: 50 passages x 5, 6 seeds
    python -m experiments.rewards demo --edits A.json B.json   # recorded self-edits instead of fresh

The model writes self-edits as in a round of the outer loop; each is trained under several seeds. From that the table
computes, for each reward and number of seeds: its reliability (analysis/reliability.py), how often the best is a tie,
how often the winner does not beat the base model, and what best-of-k is worth: the accuracy of the winner under seeds
that it was not chosen by, less that of a self-edit drawn blindly. The paper's choice is accuracy, 3 seeds.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, NamedTuple

from seal_jax.domains import squad
from seal_jax.domains.passages import recorded_together
from seal_jax.run import command, passages, plan
from seal_jax.run.passages import Knowledge, Recorded
from seal_jax.run.plan import Stage
from seal_jax.run.session import Experiment, Model, Prepared, Preset, Session
from seal_jax.seal.outer.best_of_n import rate_self_edits
from seal_jax.seal.reward_table import reward_table
from seal_jax.seal.rounds import try_self_edits, write_self_edits
from seal_jax.types import Compute, require_at_least


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """Which self-edits, and under how many seeds."""

    edits: tuple[str, ...] = ()
    """Files of recorded self-edits, or run folders, a passage's taken together; without any the model writes them."""
    passages: int = 50
    """Drawn with the data seed."""
    samples: int = 5
    """Self-edits a passage."""
    seeds: int = 6
    """Training runs a self-edit. Rewards of up to so many are compared; what is not chosen by is looked through."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, passages=self.passages)
        require_at_least(2, samples=self.samples, seeds=self.seeds)


PAPER = Config("paper", **passages.PAPER)

DEMO = Config("demo", **passages.SMALL, passages=20, samples=4, seeds=4)
SMOKE = dataclasses.replace(DEMO, preset="smoke", **passages.SMALLEST, passages=3, samples=2, seeds=2)

PRESETS = {
    "demo": Preset(
        "The embedded model on invented facts: half an hour on 2 CPU cores.",
        DEMO,
        Compute(chunk=16, write_chunk=20, width_cuts=(24, 32, 48, 96)),
    ),
    "paper": Preset("The paper's model and inner loop.", PAPER),
    "smoke": Preset(
        "Three passages, one epoch: shows that everything runs, and no more.",
        SMOKE,
        Compute(chunk=2, write_chunk=20, width_cuts=(96,)),
    ),
}


class Data(NamedTuple):
    """The passages, and the self-edits recorded for them, if they come from a file."""

    passages: list[squad.Passage]
    recorded: dict[str, tuple[str, ...]]
    inputs: list[Any]
    lines: list[str]
    stages: list[Stage]


def choose(config: Config) -> Data:
    """The passages of a run, drawn with its seed.

    Raises:
        ValueError: fewer than the run needs, or (from a file) fewer with at least two self-edits.
    """
    source = recorded_together(config.edits) if config.edits else squad.load_passages(config.data, "train")
    usable = [p for p in source if not config.edits or len(p.completions) >= 2]
    if len(usable) < config.passages:
        what = f"{', '.join(config.edits)}: {len(usable)} passages with two self-edits or more" if config.edits else (
            f"--data {config.data}: {len(usable)} passages"
        )  # fmt: skip
        raise ValueError(f"{what}; --passages asks for {config.passages}")
    chosen = squad.shuffled(usable, config.data_seed)[: config.passages]
    recorded = {p.id: p.completions[: config.samples] for p in chosen} if config.edits else {}
    stages = [Stage("rewards", (plan.BASE,)), *([] if recorded else [Stage("rewards", (plan.WRITE,))])]
    stages.append(Stage("rewards", self_edits=len(chosen) * config.samples, seeds=config.seeds))
    lines = [f"{len(chosen)} passages, {passages.questions_of(chosen)} questions: {config.data}"]
    return Data(chosen, recorded, [passages.prompt_texts(config), source], lines, stages)


def prepare(config: Config, data: Data, model: Model) -> Prepared:
    """The domain and the sizes of all programs."""
    recorded = Recorded(data.recorded, writes=not data.recorded)
    return passages.prepare(config, model, data.passages, recorded=recorded, samples=config.samples)


def run(here: Session, data: Data) -> dict[str, Any]:
    """Every self-edit under several seeds, and the table of rewards."""
    config, loop, read = here.config, here.loop, data.passages
    base = here.try_base(read, name="rewards")
    if data.recorded:
        edits = [[loop.domain.parse(p, text) for text in data.recorded[p.id]] for p in read]
    else:
        edits = write_self_edits(here.lm, read, loop, samples=config.samples, name="rewards")
    trials = try_self_edits(here.lm, read, edits, base, loop, seeds=config.seeds, name="rewards")
    here.record("rewards", trials)
    rated = rate_self_edits(read, edits, base, loop, name="rewards") if loop.rate else None
    return here.finish([], tables=[reward_table(trials, base, rated, most=config.seeds, seed=config.seed)])


EXPERIMENT = Experiment("rewards", __doc__ or "", PRESETS, choose, prepare, run)

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
