"""Training many adapters at once is training each alone, whatever its neighbours are, do, or turn into."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from seal_jax.engine import batching, inner, schedule, training
from seal_jax.engine.inner import Given, Lessons, Optimiser, Recipe, adapt_each, is_finite, learning_rate
from seal_jax.engine.schedule import Room
from seal_jax.engine.training import FineTuning, Shapes, init_adapters, make_trainer
from seal_jax.io.architectures import NAMED
from seal_jax.nn import lora
from seal_jax.nn.losses import kl_to_base, next_token
from seal_jax.types import Compute, HParams, LanguageModel

E, MAX_RANK = 4, 4
TARGETS = ("q_proj", "v_proj", "down_proj")
MIXED = {
    "rank": [4, 2, 4, 2],
    "learning_rate": [3e-3, 2e-3, 1e-3, 5e-3],
    "alpha": [8.0, 2.0, 16.0, 4.0],
    "num_steps": [6, 5, 3, 4],
    "seed": [7, 8, 9, 10],
}
# Adam divides a tiny gradient by itself, and rounding with it; this eps keeps that below the 1e-5 that is asked for.
STEADY = Optimiser(eps=1e-5)


@partial(jax.jit, static_argnames=("model", "recipe"))
def one_step(model, params, state, given, tokens, loss_weight, recipe):
    """A step of one adapter, without a bank."""
    return inner.step(model, params, state, given, tokens, loss_weight, recipe)


def alone(tiny, adapter, sequences, order, hyper, recipe, fixed=None):
    """One adapter through its steps, one after another: its last state, and the metrics of all, [S]."""
    state, metrics, width = inner.begin(adapter, recipe.optimiser), [], max(len(s.ids) for s in sequences)
    for read in order:
        rows = batching.pad_rows(sequences, read, width)
        state, measured = one_step(tiny.model, tiny.params, state, Given(hyper, fixed), *rows, recipe)
        metrics.append(measured)
    return state, inner.Metrics(*np.array(jax.device_get(metrics)).T)


def hparams(count: int = E, *, numbers=None, **changes) -> HParams:
    plain = {"learning_rate": 2e-3, "num_steps": 6, "alpha": 8.0, "rank": MAX_RANK, "seed": 0}
    kinds = {"learning_rate": np.float32, "alpha": np.float32}
    rows = {
        name: np.broadcast_to(np.asarray(value, kinds.get(name, np.int32)), count)
        for name, value in (plain | changes).items()
    }
    return HParams(**rows, numbers={name: np.full(count, value, np.float32) for name, value in (numbers or {}).items()})


def lessons(*, batch_size: int = 1, epochs: int = 2) -> Lessons:
    """Four self-edits of 3, 2, 3 and 2 sequences, 4 to 16 tokens long; the loss begins at another place in each."""
    rng = np.random.default_rng(0)
    lengths = [(16, 9, 5), (13, 4), (11, 8, 6), (7, 6)]
    edits = [[batching.Tokens(rng.integers(1, 61, n).tolist(), n % 3) for n in row] for row in lengths]
    orders = [batching.order(len(edit), epochs=epochs, batch_size=batch_size, seed=1) for edit in edits]
    return Lessons(edits, orders)


def chosen(taught: Lessons, adapters) -> Lessons:
    """The lessons of some adapters."""
    return Lessons([taught.sequences[e] for e in adapters], [taught.orders[e] for e in adapters])


def fresh(tiny, hyper: HParams, max_rank: int = MAX_RANK):
    return init_adapters(tiny.params["blocks"], hyper, TARGETS, max_rank)


def train(
    tiny, hyper, *, taught=None, optimiser=STEADY, loss=next_token, compute=Compute(), places=2, tokens=32, mesh=None,
    adapters=None, fixed=None, params=None, widths=(16,), watch=None, skip=(),
):  # fmt: skip
    """E adapters through the steps that `hyper` counts (or that there are), and metrics [E, S], NaN past the end."""
    adapters = jax.device_get(fresh(tiny, hyper) if adapters is None else adapters)
    taught = lessons() if taught is None else taught
    orders = [order[:n] for order, n in zip(taught.orders, np.asarray(hyper.num_steps), strict=True)]
    params = tiny.params if params is None else params
    found, given = {}, Given(hyper, jax.device_get(fixed))
    for e, adapter, metrics in adapt_each(
        tiny.model, params, partial(row, adapters), Lessons(taught.sequences, orders), given,
        Recipe(optimiser, loss, compute), widths=widths, room=Room(places, tokens), mesh=mesh, watch=watch, skip=skip,
    ):  # fmt: skip
        assert e not in found
        found[e] = adapter, metrics
    metrics = np.full((2, len(orders), max(map(len, orders))), np.nan, np.float32)
    for e, (_, own) in found.items():
        metrics[:, e, : len(own.loss)] = own
    trained = [found[e][0] if e in found else row(adapters, e) for e in range(len(orders))]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trained), inner.Metrics(*metrics)


def row(tree, e: int | slice | np.ndarray):
    return jax.tree.map(lambda x: x[e], jax.device_get(tree))  # on the host: an index on the device is a program


def assert_close(one, other, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=atol), one, other)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def moved(one, other) -> float:
    one, other = jax.device_get((one, other))
    return max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.fixture(scope="module")
def mixed(tiny):
    """Four adapters that differ in all that may differ, trained two at a time."""
    return train(tiny, hparams(**MIXED))


# ---------------------------------------------------------------------------------------------------------------------
# Many as one


def test_many_equal_one_by_one(tiny, mixed):
    """Each alone, without a bank: padded to its own length and its own rank."""
    adapters, metrics = mixed
    taught, hyper = lessons(), hparams(**MIXED)
    for e in range(E):
        own, rank = row(hyper, e), MIXED["rank"][e]
        order = taught.orders[e][: MIXED["num_steps"][e]]
        start = row(fresh(tiny, hparams(**MIXED), max_rank=rank), e)
        state, one = alone(tiny, start, taught.sequences[e], order, own, Recipe(STEADY))
        adapter = state.adapter
        assert moved((adapter.a, adapter.b), (start.a, start.b)) > 1e-3
        for name in TARGETS:
            assert_close(adapters.a[name][e][:, :, :rank], adapter.a[name])
            assert_close(adapters.b[name][e][:, :rank], adapter.b[name])
        losses = np.asarray(metrics.loss[e])
        assert_close(losses[~np.isnan(losses)], one.loss)
        assert np.isnan(losses).sum() == 6 - len(order)


def test_columns_past_the_rank_stay_zero(mixed):
    for name in TARGETS:
        assert not np.asarray(mixed[0].a[name][1::2, :, :, 2:]).any()
        assert not np.asarray(mixed[0].b[name][1::2, :, 2:]).any()


def test_two_devices_train_what_one_does(tiny, mixed, mesh):
    """Three adapters: one device has two of them, the other one and a place to spare."""
    hyper, start, expected = (row(tree, slice(3)) for tree in (hparams(**MIXED), fresh(tiny, hparams(**MIXED)), mixed))
    adapters, metrics = train(tiny, hyper, taught=chosen(lessons(), range(3)), adapters=start, mesh=mesh)
    assert metrics.loss.shape == (3, 6)
    assert_close((adapters, metrics), expected)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 4])
def test_two_devices_share_the_rows_of_a_single_adapter(tiny, mesh, accumulate):
    """As in the outer SFT. Three rows a step, the last of an epoch smaller: devices have unequal shares of tokens."""
    edit = [batching.Tokens(list(range(n, 2 * n)), n % 3) for n in (16, 12, 9, 7)]
    odd, even = (  # even: what micro-batches can divide
        Lessons([edit], [batching.order(4, epochs=2, batch_size=size, seed=0)]) for size in (3, 4)
    )
    compute = Compute(accumulate=accumulate)
    assert (odd.orders[0] >= 0).sum(axis=1).tolist() == [3, 1, 3, 1]
    hyper, taught = (hparams(1, num_steps=4), odd) if accumulate == 1 else (hparams(1, num_steps=2), even)
    together = train(tiny, hyper, taught=taught, mesh=mesh, compute=compute, places=1)
    assert_close(together, train(tiny, hyper, taught=taught))


def test_zero_steps_are_the_identity(tiny):
    start = fresh(tiny, hparams())
    adapters, metrics = train(tiny, hparams(num_steps=[6, 0, 6, 0]))
    for e in (1, 3):
        assert_equal(row(adapters, e), row(start, e))
        assert np.isnan(metrics.loss[e]).all()
    assert moved(row(adapters.b, 0), row(start.b, 0)) > 1e-3


def test_a_self_edit_without_sequences_trains_nothing(tiny):
    taught = lessons()
    taught.sequences[1], taught.orders[1] = [], batching.order(0, epochs=2, batch_size=1, seed=1)
    adapters, _ = train(tiny, hparams(), taught=taught)
    assert_equal(row(adapters, 1), row(fresh(tiny, hparams()), 1))


def test_the_base_model_and_the_given_adapters_are_left_alone(tiny):
    before = jax.tree.map(np.array, tiny.params)
    start = fresh(tiny, hparams())
    train(tiny, hparams(), adapters=start)
    assert_equal(tiny.params, before)  # raises if a buffer was donated
    assert_equal(start, fresh(tiny, hparams()))


# ---------------------------------------------------------------------------------------------------------------------
# What is trained on


def test_pads_carry_no_loss(tiny):
    """Whatever stands in a pad: rows are padded with 0, and a step three times as wide gives the same."""
    rows = lessons().rows(schedule.Tick(16, 2, [schedule.Row(1, 0, 0), schedule.Row(3, 0, 1)]), 1, 2)
    assert (rows.loss_weight == 0).sum() > 5 and not rows.tokens[rows.loss_weight == 0].all()
    hyper, start = row(hparams(2), 0), row(fresh(tiny, hparams(2)), 0)
    pads = np.cumsum(rows.loss_weight[:, :, ::-1], axis=2)[:, :, ::-1] == 0
    for tokens, weight, pad in zip(rows.tokens, rows.loss_weight, pads, strict=True):
        state, given = inner.begin(start, STEADY), Given(hyper)
        states = [
            one_step(tiny.model, tiny.params, state, given, np.where(pad, filler, tokens), weight, Recipe(STEADY))
            for filler in (0, 33)
        ]
        assert_equal(*states)


def test_a_weight_multiplies_the_loss_and_the_gradient_of_its_tokens(tiny):
    """Three sequences in one step: linear in their weights, over the tokens whose weight is not 0."""
    tokens, trained_on = batching.pad_rows(lessons().sequences[0], range(3), 16)
    moving = row(earlier(tiny), 0)
    decoder, key = nnx.merge(tiny.model, tiny.params), jax.random.key(0)

    @jax.jit
    @jax.vmap
    def weighted(weights):
        def forward(sides, tokens, key):
            hidden = decoder(tokens, adapter=lora.Adapter(*sides, moving.scale))[0]
            return inner.Outputs(hidden, decoder.head())

        loss_weight = trained_on * weights[:, None]
        total = inner.loss_and_gradient(
            forward, (moving.a, moving.b), jnp.asarray(tokens), loss_weight, key,
            loss=next_token, numbers={}, compute=Compute(),
        )  # fmt: skip
        count = jnp.sum(loss_weight[:, 1:] != 0)
        return jax.tree.map(lambda x: x * count, total)  # sums, of a mean

    found = weighted(jnp.asarray([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 1, 0], [-1, 0.5, 1.0], [0, 0, 0]]))
    whole, a, b, c, doubled, mixed, none = (row(found, n) for n in range(7))

    def combined(*factors):
        return jax.tree.map(lambda *x: sum(f * y for f, y in zip(factors, x, strict=True)), a, b, c)

    for one, other in ((whole, (1, 1, 1)), (doubled, (2, 1, 0)), (mixed, (-1, 0.5, 1.0)), (none, (0, 0, 0))):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-4), one, combined(*other))
    assert min(moved(one[1], jax.tree.map(np.zeros_like, one[1])) for one in (a, b, c)) > 0.1


def test_steps_cut_short_train_the_same(tiny):
    longest = lessons().longest()
    ticks = schedule.schedule(longest, range(E), widths=(8, 16), room=Room(2, 32))
    assert {tick.width for tick in ticks} == {8, 16}
    assert_close(train(tiny, hparams(), widths=(8, 16)), train(tiny, hparams()))


@pytest.mark.parametrize(("places", "tokens"), [(1, 1), (3, 16), (4, 64)])
def test_the_bank_and_its_budget_change_nothing(tiny, mixed, places, tokens):
    """One at a time; three, each step alone; all at a time."""
    assert_close(train(tiny, hparams(**MIXED), places=places, tokens=tokens), mixed)


def test_what_was_finished_before_is_left_out_and_the_rest_is_the_same_to_the_last_bit(tiny, mixed):
    adapters, metrics = train(tiny, hparams(**MIXED), skip={0, 2})
    for e in (1, 3):
        assert_equal(row((adapters, metrics), e), row(mixed, e))
    assert np.isnan(metrics.loss[[0, 2]]).all()


def test_adapt_is_a_plain_loop_of_optax(tiny):
    """One adapter, written out with optax's own optimiser and a loss over whole rows of logits."""
    taught, hyper, optimiser = lessons(), row(hparams(**MIXED), 0), Optimiser(weight_decay=0.1, clip_norm=4.0)
    start = row(fresh(tiny, hparams(**MIXED)), 0)
    adamw = optax.chain(
        optax.clip_by_global_norm(4.0),
        optax.adamw(optax.linear_schedule(hyper.learning_rate, 0.0, hyper.num_steps), weight_decay=0.1),
    )

    @jax.jit
    def step(weights, moments, tokens, mask):
        def loss(weights):
            decoder = nnx.merge(tiny.model, tiny.params)
            logits = decoder.logits(decoder(tokens[None], adapter=lora.Adapter(*weights, start.scale))[0])[0]
            gold = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), tokens[1:, None], axis=1)[:, 0]
            return -jnp.sum(gold * mask[1:]) / jnp.sum(mask[1:])

        value, grads = jax.value_and_grad(loss)(weights)
        updates, moments = adamw.update(grads, moments, weights)
        return optax.apply_updates(weights, updates), moments, value, optax.global_norm(grads)

    weights, expected = (start.a, start.b), []
    moments = adamw.init(weights)
    for n in taught.orders[0][:, 0]:
        tokens, mask = batching.pad_rows(taught.sequences[0], [n], 16)
        weights, moments, *measured = step(weights, moments, tokens[0], mask[0])
        expected.append(measured)
    state, metrics = alone(tiny, start, taught.sequences[0], taught.orders[0], hyper, Recipe(optimiser))
    adapter = state.adapter
    assert_close(np.stack(metrics, axis=1), np.array(expected))
    assert (metrics.grad_norm > 4).any() and (metrics.grad_norm < 4).any()  # the norm before clipping
    assert_close((adapter.a, adapter.b), weights)


def test_micro_batches_add_up_to_the_large_batch(tiny):
    large = lessons(batch_size=4)
    assert (large.orders[0] >= 0).sum(axis=1).tolist() == [
        3,
        3,
    ]  # a row is missing: shares are of tokens, not of halves
    whole = train(tiny, hparams(num_steps=2), taught=large)
    for accumulate in (2, 6):  # 6: the greatest common divisor with 4 is 2
        compute = Compute(accumulate=accumulate)
        assert_close(train(tiny, hparams(num_steps=2), taught=large, compute=compute), whole)


def test_dropout_follows_from_the_seed(tiny):
    start = fresh(tiny, hparams())
    dropped = partial(train, tiny, adapters=start, optimiser=Optimiser(dropout=0.5))
    adapters, metrics = dropped(hparams(seed=[1, 1, 2, 2]))
    again, _ = dropped(hparams(seed=[1, 1, 2, 2]))
    assert_equal(adapters, again)
    other, _ = dropped(hparams(seed=[1, 3, 2, 2]))
    assert moved(row(other.b, 1), row(adapters.b, 1)) > 1e-3
    for e in (0, 2, 3):
        assert_equal(row(other, e), row(adapters, e))
    plain, _ = train(tiny, hparams(), adapters=start)
    assert moved(plain.b, adapters.b) > 1e-3
    assert np.nanmax(np.abs(metrics.loss)) < 20


# ---------------------------------------------------------------------------------------------------------------------
# On top of an adapter that was trained before


def earlier(tiny, count: int = E):
    """Adapters of other projections, rank and scale than those in training, with a B: each changes what it sits on."""
    kinds = {"learning_rate": 0, "num_steps": 0, "alpha": 3.0, "rank": 6, "seed": np.arange(count)}
    adapters = init_adapters(tiny.params["blocks"], hparams(count, **kinds), lora.PROJECTIONS, 6)
    rng = np.random.default_rng(5)
    b = {name: jnp.asarray(0.1 * rng.normal(size=w.shape), jnp.float32) for name, w in adapters.b.items()}
    return adapters.replace(b=b)


@pytest.fixture(scope="module")
def on_top(tiny):
    """As `mixed`, each adapter on top of another's earlier one."""
    return train(tiny, hparams(**MIXED), fixed=earlier(tiny))


def test_on_top_of_a_fixed_adapter_is_on_the_merged_model(tiny, mixed, on_top):
    adapters, metrics = on_top
    assert moved(adapters.b, mixed[0].b) > 1e-3  # it matters what lies below
    for e in (0, 1):
        hyper, start = (row(tree, np.array([e])) for tree in (hparams(**MIXED), fresh(tiny, hparams(**MIXED))))
        params = lora.merge(tiny.params, row(earlier(tiny), e))
        merged, expected = train(tiny, hyper, taught=chosen(lessons(), [e]), adapters=start, params=params)
        assert_close(row((adapters.a, adapters.b), np.array([e])), (merged.a, merged.b), atol=2e-5)
        assert_close(row(metrics, np.array([e]))[0][:, : expected.loss.shape[1]], expected.loss, atol=1e-4)


def test_the_fixed_adapter_stays_as_it_is(tiny):
    below = earlier(tiny)
    train(tiny, hparams(), fixed=below)
    assert_equal(below, earlier(tiny))  # raises if a buffer was donated


def test_room_that_is_empty_changes_nothing(tiny, mixed):
    room = lora.empty(tiny.params["blocks"], TARGETS, 8)
    adapters, metrics = train(tiny, hparams(**MIXED), fixed=lora.stack([room] * E))
    assert_close(adapters, mixed[0], atol=1e-6)
    for found, expected in zip(metrics, mixed[1], strict=True):  # of 2 to 14: the last bits differ by program
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


def test_two_devices_train_on_top_of_each_ones_own(tiny, on_top, mesh):
    hyper, start, below, expected = (
        row(tree, slice(3)) for tree in (hparams(**MIXED), fresh(tiny, hparams(**MIXED)), earlier(tiny), on_top)
    )
    assert_close(
        train(tiny, hyper, taught=chosen(lessons(), range(3)), adapters=start, fixed=below, mesh=mesh), expected
    )


@pytest.mark.slow
def test_dropout_spares_what_is_fixed(tiny):
    """With a B that has not moved, only the adapter below says anything: dropping inputs must not change it."""
    one, below = row(fresh(tiny, hparams()), 0), row(earlier(tiny), 0)
    taught, still = lessons(), row(hparams(learning_rate=0.0), 0)

    def losses(dropout):
        recipe = Recipe(Optimiser(dropout=dropout))
        return alone(tiny, one, taught.sequences[0], taught.orders[0], still, recipe, below)[1].loss

    np.testing.assert_allclose(losses(0.5), losses(0.0), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Held close to the model before


def penalised(tiny, weights, adapter, tokens, mask, kl, below):
    """The loss written out: cross-entropy, and the divergence over the whole vocabulary, from rows of logits."""

    def log_probs(adapter, fixed):
        decoder = nnx.merge(tiny.model, tiny.params)
        return jax.nn.log_softmax(decoder.logits(decoder(tokens, adapter=adapter, fixed=fixed)[0])[:, :-1])

    now, before = log_probs(lora.Adapter(*weights, adapter.scale), below), log_probs(below, None)
    gold = jnp.take_along_axis(now, tokens[:, 1:, None], axis=2)[..., 0]
    divergence = jnp.sum(jnp.exp(before) * (before - now), axis=2)
    return jnp.sum(mask[:, 1:] * (kl * divergence - gold)) / jnp.sum(mask[:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize("with_fixed", [False, True])
def test_the_penalty_is_the_divergence_of_whole_predictions(tiny, with_fixed):
    """Against JAX's own derivative of the plain formula, and against differences."""
    moving = row(earlier(tiny), 1)
    below = row(earlier(tiny), 0) if with_fixed else None
    sequences, weights, kl = lessons().sequences[0], (moving.a, moving.b), 0.7
    rows = batching.pad_rows(sequences, range(3), 16)  # one step, of all sequences
    # Several pieces, the last one padded. With b1 = 0 Adam's first moment is the gradient.
    recipe = Recipe(Optimiser(b1=0.0, clip_norm=1e9), kl_to_base, Compute(loss_chunk=16))
    hyper = row(hparams(num_steps=1, numbers={"kl": kl}), 0)

    def ours(weights):
        adapter = lora.Adapter(*weights, moving.scale)
        state, metrics = alone(tiny, adapter, sequences, [range(3)], hyper, recipe, below)
        return metrics.loss[0], state.moments[1].mu

    plain = jax.jit(jax.value_and_grad(lambda w, kl: penalised(tiny, w, moving, *rows, kl, below)))
    loss, gradient = ours(weights)
    assert_close((loss, gradient), plain(weights, kl))
    without, its_gradient = plain(weights, 0.0)
    assert loss - without > 0.01
    assert moved(gradient, its_gradient) > 0.01

    direction = jax.tree.map(lambda w: jnp.asarray(np.random.default_rng(0).normal(size=w.shape), w.dtype), weights)
    slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    ahead, behind = (ours(jax.tree.map(lambda w, d, h=h: w + h * d, weights, direction))[0] for h in (1e-3, -1e-3))
    assert (ahead - behind) / 2e-3 == pytest.approx(float(slope), rel=5e-3)


def test_micro_batches_share_the_penalty(tiny):
    large = lessons(batch_size=4)
    hyper = hparams(num_steps=2, numbers={"kl": 0.5})
    one, other = (train(tiny, hyper, taught=large, loss=kl_to_base, compute=Compute(accumulate=n)) for n in (1, 2))
    assert_close(one, other)


@pytest.mark.slow
def test_a_heavier_penalty_keeps_the_adapter_closer(tiny):
    below = earlier(tiny)
    trained = [
        train(
            tiny, hparams(learning_rate=2e-2, numbers={"kl": kl}), fixed=below, optimiser=Optimiser(), loss=kl_to_base
        )
        for kl in (0, 10)
    ]
    tokens = jnp.asarray(batching.pad_rows(lessons().sequences[0], range(3), 16)[0])
    everywhere = jnp.ones_like(tokens, bool)

    @jax.jit
    def distance(one):
        with_kl, without = (
            penalised(tiny, (one.a, one.b), one, tokens, everywhere, kl, row(below, 0)) for kl in (1.0, 0.0)
        )
        return with_kl - without

    free, held = (distance(row(adapters, 0)) for adapters, _ in trained)
    assert free > 2 * held > 0


# ---------------------------------------------------------------------------------------------------------------------
# The learning rate


@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules_are_those_of_optax(warmup):
    def rates(schedule):
        optimiser, one = (
            Optimiser(schedule=schedule, warmup_steps=warmup),
            row(hparams(num_steps=20, learning_rate=1e-2), 0),
        )
        return np.asarray(jax.vmap(lambda step: learning_rate(optimiser, one, step))(jnp.arange(25)))

    def after_warmup(decay):
        return optax.join_schedules([optax.linear_schedule(0.0, 1e-2, warmup), decay], [warmup])

    steps = np.arange(25)
    for name, decay in {
        "linear": optax.linear_schedule(1e-2, 0.0, 20 - warmup),
        "cosine": optax.cosine_decay_schedule(1e-2, 20 - warmup),
        "constant": optax.constant_schedule(1e-2),
    }.items():
        np.testing.assert_allclose(rates(name), jax.vmap(after_warmup(decay))(steps), atol=1e-8, err_msg=name)


def test_decay_ends_at_each_adapters_own_last_step():
    one, other = (row(hparams(num_steps=n, learning_rate=1e-2), 0) for n in (10, 20))
    assert learning_rate(Optimiser(), one, jnp.asarray(9)) == pytest.approx(1e-3)
    assert learning_rate(Optimiser(), other, jnp.asarray(18)) == pytest.approx(1e-3)
    assert learning_rate(Optimiser(), one, jnp.asarray(12)) == 0


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_a_diverged_adapter_is_found_and_changes_no_other(tiny):
    healthy, healthy_metrics = train(tiny, hparams())
    poisoned = fresh(tiny, hparams())
    poisoned = poisoned.replace(b={name: w.at[2].set(jnp.nan) for name, w in poisoned.b.items()})
    infinite = {"hyper": hparams(learning_rate=[2e-3, 2e-3, np.inf, 2e-3])}
    for case in (infinite, {"hyper": hparams(), "adapters": poisoned}):
        adapters, metrics = train(tiny, **case)
        assert is_finite(adapters).tolist() == [True, True, False, True]
        for e in (0, 1, 3):  # 3 shares its chunk
            assert_equal(row((adapters, metrics), e), row((healthy, healthy_metrics), e))
    assert is_finite(healthy).all()


def test_clipping_is_each_adapters_own(tiny):
    """A neighbour with gradients a thousand times as large takes nothing from anyone's norm."""
    start = fresh(tiny, hparams())
    adapters, metrics = train(tiny, hparams(), adapters=start)
    steep = start.replace(scale=start.scale * np.array([1, 1000, 1, 1000], np.float32))
    with_steep, their_metrics = train(tiny, hparams(), adapters=steep)
    assert np.nanmax(their_metrics.grad_norm[1]) > 100 * np.nanmax(metrics.grad_norm[1])
    for e in (0, 2):
        assert_equal(row((with_steep, their_metrics), e), row((adapters, metrics), e))


@pytest.mark.parametrize("devices", [None, 2])
def test_a_watched_training_ends_where_all_is_computed_and_compiles_once(tiny, mesh, devices):
    mesh, told = (mesh if devices else None), []
    placed = (
        tiny if devices else tiny._replace(params=jax.device_put(tiny.params, jax.devices()[0]))
    )  # as a real one is
    hyper, own = hparams(**MIXED), Optimiser(eps=1.1e-5)  # an optimiser of its own: a program of its own
    plain = train(placed, hyper, optimiser=own, mesh=mesh)
    programs = inner.tick._cache_size()
    watched = train(placed, hyper, optimiser=own, mesh=mesh, watch=lambda *seen: told.append(seen))
    assert_equal(watched, plain)
    assert inner.tick._cache_size() == programs  # another run compiles nothing
    done, total = zip(*told, strict=True)
    assert len(set(total)) == 1 and done[-1] == total[0] and list(done) == sorted(set(done))


def test_whoever_watches_may_stop_it(tiny):
    def stop(done: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny, hparams(), watch=stop)


class Memory:
    """Stands in for `tick` on a device that holds so many adapters."""

    def __init__(self, room: int, message: str = "RESOURCE_EXHAUSTED: out of memory"):
        self.room, self.message, self.sizes, self.tick = room, message, [], inner.tick

    def __call__(self, model, params, bank, *rest, **options):
        if not self.sizes or self.sizes[-1] != len(bank.state.step):
            self.sizes.append(len(bank.state.step))
        if self.sizes[-1] > self.room:
            raise jax.errors.JaxRuntimeError(self.message)
        return self.tick(model, params, bank, *rest, **options)


def squeezed(tiny, monkeypatch, room: int, *, mesh=None, message: str = "RESOURCE_EXHAUSTED: out of memory"):
    """Four adapters, four at a time, on a device with less room: the stand-in, what was said, and how to train."""
    memory, said = Memory(room, message), []
    monkeypatch.setattr(inner, "tick", memory)
    shapes = Shapes((16,), 3, 0, 0, 0)
    trainer = make_trainer(FineTuning(TARGETS, 4, epochs=2), shapes, Compute(chunk=4, tick_tokens=32), say=said.append)
    lm = LanguageModel(tiny.model, tiny.params, None, mesh)
    return memory, said, lambda: training.train(lm, lessons().sequences, trainer, seed=0)


@pytest.mark.slow
def test_the_precision_that_the_caller_asks_for_is_that_of_the_steps(tiny, monkeypatch):
    """JAX keeps it for each thread by itself, and a device's ticks have a thread of their own."""
    found, tick = set(), inner.tick

    def watched(*rest, **options):
        found.add(jax.config.jax_default_matmul_precision)
        return tick(*rest, **options)

    run = squeezed(tiny, monkeypatch, 4)[2]
    monkeypatch.setattr(inner, "tick", watched)
    with jax.default_matmul_precision("highest"):
        run()
    run()
    assert found == {"highest", None}


def test_without_room_fewer_are_trained_at_a_time_and_it_is_said_once(tiny, monkeypatch):
    expected, _ = squeezed(tiny, monkeypatch, 4)[2]()
    memory, said, run = squeezed(tiny, monkeypatch, 1)
    assert_close(run()[0], expected)
    assert memory.sizes == [4, 2, 1]
    assert [line.split(":")[1] for line in said] == [" going on with 2", " going on with 1"]
    assert "not enough device memory for 4 adapters in training on a device" in said[0]
    run()  # for good: neither tried nor said again
    assert memory.sizes == [4, 2, 1]
    assert len(said) == 2


def test_what_had_finished_is_not_trained_again(tiny, monkeypatch):
    memory, _, run = squeezed(tiny, monkeypatch, 4)
    taken, tick = [], memory.tick

    def later(model, params, bank, rows, **options):
        if len(taken) == 6:
            taken.append(0)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        taken.append(int((rows.places < len(bank.state.step)).sum()))
        return tick(model, params, bank, rows, **options)

    memory.tick = later
    run()
    once = sum(len(order) for order in lessons().orders)
    assert once < sum(taken) < 2 * once


def test_no_room_for_one_adapter_is_raised(tiny, monkeypatch, mesh):
    for on in (None, mesh):
        memory, _, run = squeezed(tiny, monkeypatch, 0, mesh=on)
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            run()
        assert memory.sizes[-1] == 1


def test_another_error_is_not_taken_for_a_lack_of_memory(tiny, monkeypatch):
    memory, said, run = squeezed(tiny, monkeypatch, 0, message="INTERNAL: no such thing")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run()
    assert (memory.sizes, said) == ([4], [])


def test_small_models_are_unrolled_on_a_gpu_but_not_where_layers_are_recomputed(monkeypatch):
    small, large = NAMED["llama-3.2-1b"], NAMED["qwen2.5-7b"]
    assert not inner.unrolled(small, Compute())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert inner.unrolled(small, Compute()) and not inner.unrolled(large, Compute())
    assert not inner.unrolled(small, Compute(remat=True))  # a loop is what keeps memory low
    assert inner.unrolled(large, Compute(remat=True, unroll=True))
