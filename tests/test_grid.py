"""A search as data: what people write becomes typed cells, and what they write wrongly becomes a sentence."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.ablations import GRIDS
from seal_jax.analysis import grid
from seal_jax.analysis.grid import (
    Span,
    cells,
    fields,
    label,
    options,
    parse,
    read_grid,
    read_table,
    text_of,
    with_values,
)
from seal_jax.domains.records import load_toml
from seal_jax.run.cells import BARRED, Settings


@dataclasses.dataclass(frozen=True)
class Inner:
    rank: int = 8
    rate: float = 1e-3
    kind: Literal["linear", "cosine"] = "linear"
    targets: tuple[str, ...] = ("q",)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected at least 1")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    name: str = "x"
    ties: bool = False
    most: int | None = None
    speed: int = 1


KNOWN = fields(Outer)
KINDS = {"inner.rank": int, "inner.rate": float, "name": str, "ties": bool}


def read(*entries: str):
    return read_grid(entries, KNOWN, barred={"speed": "it only makes it faster"})


def test_fields_are_named_by_their_path_and_have_the_declared_types():
    assert list(KNOWN) == ["inner.rank", "inner.rate", "inner.kind", "inner.targets", "name", "ties", "most", "speed"]
    assert KINDS.items() <= KNOWN.items()
    every = fields(Settings)
    assert every["inner.learning_rate"] is float
    assert every["inner.optimiser.dropout"] is float
    assert every["inner.projections"] == tuple[str, ...]
    assert {"prompt", "sampling.temperature", "grader.kind", "model"} <= every.keys()


def test_values_have_the_fields_type():
    axes = read("inner.rate=1e-4,3", "inner.rank=8,32", "inner.kind=cosine", "inner.targets=q+v,q", "ties=true,false",
                "most=none,4", "name=a b,1")  # fmt: skip
    assert axes == {
        "inner.rate": [1e-4, 3.0],
        "inner.rank": [8, 32],
        "inner.kind": ["cosine"],
        "inner.targets": [("q", "v"), ("q",)],
        "ties": [True, False],
        "most": [None, 4],
        "name": ["a b", "1"],
    }
    assert [type(value) for value in axes["inner.rate"]] == [float, float]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("inner.rnak=8", r"there is no field 'inner.rnak'; did you mean inner.rank\?"),
        ("rank=8", r"there is no field 'rank'; did you mean inner.rank\?"),
        ("zzz=8", r"there is no field 'zzz'; there are inner.rank, inner.rate"),
        ("inner.rank=eight", r"inner.rank: 'eight' is not what the field takes: int"),
        ("inner.rank=8.5", r"'8.5' is not what the field takes: int"),
        ("inner.rate=nan", r"'nan' is not what the field takes: float"),
        ("inner.rate=none", r"'none' is not what the field takes: float"),
        ("inner.kind=cubic", r"'cubic' is not what the field takes: Literal\['linear', 'cosine'\]"),
        ("ties=maybe", r"'maybe' is not what the field takes: bool"),
        ("most=few", r"'few' is not what the field takes: int \| None"),
        ("inner.rank=", r"inner.rank: no values"),
        ("inner.rank=,,", r"inner.rank: no values"),
        ("inner.rank=8,8", r"inner.rank: 8 is given twice"),
        ("inner.rank", r"expected FIELD=VALUE,VALUE such as"),
        ("inner.rank=9..4", r"the span 9..4 is empty"),
        ("inner.rank=4..many", r"'many' is not what the field takes"),
        ("speed=1,2", r"speed cannot be searched: it only makes it faster"),
        ("inner=1", r"there is no field 'inner'"),
    ],
)
def test_what_is_no_grid_is_explained(entry, message):
    with pytest.raises(ValueError, match=message):
        read(entry)


def test_a_field_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"inner.rank is given twice"):
        read("inner.rank=8", "inner.rank=4")


def test_a_grid_is_every_combination_the_last_field_fastest():
    found = cells(read("inner.rank=8,32", "name=a,b,c"))
    assert [tuple(values.values()) for values in found] == [
        (8, "a"), (8, "b"), (8, "c"), (32, "a"), (32, "b"), (32, "c"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "draw", "message"),
    [
        ((), None, r"the grid is empty"),
        (("inner.rank=2..9",), None, r"inner.rank is a span: say how many cells"),
        (("inner.rank=8,9",), 3, r"the grid has only 2 cells"),
        (("inner.rank=8,9",), 0, r"expected at least 1"),
        (("inner.rank=8..9",), 3, r"only 2 different cells"),
        (("inner.rank=" + ",".join(map(str, range(1, 200))), "most=" + ",".join(map(str, range(100)))), None,
         r"the grid has 19,900 cells"),
    ],
)  # fmt: skip
def test_grids_that_cannot_be_run_are_explained(entries, draw, message):
    with pytest.raises(ValueError, match=message):
        cells(read(*entries), draw=draw)


def test_a_random_search_draws_different_cells_from_the_seed():
    axes = read("inner.rank=2..64", "inner.rate=1e-5..1e-1", "name=a,b")
    found = cells(axes, draw=50, seed=1)
    assert found == cells(axes, draw=50, seed=1)
    assert found != cells(axes, draw=50, seed=2)
    assert len({label(values) for values in found}) == 50
    assert all(type(values["inner.rank"]) is int and 2 <= values["inner.rank"] <= 64 for values in found)
    assert all(1e-5 <= values["inner.rate"] <= 1e-1 for values in found)
    # Evenly in the logarithm: half of them below the geometric middle.
    assert 12 <= sum(values["inner.rate"] < 1e-3 for values in found) <= 38
    whole = cells(read("inner.rank=1,2,3", "name=a,b"), draw=6)
    assert len({label(values) for values in whole}) == 6


@given(st.floats(-5, 5), st.floats(1e-6, 5), st.integers())
def test_a_span_holds_what_it_draws(low, size, seed):
    import random

    span = Span(low, low + size)
    if span.low < span.high:
        assert span.low <= span.draw(random.Random(seed)) <= span.high


@given(st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_value_is_read_as_it_is_written(value):
    written = text_of(value)
    found = parse(written, type(value))
    assert math.isclose(found, value, rel_tol=1e-5) if type(value) is float else found == value


def test_a_cell_puts_its_values_in_their_places_only():
    base = Outer(name="y", inner=Inner(kind="cosine"))
    made = with_values(base, {"inner.rank": 2, "inner.targets": ("v",), "ties": True})
    assert made == Outer(inner=Inner(2, 1e-3, "cosine", ("v",)), name="y", ties=True)
    assert with_values(base, {}) == base
    with pytest.raises(ValueError, match=r"cell rank=0, name=z: rank is 0; expected at least 1"):
        with_values(base, {"inner.rank": 0, "name": "z"})


def test_labels_are_short_unless_two_would_be_alike():
    assert label({"inner.rank": 8, "inner.rate": 1e-4, "inner.targets": ("q", "v")}) == (
        "rank=8, rate=0.0001, targets=q+v"
    )
    assert label({"inner.rank": 8, "outer.rank": 4}) == "inner.rank=8, outer.rank=4"


def test_a_cell_as_options():
    values = {"inner.learning_rate": 1.25e-3, "inner.targets": ("q", "v"), "outer.break_ties": False, "most": None}
    assert options(values) == "--inner.learning-rate 0.00125 --inner.targets q v --outer.no-break-ties --most None"


def file_of(folder: Path, text: str) -> Path:
    path = folder / "search.toml"
    path.write_text(text)
    return path


def read_file(path: Path, known, **more):
    return read_table(load_toml(path.read_bytes(), str(path), grid.FORM), path, known, **more)


def test_a_file_says_the_same_as_a_command(tmp_path):
    path = file_of(
        tmp_path,
        'title = "T"\nrandom = 3\n[grid]\ninner.rank = [8, 32]\ninner.rate = "1e-5..1e-2"\n'
        'inner.targets = [["q", "v"], ["q"]]\nties = [true, false]\nmost = ["none", 4]\nname = ["a,b"]\n',
    )
    found = read_file(path, KNOWN)
    assert (found.title, found.random) == ("T", 3)
    assert found.axes == {
        **read("inner.rank=8,32", "inner.rate=1e-5..1e-2", "inner.targets=q+v,q", "ties=true,false", "most=none,4"),
        "name": ["a,b"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid", r"search.toml: not TOML: Expected .* table declaration .*; expected \[grid\]"),
        ("title = 'x'", r"missing required field `grid`; expected \[grid\]"),
        ("[grid]", r"length >= 1 - at `\$.grid`; expected \[grid\]"),
        ("[grid]\ninner.rank = 8", r"inner.rank is 8; expected a list of values"),
        ("[grid]\ninner.rank = []", r"inner.rank: no values"),
        ("[grid]\ninner.rank = ['8']", r"inner.rank: '8' is not what the field takes: int"),
        ("[grid]\ninner.rank = [true]", r"True is not what the field takes: int"),
        ("[grid]\ninner.rank = [8.0]", r"8.0 is not what the field takes: int"),
        ("[grid]\nname = [1]", r"1 is not what the field takes: str"),
        ("[grid]\ninner.kind = ['cubic']", r"'cubic' is not what the field takes: Literal\['linear', 'cosine'\]"),
        ("[grid]\ninner.targets = ['q']", r"'q' is not what the field takes"),
        ("[grid]\ninner.rnak = [8]", r"did you mean inner.rank\?"),
        ("random = 0\n[grid]\ninner.rank = [8]", r"Expected `int` >= 1 - at `\$.random`"),
        ("gird = 1\n[grid]\ninner.rank = [8]", r"unknown field `gird`"),
    ],
)
def test_what_is_no_search_file_is_explained(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_file(file_of(tmp_path, text), KNOWN)


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_named_ablations_can_be_run(path):
    found = read_file(path, fields(Settings), barred=BARRED)
    base = Settings("demo")
    assert len({repr(with_values(base, values)) for values in grid.cells(found.axes)}) > 1


def test_the_papers_search_spans_its_five_fields_and_what_it_settled_on():
    axes = read_file(GRIDS / "paper.toml", fields(Settings)).axes
    settled = {"inner.rank": 32, "inner.alpha": 64.0, "inner.learning_rate": 1e-3, "inner.epochs": 10}
    settled["inner.batch_size"] = 1
    assert axes.keys() == settled.keys()
    assert settled in cells(axes)
