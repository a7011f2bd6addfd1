"""Intervals over passages: exact where they can be checked by hand, honest where values are missing, and covering."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seal_jax.analysis.statistics import FEW, GAIN, SHARE, bootstrap_mean, bootstrap_ratio, paired_bootstrap, wilson


def test_same_seed_same_interval_and_another_seed_another():
    values_P = np.random.default_rng(0).uniform(size=30)
    assert bootstrap_mean(values_P, seed=1) == bootstrap_mean(values_P, seed=1)
    assert bootstrap_mean(values_P, seed=1) != bootstrap_mean(values_P, seed=2)


def test_interval_matches_the_normal_approximation_for_many_passages():
    values_P = np.random.default_rng(0).normal(0.4, 0.3, size=2_067)
    interval = bootstrap_mean(values_P, seed=0)
    half_width = 1.96 * values_P.std() / math.sqrt(len(values_P))
    assert interval.mean == pytest.approx(values_P.mean())
    assert interval.low == pytest.approx(values_P.mean() - half_width, abs=0.05 * half_width)
    assert interval.high == pytest.approx(values_P.mean() + half_width, abs=0.05 * half_width)


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap_mean([0.25] * 5, seed=0)[:3] == (0.25, 0.25, 0.25)
    assert paired_bootstrap([0.0, 0.5, 1.0], [0.25, 0.75, 1.25], seed=0)[:3] == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(("passages", "least"), [(2, 0.92), (3, 0.92), (5, 0.92), (12, 0.92), (60, 0.91)])
def test_interval_covers_the_truth(passages, least):
    """Nominally 95 %, however few the passages."""
    rng = np.random.default_rng(7)
    truth, trials = 0.3, 400
    hits = 0
    for trial in range(trials):
        before_P = rng.uniform(size=passages)
        after_P = before_P + truth + rng.normal(0, 0.2, size=passages)
        interval = paired_bootstrap(before_P, after_P, seed=trial, resamples=1_000)
        hits += interval.low <= truth <= interval.high
    assert least <= hits / trials <= 0.985


def test_the_interval_is_bca_and_leans_the_way_the_values_do():
    """Efron's correction moves both bounds of a mean towards the long tail; percentiles of resamples know no tail."""
    values_P = np.random.default_rng(3).exponential(size=40)
    interval = bootstrap_mean(values_P, seed=0)
    drawn = values_P[np.random.default_rng(0).integers(40, size=(10_000, 40))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert interval.low > low + 0.005 and interval.high > high + 0.005


def test_few_passages_have_students_interval_within_what_can_be():
    mean, low, high, *_ = bootstrap_mean([0.2, 0.6, 0.5], seed=0)
    half = 4.302653 * np.std([0.2, 0.6, 0.5], ddof=1) / math.sqrt(3)
    assert (low, high) == (pytest.approx(mean - half, abs=1e-6), pytest.approx(mean + half, abs=1e-6))
    assert bootstrap_mean([0.2, 0.6, 0.5], seed=0, within=SHARE)[1:3] == (0.0, pytest.approx(min(mean + half, 1.0)))
    assert paired_bootstrap([0.0, 0.0], [0.9, 0.1], seed=0, within=GAIN)[1:3] == (-1.0, 1.0)
    nineteen, twenty = (np.random.default_rng(0).uniform(size=n) for n in (FEW - 1, FEW))
    assert bootstrap_mean(nineteen, seed=0) == bootstrap_mean(nineteen, seed=1)  # nothing is drawn
    assert bootstrap_mean(twenty, seed=0) != bootstrap_mean(twenty, seed=1)


def test_pairing_removes_how_hard_each_passage_is():
    rng = np.random.default_rng(0)
    before_P = rng.uniform(size=40)
    after_P = before_P + 0.1 + rng.normal(0, 0.02, size=40)
    difference = paired_bootstrap(before_P, after_P, seed=0)
    alone = bootstrap_mean(after_P, seed=0)
    assert difference.low > 0.08
    assert difference.high - difference.low < (alone.high - alone.low) / 5


def test_missing_passages_are_dropped_from_both_and_counted():
    interval = paired_bootstrap([0.0, None, 0.5, float("nan")], [1.0, 1.0, None, float("nan")], seed=0)
    assert (interval.mean, interval.passages, interval.dropped) == (1.0, 1, 3)
    interval = bootstrap_mean([0.2, None, 0.4, float("nan")], seed=0)
    assert interval.mean == pytest.approx(0.3)
    assert (interval.passages, interval.dropped) == (2, 2)


def test_one_passage_has_a_mean_but_no_interval_and_none_has_neither():
    one = bootstrap_mean([0.4], seed=0)
    assert one.mean == 0.4 and math.isnan(one.low) and math.isnan(one.high) and one.passages == 1
    none = bootstrap_mean([], seed=0)
    assert math.isnan(none.mean) and math.isnan(none.low) and none.passages == 0


def test_more_resamples_than_one_batch(monkeypatch):
    monkeypatch.setattr("seal_jax.analysis.statistics.BATCH", 64)
    interval = bootstrap_mean(np.linspace(0, 1, 21), seed=0, resamples=500)
    assert interval.low < 0.5 < interval.high


def test_a_ratio_is_of_means_and_leaves_out_what_is_incomplete():
    found = bootstrap_ratio([1.0, 0.0, 0.5, None], [2.0, 1.0, 0.0, 9.0], seed=0)
    assert found.mean == 0.5  # 1.5 over 3; a mean of ratios would have no value
    assert (found.passages, found.dropped) == (3, 1)
    assert found.low < 0.5 < found.high
    constant = bootstrap_ratio([0.3] * 5, [0.6] * 5, seed=1)
    assert constant[:3] == pytest.approx((0.5, 0.5, 0.5))
    assert math.isnan(bootstrap_ratio([0.0, 1.0], [0.0, 0.0], seed=0).mean)
    assert math.isnan(bootstrap_ratio([1.0], [2.0], seed=0).low)


@pytest.mark.parametrize(
    ("successes", "tried", "low", "high"),
    # Newcombe, 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(successes, tried, low, high):
    found = wilson(successes, tried)
    assert found.mean == successes / tried and found.passages == tried
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("tried", [1, 2, 8, 40, 1000])
def test_wilsons_interval_holds_the_share_stays_within_bounds_and_treats_failures_as_it_does_successes(tried):
    found = [wilson(successes, tried) for successes in range(tried + 1)]
    for interval, mirrored in zip(found, reversed(found), strict=True):
        assert 0 <= interval.low <= interval.mean <= interval.high <= 1
        assert interval.high - interval.low > 0  # even where all or none succeed
        assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-12)
    assert found[0].low == 0.0 and found[-1].high == 1.0
    assert [interval.low for interval in found] == sorted(interval.low for interval in found)


@pytest.mark.parametrize("tried", [8, 20, 40])
def test_wilsons_interval_covers_the_truth_on_average(tried):
    """Exactly reckoned, over all shares; for one share it may be several points off, either way."""
    successes = np.arange(tried + 1)
    found = [wilson(int(k), tried) for k in successes]
    ways = np.array([math.comb(tried, int(k)) for k in successes], float)
    coverage = []
    for truth in np.linspace(0.005, 0.995, 199):
        probability = ways * truth**successes * (1 - truth) ** (tried - successes)
        coverage.append(sum(p for p, i in zip(probability, found, strict=True) if i.low <= truth <= i.high))
    assert 0.945 <= np.mean(coverage) <= 0.965
    assert min(coverage) > 0.8


def test_wilsons_interval_of_nothing_is_no_number_and_impossible_counts_are_errors():
    assert math.isnan(wilson(0, 0).mean) and math.isnan(wilson(0, 0).low)
    for successes, tried in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=rf"{successes} successes of {tried} trials; expected"):
            wilson(successes, tried)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="before_P has 2 passages and after_P has 3"):
        paired_bootstrap([0, 1], [0, 1, 1], seed=0)
    with pytest.raises(ValueError, match=r"values_P\[1\] is -inf"):
        bootstrap_mean([0.0, -math.inf], seed=0)
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        bootstrap_mean([[0.0, 1.0]], seed=0)
