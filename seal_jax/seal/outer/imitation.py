"""Imitation: supervised training on chosen self-edits, as ReST-EM and best-of-n do with their winners.

As an outer loop of its own it imitates what another model wrote for the same tasks, all of it: SFT on a stronger
writer's self-edits, which have their rewards in the same table. `learn_from` is the end of every outer loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from seal_jax.engine import batching
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.inner import is_finite
from seal_jax.engine.training import FineTuning, Shapes, Trainer, adapter_shapes, train
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.losses import Loss, next_token
from seal_jax.seal import rounds
from seal_jax.seal.rewards import Trial
from seal_jax.seal.rounds import Loop, OuterLoop, RoundLog
from seal_jax.types import PROJECTIONS, Compute, Example, LanguageModel, SelfEdit, Task

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Bool

SFT = FineTuning(  # the paper's, its section B.1
    projections=PROJECTIONS, rank=64, alpha=128.0, learning_rate=3e-4, epochs=2, batch_size=10, initialisation="stored"
)


def outer_loop(recorded: Mapping[str, Sequence[str]], *, seeds: int = 1, sft: FineTuning = SFT) -> OuterLoop:
    """Imitation of recorded completions, by the task's id: at least as many a task as there are samples in a round."""

    def write(
        writer: LanguageModel, tasks: Sequence[Task], loop: Loop, *, samples: int, name: str
    ) -> list[list[SelfEdit]]:
        return [[loop.domain.parse(task, text) for text in recorded[task.id][:samples]] for task in tasks]

    def learn(
        writer: LanguageModel, trials: Sequence[Sequence[Trial]], loop: Loop, name: str
    ) -> tuple[LanguageModel, RoundLog]:
        keep = np.array([[trial.problem is None for trial in row] for row in trials])
        return imitate(writer, trials, keep, sft, loop, name)

    return OuterLoop(partial(rounds.try_self_edits, seeds=seeds), learn, write)


def imitate(
    writer: LanguageModel,
    trials: Sequence[Sequence[Trial]],
    keep: Bool[np.ndarray, "P E"],
    sft: FineTuning,
    loop: Loop,
    name: str,
) -> tuple[LanguageModel, RoundLog]:
    """The writer, trained to write the kept self-edits and merged: an `OuterLoop`'s `learn`. Raises as `learn_from`."""
    log = RoundLog([list(row) for row in trials], keep, [])
    winners = [trial for row, kept in zip(trials, keep, strict=True) for trial, k in zip(row, kept, strict=True) if k]
    return learn_from(writer, log, [example_of(writer, trial, loop) for trial in winners], sft, loop, name)


def example_of(writer: LanguageModel, trial: Trial, loop: Loop, weight: float = 1.0) -> Example:
    """A self-edit after its prompt, as the writer writes it; the loss falls on the completion only."""
    end = writer.codec.end if trial.edit.finished else ""  # one that was cut off has no end to learn
    return Example(loop.domain.prompt(trial.task), trial.edit.completion + end, weight)


def learn_from(
    writer: LanguageModel,
    log: RoundLog,
    examples: Sequence[Example],
    sft: FineTuning,
    loop: Loop,
    name: str,
    *,
    loss: Loss = next_token,
    numbers: Mapping[str, float] | None = None,
) -> tuple[LanguageModel, RoundLog]:
    """The writer, trained on examples (as it is where there are none) and merged, and the log with the losses.

    Raises:
        ValueError: training diverged; merging it would spoil the model.
    """
    if not examples:
        return writer, log
    loop.display.phase(f"{name}: learning to write", len(examples), "self-edits")

    def watch(computed: int, of: int, adapters: int) -> None:  # one adapter learns from all of them
        if loop.trainer.watch is not None:
            loop.trainer.watch(computed, of, len(examples))

    def work() -> Adapter:
        adapter, losses = train_on(writer, examples, sft, seed=loop.seed, watch=watch, loss=loss, numbers=numbers)
        loop.journal.once(f"{name}/sft losses", lambda: losses)  # before the checkpoint: where that is, these are
        return adapter

    adapter = loop.journal.once_tree(name.replace(" ", "_"), work, adapter_shapes(writer, sft))
    losses = loop.journal.once(f"{name}/sft losses", list)
    loop.display.advance(len(examples))
    return writer._replace(params=lora.merge(writer.params, adapter)), log._replace(losses=losses)


def train_on(
    lm: LanguageModel,
    examples: Sequence[Example],
    config: FineTuning,
    *,
    seed: int,
    watch: Callable[[int, int, int], None] | None = None,
    loss: Loss = next_token,
    numbers: Mapping[str, float] | None = None,
) -> tuple[Adapter, list[float]]:
    """Trains one adapter to write each completion after its prompt: the inner loop's own program, one adapter wide.

    `numbers` are the loss's. Where it compares sequences, those that belong together follow one another.

    Raises:
        ValueError: training diverged.
    """
    sequences = [batching.tokenize(example, lm.codec) for example in examples]
    width = batching.round_up(max(len(s.ids) for s in sequences), 32)  # all are alike: one width to compile
    shapes = Shapes((width,), len(sequences), 0, 0, 0)
    trainer = Trainer(config, shapes, Compute(chunk=1, remat=True), Chunk(1), loss, watch)
    adapters, losses = train(lm, [sequences], trainer, seed=seed, numbers=numbers)
    if not np.asarray(is_finite(adapters)).all():
        raise ValueError(
            f"learning to write diverged at learning rate {config.learning_rate:g}; "
            "lower --outer.sft.learning-rate and use another --run-folder"
        )
    return lora.take(adapters, 0), [float(loss) for loss in losses[0] if not math.isnan(loss)]
