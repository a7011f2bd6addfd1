"""What each program computes on a mesh of eight CPU devices, into a file; for test_mesh.py, in a process of its own.

python -m tests.meshes OUT.npz 2x2x2
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from functools import partial
from operator import itemgetter

from tests import conftest  # settles how programs are compiled  # isort: skip
import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import compiled, hlo
from seal_jax.engine import full_training, on_policy, prefixes, sampler, training
from seal_jax.engine.batching import Tokens, left_pad
from seal_jax.engine.full_training import FullTuning
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.on_policy import OnPolicy
from seal_jax.engine.prefixes import PrefixTuning
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.graders.lexical import grade_by_match
from seal_jax.nn import lora, quantised, sharding, transformer
from seal_jax.nn.losses import distillation
from seal_jax.seal import rewards
from seal_jax.seal.outer import imitation
from seal_jax.types import PROJECTIONS, Compute, Example, LanguageModel, MeshShape, Query, SelfEdit, by_query
from tests import tiny

WORDS = [f"w{n}" for n in range(63)]
STEADY = Optimiser(eps=1e-5)  # else Adam makes steps of what is left of sums in another order
LORA = FineTuning(PROJECTIONS, rank=4, alpha=8.0, epochs=2, optimiser=STEADY)
SHAPES = Shapes(widths=(8, 16), capacity=4, questions=2, question_width=8, gold_width=4)
EIGHT_HEADS = dataclasses.replace(tiny.config(64, width=64), num_heads=8, num_kv_heads=8, head_dim=8)
QUANTISED = ("int8", "nf4") if importlib.util.find_spec("qwix") else ()
QUERY = Query("", "w1 w2 w3", "w4 w5 w6")


def model(mesh) -> LanguageModel:
    """Eight heads, so that eight devices can share it, and logits that differ."""
    lm = tiny.language_model(WORDS, width=64)
    params = jax.tree.map(lambda w: 3 * w if w.ndim > 1 else w, transformer.random_params(0, EIGHT_HEADS))
    params["embed"]["embedding"] = lm.params["embed"]["embedding"]
    return LanguageModel(transformer.graph(EIGHT_HEADS), sharding.placed(params, mesh), lm.codec, mesh)


def sentence(rng: np.random.Generator, length: int) -> str:
    return " ".join(WORDS[n] for n in rng.integers(0, len(WORDS), length))


def other_ways(lm: LanguageModel, views: list[list[Tokens]], trainer: training.Trainer) -> dict[str, np.ndarray]:
    """Prefixes, and adapters that are trained on what they sample."""
    prefix = partial(prefixes.train_each, how=PrefixTuning(4, 1e-2))
    sampled = partial(on_policy.train_each, how=OnPolicy(every=1), max_tokens=3)
    found = {}
    for name, train in (("prefix", prefix), ("on_policy", sampled)):
        trained = sorted(train(lm, views, trainer, seed=0), key=itemgetter(0))
        for e, adapter, losses in trained:
            leaves = [*jax.tree.leaves(adapter.weights), losses]
            found |= {f"{name}/{e}/{n}": np.asarray(leaf) for n, leaf in enumerate(leaves)}
    return found


def results(mesh) -> dict[str, np.ndarray]:
    """By the program and the name of a figure."""
    lm, rng = model(mesh), np.random.default_rng(0)
    chunk, found = 2 * sharding.lanes(mesh), {}
    trainer = training.make_trainer(LORA, SHAPES, Compute(chunk=chunk, tick_tokens=24))
    edits = [[Tokens(lm.codec.encode(sentence(rng, n)), 1) for n in lengths] for lengths in ([5, 9], [12], [3, 7, 4])]
    adapters, losses = training.train(lm, edits, trainer, seed=0)
    found |= {f"inner/{side}/{name}": w for side in "ab" for name, w in getattr(adapters, side).items()}
    found["inner/losses"] = np.concatenate(losses)

    views = [[own._replace(view=lm.codec.encode(sentence(rng, 6)) + own.ids) for own in row] for row in edits]
    taught, losses = training.train(lm, views, trainer._replace(loss=distillation), seed=0)
    found |= {f"distillation/{name}": w for name, w in taught.b.items()}
    found["distillation/losses"] = np.concatenate(losses)
    found |= other_ways(lm, views, trainer._replace(loss=distillation))

    many = jax.device_get(jax.tree.map(lambda x: jnp.resize(x, (8, *x.shape[1:])), adapters))
    tokens, valid = left_pad([lm.codec.encode(sentence(rng, n)) for n in rng.integers(2, 7, 16)], 8)
    prompts = tokens.reshape(8, 2, 8), valid.reshape(8, 2, 8)
    limits = np.resize([6, 2, 0, 5], (8, 2, 2))
    for name, own in (("base", None), ("adapted", many)):
        keys = sampler.row_keys(1, np.arange(8)[:, None, None], np.arange(2)[:, None], np.arange(2))
        out = sampler.sample(
            keys, lm.model, lm.params, own, *prompts, limits, sampling=Sampling(6, top_p=0.9, top_k=40), stop=(7,),
            mesh=mesh,
        )  # fmt: skip
        found |= {f"sampling/{name}/{field}": np.asarray(x) for field, x in out._asdict().items()}
    asked = (lm.model, lm.params, many)
    gold = np.resize(np.arange(1, 9), (8, 2, 4)), np.resize([True, True, True, False], (8, 2, 4))
    read = sampler.read(*asked, *prompts, mesh=mesh)
    found["likelihood"] = rewards.log_likelihoods(*asked, read, prompts[1], *gold, mesh=mesh)

    tried = [SelfEdit("", tuple(Example("", sentence(rng, n)) for n in (6, 4))) for _ in range(3)]
    scores = rewards.score(
        lm, tried, [[QUERY], [QUERY, QUERY], [QUERY]], by_query(grade_by_match), trainer, seed=1, max_tokens=5
    )
    found["evaluation/likely"] = np.concatenate([score.log_likelihoods for score in scores])
    found["evaluation/answers"] = np.array([" ".join(score.answers) for score in scores])

    for base in QUANTISED:
        few = lm._replace(params=sharding.placed(quantised.of_params(lm.params, base), mesh))
        adapters, losses = training.train(few, edits, trainer, seed=0)
        found |= {f"quantised/{base}/{name}": w for name, w in adapters.b.items()}
        params = lora.merge(few.params, lora.take(adapters, 0))
        if mesh is not None:
            where = [leaf.sharding.spec for leaf in jax.tree.leaves(params)]
            assert where == [laid.spec for laid in jax.tree.leaves(sharding.shardings(params, mesh))]
        read = sampler.read(lm.model, params, many, *prompts, mesh=mesh)
        likely = rewards.log_likelihoods(lm.model, params, many, read, prompts[1], *gold, mesh=mesh)
        found |= {f"quantised/{base}/losses": np.concatenate(losses), f"quantised/{base}/likelihood": likely}
        found[f"held/{base}"] = held([params["blocks"][name]["kernel"].codes for name in PROJECTIONS])

    pairs = [Example(sentence(rng, 3), sentence(rng, n)) for n in (9, 4, 12, 6, 7)]
    sft = dataclasses.replace(imitation.SFT, rank=4, alpha=8.0, batch_size=3)
    adapter, losses = imitation.train_on(lm, pairs, sft, seed=0)
    merged = lora.merge(lm.params, adapter)
    found |= {"sft/losses": np.array(losses), "sft/merged": merged["blocks"]["q_proj"]["kernel"]}
    if mesh is not None:
        where = merged["blocks"]["q_proj"]["kernel"].sharding
        assert where == lm.params["blocks"]["q_proj"]["kernel"].sharding

    sequences = [sequence for own in edits for sequence in own]
    full, losses = full_training.train_all_weights(
        lm,
        sequences,
        FullTuning(1e-4, epochs=2, batch_size=5, optimiser=STEADY),
        Compute(remat=True),
        seed=0,
        say=lambda text: None,
    )
    found |= {"full/losses": np.array(losses), "full/embedding": full.params["embed"]["embedding"]}
    found |= {f"full/{name}": full.params["blocks"][name]["kernel"] for name in PROJECTIONS}
    found["held/full"] = held(full.params)
    return {name: np.asarray(value) for name, value in found.items()}


def held(params) -> float:
    """The part of some parameters that lies on one device."""
    leaves = jax.tree.leaves(params)
    return sum(w.addressable_shards[0].data.nbytes for w in leaves) / sum(w.nbytes for w in leaves)


def collectives(mesh: str) -> dict[str, np.ndarray]:
    """The axes of a mesh along which the programs of `benchmark compile` exchange anything, compiled for this CPU."""
    settings = compiled.Settings("gpu-h100:8", mesh=mesh, dtype="float32", adapters=4, tokens=16, tick_tokens=32)
    found = {}
    for base in ("full", *QUANTISED):
        own = settings if base == "full" else dataclasses.replace(settings, base=base, programs=("inner",))
        for name, program in compiled.programs(own, EIGHT_HEADS, compiled.CHIPS["gpu-h100"], jax.devices()):
            kinds = hlo.step(program.lower().compile().as_text(), mesh=program.mesh).collectives
            over = {axis for kind in kinds for axis in kind.split(" over ")[1].split(", ")}
            found[f"collectives/{base}/{name}"] = np.array(sorted(over))
            found[f"gathered/{base}/{name}"] = sum(sent for kind, sent in kinds.items() if "gather" in kind)
    return found


def main(out: str, text: str) -> None:
    assert conftest.COMPILING
    jax.config.update("jax_num_cpu_devices", 8)
    shape = MeshShape(*map(int, text.split("x")))
    mesh = sharding.make_mesh(jax.devices(), shape)
    sizes = ",".join(f"{axis}={size}" for axis, size in shape._asdict().items())
    found = {f"1x1x1/{name}": value for name, value in results(None).items()}
    found |= {f"{text}/{name}": value for name, value in (results(mesh) | collectives(sizes)).items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
