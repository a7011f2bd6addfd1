"""How far a reward can be trusted: the reliability of rewards that are noisy from one training run to the next.

A self-edit's reward differs between training seeds. What selection needs is the difference between the self-edits of
one passage. For k seeds, reliability is the variance of their true rewards over that of their observed k-seed means,

    reliability(k) = edits / (edits + noise / k),

1 where seeds do not matter, 0 where a ranking is luck. `edits` and `noise` are the components of a one-way analysis of
variance within passages (Shrout and Fleiss 1979, case 1). NumPy, on the host.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy

from seal_jax.analysis.statistics import RESAMPLES, bounds

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Float


class Reliability(NamedTuple):
    """Of a k-seed mean, with a 95 % percentile bootstrap interval over passages. NaN where rewards never differ."""

    mean: float
    low: float
    high: float


def reward_reliability(
    rewards: Float[np.ndarray, "P E S"], *, seeds: int, seed: int = 0, resamples: int = RESAMPLES
) -> Reliability:
    """The reliability of the mean of `seeds` rewards, from S training seeds of E self-edits of each of P passages.

    Self-edits that lack a reward (NaN) under any seed are left out. `seed` is the bootstrap's.

    Raises:
        ValueError: fewer than two training seeds, or no passage with two self-edits that have all their rewards.
    """
    rewards = np.asarray(rewards, float)
    if rewards.ndim != 3 or rewards.shape[2] < 2:
        raise ValueError(f"rewards have shape {rewards.shape}; expected [P, E, S] with at least 2 training seeds S")
    parts = np.array([part for passage in rewards if (part := _sums(passage)) is not None])
    if not len(parts):
        raise ValueError("no passage has two self-edits with a reward under every training seed")
    drawn = np.random.default_rng(seed).integers(len(parts), size=(resamples, len(parts)))
    resampled = _reliability(parts[drawn].sum(axis=1), rewards.shape[2], seeds)
    mean = float(_reliability(parts.sum(axis=0), rewards.shape[2], seeds))
    return Reliability(mean, *bounds(resampled[~np.isnan(resampled)]))


def _sums(passage: Float[np.ndarray, "E S"]) -> tuple[float, float, int, int] | None:
    """Sums of squares between self-edits and within them, and their degrees of freedom."""
    whole = passage[~np.isnan(passage).any(axis=1)]
    if len(whole) < 2:
        return None
    means = whole.mean(axis=1)
    between = whole.shape[1] * ((means - means.mean()) ** 2).sum()
    return between, ((whole - means[:, None]) ** 2).sum(), len(whole) - 1, len(whole) * (whole.shape[1] - 1)


def _reliability(sums: Float[np.ndarray, "... 4"], trained: int, seeds: int) -> Float[np.ndarray, "..."]:
    between, within, edit_freedom, seed_freedom = np.moveaxis(np.asarray(sums, float), -1, 0)
    noise = within / seed_freedom
    edits = np.maximum(between / edit_freedom - noise, 0) / trained
    observed = edits + noise / seeds
    return np.where(observed > 0, edits / np.where(observed > 0, observed, 1), np.nan)


class Choice(NamedTuple):
    """What best-of-E by a reward comes to. Fractions of passages, and accuracies on seeds it was not chosen by."""

    ties: float  # passages whose best reward is shared by several self-edits
    below_base: float  # passages whose winner does not beat the base model's reward, on the seeds it was chosen by
    chosen: np.ndarray  # [P] accuracy of the winner on the other seeds; NaN where there are none
    average: np.ndarray  # [P] accuracy of a self-edit drawn blindly, on the same seeds


def spearman(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> float:
    """The correlation of ranks, equals sharing theirs; NaN where either side has no two values that differ."""
    ranks = [scipy.stats.rankdata(np.asarray(side, float)) for side in (one, other)]
    a, b = (side - side.mean() for side in ranks)
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else np.nan


def choose_best(
    rewards: Float[np.ndarray, "P E S"],
    accuracy: Float[np.ndarray, "P E S"],
    base: Float[np.ndarray, "P"],
    *,
    seeds: int,
) -> Choice:
    """Picks each passage's best self-edit by the mean of `seeds` rewards, and looks at it through the other seeds.

    Averaged over all ways to take `seeds` of S. The first of equals wins, as in the paper's code. `base` is the base
    model's reward of the same kind.
    """
    total = rewards.shape[2]
    ties, below, chosen, average = [], [], [], []
    for taken in itertools.combinations(range(total), seeds):
        rest = [s for s in range(total) if s not in taken]
        means = rewards[:, :, taken].mean(axis=2).round(12)  # equal sums in another order are equal
        means = np.where(np.isnan(rewards).any(axis=2), -np.inf, means)
        best = means.max(axis=1)
        ties.append((means == best[:, None]).sum(axis=1) > 1)
        below.append(~(best > base))
        winner = means.argmax(axis=1)
        if rest:
            others = accuracy[:, :, rest].mean(axis=2)
            chosen.append(others[np.arange(len(others)), winner])
            average.append(np.nanmean(others, axis=1))
    nothing = np.full(len(rewards), np.nan)
    return Choice(
        ties=float(np.mean(ties)),
        below_base=float(np.mean(below)),
        chosen=np.mean(chosen, axis=0) if chosen else nothing,
        average=np.mean(average, axis=0) if average else nothing,
    )
