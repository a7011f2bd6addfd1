"""Any OpenAI-compatible endpoint as judge, through the `openai` client: a service that fails at times loses nothing.

What fails and may succeed later (408, 409, 429, 5xx, timeouts, cut connections) the client tries again, with
exponential back-off and jitter, or after the wait that the server names; a body that holds no reply is handed to it as
a 502. What cannot succeed (a wrong key, model or address, no credit) stops everything at once. A prompt refused for
itself (too long, filtered), or failed every time, has no reply. Replies are kept on disk as they come (`replies`).

The key is read from an environment variable and is in no message, file or exception of ours: an exception of the
client holds the request with its headers, so none is passed on or chained.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_jax.graders.choose import OPENAI, Connection, Grader
from seal_jax.graders.replies import Replies, Usage

RETRIED = (408, 409, 429)  # by the client, as is all from 500 on
ONE_PROMPT = ("context_length_exceeded", "content_filter", "content_policy_violation", "string_above_max_length")
NO_CREDIT = "insufficient_quota"  # OpenAI's code for a 429 that no waiting mends
NO_CLIENT = "grader kind endpoint needs the openai client: pip install 'seal_jax[judge]'"
SHOWN = 300  # characters of a server's message
KEY_SHAPE = 8  # characters from which a key is taken out of texts; a shorter one ("none") is no secret


class Endpoint:
    """A service that replies to prompts: `config.model` at `config.base_url`, temperature 0.

    Requests run on an event loop in a daemon thread, so that it works in a notebook, and neither Ctrl-C nor the end of
    the program waits for a reply.

    Raises:
        ValueError: no client installed, no key, or one that no header can carry; a cache file of another kind.
        OSError: the cache cannot be made or read.
    """

    def __init__(self, config: Grader, connection: Connection, cache: Path, usage: Usage, say: Callable[[str], None]):
        self._config, self._connection, self._usage, self._say = config, connection, usage, say
        self._key = _read_key(config, connection)
        self._replies = Replies(cache)
        self._client = _make_client(config, connection, self._key, usage)
        self._in_a_row = 0  # prompts that failed since one did not
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="judge").start()

    def ask(self, prompts: Sequence[str], *, max_tokens: int) -> list[str | None]:
        """A reply to each prompt, from disk where it was asked before; None where every attempt failed.

        Raises:
            ValueError: nothing asked of this service can succeed with these settings.
            OSError: a reply could not be kept.
            KeyboardInterrupt: at once; the replies that came before are kept.
        """
        asked = {"base_url": self._config.base_url, "model": self._config.model, "temperature": 0}

        def send(new: Sequence[str], keep: Callable[..., None]) -> None:
            task = asyncio.run_coroutine_threadsafe(self._ask_all(new, max_tokens, keep), self._loop)
            try:
                task.result()
            finally:
                task.cancel()

        return self._replies.ask(prompts, send, self._usage, **asked, max_tokens=max_tokens)

    async def _ask_all(self, prompts: Sequence[str], max_tokens: int, keep: Callable[..., None]) -> None:
        """Asks all of them, several at a time, unless too many in a row fail."""
        most, free = self._connection.give_up_after, asyncio.Semaphore(self._connection.concurrency)

        async def ask(prompt: str) -> bool | str:
            async with free:
                return await self._ask_one(prompt, max_tokens, keep)

        tasks = [asyncio.create_task(ask(prompt)) for prompt in prompts]
        failed = done = 0
        self._in_a_row = min(self._in_a_row, most - 1)  # after giving up, one prompt is tried
        try:
            for task in asyncio.as_completed(tasks):
                outcome = await task
                if isinstance(outcome, str):
                    raise ValueError(outcome)
                done += 1
                failed, self._in_a_row = (failed, 0) if outcome else (failed + 1, self._in_a_row + 1)
                if self._in_a_row >= most:
                    break
        finally:
            for other in tasks:
                other.cancel()
        left = len(prompts) - done
        self._usage.failed += failed + left
        if failed:
            kinds = ", ".join(f"{n} x {kind}" for kind, n in self._usage.failures.most_common())
            unasked = f" and {left} were not asked, after {self._in_a_row} failures in a row" if left else ""
            self._say(
                f"judge: {failed} of {len(prompts)} prompts got no reply{unasked} ({kinds} so far). They are left "
                "ungraded; the same grading again asks for these only"
            )

    async def _ask_one(self, prompt: str, max_tokens: int, keep: Callable[..., None]) -> bool | str:
        """Whether there was a reply in the end (it is then on disk), or why nothing else need be asked."""
        import openai

        try:
            answer = await self._client.chat.completions.create(
                model=str(self._config.model),
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                max_tokens=max_tokens,
            )
        except openai.APIStatusError as error:
            status = error.status_code
            if status >= 500 or error.code in ONE_PROMPT or (status in RETRIED and error.code != NO_CREDIT):
                return False
            return self._refusal(status, error.body)
        except openai.OpenAIError:
            return False
        reply, answered_by = map(self._without_key, (answer.choices[0].message.content, str(answer.model)))
        stated = (getattr(answer.usage, name, 0) for name in ("prompt_tokens", "completion_tokens"))
        tokens_in, tokens_out = (tokens if isinstance(tokens, int) else 0 for tokens in stated)
        self._usage.tokens_in += tokens_in
        self._usage.tokens_out += tokens_out
        self._usage.answered_by[answered_by] += 1
        about = {"answered_by": answered_by, "tokens_in": tokens_in, "tokens_out": tokens_out}
        keep(prompt, reply, prompt=self._without_key(prompt), **about)
        return True

    def _refusal(self, status: int, body: Any) -> str:
        """The sentence that ends everything. What is said about a key may quote it, and is left out."""
        refused, variable = f"{self._config.base_url} refused", self._connection.key_variable
        if status in (401, 403) and self._key:
            held = f"the key in the environment variable {variable}"
            return f"{refused} {held} ({status}); check it, and that it may use this model"
        if status in (401, 403):
            return f"{refused} a call without a key ({status}); set {variable}"
        message = body.get("message") if isinstance(body, dict) else body
        said = self._without_key(" ".join(str(message or "no reason given").split()))[:SHOWN]
        mend = "add credit" if status == 429 else "check --grader.model and --grader.base-url"
        return f"{refused} a call to {self._config.model} ({status}: {said}); {mend}, then run it again"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= KEY_SHAPE else text


def require(config: Grader, connection: Connection) -> None:
    """Raises ValueError where there is no client or no key."""
    if importlib.util.find_spec("openai") is None:
        raise ValueError(NO_CLIENT)
    _read_key(config, connection)


def _make_client(config: Grader, connection: Connection, key: str | None, usage: Usage) -> Any:
    """The openai client, which tries again by itself; here each request waits for its turn and is counted."""
    try:
        import openai
    except ImportError:
        raise ValueError(NO_CLIENT) from None
    gap = 60 / connection.requests_per_minute if connection.requests_per_minute else 0.0
    start = time.monotonic()  # of the next request, at the earliest

    class Http(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            nonlocal start
            start = max(start, time.monotonic()) + gap
            await asyncio.sleep(start - gap - time.monotonic())
            usage.calls += 1
            usage.retries += request.headers.get("x-stainless-retry-count", "0") != "0"
            try:
                response = await super().send(request, **options)
            except Exception as error:
                usage.failures["timeout" if "Timeout" in type(error).__name__ else "no connection"] += 1
                raise
            if response.is_success and not _holds_reply(response.content):
                usage.failures["no reply in the body"] += 1
                response.status_code = 502
            elif not response.is_success:
                usage.failures[str(response.status_code)] += 1
                if NO_CREDIT in response.text:
                    response.headers["x-should-retry"] = "false"
            return response

    return openai.AsyncOpenAI(
        api_key=key or "none",
        base_url=config.base_url,
        timeout=connection.timeout_s,
        max_retries=connection.attempts - 1,
        http_client=Http(),
    )


def _holds_reply(body: bytes) -> bool:
    """Whether a body is of the right form, and something is said in it."""
    try:
        return bool(json.loads(body)["choices"][0]["message"]["content"].strip())
    except (ValueError, TypeError, AttributeError, LookupError):
        return False


def _read_key(config: Grader, connection: Connection) -> str | None:
    """The key; None where there is none and the address is the user's own."""
    variable = f"the environment variable {connection.key_variable}"
    key = os.environ.get(connection.key_variable, "").strip()
    if not key and config.base_url.rstrip("/") == OPENAI:
        raise ValueError(
            f"{variable} is not set; put the key of {OPENAI} into it, or name another variable "
            "(--judge.key-variable) or another service (--grader.base-url)"
        )
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"{variable} holds characters that no key has; set it to the key alone")
    return key or None
