"""The teacher of context distillation: the model before an adapter, with a passage in view, read once a sequence.

It is fixed, so what it says of a token need not be computed again at every epoch: its last hidden state is kept, D
numbers a token on the host, and its logits are made from that beside the student's, piece by piece (nn/losses.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from seal_jax.engine.batching import Tokens, round_up
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.losses import Loss
from seal_jax.nn.transformer import Model
from seal_jax.types import LanguageModel

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Float, Int

WIDTH = 128  # tokens that the teacher's texts are padded to multiples of: a program each


class States(dict[int, list[np.ndarray]]):
    """By self-edit, the teacher's hidden states [T, D] of each of its sequences; computed when they are first wanted.

    Whoever has trained on a self-edit drops its states. `seeds` are one a self-edit, of the coins of `loss.in_view`;
    `fixed` are the adapters that those in training stand on.
    """

    def __init__(
        self,
        lm: LanguageModel,
        edits: Sequence[Sequence[Tokens]],
        seeds: Sequence[int],
        loss: Loss,
        fixed: Adapter | None = None,
    ):
        super().__init__()
        self._lm, self._edits, self._seeds, self._in_view, self._fixed = lm, edits, seeds, loss.in_view, fixed
        for e, sequences in enumerate(edits):
            for n, sequence in enumerate(sequences):
                if not sequence.view:
                    raise ValueError(
                        f"self-edit {e}, sequence {n}: there is nothing that its teacher reads; expected an Example "
                        "with a `view`, or a loss without a teacher in context"
                    )

    def __missing__(self, e: int) -> list[np.ndarray]:
        below = None if self._fixed is None else lora.take(self._fixed, e)
        self[e] = [self._mixed(e, n, sequence, below) for n, sequence in enumerate(self._edits[e])]
        return self[e]

    def _mixed(self, e: int, n: int, sequence: Tokens, below: Adapter | None) -> np.ndarray:
        count = len(sequence.ids)
        with_view = self._read(sequence.view, below)[-count:]
        states = np.zeros((count, with_view.shape[1]), with_view.dtype)
        states[-len(with_view) :] = with_view  # the two end alike; before the loss begins they need not
        if self._in_view == 1:
            return states
        coins = np.random.default_rng([self._seeds[e], n]).random((count, 1))
        return np.where(coins < self._in_view, states, self._read(sequence.ids, below))

    def _read(self, ids: Sequence[int], below: Adapter | None) -> np.ndarray:
        tokens = np.zeros((1, round_up(len(ids), WIDTH)), np.int32)
        tokens[0, : len(ids)] = ids
        return np.asarray(_hidden(self._lm.model, self._lm.params, tokens, below))[0, : len(ids)]


@partial(jax.jit, static_argnames="model")
def _hidden(
    model: Model, params: dict[str, Any], tokens: Int[Array, "B T"], adapter: Adapter | None
) -> Float[Array, "B T D"]:
    return nnx.merge(model, params)(tokens, adapter=adapter)[0]
