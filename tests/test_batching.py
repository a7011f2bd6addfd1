"""Every self-edit sees its own sequences in a fair order, whoever its neighbours are; nothing is lost or cut."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from seal_jax.engine import batching
from seal_jax.engine.batching import Tokens
from seal_jax.types import Codec, Example


def sequences(*lengths: int, seed: int = 0) -> list[Tokens]:
    rng = np.random.default_rng(seed)
    return [Tokens(rng.integers(1, 50, n).tolist(), 0) for n in lengths]


def epochs_of(order: np.ndarray, epochs: int) -> np.ndarray:
    """[S, B] -> [epochs, rows], rests included."""
    return order.reshape(epochs, -1)


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
    batch = batching.make_batch([edit], epochs=1, batch_size=1, widths=(8,), capacity=2, seed=0)
    assert batch.loss_weight.tolist() == [[[0, 0, 0, 2, 2, 0, 0, 0], [0, 0, 0, -0.5, 0, 0, 0, 0]]]


def test_widths_end_at_the_longest_rounded_up():
    assert batching.bucket_widths(70, (128, 32, 64, 32)) == (32, 64, 72)
    assert batching.bucket_widths(64, (32, 64, 128)) == (32, 64)
    assert batching.bucket_widths(5, ()) == (8,)
    assert batching.bucket_widths(5, (), multiple=32) == (32,)
    assert [batching.round_up(n, 8) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]


def test_each_device_takes_only_its_steps_each_as_narrow_as_its_longest_row():
    lengths = np.array([[9, 4, 0], [8, 3, 2]])
    order = np.array([[[0], [1], [-1], [-1], [1]], [[0], [1], [2], [-1], [-1]]])

    def steps(plans):
        return [
            list(zip(s[:n].tolist(), i[:n].tolist(), strict=True))
            for s, i, n in zip(plans.steps, plans.width_index, plans.num_steps, strict=True)
        ]

    together = batching.make_plans(lengths, order, (4, 8, 16), shares=1)
    assert steps(together) == [[(0, 2), (1, 0), (2, 0), (4, 0)]]  # in step 3 nobody trains
    apart = batching.make_plans(lengths, order, (4, 8, 16), shares=2)
    assert steps(apart) == [[(0, 2), (1, 0), (4, 0)], [(0, 1), (1, 0), (2, 0)]]
    assert apart.steps.shape == apart.width_index.shape == (2, 5)  # one shape, whatever there is to do


def test_processed_tokens_count_pads_and_idle_adapters():
    edits = [sequences(9, 4), sequences(8, 3, 2), sequences(5)]
    batch = batching.make_batch(edits, epochs=10, batch_size=1, widths=(4, 8, 16), capacity=3, seed=0)
    assert batching.processed_tokens(batch, 2, 1) == 10 * (2 * (16 + 4 + 4) + 2 * 8)
    assert batching.processed_tokens(batch, 2, 2) == 10 * ((16 + 4) + (8 + 4 + 4) + 8)
    assert batching.processed_tokens(batch, 4, 1) == 10 * 4 * (16 + 4 + 4)


def test_prompts_end_together():
    tokens, valid = batching.left_pad([[5, 6], [], [7, 8, 9]], 4)
    assert tokens.tolist() == [[0, 0, 5, 6], [0, 0, 0, 0], [0, 7, 8, 9]]
    assert (valid == (tokens > 0)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Order


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_epoch_is_a_permutation_of_the_sequences(batch_size):
    counts, epochs = [5, 1, 8, 0], 6
    order = batching.shuffle(counts, capacity=8, epochs=epochs, batch_size=batch_size, seed=0)
    assert order.shape == (4, epochs * -(-8 // batch_size), batch_size)
    for count, rows in zip(counts, order, strict=True):
        for epoch in epochs_of(rows, epochs):
            assert sorted(epoch[epoch >= 0]) == list(range(count))
    assert len({tuple(epoch) for epoch in epochs_of(order[2], epochs)}) == epochs  # another order each time


def test_the_number_of_steps_is_that_of_the_order():
    for count, batch_size in itertools.product((1, 4, 7), (1, 2, 3)):
        order = batching.shuffle([count], capacity=8, epochs=3, batch_size=batch_size, seed=0)[0]
        assert (order >= 0).any(axis=1).sum() == batching.num_steps(count, epochs=3, batch_size=batch_size)


def test_larger_batches_are_filled_but_for_the_last_of_an_epoch():
    order = batching.shuffle([7], capacity=9, epochs=2, batch_size=3, seed=0)[0]
    assert (order >= 0).sum(axis=1).tolist() == [3, 3, 1, 3, 3, 1]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_order_does_not_depend_on_the_neighbours(batch_size):
    options = {"capacity": 8, "epochs": 4, "batch_size": batch_size, "seed": 3}
    together = batching.shuffle([5, 8, 2], **options)
    for e, count in enumerate([5, 8, 2]):
        np.testing.assert_array_equal(together[e], batching.shuffle([count], **options)[0])


def test_orders_follow_from_the_seed():
    options = {"capacity": 8, "epochs": 4, "batch_size": 1}
    one, again, other = (batching.shuffle([8], **options, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_all_orders_are_equally_likely():
    """3 of 5 ranks, one epoch, 3,000 seeds: chi-square over the 6 orders (5 degrees of freedom, p = 1e-4 at 25.7)."""
    found: Counter = Counter()
    for seed in range(3000):
        order = batching.shuffle([3], capacity=5, epochs=1, batch_size=1, seed=seed)[0, :, 0]
        found[tuple(order[order >= 0])] += 1
    assert len(found) == 6
    assert sum((n - 500) ** 2 / 500 for n in found.values()) < 25.7


def test_long_sequences_coincide():
    """The point of sharing ranks: 15 self-edits of 7 lines and a passage each, as long as those of recorded runs."""
    rng, widths = np.random.default_rng(0), tuple(range(8, 513, 8))
    lengths = np.exp(np.concatenate([rng.normal(5, 0.37, (15, 1)), rng.normal(3.3, 0.32, (15, 7))], axis=1)).astype(int)
    edits = [sequences(*row) for row in lengths]
    batch = batching.make_batch(edits, epochs=10, batch_size=1, widths=widths, capacity=8, seed=0)
    aligned = batching.processed_tokens(batch, 15, 1)
    independent = np.stack([batching.shuffle([8], capacity=8, epochs=10, batch_size=1, seed=e)[0] for e in range(15)])
    apart = batching.processed_tokens(batch.replace(order=independent), 15, 1)
    assert aligned < 0.5 * apart


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def test_a_batch_holds_each_sequence_whole_longest_first():
    edits = [[Tokens([3, 4], 1), Tokens([5, 6, 7], 0)], [Tokens([8], 0)], []]
    batch = batching.make_batch(edits, epochs=2, batch_size=1, widths=(2, 4), capacity=3, seed=0)
    assert batch.tokens[0].tolist() == [[5, 6, 7, 0], [3, 4, 0, 0], [0, 0, 0, 0]]
    assert batch.loss_weight[0].tolist() == [[1, 1, 1, 0], [0, 1, 0, 0], [0] * 4]
    assert batch.lengths.tolist() == [[3, 2, 0], [1, 0, 0], [0, 0, 0]]
    assert batch.widths == (2, 4)
    assert (batch.order[2] == -1).all()


def test_too_many_sequences_are_refused():
    with pytest.raises(ValueError, match="self-edit 1 has 3 training sequences; there is room for 2"):
        batching.make_batch([[], sequences(2, 2, 2)], epochs=1, batch_size=1, widths=(8,), capacity=2, seed=0)


def test_too_long_a_sequence_is_refused():
    with pytest.raises(ValueError, match="self-edit 1: a training sequence of 9 tokens; the widest step has 8"):
        batching.make_batch([[], sequences(9)], epochs=1, batch_size=1, widths=(4, 8), capacity=2, seed=0)


def test_like_sizes_train_together():
    edits = [sequences(*lengths) for lengths in ([5] * 6, [9], [5] * 2, [2], [5] * 7)]
    assert batching.by_size(edits, 2) == [[3, 1], [2, 0], [4]]
    assert batching.by_size([], 2) == []
