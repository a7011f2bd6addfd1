"""A word as answers are compared by it, and the lists of words and units that decide (data/words.toml)."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Literal, NamedTuple

LISTS = tomllib.loads(resources.files(__package__).joinpath("data/words.toml").read_text(encoding="utf-8"))
FUNCTION_WORDS = frozenset(LISTS["function_words"].split())
SCALES: dict[str, int] = LISTS["scales"]


class Unit(NamedTuple):
    """What a number counts: 1.5 km is 1500 of the dimension "length"."""

    dimension: str
    factor: float


UNITS: dict[str, Unit] = {
    name: Unit(dimension, float(factor))
    for dimension, scale in LISTS["units"].items()
    for factor, names in scale.items()
    for name in names.split()
}

Kind = Literal["word", "name", "number", "year", "decade", "century", "month", "day", "time", "pair", "function"]
NUMERIC = frozenset({"number", "year", "decade", "century", "time", "pair"})
DATE = frozenset({"month", "day"})


class Word(NamedTuple):
    """One word as it is compared: 1.5 million is "1500000", the 16th century is "16", 5:30 pm is "17:30"."""

    text: str
    kind: Kind
    clause: int = 0  # of the text: a comma, "but" and the like begin another
    unit: Unit | None = None  # of a number; of a time, whether a.m. or p.m. was said
    bound: int = 0  # of a number: 1 "more than", -1 "less than"
    ordinal: bool = False
