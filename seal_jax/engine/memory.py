"""How much memory a run takes on each device, and how many adapters that leaves room for.

The formulas count what XLA keeps: each was read off the buffers that it assigns to Llama- and Qwen-shaped models
(`compiled.memory_analysis()`), and tests/test_memory.py holds them to within 10 % of those: on a CPU in float32, on an
H100 and on TPUs in bfloat16 (writing on a CPU: 20 %). Nothing is allocated or compiled here. Where the
plan is wrong all the same, `training.train_each` and `chunks.in_chunks` halve what they hold and go on.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from seal_jax.engine import costs, inner
from seal_jax.engine.batching import round_up
from seal_jax.engine.costs import FLOAT32
from seal_jax.engine.sampler import Form
from seal_jax.engine.schedule import Room, rows_of
from seal_jax.engine.training import TICK_TOKENS, FineTuning, Shapes
from seal_jax.nn import quantised, sharding
from seal_jax.types import Base, Compute, MeshShape

if TYPE_CHECKING:
    from seal_jax.nn.transformer import Attention, ModelConfig

RESIDENT_COPIES = 3  # of an adapter in the bank: its value and Adam's two moments
TAUGHT_COPIES = 2  # of a step's teacher's states: as they came, and cut to the pieces of the loss
TAUGHT_LOGITS = 3  # of a token, in float32, for which there is a teacher: the teacher's, and what both become
TPU_LANES = 128
SHARE = 0.85  # of the free memory that is planned with: allocators leave gaps
MOST_ON_CPU, MOST = 16, 128  # adapters in training on a device: beyond, padding falls no more
MOST_ANSWERS_ON_CPU, MOST_ANSWERS = 8, 64  # adapters that answer at a time on a device
ENOUGH = 8  # adapters on a device; with as many, recomputed layers that make room for more do not pay
USUAL = 48  # tokens of a step, of which a plan computes as many at a time as it can
LEAST_BUDGET = 24  # tokens of the smallest tick
TICK_OPERATIONS = 5e12  # that keep an accelerator busy for much longer than a step takes to start
LEAST_TICK, MOST_TICK = 4096, 8192  # tokens that an accelerator computes at a time


class Machine(NamedTuple):
    """What a plan is made for."""

    free: float  # bytes on each device
    devices: int  # that hold a model each, or lanes of fsdp x tensor of them
    itemsize: int  # bytes of a number of the base model
    on_cpu: bool
    attention: Attention = "xla"
    vector_width: int = 1  # numbers of which an array's last axis takes a multiple
    base: Base = "full"  # how the layers' matrices are kept
    fsdp: int = 1
    tensor: int = 1

    @property
    def platform(self) -> str:
        """As JAX calls it."""
        return "cpu" if self.on_cpu else "tpu" if self.vector_width > 1 else "gpu"


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
    logits: int  # and in training, where that takes more, the gradient with the layer at work

    @property
    def total(self) -> int:
        return sum(self)


def share_of(model: ModelConfig, machine: Machine) -> ModelConfig:
    """The model as one device of a lane computes it (nn/sharding.py)."""
    fsdp, tensor = machine.fsdp, machine.tensor
    return dataclasses.replace(
        model, hidden_size=model.hidden_size // fsdp, intermediate_size=model.intermediate_size // tensor,
        num_heads=model.num_heads // tensor, num_kv_heads=model.num_kv_heads // tensor,
        vocab_size=model.vocab_size // (fsdp * tensor),
    )  # fmt: skip


def training(
    model: ModelConfig, config: FineTuning, compute: Compute, machine: Machine, *, adapters: int, width: int,
    taught: bool = False, prefix: int = 0,
) -> Need:  # fmt: skip
    """`adapters` in training on one device, a step as wide as this.

    The worst moment is that of the logits, or that of the gradient where it takes more room than they do. `taught`
    says that steps are given a teacher's hidden states, `prefix` how many keys and values a layer they read besides.
    """
    rows, itemsize = config.batch_size // math.gcd(config.batch_size, compute.accumulate), machine.itemsize
    stepping = rows_of(width, Room(adapters, compute.tick_tokens or TICK_TOKENS), config.batch_size)
    tokens, layers, one = stepping * rows * width, model.num_layers, adapter_bytes(model, config, machine, prefix)
    whole, model, unrolled = model, share_of(model, machine), inner.unrolled(model, compute)
    layer = _kept(model, config, machine, width, unrolled=unrolled, prefix=prefix)
    states = TAUGHT_COPIES * tokens * model.hidden_size * itemsize if taught else 0
    taken_out = 0 if stepping == adapters else RESIDENT_COPIES if machine.on_cpu else 1  # the moments come last
    on_tpu = machine.vector_width > 1
    cast = stepping * one * itemsize // FLOAT32  # adapters in the base model's precision, layer by layer
    cast *= 2 if on_tpu else 1  # its loop also keeps what it read of them
    copies = FLOAT32 if on_tpu else FLOAT32 + itemsize
    piece = rows * (width - 1)  # tokens whose logits there are at a time
    piece = math.ceil(piece / math.ceil(2 * piece / compute.loss_chunk)) if taught else min(compute.loss_chunk, piece)
    logits = stepping * piece * model.vocab_size * (copies + TAUGHT_LOGITS * FLOAT32 * taught)
    at_work = (3 * tokens * model.intermediate_size + costs.layer_parameters(model) // layers) * itemsize
    gradient = stepping * one + at_work
    early = on_tpu and machine.fsdp * machine.tensor > 1  # there the gradient is begun while the logits live
    return Need(
        base=base_bytes(whole, machine),
        adapters=(RESIDENT_COPIES * adapters + taken_out * stepping) * one + cast,
        activations=tokens * (layers * model.hidden_size * itemsize + layer if compute.remat else layers * layer)
        + states,
        logits=logits + gradient if early else max(logits, gradient),
    )


def training_at(
    model: ModelConfig, config: FineTuning, shapes: Shapes, compute: Compute, machine: Machine, *, adapters: int
) -> Need:
    """`training` at the widest step of a run."""
    return training(
        model, config, compute, machine, adapters=adapters, width=shapes.widths[-1], taught=shapes.taught,
        prefix=shapes.prefix,
    )  # fmt: skip


def _kept(
    model: ModelConfig, config: FineTuning, machine: Machine, width: int, *, unrolled: bool, prefix: int = 0
) -> int:
    """Bytes of a token that a layer keeps for the backward pass: what its norms, its attention, its gate and the
    adapters read. XLA's attention keeps its scores in float32, in a loop over layers a second time as masked, and on a
    TPU as weights instead."""
    d, f, h, width = (
        round_up(n, machine.vector_width) for n in (model.hidden_size, model.intermediate_size, model.head_dim, width)
    )
    adapted, flash = set(config.projections), machine.attention == "cudnn" and not prefix
    floats = 3 * d + (model.num_heads + 2 * model.num_kv_heads) * h + 2 * f + config.rank * len(adapted)
    floats += model.num_heads * h if flash or "o_proj" in adapted else 0
    floats += d if adapted & {"gate_proj", "up_proj"} else 0
    floats += f if "down_proj" in adapted else 0
    again = 0 if unrolled else machine.itemsize if machine.vector_width > 1 else FLOAT32
    scores = 0 if flash else model.num_heads * (width + prefix) * (FLOAT32 + again)
    return floats * machine.itemsize + scores


def writing(
    model: ModelConfig,
    machine: Machine,
    *,
    prompts: int,
    samples: int,
    prompt_width: int,
    max_tokens: int,
    adapters: int = 0,
    config: FineTuning | None = None,
    prefix: int = 0,
) -> Need:
    """Reading so many prompts and continuing each, on one device, with so many adapters trained by `config`, or as many
    prefixes where those are larger."""
    itemsize, whole, model = machine.itemsize, model, share_of(model, machine)
    slot = costs.kv_bytes(model, itemsize)
    once_read = prompts * prompt_width * slot * round_up(model.head_dim, machine.vector_width) // model.head_dim
    cache = prompts * samples * round_up(prompt_width + max_tokens, machine.vector_width) * slot
    looped = Form.on(machine.platform, whole).loop  # it lays out no layers, and writes each cache beside the old one
    cache *= 2 if looped or (machine.on_cpu and samples > 1) else 1  # on a CPU all layers' prompts are repeated first
    singly = 0 if looped else _layers(model, machine)
    reading = prompts * prompt_width * (6 * model.hidden_size + 3 * model.intermediate_size) * itemsize
    own = adapters * adapter_bytes(whole, config, machine, prefix) if config else 0
    # For the last groups a TPU lays A out anew, with its few ranks in all lanes: one projection, whole and in pieces.
    lanes = round_up(config.rank, machine.vector_width) if config and machine.vector_width > 1 else 0
    anew = 2 * adapters * model.num_layers * model.hidden_size * lanes * itemsize
    return Need(
        base=base_bytes(whole, machine),
        adapters=2 * own,  # as trained, and layer by layer
        activations=once_read + max(reading, singly + max(cache, anew)),
        logits=(prompts + 3 * prompts * samples) * model.vocab_size * FLOAT32,
    )


def answering(
    model: ModelConfig, config: FineTuning, shapes: Shapes, machine: Machine, *, adapters: int, max_tokens: int
) -> Need:
    """All questions of `adapters` on one device."""
    return writing(
        model,
        machine,
        prompts=adapters * shapes.questions,
        samples=1,
        prompt_width=shapes.question_width,
        max_tokens=max(max_tokens, shapes.gold_width),
        adapters=adapters,
        config=config,
        prefix=shapes.prefix,
    )


def base_bytes(model: ModelConfig, machine: Machine) -> int:
    """Bytes of the base model on a device."""
    rest = costs.model_parameters(model) - costs.layer_parameters(model)
    return (rest * machine.itemsize + _layers(model, machine)) // (machine.fsdp * machine.tensor)


def _layers(model: ModelConfig, machine: Machine) -> int:
    """Bytes of the matrices of all layers, as they are kept (nn/quantised.py)."""
    if machine.base == "full":
        return costs.layer_parameters(model) * machine.itemsize
    kernels = model.kernels().values()
    scales = sum(out * (1 if machine.base == "int8" else into // quantised.block(into)) for into, out in kernels)
    return costs.layer_parameters(model) * quantised.BITS[machine.base] // 8 + model.num_layers * scales * FLOAT32


def adapter_bytes(model: ModelConfig, config: FineTuning, machine: Machine, prefix: int = 0) -> int:
    """Bytes of an adapter: its matrices, or the keys and values of a prefix where those are more."""
    cached = 2 * model.num_kv_heads * model.head_dim * prefix  # whole on each device
    model = share_of(model, machine)
    sizes = (round_up(n, machine.vector_width) for name in config.projections for n in model.kernels()[name])
    return model.num_layers * max(config.rank * sum(sizes), cached) * FLOAT32


def available() -> float:
    """Bytes of this machine's own memory that may still be taken."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024.0 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


# ---------------------------------------------------------------------------------------------------------------------
# The plan


def fit(
    model: ModelConfig, config: FineTuning, shapes: Shapes, compute: Compute, sizes: Writing, machine: Machine
) -> Compute:
    """`compute` with what it leaves open: as many adapters as the free memory of each device holds.

    Those in training wait in the bank while others answer, so no more are planned for than leave room for `ENOUGH` to
    answer. A smaller piece of the loss and fewer tokens at a time make room for as many as fill a tick of usual steps;
    where fewer than `ENOUGH` train (or than the user fixed), recomputed layers do. At least one adapter a device is
    planned for even where none seems to fit: it is a forecast.
    """
    room, devices, on_cpu = SHARE * machine.free, machine.devices, machine.on_cpu
    wanted = -(-compute.chunk // devices) if compute.chunk else MOST_ON_CPU if on_cpu else MOST

    def answers(adapters: int, waiting: int) -> bool:
        need = answering(model, config, shapes, machine, adapters=adapters, max_tokens=sizes.answer_tokens)
        return need.total + RESIDENT_COPIES * waiting * adapter_bytes(model, config, machine, shapes.prefix) <= room

    ready = _most(lambda n: answers(n, n), min(ENOUGH, wanted))

    def trains(candidate: Compute, adapters: int) -> bool:
        if training_at(model, config, shapes, candidate, machine, adapters=adapters).total > room:
            return False
        return bool(compute.chunk) or adapters <= (ready or ENOUGH) or answers(ready, adapters)

    def writes(prompts: int) -> bool:
        need = writing(
            model, machine, prompts=prompts, samples=sizes.samples, prompt_width=sizes.prompt_width,
            max_tokens=sizes.max_tokens,
        )  # fmt: skip
        return need.total <= room

    budget = compute.tick_tokens or tick_tokens(model, on_cpu, machine.fsdp * machine.tensor)
    enough, usual = wanted if compute.chunk else min(ENOUGH, wanted), _at_least(USUAL, shapes.widths)
    best, count, chosen = (-1, -1), -1, compute
    for remat in (True,) if compute.remat else (False, True):
        for candidate in _smaller_steps(dataclasses.replace(compute, remat=remat), budget) if count < enough else ():
            fitting = _most(partial(trains, candidate), wanted)
            filled = usual * rows_of(usual, Room(fitting, candidate.tick_tokens or budget), config.batch_size)
            if (min(fitting, enough), filled) > best:
                best, count, chosen = (min(fitting, enough), filled), fitting, candidate
    count, most = wanted if compute.chunk else max(1, count), MOST_ANSWERS_ON_CPU if on_cpu else MOST_ANSWERS
    together = _most(lambda n: answers(n, count), min(count, most))
    prompts = _most(writes, 4 * most // sizes.samples)
    return dataclasses.replace(
        chosen,
        chunk=compute.chunk or count * devices,
        answer_chunk=compute.answer_chunk or max(1, together) * devices,
        write_chunk=compute.write_chunk or max(1, prompts) * sizes.samples * devices,
    )


def _smaller_steps(compute: Compute, budget: int) -> Iterator[Compute]:
    """The same with ever less at work at a time: what is kept of it comes down."""
    halved = [budget >> n for n in range(8) if budget >> n >= LEAST_BUDGET]
    for tokens in [budget] if compute.tick_tokens else halved:
        for piece in (compute.loss_chunk, max(1, compute.loss_chunk // 4)):
            yield dataclasses.replace(compute, tick_tokens=tokens, loss_chunk=piece)


def tick_tokens(model: ModelConfig, on_cpu: bool, sharing: int = 1) -> int:
    """Tokens that keep a device busy, or several that share a model: more of them at a time are no cheaper."""
    if on_cpu:
        return TICK_TOKENS
    return int(min(MOST_TICK, max(LEAST_TICK, TICK_OPERATIONS * sharing / (4 * costs.matmul_parameters(model)))))


def smallest_share(model: ModelConfig, machine: Machine) -> Machine:
    """The machine as lanes of the fewest devices that hold the model with `ENOUGH` adapters, while they train and while
    they answer (the sampler lays the layers out a second time), by the forecast.

    Of as many devices `tensor` is split first, which splits keys, values and scores too. All devices where none fit.
    """
    count, best, config, asked = machine.devices, machine, FineTuning(), Shapes((USUAL,), 1, 1, USUAL, 1)
    for size in (n for n in range(1, count + 1) if count % n == 0):
        for tensor in (n for n in range(size, 0, -1) if size % n == 0):
            if sharding.undivided(model, MeshShape(1, size // tensor, tensor)):
                continue
            lanes = machine._replace(devices=count // size, fsdp=size // tensor, tensor=tensor)
            train = training(model, config, Compute(), lanes, adapters=ENOUGH, width=USUAL).total
            answer = answering(model, config, asked, lanes, adapters=ENOUGH, max_tokens=USUAL).total
            if (
                max(train, answer + RESIDENT_COPIES * ENOUGH * adapter_bytes(model, config, lanes))
                <= SHARE * machine.free
            ):
                return lanes
            best = best if best.devices == lanes.devices else lanes
    return best


def _at_least(size: int, widths: Sequence[int]) -> int:
    """The first width that holds so many tokens, or the last."""
    return next((width for width in widths if width >= size), widths[-1])


def _most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to the limit that fits, 0 where none does."""
    return next((n for n in range(limit, 0, -1) if fits(n)), 0)


def lines(need: Need, free: float) -> list[str]:
    """A phase's memory, for people to read."""
    parts = zip(("base model", "adapters", "activations", "logits"), need, strict=True)
    head = [f"{name:<18}{readable(size):>10}" for name, size in parts]
    return [*head, f"{'together':<18}{readable(need.total):>10}   of {readable(free)} free on each device"]


def readable(n: float) -> str:
    """Bytes in the unit people use."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
