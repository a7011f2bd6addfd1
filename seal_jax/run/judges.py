"""The grader that a run's settings describe, made ready: by rule, by a language model here, or by one elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from seal_jax.engine import batching
from seal_jax.engine.chunks import Chunk, in_chunks
from seal_jax.engine.sampler import Sampling, row_keys, sample
from seal_jax.graders.choose import Connection, Grader, Judge, judge_with
from seal_jax.graders.endpoint import Endpoint
from seal_jax.graders.judge import THOUGHT_TOKENS, Ask
from seal_jax.graders.lexical import grade_by_match
from seal_jax.graders.replies import Replies, Usage
from seal_jax.io import hub
from seal_jax.nn.sharding import lanes
from seal_jax.run import runtime
from seal_jax.types import LanguageModel, opens_thought, without_thought

# Prompts are padded to the first of these that holds them (tokens), so that few programs are compiled. Beyond the last,
# to its multiples. For SmolLM2 a grading prompt is about 170 tokens long, one that rates a self-edit about 500.
WIDTHS = (128, 192, 256, 384, 512, 768, 1024)


def make_judge(
    config: Grader, connection: Connection, *, cache: Path, devices: int | None, say: Callable[[str], None]
) -> Judge:
    """The grader that the settings describe.

    Args:
        cache: the file that keeps a model's replies. Runs may share one.
        devices: how many a model here uses. It is loaded when it is first asked something new.
        say: called with what a person should know while it works.

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
        ask = _ask_model_here(config, connection.batch, Replies(cache), usage, devices, say)
        return judge_with(ask, config, connection, usage)
    endpoint = Endpoint(config, connection, cache, usage, say)
    return judge_with(
        lambda max_tokens: functools.partial(endpoint.ask, max_tokens=max_tokens), config, connection, usage
    )


def _ask_model_here(
    config: Grader, batch: int, replies: Replies, usage: Usage, devices: int | None, say: Callable[[str], None]
) -> Callable[[int], Ask]:
    """A number of tokens -> an `Ask` of the model here, which is loaded once, when it is first needed."""
    name, thinks = str(config.model), False
    chunk = Chunk(batch, "prompts of the judge", say)
    load = functools.cache(
        lambda: runtime.load(name, dtype=config.dtype, style="auto", devices=devices, may_think=True, alone=True)
    )

    @functools.cache
    def stamp() -> list[list[Any]]:
        """Of the model's files: another model in the same folder is another judge."""
        path = hub.find_model(name).path
        files = sorted(path.glob("*.safetensors")) + sorted(path.glob("*.json")) if path.is_dir() else [path]
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]

    def make_ask(max_tokens: int) -> Ask:
        def send(new: Sequence[str], keep: Callable[..., None]) -> None:
            nonlocal thinks
            judge = load()
            chat = judge.render if judge.style == "chat" else None
            thought = max(max_tokens, min(THOUGHT_TOKENS[0], judge.context_length // 2))  # half is for the prompt
            left = dict.fromkeys(new)

            def noted(prompt: str, reply: str) -> None:
                keep(prompt, reply)
                del left[prompt]

            def reply(tokens: int) -> int:
                room = judge.context_length - tokens
                return reply_to(list(left), noted, judge.lm, chat, room=room, max_tokens=tokens, chunk=chunk)

            if not (thinks or judge.opens_thought):
                reply(max_tokens)
            if left:  # those cut off in a thought; what is too long will be again
                thinks = reply(thought) > 0 or thinks
            usage.calls += len(new) - len(left)
            usage.failed += len(left)

        return lambda prompts: replies.ask(
            prompts, send, usage, model=name, files=stamp(), dtype=config.dtype, max_tokens=max_tokens
        )

    return make_ask


def reply_to(
    prompts: Sequence[str],
    keep: Callable[[str, str], None],
    lm: LanguageModel,
    chat: Callable[[str], str] | None,
    *,
    room: int,
    max_tokens: int,
    chunk: Chunk,
) -> int:
    """Greedy replies of `lm`, without adapters, to `chunk` prompts at a time, like lengths together.

    Args:
        keep: called with a prompt and its reply, after each chunk.
        chat: a prompt -> as an instruct model reads it; None for a base model, which continues the prompt's text.
        room: tokens that a prompt may have; a longer one gets no reply.
        max_tokens: of a reply, what the judge thinks before it included; one cut off in a thought is no reply.

    Returns:
        How many prompts got a reply.
    """
    encoded = [(lm.codec.encode(chat(prompt) if chat else f"{prompt}\n"), prompt) for prompt in prompts]
    fitting = sorted((pair for pair in encoded if len(pair[0]) <= room), key=lambda pair: len(pair[0]))
    sampling, told = Sampling(max_tokens=max_tokens, temperature=0), 0
    opened = "<think>" if chat is not None and opens_thought(chat("?")) else ""

    def run(index: np.ndarray, live: np.ndarray) -> tuple[()]:
        nonlocal told
        rows = [fitting[i][0] for i in index]
        longest = max(map(len, rows))
        width = next((width for width in WIDTHS if width >= longest), batching.round_up(longest, WIDTHS[-1]))
        tokens, valid = batching.left_pad(rows, min(width, room))
        keys = row_keys(0, np.zeros((len(rows), 1, 1), np.int32))  # greedy: nothing is drawn
        limits = np.full(keys.shape, max_tokens) * live[:, None, None]
        out = sample(
            keys, lm.model, lm.params, None, tokens[:, None], valid[:, None], limits,
            sampling=sampling, stop=lm.codec.stop, mesh=lm.mesh,
        )  # fmt: skip
        written, lengths = jax.device_get((out.tokens, out.lengths))
        for row, i in enumerate(index[live]):
            text = lm.codec.decode(written[row, 0, 0, : lengths[row, 0, 0]].tolist())
            said = without_thought(f"{opened}{text}")
            if said or not (text or opened):
                keep(fitting[i][1], said)
                told += 1
        return ()

    if fitting:
        in_chunks(run, len(fitting), chunk, devices=lanes(lm.mesh))
    return told
