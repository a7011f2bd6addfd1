"""A model here as judge: its replies do not depend on what else is asked, and none is made twice."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from seal_jax.engine import sampler
from seal_jax.engine.chunks import Chunk
from seal_jax.graders.choose import Connection, Grader
from seal_jax.graders.judge import grade_prompt, grade_with, read_verdict
from seal_jax.nn import sharding
from seal_jax.run import judges, runtime
from seal_jax.run.judges import make_judge
from seal_jax.types import LanguageModel, Query
from tests import tiny

QUERIES = [
    Query("Who built it ?", "", "Ada"),
    Query("When was it built , and by whom of the two ?", "", "in 1843"),
    Query("Where ?", "", "at the tarn"),
]
ANSWERS = ["Ada", "in 1843", "nowhere"]
PROMPTS = [grade_prompt(query, answer) for query, answer in zip(QUERIES, ANSWERS, strict=True)]
OTHERS = ["Ada", "in 1843", "Who built it ?", "nowhere at the tarn"]  # far shorter, so padded far more


@pytest.fixture(scope="module")
def lm(make_tiny) -> LanguageModel:
    """A random model with opinions: what it replies depends on all of the prompt. It knows the prompts' words."""
    words = sorted({word for text in (*PROMPTS, *OTHERS, "yes no ?") for word in text.split()})
    random = make_tiny(vocab_size=len(words) + 1, context_length=1024, tie_embeddings=False)
    return LanguageModel(random.model, random.params, tiny.word_codec(words))


def make_ask(lm, chat=None, *, context_length=1024, max_tokens=6, chunk=None):
    """Prompts -> a reply to each, or None."""

    def ask(prompts):
        kept: dict[str, str] = {}
        room = context_length - max_tokens
        settings = {"room": room, "max_tokens": max_tokens, "chunk": chunk or Chunk(2, say=lambda _: None)}
        assert judges.reply_to(prompts, kept.__setitem__, lm, chat, **settings) == len(kept)
        return [kept.get(prompt) for prompt in prompts]

    return ask


def alone(lm: LanguageModel, prompt: str, max_tokens: int) -> str:
    """What the sampler writes after the prompt, unpadded and with no neighbour."""
    ids = np.array(lm.codec.encode(f"{prompt}\n"), np.int32)[None, None]
    keys = sampler.row_keys(7, np.zeros((1, 1, 1), np.int32))
    out = sampler.sample(
        keys, lm.model, lm.params, None, ids, ids >= 0, np.full((1, 1, 1), max_tokens),
        sampling=sampler.Sampling(max_tokens, temperature=0), stop=lm.codec.stop,
    )  # fmt: skip
    return lm.codec.decode(np.asarray(out.tokens)[0, 0, 0, : int(out.lengths[0, 0, 0])].tolist())


@pytest.mark.slow
def test_a_reply_is_what_the_model_says_to_that_prompt_alone(lm):
    prompts = [*PROMPTS, *OTHERS]
    expected = [alone(lm, prompt, 6) for prompt in prompts]
    assert len(set(expected)) >= 5
    assert make_ask(lm)(prompts) == expected
    assert make_ask(lm, chunk=Chunk(8))(prompts[::-1]) == expected[::-1]


@pytest.mark.slow
def test_replies_are_the_same_on_two_devices(lm, mesh):
    both = lm._replace(params=sharding.placed(lm.params, mesh), mesh=mesh)
    assert make_ask(both, chunk=Chunk(2))(PROMPTS) == make_ask(lm)(PROMPTS)


def test_the_chat_template_is_applied(lm):
    ask = make_ask(lm, lambda prompt: "Ada")
    ids = np.array(lm.codec.encode("Ada"), np.int32)
    assert len(ids) == 1 and ask(PROMPTS[:2]) == [alone(lm, "Ada", 6)] * 2


def test_a_prompt_that_does_not_fit_has_no_reply_and_the_others_have(lm):
    lengths = [len(lm.codec.encode(prompt)) for prompt in PROMPTS]
    longest = int(np.argmax(lengths))
    replies = make_ask(lm, context_length=max(lengths) + 6 - 1)(PROMPTS)
    expected = make_ask(lm)(PROMPTS)
    assert replies == [None if i == longest else reply for i, reply in enumerate(expected)]
    assert make_ask(lm, context_length=max(lengths) + 6)(PROMPTS) == expected
    assert make_ask(lm, context_length=8)(PROMPTS) == [None] * 3
    assert make_ask(lm)([]) == []


def test_prompts_of_many_lengths_are_few_programs(lm):
    ask = make_ask(lm, max_tokens=2)
    ask(["Ada"])
    before = sampler.read._cache_size()
    ask([" ".join(["Ada"] * n) for n in range(1, 120)])
    assert sampler.read._cache_size() == before
    ask([" ".join(["Ada"] * n) for n in range(194, 254)])
    assert sampler.read._cache_size() == before + 1


def test_verdicts_of_a_model(lm):
    expected = [read_verdict(alone(lm, prompt, 6)) for prompt in PROMPTS]
    assert grade_with(make_ask(lm))(QUERIES, ANSWERS) == expected


@pytest.mark.slow
def test_a_model_by_name_is_loaded_once_and_only_when_something_new_is_asked(tmp_path, monkeypatch):
    folder = tiny.model_folder(tmp_path / "model")
    loads: list[str] = []
    load = runtime.load
    monkeypatch.setattr(runtime, "load", lambda name, **settings: loads.append(name) or load(name, **settings))
    config = Grader("model", str(folder))

    def judge():
        return make_judge(config, Connection(batch=2), cache=tmp_path / "judge.jsonl", devices=1, say=print)

    first = judge()
    assert loads == []
    verdicts = first.grade(QUERIES, ANSWERS)
    assert first.rate is not None and len(first.rate([("A passage.", "A note.")])) == 1
    assert loads == [str(folder)]
    assert (first.usage()["calls"], first.usage()["cached"]) == (4, 0)
    assert first.usage()["failed"] == 0

    again = judge()
    assert again.grade(QUERIES, ANSWERS) == verdicts
    assert len(loads) == 1 and again.usage()["cached"] == 3

    shutil.rmtree(folder)
    tiny.model_folder(folder, seed=1)  # another model in the same place is asked anew
    judge().grade(QUERIES, ANSWERS)
    assert len(loads) == 2


def test_a_judge_whose_template_opens_a_thought_has_given_no_reply_until_it_ends(lm):
    """The random model here never ends one: nothing that it thinks is taken for a verdict."""
    codec = lm.codec._replace(encode=lambda text: lm.codec.encode(re.sub("</?think>", "", text)))
    reading = lm._replace(codec=codec)
    assert make_ask(reading, lambda prompt: f"{prompt} <think>")(PROMPTS) == [None] * 3
    assert None not in make_ask(reading, lambda prompt: f"{prompt} <think> </think>")(PROMPTS)
