"""The metrics of a run as they arrive: `metrics.jsonl`, one object a line, and the same figures as tensorboard events.

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

from tensorboardX import SummaryWriter

FLUSH_SECONDS = 10  # of tensorboard events that a kill may lose; the lines lose none


class MetricsWriter:
    """Appends metrics to `folder/metrics.jsonl` and `folder/tensorboard/`; a context manager.

    Every line is handed to the operating system at once, so a killed process loses at most the line it was writing.
    Such a line, cut off before its end, is dropped when the folder is opened again.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _drop_unfinished_line(path)
        self._lines = path.open("a", encoding="utf-8")
        # An event file is named by the second it was opened in; the suffix keeps a quick restart from overwriting one.
        suffix = f".{time.time_ns()}"
        self._events = SummaryWriter(str(folder / "tensorboard"), filename_suffix=suffix, flush_secs=FLUSH_SECONDS)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds `{"time", "phase", "step", "values"}`: time in seconds since 1970, values by name.

        A value is a number (a scalar of NumPy or JAX too) or None; one that is not finite becomes null, because JSON
        has no other word for it, and is left out of tensorboard, where the tag is `phase/name`.
        """
        numbers = {name: _finite(value) for name, value in values.items()}
        entry = {"time": round(time.time(), 3), "phase": phase, "step": int(step), "values": numbers}
        self._lines.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
        self._lines.flush()
        for name, number in numbers.items():
            if number is not None:
                self._events.add_scalar(f"{phase}/{name}", number, int(step))

    def close(self) -> None:
        self._lines.close()
        self._events.close()


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
