"""How the benchmark measures: what the device can do at best, seconds, memory, and two programs by turns."""

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
MATMUL_WIDTHS = {"cpu": (1024, 2048), "gpu": (4096, 8192), "tpu": (4096, 8192)}  # square; the best counts
COPY_BYTES = {"cpu": 256 * 2**20, "gpu": 512 * 2**20, "tpu": 512 * 2**20}  # a GPU's or TPU's; of a CPU's all together
TRIES = 8


def measure_peak(dtype: Any, devices: Sequence[Any]) -> Peak:
    """What the devices do together: their best matrix product, and the best rate of reading and writing an array.

    Products are taken in the base model's `dtype`. On a CPU its devices share memory, so all run at once.
    """
    platform = devices[0].platform
    flops = max(_matmul_rate(width, dtype, devices) for width in MATMUL_WIDTHS[platform])
    return Peak(flops, _copy_rate(COPY_BYTES[platform], devices))


def _matmul_rate(width: int, dtype: Any, devices: Sequence[Any]) -> float:
    times = 1 if devices[0].platform == "cpu" else 16
    one = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: (y @ x).astype(x.dtype), x))
    # Random numbers, for a GPU multiplies constants faster than it would anything else; scaled to stay of one size.
    numbers = (jax.random.normal(jax.random.key(0), (width, width)) / width**0.5).astype(dtype)
    inputs = [jax.device_put(numbers, device) for device in devices]
    return len(devices) * times * 2 * width**3 / best_of(lambda: [one(x) for x in inputs])


def _copy_rate(size: int, devices: Sequence[Any]) -> float:
    times = 8
    size //= len(devices) if devices[0].platform == "cpu" else 1
    one = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: y + 1, x), donate_argnums=0)
    arrays = [jax.device_put(jnp.zeros(size // 4, jnp.float32), device) for device in devices]

    def work() -> Any:
        arrays[:] = [one(x) for x in arrays]
        return arrays

    return len(devices) * times * 2 * size / best_of(work)


def best_of(work: Callable[[], Any], tries: int = TRIES) -> float:
    """The fewest seconds of some runs, after one that compiles."""
    jax.block_until_ready(work())
    return min(seconds(work)[0] for _ in range(tries))


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    """How long a piece of work takes, the devices waited for, and what it returns."""
    start = time.perf_counter()
    result = jax.block_until_ready(work())
    return time.perf_counter() - start, result


def whisper(text: str) -> None:
    """What is going on, on one line of a terminal that the next one overwrites; nothing where it is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def by_turns(programs: dict[str, Callable[[int], T]], turns: int, stage: str) -> dict[str, list[T]]:
    """Runs A B A B ...: what slows the machine for a while slows all alike. A program gets the number of its turn."""
    runs: dict[str, list[T]] = {name: [] for name in programs}
    for turn in range(turns):
        for name, program in programs.items():
            whisper(f"{stage}: {name}, turn {turn + 1} of {turns}")
            runs[name].append(program(turn))
    whisper("")
    return runs


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def peak_memory(devices: Sequence[Any]) -> int:
    """Bytes held at the most: on the fullest GPU or TPU since the process began; on a CPU by the process (since
    `process_memory.forget_peak`)."""
    if devices[0].platform == "cpu":
        return process_memory.peak()
    stats = [device.memory_stats() or {} for device in devices]
    return max(int(s.get("peak_bytes_in_use", 0)) for s in stats)
