"""Grids of digits (ARC's puzzles and the attempts at them) as inline SVG in the ten colours that people know them by.

The colours mean digits, so they are the same on a light and on a dark page; lines between the cells keep black on
black apart. A figure's title holds the digits, for readers who do not see it.
"""

from __future__ import annotations

import contextlib
import re
from html import escape
from typing import Annotated, Any

import msgspec

LARGEST_SIDE = 30  # cells; ARC's
# The digits 0 to 9 as the ARC testing interface shows them (github.com/fchollet/ARC-AGI, apps/css/common.css)
COLOURS = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
CELL = 18  # CSS pixels of a cell, where the grid is small enough
LINE = "#62666e"  # between cells: tells neighbours of one colour apart, and black from a dark page

Side = msgspec.Meta(min_length=1, max_length=LARGEST_SIDE)
Digit = Annotated[int, msgspec.Meta(ge=0, le=9)]
GridRows = Annotated[list[Annotated[list[Digit], Side]], Side]


def as_grid(value: Any) -> GridRows | None:
    """Rows of digits as results.json has them; None for anything that is no grid."""
    with contextlib.suppress(msgspec.ValidationError):
        grid = msgspec.convert(value, GridRows)
        return grid if len({len(row) for row in grid}) == 1 else None
    return None


def svg(grid: GridRows, name: str, largest: int) -> str:
    """A grid as an `svg` element, no side longer than `largest` CSS pixels; `name` says what it is of."""
    height, width = len(grid), len(grid[0])
    cell = min(CELL, largest / max(height, width))
    digits = " / ".join(" ".join(map(str, row)) for row in grid)
    cells = "".join(
        f'<path fill="{COLOURS[digit]}" d="{path}"/>' for digit in range(10) if (path := _cells(grid, digit))
    )
    lines = "".join(f"M0 {y}h{width}" for y in range(height + 1)) + "".join(
        f"M{x} 0v{height}" for x in range(width + 1)
    )
    return (
        f'<svg class="grid" role="img" width="{cell * width:.4g}" height="{cell * height:.4g}" '
        f'viewBox="0 0 {width} {height}"><title>{escape(name)}, {height} by {width}: {digits}</title>'
        f'<g shape-rendering="crispEdges">{cells}</g>'
        f'<path d="{lines}" fill="none" stroke="{LINE}" vector-effect="non-scaling-stroke"/></svg>'
    )


def difference(attempt: GridRows, expected: GridRows) -> str:
    """In words how far an attempt is from what was expected; "" where they are equal."""
    sides = [(len(grid), len(grid[0])) for grid in (attempt, expected)]
    if sides[0] != sides[1]:
        return f"{sides[0][0]} × {sides[0][1]} instead of {sides[1][0]} × {sides[1][1]}"
    wrong = sum(a != e for rows in zip(attempt, expected, strict=True) for a, e in zip(*rows, strict=True))
    if not wrong:
        return ""
    return f"{wrong} of {sides[0][0] * sides[0][1]} cells wrong"


def _cells(grid: GridRows, digit: int) -> str:
    """The cells that hold this digit, as a path: a rectangle for each run in a row."""
    rows = ["".join(map(str, row)) for row in grid]
    runs = ((run.start(), y, len(run[0])) for y, row in enumerate(rows) for run in re.finditer(f"{digit}+", row))
    return "".join(f"M{x} {y}h{length}v1h-{length}z" for x, y, length in runs)
