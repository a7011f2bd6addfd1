"""Any OpenAI-compatible endpoint as judge, through the `openai` client: a service that fails at times loses nothing.

What fails and may succeed later (429, 5xx, timeouts, cut connections, bodies that are no reply) is tried again, with
exponential back-off and jitter, or after the wait that the server names. What cannot succeed (a wrong key, model or
address, no credit) stops everything at once. A prompt refused for itself (too long, filtered), or failed every time,
has no reply. Replies are kept on disk as they come (`replies`).

The key is read from an environment variable and is in no message, file or exception of ours: an exception of the
client holds the request with its headers, so none is passed on or chained.
"""

from __future__ import annotations

import email.utils
import math
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seal_jax.graders.replies import Replies, Usage, reply_key

if TYPE_CHECKING:
    from seal_jax.graders.choose import Grader

RETRIED = (408, 409, 429)  # request timeout, conflict, too many requests; and all from 500 on
ONE_PROMPT = ("context_length_exceeded", "content_filter", "content_policy_violation", "string_above_max_length")
NO_CREDIT = "insufficient_quota"  # OpenAI's code for a 429 that no waiting mends
SHOWN = 300  # characters of a server's message
KEY_SHAPE = 8  # characters from which a key is taken out of texts; a shorter one ("none") is no secret


class Endpoint:
    """A service that replies to prompts: `config.model` at `config.base_url`, temperature 0.

    Raises:
        ValueError: no client installed, no key, or one that no header can carry; a cache file of another kind.
        OSError: the cache cannot be made or read.
    """

    def __init__(self, config: Grader, cache: Path, usage: Usage, say: Callable[[str], None]):
        try:
            import openai
        except ImportError:
            raise ValueError("grader kind endpoint needs the openai client: pip install 'seal_jax[judge]'") from None
        self._openai, self._config, self._usage, self._say = openai, config, usage, say
        self._key = _read_key(config)
        self._replies = Replies(cache)
        self._pace = _Pace(config.requests_per_minute)
        self._in_a_row = 0  # prompts that failed since one did not
        self._count = threading.Lock()  # of `usage`
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=config.base_url,
            timeout=config.timeout_s,
            max_retries=0,  # it tries no body again that is no reply, and its waits cannot be set: `_ask_one` does it
        )

    def ask(self, prompts: Sequence[str], *, max_tokens: int) -> list[str | None]:
        """A reply to each prompt, from disk where it was asked before; None where every attempt failed.

        Raises:
            ValueError: nothing asked of this service can succeed with these settings.
            OSError: a reply could not be kept.
            KeyboardInterrupt: at once; replies under way are kept if they still come.
        """
        self._replies.refresh()
        keys = {prompt: self._reply_key(prompt, max_tokens) for prompt in prompts}
        new = [prompt for prompt, key in keys.items() if key not in self._replies]
        self._usage.cached += len(keys) - len(new)
        if new:
            self._ask_all(new, max_tokens)
        return [self._replies.get(keys[prompt]) for prompt in prompts]

    def _reply_key(self, prompt: str, max_tokens: int) -> str:
        config = self._config
        return reply_key(
            base_url=config.base_url, model=config.model, temperature=0, max_tokens=max_tokens, prompt=prompt
        )

    def _ask_all(self, prompts: Sequence[str], max_tokens: int) -> None:
        """Asks them, several at a time. Daemon threads: neither Ctrl-C nor the end of the program waits for a reply."""
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        finished: queue.SimpleQueue[bool | BaseException] = queue.SimpleQueue()  # replied?, or what stops everything
        stop = threading.Event()
        for prompt in prompts:
            waiting.put(prompt)

        def work() -> None:
            while not stop.is_set():
                try:
                    prompt = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    outcome: bool | BaseException = self._ask_one(prompt, max_tokens, stop)
                except BaseException as error:
                    outcome = error
                finished.put(outcome)

        for _ in range(min(self._config.concurrency, len(prompts))):
            threading.Thread(target=work, daemon=True, name="judge").start()
        failed = done = 0
        self._in_a_row = min(self._in_a_row, self._config.give_up_after - 1)  # given up before: one try may tell
        try:
            while done < len(prompts):
                outcome = finished.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                done += 1
                failed, self._in_a_row = (failed, 0) if outcome else (failed + 1, self._in_a_row + 1)
                if self._in_a_row >= self._config.give_up_after:
                    break
        finally:
            stop.set()
        left = len(prompts) - done
        self._usage.failed += failed + left
        if failed:
            kinds = ", ".join(f"{n} x {kind}" for kind, n in self._usage.failures.most_common())
            unasked = f" and {left} were not asked, after {self._in_a_row} failures in a row" if left else ""
            self._say(
                f"judge: {failed} of {len(prompts)} prompts got no reply{unasked} ({kinds} so far). They are left "
                "ungraded; the same grading again asks for these only"
            )

    def _ask_one(self, prompt: str, max_tokens: int, stop: threading.Event) -> bool:
        """Whether there was a reply in the end; it is then on disk."""
        for attempt in range(self._config.attempts):
            self._pace.wait(stop)
            if stop.is_set():
                return False
            status: int | str
            body: Any = None
            headers: Mapping[str, str] = {}
            try:
                answer = self._call(prompt, max_tokens)
            except self._openai.APIStatusError as error:
                status, body, headers = error.status_code, error.body, error.response.headers
            except self._openai.APITimeoutError:
                status = "timeout"
            except self._openai.APIConnectionError:
                status = "no connection"
            except (self._openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
                status = "no reply in the body"  # not JSON, not of the right form, or with nothing said
            else:
                self._keep(prompt, max_tokens, answer)
                return True
            with self._count:
                self._usage.failures[str(status)] += 1
            if isinstance(status, int):
                code = body.get("code") if isinstance(body, dict) else None
                if status < 500 and code in ONE_PROMPT:
                    return False
                if code == NO_CREDIT or (status < 500 and status not in RETRIED):
                    raise ValueError(self._refusal(status, body))
            if attempt + 1 < self._config.attempts:
                with self._count:
                    self._usage.retries += 1
                asked_for = _retry_after(headers)
                if asked_for is None:
                    stop.wait(self._backoff(attempt))
                else:
                    self._pace.pause(min(asked_for, self._config.longest_wait_s))  # for all: one key, one limit
        return False

    def _backoff(self, attempt: int) -> float:
        """Seconds before the next attempt: doubled each time; half of it is chance, so that threads do not march."""
        longest = min(self._config.backoff_s * 2.0 ** min(attempt, 60), self._config.longest_wait_s)
        return longest * random.uniform(0.5, 1.0)

    def _call(self, prompt: str, max_tokens: int) -> _Answer:
        """One request. Raises whatever the client does, or ValueError for a body in which nothing is said."""
        with self._count:
            self._usage.calls += 1
        assert self._config.model is not None  # checked with the settings
        answer = self._client.chat.completions.create(
            model=self._config.model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=max_tokens,
        )
        reply = answer.choices[0].message.content
        if not isinstance(reply, str) or not reply.strip():
            raise ValueError("an empty reply")
        tokens = (_tokens(answer.usage, name) for name in ("prompt_tokens", "completion_tokens"))
        return _Answer(self._without_key(reply), self._without_key(str(answer.model)), *tokens)

    def _keep(self, prompt: str, max_tokens: int, answer: _Answer) -> None:
        """Counts an answer and writes it to disk."""
        with self._count:
            self._usage.tokens_in += answer.tokens_in
            self._usage.tokens_out += answer.tokens_out
            self._usage.answered_by[answer.answered_by] += 1
        about = answer._asdict()
        self._replies.add(
            self._reply_key(prompt, max_tokens),
            about.pop("reply"),
            prompt=self._without_key(prompt),
            base_url=self._config.base_url,
            model=self._config.model,
            max_tokens=max_tokens,
            **about,
        )

    def _refusal(self, status: int, body: Any) -> str:
        """The sentence that ends everything. What is said about a key may quote it, and is left out."""
        config = self._config
        if status in (401, 403):
            held = f"the key in the environment variable {config.key_variable}"
            return f"{config.base_url} refused {held if self._key else 'a call without a key'} ({status}); " + (
                "check it, and that it may use this model" if self._key else f"set {config.key_variable}"
            )
        message = body.get("message") if isinstance(body, dict) else body
        said = self._without_key(" ".join(str(message or "no reason given").split()))[:SHOWN]
        mend = "add credit" if status == 429 else "check --grader.model and --grader.base-url"
        return f"{config.base_url} refused a call to {config.model} ({status}: {said}); {mend}, then run it again"

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= KEY_SHAPE else text


class _Answer(NamedTuple):
    reply: str
    answered_by: str  # the model, by the name that the service gives it
    tokens_in: int
    tokens_out: int


class _Pace:
    """When requests may start: evenly spread if there is a limit, and not while the server asks for quiet."""

    def __init__(self, per_minute: float | None):
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = time.monotonic()
        self._mutex = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Returns when the next request may start, or at once after `stop`."""
        with self._mutex:
            now = time.monotonic()
            start = max(self._next, now)
            self._next = start + self._gap
        stop.wait(start - now)

    def pause(self, seconds: float) -> None:
        """No request starts for so long."""
        with self._mutex:
            self._next = max(self._next, time.monotonic() + seconds)


def _read_key(config: Grader) -> str | None:
    """The key; None where there is none and the address is the user's own."""
    from seal_jax.graders.choose import OPENAI

    key = os.environ.get(config.key_variable, "").strip()
    if not key and config.base_url.rstrip("/") == OPENAI:
        raise ValueError(
            f"the environment variable {config.key_variable} is not set; put the key of {OPENAI} into it, or name "
            "another variable (--grader.key-variable) or another service (--grader.base-url)"
        )
    if not key.isascii() or not key.isprintable():
        raise ValueError(
            f"the environment variable {config.key_variable} holds characters that no key has; set it to the key alone"
        )
    return key or None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that the server asks to wait, as a number or as a date; None where it does not, or to no purpose."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        return seconds if 0 < seconds < math.inf else None
    try:
        seconds = email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def _tokens(usage: Any, name: str) -> int:
    """A number of tokens as the service states it; 0 where it does not."""
    value = getattr(usage, name, 0)
    return value if isinstance(value, int) else 0
