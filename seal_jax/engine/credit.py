"""What each training sequence taught: a derivative through the inner loop, by one backward pass through its steps.

Sequence i of a self-edit has a weight w_i, 1 in training, that its loss is multiplied by in every step that reads it,
in all epochs; a step is clipped at the norm it has without weights, so that clipping does not undo them. At w_i = 0 the
sequence teaches nothing and all else stays: the same initialisation, order and rates. The credit of i is

    d F / d w_i  at w = 1,      F = mean over questions of the gold answer's log-likelihood, nats a token,

computed in reverse: the states of an adapter's steps are kept on the way forward, and on the way back each step turns
the derivative of F in the weights and moments after it into the one before it (Maclaurin et al. 2015, arXiv 1502.03492;
here nothing is reversed, states are kept). What that needs of the loss is one product of its Hessian with a vector, a
forward derivative of the gradient; Adam, element by element, is differentiated as it is, with the derivative of a
square root at 0 taken as 0.

The steps are the trainer's own program (`inner.tick`), and adapters are rows here as they are there, a tick at a time
(schedule.py). States that do not all fit are kept for a window of steps: the window before is then computed again.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct

from seal_jax.engine import inner, schedule
from seal_jax.engine.batching import Tokens, pad_rows, round_up
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

SHARE = 0.7  # of a device's free memory that states are kept in
MOST_ROWS_ON_CPU, MOST_ROWS = 4, 16  # adapters whose states are kept at a time on a device


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
    memory: float | None = None,
) -> list[Credit]:
    """Trains an adapter on each of E self-edits' sequences, as `training.train_each` does, and credits each sequence.

    Args:
      golds: [E][Q], a question's prompt and its gold answer, whose loss begins where the answer does.
      curvature: without it a step's gradient counts as constant, whatever the weights are before it. A backward pass
        is then about as long as the forward one, half of what it is else, and the derivative is not exact: what a
        sequence moved is credited by the gold answers' gradient at the end, through Adam's moments (near to TracIn,
        Pruthi et al. 2020, arXiv 2002.08484).
      memory: bytes on each device in which states are kept; by default most of what is free.

    Raises:
      ValueError: a loss that compares sequences or has a teacher; a model that is split over devices; as `train_each`.
    """
    if trainer.loss.teacher != "none" or trainer.loss.total is not next_token.total:
        raise ValueError("credit by gradient is for losses that are a sum over tokens, without a teacher")
    if sharding.share(lm.mesh) > 1:
        raise ValueError(
            "credit by gradient wants the whole model on each device; use --compute.mesh with fsdp and tensor at 1"
        )
    lessons, hparams, start = begin_each(lm, edits, trainer, seed=seed, settings=settings)
    hosts = sharing(lm, len(edits))
    devices = inner._lanes(lm.params, lm.mesh, False)
    everywhere, first = (hosts.count, hosts.index) if hosts else (1, 0)
    lanes = len(devices) * everywhere
    parameters = sum(leaf.size for leaf in jax.tree.leaves(lm.params))
    widths, room = widths_for(parameters, lessons, trainer, lanes), room_of(trainer, lanes)
    shares = schedule.share(lessons.longest(), lanes)[first * len(devices) : (first + 1) * len(devices)]
    recipe = Recipe(trainer.config.optimiser, trainer.loss, trainer.compute)
    golden, precision = _padded(golds), jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # one a thread

    def of_lane(number: int) -> dict[int, Credit]:
        lane = _Lane(lm, recipe, lessons, widths, room, golden, curvature, memory, devices[number])
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
                    if "RESOURCE_EXHAUSTED" not in str(error) or lane.rows == 1:
                        raise
                    lane.rows, waiting = max(1, lane.rows // 2), [*group, *waiting]
                    trainer.chunk.say(f"not enough device memory for the states of {2 * lane.rows} adapters: going on")
        return found

    with ThreadPoolExecutor(len(devices)) as pool:
        parts = [*pool.map(of_lane, range(len(devices)))]
    if hosts is not None:
        parts = [part for own in hosts.gather(parts) for part in own]
    found = {e: one for part in parts for e, one in part.items()}
    return [found[e] for e in range(len(edits))]


def _padded(golds: Sequence[Sequence[Tokens]]) -> tuple[Int[np.ndarray, "E Q T"], Float[np.ndarray, "E Q T"]]:
    """Questions with their answers, and each token's weight in F."""
    width = round_up(max((len(s.ids) for own in golds for s in own), default=1), 8)
    count = max(map(len, golds))
    tokens, weight = np.zeros((2, len(golds), count, width))
    for e, own in enumerate(golds):
        tokens[e, : len(own)], each = pad_rows(own, range(len(own)), width)
        weight[e, : len(own)] = each / np.maximum(each.sum(axis=1, keepdims=True), 1) / max(1, len(own))
    return tokens.astype(np.int32), weight.astype(np.float32)


class _Lane:
    """A device: its share of the adapters, some at a time, forward and back."""

    def __init__(
        self, lm: LanguageModel, recipe: Recipe, lessons: Lessons, widths: Sequence[int], room: Room,
        golden: tuple[np.ndarray, np.ndarray], curvature: bool, memory: float | None, device: Any,
    ):  # fmt: skip
        self._model, self._device = lm.model, device
        self._params = jax.tree.map(partial(inner._on, device), lm.params)
        self._twice = _differentiable(lm.model, self._params)
        self._recipe, self._lessons, self._widths, self._room = recipe, lessons, widths, room
        self._golden, self._curvature, self._memory = golden, curvature, memory
        # Layers one after another would compile for minutes here: unless it is asked for, they are a loop.
        looped = dataclasses.replace(recipe.compute, unroll=bool(recipe.compute.unroll))
        self._looped = recipe._replace(compute=looped)
        self.rows = min(MOST_ROWS_ON_CPU if device.platform == "cpu" else MOST_ROWS, room.places)

    def credit(self, group: Sequence[int], adapters: Sequence[Adapter], given: Sequence[Given]) -> dict[int, Credit]:
        """Trains a group of adapters and credits their sequences."""
        batch_size, optimiser = self._lessons.batch_size, self._recipe.optimiser
        places = 1 << max(0, self.rows - 1).bit_length()
        filled = [*range(len(group)), *[0] * (places - len(group))]
        stacked = jax.tree.map(lambda *leaves: jnp.stack([leaves[r] for r in filled]), *adapters)
        mine = jax.tree.map(lambda *leaves: np.stack([leaves[r] for r in filled]), *given)
        state = jax.vmap(lambda adapter: inner.begin(adapter, optimiser))(stacked)
        bank: Bank = jax.device_put(Bank(state, mine), self._device)
        longest = {e: self._lessons.longest()[e] for e in group}
        room = self._room._replace(places=places)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(bank.state)) / places
        steps = max(map(len, longest.values()))
        window = _window(steps, self._memory or SHARE * _free(self._device), size, len(group), places)

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
                kept = _gather(bank.state, np.array([row.place for row in ticked.rows], np.int32))
                bank, rows = self._step(bank, ticked)
                tape.append((ticked, rows, kept))
            if trained is None:
                trained = jax.device_get(bank.state.adapter)
                values, adjoint = self._asked(bank.state.adapter, group, places)
            found = []
            while tape:  # what is done with is dropped
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
        rows = self._lessons.rows(ticked, self._lessons.batch_size, len(bank.state.step))
        rows = jax.device_put(rows, self._device)
        bank, _ = inner.tick(self._model, self._params, bank, rows, recipe=self._recipe)
        return bank, rows

    def _asked(self, adapters: Adapter, group: Sequence[int], places: int) -> tuple[np.ndarray, Adjoint]:
        """F of each adapter, and the derivative of it that the backward pass begins with."""
        tokens, weight = (side[np.resize(group, places)] for side in self._golden)
        at_once = schedule.rows_of(tokens.shape[2], self._room, tokens.shape[1])
        at_once = 1 << (min(at_once, places).bit_length() - 1)  # a divisor of the places
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


def _free(device: Any) -> float:
    """Bytes that a device has left; those of a CPU share half of its memory, for others work there too."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    pages = os.sysconf("SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES")
    return os.sysconf("SC_PAGE_SIZE") * pages / jax.local_device_count() / 2


def _window(steps: int, memory: float, size: float, rows: int, places: int) -> int:
    """Steps whose states are kept at a time: as many as fit, of `rows` adapters, with the bank of `places` that each
    window begins with; the fewest are those that take least."""
    least = max(1, math.isqrt(max(0, steps - 1)) + 1)
    for windows in range(1, least):
        window = -(-steps // windows)
        if (window * rows + windows * places) * size <= memory:
            return window
    return least


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
    (gradient, _), push = jax.linearize(jax.grad(losses, has_aux=True), weights)
    clipped, clip_back = jax.vjp(partial(clip, norm=optimiser.clip_norm), gradient)
    _, adam_back = jax.vjp(stepped, weights, *moments, clipped)
    before, mean, square, of_clipped = adam_back((adjoint.weights, adjoint.mean, adjoint.square))
    (direction,) = clip_back(of_clipped)
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
