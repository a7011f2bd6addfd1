"""Which grader a run uses: its settings, and what a grader that is ready can do (`run.judges` makes it ready)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from seal_jax.graders.judge import GRADE_TOKENS, RATE_TOKENS, Ask, Rate, grade_with, rate_with
from seal_jax.graders.replies import Usage
from seal_jax.types import Grade, require_at_least

OPENAI = "https://api.openai.com/v1"


@dataclasses.dataclass(frozen=True)
class Grader:
    """Who says whether an answer is right."""

    kind: Literal["lexical", "model", "endpoint", "likelihood"] = "lexical"  # the free one
    """lexical: by rule, free; model: a language model here; endpoint: one behind an OpenAI-compatible address;
    likelihood: from the gold answer's log-likelihood, where it was recorded (experiments.grade only)."""
    model: str | None = None
    """Of the judge. model: as --model names one. endpoint: by its dated name, such as gpt-4.1-2025-04-14 (paper's)."""
    dtype: Literal["float32", "bfloat16"] = "float32"  # kind model
    base_url: str = OPENAI  # kind endpoint

    def __post_init__(self) -> None:
        if self.kind in ("model", "endpoint") and not self.model:
            example = "smollm2-135m" if self.kind == "model" else "gpt-4.1-2025-04-14"
            raise ValueError(f"grader kind {self.kind} needs the name of a model: --grader.model {example}")
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
            raise ValueError(  # the address itself is not shown: it may hold a key
                "grader: base_url is not of the form https://HOST/PATH (no user, no ?query); a key belongs into the "
                "environment variable that --judge.key-variable names"
            )


@dataclasses.dataclass(frozen=True)
class Connection:
    """How a judge that is a model is reached, and what it costs: no verdict depends on it."""

    batch: int = 16  # prompts at a time, kind model; halved when memory does not suffice
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds an endpoint's key; an address of your own may need none."""
    concurrency: int = 8  # requests under way at a time
    requests_per_minute: float | None = None  # at most; None: no limit of ours
    timeout_s: float = 60.0  # without a sign of the server
    attempts: int = 6  # requests for a prompt before it is left without a reply; the openai client waits between them
    give_up_after: int = 20  # prompts failed in a row: the service is down, and what is left is not asked
    price_in: float | None = None  # USD per million tokens read
    price_out: float | None = None  # USD per million tokens written

    def __post_init__(self) -> None:
        require_at_least(
            1, batch=self.batch, concurrency=self.concurrency, attempts=self.attempts, give_up_after=self.give_up_after
        )
        require_at_least(0, price_in=self.price_in or 0, price_out=self.price_out or 0)
        for name in ("timeout_s", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"judge: {name} is {value}; expected more than 0")
        if not self.key_variable.isidentifier() or self.key_variable != self.key_variable.upper():
            raise ValueError(
                "judge: key_variable is not the name of an environment variable in capitals, such as "
                "OPENAI_API_KEY; never give the key itself"
            )


class Judge(NamedTuple):
    """A grader that is ready."""

    grade: Grade
    rate: Rate | None  # of self-edits by a rubric; None where no model judges
    report: Callable[[], str | None]  # one line on what was asked and what it cost; None where nothing is
    usage: Callable[[], dict[str, Any]]  # the same as plain JSON


def judge_with(make_ask: Callable[[int], Ask], config: Grader, connection: Connection, usage: Usage) -> Judge:
    """A judge that is a model: `make_ask` returns what asks it for replies of at most a number of tokens."""
    return Judge(
        grade_with(make_ask(GRADE_TOKENS)),
        rate_with(make_ask(RATE_TOKENS)),
        lambda: _report(config, connection, usage),
        lambda: {**vars(usage), "usd": cost(connection, usage)},
    )


def cost(connection: Connection, usage: Usage) -> float | None:
    """US dollars; None where the prices are not known."""
    if connection.price_in is None or connection.price_out is None:
        return None
    return (connection.price_in * usage.tokens_in + connection.price_out * usage.tokens_out) / 1e6


def _report(config: Grader, connection: Connection, usage: Usage) -> str:
    parts = [f"{usage.calls} calls", f"{usage.cached} replies from the cache"]
    if usage.failed:
        parts.append(f"{usage.failed} prompts without a reply")
    if config.kind == "endpoint":
        dollars = cost(connection, usage)
        unknown = "cost unknown without --judge.price-in and --judge.price-out"
        parts += [
            f"{usage.retries} retries",
            f"{usage.tokens_in} tokens in, {usage.tokens_out} out",
            unknown if dollars is None else f"{dollars:.4f} USD",
        ]
    if usage.failures:
        parts.append("failed calls: " + ", ".join(f"{n} x {kind}" for kind, n in usage.failures.most_common()))
    others = [name for name in usage.answered_by if name != config.model]
    if others:
        parts.append(f"answered by {', '.join(others)}")
    return f"judge {config.model}: {'; '.join(parts)}"
