"""The figures of the report: matplotlib drawings as inline SVG that takes its colours and its typeface from the page.

Every figure is drawn twice, for a desktop and for a phone, at the size it is read in, so that no text has to shrink;
the page shows the one that fits. The same data gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

WIDE, NARROW = 840, 340  # CSS pixels
LABEL_WIDTH = {WIDE: 260, NARROW: 16}  # on a phone a row's label stands above it
DOT_HEIGHT = {WIDE: 42, NARROW: 52}
RIDGE_HEIGHT = {WIDE: 58, NARROW: 72}
VALUE_WIDTH = 64
BINS = 10  # of a reward distribution, each a tenth wide
POINTS = 200  # drawn of a loss curve at most
CELL_HEIGHT = {WIDE: 34, NARROW: 28}  # of a heat map
CELL_WIDTH = {WIDE: 84, NARROW: 60}  # at most
CHARACTER = 0.54  # mean width of a character, in units of its font size
DARKEST = 0.6  # opacity of a heat map's largest value: the number in the cell stays readable in light and in dark

# Matplotlib wants colours, the page has variables (they differ between light and dark): each colour here is a
# placeholder that `_to_svg` replaces by `var(--name)`.
_VARIABLES = {
    "#010101": "ink",
    "#010102": "muted",
    "#010103": "line",
    "#010104": "accent",
    "#010105": "soft",
    "#010106": "neutral",
    "#010107": "paper",
}
INK, MUTED, LINE, ACCENT, SOFT, NEUTRAL, PAPER = _VARIABLES

# What matplotlib writes that would be wrong or noise inside a page: a style for every element of it, ids that repeat
# from figure to figure, its own typefaces, comments, empty groups.
_NOT_FOR_THE_PAGE = (
    r"<defs>\s*<style.*?</style>\s*</defs>\s*",
    r"<!--.*?-->\s*",
    r"<g id=\"[^\"]*\"/>\s*",
    r"(?<=<g) id=\"[^\"]*\"",
    r"font-family: [^;\"]*; ",
    r" transform=\"rotate\(-0 [^\"]*\"",
)


class Dot(NamedTuple):
    """A row of `dots`: a mean and its interval, as fractions; None where there is none."""

    label: str
    mean: float | None
    low: float | None
    high: float | None
    color: str


class Ridge(NamedTuple):
    """A row of `ridges`: a distribution of rewards, as fractions."""

    label: str
    values: Sequence[float]
    color: str


class Curves(NamedTuple):
    """A panel of `losses`: one loss curve for each adapter; they may differ in length and hold None."""

    label: str
    curves: Sequence[Sequence[float | None]]


class Matrix(NamedTuple):
    """A `heat_map`: fractions, `values[row][column]`; None leaves the cell empty."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]


def dots(rows: Sequence[Dot], title: str, highest: float | None = None) -> str:
    """Accuracy a row with its 95 % interval, on one scale from 0; `highest` makes several figures share theirs."""

    def draw(width: int) -> Figure:
        figure, axes = _row_axes(width, len(rows), DOT_HEIGHT[width])
        ends = [x for row in rows for x in (row.mean, row.high) if x is not None]
        axes.set_xlim(0, min(1.0, max([0.1, *ends] if highest is None else [0.1, highest]) * 1.05))
        first = rows[0].mean
        if first is not None:
            axes.axvline(first, color=MUTED, linewidth=1, dashes=(3, 3), zorder=1)
        for y, (row, label) in enumerate(zip(rows, _row_labels([row.label for row in rows], width), strict=True)):
            _label_row(axes, width, y, label, None if row.mean is None else percent(row.mean))
            if row.mean is None:
                continue
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [y, y], color=row.color, linewidth=5, alpha=0.35, solid_capstyle="round")
            axes.plot([row.mean], [y], "o", color=row.color, markersize=9, clip_on=False, zorder=3)
        return figure

    return _both_widths(draw, title)


def ridges(rows: Sequence[Ridge], title: str) -> str:
    """One histogram a row, each of the same total height, with its mean as a tick below it."""

    def draw(width: int) -> Figure:
        figure, axes = _row_axes(width, len(rows), RIDGE_HEIGHT[width])
        axes.set_xlim(0, 1)
        edges = np.linspace(0, 1, BINS + 1)
        shares = [np.histogram(np.clip(row.values, 0, 1), edges)[0] / max(1, len(row.values)) for row in rows]
        highest = max([0.01, *(share.max() for share in shares)])
        room = 0.68 if width == WIDE else 0.44  # of a row, for the highest bar
        labels = _row_labels([row.label for row in rows], width)
        for y, (row, label, share) in enumerate(zip(rows, labels, shares, strict=True)):
            mean = float(np.mean(row.values)) if len(row.values) else None
            _label_row(axes, width, y, label, None if mean is None else percent(mean))
            base = y + 0.3
            axes.plot([0, 1], [base, base], color=LINE, linewidth=1, zorder=1)
            heights = share / highest * room
            axes.bar(
                edges[:-1] + 0.5 / BINS, -heights, 0.92 / BINS, bottom=base, color=row.color, linewidth=0, zorder=2
            )
            if mean is not None:
                axes.plot([mean, mean], [base + 0.04, base + 0.17], color=INK, linewidth=2, clip_on=False, zorder=3)
        return figure

    return _both_widths(draw, title)


def losses(panels: Sequence[Curves], title: str, step: str) -> str:
    """A panel for each group of adapters: the mean loss at each step, and the band that holds 8 in 10 of them."""

    def draw(width: int) -> Figure:
        rows = math.ceil(len(panels) / (3 if width == WIDE else 2))
        columns = math.ceil(len(panels) / rows)
        left, panel_height, bottom, between = (34, 140, 42, 28) if width == WIDE else (34, 110, 42, 18)
        panel_width = min(400, (width - left - 8 - (columns - 1) * between) / columns)
        names = [textwrap.wrap(panel.label, int(panel_width / 6.4), max_lines=2, placeholder="…") for panel in panels]
        top = 26 if max(map(len, names)) < 2 else 42
        height = rows * (top + panel_height + bottom)
        figure = _figure(width, height)
        statistics = [_mean_and_spread(panel.curves) for panel in panels]
        highest = max([0.1, *(np.nanmax(high) for _, _, _, high in statistics if len(high))])
        for i, (panel, (steps, mean, low, high)) in enumerate(zip(panels, statistics, strict=True)):
            row, column = divmod(i, columns)
            x = left + column * (panel_width + between)
            y = height - row * (top + panel_height + bottom) - top - panel_height
            axes = figure.add_axes((x / width, y / height, panel_width / width, panel_height / height))
            _quiet(axes)
            axes.set_ylim(0, highest * 1.05)
            axes.set_xlim(1, max(2, int(steps[-1]) if len(steps) else 2))
            axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
            axes.grid(True, axis="y", color=LINE, linewidth=1)
            axes.set_axisbelow(True)
            axes.set_title("\n".join(names[i]), loc="left", fontsize=12, color=INK, pad=8)
            if column:
                axes.tick_params(axis="y", labelleft=False)
            if i + columns >= len(panels):  # none below it
                axes.set_xlabel(step, color=MUTED, fontsize=12)
            if len(panel.curves) > 1:
                axes.fill_between(steps, low, high, color=ACCENT, alpha=0.2, linewidth=0)
            axes.plot(steps, mean, color=ACCENT, linewidth=2)
        return figure

    return _both_widths(draw, title)


def heat_map(matrix: Matrix, title: str) -> str:
    """A cell a value, with the value written in it in percent: the larger, the darker. Empty cells keep an outline."""
    highest = max([0.01, *(value for row in matrix.values for value in row if value is not None)])

    def draw(width: int) -> Figure:
        size = 12 if width == WIDE else 11
        columns = max(1, len(matrix.columns))
        longest = max(map(len, matrix.rows), default=0)
        left = min(0.3 * width, longest * CHARACTER * size + 12)
        cell, height = min(CELL_WIDTH[width], (width - left) / columns), CELL_HEIGHT[width]
        room = int(cell / (CHARACTER * size))  # characters
        wrapped = [textwrap.wrap(label, max(1, room), break_long_words=False) for label in matrix.columns]
        upright = all(len(lines) <= 2 and max(map(len, lines), default=0) <= room for lines in wrapped)
        names = ["\n".join(lines) for lines in wrapped] if upright else _shorten_apart(matrix.columns, 18)
        if upright:
            top = 10 + 15 * max(map(len, wrapped), default=0)
        else:
            top = 10 + round(CHARACTER * size * max(map(len, names), default=0)) + size // 2
        figure = _figure(width, top + height * len(matrix.rows) + 1)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(top + height * len(matrix.rows) + 1, 0)
        style: dict[str, Any] = {"fontsize": size, "color": MUTED}
        axes.text(0, top - 6, "%", va="bottom", **style)
        for c, name in enumerate(names):
            turn = 0 if upright else 90
            axes.text(left + (c + 0.5) * cell, top - 6, name, ha="center", va="bottom", rotation=turn, **style)
        for r, (label, values) in enumerate(zip(matrix.rows, matrix.values, strict=True)):
            y = top + r * height
            axes.text(0, y + height / 2, _shorten(label, int(left / (CHARACTER * size))), va="center", **style)
            for c, value in enumerate(values):
                box = (left + c * cell + 1, y + 1), cell - 2, height - 2
                if value is None:
                    axes.add_patch(Rectangle(*box, facecolor="none", edgecolor=LINE, linewidth=1))
                    continue
                alpha = round(0.04 + (DARKEST - 0.04) * max(0.0, value) / highest, 3)
                axes.add_patch(Rectangle(*box, facecolor=ACCENT, alpha=alpha, linewidth=0))
                number = f"{100 * value:.1f}" if room >= 5 else f"{100 * value:.0f}" if room >= 3 else ""
                axes.text(
                    left + (c + 0.5) * cell, y + height / 2, number, ha="center", va="center", fontsize=size, color=INK
                )
        return figure

    return _both_widths(draw, title)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _mean_and_spread(
    curves: Sequence[Sequence[float | None]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, counted from 1, and over the adapters that still train there: mean, 10th percentile, 90th percentile."""
    length = max(map(len, curves), default=0)
    table = np.full((len(curves), length), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = np.asarray(curve, dtype=np.float64)  # None becomes NaN
    table[~np.isfinite(table)] = np.nan
    steps = np.flatnonzero(~np.isnan(table).all(axis=0))
    if not len(steps):
        return (np.array([]),) * 4
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))]
    table = table[:, steps]
    low, high = np.nanpercentile(table, [10, 90], axis=0)
    return steps + 1, np.nanmean(table, axis=0), low, high


def _row_axes(width: int, rows: int, row_height: int) -> tuple[Figure, Axes]:
    """Axes whose x is a fraction shown in percent and whose y counts rows from the top; labels left or above."""
    left, height, bottom = LABEL_WIDTH[width], rows * row_height, 26
    figure = _figure(width, height + bottom)
    axes = figure.add_axes(
        (left / width, bottom / (height + bottom), (width - left - VALUE_WIDTH) / width, height / (height + bottom))
    )
    _quiet(axes)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(lambda x, _: f"{round(100 * x, 2):g} %")
    axes.grid(True, axis="x", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    return figure, axes


def _row_labels(labels: Sequence[str], width: int) -> list[str]:
    """As much of each as there is room for."""
    return _shorten_apart(labels, int((LABEL_WIDTH[width] - 36) / (CHARACTER * 13)) if width == WIDE else 40)


def _label_row(axes: Axes, width: int, y: int, label: str, value: str | None) -> None:
    style: dict[str, Any] = {"fontsize": 13, "color": INK, "va": "center"}
    style |= {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    if width == WIDE:
        axes.annotate(label, (0, y), (-LABEL_WIDTH[width], 0), **style)
    else:
        paper = {"facecolor": PAPER, "linewidth": 0, "pad": 1.5}  # so that no grid line runs through the words
        axes.annotate(label, (0, y - 0.36), (-LABEL_WIDTH[width], 0), bbox=paper, **style)
    axes.annotate(value or "—", (1, y), (VALUE_WIDTH, 0), ha="right", **style)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width / 72, height / 72))  # SVG has 72 units an inch: one unit is one CSS pixel


def _quiet(axes: Axes) -> None:
    axes.set_facecolor("none")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(length=0, labelsize=12, labelcolor=MUTED, pad=6)


def _shorten(text: str, characters: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def _shorten_apart(texts: Sequence[str], characters: int) -> list[str]:
    """By their beginnings, or by their ends where the beginnings would be the same."""
    short = [_shorten(text, characters) for text in texts]
    if len(set(short)) == len(set(texts)):
        return short
    return [text if len(text) <= characters else f"…{text[1 - characters :].lstrip()}" for text in texts]


def _both_widths(draw: Callable[[int], Figure], title: str) -> str:
    return "\n".join(_to_svg(draw, width, name, title) for width, name in ((WIDE, "wide"), (NARROW, "narrow")))


def _to_svg(draw: Callable[[int], Figure], width: int, name: str, title: str) -> str:
    # Text stays text. `$` in a label is a dollar, not mathematics. The salt keeps the ids of one page's figures apart.
    settings = {"svg.fonttype": "none", "svg.hashsalt": f"{title} {name}", "text.parse_math": False}
    with matplotlib.rc_context(settings):
        file = io.StringIO()
        metadata = {"Creator": None, "Date": None, "Format": None, "Type": None}
        draw(width).savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    body = svg[svg.index(">") + 1 :]
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None
    for color, variable in _VARIABLES.items():
        body = body.replace(color, f"var(--{variable})")
    for pattern in _NOT_FOR_THE_PAGE:
        body = re.sub(pattern, "", body, flags=re.DOTALL)
    return f'<svg class="plot {name}" viewBox="{view_box[1]}" role="img" aria-label="{escape(title)}">{body}'
