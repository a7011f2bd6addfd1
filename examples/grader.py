"""A grader of your own: an answer counts by its edit distance to the gold answer.

    python examples/grader.py

A grader is one function, (queries, an answer for each) -> a verdict for each: right, wrong, or None where it has none,
which is never counted as wrong. `by_query` makes it grade all tasks of a domain in one call.
"""

from __future__ import annotations

from collections.abc import Sequence

from domain import DOMAIN, DOORS
from toy_model import INNER, make_model

from seal_jax.engine.sampler import Sampling
from seal_jax.seal.rounds import make_loop, try_base
from seal_jax.types import Query, Verdict, by_query


def distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that turn one text into the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def nearly(queries: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
    """Right up to one typing error in four letters; no verdict where there is no gold answer."""
    return [
        distance(answer.lower(), query.gold.lower()) <= len(query.gold) // 4 if query.gold else None
        for query, answer in zip(queries, answers, strict=True)
    ]


def main() -> list[Verdict]:
    """Grades some answers, and those of an untrained model: prints and returns the former's verdicts."""
    asked = [Query("?", "?", gold) for gold in ("green", "green", "blue", "")]
    verdicts = nearly(asked, ["Grene", "greem", "red", "red"])
    print(verdicts)
    lm = make_model()
    domain = DOMAIN._replace(grade=by_query(nearly))
    loop = make_loop(lm, domain, DOORS, INNER, Sampling(max_tokens=1), longest=8, capacity=1, answer_tokens=1)
    for score in try_base(lm, DOORS, loop, name="base"):
        print(score.answers, score.verdicts)
    return verdicts


if __name__ == "__main__":
    main()
