"""Continued pre-training: whole texts, the same questions for every row, adapters or all weights, killed or not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import cpt
from seal_jax.analysis import paper
from seal_jax.domains import squad
from seal_jax.domains.passages import INVENTED, Passage, Question
from seal_jax.engine import full_training
from seal_jax.engine.training import train
from seal_jax.io import fingerprint
from seal_jax.nn import lora
from seal_jax.run import command as command_line
from seal_jax.run import pretraining, runtime
from seal_jax.run.journal import RunFolder, as_json
from seal_jax.types import LanguageModel
from tests import tiny

OPTIONS = {
    "n": 3,
    "completions": 2,
    "sampling.max-tokens": 16,
    "answer-tokens": 4,
    "compute.devices": 1,
    "questions": 6,
    "inner.learning-rate": 0.01,
    "full.learning-rate": 0.003,
    "full.epochs": 2,
}
Q = (Question("What?", "it"), Question("Who?", "he"), Question("Where?", "there"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.model_folder(tmp_path_factory.mktemp("model"))


def loaded(model: Path) -> LanguageModel:
    return runtime.load(str(model), dtype="float32", style="raw", devices=1).lm


@pytest.fixture
def command(model, monkeypatch):
    """`command(folder, *options)`: the program in this process, for speed; its exit status."""
    monkeypatch.setattr(runtime, "start", lambda devices: None)  # JAX runs already
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]

    def run(folder: Path, *options: str) -> int:
        everything = ["smoke", *given, "--model", str(model), "--run-folder", str(folder), *options]
        return command_line.main(cpt.EXPERIMENT, everything)

    return run


def external_file(path: Path, count: int = 20) -> Path:
    """Two completions for each of the first held-out passages, in the reference's format."""
    held_out = [r for r in json.loads(INVENTED.read_text(encoding="utf-8")) if r["split"] == "held_out"]
    fields = ("title", "context", "questions")
    records = [
        {**{f: r[f] for f in fields}, "completions": ["One line.\n\nAnother of it.", ""]} for r in held_out[:count]
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def results(folder: Path) -> dict:
    """results.json but for its timings."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert found.pop("timings")
    assert found.pop("machine")
    return found


def edits(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "self_edits.jsonl").read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_has_a_row_for_every_text_and_carries_on_where_it_was_killed(command, tmp_path, monkeypatch, method):
    options = ["--method", method, "--entigraph", "pairs", "--external", str(external_file(tmp_path / "e.json"))]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command(whole, *options) == 0
    found = results(whole)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == ["base", "passage", "self_edits", "external", "entigraph_pairs"]
    assert {row["questions"] for row in rows.values()} == {6}
    assert len({tuple(row["per_passage"]) for row in rows.values()}) == 1
    assert len({row["log_likelihood"]["mean"] for row in rows.values()}) >= 4  # trained on other texts, other models
    assert all(row["paper"]["where"].endswith("full fine-tuning" if method == "full" else "LoRA") for row in (
        rows["passage"], rows["self_edits"], rows["external"]
    ))  # fmt: skip
    assert rows["external"]["problems"]["empty completion"] == 3
    table = {row[0]: row[1:] for row in found["tables"][0]["rows"]}
    assert table["Passages alone"][:2] == [0, 3]
    assert table["Passages and external synthetic data"][:2] == [6, 6]
    # Six sequences by twos; an adapter takes one epoch, all weights take two.
    assert table["Passages and external synthetic data"][3] == (3 if method == "lora" else 6)
    external = [edit for edit in edits(whole) if edit["stage"] == "external"]
    for edit in external:
        title, context = edit["title"], edit["context"]
        assert edit["sequences"] == [f"{title}\nOne line.\n\nAnother of it.", f"{title}\n{context}"]  # no lines

    killed, real = [0], pretraining.try_base

    class Killed(BaseException):  # nothing may catch it
        pass

    def killing(*arguments, **named):
        if named["name"] == "external":
            killed[0] += 1
            raise Killed
        return real(*arguments, **named)

    monkeypatch.setattr(pretraining, "try_base", killing)
    with pytest.raises(Killed):
        command(cut, *options)
    monkeypatch.setattr(pretraining, "try_base", real)
    trained = []
    for module, name in ((pretraining, "train"), (full_training, "train_step")):
        whole_run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _run=whole_run, **k: (trained.append(1), _run(*a, **k))[1])
    assert command(cut, *options) == 0
    assert killed == [1]
    assert results(cut) == found
    assert edits(cut) == edits(whole)
    entigraph_steps = table["Passages and entity pairs"][3]
    assert len(trained) == (1 if method == "lora" else entigraph_steps)  # the last row only
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    assert names == {"passage", "self_edits", "external", "entigraph_pairs"}


@pytest.mark.slow
def test_the_adapter_is_the_inner_loops_over_all_sequences(command, tmp_path, monkeypatch):
    seen = []
    real = pretraining.train

    def record(lm, edits, trainer, **options):
        seen.append((lm, edits, trainer, options["seed"]))
        return real(lm, edits, trainer, **options)

    monkeypatch.setattr(pretraining, "train", record)
    assert command(tmp_path / "run") == 0
    (lm, (sequences,), trainer, seed), with_edits = seen
    assert len(sequences) == 3
    assert 3 < len(with_edits[1][0]) <= 3 * (2 + 1)
    assert trainer.shapes.capacity == 9
    assert (trainer.config.batch_size, trainer.compute.chunk) == (2, 1)
    adapters, _ = train(lm, [sequences], trainer, seed=seed)
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        kept = checkpointer.restore(tmp_path / "run" / "checkpoints" / "passage")
    for name in adapters.a:
        np.testing.assert_allclose(kept["b"][name], adapters.b[name][0], atol=1e-6)
        assert np.abs(kept["b"][name]).max() > 0


# ---------------------------------------------------------------------------------------------------------------------
# What is learnt and asked


def passages(count: int) -> list[Passage]:
    return [Passage(f"p-{i}", f"P{i}", f"Context {i}.", Q) for i in range(count)]


def test_a_sample_of_the_questions_is_fixed_by_the_seed():
    tasks = passages(10)
    assert pretraining.choose_questions(tasks, None, 0) == tasks
    sample = pretraining.choose_questions(tasks, 7, 0)
    assert sum(len(p.questions) for p in sample) == 7
    assert all(set(p.questions) <= set(Q) and p.questions for p in sample)
    assert [p.id for p in sample] == [p.id for p in tasks if p.id in {q.id for q in sample}]
    assert sample == pretraining.choose_questions(tasks, 7, 0)
    assert sample != pretraining.choose_questions(tasks, 7, 1)
    assert pretraining.choose_questions(tasks, 30, 0) == tasks
    with pytest.raises(ValueError, match="--questions 31: the 10 passages have 30; leave it out"):
        pretraining.choose_questions(tasks, 31, 0)


def test_a_completion_is_one_sequence():
    (passage,) = passages(1)
    edit = pretraining.whole(passage, " 1. One.\n2. Two.\n---\nThree.\n")
    assert [example.completion for example in edit.examples] == ["P0\n1. One.\n2. Two.\n---\nThree."]
    assert pretraining.whole(passage, " \n").problem == "empty completion"


# ---------------------------------------------------------------------------------------------------------------------
# A model that an earlier run trained


def earlier_run(folder: Path, base: Path, /, **changes) -> tuple[Path, list[lora.Adapter]]:
    """A finished run of experiments.squad, of which the second of three rounds kept nothing."""
    sft = {"projections": ["q_proj", "up_proj"], "rank": 2}
    settings = {"model": str(base), "dtype": "float32", "writer": None, "outer": {"rounds": 3, "sft": sft}}
    results = {"experiment": "squad", "validation": None} | changes.pop("results", {})
    weights = {"model": fingerprint.of_model(str(base))}
    run = RunFolder(folder, {"experiment": results["experiment"], **settings, "weights": weights, **changes})
    (folder / "results.json").write_text("{}", encoding="utf-8")
    lm = loaded(base)
    adapters: list[lora.Adapter] = []
    for number in (1, 3):
        fresh = lora.init(
            jax.random.key(number), lm.params["blocks"], sft["projections"], max_rank=2, rank=2, alpha=4.0
        )
        adapters.append(fresh.replace(b={name: b + 0.01 * number for name, b in fresh.b.items()}))
        run.once_tree(f"round_{number}", lambda: adapters[-1], jax.eval_shape(lambda: adapters[-1]))
    run.once("finished", lambda: results)
    run.close()
    return folder, adapters


def test_the_rounds_of_an_earlier_run_are_merged_in_order(model, tmp_path):
    folder, adapters = earlier_run(tmp_path / "squad", model)
    config = dataclasses.replace(cpt.SMOKE, model=str(model), seal=folder)
    lm = loaded(model)
    expected = lm.params
    for adapter in adapters:
        expected = lora.merge(expected, adapter)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        pretraining.starts_from(config, lm, "self_edits_round_1").params,
        expected,
    )
    assert list(pretraining.row_names(config)) == ["passage", "self_edits", "self_edits_round_3"]


def test_of_a_validated_run_the_rounds_up_to_the_chosen_one_are_taken(model, tmp_path):
    folder, adapters = earlier_run(tmp_path / "squad", model, results={"validation": {"chosen_round": 2}})
    config = dataclasses.replace(cpt.SMOKE, model=str(model), seal=folder)
    lm = loaded(model)
    (first,) = pretraining.seal_rounds(config, lm)  # the second kept nothing
    jax.tree.map(np.testing.assert_array_equal, first, adapters[0])
    assert list(pretraining.row_names(config))[-1] == "self_edits_round_2"


@pytest.mark.parametrize("how", ["gone", "damaged", "another"])
def test_an_earlier_run_whose_adapters_are_not_as_it_made_them_is_refused(model, tmp_path, how):
    """Never a row "SEAL, 3 rounds of RL" of a model without them."""
    folder, _ = earlier_run(tmp_path / "squad", model)
    third = folder / "checkpoints" / "round_3"
    if how == "damaged":
        [file.write_bytes(file.read_bytes()[:-9]) for file in third.rglob("*") if file.is_file()]
    else:
        shutil.rmtree(third)
    if how == "another":
        shutil.copytree(folder / "checkpoints" / "round_1", third)
    config = dataclasses.replace(cpt.SMOKE, model=str(model), seal=folder)
    said = rf"--seal .*round_3 is {'gone' if how == 'gone' else 'damaged'}; run the command of that run again"
    with pytest.raises(ValueError, match=said):
        pretraining.seal_rounds(config, loaded(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"model": "other"}}, "trained other weights than those that .* has now"),
        ({"model": "other"}, "trained with --model other --dtype float32 --base full; this run has --model"),
        ({"dtype": "bfloat16"}, "--dtype bfloat16 --base full; this run has"),
        ({"base": "nf4"}, "--dtype float32 --base nf4; this run has"),
        ({"writer": "big"}, "written by another model, big"),
        ({"results": {"experiment": "cpt"}}, "a run of cpt; expected experiments.squad"),
        ({"results": {"validation": {"chosen_round": 0}}}, "its validation chose the model as it was before RL"),
    ],
)
def test_an_earlier_run_that_does_not_fit_is_refused(model, tmp_path, changes, message):
    folder, _ = earlier_run(tmp_path / "squad", model, **changes)
    with pytest.raises(ValueError, match=message):
        pretraining.trained_by(dataclasses.replace(cpt.SMOKE, model=str(model), seal=folder))


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes, plans, presets


def test_mistakes_end_as_a_sentence(command, tmp_path, capsys):
    short = external_file(tmp_path / "short.json", 1)
    for options, words in (
        (["--n", "21"], ["20 passages", "learns 21 (--n)"]),
        (["--questions", "1000"], ["--questions 1000", "leave it out"]),
        (["--external", str(short)], ["no completion for", "short.json", "of 3 passages"]),
        (["--seal", str(tmp_path / "none")], ["--seal", "no results.json"]),
        (["--completions", "0"], ["completions is 0"]),
    ):
        try:
            status = command(tmp_path / "run", *options)
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        assert status == 2, options
        for word in words:
            assert word in said.err + said.out


@pytest.mark.slow
def test_an_adapter_that_diverges_is_no_result(command, tmp_path, capsys):
    assert command(tmp_path / "run", "--inner.learning-rate", "inf") == 2
    assert "continued pre-training on passage diverged at learning rate inf" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_dry_run_prints_the_plan_and_reads_no_weights(command, model, tmp_path, capsys, method):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(b"" if path.suffix == ".safetensors" else path.read_bytes())
    options = ["--model", str(folder), "--method", method, "--entigraph", "triples", "--dry-run"]
    assert command(tmp_path / "run", *options) == 0
    said = capsys.readouterr().out
    for words in ("3 passages learnt at once, 6 questions", "entigraph_triples", "self_edits"):
        assert words in said
    assert ("Full fine-tuning, on each device" in said) == (method == "full")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "n", "methods"), [(cpt.PAPER_200, 200, ("lora", "full")), (cpt.PAPER_2067, 2067, ("full",))]
)
def test_the_presets_are_the_papers(config, n, methods):
    assert (config.n, config.completions, config.model, config.data) == (n, 5, "Qwen/Qwen2.5-7B", "squad")
    assert (config.sampling.temperature, config.sampling.top_p, config.prompt) == (1.0, 0.95, "implications")
    assert (config.inner.rank, config.inner.alpha, config.inner.projections) == (32, 64, ("q_proj", "v_proj"))
    assert config.questions is None
    for method in methods:
        settings = as_json(dataclasses.replace(config, method=method))
        names = [*pretraining.row_names(config), "external", "self_edits_round_2"]
        for row in paper.beside([{"name": name, "passages": n} for name in names], settings, "cpt"):
            assert f"n = {n}" in row["paper"]["where"]
            assert [d for d in row["paper"]["differs"] if not d.startswith("judge")] == []


def test_sequences_are_the_texts_and_the_passage_once(model):
    lm = loaded(model)
    tasks = passages(2)
    text = pretraining.Text("t", "T", [[pretraining.whole(tasks[0], "A b."), pretraining.whole(tasks[0], "")], []])
    found = [[lm.codec.decode(s.ids) for s in row] for row in pretraining.sequences_of(lm, tasks, text)]
    assert found == [["P0\nA b.", "P0\nContext 0."], ["P1\nContext 1."]]
    assert squad.passage_only(tasks[0]).examples[0].completion == "P0\nContext 0."
