"""From training sequences to the arrays of the inner loop. Strings stop here. Host code, NumPy.

Adapters that train together pay, at each step, for the longest of their current sequences. With independent shuffles
that wasted 5.7 times the useful work at 15 adapters (docs/log.md). So each self-edit's sequences are sorted by length,
and one random permutation of *ranks* is shared: every self-edit still sees its own sequences in a uniformly random
order, but all adapters are at their longest, or their shortest, together; and a step is cut to what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from seal_jax.types import AnyArray, Codec, Example, TokenBatch

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Bool, Int


class Tokens(NamedTuple):
    """One training sequence: ids, and where the loss begins."""

    ids: list[int]
    loss_from: int  # the first id that is trained on (predicted)
    weight: float = 1.0  # in the loss, of each id from there on


def tokenize(example: Example, codec: Codec) -> Tokens:
    """Prompt and completion are encoded apart, so that the boundary falls where it will at sampling time."""
    if not example.prompt:
        return Tokens(codec.encode(example.completion), 0, example.weight)
    prompt = codec.encode(example.prompt)
    return Tokens(prompt + codec.encode_more(example.completion), len(prompt), example.weight)


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is at least n."""
    return math.ceil(n / multiple) * multiple


def bucket_widths(longest: int, cuts: Sequence[int], multiple: int = 8) -> tuple[int, ...]:
    """The widths that steps may be cut to: the `cuts` shorter than `longest`, and `longest` rounded up."""
    top = round_up(longest, multiple)
    return (*(cut for cut in sorted(set(cuts)) if cut < top), top)


def by_size(edits: Sequence[Sequence[Tokens]], chunk: int, own_epochs: Sequence[int] | None = None) -> list[list[int]]:
    """Indices of self-edits in groups of `chunk`, like with like (sequences, times epochs where these differ; tokens).

    Adapters that train together go on until the last has finished.
    """

    def size(e: int) -> tuple[int, int, int]:
        epochs = own_epochs[e] if own_epochs is not None else 1
        return epochs * len(edits[e]), epochs * sum(len(s.ids) for s in edits[e]), e

    order = sorted(range(len(edits)), key=size)
    return [order[start : start + chunk] for start in range(0, len(order), chunk)]


def num_steps(sequences: int, *, epochs: int, batch_size: int) -> int:
    """Optimiser steps for so many sequences."""
    return epochs * math.ceil(sequences / batch_size)


def shuffle(
    counts: Sequence[int],
    *,
    capacity: int,
    epochs: int,
    batch_size: int,
    seed: int,
    own_epochs: Sequence[int] | None = None,
) -> Int[np.ndarray, "E S B"]:
    """The order of steps: for each self-edit a seeded shuffle of its rows each epoch, rank-aligned between them.

    `epochs` fixes the shape; a self-edit with fewer of its own (`own_epochs`) rests once it has had them. What one
    self-edit gets depends on the seed, the capacity and its own count, never on its neighbours. With batches of one, a
    self-edit sits out the ranks it does not have (-1), which keeps the others aligned; larger batches are filled up in
    each self-edit's own order, the last of an epoch being smaller.
    """
    rng = np.random.default_rng(seed)
    steps = math.ceil(capacity / batch_size)
    order = np.full((len(counts), epochs, steps * batch_size), -1, np.int32)
    for epoch in range(epochs):
        permutation = np.argsort(rng.random(capacity), kind="stable")
        for e, count in enumerate(counts):
            if own_epochs is not None and epoch >= own_epochs[e]:
                continue
            if batch_size == 1:
                order[e, epoch] = np.where(permutation < count, permutation, -1)
            else:
                order[e, epoch, :count] = permutation[permutation < count]
    return order.reshape(len(counts), epochs * steps, batch_size)


def make_batch(
    edits: Sequence[Sequence[Tokens]],
    *,
    epochs: int,
    batch_size: int,
    widths: tuple[int, ...],
    capacity: int,
    seed: int,
    own_epochs: Sequence[int] | None = None,
) -> TokenBatch:
    """E self-edits' sequences as one TokenBatch of fixed shape [E, capacity, widths[-1]], so that one program fits all.

    Raises:
        ValueError: a self-edit of more than `capacity` sequences, or of more than `epochs` epochs; a sequence longer
            than the last width.
    """
    for e, own in enumerate(own_epochs or ()):
        if not 1 <= own <= epochs:
            raise ValueError(f"self-edit {e} asks for {own} epochs; there is room for 1 to {epochs}")
    shape = (len(edits), capacity, widths[-1])
    tokens, loss_weight = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    lengths = np.zeros(shape[:2], np.int32)
    for e, sequences in enumerate(edits):
        if len(sequences) > capacity:
            raise ValueError(f"self-edit {e} has {len(sequences)} training sequences; there is room for {capacity}")
        for n, (ids, loss_from, weight) in enumerate(sorted(sequences, key=lambda s: -len(s.ids))):
            if len(ids) > widths[-1]:
                raise ValueError(
                    f"self-edit {e}: a training sequence of {len(ids)} tokens; the widest step has {widths[-1]}"
                )
            tokens[e, n, : len(ids)] = ids
            loss_weight[e, n, loss_from : len(ids)] = weight
            lengths[e, n] = len(ids)
    counts = [len(sequences) for sequences in edits]
    order = shuffle(
        counts, capacity=capacity, epochs=epochs, batch_size=batch_size, seed=seed, own_epochs=own_epochs
    )  # fmt: skip
    return TokenBatch(tokens, loss_weight, lengths, order, widths)


class Plan(NamedTuple):
    """The steps that one device takes, in order: those in which any of its adapters has a row."""

    steps: Int[AnyArray, "S"]  # into `order`; what follows the first `num_steps` are filler
    width_index: Int[AnyArray, "S"]  # into `widths`: the narrowest that holds all its rows
    num_steps: Int[AnyArray, ""]


def make_plans(
    lengths: Int[np.ndarray, "E N"], order: Int[np.ndarray, "E S B"], widths: Sequence[int], *, shares: int
) -> Plan:
    """A plan for each of `shares` devices, which take equal runs of the adapters. Leading axis: devices."""
    rows = np.take_along_axis(lengths[:, None, :], np.maximum(order, 0), axis=2)
    longest = np.where(order >= 0, rows, 0).max(axis=2).reshape(shares, -1, order.shape[1]).max(axis=1)
    idle = longest == 0
    steps = np.argsort(idle, axis=1, kind="stable").astype(np.int32)  # those with work first, in order
    index = np.searchsorted(widths, np.take_along_axis(longest, steps, axis=1)).astype(np.int32)
    return Plan(steps, index, (~idle).sum(axis=1).astype(np.int32))


def processed_tokens(batch: TokenBatch, chunk: int, devices: int) -> int:
    """Token positions that training a batch computes, pads and idle adapters included.

    Adapters are taken `chunk` at a time (a multiple of `devices`), in the order given; the last chunk is filled up.
    """
    total, filled = 0, round_up(len(batch.order), chunk)
    idle = ((0, filled - len(batch.order)), (0, 0))
    lengths = np.pad(np.asarray(batch.lengths), idle)
    order = np.pad(np.asarray(batch.order), (*idle, (0, 0)), constant_values=-1)
    for start in range(0, filled, chunk):
        rows = slice(start, start + chunk)
        plans = make_plans(lengths[rows], order[rows], batch.widths, shares=devices)
        for index, count in zip(np.asarray(plans.width_index), np.asarray(plans.num_steps), strict=True):
            total += int(np.take(batch.widths, index[:count]).sum()) * (chunk // devices) * order.shape[2]
    return total


def left_pad(rows: Sequence[Sequence[int]], width: int) -> tuple[Int[np.ndarray, "Q T"], Bool[np.ndarray, "Q T"]]:
    """Prompts as one array, ending together, and where they are real."""
    tokens, valid = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        if row:
            tokens[i, width - len(row) :] = row
            valid[i, width - len(row) :] = True
    return tokens, valid
