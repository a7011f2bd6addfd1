"""Ctrl-C and SIGTERM end a command with a sentence, whatever it does, also where JAX swallowed the first one."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from seal_jax.run import ends
from seal_jax.run.journal import RunFolder
from seal_jax.run.progress import Progress

ROOT = Path(__file__).parents[1]
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def signals_are_not_ignored():
    """A shell gives its background jobs an ignored SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(1)  # it is heard before that is over


@BOTH
def test_a_signal_ends_as_one_sentence_and_the_handlers_are_put_back(number, capsys):
    before = signal.getsignal(number)
    assert ends.ended(lambda: send(number)) == 128 + number
    assert capsys.readouterr().err == "stopped; the same command carries on\n"
    assert signal.getsignal(number) is before
    assert ends.ended(lambda: None) == 0


@BOTH
def test_a_signal_that_was_swallowed_is_asked_again(number, tmp_path):
    """By the next piece of work, and by the display; and a second signal works as the first one should have."""

    def swallowing() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            send(number)

    run, done = RunFolder(tmp_path / "run", {}), []

    def work() -> None:
        swallowing()
        done.append("went on")
        run.once("piece", lambda: done.append("worked"))

    assert ends.ended(work) == 128 + number
    assert done == ["went on"]

    def showing() -> None:
        with Progress() as progress:
            progress.phase("a", 3)
            swallowing()
            progress.training(1, 5)

    assert ends.ended(showing) == 128 + number

    def twice() -> None:
        swallowing()
        send(number)

    assert ends.ended(twice) == 128 + number
    assert run.once("piece", lambda: 3) == 3  # nothing is left of them


@BOTH
def test_a_signal_that_python_itself_drops_is_not_printed(number, tmp_path, capsys):
    """As in a callback of the garbage collector, or in a destructor: only our exception, and it is asked again."""

    class Dropping:
        def __init__(self, work):
            self.work = work

        def __del__(self):
            self.work()

    def drop(work) -> None:
        made = Dropping(work)
        del made

    def work() -> None:
        run = RunFolder(tmp_path / "run", {})
        with contextlib.closing(run):
            drop(lambda: send(number))
            run.once("piece", lambda: None)

    before = sys.unraisablehook
    assert ends.ended(work) == 128 + number
    assert capsys.readouterr().err == "stopped; the same command carries on\n"
    assert sys.unraisablehook is before

    others = []
    sys.unraisablehook = others.append
    assert ends.ended(lambda: drop(lambda: 1 / 0)) == 0
    sys.unraisablehook = before
    assert [lost.exc_type for lost in others] == [ZeroDivisionError]


@BOTH
def test_threads_that_are_still_at_work_report_nothing_after_a_signal(number, caplog):
    """A checkpoint's thread finds the event loop closed, and concurrent.futures logs a traceback of that."""
    begun, ended = threading.Event(), []

    def closed(future) -> None:
        raise RuntimeError("Event loop is closed")

    def work() -> None:
        with ThreadPoolExecutor(1) as threads:
            future = threads.submit(begun.wait)
            future.add_done_callback(closed)
            try:
                send(number)
            finally:
                begun.set()
                future.result()
                ended.append(number)

    assert ends.ended(work) == 128 + number
    assert ended and not caplog.records
    begun.clear()
    threads = ThreadPoolExecutor(1)
    threads.submit(int).add_done_callback(closed)
    threads.shutdown()
    assert [record.name for record in caplog.records] == ["concurrent.futures"]  # at other times they do


def test_mistakes_end_as_one_sentence_and_others_do_not(capsys):
    def fail(error: Exception) -> None:
        raise error

    for error, said in (
        (ValueError("rank is 0"), "error: rank is 0\n"),
        (FileNotFoundError(2, "No such file", "a.md"), "error: a.md: No such file\n"),
        (OSError(errno.ENOSPC, "/run: the disk is full. Make room"), "error: /run: the disk is full. Make room\n"),
        (ValueError("a\x1b[31mred"), "error: ared\n"),
    ):
        assert ends.ended(lambda error=error: fail(error)) == 2
        assert capsys.readouterr().err == said
    with pytest.raises(ZeroDivisionError):
        ends.ended(lambda: 1 / 0)


@BOTH
def test_a_signal_that_becomes_an_error_of_jax_is_still_a_stop(number, capsys):
    """JAX compares static fields of pytrees in C++, and reports what is raised there as a ValueError."""

    def work() -> None:
        try:
            send(number)
        except KeyboardInterrupt as signalled:
            raise ValueError("Exception raised while checking equality of metadata fields of pytree") from signalled

    assert ends.ended(work) == 128 + number
    assert capsys.readouterr().err == "stopped; the same command carries on\n"


STUCK = """
from seal_jax.run import ends
ends.until_heard()
import jax, sys
def work():
    print("at work", flush=True)
    jax.block_until_ready(jax.jit(lambda: jax.lax.while_loop(lambda n: n >= 0, lambda n: n ^ 1, 1))())
sys.exit(ends.ended(work))
"""


@BOTH
def test_a_program_within_a_computation_that_hears_nothing_ends_all_the_same(number):
    """As one that is compiled for minutes, or waits for a thread in which another is."""
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "at work\n"
        time.sleep(1)
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number and said == "stopped; the same command carries on\n"


CHECKPOINTS = """
from seal_jax.run import checkpoints, ends
ends.until_heard()
import os, sys, threading, time
from pathlib import Path
import numpy as np
import jax
tree = {str(i): np.ones((64, 64), np.float32) for i in range(300)}
like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
path = Path(sys.argv[1])
def work():
    checkpoints.save(path, tree)
    checkpoints.restore(path, like, "")
    threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), int(sys.argv[4]))).start()
    while True:
        checkpoints.save(path, tree) if sys.argv[2] == "save" else checkpoints.restore(path, like, "")
sys.exit(ends.ended(work))
"""


@BOTH
@pytest.mark.slow
@pytest.mark.parametrize("what", ["save", "restore"])
def test_a_signal_within_a_checkpoint_ends_as_one_sentence(what, number, tmp_path):
    """Its threads find their event loop closed. TensorStore's tell Python so, the others log it; Orbax's too."""
    for after in (0.05, 0.13, 0.23):
        words = [sys.executable, "-c", CHECKPOINTS, str(tmp_path / "tree"), what, str(after), str(int(number))]
        done = subprocess.run(
            words, cwd=ROOT, text=True, capture_output=True, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"}
        )
        assert (done.returncode, done.stderr) == (128 + number, "stopped; the same command carries on\n")


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert ends.ended(lambda: send(signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_in_a_thread_leaves_signals_alone():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(ends.ended(lambda: None)))
    thread.start()
    thread.join()
    assert codes == [0]


@BOTH
def test_a_signal_while_modules_are_imported_ends_as_one_sentence(number):
    script = (
        f"import os, signal; signal.signal({number:d}, signal.default_int_handler); from seal_jax.run import ends; "
        f"ends.until_heard(); os.kill(os.getpid(), {number:d})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, "stopped; the same command carries on\n")
