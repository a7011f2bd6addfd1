"""Work cut to what fits gives what the whole would: nothing lost, nothing twice, smaller pieces when memory runs out."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from seal_jax.engine import chunks
from seal_jax.engine.chunks import Chunk, in_chunks, in_parts


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


def test_parts_grow_until_each_takes_long_enough(monkeypatch):
    clock = iter(np.cumsum([0, 0.1, 0, 0.6, 0, 1.2, 0, 1.2, 0, 0.1]))
    monkeypatch.setattr(chunks.time, "monotonic", lambda: next(clock))
    assert list(in_parts(40, lambda done, steps: None)) == [(0, 4), (4, 12), (12, 28), (28, 40)]
    assert list(in_parts(40, None)) == [(0, 40)]
    assert list(in_parts(0, lambda done, steps: None)) == []
