"""The cells of an ablation, run: as rows of one program where they can be, as programs or runs of their own otherwise.

A `Part` is a run: cells that share passages, self-edits and base answers. A program holds the cells of a part that
differ in what rows of the adapter axis may differ in (`types.Settings`). A cell comes out as if it had been run alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from seal_jax.analysis import grid
from seal_jax.analysis.ablations import METRICS
from seal_jax.domains import squad
from seal_jax.domains.passages import Passage, recorded_together
from seal_jax.engine.memory import Writing
from seal_jax.engine.training import FineTuning, Trainer
from seal_jax.graders.choose import Grader
from seal_jax.run import passages, plan, runtime, session
from seal_jax.run.journal import as_json, digest
from seal_jax.run.passages import Knowledge
from seal_jax.run.plan import Stage
from seal_jax.run.session import Experiment, Model, Place, Prepared, Session
from seal_jax.seal import evaluation
from seal_jax.seal.rewards import Score, Trial, mean
from seal_jax.seal.rounds import try_self_edits, write_self_edits
from seal_jax.types import PROJECTIONS, Compute, SelfEdit, require_at_least
from seal_jax.types import Settings as RowSettings

JUDGED_BY = ("kind", "model", "dtype", "base_url")  # what of a grader its verdicts depend on
BARRED = {
    "preset": "it names where the settings began",
    **{
        f"grader.{field.name}": "it changes no figure of a cell"
        for field in dataclasses.fields(Grader)
        if field.name not in JUDGED_BY
    },
}


@dataclasses.dataclass(frozen=True)
class Settings(Knowledge):
    """What every cell is, but for what is searched: any of these fields may be."""

    edits: tuple[str, ...] = ()
    """Files of recorded self-edits, or run folders, a passage's taken together; without any the model writes them."""
    split: Literal["train", "held_out"] = "train"
    """Which passages of a data set that has both; a file is taken whole."""
    passages: int = 50
    """Drawn with the data seed."""
    samples: int = 1
    """Self-edits a passage; a passage's figure is their mean."""
    seeds: int = 1
    """Training runs a self-edit and cell; a passage's figure is their mean."""
    training_seed: int = 0
    """Added to the seed for training alone (initialisation, order, dropout): the same self-edits, trained once more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, passages=self.passages, samples=self.samples, seeds=self.seeds)


class Cell(NamedTuple):
    """One setting of everything that is searched."""

    number: int  # from 1, in the order of the grid
    values: grid.Values
    config: Settings

    @property
    def label(self) -> str:
        """As a person reads it."""
        return grid.label(self.values) or "the settings as they are"

    @property
    def key(self) -> str:
        """All that its training depends on, within its part: another grid that has it too finds it finished."""
        return digest([as_json(self.config.inner), self.config.training_seed])


class Part(NamedTuple):
    """Cells that share passages, self-edits and base answers: one run (and its `session.Data`)."""

    label: str  # what of the grid it has fixed
    config: Settings
    cells: list[Cell]
    passages: list[Passage]
    recorded: dict[str, tuple[str, ...]]  # self-edits by passage; empty where the model writes
    inputs: list[str]  # a digest of all that was read from files
    folder: str = ""  # the name of its run folder: the same for the same settings and contents of files

    @property
    def lines(self) -> list[str]:
        """The data, for people to read."""
        source = " ".join(self.config.edits) or self.config.data
        return [f"{len(self.passages)} passages, {passages.questions_of(self.passages)} questions: {source}"]

    @property
    def stages(self) -> list[Stage]:
        """What the run will do, in order."""
        first, edits = (plan.BASE,) if self.recorded else (plan.BASE, plan.WRITE), sum(map(len, self.recorded.values()))
        edits = edits or len(self.passages) * self.config.samples
        groups = [group for program in programs_of(self.cells) for group in program.groups]
        epochs = [max(cell.config.inner.epochs for cell in group) for group in groups]
        return [Stage("cells", first)] + [
            Stage(name_of(group), (plan.TRAIN,), edits * len(group), self.config.seeds, epochs=most)
            for group, most in zip(groups, epochs, strict=True)
        ]


def parts_of(base: Settings, cells: Sequence[grid.Values]) -> list[Part]:
    """The runs that the cells make: one for each setting of what lies outside of training.

    Raises:
        ValueError: settings that do not go together, or fewer passages than a part needs.
    """
    parts: dict[str, Part] = {}
    for number, values in enumerate(cells, 1):
        cell = Cell(number, values, grid.with_values(base, values))
        outside = {k: v for k, v in values.items() if not (k.startswith("inner.") or k == "training_seed")}
        label = grid.label(outside)
        if label not in parts:
            config = grid.with_values(base, outside)
            part = Part(label, config, [], *choose_passages(config))
            slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "all"
            parts[label] = part._replace(folder=f"{slug}-{digest(session.identity(config, part))}")
        parts[label].cells.append(cell)
    return list(parts.values())


def with_weights(part: Part) -> Part:
    """The part with its models' weights in the name of its folder: other weights at the same path are another part."""
    return part._replace(folder=f"{part.folder}-{digest(session.weights_of(part.config))[:8]}")


def choose_passages(config: Settings) -> tuple[list[Passage], dict[str, tuple[str, ...]], list[str]]:
    """The passages of a part, drawn with its seed, the self-edits recorded for them, and a digest of all that was read.

    Raises:
        ValueError: fewer than it needs.
    """
    if config.edits:
        source = [passage for passage in recorded_together(config.edits) if passage.completions]
        what = f"--edits {' '.join(config.edits)}: {len(source)} passages with self-edits"
    else:
        source = squad.load_passages(config.data, config.split)
        what = f"--data {config.data}: {len(source)} passages in its split {config.split}"
    if len(source) < config.passages:
        raise ValueError(f"{what}; --passages asks for {config.passages}")
    chosen = squad.shuffled(source, config.data_seed)[: config.passages]
    recorded = {p.id: p.completions[: config.samples] for p in chosen} if config.edits else {}
    return chosen, recorded, [digest([passages.prompt_texts(config), source])]


# ---------------------------------------------------------------------------------------------------------------------
# Programs


class Program(NamedTuple):
    """Cells whose adapters train as rows of one compiled program."""

    inner: FineTuning  # with room for every one of them
    groups: list[list[Cell]]  # by what a call of it fixes: the training seed, the kind of initialisation


def programs_of(cells: Sequence[Cell]) -> list[Program]:
    """Cells by what their program is compiled for, and within that by what a call of it fixes."""
    programs: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        fixed = _fixed(cell.config.inner)
        call = [cell.config.training_seed, fixed.pop("initialisation")]
        programs.setdefault(digest(fixed), {}).setdefault(digest(call), []).append(cell)
    return [
        Program(covering([cell.config.inner for group in groups.values() for cell in group]), list(groups.values()))
        for groups in programs.values()
    ]


def _fixed(inner: FineTuning) -> dict[str, Any]:
    """What rows of one program share."""
    rows = set(RowSettings._fields)
    if inner.optimiser.dropout:
        rows.remove("projections")  # which mask a projection gets depends on the others
    return {name: value for name, value in as_json(inner).items() if name not in rows}


def covering(configs: Sequence[FineTuning]) -> FineTuning:
    """The settings of a program that has room for all of these."""
    return dataclasses.replace(
        configs[0],
        rank=max(config.rank for config in configs),
        epochs=max(config.epochs for config in configs),
        projections=tuple(name for name in PROJECTIONS if any(name in config.projections for config in configs)),
    )


def name_of(group: Sequence[Cell]) -> str:
    """What a group of cells is called in the journal and on the display: the same for the same cells."""
    fixed = _fixed(group[0].config.inner)
    shared = {
        name: value
        for name, value in group[0].values.items()
        if not name.startswith("inner.") or name.split(".")[1] in fixed
    }
    what = f": {grid.label(shared)}" if shared else ""
    return f"{len(group)} cell{'' if len(group) == 1 else 's'}{what} {digest([cell.key for cell in group])[:8]}"


# ---------------------------------------------------------------------------------------------------------------------
# A part: its cells trained and asked


Keep = Callable[[dict[str, Any], dict[str, Any]], None]  # what a part's cells share, and some cells' figures by key


def prepare(config: Settings, part: Part, model: Model) -> Prepared:
    """The domain and the sizes of all programs."""
    recorded = passages.Recorded(part.recorded, writes=not part.recorded)
    return passages.prepare(config, model, part.passages, recorded=recorded, samples=config.samples)


def run_part(part: Part, compute: Compute, place: Place, keep: Keep | None = None) -> dict[str, Any]:
    """Trains and asks the cells of a part: what they share, and each cell's figures by its key.

    Without cells it only writes the self-edits and asks the base model. `keep` gets every group as it is finished.
    """
    experiment = Experiment("ablations", "", {}, lambda config: part, prepare, partial(try_part, keep=keep))
    return session.execute(experiment, part.config, compute, place, command="")


def try_part(here: Session, part: Part, *, keep: Keep | None = None) -> dict[str, Any]:
    """The part's programs, one after another, in a session."""
    programs, loop, tasks = programs_of(part.cells), here.loop, part.passages
    if programs:  # the base model is asked by the program that asks the cells' adapters
        first = programs[0].inner
        asking = dataclasses.replace(loop.trainer.config, rank=first.rank, projections=first.projections)
        here.loop = loop._replace(trainer=loop.trainer._replace(config=asking))
    base = here.try_base(tasks, name="cells")
    if part.recorded:
        edits = [[loop.domain.parse(task, text) for text in part.recorded[task.id]] for task in tasks]
    else:
        edits = write_self_edits(here.lm, tasks, loop, samples=part.config.samples, name="cells")
    shared = {
        "passages": [task.id for task in tasks],
        "questions": passages.questions_of(tasks),
        "base": {metric: [getattr(score, metric) for score in base] for metric in METRICS},
        "ungraded": list(here.ungraded),
    }
    found: dict[str, Any] = {}
    for program in programs:
        trainer = with_room(here, program.inner)
        for group in program.groups:
            figures = try_group(here, trainer, tasks, base, edits, group)
            found |= figures
            if keep:
                keep(shared, figures)
    here.folder.once(f"finished/{digest([cell.key for cell in part.cells])}", lambda: True)
    return {"shared": shared, "cells": found, "judge": here.judge.usage(), "said": here.judge.report()}


def with_room(here: Session, inner: FineTuning) -> Trainer:
    """The trainer of a program, cut to the memory there is. Decided once, as the run's own plan is."""
    trainer, config, model = here.loop.trainer, here.config, here.speaker.model
    assert model is not None  # it has been loaded
    sizes = Writing(config.samples, here.loop.prompt_width, config.sampling.max_tokens, config.answer_tokens)
    cut = session.decided(
        here.folder,
        lambda: runtime.fit(model, inner, trainer.shapes, here.compute, sizes, config.dtype, config.base, here.lm.mesh),
        f"memory/{digest(as_json(inner))}",
    )
    chunk = dataclasses.replace(trainer.chunk, size=cut.answer_chunk or 1)
    return trainer._replace(config=inner, compute=cut, chunk=chunk)


def try_group(
    here: Session,
    trainer: Trainer,
    tasks: Sequence[Passage],
    base: Sequence[Score],
    edits: Sequence[Sequence[SelfEdit]],
    cells: Sequence[Cell],
) -> dict[str, Any]:
    """Cells times self-edits as rows of the adapter axis: each cell's figures, by its key."""
    config = cells[0].config
    trainer = trainer._replace(config=dataclasses.replace(trainer.config, initialisation=config.inner.initialisation))
    loop = here.loop._replace(trainer=trainer, seed=here.loop.seed + config.training_seed)
    settings = [RowSettings(*(getattr(cell.config.inner, name) for name in RowSettings._fields)) for cell in cells]
    rows = [[edit._replace(settings=own) for own in settings for edit in row] for row in edits]
    trials = try_self_edits(here.lm, tasks, rows, base, loop, seeds=config.seeds, name=name_of(cells))
    return {
        cell.key: figures_of(
            here,
            cell,
            [
                [trial._replace(sample=k) for k, trial in enumerate(row[c * len(own) : (c + 1) * len(own)])]
                for row, own in zip(trials, edits, strict=True)
            ],
        )
        for c, cell in enumerate(cells)
    }


def figures_of(here: Session, cell: Cell, trials: Sequence[Sequence[Trial]]) -> dict[str, Any]:
    """A cell's figures, one a passage; its self-edits with all that came of them go to cells/KEY.jsonl."""
    stage, before = evaluation.trained_stage(cell.key, cell.label, trials), len(here.ungraded)
    flat = [trial for row in trials for trial in row]
    here.miss(
        (trial.task, score, {"stage": cell.label, "sample": trial.sample, "training_seed": seed})
        for trial in flat
        for seed, score in enumerate(trial.scores)
    )
    queries, path = here.loop.domain.queries, here.folder.path / "cells" / f"{cell.key}.jsonl"
    path.parent.mkdir(exist_ok=True)
    records = [evaluation.trial_record(cell.label, t, queries(t.task), False, here.about(t.task)) for t in flat]
    session.write_lines(path, records)
    return {
        "records": digest(path.read_text(encoding="utf-8")),
        "accuracy": stage.accuracy,
        "log_likelihood": stage.log_likelihood,
        "probability": [mean(trial.probability for trial in row) for row in trials],
        "problems": stage.problems,
        "adapters": sum(len(trial.scores) for trial in flat if trial.edit.examples),
        "ungraded": here.ungraded[before:],
    }
