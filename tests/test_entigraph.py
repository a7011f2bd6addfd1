"""Entity-graph text: only what stands in the passage is an entity, every relation is written about, nothing twice.

The toy model reads words and writes a line a token, each line one of the names below: sampled, batched and journaled
like any model's text.
"""

from __future__ import annotations

import shutil
import zlib

import jax
import pytest

from seal_jax.domains.passages import Passage, Question
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes, make_trainer
from seal_jax.nn import transformer
from seal_jax.run.journal import RunFolder
from seal_jax.seal import entigraph, rounds
from seal_jax.seal.entigraph import Limits, choose_relations, load_prompts, parse_entities, write
from seal_jax.seal.rounds import Loop
from seal_jax.types import Codec, Compute, Domain, Example, LanguageModel
from tests import tiny
from tests.test_rounds import Silent

ASKED = (Question("Who?", "Ada Perrin"),)
GATE = Passage(
    "gate-0",
    "Corrin Gate",
    "The Corrin Gate is a bridge in Telmouth. The mason Ada Perrin built it in 1902, of blue stone (from Orr).",
    ASKED,
)
TARN = Passage("tarn-0", "Low Tarn", "Low Tarn is a lake near Telmouth, known for its eels.", ASKED)
EMPTY = Passage("fog-0", "Fog", "It is fog.", ASKED)
LINES = ("- Corrin Gate", "- Telmouth", "- Ada Perrin", "- 1902", "- eels", "- Low Tarn", "- Atlantis", "It is a list.")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    shape = tiny.config(64, width=16, layers=1, context_length=256)
    params = jax.device_put(transformer.random_params(0, shape), jax.devices()[0])

    def encode(text: str) -> list[int]:
        return [1 + zlib.crc32(word.encode()) % 63 for word in text.split()]

    codec = Codec(encode, encode, lambda ids: "\n".join(LINES[i % len(LINES)] for i in ids), "", (0,))
    return LanguageModel(transformer.graph(shape), params, codec)


def make_loop(folder, *, capacity: int = 30, max_tokens: int = 8, chunk: int = 16, seed: int = 0) -> Loop:
    unused = Domain(lambda task: "", lambda task, text: None, lambda task: [], lambda queries, answers: [])
    return Loop(
        domain=unused,
        trainer=make_trainer(FineTuning(), Shapes((32,), capacity, 1, 8, 8), Compute(chunk=4)),
        sampling=Sampling(max_tokens=max_tokens),
        write_chunk=Chunk(chunk),
        answer_tokens=1,
        prompt_width=8,
        seed=seed,
        journal=RunFolder(folder, {}),
        display=Silent(),
    )


def written(lm, passages, loop, *, kind="pairs", samples=2, name="graph", **options):
    options = {"prompts": load_prompts("raw"), "render": str, **options}
    return write(lm, passages, loop, kind=kind, samples=samples, name=name, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Entities


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("- The Corrin Gate\n- Telmouth\n- 1902", ["Corrin Gate", "Telmouth", "1902"]),
        ("1. Ada Perrin\n2) Telmouth\n(3) 1902", ["Ada Perrin", "Telmouth", "1902"]),
        ('["Ada Perrin", "Telmouth"]', ["Ada Perrin", "Telmouth"]),
        ("Ada Perrin, Telmouth; 1902.", ["Ada Perrin", "Telmouth", "1902"]),
        ("1. Ada Perrin, the mason, of Bath", ["Ada Perrin", "mason"]),
        ("* **Ada Perrin**\n* `Telmouth`", ["Ada Perrin", "Telmouth"]),
        ("Ada Perrin - the mason\nTelmouth: a town\nblue stone (building)", ["Ada Perrin", "Telmouth", "blue stone"]),
        ("ada perrin\nADA PERRIN\nthe Ada Perrin", ["Ada Perrin"]),  # each once, as the passage spells it
        ("Atlantis\nPlato\n1903\n190\n2", []),  # not in the passage
        ("Ada Perr\nPerrin built\ntelmouth the mason", ["Perrin built"]),  # whole words, of one sentence
        ("The mason Ada Perrin of Bath built it in 1902 for Telmouth", ["Ada Perrin", "1902", "Telmouth"]),  # prose
        ("he built it in 1902, of blue stone\nblue stone from", ["1902"]),  # no names
        ("the\nit\nis\nin\na\n-\n\n...\n12", []),
        ("Here is the list of entities:\nTelmouth", ["Telmouth"]),
        ("I cannot make a list of this. The list is long.", []),
        (" Telmouth; 1902\n\nPassage: Ada Perrin is a mason.", ["Telmouth", "1902"]),  # the prompt's form, gone on with
        ("", []),
    ],
)
def test_an_entity_stands_in_the_passage(completion, expected):
    assert parse_entities(GATE, completion) == expected


def test_entities_are_limited():
    assert parse_entities(GATE, "Telmouth\nAda Perrin\n1902", Limits(entities=2)) == ["Telmouth", "Ada Perrin"]
    assert parse_entities(GATE, "mason ada perrin", Limits(words=2)) == []


# ---------------------------------------------------------------------------------------------------------------------
# Relations


def test_all_relations_or_a_seeded_choice():
    names, wide = ("a", "b", "c", "d"), Limits(pairs=6, triples=4)
    pairs = choose_relations(names, "pairs", wide, 30, seed=(0,))
    assert len(pairs) == len(set(pairs)) == 6
    both = choose_relations(names, "triples", wide, 30, seed=(0,))
    assert both[:6] == pairs
    assert sorted(map(len, both)) == [2] * 6 + [3] * 4
    few = [choose_relations(names, "pairs", Limits(pairs=3), 30, seed=(seed,)) for seed in (0, 0, 1, 2, 3)]
    assert all(len(chosen) == 3 and set(chosen) <= set(pairs) for chosen in few)
    assert few[0] == few[1]
    assert len({tuple(chosen) for chosen in few}) > 1


@pytest.mark.parametrize("room", [0, 1, 2, 5])
def test_relations_keep_within_the_room(room):
    names = ("a", "b", "c", "d")
    assert len(choose_relations(names, "pairs", Limits(), room, seed=(0,))) == room
    both = choose_relations(names, "triples", Limits(), room, seed=(0,))
    assert len(both) == room
    assert {len(chosen) for chosen in both} <= {2, 3}
    assert room < 2 or {len(chosen) for chosen in both} == {2, 3}


def test_one_entity_has_no_relation():
    assert choose_relations(("a",), "triples", Limits(), 9, seed=(0,)) == []


# ---------------------------------------------------------------------------------------------------------------------
# Self-edits


@pytest.mark.parametrize("kind", ["pairs", "triples"])
def test_a_self_edit_is_a_text_for_each_relation_and_the_passage(lm, tmp_path, kind):
    edits = written(lm, [GATE, TARN], make_loop(tmp_path / "run"), kind=kind)
    assert [len(row) for row in edits] == [2, 2]
    trained = 0
    for passage, row in zip((GATE, TARN), edits, strict=True):
        for edit in row:
            entities = edit.completion.split("\n")[0].removeprefix("Entities: ").split(", ")
            assert "Atlantis" not in entities
            if edit.problem:
                continue
            trained += 1
            n = len(entities)
            expected = n * (n - 1) // 2 + (n * (n - 1) * (n - 2) // 6 if kind == "triples" else 0)
            texts = edit.completion.count("\n[")
            assert texts == min(expected, 10 if kind == "pairs" else 20)
            assert edit.examples[-1] == Example("", f"{passage.title}\n{passage.context}")
            assert all(e.prompt == "" and e.completion.startswith(f"{passage.title}\n") for e in edit.examples)
            assert 1 < len(edit.examples) <= texts + 1  # an empty text is no sequence
    assert trained


def test_prompts_are_in_the_models_form(lm, tmp_path):
    read = []

    def render(prompt: str) -> str:
        read.append(prompt)
        return f"<user>{prompt}"

    written(lm, [GATE], make_loop(tmp_path / "run"), prompts=load_prompts("chat"), render=render)
    prompts = load_prompts("chat")
    assert any(GATE.context in prompt and "Name the people" in prompt for prompt in read)
    assert prompts.entities.startswith("{context}")
    assert any("in two or three full sentences" in prompt for prompt in read)


def test_samples_differ_and_a_passage_has_its_own_draws(lm, tmp_path):
    draws = [
        written(lm, passages, make_loop(tmp_path / str(i), chunk=chunk, seed=seed), name=name)
        for i, (passages, chunk, seed, name) in enumerate(
            [((GATE, TARN), 16, 0, "a"), ((TARN, GATE), 2, 0, "a"), ((GATE,), 16, 1, "a"), ((GATE,), 16, 0, "b")]
        )
    ]
    assert draws[0] == draws[1][::-1]
    assert draws[0][0][0] != draws[0][0][1]
    assert draws[0][0] != draws[2][0]
    assert draws[0][0] != draws[3][0]


def test_without_entities_nothing_is_trained(lm, tmp_path):
    ((first, second),) = written(lm, [EMPTY], make_loop(tmp_path / "run"))
    assert first.problem == second.problem == "no entities"
    assert first.examples == ()
    lonely = Passage("t-0", "Telmouth", "A town.", ASKED)
    edits = [edit for row in written(lm, [lonely], make_loop(tmp_path / "one"), samples=6) for edit in row]
    assert {edit.problem for edit in edits} <= {"no pair of entities", "no entities"}
    assert any(edit.problem == "no pair of entities" for edit in edits)
    assert not any(edit.examples for edit in edits)


def test_sequences_keep_within_the_capacity(lm, tmp_path):
    edits = written(lm, [GATE], make_loop(tmp_path / "run", capacity=3), kind="triples", samples=6)
    assert max(len(edit.examples) for edit in edits[0]) == 3


def test_what_is_written_is_not_written_again(lm, tmp_path, monkeypatch):
    loop = make_loop(tmp_path / "run")
    first = written(lm, [GATE, TARN], loop)
    loop.journal.close()
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    monkeypatch.setattr(rounds, "sample", lambda *_, **__: pytest.fail("finished work was done again"))
    assert written(lm, [GATE, TARN], make_loop(tmp_path / "run")) == first
    monkeypatch.undo()
    journal = tmp_path / "cut" / "journal.jsonl"  # killed between the two steps
    journal.write_text("".join(line for line in journal.read_text().splitlines(True) if ": entities/" in line))
    assert written(lm, [GATE, TARN], make_loop(tmp_path / "cut")) == first


def test_a_passage_too_long_for_the_context_is_named(lm, tmp_path):
    long = GATE._replace(id="long-0", context=f"{GATE.context} " * 9)
    with pytest.raises(ValueError, match=r"'long-0' needs a context of \d+ .*max-tokens 8; the model has 256"):
        written(lm, [TARN, long], make_loop(tmp_path / "run"))


# ---------------------------------------------------------------------------------------------------------------------
# Prompts


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_prompts_name_the_passage_and_the_entities(style):
    prompts = load_prompts(style)
    relation = entigraph.Relation("r", GATE._replace(context="{first} {braces}"), ("Ada Perrin", "{second}"))
    filled = entigraph.relation_request(prompts, str, relation).prompt
    assert "{first} {braces}" in filled  # text of a passage is no placeholder
    assert "Ada Perrin and {second} are related in " in filled
    assert "Corrin Gate" in filled
    triple = entigraph.relation_request(prompts, str, relation._replace(entities=("x1", "x2", "x3"))).prompt
    assert "x1, x2 and x3" in triple


def test_a_broken_prompt_file_says_what_it_lacks(tmp_path):
    shutil.copytree(entigraph.PROMPT_FOLDER, tmp_path / "own")
    file = tmp_path / "own" / "triple.toml"
    file.write_text(file.read_text(encoding="utf-8").replace("{third}", "{thrid}"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"triple\.toml: 'chat' lacks the placeholder \{third\}"):
        load_prompts("chat", tmp_path / "own")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"triple\.toml"):
        load_prompts("raw", tmp_path / "own")
