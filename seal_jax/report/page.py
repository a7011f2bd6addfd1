"""The page of a run: `results.json` and `self_edits.jsonl` become one `report.html` that needs nothing else.

    python -m seal_jax.report.page RUN_FOLDER     # writes the page of an existing run again

This file decides what the page says; `page.html` how it looks, `plots.py` how the figures look. All text goes through
Jinja2's autoescaping, because most of it was written by a model.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from seal_jax.report import plots
from seal_jax.statistics import paired_bootstrap

SHOWN_SELF_EDITS = 3  # best, and as many worst
SHOWN_CHARACTERS = 4_000  # of one text; the rest is in self_edits.jsonl
BASE, BEFORE_RL, AFTER_ROUND = "base", "self_edits_round_0", "self_edits_round_"
NO_BREAK, MINUS = "\u202f", "\u2212"

Json = dict[str, Any]


class Estimate(NamedTuple):
    """A mean and its 95 % interval as results.json has them; None where it has none."""

    mean: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """What a difference with this interval says: "gain", "loss", "unclear" (it spans zero) or "unknown"."""
        if self.low is None or self.high is None:
            return "unknown"
        return "gain" if self.low > 0 else "loss" if self.high < 0 else "unclear"


def write_report(run_folder: str | os.PathLike[str]) -> Path:
    """Writes `run_folder/report.html` from `results.json` and `self_edits.jsonl`, and returns its path.

    Only a whole page ever lies there. Missing values, no rounds and no self-edits leave their places out. Raises
    FileNotFoundError without a results.json, and ValueError (file, line) for what is not JSON.
    """
    folder = Path(run_folder)
    results = _read_results(folder / "results.json")
    self_edits = _read_self_edits(folder / "self_edits.jsonl")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "points": points, "cut": cut, "clock": clock, "decimal": decimal}
    page = environment.get_template("page.html").render(_contents(results, self_edits))
    path = folder / "report.html"
    unfinished = folder / "report.html.unfinished"
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _contents(results: Json, self_edits: list[Json]) -> Json:
    """Everything that the template names."""
    rows: list[Json] = _list(results, "rows")
    rounds: list[Json] = _list(results, "rounds")
    labels = {row.get("name"): row.get("label") or row.get("name") for row in rows}
    story = _story(rows)
    best, worst = _best_and_worst(self_edits)
    timings = {name: s for name, s in _dict(results, "timings").items() if _number(s) is not None}
    return {
        "results": results,
        "model": results.get("model") or "the model",
        "headline": _headline(results, rows, story, len(rounds)),
        "differences": _differences(results, rows, story),
        "story": [(row, _estimate(row, "accuracy")) for row in story],
        "passages": max((_count(row, "passages") for row in rows), default=0),
        "questions": max((_count(row, "questions") for row in rows), default=0),
        "accuracy_plot": _accuracy_plot(rows),
        "rows": [_table_row(row) for row in rows],
        "rounds": [_round(entry, self_edits) for entry in rounds],
        "reward_plot": _reward_plot(rounds, self_edits),
        "inner_plot": _inner_loss_plot(self_edits, labels),
        "sft_plot": _sft_loss_plot(rounds),
        "best": [_shown(edit, labels) for edit in best],
        "worst": [_shown(edit, labels) for edit in worst],
        "problems": _problems(rows, rounds),
        "settings": _settings(_dict(results, "settings")),
        "timings": timings,
        "total_seconds": sum(timings.values()),
        "machine": _flat(_dict(results, "machine")),
    }


# The sentence at the top


def _story(rows: Sequence[Json]) -> list[Json]:
    """The rows that tell what happened: base, own self-edits, after the last round; else the first and the last row."""
    by_name = {row.get("name"): row for row in rows}
    after = [row for row in rows if str(row.get("name")).startswith(AFTER_ROUND) and row.get("name") != BEFORE_RL]
    story = [by_name[name] for name in (BASE, BEFORE_RL) if name in by_name] + after[-1:]
    if len(story) < 2:
        story = [rows[0], rows[-1]] if len(rows) > 1 else list(rows)
    return [row for row in story if _estimate(row, "accuracy").mean is not None]


def _headline(results: Json, rows: Sequence[Json], story: Sequence[Json], rounds: int) -> str:
    model = results.get("model") or "the model"
    if not story:
        return f"This run of {model} has no evaluated stage yet."
    names = [row.get("name") for row in story]
    values = [percent(_estimate(row, "accuracy").mean) for row in story]
    if names[:2] != [BASE, BEFORE_RL]:
        if len(story) == 1:
            return f"{story[0].get('label') or names[0]}: {model} answers {values[0]} of the questions."
        verdict = _difference(results, rows, story[0], story[-1]).verdict
        return f"{_first_to_last(str(story[-1].get('label') or names[-1]), model, values[0], values[-1], verdict)}."
    verdict = _difference(results, rows, story[0], story[1]).verdict
    sentence = _first_to_last("After training on its own self-edits", model, values[0], values[1], verdict)
    if len(story) < 3:
        return f"{sentence}."
    cause = "one round" if rounds == 1 else f"{rounds} rounds" if rounds else "the rounds"
    effect = {
        "gain": f"then raised that to {values[2]}",
        "loss": f"then lowered that to {values[2]}",
        "unclear": f"then made no clear change ({values[2]})",
        "unknown": f"then brought {values[2]}",
    }[_difference(results, rows, story[1], story[2]).verdict]
    return f"{sentence}; {cause} of reinforcement learning {effect}."


def _first_to_last(cause: str, model: str, first: str, last: str, verdict: str) -> str:
    change = {
        "gain": f"up from {first}",
        "loss": f"down from {first}",
        "unclear": f"{first} before: no clear change",
        "unknown": f"{first} before",
    }[verdict]
    return f"{cause}, {model} answers {last} of the questions, {change}"


def _differences(results: Json, rows: Sequence[Json], story: Sequence[Json]) -> list[tuple[Estimate, str]]:
    """Between neighbours of the story: (difference, what it says)."""
    words = {
        "gain": "a clear gain",
        "loss": "a clear loss",
        "unclear": "no clear change",
        "unknown": "too few passages for an interval",
    }
    differences = [_difference(results, rows, before, after) for before, after in itertools.pairwise(story)]
    return [(difference, words[difference.verdict]) for difference in differences]


def _difference(results: Json, rows: Sequence[Json], before: Json, after: Json) -> Estimate:
    """As results.json has it; else, for rows that are not neighbours, from their accuracies on the same passages."""
    for key in ("versus_previous", "versus_base"):
        versus = _dict(after, key)
        row = versus.get("row") or (BASE if key == "versus_base" else None)
        if versus and row == before.get("name"):
            return _estimate(after, key)
    before_by_passage, after_by_passage = _dict(before, "per_passage"), _dict(after, "per_passage")
    passages = [passage for passage in before_by_passage if passage in after_by_passage]
    difference = paired_bootstrap(
        [_number(before_by_passage[passage]) for passage in passages],
        [_number(after_by_passage[passage]) for passage in passages],
        seed=_count(results, "seed"),
    )
    return Estimate(_number(difference.mean), _number(difference.low), _number(difference.high))


# Figures


def _accuracy_plot(rows: Sequence[Json]) -> Markup | None:
    drawn = [
        plots.Dot(
            str(row.get("label") or row.get("name")),
            *_estimate(row, "accuracy"),
            plots.MUTED if row.get("name") == BASE else plots.ACCENT,
        )
        for row in rows
    ]
    if not any(dot.mean is not None for dot in drawn):
        return None
    return Markup(plots.dots(drawn, "Accuracy of each stage with its 95 % interval"))


def _reward_plot(rounds: Sequence[Json], self_edits: Sequence[Json]) -> Markup | None:
    drawn = []
    for entry in rounds:
        number = entry.get("round")
        edits = [edit for edit in self_edits if edit.get("stage") == f"round {number}"]
        base = {edit.get("passage"): _number(edit.get("base_reward")) for edit in edits}
        everything = _numbers(edit.get("reward") for edit in edits)
        kept = _numbers(edit.get("reward") for edit in edits if edit.get("kept"))
        if everything:
            drawn += [
                plots.Ridge(f"Round {number}: base, {len(base)} passages", _numbers(base.values()), plots.NEUTRAL),
                plots.Ridge(f"Round {number}: all {len(everything)} self-edits", everything, plots.SOFT),
                plots.Ridge(f"Round {number}: the {len(kept)} kept", kept, plots.ACCENT),
            ]
    return Markup(plots.ridges(drawn, "Distribution of rewards in each round")) if drawn else None


def _inner_loss_plot(self_edits: Sequence[Json], labels: Mapping[Any, Any]) -> Markup | None:
    by_stage: dict[str, list[Sequence[float | None]]] = {}
    for edit in self_edits:
        losses = [_number(loss) for loss in _list(edit, "losses")]
        if _numbers(losses):
            by_stage.setdefault(_stage(edit, labels), []).append(losses)
    panels = [plots.Curves(stage, curves) for stage, curves in by_stage.items()]
    return Markup(plots.losses(panels, "Loss in the inner loop, by stage", "inner step")) if panels else None


def _sft_loss_plot(rounds: Sequence[Json]) -> Markup | None:
    curves = [(entry.get("round"), [_number(loss) for loss in _list(entry, "sft_losses")]) for entry in rounds]
    panels = [plots.Curves(f"Round {number}", [losses]) for number, losses in curves if _numbers(losses)]
    return Markup(plots.losses(panels, "Loss of the outer SFT, by round", "SFT step")) if panels else None


# Tables and lists


def _table_row(row: Json) -> Json:
    above = _dict(row, "versus_previous").get("row")
    return {
        "label": row.get("label") or row.get("name"),
        "accuracy": _estimate(row, "accuracy"),
        "versus_previous": _estimate(row, "versus_previous"),
        "versus_base": _estimate(row, "versus_base"),
        "base_is_above": above == BASE,  # then a phone need not show the same difference twice
        "log_likelihood": _estimate(row, "log_likelihood"),
        "passages": row.get("passages"),
        "questions": row.get("questions"),
    }


def _round(entry: Json, self_edits: Sequence[Json]) -> Json:
    kept = [edit for edit in self_edits if edit.get("stage") == f"round {entry.get('round')}" and edit.get("kept")]
    losses = _numbers(_list(entry, "sft_losses"))
    return entry | {
        "winners": len(kept),
        "winners_above_base": sum((_gain(edit) or 0) > 0 for edit in kept),
        "mean_reward": _number(entry.get("mean_reward")),
        "mean_best_reward": _number(entry.get("mean_best_reward")),
        "mean_base_reward": _number(entry.get("mean_base_reward")),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }


def _best_and_worst(self_edits: Sequence[Json]) -> tuple[list[Json], list[Json]]:
    """The self-edits of largest and of smallest gain in reward, one a passage; ties go by the gain in log-likelihood.

    What the model did not write itself (the passage alone) and what yielded no training is not compared.
    """

    def order(edit: Json) -> tuple[float, float]:
        now, base = _number(edit.get("log_likelihood")), _number(edit.get("base_log_likelihood"))
        return _gain(edit) or 0.0, 0.0 if now is None or base is None else now - base

    compared = [e for e in self_edits if e.get("completion") and not e.get("problem") and _gain(e) is not None]
    ranked = sorted(compared, key=order, reverse=True)  # stable: ties that remain keep the order of the file
    best = _one_a_passage(ranked)
    worst = _one_a_passage([edit for edit in reversed(ranked) if all(edit is not shown for shown in best)])
    return best, worst


def _one_a_passage(ranked: Iterable[Json]) -> list[Json]:
    first: dict[Any, Json] = {}
    for edit in ranked:
        first.setdefault(edit.get("passage"), edit)
    return list(first.values())[:SHOWN_SELF_EDITS]


def _shown(edit: Json, labels: Mapping[Any, Any]) -> Json:
    marks = {True: "right", False: "wrong"}
    answers = [
        answer | {f"{when}_mark": marks.get(answer.get(f"{when}_correct"), "missing") for when in ("before", "after")}
        for answer in _list(edit, "answers")
    ]
    return edit | {
        "stage_label": _stage(edit, labels),
        "gain": _gain(edit),
        "reward": _number(edit.get("reward")),
        "base_reward": _number(edit.get("base_reward")),
        "by_seed": _numbers(_list(edit, "rewards_by_seed")),
        "sequences": _list(edit, "sequences"),
        "answers": answers,
    }


def _stage(edit: Json, labels: Mapping[Any, Any]) -> str:
    stage = str(edit.get("stage") or "unknown stage")
    label = labels.get(stage)
    return str(label) if label else stage[:1].upper() + stage[1:].replace("_", " ")


def _problems(rows: Sequence[Json], rounds: Sequence[Json]) -> list[tuple[str, str, int]]:
    """(where, problem, how many), none of them zero."""
    places = [(f"Round {entry.get('round')}", entry) for entry in rounds]
    places += [(str(row.get("label") or row.get("name")), row) for row in rows]
    return [
        (where, str(problem), int(count))
        for where, entry in places
        for problem, count in _dict(entry, "problems").items()
        if _number(count)
    ]


def _settings(settings: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """A group for each nested section; what lies at the top comes first, as "run"."""
    top = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    groups = [("run", _flat(top))] if top else []
    return groups + [(name, _flat(value)) for name, value in settings.items() if isinstance(value, dict)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value as text), nested sections in their place."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, _value(value)))
    return pairs


def _value(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_value, value)) if isinstance(value, list) else str(value)


# Numbers as a person reads them


def percent(fraction: float | None) -> str:
    return "—" if fraction is None else f"{100 * fraction:.1f}{NO_BREAK}%"


def points(fraction: float | None) -> str:
    """A difference of two accuracies in percentage points, with its sign."""
    if fraction is None:
        return "—"
    rounded = round(100 * fraction, 1)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else ''}{abs(rounded):.1f}"


def decimal(value: float | None, digits: int = 2) -> str:
    return "—" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NO_BREAK}h {minutes}{NO_BREAK}min" if hours else f"{minutes}{NO_BREAK}min {rest}{NO_BREAK}s"


def cut(text: object) -> str:
    """A text short enough for the page, saying what was left out."""
    string = "" if text is None else str(text)
    if len(string) <= SHOWN_CHARACTERS:
        return string
    return f"{string[:SHOWN_CHARACTERS]}… ({len(string) - SHOWN_CHARACTERS:,} more characters in self_edits.jsonl)"


# Values that may be missing


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _numbers(values: Iterable[Any]) -> list[float]:
    return [number for number in map(_number, values) if number is not None]


def _count(entry: Json, key: str) -> int:
    return int(_number(entry.get(key)) or 0)


def _dict(entry: Json, key: str) -> Json:
    value = entry.get(key)
    return value if isinstance(value, dict) else {}


def _list(entry: Json, key: str) -> list[Any]:
    value = entry.get(key)
    return value if isinstance(value, list) else []


def _estimate(entry: Json, key: str) -> Estimate:
    values = _dict(entry, key)
    return Estimate(_number(values.get("mean")), _number(values.get("low")), _number(values.get("high")))


def _gain(edit: Json) -> float | None:
    gain, reward, base = (_number(edit.get(key)) for key in ("gain", "reward", "base_reward"))
    return gain if gain is not None else None if reward is None or base is None else reward - base


# Files


def _read_results(path: Path) -> Json:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there, so there is nothing to report: a run writes it after its first evaluated stage. "
            "Give the folder of a run, the one that holds its results.json."
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}). Run the experiment again in this folder to rewrite it."
        ) from None
    if not isinstance(results, dict):
        raise ValueError(f"{path} holds a {type(results).__name__}; expected an object with rows, rounds and settings.")
    return results


def _read_self_edits(path: Path) -> list[Json]:
    """All lines of the file; none if it is missing. A last line without its end was cut off by a kill: left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # bytes, because a kill may cut a character in two
    self_edits = []
    for number, line in enumerate(lines, 1):
        try:
            self_edit = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}, is not JSON ({error}). Remove that line to have a page."
            ) from None
        if not isinstance(self_edit, dict):
            raise ValueError(
                f"{path}, line {number}, holds a {type(self_edit).__name__}; expected one self-edit, an object."
            )
        self_edits.append(self_edit)
    return self_edits


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m seal_jax.report.page RUN_FOLDER")
    try:
        print(write_report(sys.argv[1]))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
