"""Work cut to what fits gives what the whole would: nothing lost, nothing twice, smaller when memory runs out."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from seal_jax.engine.chunks import Chunk, in_chunks


def recorded(total: int, chunk: Chunk, **options):
    """What comes of squares, and (index, live) of every call."""
    calls = []

    def run(index, live):
        calls.append((index.tolist(), live.tolist()))
        return {"square": index**2, "pair": (np.stack([index, -index], axis=1),)}

    return in_chunks(run, total, chunk, **options), calls


@pytest.mark.parametrize(
    ("total", "size", "options", "sizes"),
    [
        (7, 3, {}, [3, 3, 3]),  # the last is filled up: one program serves all
        (7, 3, {"fill": False}, [3, 3, 1]),
        (7, 5, {"devices": 2}, [4, 4]),  # a share for each device
        (5, 4, {"devices": 2, "fill": False}, [4, 2]),
        (5, 6, {"each": 3}, [2, 2, 2]),  # an item takes three places
        (5, 2, {"each": 3, "fill": False}, [1, 1, 1, 1, 1]),  # at least one item a device
    ],
)
def test_pieces_join_to_the_whole(total, size, options, sizes):
    out, calls = recorded(total, Chunk(size), **options)
    items = np.arange(total)
    np.testing.assert_array_equal(out["square"], items**2)
    np.testing.assert_array_equal(out["pair"][0], np.stack([items, -items], axis=1))
    assert [len(index) for index, _ in calls] == sizes
    assert [i for index, live in calls for i, real in zip(index, live, strict=True) if real] == items.tolist()
    assert all(0 <= i < total for index, _ in calls for i in index)


def test_nothing_finished_is_lost_when_memory_runs_out_later():
    calls: list[list[int]] = []

    def run(index, live):
        calls.append(index.tolist())
        if len(calls) > 1 and len(index) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
        return 10.0 * index

    out = in_chunks(run, 7, Chunk(4, say=lambda line: None))
    assert out.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 6], [4, 5], [6, 6]]
