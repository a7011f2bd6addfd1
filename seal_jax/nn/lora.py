"""Low-rank adapters as pytrees: initialise, mask ranks, scale, apply, merge (Hu et al. 2021; PEFT's conventions).

Everything here is written for one adapter. Many adapters are the same pytrees with a leading axis E, made by
`jax.vmap(init)`, `stack`, or by training under `vmap` (inner.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seal_jax.nn.quantised import Quantised
from seal_jax.types import PROJECTIONS, AnyArray

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Adapter(struct.PyTreeNode):
    """One LoRA adapter over every layer. The adapted projection computes `x W + scale · (x A) B`."""

    a: dict[str, Float[Array, "L D r"]]
    b: dict[str, Float[Array, "L r F"]]
    scale: Float[Array, ""]  # alpha / rank

    @property
    def weights(self) -> Any:
        """What is trained: a pytree."""
        return self.a, self.b

    def holding(self, weights: Any) -> Self:
        """The same adapter with other `weights`."""
        a, b = weights
        return self.replace(a=a, b=b)


class Prefix(Adapter):
    """Keys and values of p tokens in every layer, which all tokens attend to (Eyuboglu et al. 2025, arXiv 2506.06266,
    there a Cartridge; Li and Liang 2021, arXiv 2101.00190). Low-rank matrices may be trained beside them.

    n live keys are those of positions -n to -1: attention sees differences of positions alone, and so a sequence's own
    positions begin at 0 with a prefix and without one. The first token stays as it is: attention rests on it, and
    training it makes the rest unstable (Eyuboglu et al., `num_frozen_tokens = 1` in their code).
    """

    keys: Float[Array, "L K H p"]
    values: Float[Array, "L K p H"]
    live: Bool[Array, "p"]  # False where the text was shorter than the prefix

    @property
    def weights(self) -> Any:
        """What is trained: a pytree."""
        return self.a, self.b, (self.keys, self.values)

    def holding(self, weights: Any) -> Self:
        """The same prefix with other `weights`, but for its first token."""
        a, b, (keys, values) = weights
        first = jnp.arange(len(self.live)) == 0
        keys, values = jnp.where(first, self.keys, keys), jnp.where(first[:, None], self.values, values)
        return self.replace(a=a, b=b, keys=keys, values=values)


class LayerPrefix(NamedTuple):
    """One layer's keys and values of a prefix."""

    k: Float[Array, "K H p"]
    v: Float[Array, "K p H"]
    live: Bool[Array, "p"]


class Share(NamedTuple):
    """What one layer has of an adapter."""

    low_rank: dict[str, LowRank]  # by projection
    prefix: LayerPrefix | None = None


class LowRank(struct.PyTreeNode):
    """One projection's share of an adapter, in one layer."""

    a: Float[Array, "D r"]
    b: Float[Array, "r F"]
    scale: Float[Array, ""]
    dropout_key: PRNGKeyArray | None = None
    dropout: float = struct.field(pytree_node=False, default=0.0)
    fixed: LowRank | None = None  # an adapter trained before, which this one is trained on top of

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
        """`scale · (dropout(x) A) B`, in the activations' precision; the weights stay float32."""
        below = None if self.fixed is None else self.fixed(x)
        if self.dropout > 0 and self.dropout_key is not None:
            keep = jax.random.bernoulli(self.dropout_key, 1 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.dropout), 0)
        own = low_rank(x, self.a.astype(x.dtype), self.b.astype(x.dtype), self.scale.astype(x.dtype))
        return own if below is None else own + below


@jax.custom_vjp
def low_rank(
    x: Float[Array, "B T D"], a: Float[Array, "D r"], b: Float[Array, "r F"], scale: Float[Array, ""]
) -> Float[Array, "B T F"]:
    """`scale · (x A) B`, constant in `scale`. The scale goes on the narrow side, where it costs least.

    The derivative is JAX's own but for the order of its products: each reads the wide operand as it lies in memory.
    Left to itself XLA copies it transposed, which took a sixth of a training step on a CPU.
    """
    return ((x @ a) * scale) @ b


def _low_rank_forward(x: Array, a: Array, b: Array, scale: Array) -> tuple[Array, tuple[Array, ...]]:
    narrow = (x @ a) * scale
    return narrow @ b, (x, a, b, scale, narrow)


def _low_rank_backward(kept: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array, None]:
    x, a, b, scale, narrow = kept
    d_narrow = (dy @ b.T) * scale
    d_a = jnp.einsum("btr,btd->rd", d_narrow, x).T
    d_b = jnp.einsum("btr,btf->rf", narrow, dy)
    return d_narrow @ a.T, d_a, d_b, None


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


def layer_adapters(
    a: dict[str, Array],
    b: dict[str, Array],
    scale: Array,
    dropout_key: PRNGKeyArray | None = None,
    dropout: float = 0.0,
    fixed: dict[str, LowRank] | None = None,
) -> dict[str, LowRank]:
    """One layer's slice of an adapter, by projection, on top of `fixed`. Each projection drops out on its own key."""
    keys = None if dropout_key is None else jax.random.split(dropout_key, len(a))
    below = fixed or {}
    own = {
        name: LowRank(a[name], b[name], scale, None if keys is None else keys[i], dropout, below.get(name))
        for i, name in enumerate(sorted(a))
    }
    return {**below, **own}


def stacked_prefix(adapter: Adapter | None) -> LayerPrefix | None:
    """The prefix of all layers, with a leading axis L; None where the adapter has none."""
    if not isinstance(adapter, Prefix):
        return None
    live = jnp.broadcast_to(adapter.live, (len(adapter.keys), *adapter.live.shape))
    return LayerPrefix(adapter.keys, adapter.values, live)


def unstack(adapter: Adapter | None, num_layers: int) -> list[Share]:
    """An adapter's shares, layer by layer; nothing in each where there is no adapter."""
    if adapter is None:
        return [Share({}) for _ in range(num_layers)]
    sides = ([{name: w[i] for name, w in side.items()} for i in range(num_layers)] for side in (adapter.a, adapter.b))
    prefix = stacked_prefix(adapter)
    return [
        Share(layer_adapters(a, b, adapter.scale), jax.tree.map(lambda w, i=i: w[i], prefix))
        for i, (a, b) in enumerate(zip(*sides, strict=True))
    ]


def require_low_rank(adapter: Adapter, what: str) -> None:
    """Refuses a prefix, which is no change of a matrix; `what` is what it was to become.

    Raises:
        ValueError: the adapter is a prefix.
    """
    if isinstance(adapter, Prefix):
        raise ValueError(
            f"a trained prefix of {len(adapter.live)} tokens cannot become {what}: it is keys and values, and changes "
            "no matrix; expected a LoRA adapter"
        )


def init(
    key: PRNGKeyArray,
    blocks: dict[str, Any],
    projections: Sequence[str],
    *,
    max_rank: int,
    rank: Int[AnyArray, ""] | int,
    alpha: Float[AnyArray, ""] | float,
) -> Adapter:
    """A fresh adapter as PEFT makes it: A Kaiming-uniform with a = sqrt(5), that is U(±1/sqrt(D)); B zero.

    `blocks` is `params["blocks"]`, read for shapes only. Columns of A past `rank` are zero; their gradient and that
    of the matching rows of B are then exactly zero, so they stay so and no mask is needed in training. Rows are drawn
    in order, so an adapter of rank 4 begins as the first 4 columns of one of rank 8 from the same key.

    Raises:
        ValueError: a name that is no projection of the model, or an empty choice.
    """
    unknown = [name for name in projections if name not in PROJECTIONS]
    if unknown or not projections:
        raise ValueError(f"LoRA targets {list(projections)}: expected one or more of {list(PROJECTIONS)}")
    a, b = {}, {}
    for name in sorted(projections):
        num_layers, d_in, d_out = blocks[name]["kernel"].shape
        layer_keys = jax.random.split(jax.random.fold_in(key, PROJECTIONS.index(name)), num_layers)
        bound = d_in**-0.5
        rows = jax.vmap(lambda k, d=d_in, w=bound: jax.random.uniform(k, (max_rank, d), minval=-w, maxval=w))(
            layer_keys
        )
        live = jnp.arange(max_rank) < rank
        a[name] = jnp.where(live[:, None], rows, 0).swapaxes(1, 2)
        b[name] = jnp.zeros((num_layers, max_rank, d_out))
    return Adapter(a, b, jnp.asarray(alpha / rank, jnp.float32))


def stack(adapters: Sequence[Adapter]) -> Adapter:
    """E separate adapters of one shape -> the same with a leading axis E."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def take(adapters: Adapter, index: int | slice | AnyArray) -> Adapter:
    """The adapter, or adapters, at `index` of the leading axis."""
    if isinstance(index, slice) or all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(adapters)):
        return jax.tree.map(lambda leaf: leaf[index], adapters)  # on the host it stays there
    return _gather(adapters, index)


def empty(blocks: dict[str, Any], projections: Sequence[str], columns: int) -> Adapter:
    """An adapter of so many columns that are all zero: room for others (`join`). Its scale is 1."""
    shapes = {name: blocks[name]["kernel"].shape for name in sorted(projections)}
    a = {name: jnp.zeros((num_layers, d_in, columns)) for name, (num_layers, d_in, _) in shapes.items()}
    b = {name: jnp.zeros((num_layers, columns, d_out)) for name, (num_layers, _, d_out) in shapes.items()}
    return Adapter(a, b, jnp.ones(()))


def join(wide: Adapter, adapter: Adapter, at: Int[AnyArray, ""] | int) -> Adapter:
    """Puts an adapter beside those that `wide` holds, into its columns from `at` on: what both compute, added.

    Adapters merged one after another into a base model are this one adapter over it. One scale serves: the newcomer's B
    takes the ratio of the two.
    """
    ratio = adapter.scale / wide.scale
    return wide.replace(
        a={
            name: jax.lax.dynamic_update_slice_in_dim(w, adapter.a[name], at, axis=-1) if name in adapter.a else w
            for name, w in wide.a.items()
        },
        b={
            name: jax.lax.dynamic_update_slice_in_dim(w, ratio * adapter.b[name], at, axis=-2)
            if name in adapter.b
            else w
            for name, w in wide.b.items()
        },
    )


def columns(adapter: Adapter, first: int) -> Adapter:
    """Its first so many columns, or those of each of E adapters."""
    a = {name: w[..., :first] for name, w in adapter.a.items()}
    return adapter.replace(a=a, b={name: w[..., :first, :] for name, w in adapter.b.items()})


@jax.jit
def _gather(adapters: Adapter, index: Array) -> Adapter:  # one program, rather than one a leaf
    return jax.tree.map(lambda leaf: leaf[index], adapters)


def merge(params: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """Folds one adapter into the weights: `W + scale · A B`. The sum is taken in float32, then rounded once.

    Over a quantised matrix it is laid beside those that are there: together they are one adapter of the ranks' sum.
    Weights without an adapter are the same arrays as before.

    Raises:
        ValueError: the adapter is a prefix.
    """
    require_low_rank(adapter, "part of the model's weights")
    blocks = dict(params["blocks"])
    kernels = {name: blocks[name]["kernel"] for name in adapter.a}
    laid = {
        name: kernel.over(adapter.a[name], adapter.scale * adapter.b[name])
        for name, kernel in kernels.items()
        if isinstance(kernel, Quantised)
    }
    where_it_lay = lambda new, old: jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new
    for name, kernel in (laid or _folded(kernels, adapter)).items():
        blocks[name] = {**blocks[name], "kernel": jax.tree.map(where_it_lay, kernel, kernels[name])}
    return {**params, "blocks": blocks}


@jax.jit
def _folded(kernels: dict[str, Array], adapter: Adapter) -> dict[str, Array]:
    def fold(kernel: Array, a: Array, b: Array) -> Array:
        return (kernel.astype(jnp.float32) + adapter.scale * jnp.einsum("ldr,lrf->ldf", a, b)).astype(kernel.dtype)

    return {name: fold(kernel, adapter.a[name], adapter.b[name]) for name, kernel in kernels.items()}
