"""Which lines of a self-edit taught what was asked? Credit by gradient, against leaving each line out.

    python -m experiments.credit demo                      # embedded model, invented facts, 20 passages
    python -m experiments.credit demo --passages 60 --samples 4 --data squad
    python -m experiments.credit smoke                     # shows that everything runs, and no more

The model writes self-edits, and each line is credited with what the gold answers' likelihood owes to it: exactly, by
training without it (k + 1 adapters for k lines), and by one backward pass through the inner loop (one adapter), with
and without the curvature of the loss. Each under several training seeds, so that the table says how far leaving out
agrees with itself; the last seed is timed. Not in the paper.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from seal_jax.domains import squad
from seal_jax.engine.credit import free_room, require_creditable
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import train_each
from seal_jax.run import command, passages, plan
from seal_jax.run.passages import Knowledge
from seal_jax.run.plan import Stage
from seal_jax.run.session import Experiment, Model, Prepared, Preset, Session
from seal_jax.seal.credit import Method, by_gradient, credit_table, leave_one_out, ranking, tokens_of
from seal_jax.seal.rounds import fitted, write_self_edits
from seal_jax.types import Compute, Query, SelfEdit, require_at_least

GROUP = 10  # self-edits of one piece of work: what a run that is killed does again
SHOWN = 60  # lines of the ranking


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """Which self-edits, and under how many seeds."""

    passages: int = 20
    """Drawn with the data seed."""
    samples: int = 1
    """Self-edits a passage, which the model writes."""
    seeds: int = 2
    """Training runs a self-edit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, passages=self.passages, samples=self.samples, seeds=self.seeds)


PAPER = Config("paper", **passages.PAPER)

DEMO = Config("demo", **passages.SMALL)
SMOKE = dataclasses.replace(
    DEMO, preset="smoke", **{**passages.SMALLEST, "sampling": Sampling(max_tokens=48, temperature=0.0)}, passages=2
)

PRESETS = {
    "demo": Preset(
        "The embedded model on invented facts: an hour on 2 CPU cores.", DEMO, Compute(width_cuts=(24, 32, 48, 96))
    ),
    "paper": Preset("The paper's model and inner loop.", PAPER),
    "smoke": Preset(
        "Two passages, one epoch: shows that everything runs, and no more.",
        SMOKE,
        Compute(chunk=4, write_chunk=20, width_cuts=(96,)),
    ),
}


class Data(NamedTuple):
    """The passages."""

    passages: list[squad.Passage]
    inputs: list[Any]
    lines: list[str]
    stages: list[Stage]


def choose(config: Config) -> Data:
    """The passages of a run, drawn with its seed. Raises ValueError where there are fewer than it needs."""
    source = squad.load_passages(config.data, "train")
    if len(source) < config.passages:
        raise ValueError(f"--data {config.data}: {len(source)} passages; --passages asks for {config.passages}")
    chosen = squad.shuffled(source, config.data_seed)[: config.passages]
    count, lines = config.passages * config.samples, config.max_sequences - 1
    stages = [
        Stage("credit", (plan.WRITE,)),
        Stage("whole self-edits", self_edits=count, seeds=config.seeds),
        Stage("by gradient", self_edits=count, seeds=config.seeds),
        Stage("by gradient, without curvature", self_edits=count, seeds=config.seeds),
        Stage("left out", self_edits=count * (1 + lines), seeds=config.seeds),
    ]
    read = f"{len(chosen)} passages, {passages.questions_of(chosen)} questions: {config.data}"
    return Data(chosen, [passages.prompt_texts(config), source], [read], stages)


def prepare(config: Config, data: Data, model: Model) -> Prepared:
    """The domain and the sizes of all programs."""
    return passages.prepare(config, model, data.passages, samples=config.samples)


def run(here: Session, data: Data) -> dict[str, Any]:
    """Self-edits, each line's credit by every method under every seed, and the table."""
    config, loop = here.config, here.loop
    require_creditable(here.lm, loop.trainer)
    written = write_self_edits(here.lm, data.passages, loop, samples=config.samples, name="credit")
    numbered = [(p, fitted(edit, here.lm.codec, loop.trainer.shapes)) for p, row in enumerate(written) for edit in row]
    numbered = [(p, edit) for p, edit in numbered if edit.lines]
    if not numbered:
        raise ValueError(
            f"none of {len(data.passages) * config.samples} self-edits has a line about its passage, and there is "
            "nothing to credit; take more --passages, or another --prompt"
        )
    tasks, edits = [p for p, _ in numbered], [edit for _, edit in numbered]
    asked = [loop.domain.queries(data.passages[p]) for p in tasks]
    lm, trainer = here.lm, loop.trainer

    def train(edits: Sequence[SelfEdit], asked: Sequence[Sequence[Query]], *, seed: int) -> list[Any]:
        for _ in train_each(lm, tokens_of(lm, edits), trainer, seed=seed):
            pass
        return [[] for _ in edits]

    measured = partial(credited, here, edits, asked)
    inner = measured("whole self-edits", train)
    credit = partial(by_gradient, lm, trainer=trainer, room=here.folder.once("credit, room", partial(free_room, lm)))
    gradient = measured("by gradient", credit)
    straight = measured("by gradient, without curvature", partial(credit, curvature=False))
    left: Any = measured("left out", partial(leave_one_out, lm, trainer=trainer))
    exact, chance = (
        left._replace(credit=[[one[signal] for one in own] for own in left.credit])
        for signal in ("log_likelihood", "probability")
    )
    methods, titles = [gradient, straight], [data.passages[p].title for p in tasks]
    tables = [
        credit_table(exact, chance, methods, tasks, inner.seconds, seed=config.seed),
        ranking(exact, gradient, edits, titles, most=SHOWN),
    ]
    lines = [
        {"passage": data.passages[p].id, "lines": edit.lines,
         **{one.label: [own[e] for own in one.credit] for one in (exact, gradient, straight)}}
        for e, (p, edit) in enumerate(numbered)
    ]  # fmt: skip
    return here.finish([], tables=tables, credit=lines)


def credited(
    here: Session,
    edits: Sequence[SelfEdit],
    asked: Sequence[Sequence[Query]],
    label: str,
    work: Callable[..., list[Any]],
) -> Method:
    """A method's credit of all self-edits under every seed, some at a time; finished ones are read from the journal."""
    seeds, peak = here.config.seeds, None
    here.progress.phase(f"{label}: inner loop", seeds * len(edits), "self-edits")
    credit, seconds = [], []
    groups = -(-len(edits) // GROUP)  # of about one size: they then share their programs
    cuts = [len(edits) * n // groups for n in range(groups + 1)]
    for seed in range(seeds):
        found, spent = list[Any](), 0.0
        for begin, end in itertools.pairwise(cuts):
            part, name = slice(begin, end), f"{label}/seed {seed}/{begin}"

            def measure(part: slice = part, seed: int = seed) -> dict[str, Any]:
                started = time.monotonic()
                values = work(edits[part], asked[part], seed=here.config.seed * 1000 + seed)
                took = time.monotonic() - started
                peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
                return {"values": values, "seconds": took, "peak": max(filter(None, peaks), default=None)}

            resumed = here.folder.has(name)
            done = here.folder.once(name, measure)
            found, spent, peak = found + done["values"], spent + done["seconds"], done["peak"]
            here.progress.advance(len(done["values"]), resumed=resumed)
        credit.append(found)
        seconds.append(spent)
    return Method(label, credit, seconds, peak)


EXPERIMENT = Experiment("credit", __doc__ or "", PRESETS, choose, prepare, run)

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
