"""Makes the easy tasks, one known rule each, on grids of a few cells.

    python -m tests.golden.make_easy_tasks      (a second)

Writes seal_jax/domains/data/easy.json, for tests, and to show on a CPU what training at test time does to a small
model: a whole task, demonstrations, test input and answer, is some 100 to 150 digits, spaces and line ends. Each task
has one answer: whatever rule of this file explains its demonstrations makes the same output of its test input.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from seal_jax.domains.arc import augmentations
from seal_jax.domains.arc.augmentations import Augmentation
from seal_jax.domains.arc.grids import COLOURS, SPLITS, Grid, Pair, Split, Task, as_grid
from seal_jax.domains.arc.tasks import EASY

COUNT = 44  # tasks a split: four of each rule
PALETTE = 3  # colours of a task's inputs, beside the background
MOST_DEMONSTRATIONS = 4
MOST_CELLS = 36  # of all inputs of a task together, which leaves three demonstrations of 3 x 3


class Variant(NamedTuple):
    """A rule with its parameters: flip, along which axis."""

    rule: str
    apply: Callable[[Grid], Grid]
    colours: tuple[int, ...] = ()  # that every input of the task holds, else the rule would not be seen


def _recoloured(old: int, new: int) -> Variant:
    return Variant("recolour", lambda grid: as_grid(np.where(grid == old, new, grid)), (old,))


def _swapped(one: int, other: int) -> Variant:
    order = list(range(COLOURS))
    order[one], order[other] = other, one
    return Variant("swap", augmentations.permute_colours(order).apply, (one, other))


def _of(rule: str, *chosen: Augmentation) -> tuple[Variant, ...]:
    return tuple(Variant(rule, augmentation.apply) for augmentation in chosen)


VARIANTS: Mapping[str, tuple[Variant, ...]] = {
    "keep": _of("keep", augmentations.IDENTITY),
    "flip": _of("flip", *augmentations.FLIPS),
    "rotate": _of("rotate", *augmentations.ROTATIONS),
    "transpose": _of("transpose", augmentations.TRANSPOSE),
    "shift": _of("shift", *(augmentations.shift(*by) for by in ((1, 0), (-1, 0), (0, 1), (0, -1)))),
    "mirror": _of("mirror", *augmentations.REFLECTIONS),
    "tile": _of("tile", *augmentations.REPEAT[:2]),
    "crop": (
        Variant("crop", lambda grid: as_grid(grid[:1])),
        Variant("crop", lambda grid: as_grid(grid[-1:])),
        Variant("crop", lambda grid: as_grid(grid[:, :1])),
        Variant("crop", lambda grid: as_grid(grid[:, -1:])),
    ),
    "fill": tuple(_recoloured(0, new)._replace(rule="fill") for new in range(1, COLOURS)),
    "recolour": tuple(_recoloured(*pair) for pair in itertools.permutations(range(1, COLOURS), 2)),
    "swap": tuple(_swapped(*pair) for pair in itertools.combinations(range(1, COLOURS), 2)),
}
RULES = tuple(VARIANTS)

# Sides of inputs, such that no output has a side over 4
SHAPES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "mirror": ((2, 2),),
    "tile": ((2, 2),),
    "shift": ((3, 3),),  # by one of two rows would be a flip
    "transpose": ((2, 3), (3, 2), (3, 3)),
}
OTHER_SHAPES = ((2, 2), (2, 3), (3, 2), (3, 3))


def generate(split: Split, *, count: int = COUNT, seed: int = 0) -> list[Task]:
    """Tasks with three or four demonstrations and one test input, the rules in turn.

    The same arguments give the same tasks, and a larger `count` only adds to them. Ids name the rule, and a number that
    is odd in the training split and even in the evaluation split: `easy-flip-3`. No input grid is in both splits.

    Raises:
      ValueError: no such split, or a negative count.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected 'training' or 'evaluation'")
    if count < 0:
        raise ValueError(f"count is {count}; expected at least 0")
    tasks = []
    for i in range(count):
        rule, place = RULES[i % len(RULES)], SPLITS.index(split)
        rng = np.random.default_rng([seed, place, i])
        tasks.append(_task(rng, f"easy-{rule}-{2 * (i // len(RULES)) + 1 + place}", rule, split))
    return tasks


def _task(rng: np.random.Generator, name: str, rule: str, split: Split) -> Task:
    while True:  # most draws will do
        variants = VARIANTS[rule]
        variant = variants[rng.integers(len(variants))]
        shapes = SHAPES.get(rule, OTHER_SHAPES)
        shape = shapes[rng.integers(len(shapes))]
        demonstrations = min(MOST_DEMONSTRATIONS, MOST_CELLS // (shape[0] * shape[1]) - 1)
        others = rng.permutation(np.setdiff1d(np.arange(1, COLOURS), variant.colours))
        palette = np.array([0, *(c for c in variant.colours if c), *others])[: PALETTE + 1]
        pairs: list[Pair] = []
        for _ in range(100):
            grid = as_grid(rng.choice(palette, shape))
            if _of_split(grid) == split and not any(np.array_equal(grid, pair.input) for pair in pairs):
                pair = Pair(grid, variant.apply(grid))
                shown = rule == "keep" or not np.array_equal(*pair)
                if shown and np.isin(variant.colours, grid).all():
                    pairs.append(pair)
            if len(pairs) > demonstrations:
                task = Task(name, tuple(pairs[:-1]), tuple(pairs[-1:]))
                if has_one_answer(task):
                    return task
                break


def explanations(task: Task) -> list[Variant]:
    """The variants of all rules that make each demonstration's output of its input."""
    return [
        variant
        for variants in VARIANTS.values()
        for variant in variants
        if all(np.array_equal(variant.apply(pair.input), pair.output) for pair in task.train)
    ]


def has_one_answer(task: Task) -> bool:
    """Whether every variant that explains the demonstrations also makes the tests' outputs."""
    return all(
        np.array_equal(variant.apply(pair.input), pair.output) for variant in explanations(task) for pair in task.test
    )


def _of_split(grid: Grid) -> Split:
    """Each grid is for one split alone: half of all grids, as a hash of their cells falls."""
    return SPLITS[hashlib.sha256(bytes(grid.shape) + grid.tobytes()).digest()[0] % 2]


def written() -> str:
    """The tasks of both splits as JSON, a task a line."""

    def rows(pairs: tuple[Pair, ...]) -> list[dict[str, list[list[int]]]]:
        return [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in pairs]

    splits = []
    for split in SPLITS:
        tasks = {task.id: {"train": rows(task.train), "test": rows(task.test)} for task in generate(split)}
        lines = (f'"{name}": {json.dumps(task, separators=(",", ":"))}' for name, task in tasks.items())
        splits.append(f'"{split}": {{\n' + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(splits) + "\n}\n"


if __name__ == "__main__":
    EASY.write_text(written(), encoding="utf-8")
