"""A product of float32 activations and half-precision weights: rounded once, summed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seal_jax.nn import transformer
from seal_jax.nn.products import product
from seal_jax.run import runtime

HALF = jnp.bfloat16


def drawn(*shape: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_of_one_precision_it_is_the_plain_product():
    for dtype in (jnp.float32, HALF):
        x, w = drawn(3, 5, 16, seed=0).astype(dtype), drawn(16, 8, seed=1).astype(dtype)
        assert product(x, w).dtype == dtype
        np.testing.assert_array_equal(product(x, w), x @ w)


@pytest.mark.parametrize("batched", [False, True])
def test_of_two_precisions_what_is_multiplied_is_rounded_and_nothing_else(batched):
    x, w, slope = drawn(4, 3, 5, 16, seed=0), drawn(16, 8, seed=1).astype(HALF), drawn(4, 3, 5, 8, seed=2)
    rounded = lambda a: np.asarray(a.astype(HALF).astype(jnp.float32), np.float64)
    f = jax.vmap(product, in_axes=(0, None)) if batched else product
    y, pull = jax.vjp(f, x, w)
    assert (y.dtype, f(x, w).shape) == (jnp.float32, (4, 3, 5, 8))
    np.testing.assert_allclose(y, rounded(x) @ rounded(w), rtol=1e-5, atol=1e-5)
    dx, dw = pull(slope)
    assert (dx.dtype, dw.dtype) == (jnp.float32, HALF)
    np.testing.assert_allclose(dx, rounded(slope) @ rounded(w).T, rtol=1e-5, atol=1e-5)
    # of `w`, many rows are summed: within bfloat16's rounding of the sum
    expected = np.einsum("abcd,abcf->df", rounded(x), rounded(slope))
    np.testing.assert_allclose(np.asarray(dw, np.float64), expected, rtol=2**-7, atol=0.05)


def test_a_model_in_half_precision_on_a_cpu_is_nearer_to_float32_than_one_with_half_activations(make_tiny):
    whole, half = make_tiny(), make_tiny(dtype="bfloat16")
    tokens = jnp.arange(24).reshape(2, 12)
    exact = jax.tree.map(lambda w: w.astype(HALF).astype(jnp.float32), whole.params)

    def hidden(graph, params):
        return np.asarray(nnx.merge(graph, params)(tokens)[0], np.float32)

    mixed = transformer.graph(half.config, jnp.dtype(HALF), "xla", jnp.dtype("float32"))
    wanted = hidden(whole.model, exact)
    far, near = (np.abs(hidden(graph, half.params) - wanted).max() for graph in (half.model, mixed))
    assert near < far
    assert hidden(mixed, half.params).dtype == np.float32


def test_on_a_cpu_a_model_computes_in_float32_whatever_its_weights_are():
    assert [runtime.activations(dtype) for dtype in ("float32", "bfloat16")] == [jnp.dtype("float32")] * 2
