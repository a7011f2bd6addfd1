"""What the pieces of a text look like: dates, times, amounts, versions, words, stops, in one pattern."""

from __future__ import annotations

import re

NUMBER = (
    r"(?:\d{1,3}(?:[,'’]\d{2,3})*[,'’]\d{3}(?!\d)(?:\.\d+)?|\d{1,3}(?:\.\d{3}){2,}(?!\d)|\d{1,3}(?:\ \d{3}){2,}(?!\d)"
    r"|\d+(?:\.\d+|,\d{1,2}(?!\d))?|\.\d+)"
)
_CLOCK = r"(?:[01]?\d|2[0-4])"
_NOON = r"\s*(?:[ap]\.?\s?m\b\.?|o['’]clock\b(?:\s*[ap]\.?\s?m\b\.?)?)"
TOKEN = re.compile(
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
  | (?P<pair>(?<![\w.-])[$€£¥]?{NUMBER}%?\s?[-:]\s?[$€£¥]?{NUMBER}(?![\d:]|-\d|\.\d|,\d{{3}}))
  | (?P<number>(?:(?P<sign>(?<![\w)\]])[-+](?=[$€£¥]?\.?\d)|[<>≤≥])\s?)?(?:(?P<money>\b[A-Z]{{1,3}}[$€£¥₹₩₽]
            |[$€£¥₹₩₽])\s?(?P<sign2>-)?)?
            (?P<digits>{NUMBER})(?P<suffix>(?:st|nd|rd|th|k|m|b|bn|mn|tn)\b)?)
  | (?P<initials>\b(?:[A-Za-z]\.){{2,}})
  | (?P<symbolic>(?<!\w)[A-Za-z]{{1,3}}&[A-Za-z]{{1,3}}(?!\w)|(?<!\w)[A-Za-z]{{1,2}}(?:\+\+|[+*#-](?![\w]))
            |(?<!\w)[A-Za-z]+\#(?!\w))
  | (?P<word>[^\W\d_]+)
  | (?P<money_alone>[$€£¥₹₩₽%°])
  | (?P<stop>[;,.!?:()—\n])
    """,
    re.X | re.I,
)
UNIT = re.compile(r"\s?-?\s?(?:(sq|square|cu|cubic)\.?\s)?([^\W\d_]+|[$€£¥₹₩₽%]|°\s?[cfk]?)([23]\b)?", re.I)


def value_of(digits: str) -> float:
    """The value of what `NUMBER` matches: 1,234.5, 1.234.567, 3,5."""
    digits = re.sub(r"['’\s]", "", digits)
    if re.fullmatch(r"\d+,\d{1,2}", digits):
        digits = digits.replace(",", ".")  # 3,5 as it is written in Europe
    elif digits.count(".") > 1:
        digits = digits.replace(".", "")
    return float(digits.replace(",", "")[:300])


def is_year(digits: str) -> bool:
    """Four digits that are more often a year than an amount."""
    return len(digits) == 4 and digits.isdigit() and 1000 <= int(digits) <= 2100
