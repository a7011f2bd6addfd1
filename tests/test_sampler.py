"""Cached decoding in batches is decoding each row alone without a cache; draws follow the distribution asked for."""

from __future__ import annotations

import functools
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import hlo
from seal_jax.engine import sampler
from seal_jax.engine.sampler import Form, Sampling, choose, row_keys, sample
from seal_jax.nn import lora
from seal_jax.types import PROJECTIONS

N = 6  # new tokens
PROMPTS = [[5, 17, 3, 44, 8], [9, 2], [30, 31, 32], [7]]
WIDTH = 5


@pytest.fixture(scope="module")
def tiny(make_tiny):
    """Untied: with the embedding as its head, a random model mostly repeats itself."""
    return make_tiny(tie_embeddings=False)


def padded(rows, width=WIDTH):
    """Left-padded with a token that would show if it were seen."""
    tokens = np.array([[60] * (width - len(row)) + row for row in rows], np.int32)
    return tokens, np.array([[n >= width - len(row) for n in range(width)] for row in rows])


def adapters(tiny, count: int):
    """With B drawn, so that each writes something else."""

    def one(seed):
        key, again = jax.random.split(jax.random.key(seed))
        fresh = lora.init(key, tiny.params["blocks"], PROJECTIONS, max_rank=2, rank=2, alpha=4)
        names = sorted(fresh.b)
        keys = dict(zip(names, jax.random.split(again, len(names)), strict=True))
        return fresh.replace(b={name: 0.3 * jax.random.normal(keys[name], fresh.b[name].shape) for name in names})

    return lora.stack([one(seed) for seed in range(count)])


def write(
    tiny,
    rows,
    *,
    groups=1,
    adapter=None,
    k=1,
    sampling=None,
    stop=(),
    limits=None,
    keys=None,
    width=WIDTH,
    mesh=None,
    form=None,
):
    """`sample` on [E, Q] prompts given as a flat list."""
    sampling = sampling or Sampling(N, temperature=0)
    tokens, valid = (x.reshape(groups, -1, width) for x in padded(rows, width))
    shape = (*tokens.shape[:2], k)
    keys = row_keys(0, np.arange(np.prod(shape)).reshape(shape)) if keys is None else keys
    limits = np.full(shape, sampling.max_tokens) if limits is None else np.broadcast_to(limits, shape)
    return sample(
        keys,
        tiny.model,
        tiny.params,
        adapter,
        tokens,
        valid,
        limits,
        sampling=sampling,
        stop=stop,
        mesh=mesh,
        form=form,
    )


def uncached(tiny, prompt, adapter=None) -> list[int]:
    """The plainest decoding: the whole text again for each token, right-padded to one length."""
    row = np.full((1, WIDTH + N), 60, np.int32)
    row[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + N):
        row[0, end] = tiny.logits(row, adapter=adapter)[0, end - 1].argmax()
    return row[0, len(prompt) : len(prompt) + N].tolist()


@pytest.fixture(scope="module")
def greedy(tiny):
    """What each prompt's greedy continuation is, without an adapter."""
    return [uncached(tiny, prompt) for prompt in PROMPTS]


# ---------------------------------------------------------------------------------------------------------------------
# Greedy, cached, equals greedy, uncached


def test_without_an_adapter(tiny, greedy):
    out = write(tiny, PROMPTS)
    assert out.tokens[0, :, 0].tolist() == greedy
    assert (out.lengths == N).all()
    assert not out.stopped.any()
    assert len({tuple(row) for row in greedy}) == 4  # the prompts matter


def test_with_one_adapter_for_all(tiny, greedy):
    one = adapters(tiny, 1)
    expected = [uncached(tiny, prompt, lora.take(one, 0)) for prompt in PROMPTS]
    assert expected != greedy
    assert write(tiny, PROMPTS, adapter=one).tokens[0, :, 0].tolist() == expected


@pytest.mark.parametrize("groups", [2, 4])  # of two rows each; one adapter per row
def test_with_an_adapter_for_each_group(tiny, groups, mesh):
    many, size = adapters(tiny, groups), len(PROMPTS) // groups
    expected = [uncached(tiny, prompt, lora.take(many, n // size)) for n, prompt in enumerate(PROMPTS)]
    assert write(tiny, PROMPTS, groups=groups, adapter=many).tokens.reshape(4, N).tolist() == expected
    if groups == 4:
        out = write(tiny, PROMPTS, groups=groups, adapter=many, mesh=mesh)
        assert len(out.tokens.sharding.device_set) == 2
        assert out.tokens.reshape(4, N).tolist() == expected


def test_qwens_decode_the_same(make_tiny):
    tiny = make_tiny(qkv_bias=True, qk_norm=True, num_kv_heads=1, tie_embeddings=False)
    assert write(tiny, PROMPTS).tokens[0, :, 0].tolist() == [uncached(tiny, prompt) for prompt in PROMPTS]


def test_how_far_a_prompt_is_padded_does_not_matter(tiny, greedy):
    assert write(tiny, PROMPTS, width=WIDTH + 4).tokens[0, :, 0].tolist() == greedy


# ---------------------------------------------------------------------------------------------------------------------
# Rows end for themselves


def test_a_stop_token_ends_its_row_and_is_not_counted(tiny, greedy):
    stop = (greedy[0][2], greedy[1][0])
    out = write(tiny, PROMPTS, stop=stop)
    for row, tokens, length, stopped in zip(
        greedy, out.tokens[0, :, 0], out.lengths[0, :, 0], out.stopped[0, :, 0], strict=True
    ):
        end = next((n for n, token in enumerate(row) if token in stop), N)
        assert tokens.tolist() == row[:end] + [0] * (N - end)
        assert length == end
        assert stopped == (end < N)
    assert out.lengths[0, 1, 0] == 0


def test_each_row_has_its_own_limit(tiny, greedy):
    limits = np.array([0, 1, 4, 6])[None, :, None]
    out = write(tiny, PROMPTS, limits=limits)
    for row, tokens, limit in zip(greedy, out.tokens[0, :, 0], limits[0, :, 0], strict=True):
        assert tokens.tolist() == row[:limit] + [0] * (N - limit)
    assert (out.lengths == limits).all()
    assert not out.stopped.any()


@pytest.mark.parametrize(
    "form", [Form(loop=True, tail=False), Form(loop=True, tail=True), Form(loop=False, tail=False)]
)
@pytest.mark.parametrize("groups", [0, 4])
def test_every_form_of_the_program_writes_the_same(tiny, form, groups):
    """Sampled, with rows that end at different steps, by adapters or without any."""
    work = {"groups": groups or 1, "adapter": adapters(tiny, groups) if groups else None, "k": 3}
    work |= {"sampling": Sampling(12, temperature=1.0, top_p=0.9), "stop": tuple(range(0, 512, 9))}
    expected = write(tiny, PROMPTS, form=Form(loop=False, tail=True), **work)
    assert len({int(n) for n in expected.lengths.reshape(-1)}) > 3
    for mine, theirs in zip(write(tiny, PROMPTS, form=form, **work), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("last", range(4))
def test_the_last_group_goes_on_alone_with_its_own_adapter(tiny, last):
    many = adapters(tiny, 4)
    expected = uncached(tiny, PROMPTS[last], lora.take(many, last))
    out = write(
        tiny, PROMPTS, groups=4, adapter=many, limits=np.where(np.arange(4) == last, N, 2)[:, None, None]
    )  # fmt: skip
    assert out.tokens[last, 0, 0].tolist() == expected
    assert out.lengths[:, 0, 0].tolist() == [N if e == last else 2 for e in range(4)]


def test_a_stop_token_at_the_limit_is_a_stop(tiny, greedy):
    at = next(n for n in range(1, N) if greedy[0][n] not in greedy[0][:n])
    out = write(tiny, PROMPTS, stop=(greedy[0][at],), limits=at + 1)
    assert out.stopped[0, 0, 0]
    assert out.lengths[0, 0, 0] == at


def test_a_row_of_padding_alone_writes_nothing_and_harms_none(tiny, greedy):
    out = write(tiny, [PROMPTS[0], [], *PROMPTS[2:]], limits=np.array([N, 0, N, N])[None, :, None])
    assert out.tokens[0, :, 0].tolist() == [greedy[0], [0] * N, *greedy[2:]]
    assert out.lengths[0, :, 0].tolist() == [N, 0, N, N]


# ---------------------------------------------------------------------------------------------------------------------
# Draws


DRAWN = Sampling(N, temperature=0.9, top_k=40, top_p=0.95)


def test_samples_that_share_a_prefill_are_those_drawn_alone(tiny):
    keys = row_keys(3, np.arange(4)[None, :, None], np.arange(3))
    together = write(tiny, PROMPTS, k=3, sampling=DRAWN, keys=keys).tokens
    assert len({tuple(row) for row in together.reshape(-1, N).tolist()}) == 12
    for sample_number in range(3):
        alone = write(tiny, PROMPTS, sampling=DRAWN, keys=keys[..., sample_number : sample_number + 1])
        np.testing.assert_array_equal(alone.tokens[:, :, 0], together[:, :, sample_number])


def test_what_a_row_draws_does_not_depend_on_its_neighbours(tiny):
    keys = row_keys(3, np.arange(4)[None, :, None])
    one = write(tiny, PROMPTS, sampling=DRAWN, keys=keys).tokens[0, :, 0]
    others = row_keys(4, np.array([9, 9, 2, 9])[None, :, None]).at[0, 2, 0].set(keys[0, 2, 0])
    neighbours = [[1, 2, 3], [11], PROMPTS[2], [50, 40]]
    another = write(tiny, neighbours, sampling=DRAWN, keys=others, limits=np.array([1, 0, N, 3])[None, :, None])
    assert another.tokens[0, 2, 0].tolist() == one[2].tolist()


def test_keys_name_rows(tiny):
    keys = jax.random.key_data(row_keys(0, np.arange(3)[:, None], np.arange(4)))
    assert keys.shape[:2] == (3, 4)
    assert len({tuple(key) for key in keys.reshape(12, -1).tolist()}) == 12
    np.testing.assert_array_equal(keys[2, 1], jax.random.key_data(row_keys(0, np.array(2), np.array(1))))
    assert (keys != jax.random.key_data(row_keys(1, np.arange(3)[:, None], np.arange(4)))).any()


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(logits, sampling, count):
    keys = jax.random.split(jax.random.key(0), count)
    return jax.vmap(lambda key: choose(key, logits, sampling))(keys)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature):
    """Chi-square of 20,000 draws from 8 tokens: 7 degrees of freedom, p = 1e-4 at 29.9."""
    logits = np.random.default_rng(0).normal(size=8).astype(np.float32)
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum() * 20_000
    found = np.bincount(draw(logits, Sampling(1, temperature=temperature), 20_000), minlength=8)
    assert ((found - expected) ** 2 / expected).sum() < 29.9


def test_without_temperature_the_likeliest_is_taken():
    logits = jnp.array([0.0, 3.0, 2.9])
    assert set(draw(logits, Sampling(1, temperature=0, top_p=0.1, top_k=1), 50).tolist()) == {1}


def kept(logits, top_k: int, top_p: float) -> set[int]:
    """The rule by sorting: the k likeliest; of those renormalised, the likeliest that together reach p; ties stay."""
    left = dict(enumerate(np.asarray(logits, np.float64)))
    if top_k:
        edge = sorted(left.values(), reverse=True)[min(top_k, len(left)) - 1]
        left = {token: logit for token, logit in left.items() if logit >= edge}
    if top_p < 1:
        total, reached = sum(np.exp(x) for x in left.values()), 0.0
        for edge in sorted(left.values(), reverse=True):
            reached += np.exp(edge) / total
            if reached >= top_p:
                break
        left = {token: logit for token, logit in left.items() if logit >= edge}
    return set(left)


SPREAD = np.random.default_rng(1).uniform(-1, 1, 10).astype(np.float32)
TIES = np.array([1, 0, 1, 0.5, 0, -1, 0.5, 0.5], np.float32)
FAR = np.array([0, -1, -300, 0.5, -1e30, 0.25], np.float32)  # probabilities that underflow


@pytest.mark.parametrize("logits", [SPREAD, TIES, FAR], ids=["spread", "ties", "far"])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(0, 1.0), (1, 1.0), (3, 1.0), (4, 1.0), (99, 1.0), (0, 0.05), (0, 0.5), (0, 0.8), (4, 0.6), (3, 0.999)],
)
def test_top_k_and_top_p_keep_what_sorting_keeps(logits, top_k, top_p):
    found = Counter(draw(logits, Sampling(1, top_k=top_k, top_p=top_p), 1000).tolist())
    expected = {token for token in kept(logits, top_k, top_p) if logits[token] > -100}  # others are never drawn
    assert set(found) == expected


@pytest.mark.parametrize("groups", [None, 3])
def test_a_token_copies_no_cache(tiny, groups):
    """By the compiled program, with XLA's usual optimisations, which the other tests leave out."""
    E, Q, T, new = 3, 2, 24, 40
    many = None if groups is None else adapters(tiny, groups)
    numbers = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32)
    prompts, valid = numbers((E, Q, T)), jax.ShapeDtypeStruct((E, Q, T), bool)
    once_read = jax.eval_shape(functools.partial(sampler.read, tiny.model), tiny.params, many, prompts, valid)
    keys = jax.eval_shape(lambda: row_keys(0, jnp.zeros((E, Q, 1), int)))
    lowered = sampler.write.lower(
        keys, tiny.model, tiny.params, many, once_read, valid, numbers((E, Q, 1)), sampling=Sampling(new), stop=(0,)
    )
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        text = lowered.compile().as_text()
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    cache = E * Q * tiny.config.num_kv_heads * (T + new) * tiny.config.head_dim
    whole = [run for run in hlo.executed(*hlo.parse(text)) if run.in_loop and math.prod(hlo.dims(run.made)[0]) == cache]
    assert len(whole) == 2 * tiny.config.num_layers, "keys and values of each layer are written"
    for run in whole:
        assert run.bytes_written == 4 * cache / (T + new) and not run.moves_only, run


def test_a_drawn_token_is_jax_random_categoricals():
    logits = jax.random.normal(jax.random.key(3), (64, 300)) * 2
    keys = jax.random.split(jax.random.key(4), len(logits))
    drawn = jax.vmap(lambda key, row: choose(key, row, Sampling(1, temperature=0.7)))(keys, logits)
    np.testing.assert_array_equal(drawn, jax.vmap(jax.random.categorical)(keys, logits / 0.7))
    assert len(set(drawn.tolist())) > 20
