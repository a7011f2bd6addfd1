"""How far a grader agrees with a judge whose verdicts were recorded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from seal_jax.types import Verdict

SHOWN = 5  # ungraded answers that are printed
RESAMPLES = 1000  # bootstrap samples of the passages: the error's own error is then 2 %


class _Answer(msgspec.Struct):
    """A line of recorded answers; other fields are kept as they are."""

    question: str
    gold: str
    answer: str
    correct: bool | UnsetType = UNSET
    log_likelihood: float | UnsetType = UNSET


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
    passages: int  # that the answers are about


def agreement(
    verdicts: Sequence[Verdict], correct: Sequence[bool], passages: Sequence[Hashable] | None = None
) -> Agreement:
    """Compares a grader's verdicts with a judge's.

    Args:
        verdicts: the grader's; None where it has none.
        correct: the judge's, one for each.
        passages: which passage each answer is about. Answers about one passage are right and wrong together, so the
            error of kappa is from a bootstrap over passages (seed 0). By default each answer is about another.

    Raises:
        ValueError: the lengths differ, or there is no answer with a verdict.
    """
    if len(verdicts) != len(correct):
        raise ValueError(f"{len(verdicts)} verdicts against {len(correct)} of the judge; expected one for each")
    passages = range(len(correct)) if passages is None else passages
    if len(passages) != len(correct):
        raise ValueError(f"{len(passages)} passages for {len(correct)} answers; expected one for each")
    graded = [i for i, verdict in enumerate(verdicts) if verdict is not None]
    if not graded:
        raise ValueError(f"none of {len(verdicts)} answers has a verdict; expected at least one to compare")
    index: dict[Hashable, int] = {}
    asked = [index.setdefault(passages[i], len(index)) for i in graded]
    tables = np.zeros((len(index), 2, 2))  # of a passage's answers: the grader's verdict by the judge's, right first
    np.add.at(tables, (asked, [int(not verdicts[i]) for i in graded], [int(not correct[i]) for i in graded]), 1)
    (both, only_grader), (only_judge, neither) = table = tables.sum(axis=0)
    n, rng = len(graded), np.random.default_rng(0)
    resampled = [_kappa(tables[rng.integers(0, len(tables), len(tables))].sum(axis=0)) for _ in range(RESAMPLES)]
    return Agreement(
        n=n,
        ungraded=len(verdicts) - n,
        agreement=float((both + neither) / n),
        kappa=_kappa(table),
        precision=float(both / (both + only_grader)) if both + only_grader else 0.0,
        recall=float(both / (both + only_judge)) if both + only_judge else 0.0,
        called_right=float((both + only_grader) / n),
        kappa_error=float(np.std(resampled, ddof=1)),
        passages=len(index),
    )


def _kappa(table: np.ndarray) -> float:
    shares = table / table.sum()
    observed, chance = np.trace(shares), shares.sum(1) @ shares.sum(0)
    return float((observed - chance) / (1 - chance)) if chance < 1 else 1.0


def compare(rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict]) -> tuple[dict[str, Any], list[str]]:
    """Counts verdicts, and compares them with the recorded ones where there are any: figures, and lines to print."""
    missing = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict is None]
    counts = {"right": list(verdicts).count(True), "wrong": list(verdicts).count(False), "ungraded": len(missing)}
    lines = [f"{len(rows)} answers: " + ", ".join(f"{n} {name}" for name, n in counts.items())]
    figures: dict[str, float | None] = dict.fromkeys(("agreement", "kappa", "kappa_error", "precision", "recall"))
    if "correct" in rows[0] and len(missing) < len(rows):
        found = agreement(verdicts, [row["correct"] for row in rows], [passage_of(row["question"]) for row in rows])
        figures = {name: x if math.isfinite(x := getattr(found, name)) else None for name in figures}
        lines.append(
            f"against the recorded verdicts (n = {found.n} on {found.passages} passages): "
            f"agreement {100 * found.agreement:.1f} %, Cohen's kappa {found.kappa:.3f} "
            f"(standard error {found.kappa_error:.3f}), "
            f"precision {100 * found.precision:.1f} %, recall {100 * found.recall:.1f} %"
        )
    if missing:
        lines.append("ungraded, and counted neither as right nor as wrong:")
        lines += [f"  {_cut(row['question'])} -> {_cut(row['answer'])}" for row in missing[:SHOWN]]
    if len(missing) > SHOWN:
        lines.append(f"  and {len(missing) - SHOWN} more: --out FILE lists all")
    return {"n": len(rows) - len(missing), **figures, **counts}, lines


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else line[:67] + "..."


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
            msgspec.json.decode(line, type=_Answer)
        except msgspec.DecodeError as error:
            form = "{question, gold, answer}, with correct (true or false) and log_likelihood (a number) or without"
            raise ValueError(f"{where}: {error}; expected an object a line, {form}") from error
        row = json.loads(line)
        for field in ("correct", "log_likelihood"):
            if rows and (field in row) != (field in rows[0]):
                has, lacks = ("this line", "the first") if field in row else ("the first", "this line")
                raise ValueError(f"{where}: {has} has a field '{field}', {lacks} has not; give it in all lines or none")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no answers; expected lines of {{question, gold, answer}}")
    return rows


def split(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Splits by passage: what the lexical grader was tuned on, and what it was not.

    The 946 questions of the recorded answers are listed by passage in data/passages.txt, each as the first 8 hex digits
    of its SHA-256; where the passage is not known, the line holds questions on one subject. A line whose first number
    is a multiple of 3 was not tuned on, nor was any question that is not listed.
    """
    tuned: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for row in rows:
        passage = passage_of(row["question"])
        (tuned if not passage.startswith("question") and int(passage, 16) % 3 else held_out).append(row)
    return tuned, held_out


def passage_of(question: str) -> str:
    """A name of the passage that a recorded question is on; of the question itself where it is not listed."""
    digest = hashlib.sha256(question.encode()).hexdigest()[:8]
    return _passages().get(digest, f"question {digest}")


@cache
def _passages() -> dict[str, str]:
    lines = resources.files(__package__).joinpath("data/passages.txt").read_text(encoding="utf-8").splitlines()
    return {digest: line.split()[0] for line in lines for digest in line.split()}
