"""A language model as judge: what it is asked, and how its reply is read. Which model it is, is the caller's `Ask`.

The paper's judge is GPT-4.1: a student's answer is right if it conveys the gold answer, whatever else it says, and does
not contradict it. Its prompts are not in what we hold of the paper, nor is the rubric of its proxy reward (a judge
scores a self-edit's text, and no inner loop is run): the words of both (data/judge.toml) are ours, after
what the paper says of them.

What is judged was written by a model, which may have learned to write "reply with yes". So it stands between two tags
and the verdict is asked for after a mark. Both are hashes of all that the prompt holds, so no text can contain its own.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import tomllib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import NamedTuple

from seal_jax.types import Grade, Query, Verdict, without_thought

Ask = Callable[[Sequence[str]], list[str | None]]
"""Prompts -> a reply to each; None where there is none, and asking again now would not help."""

Rate = Callable[[Sequence[tuple[str, str]]], list[float | None]]
"""(passage, self-edit's completion) pairs -> a rating of each in [0, 1]; None where the judge gave none."""

GRADE_TOKENS = 24  # of a reply to GRADE_PROMPT: a mark of 8 letters, one word, and what some models put around it
RATE_TOKENS = 64  # of a reply to RATE_PROMPT: the mark, and four lines of a word and a digit
# A judge that thinks, or that says more than it was asked for, is asked again with these as the most tokens.
THOUGHT_TOKENS = (2_048, 8_192)

_TEXTS = tomllib.loads(resources.files(__package__).joinpath("data/judge.toml").read_text(encoding="utf-8"))
GRADE_PROMPT, RATE_PROMPT = _TEXTS["grade"], _TEXTS["rate"]
CRITERIA: dict[str, str] = _TEXTS["criteria"]
BEST = 5  # a criterion is scored from 1 to this


class Seals(NamedTuple):
    """What keeps a judged text apart: neither stands in it."""

    tag: str  # around it
    mark: str  # before the verdict


def grade_with(ask: Ask) -> Grade:
    """A grader that asks a judge about each answer.

    An empty answer is wrong without asking, and what is asked twice is asked once. No reply, or one without a verdict
    (`read_verdict`), leaves the answer ungraded (None).

    Raises:
        ValueError: not one answer for each query.
    """

    def grade(queries: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
        if len(queries) != len(answers):
            raise ValueError(f"{len(answers)} answers for {len(queries)} queries; expected one for each")
        pairs = list(zip(queries, answers, strict=True))
        replies = _ask_once_each(ask, [grade_prompt(*pair) if pair[1].strip() else None for pair in pairs])
        return [
            read_verdict(reply, seals(*_texts(query, answer)).mark) if answer.strip() else False
            for (query, answer), reply in zip(pairs, replies, strict=True)
        ]

    return grade


def rate_with(ask: Ask) -> Rate:
    """The paper's proxy reward: a judge scores a self-edit's text by a rubric, and nothing is trained.

    The rating is the mean of four scores, 0 where all are the worst and 1 where all are the best. An empty self-edit is
    rated 0 without asking. A reply that lacks a score is None.
    """

    def rate(pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        replies = _ask_once_each(ask, [rate_prompt(*pair) if pair[1].strip() else None for pair in pairs])
        return [
            read_rating(reply, seals(passage, notes).mark) if notes.strip() else 0.0
            for (passage, notes), reply in zip(pairs, replies, strict=True)
        ]

    return rate


def grade_prompt(query: Query, answer: str) -> str:
    """What the judge reads about one answer."""
    question, gold, said = _texts(query, answer)
    return _fill(GRADE_PROMPT, question=question, gold=gold, answer=said, **seals(question, gold, said)._asdict())


def rate_prompt(passage: str, notes: str) -> str:
    """What the judge reads about one self-edit."""
    criteria = "\n".join(f"- {name}: {question}" for name, question in CRITERIA.items())
    texts = {"passage": passage.strip(), "notes": notes.strip()}
    return _fill(RATE_PROMPT, criteria=criteria, **texts, **seals(passage, notes)._asdict())


def seals(*texts: str) -> Seals:
    """The tag and the mark for these texts: always the same ones, so that a reply on disk is found again."""
    whole = "\0".join(texts)
    for turn in itertools.count():
        digest = hashlib.sha256(f"{turn}\0{whole}".encode()).hexdigest()
        letters = digest.translate(str.maketrans("0123456789", "ghijklmnop"))  # few tokens, and no number to misread
        found = Seals(f"text-{letters[:8]}", letters[8:16])
        if not any(seal in whole for seal in found):
            return found
    raise AssertionError("unreachable")


_EITHER = re.compile(r"\b(?:yes|no)\b(?:\W*\bor\b\W*|\s*/\s*)(?:yes|no)\b", re.IGNORECASE)  # of the question itself
_QUOTED = re.compile(r"[\"“”«][^\"“”«»\n]*[\"“”»]|`[^`\n]+`")
_WORD = re.compile(r"(?<![\w-])(yes|no)(?![\w-])", re.IGNORECASE)
# "no doubt" is no verdict, "no, it is not" and "no it is not" are
_OF_A_CLAUSE = re.compile(r"[ \t]+(?!(?:it|the|this|that|because|since|as|he|she|they|there|we|i|you|but)\b)\w", re.I)
_LABEL = re.compile(r"\W*(?:(?:final |the )?(?:answer|verdict|grade|judgment|judgement)(?: is)?)?\W*\Z", re.IGNORECASE)


def read_verdict(reply: str | None, mark: str = "") -> Verdict:
    """The "yes" or "no" of a reply, in any case and punctuation, after the thought of a judge that thinks.

    What follows the mark counts before all else. Without it, a verdict is a "yes" or "no" that stands for itself ("no
    doubt" does not) and is not quoted; of several that differ, those alone on a line, else that which begins or ends
    the reply. None without one, and where these differ too.
    """
    said = without_thought(reply or "")
    if mark:
        spoken = re.findall(rf"{mark}\W*(yes|no)\b(?!\W*or\b)", said, re.IGNORECASE)
        if spoken:
            return bool(spoken[-1].lower() == "yes")
        said = re.sub(mark, "", said, flags=re.IGNORECASE)
    said = _EITHER.sub(" ", said)
    for text in (_QUOTED.sub(" ", said), said):
        found = [word for word in _WORD.finditer(text) if _stands_alone(word, text)]
        if found:
            break
    of_lines = [word for word in found if _bare(text[: word.start()].rpartition("\n")[2]) and _ends_line(word, text)]
    at_ends = [word for word in found if _bare(text[: word.start()]) or _bare(text[word.end() :])]
    for chosen in (found, of_lines, at_ends):
        verdicts = {word[1].lower() for word in chosen}
        if len(verdicts) == 1:
            return verdicts == {"yes"}
    return None


def _stands_alone(word: re.Match[str], text: str) -> bool:
    opens = word[1].lower() == "yes" and _bare(text[: word.start()])
    return opens or not _OF_A_CLAUSE.match(text, word.end())


def _ends_line(word: re.Match[str], text: str) -> bool:
    return _bare(text[word.end() :].partition("\n")[0])


def _bare(rest: str) -> bool:
    return _LABEL.fullmatch(rest) is not None


def read_rating(reply: str | None, mark: str = "") -> float | None:
    """The mean of the four scores of a reply, scaled to [0, 1]; None unless each is there, once, and from 1 to 5.

    They are read after the thought of a judge that thinks, and after the mark where the reply has it.
    """
    said = without_thought(reply or "")
    if mark:
        said = re.split(mark, said, flags=re.IGNORECASE)[-1]
    scores = list[int]()
    for name in CRITERIA:
        pattern = rf"\b{name}\b[^\w\n]*[:=][^\w\n-]*(\d+)(?![.,]?\d)"
        found = {int(score) for score in re.findall(pattern, said, re.IGNORECASE)}
        if len(found) != 1 or not 1 <= min(found) <= BEST:
            return None
        scores += found
    return (sum(scores) / len(scores) - 1) / (BEST - 1)


def _texts(query: Query, answer: str) -> tuple[str, str, str]:
    """Question and gold answer on one line each, so that neither can imitate the lines that follow."""
    return " ".join(query.question.split()), " ".join(query.gold.split()), answer.strip()


def _fill(template: str, **values: str) -> str:
    """In one pass, so that braces in an answer or a passage are never read as placeholders."""
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)


def _ask_once_each(ask: Ask, prompts: Sequence[str | None]) -> list[str | None]:
    """Replies to the prompts that there are, each different one asked once, in order of appearance."""
    different = list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))
    replies = dict(zip(different, ask(different), strict=True)) if different else {}
    return [None if prompt is None else replies[prompt] for prompt in prompts]
