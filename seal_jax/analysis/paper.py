"""What the paper reports (SEAL, arXiv 2506.10943), as data, and beside a run of ours.

Every figure is one that the paper prints, with the setting it was made under. `beside` puts it next to a row of a run
and names in a few words each setting that differs. A setting that a run does not have, or that the paper does not give,
is not compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
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


# Accuracy in percent. Table 2, by (passages learnt at once, how).
SINGLE: tuple[int, Method] = (1, "lora")
MANY: tuple[int, Method] = (200, "full")
TABLE_2: dict[tuple[int, Method], dict[str, float]] = {
    (1, "lora"): {
        "base": 32.7, "passage": 33.5, "self_edits_round_0": 39.7, "external": 46.3, "self_edits_round_2": 47.0,
    },
    (200, "lora"): {
        "base": 32.7, "passage": 32.2, "self_edits_round_0": 41.0, "external": 39.4, "self_edits_round_2": 43.8,
    },
    (200, "full"): {
        "base": 32.7, "passage": 36.0, "self_edits_round_0": 50.6, "external": 59.4, "self_edits_round_2": 58.2,
    },
    (2067, "full"): {
        "base": 29.0, "passage": 31.2, "self_edits_round_0": 43.4, "external": 49.2, "self_edits_round_2": 46.4,
    },
}  # fmt: skip
# One passage at a time, by the prompt of the self-edits: after 0, 1 and 2 rounds.
PROMPTS = {
    "implications": (39.7, 43.7, 47.0),
    "implications-long": (49.3, 52.4, 54.4),
    "implications-very-long": (45.0, 51.5, 52.1),
    "rewrite": (49.4, 55.3, 55.6),
    "self-qa": (37.3, 42.8, 48.7),
    "no-prompt": (13.8, 12.7, 18.9),
}
SCALE_3B = {"base": 25.1, "self_edits_round_0": 31.9, "self_edits_round_2": 37.0}  # Qwen2.5-3B, one passage at a time
ENTIGRAPH = {"entigraph_pairs": 46.2, "entigraph_triples": 56.0}  # n = 200, full fine-tuning; triples: with the pairs
CONTINUAL = {"base": 30.7, "after_own_edit": 41.5, "after_all_edits": 24.7}  # 64 streams of 8 passages
STREAMS, STREAM_LENGTH = 64, 8
ARC = {"base": 0.0, "fixed": 100.0, "self_edits_round_0": 20.0, "self_edits_round_1": 72.5}  # section 4.2, 8 tasks
ARC_MODEL, ARC_TASKS = "Llama-3.2-1B-Instruct", 8
SQUAD = ("squad", "tfds:squad")  # what --data calls the paper's passages

# Names that rows of our experiments have, where they are not the paper's own.
ALIASES = {"self_edits": "self_edits_round_0"}
RECORDED = {  # the files of recorded self-edits that the reference publishes, as evaluate_edits calls them
    "edits of base": "self_edits_round_0",
    "edits of iter2": "self_edits_round_2",
    "edits of gpt4_1": "external",
}

# What a run is compared in: its setting's dotted name -> (what a person calls it, the paper's value). Section B.1.
ASKING: dict[str, tuple[str, Any]] = {
    "answer_tokens": ("answer tokens", 64),
}
INNER: dict[str, tuple[str, Any]] = {
    "inner.projections": ("LoRA on", ["q_proj", "v_proj"]),
    "inner.rank": ("rank", 32),
    "inner.alpha": ("alpha", 64),
    "inner.learning_rate": ("learning rate", 1e-3),
    "inner.epochs": ("epochs", 10),
    "inner.batch_size": ("batch", 1),
    "inner.optimiser.schedule": ("learning-rate schedule", "linear"),
    "inner.optimiser.warmup_steps": ("warm-up steps", 0),
    "inner.optimiser.clip_norm": ("gradient clip", 1.0),
    "inner.optimiser.weight_decay": ("weight decay", 0.0),
    "inner.optimiser.dropout": ("dropout", 0.0),
}
WRITING: dict[str, tuple[str, Any]] = {
    "sampling.temperature": ("temperature", 1.0),
    "sampling.top_p": ("top-p", 0.95),
    "max_sequences": ("training sequences at most", 30),
}
OUTER: dict[str, tuple[str, Any]] = {
    "outer.passages": ("passages a round", 50),
    "outer.samples": ("self-edits a passage", 5),
    "outer.reward_seeds": ("training seeds a reward", 3),
    "outer.signal": ("reward:", "accuracy"),
    "outer.select": ("selection:", "best"),
    "outer.sft.projections": ("SFT's LoRA on", list(PROJECTIONS)),
    "outer.sft.rank": ("SFT rank", 64),
    "outer.sft.alpha": ("SFT alpha", 128),
    "outer.sft.learning_rate": ("SFT learning rate", 3e-4),
    "outer.sft.epochs": ("SFT epochs", 2),
    "outer.sft.batch_size": ("SFT batch", 10),
}
CPT_COMPLETIONS = ("completions a passage", 5)
ARC_SETTINGS: dict[str, tuple[str, Any]] = {
    "inner.projections": ("LoRA on", ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]),
    "inner.rank": ("rank", 128),
    "inner.alpha": ("alpha", 16),
    "inner.batch_size": ("batch", 2),
    "inner.optimiser.schedule": ("learning-rate schedule", "cosine"),
    "inner.optimiser.warmup_steps": ("warm-up steps", 11),
    "training_set.cap": ("training sequences at most", 250),
    "inference.leave_one_out": ("leave-one-out prompts", True),
    "inference.permutations": ("permutations of the demonstrations", 2),
}
ARC_WRITING: dict[str, tuple[str, Any]] = {
    "sampling.temperature": ("temperature", 0.8),
    "constrained": ("constrained decoding", False),
}
ARC_OUTER: dict[str, tuple[str, Any]] = {
    "outer.samples": ("self-edits a task", 15),
    "outer.select": ("selection:", "all_correct"),
    "outer.sft.rank": ("SFT rank", 16),
    "outer.sft.alpha": ("SFT alpha", 16),
    "outer.sft.learning_rate": ("SFT learning rate", 5e-5),
    "outer.sft.epochs": ("SFT epochs", 8),
    "outer.sft.batch_size": ("SFT batch", 5),
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
