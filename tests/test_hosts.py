"""Processes that share a run: what they tell each other, and that a run of two is a run of one.

The quick tests connect groups in threads of this process, as `hosts` connects processes; the slow ones start processes
of four CPU devices each, which meet through `jax.distributed`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from seal_jax.engine import training
from seal_jax.engine.batching import Tokens
from seal_jax.engine.chunks import Chunk, in_chunks
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.io.architectures import NAMED
from seal_jax.run import hosts, runtime
from seal_jax.run.hosts import Distributed, Group
from seal_jax.run.journal import RunFolder
from seal_jax.types import Codec, Compute, LanguageModel
from tests import tiny

ROOT = Path(__file__).parents[1]
CODEC = Codec(lambda text: [], lambda text: [], lambda ids: "", "", (0,))


def in_groups(count: int, work: Callable[[Group], Any]) -> list[Any]:
    """`work` in so many groups at a time, each in a thread; what each returned or raised."""
    pairs = {index: Pipe() for index in range(1, count)}
    groups = [Group(0, count, {index: near for index, (near, _) in pairs.items()})]
    groups += [Group(index, count, {0: far}) for index, (_, far) in pairs.items()]
    found: list[Any] = [None] * count

    def one(group: Group) -> None:
        try:
            found[group.index] = work(group)
        except ValueError as error:
            found[group.index] = error
        finally:
            group.leave(well=True)

    threads = [threading.Thread(target=one, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_everybody_gets_what_each_one_has():
    def work(group: Group) -> Any:
        mine = np.full(2, group.index)
        return [value.tolist() for value in group.gather(mine)], group.share(group.index)

    assert in_groups(3, work) == [([[0, 0], [1, 1], [2, 2]], 0)] * 3


def test_pooled_items_come_in_one_order_everywhere():
    def work(group: Group) -> Any:
        own = iter([(group.index, i) for i in range(5 * group.index)])  # process 0 has none of its own
        pooled = []
        for item in group.pool(own):
            pooled.append((item, group.share(len(pooled))))  # other calls come between, as `once` does
        return pooled, group.share("after")

    found = in_groups(3, work)
    assert found[1:] == found[:1] * 2
    assert sorted(item for item, _ in found[0][0]) == [(p, i) for p in (1, 2) for i in range(5 * p)]


def test_processes_out_of_step_are_told():
    def work(group: Group) -> Any:
        return group.gather(0) if group.index == 0 else group._send("item", (True, 1))

    assert "expected gather and got item: were all given the same command" in str(in_groups(2, work)[0])


@pytest.mark.parametrize("total", [1, 5, 8])
def test_chunks_are_divided_and_come_together(total: int):
    def work(group: Group) -> Any:
        mine: list[int] = []

        def run(index: np.ndarray, live: np.ndarray) -> Any:
            mine.extend(index[live])
            return jax.numpy.asarray(index * 10)

        return in_chunks(run, total, Chunk(4), hosts=group).tolist(), mine

    found = in_groups(3, work)
    assert [whole for whole, _ in found] == [[10 * i for i in range(total)]] * 3
    assert sorted(i for _, mine in found for i in mine) == list(range(total))


@pytest.mark.slow
def test_adapters_are_divided_and_are_what_one_process_trains(tiny, mesh):
    """Two groups of one device, against one process of two: the same lanes, so the same bits."""
    rng = np.random.default_rng(0)
    lengths = [5, 9, 7, 12, 6]
    edits = [[Tokens(rng.integers(1, 60, n).tolist(), 0)] for n in lengths]
    trainer = training.make_trainer(
        FineTuning(rank=4, epochs=2), Shapes((16,), 1, 1, 8, 8), Compute(chunk=4, width_cuts=())
    )
    whole = LanguageModel(tiny.model, tiny.params, CODEC, mesh)
    expected = training.train(whole, edits, trainer, seed=1)
    place = jax.device_put(tiny.params, jax.devices()[0])

    def work(group: Group) -> Any:
        return training.train(whole._replace(params=place, mesh=None, hosts=group), edits, trainer, seed=1)

    for found in in_groups(2, work):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_all_choose_the_mesh_that_fits_on_the_devices_of_each(monkeypatch):
    """7B in bfloat16 is 14.2 GiB: one process alone would give each of its devices a model."""
    free = iter([80 * 2**30, 16 * 2**30])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # a CPU's devices are never put together
    monkeypatch.setattr(runtime, "free_memory", lambda devices: next(free))
    choose = lambda group: runtime.make_mesh(NAMED["qwen2.5-7b"], 2, None, "bfloat16", group=group)
    assert [dict(mesh.shape) for mesh in in_groups(2, choose)] == [{"adapter": 1, "fsdp": 1, "tensor": 2}] * 2


def test_the_first_process_keeps_the_journal_and_others_follow(tmp_path, monkeypatch):
    mine = threading.local()
    monkeypatch.setattr(hosts, "joined", lambda: mine.group)
    monkeypatch.setattr(hosts, "follows", lambda: mine.group.index > 0)
    monkeypatch.setattr(hosts, "shared", lambda value: mine.group.share(value))
    like = {"a": jax.ShapeDtypeStruct((3,), np.float32)}
    config = {"seed": 0}

    def work(group: Group) -> Any:
        mine.group = group
        folder = RunFolder(tmp_path / ("run" if group.index == 0 else f"apart-{group.index}-{time.time_ns()}"), config)
        made = []

        def value(name: str) -> list[Any]:
            made.append(name)
            return [name, group.index]

        found = folder.once("piece", lambda: value("piece"))
        tree = folder.once_tree("tree", lambda: {"a": np.full(3, group.index + len(value("tree")), np.float32)}, like)
        folder.close()
        return found, np.asarray(tree["a"]).tolist(), made

    first = (["piece", 0], [2.0] * 3)  # process 0's, everywhere
    assert in_groups(2, work) == [(*first, ["piece", "tree"])] * 2
    assert in_groups(2, work) == [(*first, [])] * 2, "read back, and done by nobody again"
    monkeypatch.undo()
    with pytest.raises(ValueError, match="differ in seed: 7 here, 0 in"):
        raise next(e for e in in_groups_of_configs(tmp_path, monkeypatch) if isinstance(e, ValueError))


def in_groups_of_configs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    mine = threading.local()
    monkeypatch.setattr(hosts, "joined", lambda: mine.group)

    def work(group: Group) -> Any:
        mine.group = group
        RunFolder(folder / f"other-{group.index}", {"seed": 7 * group.index}).close()

    return in_groups(2, work)[::-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"address": "a:1"}, "expected all three, or none"),
        ({"address": "a:1", "processes": 2, "process": 2}, "process is 2; expected 0 to 1"),
    ],
)
def test_an_address_wants_numbers(given: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Distributed(**given)


def test_who_is_joined_without_being_asked(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    assert not Distributed().several
    assert Distributed("always").several
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not Distributed().several
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert Distributed().several
    assert not Distributed("never").several


# ---------------------------------------------------------------------------------------------------------------------
# Processes


class Pair:
    """Two processes of four devices that share a run, and single processes that do it alone."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, list[subprocess.Popen[bytes]]()
        self.model = tiny.model_folder(folder / "model")

    def start(self, run: str, *options: str, devices: int, name: str) -> subprocess.Popen[bytes]:
        words = ["-m", "experiments.squad", "smoke", "--model", str(self.model), "--prompt", "implications"]
        words += ["--tracker.kind", "none", "--run-folder", str(self.folder / run), *options]
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *words], env={**os.environ, "XLA_FLAGS": flags}, cwd=ROOT, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.started.append(process)
        return process

    def both(self, run: str) -> list[subprocess.Popen[bytes]]:
        with socket.create_server(("localhost", 0)) as free:
            address = f"localhost:{free.getsockname()[1]}"
        found = ["--distributed.address", address, "--distributed.processes", "2", "--distributed.process"]
        return [self.start(run, *found, str(i), devices=4, name=f"{run}-{i}") for i in range(2)]

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def results(self, run: str) -> dict[str, Any]:
        results = json.loads((self.folder / run / "results.json").read_text(encoding="utf-8"))
        return {name: value for name, value in results.items() if name not in ("timings", "machine")}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("hosts"))
    assert made.start("alone", devices=8, name="alone").wait() == 0, made.said("alone")
    yield made
    for process in made.started:  # what a test that failed left at work
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_two_processes_is_a_run_of_one(pair: Pair):
    ended = [process.wait() for process in pair.both("two")]
    assert ended == [0, 0], pair.said("two-0") + pair.said("two-1")
    assert pair.results("two") == pair.results("alone")
    assert "2 processes, each with 4 devices" in pair.said("two-0")
    assert pair.said("two-1") == "", "the first one alone says anything"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [0, 1])
def test_the_loss_of_one_ends_the_other_and_the_run_carries_on(pair: Pair, victim: int):
    run = f"lost-{victim}"
    both, journal = pair.both(run), pair.folder / run / "journal.jsonl"
    while not journal.exists() or b"/try/" not in journal.read_bytes():
        assert all(process.poll() is None for process in both), pair.said(f"{run}-0") + pair.said(f"{run}-1")
        time.sleep(0.05)
    both[victim].send_signal(signal.SIGKILL)
    assert both[1 - victim].wait(60) == 1
    said = pair.said(f"{run}-{1 - victim}")
    assert said.count(f"error: process {victim} of 2 has ended or cannot be reached") == 1
    assert "Traceback" not in said
    assert "stack trace" not in said
    kept = journal.read_bytes()
    assert pair.start(run, devices=8, name=f"{run}-resumed").wait() == 0
    assert journal.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])
    assert pair.results(run) == pair.results("alone")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_whose_fellows_do_not_come_says_so(pair: Pair):
    words = ["--distributed.address", "localhost:1", "--distributed.processes", "2", "--distributed.process", "1"]
    assert pair.start("nobody", *words, "--distributed.wait", "3", devices=1, name="nobody").wait(60) == 2
    assert pair.said("nobody").startswith("error: the processes of this run did not meet at localhost:1")
    assert "Traceback" not in pair.said("nobody")
