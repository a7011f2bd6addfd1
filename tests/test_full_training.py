"""Full fine-tuning is AdamW on every weight: as a plain loop, however it is cut, and whenever it is killed."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from seal_jax.engine import batching, costs, full_training
from seal_jax.engine.batching import Tokens
from seal_jax.engine.full_training import FullTuning, Need, disk, need, require_memory, train_all_weights
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.memory import Machine
from seal_jax.io.architectures import NAMED
from seal_jax.nn import transformer
from seal_jax.run.journal import RunFolder
from seal_jax.types import Codec, Compute, HParams, LanguageModel

RNG = np.random.default_rng(0)
# Two widths, prompts without loss, more sequences than fit evenly into batches.
SEQUENCES = [
    Tokens(RNG.integers(0, 61, size).tolist(), start) for size, start in ((5, 0), (9, 4), (16, 0), (12, 0), (23, 7))
]
CONFIG = FullTuning(
    learning_rate=1e-3,
    epochs=3,
    batch_size=2,
    optimiser=Optimiser(eps=1e-3, clip_norm=0.5, weight_decay=0.01),  # a large eps: sums differ in order
)
ONE = Machine(free=0, devices=1, itemsize=4, on_cpu=True)
COMPUTE = Compute(remat=False, loss_chunk=7, width_cuts=(16,))


def language_model(tiny, mesh=None) -> LanguageModel:
    return LanguageModel(tiny.model, tiny.params, Codec(list, list, str, "", ()), mesh)


def trained(tiny, config=CONFIG, sequences=SEQUENCES, *, compute=COMPUTE, mesh=None, **options):
    lm, losses = train_all_weights(
        language_model(tiny, mesh), sequences, config, compute, seed=3, say=lambda text: None, **options
    )
    return lm.params, losses


def plain_loop(tiny, config: FullTuning, sequences=SEQUENCES) -> tuple[dict, list[float]]:
    """optax.adamw over jax.grad of an ordinary cross-entropy, all sequences as wide as the longest."""
    order = batching.order(len(sequences), epochs=config.epochs, batch_size=config.batch_size, seed=3)
    longest = max(len(s.ids) for s in sequences)
    tokens, kept = np.zeros((len(sequences), longest), np.int32), np.zeros((len(sequences), longest), bool)
    for n, (ids, start, *_) in enumerate(sequences):
        tokens[n, : len(ids)] = ids
        kept[n, max(start, 1) : len(ids)] = True

    @jax.jit
    def loss_and_gradient(params: dict, tokens: jax.Array, kept: jax.Array) -> tuple[jax.Array, dict]:
        def loss_of(params: dict) -> jax.Array:
            decoder = nnx.merge(tiny.model, params)
            logits = decoder.logits(decoder(tokens)[0])[:, :-1]
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
            return jnp.sum(losses * kept[:, 1:]) / jnp.sum(kept)

        return jax.value_and_grad(loss_of)(params)

    o, params, losses = config.optimiser, tiny.params, []
    rates = optax.linear_schedule(config.learning_rate, 0, len(order))
    adamw = optax.chain(
        optax.clip_by_global_norm(o.clip_norm), optax.adamw(rates, o.b1, o.b2, o.eps, weight_decay=o.weight_decay)
    )
    moments, update = adamw.init(params), jax.jit(adamw.update)
    for rows in order:
        there = np.where(rows >= 0, rows, 0)
        loss, gradient = loss_and_gradient(params, tokens[there], kept[there] & (rows >= 0)[:, None])
        updates, moments = update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return params, losses


def assert_same(a: tuple[dict, list[float]], b: tuple[dict, list[float]], tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(a[1], b[1], atol=tolerance)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a[0], b[0])


@pytest.fixture(scope="module")
def alone(tiny) -> tuple[dict, list[float]]:
    """Trained on one device, at once."""
    return trained(tiny)


# ---------------------------------------------------------------------------------------------------------------------
# The same numbers


def test_it_is_adamw_over_the_gradient_of_every_weight(tiny, alone):
    assert_same(alone, plain_loop(tiny, CONFIG))
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), alone[0], tiny.params)
    assert min(jax.tree.leaves(moved)) > 1e-4, moved
    assert alone[1][-1] < alone[1][0] - 0.2


def test_an_untied_head_is_trained_too(make_tiny):
    untied = make_tiny(tie_embeddings=False, qkv_bias=True, qk_norm=True)
    config = dataclasses.replace(CONFIG, epochs=1)
    params, losses = trained(untied, config)
    assert_same((params, losses), plain_loop(untied, config))
    assert np.abs(params["lm_head"]["kernel"] - untied.params["lm_head"]["kernel"]).max() > 1e-4


def test_two_devices_equal_one_and_share_the_state(tiny, alone, mesh):
    assert_same(trained(tiny, mesh=mesh), alone)
    start = full_training._start(tiny.params, optimiser=CONFIG.optimiser, mesh=mesh, steps=4)
    hparams = HParams(*(np.asarray(x) for x in (1e-3, 4, 0, 0, 0)))
    tokens = np.ones((2, 8), np.int32)
    state, _, _ = full_training.train_step(
        tiny.model, start, tokens, np.ones((2, 8), np.float32), hparams,
        dtype=np.dtype("float32"), optimiser=CONFIG.optimiser, compute=COMPUTE, mesh=mesh,
    )  # fmt: skip
    kernel = state.weights["blocks"]["q_proj"]["kernel"]
    adam = state.moments[1]
    for array in (kernel, adam.mu["blocks"]["q_proj"]["kernel"], adam.nu["embed"]["embedding"]):
        assert not array.sharding.is_fully_replicated
    assert sum(shard.data.size for shard in kernel.addressable_shards) == kernel.size
    assert start.weights["blocks"]["q_proj"]["kernel"].is_deleted()  # its memory went to the new state


def test_how_a_step_is_cut_changes_nothing(tiny, alone):
    assert_same(trained(tiny, compute=Compute(accumulate=2, remat=True, loss_chunk=256)), alone)


def test_accumulation_on_two_devices(tiny, mesh):
    config = dataclasses.replace(CONFIG, batch_size=4, epochs=1)
    cut = dataclasses.replace(COMPUTE, accumulate=2)
    assert_same(trained(tiny, config, compute=cut, mesh=mesh), trained(tiny, config))


def test_a_batch_larger_than_all_there_is(tiny):
    config = dataclasses.replace(CONFIG, batch_size=64, epochs=2)
    params, losses = trained(tiny, config)
    assert len(losses) == 2
    assert_same((params, losses), plain_loop(tiny, config))


def test_updates_too_small_for_bfloat16_add_up(make_tiny):
    """Without weights in float32 they would be rounded away, each of them, and nothing learnt."""
    narrow = make_tiny(dtype="bfloat16")
    config = dataclasses.replace(
        CONFIG, epochs=40, learning_rate=5e-5, optimiser=Optimiser(schedule="constant", eps=1e-3)
    )
    params, losses = trained(narrow, config, SEQUENCES[2:3])
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    scale = np.asarray(narrow.params["final_norm"]["scale"], np.float32)
    assert np.all(np.abs(scale) * 2**-9 > 5e-5)  # below half of the spacing
    assert np.any(np.asarray(params["final_norm"]["scale"], np.float32) != scale)
    assert losses[-1] < losses[0] - 0.05


def test_the_model_given_stays_as_it_is_and_may_lie_on_the_host(tiny, alone):
    before = jax.tree.map(np.array, tiny.params)
    host = tiny._replace(params=jax.device_get(tiny.params))
    assert_same(trained(host), alone, tolerance=0)
    jax.tree.map(np.testing.assert_array_equal, tiny.params, before)


# ---------------------------------------------------------------------------------------------------------------------
# Killed and carried on


@pytest.mark.parametrize("devices", [1, 2])
def test_a_kill_loses_at_most_one_epoch(tiny, alone, mesh, tmp_path, devices):
    over = mesh if devices == 2 else None
    steps = [0]

    def kill_at(step: int):
        def on_step(rows: int, tokens: int) -> None:
            steps[0] += 1
            if steps[0] == step:
                raise KeyboardInterrupt

        return on_step

    def attempt(kill: int) -> tuple[dict, list[float]]:
        steps[0] = 0
        run = RunFolder(tmp_path / "run", {})
        try:
            return trained(tiny, mesh=over, journal=run, on_step=kill_at(kill))
        finally:
            run.close()

    for kill, done, left in ((2, 2, []), (5, 5, ["full_fine_tuning_epoch_1"]), (6, 6, ["full_fine_tuning_epoch_2"])):
        with pytest.raises(KeyboardInterrupt):
            attempt(kill)
        assert steps[0] == done
        checkpoints = tmp_path / "run" / "checkpoints"
        assert sorted(path.name for path in checkpoints.glob("*")) == left
    result = attempt(0)
    assert steps[0] == 3  # the last epoch only
    assert_same(result, alone)
    assert [path.name for path in checkpoints.iterdir()] == ["full_fine_tuning"]
    again = attempt(1)  # would be killed at its first step
    assert_same(again, result, tolerance=0)


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize("rate", [math.inf, 1e30])
def test_a_loss_that_diverges_stops_it(tiny, rate):
    config = dataclasses.replace(CONFIG, learning_rate=rate)
    with pytest.raises(ValueError, match=r"diverged: at step \d of 9 the loss is .* lower it, or raise warmup_steps"):
        trained(tiny, config)


def test_nothing_to_train_on(tiny):
    with pytest.raises(ValueError, match="no training sequence"):
        trained(tiny, sequences=[])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimiser": Optimiser(dropout=0.1)}, "dropout is 0.1"),
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        FullTuning(**settings)


def test_too_little_memory_is_said(tiny):
    forecast = need(tiny.config, CONFIG, COMPUTE, ONE, width=24)
    with pytest.raises(ValueError, match=r"needs about .* and 0 MiB are free; train adapters instead"):
        require_memory(forecast, 2**16)
    require_memory(forecast, 2**30)
    with pytest.raises(ValueError, match="most of it state"):
        require_memory(Need(1, 9, 1, 1, 1), 12)
    require_memory(Need(1, 9, 1, 1, 1), 13)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize(
    ("name", "layers", "width", "config", "compute"),
    [
        ("smollm2-135m", 30, 128, FullTuning(batch_size=8), Compute(remat=True)),
        ("smollm2-135m", 8, 128, FullTuning(batch_size=8), Compute()),
        ("qwen2.5-7b", 2, 256, FullTuning(batch_size=4), Compute(remat=True)),
        ("llama-3.2-1b", 4, 256, FullTuning(batch_size=8), Compute(accumulate=4)),
    ],
)
def test_a_step_needs_what_was_forecast(name, layers, width, config, compute):
    shape = dataclasses.replace(NAMED[name], num_layers=layers)
    params = jax.eval_shape(lambda: transformer.random_params(0, shape))
    state = jax.eval_shape(lambda p: full_training._start(p, optimiser=config.optimiser, mesh=None, steps=9), params)
    of = lambda *size, dtype=np.int32: jax.ShapeDtypeStruct(size, dtype)
    compiled = full_training.train_step.lower(
        transformer.graph(shape), state, of(config.batch_size, width), of(config.batch_size, width, dtype=np.float32),
        HParams(of(dtype=np.float32), of(), of(), of(), of()), dtype=np.dtype("float32"), optimiser=config.optimiser,
        compute=compute,
    ).compile()  # fmt: skip
    found = compiled.memory_analysis()
    assert found.alias_size_in_bytes > 0.99 * found.output_size_in_bytes  # the new state takes the old one's place
    assigned = found.temp_size_in_bytes + found.argument_size_in_bytes
    forecast = need(shape, config, compute, ONE, width=width)._replace(base=0)
    assert forecast.total == pytest.approx(assigned, rel=0.12)


@pytest.mark.parametrize(("name", "gib"), [("smollm2-135m", 3.459), ("llama-3.2-1b", 21.481)])
def test_a_step_on_a_gpu_needs_what_was_forecast(name, gib):
    """In bfloat16 on an H100: what `python -m experiments.benchmark compile --programs full` prints with jax 0.11.2."""
    gpu = Machine(0, 1, itemsize=2, on_cpu=False, attention="cudnn")
    forecast = need(NAMED[name], FullTuning(), Compute(), gpu, width=352)
    assert forecast._replace(base=0).total / 2**30 == pytest.approx(gib, rel=0.1)


def test_what_a_parameter_costs():
    model = NAMED["qwen2.5-7b"]
    parameters, config = costs.model_parameters(model), FullTuning()

    def bytes_each(*, base_kept: bool = True, **options) -> float:
        found = need(model, config, Compute(remat=True), ONE._replace(**options), width=512)
        found = found if base_kept else found._replace(base=0)
        return (found.base + found.state + found.gradient) / parameters

    assert bytes_each(devices=1, itemsize=4) == pytest.approx(4 + 12 + 4)
    assert bytes_each(devices=1, itemsize=2) == pytest.approx(2 + 12 + 4)
    assert bytes_each(devices=1, itemsize=2, base_kept=False) == pytest.approx(12 + 4)
    assert bytes_each(devices=4, itemsize=2, base_kept=False) == pytest.approx(3 + 6)
    assert bytes_each(itemsize=2, fsdp=2, tensor=2) == pytest.approx((2 + 12 + 4) / 4)
    assert bytes_each(devices=4, itemsize=2, fsdp=2, base_kept=False) == pytest.approx((3 + 6) / 2)
    assert disk(model, itemsize=2) == 24 * parameters
