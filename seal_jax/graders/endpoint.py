"""Any OpenAI-compatible endpoint as judge, through the `openai` client: a service that fails at times loses nothing.

What fails and may succeed later (408, 409, 429, 5xx, timeouts, cut connections) the client tries again, with
exponential back-off and jitter, or after the wait that the server names; a body that holds no reply, is endless or
never ends is handed to it as a failure of that kind. What cannot succeed (a wrong key, model or address, no credit)
stops everything at once. A prompt refused for itself (too long, filtered), or failed every time, has no reply. Replies
are kept on disk as they come (`replies`).

Services differ in what they take: one that refuses `max_tokens` or a temperature is asked without, and a judge that is
cut off while it thinks is given more tokens. What was learned holds for all later prompts.

The key is read from an environment variable and is in no message, file or exception of ours: an exception of the
client holds the request with its headers, so none is passed on or chained.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_jax.graders.choose import OPENAI, Connection, Grader
from seal_jax.graders.judge import THOUGHT_TOKENS
from seal_jax.graders.replies import Replies, Usage
from seal_jax.types import without_thought

RETRIED = (408, 409, 429)  # by the client, as is all from 500 on
REFUSED_PROMPT = (400, 413, 422)  # statuses that may be about one prompt alone
NO_CREDIT = "insufficient_quota"  # OpenAI's code for a 429 that no waiting mends
NO_CLIENT = "grader kind endpoint needs the openai client: pip install 'seal_jax[judge]'"
SHOWN = 300  # characters of a server's message
KEY_SHAPE = 8  # characters from which a key is taken out of texts; a shorter one ("none") is no secret
MOST_BODY = 4 * 2**20  # bytes of a reply; a long thought is some 50 kB
PATIENCE = 2  # times `timeout_s` is the longest that a whole reply may take, whatever trickles in
ADAPTATIONS = 8  # requests for one prompt that differ in what the service is found to take

# Names of the limit of tokens, in the order in which they are tried; None: no limit is sent.
LIMITS = ("max_tokens", "max_completion_tokens", None)

# How services say that a prompt is too long, in their codes or their words: OpenAI, vLLM, SGLang, TGI, llama.cpp,
# LM Studio, Anthropic, Gemini, Cohere, Mistral, Bedrock
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window|limit)|exceed_context|above_max_length|too (long|large|many (input )?tokens)"
    r"|more tokens than|reduce the length|longer than|(maximum|max|exceed\w*|limit)\b.{0,60}\b(tokens?|length)"
    r"|tokens?\b.{0,40}\b(exceed\w*|maximum|limit|must be)",
    re.IGNORECASE | re.DOTALL,
)
# ... and that they will not read it
_FILTERED = re.compile(
    r"content[ _-]?(filter|policy|management)|invalid_prompt|inappropriate|flagged|moderation|data_inspection|safety",
    re.IGNORECASE,
)
_NOT_TAKEN = re.compile(
    r"unsupported|not[ _]support|does ?n[o']t support|unrecogni[sz]ed|unknown|unexpected|not (permitted|allowed)"
    r"|deprecated|only|invalid|extra|must be 1|use '?max_completion",
    re.IGNORECASE,
)


class Endpoint:
    """A service that replies to prompts: `config.model` at `config.base_url`, at temperature 0 where it takes one.

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
        self._replied = False  # ever: then its settings are right, and what it refuses is about one prompt
        self._reason = ""  # of the last failure, in the server's words
        self._limit: str | None = LIMITS[0]
        self._greedy = True  # temperature 0 is sent
        self._least_tokens = 0  # of a limit, since a reply was cut
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
            reason = f", last: {self._reason}" if self._reason else ""
            self._say(
                f"judge: {failed} of {len(prompts)} prompts got no reply{unasked} ({kinds} so far{reason}). They are "
                "left ungraded; the same grading again asks for these only"
            )

    async def _ask_one(self, prompt: str, max_tokens: int, keep: Callable[..., None]) -> bool | str:
        """Whether there was a reply in the end (it is then on disk), or why nothing else need be asked."""
        import openai

        contrary = 0  # refusals of what was not sent
        for _ in range(ADAPTATIONS):
            sent = self._parameters(max_tokens)
            try:
                answer = await self._client.chat.completions.create(
                    model=str(self._config.model), messages=[{"role": "user", "content": prompt}], **sent
                )
            except openai.APIStatusError as error:
                said = _reason(error.body)
                self._reason = self._without_key(said)[:SHOWN]
                adapts = error.status_code in REFUSED_PROMPT and self._adapt(said, sent, max_tokens)
                contrary += adapts and sent == self._parameters(max_tokens)
                if adapts and contrary <= self._connection.attempts:
                    continue
                return False if adapts else self._outcome(error.status_code, error.code, said)
            except openai.OpenAIError as error:
                self._reason = "" if isinstance(error, openai.APIConnectionError) else type(error).__name__
                return False
            choice, answered_by = answer.choices[0], self._without_key(str(answer.model))
            stated = (getattr(answer.usage, name, 0) for name in ("prompt_tokens", "completion_tokens"))
            tokens_in, tokens_out = (tokens if isinstance(tokens, int) else 0 for tokens in stated)
            self._usage.tokens_in += tokens_in
            self._usage.tokens_out += tokens_out
            self._usage.answered_by[answered_by] += 1
            self._replied = True
            cut, limit = choice.finish_reason == "length", max(max_tokens, self._least_tokens)
            if cut and self._give_more(limit):
                continue
            reply = self._without_key(without_thought(choice.message.content or ""))
            if not reply.strip():
                ended = f"cut at {limit} tokens" if cut else f"finish_reason {choice.finish_reason}"
                self._reason = f"no verdict after what it thought, {ended}"
                self._usage.failures["only a thought" if cut else str(choice.finish_reason)] += 1
                return False
            about = {"answered_by": answered_by, "tokens_in": tokens_in, "tokens_out": tokens_out}
            keep(prompt, reply, prompt=self._without_key(prompt), **about, **({"cut": True} if cut else {}))
            return True
        return False

    def _parameters(self, max_tokens: int) -> dict[str, Any]:
        """What a request holds besides the model and the prompt, by all that is known of the service."""
        limit = {self._limit: max(max_tokens, self._least_tokens)} if self._limit else {}
        return {**limit, **({"temperature": 0} if self._greedy else {})}

    def _adapt(self, said: str, sent: dict[str, Any], max_tokens: int) -> bool:
        """Whether a refusal is about a parameter. One that was sent and is still in use is changed, for good."""
        if _TOO_LONG.search(said):  # with the tokens of its reply, perhaps
            raised = self._least_tokens > max_tokens and sent == self._parameters(max_tokens)
            self._least_tokens = 0 if raised else self._least_tokens
            return raised
        if not _NOT_TAKEN.search(said):
            return False
        if re.search(r"max_(completion_)?tokens", said):
            if self._limit and self._limit in sent:
                self._limit = LIMITS[LIMITS.index(self._limit) + 1]
            return True
        if re.search("temperature", said, re.IGNORECASE):
            self._greedy &= "temperature" not in sent
            return True
        return False

    def _give_more(self, limit: int) -> bool:
        """Whether a reply that was cut at `limit` tokens is asked for again with more."""
        larger = [tokens for tokens in THOUGHT_TOKENS if tokens > limit]
        if larger and self._limit:
            self._least_tokens = max(self._least_tokens, larger[0])
        return bool(larger and self._limit)

    def _outcome(self, status: int, code: str | None, said: str) -> bool | str:
        """False where a refusal is about this prompt or this moment, or the sentence that ends everything."""
        if status >= 500 or status == 413 or (status in RETRIED and code != NO_CREDIT):
            return False
        about_prompt = _FILTERED.search(said) or _TOO_LONG.search(said)
        if (status in REFUSED_PROMPT and (about_prompt or self._replied)) or (status == 403 and _FILTERED.search(said)):
            return False
        return self._refusal(status, said)

    def _refusal(self, status: int, said: str) -> str:
        """The sentence that ends everything. What is said about a key may quote it, and is left out."""
        refused, variable = f"{self._config.base_url} refused", self._connection.key_variable
        if status in (401, 403) and self._key:
            held = f"the key in the environment variable {variable}"
            return f"{refused} {held} ({status}); check it, and that it may use this model"
        if status in (401, 403):
            return f"{refused} a call without a key ({status}); set {variable}"
        mend = "add credit" if status in (402, 429) else "check --grader.model and --grader.base-url"
        shown = self._without_key(said)[:SHOWN] or "no reason given"
        return f"{refused} a call to {self._config.model} ({status}: {shown}); {mend}, then run it again"

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
    below = openai.DefaultAsyncHttpxClient.__bases__[0]  # of httpx, or of what has followed it
    http = importlib.import_module(below.__module__.partition(".")[0])
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
                async with asyncio.timeout(PATIENCE * connection.timeout_s):
                    response = await _whole(await super().send(request, **{**options, "stream": True}))
            except TimeoutError:
                usage.failures["timeout"] += 1
                raise http.ReadTimeout("a reply that does not end", request=request) from None
            except Exception as error:
                usage.failures["timeout" if "Timeout" in type(error).__name__ else "no connection"] += 1
                raise
            if response.is_success and not _holds_reply(response.content):
                response.status_code = _status_of(response.content)
                usage.failures[f"{response.status_code} in the body" if response.status_code != 502 else NO_REPLY] += 1
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


NO_REPLY = "no reply in the body"


async def _whole(response: Any) -> Any:
    """A response that has been read, as far as it is one: what is longer than any reply is not read to its end."""
    body = b""
    try:
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MOST_BODY:
                body = json.dumps({"error": {"message": f"a body of more than {MOST_BODY / 2**20:.0f} MiB"}}).encode()
                break
    finally:
        await response.aclose()
    coded = ("content-encoding", "content-length", "transfer-encoding")  # of what has been decoded
    headers = [(name, value) for name, value in response.headers.items() if name not in coded]
    return type(response)(response.status_code, headers=headers, content=body, request=response.request)


def _holds_reply(body: bytes) -> bool:
    """Whether a body is of the right form and something is said in it, or at least why there is nothing."""
    try:
        choice = json.loads(body)["choices"][0]
        said = str(choice["message"].get("content") or "").strip()
        return bool(said) or choice.get("finish_reason") in ("length", "content_filter")
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return False


def _status_of(body: bytes) -> int:
    """The status that a body without a reply would have had: some services send their errors as a success."""
    try:
        error = json.loads(body)["error"]
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(code, int | str) and re.fullmatch("[45][0-9][0-9]", str(code)):
            return int(code)
        about = _reason(error)
        return 400 if _TOO_LONG.search(about) or _FILTERED.search(about) else 429 if NO_CREDIT in about else 502
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return 502


def _reason(body: Any) -> str:
    """What a service says of an error, on one line: its code, type and message, in whichever of the usual forms."""
    found = body
    while isinstance(found, dict) and isinstance(found.get("error"), dict | str):
        found = found["error"]
    if not isinstance(found, dict):
        return " ".join(str(found or "").split())
    message = found.get("message") or found.get("detail") or found.get("msg") or ""
    told = [message if isinstance(message, str) else json.dumps(message)]
    told += [str(found[name]) for name in ("code", "type", "param") if isinstance(found.get(name), str)]
    return " ".join(" ".join(dict.fromkeys(filter(None, told))).split())


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
