"""What the benchmark trains on and answers: random tokens in the shapes of real self-edits, drawn from a fixed seed.

`uniform` is the plainest case. `seal` has the ragged lengths of recorded runs of the paper's code: how many lines a
self-edit has, how long they are and how long the passage is are lognormal, with the constants below. `from_file` takes
the lengths of self-edits that were really written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from seal_jax.engine.batching import Tokens

TOKENS_A_WORD = 1.35  # of English, in the vocabularies of SmolLM2, Llama 3 and Qwen
MAX_SEQUENCES = 30  # of a self-edit, the passage included (the paper's code)
MAX_TOKENS = 512  # of a sequence


class LogNormal(NamedTuple):
    """exp of a normal distribution of mean `mu` and deviation `sigma`."""

    mu: float
    sigma: float

    def draw(self, rng: np.random.Generator, n: int | None = None) -> np.ndarray:
        """N draws, or a single one."""
        return rng.lognormal(self.mu, self.sigma, n)

    @property
    def mean(self) -> float:
        return math.exp(self.mu + self.sigma**2 / 2)


# Of recorded runs of the paper's code on SQuAD (natural log).
LINES = LogNormal(1.86, 0.30)  # a self-edit
WORDS_A_LINE = LogNormal(3.02, 0.32)  # the title included
WORDS_A_PASSAGE = LogNormal(4.72, 0.37)


def tokens_of(words: np.ndarray) -> list[int]:
    """Token counts of texts of so many words: at least 2 (one to predict), at most `MAX_TOKENS`."""
    return [int(n) for n in np.clip(np.rint(TOKENS_A_WORD * np.rint(words)), 2, MAX_TOKENS)]


def uniform(edits: int, *, sequences: int = 8, tokens: int = 48) -> list[list[int]]:
    """Lengths of self-edits that are all alike."""
    return [[tokens] * sequences for _ in range(edits)]


def seal(edits: int, *, seed: int) -> list[list[int]]:
    """Lengths as the paper's code meets them: some lines, and the passage."""
    rng = np.random.default_rng([seed, 1])
    drawn = []
    for _ in range(edits):
        lines = int(np.clip(np.rint(LINES.draw(rng)), 1, MAX_SEQUENCES - 1))
        drawn.append(tokens_of(np.append(WORDS_A_LINE.draw(rng, lines), WORDS_A_PASSAGE.draw(rng))))
    return drawn


def line_lengths(total: int, *, seed: Sequence[int]) -> list[int]:
    """Cuts a text of `total` tokens into lines of drawn lengths; the last takes what is left."""
    rng = np.random.default_rng(list(seed))
    lengths: list[int] = []
    while total > 0:
        lengths.append(min(total, tokens_of(WORDS_A_LINE.draw(rng, 1))[0]))
        total -= lengths[-1]
    return lengths


def from_file(path: Path, count: Callable[[str], int]) -> list[list[int]]:
    """Lengths of the self-edits in a file of the reference: `[{"title", "context", "completions"}, ...]`.

    A line of a completion is a sequence, and so is the passage, each after its title. `count` gives a text's tokens.

    Raises:
        ValueError: not such a file, or one without a single self-edit.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        texts = [
            [f"{record['title']}\n{line}" for line in (*_lines(completion), record["context"])]
            for record in records
            for completion in record["completions"]
            if completion.strip()
        ]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--lengths {path}: expected a JSON list of passages, each with title, context and completions "
            f"({type(error).__name__}: {error})"
        ) from error
    if not texts:
        raise ValueError(f"--lengths {path}: no self-edit in it")
    # The cap keeps the passage, which comes last.
    return [[min(MAX_TOKENS, max(2, count(text))) for text in edit[-MAX_SEQUENCES:]] for edit in texts]


def _lines(completion: str) -> list[str]:
    return [line.strip() for line in completion.splitlines() if line.strip()]


def words_to_tokens(text: str) -> int:
    """About how many tokens a text has, where there is no tokenizer."""
    return max(1, round(TOKENS_A_WORD * len(text.split())))


def draw_tokens(lengths: Sequence[Sequence[int]], vocab_size: int, *, seed: int) -> list[list[Tokens]]:
    """Self-edits of these lengths, every token random and trained on. Content does not change the time."""
    rng = np.random.default_rng([seed, 2])
    return [[Tokens(rng.integers(vocab_size, size=n).tolist(), 0) for n in edit] for edit in lengths]
