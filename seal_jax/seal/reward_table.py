"""How good each reward is, as a table: reliability, ties, and what best-of-k by it is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from seal_jax.analysis.reliability import choose_best, reward_reliability
from seal_jax.analysis.statistics import Interval, paired_bootstrap
from seal_jax.seal.rewards import Score, Trial

TIES_BROKEN = "accuracy, then likelihood"  # the default: ReSTEM.break_ties
PAPERS_SEEDS = 3  # training runs behind a reward of the paper's: what costs are compared with


def rewards_by_seed(trials: Sequence[Sequence[Trial]], signal: str, seeds: int) -> np.ndarray:
    """[P, E, S]; NaN where a self-edit trained nothing, or diverged, and past the self-edits of a passage."""
    values = np.full((len(trials), max(map(len, trials)), seeds), np.nan)
    for p, row in enumerate(trials):
        for k, trial in enumerate(row):
            if not trial.problem:
                found = [getattr(score, signal) for score in trial.scores]
                values[p, k] = [math.nan if value is None else value for value in found]
    return values


def reward_table(
    trials: Sequence[Sequence[Trial]],
    base: Sequence[Score],
    rated: Sequence[Sequence[Trial]] | None,
    *,
    most: int,
    seed: int,
) -> dict[str, Any]:
    """Reward x seeds (up to `most`) -> reliability, cost, and what choosing by it is worth."""
    accuracy = rewards_by_seed(trials, "accuracy", most)
    counts = [k for k in (1, 2, PAPERS_SEEDS) if k <= most]
    rows = []
    likelihood = rewards_by_seed(trials, "log_likelihood", most)
    compared = {
        signal: (rewards_by_seed(trials, signal, most), [getattr(score, signal) for score in base])
        for signal in ("accuracy", "log_likelihood", "probability")
    }
    # Likelihoods are negative and some nats, accuracies a whole question apart: only equal accuracies change places.
    compared[TIES_BROKEN] = (accuracy + 1e-6 * likelihood, compared["accuracy"][1])
    for signal in ("accuracy", TIES_BROKEN, "log_likelihood", "probability"):
        rewards, untrained = compared[signal][0], np.array(compared[signal][1], float)
        for seeds in counts:
            found = reward_reliability(rewards, seeds=seeds, seed=seed)
            choice = choose_best(rewards, accuracy, untrained, seeds=seeds)
            rows.append(
                [
                    signal.replace("_", "-"),
                    seeds,
                    Interval(*found, len(trials), 0).text(1, ".2f"),
                    f"{100 * choice.ties:.0f} %",
                    f"{100 * choice.below_base:.0f} %",
                    paired_bootstrap(choice.average, choice.chosen, seed=seed).text(form="+.1f"),
                    f"{seeds / PAPERS_SEEDS:.2f}",
                ]
            )
    if rated is not None:
        rating = np.array([[math.nan if t.rating is None else t.rating for t in row] for row in rated])
        same = np.repeat(rating[:, :, None], most, axis=2)
        choice = choose_best(same, accuracy, np.full(len(rated), -np.inf), seeds=1)
        gain = paired_bootstrap(choice.average, choice.chosen, seed=seed).text(form="+.1f")
        rows.append(["proxy", 0, None, f"{100 * choice.ties:.0f} %", None, gain, "0, and a judge"])
    edits = sum(len(row) for row in trials)
    return {
        "title": "Rewards",
        "note": (
            f"{len(trials)} passages, {edits} self-edits, {most} training seeds each; 95 % bootstrap intervals "
            "over passages. Reliability: the share of the variance between a passage's self-edits that is not noise "
            "of the seed. Gain: accuracy of the winner under the seeds it was not chosen by, less that of a self-edit "
            "drawn blindly. Cost: training runs, the paper's (accuracy, 3 seeds) being 1."
        ),
        "columns": ["reward", "seeds", "reliability", "ties", "winner not above base", "gain, points", "cost"],
        "rows": rows,
    }
