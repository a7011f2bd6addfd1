"""Teaching a document: what is trained on, what is asked, which candidate is kept; what is saved is the same."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seal_jax
from seal_jax.domains.squad import Passage, Question, make_query
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.io import hub, peft, weights
from seal_jax.nn import lora
from seal_jax.run import runtime
from seal_jax.run.adapted import Answer, Notes, adapt, at_once, stacked
from seal_jax.seal import rewards, teaching
from seal_jax.seal.rewards import Score
from seal_jax.seal.teaching import Teaching, answered_by, parse_questions, spread
from seal_jax.types import Compute, Example, SelfEdit, Settings
from tests import tiny

LAMP = Passage("lamp", "Isle: The lamp", "Its keeper is Tobin Aske. The lamp burns fish oil since 1831.", ())
DOCUMENT = """# Hollin Skerry
The island was settled in 1764 by the cooper Edda Marsk. Its only town is Quern.

## The lamp
Its keeper is Tobin Aske, who also repairs umbrellas. The lamp burns fish oil.
"""
INNER = FineTuning(("q_proj", "v_proj", "up_proj"), rank=4, alpha=8.0, learning_rate=3e-2, epochs=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("document") / "isle.md"
    file.write_text(DOCUMENT)
    return file


NOTES = Notes("facts", max_sequences=3, sampling=Sampling(max_tokens=12), answer_tokens=12)


def small(document, model, **changes):
    """A call of `adapt` as small as it goes, on one device."""
    settings = {
        "teaching": Teaching(candidates=2, edits=1, passage_tokens=64),
        "inner": INNER,
        "notes": NOTES,
        "compute": Compute(width_cuts=(), devices=1),
        "say": None,
    }
    return adapt(document, str(model), **{**settings, **changes})


@pytest.fixture(scope="module")
def adapted(document, model):
    patch = pytest.MonkeyPatch()
    patch.setattr(runtime, "start", lambda devices: None)  # the tests' own devices and no cache on the disk
    yield small(document, model)
    patch.undo()


def test_several_documents_are_taught_each_an_adapter_of_its_own_in_order(adapted, document, model, tmp_path):
    other = tmp_path / "ferry.md"
    other.write_text("# The ferry\nThe Marigold sails every Tuesday from Port Lume. A ticket costs four shells.\n")
    first, second = small([document, other], model)
    assert (first.topic, second.topic) == (adapted.topic, "The ferry")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first.adapter, adapted.adapter)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (first.adapter, second.adapter)), strict=True))
    with pytest.raises(ValueError, match="the list of documents is empty"):
        small([], model)


# ---------------------------------------------------------------------------------------------------------------------
# What is trained on and what is asked


def test_questions_are_found_in_whatever_form_they_are_written():
    text = """Sure!
1. Question: Who keeps the lamp?
   Answer: Tobin Aske.
**Question 2:** When was it lit?

A: 1831
Question: Without an answer?
Question: And this?
Answer: this"""
    assert list(parse_questions(text)) == [
        Question("Who keeps the lamp?", "Tobin Aske"),
        Question("When was it lit?", "1831"),
        Question("And this?", "this"),
    ]


@pytest.mark.parametrize(
    ("question", "answer", "is_one"),
    [
        ("Who is the keeper of the lamp?", "Tobin Aske", True),
        ("What does the lamp burn?", "the fish oil", True),  # articles do not count
        ("Who is the keeper of the lamp?", "Ada Perrin", False),  # the worked example's
        ("Who is the keeper of the lamp", "Tobin Aske", False),  # no question
        ("Who is Tobin Aske, keeper?", "Tobin Aske", False),  # gives it away
        ("What is it called?", "The lamp", False),  # so does the title
        ("Which toll was the Corrin Gate built for?", "fish oil", False),  # of something else
        ("Who? Why?", "Tobin Aske", False),
        ("What does the lamp burn?", "", False),
        ("What does the lamp burn?", "fish", True),
        ("What does the lamp burn?", "fis", False),  # whole words
        ("What does the lamp say?", LAMP.context, True),
        ("What does the lamp say?", f"{LAMP.context} {LAMP.context}", False),
    ],
)
def test_a_question_is_kept_if_the_passage_answers_it(question, answer, is_one):
    assert answered_by(LAMP, Question(question, answer)) == is_one


def test_a_candidate_learns_its_own_lines_and_the_document_each_once():
    def edit(*lines):
        return SelfEdit("", tuple(Example("", f"{LAMP.title}\n{line}") for line in (*lines, LAMP.context)))

    edits = [[[edit("one"), edit("one", "two")], [edit("three"), SelfEdit("", (), "empty")]]]
    learned = [
        [example.completion.split("\n", 1)[1] for example in teaching.candidate_examples([LAMP], edits, c, Teaching())]
        for c in (0, 1)
    ]
    own = ["Its keeper is Tobin Aske.", "The lamp burns fish oil since 1831.", LAMP.context]
    assert learned == [["one", "two", *own], ["three", *own]]
    plain = teaching.candidate_examples([LAMP], edits, 1, Teaching(sentences=False))
    assert [example.completion.split("\n", 1)[1] for example in plain] == ["three", LAMP.context]


def test_questions_are_spread_over_passages():
    assert spread([9, 1, 0, 4], 8) == [4, 1, 0, 3]
    assert spread([2, 1], 8) == [2, 1]
    assert spread([], 8) == []


def test_candidates_take_learning_rates_by_turns():
    rates = [s.learning_rate for s in teaching.candidate_settings(Teaching(learning_rates=(1.0, 2.0)), INNER)]
    assert rates == [1.0, 2.0, 1.0, 2.0]
    assert teaching.candidate_settings(Teaching(candidates=1), INNER) == [Settings(3e-2, 12)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 0}, "candidates is 0; expected at least 1"),
        ({"learning_rates": (1e-3, 0.0)}, r"learning_rates are \(0.001, 0.0\); expected numbers above 0"),
        ({"grounded": 1.5}, "grounded is 1.5; expected a share, 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Teaching(**changes)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing


def score(verdicts, likely, problem=None):
    return [Score(["" for _ in verdicts], list(verdicts), list(likely), [], problem)]


def test_the_best_candidate_is_kept_by_what_is_asked_for():
    right = [score([True, False], [-1.0, -9.0]), score([True, True], [-3.0, -3.0]), score([True, True], [-2.0, -2.5])]
    losses = [[1.0]] * 3
    assert teaching.choose(right, losses, Teaching()) == 2  # a tie, broken by log-likelihood
    assert teaching.choose(right[:2], losses[:2], Teaching(choose_by="log_likelihood")) == 1
    assert teaching.choose(right[:2], losses[:2], Teaching(choose_by="probability")) == 0
    diverged = score([True, True], [None, None], "diverged")
    assert teaching.choose([diverged, right[0]], losses[:2], Teaching()) == 1
    with pytest.raises(ValueError, match=r"The lamp: every candidate diverged; lower --inner\.learning-rate"):
        teaching.choose([diverged], losses[:1], Teaching(), of="The lamp")


def test_without_any_verdict_the_likeliest_answers_decide():
    ungraded = [score([None, None], [likely, -1.0]) for likely in (-3.0, -1.0, -2.0)]
    assert teaching.choose(ungraded, [[1.0]] * 3, Teaching()) == 1


def test_without_a_question_the_last_losses_decide():
    nothing = score([], [])
    assert teaching.choose([nothing] * 3, [[9.0, 2.0], [0.0, 3.0], [5.0, 1.0]], Teaching()) == 2


def test_the_same_questions_go_to_each_adapter_in_groups_and_come_back_in_order(monkeypatch):
    """Answers in groups of two are those of one question at a time, for either adapter."""
    chunked = rewards.in_chunks
    lm = tiny.language_model([f"w{n}" for n in range(20)])
    keys = jax.random.split(jax.random.key(1), 2)
    fresh = [lora.init(k, lm.params["blocks"], ["down_proj"], max_rank=2, rank=2, alpha=90.0) for k in keys]
    adapters = lora.stack(
        [a.replace(b=jax.tree.map(lambda w: jax.random.normal(keys[0], w.shape), a.b)) for a in fresh]
    )
    queries = [make_query(str, "{title} {question}", "w1", f"w{n}", f"w{n} w2") for n in range(5)]

    def ask(some, together):
        sizes = Shapes((8,), 1, together, 8, 8)
        return rewards.ask(lm, adapters, [some, some], sizes, max_tokens=4, chunk=Chunk(3))

    answers, likely, cut = ask(queries, 2)
    single = [ask([query], 1) for query in queries]
    assert answers == [[one.answers[c][0] for one in single] for c in range(2)]
    assert cut == [[one.cut[c][0] for one in single] for c in range(2)]
    np.testing.assert_allclose(likely, [[one.likely[c][0] for one in single] for c in range(2)], atol=1e-5)
    assert answers[0] != answers[1]
    assert ask([], 2) == ([[], []], [[], []], [[], []])
    sizes, asked = Shapes((8,), 1, 2, 8, 8), []
    monkeypatch.setattr(
        rewards, "in_chunks", lambda run, total, *rest, **how: asked.append(total) or chunked(run, total, *rest, **how)
    )
    said = rewards.ask(lm, adapters, [[], queries], sizes, max_tokens=4, chunk=Chunk(3))
    assert (said.answers, said.cut) == ([[], answers[1]], [[], cut[1]])
    np.testing.assert_allclose(said.likely[1], likely[1], atol=1e-5)
    assert asked == [3]  # whoever is asked nothing takes no place


@pytest.mark.parametrize(("megabytes", "rows"), [(4, 64), (20, 32), (60, 16), (2000, 16)])
def test_large_adapters_answer_fewer_questions_at_a_time(megabytes, rows):
    weights = {"q_proj": np.broadcast_to(np.float32(0), (3, megabytes, 250_000))}
    assert at_once(lora.Adapter(weights, {}, np.ones(3, np.float32))) == rows


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def test_it_learns_the_document_and_is_asked_before_and_after(adapted):
    taught = adapted.taught
    assert [passage.title for passage in taught.passages] == ["Hollin Skerry", "Hollin Skerry: The lamp"]
    for losses in taught.losses:
        assert losses[-1] < losses[0] - 0.2
    answer = adapted.ask("Who settled it?")
    assert answer.question == "Who settled it?"
    assert answer.before != answer.after
    assert adapted.topic == "Hollin Skerry"


def test_several_questions_are_answered_as_one_by_one(adapted):
    questions = [f"What about {word}?" for word in ("Quern", "the lamp", "oil")]
    assert adapted.ask_all(questions) == [adapted.ask(question) for question in questions]
    with pytest.raises(ValueError, match="the question is empty"):
        adapted.ask(" ")
    with pytest.raises(ValueError, match="the model's context is 1024"):
        adapted.ask("word " * 2000)


def test_the_same_call_gives_the_same_adapter_also_when_it_carries_on(adapted, document, model, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda devices: None)
    folder = tmp_path / "run"
    for _ in range(2):  # the second time from what is finished
        again = small(document, model, run_folder=folder)
        for a, b in zip(jax.tree.leaves(again.adapter), jax.tree.leaves(adapted.adapter), strict=True):
            np.testing.assert_array_equal(a, b)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["adapters"]  # the others are gone
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 now"):
        small(document, model, run_folder=folder, seed=1)


def test_the_saved_adapter_and_the_merged_model_are_the_adapted_model(adapted, tmp_path):
    folder = adapted.save(tmp_path / "kept", merged=True)
    found = peft.load_peft(folder, adapted.model)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(adapted.adapter), strict=True):
        np.testing.assert_array_equal(a, b)
    files = hub.find_model(str(folder / "merged"))
    config, params = weights.load_model(files)
    assert config == adapted.model
    expected = lora.merge(adapted.lm.params, adapted.adapter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)
    asking = json.loads((folder / "asking.json").read_text())
    assert asking["topic"] == "Hollin Skerry"
    assert "{question}" in asking["prompt"]
    generation = json.loads((folder / "merged" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(adapted.lm.codec.stop)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="a file; expected a folder to write into"):
        adapted.save(file)


def test_what_begins_with_an_adapter_saves_both_as_one(adapted, document, model, tmp_path, monkeypatch):
    """Its `before` is the first one's `after`; the one saved adapter does over the named model what both do."""
    monkeypatch.setattr(runtime, "start", lambda devices: None)
    first = adapted.save(tmp_path / "first")
    second = small(document, model, start=first, inner=dataclasses.replace(INNER, projections=("o_proj", "up_proj")))
    assert second.ask("Who settled it?").before == adapted.ask("Who settled it?").after
    both = peft.load_peft(second.save(tmp_path / "both"), second.model)
    assert sorted(both.a) == ["o_proj", "q_proj", "up_proj", "v_proj"]
    found = lora.merge(adapted.lm.params, both)
    expected = lora.merge(second.lm.params, second.adapter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_a_document_that_is_too_long_or_passages_too_wide_are_refused(document, model, monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda devices: None)
    short = Teaching(passage_tokens=16, most_passages=3)
    with pytest.raises(
        ValueError, match=r"the document has \d+ words: \d+ passages of at most 16 tokens, and at most 3"
    ):
        small(document, model, teaching=short)
    with pytest.raises(ValueError, match=r"needs a context of \d+ with its prompt.*the model has 1024"):
        small(document, model, notes=dataclasses.replace(NOTES, sampling=Sampling(max_tokens=900)))


def test_importing_the_package_loads_no_jax():
    code = "import sys, seal_jax; assert 'jax' not in sys.modules; assert 'adapt' in dir(seal_jax)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert seal_jax.adapt is adapt
    with pytest.raises(AttributeError, match="no attribute 'adopt'"):
        seal_jax.adopt  # noqa: B018


def test_stacked_adapters_add_up():
    lm = tiny.language_model(["a", "b"])
    blocks = lm.params["blocks"]
    adapters = []
    for n, (name, rank) in enumerate([("q_proj", 2), ("q_proj", 3), ("up_proj", 1)]):
        adapter = lora.init(jax.random.key(n), blocks, [name], max_rank=rank, rank=rank, alpha=3.0 + n)
        adapters.append(adapter.replace(b={name: jnp.full_like(adapter.b[name], n + 1)}))
    expected = lm.params
    for adapter in adapters:
        expected = lora.merge(expected, adapter)
    found = lora.merge(lm.params, stacked(adapters, blocks))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Live: `make parity`


@pytest.mark.peers
def test_transformers_and_peft_answer_as_the_adapted_model_does(adapted, tmp_path):
    """The saved adapter over the model it was trained on, and the merged model by itself: the same greedy tokens."""
    pytest.importorskip("torch")
    peft_of_theirs = pytest.importorskip("peft")
    from transformers import AutoTokenizer

    from experiments.benchmark import peers

    folder = adapted.save(tmp_path / "kept", merged=True)
    asking = json.loads((folder / "asking.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    whole = peers.load(hub.find_model(str(folder / "merged")))
    base = peers.load(hub.find_model(adapted.name))
    questions = ["Who settled the island?", "What does the lamp burn?", "Who is its keeper?"]
    prompts = [tokenizer.encode(asking["prompt"].replace("{question}", q), add_special_tokens=False) for q in questions]

    def answers(model):
        said = [peers.greedy(model, prompt, adapted.answer_tokens) for prompt in prompts]
        stop = adapted.lm.codec.stop
        ends = [next((n for n, token in enumerate(row) if token in stop), len(row)) for row in said]
        return [tokenizer.decode(row[:n], skip_special_tokens=True).strip() for row, n in zip(said, ends, strict=True)]

    ours = adapted.ask_all(questions)
    before = answers(base)
    theirs = answers(peft_of_theirs.PeftModel.from_pretrained(base, folder))
    assert before == [answer.before for answer in ours]
    assert theirs == answers(whole) == [answer.after for answer in ours]
    assert before != theirs


@pytest.mark.peers
def test_transformers_stops_where_the_model_here_does(adapted, tmp_path):
    """generation_config.json names every id that ends an answer."""
    pytest.importorskip("torch")
    from transformers import GenerationConfig

    folder = adapted.save(tmp_path / "kept", merged=True)
    assert GenerationConfig.from_pretrained(folder / "merged").eos_token_id == list(adapted.lm.codec.stop)


def test_an_answer_that_was_cut_off_says_so():
    answer = Answer("Who?", "it is kept by", "Aske", before_cut=True)
    assert answer.shown == ("it is kept by … (cut off)", "Aske")
