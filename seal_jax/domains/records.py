"""Records read from JSON or TOML through their types: what is not as expected is named, with the file and its path."""

from __future__ import annotations

import json
import re
import reprlib
import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

T = TypeVar("T")
Text = Annotated[str, msgspec.Meta(pattern=r"\S")]  # not blank

MOST_BYTES = 2**20  # of TOML
_DOTTED = re.compile(rb"""(?<![\w"'-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){32}""")


def decode(content: bytes, kind: type[T], where: str, form: str) -> T:
    """JSON as a `kind`.

    Raises:
      ValueError: not UTF-8, not JSON, an object that has a name twice, or what `convert` raises; begins with `where`.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8 JSON: {form}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"{where}: not JSON: {place}; expected {form}") from error
    except (ValueError, RecursionError) as error:  # a name twice, a number of thousands of digits, nested too deeply
        raise ValueError(f"{where}: not as expected: {error}; expected {form}") from error
    return convert(value, kind, where, form)


def load_toml(content: bytes, where: str, form: str) -> dict[str, Any]:
    """TOML as a table.

    Raises:
      ValueError: not UTF-8, not TOML, too large, nested too deeply; begins with `where`.
    """
    if len(content) > MOST_BYTES or _DOTTED.search(content):  # memory grows with the square of a key's parts
        raise ValueError(
            f"{where}: {len(content):,} bytes, or a key of many parts; expected {form}, at most {MOST_BYTES:,} bytes"
        )
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # the former also of a number of thousands of digits
        raise ValueError(f"{where}: not TOML: {error}; expected {form}") from error


def convert(value: Any, kind: type[T], where: str, form: str) -> T:
    """A value read from JSON or TOML as a `kind`. Fields that it does not have are ignored unless it forbids them.

    Raises:
      ValueError: says `where`, the path of what is wrong (`$[3].questions[0].answer`), what was found, and the `form`
        that was expected.
    """
    try:
        return msgspec.convert(value, kind)
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply; expected {form}") from error
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter of half a surrogate pair
        said, _, path = str(error).replace(r"`str` matching regex '\\S'", "text that is not blank").partition(" - at `")
        path = path.rstrip("`") or "$"
        found = value
        for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
            try:
                found = found[name or int(index)]
            except (
                KeyError,
                IndexError,
                TypeError,
            ):  # a key that is no plain word, or the values of an object, `[...]`
                break
        raise ValueError(f"{where}: {path}: {said}; found {describe(found)}. Expected {form}") from error


def describe(value: Any) -> str:
    """As much of a value as a sentence has room for."""
    shown = reprlib.repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def _without_duplicates(items: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        twice = next(name for name, times in Counter(name for name, _ in items).items() if times > 1)
        raise ValueError(f"an object has the name {twice!r} twice")
    return found
