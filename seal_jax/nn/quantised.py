"""A frozen base model's matrices in few bits, by qwix's numerics: int8, or the 4-bit NormalFloat of QLoRA (2305.14314).

The matrices of the layers are quantised; the embedding, the output head, norms and biases stay as they are. A matrix
is in full precision only while it is multiplied with. Nothing can be merged into it: adapters that another model would
merge are laid over it, side by side, which computes the same.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seal_jax.nn.products import product
from seal_jax.types import AnyArray, Base

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Float, Int

BLOCK = 64  # inputs of an output that share a scale in nf4 (QLoRA's); in int8 all do
BITS: dict[Base, int] = {"int8": 8, "nf4": 4}


class Quantised(struct.PyTreeNode):
    """One matrix in few bits, or the stack of all layers' (a leading L on every leaf)."""

    codes: Int[Array, "D F"]  # int8; in nf4 uint8 "D/2 F", two inputs a byte: XLA keeps a uint4 in one
    scale: Float[Array, "G F"]  # float32, of G groups of inputs
    a: Float[Array, "D R"]  # of the adapters laid over it; R is 0 where there are none
    b: Float[Array, "R F"]  # times their scales
    base: Base = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return (*self.a.shape[:-1], self.b.shape[-1])

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
        """`x W + (x A) B`, in the activations' precision."""
        y = _product(x, self)
        return y + product(product(x, self.a), self.b) if self.a.shape[-1] else y

    def over(self, a: Float[Array, "D r"], b: Float[Array, "r F"]) -> Quantised:
        """With one more adapter, in the precision of those that are there: the activations'."""
        return self.replace(a=_beside(self.a, a, axis=-1), b=_beside(self.b, b, axis=-2))

    def dense(self) -> Float[Array, "D F"]:
        """The matrix, or matrices, in float32, without the adapters."""
        codes, (*stacked, groups, d_out) = self.codes, self.scale.shape
        if self.base == "nf4":
            pairs = jnp.stack([codes & 15, codes >> 4], axis=-2)
            codes = _nf4().at[pairs.reshape(self.shape)].get(mode="promise_in_bounds")
        values = codes.astype(self.scale.dtype).reshape(*stacked, groups, -1, d_out)
        return (values * self.scale[..., None, :]).reshape(self.shape)


def _nf4() -> Float[Array, "16"]:
    """What its codes stand for. `qwix.dequantize` of a whole matrix flattens it, which brings a split one together."""
    import qwix

    return qwix.dequantize(qwix.QArray(jnp.arange(16, dtype=jnp.uint8), jnp.ones(1), qtype="nf4"))


@partial(jax.jit, static_argnames="axis")
def _beside(there: Array, new: Array, axis: int) -> Array:  # one program, on the devices of what is there
    return jnp.concatenate([there, new.astype(there.dtype)], axis=axis)


@jax.custom_vjp
def _product(x: Float[Array, "B T D"], kernel: Quantised) -> Float[Array, "B T F"]:
    """`x W`, constant in W: the backward pass keeps the codes and no matrix made of them."""
    return x @ _matrix(kernel, x)


def _forward(x: Array, kernel: Quantised) -> tuple[Array, Quantised]:
    return _product(x, kernel), kernel


def _backward(kernel: Quantised, dy: Array) -> tuple[Array, None]:
    return dy @ _matrix(kernel, dy).T, None


_product.defvjp(_forward, _backward)


def _matrix(kernel: Quantised, x: Array) -> Float[Array, "D F"]:
    """The matrix, in the precision of what it is multiplied with and not made before that is there."""
    return kernel.replace(codes=_after(kernel.codes, x)).dense().astype(x.dtype)


@jax.custom_batching.custom_vmap
def _after(codes: Array, x: Array) -> Array:
    """The codes as they are, but after x: they are changed by a zero that is computed from one of its bits. Without a
    dependence XLA makes all layers' matrices before the loop over tokens; it has dropped an `optimization_barrier` by
    the time it orders a program."""
    bits = jax.lax.bitcast_convert_type(x[(0,) * x.ndim].astype(jnp.float32), jnp.int32)
    return codes ^ ((bits & 1) >> 1).astype(codes.dtype)


@_after.def_vmap
def _(size: int, batched: Sequence[Any], codes: Array, x: Array) -> tuple[Array, bool]:
    if batched[0]:
        raise TypeError("a quantised matrix is shared by all rows; under vmap it must be the same for all")
    return _after(codes, x[0]), False  # one row's x for all: they share the matrix


# ---------------------------------------------------------------------------------------------------------------------
# Making one


@partial(jax.jit, static_argnames=("base", "dtype"))
def quantise(kernel: Float[AnyArray, "... D F"], base: Base, dtype: np.dtype) -> Quantised:
    """A matrix, or each of a stack, with a scale for each output, in nf4 for each `BLOCK` of its inputs. `dtype` is the
    activations'."""
    import qwix

    (*layers, d_in, d_out), inputs = kernel.shape, kernel.ndim - 2
    others = tuple(axis for axis in range(kernel.ndim) if axis != inputs)
    tiles = {inputs: block(d_in)} if base == "nf4" else {}
    qtype = base if base == "nf4" else jnp.int8
    found = qwix.quantize(jnp.asarray(kernel, jnp.float32), qtype, channelwise_axes=others, tiled_axes=tiles)
    codes = found.qvalue
    if base == "nf4":
        codes = codes.astype(jnp.uint8)
        codes = codes[..., 0::2, :] | codes[..., 1::2, :] << 4
    a, b = jnp.zeros((*layers, d_in, 0), dtype), jnp.zeros((*layers, 0, d_out), dtype)
    return Quantised(codes, found.scale, a, b, base)


def block(inputs: int) -> int:
    """Inputs that share a scale in nf4: `BLOCK`, or its greatest part that divides them."""
    return math.gcd(BLOCK, inputs)


def stack(layers: Iterable[Float[np.ndarray, "D F"]], base: Base, dtype: np.dtype) -> Quantised:
    """All layers' matrices, quantised one by one as they are read, on the host."""
    each = [jax.device_get(quantise(layer, base, dtype)) for layer in layers]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def of_params(params: dict[str, Any], base: Base) -> dict[str, Any]:
    """Parameters that are in memory already, with the layers' matrices quantised (if the base is not "full")."""
    if base == "full":
        return params
    blocks = {
        name: {**own, "kernel": quantise(own["kernel"], base, own["kernel"].dtype)} if "kernel" in own else own
        for name, own in params["blocks"].items()
    }
    return {**params, "blocks": blocks}


def is_quantised(params: dict[str, Any]) -> bool:
    """Whether its layers are."""
    return isinstance(params["blocks"]["q_proj"]["kernel"], Quantised)


def require(base: Base) -> None:
    """Raises ValueError where a base is to be quantised and qwix is not installed."""
    if base != "full" and importlib.util.find_spec("qwix") is None:
        raise ValueError(f"--base {base} needs qwix: pip install 'seal_jax[quant]', or leave --base out")
