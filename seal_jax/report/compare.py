"""Finished runs side by side: each row's accuracy in each run, differences paired by passage, settings that differ.

Rows are matched by name, so runs of different experiments are compared in what they share (the base model, say). The
first run given is the one that the others are compared with. `compare.html` is how the page looks.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from seal_jax.analysis.statistics import paired_bootstrap
from seal_jax.report import plots
from seal_jax.report.page import holds, unit_of, write_page
from seal_jax.report.results import (
    Estimate,
    Json,
    as_count,
    as_number,
    clock,
    counted,
    entries,
    estimate,
    flat,
    objects,
    percent,
    points,
    read_results,
    section,
    settings_of,
)

COLUMNS = 5  # of a table on the page; what has more continues in a further table
TERMINAL = 100  # columns of a terminal
LONGEST_SETTING = 60  # characters of a setting's value


class Run(NamedTuple):
    """A finished run and what it is called beside others."""

    label: str
    folder: Path
    results: Json

    @property
    def rows(self) -> dict[RowKey, Json]:
        rows: dict[RowKey, Json] = {}
        for row in objects(self.results, "rows"):
            rows.setdefault(RowKey(str(row.get("name")), str(row.get("unit") or "passage")), row)
        return rows


class RowKey(NamedTuple):
    """What makes rows of two runs the same row: their name, and what their intervals are over."""

    name: str
    unit: str


class Difference(NamedTuple):
    """A row in a run against the same row in the first run."""

    estimate: Estimate  # all None where the two have no passage in common
    remark: str  # what the reader must know of how it was paired; mostly ""


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
    folders = [file.resolve().parent for file in files]
    for number, file in enumerate(files):
        if file.resolve() in [earlier.resolve() for earlier in files[:number]]:
            raise ValueError(f"{file} was given twice: give each run once")
    labels = _labels(
        [folder if file.name == "results.json" else file.resolve() for folder, file in zip(folders, files, strict=True)]
    )
    return [Run(*run) for run in zip(labels, folders, results, strict=True)]


def write_comparison(runs: Sequence[Run], path: Path) -> None:
    """Writes the page; links to the runs' own pages are relative to it. Only a whole page ever lies at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys, labels = _row_keys(runs), _row_labels(runs)
    shared = [key for key in keys if sum(key in run.rows for run in runs) > 1]
    names = [run.label for run in runs]
    resampled = [row for run in runs for row in run.rows.values() if not row.get("interval")]
    settings = [(name, values) for name, values in settings_that_differ(runs)]
    contents = {
        "headline": _headline(runs, shared, labels),
        "runs": [_overview(run, path.parent) for run in runs],
        "several": len(runs) > 1,
        "experiments": len({run.results.get("name") for run in runs}),
        "few": min([as_count(row, "passages") for row in resampled], default=30) < 30,
        "wilson": any(row.get("interval") == "Wilson" for run in runs for row in run.rows.values()),
        "unit": _units(keys),
        "tasks": {key.unit for key in keys} == {"task"},
        "first": names[0],
        "plots": _plots(runs, shared, labels),
        "accuracy": [_accuracy(runs, some, labels) for some in _parts(keys)],
        "differences": [_differences(runs, some, labels) for some in _parts(shared)] if len(runs) > 1 else [],
        "settings": [
            {
                "columns": ["Setting", *(names[i] for i in some)],
                "rows": [[name, *(values[i] for i in some)] for name, values in settings],
            }
            for some in (_parts(range(len(runs))) if settings else [])
        ],
        "paper": holds([_paper_differs(run) for run in runs], names, every="Every run", ranges=False),
    }
    write_page("compare.html", contents, path)


def comparison_text(runs: Sequence[Run]) -> str:
    """The same for a terminal of 100 columns."""
    labels = _row_labels(runs)
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    lines = [f"{count}; accuracy in percent with 95 % intervals"]
    in_common = [key for key in _row_keys(runs) if sum(key in run.rows for run in runs) > 1]
    if len(runs) > 1 and not in_common:
        lines.append("they have no row in common, so nothing is compared")
    elif len(runs) > 1:
        by = _units(_row_keys(runs))
        lines.append(f"differences in points, paired by {by}, against {_short(runs[0].label, 48)}")
    for key in _row_keys(runs):
        lines += ["", _short(labels[key], TERMINAL)]
        for run in runs:
            if key not in run.rows:
                continue
            figure = _bracketed(estimate(run.rows[key], "accuracy"))
            against = ""
            if run is not runs[0] and key in runs[0].rows:
                change = difference(runs[0], run, key)
                against = "; ".join(filter(None, [_bracketed(change.estimate, sign="+"), change.remark]))
            against = "; ".join(filter(None, [against, counted(run.rows[key])]))
            line = f"  {_short(run.label, 30):<31}{figure:>20}  {against}"
            lines += textwrap.wrap(
                line, TERMINAL, subsequent_indent=55 * " ", drop_whitespace=False, replace_whitespace=False
            )
        for where, figures in _paper_figures(runs).items():
            if key in figures:
                lines.append(f"  {_short('paper: ' + where, 44):<45}{100 * figures[key]:>6.1f}")
    settings = settings_that_differ(runs) if in_common else []
    if settings:
        lines += ["", "Settings that differ"]
    for name, values in settings:
        runs_of: dict[str, list[str]] = {}
        for run, value in zip(runs, values, strict=True):
            runs_of.setdefault(value, []).append(run.label)
        text = "; ".join(
            f"{'not there' if value == '—' else value} in {', '.join(who)}" for value, who in runs_of.items()
        )
        lines += textwrap.wrap(f"  {name}: {text}", TERMINAL, subsequent_indent="    ")
    return "\n".join(line.rstrip() for line in lines)


def difference(first: Run, run: Run, key: RowKey) -> Difference:
    """`run` minus `first` in a row that both have, over the passages (or streams) that both have."""
    before, after = (section(each.rows[key], "per_passage") for each in (first, run))
    shared = [passage for passage in before if passage in after]
    nothing = Estimate(None, None, None)
    if not before or not after:
        return Difference(nothing, f"no figures by {key.unit}")
    if not shared:
        return Difference(nothing, f"not the same {key.unit}s")
    change = paired_bootstrap(
        [as_number(before[passage]) for passage in shared], [as_number(after[passage]) for passage in shared], seed=0
    )
    remark = "" if len(shared) == len(before) == len(after) else f"over the {len(shared)} {key.unit}s in both"
    return Difference(Estimate(*map(as_number, change[:3])), remark)


def settings_that_differ(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(dotted name, a value for each run): only what differs between runs that have the setting.

    A setting that a run of another experiment lacks says nothing; one that a run of the same experiment lacks does.
    """
    settings = [dict(flat(_settings(run))) for run in runs]
    kinds = [run.results.get("name") for run in runs]
    found = []
    for name in dict.fromkeys(itertools.chain(*settings)):
        values = [of_run.get(name) for of_run in settings]
        having = {kind for kind, value in zip(kinds, values, strict=True) if value is not None}
        lacking = any(value is None and kind in having for kind, value in zip(kinds, values, strict=True))
        if lacking or len({value for value in values if value is not None}) > 1:
            found.append((name, ["—" if value is None else _short(value, LONGEST_SETTING) for value in values]))
    return found


def _settings(run: Run) -> Json:
    top = {"experiment": run.results.get("name")}
    top |= {name: run.results[name] for name in ("preset", "model", "data", "seed") if name in run.results}
    return top | settings_of(run.results)


# Rows of all runs


def _row_keys(runs: Sequence[Run]) -> list[RowKey]:
    """Each row once, those of the first run first."""
    return list(dict.fromkeys(key for run in runs for key in run.rows))


def _units(keys: Sequence[RowKey]) -> str:
    """What the intervals of these rows are over: `passage`, or `passage or stream`."""
    return " or ".join(sorted({key.unit for key in keys})) or "passage"


def _row_labels(runs: Sequence[Run]) -> dict[RowKey, str]:
    labels: dict[RowKey, str] = {}
    for run in runs:
        for key, row in run.rows.items():
            over = "" if key.unit == "passage" else f" ({key.unit}s)"
            labels.setdefault(key, f"{row.get('label') or key.name}{over}")
    return labels


def _labels(places: Sequence[Path]) -> list[str]:
    """The last part of each path, and more of it where runs share that."""
    depths = [1] * len(places)
    while True:
        labels = ["/".join(place.parts[-depth:]) for place, depth in zip(places, depths, strict=True)]
        longer = [
            i
            for i, label in enumerate(labels)
            if labels.count(label) > 1 and depths[i] < len(places[i].parts)
        ]  # fmt: skip
        if not longer:
            return labels
        for i in longer:
            depths[i] += 1


def _parts(columns: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many at a time as a table is wide, and about as many in each."""
    tables = -(-len(columns) // COLUMNS)
    size = -(-len(columns) // max(1, tables))
    return (columns[start : start + size] for start in range(0, len(columns), max(1, size)))


# What the page shows


def _headline(runs: Sequence[Run], keys: Sequence[RowKey], labels: dict[RowKey, str]) -> str:
    """About the row that most runs have; of several such rows, about the last."""
    if len(runs) == 1:
        return f"One run: {runs[0].label}. Give more of them to compare it with."
    having = {key: [run for run in runs if key in run.rows and _mean(run, key) is not None] for key in keys}
    most = max(map(len, having.values()), default=0)
    if most < 2:
        return f"{len(runs)} runs that have no row in common."
    key = [key for key, some in having.items() if len(some) == most][-1]
    ranked = sorted(having[key], key=lambda run: _mean(run, key) or 0.0, reverse=True)
    best, worst = ranked[0], ranked[-1]
    figures = [f"{percent(_mean(run, key))} in {run.label}" for run in (best, worst)]
    if most > 2:
        of = f"Of {most} runs" if most == len(runs) else f"Of the {most} runs (of {len(runs)}) that have it"
        others = [difference(having[key][0], run, key).remark for run in having[key][1:]]
        caution = f" They were not all asked about the same {key.unit}s." if any(others) else ""
        return f"{of}, “{labels[key]}” is highest, {figures[0]}, and lowest, {figures[1]}.{caution}"
    first, second = having[key]
    change = difference(first, second, key)
    words = {"gain": "a clear difference", "loss": "a clear difference", "unclear": "no clear difference"}
    shared = section(first.rows[key], "per_passage").keys() & section(second.rows[key], "per_passage").keys()
    verdict = words.get(change.estimate.verdict(len(shared)), change.remark or f"too few {key.unit}s to say")
    return f"“{labels[key]}” is at {figures[0]} and at {figures[1]}: {verdict}."


def _mean(run: Run, key: RowKey) -> float | None:
    return estimate(run.rows[key], "accuracy").mean


def _overview(run: Run, beside: Path) -> Json:
    rows = list(run.rows.values())
    page = run.folder / "report.html"
    link = quote(os.path.relpath(page, beside.resolve()).replace(os.sep, "/")) if page.is_file() else None
    seconds = as_number(section(run.results, "timings").get("total"))
    unit = unit_of(rows)
    passages, questions = (max((as_count(row, name) for row in rows), default=0) for name in ("passages", "questions"))
    return {
        "label": run.label,
        "link": link,
        "experiment": " · ".join(str(run.results[name]) for name in ("name", "preset") if run.results.get(name)),
        "model": _name(run.results.get("model")),
        "data": _name(run.results.get("data")),
        "asked": f"{f'{questions} about ' if questions or unit != 'task' else ''}{passages} {unit}s"
        if rows
        else "no rows of accuracy",
        "ungraded": as_count(run.results, "ungraded"),
        "time": "—" if seconds is None else clock(seconds),
        "command": run.results.get("command"),
    }


def _plots(runs: Sequence[Run], shared: Sequence[RowKey], labels: dict[RowKey, str]) -> list[Json]:
    """A figure for each row that two runs have, all on one scale; without such a row one figure of everything."""
    groups = [(labels[key], [(run.label, run, key) for run in runs if key in run.rows]) for key in shared]
    if not shared:
        groups = [("", [(f"{labels[key]}, {run.label}", run, key) for run in runs for key in run.rows])]
    drawn = [
        (
            title,
            [
                plots.Dot(
                    label,
                    *estimate(run.rows[key], "accuracy"),
                    plots.MUTED if run is runs[0] and len(runs) > 1 else plots.ACCENT,
                )
                for label, run, key in members
            ],
        )
        for title, members in groups
    ]
    ends = [end for _, dots in drawn for dot in dots for end in (dot.mean, dot.high) if end is not None]
    return [
        {"title": title, "plot": Markup(plots.dots(dots, f"Accuracy {number}: {title}", max(ends)))}
        for number, (title, dots) in enumerate(drawn, 1)
        if any(dot.mean is not None for dot in dots)
    ]


def _accuracy(runs: Sequence[Run], keys: Sequence[RowKey], labels: dict[RowKey, str]) -> Json:
    """Run x row; below the runs what the paper has for these rows, a line for each of its tables."""
    rows = []
    for run in runs:
        estimates = [estimate(run.rows.get(key, {}), "accuracy") for key in keys]
        if any(key in run.rows for key in keys):
            counts = [counted(run.rows.get(key, {})) for key in keys]
            cells = [
                (percent(cell.mean), "; ".join(filter(None, [_between(cell, percent), count])))
                for cell, count in zip(estimates, counts, strict=True)
            ]
            rows.append((run.label, cells))
    for where, figures in _paper_figures(runs).items():
        if any(key in figures for key in keys):
            rows.append((f"Paper: {where}", [(percent(figures.get(key)), "") for key in keys]))
    return {"columns": [labels[key] for key in keys], "rows": rows}


def _differences(runs: Sequence[Run], keys: Sequence[RowKey], labels: dict[RowKey, str]) -> Json:
    """The other runs against the first, in what both have."""
    rows = []
    for run in runs[1:]:
        cells: list[tuple[str, str]] = []
        for key in keys:
            if key in run.rows and key in runs[0].rows:
                change, remark = difference(runs[0], run, key)
                cells.append((points(change.mean), "; ".join(filter(None, [_between(change, points), remark]))))
            else:
                cells.append(("—", ""))
        if any(key in run.rows and key in runs[0].rows for key in keys):
            rows.append((run.label, cells))
    return {"columns": [labels[key] for key in keys], "rows": rows}


def _paper_figures(runs: Sequence[Run]) -> dict[str, dict[RowKey, float]]:
    """By where in the paper: the figure for each row."""
    figures: dict[str, dict[RowKey, float]] = {}
    for run in runs:
        for key, row in run.rows.items():
            paper = section(row, "paper")
            accuracy = as_number(paper.get("accuracy"))
            if accuracy is not None:
                figures.setdefault(str(paper.get("where") or "the paper"), {}).setdefault(key, accuracy)
    return figures


def _paper_differs(run: Run) -> list[str]:
    """What differs between the paper and any row of the run."""
    return list(
        dict.fromkeys(str(words) for row in run.rows.values() for words in entries(section(row, "paper"), "differs"))
    )


# Text


def _between(value: Estimate, text: Any) -> str:
    return "" if value.low is None or value.high is None else f"{text(value.low)} to {text(value.high)}"


def _bracketed(value: Estimate, sign: str = "") -> str:
    """`12.3 [10.1, 14.5]`; empty without a mean."""
    if value.mean is None:
        return ""
    bounds = (
        ""
        if value.low is None or value.high is None
        else f" [{100 * value.low:{sign}.1f}, {100 * value.high:{sign}.1f}]"
    )
    return f"{100 * value.mean:{sign}.1f}{bounds}"


def _name(value: Any) -> str:
    """Of a path its last two parts, as much as a hub id has."""
    return "/".join(str(value).split("/")[-2:]) if value else "—"


def _short(text: str, characters: int) -> str:
    """Cut in the middle: names of runs differ at either end."""
    if len(text) <= characters:
        return text
    end = (characters - 1) // 2
    return f"{text[: characters - 1 - end]}…{text[len(text) - end :]}"
