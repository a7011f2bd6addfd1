"""How a command ends before its end: Ctrl-C, or SIGTERM (what SLURM and `kill` send). Both are heard until they work.

Python turns a signal into a KeyboardInterrupt wherever it happens to be, and one raised in a callback that JAX makes,
or of the garbage collector, is lost there, or comes out as an error of JAX's own. So it is noted as well:
`stop_if_asked`, which runs before every piece of work and whenever the display changes, raises it again, and any error
that ends a command after it counts as the stop. Where it was lost nothing is printed.

Python hears a signal between two of its own instructions, which a program being compiled is for minutes, as is what
waits for it. A thread hears it at once, and ends a program of ours that has not ended a few seconds later.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

from seal_jax.run.terminal import show

HEARD = (signal.SIGINT, signal.SIGTERM)
STOPPED = "stopped; the same command carries on"
GRACE = 5.0  # seconds in which a program ends by itself after a signal
LOUD = [logging.getLogger(name) for name in ("concurrent.futures", "asyncio", "absl")]  # of work in other threads
_asked: list[int] = []  # the signals that came, in order
_reasons: list[str] = []  # why another thread ended the program; whoever takes one says it
_programs: list[int] = []  # this process, where it is a program of ours, and none that uses this as a library
_said: list[str] = []  # the last words, where they are spoken


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end."""


def _hear(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    _silence(True)
    raise Stopped(number)


def stop_if_asked() -> None:
    """Raises KeyboardInterrupt where a signal came and its own was lost."""
    if _asked:
        raise Stopped(_asked[0])


def end(reason: str, grace: float = 20.0) -> None:
    """Ends the program from another thread, with a sentence and status 1; by force after so many seconds."""
    _reasons.append(reason)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(grace)
    if _reasons:  # still in a computation that hears no signal
        os.write(sys.stderr.fileno(), f"{_reasons.pop()}\n".encode())
        os._exit(1)


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Both signals end what runs in this context as Ctrl-C does; one that is ignored (nohup) stays ignored."""
    _asked.clear()
    _said.clear()
    before, report, silent = {}, sys.unraisablehook, False

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if not (_asked or silent or isinstance(lost.exc_value, Stopped)):
            report(lost)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in HEARD}
        _handle(_hear)
        sys.unraisablehook = hook
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        silent = bool(_asked and _programs)  # a program that was stopped says nothing more
        # A hook that stands on this one stays: it is for what may come later still (checkpoints.py).
        if before and sys.unraisablehook is hook and not silent:
            sys.unraisablehook = report
        _silence(silent)
        _asked.clear()


def ended(work: Callable[[], object], stopped: str = STOPPED) -> int:
    """The exit status of a command's work, which a mistake or a signal ends with one sentence, not a traceback."""
    with heard(), _in_time(stopped):
        try:
            _heeding(work)
        except (ValueError, OSError) as error:
            said = error.strerror if isinstance(error, OSError) else None
            said = f"{error.filename}: {said}" if said and error.filename is not None else said  # type: ignore[union-attr]
            show(f"error: {said or error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            code = status()
            _said.append(_reasons.pop() if _reasons else stopped)
            show(_said[0], file=sys.stderr)
            return code
    return 0


@contextlib.contextmanager
def _in_time(stopped: str) -> Iterator[None]:
    """Ends a program of ours a while after a signal, whatever it does; `_hear` is called only between instructions."""
    if not _programs or threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while number := os.read(reading, 1):
            if number[0] in HEARD and signal.getsignal(number[0]) is not signal.SIG_IGN:
                time.sleep(GRACE)
                if not _reasons:  # else `end` has its own time, and words
                    if not _said:
                        os.write(sys.stderr.fileno(), f"{stopped}\n".encode())
                    os._exit(128 + number[0])
        os.close(reading)

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        if not _asked:  # else the thread has the end of the program in view
            signal.set_wakeup_fd(before)
            os.close(writing)


def _heeding(work: Callable[[], object]) -> None:
    """Runs it; an error after a signal is a stop, whatever it has become on its way out of a callback."""
    try:
        work()
    except Exception as error:
        if _asked:
            raise Stopped(_asked[0]) from error
        raise


def status() -> int:
    """The exit status of a program that was stopped. From here on no signal disturbs its last words."""
    code = 1 if _reasons else 128 + (_asked[0] if _asked else signal.SIGINT)
    if threading.current_thread() is threading.main_thread():
        _handle(signal.SIG_IGN)
    if _programs:  # it may have been stopped within a computation, of which the end of the interpreter makes a crash
        atexit.register(leave, code)
    return code


def leave(code: int) -> None:
    """Ends the process at once, its output written."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def until_heard() -> None:
    """For a program that still imports its modules: a signal ends it at once, with the same sentence."""

    def end(number: int, frame: FrameType | None) -> None:
        os.write(sys.stderr.fileno(), f"{STOPPED}\n".encode())
        os._exit(128 + number)

    _programs.append(os.getpid())
    _handle(end)


def _silence(silent: bool) -> None:
    """Checkpoints are read and written by other threads, which find their event loop closed and would report it."""
    for logger in LOUD:
        logger.disabled = silent
    if silent:  # and what they were about to do
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _handle(handler: object) -> None:
    for number in HEARD:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)  # type: ignore[arg-type]
