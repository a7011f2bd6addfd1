"""The short forms of kill_storm.py and torn_files.py; by hand they are run for hundreds of kills and folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def program(name: str, *options: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    words = [sys.executable, "-m", f"tests.{name}", *options]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_few_torn_files():
    said = program("torn_files", "--folders", "6", "--experiments", "cpt")
    assert said.startswith("6 folders")
    assert said.endswith("0 wrong")


@pytest.mark.slow
def test_a_few_kills():
    said = program("kill_storm", "--kills", "12", "--experiments", "squad", "cpt full")
    assert said.endswith("0 wrong")
    assert int(said.split()[0]) >= 12
