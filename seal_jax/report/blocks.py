"""What a page is made of: sections of blocks, each drawn by the macro of `report.html` that is called by its kind."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from seal_jax.report.figures import Figure
from seal_jax.report.results import Estimate, Table
from seal_jax.report.text import DASH, MINUS, percent, value_text

COLUMNS = 5  # runs a table; what has more continues in a further table
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
    *, links: Sequence[str] = (), fixed: bool = False, sparse: bool = False,
) -> Block:  # fmt: skip
    """A table: a column is its heading, or (heading, the shorter one beside a cell on a phone); `prose` are sentences.

    A row is its label and its cells. `links` are of the labels; `fixed` makes the columns equally wide; `sparse` leaves
    out those that have nothing to say.
    """
    names = [column if isinstance(column, tuple) else (column, column) for column in columns]
    if sparse:
        said = [any(cells[i][:2] != (DASH, "") for _, cells in rows) for i in range(len(names) - 1)]
        names = [names[0], *itertools.compress(names[1:], said)]
        rows = [(label, list(itertools.compress(cells, said))) for label, cells in rows]
    return Block("table", {"columns": names, "rows": rows, "prose": prose, "links": links, "fixed": fixed})


def by_run(corner: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]) -> list[Block]:
    """A column a run, in as many tables as it takes, about equally wide; rows that say nothing there are left out."""
    size = -(-len(names) // max(1, -(-len(names) // COLUMNS)))
    tables = []
    for start in range(0, len(names) if rows else 0, max(1, size)):
        part = [(label, cells[start : start + size]) for label, cells in rows]
        part = [(label, cells) for label, cells in part if any(cell != Cell(DASH) for cell in cells)]
        tables += [table([corner, *names[start : start + size]], part, fixed=True)] if part else []
    return tables


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


def holds(
    facts: Sequence[Sequence[str]], labels: Sequence[str], every: str = "Every row", *, ranges: bool = True
) -> list[tuple[str, str]]:
    """(for which rows, the facts): facts that hold for the same rows together, `ranges` of rows by where they end."""
    rows_of: dict[str, list[int]] = {}
    for number, of_row in enumerate(facts):
        for fact in dict.fromkeys(filter(None, of_row)):
            rows_of.setdefault(fact, []).append(number)
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
