"""Rows of one program: each adapter trained by settings of its own comes out as if it had been trained alone."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from seal_jax.engine import batching
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.training import FineTuning, Shapes, Trainer, make_trainer, own_settings, train
from seal_jax.nn import lora
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
