"""What the paper reports (SEAL, arXiv 2506.10943), beside a run of ours: paper.toml has its figures and settings.

Every figure is one that the paper prints, with the setting it was made under. `beside` puts it next to a row of a run
and names in a few words each setting that differs. A setting that a run does not have, or that the paper does not give,
is not compared.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import msgspec

from seal_jax.types import PROJECTIONS

Json = dict[str, Any]
Method = Literal["lora", "full"]
Settings = dict[str, tuple[str, Any]]  # dotted name -> what a person calls it, the paper's value


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures of the paper that were made under one setting."""

    where: str  # in the paper
    experiments: list[str]  # of ours, whose rows they stand beside
    accuracy: dict[str, float]  # percent, by row
    model: str = "Qwen2.5-7B"
    data: str = "SQuAD"
    called: tuple[str, ...] = ("squad", "tfds:squad")  # that data, in a run's settings
    judge: str = "GPT-4.1"
    tested: int = 200  # how many `unit` are asked about; 0: the paper does not say
    unit: str = "passages"
    n: int = 1  # passages that one adapter learns
    method: Method = "lora"
    prompt: str = "implications"  # that the self-edits were written with
    settings: str = "passages"  # which of SETTINGS it is compared in


_DATA = tomllib.loads((Path(__file__).parent / "paper.toml").read_text(encoding="utf-8"))
TABLES = msgspec.convert(_DATA["tables"], list[Table])
SETTINGS = msgspec.convert(_DATA["settings"], dict[str, dict[str, Settings]])

# Names that rows of our experiments have, where they are not the paper's own.
ALIASES = {"self_edits": "self_edits_round_0"}
RECORDED = {  # the files of recorded self-edits that the reference publishes, as evaluate_edits calls them
    "edits of base": "self_edits_round_0",
    "edits of iter2": "self_edits_round_2",
    "edits of gpt4_1": "external",
}


class Figure(NamedTuple):
    """A figure of the paper."""

    row: str  # "base", "passage", "self_edits_round_0", ...
    table: Table

    @property
    def accuracy(self) -> float:
        return round(self.table.accuracy[self.row] / 100, 3)

    @property
    def where(self) -> str:
        return self.table.where

    @property
    def rounds(self) -> int | None:
        """Rounds of RL before the self-edits of this row; None where the model wrote none."""
        number = self.row.removeprefix("self_edits_round_")
        return int(number) if number.isdigit() else 0 if number.startswith("after_") else None


def paper_row(
    experiment: str,
    row: str,
    *,
    prompt: str = "implications",
    model: str = "",
    n: int = 1,
    method: Method = "lora",
) -> Figure | None:
    """The paper's figure for a row of an experiment; None where it has no such row.

    Args:
      experiment: "squad", "evaluate_edits", "cpt", "continual" or "arc".
      row: "base", "passage", "self_edits_round_0" to "_2", "external"; "entigraph_pairs" and "entigraph_triples";
        continual: "base", "after_own_edit", "after_all_edits"; arc: "base", "fixed", "self_edits_round_0" and "_1".
      prompt: of the self-edits. One that the paper has no figures for is answered with "implications", its default.
      model: a Qwen2.5-3B is answered with the figures of that size, anything else with Qwen2.5-7B's.
      n, method: cpt only. A pair that the paper does not have is answered with its nearest: the same method before
        the same number of passages, then the nearest number by ratio.
    """
    row = ALIASES.get(row, row)
    if experiment == "evaluate_edits" and row in RECORDED:
        row, prompt = RECORDED[row], "implications"

    def distance(table: Table) -> tuple[bool, bool, bool, float]:
        other = table.model.lower() != _model(model).lower()
        return other, table.prompt != prompt, table.method != method, abs(math.log(table.n / max(n, 1)))

    having = [table for table in TABLES if experiment in table.experiments and row in table.accuracy]
    return Figure(row, min(having, key=distance)) if having else None


def beside(result_rows: Sequence[Json], settings: Mapping[str, Any], experiment: str) -> list[Json]:
    """The rows of results.json, each with "paper": {"accuracy", "where", "differs": [...]}, or None without a figure.

    Args:
      result_rows: as results.json has them; none is changed.
      settings: of the run, `as_json(config)`. `model`, `data`, `prompt`, `style`, `writer`, `grader.kind`,
        `grader.model`, and what SETTINGS names; cpt: `n`, `method`.
      experiment: "squad", "evaluate_edits", "cpt", "continual", "arc"; others have no figures.
    """
    flat = _flat(settings)
    prompt, model = str(flat.get("prompt", "implications")), str(flat.get("model", ""))
    full = experiment == "cpt" and str(flat.get("method")).startswith("full")
    method: Method = "full" if full else "lora"
    rows = []
    for row in result_rows:
        name, n = str(row.get("name")), int(flat.get("n") or row.get("passages") or 1)
        figure = paper_row(experiment, name, prompt=prompt, model=model, n=n, method=method)
        found: Json | None = None
        if figure:
            differs = [*_asked(figure.table, row, flat, experiment), *_learnt(figure, flat, experiment, method)]
            found = {"accuracy": figure.accuracy, "where": figure.where, "differs": differs}
        rows.append(row | {"paper": found})
    return rows


def _asked(table: Table, row: Json, flat: Json, experiment: str) -> Iterator[str]:
    """Model, data, judge, how many: true of every row."""
    if "model" in flat and _model(flat["model"]).lower() != table.model.lower():
        yield f"model: {table.model} there, {_model(flat['model'])} here"
    data = flat.get("held_out_data") or flat.get("data")
    if data is not None and str(data) not in table.called:
        here = "the files' passages" if data == "recorded" else _model(data)
        yield f"data: {table.data} there, {here} here"
    kind, model = str(flat.get("grader.kind", "lexical")), flat.get("grader.model")
    judge = kind if kind == "lexical" or not model else _model(model)
    if table.judge and (not judge.lower().startswith("gpt-4.1") or "mini" in judge or "nano" in judge):
        yield f"judge: {table.judge} there, {judge} here"
    if table.judge and flat.get("style") == "chat":
        yield "prompts: raw text there, chat here"
    count = row.get("passages")
    if experiment == "cpt":
        count = flat.get("n") or count
        if count not in (None, table.n):
            yield f"n = {table.n} there, {count} here"
    elif table.tested and count not in (None, table.tested):
        yield f"{table.tested} {table.unit} there, {count} here"
    yield from _compare(SETTINGS[table.settings]["asked"], flat)


def _learnt(figure: Figure, flat: Json, experiment: str, method: Method) -> Iterator[str]:
    """How the model was trained, and on what: more of it the further a row is from the base."""
    table, settings = figure.table, SETTINGS[figure.table.settings]
    if figure.row == "base":
        return
    if table.n == 1:
        yield from _compare(settings["learnt"], flat)
    else:  # the paper does not say how many steps these took
        if method != table.method:
            words = {"lora": "LoRA", "full": "full fine-tuning"}
            yield f"{words[table.method]} there, {words[method]} here"
        if experiment != "cpt":
            yield f"{table.n} passages learnt at once there, one here"
    if figure.rounds is None:
        return
    if experiment == "evaluate_edits":  # the text was there before the run: its prompt and sampling are not the run's
        yield from _compare({"max_sequences": settings["written"]["max_sequences"]}, flat)
        return
    if table.prompt and "prompt" in flat and (prompt := _model(flat["prompt"]).removesuffix(".toml")) != table.prompt:
        yield f"prompt: {table.prompt} there, {prompt} here"
    if flat.get("writer"):
        yield f"written by the model itself there, by {_model(flat['writer'])} here"
    yield from _compare(settings["written"], flat)
    yield from _compare(settings["rounds"], flat) if figure.rounds else ()


def _compare(expected: Settings, flat: Json) -> Iterator[str]:
    for name, (words, there) in expected.items():
        if flat.get(name) is not None and _plain(flat[name]) != _plain(there):
            yield f"{words} {_text(there)} there, {_text(flat[name])} here"


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        names = [str(name).removesuffix("_proj") for name in value]
        return "all seven projections" if len(names) == len(PROJECTIONS) else ", ".join(names)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def _model(name: Any) -> str:
    """Without the folder or the owner it lies under."""
    return PurePath(str(name)).name or str(name)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Json:
    pairs: Json = {}
    for name, value in settings.items():
        pairs |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return pairs
