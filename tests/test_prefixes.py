"""A prefix that is not trained is the passage in view; one is trained as any adapter is, alone or beside others."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from seal_jax.engine import batching, prefixes
from seal_jax.engine.batching import Tokens
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.prefixes import PrefixTuning
from seal_jax.engine.sampler import Form, Sampling, row_keys, sample
from seal_jax.engine.training import FineTuning, Shapes, make_trainer
from seal_jax.io import gguf_export, peft
from seal_jax.nn import lora
from seal_jax.nn.losses import distillation
from seal_jax.nn.transformer import RopeScaling
from seal_jax.seal.rewards import ask, score_base, score_each
from seal_jax.types import Compute, Example, LanguageModel, Query, SelfEdit
from tests import tiny as tiny_models

WORDS = [f"w{i}" for i in range(60)]
PASSAGE = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]
FAMILIES = {
    "llama3": {"rope_scaling": RopeScaling("llama3", 8.0)},
    "yarn": {"rope_scaling": RopeScaling("yarn", 4.0, original_context_length=64, attention_factor=1.14)},
    "qwen3": {"qk_norm": True, "num_kv_heads": 1},
}
CONFIG = FineTuning(("q_proj",), 2, 4.0, epochs=3, batch_size=2, optimiser=Optimiser(eps=1e-5))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 61, shape).astype(np.int32)


def model(tiny) -> LanguageModel:
    return LanguageModel(tiny.model, tiny.params, tiny_models.word_codec(WORDS))


close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Not trained


@pytest.mark.parametrize("more", [0, 5], ids=["all places live", "some not"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_of_the_whole_passage_is_the_passage_in_view(make_tiny, family, more):
    tiny = make_tiny(**FAMILIES[family])
    prefix, tokens = prefixes.of_text(model(tiny), PASSAGE, len(PASSAGE) + more), draw(2, 7)
    whole = np.concatenate([np.tile(np.int32(PASSAGE), (2, 1)), tokens], axis=1)
    expected = tiny.logits(whole)[:, len(PASSAGE) :]
    close(tiny.logits(tokens, adapter=prefix), expected, atol=2e-5)
    assert np.abs(tiny.logits(tokens) - expected).max() > 0.1  # which matters


def test_a_short_prefix_is_the_beginning_of_the_passage(tiny):
    tokens = draw(1, 7)
    whole = np.concatenate([np.int32([PASSAGE[:4]]), tokens], axis=1)
    close(tiny.logits(tokens, adapter=prefixes.of_text(model(tiny), PASSAGE, 4)), tiny.logits(whole)[:, 4:], atol=2e-5)


def test_pads_on_the_left_change_nothing_behind_a_prefix(tiny):
    prefix, tokens = prefixes.of_text(model(tiny), PASSAGE, 12), draw(1, 7)
    padded = np.concatenate([np.full((1, 3), 60, np.int32), tokens], axis=1)
    found = tiny.logits(padded, adapter=prefix, valid=np.arange(10)[None] >= 3)[:, 3:]
    close(found, tiny.logits(tokens, adapter=prefix), atol=2e-5)


@pytest.mark.parametrize("questions", [1, 2])
def test_it_answers_as_the_model_that_reads_the_passage_does(tiny, questions):
    """Greedy answers and the gold answers' likelihood, through the sampler, of two prefixes of different lengths."""
    lm = model(tiny)
    shapes = Shapes((32,), 2, questions=questions, question_width=24, gold_width=4)
    rng = np.random.default_rng(0)
    text = lambda count: " ".join(rng.choice(WORDS, count))
    passages, asked = [text(9), text(5)], [[Query("", text(4), text(2)) for _ in range(2)] for _ in range(2)]
    each = [prefixes.of_text(lm, lm.codec.encode(passage), 12) for passage in passages]
    options = {"max_tokens": 6, "chunk": Chunk(2)}
    found = ask(lm, lora.stack(each), asked, shapes, **options)
    seen = [
        [query._replace(prompt=f"{passage} {query.prompt}") for query in own]
        for passage, own in zip(passages, asked, strict=True)
    ]
    nothing = prefixes.of_text(lm, [], 12)  # of no text: no place is live
    expected = ask(lm, lora.stack([nothing, nothing]), seen, shapes, **options)
    assert found.answers == expected.answers
    assert len({answer for own in found.answers for answer in own}) > 1
    close(np.array(found.likely), np.array(expected.likely))
    for e in range(2):
        alone = ask(lm, lora.stack([each[e]]), asked[e : e + 1], shapes, **options)
        assert alone.answers[0] == found.answers[e]
        close(np.array(alone.likely[0]), np.array(found.likely[e]))


def test_a_prefix_is_read_alike_by_layers_in_a_loop_and_one_after_another(tiny):
    lm, rng = model(tiny), np.random.default_rng(0)
    draw_ids = lambda count: rng.integers(1, 61, count).tolist()
    adapters = lora.stack([prefixes.of_text(lm, draw_ids(count), 12) for count in (9, 5)])
    rows = [batching.left_pad([draw_ids(4), draw_ids(6)], 8) for _ in range(2)]
    tokens, valid = (np.stack(side) for side in zip(*rows, strict=True))
    keys, limits = row_keys(0, np.arange(4).reshape(2, 2, 1)), np.full((2, 2, 1), 6)

    def written(adapters, loop):
        form, sampling = Form(loop=loop, tail=not loop), Sampling(6, 1.0)
        return sample(
            keys, lm.model, lm.params, adapters, tokens, valid, limits, sampling=sampling, stop=(0,), form=form
        ).tokens

    expected = written(adapters, loop=False)
    np.testing.assert_array_equal(written(adapters, loop=True), expected)
    assert (np.asarray(written(None, loop=True)) != expected).any()  # which matters


# ---------------------------------------------------------------------------------------------------------------------
# In training


def lessons() -> list[list[Tokens]]:
    """Of two adapters: a question and its answer, and last the passage. The teacher reads the passage first, and before
    it what no prefix begins with."""
    rng, found = np.random.default_rng(0), []
    for passage in (PASSAGE, PASSAGE[:6][::-1]):
        prompt, rest = rng.integers(1, 61, 3).tolist(), rng.integers(1, 61, 5).tolist()
        view = [7, 11, *passage]
        asked = Tokens(prompt + rest, 3, 1.0, view + prompt + rest)
        found.append([asked, Tokens(passage, 0, 1.0, view + passage)])
    return found


def trained(tiny, edits, places=8, learning_rate=0.02, **config):
    trainer = make_trainer(
        dataclasses.replace(CONFIG, **config), Shapes((16,), 2, 0, 0, 0), Compute(chunk=2), loss=distillation
    )
    found = prefixes.train_each(model(tiny), edits, trainer, how=PrefixTuning(places, learning_rate), seed=5)
    return {e: (prefix, losses) for e, prefix, losses in found}


def test_prefixes_train_as_a_plain_loop_would_alone_and_beside_others(tiny):
    """Two prefixes, one of a text with fewer tokens than places; each alone; and each by optax, its logits computed
    with keys and values that stand in a cache."""
    edits, both = lessons(), trained(tiny, lessons())
    for e in range(2):
        alone = trained(tiny, edits[e : e + 1])[0]
        jax.tree.map(close, alone, both[e])
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(eps=1e-5))
    decoder = nnx.merge(tiny.model, tiny.params)

    def logits(weights, tokens, prefix):
        return decoder.logits(decoder(tokens, adapter=prefix.holding(weights))[0])

    def value(weights, tokens, kept, teacher, prefix):
        p, q = (jax.nn.softmax(side[:, :-1]) for side in (logits(weights, tokens, prefix), teacher))
        return (kept[:, 1:] * (q * jax.numpy.log(q / p)).sum(axis=-1)).sum() / kept[:, 1:].sum()

    step = jax.jit(jax.value_and_grad(value))
    for e in range(2):
        begun = prefixes.of_text(model(tiny), edits[e][-1].ids, 8)
        weights, order = begun.weights, batching.order(2, epochs=3, batch_size=2, seed=5)
        moments = adam.init(weights)
        for s in range(3):
            tokens, kept = batching.pad_rows(edits[e], order[s], 16)
            teacher = np.zeros((2, 16, 61), np.float32)
            for b, n in enumerate(order[s]):
                own = edits[e][n]
                teacher[b, : len(own.ids)] = tiny.logits(np.array([own.view]))[0][-len(own.ids) :]
            loss, gradient = step(weights, tokens, kept, teacher, begun)
            np.testing.assert_allclose(both[e][1][s], loss, rtol=1e-4, atol=1e-6)
            updates, moments = adam.update(gradient, moments, weights)
            weights = jax.tree.map(lambda w, u, rate=0.02 * (1 - s / 3): w - rate * u, weights, updates)
        jax.tree.map(close, both[e][0].weights, weights)


def test_the_first_token_and_places_without_a_token_stay_as_they_are(tiny):
    edits = lessons()
    for e, (prefix, _) in trained(tiny, edits).items():
        begun = prefixes.of_text(model(tiny), edits[e][-1].ids, 8)
        moved = np.abs(prefix.keys - begun.keys).max(axis=(0, 1, 2)) > 0
        assert not moved[0] and moved[1:].tolist() == begun.live[1:].tolist()
        np.testing.assert_array_equal(np.abs(prefix.values - begun.values).max(axis=(0, 1, 3)) > 0, moved)
        assert begun.live.sum() == (8 if e == 0 else 6)


def test_weight_decay_does_not_reach_the_first_token(tiny):
    edits, decayed = lessons(), Optimiser(eps=1e-5, weight_decay=0.5)
    prefix, _ = trained(tiny, edits, optimiser=decayed)[0]
    begun = prefixes.of_text(model(tiny), edits[0][-1].ids, 8)
    np.testing.assert_array_equal(prefix.keys[..., 0], begun.keys[..., 0])
    np.testing.assert_array_equal(prefix.values[:, :, 0], begun.values[:, :, 0])
    assert np.abs(prefix.keys[..., 1:]).sum() < np.abs(begun.keys[..., 1:]).sum()


def test_self_edits_on_one_passage_begin_as_one_prefix(tiny, monkeypatch):
    """Seeds and budgets are rows of one passage: it is read once, and held once."""
    edits, read, real = lessons(), [], prefixes.of_text
    each = trained(tiny, edits)
    monkeypatch.setattr(prefixes, "of_text", lambda lm, ids, places: read.append(ids) or real(lm, ids, places))
    together = trained(tiny, [*edits, *edits])
    assert len(read) == 2
    for e, (prefix, _) in together.items():
        jax.tree.map(close, prefix, each[e % 2][0])


def test_training_brings_it_nearer_to_the_model_that_reads_the_passage(tiny):
    for _, losses in trained(tiny, lessons(), places=4, epochs=60, learning_rate=0.1).values():
        assert losses[-5:].mean() < 0.5 * losses[0]


def test_a_row_of_prefixes_is_tried_as_rows_of_adapters_are(tiny):
    """From self-edits to scores, two at once and each alone: the answers are those with the passage in view."""
    lm, rng = model(tiny), np.random.default_rng(1)
    text = lambda count: " ".join(rng.choice(WORDS, count))
    edits, queries = [], []
    for _ in range(2):
        passage, question, answer = text(6), text(4), text(2)
        asked = Example(question, answer, view=f"{passage} {question}")
        edits.append(SelfEdit("", (asked, Example("", passage, view=passage))))
        queries.append([Query("", question, answer)])
    shapes = Shapes((16,), 2, questions=1, question_width=16, gold_width=4)
    trainer = make_trainer(dataclasses.replace(CONFIG, epochs=20), shapes, Compute(chunk=2), loss=distillation)
    train = partial(prefixes.train_each, how=PrefixTuning(tokens=4, learning_rate=0.05))

    def scores(edits, queries):
        found = score_each(lm, edits, queries, right, trainer, seed=0, max_tokens=3, train=train)
        return [score for _, score in sorted(found)]

    both = scores(edits, queries)
    for e in range(2):
        assert both[e].problem is None and len(both[e].losses) == 20
        (alone,) = scores(edits[e : e + 1], queries[e : e + 1])
        assert alone.answers == both[e].answers
        close(np.array(alone.log_likelihoods), np.array(both[e].log_likelihoods))
    base = score_base(lm, queries, right, trainer, max_tokens=3)
    seen = [[query._replace(prompt=e.examples[0].view) for query in own] for e, own in zip(edits, queries, strict=True)]
    taught = score_base(lm, seen, right, trainer, max_tokens=3)
    assert [score.answers for score in both] == [score.answers for score in taught]
    assert all(one.answers != before.answers for one, before in zip(both, base, strict=True))


def right(queries, answers):
    return [[True] * len(own) for own in answers]


# ---------------------------------------------------------------------------------------------------------------------
# What it cannot be


def test_a_prefix_has_no_place_in_files_of_matrices_or_in_the_weights(tiny, tmp_path):
    prefix = prefixes.of_text(model(tiny), PASSAGE, 4)
    for work in (
        lambda: peft.save_peft(tmp_path / "peft", prefix, rank=2, base_model="m"),
        lambda: gguf_export.save_adapter(tmp_path / "a.gguf", prefix, tiny.config, name="m"),
        lambda: lora.merge(tiny.params, prefix),
    ):
        with pytest.raises(ValueError, match=r"a trained prefix of 4 tokens cannot become .* expected a LoRA adapter"):
            work()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="trained on top of"):
        nnx.merge(tiny.model, tiny.params)(draw(1, 3), fixed=prefix)
