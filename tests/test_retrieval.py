"""The document that a question is about is found by its words, and what is about none is known for it."""

from __future__ import annotations

import pytest

from seal_jax.domains.passages import load_passages
from seal_jax.run.retrieval import LEAST_SURE, Finder

MINE, OTHERS = load_passages("invented", "train"), load_passages("invented", "held_out")


@pytest.fixture(scope="module")
def finder() -> Finder:
    return Finder([[f"{passage.title}\n{passage.context}"] for passage in MINE])


def test_questions_find_their_passage_and_those_on_others_find_none(finder):
    asked = [(d, q.question) for d, passage in enumerate(MINE) for q in passage.questions]
    found = [finder.find(question) for _, question in asked]
    right = [one.document == d and one.sure >= LEAST_SURE for (d, _), one in zip(asked, found, strict=True)]
    assert sum(right) >= 0.95 * len(right)
    foreign = [finder.find(q.question) for passage in OTHERS for q in passage.questions]
    assert sum(one.sure >= LEAST_SURE for one in foreign) <= 0.1 * len(foreign)


def test_the_best_passage_is_compared_with_other_documents_not_with_its_own():
    alone = Finder([["The lamp burns fish oil."], ["The gate is blue."]])
    twice = Finder([["The lamp burns fish oil.", "The lamp burns fish oil."], ["The gate is blue."]])
    for finder in (alone, twice):
        assert finder.find("What does the lamp burn?").document == 0
        assert finder.find("What does the lamp burn?").sure > LEAST_SURE


def test_endings_and_case_do_not_matter():
    finder = Finder([["Lamps are burning."], ["Ferries sail."]])
    assert finder.find("What does a LAMP burn?").document == 0


@pytest.mark.parametrize("documents", [[], [["..."], [""]], [["The lamp burns fish oil."]]])
def test_a_question_without_a_word_in_common_finds_nothing(documents):
    assert Finder(documents).find("Who wrote Hamlet?") == (None, 0.0)
