"""Grades recorded answers with any grader and, where a judge's verdicts are recorded too, says how far they agree.

    python -m experiments.grade --answers FILE.jsonl                    # by rule: thousands of answers a second
    python -m experiments.grade --answers FILE.jsonl --grader.kind likelihood --threshold -0.7
    python -m experiments.grade --answers FILE.jsonl --grader.kind model --grader.model smollm2-135m --limit 200
    python -m experiments.grade --answers FILE.jsonl --grader.kind endpoint --grader.model gpt-4.1-2025-04-14

A line of FILE is {question, gold, answer}, with `correct` (true or false: the recorded verdict) and `log_likelihood`
(nats a token of the gold answer) if there is one. A model's replies are kept (--cache), so the same command carries on
where it was stopped, and asks only for what it has no reply to.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from seal_jax.graders.agreement import Agreement, agreement, halves, read_answers
from seal_jax.graders.choose import Grader, Judge, make_judge
from seal_jax.run import runtime
from seal_jax.run.invocation import shell_command
from seal_jax.run.journal import as_json, write_atomically
from seal_jax.types import Query, Verdict, require_at_least

PIECE = 256  # answers given to a model at a time; progress is shown between
SHOWN = 5  # ungraded answers that are printed; --out has them all


@dataclasses.dataclass(frozen=True)
class Config:
    """Grade recorded answers."""

    answers: Path
    """JSON lines {question, gold, answer[, correct][, log_likelihood]}."""
    grader: Grader = Grader()
    """Who says whether an answer is right."""
    threshold: float = round(math.log(0.5), 4)
    """Kind likelihood: right is what has at least so many nats a token (log 0.5: the model would sooner write the gold
    answer's next token than anything else)."""
    part: Literal["all", "tuned", "held-out"] = "all"
    """Of the answers, split by question: the half that the lexical grader was tuned on, or the half it was not."""
    limit: int | None = None
    """Only the first so many."""
    json: Path | None = None
    """Write the figures here."""
    out: Path | None = None
    """Write every line here again, with its `verdict` (true, false, or null where ungraded)."""
    cache: Path = Path("runs") / "judge.jsonl"
    """Where a model's replies are kept. Gradings may share it."""
    devices: int | None = None
    """Kind model: devices it uses; by default all GPUs or TPUs, and a CPU's cores up to 4."""

    def __post_init__(self) -> None:
        if self.limit is not None:
            require_at_least(1, limit=self.limit)


def choose_rows(config: Config) -> list[dict[str, Any]]:
    """The answers to grade.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not what it should be, or none is left.
    """
    rows = read_answers(config.answers)
    if config.part != "all":
        tuned, held_out = halves(rows)
        rows = tuned if config.part == "tuned" else held_out
        if not rows:
            raise ValueError(f"{config.answers}: --part {config.part} holds none of its answers; use --part all")
    return rows[: config.limit]


def grade_by_likelihood(rows: Sequence[dict[str, Any]], threshold: float, source: Path) -> list[Verdict]:
    """Right is what has at least `threshold` nats a token. Raises ValueError where none were recorded."""
    if "log_likelihood" not in rows[0]:
        raise ValueError(
            f"{source}: no line has a field 'log_likelihood'; grader kind likelihood needs the gold answer's, in nats "
            "a token, on every line"
        )
    return [row["log_likelihood"] >= threshold for row in rows]


def grade_rows(rows: Sequence[dict[str, Any]], judge: Judge, say: Callable[[str], None]) -> list[Verdict]:
    """A verdict for each row; `say` hears how far it is."""
    verdicts: list[Verdict] = []
    for start in range(0, len(rows), PIECE):
        piece = rows[start : start + PIECE]
        queries = [Query(row["question"], row["question"], row["gold"]) for row in piece]
        verdicts += judge.grade(queries, [row["answer"] for row in piece])
        if judge.rate is not None and len(rows) > PIECE:  # a model: it takes its time
            say(f"{len(verdicts)} of {len(rows)} answers")
    return verdicts


def run(config: Config, say: Callable[[str], None]) -> dict[str, Any]:
    """Grades, prints and writes what was asked for; returns what --json holds."""
    rows = choose_rows(config)
    started = time.perf_counter()
    if config.grader.kind == "likelihood":
        judge = None
        verdicts = grade_by_likelihood(rows, config.threshold, config.answers)
    else:
        judge = make_judge(config.grader, cache=config.cache, devices=config.devices, say=say)
        verdicts = grade_rows(rows, judge, say)
    seconds = time.perf_counter() - started
    counts = collections.Counter(verdicts)
    compared = None
    if "correct" in rows[0] and counts[None] < len(rows):
        compared = agreement(verdicts, [row["correct"] for row in rows], [row["question"] for row in rows])
    results = {
        "n": len(rows) - counts[None],  # with a verdict: what agreement and kappa are over
        "agreement": compared and compared.agreement,
        "kappa": compared and _finite(compared.kappa),
        "kappa_error": compared and _finite(compared.kappa_error),
        "precision": compared and compared.precision,
        "recall": compared and compared.recall,
        "ungraded": counts[None],
        "right": counts[True],
        "wrong": counts[False],
        "seconds": seconds,
        "answers_per_second": len(rows) / seconds,
        "part": config.part,
        "grader": as_json(config.grader),
        "usage": judge.usage() if judge else {},
    }
    print(describe(rows, verdicts, results, compared))
    if judge and (line := judge.report()):
        print(line)
    for path, text in (
        (config.json, json.dumps(results, indent=1) + "\n"),
        (config.out, "".join(json.dumps({**row, "verdict": v}) + "\n" for row, v in zip(rows, verdicts, strict=True))),
    ):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
    return results


def describe(
    rows: Sequence[dict[str, Any]], verdicts: Sequence[Verdict], results: dict[str, Any], compared: Agreement | None
) -> str:
    """What a person reads."""
    rate = results["answers_per_second"]
    lines = [
        f"{len(rows)} answers: {results['right']} right, {results['wrong']} wrong, {results['ungraded']} ungraded; "
        f"{results['seconds']:.2f} s, {rate:{',.0f' if rate >= 10 else '.1f'}} answers/s"
    ]
    if compared:
        lines.append(
            f"against the recorded verdicts (n = {compared.n}): agreement {100 * compared.agreement:.1f} %, "
            f"Cohen's kappa {compared.kappa:.3f} (standard error {compared.kappa_error:.3f}), "
            f"precision {100 * compared.precision:.1f} %, recall {100 * compared.recall:.1f} %"
        )
    missing = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict is None]
    if missing:
        lines.append("ungraded, and counted neither as right nor as wrong:")
        lines += [f"  {_short(row['question'])} -> {_short(row['answer'])}" for row in missing[:SHOWN]]
        if len(missing) > SHOWN:
            lines.append(f"  and {len(missing) - SHOWN} more: --out FILE lists all")
    return "\n".join(lines)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else line[:67] + "..."


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def main(arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback."""
    try:
        config = tyro.cli(Config, prog=shell_command("grade"), args=arguments, description=__doc__)
        if config.grader.kind == "model":
            runtime.start(config.devices)
        run(config, lambda text: print(text, file=sys.stderr))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; replies so far are kept: the same command carries on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
