"""Ways to put a passage into weights, side by side: the same passages, tokens and grader, a row for each way.

    python -m experiments.rivals demo                                      # embedded model and passages, 2 CPU cores
    python -m experiments.rivals demo --recorded iter2=iter2.json gpt=gpt4_1.json --passages 120
    python -m experiments.rivals paper --recorded iter2=iter2.json         # Qwen2.5-7B, a GPU
    python -m experiments.rivals demo --rows passage seal spa active_reading --budgets 1 2 4 8 16   # a curve for each
    python -m experiments.rivals smoke                                     # shows that everything runs, and no more

Rows: the base model; the passage alone; its own self-edits (SEAL); recorded ones; text by EntiGraph, SPA and Active
Reading; context distillation on its own questions and on given text; MixSD on the same text; a trained prefix; SDFT,
whose answers each adapter samples itself. Each synthetic row has a budget of tokens, as a multiple of the passage's, so
that rows differ in what they train on and not in how much. With several budgets each text is written once, for the last
of them, and its beginnings are the others'.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

from seal_jax.engine import batching
from seal_jax.engine.on_policy import OnPolicy
from seal_jax.engine.prefixes import PrefixTuning
from seal_jax.nn.losses import next_token
from seal_jax.run import command, passages, rivals
from seal_jax.run.passages import Knowledge
from seal_jax.run.rivals import Row
from seal_jax.run.session import Experiment, Model, Prepared, Preset, Session
from seal_jax.run.sources import Sources
from seal_jax.seal import evaluation, forgetting
from seal_jax.seal.rewards import Trial, gold_tokens
from seal_jax.seal.rounds import try_base, try_self_edits
from seal_jax.types import Compute, SelfEdit, require_at_least


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """What is compared, and at which size."""

    recorded: tuple[str, ...] = ()
    """Files or run folders of recorded self-edits, a row each: NAME=FILE. The passages that all hold are the run's."""
    rows: tuple[str, ...] = tuple(rivals.OWN)
    """Which of the other rows there are."""
    passages: int | None = None
    """Only so many passages, drawn with --data-seed."""
    budgets: tuple[float, ...] = (4.0,)
    """Tokens of a passage's synthetic sequences, as multiples of the passage's own, upwards: such as 1 2 4 8 16. A row
    is written for the last; of several, its accuracy over them is a curve, by the beginnings of the same text."""
    others: int = 8
    """Questions on other passages, which the base answers right, that each adapter is asked: what is forgotten."""
    seeds: int = 1
    """Training runs a self-edit."""
    prefix: PrefixTuning = PrefixTuning()
    """Keys and values in place of LoRA: the row prefix."""
    sdft: OnPolicy = OnPolicy()
    """Training on answers that each adapter samples itself: the row sdft."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, seeds=self.seeds, passages=1 if self.passages is None else self.passages)
        require_at_least(0, others=self.others, **{"each of --budgets": min(self.budgets, default=0)})
        rising = all(before < after for before, after in itertools.pairwise((*self.budgets, math.inf)))
        if not self.budgets or not rising:
            said = " ".join(f"{budget:g}" for budget in self.budgets)
            raise ValueError(f"--budgets {said}: expected one or more, each larger than the one before, none infinite")

    @property
    def budget(self) -> float:
        """The largest: what is written, and what the tables are of."""
        return self.budgets[-1]


PAPER = Config("paper", **passages.PAPER, passages=200)

DEMO = Config("demo", **passages.SMALL, passages=10)

SMOKE = dataclasses.replace(DEMO, preset="smoke", **passages.SMALLEST, passages=3, budgets=(1.0,), others=2)

PRESETS = {
    "demo": Preset("Ten passages and the embedded model, on 2 CPU cores.", DEMO, Compute(chunk=10, write_chunk=20)),
    "paper": Preset("The paper's model and inner loop.", PAPER),
    "smoke": Preset(
        "Three passages, one epoch: shows that everything runs, and no more.",
        SMOKE,
        Compute(chunk=2, write_chunk=20, width_cuts=(96,)),
    ),
}


def prepare(config: Config, data: Sources, model: Model) -> Prepared:
    """The domain and the sizes of all programs. A recorded line that is longer than every passage is cut."""
    capacity = round(config.max_sequences * max(1.0, config.budget))
    ready = passages.prepare(config, model, data.passages, capacity=capacity)
    speaker, texts = model.speaker, [forgetting.unrelated(passage) for passage in data.passages]
    rivals.require_view(config, speaker, ready)
    gold = batching.round_up(max(len(gold_tokens(speaker.lm.codec.encode_more, text)) for text in texts), 8)
    shapes = ready.shapes._replace(
        gold_width=max(gold, ready.shapes.gold_width),
        taught=rivals.taught(config),
        prefix=config.prefix.tokens if "prefix" in config.rows else 0,
    )
    return ready._replace(shapes=shapes, most=rivals.most(config, ready, capacity))


def run(here: Session, data: Sources) -> dict[str, Any]:
    """The base model, the passage alone, and a row for each way."""
    config, read = here.config, data.passages
    if data.left_out:
        here.progress.note(f"{data.left_out} passages are left out: not every source has self-edits for them")
    known = here.try_base(read, name="base")
    beside = forgetting.choose(read, known, here.loop.domain, count=config.others, seed=config.data_seed)
    loop = here.loop._replace(domain=forgetting.asking(here.loop.domain, beside))
    base = try_base(here.lm, read, loop, name="base and beside")
    nothing = [Trial(task, 0, SelfEdit("", ()), [score], score) for task, score in zip(read, base, strict=True)]
    before = [forgetting.parts(trial, beside[trial.task.id]) for trial in nothing]

    def tried(name: str, label: str, trials: Sequence[Sequence[Trial]], written: list[int]) -> Row:
        parts = [[forgetting.parts(trial, beside[trial.task.id]) for trial in row] for row in trials]
        here.record(name, [[part.own for part in row] for row in parts])
        return Row(name, label, parts, written, rivals.trained_tokens(here, trials))

    rows: list[Row] = []
    curves: dict[str, list[Row]] = {}
    for name, label in rivals.rows_of(config, data).items():
        edits, written = rivals.write(here, data, name)
        trainer = loop.trainer._replace(loss=rivals.LOSSES.get(name, next_token))
        own = loop._replace(trainer=trainer)
        train = rivals.train(config, name)
        trials = try_self_edits(here.lm, read, edits, base, own, name, seeds=config.seeds, train=train)
        rows.append(tried(name, label, trials, written))
        if shorter := rivals.beginnings(here, name, edits):
            stage = rivals.SMALLER.format(name)
            trials = try_self_edits(here.lm, read, shorter, base, own, stage, seeds=config.seeds, train=train)
            smaller = [
                tried(f"{name} x {budget:g}", label, [[row[b]._replace(sample=0)] for row in trials], written)
                for b, budget in enumerate(config.budgets[:-1])
            ]
            curves[name] = [*smaller, rows[-1]]
    stages = [evaluation.base_stage(known, "Base model"), *map(rivals.stage_of, rows)]
    table = evaluation.rows(stages, read, passages.questions_of(read), seed=config.seed)
    tables = [*rivals.tables(rows, before, here), evaluation.differences(stages, seed=config.seed)]
    trends, over = rivals.over_budgets(curves, rows, here)
    data_name = "recorded" if config.recorded else config.data
    return here.finish(table, data=data_name, trends=trends, tables=[*over, *tables])


EXPERIMENT = Experiment("rivals", __doc__ or "", PRESETS, rivals.read, prepare, run)

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
