"""Scores recorded self-edits: another model's, another method's, or those of an earlier run (paper table 2).

    python -m experiments.evaluate_edits demo --edits base.json iter2.json gpt4_1.json       # embedded model, CPU
    python -m experiments.evaluate_edits paper --edits base.json gpt4_1.json                 # Qwen2.5-7B, a GPU
    python -m experiments.evaluate_edits demo --edits mine=runs/squad-demo other.json --seeds 3 --samples 2

A file holds passages in the reference's format, `[{title, context, questions, completions}]`; a run folder lends the
self-edits of its last evaluation (or of `--stage`). Every completion is trained and asked as the main experiment does;
rows are the base model, the passage alone, and one for each file, over the passages that all files share. Differences
are paired by passage; the table of every file against every other comes after the rows.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import tyro

from seal_jax.domains import squad
from seal_jax.engine.training import FineTuning
from seal_jax.run import command, passages
from seal_jax.run.passages import Knowledge, Recorded
from seal_jax.run.session import Experiment, Model, Prepared, Preset, Session
from seal_jax.run.sources import Sources, load
from seal_jax.seal import evaluation
from seal_jax.seal.rounds import try_self_edits
from seal_jax.types import PROJECTIONS, Compute, require_at_least


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """What is compared, and how thoroughly."""

    data: tyro.conf.Suppress[str] = "recorded"  # what `edits` name
    edits: tuple[str, ...] = ()
    """Files or run folders of self-edits; LABEL=PATH names a row. The first file's questions are asked."""
    stage: str | None = None
    """Of a run folder: whose self-edits (passage, self_edits_round_1, "round 1"); by default its last evaluation's."""
    passages: int | None = None
    """Only so many of the shared passages, drawn with the seed."""
    samples: int = 5
    """Self-edits of a passage that are scored, at most; a passage's accuracy is their mean (paper: 5 are recorded)."""
    seeds: int = 1
    """Training runs a self-edit."""
    passage_only: bool = True
    """Score training on the passage alone, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, samples=self.samples, seeds=self.seeds)
        if self.passages is not None:
            require_at_least(1, passages=self.passages)


PAPER = Config("paper", **passages.PAPER | {"data": "recorded"})

DEMO = Config(
    "demo",
    answer_tokens=32,
    inner=FineTuning(projections=PROJECTIONS),
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    answer_tokens=8,
    passages=3,
    samples=1,
    max_sequences=4,
    inner=FineTuning(epochs=1),
)

PRESETS = {
    "demo": Preset("The embedded model: minutes for each ten self-edits on 2 CPU cores.", DEMO, Compute(chunk=8)),
    "paper": Preset("The paper's model and inner loop.", PAPER),
    "smoke": Preset("Three passages, one epoch: shows that everything runs, and no more.", SMOKE, Compute(chunk=2)),
}


def prepare(config: Config, data: Sources, model: Model) -> Prepared:
    """The domain and the sizes of all programs."""
    every = {p.id: [text for own in data.completions.values() for text in own[p.id]] for p in data.passages}
    return passages.prepare(config, model, data.passages, recorded=Recorded(every, writes=False))


def run(here: Session, data: Sources) -> dict[str, Any]:
    """The base model, the passage alone, and a row for each source."""
    config, read = here.config, data.passages
    if data.left_out:
        here.progress.note(f"{data.left_out} passages are left out: not every source has self-edits for them")
    base = here.try_base(read, name="base")
    stages = [evaluation.base_stage(base, "Base model")]
    edits = {"passage": [[squad.passage_only(passage)] for passage in read]} if config.passage_only else {}
    for label, own in data.completions.items():
        edits[label] = [[here.loop.domain.parse(p, text) for text in own[p.id]] for p in read]
    for label, rows in edits.items():
        stage = "passage alone" if label == "passage" else label
        trials = try_self_edits(here.lm, read, rows, base, here.loop, seeds=config.seeds, name=stage)
        shown = "Passage alone" if label == "passage" else f"Passage and {label}"
        stages.append(evaluation.trained_stage(label, shown, trials))
        here.record(label, trials)
    table = evaluation.rows(stages, read, passages.questions_of(read), seed=config.seed)
    return here.finish(table, tables=[evaluation.differences(stages, seed=config.seed)])


EXPERIMENT = Experiment("evaluate_edits", __doc__ or "", PRESETS, load, prepare, run)

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
