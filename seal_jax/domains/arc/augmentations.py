"""Augmentations of ARC grids, each with its inverse: pure functions of arrays (paper section 4.2 and appendix B).

A task stays a task when every input and every output is transformed alike, so a few demonstrations become many. The
four groups are those that a self-edit may choose (after Akyürek et al., arXiv 2411.07279). The inverses take the answer
to a transformed puzzle back to the puzzle that was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from seal_jax.domains.arc.grids import COLOURS, Grid, Pair, Task, as_grid

MAX_SHIFT = 3  # cells in each direction


class Augmentation(NamedTuple):
    """A transformation of grids. `inverse(apply(grid))` is the grid, for every grid.

    `apply` may make a side of more than 30 cells (see `grids.fits`). `inverse` raises ValueError for a grid that
    `apply` never makes, such as a "doubled" one whose cells do not come in pairs. Rotations, flips, transposition,
    shifts and permutations of colours make every grid, so their inverses never raise.
    """

    name: str
    apply: Callable[[Grid], Grid]
    inverse: Callable[[Grid], Grid]


def basic(rng: np.random.Generator) -> tuple[Augmentation, ...]:
    """The 11 basic augmentations. One shift is drawn, and holds for every grid to which it is applied."""
    down, right = (int(cells) for cells in rng.integers(0, MAX_SHIFT + 1, size=2))
    return (*ROTATIONS, *FLIPS, *REFLECTIONS, shift(down, right), TRANSPOSE)


def rotate(quarters: int) -> Augmentation:
    """Rotates by `quarters` quarter turns, anti-clockwise as `numpy.rot90` does."""
    return Augmentation(
        f"rotate_{90 * quarters}",
        lambda grid: as_grid(np.rot90(grid, quarters)),
        lambda grid: as_grid(np.rot90(grid, -quarters)),
    )


def flip(axis: int) -> Augmentation:
    """Turns the order of the rows (axis 0) or of the columns (axis 1) around."""
    turn = lambda grid: as_grid(np.flip(grid, axis))
    return Augmentation(("flip_rows", "flip_columns")[axis], turn, turn)


def shift(down: int, right: int) -> Augmentation:
    """Moves the cells cyclically: what leaves on one side enters on the other."""
    return Augmentation(
        f"shift_{down}_{right}",
        lambda grid: as_grid(np.roll(grid, (down, right), (0, 1))),
        lambda grid: as_grid(np.roll(grid, (-down, -right), (0, 1))),
    )


def reflect(axis: int, *, mirror_first: bool) -> Augmentation:
    """Puts the grid and its mirror image side by side, along an axis."""
    side = (("below", "above"), ("right", "left"))[axis][mirror_first]

    def apply(grid: Grid) -> Grid:
        both = (grid, np.flip(grid, axis))
        return as_grid(np.concatenate(both[::-1] if mirror_first else both, axis))

    return _with_part(f"reflect_{side}", apply, lambda grid: _halves(grid, axis)[mirror_first])


def scale(rows: int, columns: int, name: str) -> Augmentation:
    """Repeats every row `rows` times and every column `columns` times, each beside itself."""

    def part(grid: Grid) -> Grid:
        return grid[::rows, ::columns]

    return _with_part(name, lambda grid: as_grid(grid.repeat(rows, 0).repeat(columns, 1)), part)


def tile(rows: int, columns: int, name: str) -> Augmentation:
    """Puts `rows` copies of the grid below each other and `columns` beside each other."""

    def part(grid: Grid) -> Grid:
        return grid[: len(grid) // rows, : grid.shape[1] // columns]

    return _with_part(name, lambda grid: as_grid(np.tile(grid, (rows, columns))), part)


def then(first: Augmentation, second: Augmentation) -> Augmentation:
    """First the one, then the other."""
    return Augmentation(
        f"{first.name}_{second.name}",
        lambda grid: second.apply(first.apply(grid)),
        lambda grid: first.inverse(second.inverse(grid)),
    )


def permute_colours(permutation: Sequence[int]) -> Augmentation:
    """Colour c becomes `permutation[c]`. The background, 0, stays.

    Raises:
      ValueError: not a permutation of 0 to 9 that begins with 0.
    """
    if sorted(permutation) != list(range(COLOURS)) or permutation[0] != 0:
        raise ValueError(f"colours {list(permutation)}; expected a permutation of 0 to 9 that begins with 0")
    new = np.array(permutation, np.int8)
    old = np.argsort(new)
    return Augmentation(
        "colours_" + "".join(map(str, new)), lambda grid: as_grid(new[grid]), lambda grid: as_grid(old[grid])
    )


def random_colours(rng: np.random.Generator) -> Augmentation:
    """Permutes the nine colours but the background."""
    return permute_colours([0, *(1 + rng.permutation(COLOURS - 1)).tolist()])


def permute_demonstrations(task: Task, order: Sequence[int]) -> Task:
    """The demonstrations in another order; `np.argsort(order)` takes them back.

    Raises:
      ValueError: `order` is not a permutation of the demonstrations.
    """
    if sorted(order) != list(range(len(task.train))):
        raise ValueError(f"order {list(order)}; expected a permutation of the {len(task.train)} demonstrations")
    return task._replace(train=tuple(task.train[i] for i in order))


def map_task(task: Task, augmentation: Augmentation) -> Task:
    """The task with every input and every output transformed alike."""
    return task._replace(train=map_pairs(task.train, augmentation), test=map_pairs(task.test, augmentation))


def map_pairs(pairs: Sequence[Pair], augmentation: Augmentation) -> tuple[Pair, ...]:
    """The pairs with every input and every output transformed alike."""
    return tuple(Pair(augmentation.apply(pair.input), augmentation.apply(pair.output)) for pair in pairs)


def _with_part(name: str, apply: Callable[[Grid], Grid], part: Callable[[Grid], Grid]) -> Augmentation:
    """An augmentation that repeats a grid: its inverse takes the `part` that was the grid, if all the rest follows."""

    def inverse(grid: Grid) -> Grid:
        original = as_grid(part(grid))
        if not original.size or not np.array_equal(apply(original), grid):
            height, width = grid.shape
            raise ValueError(f"this grid of {height} x {width} is not what {name} makes of any grid")
        return original

    return Augmentation(name, apply, inverse)


def _halves(grid: Grid, axis: int) -> tuple[Grid, Grid]:
    middle = grid.shape[axis] // 2
    return (grid[:middle], grid[middle:]) if axis == 0 else (grid[:, :middle], grid[:, middle:])


IDENTITY = Augmentation("identity", lambda grid: grid, lambda grid: grid)
TRANSPOSE = Augmentation("transpose", lambda grid: as_grid(grid.T), lambda grid: as_grid(grid.T))
ROTATIONS = (rotate(1), rotate(2), rotate(3))
FLIPS = (flip(0), flip(1))
REFLECTIONS = tuple(reflect(axis, mirror_first=first) for first in (True, False) for axis in (0, 1))
DOUBLE = scale(2, 2, "double_resolution")

# The groups that a self-edit chooses, beside `basic`
SIZE = (DOUBLE, scale(2, 1, "double_height"), scale(1, 2, "double_width"))
CHAIN = tuple(then(augmentation, DOUBLE) for augmentation in (*ROTATIONS, *FLIPS, TRANSPOSE))
REPEAT = (tile(2, 1, "tile_rows"), tile(1, 2, "tile_columns"), tile(2, 2, "tile_both"))

VIEWS: dict[str, Augmentation] = {  # how a puzzle is shown at inference; an answer is taken back by the inverse
    view.name: view for view in (IDENTITY, TRANSPOSE, *FLIPS, rotate(1), rotate(2))
}
