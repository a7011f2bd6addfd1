"""The inner loop: train one LoRA adapter on each self-edit, all of them at once (paper section 3.1, Algorithm 1).

`loss_and_gradient` and `update` are one optimiser step of one set of weights: an adapter's or, in full_training.py, a
whole model's. `step` is one step of one adapter: read it as if there were no other. `tick` maps it over adapters that
lie in a bank on the device, and `adapt_each` takes all of them through all their steps (schedule.py says when). The
frozen base model is shared by all and is never copied; what may differ between adapters (rank, alpha, learning rate,
steps, seed, numbers of the loss) is an array.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jax.sharding import Mesh, PartitionSpec

from seal_jax.engine import costs, schedule
from seal_jax.engine.batching import Tokens, pad_rows, round_up
from seal_jax.engine.schedule import Room, Tick
from seal_jax.nn import lora, sharding
from seal_jax.nn.lora import Adapter
from seal_jax.nn.losses import Head, Loss, Numbers, next_token, token_losses
from seal_jax.nn.products import Program
from seal_jax.nn.transformer import Model, ModelConfig
from seal_jax.types import AnyArray, Compute, Hosts, HParams, require_at_least

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


UNROLLED = 2e9  # parameters: models with fewer are held back by the starting of kernels
AHEAD = 1  # ticks that a device is given before the one that it takes has ended

Device = Any  # a jax.Device
Weights = Any  # what is trained: an adapter's `weights`, or all of a model's params


class Outputs(NamedTuple):
    """What a forward pass hands to the loss."""

    hidden: Float[Array, "B T D"]
    head: Head
    teacher: Float[Array, "B T D"] | None = None  # hidden states of `Loss.teacher`


Forward = Callable[[Weights, "Int[Array, 'B T']", "PRNGKeyArray"], Outputs]


class Metrics(NamedTuple):
    """What one step reports. NaN in a step that changed nothing."""

    loss: Float[AnyArray, ""]  # mean over trained tokens, nats; over groups where the loss compares sequences
    grad_norm: Float[AnyArray, ""]  # before clipping


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
    tokens: Int[AnyArray, "B T"],
    loss_weight: Float[AnyArray, "B T"],
    key: PRNGKeyArray,
    *,
    loss: Loss,
    numbers: Numbers,
    compute: Compute,
    rows_axis: str | None = None,
    train_head: bool = False,
    taught: Float[AnyArray, "B T D"] | None = None,
) -> tuple[Float[Array, ""], Weights]:
    """A step's loss (`Loss.total`), a mean over the tokens with a weight or over groups, and its gradient in `weights`.

    Where the batch's rows are split over devices, `rows_axis` names the mesh axis: both are then this device's share,
    to be summed over it. `train_head` differentiates in the output head too. `taught` are the hidden states of a
    teacher that is not read in this step.
    """
    counted = loss_weight[:, 1:] != 0
    if loss.rows > 1:
        counted = jnp.any(counted.reshape(len(tokens) // loss.rows, -1), axis=1)
    trained = jnp.maximum(_sum_over(rows_axis, jnp.sum(counted)), 1)

    def loss_of(
        weights: Weights, tokens: Array, loss_weight: Array, taught: Array | None, key: Array
    ) -> Float[Array, ""]:
        hidden, head, read = forward(weights, tokens, key)
        teacher = read if taught is None else taught
        each = token_losses(
            loss, head, hidden[:, :-1], tokens[:, 1:], chunk=compute.loss_chunk, numbers=numbers,
            teacher=None if teacher is None else teacher[:, :-1], train_head=train_head,
        )  # fmt: skip
        weight = loss_weight[:, 1:]
        return loss.total(jnp.where(weight != 0, each, 0), weight, numbers) / trained  # a pad's may be no number

    parts = math.gcd(compute.accumulate, len(tokens) // loss.rows)
    if parts == 1:
        return jax.value_and_grad(loss_of)(weights, tokens, loss_weight, taught, key)

    def add(
        total: Any, micro: Any
    ) -> tuple[Any, None]:  # each micro-batch's share of the one mean: the sum is the large batch's gradient
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(weights, *micro)), None

    micro = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), (tokens, loss_weight, taught))
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


class InnerState(struct.PyTreeNode):
    """One adapter in training: what changes with every step."""

    adapter: Adapter
    moments: optax.OptState
    step: Int[Array, ""]  # taken so far


class Given(struct.PyTreeNode):
    """What an adapter is trained with: what stays the same."""

    hparams: HParams
    fixed: Adapter | None = None  # trained before; this one is trained on top of it


Start = Adapter | InnerState  # a fresh adapter, or one whose training goes on


def begin(start: Start, optimiser: Optimiser) -> InnerState:
    """An adapter before its first step, or before the next one if it has taken some."""
    if isinstance(start, InnerState):
        return start
    adapter = start
    return InnerState(adapter, transformation(optimiser).init(adapter.weights), jnp.zeros((), jnp.int32))


def step(
    model: Model,
    params: dict[str, Any],
    state: InnerState,
    given: Given,
    tokens: Int[AnyArray, "B T"],
    loss_weight: Float[AnyArray, "B T"],
    recipe: Recipe,
    rows_axis: str | None = None,
    taught: Float[AnyArray, "B T D"] | None = None,
) -> tuple[InnerState, Metrics]:
    """One optimiser step of one adapter. Where devices share its rows, `rows_axis` names their mesh axis; `taught` are
    the hidden states of an in_context teacher."""
    optimiser, loss, compute = recipe
    hparams, (forward, key) = given.hparams, reading(model, params, state, given, recipe)
    weights = state.adapter.weights
    if rows_axis is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(rows_axis))
    value, gradient = _sum_over(
        rows_axis,
        loss_and_gradient(
            forward, weights, tokens, loss_weight, key,
            loss=loss, numbers=hparams.numbers, compute=compute, rows_axis=rows_axis, taught=taught,
        ),
    )  # fmt: skip
    weights, moments = update(weights, state.moments, state.step, gradient, hparams, optimiser)
    state = InnerState(state.adapter.holding(weights), moments, state.step + 1)
    return state, Metrics(value, optax.global_norm(gradient))


def reading(
    model: Model, params: dict[str, Any], state: InnerState, given: Given, recipe: Recipe
) -> tuple[Forward, PRNGKeyArray]:
    """How an adapter's step reads its sequences, as a function of the weights, and the key of its dropout."""
    optimiser, loss, compute = recipe
    decoder = nnx.merge(model, params)
    unroll = unrolled(decoder.config, compute)

    def forward(weights: Weights, tokens: Array, key: PRNGKeyArray) -> Outputs:
        hidden, _ = decoder(
            tokens,
            adapter=state.adapter.holding(weights),
            fixed=given.fixed,
            dropout=optimiser.dropout,
            dropout_key=key if optimiser.dropout > 0 else None,
            remat=compute.remat,
            unroll=unroll,
        )
        before = decoder(tokens, adapter=given.fixed, unroll=unroll)[0] if loss.teacher == "base" else None
        return Outputs(hidden, decoder.head(), before)

    return forward, jax.random.fold_in(jax.random.key(given.hparams.seed), state.step)


def unrolled(model: ModelConfig, compute: Compute, *, gpu: bool | None = None) -> bool:
    """Whether layers are: it halves a small model's step on a GPU, and compiles a large one's for a minute. Where they
    are recomputed a loop is what keeps memory low. `gpu` says what it is for, where that is not this machine."""
    if compute.unroll is not None:
        return compute.unroll
    on_gpu = jax.default_backend() == "gpu" if gpu is None else gpu
    return on_gpu and costs.matmul_parameters(model) < UNROLLED and not compute.remat


# ---------------------------------------------------------------------------------------------------------------------
# Many adapters


class Bank(struct.PyTreeNode):
    """N adapters in training in one lane: each leaf has a leading axis N."""

    state: InnerState
    given: Given


class Rows(struct.PyTreeNode):
    """What E adapters read in one tick. A row at place N, past the last, is filler and changes nothing.

    Where E is N, every place of the bank has its row: row r is at place r, or filler.
    """

    places: Int[AnyArray, "E"]
    tokens: Int[AnyArray, "E B T"]
    loss_weight: Float[AnyArray, "E B T"]
    taught: Float[AnyArray, "E B T D"] | None = None  # hidden states of an in_context teacher


@partial(Program, static_argnames=("model", "recipe", "mesh"), donate_argnames="bank")
def tick(
    model: Model, params: dict[str, Any], bank: Bank, rows: Rows, *, recipe: Recipe, mesh: Mesh | None = None
) -> tuple[Bank, Metrics]:
    """One step of E of the bank's adapters: the bank after it, and metrics [E].

    The lanes of a `mesh` each hold the same bank, take their share of the B sequences of every step, and add up their
    gradients. Where there is one lane, or no mesh, nothing is split by rows.
    """
    together = sharding.lanes(mesh) > 1

    def many(params: dict[str, Any], bank: Bank, rows: Rows) -> tuple[Bank, Metrics]:
        everyone = len(rows.places) == len(bank.state.step)  # then nothing is taken out of the bank, or put back
        own = bank if everyone else jax.tree.map(lambda leaf: leaf[rows.places], bank)

        def one(own: Bank, rows: Rows) -> tuple[InnerState, Metrics]:
            axis, read = "adapter" if together else None, (rows.tokens, rows.loss_weight)
            return step(model, params, own.state, own.given, *read, recipe, rows_axis=axis, taught=rows.taught)

        states, metrics = jax.vmap(one)(own, rows)

        def put(leaf: Array, new: Array) -> Array:
            if everyone:
                takes_part = (rows.places < len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1))
                return jnp.where(takes_part, new, leaf)
            return leaf.at[rows.places].set(new, mode="drop")

        return bank.replace(state=jax.tree.map(put, bank.state, states)), metrics

    same, split = PartitionSpec(), PartitionSpec(None, "adapter")
    specs: Any = (same, same, Rows(same, split, split, split))  # type: ignore[arg-type]  # specs take the places of arrays
    bank, metrics = sharding.by_lane(many, mesh, specs, (same, same))(params, bank, rows)
    return sharding.constrained(bank, mesh), metrics


@partial(jax.jit, static_argnames=("optimiser", "places", "mesh"))
def _empty(start: Start, given: Given, *, optimiser: Optimiser, places: int, mesh: Mesh | None = None) -> Bank:
    one = Bank(begin(start, optimiser), given)
    return sharding.constrained(jax.tree.map(lambda leaf: jnp.zeros((places, *leaf.shape), leaf.dtype), one), mesh)


@partial(jax.jit, static_argnames=("optimiser", "mesh"), donate_argnames="bank")
def _put(
    bank: Bank, place: Int[Array, ""], start: Start, given: Given, *, optimiser: Optimiser, mesh: Mesh | None = None
) -> Bank:
    """The bank with an adapter before its first step, or before the next one, at a place."""
    one = Bank(begin(start, optimiser), given)
    return sharding.constrained(jax.tree.map(lambda leaf, new: leaf.at[place].set(new), bank, one), mesh)


class Lessons(NamedTuple):
    """What E adapters are trained on."""

    sequences: Sequence[Sequence[Tokens]]  # [E], of each adapter
    orders: Sequence[Int[np.ndarray, "S B"]]  # [E]: which of them each step reads; -1 is none
    taught: Mapping[int, Sequence[Float[np.ndarray, "T D"]]] | None = None  # [E]: an in_context teacher's states

    @property
    def batch_size(self) -> int:
        """Sequences of a step, at most."""
        return max((order.shape[1] for order in self.orders), default=1)

    def longest(self) -> list[Int[np.ndarray, "S"]]:
        """Tokens of the longest sequence of each step, by adapter."""
        found = []
        for own, order in zip(self.sequences, self.orders, strict=True):
            lengths = np.array([*(len(s.ids) for s in own), 0])  # -1 reads the last: none
            found.append(lengths[order].max(axis=1) if order.size else np.zeros(0, np.int64))
        return found

    def rows(self, tick: Tick, batch_size: int, places: int) -> Rows:
        """The arrays of one tick."""
        shape = (tick.size, batch_size, tick.width)
        index = np.full(tick.size, places, np.int32)
        tokens, loss_weight = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        taught = None
        for r, (adapter, number, place) in zip(tick.seats(places), tick.rows, strict=True):
            index[r], read = place, self.orders[adapter][number]
            tokens[r, : len(read)], loss_weight[r, : len(read)] = pad_rows(self.sequences[adapter], read, tick.width)
            for b, n in enumerate(read):
                if self.taught is not None and n >= 0:
                    states = self.taught[adapter][n]
                    taught = np.zeros((*shape, states.shape[1]), states.dtype) if taught is None else taught
                    taught[r, b, : len(states)] = states
        return Rows(index, tokens, loss_weight, taught)


def adapt_each(
    model: Model,
    params: dict[str, Any],
    start: Callable[[int], Start],
    lessons: Lessons,
    given: Given,
    recipe: Recipe,
    *,
    widths: Sequence[int],
    room: Room,
    mesh: Mesh | None = None,
    hosts: Hosts | None = None,
    skip: Collection[int] = (),
    watch: Callable[[int, int], None] | None = None,
    keep: Callable[[int, InnerState], None] | None = None,
) -> Iterator[tuple[int, Adapter, Metrics]]:
    """Trains E adapters; yields each one's number, itself and its metrics [S], on the host, as soon as it has finished.

    `start(e)` is adapter e before its first step, or a state that `keep` was called with: once an adapter has finished,
    with its number and all that its training could go on from, on the host. `given` has a leading axis E. With a `mesh`
    each lane has a bank, a schedule and its share of the adapters, and nothing is exchanged; a single adapter is
    trained by all of them, each on its share of a step's sequences. Of `hosts` each yields what its own devices
    trained. Adapters in `skip` are left out, and the ticks of all others are what they would be without: a run that is
    carried on computes the same numbers. `watch` is called with the tokens computed so far and in all. A diverged
    adapter holds NaN and changes no other: see `is_finite`.

    Raises:
        jax.errors.JaxRuntimeError: memory does not suffice.
    """
    longest = lessons.longest()
    count, batch_size, rows = sharding.lanes(mesh), lessons.batch_size, recipe.loss.rows
    together = count > 1 and len(longest) == 1
    if together:  # whole micro-batches for each lane
        micro = rows * math.gcd(recipe.compute.accumulate, batch_size // rows)
        count, batch_size = 1, round_up(batch_size, count * micro)
    first, everywhere = (count * hosts.index, count * hosts.count) if hosts else (0, count)
    places, planned = schedule.plan(longest, widths=widths, room=room, batch_size=batch_size, devices=everywhere)
    ticks = [_without(skip, own) for own in planned[first : first + count]]
    total = sum(schedule.computed_tokens(own, batch_size) for own in ticks)
    done, found = 0, {e: Metrics(*np.full((2, len(own)), np.nan, np.float32)) for e, own in enumerate(longest)}

    for e in sorted(found.keys() - set(skip)) if first == 0 else ():
        if not len(longest[e]):  # nothing to train on: it stays as it began
            yield e, jax.device_get(begin(start(e), recipe.optimiser).adapter), found.pop(e)

    if mesh is not None and lessons.taught is not None:
        # A teacher is read by all devices: not while lanes have programs of their own that exchange something.
        for e in sorted({row.adapter for own in ticks for tick in own for row in tick.rows}):
            lessons.taught[e]  # States computes what is wanted for the first time

    with contextlib.ExitStack() as stack:
        lanes = [
            stack.enter_context(_Lane(model, params, recipe, places, where)) for where in _lanes(params, mesh, together)
        ]
        for number, ticked in _by_turns(ticks):
            lane = lanes[number]
            arriving = {
                place: (start(e), jax.tree.map(lambda leaf, e=e: leaf[e], given))
                for e, n, place in ticked.rows
                if n == 0
            }
            lane.take(ticked, lessons.rows(ticked, batch_size, places), arriving)
            finished = [row for row in ticked.rows if row.step + 1 == len(longest[row.adapter])]
            lane.settle(found, leave=0 if finished else AHEAD)
            done += schedule.computed_tokens([ticked], batch_size)
            for adapter, _, place in finished:
                own = lane.adapter(place)
                if keep is not None:  # last: if reading it fails, its training can begin again from where it began
                    keep(adapter, lane.state(place))
                yield adapter, own, found.pop(adapter)
            if watch is not None:
                watch(done, total)


def _by_turns(ticks: Sequence[Sequence[Tick]]) -> Iterator[tuple[int, Tick]]:
    """All devices' ticks, (device, tick), in the order in which they would begin if a token took as long on each."""
    turns = []
    for device, own in enumerate(ticks):
        ends = itertools.accumulate(tick.width * tick.size for tick in own)
        turns += [(end - tick.width * tick.size, device, tick) for end, tick in zip(ends, own, strict=True)]
    return ((device, tick) for _, device, tick in sorted(turns, key=itemgetter(0, 1)))


def _without(skip: Collection[int], ticks: Sequence[Tick]) -> list[Tick]:
    """The ticks, less the rows of some adapters: the others keep their width and their company."""
    rest = [tick._replace(rows=[row for row in tick.rows if row.adapter not in skip]) for tick in ticks]
    return [tick for tick in rest if tick.rows]


def _lanes(params: dict[str, Any], mesh: Mesh | None, together: bool) -> list[Device | Mesh]:
    """Where adapters are trained: each lane of a mesh by itself, or all of them together."""
    if mesh is None:
        return [next(iter(jnp.asarray(jax.tree.leaves(params)[0]).devices()))]
    if together:
        return [mesh]
    if sharding.share(mesh) == 1:
        return list(mesh.devices.flat)
    return [sharding.lane(mesh, number) for number in range(sharding.lanes(mesh))]


def _on(device: Device, leaf: Any) -> Any:
    """What a device holds of a parameter that all have (nothing is copied); brought there where it holds nothing."""
    shards = leaf.addressable_shards if isinstance(leaf, jax.Array) else ()
    for shard in shards:
        if shard.device == device and shard.data.shape == leaf.shape:
            return shard.data
    return jax.device_put(leaf, device)


class _Lane:
    """A device, or a mesh of them that hold the model together (or share every row), its bank, and its ticks.

    It has a thread of its own: the first tick of a width compiles, and no other lane waits for that.
    """

    def __init__(self, model: Model, params: dict[str, Any], recipe: Recipe, places: int, where: Device | Mesh):
        self._model, self._recipe, self._places = model, recipe, places
        self._mesh, self._where = (where if isinstance(where, Mesh) else None), where
        self._params = (
            jax.tree.map(partial(_on, where), params) if self._mesh is None else sharding.on_lane(params, self._mesh)
        )
        self._bank: Bank | None = None
        self._thread = ThreadPoolExecutor(1)
        self._precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # one a thread
        self._pending: list[tuple[Tick, Future[Metrics]]] = []

    def __enter__(self) -> _Lane:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, ticked: Tick, rows: Rows, arriving: dict[int, tuple[Start, Given]]) -> None:
        """Starts a tick, for which new adapters take places first; it has not ended when this returns."""
        self._pending.append((ticked, self._thread.submit(self._take, rows, arriving)))

    def _take(self, rows: Rows, arriving: dict[int, tuple[Start, Given]]) -> Metrics:
        optimiser = self._recipe.optimiser
        for place, new in arriving.items():
            mine = self._placed(new)
            if self._bank is None:
                empty = _empty(*mine, optimiser=optimiser, places=self._places, mesh=self._mesh)
                self._bank = self._placed(empty)
            self._bank = _put(self._bank, np.int32(place), *mine, optimiser=optimiser, mesh=self._mesh)
        assert self._bank is not None  # an adapter's first step comes when it arrives
        with jax.default_matmul_precision(self._precision):
            self._bank, metrics = tick(
                self._model, self._params, self._bank, rows, recipe=self._recipe, mesh=self._mesh
            )
        return metrics

    def _placed(self, tree: Any) -> Any:
        where = self._where if self._mesh is None else sharding.shardings(tree, self._mesh)
        return jax.device_put(tree, where)

    def settle(self, found: dict[int, Metrics], *, leave: int) -> None:
        """Waits for all ticks but so many and notes what they reported."""
        while len(self._pending) > leave:
            ticked, started = self._pending.pop(0)
            values = jax.device_get(started.result())
            for r, (adapter, number, _) in zip(ticked.seats(self._places), ticked.rows, strict=True):
                found[adapter].loss[number], found[adapter].grad_norm[number] = values.loss[r], values.grad_norm[r]

    def adapter(self, place: int) -> Adapter:
        """What lies at a place, copied to the host. All ticks have ended."""
        assert self._bank is not None
        return jax.device_get(lora.take(self._bank.state.adapter, place))

    def state(self, place: int) -> InnerState:
        """The same, with its moments and its number of steps."""
        assert self._bank is not None
        return jax.device_get(jax.tree.map(lambda leaf: leaf[place], self._bank.state))


def is_finite(adapters: Adapter) -> Bool[np.ndarray, "E"]:
    """Which of E trained adapters hold numbers only."""
    leaves = [np.asarray(w) for w in jax.tree.leaves(adapters.weights)]
    finite = np.stack([np.isfinite(w).all(axis=tuple(range(1, w.ndim))) for w in leaves])
    return np.asarray(finite.all(axis=0))
