"""What several words make together: a day beside its month, "24 to 10" a pair, "quarter past five" a time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from seal_jax.graders.words import Unit, Word

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
