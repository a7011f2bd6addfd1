"""What a run would do, load and need, reckoned before any weight is loaded (`--dry-run`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from seal_jax.engine.training import FineTuning
from seal_jax.io import gguf, hub, weights
from seal_jax.nn.transformer import ModelConfig

TOKENS_A_WORD = 1.4  # of English, a fair rule


class Work(NamedTuple):
    """One stage's share of the inner loop, at most."""

    stage: str
    self_edits: int
    adapters: int  # self-edits times training seeds
    steps: int  # optimiser steps of all adapters
    tokens: int  # trained tokens of all adapters, pads left out


def read_config(name: str) -> ModelConfig | None:
    """A model's shape from its header or config.json; None where it is not on this machine yet."""
    location = hub.locate(name)
    if not location.cached:
        return None
    if location.kind == "gguf":
        return gguf.read_config(gguf.open_gguf(location.path), location.path)
    return weights.read_config(location.path / "config.json")


def tokens_of(words: int) -> int:
    """Of so many words, about: no tokenizer is loaded for a plan."""
    return math.ceil(TOKENS_A_WORD * words)


def inner_work(stage: str, self_edits: int, config: FineTuning, *, seeds: int, sequences: int, tokens: int) -> Work:
    """`sequences` and `tokens` are a self-edit's, at most."""
    steps = config.epochs * math.ceil(sequences / config.batch_size)
    adapters = self_edits * seeds
    return Work(stage, self_edits, adapters, adapters * steps, adapters * config.epochs * tokens)


def table(rows: Iterable[Work]) -> list[str]:
    """The stages and their sum, in columns."""
    rows = list(rows)
    total = Work("together", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    head = f"{'stage':<34}{'self-edits':>11}{'adapters':>10}{'steps':>12}{'tokens':>14}"
    return [
        head,
        *(f"{r.stage:<34}{r.self_edits:>11,}{r.adapters:>10,}{r.steps:>12,}{r.tokens:>14,}" for r in (*rows, total)),
    ]


def section(title: str, lines: Sequence[str]) -> str:
    """A titled block of the plan."""
    return "\n".join([title, *(f"  {line}" for line in lines), ""])
