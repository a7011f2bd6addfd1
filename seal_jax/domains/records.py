"""Records read from JSON, a field at a time: what is not as expected is named, with where it stands."""

from __future__ import annotations

import re
import unicodedata
from typing import Any


def field(record: Any, name: str, where: str) -> Any:
    """A field of an object.

    Raises:
      ValueError: no object, or none with this field; begins with `where`. So do the errors of the others here.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where}: is {describe(record)}; expected an object with a field '{name}'")
    if name not in record:
        raise ValueError(f"{where}: field '{name}' is missing; found {', '.join(map(repr, record)) or 'no field'}")
    return record[name]


def text_field(record: Any, name: str, where: str) -> str:
    """A field that holds text, without the blanks around it."""
    value = field(record, name, where)
    if not isinstance(value, str):
        raise ValueError(f"{where}: field '{name}' is {describe(value)}; expected text")
    if not value.strip():
        raise ValueError(f"{where}: field '{name}' is empty; expected text")
    return value.strip()


def list_field(record: Any, name: str, where: str, *, of: str = "", shape: str = "") -> list[Any]:
    """A field that holds a list; with `of`, which says of what (and of which shape), one that is not empty."""
    value = field(record, name, where)
    if not isinstance(value, list):
        entries = f" of {of}s {shape}".rstrip() if of else ""
        raise ValueError(f"{where}: field '{name}' is {describe(value)}; expected a list{entries}")
    if of and not value:
        raise ValueError(f"{where}: field '{name}' is empty; expected at least one {of} {shape}".rstrip())
    return value


def describe(value: Any) -> str:
    """A value's type, and as much of it as a sentence has room for."""
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else f"of {value.bit_length()} bits"
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"


def slug(text: str) -> str:
    """A text as part of an id: lower-case letters and digits, hyphens between."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
