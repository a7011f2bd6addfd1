"""How sure a figure is: means over passages by the bootstrap, counts of tasks by Wilson (SciPy, on the host).

The questions of one passage share its adapter, so they are not independent: resampling questions would give intervals
that are too narrow. Every bootstrap here takes one value a passage (its accuracy, its mean log-likelihood) and
resamples passages. Differences are paired by passage, which removes how hard each passage is. The interval of a mean is
BCa (Efron, 1987, "Better bootstrap confidence intervals", JASA 82): percentiles corrected for bias and skewness.

With few passages it is far too narrow: a nominal 95 % covered 49 % with 2 passages, 77 % with 3, 88 % with 5 and with
8 (normal values; differences of accuracies: 52, 72, 81 and 88 %). Student's t covers 95 % of normal values by
construction, of such differences 81, 94, 95 and 94 %, and of skewed (exponential) values 91, 88, 88 and 89 %, where BCa
covers 45, 66, 81 and 87 %. At 20 passages both cover alike, and from there on it is BCa. Where each task is either
solved or not, and tasks are few, `wilson` covers: none solved of 8 is no proof that none can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEW = 20  # passages below which the interval of a mean is Student's
FEWEST = 8  # passages of a verdict ("a clear gain"): even an interval that covers says little over fewer
BATCH = 500  # resamples drawn at once: 2,067 passages take 8 MiB


class Interval(NamedTuple):
    """A mean over passages (or a share of tasks) and its 95 % interval, in the unit of the values."""

    mean: float  # NaN without a passage
    low: float  # NaN with fewer than two passages: one passage says nothing of how passages differ
    high: float
    passages: int  # that the mean is over
    dropped: int  # passages without a value (None or NaN), left out

    def as_json(self) -> dict[str, float | None]:
        """The mean and its bounds; None where there is none."""
        return {name: None if math.isnan(x) else x for name, x in zip(("mean", "low", "high"), self[:3], strict=True)}

    def text(self, scale: float = 100, form: str = ".1f") -> str:
        """`12.3 [10.1, 14.5]`, times `scale`; without bounds where there are none, a dash where there is no mean."""
        mean, low, high = (f"{scale * value:{form}}" for value in self[:3])
        return "-" if math.isnan(self.mean) else mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"


Range = tuple[float, float]
SHARE: Range = (0.0, 1.0)  # what the mean of accuracies may be
GAIN: Range = (-1.0, 1.0)  # ... and of their differences


def bootstrap_mean(
    values_P: Sequence[float | None] | np.ndarray,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    within: Range = (-math.inf, math.inf),
) -> Interval:
    """Mean of one value a passage, with a 95 % BCa bootstrap interval (Student's, of fewer than `FEW` passages).

    The same seed gives the same interval. None and NaN are passages without a value: left out and counted. `within` is
    what the mean may be at all: no bound lies outside. Raises ValueError for an infinite value.
    """
    return _interval_of_mean(_as_floats(values_P, "values_P"), seed, resamples, within)


def paired_bootstrap(
    before_P: Sequence[float | None] | np.ndarray,
    after_P: Sequence[float | None] | np.ndarray,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    within: Range = (-math.inf, math.inf),
) -> Interval:
    """Mean of after - before over the same passages in the same order, with an interval as `bootstrap_mean`'s.

    A passage that lacks either value is left out of both and counted once. Raises ValueError if the two differ in
    length or hold an infinite value.
    """
    before_P, after_P = _as_floats(before_P, "before_P"), _as_floats(after_P, "after_P")
    if len(before_P) != len(after_P):
        raise ValueError(
            f"before_P has {len(before_P)} passages and after_P has {len(after_P)}: a paired difference needs the same "
            "passages in the same order. Give None for a passage that has no value."
        )
    return _interval_of_mean(after_P - before_P, seed, resamples, within)


def _as_floats(values_P: Sequence[float | None] | np.ndarray, name: str) -> np.ndarray:
    floats_P = np.asarray(values_P, dtype=np.float64)  # None becomes NaN
    if floats_P.ndim != 1:
        raise ValueError(f"{name} has shape {floats_P.shape}; expected one value a passage, shape [P].")
    infinite = np.flatnonzero(np.isinf(floats_P))
    if infinite.size:
        raise ValueError(
            f"{name}[{infinite[0]}] is {floats_P[infinite[0]]}: a mean needs finite values (None if missing)."
        )
    return floats_P


def _interval_of_mean(values_P: np.ndarray, seed: int, resamples: int, within: Range) -> Interval:
    present_P = values_P[~np.isnan(values_P)]
    passages, dropped = len(present_P), len(values_P) - len(present_P)
    mean = float(present_P.mean()) if passages else np.nan
    if passages < 2:
        return Interval(mean, np.nan, np.nan, passages, dropped)
    if np.allclose(present_P, present_P[0], rtol=1e-12, atol=1e-12):  # equal but for rounding: BCa is undefined
        return Interval(mean, mean, mean, passages, dropped)
    if passages < FEW:
        half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, passages - 1) * scipy.stats.sem(present_P))
        return Interval(mean, max(mean - half, within[0]), min(mean + half, within[1]), passages, dropped)
    found = scipy.stats.bootstrap(
        (present_P,), np.mean, vectorized=True, n_resamples=resamples, batch=BATCH, confidence_level=CONFIDENCE,
        method="BCa", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = map(float, found.confidence_interval)
    if math.isnan(low + high):  # all resamples on one side of the mean
        low, high = bounds(found.bootstrap_distribution)
    return Interval(mean, low, high, passages, dropped)


def bootstrap_ratio(above_P: Sequence[float | None], below_P: Sequence[float | None], *, seed: int) -> Interval:
    """Mean of `above` over mean of `below`, with a 95 % percentile bootstrap interval: not a mean of ratios.

    What lacks either value is left out of both; NaN where the mean below is 0, and such resamples are left out.
    """
    pairs = np.stack([_as_floats(above_P, "above_P"), _as_floats(below_P, "below_P")])
    present = pairs[:, ~np.isnan(pairs).any(axis=0)]
    count, dropped = present.shape[1], pairs.shape[1] - present.shape[1]
    above, below = present.sum(axis=1)
    if not below > 0:
        return Interval(np.nan, np.nan, np.nan, count, dropped)
    if count == 1:
        return Interval(float(above / below), np.nan, np.nan, count, dropped)
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    above_R, below_R = present[:, drawn].sum(axis=2)
    return Interval(float(above / below), *bounds(above_R[below_R > 0] / below_R[below_R > 0]), count, dropped)


def wilson(successes: int, tried: int) -> Interval:
    """The share of successes among independent trials, with Wilson's 95 % score interval; `passages` are the trials.

    Wilson, 1927, "Probable inference, the law of succession, and statistical inference", JASA 22; recommended for few
    trials by Brown, Cai and DasGupta, 2001, "Interval estimation for a binomial proportion", Statistical Science 16. It
    stays within [0, 1] and has a width where all or none succeed. Several self-edits of one task are not independent:
    over them the interval is about these tasks only; for other tasks it would be too narrow.

    NaN without a trial. Raises ValueError unless 0 <= successes <= tried.
    """
    if not 0 <= successes <= tried:
        raise ValueError(f"{successes} successes of {tried} trials; expected from 0 to as many as there are trials")
    if tried == 0:
        return Interval(np.nan, np.nan, np.nan, 0, 0)
    low, high = scipy.stats.binomtest(successes, tried).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / tried, float(low), float(high), tried, 0)


def bounds(resampled: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of a resampled figure; NaN without one."""
    if not len(resampled):
        return np.nan, np.nan
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)
