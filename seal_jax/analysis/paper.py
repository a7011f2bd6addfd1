"""What the paper reports (SEAL, arXiv 2506.10943; paper.toml), beside a run of ours.

Every figure is one that the paper prints, with the setting it was made under. `beside` puts it next to a row of a run
and names in a few words each setting that differs. A setting that a run does not have, or that the paper does not give,
is not compared.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

from seal_jax.types import PROJECTIONS

Json = dict[str, Any]
Method = Literal["lora", "full"]


@dataclasses.dataclass(frozen=True)
class Paper:
    """A figure of the paper and the setting behind it. None where the paper does not say."""

    accuracy: float  # fraction of questions answered right, no passage in view
    where: str  # in the paper
    row: str  # "base", "passage", "self_edits_round_0", ...
    experiment: str = "squad"
    model: str = "Qwen2.5-7B"
    data: str = "SQuAD"
    judge: str = "GPT-4.1"
    tested: int | None = 200  # passages, or streams, whose questions are asked
    n: int = 1  # passages that one adapter learns
    method: Method = "lora"
    prompt: str | None = None  # that the self-edits were written with; None: no self-edits, or another's
    rounds: int = 0  # of ReST-EM before


_DATA = tomllib.loads((Path(__file__).parent / "paper.toml").read_text(encoding="utf-8"))
SINGLE: tuple[int, Method] = (1, "lora")
MANY: tuple[int, Method] = (200, "full")
TABLE_2: dict[tuple[int, Method], dict[str, float]] = {(t["n"], t["method"]): t["accuracy"] for t in _DATA["table_2"]}
PROMPTS, SCALE_3B, ENTIGRAPH = _DATA["prompts"], _DATA["scale_3b"], _DATA["entigraph"]
CONTINUAL, STREAMS, STREAM_LENGTH = (_DATA["continual"][name] for name in ("accuracy", "streams", "stream_length"))
ARC, ARC_MODEL, ARC_TASKS = (_DATA["arc"][name] for name in ("accuracy", "model", "tasks"))
ASKING, INNER, WRITING, OUTER, ARC_SETTINGS, ARC_WRITING, ARC_OUTER = (
    {name: (words, value) for name, (words, value) in _DATA["settings"][group].items()}
    for group in ("asking", "inner", "writing", "outer", "arc_settings", "arc_writing", "arc_outer")
)
CPT_COMPLETIONS = ("completions a passage", 5)
SQUAD = ("squad", "tfds:squad")  # what --data calls the paper's passages

# Names that rows of our experiments have, where they are not the paper's own.
ALIASES = {"self_edits": "self_edits_round_0"}
RECORDED = {  # the files of recorded self-edits that the reference publishes, as evaluate_edits calls them
    "edits of base": "self_edits_round_0",
    "edits of iter2": "self_edits_round_2",
    "edits of gpt4_1": "external",
}


def paper_row(
    experiment: str,
    row: str,
    *,
    prompt: str = "implications",
    model: str = "",
    n: int = 1,
    method: Method = "lora",
) -> Paper | None:
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
    if experiment == "continual":
        if row not in CONTINUAL:
            return None
        where = f"continual self-edits, {STREAMS} streams of {STREAM_LENGTH}"
        prompt_used = None if row == "base" else "implications"
        return Paper(_fraction(CONTINUAL[row]), where, row, experiment, tested=STREAMS, prompt=prompt_used)
    if experiment == "arc" and row in ARC:
        where = "few-shot reasoning (section 4.2), filtered tasks"
        return Paper(_fraction(ARC[row]), where, row, experiment, model=ARC_MODEL, data="ARC-AGI-1", tested=ARC_TASKS)
    if experiment not in ("squad", "evaluate_edits", "cpt"):
        return None
    if row in ENTIGRAPH:
        return Paper(
            _fraction(ENTIGRAPH[row]), f"EntiGraph, {_column(*MANY)}", row, "cpt", n=MANY[0], method="full", prompt=None
        )
    if experiment == "cpt":
        n, method = min(TABLE_2.keys() - {SINGLE}, key=lambda pair: (pair[1] != method, _ratio(pair[0], n)))
        if row not in TABLE_2[n, method]:
            return None
        written = "implications" if _rounds(row) is not None else None
        where = f"table 2, {_column(n, method)}"
        percent = TABLE_2[n, method][row]
        return Paper(
            _fraction(percent),
            where,
            row,
            "cpt",
            tested=n,
            n=n,
            method=method,
            prompt=written,
            rounds=_rounds(row) or 0,
        )
    return _one_at_a_time(row, prompt, model)


def beside(
    result_rows: Sequence[Json], settings: Mapping[str, Any], experiment: str, names: Mapping[str, str] | None = None
) -> list[Json]:
    """The rows of results.json, each with "paper": {"accuracy", "where", "differs": [...]}, or None without a figure.

    Args:
      result_rows: as results.json has them; none is changed.
      settings: of the run, `as_json(config)`. `model`, `data`, `prompt`, `style`, `writer`, `grader.kind`,
        `grader.model`, and what ASKING, INNER, WRITING and OUTER name; cpt: `n`, `method`, `completions`; continual:
        `stream_length`.
      experiment: "squad", "evaluate_edits", "cpt", "continual", "arc"; others have no figures.
      names: row's name -> the paper's, where they differ: {"iter2": "self_edits_round_2"}. A name that is mapped to ""
        has no figure.
    """
    flat = _flat(settings)
    chosen: dict[str, Any] = {"prompt": str(flat.get("prompt", "implications")), "model": str(flat.get("model", ""))}
    if experiment == "cpt":
        chosen["method"] = "full" if str(flat.get("method", "lora")).startswith("full") else "lora"
    rows = []
    for row in result_rows:
        name = str(row.get("name"))
        learnt = int(flat.get("n") or row.get("passages") or 1)
        figure = paper_row(experiment, (names or {}).get(name, name), n=learnt, **chosen)
        rows.append(row | {"paper": figure and _beside(figure, row, flat, experiment)})
    return rows


def _one_at_a_time(row: str, prompt: str, model: str) -> Paper | None:
    """A self-edit learns one passage, with an adapter of its own."""
    rounds = _rounds(row)
    if _model(model).lower() == "qwen2.5-3b" and row in SCALE_3B:
        written = "implications" if rounds is not None else None
        where = "model scale, Qwen2.5-3B"
        return Paper(
            _fraction(SCALE_3B[row]), where, row, model="Qwen2.5-3B", tested=None, prompt=written, rounds=rounds or 0
        )
    if rounds is None:
        percent = TABLE_2[SINGLE].get(row)
        return None if percent is None else Paper(_fraction(percent), f"table 2, {_column(*SINGLE)}", row)
    if rounds >= len(PROMPTS["implications"]):
        return None
    prompt = prompt if prompt in PROMPTS else "implications"
    in_table = prompt == "implications" and row in TABLE_2[SINGLE]
    where = f"table 2, {_column(*SINGLE)}" if in_table else f"prompt variants, {prompt}"
    return Paper(_fraction(PROMPTS[prompt][rounds]), where, row, prompt=prompt, rounds=rounds)


def _rounds(row: str) -> int | None:
    """Rounds of RL before the self-edits of this row; None where the model wrote none."""
    number = row.removeprefix("self_edits_round_")
    return int(number) if number != row and number.isdigit() else None


def _column(n: int, method: Method) -> str:
    return f"n = {n}, {'LoRA' if method == 'lora' else 'full fine-tuning'}"


def _fraction(percent: float) -> float:
    return round(percent / 100, 3)


def _ratio(a: int, b: int) -> float:
    return abs(math.log(a / max(b, 1)))


# What differs


def _beside(figure: Paper, row: Json, flat: Mapping[str, Any], experiment: str) -> Json:
    if experiment == "arc":
        return {"accuracy": figure.accuracy, "where": figure.where, "differs": _arc_differs(figure, row, flat)}
    differs = [*_what_is_asked(figure, row, flat, experiment), *_what_is_learnt(figure, flat, experiment)]
    return {"accuracy": figure.accuracy, "where": figure.where, "differs": differs}


def _what_is_asked(figure: Paper, row: Json, flat: Mapping[str, Any], experiment: str) -> list[str]:
    """Model, data, judge, how many: true of every row."""
    differs: list[str] = []
    if "model" in flat and _model(flat["model"]).lower() != figure.model.lower():
        differs.append(f"model: {figure.model} there, {_model(flat['model'])} here")
    data = flat.get("held_out_data") or flat.get("data")
    if data is not None and str(data) not in SQUAD:
        here = "the files' passages" if data == "recorded" else _model(data)
        differs.append(f"data: {figure.data} there, {here} here")
    judge = _judge(flat)
    if not judge.lower().startswith("gpt-4.1") or "mini" in judge or "nano" in judge:
        differs.append(f"judge: {figure.judge} there, {judge} here")
    if flat.get("style") == "chat":
        differs.append("prompts: raw text there, chat here")
    count = row.get("passages")
    if experiment == "cpt":
        count = flat.get("n") or count
        if count is not None and count != figure.n:
            differs.append(f"n = {figure.n} there, {count} here")
    elif count is not None and figure.tested is not None and count != figure.tested:
        streams = experiment == "continual"
        differs.append(f"{figure.tested} {'streams' if streams else 'passages'} there, {count} here")
    length = flat.get("stream_length")
    if experiment == "continual" and length is not None and length != STREAM_LENGTH:
        differs.append(f"streams of {STREAM_LENGTH} there, of {length} here")
    return differs + _compare(ASKING, flat)


def _arc_differs(figure: Paper, row: Json, flat: Mapping[str, Any]) -> list[str]:
    """Few-shot reasoning: the model, the tasks, how they were asked, trained on, and what was learned before."""
    differs: list[str] = []
    if _model(flat.get("model", "")).lower() != figure.model.lower():
        differs.append(f"model: {figure.model} there, {_model(flat.get('model', ''))} here")
    if flat.get("data") != "arc-agi-1":
        differs.append(f"data: {figure.data} there, {_model(flat.get('data', ''))} here")
    if row.get("passages") not in (None, figure.tested):
        differs.append(f"{figure.tested} tasks there, {row['passages']} here")
    settings = {name: value for name, value in ARC_SETTINGS.items() if name.startswith("inference.")}
    if figure.row != "base":
        settings = ARC_SETTINGS
    differs += _compare(settings, flat)
    if _rounds(figure.row) is not None:
        differs += _compare(ARC_WRITING, flat)
    return differs + (_compare(ARC_OUTER, flat) if _rounds(figure.row) else [])


def _what_is_learnt(figure: Paper, flat: Mapping[str, Any], experiment: str) -> list[str]:
    """How the model was trained, and on what: more of it the further a row is from the base."""
    if figure.row == "base":
        return []
    differs: list[str] = []
    if figure.experiment == "cpt":  # the paper does not say how many steps these took
        method: Method = "full" if experiment == "cpt" and str(flat.get("method")).startswith("full") else "lora"
        if method != figure.method:
            words: dict[Method, str] = {"lora": "LoRA", "full": "full fine-tuning"}
            differs.append(f"{words[figure.method]} there, {words[method]} here")
        if experiment != "cpt":
            differs.append(f"{figure.n} passages learnt at once there, one here")
    else:
        differs += _compare(INNER, flat)
    if figure.prompt is None:
        return differs
    if experiment == "evaluate_edits":  # the text was there before the run: its prompt and sampling are not the run's
        return differs + _compare({"max_sequences": WRITING["max_sequences"]}, flat)
    if "prompt" in flat and _prompt(flat["prompt"]) != figure.prompt:
        differs.append(f"prompt: {figure.prompt} there, {_prompt(flat['prompt'])} here")
    if flat.get("writer"):
        differs.append(f"written by the model itself there, by {_model(flat['writer'])} here")
    differs += _compare(WRITING, flat)
    if experiment == "cpt":
        differs += _compare({"completions": CPT_COMPLETIONS}, flat)
    return differs + (_compare(OUTER, flat) if figure.rounds else [])


def _compare(expected: Mapping[str, tuple[str, Any]], flat: Mapping[str, Any]) -> list[str]:
    return [
        f"{words} {_text(there)} there, {_text(flat[name])} here"
        for name, (words, there) in expected.items()
        if name in flat and flat[name] is not None and _plain(flat[name]) != _plain(there)
    ]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        names = [str(name).removesuffix("_proj") for name in value]
        return "all seven projections" if len(names) == len(PROJECTIONS) else ", ".join(names)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def _judge(flat: Mapping[str, Any]) -> str:
    kind = str(flat.get("grader.kind", "lexical"))
    model = flat.get("grader.model")
    return kind if kind == "lexical" or not model else _model(model)


def _model(name: Any) -> str:
    """Without the folder or the owner it lies under."""
    return PurePath(str(name)).name or str(name)


def _prompt(name: Any) -> str:
    return _model(name).removesuffix(".toml")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            pairs |= _flat(value, f"{prefix}{name}.")
        else:
            pairs[prefix + name] = value
    return pairs
