"""Rows of one program, each with settings and weights of its own, come out as if alone; compute changes no figure."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from seal_jax.engine import batching, inner, training
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.schedule import Room, computed_tokens
from seal_jax.engine.training import (
    TICK_TOKENS,
    FineTuning,
    Shapes,
    Trainer,
    lessons_of,
    make_trainer,
    own_settings,
    room_of,
    ticks_of,
    train,
    train_each,
)
from seal_jax.nn import lora
from seal_jax.nn.losses import kl_to_base
from seal_jax.types import Compute, Example, Settings
from tests import tiny

WORDS = [f"w{n}" for n in range(30)]
SHAPES = Shapes((16,), 4, 0, 0, 0)
WIDE = FineTuning(projections=("q_proj", "v_proj", "down_proj"), rank=8, alpha=16.0, learning_rate=1e-2, epochs=3)
ROWS = [
    Settings(1e-3, 1, 8, 16.0, ("down_proj", "v_proj")),
    Settings(2e-3, 3, 2, 4.0, WIDE.projections),
]


def trainer(config: FineTuning, compute: Compute) -> Trainer:
    return make_trainer(config, SHAPES, compute)


@pytest.fixture(scope="module")
def lm():
    return tiny.language_model(WORDS)


@pytest.fixture(scope="module")
def edits(lm):
    texts = [["w1 w2 w3 w4", "w5 w6"], ["w7 w8 w9 w10 w11 w12 w13 w14 w15", "w1", "w3 w2"]]
    return [[batching.tokenize(Example("", text), lm.codec) for text in row] for row in texts]


def alone(lm, edit, row: Settings, config: FineTuning):
    """The same self-edit by a program that knows no settings but these."""
    own = dataclasses.replace(
        config,
        projections=row.projections,
        rank=row.rank,
        alpha=row.alpha,
        learning_rate=row.learning_rate,
        epochs=row.epochs,
    )
    adapters, losses = train(lm, [edit], trainer(own, Compute(chunk=1)), seed=3)
    return lora.take(adapters, 0), losses[0]


def test_every_row_equals_its_separate_run(lm, edits):
    config = dataclasses.replace(WIDE, batch_size=2, optimiser=Optimiser(weight_decay=0.1))
    chosen = [edits[n % 2] for n in range(len(ROWS))]
    together, losses = train(lm, chosen, trainer(config, Compute(chunk=3)), seed=3, settings=ROWS)
    for e, row in enumerate(ROWS):
        adapter, expected = alone(lm, chosen[e], row, config)
        mine = lora.take(together, e)
        assert len(losses[e]) == row.epochs * -(-len(chosen[e]) // config.batch_size)
        np.testing.assert_allclose(losses[e], expected, rtol=1e-5)
        np.testing.assert_allclose(mine.scale, adapter.scale)
        for name in config.projections:
            for found, side, axis in ((mine.a[name], adapter.a, -1), (mine.b[name], adapter.b, -2)):
                used = jax.lax.slice_in_dim(found, 0, row.rank, axis=axis)
                rest = jax.lax.slice_in_dim(found, row.rank, None, axis=axis)
                np.testing.assert_array_equal(rest, 0)
                if name in row.projections:
                    np.testing.assert_allclose(used, side[name], atol=1e-5)
                    assert np.abs(used).max() > 0
                else:
                    np.testing.assert_array_equal(used, 0)


def test_a_self_edits_own_settings_leave_the_rest_to_the_config():
    config = dataclasses.replace(WIDE, rank=4)
    assert own_settings(config, [None, Settings(5e-3, 2)]) == [
        config,
        dataclasses.replace(config, learning_rate=5e-3, epochs=2),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROWS[0]._replace(rank=9), r"self-edit 1 asks for rank 9; the program has room for 1 to 8"),
        (ROWS[0]._replace(rank=0), r"rank is 0; expected at least 1"),
        (ROWS[0]._replace(projections=("k_proj",)), r"self-edit 1 asks for an adapter on \['k_proj'\]"),
        (ROWS[0]._replace(projections=()), r"self-edit 1 asks for an adapter on \[\]"),
        (ROWS[0]._replace(epochs=4), r"self-edit 1 asks for 4 epochs; there is room for 1 to 3"),
    ],
)
def test_a_row_that_does_not_fit_the_program_is_refused(lm, edits, row, message):
    with pytest.raises(ValueError, match=message):
        train(lm, edits, trainer(WIDE, Compute(chunk=2)), seed=0, settings=[None, row])


# ---------------------------------------------------------------------------------------------------------------------
# The weight of a sequence


def test_a_sequences_weight_multiplies_its_share_of_the_loss(lm):
    """Two sequences of 3 and 2 predicted tokens, in one step; five self-edits that differ in their weights alone."""
    config = dataclasses.replace(WIDE, epochs=1, batch_size=2, initialisation="stored")
    steps = trainer(config, Compute(chunk=5))

    def edit(*weights: float):
        texts = ("w1 w2 w3 w4", "w5 w6 w7")
        return [batching.tokenize(Example("", t, w), lm.codec) for t, w in zip(texts, weights, strict=True)]

    weighted = [edit(1, 1), edit(2, 1), edit(1, 0), edit(0, 1), edit(-1, -1)]
    adapters, losses = jax.device_get(train(lm, weighted, steps, seed=3))
    both, doubled, first, second, flipped = np.concatenate(losses)
    assert both == pytest.approx((3 * first + 2 * second) / 5, rel=1e-6)
    assert doubled == pytest.approx((2 * 3 * first + 2 * second) / 5, rel=1e-6)  # over tokens, whatever they weigh
    assert flipped == pytest.approx(-both, rel=1e-6)
    # The first step of Adam from B = 0, where A has no gradient: the other way, as far.
    for name in config.projections:
        np.testing.assert_array_equal(adapters.a[name][4], adapters.a[name][0])
        np.testing.assert_allclose(adapters.b[name][4], -adapters.b[name][0], atol=1e-7)
        assert np.abs(adapters.b[name][0]).max() > 1e-3
    # Without weight it is as if it were not there.
    alone, its_losses = jax.device_get(train(lm, [edit(1, 1)[1:]], steps, seed=3))
    assert second == pytest.approx(its_losses[0][0], rel=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[3], y[0], atol=1e-6), adapters, alone)


# ---------------------------------------------------------------------------------------------------------------------
# Compute


STEADY = dataclasses.replace(WIDE, batch_size=4, optimiser=Optimiser(eps=1e-5, weight_decay=0.1))
HELD = {"kl": [0.0, 0.3, 1.0]}


def by(lm, edits, compute: Compute, widths: tuple[int, ...] = (16,)):
    """Three adapters, each with a penalty of its own."""
    make = make_trainer(STEADY, SHAPES._replace(widths=widths), compute, loss=kl_to_base)
    adapters, losses = train(lm, [*edits, edits[1]], make, seed=3, numbers=HELD)
    return jax.device_get(adapters), losses


@pytest.fixture(scope="module")
def plainly(lm, edits):
    return by(lm, edits, Compute(chunk=3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compute", "widths"),
    [
        (Compute(chunk=1), (16,)),
        (Compute(chunk=2), (16,)),
        (Compute(chunk=3, remat=True), (16,)),
        (Compute(chunk=3, loss_chunk=7), (16,)),
        (Compute(chunk=3, unroll=True), (16,)),
        (Compute(chunk=2, remat=True, unroll=True, tick_tokens=32), (16,)),
        (Compute(chunk=3, accumulate=2), (16,)),
        (Compute(chunk=3, accumulate=6), (16,)),  # of four sequences: 2 micro-batches
        (Compute(chunk=3, tick_tokens=16), (16,)),
        (Compute(chunk=3), (12, 16)),  # `width_cuts` decide the widths; the longest sequence has 9 tokens
        (Compute(chunk=2, remat=True, loss_chunk=5, accumulate=4, tick_tokens=40), (4, 10, 16)),
    ],
)
def test_compute_changes_no_figure(lm, edits, plainly, compute, widths, monkeypatch):
    monkeypatch.setattr(training, "COMPILING", (0, 0))  # all widths are used
    adapters, losses = by(lm, edits, compute, widths)
    expected, its_losses = plainly
    np.testing.assert_allclose(losses, its_losses, rtol=1e-5)
    for found, plain in zip(jax.tree.leaves(adapters), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5)
    assert np.isfinite(losses).all() and np.shape(losses) == (3, 3)  # an epoch is one step


def test_a_trainer_takes_one_adapter_at_a_time_where_nothing_is_decided(lm, mesh):
    assert make_trainer(WIDE, SHAPES, Compute()).chunk.size == 1
    assert make_trainer(WIDE, SHAPES, Compute(chunk=7), what="rows").chunk.what == "rows"
    assert make_trainer(WIDE, SHAPES, Compute(chunk=7, answer_chunk=2)).chunk.size == 2
    assert room_of(trainer(WIDE, Compute()), 1) == Room(1, TICK_TOKENS)
    assert room_of(trainer(WIDE, Compute(chunk=7, tick_tokens=50)), 2) == Room(4, 50)


# ---------------------------------------------------------------------------------------------------------------------
# What is trained on, and when


def test_an_order_depends_on_the_seed_and_no_neighbour(lm, edits):
    config = dataclasses.replace(WIDE, batch_size=2)
    together, _ = lessons_of([*edits, edits[1]], trainer(config, Compute()), seed=[3, 4, 5], settings=[*ROWS, None])
    assert [len(order) for order in together.orders] == [1, 6, 6]
    for e, (edit, row) in enumerate(zip([*edits, edits[1]], [*ROWS, None], strict=True)):
        apart, _ = lessons_of([edit], trainer(config, Compute()), seed=3 + e, settings=[row])
        np.testing.assert_array_equal(apart.orders[0], together.orders[e])
    assert (together.orders[1] != together.orders[2]).any()


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([2] * 5, "self-edit 1 has 5 training sequences; there is room for 4"),
        ([2, 17], "self-edit 1: a training sequence of 17 tokens; the widest step has 16"),
    ],
)
def test_what_does_not_fit_the_shapes_is_refused(lm, lengths, message):
    edit = [batching.Tokens([1] * length, 0) for length in lengths]
    with pytest.raises(ValueError, match=message):
        train(lm, [[], edit], trainer(WIDE, Compute()), seed=0)


def test_a_self_edit_without_sequences_leaves_its_adapter_as_it_began(lm, edits):
    adapters, losses = train(lm, [edits[0], [], edits[1]], trainer(WIDE, Compute(chunk=2)), seed=3)
    alone, its_losses = train(lm, edits, trainer(WIDE, Compute(chunk=2)), seed=3)
    assert [len(row) for row in losses] == [6, 0, 9]
    for name in WIDE.projections:
        np.testing.assert_array_equal(adapters.b[name][1], 0)
        assert np.abs(adapters.a[name][1]).max() > 0
        np.testing.assert_allclose(adapters.b[name][[0, 2]], alone.b[name], atol=1e-6)
    np.testing.assert_allclose(np.concatenate(losses), np.concatenate(its_losses), rtol=1e-5)
    assert [len(row) for row in train(lm, [[]], trainer(WIDE, Compute()), seed=3)[1]] == [0]


def test_whoever_watches_sees_the_tokens_that_the_ticks_compute(lm, edits):
    seen: list[tuple[int, int, int]] = []
    watched = trainer(WIDE, Compute(chunk=2))._replace(watch=lambda *now: seen.append(now))
    train(lm, edits, watched, seed=3)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(lm.params))
    (ticks,) = ticks_of(parameters, lessons_of(edits, watched, seed=3)[0], watched, 1)
    assert [done for done, _, _ in seen] == np.cumsum([tick.width * tick.size for tick in ticks]).tolist()
    assert {(total, adapters) for _, total, adapters in seen} == {(computed_tokens(ticks), 2)}


def test_nothing_finished_is_lost_when_memory_runs_out(lm, edits, monkeypatch):
    """The bank is halved, which is said; those that had not finished are trained again, to the same figures."""
    lines: list[str] = []
    many, real, calls = [edits[0], edits[1], edits[1], edits[0]], inner.tick, []
    expected, its_losses = train(lm, many, trainer(WIDE, Compute(chunk=4)), seed=3)

    def scarce(*arguments, **named):
        calls.append(len(arguments[2].state.step))
        if calls[-1] > 2 and len(calls) > 7:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")
        return real(*arguments, **named)

    monkeypatch.setattr(inner, "tick", scarce)
    tight = make_trainer(WIDE, SHAPES, Compute(chunk=4), say=lines.append)
    found = list(train_each(lm, many, tight, seed=3))
    assert lines == ["not enough device memory for 4 adapters in training on a device: going on with 2"]
    assert calls == [4] * 8 + [2] * (len(calls) - 8)
    assert [e for e, *_ in found[:2]] == [0, 3]  # the short ones, before memory ran out
    assert sorted(e for e, *_ in found) == [0, 1, 2, 3]
    for e, adapter, losses in found:
        np.testing.assert_allclose(losses, its_losses[e], rtol=1e-5)
        jax.tree.map(lambda x, y, e=e: np.testing.assert_allclose(x, y[e], atol=1e-5), adapter, expected)
    assert room_of(tight, 1) == Room(2, TICK_TOKENS // 2)  # for good


def test_one_adapter_that_does_not_fit_is_an_error(lm, edits, monkeypatch):
    def full(*arguments, **named):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(inner, "tick", full)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        train(lm, edits, make_trainer(WIDE, SHAPES, Compute(chunk=2), say=lambda line: None), seed=3)


@pytest.mark.parametrize(
    "field", ["chunk", "answer_chunk", "tick_tokens", "write_chunk", "devices", "loss_chunk", "accumulate"]
)
def test_compute_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0; expected at least 1"):
        Compute(**{field: 0})
