"""Right or wrong by rule: does the answer contain the gold answer's words? And how far that agrees with a judge.

    python -m seal_jax.domains.grading graded_answers.jsonl

prints how candidate rules agree with the verdicts of another grader (lines of `{question, gold, answer, correct}`).
"""

from __future__ import annotations

import hashlib
import json
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seal_jax.types import Query, Verdict

MIN_RECALL = 0.75  # of the gold answer's words
MAX_WORDS = 30  # of the answer that are read, so that naming everything is not an answer

_ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
_NUMERALS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}


def normalise(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016).

    Punctuation beyond ASCII (curly quotes, dashes) goes too; SQuAD's script leaves it.
    """
    kept = (c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join(word for word in "".join(kept).split() if word not in _ARTICLES)


def grade_by_match(queries: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
    """Right if at least three quarters of the gold answer's words occur in the answer's first line; see `matches`.

    It stands in for the paper's judge, GPT-4.1. On 2,568 of the reference's answers, to questions on which the rule was
    not chosen, the two agree on 88 % (Cohen's kappa 0.73, standard error 0.025); of what the rule calls right GPT-4.1
    calls 90 % right, and the rule finds 74 % of what GPT-4.1 calls right. It misses answers in other words and
    believes contradictions ("not in 1843"), so its accuracies read lower: 29 % there, GPT-4.1's 35 %. Never missing:
    every verdict is True or False.

    Raises:
      ValueError: not one answer for each query.
    """
    if len(queries) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(queries)} queries; expected one for each")
    return [matches(query.gold, answer) for query, answer in zip(queries, answers, strict=True)]


def matches(gold: str, answer: str) -> bool:
    """The rule, for one answer.

    The answer's first line is read, and of it 30 words (or as many as the gold answer has, if that is more). Both are
    normalised, numerals up to twenty written as digits and plural endings dropped. Each gold word found counts once;
    it takes 3 of 4, 2 of 2, 3 of 3, 4 of 5. So order, case and surrounding words do not matter; a short gold answer
    must be there whole; an empty answer is wrong, and so is one that comes to the point too late.
    """
    gold_words = _words(gold)
    if not gold_words:  # nothing is left of a gold answer such as "A" or "+"
        return answer.strip().lower() == gold.strip().lower()
    answer_words = _words(_first_line(answer))[: max(MAX_WORDS, len(gold_words))]
    return _recall(gold_words, answer_words) >= MIN_RECALL


def _words(text: str) -> list[str]:
    return [_singular(_NUMERALS.get(word, word)) for word in normalise(text).split()]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _recall(gold: Sequence[str], answer: Sequence[str]) -> float:
    return _overlap(gold, answer) / len(gold) if gold else 0.0


def _f1(gold: Sequence[str], answer: Sequence[str]) -> float:
    return 2 * _overlap(gold, answer) / (len(gold) + len(answer)) if gold else 0.0


def _overlap(gold: Sequence[str], answer: Sequence[str]) -> int:
    return (Counter(gold) & Counter(answer)).total()


# Agreement with a judge


class Agreement(NamedTuple):
    """How a rule's verdicts compare with a judge's, as fractions."""

    agreement: float  # same verdict
    kappa: float  # Cohen's: agreement beyond chance, 0 none, 1 perfect
    precision: float  # of what the rule calls right, what the judge does
    recall: float  # of what the judge calls right, what the rule does
    called_right: float  # the accuracy that the rule reports


Rule = Callable[[str, str], bool]  # (gold, answer) -> right


def _plain(text: str) -> list[str]:
    return normalise(text).split()


def _contains(gold: str, answer: str) -> bool:
    return bool(_plain(gold)) and f" {normalise(gold)} " in f" {normalise(answer)} "


CANDIDATES: dict[str, Rule] = {
    "normalised answers are equal": lambda gold, answer: normalise(gold) == normalise(answer),
    "F1 of words >= 0.5": lambda gold, answer: _f1(_plain(gold), _plain(answer)) >= 0.5,
    "gold contained, its words in order": _contains,
    "recall of words = 1": lambda gold, answer: _recall(_plain(gold), _plain(answer)) == 1,
    "recall of words >= 0.75": lambda gold, answer: _recall(_plain(gold), _plain(answer)) >= 0.75,
    "recall of words >= 0.6": lambda gold, answer: _recall(_plain(gold), _plain(answer)) >= 0.6,
    "recall of words >= 0.5": lambda gold, answer: _recall(_plain(gold), _plain(answer)) >= 0.5,
    ">= 0.75, numerals as digits, no plurals": lambda gold, answer: _recall(_words(gold), _words(answer)) >= 0.75,
    "  the same, first line": lambda gold, answer: _recall(_words(gold), _words(_first_line(answer))) >= 0.75,
    "  the same, its first 30 words (used)": matches,
    "  its first 15 words": lambda gold, answer: _recall(_words(gold), _words(_first_line(answer))[:15]) >= 0.75,
    "  wrong if longer than 30 words": lambda gold, answer: len(_words(answer)) <= 30 and matches(gold, answer),
}


def agreement(rule: Rule, graded: Sequence[dict[str, Any]]) -> Agreement:
    """Compares a rule with the judge's verdicts on graded answers, `{gold, answer, correct}`; at least one."""
    counts = Counter(
        (bool(row["answer"].strip()) and rule(row["gold"], row["answer"]), row["correct"]) for row in graded
    )
    both, neither = counts[True, True], counts[False, False]
    rule_right, judge_right = both + counts[True, False], both + counts[False, True]
    n = len(graded)
    observed = (both + neither) / n
    chance = (rule_right * judge_right + (n - rule_right) * (n - judge_right)) / n**2
    return Agreement(
        agreement=observed,
        kappa=(observed - chance) / (1 - chance) if chance < 1 else 1.0,
        precision=both / rule_right if rule_right else 0.0,
        recall=both / judge_right if judge_right else 0.0,
        called_right=rule_right / n,
    )


def read_graded(path: str | Path) -> list[dict[str, Any]]:
    """Reads graded answers, one JSON object a line.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line is not such an object, or there is none; says which line and field.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number}: not JSON: {error.msg}; expected one object a line") from error
        for field, kind in (("question", str), ("gold", str), ("answer", str), ("correct", bool)):
            if not isinstance(row, dict) or not isinstance(row.get(field), kind):
                raise ValueError(f"{path}: line {number}: expected a field '{field}' of type {kind.__name__}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no graded answers; expected lines of {{question, gold, answer, correct}}")
    return rows


def halves(graded: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Splits by question, so that no question is in both: the half to choose a rule on, the half to report it on."""
    choose: list[dict[str, Any]] = []
    report: list[dict[str, Any]] = []
    for row in graded:
        digest = hashlib.sha256(row["question"].encode()).digest()
        (choose if digest[-1] % 2 == 0 else report).append(row)
    return choose, report


def main(path: str) -> None:
    """Prints the table of `CANDIDATES` against the judge's verdicts in `path`."""
    choose, report = halves(read_graded(path))
    print(f"{'':42}chosen on {len(choose):,}   reported on {len(report):,} answers to other questions")
    print(f"{'right if':42}{'kappa':>9}{'kappa':>12}{'agree':>8}{'precision':>11}{'recall':>8}{'right':>8}")
    for name, rule in CANDIDATES.items():
        a, b = agreement(rule, choose), agreement(rule, report)
        print(
            f"{name:42}{a.kappa:9.3f}{b.kappa:12.3f}{b.agreement:8.1%}{b.precision:11.1%}{b.recall:8.1%}"
            f"{b.called_right:8.1%}"
        )
    print(f"{'the judge itself':42}{'':48}{sum(row['correct'] for row in report) / len(report):8.1%}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m seal_jax.domains.grading FILE.jsonl")
    main(sys.argv[1])
