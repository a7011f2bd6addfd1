"""Numbers that are written without digits: nineteen eighty-four, half a million, XIV, 三十五人."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from seal_jax.graders.words import LISTS, SCALES

_NUMBERS: dict[str, int] = LISTS["numbers"]
_ORDINALS: dict[str, int] = LISTS["ordinals"]
_FRACTIONS: dict[str, int] = LISTS["fractions"]
_HAN_NUMBER = re.compile(
    r"(?<![一-鿿\d])[〇零一二三四五六七八九十百千万萬億亿两兩]+(?=[年月日号個个名人歳岁度分点時时回次件本枚%]|[^一-鿿]|$)"
)
_HAN_SCALE = re.compile(r"(\d+(?:\.\d+)?)\s?([千万萬億亿兆천만억조])")
_EASTERN_TIME = re.compile(
    r"(午前|上午|午後|下午|오전|오후)?\s?(\d{1,2})\s?[時时点點시](?!\w*間|間|间|간)\s?(半|반|(\d{1,2})[分분])?"
)
_HAN = {c: n for n, digits in enumerate("〇一二三四五六七八九") for c in digits} | {"零": 0, "两": 2, "兩": 2}
_HAN_SCALES = {"十": 10, "百": 100, "千": 10**3, "천": 10**3, "万": 10**4, "萬": 10**4, "만": 10**4}
_HAN_SCALES |= {"億": 10**8, "亿": 10**8, "억": 10**8, "兆": 10**12, "조": 10**12}
_ROMAN = re.compile(r"(?=[IVX]+$)X{0,3}(?:IX|IV|V?I{0,3})$")
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10}
LONGEST = 14  # words of a number


class Numeral(NamedTuple):
    """A number that was read, and how many words it takes."""

    value: float
    words: int
    ordinal: bool = False
    year: bool = False  # said as a year is: nineteen eighty-four


def in_words(texts: Sequence[str]) -> Numeral | None:
    """The number that words, in small letters, begin with: twenty-one, one hundred and five, three quarters, tenth."""
    total, last, n = 0.0, "", 0
    current: float | None = None
    ordinal = fraction = False
    while n < len(texts):
        word = texts[n]
        value = _NUMBERS.get(word, _ORDINALS.get(word))
        follows_and = n > 0 and word == "and" and last in SCALES
        if value is not None:
            if current is not None and last not in SCALES and last != "and":
                if current % 100 >= 20 and current % 10 == 0 and 0 < value < 10:
                    current += value  # ninety-nine; nineteen eighty-four
                elif not total and 10 <= current < 100 and value >= 10 and word in _NUMBERS and last in _NUMBERS:
                    current = current * 100 + value  # nineteen eighty
                else:
                    break
            else:
                current = (current or 0) + value
            ordinal = word in _ORDINALS
        elif word in SCALES and (current is not None or n == 0) and len(word) > 2:
            scale = SCALES[word]
            if scale == 100 or scale == 12 or scale == 20:
                current = (current if current is not None else 1) * scale
            else:
                total, current = total + (current if current is not None else 1) * scale, 0
        elif follows_and and n + 1 < len(texts) and texts[n + 1] in (_NUMBERS | _ORDINALS):
            pass
        else:
            break
        last = word
        n += 1
        if ordinal:
            break
    if current is None:
        return _fraction_in_words(texts)
    number = total + current
    following = texts[n] if n < len(texts) else ""
    if following == "point" and n + 1 < len(texts) and texts[n + 1] in _NUMBERS:
        decimals = ""
        n += 1
        while n < len(texts) and texts[n] in _NUMBERS and _NUMBERS[texts[n]] < 10:
            decimals += str(_NUMBERS[texts[n]])
            n += 1
        number = float(f"{number:.0f}.{decimals or 0}")
    elif following in _FRACTIONS and not ordinal:
        number, n, fraction = number / _FRACTIONS[following], n + 1, True
    elif texts[n : n + 3] == ["and", "a", "half"]:
        number, n = number + 0.5, n + 3
    elif texts[n : n + 1] == ["and"] and n + 2 < len(texts) and texts[n + 1] in _NUMBERS and texts[n + 2] in _FRACTIONS:
        number, n = number + _NUMBERS[texts[n + 1]] / _FRACTIONS[texts[n + 2]], n + 3
    year = 1000 <= number <= 2100 and not total and last not in SCALES and not fraction
    return Numeral(number, n, ordinal, year)


def _fraction_in_words(texts: Sequence[str]) -> Numeral | None:
    """Half, half a million, a third, half a dozen."""
    article = texts[0] in ("a", "an") and len(texts) > 1
    word = texts[1] if article else texts[0]
    if word == "half" or (article and word in ("third", "quarter", "fifth", "tenth") and texts[2:3] == ["of"]):
        n = 2 if article else 1
        if texts[n : n + 1] in (["a"], ["an"]) and texts[n + 1 : n + 2] and texts[n + 1] in SCALES:
            n += 1
        return Numeral(1 / _FRACTIONS[word], n)
    return None  # in "a million" the scale is read next, as one of it


def roman(text: str) -> int | None:
    """The value of I to XXXIX."""
    if not _ROMAN.match(text):
        return None
    digits = [_ROMAN_DIGITS[c] for c in text]
    return sum(-d if d < max(digits[k:]) else d for k, d in enumerate(digits))


def in_digits(text: str) -> str:
    """The text with numbers in Chinese characters as digits: 三十五人, 5万."""
    text = _HAN_NUMBER.sub(lambda match: str(_han_number(match[0])), text) if _EASTERN_TIME.search(text) else text
    text = _EASTERN_TIME.sub(_eastern_time, text)
    text = _HAN_SCALE.sub(lambda match: f"{float(match[1]) * _HAN_SCALES[match[2]]:.15g}", text)
    return _HAN_NUMBER.sub(lambda match: str(_han_number(match[0])), text)


def _eastern_time(match: re.Match[str]) -> str:
    minute = 30 if match[3] == "半" or match[3] == "반" else int(match[4] or 0)
    half = {"午前": " am ", "上午": " am ", "오전": " am ", None: ""}.get(match[1], " pm ")
    return f" {match[2]}:{minute:02d}{half}"


def _han_number(digits: str) -> int:
    """三百五 is not read as 350, which is how it is said; every other number is: 二〇一五, 十二, 一百零五."""
    if not set(digits) & set(_HAN_SCALES):
        return int("".join(str(_HAN[c]) for c in digits))
    total = section = digit = 0
    for c in digits:
        scale = _HAN_SCALES.get(c)
        if scale is None:
            digit = _HAN[c]
        elif scale >= 10**4:
            total, section, digit = (total + section + digit or 1) * scale, 0, 0
        else:
            section, digit = section + (digit or 1) * scale, 0
    return total + section + digit
