"""What a search found: the best cell, how sure that is, and what each field does, on figures whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seal_jax.analysis.effects import MOST_LEVELS, compare, levels, main_effect, pair_effect, searched
from seal_jax.analysis.statistics import paired_bootstrap

NAN = math.nan


def draw(means, *, passages=60, noise=0.1, seed=0):
    """Cells whose passages differ much in how hard they are, and little in how they take to a cell."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=passages)
    return np.array([mean + hard + noise * rng.normal(size=passages) for mean in means])


def test_a_clear_winner_wins_every_resample_and_is_told_by_passage():
    values = draw([0.0, 0.5, -0.5])
    found = compare(values, seed=0)
    assert (found.best, found.order, found.candidates) == (1, [1, 0, 2], 3)
    np.testing.assert_allclose(found.share, [0, 1, 0])
    assert found.against[1][:3] == (0, 0, 0)
    assert found.against[0] == paired_bootstrap(values[1], values[0], seed=0)
    assert found.against[0].high < 0  # although passages differ ten times as much as cells do
    assert abs(found.optimism) < 0.05


def test_cells_that_are_alike_share_the_first_place():
    same = draw([0.0, 0.0, 0.0, 0.0], noise=0.3)
    found = compare(same, seed=0)
    assert found.share.sum() == pytest.approx(1)
    assert found.share.max() < 0.9
    assert found.optimism > 0.01  # the best of four that are alike was lucky
    equal = np.tile(same[:1], (4, 1))
    np.testing.assert_allclose(compare(equal, seed=0).share, 0.25)
    assert compare(equal, seed=0).optimism == pytest.approx(0, abs=1e-3)


def test_the_optimism_is_about_what_choosing_costs():
    gaps = []
    for seed in range(60):  # cells that are equally good: whatever the best has above 0 is luck
        values = np.random.default_rng(seed).normal(size=(6, 40))
        found = compare(values, seed=seed, resamples=500)
        gaps.append((values.mean(axis=1).max(), found.optimism))
    luck, told = np.mean(gaps, axis=0)
    assert told == pytest.approx(luck, rel=0.5)


def test_equals_are_ordered_by_the_second_figure():
    values, second = np.ones((3, 4)), np.array([[1.0] * 4, [3.0] * 4, [2.0] * 4])
    assert compare(values, seed=0).order == [0, 1, 2]
    assert compare(values, seed=0, second_CP=second).order == [1, 2, 0]


def test_cells_that_cannot_be_used_are_never_the_best():
    values = draw([0.0, 5.0, 1.0])
    found = compare(values, seed=0, usable=np.array([True, False, True]))
    assert (found.best, found.candidates) == (2, 2)
    assert found.share[1] == 0
    values[2] = NAN
    assert compare(values, seed=0, usable=np.array([True, False, True])).order[0] == 0
    nothing = compare(values, seed=0, usable=np.zeros(3, bool))
    assert (nothing.best, nothing.candidates, nothing.against) == (None, 0, [])


def test_one_passage_names_a_best_and_no_certainty():
    found = compare(np.array([[0.2], [0.4]]), seed=0)
    assert found.best == 1
    assert math.isnan(found.share[1])
    assert math.isnan(found.optimism)


@given(
    arrays(float, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.sampled_from([0.0, 0.25, 1.0, NAN])),
)
def test_shares_are_a_distribution_whatever_is_missing(values):
    found = compare(values, seed=0, resamples=50)
    assert sorted(found.order) == list(range(len(values)))
    if found.best is not None:
        assert found.share.sum() == pytest.approx(1)
        means = [np.nanmean(row) if np.isfinite(row).any() else -math.inf for row in values]
        assert means[found.best] == pytest.approx(max(means))


def test_a_main_effect_is_averaged_over_everything_else():
    rank, rate = [4, 4, 8, 8], [1e-3, 1e-4, 1e-3, 1e-4]
    values = draw([0.0, 1.0, 0.3, 1.3], noise=0.0)  # rate: +1 for the smaller; rank: +0.3 for the larger
    small, large = main_effect(values, rank, seed=0)
    assert (small.text, small.cells, large.text, large.cells) == ("4", [0, 1], "8", [2, 3])
    assert large.against is None
    assert small.against is not None
    assert small.against.mean == pytest.approx(-0.3)
    assert large.mean.mean - small.mean.mean == pytest.approx(0.3)
    first, second = main_effect(values, rate, seed=0)
    assert (first.text, second.text, first.against) == ("0.0001", "0.001", None)
    assert second.against is not None
    assert second.against.mean == pytest.approx(-1)


def test_a_crossing_without_a_cell_stays_empty():
    rows, columns, table = pair_effect(np.array([[1.0], [2.0], [4.0], [NAN]]), [4, 4, 8, 2], ["a", "b", "a", "a"])
    assert (rows, columns) == (["2", "4", "8"], ["a", "b"])
    assert table == [[None, None], [1, 2], [4, None]]


def test_many_numbers_are_looked_at_in_thirds():
    numbers = [1e-5 * 1.5**n for n in range(MOST_LEVELS + 1)]
    found = levels([*reversed(numbers)])
    assert len(found) == 3
    assert sorted(c for _, own in found for c in own) == list(range(len(numbers)))
    assert found[0][0].startswith("1e-05 to ")
    assert [text for text, _ in levels(["b", "a", "b"])] == ["b", "a"]
    assert [text for text, _ in levels([True, False])] == ["true", "false"]
    assert len(levels([str(n) for n in numbers])) == len(numbers)


def test_fields_of_a_single_value_are_not_searched():
    assert searched([{"a": 1, "b": (1,)}, {"a": 1, "b": (2,)}]) == ["b"]
