"""Several processes that share one run, on one machine or many.

`jax.distributed` finds and numbers them (with SLURM, MPI and Kubernetes by itself). Then they leave its service, which
aborts a process from C++ when another is lost, and each goes on with its own devices alone: adapters, prompts and
questions are independent, so no array spans processes. What they make of their shares is small, and goes over TCP
through process 0.

All run the same program, and make the same calls here in the same order. Process 0 keeps the run folder, asks judges
and shows what is done; what the others write goes to a folder of their own that is removed at the end.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import queue
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Literal

import jax
from jax._src import distributed  # its key-value store: there is no public way to it

from seal_jax.run import ends
from seal_jax.types import require_at_least

# After so many seconds of silence, and as many unanswered probes with so many seconds between them, a machine is lost:
# 30 s in all. A process that ends is known at once.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
PATIENCE = 5.0  # seconds that an error here waits for process 0 to meet, and say, the same one
OVER = ("over", None)  # the last message of a process that has finished


@dataclasses.dataclass(frozen=True)
class Distributed:
    """The processes that share a run: each is started with the same command."""

    join: Literal["auto", "always", "never"] = "auto"
    """auto: where srun, mpirun or a TPU pod started several, or an address is given; always: as JAX detects them."""
    address: str | None = None
    """HOST:PORT of process 0, as all reach it, where they are not detected."""
    processes: int | None = None
    """How many there are, with an address."""
    process: int | None = None
    """Which one this is, from 0, with an address."""
    wait: float = 300.0
    """Seconds that they wait for each other at the start."""

    def __post_init__(self) -> None:
        given = self.address, self.processes, self.process
        if None in given and given != (None, None, None):
            raise ValueError(f"address, processes and process are {given}; expected all three, or none")
        if self.processes is not None and self.process is not None:
            require_at_least(1, processes=self.processes, wait=self.wait)
            if not 0 <= self.process < self.processes:
                raise ValueError(f"process is {self.process}; expected 0 to {self.processes - 1}")

    @property
    def several(self) -> bool:
        """Whether there is anybody to join."""
        counts = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
        found = any(n.isdigit() and int(n) > 1 for n in counts) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
        return self.join == "always" or (self.join == "auto" and (self.address is not None or found))


class Group:
    """This process among those that share a run (`types.Hosts`)."""

    def __init__(self, index: int, count: int, peers: Mapping[int, Connection]):
        self.index, self.count, self.neighbours = index, count, 1
        self._peers, self._inbox, self._leaving = peers, queue.SimpleQueue[Any](), False
        self._threads = [
            threading.Thread(target=self._listen, args=(peer, end), daemon=True) for peer, end in peers.items()
        ]
        for thread in self._threads:
            thread.start()

    def _listen(self, peer: int, end: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            while (message := end.recv()) != OVER:
                self._inbox.put(message)
            return
        if not self._leaving:
            self._leaving = True
            ends.end(
                f"error: process {peer} of {self.count} has ended or cannot be reached, so process {self.index} "
                "ends too; what was finished is kept: start all of them again, the same command carries on"
            )

    def _send(self, *message: Any) -> None:
        for end in self._peers.values():
            with contextlib.suppress(OSError):  # `_listen` says so
                end.send(message)

    def _receive(self, kind: str) -> Any:
        found, value = self._inbox.get()
        if found != kind:
            raise ValueError(f"process {self.index} expected {kind} and got {found}: were all given the same command?")
        return value

    def share(self, value: Any) -> Any:
        """Process 0's value, in every process."""
        if self.index:
            return self._receive("share")
        self._send("share", value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in their order."""
        if self.index:
            self._send("gather", (self.index, value))
            return self.share(None)
        found = {0: value} | dict(self._receive("gather") for _ in self._peers)
        return self.share([found[index] for index in range(self.count)])

    def pool(self, own: Iterator[Any]) -> Iterator[Any]:
        """What all processes' iterators yield, everywhere in the order in which it came to process 0."""
        if self.index:
            for item in own:
                self._send("item", (True, item))
            self._send("item", (False, None))
            while (message := self._receive("item"))[0]:
                yield message[1]
            return
        working = len(self._peers)

        def arrived(*, wait: bool) -> Iterator[Any]:
            nonlocal working
            while working and (wait or not self._inbox.empty()):
                more, item = self._receive("item")
                if more:
                    yield item
                else:
                    working -= 1

        def everything() -> Iterator[Any]:
            for item in own:
                yield item
                yield from arrived(wait=False)
            yield from arrived(wait=True)

        for item in everything():
            self._send("item", (True, item))
            yield item
        self._send("item", (False, None))

    def leave(self, *, well: bool) -> None:
        """Waits for the others, then lets go of them; after an error here, waits only for process 0 to say the same."""
        patience = None if well else PATIENCE if self.index and not self._leaving else 0
        self._leaving = True
        if well and self.index:
            self._send(*OVER)
        for thread in self._threads:
            thread.join(patience)
        if well and not self.index:
            self._send(*OVER)
        for end in self._peers.values():
            end.close()


_group: Group | None = None


def joined() -> Group | None:
    """This process among those that share a run; None where it is alone."""
    return _group


def follows() -> bool:
    """Whether another process keeps the run folder, asks judges and shows what is done."""
    return _group is not None and _group.index > 0


def shared(value: Any) -> Any:
    """Process 0's value, in every process that shares the run."""
    return value if _group is None else _group.share(value)


@contextlib.contextmanager
def together(where: Distributed) -> Iterator[Path | None]:
    """What runs in this context is shared by all processes that join. Call before any device is used.

    Yields the folder for the files of a process that is not the first, whose standard output is dropped.

    Raises:
        ValueError: the others did not come in time, or have another number of devices.
    """
    global _group
    met = _join(where) if where.several else None
    if met is None or met.count == 1:
        yield None
        return
    _group, well = met, False
    try:
        machines, devices = zip(*met.gather((socket.gethostname(), jax.local_device_count())), strict=True)
        met.neighbours = machines.count(machines[met.index])
        if len(set(devices)) > 1 or jax.process_count() > 1:
            raise ValueError(
                f"the processes have {devices} devices and JAX here sees those of {jax.process_count()}; expected as "
                "many for each, and its own alone (on a TPU pod set TPU_PROCESS_BOUNDS=1,1,1, see docs/hosts.md)"
            )
        with contextlib.ExitStack() as stack:
            if met.index == 0:
                yield None
            else:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
                yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="seal_jax-")))
        well = True
    finally:
        met.leave(well=well)
        _group = None


def _join(where: Distributed) -> Group:
    """Meets the others, in a thread: what runs in C++ there hears no signal."""
    outcome = queue.SimpleQueue[Group | Exception]()

    def meet() -> None:
        try:
            outcome.put(_meet(where))
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=meet, daemon=True).start()
    try:
        found = outcome.get(timeout=where.wait)
    except queue.Empty:
        found = TimeoutError(f"not all of them came in {where.wait:g} s (--distributed.wait)")
    if isinstance(found, Group):
        return found
    atexit.register(ends.leave, 2)  # the end of the interpreter would wait for those who did not come
    to = f" at {where.address}" if where.address else ""
    raise ValueError(
        f"the processes of this run did not meet{to}: {' '.join(str(found).split())}. Start all of them, each with the "
        "same command (and its own --distributed.process), or one alone with --distributed.join never"
    ) from found


def _meet(where: Distributed) -> Group:
    given: dict[str, Any] = {}
    if where.address is not None:
        given = {
            "coordinator_address": where.address, "num_processes": where.processes, "process_id": where.process,
            "cluster_detection_method": "deactivate",
        }  # fmt: skip
    late = int(where.wait) + 60  # JAX aborts the process at its own limits: ours come first
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from ends.py
    jax.distributed.initialize(**given, initialization_timeout=late, shutdown_timeout_seconds=late)
    state: Any = distributed.global_state
    index, count, address = state.process_id, state.num_processes, str(state.coordinator_address)
    peers: dict[int, Connection] = {}
    if index:
        port, key = str(state.client.blocking_key_value_get("seal_jax", 1000 * late)).split()
        peers[0] = Client((address.rpartition(":")[0], int(port)), authkey=bytes.fromhex(key))
        peers[0].send(index)
    else:
        secret = secrets.token_bytes(32)
        with Listener(("", 0), backlog=count, authkey=secret) as listener:
            state.client.key_value_set("seal_jax", f"{listener.address[1]} {secret.hex()}")
            for _ in range(count - 1):
                end = listener.accept()
                peers[end.recv()] = end
    for end in peers.values():
        with socket.socket(fileno=os.dup(end.fileno())) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):  # not every system has all of them
                    own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    jax.distributed.shutdown()
    with socket.create_server(("localhost", 0)) as free:
        alone = f"localhost:{free.getsockname()[1]}"
    jax.config.update("jax_cpu_collectives_implementation", None)  # those of one process
    # A group of one, or JAX would still take itself for one of many, and Orbax wait for the others.
    jax.distributed.initialize(alone, 1, 0, cluster_detection_method="deactivate", coordinator_bind_address=alone)
    return Group(index, count, peers)
