"""What is asked beside a passage's own questions is on others, was known, and is told apart from the rest."""

from __future__ import annotations

import pytest

from seal_jax.domains import squad
from seal_jax.domains.passages import Passage, Question
from seal_jax.seal import forgetting
from seal_jax.seal.forgetting import asking, choose, of_unknown, parts
from seal_jax.seal.rewards import Score, Trial
from seal_jax.types import Domain, SelfEdit, by_query

TITLES = ("Gate", "Gate", "Tarn", "Fog")  # two passages of one article
PASSAGES = [
    Passage(f"p{n}", title, f"text {n} " * 30, tuple(Question(f"{n}.{q}?", "yes") for q in range(3)))
    for n, title in enumerate(TITLES)
]
DOMAIN = Domain(
    prompt=lambda passage: "",
    parse=lambda passage, text: SelfEdit(text, ()),
    queries=lambda p: [squad.make_query(str, "{title} {question}", p.title, *q) for q in p.questions],
    grade=by_query(lambda queries, answers: [answer == "yes" for answer in answers]),
)
KNOWN = [[True, True, False], [True, True, True], [True, None, False], [False, False, False]]
BASE = [Score(["a"] * 3, verdicts, [-1.0] * 3, []) for verdicts in KNOWN]


def chosen(count: int = 8, seed: int = 0, order=slice(None)):
    return choose(PASSAGES[order], BASE[order], DOMAIN, count=count, seed=seed)


def test_questions_beside_are_those_on_other_titles_that_the_base_answers_right():
    found = chosen()
    asked = {name: sorted(query.question for query in own.others) for name, own in found.items()}
    of_gates = ["0.0?", "0.1?", "1.0?", "1.1?", "1.2?"]
    assert asked == {"p0": ["2.0?"], "p1": ["2.0?"], "p2": of_gates, "p3": [*of_gates, "2.0?"]}
    assert all(len(own.text) == 1 for own in found.values())
    text = found["p2"].text[0].gold
    assert len(text.split()) == forgetting.WORDS and "text 2" not in text
    assert found["p0"].text[0].prompt in ("Tarn\n", "Fog\n")


def test_so_many_are_drawn_whatever_the_order_of_the_passages():
    few = chosen(2)
    assert [len(own.others) for own in few.values()] == [1, 1, 2, 2]
    assert few == chosen(2, order=slice(None, None, -1))
    assert any(chosen(2, seed) != few for seed in (1, 2, 3))
    assert all(own.others == [] for own in chosen(0).values())


def test_of_one_article_there_is_nothing_to_ask_beside():
    found = choose(PASSAGES[:2], BASE[:2], DOMAIN, count=8, seed=0)
    assert all(own == forgetting.Asked([], []) for own in found.values())


def test_a_trial_is_told_apart_and_a_text_gets_no_verdict():
    beside = chosen()
    domain = asking(DOMAIN, beside)
    queries = domain.queries(PASSAGES[2])
    assert len(queries) == 3 + 5 + 1
    answers = ["yes", "no", "no", "yes", "yes", "yes", "yes", "no", "anything"]
    ((*verdicts,),) = domain.grade([queries], [answers])
    assert verdicts == [True, False, False, True, True, True, True, False]
    likely = [-1.0] * 8 + [-3.0]
    score = Score(answers, verdicts, likely, [0.5], cut=[True] * 9)
    base = Score(answers, [False, None, True] + [True] * 5, [-2.0] * 8 + [-2.5], [])
    found = parts(Trial(PASSAGES[2], 0, SelfEdit("", ()), [score], base), beside["p2"])
    assert found.others == pytest.approx(4 / 5)
    assert found.text == -3.0
    own = found.own
    assert (own.scores[0].answers, own.scores[0].verdicts, own.scores[0].cut) == (answers[:3], verdicts[:3], [True] * 3)
    assert own.accuracy == pytest.approx(1 / 3) and own.log_likelihood == -1.0
    assert of_unknown(own) == 1.0  # of the one that the base got wrong: what it did not grade is not wrong
    assert of_unknown(own._replace(base=own.base._replace(verdicts=[True, True, True]))) is None


def test_a_diverged_adapter_keeps_nothing():
    beside = chosen()["p2"]
    lost = Score([""] * 9, [False] * 8, [None] * 9, [], "diverged")
    found = parts(Trial(PASSAGES[2], 0, SelfEdit("", ()), [lost], lost), beside)
    assert (found.others, found.text, found.own.problem) == (0.0, None, "diverged")
