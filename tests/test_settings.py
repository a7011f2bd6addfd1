"""A run's settings are read back as they were written; mistakes in the file, and names nothing has, are answered."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from experiments import squad
from seal_jax.domains import passages
from seal_jax.domains.passages import NotFetched
from seal_jax.run import command, session, settings
from seal_jax.run.command import parse
from seal_jax.run.journal import RunFolder
from seal_jax.run.session import TERMINAL, curve, table_text

EXPERIMENTS = ("squad", "cpt", "continual", "arc", "adapt", "evaluate_edits", "rewards", "ablations")
PRESETS = [(name, preset) for name in EXPERIMENTS
           for preset in importlib.import_module(f"experiments.{name}").EXPERIMENT.presets]  # fmt: skip


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_what_is_written_is_read_back(name: str, preset: str, tmp_path: Path):
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    config, compute, _ = parse(experiment, [preset, "--seed", "3", "--compute.chunk", "7"])
    settings.write(tmp_path, name, config, compute)
    assert parse(experiment, ["--config", str(tmp_path / "run.toml")])[:2] == (config, compute)


def test_a_file_of_ones_own_and_what_is_typed_beside_it(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'model = "a \\"b\\""\nentigraph = ["pairs", "triples"]\ndata_seed = 4\n'
        "[outer]\nbreak_ties = false\nrounds = 3\n[outer.sft]\nlearning-rate = 1e-4\n[compute]\nunroll = true\n"
    )
    config, compute, place = parse(
        squad.EXPERIMENT, ["paper", "--outer.rounds", "1", "--config", str(file), "--dry-run"]
    )
    outer = squad.PAPER.outer
    sft = dataclasses.replace(outer.sft, learning_rate=1e-4)
    outer = dataclasses.replace(outer, break_ties=False, rounds=1, sft=sft)
    expected = dataclasses.replace(squad.PAPER, model='a "b"', entigraph=("pairs", "triples"), data_seed=4, outer=outer)
    assert config == expected
    assert compute.unroll is True
    assert place.dry_run


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("outer.ronds = 2", [], "no setting outer.ronds: did you mean --outer.rounds?"),
        ("xyz = 2", [], "no setting xyz: --help-all lists all"),
        ("outer rounds", [], "not TOML"),
        ('experiment = "cpt"', [], "holds settings of cpt, and this is squad; run cpt with it"),
        ('preset = "paper"', ["demo"], "is of preset paper, the command says demo"),
        ('preset = "papr"', [], "no preset papr: did you mean paper?"),
        (None, [], "No such file or directory; expected a TOML file"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(text, options, said, tmp_path, capsys):
    if text is not None:
        (tmp_path / "mine.toml").write_text(text)
    assert command.main(squad.EXPERIMENT, [*options, "--config", str(tmp_path / "mine.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_help_is_short_and_names_every_option(capsys):
    for name, most in (("--help", 75), ("--help-all", 1_000)):
        with pytest.raises(SystemExit) as ended:
            parse(squad.EXPERIMENT, ["demo", name])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert 20 < len(shown.splitlines()) < most
        assert "--model" in shown
        assert "rounds" in shown
    config = squad.DEMO
    for name, _ in [*settings.flat(config), *settings.flat(session.Place(run_folder=Path()))]:
        if name != "preset":
            assert name.rpartition(".")[2].replace("_", "-") in shown
    with pytest.raises(SystemExit):
        parse(squad.EXPERIMENT, ["--help"])
    assert "  paper        The paper's settings" in capsys.readouterr().out


def test_a_run_that_finished_nothing_leaves_no_folder(tmp_path: Path):
    first = tmp_path / "runs" / "mine"
    folder = RunFolder(first, {"a": 1})
    settings.write(first, "squad", squad.SMOKE, squad.PRESETS["smoke"].compute)
    folder.once("memory", dict)  # a plan
    folder.close()
    assert list(tmp_path.iterdir()) == []
    first.mkdir(parents=True)  # made by somebody else
    RunFolder(first, {"a": 1}).close()
    assert first.exists()
    second = tmp_path / "runs" / "other"
    folder = RunFolder(second, {"a": 1})
    folder.once("work", dict)
    folder.close()
    assert second.exists()
    third = RunFolder(tmp_path / "runs" / "third", {"a": 1})
    (third.path / "notes.txt").write_text("mine")
    third.close()
    assert (third.path / "notes.txt").exists()


def test_a_plan_needs_no_network(monkeypatch, capsys, tmp_path: Path):
    def unreachable(source: str, split: str) -> list:
        raise NotFetched(f"{source} is nowhere")

    monkeypatch.setattr(command.runtime, "start", lambda devices: None)
    monkeypatch.setattr(passages, "_squad", unreachable)
    options = ["paper", "--dry-run", "--model", "smollm2-135m", "--run-folder", str(tmp_path / "run")]
    for name in ("squad", "rewards", "continual"):
        assert command.main(importlib.import_module(f"experiments.{name}").EXPERIMENT, options) == 0
        shown = capsys.readouterr().out
        assert "stand-ins for the passages of --data squad" in shown
        assert "squad is nowhere" in shown
        assert "Inner loop" in shown


@pytest.mark.parametrize(
    ("stage", "phase", "step"),
    [
        ("self_edits_round_0", "self_edits", 0),
        ("self_edits_round_12", "self_edits", 12),
        ("round 2", "rounds", 2),
        ("validation, before RL", "validation", 0),
        ("validation, after round 3", "validation", 3),
        ("passage", "passage", 0),
    ],
)
def test_the_figures_of_all_rounds_are_one_curve(stage, phase, step):
    assert curve(stage) == (phase, step)


def test_a_wide_table_fits_a_terminal():
    columns = ["cell", "accuracy, %", "log-likelihood of the gold answer, nats a token", "against the best, paired"]
    rows = [
        ["learning_rate=0.0003, rank=16, epochs=16, alpha=32", "45.0 [33.2, 56.8]", "-1.2 [-1.5, -0.9]", "+3.2", 1]
    ] * 2
    lines = table_text({"title": "Cells", "columns": [*columns, "best in, of all"], "rows": rows}).splitlines()
    assert max(map(len, lines)) <= TERMINAL
    assert sum(line.startswith("learning_rate") for line in lines) == 2
    for word in " ".join(columns[1:]).split():
        assert sum(word in line for line in lines)
    small = {"title": "Small", "columns": ["a", "b"], "rows": [["x", 1.0]]}
    assert table_text(small) == "Small\na  b\nx  1"
