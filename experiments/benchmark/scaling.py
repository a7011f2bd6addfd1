"""How the cost of a self-edit changes with the number trained at a time, the length of its sequences, and the model.

A self-edit is one epoch here, of `--steps` sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seal_jax.engine import costs

from . import stages, table, workloads
from .bench import Bench, opened

MODELS = ("smollm2-135m", "smollm2-360m", "llama-3.2-1b", "qwen2.5-3b", "qwen2.5-7b")
MODELS_ON_CPU = 2  # the first of them: those that it has time for
AXES = {"adapters": "adapters trained at a time", "tokens": "tokens of a sequence", "models": "million parameters"}
COLORS = {"seal_jax": "#1f5fa8", "peft": "#b3541e", "peft-x2": "#d9a066", "skyrl-tx": "#3a7d44"}


def show(bench: Bench) -> dict[str, Any]:
    """Prints a line for each size and who trained it, and draws `--plot`."""
    settings, points = bench.settings, []
    print("", *table.HEAD, sep="\n", flush=True)

    def add(bench: Bench, over: str, label: str, x: float, adapters: int, tokens: int = workloads.TOKENS) -> None:
        bench = bench._replace(settings=dataclasses.replace(settings, adapters=adapters, epochs=1))
        stage, lengths = "train_qv", workloads.uniform(adapters, sequences=settings.steps, tokens=tokens)
        if over == "adapters" and settings.workload == "seal":
            stage, lengths = "seal", workloads.seal(max(adapters, settings.edits), seed=settings.seed)
        rows = [row.figures(bench.peak) for row in stages.train_stage(bench, stage, lengths)[0]]
        print(*(table.row_line({**row, "stage": label}) for row in rows), sep="\n", flush=True)
        points.append({"over": over, "label": label, "x": x, "adapters": adapters, "tokens": tokens, "rows": rows})

    for count in settings.over_adapters:
        add(bench, "adapters", f"E = {count}", count, count)
    for tokens in settings.over_tokens:
        add(bench, "tokens", f"T = {tokens}", tokens, settings.at_adapters, tokens)
    models = MODELS[: MODELS_ON_CPU if bench.devices[0].platform == "cpu" else None]
    for name in models if settings.over_models is None else settings.over_models:
        with opened(dataclasses.replace(settings, random=name), bench.peak) as other:
            add(other, "models", name, costs.model_parameters(other.model) / 1e6, settings.at_adapters)
    if settings.plot:
        title = f"{settings.random or settings.model} on {len(bench.devices)} x {bench.devices[0].device_kind}"
        draw(points, f"{title}, LoRA r {settings.rank} on q and v, {settings.steps} steps", settings.plot)
        print(f"\nPlot: {settings.plot}")
    return {"points": points}


def draw(points: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """A panel for each kind of size, seconds of a self-edit: ours, the floor under it, and the peers'."""
    from matplotlib.figure import Figure

    kinds = [over for over in AXES if any(point["over"] == over for point in points)]
    figure = Figure(figsize=(4.4 * len(kinds), 3.6), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, over in zip(panels, kinds, strict=True):
        chosen = sorted((point for point in points if point["over"] == over), key=lambda point: point["x"])
        xs = [point["x"] for point in chosen]
        for n, who in enumerate(row["who"] for row in chosen[0]["rows"]):  # one that soon does not fit has fewer points
            rows = [(point["x"], row) for point in chosen for row in point["rows"] if row["who"] == who]
            fit, taken, floor = zip(*((x, row["seconds"], row["floor_seconds"]) for x, row in rows), strict=True)
            axes.loglog(fit, taken, "o-" if n == 0 else "s--", color=COLORS[who], label=who)
            if n == 0:
                axes.loglog(fit, floor, ":", color=COLORS[who], label="its floor on this device")
        axes.set_xticks(xs, [point["label"] if over == "models" else f"{point['x']:g}" for point in chosen], fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel(AXES[over])
        axes.grid(True, color="#dddddd", linewidth=0.6)
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("seconds a self-edit")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
