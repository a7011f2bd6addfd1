"""Scripts that put no blanks between words, or endings on them: the gold answer's characters are looked for."""

from __future__ import annotations

import re
import unicodedata

from seal_jax.graders.numerals import in_digits
from seal_jax.graders.words import LISTS, NO_BLANKS, plain

_SCRIPTS = re.compile(f"[{NO_BLANKS}\u1100-\u11ff\uac00-\ud7af]")
_KANA, _KATAKANA, _HAN, _HANGUL = "\u3041-\u30ff", "\u30a1-\u30ff", "\u3400-\u4dbf\u4e00-\u9fff々", "\uac00-\ud7af"
_SUFFIXES = "都道府県省市县縣"  # of a place: 東京都, 東京
_SEPARATOR = re.compile(r"[、，,;；/／・]|と(?=.)|\s和\s")
_DENIED_BEFORE, _DENIED_AFTER, _PARTICLES, _BEFORE_NAME = (
    re.compile(LISTS["scripts"][name]) for name in ("denied_before", "denied_after", "particles", "before_name")
)


def without_blanks(text: str) -> bool:
    """Is half of the text or more in such a script?"""
    letters = [c for c in text if c.isalnum()]
    return 2 * sum(bool(_SCRIPTS.match(c)) for c in letters) >= max(1, len(letters))


def contains(gold: str, answer: str) -> bool:
    """Are the gold answer's characters in the answer, as a word of its own as far as that can be told, and not denied?

    A list is there if each of its items is.
    """
    said = _bare(answer)
    items = [_bare(item) for item in _SEPARATOR.split(gold)]
    items = items if len(items) > 1 and all(len(item) > 1 for item in items) else [_bare(gold)]
    return all(item and _has(item, said) for item in items)


def _bare(text: str) -> str:
    """Without blanks, but between Latin and Hangul words; a stop for any punctuation."""
    text = in_digits(re.sub(r"(?<=\d),(?=\d{3})", "", plain(text))).casefold()
    text = "".join(
        c if unicodedata.category(c)[0] in "LMN" or c in "%$€£¥+#-" else " " if c.isspace() else "." for c in text
    )
    text = re.sub(r"\s*\.[\s.]*", ".", text).strip(" .")
    return re.sub(rf"(?<=[{NO_BLANKS}\d]) (?=[{NO_BLANKS}\d])", "", text)


def _has(gold: str, said: str) -> bool:
    if gold == said or (len(gold) > 2 and gold[-1] in _SUFFIXES and _has(gold[:-1], said)):
        return True
    at = said.find(gold)
    while at >= 0:
        before, after = said[:at], said[at + len(gold) :]
        denied = _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after)
        if not denied and _is_a_word(gold, before, after, said):
            return True
        at = said.find(gold, at + 1)
    return False


def _is_a_word(gold: str, before: str, after: str, said: str) -> bool:
    left, right = before[-1:], after[:1]
    if any(a and b and a.isdigit() and (b.isdigit() or b == ".") for a, b in ((gold[0], left), (gold[-1], right))):
        return False
    if _same_script(_KATAKANA, gold[0], left) or _same_script(_KATAKANA, gold[-1], right):
        return False  # ローマ in ローマン
    if re.match(f"[{_HANGUL}]", gold[-1]):
        ending = re.match(f"[{_HANGUL}]*", after)
        return not _same_script(_HANGUL, gold[0], left) and bool(ending and _PARTICLES.fullmatch(ending[0]))
    if _same_script(_HAN, gold[0], left) and not _BEFORE_NAME.search(before):
        run = re.search(f"[{_HAN}]*$", before)
        return not (re.search(f"[{_KANA}]", said) or (run and len(run[0]) == 1 and run[0] == before.split(".")[-1]))
    return True


def _same_script(script: str, a: str, b: str) -> bool:
    return bool(a and b and re.match(f"[{script}]", a) and re.match(f"[{script}]", b))
