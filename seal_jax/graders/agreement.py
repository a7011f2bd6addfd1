"""How far a grader agrees with a judge whose verdicts were recorded."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seal_jax.types import Verdict

RESAMPLES = 1000  # bootstrap samples of the questions: the error's own error is then 2 %


class Agreement(NamedTuple):
    """How a grader's verdicts compare with a judge's. Fractions are of the `n` answers that have a verdict."""

    n: int  # answers compared
    ungraded: int  # answers without a verdict; left out of everything else
    agreement: float  # same verdict
    kappa: float  # Cohen's: agreement beyond chance, 0 none, 1 perfect
    precision: float  # of what the grader calls right, what the judge does
    recall: float  # of what the judge calls right, what the grader does
    called_right: float  # the accuracy that the grader reports
    kappa_error: float  # standard error of kappa


def agreement(
    verdicts: Sequence[Verdict], correct: Sequence[bool], questions: Sequence[Hashable] | None = None
) -> Agreement:
    """Compares a grader's verdicts with a judge's.

    Args:
      verdicts: the grader's; None where it has none.
      correct: the judge's, one for each.
      questions: which question each answer is to. Answers to one question are right and wrong together, so the error
        of kappa is then from a bootstrap over questions (seed 0). Without, each answer counts as a question of its
        own, which reads somewhat too low, and the error is the large-sample one (Fleiss, Cohen and Everitt 1969).

    Raises:
      ValueError: the lengths differ, or there is no answer with a verdict.
    """
    if len(verdicts) != len(correct):
        raise ValueError(f"{len(verdicts)} verdicts against {len(correct)} of the judge; expected one for each")
    if questions is not None and len(questions) != len(correct):
        raise ValueError(f"{len(questions)} questions for {len(correct)} answers; expected one for each")
    graded = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    if not graded:
        raise ValueError(f"none of {len(verdicts)} answers has a verdict; expected at least one to compare")
    pairs = [(bool(verdicts[i]), bool(correct[i])) for i in graded]
    table = _table(pairs)
    (both, only_grader), (only_judge, neither) = table
    n = len(pairs)
    return Agreement(
        n=n,
        ungraded=len(verdicts) - n,
        agreement=float((both + neither) / n),
        kappa=_kappa(table),
        precision=float(both / (both + only_grader)) if both + only_grader else 0.0,
        recall=float(both / (both + only_judge)) if both + only_judge else 0.0,
        called_right=float((both + only_grader) / n),
        kappa_error=(
            _large_sample_error(table) if questions is None else _bootstrap_error(pairs, [questions[i] for i in graded])
        ),
    )


def _table(pairs: Sequence[tuple[bool, bool]]) -> np.ndarray:
    """Counts, [2, 2]: the grader's verdict by the judge's, right before wrong."""
    counts = Counter(pairs)
    return np.array([[counts[grader, judge] for judge in (True, False)] for grader in (True, False)], float)


def _kappa(table: np.ndarray) -> float:
    shares = table / table.sum()
    observed, chance = np.trace(shares), shares.sum(1) @ shares.sum(0)
    return float((observed - chance) / (1 - chance)) if chance < 1 else 1.0


def _large_sample_error(table: np.ndarray) -> float:
    """Fleiss, Cohen and Everitt (1969), equation 13."""
    shares = table / table.sum()
    grader, judge, kappa = shares.sum(1), shares.sum(0), _kappa(table)
    chance = grader @ judge
    if chance == 1:
        return 0.0
    agree = sum(shares[i, i] * (1 - (grader[i] + judge[i]) * (1 - kappa)) ** 2 for i in range(2))
    differ = sum(shares[i, 1 - i] * (judge[i] + grader[1 - i]) ** 2 for i in range(2)) * (1 - kappa) ** 2
    variance = agree + differ - (kappa - chance * (1 - kappa)) ** 2
    return math.sqrt(max(float(variance), 0.0) / table.sum()) / (1 - float(chance))


def _bootstrap_error(pairs: Sequence[tuple[bool, bool]], questions: Sequence[Hashable]) -> float:
    by_question: dict[Hashable, list[tuple[bool, bool]]] = {}
    for pair, question in zip(pairs, questions, strict=True):
        by_question.setdefault(question, []).append(pair)
    tables = np.stack([_table(of_one) for of_one in by_question.values()])
    rng = np.random.default_rng(0)
    resampled = [_kappa(tables[rng.integers(0, len(tables), len(tables))].sum(0)) for _ in range(RESAMPLES)]
    return float(np.std(resampled, ddof=1))


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """Reads answers, one JSON object a line: `{question, gold, answer[, correct][, log_likelihood]}`.

    `correct` is a judge's verdict, `log_likelihood` the gold answer's; each is in all lines or in none. Other fields
    are kept as they are.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line is not such an object, or there is none; says which line and field.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error.msg}; expected one object a line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: found a {type(row).__name__}; expected an object {{question, gold, answer}}")
        for field in ("question", "gold", "answer"):
            if not isinstance(row.get(field), str):
                raise ValueError(f"{where}: {_found(row, field)}; expected a field '{field}' of type str")
        if "correct" in row and not isinstance(row["correct"], bool):
            raise ValueError(f"{where}: {_found(row, 'correct')}; expected a field 'correct' of type bool")
        if "log_likelihood" in row and not _is_number(row["log_likelihood"]):
            raise ValueError(f"{where}: {_found(row, 'log_likelihood')}; expected a field 'log_likelihood', a number")
        for field in ("correct", "log_likelihood"):
            if rows and (field in row) != (field in rows[0]):
                has, lacks = ("this line", "the first") if field in row else ("the first", "this line")
                raise ValueError(f"{where}: {has} has a field '{field}', {lacks} has not; give it in all lines or none")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no answers; expected lines of {{question, gold, answer}}")
    return rows


def _found(row: dict[str, Any], field: str) -> str:
    return f"found {field} = {json.dumps(row[field])}" if field in row else f"found no '{field}'"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def halves(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Splits by question, so that no question is in both: the half to tune a grader on, the half to report it on."""
    tuned: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for row in rows:
        digest = hashlib.sha256(row["question"].encode()).digest()
        (tuned if digest[-1] % 2 == 0 else held_out).append(row)
    return tuned, held_out
