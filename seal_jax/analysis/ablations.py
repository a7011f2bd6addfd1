"""What an ablation found, as rows, tables, heat maps, one CSV and one sentence: which cell to use, and how sure.

The statistics are those of seal_jax/analysis/effects.py; this file gives them their words.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from seal_jax.analysis import effects, grid
from seal_jax.analysis.effects import Comparison, Level
from seal_jax.analysis.statistics import RESAMPLES, Interval, bootstrap_mean, paired_bootstrap

SHOWN = 40  # cells on the page, the best; results.csv has all
NO_FLATTERY = 5e-4  # of a figure, as a fraction or in nats: what the sentence would round to nothing
NAMED = 3  # cells that the sentence names beside the best
SETTLED, LIKELY = 0.95, 0.5  # share of resamples in which a cell is the best: what the sentence calls it by

Metric = Literal["accuracy", "log_likelihood", "probability"]
METRICS: tuple[Metric, ...] = ("accuracy", "log_likelihood", "probability")
ENDS = ("", "_low", "_high")


class Outcome(NamedTuple):
    """One finished cell."""

    number: int  # from 1, as the grid has them
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

    @property
    def fields(self) -> list[str]:
        """Those with at least two values."""
        return effects.searched([outcome.values for outcome in self.outcomes])

    @property
    def recommendation(self) -> str:
        """Which cell to use, and how sure that is."""
        compared, number = self.compared, self.compared.best
        if number is None or self.best is None:
            return "No cell can be recommended: in each of them a training run diverged, or nothing was graded."
        shown, share = self.mean(self.metric, number), float(compared.share[number])
        options = grid.options(self.best.values)
        use = f"Use {self.best.label}: {written(shown, self.metric)} {UNITS[self.metric]}"
        if compared.candidates == 1:
            return f"{use}. There is no other cell to choose. Options: {options}"
        if all(compared.against[c].low == compared.against[c].high == 0 for c in compared.order[: compared.candidates]):
            alike = f"all {compared.candidates} come out alike, {written(shown, self.metric)}"
            return f"No cell can be recommended: {alike} {UNITS[self.metric]}."
        if math.isnan(share):
            return f"{use}. How sure that is cannot be said from one passage. Options: {options}"
        sure = "settled" if share >= SETTLED else "likely, but not settled" if share >= LIKELY else "not settled"
        others = compared.candidates - 1
        close = [c for c in compared.order[1 : compared.candidates] if not compared.against[c].high < -effects.CLOSE]
        said = f"all {others} others are clearly worse" if others > 1 else "the other one is clearly worse"
        if close:
            named = "; ".join(self.outcomes[c].label for c in close[:NAMED])
            more = f"; and {len(close) - NAMED} more" if len(close) > NAMED else ""
            are = "is" if len(close) == 1 else "are"
            said = f"{len(close)} of the {others} others {are} not clearly worse ({named}{more})"
        flattered = ""
        if compared.optimism > NO_FLATTERY:
            by = f"{compared.optimism:.3f} nats" if self.metric == "log_likelihood" else (
                f"{100 * compared.optimism:.1f} points"
            )  # fmt: skip
            flattered = f" Having been chosen on these passages flatters it by about {by}."
        return (
            f"{use}. It is the best in {100 * share:.0f} % of {RESAMPLES:,} bootstrap resamples of the "
            f"{shown.passages} passages: {sure}; {said}.{flattered} Options: {options}"
        )

    def mean(self, metric: Metric, cell: int) -> Interval:
        """A cell's figure with its interval over passages."""
        return bootstrap_mean(self.values[metric][cell], seed=self.seed)

    def settings(self, field: str) -> list[Any]:
        """Every cell's value of a field."""
        return [outcome.values[field] for outcome in self.outcomes]

    def main_effect(self, metric: Metric, field: str) -> list[Level]:
        """What each value of a field does, everything else averaged over."""
        return effects.main_effect(self.values[metric], self.settings(field), seed=self.seed)

    # -- results.json

    def rows(self) -> list[dict[str, Any]]:
        """The base model (again where another part's answers differ) and the best cells, as the page draws them."""
        rows: list[dict[str, Any]] = []
        bases: dict[str, str] = {}  # the base model's answers -> the row that has them
        for outcome in self.outcomes:
            base = self._base(outcome)
            if base not in bases:
                bases[base] = f"base {outcome.part}" if rows else "base"
                label = f"Base model, {outcome.part}" if rows else "Base model"
                rows.append(self._row(bases[base], label, outcome, outcome.base, {}))
        for c in self.compared.order[:SHOWN]:
            outcome = self.outcomes[c]
            row = self._row(
                f"cell_{outcome.number}", outcome.label, outcome, outcome.figures, outcome.figures["problems"]
            )  # fmt: skip
            gain = paired_bootstrap(outcome.base["accuracy"], outcome.figures["accuracy"], seed=self.seed)
            row["versus_base"] = {"row": bases[self._base(outcome)], **gain.as_json()}
            rows.append(row)
        return rows

    def _base(self, outcome: Outcome) -> str:
        return json.dumps([outcome.passages, outcome.base])

    def _row(
        self, name: str, label: str, asked: Outcome, figures: dict[str, Any], problems: dict[str, int]
    ) -> dict[str, Any]:
        return {
            "name": name,
            "label": label,
            "passages": len(asked.passages),
            "questions": asked.questions,
            "accuracy": bootstrap_mean(figures["accuracy"], seed=self.seed).as_json(),
            "log_likelihood": bootstrap_mean(figures["log_likelihood"], seed=self.seed).as_json(),
            "versus_previous": None,  # the row above is just another cell
            "versus_base": None,
            "paper": None,
            "problems": problems,
            "per_passage": dict(zip(asked.passages, figures["accuracy"], strict=True)),
        }

    def tables(self) -> list[dict[str, Any]]:
        """The cells, best first; and what each value of each field does."""
        return [self._cell_table(), *([self._effect_table()] if self.fields else [])]

    def _cell_table(self) -> dict[str, Any]:
        compared = self.compared
        shown: list[Metric] = [self.metric, *(m for m in METRICS[:2] if m != self.metric)]
        lines: list[list[Any]] = []
        for c in compared.order[:SHOWN]:
            against = "the best" if c == compared.best else "-"
            if c != compared.best and compared.against:
                against = written(compared.against[c], self.metric, "+")
            share = compared.share[c]
            problems = self.outcomes[c].figures["problems"]
            lines.append(
                [
                    self.outcomes[c].label,
                    *(written(self.mean(metric, c), metric) for metric in shown),
                    against,
                    None if math.isnan(share) else f"{100 * share:.0f} %",
                    ", ".join(f"{count} {why}" for why, count in problems.items()) or "0",
                ]
            )
        left_out = len(self.outcomes) - len(lines)
        note = f"{self.recommendation} Intervals are 95 % bootstrap intervals over passages."
        return {
            "title": self.title,
            "note": note + (f" {left_out} more cells are in results.csv." if left_out else ""),
            "columns": [
                "cell",
                *(COLUMNS[metric] for metric in shown),
                "against the best, paired",
                "best in, of all resamples",
                "trained nothing, or diverged",
            ],
            "rows": lines,
        }

    def _effect_table(self) -> dict[str, Any]:
        lines = [
            [
                field,
                level.text,
                len(level.cells),
                written(level.mean, self.metric),
                "the best" if level.against is None else written(level.against, self.metric, "+"),
            ]
            for field in self.fields
            for level in self.main_effect(self.metric, field)
        ]
        drawn = " Cells were drawn: a value did not meet all values of the other fields." if self.drawn else ""
        return {
            "title": "Main effects",
            "note": f"Each value averaged over all cells that have it.{drawn}",
            "columns": ["field", "value", "cells", COLUMNS[self.metric], "against the field's best, paired"],
            "rows": lines,
        }

    def heat_maps(self) -> list[dict[str, Any]]:
        """Every pair of fields: the mean of the cells at each crossing, as a fraction."""
        maps = []
        for down, across in itertools.combinations(self.fields, 2):
            rows, columns, found = self._crossings(self.metric, down, across)
            if self.metric == "log_likelihood":
                found = [[None if value is None else math.exp(value) for value in row] for row in found]
            maps.append(
                {
                    "title": f"{down} (down) and {across} (across)",
                    "note": f"{MAPPED[self.metric]}; the mean of the cells at each crossing.",
                    "rows": rows,
                    "columns": columns,
                    "values": found,
                }
            )
        return maps

    def _crossings(self, metric: Metric, down: str, across: str) -> tuple[list[str], list[str], list[list[Any]]]:
        return effects.pair_effect(self.values[metric], self.settings(down), self.settings(across))

    def cells(self) -> list[dict[str, Any]]:
        """Every cell, in the order of the grid."""
        compared = self.compared
        return [
            {
                "number": outcome.number,
                "label": outcome.label,
                "values": {name: list(v) if isinstance(v, tuple) else v for name, v in outcome.values.items()},
                **{metric: self.mean(metric, c).as_json() for metric in METRICS},
                "against_best": compared.against[c].as_json() if compared.against else None,
                "best_in": None if math.isnan(compared.share[c]) else float(compared.share[c]),
                "problems": outcome.figures["problems"],
                "adapters": outcome.figures["adapters"],
                "per_passage": {
                    metric: dict(zip(outcome.passages, outcome.figures[metric], strict=True)) for metric in METRICS
                },
            }
            for c, outcome in enumerate(self.outcomes)
        ]

    # -- results.csv

    def csv(self) -> str:
        """All figures in one table: a line a cell, a line a value of each field, a line a crossing of each two.

        A field that a line leaves empty is averaged over. Accuracies and probabilities are fractions, log-likelihoods
        nats a token; `against_best` is in the metric that cells are compared by, against the best cell or value.
        """
        figures = [f"{metric}{end}" for metric in METRICS for end in ENDS]
        against = [f"against_best{end}" for end in ENDS]
        names = list(self.outcomes[0].values)
        columns = ["kind", "cell", *names, "cells", *figures, *against, "best_in", "problems", "adapters"]
        file = io.StringIO()
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for c, outcome in enumerate(self.outcomes):
            share = self.compared.share[c]
            line: dict[str, Any] = {
                "kind": "cell",
                "cell": outcome.number,
                **{name: grid.text_of(value) for name, value in outcome.values.items()},
                "cells": 1,
                "best_in": "" if math.isnan(share) else repr(float(share)),
                "problems": "; ".join(f"{count} {why}" for why, count in outcome.figures["problems"].items()),
                "adapters": outcome.figures["adapters"],
            }
            for metric in METRICS:
                line |= _bounded(metric, self.mean(metric, c))
            writer.writerow(
                line | _bounded("against_best", self.compared.against[c] if self.compared.against else None)
            )
        for field in self.fields:
            effect = {metric: self.main_effect(metric, field) for metric in METRICS}
            for n, level in enumerate(effect[self.metric]):
                line = {"kind": "main effect", field: level.text, "cells": len(level.cells)}
                for metric in METRICS:
                    line |= _bounded(metric, effect[metric][n].mean)
                writer.writerow(line | _bounded("against_best", level.against))
        for down, across in itertools.combinations(self.fields, 2):
            tables = {metric: self._crossings(metric, down, across) for metric in METRICS}
            rows, right, _ = tables[self.metric]
            for (r, row), (k, column) in itertools.product(enumerate(rows), enumerate(right)):
                means = {metric: tables[metric][2][r][k] for metric in METRICS}
                shown: dict[str, str] = {
                    metric: repr(float(value)) for metric, value in means.items() if value is not None
                }
                writer.writerow({"kind": "crossing", down: row, across: column, **shown})
        return file.getvalue()


def compare(outcomes: Sequence[Outcome], metric: Metric, *, seed: int, title: str, drawn: bool) -> Findings:
    """Cells side by side on every passage that any of them was asked about.

    A cell in which a training run diverged cannot be the best. Equals are ordered by the gold answers' likelihood.
    """
    place: dict[str, int] = {}
    for outcome in outcomes:
        for passage in outcome.passages:
            place.setdefault(passage, len(place))
    values = {name: np.full((len(outcomes), len(place)), np.nan) for name in METRICS}
    for c, outcome in enumerate(outcomes):
        columns = [place[passage] for passage in outcome.passages]
        for name in METRICS:
            values[name][c, columns] = np.array(outcome.figures[name], float)
    second = values["accuracy" if metric == "log_likelihood" else "log_likelihood"]
    usable = np.array([not outcome.figures["problems"].get("diverged") for outcome in outcomes])
    compared = effects.compare(values[metric], seed=seed, second_CP=second, usable=usable)
    return Findings(outcomes, metric, seed, title, drawn, values, compared)


UNITS: dict[Metric, str] = {
    "accuracy": "% right",
    "log_likelihood": "nats a token of the gold answers",
    "probability": "% probability of a gold answer's token",
}
COLUMNS: dict[Metric, str] = {
    "accuracy": "right, %",
    "log_likelihood": "log-likelihood of the gold answer, nats a token",
    "probability": "probability of the gold answer's tokens, %",
}
MAPPED: dict[Metric, str] = {
    "accuracy": "Questions answered right",
    "log_likelihood": "Probability of a gold answer's token, the geometric mean",
    "probability": "Probability of a gold answer's token",
}


def written(interval: Interval, metric: Metric, sign: str = "") -> str:
    """`12.3 [10.1, 14.5]`; without bounds where there is one passage, a dash where there is none."""
    scale, form = (1, f"{sign}.3f") if metric == "log_likelihood" else (100, f"{sign}.1f")
    if math.isnan(interval.mean):
        return "-"
    if math.isnan(interval.low):
        return f"{scale * interval.mean:{form}}"
    return "{:{f}} [{:{f}}, {:{f}}]".format(*(scale * value for value in interval[:3]), f=form)


def _bounded(prefix: str, interval: Interval | None) -> dict[str, str]:
    found = () if interval is None else interval[:3]
    return {f"{prefix}{end}": repr(float(x)) for end, x in zip(ENDS, found, strict=False) if not math.isnan(x)}
