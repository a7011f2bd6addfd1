"""Work that does not fit on the devices at once, cut to what does: chunk by chunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass
class Chunk:
    """How many adapters (or rows) the devices hold at a time. Halved, for good, when memory does not suffice."""

    size: int
    what: str = "adapters"
    say: Callable[[str], None] = print
    halved: int = 0  # times that training, which has a bank of its own, ran out of memory
    planned: int = dataclasses.field(init=False)  # the size before any halving: a resumed run cuts its pieces by it

    def __post_init__(self) -> None:
        self.planned = self.size


def in_chunks(
    run: Callable[[np.ndarray, np.ndarray], Any],
    total: int,
    chunk: Chunk,
    *,
    devices: int = 1,
    each: int = 1,
    fill: bool = True,
) -> Any:
    """Calls `run(index, live)` on one chunk after another and joins what it returns along the first axis.

    An item takes `each` places of the chunk. `index` is filled up to a whole chunk, so that one program serves all (or,
    without `fill`, to a multiple of `devices`); where `live` is False it repeats an item, and what is returned for that
    is dropped. If the device runs out of memory the chunk is halved, which is said once, and nothing finished is lost.

    Raises:
        jax.errors.JaxRuntimeError: memory does not suffice for one adapter a device.
    """
    outputs: list[Any] = []
    done = 0
    while done < total:
        size = max(devices, chunk.size // each // devices * devices)
        if not fill:
            size = min(size, -(-(total - done) // devices) * devices)
        live = np.arange(size) < total - done
        index = np.minimum(done + np.arange(size), total - 1)
        try:
            output = jax.block_until_ready(run(index, live))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size == devices:
                raise
            chunk.size = max(devices, size // 2 // devices * devices) * each
            chunk.say(f"not enough device memory for {size * each} {chunk.what} at a time: going on with {chunk.size}")
            continue
        outputs.append(output if live.all() else jax.tree.map(lambda x, n=int(live.sum()): x[:n], output))
        done += size
    return outputs[0] if len(outputs) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *outputs)
