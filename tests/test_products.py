"""A product of float32 activations and half-precision weights: rounded once, summed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seal_jax.nn import transformer
from seal_jax.nn.products import Program, product
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


@pytest.fixture
def mixed(make_tiny):
    half = make_tiny(dtype="bfloat16")
    return transformer.graph(half.config, jnp.dtype(HALF), "xla", jnp.dtype("float32")), half


def hidden(model, params, tokens):
    return nnx.merge(model, params)(tokens)[0]


def test_a_program_widens_no_weight_of_a_mixed_model(mixed):
    model, half = mixed
    tokens, program = jnp.arange(24).reshape(2, 12), Program(hidden, static_argnames="model")
    shape = "[" + ",".join(map(str, half.params["blocks"]["gate_proj"]["kernel"].shape)) + "]"
    plain = jax.jit(hidden, static_argnames="model")
    read = lambda jitted: jitted.lower(model, half.params, tokens).compile().as_text()
    if jax.__version_info__ < (0, 11):
        assert f"f32{shape}" in read(plain)  # all layers' weights, at every step
    assert f"f32{shape}" not in read(program.of(model, half.params))
    np.testing.assert_array_equal(program(model, half.params, tokens), plain(model, half.params, tokens))


def test_a_program_of_another_model_is_compiled_as_jax_does(make_tiny):
    for dtype in ("float32", "bfloat16"):  # of half activations XLA has to widen products
        tiny, program = make_tiny(dtype=dtype), Program(hidden, static_argnames="model")
        tokens = jnp.arange(24).reshape(2, 12)
        plain = jax.jit(hidden, static_argnames="model")(tiny.model, tiny.params, tokens)
        np.testing.assert_array_equal(program(tiny.model, params=tiny.params, tokens=tokens), plain)


def test_who_trains_in_float32_on_a_processor_with_amx_is_told_what_is_faster(monkeypatch):
    monkeypatch.setattr(runtime, "_of_cpu", {"flags": "fpu avx512f amx_bf16 amx_tile"}.get)
    assert runtime.faster_here("float32").startswith("this processor has AMX: --dtype bfloat16")
    assert runtime.faster_here("bfloat16") is None
    monkeypatch.setattr(runtime, "_of_cpu", {"flags": "fpu avx512f avx512_bf16"}.get)
    assert runtime.faster_here("float32") is None
