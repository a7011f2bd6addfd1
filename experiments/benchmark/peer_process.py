"""A peer of the benchmark in processes of its own, so that torch and JAX never share one. Imports neither.

A process lives through the run, holds its model, and calls a method of `peers.Bench` by name, with its arguments.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

PROCESSES = {"peft": 1, "peft-x2": 2, "reference": 1}
NEEDED = ("torch", "peft", "transformers")

_bench: Any = None  # the peer's side: what this process holds


def _call(method: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Runs in the peer's process, the only one that imports torch."""
    global _bench
    from . import peers

    if method == "start":
        _bench = peers.Bench(*arguments)
        return _bench.versions()
    return getattr(_bench, method)(*arguments)


def require_installed(name: str) -> None:
    """Raises ValueError if the peer `name` cannot run here."""

    def absent(package: str) -> bool:
        try:
            return importlib.util.find_spec(package) is None
        except ImportError:
            return True

    if missing := [package for package in NEEDED if absent(package)]:
        raise ValueError(
            f"--peer {name} needs {', '.join(missing)}: pip install 'seal_jax[peers]', or leave --peer out"
        )


class Peer:
    """One peer: a process, or several that work at the same time, each on a self-edit of its own.

    Raises:
        ValueError: the peer failed (says how).
    """

    def __init__(self, name: str, model: Path, *, device: str, dtype: str):
        self.name, self.processes = name, PROCESSES[name]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        context = multiprocessing.get_context("spawn")
        self.workers = [ProcessPoolExecutor(1, mp_context=context) for _ in range(self.processes)]
        self.replies: list[dict[str, Any]] = []  # of the last work
        self.do("start", [(str(model), device, dtype, max(1, cores // self.processes))] * self.processes)
        self.versions: dict[str, str] = self.replies[0]["versions"]

    def do(self, method: str, each: Sequence[tuple[Any, ...]]) -> float:
        """Has every process do the same at the same time, each with its own arguments. Seconds until all are done.

        A single process times itself, so that calling it costs nothing.
        """
        start = time.perf_counter()
        jobs = [worker.submit(_call, method, arguments) for worker, arguments in zip(self.workers, each, strict=True)]
        try:
            self.replies = [job.result() for job in jobs]
        except BrokenProcessPool as error:
            raise ValueError(f"--peer {self.name}: its process ended (out of memory?)") from error
        except Exception as error:  # whatever torch, peft or transformers raised
            raise ValueError(f"--peer {self.name}: {type(error).__name__}: {error}") from error
        wall = time.perf_counter() - start
        return self.replies[0]["seconds"] if self.processes == 1 else wall

    @property
    def peak_bytes(self) -> int:
        """Of all its processes, in the last work."""
        return sum(reply["peak"] for reply in self.replies)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.shutdown(cancel_futures=True)
