"""Full fine-tuning: every weight of one model, on all sequences (the paper's continued pre-training, its section 4.1).

One jitted step takes a batch of sequences: gradient, clip, AdamW. The weights are kept in float32, whatever the model
computes in: at a rate of 1e-5 most updates are smaller than half of bfloat16's spacing and would be rounded away. The
model's own precision is cast from them at each step.

On several devices each lane of the mesh takes its share of a batch's rows, and each device holds its share of the
float32 weights and of both moments (ZeRO, Rajbhandari et al. 2020): gradients are summed where they are kept, a lane's
part of the weights is gathered where it is used. So a parameter costs each of n devices 12 / n bytes for good; `need`
adds what a step takes on top of that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from seal_jax.engine import batching, costs, inner, memory
from seal_jax.engine.costs import FLOAT32
from seal_jax.engine.inner import Optimiser, Outputs
from seal_jax.nn import sharding
from seal_jax.nn.losses import next_token
from seal_jax.nn.transformer import Model, ModelConfig
from seal_jax.types import Compute, HParams, Journal, LanguageModel, Memory, require_at_least

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class FullTuning:
    """How all weights are trained. The paper does not print its settings: these are ours."""

    learning_rate: float = 1e-5  # ours: weights of 7B models are usually tuned at 5e-6 to 2e-5
    epochs: int = 5  # passes over all sequences; ours
    batch_size: int = 8  # sequences a step; ours
    optimiser: Optimiser = Optimiser()  # AdamW, clip, schedule; `dropout` is of adapters and must be 0

    def __post_init__(self) -> None:
        require_at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        require_at_least(0, learning_rate=self.learning_rate)
        if self.optimiser.dropout:
            raise ValueError(f"dropout is {self.optimiser.dropout}; full fine-tuning has none: set it to 0")


class TuningState(struct.PyTreeNode):
    """A model in training."""

    weights: dict[str, Any]  # the model's params, in float32
    moments: optax.OptState
    step: Int[Array, ""]
    losses: Float[Array, "S"]  # one a step, nats; NaN where it is still to come


# ---------------------------------------------------------------------------------------------------------------------
# One step


def loss_and_gradient(
    model: Model,
    params: dict[str, Any],
    tokens: Int[Array, "B T"],
    loss_weight: Float[Array, "B T"],
    compute: Compute,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """`inner.loss_and_gradient` of every weight: the mean next-token loss, in nats, and its gradient.

    With a mesh each lane takes its share of the rows, and of each summed gradient the part it keeps.
    """
    alone = sharding.lanes(mesh) == 1

    def forward(params: dict[str, Any], tokens: Array, key: Array) -> Outputs:
        decoder = nnx.merge(model, params)
        return Outputs(decoder(tokens, remat=compute.remat)[0], decoder.head())

    def share(params: dict[str, Any], tokens: Array, loss_weight: Array) -> tuple[Array, dict[str, Any]]:
        loss, gradient = inner.loss_and_gradient(
            forward, params, tokens, loss_weight, jax.random.key(0), loss=next_token, numbers={}, compute=compute,
            rows_axis=None if alone else "adapter", train_head=True,
        )  # fmt: skip
        if alone:
            return loss, gradient
        return jax.lax.psum(loss, "adapter"), jax.tree_util.tree_map_with_path(sum_kept, gradient)

    def sum_kept(path: Any, gradient: Array) -> Array:
        wide, axis = gradient.astype(jnp.float32), _split_axis(path, gradient.shape, mesh)
        if axis is None:
            return jax.lax.psum(wide, "adapter")
        return jax.lax.psum_scatter(wide, "adapter", scatter_dimension=axis, tiled=True)

    def kept(path: Any, w: Array) -> PartitionSpec:
        axis = _split_axis(path, w.shape, mesh)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "adapter")

    rows, same = PartitionSpec("adapter"), PartitionSpec()
    out = (same, jax.tree_util.tree_map_with_path(kept, params))
    return sharding.by_lane(share, mesh, (same, rows, rows), out)(params, tokens, loss_weight)


@partial(jax.jit, static_argnames=("model", "dtype", "optimiser", "compute", "mesh"), donate_argnames="state")
def train_step(
    model: Model,
    state: TuningState,
    tokens: Int[Array, "B T"],
    loss_weight: Float[Array, "B T"],
    hparams: HParams,
    *,
    dtype: np.dtype,
    optimiser: Optimiser,
    compute: Compute,
    mesh: Mesh | None = None,
) -> tuple[TuningState, Float[Array, ""], Float[Array, ""]]:
    """One step of AdamW on a batch: the new state (the old one's memory is reused), the loss, the gradient's norm.

    `dtype` is the precision in which the model computes; `hparams` are scalars.
    """
    params = sharding.constrained(jax.tree.map(lambda w: w.astype(dtype), state.weights), mesh)
    loss, gradient = loss_and_gradient(model, params, tokens, loss_weight, compute, mesh)
    gradient = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
    weights, moments = inner.update(state.weights, state.moments, state.step, gradient, hparams, optimiser)
    losses = state.losses.at[state.step].set(loss)
    new_state = _kept(TuningState(weights, moments, state.step + 1, losses), mesh)
    return new_state, loss, optax.global_norm(gradient)


def _split_axis(path: Any, shape: Sequence[int], mesh: Mesh | None) -> int | None:
    """The axis along which lanes share an array of the state; None where each holds it whole."""
    if mesh is None or len(shape) < 2:
        return None
    within = NamedSharding(mesh, sharding.spec(path, shape, mesh)).shard_shape(tuple(shape))
    return next((axis for axis, size in enumerate(within) if size % sharding.lanes(mesh) == 0), None)


def kept_as(tree: Any, mesh: Mesh) -> Any:
    """How each array of a state is shared by all devices: by the lanes, and within each as the model is."""

    def one(path: Any, leaf: Any) -> NamedSharding:
        own, axis = list(sharding.spec(path, leaf.shape, mesh)), _split_axis(path, leaf.shape, mesh)
        if axis is not None:
            inner_axes = own[axis] or ()
            own[axis] = ("adapter", *((inner_axes,) if isinstance(inner_axes, str) else inner_axes))
        return NamedSharding(mesh, PartitionSpec(*own))

    return jax.tree_util.tree_map_with_path(one, tree)


def _kept(state: TuningState, mesh: Mesh | None) -> TuningState:
    return state if mesh is None else jax.lax.with_sharding_constraint(state, kept_as(state, mesh))


@partial(jax.jit, static_argnames=("optimiser", "mesh", "steps"))
def _start(params: dict[str, Any], *, optimiser: Optimiser, mesh: Mesh | None, steps: int) -> TuningState:
    weights = jax.tree.map(lambda w: jnp.array(w, jnp.float32, copy=True), params)  # the caller keeps what it gave
    moments = inner.transformation(optimiser).init(weights)
    return _kept(TuningState(weights, moments, jnp.zeros((), jnp.int32), jnp.full(steps, jnp.nan)), mesh)


@partial(jax.jit, static_argnames=("dtype", "mesh"))
def _finish(weights: dict[str, Any], *, dtype: np.dtype, mesh: Mesh | None) -> dict[str, Any]:
    return sharding.constrained(jax.tree.map(lambda w: w.astype(dtype), weights), mesh)


# ---------------------------------------------------------------------------------------------------------------------
# All steps


def train_all_weights(
    lm: LanguageModel,
    sequences: Sequence[batching.Tokens],
    config: FullTuning,
    compute: Compute,
    *,
    seed: int,
    journal: Journal | None = None,
    name: str = "full_fine_tuning",
    say: Callable[[str], None] = print,
    on_step: Callable[[int, int], None] = lambda rows, tokens: None,
) -> tuple[LanguageModel, list[float]]:
    """Trains every weight on the sequences: the trained model, and the loss at each step.

    `lm.params` are left as they are; they may lie on the host (`jax.device_get`), which spares the devices a copy.
    Batches are padded to the narrowest of a few widths, pads carry no loss. In a `journal` each finished epoch is kept
    under `name` (its predecessor is then removed), so that a kill loses at most one; at the end the trained weights
    alone are kept. `on_step` gets each step's rows and real tokens.

    Raises:
        ValueError: nothing to train on, or it diverged.
    """
    if not sequences:
        raise ValueError("full fine-tuning: no training sequence; expected at least one (did every self-edit fail?)")
    journal = journal or Memory()
    dtype = np.dtype(jax.tree.leaves(lm.params)[0].dtype)
    widths = batching.bucket_widths(max(len(s.ids) for s in sequences), compute.width_cuts)
    batch_size = min(config.batch_size, len(sequences))
    order = batching.order(len(sequences), epochs=config.epochs, batch_size=batch_size, seed=seed)
    lengths = np.array([len(s.ids) for s in sequences])
    idle = -batch_size % (sharding.lanes(lm.mesh) * math.gcd(compute.accumulate, batch_size))
    order = np.pad(order, ((0, 0), (0, idle)), constant_values=-1)
    steps = len(order)
    nothing = np.zeros((), np.int32)  # an adapter's settings
    hparams = HParams(np.asarray(config.learning_rate, np.float32), np.asarray(steps), nothing, nothing, nothing)
    step = partial(train_step, lm.model, dtype=dtype, optimiser=config.optimiser, compute=compute, mesh=lm.mesh)
    start = partial(_start, optimiser=config.optimiser, mesh=lm.mesh, steps=steps)
    like = abstract(jax.eval_shape(start, lm.params), lm.mesh, kept_as)

    def train_epoch(state: TuningState, epoch: int) -> TuningState:
        losses = []
        for s in range(epoch * steps // config.epochs, (epoch + 1) * steps // config.epochs):
            there = order[s] >= 0
            width = widths[np.searchsorted(widths, lengths[order[s][there]].max())]
            tokens, loss_weight = batching.pad_rows(sequences, order[s], width)
            state, loss, norm = step(state, tokens, loss_weight, hparams)
            losses.append(float(loss))
            if not (math.isfinite(losses[-1]) and math.isfinite(float(norm))):
                raise ValueError(
                    f"full fine-tuning diverged: at step {s + 1} of {steps} the loss is {losses[-1]:g} and the "
                    f"gradient's norm {float(norm):g}; expected numbers. The learning rate is "
                    f"{config.learning_rate:g}: lower it, or raise warmup_steps, and use another run folder"
                )
            on_step(int(there.sum()), int(lengths[order[s][there]].sum()))
        say(f"epoch {epoch + 1} of {config.epochs}: loss {np.mean(losses):.3f} nats")
        return state

    def checkpoint(epoch: int) -> str:
        return f"{name}_epoch_{epoch + 1}"

    def state_after(epoch: int) -> TuningState:
        """The state at an epoch's end; from the latest checkpoint that there is."""
        if epoch < 0:
            return start(lm.params)
        state = journal.once_tree(checkpoint(epoch), lambda: train_epoch(state_after(epoch - 1), epoch), like)
        journal.forget_tree(checkpoint(epoch - 1))
        return state

    def train() -> dict[str, Any]:
        state = train_epoch(state_after(config.epochs - 2), config.epochs - 1)
        losses = np.asarray(state.losses).tolist()
        journal.once(f"{name}/losses", lambda: losses)  # before the checkpoint: where that is, these are
        return _finish(state.weights, dtype=dtype, mesh=lm.mesh)

    params = journal.once_tree(name, train, abstract(lm.params, lm.mesh, sharding.shardings))
    journal.forget_tree(checkpoint(config.epochs - 2))
    return lm._replace(params=params), journal.once(f"{name}/losses", list)


def abstract(tree: Any, mesh: Mesh | None, laid: Callable[[Any, Mesh], Any]) -> Any:
    """What a checkpoint is restored as: on the devices that hold it, however many wrote it."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    where = jax.tree.map(lambda leaf: here, tree) if mesh is None else laid(tree, mesh)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, where)


# ---------------------------------------------------------------------------------------------------------------------
# What it needs


class Need(NamedTuple):
    """Bytes on one device, at the worst moment of a step."""

    base: int  # the model that was given, where it lies on the devices
    state: int  # float32 weights and both moments: 12 bytes a parameter, shared by the devices
    gradient: int  # with the weights as the step computes with them; before it, in the same place, logits
    activations: int
    head: int  # what of the head's gradient is added up over the loss's pieces

    @property
    def total(self) -> int:
        return sum(self)


def need(
    model: ModelConfig,
    config: FullTuning,
    compute: Compute,
    machine: memory.Machine,
    *,
    width: int,
) -> Need:
    """The widest step on one device."""
    itemsize, sharing, lanes = machine.itemsize, machine.fsdp * machine.tensor, machine.devices
    parameters, parts = costs.model_parameters(model) // sharing, math.gcd(compute.accumulate, config.batch_size)
    rows, vocabulary = math.ceil(config.batch_size / (parts * lanes)), model.vocab_size * model.hidden_size // sharing
    alone, model = lanes == 1, memory.share_of(model, machine)
    used = 0 if alone and itemsize == FLOAT32 else itemsize  # cast, or gathered from the devices that hold them
    gradient = itemsize if alone else FLOAT32
    running = FLOAT32 if parts > 1 else 0
    d, f, tokens = model.hidden_size, model.intermediate_size, rows * width
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim  # queries, keys, values and the attended
    layer = (4 * d + heads + 3 * f) * itemsize  # of a token: what norms, matrices and the gate read
    layer += 0 if machine.attention == "cudnn" else 2 * model.num_heads * width * FLOAT32  # scores
    logits = 3 * min(compute.loss_chunk, tokens) * model.vocab_size * FLOAT32
    kept = layer + model.num_layers * d * itemsize if compute.remat else model.num_layers * layer
    return Need(
        base=parameters * itemsize,
        state=math.ceil(3 * FLOAT32 * parameters / lanes),
        gradient=parameters * (used + running) + max(parameters * gradient, logits),
        activations=tokens * kept,
        head=2 * vocabulary * gradient,
    )


def disk(model: ModelConfig, *, itemsize: int) -> int:
    """The most bytes of checkpoints at a time: two epochs' states, while the second is written."""
    return costs.model_parameters(model) * max(2 * 3 * FLOAT32, 3 * FLOAT32 + itemsize)


def lines(need: Need, free: float) -> list[str]:
    """A step's memory, for people to read."""
    parts = zip(("model as given", "weights, moments", "gradient, copy", "activations", "head"), need, strict=True)
    head = [f"{name:<18}{memory.readable(size):>10}" for name, size in parts]
    return [
        *head,
        f"{'together':<18}{memory.readable(need.total):>10}   of {memory.readable(free)} free on each device",
    ]


def require_memory(need: Need, free: float) -> None:
    """Raises ValueError where `free` bytes a device are fewer than a step needs.

    All of the free memory is counted on, not `memory.SHARE` of it: nearly all of the need is known to the byte.
    """
    if need.total > free:
        most = max(need._fields, key=lambda field: getattr(need, field))
        raise ValueError(
            f"full fine-tuning needs about {memory.readable(need.total)} on each device (most of it {most}: "
            f"{memory.readable(getattr(need, most))}) and {memory.readable(free)} are free; train adapters instead "
            "(--method lora), or use more devices, a smaller model, a smaller --full.batch-size, or a larger "
            "--compute.accumulate"
        )
