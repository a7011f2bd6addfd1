"""The model of the other examples: two layers, a few words, random weights. `run.runtime.load` loads a real one."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from seal_jax.engine.training import FineTuning
from seal_jax.nn import transformer
from seal_jax.types import PROJECTIONS, Codec, LanguageModel

WORDS = ("<end>", "describe", "colour", "?", "north", "south", "red", "blue", "green")


def make_model(*further: str) -> LanguageModel:
    """Random weights: at first it writes every word about equally often, so any later preference was learned.

    Its words are `WORDS` and `further` ones.
    """
    words = list(dict.fromkeys([*WORDS, *further]))

    def encode(text: str) -> list[int]:
        """One token per word."""
        return [words.index(word) for word in text.split()]

    def decode(ids: Sequence[int]) -> str:
        """Words separated by spaces, without `<end>`."""
        return " ".join(words[i] for i in ids if i)

    shape = transformer.ModelConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        intermediate_size=128,
        tie_embeddings=False,
    )
    params = transformer.random_params(2, shape)
    params["embed"]["embedding"] /= jnp.std(params["embed"]["embedding"])
    params["lm_head"]["kernel"] *= 5  # so that it can become certain of a word
    codec = Codec(encode, encode, decode, end=" <end>", stop=(0,))
    return LanguageModel(transformer.graph(shape), jax.device_put(params, jax.devices()[0]), codec)


INNER = FineTuning(projections=("o_proj", "gate_proj", "up_proj", "down_proj"), rank=4, alpha=8.0, learning_rate=3e-2,
                   epochs=8)  # fmt: skip
SFT = FineTuning(projections=PROJECTIONS, rank=8, alpha=16.0, learning_rate=5e-3, epochs=8, batch_size=2,
                 initialisation="stored")  # fmt: skip
