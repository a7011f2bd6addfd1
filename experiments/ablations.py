"""Ablations: which settings should I use? A grid, or a random search, over any field of knowledge incorporation.

    python -m experiments.ablations demo                             # 12 cells, one program, on 2 CPU cores
    python -m experiments.ablations paper                            # the paper's search: r, alpha, lr, epochs, batch
    python -m experiments.ablations demo --grid inner.learning_rate=1e-4,3e-4,1e-3 inner.rank=8,32
    python -m experiments.ablations demo --grid inner.learning_rate=1e-5..1e-2 inner.epochs=2..16 --random 20
    python -m experiments.ablations demo --ablation targets          # a named one (experiments/grids), or a TOML file
    python -m experiments.ablations paper --ablation prompts --jobs.where slurm --jobs.partition gpu

Every cell trains the same self-edits of the same passages, one adapter each, by settings of its own, and answers the
same questions. What may differ between rows of the adapter axis (learning rate, epochs, rank, alpha, projections) does:
all those cells are one compiled program, cells times self-edits its rows. A training seed is another run of it. Other
fields of the inner loop (batch size, schedule, dropout) need a program each, but share self-edits and base answers.
What lies outside the inner loop (prompt, model, sampling) is a run of its own, one after another or as jobs.

A cell comes out as if it had been run alone. The page says which one to use and how sure that is; results.csv has every
figure of it. A larger grid on the same folder keeps the cells that it has. Settings are chosen on the passages that the
main experiment trains on, so that those it reports on stay unseen (--split held_out for the others).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from seal_jax import types
from seal_jax.analysis import ablations as ablation_results
from seal_jax.analysis import effects, grid
from seal_jax.analysis.ablations import METRICS, Metric, Outcome
from seal_jax.domains import squad
from seal_jax.domains.passages import recorded_together
from seal_jax.engine import memory
from seal_jax.engine.training import FineTuning
from seal_jax.graders.choose import Grader
from seal_jax.nn.lora import PROJECTIONS
from seal_jax.report.page import write_report
from seal_jax.run import jobs, knowledge, plan, runtime, session
from seal_jax.run.invocation import shell_command
from seal_jax.run.jobs import Jobs, Task
from seal_jax.run.journal import RunFolder, as_json, require_room, write_atomically
from seal_jax.run.knowledge import Knowledge
from seal_jax.run.session import Experiment, Session
from seal_jax.run.trackers import Tracker
from seal_jax.seal import evaluation
from seal_jax.seal.rest_em import Loop, Trial, try_self_edits, write_self_edits
from seal_jax.seal.rewards import Score, mean
from seal_jax.types import SelfEdit, require_at_least

from . import squad as main_job

GRIDS = Path(__file__).parent / "grids"  # named ablations
LISTED = 40  # cells that --dry-run shows

_SPEED = f"it changes how fast a cell trains, not what comes of it ({shell_command('benchmark')} measures that)"
BARRED = {
    "preset": "it names where the settings began",
    **dict.fromkeys(
        (
            *(f"tracker.{field.name}" for field in dataclasses.fields(Tracker)),
            *(f"grader.{field.name}" for field in dataclasses.fields(Grader) if field.name not in session.JUDGED_BY),
        ),
        "it changes no figure of a cell",
    ),
    **dict.fromkeys(
        (
            "write_chunk", "devices", "inner.chunk", "inner.width_cuts", "inner.optimiser.remat",
            "inner.optimiser.loss_chunk", "inner.optimiser.accumulate",
        ),
        _SPEED,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings(Knowledge):
    """What every cell is, but for what is searched: any of these fields may be."""

    edits: tuple[str, ...] = ()
    """Files of recorded self-edits, or run folders, a passage's taken together; without any the model writes them."""
    split: Literal["train", "held_out"] = "train"
    """Which passages of a data set that has both; a file is taken whole."""
    passages: int = 50
    """Drawn with the seed."""
    samples: int = 1
    """Self-edits a passage; a passage's figure is their mean."""
    seeds: int = 1
    """Training runs a self-edit and cell; a passage's figure is their mean."""
    training_seed: int = 0
    """Added to the seed for training alone (initialisation, order, dropout): the same self-edits, trained once more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, passages=self.passages, samples=self.samples, seeds=self.seeds)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """An ablation: the settings, and what is searched."""

    grid: tuple[str, ...] | None = None
    """FIELD=VALUE,VALUE (several: inner.rank=8,32 prompt=facts,rewrite), or FIELD=LOW..HIGH with --random."""
    ablation: str | None = None
    """A named one (demo, paper, prompts, targets) or a TOML file; --grid is instead of it."""
    random: int | None = None
    """Draw so many cells, with the seed, instead of running all."""
    metric: Metric = "accuracy"
    """What the best cell is best at. log_likelihood and probability (of the gold answers) are less noisy."""
    jobs: Jobs = Jobs()
    """Where runs that cannot share a program run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random is not None:
            require_at_least(1, random=self.random)


PAPER = Config("paper", model="Qwen/Qwen2.5-7B", dtype="bfloat16", data="squad", style="raw", ablation="paper")

DEMO = Config(
    "demo",
    prompt="facts",
    sampling=main_job.DEMO.sampling,
    answer_tokens=24,
    write_chunk=20,
    max_sequences=8,
    inner=dataclasses.replace(main_job.DEMO.inner, chunk=16, width_cuts=(24, 32, 48, 96)),
    passages=8,
    ablation="demo",
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    sampling=main_job.SMOKE.sampling,
    answer_tokens=8,
    max_sequences=4,
    inner=FineTuning(epochs=1, chunk=4, width_cuts=(96,)),
    passages=2,
    ablation="smoke",
)

PRESETS = {
    "demo": ("Twelve cells on 2 CPU cores: a 135M model and invented facts.", DEMO),
    "paper": ("The paper's model, and its own search: a GPU, or several through --jobs.", PAPER),
    "smoke": ("Two passages, one epoch: shows that everything runs, and no more.", SMOKE),
}


# ---------------------------------------------------------------------------------------------------------------------
# From a grid to cells, parts and programs


class Cell(NamedTuple):
    """One setting of everything that is searched."""

    number: int  # from 1, as the grid has them
    values: grid.Values
    config: Settings

    @property
    def label(self) -> str:
        """As a person reads it."""
        return grid.label(self.values) or "the settings as they are"

    @property
    def key(self) -> str:
        """All that its training depends on, within its part: another grid that meets it again finds it finished."""
        return _digest([as_json(self.config.inner), self.config.training_seed])


class Part(NamedTuple):
    """Cells that share passages, self-edits and base answers: one run, in a folder of its own."""

    label: str  # what of the grid it has fixed
    folder: str
    config: Settings
    cells: list[Cell]


class Search(NamedTuple):
    """What a command asks for."""

    title: str
    cells: list[Cell]
    parts: list[Part]
    drawn: bool  # at random, rather than a whole grid


class Program(NamedTuple):
    """Cells whose adapters train as rows of one compiled program."""

    label: str
    inner: FineTuning  # with room for every one of them
    groups: list[list[Cell]]  # by what they share besides: the training seed, the kind of initialisation


def read_search(config: Config) -> Search:
    """The cells of a command, each with its settings checked, and the runs they make.

    Raises:
        ValueError: no grid, an unknown field, a value of the wrong type, settings that do not go together.
        FileNotFoundError: no such ablation.
    """
    known = grid.fields(Settings)
    title, draw = "Ablation", config.random
    if config.grid is not None:
        axes = grid.read_grid(config.grid, known, barred=BARRED)
    elif config.ablation:
        named = grid.read_file(find_ablation(config.ablation), known, barred=BARRED)
        title, axes, draw = named.title, named.axes, config.random or named.random
    else:
        raise ValueError("nothing to search: give --grid FIELD=VALUE,VALUE or --ablation NAME")
    base = settings_of(config)
    drawn = grid.cells(axes, draw=draw, seed=config.seed, kinds=known)
    cells = [Cell(n, values, grid.with_values(base, values)) for n, values in enumerate(drawn, 1)]
    return Search(title, cells, split_into_parts(base, cells), draw is not None)


def find_ablation(name: str) -> Path:
    """The file of a named ablation, or the file itself.

    Raises:
        FileNotFoundError: there is none (suggests).
    """
    names = sorted(path.stem for path in GRIDS.glob("*.toml"))
    if name in names:
        return GRIDS / f"{name}.toml"
    if Path(name).is_file():
        return Path(name)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(names)}, or a TOML file"
    raise FileNotFoundError(f"--ablation: no ablation and no file is called {name!r}; {hint}")


def settings_of(config: Config) -> Settings:
    """The settings without the search."""
    return Settings(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Settings)})


def split_into_parts(base: Settings, cells: Sequence[Cell]) -> list[Part]:
    """Cells by what they fix outside of training."""
    parts: dict[str, Part] = {}
    for cell in cells:
        outside = {name: value for name, value in cell.values.items() if not _within(name)}
        label = grid.label(outside)
        if label not in parts:
            config = grid.with_values(base, outside)
            slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40]
            parts[label] = Part(label, f"{slug or 'all'}-{_digest(session.identity(config))}", config, [])
        parts[label].cells.append(cell)
    return list(parts.values())


def _within(name: str) -> bool:
    """Whether a field only changes how adapters are trained."""
    return name.startswith("inner.") or name == "training_seed"


def programs_of(cells: Sequence[Cell]) -> list[Program]:
    """Cells by what their program is compiled for, and within that by what a call of it fixes."""
    by_program: dict[str, list[Cell]] = {}
    for cell in cells:
        by_program.setdefault(_digest(_fixed(cell.config.inner)), []).append(cell)
    found = []
    for own in by_program.values():
        groups: dict[Any, list[Cell]] = {}
        for cell in own:
            groups.setdefault((cell.config.training_seed, cell.config.inner.initialisation), []).append(cell)
        label = grid.label({name: value for name, value in own[0].values.items() if _separates(name, own[0])})
        found.append(Program(label, covering([cell.config.inner for cell in own]), list(groups.values())))
    return found


def _fixed(inner: FineTuning) -> dict[str, Any]:
    """All of it that rows of one program share."""
    fixed = as_json(inner)
    for name in (*types.Settings._fields, "initialisation"):
        if name != "projections" or not inner.optimiser.dropout:  # which mask a projection gets depends on the others
            del fixed[name]
    return fixed


def _separates(name: str, cell: Cell) -> bool:
    return name.startswith("inner.") and name.removeprefix("inner.").partition(".")[0] in _fixed(cell.config.inner)


def covering(configs: Sequence[FineTuning]) -> FineTuning:
    """The settings of a program that has room for all of these."""
    return dataclasses.replace(
        configs[0],
        rank=max(config.rank for config in configs),
        epochs=max(config.epochs for config in configs),
        projections=tuple(name for name in PROJECTIONS if any(name in config.projections for config in configs)),
    )


def row_settings(inner: FineTuning) -> types.Settings:
    """What a cell's rows have of their own."""
    return types.Settings(*(getattr(inner, name) for name in types.Settings._fields))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


# ---------------------------------------------------------------------------------------------------------------------
# Passages


class Data(NamedTuple):
    """The passages of a part, and the self-edits recorded for them, if they come from files."""

    passages: list[squad.Passage]
    recorded: dict[str, tuple[str, ...]]  # by passage; empty where the model writes
    inputs: list[Any]  # all that was read from files

    @property
    def questions(self) -> int:
        return sum(len(passage.questions) for passage in self.passages)


def choose_passages(config: Settings) -> Data:
    """The passages of a part, drawn with its seed.

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
    chosen = squad.shuffled(source, config.seed)[: config.passages]
    recorded = {p.id: p.completions[: config.samples] for p in chosen} if config.edits else {}
    return Data(chosen, recorded, [knowledge.prompt_texts(config), source])


# ---------------------------------------------------------------------------------------------------------------------
# A part: its cells trained and asked


def run_part(config: Settings, cells: Sequence[Cell], folder: Path) -> dict[str, Any]:
    """Trains and asks some cells of a part, and returns what is found, as JSON: each cell's figures by its key.

    Without cells it only writes the self-edits and asks the base model. Whatever is finished in `folder` is kept.
    """
    data = choose_passages(config)
    programs = programs_of(cells)
    writing = [] if data.recorded else ["cells: writing self-edits"]
    names = [f"{group_name(group)}: inner loop" for program in programs for group in program.groups]
    with knowledge.opened(
        config, folder, "ablations", data.passages, command="", inputs=data.inputs, samples=config.samples,
        phases=["cells: base model", *writing, *names],
        longest_written=lambda lm: knowledge.longest_sequence(
            config, lm, data.passages, data.recorded, written=not data.recorded
        ),
    ) as here:  # fmt: skip
        if programs:  # the base model is asked by the program that asks the cells' adapters
            first = programs[0].inner
            here.loop = here.loop._replace(
                inner=dataclasses.replace(here.loop.inner, rank=first.rank, projections=first.projections)
            )
        base = here.try_base(data.passages, name="cells")
        missing = list(here.ungraded)
        if data.recorded:
            edits = [[here.loop.domain.parse(p, text) for text in data.recorded[p.id]] for p in data.passages]
        else:
            edits = write_self_edits(here.lm, data.passages, here.loop, samples=config.samples, name="cells")
        found: dict[str, Any] = {}
        for program in programs:
            loop = with_room(here, program)
            for group in program.groups:
                found |= try_cells(here, loop, data, base, edits, group)
        return {
            "passages": [passage.id for passage in data.passages],
            "questions": data.questions,
            "base": {metric: [getattr(score, metric) for score in base] for metric in METRICS},
            "cells": found,
            "ungraded": missing,
            "judge": here.judge.usage(),
            "judge_says": here.judge.report(),
            "seconds": time.monotonic() - here.started,
        }


def with_room(here: Session, program: Program) -> Loop:
    """The loop of a program: its settings, cut to the memory there is. Decided once, as the run's own plan is."""
    loop, wide = here.loop, dataclasses.replace(here.config, inner=program.inner)
    cut = memory.Plan(
        *here.folder.once(
            f"memory/{_digest(as_json(program.inner))}",
            lambda: list(session.fit(wide, here.model, loop.shapes, loop.prompt_width, 1)),
        )
    )
    return loop._replace(inner=cut.applied(program.inner), chunk=dataclasses.replace(loop.chunk, size=cut.chunk))


def group_name(cells: Sequence[Cell]) -> str:
    """Of cells that are tried together: a run that carries on with the same ones finds their pieces by it."""
    return f"{len(cells)} cell{'' if len(cells) == 1 else 's'} {_digest([cell.key for cell in cells])}"


def try_cells(
    here: Session,
    loop: Loop,
    data: Data,
    base: Sequence[Score],
    edits: Sequence[Sequence[SelfEdit]],
    cells: Sequence[Cell],
) -> dict[str, Any]:
    """Cells times self-edits as rows of the adapter axis: each cell's figures, by its key.

    Cells that an earlier, smaller grid finished are not trained again.
    """
    name, folder = group_name(cells), here.folder
    # Settled once: after a kill the same rows make the same pieces, whatever was finished in between.
    left = set(folder.once(f"{name}/left", lambda: [c.key for c in cells if not folder.has(f"cell {c.key}")]))
    todo = [cell for cell in cells if cell.key in left]
    if todo and not all(folder.has(f"cell {cell.key}") for cell in todo):
        inner = loop.inner
        loop = loop._replace(
            inner=dataclasses.replace(inner, initialisation=todo[0].config.inner.initialisation),
            seed=loop.seed + todo[0].config.training_seed,
        )

        def own(edit: SelfEdit, cell: Cell) -> SelfEdit:
            return edit._replace(settings=row_settings(cell.config.inner))

        rows = [[own(edit, cell) for cell in todo for edit in row] for row in edits]
        trials = try_self_edits(here.lm, data.passages, rows, base, loop, seeds=todo[0].config.seeds, name=name)
        for c, cell in enumerate(todo):
            mine = [
                [trial._replace(sample=k) for k, trial in enumerate(row[c * len(wrote) : (c + 1) * len(wrote)])]
                for row, wrote in zip(trials, edits, strict=True)
            ]
            folder.once(f"cell {cell.key}", partial(finish_cell, here, cell, mine))
    return {cell.key: folder.once(f"cell {cell.key}", dict) for cell in cells}


def finish_cell(here: Session, cell: Cell, trials: Sequence[Sequence[Trial]]) -> dict[str, Any]:
    """A cell's figures, one a passage; its self-edits with all that came of them go to cells/KEY.jsonl."""
    stage = evaluation.trained_stage(cell.key, cell.label, trials)
    records: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    for row in trials:
        queries = here.loop.domain.queries(row[0].task) if row else []
        for trial in row:
            records.append(evaluation.trial_record(cell.label, trial, queries, False, here.about(trial.task)))
            for seed, score in enumerate(trial.scores):
                where = {"stage": cell.label, "sample": trial.sample, "training_seed": seed}
                missing += evaluation.ungraded(trial.task, queries, score, **where)
    path = here.folder.path / "cells" / f"{cell.key}.jsonl"
    path.parent.mkdir(exist_ok=True)
    session.write_lines(path, records)
    return {
        "accuracy": stage.accuracy,
        "log_likelihood": stage.log_likelihood,
        "probability": [mean(trial.probability for trial in row) for row in trials],
        "problems": stage.problems,
        "adapters": sum(len(trial.scores) for row in trials for trial in row if trial.edit.examples),
        "ungraded": missing,
    }


# ---------------------------------------------------------------------------------------------------------------------
# The whole search


def run(config: Config, run_folder: Path, command: str) -> dict[str, Any]:
    """One search, from a grid to report.html. Carries on where an earlier one stopped; finished cells are skipped."""
    started = time.monotonic()
    search = read_search(config)
    datas = {part.label: choose_passages(part.config) for part in search.parts}  # every mistake before any training
    require_room(run_folder, needed=session.ROOM * len(search.parts))
    folder = RunFolder(run_folder, session.identity(settings_of(config)))
    with contextlib.closing(folder):
        book = Book(folder, {label: _digest(repr(data.inputs)) for label, data in datas.items()})
        if config.jobs.where == "here":
            for part in search.parts:
                left = book.unfinished(part)
                if left:
                    print(f"{part.label or 'training'}: {len(left)} of {len(search.cells)} cells")
                    book.keep(part, run_part(part.config, left, book.folder_of(part)))
        else:
            in_jobs(config.jobs, book, search.parts)
        return report(config, search, book, command, time.monotonic() - started)


@dataclasses.dataclass
class Book:
    """What of a search is finished, and where: the journal of the whole, over those of its parts."""

    folder: RunFolder
    inputs: dict[str, str]  # a part's label -> what was read from files, as a digest
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # by part, in this process or its jobs
    judged: list[tuple[dict[str, Any], str]] = dataclasses.field(default_factory=list)  # usage, in words

    def folder_of(self, part: Part) -> Path:
        """Where a part runs; shares of it run beside it."""
        return self.folder.path / "parts" / part.folder

    def piece(self, part: Part, name: str) -> str:
        """What something of a part is called in the journal."""
        return f"{part.folder}/{self.inputs[part.label]}/{name}"

    def unfinished(self, part: Part) -> list[Cell]:
        """The cells of a part that are still to be run."""
        return [cell for cell in part.cells if not self.folder.has(self.piece(part, cell.key))]

    def keep(self, part: Part, result: dict[str, Any]) -> None:
        """Enters what `run_part` returned."""
        shared = {name: result[name] for name in ("passages", "questions", "base", "ungraded")}
        self.folder.once(self.piece(part, "base"), partial(dict, shared))
        for key, figures in result["cells"].items():
            self.folder.once(self.piece(part, key), partial(dict, figures))
        label = part.label or "all cells"
        self.seconds[label] = self.seconds.get(label, 0.0) + result["seconds"]
        if result["judge_says"]:
            self.judged.append((result["judge"], result["judge_says"]))

    def shared(self, part: Part) -> dict[str, Any]:
        """What the cells of a finished part share."""
        return self.folder.once(self.piece(part, "base"), dict)

    def figures(self, part: Part, cell: Cell) -> dict[str, Any]:
        """Of a finished cell."""
        return self.folder.once(self.piece(part, cell.key), dict)

    def records(self, part: Part, cell: Cell) -> Path | None:
        """A finished cell's self-edits with all that came of them."""
        found = sorted(self.folder_of(part).parent.glob(f"{part.folder}*/cells/{cell.key}.jsonl"))
        return found[0] if found else None


def report(config: Config, search: Search, book: Book, command: str, seconds: float) -> dict[str, Any]:
    """Writes results.json, results.csv, self_edits.jsonl (of the best cell) and report.html; prints the gist."""
    folder, outcomes, ungraded = book.folder.path, [], []
    for part in search.parts:
        shared = book.shared(part)
        ungraded += shared["ungraded"]
        for cell in part.cells:
            figures = book.figures(part, cell)
            ungraded += figures["ungraded"]
            about = (shared["passages"], shared["questions"], shared["base"])
            outcomes.append(Outcome(cell.number, cell.values, part.label, figures, *about))
    outcomes.sort(key=lambda outcome: outcome.number)
    found = ablation_results.compare(
        outcomes, config.metric, seed=config.seed, title=search.title, drawn=search.drawn
    )  # fmt: skip
    tables = found.tables()
    results = {
        "name": "ablations",
        "preset": config.preset,
        "model": config.model,
        "data": " ".join(config.edits) or config.data,
        "seed": config.seed,
        "settings": as_json(config),
        "rows": found.rows(),
        "rounds": [],
        "tables": tables,
        "matrices": found.heat_maps(),
        "cells": found.cells(),
        "recommendation": found.recommendation,
        "ungraded": len(ungraded),
        "judge": total([usage for usage, _ in book.judged]),
        "timings": {**book.seconds, "total": seconds},
        "machine": runtime.describe_machine(),
        "command": command,
    }
    if ungraded:
        session.write_lines(folder / "ungraded.jsonl", ungraded)
    if found.best is not None:
        part, cell = next((p, c) for p in search.parts for c in p.cells if c.number == found.best.number)
        kept = book.records(part, cell)
        if kept is not None:
            write_atomically(folder / "self_edits.jsonl", kept.read_text(encoding="utf-8"))
    write_atomically(folder / "results.csv", found.csv())
    write_atomically(folder / "results.json", json.dumps(results, indent=1))
    page = write_report(folder)
    said = [words for _, words in book.judged]
    if ungraded:
        said.append(
            f"{len(ungraded)} answers were not graded; they count neither as right nor as wrong. They are listed in "
            f"{folder / 'ungraded.jsonl'}"
        )
    print("\n\n".join(map(session.table_text, tables)), *said, f"Figures: {folder / 'results.csv'}", sep="\n")
    print(f"Report: {page}")
    return results


def total(usages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a judge was asked for by all parts; a figure that one of them does not know is None."""
    names = list(dict.fromkeys(name for usage in usages for name in usage))
    found = {name: [usage.get(name) for usage in usages] for name in names}
    return {name: None if None in values else sum(values) for name, values in found.items()}


# ---------------------------------------------------------------------------------------------------------------------
# In jobs


def in_jobs(config: Jobs, book: Book, parts: Sequence[Part]) -> None:
    """Every part as a job; one with several programs, or split, as several, once a first has written its self-edits."""
    logs = book.folder.path / "jobs"
    jobs.executor(config, logs)  # whatever is wrong with it, before anything is prepared
    shares: dict[str, tuple[Part, Path, list[Cell]]] = {}
    first: dict[str, Task] = {}
    for part in parts:
        whole = book.folder_of(part)
        own = list(shares_of(book.unfinished(part), config.split))
        for share in own:
            where = whole if len(own) == 1 else whole.with_name(f"{whole.name}-{_digest([c.key for c in share])}")
            label = ", ".join(filter(None, [part.label, f"{len(share)} cells from number {share[0].number}"]))
            shares[label] = (part, where, share)
            if where != whole and not where.exists():
                first[f"{part.label or 'all cells'}: self-edits"] = Task(run_elsewhere, part.config, [], whole)
    if first:
        jobs.run(config, first, logs, say=print)
    work = {}
    for label, (part, where, share) in shares.items():
        lend(book.folder_of(part), where)
        work[label] = Task(run_elsewhere, part.config, share, where)
    if work:
        jobs.run(config, work, logs, say=print, done=lambda label, result: book.keep(shares[label][0], result))


def shares_of(cells: Sequence[Cell], split: int) -> Iterator[list[Cell]]:
    """Cells as jobs take them: those of each program, in `split` shares."""
    for program in programs_of(cells):
        own = [cell for group in program.groups for cell in group]
        size = math.ceil(len(own) / split)
        yield from (own[start : start + size] for start in range(0, len(own), size))


def lend(whole: Path, share: Path) -> None:
    """Gives a share's new folder what its part has finished: the self-edits, the base model's answers."""
    if share != whole and not share.exists():
        scratch = share.with_name(f"{share.name}.unfinished")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for name in ("config.json", "journal.jsonl"):
            shutil.copyfile(whole / name, scratch / name)
        scratch.rename(share)


def run_elsewhere(config: Settings, cells: Sequence[Cell], folder: Path) -> dict[str, Any]:
    """`run_part` in a process of its own."""
    runtime.start(config.devices)
    return run_part(config, cells, folder)


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def describe(config: Config, run_folder: Path) -> str:
    """The plan of a search: its cells, runs and programs, what it trains and needs. Loads no weights."""
    search = read_search(config)
    datas = [choose_passages(part.config) for part in search.parts]
    programs = [programs_of(part.cells) for part in search.parts]
    fields = effects.searched([cell.values for cell in search.cells])

    def work(edit: dict[str, int], alone: dict[str, int]) -> list[plan.Work]:
        stages = []
        for part, data, own in zip(search.parts, datas, programs, strict=True):
            for program in own:
                count = sum(map(len, program.groups))
                what = ", ".join(filter(None, [part.label, program.label])) or "inner loop"
                adapters = count * len(data.passages) * part.config.samples
                seeds = part.config.seeds
                name = f"{count} cell{'' if count == 1 else 's'}: {what}"
                stages.append(plan.inner_work(name[:34], adapters, program.inner, seeds=seeds, **edit))
        return stages

    counted = sum(map(len, programs))
    first, data = search.parts[0].config, datas[0]
    lines = [
        f"{search.title}: {len(search.cells)} cells over {', '.join(fields) or 'one setting'}",
        f"{len(search.parts)} run{'' if len(search.parts) == 1 else 's'}, {counted} compiled "
        f"program{'' if counted == 1 else 's'}",
        f"{len(data.passages)} passages, {data.questions} questions: {' '.join(first.edits) or first.data}",
        *(f"{cell.number:>4}  {cell.label}" for cell in search.cells[:LISTED]),
        *([f"      and {len(search.cells) - LISTED} more"] if len(search.cells) > LISTED else []),
    ]
    wide = dataclasses.replace(first, inner=programs[0][0].inner)
    return knowledge.describe(wide, data.passages, lines, work, run_folder, samples=first.samples)


SEARCH = tuple({f.name for f in dataclasses.fields(Config)} - {f.name for f in dataclasses.fields(Settings)})

EXPERIMENT = Experiment("ablations", __doc__, PRESETS, describe, run, unnamed=SEARCH)

if __name__ == "__main__":
    from . import ablations  # by its name: what is sent to a job must be found there under it

    sys.exit(session.main(ablations.EXPERIMENT, sys.argv[1:]))
