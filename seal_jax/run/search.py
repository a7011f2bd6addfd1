"""A search over settings: its cells trained, here or in jobs, compared, and reported.

The journal of the whole holds every finished cell's figures; each part, or share of one, has a run folder in `parts`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from seal_jax.analysis import effects
from seal_jax.analysis.ablations import Findings, Outcome
from seal_jax.report.page import write_report
from seal_jax.run import cells, jobs, runtime, session
from seal_jax.run.cells import Cell, Part
from seal_jax.run.jobs import Jobs, Task
from seal_jax.run.journal import RunFolder, as_json, digest, read_run, write_atomically
from seal_jax.run.session import Place
from seal_jax.run.terminal import show
from seal_jax.types import Compute

LISTED = 40  # cells that a plan lists
Spent = list[tuple[Part, dict[str, Any]]]  # what each part, or share of one, returned


def finished(folder: RunFolder, part: Part) -> dict[str, Any]:
    """Figures of the cells of a part that were finished, by key."""
    found: dict[str, Any] = {}
    for figures in folder.under(f"{part.folder}/cells/").values():
        found |= figures
    return found


def shared_of(folder: RunFolder, part: Part) -> dict[str, Any]:
    """What the cells of a finished part share."""
    return folder.once(f"{part.folder}/shared", dict)


def keep(folder: RunFolder, part: Part, shared: dict[str, Any], figures: dict[str, Any]) -> None:
    """Enters cells in the journal of the whole, together: after a kill all of them are there, or none."""
    folder.once(f"{part.folder}/shared", lambda: shared)
    folder.once(f"{part.folder}/cells/{digest(list(figures))}", lambda: figures)


def run(
    parts: Sequence[Part], folder: RunFolder, where: Jobs, compute: Compute, place: Place
) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Runs the cells that are not finished, and yields what each part, or share of one, returned."""
    left = []
    for part in parts:
        there = finished(folder, part)
        if todo := [cell for cell in part.cells if cell.key not in there]:
            left.append(part._replace(cells=todo))
    if where.where != "here":
        yield from in_jobs(left, folder, where, compute, place)
        return
    for part in left:
        show(f"{part.label or 'training'}: {len(part.cells)} cells")
        own = dataclasses.replace(place, run_folder=folder.path / "parts" / part.folder)
        yield part, cells.run_part(part, compute, own, partial(keep, folder, part))


def in_jobs(
    parts: Sequence[Part], folder: RunFolder, where: Jobs, compute: Compute, place: Place
) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Every part as a job; one with several programs, or split, as several, once a first has written its self-edits."""
    logs = folder.path / "jobs"
    jobs.executor(where, logs)  # whatever is wrong with it, before anything is prepared
    first: dict[str, Task] = {}
    shares: dict[str, tuple[Part, Path, Path]] = {}
    for part in parts:
        whole = folder.path / "parts" / part.folder
        split = [part._replace(cells=own) for own in shares_of(part.cells, where.split)]
        for share in split:
            own = whole if len(split) == 1 else Path(f"{whole}-{digest([cell.key for cell in share.cells])}")
            label = ", ".join(filter(None, [part.label, cells.name_of(share.cells)]))
            shares[label] = share, whole, own
            if own != whole and not own.exists():
                first[f"{part.label or 'all cells'}: self-edits"] = task(part._replace(cells=[]), whole, compute, place)
    for _ in jobs.run(where, first, logs, say=show):
        pass
    work = {}
    for label, (share, whole, own) in shares.items():
        if own != whole and not own.exists():  # it begins with the self-edits and the base model's answers
            scratch = Path(f"{own}.unfinished")
            shutil.copytree(whole, scratch, dirs_exist_ok=True)
            scratch.rename(own)
        work[label] = task(share, own, compute, place)
    for label, result in jobs.run(where, work, logs, say=show):
        keep(folder, shares[label][0], result["shared"], result["cells"])
        yield shares[label][0], result


def shares_of(searched: Sequence[Cell], split: int) -> Iterator[list[Cell]]:
    """Cells as jobs take them: those of each program, in `split` shares."""
    for program in cells.programs_of(searched):
        own = [cell for group in program.groups for cell in group]
        size = math.ceil(len(own) / split)
        yield from (own[start : start + size] for start in range(0, len(own), size))


def task(part: Part, folder: Path, compute: Compute, place: Place) -> Task:
    """`run_part` in a process of its own."""
    return Task(_run_elsewhere, part, compute, dataclasses.replace(place, run_folder=folder))


def _run_elsewhere(part: Part, compute: Compute, place: Place) -> dict[str, Any]:
    runtime.start(compute.devices)
    return cells.run_part(part, compute, place)


# ---------------------------------------------------------------------------------------------------------------------
# What comes of it


def outcomes(parts: Sequence[Part], folder: RunFolder) -> list[Outcome]:
    """All cells, finished, in the order of the grid."""
    found = []
    for part in parts:
        figures, shared = finished(folder, part), shared_of(folder, part)
        about = shared["passages"], shared["questions"], shared["base"]
        found += [Outcome(c.number, c.values, part.label, figures[c.key], *about) for c in part.cells]
    return sorted(found, key=lambda outcome: outcome.number)


def report(
    folder: RunFolder,
    config: Any,
    compute: Compute,
    found: Findings,
    parts: Sequence[Part],
    spent: Spent,
    *,
    command: str,
) -> dict[str, Any]:
    """Writes results.json, results.csv, self_edits.jsonl (of the best cell) and report.html, and prints the gist."""
    ungraded = []
    for part in parts:
        figures = finished(folder, part)
        for piece in (shared_of(folder, part), *(figures[cell.key] for cell in part.cells)):
            ungraded += piece["ungraded"]
    folder.once(f"finished/{digest([cell.key for part in parts for cell in part.cells])}", lambda: True)
    results = {
        "name": "ablations",
        "preset": config.preset,
        "model": config.model,
        "data": " ".join(config.edits) or config.data,
        "seed": config.seed,
        "settings": as_json(config),
        "compute": as_json(compute),
        "rounds": [],
        **found.entries(),
        "ungraded": len(ungraded),
        "judge": total([result["judge"] for _, result in spent]),
        "timings": {**{part.label or "all cells": seconds_of(folder, part) for part in parts}, **folder.timings},
        "machine": runtime.describe_machine(),
        "command": command,
    }
    said = [result["said"] for _, result in spent if result["said"]]
    if ungraded:
        path = folder.path / "ungraded.jsonl"
        session.write_lines(path, ungraded)
        said.append(f"{len(ungraded)} answers were not graded; they count neither as right nor as wrong: {path}")
    if found.best is not None:
        part, best = next((p, c) for p in parts for c in p.cells if c.number == found.best.number)
        kept = sorted((folder.path / "parts").glob(f"{part.folder}*/cells/{best.key}.jsonl"))
        for file in kept[:1]:
            text = file.read_text(encoding="utf-8", errors="replace")
            if whole := digest(text) == finished(folder, part)[best.key]["records"]:
                write_atomically(folder.path / "self_edits.jsonl", text)
            said += [] if whole else [f"{file} is damaged: self_edits.jsonl does not have the best cell's"]
    write_atomically(folder.path / "results.csv", found.csv())
    write_atomically(folder.path / "results.json", json.dumps(results, indent=1))
    page = write_report(folder.path)
    show("\n\n".join(map(session.table_text, results["tables"])), *said)
    show(f"Figures: {folder.path / 'results.csv'}", f"Report: {page}")
    return results


def seconds_of(folder: RunFolder, part: Part) -> float:
    """What a part has taken so far, in all processes that worked on it."""
    seconds = 0.0
    for path in (folder.path / "parts").glob(f"{part.folder}*"):
        with contextlib.suppress(ValueError):  # damaged since: its cells are in the whole
            seconds += read_run(path).timings.get("total", 0.0)
    return seconds


def total(usages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all parts asked of a judge; None for a figure that one of them does not know."""
    names = list(dict.fromkeys(name for usage in usages for name in usage))
    found = {name: [usage.get(name) for usage in usages] for name in names}
    return {name: None if None in values else sum(values) for name, values in found.items()}


def plan_of(title: str, parts: Sequence[Part]) -> SimpleNamespace:
    """What a dry run describes (`session.Data`): the passages of the first part, and the stages of all."""
    first, runs = parts[0], len(parts)
    every = sorted((cell for part in parts for cell in part.cells), key=lambda cell: cell.number)
    programs = sum(len(cells.programs_of(part.cells)) for part in parts)
    fields = effects.searched([cell.values for cell in every])
    lines = [
        f"{title}: {len(every)} cells over {', '.join(fields) or 'one setting'}",
        f"{runs} run{'s' * (runs > 1)}, {programs} compiled program{'s' * (programs > 1)}",
        *first.lines,
        *(f"{cell.number:>4}  {cell.label}" for cell in every[:LISTED]),
        *([f"      and {len(every) - LISTED} more"] if len(every) > LISTED else []),
    ]
    stages = [stage for part in parts for stage in part.stages]
    return SimpleNamespace(
        passages=first.passages, recorded=first.recorded, inputs=first.inputs, lines=lines, stages=stages
    )
