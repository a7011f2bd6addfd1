"""What each training sequence taught: a derivative through the inner loop, by one backward pass through its steps.

Sequence i of a self-edit has a weight w_i, 1 in training, that its loss is multiplied by in every step that reads it,
in all epochs; a step is clipped at the norm it has without weights, so that clipping does not undo them. At w_i = 0 the
sequence teaches nothing and all else stays: the same initialisation, order and rates. The credit of i is

    d F / d w_i  at w = 1,      F = mean over questions of the gold answer's log-likelihood, nats a token,

computed in reverse: the states of an adapter's steps are kept on the way forward, and on the way back each step turns
the derivative of F in the weights and moments after it into the one before it (Maclaurin et al. 2015, arXiv 1502.03492;
here nothing is reversed, states are kept). What that needs of the loss is one product of its Hessian with a vector, a
forward derivative of the gradient, which is computed once more for it: kept, what it is made of would take more memory
than all else. Adam, element by element, is differentiated as it is, with the derivative of a square root at 0 taken
as 0.

The steps are the trainer's own program (`inner.tick`), and adapters are rows here as they are there, a tick at a time
(schedule.py). States that do not all fit are kept for a window of steps: the window before is then computed again.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct

from seal_jax.engine import inner, memory, schedule
from seal_jax.engine.batching import Tokens, pad_rows, round_up
from seal_jax.engine.costs import FLOAT32
from seal_jax.engine.inner import Bank, Given, InnerState, Lessons, Recipe, Rows
from seal_jax.engine.schedule import Room, Tick
from seal_jax.engine.training import Trainer, begin_each, room_of, sharing, widths_for
from seal_jax.nn import lora, sharding, transformer
from seal_jax.nn.lora import Adapter
from seal_jax.nn.losses import next_token, token_losses
from seal_jax.nn.transformer import Model
from seal_jax.types import AnyArray, LanguageModel, Settings

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Float, Int

SHARE = 0.7  # of a device's free memory that is worked in
AT_WORK = 0.5  # of that, what a step back may take at the most; the rest is for states
STEP_BACK = 4  # times what a training step keeps for its backward pass: read off XLA's buffers
COPIES = 4  # of an adapter: its derivatives and Adam's, while a step is taken back
MOST_ROWS_ON_CPU, MOST_ROWS = 4, 16  # adapters whose states are kept at a time on a device
MOST_HALVINGS = 5  # of what a device holds, where memory does not suffice


class Credit(NamedTuple):
    """What became of one adapter, and why."""

    adapter: Adapter  # trained, on the host
    likelihood: float  # F, nats a token
    lines: Float[np.ndarray, "N"]  # dF / dw of each of its sequences; NaN where it diverged


class Adjoint(struct.PyTreeNode):
    """The derivative of F in what an adapter's step begins with: the trained weights and Adam's two moments."""

    weights: Any
    mean: Any
    square: Any


def credit_each(
    lm: LanguageModel,
    edits: Sequence[Sequence[Tokens]],
    golds: Sequence[Sequence[Tokens]],
    trainer: Trainer,
    *,
    seed: int | Sequence[int],
    settings: Sequence[Settings | None] | None = None,
    curvature: bool = True,
    room: float | None = None,
) -> list[Credit]:
    """Trains an adapter on each of E self-edits' sequences, as `training.train_each` does, and credits each sequence.

    Args:
      golds: [E][Q], a question's prompt and its gold answer, whose loss begins where the answer does.
      curvature: without it a step's gradient counts as constant, whatever the weights are before it. A backward pass
        is then about as long as the forward one, half of what it is else, and the derivative is not exact: what a
        sequence moved is credited by the gold answers' gradient at the end, through Adam's moments (near to TracIn,
        Pruthi et al. 2020, arXiv 2002.08484).
      room: bytes on each device to work in; by default those of `free_room`. It decides which steps are taken together,
        and so the last bits of the result: a run that is carried on gives it as it was.

    If a device runs out of memory it goes on with fewer adapters and less room, which is said; what is finished is not
    done again. A signal, or an error elsewhere, ends it after the step at work.

    Raises:
      ValueError: as `require_creditable` and `train_each`.
    """
    require_creditable(lm, trainer)
    room = free_room(lm) if room is None else room
    lessons, hparams, start = begin_each(lm, edits, trainer, seed=seed, settings=settings)
    hosts = sharing(lm, len(edits))
    devices = inner._lanes(lm.params, lm.mesh, False)
    everywhere, first = (hosts.count, hosts.index) if hosts else (1, 0)
    lanes = len(devices) * everywhere
    parameters = sum(leaf.size for leaf in jax.tree.leaves(lm.params))
    widths, places = widths_for(parameters, lessons, trainer, lanes), room_of(trainer, lanes)
    shares = schedule.share(lessons.longest(), lanes)
    shares[0] += [e for e, sequences in enumerate(edits) if not sequences]  # nothing to credit: F alone
    shares, stop = shares[first * len(devices) : (first + 1) * len(devices)], threading.Event()
    recipe = Recipe(trainer.config.optimiser, trainer.loss, trainer.compute)
    golden, precision = _padded(golds), jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # one a thread

    def of_lane(number: int) -> dict[int, Credit]:
        lane = _Lane(lm, recipe, lessons, widths, places, golden, curvature, room, devices[number], stop, trainer)
        found: dict[int, Credit] = {}
        with jax.default_matmul_precision(precision):
            waiting = shares[number]
            lane.rows = min(lane.rows, max(1, len(waiting)))
            while waiting:
                group, waiting = waiting[: lane.rows], waiting[lane.rows :]
                given = [Given(jax.tree.map(lambda leaf, e=e: leaf[e], hparams)) for e in group]
                try:
                    found |= lane.credit(group, [start(e) for e in group], given)
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error) or lane.halved == MOST_HALVINGS:
                        raise
                    before, waiting = lane.rows, [*group, *waiting]
                    lane.halve()
                    trainer.chunk.say(
                        f"not enough device memory for the credit of {before} adapters at a time: going on with "
                        f"{lane.rows}, and half the room for their states"
                    )
        return found

    with ThreadPoolExecutor(len(devices)) as pool:
        try:
            parts = [*pool.map(of_lane, range(len(devices)))]
        except BaseException:
            stop.set()  # or leaving the pool waits for all groups of all lanes
            raise
    if hosts is not None:
        parts = [part for own in hosts.gather(parts) for part in own]
    found = {e: one for part in parts for e, one in part.items()}
    return [found[e] for e in range(len(edits))]


def require_creditable(lm: LanguageModel, trainer: Trainer) -> None:
    """Raises ValueError for what has no credit by gradient: a loss that compares sequences or has a teacher, dropout
    over parts of a step, a model that is split over devices."""
    if trainer.loss.teacher != "none" or trainer.loss.total is not next_token.total:
        raise ValueError("credit by gradient is for losses that are a sum over tokens, without a teacher")
    if trainer.config.optimiser.dropout and math.gcd(trainer.compute.accumulate, trainer.config.batch_size) > 1:
        raise ValueError("credit by gradient with dropout wants a step in one part; use --compute.accumulate 1")
    if sharding.share(lm.mesh) > 1:
        raise ValueError(
            "credit by gradient wants the whole model on each device; use --compute.mesh with fsdp and tensor at 1"
        )


def free_room(lm: LanguageModel) -> float:
    """Bytes on each device to work in: most of what is free; of a CPU's memory half, for others work there too."""
    return SHARE * min(map(_free, inner._lanes(lm.params, lm.mesh, False)))


def _free(device: Any) -> float:
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return memory.available() / jax.local_device_count() / 2


def _padded(golds: Sequence[Sequence[Tokens]]) -> tuple[Int[np.ndarray, "E Q T"], Float[np.ndarray, "E Q T"]]:
    """Questions with their answers, and each token's weight in F."""
    width = round_up(max((len(s.ids) for own in golds for s in own), default=1), 8)
    count = max(1, *map(len, golds))
    tokens, weight = np.zeros((2, len(golds), count, width))
    for e, own in enumerate(golds):
        tokens[e, : len(own)], each = pad_rows(own, range(len(own)), width)
        weight[e, : len(own)] = each / np.maximum(each.sum(axis=1, keepdims=True), 1) / max(1, len(own))
    return tokens.astype(np.int32), weight.astype(np.float32)


class _Lane:
    """A device: its share of the adapters, some at a time, forward and back."""

    def __init__(
        self, lm: LanguageModel, recipe: Recipe, lessons: Lessons, widths: Sequence[int], places: Room,
        golden: tuple[np.ndarray, np.ndarray], curvature: bool, room: float, device: Any, stop: threading.Event,
        trainer: Trainer,
    ):  # fmt: skip
        self._model, self._device, self._stop = lm.model, device, stop
        self._params = jax.tree.map(partial(inner._on, device), lm.params)
        self._twice = _differentiable(lm.model, self._params)
        self._recipe, self._lessons, self._widths, self._places = recipe, lessons, widths, places
        self._at_work = {width: step_back(lm, trainer, width, on_cpu=device.platform == "cpu") for width in widths}
        self._golden, self._curvature, self._room = golden, curvature, room
        # Layers one after another would compile for minutes here: unless it is asked for, they are a loop.
        looped = dataclasses.replace(recipe.compute, unroll=bool(recipe.compute.unroll))
        self._looped = recipe._replace(compute=looped)
        self.rows = min(MOST_ROWS_ON_CPU if device.platform == "cpu" else MOST_ROWS, places.places)
        self.halved = 0

    def halve(self) -> None:
        """Fewer adapters at a time, and half the room for what is kept and at work."""
        self.rows, self._room, self.halved = max(1, self.rows // 2), self._room / 2, self.halved + 1

    def credit(self, group: Sequence[int], adapters: Sequence[Adapter], given: Sequence[Given]) -> dict[int, Credit]:
        """Trains a group of adapters and credits their sequences."""
        batch_size, optimiser = self._lessons.batch_size, self._recipe.optimiser
        places = min(self._places.places, _power_of_two(self.rows))  # as in training: one program
        filled = [*range(len(group)), *[0] * (places - len(group))]
        stacked = jax.tree.map(lambda *leaves: jnp.stack([leaves[r] for r in filled]), *adapters)
        mine = jax.tree.map(lambda *leaves: np.stack([leaves[r] for r in filled]), *given)
        state = jax.vmap(lambda adapter: inner.begin(adapter, optimiser))(stacked)
        bank: Bank = jax.device_put(Bank(state, mine), self._device)
        longest = {e: self._lessons.longest()[e] for e in group}
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(bank.state)) / places
        steps = max(map(len, longest.values()))
        room, at_work = _fitting(self._places._replace(places=places), self._room, self._at_work, batch_size)
        window = _window(steps, self._room - at_work - places * size, size, places)  # beside the adjoints

        def ticks(begin: int) -> list[Tick]:
            """Those of one window of steps; an adapter's place is its number in the group."""
            own = [longest[e][begin : begin + window] for e in group]
            there = [r for r, lengths in enumerate(own) if len(lengths)]
            planned = schedule.schedule(own, there, widths=self._widths, room=room, batch_size=batch_size)
            rename = lambda row: row._replace(adapter=group[row.adapter], step=row.step + begin, place=row.adapter)
            return [tick._replace(rows=[rename(row) for row in tick.rows]) for tick in planned]

        begins, before = range(0, max(1, steps), window), []
        for begin in begins[:-1]:
            before.append(jax.tree.map(jnp.copy, bank))
            for ticked in ticks(begin):
                bank, _ = self._step(bank, ticked)
        credits = {e: np.zeros(len(self._lessons.sequences[e])) for e in group}
        trained: Adapter | None = None
        for begin in reversed(begins):
            own = ticks(begin)
            tape = []
            for ticked in own:
                there = [row.place for row in ticked.rows]
                there += [0] * (min(places, _power_of_two(len(there))) - len(there))  # few sizes, few programs
                kept = _gather(bank.state, np.array(there, np.int32))
                bank, rows = self._step(bank, ticked)
                tape.append((ticked, rows, kept))
            if trained is None:
                trained = jax.device_get(bank.state.adapter)
                values, adjoint = self._asked(bank.state.adapter, group, places)
            found = []
            while tape:  # what is done with is dropped
                if self._stop.is_set():
                    raise CancelledError
                ticked, rows, kept = tape.pop()
                index = np.zeros(ticked.size, np.int32)
                seats = [*ticked.seats(places)]
                index[seats] = np.arange(len(seats))
                adjoint, share = _backward(
                    self._twice, self._params, _gather(kept, index), bank.given, adjoint, rows,
                    recipe=self._looped, curvature=self._curvature,
                )  # fmt: skip
                found.append((ticked, seats, share))
            for ticked, seats, share in found:
                for row, shares in zip(ticked.rows, np.asarray(share)[seats], strict=True):
                    read = self._lessons.orders[row.adapter][row.step]
                    np.add.at(credits[row.adapter], read[read >= 0], shares[: len(read)][read >= 0])
            if before:
                bank = before.pop()
        assert trained is not None
        return {e: Credit(lora.take(trained, r), float(values[r]), credits[e]) for r, e in enumerate(group)}

    def _step(self, bank: Bank, ticked: Tick) -> tuple[Bank, Rows]:
        if self._stop.is_set():
            raise CancelledError
        rows = self._lessons.rows(ticked, self._lessons.batch_size, len(bank.state.step))
        rows = jax.device_put(rows, self._device)
        bank, _ = inner.tick(self._model, self._params, bank, rows, recipe=self._recipe)
        return bank, rows

    def _asked(self, adapters: Adapter, group: Sequence[int], places: int) -> tuple[np.ndarray, Adjoint]:
        """F of each adapter, and the derivative of it that the backward pass begins with."""
        tokens, weight = (side[np.resize(group, places)] for side in self._golden)
        at_once = min(places, schedule.rows_of(tokens.shape[2], self._places, tokens.shape[1]))
        values, slopes = list[np.ndarray](), list[Any]()
        for begin in range(0, places, at_once):
            part = slice(begin, begin + at_once)
            value, slope = _gold(
                self._twice, self._params, lora.take(adapters, part), tokens[part], weight[part],
                chunk=self._recipe.compute.loss_chunk,
            )  # fmt: skip
            values.append(np.asarray(value))
            slopes.append(slope)
        slope = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *slopes)
        zero = jax.tree.map(jnp.zeros_like, slope)
        return np.concatenate(values), Adjoint(slope, zero, jax.tree.map(jnp.copy, zero))


def _differentiable(model: Model, params: dict[str, Any]) -> Model:
    """The model with attention that can be differentiated twice: XLA's."""
    decoder = nnx.merge(model, params)
    return (
        transformer.graph(decoder.config, decoder.embed.embedding[...].dtype)
        if decoder.blocks.attention != "xla"
        else model
    )


def step_back(lm: LanguageModel, trainer: Trainer, width: int, *, on_cpu: bool) -> float:
    """Bytes that one adapter's step of this width takes on its way back, about."""
    itemsize = lm.params["final_norm"]["scale"].dtype.itemsize
    machine = memory.Machine(0, 1, FLOAT32 if on_cpu else itemsize, on_cpu)
    compute = dataclasses.replace(trainer.compute, accumulate=1, unroll=False)
    config, shapes = trainer.config, nnx.merge(lm.model, lm.params).config
    need = memory.training(shapes, config, compute, machine, adapters=1, width=width)
    return STEP_BACK * need.activations + need.logits + COPIES * memory.adapter_bytes(shapes, config, machine)


def _fitting(room: Room, memory: float, at_work: dict[int, float], batch_size: int) -> tuple[Room, float]:
    """The room with no more tokens at a time than leave memory for states; and the bytes that a tick takes, at most."""
    while True:
        rows = {width: schedule.rows_of(width, room, batch_size) for width in at_work}
        most = max(rows[width] * each for width, each in at_work.items())
        if most <= AT_WORK * memory or max(rows.values()) == 1:
            return room, most
        room = room._replace(tokens=room.tokens // 2)


def _window(steps: int, memory: float, size: float, places: int) -> int:
    """Steps whose states are kept at a time: as many as fit, of the adapters of all places, with the bank that each
    window begins with; the fewest are those that take least."""
    least = max(1, math.isqrt(max(0, steps - 1)) + 1)
    for windows in range(1, least):
        window = -(-steps // windows)
        if (window + windows) * places * size <= memory:
            return window
    return least


def _power_of_two(size: int) -> int:
    """The first that is as large."""
    return 1 << max(0, size - 1).bit_length()


@jax.jit
def _gather(tree: Any, index: Int[AnyArray, "N"]) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


# ---------------------------------------------------------------------------------------------------------------------
# The derivative


@partial(jax.jit, static_argnames=("model", "chunk"))
def _gold(
    model: Model,
    params: dict[str, Any],
    adapters: Adapter,
    tokens: Int[AnyArray, "E Q T"],
    weight: Float[AnyArray, "E Q T"],
    *,
    chunk: int,
) -> tuple[Float[Array, "E"], Any]:
    """F of each adapter, and its derivative in the adapter's weights."""

    def likelihood(weights: Any, adapter: Adapter, tokens: Array, weight: Array) -> Array:
        decoder = nnx.merge(model, params)
        hidden, _ = decoder(tokens, adapter=adapter.replace(a=weights[0], b=weights[1]))
        each = token_losses(next_token, decoder.head(), hidden[:, :-1], tokens[:, 1:], chunk=chunk)
        return -jnp.sum(jnp.where(weight[:, 1:] != 0, each, 0) * weight[:, 1:])

    one = lambda adapter, *asked: jax.value_and_grad(likelihood)((adapter.a, adapter.b), adapter, *asked)
    return jax.vmap(one)(adapters, tokens, weight)


@partial(jax.jit, static_argnames=("model", "recipe", "curvature"), donate_argnames="adjoints")
def _backward(
    model: Model,
    params: dict[str, Any],
    states: InnerState,
    given: Given,
    adjoints: Adjoint,
    rows: Rows,
    *,
    recipe: Recipe,
    curvature: bool,
) -> tuple[Adjoint, Float[Array, "E B"]]:
    """One tick's steps in reverse. `states` [E] are those before it; `given` and `adjoints` [N] are of all adapters.

    Returns the derivatives of F in what the steps began with, and in the weight of each sequence that they read.
    """
    own = jax.tree.map(lambda leaf: leaf[rows.places], (given, adjoints))

    def back(*one: Any) -> tuple[Adjoint, Array]:
        return _step_back(model, params, *one, recipe=recipe, curvature=curvature)

    new, shares = jax.vmap(back)(states, *own, rows.tokens, rows.loss_weight)
    put = lambda leaf, value: leaf.at[rows.places].set(value, mode="drop")
    return jax.tree.map(put, adjoints, new), shares


def _step_back(
    model: Model,
    params: dict[str, Any],
    state: InnerState,
    given: Given,
    adjoint: Adjoint,
    tokens: Int[Array, "B T"],
    loss_weight: Float[Array, "B T"],
    *,
    recipe: Recipe,
    curvature: bool,
) -> tuple[Adjoint, Float[Array, "B"]]:
    """`inner.step` of one adapter in reverse: a Jacobian-vector product of its gradient, and Adam's derivative."""
    optimiser, loss, compute = recipe
    forward, key = inner.reading(model, params, state, given, recipe)
    weights = (state.adapter.a, state.adapter.b)
    trained = jnp.maximum(jnp.sum(loss_weight[:, 1:] != 0), 1)

    def losses(weights: Any) -> tuple[Array, Float[Array, "B"]]:
        hidden, head, _ = forward(weights, tokens, key)
        each = token_losses(
            loss, head, hidden[:, :-1], tokens[:, 1:], chunk=compute.loss_chunk, numbers=given.hparams.numbers
        )
        weight = loss_weight[:, 1:]
        by_row = jnp.sum(jnp.where(weight != 0, each, 0) * weight, axis=1) / trained
        return jnp.sum(by_row), by_row

    def stepped(weights: Any, mean: Any, square: Any, clipped: Any) -> tuple[Any, Any, Any]:
        rate = inner.learning_rate(optimiser, given.hparams, state.step)
        return adam(weights, mean, square, clipped, state.step, rate, optimiser)

    moments = [optax.tree_utils.tree_get(state.moments, name) for name in ("mu", "nu")]
    slope = jax.grad(losses, has_aux=True)
    gradient, _ = slope(weights)
    clipped, clip_back = jax.vjp(partial(clip, norm=optimiser.clip_norm), gradient)
    _, adam_back = jax.vjp(stepped, weights, *moments, clipped)
    before, mean, square, of_clipped = adam_back((adjoint.weights, adjoint.mean, adjoint.square))
    (direction,) = clip_back(of_clipped)

    def push(direction: Any) -> tuple[Any, Array]:
        """How the gradient and each sequence's loss change. Behind the barrier both are computed anew: kept from above,
        what they are made of takes twice the memory, and longer."""
        again, direction = jax.lax.optimization_barrier((weights, direction))
        return jax.jvp(slope, (again,), (direction,))[1]

    if curvature:
        before = jax.tree.map(jnp.add, before, push(direction)[0])
    if len(tokens) == 1:
        share = _dot(clipped, of_clipped)[None]
    else:  # the norm that a step is clipped at is constant here
        factor = _factor(gradient, optimiser.clip_norm)
        _, share = push(jax.tree.map(lambda x: factor * x, of_clipped))
    return Adjoint(before, mean, square), share


def adam(
    weights: Any, mean: Any, square: Any, gradient: Any, step: AnyArray, rate: AnyArray, optimiser: inner.Optimiser
) -> tuple[Any, Any, Any]:
    """What `inner.update` does of a clipped gradient, with a derivative that is finite at a second moment of 0."""
    b1, b2, taken = optimiser.b1, optimiser.b2, step + 1
    mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mean, gradient)
    square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, square, gradient)

    def moved(w: Array, m: Array, v: Array) -> Array:
        there = v > 0
        root = jnp.where(there, jnp.sqrt(jnp.where(there, v, 1) / (1 - b2**taken)), 0)
        return w - rate * (m / (1 - b1**taken) / (root + optimiser.eps) + optimiser.weight_decay * w)

    return jax.tree.map(moved, weights, mean, square), mean, square


def clip(gradient: Any, *, norm: float) -> Any:
    """A gradient of at most this norm, with a derivative that is finite at 0."""
    factor = _factor(gradient, norm)
    return jax.tree.map(lambda g: factor * g, gradient)


def _factor(gradient: Any, norm: float) -> Array:
    square = _dot(gradient, gradient)
    over = square > norm * norm
    return jnp.where(over, norm * jax.lax.rsqrt(jnp.where(over, square, 1)), 1)


def _dot(a: Any, b: Any) -> Array:
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)), jnp.zeros(()))
