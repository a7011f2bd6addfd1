"""What an ablation found, as entries of results.json, one CSV and one sentence: which cell to use, and how sure.

The statistics are those of seal_jax/analysis/effects.py.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from seal_jax.analysis import effects, grid
from seal_jax.analysis.effects import Comparison
from seal_jax.analysis.statistics import RESAMPLES, Interval, bootstrap_mean, paired_bootstrap

SHOWN = 40  # cells on the page, the best; results.csv has all
SETTLED, LIKELY = 0.95, 0.5  # share of resamples in which a cell is the best: what the sentence calls it by

Metric = Literal["accuracy", "log_likelihood", "probability"]


class Measure(NamedTuple):
    """How a metric is written: its scale and format; in a sentence, as a column, under a heat map."""

    scale: float
    form: str
    unit: str
    column: str
    mapped: str


MEASURES: dict[Metric, Measure] = {
    "accuracy": Measure(100, ".1f", "% right", "right, %", "Questions answered right"),
    "log_likelihood": Measure(
        1, ".3f", "nats a token of the gold answers", "log-likelihood of the gold answer, nats a token",
        "Probability of a gold answer's token, the geometric mean",
    ),
    "probability": Measure(
        100, ".1f", "% probability of a gold answer's token", "probability of the gold answer's tokens, %",
        "Probability of a gold answer's token",
    ),
}  # fmt: skip
METRICS = tuple(MEASURES)


class Outcome(NamedTuple):
    """One finished cell."""

    number: int  # from 1, in the order of the grid
    values: grid.Values
    part: str  # what of it lies outside of training, as a label
    figures: dict[str, Any]  # each metric [P], "problems", "adapters"
    passages: list[str]  # [P] ids
    questions: int
    base: dict[str, list[float | None]]  # the model before training: each metric [P]

    @property
    def label(self) -> str:
        """As a person reads it."""
        return grid.label(self.values)

    @property
    def problems(self) -> list[str]:
        """How many self-edits trained nothing, and why, or diverged."""
        return [f"{count} {why}" for why, count in self.figures["problems"].items()]


def compare(outcomes: Sequence[Outcome], metric: Metric, *, seed: int, title: str, drawn: bool) -> Findings:
    """Cells side by side on every passage that any of them was asked about.

    A cell in which a training run diverged cannot be the best. Equals are ordered by the gold answers' likelihood.
    """
    place = {name: n for n, name in enumerate(dict.fromkeys(name for o in outcomes for name in o.passages))}
    values = {name: np.full((len(outcomes), len(place)), np.nan) for name in METRICS}
    for (c, outcome), name in itertools.product(enumerate(outcomes), METRICS):
        values[name][c, [place[passage] for passage in outcome.passages]] = np.array(outcome.figures[name], float)
    second = values["accuracy" if metric == "log_likelihood" else "log_likelihood"]
    usable = np.array([not outcome.figures["problems"].get("diverged") for outcome in outcomes])
    compared = effects.compare(values[metric], seed=seed, second_CP=second, usable=usable)
    return Findings(outcomes, metric, seed, title, drawn, values, compared)


@dataclasses.dataclass(frozen=True)
class Findings:
    """All cells of an ablation, compared by one metric."""

    outcomes: Sequence[Outcome]  # [C]
    metric: Metric
    seed: int
    title: str
    drawn: bool  # at random
    values: dict[Metric, np.ndarray]  # [C P], NaN where a cell was not asked about a passage, or got no verdict
    compared: Comparison

    @property
    def best(self) -> Outcome | None:
        """The cell to use; None where none can be recommended."""
        return None if self.compared.best is None else self.outcomes[self.compared.best]

    @cached_property
    def means(self) -> dict[Metric, list[Interval]]:
        """Each cell's figures, with intervals over passages."""
        return {name: [bootstrap_mean(row, seed=self.seed) for row in self.values[name]] for name in METRICS}

    @cached_property
    def settings(self) -> dict[str, list[Any]]:
        """Fields with at least two values, and every cell's value of each."""
        fields = effects.searched([outcome.values for outcome in self.outcomes])
        return {field: [outcome.values[field] for outcome in self.outcomes] for field in fields}

    # -- results.json

    def entries(self) -> dict[str, Any]:
        """What results.json holds of it."""
        return {
            "rows": self._rows(),
            "tables": [self._cell_table(), *([self._effect_table()] if self.settings else [])],
            "matrices": self._heat_maps(),
            "cells": self._cells(),
            "recommendation": self.recommendation,
        }

    @property
    def recommendation(self) -> str:
        """Which cell to use, and how sure that is."""
        compared, best, measure = self.compared, self.best, MEASURES[self.metric]
        if best is None:
            return "No cell can be recommended: in each of them a training run diverged, or nothing was graded."
        chosen, shown = compared.order[: compared.candidates], self._written(self.means[self.metric][compared.order[0]])
        share, options = float(compared.share[chosen[0]]), f"Options: {grid.options(best.values)}"
        use = f"Use {best.label}: {shown} {measure.unit}"
        if len(chosen) == 1:
            return f"{use}. There is no other cell to choose. {options}"
        if all(compared.against[c].low == compared.against[c].high == 0 for c in chosen):
            return f"No cell can be recommended: all {len(chosen)} come out alike, {shown} {measure.unit}."
        if math.isnan(share):
            return f"{use}. How sure that is cannot be said from one passage. {options}"
        sure = "settled" if share >= SETTLED else "likely, but not settled" if share >= LIKELY else "not settled"
        close = sum(not compared.against[c].high < -effects.CLOSE for c in chosen[1:])
        passages, nats = self.means[self.metric][chosen[0]].passages, measure.scale == 1
        luck = f"{measure.scale * compared.optimism:{measure.form}} {'nats' if nats else 'points'}"
        return (
            f"{use}. It is the best in {100 * share:.0f} % of {RESAMPLES:,} bootstrap resamples of the {passages} "
            f"passages: {sure}; {close} of the {len(chosen) - 1} others {'is' if close == 1 else 'are'} not clearly "
            f"worse. Having been chosen on these passages flatters it by about {luck}. {options}"
        )

    def _rows(self) -> list[dict[str, Any]]:
        """The base model (again where another part's answers differ) and the best cells, as the page draws them."""
        rows: list[dict[str, Any]] = []
        bases: dict[str, str] = {}  # the base model's answers -> the row that has them
        keys = [json.dumps([outcome.passages, outcome.base]) for outcome in self.outcomes]
        for key, outcome in zip(keys, self.outcomes, strict=True):
            if key not in bases:
                bases[key] = f"base {outcome.part}" if rows else "base"
                label = f"Base model, {outcome.part}" if rows else "Base model"
                rows.append(self._row(bases[key], label, outcome, {**outcome.base, "problems": {}}))
        for c in self.compared.order[:SHOWN]:
            outcome = self.outcomes[c]
            row = self._row(f"cell_{outcome.number}", outcome.label, outcome, outcome.figures)
            gain = paired_bootstrap(outcome.base["accuracy"], outcome.figures["accuracy"], seed=self.seed)
            rows.append({**row, "versus_base": {"row": bases[keys[c]], **gain.as_json()}})
        return rows

    def _row(self, name: str, label: str, asked: Outcome, figures: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "passages": len(asked.passages),
            "questions": asked.questions,
            **{m: bootstrap_mean(figures[m], seed=self.seed).as_json() for m in ("accuracy", "log_likelihood")},
            "versus_previous": None,  # the row above is just another cell
            "versus_base": None,
            "paper": None,
            "problems": figures["problems"],
            "per_passage": dict(zip(asked.passages, figures["accuracy"], strict=True)),
        }

    def _cell_table(self) -> dict[str, Any]:
        compared = self.compared
        shown = [self.metric, *(name for name in METRICS[:2] if name != self.metric)]
        lines: list[list[Any]] = []
        for c in compared.order[:SHOWN]:
            against = self._written(compared.against[c], sign="+") if compared.against else "-"
            share = compared.share[c]
            lines.append(
                [
                    self.outcomes[c].label,
                    *(self._written(self.means[name][c], name) for name in shown),
                    "the best" if c == compared.best else against,
                    None if math.isnan(share) else f"{100 * share:.0f} %",
                    ", ".join(self.outcomes[c].problems) or "0",
                ]
            )
        left_out = len(self.outcomes) - len(lines)
        note = f"{self.recommendation} Intervals are 95 % bootstrap intervals over passages."
        columns = ["cell", *(MEASURES[name].column for name in shown)]
        return {
            "title": self.title,
            "note": note + (f" {left_out} more cells are in results.csv." if left_out else ""),
            "columns": [
                *columns,
                "against the best, paired",
                "best in, of all resamples",
                "trained nothing, or diverged",
            ],
            "rows": lines,
        }

    def _effect_table(self) -> dict[str, Any]:
        """What each value of each field does, everything else averaged over."""
        lines = [
            [
                field,
                level.text,
                len(level.cells),
                self._written(level.mean),
                "the best" if level.against is None else self._written(level.against, sign="+"),
            ]
            for field, own in self.settings.items()
            for level in effects.main_effect(self.values[self.metric], own, seed=self.seed)
        ]
        drawn = " Cells were drawn: a value did not meet all values of the other fields." if self.drawn else ""
        return {
            "title": "Main effects",
            "note": f"Each value averaged over all cells that have it.{drawn}",
            "columns": ["field", "value", "cells", MEASURES[self.metric].column, "against the field's best, paired"],
            "rows": lines,
        }

    def _heat_maps(self) -> list[dict[str, Any]]:
        """Every pair of fields: the mean of the cells at each crossing, as a fraction."""
        maps = []
        for (down, first), (across, second) in itertools.combinations(self.settings.items(), 2):
            rows, columns, means = effects.pair_effect(self.values[self.metric], first, second)
            if self.metric == "log_likelihood":
                means = [[None if mean is None else math.exp(mean) for mean in row] for row in means]
            title = f"{down} (down) and {across} (across)"
            note = f"{MEASURES[self.metric].mapped}; the mean of the cells at each crossing."
            maps.append({"title": title, "note": note, "rows": rows, "columns": columns, "values": means})
        return maps

    def _cells(self) -> list[dict[str, Any]]:
        """Every cell, in the order of the grid."""
        compared = self.compared
        return [
            {
                "number": outcome.number,
                "label": outcome.label,
                "values": {name: list(v) if isinstance(v, tuple) else v for name, v in outcome.values.items()},
                **{metric: self.means[metric][c].as_json() for metric in METRICS},
                "against_best": compared.against[c].as_json() if compared.against else None,
                "best_in": None if math.isnan(compared.share[c]) else float(compared.share[c]),
                "problems": outcome.figures["problems"],
                "adapters": outcome.figures["adapters"],
                "per_passage": {m: dict(zip(outcome.passages, outcome.figures[m], strict=True)) for m in METRICS},
            }
            for c, outcome in enumerate(self.outcomes)
        ]

    def _written(self, interval: Interval, metric: Metric | None = None, sign: str = "") -> str:
        measure = MEASURES[metric or self.metric]
        return interval.text(measure.scale, f"{sign}{measure.form}")

    def csv(self) -> str:
        """The cells, a line each: accuracies and probabilities are fractions, log-likelihoods nats a token."""
        lines = [
            {"cell": cell["number"], **{name: grid.text_of(value) for name, value in cell["values"].items()}}
            | {f"{m}{'' if end == 'mean' else f'_{end}'}": x for m in METRICS for end, x in cell[m].items()}
            | {name: cell[name] for name in ("best_in", "adapters")}
            for cell in self._cells()
        ]
        file = io.StringIO()
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return file.getvalue()
