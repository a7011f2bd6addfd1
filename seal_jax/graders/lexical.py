"""Right or wrong by rule: does the answer say what the gold answer says, word for word or nearly? No model, no network.

Both are read as words of a few kinds (`reading.read`): names, numbers with sign and unit, dates, times, function words.
Some things decide by themselves (`_decide`): another number, another month, a denial, the gold answer and nothing
else. Where none does, the answer is right if it has enough of the gold answer's weight (`matching`).
"""

from __future__ import annotations

import itertools
import re
import string
import unicodedata
from collections.abc import Sequence

from seal_jax.graders import characters
from seal_jax.graders.matching import (
    COUNTED,
    END_OF_RANGE,
    SAME_PLACE,
    TITLES,
    Found,
    Gold,
    apart,
    find,
    is_asked,
    wanted_of,
)
from seal_jax.graders.reading import read
from seal_jax.graders.words import DATE, LISTS, NUMERIC, Word, plain
from seal_jax.types import Query, Verdict

MIN_RECALL = 0.58  # of the gold answer's weight
MIN_RECALL_LONG = 0.45  # where it has four words or more besides function words: more of it can be left out
MAX_ITEMS = 10  # that an answer may list beyond the gold answer's, so that naming everything is not an answer
MAX_WORDS = 60  # of the answer that are read, or twice the gold answer's; for the same reason
SCOPE = 6  # words within which "not" denies what follows it

_NEGATIONS, _SCOPE_ENDS, _AUXILIARIES = (
    frozenset(LISTS[name].split()) for name in ("negations", "negations_end", "auxiliaries")
)
_EXCLUSIVE = [frozenset(words.split()) for words in LISTS["exclusive"]]
_LIST_ITEM = re.compile(r"\s*(?:\d+[.)]|[-*•])\s")
_ANSWER_LABEL = re.compile(r"\s*(?:answer|a)\s*:\s*", re.I)
_SEPARATOR = re.compile(r"[,;/\n]|\b(?:and|or)\b")


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016).

    Punctuation beyond ASCII (curly quotes, dashes) goes too; SQuAD's script leaves it.
    """
    kept = (c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(word for word in "".join(kept).split() if word not in ("a", "an", "the"))


def grade_by_match(queries: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
    """Right if the answer says what the gold answer says and contradicts none of its numbers; see `matches`.

    It stands in for the paper's judge, GPT-4.1; docs/results.md has their agreement. Every verdict is True or False.

    Raises:
        ValueError: not one answer for each query.
    """
    if len(queries) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(queries)} queries; expected one for each")
    return [matches(query.question, query.gold, answer) for query, answer in zip(queries, answers, strict=True)]


def matches(question: str, gold: str, answer: str) -> bool:
    """The verdict on one answer.

    The first line of the answer is read, or the whole list that it begins, up to 60 words. Each gold word is looked
    for: the same word, another form of it, a misspelt name, a country's adjective, an acronym for its expansion;
    numbers by value, sign and unit, whether in words or digits; a year in the decade or century that the gold answer
    names. The answer is wrong if it lacks a number of the gold answer, names another day or month, denies or leaves
    open what the gold answer says, or lists many more items. It is right if it says the gold answer and nothing else.
    In between, 58 % of the gold answer's weight (`matching`) must be there, 45 % of a long one. Where the gold
    answer offers a choice ("savanna or desert"), one is enough. In scripts that put no blanks between
    words, the gold answer's characters are looked for.
    """
    said = _bare(answer)
    if said == _bare(gold):
        return bool(said) or answer.strip() == gold.strip()
    if not said:
        return False
    wanted = wanted_of(question, gold)
    if characters.without_blanks(gold) and not all(word.kind in NUMERIC | DATE for word in wanted.words):
        return characters.contains(gold, answer)
    if not any(wanted.weights):
        return _has_symbols(gold, answer)
    text = _first_statement(answer)
    words = read(text)[: max(MAX_WORDS, 2 * len(wanted.words))]
    if not any(word.kind == "pair" for word in wanted.words):
        words = apart(words, wanted.words)
    found = find(wanted, words)
    decided = _decide(question, gold, wanted, text, words, found)
    return _has_enough(wanted, found) if decided is None else decided


def _has_enough(wanted: Gold, found: Sequence[Found]) -> bool:
    best = max(
        sum(found[k].credit * wanted.weights[k] for k in part) / sum(wanted.weights[k] for k in part)
        for part in wanted.parts
    )
    long = sum(word.kind != "function" for word in wanted.words) >= 4
    return best > (MIN_RECALL_LONG if long else MIN_RECALL)


def _bare(text: str) -> str:
    """Without case, accents, articles, outer quotes and the stop at the end."""
    text = " ".join(_ANSWER_LABEL.sub("", plain(text), count=1).replace("**", "").casefold().split()).strip(
        " .,;:!?\"'`“”()[]"
    )
    return re.sub(r"^(?:the|an?) (?=\S)", "", text)


def _has_symbols(gold: str, answer: str) -> bool:
    """Where the gold answer is no word: the same signs, not as part of others; or their name."""
    signs = "".join(plain(gold).split())
    runs = re.findall(r"[^\w\s]+", plain(answer))
    return (
        signs in runs
        or signs in (run.strip(".,;:!?\"'()") for run in runs)
        or LISTS["signs"].get(signs, "\0") in answer.lower().split()
    )


def _decide(
    question: str, gold: str, wanted: Gold, text: str, words: Sequence[Word], found: Sequence[Found]
) -> Verdict:
    """Right or wrong by one thing alone; None where it takes more."""
    missing = [k for k, at in enumerate(found) if not at.credit]
    if len(missing) == len(found):
        return False
    one = len(wanted.parts) == 1
    if one and any(wanted.words[k].kind in NUMERIC and wanted.weights[k] >= 1 for k in missing):
        return False
    for kind in DATE:  # November 2008 against July 2008; the year alone is no contradiction
        if any(wanted.words[k].kind == kind for k in missing) and any(word.kind == kind for word in words):
            return False
    for one_of in _EXCLUSIVE:  # spring against autumn, north against south
        if any(wanted.words[k].text in one_of and wanted.weights[k] for k in missing) and any(
            word.text in one_of and word.text not in wanted.asked for word in words
        ):
            return False
    if len(_SEPARATOR.findall(text)) - len(_SEPARATOR.findall(gold)) > MAX_ITEMS:
        return False
    if _denied(question, wanted, found, words) or _left_open(gold, wanted, found, words):
        return False
    part = max(wanted.parts, key=lambda part: sum(found[k].credit * wanted.weights[k] for k in part))
    at = {one.at for one in found}
    if all(i in at or _says_little(word, wanted.asked) for i, word in enumerate(words)):  # nothing else is said
        if all(found[k].credit >= SAME_PLACE for k in part if wanted.weights[k]):
            same_bounds = all(words[found[k].at].bound == wanted.words[k].bound for k in part if found[k].credit)
            return True if same_bounds else None
        if any(found[k].credit == END_OF_RANGE for k in part):
            return False
    return None


def _says_little(word: Word, asked: frozenset[str]) -> bool:
    little = word.kind == "function" and word.text not in _NEGATIONS and word.text != "or"
    return little or word.text in TITLES or word.text in COUNTED or is_asked(word, asked)


def _denied(question: str, wanted: Gold, found: Sequence[Found], words: Sequence[Word]) -> bool:
    """Is the gold answer denied wherever the answer names it? Not in 1843; Alice did not."""
    if any(word.text in _NEGATIONS or word.text == "no" for word in (*wanted.words, *read(question))):
        return False
    heads = [k for k, at in enumerate(found) if at.credit and wanted.weights[k] > 0]
    if not heads:
        return False
    first = min(
        (k for k in heads if wanted.weights[k] >= min(1.0, max(wanted.weights[h] for h in heads))),
        key=lambda k: found[k].at,
    )
    text = words[found[first].at].text
    at = {found[k].at for k in heads}
    return all(
        _denied_before(i, words) or _denied_after(i, words, at) for i, word in enumerate(words) if word.text == text
    )


def _denied_before(i: int, words: Sequence[Word]) -> bool:
    for j in range(i - 1, max(-1, i - 1 - SCOPE), -1):
        if words[j].clause != words[i].clause or words[j].text in _SCOPE_ENDS:
            return False
        if words[j].text in _NEGATIONS:
            return True
    return False


def _denied_after(i: int, words: Sequence[Word], at: set[int]) -> bool:
    j = i + 1
    while j < len(words) and (j in at or words[j].kind == "name"):
        j += 1
    start = j
    while j < len(words) and words[j].text in _AUXILIARIES and j < start + 2:
        j += 1
    if j >= len(words) or words[j].clause != words[i].clause:
        return False
    if words[j].text in ("incorrect", "wrong", "false"):
        return True
    following = words[j + 1] if j + 1 < len(words) and words[j + 1].clause == words[j].clause else None
    return words[j].text in ("not", "never") and (following is None or following.text not in _SCOPE_ENDS)


def _left_open(gold: str, wanted: Gold, found: Sequence[Found], words: Sequence[Word]) -> bool:
    """Does the answer offer the gold answer or something else: Paris or London?"""
    if any(word.text == "or" for word in wanted.words) or "or" in gold.lower().split():
        return False
    at = {one.at for one in found if one.credit}
    for i in range(1, len(words) - 1):
        if words[i].text != "or" or words[i - 1].clause != words[i].clause:
            continue
        left = next((j for j in range(i - 1, -1, -1) if words[j].kind != "function"), None)
        right = next((j for j in range(i + 1, len(words)) if words[j].kind != "function"), None)
        if left is None or right is None or (left in at) == (right in at):
            continue
        other = words[right if left in at else left]
        kinds = {words[left].kind, words[right].kind}
        bare = all(
            i in at or word is other or _says_little(word, wanted.asked) or word.text == "or"
            for i, word in enumerate(words)
        )
        either = any(word.text in ("either", "whether") for word in words)
        if (bare or either) and (kinds == {"name"} or kinds <= NUMERIC) and not is_asked(other, wanted.asked):
            return True
    return False


def _first_statement(answer: str) -> str:
    """The first line, without "Answer:" before it; all items where it begins a list."""
    label = _ANSWER_LABEL.match(answer)
    lines = (answer[label.end() :] if label else answer).strip().split("\n")
    if not (_LIST_ITEM.match(lines[0]) or lines[0].rstrip().endswith(":")):
        return lines[0]
    items = itertools.takewhile(lambda line: not line.strip() or _LIST_ITEM.match(line), lines[1:])
    return "\n".join([lines[0], *items])
