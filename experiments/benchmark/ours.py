"""What the benchmark and parity call of the engine, besides `training.train`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seal_jax.engine import batching, sampler, training
from seal_jax.engine.batching import Tokens
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.inner import Recipe, adapt_many
from seal_jax.engine.sampler import Completions, Sampling
from seal_jax.engine.training import FineTuning, Shapes, Trainer
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.types import Compute, HParams, LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def trainer(config: FineTuning, edits: Sequence[Sequence[Tokens]], adapters: int) -> Trainer:
    """Trains `adapters` at a time; widths follow from the longest sequence, as an experiment sets them."""
    compute = Compute(chunk=adapters)
    widths = batching.bucket_widths(max(len(s.ids) for edit in edits for s in edit), compute.width_cuts)
    return training.make_trainer(config, Shapes(widths, max(map(len, edits)), 0, 0, 0), compute)


def processed_tokens(edits: Sequence[Sequence[Tokens]], trainer: Trainer, *, seed: int, devices: int) -> int:
    """Tokens that training these self-edits computes, pads and idle places included."""
    config, shapes, adapters = trainer.config, trainer.shapes, trainer.chunk.planned
    batch = batching.make_batch(
        edits, epochs=config.epochs, batch_size=min(config.batch_size, shapes.capacity), widths=shapes.widths,
        capacity=shapes.capacity, seed=seed,
    )  # fmt: skip
    devices = min(devices, adapters)  # a single adapter's rows are shared by all: a step of one row has one to share
    return batching.processed_tokens(batch, adapters // devices * devices, devices)


def losses(
    lm: LanguageModel, start: Adapter, tokens: Sequence[Sequence[int]], order: Sequence[int], config: FineTuning
) -> Float[np.ndarray, "S"]:
    """The loss at each step of training one adapter from `start`, on `tokens` (longest first) in this order."""
    widths = batching.bucket_widths(len(tokens[0]), (32,))
    batch = batching.make_batch(
        [[Tokens(list(ids), 0) for ids in tokens]],
        epochs=1, batch_size=1, widths=widths, capacity=len(tokens), seed=0,
    )  # fmt: skip
    hparams = HParams(
        learning_rate=np.full(1, config.learning_rate, np.float32),
        num_steps=np.full(1, len(order), np.int32),
        alpha=np.full(1, config.alpha, np.float32),
        rank=np.full(1, config.rank, np.int32),
        seed=np.zeros(1, np.int32),
    )
    batch = batch.replace(order=np.asarray(order, np.int32)[None, :, None])
    recipe = Recipe(config.optimiser)
    _, metrics = adapt_many(lm.model, lm.params, lora.stack([start]), batch, hparams, recipe, chunk=Chunk(1))
    return np.asarray(metrics.loss)[0]


def writer(
    lm: LanguageModel,
    adapters: Adapter | None,
    prompts: Int[np.ndarray, "E Q T"],
    samples: int,
    config: Sampling,
    seed: int,
) -> Callable[[], Completions]:
    """Work that continues every prompt `samples` times, with its group's adapter; nothing ends a row early."""
    E, Q, _ = prompts.shape
    keys = sampler.row_keys(
        seed, *np.broadcast_arrays(np.arange(E)[:, None, None], np.arange(Q)[:, None], np.arange(samples))
    )
    valid, limits = np.ones(prompts.shape, bool), np.full((E, Q, samples), config.max_tokens, np.int32)
    return lambda: sampler.sample(
        keys, lm.model, lm.params, adapters, prompts, valid, limits, sampling=config, stop=(), mesh=lm.mesh
    )
