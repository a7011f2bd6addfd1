"""From text to tokens, and the order in which a self-edit's sequences are trained on. Host code, NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from seal_jax.types import Codec, Example

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Bool, Float, Int


class Tokens(NamedTuple):
    """One training sequence: ids, and where the loss begins."""

    ids: list[int]
    loss_from: int  # the first id that is trained on (predicted)
    weight: float = 1.0  # in the loss, of each id from there on
    view: Sequence[int] = ()  # what an in_context teacher reads: it ends as `ids` do


def tokenize(example: Example, codec: Codec) -> Tokens:
    """Prompt and completion are encoded apart, so that the boundary falls where it will at sampling time."""
    view: Sequence[int] = ()
    if example.view is not None:
        view = codec.encode(example.view) + codec.encode_more(example.completion)
    if not example.prompt:
        return Tokens(codec.encode(example.completion), 0, example.weight, view)
    prompt = codec.encode(example.prompt)
    return Tokens(prompt + codec.encode_more(example.completion), len(prompt), example.weight, view)


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is at least n."""
    return math.ceil(n / multiple) * multiple


def bucket_widths(longest: int, cuts: Sequence[int], multiple: int = 8) -> tuple[int, ...]:
    """The widths that steps may be cut to: the `cuts` shorter than `longest`, and `longest` rounded up."""
    top = round_up(longest, multiple)
    return (*(cut for cut in sorted(set(cuts)) if cut < top), top)


def num_steps(sequences: int, *, epochs: int, batch_size: int) -> int:
    """Optimiser steps for so many sequences."""
    return epochs * math.ceil(sequences / batch_size)


def order(count: int, *, epochs: int, batch_size: int, seed: int, rows: int = 1) -> Int[np.ndarray, "S B"]:
    """Which of a self-edit's sequences each step reads: a fresh shuffle every epoch, its last batch filled with -1.

    It follows from the seed and the number of sequences alone, whatever else is trained beside them. Groups of `rows`
    sequences that follow one another stay together, side by side.
    """
    groups, size = count // rows, max(1, batch_size // rows)
    rng, filler = np.random.default_rng([seed, groups]), np.full(-groups % size, -1)
    epoch_by_epoch = [np.concatenate([rng.permutation(groups), filler]) for _ in range(epochs)]
    found = np.concatenate([filler[:0], *epoch_by_epoch]).astype(np.int32)[:, None]
    return np.where(found < 0, -1, found * rows + np.arange(rows, dtype=np.int32)).reshape(-1, size * rows)


def pad_rows(
    sequences: Sequence[Tokens], rows: Sequence[int] | Int[np.ndarray, "B"], width: int
) -> tuple[Int[np.ndarray, "B T"], Float[np.ndarray, "B T"]]:
    """Sequences by number as one array, padded on the right, and their weights in the loss; -1 is an empty row."""
    tokens, loss_weight = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
    for b, n in enumerate(rows):
        if n >= 0:
            ids, loss_from, weight, _ = sequences[n]
            tokens[b, : len(ids)] = ids
            loss_weight[b, loss_from : len(ids)] = weight
    return tokens, loss_weight


def left_pad(rows: Sequence[Sequence[int]], width: int) -> tuple[Int[np.ndarray, "Q T"], Bool[np.ndarray, "Q T"]]:
    """Prompts as one array, ending together, and where they are real."""
    tokens, valid = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        if row:
            tokens[i, width - len(row) :] = row
            valid[i, width - len(row) :] = True
    return tokens, valid
