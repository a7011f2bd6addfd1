"""An ablation whole, on a tiny random model: one program, each cell as if alone, nothing lost, a page that tells."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments import ablations
from experiments.ablations import DEMO, PAPER, PRESETS, SMOKE, Config, read, settings_of
from seal_jax.engine import inner
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.run import cells, command, search
from seal_jax.run.cells import name_of, programs_of
from seal_jax.run.session import Place
from seal_jax.seal import rounds
from seal_jax.types import Compute
from tests import tiny

pytestmark = pytest.mark.slow

COMPUTE = Compute(chunk=4, write_chunk=20, width_cuts=(), devices=1)
TWELVE = ("inner.learning_rate=1e-2,3e-2", "inner.rank=1,2,4", "inner.epochs=1,3")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """Two passages, one self-edit each; a random model answers nothing right, so cells are told by likelihood."""
    return dataclasses.replace(
        SMOKE,
        model=str(tiny.model_folder(tmp_path_factory.mktemp("model"))),
        prompt="implications",
        sampling=Sampling(max_tokens=12),
        answer_tokens=4,
        inner=FineTuning(rank=4, alpha=8.0, learning_rate=2e-2, epochs=3),
        metric="log_likelihood",
        ablation=None,
        grid=TWELVE,
    )


def run(config: Config, folder: Path) -> dict:
    return ablations.execute(ablations.EXPERIMENT, config, COMPUTE, Place(folder), command="the command")


@pytest.fixture(scope="module")
def twelve(config, tmp_path_factory) -> tuple[dict, Path, int]:
    """(results, folder, training programs compiled) of the grid of twelve."""
    folder = tmp_path_factory.mktemp("twelve")
    before = inner.tick._cache_size()
    results = run(config, folder)
    return results, folder, inner.tick._cache_size() - before


def losses(folder: Path, label: str) -> list[list[float]]:
    """A cell's loss curves, one a self-edit."""
    for path in folder.rglob("cells/*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        if records[0]["stage"] == label:
            return [record["losses"] for record in records]
    raise AssertionError(label)


def without_times(results: dict) -> dict:
    results = json.loads(json.dumps(results))
    assert results.pop("timings")
    assert results.pop("machine")
    return results


def test_twelve_cells_of_the_inner_loop_are_one_program(twelve):
    results, _, compiled = twelve
    assert compiled == 1
    assert len(results["cells"]) == 12
    assert [cell["adapters"] for cell in results["cells"]] == [2] * 12


@pytest.mark.parametrize("number", [1, 12])
def test_a_cell_equals_its_separate_run(twelve, config, tmp_path, number):
    """Alone it is trained by a program of its own rank and epochs, in other company, and with other pads."""
    results, folder, _ = twelve
    cell = results["cells"][number - 1]
    alone = dataclasses.replace(config, grid=tuple(f"{name}={value}" for name, value in cell["values"].items()))
    (found,) = run(alone, tmp_path)["cells"]
    for metric in ("accuracy", "log_likelihood", "probability"):
        for passage, value in cell["per_passage"][metric].items():
            assert found["per_passage"][metric][passage] == pytest.approx(value, abs=1e-5)
    assert found["per_passage"].keys() == cell["per_passage"].keys()
    mine, others = (losses(path, cell["label"]) for path in (folder, tmp_path))
    for a, b in zip(mine, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_cells_differ_and_are_compared(twelve):
    results, folder, _ = twelve
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (folder / "report.html").exists()
    means = [cell["log_likelihood"]["mean"] for cell in results["cells"]]
    assert len({round(mean, 6) for mean in means}) == 12
    best = results["cells"][int(np.argmax(means))]
    assert results["recommendation"].startswith(f"Use {best['label']}: ")
    assert f"{100 * best['best_in']:.0f} % of 10,000 bootstrap resamples" in results["recommendation"]
    assert sum(cell["best_in"] for cell in results["cells"]) == pytest.approx(1)
    assert best["against_best"] == {"mean": 0, "low": 0, "high": 0}
    assert results["rows"][0]["name"] == "base"
    assert results["rows"][1]["name"] == f"cell_{best['number']}"
    assert len(results["rows"]) == 13
    assert [row["versus_base"] is None for row in results["rows"]] == [True] + [False] * 12
    records = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in records} == {best["label"]}


def test_the_page_has_main_effects_and_a_map_of_every_pair(twelve):
    results, folder, _ = twelve
    cells, effects = results["tables"]
    assert cells["note"].startswith(results["recommendation"])
    assert len(cells["rows"]) == 12
    fields = [row[:3] for row in effects["rows"]]
    assert fields == [
        ["inner.learning_rate", "0.01", 6], ["inner.learning_rate", "0.03", 6],
        ["inner.rank", "1", 4], ["inner.rank", "2", 4], ["inner.rank", "4", 4],
        ["inner.epochs", "1", 6], ["inner.epochs", "3", 6],
    ]  # fmt: skip
    assert [(len(m["rows"]), len(m["columns"])) for m in results["matrices"]] == [(2, 3), (2, 2), (3, 2)]
    rate_by_epochs = results["matrices"][1]["values"]
    chosen = [c for c in results["cells"] if c["values"]["inner.learning_rate"] == 0.01]
    ones = [c["log_likelihood"]["mean"] for c in chosen if c["values"]["inner.epochs"] == 1]
    assert rate_by_epochs[0][0] == pytest.approx(math.exp(np.mean(ones)))
    page = (folder / "report.html").read_text()
    assert "Main effects" in page
    assert "inner.learning_rate (down) and inner.rank (across)" in page


def test_a_table_holds_the_figures_of_every_cell(twelve):
    results, folder, _ = twelve
    lines = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    for line, cell in zip(lines, results["cells"], strict=True):
        assert (line["inner.rank"], int(line["cell"])) == (str(cell["values"]["inner.rank"]), cell["number"])
        for end, key in (("", "mean"), ("_low", "low"), ("_high", "high")):
            assert float(line[f"log_likelihood{end}"]) == cell["log_likelihood"][key]


@pytest.mark.parametrize("after", [6, 12])
def test_killed_and_started_again_it_ends_with_the_same_numbers(twelve, config, tmp_path, killed_after, after):
    with killed_after(after) as lines:
        run(config, tmp_path)
    assert any("try/" in json.loads(line)["name"] for line in lines)
    assert without_times(run(config, tmp_path)) == without_times(twelve[0])


def test_a_larger_grid_keeps_the_cells_that_are_finished(config, tmp_path, monkeypatch):
    small = dataclasses.replace(config, grid=("inner.rank=2,4",))
    first = run(small, tmp_path)
    trained, score = [], rounds.score_each

    def counting(lm, edits, *arguments, **named):
        trained.extend((edit.settings.rank, edit.settings.learning_rate) for edit in edits)
        return score(lm, edits, *arguments, **named)

    monkeypatch.setattr(rounds, "score_each", counting)
    larger = dataclasses.replace(config, grid=("inner.rank=2,4,1", "inner.learning_rate=2e-2,1e-2"))
    second = run(larger, tmp_path)
    assert sorted(set(trained)) == [(1, 1e-2), (1, 2e-2), (2, 1e-2), (4, 1e-2)]
    assert len(trained) == 4 * 2
    for before, after in zip(first["cells"], (second["cells"][0], second["cells"][2]), strict=True):
        assert before["per_passage"] == after["per_passage"]
    trained.clear()
    monkeypatch.setattr(cells, "run_part", lambda *_: pytest.fail("nothing was left to run"))
    assert without_times(run(larger, tmp_path)) == without_times(second)


def test_a_folder_of_other_settings_is_refused(config, tmp_path):
    one = dataclasses.replace(config, grid=("inner.rank=4",))
    run(one, tmp_path)
    with pytest.raises(ValueError, match=r"holds a run of another config.*\n  answer_tokens: 4 there, 5 now"):
        run(dataclasses.replace(one, answer_tokens=5), tmp_path)


def test_other_fields_make_programs_and_runs_of_their_own(config, tmp_path):
    mixed = dataclasses.replace(
        config, grid=("sampling.max_tokens=12,8", "inner.batch_size=1,2", "training_seed=0,1")
    )  # fmt: skip
    found = read(mixed)
    assert [part.label for part in found.parts] == ["max_tokens=12", "max_tokens=8"]
    programs = programs_of(found.parts[0].cells)
    assert [[name_of(group).rpartition(" ")[0] for group in program.groups] for program in programs] == [
        [f"1 cell: max_tokens=12, batch_size={size}, training_seed={seed}" for seed in (0, 1)] for size in (1, 2)
    ]
    results = run(mixed, tmp_path)
    values = [cell["log_likelihood"]["mean"] for cell in results["cells"]]
    assert len({round(value, 6) for value in values}) == 8
    assert len(list((tmp_path / "parts").iterdir())) == 2
    # A training seed is another training of the same self-edit; the run's own seed is another choice of everything.
    stage = {cell["number"]: cell["label"] for cell in results["cells"]}
    a, b = (losses(tmp_path, stage[number]) for number in (1, 2))
    assert a != b
    own = dataclasses.replace(config, grid=("inner.batch_size=1",), training_seed=1)
    (alone,) = run(own, tmp_path / "own")["cells"]
    assert alone["log_likelihood"]["mean"] == pytest.approx(values[1], abs=1e-5)


def test_rows_of_one_program_are_what_may_differ(config):
    def count(*grid: str, **changes) -> int:
        found = read(dataclasses.replace(config, grid=grid, **changes))
        assert len(found.parts) == 1
        return len(programs_of(found.parts[0].cells))

    assert count("inner.rank=2,4", "inner.alpha=1,2", "inner.projections=q_proj,v_proj+q_proj") == 1
    assert count("inner.optimiser.schedule=linear,cosine", "inner.rank=2,4") == 2
    assert count("inner.optimiser.warmup_steps=0,2") == 2
    assert count("inner.optimiser.dropout=0,0.1") == 2
    assert count("inner.initialisation=stored,per_edit", "training_seed=0,1") == 1
    dropping = dataclasses.replace(config.inner, optimiser=Optimiser(dropout=0.1))
    assert count("inner.projections=q_proj,v_proj", inner=dropping) == 2  # their masks depend on each other


def test_a_diverged_cell_is_told_and_never_chosen(config, tmp_path):
    wild = dataclasses.replace(config, grid=("inner.learning_rate=1e-2,1e38",))
    results = run(wild, tmp_path)
    good, bad = results["cells"]
    assert bad["problems"] == {"diverged": 2}
    assert bad["log_likelihood"]["mean"] is None
    assert results["recommendation"].startswith("Use learning_rate=0.01")
    assert "no other cell to choose" in results["recommendation"]
    assert "diverged" in (tmp_path / "report.html").read_text()
    assert "diverged" not in good["problems"]


def test_recorded_self_edits_are_taken_as_they_are(config, tmp_path):
    path, texts = tmp_path / "edits.json", ["The lamp stands.\nIt stands.", "A lamp."]
    chosen, _, _ = cells.choose_passages(settings_of(config))
    records = [{**passage._asdict(), "questions": [], "completions": texts} for passage in chosen]
    for record, passage in zip(records, chosen, strict=True):
        record["questions"] = [question._asdict() for question in passage.questions]
    path.write_text(json.dumps(records))
    recorded = dataclasses.replace(config, edits=(str(path),), samples=2, grid=("inner.rank=2,4",))
    results = run(recorded, tmp_path / "run")
    assert [cell["adapters"] for cell in results["cells"]] == [4, 4]
    lines = (tmp_path / "run" / "self_edits.jsonl").read_text()
    assert [json.loads(line)["completion"] for line in lines.splitlines()] == 2 * texts
    with pytest.raises(ValueError, match=r"2 passages with self-edits; --passages asks for 3"):
        run(dataclasses.replace(recorded, passages=3), tmp_path / "more")


def test_what_the_parts_asked_of_a_judge_is_added_up():
    assert search.total([{"calls": 2, "usd": 0.5}, {"calls": 3, "usd": None}]) == {"calls": 5, "usd": None}
    assert search.total([]) == {}


def test_values_that_are_nearly_alike_are_two_parts(config):
    found = read(dataclasses.replace(config, grid=("sampling.temperature=0.12345678,0.12345679",)))
    assert [part.config.sampling.temperature for part in found.parts] == [0.12345678, 0.12345679]


def test_mistakes_come_before_any_folder(config, tmp_path):
    for grid, message in (
        (("prompt=facts,rewrit",), r"rewrit"),
        (("passages=2,9999",), r"--passages asks for 9999"),
        ((), r"the grid is empty"),
        (("inner.batch_size=0",), r"cell batch_size=0"),
        (("inner.learning_rate=1e-3,-1",), r"learning_rate is -1.0; expected at least 0"),
        (("inner.projections=q_proj+v_proj,q_prj",), r"projections are \('q_prj',\); expected some of q_proj"),
        (("tracker.kind=none,tensorboard",), r"there is no field 'tracker.kind'"),
        (("grader.concurrency=1,2",), r"grader.concurrency"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            run(dataclasses.replace(config, grid=grid), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"nothing to search"):
        read(dataclasses.replace(config, grid=None))
    with pytest.raises(FileNotFoundError, match=r"'targts'; did you mean targets\?"):
        read(dataclasses.replace(config, grid=None, ablation="targts"))


def test_a_command_line_is_the_same_search(tmp_path):
    parsed, *_ = command.parse(
        ablations.EXPERIMENT, ["demo", "--grid", "inner.learning-rate=1e-4,1e-3", "inner.rank=8,32", "--random", "3"]
    )
    found = read(parsed)
    assert (len(found.parts[0].cells), found.drawn) == (3, True)
    empty, *_ = command.parse(ablations.EXPERIMENT, ["demo", "--grid"])
    with pytest.raises(ValueError, match=r"the grid is empty"):
        read(empty)
    path = tmp_path / "mine.toml"
    path.write_text("[grid]\ninner.rank = [2, 4]\n")
    mine, *_ = command.parse(ablations.EXPERIMENT, ["smoke", "--ablation", str(path)])
    assert [cell.label for cell in read(mine).parts[0].cells] == ["rank=2", "rank=4"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_search(preset, monkeypatch):
    monkeypatch.setattr(cells, "choose_passages", lambda config: ([], {}, []))  # SQuAD is not on this machine
    found = read(PRESETS[preset].config)
    assert len(found.parts[0].cells) == {"demo": 12, "paper": 160, "smoke": 8}[preset]
    assert len(found.parts) == 1
    assert len(programs_of(found.parts[0].cells)) == {"demo": 1, "paper": 2, "smoke": 2}[preset]


def test_the_paper_preset_is_the_papers_inner_loop_but_for_what_is_searched():
    assert (PAPER.model, PAPER.data, PAPER.style) == ("Qwen/Qwen2.5-7B", "squad", "raw")
    assert PAPER.inner == FineTuning()
    assert PRESETS["demo"].compute.chunk == 16
    assert settings_of(DEMO).inner == DEMO.inner


def test_the_plan_counts_cells_and_programs(config, tmp_path):
    plan = ablations.describe(
        ablations.EXPERIMENT,
        dataclasses.replace(config, grid=(*TWELVE, "inner.batch_size=1,2")),
        COMPUTE,
        Place(tmp_path / "run"),
    )
    assert "24 cells over inner.learning_rate, inner.rank, inner.epochs, inner.batch_size" in plan
    assert "1 run, 2 compiled programs" in plan
    assert "12 cells: batch_size=2" in plan
    assert not (tmp_path / "run").exists()
