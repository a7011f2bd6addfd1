"""Every experiment's command that the documents show is one that its command line takes."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments import session
from experiments.benchmark import command as benchmark

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN_COMMAND_LINE = {"parity", "grade", "report"}  # their arguments are files, checked when they run


def commands() -> list[str]:
    """Everything from `experiments.NAME` to the end of a code span, or of a line in a block of code."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`]+)`", re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for piece in (*(line for block in blocks for line in block.splitlines()), *spans):
            match = re.match(r"(?:python -m )?(experiments\.\w+(?: [^#]*)?)", " ".join(piece.split()))
            if match:
                found.append(match[1].strip())
    return sorted(set(found))


def test_the_documents_show_commands():
    assert {name.split()[0] for name in commands()} >= {
        f"experiments.{name}" for name in ("squad", "cpt", "continual", "evaluate_edits", "rewards", "grade", "report")
    }


@pytest.mark.parametrize("command", commands())
def test_a_command_that_is_shown_is_understood(command: str):
    name, *arguments = shlex.split(command)
    module = name.removeprefix("experiments.")
    if module == "benchmark":
        benchmark.parse(arguments)
    elif module not in OWN_COMMAND_LINE:
        session.parse(importlib.import_module(name).EXPERIMENT, arguments)
