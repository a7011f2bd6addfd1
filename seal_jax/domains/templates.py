"""Prompts as text files: TOML with a `raw` and a `chat` text, each with {placeholders}; other braces are ordinary."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

from seal_jax.types import Style


def load_template(path: str | Path, style: Style, *placeholders: str) -> str:
    """The text of one style of a file that holds nothing but `raw` and `chat`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not TOML, a key or placeholder that is missing or unknown; says which file and which key.
    """
    return template_of(read_toml(path), style, placeholders, path)


def fill(template: str, **values: str) -> str:
    """The template with its placeholders filled in one pass: braces in a value are never read as placeholders."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)


def read_toml(
    path: str | Path, required: frozenset[str] = frozenset(), optional: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """A prompt file: text under `raw`, `chat`, every other key of `required` and perhaps some of `optional`.

    Raises:
      FileNotFoundError, ValueError: as `load_template`.
    """
    path, required = Path(path), required | set(get_args(Style))
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file {path}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from error
    if missing := sorted(required - set(table)):
        raise ValueError(f"{path}: key '{missing[0]}' is missing; expected {', '.join(sorted(required | optional))}")
    for key, value in table.items():
        if key not in required | optional:
            close = difflib.get_close_matches(key, required | optional, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected {', '.join(sorted(required | optional))}"
            raise ValueError(f"{path}: unknown key '{key}'; {hint}")
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{path}: key '{key}' is {value!r}; expected text")
    return table


def template_of(table: dict[str, Any], style: Style, placeholders: tuple[str, ...], path: str | Path) -> str:
    """The text of one style, its placeholders checked: a misspelt one would be shown to the model as it stands."""
    if style not in get_args(Style):
        raise ValueError(f"style is {style!r}; expected 'raw' (base models) or 'chat' (instruct models)")
    template = table[style]
    found = set(re.findall(r"\{(\w+)\}", template))
    expected = ", ".join(f"{{{name}}}" for name in placeholders)
    for name in placeholders:
        if name not in found:
            raise ValueError(f"{path}: '{style}' lacks the placeholder {{{name}}}; it needs {expected}")
    for name in sorted(found.difference(placeholders)):
        close = difflib.get_close_matches(name, placeholders, n=1)
        hint = f"did you mean {{{close[0]}}}?" if close else f"known are {expected}"
        raise ValueError(f"{path}: '{style}' has an unknown placeholder {{{name}}}; {hint}")
    return template.strip() if style == "chat" else template  # a chat template sets its own line breaks
