"""Which words of the gold answer an answer has: the same word, another form of it, the same number in other words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from seal_jax.graders.reading import read
from seal_jax.graders.words import DATE, LISTS, NUMERIC, UNITS, Word

ASKED = 0.25  # weight of a word that the question has too: repeating the question is no answer
NUMBER = 1.5  # weight of a number, year, decade or century
MONTH = 0.5  # weight of a month, and of its day
TITLE = 0.3  # weight of a person's title, and of what a number counts
FORENAME = 0.3  # weight of the names before the last of a run of them, where the question asks who
INITIAL = 0.2  # weight of a single letter
VAGUE = 0.2  # weight of a word that says little of itself
SAME_ENDING_ASIDE = 0.9  # credit for another form of the word: annex, annexing
SAME_PLACE = 0.8  # credit for a country's adjective: Japan, Japanese
END_OF_RANGE = 0.5  # credit for 15 in 10-15
MISSPELT = 0.7  # credit for a name one or two letters off
CONVERTED = 0.01  # how far a number in other units may be off: 5 miles, 8 km

TITLES, COUNTED, _VAGUE = (frozenset(LISTS[name].split()) for name in ("titles", "counted", "vague"))
_ENDINGS = frozenset(LISTS["endings"].split()) | {""}
_PLACES = {word: place for place, words in LISTS["places"].items() for word in (place, *words.split())}
_POUNDS = {("money", 3.0), ("mass", 0.45359237)}
_ASKS_WHO = re.compile(r"\b(?:who|whom|whose)\b", re.I)
_OR = re.compile(r"[,;/](?!\d)|\bor\b")
_AND = re.compile(r"[,;/](?!\d)|\band\b|&")
_IDENTITY = frozenset(["money", "temperature", "era", "share"])  # dimensions whose units are not converted
_WORDS = frozenset({"word", "name"})


class Found(NamedTuple):
    """Where a gold word is in the answer, and how well it fits."""

    credit: float  # 0 not there, 1 the same word
    at: int  # position in the answer; -1 not there


_NOWHERE = Found(0.0, -1)


class Gold(NamedTuple):
    """What is looked for."""

    asked: frozenset[str]  # the question's words
    words: list[Word]
    weights: list[float]
    parts: list[list[int]]  # which of the words are enough, each
    items: list[list[int]]  # the words of each item of a list; one item where it is none


@lru_cache(4096)
def wanted_of(question: str, gold: str) -> Gold:
    of_question, words = read(question), read(gold)
    asked = frozenset(word.text for word in of_question if word.kind != "function")
    if any(word.text == "or" for word in of_question):  # a choice between words of the question: they are the answer
        asked = frozenset()
    weights = _weights(words, asked, bool(_ASKS_WHO.search(question)))
    if not any(weights) and any(word.kind == "function" for word in words):  # all there is: "no", "both"
        weights = [1.0] * len(words)
    alternatives = _pieces(_OR, gold, words, "or")
    parts = [part for part in alternatives if sum(weights[k] for k in part) >= ASKED]
    everything = list(range(len(words)))
    items = [item for item in _pieces(_AND, gold, words, "and") if any(weights[k] for k in item)]
    return Gold(asked, words, weights, parts or [everything], items or [everything])


def _pieces(cut: re.Pattern[str], gold: str, words: Sequence[Word], joint: str) -> list[list[int]]:
    """The words of each piece of the gold answer, cut where `cut` says; of the whole where it cannot be cut."""
    everything = list(range(len(words)))
    pieces = [read(piece) for piece in cut.split(gold)]
    positions = [k for k in everything if words[k].text != joint]
    if (
        len(pieces) == 1
        or (joint == "or" and len(positions) == len(everything))
        or [words[k].text for k in positions] != [word.text for piece in pieces for word in piece]
    ):
        return [everything]
    left = iter(positions)
    return [list(itertools.islice(left, len(piece))) for piece in pieces]


def _weights(wanted: Sequence[Word], asked: frozenset[str], who: bool) -> list[float]:
    """How much of the gold answer each of its words is: names and numbers much, function words nothing."""
    numeric = any(word.kind in NUMERIC for word in wanted)
    weights = []
    for k, word in enumerate(wanted):
        weight = 1.0
        if word.kind == "function":
            weight = 0.0
        elif word.text in TITLES or (numeric and word.text in COUNTED):
            weight = TITLE
        elif word.kind in DATE:
            weight = MONTH
        elif word.kind in NUMERIC:
            weight = NUMBER
        elif word.kind == "name" and len(word.text) == 1:
            weight = INITIAL
        elif who and word.kind == "name" and k + 1 < len(wanted) and wanted[k + 1].kind == "name":
            weight = FORENAME
        if word.text in _VAGUE:
            weight *= VAGUE
        weights.append(weight * (ASKED if is_asked(word, asked) else 1.0))
    return weights


def apart(words: Sequence[Word], wanted: Sequence[Word]) -> list[Word]:
    """A range of the answer as two numbers, where the gold answer has several; otherwise as it is."""
    if sum(word.kind == "number" for word in wanted) < 2:
        return list(words)
    return [
        word._replace(text=text, kind="number") if word.kind == "pair" else word
        for word in words
        for text in (_ends(word) if word.kind == "pair" else [word.text])
    ]


def find(gold: Gold, words: Sequence[Word]) -> list[Found]:
    """Where each gold word is in the answer. A word of the answer serves once."""
    by_letter: dict[str, list[int]] = {}
    for i, word in enumerate(words):
        by_letter.setdefault(word.text[0], []).append(i)
    numbers = [i for i, word in enumerate(words) if word.kind in NUMERIC or word.kind in DATE or word.text in UNITS]
    found, taken = [], set()
    for word in gold.words:
        near = (
            numbers
            if word.kind in NUMERIC or word.kind in DATE or word.text in UNITS
            else by_letter.get(word.text[0], ())
        )
        at = [Found(_credit(word, words[i], gold.asked), i) for i in near if i not in taken]
        best = max(at, key=lambda one: one.credit, default=_NOWHERE)
        if not best.credit:
            best = next((Found(SAME_PLACE, i) for i, w in enumerate(words) if _same_place(word, w)), _NOWHERE)
        if not best.credit and word.kind == "pair":
            best = _find_pair(word, words, numbers)
        taken.add(best.at)
        found.append(best)
    if any(word.kind != "function" and not at.credit for word, at in zip(gold.words, found, strict=True)):
        found = _find_joined(gold.words, words) or _find_acronyms(gold.words, words, found)
    return found


def _credit(wanted: Word, word: Word, asked: frozenset[str]) -> float:
    if wanted.kind in NUMERIC or wanted.kind in DATE:
        if word.kind in _WORDS:
            return float(wanted.text == "1" and wanted.unit is not None and UNITS.get(word.text) == wanted.unit)
        if wanted.kind == "number" and word.kind == "pair" and wanted.text in _ends(word) and _same_unit(wanted, word):
            return END_OF_RANGE
        return float(_same_number(wanted, word))
    if wanted.text == word.text:
        return 1.0
    if word.kind == "number":
        return float(word.text == "1" and word.unit is not None and UNITS.get(wanted.text) == word.unit)  # a week
    if wanted.kind not in _WORDS or word.kind not in _WORDS or not (wanted.text + word.text).isalpha():
        return 0.0
    if is_asked(word, asked) and wanted.text not in asked:
        return 0.0  # a word of the question, said again, is not another form of the answer
    if _same_but_for_ending(wanted.text, word.text):
        return SAME_ENDING_ASIDE
    if wanted.kind == "name" and _spelt_out(wanted.text) == _spelt_out(word.text):
        return SAME_ENDING_ASIDE  # Mueller, Müller
    return MISSPELT if (wanted.kind == "name" or len(wanted.text) >= 9) and _misspelt(wanted.text, word.text) else 0.0


def _same_number(wanted: Word, word: Word) -> bool:
    """The same value in the same unit, or in another of its dimension; a year in a decade or century."""
    if wanted.kind in DATE or word.kind in DATE:
        swapped = word.ordinal and word.kind in DATE and wanted.kind in DATE  # 4/7/1776, on either side of the ocean
        return wanted.text == word.text and (wanted.kind == word.kind or swapped)
    if wanted.kind == "decade":
        return word.text == wanted.text or (word.kind == "year" and word.text[:-1] + "0s" == wanted.text)
    if wanted.kind == "century":
        in_century = word.kind == "year" and f"{(int(word.text) - 1) // 100 + 1}" == wanted.text
        return in_century or (word.kind == "century" and word.text == wanted.text)
    if "time" in (wanted.kind, word.kind) or "pair" in (wanted.kind, word.kind):
        return wanted.kind == word.kind and (_same_time if wanted.kind == "time" else _same_pair)(wanted, word)
    if word.kind in ("decade", "century") or wanted.bound * word.bound < 0:
        return False
    ours, theirs = wanted.unit, word.unit
    if wanted.text == word.text:
        return ours is None or theirs is None or _same_unit(wanted, word)
    if ours is None or theirs is None:
        share, other = (wanted, word) if ours and ours.dimension == "share" else (word, wanted)
        part = float(other.text)
        return bool(
            share.unit and share.unit.dimension == "share" and 0 < part < 1 and _close(float(share.text), 100 * part)
        )
    if ours.dimension != theirs.dimension or ours.dimension in _IDENTITY or ours.factor == theirs.factor:
        if not ours.dimension == theirs.dimension == "temperature":
            return False
        first, second = (_celsius(float(w.text), unit.factor) for w, unit in ((wanted, ours), (word, theirs)))
        return first is not None and second is not None and abs(first - second) < 0.6
    return _close(float(wanted.text) * ours.factor, float(word.text) * theirs.factor)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= CONVERTED * max(abs(a), abs(b))


def _celsius(degrees: float, scale: float) -> float | None:
    return {1.0: degrees, 2.0: (degrees - 32) / 1.8, 3.0: degrees - 273.15}.get(scale)


def _same_unit(wanted: Word, word: Word) -> bool:
    ours, theirs = wanted.unit, word.unit
    if ours is None or theirs is None or ours == theirs:
        return True
    if "pound" in (ours.dimension, theirs.dimension):
        return bool({tuple(ours), tuple(theirs)} & _POUNDS)
    return ours.dimension == theirs.dimension == "temperature" and 0 in (ours.factor, theirs.factor)


def _same_time(wanted: Word, word: Word) -> bool:
    said = {wanted.unit.dimension if wanted.unit else "?", word.unit.dimension if word.unit else "?"}
    if "?" not in said or "24" in said:
        return wanted.text == word.text
    hours = {(int(text.split(":")[0]) % 12, text.split(":")[1]) for text in (wanted.text, word.text)}
    return len(hours) == 1


def _same_pair(wanted: Word, word: Word) -> bool:
    return wanted.text == word.text and _same_unit(wanted, word)


def _find_pair(wanted: Word, words: Sequence[Word], numbers: Sequence[int]) -> Found:
    """24-10 as two numbers, one after the other: 24 points against 10."""
    first, second = _ends(wanted)
    for i, j in itertools.pairwise(i for i in numbers if words[i].kind in NUMERIC):
        if (words[i].text, words[j].text) == (first, second):
            return Found(1.0, i)
    return _NOWHERE


def _ends(pair: Word) -> list[str]:
    return re.split(r"(?<=\d)-", pair.text, maxsplit=1)


def _same_place(wanted: Word, word: Word) -> bool:
    place = _PLACES.get(wanted.text)
    return place is not None and _PLACES.get(word.text) == place


def _find_joined(wanted: Sequence[Word], words: Sequence[Word]) -> list[Found] | None:
    """The same letters, spaced otherwise: Ann Arborite, Annarborite."""
    joined = "".join(word.text for word in wanted if word.kind != "function")
    if len(joined) < 7 or any(word.kind in NUMERIC for word in wanted):
        return None
    for at in range(len(words)):
        if joined.startswith(words[at].text) or words[at].text.startswith(joined):
            following = "".join(word.text for word in words[at : at + len(joined)])
            if following.startswith(joined):
                return [Found(1.0, at)] * len(wanted)
    return None


def _find_acronyms(wanted: Sequence[Word], words: Sequence[Word], found: Sequence[Found]) -> list[Found]:
    """IMF for International Monetary Fund, and the other way round; at least three letters."""
    found = list(found)
    content = [i for i, word in enumerate(words) if word.kind != "function"]
    initials = "".join(words[i].text[0] for i in content)
    for k, word in enumerate(wanted):
        start = initials.find(word.text)
        if not found[k].credit and word.kind == "name" and len(word.text) >= 3 and start >= 0:
            found[k] = Found(1.0, content[start])
    names = [k for k, word in enumerate(wanted) if word.kind == "name"]
    initials = "".join(wanted[k].text[0] for k in names)
    for i, word in enumerate(words):
        start = initials.find(word.text)
        if word.kind == "name" and len(word.text) >= 3 and start >= 0:
            for k in names[start : start + len(word.text)]:
                found[k] = found[k] if found[k].credit else Found(1.0, i)
    return found


@lru_cache(1 << 16)
def _spelt_out(text: str) -> str:
    return text.replace("ae", "a").replace("oe", "o").replace("ue", "u").replace("aa", "a")


@lru_cache(1 << 16)
def _same_but_for_ending(a: str, b: str) -> bool:
    """Do the words share four letters (short ones three) and half of the longer, and end in common endings?"""
    shorter, longer = sorted((len(a), len(b)))
    shared = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    for stem in range(shared, max(2, shared - 2), -1):
        long_enough = (stem >= 4 or (shorter <= 4 and stem == 3)) and 2 * stem >= longer
        if long_enough and a[stem:] in _ENDINGS and b[stem:] in _ENDINGS:
            return not (a + b).endswith("ss") and not a.endswith("ss")  # glas is not the singular of glass
    return False


@lru_cache(1 << 16)
def _misspelt(a: str, b: str) -> bool:
    """One letter off from six letters on, two from nine; the first letter is right."""
    longer = max(len(a), len(b))
    limit = 0 if longer < 6 else 1 if longer < 9 else 2
    if abs(len(a) - len(b)) > limit or a[0] != b[0] or not limit:
        return False
    row = list(range(len(b) + 1))  # edit distances, Levenshtein 1966
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1] <= limit


def is_asked(word: Word, asked: frozenset[str]) -> bool:
    if word.text in asked or word.kind not in ("word", "name"):
        return word.text in asked
    return any(other[:3] == word.text[:3] and _same_but_for_ending(other, word.text) for other in asked)
