"""A word as answers are compared by it, in one spelling, and the lists that decide (data/words.toml)."""

from __future__ import annotations

import re
import tomllib
import unicodedata
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


_LETTERS = str.maketrans(LISTS["letters"])
_SUPERSCRIPTS = re.compile(r"(?<=\d)([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff々"


def plain(text: str) -> str:
    """The text without accents and in one width; fractions, superscripts, dashes and digits as ASCII has them."""
    if text.isascii():
        return text
    text = _SUPERSCRIPTS.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[1]), text)
    text = "".join(" " + c if unicodedata.numeric(c, 0) % 1 else c for c in text)  # 3½ is 3 1/2
    text = unicodedata.normalize("NFKC", text).translate(_LETTERS)
    kept: list[str] = []
    for c in unicodedata.normalize("NFD", text):
        if (
            not unicodedata.combining(c)
            or not kept
            or not unicodedata.name(kept[-1], "").startswith(("LATIN", "GREEK"))
        ):
            kept.append(c)
    text = unicodedata.normalize("NFC", "".join(kept))
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() and not c.isascii() else c for c in text)
