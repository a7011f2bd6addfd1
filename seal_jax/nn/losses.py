"""What training minimises, and the chunked output head under every loss.

A `Loss` is a function of the logits of a few tokens: its value and its slope, one number and one vector a token. The
head around it (`token_losses`) cuts a batch into pieces, so that logits of all tokens never exist at once, and keeps
what the backward pass needs. A new loss is one such function, in a file of your own (examples/loss.py has one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Float, Int

Numbers = Mapping[str, Any]  # scalars, of one adapter: what its loss may be told, such as a weight


def _weighted(values: Array, weight: Array, numbers: Numbers) -> Array:
    return jnp.sum(weight * values)


class Loss(NamedTuple):
    """One loss. Which loss a program computes is static; `numbers` are arrays, one an adapter."""

    value_and_slope: Callable[
        [Float[Array, "T V"], Int[Array, "T"], Float[Array, "T V"] | None, Numbers],
        tuple[Float[Array, "T"], Float[Array, "T V"]],
    ]
    """(logits, targets, the teacher's logits, numbers) -> (each token's loss in nats, its derivative in the logits)."""
    teacher: Literal["none", "base", "in_context"] = "none"
    """base: the model as it was before this adapter; in_context: that model, reading what a sequence's `view` says."""
    total: Callable[[Float[Array, "B T"], Float[Array, "B T"], Numbers], Float[Array, ""]] = _weighted
    """(each token's value, its weight, numbers) -> the loss of a step, as a sum; a token of weight 0 has the value 0.
    It is divided by the number of tokens that have a weight, or of groups of `rows` sequences that have one."""
    rows: int = 1  # sequences, neighbours in a step, that `total` compares
    in_view: float = 1.0  # of an in_context teacher's tokens, so many it reads with the view; the others without


def _next_token(logits: Array, targets: Array, teacher: Array | None, numbers: Numbers) -> tuple[Array, Array]:
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    gold = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    is_target = jnp.arange(logits.shape[-1]) == targets[:, None]
    return normaliser - gold, jnp.exp(logits - normaliser[:, None]) - is_target


def _divergence(logits: Array, targets: Array, teacher: Array | None, numbers: Numbers) -> tuple[Array, Array]:
    assert teacher is not None  # `Loss.teacher` asks for one
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    return jnp.sum(q * (log_q - log_p), axis=-1), p - q


def _kl_to_base(logits: Array, targets: Array, teacher: Array | None, numbers: Numbers) -> tuple[Array, Array]:
    value, slope = _next_token(logits, targets, teacher, numbers)
    kl, kl_slope = _divergence(logits, targets, teacher, numbers)
    return value + numbers["kl"] * kl, slope + numbers["kl"] * kl_slope


next_token = Loss(_next_token)
"""`-log p(y)`."""

kl_to_base = Loss(_kl_to_base, teacher="base")
"""`-log p(y) + kl · KL(q || p)`, q being the model before this adapter and `kl` a number of the adapter."""

distillation = Loss(_divergence, teacher="in_context")
"""`KL(q || p)`: context distillation (Askell et al. 2021, arXiv 2112.00861; Snell et al. 2022, arXiv 2209.15189). q is
the model before this adapter with the passage in view, on the same text, whose own next tokens are no targets."""

mixed = distillation._replace(in_view=0.5)
"""The same, but for each token a seeded coin says whether q has the passage in view, with probability `in_view`, or
reads only what the student reads. After MixSD (Liu et al. 2026, arXiv 2605.16865), known here by its abstract: targets
mixed token by token from the two are closer to what the model says by itself, so that less is forgotten. There the
model writes the mixed text; here the text is given, and the target is the whole distribution that the coin chose."""


def log_ratio(logits: Array, targets: Array, teacher: Array | None, numbers: Numbers) -> tuple[Array, Array]:
    """`log p(y) - log q(y)`, q being the teacher: what losses over whole samples are made of (their `total`)."""
    assert teacher is not None  # `Loss.teacher` asks for one
    value, slope = _next_token(logits, targets, teacher, numbers)
    return _next_token(teacher, targets, None, numbers)[0] - value, -slope


# ---------------------------------------------------------------------------------------------------------------------
# The head


class Head(struct.PyTreeNode):
    """The output matrix as it is stored: its transpose, used in a loop, would be copied (2 GB at 7B)."""

    weight: Float[Array, "V D"] | Float[Array, "D V"]
    axes: str = struct.field(pytree_node=False)  # "vd" or "dv"

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """In float32, from activations of any precision."""
        narrow = hidden.astype(self.weight.dtype)
        return jnp.einsum(f"...d,{self.axes}->...v", narrow, self.weight, preferred_element_type=jnp.float32)

    def combine(self, coefficients: Float[Array, "T V"]) -> Float[Array, "T D"]:
        """Sums of the vocabulary's vectors."""
        narrow = coefficients.astype(self.weight.dtype)
        return jnp.einsum(f"tv,{self.axes}->td", narrow, self.weight, preferred_element_type=jnp.float32)


def token_losses(
    loss: Loss,
    head: Head,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    *,
    chunk: int = 256,
    teacher: Float[Array, "B T D"] | None = None,
    numbers: Numbers | None = None,
    train_head: bool = False,
) -> Float[Array, "B T"]:
    """The loss of each token, in nats; at most `chunk` tokens at a time so that [B, T, V] never exists.

    Differentiates in `hidden`: the head is frozen, and one vector a token is kept for the backward pass. With
    `train_head` it differentiates in the head too, and logits are computed again instead. `teacher` are the hidden
    states of `loss.teacher`, under the same head; they are constant.
    """
    piece = jax.checkpoint(partial(_value, loss)) if train_head else partial(_frozen_head, loss)
    pieces = max(1, math.ceil(targets.size * (1 if teacher is None else 2) / chunk))  # a teacher has logits too
    padding = -targets.size % pieces  # equal pieces: 264 tokens are 2 x 132, not 256 and 8

    def cut(x: Array) -> Array:
        flat = x.reshape(-1, *x.shape[2:])
        return jnp.pad(flat, ((0, padding), *((0, 0) for _ in flat.shape[1:]))).reshape(pieces, -1, *x.shape[2:])

    rows = jax.tree.map(cut, (hidden, targets, teacher))
    each = jax.lax.map(lambda row: piece(head, *row, dict(numbers or {})), rows)
    return each.reshape(-1)[: targets.size].reshape(targets.shape)


def _value(loss: Loss, head: Head, hidden: Array, targets: Array, teacher: Array | None, numbers: Numbers) -> Array:
    taught = None if teacher is None else head.logits(teacher)
    return loss.value_and_slope(head.logits(hidden), targets, taught, numbers)[0]


_frozen_head = jax.custom_vjp(_value, nondiff_argnums=(0,))


def _forward(
    loss: Loss, head: Head, hidden: Array, targets: Array, teacher: Array | None, numbers: Numbers
) -> tuple[Array, Array]:
    # What the backward pass needs of a token is one vector, d loss / d hidden: with the logits at hand it is computed
    # now, so that they are neither stored nor computed again.
    taught = None if teacher is None else head.logits(teacher)
    value, slope = loss.value_and_slope(head.logits(hidden), targets, taught, numbers)
    return value, head.combine(slope).astype(hidden.dtype)


def _backward(loss: Loss, slope: Array, cotangent: Array) -> tuple[None, Array, None, None, None]:
    return None, (slope * cotangent[:, None]).astype(slope.dtype), None, None, None


_frozen_head.defvjp(_forward, _backward)
