"""How far a reward can be trusted: known variances are found again, and choosing by a reward is counted right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy

from seal_jax.analysis.reliability import choose_best, reward_reliability, spearman


def noisy(noise: float, *, passages: int = 4000, edits: int = 5, seeds: int = 4) -> np.ndarray:
    """Rewards of self-edits whose true values have variance 1, about a passage's own level."""
    rng = np.random.default_rng(0)
    level = 10 * rng.normal(size=(passages, 1, 1))
    return level + rng.normal(size=(passages, edits, 1)) + noise * rng.normal(size=(passages, edits, seeds))


@pytest.mark.parametrize(("noise", "seeds"), [(1.0, 1), (1.0, 3), (2.0, 3), (0.5, 2)])
def test_the_variances_that_rewards_were_drawn_with_are_found(noise: float, seeds: int):
    found = reward_reliability(noisy(noise), seeds=seeds, resamples=200)
    assert found.mean == pytest.approx(1 / (1 + noise**2 / seeds), abs=0.02)
    assert found.low < found.mean < found.high
    assert found.high - found.low < 0.05


def test_it_is_the_correlation_of_two_independent_measurements():
    rewards = noisy(1.5, seeds=6)
    rewards -= rewards.mean(axis=(1, 2), keepdims=True)
    apart = [rewards[:, :, :3].mean(axis=2).ravel(), rewards[:, :, 3:].mean(axis=2).ravel()]
    within = [x.reshape(-1, 5) - x.reshape(-1, 5).mean(axis=1, keepdims=True) for x in apart]
    correlation = np.corrcoef(within[0].ravel(), within[1].ravel())[0, 1]
    assert reward_reliability(rewards, seeds=3, resamples=100).mean == pytest.approx(correlation, abs=0.02)


def test_noise_alone_is_worth_nothing_and_no_noise_everything():
    rng = np.random.default_rng(1)
    assert reward_reliability(rng.normal(size=(500, 5, 3)), seeds=3).mean < 0.06
    same = np.repeat(rng.normal(size=(20, 5, 1)), 3, axis=2)
    assert reward_reliability(same, seeds=1) == (1, 1, 1)
    assert math.isnan(reward_reliability(np.ones((4, 3, 2)), seeds=1).mean)


def test_self_edits_without_a_reward_are_left_out():
    rewards = noisy(1.0, passages=50)
    holed = np.concatenate([rewards, np.full((50, 1, 4), np.nan)], axis=1)
    holed[:, 5, 0] = 1e6  # one seed is there, the others are not
    assert reward_reliability(holed, seeds=3) == reward_reliability(rewards, seeds=3)
    with pytest.raises(ValueError, match="no passage has two self-edits"):
        reward_reliability(holed[:, 4:], seeds=1)
    with pytest.raises(ValueError, match=r"shape \(50, 5, 1\).*at least 2 training seeds"):
        reward_reliability(rewards[:, :, :1], seeds=1)


def test_the_same_seed_gives_the_same_interval():
    rewards = noisy(1.0, passages=20)
    assert reward_reliability(rewards, seeds=1, seed=3) == reward_reliability(rewards, seeds=1, seed=3)
    assert reward_reliability(rewards, seeds=1, seed=3) != reward_reliability(rewards, seeds=1, seed=4)


def test_choosing_by_hand():
    # passage 0: by seed 0 the second wins, by seed 1 the first; passage 1: a tie under both, the first is taken
    rewards = np.array([[[0.2, 0.9], [0.8, 0.1]], [[0.5, 0.5], [0.5, 0.5]]])
    accuracy = np.array([[[0.0, 1.0], [0.5, 0.25]], [[0.75, 0.25], [0.0, 0.0]]])
    found = choose_best(rewards, accuracy, np.array([0.85, 0.0]), seeds=1)
    assert found.ties == 0.5
    assert found.below_base == 0.25  # of passage 0 by seed 0 only: 0.8 against 0.85
    np.testing.assert_allclose(found.chosen, [(0.25 + 0.0) / 2, (0.25 + 0.75) / 2])
    np.testing.assert_allclose(found.average, [(0.625 + 0.25) / 2, (0.125 + 0.375) / 2])
    both = choose_best(rewards, accuracy, np.array([0.0, 0.6]), seeds=2)
    assert (both.ties, both.below_base) == (0.5, 0.5)
    assert np.isnan(both.chosen).all()  # no seed is left to look through


def test_what_diverged_is_never_chosen():
    rewards = np.array([[[np.nan, np.nan], [0.1, 0.1]]])
    found = choose_best(rewards, np.array([[[np.nan, np.nan], [0.5, 0.5]]]), np.zeros(1), seeds=1)
    np.testing.assert_allclose(found.chosen, [0.5])
    np.testing.assert_allclose(found.average, [0.5])


def test_spearman_is_scipys_and_undefined_where_nothing_differs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 5, 7), rng.normal(size=7)
        np.testing.assert_allclose(spearman(one, other), scipy.stats.spearmanr(one, other).statistic)
    assert np.isnan(spearman([1.0, 1.0], [1.0, 2.0]))
