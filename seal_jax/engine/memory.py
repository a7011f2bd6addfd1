"""How much memory a run takes on each device, and how many adapters that leaves room for.

The formulas count what XLA keeps: each was fitted to the buffers it assigns (`compiled.memory_analysis()`) for Llama-
and Qwen-shaped models in float32, and tests/test_memory.py holds them to within 20 % of those. Nothing is allocated or
compiled here. Where the plan is wrong all the same, `inner.in_chunks` halves the chunk and goes on.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from seal_jax.engine import costs
from seal_jax.engine.costs import FLOAT32
from seal_jax.engine.training import FineTuning, Shapes

if TYPE_CHECKING:
    from seal_jax.nn.transformer import ModelConfig

ADAPTER_COPIES = 6  # as it began; value, gradient, Adam's two moments; the new value before it replaces the old
SHARE = 0.85  # of the free memory that is planned with: allocators leave gaps
MOST_ON_CPU, MOST = 8, 64  # adapters on a device: beyond, time per adapter falls no more and padding grows
ENOUGH = 8  # adapters on a device; with so many, recomputing layers to fit more does not pay
RECOMPUTING = 4 / 3  # the work of a step when layers are recomputed, over that when they are kept


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
    model: ModelConfig, config: FineTuning, *, adapters: int, width: int, itemsize: int, loss_chunk: int | None = None
) -> Need:
    """The widest step of `adapters` on one device. `itemsize` is the base model's, in bytes."""
    rows = max(1, config.batch_size // config.optimiser.accumulate)
    tokens = adapters * rows * width
    d, f = model.hidden_size, model.intermediate_size
    kept = 8 * d + 4 * f + 2 * model.num_heads * width  # a token and layer: the scores of attention come last
    if set(config.projections) & {"o_proj", "gate_proj", "up_proj", "down_proj"}:
        kept += 2 * d + f + config.rank * len(config.projections)  # their inputs too
    floats = kept + model.num_layers * d if config.optimiser.remat else model.num_layers * kept
    chunk = min(loss_chunk or config.optimiser.loss_chunk, rows * width)
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


class Plan(NamedTuple):
    """How a run is cut to the memory it finds. Kept in the run folder: a run that carries on is cut the same way."""

    chunk: int  # adapters at a time, over all devices
    remat: bool
    loss_chunk: int
    write_chunk: int  # self-edits written at a time, over all devices

    def applied(self, config: FineTuning) -> FineTuning:
        """The settings with the plan filled in."""
        optimiser = dataclasses.replace(config.optimiser, remat=self.remat, loss_chunk=self.loss_chunk)
        return dataclasses.replace(config, chunk=self.chunk, optimiser=optimiser)


def fit(
    model: ModelConfig,
    config: FineTuning,
    shapes: Shapes,
    *,
    max_tokens: int,
    prompt_width: int,
    samples: int,
    written_tokens: int,
    write_chunk: int | None,
    free: float,
    devices: int,
    itemsize: int,
    most: int,
) -> Plan:
    """As many adapters as `free` bytes on each device hold, up to `most` each; what the config fixes stays as it is.

    A smaller piece of the loss is chosen only where fewer than `ENOUGH` adapters fit without; recomputing layers only
    where that also makes room for so many more that the work it adds is paid for.
    At least one adapter a device is planned for even where none seems to fit: that is only a forecast.
    """
    room = SHARE * free

    def holds(config: FineTuning, adapters: int) -> bool:
        needs = (
            training(model, config, adapters=adapters, width=shapes.widths[-1], itemsize=itemsize),
            answering(model, config, shapes, adapters=adapters, max_tokens=max_tokens, itemsize=itemsize),
        )
        return max(need.total for need in needs) <= room

    def writes(prompts: int) -> bool:
        need = writing(
            model, prompts=prompts, samples=samples, prompt_width=prompt_width, max_tokens=written_tokens,
            itemsize=itemsize,
        )  # fmt: skip
        return need.total <= room

    best: tuple[int, FineTuning] | None = None
    whole = config.optimiser.loss_chunk
    for remat in (True,) if config.optimiser.remat else (False, True):
        for loss_chunk in (whole, max(1, whole // 4)):
            optimiser = dataclasses.replace(config.optimiser, remat=remat, loss_chunk=loss_chunk)
            candidate = dataclasses.replace(config, optimiser=optimiser)
            wanted = -(-config.chunk // devices) if config.chunk else most
            count = next((n for n in range(wanted, 0, -1) if holds(candidate, n)), 0)
            dearer = best is not None and remat and not best[1].optimiser.remat
            price = RECOMPUTING if dearer and config.chunk is None else 1
            if best is None or (best[0] < min(ENOUGH, wanted) and count > price * best[0]):
                best = count, candidate
    assert best is not None
    count, chosen = best
    prompts = next((n for n in range(4 * most // samples, 0, -1) if writes(n)), 1)
    return Plan(
        chunk=config.chunk or max(1, count) * devices,
        remat=chosen.optimiser.remat,
        loss_chunk=chosen.optimiser.loss_chunk,
        write_chunk=write_chunk or prompts * samples * devices,
    )


def lines(need: Need, free: float) -> list[str]:
    """A phase's memory, for people to read."""
    parts = zip(("base model", "adapters", "activations", "logits"), need, strict=True)
    head = [f"{name:<18}{readable(size):>10}" for name, size in parts]
    return [*head, f"{'together':<18}{readable(need.total):>10}   of {readable(free)} free on each device"]


def readable(n: float) -> str:
    """Bytes in the unit people use."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
