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
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import squad as main_job
from seal_jax.analysis.reliability import choose_best, reward_reliability
from seal_jax.analysis.statistics import paired_bootstrap
from seal_jax.domains import squad
from seal_jax.domains.passages import recorded_together
from seal_jax.engine.training import FineTuning
from seal_jax.run import knowledge, plan, session
from seal_jax.run.knowledge import Knowledge
from seal_jax.run.session import Experiment
from seal_jax.seal.rest_em import Trial, rate_self_edits, try_self_edits, write_self_edits
from seal_jax.seal.rewards import Score
from seal_jax.types import require_at_least

TIES_BROKEN = "accuracy, then likelihood"  # the default: OuterLoop.break_ties
PAPERS_SEEDS = 3  # training runs behind a reward of the paper's: what costs are compared with


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """Which self-edits, and under how many seeds."""

    edits: tuple[str, ...] = ()
    """Files of recorded self-edits, or run folders, a passage's taken together; without any the model writes them."""
    passages: int = 50
    """Drawn with the seed."""
    samples: int = 5
    """Self-edits a passage."""
    seeds: int = 6
    """Training runs a self-edit. Rewards of up to so many are compared; what is not chosen by is looked through."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, passages=self.passages)
        require_at_least(2, samples=self.samples, seeds=self.seeds)


PAPER = Config("paper", model="Qwen/Qwen2.5-7B", dtype="bfloat16", data="squad", style="raw")

DEMO = Config(
    "demo",
    prompt="facts",
    sampling=main_job.DEMO.sampling,
    answer_tokens=24,
    write_chunk=20,
    max_sequences=8,
    inner=dataclasses.replace(main_job.DEMO.inner, chunk=16, width_cuts=(24, 32, 48, 96)),
    passages=20,
    samples=4,
    seeds=4,
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    sampling=main_job.SMOKE.sampling,
    answer_tokens=8,
    max_sequences=4,
    inner=FineTuning(epochs=1, chunk=2, width_cuts=(96,)),
    passages=3,
    samples=2,
    seeds=2,
)

PRESETS = {
    "demo": ("The embedded model on invented facts: half an hour on 2 CPU cores.", DEMO),
    "paper": ("The paper's model and inner loop.", PAPER),
    "smoke": ("Three passages, one epoch: shows that everything runs, and no more.", SMOKE),
}


class Data(NamedTuple):
    """The passages, and the self-edits recorded for them, if they come from a file."""

    passages: list[squad.Passage]
    recorded: bool
    inputs: list[Any]


def choose_passages(config: Config) -> Data:
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
    chosen = squad.shuffled(usable, config.seed)[: config.passages]
    return Data(chosen, bool(config.edits), [knowledge.prompt_texts(config), source])


def run(config: Config, run_folder: Path, command: str) -> dict[str, Any]:
    """One measurement, from passages to report.html. Carries on where an earlier run of the same config stopped."""
    data = choose_passages(config)
    passages = data.passages
    recorded = {p.id: p.completions[: config.samples] for p in passages} if data.recorded else {}
    writing = [] if data.recorded else ["rewards: writing self-edits"]
    with knowledge.opened(
        config, run_folder, "rewards", passages, command=command, inputs=data.inputs, samples=config.samples,
        phases=["rewards: base model", *writing, "rewards: inner loop"],
        longest_written=lambda lm: knowledge.longest_sequence(
            config, lm, passages, recorded, written=not data.recorded
        ),
    ) as here:  # fmt: skip
        base = here.try_base(passages, name="rewards")
        if data.recorded:
            edits = [[here.loop.domain.parse(p, text) for text in recorded[p.id]] for p in passages]
        else:
            edits = write_self_edits(here.lm, passages, here.loop, samples=config.samples, name="rewards")
        trials = try_self_edits(here.lm, passages, edits, base, here.loop, seeds=config.seeds, name="rewards")
        here.record("rewards", trials)
        rated = None
        if here.loop.rate is not None:
            rated = rate_self_edits(passages, edits, base, here.loop, name="rewards")
        return here.finish([], tables=[reward_table(trials, base, rated, config)])


def rewards_by_seed(trials: Sequence[Sequence[Trial]], signal: str, seeds: int) -> np.ndarray:
    """[P, E, S]; NaN where a self-edit trained nothing, or diverged, and past the self-edits of a passage."""
    values = np.full((len(trials), max(map(len, trials)), seeds), np.nan)
    for p, row in enumerate(trials):
        for k, trial in enumerate(row):
            if not trial.problem:
                found = [getattr(score, signal) for score in trial.scores]
                values[p, k] = [math.nan if value is None else value for value in found]
    return values


def reward_table(
    trials: Sequence[Sequence[Trial]],
    base: Sequence[Score],
    rated: Sequence[Sequence[Trial]] | None,
    config: Config,
) -> dict[str, Any]:
    """Reward x seeds -> reliability, cost, and what choosing by it is worth."""
    accuracy = rewards_by_seed(trials, "accuracy", config.seeds)
    counts = [k for k in (1, 2, PAPERS_SEEDS) if k <= config.seeds]
    rows = []
    likelihood = rewards_by_seed(trials, "log_likelihood", config.seeds)
    compared = {
        signal: (rewards_by_seed(trials, signal, config.seeds), [getattr(score, signal) for score in base])
        for signal in ("accuracy", "log_likelihood", "probability")
    }
    # Likelihoods are negative and some nats, accuracies a whole question apart: only equal accuracies change places.
    compared[TIES_BROKEN] = (accuracy + 1e-6 * likelihood, compared["accuracy"][1])
    for signal in ("accuracy", TIES_BROKEN, "log_likelihood", "probability"):
        rewards, untrained = compared[signal][0], np.array(compared[signal][1], float)
        for seeds in counts:
            found = reward_reliability(rewards, seeds=seeds, seed=config.seed)
            choice = choose_best(rewards, accuracy, untrained, seeds=seeds)
            rows.append(
                [
                    signal.replace("_", "-"),
                    seeds,
                    f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]",
                    f"{100 * choice.ties:.0f} %",
                    f"{100 * choice.below_base:.0f} %",
                    _gain(choice.average, choice.chosen, config.seed),
                    f"{seeds / PAPERS_SEEDS:.2f}",
                ]
            )
    if rated is not None:
        rating = np.array([[math.nan if t.proxy is None else t.proxy for t in row] for row in rated])
        same = np.repeat(rating[:, :, None], config.seeds, axis=2)
        choice = choose_best(same, accuracy, np.full(len(rated), -np.inf), seeds=1)
        gain = _gain(choice.average, choice.chosen, config.seed)
        rows.append(["proxy", 0, None, f"{100 * choice.ties:.0f} %", None, gain, "0, and a judge"])
    edits = sum(len(row) for row in trials)
    return {
        "title": "Rewards",
        "note": (
            f"{len(trials)} passages, {edits} self-edits, {config.seeds} training seeds each; 95 % bootstrap intervals "
            "over passages. Reliability: the share of the variance between a passage's self-edits that is not noise "
            "of the seed. Gain: accuracy of the winner under the seeds it was not chosen by, less that of a self-edit "
            "drawn blindly. Cost: training runs, the paper's (accuracy, 3 seeds) being 1."
        ),
        "columns": ["reward", "seeds", "reliability", "ties", "winner not above base", "gain, points", "cost"],
        "rows": rows,
    }


def _gain(average: np.ndarray, chosen: np.ndarray, seed: int) -> str | None:
    found = paired_bootstrap(average, chosen, seed=seed)
    return None if found.low != found.low else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in found[:3]))


def describe(config: Config, run_folder: Path) -> str:
    """The plan of a run: what it reads, trains and needs. Loads no weights."""
    passages = choose_passages(config).passages

    def work(edit: dict[str, int], alone: dict[str, int]) -> list[plan.Work]:
        return [plan.inner_work("rewards", len(passages) * config.samples, config.inner, seeds=config.seeds, **edit)]

    lines = [f"{len(passages)} passages, {sum(len(p.questions) for p in passages)} questions: {config.data}"]
    return knowledge.describe(config, passages, lines, work, run_folder, samples=config.samples)


EXPERIMENT = Experiment("rewards", __doc__, PRESETS, describe, run)

if __name__ == "__main__":
    sys.exit(session.main(EXPERIMENT, sys.argv[1:]))
