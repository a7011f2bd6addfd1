"""results.json as the pages read it: the file, values that may be missing, numbers as a person reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from seal_jax.analysis.statistics import FEWEST

ROUNDING = 1e-9  # shares of a few tasks often differ by exactly nothing: what is left of the sums is no difference
NO_BREAK, MINUS = "\u202f", "\u2212"

Json = dict[str, Any]


class Estimate(NamedTuple):
    """A mean and its 95 % interval as results.json has them; None where it has none."""

    mean: float | None
    low: float | None
    high: float | None

    def verdict(self, passages: int) -> str:
        """What a difference over this many passages (tasks, streams) says.

        "gain", "loss", "unclear" (the interval spans zero) or "unknown" (no interval, or fewer than `FEWEST` passages).
        """
        if self.low is None or self.high is None or passages < FEWEST:
            return "unknown"
        return "gain" if self.low > ROUNDING else "loss" if self.high < -ROUNDING else "unclear"


def read_results(path: Path) -> Json:
    """The results.json at `path`. Raises FileNotFoundError without one, and ValueError for what is no results.json."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there, so there is nothing to report: a run writes it after its first evaluated stage. "
            "Give the folder of a run, the one that holds its results.json."
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}). Run the experiment again in this folder to rewrite it."
        ) from None
    if not isinstance(results, dict):
        raise ValueError(f"{path} holds a {type(results).__name__}; expected an object with rows, rounds and settings.")
    return results


# Values that may be missing


def as_number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def as_numbers(values: Iterable[Any]) -> list[float]:
    """Those that are finite numbers."""
    return [number for number in map(as_number, values) if number is not None]


def as_count(entry: Json, key: str) -> int:
    """How many; none where the entry does not say."""
    return int(as_number(entry.get(key)) or 0)


def section(entry: Json, key: str) -> Json:
    """The object under this key; empty without one."""
    value = entry.get(key)
    return value if isinstance(value, dict) else {}


def entries(entry: Json, key: str) -> list[Any]:
    """The list under this key; empty without one."""
    value = entry.get(key)
    return value if isinstance(value, list) else []


def objects(entry: Json, key: str) -> list[Json]:
    """The objects in the list under this key."""
    return [value for value in entries(entry, key) if isinstance(value, dict)]


def estimate(entry: Json, key: str) -> Estimate:
    """The mean and interval under this key."""
    values = section(entry, key)
    return Estimate(as_number(values.get("mean")), as_number(values.get("low")), as_number(values.get("high")))


def counted(row: Json) -> str:
    """`29 of 40`, how many tries solved their task; empty where the row does not count."""
    solved, tried = as_number(row.get("solved")), as_number(row.get("tried"))
    return "" if solved is None or not tried else f"{int(solved)} of {int(tried)}"


# Settings as text


def settings_of(results: Json) -> Json:
    """The settings of a run; what changes only its cost under "compute", as results.json has them apart."""
    compute = section(results, "compute")
    return section(results, "settings") | ({"compute": compute} if compute else {})


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value as text), nested sections in their place."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value_text(value)))
    return pairs


def value_text(value: Any) -> str:
    """A setting as a person reads it."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(value_text, value)) if isinstance(value, list) else str(value)


# Numbers as a person reads them


def percent(fraction: float | None) -> str:
    """A fraction in percent; a dash for None, here and below."""
    return "—" if fraction is None else f"{100 * fraction:.1f}{NO_BREAK}%"


def points(fraction: float | None) -> str:
    """A difference of two accuracies in percentage points, with its sign."""
    if fraction is None:
        return "—"
    rounded = round(100 * fraction, 1)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else ''}{abs(rounded):.1f}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with so many digits after the point."""
    return "—" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def clock(seconds: float) -> str:
    """A duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NO_BREAK}h {minutes}{NO_BREAK}min" if hours else f"{minutes}{NO_BREAK}min {rest}{NO_BREAK}s"
