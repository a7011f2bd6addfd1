"""Answers are a plain greedy loop's, gold answers get their log-likelihood, a diverged adapter harms itself only."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from seal_jax.engine import batching
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.sampler import read
from seal_jax.engine.training import FineTuning, Shapes, Trainer
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.seal.rewards import Score, ask, gold_tokens, log_likelihoods, score, score_base
from seal_jax.types import Compute, Example, LanguageModel, Query, SelfEdit, Settings, by_query
from tests import tiny

WORDS = ("ask", "what", "is", "?", "red", "blue", "green", "stone", "salt", "poison")
SHAPES = Shapes(widths=(32,), capacity=2, questions=3, question_width=8, gold_width=8)
MAX_TOKENS = 5
GROUPS = [  # of one question, of three, of two: prompts and gold answers of several lengths
    [Query("a", "ask red ?", "blue stone")],
    [Query("b", "ask", "salt"), Query("c", "what is red ? ask", "red blue green"), Query("d", "is ?", "stone salt ?")],
    [Query("e", "what is green", "red"), Query("f", "blue ? blue", "green is salt red")],
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    model = tiny.language_model(WORDS, seed=1)
    params = dict(model.params)
    params["lm_head"] = {"kernel": params["lm_head"]["kernel"] * 20}
    return model._replace(params=params)


@pytest.fixture(scope="module")
def adapters(lm) -> Adapter:
    """Three that change much, each in its own way."""
    keys = jax.random.split(jax.random.key(0), 3)

    def one(key):
        fresh = lora.init(key, lm.params["blocks"], lora.PROJECTIONS, max_rank=4, rank=4, alpha=8.0)
        return fresh.replace(b=jax.tree.map(lambda b: jax.random.normal(key, b.shape) * 0.5, fresh.b))

    return jax.vmap(one)(keys)


@functools.partial(jax.jit, static_argnums=0)
def all_logits(model, params, adapter, tokens):
    decoder = nnx.merge(model, params)
    return decoder.logits(decoder(tokens, adapter=adapter)[0])[0]


def logits_of(lm: LanguageModel, adapter: Adapter | None, ids: list[int]) -> np.ndarray:
    """Logits [T, V] without a cache, without padding that is seen."""
    row = np.zeros((1, 24), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(all_logits(lm.model, lm.params, adapter, row))[: len(ids)]


def greedy(lm: LanguageModel, adapter: Adapter | None, prompt: str) -> str:
    ids = lm.codec.encode(prompt)
    written: list[int] = []
    while len(written) < MAX_TOKENS:
        token = int(np.argmax(logits_of(lm, adapter, ids + written)[-1]))
        if token in lm.codec.stop:
            break
        written.append(token)
    return lm.codec.decode(written)


def direct_log_likelihood(lm: LanguageModel, adapter: Adapter | None, query: Query) -> float:
    """Mean over the gold answer's tokens of log p(token | all before it), from a plain forward pass."""
    prompt, gold = lm.codec.encode(query.prompt), lm.codec.encode(query.gold)
    log_p = np.asarray(jax.nn.log_softmax(logits_of(lm, adapter, prompt + gold)))
    return float(np.mean([log_p[len(prompt) + i - 1, token] for i, token in enumerate(gold)]))


@pytest.mark.parametrize("chunk", [2, 3])
def test_answers_and_likelihoods_are_those_of_a_plain_loop(lm, adapters, chunk):
    answers, likely, cut = ask(lm, adapters, GROUPS, SHAPES, max_tokens=MAX_TOKENS, chunk=Chunk(chunk))
    lengths = [[len(lm.codec.encode(answer)) for answer in group] for group in answers]
    assert cut == [[length == MAX_TOKENS for length in group] for group in lengths]
    assert answers == [[greedy(lm, lora.take(adapters, e), q.prompt) for q in group] for e, group in enumerate(GROUPS)]
    assert len({answer for group in answers for answer in group}) > 3, "too alike to tell adapters apart"
    for e, group in enumerate(GROUPS):
        expected = [direct_log_likelihood(lm, lora.take(adapters, e), query) for query in group]
        np.testing.assert_allclose(likely[e], expected, atol=1e-4)


def test_the_base_model_answers_as_it_does_without_an_adapter(lm):
    grade = by_query(lambda asked, given: [True] * len(asked))
    scores = score_base(lm, GROUPS, grade, trainer(chunk=3), max_tokens=MAX_TOKENS)
    assert [s.answers for s in scores] == [[greedy(lm, None, query.prompt) for query in group] for group in GROUPS]
    assert [s.verdicts for s in scores] == [[True], [True] * 3, [True] * 2]
    for found, group in zip(scores, GROUPS, strict=True):
        expected = [direct_log_likelihood(lm, None, query) for query in group]
        np.testing.assert_allclose(found.log_likelihoods, expected, atol=1e-4)
    assert all(s.losses == [] and s.problem is None for s in scores)


@pytest.mark.slow
def test_two_devices_answer_as_one(lm, adapters, mesh):
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = lm._replace(params=jax.device_put(lm.params, whole), mesh=mesh)
    one = ask(lm, adapters, GROUPS, SHAPES, max_tokens=MAX_TOKENS, chunk=Chunk(2))
    two = ask(spread, adapters, GROUPS, SHAPES, max_tokens=MAX_TOKENS, chunk=Chunk(2))
    assert two[0] == one[0]
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_log_likelihood_is_of_the_continuation_only(lm):
    rows = [([1, 2], [3, 4]), ([5, 6, 7], [1])]
    prompts, valid = batching.left_pad([prompt for prompt, _ in rows], 4)
    golds, real = np.array([[[3, 4, 0], [1, 0, 0]]]), np.array([[[1, 1, 0], [1, 0, 0]]], bool)
    prompts_read = read(lm.model, lm.params, None, prompts[None], valid[None])
    found = np.asarray(log_likelihoods(lm.model, lm.params, None, prompts_read, valid[None], golds, real))
    for q, (prompt, gold) in enumerate(rows):
        log_p = np.asarray(jax.nn.log_softmax(logits_of(lm, None, prompt + gold)))
        expected = np.mean([log_p[len(prompt) + i - 1, token] for i, token in enumerate(gold)])
        np.testing.assert_allclose(found[0, q], expected, atol=1e-5)


@pytest.mark.parametrize(("prompt", "text"), [("Answer:", " 1843"), ("assistant\n", "1843"), ("", " 1843")])
def test_a_gold_answer_follows_its_prompt_as_text_would(prompt, text):
    assert gold_tokens(lambda text: [text], Query("q", prompt, "1843")) == [text]


# ---------------------------------------------------------------------------------------------------------------------
# Score

INNER = FineTuning(("q_proj", "v_proj"), rank=4, alpha=8.0, learning_rate=1e-2, epochs=2)
QUERIES = [[Query("a", "ask red ?", "green")], [Query("b", "ask blue ?", "red"), Query("c", "ask ?", "salt")]]


def trainer(config: FineTuning = INNER, *, chunk: int = 2) -> Trainer:
    return Trainer(config, SHAPES, Compute(), Chunk(chunk))


def edit(*texts: str) -> SelfEdit:
    return SelfEdit(" ".join(texts), tuple(Example("", text) for text in texts))


def scores_of(lm, edits, *, config=INNER, queries=QUERIES, seed=0, grade=lambda asked, given: [True] * len(asked)):
    return score(lm, edits, queries, by_query(grade), trainer(config), seed=seed, max_tokens=2)


@pytest.fixture(scope="module")
def poisoned(lm) -> LanguageModel:
    """Reading the word `poison` makes this model's activations infinite."""
    embedding = lm.params["embed"]["embedding"].at[lm.codec.encode("poison")[0]].set(jnp.inf)
    return lm._replace(params={**lm.params, "embed": {"embedding": embedding}})


def test_one_diverged_adapter_is_wrong_and_named_and_its_neighbour_is_as_without_it(poisoned):
    sound = edit("ask red ? blue", "red is blue")
    both = scores_of(poisoned, [sound, edit("ask blue ? poison")])
    assert both[1] == Score(["", ""], [False, False], [None, None], [], "diverged")
    assert both[1].accuracy == 0.0
    assert both[1].log_likelihood is None
    for alone in (
        scores_of(poisoned, [sound], queries=QUERIES[:1]),
        scores_of(poisoned, [sound, edit("is salt")]),
        scores_of(poisoned, [edit("ask blue ? poison"), sound], queries=QUERIES[::-1])[::-1],
    ):
        assert alone[0] == both[0]
    assert both[0].problem is None
    assert len(both[0].losses) == 4  # two sequences, two epochs
    assert all(map(math.isfinite, [*both[0].losses, *both[0].log_likelihoods]))


@pytest.mark.parametrize("rate", [1e38, math.inf])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_learning_rate_out_of_bounds_is_divergence_even_where_the_adapter_is_finite(lm, rate, epochs):
    """One step of 1e38 leaves finite weights and no finite answer."""
    wild = dataclasses.replace(INNER, learning_rate=rate, epochs=epochs)
    for found in scores_of(lm, [edit("red is blue"), edit("stone salt")], config=wild):
        assert found.problem == "diverged"
        assert found.accuracy == 0.0
        assert found.log_likelihood is None
        assert all(map(math.isfinite, found.losses))


def test_a_missing_verdict_stays_missing(lm):
    found = scores_of(lm, [edit("stone"), edit("salt")], grade=lambda asked, given: [True, None, True])
    assert [s.verdicts for s in found] == [[True], [None, True]]
    assert [s.accuracy for s in found] == [1.0, 1.0]


def test_all_answers_are_graded_in_one_call_each_with_its_own_query(lm):
    seen = []
    found = scores_of(
        lm,
        [edit("stone"), edit("salt")],
        grade=lambda q, a: seen.extend(zip(q, a, strict=True)) or [True, False, True],
    )
    assert [query for query, _ in seen] == [query for group in QUERIES for query in group]
    assert [answer for _, answer in seen] == [answer for s in found for answer in s.answers]
    assert [s.verdicts for s in found] == [[True], [False, True]]


def test_training_moves_the_gold_answer_and_depends_on_the_seed(lm):
    config = dataclasses.replace(INNER, projections=lora.PROJECTIONS, learning_rate=3e-2, epochs=20)
    taught = [edit("ask red ? green"), edit("ask blue ? red", "ask ? salt")]
    base = score_base(lm, QUERIES, lambda q, a: [True] * len(q), trainer(), max_tokens=2)
    first, again, other = (scores_of(lm, taught, config=config, seed=seed) for seed in (0, 0, 1))
    assert all(after.log_likelihood > before.log_likelihood + 0.5 for after, before in zip(first, base, strict=True))
    assert first == again
    assert first[0].losses != other[0].losses


@pytest.mark.parametrize(
    ("verdicts", "accuracy"),
    [([True, False], 0.5), ([True, None], 1.0), ([False, None, None], 0.0), ([None], None), ([], None)],
)
def test_accuracy_is_the_share_of_verdicts_given(verdicts, accuracy):
    assert Score([""] * len(verdicts), verdicts, [None] * len(verdicts), []).accuracy == accuracy


def test_log_likelihood_is_the_mean_of_those_known():
    assert Score(["", ""], [True, True], [-1.0, -2.0], []).log_likelihood == -1.5
    assert Score(["", ""], [True, True], [None, -2.0], []).log_likelihood == -2.0
    assert Score([""], [True], [None], []).log_likelihood is None


def test_a_domain_that_votes_gives_one_verdict_a_task(lm):
    asked = []

    def vote(queries, answers):
        asked.append([list(group) for group in queries])
        return [[len(group) > 1] for group in answers]

    found = score(lm, [edit("stone"), edit("salt")], QUERIES, vote, trainer(), seed=0, max_tokens=2)
    assert asked == [[list(group) for group in QUERIES]]
    assert [(s.accuracy, len(s.answers), len(s.log_likelihoods)) for s in found] == [(0.0, 1, 1), (1.0, 2, 2)]


def test_self_edits_with_settings_of_their_own_train_together_as_they_would_alone(lm):
    """Different learning rates and epochs in one batch (paper section 3.3), against a run of each by those settings."""
    config = dataclasses.replace(INNER, epochs=3)
    texts = [edit("ask red ? blue", "red is blue"), edit("stone salt")]
    chosen = [Settings(0.02, 1), Settings(0.005, 3)]
    both = scores_of(lm, [e._replace(settings=s) for e, s in zip(texts, chosen, strict=True)], config=config)
    assert [len(s.losses) for s in both] == [2, 3]
    for e, settings in enumerate(chosen):
        by_config = dataclasses.replace(config, learning_rate=settings.learning_rate, epochs=settings.epochs)
        alone = scores_of(lm, [texts[e]] * 2, config=by_config, queries=[QUERIES[e]] * 2)[0]
        assert alone.answers == both[e].answers
        np.testing.assert_allclose(both[e].losses, alone.losses, rtol=1e-5)
        np.testing.assert_allclose(both[e].log_likelihoods, alone.log_likelihoods, rtol=1e-5)


def test_more_epochs_than_there_is_room_for_are_refused(lm):
    with pytest.raises(ValueError, match=r"self-edit 0 asks for 9 epochs; there is room for 1 to 2"):
        scores_of(lm, [edit("stone")._replace(settings=Settings(0.01, 9))], queries=QUERIES[:1])


def test_a_query_may_allow_fewer_tokens_than_the_run(lm):
    short = [[query._replace(max_tokens=1) for query in group] for group in QUERIES]
    whole, cut = (scores_of(lm, [edit("stone"), edit("salt")], queries=queries) for queries in (QUERIES, short))
    for long, one in zip(whole, cut, strict=True):
        for answer, first in zip(long.answers, one.answers, strict=True):
            assert len(lm.codec.encode_more(first)) <= 1 and answer.startswith(first)
    assert any(len(lm.codec.encode_more(a)) > 1 for s in whole for a in s.answers)
