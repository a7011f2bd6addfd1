"""What a judge is asked, how its reply is read, and which judge the settings describe."""

from __future__ import annotations

import pytest

from seal_jax.graders.choose import Connection, Grader
from seal_jax.graders.judge import (
    CRITERIA,
    grade_prompt,
    grade_with,
    rate_prompt,
    rate_with,
    read_rating,
    read_verdict,
)
from seal_jax.graders.lexical import grade_by_match
from seal_jax.run.judges import make_judge
from seal_jax.types import Query

QUERY = Query("Who built the {tower}?", "as the model reads it", "Ada {Lind}")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("yes", True),
        ("No", False),
        ("**Yes.**", True),
        ("NO!", False),
        ("\n Answer: yes, because no other tower is meant", True),
        ("no - yes would be wrong", False),
        ("'yes'", True),
        ("", None),
        (None, None),
        ("maybe", None),
        ("not sure", None),
        ("None of it", None),
        ("yesterday, I know", None),
    ],
)
def test_a_verdict_is_the_first_yes_or_no(reply, verdict):
    assert read_verdict(reply) is verdict


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("length: 5\ndiversity: 5\nquality: 5\ncorrectness: 5", 1.0),
        ("length: 1\ndiversity: 1\nquality: 1\ncorrectness: 1", 0.0),
        ("Length: 3\nDiversity: 3\nQuality: 3\nCorrectness: 4", 0.5625),
        ("- **Correctness**: 5/5\n- **Quality** = 4\n- **Length:** 2\n- **Diversity**: 1.", 0.5),
        ("length: 5, diversity: 4, quality: 3, correctness: 2", 0.625),
        ("length: 5\ndiversity: 5\nquality: 5", None),  # one is missing
        ("length: 5\ndiversity: 5\nquality: 5\ncorrectness:", None),
        ("length: 6\ndiversity: 5\nquality: 5\ncorrectness: 5", None),
        ("length: 0\ndiversity: 5\nquality: 5\ncorrectness: 5", None),
        ("length: -1\ndiversity: 5\nquality: 5\ncorrectness: 5", None),
        ("length: 4.5\ndiversity: 5\nquality: 5\ncorrectness: 5", None),  # no reading of ours would be its own
        ("length (1-5): 4\ndiversity: 5\nquality: 5\ncorrectness: 5", None),
        ("5\n5\n5\n5", None),
        ("", None),
        (None, None),
    ],
)
def test_a_rating_is_the_mean_of_all_four_scores(reply, rating):
    assert read_rating(reply) == rating


def test_the_judge_reads_question_gold_and_answer_as_they_are():
    prompt = grade_prompt(QUERY, " {answer} {gold}\nand more ")
    assert "Question: Who built the {tower}?\nGold answer: Ada {Lind}\n" in prompt
    assert "Student's answer: {answer} {gold}\nand more\n" in prompt
    assert QUERY.prompt not in prompt


def test_the_judge_reads_passage_notes_and_every_criterion():
    prompt = rate_prompt("A {passage}.", "A {note}.")
    assert "Passage:\nA {passage}.\n" in prompt and "Notes:\nA {note}.\n" in prompt
    assert all(f"- {name}: " in prompt for name in CRITERIA)


def test_each_answer_gets_its_own_verdict_and_is_asked_about_once():
    asked: list[str] = []

    def ask(prompts):
        asked.extend(prompts)
        return ["yes" if "Bo" in prompt else None if "Cy" in prompt else "no" for prompt in prompts]

    answers = ["Bo", "", "Ada", "Cy", "Bo", " \n\t"]
    assert grade_with(ask)([QUERY] * 6, answers) == [True, False, False, None, True, False]
    assert asked == [grade_prompt(QUERY, answer) for answer in ("Bo", "Ada", "Cy")]


def test_each_self_edit_gets_its_own_rating():
    def ask(prompts):
        assert len(prompts) == 2
        scores = [5 if "good" in prompt else 1 for prompt in prompts]
        return ["\n".join(f"{name}: {score}" for name in CRITERIA) for score in scores]

    pairs = [("P", "bad"), ("P", "good"), ("P", " "), ("P", "good")]
    assert rate_with(ask)(pairs) == [0.0, 1.0, 0.0, 1.0]


def test_nothing_to_ask_asks_nothing():
    def ask(prompts):
        raise AssertionError("asked")

    assert grade_with(ask)([], []) == []
    assert grade_with(ask)([QUERY], [""]) == [False]
    assert rate_with(ask)([("P", "")]) == [0.0]
    with pytest.raises(ValueError, match="2 answers for 1 queries"):
        grade_with(ask)([QUERY], ["", ""])


# Which judge


def test_the_rule_is_the_default_and_touches_no_disk(tmp_path):
    judge = make_judge(Grader(), Connection(), cache=tmp_path / "judge.jsonl", devices=None, say=print)
    assert judge.grade is grade_by_match and judge.rate is None and judge.report() is None and judge.usage() == {}
    assert list(tmp_path.iterdir()) == []


def test_likelihoods_are_not_a_grader_of_answers(tmp_path):
    with pytest.raises(ValueError, match=r"experiments\.grade"):
        make_judge(Grader("likelihood"), Connection(), cache=tmp_path / "judge.jsonl", devices=None, say=print)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "endpoint"}, r"--grader\.model gpt-4\.1"),
        ({"kind": "model"}, r"--grader\.model smollm2"),
        ({"concurrency": 0}, "concurrency is 0; expected at least 1"),
        ({"attempts": 0}, "attempts"),
        ({"batch": 0}, "batch"),
        ({"timeout_s": 0}, "timeout_s is 0; expected more than 0"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"price_in": -1}, "price_in"),
        ({"base_url": "api.example.org/v1"}, "base_url"),
        ({"base_url": "https://user:sk-secret@example.org/v1"}, "base_url"),
        ({"base_url": "https://example.org/v1?key=sk-secret"}, "base_url"),
        ({"key_variable": "sk-secret"}, "key_variable"),
        ({"key_variable": "aizasecret"}, "key_variable"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        (Grader if set(settings) & {"kind", "base_url"} else Connection)(**settings)
    assert "secret" not in str(caught.value)


def test_settings_hold_no_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "sk-secret" not in str((Grader("endpoint", "judge"), Connection()))
