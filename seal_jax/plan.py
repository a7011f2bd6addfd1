"""What a run would do, load and need, reckoned before any weight is loaded (`--dry-run`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from seal_jax.models import gguf, hub, weights
from seal_jax.models.transformer import ModelConfig
from seal_jax.training import FineTuning


class Work(NamedTuple):
    """One stage's share of the inner loop, at most."""

    stage: str
    self_edits: int
    adapters: int  # self-edits times training seeds
    steps: int  # optimiser steps of all adapters
    tokens: int  # trained tokens of all adapters, pads left out


def read_config(name: str) -> ModelConfig | None:
    """A model's shape from its header or config.json; None where it is not on this machine yet."""
    location = hub.locate(name)
    if not location.cached:
        return None
    if location.kind == "gguf":
        return gguf.read_config(gguf.open_gguf(location.path), location.path)
    return weights.read_config(location.path / "config.json")


def inner_work(stage: str, self_edits: int, config: FineTuning, *, seeds: int, sequences: int, tokens: int) -> Work:
    """`sequences` and `tokens` are a self-edit's, at most."""
    steps = config.epochs * math.ceil(sequences / config.batch_size)
    adapters = self_edits * seeds
    return Work(stage, self_edits, adapters, adapters * steps, adapters * config.epochs * tokens)


def adapter_parameters(model: ModelConfig, config: FineTuning) -> int:
    """Trained parameters of one adapter."""
    shapes = weights.layout(model)
    sides = (shapes["blocks", name, "kernel"] for name in config.projections)
    return model.num_layers * config.rank * sum(d_in + d_out for d_in, d_out in sides)


def model_parameters(model: ModelConfig) -> int:
    """All parameters of the base model."""
    return sum(
        math.prod(shape) * (model.num_layers if path[0] == "blocks" else 1)
        for path, shape in weights.layout(model).items()
    )


def memory_lines(model: ModelConfig, config: FineTuning, *, width: int, itemsize: int, devices: int) -> list[str]:
    """Memory on each device while the inner loop runs: what is known, and an estimate of the activations."""
    base = model_parameters(model) * itemsize
    a_device = math.ceil(config.chunk / devices)
    adapter = adapter_parameters(model, config) * 4 * 4  # float32: value, gradient, two moments
    tokens = a_device * max(1, config.batch_size // config.optimiser.accumulate) * width
    # kept for the backward pass, a token and layer: about 8 hidden vectors, 4 of the MLP, the scores of attention
    kept = 8 * model.hidden_size + 4 * model.intermediate_size + 2 * model.num_heads * width
    layers = 1 if config.optimiser.remat else model.num_layers
    activations = (
        tokens * (kept * layers + model.hidden_size * model.num_layers) * itemsize
        + 3 * 256 * a_device * model.vocab_size * 4
    )
    total = base + a_device * adapter + activations
    return [
        f"base model        {_bytes(base):>10}   {model_parameters(model) / 1e6:,.0f} M parameters",
        f"adapters          {_bytes(a_device * adapter):>10}   {a_device} at a time: value, gradient, Adam",
        f"activations, about{_bytes(activations):>10}   a step of {tokens} tokens",
        f"together, about   {_bytes(total):>10}",
    ]


def table(rows: Iterable[Work]) -> list[str]:
    """The stages and their sum, in columns."""
    rows = list(rows)
    total = Work("together", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    head = f"{'stage':<34}{'self-edits':>11}{'adapters':>10}{'steps':>12}{'tokens':>14}"
    return [
        head,
        *(f"{r.stage:<34}{r.self_edits:>11,}{r.adapters:>10,}{r.steps:>12,}{r.tokens:>14,}" for r in (*rows, total)),
    ]


def section(title: str, lines: Sequence[str]) -> str:
    """A titled block of the plan."""
    return "\n".join([title, *(f"  {line}" for line in lines), ""])


def _bytes(n: float) -> str:
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
