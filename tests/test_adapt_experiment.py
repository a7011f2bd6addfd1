"""The experiment that teaches a document, whole, on a tiny random model: rows, tables, the exam, and nothing lost."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import adapt
from experiments.adapt import PRESETS, SMOKE, Config
from seal_jax.domains.passages import Question, load_questions
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.io import peft
from seal_jax.run import adapted, command, documents, runtime, session
from seal_jax.run.adapted import Answer, load_adapted
from seal_jax.run.documents import side_by_side
from seal_jax.run.journal import RunFolder
from seal_jax.run.terminal import plain
from seal_jax.seal import teaching
from seal_jax.seal.teaching import Teaching
from seal_jax.types import PROJECTIONS, Compute
from tests import tiny, torn_files
from tests.test_cpt import earlier_run

DOCUMENT = """# Hollin Skerry
The island was settled in 1764 by the cooper Edda Marsk. Its only town is Quern.

## The lamp
Its keeper is Tobin Aske, who also repairs umbrellas. The lamp burns fish oil.
"""
EXAM = [
    {"question": "Who settled Hollin Skerry?", "answer": "Edda Marsk"},
    {"question": "Who is the keeper of the lamp?", "answer": "Tobin Aske"},
]
WRITTEN = {  # a random model writes no questions: these are what it would have written, by passage title
    "Hollin Skerry": "Question: Which town is the only one?\nAnswer: Quern\nQuestion: Who came there?\nAnswer: Me",
    "Hollin Skerry: The lamp": "Question: What does the lamp burn?\nAnswer: fish oil",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """Two passages, two candidates, two questions to choose by and an exam, on one device."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "isle.md").write_text(DOCUMENT)
    (folder / "exam.json").write_text(json.dumps(EXAM))
    return dataclasses.replace(
        SMOKE,
        model=str(tiny.model_folder(tmp_path_factory.mktemp("model"))),
        document=folder / "isle.md",
        exam=folder / "exam.json",
        sampling=Sampling(max_tokens=12),
        answer_tokens=16,
        max_sequences=3,
        inner=FineTuning(PROJECTIONS, rank=4, alpha=8.0, learning_rate=2e-2, epochs=3),
        teaching=Teaching(candidates=2, edits=1, learning_rates=(2e-2, 4e-2), questions=4),
    )


COMPUTE = Compute(chunk=2, width_cuts=(), devices=1)


def execute(config: Config, folder: Path) -> dict:
    return adapt.execute(adapt.EXPERIMENT, config, COMPUTE, session.Place(folder), command="the command")


@pytest.fixture(autouse=True)
def questions(monkeypatch):
    parse = teaching.parse_questions
    monkeypatch.setattr(teaching, "parse_questions", lambda text: [q for said in WRITTEN.values() for q in parse(said)])
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    patch, parse = pytest.MonkeyPatch(), teaching.parse_questions
    patch.setattr(teaching, "parse_questions", lambda text: [q for said in WRITTEN.values() for q in parse(said)])
    patch.setattr(sys, "stdin", io.StringIO())
    folder = tmp_path_factory.mktemp("undisturbed")
    yield execute(config, folder), folder
    patch.undo()


def without_seconds(results: dict) -> dict:
    """What the seed settles: all but the times."""
    results = json.loads(json.dumps(results))
    assert results.pop("timings")
    assert results.pop("machine")
    return results


def test_the_base_model_and_the_kept_adapter_have_their_rows(undisturbed):
    results, folder = undisturbed
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert [row["name"] for row in results["rows"]] == ["base", "taught"]
    assert [(row["passages"], row["questions"]) for row in results["rows"]] == [(2, 2)] * 2
    likely = [row["log_likelihood"]["mean"] for row in results["rows"]]
    assert likely[0] != likely[1]
    assert "best of 2 candidates, by these questions" in results["rows"][1]["label"]
    assert "Hollin Skerry" in (folder / "report.html").read_text()


def test_every_candidate_and_every_question_is_in_a_table(undisturbed):
    results, _ = undisturbed
    candidates, questions, exam = results["tables"]
    assert [row[1] for row in candidates["rows"]] == [2e-2, 4e-2]
    assert [row[0] for row in candidates["rows"]].count(f"{results['chosen_candidate'] + 1}, kept") == 1
    best = max(candidates["rows"], key=lambda row: row[-1])  # no answer of a random model is right: the likelier ones
    assert best[0].endswith(", kept")
    assert [row[:2] for row in questions["rows"]] == [
        ["Which town is the only one?", "Quern"],
        ["What does the lamp burn?", "fish oil"],
    ]
    assert exam["title"] == "Your exam: 0 of 2 right before, 0 of 2 after"
    assert [entry["question"] for entry in results["exam"]["questions"]] == [entry["question"] for entry in EXAM]
    assert len(results["exam"]["after"]["answers"]) == 2


def test_what_was_learnt_is_on_disk_and_no_question_is_in_it(undisturbed):
    _, folder = undisturbed
    records = [json.loads(line) for line in (folder / "self_edits.jsonl").read_text().splitlines()]
    assert [record["sample"] for record in records] == [0, 1, 0, 1]
    assert len({record["passage"] for record in records}) == 2
    assert sum(record["kept"] for record in records) == 2  # the chosen candidate's, one a passage
    assert all(record["losses"] for record in records[:2])
    assert not [s for record in records for s in record["sequences"] if "?" in s and "Which town" in s]


@pytest.mark.parametrize("after", [3, 5, 6])
def test_killed_and_started_again_it_ends_with_the_same_numbers(undisturbed, config, tmp_path, killed_after, after):
    with killed_after(after):
        execute(config, tmp_path)
    assert without_seconds(execute(config, tmp_path)) == without_seconds(undisturbed[0])


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_folder_gives_the_same_numbers_or_a_sentence(undisturbed, config, tmp_path, seed):
    """As tests/torn_files.py does it in processes, for all experiments."""
    results, folder = undisturbed
    run, draw = shutil.copytree(folder, tmp_path / "run"), random.Random(seed)
    torn_files.half(run, draw)
    how = torn_files.damage(run, folder, draw)
    try:
        again = execute(config, run)
    except (ValueError, OSError) as error:
        assert str(run) in str(error), how
    else:
        assert without_seconds(again) == without_seconds(results), how


def test_a_finished_run_answers_other_questions_and_saves_and_never_waits(undisturbed, config, tmp_path, capsys):
    """What is done afterwards is no part of the run; no terminal, no prompt."""
    results, folder = undisturbed
    later = dataclasses.replace(config, ask=("Who?", "What is it?"), save=tmp_path / "kept", merged=True)
    again = execute(later, folder)
    asked = again["tables"].pop(0)  # on the page, beside what it showed before
    assert [row[0] for row in asked["rows"]] == ["Who?", "What is it?"]
    assert without_seconds(again) == without_seconds(results)
    said = capsys.readouterr().out
    assert f"Adapter (PEFT): {tmp_path / 'kept'}\n" in said
    said = said[said.index("\nWho?") :]
    assert said.index("before") < said.index("after") < said.index("\nWhat is it?")
    assert (tmp_path / "kept" / "merged" / "model.safetensors").is_file()
    # and the saved adapter is asked by itself: as it answered before
    asked = load_adapted(tmp_path / "kept", compute=COMPUTE).ask_all(["Who?", "What is it?"])
    assert plain(side_by_side(asked)).strip() == said.strip()


def test_an_exam_set_later_is_taken_without_training_again(undisturbed, config, tmp_path, monkeypatch):
    results, folder = undisturbed
    (tmp_path / "later.json").write_text(json.dumps(EXAM[:1]))
    monkeypatch.setattr(teaching.training, "train", None)
    again = execute(dataclasses.replace(config, exam=tmp_path / "later.json"), folder)
    assert again["exam"]["after"]["answers"] == results["exam"]["after"]["answers"][:1]
    assert execute(config, folder)["exam"] == results["exam"]


def test_what_the_model_does_not_ask_is_said(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teaching, "parse_questions", lambda text: [])
    results = execute(dataclasses.replace(config, exam=None), tmp_path)
    assert results["rows"] == []
    assert "The model wrote no question whose answer stands in the document" in capsys.readouterr().out


def test_a_seal_trained_model_writes_and_learns_and_the_saved_adapter_holds_its_rounds(config, tmp_path):
    run, rounds = earlier_run(tmp_path / "squad", Path(config.model))
    changed = dataclasses.replace(config, seal=run, exam=None, save=tmp_path / "kept")
    results = execute(changed, tmp_path / "run")
    assert results["settings"]["seal"] == str(run)
    model = runtime.load(config.model, dtype="float32", style="auto", devices=1).model
    kept = peft.load_peft(tmp_path / "kept", model)
    assert next(iter(kept.a.values())).shape[-1] == 2 + 2 + config.inner.rank
    for name in ("q_proj", "up_proj"):  # the rounds stand first, in order; the last columns are the document's
        found = kept.scale * np.einsum("ldr,lrf->ldf", kept.a[name][..., :4], kept.b[name][:, :4])
        expected = sum(r.scale * np.einsum("ldr,lrf->ldf", r.a[name], r.b[name]) for r in rounds)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_conversation_ends_at_an_empty_line_and_at_the_end_of_input(tmp_path, monkeypatch, capsys):
    class Echo:
        topic = "isles"

        def ask(self, question):
            if question == "long":
                raise ValueError("a question of 9 tokens")
            return Answer(question, "no", "yes", after_cut=True)

    folder = RunFolder(tmp_path / "run", {})
    for ends in (["Who?", "long", ""], ["Who?", "long"]):
        lines = iter(ends)

        def read(prompt, lines=lines):
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        documents.converse(Echo(), folder)
        assert documents.keep_answers(folder, []) == [Answer("Who?", "no", "yes", after_cut=True)]
        said = capsys.readouterr().out
        assert said.startswith("Ask about isles; an empty line ends.")
        assert "| yes … (cut off)" in said
        assert "error: a question of 9 tokens" in said


def test_an_adapter_that_was_replaced_answers_anew(tmp_path):
    """Answers are those of the adapter that is asked, though another one answered in the same folder before."""

    def ask(adapter: str, *answers: Answer) -> list[Answer]:
        folder = RunFolder(tmp_path / "run", {"inputs": adapter})
        folder.once("memory", lambda: adapter)  # the plan of a run: it bars nobody
        kept = documents.keep_answers(folder, answers)
        folder.close()
        return kept

    first, second = Answer("Who?", "no", "Edda"), Answer("Who?", "no", "Tobin")
    assert ask("first", first) == [first]
    assert ask("second", second) == [second]
    assert ask("first", first) == [first]
    file = tmp_path / "run" / "answers.jsonl"
    file.write_bytes(file.read_bytes().replace(b"Edda", b"Eddy") + b"[1]\n\xff\n{")
    assert ask("first") == []
    assert ask("second") == [second]


def test_ctrl_c_ends_a_conversation_also_while_the_model_answers(tmp_path, monkeypatch, capsys):
    class Slow:
        topic = "the isle"

        def ask(self, question):
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", lambda prompt: "Who?")
    documents.converse(Slow(), RunFolder(tmp_path / "run", {}))
    assert capsys.readouterr().out.endswith("\n\n")


def test_what_has_no_verdict_is_listed(config, tmp_path, monkeypatch):
    """The base model's answers, the kept adapter's, and the exam's."""
    exam = tmp_path / "exam.json"
    exam.write_text(json.dumps([{"question": "Who keeps the lamp?", "answer": "Tobin Aske"}]))
    made = session.make_judge
    monkeypatch.setattr(
        session,
        "make_judge",
        lambda *a, **k: made(*a, **k)._replace(grade=lambda queries, answers: [None] * len(queries)),
    )
    results = execute(dataclasses.replace(config, exam=exam), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "ungraded.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"base", "candidates", "exam, before", "exam, after"}
    assert results["ungraded"] == len(lines)


def test_editors_are_told_every_keyword_of_adapt():
    parameters = inspect.signature(adapted.adapt).parameters.values()
    keywords = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {name: told.__forward_arg__ for name, told in adapted._Settings.__annotations__.items()} == keywords


def test_a_long_word_is_cut_too():
    assert session.cut("a" * 60, 36) == "a" * 32 + " ..."
    assert session.cut("two words", 36) == "two words"
    assert len(session.cut("some words " * 9, 36)) <= 36


def test_answers_stand_side_by_side_in_the_width_there_is():
    lines = side_by_side([Answer("Who keeps the lamp?", "Nobody that one knows of", "")], width=40).splitlines()
    assert lines[1:] == [
        "Who keeps the lamp?",
        "  before            | after",
        "  Nobody that one   | (nothing)",
        "  knows of          |",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"document": None}, r"nothing to teach: name a document, --document notes\.md .*library ask FOLDER"),
        ({"document": Path("none.md")}, r"none\.md: no such file"),
        ({"merged": True}, r"--merged writes into the folder of --save"),
        ({"ask": ("",)}, r'--ask "": an empty question'),
        ({"exam": Path("none.json")}, r"--exam none\.json: no such file"),
        ({"seal": Path("none")}, r"--seal none: no results\.json"),
        ({"adapter": Path("none")}, r"none/adapter_config\.json: not there"),
    ],
)
def test_a_mistake_says_what_to_do(config, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        execute(dataclasses.replace(config, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", r"\$: Expected `array` of length >= 1; .* \[{question, answer}\], at least one"),
        ('[{"question": "Who?"}]', r"\$\[0\]: Object missing required field `answer`; found {'question': 'Who\?'}"),
        ('[{"question": "Who?", "answer": " "}]', r"\$\[0\]\.answer: Expected text that is not blank"),
    ],
)
def test_an_exam_that_is_none_is_explained(tmp_path, content, message):
    file = tmp_path / "exam.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_questions(file, f"--exam {file}")
    file.write_text(json.dumps(EXAM))
    assert load_questions(file, f"--exam {file}")[0] == Question("Who settled Hollin Skerry?", "Edda Marsk")


def test_bad_documents_end_as_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda devices: None)
    for name, content, said in [
        ("empty.md", b"", "empty (0 bytes)"),
        ("binary.txt", b"\x00\x01", "binary"),
        ("latin.txt", b"M\xfchle", "iconv"),
    ]:
        (tmp_path / name).write_bytes(content)
        arguments = ["--document", str(tmp_path / name), "--run-folder", str(tmp_path / "run")]
        assert command.main(adapt.EXPERIMENT, arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert said in error
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_the_command_line_takes_several_questions():
    arguments = ["--document", "a.md", "--ask", "Who?", "Why, then?", "--teaching.candidates", "3"]
    parsed, *_ = command.parse(adapt.EXPERIMENT, arguments)
    assert command.folder_name(adapt.EXPERIMENT, parsed) == "adapt-small-a-teaching.candidates-3"
    assert (parsed.preset, parsed.ask, parsed.teaching.candidates) == ("small", ("Who?", "Why, then?"), 3)


def test_the_plan_says_what_there_is(config, tmp_path):
    plan = session.describe(adapt.EXPERIMENT, config, COMPUTE, session.Place(tmp_path / "run"))
    assert "isle.md: 30 words" in plan
    assert "2 passages of at most" in plan
    assert "2 questions of an exam" in plan
    assert list(PRESETS) == ["small", "large", "smoke"]
