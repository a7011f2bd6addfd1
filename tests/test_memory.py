"""The memory planner against what XLA assigns, and what it decides. Programs are compiled, nothing is allocated."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seal_jax.engine import inner, memory, sampler
from seal_jax.engine.inner import Given, Recipe, Rows
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.schedule import Room, rows_of
from seal_jax.engine.training import TICK_TOKENS, FineTuning, Shapes, init_adapters
from seal_jax.io.architectures import NAMED
from seal_jax.nn import lora, quantised, sharding, transformer
from seal_jax.nn.losses import distillation, next_token
from seal_jax.run import plan, runtime
from seal_jax.seal.outer.imitation import SFT
from seal_jax.types import PROJECTIONS, Base, Compute, HParams, MeshShape

QV = ("q_proj", "v_proj")
GIB = 2**30
CPU = memory.Machine(free=0, devices=1, itemsize=4, on_cpu=True)
GPU = memory.Machine(free=0, devices=1, itemsize=2, on_cpu=False, attention="cudnn")


def shape(*size, dtype=np.int32):
    return jax.ShapeDtypeStruct(size, dtype)


def abstract(name: str, layers: int, base: Base):
    """A model of few layers, without its weights."""
    if base != "full":
        pytest.importorskip("qwix", reason="the extra `quant` is not installed")
    config = dataclasses.replace(NAMED[name], num_layers=layers)
    params = jax.eval_shape(lambda: quantised.of_params(transformer.random_params(0, config), base))
    return config, transformer.graph(config), params


def abstract_adapters(params, config: FineTuning, count: int):
    hyper = HParams(
        shape(count, dtype=np.float32), shape(count), shape(count, dtype=np.float32), shape(count), shape(count)
    )
    blocks = params["blocks"]
    return hyper, jax.eval_shape(lambda b, h: init_adapters(b, h, config.projections, config.rank), blocks, hyper)


def assigned(compiled) -> int:
    """Bytes of everything a program needs at once; what is donated lies where its new value will."""
    found = compiled.memory_analysis()
    given, new = found.argument_size_in_bytes, found.output_size_in_bytes - found.alias_size_in_bytes
    return found.temp_size_in_bytes + given + new


ALL = 1024  # tokens of a tick: all adapters below take a step together
TRAINING = [
    ("smollm2-135m", 30, 4, 48, FineTuning(projections=QV), Compute()),
    ("smollm2-135m", 12, 4, 128, FineTuning(projections=PROJECTIONS, rank=16), Compute(tick_tokens=ALL)),
    ("llama-3.2-1b", 4, 4, 128, FineTuning(projections=PROJECTIONS), Compute()),
    ("qwen2.5-7b", 3, 4, 128, FineTuning(projections=QV), Compute(tick_tokens=ALL)),
    ("qwen3-1.7b", 4, 2, 512, FineTuning(projections=QV), Compute(tick_tokens=ALL)),
    ("qwen2.5-7b", 3, 1, 256, FineTuning(projections=PROJECTIONS, batch_size=4), Compute(remat=True)),
    ("smollm2-135m", 12, 4, 256, FineTuning(projections=QV), Compute(tick_tokens=ALL, loss_chunk=32)),
    ("smollm2-135m", 12, 64, 64, FineTuning(projections=PROJECTIONS), Compute(tick_tokens=256)),  # most of them wait
]


def compiled_tick(name, layers, adapters, width, config, compute, base="full", mesh=None, taught=False, prefix=0):
    shapes, model, params = abstract(name, layers, base)
    hyper, one = jax.eval_shape(lambda many: lora.take(many, 0), abstract_adapters(params, config, 1))
    if prefix:
        cached = (shapes.num_layers, shapes.num_kv_heads)
        keys, values = ((*cached, *size) for size in ((shapes.head_dim, prefix), (prefix, shapes.head_dim)))
        floats = (shape(*size, dtype=np.float32) for size in ((), keys, values))
        one = lora.Prefix({}, {}, *floats, shape(prefix, dtype=bool))
    bank = jax.eval_shape(
        lambda a, h: inner._empty(a, Given(h), optimiser=config.optimiser, places=adapters), one, hyper
    )
    size = rows_of(width, Room(adapters, compute.tick_tokens or TICK_TOKENS), config.batch_size)
    read = (size, config.batch_size, width)
    states = shape(*read, shapes.hidden_size, dtype=np.float32) if taught else None
    rows = Rows(shape(size), shape(*read), shape(*read, dtype=np.float32), states)
    if mesh is not None:
        laid = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        params, bank = (jax.tree.map(laid, tree, sharding.shardings(tree, mesh)) for tree in (params, bank))
    recipe = Recipe(config.optimiser, distillation if taught else next_token, compute)
    return shapes, inner.tick.lower(model, params, bank, rows, recipe=recipe, mesh=mesh).compile()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "adapters", "width", "config", "compute", "base"),
    [*((*case, "full") for case in TRAINING), (*TRAINING[0], "nf4"), (*TRAINING[3], "nf4"), (*TRAINING[5], "int8")],
)
def test_training_needs_what_was_planned(name, layers, adapters, width, config, compute, base):
    shapes, compiled = compiled_tick(name, layers, adapters, width, config, compute, base)
    machine = CPU._replace(base=base)
    planned = memory.training(shapes, config, compute, machine, adapters=adapters, width=width).total
    assert planned == pytest.approx(assigned(compiled), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("where", [MeshShape(1, fsdp=2), MeshShape(1, tensor=2)])
def test_a_device_of_two_that_share_a_model_needs_what_was_planned(where):
    config, compute = FineTuning(projections=PROJECTIONS), Compute(tick_tokens=ALL)
    mesh = sharding.make_mesh(jax.devices()[:2], where)
    shapes, compiled = compiled_tick("llama-3.2-1b", 2, 8, 64, config, compute, mesh=mesh)
    machine = CPU._replace(fsdp=where.fsdp, tensor=where.tensor)
    planned = memory.training(shapes, config, compute, machine, adapters=8, width=64).total
    assert planned == pytest.approx(assigned(compiled), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("case", [TRAINING[0], TRAINING[1], TRAINING[3]])
def test_a_teachers_states_and_logits_are_in_the_plan(case):
    adapters, width, config, compute = case[2:]
    shapes, compiled = compiled_tick(*case, taught=True)
    planned = memory.training(shapes, config, compute, CPU, adapters=adapters, width=width, taught=True).total
    assert planned == pytest.approx(assigned(compiled), rel=0.1)
    without = memory.training(shapes, config, compute, CPU, adapters=adapters, width=width).total
    assert planned > without


@pytest.mark.slow
@pytest.mark.parametrize(("case", "prefix"), [(TRAINING[0], 32), (TRAINING[3], 1024)])
def test_a_prefix_has_room_in_the_plan_beside_adapters(case, prefix):
    """The plan is for whichever of the two takes more; a long prefix takes more than LoRA on two projections."""
    adapters, width, config, compute = case[2:]
    shapes, compiled = compiled_tick(*case, taught=True, prefix=prefix)
    planned = memory.training(
        shapes, config, compute, CPU, adapters=adapters, width=width, taught=True, prefix=prefix
    ).total
    assert assigned(compiled) <= 1.1 * planned <= 1.5 * assigned(compiled)


def test_an_adapter_that_waits_takes_its_place_in_the_bank_and_no_more():
    def need(adapters: int) -> memory.Need:
        return memory.training(
            NAMED["smollm2-135m"], FineTuning(), Compute(tick_tokens=256), CPU, adapters=adapters, width=64
        )

    more, less = need(9), need(8)  # of which 4 take a step
    assert more._replace(adapters=0) == less._replace(adapters=0)
    assert more.adapters - less.adapters == 3 * memory.adapter_bytes(NAMED["smollm2-135m"], FineTuning(), CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "prompts", "samples", "config", "base"),
    [
        ("smollm2-135m", 8, 8, 4, None, "full"),
        ("smollm2-135m", 8, 40, 1, FineTuning(projections=PROJECTIONS), "full"),
        ("llama-3.2-1b", 3, 40, 1, FineTuning(projections=QV), "full"),
        ("smollm2-135m", 8, 8, 4, None, "int8"),
        ("llama-3.2-1b", 3, 40, 1, FineTuning(projections=QV), "nf4"),
    ],
)
def test_writing_needs_what_was_planned(name, layers, prompts, samples, config, base):
    """A quantised layer's matrices are made when it is their turn, and not all before the first token."""
    shapes, model, params = abstract(name, layers, base)
    adapters, width, max_tokens = 8, 64, 32
    lora = None if config is None else abstract_adapters(params, config, adapters)[1]
    valid = shape(adapters, prompts // adapters, width, dtype=bool)
    read = jax.eval_shape(
        lambda p, a, t, v: sampler.read(model, p, a, t, v), params, lora, shape(*valid.shape), valid
    )  # fmt: skip
    rows = (*valid.shape[:2], samples)
    keys = jax.eval_shape(lambda: sampler.row_keys(0, jnp.zeros(rows, int)))
    lowered = sampler.write.lower(
        keys, model, params, lora, read, valid, shape(*rows), sampling=Sampling(max_tokens, top_p=0.95), stop=(2,)
    )
    planned = memory.writing(
        shapes, CPU._replace(base=base), prompts=prompts, samples=samples, prompt_width=width, max_tokens=max_tokens,
        adapters=adapters, config=config,
    ).total  # fmt: skip
    assert planned == pytest.approx(assigned(lowered.compile()), rel=0.2)


# GiB that XLA assigns in bfloat16, by jax 0.11.2: `python -m experiments.benchmark compile --target gpu-h100:1 --random
# MODEL --programs inner --adapters N --tokens T` prints them (with --attention, --[no-]unroll, --tick-tokens).
XLA, TPU = GPU._replace(attention="xla"), GPU._replace(attention="xla", vector_width=memory.TPU_LANES)
LOOP, UNROLLED = Compute(unroll=False), Compute(unroll=True)
FULL = Compute(unroll=False, tick_tokens=4096)
TICKS = [
    (GPU, "smollm2-135m", 8, 512, LOOP, 2.492),
    (GPU, "smollm2-135m", 128, 256, Compute(unroll=True, tick_tokens=8192), 8.180),  # 32 step, 96 wait
    (GPU, "llama-3.2-1b", 64, 48, LOOP, 9.856),
    (GPU, "qwen2.5-7b", 8, 512, LOOP, 29.255),
    (GPU, "qwen2.5-7b", 128, 48, Compute(tick_tokens=1024), 33.734),  # 21 step, 107 wait
    (XLA, "smollm2-135m", 64, 48, LOOP, 3.847),
    (XLA, "smollm2-135m", 64, 48, UNROLLED, 3.764),
    (XLA, "smollm2-135m", 8, 512, LOOP, 7.062),
    (XLA, "smollm2-135m", 8, 512, UNROLLED, 4.463),
    (XLA, "llama-3.2-1b", 64, 48, LOOP, 10.096),
    (XLA, "llama-3.2-1b", 64, 48, UNROLLED, 9.927),
    (XLA, "llama-3.2-1b", 8, 512, LOOP, 15.822),
    (XLA, "llama-3.2-1b", 8, 512, UNROLLED, 11.299),
    (XLA, "qwen2.5-7b", 64, 48, LOOP, 34.735),
    (XLA, "qwen2.5-7b", 8, 512, LOOP, 41.991),
    (TPU, "smollm2-135m", 128, 48, Compute(unroll=False, tick_tokens=8192), 8.26),  # tpu-v5e:2x2
    (TPU, "llama-3.2-1b", 128, 48, FULL, 16.32),  # tpu-v5p:2x2x1; 85 step, 43 wait
    (TPU._replace(tensor=2), "llama-3.2-1b", 128, 48, FULL, 11.35),  # tpu-v5e:2x2 --mesh adapter=2,tensor=2
    (TPU._replace(tensor=4), "qwen2.5-7b", 47, 48, FULL, 12.62),
    (GPU._replace(tensor=2), "qwen2.5-7b", 128, 48, FULL, 32.97),
    (GPU._replace(fsdp=2, tensor=2), "qwen2.5-7b", 128, 48, FULL, 21.07),
]


@pytest.mark.parametrize(("machine", "name", "adapters", "width", "compute", "gib"), TICKS)
def test_training_elsewhere_needs_what_was_planned(machine, name, adapters, width, compute, gib):
    compute = dataclasses.replace(compute, tick_tokens=compute.tick_tokens or adapters * width)
    planned = memory.training(NAMED[name], FineTuning(), compute, machine, adapters=adapters, width=width)
    assert planned.total / GIB == pytest.approx(gib, rel=0.1)


@pytest.mark.parametrize(("name", "gib"), [("smollm2-135m", 0.749), ("llama-3.2-1b", 3.607), ("qwen2.5-7b", 18.156)])
def test_an_outer_step_needs_what_was_planned(name, gib):
    """On an H100: --programs sft."""
    planned = memory.training(NAMED[name], SFT, Compute(remat=True), GPU, adapters=1, width=352)
    assert planned.total / GIB == pytest.approx(gib, rel=0.1)


@pytest.mark.parametrize(
    ("machine", "name", "write", "answer"),  # 51 x 5 self-edits, and 64 adapters x 5 answers: --programs write answer
    [
        (XLA, "smollm2-135m", 4.11, 2.93),
        (XLA, "llama-3.2-1b", 7.82, 6.58),
        (XLA, "qwen2.5-7b", 32.53, 35.84),
        (TPU, "smollm2-135m", 3.21, 3.11),  # tpu-v5e:2x2
        (TPU, "llama-3.2-1b", 7.81, 7.83),  # tpu-v5e:2x4, tpu-v5p:2x2x1
    ],
)
def test_writing_elsewhere_needs_what_was_planned(machine, name, write, answer):
    model, shapes = NAMED[name], Shapes((48,), 8, questions=5, question_width=40, gold_width=16)
    edits = memory.writing(model, machine, prompts=51, samples=5, prompt_width=200, max_tokens=128)
    answers = memory.answering(model, FineTuning(), shapes, machine, adapters=64, max_tokens=64)
    assert (edits.total / GIB, answers.total / GIB) == pytest.approx((write, answer), rel=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# What is decided

SHAPES = Shapes(widths=(64, 256), capacity=8, questions=5, question_width=64, gold_width=8)


WRITING = memory.Writing(samples=5, prompt_width=256, max_tokens=256, answer_tokens=64)


QWEN = NAMED["qwen2.5-7b"]


def fit(free: float, compute: Compute = Compute(), *, devices: int = 1, on_cpu: bool = False) -> Compute:
    machine = GPU._replace(free=free, devices=devices, on_cpu=on_cpu)
    return memory.fit(QWEN, FineTuning(), SHAPES, compute, WRITING, machine)


def trains(free: float, compute: Compute, adapters: int) -> bool:
    """Whether so many train on a device."""
    need = memory.training(QWEN, FineTuning(), compute, GPU, adapters=adapters, width=256)
    return need.total <= memory.SHARE * free


def answers(free: float, adapters: int, *, waiting: int) -> bool:
    """Whether so many answer on a device while others are in its bank."""
    need = memory.answering(QWEN, FineTuning(), SHAPES, GPU, adapters=adapters, max_tokens=64)
    bank = memory.RESIDENT_COPIES * waiting * memory.adapter_bytes(QWEN, FineTuning(), GPU)
    return need.total + bank <= memory.SHARE * free


def test_more_memory_holds_more_adapters_and_recomputes_less():
    tight, *roomy = [fit(free * GIB) for free in (19, 34, 40, 80)]
    assert tight.remat and tight.chunk >= memory.ENOUGH
    assert not any(plan.remat for plan in roomy)
    assert tight.chunk < roomy[0].chunk < roomy[1].chunk < roomy[2].chunk == memory.MOST
    assert tight.answer_chunk < roomy[0].answer_chunk < roomy[2].answer_chunk == memory.MOST_ANSWERS
    assert tight.write_chunk < roomy[0].write_chunk < roomy[1].write_chunk < roomy[2].write_chunk
    assert fit(1000 * GIB) == roomy[2]


def test_what_is_planned_fits_and_one_more_would_not():
    for free in (34 * GIB, 40 * GIB, 48 * GIB):
        plan = fit(free)
        assert trains(free, plan, plan.chunk)
        assert answers(free, plan.answer_chunk, waiting=plan.chunk)
        assert plan.answer_chunk == plan.chunk or not answers(free, plan.answer_chunk + 1, waiting=plan.chunk)
        more = plan.chunk + 1
        assert not (trains(free, plan, more) and answers(free, memory.ENOUGH, waiting=more))


def test_the_bank_leaves_room_for_enough_to_answer_where_so_many_can():
    for free in (GIB * n for n in range(20, 60, 2)):
        plan = fit(free)
        possible = sum(answers(free, n, waiting=n) for n in range(1, memory.ENOUGH + 1))
        assert plan.answer_chunk >= possible
        assert plan.chunk <= max(possible, memory.ENOUGH) or possible == memory.ENOUGH


def test_as_many_usual_tokens_are_computed_at_a_time_as_fit_and_layers_recomputed_only_for_enough():
    budgets = [memory.LEAST_TICK >> n for n in range(8)]
    ways = [Compute(tick_tokens=tokens, loss_chunk=piece) for tokens in budgets for piece in (256, 64)]

    def filled(chunk: int, way: Compute) -> int:  # SHAPES' first width holds a usual step
        return SHAPES.widths[0] * rows_of(SHAPES.widths[0], Room(chunk, way.tick_tokens))

    decided = set()
    for free in (GIB * n / 2 for n in range(36, 120, 4)):
        plan = fit(free)
        ready = sum(answers(free, n, waiting=n) for n in range(1, memory.ENOUGH + 1)) or memory.ENOUGH
        most = [
            max((n for n in range(1, memory.MOST + 1)
                 if trains(free, way, n) and (n <= ready or answers(free, ready, waiting=n))), default=0)
            for way in ways
        ]  # fmt: skip
        assert not plan.remat or max(most) < memory.ENOUGH
        assert trains(free, plan, plan.chunk) and plan.chunk >= min(memory.ENOUGH, max(most))
        if max(most) >= memory.ENOUGH:
            enough = [(n, way) for n, way in zip(most, ways, strict=True) if n >= memory.ENOUGH]
            assert filled(plan.chunk, plan) == max(filled(n, way) for n, way in enough)
        decided.add(Compute(remat=plan.remat, tick_tokens=plan.tick_tokens, loss_chunk=plan.loss_chunk))
    assert len(decided) >= 4
    assert {way.remat for way in decided} == {True, False}


def test_a_number_that_the_user_fixed_is_made_room_for():
    tight = 21 * GIB
    most = sum(trains(tight, Compute(tick_tokens=64, loss_chunk=64), n) for n in range(1, 129))
    assert memory.ENOUGH < most < 128
    assert fit(tight, Compute(chunk=memory.ENOUGH)) == fit(tight)
    for chunk, remat in ((memory.ENOUGH + 1, False), (most, False), (most + 1, True)):
        plan = fit(tight, Compute(chunk=chunk))
        assert (plan.chunk, plan.remat) == (chunk, remat)
        assert trains(tight, plan, chunk)


def test_every_device_holds_its_share():
    one, four = fit(48 * GIB), fit(48 * GIB, devices=4)
    for name in ("chunk", "answer_chunk", "write_chunk"):
        assert getattr(four, name) == 4 * getattr(one, name)
    assert four.tick_tokens == one.tick_tokens


def test_what_the_user_fixed_stays():
    fixed = Compute(
        chunk=6, answer_chunk=3, tick_tokens=100, write_chunk=10, remat=True, width_cuts=(64,), accumulate=2, devices=1
    )
    assert fit(48 * GIB, fixed) == fixed
    assert fit(19 * GIB, Compute(tick_tokens=300)).tick_tokens == 300


def test_a_tick_keeps_its_device_busy():
    sizes = [memory.tick_tokens(NAMED[name], on_cpu=False) for name in ("smollm2-135m", "llama-3.2-1b", "qwen2.5-7b")]
    assert sizes[0] == memory.MOST_TICK > sizes[1] == sizes[2] == memory.LEAST_TICK
    plan = fit(1000 * GIB, on_cpu=True)
    assert plan.tick_tokens == TICK_TOKENS
    assert (plan.chunk, plan.answer_chunk) == (memory.MOST_ON_CPU, memory.MOST_ANSWERS_ON_CPU)


def test_a_micro_batch_is_the_batch_by_the_greatest_common_divisor():
    def need(accumulate: int, batch_size: int = 4) -> memory.Need:
        config, compute = FineTuning(batch_size=batch_size), Compute(accumulate=accumulate, tick_tokens=ALL)
        return memory.training(NAMED["smollm2-135m"], config, compute, CPU, adapters=4, width=64)

    assert need(6) == need(2)
    assert need(3) == need(1)
    assert need(2).activations == need(1).activations / 2 == need(1, batch_size=2).activations


def test_one_adapter_is_tried_even_where_none_seems_to_fit():
    plan = fit(1 * GIB)
    assert (plan.chunk, plan.answer_chunk, plan.write_chunk) == (1, 1, 5)


def test_lines_name_what_is_needed_and_what_there_is():
    need = memory.training(NAMED["smollm2-135m"], FineTuning(), Compute(), CPU, adapters=4, width=64)
    text = "\n".join(memory.lines(need, 2 * GIB))
    assert "513 MiB" in text and "of 2.00 GiB free" in text
    assert need.total == sum(need)


def test_a_loaded_models_room_is_what_it_holds():
    """Two bytes a parameter in bfloat16, also where a CPU computes with four."""
    model, here = NAMED["smollm2-135m"], CPU._replace(free=GIB)
    wide, narrow = (runtime.before_loading(model, here, dtype).free - GIB for dtype in ("float32", "bfloat16"))
    assert wide == memory.base_bytes(model, here) == 2 * narrow


def test_what_a_teacher_keeps_on_the_host_is_in_the_printed_plan():
    def lines(shapes: Shapes) -> str:
        named = NAMED["smollm2-135m"], FineTuning(), shapes, Compute(chunk=3), WRITING, "float32", "full", None
        return "\n".join(plan.memory_lines(*named))

    said = f"on the host: at most {memory.readable(3 * 8 * 256 * 576 * 4)} for each device's adapters"
    assert said in lines(SHAPES._replace(taught=True)) and "a teacher" not in lines(SHAPES)


def test_the_sizes_of_a_preset_are_for_a_cpus_cores(monkeypatch):
    preset = Compute(chunk=10, write_chunk=20, width_cuts=(24, 96))
    chosen = dataclasses.replace(preset, write_chunk=64)
    assert runtime.for_device(chosen, preset) is chosen
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert runtime.for_device(chosen, preset) == Compute(write_chunk=64, width_cuts=(24, 96))
