"""The console script and `python -m experiments`: the list, a typo, the commands that messages name, and the wheel."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from seal_jax import cli
from seal_jax.run import command, terminal

ROOT = Path(__file__).parents[1]


def test_the_list_names_every_experiment_and_loads_no_jax():
    script = "import sys; from seal_jax.cli import main; main([], 'experiments'); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()[2:] if line}
    assert listed.pop("env")
    assert listed == cli.available(ROOT / "experiments")
    assert {"squad", "adapt", "report", "benchmark"} <= set(listed)
    assert listed["squad"].startswith("Knowledge incorporation (paper table 2)")


def test_a_misspelt_experiment_is_answered_with_the_nearest(capsys):
    assert cli.main(["squid"], "experiments") == 2
    assert capsys.readouterr().err == "error: no experiment squid: did you mean squad?\n"
    assert cli.main(["xyz"], "experiments") == 2
    assert "expected one of ablations, adapt, arc, " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["squad", "evaluate-edits", "benchmark", "report", "grade", "adapt"])
def test_an_experiment_gets_its_options(name: str, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"], "experiments")
    assert ended.value.code == 0
    assert f"python -m experiments.{name.replace('-', '_')}" in capsys.readouterr().out


def test_a_document_may_stand_without_its_option(monkeypatch):
    seen: list[list[str]] = []
    adapt = importlib.import_module("experiments.adapt")
    monkeypatch.setattr(command, "main", lambda experiment, arguments: seen.append(list(arguments)) or 0)
    for words in (["notes.md"], ["smoke", "notes.pdf", "--ask", "Who?"], ["--ask", "a.md"], ["small"], []):
        assert adapt.main(words) == 0
    assert seen == [
        ["--document", "notes.md"],
        ["smoke", "--document", "notes.pdf", "--ask", "Who?"],
        ["--ask", "a.md"],
        ["small"],
        [],
    ]


def test_messages_name_the_command_that_the_reader_has(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert terminal.shell_command("grade", "--answers", "a b") == "python -m experiments.grade --answers 'a b'"
    monkeypatch.setattr(sys, "argv", ["/env/bin/seal-jax", "squad"])
    assert terminal.shell_command("grade") == "seal-jax grade"
    monkeypatch.setattr(sys, "argv", ["notebook"])
    monkeypatch.setattr(terminal, "CLONE", Path("nowhere"))
    assert terminal.shell_command("grade") == "seal-jax grade"


def test_the_wheel_holds_every_file_of_the_library_and_the_experiments(tmp_path):
    """All but what is for readers of the repository (*.md); the experiments as seal_jax.experiments."""
    for name in ("seal_jax", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.md"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*pip, "--wheel-dir", tmp_path / "dist", tmp_path], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for top in ("seal_jax", "experiments") for path in (tmp_path / top).rglob("*") if path.is_file()]
    names = {path.relative_to(tmp_path).as_posix() for path in files}
    assert held == {f"seal_jax/{name}" if name.startswith("experiments/") else name for name in names}
