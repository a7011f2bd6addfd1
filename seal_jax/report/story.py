"""What runs found, in a line: the rows that tell it, and whether they differ; what its figures are of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from seal_jax.report.blocks import percent
from seal_jax.report.results import BASE, Difference, Part, Row, RowKey, Run, difference

BEFORE_RL, AFTER_ROUND = "self_edits_round_0", "self_edits_round_"
OWN_EDIT, ALL_EDITS = "after_own_edit", "after_all_edits"  # of a stream; "_option" follows where something protects
MOST_NAMED = 4  # runs that the headline names one by one
VERDICTS = {
    "gain": "a clear gain",
    "loss": "a clear loss",
    "unclear": "no clear change",
    "unknown": "too few {}s to say",
}


class Told(NamedTuple):
    """A row that tells what happened, and what it is compared with."""

    label: str
    row: Row
    change: Difference | None = None  # None for the first

    @property
    def achieved(self) -> str:
        """`40.0 %`, or `29 of 40 (72.5 %)`."""
        share = percent(self.row.accuracy.mean)
        return f"{self.row.count} ({share})" if self.row.count else share

    @property
    def verdict(self) -> str:
        """What is to be thought of the difference, and what to know of how it was paired; empty for the first."""
        if self.change is None:
            return ""
        said = VERDICTS[self.change.verdict].format(self.row.unit)
        return (
            self.change.remark
            if self.change.verdict == "unknown" and self.change.remark
            else "; ".join(filter(None, [said, self.change.remark]))
        )


def story(runs: Sequence[Run]) -> list[Told]:
    """Of one run the rows that tell what happened, each against the one before; of several runs the row that most of
    them have, and of such rows the last, against the first run's."""
    if len(runs) == 1:
        rows, seed = story_of(runs[0].results.rows), runs[0].results.seed or 0
        changes = [difference(before, after, seed=seed) for (_, before), (_, after) in itertools.pairwise(rows)]
        return [Told(*named, change) for named, change in zip(rows, [None, *changes], strict=False)]
    having = {key: [run for run in runs if key in run.rows and run.rows[key].accuracy.mean is not None] for key in
              row_labels(runs)}  # fmt: skip
    most = max(map(len, having.values()), default=0)
    if most < 2:
        return []
    key, (first, *others) = [(key, some) for key, some in having.items() if len(some) == most][-1]
    told = [Told(run.label, run.rows[key], difference(first.rows[key], run.rows[key])) for run in others]
    return [Told(first.label, first.rows[key]), *told]


def headline(runs: Sequence[Run], told: Sequence[Told]) -> str:
    """The story in a line; of many runs the lowest and the highest."""
    results = runs[0].results
    if not told and len(runs) > 1:
        return f"{len(runs)} runs that have no row in common"
    if not told:
        parts: list[Part] = [*results.tables, *results.matrices]
        return next((part.title for part in parts if part.title), "No evaluated stage yet")
    if len(told) > MOST_NAMED and len(runs) > 1:
        worst, *_, best = sorted(told, key=lambda one: one.row.accuracy.mean or 0.0)
        ends = (f"{one.achieved} ({one.label})" for one in (worst, best))
        differ = any(one.change and one.change.remark for one in told)
        said = f"{told[0].row.title}: {len(told)} runs, from {' to '.join(ends)}"
        return f"{said}; not all over the same {worst.row.unit}s" if differ else said
    each = [f"{one.label} {one.achieved}{one.verdict and f' ({one.verdict})'}" for one in told]
    of = told[0].row.title if len(runs) > 1 else results.model or "the model"
    return f"{of}: {'; '.join(each)}"


def row_labels(runs: Sequence[Run]) -> dict[RowKey, str]:
    """Each row of any run once, those of the first run first, and what it is called."""
    labels: dict[RowKey, str] = {}
    for key, row in ((RowKey(row.name, row.unit), row) for run in runs for row in run.results.rows):
        labels.setdefault(key, row.title + ("" if key.unit == "passage" or len(runs) == 1 else f" ({key.unit}s)"))
    return labels


def story_of(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The rows that tell what happened, and what each is called: base, own self-edits, after the last round.

    Of streams: base, right after its own edit, after all edits, and the option that then knows most. Of a run with
    other rows: the base model, or else the first row, and the best of the others.
    """
    rows = [row for row in rows if row.accuracy.mean is not None]
    by_name = {row.name: row for row in reversed(rows)}  # of two rows of one name the first
    left = [row for name, row in reversed(by_name.items()) if name.startswith(ALL_EDITS)]
    if left:
        own = by_name.get(left[0].name.replace(ALL_EDITS, OWN_EDIT))
        told, others = [*filter(None, [by_name.get(BASE), own]), left[0]], left[1:]
    else:
        after = [row for row in rows if row.name.startswith(AFTER_ROUND) and row.name != BEFORE_RL]
        told, others = [by_name[name] for name in (BASE, BEFORE_RL) if name in by_name] + after[-1:], []
        if len(told) < 2:
            told = [by_name.get(BASE, rows[0])] if rows else []
            others = [row for row in rows if row is not told[0]]
    named = [(row.title, row) for row in told]
    if others:  # the best of many looks better than it is
        best = max(others, key=lambda row: row.accuracy.mean or 0.0)
        named.append((f"{best.title}{f', the best of {len(others)}' if len(others) > 1 else ''}", best))
    return named


def unit_of(rows: Sequence[Row]) -> str:
    """What the intervals of these rows are over: passages, unless one of them says otherwise."""
    return next((unit for unit in ("stream", "task") for row in rows if row.unit == unit), "passage")


def asked(rows: Sequence[Row]) -> str:
    """What the rows' figures are of: `60 questions, 12 passages`."""
    unit, questions = unit_of(rows), max((row.questions or 0 for row in rows), default=0)
    passages = max((row.passages for row in rows), default=0)
    some = f"{questions} {'test input' if unit == 'task' else 'question'}{'s' * (questions != 1)}, "
    return f"{some if questions else ''}{passages} {unit}{'s' * (passages != 1)}"
