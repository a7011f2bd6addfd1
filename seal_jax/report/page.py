"""The page of a run: `results.json` and `self_edits.jsonl` become one `report.html` that needs nothing else.

    python -m seal_jax.report.page RUN_FOLDER     # writes the page of an existing run again

This file decides what the page says; `page.html` how it looks (`base.html` and `parts.html`: what it shares with the
comparison of `compare.py`), `plots.py` how the figures look. All text goes through Jinja2's autoescaping, because most
of it was written by a model.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from seal_jax.analysis.statistics import FEW, GAIN, paired_bootstrap
from seal_jax.report import plots
from seal_jax.report.arc_grids import as_grid, difference, svg
from seal_jax.report.results import (
    MINUS,
    NO_BREAK,
    Estimate,
    Json,
    as_count,
    as_number,
    as_numbers,
    clock,
    counted,
    decimal,
    entries,
    estimate,
    flat,
    objects,
    percent,
    points,
    read_results,
    section,
    settings_of,
    value_text,
)

SHOWN_SELF_EDITS = 3  # best, and as many worst
_WORD = re.compile(r"[^\W\d_]{2,}")  # three of them, and a cell is no figure
SHOWN_GRIDS, OPEN_GRIDS = 24, 4  # puzzles of a part of `grids`; those that are open at first
DEMONSTRATION_SIDE, TEST_SIDE = 120, 180  # CSS pixels of a grid at most
SHOWN_CHARACTERS = 4_000  # of one text; the rest is in self_edits.jsonl
UNITS = ("stream", "task")  # that rows may be over; otherwise passages
BASE, BEFORE_RL, AFTER_ROUND = "base", "self_edits_round_0", "self_edits_round_"
OWN_EDIT, ALL_EDITS = "after_own_edit", "after_all_edits"  # of a stream; "_option" follows where something protects


SIDES = ("input", "output")
WRITING = {  # a round's figures of what was written, as far as it has them
    "mean_words": "Words",
    "mean_sequences": "Training sequences",
    "distinct_bigrams": "Word pairs that are not repeats",
    "similarity": "Words two of them share",
}


def write_report(run_folder: str | os.PathLike[str]) -> Path:
    """Writes `run_folder/report.html` from `results.json` and `self_edits.jsonl`, and returns its path.

    Only a whole page ever lies there. Missing values, no rounds and no self-edits leave their places out. Raises
    FileNotFoundError without a results.json, and ValueError (file, line) for what is not JSON.
    """
    folder = Path(run_folder)
    results = read_results(folder / "results.json")
    self_edits = _read_self_edits(folder / "self_edits.jsonl")
    path = folder / "report.html"
    write_page("page.html", _contents(results, self_edits), path)
    return path


def write_page(template: str, contents: Mapping[str, Any], path: Path) -> None:
    """Fills in one of the templates beside this file. Only a whole page ever lies at `path`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "points": points, "cut": cut, "clock": clock, "decimal": decimal}
    page = environment.get_template(template).render(contents)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)


def _contents(results: Json, self_edits: list[Json]) -> Json:
    """Everything that the template names."""
    rows: list[Json] = entries(results, "rows")
    rounds: list[Json] = entries(results, "rounds")
    labels = {row.get("name"): row.get("label") or row.get("name") for row in rows}
    story = _story(rows)
    best, worst = _best_and_worst(self_edits)
    outline = _outline(rows, rounds)
    timings = {name: s for name, s in section(results, "timings").items() if as_number(s) is not None}
    total = timings.pop("total", None)  # with what lies between the phases, too
    return {
        "results": results,
        "model": results.get("model") or "the model",
        "headline": _headline(results, rows, story, len(rounds)),
        "outline": outline,
        "differences": _differences(results, rows, story),
        "story": [(row, estimate(row, "accuracy")) for row in story],
        "accuracy_plot": _accuracy_plot(rows),
        "rows": [_table_row(row) for row in rows],
        "paper": _paper(rows),
        "tables": [table for table in map(_table, objects(results, "tables")) if table["columns"]],
        "matrices": [matrix for matrix in map(_matrix, objects(results, "matrices")) if matrix["plot"]],
        "open_grids": OPEN_GRIDS,
        "grids": [part for part in map(_grids, objects(results, "grids")) if part["items"]],
        "rounds": [_round(entry, self_edits) for entry in rounds],
        "writing": _writing(rounds),
        "validation": _validation(section(results, "validation"), outline["unit"]),
        "reward_plot": _reward_plot(rounds, self_edits, outline["unit"]),
        "inner_plot": _inner_loss_plot(self_edits, labels),
        "sft_plot": _sft_loss_plot(rounds),
        "best": [_shown(edit, labels) for edit in best],
        "worst": [_shown(edit, labels) for edit in worst],
        "problems": _problems(rows, rounds, as_count(results, "ungraded")),
        "settings": _settings(settings_of(results)),
        "timings": timings,
        "total_seconds": sum(timings.values()) if total is None else total,
        "machine": flat(section(results, "machine")),
    }


# The sentence at the top


def _story(rows: Sequence[Json]) -> list[Json]:
    """The rows that tell what happened: base, own self-edits, after the last round.

    Of streams: base, right after its own edit, after all edits, and the option that then knows most. Of a run with
    other rows: the base model, or else the first row, and the best of the others.
    """
    if _streams(rows):
        own, final = _streams(rows)[0]
        others = [last for _, last in _streams(rows)[1:]]
        best = [max(others, key=_accuracy)] if others else []
        return [row for row in rows if row.get("name") == BASE][:1] + [own, final, *best]
    by_name = {row.get("name"): row for row in reversed(rows)}  # of two rows of one name the first
    after = [row for row in rows if str(row.get("name")).startswith(AFTER_ROUND) and row.get("name") != BEFORE_RL]
    story = [by_name[name] for name in (BASE, BEFORE_RL) if name in by_name] + after[-1:]
    if len(story) < 2:
        answered = [row for row in rows if estimate(row, "accuracy").mean is not None]
        first = by_name.get(BASE, answered[0] if answered else None)
        others = [row for row in answered if row is not first]
        story = [row for row in (first, max(others, key=_accuracy, default=None)) if row is not None]
    return [row for row in story if estimate(row, "accuracy").mean is not None]


def _streams(rows: Sequence[Json]) -> list[tuple[Json, Json]]:
    """Of each option in a run of streams: right after its own edit, and after all edits. The first is the plain one."""
    answered = [row for row in rows if estimate(row, "accuracy").mean is not None]
    own, final = (
        {str(row["name"]).removeprefix(name): row for row in answered if str(row.get("name")).startswith(name)}
        for name in (OWN_EDIT, ALL_EDITS)
    )
    return [(own[option], final[option]) for option in own if option in final]


def _headline(results: Json, rows: Sequence[Json], story: Sequence[Json], rounds: int) -> str:
    model = results.get("model") or "the model"
    if not story:
        for part in (*objects(results, "tables"), *objects(results, "matrices")):
            if part.get("title"):
                return f"{part['title']}, {model}."
        return f"This run of {model} has no evaluated stage yet."
    names = [row.get("name") for row in story]
    values = [_achieved(row) for row in story]
    if _streams(rows):
        return _forgetting(results, rows, story, model)
    if names[:2] != [BASE, BEFORE_RL]:
        if len(story) == 1:
            return f"{story[0].get('label') or names[0]}: {model} {_achieves(story[0])}."
        return _best(results, rows, story, model)
    verdict = _verdict(results, story[0], story[1])
    sentence = _first_to_last("After training on its own self-edits", model, values[0], story[1], verdict)
    if len(story) < 3:
        return f"{sentence}."
    cause = "one round" if rounds == 1 else f"{rounds} rounds" if rounds else "the rounds"
    effect = {
        "gain": f"then raised that to {values[2]}",
        "loss": f"then lowered that to {values[2]}",
        "unclear": f"then made no clear change ({values[2]})",
        "unknown": f"then brought {values[2]}",
    }[_verdict(results, story[1], story[2])]
    return f"{sentence}; {cause} of reinforcement learning {effect}."


def _best(results: Json, rows: Sequence[Json], story: Sequence[Json], model: str) -> str:
    """The sentence of a run whose rows are alternatives: the best of them against the first, and of how many."""
    first, best = story[0], story[-1]
    labels = [str(row.get("label") or row.get("name")) for row in (first, best)]
    than = f"{_achieved(first)} of “{labels[0]}”"
    change = {
        "gain": f"more than the {than}",
        "loss": f"less than the {than}",
        "unclear": f"not clearly different from the {than}",
        "unknown": f"against the {than}",
    }[_verdict(results, first, best)]
    others = sum(estimate(row, "accuracy").mean is not None for row in rows) - 1
    chosen = f"; the best of {others} rows compared with it" if others > 1 else ""
    return f"{labels[1]}: {model} {_achieves(best)}, {change}{chosen}."


def _forgetting(results: Json, rows: Sequence[Json], story: Sequence[Json], model: str) -> str:
    """The sentence of a run of streams: what an edit teaches, what is left of it, and what helps."""
    options = len(_streams(rows)) - 1
    told = list(story) if story[0].get("name") == BASE else [None, *story]
    base, own, final = told[:3]
    values = ["" if row is None else percent(estimate(row, "accuracy").mean) for row in told]
    assert own is not None and final is not None
    verdict = "unknown" if base is None else _verdict(results, base, own)
    if base is None:
        sentence = f"Right after its own edit, {model} {_achieves(own)}"
    else:
        sentence = _first_to_last("Right after its own edit", model, values[0], own, verdict)
    kept = {
        "gain": f"after all edits even {values[2]}",
        "loss": f"after all edits only {values[2]}",
        "unclear": f"after all edits {values[2]}, no clear change",
        "unknown": f"after all edits {values[2]}",
    }[_verdict(results, own, final)]
    if not options:
        return f"{sentence}; {kept}."
    best = told[3]
    assert best is not None
    name = str(best.get("label") or best.get("name")).rpartition(": ")[2]
    helps = {
        "gain": f"keeps {values[3]}",
        "loss": f"keeps less, {values[3]}",
        "unclear": f"keeps {values[3]}, no clear change",
        "unknown": f"keeps {values[3]}",
    }[_verdict(results, final, best)]
    which = f"the best of {options} options" if options > 1 else "the option"
    return f"{sentence}; {kept}. {which[0].upper()}{which[1:]} against forgetting, “{name}”, {helps}."


def _first_to_last(cause: str, model: str, first: str, last: Json, verdict: str) -> str:
    change = {
        "gain": f"up from {first}",
        "loss": f"down from {first}",
        "unclear": f"{first} before: no clear change",
        "unknown": f"{first} before",
    }[verdict]
    return f"{cause}, {model} {_achieves(last)}, {change}"


def _outline(rows: Sequence[Json], rounds: Sequence[Json]) -> Json:
    """The words that depend on what kind of run it is."""
    names = [str(row.get("name")) for row in rows]
    staged = bool(rounds) or any(name.startswith(AFTER_ROUND) for name in names)
    unit = unit_of(rows)
    return {
        "unit": unit,
        "questions": unit != "task" or any(as_number(row.get("questions")) is not None for row in rows),
        "counts": any(counted(row) for row in rows),
        "intervals": _intervals(rows, unit),
        "asked": _asked(rows, unit, "held-out " if staged else ""),
        "held_out": "held-out " if staged else "",
        "row": "Stage" if staged else "Row",
        "log_likelihood": any(estimate(row, "log_likelihood").mean is not None for row in rows),
        "versus_previous": any(estimate(row, "versus_previous").mean is not None for row in rows),
        "versus_base": any(estimate(row, "versus_base").mean is not None for row in rows),
        "base": "base" if BASE in names else "first row",
    }


def unit_of(rows: Sequence[Json]) -> str:
    """What the intervals of these rows are over: passages, unless one of them says otherwise."""
    return next((unit for unit in UNITS for row in rows if row.get("unit") == unit), "passage")


def _asked(rows: Sequence[Json], unit: str, held_out: str) -> str:
    """What the rows' figures are of."""
    tasks, questions = (max((as_count(row, key) for row in rows), default=0) for key in ("passages", "questions"))
    about = f"{tasks} {held_out}{unit}{'' if tasks == 1 else 's'}"
    some = f"{questions} {'test input' if unit == 'task' else 'question'}{'' if questions == 1 else 's'}"
    if unit == "task":
        return f"Tried on {about}{f', {some} in all' if questions else ''}."
    if unit == "stream":
        return f"Asked{f' {some}' if questions else ''} in {about} of passages, with no passage in view."
    return f"Asked {some} about {about}, with no passage in view."


def _intervals(rows: Sequence[Json], unit: str) -> str:
    """Which intervals the figures have, and what to keep in mind."""
    shown = [row for row in rows if estimate(row, "accuracy").low is not None]
    named = sorted({str(row["interval"]) for row in shown if row.get("interval")})
    resampled = [row for row in shown if not row.get("interval")]
    compared = [row for row in rows for key in ("versus_previous", "versus_base") if estimate(row, key).low is not None]
    most = max((as_count(row, "passages") for row in rows), default=0)
    caution = f"; so few {unit}s make them somewhat too narrow" if FEW <= most < 30 else ""
    kind = "Student’s" if most < FEW else "bootstrap"
    if not named:
        return f"Intervals are 95{NO_BREAK}% {kind} intervals over {unit}s{caution}."
    over = "tries" if any(as_count(row, "tried") > as_count(row, "passages") for row in shown) else f"{unit}s"
    over = over if unit == "task" else "questions"
    said = f"Intervals are 95{NO_BREAK}% {' and '.join(named)} intervals over {over}"
    if over == "tries":
        said += f" (at these {unit}s: others may differ by more)"
    bootstrap = f"{kind} intervals over {unit}s"
    if resampled:
        some = "rows without a count" + (" and of differences" if compared else "")
        return f"{said}; those of {some} are {bootstrap}{caution}."
    return f"{said}; those of differences are {bootstrap}{caution}." if compared else f"{said}."


def _achieved(row: Json) -> str:
    """What a row achieved, as it stands in a sentence: `40.0 %`, or `29 of 40 (72.5 %)`."""
    share, found = percent(estimate(row, "accuracy").mean), estimate(row, "accuracy")
    if counted(row):
        return f"{counted(row)} ({share})"
    if row.get("interval") and found.low is not None:  # of one document
        return f"{share} ({percent(found.low)} to {percent(found.high)})"
    return share


def _achieves(row: Json) -> str:
    """The same with its verb: `answers 40.0 % of the questions`."""
    if row.get("unit") != "task":
        return f"answers {_achieved(row)} of the questions"
    if not counted(row):
        return f"solves {_achieved(row)} of the tasks"
    share = percent(estimate(row, "accuracy").mean)
    if as_count(row, "tried") == as_count(row, "passages"):
        return f"solves {counted(row)} tasks ({share})"
    return f"solves its task in {counted(row)} tries ({share})"


def _differences(results: Json, rows: Sequence[Json], story: Sequence[Json]) -> list[tuple[Estimate, str]]:
    """Between neighbours of the story: (difference, what it says)."""
    words = {
        "gain": "a clear gain",
        "loss": "a clear loss",
        "unclear": "no clear change",
        "unknown": f"too few {unit_of(rows)}s to say",
    }
    return [
        (_difference(results, before, after), words[_verdict(results, before, after)])
        for before, after in itertools.pairwise(story)
    ]


def _verdict(results: Json, before: Json, after: Json) -> str:
    """What the difference of two rows says; "unknown" where either has too few passages."""
    passages = min(as_count(row, "passages") or len(section(row, "per_passage")) for row in (before, after))
    return _difference(results, before, after).verdict(passages)


def _difference(results: Json, before: Json, after: Json) -> Estimate:
    """As results.json has it; else, for rows that are not neighbours, from their accuracies on the same passages."""
    for key in ("versus_previous", "versus_base"):
        versus = section(after, key)
        row = versus.get("row") or (BASE if key == "versus_base" else None)
        if versus and row == before.get("name"):
            return estimate(after, key)
    before_by_passage, after_by_passage = section(before, "per_passage"), section(after, "per_passage")
    passages = [passage for passage in before_by_passage if passage in after_by_passage]
    difference = paired_bootstrap(
        [as_number(before_by_passage[passage]) for passage in passages],
        [as_number(after_by_passage[passage]) for passage in passages],
        seed=as_count(results, "seed"),
        within=GAIN,
    )
    return Estimate(as_number(difference.mean), as_number(difference.low), as_number(difference.high))


# Figures


def _accuracy_plot(rows: Sequence[Json]) -> Markup | None:
    drawn = [
        plots.Dot(
            str(row.get("label") or row.get("name")),
            *estimate(row, "accuracy"),
            plots.MUTED if row.get("name") == BASE else plots.ACCENT,
        )
        for row in rows
    ]
    if not any(dot.mean is not None for dot in drawn):
        return None
    return Markup(plots.dots(drawn, "Accuracy of each stage with its 95 % interval"))


def _reward_plot(rounds: Sequence[Json], self_edits: Sequence[Json], unit: str) -> Markup | None:
    drawn = []
    for entry in rounds:
        number = entry.get("round")
        edits = [edit for edit in self_edits if edit.get("stage") == f"round {number}"]
        base = {edit.get("passage"): as_number(edit.get("base_reward")) for edit in edits}
        everything = as_numbers(edit.get("reward") for edit in edits)
        kept = as_numbers(edit.get("reward") for edit in edits if edit.get("kept"))
        if everything:
            drawn += [
                plots.Ridge(f"Round {number}: base, {len(base)} {unit}s", as_numbers(base.values()), plots.NEUTRAL),
                plots.Ridge(f"Round {number}: all {len(everything)} self-edits", everything, plots.SOFT),
                plots.Ridge(f"Round {number}: the {len(kept)} kept", kept, plots.ACCENT),
            ]
    return Markup(plots.ridges(drawn, "Distribution of rewards in each round")) if drawn else None


def _inner_loss_plot(self_edits: Sequence[Json], labels: Mapping[Any, Any]) -> Markup | None:
    by_stage: dict[str, list[Sequence[float | None]]] = {}
    for edit in self_edits:
        losses = [as_number(loss) for loss in entries(edit, "losses")]
        if as_numbers(losses):
            by_stage.setdefault(_stage(edit, labels), []).append(losses)
    panels = [plots.Curves(stage, curves) for stage, curves in by_stage.items()]
    return Markup(plots.losses(panels, "Loss in the inner loop, by stage", "inner step")) if panels else None


def _sft_loss_plot(rounds: Sequence[Json]) -> Markup | None:
    curves = [(entry.get("round"), [as_number(loss) for loss in entries(entry, "sft_losses")]) for entry in rounds]
    panels = [plots.Curves(f"Round {number}", [losses]) for number, losses in curves if as_numbers(losses)]
    return Markup(plots.losses(panels, "Loss of the outer SFT, by round", "SFT step")) if panels else None


# Tables and lists


def _table_row(row: Json) -> Json:
    above = section(row, "versus_previous").get("row")
    return {
        "label": row.get("label") or row.get("name"),
        "accuracy": estimate(row, "accuracy"),
        "versus_previous": estimate(row, "versus_previous"),
        "versus_base": estimate(row, "versus_base"),
        "base_is_above": above == BASE,  # then a phone need not show the same difference twice
        "log_likelihood": estimate(row, "log_likelihood"),
        "passages": row.get("passages"),
        "questions": row.get("questions"),
        "count": counted(row),
        "paper": as_number(section(row, "paper").get("accuracy")),
    }


def _paper(rows: Sequence[Json]) -> Json | None:
    """Where the paper's figures stand, and what differs: each difference once, with the rows that it holds for."""
    labels = [str(row.get("label") or row.get("name")) for row in rows if section(row, "paper")]
    figures = [section(row, "paper") for row in rows if section(row, "paper")]
    if not figures:
        return None
    where = holds([[str(figure.get("where") or "")] for figure in figures], labels)
    differs = holds([[str(words) for words in entries(figure, "differs")] for figure in figures], labels)
    return {"where": where, "differs": differs}


def holds(
    facts: Sequence[Sequence[str]], labels: Sequence[str], every: str = "Every row", *, ranges: bool = True
) -> list[tuple[str, str]]:
    """(for which rows, the facts): facts that hold for the same rows together, `ranges` of rows by where they end."""
    rows_of: dict[str, list[int]] = {}
    for number, of_row in enumerate(facts):
        for fact in of_row:
            if fact and number not in rows_of.setdefault(fact, []):
                rows_of[fact].append(number)
    together: dict[tuple[int, ...], list[str]] = {}
    for fact, numbers in rows_of.items():
        together.setdefault(tuple(numbers), []).append(fact)
    last = len(labels) - 1

    def named(numbers: tuple[int, ...]) -> str:
        if len(numbers) == len(labels):
            return every if last else labels[0]
        if ranges and len(numbers) > 1 and numbers == tuple(range(numbers[0], last + 1)):
            return f"From “{labels[numbers[0]]}” down"
        if ranges and len(numbers) > 1 and numbers == tuple(range(len(numbers))):
            return f"Down to “{labels[numbers[-1]]}”"
        return ", ".join(labels[number] for number in numbers)

    return [(named(numbers), "; ".join(of_rows)) for numbers, of_rows in together.items()]


def _table(table: Json) -> Json:
    """A table as results.json has it, its cells as text; a row that is too short is filled up."""
    columns = ["" if column is None else str(column) for column in entries(table, "columns")]
    found = [row for row in entries(table, "rows") if isinstance(row, list)]
    rows = [[_cell(value) for value in [*row, *[None] * len(columns)][: len(columns)]] for row in found]
    return {
        "title": table.get("title") or "Table",
        "note": table.get("note"),
        "columns": columns,
        "rows": rows,
        "prose": [i for i in range(1, len(columns)) if any(len(_WORD.findall(row[i])) >= 3 for row in rows)],
    }


def _cell(value: Any) -> str:
    """Text as it is, a number with three significant digits (one that counts: all of them)."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value_text(value)
    counts = isinstance(value, int) or abs(value) >= 1_000
    return (f"{value:,.0f}" if counts else f"{value:.3g}").replace("-", MINUS)


def _matrix(matrix: Json) -> Json:
    values = [row for row in entries(matrix, "values") if isinstance(row, list)]
    labels = [[str(label) for label in entries(matrix, key)] for key in ("rows", "columns")]
    table = [
        [as_number(value) for value in [*row, *[None] * len(labels[1])][: len(labels[1])]]
        for row in [*values, *[[]] * len(labels[0])][: len(labels[0])]
    ]
    title = str(matrix.get("title") or "Matrix")
    drawn = any(value is not None for row in table for value in row)
    plot = Markup(plots.heat_map(plots.Matrix(labels[0], labels[1], table), title)) if drawn else None
    return {"title": title, "note": matrix.get("note"), "plot": plot}


def _grids(part: Json) -> Json:
    """Puzzles with the attempts at them: what is no grid is left out, but for an attempt, which then says so."""
    items = [_puzzle(item) for item in objects(part, "items")]
    drawn = [item for item in items if item["demonstrations"] or item["tested"] or item["attempts"]]
    return {
        "title": part.get("title") or "Grids",
        "note": part.get("note"),
        "items": drawn[:SHOWN_GRIDS],
        "more": max(0, len(drawn) - SHOWN_GRIDS),
    }


def _puzzle(item: Json) -> Json:
    def drawn(value: Any, name: str, largest: int) -> Markup | None:
        grid = as_grid(value)
        return Markup(svg(grid, name, largest)) if grid else None

    pairs = [pair for pair in entries(item, "pairs") if isinstance(pair, list) and len(pair) == 2]
    demonstrations = [
        [
            drawn(grid, f"Demonstration {number}, {side}", DEMONSTRATION_SIDE)
            for grid, side in zip(pair, SIDES, strict=True)
        ]
        for number, pair in enumerate(pairs, 1)
    ]
    tested = [
        (title, drawn(item.get(key), title, TEST_SIDE)) for key, title in (("input", "Input"), ("expected", "Expected"))
    ]
    expected = as_grid(item.get("expected"))
    attempts = []
    for attempt in objects(item, "attempts"):
        label, grid = str(attempt.get("label") or "Attempt"), as_grid(attempt.get("grid"))
        wrong = "" if grid is None or expected is None else difference(grid, expected)
        attempts.append(
            {
                "label": label,
                "drawn": drawn(grid, label, TEST_SIDE),
                "mark": _mark(attempt.get("right")),
                "wrong": "no grid" if grid is None else wrong,
            }
        )
    return {
        "label": item.get("label") or "Puzzle",
        "demonstrations": [pair for pair in demonstrations if all(pair)],
        "tested": [(title, grid) for title, grid in tested if grid],
        "attempts": attempts,
        "right": sum(attempt["mark"] == "right" for attempt in attempts),
    }


def _writing(rounds: Sequence[Json]) -> Json | None:
    """Length and diversity of the self-edits, a row a round; figures that no round has are left out."""
    names = [name for name in WRITING if any(as_number(entry.get(name)) is not None for entry in rounds)]
    if not names:
        return None
    shares = ("distinct_bigrams", "similarity")

    def text(name: str, value: float | None) -> str:
        return percent(value) if name in shares else decimal(value, 1)

    rows = [
        [f"Round {entry.get('round')}", *(text(name, as_number(entry.get(name))) for name in names)] for entry in rounds
    ]
    return {"columns": ["Round", *(WRITING[name] for name in names)], "rows": rows}


def _validation(validation: Json, unit: str) -> str | None:
    """How the round was chosen."""
    rewards, chosen = entries(validation, "reward"), as_number(validation.get("chosen_round"))
    if not as_numbers(rewards) or chosen is None:
        return None
    when = ["before RL", *(f"after round {number}" for number in range(1, len(rewards)))]
    figures = ", ".join(f"{decimal(as_number(reward), 3)} {words}" for reward, words in zip(rewards, when, strict=True))
    choice = "the model before RL" if chosen == 0 else f"round {int(chosen)}"
    passages = as_count(validation, "passages")
    return f"Mean reward on {passages} validation {unit}s, on which the round was chosen: {figures}. Chosen: {choice}."


def _round(entry: Json, self_edits: Sequence[Json]) -> Json:
    kept = [edit for edit in self_edits if edit.get("stage") == f"round {entry.get('round')}" and edit.get("kept")]
    losses = as_numbers(entries(entry, "sft_losses"))
    return entry | {
        "winners": len(kept),
        "winners_above_base": sum((_gain(edit) or 0) > 0 for edit in kept),
        "mean_reward": as_number(entry.get("mean_reward")),
        "mean_best_reward": as_number(entry.get("mean_best_reward")),
        "mean_base_reward": as_number(entry.get("mean_base_reward")),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }


def _best_and_worst(self_edits: Sequence[Json]) -> tuple[list[Json], list[Json]]:
    """The self-edits of largest and of smallest gain in reward, one a passage; ties go by the gain in log-likelihood.

    What the model did not write itself (the passage alone) and what yielded no training is not compared.
    """

    def order(edit: Json) -> tuple[float, float]:
        now, base = as_number(edit.get("log_likelihood")), as_number(edit.get("base_log_likelihood"))
        return _gain(edit) or 0.0, 0.0 if now is None or base is None else now - base

    compared = [e for e in self_edits if e.get("completion") and not e.get("problem") and _gain(e) is not None]
    ranked = sorted(compared, key=order, reverse=True)  # stable: ties that remain keep the order of the file
    best = _one_a_passage(ranked)
    worst = _one_a_passage([edit for edit in reversed(ranked) if all(edit is not shown for shown in best)])
    return best, worst


def _one_a_passage(ranked: Iterable[Json]) -> list[Json]:
    first: dict[Any, Json] = {}
    for edit in ranked:
        first.setdefault(edit.get("passage"), edit)
    return list(first.values())[:SHOWN_SELF_EDITS]


def _shown(edit: Json, labels: Mapping[Any, Any]) -> Json:
    answers = [
        answer | {f"{when}_mark": _mark(answer.get(f"{when}_correct")) for when in ("before", "after")}
        for answer in objects(edit, "answers")
    ]
    marks = {answer[f"{when}_mark"] for answer in answers for when in ("before", "after")}
    return edit | {
        "stage_label": _stage(edit, labels),
        "gain": _gain(edit),
        "reward": as_number(edit.get("reward")),
        "base_reward": as_number(edit.get("base_reward")),
        "by_seed": as_numbers(entries(edit, "rewards_by_seed")),
        "sequences": entries(edit, "sequences"),
        "answers": answers,
        "voted": marks == {"missing"} and as_number(edit.get("reward")) is not None,  # no answer has its own verdict
    }


def _mark(verdict: Any) -> str:
    return "right" if verdict is True else "wrong" if verdict is False else "missing"


def _stage(edit: Json, labels: Mapping[Any, Any]) -> str:
    stage = str(edit.get("stage") or "unknown stage")
    label = labels.get(stage)
    return str(label) if label else stage[:1].upper() + stage[1:].replace("_", " ")


def _problems(rows: Sequence[Json], rounds: Sequence[Json], ungraded: int) -> list[tuple[str, str, int]]:
    """(where, problem, how many), none of them zero."""
    places = [(f"Round {entry.get('round')}", entry) for entry in rounds]
    places += [(str(row.get("label") or row.get("name")), row) for row in rows]
    missing = [("Answers", "without a verdict; they count neither as right nor as wrong", ungraded)]
    return [entry for entry in missing if ungraded] + [
        (where, str(problem), int(count))
        for where, entry in places
        for problem, count in section(entry, "problems").items()
        if as_number(count)
    ]


def _settings(settings: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """A group for each nested section; what lies at the top comes first, as "run"."""
    top = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    groups = [("run", flat(top))] if top else []
    return groups + [(name, flat(value)) for name, value in settings.items() if isinstance(value, dict)]


def cut(text: object) -> str:
    """A text short enough for the page, saying what was left out."""
    string = "" if text is None else str(text)
    if len(string) <= SHOWN_CHARACTERS:
        return string
    return f"{string[:SHOWN_CHARACTERS]}… ({len(string) - SHOWN_CHARACTERS:,} more characters in self_edits.jsonl)"


def _accuracy(row: Json) -> float:
    mean = estimate(row, "accuracy").mean
    return -math.inf if mean is None else mean


def _gain(edit: Json) -> float | None:
    gain, reward, base = (as_number(edit.get(key)) for key in ("gain", "reward", "base_reward"))
    return gain if gain is not None else None if reward is None or base is None else reward - base


# Files


def _read_self_edits(path: Path) -> list[Json]:
    """All lines of the file; none if it is missing. A last line without its end was cut off by a kill: left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # bytes, because a kill may cut a character in two
    self_edits = []
    for number, line in enumerate(lines, 1):
        try:
            self_edit = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}, is not JSON ({error}). Remove that line to have a page."
            ) from None
        if not isinstance(self_edit, dict):
            raise ValueError(
                f"{path}, line {number}, holds a {type(self_edit).__name__}; expected one self-edit, an object."
            )
        self_edits.append(self_edit)
    return self_edits


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m seal_jax.report.page RUN_FOLDER")
    try:
        print(write_report(sys.argv[1]))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
