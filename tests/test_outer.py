"""The losses of the outer loops are their formulas; what they make of rewards; a pair stays together everywhere."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seal_jax.domains.passages import Passage
from seal_jax.engine import batching, inner
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.training import FineTuning, Shapes, init_adapters, make_trainer, train
from seal_jax.nn import lora
from seal_jax.seal import outer
from seal_jax.seal.outer import Outer
from seal_jax.seal.outer.advantages import advantages, policy
from seal_jax.seal.outer.preferences import best_and_worst, preference
from seal_jax.seal.outer.rest_em import rewards_of
from seal_jax.seal.outer.sets import union
from seal_jax.seal.rewards import Score, Trial
from seal_jax.types import Compute, HParams, LanguageModel, SelfEdit, Settings
from tests import tiny as toys

NAN = math.nan
NUMBERS = {"kl": 0.3, "clip": 0.1, "beta": 0.7}
WEIGHTS = {policy: [0.5, -0.25, 1.5, -0.75], preference: [1.0, -1.0, 1.0, -1.0]}
LOSSES = pytest.mark.parametrize("loss", WEIGHTS, ids=["policy", "preference"])


def batch(weights) -> tuple[np.ndarray, np.ndarray]:
    """A sequence of its own length and prompt for each weight, and two that are empty."""
    rng = np.random.default_rng(0)
    sequences = [
        batching.Tokens(rng.integers(1, 61, 12 - 2 * n).tolist(), 1 + n, weight) for n, weight in enumerate(weights)
    ]
    return batching.pad_rows(sequences, [*range(len(weights)), -1, -1], 16)


def moved(tiny) -> lora.Adapter:
    """An adapter that changes the model, so that ratios are not 1 and some are past the clip."""
    hyper = HParams(*(np.asarray([value]) for value in (1e-3, 4, 8.0, 4, 7)))
    adapter = lora.take(init_adapters(tiny.params["blocks"], hyper, ("q_proj", "down_proj"), 4), 0)
    keys = iter(jax.random.split(jax.random.key(1), 9))
    return adapter.replace(b={name: 0.3 * jax.random.normal(next(keys), w.shape) for name, w in adapter.b.items()})


def log_likelihoods(tiny, weights, scale, tokens):
    """Of each token after the first, by the adapted model: log-softmax of all logits."""
    decoder = nnx.merge(tiny.model, tiny.params)
    adapter = None if weights is None else lora.Adapter(*weights, scale)
    log_p = jax.nn.log_softmax(decoder.logits(decoder(tokens, adapter=adapter)[0]))
    return jnp.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]


def plain_policy(log_p, log_q, advantage):
    """The GRPO objective, a loop over samples and their tokens."""
    terms = []
    for p_row, q_row, weights in zip(log_p, log_q, advantage, strict=True):
        for p, q, a in zip(p_row, q_row, weights, strict=True):
            r = jnp.exp(p) / jnp.exp(q)
            clipped = jnp.clip(r, math.exp(-NUMBERS["clip"]), math.exp(NUMBERS["clip"]))
            k3 = 1 / r - 1 + jnp.log(r)
            terms += [-jnp.minimum(r * a, clipped * a) + NUMBERS["kl"] * k3] if a else []
    return sum(terms) / len(terms)


def plain_preference(log_p, log_q, sign):
    """DPO: mean over the pairs (0, 1) and (2, 3)."""
    p, q = jnp.sum(jnp.where(sign != 0, log_p, 0), axis=1), jnp.sum(jnp.where(sign != 0, log_q, 0), axis=1)
    margins = [(p[w] - q[w]) - (p[w + 1] - q[w + 1]) for w in (0, 2)]
    return sum(-jnp.log(jax.nn.sigmoid(NUMBERS["beta"] * m)) for m in margins) / 2


PLAIN = {policy: plain_policy, preference: plain_preference}


@pytest.mark.parametrize("accumulate", [1, 3])
@LOSSES
def test_loss_and_gradient_are_those_of_a_plain_implementation(tiny, loss, accumulate):
    tokens, weight = batch(WEIGHTS[loss])
    adapter = moved(tiny)
    weights = (adapter.a, adapter.b)

    def forward(weights, tokens, key):
        decoder = nnx.merge(tiny.model, tiny.params)
        hidden = decoder(tokens, adapter=adapter.replace(a=weights[0], b=weights[1]))[0]
        return inner.Outputs(hidden, decoder.head(), decoder(tokens)[0])

    numbers, compute = {name: jnp.float32(n) for name, n in NUMBERS.items()}, Compute(accumulate=accumulate)
    found, gradient = jax.jit(partial(inner.loss_and_gradient, forward, loss=loss, numbers=numbers, compute=compute))(
        weights, tokens, weight, jax.random.key(0)
    )

    def plain(weights):
        log_p = log_likelihoods(tiny, weights, adapter.scale, tokens)
        return PLAIN[loss](log_p, log_likelihoods(tiny, None, None, tokens), weight[:, 1:])

    expected, its_gradient = jax.value_and_grad(plain)(weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), gradient, its_gradient)
    assert min(np.abs(w).max() for w in jax.tree.leaves(its_gradient)) > 1e-3


def test_on_policy_the_gradient_is_that_of_the_weighted_likelihood():
    """At the writer itself: no divergence, ratios of 1; and what is very unlikely by now has finite losses."""
    weight = jnp.asarray(WEIGHTS[policy])[:, None]
    slope = jax.grad(lambda values: policy.total(values, weight, NUMBERS))(jnp.zeros((4, 1)))
    np.testing.assert_allclose(slope, -weight)
    for far in (-300.0, -21.0, 21.0, 300.0):
        value, slope = jax.value_and_grad(lambda v: policy.total(v, weight, NUMBERS))(jnp.full((4, 1), far))
        assert np.isfinite(value) and np.isfinite(slope).all()
        assert (np.sign(slope) == np.sign(far)).all(), "what the divergence does not allow is pulled back"


@pytest.mark.slow
@LOSSES
def test_two_devices_that_share_the_rows_of_a_step_learn_the_same(tiny, mesh, loss):
    """A step of one pair: one device has it whole, the other an empty one."""
    rng = np.random.default_rng(3)
    sequences = [batching.Tokens(rng.integers(1, 61, 6 + n).tolist(), 2, w) for n, w in enumerate([1.0, -1.0] * 3)]
    config = FineTuning(rank=4, alpha=8.0, learning_rate=1e-2, epochs=2, batch_size=2, optimiser=Optimiser(eps=1e-5))
    trainer = make_trainer(config, Shapes((16,), 6, 0, 0, 0), Compute(chunk=1), loss=loss)
    codec = toys.word_codec(())
    trained = [
        train(LanguageModel(tiny.model, tiny.params, codec, over), [sequences], trainer, seed=0, numbers=NUMBERS)
        for over in (None, mesh)
    ]
    (one, losses), (two, shared) = trained
    np.testing.assert_allclose(shared[0], losses[0], rtol=1e-5, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), two, one)  # 6 of Adam's steps of 1e-2; rounding: 6e-5
    if loss is preference:
        assert losses[0][0] == pytest.approx(math.log(2), rel=1e-5)  # before any step no margin
        assert losses[0][-1] < losses[0][0]


def test_groups_stay_side_by_side_in_the_order_of_steps():
    order = batching.order(6, epochs=2, batch_size=4, seed=0, rows=2)
    assert order.shape == (4, 4)
    assert sorted(order.reshape(-1, 2).tolist()) == sorted([[0, 1], [2, 3], [4, 5], [-1, -1]] * 2)
    assert batching.order(4, epochs=1, batch_size=1, seed=0, rows=2).shape == (2, 2)


# ---------------------------------------------------------------------------------------------------------------------
# From rewards


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([0.0, 1.0, 0.5], [-0.5, 0.5, 0.0]),
        ([0.0, NAN, 1.0], [-0.5, 0.0, 0.5]),
        ([0.1 + 0.2, 0.3, 0.3], [0.0, 0.0, 0.0]),  # equal but for rounding
        ([0.1, 0.2, 0.3], [-0.1, 0.0, 0.1]),
        ([NAN, 0.7, NAN], [0.0, 0.0, 0.0]),
        ([NAN, NAN, NAN], [0.0, 0.0, 0.0]),
        ([-4.0, -1.0, -1.0], [-2.0, 1.0, 1.0]),
    ],
)
def test_an_advantage_is_a_reward_less_the_mean_of_its_tasks(rewards, expected):
    with np.errstate(all="raise"):
        found = advantages(np.array([rewards, [5.0, 5.0, 5.0]]))
        scaled = advantages(np.array([rewards]), std=True)[0]
    np.testing.assert_allclose(found, [expected, [0, 0, 0]], atol=1e-12)
    assert ((found[0] == 0) == (np.array(expected) == 0)).all(), "what is no advantage is none exactly"
    known = scaled[~np.isnan(rewards)]
    assert known.std() == pytest.approx(1 if any(expected) else 0) if len(known) else not scaled.any()


BASE = Score(["?"], [False], [-3.0], [])
TAUGHT = BASE._replace(verdicts=[True], log_likelihoods=[-1.0])


def tried(edit: SelfEdit, score: Score, sample: int) -> Trial:
    return Trial(Passage("p", "P", "A passage.", ()), sample, edit, [score], BASE)


def test_a_self_edit_that_trains_nothing_counts_as_the_base_model_where_bad_samples_are_learned_from(monkeypatch):
    nothing, diverged = "no sentence about the passage", BASE._replace(log_likelihoods=[None], problem="diverged")
    row = [
        tried(SelfEdit("It teaches.", ("It teaches.",)), TAUGHT, 0),
        tried(SelfEdit("Of another.", (), nothing), BASE._replace(problem=nothing), 1),
        tried(SelfEdit("It explodes.", ("It explodes.",)), diverged, 2),
    ]
    np.testing.assert_array_equal(rewards_of([row], "accuracy"), [[1, NAN, NAN]])
    np.testing.assert_array_equal(rewards_of([row], "log_likelihood", all_count=True), [[-1, -3, NAN]])

    def weights(module) -> dict[str, float]:
        monkeypatch.setattr(module, "example_of", lambda writer, trial, loop, weight: (trial.edit.completion, weight))
        monkeypatch.setattr(module, "learn_from", lambda writer, log, examples, *rest, **more: (examples, log))
        examples, _ = module.outer_loop().learn(None, [row], None, "round 1")  # type: ignore[arg-type]
        return dict(examples)

    assert weights(outer.advantages) == {"It teaches.": 0.5, "Of another.": -0.5}
    assert weights(outer.preferences) == {"It teaches.": 1, "Of another.": -1}


@pytest.mark.parametrize(
    ("rewards", "tie_break", "expected"),
    [
        ([0.2, 0.9, 0.1], None, (1, 2)),
        ([0.2, NAN, 0.1], None, (0, 1 + 1)),
        ([0.5, 0.5, 0.5], None, None),
        ([0.5, 0.5, 0.5], [-3.0, -1.0, -2.0], (1, 0)),
        ([0.5, 0.5, 0.1], [-3.0, NAN, -9.0], (0, 2)),
        ([0.1 + 0.2, 0.3, 0.3], None, None),
        ([NAN, 0.3, NAN], None, None),
        ([NAN, NAN, NAN], [NAN, NAN, NAN], None),
    ],
)
def test_a_pair_is_the_best_and_the_worst_that_differ(rewards, tie_break, expected):
    assert best_and_worst(np.array([rewards]), None if tie_break is None else np.array([tie_break])) == [expected]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "imitation"}, "--outer.method is imitation and --outer.recorded is None"),
        ({"recorded": "edits.json"}, "--outer.method is rest_em and --outer.recorded is edits.json"),
        ({"reward": "set", "samples": 1}, "--outer.reward set .* needs two --outer.samples"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Outer(), **changes)


def test_what_cannot_be_imitated_or_joined():
    with pytest.raises(ValueError, match="only they are recorded"):
        Outer(method="imitation", recorded="edits.json").make()
    with pytest.raises(ValueError, match="settings cannot be joined"):
        union([SelfEdit("", (), settings=Settings(1e-3, 1))])
