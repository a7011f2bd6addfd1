"""Nothing that a model, a document or a server wrote controls the terminal."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from seal_jax.run.progress import Progress
from seal_jax.run.terminal import plain, show

ROOT = Path(__file__).parents[1]
HOSTILE = {
    "\x1b[2J\x1b[31mred\x1b[0m": "red",  # clears the screen, colours
    "\x1b]0;title\x07name": "name",  # sets the window's title
    "\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\": "link",
    "\x9b31mred": "31mred",  # the one-byte form; what is left of it is text
    "a\rb\x08\x07": "ab",
    "\x1bPq#0\x1b\\sixel": "sixel",
    "\u202egnp.exe\u2066": "gnp.exe",  # shown backwards
    "\x1b": "",
    "a\tb\nc é 字 🙂": "a\tb\nc é 字 🙂",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_controls_are_left_out_and_text_is_not(text, capsys):
    assert plain(text) == HOSTILE[text]
    show(text, 3)
    assert capsys.readouterr().out == f"{HOSTILE[text]}\n3\n"


@given(st.text())
def test_no_text_holds_a_control_afterwards(text):
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in plain(text))


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_shows_none_either(terminal):
    shown = io.StringIO()
    with Progress(["a\x1b[5mnext"], console=Console(file=shown, force_terminal=terminal, width=80)) as progress:
        progress.phase("a\x1b[6mname", 2)
        progress.advance()
        progress.note("a\x1b[7mnote")
    assert "aname" in shown.getvalue()
    assert "anote" in shown.getvalue()
    assert all(code not in shown.getvalue() for code in ("\x1b[5m", "\x1b[6m", "\x1b[7m"))


def test_only_one_place_prints():
    """What runs are started by; the tables of experiments.benchmark and experiments.parity hold figures alone."""
    files = [*(ROOT / "seal_jax" / "run").glob("*.py"), *(ROOT / "experiments").glob("*.py")]
    printing = {
        file.stem
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "print"
    }
    assert printing - {"parity"} == {"terminal"}
