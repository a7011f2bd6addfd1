"""A quantised base computes what its dequantised weights compute, takes the memory that is planned, and ends as others.

Equality is held against a model in full whose weights are the dequantised ones.
"""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import adapt, cpt, squad
from seal_jax.engine import batching, memory, sampler
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes, make_trainer, train
from seal_jax.io import weights
from seal_jax.io.architectures import NAMED
from seal_jax.io.hub import ModelFiles
from seal_jax.nn import lora, quantised, transformer
from seal_jax.run import adapted, command, documents, runtime
from seal_jax.types import PROJECTIONS, Compute, Example
from tests import tiny

pytest.importorskip("qwix", reason="the extra `quant` is not installed")
BASES = ("int8", "nf4")
WORDS = [f"w{n}" for n in range(30)]
ROWS = [["w1 w2 w3 w4", "w5 w6"], ["w7 w8 w9 w10 w11 w12 w13", "w1"], ["w3 w2 w9", "w4 w4 w20 w21"]]


def dense(params):
    """The same model in full: the codes as the product sees them, and the adapters that lie over them folded in."""

    def one(kernel):
        return kernel.dense() + jnp.einsum("ldr,lrf->ldf", kernel.a, kernel.b)

    blocks = {
        name: {**own, "kernel": one(own["kernel"])} if "kernel" in own else own
        for name, own in params["blocks"].items()
    }
    return {**params, "blocks": blocks}


@pytest.fixture(scope="module", params=BASES)
def pair(request):
    """A quantised model, and the one in full that it must equal."""
    lm = tiny.language_model(WORDS)
    few = lm._replace(params=quantised.of_params(lm.params, request.param))
    return few, lm._replace(params=dense(few.params))


def drawn(params, seed: int, projections, rank: int) -> lora.Adapter:
    """An adapter that changes something."""
    one = lora.init(jax.random.key(seed), params["blocks"], projections, max_rank=rank, rank=rank, alpha=3.0)
    return one.replace(b={name: 0.1 * jax.random.normal(jax.random.key(seed), b.shape) for name, b in one.b.items()})


@jax.jit
def logits(params):
    decoder = nnx.merge(transformer.graph(tiny.config(len(WORDS) + 1)), params)
    return decoder.logits(decoder(jnp.arange(20)[None] % 7)[0])


@pytest.mark.slow
@pytest.mark.parametrize("compute", [Compute(chunk=3), Compute(chunk=2, remat=True), Compute(chunk=3, unroll=True)])
def test_it_trains_as_its_dequantised_weights_do(pair, compute):
    """Through the stack of layers, recomputed ones and unrolled ones, under vmap over adapters."""
    edits = [[batching.tokenize(Example("", text), pair[0].codec) for text in row] for row in ROWS]
    config = FineTuning(projections=PROJECTIONS, rank=4, alpha=8.0, learning_rate=1e-2, epochs=4)
    trainer = make_trainer(config, Shapes((16,), 4, 0, 0, 0), compute)
    (found, losses), (expected, same) = (train(lm, edits, trainer, seed=1) for lm in pair)
    assert len(losses[0]) == 8
    np.testing.assert_allclose(losses, same, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert all(np.abs(b).max() > 1e-2 for b in found.b.values())


@pytest.mark.slow
def test_rounds_lie_over_it_as_one_adapter_that_equals_those_merged(pair):
    few, full = (lm.params for lm in pair)
    before = few
    for seed, projections, rank in ((1, ("q_proj", "down_proj"), 2), (2, PROJECTIONS, 3)):
        one = drawn(few, seed, projections, rank)
        few, full = lora.merge(few, one), lora.merge(full, one)
    np.testing.assert_allclose(logits(few), logits(full), atol=1e-5)
    assert np.abs(logits(few) - logits(before)).max() > 1e-3
    ranks = {name: few["blocks"][name]["kernel"].a.shape[-1] for name in PROJECTIONS}
    assert ranks == {name: 5 if name in ("q_proj", "down_proj") else 3 for name in PROJECTIONS}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), dense(before), pair[1].params)  # it is as it was


def test_it_writes_what_its_dequantised_weights_write(pair):
    adapters = lora.stack([drawn(pair[0].params, n, ("v_proj", "up_proj"), 2) for n in range(3)])
    prompts, keys = jnp.arange(24).reshape(3, 2, 4) % 9, sampler.row_keys(0, np.arange(12).reshape(3, 2, 2))

    def written(lm):
        return sampler.sample(
            keys, lm.model, lm.params, adapters, prompts, jnp.ones(prompts.shape, bool), jnp.full((3, 2, 2), 8),
            sampling=Sampling(8), stop=(0,),
        )  # fmt: skip

    jax.tree.map(np.testing.assert_array_equal, *map(written, pair))


@pytest.mark.parametrize(("base", "most"), [("int8", 0.5 / 127), ("nf4", 0.16)])
def test_a_weight_is_off_by_no_more_than_half_a_step(base, most):
    """Half the widest gap between two codes, relative to the largest weight that shares its scale."""
    kernel = jax.random.normal(jax.random.key(0), (1, 128, 6))
    group = quantised.BLOCK if base == "nf4" else 128
    largest = np.abs(kernel).reshape(-1, group, 6).max(axis=1, keepdims=True)
    off = np.abs(quantised.quantise(kernel, base, kernel.dtype).dense() - kernel).reshape(-1, group, 6) / largest
    assert 0 < off.max() <= most * 1.01


@pytest.mark.parametrize("base", BASES)
def test_it_is_quantised_as_it_is_read_and_shrinks_as_planned(base, tmp_path):
    files = ModelFiles("tiny", "safetensors", tiny.model_folder(tmp_path / "model"), "")
    config, whole = weights.load_model(files)
    _, read = weights.load_model(files, base=base)
    jax.tree.map(np.testing.assert_array_equal, read, quantised.of_params(whole, base))
    machine = memory.Machine(free=0, devices=1, itemsize=4, on_cpu=True)
    for params, planned in ((whole, machine), (read, machine._replace(base=base))):
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) == memory.base_bytes(config, planned)


@pytest.mark.parametrize(("base", "gib"), [("full", 14.19), ("int8", 8.12), ("nf4", 5.45)])
def test_seven_billion_train_in_24_gib_by_plan(base, gib):
    """Where the base is quantised, with layers kept and room for many; in full, no adapter writes in as much."""
    model, shapes = NAMED["qwen2.5-7b"], Shapes((64, 512), 30, questions=5, question_width=64, gold_width=8)
    card = memory.Machine(24 * 2**30, devices=1, itemsize=2, on_cpu=False, attention="cudnn", base=base)
    writing = memory.Writing(samples=5, prompt_width=512, max_tokens=512, answer_tokens=64)
    cut = memory.fit(model, FineTuning(), shapes, Compute(), writing, card)
    need = memory.training(model, FineTuning(), cut, card, adapters=cut.chunk, width=512)
    assert need.base / 2**30 == pytest.approx(gib, rel=0.01)
    assert need.total < 0.85 * card.free
    assert cut.chunk >= (8 if base == "full" else 16)


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


@pytest.mark.parametrize("base", BASES)
@pytest.mark.slow
def test_a_run_of_two_rounds_that_was_killed_ends_as_one_that_was_not(base, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda devices: None)  # JAX runs already
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tiny.model_folder(tmp_path / "model")
    options = {
        "model": model, "base": base, "run-folder": tmp_path / "run", "outer.rounds": 2,
        "outer.signal": "log_likelihood", "outer.sft.learning-rate": 0.01,
        "evaluation.passages": 2, "sampling.max-tokens": 16, "answer-tokens": 4, "prompt": "implications",
    }  # fmt: skip
    arguments = ["smoke", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]

    def results() -> dict:
        assert command.main(squad.EXPERIMENT, arguments) == 0
        values = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
        return {name: value for name, value in values.items() if name not in ("timings", "machine")}

    undisturbed = results()
    assert undisturbed["settings"]["base"] == base
    assert [row["kept"] for row in undisturbed["rounds"]] == [2, 2]
    journal = tmp_path / "run" / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if '"round 2/write/0"' in line)
    journal.write_text("".join(lines[:second]), encoding="utf-8")  # as it was when round 2 had begun
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "round_2")
    (tmp_path / "run" / "results.json").unlink()
    assert results() == undisturbed


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


def test_what_needs_full_weights_is_refused_before_any_work(pair, tmp_path):
    with pytest.raises(ValueError, match="--method full trains the weights themselves, and --base nf4 keeps none"):
        cpt.Config("demo", method="full", base="nf4")
    config = adapt.Config("demo", document=tmp_path / "absent.md", base="int8", save=tmp_path / "out", merged=True)
    with pytest.raises(ValueError, match="--merged writes a model of full weights, and --base int8 keeps none"):
        documents.read(config)
    taught = object.__new__(adapted.Adapted)
    object.__setattr__(taught, "lm", pair[0])
    with pytest.raises(ValueError, match="keeps no full weights to merge into"):
        taught.save(tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()


def test_without_qwix_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--base nf4 needs qwix: pip install 'seal_jax\[quant\]'"):
        runtime.load("smollm2-135m", dtype="float32", style="raw", devices=1, base="nf4", with_weights=False)
    runtime.load("Qwen/Qwen2.5-7B", dtype="float32", style="raw", devices=1, with_weights=False)
