"""What a run on ARC found, as tables and grids of the report."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seal_jax.domains.arc import inference, self_edits
from seal_jax.domains.arc.grids import Grid, Task
from seal_jax.domains.arc.self_edits import Bounds, Choice

GROUPS = ("basic", "size", "chain", "repeat")


def what_was_chosen(completions: Mapping[str, Sequence[str]], bounds: Bounds) -> dict[str, Any]:
    """A table: which augmentations and settings the valid self-edits of each stage (its label) chose."""
    rows: list[list[Any]] = []
    for label, written in completions.items():
        read = [self_edits.parse_choice(completion, bounds) for completion in written]
        valid = [choice for choice in read if isinstance(choice, Choice)]
        if valid:
            chosen = [[getattr(choice, group) for choice in valid] for group in GROUPS]
            chosen.append([choice.strategy == "output_tokens" for choice in valid])
            shares = [f"{sum(yes) / len(valid):.0%}" for yes in chosen]
            medians = [
                statistics.median(getattr(choice, name) for choice in valid) for name in ("learning_rate", "epochs")
            ]
            rows.append([label, len(valid), *shares, *medians])
    columns = ["chosen", "self-edits", *GROUPS, "output tokens only", "learning rate", "epochs"]
    return {"title": "What was chosen", "note": "Learning rate and epochs: medians.", "columns": columns, "rows": rows}


def what_failed(problems: Mapping[str, Sequence[str | None]]) -> dict[str, Any]:
    """A table: how many self-edits of each stage (its label) trained nothing or diverged, and why."""
    rows = []
    for label, found in problems.items():
        counted = Counter(problem for problem in found if problem)
        why = ", ".join(f"{count} {problem}" for problem, count in counted.most_common())
        if found:
            rows.append([label, len(found), f"{counted.total() / len(found):.0%}", why or "-"])
    return {
        "title": "Self-edits that failed",
        "note": "They are scored as no training.",
        "columns": ["sampled", "self-edits", "failed", "why"],
        "rows": rows,
    }


def grids_of(tasks: Sequence[Task], attempts: Mapping[str, Sequence[Sequence[Sequence[Grid]]]]) -> dict[str, Any]:
    """The tasks as the report draws them: each stage's attempts at each test input of each task, and what is right."""
    items = []
    for p, task in enumerate(tasks):
        for number, test in enumerate(task.test):
            shown = []
            for label, of_stage in attempts.items():
                tried = of_stage[p][number]
                for n in range(inference.ATTEMPTS):
                    grid = tried[n] if n < len(tried) else None
                    right = grid is not None and np.array_equal(grid, test.output)
                    name = f"{label}, attempt {n + 1}"
                    shown.append({"label": name, "grid": None if grid is None else grid.tolist(), "right": right})
            items.append(
                {
                    "label": f"{task.id}, test {number + 1}" if len(task.test) > 1 else task.id,
                    "pairs": [[pair.input.tolist(), pair.output.tolist()] for pair in task.train],
                    "input": test.input.tolist(),
                    "expected": test.output.tolist(),
                    "attempts": shown,
                }
            )
    return {"title": "Attempts", "note": "After the first self-edit of each stage.", "items": items}
