"""Supervised training on chosen self-edits: what ReST-EM and best-of-n do with their winners."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seal_jax.engine import batching
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.inner import is_finite
from seal_jax.engine.training import FineTuning, Shapes, Trainer, adapter_shapes, train
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.seal.rewards import Trial
from seal_jax.seal.rounds import Loop, RoundLog
from seal_jax.types import PROJECTIONS, Compute, Example, LanguageModel

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Bool

SFT = FineTuning(  # the paper's, its section B.1
    projections=PROJECTIONS, rank=64, alpha=128.0, learning_rate=3e-4, epochs=2, batch_size=10, initialisation="stored"
)


def imitate(
    writer: LanguageModel,
    trials: Sequence[Sequence[Trial]],
    keep: Bool[np.ndarray, "P E"],
    sft: FineTuning,
    loop: Loop,
    name: str,
) -> tuple[LanguageModel, RoundLog]:
    """The writer, trained on the kept self-edits (loss on the completion only) and merged: an `OuterLoop`'s `learn`.

    Raises:
        ValueError: training diverged; merging it would spoil the model.
    """
    log = RoundLog([list(row) for row in trials], keep, [])
    winners = [trial for row, kept in zip(trials, keep, strict=True) for trial, k in zip(row, kept, strict=True) if k]
    if not winners:
        return writer, log
    ends = (writer.codec.end if trial.edit.finished else "" for trial in winners)  # one cut off has no end to learn
    pairs = [Example(loop.domain.prompt(t.task), t.edit.completion + end) for t, end in zip(winners, ends, strict=True)]
    loop.display.phase(f"{name}: SFT on the winners", len(pairs), "self-edits")

    def watch(computed: int, of: int, adapters: int) -> None:  # one adapter learns from all of them
        if loop.trainer.watch is not None:
            loop.trainer.watch(computed, of, len(pairs))

    def work() -> Adapter:
        adapter, losses = train_on(writer, pairs, sft, seed=loop.seed, watch=watch)
        loop.journal.once(f"{name}/sft losses", lambda: losses)  # before the checkpoint: where that is, these are
        return adapter

    adapter = loop.journal.once_tree(name.replace(" ", "_"), work, adapter_shapes(writer, sft))
    losses = loop.journal.once(f"{name}/sft losses", list)
    loop.display.advance(len(pairs))
    return writer._replace(params=lora.merge(writer.params, adapter)), log._replace(losses=losses)


def train_on(
    lm: LanguageModel,
    pairs: Sequence[Example],
    config: FineTuning,
    *,
    seed: int,
    watch: Callable[[int, int, int], None] | None = None,
) -> tuple[Adapter, list[float]]:
    """Trains one adapter to write each completion after its prompt: the inner loop's own program, one adapter wide.

    Raises:
        ValueError: training diverged.
    """
    sequences = [batching.tokenize(pair, lm.codec) for pair in pairs]
    width = batching.round_up(max(len(s.ids) for s in sequences), 32)  # all are alike: one width to compile
    shapes = Shapes((width,), len(sequences), 0, 0, 0)
    trainer = Trainer(config, shapes, Compute(chunk=1, remat=True), Chunk(1), watch=watch)
    adapters, losses = train(lm, [sequences], trainer, seed=seed)
    if not np.asarray(is_finite(adapters)).all():
        raise ValueError(
            f"the SFT on the winners diverged at learning rate {config.learning_rate:g}; "
            "lower --outer.sft.learning-rate and use another --run-folder"
        )
    return lora.take(adapters, 0), [float(loss) for loss in losses[0] if not math.isnan(loss)]
