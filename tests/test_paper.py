"""The paper's figures: as printed, found by setting, and beside a run with every setting that differs named."""

from __future__ import annotations

import dataclasses

import pytest

from experiments import arc, squad
from seal_jax.analysis.paper import TABLES, beside, paper_row
from seal_jax.run.journal import as_json


def row(name: str, passages: int = 200, **more) -> dict:
    return {"name": name, "label": name, "passages": passages, "questions": 1000} | more


def settings(config: squad.Config = squad.PAPER, judge: str = "gpt-4.1", **more) -> dict:
    return as_json(config) | {"grader": {"kind": "endpoint", "model": judge}} | more


def differs(name: str, run_settings: dict, experiment: str = "squad", **row_values) -> list[str]:
    return beside([row(name, **row_values)], run_settings, experiment)[0]["paper"]["differs"]


@pytest.mark.parametrize(
    ("experiment", "name", "setting", "accuracy", "where"),
    [
        ("squad", "base", {}, 0.327, "table 2, n = 1, LoRA"),
        ("squad", "passage", {"prompt": "rewrite"}, 0.335, "table 2, n = 1, LoRA"),  # a prompt does not matter to it
        ("squad", "self_edits_round_0", {}, 0.397, "table 2, n = 1, LoRA"),
        ("squad", "self_edits_round_1", {}, 0.437, "prompt variants, implications"),
        ("squad", "self_edits_round_2", {}, 0.47, "table 2, n = 1, LoRA"),
        ("evaluate_edits", "external", {}, 0.463, "table 2, n = 1, LoRA"),
        ("evaluate_edits", "edits of iter2", {"prompt": "rewrite"}, 0.47, "table 2, n = 1, LoRA"),
        ("evaluate_edits", "self_edits_round_2", {"prompt": "rewrite"}, 0.556, "prompt variants, rewrite"),
        ("evaluate_edits", "edits of gpt4_1", {}, 0.463, "table 2, n = 1, LoRA"),
        ("squad", "self_edits_round_2", {"prompt": "rewrite"}, 0.556, "prompt variants, rewrite"),
        ("squad", "self_edits_round_1", {"prompt": "no-prompt"}, 0.127, "prompt variants, no-prompt"),
        ("squad", "self_edits_round_0", {"model": "Qwen/Qwen2.5-3B"}, 0.319, "model scale, Qwen2.5-3B"),
        ("squad", "self_edits_round_2", {"model": "hub/Qwen2.5-3B"}, 0.37, "model scale, Qwen2.5-3B"),
        ("cpt", "self_edits", {"n": 200, "method": "lora"}, 0.41, "table 2, n = 200, LoRA"),
        ("cpt", "passage", {"n": 200, "method": "full"}, 0.36, "table 2, n = 200, full fine-tuning"),
        ("cpt", "base", {"n": 2067, "method": "full"}, 0.29, "table 2, n = 2067, full fine-tuning"),
        ("cpt", "external", {"n": 1500, "method": "full"}, 0.492, "table 2, n = 2067, full fine-tuning"),
        ("cpt", "external", {"n": 12, "method": "lora"}, 0.394, "table 2, n = 200, LoRA"),
        ("cpt", "external", {"n": 2067, "method": "lora"}, 0.394, "table 2, n = 200, LoRA"),
        ("cpt", "entigraph_pairs", {"n": 200, "method": "full"}, 0.462, "EntiGraph, n = 200, full fine-tuning"),
        ("cpt", "entigraph_triples", {"n": 200, "method": "full"}, 0.56, "EntiGraph, n = 200, full fine-tuning"),
        ("continual", "base", {}, 0.307, "continual self-edits, 64 streams of 8"),
        ("continual", "after_own_edit", {}, 0.415, "continual self-edits, 64 streams of 8"),
        ("continual", "after_all_edits", {}, 0.247, "continual self-edits, 64 streams of 8"),
    ],
)
def test_a_row_has_the_figure_of_its_setting(experiment, name, setting, accuracy, where):
    figure = paper_row(experiment, name, **setting)
    assert figure is not None
    assert (figure.accuracy, figure.where) == (accuracy, where)


@pytest.mark.parametrize(
    ("experiment", "name"),
    [
        ("squad", "self_edits_round_3"),
        ("squad", "replay"),
        ("squad", "after_all_edits"),
        ("cpt", "self_edits_round_1"),
        ("continual", "self_edits_round_0"),
        ("rewards", "base"),
    ],
)
def test_no_figure_where_the_paper_has_none(experiment, name):
    assert paper_row(experiment, name) is None
    assert beside([row(name)], settings(), experiment)[0]["paper"] is None


def test_the_tables_agree_where_they_overlap():
    tables = {table.where: table.accuracy for table in TABLES}
    for rounds in (0, 2):
        row = f"self_edits_round_{rounds}"
        assert tables["prompt variants, implications"][row] == tables["table 2, n = 1, LoRA"][row]


@pytest.mark.parametrize("name", ["base", "passage", "self_edits_round_0", "self_edits_round_1", "self_edits_round_2"])
def test_the_preset_paper_differs_in_nothing_but_the_judge(name):
    assert differs(name, settings()) == []
    assert differs(name, as_json(squad.PAPER)) == ["judge: GPT-4.1 there, lexical here"]
    assert differs(name, settings(judge="gpt-4.1-mini")) == ["judge: GPT-4.1 there, gpt-4.1-mini here"]


def test_a_row_names_only_what_it_depends_on():
    demo = settings(squad.DEMO)
    base = differs("base", demo, passages=10)
    assert base == [
        "model: Qwen2.5-7B there, smollm2-135m here",
        "data: SQuAD there, invented here",
        "200 passages there, 10 here",
    ]
    passage = differs("passage", demo, passages=10)
    assert passage[: len(base)] == base
    assert {"rank 32 there, 16 here", "LoRA on q, v there, all seven projections here"} <= set(passage)
    written = differs("self_edits_round_0", demo, passages=10)
    assert written[: len(passage)] == passage and "prompt: implications there, facts here" in written
    assert not any("SFT" in words or "selection" in words for words in written)
    learnt = differs("self_edits_round_1", demo, passages=10)
    assert {"SFT rank 64 there, 16 here", "selection: best there, improved here"} <= set(learnt)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "/models/Qwen2.5-7B-Instruct"}, "model: Qwen2.5-7B there, Qwen2.5-7B-Instruct here"),
        ({"data": "notes/mine.json"}, "data: SQuAD there, mine.json here"),
        ({"held_out_data": "other.json"}, "data: SQuAD there, other.json here"),
        ({"prompt": "my/short.toml"}, "prompt: implications there, short here"),
        ({"style": "chat"}, "prompts: raw text there, chat here"),
        ({"base": "int8"}, "base model's layers in full there, int8 here"),
        ({"writer": "org/big"}, "written by the model itself there, by big here"),
    ],
)
def test_each_setting_that_differs_is_named(change, says):
    assert differs("self_edits_round_0", settings() | change) == [says]


def test_an_inner_setting_that_differs_is_named():
    inner = dataclasses.replace(squad.PAPER.inner, learning_rate=2e-4)
    config = dataclasses.replace(squad.PAPER, inner=inner)
    assert differs("passage", settings(config)) == ["learning rate 0.001 there, 0.0002 here"]
    assert differs("base", settings(config)) == []
    turned = dataclasses.replace(squad.PAPER.inner, projections=("v_proj", "q_proj"))
    assert (
        differs("passage", settings(dataclasses.replace(squad.PAPER, inner=turned))) == []
    )  # their order says nothing


def test_3b_is_compared_with_3b():
    run = settings(dataclasses.replace(squad.PAPER, model="Qwen/Qwen2.5-3B"))
    assert beside([row("base", 7)], run, "squad")[0]["paper"] == {
        "accuracy": 0.251,
        "where": "model scale, Qwen2.5-3B",
        "differs": [],
    }


def test_cpt_names_n_and_method():
    run = {"model": "Qwen/Qwen2.5-7B", "data": "squad", "grader": {"kind": "endpoint", "model": "gpt-4.1"}}
    assert differs("self_edits", run | {"n": 2067, "method": "full", "completions": 5}, "cpt", passages=500) == []
    assert differs("self_edits", run | {"n": 20, "method": "lora", "completions": 2}, "cpt", passages=20) == [
        "n = 200 there, 20 here",
        "completions a passage 5 there, 2 here",
    ]
    assert "full fine-tuning there, LoRA here" in differs(
        "entigraph_pairs", run | {"n": 200, "method": "lora"}, "cpt", passages=200
    )
    assert "200 passages learnt at once there, one here" in differs("entigraph_pairs", run, "evaluate_edits")


def test_continual_counts_streams():
    assert differs("after_all_edits", settings(stream_length=4), "continual", passages=8, unit="stream") == [
        "64 streams there, 8 here",
        "streams of 8 there, 4 here",
    ]


def test_rows_keep_their_values():
    rows = [row("base"), row("edits of iter2"), row("edits of gpt4_1"), row("mine")]
    beside_rows = beside(rows, settings(), "evaluate_edits")
    assert [entry["paper"] and entry["paper"]["accuracy"] for entry in beside_rows] == [0.327, 0.47, 0.463, None]
    assert [{k: v for k, v in entry.items() if k != "paper"} for entry in beside_rows] == rows
    assert all("paper" not in entry for entry in rows)


def test_recorded_text_is_not_compared_by_the_prompt_of_the_run():
    run = settings(squad.DEMO, data="recorded", model="Qwen2.5-7B", inner={}, answer_tokens=64)
    assert differs("edits of gpt4_1", run, "evaluate_edits") == ["data: SQuAD there, the files' passages here"]
    assert differs("edits of iter2", run, "evaluate_edits") == [
        "data: SQuAD there, the files' passages here",
        "training sequences at most 30 there, 8 here",
    ]


def test_what_a_run_does_not_have_is_not_compared():
    assert differs("self_edits_round_2", {}) == ["judge: GPT-4.1 there, lexical here"]


def test_arc_rows_stand_beside_the_papers_with_what_differs():
    rows = [{"name": name, "passages": 10} for name in ("base", "fixed", "self_edits_round_0", "self_edits_round_1")]
    found = beside(rows, as_json(arc.PAPER), "arc")
    assert [row["paper"]["accuracy"] for row in found] == [0.0, 1.0, 0.2, 0.725]
    assert [row["paper"]["differs"] for row in found] == [["8 tasks there, 10 here"]] * 4
    demo = beside(rows, as_json(arc.DEMO), "arc")
    assert "model: Llama-3.2-1B-Instruct there, smollm2-135m here" in demo[0]["paper"]["differs"]
    assert "data: ARC-AGI-1 there, easy here" in demo[0]["paper"]["differs"]
    assert not any(words.startswith(("rank", "constrained", "self-edits")) for words in demo[0]["paper"]["differs"])
    assert "rank 128 there, 16 here" in demo[1]["paper"]["differs"]
    assert "constrained decoding off there, on here" in demo[2]["paper"]["differs"]
    assert "self-edits a task 15 there, 2 here" in demo[3]["paper"]["differs"]
    assert beside([{"name": "self_edits_round_2"}], as_json(arc.PAPER), "arc")[0]["paper"] is None
