"""Credit by gradient is the derivative of what a plain loop computes, whatever trains beside it and fits in memory; by
leaving out it is what the gold answers lose; a table says how far the two agree."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seal_jax.engine import batching, inner, training
from seal_jax.engine import credit as credit_engine
from seal_jax.engine.batching import Tokens
from seal_jax.engine.credit import credit_each
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.schedule import Room
from seal_jax.engine.training import FineTuning, Shapes, make_trainer, train
from seal_jax.nn import lora
from seal_jax.nn.losses import distillation, kl_to_base, next_token
from seal_jax.seal.credit import Method, agreement, by_gradient, credit_table, helpful, leave_one_out, ranking
from seal_jax.types import Compute, Example, Query, SelfEdit, Settings
from tests import test_memory, tiny

WORDS = [f"w{n}" for n in range(30)]
SHAPES = Shapes((8, 16), 4, 0, 0, 0)
SMOOTH = Optimiser(eps=1e-2)  # Adam turns on the sign of a gradient near 0: finite differences want it smooth
INNER = FineTuning(projections=("q_proj", "v_proj", "down_proj"), rank=4, alpha=8.0, learning_rate=3e-2, epochs=3,
                   optimiser=SMOOTH)  # fmt: skip
CLIPPED = dataclasses.replace(INNER, optimiser=dataclasses.replace(SMOOTH, clip_norm=0.1, weight_decay=0.1))
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

    return likelihood


@pytest.mark.parametrize(
    ("e", "config"),
    [
        pytest.param(0, INNER, marks=pytest.mark.slow, id="one a step"),
        pytest.param(1, dataclasses.replace(INNER, batch_size=2), marks=pytest.mark.slow, id="two a step"),
        pytest.param(1, CLIPPED, id="clipped"),
        pytest.param(0, dataclasses.replace(CLIPPED, batch_size=2), id="two a step, clipped"),
    ],
)
def test_credit_is_the_derivative_in_each_sequences_weight(lm, edits, golds, e, config):
    """With a neighbour of other lengths. The plain loop's own derivative is held to finite differences."""
    found = credit_each(lm, edits[:2], golds[:2], trainer(config), seed=3)[e]
    of_weights = jax.jit(jax.value_and_grad(plainly(lm, edits[e], golds[e], config, 3)))
    ones = jnp.ones(len(edits[e]))
    value, expected = map(np.asarray, of_weights(ones))
    np.testing.assert_allclose(found.likelihood, value, atol=2e-5)
    np.testing.assert_allclose(found.lines, expected, atol=1e-3 * np.abs(expected).max())
    h, one = 0.02, np.eye(len(edits[e]))
    differences = [(of_weights(ones + h * d)[0] - of_weights(ones - h * d)[0]) / (2 * h) for d in one]
    np.testing.assert_allclose(found.lines, differences, atol=2e-2 * np.abs(expected).max())


def test_the_forward_pass_trains_what_the_trainer_trains(lm, edits, golds):
    config = dataclasses.replace(INNER, optimiser=Optimiser())  # the paper's eps
    expected, _ = train(lm, edits, trainer(config), seed=3)
    for e, credit in enumerate(credit_each(lm, edits, golds, trainer(config), seed=3)):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), credit.adapter, lora.take(expected, e))
        assert np.isfinite(credit.lines).all()


@pytest.mark.parametrize("curvature", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_neighbours_and_windows_change_nothing(lm, edits, golds, curvature):
    together = credit_each(lm, edits, golds, trainer(), seed=3, curvature=curvature)
    windows = credit_each(lm, edits, golds, trainer(), seed=3, curvature=curvature, room=1.0)
    alone = credit_each(lm, edits[1:2], golds[1:2], trainer(), seed=3, curvature=curvature)
    same([*windows, *alone], [*together, together[1]])


@pytest.mark.slow
def test_lanes_change_nothing(lm, edits, golds, mesh):
    same(credit_each(lm._replace(mesh=mesh), edits, golds, trainer(), seed=3),
         credit_each(lm, edits, golds, trainer(), seed=3))  # fmt: skip


def same(found, expected):
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.lines, other.lines, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(mine.likelihood, other.likelihood, rtol=1e-5)


def test_a_self_edit_without_sequences_and_a_task_without_questions_are_told_as_they_are(lm, edits, golds):
    found = credit_each(lm, [[], edits[2]], [golds[2], golds[2]], trainer(), seed=3)
    assert not len(found[0].lines) and len(found[1].lines) == 2
    assert np.isfinite(found[0].likelihood) and found[0].likelihood != found[1].likelihood
    (unasked,) = credit_each(lm, [edits[2]], [[]], trainer(), seed=3)
    assert not unasked.lines.any()


class OutOfMemory(jax.errors.JaxRuntimeError):
    """What a device says that is full."""


def test_a_device_that_is_full_holds_less_and_nothing_finished_is_done_again(lm, edits, golds, monkeypatch):
    """One that has room for two adapters, then for one; one that has none ends the run, and not for ever."""
    groups, said, most = [], [], 1
    credit_of = credit_engine._Lane.credit

    def small(lane, group, *rest):
        groups.append(len(group))
        if len(group) > most:
            raise OutOfMemory("RESOURCE_EXHAUSTED: out of memory")
        return credit_of(lane, group, *rest)

    together = credit_each(lm, edits, golds, trainer(), seed=3)
    monkeypatch.setattr(credit_engine._Lane, "credit", small)
    mine = trainer()
    mine.chunk.say = said.append
    same(credit_each(lm, edits, golds, mine, seed=3), together)
    assert groups == [3, 1, 1, 1] and said == [
        "not enough device memory for the credit of 3 adapters at a time: going on with 1, and half the room for their "
        "states"
    ]
    most = 0
    groups.clear()
    with pytest.raises(OutOfMemory):
        credit_each(lm, edits, golds, mine, seed=3)
    assert len(groups) == 1 + credit_engine.MOST_HALVINGS


def test_an_interrupt_ends_it_after_the_step_at_work(lm, edits, golds, monkeypatch):
    steps, step = [], credit_engine._Lane._step

    def counted(lane, bank, ticked):
        steps.append(ticked)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # it is heard before that is over
        return step(lane, bank, ticked)

    monkeypatch.setattr(credit_engine._Lane, "_step", counted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            credit_each(lm, edits, golds, trainer(), seed=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert 2 <= len(steps) <= 3  # of nine and more


@pytest.mark.slow
@pytest.mark.parametrize(("name", "adapters", "width"), [("smollm2-135m", 4, 48), ("qwen2.5-0.5b", 2, 128)])
def test_a_step_back_takes_about_the_memory_that_is_planned(name, adapters, width):
    _, model, params = test_memory.abstract(name, 12, "full")
    config = FineTuning()
    hyper, one = jax.eval_shape(lambda many: lora.take(many, 0), test_memory.abstract_adapters(params, config, 1))
    empty = partial(inner._empty, optimiser=config.optimiser, places=adapters)
    bank = jax.eval_shape(lambda a, h: empty(a, inner.Given(h)), one, hyper)
    array = lambda *size, dtype=np.int32: jax.ShapeDtypeStruct((adapters, *size), dtype)
    rows = inner.Rows(array(), array(1, width), array(1, width, dtype=np.float32))
    weights = (bank.state.adapter.a, bank.state.adapter.b)
    lowered = credit_engine._backward.lower(
        model, params, bank.state, bank.given, credit_engine.Adjoint(weights, weights, weights), rows,
        recipe=inner.Recipe(config.optimiser, compute=Compute(unroll=False)), curvature=True,
    )  # fmt: skip
    lm = tiny.language_model(WORDS)._replace(model=model, params=params)
    planned = adapters * credit_engine.step_back(lm, trainer(config), width, on_cpu=True)
    assert 0.6 < planned / lowered.compile().memory_analysis().temp_size_in_bytes < 1.7


def test_what_is_at_work_leaves_room_for_states():
    at_work = {8: 10.0, 16: 20.0}
    room, most = credit_engine._fitting(Room(4, 64), 100.0, at_work, 1)
    assert most <= 50 and room.places == 4
    assert credit_engine._fitting(Room(4, 64), 1e6, at_work, 1) == (Room(4, 64), 80.0)
    assert credit_engine._fitting(Room(4, 64), 0.0, at_work, 1)[1] == 20.0  # one at a time, and none fewer


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
    without = [
        [[s._replace(weight=0.0) if n == line else s for n, s in enumerate(own)] for line in range(-1, len(own) - 1)]
        for own in edits
    ]
    asking = [own for own, rows in zip(golds, without, strict=True) for _ in rows]
    trained = iter(credit_each(lm, [row for rows in without for row in rows], asking, trainer(), seed=3))
    for e, left in enumerate(found):
        assert len(left.log_likelihood) == len(left.probability) == len(TEXTS[e]) - 1
        whole, *rest = (next(trained) for _ in without[e])
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


def test_a_line_that_begins_with_a_fraction_keeps_it():
    edit = SelfEdit("", (), lines=("1. a", "3.5 million people live there.", "2. b"))
    assert helpful(edit, [-1.0, 1.0, 1.0]) == "3.5 million people live there.\n2. b"


def test_questions_are_numbered_anew_and_the_number_that_ended_the_prompt_is_not_said_again():
    lines = ("Question 1: Who?\nAnswer: Ada.", "Question 2: When?\nAnswer: 1902.", "Question 3: Where?\nAnswer: x")
    begun = SelfEdit(" Who?\nAnswer: Ada.\n\nQuestion 2: When?", (), lines=lines)
    assert helpful(begun, [0.5, -1.0, 0.5]) == " Who?\nAnswer: Ada.\nQuestion 2: Where?\nAnswer: x"
    assert helpful(begun, [-0.5, 1.0, -0.5]) == " When?\nAnswer: 1902."
    whole = SelfEdit("Question 1: Who?\nAnswer: Ada.", (), lines=lines)
    assert helpful(whole, [-0.5, 1.0, -0.5]) == "Question 1: When?\nAnswer: 1902."


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
