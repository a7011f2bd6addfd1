"""Views ask from every side and are turned back; the vote heeds frequency within groups, then agreement among them."""

from __future__ import annotations

from itertools import permutations as all_orders

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_jax.domains.arc.augmentations import VIEWS
from seal_jax.domains.arc.grids import Grid, Pair, Task
from seal_jax.domains.arc.inference import ATTEMPTS, IDENTITY, View, candidates, prompt_parts, solved, views, vote

unhurried = settings(deadline=None)  # tests say what must be true, not how soon
TURNS = tuple(name for name in VIEWS if name != IDENTITY)


def grid(rows: list[list[int]]) -> Grid:
    return np.array(rows, np.int8)


def text(grid: Grid) -> str:
    return "\n".join(" ".join(map(str, row)) for row in grid.tolist())


def cells(grid: Grid) -> list[list[int]]:
    return grid.tolist()


@st.composite
def grids(draw, largest: int = 5) -> Grid:
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    digits = draw(st.lists(st.integers(0, 9), min_size=height * width, max_size=height * width))
    return np.array(digits, np.int8).reshape(height, width)


@st.composite
def tasks(draw) -> Task:
    pairs = st.builds(Pair, grids(), grids())
    some = [tuple(draw(st.lists(pairs, min_size=1, max_size=most))) for most in (5, 3)]
    return Task(draw(st.text("0123456789abcdef", min_size=8, max_size=8)), *some)


# Few different grids, so that votes agree and tie.
FEW = [grid([[digit]]) for digit in range(5)] + [grid([[1, 0]]), grid([[1], [0]])]
ballots = st.lists(st.tuples(st.sampled_from(list(VIEWS)), st.sampled_from([None, *FEW])), max_size=25)
asked_as = st.fixed_dictionaries(
    {
        "leave_one_out": st.booleans(),
        "permutations": st.integers(0, 4),
        "transformations": st.lists(st.sampled_from(list(VIEWS)), max_size=6),
        "seed": st.integers(0, 2**31),
    }
)


def example(demonstrations: int, tests: int = 1) -> Task:
    pairs = [Pair(grid([[i, 0, 0]]), grid([[0, 0, i]])) for i in range(demonstrations + tests)]
    return Task("00d62c1b", tuple(pairs[:demonstrations]), tuple(pairs[demonstrations:]))


# ---------------------------------------------------------------------------------------------------------------------
# Views


def test_the_paper_asks_leave_one_out_and_two_permutations_from_every_side():
    task = example(3, tests=2)
    asked = views(task, leave_one_out=True, permutations=2, transformations=TURNS, seed=0)
    assert len(TURNS) == 5  # transpose, flip either way, rotate by 90 and by 180 degrees
    assert len(asked) == 2 * (1 + 5) * (3 + 2)
    assert {view.order for view in asked[:3]} == {(1, 2), (0, 2), (0, 1)}
    for view in asked[3:5]:
        assert sorted(view.order) == [0, 1, 2]


@unhurried
@given(tasks(), asked_as)
def test_views_are_the_product_of_tests_transformations_and_orders_and_none_comes_twice(task, chosen):
    asked = views(task, **chosen)
    orders = {view.order for view in asked}
    names = {IDENTITY, *chosen["transformations"]}
    assert len(set(asked)) == len(asked) == len(task.test) * len(names) * len(orders)
    assert {view.transformation for view in asked} == names
    assert {view.test for view in asked} == set(range(len(task.test)))
    for order in orders:
        assert len(set(order)) == len(order) and set(order) <= set(range(len(task.train)))


@unhurried
@given(tasks(), asked_as)
def test_without_leave_one_out_every_view_shows_every_demonstration_and_the_first_as_they_stand(task, chosen):
    asked = views(task, **chosen | {"leave_one_out": False})
    assert asked[0] == (0, IDENTITY, tuple(range(len(task.train))))
    assert {len(view.order) for view in asked} == {len(task.train)}


@unhurried
@given(tasks(), asked_as)
def test_views_follow_from_seed_and_id_not_from_what_is_in_the_grids(task, chosen):
    blank = Task(task.id, *(tuple(Pair(grid([[0]]), grid([[0]])) for _ in pairs) for pairs in task[1:]))
    assert views(blank, **chosen) == views(task, **chosen)


def test_another_seed_or_another_task_has_other_permutations():
    task = example(5)
    drawn = {
        tuple(views(task._replace(id=name), leave_one_out=False, permutations=2, transformations=(), seed=seed))
        for name in ("00d62c1b", "007bbfb7")
        for seed in (0, 1)
    }
    assert len(drawn) == 4


def test_there_are_no_more_permutations_than_there_are():
    asked = views(example(3), leave_one_out=False, permutations=50, transformations=(), seed=0)
    assert sorted(view.order for view in asked) == sorted(all_orders(range(3)))


def test_a_single_demonstration_is_never_left_out():
    asked = views(example(1), leave_one_out=True, permutations=2, transformations=(), seed=0)
    assert [view.order for view in asked] == [(0,)]


def test_a_transformation_that_is_unknown_is_named_with_what_was_meant():
    name = TURNS[0]
    with pytest.raises(ValueError, match=rf"{name}x.*did you mean '{name}'"):
        views(example(2), leave_one_out=True, permutations=0, transformations=(name + "x",), seed=0)
    with pytest.raises(ValueError, match=r"permutations is -1; expected at least 0"):
        views(example(2), leave_one_out=True, permutations=-1, transformations=(), seed=0)


# ---------------------------------------------------------------------------------------------------------------------
# Prompts and answers


def test_a_view_transforms_the_demonstrations_that_it_shows_and_the_test():
    task = example(3)
    asked = views(task, leave_one_out=True, permutations=0, transformations=("transpose",), seed=0)
    view = next(view for view in asked if view.transformation == "transpose" and view.order == (0, 2))
    shown, test_input, expected = prompt_parts(task, view)
    assert [cells(pair.input) for pair in shown] == [[[0], [0], [0]], [[2], [0], [0]]]
    assert [cells(pair.output) for pair in shown] == [[[0], [0], [0]], [[0], [0], [2]]]
    assert (cells(test_input), cells(expected)) == ([[3], [0], [0]], [[0], [0], [3]])
    assert [cells(pair.input) for pair in prompt_parts(task, View(0, IDENTITY, (2, 0)))[0]] == [
        [[2, 0, 0]],
        [[0, 0, 0]],
    ]


@unhurried
@given(tasks(), asked_as)
def test_right_answers_from_every_side_are_turned_back_to_the_expected_grid_and_solve_the_task(task, chosen):
    asked = views(task, **chosen)
    found = candidates(task, asked, [text(prompt_parts(task, view)[2]) for view in asked])
    assert sum(map(len, found)) == len(asked)
    for test, answers in zip(task.test, found, strict=True):
        assert all(cells(answer) == cells(test.output) for _, answer in answers)
    assert solved(task, [vote(answers) for answers in found])


def test_an_answer_that_is_no_grid_stays_in_place_as_none():
    task = example(2, tests=2)
    asked = views(task, leave_one_out=True, permutations=0, transformations=(), seed=0)
    found = candidates(task, asked, ["no idea", "1 2", "", "3"])
    assert [[answer if answer is None else cells(answer) for _, answer in answers] for answers in found] == [
        [None, [[1, 2]]],
        [None, [[3]]],
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The vote


def attempts_of(counts: dict[str, str]) -> list[str]:
    """The vote over one-cell grids: a digit an answer, `-` for none, by transformation."""
    answers = [(name, None if d == "-" else grid([[int(d)]])) for name, digits in counts.items() for d in digits]
    return ["".join(map(str, attempt.ravel())) for attempt in vote(answers)]


def test_agreement_among_groups_outweighs_how_often_one_of_them_says_it():
    a, b, c, d, _ = TURNS
    # 7 is the most frequent, but in two groups, all and `a`; 5 is in the top three of five.
    assert attempts_of({IDENTITY: "51", a: "77777", b: "52", c: "53", d: "54"}) == ["5", "7"]


def test_only_three_candidates_of_a_group_reach_the_pool():
    # 4 is the most frequent of all, but fourth in each transformation: one group. Of 1 and 2 it is two groups each.
    assert attempts_of({TURNS[0]: "11122233344", TURNS[1]: "55566677744"}) == ["1", "2"]


def test_a_tie_goes_to_the_more_frequent_then_to_the_identity_then_to_the_smaller_grid():
    a, b, *_ = TURNS
    assert attempts_of({a: "1", b: "22"}) == ["2", "1"]
    assert attempts_of({a: "1", IDENTITY: "2"}) == ["2", "1"]
    assert attempts_of({a: "21"}) == ["1", "2"]
    assert [cells(g) for g in vote([(a, grid([[0, 0]])), (a, grid([[9]]))])] == [[[9]], [[0, 0]]]


def test_grids_of_the_same_digits_and_other_sides_are_not_the_same():
    assert len(vote([(IDENTITY, grid([[1, 0]])), (IDENTITY, grid([[1], [0]]))])) == 2


def test_answers_that_are_no_grids_have_no_vote():
    assert vote([(IDENTITY, None)] * 5) == [] == vote([])
    assert attempts_of({IDENTITY: "----1"}) == ["1"]


@unhurried
@given(ballots, st.randoms(use_true_random=False))
def test_the_order_of_views_changes_nothing(answers, random):
    shuffled = list(answers)
    random.shuffle(shuffled)
    assert list(map(cells, vote(shuffled))) == list(map(cells, vote(answers)))


@unhurried
@given(ballots)
def test_attempts_are_two_different_grids_of_those_given_or_all_there_are(answers):
    attempts = list(map(cells, vote(answers)))
    given_ = {str(cells(answer)) for _, answer in answers if answer is not None}
    assert len({str(attempt) for attempt in attempts}) == len(attempts) == min(ATTEMPTS, len(given_))
    assert {str(attempt) for attempt in attempts} <= given_


@unhurried
@given(ballots, st.sampled_from(list(VIEWS)))
def test_another_vote_for_the_favourite_leaves_it_the_favourite(answers, transformation):
    favourite = vote(answers)[:1]
    assert list(map(cells, vote(answers + [(transformation, g) for g in favourite])[:1])) == list(map(cells, favourite))


@unhurried
@given(ballots, st.permutations(TURNS))
def test_the_names_of_the_other_transformations_do_not_matter(answers, renamed):
    names = dict(zip(TURNS, renamed, strict=True))
    assert list(map(cells, vote([(names.get(name, name), answer) for name, answer in answers]))) == list(
        map(cells, vote(answers))
    )


@unhurried
@given(ballots, st.sampled_from(FEW))
def test_what_more_than_half_of_every_group_says_is_the_favourite(answers, said):
    often = {name: sum(n == name and answer is not None for n, answer in answers) for name in VIEWS}
    unanimous = [(name, said) for name, count in often.items() for _ in range(count + 1)]
    assert cells(vote(answers + unanimous)[0]) == cells(said)


# ---------------------------------------------------------------------------------------------------------------------
# Solved


def test_a_task_is_solved_when_one_of_two_attempts_is_right_for_all_of_its_test_inputs():
    task = example(2, tests=2)
    right = [test.output for test in task.test]
    wrong = grid([[8, 8]])
    assert solved(task, [[right[0]], [wrong, right[1]]])
    assert not solved(task, [[right[0]], [wrong]])
    assert not solved(task, [[right[1]], [right[0]]])
    assert not solved(task, [[right[0]], []])
    assert not solved(task, [[right[0]], [right[1].T, wrong]])  # the same digits, another shape


def test_too_many_attempts_or_test_inputs_without_any_are_errors():
    task = example(2, tests=2)
    right = [test.output for test in task.test]
    with pytest.raises(ValueError, match=r"00d62c1b: attempts at 1 test inputs; expected 2"):
        solved(task, [[right[0]]])
    with pytest.raises(ValueError, match=r"00d62c1b, test 1: 3 attempts; expected at most 2"):
        solved(task, [[right[0]], [right[1]] * 3])
