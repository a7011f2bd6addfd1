"""What a run found, in one sentence, and the rows that tell it; what its figures are of, and their intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from seal_jax.analysis.statistics import FEW
from seal_jax.report.results import BASE, Difference, Part, Results, Row, difference
from seal_jax.report.text import NO_BREAK, percent

BEFORE_RL, AFTER_ROUND = "self_edits_round_0", "self_edits_round_"
OWN_EDIT, ALL_EDITS = "after_own_edit", "after_all_edits"  # of a stream; "_option" follows where something protects
UNITS = ("stream", "task")  # that rows may be over; otherwise passages
NARROW = 30  # passages under which a bootstrap interval is somewhat too narrow

VERDICTS = ("gain", "loss", "unclear", "unknown")
WORDS = {  # for each verdict; {} is the later figure, but in "first" and "than"
    "first": ("up from {}", "down from {}", "{} before: no clear change", "{} before"),
    "than": ("more than the {}", "less than the {}", "not clearly different from the {}", "against the {}"),
    "rounds": ("raised that to {}", "lowered that to {}", "made no clear change ({})", "brought {}"),
    "kept": ("even {}", "only {}", "{}, no clear change", "{}"),
    "helps": ("keeps {}", "keeps less, {}", "keeps {}, no clear change", "keeps {}"),
    "shown": ("a clear gain", "a clear loss", "no clear change", "too few {} to say"),
    "runs": ("a clear difference", "a clear difference", "no clear difference", "too few {} to say"),
}


def say(kind: str, change: Difference | None, value: str) -> str:
    """The words for a difference, with a figure in them."""
    return WORDS[kind][VERDICTS.index(change.verdict if change else "unknown")].format(value)


def story_of(rows: Sequence[Row]) -> list[Row]:
    """The rows that tell what happened: base, own self-edits, after the last round.

    Of streams: base, right after its own edit, after all edits, and the option that then knows most. Of a run with
    other rows: the base model, or else the first row, and the best of the others.
    """
    answered = [row for row in rows if row.accuracy.mean is not None]
    if streams := _streams(rows):
        others = [last for _, last in streams[1:]]
        return [row for row in answered if row.name == BASE][:1] + [*streams[0], *_best(others)]
    by_name = {row.name: row for row in reversed(rows)}  # of two rows of one name the first
    after = [row for row in rows if row.name.startswith(AFTER_ROUND) and row.name != BEFORE_RL]
    story = [by_name[name] for name in (BASE, BEFORE_RL) if name in by_name] + after[-1:]
    if len(story) < 2:
        first = by_name.get(BASE, answered[0] if answered else None)
        story = ([first] if first else []) + _best([row for row in answered if row is not first])
    return [row for row in story if row.accuracy.mean is not None]


def changes_of(results: Results, story: Sequence[Row]) -> list[Difference]:
    """Between neighbours of the story."""
    return [difference(before, after, seed=results.seed or 0) for before, after in itertools.pairwise(story)]


def headline(results: Results) -> str:
    """What the run found."""
    rows, story, model = results.rows, story_of(results.rows), results.model or "the model"
    if not story:
        parts: list[Part] = [*results.tables, *results.matrices]
        title = next((part.title for part in parts if part.title), None)
        return f"{title}, {model}." if title else f"This run of {model} has no evaluated stage yet."
    changes = changes_of(results, story)
    if _streams(rows):
        return _forgetting(story, changes, model, len(_streams(rows)) - 1)
    if len(story) == 1:
        return f"{story[0].title}: {model} {_achieves(story[0])}."
    if [row.name for row in story[:2]] != [BASE, BEFORE_RL]:
        than = say("than", changes[0], f"{_achieved(story[0])} of “{story[0].title}”")
        others = sum(row.accuracy.mean is not None for row in rows) - 1
        chosen = f"; the best of {others} rows compared with it" if others > 1 else ""
        return f"{story[1].title}: {model} {_achieves(story[1])}, {than}{chosen}."
    first = say("first", changes[0], _achieved(story[0]))
    sentence = f"After training on its own self-edits, {model} {_achieves(story[1])}, {first}"
    if len(story) < 3:
        return f"{sentence}."
    rounds = len(results.rounds)
    cause = "one round" if rounds == 1 else f"{rounds} rounds" if rounds else "the rounds"
    return f"{sentence}; {cause} of reinforcement learning then {say('rounds', changes[1], _achieved(story[2]))}."


def _forgetting(story: Sequence[Row], changes: Sequence[Difference], model: str, options: int) -> str:
    """The sentence of a run of streams: what an edit teaches, what is left of it, and what helps."""
    told: list[Row | None] = [*story] if story[0].name == BASE else [None, *story]
    compared = [None] * (len(told) - len(story)) + [*changes]
    base, own, final, *best = told
    assert own is not None and final is not None
    sentence = f"Right after its own edit, {model} {_achieves(own)}"
    if base is not None:
        sentence += f", {say('first', compared[0], percent(base.accuracy.mean))}"
    sentence += f"; after all edits {say('kept', compared[1], percent(final.accuracy.mean))}."
    for row in filter(None, best):
        which = f"The best of {options} options" if options > 1 else "The option"
        helps = say("helps", compared[2], percent(row.accuracy.mean))
        sentence += f" {which} against forgetting, “{row.title.rpartition(': ')[2]}”, {helps}."
    return sentence


def _streams(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Of each option in a run of streams: right after its own edit, and after all edits. The first is the plain one."""
    own, final = (
        {
            row.name.removeprefix(name): row
            for row in rows
            if row.name.startswith(name) and row.accuracy.mean is not None
        }
        for name in (OWN_EDIT, ALL_EDITS)
    )
    return [(own[option], final[option]) for option in own if option in final]


def _best(rows: Sequence[Row]) -> list[Row]:
    best = max(rows, key=lambda row: -math.inf if row.accuracy.mean is None else row.accuracy.mean, default=None)
    return [best] if best else []


def _achieved(row: Row) -> str:
    """What a row achieved, as it stands in a sentence: `40.0 %`, or `29 of 40 (72.5 %)`."""
    share = percent(row.accuracy.mean)
    return f"{row.count} ({share})" if row.count else share


def _achieves(row: Row) -> str:
    """The same with its verb: `answers 40.0 % of the questions`."""
    if row.unit != "task":
        return f"answers {_achieved(row)} of the questions"
    if not row.count:
        return f"solves {_achieved(row)} of the tasks"
    share = percent(row.accuracy.mean)
    if row.tried == row.passages:
        return f"solves {row.count} tasks ({share})"
    return f"solves its task in {row.count} tries ({share})"


def is_staged(results: Results) -> bool:
    """Whether its rows are the stages of rounds, on passages that these do not use."""
    return bool(results.rounds) or any(row.name.startswith(AFTER_ROUND) for row in results.rows)


def unit_of(rows: Sequence[Row]) -> str:
    """What the intervals of these rows are over: passages, unless one of them says otherwise."""
    return next((unit for unit in UNITS for row in rows if row.unit == unit), "passage")


def asked(rows: Sequence[Row], held_out: str) -> str:
    """What the rows' figures are of."""
    unit, questions = unit_of(rows), max((row.questions or 0 for row in rows), default=0)
    passages = max((row.passages for row in rows), default=0)
    about = f"{passages} {held_out}{unit}{'s' * (passages != 1)}"
    some = f"{questions} {'test input' if unit == 'task' else 'question'}{'s' * (questions != 1)}"
    if unit == "task":
        return f"Tried on {about}{f', {some} in all' if questions else ''}."
    if unit == "stream":
        return f"Asked{f' {some}' if questions else ''} in {about} of passages, with no passage in view."
    return f"Asked {some} about {about}, with no passage in view."


def intervals(rows: Sequence[Row]) -> str:
    """Which intervals the figures have, and what to keep in mind."""
    unit = unit_of(rows)
    shown = [row for row in rows if row.accuracy.low is not None]
    named = sorted({row.interval for row in shown if row.interval})
    most = max((row.passages for row in rows), default=0)
    caution = f"; so few {unit}s make them somewhat too narrow" if FEW <= most < NARROW else ""
    of_means = f"{'Student’s' if most < FEW else 'bootstrap'} intervals over {unit}s{caution}."
    if not named:
        return f"Intervals are 95{NO_BREAK}% {of_means}"
    over = "tries" if any(row.tried > row.passages for row in shown) else f"{unit}s"
    over = over if unit == "task" else "questions"
    caution = f" (at these {unit}s: others may differ by more)" if over == "tries" else ""
    compared = any(versus.low is not None for row in rows for versus in (row.versus_previous, row.versus_base))
    others = ["rows without a count"] * any(not row.interval for row in shown) + ["differences"] * compared
    said = f"Intervals are 95{NO_BREAK}% {' and '.join(named)} intervals over {over}{caution}"
    return f"{said}; those of {' and of '.join(others)} are {of_means}" if others else f"{said}."
