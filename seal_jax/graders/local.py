"""A language model on this machine as judge: greedy replies, without adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from seal_jax.engine import batching
from seal_jax.engine.inner import Chunk, in_chunks
from seal_jax.engine.sampler import Completions, Sampling, row_keys, sample
from seal_jax.graders.judge import Ask
from seal_jax.types import LanguageModel

# Prompts are padded to the first of these that holds them (tokens), so that few programs are compiled. Beyond the last,
# to its multiples. For SmolLM2 a grading prompt is about 170 tokens long, one that rates a self-edit about 500.
WIDTHS = (128, 192, 256, 384, 512, 768, 1024)


def make_ask(
    lm: LanguageModel,
    chat: Callable[[str], str] | None,
    *,
    max_tokens: int,
    chunk: Chunk,
    context_length: int,
) -> Ask:
    """Asks `lm`, `chunk` prompts at a time, like lengths together.

    Args:
        chat: a prompt -> as an instruct model reads it; None for a base model, which continues the prompt's text.
        max_tokens: of a reply.
        context_length: tokens that the model can hold; a prompt that leaves no room for a reply gets None.
    """
    devices = lm.mesh.size if lm.mesh else 1
    sampling = Sampling(max_tokens=max_tokens, temperature=0)

    def ask(prompts: Sequence[str]) -> list[str | None]:
        encoded = [lm.codec.encode(chat(prompt) if chat else f"{prompt}\n") for prompt in prompts]
        fitting = [i for i, ids in enumerate(encoded) if len(ids) + max_tokens <= context_length]
        fitting.sort(key=lambda i: (len(encoded[i]), i))
        replies: list[str | None] = [None] * len(prompts)
        if not fitting:
            return replies

        def run(index: np.ndarray, live: np.ndarray) -> Completions:
            rows = [encoded[fitting[i]] for i in index]
            tokens, valid = batching.left_pad(rows, _width(max(map(len, rows)), context_length - max_tokens))
            keys = row_keys(0, np.zeros((len(rows), 1, 1), np.int32))  # greedy: nothing is drawn
            limits = np.full(keys.shape, max_tokens) * live[:, None, None]
            return sample(
                keys, lm.model, lm.params, None, tokens[:, None], valid[:, None], limits,
                sampling=sampling, stop=lm.codec.stop, mesh=lm.mesh,
            )  # fmt: skip

        out = in_chunks(run, len(fitting), chunk, devices=devices)
        written, lengths = np.asarray(out.tokens)[:, 0, 0], np.asarray(out.lengths)[:, 0, 0]
        for row, i in enumerate(fitting):
            replies[i] = lm.codec.decode(written[row, : lengths[row]].tolist())
        return replies

    return ask


def _width(longest: int, most: int) -> int:
    """The width that prompts of at most `longest` tokens are padded to, at most `most`."""
    wide = next((width for width in WIDTHS if width >= longest), batching.round_up(longest, WIDTHS[-1]))
    return min(wide, most)
