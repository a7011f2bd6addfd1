"""What training on one passage takes away: of what the base knew about other passages, and of unrelated text.

Each adapter is asked, beside the questions on its own passage, some on others that the base answered right, and how
likely it finds a text of another passage. These are more queries of the same batch: they cost answers, no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seal_jax.domains.passages import Passage
from seal_jax.seal.rewards import Score, Trial, mean
from seal_jax.seal.rounds import stable_hash
from seal_jax.types import Domain, Query, Task, Verdict

WORDS = 40  # of another passage, whose likelihood is read


class Asked(NamedTuple):
    """What an adapter is asked beside its own passage's questions."""

    others: list[Query]  # on other passages; the base answers them right
    text: list[Query]  # a text of another passage, as a gold answer: its likelihood is read and its answer is not


class Parts(NamedTuple):
    """A trial by what was asked."""

    own: Trial
    others: float | None  # the share that is still answered right; None where the base knew nothing to ask
    text: float | None  # log-likelihood of unrelated text, nats a token


def choose(
    passages: Sequence[Passage], base: Sequence[Score], domain: Domain, *, count: int, seed: int
) -> dict[str, Asked]:
    """By passage, at most `count` questions on passages of other titles that the base answers right, and a text of one.

    Drawn with the seed and the passage, whatever order the passages come in.
    """
    known = [
        (passage, query)
        for passage, score in sorted(zip(passages, base, strict=True), key=lambda pair: pair[0].id)
        for query, verdict in zip(domain.queries(passage), score.verdicts, strict=True)
        if verdict
    ]
    found = {}
    for passage in passages:
        rng = np.random.default_rng([seed, stable_hash(passage.id)])
        there = [query for other, query in known if other.title != passage.title]
        drawn = sorted(rng.choice(len(there), min(count, len(there)), replace=False)) if there else []
        strangers = sorted((p for p in passages if p.title != passage.title), key=lambda p: p.id)
        text = [unrelated(strangers[rng.integers(len(strangers))])] if strangers else []
        found[passage.id] = Asked([there[i] for i in drawn], text)
    return found


def unrelated(passage: Passage) -> Query:
    """The beginning of a passage as a text whose likelihood is read, under its title."""
    return Query("", f"{passage.title}\n", " ".join(passage.context.split()[:WORDS]), max_tokens=1)


def asking(domain: Domain, beside: Mapping[str, Asked]) -> Domain:
    """The domain, asking each task's own questions and then what is beside them. Of a text there is no verdict."""

    def queries(task: Task) -> list[Query]:
        more = beside[task.id]
        return [*domain.queries(task), *more.others, *more.text]

    def grade(asked: Sequence[Sequence[Query]], answers: Sequence[Sequence[str]]) -> list[list[Verdict]]:
        real = [[query for query in row if query.question] for row in asked]  # a text asks nothing, and comes last
        return domain.grade(real, [row[: len(own)] for own, row in zip(real, answers, strict=True)])

    return domain._replace(queries=queries, grade=grade)


def parts(trial: Trial, asked: Asked) -> Parts:
    """What came of each part, from a trial of the domain that `asking` made."""
    more = len(asked.others) + len(asked.text)
    count = len(trial.base.answers) - more
    scores = trial.scores
    return Parts(
        trial._replace(scores=[_own(score, count) for score in scores], base=_own(trial.base, count)),
        mean(verdict for score in scores for verdict in score.verdicts[count:]),
        mean(value for score in scores for value in score.log_likelihoods[count + len(asked.others) :]),
    )


def _own(score: Score, count: int) -> Score:
    return score._replace(
        answers=score.answers[:count],
        verdicts=score.verdicts[:count],
        log_likelihoods=score.log_likelihoods[:count],
        cut=score.cut[:count],
    )


def of_unknown(trial: Trial) -> float | None:
    """The accuracy on those of its own questions that the base answers wrong; None where there is none."""
    wrong = [q for q, verdict in enumerate(trial.base.verdicts) if verdict is False]
    return mean(score.verdicts[q] for score in trial.scores for q in wrong)
