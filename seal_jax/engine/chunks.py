"""Work that does not fit on the devices at once, cut to what does: chunk by chunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seal_jax.types import Hosts


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

    def part(self, count: int) -> Chunk:
        """What one of so many processes holds at a time."""
        return dataclasses.replace(self, size=max(1, self.size // count))


def in_chunks(
    run: Callable[[np.ndarray, np.ndarray], Any],
    total: int,
    chunk: Chunk,
    *,
    devices: int = 1,
    each: int = 1,
    fill: bool = True,
    hosts: Hosts | None = None,
) -> Any:
    """Calls `run(index, live)` on one chunk after another and joins what it returns along the first axis.

    An item takes `each` places of the chunk. `index` is filled up to a whole chunk, so that one program serves all (or,
    without `fill`, to a multiple of `devices`); where `live` is False it repeats an item, and what is returned for that
    is dropped. If the device runs out of memory the chunk is halved, which is said once, and nothing finished is lost.

    `hosts` divide the items and the chunk among them; each gets what all returned, in arrays of the host.

    Raises:
        jax.errors.JaxRuntimeError: memory does not suffice for one adapter a device.
    """
    if hosts is not None:
        first, end = (total * part // hosts.count for part in (hosts.index, hosts.index + 1))
        mine, own = chunk.part(hosts.count), None
        if first < end:
            share = lambda index, live: run(first + index, live)
            own = jax.device_get(in_chunks(share, end - first, mine, devices=devices, each=each, fill=fill))
        chunk.size = min(chunk.size, mine.size * hosts.count)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *(p for p in hosts.gather(own) if p is not None))
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
