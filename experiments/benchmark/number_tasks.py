"""A SEAL domain without text, for timing a whole round: passages and questions are random token ids, as numbers.

Every word is one token, so no tokenizer is needed, and lengths are those of the paper's runs: a model whose logits are
flat writes every token about equally often and so ends, by one of the ids that stop it, after `MEAN_COMPLETION` tokens
on average; what it wrote is cut into lines as long as those that the paper's model writes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seal_jax.types import Codec, Domain, Example, LanguageModel, Query, SelfEdit, Verdict, by_query

from . import workloads

MEAN_COMPLETION = 200  # tokens
PROMPT_TOKENS = 200  # of what is read before a self-edit is written
QUESTIONS, QUESTION_TOKENS, GOLD_TOKENS = 5, 40, 4


class NumberTask(NamedTuple):
    """A passage of so many random tokens."""

    id: str
    passage: str
    prompt: str
    queries: list[Query]


def stop_ids(vocab_size: int, *, seed: int) -> tuple[int, ...]:
    """The ids that end a completion: one in `MEAN_COMPLETION`."""
    count = max(1, vocab_size // MEAN_COMPLETION)
    return tuple(sorted(np.random.default_rng([seed, 3]).choice(vocab_size, count, replace=False).tolist()))


def number_codec(stop: tuple[int, ...]) -> Codec:
    """A token is a number, apart by blanks."""

    def encode(text: str) -> list[int]:
        return [int(word) for word in text.split()]

    return Codec(encode, encode, lambda ids: " ".join(map(str, ids)), f" {stop[0]}" if stop else "", stop)


def flattened(lm: LanguageModel) -> LanguageModel:
    """The same model with logits near zero: whatever it was, it now writes all tokens about equally often."""
    norm = lm.params["final_norm"]
    return lm._replace(params={**lm.params, "final_norm": {**norm, "scale": norm["scale"] * 1e-3}})


def make_tasks(count: int, vocab_size: int, *, seed: int) -> list[NumberTask]:
    """Passages of drawn lengths, each with its questions."""
    rng = np.random.default_rng([seed, 4])
    lengths = workloads.tokens_of(workloads.WORDS_A_PASSAGE.draw(rng, count))

    def text(n: int) -> str:
        return " ".join(map(str, rng.integers(vocab_size, size=n)))

    def queries() -> list[Query]:
        return [Query("", text(QUESTION_TOKENS), text(GOLD_TOKENS)) for _ in range(QUESTIONS)]

    return [NumberTask(f"task {i}", text(n), text(PROMPT_TOKENS), queries()) for i, n in enumerate(lengths)]


def make_domain(*, seed: int) -> Domain:
    """Lines of a completion and the passage are what an adapter trains on; an answer is right if it is the gold one."""

    def parse(task: NumberTask, completion: str) -> SelfEdit:
        words = completion.split()
        if not words:
            return SelfEdit(completion, (), "empty completion")
        lengths = workloads.line_lengths(len(words), seed=(seed, zlib.crc32(f"{task.id}/{completion}".encode())))
        ends = np.cumsum(lengths[: workloads.MAX_SEQUENCES - 1])
        lines = [" ".join(words[end - n : end]) for end, n in zip(ends, lengths, strict=False)]
        return SelfEdit(completion, tuple(Example("", line) for line in (*lines, task.passage)))

    def grade(queries: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
        return [answer == query.gold for query, answer in zip(queries, answers, strict=True)]

    return Domain(lambda task: task.prompt, parse, lambda task: task.queries, by_query(grade))
