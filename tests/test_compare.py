"""Runs side by side: the same row of each, differences only over the passages that both were asked about, and what
differs in their settings; whatever the runs are.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments import report
from seal_jax.analysis.statistics import bootstrap_mean, paired_bootstrap
from seal_jax.report import loops
from seal_jax.report.blocks import points
from seal_jax.report.page import write_page, write_report
from seal_jax.report.results import Difference, Estimate, RowKey, difference, read_runs, read_self_edits
from seal_jax.report.sections import as_text, settings_that_differ
from tests.test_report import HOSTILE, Page, alternatives, blank, interval, sample_run, write_sample_run

LAST = RowKey("self_edits_round_1", "passage")


def keep(folder: Path, results: dict) -> Path:
    return write_sample_run(folder, results, [])


def page_of(folders: list[Path], out: Path) -> Page:
    write_page(read_runs(folders), out)
    return Page(out)


def numbers(estimate: Estimate) -> tuple:
    return estimate.mean, estimate.low, estimate.high


def moved(results: dict, by: float) -> dict:
    """The same run with every passage's accuracy so much higher."""
    other = copy.deepcopy(results)
    for row in other["rows"]:
        row["per_passage"] = {name: value + by for name, value in row["per_passage"].items()}
        row["accuracy"] = interval(bootstrap_mean(list(row["per_passage"].values()), seed=0))
    return other


@pytest.fixture
def two(tmp_path) -> list[Path]:
    results, _ = sample_run()
    other = sample_run(seed=1)[0] | {"seed": 1}
    other["settings"] = copy.deepcopy(other["settings"])
    other["settings"]["inner"]["rank"] = 64
    return [keep(tmp_path / "one", results), keep(tmp_path / "two", other)]


# Differences


def test_a_difference_is_paired_by_passage_whatever_the_order_in_the_file(tmp_path):
    results, _ = sample_run()
    other = moved(results, 0.125)
    for row in other["rows"]:
        row["per_passage"] = dict(reversed(row["per_passage"].items()))
    first, second = read_runs([keep(tmp_path / "a", results), keep(tmp_path / "b", other)])
    change = difference(first.rows[LAST], second.rows[LAST])
    assert np.allclose(numbers(change.estimate), 0.125)  # the interval too: how hard a passage is cancels
    assert change.remark == ""


def test_a_difference_is_over_shared_passages_only(tmp_path):
    results, _ = sample_run()
    other = moved(results, 0.1)
    before, after = results["rows"][3]["per_passage"], other["rows"][3]["per_passage"]
    for number in range(4):
        after.pop(f"passage-{number}")
    after["another"] = 1.0
    first, second = read_runs([keep(tmp_path / "a", results), keep(tmp_path / "b", other)])
    change = difference(first.rows[LAST], second.rows[LAST])
    shared = [name for name in before if name in after]
    expected = paired_bootstrap([before[name] for name in shared], [after[name] for name in shared], seed=0)
    assert np.allclose(numbers(change.estimate), expected[:3]) and change.passages == 8
    assert change.remark == "over the 8 passages in both"


@pytest.mark.parametrize(
    ("per_passage", "says"), [({"elsewhere": 0.5}, "not the same passages"), ({}, "no figures by passage")]
)
def test_runs_that_share_no_passage_are_not_compared(tmp_path, per_passage, says):
    results, _ = sample_run()
    other = copy.deepcopy(results)
    other["rows"][3]["per_passage"] = per_passage
    folders = [keep(tmp_path / "a", results), keep(tmp_path / "b", other)]
    runs = read_runs(folders)
    assert difference(*(run.rows[LAST] for run in runs)) == Difference(Estimate(), 0, says)
    assert says in as_text(runs)
    words = page_of(folders, tmp_path / "out.html").words()
    assert f"— {says}" in words.split("Against a")[1]


def test_links_to_a_runs_records_hold_from_wherever_its_page_lies(tmp_path):
    folder = keep(tmp_path / "runs" / "a 1", sample_run()[0])
    page = page_of([folder], tmp_path / "pages" / "a.html")
    targets = [attributes["href"] for tag, attributes in page.elements if tag == "a" and "json" in attributes["href"]]
    assert targets == [f"../runs/a%201/{name}" for name in ("results.json", "self_edits.jsonl")]


def test_streams_and_passages_are_different_rows(tmp_path):
    folders = [
        keep(tmp_path / "a", alternatives({"base": [0.2, 0.4]})),
        keep(tmp_path / "b", alternatives({"base": [0.4, 0.4]}, unit="stream")),
    ]
    words = page_of(folders, tmp_path / "out.html").words()
    assert "2 runs that have no row in common" in words
    text = as_text(read_runs(folders))
    assert "2 runs that have no row in common" in text
    assert "Option base (streams)" in words and "Against a" not in words


# Settings


def test_only_settings_that_differ_are_listed(two):
    runs = read_runs(two)
    assert settings_that_differ(runs) == [("seed", ["0", "1"]), ("inner.rank", ["32", "64"])]
    assert settings_that_differ([runs[0]]) == []


def test_what_changes_only_the_cost_is_listed_with_the_settings(tmp_path):
    results, _ = sample_run()
    other = results | {"compute": results["compute"] | {"chunk": 38}}
    runs = read_runs([keep(tmp_path / "a", results), keep(tmp_path / "b", other)])
    assert settings_that_differ(runs) == [("compute.chunk", ["37", "38"])]


def test_a_setting_that_another_experiment_lacks_says_nothing(tmp_path):
    results, _ = sample_run()
    same, other = copy.deepcopy(results), copy.deepcopy(results) | {"name": "cpt"}
    del same["settings"]["outer"]["merge"]
    other["settings"] = {"inner": {"rank": 32}, "n": 20}
    runs = read_runs([keep(tmp_path / str(i), r) for i, r in enumerate((results, same, other))])
    assert settings_that_differ([runs[0], runs[2]]) == [("experiment", ["squad", "cpt"])]
    assert settings_that_differ([runs[0], runs[1]]) == [("outer.merge", ["yes", "—"])]


# The page and the terminal


def test_page_has_every_part(tmp_path, two):
    results = json.loads((two[0] / "results.json").read_text())
    for row, accuracy in zip(results["rows"], (0.017, 0.935, None, 0.983), strict=True):
        row["paper"] = accuracy and {"accuracy": accuracy, "where": "table 2", "differs": ["model: big there, m here"]}
    keep(two[0], results | {"ungraded": 4})
    page = page_of(two, tmp_path / "out.html")
    words = page.words()
    headings = [
        "Runs",
        "Accuracy",
        "The paper's figures",
        "Against one",
        "Outer loops",
        "Settings that differ",
        "Phase",
    ]
    positions = [words.index(heading) for heading in headings]
    assert positions == sorted(positions)
    for run in read_runs(two):
        for row in run.results.rows:
            assert f"{100 * row.accuracy.mean:.1f} %" in words
    assert "4 answers without a verdict" in words and "60 questions, 12 passages" in words
    table = words.split("Row one two Paper ")[1].split("Against one")[0]
    assert re.findall(r"\b1\.7 %|93\.5 %|—|98\.3 %", table) == ["1.7 %", "93.5 %", "—", "98.3 %"]
    assert "one: table 2; model: big there, m here" in words
    assert "inner.rank 32 64" in words
    assert sum(tag == "figure" for tag, _ in page.elements) == 4 + 2  # one a row; gain and reward over the rounds
    ids = re.findall(r' id="([^"]*)"', page.source)
    assert len(ids) == len(set(ids))


def test_links_are_relative_and_only_to_pages_that_are_there(tmp_path, two):
    spaced = two[1].rename(tmp_path / "two & a half")
    (spaced / "report.html").write_text("")
    page = page_of([two[0], spaced], tmp_path / "pages" / "out.html")
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links == ["../two%20%26%20a%20half/report.html"]
    assert "http" not in page.source and "<script" not in page.source


def test_text_of_a_run_is_always_escaped(tmp_path):
    results, _ = sample_run()
    results["model"] += HOSTILE
    results["settings"]["inner"][f"name{HOSTILE}"] = HOSTILE
    results["rows"][0]["label"] = HOSTILE
    results["rows"][1]["paper"] = {"accuracy": 0.3, "where": HOSTILE, "differs": [HOSTILE]}
    other = sample_run(seed=1)[0]
    other["settings"]["inner"][f"name{HOSTILE}"] = "plain"
    page = page_of([keep(tmp_path / "<b>a", results), keep(tmp_path / "b", other)], tmp_path / "out.html")
    assert not {"script", "img", "b"} & {tag for tag, _ in page.elements}
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text


@pytest.mark.parametrize(
    ("by", "says"), [(0.2, "70.0 % (a clear gain)"), (-0.2, "30.0 % (a clear loss)"), (0.0, "50.0 % (no clear change)")]
)
def test_headline_of_two_runs_says_whether_they_differ(tmp_path, by, says):
    results, _ = sample_run()
    folders = [keep(tmp_path / "a", results), keep(tmp_path / "b", moved(results, by))]
    words = page_of(folders, tmp_path / "out.html").words()
    assert f"Own self-edits, after round 1: a 50.0 %; b {says}" in words


def test_two_runs_of_fewer_than_eight_passages_are_not_called_different(tmp_path):
    for passages, says in ((7, "(too few passages to say)"), (8, "(a clear gain)")):
        runs = [alternatives({"a": [share] * passages}) for share in (0.2, 0.6)]
        folders = [keep(tmp_path / name, run) for name, run in zip("ab", runs, strict=True)]
        assert says in page_of(folders, tmp_path / "out.html").words()


def test_eight_runs_and_one(tmp_path):
    results, _ = sample_run()
    folders = [keep(tmp_path / f"run-{i}", moved(results, i / 100)) for i in range(8)]
    words = page_of(folders, tmp_path / "out.html").words()
    assert "Own self-edits, after round 1: 8 runs, from 50.0 % (run-0) to 57.0 % (run-7)" in words
    assert "60 questions, 12 passages. Intervals are" in words
    assert "Settings that differ None." in words
    alone = page_of(folders[:1], tmp_path / "out.html").words()
    assert alone == page_of(folders[:1], write_report(folders[0])).words()  # the page of that run
    assert "Against run" not in alone and "Settings that differ" not in alone and "machine platform" in alone


def test_headline_warns_where_passages_differ(tmp_path):
    results, _ = sample_run()
    other, fewer = copy.deepcopy(results), copy.deepcopy(results)
    other["rows"][3]["per_passage"] = {"elsewhere": 0.5}
    del fewer["rows"][3]["per_passage"]["passage-0"]
    folders = [keep(tmp_path / str(i), run) for i, run in enumerate((results, other, fewer))]
    words = page_of(folders, tmp_path / "out.html").words()
    assert "1 50.0 % (not the same passages); 2 50.0 % (no clear change; over the 11 passages in both)" in words


def test_runs_of_different_experiments_are_compared_in_what_they_share(tmp_path):
    results, _ = sample_run()
    other = copy.deepcopy(results) | {"name": "evaluate_edits"}
    other["rows"] = [*other["rows"][:2], other["rows"][2] | {"name": "edits of mine", "label": "Mine"}]
    tables = {"name": "rewards", "model": "m", "rows": [], "tables": [{"title": "t", "columns": ["a"], "rows": []}]}
    folders = [keep(tmp_path / name, r) for name, r in (("a", results), ("b", other), ("c", tables))]
    words = page_of(folders, tmp_path / "out.html").words()
    against = words.split("Against a")[1].split("Settings that differ")[0]
    assert "Row b c Base model 0.0" in against and "Trained on the passage 0.0" in against and "Mine" not in against
    assert "Mine" in words and "no rows of accuracy" in words and "The runs are of different experiments" in words


def test_missing_values_do_not_break_the_page(tmp_path):
    results, _ = sample_run()
    for number, other in enumerate([{}, {"rows": None}, {"rows": [{}]}, blank(results)]):
        folders = [keep(tmp_path / f"{number}-a", results), keep(tmp_path / f"{number}-b", other)]
        for some in (folders, folders[::-1], folders[1:]):
            page_of(some, tmp_path / "out.html")
            assert as_text(read_runs(some))


def test_the_terminal_shows_the_same_in_100_columns(two):
    runs = read_runs(two)
    text = as_text(runs)
    assert max(map(len, text.splitlines())) <= 100
    assert "Own self-edits, after round 1: one 50.0" in text
    change = difference(*(run.rows[LAST] for run in runs)).estimate
    against = text.split("Against one\n")[1].split("\n\n")[0].splitlines()
    assert "paired by passage" in against[0] and ["Row", "two"] in [line.split() for line in against]
    last = next(i for i, line in enumerate(against) if line.startswith("Own self-edits, after round 1"))
    assert against[last].split()[-1] == points(change.mean)
    assert against[last + 1].strip() == change.between(points)
    assert ["inner.rank", "32", "64"] in [line.split() for line in text.splitlines()]


def test_long_names_stay_within_the_terminal(tmp_path):
    results, _ = sample_run()
    results["rows"][0]["label"] = "a label " * 30
    results["settings"]["inner"]["width_cuts"] = list(range(200))
    folders = [keep(tmp_path / f"{'a-very-long-run-name' * 4}-{i}", results) for i in range(3)]
    lines = as_text(read_runs(folders)).splitlines()
    assert max(map(len, lines)) <= 100
    heading = [line.split() for line in lines[lines.index("Accuracy") + 1 : lines.index("Accuracy") + 12]]
    assert any([name[-2:] for name in names[-3:]] == ["-0", "-1", "-2"] for names in heading)  # what tells them apart


# Outer loops


def study(folder: Path, method: str, *, seed: int = 0, rounds: int = 2) -> Path:
    results, edits = sample_run(rounds=rounds, seed=seed)
    results["settings"] = copy.deepcopy(results["settings"])
    results["settings"]["outer"]["method"] = method
    results["timings"] = {"round 1: inner loop": 30.0, "round 1, sets: inner loop": 31.0, "round 10: inner loop": 9.0}
    results["written"] = [{"label": str(n), "distinct_4_across": 0.5 + n / 10} for n in range(rounds + 1)]
    results["rounds"][0] |= {"tokens_written": 1234, "tokens_trained": 56789}
    return write_sample_run(folder, results, edits)


def test_outer_loops_are_compared_over_their_rounds(tmp_path):
    runs = read_runs([study(tmp_path / "a", "rest_em"), study(tmp_path / "b", "preferences", seed=1, rounds=1)])
    assert list(loops.named(runs)) == ["rest_em", "preferences"]
    first, second = loops.rounds_of(runs[0])
    change = paired_bootstrap(
        *(list(runs[0].rows[RowKey(f"self_edits_round_{n}", "passage")].per_passage.values()) for n in (0, 2)), seed=0
    )
    assert numbers(second.gain) == pytest.approx(change[:3])  # against before RL, and not the round before
    edits = [edit for edit in read_self_edits(runs[0].folder / "self_edits.jsonl") if edit.stage == "round 1"]
    own = [np.mean([edit.reward for edit in edits if edit.passage == name]) for name in {e.passage: 0 for e in edits}]
    assert numbers(first.reward) == pytest.approx(bootstrap_mean(own, seed=0)[:3]) and len(own) == 8
    assert first.distinct.mean == pytest.approx(0.25, abs=0.01)  # four times the same text
    assert (first.seconds, second.seconds, first.together) == (61.0, None, 0.6)
    page = page_of([run.folder for run in runs], tmp_path / "out.html")
    words = page.words().split("Outer loops")[1].split("Settings that differ")[0]
    assert "paired by passage" in words and "not the same" not in words
    for line in ("rest_em, 1", "rest_em, 2", "preferences, 1", "1,234", "56,789", "1 min 1 s"):
        assert line in words
    assert page.source.count('<figure class="curves trends"') == 3
    text = as_text(runs)
    assert "preferences, 1" in text and max(map(len, text.splitlines())) <= 100


def test_outer_loops_of_one_method_are_called_as_their_runs(tmp_path):
    runs = read_runs([study(tmp_path / "a", "rest_em"), study(tmp_path / "b", "rest_em", seed=1)])
    assert list(loops.named(runs)) == ["a", "b"]
    assert (
        loops.section([runs[0], read_runs([keep(tmp_path / "c", alternatives({"base": [0.5, 0.5]}))])[0]]).blocks == []
    )


# Which runs


def test_runs_are_called_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
    results, _ = sample_run()
    places = ["x/runs/demo", "y/runs/demo", "y/runs/other"]
    runs = read_runs([keep(tmp_path / place, results) for place in places])
    assert [run.label for run in runs] == places
    assert [run.label for run in read_runs([runs[1].folder, keep(tmp_path / "z/demo", results)])] == [
        "y/runs/demo",
        "z/demo",
    ]


def test_a_run_may_be_named_by_its_results(two):
    assert [run.label for run in read_runs([two[0] / "results.json", two[1]])] == ["one", "two"]


def test_the_command_writes_the_page_beside_the_first_run_and_prints_the_table(two, capsys):
    assert report.main([str(folder) for folder in two]) == 0
    out = two[0].parent / "comparison.html"
    printed = capsys.readouterr().out
    assert out.is_file() and printed.endswith(f"Report: {out}\n") and "Base model" in printed
    elsewhere = two[0].parent / "deep" / "er.html"
    assert report.main([*map(str, two), "--out", str(elsewhere)]) == 0
    assert elsewhere.is_file()


def test_the_command_writes_the_page_of_one_run_into_its_folder(two, capsys):
    assert report.main([str(two[0])]) == 0
    page = two[0] / "report.html"
    printed = capsys.readouterr().out
    assert printed.endswith(f"Report: {page}\n") and "Own self-edits, before RL 50.0" in printed
    assert not (two[0].parent / "comparison.html").exists()
    written = page.read_bytes()
    assert write_report(two[0]).read_bytes() == written


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["one", "empty"], r"empty/results\.json is not there"),
        (["one", "nowhere"], r"nowhere is not there"),
        (["one", "two", "one/results.json"], r"results\.json was given twice"),
        (["one", "broken"], r"broken/results\.json is not JSON"),
        ([], "no run was given"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path, two, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    assert report.main([*arguments, "--out", "page.html"]) == 2
    error = capsys.readouterr().err
    assert re.search(says, error) and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_typo_is_answered_with_a_suggestion(two, capsys):
    with pytest.raises(SystemExit) as exit_:
        report.main([str(two[0]), "--ot", "page.html"])
    assert exit_.value.code == 2 and "--out" in capsys.readouterr().err
