"""Solving a task's tests from many sides: views of its prompt, their answers turned back, a vote for two attempts.

    task -> views -> a prompt each -> answers -> turned back -> vote -> at most two attempts a test input

Augmented inference and the hierarchical vote are those that the paper takes from Akyürek et al. 2024
(arXiv 2411.07279).
"""

from __future__ import annotations

import difflib
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seal_jax.domains.arc.augmentations import VIEWS, map_pairs
from seal_jax.domains.arc.grids import Grid, Pair, Task
from seal_jax.domains.arc.prompts import read_grid

IDENTITY = "identity"
CANDIDATES = 3  # that each group of views puts into the pool
ATTEMPTS = 2  # at a test input; ARC Prize 2024's rule, and the paper's

Digits = tuple[int, int, bytes]  # a grid as a key: its sides, and its cells in reading order
Answer = tuple[str, Grid | None]  # the view's transformation; the grid, turned back, or None where it was no grid


class View(NamedTuple):
    """One way of asking for one test output."""

    test: int  # which of the task's test inputs
    transformation: str  # of `augmentations.VIEWS`, of every grid of the prompt
    order: tuple[int, ...]  # the demonstrations that are shown, in this order


def views(
    task: Task, *, leave_one_out: bool, permutations: int, transformations: Sequence[str], seed: int
) -> list[View]:
    """Every test input x every order of the demonstrations x the identity and each of `transformations`; none twice.

    The orders are the demonstrations without each one in turn (without `leave_one_out`, or where there is but one: all
    of them as they stand) and `permutations` random orders of all, or as many as differ. They follow
    from `seed` and the task's id alone, and are the same for every test input and transformation.

    Raises:
      ValueError: a transformation that is not in `VIEWS`, or a negative number of permutations.
    """
    for name in transformations:
        if name not in VIEWS:
            close = difflib.get_close_matches(name, VIEWS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(VIEWS)}"
            raise ValueError(f"transformations holds {name!r}, which cannot be turned back; {hint}")
    if permutations < 0:
        raise ValueError(f"permutations is {permutations}; expected at least 0")
    shown = range(len(task.train))
    orders = [tuple(shown)]
    if leave_one_out and len(shown) > 1:
        orders = [tuple(i for i in shown if i != left_out) for left_out in shown]
    wanted = len(orders) + min(permutations, math.factorial(len(shown)) - (tuple(shown) in orders))
    rng = np.random.default_rng([seed, zlib.crc32(task.id.encode())])
    while len(orders) < wanted:
        order = tuple(rng.permutation(len(shown)).tolist())
        if order not in orders:
            orders.append(order)
    names = dict.fromkeys((IDENTITY, *transformations))
    return [View(test, name, order) for test in range(len(task.test)) for name in names for order in orders]


def prompt_parts(task: Task, view: View) -> tuple[tuple[Pair, ...], Grid, Grid]:
    """What a view shows and expects, all of it transformed: the demonstrations, the test input, the test output."""
    shown = [task.train[i] for i in view.order]
    *demonstrations, test = map_pairs([*shown, task.test[view.test]], VIEWS[view.transformation])
    return tuple(demonstrations), test.input, test.output


def candidates(task: Task, views: Sequence[View], answers: Sequence[str]) -> list[list[Answer]]:
    """The answers to `views`, read and turned back, for each of the task's test inputs."""
    found: list[list[Answer]] = [[] for _ in task.test]
    for view, answer in zip(views, answers, strict=True):
        grid = read_grid(answer)
        turned_back = None if grid is None else VIEWS[view.transformation].inverse(grid)
        found[view.test].append((view.transformation, turned_back))
    return found


def vote(candidates: Sequence[Answer]) -> list[Grid]:
    """The attempts at one test input, the favourite first: two, or fewer where there are fewer grids. Two levels:

    1. Within each group of views (all of them, the identity's, each other transformation's) the three most frequent
       grids go into the pool.
    2. Of the pool, the two grids that most groups put there.

    At either level a tie goes to the grid that more of all views gave, then to the one that more of the identity's
    gave, then to the smaller grid, then to the lower digits in reading order. So the order of views changes nothing.
    An answer that was no grid has no vote.
    """
    grids = {_digits(grid): grid for _, grid in candidates if grid is not None}
    groups: dict[str, Counter[Digits]] = {"": Counter(), IDENTITY: Counter()}  # "": all views
    for transformation, grid in candidates:
        if grid is not None:
            groups[""][_digits(grid)] += 1
            groups.setdefault(transformation, Counter())[_digits(grid)] += 1

    def most_frequent(votes: Counter[Digits], count: int) -> list[Digits]:
        def rank(digits: Digits) -> tuple[int, int, int, int, Digits]:
            return -votes[digits], -groups[""][digits], -groups[IDENTITY][digits], len(digits[2]), digits

        return sorted(votes, key=rank)[:count]

    pool = Counter(digits for votes in groups.values() for digits in most_frequent(votes, CANDIDATES))
    return [grids[digits] for digits in most_frequent(pool, ATTEMPTS)]


def solved(task: Task, attempts: Sequence[Sequence[Grid]]) -> bool:
    """Whether, for all of the task's test inputs, one of the attempts at it is right in every cell.

    Raises ValueError unless there are attempts (perhaps none) for each test input, and at most two for any.
    """
    if len(attempts) != len(task.test):
        raise ValueError(
            f"task {task.id}: attempts at {len(attempts)} test inputs; expected {len(task.test)}, one each"
        )
    for number, tried in enumerate(attempts):
        if len(tried) > ATTEMPTS:
            raise ValueError(f"task {task.id}, test {number}: {len(tried)} attempts; expected at most {ATTEMPTS}")
    return all(
        any(np.array_equal(grid, test.output) for grid in tried)
        for test, tried in zip(task.test, attempts, strict=True)
    )


def _digits(grid: Grid) -> Digits:
    return grid.shape[0], grid.shape[1], np.ascontiguousarray(grid, np.int8).tobytes()
