"""Which adapters take their next step together: the ticks of a device, made on the host before training starts.

Adapters are independent and the length of every sequence is known, so nothing has to march in step. A device holds a
bank of adapters; at each tick those whose next sequences fit one width take a step, as many as a budget of tokens
holds, and a place is given to the next adapter as soon as its own has finished. Trained in lockstep, adapters computed
1.7 tokens for each real one; ticks compute 1.2 (docs/performance.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Int

URGENCY = 0.2  # of an adapter with most steps left, against the share of its row that a sequence fills


class Room(NamedTuple):
    """What a device has room for."""

    places: int  # adapters in training
    tokens: int  # computed at a time, about


class Row(NamedTuple):
    """One adapter's step."""

    adapter: int
    step: int  # of its own, from 0
    place: int  # in the bank


class Tick(NamedTuple):
    """One step of some adapters."""

    width: int  # tokens
    size: int  # rows, filler included
    rows: list[Row]  # at most `size`

    def seats(self, places: int) -> Iterable[int]:
        """Which of the tick's rows each of `rows` is: its place's, where the whole bank of so many places has one."""
        return (row.place for row in self.rows) if self.size == places else range(len(self.rows))


def share(longest: Sequence[Int[np.ndarray, "S"]], devices: int) -> list[list[int]]:
    """Adapters for each device: the next largest goes to the device that has least to do."""
    shares: list[list[int]] = [[] for _ in range(devices)]
    loads = [0] * devices
    for e in sorted((e for e in range(len(longest)) if len(longest[e])), key=lambda e: (-int(longest[e].sum()), e)):
        least = loads.index(min(loads))
        shares[least].append(e)
        loads[least] += int(longest[e].sum())
    return shares


def rows_of(width: int, room: Room, batch_size: int = 1) -> int:
    """How many adapters take a step of this width together."""
    return max(1, min(room.places, round(room.tokens / (width * batch_size))))


def schedule(
    longest: Sequence[Int[np.ndarray, "S"]],
    adapters: Sequence[int],
    *,
    widths: Sequence[int],
    room: Room,
    batch_size: int = 1,
) -> list[Tick]:
    """The ticks in which a device's `adapters` take all their steps, each in its own order.

    `longest[e]` are the tokens of the longest sequence of each step of adapter e. Adapters get places in the order
    given. Of all widths a tick has the one that pads least, and adapters with many steps left go before others, or they
    would be left to train alone. A pure function: a run that is repeated has the same ticks.
    """
    steps = np.array([len(own) for own in longest] or [0])
    table = np.zeros((len(steps), steps.max() + 1), np.int64)
    for e, own in enumerate(longest):
        table[e, : len(own)] = np.maximum(own, 1)  # a step that reads nothing is a step all the same
    sizes = [rows_of(width, room, batch_size) for width in widths]
    waiting, bank, at = list(adapters)[::-1], np.full(room.places, -1), np.zeros(len(steps), np.int64)
    ticks: list[Tick] = []
    while True:
        for place in np.flatnonzero(bank < 0)[: len(waiting)]:
            bank[place] = waiting.pop()
        if (bank < 0).all():
            return ticks
        there = bank >= 0
        tokens, left = np.where(there, table[bank, at[bank]], 0), np.where(there, steps[bank] - at[bank], 0)
        index, places = _fullest(tokens, left, widths, sizes)
        chosen = bank[places]
        rows = [Row(*map(int, row)) for row in zip(chosen, at[chosen], places, strict=True)]
        ticks.append(Tick(widths[index], sizes[index], rows))
        at[chosen] += 1
        bank[places[at[chosen] == steps[chosen]]] = -1


def _fullest(
    tokens: Int[np.ndarray, "N"], left: Int[np.ndarray, "N"], widths: Sequence[int], sizes: Sequence[int]
) -> tuple[int, Int[np.ndarray, "E"]]:
    """Which width's tick computes most real tokens for all it computes, and the places that take part."""
    urgency = URGENCY * left / max(1, left.max())
    best: tuple[float, int, np.ndarray] | None = None
    for index, (width, size) in enumerate(zip(widths, sizes, strict=True)):
        fits = np.flatnonzero((tokens > 0) & (tokens <= width))
        if len(fits):
            chosen = fits[np.argsort(-(tokens[fits] / width + urgency[fits]), kind="stable")[:size]]
            value = tokens[chosen].sum() / (width * size) + urgency[chosen].mean()
            if best is None or value > best[0]:
                best = value, index, chosen
    assert best is not None, "the last width holds every sequence"
    return best[1], best[2]


def plan(
    longest: Sequence[Int[np.ndarray, "S"]], *, widths: Sequence[int], room: Room, devices: int, batch_size: int = 1
) -> tuple[int, list[list[Tick]]]:
    """Places on each of D devices, and each one's ticks.

    There are no more places than the largest share of the adapters needs, as a power of two: few sizes, few programs.
    """
    shares = share(longest, devices)
    places = min(room.places, 1 << max(0, max(map(len, shares)) - 1).bit_length())
    room = room._replace(places=places)
    return places, [schedule(longest, own, widths=widths, room=room, batch_size=batch_size) for own in shares]


def computed_tokens(ticks: Sequence[Tick], batch_size: int = 1) -> int:
    """Token positions that the ticks compute, pads and filler included."""
    return sum(tick.width * tick.size for tick in ticks) * batch_size


def choose_widths(lengths: Int[np.ndarray, "N"], widths: Sequence[int], *, price: float) -> tuple[int, ...]:
    """Those of `widths` (ascending; the last holds all `lengths`) that are worth compiling a program for.

    `price` is what a program costs, in tokens computed: a width stays if leaving it out would pad more than that.
    """
    held = {w: int(n) for w, n in zip(*np.unique(np.searchsorted(widths, lengths), return_counts=True), strict=True)}
    while len(held) > 1:
        kept = sorted(held)
        added = [held[a] * (widths[b] - widths[a]) for a, b in itertools.pairwise(kept)]
        least = int(np.argmin(added))
        if added[least] > price:
            break
        held[kept[least + 1]] += held.pop(kept[least])
    return tuple(widths[w] for w in sorted(held)) or tuple(widths[-1:])
