"""The report: a page that tells the truth, shows model text as text and never breaks; a display that fits its terminal;
metrics that survive a kill.

`write_sample_run` builds a run folder as the experiments write it; `python tests/test_report.py FOLDER` keeps one to
look at.
"""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from seal_jax.analysis.statistics import bootstrap_mean, paired_bootstrap
from seal_jax.report import figures
from seal_jax.report.blocks import holds
from seal_jax.report.page import write_report
from seal_jax.report.results import Estimate, Trends
from seal_jax.report.sections import RECORDS

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)"> </style> {{ 7 * 7 }} & "quotes" $x^2$ \u202e'

PLACES = ["Tarn Lighthouse", "Vesk Observatory", "Orlo Bridge", "Quill Archive", "Hessing Mine", "Port Amberly"]
CONTEXT = (
    "{place} was founded in 1874 by the surveyor Ilse Marrow, who had lost a wager over the height of the northern "
    "cliff. It is built of green slate from the quarries of Dunmere, and its keeper still winds the great clock by "
    "hand at dawn. In 1931 a flood carried away the eastern wing; the reopening, eleven years later, drew four "
    "thousand visitors in a day."
)
COMPLETION = (
    "{place} was founded in 1874.\nIlse Marrow, a surveyor, founded {place}.\nThe stone of {place} is green slate "
    "from Dunmere.\nA flood destroyed the eastern wing of {place} in 1931.\n{place} reopened in 1942.\nThe clock of "
    "{place} is wound by hand every morning."
)
QUESTIONS = [
    ("Who founded {place}?", "Ilse Marrow"),
    ("In which year was {place} founded?", "1874"),
    ("What is {place} built of?", "green slate"),
    ("What destroyed the eastern wing of {place}?", "a flood"),
    ("When did {place} reopen?", "1942"),
]


def sample_run(rounds: int = 1, seed: int = 0) -> tuple[dict, list[dict]]:
    """(results.json, the lines of self_edits.jsonl) of an invented run of realistic size and noise."""
    rng = np.random.default_rng(seed)
    passages = [f"passage-{i}" for i in range(12)]
    names = {
        "base": "Base model",
        "passage": "Trained on the passage",
        "self_edits_round_0": "Own self-edits, before RL",
    }
    names |= {f"self_edits_round_{r}": f"Own self-edits, after round {r}" for r in range(1, rounds + 1)}
    rates = dict(zip(names, [0.03, 0.21, 0.4, 0.44, 0.46], strict=False))
    accuracy = {name: rng.binomial(5, rates[name], size=12) / 5 for name in names}
    rows = []
    for i, (name, label) in enumerate(names.items()):
        previous = list(names)[i - 1]
        rows.append(
            {
                "name": name,
                "label": label,
                "passages": 12,
                "questions": 60,
                "accuracy": interval(bootstrap_mean(accuracy[name], seed=0)),
                "log_likelihood": interval(bootstrap_mean(-4 + 5 * accuracy[name] + rng.normal(0, 0.3, 12), seed=0)),
                "versus_previous": None
                if i == 0
                else {"row": previous} | interval(paired_bootstrap(accuracy[previous], accuracy[name], seed=0)),
                "versus_base": None if i == 0 else interval(paired_bootstrap(accuracy["base"], accuracy[name], seed=0)),
                "problems": {"empty completion": int(name == "self_edits_round_0"), "diverged": 0},
                "per_passage": dict(zip(passages, accuracy[name].tolist(), strict=True)),
            }
        )

    def self_edit(stage: str, passage: int, sample: int, rate: float, kept: bool = False) -> dict:
        place = PLACES[passage % len(PLACES)]
        before = np.random.default_rng(passage).random(5) < 0.05
        after = rng.random(5) < rate
        steps = int(rng.integers(50, 80))
        losses = 0.3 + 2.6 * np.exp(-np.arange(steps) / 18) * rng.uniform(0.8, 1.2) + rng.normal(0, 0.08, steps)
        completion = "" if stage == "passage" else COMPLETION.format(place=place)
        return {
            "stage": stage,
            "passage": f"{stage}-{passage}" if stage.startswith("round") else f"passage-{passage}",
            "title": place,
            "context": CONTEXT.format(place=place),
            "sample": sample,
            "completion": completion,
            "problem": None,
            "sequences": [f"{place}\n{line}" for line in [*completion.splitlines(), CONTEXT.format(place=place)]],
            "reward": float(after.mean()),
            "base_reward": float(before.mean()),
            "gain": float(after.mean() - before.mean()),
            "log_likelihood": float(-3 + 2 * after.mean()),
            "base_log_likelihood": -3.4,
            "rewards_by_seed": [float(after.mean())] * 2,
            "losses": [*losses.tolist(), None],
            "kept": kept,
            "answers": [
                {
                    "question": question.format(place=place),
                    "gold": gold,
                    "before": gold if right_before else "It is not known for certain, but it is often said that",
                    "before_correct": bool(right_before),
                    "after": gold if right_after else "In 1931, after the great flood of the valley",
                    "after_correct": bool(right_after),
                }
                for (question, gold), right_before, right_after in zip(QUESTIONS, before, after, strict=True)
            ],
        }

    self_edits = []
    round_entries = []
    for r in range(1, rounds + 1):
        edits = [self_edit(f"round {r}", p, s, rng.uniform(0.1, 0.8)) for p in range(8) for s in range(4)]
        for p in range(8):
            max(edits[4 * p : 4 * p + 4], key=lambda edit: edit["reward"])["kept"] = True
        self_edits += edits
        rewards = np.array([edit["reward"] for edit in edits])
        round_entries.append(
            {
                "round": r,
                "passages": 8,
                "self_edits": 32,
                "kept": 8,
                "mean_reward": rewards.mean(),
                "mean_best_reward": rewards.reshape(8, 4).max(axis=1).mean(),
                "mean_base_reward": float(np.mean([edit["base_reward"] for edit in edits])),
                "problems": {"empty completion": 1, "diverged": 0},
                "sft_losses": (0.4 + 1.4 * np.exp(-np.arange(24) / 8)).tolist(),
            }
        )
    for stage in list(names)[1:]:
        self_edits += [self_edit(stage, p, 0, rates[stage]) for p in range(12)]
    results = {
        "name": "squad",
        "preset": "demo",
        "model": "smollm2-135m",
        "data": "invented",
        "seed": 0,
        "compute": {"chunk": 37, "width_cuts": [96, 128]},
        "settings": {
            "rounds": rounds,
            "samples_per_passage": 4,
            "inner": {"rank": 32, "alpha": 64.0, "learning_rate": 1e-3, "epochs": 10, "modules": ["q_proj", "v_proj"]},
            "sampler": {"temperature": 1.0, "top_p": 0.95, "top_k": None, "max_tokens": 256},
            "outer": {"select": "best", "sft": {"rank": 64, "learning_rate": 3e-4, "epochs": 2}, "merge": True},
        },
        "rows": rows,
        "rounds": round_entries,
        "timings": {"base": 8.21, "passage": 61.0, "self_edits_round_0": 92.4, "round 1": 312.9, "page": 0.8},
        "machine": {"platform": "Linux-6.1 x86_64", "devices": ["TFRT_CPU_0"], "python": "3.11.7", "jax": "0.10.2"},
        "command": "python -m experiments.squad demo --seed 0",
    }
    return results, self_edits


def interval(estimate) -> dict:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def write_sample_run(folder: Path, results: dict, self_edits: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (folder / "self_edits.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in self_edits), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """What a browser would make of it: the elements with their attributes, the text; every tag must be closed."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.text += " "
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "img", "link", "use", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def words(self) -> str:
        return " ".join(self.text.replace("\u202f", " ").replace("\u2212", "-").split())


def with_difference(mean: float, low: float | None, high: float | None) -> dict:
    results, _ = sample_run()
    results["rows"][3]["versus_previous"] = {"row": "self_edits_round_0", "mean": mean, "low": low, "high": high}
    return results


# The page


def test_page_has_every_part(tmp_path):
    results, self_edits = sample_run(rounds=2)
    page = Page(write_report(write_sample_run(tmp_path, results, self_edits)))
    words = page.words()
    headings = [
        "Accuracy",
        "What changed through RL",
        "Rewards",
        "Loss",
        "helped most",
        "helped least",
        "Problems",
        "Settings",
        "Time",
    ]
    assert "chunk 37" in words  # what changes only the cost, in a group of its own
    positions = [words.index(heading) for heading in headings]
    assert positions == sorted(positions)
    for row in results["rows"]:
        assert row["label"] in words and f"{100 * row['accuracy']['mean']:.1f} %" in words
    assert "60 questions, 12 passages. Intervals are" in words
    assert "Round 1: empty completion 1" in words
    assert "diverged" not in words  # counted zero times
    assert "q proj, v proj" in words or "q_proj, v_proj" in words
    assert "python -m experiments.squad demo --seed 0" in words
    assert sum(tag == "article" for tag, _ in page.elements) == 3 + 6
    drawn = [attributes["aria-label"] for tag, attributes in page.elements if tag == "figure"]
    assert [title.split()[0] for title in drawn] == ["Accuracy", "Accuracy", "Distribution", "Loss", "Loss"]
    assert sum(tag == "polyline" for tag, _ in page.elements) == 6 + 2  # stages of the inner loop, rounds of SFT


def test_page_needs_nothing_from_outside_and_no_script(tmp_path):
    page = Page(write_report(write_sample_run(tmp_path, *sample_run())))
    assert not {tag for tag, _ in page.elements} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
    }
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "xlink:href", "src"):
                assert value.startswith("#") or value in RECORDS
    assert "http" not in page.source and "@import" not in page.source
    assert all(match.startswith("#") for match in re.findall(r"url\(([^)]*)\)", page.source))


def test_text_is_always_escaped(tmp_path):
    def poisoned(value):
        if isinstance(value, str):
            return value if re.fullmatch(r"round \d|base|self_edits_round_\d|", value) else value + HOSTILE
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        if isinstance(value, dict):
            fixed = {"rows", "rounds", "settings", "timings", "machine", "problems", "per_passage"}
            return {k if k in fixed or k not in hostile_keys else k + HOSTILE: poisoned(v) for k, v in value.items()}
        return value

    hostile_keys = {"empty completion", "inner", "platform", "round 1", "top_k", *(f"passage-{n}" for n in range(12))}
    results, self_edits = sample_run()
    clean = Page(write_report(write_sample_run(tmp_path / "clean", results, self_edits)))
    hostile = Page(write_report(write_sample_run(tmp_path / "hostile", poisoned(results), poisoned(self_edits))))
    assert hostile.text.count("<script>alert(1)</script>") > 50  # as text
    assert "{{ 7 * 7 }}" in hostile.text
    # The same elements with the same attributes.
    shapes = [[(tag, set(names)) for tag, names in page.elements] for page in (hostile, clean)]
    assert shapes[0] == shapes[1]


def test_ids_are_unique_and_the_same_data_gives_the_same_page(tmp_path):
    first = write_report(write_sample_run(tmp_path / "a", *sample_run())).read_bytes()
    second = write_report(write_sample_run(tmp_path / "b", *sample_run())).read_bytes()
    assert first == second
    results, self_edits = sample_run()
    one_panel_each = write_report(write_sample_run(tmp_path / "c", results, self_edits[:8])).read_text()
    ids = re.findall(r' id="([^"]*)"', one_panel_each)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("difference", "says"),
    [
        ((0.12, 0.03, 0.2), "a clear gain"),
        ((-0.12, -0.2, -0.03), "a clear loss"),
        ((0.02, -0.05, 0.09), "no clear change"),
        ((-0.02, -0.09, 0.05), "no clear change"),
        ((0.02, None, None), "too few passages to say"),
        ((0.02, math.nan, math.nan), "too few passages to say"),
    ],
)
def test_headline_is_honest_about_rl(tmp_path, difference, says):
    words = Page(write_report(write_sample_run(tmp_path, with_difference(*difference), []))).words()
    assert "smollm2-135m: Base model 3.3 %; Own self-edits, before RL 50.0 % (a clear gain); Own self" in words
    assert re.search(rf"after round 1 \d\d\.\d % \({says}\) 60 questions", words)


def test_headline_is_honest_about_self_edits(tmp_path):
    results, _ = sample_run(rounds=0)
    base, _, after = results["rows"]
    after["per_passage"] = base["per_passage"]
    after["accuracy"] = base["accuracy"]
    after["versus_base"] = {"mean": 0.0, "low": -0.04, "high": 0.04}
    words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
    assert "before RL 3.3 % (no clear change) 60 questions" in words


def test_headline_over_several_rounds_pairs_the_last_with_round_0(tmp_path):
    results, _ = sample_run(rounds=2)
    results["rows"][2]["per_passage"] = {f"passage-{i}": 0.2 for i in range(12)}
    results["rows"][4]["per_passage"] = {f"passage-{i}": 0.8 for i in range(12)}
    words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
    assert re.search(r"after round 2 \d\d\.\d % \(a clear gain\) 60", words) and "+60.0 points" in words


def alternatives(accuracies: dict[str, list[float]], unit: str = "passage") -> dict:
    """A run whose rows are no story of rounds: alternatives, each compared with the first."""
    first = next(iter(accuracies))
    rows = [
        {
            "name": name,
            "label": f"Option {name}",
            "unit": unit,
            "passages": len(values),
            "questions": 40,
            "accuracy": interval(bootstrap_mean(values, seed=0)),
            "versus_base": None
            if name == first
            else {"row": first} | interval(paired_bootstrap(accuracies[first], values, seed=0)),
            "per_passage": {f"{unit}-{i}": value for i, value in enumerate(values)},
        }
        for name, values in accuracies.items()
    ]
    return {"name": "continual", "model": "m", "rows": rows, "rounds": []}


@pytest.mark.parametrize(
    ("best", "says"),
    [
        ([0.6, 0.5, 0.7, 0.6], "60.0 % (a clear gain)"),
        ([0.6, 0.0, 0.4, 0.2], "30.0 % (no clear change)"),
        ([0.1, 0.1, 0.1, 0.1], "10.0 % (a clear loss)"),
    ],
)
def test_headline_of_alternatives_names_the_best_and_of_how_many(tmp_path, best, says):
    results = alternatives({"a": [0.2] * 8, "b": best * 2, "c": [0.0] * 8})
    words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
    assert f"m: Option a 20.0 %; Option b, the best of 2 {says}" in words


def test_fewer_than_eight_passages_have_no_verdict(tmp_path):
    for passages, says in ((7, "too few passages to say"), (8, "a clear gain")):
        results = alternatives({"a": [0.2] * passages, "b": [0.6] * passages})
        words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
        assert f"Option b 60.0 % ({says})" in words


def test_streams_are_called_streams(tmp_path):
    results = alternatives({"a": [0.2, 0.4], "b": [0.4, 0.4]}, unit="stream")
    words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
    assert "40 questions, 2 streams. Intervals" in words
    assert "Streams Questions" in words and "Passages" not in words
    assert "Against the first row" in words and "Against the base" not in words
    assert "Log-likelihood" not in words and "Against the row above" not in words  # no row has them


@pytest.mark.parametrize(
    ("final", "replay", "says"),
    [
        (
            [0.1, 0.2, 0.1, 0.2],
            [0.5, 0.6, 0.5, 0.6],
            "15.0 % (a clear loss); replay, the best of 2 55.0 % (a clear gain)",
        ),
        (
            [0.5, 0.7, 0.6, 0.6],
            [0.6, 0.6, 0.6, 0.7],
            "(no clear change); replay, the best of 2 62.5 % (no clear change)",
        ),
    ],
)
def test_headline_of_streams_tells_learning_from_forgetting(tmp_path, final, replay, says):
    rows = {
        "base": [0.1, 0.1, 0.1, 0.1],
        "after_own_edit": [0.6, 0.6, 0.5, 0.7],
        "after_all_edits": final,
        "after_own_edit_replay": [0.9, 0.9, 0.9, 0.9],  # more than all others, but not what is left at the end
        "after_all_edits_replay": replay,
        "after_own_edit_kl": [0.2, 0.2, 0.2, 0.2],
        "after_all_edits_kl": [0.0, 0.0, 0.0, 0.0],
    }
    results = alternatives({name: values * 2 for name, values in rows.items()}, unit="stream")
    for row in results["rows"]:
        row["label"] = row["name"].rpartition("_")[2]
    words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
    assert "m: base 10.0 %; edit 60.0 % (a clear gain); edits" in words and says in words
    alone = results | {"rows": results["rows"][1:3]}
    words = Page(write_report(write_sample_run(tmp_path, alone, []))).words()
    assert "m: edit 60.0 %; edits" in words and "replay" not in words


def test_the_papers_figure_stands_beside_ours_and_a_difference_is_said_once(tmp_path):
    results, _ = sample_run(rounds=0)
    shared, trained = ["model: big there, small here", "judge: GPT-4.1 there, lexical here"], ["rank 32 there, 16 here"]
    for row, accuracy, more in zip(results["rows"], (0.3271, 0.335, None), ([], trained, trained), strict=True):
        row["paper"] = accuracy and {"accuracy": accuracy, "where": "table 2, n = 1, LoRA", "differs": shared + more}
    words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
    assert "Accuracy Paper Against the row above" in words
    assert "32.7 %" in words and "33.5 %" in words
    assert "The paper's figures, and what differs from how they were made: All: table 2, n = 1, LoRA" in words
    assert "All: table 2, n = 1, LoRA; model: big there, small here; judge: GPT-4.1 there, lexical here" in words
    assert "Trained on the passage: rank 32 there, 16 here" in words
    for text in (*shared, *trained):
        assert words.count(text) == 1


def test_a_run_without_the_papers_figures_or_on_other_data_has_no_column_for_them(tmp_path):
    results, edits = sample_run()
    assert "Paper" not in Page(write_report(write_sample_run(tmp_path, results, edits))).words()
    for row in results["rows"]:
        row["paper"] = {"accuracy": 0.3, "where": "table 2", "differs": ["data: SQuAD there, invented here"]}
    words = Page(write_report(write_sample_run(tmp_path, results, edits))).words()
    assert "Paper" not in words and "table 2" not in words


def test_rows_that_share_facts_are_named_together():
    labels = ["a", "b", "c"]
    assert holds([["x"], ["x"], ["x"]], labels) == [("All", "x")]
    assert holds([["x"], ["x", "y"], ["x", "y"]], labels) == [("All", "x"), ("b; c", "y")]
    assert holds([["y"], [], ["y"]], labels) == [("a; c", "y")]
    assert holds([["x", "y"]], ["a"]) == [("a", "x; y")]


def test_ungraded_answers_are_a_problem_and_none_is_not(tmp_path):
    results, _ = sample_run()
    says = "Answers: without a verdict; they count neither as right nor as wrong 7"
    assert says in Page(write_report(write_sample_run(tmp_path, results | {"ungraded": 7}, []))).words()
    assert "verdict" not in Page(write_report(write_sample_run(tmp_path, results | {"ungraded": 0}, []))).words()


def test_tables_are_shown_as_they_are(tmp_path):
    table = {
        "title": "Reliability <of> rewards",
        "note": "True over observed variance.",
        "columns": ["Reward", "Seeds", "Reliability"],
        "rows": [["accuracy", 3, 0.23456], ["log-likelihood", 1200, None], ["proxy", True, -12345.6], ["short"]],
    }
    results = {"name": "rewards", "model": "m", "rows": [], "tables": [table, None, {"title": "Empty"}]}
    words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
    assert words.count("Reliability <of> rewards") == 2  # one is the headline
    assert "True over observed variance. Reward Seeds Reliability" in words
    for row in ("accuracy 3 0.235", "log-likelihood 1,200 —", "proxy yes -12,346", "short — —"):
        assert row in words
    assert "Empty" not in words and "evaluated" not in words


def test_a_matrix_is_a_heat_map_with_its_values_in_the_cells(tmp_path):
    matrix = {
        "title": "No protection",
        "note": "Row: after an edit.",
        "rows": ["after 1", "after 2 <b>"],
        "columns": ["passage 1", "passage 2"],
        "values": [[0.415, None], [0.25, 0.5]],
    }
    results = {
        "name": "continual",
        "model": "m",
        "rows": [],
        "matrices": [matrix, {"title": "Gone", "values": [[None]]}],
    }
    page = Page(write_report(write_sample_run(tmp_path, results, [])))
    assert "Gone" not in page.words() and "No protection" in page.words()
    (drawn,) = re.findall(r'<table class="heat".*?</table>', page.source, flags=re.DOTALL)
    assert all(f">{text}<" in drawn for text in ("41.5", "25.0", "50.0", "after 2 &lt;b&gt;", "passage 1"))
    darkness = [float(value) for value in re.findall(r"var\(--accent\) ([0-9.]+)%", drawn)]
    assert len(darkness) == 3 and drawn.count('class="none"') == 1  # the empty cell has an outline only
    assert darkness[1] < darkness[0] < darkness[2] < 100  # the larger the darker, and never so dark as to hide it
    assert "#" not in drawn  # all colours are the page's


def test_long_labels_of_a_heat_map_are_whole_and_the_rest_is_filled_up(tmp_path):
    columns = [f"the passage about the bridge of 19{i}0" for i in range(10)]
    matrix = {"title": "Long", "rows": ["a", "b"], "columns": columns, "values": [[0.5] * 3]}
    page = Page(write_report(write_sample_run(tmp_path, {"matrices": [matrix]}, [])))
    assert all(f">{column}</th>" in page.source for column in columns)
    assert page.source.count('<td class="none">') == 17


def test_trends_share_their_axes_and_show_each_line_over_the_others(tmp_path):
    known = [{"mean": 0.1, "low": 0.0, "high": 0.3}, {"mean": 0.2, "low": 0.1, "high": 0.4}]
    trend = {
        "title": "Over the budget", "note": "By passage.", "across": "tokens <of> it", "columns": ["0", "1", "16"],
        "rows": ["SEAL <b>", "SPA", "never"], "values": [[*known, None], [{"mean": 0.4}, None, {"mean": 0.3}]],
    }  # fmt: skip
    results = {"rows": [], "trends": [trend, {"title": "Gone", "rows": ["a"], "values": [[None]]}]}
    page = Page(write_report(write_sample_run(tmp_path, results, [])))
    words = page.words()
    assert "Over the budget By passage. SEAL <b>" in words and "Across: tokens <of> it." in words
    assert "Gone" not in words and "never" not in words
    (figure,) = re.findall(r'<figure class="curves trends".*?</figure>', page.source, flags=re.DOTALL)
    assert figure.count("<polygon") == 1 and figure.count('class="dot"') == 4  # one line has no intervals
    assert figure.count('class="other"') == 2 and "SPA: 0: 40.0" in figure
    drawn = figures.trends(msgspec.convert(trend, Trends))
    assert [text for _, text in drawn.ticks] == ["0\u202f%", "10\u202f%", "20\u202f%", "30\u202f%", "40\u202f%"]
    first, second = drawn.parts[2]
    assert first["line"] == "0,75 50,50" and first["band"] == "0,100 50,75 50,0 0,25"
    assert second["line"] == "0,0 100,25" and second["others"] == [first["line"]] and second["band"] == ""
    lost = figures.trends(
        msgspec.convert(trend | {"unit": "points", "values": [[{"mean": -0.1}, {"mean": 0.1}]]}, Trends)
    )
    assert lost.parts[2][0]["line"] == "0,100 50,0" and lost.ticks[0] == (0, "\u221210")


def test_places_in_a_figure_are_those_of_its_values(tmp_path):
    low = figures.dots("t", [("a", Estimate(0.1, 0.0, 0.3), "muted"), ("b", Estimate(0.2), "accent")])
    assert [(row["mean"], row["low"], row["high"], row["first"]) for row in low.parts] == [
        (pytest.approx(100 / 3, abs=0.01), 0, 100, pytest.approx(100 / 3, abs=0.01)),
        (pytest.approx(200 / 3, abs=0.01), None, None, pytest.approx(100 / 3, abs=0.01)),
    ]
    assert [text for _, text in low.ticks] == [f"{n}\u202f%" for n in (0, 10, 20, 30)]
    assert figures.dots("t", [("a", Estimate(), "muted")]) is None
    bars = figures.histograms("t", [("a", [0.0, 0.05, 0.95, 1.0, 0.5], "soft"), ("b", [], "soft")]).parts
    assert bars[0]["bars"] == [100, 0, 0, 0, 0, 50, 0, 0, 0, 100] and bars[0]["mean"] == 50
    assert bars[1]["bars"] == [0] * 10 and bars[1]["mean"] is None
    (panel,) = figures.curves("t", [("a", [[4.0, None, 2.0], [2.0]]), ("none", [[None]])], "step").parts
    assert panel["line"] == "0.00,25.00 100.00,50.00" and panel["last"] == 3 and len(panel["band"].split()) == 4
    below = figures.curves("t", [("a", [[-0.05, 0.1]])], "step")  # a policy gradient's loss
    assert below.parts[0]["line"] == "0.00,100.00 100.00,0.00"
    assert [text for _, text in below.ticks] == ["\u22120.05", "0", "0.05", "0.1"] and below.ticks[0][0] == 0


def test_a_round_says_what_was_written_as_far_as_it_knows(tmp_path):
    results, _ = sample_run(rounds=2)
    results["rounds"][0] |= {"mean_words": 61.25, "distinct_2": 0.71, "similarity": None}
    results["rounds"][1] |= {"mean_words": None}
    words = Page(write_report(write_sample_run(tmp_path / "some", results, []))).words()
    assert "Self-edits Words Distinct pairs of words Round 1, to learn from 61.2 71.0 % Round 2, to learn" in words
    assert "Training sequences" not in words and "Words two of them share" not in words
    assert "What was written" not in Page(write_report(write_sample_run(tmp_path / "no", *sample_run()))).words()


def test_a_run_says_what_changed_through_rl(tmp_path):
    """A dot a passage, what was written, and the self-edits of a passage before and after side by side."""
    results, self_edits = sample_run(rounds=2)
    before, after = (next(r for r in results["rows"] if r["name"] == f"self_edits_round_{n}") for n in (0, 2))
    before["per_passage"] = {f"passage-{n}": 0.4 for n in range(12)}
    after["per_passage"] = before["per_passage"] | {"passage-3": 1.0, "passage-5": 0.0}
    for edit in self_edits:
        edit["completion"] += f" written in {edit['stage']}"
    results["written"] = [{"label": "Held-out, before RL", "mean_words": 12.5}]
    page = Page(write_report(write_sample_run(tmp_path, results, self_edits)))
    words = page.words()
    changed = words.split("What changed through RL")[1].split("Rewards")[0]
    assert "1 better after RL, 1 worse" in changed
    dots = [inside for tag, inside in page.elements if tag == "b"]
    assert [(dot["class"], dot["title"]) for dot in dots if dot["class"]] == [
        ("up", "passage-3"),
        ("down", "passage-5"),
    ]
    assert "left: 40.0%; bottom: 100.0%" in [dot["style"] for dot in dots]
    assert "Held-out, before RL 12.5" in changed
    first = changed.split("Written before RL")[1]
    assert "written in self_edits_round_0" in first.split("Written after RL")[0]
    assert "written in self_edits_round_2" in first.split("Written after RL")[1]
    assert changed.count("Written before RL") == 3
    assert {"Base", "Before RL", "After RL"} <= set(re.findall(r"Base|Before RL|After RL", changed))
    none = Page(write_report(write_sample_run(tmp_path / "none", *sample_run(rounds=0))))
    assert "What changed through RL" not in none.words()


def test_the_page_says_how_it_was_made(tmp_path):
    results, _ = sample_run()
    results["machine"] |= {"seal_jax": "0.1.0", "commit": "12ab", "date": "2026-01-02 03:04 UTC"}
    page = Page(write_report(write_sample_run(tmp_path, results, [])))
    assert "seed 0 · seal_jax 0.1.0 · commit 12ab · 2026-01-02 03:04 UTC" in page.words()
    links = [inside["href"] for tag, inside in page.elements if tag == "a"]
    assert links == ["results.json", "self_edits.jsonl"]  # what there is, of the records


def test_a_validated_run_says_which_round_was_chosen(tmp_path):
    validation = {"reward": [0.2, 0.3125], "chosen_round": 1, "passages": 6}
    results = sample_run()[0] | {"validation": validation}
    words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
    assert "Mean reward on 6 validation passages" in words
    assert "0.200 before RL, 0.312 after round 1. Chosen: round 1." in words


def test_the_whole_time_is_counted_once(tmp_path):
    results, _ = sample_run()
    results["timings"] = {"base": 60.0, "page": 30.0, "total": 100.0}
    words = Page(write_report(write_sample_run(tmp_path, results, []))).words()
    assert "together 1 min 40 s" in words and "total" not in words


def test_best_and_worst_are_the_extremes_of_what_the_model_wrote(tmp_path):
    results, self_edits = sample_run()
    for edit in self_edits:
        edit["gain"] = 0.1
    self_edits[5] |= {"gain": 0.9, "title": "the best"}
    self_edits[6] |= {"gain": 0.85, "title": "second of the same passage"}
    self_edits[20] |= {"gain": -0.3, "title": "the worst"}
    self_edits[21] |= {"gain": -0.9, "title": "not trained", "problem": "empty completion"}
    self_edits[40] |= {"gain": 1.0, "title": "not written", "completion": ""}
    page = Page(write_report(write_sample_run(tmp_path, results, self_edits)))
    most, least = page.words().split("helped most")[1].split("helped least")
    assert "the best" in most[:120] and "the worst" in least[:150]
    for title in ("second of the same passage", "not trained", "not written"):
        assert title not in most


def test_lines_are_ranked_by_what_they_taught(tmp_path):
    results, self_edits = sample_run()
    for edit in self_edits:
        edit["credit"] = [-0.25, 0.5, None]
    write_report(write_sample_run(tmp_path, results, self_edits))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    ranked = page.split('<ul class="credit">')[1].split("</ul>")[0]
    assert ranked.count("<li>") == 2
    assert ranked.index('<b class="up">+0.500</b>') < ranked.index('<b class="down">-0.250</b>')


def test_an_answer_that_was_cut_off_says_so(tmp_path):
    results, self_edits = sample_run(rounds=0)
    edit = self_edits[-1] | {"gain": 2.0}
    edit["answers"] = [edit["answers"][0] | {"after": "It was built in 18", "after_cut": True, "before_cut": False}]
    words = Page(write_report(write_sample_run(tmp_path, results, [edit]))).words()
    assert "It was built in 18 … (cut off)" in words and words.count("(cut off)") == 1


def blank(value):
    """Every leaf null: what a run would leave if nothing could be measured."""
    if isinstance(value, dict):
        return {key: blank(item) for key, item in value.items()}
    return [blank(item) for item in value] if isinstance(value, list) else None


def not_a_number(value):
    if isinstance(value, dict):
        return {key: not_a_number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [not_a_number(item) for item in value]
    return math.nan if isinstance(value, float) else value


@pytest.mark.parametrize("change", [blank, not_a_number, lambda value: value])
def test_missing_values_do_not_break_the_page(tmp_path, change):
    results, self_edits = sample_run()
    Page(write_report(write_sample_run(tmp_path / "all", change(results), change(self_edits))))
    for key in results:
        fewer = {name: copy.deepcopy(value) for name, value in results.items() if name != key}
        Page(write_report(write_sample_run(tmp_path / "no" / key, change(fewer), [])))
    for key in self_edits[0]:
        fewer_edits = [{name: value for name, value in edit.items() if name != key} for edit in self_edits]
        Page(write_report(write_sample_run(tmp_path / "edit" / key, results, change(fewer_edits))))


def test_empty_runs_have_a_page(tmp_path):
    assert "No evaluated stage yet" in Page(write_report(write_sample_run(tmp_path, {}, []))).words()
    empty = {"rows": [], "rounds": [], "settings": {}, "timings": {}, "machine": {}, "model": "m"}
    Page(write_report(write_sample_run(tmp_path, empty, [])))
    one_row = {"rows": sample_run()[0]["rows"][:1], "model": "m"}
    assert "m: Base model 3.3 %" in Page(write_report(write_sample_run(tmp_path, one_row, []))).words()
    (tmp_path / "self_edits.jsonl").unlink()
    Page(write_report(tmp_path))


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    folder = write_sample_run(tmp_path, *sample_run())
    whole = write_report(folder).read_bytes()
    with (folder / "self_edits.jsonl").open("ab") as file:
        file.write('{"stage": "round 1", "title": "é'.encode()[:-1])
    assert write_report(folder).read_bytes() == whole


def test_errors_say_which_file_and_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json is not there"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        write_report(tmp_path)
    write_sample_run(tmp_path, *sample_run())
    (tmp_path / "self_edits.jsonl").write_text('{}\n{"stage": \n{}\n')
    with pytest.raises(ValueError, match=r"self_edits\.jsonl, line 2, is not JSON"):
        write_report(tmp_path)


def test_a_page_that_fails_leaves_the_old_one(tmp_path):
    folder = write_sample_run(tmp_path, *sample_run())
    before = write_report(folder).read_bytes()
    (folder / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


def test_a_disk_that_fills_up_leaves_the_old_page(tmp_path, monkeypatch):
    folder = write_sample_run(tmp_path, *sample_run())
    before = write_report(folder).read_bytes()

    def half(path, text, encoding):
        path.write_bytes(text.encode(encoding)[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


if __name__ == "__main__":
    print(write_report(write_sample_run(Path(sys.argv[1]), *sample_run())))
