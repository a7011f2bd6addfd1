"""How a grader is compared with a judge."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from seal_jax.graders.agreement import agreement, passage_of, read_answers, split


def verdicts(both: int, only_grader: int, only_judge: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Verdicts of a grader and of a judge, with these counts."""
    pairs = [(True, True)] * both + [(True, False)] * only_grader + [(False, True)] * only_judge
    pairs += [(False, False)] * neither
    return [grader for grader, _ in pairs], [judge for _, judge in pairs]


def test_agreement_by_hand():
    found = agreement(*verdicts(2, 1, 1, 4))
    assert found.n == 8 and found.ungraded == 0
    assert found.agreement == 6 / 8
    assert found.precision == found.recall == 2 / 3
    assert found.called_right == 3 / 8
    chance = (3 * 3 + 5 * 5) / 64
    assert found.kappa == pytest.approx((6 / 8 - chance) / (1 - chance))


def test_kappa_is_one_for_the_judge_itself_and_none_for_a_constant():
    judge = [True, False, True, False, False]
    assert agreement(judge, judge).kappa == pytest.approx(1)
    assert agreement([True] * 5, judge).kappa == pytest.approx(0)
    assert agreement([True], [True]).kappa == 1  # nothing to disagree on
    assert agreement([False] * 5, judge).precision == 0  # nothing is called right


def test_ungraded_answers_are_left_out_and_counted():
    found = agreement([True, None, False, None], [True, True, False, False])
    assert (found.n, found.ungraded, found.agreement, found.kappa) == (2, 2, 1, 1)
    with pytest.raises(ValueError, match="none of 2 answers has a verdict"):
        agreement([None, None], [True, False])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 verdicts against 2"):
        agreement([True], [True, False])
    with pytest.raises(ValueError, match="1 passages for 2"):
        agreement([True, True], [True, False], ["q"])


def test_error_of_kappa_is_its_spread_over_samples():
    """Against 2,000 samples of independent answers from known shares."""
    rng = np.random.default_rng(1)
    both, only_grader, only_judge, neither = rng.multinomial(400, [0.3, 0.1, 0.05, 0.55], size=2000).T / 400
    right = (both + only_grader) * (both + only_judge)
    chance = right + (neither + only_grader) * (neither + only_judge)
    spread = np.std((both + neither - chance) / (1 - chance))
    assert agreement(*verdicts(120, 40, 20, 220)).kappa_error == pytest.approx(spread, rel=0.12)


def test_answers_to_one_question_count_together():
    """Four times the same answers is no more evidence: the error stays where it was, and does not halve."""
    grader, judge = verdicts(30, 10, 5, 55)
    once = agreement(grader, judge, range(100))
    four_times = agreement(grader * 4, judge * 4, list(range(100)) * 4)
    assert four_times.kappa_error == pytest.approx(once.kappa_error, rel=1e-6)
    assert agreement(grader * 4, judge * 4).kappa_error == pytest.approx(once.kappa_error / 2, rel=0.2)


def test_no_passage_is_in_both_parts():
    tuned_on, held_back = (
        ["Who did he fire?", "What does ATP mean?"],
        ["Who defeated Philip?", "Who were the big four?"],
    )
    rows = [{"question": question, "answer": str(i)} for i, question in enumerate([*tuned_on, *held_back, "new?"] * 3)]
    tuned, held_out = split(rows)
    assert {row["question"] for row in tuned} == set(tuned_on)
    assert {row["question"] for row in held_out} == {*held_back, "new?"}  # what is not listed was not tuned on
    assert split(rows[::-1])[1] == held_out[::-1]  # the split is by what is asked, not by where it stands
    assert not {passage_of(row["question"]) for row in tuned} & {passage_of(row["question"]) for row in held_out}


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


GOOD = {"question": "q", "gold": "g", "answer": "a\u2028b"}


def test_answers_are_read_as_they_are(tmp_path: Path):
    row = {**GOOD, "correct": True, "log_likelihood": -1.5, "id": 7}
    assert read_answers(write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False), "")) == [row]
    assert read_answers(write(tmp_path / "b.jsonl", json.dumps(GOOD))) == [GOOD]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2: Input data was truncated; expected an object a line"),
        ("[]", "line 2: Expected `object`, got `array`"),
        (json.dumps({"question": "q"}), "line 2: Object missing required field `gold`"),
        (json.dumps({**GOOD, "answer": 3}), "line 2: Expected `str`, got `int` - at `$.answer`"),
        (json.dumps({**GOOD, "correct": "yes"}), "line 2: Expected `bool`, got `str` - at `$.correct`"),
        (json.dumps({**GOOD, "log_likelihood": None}), "line 2: Expected `float`, got `null`"),
        (json.dumps({**GOOD, "log_likelihood": float("nan")}), "line 2: JSON is malformed"),
        (json.dumps({**GOOD, "correct": True}), "line 2: this line has a field 'correct', the first has not"),
    ],
)
def test_errors_name_line_and_field(tmp_path: Path, bad: str, message: str):
    path = write(tmp_path / "answers.jsonl", json.dumps(GOOD), bad)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_answers(path)


def test_a_file_without_answers_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="no answers"):
        read_answers(write(tmp_path / "answers.jsonl", ""))
    with pytest.raises(FileNotFoundError):
        read_answers(tmp_path / "none.jsonl")
