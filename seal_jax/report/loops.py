"""Runs with different outer loops side by side: what each round brought in accuracy, reward and diversity; its cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from seal_jax.analysis import diversity
from seal_jax.analysis.statistics import Interval, bootstrap_mean
from seal_jax.report import figures
from seal_jax.report.blocks import (
    DASH,
    NO_BREAK,
    Block,
    Cell,
    Figure,
    Section,
    clock,
    estimated,
    flat,
    percent,
    points,
    table,
)
from seal_jax.report.results import Estimate, Round, Row, Run, SelfEdit, Trends, difference, read_self_edits
from seal_jax.report.story import AFTER_ROUND, BEFORE_RL, unit_of

ORDER = 4  # words of the n-grams that a passage's self-edits are compared by
COLUMNS: list[str | tuple[str, str]] = [
    "After round", "Held out", ("Against before RL, points", "Before RL"), "Reward in the round", "Base's",
    ("Distinct fours, within a passage", "Distinct fours"), ("Distinct fours, all held out", "All held out"),
]  # fmt: skip
COST: list[str | tuple[str, str]] = [
    "Cost of round", "Self-edits", "Kept", "Tokens written", "Tokens trained on", "Time",
]  # fmt: skip


class After(NamedTuple):
    """One run after one of its rounds."""

    round: int
    row: Row  # held out
    gain: Estimate  # of it, against before RL, paired by passage
    reward: Estimate  # over passages of the round, each the mean of its self-edits
    distinct: Estimate  # over passages: of the n-grams of its self-edits, those that repeat none
    entry: Round
    together: float | None  # the same share, of all that was written for held-out passages after the round
    seconds: float | None


def section(runs: Sequence[Run]) -> Section:
    """Curves over the rounds and a table; empty unless two runs have rounds."""
    rounds = {label: found for label, run in named(runs).items() if (found := rounds_of(run))}
    if len(rounds) < 2:
        return Section("Outer loops", "", [])
    rows = [after.row for found in rounds.values() for after in found]
    unit, same = unit_of(rows), len({frozenset(row.per_passage) for row in rows}) == 1
    note = (
        f"Each run against itself before RL, paired by {unit}, with 95{NO_BREAK}% intervals. Reward and diversity are "
        f"of what was written in a round, before it was learned from; every round has {unit}s of its own."
        f"{'' if same else f' What is held out is not the same {unit}s in all runs.'}"
    )
    start = [Estimate(0.0, 0.0, 0.0)]  # before RL
    curves: list[tuple[str, str, list[Estimate], Callable[[After], Estimate]]] = [
        ("Held out, against before RL, points", "points", start, lambda after: after.gain),
        ("Reward in the round", "%", [], lambda after: after.reward),
        ("Distinct fours of words, within a passage", "%", [], lambda after: after.distinct),
    ]
    blocks: list[Block | Figure | None] = []
    for title, unit, first, value in curves:
        figure = _trend(title, unit, first, value, rounds)
        blocks += [Block("heading", title), figure] if figure else []
    said = f"Across: rounds. The band is the 95{NO_BREAK}% interval; the other lines are grey."
    lines = [(f"{label}, {after.round}", after) for label, found in rounds.items() for after in found]
    brought, took = ([(label, cells(after)) for label, after in lines] for cells in (_brought, _took))
    tables = [table(COLUMNS, brought, sparse=True), table(COST, took, sparse=True)]
    return Section("Outer loops", note, [*blocks, Block("text", said), *tables])


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by their outer loop, where no two have the same; else by what they are called."""
    methods = [dict(flat(run.results.settings)).get("outer.method", "") for run in runs]
    telling = all(methods) and len(set(methods)) == len(runs)
    return {method if telling else run.label: run for method, run in zip(methods, runs, strict=True)}


def rounds_of(run: Run) -> list[After]:
    """What each round of a run brought; none where it has no row before RL."""
    rows = {row.name: row for row in reversed(run.results.rows)}
    if BEFORE_RL not in rows or not run.results.rounds:
        return []
    edits, seed = read_self_edits(run.folder / "self_edits.jsonl"), run.results.seed or 0
    found = []
    for n, entry in enumerate(run.results.rounds, 1):
        after = rows.get(f"{AFTER_ROUND}{entry.round}")
        if after is None or not isinstance(entry.round, int):
            continue
        by_passage: dict[str, list[SelfEdit]] = {}
        for edit in edits:
            if edit.stage == f"round {entry.round}":
                by_passage.setdefault(edit.passage, []).append(edit)
        texts = [[edit.completion for edit in own] for own in by_passage.values()]
        rewards = [_mean([edit.reward for edit in own]) for own in by_passage.values()]
        written = run.results.written[n] if n < len(run.results.written) else None
        found.append(
            After(
                entry.round,
                after,
                difference(rows[BEFORE_RL], after, seed=seed).estimate,
                _over(rewards, entry.mean_reward, seed),
                _over([diversity.distinct(own, ORDER) for own in texts], entry.distinct_4, seed),
                entry,
                written.distinct_4_across if written else None,
                _seconds(run, entry.round),
            )
        )
    return found


def _over(values: Sequence[float | None], otherwise: float | None, seed: int) -> Estimate:
    """Their mean with its interval; without any, the figure that the round has."""
    interval: Interval = bootstrap_mean(values, seed=seed, within=(0.0, 1.0))
    return msgspec.convert(interval.as_json(), Estimate) if interval.passages else Estimate(otherwise)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _seconds(run: Run, number: int) -> float | None:
    """Of all phases of a round: writing, trying and learning."""
    own = [s for name, s in run.results.phases.items() if re.match(rf"round {number}\b", name)]
    return sum(own) if own else None


def _trend(
    title: str,
    unit: str,
    first: Sequence[Estimate],
    value: Callable[[After], Estimate],
    rounds: dict[str, list[After]],
) -> Figure | None:
    numbers = sorted({after.round for found in rounds.values() for after in found})
    columns = [*("0" for _ in first), *map(str, numbers)]
    by_number = [{after.round: value(after) for after in found} for found in rounds.values()]
    values = [[*first, *(own.get(number) for number in numbers)] for own in by_number]
    return figures.trends(Trends(title, "", "rounds", list(rounds), columns, values, unit))


def _brought(after: After) -> list[Cell]:
    return [
        estimated(after.row.accuracy),
        estimated(after.gain, points),
        estimated(after.reward),
        Cell(percent(after.entry.mean_base_reward)),
        estimated(after.distinct),
        Cell(percent(after.together)),
    ]


def _took(after: After) -> list[Cell]:
    entry = after.entry
    counts = (entry.self_edits, entry.kept, entry.tokens_written, entry.tokens_trained)
    return [*(Cell(DASH if count is None else f"{count:,}") for count in counts), Cell(clock(after.seconds))]
