"""Batched decoding with a KV cache: with no adapter, with one for all rows, or with one per group of rows.

Rows come in E groups of Q prompts, and a group shares an adapter: E = 1 is one adapter for all, Q = 1 one per row. Each
prompt is read once (prefill) and continued K times. One `while_loop` serves all rows, its body vmapped over the groups:
a vmapped loop would copy the whole cache every step. Prompts are left-padded, so all rows write the same cache slot.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from seal_jax.lora import Adapter
from seal_jax.models.transformer import KV, Model
from seal_jax.types import AnyArray, require_at_least


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int  # new tokens a row, stop token included
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # keep the likeliest tokens that together reach this probability
    top_k: int = 0  # keep this many of the likeliest; 0 keeps all

    def __post_init__(self) -> None:
        require_at_least(1, max_tokens=self.max_tokens)
        require_at_least(0, temperature=self.temperature, top_k=self.top_k)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected more than 0 and at most 1")


class Completions(NamedTuple):
    """What was written. Slots from `lengths` on hold 0."""

    tokens: Int[Array, "E Q K N"]
    lengths: Int[Array, "E Q K"]  # tokens before the stop token
    stopped: Bool[Array, "E Q K"]  # by a stop token, rather than by the row's limit


def _largest_threshold(p: Float[Array, "V"], enough) -> Float[Array, ""]:
    """The largest t for which `enough(p >= t)` holds, exactly, by bisection on the bits of a non-negative float32.

    31 passes over V in place of a sort, which on a CPU costs many times more.
    """

    def try_bit(i, bits):
        candidate = bits | (jnp.int32(1) << (30 - i))
        kept = p >= jax.lax.bitcast_convert_type(candidate, jnp.float32)
        return jnp.where(enough(kept), candidate, bits)

    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 31, try_bit, jnp.int32(0)), jnp.float32)


def choose(key: PRNGKeyArray, logits: Float[Array, "V"], sampling: Sampling) -> Int[Array, ""]:
    """The next token of one row. Temperature, then top-k, then top-p: transformers' order. Ties at an edge are kept."""
    if sampling.temperature == 0:
        return jnp.argmax(logits)
    logits = logits / sampling.temperature
    if sampling.top_k > 0:
        k = min(sampling.top_k, logits.shape[-1])
        p = jax.nn.softmax(logits)
        logits = jnp.where(p >= _largest_threshold(p, lambda kept: jnp.sum(kept) >= k), logits, -jnp.inf)
    if sampling.top_p < 1:
        p = jax.nn.softmax(logits)
        reach = jnp.float32(sampling.top_p)
        edge = _largest_threshold(p, lambda kept: jnp.sum(jnp.where(kept, p, 0)) >= reach)
        logits = jnp.where(p >= edge, logits, -jnp.inf)
    return jax.random.categorical(key, logits)


def _generate(model: Model, sampling: Sampling, stop: tuple[int, ...], params, adapters, prompts, valid, keys, limits):
    decoder = nnx.merge(model, params)
    (E, Q, T), K, N = prompts.shape, keys.shape[2], sampling.max_tokens

    def prefill(adapter, prompts, valid):
        hidden, kv = decoder(prompts, valid=valid, adapter=adapter)
        return decoder.logits(hidden[:, -1]), kv

    def per_sample(x: Array) -> Array:  # [E, Q, ...] -> [E, Q·K, ...]: a prompt's samples share its prefill
        return jnp.repeat(x, K, axis=1)

    logits, kv = jax.vmap(prefill)(adapters, prompts, valid)
    layers = decoder.layers()
    room = ((0, 0), (0, 0), (0, N), (0, 0), (0, 0))
    cache = [jax.tree.map(lambda x, i=i: jnp.pad(per_sample(x[:, i]), room), KV(*kv)) for i in range(len(layers))]
    in_prompt = per_sample(jnp.pad(valid, ((0, 0), (0, 0), (0, N))))
    prompt_length = jnp.sum(in_prompt, axis=-1)
    keys, limits = keys.reshape(E, Q * K), limits.reshape(E, Q * K)
    slots = jnp.arange(T + N)

    def decode(adapter, cache, token, seen, position, at):
        hidden, cache = decoder.decode(token, layers, cache, at, seen, position, adapter)
        return decoder.logits(hidden), cache

    def unfinished(carry):
        step, _, _, done, *_ = carry
        return (step < N) & jnp.any(~done)

    def body(carry):
        step, logits, cache, done, stopped, lengths, tokens = carry
        pick = jax.vmap(jax.vmap(lambda key, row: choose(jax.random.fold_in(key, step), row, sampling)))
        token = pick(keys, logits)
        hit = jnp.isin(token, jnp.asarray(stop, token.dtype)) if stop else jnp.zeros_like(done)
        stopped = stopped | (hit & ~done)
        written = ~done & ~hit
        tokens = tokens.at[:, :, step].set(jnp.where(written, token, 0))
        lengths = lengths + written
        done = done | hit | (step + 1 >= limits)
        seen = in_prompt | ((slots >= T) & (slots <= T + step))
        logits, cache = jax.vmap(decode, in_axes=(0, 0, 0, 0, 0, None))(
            adapters, cache, token, seen, prompt_length + step, T + step
        )
        return step + 1, logits, cache, done, stopped, lengths, tokens

    nothing = jnp.zeros((E, Q * K), jnp.int32)
    start = (0, per_sample(logits), cache, limits <= 0, nothing > 0, nothing, jnp.zeros((E, Q * K, N), jnp.int32))
    *_, stopped, lengths, tokens = jax.lax.while_loop(unfinished, body, start)
    return Completions(tokens.reshape(E, Q, K, N), lengths.reshape(E, Q, K), stopped.reshape(E, Q, K))


@partial(jax.jit, static_argnames=("model", "sampling", "stop", "mesh"))
def sample(
    keys: PRNGKeyArray,
    model: Model,
    params: dict,
    adapters: Adapter | None,
    prompts: Int[Array, "E Q T"],
    valid: Bool[Array, "E Q T"],
    limits: Int[Array, "E Q K"],
    *,
    sampling: Sampling,
    stop: tuple[int, ...],
    mesh: Mesh | None = None,
) -> Completions:
    """Continues each of E·Q prompts K times.

    Args:
        keys: [E, Q, K], one a row, so that what a row draws does not depend on its neighbours.
        adapters: with leading axis E, or None for the base model.
        prompts: left-padded; `valid` is False on pads. A row that is all padding costs nothing if its limit is 0.
        limits: new tokens a row may write, at most `sampling.max_tokens`.
        stop: token ids that end a row.
        mesh: one axis "adapters" that divides E; each device decodes its own groups and stops when they are done.
    """
    generate = partial(_generate, model, sampling, stop)
    if mesh is not None:
        split, whole = PartitionSpec("adapters"), PartitionSpec()
        specs = (whole, split, split, split, split, split)
        generate = jax.shard_map(generate, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    return generate(params, adapters, prompts, valid, keys, limits)


def row_keys(seed: int, *ids: Int[AnyArray, "..."]) -> PRNGKeyArray:
    """One key a row from the run's seed and integers that name the row (task, sample, ...), of any common shape."""

    def fold(*row):
        key = jax.random.key(seed)
        for i in row:
            key = jax.random.fold_in(key, i)
        return key

    rows = jnp.broadcast_arrays(*map(jnp.asarray, ids))
    return jax.vmap(fold)(*(x.reshape(-1) for x in rows)).reshape(rows[0].shape)
