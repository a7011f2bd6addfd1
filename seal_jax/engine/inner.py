"""The inner loop: train one LoRA adapter on each self-edit, all of them at once (paper section 3.1, Algorithm 1).

`loss_and_gradient` and `update` are one optimiser step of one adapter, and `adapt` takes a self-edit's steps: read
those as if there were a single adapter. `adapt_many` maps `adapt` over the self-edits. The frozen base model is shared
by all of them and is never copied; what may differ between adapters (rank, alpha, learning rate, steps, seed) is an
array.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seal_jax.engine.batching import Plan, make_plans
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.transformer import Model
from seal_jax.types import HParams, TokenBatch, require_at_least

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """How steps are taken, the same for all adapters. Optimiser() is the paper's inner loop (its section B.1)."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"  # decay of the learning rate to 0 over num_steps
    warmup_steps: int = 0  # steps over which the learning rate first rises from 0
    clip_norm: float = 1.0  # of one adapter's whole gradient
    b1: float = 0.9  # AdamW
    b2: float = 0.999  # AdamW
    eps: float = 1e-8  # AdamW
    weight_decay: float = 0.0  # AdamW, decoupled
    dropout: float = 0.0  # on the input of A
    accumulate: int = 1  # micro-batches a step is split into: the same update, less memory; must divide the batch size
    remat: bool = False  # recompute layers in the backward pass: about a third more work, far less memory
    loss_chunk: int = 256  # tokens of an adapter whose logits exist at a time
    kl: float = 0.0  # weight of KL(model before training || model now), a token of the loss; 0 leaves it out

    def __post_init__(self) -> None:
        require_at_least(1, accumulate=self.accumulate, loss_chunk=self.loss_chunk)
        require_at_least(0, warmup_steps=self.warmup_steps, clip_norm=self.clip_norm, dropout=self.dropout, kl=self.kl)


class InnerState(struct.PyTreeNode):
    """One adapter in training."""

    adapter: Adapter
    moments: optax.OptState
    step: Int[Array, ""]


FIRST_PART = 4  # steps that a watched chunk takes before it is first told of
PART_SECONDS = 1.0  # parts grow until they take so long

Weights = tuple[dict[str, jax.Array], dict[str, jax.Array]]  # an adapter's a and b: what is trained


class Metrics(NamedTuple):
    """What one step reports. NaN in a step that changed nothing."""

    loss: Float[Array, ""]  # mean over trained tokens, nats, with what `Optimiser.kl` adds
    grad_norm: Float[Array, ""]  # before clipping


def _transformation(optimiser: Optimiser) -> optax.GradientTransformation:
    """Clip, then AdamW, all but the learning rate, which is an adapter's own."""
    return optax.chain(
        optax.clip_by_global_norm(optimiser.clip_norm),
        optax.scale_by_adam(optimiser.b1, optimiser.b2, optimiser.eps),
        optax.add_decayed_weights(optimiser.weight_decay),
    )


def _sum_over(axis: str | None, tree: Any) -> Any:
    """The sum over the devices of a mesh axis; the tree itself where there is none."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def learning_rate(optimiser: Optimiser, hparams: HParams, step: Int[Array, ""]) -> Float[Array, ""]:
    """The rate of 0-based `step`: transformers' `get_scheduler`, with the horizon an array."""
    warmup = optimiser.warmup_steps
    progress = (step - warmup) / jnp.maximum(1, hparams.num_steps - warmup)
    decay = {
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))),
        "constant": jnp.ones(()),
    }[optimiser.schedule]
    return jnp.asarray(hparams.learning_rate) * jnp.where(step < warmup, step / max(1, warmup), jnp.maximum(decay, 0))


def loss_and_gradient(
    model: Model,
    params: dict,
    adapter: Adapter,
    tokens: Int[Array, "B T"],
    loss_mask: Bool[Array, "B T"],
    key: PRNGKeyArray,
    optimiser: Optimiser,
    rows_axis: str | None = None,
    fixed: Adapter | None = None,
) -> tuple[Float[Array, ""], Weights]:
    """The mean next-token loss over the tokens under `loss_mask`, in nats, and its gradient in the adapter's (a, b).

    The model that is trained is the base with `fixed`, if there is one; `Optimiser.kl` holds the adapter close to that.
    Where the batch's rows are split over devices, `rows_axis` names the mesh axis, and every device gets the same.
    """
    decoder = nnx.merge(model, params)
    trained = jnp.maximum(_sum_over(rows_axis, jnp.sum(loss_mask[:, 1:])), 1)
    if rows_axis is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(rows_axis))

    def loss_of(weights: Weights, tokens: Array, loss_mask: Array, key: Array) -> Float[Array, ""]:
        hidden, _ = decoder(
            tokens,
            adapter=Adapter(*weights, adapter.scale),
            fixed=fixed,
            dropout=optimiser.dropout,
            dropout_key=key if optimiser.dropout > 0 else None,
            remat=optimiser.remat,
        )
        if optimiser.kl == 0:
            log_probs = decoder.log_probs(hidden[:, :-1], tokens[:, 1:], chunk=optimiser.loss_chunk)
        else:  # twice the logits a token, so half the tokens at a time
            before, _ = decoder(tokens, adapter=fixed)
            log_probs = decoder.log_probs(
                hidden[:, :-1],
                tokens[:, 1:],
                chunk=-(-optimiser.loss_chunk // 2),
                before=before[:, :-1],
                kl=optimiser.kl,
            )
        return -jnp.sum(jnp.where(loss_mask[:, 1:], log_probs, 0)) / trained

    weights = (adapter.a, adapter.b)
    if optimiser.accumulate == 1:
        return _sum_over(rows_axis, jax.value_and_grad(loss_of)(weights, tokens, loss_mask, key))

    def add(total, micro):  # each micro-batch's share of the one mean: the sum is the large batch's gradient
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(weights, *micro)), None

    micro = jax.tree.map(lambda x: x.reshape(optimiser.accumulate, -1, *x.shape[1:]), (tokens, loss_mask))
    keys = jax.random.split(key, optimiser.accumulate)
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, weights))
    total, _ = jax.lax.scan(add, zero, (*micro, keys))
    return _sum_over(rows_axis, total)


def update(
    state: InnerState, gradient: Weights, hparams: HParams, optimiser: Optimiser
) -> tuple[InnerState, Float[Array, ""]]:
    """One optimiser step of one adapter from a gradient: the new state, and the gradient's norm before clipping."""
    weights = (state.adapter.a, state.adapter.b)
    updates, moments = _transformation(optimiser).update(gradient, state.moments, weights)
    rate = learning_rate(optimiser, hparams, state.step)
    a, b = jax.tree.map(lambda w, u: w - rate * u, weights, updates)
    return InnerState(state.adapter.replace(a=a, b=b), moments, state.step + 1), optax.global_norm(gradient)


class Training(NamedTuple):
    """One adapter part of the way through its steps, and what those that are done have reported, [S]."""

    state: InnerState
    metrics: Metrics


def begin(adapter: Adapter, optimiser: Optimiser, *, steps: int) -> Training:
    """An adapter before the first of at most S `steps`."""
    nothing = jnp.full(steps, jnp.nan)
    moments = _transformation(optimiser).init((adapter.a, adapter.b))
    return Training(InnerState(adapter, moments, jnp.zeros((), jnp.int32)), Metrics(nothing, nothing))


def adapt(
    model: Model,
    params: dict,
    training: Training,
    batch: TokenBatch,
    plan: Plan,
    part: tuple[Int[Array, ""], Int[Array, ""]],
    hparams: HParams,
    optimiser: Optimiser,
    rows_axis: str | None = None,
    fixed: Adapter | None = None,
) -> Training:
    """Trains one adapter through a part of `plan`, on top of `fixed` if there is one, which stays as it is.

    `batch` and `hparams` are one adapter's: tokens [N, T], order [S, B], scalars. `part` is the first step of the plan
    that is taken, and the first that is not: a plan in parts gives what it gives in one. A step past `num_steps`, or
    with no row, changes nothing.
    """

    def at_width(width: int, adapter: Adapter, rows: Int[Array, "B"], key: PRNGKeyArray):
        row = jnp.maximum(rows, 0)
        tokens = batch.tokens[:, :width][row]
        loss_mask = batch.loss_mask[:, :width][row] & (rows >= 0)[:, None]
        return loss_and_gradient(model, params, adapter, tokens, loss_mask, key, optimiser, rows_axis, fixed)

    def step(i: Int[Array, ""], training: Training) -> Training:
        state, metrics = training
        s = plan.steps[i]
        rows, key = batch.order[s], jax.random.fold_in(jax.random.key(hparams.seed), state.step)
        # Only the gradient is taken inside the branch: state that passed through it would be copied at every step.
        loss, gradient = jax.lax.switch(plan.width_index[i], branches, state.adapter, rows, key)
        new_state, norm = update(state, gradient, hparams, optimiser)
        active = (_sum_over(rows_axis, jnp.sum(rows >= 0)) > 0) & (state.step < hparams.num_steps)
        state = jax.tree.map(partial(jnp.where, active), new_state, state)
        said = jax.tree.map(
            lambda old, new: old.at[s].set(jnp.where(active, new, jnp.nan)), metrics, Metrics(loss, norm)
        )
        return Training(state, said)

    branches = [partial(at_width, width) for width in batch.widths]
    first, last = part
    return jax.lax.fori_loop(first, jnp.minimum(last, plan.num_steps), step, training)


@partial(jax.jit, static_argnames=("optimiser", "steps", "mesh", "by_rows"), donate_argnames="adapters")
def _begin_chunk(adapters, *, optimiser, steps, mesh=None, by_rows=False):
    many = jax.vmap(partial(begin, optimiser=optimiser, steps=steps))
    if mesh is not None:
        split = PartitionSpec() if by_rows else PartitionSpec("adapters")
        many = jax.shard_map(many, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    return many(adapters)


def _layout(batch: TokenBatch, by_rows: bool) -> tuple[Any, ...]:
    """How (training, batch, plans, hparams, fixed) lie over the devices of a mesh."""
    split, whole = PartitionSpec("adapters"), PartitionSpec()
    if by_rows:  # each device takes its rows of every batch; gradients are summed
        rows = jax.tree.map(lambda _: whole, batch).replace(order=PartitionSpec(None, None, "adapters"))
        return whole, rows, whole, whole, whole
    return split, split, split, split, split  # each trains its own adapters, by its own plan; nothing is exchanged


@partial(jax.jit, static_argnames=("model", "optimiser", "mesh", "by_rows"), donate_argnames="training")
def _adapt_chunk(model, params, training, batch, plans, part, hparams, optimiser, mesh=None, by_rows=False, fixed=None):
    # A plan is shared by the adapters of a device, so `switch` stays a branch and is not turned into a select of all.
    rows_axis = "adapters" if by_rows else None

    def many(params, training, batch, plans, part, hparams, fixed):
        def one(training, batch, hparams, fixed):
            return adapt(model, params, training, batch, plan, part, hparams, optimiser, rows_axis, fixed)

        plan = jax.tree.map(lambda x: x[0], plans)
        return jax.vmap(one)(training, batch, hparams, fixed)

    if mesh is not None:
        whole, (state, rows, planned, own, below) = PartitionSpec(), _layout(batch, by_rows)
        specs = (whole, state, rows, planned, whole, own, below)
        many = jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=state, check_vma=False)
    return many(params, training, batch, plans, part, hparams, fixed)


def adapt_many(
    model: Model,
    params: dict,
    adapters: Adapter,
    batch: TokenBatch,
    hparams: HParams,
    optimiser: Optimiser,
    *,
    chunk: Chunk,
    mesh: Mesh | None = None,
    fixed: Adapter | None = None,
) -> tuple[Adapter, Metrics]:
    """Trains E adapters, a chunk of them at a time: `adapt`, vmapped over self-edits.

    All of `adapters`, `batch`, `hparams` and `fixed` (what each is trained on top of) carry the leading axis E; metrics
    are [E, S]. One program is compiled for all chunks, and called for some steps of one after another where somebody
    watches (`Chunk.watch`). A diverged adapter holds NaN and changes no other: see `is_finite`. With a `mesh` of one
    axis "adapters", each device trains its share of a chunk; a single adapter, in a chunk of one, is trained by all of
    them, each on its share of a step's rows.
    """
    total, devices = len(batch.tokens), 1 if mesh is None else mesh.size
    by_rows = total == chunk.planned == 1 and devices > 1
    if by_rows:
        idle = -batch.order.shape[2] % (devices * optimiser.accumulate)
        batch = batch.replace(order=np.pad(np.asarray(batch.order), ((0, 0), (0, 0), (0, idle)), constant_values=-1))

    def train(index: Int[np.ndarray, "C"], live: Bool[np.ndarray, "C"]) -> tuple[Adapter, Metrics]:
        rows = jax.tree.map(lambda x: x[index], batch)
        hyper = jax.tree.map(lambda x: jnp.asarray(x)[index], hparams)
        hyper = hyper.replace(num_steps=jnp.where(live, hyper.num_steps, 0))
        order = np.where(live[:, None, None], rows.order, -1)
        plans = make_plans(np.asarray(rows.lengths), order, rows.widths, shares=1 if by_rows else devices)
        below, steps = None if fixed is None else lora.take(fixed, index), int(np.max(plans.num_steps))
        training = _begin_chunk(
            lora.take(adapters, index), optimiser=optimiser, steps=order.shape[1], mesh=mesh, by_rows=by_rows
        )
        # Placed once for all parts; and as what comes back will be, or the second part would be another program.
        where = (
            jnp.asarray(jax.tree.leaves(params)[0]).sharding
            if mesh is None
            else jax.tree.map(partial(NamedSharding, mesh), _layout(rows, by_rows))
        )
        training, rows, plans, hyper, below = jax.device_put((training, rows, plans, hyper, below), where)
        for part in in_parts(steps, chunk.watch):
            training = _adapt_chunk(model, params, training, rows, plans, part, hyper, optimiser, mesh, by_rows, below)
            jax.block_until_ready(training)
        return training.state.adapter, training.metrics

    return in_chunks(train, total, chunk, devices=1 if by_rows else devices)


def in_parts(steps: int, watch: Callable[[int, int], None] | None) -> Iterator[tuple[int, int]]:
    """Cuts steps into parts, (first, past the last), of about a second, and tells `watch` of each; without it, one."""
    if watch is None:
        yield 0, steps
        return
    done, size = 0, FIRST_PART
    while done < steps:
        began, last = time.monotonic(), min(steps, done + size)
        yield done, last
        done = last
        watch(done, steps)
        if time.monotonic() - began < PART_SECONDS:
            size *= 2


def log_likelihood(
    model: Model, params: dict, adapter: Adapter, batch: TokenBatch, plan: Plan, loss_chunk: int
) -> Float[Array, ""]:
    """The mean log-probability of the trained tokens in the steps of `plan`, nats a token: training without training.

    0 where there is no token.
    """
    decoder = nnx.merge(model, params)

    def at_width(width: int, rows: Int[Array, "B"]) -> tuple[Float[Array, ""], Int[Array, ""]]:
        row = jnp.maximum(rows, 0)
        tokens = batch.tokens[:, :width][row]
        trained = (batch.loss_mask[:, :width][row] & (rows >= 0)[:, None])[:, 1:]
        hidden, _ = decoder(tokens, adapter=adapter)
        log_probs = decoder.log_probs(hidden[:, :-1], tokens[:, 1:], chunk=loss_chunk)
        return jnp.sum(jnp.where(trained, log_probs, 0)), jnp.sum(trained)

    def step(i: Int[Array, ""], total):
        return jax.tree.map(jnp.add, total, jax.lax.switch(plan.width_index[i], branches, batch.order[plan.steps[i]]))

    branches = [partial(at_width, width) for width in batch.widths]
    log_probs, count = jax.lax.fori_loop(0, plan.num_steps, step, (jnp.zeros(()), jnp.zeros((), jnp.int32)))
    return log_probs / jnp.maximum(count, 1)


@partial(jax.jit, static_argnames=("model", "loss_chunk", "mesh"))
def _log_likelihood_chunk(model, params, adapters, batch, plans, loss_chunk, mesh=None):
    def many(params, adapters, batch, plans):
        plan = jax.tree.map(lambda x: x[0], plans)
        return jax.vmap(lambda adapter, rows: log_likelihood(model, params, adapter, rows, plan, loss_chunk))(
            adapters, batch
        )

    if mesh is not None:
        split = PartitionSpec("adapters")
        specs = (PartitionSpec(), split, split, split)
        many = jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    return many(params, adapters, batch, plans)


def log_likelihood_many(
    model: Model,
    params: dict,
    adapters: Adapter,
    batch: TokenBatch,
    *,
    loss_chunk: int,
    chunk: Chunk,
    mesh: Mesh | None = None,
) -> Float[Array, "E"]:
    """How likely each of E adapters finds its own sequences: `log_likelihood`, vmapped, a chunk at a time."""
    devices = 1 if mesh is None else mesh.size

    def measure(index: Int[np.ndarray, "C"], live: Bool[np.ndarray, "C"]) -> Float[Array, "C"]:
        rows = jax.tree.map(lambda x: x[index], batch)
        order = np.where(live[:, None, None], rows.order, -1)
        plans = make_plans(np.asarray(rows.lengths), order, rows.widths, shares=devices)
        return _log_likelihood_chunk(model, params, lora.take(adapters, index), rows, plans, loss_chunk, mesh)

    return in_chunks(measure, len(batch.tokens), chunk, devices=devices)


@dataclasses.dataclass
class Chunk:
    """How many adapters (or rows) the devices hold at a time. Halved, for good, when memory does not suffice."""

    size: int
    what: str = "adapters"
    say: Callable[[str], None] = print
    watch: Callable[[int, int], None] | None = None  # told while a chunk trains: optimiser steps done, and of how many
    planned: int = dataclasses.field(init=False)  # the size before any halving: a resumed run cuts its pieces by it

    def __post_init__(self) -> None:
        self.planned = self.size


def in_chunks(
    run: Callable[[np.ndarray, np.ndarray], Any],
    total: int,
    chunk: Chunk,
    *,
    devices: int = 1,
    each: int = 1,
    fill: bool = True,
) -> Any:
    """Calls `run(index, live)` on one chunk after another and joins what it returns along the first axis.

    An item takes `each` places of the chunk. `index` is filled up to a whole chunk, so that one program serves all (or,
    without `fill`, to a multiple of `devices`); where `live` is False it repeats an item, and what is returned for that
    is dropped. If the device runs out of memory the chunk is halved, which is said once, and nothing finished is lost.

    Raises:
        jax.errors.JaxRuntimeError: memory does not suffice for one adapter a device.
    """
    outputs: list[Any] = []
    done = 0
    while done < total:
        size = max(devices, chunk.size // each // devices * devices)
        if not fill:
            size = min(size, -(-(total - done) // devices) * devices)
        live = np.arange(size) < total - done
        index = np.minimum(done + np.arange(size), total - 1)
        try:
            output = jax.block_until_ready(run(index, live))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size == devices:
                raise
            chunk.size = max(devices, size // 2 // devices * devices) * each
            chunk.say(f"not enough device memory for {size * each} {chunk.what} at a time: going on with {chunk.size}")
            continue
        outputs.append(output if live.all() else jax.tree.map(lambda x, n=int(live.sum()): x[:n], output))
        done += size
    return outputs[0] if len(outputs) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs)


@jax.jit
def is_finite(adapters: Adapter) -> Bool[Array, "E"]:
    """Which of E trained adapters hold numbers only."""
    finite = [jnp.isfinite(w).all(axis=tuple(range(1, w.ndim))) for w in jax.tree.leaves((adapters.a, adapters.b))]
    return jnp.stack(finite).all(axis=0)
