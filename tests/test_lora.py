"""Adapters begin as PEFT's do, keep to their rank, and merged compute what they computed beside the weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seal_jax.nn import lora
from seal_jax.types import PROJECTIONS

TOKENS = np.random.default_rng(0).integers(0, 61, (2, 12)).astype(np.int32)


def init(tiny, projections=PROJECTIONS, *, seed=0, max_rank=8, rank=8, alpha=16.0):
    return lora.init(
        jax.random.key(seed), tiny.params["blocks"], projections, max_rank=max_rank, rank=rank, alpha=alpha
    )


def with_b(adapter, rank, seed=1):
    """B drawn, in its live rows, as after training."""
    live = (np.arange(next(iter(adapter.b.values())).shape[1]) < rank)[:, None]
    names = sorted(adapter.b)
    keys = dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))
    return adapter.replace(b={n: live * 0.2 * jax.random.normal(keys[n], adapter.b[n].shape) for n in names})


def test_a_is_kaiming_uniform_and_b_is_zero(tiny):
    adapter = init(tiny)
    for name in PROJECTIONS:
        d_in, d_out = tiny.params["blocks"][name]["kernel"].shape[1:]
        a, bound = np.asarray(adapter.a[name]), d_in**-0.5  # Kaiming with a = sqrt(5): sqrt(6 / ((1 + 5) · fan in))
        assert a.shape == (2, d_in, 8)
        assert adapter.b[name].shape == (2, 8, d_out)
        assert bound * 0.98 < np.abs(a).max() <= bound, name
        assert abs(a.std() / (bound / 3**0.5) - 1) < 0.1, name  # a uniform's standard deviation
        assert not np.asarray(adapter.b[name]).any()
        assert (a[0] != a[1]).all()  # layers are drawn apart
    assert (adapter.a["q_proj"] != adapter.a["k_proj"]).all()  # and so are projections
    assert adapter.scale == 2


def test_what_a_projection_draws_does_not_depend_on_the_others(tiny):
    np.testing.assert_array_equal(init(tiny).a["v_proj"], init(tiny, ("v_proj",)).a["v_proj"])


def test_a_fresh_adapter_changes_nothing(tiny):
    np.testing.assert_array_equal(tiny.logits(TOKENS, adapter=init(tiny)), tiny.logits(TOKENS))


def test_a_smaller_rank_begins_as_the_first_columns(tiny):
    small, masked, full = init(tiny, max_rank=4, rank=4), init(tiny, rank=4), init(tiny)
    for name in PROJECTIONS:
        np.testing.assert_array_equal(masked.a[name][:, :, :4], small.a[name])
        np.testing.assert_array_equal(masked.a[name][:, :, :4], full.a[name][:, :, :4])
        assert not np.asarray(masked.a[name][:, :, 4:]).any()
    assert masked.scale == small.scale == 4


def test_merged_equals_adapted(make_tiny):
    for tiny in (make_tiny(), make_tiny(qkv_bias=True, tie_embeddings=False)):
        adapter = with_b(init(tiny, rank=3), rank=3)
        adapted = tiny.logits(TOKENS, adapter=adapter)
        assert np.abs(adapted - tiny.logits(TOKENS)).max() > 0.1
        merged = tiny.logits(TOKENS, params=lora.merge(tiny.params, adapter))
        np.testing.assert_allclose(merged, adapted, rtol=1e-5, atol=1e-5)  # of logits up to 6


def test_merging_leaves_the_original_and_the_other_weights_as_they_were(tiny):
    merged = lora.merge(tiny.params, with_b(init(tiny, ("q_proj",)), rank=8))
    assert merged["blocks"]["q_proj"]["kernel"] is not tiny.params["blocks"]["q_proj"]["kernel"]
    assert merged["blocks"]["k_proj"] is tiny.params["blocks"]["k_proj"]
    assert merged["embed"] is tiny.params["embed"]


def test_merging_into_bfloat16_rounds_once(make_tiny):
    tiny = make_tiny(dtype="bfloat16")
    adapter = with_b(init(tiny, ("q_proj",)), rank=8)
    kernel = np.asarray(tiny.params["blocks"]["q_proj"]["kernel"], np.float32)
    exact = kernel + 2 * np.einsum("ldr,lrf->ldf", adapter.a["q_proj"], adapter.b["q_proj"])
    merged = lora.merge(tiny.params, adapter)["blocks"]["q_proj"]["kernel"]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged, np.float32), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("projections", [("q_proj", "lm_head"), ("qproj",), ()])
def test_a_projection_that_is_none_is_named(tiny, projections):
    with pytest.raises(ValueError, match=r"LoRA targets .* expected one or more of .*'down_proj'") as error:
        init(tiny, projections)
    assert str(list(projections)) in str(error.value)


def test_stacked_adapters_are_taken_out_again(tiny):
    adapters = [init(tiny, seed=seed, rank=seed + 1) for seed in range(3)]
    stacked = lora.stack(adapters)
    assert stacked.scale.shape == (3,)
    for e, adapter in enumerate(adapters):
        jax.tree.map(np.testing.assert_array_equal, lora.take(stacked, e), adapter)
    jax.tree.map(np.testing.assert_array_equal, lora.take(stacked, np.array([2, 0])), lora.stack(adapters[2::-2]))


def test_adapters_side_by_side_are_adapters_merged_one_after_another(tiny):
    """Two of different scales, in a room for three; what is not filled adds nothing."""
    first, second = with_b(init(tiny), rank=8), with_b(init(tiny, rank=3, max_rank=3, alpha=1.0), rank=3, seed=2)
    room = lora.empty(tiny.params["blocks"], PROJECTIONS, 20)
    np.testing.assert_array_equal(tiny.logits(TOKENS, adapter=room), tiny.logits(TOKENS))
    both = lora.join(lora.join(room, first, 0), second, 8)
    expected = tiny.logits(TOKENS, params=lora.merge(lora.merge(tiny.params, first), second))
    np.testing.assert_allclose(tiny.logits(TOKENS, adapter=both), expected, atol=2e-5)
    np.testing.assert_allclose(tiny.logits(TOKENS, adapter=lora.columns(both, 11)), expected, atol=2e-5)
    only_first = tiny.logits(TOKENS, adapter=lora.columns(both, 8))
    np.testing.assert_allclose(only_first, tiny.logits(TOKENS, adapter=first), atol=1e-5)
    assert np.abs(only_first - expected).max() > 0.01


def test_joining_is_vmapped_over_adapters(tiny):
    adapters = [with_b(init(tiny, seed=e, alpha=4.0 * (e + 1)), rank=8, seed=e) for e in range(2)]
    room = lora.empty(tiny.params["blocks"], PROJECTIONS, 16)
    many = jax.vmap(lora.join, (0, 0, None))(lora.stack([room, room]), lora.stack(adapters), 8)
    for e, adapter in enumerate(adapters):
        jax.tree.map(np.testing.assert_array_equal, lora.take(many, e), lora.join(room, adapter, 8))


def test_an_adapter_of_other_projections_stays_beside(tiny):
    """The room holds all projections, the newcomer one: the others keep what they had."""
    full, query = with_b(init(tiny), rank=8), with_b(init(tiny, ("q_proj",), seed=3), rank=8)
    room = lora.join(lora.empty(tiny.params["blocks"], PROJECTIONS, 16), full, 0)
    expected = tiny.logits(TOKENS, params=lora.merge(lora.merge(tiny.params, full), query))
    np.testing.assert_allclose(tiny.logits(TOKENS, adapter=lora.join(room, query, 8)), expected, atol=2e-5)


def test_dropout_drops_inputs_of_a_and_keeps_their_mean():
    low_rank = lora.LowRank(jnp.eye(4), jnp.eye(4), jnp.float32(2.0), jax.random.key(0), 0.25)
    out = np.asarray(low_rank(jnp.ones((1, 5000, 4))))
    assert set(np.unique(out).round(4)) == {0.0, np.float32(2 / 0.75).round(4)}
    assert abs(out.mean() - 2) < 0.05
    assert (low_rank.replace(dropout_key=None)(jnp.ones((1, 5, 4))) == 2).all()  # no key, no dropout: decoding
