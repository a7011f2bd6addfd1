"""Ticks take every step of every adapter once and in order, pad little, and hold no more than a device has room for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.benchmark import workloads
from seal_jax.engine import batching
from seal_jax.engine.schedule import Room, Row, Tick, choose_widths, computed_tokens, rows_of, schedule, share
from seal_jax.types import Compute

LENGTHS = st.lists(st.lists(st.integers(0, 32), max_size=6), max_size=9)
WIDTHS = st.sampled_from([(32,), (8, 32), (4, 8, 16, 24, 32)])
ROOMS = st.builds(Room, places=st.integers(1, 5), tokens=st.integers(1, 100))


def arrays(lengths) -> list[np.ndarray]:
    return [np.array(own, np.int64) for own in lengths]


def steps_of(ticks: list[Tick]) -> dict[int, list[int]]:
    """The steps that each adapter takes, in the order in which it takes them."""
    found: dict[int, list[int]] = {}
    for tick in ticks:
        for row in tick.rows:
            found.setdefault(row.adapter, []).append(row.step)
    return found


def recorded(epochs: int = 10) -> list[np.ndarray]:
    """64 self-edits as long as those of recorded runs, each in an order of its own."""
    edits = arrays(workloads.seal(64, seed=0))
    orders = [batching.order(len(own), epochs=epochs, batch_size=1, seed=e)[:, 0] for e, own in enumerate(edits)]
    return [own[order] for own, order in zip(edits, orders, strict=True)]


def padding(longest: list[np.ndarray], room: Room, widths: tuple[int, ...]) -> float:
    """Tokens computed on one device for each real one."""
    (mine,) = share(longest, 1)
    ticks = schedule(longest, mine, widths=widths, room=room)
    return computed_tokens(ticks) / sum(int(own.sum()) for own in longest)


# ---------------------------------------------------------------------------------------------------------------------
# Ticks


@given(LENGTHS, WIDTHS, ROOMS, st.integers(1, 3))
def test_every_adapter_takes_all_its_steps_in_order_in_a_place_of_its_own(lengths, widths, room, batch_size):
    longest = arrays(lengths)
    (mine,) = share(longest, 1)
    ticks = schedule(longest, mine, widths=widths, room=room, batch_size=batch_size)
    assert steps_of(ticks) == {e: list(range(len(own))) for e, own in enumerate(lengths) if own}
    places: dict[int, int] = {}  # adapters in training, by place
    for tick in ticks:
        assert tick.width in widths
        assert 1 <= len(tick.rows) <= tick.size == rows_of(tick.width, room, batch_size) <= room.places
        assert len({row.adapter for row in tick.rows}) == len({row.place for row in tick.rows}) == len(tick.rows)
        for adapter, step, place in tick.rows:
            assert lengths[adapter][step] <= tick.width
            assert 0 <= place < room.places
            assert places.setdefault(place, adapter) == adapter  # nobody else's, from its first step to its last
            assert step > 0 or list(places.values()).count(adapter) == 1
            if step + 1 == len(lengths[adapter]):
                del places[place]
    assert not places
    assert schedule(longest, mine, widths=widths, room=room, batch_size=batch_size) == ticks  # a pure function


def test_those_beyond_the_places_wait_and_come_in_the_order_given():
    longest = arrays([[8] * 3, [8] * 2, [8] * 2, [8]])
    ticks = schedule(longest, [2, 0, 3, 1], widths=(8,), room=Room(2, 16))
    assert [sorted(row.adapter for row in tick.rows) for tick in ticks] == [[0, 2], [0, 2], [0, 3], [1], [1]]
    assert {row.adapter: row.place for tick in ticks for row in tick.rows} == {2: 0, 0: 1, 3: 0, 1: 0}
    assert [(tick.width, tick.size) for tick in ticks] == [(8, 2)] * 5


def test_an_adapter_trains_by_itself_as_narrow_as_each_step_allows():
    ticks = schedule(arrays([[9, 4, 0, 16]]), [0], widths=(4, 12, 16), room=Room(1, 16))
    assert [(tick.width, tick.size, tick.rows) for tick in ticks] == [
        (12, 1, [Row(0, 0, 0)]), (4, 1, [Row(0, 1, 0)]), (4, 1, [Row(0, 2, 0)]), (16, 1, [Row(0, 3, 0)]),
    ]  # fmt: skip


def test_only_the_given_adapters_are_trained():
    longest = arrays([[8, 8], [8], [], [8]])
    assert steps_of(schedule(longest, [3, 0], widths=(8,), room=Room(4, 64))) == {0: [0, 1], 3: [0]}
    assert schedule(longest, [], widths=(8,), room=Room(4, 64)) == []
    assert schedule([], [], widths=(8,), room=Room(4, 64)) == []


def test_rows_are_what_the_tokens_of_a_tick_allow():
    room = Room(8, 192)
    assert [rows_of(width, room) for width in (8, 24, 48, 128, 160, 512)] == [8, 8, 4, 2, 1, 1]
    assert [rows_of(48, room, batch_size) for batch_size in (1, 2, 4)] == [4, 2, 1]


def test_computed_tokens_count_pads_and_filler():
    ticks = [Tick(8, 4, [Row(0, 0, 0)]), Tick(16, 2, [Row(0, 1, 0), Row(1, 0, 1)])]
    assert computed_tokens(ticks) == 8 * 4 + 16 * 2
    assert computed_tokens(ticks, batch_size=3) == 3 * (8 * 4 + 16 * 2)
    assert computed_tokens([]) == 0


# ---------------------------------------------------------------------------------------------------------------------
# Padding


def test_ragged_work_pads_little():
    longest = recorded()
    widths = batching.bucket_widths(max(int(own.max()) for own in longest), Compute().width_cuts)
    assert 1 <= padding(longest, Room(16, 192), widths) < 1.25
    assert padding(longest, Room(16, 192), widths[-1:]) > 2  # the widths are what does it


def test_equal_lengths_do_not_pad():
    assert padding(arrays([[48] * 80] * 64), Room(16, 192), (48,)) == 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Devices


@given(LENGTHS, st.integers(1, 4))
def test_devices_share_the_adapters_evenly(lengths, devices):
    longest = arrays(lengths)
    shares = share(longest, devices)
    assert len(shares) == devices
    assert sorted(e for own in shares for e in own) == [e for e, own in enumerate(lengths) if own]  # each on one device
    loads = [sum(sum(lengths[e]) for e in own) for own in shares]
    assert max(loads) - min(loads) <= max(map(sum, lengths), default=0)
    for own in shares:  # the largest first: none is left to train alone at the end
        assert [sum(lengths[e]) for e in own] == sorted((sum(lengths[e]) for e in own), reverse=True)


def test_recorded_work_is_shared_almost_exactly():
    longest = recorded()
    loads = [sum(int(longest[e].sum()) for e in own) for own in share(longest, 4)]
    assert max(loads) < 1.02 * min(loads)


# ---------------------------------------------------------------------------------------------------------------------
# Widths


def test_a_width_stays_if_leaving_it_out_pads_more_than_it_costs():
    lengths = np.array([8] * 10 + [15] * 2 + [32])
    assert choose_widths(lengths, (8, 16, 24, 32), price=0) == (8, 16, 32)  # none has between 17 and 24
    assert choose_widths(lengths, (8, 16, 24, 32), price=31) == (8, 16, 32)
    assert choose_widths(lengths, (8, 16, 24, 32), price=32) == (8, 32)  # two rows, 16 wider
    assert choose_widths(lengths, (8, 16, 24, 32), price=239) == (8, 32)
    assert choose_widths(lengths, (8, 16, 24, 32), price=240) == (32,)  # ten rows, 24 wider
    assert choose_widths(lengths, (8, 16, 24, 32), price=1e12) == (32,)  # what holds all has no price


def test_a_width_that_nothing_needs_is_not_compiled():
    assert choose_widths(np.array([3, 20]), (8, 16, 24, 32), price=0) == (8, 24)
    assert choose_widths(np.array([], int), (8, 16), price=0) == (16,)


@given(st.lists(st.integers(1, 32), min_size=1), WIDTHS, st.floats(0, 500))
def test_the_chosen_widths_hold_every_sequence(lengths, widths, price):
    chosen = choose_widths(np.array(lengths), widths, price=price)
    assert set(chosen) <= set(widths)
    assert list(chosen) == sorted(chosen)
    assert chosen[-1] == min(width for width in widths if width >= max(lengths))


@pytest.mark.parametrize("devices", [1, 2])
def test_nothing_to_train_on_is_no_tick(devices):
    shares = share(arrays([[], []]), devices)
    assert shares == [[]] * devices
    assert schedule(arrays([[], []]), shares[0], widths=(8,), room=Room(2, 16)) == []
