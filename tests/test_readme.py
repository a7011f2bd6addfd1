"""Every experiment's command that the documents show is one that its command line takes; small ones can be planned
(`make commands` runs them)."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from experiments import adapt, grade, library, report
from experiments.benchmark import command as benchmark
from seal_jax.run import session
from seal_jax.run.command import parse
from tests.shown import ROOT, commands

OWN_COMMAND_LINE = {"grade": grade.Config, "report": report.Command}  # their files are looked for when they run


def test_readme_is_one_screen_and_shows_the_tests_that_ci_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.encode()) <= 8_192
    shown, ci = (set(re.findall(r"^make (\w+)", text, re.M)) for text in (readme, (ROOT / ".ci/run").read_text()))
    assert shown == {"demo", "check"}
    assert shown <= ci


def is_small(command: str) -> bool:
    """Whether it is an experiment on the embedded model and data: `demo` or `smoke`, and no file or hub named."""
    words = shlex.split(command)
    elsewhere = any("/" in word or word.endswith((".json", ".jsonl", ".md")) for word in words[1:])
    return len(words) > 1 and words[1] in ("demo", "smoke") and not elsewhere


def test_the_documents_show_commands():
    assert {name.split()[0] for name in commands()} >= {
        f"experiments.{name}" for name in ("squad", "cpt", "continual", "evaluate_edits", "rewards", "grade", "report")
    }
    assert len(list(filter(is_small, commands()))) > 10


@pytest.mark.parametrize("command", commands())
def test_a_command_that_is_shown_is_understood(command: str):
    name, *arguments = shlex.split(command.removesuffix(" --help"))
    module = name.removeprefix("experiments.")
    if module == "benchmark":
        benchmark.parse(arguments)
    elif module == "parity":
        assert not arguments
    elif module == "library":
        assert not arguments or library.parse(arguments)
    elif module == "adapt" and arguments[0].endswith("/"):
        assert library.parse(["add", *arguments])
    elif module in OWN_COMMAND_LINE and (arguments or module != "grade"):
        tyro.cli(OWN_COMMAND_LINE[module], args=arguments)
    elif module == "adapt" and Path(arguments[0]).suffix:  # the document may stand without its option
        parse(adapt.EXPERIMENT, ["--document", *arguments])
    elif module not in OWN_COMMAND_LINE:
        parse(importlib.import_module(name).EXPERIMENT, arguments)


@pytest.mark.parametrize("command", filter(is_small, commands()))
def test_what_a_small_command_would_do_can_be_planned(command: str, tmp_path):
    """As with --dry-run: its data is read and split, its memory estimated."""
    name, *arguments = shlex.split(command)
    experiment = importlib.import_module(name).EXPERIMENT
    config, compute, place = parse(experiment, arguments)
    if getattr(config, "edits", None) == () and experiment.name == "evaluate_edits":
        pytest.skip("needs files of self-edits")
    place = dataclasses.replace(place, run_folder=tmp_path / "run")
    plan = (experiment.describe or session.describe)(experiment, config, compute, place)
    assert "Inner loop, at most" in plan
    assert "together" in plan
