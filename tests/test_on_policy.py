"""Adapters that are trained on what they say themselves: as a plain loop would, one at a time, token by token."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from seal_jax.engine import batching, inner, on_policy, training
from seal_jax.engine.batching import Tokens
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.on_policy import OnPolicy
from seal_jax.engine.sampler import Sampling, choose, row_keys
from seal_jax.engine.training import FineTuning, Shapes, make_trainer
from seal_jax.nn import lora
from seal_jax.nn.losses import distillation
from seal_jax.seal.rewards import score_each
from seal_jax.types import Codec, Compute, Example, LanguageModel, Query, SelfEdit, Settings
from tests import tiny as tiny_models

END = 5  # the token that ends an answer
HOW, MAX_TOKENS = OnPolicy(every=2, temperature=0.7), 6
CONFIG = FineTuning(
    ("q_proj", "down_proj"), 4, 8.0, learning_rate=1e-2, epochs=5, batch_size=2, optimiser=Optimiser(eps=1e-5)
)
SHAPES = Shapes((24,), 4, questions=2, question_width=8, gold_width=4)

close = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)


def model(tiny) -> LanguageModel:
    words = tiny_models.word_codec([f"w{i}" for i in range(60)])
    codec = Codec(words.encode, words.encode_more, words.decode, f"w{END - 1}", (END,))
    return LanguageModel(tiny.model, tiny.params, codec)


def lessons() -> list[list[Tokens]]:
    """Of three adapters: questions, of which one has three and two one, and a passage that is not asked."""
    rng, found = np.random.default_rng(0), []
    for count in (3, 1, 1):
        draw = lambda n: rng.integers(3, 61, n).tolist()
        passage, own = draw(7), []
        for _ in range(count):
            prompt, answer = draw(int(rng.integers(3, 6))), draw(3)
            own.append(Tokens(prompt + answer, len(prompt), 1.0, passage + prompt + answer))
        found.append([*own, Tokens(passage, 0, 1.0, passage[:2] + passage)])
    return found


def trained(tiny, edits, seeds, *, chunk=2, how=HOW, skip=()):
    trainer = make_trainer(CONFIG, SHAPES, Compute(chunk=chunk), loss=distillation)
    found = on_policy.train_each(model(tiny), edits, trainer, how=how, max_tokens=MAX_TOKENS, seed=seeds, skip=skip)
    return {e: (adapter, losses) for e, adapter, losses in found}


def said(tiny, adapter, prompt: list[int], key) -> list[int]:
    """An answer, a token at a time, from whole logits."""
    ids = list(prompt)
    for step in range(MAX_TOKENS):
        row = np.zeros((1, 16), np.int32)
        row[0, : len(ids)] = ids
        logits = tiny.logits(row, adapter=adapter)[0, len(ids) - 1]
        token = int(choose(jax.random.fold_in(key, step), jnp.asarray(logits), Sampling(1, HOW.temperature)))
        if token == END:
            return [*ids[len(prompt) :], END]
        ids.append(token)
    return ids[len(prompt) :]


def plainly(tiny, edit: list[Tokens], seed: int, start: lora.Adapter):
    """One adapter through all phases, by itself: its weights, its losses and its answers."""
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(eps=1e-5))
    decoder = nnx.merge(tiny.model, tiny.params)

    @jax.jit
    def step(weights, moments, tokens, kept, teacher, rate):
        def value(weights):
            logits = decoder.logits(decoder(tokens, adapter=lora.Adapter(*weights, start.scale))[0])
            p, q = (jax.nn.softmax(side[:, :-1]) for side in (logits, teacher))
            return (kept[:, 1:] * (q * jnp.log(q / p)).sum(axis=-1)).sum() / kept[:, 1:].sum()

        loss, gradient = jax.value_and_grad(value)(weights)
        updates, moments = adam.update(gradient, moments, weights)
        return jax.tree.map(lambda w, u: w - rate * u, weights, updates), moments, loss

    weights, name, taken, losses, answers = (start.a, start.b), training.fingerprint(seed, edit), 0, [], []
    moments = adam.init(weights)
    total = batching.num_steps(len(edit), epochs=5, batch_size=2)
    for phase, epochs in enumerate((2, 2, 1)):
        now = []
        for n, own in enumerate(edit):
            prompt, before = own.ids[: own.loss_from], list(own.view)[: len(own.view) - len(own.ids) + own.loss_from]
            if prompt:
                key = row_keys(0, np.array([name]), np.array(phase), np.array(n))[0]
                answer = said(tiny, lora.Adapter(*weights, start.scale), prompt, key)
                answers.append(answer)
                own = Tokens(prompt + answer, len(prompt), 1.0, before + answer)
            now.append(own)
        seed_of_phase = int(np.random.default_rng([seed, phase]).integers(2**31))
        for read in batching.order(len(now), epochs=epochs, batch_size=2, seed=seed_of_phase):
            tokens, kept = batching.pad_rows(now, read, 24)
            teacher = np.zeros((2, 24, 61), np.float32)
            for b, n in enumerate(read):
                if n >= 0:
                    own = now[n]
                    teacher[b, : len(own.ids)] = tiny.logits(np.array([own.view]))[0][-len(own.ids) :]
            weights, moments, loss = step(weights, moments, tokens, kept, teacher, 1e-2 * (1 - taken / total))
            losses.append(loss)
            taken += 1
    return weights, losses, answers


def test_adapters_train_as_a_plain_loop_would_alone_and_beside_others(tiny):
    """Three adapters, two at a time; each by itself; each token by token and step by step, by optax, with one Adam."""
    edits, seeds = lessons(), [5, 6, 6]
    together, answers = trained(tiny, edits, seeds), []
    for e in range(3):
        adapter, losses = together[e]
        alone, its_losses = trained(tiny, edits[e : e + 1], seeds[e])[0]
        jax.tree.map(close, alone, adapter)
        close(its_losses, losses)
        start = beginning(tiny, edits[e], seeds[e])
        weights, expected, said = plainly(tiny, edits[e], seeds[e], start)
        np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6)
        jax.tree.map(close, adapter.weights, weights)
        assert max(np.abs(w).max() for w in adapter.b.values()) > 1e-2
        answers += said
    lengths = {len(answer) for answer in answers}
    assert any(answer[-1] == END for answer in answers) and len(lengths) > 1 and MAX_TOKENS in lengths
    assert len({tuple(answer) for answer in answers[:9]}) > 3  # they change from phase to phase


def beginning(tiny, edit: list[Tokens], seed: int) -> lora.Adapter:
    """The adapter before its first step: what a training at rate 0 leaves of it."""
    trainer = make_trainer(dataclasses.replace(CONFIG, learning_rate=0.0), SHAPES, Compute(chunk=1), loss=distillation)
    options = {"how": HOW, "max_tokens": MAX_TOKENS, "seed": seed}
    ((_, adapter, _),) = on_policy.train_each(model(tiny), [edit], trainer, **options)
    assert not any(w.any() for w in adapter.b.values())
    return adapter


def test_what_is_left_out_changes_no_other(tiny):
    edits, whole = lessons(), trained(tiny, lessons(), [5, 6, 7])
    rest = trained(tiny, edits, [5, 6, 7], skip=[0, 2])
    assert rest.keys() == {1}
    jax.tree.map(np.testing.assert_array_equal, rest[1], whole[1])


def test_where_memory_runs_out_at_the_end_of_a_phase_it_is_not_trained_twice(tiny, monkeypatch):
    """Of two adapters in their second phase, the second cannot be read: it begins the phase again."""
    expected, real, calls = trained(tiny, lessons()[:2], [5, 6]), inner._Lane.adapter, []

    def scarce(lane, place):
        calls.append(place)
        if len(calls) == 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return real(lane, place)

    monkeypatch.setattr(inner._Lane, "adapter", scarce)
    found = trained(tiny, lessons()[:2], [5, 6])
    assert len(calls) == 2 * 3 + 1  # three phases, and the one again
    for e in range(2):
        close(found[e][1], expected[e][1])
        jax.tree.map(close, found[e][0], expected[e][0])


def test_a_longer_phase_is_another_training(tiny):
    edits = lessons()[:1]
    one, two = (trained(tiny, edits, 5, how=OnPolicy(every, 0.7))[0][0] for every in (1, 5))
    assert np.abs(one.b["q_proj"] - two.b["q_proj"]).max() > 1e-3


def test_the_epochs_of_the_phases_are_those_of_the_training():
    assert [OnPolicy(every).phases(8) for every in (3, 4, 8, 9)] == [[3, 3, 2], [4, 4], [8], [8]]


def test_an_answer_is_cut_where_a_step_has_no_room_for_it(tiny):
    edits = lessons()[1:2]
    trainer = make_trainer(CONFIG, SHAPES._replace(widths=(8,)), Compute(chunk=1), loss=distillation)
    lm = model(tiny)
    adapters = training.untrained(lm, 1, trainer)
    options = {"names": [1], "phase": 0, "max_tokens": MAX_TOKENS, "width": 8}
    ((asked, passage),) = on_policy.answered(lm, adapters, edits, trainer, HOW, **options)
    prompt = edits[0][0].loss_from
    assert prompt < len(asked.ids) <= 8 and asked.ids[:prompt] == edits[0][0].ids[:prompt]
    assert asked.view == edits[0][0].view[:-3] + asked.ids[prompt:]
    assert passage == edits[0][1]
    assert on_policy.answered(lm, adapters, [[passage]], trainer, HOW, **options) == [[passage]]


def test_it_is_tried_as_other_trainings_are(tiny):
    trainer = make_trainer(CONFIG, SHAPES, Compute(chunk=2), loss=distillation)
    train = partial(on_policy.train_each, how=HOW, max_tokens=MAX_TOKENS)
    edit = SelfEdit("", (Example("w5 w6", "w7", view="w9 w5 w6"), Example("", "w9 w8", view="w9 w8")))
    queries, grade = [[Query("", "w5 w6", "w7")]] * 2, lambda queries, answers: [[True] for _ in queries]
    found = dict(score_each(model(tiny), [edit, edit], queries, grade, trainer, seed=[1, 2], max_tokens=3, train=train))
    assert [len(found[e].losses) for e in range(2)] == [5, 5]
    assert found[0].log_likelihoods != found[1].log_likelihoods
    chosen = [edit._replace(settings=Settings(1e-3, 2))]
    with pytest.raises(ValueError, match="settings of their own"):
        list(score_each(model(tiny), chosen, queries[:1], grade, trainer, seed=1, max_tokens=3, train=train))
