"""Passages load or say what is wrong with them; completions become the training sequences of the paper."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args
from urllib.error import URLError

import huggingface_hub
import pytest

from seal_jax.domains import passages as passages_module
from seal_jax.domains import squad
from seal_jax.domains.passages import (
    EMBEDDED,
    STAND_IN,
    NotFetched,
    Passage,
    Question,
    Split,
    load_passages,
    shuffled,
)
from seal_jax.domains.squad import load_prompts, make_domain, parse, passage_only, prompt_variants
from seal_jax.graders.lexical import grade_by_match, normalise
from seal_jax.types import Example, SelfEdit

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("SEAL_DATA", REPOSITORY.parent / "shared" / "data"))

VARIANTS = [
    "implications",
    "implications-chain-of-thought",
    "implications-long",
    "implications-very-long",
    "no-prompt",
    "rewrite",
    "self-qa",
]
PASSAGE = Passage("tarn-0", "Tarn", "A tarn is a lake.", (Question("What is a tarn?", "a lake"),))


def texts(completion: str, **settings: Any) -> list[str]:
    """The training sequences of a completion, their titles checked and taken off, the passage's left out."""
    self_edit = parse(PASSAGE, completion, **settings)
    assert self_edit.completion == completion
    assert all(example.prompt == "" for example in self_edit.examples)
    assert all(example.completion.startswith("Tarn\n") for example in self_edit.examples)
    assert self_edit.examples[-1].completion == "Tarn\nA tarn is a lake."
    return [example.completion.removeprefix("Tarn\n") for example in self_edit.examples[:-1]]


# The embedded sets


@pytest.fixture(scope="module", params=["invented", "invented-300"])
def invented(request: pytest.FixtureRequest) -> dict[str, list[Passage]]:
    return {"train": load_passages(request.param, "train"), "held_out": load_passages(request.param, "held_out")}


def test_invented_counts(invented: dict[str, list[Passage]]):
    assert (len(invented["train"]), len(invented["held_out"])) in [(40, 20), (200, 100)]
    for passage in invented["train"] + invented["held_out"]:
        assert 45 <= len(passage.context.split()) <= 75, passage.title
        assert 4 <= len(re.findall(r'[.!?]"?(?:\s|$)', passage.context)) <= 6, passage.title
        assert 4 <= len(passage.questions) <= 6, passage.title


def test_invented_splits_share_nothing(invented: dict[str, list[Passage]]):
    everything = invented["train"] + invented["held_out"]
    for field in ("id", "title", "context"):
        assert len({getattr(passage, field) for passage in everything}) == len(everything)
    questions = [q.question for passage in everything for q in passage.questions]
    assert len(set(questions)) == len(questions)


def test_the_larger_invented_set_holds_the_smaller_and_mixes_kinds_of_text_alike_in_both_splits():
    for split in get_args(Split):
        smaller = load_passages("invented", split)
        assert load_passages("invented-300", split)[: len(smaller)] == smaller
    kinds = Counter((r["kind"], r["split"]) for r in json.loads(EMBEDDED["invented-300"][1].read_text("utf-8")))
    assert len(kinds) == 2 * 16
    assert all(count == {"train": 10, "held_out": 5}[split] for (_, split), count in kinds.items())


def test_invented_answers_are_in_the_passage_and_nowhere_else(invented: dict[str, list[Passage]]):
    golds: set[str] = set()
    for passage in invented["train"] + invented["held_out"]:
        for q in passage.questions:
            assert q.answer in passage.context, q
            assert 1 <= len(q.answer.split()) <= 4, q
            gold = normalise(q.answer)
            assert gold not in {"yes", "no", ""}
            given = normalise(f"{passage.title} {q.question}").split()
            assert not set(gold.split()) & set(given), f"{q} gives its answer away"
            assert gold not in golds, f"{q}: another question has this answer"
            golds.add(gold)


def test_invented_answers_are_right_and_others_wrong(invented: dict[str, list[Passage]]):
    domain = make_domain(load_prompts("implications", "raw"), str, grade_by_match)
    for passage in invented["train"] + invented["held_out"]:
        queries = domain.queries(passage)
        golds = [query.gold for query in queries]
        assert grade_by_match(queries, golds) == [True] * len(queries)
        assert grade_by_match(queries, golds[1:] + golds[:1]) == [False] * len(queries)


# Files


def record(title: str = "Tarn", context: str = "A tarn is a lake.", **more: Any) -> dict[str, Any]:
    return {"title": title, "context": context, "questions": [{"question": "q?", "answer": "a"}], **more}


def write(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "passages.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_a_file_is_loaded_whole_whatever_the_split(tmp_path: Path):
    source = write(tmp_path, [record(" Tarn\n"), record(context="Another.", completions=["one", ""], extra=1)])
    loaded = load_passages(source, "train")
    assert loaded == load_passages(source, "held_out")
    assert loaded[0].title == "Tarn"
    assert loaded[0].questions == (Question("q?", "a"),)
    assert loaded[0].completions == ()
    assert loaded[1].completions == ("one", "")


def test_ids_are_readable_unique_and_stable(tmp_path: Path):
    titles = ["Tarn", "Tarn", "Beyoncé & co.", "東京"]
    source = write(tmp_path, [record(title, f"Context {i}.") for i, title in enumerate(titles)])
    ids = [passage.id for passage in load_passages(source, "train")]
    assert len(set(ids)) == 4
    assert ids[0] == "tarn-71a1de38"  # of the text alone: the same on every machine, today and later
    assert ids[2].startswith("beyonce-co-")
    assert ids[3].startswith("passage-")
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in ids)  # fit to name a file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"title": "x",]', r"passages\.json: not JSON: line 1, column \d+"),
        ("[\n{}\n{}]", r"not JSON: line 3, column 1"),
        ('[{"title": "x", "title": "y"}]', "an object has the name 'title' twice"),
        ("[" * 100_000, "recursion"),
        ({"title": "x"}, r"\$: Expected `array`, got `object`; found {'title': 'x'}\. Expected \[{title, context, "),
        ([], "no passages"),
        (["x"], r"\$\[0\]: Expected `object`, got `str`; found 'x'"),
        (
            [record(), {"context": "c", "questions": [{"question": "q", "answer": "a"}]}],
            r"\$\[1\]: Object missing required field `title`; found {'context'",
        ),
        ([record(title=" ")], r"\$\[0\]\.title: Expected text that is not blank; found ' '"),
        ([record(context="")], r"\$\[0\]\.context: Expected text that is not blank; found ''"),
        ([record(context=3)], r"\$\[0\]\.context: Expected `str`, got `int`; found 3"),
        ([record(context=None)], r"\$\[0\]\.context: Expected `str`, got `null`; found None"),
        ([{"title": "t", "context": "c"}], r"\$\[0\]: Object missing required field `questions`"),
        ([{"title": "t", "context": "c", "questions": []}], r"\$\[0\]\.questions: Expected `array` of length >= 1"),
        (
            [{"title": "t", "context": "c", "questions": "q"}],
            r"\$\[0\]\.questions: Expected `array`, got `str`; found 'q'",
        ),
        (
            [{"title": "t", "context": "c", "questions": [{"question": "q", "answer": "a"}, {"question": "q"}]}],
            r"\$\[0\]\.questions\[1\]: Object missing required field `answer`",
        ),
        (
            [{"title": "t", "context": "c", "questions": [{"question": "", "answer": "a"}]}],
            r"\$\[0\]\.questions\[0\]\.question: Expected text that is not blank",
        ),
        (
            [{"title": "t", "context": "c", "questions": [{"question": "q", "answer": ["a"]}]}],
            r"\$\[0\]\.questions\[0\]\.answer: Expected `str`, got `array`; found \['a'\]",
        ),
        (
            [{"title": "t", "context": "c", "questions": ["q"]}],
            r"\$\[0\]\.questions\[0\]: Expected `object`, got `str`; found 'q'",
        ),
        ([record(completions="x")], r"\$\[0\]\.completions: Expected `array`, got `str`; found 'x'"),
        ([record(completions=["x", 4])], r"\$\[0\]\.completions\[1\]: Expected `str`, got `int`; found 4"),
        ([record(), record("B", "b"), record("C")], "passage 2: has the same context as passage 0"),
    ],
)
def test_a_file_that_is_not_right_says_where(tmp_path: Path, content: Any, message: str):
    with pytest.raises(ValueError, match=message) as error:
        load_passages(write(tmp_path, content), "train")
    assert "passages.json" in str(error.value)


EDIT = {
    "stage": "self_edits_round_0", "passage": "tarn-0", "title": "Tarn", "context": "A tarn is a lake.",
    "completion": "1. It is wet.", "answers": [{"question": "q?", "gold": "a", "after": None}],
}  # fmt: skip


def test_recorded_self_edits_of_a_run(tmp_path: Path):
    lines = [EDIT, EDIT | {"completion": "2.\u2028Cold."}]  # the latter ends a line of text, but no line of JSON
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "self_edits.jsonl").write_text(text, encoding="utf-8")
    (passage,) = passages_module.load_recorded(tmp_path)
    assert passage.questions == (Question("q?", "a"),)
    assert passage.completions == ("1. It is wet.", "2.\u2028Cold.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(EDIT)[:-1], r"not JSON: line 1, column \d+: Expecting.*; expected one self-edit a line, {stage, "),
        ("3", r"\$: Expected `object`, got `int`; found 3"),
        (json.dumps({**EDIT, "title": None}), r"\$\.title: Expected `str`, got `null`"),
        (json.dumps({**EDIT, "answers": [3]}), r"\$\.answers\[0\]: Expected `object`, got `int`"),
        (json.dumps({**EDIT, "answers": [{"question": "q"}]}), r"\$\.answers\[0\]: .* missing required field `gold`"),
        (json.dumps({**EDIT, "answers": []}), r"\$\.answers: Expected `array` of length >= 1"),
        (json.dumps({**EDIT, "completion": 3}), r"\$\.completion: Expected `str`, got `int`; found 3"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_recorded_self_edit_that_is_not_right_says_where(tmp_path: Path, line: str, message: str):
    (tmp_path / "self_edits.jsonl").write_text(f"{json.dumps(EDIT)}\n{line}\n")
    with pytest.raises(ValueError, match=rf"self_edits\.jsonl: line 2: .*{message}"):
        passages_module.load_recorded(tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path):
    path = tmp_path / "passages.json"
    path.write_bytes(b"[\xff\xfe]")
    with pytest.raises(ValueError, match=r"not UTF-8 text \(byte 1\)"):
        load_passages(str(path), "train")


def test_sources_that_do_not_exist(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="did you mean invented"):
        load_passages("inveted", "train")
    with pytest.raises(FileNotFoundError, match="invented, invented-300, squad, tfds:squad, or an existing file"):
        load_passages("/nowhere/at/all.json", "train")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_passages(str(tmp_path), "train")
    with pytest.raises(ValueError, match="expected 'train' or 'held_out'"):
        load_passages("invented", "validation")  # type: ignore[arg-type]


@pytest.mark.skipif(not (DATA / "squad_dev").exists(), reason="the reference's passages are not here (set SEAL_DATA)")
@pytest.mark.parametrize("name", ["base", "gpt4_1", "iter2"])
def test_the_references_own_files_and_completions(name: str):
    loaded = load_passages(str(DATA / "squad_dev" / f"{name}.json"), "held_out")
    assert len(loaded) == len({passage.id for passage in loaded}) == 40
    for passage in loaded:
        self_edit = parse(passage, passage.completions[0])
        assert self_edit.problem is None
        assert 2 <= len(self_edit.examples) <= 30
        assert self_edit.examples[-1].completion == f"{passage.title}\n{passage.context}"


# Order


def test_the_order_depends_on_the_seed_alone():
    loaded = load_passages("invented", "train")
    assert shuffled(loaded, 3) == shuffled(loaded, 3)
    assert shuffled(loaded, 3) != shuffled(loaded, 4)
    assert sorted(p.id for p in shuffled(loaded, 3)) == sorted(p.id for p in loaded)
    code = (
        "from seal_jax.domains.passages import *\n"
        "print(*[p.id for p in shuffled(load_passages('invented', 'train'), 3)])"
    )
    for hash_seed in ("1", "2"):
        other = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, cwd=REPOSITORY, env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert other.stdout.split() == [p.id for p in shuffled(loaded, 3)]


# SQuAD as published. No network here: small data in the publishers' form stands in at the call that loads it.

ROWS = [
    {"title": title, "context": context, "question": question, "answers": {"text": golds, "answer_start": starts}}
    for title, context, question, golds, starts in (
        ("Sierra_Leone", "One.", "q1?", ["a", "b"], [0, 1]),
        ("Beyonc%C3%A9", "Two. ", "q2?", ["c"], [0]),
        ("Sierra_Leone", "One.", " q3?", ["d"], [0]),
        ("Sierra_Leone", "One.", "  ", ["e"], [0]),
        ("Sierra_Leone", "Three.", "q4?", [], []),
        ("Sierra_Leone", "Three.", "q5?", [" "], [0]),
        ("Sierra_Leone", "Four.", "q6?", ["f"], [0]),
    )
]


def no_network(request: Any, timeout: float) -> Any:
    raise URLError(socket.gaierror(-2, "Name or service not known"))


def check_grouped(loaded: list[Passage]) -> None:
    assert [p.title for p in loaded] == ["Sierra Leone", "Beyoncé", "Sierra Leone"]
    assert [p.context for p in loaded] == ["One.", "Two.", "Four."]
    assert loaded[0].questions == (Question("q1?", "a"), Question("q3?", "d"))
    assert loaded[1].questions == (Question("q2?", "c"),)


@pytest.mark.parametrize(("split", "published"), [("train", "train"), ("held_out", "validation")])
def test_squad_from_a_stand_in_hugging_face_data_set(monkeypatch: pytest.MonkeyPatch, split: Any, published: str):
    import datasets

    def load_dataset(name: str, *, split: str) -> Any:
        assert (name, split) == ("rajpurkar/squad", published)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(passages_module, "urlopen", lambda request, timeout: io.BytesIO())
    check_grouped(load_passages("squad", split))


@pytest.mark.parametrize(("split", "published"), [("train", "train"), ("held_out", "validation")])
def test_squad_from_a_stand_in_tensorflow_datasets_builder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, split: Any, published: str
):
    """A real builder of SQuAD's features: written as array_record, read by `as_data_source`, without TensorFlow."""
    import numpy as np
    import tensorflow_datasets as tfds

    class StandInSquad(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            text = tfds.features.Text()
            answers = tfds.features.Sequence({"text": text, "answer_start": np.int32})
            columns = {"title": text, "context": text, "question": text, "answers": answers}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(columns), disable_shuffling=True
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            other = [{**ROWS[0], "context": "Of the other split."}]
            return {name: enumerate(ROWS if name == published else other) for name in ("train", "validation")}

        def _generate_examples(self) -> Any:
            raise NotImplementedError

    monkeypatch.setattr(tfds, "builder", lambda name: StandInSquad(data_dir=tmp_path))
    monkeypatch.setattr(passages_module, "urlopen", lambda request, timeout: io.BytesIO())
    check_grouped(load_passages("tfds:squad", split))
    monkeypatch.setattr(passages_module, "urlopen", no_network)
    check_grouped(load_passages("tfds:squad", split))  # from the cache
    assert "tensorflow" not in sys.modules


def test_no_network_and_nothing_cached(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def load_dataset(name: str, *, split: str) -> Any:
        raise ConnectionError("Couldn't reach 'rajpurkar/squad' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(passages_module, "urlopen", no_network)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    with pytest.raises(NotFetched) as error:
        load_passages("squad", "train")
    for part in ("rajpurkar/squad", "Couldn't reach", datasets.config.HF_CACHE_HOME, "python -c", "--data FILE"):
        assert str(part) in str(error.value)
    assert huggingface_hub.constants.HF_HUB_OFFLINE  # it is not asked again and again


@pytest.mark.parametrize("reason", [ssl.SSLCertVerificationError("no issuer"), TimeoutError("timed out")])
def test_what_is_not_a_lack_of_a_network_does_not_last(monkeypatch: pytest.MonkeyPatch, reason: OSError):
    import datasets

    seen, modules = [], (datasets.config, huggingface_hub.constants)

    def load_dataset(name: str, *, split: str) -> Any:
        seen.append({module.HF_HUB_OFFLINE for module in modules})
        return datasets.Dataset.from_list(ROWS)

    def fails(request: Any, timeout: float) -> Any:
        raise URLError(reason)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(passages_module, "urlopen", fails)
    for module in modules:
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    check_grouped(load_passages("squad", "train"))
    assert seen == [{isinstance(reason, TimeoutError)}]
    assert not any(module.HF_HUB_OFFLINE for module in modules)


def test_an_endpoint_without_a_scheme_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "hub.example.org")
    with pytest.raises(NotFetched, match=r"ValueError: unknown url type.*hub\.example\.org"):
        load_passages("squad", "train")


def test_stand_ins_are_passages_like_any_others():
    found = load_passages(STAND_IN, "train")
    assert len({passage.id for passage in found}) == len(found) > 4_000
    assert max(len(passage.context.split()) for passage in found) == 600


def test_no_network_for_tensorflow_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("squad", data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda name: builder)
    monkeypatch.setattr(passages_module, "urlopen", no_network)
    with pytest.raises(FileNotFoundError, match=r"tensorflow-datasets.*Name or service not known.*--data FILE"):
        load_passages("tfds:squad", "train")


def test_tensorflow_datasets_can_begin_its_download(tmp_path: Path):
    """It reads its checksums with `importlib_resources`, which it does not list among what it needs."""
    import tensorflow_datasets as tfds

    assert any("train-v1.1.json" in url for url in tfds.builder("squad", data_dir=tmp_path).url_infos)


# Training sequences


def test_a_sequence_a_line_and_the_passage_last():
    assert texts("1. A tarn is small.\n\n  2. It is cold. \n") == ["1. A tarn is small.", "2. It is cold."]


def test_rules_part_sequences_too():
    assert texts("one --- two\n---\nthree\n-----\n") == ["one", "two", "three"]


def test_a_line_that_announces_the_list_is_dropped():
    assert texts("Here are some implications:\n1. One.\n2. Two.") == ["1. One.", "2. Two."]
    assert texts("One.\nTwo.\n1. Three.") == ["One.", "Two.", "1. Three."]
    assert texts("1. One.") == ["1. One."]
    assert texts("1. One.\n10. Two.") == ["1. One.", "10. Two."]


def test_self_qa_is_split_before_each_question():
    raw = " What is it?\nAnswer: A lake.\n\nQuestion 2: Cold?\nAnswer: Yes.\nindeed"  # the prompt ended "Question 1:"
    assert texts(raw, split="question") == [
        "Question 1: What is it?\nAnswer: A lake.",
        "Question 2: Cold?\nAnswer: Yes.\nindeed",
    ]
    chat = "Sure!\n\n**Question 1:** What is it?\nAnswer: A lake.\n\n---\n\n**Question 2:** Cold?\nAnswer: Yes."
    assert texts(chat, split="question") == [
        "**Question 1:** What is it?\nAnswer: A lake.",
        "**Question 2:** Cold?\nAnswer: Yes.",
    ]
    assert texts("What is it?\nAnswer: A lake.", split="question") == ["Question 1: What is it?\nAnswer: A lake."]


def test_only_the_conclusions_of_a_chain_of_thought():
    completion = "It says what a tarn is.\n\n**Implications:**\n1. A tarn holds water."
    assert texts(completion, keep_after="Implications:") == ["1. A tarn holds water."]
    assert texts("No heading.\nTwo.", keep_after="Implications:") == ["No heading.", "Two."]


def test_the_cap_spares_the_passage():
    many = "\n".join(f"line {i}" for i in range(50))
    assert texts(many) == [f"line {i}" for i in range(29)]  # with the passage, 30
    assert texts(many, max_examples=3) == ["line 0", "line 1"]
    without = parse(PASSAGE, many, include_passage=False, max_examples=3)
    assert [example.completion for example in without.examples] == ["Tarn\nline 0", "Tarn\nline 1", "Tarn\nline 2"]


@pytest.mark.parametrize(
    ("completion", "problem", "settings"),
    [
        ("", "empty completion", {}),
        (" \n\t ", "empty completion", {}),
        ("---\n---", "no training sequence", {}),
        ("---", "no training sequence", {"split": "question"}),
        ("Thinking.\nImplications:\n", "no training sequence", {"keep_after": "Implications:"}),
    ],
)
def test_nothing_written_is_no_training_not_even_on_the_passage(completion: str, problem: str, settings: Any):
    assert parse(PASSAGE, completion, **settings) == SelfEdit(completion, (), problem)


def test_the_passage_alone():
    assert passage_only(PASSAGE).examples == (Example("", "Tarn\nA tarn is a lake."),)
    assert passage_only(PASSAGE).problem is None


# Prompts


def test_the_seven_variants_of_the_paper_and_one_for_small_models():
    assert prompt_variants() == sorted([*VARIANTS, "facts"])


def test_the_prompt_for_small_models_shows_its_example_before_the_passage():
    prompt = make_domain(load_prompts("facts", "chat"), str, grade_by_match).prompt(PASSAGE)
    assert prompt.index("Corrin Gate") < prompt.index("A tarn is a lake.")
    assert prompt.rstrip().endswith("Facts about Tarn:")


@pytest.mark.parametrize("style", ["raw", "chat"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_shows_the_passage_and_hides_it_from_the_question(variant: str, style: Any):
    prompts = load_prompts(variant, style)
    domain = make_domain(prompts, lambda text: f"<{text}>", grade_by_match)
    prompt = domain.prompt(PASSAGE)
    assert prompt.startswith("<") and prompt.endswith(">")
    assert "Tarn\nA tarn is a lake." in prompt
    assert "{" not in prompt
    (query,) = domain.queries(PASSAGE)
    assert query.question == "What is a tarn?" and query.gold == "a lake"
    assert "Topic: Tarn\nWhat is a tarn?" in query.prompt
    assert "a lake" not in query.prompt.lower()
    assert domain.parse(PASSAGE, "one\ntwo").problem is None


def test_the_default_raw_prompts_are_the_papers_form():
    domain = make_domain(load_prompts("implications", "raw"), str, grade_by_match)
    assert domain.prompt(PASSAGE) == (
        "Let's read the following passage and produce a list of implications derived directly or indirectly from the "
        "content.\n\nPassage:\nTarn\nA tarn is a lake.\n\nImplications:\n"
    )
    assert domain.queries(PASSAGE)[0].prompt == (
        "Let's answer a question directly and concisely.\nQuestion: Topic: Tarn\nWhat is a tarn?\nAnswer:\n"
    )


def test_self_qa_and_chain_of_thought_bring_their_own_splitting():
    qa = make_domain(load_prompts("self-qa", "raw"), str, grade_by_match)
    assert qa.prompt(PASSAGE).endswith("Question 1:")
    assert len(qa.parse(PASSAGE, " A?\nAnswer: b.\nQuestion 2: C?\nAnswer: d.").examples) == 3
    thought = make_domain(load_prompts("implications-chain-of-thought", "raw"), str, grade_by_match)
    assert len(thought.parse(PASSAGE, "Hm.\nWell.\nImplications:\n1. One.").examples) == 2


def test_braces_in_a_passage_are_text():
    braces = PASSAGE._replace(title="{context}", context="Set {title} and {x}.")
    domain = make_domain(load_prompts("implications", "raw"), str, grade_by_match)
    assert "Passage:\n{context}\nSet {title} and {x}.\n" in domain.prompt(braces)


def test_the_domain_passes_its_settings_on():
    domain = make_domain(
        load_prompts("implications", "raw"), str, grade_by_match, max_examples=2, include_passage=False
    )
    examples = domain.parse(PASSAGE, "one\ntwo\nthree").examples
    assert [example.completion for example in examples] == ["Tarn\none", "Tarn\ntwo"]


def prompt_file(tmp_path: Path, **changes: str) -> Path:
    table = {"split": "line", "raw": "{title} {context}", "chat": "{title} {context}", **changes}
    path = tmp_path / "mine.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items() if value != "-"))
    return path


def test_a_prompt_file_of_ones_own(tmp_path: Path):
    path = prompt_file(tmp_path, raw='{"json": "{title}: {context}"}\n')
    prompts = load_prompts(path, "raw")
    assert (prompts.name, prompts.style, prompts.split, prompts.keep_after) == ("mine", "raw", "line", None)
    assert make_domain(prompts, str, grade_by_match).prompt(PASSAGE) == '{"json": "Tarn: A tarn is a lake."}\n'
    question = tmp_path / "ask.toml"
    question.write_text('raw = "{title}? {question}"\nchat = "{title}! {question}"\n')
    domain = make_domain(load_prompts("rewrite", "chat", question), str, grade_by_match)
    assert domain.queries(PASSAGE)[0].prompt == "Tarn! What is a tarn?"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw": "{title}"}, r"'raw' lacks the placeholder {context}; it needs {title}, {context}"),
        ({"raw": "{title} {context} {contxt}"}, r"unknown placeholder {contxt}; did you mean {context}\?"),
        ({"raw": "{title} {context} {zzz}"}, r"unknown placeholder {zzz}; known are"),
        ({"raw": " "}, r"\$\.raw: Expected text that is not blank; found ' '"),
        (
            {"chat": "-"},
            r"\$: Object missing required field `chat`; .* under the keys raw, chat, split \(.*\), keep_after",
        ),
        ({"splt": "line"}, r"unknown field `splt`; .* under the keys raw, chat, split \(.*\), keep_after \(optional\)"),
        ({"split": "word"}, r"\$\.split: Invalid enum value 'word'; .*split \('line' or 'question'\)"),
    ],
)
def test_a_prompt_file_that_is_not_right_says_why(tmp_path: Path, changes: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message) as error:
        load_prompts(prompt_file(tmp_path, **changes), "raw")
    assert "mine.toml" in str(error.value)


def test_prompts_that_do_not_exist(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="did you mean implications-long"):
        load_prompts("implication-long", "raw")
    with pytest.raises(FileNotFoundError, match="The variants are facts, implications, "):
        load_prompts("question", "raw")  # the question prompt is no self-edit prompt
    with pytest.raises(ValueError, match="expected 'raw'"):
        load_prompts("implications", "base")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"no prompt file .*ask\.toml"):
        load_prompts("implications", "raw", tmp_path / "ask.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text('split = "line"\nraw = \n')
    with pytest.raises(ValueError, match=r"bad\.toml: not TOML: .*line 2"):
        load_prompts(bad, "raw")


def test_the_modules_load_no_data_library():
    """`datasets` and tensorflow-datasets take seconds to import: only their own sources may pay for it."""
    code = (
        "import sys, seal_jax.domains.squad as s; s.load_passages('invented', 'train')\n"
        "print([m for m in ('datasets', 'tensorflow_datasets', 'tensorflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert found.stdout.strip() == "[]"


def test_squad_re_exports_what_passages_defines():
    assert squad.load_passages is passages_module.load_passages
    assert squad.Passage is passages_module.Passage


LAMP = Passage("lamp", "The lamp", "Tobin Aske is the keeper of the lamp. It burns fish oil.", ())


def test_lines_about_something_else_are_left_out_and_counted():
    lines = "1. Tobin Aske keeps the lamp.\n2. The Corrin Gate is made of blue stone.\n- It burns oil."
    found = squad.parse(LAMP, lines, least_grounded=0.7)
    kept = ["1. Tobin Aske keeps the lamp.", "- It burns oil.", LAMP.context]
    assert [example.completion for example in found.examples] == [f"{LAMP.title}\n{line}" for line in kept]
    assert (found.left_out, found.problem) == (1, None)
    nothing = squad.parse(LAMP, lines.splitlines()[1], least_grounded=0.7)
    assert (nothing.examples, nothing.problem, nothing.left_out) == ((), "no sentence about the passage", 1)
    everything = squad.parse(LAMP, lines)
    assert len(everything.examples) == 4 and everything.left_out == 0
    assert squad.grounded("It is so.", LAMP) == 0  # says nothing
    assert squad.without_number("2) It burns.") == "It burns." and squad.without_number("1843 it was") == "1843 it was"


def test_of_a_paragraph_the_sentences_about_something_else_are_left_out():
    gate = "The Corrin Gate is in Telmouth."
    paragraph = f"1. {gate} The lamp burns fish oil.  Dr. Aske keeps it! The toll is paid in salt."
    found = squad.parse(LAMP, f"{paragraph}\n{gate}\nThe lamp  burns. It burns oil.", least_grounded=0.7)
    kept = ["1. The lamp burns fish oil. Dr. Aske keeps it!", "The lamp  burns. It burns oil."]
    assert [example.completion for example in found.examples[:-1]] == [f"{LAMP.title}\n{line}" for line in kept]
    assert (found.left_out, found.problem) == (3, None)
    nothing = squad.parse(LAMP, f"{gate} It is so.", least_grounded=0.7)
    assert (nothing.examples, nothing.problem, nothing.left_out) == ((), "no sentence about the passage", 2)
    first, second = "Question 1: What burns oil?\nAnswer: the lamp. Salt.", f"Question 2: {gate}\nAnswer: Telmouth."
    asked = squad.parse(LAMP, f"{first}\n{second}", "question", least_grounded=0.3)
    assert (asked.examples[0].completion, len(asked.examples), asked.left_out) == (f"{LAMP.title}\n{first}", 2, 1)


def test_the_prompt_with_a_worked_example_trains_on_no_sentence_about_it():
    copied = "The Corrin Gate is in Telmouth.\nThe toll of the Corrin Gate is paid in salt.\nThe lamp burns fish oil."
    for style in ("raw", "chat"):
        prompts = squad.load_prompts("facts", style)
        own = prompts.self_edit.split("{context}")[0]
        assert "Corrin Gate" in own and prompts.grounded > 0
        edit = squad.make_domain(prompts, str, lambda queries, answers: []).parse(LAMP, copied)
        assert (len(edit.examples), edit.left_out) == (2, 2)
    assert [name for name in squad.prompt_variants() if squad.load_prompts(name, "raw").grounded] == ["facts"]
