"""A product of float32 activations and a matrix in half precision, by the instructions that a CPU has for it.

A CPU with AMX or AVX512-BF16 multiplies bfloat16 several times as fast as float32 and sums in float32; everything else
that it does in bfloat16 it does in float32, between two conversions. So on a CPU a model in bfloat16 has its matrices
in bfloat16, and its activations in float32 (runtime.py): only what is multiplied is rounded. GPUs and TPUs have both in
bfloat16.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Float


def product(x: Float[Array, "... D"], kernel: Float[Array, "D F"]) -> Float[Array, "... F"]:
    """`x @ kernel`, in the precision of `x`."""
    return x @ kernel if x.dtype == kernel.dtype else _mixed(x, kernel)


@jax.custom_vjp
def _mixed(x: Array, kernel: Array) -> Array:
    return _summed("...d,df->...f", x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _mixed(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    # JAX's own derivative is a product of two precisions, for which XLA widens the matrix.
    x, kernel = kept
    rows, slopes = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]).astype(kernel.dtype)
    return _summed("...f,df->...d", dy, kernel), _summed("nd,nf->df", rows, slopes).astype(kernel.dtype)


def _summed(axes: str, x: Array, narrow: Array) -> Array:
    return jnp.einsum(axes, x.astype(narrow.dtype), narrow, preferred_element_type=x.dtype)


_mixed.defvjp(_forward, _backward)


# Before it slices or gathers in half precision, XLA (that of jax 0.11.2 no more) widens it all for a CPU: of a stack of
# layers every one, at every step. The pass also serves what a CPU cannot multiply in half precision; a mixed model has
# no such product.
_WIDENS = jax.__version_info__ < (0, 11)
_NOTHING_WIDENED = {"xla_disable_hlo_passes": "float-normalization-bf16"} if _WIDENS else {}


class Program:
    """`jax.jit` of a function with arguments `model` and `params`, compiled so that no weight of a mixed model (half
    precision, activations in float32) is widened."""

    def __init__(self, function: Callable[..., Any], **how: Any):
        functools.update_wrapper(self, function)
        self._bind = inspect.signature(function).bind
        self._plain = jax.jit(function, **how)
        self._mixed = jax.jit(function, compiler_options=_NOTHING_WIDENED, **how)
        self._is_mixed: dict[Any, bool] = {}  # by model

    def of(self, model: nnx.GraphDef[Any], params: dict[str, Any]) -> Any:
        """The jitted function for a model."""
        mixed = self._is_mixed.get(model)  # asked at every step: a model's hash takes longer than all else here
        if mixed is None:
            mixed = self._is_mixed[model] = nnx.merge(model, params).mixed
        return self._mixed if mixed else self._plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not _WIDENS:
            return self._plain(*args, **kwargs)
        given = self._bind(*args, **kwargs).arguments
        return self.of(given["model"], given["params"])(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)
