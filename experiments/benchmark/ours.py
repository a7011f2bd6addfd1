"""What the benchmark and parity call of the engine, besides `training.train`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from seal_jax.engine import batching, memory, sampler, schedule, training
from seal_jax.engine.batching import Tokens
from seal_jax.engine.inner import Given, Lessons, Recipe, adapt_each
from seal_jax.engine.sampler import Completions, Sampling
from seal_jax.engine.schedule import Room
from seal_jax.engine.training import FineTuning, Shapes, Trainer
from seal_jax.nn.lora import Adapter
from seal_jax.nn.transformer import ModelConfig
from seal_jax.types import Compute, HParams, LanguageModel

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def compute(model: ModelConfig, adapters: int) -> Compute:
    """`adapters` at a time, as many tokens as keep this device busy."""
    return Compute(chunk=adapters, tick_tokens=memory.tick_tokens(model, jax.default_backend() == "cpu"))


def trainer(model: ModelConfig, config: FineTuning, edits: Sequence[Sequence[Tokens]], adapters: int) -> Trainer:
    """Trains `adapters` at a time; widths follow from the longest sequence, as an experiment sets them."""
    cost = compute(model, adapters)
    widths = batching.bucket_widths(max(len(s.ids) for edit in edits for s in edit), cost.width_cuts)
    return training.make_trainer(config, Shapes(widths, max(map(len, edits)), 0, 0, 0), cost)


def processed_tokens(
    parameters: int, edits: Sequence[Sequence[Tokens]], trainer: Trainer, *, seed: int, devices: int
) -> int:
    """Tokens that training these self-edits computes, pads and filler included, for a model of so many parameters."""
    lessons, _ = training.lessons_of(edits, trainer, seed=seed)
    ticks = training.ticks_of(parameters, lessons, trainer, devices)
    return sum(schedule.computed_tokens(own, lessons.batch_size) for own in ticks)


def losses(
    lm: LanguageModel, start: Adapter, tokens: Sequence[Sequence[int]], order: Sequence[int], config: FineTuning
) -> Float[np.ndarray, "S"]:
    """The loss at each step of training one adapter from `start`, on `tokens` in this order."""
    hparams = HParams(
        learning_rate=np.full(1, config.learning_rate, np.float32),
        num_steps=np.full(1, len(order), np.int32),
        alpha=np.full(1, config.alpha, np.float32),
        rank=np.full(1, config.rank, np.int32),
        seed=np.zeros(1, np.int32),
    )
    lessons = Lessons([[Tokens(list(ids), 0) for ids in tokens]], [np.asarray(order, np.int32)[:, None]])
    ((_, _, metrics),) = adapt_each(
        lm.model, lm.params, lambda e: start, lessons, Given(hparams),
        Recipe(config.optimiser, compute=Compute(unroll=False)),
        widths=batching.bucket_widths(max(map(len, tokens)), ()), room=Room(1, 1),
    )  # fmt: skip
    return np.asarray(metrics.loss)


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
