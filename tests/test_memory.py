"""The memory planner against what XLA assigns, and what it decides. Programs are compiled, nothing is allocated."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seal_jax.engine import batching, inner, memory, sampler
from seal_jax.engine.inner import Recipe
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes, init_adapters
from seal_jax.io.architectures import NAMED
from seal_jax.nn import transformer
from seal_jax.types import PROJECTIONS, Compute, HParams, TokenBatch

QV = ("q_proj", "v_proj")
GIB = 2**30


def shape(*size, dtype=np.int32):
    return jax.ShapeDtypeStruct(size, dtype)


def abstract(name: str, layers: int):
    """A model of few layers, without its weights."""
    config = dataclasses.replace(NAMED[name], num_layers=layers)
    return config, transformer.graph(config), jax.eval_shape(lambda: transformer.random_params(0, config))


def abstract_adapters(params, config: FineTuning, count: int):
    hyper = HParams(
        shape(count, dtype=np.float32), shape(count), shape(count, dtype=np.float32), shape(count), shape(count)
    )
    blocks = params["blocks"]
    return hyper, jax.eval_shape(lambda b, h: init_adapters(b, h, config.projections, config.rank), blocks, hyper)


def assigned(compiled) -> int:
    """Bytes of everything a program needs at once."""
    found = compiled.memory_analysis()
    return found.temp_size_in_bytes + found.argument_size_in_bytes


@pytest.mark.parametrize(
    ("name", "layers", "adapters", "width", "config", "compute"),
    [
        ("smollm2-135m", 30, 4, 48, FineTuning(projections=QV), Compute()),
        ("smollm2-135m", 12, 4, 128, FineTuning(projections=PROJECTIONS, rank=16), Compute()),
        ("llama-3.2-1b", 4, 4, 128, FineTuning(projections=PROJECTIONS), Compute()),
        ("qwen2.5-7b", 3, 4, 128, FineTuning(projections=QV), Compute()),
        ("qwen3-1.7b", 4, 2, 512, FineTuning(projections=QV), Compute()),
        ("qwen2.5-7b", 3, 1, 256, FineTuning(projections=PROJECTIONS, batch_size=4), Compute(remat=True)),
        ("smollm2-135m", 12, 4, 256, FineTuning(projections=QV), Compute(loss_chunk=32)),
    ],
)
def test_training_needs_what_was_planned(name, layers, adapters, width, config, compute):
    shapes, model, params = abstract(name, layers)
    hyper, lora = abstract_adapters(params, config, adapters)
    n, steps = 8, 16
    batch = TokenBatch(
        shape(adapters, n, width), shape(adapters, n, width, dtype=np.float32), shape(adapters, n),
        shape(adapters, steps, config.batch_size), (width,),
    )  # fmt: skip
    plan = batching.Plan(shape(1, steps), shape(1, steps), shape(1))
    begin = partial(inner._begin_chunk, optimiser=config.optimiser, steps=steps)
    training, part = jax.eval_shape(begin, lora), (shape(), shape())
    recipe = Recipe(config.optimiser, compute=compute)
    lowered = inner._adapt_chunk.lower(model, params, training, batch, plan, part, hyper, recipe)
    planned = memory.training(shapes, config, compute, adapters=adapters, width=width, itemsize=4).total
    assert planned == pytest.approx(assigned(lowered.compile()), rel=0.2)


@pytest.mark.parametrize(
    ("name", "layers", "prompts", "samples", "config"),
    [
        ("smollm2-135m", 8, 8, 4, None),
        ("smollm2-135m", 8, 40, 1, FineTuning(projections=PROJECTIONS)),
        ("llama-3.2-1b", 3, 40, 1, FineTuning(projections=QV)),
    ],
)
def test_writing_needs_what_was_planned(name, layers, prompts, samples, config):
    shapes, model, params = abstract(name, layers)
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
    adapter_bytes = 0 if lora is None else sum(leaf.size * 4 for leaf in jax.tree.leaves((lora.a, lora.b)))
    planned = memory.writing(
        shapes, prompts=prompts, samples=samples, prompt_width=width, max_tokens=max_tokens, itemsize=4,
        adapter_bytes=adapter_bytes,
    ).total  # fmt: skip
    assert planned == pytest.approx(assigned(lowered.compile()), rel=0.2)


# ---------------------------------------------------------------------------------------------------------------------
# What is decided

SHAPES = Shapes(widths=(64, 256), capacity=8, questions=5, question_width=64, gold_width=8)


WRITING = memory.Writing(samples=5, prompt_width=256, max_tokens=256, answer_tokens=64)


def fit(free: float, compute: Compute = Compute(), *, model: str = "qwen2.5-7b", devices: int = 1) -> Compute:
    return memory.fit(
        NAMED[model], FineTuning(), SHAPES, compute, WRITING, free=free, devices=devices, itemsize=2, most=64
    )


def test_more_memory_holds_more_adapters_and_recomputes_less():
    tight, *roomy = [fit(free * GIB) for free in (34, 48, 80, 141)]
    assert tight.remat and tight.chunk >= memory.ENOUGH
    assert not any(plan.remat for plan in roomy)
    assert roomy[0].chunk < roomy[1].chunk < roomy[2].chunk <= 64
    assert tight.write_chunk < roomy[-1].write_chunk
    assert fit(1000 * GIB).chunk == 64


def test_what_is_planned_fits_and_one_more_would_not():
    for free in (48 * GIB, 80 * GIB):
        plan = fit(free)
        sizes = [
            memory.training(
                NAMED["qwen2.5-7b"], FineTuning(), plan, adapters=plan.chunk + more, width=256, itemsize=2
            ).total
            for more in (0, 1)
        ]
        assert sizes[0] <= memory.SHARE * free < sizes[1]


def test_recomputing_has_to_pay_unless_the_user_fixed_the_number():
    def without(free: float) -> int:
        """Adapters that fit with layers kept and the smaller piece of the loss."""
        kept, model = Compute(loss_chunk=64), NAMED["qwen2.5-7b"]
        return sum(
            memory.training(model, FineTuning(), kept, adapters=n, width=256, itemsize=2).total <= memory.SHARE * free
            and memory.answering(model, FineTuning(), SHAPES, adapters=n, max_tokens=64, itemsize=2).total
            <= memory.SHARE * free
            for n in range(1, 65)
        )

    decided = set()
    for free in (GIB * n for n in range(24, 60)):
        plan, kept = fit(free), without(free)
        decided.add(plan.remat)
        assert not plan.remat or (memory.RECOMPUTING * kept < plan.chunk and kept < memory.ENOUGH)
    assert decided == {True, False}
    tight = 34 * GIB
    assert fit(tight, Compute(chunk=without(tight))).remat is False
    assert fit(tight, Compute(chunk=without(tight) + 1)).remat is True


def test_every_device_holds_its_share():
    assert fit(80 * GIB, devices=4).chunk == 4 * fit(80 * GIB).chunk


def test_what_the_user_fixed_stays():
    fixed = Compute(chunk=6, remat=True, write_chunk=10, width_cuts=(64,), accumulate=2, devices=1)
    assert fit(48 * GIB, fixed) == fixed


def test_a_micro_batch_is_the_batch_by_the_greatest_common_divisor():
    def need(accumulate: int, batch_size: int = 4) -> memory.Need:
        config, compute = FineTuning(batch_size=batch_size), Compute(accumulate=accumulate)
        return memory.training(NAMED["smollm2-135m"], config, compute, adapters=4, width=64, itemsize=4)

    assert need(6) == need(2)
    assert need(3) == need(1)
    assert need(2).activations == need(1).activations / 2 == need(1, batch_size=2).activations


def test_one_adapter_is_tried_even_where_none_seems_to_fit():
    plan = fit(1 * GIB)
    assert (plan.chunk, plan.write_chunk) == (1, 5)


def test_lines_name_what_is_needed_and_what_there_is():
    need = memory.training(NAMED["smollm2-135m"], FineTuning(), Compute(), adapters=4, width=64, itemsize=4)
    text = "\n".join(memory.lines(need, 2 * GIB))
    assert "513 MiB" in text and "of 2.00 GiB free" in text
    assert need.total == sum(need)
