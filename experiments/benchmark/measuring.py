"""How the benchmark measures: what the device can do at best, seconds, memory, and programs by turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from seal_jax.engine.costs import Peak

from . import process_memory

T = TypeVar("T")

# Small beside what a run holds, for a GPU's peak memory cannot be forgotten; large beside any cache.
MATMUL_WIDTHS, MATMUL_WIDTHS_ON_CPU = (4096, 8192), (1024, 2048)  # square; the best counts
COPY_BYTES, COPY_BYTES_ON_CPU = 2**29, 2**28  # of each device; of a CPU's, which share its memory, all together
TRIES = 8


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    """How long a piece of work takes, the devices waited for, and what it returns."""
    start = time.perf_counter()
    result = jax.block_until_ready(work())
    return time.perf_counter() - start, result


def measure_peak(dtype: Any, devices: Sequence[Any]) -> Peak:
    """What the devices do together: their best matrix product in `dtype`, and the best rate of reading and writing."""
    cpu = devices[0].platform == "cpu"
    products, copies = 1 if cpu else 16, 8
    size = COPY_BYTES_ON_CPU // len(devices) if cpu else COPY_BYTES
    wide = jnp.float32 if cpu else None  # a CPU is fast where it returns float32 (nn/products.py)
    multiplied = lambda y, x: jnp.matmul(y, x, preferred_element_type=wide).astype(x.dtype)
    multiply = jax.jit(lambda x: jax.lax.fori_loop(0, products, lambda _, y: multiplied(y, x), x))
    copy = jax.jit(lambda x: jax.lax.fori_loop(0, copies, lambda _, y: y + 1, x), donate_argnums=0)

    def fastest(work: Callable[[], Any]) -> float:
        jax.block_until_ready(work())  # compiles
        return min(seconds(work)[0] for _ in range(TRIES))

    def multiplications(width: int) -> float:
        # Random numbers, for a GPU multiplies constants faster than anything else; scaled to stay of one size.
        numbers = (jax.random.normal(jax.random.key(0), (width, width)) / width**0.5).astype(dtype)
        inputs = [jax.device_put(numbers, device) for device in devices]
        return len(devices) * products * 2 * width**3 / fastest(lambda: [multiply(x) for x in inputs])

    arrays = [jax.device_put(jnp.zeros(size // 4, jnp.float32), device) for device in devices]

    def copy_all() -> list[jax.Array]:
        arrays[:] = [copy(x) for x in arrays]
        return arrays

    flops = max(multiplications(width) for width in (MATMUL_WIDTHS_ON_CPU if cpu else MATMUL_WIDTHS))
    return Peak(flops, len(devices) * copies * 2 * size / fastest(copy_all))


def by_turns(programs: dict[str, Callable[[int], T]], turns: int, stage: str) -> dict[str, list[T]]:
    """Runs A B A B ...: what slows the machine for a while slows all alike. A program gets the number of its turn.

    Where standard error is a terminal, one line of it shows whose turn it is.
    """
    runs: dict[str, list[T]] = {name: [] for name in programs}
    show = (lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)) if sys.stderr.isatty() else str
    for turn in range(turns):
        for name, program in programs.items():
            show(f"{stage}: {name}, turn {turn + 1} of {turns}")
            runs[name].append(program(turn))
    show("")
    return runs


def peak_memory(devices: Sequence[Any]) -> int:
    """Bytes held at the most: on the fullest GPU or TPU since the process began; on a CPU by the process (since
    `process_memory.forget_peak`)."""
    if devices[0].platform == "cpu":
        return process_memory.peak()
    return max(int((device.memory_stats() or {}).get("peak_bytes_in_use", 0)) for device in devices)
