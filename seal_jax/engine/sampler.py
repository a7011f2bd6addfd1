"""Batched decoding with a KV cache: with no adapter, with one for all rows, or with one per group of rows.

Rows come in E groups of Q prompts, and a group shares an adapter: E = 1 is one adapter for all, Q = 1 one per row. Each
prompt is read once (prefill) and continued K times. One `while_loop` serves all rows, its body vmapped over the groups:
a vmapped loop would copy the whole cache every step. Prompts are left-padded, so all rows write the same cache slot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from seal_jax.engine import costs
from seal_jax.engine.constrained import Constraint
from seal_jax.nn import lora, sharding
from seal_jax.nn.lora import Adapter
from seal_jax.nn.products import Program
from seal_jax.nn.transformer import KV, Model
from seal_jax.types import AnyArray, require_at_least

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

    from seal_jax.nn.transformer import ModelConfig


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


def _largest_threshold(p: Float[Array, "V"], enough: Callable[[Array], Array]) -> Float[Array, ""]:
    """The largest t for which `enough(p >= t)` holds, exactly, by bisection on the bits of a non-negative float32.

    31 passes over V in place of a sort, which on a CPU costs many times more.
    """

    def try_bit(i: Array, bits: Array) -> Array:
        candidate = bits | (jnp.int32(1) << (30 - i))
        kept = p >= jax.lax.bitcast_convert_type(candidate, jnp.float32)
        return jnp.where(enough(kept), candidate, bits)

    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 31, try_bit, jnp.int32(0)), jnp.float32)


def _first_largest(logits: Float[Array, "V"]) -> Int[Array, ""]:
    """What `argmax` says, in two plain reductions: XLA's argmax took 7 % of a decoding step on a CPU."""
    size = logits.shape[-1]
    return jnp.minimum(jnp.min(jnp.where(logits == jnp.max(logits), jnp.arange(size), size)), size - 1)


def choose(key: PRNGKeyArray, logits: Float[Array, "V"], sampling: Sampling) -> Int[Array, ""]:
    """The next token of one row. Temperature, then top-k, then top-p: transformers' order. Ties at an edge are kept."""
    if sampling.temperature == 0:
        return _first_largest(logits)
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
    return _first_largest(logits + jax.random.gumbel(key, logits.shape, logits.dtype))  # random.categorical's


class Read(NamedTuple):
    """Prompts that have been read: what any continuation of them starts from."""

    logits: Float[Array, "E Q V"]  # of the next token
    cache: KV  # leading axes E, L, Q


@partial(Program, static_argnames=("model", "mesh"))
def read(
    model: Model,
    params: dict[str, Any],
    adapters: Adapter | None,
    prompts: Int[AnyArray, "E Q T"],
    valid: Bool[AnyArray, "E Q T"],
    *,
    mesh: Mesh | None = None,
) -> Read:
    """Reads E·Q left-padded prompts; arguments as for `sample`."""

    def group(params: dict[str, Any], adapter: Adapter | None, prompts: Array, valid: Array) -> Read:
        decoder = nnx.merge(model, params)
        hidden, kv = decoder(prompts, valid=valid, adapter=adapter)
        return Read(decoder.logits(hidden[:, -1]), kv)

    many = over_groups(jax.vmap(group, in_axes=(None, 0, 0, 0)), mesh, arguments=3)
    return many(params, adapters, prompts, valid)


class Form(NamedTuple):
    """How the program of a decoding loop is written. It changes no token."""

    loop: bool  # over layers, where they are otherwise written one after another, each with a cache of its own
    tail: bool  # the last groups go on alone, by a second loop

    @classmethod
    def on(cls, platform: str, config: ModelConfig) -> Form:
        """What suits a platform: layers one after another copy neither weights nor caches; a loop is compiled at once.
        On a GPU that is what a small model waits for (SmolLM2: a minute and a half of compiling for seconds of work).
        """
        small = costs.matmul_parameters(config) < SMALL
        return cls(loop=platform == "gpu" and small, tail=platform != "gpu")


@partial(Program, static_argnames=("model", "sampling", "stop", "mesh", "form"))
def write(
    keys: PRNGKeyArray,
    model: Model,
    params: dict[str, Any],
    adapters: Adapter | None,
    prompts: Read,
    valid: Bool[AnyArray, "E Q T"],
    limits: Int[AnyArray, "E Q K"],
    *,
    sampling: Sampling,
    stop: tuple[int, ...],
    constraint: Constraint | None = None,
    mesh: Mesh | None = None,
    form: Form | None = None,
) -> Completions:
    """Continues each of E·Q prompts, once read, K times; arguments as for `sample`."""
    V = prompts.logits.shape[-1]
    if constraint is not None and constraint.next_state.shape[1] != V:
        raise ValueError(
            f"the constraint knows {constraint.next_state.shape[1]} tokens and the model has logits for {V}; "
            f"call compile_pattern with vocab_size={V}"
        )
    form = form or Form.on(jax.default_backend(), nnx.merge(model, params).config)
    many = over_groups(partial(_write, form, model, sampling, stop), mesh, arguments=5)
    return many((params, constraint), adapters, prompts, valid, keys, limits)


def over_groups(function: Callable[..., Any], mesh: Mesh | None, *, arguments: int) -> Callable[..., Any]:
    """`function(params, ...)` with the E groups of its other arguments, and of its result, split over the lanes.

    The first argument, whatever it holds, is the same in each of them.
    """
    split, same = PartitionSpec("adapter"), PartitionSpec()
    return sharding.by_lane(function, mesh, (same, *[split] * arguments), split)


class Rows(NamedTuple):
    """Rows being written: G groups that share an adapter, R rows each. A group leaves only as a whole."""

    adapters: Adapter | None  # [G]
    cache: list[KV] | KV  # a layer each, [G, R, ...]; or all of them, [G, L, R, ...]
    in_prompt: Bool[Array, "G R S"]  # slots that hold the prompt
    keys: PRNGKeyArray  # [G, R], as all below
    limits: Int[Array, "G R"]
    logits: Float[Array, "G R V"]  # of the next token
    done: Bool[Array, "G R"]
    stopped: Bool[Array, "G R"]
    lengths: Int[Array, "G R"]
    tokens: Int[Array, "G R N"]
    states: Int[Array, "G R"] | None = None  # of the constraint, where there is one


SMALL = 2e9  # parameters: fewer cost less in copies of their caches than in compiling
TAIL = 4  # when so few groups are left of every TAIL, they go on alone


def _write(
    form: Form,
    model: Model,
    sampling: Sampling,
    stop: tuple[int, ...],
    shared: tuple[dict[str, Any], Constraint | None],
    adapters: Adapter | None,
    prompts: Read,
    valid: Bool[Array, "E Q T"],
    keys: PRNGKeyArray,
    limits: Int[Array, "E Q K"],
) -> Completions:
    params, constraint = shared
    (E, Q, _), K, N = valid.shape, keys.shape[2], sampling.max_tokens
    # Rows without an adapter need no neighbours that share one: each is a group, and leaves when it is done.
    shape = (E, Q * K) if adapters is not None else (E * Q * K, 1)

    def per_sample(x: Array) -> Array:  # [E, Q, ...] -> [G, R, ...]: a prompt's samples share its cache
        return jnp.repeat(x, K, axis=1).reshape(*shape, *x.shape[2:])

    def all_layers(x: Array) -> Array:  # [E, L, Q, ...] -> [G, L, R, ...]
        return jax.vmap(per_sample, in_axes=1, out_axes=1)(x)

    layers = range(prompts.cache.k.shape[1])
    cache: list[KV] | KV = (
        KV(*map(all_layers, prompts.cache)).grown(N)
        if form.loop
        else [KV(*(per_sample(x[:, i]) for x in prompts.cache)).grown(N) for i in layers]
    )
    limits = limits.reshape(shape)
    nothing = jnp.zeros(shape, jnp.int32)
    rows = Rows(
        adapters,
        cache,
        in_prompt=per_sample(jnp.pad(valid, ((0, 0), (0, 0), (0, N)))),
        keys=keys.reshape(shape),
        limits=limits,
        logits=per_sample(prompts.logits),
        done=limits <= 0,
        stopped=nothing > 0,
        lengths=nothing,
        tokens=jnp.zeros((*shape, N), jnp.int32),
        states=None if constraint is None else jnp.broadcast_to(constraint.start, shape),
    )
    tail = shape[0] // TAIL if form.tail else 0
    step, rows = _write_until(tail, form, model, sampling, stop, params, constraint, jnp.zeros((), jnp.int32), rows)
    if tail:
        unfinished_first = jnp.argsort(rows.done.all(axis=1), stable=True)[:tail]
        few = jax.tree.map(lambda x: x[unfinished_first], rows)
        _, few = _write_until(0, form, model, sampling, stop, params, constraint, step, few)
        rows = rows._replace(
            **{name: getattr(rows, name).at[unfinished_first].set(getattr(few, name))
               for name in ("stopped", "lengths", "tokens")}
        )  # fmt: skip
    return Completions(rows.tokens.reshape(E, Q, K, N), rows.lengths.reshape(E, Q, K), rows.stopped.reshape(E, Q, K))


def _write_until(
    left: int,
    form: Form,
    model: Model,
    sampling: Sampling,
    stop: tuple[int, ...],
    params: dict[str, Any],
    constraint: Constraint | None,
    step: Int[Array, ""],
    rows: Rows,
) -> tuple[Int[Array, ""], Rows]:
    """Writes one token a row after another until at most `left` groups are unfinished."""
    decoder = nnx.merge(model, params)
    N, S = sampling.max_tokens, rows.in_prompt.shape[2]
    T, slots, prompt_length = S - N, jnp.arange(S), jnp.sum(rows.in_prompt, axis=-1)
    shares: Any = rows.adapters
    if not form.loop:
        layers = decoder.layers()
        unstack = lambda adapter: lora.unstack(adapter, len(layers))
        shares = unstack(None) if rows.adapters is None else jax.vmap(unstack)(rows.adapters)

    def group(
        shares: Any, cache: Any, token: Array, seen: Array, position: Array, at: Array
    ) -> tuple[Array, list[KV] | KV]:
        if form.loop:
            hidden, cache = decoder(token[:, None], valid=seen, adapter=shares, past=cache, at=at)
            return decoder.logits(hidden[:, 0]), cache
        hidden, cache = decoder.decode(token, layers, shares, cache, at, seen, position)
        return decoder.logits(hidden), cache

    many = jax.vmap(group, in_axes=(0, 0, 0, 0, 0, None))

    @jax.vmap
    def pick(key: PRNGKeyArray, logits: Array) -> Array:
        return choose(key, logits, sampling)

    def unfinished(carry: tuple[Array, Rows]) -> Array:
        step, rows = carry
        return (step < N) & (jnp.sum(~rows.done.all(axis=1)) > left)

    def body(carry: tuple[Array, Rows]) -> tuple[Array, Rows]:
        step, rows = carry
        logits, states = rows.logits, rows.states
        if constraint is not None and states is not None:
            logits = jnp.where(constraint.allowed(states, rows.limits - step), logits, -jnp.inf)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows.keys.reshape(-1), step)
        token = pick(keys, logits.reshape(-1, logits.shape[-1])).reshape(rows.done.shape)  # one axis of rows: a TPU
        hit = jnp.isin(token, jnp.asarray(stop, token.dtype)) if stop else jnp.zeros_like(rows.done)
        written = ~rows.done & ~hit
        if constraint is not None and states is not None:
            states = jnp.where(written, constraint.after(states, token), states)
        seen = rows.in_prompt | ((slots >= T) & (slots <= T + step))
        logits, cache = many(shares, rows.cache, token, seen, prompt_length + step, T + step)
        return step + 1, rows._replace(
            cache=cache,
            logits=logits,
            done=rows.done | hit | (step + 1 >= rows.limits),
            stopped=rows.stopped | (hit & ~rows.done),
            lengths=rows.lengths + written,
            tokens=rows.tokens.at[:, :, step].set(jnp.where(written, token, 0)),
            states=states,
        )

    return jax.lax.while_loop(unfinished, body, (step, rows))


def sample(
    keys: PRNGKeyArray,
    model: Model,
    params: dict[str, Any],
    adapters: Adapter | None,
    prompts: Int[AnyArray, "E Q T"],
    valid: Bool[AnyArray, "E Q T"],
    limits: Int[AnyArray, "E Q K"],
    *,
    sampling: Sampling,
    stop: tuple[int, ...],
    constraint: Constraint | None = None,
    mesh: Mesh | None = None,
    form: Form | None = None,
) -> Completions:
    """Continues each of E·Q prompts K times.

    Args:
        keys: [E, Q, K], one a row, so that what a row draws does not depend on its neighbours.
        adapters: with leading axis E, or None for the base model.
        prompts: left-padded; `valid` is False on pads. A row that is all padding costs nothing if its limit is 0.
        limits: new tokens a row may write, at most `sampling.max_tokens`.
        stop: token ids that end a row.
        constraint: what may be written, made with the same `stop`; whatever else it could be is dropped before
            temperature, top-k and top-p. A row whose limit is at least `constraint.shortest()` ends as a match.
        mesh: its lanes divide E; each decodes its own groups and stops when they are done.
        form: how the program is written; by default as suits the device.
    """
    once_read = read(model, params, adapters, prompts, valid, mesh=mesh)
    rules = {"sampling": sampling, "stop": stop, "constraint": constraint, "mesh": mesh, "form": form}
    return write(keys, model, params, adapters, once_read, valid, limits, **rules)


def row_keys(seed: int, *ids: Int[AnyArray, "..."]) -> PRNGKeyArray:
    """One key a row from the run's seed and integers that name the row (task, sample, ...), of any common shape."""

    def fold(*row: Array) -> PRNGKeyArray:
        key = jax.random.key(seed)
        for i in row:
            key = jax.random.fold_in(key, i)
        return key

    rows = jnp.broadcast_arrays(*map(jnp.asarray, ids))
    return jax.vmap(fold)(*(x.reshape(-1) for x in rows)).reshape(rows[0].shape)
