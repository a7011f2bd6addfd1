"""A trained prefix in place of low-rank matrices: keys and values of p tokens a layer (Cartridges, arXiv 2506.06266).

It begins as the passage's own cache and is trained by the steps, banks and schedules of any adapter; answering and
sampling read it as they read others. Departure from the paper: its self-study has five kinds of prompts, and its
prefixes thousands of tokens; here whatever the self-edit holds is trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seal_jax.engine import training
from seal_jax.engine.batching import Tokens
from seal_jax.engine.training import Trainer
from seal_jax.nn.lora import Prefix
from seal_jax.nn.transformer import Model, rope_frequencies, rotate
from seal_jax.types import LanguageModel, require_at_least

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class PrefixTuning:
    """How a prefix is trained; what is not said here is as for LoRA."""

    tokens: int = 32  # p: keys and values a layer; the first tokens of the passage, or all where it has fewer
    learning_rate: float = 2e-2  # of keys and values, far larger than LoRA's (Cartridges' README and scripts: 2e-2)

    def __post_init__(self) -> None:
        require_at_least(1, tokens=self.tokens)
        require_at_least(0, learning_rate=self.learning_rate)


def of_text(lm: LanguageModel, ids: Sequence[int], places: int) -> Prefix:
    """The model's own keys and values of the first `places` tokens of a text, or of all where it has fewer.

    The model answers behind it as if these tokens stood before whatever it reads.
    """
    tokens, count = np.zeros(places, np.int32), min(len(ids), places)
    tokens[:count] = ids[:count]
    return jax.device_get(_read(lm.model, lm.params, tokens, np.int32(count)))


def train_each(
    lm: LanguageModel,
    edits: Sequence[Sequence[Tokens]],
    trainer: Trainer,
    *,
    how: PrefixTuning,
    skip: Collection[int] = (),
    **options: Any,
) -> Iterator[tuple[int, Prefix, Float[np.ndarray, "S"]]]:
    """`training.train_each` of prefixes: each begins as the first tokens of its self-edit's last sequence, the passage.

    All are read before any is trained: on a mesh the devices that train exchange nothing with others.
    """
    config = dataclasses.replace(trainer.config, learning_rate=how.learning_rate)
    texts = {e: tuple(own[-1].ids[: how.tokens]) for e, own in enumerate(edits) if e not in skip}
    begun = {text: of_text(lm, text, how.tokens) for text in set(texts.values())}  # seeds and budgets share a passage's
    options |= {"skip": skip, "start": lambda e: begun[texts[e]]}
    yield from training.train_each(lm, edits, trainer._replace(config=config), **options)  # type: ignore[misc]


@partial(jax.jit, static_argnames="model")
def _read(model: Model, params: dict[str, Any], tokens: Int[Array, "p"], count: Int[Array, ""]) -> Prefix:
    decoder = nnx.merge(model, params)
    _, kv = decoder(tokens[None])
    back = -count * rope_frequencies(decoder.config)[None, None]  # from positions 0 to count - 1 to those before 0
    keys = rotate(kv.k[:, 0].transpose(0, 3, 1, 2), back).transpose(0, 2, 3, 1)
    wide = keys.astype(jnp.float32), kv.v[:, 0].astype(jnp.float32)
    return Prefix({}, {}, jnp.ones(()), *wide, jnp.arange(len(tokens)) < count)
