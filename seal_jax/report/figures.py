"""The figures of the report, as what `report.html` draws with HTML and CSS: places in percent of the room there is.

So a figure fits a phone and a desktop, takes its colours from the page, and its text is text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from seal_jax.report.blocks import MINUS, NO_BREAK, Figure, percent, points
from seal_jax.report.results import Estimate, Losses, Matrix, Trends

BINS = 10  # of a distribution of rewards, each a tenth wide
POINTS = 200  # drawn of a loss curve at most
DARKEST = 60  # percent of the accent colour in a heat map's largest value: its number stays readable


def ticks(highest: float, most: int = 5) -> list[float]:
    """From 0 to a round number that is at least `highest`, in equal steps, `most` at most."""
    least = highest / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= least * (1 - 1e-9))
    return [step * n for n in range(math.ceil(highest / step - 1e-9) + 1)]


def dots(title: str, rows: Sequence[tuple[str, Estimate, str]], highest: float | None = None) -> Figure | None:
    """Means with their 95 % intervals on one scale from 0: (label, mean and interval, colour) a row.

    `highest` makes several figures share their scale. None where no row has a mean.
    """
    ends = [end for _, value, _ in rows for end in (value.mean, value.high) if end is not None]
    if not ends:
        return None
    scale = ticks(min(1.0, max([0.1, *ends] if highest is None else [0.1, highest])))
    top, first = scale[-1], rows[0][1].mean

    def at(x: float | None) -> float | None:
        return None if x is None else round(100 * min(max(x / top, 0), 1), 2)

    drawn = [
        {"label": label, "value": percent(value.mean), "colour": colour, "first": at(first)}
        | {name: at(end) for name, end in (("mean", value.mean), ("low", value.low), ("high", value.high))}
        for label, value, colour in rows
    ]
    return Figure("dots", title, drawn, [(100 * x / top, f"{round(100 * x, 2):g}{NO_BREAK}%") for x in scale])


def scatter(title: str, pairs: Mapping[str, tuple[float, float]], across: str, up: str) -> Figure | None:
    """A dot for each pair of shares, by name: the first across, the second up; equal ones lie on the diagonal."""
    places: dict[tuple[float, float], list[str]] = {}
    for name, pair in pairs.items():
        places.setdefault(pair, []).append(name)
    dots = [
        {"x": round(100 * x, 1), "y": round(100 * y, 1), "names": ", ".join(names), "count": len(names)}
        | {"way": "up" if y > x else "down" if y < x else ""}
        for (x, y), names in places.items()
    ]
    marks = [(100 * x, f"{100 * x:g}{NO_BREAK}%") for x in ticks(1.0)]
    return Figure("scatter", title, [across, up, dots], marks) if dots else None


def histograms(title: str, rows: Sequence[tuple[str, Sequence[float], str]]) -> Figure:
    """Distributions of rewards, (label, rewards, colour) a row, each of the same area, with its mean marked."""
    edges = np.linspace(0, 1, BINS + 1)
    shares = [np.histogram(np.clip(values, 0, 1), edges)[0] / max(1, len(values)) for _, values, _ in rows]
    highest = max([0.01, *(share.max() for share in shares)])
    drawn = []
    for (label, values, colour), share in zip(rows, shares, strict=True):
        mean = float(np.mean(values)) if len(values) else None
        bars = [round(100 * height, 1) for height in (share / highest).tolist()]
        at = None if mean is None else round(100 * min(max(mean, 0), 1), 2)
        drawn.append({"label": label, "value": percent(mean), "colour": colour, "bars": bars, "mean": at})
    return Figure("histograms", title, drawn, [(100 * x, f"{100 * x:g}{NO_BREAK}%") for x in ticks(1.0)])


def curves(title: str, panels: Sequence[tuple[str, Sequence[Losses]]], step: str) -> Figure | None:
    """A panel for each group of adapters that has a loss: its mean at each step, and the band that holds 8 in 10.

    The curves of a group may differ in length and hold None. A loss may lie below 0 (a policy gradient's).
    """
    found = [(label, lines, *spread) for label, lines in panels if len((spread := _spread(lines))[0])]
    if not found:
        return None
    scale = _scale(min(low.min() for *_, low, _ in found), max(high.max() for *_, high in found))

    def at(y: float) -> float:
        return 100 * (y - scale[0]) / (scale[-1] - scale[0])

    drawn = []
    for label, lines, steps, mean, low, high in found:
        across = (steps - 1) / max(1, steps[-1] - 1)
        line, band = (
            " ".join(f"{100 * x:.2f},{100 - at(y):.2f}" for x, y in zip(xs, ys, strict=True))
            for xs, ys in ((across, mean), (np.concatenate([across, across[::-1]]), np.concatenate([low, high[::-1]])))
        )
        drawn.append({"label": label, "line": line, "band": band if len(lines) > 1 else "", "last": int(steps[-1])})
    marks = [(at(y), f"{y:g}".replace("-", MINUS)) for y in scale]
    return Figure("curves", title, [{"step": step} | panel for panel in drawn], marks)


def trends(part: Trends) -> Figure | None:
    """A panel for each line: its means in colour, its intervals as a band, and the other lines behind it.

    All panels share both axes; the places are equally far apart, whatever they are called.
    """
    places, ends = len(part.columns), list[float]()
    lines: list[tuple[str, list[tuple[int, Estimate]]]] = []
    for label, values in zip(part.rows, _filled(part.values, len(part.rows), []), strict=True):
        there = [(n, value) for n, value in enumerate(values[:places]) if value and value.mean is not None]
        ends += _numbers(end for _, value in there for end in (value.mean, value.low, value.high))
        lines += [(label, there)] if there else []
    if not lines:
        return None
    scale, signed = _scale(min(ends), max(ends)), part.unit == "points"
    along = [round(100 * n / (places - 1), 2) if places > 1 else 50.0 for n in range(places)]

    def at(y: float | None) -> float:
        return round(100 * ((y or 0.0) - scale[0]) / (scale[-1] - scale[0]), 2)

    def drawn(places: Iterable[tuple[int, float | None]]) -> str:
        return " ".join(f"{along[n]:g},{100 - at(y):g}" for n, y in places)

    means = [drawn((n, value.mean) for n, value in there) for _, there in lines]
    panels = []
    for own, (label, there) in enumerate(lines):
        within = [(n, value) for n, value in there if value.low is not None and value.high is not None]
        band = [*((n, value.low) for n, value in within), *((n, value.high) for n, value in reversed(within))]
        said = [f"{part.columns[n]}: {(points if signed else percent)(value.mean)}" for n, value in there]
        panels.append(
            {"label": label, "line": means[own], "band": drawn(band), "dots": means[own].split(),
             "others": [line for n, line in enumerate(means) if n != own], "said": ", ".join(said)}
        )  # fmt: skip
    mark = lambda y: points(y).removesuffix(".0") if signed else f"{round(100 * y, 2):g}{NO_BREAK}%"
    marks = list(zip(along, part.columns, strict=True))
    return Figure("trends", part.title, [part.across, marks, panels], [(at(y), mark(y)) for y in scale])


def heat_map(matrix: Matrix) -> Figure | None:
    """Fractions in percent, a cell each: the larger, the darker. None where every cell is empty."""
    rows, columns = len(matrix.rows), len(matrix.columns)
    values = [_filled(row, columns) for row in _filled(matrix.values, rows, [])]
    highest = max([0.01, *_numbers(value for row in values for value in row)])
    if not any(_numbers([value]) for row in values for value in row):
        return None
    cells = [
        [
            (f"{100 * value:.1f}", round(4 + (DARKEST - 4) * max(0.0, value) / highest, 1)) if value is not None else ()
            for value in row
        ]
        for row in values
    ]
    return Figure("heat", matrix.title, [matrix.columns, list(zip(matrix.rows, cells, strict=True))])


def _scale(lowest: float, highest: float) -> list[float]:
    """Round numbers in equal steps, that hold 0 and both ends."""
    lowest, highest = min(0.0, lowest), max(0.1, highest)
    size = ticks(highest - lowest, 4)[1]
    return [size * n for n in range(math.floor(lowest / size), math.ceil(highest / size - 1e-9) + 1)]


def _filled(values: Sequence[Any], length: int, empty: Any = None) -> list[Any]:
    return [*values, *[empty] * length][:length]


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _spread(lines: Sequence[Losses]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, counted from 1, and over the adapters that still train there: mean, 10th percentile, 90th percentile."""
    table = np.full((len(lines), max(map(len, lines), default=0)), np.nan)
    for row, line in zip(table, lines, strict=True):
        row[: len(line)] = np.asarray(line, dtype=np.float64)  # None becomes NaN
    steps = np.flatnonzero(~np.isnan(table).all(axis=0))
    if not len(steps):
        return (np.array([]),) * 4
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))]
    table = table[:, steps]
    low, high = np.nanpercentile(table, [10, 90], axis=0)
    return steps + 1, np.nanmean(table, axis=0), low, high
