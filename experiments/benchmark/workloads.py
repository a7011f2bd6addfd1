"""What the benchmark trains on and answers: random tokens in the shapes of real self-edits, drawn from a fixed seed.

`uniform` is the plainest case. `seal` has the ragged lengths of recorded runs of the paper's code: how many lines a
self-edit has, how long they are and how long the passage is are lognormal, with the constants below. Content does not
change the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seal_jax.engine.batching import Tokens
from seal_jax.types import PROJECTIONS

TARGETS = {"train_qv": ("q_proj", "v_proj"), "train_all": PROJECTIONS, "seal": ("q_proj", "v_proj")}
SEQUENCES, TOKENS = 8, 48  # of a uniform self-edit
QUESTIONS, QUESTION_TOKENS, ANSWER_TOKENS = 5, 40, 64  # answered with an adapter: greedy, the full length
PROMPTS, PROMPT_TOKENS, SAMPLES, SAMPLE_TOKENS, TOP_P = 8, 200, 5, 128, 0.95  # of the self-edits that are written

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


# Of recorded runs of the paper's code on SQuAD (natural log).
LINES = LogNormal(1.86, 0.30)  # a self-edit
WORDS_A_LINE = LogNormal(3.02, 0.32)  # the title included
WORDS_A_PASSAGE = LogNormal(4.72, 0.37)


def tokens_of(words: np.ndarray) -> list[int]:
    """Token counts of texts of that many words: at least 2 (one to predict), at most `MAX_TOKENS`."""
    return [int(n) for n in np.clip(np.rint(TOKENS_A_WORD * np.rint(words)), 2, MAX_TOKENS)]


def uniform(edits: int, *, sequences: int = SEQUENCES, tokens: int = TOKENS) -> list[list[int]]:
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


def draw_tokens(lengths: Sequence[Sequence[int]], vocab_size: int, *, seed: int) -> list[list[Tokens]]:
    """Self-edits of these lengths, every token random and trained on."""
    rng = np.random.default_rng([seed, 2])
    return [[Tokens(rng.integers(vocab_size, size=n).tolist(), 0) for n in edit] for edit in lengths]


def in_view(edits: Sequence[Sequence[Tokens]], vocab_size: int, *, seed: int) -> list[list[Tokens]]:
    """The same self-edits; a teacher reads a passage of the usual length before each sequence."""
    rng, length = np.random.default_rng([seed, 3]), round(TOKENS_A_WORD * float(np.exp(WORDS_A_PASSAGE.mu)))
    passages = rng.integers(vocab_size, size=(len(edits), length)).tolist()
    return [[own._replace(view=seen + own.ids) for own in edit] for seen, edit in zip(passages, edits, strict=True)]
