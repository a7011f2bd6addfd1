"""The decoder's own laws. That it computes what transformers computes is shown in test_weights.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seal_jax.nn import lora
from seal_jax.nn.transformer import KV, RopeScaling, rope_frequencies

FAMILIES = {
    "llama": {"rope_scaling": RopeScaling("llama3", 8.0)},
    "qwen2": {"qkv_bias": True, "tie_embeddings": False},
    "qwen3": {"qk_norm": True, "num_kv_heads": 1},
}
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, original_context_length=64)


@pytest.fixture(params=FAMILIES)
def family(request, make_tiny):
    return make_tiny(**FAMILIES[request.param])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 61, shape).astype(np.int32)


def change(params: dict, *path: str, to) -> dict:
    """The parameters with one leaf replaced by `to(leaf)`."""
    head, *rest = path
    return {**params, head: change(params[head], *rest, to=to) if rest else to(params[head])}


def assert_close(one, other, atol=2e-5):
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------------------------------
# What may be seen


def test_a_future_token_cannot_change_a_past_logit(family):
    tokens = draw(1, 12)
    changed = tokens.copy()
    changed[0, 7] = (tokens[0, 7] + 1) % 61
    one, other = family.logits(tokens)[0], family.logits(changed)[0]
    np.testing.assert_array_equal(one[:7], other[:7])
    assert (np.abs(one[7:] - other[7:]).max(axis=-1) > 1e-3).all()  # and every later one does


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_logit(family, side):
    tokens, pads = draw(1, 9), np.full((1, 5), 60, np.int32)
    padded = np.concatenate([pads, tokens] if side == "left" else [tokens, pads], axis=1)
    valid = np.concatenate([pads < 0, tokens > 0] if side == "left" else [tokens > 0, pads < 0], axis=1)
    real = slice(5, None) if side == "left" else slice(None, 9)
    logits = family.logits(padded, valid=valid)
    assert np.isfinite(logits).all()  # pads too: a NaN there would reach the cache
    assert_close(logits[:, real], family.logits(tokens))


def test_rows_of_a_batch_do_not_see_each_other(tiny):
    tokens = draw(3, 8)
    np.testing.assert_allclose(tiny.logits(tokens)[1], tiny.logits(tokens[1:2])[0], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Variants of the architecture


def test_grouped_queries_are_heads_that_share_keys_and_values(make_tiny):
    grouped, full = make_tiny(num_kv_heads=2), make_tiny(num_kv_heads=4)

    def each_head_its_own(kernel):  # [L, D, K·H]: keys of group g serve query heads 2g and 2g + 1
        return jnp.repeat(kernel.reshape(2, 24, 2, 8), 2, axis=2).reshape(2, 24, 32)

    params = grouped.params
    for name in ("k_proj", "v_proj"):
        params = change(params, "blocks", name, "kernel", to=each_head_its_own)
    assert_close(full.logits(draw(1, 10), params=params), grouped.logits(draw(1, 10)))


def test_a_tied_head_is_the_embedding(make_tiny):
    tied, untied = make_tiny(), make_tiny(tie_embeddings=False)
    assert "lm_head" not in tied.params
    params = {**tied.params, "lm_head": {"kernel": tied.params["embed"]["embedding"].T}}
    assert_close(untied.logits(draw(1, 10), params=params), tied.logits(draw(1, 10)))
    doubled = change(params, "lm_head", "kernel", to=lambda w: 2 * w)
    assert_close(untied.logits(draw(1, 10), params=doubled), 2 * tied.logits(draw(1, 10)), atol=1e-4)


def test_biases_of_queries_keys_and_values_are_added(make_tiny):
    with_bias, without = make_tiny(qkv_bias=True), make_tiny()
    params = with_bias.params
    for name in ("q_proj", "k_proj", "v_proj"):
        changed = change(with_bias.params, "blocks", name, "bias", to=jnp.zeros_like)
        assert np.abs(with_bias.logits(draw(1, 10), params=changed) - with_bias.logits(draw(1, 10))).max() > 1e-2, name
        params = change(params, "blocks", name, "bias", to=jnp.zeros_like)
    no_bias = {
        **params,
        "blocks": {k: {n: w for n, w in v.items() if n != "bias"} for k, v in params["blocks"].items()},
    }
    assert_close(with_bias.logits(draw(1, 10), params=params), without.logits(draw(1, 10), params=no_bias))


def test_normalised_queries_and_keys_forget_their_length(make_tiny):
    for tiny, forgets in ((make_tiny(qk_norm=True), True), (make_tiny(), False)):
        longer = tiny.params
        for name in ("q_proj", "k_proj"):
            longer = change(longer, "blocks", name, "kernel", to=lambda w: 3 * w)
        difference = np.abs(tiny.logits(draw(1, 10), params=longer) - tiny.logits(draw(1, 10))).max()
        assert (difference < 1e-3) == forgets, difference


def test_llama3_scaling_keeps_fast_rotations_and_slows_slow_ones(make_tiny):
    plain, scaled = make_tiny(), make_tiny(rope_scaling=LLAMA3)
    ratio = np.asarray(rope_frequencies(plain.config) / rope_frequencies(scaled.config))
    np.testing.assert_allclose(ratio[0], 1, rtol=1e-6)  # turns more than 4 times within 64 positions
    np.testing.assert_allclose(ratio[-1], 8, rtol=1e-6)  # turns less than once
    assert (np.diff(ratio) >= 0).all()
    one, other = plain.logits(draw(1, 40))[0], scaled.logits(draw(1, 40))[0]
    assert_close(one[0], other[0])  # position 0 is not rotated
    assert np.abs(one[-1] - other[-1]).max() > 1e-2


def test_linear_scaling_stretches_positions(make_tiny):
    plain, scaled = make_tiny(), make_tiny(rope_scaling=RopeScaling("linear", 4.0))
    np.testing.assert_allclose(rope_frequencies(scaled.config) * 4, rope_frequencies(plain.config), rtol=1e-6)


def test_an_unknown_rope_scaling_is_refused(make_tiny):
    with pytest.raises(ValueError, match="'longrope': expected 'linear', 'llama3' or 'yarn'"):
        make_tiny(rope_scaling=RopeScaling("longrope", 4.0)).logits(draw(1, 4))


def test_bfloat16_runs_and_is_near_float32(make_tiny):
    for changes in FAMILIES.values():
        wide, narrow = make_tiny(**changes), make_tiny(**changes, dtype="bfloat16")
        assert jax.tree.leaves(narrow.params)[0].dtype == jnp.bfloat16
        logits = narrow.logits(draw(1, 16))
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()
        assert np.abs(logits - wide.logits(draw(1, 16))).mean() < 0.1  # logits spread over several nats


# ---------------------------------------------------------------------------------------------------------------------
# The same numbers by another way


def gradient(tiny, tokens, **options):
    """Of the loss with respect to an adapter on every projection, B not zero."""
    adapter = lora.init(jax.random.key(0), tiny.params["blocks"], lora.PROJECTIONS, max_rank=2, rank=2, alpha=2)
    adapter = adapter.replace(b=jax.tree.map(lambda w: w + 0.1, adapter.b))

    def loss(weights):
        decoder = nnx.merge(tiny.model, tiny.params)
        hidden, _ = decoder(tokens, adapter=lora.Adapter(*weights, adapter.scale), **options)
        return -decoder.log_probs(hidden[:, :-1], tokens[:, 1:]).mean()

    return jax.jit(jax.value_and_grad(loss))((adapter.a, adapter.b))


def test_recomputing_layers_changes_nothing(tiny):
    plain, again = gradient(tiny, draw(2, 10)), gradient(tiny, draw(2, 10), remat=True)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), plain, again)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(plain)) > 1e-5  # every projection has a gradient


@pytest.mark.parametrize("chunk", [4, 7, 1000])  # divides 21, does not, exceeds
def test_chunked_log_probs_are_those_of_a_softmax(tiny, chunk):
    rng = np.random.default_rng(0)
    hidden, targets = rng.normal(size=(3, 7, 24)).astype(np.float32), draw(3, 7)
    decoder, weight = nnx.merge(tiny.model, tiny.params), rng.normal(size=(3, 7))

    def chunked(hidden):
        return jnp.sum(weight * decoder.log_probs(hidden, targets, chunk=chunk))

    def whole(hidden):
        log_probs = jax.nn.log_softmax(hidden @ tiny.params["embed"]["embedding"].T)
        return jnp.sum(weight * jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0])

    for one, other in zip(jax.value_and_grad(chunked)(hidden), jax.value_and_grad(whole)(hidden), strict=True):
        assert_close(one, other, 1e-4)
    assert decoder.log_probs(hidden, targets, chunk=chunk).shape == (3, 7)


def test_decoding_with_a_cache_equals_the_full_forward(family):
    tokens, start, room = draw(2, 10), 4, 10
    adapter = lora.init(jax.random.key(0), family.params["blocks"], lora.PROJECTIONS, max_rank=2, rank=2, alpha=2)
    adapter = adapter.replace(b=jax.tree.map(lambda w: w + 0.1, adapter.b))
    decoder = nnx.merge(family.model, family.params)
    _, kv = decoder(tokens[:, :start], adapter=adapter)
    cache = [KV(kv.k[i], kv.v[i]).grown(room - start) for i in range(family.config.num_layers)]
    expected = family.logits(tokens, adapter=adapter)
    shares = lora.unstack(adapter, family.config.num_layers)
    for at in range(start, room):
        seen = np.broadcast_to(np.arange(room) <= at, (2, room))
        position = np.full(2, at)
        hidden, cache = decoder.decode(tokens[:, at], decoder.layers(), shares, cache, at, seen, position)
        assert_close(decoder.logits(hidden), expected[:, at])
