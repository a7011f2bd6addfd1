"""Text to a budget: prompts in turn, no more than asked for and no less than can be had; nothing is written twice.

The toy model is that of the entity-graph tests: it reads words and writes a line a token.
"""

from __future__ import annotations

import zlib

import jax
import pytest

from seal_jax.domains import squad
from seal_jax.domains.passages import Passage
from seal_jax.nn import transformer
from seal_jax.seal import rounds, writers
from seal_jax.seal.writers import Request, Written, ask, in_view, own_questions, parse_strategies, size, within, write
from seal_jax.types import Codec, Example, LanguageModel, SelfEdit
from tests import tiny
from tests.test_entigraph import GATE, TARN, make_loop

LINES = ("Make a timeline of it", "2. **Draw the whole bridge**", "Note:", "Question 1: Who built it?", "a word", "so")
PASSAGES = [GATE, TARN]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    shape = tiny.config(64, width=16, layers=1, context_length=512)
    params = jax.device_put(transformer.random_params(0, shape), jax.devices()[0])

    def encode(text: str) -> list[int]:
        return [1 + zlib.crc32(word.encode()) % 63 for word in text.split()]

    codec = Codec(encode, encode, lambda ids: "\n".join(LINES[i % len(LINES)] for i in ids), " <end>", (0,))
    return LanguageModel(transformer.graph(shape), params, codec)


def lines(passage: Passage, text: str) -> list[Example]:
    return [squad.example(passage, line) for line in text.splitlines()]


@pytest.mark.parametrize("budget", [0.5, 1, 3])
def test_a_passage_is_written_of_until_it_has_its_budget(lm, tmp_path, budget):
    loop = make_loop(tmp_path / "run", capacity=200)
    found = write(lm, PASSAGES, [["one"], ["two"]], loop, budget=budget, name="x", split=lines)
    for passage, own in zip(PASSAGES, found, strict=True):
        wanted = budget * size(squad.passage_only(passage).examples[0], lm.codec)
        *whole, last = own.examples  # which may have been cut: this model reads back another text
        assert sum(size(example, lm.codec) for example in whole) <= wanted
        everything = [e for text in own.completion.split("\n\n") for e in lines(passage, text)]
        assert sum(size(example, lm.codec) for example in everything) >= wanted
        assert tuple(whole) == tuple(everything[: len(whole)]) and last.completion
        assert own.tokens == writers.written_tokens(own.completion.split("\n\n"), lm.codec)
        assert all(example.completion.startswith(f"{passage.title}\n") for example in own.examples[:-1])
    edits = writers.self_edits(PASSAGES, found)
    assert [row[0].examples[-1] for row in edits] == [squad.passage_only(p).examples[0] for p in PASSAGES]


def test_prompts_are_asked_in_turn_and_nothing_is_asked_without_one(lm, tmp_path, monkeypatch):
    asked, real = [], writers.write_self_edits

    def noted(lm, requests, *args, **options):
        asked.extend(requests)
        return real(lm, requests, *args, **options)

    monkeypatch.setattr(writers, "write_self_edits", noted)
    found = write(lm, PASSAGES, [["a b", "c d", "e f"], []], make_loop(tmp_path), budget=2, name="x", split=lines)
    prompts = [request.prompt for request in asked]
    assert prompts[:4] == ["a b", "c d", "e f", "a b"]
    assert {request.id.partition("/")[0] for request in asked} == {GATE.id}
    assert len({request.id for request in asked}) == len(asked)
    assert found[1] == Written("", ())
    assert writers.self_edits(PASSAGES, found)[1][0].problem == "nothing was written"


def test_writing_follows_from_the_seed_and_the_passage_and_is_done_once(lm, tmp_path, monkeypatch):
    def little(passage: Passage, text: str) -> list[Example]:  # of one passage, so that it takes several waves
        return lines(passage, text) if passage == TARN else [Example("", word) for word in text.split()[:1]]

    options = {"budget": 2, "name": "x", "split": little}
    loop = make_loop(tmp_path / "run")
    first = write(lm, PASSAGES, [["a"], ["b"]], loop, **options)
    turned = write(lm, PASSAGES[::-1], [["b"], ["a"]], make_loop(tmp_path / "turned", chunk=2), **options)
    assert turned[::-1] == first
    assert write(lm, PASSAGES, [["a"], ["b"]], make_loop(tmp_path / "seed", seed=1), **options) != first
    assert write(lm, [GATE], [["a"]], make_loop(tmp_path / "alone"), **options) == first[:1]
    more = write(lm, [GATE], [["a"]], make_loop(tmp_path / "more"), **options | {"budget": 3})
    assert more[0].completion.startswith(first[0].completion)
    loop.journal.close()
    monkeypatch.setattr(rounds, "sample", lambda *_, **__: pytest.fail("finished work was done again"))
    assert write(lm, PASSAGES, [["a"], ["b"]], make_loop(tmp_path / "run"), **options) == first


@pytest.mark.parametrize("kept", [0, 1], ids=["nothing", "a token each"])
def test_where_little_is_kept_of_texts_few_are_asked_for(lm, tmp_path, monkeypatch, kept):
    """No wave asks for more texts than there are, and all together for no more than three times the first."""
    waves, real = [], writers.write_self_edits

    def noted(lm, requests, *args, **options):
        waves.append(len(requests))
        return real(lm, requests, *args, **options)

    monkeypatch.setattr(writers, "write_self_edits", noted)
    options, found = {"name": "x", "split": lambda passage, text: [Example("", "word")] * kept}, {}
    for budget in (1, 2, 4):
        waves.clear()
        loop = make_loop(tmp_path / f"{budget}", capacity=200)
        (found[budget],) = write(lm, [GATE], [["a"]], loop, budget=budget, **options)
        assert all(more <= sum(waves[:wave]) for wave, more in enumerate(waves) if wave)
        assert len(found[budget].texts) == sum(waves) == writers.MOST_TEXTS * waves[0]
    for smaller, larger in ((1, 2), (2, 4)):
        assert found[larger].texts[: len(found[smaller].texts)] == found[smaller].texts


def test_a_passage_is_written_of_until_its_budget_is_held_or_its_room_is_full():
    assert writers.more_texts(0, 6, 0.0) == 6 and writers.more_texts(6, 6, 1.0) == 0
    assert writers.more_texts(6, 6, 0.75) == 2 and writers.more_texts(6, 6, 0.01) == 6  # not 594
    assert writers.more_texts(12, 6, 0.4) == 6 and writers.more_texts(18, 6, 0.99) == 0
    assert writers.more_texts(6, 6, 0.9999999) == 1


def test_nothing_is_written_that_there_is_no_room_for(lm, tmp_path):
    """A text a line: of four sequences, the fourth is the passage."""
    short = lambda passage, text: [Example("", "word")]
    (full,) = write(lm, [GATE], [["a"]], make_loop(tmp_path / "3", capacity=4), budget=9, name="x", split=short)
    (more,) = write(lm, [GATE], [["a"]], make_loop(tmp_path / "9", capacity=90), budget=9, name="x", split=short)
    assert len(full.examples) == 3 and full.texts == more.texts[: len(full.texts)]
    assert len(full.texts) < len(more.texts)


def test_sequences_keep_within_the_capacity(lm, tmp_path):
    found = write(lm, [GATE], [["a"]], make_loop(tmp_path, capacity=3), budget=4, name="x", split=lines)
    assert len(found[0].examples) == 2  # and the passage


def test_the_sequence_that_crosses_the_budget_is_cut_unless_it_has_a_prompt():
    codec = tiny.word_codec([*"abcdefgh"])
    own = [Example("", "a b c"), Example("", "d e f g h")]
    assert within(own, 3, codec) == (own[0],)
    assert within(own, 6.9, codec) == (own[0],)  # three tokens more are not worth a sequence
    assert within(own, 7, codec) == (own[0], Example("", "d e f g"))
    assert within(own, 8, codec) == tuple(own) == within(own, 99, codec)
    assert within([own[0], Example("d", "e f g h")], 7, codec) == (own[0],)
    assert within(own, 0, codec) == ()


def test_a_smaller_budget_is_the_beginning_of_a_larger_one():
    codec = tiny.language_model([*"Tabcd"]).codec
    passage = Example("", "T a b c")  # four tokens
    text = (Example("", "a b c d a"), Example("d", "c", view="T d"), Example("", "b " * 12))
    edit = SelfEdit("text", (*text, passage))
    first, second, third = (writers.beginning(edit, budget, codec) for budget in (1, 2, 4))
    assert first.examples == (Example("", "a b c d"), passage)
    assert second.examples == (*text[:2], passage)  # one token is left: too few to begin another
    assert third.examples[:2] == text[:2] and size(third.examples[2], codec) == 16 - 7
    assert third.examples[3:] == (passage,) and third.completion == "text"
    assert writers.beginning(edit, 0, codec).examples == (passage,)
    assert writers.beginning(SelfEdit("", (), "nothing was written"), 1, codec).examples == ()


def test_a_prompt_too_long_for_the_context_is_named(lm, tmp_path):
    long = Request("long-0", "word " * 510)
    with pytest.raises(ValueError, match=r"'long-0' needs a context of 518 .*max-tokens 8; the model has 512"):
        ask(lm, [Request("short", "word"), long], make_loop(tmp_path), name="x")


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_spa_asks_for_seven_kinds_of_rewriting(style):
    passage = GATE._replace(context="{title} {braces}")
    prompts = writers.spa_prompts(passage, style, lambda prompt: f"<{prompt}>")
    assert len(set(prompts)) == 7
    for prompt in prompts:
        assert prompt[0] == "<" and "{title} {braces}" in prompt  # text of a passage is no placeholder
        assert "Corrin Gate" in prompt


def test_a_small_budget_has_other_kinds_for_other_passages():
    found = [writers.spa_prompts(GATE._replace(id=f"gate-{n}"), "raw", str) for n in range(40)]
    assert {own[0] for own in found} == {prompt for own in found for prompt in own}
    assert all(len(set(own)) == 7 for own in found)
    assert writers.spa_prompts(GATE._replace(id="gate-3"), "raw", str) == found[3]


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_active_reading_carries_out_the_ways_that_the_model_proposes(lm, tmp_path, style):
    read = []

    def render(prompt: str) -> str:
        read.append(prompt)
        return prompt

    prompts, count = writers.active_reading(
        lm, PASSAGES, make_loop(tmp_path, max_tokens=12), name="x", style=style, render=render
    )
    ways = {"Make a timeline of it", "Draw the whole bridge", "Question 1: Who built it?"}
    assert len(read) == 2 + sum(map(len, prompts))
    for passage, own in zip(PASSAGES, prompts, strict=True):
        assert 0 < len(own) <= len(ways)
        assert all(passage.context in prompt and any(way in prompt for way in ways) for prompt in own)
    assert min(count) > 0


def test_strategies_are_the_lines_that_say_something():
    text = "Here:\n1. Make a *timeline* of it\n- Make a timeline of it\n\n2) Ask what for\nSo be it"
    assert parse_strategies(text) == ["Make a timeline of it", "Ask what for", "So be it"]
    assert len(parse_strategies("\n".join(f"way {n} of many" for n in range(99)))) == writers.STRATEGIES


def test_a_teacher_reads_the_passage_before_what_the_student_reads():
    edit = squad.passage_only(GATE)
    other = edit._replace(examples=(Example("a prompt", "b", view="c"), Example("a prompt", "b")))
    ((own, more),) = in_view([GATE], [[edit, other]])
    assert own.examples[0] == edit.examples[0]._replace(view=f"{GATE.title}\n{GATE.context}\n\n")
    assert [example.view for example in more.examples] == ["c", f"{GATE.title}\n{GATE.context}\n\na prompt"]


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("Question 1: Who?\nAnswer: Ada\n\n**Question 2: When? Answer: 1902", ["Who?", "When?"]),
        ("Question: Who built it?\nQuestion:\nAnswer: Nobody", ["Who built it?"]),
        (" Who built it?\nAnswer: Ada\n\nQuestion 2: **When?**\nAnswer: 1902", ["Who built it?", "When?"]),
        (" Who?\nAnswer: Ada\n\nPassage:\nFog\nIt is fog.\n\nQuestion 1: What is fog?\nAnswer: Fog", ["Who?"]),
        ("Question: Question 1: Who?\nAnswer: Ada", ["Who?"]),
        ("No question here", []),
    ],
)
def test_questions_are_read_without_their_answers(text, questions):
    assert writers.questions_in(GATE, text) == questions


def test_own_questions_are_asked_without_the_passage_and_taught_with_it(lm, tmp_path):
    def queries(passage: Passage):
        return [squad.make_query(str, "Topic: {title} {question}", passage.title, *q) for q in passage.questions]

    loop = make_loop(tmp_path, max_tokens=12)
    loop = loop._replace(
        domain=loop.domain._replace(queries=queries),
        trainer=loop.trainer._replace(shapes=loop.trainer.shapes._replace(widths=(64,))),
    )
    found = own_questions(lm, PASSAGES, loop, budget=9, name="x", style="raw", render=str)
    assert any(own.examples for own in found)
    for passage, own in zip(PASSAGES, found, strict=True):
        for example in own.examples:
            assert example.prompt == f"Topic: {passage.title} Who built it?"
            assert passage.context in example.view and "Who built it?" in example.view
            assert example.completion.startswith(" ") and example.completion.endswith(lm.codec.end)
    short = loop._replace(trainer=loop.trainer._replace(shapes=loop.trainer.shapes._replace(widths=(8,))))
    assert not any(
        own.examples for own in own_questions(lm, PASSAGES, short, budget=9, name="x", style="raw", render=str)
    )
