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
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from seal_jax.analysis.statistics import paired_bootstrap
from seal_jax.domains import squad
from seal_jax.domains.passages import load_recorded
from seal_jax.engine.training import FineTuning
from seal_jax.run import command, passages, plan
from seal_jax.run.passages import Knowledge, Recorded
from seal_jax.run.plan import Stage
from seal_jax.run.session import Experiment, Model, Prepared, Preset, Session
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


PAPER = Config("paper", model="Qwen/Qwen2.5-7B", dtype="bfloat16", style="raw")

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


class Sources(NamedTuple):
    """The passages that all sources share, and each source's self-edits for them."""

    passages: list[squad.Passage]
    completions: dict[str, dict[str, tuple[str, ...]]]  # source -> passage -> its self-edits
    left_out: int  # passages that some source lacks
    inputs: list[Any]
    lines: list[str]
    stages: list[Stage]


def load(config: Config) -> Sources:
    """Reads the sources and keeps what can be compared.

    Raises:
        ValueError: no source, two of one name, or no passage that all of them hold.
    """
    if not config.edits:
        raise ValueError("--edits is missing: name files or run folders of self-edits to score")
    sources: dict[str, list[squad.Passage]] = {}
    for entry in config.edits:
        label, _, path = entry.rpartition("=")
        label = label or f"edits of {Path(path).name if Path(path).is_dir() else Path(path).stem}"
        if label in sources or label in ("base", "passage"):
            taken = "two sources are" if label in sources else "a row of the table is"
            raise ValueError(f"--edits: {taken} called {label!r}; give {path} another name: LABEL={path}")
        sources[label] = load_recorded(path, config.stage)
    completions = {
        label: {p.id: p.completions[: config.samples] for p in read if p.completions} for label, read in sources.items()
    }
    everything = {p.id for read in sources.values() for p in read}
    shared = [p for p in next(iter(sources.values())) if all(p.id in own for own in completions.values())]
    if not shared:
        raise ValueError(
            "--edits: no passage has completions in all of "
            + ", ".join(f"{label} ({len(own)})" for label, own in completions.items())
            + "; passages are matched by title and context"
        )
    chosen = squad.shuffled(shared, config.seed)[: config.passages] if config.passages else shared
    texts = [p._replace(completions=()) for p in chosen]
    left_out, count = len(everything) - len(shared), len(chosen)
    lines = [f"{count} passages, {passages.questions_of(chosen)} questions; {left_out} left out", *config.edits]
    stages = [Stage("base", (plan.BASE,))]
    if config.passage_only:
        stages.append(Stage("passage alone", self_edits=count, seeds=config.seeds, alone=True))
    for label, own in completions.items():
        stages.append(Stage(label, self_edits=sum(len(own[p.id]) for p in chosen), seeds=config.seeds))
    return Sources(texts, completions, left_out, [passages.prompt_texts(config), sources], lines, stages)


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
    return here.finish(table, tables=[differences(stages, seed=config.seed)])


def differences(stages: Sequence[evaluation.Stage], *, seed: int) -> dict[str, Any]:
    """Every stage against every one before it, by each reward."""

    def cell(before: Sequence[float | None], after: Sequence[float | None], scale: float, form: str) -> str:
        found = paired_bootstrap(before, after, seed=seed)
        return (
            "-" if found.low != found.low else "{:{f}} [{:{f}}, {:{f}}]".format(*(scale * x for x in found[:3]), f=form)
        )

    rows = [
        [after.name, before.name, cell(before.accuracy, after.accuracy, 100, "+.1f"),
         cell(before.log_likelihood, after.log_likelihood, 1, "+.3f")]
        for before, after in itertools.combinations(stages, 2)
    ]  # fmt: skip
    return {
        "title": "Paired differences",
        "note": "Over the same passages, with 95 % bootstrap intervals over passages.",
        "columns": ["row", "against", "accuracy, points", "log-likelihood of the gold answer, nats a token"],
        "rows": rows,
    }


EXPERIMENT = Experiment("evaluate_edits", __doc__ or "", PRESETS, load, prepare, run)

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
