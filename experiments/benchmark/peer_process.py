"""A peer of the benchmark in processes of its own, so that torch and JAX never share one. Imports neither.

A process lives through the run, holds its model, and calls a method of `peers.Bench` by name, with its arguments; for
skyrl-tx it is one of `skyrl_tx_peer.Bench`, under another Python.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

PROCESSES = {"peft": 1, "peft-x2": 2, "skyrl-tx": 1}
NEEDED = ("torch", "peft", "transformers")
SKYRL_TX, SKYRL_TX_VERSION = "skyrl-tx", "0.3.0"  # trains many adapters at once, and does nothing else here
# glibc gives memory back at once: with 4 adapters of SmolLM2 its process held 6 GiB instead of 14, as fast
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
INSTALL_SKYRL_TX = (  # without its extras, which are CUDA and a server
    "python3 -m venv tx; tx/bin/pip install jax==0.10.2 flax==0.12.8 optax==0.2.8 'transformers<5' peft==0.17.1 "
    "torch==2.13.0 pydantic cloudpathlib tinker sqlmodel fastapi rich; "
    f"tx/bin/pip install --no-deps skyrl-tx=={SKYRL_TX_VERSION}"
)

_bench: Any = None  # the peer's side: what this process holds


def _call(method: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Runs in the peer's process, the only one that imports torch."""
    global _bench
    from . import peers

    if method == "start":
        _bench = peers.Bench(*arguments)
        return _bench.versions()
    return getattr(_bench, method)(*arguments)


class DidNotFitError(ValueError):
    """A peer needs more memory than it may have."""


class Elsewhere(ThreadPoolExecutor):
    """One process under another Python, in place of a ProcessPoolExecutor's; begun anew where it has ended."""

    def __init__(self, python: Path | None, *arguments: str):
        super().__init__(1)
        self.command = [os.path.abspath(python or ""), "-m", "experiments.benchmark.skyrl_tx_peer", *arguments]
        self.process: subprocess.Popen[str] | None = None

    def submit(self, call: Any, /, *arguments: Any, **_: Any) -> Future[Any]:
        """Has the process call a method; `call` is how one of ours would."""
        return super().submit(self._ask, *arguments)

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            quiet = {"XLA_FLAGS": "", "TF_CPP_MIN_LOG_LEVEL": "3"}  # one device with all cores; no warnings of XLA's
            given: dict[str, Any] = {"env": {**os.environ, **MALLOC, **quiet}, "cwd": Path(__file__).parents[2]}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen(self.command, **given, **pipes)
        assert self.process.stdin and self.process.stdout
        print(json.dumps([method, arguments]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            if status == -signal.SIGKILL:
                raise DidNotFitError("its process was killed, as a system does that is short of it")
            raise RuntimeError(f"its process ended with status {status}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            self.process.wait()
            raise (DidNotFitError if reply["short_of_memory"] else RuntimeError)(reply["error"])
        return reply

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the process."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        if self.process is not None:
            self.process.communicate()


def require_installed(name: str, python: Path | None) -> None:
    """Raises ValueError if the peer `name` cannot run here; `python` is that of skyrl-tx's environment."""

    def absent(package: str) -> bool:
        try:
            return importlib.util.find_spec(package) is None
        except ImportError:
            return True

    if name == SKYRL_TX:
        code = "import importlib.metadata; print(importlib.metadata.version('skyrl-tx'))"
        found = subprocess.run([python or "false", "-c", code], capture_output=True, text=True).stdout.strip()
        if found != SKYRL_TX_VERSION:
            raise ValueError(
                f"--peer-python {python or 'is not given'}{' has ' + (found or 'none') if python else ''}: --peer "
                f"{name} needs that of an environment with {name} {SKYRL_TX_VERSION}: {INSTALL_SKYRL_TX}; then "
                "--peer-python tx/bin/python"
            )
    elif missing := [package for package in NEEDED if absent(package)]:
        raise ValueError(
            f"--peer {name} needs {', '.join(missing)}: pip install 'seal_jax[peers]', or leave --peer out"
        )


class Peer:
    """One peer: a process, or several that work at the same time, each on a self-edit of its own.

    Raises:
        ValueError: the peer failed (says how).
    """

    def __init__(self, name: str, model: Path, *, device: str, dtype: str, python: Path | None = None):
        self.name, self.processes = name, PROCESSES[name]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        context = multiprocessing.get_context("spawn")
        self.replies: list[dict[str, Any]] = []  # of the last work
        self.workers: list[Executor]
        if name == SKYRL_TX:
            self.workers = [Elsewhere(python, str(model), device, dtype)]
        else:
            self.workers = [ProcessPoolExecutor(1, mp_context=context) for _ in range(self.processes)]
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
        except DidNotFitError as error:
            raise DidNotFitError(f"--peer {self.name} ran out of memory: {error}") from error
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
