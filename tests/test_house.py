"""Imports point down: from a room to lower ones, with no circle among files, as docs/architecture.svg draws it."""

from __future__ import annotations

import pytest

from docs import architecture
from docs.architecture import Import


@pytest.fixture(scope="module")
def edges() -> set[Import]:
    return architecture.imports()


def test_imports_point_down(edges: set[Import]):
    wrong = {
        f"{edge.importer} -> {edge.imported}"
        for edge in edges
        if not architecture.is_allowed(architecture.room(edge.importer), architecture.room(edge.imported))
    }
    assert sorted(wrong) == []


def test_no_file_imports_itself_by_way_of_others(edges: set[Import]):
    assert architecture.circles(edges) == []


def test_every_room_has_a_level_and_a_place():
    rooms = {architecture.room(module) for module in architecture.files()}
    assert rooms == {name for names in architecture.LEVELS for name in names} == set(architecture.PLACES)
    assert len(architecture.LEVELS) <= 7
    assert len(rooms - {"types"}) <= 10, "rooms on the ground that is types"


def test_imports_are_read_wherever_they_are(tmp_path, monkeypatch):
    """In a function, relative, through a package; and not those for the type checker alone."""
    sources = {
        "seal_jax/__init__.py": "",
        "seal_jax/types.py": "",
        "seal_jax/nn/__init__.py": "X = 1",
        "seal_jax/nn/lora.py": "from seal_jax import types\nfrom seal_jax.nn import X",
        "seal_jax/run/__init__.py": "",
        "seal_jax/run/session.py": "def f():\n    import seal_jax.nn.lora",
        "experiments/__init__.py": "",
        "experiments/squad.py": "if TYPE_CHECKING:\n    from seal_jax import types\nelse:\n    from . import arc",
        "experiments/arc.py": "from .squad import run",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
    monkeypatch.setattr(architecture, "ROOT", tmp_path)
    found = architecture.imports()
    assert found == {
        Import("seal_jax.nn.lora", "seal_jax.types"),
        Import("seal_jax.nn.lora", "seal_jax.nn.__init__"),
        Import("seal_jax.run.session", "seal_jax.nn.lora"),
        Import("experiments.squad", "experiments.arc"),
        Import("experiments.arc", "experiments.squad"),
    }
    assert architecture.circles(found) == [["experiments.arc", "experiments.squad"]]


def test_the_picture_is_what_its_script_draws(edges: set[Import]):
    drawn = architecture.PICTURE.read_text(encoding="utf-8")
    assert drawn == architecture.drawn(edges), "out of date: make architecture"
