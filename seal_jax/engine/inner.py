"""The inner loop: train one LoRA adapter on each self-edit, all of them at once (paper section 3.1, Algorithm 1).

`loss_and_gradient` and `update` are one optimiser step of one set of weights: an adapter's or, in full_training.py, a
whole model's. `adapt` takes a self-edit's steps: read those as if there were a single adapter. `adapt_many` maps it
over the self-edits. The frozen base model is shared by all of them and is never copied; what may differ between
adapters (rank, alpha, learning rate, steps, seed, numbers of the loss) is an array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seal_jax.engine.batching import Plan, make_plans
from seal_jax.engine.chunks import Chunk, in_chunks, in_parts
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.losses import Head, Loss, Numbers, next_token, token_losses
from seal_jax.nn.transformer import Model
from seal_jax.types import Compute, HParams, TokenBatch, require_at_least

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

    def __post_init__(self) -> None:
        require_at_least(0, warmup_steps=self.warmup_steps, clip_norm=self.clip_norm, dropout=self.dropout)


Weights = Any  # what is trained: an adapter's (a, b), or all of a model's params


class Outputs(NamedTuple):
    """What a forward pass hands to the loss."""

    hidden: Float[Array, "B T D"]
    head: Head
    teacher: Float[Array, "B T D"] | None = None  # hidden states of `Loss.teacher`


Forward = Callable[[Weights, "Int[Array, 'B T']", "PRNGKeyArray"], Outputs]


class InnerState(struct.PyTreeNode):
    """One adapter in training."""

    adapter: Adapter
    moments: optax.OptState
    step: Int[Array, ""]


class Metrics(NamedTuple):
    """What one step reports. NaN in a step that changed nothing."""

    loss: Float[Array, ""]  # mean over trained tokens, nats
    grad_norm: Float[Array, ""]  # before clipping


def transformation(optimiser: Optimiser) -> optax.GradientTransformation:
    """Clip, then AdamW, all but the learning rate, which each adapter has for itself."""
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
    forward: Forward,
    weights: Weights,
    tokens: Int[Array, "B T"],
    loss_weight: Float[Array, "B T"],
    key: PRNGKeyArray,
    *,
    loss: Loss,
    numbers: Numbers,
    compute: Compute,
    rows_axis: str | None = None,
    train_head: bool = False,
) -> tuple[Float[Array, ""], Weights]:
    """The loss, summed by `loss_weight` and divided by the tokens where that is not 0, and its gradient in `weights`.

    Where the batch's rows are split over devices, `rows_axis` names the mesh axis: both are then this device's share,
    to be summed over it. `train_head` differentiates in the output head too.
    """
    trained = jnp.maximum(_sum_over(rows_axis, jnp.sum(loss_weight[:, 1:] != 0)), 1)

    def loss_of(weights: Weights, tokens: Array, loss_weight: Array, key: Array) -> Float[Array, ""]:
        hidden, head, teacher = forward(weights, tokens, key)
        each = token_losses(
            loss, head, hidden[:, :-1], tokens[:, 1:], chunk=compute.loss_chunk, numbers=numbers,
            teacher=None if teacher is None else teacher[:, :-1], train_head=train_head,
        )  # fmt: skip
        weight = loss_weight[:, 1:]
        return jnp.sum(jnp.where(weight != 0, weight * each, 0)) / trained  # a pad's loss may be no number

    parts = math.gcd(compute.accumulate, len(tokens))
    if parts == 1:
        return jax.value_and_grad(loss_of)(weights, tokens, loss_weight, key)

    def add(
        total: Any, micro: Any
    ) -> tuple[Any, None]:  # each micro-batch's share of the one mean: the sum is the large batch's gradient
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(weights, *micro)), None

    micro = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), (tokens, loss_weight))
    zero = (jnp.zeros(()), jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights))
    return jax.lax.scan(add, zero, (*micro, jax.random.split(key, parts)))[0]


def update(
    weights: Weights,
    moments: optax.OptState,
    step: Int[Array, ""],
    gradient: Weights,
    hparams: HParams,
    optimiser: Optimiser,
) -> tuple[Weights, optax.OptState]:
    """One optimiser step from a gradient: the new weights and moments."""
    updates, moments = transformation(optimiser).update(gradient, moments, weights)
    rate = learning_rate(optimiser, hparams, step)
    return jax.tree.map(lambda w, u: w - rate * u, weights, updates), moments


# ---------------------------------------------------------------------------------------------------------------------
# One adapter


class Recipe(NamedTuple):
    """What is the same for all adapters of a program: static."""

    optimiser: Optimiser = Optimiser()
    loss: Loss = next_token
    compute: Compute = Compute()


class Training(NamedTuple):
    """One adapter part of the way through its steps, and what those that are done have reported, [S]."""

    state: InnerState
    metrics: Metrics


def begin(adapter: Adapter, optimiser: Optimiser, *, steps: int) -> Training:
    """An adapter before the first of at most S `steps`."""
    nothing = jnp.full(steps, jnp.nan)
    moments = transformation(optimiser).init((adapter.a, adapter.b))
    return Training(InnerState(adapter, moments, jnp.zeros((), jnp.int32)), Metrics(nothing, nothing))


def adapt(
    model: Model,
    params: dict[str, Any],
    training: Training,
    batch: TokenBatch,
    plan: Plan,
    part: tuple[Int[Array, ""], Int[Array, ""]],
    hparams: HParams,
    recipe: Recipe,
    rows_axis: str | None = None,
    fixed: Adapter | None = None,
) -> Training:
    """Trains one adapter through a part of `plan`, on top of `fixed` if there is one, which stays as it is.

    `batch` and `hparams` are one adapter's: tokens [N, T], order [S, B], scalars. `part` is the first step of the plan
    that is taken, and the first that is not: a plan in parts gives what it gives in one. A step past `num_steps`, or
    with no row, changes nothing.
    """
    optimiser, loss, compute = recipe
    decoder = nnx.merge(model, params)

    def forward(weights: Weights, tokens: Array, key: PRNGKeyArray) -> Outputs:
        a, b = weights
        hidden, _ = decoder(
            tokens,
            adapter=training.state.adapter.replace(a=a, b=b),
            fixed=fixed,
            dropout=optimiser.dropout,
            dropout_key=key if optimiser.dropout > 0 else None,
            remat=compute.remat,
        )
        before = decoder(tokens, adapter=fixed)[0] if loss.teacher == "base" else None
        return Outputs(hidden, decoder.head(), before)

    def at_width(width: int, weights: Weights, rows: Int[Array, "B"], key: PRNGKeyArray) -> Any:
        row = jnp.maximum(rows, 0)
        tokens = batch.tokens[:, :width][row]
        loss_weight = jnp.where((rows >= 0)[:, None], batch.loss_weight[:, :width][row], 0)
        return _sum_over(
            rows_axis,
            loss_and_gradient(
                forward, weights, tokens, loss_weight, key,
                loss=loss, numbers=hparams.numbers, compute=compute, rows_axis=rows_axis,
            ),
        )  # fmt: skip

    def step(i: Int[Array, ""], training: Training) -> Training:
        state, metrics = training
        s, weights = plan.steps[i], (state.adapter.a, state.adapter.b)
        rows, key = batch.order[s], jax.random.fold_in(jax.random.key(hparams.seed), state.step)
        if rows_axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(rows_axis))
        # Only the gradient is taken inside the branch: state that passed through it would be copied at every step.
        value, gradient = jax.lax.switch(plan.width_index[i], branches, weights, rows, key)
        (a, b), moments = update(weights, state.moments, state.step, gradient, hparams, optimiser)
        new_state = InnerState(state.adapter.replace(a=a, b=b), moments, state.step + 1)
        active = (_sum_over(rows_axis, jnp.sum(rows >= 0)) > 0) & (state.step < hparams.num_steps)
        state = jax.tree.map(partial(jnp.where, active), new_state, state)
        reported = jax.tree.map(
            lambda old, new: old.at[s].set(jnp.where(active, new, jnp.nan)),
            metrics,
            Metrics(value, optax.global_norm(gradient)),
        )
        return Training(state, reported)

    branches = [partial(at_width, width) for width in batch.widths]
    first, last = part
    return jax.lax.fori_loop(first, jnp.minimum(last, plan.num_steps), step, training)


# ---------------------------------------------------------------------------------------------------------------------
# Many adapters


@partial(jax.jit, static_argnames=("optimiser", "steps", "mesh", "by_rows"), donate_argnames="adapters")
def _begin_chunk(
    adapters: Adapter, *, optimiser: Optimiser, steps: int, mesh: Mesh | None = None, by_rows: bool = False
) -> Training:
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


@partial(jax.jit, static_argnames=("model", "recipe", "mesh", "by_rows"), donate_argnames="training")
def _adapt_chunk(
    model: Model,
    params: dict[str, Any],
    training: Training,
    batch: TokenBatch,
    plans: Plan,
    part: Any,
    hparams: HParams,
    recipe: Recipe,
    mesh: Mesh | None = None,
    by_rows: bool = False,
    fixed: Adapter | None = None,
) -> Training:
    # A plan is shared by the adapters of a device, so `switch` stays a branch and is not turned into a select of all.
    rows_axis = "adapters" if by_rows else None

    def many(
        params: dict[str, Any],
        training: Training,
        batch: TokenBatch,
        plans: Plan,
        part: Any,
        hparams: HParams,
        fixed: Any,
    ) -> Training:
        def one(training: Training, batch: TokenBatch, hparams: HParams, fixed: Adapter | None) -> Training:
            return adapt(model, params, training, batch, plan, part, hparams, recipe, rows_axis, fixed)

        plan = jax.tree.map(lambda x: x[0], plans)
        return jax.vmap(one)(training, batch, hparams, fixed)

    if mesh is not None:
        whole, (state, rows, planned, own, below) = PartitionSpec(), _layout(batch, by_rows)
        specs = (whole, state, rows, planned, whole, own, below)
        many = jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=state, check_vma=False)
    return many(params, training, batch, plans, part, hparams, fixed)


def adapt_many(
    model: Model,
    params: dict[str, Any],
    adapters: Adapter,
    batch: TokenBatch,
    hparams: HParams,
    recipe: Recipe,
    *,
    chunk: Chunk,
    mesh: Mesh | None = None,
    fixed: Adapter | None = None,
) -> tuple[Adapter, Metrics]:
    """Trains E adapters, a chunk of them at a time: `adapt`, vmapped over self-edits.

    All of `adapters`, `batch`, `hparams` and `fixed` (what each is trained on top of) carry the leading axis E; metrics
    are [E, S]. One program is compiled for all chunks; where progress is reported (`Chunk.watch`) it is called for some
    steps at a time. A diverged adapter holds NaN and changes no other: see `is_finite`. With a `mesh` of one axis
    "adapters", each device trains its share of a chunk; a single adapter, in a chunk of one, is trained by all of them,
    each on its share of a step's rows.
    """
    total, devices = len(batch.tokens), 1 if mesh is None else mesh.size
    by_rows = total == chunk.planned == 1 and devices > 1
    if by_rows:
        micro = math.gcd(recipe.compute.accumulate, batch.order.shape[2])
        idle = -batch.order.shape[2] % (devices * micro)
        batch = batch.replace(order=np.pad(np.asarray(batch.order), ((0, 0), (0, 0), (0, idle)), constant_values=-1))

    def train(index: Int[np.ndarray, "C"], live: Bool[np.ndarray, "C"]) -> tuple[Adapter, Metrics]:
        rows = jax.tree.map(lambda x: x[index], batch)
        hyper = jax.tree.map(lambda x: jnp.asarray(x)[index], hparams)
        hyper = hyper.replace(num_steps=jnp.where(live, hyper.num_steps, 0))
        order = np.where(live[:, None, None], rows.order, -1)
        plans = make_plans(np.asarray(rows.lengths), order, rows.widths, shares=1 if by_rows else devices)
        below, steps = None if fixed is None else lora.take(fixed, index), int(np.max(plans.num_steps))
        training = _begin_chunk(
            lora.take(adapters, index), optimiser=recipe.optimiser, steps=order.shape[1], mesh=mesh, by_rows=by_rows
        )
        # Placed once for all parts; and as what comes back will be, or the second part would be another program.
        where = (
            jnp.asarray(jax.tree.leaves(params)[0]).sharding
            if mesh is None
            else jax.tree.map(partial(NamedSharding, mesh), _layout(rows, by_rows))
        )
        training, rows, plans, hyper, below = jax.device_put((training, rows, plans, hyper, below), where)
        for part in in_parts(steps, chunk.watch):
            training = _adapt_chunk(model, params, training, rows, plans, part, hyper, recipe, mesh, by_rows, below)
            jax.block_until_ready(training)
        return training.state.adapter, training.metrics

    return in_chunks(train, total, chunk, devices=1 if by_rows else devices)


@jax.jit
def is_finite(adapters: Adapter) -> Bool[Array, "E"]:
    """Which of E trained adapters hold numbers only."""
    finite = [jnp.isfinite(w).all(axis=tuple(range(1, w.ndim))) for w in jax.tree.leaves((adapters.a, adapters.b))]
    return jnp.stack(finite).all(axis=0)
