"""The metrics of a run as they arrive: `metrics.jsonl`, one object a line, and the same figures to a tracker.

A run that carries on appends to both. Steps that are done again after a kill appear twice; the later one counts.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seal_jax.run.trackers import Say, Tracker, open_tracker


class MetricsWriter:
    """Appends metrics to `folder/metrics.jsonl`, and hands them to the run's tracker; a context manager.

    Every line is handed to the operating system at once, so a killed process loses at most the line it was writing.
    Such a line, cut off before its end, is dropped when the folder is opened again. The tracker works beside the run:
    its troubles are told to `say`, once, and end nothing.

    Args:
        name: what people see of the run at the tracker; by default the folder's name.
        settings: of the run, as plain JSON, for the tracker.
        say: is told where the tracker shows the run, and of its first trouble; from another thread.

    Raises:
        ValueError: the tracker is not installed, or has no key.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tracker: Tracker = Tracker(),
        *,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        say: Say = print,
    ):
        folder = Path(folder)
        self._tracking = open_tracker(
            tracker, folder, name=name or folder.absolute().name, settings=settings or {}, say=say
        )
        try:
            path = folder / "metrics.jsonl"
            _drop_unfinished_line(path)
            self._lines = path.open("a", encoding="utf-8")
        except BaseException:
            self._tracking.close(ok=False)
            raise

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(ok=kind is None)

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds `{"time", "phase", "step", "values"}`: time in seconds since 1970, values by name.

        A value is a number (a scalar of NumPy or JAX too) or None; one that is not finite becomes null, because JSON
        has no other word for it, and is kept from the tracker, where it would be called `phase/name`.
        """
        numbers = {name: _finite(value) for name, value in values.items()}
        entry = {"time": round(time.time(), 3), "phase": phase, "step": int(step), "values": numbers}
        self._lines.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
        self._lines.flush()
        self._tracking.log(phase, step, {name: number for name, number in numbers.items() if number is not None})

    def close(self, ok: bool = True) -> None:
        """Ends both; waits for the tracker as long as trackers.py says. `ok`: the run ended well."""
        try:
            self._lines.close()
        finally:
            self._tracking.close(ok)


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _drop_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
