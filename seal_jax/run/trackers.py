"""Where a run's metrics are shown while it runs: tensorboard, Weights & Biases, trackio, or nowhere.

A tracker works in a thread of its own, because it may be slow, may wait for a network and may fail, and none of that is
the run's business: entries wait in memory for the tracker, what it cannot take is dropped, trouble is said once, and a
run never waits longer than `CLOSE_SECONDS` at its end. `metrics.jsonl` (metrics.py) has every entry whatever happens.

A run that carries on continues the same run of the tracker: `tracker.json` in the run folder keeps its id.

What a service receives: the metrics, the run's settings, and what it notes of the machine by itself. No text of the
terminal, no code and no git state; values that look like keys are taken out (`without_keys`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import queue
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

FLUSH_SECONDS = 10.0  # between writes of what waits in memory; of tensorboard events, a kill loses no more
CLOSE_SECONDS = 30.0  # the longest that a run waits at its end for its tracker
FINISH_SECONDS = 20.0  # the longest that W&B may upload then; what is left stays on disk for `wandb sync`
INIT_SECONDS = 20.0  # to reach W&B, in the background, before its run is kept on disk only; leaves time to do so
WAITING = 100_000  # entries in memory at most, about 1 kB each: more than this and the tracker is not keeping up
SHOWN = 300  # characters of a tracker's error message
KEY_SHAPE = 8  # characters from which a secret is taken out of texts; a shorter one ("none") is no secret

SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")  # environment variables that hold one
SECRET_IN_URL = re.compile(r"(?<=://)[^/\s@]+@|(?<=[?&])(\w*(?:key|token|secret|password))=[^&\s]+", re.IGNORECASE)


@dataclass(frozen=True)
class Tracker:
    """Where the metrics of a run are shown, beside metrics.jsonl."""

    kind: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """tensorboard: files in the run folder; wandb: Weights & Biases (extra `wandb`; WANDB_MODE=offline keeps it on
    disk); trackio: on this machine, or where TRACKIO_SPACE_ID says (extra `trackio`); none: metrics.jsonl only."""
    project: str = "seal_jax"
    """What wandb and trackio file the run under."""


class Entry(NamedTuple):
    """What was measured at one step of one phase."""

    time: float  # seconds since 1970
    phase: str
    step: int  # each phase counts its own
    values: Mapping[str, float]


class Sink(NamedTuple):
    """A tracker that has been started. Called from one thread; each of these may block and may raise."""

    log: Callable[[Entry], None]
    close: Callable[[bool], None]  # whether the run ended well
    flush: Callable[[], None] = lambda: None


class Run(NamedTuple):
    """What a tracker is told of a run."""

    project: str
    folder: Path
    name: str  # that people see; not unique
    id: str  # unique, and the same when the run carries on
    settings: Mapping[str, Any]  # without keys


Say = Callable[[str], None]
Start = Callable[[Say], Sink]


class _End(NamedTuple):
    ok: bool


class Tracking:
    """A tracker at work: `log` and `close` return at once, or at least soon, and never raise.

    Args:
        start: makes the tracker ready, in the tracker's thread, and may tell what a person should know; None is a
          tracker that takes nothing.
        kind: what the tracker is called in messages.
        where: the file that has all entries, for messages.
        say: is told of trouble, once, from the tracker's thread or from `close`; after that, no more.
    """

    def __init__(self, start: Start | None, *, kind: str, where: Path, say: Say):
        self._kind, self._where, self._say = kind, where, say
        self._waiting: queue.SimpleQueue[Entry | _End] = queue.SimpleQueue()
        self._dropped = 0
        self._failed = self._closed = self._left = False
        self._thread: threading.Thread | None = None
        if start is not None:
            # A daemon: the end of the program does not wait for a tracker that hangs.
            self._thread = threading.Thread(target=self._work, args=(start,), name=f"tracker {kind}", daemon=True)
            self._thread.start()

    def log(self, phase: str, step: int, values: Mapping[str, float]) -> None:
        """Hands on what was measured at a step of a phase: finite numbers by name."""
        if self._thread is None or self._failed or self._closed:
            return
        if self._waiting.qsize() >= WAITING:
            self._dropped += 1
        else:
            self._waiting.put(Entry(time.time(), phase, int(step), dict(values)))

    def close(self, ok: bool = True) -> None:
        """Ends it, waiting at most `CLOSE_SECONDS` for what is still under way. `ok`: the run ended well."""
        if self._closed or self._thread is None:
            return
        self._closed = True
        self._waiting.put(_End(ok))
        try:
            self._thread.join(CLOSE_SECONDS)
        finally:
            self._left = True  # what a thread that was left behind still meets is of no interest
        if self._thread.is_alive():
            self._say(self._trouble(f"was not done {CLOSE_SECONDS:g} s after the run and was left behind"))
        elif self._dropped and not self._failed:
            self._say(self._trouble(f"was too slow for {self._dropped} entries"))

    def _work(self, start: Start) -> None:
        doing = "could not be started"
        sink = None
        try:
            sink = start(self._tell)
            doing = "failed"
            self._pass_on(sink)
        except BaseException as error:  # also a SystemExit of somebody's library: it is not ours to end the run
            self._failed = True
            self._tell(self._trouble(f"{doing} ({_reason(error)})"))
            if sink is not None:
                with contextlib.suppress(BaseException):
                    sink.close(False)

    def _pass_on(self, sink: Sink) -> None:
        flushed, unflushed = time.monotonic(), False
        while True:
            try:
                item = self._waiting.get(timeout=FLUSH_SECONDS)
            except queue.Empty:
                item = None
            if isinstance(item, _End):
                return sink.close(item.ok)
            if item is not None:
                sink.log(item)
                unflushed = True
            if unflushed and (item is None or time.monotonic() - flushed >= FLUSH_SECONDS):
                sink.flush()
                flushed, unflushed = time.monotonic(), False

    def _tell(self, text: str) -> None:
        if not self._left:
            self._say(text)

    def _trouble(self, what: str) -> str:
        return f"The tracker {self._kind} {what}. The run does not depend on it; all metrics are in {self._where}"


def open_tracker(
    config: Tracker,
    folder: str | os.PathLike[str],
    *,
    name: str,
    settings: Mapping[str, Any],
    say: Say = print,
) -> Tracking:
    """Starts the tracker of a run, or continues it where the run carries on; returns at once.

    Args:
        folder: of the run. tensorboard events go to `tensorboard/`, W&B's files to `wandb/`.
        name: what people see of the run in a list; need not be unique.
        settings: of the run, as plain JSON.
        say: is told where to look, and of the first trouble; from another thread.

    Raises:
        ValueError: as `require`; a damaged tracker.json.
        OSError: the run folder cannot be written.
    """
    require(config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = None
    if config.kind != "none":
        starts = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
        id = "" if config.kind == "tensorboard" else _run_id(folder / "tracker.json", config.kind)
        start = functools.partial(
            starts[config.kind], Run(config.project, folder, name, id, without_keys(dict(settings)))
        )
    return Tracking(start, kind=config.kind, where=folder / "metrics.jsonl", say=say)


def require(config: Tracker) -> None:
    """Checks, before any work is done, that the tracker is installed and W&B has a key. Asks no network.

    Raises:
        ValueError: it is not so; says what to do.
    """
    if config.kind in ("tensorboard", "none"):
        return
    package, found = None, "it has no `init`, so it is some other folder or file of that name"
    try:
        package = importlib.import_module(config.kind)
    except ImportError as error:
        found = str(error)
    if not hasattr(package, "init"):  # a folder `wandb`, which W&B leaves behind, is importable too
        raise ValueError(
            f"--tracker.kind {config.kind} needs a package that is not installed ({found}): "
            f"pip install 'seal_jax[{config.kind}]', or use --tracker.kind tensorboard"
        )
    if not config.project or re.search(r"[/\\#?%:]", config.project):
        raise ValueError(
            f"--tracker.project is {config.project!r}; expected a name without any of / \\ # ? % :, such as seal_jax"
        )
    if config.kind == "wandb":
        _require_login(package)


def without_keys(value: Any) -> Any:
    """Settings or a text without what looks like a secret, which becomes `[key]`.

    That is the value of any environment variable whose name ends as a key's does (`OPENAI_API_KEY`, `HF_TOKEN`), and in
    an address the part before `@` and the values of parameters so named.
    """
    held = [text for name, text in os.environ.items() if SECRET_VARIABLE.search(name) and len(text) >= KEY_SHAPE]
    held.sort(key=len, reverse=True)  # one may be a part of another

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: clean(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        if not isinstance(value, str):
            return value
        for secret in held:
            value = value.replace(secret, "[key]")
        return SECRET_IN_URL.sub(lambda match: f"{match[1]}=[key]" if match[1] else "[key]@", value)

    return clean(value)


# ---------------------------------------------------------------------------------------------------------------------
# The trackers


def _tensorboard(run: Run, say: Say) -> Sink:
    """Event files. Written without tensorboardX's own queue, which blocks for ever once its thread met a full disk."""
    folder = run.folder / "tensorboard"
    folder.mkdir(exist_ok=True)
    # An event file is named by the second it was opened in; the suffix keeps a quick restart from overwriting one.
    events = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")

    def log(entry: Entry) -> None:
        for name, number in entry.values.items():
            scalar = summary.scalar(f"{entry.phase}/{name}", number)
            events.write_event(Event(summary=scalar, step=entry.step, wall_time=entry.time))

    return Sink(log, lambda ok: events.close(), events.flush)


def _wandb(run: Run, say: Say) -> Sink:
    """A W&B run, in the run folder's `wandb/` and at the service; on disk only where that cannot be reached."""
    wandb = importlib.import_module("wandb")

    def init(mode: str | None, id: str) -> Any:
        return wandb.init(
            project=run.project,
            id=id,
            name=run.name,
            dir=str(run.folder),
            config=dict(run.settings),
            resume="allow",
            mode=mode,
            allow_val_change=True,  # a folder in which nothing was finished may hold a run of other settings now
            reinit="create_new",  # several runs in one process do not meet
            settings=wandb.Settings(
                silent=True,  # the terminal is the progress display's
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_meta=without_keys(sys.argv) != sys.argv,  # it holds the command line as it was typed
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )

    try:
        service = init(None, run.id)
        kept = service.offline
    except Exception as error:
        say(f"Weights & Biases did not take the run ({_reason(error)}); the run goes on")
        # W&B's process holds an id that failed as long as it lives; `wandb sync --id` brings the two together.
        service, kept = init("offline", f"{run.id}-{secrets.token_hex(2)}"), True
    to_send = f"wandb sync --id {run.id} {service.settings.sync_dir}"
    if kept:
        say(f"Weights & Biases: kept on disk; to send it, {to_send}")
    elif service.url:
        say(f"Weights & Biases: {service.url}")
    known: set[str] = set()

    def log(entry: Entry) -> None:
        # Each phase counts its own steps, W&B's counter never goes back: so a phase brings its own axis.
        axis = f"{entry.phase}/step"
        names = {f"{entry.phase}/{name}": number for name, number in entry.values.items()}
        if axis not in known:
            service.define_metric(axis, hidden=True)
        for name in names.keys() - known:
            service.define_metric(name, step_metric=axis)
        known.update(names, [axis])
        if names:
            service.log({**names, axis: entry.step})

    def close(ok: bool) -> None:
        try:
            service.finish(exit_code=0 if ok else 1)
        except TimeoutError:
            say(f"Weights & Biases has not taken everything in {FINISH_SECONDS:g} s; to send the rest, {to_send}")

    return Sink(log, close)


def _trackio(run: Run, say: Say) -> Sink:
    """A trackio run. It is continued by name, so its name holds the id."""
    trackio = importlib.import_module("trackio")
    service = trackio.init(
        project=run.project, name=f"{run.name}-{run.id}", config=dict(run.settings), resume="allow", embed=False
    )

    def log(entry: Entry) -> None:
        if entry.values:
            service.log({f"{entry.phase}/{name}": value for name, value in entry.values.items()}, step=entry.step)

    return Sink(log, lambda ok: service.finish())


def _require_login(wandb: Any) -> None:
    """Sees to it that W&B will not ask for a key in the middle of a run."""
    try:
        # Silent, W&B asks nothing and says nothing: a missing key is an error then.
        settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
        if settings.mode in ("online", "run", "shared"):
            wandb.login(verify=False)  # that would wait for the network
    except Exception as error:
        raise ValueError(
            f"--tracker.kind wandb: {_reason(error)} Run `wandb login` once, or put a key into the environment "
            "variable WANDB_API_KEY; with WANDB_MODE=offline none is needed, and `wandb sync` sends the run later"
        ) from None


def _run_id(path: Path, kind: str) -> str:
    """The run's id at a tracker: from `path`, into which a new one is written."""
    ids: Any = {}
    if path.exists():
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            ids = None
        if not isinstance(ids, dict) or not all(isinstance(id, str) and id for id in ids.values()):
            raise ValueError(
                f'{path} is damaged; expected {{"{kind}": ID}}. Remove it: the run then begins a new one at {kind}'
            )
    if kind not in ids:
        ids[kind] = secrets.token_hex(4)  # no part of the run's randomness: two runs of one seed are two runs there
        scratch = path.with_name(path.name + ".tmp")
        scratch.write_text(json.dumps(ids) + "\n", encoding="utf-8")
        os.replace(scratch, path)
    return ids[kind]


def _reason(error: BaseException) -> str:
    """An error in one line, without keys."""
    text = without_keys(" ".join(str(error).split()))
    return text[:SHOWN] or type(error).__name__
