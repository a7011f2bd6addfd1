"""Finished runs side by side: which rows are the same, how they differ, which settings differ; in words for a terminal.

Rows are matched by name, so runs of different experiments are compared in what they share (the base model, say). The
first run given is the one that the others are compared with.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import rich.table
from rich.console import Console
from rich.text import Text

from seal_jax.analysis.statistics import FEW
from seal_jax.report.blocks import Block, Cell, Section, by_run, estimated, holds, shown, table
from seal_jax.report.figures import Figure, dots
from seal_jax.report.results import Difference, Estimate, Results, Row, difference, read_results
from seal_jax.report.story import NARROW, headline, say, unit_of
from seal_jax.report.text import DASH, NO_BREAK, clock, flat, percent, points

TERMINAL = 100  # columns of a terminal
LONGEST_SETTING = 60  # characters of a setting's value


class RowKey(NamedTuple):
    """What makes rows of two runs the same row: their name, and what their intervals are over."""

    name: str
    unit: str


class Run(NamedTuple):
    """A finished run and what it is called beside others."""

    label: str
    folder: Path
    results: Results

    @property
    def rows(self) -> dict[RowKey, Row]:
        """By name; of two rows of one name the first."""
        return {RowKey(row.name, row.unit): row for row in reversed(self.results.rows)}


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Runs by their folder, or by the results.json in it; each is called by as much of its path as tells it apart.

    Raises:
        FileNotFoundError: no results.json there.
        ValueError: no run given, one given twice, or a file that is no results.json.
    """
    if not paths:
        raise ValueError("no run was given: give at least one run folder, one that holds a results.json")
    files = [Path(path) / "results.json" if Path(path).is_dir() else Path(path) for path in paths]
    results = [read_results(file) for file in files]
    whole = [file.resolve() for file in files]
    for number, file in enumerate(files):
        if whole[number] in whole[:number]:
            raise ValueError(f"{file} was given twice: give each run once")
    places = [file.parent if file.name == "results.json" else file for file in whole]
    return [Run(*run) for run in zip(_labels(places), [file.parent for file in whole], results, strict=True)]


def _labels(places: Sequence[Path]) -> list[str]:
    """The last part of each path, and more of it where runs share that."""
    depths = [1] * len(places)
    while True:
        labels = ["/".join(place.parts[-depth:]) for place, depth in zip(places, depths, strict=True)]
        same = [labels.count(label) > 1 for label in labels]
        longer = [i for i, place in enumerate(places) if same[i] and depths[i] < len(place.parts)]
        if not longer:
            return labels
        for i in longer:
            depths[i] += 1


def row_labels(runs: Sequence[Run]) -> dict[RowKey, str]:
    """Each row of any run once, those of the first run first, and what it is called."""
    labels: dict[RowKey, str] = {}
    for key, row in ((RowKey(row.name, row.unit), row) for run in runs for row in run.results.rows):
        labels.setdefault(key, row.title + ("" if key.unit == "passage" else f" ({key.unit}s)"))
    return labels


def shared_rows(runs: Sequence[Run]) -> list[RowKey]:
    """The rows that at least two runs have."""
    return [key for key in row_labels(runs) if sum(key in run.rows for run in runs) > 1]


def units_of(runs: Sequence[Run]) -> str:
    """What the intervals are over: `passage`, or `passage or stream`."""
    return " or ".join(sorted({key.unit for key in row_labels(runs)})) or "passage"


def paper_figures(runs: Sequence[Run]) -> dict[str, dict[RowKey, float]]:
    """By where in the paper: the figure for each row."""
    figures: dict[str, dict[RowKey, float]] = {}
    for key, row in (pair for run in runs for pair in run.rows.items()):
        if row.paper and row.paper.accuracy is not None:
            figures.setdefault(row.paper.where or "the paper", {}).setdefault(key, row.paper.accuracy)
    return figures


def settings_that_differ(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(dotted name, a value for each run): only what differs between runs that have the setting.

    A setting that a run of another experiment lacks says nothing; one that a run of the same experiment lacks does.
    """
    kinds = [run.results.name for run in runs]
    everything = [{"experiment": r.name, **r.identity, **r.all_settings} for r in (run.results for run in runs)]
    values_of = [dict(flat(settings)) for settings in everything]
    found = []
    for name in dict.fromkeys(itertools.chain(*values_of)):
        values = [of_run.get(name) for of_run in values_of]
        having = {kind for kind, value in zip(kinds, values, strict=True) if value is not None}
        lacking = any(value is None and kind in having for kind, value in zip(kinds, values, strict=True))
        if lacking or len({value for value in values if value is not None}) > 1:
            found.append((name, [DASH if value is None else _short(value, LONGEST_SETTING) for value in values]))
    return found


def comparison_headline(runs: Sequence[Run]) -> str:
    """About the row that most runs have; of several such rows, about the last. Of one run what it found."""
    if len(runs) == 1:
        return headline(runs[0].results)
    labels = row_labels(runs)
    having = {key: [run for run in runs if _mean(run, key) is not None] for key in shared_rows(runs)}
    most = max(map(len, having.values()), default=0)
    if most < 2:
        return f"{len(runs)} runs that have no row in common."
    key = [key for key, some in having.items() if len(some) == most][-1]
    first, *others = having[key]
    ranked = sorted(having[key], key=lambda run: _mean(run, key) or 0.0, reverse=True) if most > 2 else having[key]
    figures = [f"{percent(_mean(run, key))} in {run.label}" for run in (ranked[0], ranked[-1])]
    changes = [difference(first.rows[key], run.rows[key]) for run in others]
    if most > 2:
        of = f"Of {most} runs" if most == len(runs) else f"Of the {most} runs (of {len(runs)}) that have it"
        caution = f" They were not all asked about the same {key.unit}s." if any(c.remark for c in changes) else ""
        return f"{of}, “{labels[key]}” is highest, {figures[0]}, and lowest, {figures[1]}.{caution}"
    unknown = changes[0].verdict == "unknown" and changes[0].remark
    verdict = unknown or say("runs", changes[0], f"{key.unit}s")
    return f"“{labels[key]}” is at {figures[0]} and at {figures[1]}: {verdict}."


def _mean(run: Run, key: RowKey) -> float | None:
    return run.rows[key].accuracy.mean if key in run.rows else None


def comparison_text(runs: Sequence[Run]) -> str:
    """The same tables for a terminal of 100 columns."""
    console = Console(width=TERMINAL, file=io.StringIO(), color_system=None, highlight=False, markup=False)
    console.print(comparison_headline(runs))
    accuracy, against, settings = _sections(runs)
    for section in (accuracy, against, settings) if shared_rows(runs) else (accuracy,):
        console.print("", section.title, *filter(None, [section.note]), sep="\n")
        for body in (block.body for block in section.blocks if isinstance(block, Block) and block.kind == "table"):
            grid = rich.table.Table(box=None, pad_edge=False)
            for heading, _ in body["columns"]:
                grid.add_column(Text(heading), overflow="fold", justify="right" if grid.columns else "left")
            for label, cells in body["rows"]:
                texts = ("\n".join(filter(None, cell[:2])).replace(NO_BREAK, "") for cell in cells)
                grid.add_row(Text(label), *map(Text, texts))
            console.print(grid, "")
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def _short(text: str, characters: int) -> str:
    """Cut in the middle: names of runs differ at either end."""
    if len(text) <= characters:
        return text
    end = (characters - 1) // 2
    return f"{text[: characters - 1 - end]}…{text[len(text) - end :]}"


# ---------------------------------------------------------------------------------------------------------------------
# The page


def contents(runs: Sequence[Run], beside: Path) -> dict[str, Any]:
    """Everything that the template names; links are relative to the folder `beside`."""
    names = [run.label for run in runs]
    papers = [[words for row in run.results.rows if row.paper for words in row.paper.differs] for run in runs]
    differ = holds(papers, names, "Every run", ranges=False)
    beside_ours = "Its figures stand beside ours; they were made under other settings."
    sections = [
        Section("Runs", "", [_overview(runs, beside)]),
        *_sections(runs),
        Section("Time", "", by_run("Phase", names, _seconds(runs))),
        Section("The paper's settings", beside_ours, [Block("facts", differ) if differ else None]),
    ]
    return {
        "title": f"{', '.join(names)} · SEAL comparison",
        "eyebrow": "SEAL · comparison",
        "headline": comparison_headline(runs),
        "sections": shown(sections),
    }


def _sections(runs: Sequence[Run]) -> tuple[Section, Section, Section]:
    """How the runs do, what the others differ in from the first, and the settings that differ."""
    names, unit = [run.label for run in runs], units_of(runs)
    note = (
        f"Differences in points, paired by {unit}, with 95 % intervals: an interval that spans zero is no clear "
        f"difference. Nothing is said of runs that were not asked about the same {unit}s."
    )
    settings = [(name, list(map(Cell, values))) for name, values in settings_that_differ(runs)]
    return (
        _accuracy(runs),
        Section(f"Against {names[0]}", note, by_run("Row", names[1:], _differences(runs))),
        Section("Settings that differ", "", by_run("Setting", names, settings) or [Block("text", "None.")]),
    )


def _overview(runs: Sequence[Run], beside: Path) -> Block:
    rows, links = [], []
    for run in runs:
        results, page, unit = run.results, run.folder / "report.html", unit_of(run.results.rows)
        passages = max((row.passages for row in results.rows), default=0)
        questions = max((row.questions or 0 for row in results.rows), default=0)
        asked = f"{f'{questions} about ' if questions or unit != 'task' else ''}{passages} {unit}s"
        ungraded = f"{results.ungraded} answers without a verdict" if results.ungraded else ""
        names = [" · ".join(filter(None, [results.name, results.preset]))]
        names += ["/".join(name.split("/")[-2:]) for name in (results.model, results.data)]  # of a path as a hub id has
        cells = [Cell(name or DASH) for name in names]
        cells += [Cell(asked if results.rows else "no rows of accuracy", ungraded), Cell(clock(results.seconds))]
        rows.append((run.label, cells))
        links.append(quote(os.path.relpath(page, beside).replace(os.sep, "/")) if page.is_file() else "")
    return table(["Run", "Experiment", "Model", "Data", "Questions", "Time"], rows, links=links)


def _accuracy(runs: Sequence[Run]) -> Section:
    """A figure for each row that two runs have, all on one scale; run by row, and beside the runs the paper."""
    labels, shared, papers = row_labels(runs), shared_rows(runs), paper_figures(runs)
    rows = [row for run in runs for row in run.results.rows]
    groups = [(labels[key], [(run.label, run, key) for run in runs if key in run.rows]) for key in shared]
    if not shared:  # one figure of everything
        groups = [("", [(f"{labels[key]}, {run.label}", run, key) for run in runs for key in run.rows])]
    ends = [end for row in rows for end in (row.accuracy.mean, row.accuracy.high) if end is not None]
    blocks: list[Block | Figure | None] = []
    for title, members in groups:
        drawn = [(name, run.rows[key].accuracy, "muted" if run is runs[0] else "accent") for name, run, key in members]
        figure = dots(f"Accuracy: {title}", drawn, max(ends, default=0.0))
        blocks += [Block("heading", title) if title and figure else None, figure]
    unit = units_of(runs)
    of = "tries that solved their task" if unit == "task" else "questions answered right, with no passage in view"
    note = f"The share of {of}, and its 95 % interval"
    note += " (where a count stands, Wilson's)" * any(row.interval == "Wilson" for row in rows)
    few = min([row.passages for row in rows if not row.interval], default=NARROW)
    note += f"; with fewer than {NARROW} {unit}s it is somewhat too narrow." if FEW <= few < NARROW else "."
    note += " The dashed line is the first of a figure." * any(blocks)
    if len({run.results.name for run in runs}) > 1:
        note += " The runs are of different experiments: rows of one name may have been made under other settings."
    found = []
    for key, label in labels.items():
        cells = [estimated(row.accuracy, percent, row.count) for row in (run.rows.get(key, Row()) for run in runs)]
        found.append((label, cells + [Cell(percent(figures.get(key))) for figures in papers.values()]))
    blocks += by_run("Row", [*(run.label for run in runs), *(f"Paper: {where}" for where in papers)], found)
    return Section("Accuracy", note, blocks)


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[Cell]]]:
    """The other runs against the first, in what both have."""
    labels, first = row_labels(runs), runs[0].rows

    def cell(run: Run, key: RowKey) -> Cell:
        change = (
            difference(first[key], run.rows[key]) if key in first and key in run.rows else Difference(Estimate(), 0)
        )
        return estimated(change.estimate, points, change.remark)

    return [(labels[key], [cell(run, key) for run in runs[1:]]) for key in shared_rows(runs)]


def _seconds(runs: Sequence[Run]) -> list[tuple[str, list[Cell]]]:
    """How long each phase took."""
    phases = dict.fromkeys(phase for run in runs for phase in run.results.phases)
    rows = [(phase, [Cell(clock(run.results.phases.get(phase))) for run in runs]) for phase in phases]
    return [*rows, ("together", [Cell(clock(run.results.seconds)) for run in runs])]
