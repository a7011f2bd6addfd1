"""A language model as judge: what it is asked, and how its reply is read. Which model it is, is the caller's `Ask`.

The paper's judge is GPT-4.1: a student's answer is right if it conveys the gold answer, whatever else it says, and does
not contradict it. Its prompts are not in what we hold of the paper, nor is the rubric of its proxy reward (a judge
scores a self-edit's text, and no inner loop is run): the words of both are ours, after what the paper says of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from seal_jax.types import Grade, Query, Verdict

Ask = Callable[[Sequence[str]], list[str | None]]
"""Prompts -> a reply to each; None where there is none, and asking again now would not help."""

Rate = Callable[[Sequence[tuple[str, str]]], list[float | None]]
"""(passage, self-edit's completion) pairs -> a rating of each in [0, 1]; None where the judge gave none."""

GRADE_TOKENS = 8  # of a reply to GRADE_PROMPT: one word, and what some models put around it
RATE_TOKENS = 48  # of a reply to RATE_PROMPT: four lines of a word and a digit

GRADE_PROMPT = """\
You grade a student's answer against a gold answer. Judge by the gold answer alone, not by what you know yourself.
The student's answer is right if it conveys all of the gold answer and does not contradict it. Wording, spelling and \
further details do not matter. An answer that leaves the gold answer open is wrong.

Question: {question}
Gold answer: {gold}
Student's answer: {answer}

Is the student's answer right? Reply with one word, yes or no."""

CRITERIA = {
    "length": "is there enough of it to carry the passage, without padding?",
    "diversity": "does it look at the passage from different sides, rather than repeat itself?",
    "quality": "is each statement clear, complete, and understandable without the passage?",
    "correctness": "does everything it says follow from the passage?",
}
BEST = 5  # a criterion is scored from 1 to this

RATE_PROMPT = """\
A student will study the notes below in place of the passage, and will then be asked about the passage. Rate the notes \
on four criteria, each from 1 (poor) to 5 (excellent):
{criteria}

Passage:
{passage}

Notes:
{notes}

Reply with four lines and nothing else: the name of a criterion, a colon and its score."""


def grade_with(ask: Ask) -> Grade:
    """A grader that asks a judge about each answer.

    Right or wrong is the first "yes" or "no" of the reply. An empty answer is wrong without asking, and what is asked
    twice is asked once. No reply, or one with neither word, leaves the answer ungraded (None).

    Raises:
        ValueError: not one answer for each query.
    """

    def grade(queries: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
        if len(queries) != len(answers):
            raise ValueError(f"{len(answers)} answers for {len(queries)} queries; expected one for each")
        prompts = [
            grade_prompt(query, answer) if answer.strip() else None
            for query, answer in zip(queries, answers, strict=True)
        ]
        replies = _ask_once_each(ask, prompts)
        return [
            False if prompt is None else read_verdict(reply) for prompt, reply in zip(prompts, replies, strict=True)
        ]

    return grade


def rate_with(ask: Ask) -> Rate:
    """The paper's proxy reward: a judge scores a self-edit's text by a rubric, and nothing is trained.

    The rating is the mean of four scores, 0 where all are the worst and 1 where all are the best. An empty self-edit is
    rated 0 without asking. A reply that lacks a score is None.
    """

    def rate(pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        prompts = [rate_prompt(passage, notes) if notes.strip() else None for passage, notes in pairs]
        replies = _ask_once_each(ask, prompts)
        return [0.0 if prompt is None else read_rating(reply) for prompt, reply in zip(prompts, replies, strict=True)]

    return rate


def grade_prompt(query: Query, answer: str) -> str:
    """What the judge reads about one answer."""
    return _fill(GRADE_PROMPT, question=query.question.strip(), gold=query.gold.strip(), answer=answer.strip())


def rate_prompt(passage: str, notes: str) -> str:
    """What the judge reads about one self-edit."""
    criteria = "\n".join(f"- {name}: {question}" for name, question in CRITERIA.items())
    return _fill(RATE_PROMPT, criteria=criteria, passage=passage.strip(), notes=notes.strip())


def read_verdict(reply: str | None) -> Verdict:
    """The first "yes" or "no" of a reply, in any case and punctuation; None without one."""
    word = re.search(r"\b(yes|no)\b", reply or "", re.IGNORECASE)
    return None if word is None else word[1].lower() == "yes"


def read_rating(reply: str | None) -> float | None:
    """The mean of the four scores of a reply, scaled to [0, 1]; None unless each is there and from 1 to 5."""
    scores = []
    for name in CRITERIA:
        found = re.search(rf"\b{name}\b[^\w\n]*[:=][^\w\n-]*(\d+)(?![.,]?\d)", reply or "", re.IGNORECASE)
        if found is None or not 1 <= int(found[1]) <= BEST:
            return None
        scores.append(int(found[1]))
    return (sum(scores) / len(scores) - 1) / (BEST - 1)


def _fill(template: str, **values: str) -> str:
    """In one pass, so that braces in an answer or a passage are never read as placeholders."""
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)


def _ask_once_each(ask: Ask, prompts: Sequence[str | None]) -> list[str | None]:
    """Replies to the prompts that there are, each different one asked once, in order of appearance."""
    different = list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))
    replies = dict(zip(different, ask(different), strict=True)) if different else {}
    return [None if prompt is None else replies[prompt] for prompt in prompts]
