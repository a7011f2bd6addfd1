"""What a page is made of: sections of blocks, each drawn by the macro of `report.html` that is called by its kind."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from seal_jax.report.results import Estimate, Table

NO_BREAK, MINUS, DASH = "\u202f", "\u2212", "—"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value as text), nested sections in their place."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        pairs += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value_text(value))]
    return pairs


def value_text(value: Any) -> str:
    """A setting."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(value_text, value)) if isinstance(value, list) else str(value)


def percent(fraction: float | None) -> str:
    """A fraction in percent; a dash for None, here and in the next two."""
    return DASH if fraction is None else f"{100 * fraction:.1f}{NO_BREAK}%"


def points(fraction: float | None) -> str:
    """A difference of two accuracies in percentage points, with its sign."""
    if fraction is None:
        return DASH
    rounded = round(100 * fraction, 1)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else ''}{abs(rounded):.1f}"


def decimal(value: float | None, digits: int = 2) -> str:
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def clock(seconds: float | None) -> str:
    """A duration in its two largest units."""
    if seconds is None or seconds < 60:
        return DASH if seconds is None else f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NO_BREAK}h {minutes}{NO_BREAK}min" if hours else f"{minutes}{NO_BREAK}min {rest}{NO_BREAK}s"


_WORD = re.compile(r"[^\W\d_]{2,}")  # three of them, and a cell is no figure


class Cell(NamedTuple):
    """A cell of a table: a figure, and smaller what belongs to it. `repeated`: a phone need not show it again."""

    text: str
    below: str = ""
    repeated: bool = False


class Block(NamedTuple):
    """A part of a section. A `Figure` is one, too."""

    kind: str
    body: Any


class Figure(NamedTuple):
    """A figure for the template: which of its macros draws it, and what."""

    kind: str
    title: str
    parts: Sequence[Any]
    ticks: Sequence[tuple[float, str]] = ()  # of the axis that all parts share: where, in percent, and the text there


class Section(NamedTuple):
    """A heading, what to know of it, and what stands there: None for what a run does not have."""

    title: str
    note: str
    blocks: Sequence[Block | Figure | None]


def shown(sections: Iterable[Section]) -> list[Section]:
    """Those that have something to show."""
    filled = [section._replace(blocks=[block for block in section.blocks if block]) for section in sections]
    return [section for section in filled if section.blocks]


def estimated(
    value: Estimate, text: Callable[[float | None], str] = percent, *more: str, repeated: bool = False
) -> Cell:
    """A mean, below it its interval and what else there is to say."""
    return Cell(text(value.mean), "; ".join(filter(None, [value.between(text), *more])), repeated)


def table(
    columns: Sequence[str | tuple[str, str]], rows: Sequence[tuple[str, Sequence[Cell]]], prose: Sequence[int] = (),
    *, links: Sequence[str] = (), sparse: bool = False,
) -> Block:  # fmt: skip
    """A table: a column is its heading, or (heading, the shorter one beside a cell on a phone); `prose` are sentences.

    A row is its label and its cells. `links` are of the labels; `sparse` leaves out columns that have nothing to say.
    """
    names = [column if isinstance(column, tuple) else (column, column) for column in columns]
    if sparse:
        said = [any(cells[i][:2] != (DASH, "") for _, cells in rows) for i in range(len(names) - 1)]
        names = [names[0], *itertools.compress(names[1:], said)]
        rows = [(label, list(itertools.compress(cells, said))) for label, cells in rows]
    return Block("table", {"columns": names, "rows": rows, "prose": prose, "links": links})


def as_it_is(given: Table) -> Block | None:
    """A table of results.json, its cells as text; a row that is too short is filled up."""
    columns = ["" if column is None else str(column) for column in given.columns]
    rows = [[_text(value) for value in [*row, *[None] * len(columns)][: len(columns)]] for row in given.rows]
    prose = [i for i in range(1, len(columns)) if any(len(_WORD.findall(row[i])) >= 3 for row in rows)]
    return table(columns, [(row[0], [Cell(text) for text in row[1:]]) for row in rows], prose) if columns else None


def _text(value: Any) -> str:
    """Text as it is, a number with three significant digits (one that counts: all of them)."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value_text(value)
    counts = isinstance(value, int) or abs(value) >= 1_000
    return (f"{value:,.0f}" if counts else f"{value:.3g}").replace("-", MINUS)


def holds(facts: Sequence[Sequence[str]], labels: Sequence[str]) -> list[tuple[str, str]]:
    """(for which rows, the facts): facts that hold for the same rows together."""
    rows_of: dict[str, list[str]] = {}
    for label, of_row in zip(labels, facts, strict=True):
        for fact in dict.fromkeys(filter(None, of_row)):
            rows_of.setdefault(fact, []).append(label)
    together: dict[str, list[str]] = {}
    for fact, rows in rows_of.items():
        named = "All" if len(rows) == len(labels) > 1 else "; ".join(rows)
        together.setdefault(named, []).append(fact)
    return [(named, "; ".join(of_rows)) for named, of_rows in together.items()]
