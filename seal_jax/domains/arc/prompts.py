"""What the model reads about an ARC task, and how its answer is read: grids as text, and the two prompts.

A grid is its digits, a space between them and a row on each line. The instructions are text files
(`prompts/arc/puzzle.toml`, `prompts/arc/self-edit.toml`); what they hold is said at `load_prompts`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seal_jax.domains.arc.grids import MAX_SIDE, Grid, Pair, Task, as_grid
from seal_jax.domains.arc.self_edits import Bounds
from seal_jax.domains.templates import fill, load_template
from seal_jax.types import Style

PROMPT_FOLDER = Path(__file__).parents[1] / "prompts" / "arc"
PUZZLE_FILE = PROMPT_FOLDER / "puzzle.toml"
SELF_EDIT_FILE = PROMPT_FOLDER / "self-edit.toml"

_ROW = re.compile(r"[0-9](?: [0-9])*")
_BOUNDS = ("least_learning_rate", "most_learning_rate", "least_epochs", "most_epochs")


class Prompts(NamedTuple):
    """What the model reads before it writes a self-edit, and before it solves a puzzle."""

    style: Style  # raw: text to be continued by a base model; chat: a user's message to an instruct model
    self_edit: str  # with {demonstrations} and the bounds
    puzzle: str  # with {puzzle}


def load_prompts(
    style: Style, self_edit_path: str | Path = SELF_EDIT_FILE, puzzle_path: str | Path = PUZZLE_FILE
) -> Prompts:
    """Loads the two prompts, the embedded ones or your own files (begin them as copies of those).

    Each file holds a `raw` and a `chat` text. The self-edit's has the placeholders {demonstrations},
    {least_learning_rate}, {most_learning_rate}, {least_epochs} and {most_epochs}; the puzzle's has {puzzle}. Other
    braces are ordinary text.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not TOML, a key or placeholder that is missing or unknown; says which file and which key.
    """
    self_edit = load_template(self_edit_path, style, "demonstrations", *_BOUNDS)
    return Prompts(style, self_edit, load_template(puzzle_path, style, "puzzle"))


def self_edit_prompt(prompts: Prompts, task: Task, bounds: Bounds) -> str:
    """What asks for the configuration with which `task` is to be learned; its test inputs are not shown."""
    values = [*map(_short, bounds.learning_rate), *map(str, bounds.epochs)]
    shown = "\n\n".join(map(_demonstration, task.train))
    return fill(prompts.self_edit, demonstrations=shown, **dict(zip(_BOUNDS, values, strict=True)))


def puzzle_prompt(prompts: Prompts, demonstrations: Sequence[Pair], test_input: Grid) -> str:
    """What asks for the output of `test_input`: up to where the answer, `grid_text(output)`, begins.

    There may be no demonstrations: leaving two out of two is among the paper's training tasks.
    """
    shown = [*map(_demonstration, demonstrations), f"Input:\n{grid_text(test_input)}\nOutput:"]
    return fill(prompts.puzzle, puzzle="\n\n".join(shown))


def answer_text(prompts: Prompts, completion: str) -> str:
    """The part of a completion that answers: all that an instruct model says; of a base model, which goes on with the
    next puzzle, what stands before the first empty line."""
    return completion.lstrip().split("\n\n", 1)[0] if prompts.style == "raw" else completion


def grid_text(grid: Grid) -> str:
    """A grid as the model reads it."""
    return "\n".join(" ".join(map(str, row)) for row in grid.tolist())


def read_grid(text: str) -> Grid | None:
    """The grid that `grid_text` would write as `text`, white space around it aside; None if there is none.

    None, then, for no text, rows of different lengths, more than 30 rows or columns, and anything but the digits 0 to 9
    with one space between them.
    """
    rows = text.strip().split("\n")
    if len(rows) > MAX_SIDE or len(rows[0]) > 2 * MAX_SIDE - 1 or len(set(map(len, rows))) > 1:
        return None
    if not all(map(_ROW.fullmatch, rows)):
        return None
    return as_grid([[int(digit) for digit in row[::2]] for row in rows])


def largest_output(task: Task, test: int) -> tuple[int, int]:
    """Rows and columns that the output of test input `test` has at most, as far as the demonstrations tell: a bound on
    what is decoded.

    Where all demonstrations' outputs are the same multiple of their inputs (their very size, for one), that multiple of
    the test input; where they all have one size, that size; where both hold, the larger of each; otherwise 30 x 30. Of
    the 1,243 test inputs of ARC-AGI-2's public tasks, the output of 4 is larger.
    """
    inputs, outputs = ([np.array(pair[side].shape) for pair in task.train] for side in (0, 1))
    bounds = []
    if all((output == outputs[0]).all() for output in outputs):
        bounds.append(outputs[0])
    if all((a * inputs[0] == outputs[0] * b).all() for a, b in zip(outputs, inputs, strict=True)):
        size, rest = divmod(np.array(task.test[test].input.shape) * outputs[0], inputs[0])
        if not rest.any() and (size <= MAX_SIDE).all():
            bounds.append(size)
    rows, columns = np.max(bounds, axis=0).tolist() if bounds else (MAX_SIDE, MAX_SIDE)
    return rows, columns


def _demonstration(pair: Pair) -> str:
    return f"Input:\n{grid_text(pair.input)}\nOutput:\n{grid_text(pair.output)}"


def _short(learning_rate: float) -> str:
    return f"{learning_rate:g}".replace("e-0", "e-")  # 1e-5, as self-edits write it, not 1e-05
