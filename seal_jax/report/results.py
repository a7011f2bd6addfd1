"""Runs as the pages read them: results.json and self_edits.jsonl as typed records, and what two rows differ in.

What a file lacks, or holds in another form, is the default of its field: a run of another version has a page too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from seal_jax.analysis.statistics import FEWEST, paired_bootstrap

ROUNDING = 1e-9  # shares of a few tasks often differ by exactly nothing: what is left of the sums is no difference
BASE = "base"  # the row of the model as it was
T = TypeVar("T")
Losses = list[float | None]


class Record(msgspec.Struct, frozen=True):
    """What lies in a file, by name."""


class Estimate(Record, frozen=True):
    """A mean and its 95 % interval; None where there is none. Of a difference also which row it is against."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    row: str | None = None

    def between(self, text: Callable[[float | None], str]) -> str:
        """`2.2 % to 47.1 %`; empty without an interval."""
        return "" if self.low is None or self.high is None else f"{text(self.low)} to {text(self.high)}"


class PaperFigure(Record, frozen=True):
    accuracy: float | None = None
    where: str = ""
    differs: list[str] = []


class Row(Record, frozen=True):
    """A stage, or an alternative, with its accuracy."""

    name: str = ""
    label: str = ""
    unit: str = "passage"  # what the interval is over: "passage", "stream" or "task"
    passages: int = 0
    questions: int | None = None
    solved: int | None = None  # of `tried`
    tried: int = 0
    interval: str = ""  # "Wilson", or else the bootstrap's
    accuracy: Estimate = Estimate()
    log_likelihood: Estimate = Estimate()
    versus_previous: Estimate = Estimate()
    versus_base: Estimate = Estimate()
    per_passage: dict[str, float | None] = {}
    problems: dict[str, int] = {}
    paper: PaperFigure | None = None

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def papers(self) -> PaperFigure | None:
        """The paper's figure, where it is of the same data: beside another's it would say nothing."""
        other = self.paper is not None and any(words.startswith("data: ") for words in self.paper.differs)
        return None if other else self.paper

    @property
    def count(self) -> str:
        """`29 of 40`, how many tries solved their task; empty where the row does not count."""
        return f"{self.solved} of {self.tried}" if self.solved is not None and self.tried else ""


class Written(Record, frozen=True):
    """What a writer's self-edits are like (`analysis.diversity.figures`)."""

    label: str = ""
    mean_words: float | None = None
    mean_sequences: float | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None
    distinct_4: float | None = None
    distinct_1_across: float | None = None
    distinct_2_across: float | None = None
    distinct_4_across: float | None = None
    similarity: float | None = None
    copied: float | None = None


class Round(Written, frozen=True):
    round: int | str | None = None
    passages: int | None = None
    self_edits: int | None = None
    kept: int | None = None
    mean_reward: float | None = None
    mean_best_reward: float | None = None
    mean_base_reward: float | None = None
    tokens_written: int | None = None
    tokens_trained: int | None = None
    problems: dict[str, int] = {}
    sft_losses: Losses = []


class Validation(Record, frozen=True):
    reward: Losses = []
    chosen_round: int | None = None
    passages: int = 0


class Part(Record, frozen=True):
    """A section that the experiment adds."""

    title: str = ""
    note: str = ""


class Table(Part, frozen=True):
    columns: list[Any] = []
    rows: list[list[Any]] = []


class Matrix(Part, frozen=True):
    rows: list[str] = []
    columns: list[str] = []
    values: list[Losses] = []


class Trends(Part, frozen=True):
    """Lines over the same few places, each a mean with its interval: of accuracy over the budget, say."""

    across: str = ""  # what the places are
    rows: list[str] = []
    columns: list[str] = []
    values: list[list[Estimate | None]] = []  # a line a row
    unit: str = "%"  # or "points": a difference, with its sign


class Attempt(Record, frozen=True):
    label: str = "Attempt"
    grid: Any = None
    right: bool | None = None


class Puzzle(Record, frozen=True):
    label: str = "Puzzle"
    pairs: list[Any] = []
    input: Any = None
    expected: Any = None
    attempts: list[Attempt] = []


class Grids(Part, frozen=True):
    items: list[Puzzle] = []


class Results(Record, frozen=True):
    name: str = ""
    preset: str = ""
    model: str = ""
    data: str = ""
    seed: int | None = None
    rows: list[Row] = []
    rounds: list[Round] = []
    written: list[Written] = []  # on held-out tasks, before RL and after each round
    validation: Validation = Validation()
    tables: list[Table] = []
    matrices: list[Matrix] = []
    trends: list[Trends] = []
    grids: list[Grids] = []
    ungraded: int = 0
    settings: dict[str, Any] = {}
    compute: dict[str, Any] = {}
    timings: dict[str, float] = {}
    machine: dict[str, Any] = {}
    command: str = ""

    @property
    def identity(self) -> dict[str, str]:
        """Which run of the experiment it is, as far as it says."""
        names = ("preset", "model", "data", "seed")
        return {name: str(value) for name in names if (value := getattr(self, name)) not in ("", None)}

    @property
    def all_settings(self) -> dict[str, Any]:
        """With what changes only the run's cost under "compute"."""
        return self.settings | ({"compute": self.compute} if self.compute else {})

    @property
    def seconds(self) -> float | None:
        """From the first moment to the last: with what lies between the phases."""
        return self.timings.get("total", sum(self.timings.values()) if self.timings else None)

    @property
    def phases(self) -> dict[str, float]:
        return {name: seconds for name, seconds in self.timings.items() if name != "total"}


class Answer(Record, frozen=True):
    question: str = ""
    gold: str = ""
    before: str = ""
    after: str = ""
    before_correct: bool | None = None
    after_correct: bool | None = None
    before_cut: bool = False  # ended at the limit of tokens
    after_cut: bool = False


class SelfEdit(Record, frozen=True):
    stage: str = "unknown stage"
    passage: str = ""
    title: str = ""
    context: str = ""
    sample: int | None = None
    completion: str = ""
    problem: str | None = None
    kept: bool = False
    sequences: list[str] = []
    credit: list[float | None] = []  # of the first of the sequences, nats a token
    reward: float | None = None
    base_reward: float | None = None
    gain: float | None = None
    log_likelihood: float | None = None
    base_log_likelihood: float | None = None
    rewards_by_seed: list[float] = []
    losses: Losses = []
    answers: list[Answer] = []


class Difference(NamedTuple):
    """A row against another, over the passages that both have."""

    estimate: Estimate  # all None where they have none in common
    passages: int
    remark: str = ""  # what the reader must know of how it was paired

    @property
    def verdict(self) -> str:
        """ "gain", "loss", "unclear" (the interval spans zero), "unknown" (none, or over fewer than `FEWEST`)."""
        low, high = self.estimate.low, self.estimate.high
        if low is None or high is None or self.passages < FEWEST:
            return "unknown"
        return "gain" if low > ROUNDING else "loss" if high < -ROUNDING else "unclear"


def difference(before: Row, after: Row, *, seed: int = 0) -> Difference:
    """`after` minus `before`, of one run or of two: as the run recorded it, or else paired by passage here."""
    for versus, row in ((after.versus_previous, None), (after.versus_base, BASE)):
        if versus != Estimate() and (versus.row or row) == before.name:
            return Difference(versus, min(row.passages or len(row.per_passage) for row in (before, after)))
    shared = [passage for passage in before.per_passage if passage in after.per_passage]
    if not before.per_passage or not after.per_passage:
        return Difference(Estimate(), 0, f"no figures by {after.unit}")
    if not shared:
        return Difference(Estimate(), 0, f"not the same {after.unit}s")
    values = [[row.per_passage[passage] for passage in shared] for row in (before, after)]
    change = paired_bootstrap(*values, seed=seed)
    remark = f"over the {len(shared)} {after.unit}s in both"
    whole = len(shared) == len(before.per_passage) == len(after.per_passage)
    return Difference(msgspec.convert(change.as_json(), Estimate), change.passages, "" if whole else remark)


# Runs


class RowKey(NamedTuple):
    """What makes rows of two runs the same row: their name, and what their intervals are over."""

    name: str
    unit: str


class Run(NamedTuple):
    """A finished run and what it is called beside others."""

    label: str
    folder: Path
    results: Results

    @property
    def rows(self) -> dict[RowKey, Row]:
        """By name; of two rows of one name the first."""
        return {RowKey(row.name, row.unit): row for row in reversed(self.results.rows)}


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Runs by their folder, or by the results.json in it; each is called by its path from the folder they share.

    Raises:
        FileNotFoundError: no results.json there.
        ValueError: no run given, one given twice, or a file that is no results.json.
    """
    if not paths:
        raise ValueError("no run was given: give at least one run folder, one that holds a results.json")
    files = [Path(path) / "results.json" if Path(path).is_dir() else Path(path) for path in paths]
    results = [read_results(file) for file in files]
    whole = [file.resolve() for file in files]
    for number, file in enumerate(files):
        if whole[number] in whole[:number]:
            raise ValueError(f"{file} was given twice: give each run once")
    places = [file.parent if file.name == "results.json" else file for file in whole]
    shared = os.path.commonpath([place.parent for place in places])
    return [
        Run(str(place.relative_to(shared)), file.parent, found)
        for place, file, found in zip(places, whole, results, strict=True)
    ]


# Files


def read_results(path: Path) -> Results:
    """The results.json at `path`. Raises FileNotFoundError without one, and ValueError for what is no results.json."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there, so there is nothing to report: a run writes it after its first evaluated stage. "
            "Give the folder of a run, the one that holds its results.json."
        )
    mend = "Run the experiment again in this folder to rewrite it."
    return _read(path.read_bytes(), Results, f"{path}", "an object with rows, rounds and settings", mend)


def read_self_edits(path: Path) -> list[SelfEdit]:
    """All lines of the file; none if it is missing. A last line without its end was cut off by a kill: left out."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [
        _read(line, SelfEdit, f"{path}, line {number},", "one self-edit, an object", "Remove that line to have a page.")
        for number, line in enumerate(lines, 1)
    ]


def _read(content: bytes, kind: type[T], where: str, form: str, mend: str) -> T:
    """JSON as a record; NaN and the infinities as null."""
    try:
        value = json.loads(content.decode("utf-8"), parse_float=_finite, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}). {mend}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds a {type(value).__name__}; expected {form}.")
    record: T = _fit(value, kind)
    return record


def _finite(digits: str) -> float | None:
    return number if math.isfinite(number := float(digits)) else None


def _fit(value: Any, kind: Any) -> Any:
    """A value as a `kind`: a field that does not fit is its default, an element of a list left out; else UNSET."""
    with contextlib.suppress(msgspec.ValidationError):
        return msgspec.convert(value, kind)
    inner = typing.get_args(kind)
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, Record):
        fields = ((field.name, _fit(value.get(field.name), field.type)) for field in msgspec.structs.fields(kind))
        return kind(**{name: x for name, x in fields if x is not msgspec.UNSET})
    if isinstance(value, list) and typing.get_origin(kind) is list:
        return [x for item in value if (x := _fit(item, inner[0])) is not msgspec.UNSET]
    if isinstance(value, dict) and typing.get_origin(kind) is dict:
        return {name: x for name, item in value.items() if (x := _fit(item, inner[1])) is not msgspec.UNSET}
    if types.NoneType in inner:
        return next((x for option in inner if (x := _fit(value, option)) is not msgspec.UNSET), None)
    return msgspec.UNSET
