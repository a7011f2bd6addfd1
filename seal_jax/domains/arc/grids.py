"""ARC's grids and tasks.

A task shows a few demonstrations, pairs of an input grid and an output grid, and asks for the outputs of one or more
test inputs (Chollet, "On the Measure of Intelligence", arXiv 1911.01547).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

Grid: TypeAlias = np.ndarray  # int8 [H, W], read-only: colours 0 to 9, of which 0 is the background
Split = Literal["training", "evaluation"]

MAX_SIDE = 30  # cells, as in all of ARC; no side is less than 1
COLOURS = 10
SPLITS: tuple[Split, ...] = ("training", "evaluation")


class Pair(NamedTuple):
    """An input grid, and the output grid that the task's rule makes of it."""

    input: Grid
    output: Grid


class Task(NamedTuple):
    """A puzzle: demonstrations of one rule, and the pairs on which it is tested."""

    id: str  # unique within its source
    train: tuple[Pair, ...]  # the demonstrations; at least one as loaded
    test: tuple[Pair, ...]  # at least one; the outputs are what must be found


def as_grid(cells: np.ndarray | Sequence[Sequence[int]]) -> Grid:
    """Cells already known to be colours -> a grid: int8, in one piece, read-only."""
    grid = np.array(cells, np.int8, order="C")
    grid.setflags(write=False)
    return grid


def fits(task: Task) -> bool:
    """Whether no grid of the task has a side over 30: augmentations may make one."""
    return all(max(grid.shape) <= MAX_SIDE for pair in task.train + task.test for grid in pair)
