"""What each augmentation makes of a grid, and that its inverse takes every grid back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seal_jax.domains.arc.augmentations import (
    CHAIN,
    FLIPS,
    IDENTITY,
    REPEAT,
    ROTATIONS,
    SIZE,
    TRANSPOSE,
    VIEWS,
    Augmentation,
    basic,
    map_pairs,
    map_task,
    permute_colours,
    permute_demonstrations,
    random_colours,
    shift,
    then,
)
from seal_jax.domains.arc.grids import Grid, Pair, Task, as_grid, fits

GRID = as_grid([[1, 2, 3], [4, 5, 6]])
BASIC = (*(a for a in basic(np.random.default_rng(0)) if not a.name.startswith("shift")), shift(1, 2))
GROUPS = {"basic": BASIC, "size": SIZE, "chain": CHAIN, "repeat": REPEAT}
ALL = {a.name: a for group in (*GROUPS.values(), VIEWS.values()) for a in group}
ONTO = {
    name: a
    for name, a in ALL.items()
    if name.split("_")[0] in ("identity", "rotate", "flip", "shift", "transpose") and "double" not in name
}

# Every augmentation but the random ones, worked out by hand: what it makes of GRID
MADE = {
    "identity": ["123", "456"],
    "rotate_90": ["36", "25", "14"],
    "rotate_180": ["654", "321"],
    "rotate_270": ["41", "52", "63"],
    "flip_rows": ["456", "123"],
    "flip_columns": ["321", "654"],
    "transpose": ["14", "25", "36"],
    "reflect_below": ["123", "456", "456", "123"],
    "reflect_above": ["456", "123", "123", "456"],
    "reflect_right": ["123321", "456654"],
    "reflect_left": ["321123", "654456"],
    "shift_1_2": ["564", "231"],
    "double_resolution": ["112233", "112233", "445566", "445566"],
    "double_height": ["123", "123", "456", "456"],
    "double_width": ["112233", "445566"],
    "rotate_90_double_resolution": ["3366", "3366", "2255", "2255", "1144", "1144"],
    "rotate_180_double_resolution": ["665544", "665544", "332211", "332211"],
    "rotate_270_double_resolution": ["4411", "4411", "5522", "5522", "6633", "6633"],
    "flip_rows_double_resolution": ["445566", "445566", "112233", "112233"],
    "flip_columns_double_resolution": ["332211", "332211", "665544", "665544"],
    "transpose_double_resolution": ["1144", "1144", "2255", "2255", "3366", "3366"],
    "tile_rows": ["123", "456", "123", "456"],
    "tile_columns": ["123123", "456456"],
    "tile_both": ["123123", "456456", "123123", "456456"],
}


def grids(most: int = 30) -> st.SearchStrategy[Grid]:
    sides = st.tuples(st.integers(1, most), st.integers(1, most))
    return sides.flatmap(lambda shape: arrays(np.int8, shape, elements=st.integers(0, 9))).map(as_grid)


def all_augmentations() -> st.SearchStrategy[Augmentation]:
    """The fixed ones, and the random ones with all their parameters."""
    shifts = st.builds(shift, st.integers(0, 3), st.integers(0, 3))
    colours = st.permutations(range(1, 10)).map(lambda order: permute_colours([0, *order]))
    return st.one_of(st.sampled_from(list(ALL.values())), shifts, colours)


def onto_augmentations() -> st.SearchStrategy[Augmentation]:
    """Those that make every grid of some grid."""
    shifts = st.builds(shift, st.integers(0, 3), st.integers(0, 3))
    colours = st.permutations(range(1, 10)).map(lambda order: permute_colours([0, *order]))
    return st.one_of(st.sampled_from(list(ONTO.values())), shifts, colours)


def same(one: Grid, other: Grid) -> bool:
    return one.dtype == other.dtype == np.int8 and np.array_equal(one, other)


# What they make


def test_the_groups_have_the_papers_augmentations():
    names = {group: [a.name for a in augmentations] for group, augmentations in GROUPS.items()}
    assert {group: len(of_group) for group, of_group in names.items()} == {
        "basic": 11,
        "size": 3,
        "chain": 6,
        "repeat": 3,
    }
    assert [*sorted(itertools.chain(*names.values()))] == sorted(MADE.keys() - {"identity"})
    assert all("_".join(name.split("_")[-2:]) == "double_resolution" for name in names["chain"])


@pytest.mark.parametrize("name", MADE)
def test_each_augmentation_makes_what_is_worked_out_by_hand(name: str):
    assert ["".join(map(str, row)) for row in ALL[name].apply(GRID).tolist()] == MADE[name]


def test_the_views_of_inference():
    assert {*VIEWS} == {"identity", "transpose", "flip_rows", "flip_columns", "rotate_90", "rotate_180"}
    assert all(name == view.name for name, view in VIEWS.items())
    assert {*VIEWS} <= {*ONTO}  # else some answer could not be taken back


@settings(deadline=None)
@given(all_augmentations(), grids())
def test_what_is_made_is_a_grid_of_the_same_colours(augmentation: Augmentation, grid: Grid):
    made = augmentation.apply(grid)
    assert made.dtype == np.int8
    assert made.flags.c_contiguous
    assert not made.flags.writeable
    assert made.size % grid.size == 0
    if not augmentation.name.startswith("colours"):
        times = made.size // grid.size
        assert np.array_equal(np.bincount(made.ravel()), times * np.bincount(grid.ravel()))


@settings(deadline=None)
@given(grids())
def test_sides_are_as_the_names_say(grid: Grid):
    height, width = grid.shape
    for name, augmentation in ALL.items():
        rows, columns = augmentation.apply(grid).shape
        turned = name.startswith(("rotate_90", "rotate_270", "transpose"))
        up = 2 if name.endswith(("resolution", "both", "height", "tile_rows", "above", "below")) else 1
        along = 2 if name.endswith(("resolution", "both", "width", "tile_columns", "left", "right")) else 1
        expected = (width, height) if turned else (height, width)
        assert (rows, columns) == (up * expected[0], along * expected[1]), name


# Inverses


@settings(deadline=None)
@given(all_augmentations(), grids())
def test_the_inverse_takes_every_grid_back(augmentation: Augmentation, grid: Grid):
    assert same(augmentation.inverse(augmentation.apply(grid)), grid)


@settings(deadline=None)
@given(onto_augmentations(), grids())
def test_rotations_flips_shifts_and_colours_invert_any_grid(augmentation: Augmentation, grid: Grid):
    assert same(augmentation.apply(augmentation.inverse(grid)), grid)


@settings(deadline=None)
@given(all_augmentations(), grids(6))
def test_an_inverse_is_right_or_refuses(augmentation: Augmentation, grid: Grid):
    """Of a grid that the augmentation never makes, its inverse raises and says so; it never returns a part of it."""
    try:
        original = augmentation.inverse(grid)
    except ValueError as error:
        assert augmentation.name not in ONTO
        assert "this grid of" in str(error)
    else:
        assert same(augmentation.apply(original), grid)


@pytest.mark.parametrize("name", sorted(MADE.keys() - ONTO.keys()))
def test_one_changed_cell_cannot_be_taken_back(name: str):
    made = ALL[name].apply(GRID).copy()
    made[0, 0] = 9
    with pytest.raises(ValueError, match=r"this grid of \d+ x \d+ is not what \w+ makes of any grid"):
        ALL[name].inverse(as_grid(made))


@pytest.mark.parametrize("name", sorted(MADE.keys() - ONTO.keys()))
def test_one_cell_cannot_be_taken_back(name: str):
    with pytest.raises(ValueError, match=r"this grid of 1 x 1 is not what"):
        ALL[name].inverse(as_grid([[3]]))


@settings(deadline=None)
@given(all_augmentations(), all_augmentations(), grids(8))
def test_one_after_the_other(first: Augmentation, second: Augmentation, grid: Grid):
    both = then(first, second)
    assert same(both.apply(grid), second.apply(first.apply(grid)))
    assert same(both.inverse(both.apply(grid)), grid)


@settings(deadline=None)
@given(grids())
def test_turns_and_flips_are_those_of_a_square(grid: Grid):
    quarter, half, three = (rotation.apply for rotation in ROTATIONS)
    rows, columns = (flip.apply for flip in FLIPS)
    assert same(quarter(quarter(grid)), half(grid))
    assert same(quarter(half(grid)), three(grid))
    assert same(rows(columns(grid)), half(grid))
    assert same(rows(TRANSPOSE.apply(grid)), quarter(grid))  # anti-clockwise


# What is drawn


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_one_shift_a_use(seed: int):
    """The generator is used once, when the group is made: afterwards every grid is moved alike, by 0 to 3 cells."""
    group, again = basic(np.random.default_rng(seed)), basic(np.random.default_rng(seed))
    assert [a.name for a in group] == [a.name for a in again]
    (move,) = (a for a in group if a.name.startswith("shift"))
    down, right = map(int, move.name.split("_")[1:])
    assert 0 <= down <= 3
    assert 0 <= right <= 3
    for side in (4, 7, 30):
        grid = np.zeros((side, side), np.int8)
        grid[0, 0] = 1
        assert move.apply(as_grid(grid))[down, right] == 1


def test_every_shift_is_drawn():
    names = {a.name for seed in range(300) for a in basic(np.random.default_rng(seed))}
    assert {name for name in names if name.startswith("shift")} == {
        f"shift_{down}_{right}" for down in range(4) for right in range(4)
    }


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), grids())
def test_the_background_keeps_its_colour(seed: int, grid: Grid):
    made = random_colours(np.random.default_rng(seed)).apply(grid)
    assert np.array_equal(made == 0, grid == 0)
    assert len(np.unique(made)) == len(np.unique(grid))  # no two colours become one


def test_every_colour_may_become_every_other():
    made = [random_colours(np.random.default_rng(seed)).apply(as_grid([range(1, 10)]))[0] for seed in range(200)]
    assert all({*colours.tolist()} == {*range(1, 10)} for colours in np.transpose(made))


def test_colours_become_what_the_permutation_says():
    permutation = [0, 3, 1, 2, 4, 5, 6, 7, 9, 8]
    assert permute_colours(permutation).apply(as_grid([[0, 1, 2], [3, 8, 9]])).tolist() == [[0, 3, 1], [2, 9, 8]]


@pytest.mark.parametrize("permutation", [[1, 0, *range(2, 10)], [0, 1, 2], [0, *[1] * 9], range(11)])
def test_what_is_no_permutation_of_colours(permutation: list[int]):
    with pytest.raises(ValueError, match=r"expected a permutation of 0 to 9 that begins with 0"):
        permute_colours(permutation)


# Tasks


def task(*sides: int) -> Task:
    pairs = [Pair(as_grid(np.full((side, 1), i + 1)), as_grid(np.full((side, 2), i))) for i, side in enumerate(sides)]
    return Task("t", tuple(pairs[:-1]), tuple(pairs[-1:]))


def test_inputs_and_outputs_are_transformed_alike():
    before = task(1, 2, 3)
    after = map_task(before, TRANSPOSE)
    assert after.id == before.id
    for old, new in zip(before.train + before.test, after.train + after.test, strict=True):
        assert same(new.input, TRANSPOSE.apply(old.input))
        assert same(new.output, TRANSPOSE.apply(old.output))
    for old, new in zip(before.train, map_pairs(before.train, TRANSPOSE), strict=True):
        assert isinstance(new, Pair)
        assert same(new.output, TRANSPOSE.apply(old.output))
    assert same(map_pairs(before.test, TRANSPOSE)[0].output, after.test[0].output)


def test_a_task_without_demonstrations_is_mapped_too():
    assert map_task(task(2), IDENTITY).train == ()


@pytest.mark.parametrize("turn", [IDENTITY, TRANSPOSE])
def test_a_task_fits_until_a_side_is_over_30(turn: Augmentation):
    assert fits(map_task(map_task(task(3, 15), turn), SIZE[0]))
    assert not fits(map_task(map_task(task(3, 16), turn), SIZE[0]))
    assert not fits(map_task(map_task(task(16, 3), turn), SIZE[0]))


@settings(deadline=None)
@given(st.permutations(range(4)))
def test_the_order_of_demonstrations(order: list[int]):
    before = task(1, 2, 3, 4, 5)
    after = permute_demonstrations(before, order)
    assert [len(pair.input) for pair in after.train] == [i + 1 for i in order]
    assert after.test is before.test
    back = permute_demonstrations(after, np.argsort(order).tolist())
    assert [pair.input is old.input for pair, old in zip(back.train, before.train, strict=True)] == [True] * 4


@pytest.mark.parametrize("order", [(0,), (0, 0), (0, 2), (0, 1, 2)])
def test_an_order_names_every_demonstration_once(order: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"expected a permutation of the 2 demonstrations"):
        permute_demonstrations(task(1, 2, 3), order)
