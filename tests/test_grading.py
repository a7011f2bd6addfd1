"""What counts as a right answer, and how a rule is compared with a judge."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from seal_jax.domains import grading
from seal_jax.domains.grading import agreement, grade_by_match, halves, matches, normalise, read_graded
from seal_jax.types import Query

DATA = Path(os.environ.get("SEAL_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
GRADED = DATA / "graded_answers.jsonl"


def test_normalise_is_squads():
    assert normalise("  The Cobbler's   Stair, (in) an U.S. town!\n") == "cobblers stair in us town"
    assert normalise("theatre anvil") == "theatre anvil"  # articles are words, not letters
    assert normalise("Cobbler’s – Stair") == "cobblers stair"  # punctuation beyond ASCII too


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("red granite", "Red granite."),
        ("the warden", "Only the Warden may touch it"),
        ("1843", "It was first lit in 1843."),
        ("Edmund and Silas Crote", "Silas Crote and his brother Edmund"),
        ("twelve", "12"),
        ("seven", "There are 7 steps"),
        ("tortoises", "a tortoise"),
        ("Murray Gold and Ben Foster", "Murray Gold, Ben Foster"),  # 4 of 5
        ("38,000", "38000 homes"),
        ("A", "a"),  # an article is all there is
    ],
)
def test_right(gold: str, answer: str):
    assert matches(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("red granite", ""),
        ("red granite", " \n "),
        ("red granite", "..."),
        ("A", ""),
        ("red granite", "granite"),  # 1 of 2
        ("Leto Marsden Vane", "Leto Marsden"),  # 2 of 3
        ("42", "142"),
        ("Ister", "Sister"),  # words, not letters
        ("two two", "two"),  # each occurrence counts once
        ("glass", "glas"),
        ("red granite", "I do not know.\nred granite"),  # the first line is the answer
    ],
)
def test_wrong(gold: str, answer: str):
    assert not matches(gold, answer)


def test_naming_everything_is_not_an_answer():
    colours = [f"colour{i}" for i in range(100)]
    answer = ", ".join(colours)
    assert matches("colour3", answer)
    assert matches(colours[grading.MAX_WORDS - 1], answer)
    assert not matches(colours[grading.MAX_WORDS], answer)


def test_a_long_gold_answer_can_be_right():
    gold = " ".join(f"word{i}" for i in range(50))
    assert matches(gold, gold)
    assert not matches(gold, " ".join(["filler"] * 20 + gold.split()))


def test_one_verdict_for_each_query_in_order():
    queries = [Query("q", "p", "violet"), Query("q", "p", "plum")]
    assert grade_by_match(queries, ["plum", "plum"]) == [False, True]
    assert grade_by_match([], []) == []
    with pytest.raises(ValueError, match="1 answers for 2 queries"):
        grade_by_match(queries, ["plum"])


def test_agreement_by_hand():
    # rule right and judge right: 2; rule only: 1; judge only: 1; neither: 4
    rows = [(True, True)] * 2 + [(True, False)] + [(False, True)] + [(False, False)] * 4
    graded = [{"gold": "x", "answer": "x" if rule else "y", "correct": judge} for rule, judge in rows]
    found = agreement(lambda gold, answer: gold == answer, graded)
    assert found.agreement == 6 / 8
    assert found.precision == found.recall == 2 / 3
    assert found.called_right == 3 / 8
    chance = (3 * 3 + 5 * 5) / 64
    assert found.kappa == pytest.approx((6 / 8 - chance) / (1 - chance))


def test_an_empty_answer_is_wrong_under_every_rule():
    graded = [{"gold": "x", "answer": " ", "correct": False}]
    assert agreement(lambda gold, answer: True, graded).called_right == 0


def test_no_question_is_in_both_halves():
    graded = [{"question": f"q{i % 40}", "answer": str(i)} for i in range(200)]
    choose, report = halves(graded)
    assert choose and report and len(choose) + len(report) == len(graded)
    assert not {row["question"] for row in choose} & {row["question"] for row in report}


def test_read_graded_says_which_line_and_field(tmp_path: Path):
    good = {"question": "q", "gold": "g", "answer": "a", "correct": True}
    path = tmp_path / "graded.jsonl"
    for bad, message in [
        ("{", "line 2: not JSON"),
        (json.dumps({**good, "correct": "yes"}), "line 2: expected a field 'correct' of type bool"),
        (json.dumps({"question": "q"}), "line 2: expected a field 'gold'"),
        ("[]", "line 2: expected a field 'question'"),
    ]:
        path.write_text(json.dumps(good) + "\n" + bad + "\n")
        with pytest.raises(ValueError, match=message):
            read_graded(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no graded answers"):
        read_graded(path)


def test_the_command_prints_a_row_for_each_candidate(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "graded.jsonl"
    rows = [
        {"question": f"q{i}", "gold": "g", "answer": "g" if i % 2 else "x", "correct": i % 3 > 0} for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    grading.main(str(path))
    printed = capsys.readouterr().out
    assert all(name in printed for name in grading.CANDIDATES)


@pytest.mark.skipif(not GRADED.exists(), reason="the reference's graded answers are not here (set SEAL_DATA)")
def test_the_rule_agrees_with_the_judge_as_documented():
    """The figures of `grade_by_match`'s docstring, on the half on which the rule was not chosen."""
    choose, report = halves(read_graded(GRADED))
    found = agreement(matches, report)
    assert len(report) == 2568
    assert found.agreement == pytest.approx(0.88, abs=0.005)
    assert found.kappa == pytest.approx(0.73, abs=0.006)
    assert found.precision == pytest.approx(0.90, abs=0.005)
    assert found.recall == pytest.approx(0.74, abs=0.005)
    assert found.called_right == pytest.approx(0.29, abs=0.005)
    on_choose = {name: agreement(rule, choose).kappa for name, rule in grading.CANDIDATES.items()}
    assert max(on_choose, key=lambda name: on_choose[name]) == "  the same, its first 30 words (used)"
