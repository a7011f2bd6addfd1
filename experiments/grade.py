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

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from seal_jax.graders.agreement import compare, read_answers, split
from seal_jax.graders.choose import Connection, Grader
from seal_jax.run import ends, runtime
from seal_jax.run.journal import as_json, write_atomically
from seal_jax.run.judges import make_judge
from seal_jax.run.terminal import shell_command, show
from seal_jax.types import Query, Verdict, require_at_least

PIECE = 256  # answers given to a model at a time; progress is shown between


@dataclasses.dataclass(frozen=True)
class Config:
    """Grade recorded answers."""

    answers: Path  # JSON lines {question, gold, answer[, correct][, log_likelihood]}
    grader: Grader = Grader()  # who says whether an answer is right
    judge: Connection = Connection()  # how it is reached
    threshold: float = round(math.log(0.5), 4)
    """Kind likelihood: an answer is right from this many nats a token on; log 0.5: the gold token beats all others."""
    part: Literal["all", "tuned", "held-out"] = "all"
    """Of the answers, split by passage (`agreement.split`): what the lexical grader was tuned on, or was not."""
    limit: int | None = None  # grade this many answers, from the first
    json: Path | None = None  # write the figures here
    out: Path | None = None  # write every line here again, with its `verdict` (true, false, or null where ungraded)
    cache: Path = Path("runs") / "judge.jsonl"  # where a model's replies are kept; gradings may share it
    devices: int | None = None  # kind model: by default all GPUs or TPUs, and a CPU's cores up to 4

    def __post_init__(self) -> None:
        if self.limit is not None:
            require_at_least(1, limit=self.limit)


def read(config: Config) -> list[dict[str, Any]]:
    """The answers to grade. Raises FileNotFoundError, or ValueError where a line is wrong or none is left."""
    rows = read_answers(config.answers)
    if config.part != "all":
        rows = split(rows)[config.part == "held-out"]
        if not rows:
            raise ValueError(f"{config.answers}: --part {config.part} holds none of its answers; use --part all")
    if config.grader.kind == "likelihood" and "log_likelihood" not in rows[0]:
        found = f"{config.answers}: no line has a field 'log_likelihood'"
        raise ValueError(f"{found}; grader kind likelihood needs the gold answer's, in nats a token, on every line")
    return rows[: config.limit]


def run(config: Config, say: Callable[[str], None]) -> None:
    """Grades, prints and writes what was asked for."""
    rows, started = read(config), time.perf_counter()
    judge, verdicts = None, list[Verdict]()
    if config.grader.kind == "likelihood":
        verdicts = [row["log_likelihood"] >= config.threshold for row in rows]
    else:
        judge = make_judge(config.grader, config.judge, cache=config.cache, devices=config.devices, say=say)
        for start in range(0, len(rows), PIECE):
            piece = rows[start : start + PIECE]
            queries = [Query(row["question"], row["question"], row["gold"]) for row in piece]
            verdicts += judge.grade(queries, [row["answer"] for row in piece])
            if judge.rate is not None and len(rows) > PIECE:  # a model: it takes its time
                say(f"{len(verdicts)} of {len(rows)} answers")
    seconds = time.perf_counter() - started
    figures, (counts, *lines) = compare(rows, verdicts)
    rate = len(rows) / seconds
    show(f"{counts}; {seconds:.2f} s, {rate:{',.0f' if rate >= 10 else '.1f'}} answers/s", *lines)
    if judge and (line := judge.report()):
        show(line)
    figures |= {"seconds": seconds, "answers_per_second": rate, "part": config.part}
    figures |= {"grader": as_json(config.grader), "usage": judge.usage() if judge else {}}
    graded = [json.dumps({**row, "verdict": v}) + "\n" for row, v in zip(rows, verdicts, strict=True)]
    for path, text in ((config.json, json.dumps(figures, indent=1) + "\n"), (config.out, "".join(graded))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)


def main(arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback."""

    def work() -> None:
        config = tyro.cli(Config, prog=shell_command("grade"), args=arguments, description=__doc__)
        if config.grader.kind == "model":
            runtime.start(config.devices)
        run(config, lambda text: show(text, file=sys.stderr))

    return ends.ended(work, "stopped; replies so far are kept: the same command carries on")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
