"""How much memory a run takes on each device, and how many adapters that leaves room for.

The formulas count what XLA keeps: each was fitted to the buffers it assigns (`compiled.memory_analysis()`) for Llama-
and Qwen-shaped models in float32, and tests/test_memory.py holds them to within 20 % of those. Nothing is allocated or
compiled here. Where the plan is wrong all the same, `chunks.in_chunks` halves the chunk and goes on.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, NamedTuple

from seal_jax.engine import costs
from seal_jax.engine.costs import FLOAT32
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.types import Compute

if TYPE_CHECKING:
    from seal_jax.nn.transformer import ModelConfig

ADAPTER_COPIES = 6  # as it began; value, gradient, Adam's two moments; the new value before it replaces the old
SHARE = 0.85  # of the free memory that is planned with: allocators leave gaps
MOST_ON_CPU, MOST = 8, 64  # adapters on a device: beyond, time per adapter falls no more and padding grows
ENOUGH = 8  # adapters on a device; with so many, recomputing layers to fit more does not pay
RECOMPUTING = 4 / 3  # the work of a step when layers are recomputed, over that when they are kept


class Writing(NamedTuple):
    """The sizes of what a run writes: its self-edits and its answers."""

    samples: int  # self-edits of a prompt
    prompt_width: int  # tokens of a self-edit prompt
    max_tokens: int  # of a self-edit
    answer_tokens: int


class Need(NamedTuple):
    """Bytes on one device, at the worst moment of a phase."""

    base: int  # the frozen model
    adapters: int  # with gradients and moments, in training
    activations: int  # training: what the backward pass needs; writing: keys and values, and layers laid out singly
    logits: int

    @property
    def total(self) -> int:
        return sum(self)


def training(
    model: ModelConfig, config: FineTuning, compute: Compute, *, adapters: int, width: int, itemsize: int
) -> Need:
    """The widest step of `adapters` on one device. `itemsize` is the base model's, in bytes."""
    rows = config.batch_size // math.gcd(config.batch_size, compute.accumulate)
    tokens = adapters * rows * width
    d, f = model.hidden_size, model.intermediate_size
    kept = 8 * d + 4 * f + 2 * model.num_heads * width  # a token and layer: the scores of attention come last
    if set(config.projections) & {"o_proj", "gate_proj", "up_proj", "down_proj"}:
        kept += 2 * d + f + config.rank * len(config.projections)  # their inputs too
    floats = kept + model.num_layers * d if compute.remat else model.num_layers * kept
    chunk = min(compute.loss_chunk, rows * width)
    return Need(
        base=costs.model_parameters(model) * itemsize,
        adapters=ADAPTER_COPIES * adapters * _adapter(model, config),
        activations=tokens * floats * itemsize,
        logits=2 * adapters * chunk * model.vocab_size * FLOAT32,
    )


def writing(
    model: ModelConfig,
    *,
    prompts: int,
    samples: int,
    prompt_width: int,
    max_tokens: int,
    itemsize: int,
    adapter_bytes: int = 0,
) -> Need:
    """Reading so many prompts and continuing each, on one device; `adapter_bytes` are those of all its adapters."""
    slot = costs.kv_bytes(model, itemsize)
    once_read = prompts * prompt_width * slot
    cache = prompts * samples * (prompt_width + max_tokens) * slot * (2 if samples > 1 else 1)
    reading = prompts * prompt_width * (6 * model.hidden_size + 3 * model.intermediate_size) * itemsize
    layers = costs.layer_parameters(model) * itemsize
    return Need(
        base=costs.model_parameters(model) * itemsize,
        adapters=2 * adapter_bytes,  # as trained, and layer by layer
        activations=once_read + max(reading, cache + layers),
        logits=(prompts + 3 * prompts * samples) * model.vocab_size * FLOAT32,
    )


def answering(
    model: ModelConfig, config: FineTuning, shapes: Shapes, *, adapters: int, max_tokens: int, itemsize: int
) -> Need:
    """All questions of `adapters` on one device."""
    return writing(
        model,
        prompts=adapters * shapes.questions,
        samples=1,
        prompt_width=shapes.question_width,
        max_tokens=max(max_tokens, shapes.gold_width),
        itemsize=itemsize,
        adapter_bytes=adapters * _adapter(model, config),
    )


def _adapter(model: ModelConfig, config: FineTuning) -> int:
    return costs.lora_parameters(model, config.projections, config.rank) * FLOAT32


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def fit(
    model: ModelConfig,
    config: FineTuning,
    shapes: Shapes,
    compute: Compute,
    writing_sizes: Writing,
    *,
    free: float,
    devices: int,
    itemsize: int,
    most: int,
) -> Compute:
    """`compute` with what it leaves open: as many adapters as `free` bytes on each device hold, up to `most` each.

    A smaller piece of the loss is chosen only where fewer than `ENOUGH` adapters fit without; recomputing layers only
    where that also makes room for so many more that the work it adds is paid for.
    At least one adapter a device is planned for even where none seems to fit: that is only a forecast.
    """
    room = SHARE * free

    def holds(candidate: Compute, adapters: int) -> bool:
        needs = (
            training(model, config, candidate, adapters=adapters, width=shapes.widths[-1], itemsize=itemsize),
            answering(
                model, config, shapes, adapters=adapters, max_tokens=writing_sizes.answer_tokens, itemsize=itemsize
            ),
        )
        return max(need.total for need in needs) <= room

    def writes(prompts: int) -> bool:
        need = writing(
            model, prompts=prompts, samples=writing_sizes.samples, prompt_width=writing_sizes.prompt_width,
            max_tokens=writing_sizes.max_tokens, itemsize=itemsize,
        )  # fmt: skip
        return need.total <= room

    best: tuple[int, Compute] | None = None
    whole = compute.loss_chunk
    for remat in (True,) if compute.remat else (False, True):
        for loss_chunk in (whole, max(1, whole // 4)):
            candidate = dataclasses.replace(compute, remat=remat, loss_chunk=loss_chunk)
            wanted = -(-compute.chunk // devices) if compute.chunk else most
            count = next((n for n in range(wanted, 0, -1) if holds(candidate, n)), 0)
            dearer = best is not None and remat and not best[1].remat
            price = RECOMPUTING if dearer and compute.chunk is None else 1
            if best is None or (best[0] < min(ENOUGH, wanted) and count > price * best[0]):
                best = count, candidate
    assert best is not None
    count, chosen = best
    prompts = next((n for n in range(4 * most // writing_sizes.samples, 0, -1) if writes(n)), 1)
    return dataclasses.replace(
        chosen,
        chunk=compute.chunk or max(1, count) * devices,
        write_chunk=compute.write_chunk or prompts * writing_sizes.samples * devices,
    )


def lines(need: Need, free: float) -> list[str]:
    """A phase's memory, for people to read."""
    parts = zip(("base model", "adapters", "activations", "logits"), need, strict=True)
    head = [f"{name:<18}{readable(size):>10}" for name, size in parts]
    return [*head, f"{'together':<18}{readable(need.total):>10}   of {readable(free)} free on each device"]


def readable(n: float) -> str:
    """Bytes in the unit people use."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
