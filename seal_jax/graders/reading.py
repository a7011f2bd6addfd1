"""Text as words that can be compared: numbers by value, with sign and unit; dates, times, scores and symbols apart.

Everything is read from the raw text, before punctuation is removed: 3.5 is not 35, -40 is not 40, C++ is not C.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from seal_jax.graders import numerals
from seal_jax.graders.tokens import NUMBER, TOKEN, UNIT, is_year, value_of
from seal_jax.graders.words import FUNCTION_WORDS, LISTS, NO_BLANKS, SCALES, UNITS, Kind, Unit, Word, plain

_ABBREVIATIONS = frozenset(LISTS["abbreviations"].split())
_SAME: dict[str, str] = LISTS["same"]
_SAME_PHRASES = [(re.compile(phrase, re.I), same) for phrase, same in LISTS["same_phrases"].items()]
_MONTHS = {name: n for n, names in enumerate(LISTS["months"], 1) for name in names.split()}
_WHOLE_MONTHS = {names.split()[0] for names in LISTS["months"]} - {"may"}
_NEW_CLAUSE = frozenset(["but", "whereas", "although", "though", "however", "while"])
_POSSESSIVE = re.compile(r"(?<=\w)'s\b|(?<=s)'(?!\w)", re.I)
_NO_BLANKS = re.compile(f"[{NO_BLANKS}]+")


def read(text: str) -> list[Word]:
    """The words of a text, in order."""
    text = plain(text)
    if not text.isascii():
        text = numerals.in_digits(text)
        text = _NO_BLANKS.sub(lambda match: f" {match[0]} ", text)
    text = _POSSESSIVE.sub("", text)
    for pattern, same in _SAME_PHRASES:
        text = pattern.sub(same, text)
    return _Reader(text).words


class _Reader:
    """Reads one text; `words` is what it found."""

    def __init__(self, text: str):
        self.text, self.words, self.clause, self.bound = text, list[Word](), 0, 0
        self.tokens = list(TOKEN.finditer(text))
        self.i = 0
        while self.i < len(self.tokens):
            match = self.tokens[self.i]
            self.i += 1
            getattr(self, f"_{match.lastgroup}", self._other)(match)
        self.words = with_pairs(with_days(self.words))

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
        first, second = (value_of(n) for n in re.findall(NUMBER, match[0]))
        raw = re.findall(NUMBER, match[0])
        if is_year(raw[0]) and raw[1].isdigit() and len(raw[1]) == 2 and int(raw[1]) > first % 100:
            second += first // 100 * 100  # 1914-18
            raw[1] = f"{second:.0f}"
        if all(is_year(n) for n in raw):
            for value in (first, second):
                self._add(f"{value:.0f}", "year")
            return
        following, scale = self.tokens[self.i] if self.i < len(self.tokens) else None, 1
        if following and following[0].lower() in SCALES:
            scale = SCALES[following[0].lower()]
            first, second, self.i = first * scale if first < scale else first, second * scale, self.i + 1
        unit, end = self._unit(following.end() if following and scale > 1 else match.end())
        while unit and self.i < len(self.tokens) and self.tokens[self.i].start() < end:
            self.i += 1
        money = re.search("[$€£¥%]", match[0])
        self._add(f"{first:.15g}-{second:.15g}", "pair", unit or (UNITS[money[0]] if money else None))

    def _number(self, match: re.Match[str]) -> None:
        digits, suffix = match["digits"], (match["suffix"] or "")
        value = value_of(digits)
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
            value *= SCALES[suffix.lower()]
        elif suffix:
            end -= len(suffix)
        plain_year = is_year(digits) and not (sign or suffix or money)
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
            and following in SCALES
            and not self.text[end : self.tokens[self.i].start()].strip(" -")
        ):
            value, end, scaled = value * SCALES[following], self.tokens[self.i].end(), True
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
        match = UNIT.match(self.text, end)
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
        if numeral := numerals.in_words([t[0].lower() for t in self.tokens[self.i - 1 :][: numerals.LONGEST]]):
            self._numeral(numeral)
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
        roman = numerals.roman(token)
        if roman and (len(token) > 1 or self._after_name(match)):
            self._add(f"{roman}", "number", ordinal=True)
        elif lower in _WHOLE_MONTHS or (lower in _MONTHS and self._is_month(match)):
            self._add(str(_MONTHS[lower]), "month")
        elif lower in FUNCTION_WORDS and not (len(token) > 1 and token.isupper()):
            self._add(lower, "function")
        else:
            self._add(lower, "name" if token[0].isupper() else "word")
        self.bound = bound

    def _numeral(self, numeral: numerals.Numeral) -> None:
        self.i += numeral.words - 1
        if numeral.ordinal:
            self._ordinal(numeral.value)
        else:
            self._add_number(numeral.value, self.tokens[self.i - 1].end(), None, numeral.year)

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


_DAY = re.compile(r"(?:[12]?\d|3[01])(?:-(?:[12]?\d|3[01]))?")


def with_days(words: Sequence[Word]) -> list[Word]:
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


def with_pairs(words: Sequence[Word]) -> list[Word]:
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
