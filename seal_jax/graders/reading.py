"""Text as words that can be compared: numbers by value, with sign and unit; dates, times, scores and symbols apart.

Everything is read from the raw text, before punctuation is removed: 3.5 is not 35, -40 is not 40, C++ is not C.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from importlib import resources
from typing import Literal, NamedTuple

LISTS = tomllib.loads(resources.files(__package__).joinpath("data/words.toml").read_text(encoding="utf-8"))
FUNCTION_WORDS, _ABBREVIATIONS = (frozenset(LISTS[name].split()) for name in ("function_words", "abbreviations"))
_NUMBERS: dict[str, int] = LISTS["numbers"]
_ORDINALS: dict[str, int] = LISTS["ordinals"]
_SCALES: dict[str, int] = LISTS["scales"]
_FRACTIONS: dict[str, int] = LISTS["fractions"]
_SAME: dict[str, str] = LISTS["same"]
_SAME_PHRASES = [(re.compile(phrase, re.I), same) for phrase, same in LISTS["same_phrases"].items()]
_LETTERS = str.maketrans(LISTS["letters"])
_MONTHS = {name: n for n, names in enumerate(LISTS["months"], 1) for name in names.split()}
_WHOLE_MONTHS = {names.split()[0] for names in LISTS["months"]} - {"may"}


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


_NUMBER = (
    r"(?:\d{1,3}(?:[,'’]\d{2,3})*[,'’]\d{3}(?!\d)(?:\.\d+)?|\d{1,3}(?:\.\d{3}){2,}(?!\d)|\d{1,3}(?:\ \d{3}){2,}(?!\d)"
    r"|\d+(?:\.\d+|,\d{1,2}(?!\d))?|\.\d+)"
)
_CLOCK = r"(?:[01]?\d|2[0-4])"
_NOON = r"\s*(?:[ap]\.?\s?m\b\.?|o['’]clock\b(?:\s*[ap]\.?\s?m\b\.?)?)"
_TOKEN = re.compile(
    rf"""
    (?P<formula>(?<!\w)(?-i:[A-Z][a-z]?\d+[A-Z]\w*|\d{{1,3}}[ADEGHIJNOPQRSTUXYZ])(?!\w))
  | (?P<date>(?<!\d)\d{{4}}(?P<by>[-/.])\d{{1,2}}(?P=by)\d{{1,2}}(?!\d)
            |(?<!\d)\d{{1,2}}(?P<between>[-/.])\d{{1,2}}(?P=between)(?:\d{{4}}|\d{{2}})(?!\d))
  | (?P<eastern>\d{{1,4}}\s?[年년](?:\s?\d{{1,2}}\s?[月월](?:\s?\d{{1,2}}\s?[日号號일])?)?
            |\d{{1,2}}\s?[月월]\s?\d{{1,2}}\s?[日号號일])
  | (?P<time>(?<![\d.,:]){_CLOCK}:[0-5]\d(?::[0-5]\d)?(?!\d|:\d)(?:{_NOON})?|(?<![\d.,:]){_CLOCK}(?:[.][0-5]\d)?{_NOON}
            |(?<!\d){_CLOCK}h[0-5]\d\b|(?<!\d)[0-2]\d[0-5]\d\s?(?:hours|hrs)\b)
  | (?P<power>(?<![\w.])(?:(?:\d+(?:\.\d+)?)\s?[x×*·]\s?)?10\^[-+]?\d+|(?<![\w.])\d+(?:\.\d+)?e[-+]?\d+\b)
  | (?P<fraction>(?<![\d/.])(?:\d+\s)?\d{{1,3}}/\d{{1,3}}(?![\d/]))
  | (?P<decade>(?<!\d)'?\d{{2,4}}'?s\b)
  | (?P<version>(?!\d{{1,3}}(?:\.\d{{3}}){{2,}}(?!\d))\d+(?:\.\d+){{2,}})
  | (?P<pair>(?<![\w.-])[$€£¥]?{_NUMBER}%?\s?[-:]\s?[$€£¥]?{_NUMBER}(?![\d:]|-\d|\.\d|,\d{{3}}))
  | (?P<number>(?:(?P<sign>(?<![\w)\]])[-+](?=[$€£¥]?\.?\d)|[<>≤≥])\s?)?(?:(?P<money>\b[A-Z]{{1,3}}[$€£¥₹₩₽]
            |[$€£¥₹₩₽])\s?(?P<sign2>-)?)?
            (?P<digits>{_NUMBER})(?P<suffix>(?:st|nd|rd|th|k|m|b|bn|mn|tn)\b)?)
  | (?P<initials>\b(?:[A-Za-z]\.){{2,}})
  | (?P<symbolic>(?<!\w)[A-Za-z]{{1,3}}&[A-Za-z]{{1,3}}(?!\w)|(?<!\w)[A-Za-z]{{1,2}}(?:\+\+|[+*#-](?![\w]))
            |(?<!\w)[A-Za-z]+\#(?!\w))
  | (?P<word>[^\W\d_]+)
  | (?P<money_alone>[$€£¥₹₩₽%°])
  | (?P<stop>[;,.!?:()—\n])
    """,
    re.X | re.I,
)
_NEW_CLAUSE = frozenset(["but", "whereas", "although", "though", "however", "while"])
_POSSESSIVE = re.compile(r"(?<=\w)'s\b|(?<=s)'(?!\w)", re.I)
_SUPERSCRIPTS = re.compile(r"(?<=\d)([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_UNIT = re.compile(r"\s?-?\s?(?:(sq|square|cu|cubic)\.?\s)?([^\W\d_]+|[$€£¥₹₩₽%]|°\s?[cfk]?)([23]\b)?", re.I)
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
_DAY = re.compile(r"(?:[12]?\d|3[01])(?:-(?:[12]?\d|3[01]))?")
_ROMAN = re.compile(r"(?=[IVX]+$)X{0,3}(?:IX|IV|V?I{0,3})$")
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10}
NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff々"
_NO_BLANKS = re.compile(f"[{NO_BLANKS}]+")


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


def read(text: str) -> list[Word]:
    """The words of a text, in order."""
    text = plain(text)
    if not text.isascii():
        text = in_digits(text)
        text = _NO_BLANKS.sub(lambda match: f" {match[0]} ", text)
    text = _POSSESSIVE.sub("", text)
    for pattern, same in _SAME_PHRASES:
        text = pattern.sub(same, text)
    return _Reader(text).words


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


class _Reader:
    """Reads one text; `words` is what it found."""

    def __init__(self, text: str):
        self.text, self.words, self.clause, self.bound = text, list[Word](), 0, 0
        self.tokens = list(_TOKEN.finditer(text))
        self.i = 0
        while self.i < len(self.tokens):
            match = self.tokens[self.i]
            self.i += 1
            getattr(self, f"_{match.lastgroup}", self._other)(match)
        self.words = _pairs(_dates(self.words))

    def _add(self, text: str, kind: Kind, unit: Unit | None = None, ordinal: bool = False) -> None:
        bound, self.bound = (self.bound if kind == "number" else 0), 0
        self.words.append(Word(text, kind, self.clause, unit, bound, ordinal))

    def _other(self, match: re.Match[str]) -> None:
        raise AssertionError(match.lastgroup)

    def _stop(self, match: re.Match[str]) -> None:
        before = self.words[-1] if self.words else None
        if match[0] == "." and before and (before.text in _ABBREVIATIONS or len(before.text) == 1):
            return
        if match[0] == "," and re.match(r"\s(?:1\d|20)\d\d\b", self.text[match.end() :][:6]):
            return  # July 4, 1776
        self.clause += 1

    def _date(self, match: re.Match[str]) -> None:
        parts = [int(part) for part in re.split(r"\D", match[0])]
        if parts[0] > 31:
            year, month, day = parts
        else:
            day, month, year = parts
            if month > 12 or (day <= 12 and "/" in match[0]):  # 7/4/1776 is American
                day, month = month, day
            year += 0 if year >= 100 else 1900 if year > 30 else 2000
        if month > 12:
            self._add(match[0], "name")
            return
        self._add_date(year, month, day, ordinal="-" not in match[0] and day <= 12)

    def _add_date(self, year: int | None, month: int | None, day: int | None, ordinal: bool = False) -> None:
        for value, kind in ((month, "month"), (day, "day"), (year, "year")):
            if value is not None:
                self._add(str(value), kind, None, ordinal)  # type: ignore[arg-type]

    def _eastern(self, match: re.Match[str]) -> None:
        found = {unit: int(n) for n, unit in re.findall(r"(\d+)\s?(\D)", match[0])}
        pick = lambda units: next((n for unit, n in found.items() if unit in units), None)
        self._add_date(pick("年년"), pick("月월"), pick("日号號일"))

    def _time(self, match: re.Match[str]) -> None:
        numbers = [int(n) for n in re.findall(r"\d+", match[0])]
        if "h" in match[0].lower() and numbers[0] >= 100:  # 1730 hours
            numbers = [numbers[0] // 100, numbers[0] % 100]
        half = re.search(r"([ap])\.?\s?m\b", match[0], re.I)
        hour, minute = numbers[0], numbers[1] if len(numbers) > 1 else 0
        if half and hour <= 12:
            hour = hour % 12 + (12 if half[1].lower() == "p" else 0)
        said = "half" if half else "24" if hour > 12 or match[0].startswith("0") else "?"
        self._add(f"{hour % 24}:{minute:02d}", "time", Unit(said, 1))

    def _power(self, match: re.Match[str]) -> None:
        text = re.sub(r"\s", "", match[0].lower())
        base, _, exponent = text.rpartition("^") if "^" in text else text.rpartition("e")
        value = float(re.split(r"[x×*·]", base)[0]) if base not in ("10",) else 1.0
        self._add_number(value * 10.0 ** max(-300, min(300, int(exponent))), match.end())

    def _fraction(self, match: re.Match[str]) -> None:
        *whole, top, bottom = (int(n) for n in re.findall(r"\d+", match[0]))
        if not bottom:
            self._add(match[0], "name")
            return
        self._add_number(sum(whole) + top / bottom, match.end())

    def _decade(self, match: re.Match[str]) -> None:
        year = re.sub(r"\D", "", match[0])
        self._add(("19" if len(year) == 2 else "") + year + "s", "decade")

    def _pair(self, match: re.Match[str]) -> None:
        first, second = (_value(n) for n in re.findall(_NUMBER, match[0]))
        raw = re.findall(_NUMBER, match[0])
        if _is_year(raw[0]) and raw[1].isdigit() and len(raw[1]) == 2 and int(raw[1]) > first % 100:
            second += first // 100 * 100  # 1914-18
            raw[1] = f"{second:.0f}"
        if all(_is_year(n) for n in raw):
            for value in (first, second):
                self._add(f"{value:.0f}", "year")
            return
        following, scale = self.tokens[self.i] if self.i < len(self.tokens) else None, 1
        if following and following[0].lower() in _SCALES:
            scale = _SCALES[following[0].lower()]
            first, second, self.i = first * scale if first < scale else first, second * scale, self.i + 1
        unit, end = self._unit(following.end() if following and scale > 1 else match.end())
        while unit and self.i < len(self.tokens) and self.tokens[self.i].start() < end:
            self.i += 1
        money = re.search("[$€£¥%]", match[0])
        self._add(f"{first:.15g}-{second:.15g}", "pair", unit or (UNITS[money[0]] if money else None))

    def _number(self, match: re.Match[str]) -> None:
        digits, suffix = match["digits"], (match["suffix"] or "")
        value = _value(digits)
        if suffix.lower() in ("st", "nd", "rd", "th"):
            self._ordinal(value)
            return
        sign = match["sign"] or match["sign2"] or ""
        value = -value if sign == "-" else value
        if sign and sign in "<>≤≥":
            self.bound = 1 if sign in ">≥" else -1
        money = UNITS.get((match["money"] or "").lower()) or UNITS.get((match["money"] or " ")[-1])
        end = match.end()
        if suffix and (suffix != "m" or money):
            value *= _SCALES[suffix.lower()]
        elif suffix:
            end -= len(suffix)
        plain_year = _is_year(digits) and not (sign or suffix or money)
        self._add_number(value, end, money, plain_year)

    def _ordinal(self, value: float) -> None:
        if self._next() in ("century", "centuries", "c"):
            self.i += 1
            self._add(f"{value:.15g}", "century")
            return
        self._add(f"{value:.15g}", "number", ordinal=True)

    def _add_number(self, value: float, end: int, unit: Unit | None = None, year: bool = False) -> None:
        """With the scales and the unit that follow."""
        scaled = False
        if value < 100 and [self._next(ahead) for ahead in range(3)] == ["and", "a", "half"]:
            value, end, self.i = value + 0.5, self.tokens[self.i + 2].end(), self.i + 3
        if (self._next(), self._next(1)) == ("o", "clock") and 1 <= value <= 12:
            self.i += 2
            self._add(f"{value:.0f}:00", "time", Unit("?", 1))
            return
        while (
            len(following := self._next()) > 1
            and following in _SCALES
            and not self.text[end : self.tokens[self.i].start()].strip(" -")
        ):
            value, end, scaled = value * _SCALES[following], self.tokens[self.i].end(), True
            self.i += 1
        found, last = self._unit(end)
        if unit is None:
            unit = found
        if found is not None:
            while self.i < len(self.tokens) and self.tokens[self.i].start() < last:
                self.i += 1
            year = False if found.dimension != "era" else year
        before = self.words[-1] if self.words else None
        if before and before.text in ("minus", "negative"):
            value = -value
            self.words.pop()
        if before and before.text in ("ad", "bc") and unit is None:
            unit = UNITS[before.text]
            self.words.pop()
        if self._next() == "below" and (self._next(1) == "zero" or (unit and unit.dimension == "temperature")):
            value, self.i = -value, self.i + (2 if self._next(1) == "zero" else 1)
        if unit and unit.dimension == "era":
            self._add(f"{value:.15g}", "year", unit)
            return
        if year and not scaled:
            self._add(f"{value:.15g}", "year")
            return
        self._add(f"{value:.15g}", "number", unit)

    def _unit(self, end: int) -> tuple[Unit | None, int]:
        match = _UNIT.match(self.text, end)
        if not match:
            return None, end
        prefix, name, power = match[1], match[2].lower().replace(" ", ""), match[3]
        unit = UNITS.get(name)
        if unit is None or (len(name) == 1 and name.isalpha() and not self.text[end - 1].isdigit()):
            return None, end
        if prefix or power:
            exponent = 3 if (prefix or "").lower().startswith("cu") or power == "3" else 2
            unit = Unit(f"{unit.dimension}^{exponent}", unit.factor**exponent)
        return unit, match.end()

    def _next(self, ahead: int = 0) -> str:
        at = self.i + ahead
        return self.tokens[at][0].lower() if at < len(self.tokens) else ""

    def _initials(self, match: re.Match[str]) -> None:
        self._add(_SAME.get(match[0].replace(".", "").lower(), match[0].replace(".", "").lower()), "name")

    def _formula(self, match: re.Match[str]) -> None:
        self._add(match[0].lower(), "name")

    def _symbolic(self, match: re.Match[str]) -> None:
        self._add(match[0].lower(), "name")

    def _version(self, match: re.Match[str]) -> None:
        self._add(match[0], "name")

    def _money_alone(self, match: re.Match[str]) -> None:
        if match[0] != "°":
            self._add(_SAME.get(match[0], match[0]), "name")

    def _word(self, match: re.Match[str]) -> None:
        token, lower = match[0], match[0].lower()
        if self._number_in_words(match):
            return
        lower = _SAME.get(lower, lower)
        if lower in _NEW_CLAUSE and self.words and self.words[-1].clause == self.clause:
            self.clause += 1
        few = bool(self.words) and self.words[-1].text in ("no", "not")
        if few and lower in ("more", "less", "fewer"):
            self.bound = 1 if lower != "more" else -1
        elif lower in ("more", "over", "above", "exceeding") or (lower == "least" and self._said("at")):
            self.bound = 1
        elif lower in ("less", "fewer", "under", "below") or (lower == "most" and self._said("at")):
            self.bound = -1
        elif lower not in ("than", "a", "the", "of", "about"):
            self.bound = 0
        bound = self.bound
        if _ROMAN.match(token) and (len(token) > 1 or self._after_name(match)):
            self._add(f"{_roman(token)}", "number", ordinal=True)
        elif lower in _WHOLE_MONTHS or (lower in _MONTHS and self._is_month(match)):
            self._add(str(_MONTHS[lower]), "month")
        elif lower in FUNCTION_WORDS and not (len(token) > 1 and token.isupper()):
            self._add(lower, "function")
        else:
            self._add(lower, "name" if token[0].isupper() else "word")
        self.bound = bound

    def _said(self, word: str) -> bool:
        return bool(self.words) and self.words[-1].text == word

    def _after_name(self, match: re.Match[str]) -> bool:
        """Is this one letter the number of a king: George V?"""
        before = self.words[-1] if self.words else None
        alone = self.text[match.start() - 1 : match.start()] == " " and self.text[match.end() : match.end() + 1] != "."
        return bool(
            before and before.kind == "name" and alone and before.clause == self.clause and len(before.text) > 2
        )

    def _is_month(self, match: re.Match[str]) -> bool:
        """Does a number stand beside "May" or "Jan"? A capital is enough after "in", or alone."""
        before = self.words[-1] if self.words else None
        following = self._next()
        if following == "the" and self._next(1)[:1].isdigit():
            return True
        if following[:1].isdigit() or (following == "." and self._next(1)[:1].isdigit()):
            return True
        if before and (
            before.kind in ("number", "day")
            or (before.text == "of" and len(self.words) > 1 and self.words[-2].kind == "number")
        ):
            return True
        if match[0].lower() != "may" or not match[0][0].isupper():
            return False
        after = not following or not following.isalpha() or following in LISTS["after_may"].split()
        return after if before is None else after or before.text in LISTS["before_may"].split()

    def _number_in_words(self, match: re.Match[str]) -> bool:
        """Twenty-one, one hundred and five, nineteen eighty-four, two and a half, three quarters, the sixteenth."""
        total, k, last = 0.0, self.i - 1, ""
        current: float | None = None
        ordinal = fraction = False
        texts = [self.tokens[j][0].lower() for j in range(k, min(k + 14, len(self.tokens)))]
        n = 0
        while n < len(texts):
            word = texts[n]
            value = _NUMBERS.get(word, _ORDINALS.get(word))
            follows_and = n > 0 and word == "and" and last in _SCALES
            if value is not None:
                if current is not None and last not in _SCALES and last != "and":
                    if current % 100 >= 20 and current % 10 == 0 and 0 < value < 10:
                        current += value  # ninety-nine; nineteen eighty-four
                    elif not total and 10 <= current < 100 and value >= 10 and word in _NUMBERS and last in _NUMBERS:
                        current = current * 100 + value  # nineteen eighty
                    else:
                        break
                else:
                    current = (current or 0) + value
                ordinal = word in _ORDINALS
            elif word in _SCALES and (current is not None or n == 0) and len(word) > 2:
                scale = _SCALES[word]
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
            return self._fraction_in_words(texts)
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
        elif (
            texts[n : n + 1] == ["and"]
            and n + 2 < len(texts)
            and texts[n + 1] in _NUMBERS
            and texts[n + 2] in _FRACTIONS
        ):
            number, n = number + _NUMBERS[texts[n + 1]] / _FRACTIONS[texts[n + 2]], n + 3
        self.i = k + n
        if ordinal:
            self._ordinal(number)
        else:
            year = 1000 <= number <= 2100 and not total and last not in _SCALES and not fraction
            self._add_number(number, self.tokens[self.i - 1].end(), None, year)
        return True

    def _fraction_in_words(self, texts: Sequence[str]) -> bool:
        """Half, half a million, a third, half a dozen."""
        article = texts[0] in ("a", "an") and len(texts) > 1
        word = texts[1] if article else texts[0]
        if word == "half" or (article and word in ("third", "quarter", "fifth", "tenth") and texts[2:3] == ["of"]):
            n = 2 if article else 1
            if texts[n : n + 1] in (["a"], ["an"]) and texts[n + 1 : n + 2] and texts[n + 1] in _SCALES:
                n += 1
            self.i += n - 1
            self._add_number(1 / _FRACTIONS[word], self.tokens[self.i - 1].end())
            return True
        if article and word in _SCALES and len(word) > 2:
            return False  # the scale itself is read next, as one of it
        return False


def _value(digits: str) -> float:
    digits = re.sub(r"['’\s]", "", digits)
    if re.fullmatch(r"\d+,\d{1,2}", digits):
        digits = digits.replace(",", ".")  # 3,5 as it is written in Europe
    elif digits.count(".") > 1:
        digits = digits.replace(".", "")
    return float(digits.replace(",", "")[:300])


def _is_year(digits: str) -> bool:
    return len(digits) == 4 and digits.isdigit() and 1000 <= int(digits) <= 2100


def _roman(text: str) -> int:
    digits = [_ROMAN_DIGITS[c] for c in text]
    return sum(-d if d < max(digits[k:]) else d for k, d in enumerate(digits))


def _dates(words: Sequence[Word]) -> list[Word]:
    """The words again, with the days beside a month as days: 4 July, July 4, the 4th of July, 23-26 October."""
    days = set[int]()
    for k, word in enumerate(words):
        if word.kind != "month":
            continue
        before = k - 2 if k >= 2 and words[k - 1].text == "of" else k - 1
        after = k + 2 if k + 2 < len(words) and words[k + 1].text == "the" else k + 1
        at = next((at for at in (before, after) if 0 <= at < len(words) and _is_day(words[at])), None)
        if at is None:
            continue
        days.add(at)
        if at < k:
            days |= (
                {at - 2} if at >= 2 and words[at - 1].text in ("to", "and", "or") and _is_day(words[at - 2]) else set()
            )
        elif at + 2 < len(words) and words[at + 1].text in ("to", "and", "or") and _is_day(words[at + 2]):
            days.add(at + 2)
    kept = []
    for k, word in enumerate(words):
        texts = word.text.split("-") if k in days else [word.text]
        kept += [word._replace(text=text, kind="day" if k in days else word.kind, ordinal=False) for text in texts]
    return kept


def _is_day(word: Word) -> bool:
    return word.unit is None and bool(_DAY.fullmatch(word.text)) and word.kind in ("number", "pair")


def _pairs(words: Sequence[Word]) -> list[Word]:
    """The words again, with "24 to 10" and "between 24 and 10" as pairs, "quarter past five" as a time."""
    kept: list[Word] = []
    for word in words:
        kept.append(word)
        if word.kind != "number" or len(kept) < 3:
            continue
        first, middle = kept[-3], kept[-2]
        before = kept[-4].text if len(kept) > 3 else ""
        part = {"0.5": 30, "0.25": 15, "quarter": 15}.get(first.text)
        if part and middle.text in ("past", "after", "to") and word.text.isdigit() and 1 <= int(word.text) <= 12:
            minutes = (int(word.text) * 60 + (-part if middle.text == "to" else part)) % 720
            kept[-3:] = [Word(f"{minutes // 60 or 12}:{minutes % 60:02d}", "time", word.clause, Unit("?", 1))]
        elif first.kind == "number" and (
            (middle.text == "to" and before not in ("from", "up")) or (middle.text == "and" and before == "between")
        ):
            kept[-3:] = [Word(f"{first.text}-{word.text}", "pair", word.clause, word.unit or first.unit)]
    return kept
