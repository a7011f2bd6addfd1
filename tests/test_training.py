"""Rows of one program, each with settings and weights of its own, come out as if alone; compute changes no figure."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from seal_jax.engine import batching
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.training import FineTuning, Shapes, Trainer, make_trainer, own_settings, train
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
    return lora.take(adapters, 0), [loss for loss in losses[0] if np.isfinite(loss)]


def test_every_row_equals_its_separate_run(lm, edits):
    config = dataclasses.replace(WIDE, batch_size=2, optimiser=Optimiser(weight_decay=0.1))
    chosen = [edits[n % 2] for n in range(len(ROWS))]
    together, losses = train(lm, chosen, trainer(config, Compute(chunk=3)), seed=3, settings=ROWS)
    for e, row in enumerate(ROWS):
        adapter, expected = alone(lm, chosen[e], row, config)
        mine = lora.take(together, e)
        np.testing.assert_allclose([x for x in losses[e] if np.isfinite(x)], expected, rtol=1e-5)
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
    both, doubled, first, second, flipped = losses[:, 0]
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
    assert second == pytest.approx(its_losses[0, 0], rel=1e-6)
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


@pytest.mark.parametrize(
    ("compute", "widths"),
    [
        (Compute(chunk=1), (16,)),
        (Compute(chunk=2), (16,)),
        (Compute(chunk=3, remat=True), (16,)),
        (Compute(chunk=3, loss_chunk=7), (16,)),
        (Compute(chunk=3, accumulate=2), (16,)),
        (Compute(chunk=3, accumulate=6), (16,)),  # of four sequences: 2 micro-batches
        (Compute(chunk=3), (12, 16)),  # `width_cuts` decide the widths; the longest sequence has 9 tokens
        (Compute(chunk=2, remat=True, loss_chunk=5, accumulate=4), (4, 10, 16)),
    ],
)
def test_compute_changes_no_figure(lm, edits, plainly, compute, widths):
    adapters, losses = by(lm, edits, compute, widths)
    expected, its_losses = plainly
    np.testing.assert_allclose(losses, its_losses, rtol=1e-5)
    for found, plain in zip(jax.tree.leaves(adapters), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, plain, rtol=0, atol=1e-5)
    assert np.isfinite(losses).sum(axis=1).tolist() == [3, 3, 3]  # an epoch is one step


def test_a_trainer_takes_one_adapter_at_a_time_where_nothing_is_decided():
    assert make_trainer(WIDE, SHAPES, Compute()).chunk.size == 1
    assert make_trainer(WIDE, SHAPES, Compute(chunk=7), what="rows").chunk.what == "rows"


@pytest.mark.parametrize("field", ["chunk", "write_chunk", "devices", "loss_chunk", "accumulate"])
def test_compute_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0; expected at least 1"):
        Compute(**{field: 0})
