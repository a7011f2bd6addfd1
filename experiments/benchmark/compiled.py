"""The project's own programs, compiled for a TPU or a GPU that is not here: what they take there.

    python -m experiments.benchmark compile --target gpu-h100:1 --model qwen2.5-7b
    python -m experiments.benchmark compile --target tpu-v5e:2x4 --model smollm2-135m --programs inner write

inner: a tick of the inner loop. read, likelihood, answer: questions read with each adapter, gold answers scored, a
token of the answers. write: a token of self-edits. sft: a step of the outer loop's SFT. full: of full fine-tuning.

Shapes alone are given: no weight is made, nothing runs. What compiles, what it needs and what it moves are then known
exactly, how fast it is only as far as XLA's static estimate goes (on a TPU). The compilers are packages that need no
such device: the extras aot-tpu (libtpu) and aot-gpu (JAX's CUDA plugin, Linux). The exit status is 1 where a program
does not compile or does not fit, or where devices exchange anything between adapters.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from seal_jax.engine import costs, full_training, inner, memory, sampler
from seal_jax.engine.batching import round_up
from seal_jax.engine.full_training import FullTuning
from seal_jax.engine.inner import Given, Recipe, Rows
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.schedule import Room, rows_of
from seal_jax.engine.training import TICK_TOKENS, FineTuning, Shapes, init_adapters
from seal_jax.nn import lora, quantised, sharding, transformer
from seal_jax.nn.transformer import ModelConfig
from seal_jax.seal import rewards
from seal_jax.seal.outer.imitation import SFT
from seal_jax.types import Base, Compute, HParams, MeshShape, mesh_sizes, require_at_least

from . import hlo, table, workloads
from .workloads import ANSWER_TOKENS, PROMPT_TOKENS, QUESTION_TOKENS, QUESTIONS, SAMPLE_TOKENS, SAMPLES, TOP_P

Name = Literal["inner", "read", "likelihood", "answer", "write", "sft", "full"]
GOLD_TOKENS = 16  # of an answer whose likelihood is computed
SMALL = {"tpu-v5e:2x2": "libtpu", "gpu-h100:1": "jax_cuda13_plugin"}  # targets, and what compiles for them
TPU_HINTS = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}  # whose tiles are chosen by timing them on the card
ROWS = (
    "{program:<11}{tokens:>7.0f}{seconds:>6.0f}{xla:>8.2f}{plan:>7.2f}{off:>5.0f}{sent:>8.3g}{loops:>8.2f}{once:>7.2f}"
    "{kernels:>9.0f}{moved:>8.1f}{estimate:>9.2f}{floor:>8.2f}"
)
HEAD = """\
                   comp.  GiB a device, plan    sent  weights copied            moved  XLA says   floor
a step of   tokens     s     XLA   plan  % by     MB   loops   once  kernels      GB        ms      ms"""


class Chip(NamedTuple):
    """A device's published figures."""

    peak: costs.Peak  # in bfloat16
    usable: float  # bytes, that JAX takes where nobody says more
    clock: float | None = None  # of a TPU: cycles a second, for XLA's estimates


CHIPS = {
    "tpu-v4": Chip(costs.Peak(275e12, 1228e9), 30.75 * 2**30, 1.05e9),
    "tpu-v5e": Chip(costs.Peak(197e12, 819e9), 15.75 * 2**30, 1.5e9),
    "tpu-v5p": Chip(costs.Peak(459e12, 2765e9), 95.74 * 2**30, 1.75e9),
    "tpu-v6e": Chip(costs.Peak(918e12, 1640e9), 31.25 * 2**30, 1.75e9),
    "gpu-h100": Chip(costs.Peak(989e12, 3352e9), 0.75 * 79.1 * 2**30),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled, and for what."""

    target: str | None = (
        None  # tpu-v5e:2x4, gpu-h100:1, ...: a chip and how many; by default whatever has a compiler here
    )
    model: Annotated[str, tyro.conf.arg(aliases=["--random"])] = "smollm2-135m"  # a published shape, or model files
    programs: tuple[Name, ...] = ("inner", "read", "likelihood", "answer", "write", "sft", "full")
    adapters: Literal["plan"] | int = "plan"  # in training at a time over all devices; plan: as many as fit
    devices: int | None = None  # of the target's, that adapters are spread over; by default those of the mesh, or 1
    mesh: str | None = None  # as --compute.mesh: adapter=2,tensor=2
    tokens: int = workloads.TOKENS  # of a training sequence
    tick_tokens: int | None = None  # that a tick computes on a device, about; by default the planner's
    rank: int = 32  # LoRA r
    unroll: bool | None = None  # layers one after another in a training step; by default as on the target
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the base model
    base: Base = "full"  # how the matrices of its layers are kept: as dtype, or quantised
    usable: float | None = None  # GiB of a device's memory that are planned with; by default the chip's
    attention: Literal["auto", "xla", "cudnn"] = "auto"  # auto: cudnn for a GPU in bfloat16 if cuDNN is installed here
    json: Path | None = None  # where all figures are written
    hlo: Path | None = None  # the folder for the text of every compiled program
    fits: bool = False  # print what of every published shape fits where, by the planner; compile nothing

    def __post_init__(self) -> None:
        require_at_least(1, devices=self.devices or 1, tokens=self.tokens, rank=self.rank)
        if self.target is not None and self.target.partition(":")[0] not in CHIPS:
            raise ValueError(f"--target {self.target}: expected {', '.join(CHIPS)}, and how many: tpu-v5e:2x4")

    @property
    def fine_tuning(self) -> FineTuning:
        """Of the inner loop."""
        return FineTuning(rank=self.rank, alpha=2.0 * self.rank)

    @property
    def shape(self) -> MeshShape:
        """Of the mesh. Raises ValueError where it is not as many devices."""
        sizes = mesh_sizes(self.mesh) if self.mesh else {}
        size = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
        shape = MeshShape(**{"adapter": (self.devices or size) // size, **sizes})
        if self.devices not in (None, shape.adapter * size):
            raise ValueError(f"--mesh {self.mesh} is no mesh of {self.devices} devices (--devices)")
        return shape

    def kernel(self, chip: Chip) -> transformer.Attention:
        """What computes attention."""
        there = chip.clock is None and self.dtype == "bfloat16" and find_spec("nvidia") and find_spec("nvidia.cudnn")
        there = there and jax.__version_info__ >= (0, 11, 2)
        return self.attention if self.attention != "auto" else "cudnn" if there else "xla"


class Program(NamedTuple):
    """A program that can be lowered, and what is known of a step beforehand."""

    lower: Callable[[], Any]
    tokens: int  # that it computes on a device
    forecast: int | None = None  # bytes on a device: the planner's
    floor: float | None = None  # seconds, at the least
    mesh: Mapping[str, int] | None = None  # devices by axis
    alone: bool = True  # nothing may be exchanged between lanes
    refused: str = ""  # why the library itself would not start it


def target_devices(target: str) -> Sequence[Any]:
    """The devices of a target that is not here.

    Raises:
        ValueError: its compiler is not installed, or does not know this topology.
    """
    chip, _, topology = target.partition(":")
    kind = chip.split("-")[0]
    try:
        if kind == "tpu":
            os.environ.update(TPU_HINTS | os.environ)
            return topologies.get_topology_desc(platform="tpu", topology_name=f"{chip[4:]}:{topology}").devices
        card = Path(__file__).with_name("h100.txtpb").read_text(encoding="utf-8")
        shape = f"1x1x{topology or 1}"
        return topologies.get_topology_desc(platform="cuda", target_config=card, topology=shape).devices
    except Exception as error:  # of whatever kind the plugin's is
        raise ValueError(
            f"--target {target}: {str(error).splitlines()[0]}. It needs pip install 'seal_jax[aot-{kind}]', and of "
            "a TPU a topology that is sold: 2x2, 2x4, 2x2x1"
        ) from None


# ---------------------------------------------------------------------------------------------------------------------
# The programs


def machine(settings: Settings, chip: Chip, shape: MeshShape) -> memory.Machine:
    """A mesh of such devices, as the planner knows it."""
    return memory.Machine(
        chip.usable, shape.adapter, jnp.dtype(settings.dtype).itemsize, on_cpu=False, attention=settings.kernel(chip),
        vector_width=memory.TPU_LANES if chip.clock else 1, base=settings.base, fsdp=shape.fsdp, tensor=shape.tensor,
    )  # fmt: skip


def planned(settings: Settings, model: ModelConfig, chip: Chip, machine: memory.Machine) -> Compute:
    """The planner's cut for it."""
    chunk = None if settings.adapters == "plan" else settings.adapters
    unroll = inner.unrolled(model, Compute(unroll=settings.unroll), gpu=chip.clock is None)
    return memory.fit(
        model, settings.fine_tuning,
        Shapes((settings.tokens,), workloads.SEQUENCES, QUESTIONS, QUESTION_TOKENS, GOLD_TOKENS),
        Compute(chunk, chunk, settings.tick_tokens, unroll=unroll),
        memory.Writing(SAMPLES, PROMPT_TOKENS, SAMPLE_TOKENS, ANSWER_TOKENS), machine,
    )  # fmt: skip


def array(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


class Target:
    """A model on devices that are not here, and the planner's cut for them."""

    def __init__(self, settings: Settings, model: ModelConfig, chip: Chip, devices: Sequence[Any], shape: MeshShape):
        dtype, self.model, self.chip, self.devices = jnp.dtype(settings.dtype), model, chip, devices
        self.graph, self.itemsize = transformer.graph(model, dtype, settings.kernel(chip)), dtype.itemsize
        self.lanes, self.share = shape.adapter, shape.fsdp * shape.tensor
        self.mesh = sharding.make_mesh(devices, shape) if len(devices) > 1 else None
        self.axes = dict(self.mesh.shape) if self.mesh else None
        quantised.require(settings.base)
        params = lambda: quantised.of_params(transformer.random_params(0, model, dtype), settings.base)
        self.params = self.laid(jax.eval_shape(params))
        self.config = settings.fine_tuning
        self.machine = machine(settings, chip, shape)
        self.compute = planned(settings, model, chip, self.machine)

    def on(self, tree: Any, *split: str | tuple[str, ...] | None) -> Any:
        """The shapes of a tree on the devices: whole on each, or split along the axis that is named."""
        where = NamedSharding(self.mesh, PartitionSpec(*split)) if self.mesh else SingleDeviceSharding(self.devices[0])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)

    def laid(self, tree: Any, shardings: Callable[[Any, Any], Any] = sharding.shardings) -> Any:
        """The shapes of a model or a bank on the devices, as nn/sharding.py has it."""
        if self.mesh is None:
            return self.on(tree)
        where = shardings(tree, self.mesh)
        return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, where)

    def adapters(self, config: FineTuning, count: int) -> tuple[lora.Adapter, HParams]:
        """E adapters, and their settings."""
        real, whole = array(count, dtype=np.float32), array(count)
        hparams: Any = HParams(real, whole, real, whole, whole)  # type: ignore[arg-type]  # shapes for arrays
        make = lambda blocks, h: init_adapters(blocks, h, config.projections, config.rank)
        return jax.eval_shape(make, self.params["blocks"], hparams), hparams

    def tick(self, config: FineTuning, compute: Compute, width: int, places: int) -> Program:
        """One step of adapters in training; of one adapter its rows are shared by all lanes."""
        count, model, share = self.lanes, self.model, self.share
        config = dataclasses.replace(config, batch_size=round_up(config.batch_size, count))
        size = rows_of(width, Room(places, compute.tick_tokens or TICK_TOKENS), config.batch_size)
        adapter, hparams = jax.eval_shape(lambda many: lora.take(many, 0), self.adapters(config, 1))
        begin = partial(inner._empty, optimiser=config.optimiser, places=places)
        bank = self.laid(jax.eval_shape(lambda a, h: begin(a, Given(h)), adapter, hparams))
        shape = (size, config.batch_size, width)
        sequences = self.on((array(*shape), array(*shape, dtype=np.float32)), None, "adapter")
        lower = partial(
            inner.tick.lower, self.graph, self.params, bank, Rows(self.on(array(size)), *sequences),
            recipe=Recipe(config.optimiser, compute=compute), mesh=self.mesh,
        )  # fmt: skip
        mine = dataclasses.replace(config, batch_size=config.batch_size // count)
        need = memory.training(model, mine, compute, self.machine, adapters=places, width=width)
        numbers, rows = costs.lora_parameters(model, config.projections, config.rank), size * mine.batch_size
        phases = costs.training(model, numbers, [width], epochs=1, sharing=rows, itemsize=self.itemsize)
        floor = costs.floor([phases[0] * rows, phases[1] * size], self.chip.peak) / share
        return Program(lower, rows * width, need.total, floor, self.axes, alone=count == 1)

    def writing(self, name: Name, config: FineTuning | None, shape: tuple[int, ...], sampling: Sampling) -> Program:
        """Reading, scoring or continuing prompts [E, Q, T] K times, in each lane; with adapters, or without."""
        (each, prompts, width, samples), model = shape, self.model
        groups, here = each * self.lanes, lambda tree: self.on(tree, "adapter")
        lora_size = 0 if config is None else costs.lora_parameters(model, config.projections, config.rank)
        sizes = {"prompts": prompts, "samples": samples, "itemsize": self.itemsize}
        prefill, token = (
            (cost * each).seconds(self.chip.peak) / self.share
            for cost in costs.decoding(model, lora_size, prompt_tokens=width, new_tokens=2, sharing=each, **sizes)
        )
        tokens, valid = here((array(groups, prompts, width), array(groups, prompts, width, dtype=bool)))
        adapters = None
        if config is not None:
            adapters = self.laid(self.adapters(config, groups)[0], sharding.spread_shardings)
        base = (self.graph, self.params, adapters)
        if name == "read":
            lower = partial(sampler.read.lower, *base, tokens, valid, mesh=self.mesh)
            return Program(lower, each * prompts * width, floor=prefill, mesh=self.axes)
        logits, cache = jax.eval_shape(lambda *given: sampler.read(self.graph, *given), *base[1:], tokens, valid)
        vocabulary = ("tensor", "fsdp") if model.vocab_size % self.share == 0 else None
        read = sampler.Read(  # split as XLA splits what reading makes
            self.on(logits, "adapter", None, vocabulary), self.on(cache, "adapter", None, None, "tensor")
        )
        if name == "likelihood":
            gold = here((array(groups, prompts, GOLD_TOKENS), array(groups, prompts, GOLD_TOKENS, dtype=bool)))
            lower = partial(rewards.log_likelihoods.lower, *base, read, valid, *gold, mesh=self.mesh)
            return Program(lower, each * prompts * GOLD_TOKENS, mesh=self.axes)
        rows = (groups, prompts, samples)
        keys = here(jax.eval_shape(lambda: sampler.row_keys(0, np.zeros(rows, np.int32))))
        form = sampler.Form.on(self.machine.platform, model)
        rules = {"sampling": sampling, "stop": (0,), "mesh": self.mesh, "form": form}
        lower = partial(sampler.write.lower, keys, *base, read, valid, here(array(*rows)), **rules)
        need = memory.writing(
            model, self.machine, prompts=each * prompts, samples=samples, prompt_width=width,
            max_tokens=sampling.max_tokens, adapters=each, config=config,
        )  # fmt: skip
        return Program(lower, each * prompts * samples, need.total, token, self.axes)

    def full(self, config: FullTuning, compute: Compute, width: int) -> Program:
        """A step of full fine-tuning; lanes share its rows, all devices the state."""
        count, base = self.lanes, self.machine.base
        refused = "" if base == "full" else f"--base {base} keeps no full weights to train"
        rows = round_up(config.batch_size, count)
        need = full_training.need(self.model, config, compute, self.machine, width=width)
        try:
            full_training.require_memory(need, self.chip.usable)
        except ValueError as error:
            refused = str(error)
        start = partial(full_training._start, optimiser=config.optimiser, mesh=self.mesh, steps=1)
        state = full_training.abstract(jax.eval_shape(start, self.params), self.mesh, full_training.kept_as)
        lower = partial(
            full_training.train_step.lower, self.graph, state if self.mesh else self.on(state),
            *self.on((array(rows, width), array(rows, width, dtype=np.float32)), "adapter"),
            self.on(jax.eval_shape(lambda many: lora.take(many, 0), self.adapters(self.config, 1)[1])),
            dtype=jax.tree.leaves(self.params)[0].dtype, optimiser=config.optimiser, compute=compute, mesh=self.mesh,
        )  # fmt: skip
        # Without the model as given, which may lie on the host.
        tokens = rows // count * width
        return Program(lower, tokens, need.total - need.base, mesh=self.axes, alone=False, refused=refused)


def programs(
    settings: Settings, model: ModelConfig, chip: Chip, devices: Sequence[Any]
) -> Iterator[tuple[Name, Program]]:
    """The programs that were asked for; the inner loop's in one lane, for each runs its own."""
    shape, long = settings.shape, round_up(PROMPT_TOKENS + SAMPLE_TOKENS, 32)
    target = Target(settings, model, chip, devices, shape)
    one = Target(settings, model, chip, devices[: target.share], shape._replace(adapter=1))
    compute, on_each = target.compute, lambda total: math.ceil((total or 1) / target.lanes)
    questions = (on_each(compute.answer_chunk), QUESTIONS, QUESTION_TOKENS, 1)
    prompts = (on_each(compute.write_chunk) // SAMPLES, 1, PROMPT_TOKENS, SAMPLES)
    greedy, sampled = Sampling(ANSWER_TOKENS, temperature=0), Sampling(SAMPLE_TOKENS, top_p=TOP_P)
    for name in settings.programs:
        if name == "inner":
            yield name, one.tick(one.config, compute, settings.tokens, on_each(compute.chunk))
        elif name == "sft":
            yield name, target.tick(SFT, Compute(chunk=1, remat=True, unroll=settings.unroll), long, 1)
        elif name == "full":
            yield name, target.full(FullTuning(), compute, long)
        elif name == "write":
            yield name, target.writing(name, None, prompts, sampled)
        else:
            yield name, target.writing(name, target.config, questions, greedy)


# ---------------------------------------------------------------------------------------------------------------------
# Compile, and say


def matrices(model: ModelConfig, tokens: int) -> set[tuple[int, ...]]:
    """The shapes of what nothing should copy: a layer's matrices, also side by side, their stacks, and the tables. Left
    out is what activations of so many tokens have too."""
    kernels, d = model.kernels(), model.hidden_size
    (_, q), (_, kv), (_, gate) = (kernels[name] for name in ("q_proj", "k_proj", "gate_proj"))
    layer = {*kernels.values(), (d, q + 2 * kv), (d, 2 * gate)}
    shapes = {*layer, *((model.num_layers, *shape) for shape in layer), (model.vocab_size, d)}
    return {tuple(sorted(shape)) for shape in shapes if tokens not in shape}


def compile_one(program: Program, chip: Chip, model: ModelConfig, kept: Path | None) -> dict[str, Any]:
    """What a program takes, in bytes and seconds, or why it does not compile."""
    known = {"tokens": program.tokens, "forecast": program.forecast, "floor": program.floor}
    if program.refused:
        return {**known, "problem": program.refused, "failed": False}
    start = time.perf_counter()
    try:
        compiled = program.lower().compile(compiler_options=None if chip.clock else GPU_OPTIONS)
    except Exception as error:  # XLA's: out of memory, above all
        return {**known, "problem": str(error), "failed": True}
    seconds, text, found = time.perf_counter() - start, compiled.as_text(), compiled.memory_analysis()
    if kept is not None:
        kept.write_text(text, encoding="utf-8")
    step = hlo.step(text, matrices(model, program.tokens), program.mesh)
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    parts = found.argument_size_in_bytes + new + found.temp_size_in_bytes
    needed = getattr(found, "total_allocation_bytes", 0) or parts  # a TPU's temporaries are said too large in training
    problem = "" if needed <= chip.usable else f"too large: {memory.readable(chip.usable)} can be used"
    if crossing := [name for name in step.collectives if "adapter" in name]:
        problem = f"{', '.join(crossing)}: nothing should be exchanged between adapters" if program.alone else problem
    taken = {**known, **step._asdict(), "seconds": seconds, "bytes": needed, "estimate": None}
    if chip.clock:  # its operations are no kernels, and what they move is in the estimate
        taken |= {"kernels": None, "moved": None, "estimate": step.cycles / chip.clock}
    return {**taken, "problem": problem, "failed": bool(problem)}


def lines(name: str, row: dict[str, Any]) -> str:
    """A program's line under `HEAD`, and what is wrong with it."""
    head = row["problem"].partition("\n")[0]
    if "bytes" not in row:
        return f"{name:<11}{'fails: ' if row['failed'] else 'is refused: '}{head.partition(';')[0]}"
    of = lambda key, unit: row[key] and row[key] / unit
    figures = {"xla": of("bytes", 2**30), "plan": of("forecast", 2**30), "loops": of("copied_in_loops", 1e9)}
    figures |= {
        "once": of("copied_once", 1e9),
        "moved": of("moved", 1e9),
        "sent": sum(row["collectives"].values()) / 1e6,
    }
    figures |= {"estimate": of("estimate", 1e-3), "floor": of("floor", 1e-3)}
    figures |= {"off": row["forecast"] and 100 * (row["forecast"] / row["bytes"] - 1)}
    shown = table.line(ROWS, **row | figures, program=name)
    over: Counter[str] = Counter()
    for kind, size in row["collectives"].items():
        over[kind.partition(" over ")[2]] += size
    sent = "; ".join(f"over {axes} {size / 1e6:.3g} MB" for axes, size in sorted(over.items()))
    return "\n".join([shown, *(f"{'':<11}{line}" for line in (sent, head) if line)])


def show(settings: Settings, target: str, model: ModelConfig) -> dict[str, Any]:
    """Compiles program after program and prints a line of each."""
    chip, found = CHIPS[target.partition(":")[0]], target_devices(target)
    if settings.usable is not None:
        chip = chip._replace(usable=settings.usable * 2**30)
    shape = settings.shape
    if (count := math.prod(shape)) > len(found):
        raise ValueError(f"{count} devices: {target} has {len(found)}")
    if problem := sharding.undivided(model, shape):
        raise ValueError(f"--mesh {settings.mesh}: {problem}")
    devices, rows = found[:count], {}
    compute = Target(settings, model, chip, devices, shape).compute
    among = f" as {settings.mesh}" if settings.mesh else ""
    print(
        f"\n{settings.model} in {settings.dtype} on {len(devices)}{among} of {len(found)} x {devices[0].device_kind} "
        f"({memory.readable(chip.usable)} each), jax {jax.__version__}\n{compute.chunk} adapters of rank "
        f"{settings.rank} in training, {compute.answer_chunk} that answer, {compute.write_chunk} self-edits written at "
        f"a time; ticks of {compute.tick_tokens} tokens{', layers recomputed' if compute.remat else ''}; attention by "
        f"{settings.kernel(chip)}\n\n{HEAD}",
        flush=True,
    )
    for name, program in programs(settings, model, chip, devices):
        kept = None if settings.hlo is None else settings.hlo / f"{target.replace(':', '-')}-{name}.hlo"
        rows[name] = compile_one(program, chip, model, kept)
        print(lines(name, rows[name]), flush=True)
    return {"compute": dataclasses.asdict(compute), "programs": rows}


def main(settings: Settings, model: ModelConfig) -> tuple[int, dict[str, Any]]:
    """Compiles for one target, or a small one of each compiler that is installed: the exit status, and all figures.

    Raises:
        ValueError: there is no compiler, or there are fewer devices than asked for.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing of the target but its compiler
    targets = [settings.target] if settings.target else [name for name, package in SMALL.items() if find_spec(package)]
    if not targets:
        raise ValueError("no compiler for a TPU or GPU is installed: pip install 'seal_jax[aot-tpu]' or '[aot-gpu]'")
    found = {target: show(settings, target, model) for target in targets}
    failed = any(row["failed"] for own in found.values() for row in own["programs"].values())
    return int(failed), {"jax": jax.__version__, "settings": dataclasses.asdict(settings), "targets": found}
