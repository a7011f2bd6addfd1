"""Every self-edit's sequences are read in a fair order; nothing is lost or cut."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from seal_jax.engine import batching
from seal_jax.engine.batching import Tokens
from seal_jax.engine.inner import Lessons
from seal_jax.engine.schedule import Row, Tick
from seal_jax.types import Codec, Example

# ---------------------------------------------------------------------------------------------------------------------
# Tokens and widths


@pytest.fixture
def codec():
    def words(text):
        return [len(word) for word in text.split()]

    return Codec(lambda text: [1, *words(text)], words, str, "", ())


def test_loss_begins_after_the_prompt(codec):
    assert batching.tokenize(Example("a bb", "ccc dddd"), codec) == Tokens([1, 1, 2, 3, 4], loss_from=3)


def test_without_a_prompt_all_tokens_are_trained_on(codec):
    assert batching.tokenize(Example("", "ccc dddd"), codec) == Tokens([1, 3, 4], loss_from=0)


def test_an_example_hands_its_weight_to_every_token_that_is_trained_on(codec):
    edit = [batching.tokenize(Example("a bb", text, weight), codec) for text, weight in (("ccc", -0.5), ("d e", 2.0))]
    _, loss_weight = batching.pad_rows(edit, [1, 0], 8)
    assert loss_weight.tolist() == [[0, 0, 0, 2, 2, 0, 0, 0], [0, 0, 0, -0.5, 0, 0, 0, 0]]


def test_widths_end_at_the_longest_rounded_up():
    assert batching.bucket_widths(70, (128, 32, 64, 32)) == (32, 64, 72)
    assert batching.bucket_widths(64, (32, 64, 128)) == (32, 64)
    assert batching.bucket_widths(5, ()) == (8,)
    assert batching.bucket_widths(5, (), multiple=32) == (32,)
    assert [batching.round_up(n, 8) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]


def test_prompts_end_together():
    tokens, valid = batching.left_pad([[5, 6], [], [7, 8, 9]], 4)
    assert tokens.tolist() == [[0, 0, 5, 6], [0, 0, 0, 0], [0, 7, 8, 9]]
    assert (valid == (tokens > 0)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Order


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("count", [5, 1, 8, 0])
def test_every_epoch_is_a_permutation_of_the_sequences(count, batch_size):
    order = batching.order(count, epochs=6, batch_size=batch_size, seed=0)
    assert order.shape == (6 * -(-count // batch_size), batch_size)
    epochs = order.reshape(6, -1)
    assert [sorted(epoch[epoch >= 0]) for epoch in epochs] == [list(range(count))] * 6
    if count == 8:
        assert len({tuple(epoch) for epoch in epochs}) == 6  # another order each time


def test_the_number_of_steps_is_that_of_the_order():
    for count, batch_size in itertools.product((0, 1, 4, 7), (1, 2, 3)):
        order = batching.order(count, epochs=3, batch_size=batch_size, seed=0)
        assert len(order) == batching.num_steps(count, epochs=3, batch_size=batch_size)
        assert (order >= 0).any(axis=1).all()  # no step reads nothing


def test_larger_batches_are_filled_but_for_the_last_of_an_epoch():
    order = batching.order(7, epochs=2, batch_size=3, seed=0)
    assert (order >= 0).sum(axis=1).tolist() == [3, 3, 1, 3, 3, 1]


def test_orders_follow_from_the_seed():
    one, again, other = (batching.order(8, epochs=4, batch_size=1, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_all_orders_are_equally_likely():
    """3 sequences, one epoch, 3,000 seeds: chi-square over the 6 orders (5 degrees of freedom, p = 1e-4 at 25.7)."""
    found = Counter(tuple(batching.order(3, epochs=1, batch_size=1, seed=seed)[:, 0].tolist()) for seed in range(3000))
    assert len(found) == 6
    assert sum((n - 500) ** 2 / 500 for n in found.values()) < 25.7


# ---------------------------------------------------------------------------------------------------------------------
# Rows


EDITS = [[Tokens([3, 4], 1), Tokens([5, 6, 7], 0)], [Tokens([8], 0)], []]


def test_rows_hold_each_sequence_whole():
    tokens, loss_weight = batching.pad_rows(EDITS[0], [1, -1, 0], 4)
    assert tokens.tolist() == [[5, 6, 7, 0], [0] * 4, [3, 4, 0, 0]]
    assert loss_weight.tolist() == [[1, 1, 1, 0], [0] * 4, [0, 1, 0, 0]]


def test_a_tick_reads_the_sequences_of_its_steps():
    lessons = Lessons(EDITS, [np.array([[0, 1], [1, -1], [0, -1]]), np.array([[0, -1]]), np.zeros((0, 2), int)])
    assert lessons.batch_size == 2
    assert [own.tolist() for own in lessons.longest()] == [[3, 3, 2], [1], []]
    rows = lessons.rows(Tick(4, 3, [Row(1, 0, 5), Row(0, 2, 2)]), batch_size=3, places=7)
    assert rows.places.tolist() == [5, 2, 7]  # the last row is filler
    assert rows.tokens.shape == rows.loss_weight.shape == (3, 3, 4)
    assert rows.tokens[0].tolist() == [[8, 0, 0, 0], [0] * 4, [0] * 4]
    assert rows.tokens[1].tolist() == [[3, 4, 0, 0], [0] * 4, [0] * 4]
    assert rows.loss_weight[1].tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4]
    assert not rows.tokens[2].any() and not rows.loss_weight[2].any()
