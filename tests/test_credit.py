"""Credit by gradient is the derivative of what a plain loop computes, whatever trains beside it and fits in memory; by
leaving out it is what the gold answers lose; a table says how far the two agree."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seal_jax.engine import batching, training
from seal_jax.engine.batching import Tokens
from seal_jax.engine.credit import credit_each
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.training import FineTuning, Shapes, make_trainer, train
from seal_jax.nn import lora
from seal_jax.nn.losses import distillation, kl_to_base, next_token
from seal_jax.seal.credit import Method, agreement, by_gradient, credit_table, helpful, leave_one_out, ranking
from seal_jax.types import Compute, Example, Query, SelfEdit, Settings
from tests import tiny

WORDS = [f"w{n}" for n in range(30)]
SHAPES = Shapes((8, 16), 4, 0, 0, 0)
SMOOTH = Optimiser(eps=1e-2)  # Adam turns on the sign of a gradient near 0: finite differences want it smooth
INNER = FineTuning(projections=("q_proj", "v_proj", "down_proj"), rank=4, alpha=8.0, learning_rate=3e-2, epochs=3,
                   optimiser=SMOOTH)  # fmt: skip
TEXTS = [
    ["w1 w2 w3 w4", "w5 w6 w7", "w1 w2 w8 w9 w10 w11 w12 w13 w14"],
    ["w7 w8 w9", "w1 w2", "w3 w2 w1", "w20 w21 w22 w23"],
    ["w4 w5", "w6 w1 w2 w3"],
]
ASKED = [[("w1 w2", "w3 w4"), ("w5", "w6")], [("w7", "w8 w9"), ("w3", "w2"), ("w20 w21", "w22")], [("w6 w1", "w2")]]


@pytest.fixture(scope="module")
def lm():
    return tiny.language_model(WORDS)


@pytest.fixture(scope="module")
def edits(lm):
    return [[batching.tokenize(Example("", text), lm.codec) for text in row] for row in TEXTS]


@pytest.fixture(scope="module")
def golds(lm):
    encode = lm.codec.encode
    return [[Tokens(encode(f"{q} {a}"), len(encode(q))) for q, a in row] for row in ASKED]


def trainer(config: FineTuning = INNER, compute: Compute = Compute(chunk=4, tick_tokens=32), loss=next_token):
    return make_trainer(config, SHAPES, compute, loss=loss)


def log_likelihoods(lm, adapter, tokens):
    """Of each token [B, T - 1], from whole logits."""
    decoder = nnx.merge(lm.model, lm.params)
    log_probs = jax.nn.log_softmax(decoder.logits(decoder(tokens, adapter=adapter)[0])[:, :-1])
    return jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]


def plainly(lm, edit, gold, config: FineTuning, seed: int):
    """F after one adapter's inner loop, in plain steps of AdamW, as a function of its sequences' weights."""
    lessons, _, start = training.begin_each(lm, [edit], trainer(config), seed=seed)
    adapter, order, o = start(0), lessons.orders[0], config.optimiser
    with_weights = lambda w: adapter.replace(a=w[0], b=w[1])
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(tree)))
    steps = [batching.pad_rows(edit, read, 16) for read in order]
    steps = (np.arange(len(order)), order, np.stack([t for t, _ in steps]), np.stack([k for _, k in steps]))

    def step(scale, state, given):
        (w, m, v), (n, read, tokens, kept) = state, given

        def loss(w, scale):
            each = -log_likelihoods(lm, with_weights(w), tokens) * kept[:, 1:]
            return jnp.sum(scale[read][:, None] * each) / jnp.sum(kept[:, 1:])

        length = norm(jax.grad(loss)(w, jnp.ones(len(edit))))
        factor = jnp.where(length > o.clip_norm, o.clip_norm / length, 1)
        g = jax.tree.map(lambda x: factor * x, jax.grad(loss)(w, scale))
        m = jax.tree.map(lambda m, g: o.b1 * m + (1 - o.b1) * g, m, g)
        v = jax.tree.map(lambda v, g: o.b2 * v + (1 - o.b2) * g * g, v, g)

        def moved(w, m, v):
            root = jnp.sqrt(jnp.where(v > 0, v, 1) / (1 - o.b2 ** (n + 1))) * (v > 0)
            rate = config.learning_rate * (1 - n / len(order))
            return w - rate * (m / (1 - o.b1 ** (n + 1)) / (root + o.eps) + o.weight_decay * w)

        return (jax.tree.map(moved, w, m, v), m, v), None

    def likelihood(scale):
        zero = jax.tree.map(jnp.zeros_like, (adapter.a, adapter.b))
        (w, _, _), _ = jax.lax.scan(partial(step, scale), ((adapter.a, adapter.b), zero, zero), steps)
        own = [log_likelihoods(lm, with_weights(w), np.array([s.ids]))[0, s.loss_from - 1 :] for s in gold]
        return jnp.mean(jnp.stack([jnp.mean(x) for x in own]))

    return jax.jit(likelihood)


@pytest.mark.parametrize(
    "config",
    [
        INNER,
        dataclasses.replace(INNER, batch_size=2),
        dataclasses.replace(INNER, optimiser=dataclasses.replace(SMOOTH, clip_norm=0.1, weight_decay=0.1)),
        dataclasses.replace(INNER, batch_size=2, optimiser=dataclasses.replace(SMOOTH, clip_norm=0.1)),
    ],
    ids=["one a step", "two a step", "clipped", "two a step, clipped"],
)
def test_credit_is_the_derivative_in_each_sequences_weight(lm, edits, golds, config):
    found = credit_each(lm, edits, golds, trainer(config), seed=3)
    for e in (0, 1):
        of_weights = plainly(lm, edits[e], golds[e], config, 3)
        ones = jnp.ones(len(edits[e]))
        np.testing.assert_allclose(found[e].likelihood, of_weights(ones), atol=2e-5)
        expected = np.asarray(jax.jit(jax.grad(of_weights))(ones))
        np.testing.assert_allclose(found[e].lines, expected, atol=1e-3 * np.abs(expected).max())
        h, one = 0.02, np.eye(len(edits[e]))
        differences = [(of_weights(ones + h * d) - of_weights(ones - h * d)) / (2 * h) for d in one]
        np.testing.assert_allclose(found[e].lines, differences, atol=2e-2 * np.abs(expected).max())


def test_the_forward_pass_trains_what_the_trainer_trains(lm, edits, golds):
    config = dataclasses.replace(INNER, optimiser=Optimiser())  # the paper's eps
    expected, _ = train(lm, edits, trainer(config), seed=3)
    for e, credit in enumerate(credit_each(lm, edits, golds, trainer(config), seed=3)):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), credit.adapter, lora.take(expected, e))
        assert np.isfinite(credit.lines).all()


@pytest.mark.parametrize("curvature", [True, False])
def test_neighbours_windows_and_devices_change_nothing(lm, edits, golds, mesh, curvature):
    together = credit_each(lm, edits, golds, trainer(), seed=3, curvature=curvature)
    windows = credit_each(lm, edits, golds, trainer(), seed=3, curvature=curvature, memory=1.0)
    lanes = credit_each(lm._replace(mesh=mesh), edits, golds, trainer(), seed=3, curvature=curvature)
    for e, credit in enumerate(together):
        alone = credit_each(lm, [edits[e]], [golds[e]], trainer(), seed=3, curvature=curvature)[0]
        for other in (alone, windows[e], lanes[e]):
            np.testing.assert_allclose(other.lines, credit.lines, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(other.likelihood, credit.likelihood, rtol=1e-5)


def test_what_is_never_trained_has_a_finite_derivative(lm, edits, golds):
    """Columns past the rank and projections left out: their gradients and second moments are 0."""
    settings = [Settings(3e-2, 2, 2, 4.0, ("v_proj",)), None, None]
    config = dataclasses.replace(INNER, optimiser=Optimiser())
    found = credit_each(lm, edits, golds, trainer(config), seed=3, settings=settings)
    assert all(np.isfinite(credit.lines).all() and np.abs(credit.lines).max() > 0 for credit in found)


def test_what_a_sequence_taught_and_what_harms_are_told_apart(lm, golds):
    """The first says what is asked; the second says another thing of it, and takes from that."""
    encode = lm.codec.encode
    edit = [Tokens(encode("w1 w2 w3 w4"), 0), Tokens(encode("w1 w2 w9 w9"), 0)]
    for curvature in (True, False):
        helps, harms = credit_each(lm, [edit], [golds[0][:1]], trainer(), seed=3, curvature=curvature)[0].lines
        assert harms < 0 < helps


def test_a_loss_with_a_teacher_and_a_divided_model_are_refused(lm, edits, golds):
    for loss in (kl_to_base, distillation):
        with pytest.raises(ValueError, match="without a teacher"):
            credit_each(lm, edits, golds, trainer(loss=loss), seed=3)


# ---------------------------------------------------------------------------------------------------------------------
# Lines of self-edits


def edit_of(row) -> SelfEdit:
    """A self-edit whose last sequence is no line of it, as the passage is."""
    return SelfEdit("\n".join(row), tuple(Example("", text) for text in row), lines=tuple(row[:-1]))


@pytest.fixture(scope="module")
def queries():
    return [[Query(q, q, a) for q, a in row] for row in ASKED]


def test_leaving_a_line_out_loses_what_retraining_without_it_loses(lm, edits, golds, queries):
    shapes = SHAPES._replace(questions=3, question_width=8, gold_width=8)
    asked = trainer()._replace(shapes=shapes)
    found = leave_one_out(lm, list(map(edit_of, TEXTS)), queries, asked, seed=3)
    for e, left in enumerate(found):
        assert len(left.log_likelihood) == len(left.probability) == len(TEXTS[e]) - 1
        without = [
            [s._replace(weight=0.0) if n == line else s for n, s in enumerate(edits[e])]
            for line in range(-1, len(TEXTS[e]) - 1)
        ]
        whole, *rest = credit_each(lm, without, [golds[e]] * len(without), trainer(), seed=3)
        expected = [whole.likelihood - one.likelihood for one in rest]
        np.testing.assert_allclose(left.log_likelihood, expected, atol=2e-4)
        assert all((a > 0) == (b > 0) for a, b in zip(left.log_likelihood, left.probability, strict=True) if abs(a) > 1)
    credited = by_gradient(lm, list(map(edit_of, TEXTS)), queries, asked, seed=3)
    straight = credit_each(lm, edits, golds, trainer(), seed=3)
    for mine, one in zip(credited, straight, strict=True):
        np.testing.assert_allclose(mine, one.lines[:-1], rtol=1e-3, atol=1e-5)


def test_only_lines_that_helped_are_left_and_numbered_anew():
    edit = SelfEdit("", (), lines=("1. a", "2. b", " 3) c", "- d"))
    assert helpful(edit, [0.5, -0.1, 0.2, None]) == "1. a\n 2) c"
    assert helpful(edit, [0.0, 0.0, 0.0, 1.0]) == "- d"
    assert helpful(edit, [0.0, -1.0, None, 0.0]) == ""


def test_agreement_is_of_tasks_whose_lines_can_be_ranked():
    one = [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 2.0], [1.0, 1.0, 1.0], [1.0, None, 2.0], [1.0, 2.0, 2.0]]
    other = [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5.0, 7.0, 9.0]]
    found = agreement(one, other, [0, 0, 1, 2, 3, 4])
    assert found[:4] == [0.0, None, None, None]  # the mean of +1 and -1; two lines; all equal; one without credit
    assert found[4] == pytest.approx(np.sqrt(0.75))


def test_the_table_says_how_far_methods_agree_and_what_they_cost():
    exact = [[[3.0, 2.0, -1.0], [-1.0, 0.5, 1.0]], [[3.0, 1.0, 2.0], [1.0, 0.5, 2.0]]]
    left = Method("left out", exact, [99.0, 12.0])
    gradient = Method("by gradient", [exact[0], exact[0]], [50.0, 6.0], peak=3 * 2**30)
    table = credit_table(left, left, [gradient], [0, 1], [77.0, 2.0], seed=0)
    reference, row = table["rows"]
    assert reference[:2] == ["left out", "-"] and reference[2].startswith("0.50 [")  # both are 0.5
    assert row[0] == "by gradient" and row[1].startswith("0.75 [") and row[4:] == ["83 %", "3.0", "3.00", "3.0 GiB"]
    assert "2 self-edits of 2 passages, 6 lines, 2 training seeds" in table["note"]
    shown = ranking(left, gradient, [edit_of("abcd"), edit_of("efgh")], ["A", "B"], most=4)["rows"]
    assert [line[:2] for line in shown] == [["A", "a"], ["A", "b"], ["A", "c"], ["B", "g"]]
    assert shown[2][2:] == ["+0.500", "-1.000"]
