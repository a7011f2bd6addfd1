"""The ARC experiment, whole, on a tiny random model: rows and counts, the report's parts, and nothing lost."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from experiments import arc
from experiments.arc import PAPER, SMOKE, Config
from seal_jax.domains.arc import tasks
from seal_jax.domains.arc.domain import Inference, TrainingSet
from seal_jax.domains.arc.self_edits import Bounds
from seal_jax.engine.sampler import Sampling
from seal_jax.run import command, puzzles, session
from seal_jax.seal.outer import Outer
from seal_jax.types import Compute
from tests import tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ROWS = ["base", "fixed", "self_edits_round_0", "self_edits_round_1"]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """Two tasks to learn from, two to evaluate on, two self-edits each, two adapters at a time, on one device."""
    return dataclasses.replace(
        SMOKE,
        model=str(tiny.model_folder(tmp_path_factory.mktemp("model"))),
        sampling=Sampling(max_tokens=320),
        training_set=TrainingSet(cap=3, max_tokens=400, bounds=Bounds(learning_rate=(1e-3, 1e-2), epochs=(1, 2))),
        inference=Inference(leave_one_out=True, permutations=0, transformations=("transpose",)),
        inner=dataclasses.replace(SMOKE.inner, rank=4, epochs=2),
        outer=dataclasses.replace(SMOKE.outer, signal="log_likelihood", select="best"),  # a random model solves nothing
        evaluation=puzzles.Evaluation(tasks=2, samples=2),
    )


def run_arc(config: Config, folder: Path) -> dict:
    """Two adapters at a time, on one device."""
    compute, place = Compute(chunk=2, width_cuts=(), devices=1), session.Place(folder)
    return session.execute(arc.EXPERIMENT, config, compute, place, command="the command")


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run_arc(config, folder), folder


def without_seconds(results: dict) -> dict:
    """What the seed settles: all but the times."""
    results = json.loads(json.dumps(results))
    assert results.pop("timings")
    assert results.pop("machine")
    return results


def test_every_stage_has_its_row_with_counts_and_wilsons_interval(undisturbed):
    results, folder = undisturbed
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert [row["name"] for row in results["rows"]] == ROWS
    assert [row["tried"] for row in results["rows"]] == [2, 2, 4, 4]
    for row in results["rows"]:
        assert (row["unit"], row["interval"], row["passages"], row["questions"]) == ("task", "Wilson", 2, 2)
        assert row["solved"] == row["accuracy"]["mean"] * row["tried"]
        assert row["accuracy"]["low"] < row["accuracy"]["high"]
    likely = [row["log_likelihood"]["mean"] for row in results["rows"]]
    assert len(set(likely)) == 4  # a random model solves nothing, but each stage trained something
    assert results["rounds"][0]["kept"] == 2
    assert results["rounds"][0]["sft_losses"]


def test_constrained_self_edits_are_all_valid_and_the_free_ones_are_counted(undisturbed):
    results, _ = undisturbed
    failed = {row[0]: row[1:] for row in next(t for t in results["tables"] if "failed" in t["columns"])["rows"]}
    for label in ("Trained by its self-edits, before RL", "SEAL, after RL round 1"):
        assert failed[label] == [4, "0%", "-"]
        tried, share, why = failed[f"{label}: sampled freely, not trained"]
        assert (tried, share) == (4, "100%")  # a random model writes no JSON
        assert sum(map(int, re.findall(r"\d+", why))) == 4
    chosen = {row[0]: row[1:] for row in next(t for t in results["tables"] if "epochs" in t["columns"])["rows"]}
    assert chosen["Trained with fixed settings"] == [2, "0%", "0%", "0%", "0%", "100%", 1e-3, 1]
    assert all(1e-3 <= row[-2] <= 1e-2 and 1 <= row[-1] <= 2 for row in chosen.values())


def test_both_attempts_of_every_stage_stand_beside_what_is_expected(undisturbed, config):
    results, folder = undisturbed
    (part,) = results["grids"]
    for item, task in zip(part["items"], puzzles.choose(config).held_out, strict=True):
        assert item["label"] == task.id
        assert item["expected"] == task.test[0].output.tolist()
        assert len(item["attempts"]) == 2 * len(ROWS)
    page = (folder / "report.html").read_text()
    assert all(item["label"] in page for item in part["items"])


def test_every_self_edit_is_on_disk_with_its_settings(undisturbed):
    _, folder = undisturbed
    records = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    stages = [record["stage"] for record in records]
    assert stages == ["fixed"] * 2 + ["self_edits_round_0"] * 4 + ["round 1"] * 4 + ["self_edits_round_1"] * 4
    for record in records:
        assert record["settings"]["epochs"] in (1, 2)
        assert json.loads(record["completion"])["training"]["num_train_epochs"] == record["settings"]["epochs"]
        assert len(record["losses"]) == record["settings"]["epochs"] * 2  # three sequences, two a step
        assert len(record["answers"]) == 6 or len(record["answers"]) == 8  # one left out of 3 or 4, two ways
    assert sum(record["kept"] for record in records) == 2


@pytest.mark.parametrize(
    "after", [pytest.param(3, marks=pytest.mark.slow), 9, pytest.param(14, marks=pytest.mark.slow)]
)
def test_killed_and_started_again_it_ends_with_the_same_numbers(undisturbed, config, tmp_path, killed_after, after):
    with killed_after(after):
        run_arc(config, tmp_path)
    assert without_seconds(run_arc(config, tmp_path)) == without_seconds(undisturbed[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": puzzles.Evaluation(tasks=10_000)}, r"tasks to evaluate on.*10000 \(--evaluation.tasks\)|10000"),
        ({"max_cells": 3}, r"left out by --max-cells 3"),
        ({"fixed": SMOKE.fixed._replace(learning_rate=0.5)}, r"--fixed: learning rate out of bounds"),
        ({"inner": dataclasses.replace(SMOKE.inner, epochs=1)}, r"--inner.epochs 1 is the most that a self-edit"),
        ({"outer": Outer(credit="lines")}, r"--outer.credit lines is for passages \(experiments.squad\)"),
        ({"outer": Outer(reward="set")}, r"--outer.reward set: .* are for passages \(experiments.squad\)"),
        ({"outer": Outer(method="best_of_n")}, r"--outer.method best_of_n .* which no judge rates"),
        ({"sampling": Sampling(max_tokens=20)}, r"--sampling.max-tokens 20: the shortest self-edit has \d+ tokens"),
    ],
)
def test_a_mistake_says_what_to_do(config, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_arc(dataclasses.replace(config, **changes), tmp_path / "run")


def test_a_task_too_long_for_the_model_is_named(config, tmp_path):
    long = dataclasses.replace(config, data="arc-agi-1", evaluation=puzzles.Evaluation(tasks=1))
    with pytest.raises(ValueError, match=r"'[0-9a-f]{8}' \(\d+ tokens\) needs a context of \d+ tokens.*--max-cells"):
        run_arc(long, tmp_path / "run")


def test_the_paper_preset_is_the_papers(tmp_path, capsys):
    """Llama-3.2-1B-Instruct, its tasks and its inner loop (sections 4.2 and B.2)."""
    data = puzzles.choose(PAPER)
    assert {task.id for task in data.rounds[0]} == set(tasks.PAPER_TASKS["training"])
    assert {task.id for task in data.held_out} == set(tasks.PAPER_TASKS["evaluation"])
    inner, outer = PAPER.inner, PAPER.outer
    assert (inner.rank, inner.alpha, inner.batch_size, inner.initialisation) == (128, 16.0, 2, "stored")
    assert set(inner.projections) == {"q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
    assert (inner.optimiser.schedule, inner.optimiser.warmup_steps) == ("cosine", 11)
    assert (outer.samples, outer.select, outer.signal, PAPER.sampling) == (
        15, "all_correct", "accuracy", Sampling(128, 0.8)
    )  # fmt: skip
    sft = outer.sft
    assert (sft.rank, sft.alpha, sft.epochs, sft.batch_size, sft.learning_rate) == (16, 16.0, 8, 5, 5e-5)
    assert (sft.optimiser.schedule, PAPER.training_set.cap, PAPER.training_set.bounds.steps) == ("cosine", 250, 375)
    assert PAPER.inference == Inference(leave_one_out=True, permutations=2)
    assert command.main(arc.EXPERIMENT, ["paper", "--dry-run", "--run-folder", str(tmp_path / "run")]) == 0
    plan = capsys.readouterr().out
    assert "meta-llama/Llama-3.2-1B-Instruct" in plan
    assert "12 tasks to learn from, 12 a round: arc-agi-1" in plan
    assert "10 to evaluate on" in plan
    assert not (tmp_path / "run").exists()


def test_a_folder_of_tasks_has_no_splits_and_no_task_is_used_twice(tmp_path, config):
    for task in tasks.load_tasks("easy", "training")[:6]:
        pairs = {
            part: [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in getattr(task, part)]
            for part in ("train", "test")
        }
        (tmp_path / f"{task.id}.json").write_text(json.dumps(pairs))
    data = puzzles.choose(dataclasses.replace(config, data=str(tmp_path)))
    assert (len(data.rounds[0]), len(data.held_out)) == (2, 2)
    assert len({task.id for task in data.everything}) == 4


def test_the_core_does_not_know_its_domains():
    """No branch on the domain in what trains, samples, scores and selects; the one-way flow of imports."""
    library = ROOT / "seal_jax"
    above = [library / "seal" / f"{name}.py" for name in ("continual", "rounds", "rewards")]
    for file in (library / "types.py", *library.glob("nn/*.py"), *library.glob("engine/*.py"), *above):
        source = file.read_text(encoding="utf-8")
        code = re.sub(r'"""[\s\S]*?"""|#.*', "", source)  # what they say may name a domain
        code = code.replace("seal_jax[arc]", "")  # an extra, which an error names
        assert not re.search(r"\b(arc|squad)\b|\bdomains?\b *(==|is|!=|in)\b|seal_jax\.domains", code, re.I), file
