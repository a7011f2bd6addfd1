"""A peer of the benchmark in a process of its own, so that torch and JAX never share one.

It lives through the run, holds its model, and does what it is told over a pipe: a method of `peers.Bench` by name, with
its arguments. This file imports neither torch nor JAX.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

NEEDED = ("torch", "peft", "transformers")
ROOT = Path(__file__).parents[__name__.count(".")]  # where the package that this file is in is imported from


def serve(pipe: Any) -> None:
    """The peer's side: is told the model's shape and the machine, then (method, arguments), until it is told None."""
    try:
        shape, machine = pipe.recv()
        from . import peers

        bench = peers.Bench(shape, peers.Machine(*machine))
        pipe.send(bench.versions())
        while (told := pipe.recv()) is not None:
            method, arguments = told
            pipe.send(getattr(bench, method)(*arguments))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:  # whatever it is, the benchmark has to hear of it
        pipe.send(RuntimeError(str(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {error}"))


def require_installed(name: str) -> None:
    """Raises ValueError if the peer `name` could not run here."""
    missing = []
    for package in NEEDED:
        try:
            found = importlib.util.find_spec(package)
        except ImportError:
            found = None
        if found is None:
            missing.append(package)
    if missing:
        raise ValueError(
            f"--peer {name} needs {', '.join(missing)}: pip install 'seal_jax[peers]', or leave --peer out"
        )


class Peer:
    """One peer: a process, or several that work at the same time, each on a self-edit of its own.

    Raises:
        ValueError: the peer failed (says how).
    """

    def __init__(self, name: str, shape: dict[str, Any], *, device: str, dtype: str, processes: int):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.name, self.processes = name, processes
        self.workers = []
        for _ in range(processes):  # not by multiprocessing's spawn: that imports the caller, and JAX with it
            here, there = Pipe()
            command = [sys.executable, "-m", __name__, str(there.fileno())]
            self.workers.append((subprocess.Popen(command, pass_fds=[there.fileno()], cwd=ROOT), here))
            there.close()
            here.send((shape, (device, dtype, max(1, cores // processes))))
        ready = [self._hear(pipe) for _, pipe in self.workers]
        self.versions: dict[str, str] = ready[0]
        self.replies: list[dict[str, Any]] = []  # of the last work
        self.peak_bytes = 0  # of all processes, in the last work

    def _hear(self, pipe: Any) -> Any:
        try:
            reply = pipe.recv()
        except EOFError as error:
            raise ValueError(f"--peer {self.name}: its process ended (out of memory?)") from error
        if isinstance(reply, Exception):
            raise ValueError(f"--peer {self.name}: {reply}")
        return reply

    def do(self, method: str, each: Sequence[tuple[Any, ...]]) -> float:
        """Has every process do the same at the same time, each with its own arguments. Seconds until all are done.

        A single process times itself, so that telling it costs nothing.
        """
        start = time.perf_counter()
        for (_, pipe), arguments in zip(self.workers, each, strict=True):
            pipe.send((method, arguments))
        self.replies = [self._hear(pipe) for _, pipe in self.workers]
        wall = time.perf_counter() - start
        self.peak_bytes = sum(reply["peak"] for reply in self.replies)
        return self.replies[0]["seconds"] if self.processes == 1 else wall

    def close(self) -> None:
        """Ends the processes."""
        for worker, pipe in self.workers:
            with contextlib.suppress(OSError):
                pipe.send(None)
            try:
                worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.kill()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
