"""What the page of a run says, or of several side by side: `contents`, a section a function.

Rows are matched by name, so runs of different experiments are compared in what they share (the base model, say), and
the others with the first.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import rich.table
from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from seal_jax.analysis.statistics import FEW
from seal_jax.report import arc_grids, figures, loops
from seal_jax.report.blocks import (
    DASH,
    NO_BREAK,
    Block,
    Cell,
    Figure,
    Section,
    as_it_is,
    clock,
    decimal,
    estimated,
    flat,
    holds,
    percent,
    points,
    shown,
    table,
)
from seal_jax.report.results import (
    BASE,
    Answer,
    Difference,
    Estimate,
    Grids,
    Losses,
    Puzzle,
    Results,
    Row,
    Run,
    SelfEdit,
    Trends,
    Written,
    difference,
    read_self_edits,
)
from seal_jax.report.story import AFTER_ROUND, BEFORE_RL, MOST_NAMED, asked, headline, row_labels, story, unit_of

TERMINAL = 100  # columns of a terminal
SHOWN_SELF_EDITS = 3  # best, and as many worst
SHOWN_GRIDS, OPEN_GRIDS = 24, 4  # puzzles of a part of `grids`; those that are open at first
DEMONSTRATION_SIDE, TEST_SIDE = 120, 180  # CSS pixels of a grid at most
MADE = {"seal_jax": "seal_jax ", "commit": "commit ", "date": ""}  # of the machine's facts, those at the top
RECORDS = ("results.json", "results.csv", "self_edits.jsonl", "ungraded.jsonl", "metrics.jsonl", "run.toml")
WRITING: dict[str, tuple[str, Callable[[float | None], str]]] = {  # a round's figures of what was written
    "mean_words": ("Words", lambda value: decimal(value, 1)),
    "mean_sequences": ("Training sequences", lambda value: decimal(value, 1)),
    "distinct_1": ("Distinct words", percent),
    "distinct_2": ("Distinct pairs of words", percent),
    "distinct_4": ("Distinct fours of words", percent),
    "distinct_2_across": ("Distinct pairs, all together", percent),
    "distinct_4_across": ("Distinct fours, all together", percent),
    "similarity": ("Words two of them share", percent),
    "copied": ("Sentences copied from the prompt", percent),
}


def contents(runs: Sequence[Run], beside: Path) -> dict[str, Any]:
    """Everything that the template names; links are relative to the folder `beside`."""
    told, first, names = story(runs), runs[0].results, [run.label for run in runs]
    of_one = len(runs) == 1
    cards = [
        (
            one.label,
            percent(one.row.accuracy.mean),
            one.row.accuracy.between(percent) or "no interval",
            one.change and (points(one.change.estimate.mean), one.change.estimate.between(points), one.verdict),
        )
        for one in told[: MOST_NAMED if of_one or len(told) <= MOST_NAMED else 0]
    ]
    machine = first.machine if of_one else {}
    made = [f"{said}{machine[name]}" for name, said in MADE.items() if machine.get(name)]
    parts = [first.name, first.preset, first.data] if of_one else ["comparison"]
    seed = [f"seed {first.seed}"] if of_one and first.seed is not None else []
    return {
        "title": " · ".join(filter(None, [*parts[:1], first.model if of_one else ", ".join(names), "SEAL report"])),
        "eyebrow": " · ".join(filter(None, ["SEAL", *parts, *seed, *made])),
        "headline": headline(runs, told),
        "asked": f"{asked(first.rows)}. {_intervals(_rows(runs))}" if told else "",
        "story": cards,
        "task": _task(first),
        "sections": shown([*compared(runs, beside), *(_of_one(runs[0]) if of_one else []), *_kept(runs, beside)]),
    }


def compared(runs: Sequence[Run], beside: Path) -> list[Section]:
    """The runs, how they do, and what the others differ in from the first."""
    note = f"Points, paired by {unit_of(_rows(runs))}, with 95{NO_BREAK}% intervals: one that spans zero is no clear "
    note += "difference."
    several = len(runs) > 1
    return [
        Section("Runs", "", [_overview(runs, beside) if several else None]),
        _accuracy(runs),
        Section(f"Against {runs[0].label}", note, [_differences(runs) if several else None]),
        loops.section(runs) if several else Section("", "", []),
        Section("Settings that differ", "", [_settings_that_differ(runs)] if several else []),
    ]


def as_text(runs: Sequence[Run]) -> str:
    """The headline and the tables of `compared` for a terminal of 100 columns."""
    console = Console(width=TERMINAL, file=io.StringIO(), color_system=None, highlight=False, markup=False)
    console.print(headline(runs, story(runs)))
    for section in shown(compared(runs, Path())):
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


def _rows(runs: Sequence[Run]) -> list[Row]:
    return [row for run in runs for row in run.results.rows]


def _intervals(rows: Sequence[Row]) -> str:
    wilson = "Wilson's where a count stands (at these tasks: others may differ by more), else "
    return (
        f"Intervals are 95{NO_BREAK}%: {wilson if any(r.count for r in rows) else ''}Student's over fewer than {FEW} "
        f"{unit_of(rows)}s, from there on bootstrap intervals, somewhat too narrow over fewer than 30."
    )


def _task(results: Results) -> str:
    return "task" if unit_of(results.rows) == "task" else "passage"


# Side by side


def _overview(runs: Sequence[Run], beside: Path) -> Block:
    rows, links = [], []
    for run in runs:
        results, page = run.results, run.folder / "report.html"
        ungraded = f"{results.ungraded} answers without a verdict" if results.ungraded else ""
        names = [" · ".join(filter(None, [results.name, results.preset]))]
        names += ["/".join(name.split("/")[-2:]) for name in (results.model, results.data)]  # of a path as a hub id has
        cells = [Cell(name or DASH) for name in names]
        cells += [Cell(asked(results.rows) if results.rows else "no rows of accuracy", ungraded)]
        rows.append((run.label, [*cells, Cell(clock(results.seconds))]))
        links.append(_link(page, beside) if page.is_file() else "")
    return table(["Run", "Experiment", "Model", "Data", "Questions", "Time"], rows, links=links)


def _accuracy(runs: Sequence[Run]) -> Section:
    """Every row, or those that two runs have, on one scale; a table of all; and beside it the paper's figures."""
    labels, rows, several = row_labels(runs), _rows(runs), len(runs) > 1
    groups: dict[str, list[tuple[str, Estimate, str]]] = {}
    for key, label in labels.items():
        having = [run for run in runs if key in run.rows]
        for run in having if len(having) > 1 or not several else []:
            colour = "muted" if (run is runs[0] if several else key.name == BASE) else "accent"
            named = (label, run.label) if several else ("", label)
            groups.setdefault(named[0], []).append((named[1], run.rows[key].accuracy, colour))
    ends = [end for row in rows for end in (row.accuracy.mean, row.accuracy.high) if end is not None]
    blocks: list[Block | Figure | None] = []
    for title, drawn in groups.items():
        figure = figures.dots(f"Accuracy: {title}" if title else "Accuracy of each row", drawn, max(ends, default=0.0))
        blocks += [Block("heading", title) if title and figure else None, figure]
    of = "of tries that solved their task" if unit_of(rows) == "task" else "of questions answered right"
    note = f"The share {of}, with its 95{NO_BREAK}% interval. The dashed line is the first of a figure."
    if len({run.results.name for run in runs}) > 1:
        note += " The runs are of different experiments: rows of one name may have been made under other settings."
    if several:
        paper = {key: row.papers for run in reversed(runs) for key, row in run.rows.items() if row.papers}
        found = [
            (
                label,
                [*(estimated(row.accuracy, percent, row.count) for row in (run.rows.get(key, Row()) for run in runs)),
                 Cell(percent(paper[key].accuracy), paper[key].where) if key in paper else Cell(DASH)],
            )
            for key, label in labels.items()
        ]  # fmt: skip
        blocks.append(table(["Row", *(run.label for run in runs), "Paper"], found, sparse=True))
    else:
        blocks.append(_row_table(rows))
    return Section("Accuracy", note, [*blocks, _paper(runs)] if rows else [])


def _row_table(rows: Sequence[Row]) -> Block:
    """All that a run says of its rows."""
    unit = unit_of(rows)
    base = "base" if any(row.name == BASE for row in rows) else "first row"
    columns: list[str | tuple[str, str]] = [
        "Row", "Share" if any(r.count for r in rows) else "Accuracy", "Solved", "Paper",
        ("Against the row above, points", "Row above"), (f"Against the {base}, points", base.capitalize()),
        ("Log-likelihood of the gold answer, nats a token", "Log-likelihood"), f"{unit.capitalize()}s",
        "Test inputs" if unit == "task" else "Questions",
    ]  # fmt: skip
    cells = [
        [
            estimated(row.accuracy),
            Cell(row.count or DASH),
            Cell(percent(row.papers.accuracy if row.papers else None)),
            estimated(row.versus_previous, points),
            estimated(row.versus_base, points, repeated=row.versus_previous.row == BASE),
            estimated(row.log_likelihood, decimal),
            *(Cell(str(number) if number is not None else DASH) for number in (row.passages, row.questions)),
        ]
        for row in rows
    ]
    return table(columns, list(zip([row.title for row in rows], cells, strict=True)), sparse=True)


def _paper(runs: Sequence[Run]) -> Block | None:
    """Where the paper's figures stand, and what differs: each difference once, with the rows that it holds for."""
    several = len(runs) > 1
    rows = [(run.label if several else row.title, row.papers) for run in runs for row in run.results.rows]
    beside = [(label, paper) for label, paper in rows if paper]
    facts: dict[str, list[str]] = {}
    for label, paper in beside:
        facts.setdefault(label, []).extend([paper.where, *paper.differs])
    said = "The paper's figures, and what differs from how they were made:"
    return Block("facts", [("", said), *holds(list(facts.values()), list(facts))]) if beside else None


def _differences(runs: Sequence[Run]) -> Block | None:
    """The other runs against the first, in what both have."""
    first, rows = runs[0].rows, []
    for key, label in row_labels(runs).items():
        changes = [
            difference(first[key], run.rows[key]) if key in first and key in run.rows else Difference(Estimate(), 0)
            for run in runs[1:]
        ]
        if any(change != Difference(Estimate(), 0) for change in changes):
            rows.append((label, [estimated(change.estimate, points, change.remark) for change in changes]))
    return table(["Row", *(run.label for run in runs[1:])], rows) if rows else None


def settings_that_differ(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(dotted name, a value for each run): only what differs between runs that have the setting.

    A setting that a run of another experiment lacks says nothing; one that a run of the same experiment lacks does.
    """
    kinds = [run.results.name for run in runs]
    values_of = [
        dict(flat({"experiment": r.name, **r.identity, **r.all_settings})) for r in (run.results for run in runs)
    ]
    found = []
    for name in dict.fromkeys(itertools.chain(*values_of)):
        values = [of_run.get(name) for of_run in values_of]
        having = {kind for kind, value in zip(kinds, values, strict=True) if value is not None}
        lacking = any(value is None and kind in having for kind, value in zip(kinds, values, strict=True))
        if lacking or len({value for value in values if value is not None}) > 1:
            found.append((name, [DASH if value is None else value for value in values]))
    return found


def _settings_that_differ(runs: Sequence[Run]) -> Block:
    rows = [(name, list(map(Cell, values))) for name, values in settings_that_differ(runs)]
    return table(["Setting", *(run.label for run in runs)], rows) if rows else Block("text", "None.")


# One run


def _of_one(run: Run) -> Iterator[Section]:
    """What its own experiment shows, its rounds and its self-edits."""
    results, self_edits = run.results, read_self_edits(run.folder / "self_edits.jsonl")
    labels = {row.name: row.title for row in results.rows}
    for trend in results.trends:
        yield Section(trend.title or "Curves", trend.note, _trend(trend))
    for matrix in results.matrices:
        yield Section(matrix.title or "Matrix", matrix.note, [figures.heat_map(matrix)])
    for given in results.tables:
        yield Section(given.title or "Table", given.note, [as_it_is(given)])
    yield from _changed(results, self_edits)
    yield _rewards(results, self_edits)
    yield _losses(results, self_edits, labels)
    yield from map(_grids, results.grids)
    yield from _extremes(results, self_edits, labels)


def _trend(trend: Trends) -> list[Block | Figure | None]:
    """The figure, and how to read it."""
    figure = figures.trends(trend)
    across = f"Across: {trend.across}. " if trend.across else ""
    said = f"{across}The band is the 95{NO_BREAK}% interval; the other lines are grey."
    return [figure, Block("text", said)] if figure else []


def _kept(runs: Sequence[Run], beside: Path) -> list[Section]:
    """What went wrong, how one run was set, and what it took."""
    of_one, names = len(runs) == 1, [run.label for run in runs]
    phases = dict.fromkeys(phase for run in runs for phase in run.results.phases)
    rows = [(phase, [Cell(clock(run.results.phases.get(phase))) for run in runs]) for phase in phases]
    rows.append(("together", [Cell(clock(run.results.seconds)) for run in runs]))
    time = table(["Phase", *(["Time"] if of_one else names)], rows) if phases else None
    command, machine = runs[0].results.command, flat(runs[0].results.machine)
    own = [Block("code", command) if command else None, Block("lists", [("machine", machine)]) if machine else None]
    return [
        Section("Problems", "", [Block("list", _problems(runs))] if _problems(runs) else []),
        Section("Settings", "", [_settings(runs[0].results)] if of_one else []),
        Section("Time", "", [time, *([*own, *_records(runs[0], beside)] if of_one else [])]),
    ]


def _records(run: Run, beside: Path) -> list[Block]:
    """Links to what else lies in the run folder."""
    there = [(name, _link(run.folder / name, beside)) for name in RECORDS if (run.folder / name).is_file()]
    return [Block("links", there)] if there else []


def _link(file: Path, beside: Path) -> str:
    return quote(os.path.relpath(file, beside).replace(os.sep, "/"))


def _problems(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Where, which problem and how often, but for those that did not occur."""
    found = []
    for run in runs:
        before, results = f"{run.label}: " if len(runs) > 1 else "", run.results
        places = [("Answers", {"without a verdict; they count neither as right nor as wrong": results.ungraded})]
        places += [(f"Round {entry.round}", entry.problems) for entry in results.rounds]
        places += [(row.title, row.problems) for row in results.rows]
        found += [(f"{before}{where}: {what}", str(n)) for where, all in places for what, n in all.items() if n]
    return found


def _settings(results: Results) -> Block:
    """A list for each nested section; what lies at the top comes first, as "run"."""
    settings = results.all_settings
    nested = {name: value for name, value in settings.items() if isinstance(value, dict)}
    groups = {"run": {name: value for name, value in settings.items() if name not in nested}} | nested
    this = [("name", results.name)] * bool(results.name) + list(results.identity.items())
    listed = [("this run", this), *((name, flat(values)) for name, values in groups.items() if values)]
    return Block("folded", ("All settings", listed))


# Rounds


def _rewards(results: Results, self_edits: Sequence[SelfEdit]) -> Section:
    task, rows = _task(results), []
    drawn: list[tuple[str, Sequence[float], str]] = []
    for entry in results.rounds:
        edits = [edit for edit in self_edits if edit.stage == f"round {entry.round}"]
        kept, everything = [edit for edit in edits if edit.kept], _numbers(edit.reward for edit in edits)
        if everything:
            base = {edit.passage: edit.base_reward for edit in edits}
            name, unit = f"Round {entry.round}", unit_of(results.rows)
            drawn.append((f"{name}: base, {len(base)} {unit}s", _numbers(base.values()), "neutral"))
            drawn.append((f"{name}: all {len(everything)} self-edits", everything, "soft"))
            best = _numbers(edit.reward for edit in kept)
            drawn.append((f"{name}: the {len(best)} kept", best, "accent"))
        beat = sum((gain_of(edit) or 0) > 0 for edit in kept) if kept else None
        counts = [entry.passages, entry.self_edits, entry.kept, beat]
        means = [entry.mean_base_reward, entry.mean_reward, entry.mean_best_reward]
        losses = [decimal(loss) for loss in entry.sft_losses if loss is not None]
        texts = [*(DASH if n is None else str(n) for n in counts), *map(percent, means)]
        texts.append(f"{losses[0]} to {losses[-1]}" if losses else DASH)
        rows.append((f"Round {entry.round}", list(map(Cell, texts))))
    columns: list[str | tuple[str, str]] = [
        "Round", f"{task.capitalize()}s", "Self-edits", "Kept", ("Kept that beat the base", "Beat the base"),
        ("Mean reward, base", "Reward, base"), ("all", "Reward, all"), (f"best a {task}", "Reward, best"),
        ("SFT loss, first to last", "SFT loss"),
    ]  # fmt: skip
    reward = (
        "tries that task: the reward is 1 if it solves it"
        if task == "task"
        else "is asked that passage's questions. Shown is the share it gets right; --outer.signal and "
        "--outer.reward say what it was rewarded for"
    )
    note = (
        f"In a round the model writes several self-edits for each {task}, is trained on each, and {reward}. The tick "
        "below each distribution is its mean."
    )
    distributions = figures.histograms("Distribution of rewards in each round", drawn) if drawn else None
    blocks = [distributions, table(columns, rows), _validation(results)]
    return Section("Rewards", note, blocks if rows else [])


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _validation(results: Results) -> Block | None:
    """How the round was chosen."""
    rewards, chosen = results.validation.reward, results.validation.chosen_round
    if chosen is None or not _numbers(rewards):
        return None
    when = ["before RL", *(f"after round {number}" for number in range(1, len(rewards)))]
    found = ", ".join(f"{decimal(reward, 3)} {words}" for reward, words in zip(rewards, when, strict=True))
    tried = f"{results.validation.passages} validation {unit_of(results.rows)}s"
    choice = f"round {chosen}" if chosen else "the model before RL"
    return Block("text", f"Mean reward on {tried}, on which the round was chosen: {found}. Chosen: {choice}.")


def _writing(results: Results) -> list[Block]:
    """Length and diversity of the self-edits, a row a round; figures that no round has are left out."""
    entries: list[tuple[str, Written]] = [(entry.label, entry) for entry in results.written]
    entries += [(f"Round {entry.round}, to learn from", entry) for entry in results.rounds]
    rows = [(of, [Cell(text(getattr(entry, name))) for name, (_, text) in WRITING.items()]) for of, entry in entries]
    repeats = "what is distinct, or shared, is so among those of one"
    note = f"Means over the self-edits of a row; {repeats} {_task(results)} but for “all together”."
    written = table(["Self-edits", *(title for title, _ in WRITING.values())], rows, sparse=True)
    return [Block("heading", "What was written"), Block("text", note), written] if written.body["columns"][1:] else []


def _changed(results: Results, self_edits: Sequence[SelfEdit]) -> Iterator[Section]:
    """What RL did: each task's accuracy before and after, what was written, and self-edits side by side."""
    rows, task = {row.name: row for row in results.rows}, _task(results)
    rounds = [row for row in results.rows if row.name.startswith(AFTER_ROUND) and row.name != BEFORE_RL]
    blocks: list[Block | Figure | None] = []
    if rounds and BEFORE_RL in rows:
        before, after = rows[BEFORE_RL].per_passage, rounds[-1].per_passage
        known = {name: (x, y) for name, x in before.items() if x is not None and (y := after.get(name)) is not None}
        edits = [
            {e.passage: e for e in self_edits if e.stage == name and not e.sample}
            for name in (BEFORE_RL, rounds[-1].name)
        ]
        dots = figures.scatter(f"Accuracy of each {task}, before and after RL", known, "before RL", "after RL")
        ways = [sum(x < y for x, y in known.values()), sum(x > y for x, y in known.values())]
        said = f"A dot a held-out {task}, a number where several coincide: {ways[0]} better after RL, {ways[1]} worse."
        shared = [name for name in known if all(name in of for of in edits)]
        told = sorted(shared, key=lambda name: known[name][1] - known[name][0])
        chosen = list(dict.fromkeys([*told[-1:], *told[:1], *told[len(told) // 2 :][:1]]))
        cards = [Block("change", _pair(*(of[name] for of in edits)) | {"open": not n}) for n, name in enumerate(chosen)]
        texts = "The most gained, the most lost, and the one in the middle, with what was then answered."
        blocks += [Block("text", said), dots] if dots else []
        blocks += [Block("heading", "Self-edits side by side"), Block("text", texts), *cards] if cards else []
    yield Section("What changed through RL", "", [*blocks, *_writing(results)])


def _pair(before: SelfEdit, after: SelfEdit) -> dict[str, Any]:
    """Two self-edits of a task, with each question's answers: of the base model, after the one, after the other."""
    answers = []
    for one, other in zip(before.answers, after.answers, strict=False):
        tried = [("Base", _mark(one.before_correct), one.before, one.before_cut)]
        for when, of in (("Before RL", one), ("After RL", other)):
            tried.append((when, _mark(of.after_correct), of.after, of.after_cut))
        answers.append((one, tried))
    gained = None if before.reward is None or after.reward is None else after.reward - before.reward
    voted = {verdict for _, tried in answers for _, verdict, *_ in tried} == {"missing"}
    return {"before": before, "after": after, "answers": answers, "gain": gained, "voted": voted}


def _losses(results: Results, self_edits: Sequence[SelfEdit], labels: dict[str, str]) -> Section:
    inner: dict[str, list[Losses]] = {}
    for edit in self_edits:
        if _numbers(edit.losses):
            inner.setdefault(_stage(edit, labels), []).append(edit.losses)
    outer = [(f"Round {entry.round}", [entry.sft_losses]) for entry in results.rounds]
    above = figures.curves("Loss in the inner loop, by stage", list(inner.items()), "inner step")
    below = figures.curves("Loss of the outer SFT, by round", outer, "SFT step")
    band = "the mean over the adapters that train at a step; 8 in 10 of them lie in the band."
    learning = "Outer loop: learning to write better self-edits."
    if not above:
        return Section("Loss", learning, [below])
    blocks: list[Block | Figure | None] = [above, Block("text", learning) if below else None, below]
    return Section("Loss", f"Inner loop, in nats a token: {band}", blocks)


def _stage(edit: SelfEdit, labels: dict[str, str]) -> str:
    return labels.get(edit.stage) or edit.stage[:1].upper() + edit.stage[1:].replace("_", " ")


# Cards


def _grids(part: Grids) -> Section:
    """Puzzles with the attempts at them: what is no grid is left out, but for an attempt, which then says so."""
    items = [_puzzle(item) for item in part.items]
    drawn = [item for item in items if item["demonstrations"] or item["tested"] or item["attempts"]]
    more = Block("text", f"{len(drawn) - SHOWN_GRIDS} more in results.json.") if len(drawn) > SHOWN_GRIDS else None
    cards = [Block("puzzle", item | {"open": number < OPEN_GRIDS}) for number, item in enumerate(drawn[:SHOWN_GRIDS])]
    return Section(part.title or "Grids", part.note, [*cards, more])


def _puzzle(item: Puzzle) -> dict[str, Any]:
    def drawn(value: Any, name: str, largest: int = TEST_SIDE) -> Markup | None:
        grid = arc_grids.as_grid(value)
        return Markup(arc_grids.svg(grid, name, largest)) if grid else None

    demonstrations = []
    for number, pair in enumerate((pair for pair in item.pairs if isinstance(pair, list) and len(pair) == 2), 1):
        named = zip(pair, (f"Demonstration {number}, input", f"Demonstration {number}, output"), strict=True)
        demonstrations.append([drawn(grid, name, DEMONSTRATION_SIDE) for grid, name in named])
    tested = [("Input", drawn(item.input, "Input")), ("Expected", drawn(item.expected, "Expected"))]
    expected, attempts = arc_grids.as_grid(item.expected), []
    for attempt in item.attempts:
        grid = arc_grids.as_grid(attempt.grid)
        wrong = "no grid" if grid is None else arc_grids.difference(grid, expected) if expected else ""
        attempts.append((attempt.label, _mark(attempt.right), wrong, drawn(grid, attempt.label)))
    return {
        "label": item.label,
        "demonstrations": [pair for pair in demonstrations if all(pair)],
        "tested": [(title, grid) for title, grid in tested if grid],
        "attempts": attempts,
        "right": sum(attempt.right is True for attempt in item.attempts),
    }


def _extremes(results: Results, self_edits: Sequence[SelfEdit], labels: dict[str, str]) -> Iterator[Section]:
    """The self-edits of largest and of smallest gain in reward, one a passage; ties go by the gain in log-likelihood.

    What the model did not write itself (the passage alone) and what yielded no training is not compared.
    """

    def order(edit: SelfEdit) -> tuple[float, float]:
        now, before = edit.log_likelihood, edit.base_log_likelihood
        return gain_of(edit) or 0.0, 0.0 if now is None or before is None else now - before

    compared = [edit for edit in self_edits if edit.completion and not edit.problem and gain_of(edit) is not None]
    ranked = sorted(compared, key=order, reverse=True)  # stable: ties that remain keep the order of the file
    best = _one_a_passage(ranked)
    worst = _one_a_passage([edit for edit in reversed(ranked) if all(edit is not other for other in best)])
    most = f"By gain in reward over the base model, one a {_task(results)}. Open a card to read it."
    least = "Smallest gain first; those that yielded no training are counted below."
    for title, note, edits in (("most", most, best), ("least", least, worst)):
        cards = [Block("self_edit", _card(edit, labels) | {"open": edit is edits[0]}) for edit in edits]
        yield Section(f"The self-edits that helped {title}", note, cards)


def _one_a_passage(ranked: Iterable[SelfEdit]) -> list[SelfEdit]:
    first: dict[str, SelfEdit] = {}
    for edit in ranked:
        first.setdefault(edit.passage, edit)
    return list(first.values())[:SHOWN_SELF_EDITS]


def gain_of(edit: SelfEdit) -> float | None:
    """The reward over the base model's."""
    if edit.gain is not None or edit.reward is None or edit.base_reward is None:
        return edit.gain
    return edit.reward - edit.base_reward


def _card(edit: SelfEdit, labels: dict[str, str]) -> dict[str, Any]:
    def tried(answer: Answer) -> list[tuple[str, str, str, bool]]:
        before = ("Before", _mark(answer.before_correct), answer.before, answer.before_cut)
        return [before, ("After", _mark(answer.after_correct), answer.after, answer.after_cut)]

    verdicts = {verdict for answer in edit.answers for verdict in (answer.before_correct, answer.after_correct)}
    credited = [(text, value) for text, value in zip(edit.sequences, edit.credit, strict=False) if value is not None]
    return {
        "edit": edit,
        "credited": sorted(credited, key=lambda pair: -pair[1]),
        "stage": _stage(edit, labels),
        "gain": gain_of(edit),
        "answers": [(answer, tried(answer)) for answer in edit.answers],
        "voted": verdicts == {None} and edit.reward is not None,  # no answer has its own verdict
    }


def _mark(verdict: bool | None) -> str:
    return "missing" if verdict is None else "right" if verdict else "wrong"
