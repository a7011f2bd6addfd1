"""What a run on ARC found, as rows, tables and grids of the report."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from seal_jax.analysis.statistics import wilson
from seal_jax.domains.arc import domain as arc
from seal_jax.domains.arc import inference, prompts, self_edits
from seal_jax.domains.arc.self_edits import Bounds, Choice
from seal_jax.domains.arc.tasks import Task
from seal_jax.run.session import Session
from seal_jax.seal import evaluation
from seal_jax.seal.rewards import Score, Trial, mean
from seal_jax.types import SelfEdit


class Shown(NamedTuple):
    """One stage of the run on the evaluation tasks."""

    name: str
    label: str
    trials: list[list[Trial]]  # [P][E]
    free: list[list[SelfEdit]] | None = None  # what was written without the constraint


def rows_of(
    stages: Sequence[Shown], base: Sequence[Score], held_out: Sequence[Task], seed: int
) -> list[dict[str, Any]]:
    """The rows of the result: the model as it is, then each stage. Solved of tried, with Wilson's interval."""
    compared = [evaluation.base_stage(base, "In-context learning")]
    compared += [evaluation.trained_stage(stage.name, stage.label, stage.trials) for stage in stages]
    tests = sum(len(task.test) for task in held_out)
    verdicts = [[score.verdicts for score in base]]
    for stage in stages:
        seeds = max(len(trial.scores) for row in stage.trials for trial in row)
        scores = [
            trial.scores[seed % len(trial.scores)]  # one that trained nothing has one score: every seed's
            for row in stage.trials
            for trial in row
            for seed in range(seeds)
        ]
        verdicts.append([score.verdicts for score in scores])
    found = []
    for row, tried in zip(evaluation.rows(compared, held_out, tests, seed=seed), verdicts, strict=True):
        solved = sum(verdict is True for score in tried for verdict in score)
        share = wilson(solved, len(tried))
        found.append(
            row
            | {"unit": "task", "interval": "Wilson", "solved": solved, "tried": len(tried), "accuracy": share.as_json()}
        )
    return found


def what_was_chosen(stages: Sequence[Shown], bounds: Bounds) -> dict[str, Any]:
    """A table: which augmentations and settings the valid self-edits of each stage chose."""
    rows = []
    for stage in stages:
        read = [self_edits.parse_choice(trial.edit.completion, bounds) for row in stage.trials for trial in row]
        valid = [choice for choice in read if isinstance(choice, Choice)]
        if valid:
            shares = [
                f"{mean(getattr(choice, group) for choice in valid):.0%}"
                for group in ("basic", "size", "chain", "repeat")
            ]
            output = mean(choice.strategy == "output_tokens" for choice in valid)
            rates, epochs = ([getattr(choice, field) for choice in valid] for field in ("learning_rate", "epochs"))
            rows.append(
                [stage.label, len(valid), *shares, f"{output:.0%}", statistics.median(rates), statistics.median(epochs)]
            )
    columns = [
        "chosen",
        "self-edits",
        "basic",
        "size",
        "chain",
        "repeat",
        "output tokens only",
        "learning rate",
        "epochs",
    ]
    return {"title": "What was chosen", "note": "Learning rate and epochs: medians.", "columns": columns, "rows": rows}


def what_failed(stages: Sequence[Shown]) -> dict[str, Any]:
    """A table: how many self-edits trained nothing or diverged, and why; those sampled without the constraint too."""
    rows = []
    for stage in stages:
        tried = [trial.problem for row in stage.trials for trial in row]
        free = [edit.problem for row in stage.free or () for edit in row]
        for label, problems in ((stage.label, tried), (f"{stage.label}: sampled freely, not trained", free)):
            if problems:
                counted = Counter(problem for problem in problems if problem)
                why = ", ".join(f"{count} {problem}" for problem, count in counted.most_common())
                rows.append([label, len(problems), f"{counted.total() / len(problems):.0%}", why or "-"])
    return {
        "title": "Self-edits that failed",
        "note": "They are scored as no training.",
        "columns": ["sampled", "self-edits", "failed", "why"],
        "rows": rows,
    }


def grids_of(held_out: Sequence[Task], base: Sequence[Score], stages: Sequence[Shown], here: Session) -> dict[str, Any]:
    """The evaluation tasks as the report draws them: attempts after each stage's first self-edit, and what is right."""
    texts, items = prompts.load_prompts(here.writer.style), []
    for p, task in enumerate(held_out):
        queries = here.loop.domain.queries(task)
        tried = [("In-context learning", base[p])]
        tried += [(stage.label, stage.trials[p][0].scores[0]) for stage in stages]
        found = [(label, arc.attempts(texts, queries, score.answers)) for label, score in tried]
        for number, test in enumerate(task.test):
            shown = []
            for label, grids in found:
                for n in range(inference.ATTEMPTS):
                    grid = grids[number][n] if n < len(grids[number]) else None
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
