"""A loss is what it says, its slope is its derivative, and the head around it may cut tokens as it likes."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from seal_jax.engine import batching, inner
from seal_jax.engine.inner import Given, Lessons, Optimiser, Recipe, adapt_each
from seal_jax.engine.schedule import Room
from seal_jax.engine.teachers import States
from seal_jax.engine.training import FineTuning, Shapes, init_adapters, make_trainer, train
from seal_jax.nn import lora
from seal_jax.nn.losses import Head, Loss, distillation, kl_to_base, mixed, next_token, token_losses
from seal_jax.types import Compute, Example, HParams, LanguageModel
from tests import tiny as tiny_models

B, T, D, V = 3, 7, 8, 31
KL = 0.7


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


TARGETS = np.random.default_rng(9).integers(0, V, (B, T))
HIDDEN, TAUGHT = draw(B, T, D, seed=1), draw(B, T, D, seed=2)
HEADS = {"vd": Head(draw(V, D, seed=3), "vd"), "dv": Head(draw(D, V, seed=4), "dv")}
WEIGHT = draw(B, T, seed=5)  # of each token: so that no token's gradient hides behind another's


def cross_entropy(logits, targets, teacher, numbers):
    """`-log p(y)`, by optax."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def held(logits, targets, teacher, numbers):
    """The same and the divergence from the teacher, by its definition."""
    p, q = jax.nn.softmax(logits), jax.nn.softmax(teacher)
    return cross_entropy(logits, targets, teacher, numbers) + numbers["kl"] * jnp.sum(q * jnp.log(q / p), axis=-1)


def divergence(logits, targets, teacher, numbers):
    """From the teacher, by its definition."""
    p, q = jax.nn.softmax(logits), jax.nn.softmax(teacher)
    return jnp.sum(q * jnp.log(q / p), axis=-1)


def smoothed(logits, targets, teacher, numbers):
    """Weighted cross-entropy with smoothed labels, by optax."""
    labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1]), numbers["smoothing"])
    return numbers["weight"] * optax.softmax_cross_entropy(logits, labels)


def _smoothed(logits, targets, teacher, numbers):
    size, share = logits.shape[-1], numbers["smoothing"]
    labels = (1 - share) * (jnp.arange(size) == targets[:, None]) + share / size
    log_p = jax.nn.log_softmax(logits)
    value, slope = -jnp.sum(labels * log_p, axis=-1), jnp.exp(log_p) - labels
    return numbers["weight"] * value, numbers["weight"] * slope


OWN = Loss(_smoothed)  # as a user would write one
PLAIN = {next_token: cross_entropy, kl_to_base: held, distillation: divergence, OWN: smoothed}
NUMBERS = {"kl": KL, "weight": 1.5, "smoothing": 0.2}
LOSSES = pytest.mark.parametrize("loss", PLAIN, ids=["next_token", "kl_to_base", "distillation", "own"])


# ---------------------------------------------------------------------------------------------------------------------
# One token


@LOSSES
def test_value_and_slope_are_those_of_a_plain_implementation(loss):
    logits, teacher, targets = draw(T, V, scale=3.0), draw(T, V, seed=1, scale=3.0), TARGETS[0]

    def total(logits):
        values = PLAIN[loss](logits, targets, teacher, NUMBERS)
        return jnp.sum(values), values

    slope, value = jax.jit(jax.grad(total, has_aux=True))(logits)
    found = jax.jit(loss.value_and_slope)(logits, targets, teacher, NUMBERS)
    np.testing.assert_allclose(found[0], value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], slope, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.sum(found[1], axis=1), 0, atol=1e-5)  # logits are known up to a constant


def test_the_divergence_from_oneself_is_nothing():
    logits = draw(T, V)
    same = kl_to_base.value_and_slope(logits, TARGETS[0], logits, NUMBERS)
    jax.tree.map(np.testing.assert_array_equal, same, next_token.value_and_slope(logits, TARGETS[0], None, {}))


def test_logits_far_apart_have_finite_losses_and_slopes():
    is_target = np.arange(V) == TARGETS[0][:, None]
    for far in (-1e4, 1e4):
        logits = np.where(is_target, far, draw(T, V)).astype(np.float32)
        for loss in PLAIN:
            value, slope = loss.value_and_slope(logits, TARGETS[0], draw(T, V, seed=1), NUMBERS)
            assert np.isfinite(value).all() and np.isfinite(slope).all()


# ---------------------------------------------------------------------------------------------------------------------
# The head


def whole(loss, head, hidden, teacher):
    """Every token's loss from all logits at once."""
    taught = None if teacher is None else head.logits(teacher)
    return PLAIN[loss](head.logits(hidden), TARGETS, taught, NUMBERS)


@partial(jax.jit, static_argnums=(0, 1))
def with_gradients(losses, argnums, *args):
    """Each token's loss, and the gradient of their weighted sum in some of (head, hidden)."""

    def total(*args):
        values = losses(*args)
        return jnp.sum(WEIGHT * values), values

    gradient, values = jax.grad(total, argnums=argnums, has_aux=True)(*args)
    return values, gradient


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("axes", HEADS)
@LOSSES
def test_the_head_in_pieces_is_the_whole(loss, axes, train_head):
    """Pieces of one token, that divide 21 and do not, and one that exceeds it; with a teacher if the loss has one."""
    head, teacher = HEADS[axes], None if loss.teacher == "none" else TAUGHT
    argnums = (0, 1) if train_head else (1,)
    expected = with_gradients(partial(whole, loss), argnums, head, HIDDEN, teacher)
    for chunk in (1, 4, 7, 1000):

        def pieces(head, hidden, teacher, chunk=chunk):
            options = {"chunk": chunk, "teacher": teacher, "numbers": NUMBERS, "train_head": train_head}
            return token_losses(loss, head, hidden, TARGETS, **options)

        found = with_gradients(pieces, argnums, head, HIDDEN, teacher)
        assert found[0].shape == (B, T)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), found, expected)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0.1


def test_a_piece_holds_no_more_logits_than_were_asked_for():
    """Of the shapes in the program none has the whole batch's logits; a teacher's count as well."""

    def widest(chunk, teacher):
        program = jax.make_jaxpr(
            lambda hidden: jax.grad(
                lambda h: jnp.sum(
                    token_losses(kl_to_base, HEADS["vd"], h, TARGETS, chunk=chunk, teacher=teacher, numbers=NUMBERS)
                )
            )(hidden)
        )(HIDDEN)
        return max(
            int(np.prod(var.aval.shape[:-1]))
            for eqn in _equations(program.jaxpr)
            for var in eqn.outvars
            if var.aval.shape[-1:] == (V,)
        )

    assert widest(1000, TAUGHT) == B * T
    assert widest(8, TAUGHT) <= 4  # the model's 4 and the teacher's 4


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inside = getattr(value, "jaxpr", value)
            if hasattr(inside, "eqns"):
                yield from _equations(inside)


def test_a_frozen_head_and_a_teacher_get_no_gradient():
    def total(head, teacher):
        return jnp.sum(token_losses(kl_to_base, head, HIDDEN, TARGETS, teacher=teacher, numbers=NUMBERS))

    for gradient in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(HEADS["vd"], TAUGHT)):
        assert not np.asarray(gradient).any()


def test_a_bfloat16_model_has_losses_in_float32_and_gradients_in_its_own():
    narrow = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), (HEADS["vd"], HIDDEN))
    values, (gradient,) = with_gradients(
        lambda head, hidden, _: token_losses(next_token, head, hidden, TARGETS), (1,), *narrow, None
    )
    assert values.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    expected, (its_gradient,) = with_gradients(partial(whole, next_token), (1,), HEADS["vd"], HIDDEN, None)
    np.testing.assert_allclose(values, expected, atol=0.1)
    np.testing.assert_allclose(np.asarray(gradient, np.float32), its_gradient, atol=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# In the inner loop


def test_a_users_own_loss_trains_many_adapters_as_a_plain_loop_would(tiny):
    """Two adapters, each with numbers of its own, through `adapt_each`; and each by optax on whole rows of logits."""
    rng, steps, optimiser = np.random.default_rng(0), 4, Optimiser(eps=1e-5)
    edits = [[batching.Tokens(rng.integers(1, 61, n).tolist(), n % 3) for n in row] for row in ((12, 7), (9, 5))]
    lessons = Lessons(edits, [batching.order(2, epochs=2, batch_size=1, seed=seed) for seed in (1, 2)])
    numbers = {"weight": np.float32([0.5, 3.0]), "smoothing": np.float32([0.1, 0.4])}
    same = {"rank": np.int32([4, 4]), "num_steps": np.int32([steps] * 2), "alpha": np.float32([8, 8])}
    hyper = HParams(learning_rate=np.float32([3e-3, 1e-3]), seed=np.int32([7, 8]), numbers=numbers, **same)
    start = jax.device_get(init_adapters(tiny.params["blocks"], hyper, ("q_proj", "down_proj"), 4))
    trained = {
        e: (adapter, metrics.loss)
        for e, adapter, metrics in adapt_each(
            tiny.model, tiny.params, partial(lora.take, start), lessons, Given(hyper),
            Recipe(optimiser, OWN, Compute(loss_chunk=5)), widths=(8, 16), room=Room(2, 16),
        )
    }  # fmt: skip
    adam = optax.chain(optax.clip_by_global_norm(optimiser.clip_norm), optax.scale_by_adam(eps=optimiser.eps))

    @jax.jit
    def step(weights, moments, tokens, kept, scale, rate, own):
        def loss(weights):
            decoder = nnx.merge(tiny.model, tiny.params)
            logits = decoder.logits(decoder(tokens[None], adapter=lora.Adapter(*weights, scale))[0])[0]
            return jnp.sum(kept[1:] * smoothed(logits[:-1], tokens[1:], None, own)) / jnp.sum(kept[1:])

        value, grads = jax.value_and_grad(loss)(weights)
        updates, moments = adam.update(grads, moments, weights)
        return jax.tree.map(lambda w, u: w - rate * u, weights, updates), moments, value

    for e in range(2):
        one, own = lora.take(start, e), {name: values[e] for name, values in numbers.items()}
        mine, losses = trained[e]
        weights = (one.a, one.b)
        moments = adam.init(weights)
        for s in range(steps):
            (tokens,), (kept,) = batching.pad_rows(edits[e], lessons.orders[e][s], 16)
            rate = hyper.learning_rate[e] * (1 - s / steps)
            weights, moments, value = step(weights, moments, tokens, kept, one.scale, rate, own)
            np.testing.assert_allclose(losses[s], value, rtol=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), (mine.a, mine.b), weights)
        assert max(np.abs(w).max() for w in mine.b.values()) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# A teacher with the passage in view

SEEN = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1, 8]]  # what the teacher of each of two adapters reads first


def lessons(tiny, loss, rng) -> list[list[batching.Tokens]]:
    """Of two adapters: a sequence that is trained on whole, and one with a prompt, for which the view stands."""
    found = []
    for seen in SEEN:
        own = rng.integers(1, 61, 9).tolist()
        prompt, rest = rng.integers(1, 61, 3).tolist(), rng.integers(1, 61, 6).tolist()
        found.append([batching.Tokens(own, 0, 1.0, seen + own), batching.Tokens(prompt + rest, 3, 1.0, seen + rest)])
    return found


def taught_plainly(tiny, loss, sequence: batching.Tokens, number: int, seed: int) -> np.ndarray:
    """The teacher's logits [T, V] at a sequence's tokens, without any piece of the code under test."""
    with_view = tiny.logits(np.array([sequence.view]))[0][-len(sequence.ids) :]
    without = tiny.logits(np.array([sequence.ids]))[0]
    coins = np.random.default_rng([seed, number]).random(len(sequence.ids)) < loss.in_view
    return np.where(coins[:, None], with_view, without)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss", [distillation, mixed], ids=["distillation", "mixed"])
def test_distillation_trains_as_a_plain_loop_would_alone_and_beside_others(tiny, loss, accumulate):
    """Two adapters through `train`, each again by itself, and each by optax on whole rows of both models' logits."""
    rng, config = np.random.default_rng(0), FineTuning(("q_proj", "down_proj"), 4, 8.0, 3e-3, epochs=3, batch_size=2)
    config = dataclasses.replace(config, optimiser=Optimiser(eps=1e-5))
    edits, shapes, seeds = lessons(tiny, loss, rng), Shapes((16,), 2, 0, 0, 0), [5, 6]
    lm = LanguageModel(tiny.model, tiny.params, None)
    trainer = make_trainer(config, shapes, Compute(chunk=2, loss_chunk=5, accumulate=accumulate), loss=loss)
    trained, losses = train(lm, edits, trainer, seed=seeds)
    for e in range(2):
        alone, its_losses = train(lm, edits[e : e + 1], trainer, seed=seeds[e])
        same = partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
        jax.tree.map(same, lora.take(alone, 0), lora.take(trained, e))
        np.testing.assert_allclose(its_losses[0], losses[e], rtol=1e-5)

    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(eps=1e-5))

    @jax.jit
    def step(weights, moments, tokens, kept, teacher, scale, rate):
        def value(weights):
            decoder = nnx.merge(tiny.model, tiny.params)
            logits = decoder.logits(decoder(tokens, adapter=lora.Adapter(*weights, scale))[0])
            each = divergence(logits[:, :-1], None, teacher[:, :-1], {})
            return jnp.sum(kept[:, 1:] * each) / jnp.sum(kept[:, 1:])

        loss, grads = jax.value_and_grad(value)(weights)
        updates, moments = adam.update(grads, moments, weights)
        return jax.tree.map(lambda w, u: w - rate * u, weights, updates), moments, loss

    for e in range(2):
        mine, steps = lora.take(trained, e), 3
        zero = train(lm, edits[e : e + 1], trainer._replace(config=dataclasses.replace(config, learning_rate=0.0)),
                     seed=seeds[e])[0]  # fmt: skip
        weights, order = (zero.a, zero.b), batching.order(2, epochs=3, batch_size=2, seed=seeds[e])
        weights = jax.tree.map(lambda w: w[0], weights)
        moments = adam.init(weights)
        for s in range(steps):
            tokens, kept = batching.pad_rows(edits[e], order[s], 16)
            teacher = np.zeros((2, 16, 61), np.float32)
            for b, n in enumerate(order[s]):
                own = taught_plainly(tiny, loss, edits[e][n], int(n), seeds[e])
                teacher[b, : len(own)] = own
            rate = config.learning_rate * (1 - s / steps)
            weights, moments, value = step(weights, moments, tokens, kept, teacher, mine.scale, rate)
            np.testing.assert_allclose(losses[e][s], value, rtol=1e-4, atol=1e-6)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), (mine.a, mine.b), weights)
        assert max(np.abs(w).max() for w in mine.b.values()) > 1e-3


def test_mixing_is_done_by_the_programs_of_distillation(tiny):
    trainer = make_trainer(FineTuning(("q_proj",), 4, 8.0, epochs=1), Shapes((24,), 1, 0, 0, 0), Compute(chunk=1))
    lm, own, programs = LanguageModel(tiny.model, tiny.params, None), [3, 1, 4, 1, 5], []
    for loss in (distillation, mixed):
        train(lm, [[batching.Tokens(own, 0, 1.0, [2, *own])]], trainer._replace(loss=loss), seed=0)
        programs.append(inner.tick._cache_size())
    assert programs[0] == programs[1]


def test_a_teacher_that_sees_nothing_more_teaches_nothing(tiny):
    """Its view is the sequence itself: there is no divergence."""
    own, config = [3, 1, 4, 1, 5], FineTuning(("q_proj",), 4, 8.0, epochs=1)
    trainer = make_trainer(config, Shapes((8,), 1, 0, 0, 0), Compute(chunk=1), loss=distillation)
    lm = LanguageModel(tiny.model, tiny.params, None)
    _, (losses,) = train(lm, [[batching.Tokens(own, 0, 1.0, own)]], trainer, seed=0)
    np.testing.assert_allclose(losses, 0, atol=1e-6)


def test_a_view_takes_the_place_of_the_prompt():
    codec = tiny_models.word_codec([*"abcdefg"])
    begins = codec._replace(encode=lambda text: [99, *codec.encode(text)])  # with a token that begins a sequence
    found = batching.tokenize(Example("a", "b c", view="d e f"), begins)
    assert (found.ids, found.loss_from, found.view) == ([99, 1, 2, 3], 2, [99, 4, 5, 6, 2, 3])
    assert batching.tokenize(Example("", "b c", view="d"), begins) == ([99, 2, 3], 0, 1.0, [99, 4, 2, 3])
    assert not batching.tokenize(Example("a", "b"), begins).view


def test_a_sequence_without_a_view_is_refused(tiny):
    lm = LanguageModel(tiny.model, tiny.params, None)
    with pytest.raises(ValueError, match=r"self-edit 0, sequence 1: .* an Example with a `view`"):
        States(lm, [[batching.Tokens([1], 0, 1.0, [1]), batching.Tokens([1], 0)]], [0], distillation)
