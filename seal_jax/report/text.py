"""Settings, numbers and durations as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_BREAK, MINUS, DASH = "\u202f", "\u2212", "—"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value as text), nested sections in their place."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        pairs += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value_text(value))]
    return pairs


def value_text(value: Any) -> str:
    """A setting."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(value_text, value)) if isinstance(value, list) else str(value)


def percent(fraction: float | None) -> str:
    """A fraction in percent; a dash for None, here and in the next two."""
    return DASH if fraction is None else f"{100 * fraction:.1f}{NO_BREAK}%"


def points(fraction: float | None) -> str:
    """A difference of two accuracies in percentage points, with its sign."""
    if fraction is None:
        return DASH
    rounded = round(100 * fraction, 1)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else ''}{abs(rounded):.1f}"


def decimal(value: float | None, digits: int = 2) -> str:
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def clock(seconds: float | None) -> str:
    """A duration in its two largest units."""
    if seconds is None or seconds < 60:
        return DASH if seconds is None else f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NO_BREAK}h {minutes}{NO_BREAK}min" if hours else f"{minutes}{NO_BREAK}min {rest}{NO_BREAK}s"
