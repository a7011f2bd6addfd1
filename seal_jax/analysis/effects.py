"""What a search found: which cell is best and how sure that is, and what each field does (NumPy, on the host).

Every figure starts from `values_CP`: one value a cell and passage (its accuracy there, its mean log-likelihood). All
cells answer the same passages, so whatever is compared is compared passage by passage: a bootstrap resample draws
passages, and the same for all cells.

The best of many cells looks better than it is: it was lucky too. `optimism` says by how much, about: in each resample a
winner is chosen anew, and its mean there is compared with its mean over all passages (Efron and Tibshirani, 1993, "An
introduction to the bootstrap", section 17.6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from seal_jax.analysis.grid import Values, text_of
from seal_jax.analysis.statistics import RESAMPLES, Interval, bootstrap_mean, paired_bootstrap

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Bool, Float

MOST_LEVELS = 8  # different values of a field that are looked at one by one; of more numbers, thirds
BLOCK = 500  # resamples at a time
CLOSE = 1e-12  # means of few passages are often the same number: what is left of the sums is no difference


class Comparison(NamedTuple):
    """The cells against the best of them."""

    order: list[int]  # cells, best first; those that cannot be chosen come last
    share: Float[np.ndarray, "C"]  # of resamples in which the cell is the best; those with equals share one
    against: list[Interval]  # [C] cell less the best cell, paired by passage
    optimism: float  # by how much choosing the best of so many flatters its mean, about; NaN with one passage
    candidates: int  # cells that can be chosen

    @property
    def best(self) -> int | None:
        """The cell to use; None where none can be chosen."""
        return self.order[0] if self.candidates else None


def compare(
    values_CP: Float[np.ndarray, "C P"],
    *,
    seed: int,
    second_CP: Float[np.ndarray, "C P"] | None = None,
    usable: Bool[np.ndarray, "C"] | None = None,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Ranks C cells by their means over P passages, and says how sure the first place is.

    NaN is a passage without a value, left out of that cell's mean. Equal means are ordered by those of `second_CP`,
    then as given. Cells that are not `usable` (a training run diverged, say) or have no value at all cannot be best.
    """
    values_CP = np.asarray(values_CP, float)
    cells, passages = values_CP.shape
    means = _means(values_CP)
    allowed = np.isfinite(means) if usable is None else np.isfinite(means) & np.asarray(usable)
    second = np.zeros(cells) if second_CP is None else np.nan_to_num(_means(np.asarray(second_CP, float)), nan=-np.inf)
    ranked = np.round(np.where(np.isfinite(means), means, -np.inf), 12)
    order = [int(c) for c in np.lexsort((np.arange(cells), -second, -ranked, ~allowed))]
    share, optimism = np.zeros(cells), math.nan
    if allowed.any() and passages > 1:
        share, optimism = _resample(values_CP, means, allowed, seed, resamples)
    elif allowed.any():
        share[order[0]] = math.nan
    against = [paired_bootstrap(values_CP[order[0]], row, seed=seed) for row in values_CP] if allowed.any() else []
    return Comparison(order, share, against, optimism, int(allowed.sum()))


def _means(values_CP: Float[np.ndarray, "C P"]) -> Float[np.ndarray, "C"]:
    present = ~np.isnan(values_CP)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(present, values_CP, 0).sum(axis=1) / present.sum(axis=1)


def _resample(
    values_CP: np.ndarray, means: np.ndarray, allowed: np.ndarray, seed: int, resamples: int
) -> tuple[np.ndarray, float]:
    cells, passages = values_CP.shape
    present_CP = (~np.isnan(values_CP)).astype(float)
    filled_CP = np.where(present_CP > 0, values_CP, 0)
    rng, won, flattered, counted = np.random.default_rng(seed), np.zeros(cells), 0.0, 0
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        times_RP = np.zeros((size, passages))
        np.add.at(times_RP, (np.arange(size)[:, None], rng.integers(passages, size=(size, passages))), 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            means_RC = (times_RP @ filled_CP.T) / (times_RP @ present_CP.T)
        means_RC = np.where(allowed & np.isfinite(means_RC), means_RC, -np.inf)
        top_R = means_RC.max(axis=1)
        real = np.isfinite(top_R)
        best_RC = (means_RC >= top_R[:, None] - CLOSE) & real[:, None]
        weights_RC = best_RC[real] / best_RC[real].sum(axis=1, keepdims=True)
        won += weights_RC.sum(axis=0)
        flattered += float((top_R[real] - weights_RC @ np.where(allowed, means, 0)).sum())
        counted += int(real.sum())
    return won / counted, flattered / counted


class Level(NamedTuple):
    """A value of a field (or a third of its values), and what the cells that have it achieve, all else mixed."""

    text: str
    cells: list[int]
    mean: Interval
    against: Interval | None  # less the field's best level, paired by passage; None for that level itself


def main_effect(values_CP: Float[np.ndarray, "C P"], settings: Sequence[Any], *, seed: int) -> list[Level]:
    """A field's levels in order, each averaged over the cells that have it.

    `settings` are the cells' values of the field. In a whole grid every level meets the same settings of the other
    fields, so a difference is the field's own; in a random search it is only about so.
    """
    values_CP = np.asarray(values_CP, float)
    found = levels(settings)
    by_passage = [_means(values_CP[cells].T) for _, cells in found]
    means = [bootstrap_mean(row, seed=seed) for row in by_passage]
    known = [n for n, interval in enumerate(means) if interval.mean == interval.mean]
    best = max(known, key=lambda n: means[n].mean) if known else None
    return [
        Level(
            text, cells, means[n],
            None if best is None or n == best else paired_bootstrap(by_passage[best], by_passage[n], seed=seed),
        )
        for n, (text, cells) in enumerate(found)
    ]  # fmt: skip


class Crossing(NamedTuple):
    """Two fields' levels, and the mean of the cells at each crossing; None where no cell is."""

    down: list[str]
    across: list[str]
    means: list[list[float | None]]


def pair_effect(values_CP: Float[np.ndarray, "C P"], down: Sequence[Any], across: Sequence[Any]) -> Crossing:
    """What two fields do together; `down` and `across` are the cells' values of them."""
    means = _means(np.asarray(values_CP, float))
    rows, columns, table = levels(down), levels(across), []
    for _, here in rows:
        found = [[means[c] for c in here if c in there and np.isfinite(means[c])] for _, there in columns]
        table.append([float(np.mean(values)) if values else None for values in found])
    return Crossing([text for text, _ in rows], [text for text, _ in columns], table)


def levels(settings: Sequence[Any]) -> list[tuple[str, list[int]]]:
    """The different values of a field and the cells that have each: numbers ascending, others as they appear."""
    distinct = list(dict.fromkeys(settings))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct)
    if numbers:
        distinct.sort()
    if not numbers or len(distinct) <= MOST_LEVELS:
        return [(text_of(value), [c for c, own in enumerate(settings) if own == value]) for value in distinct]
    thirds = [[distinct[i] for i in part] for part in np.array_split(np.arange(len(distinct)), 3)]
    return [
        (f"{text_of(part[0])} to {text_of(part[-1])}", [c for c, own in enumerate(settings) if own in part])
        for part in thirds
    ]


def searched(cells: Sequence[Values]) -> list[str]:
    """The fields that have at least two values among the cells."""
    names = list(dict.fromkeys(name for values in cells for name in values))
    return [name for name in names if len({text_of(values.get(name)) for values in cells}) > 1]
