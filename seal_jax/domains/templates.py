"""Prompts as text files: TOML with a `raw` and a `chat` text, each with {placeholders}; other braces are ordinary."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import ClassVar, TypeVar, get_args

import msgspec

from seal_jax.domains.records import Text, convert, load_toml
from seal_jax.types import Style


class Templates(msgspec.Struct, forbid_unknown_fields=True):
    """A prompt file; a file with more keys is read as a subclass of this."""

    form: ClassVar[str] = "raw, chat"
    raw: Text
    chat: Text


F = TypeVar("F", bound=Templates)


def load_template(path: str | Path, style: Style, *placeholders: str) -> str:
    """The text of one style of a file that holds nothing but `raw` and `chat`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not TOML, a key or placeholder that is missing or unknown; says which file and which key.
    """
    return read_templates(path, style, placeholders, Templates)[0]


def read_templates(path: str | Path, style: Style, placeholders: tuple[str, ...], kind: type[F]) -> tuple[str, F]:
    """The text of one style, its placeholders checked, and the whole file. Raises what `load_template` raises."""
    path = Path(path)
    if style not in get_args(Style):
        raise ValueError(f"style is {style!r}; expected 'raw' (base models) or 'chat' (instruct models)")
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file {path}")
    form = f"texts under the keys {kind.form}"
    file = convert(load_toml(path.read_bytes(), str(path), form), kind, str(path), form)
    template: str = getattr(file, style)
    found, expected = set(re.findall(r"\{(\w+)\}", template)), ", ".join(f"{{{name}}}" for name in placeholders)
    for name in placeholders:
        if name not in found:
            raise ValueError(f"{path}: '{style}' lacks the placeholder {{{name}}}; it needs {expected}")
    for name in sorted(found.difference(placeholders)):  # a misspelt one would be shown to the model as it stands
        close = difflib.get_close_matches(name, placeholders, n=1)
        hint = f"did you mean {{{close[0]}}}?" if close else f"known are {expected}"
        raise ValueError(f"{path}: '{style}' has an unknown placeholder {{{name}}}; {hint}")
    return template.strip() if style == "chat" else template, file  # a chat template sets its own line breaks


def fill(template: str, **values: str) -> str:
    """The template with its placeholders filled in one pass: braces in a value are never read as placeholders."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)
