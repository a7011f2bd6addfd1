"""The whole program on a tiny random model: killed at any moment it loses nothing, a seed is a result, mistakes teach.

Runs are processes of their own, as a user starts them; they share one cache of compiled programs.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest

from experiments import library, squad
from seal_jax.domains.passages import INVENTED
from seal_jax.graders.choose import Grader
from seal_jax.io import hub, weights
from seal_jax.nn import lora
from seal_jax.run import command, passages, published, runtime, session
from seal_jax.run.adapted import load_adapted
from seal_jax.run.command import parse
from seal_jax.run.journal import LONGEST_NAME, SCHEMA, RunFolder, read_lines
from seal_jax.seal.rounds import before_learning
from tests import tiny

ROOT = Path(__file__).parents[1]
PIECES = 12  # of round 1's inner loop: 6 self-edits, 2 training seeds
PHASES = [
    "held-out: base model",
    "passage alone: inner loop",
    "held-out, before RL: writing self-edits",
    "held-out, before RL: inner loop",
    "round 1: base model",
    "round 1: writing self-edits",
    "round 1: inner loop",
    "round 1: learning to write",
    "held-out, after round 1: writing self-edits",
    "held-out, after round 1: inner loop",
]
SETTINGS = {
    "prompt": "implications",
    "sampling.max-tokens": 16,
    "answer-tokens": 4,
    "inner.learning-rate": 0.01,
    "inner.epochs": 2,
    "outer.passages": 2,
    "outer.samples": 3,
    "outer.reward-seeds": 2,
    "outer.signal": "log_likelihood",  # a random model answers nothing right
    "outer.select": "best",
    "outer.sft.learning-rate": 0.01,
    "outer.sft.epochs": 1,
    "evaluation.passages": 2,
}
OPTIONS = ["smoke", *(word for name, value in SETTINGS.items() for word in (f"--{name}", str(value)))]


class Program:
    """`python -m experiments.squad` with everything it may touch in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = tiny.model_folder(folder / "model")
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"},
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "SEAL_JAX_CACHE": str(folder / "cache"),
        }

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.squad", *OPTIONS, "--model", str(self.model), *options],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*options)
        out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Program:
    return Program(tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def undisturbed(program) -> tuple[Path, str]:
    """(run folder, what it printed) of a run that nothing disturbed, moved from where the command put it."""
    done = program.run("--run-folder", str(program.folder / "run"))
    assert done.returncode == 0, done.stderr
    return (program.folder / "run").rename(program.folder / "undisturbed"), done.stdout


def results(folder: Path) -> dict:
    """results.json but for when it was made, and how long that took."""
    values = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert values.pop("timings")
    assert values.pop("machine")["seal_jax"]
    return values


def pieces(journal: Path) -> list[dict]:
    """A journal but for what differs from run to run: the seconds, and the checksums that cover them."""
    return [{k: v for k, v in line.items() if k not in ("spent", "check")} for line in lines(journal)]


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_second_run_compiles_nothing(program, undisturbed, tmp_path):
    def programs() -> set[str]:
        return {path.name for path in (program.folder / "cache" / "compiled").iterdir() if path.name.endswith("-cache")}

    before = programs()
    inner_loop = {name for name in before if name.startswith("jit_tick-")}
    assert len(inner_loop) == 3  # two self-edits, or more, whatever their lengths; and the SFT of the outer loop
    again = program.run("--run-folder", str(tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    assert programs() == before


# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves


@pytest.mark.slow
def test_a_run_leaves_all_that_is_promised(undisturbed):
    folder, printed = undisturbed
    found = results(folder)
    stages = ["base", "passage", "self_edits_round_0", "self_edits_round_1"]
    assert [row["name"] for row in found["rows"]] == stages
    for row, above in zip(found["rows"][1:], stages, strict=False):
        assert row["versus_previous"]["row"] == above
        assert row["versus_base"]["row"] == "base"
        assert {"mean", "low", "high"} <= row["versus_previous"].keys()
        assert (row["passages"], len(row["per_passage"])) == (2, 2)
    assert found["settings"]["outer"]["samples"] == 3
    assert found["rounds"][0]["self_edits"] == 6
    assert found["rounds"][0]["kept"] == 2
    assert len(found["rounds"][0]["sft_losses"]) == 1
    assert found["command"].startswith("python -m experiments.squad smoke --prompt implications")
    figures = [row["log_likelihood"]["mean"] for row in found["rows"]]
    assert len(set(figures)) == len(figures)  # every stage is another model

    edits = lines(folder / "self_edits.jsonl")
    assert [edit["stage"] for edit in edits] == ["passage"] * 2 + [stages[2]] * 2 + ["round 1"] * 6 + [stages[3]] * 2
    assert sum(edit["kept"] for edit in edits) == 2
    assert all(len(edit["rewards_by_seed"]) == 2 for edit in edits if edit["stage"] == "round 1")
    assert all(edit["sequences"] and edit["answers"] and edit["losses"] for edit in edits)

    assert (folder / "report.html").read_text(encoding="utf-8").count("<html") == 1
    curves = {(entry["phase"], entry["step"]) for entry in lines(folder / "metrics.jsonl")}
    assert curves >= {("passage", 0), ("self_edits", 0), ("self_edits", 1), ("rounds", 1)}
    assert "smoke: " in printed.partition("\n")[0]
    assert parse(squad.EXPERIMENT, ["--config", str(folder / "run.toml")])[0].outer.samples == 3
    assert list((folder / "tensorboard").glob("events*"))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["round_1"]
    claimed = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert claimed.pop("inputs")  # which passages and prompts it read
    assert claimed.pop("schema") == SCHEMA
    assert claimed.pop("experiment") == "squad"
    assert claimed.pop("weights").keys() == {"model"}
    assert claimed == found["settings"]  # all of them, and nothing of what only changes the cost
    assert found["compute"]["chunk"] == 2
    names = [piece["name"] for piece in lines(folder / "journal.jsonl")]
    assert len(names) == len(set(names))
    assert sum(name.startswith("round 1/seed") for name in names) == PIECES

    shown = [line.split("] ", 1)[1] for line in printed.splitlines() if line.startswith("[")]
    begun = [line.rsplit(":", 1)[0] for line in shown if "done after" not in line and "/" not in line]
    assert begun == PHASES


@pytest.mark.slow
def test_what_a_run_trained_is_exported_with_a_card_and_given_to_the_hub(undisturbed, tmp_path, monkeypatch, capsys):
    folder, _ = undisturbed
    found, sent = results(folder), []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda self, name, **how: sent.append((name, how)) or name
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name: SimpleNamespace(private=True))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **what: sent.append(what))
    words = ["export", str(folder), "--to", "merged", "--out", str(tmp_path / "out"), "--push", "me/writer"]
    assert library.main(words) == 0
    whole = tmp_path / "out" / folder.name / "merged"
    assert sent[0] == ("me/writer", {"private": True, "exist_ok": True})
    assert (sent[1]["repo_id"], sent[1]["folder_path"]) == ("me/writer", whole)
    card = (whole / "README.md").read_text()
    for said in (
        "library_name: transformers",
        "1 round of `rest_em`",
        "experiments.squad smoke",
        "{context}",
        "| 0.0 [0.0, 0.0] |",
    ):
        assert said in card, said
    assert all(f"| {row['label']} |" in card for row in found["rows"])
    assert str(folder.parent) not in card  # no path of this machine

    adapted, model = published.trained(folder), found["model"]
    _, plain = weights.load_model(hub.find_model(model))
    _, merged = weights.load_model(hub.find_model(str(whole)))
    expected = lora.merge(plain, adapted.adapter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, expected)
    assert any(np.asarray(a != b).any() for a, b in zip(*map(jax.tree.leaves, (plain, merged)), strict=True))
    for form in ("peft", "gguf"):
        assert library.main(["export", str(folder), "--to", form, "--out", str(tmp_path / form)]) == 0
    again = load_adapted(tmp_path / "peft" / folder.name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again.adapter, adapted.adapter)
    assert "library_name: peft" in (tmp_path / "peft" / folder.name / "README.md").read_text()
    assert list((tmp_path / "gguf" / folder.name).glob("*.gguf"))  # a folder of nothing else

    def fails(error: Exception) -> Callable[..., None]:
        def fail(self, name, **how):
            raise error

        return fail

    again = [*words[:5], str(tmp_path / "again"), *words[6:]]
    for call, wrong, said in (
        ("create_repo", huggingface_hub.errors.LocalTokenNotFoundError("none"), "run: hf auth login"),
        ("create_repo", RuntimeError("no route to host"), "--push me/writer: no route to host"),
        ("model_info", None, "--push me/writer: that model is public"),
    ):
        public = lambda self, name: SimpleNamespace(private=False)
        with monkeypatch.context() as moment:
            moment.setattr(huggingface_hub.HfApi, call, fails(wrong) if wrong else public)
            capsys.readouterr()
            assert library.main(again) == 2
            assert said in capsys.readouterr().err
        assert not (tmp_path / "again").exists()  # refused before anything is written


# ---------------------------------------------------------------------------------------------------------------------
# kill -9


def kill_when(process: subprocess.Popen[str], begins: str | None, reached: Callable[[], bool] | None) -> None:
    """SIGKILL once a phase's first line is read, or once the run folder holds something."""
    assert process.stdout is not None
    if begins is not None:
        for line in process.stdout:
            if f"] {begins}: " in line:
                break
    else:
        assert reached is not None
        while not reached() and process.poll() is None:
            time.sleep(0.001)
    assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_killed_in_each_phase_it_ends_as_an_undisturbed_run_does(program, undisturbed):
    folder = program.folder / "run"  # the very command of the undisturbed run
    journal, checkpoints = folder / "journal.jsonl", folder / "checkpoints"

    def finished(piece: str) -> Callable[[], bool]:
        return lambda: journal.exists() and f'"{piece}"' in journal.read_text(encoding="utf-8")

    moments: list[tuple[str | None, Callable[[], bool] | None]] = [
        (None, (folder / "config.json").exists),
        ("passage alone: inner loop", None),
        ("held-out, before RL: writing self-edits", None),
        (None, finished("round 1/write/0")),
        (None, finished("round 1/seed 0/try/0.0")),
        ("round 1: learning to write", None),
        (None, lambda: any(checkpoints.glob("*"))),  # while the checkpoint is being written
        ("held-out, after round 1: inner loop", None),
        (None, (folder / "results.json").exists),  # before, or while, the report is written
    ]
    sizes = []
    for begins, reached in moments:
        kill_when(program.start("--run-folder", str(folder)), begins, reached)
        sizes.append(journal.stat().st_size if journal.exists() else 0)
    assert sizes == sorted(sizes), "a restart lost finished work"
    journal.write_bytes(journal.read_bytes() + b'{"name": "held-out/ba')  # a line that a kill cut short
    done = program.run("--run-folder", str(folder))
    assert done.returncode == 0, done.stderr
    reference, _ = undisturbed
    assert results(folder) == results(reference)
    assert (folder / "self_edits.jsonl").read_bytes() == (reference / "self_edits.jsonl").read_bytes()
    by_name = itemgetter("name")  # those of one chunk, cut short by a kill, come in another order
    assert sorted(pieces(journal), key=by_name) == sorted(pieces(reference / "journal.jsonl"), key=by_name)
    assert (folder / "report.html").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


@pytest.mark.slow
def test_a_seed_is_a_result_and_another_seed_another(program, undisturbed):
    reference, _ = undisturbed
    outcomes = []
    for seed in (0, 1):
        folder = program.folder / f"seed {seed}"
        done = program.run("--run-folder", str(folder), "--seed", str(seed))
        assert done.returncode == 0, done.stderr
        outcomes.append(results(folder))
        outcomes[-1].pop("command")  # names the seed
    expected = results(reference)
    expected.pop("command")
    assert outcomes[0] == expected
    assert outcomes[1]["rows"] != expected["rows"]
    # Not only other passages: where two runs draw for the same passage, they draw differently.
    written = [
        {edit["completion"] for edit in lines(program.folder / f"seed {seed}" / "self_edits.jsonl")} for seed in (0, 1)
    ]
    assert not (written[0] & written[1]) - {""}


# ---------------------------------------------------------------------------------------------------------------------
# Another way to learn from what was tried


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_that_begins_as_another_ends_as_it_would_have_alone(program, undisturbed):
    reference, _ = undisturbed
    alone, shared = program.folder / "alone", program.folder / "shared"
    options = ("--outer.method", "advantages", "--outer.sft.learning-rate", "0.02")
    apart = program.run(*options, "--run-folder", str(alone))
    assert apart.returncode == 0, apart.stderr
    process = program.start(*options, "--begin-as", str(reference), "--run-folder", str(shared))
    kill_when(process, "round 1: learning to write", None)
    done = program.run(*options, "--begin-as", str(reference), "--run-folder", str(shared))
    assert done.returncode == 0, done.stderr
    assert results(shared) == results(alone)
    assert results(shared)["rows"][-1] != results(reference)["rows"][-1]  # it did learn otherwise
    assert (shared / "self_edits.jsonl").read_bytes() == (alone / "self_edits.jsonl").read_bytes()
    by_name = itemgetter("name")
    assert sorted(pieces(shared / "journal.jsonl"), key=by_name) == sorted(pieces(alone / "journal.jsonl"), key=by_name)
    taken = {line["name"]: line["spent"] for line in lines(reference / "journal.jsonl") if "spent" in line}
    for line in lines(shared / "journal.jsonl"):
        if before_learning(line["name"]):
            assert line["spent"] == taken[line["name"]], "it was done again"

    refused = program.run("--begin-as", str(reference), "--seed", "7", "--run-folder", str(program.folder / "none"))
    assert refused.returncode == 2
    assert "seed is 0 there and 7 here; only how the outer loop learns" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (program.folder / "none").exists()


@pytest.mark.parametrize("archive", sorted((ROOT / "docs" / "studies").glob("*.tar.xz")), ids=lambda path: path.name)
def test_the_records_of_a_study_are_a_whole_run(archive, tmp_path):
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    config, found = read_lines(tmp_path)  # every line as it was written, under this config
    tried = [line for line in found if before_learning(line.name) and line.name.startswith("round 1/seed")]
    assert len(tried) > config["outer"]["passages"]
    assert found[-1].name == "finished"


@pytest.mark.parametrize(
    ("piece", "shared"),
    [
        ("held-out/base/0", True),
        ("passage alone/seed 0/try/3.0", True),
        ("held-out, before RL/write/20", True),
        ("round 1/base/0", True),
        ("round 1/write/0", True),
        ("round 1/seed 2/try/0.1", True),
        ("round 1, sets/seed 0/try/0.1", True),
        ("round 1/rate/3", True),
        ("round 1/sft losses", False),
        ("round 1/credit", False),
        ("round 1/metrics", False),
        ("round_1", False),
        ("held-out, after round 1/write/0", False),
        ("validation, after round 1/seed 0/try/0.0", False),
        ("round 2/base/0", False),
        ("round 10/write/0", False),
        ("finished", False),
    ],
)
def test_what_a_model_did_before_it_learned_is_told_by_the_name_of_a_piece(piece, shared):
    assert before_learning(piece) == shared


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def main(program: Program, monkeypatch, capsys, *options: str) -> tuple[int, str, str]:
    """(exit status, output, errors) of a command that ends before it computes: in this process, for speed."""
    monkeypatch.setattr(runtime, "start", lambda devices: None)  # JAX runs already
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        status = command.main(squad.EXPERIMENT, [*OPTIONS, "--model", str(program.model), *options])
    except SystemExit as stop:  # as tyro ends at a typo
        status = stop.code if isinstance(stop.code, int) else 1
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.slow
def test_another_config_on_a_run_folder_is_refused(program, undisturbed):
    folder, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    refused = program.run("--run-folder", str(folder), "--inner.rank", "4", "--outer.sft.epochs", "3", "--seed", "7")
    assert refused.returncode == 2
    for difference in ("inner.rank: 32 there, 4 now", "outer.sft.epochs: 1 there, 3 now", "seed: 0 there, 7 now"):
        assert difference in refused.stderr
    assert refused.stderr.count(" there, ") == 3
    assert "--run-folder" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_is_of_the_texts_it_read(tmp_path):
    def inputs(file: Path, **change: object) -> str:
        config = dataclasses.replace(squad.SMOKE, data=str(file), **change)
        return repr(passages.split(config).inputs)

    same, other = write_passages(tmp_path / "same.json"), write_passages(tmp_path / "other.json")
    assert inputs(same) == inputs(other)
    assert inputs(same) == inputs(same, seed=3)  # the seed is a field of its own
    other.write_text(other.read_text(encoding="utf-8").replace("the", "teh", 1), encoding="utf-8")
    assert inputs(same) != inputs(other)
    assert inputs(same) != inputs(same, prompt="rewrite")


def write_passages(path: Path, count: int = 8, **change: object) -> Path:
    """A file of passages in the reference's format, the last one changed."""
    records = [
        {name: record[name] for name in ("title", "context", "questions")}
        for record in json.loads(INVENTED.read_text(encoding="utf-8"))[:count]
    ]
    records[-1] |= change
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


LONG = " ".join(["harbour"] * 2000)
MISTAKES: dict[str, tuple[Callable[[Path], Sequence[str]], Sequence[str]]] = {
    "not JSON": (
        lambda folder: ["--data", str(note(folder / "d.json", "title,context\n"))],
        ["d.json", "not JSON", "line 1"],
    ),
    "an empty field": (
        lambda folder: ["--data", str(write_passages(folder / "d.json", context=" "))],
        ["d.json", "$[7].context", "not blank"],
    ),
    "a missing file": (lambda folder: ["--data", str(folder / "absent.json")], ["absent.json"]),
    "no run to begin as": (
        lambda folder: ["--begin-as", str(folder / "absent")],
        ["absent: no run folder (config.json and journal.jsonl)"],
    ),
    "a misspelt data set": (lambda folder: ["--data", "invneted"], ["'invneted'", "did you mean invented"]),
    "too few passages": (
        lambda folder: ["--data", str(write_passages(folder / "d.json", 3))],
        ["d.json", "1 passages to train on", "needs 2", "--outer.passages"],
    ),
    "too few embedded passages": (
        lambda folder: ["--evaluation.passages", "1000"],
        ["20 held out", "1000", "--evaluation.passages"],
    ),
    "a passage longer than the context": (
        lambda folder: ["--data", str(write_passages(folder / "d.json", context=LONG)), "--evaluation.passages", "6"],
        ["needs a context of", "has 1024", "Shorten or remove"],
    ),
    "an unknown model": (lambda folder: ["--model", "smollm2-135"], ["'smollm2-135'", "did you mean 'smollm2-135m'"]),
    "a folder that is no model": (lambda folder: ["--model", str(folder)], ["config.json"]),
    "an unknown prompt": (lambda folder: ["--prompt", "implication"], ["implication", "did you mean implications"]),
}


def note(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_as_a_sentence_that_says_what_to_do(program, tmp_path, monkeypatch, capsys, mistake):
    options, said = MISTAKES[mistake]
    status, _, err = main(program, monkeypatch, capsys, "--run-folder", str(tmp_path / "run"), *options(tmp_path))
    assert status == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    for words in said:
        assert words in err


def test_a_typo_is_rejected_with_a_suggestion(program, tmp_path, monkeypatch, capsys):
    status, out, err = main(
        program, monkeypatch, capsys, "--run-folder", str(tmp_path / "run"), "--inner.learnig-rate", "1"
    )
    assert status == 2
    assert "learnig-rate" in out + err
    assert (out + err).count("--inner.learning-rate") == 1  # of the preset in use, not of each
    assert not (tmp_path / "run").exists()


def test_a_value_that_a_setting_refuses_is_named_by_its_option(program, tmp_path, monkeypatch, capsys):
    run_folder = tmp_path / "run"
    status, out, err = main(program, monkeypatch, capsys, "--run-folder", str(run_folder), "--inner.epochs", "0")
    said = " ".join((out + err).replace("│", " ").split())
    assert status == 2
    assert "--inner: epochs is 0; expected at least 1" in said
    assert "tyro" not in said
    assert len(err.splitlines()) == 1
    status, _, err = main(program, monkeypatch, capsys, "--run-folder", str(run_folder), "--answer-tokens", "0")
    assert (status, err) == (2, "error: answer_tokens is 0; expected at least 1\n")
    assert not run_folder.exists()


def test_ctrl_c_ends_in_one_line(monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "start", lambda devices: None)
    assert command.main(squad.EXPERIMENT._replace(read=interrupted), ["smoke"]) == 130
    assert capsys.readouterr().err == "stopped; the same command carries on\n"


def test_a_disk_that_is_full_ends_in_one_line_whatever_was_written(monkeypatch, capsys, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "report.html"))

    monkeypatch.setattr(runtime, "start", lambda devices: None)
    assert command.main(squad.EXPERIMENT._replace(execute=full), ["smoke", "--run-folder", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/report.html: the disk is full. What was finished is kept: make room")
    assert len(said.splitlines()) == 1


def test_replicas_are_runs_of_seeds_each_in_a_folder_and_their_spread_is_shown(monkeypatch, capsys, tmp_path):
    def run(experiment, config, compute, place, *, command):
        rows = [{"name": "base", "label": "Base model", "accuracy": {"mean": config.seed / 10}}]
        ran.append((config.seed, place.run_folder, command))
        return {"rows": rows}

    ran: list[tuple] = []
    monkeypatch.setattr(runtime, "start", lambda devices: None)
    experiment = squad.EXPERIMENT._replace(execute=run)
    assert command.main(experiment, ["smoke", "--seed", "1", "--replicas=2", "--run-folder", str(tmp_path)]) == 0
    assert ran == [
        (seed, tmp_path / f"seed-{seed}", f"python -m experiments.squad smoke --seed {seed}") for seed in (1, 2)
    ]
    assert re.search(r"Base model +15 +7.07 +10 +20$", capsys.readouterr().out, re.MULTILINE)
    assert command.main(experiment, ["smoke", "--replicas", "3"]) == 0
    assert [str(folder) for _, folder, _ in ran[2:]] == [f"runs/squad-smoke{end}" for end in ("", "-seed-1", "-seed-2")]


def test_other_weights_at_the_same_path_are_another_run(program, monkeypatch, capsys, tmp_path):
    model, run_folder = shutil.copytree(program.model, tmp_path / "model"), tmp_path / "run"
    config, *_ = command.parse(squad.EXPERIMENT, [*OPTIONS, "--model", str(model)])
    what = session.identity(config, passages.split(config))
    folder = RunFolder(run_folder, {"experiment": "squad", **what, "weights": session.weights_of(config)})
    folder.once("piece", lambda: 1)
    folder.close()
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    options = ["--model", str(model), "--run-folder", str(run_folder)]
    status, _, err = main(program, monkeypatch, capsys, *options)
    assert status == 2
    assert "another config" in err
    assert "\n  weights.model: '" in err
    assert err.count(" there, ") == 1


def test_every_model_that_a_run_reads_has_its_fingerprint(program):
    config = dataclasses.replace(
        squad.SMOKE, model=str(program.model), writer="smollm2-135m", grader=Grader("model", str(program.model))
    )
    found = session.weights_of(config)
    assert list(found) == ["model", "writer", "grader"]
    assert found["model"] == found["grader"] != found["writer"]


def test_a_dry_run_says_what_is_missing(program, monkeypatch, capsys, tmp_path):
    """A judge without a key, a tracker that is not installed: the run itself would end at them."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "trackio", None)
    options = ["--run-folder", str(tmp_path / "run"), "--dry-run"]
    wrong = ["--tracker.kind", "trackio", "--grader.kind", "endpoint", "--grader.model", "gpt-4.1"]
    status, out, err = main(program, monkeypatch, capsys, *options, *wrong)
    assert status == 0, err
    assert "pip install 'seal_jax[trackio]'" in out
    assert "OPENAI_API_KEY is not set" in out
    status, out, err = main(
        program, monkeypatch, capsys, *options, "--grader.kind", "model", "--grader.model", "nosuch"
    )
    assert "unknown model 'nosuch'" in out
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-some-length")
    status, out, err = main(program, monkeypatch, capsys, *options, *wrong[2:])
    assert "Missing" not in out
    assert not (tmp_path / "run").exists()


def test_without_jax_a_command_says_which_environment_to_enter():
    """As README's reader meets it who has not entered `.venv`."""
    without_packages = [sys.executable, "-S", "-m", "experiments.squad"]
    done = subprocess.run(without_packages, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "source .venv/bin/activate" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("platform", ["rocm", "cpu,nonsense"])
def test_a_device_that_is_not_there_is_named(platform, tmp_path):
    command = [sys.executable, "-m", "experiments.squad", "smoke", "--dry-run", "--run-folder", str(tmp_path / "run")]
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: JAX finds no device for JAX_PLATFORMS={platform}: ")
    assert "Set JAX_PLATFORMS=cpu" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_run_that_jax_ends_at_the_first_nan_says_why(program, monkeypatch, capsys, tmp_path):
    """JAX_DEBUG_NANS, and an adapter that diverges: without the flag it would be left out."""
    monkeypatch.setattr(runtime, "start", lambda devices: None)
    options = ["--run-folder", str(tmp_path / "run"), "--inner.learning-rate", "inf", "--outer.rounds", "0"]
    with jax.debug_nans(True):
        status, _, err = main(program, monkeypatch, capsys, *options)
    assert status == 2
    assert err.startswith("error: invalid value (nan)")
    assert "JAX_DEBUG_NANS" in err
    assert len(err.splitlines()) == 1


def test_a_dry_run_prints_the_plan_and_reads_no_weights(tmp_path, monkeypatch, capsys, program):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in program.model.iterdir():
        (folder / path.name).write_bytes(b"" if path.suffix == ".safetensors" else path.read_bytes())
    run_folder = tmp_path / "run"
    status, out, err = main(
        program, monkeypatch, capsys, "--model", str(folder), "--run-folder", str(run_folder), "--dry-run"
    )
    assert status == 0, err
    for words in (str(folder), "2 held out", "round 1", "Memory", str(run_folder)):
        assert words in out
    assert not run_folder.exists()
    status, _, err = main(program, monkeypatch, capsys, "--model", str(folder), "--run-folder", str(run_folder))
    assert status == 2  # whereas a run needs them
    assert "model.safetensors" in err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("squad demo", "squad-demo"),
        ("squad demo --tracker.kind none --judge.timeout-s 5", "squad-demo"),
        ("squad demo --seed 1 --data there/mine.json", "squad-demo-data-mine.json-seed-1"),
        ("squad paper --model Qwen/Qwen2.5-3B", "squad-paper-model-Qwen2.5-3B"),
        ("squad demo --inner.projections q_proj v_proj", "squad-demo-inner.projections-q_proj-v_proj"),
        ("evaluate_edits smoke --edits a/A.json runs/mine/", "evaluate-edits-smoke-edits-A.json-mine"),
        ("ablations demo --grid inner.rank=4,8 --jobs.where local", "ablations-demo"),
        ("ablations demo --samples 2", "ablations-demo-samples-2"),
        ("adapt --document my/notes.md --ask Who? --exam e.json --save out --merged", "adapt-small-notes"),
        ("adapt --adapter my-adapter --ask Who?", "adapt-small-adapter-my-adapter"),
    ],
)
def test_another_command_has_another_folder_and_the_same_the_same(words, name):
    which, *arguments = words.split()
    experiment = importlib.import_module(f"experiments.{which}").EXPERIMENT
    config, *_ = command.parse(experiment, arguments)
    assert command.folder_name(experiment, config) == name


def test_a_long_name_is_cut_and_still_its_own():
    names = {
        command.folder_name(squad.EXPERIMENT, command.parse(squad.EXPERIMENT, ["demo", "--data", "x" * 200 + end])[0])
        for end in "ab"
    }
    assert len(names) == 2
    assert {len(name) for name in names} == {LONGEST_NAME}
