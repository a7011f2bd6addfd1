"""What the page of one run says: `contents`, a section a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from markupsafe import Markup

from seal_jax.report import arc_grids, figures, story
from seal_jax.report.blocks import Block, Cell, Section, as_it_is, estimated, holds, shown, table
from seal_jax.report.compare import Run
from seal_jax.report.results import BASE, Answer, Grids, Losses, Puzzle, Results, Row, SelfEdit, read_self_edits
from seal_jax.report.text import DASH, clock, decimal, flat, percent, points

SHOWN_SELF_EDITS = 3  # best, and as many worst
SHOWN_GRIDS, OPEN_GRIDS = 24, 4  # puzzles of a part of `grids`; those that are open at first
DEMONSTRATION_SIDE, TEST_SIDE = 120, 180  # CSS pixels of a grid at most
WRITING: dict[str, tuple[str, Callable[[float | None], str]]] = {  # a round's figures of what was written
    "mean_words": ("Words", lambda value: decimal(value, 1)),
    "mean_sequences": ("Training sequences", lambda value: decimal(value, 1)),
    "distinct_bigrams": ("Word pairs that are not repeats", percent),
    "similarity": ("Words two of them share", percent),
}


def contents(run: Run) -> dict[str, Any]:
    """Everything that the template names."""
    results, self_edits = run.results, read_self_edits(run.folder / "self_edits.jsonl")
    told, held_out = story.story_of(results.rows), "held-out " * story.is_staged(results)
    labels = {row.name: row.title for row in results.rows}
    sections = [
        _accuracy(results, held_out),
        *(Section(matrix.title or "Matrix", matrix.note, [figures.heat_map(matrix)]) for matrix in results.matrices),
        *(Section(given.title or "Table", given.note, [as_it_is(given)]) for given in results.tables),
        _rewards(results, self_edits),
        _losses(results, self_edits, labels),
        *map(_grids, results.grids),
        *_extremes(results, self_edits, labels),
        _problems(results),
        _settings(results),
        _time_and_machine(results),
    ]
    found = [(row.title, percent(row.accuracy.mean), row.accuracy.between(percent) or "no interval") for row in told]
    changes = [
        (points(change.estimate.mean), change.estimate.between(points), story.say("shown", change, f"{told[0].unit}s"))
        for change in story.changes_of(results, told)
    ]
    return {
        "title": f"{results.name or 'SEAL'} · {results.model or 'the model'} · SEAL report",
        "eyebrow": " · ".join(filter(None, ["SEAL", results.name, results.preset, results.data])),
        "headline": story.headline(results),
        "asked": f"{story.asked(results.rows, held_out)} {story.intervals(results.rows)}" if told else "",
        "story": [(*row, change) for row, change in zip(found, [None, *changes], strict=False)],
        "task": _task(results),
        "sections": shown(sections),
    }


def _task(results: Results) -> str:
    return "task" if story.unit_of(results.rows) == "task" else "passage"


# Accuracy


def _accuracy(results: Results, held_out: str) -> Section:
    rows, unit = results.rows, story.unit_of(results.rows)
    kind = "Stage" if story.is_staged(results) else "Row"
    of = "solved" if unit == "task" else "of questions answered right"
    note = f"Each {kind.lower()} on the same {held_out}{unit}s. A dot is the share {of}; its bar, the 95 % interval;"
    note += " the dashed line, the first row."
    dots = [(row.title, row.accuracy, "muted" if row.name == BASE else "accent") for row in rows]
    share = "Share" if any(row.count for row in rows) else "Accuracy"
    questions = "Test inputs" if unit == "task" else "Questions"
    base = "base" if any(row.name == BASE for row in rows) else "first row"
    columns: list[str | tuple[str, str]] = [
        kind, share, "Solved", "Paper", ("Against the row above, points", "Row above"),
        (f"Against the {base}, points", base.capitalize()),
        ("Log-likelihood of the gold answer, nats a token", "Log-likelihood"), f"{unit.capitalize()}s", questions,
    ]  # fmt: skip
    cells = [(row.title, _cells(row)) for row in rows]
    drawn = figures.dots("Accuracy of each stage with its 95 % interval", dots)
    return Section("Accuracy", note, [drawn, table(columns, cells, sparse=True), _paper(rows)] if rows else [])


def _cells(row: Row) -> list[Cell]:
    above = row.versus_previous
    return [
        estimated(row.accuracy),
        Cell(row.count or DASH),
        Cell(percent(row.paper.accuracy if row.paper else None)),
        estimated(above, points),
        estimated(row.versus_base, points, repeated=above.row == BASE),
        estimated(row.log_likelihood, decimal),
        *(Cell(str(number) if number is not None else DASH) for number in (row.passages, row.questions)),
    ]


def _paper(rows: Sequence[Row]) -> Block | None:
    """Where the paper's figures stand, and what differs: each difference once, with the rows that it holds for."""
    beside = [(row.title, row.paper) for row in rows if row.paper]
    where = holds([[paper.where] for _, paper in beside], [label for label, _ in beside])
    differs = holds([paper.differs for _, paper in beside], [label for label, _ in beside])
    if len(where) == 1:
        said = f"The paper's figures: {where.pop()[1]}.{' They were made under other settings:' if differs else ''}"
    else:
        said = f"The paper's figures{' were made under other settings' if differs else ''}:"
    return Block("facts", [("", said), *where, *differs]) if beside else None


# Rounds


def _rewards(results: Results, self_edits: Sequence[SelfEdit]) -> Section:
    task, rows = _task(results), []
    drawn: list[tuple[str, Sequence[float], str]] = []
    for entry in results.rounds:
        edits = [edit for edit in self_edits if edit.stage == f"round {entry.round}"]
        kept, everything = [edit for edit in edits if edit.kept], _numbers(edit.reward for edit in edits)
        if everything:
            base = {edit.passage: edit.base_reward for edit in edits}
            name, unit = f"Round {entry.round}", story.unit_of(results.rows)
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
        else "is asked that passage's questions; the reward is the share it gets right"
    )
    note = (
        f"In a round the model writes several self-edits for each {task}, is trained on each, and {reward}. The tick "
        "below each distribution is its mean."
    )
    distributions = figures.histograms("Distribution of rewards in each round", drawn) if drawn else None
    blocks = [distributions, table(columns, rows), _validation(results), *_writing(results)]
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
    tried = f"{results.validation.passages} validation {story.unit_of(results.rows)}s"
    choice = f"round {chosen}" if chosen else "the model before RL"
    return Block("text", f"Mean reward on {tried}, on which the round was chosen: {found}. Chosen: {choice}.")


def _writing(results: Results) -> list[Block]:
    """Length and diversity of the self-edits, a row a round; figures that no round has are left out."""
    rows = [
        (f"Round {entry.round}", [Cell(text(getattr(entry, name))) for name, (_, text) in WRITING.items()])
        for entry in results.rounds
    ]
    repeats = "repeats and shared words are looked for among those of one"
    note = f"Means over a round's self-edits; {repeats} {_task(results)}."
    written = table(["Round", *(title for title, _ in WRITING.values())], rows, sparse=True)
    return [Block("heading", "What was written"), Block("text", note), written] if written.body["columns"][1:] else []


def _losses(results: Results, self_edits: Sequence[SelfEdit], labels: dict[str, str]) -> Section:
    inner: dict[str, list[Losses]] = {}
    for edit in self_edits:
        if _numbers(edit.losses):
            inner.setdefault(_stage(edit, labels), []).append(edit.losses)
    outer = [(f"Round {entry.round}", [entry.sft_losses]) for entry in results.rounds]
    above = figures.curves("Loss in the inner loop, by stage", list(inner.items()), "inner step")
    below = figures.curves("Loss of the outer SFT, by round", outer, "SFT step")
    band = "the mean over the adapters that train at a step; 8 in 10 of them lie in the band."
    learning = "Outer loop: learning to write the self-edits that were kept."
    if not above:
        return Section("Loss", learning, [below])
    blocks: list[Block | figures.Figure | None] = [above, Block("text", learning) if below else None, below]
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
    return {
        "edit": edit,
        "stage": _stage(edit, labels),
        "gain": gain_of(edit),
        "answers": [(answer, tried(answer)) for answer in edit.answers],
        "voted": verdicts == {None} and edit.reward is not None,  # no answer has its own verdict
    }


def _mark(verdict: bool | None) -> str:
    return "missing" if verdict is None else "right" if verdict else "wrong"


# Lists


def _problems(results: Results) -> Section:
    """Where, which problem and how often, but for those that did not occur."""
    missing = ("Answers: without a verdict; they count neither as right nor as wrong", results.ungraded)
    places = [(f"Round {entry.round}", entry.problems) for entry in results.rounds]
    places += [(row.title, row.problems) for row in results.rows]
    found = [missing, *((f"{where}: {what}", n) for where, problems in places for what, n in problems.items())]
    happened = [(what, str(count)) for what, count in found if count]
    note = "What went wrong, and how often." if happened else "None were recorded."
    return Section("Problems", note, [Block("list", happened)])


def _settings(results: Results) -> Section:
    """A list for each nested section; what lies at the top comes first, as "run"."""
    settings = results.all_settings
    nested = {name: value for name, value in settings.items() if isinstance(value, dict)}
    groups = {"run": {name: value for name, value in settings.items() if name not in nested}} | nested
    lists = [(name, flat(values)) for name, values in groups.items() if values]
    this = [("name", results.name)] * bool(results.name) + list(results.identity.items())
    return Section("Settings", "", [Block("lists", [("this run", this), *lists])])


def _time_and_machine(results: Results) -> Section:
    time = [(phase, clock(seconds)) for phase, seconds in results.phases.items()]
    time += [("together", clock(results.seconds))] if results.timings else []
    lists = [(name, pairs) for name, pairs in (("time", time), ("machine", flat(results.machine))) if pairs]
    command = Block("code", results.command) if results.command else None
    return Section("Time and machine", "", [command, Block("lists", lists) if lists else None])
