import dataclasses
import jax, numpy as np
from seal_jax.engine import inner, schedule
from seal_jax.engine.inner import Given, Recipe, Rows
from seal_jax.engine.training import TICK_TOKENS, FineTuning, init_adapters
from seal_jax.io.architectures import NAMED
from seal_jax.nn import transformer, lora
from seal_jax.types import PROJECTIONS, Compute, HParams
QV = ("q_proj", "v_proj")
def shape(*size, dtype=np.int32):
    return jax.ShapeDtypeStruct(size, dtype)
def abstract(name, layers):
    config = dataclasses.replace(NAMED[name], num_layers=layers)
    return config, transformer.graph(config), jax.eval_shape(lambda: transformer.random_params(0, config))
CASES = [
    ("smollm2-135m", 30, 4, 48, FineTuning(projections=QV), Compute()),
    ("smollm2-135m", 12, 4, 128, FineTuning(projections=PROJECTIONS, rank=16), Compute(tick_tokens=512)),
    ("llama-3.2-1b", 4, 4, 128, FineTuning(projections=PROJECTIONS), Compute()),
    ("qwen2.5-7b", 3, 4, 128, FineTuning(projections=QV), Compute(tick_tokens=512)),
    ("qwen3-1.7b", 4, 2, 512, FineTuning(projections=QV), Compute(tick_tokens=1024)),
    ("qwen2.5-7b", 3, 1, 256, FineTuning(projections=PROJECTIONS, batch_size=4), Compute(remat=True)),
    ("smollm2-135m", 12, 4, 256, FineTuning(projections=QV), Compute(loss_chunk=32, tick_tokens=1024)),
    ("smollm2-135m", 12, 64, 64, FineTuning(projections=PROJECTIONS), Compute(tick_tokens=256)),
]
def lowered_tick(name, layers, adapters, width, config, compute):
    shapes, model, params = abstract(name, layers)
    one = HParams(shape(dtype=np.float32), shape(), shape(dtype=np.float32), shape(), shape())
    many = jax.tree.map(lambda x: shape(1, dtype=x.dtype), one)
    adapter = jax.eval_shape(lambda b, h: lora.take(init_adapters(b, h, config.projections, config.rank), 0), params["blocks"], many)
    bank = jax.eval_shape(lambda a, h: inner._empty(a, Given(h), optimiser=config.optimiser, places=adapters), adapter, one)
    room = schedule.Room(adapters, compute.tick_tokens or TICK_TOKENS)
    size = schedule.rows_of(width, room, config.batch_size)
    rows = Rows(shape(size), shape(size, config.batch_size, width), shape(size, config.batch_size, width, dtype=np.float32))
    return inner.tick.lower(model, params, bank, rows, recipe=Recipe(config.optimiser, compute=compute))
