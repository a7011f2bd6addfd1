"""The rows of results.json: which is compared with which, what has no number, and what a self-edit's record says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from seal_jax.analysis.statistics import GAIN, SHARE, bootstrap_mean, paired_bootstrap, wilson
from seal_jax.domains.passages import Passage, Question
from seal_jax.engine.batching import tokenize
from seal_jax.seal.evaluation import (
    Stage,
    base_stage,
    mean_losses,
    round_record,
    round_tokens,
    rows,
    spread,
    summary,
    trained_stage,
    trial_record,
    ungraded,
)
from seal_jax.seal.rewards import Score, Trial
from seal_jax.seal.rounds import RoundLog
from seal_jax.types import Example, Query, SelfEdit, Settings
from tests import tiny

PASSAGES = [
    Passage(f"p{i}", f"Title {i}", f"Context {i}.", (Question("Who?", "Ada"), Question("When?", "1902")))
    for i in range(4)
]


def a_score(*verdicts: bool | None, likely: float | None = -1.0, **fields) -> Score:
    return Score([f"answer {q}" for q in range(len(verdicts))], list(verdicts), [likely] * len(verdicts), [], **fields)


def a_trial(
    p: int, scores: list[Score], *, sample: int = 0, problem: str | None = None, base: Score | None = None
) -> Trial:
    edit = SelfEdit("One.\nTwo.", (Example("", "Title\nOne."), Example("Title\n", "Two.")), problem)
    return Trial(PASSAGES[p], sample, edit, scores, base or a_score(False, False, likely=-3.0))


def queries(p: int) -> list[Query]:
    return [Query(q.question, q.question, q.answer) for q in PASSAGES[p].questions]


def about(p: int) -> dict[str, str]:
    return {"passage": PASSAGES[p].id, "title": PASSAGES[p].title, "context": PASSAGES[p].context}


BASE = base_stage([a_score(False, False, likely=-3.0) for _ in PASSAGES], "Base model")
PASSAGE = Stage("passage", "Trained on the passage alone", [0.5, 0.0, 0.5, 1.0], [-2.0, -1.0, -1.5, -0.5], {})
LAST = Stage("self_edits_round_0", "Own self-edits", [1.0, 0.5, 1.0, 1.0], [-1.0, -0.5, -1.0, -0.25], {"diverged": 1})


def plain(interval) -> dict[str, float]:
    return dict(zip(("mean", "low", "high"), interval[:3], strict=True))


def test_each_row_is_compared_with_the_one_above_and_with_the_base():
    first, second, third = rows([BASE, PASSAGE, LAST], PASSAGES, 8, seed=3)
    assert (first["versus_previous"], first["versus_base"]) == (None, None)
    change = plain(paired_bootstrap(BASE.accuracy, PASSAGE.accuracy, seed=3, within=GAIN))
    assert second["versus_previous"] == second["versus_base"] == {"row": "base", **change}
    assert third["versus_previous"] == {
        "row": "passage",
        **plain(paired_bootstrap(PASSAGE.accuracy, LAST.accuracy, seed=3, within=GAIN)),
    }
    assert third["versus_base"] == {
        "row": "base",
        **plain(paired_bootstrap(BASE.accuracy, LAST.accuracy, seed=3, within=GAIN)),
    }
    assert third["versus_previous"]["mean"] == pytest.approx(0.375)  # a gain is positive
    assert third["versus_base"]["mean"] == pytest.approx(0.875)
    assert third["accuracy"] == plain(bootstrap_mean(LAST.accuracy, seed=3, within=SHARE))
    assert third["log_likelihood"] == plain(bootstrap_mean(LAST.log_likelihood, seed=3))
    assert third["per_passage"] == {"p0": 1.0, "p1": 0.5, "p2": 1.0, "p3": 1.0}
    assert (third["passages"], third["questions"], third["problems"]) == (4, 8, {"diverged": 1})
    assert [row["name"] for row in (first, second, third)] == ["base", "passage", "self_edits_round_0"]


def test_what_has_no_number_is_null_in_plain_json():
    lost = Stage("passage", "lost", [None] * 4, [None] * 4, {"diverged": 4})
    single = Stage("self_edits_round_0", "one", [0.5, None, None, None], [-1.0, None, None, None], {})
    table = rows([BASE, lost, single], PASSAGES, 8, seed=0)
    read = json.loads(json.dumps(table, allow_nan=False))
    assert read == table
    nothing = {"mean": None, "low": None, "high": None}
    assert read[1]["accuracy"] == read[1]["log_likelihood"] == nothing
    assert read[1]["versus_previous"] == {"row": "base", **nothing}
    assert read[2]["versus_previous"] == {"row": "passage", **nothing}
    assert read[2]["accuracy"] == {"mean": 0.5, "low": None, "high": None}  # one passage has no interval
    assert read[2]["versus_base"] == {"row": "base", "mean": 0.5, "low": None, "high": None}
    assert read[1]["per_passage"] == {f"p{i}": None for i in range(4)}
    assert "-" in summary(table)


def test_a_trained_stage_is_the_mean_over_self_edits_and_seeds_and_counts_problems():
    trials = [
        [a_trial(0, [a_score(True, True), a_score(True, False)]), a_trial(0, [a_score(False, False)], sample=1)],
        [
            a_trial(1, [a_score(False, None, likely=-2.0)]),
            a_trial(1, [a_score(True, True)], problem="empty completion"),
        ],
        [a_trial(2, [Score(["", ""], [False, False], [None, None], [], "diverged")])],
        [a_trial(3, [a_score(None, None, likely=None)])],
    ]
    stage = trained_stage("passage", "Trained", trials)
    assert stage.accuracy == [0.375, 0.5, 0.0, None]
    assert stage.log_likelihood == [-1.0, -1.5, None, None]
    assert stage.problems == {"diverged": 1, "empty completion": 1}


def test_a_self_edits_record_holds_all_that_came_of_it():
    scores = [
        Score(["Ada", "1903"], [True, False], [-0.5, -1.5], [2.0, 1.0]),
        Score(["Ada", "1902"], [True, True], [-0.25, -0.25], [2.5, 0.5]),
    ]
    before = Score(["Bob", ""], [False, None], [-3.0, -5.0], [], cut=[False, True])
    record = trial_record("round 1", a_trial(2, scores, sample=3, base=before), queries(2), True, about(2))
    assert record == {
        "stage": "round 1",
        "passage": "p2",
        "title": "Title 2",
        "context": "Context 2.",
        "sample": 3,
        "completion": "One.\nTwo.",
        "problem": None,
        "sequences": ["Title\nOne.", "Title\nTwo."],
        "reward": 0.75,
        "base_reward": 0.0,
        "gain": 0.75,
        "log_likelihood": -0.625,
        "base_log_likelihood": -4.0,
        "rewards_by_seed": [0.5, 1.0],
        "added": None,
        "credit": [],
        "probability": pytest.approx((math.exp(-0.5) + math.exp(-1.5) + 2 * math.exp(-0.25)) / 4),
        "rating": None,
        "settings": None,
        "losses": [2.0, 1.0],
        "kept": True,
        "answers": [
            {
                "question": "Who?",
                "gold": "Ada",
                "before": "Bob",
                "before_correct": False,
                "before_cut": False,
                "after": "Ada",
                "after_correct": True,
                "after_cut": False,
            },
            {
                "question": "When?",
                "gold": "1902",
                "before": "",
                "before_correct": None,
                "before_cut": True,
                "after": "1903",
                "after_correct": False,
                "after_cut": False,
            },
        ],
    }
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_self_edit_that_was_only_rated_has_no_answers_after():
    record = trial_record("round 1", a_trial(2, [])._replace(rating=0.75), queries(2), True, about(2))
    assert (record["rating"], record["reward"], record["losses"], record["problem"]) == (0.75, None, [], None)
    assert {answer["after"] for answer in record["answers"]} == {None}


def test_where_the_domain_votes_an_answer_has_no_verdict_of_its_own():
    trial = a_trial(
        1, [Score(["1 2", "1 3"], [True], [-0.5, -1.5], [2.0])], base=Score(["", ""], [False], [-3, -5], [])
    )
    trial = trial._replace(edit=trial.edit._replace(settings=Settings(1e-4, 2)))
    record = trial_record("fixed", trial, queries(1), False, {"passage": "p1"})
    assert (record["reward"], record["base_reward"]) == (1.0, 0.0)
    assert record["settings"] == {"learning_rate": 1e-4, "epochs": 2}
    assert [(a["before_correct"], a["after"], a["after_correct"]) for a in record["answers"]] == [
        (None, "1 2", None),
        (None, "1 3", None),
    ]


def test_ungraded_answers_are_listed_with_where_they_came_from():
    found = ungraded(
        PASSAGES[2], queries(2), Score(["Ada", "1903"], [True, None], [-0.5, -1.5], []), stage="round 1", sample=3
    )
    assert found == [
        {
            "stage": "round 1",
            "sample": 3,
            "passage": "p2",
            "question": "When?",
            "gold": "1902",
            "answer": "1903",
            "cut": False,
        }
    ]


def test_a_record_without_a_reward_has_no_gain():
    record = trial_record("passage", a_trial(0, [a_score(None, None, likely=None)]), queries(0), False, about(0))
    assert (record["reward"], record["gain"], record["log_likelihood"], record["kept"]) == (None, None, None, False)
    unknown = a_trial(0, [a_score(True, True)], base=a_score(None, None, likely=None))
    record = trial_record("passage", unknown, queries(0), False, about(0))
    assert (record["reward"], record["base_reward"], record["gain"]) == (1.0, None, None)
    lost = a_trial(0, [a_score(True, True), Score(["", ""], [False, False], [None, None], [], "diverged")])
    record = trial_record("passage", lost, queries(0), False, about(0))
    assert (record["problem"], record["rewards_by_seed"]) == ("diverged", [1.0, 0.0])
    assert json.dumps(record, allow_nan=False)


def test_what_a_round_costs_in_tokens():
    codec = tiny.language_model([*"abcdT"]).codec
    edit = SelfEdit("a b c", (Example("", "a b"), Example("", "c")))
    trial = a_trial(0, [a_score(True), a_score(True)])._replace(edit=edit)  # two training seeds
    log = RoundLog([[trial, trial]], np.ones((1, 2), bool), [])
    sizes = sum(len(tokenize(example, codec).ids) for example in edit.examples)
    assert round_tokens(log, codec, codec, 5) == {"tokens_written": 6, "tokens_trained": 2 * 2 * 5 * sizes}
    own = trial._replace(edit=edit._replace(settings=Settings(1e-3, epochs=1)))  # it chose
    assert round_tokens(log._replace(trials=[[own]]), codec, codec, 5)["tokens_trained"] == 2 * sizes
    in_set = log._replace(trials=[[trial._replace(added={"accuracy": 0.5})]])
    assert round_tokens(in_set, codec, codec, 5) == {"tokens_written": 3, "tokens_trained": None}


def test_a_rounds_record():
    trials = [
        [a_trial(0, [a_score(True, False)]), a_trial(0, [a_score(True, True)], sample=1)],
        [a_trial(1, [a_score(None, None)]), a_trial(1, [a_score(False, False, problem="diverged")], sample=1)],
    ]
    log = RoundLog(trials, np.array([[False, True], [False, False]]), [1.5, 1.0], skipped=1)
    record = round_record(1, log, ["One. A passage.", "One. Another."])
    assert record == {
        "round": 1,
        "passages": 2,
        "self_edits": 4,
        "kept": 1,
        "mean_reward": 0.5,
        "mean_best_reward": 0.5,
        "mean_base_reward": 0.0,
        "mean_words": 2.0,
        "mean_sequences": 2.0,
        "distinct_1": 0.5,  # "one. two." twice for each task
        "distinct_2": 0.5,
        "distinct_4": None,
        "distinct_1_across": 0.25,
        "distinct_2_across": 0.25,
        "distinct_4_across": None,
        "similarity": 1.0,
        "copied": 0.5,
        "problems": {
            "diverged": 1,
            "tasks without two rewards that differ, from which nothing was learned": 1,
        },
        "sft_losses": [1.5, 1.0],
    }
    assert json.dumps(record, allow_nan=False)
    silent = [[a_trial(0, [a_score(None, None)], base=a_score(None, None))]]
    record = round_record(1, RoundLog(silent, np.zeros((1, 1), bool), []), [""])
    assert (record["mean_reward"], record["mean_best_reward"], record["mean_base_reward"]) == (None, None, None)


def test_mean_losses_are_over_those_still_training():
    def with_losses(*losses: float, problem: str | None = None) -> Trial:
        return a_trial(0, [a_score(True, True, problem=problem)._replace(losses=list(losses))])

    trials = [[with_losses(4.0, 2.0, 1.0), with_losses(2.0)], [with_losses(9.0, problem="diverged")]]
    assert mean_losses(trials) == [3.0, 2.0, 1.0]
    assert mean_losses([]) == []


def test_the_summary_says_what_the_last_row_changed():
    few = summary(rows([BASE, PASSAGE, LAST], PASSAGES, 8, seed=0))
    assert "4 passages, 8 questions" in few and few.splitlines()[-1].endswith("points: too few passages to say")

    def rows_of_eight(stages):
        more = [s._replace(accuracy=s.accuracy * 2, log_likelihood=s.log_likelihood * 2) for s in stages]
        return rows(more, PASSAGES + [p._replace(id=f"{p.id}'") for p in PASSAGES], 16, seed=0)

    text = summary(rows_of_eight([BASE, PASSAGE, LAST]))
    assert text.splitlines()[-1].endswith("points: better")
    worse = summary(rows_of_eight([BASE, LAST, BASE._replace(name="x")]))
    assert worse.splitlines()[-1].endswith("points: worse")
    same = summary(rows_of_eight([BASE, BASE._replace(name="x")]))
    assert same.splitlines()[-1].endswith("points: no clear change")
    (row,) = rows_of_eight([BASE])
    change = {"row": "base", "mean": 0.2, "low": 2e-17, "high": 0.4}  # what summing leaves of 0
    same = summary([row, row | {"versus_previous": change}])
    assert same.splitlines()[-1].endswith("points: no clear change")
    assert "nan" not in text.lower()


def counted(label: str, solved: int, tried: int, **versus) -> dict:
    share = dict(zip(("mean", "low", "high"), wilson(solved, tried)[:3], strict=True))
    counts = {"solved": solved, "tried": tried, "interval": "Wilson", "versus_previous": None}
    return {"label": label, "unit": "task", "passages": 8, "accuracy": share} | counts | versus


def test_the_summary_of_tasks_shows_how_many_were_solved_and_which_interval_it_is():
    change = {"row": "base", "mean": 0.725, "low": 0.5, "high": 0.9}
    table = [
        counted("In-context learning", 0, 8),
        counted("Own self-edits", 29, 40, versus_previous=change),
        counted("Fixed settings", 8, 8),
    ]
    lines = summary(table).splitlines()
    assert lines[0] == "8 tasks; 95 % intervals (Wilson), differences paired by task"
    assert lines[1].split() == ["solved", "accuracy,", "%", "against", "row", "above"]
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "In-context learning 0 of 8 0.0 [0.0, 32.4]",
        "Own self-edits 29 of 40 72.5 [57.2, 83.9] +72.5 [+50.0, +90.0]",
        "Fixed settings 8 of 8 100.0 [67.6, 100.0]",
    ]
    for title, cell in (("solved", "29 of 40"), ("accuracy, %", "83.9]"), ("against row above", "+90.0]")):
        assert lines[1].index(title) + len(title) == lines[3].index(cell) + len(cell)
    assert max(map(len, lines)) <= 80
    mixed = [row | {"questions": 11} for row in table]
    del mixed[0]["interval"], mixed[0]["solved"], mixed[0]["tried"]
    text = summary(mixed)
    assert text.startswith("8 tasks, 11 test inputs; 95 % intervals (Wilson, Student's), differences paired by task")
    assert "0 of 8" not in text and "29 of 40" in text


def test_the_summary_of_passages_has_no_column_of_counts():
    text = summary(rows([BASE, PASSAGE], PASSAGES, 8, seed=0))
    assert text.splitlines()[0] == "4 passages, 8 questions; 95 % intervals, paired by passage"
    assert text.splitlines()[1].split() == ["accuracy,", "%", "against", "row", "above"]


def test_the_spread_of_seeds_is_their_standard_deviation():
    def run(*shares: float | None) -> dict:
        rows = zip(("base", "passage"), ("Base model", "Passage"), shares, strict=True)
        return {"rows": [{"name": name, "label": label, "accuracy": {"mean": x}} for name, label, x in rows]}

    found = spread({3: run(0.0, 0.25), 4: run(0.0, 0.75), 5: run(0.0, None)})
    assert found["columns"] == ["", "mean", "SD", "seed 3", "seed 4", "seed 5"]
    base, passage = found["rows"]
    assert base == ["Base model", 0.0, 0.0, 0.0, 0.0, 0.0]
    assert passage == ["Passage", 50.0, pytest.approx(25 * 2**0.5), 25.0, 75.0, None]


def test_what_was_left_out_and_cut_is_counted():
    trial = a_trial(0, [a_score(True, False, cut=[True, False]), a_score(True, True, cut=[True, True])])
    trial = trial._replace(edit=trial.edit._replace(left_out=3, shortened=1))
    assert trained_stage("row", "Row", [[trial], [trial]]).problems == {
        "sentences about something else than the task, left out": 6,
        "training sequences cut at the widest step": 2,
        "answers cut off at the limit of tokens": 6,
    }
    base = a_score(True, False, cut=[False, True])
    assert base_stage([base], "Base").problems == {"answers cut off at the limit of tokens": 1}
    untrained = a_trial(0, [base], base=base)  # its answers are the base model's, which are counted there
    assert trained_stage("row", "Row", [[untrained]]).problems == {}
