"""Which grader a run uses, and how: the settings, and the grader that they describe."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from seal_jax.graders.judge import GRADE_TOKENS, RATE_TOKENS, Ask, Rate, grade_with, rate_with
from seal_jax.graders.lexical import grade_by_match
from seal_jax.graders.replies import Replies, Usage, remember
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
    batch: int = 16  # prompts at a time, kind model; halved when memory does not suffice
    base_url: str = OPENAI  # kind endpoint, as are all below
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; an address of your own may need none."""
    concurrency: int = 8  # requests under way at a time
    requests_per_minute: float | None = None  # at most; None: no limit of ours
    timeout_s: float = 60.0  # without a sign of the server
    attempts: int = 6  # requests for a prompt before it is left without a reply
    backoff_s: float = 1.0  # before the second attempt; doubled each time, with jitter, unless the server names a wait
    longest_wait_s: float = 120.0  # between two attempts, whatever the server says
    give_up_after: int = 20  # prompts failed in a row: the service is down, and what is left is not asked
    price_in: float | None = None  # USD per million tokens read
    price_out: float | None = None  # USD per million tokens written

    def __post_init__(self) -> None:
        require_at_least(
            1, batch=self.batch, concurrency=self.concurrency, attempts=self.attempts, give_up_after=self.give_up_after
        )
        require_at_least(
            0, backoff_s=self.backoff_s, longest_wait_s=self.longest_wait_s,
            price_in=self.price_in or 0, price_out=self.price_out or 0,
        )  # fmt: skip
        for name in ("timeout_s", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"grader: {name} is {value}; expected more than 0")
        if self.kind in ("model", "endpoint") and not self.model:
            example = "smollm2-135m" if self.kind == "model" else "gpt-4.1-2025-04-14"
            raise ValueError(f"grader kind {self.kind} needs the name of a model: --grader.model {example}")
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or url.query or url.fragment:
            raise ValueError(  # the address itself is not shown: it may hold a key
                "grader: base_url is not of the form https://HOST/PATH (no user, no ?query); a key belongs into the "
                "environment variable that --grader.key-variable names"
            )
        if not self.key_variable.isidentifier() or self.key_variable != self.key_variable.upper():
            raise ValueError(
                "grader: key_variable is not the name of an environment variable in capitals, such as "
                "OPENAI_API_KEY; never give the key itself"
            )


class Judge(NamedTuple):
    """A grader that is ready."""

    grade: Grade
    rate: Rate | None  # of self-edits by a rubric; None where no model judges
    report: Callable[[], str | None]  # one line on what was asked and what it cost; None where nothing is
    usage: Callable[[], dict[str, Any]]  # the same as plain JSON


def make_judge(config: Grader, *, cache: Path, devices: int | None, say: Callable[[str], None]) -> Judge:
    """The grader that the settings describe.

    Args:
        cache: the file that keeps a model's replies. Runs may share one.
        devices: that a model here uses. It is loaded when it is first asked something new.
        say: told what a person should know while it works.

    Raises:
        ValueError: no grader of answers (likelihood), no key or client for an endpoint, a cache file of another kind.
        OSError: the cache cannot be made or read.
    """
    if config.kind == "lexical":
        return Judge(grade_by_match, None, lambda: None, dict)
    if config.kind == "likelihood":
        raise ValueError(
            "grader kind likelihood reads log-likelihoods that were recorded: python -m experiments.grade does. "
            "In an experiment the log-likelihood is always measured beside the accuracy; choose lexical, model or "
            "endpoint for the latter"
        )
    usage = Usage()
    if config.kind == "model":
        make_ask = _local(config, Replies(cache), usage, devices, say)
    else:
        from seal_jax.graders.endpoint import Endpoint

        endpoint = Endpoint(config, cache, usage, say)
        make_ask = lambda max_tokens: functools.partial(endpoint.ask, max_tokens=max_tokens)
    return Judge(
        grade_with(make_ask(GRADE_TOKENS)),
        rate_with(make_ask(RATE_TOKENS)),
        lambda: _report(config, usage),
        lambda: {**usage.as_json(), "usd": cost(config, usage)},
    )


def _local(
    config: Grader, replies: Replies, usage: Usage, devices: int | None, say: Callable[[str], None]
) -> Callable[[int], Ask]:
    """A number of tokens -> an `Ask` of the model here, which is found and loaded when it is needed, and once."""
    from seal_jax.engine.inner import Chunk
    from seal_jax.graders import local
    from seal_jax.io import hub
    from seal_jax.run import runtime

    assert config.model is not None  # checked with the settings
    name, chunk = config.model, Chunk(config.batch, "prompts of the judge", say)
    load = functools.cache(lambda: runtime.load_language_model(name, config.dtype, devices))

    @functools.cache
    def stamp() -> list[list[Any]]:
        """Of the model's files: another model in the same folder is another judge."""
        path = hub.find_model(name).path
        files = sorted(path.glob("*.safetensors")) + sorted(path.glob("*.json")) if path.is_dir() else [path]
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]

    def make_ask(max_tokens: int) -> Ask:
        def ask(prompts: Any) -> list[str | None]:
            lm, chat, model = load()
            return local.make_ask(
                lm, chat, max_tokens=max_tokens, chunk=chunk, context_length=model.context_length
            )(prompts)  # fmt: skip

        def asked() -> dict[str, Any]:
            return {"model": name, "files": stamp(), "dtype": config.dtype, "max_tokens": max_tokens}

        return remember(ask, replies, usage, at_once=config.batch, asked=asked)

    return make_ask


def cost(config: Grader, usage: Usage) -> float | None:
    """US dollars; None where the prices are not known."""
    if config.price_in is None or config.price_out is None:
        return None
    return (config.price_in * usage.tokens_in + config.price_out * usage.tokens_out) / 1e6


def _report(config: Grader, usage: Usage) -> str:
    parts = [f"{usage.calls} calls", f"{usage.cached} replies from the cache"]
    if usage.failed:
        parts.append(f"{usage.failed} prompts without a reply")
    if config.kind == "endpoint":
        parts.append(f"{usage.retries} retries")
        parts.append(f"{usage.tokens_in} tokens in, {usage.tokens_out} out")
        dollars = cost(config, usage)
        unknown = "cost unknown without --grader.price-in and --grader.price-out"
        parts.append(unknown if dollars is None else f"{dollars:.4f} USD")
    if usage.failures:
        parts.append("failed calls: " + ", ".join(f"{n} x {kind}" for kind, n in usage.failures.most_common()))
    others = [name for name in usage.answered_by if name != config.model]
    if others:
        parts.append(f"answered by {', '.join(others)}")
    return f"judge {config.model}: {'; '.join(parts)}"
