"""The shapes of published models by name: the cost of a size can be computed, or measured on random weights, without
its files. The numbers are in architectures.toml.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from seal_jax.nn.transformer import ModelConfig, RopeScaling


def _read() -> dict[str, ModelConfig]:
    tables: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    shapes: dict[str, ModelConfig] = {}
    for name, fields in tables.items():
        if "rope_scaling" in fields:
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
        like = fields.pop("like", None)
        shapes[name] = replace(shapes[like], **fields) if like else ModelConfig(**fields)
    return shapes


NAMED = _read()


def named(name: str) -> ModelConfig:
    """The shape of a model by its name.

    Raises:
        ValueError: a name that is not in `NAMED`.
    """
    if name not in NAMED:
        close = difflib.get_close_matches(name, NAMED, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"architecture {name!r} is unknown: {meant}There are {', '.join(NAMED)}")
    return NAMED[name]
