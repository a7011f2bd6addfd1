"""The metrics of a run as they arrive: `metrics.jsonl`, one object a line, and the same figures to a tracker.

A tracker (tensorboard, Weights & Biases, trackio) works in a thread of its own, because it may be slow, may wait for a
network and may fail: the first failure is printed, the run goes on, and it waits at most `CLOSE_SECONDS` at its end.

A run that carries on appends to `metrics.jsonl` (steps that are done again after a kill appear twice; the later one
counts) and continues the same run of the tracker: `tracker.json` in the run folder keeps its id.

A service receives the metrics, the run's settings, and what it notes of the machine by itself. No text of the
terminal, no code and no git state; values that look like keys are removed (`without_keys`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import queue
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import msgspec
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from seal_jax.run.journal import write_atomically
from seal_jax.run.terminal import show

CLOSE_SECONDS = 30.0  # the longest that a run waits at its end for its tracker
FINISH_SECONDS = 20.0  # the longest that W&B may upload then; what is left stays on disk for `wandb sync`
INIT_SECONDS = 20.0  # to reach W&B, in the background, before its run is kept on disk only; leaves time to do so
KEY_SHAPE = 8  # characters from which a secret is removed from texts; a shorter one ("none") is no secret

SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")  # environment variables that hold one
SECRET_IN_URL = re.compile(r"(?<=://)[^/\s@]+@|(?<=[?&])(\w*(?:key|token|secret|password))=[^&\s]+", re.IGNORECASE)


SERVICES = ("wandb", "trackio")  # packages of their own, in which a run has an id
Id = Annotated[str, msgspec.Meta(min_length=1)]  # of a run, at a tracker


@dataclass(frozen=True)
class Tracker:
    """Where the metrics of a run are shown, beside metrics.jsonl."""

    kind: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """tensorboard: files in the run folder; wandb: Weights & Biases (extra `wandb`; WANDB_MODE=offline keeps it on
    disk); trackio: on this machine, or where TRACKIO_SPACE_ID says (extra `trackio`); none: metrics.jsonl only."""
    project: str = "seal_jax"
    """What wandb and trackio file the run under."""


class Run(NamedTuple):
    """What a tracker receives about a run."""

    project: str
    folder: Path
    name: str  # that people see; not unique
    id: str  # unique, and the same when the run carries on
    settings: dict[str, Any]  # without keys
    say: Callable[[str], None]


class Sink(NamedTuple):
    """A tracker that has been started. Called from one thread; both may block and may raise."""

    log: Callable[[str, int, Mapping[str, float]], None]  # tag, which is the phase; step, which each counts; values
    close: Callable[[bool], None]  # whether the run ended well


class MetricsWriter:
    """Appends metrics to `folder/metrics.jsonl`, and passes them to the run's tracker; a context manager.

    Every line is handed to the operating system at once, so a killed process loses at most the line it was writing.
    Such a line, cut off before its end, is removed when the folder is opened again.

    Args:
        name: what people see of the run at the tracker; by default the folder's name.
        settings: of the run, as plain JSON, for the tracker.
        say: receives where the tracker shows the run, and its first trouble; called from another thread.

    Raises:
        ValueError: as `require`; a damaged tracker.json.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tracker: Tracker = Tracker(),
        *,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = show,
    ):
        require(tracker)
        self._folder, self._kind, self._say = Path(folder), tracker.kind, say
        self._folder.mkdir(parents=True, exist_ok=True)
        id = run_id(self._folder / "tracker.json", tracker.kind) if tracker.kind in SERVICES else ""
        self._lines = (self._folder / "metrics.jsonl").open("a+b")
        self._lines.seek(0)
        self._lines.truncate(self._lines.read().rfind(b"\n") + 1)
        self._waiting: queue.SimpleQueue[tuple[str, int, Mapping[str, float]] | bool] = queue.SimpleQueue()
        name, about = name or self._folder.absolute().name, without_keys(dict(settings or {}))
        run = Run(tracker.project, self._folder, name, id, about, lambda text: self._say(text))
        # A daemon: the end of the program does not wait for a tracker that hangs.
        self._tracking = threading.Thread(target=self._track, args=(run,), name=f"tracker {tracker.kind}", daemon=True)
        self._tracking.start()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(ok=kind is None)

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds `{"time", "phase", "step", "values"}`: time in seconds since 1970, values by name.

        A value is a number (a scalar of NumPy or JAX too) or None; one that is not finite becomes null, because JSON
        has no other word for it, and is kept from the tracker, where it would be called `phase/name`.
        """
        finite = {name: float(x) for name, x in values.items() if x is not None and math.isfinite(x)}
        numbers = {name: finite.get(name) for name in values}
        entry = {"time": round(time.time(), 3), "phase": phase, "step": int(step), "values": numbers}
        self._lines.write(json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._lines.flush()
        if finite and self._tracking.is_alive():
            self._waiting.put((phase, int(step), finite))

    def close(self, ok: bool = True) -> None:
        """Ends both, waiting at most `CLOSE_SECONDS` for the tracker. `ok`: the run ended well."""
        self._lines.close()
        self._waiting.put(ok)
        try:
            self._tracking.join(CLOSE_SECONDS)
            if self._tracking.is_alive():
                self._trouble(f"was not done {CLOSE_SECONDS:g} s after the run and was left behind")
        finally:
            self._say = lambda text: None  # a thread that was left behind must not write into whatever runs then

    def _track(self, run: Run) -> None:
        sink = None
        try:
            sink = SINKS[self._kind](run)
            while isinstance(item := self._waiting.get(), tuple):
                sink.log(*item)
            sink.close(item)
        except BaseException as error:  # also a SystemExit of a library: it does not end the run
            self._trouble(f"{'failed' if sink else 'could not be started'} ({_reason(error)})")
            if sink:
                with contextlib.suppress(BaseException):
                    sink.close(False)

    def _trouble(self, what: str) -> None:
        where = self._folder / "metrics.jsonl"
        self._say(f"The tracker {self._kind} {what}. The run does not depend on it; all metrics are in {where}")


def require(config: Tracker) -> None:
    """Checks, before any work is done, that the tracker is installed and W&B has a key. Uses no network.

    Raises:
        ValueError: it is not so; says what to do.
    """
    if config.kind not in SERVICES:
        return
    try:
        package = importlib.import_module(config.kind)
        package.init  # noqa: B018  # a folder `wandb`, which W&B leaves behind, is importable too
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"--tracker.kind {config.kind} needs a package that is not installed ({error}): "
            f"pip install 'seal_jax[{config.kind}]', or use --tracker.kind tensorboard"
        ) from None
    if not config.project or re.search(r"[/\\#?%:]", config.project):
        raise ValueError(
            f"--tracker.project is {config.project!r}; expected a name without any of / \\ # ? % :, such as seal_jax"
        )
    if config.kind != "wandb":
        return
    try:  # W&B must not ask for a key in the middle of a run: silent, it asks nothing, and a missing key is an error
        settings = package.setup(settings=package.Settings(silent=True)).settings
        if settings.mode in ("online", "run", "shared"):
            package.login(verify=False)  # verifying would wait for the network
    except Exception as error:
        raise ValueError(
            f"--tracker.kind wandb: {_reason(error)} Run `wandb login` once, or put a key into the environment "
            "variable WANDB_API_KEY; with WANDB_MODE=offline none is needed, and `wandb sync` sends the run later"
        ) from None


def without_keys(value: Any) -> Any:
    """Settings (plain JSON) or a text in which what looks like a secret is replaced by `[key]`.

    That is the value of any environment variable whose name ends as a key's does (`OPENAI_API_KEY`, `HF_TOKEN`), and in
    an address the part before `@` and the values of parameters with such names.
    """
    held = [text for name, text in os.environ.items() if SECRET_VARIABLE.search(name) and len(text) >= KEY_SHAPE]
    held.sort(key=len, reverse=True)  # one may be a part of another

    def clean(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        for secret in held:
            value = value.replace(secret, "[key]")
        return SECRET_IN_URL.sub(lambda match: f"{match[1]}=[key]" if match[1] else "[key]@", value)

    return jax.tree.map(clean, value)


def tensorboard(run: Run) -> Sink:
    """Event files. Written without tensorboardX's queue, which blocks for ever once its thread met a full disk."""
    folder = run.folder / "tensorboard"
    folder.mkdir(exist_ok=True)
    # An event file is named by the second it was opened in; the suffix keeps a quick restart from overwriting one.
    events = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")

    def log(tag: str, step: int, values: Mapping[str, float]) -> None:
        for name, number in values.items():
            scalar = summary.scalar(f"{tag}/{name}", number)
            events.write_event(Event(summary=scalar, step=step, wall_time=time.time()))
        events.flush()

    return Sink(log, lambda ok: events.close())


def wandb(run: Run) -> Sink:
    """A W&B run, in the run folder's `wandb/` and at the service; on disk only where that cannot be reached."""
    package = importlib.import_module("wandb")
    settings = package.Settings(
        silent=True,  # the terminal is the progress display's
        console="off",
        save_code=False,
        disable_git=True,
        x_disable_meta=without_keys(sys.argv) != sys.argv,  # it holds the command line as it was typed
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    # `allow_val_change`: a folder in which nothing was finished may hold a run of other settings now. "create_new":
    # several runs in one process are kept apart.
    init = partial(
        package.init, project=run.project, name=run.name, dir=str(run.folder), config=run.settings, settings=settings,
        resume="allow", allow_val_change=True, reinit="create_new",
    )  # fmt: skip
    try:
        service = init(id=run.id)
        kept = service.offline
    except Exception as error:
        run.say(f"Weights & Biases did not take the run ({_reason(error)}); the run goes on")
        # W&B's process holds an id that failed as long as it lives; `wandb sync --id` brings the two together.
        service, kept = init(mode="offline", id=f"{run.id}-{secrets.token_hex(2)}"), True
    to_send = f"wandb sync --id {run.id} {service.settings.sync_dir}"
    if kept or service.url:
        run.say(f"Weights & Biases: {f'kept on disk; to send it, {to_send}' if kept else service.url}")

    def log(tag: str, step: int, values: Mapping[str, float]) -> None:
        # Each phase counts its own steps, W&B's counter never goes back: so a phase brings its own axis.
        service.define_metric(f"{tag}/step", hidden=True)
        for name in values:
            service.define_metric(f"{tag}/{name}", step_metric=f"{tag}/step")
        service.log({f"{tag}/{name}": number for name, number in {**values, "step": step}.items()})

    def close(ok: bool) -> None:
        try:
            service.finish(exit_code=0 if ok else 1)
        except TimeoutError:
            run.say(f"Weights & Biases has not taken everything in {FINISH_SECONDS:g} s; to send the rest, {to_send}")

    return Sink(log, close)


def trackio(run: Run) -> Sink:
    """A trackio run. It is continued by name, so its name holds the id."""
    service = importlib.import_module("trackio").init(
        project=run.project, name=f"{run.name}-{run.id}", config=run.settings, resume="allow", embed=False
    )

    def log(tag: str, step: int, values: Mapping[str, float]) -> None:
        service.log({f"{tag}/{name}": number for name, number in values.items()}, step=step)

    return Sink(log, lambda ok: service.finish())


SINKS: dict[str, Callable[[Run], Sink]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "trackio": trackio,
    "none": lambda run: Sink(lambda *entry: None, lambda ok: None),
}


def run_id(path: Path, kind: str) -> str:
    """The run's id at a tracker: from `path`, into which a new one is written.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        ids = msgspec.json.decode(path.read_bytes(), type=dict[str, Id]) if path.exists() else {}
    except ValueError:
        remove = f"Remove it: the run then begins a new one at {kind}"
        raise ValueError(f'{path} is damaged; expected {{"{kind}": ID}}. {remove}') from None
    if kind not in ids:
        ids[kind] = secrets.token_hex(4)  # no part of the run's randomness: two runs of one seed are two runs there
        write_atomically(path, json.dumps(ids) + "\n")
    return ids[kind]


def _reason(error: BaseException) -> str:
    """An error in one line of at most 300 characters, without keys."""
    return without_keys(" ".join(str(error).split()))[:300] or type(error).__name__
