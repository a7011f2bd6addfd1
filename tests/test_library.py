"""A library: documents learned together are what each would be alone, questions find them, and no kill harms it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import adapt
from experiments import library as commands
from seal_jax import cli
from seal_jax.domains.document import Document, Section
from seal_jax.domains.passages import Passage, Question
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.io import hub, peft, weights
from seal_jax.nn import lora
from seal_jax.run import library as libraries
from seal_jax.run import recall, runtime
from seal_jax.run.adapted import Course, Notes, load_adapted
from seal_jax.run.journal import LONGEST_NAME
from seal_jax.run.library import Library
from seal_jax.seal.teaching import Teaching
from seal_jax.types import Compute
from tests import tiny

TEXTS = {
    "lamp": "# The lamp\nIts keeper is Tobin Aske, who also repairs umbrellas. The lamp burns fish oil.\n",
    "ferry": "# The ferry\nThe ferry Marigold sails every Tuesday from Port Lume. A ticket costs four shells.\n",
    "school": "# The school\nThe school of Quern has one teacher, Ilse Varn, and nineteen pupils.\n",
}
QUESTIONS = ["Who is the keeper of the lamp?", "What does a ticket for the ferry cost?", "Who wrote Hamlet?"]
COMPUTE = Compute(width_cuts=(), devices=1)


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda devices: None)  # the tests' own devices and no cache on the disk


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Course:
    return Course(
        str(tiny.model_folder(tmp_path_factory.mktemp("model"))),
        teaching=Teaching(candidates=1, edits=1, passage_tokens=64, questions=4),
        inner=FineTuning(("q_proj", "up_proj"), rank=4, alpha=8.0, learning_rate=3e-2, epochs=12),
        notes=Notes("facts", max_sequences=3, sampling=Sampling(max_tokens=12), answer_tokens=12),
    )


@pytest.fixture(scope="module")
def notes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("notes")
    for name, text in TEXTS.items():
        (folder / f"{name}.md").write_text(text)
    return folder


def make(folder: Path, course: Course | None = None) -> Library:
    return Library(folder, course=course, compute=COMPUTE, say=None)


@pytest.fixture(scope="module")
def made(course, notes, tmp_path_factory) -> Path:
    """A library of the three documents. Tests that change it copy it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(runtime, "start", lambda devices: None)
    folder = tmp_path_factory.mktemp("made") / "library"
    assert make(folder, course).add(notes) == ["ferry", "lamp", "school"]
    patch.undo()
    return folder


def adapters(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (folder / "documents").glob("*/adapter_model.safetensors")}


def same(a: Path, b: Path) -> bool:
    """Whether two libraries hold the same documents, but for the time they took."""

    def entries(folder: Path) -> list:
        return [{**json.loads(f.read_text()), "seconds": 0} for f in sorted(folder.glob("documents/*/document.json"))]

    leftovers = [path.name for path in [*a.iterdir(), *(a / "documents").iterdir()] if path.name.startswith((".", "w"))]
    return entries(a) == entries(b) and adapters(a) == adapters(b) and not leftovers


# ---------------------------------------------------------------------------------------------------------------------
# What is learned


def test_a_document_learns_among_others_what_it_learns_alone(made, course, notes, tmp_path):
    make(tmp_path / "alone", course).add(notes / "lamp.md")
    shape = weights.read_shape(hub.find_model(course.model))
    alone, among = (peft.load_peft(folder / "documents" / "lamp", shape) for folder in (tmp_path / "alone", made))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(among), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(float(np.abs(leaf).max()) for leaf in among.b.values()) > 1e-3


def test_documents_come_and_go_and_the_others_stay_as_they_are(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "library")
    before, library = adapters(folder), make(folder)
    assert library.add(Path(library.entry("lamp").source)) == []
    extra = tmp_path / "extra.txt"
    extra.write_text("The bell was cast from an anchor.")
    assert library.add([extra]) == ["extra"]
    library.remove("ferry")
    assert {name: own for name, own in adapters(folder).items() if name != "extra"} == {
        name: own for name, own in before.items() if name != "ferry"
    }
    extra.write_text("The bell was cast from two anchors.")
    assert library.add(extra) == ["extra"]
    assert "two anchors" in library.entry("extra").passages[0]
    assert [entry.name for entry in library.entries()] == ["extra", "lamp", "school"]


def test_texts_may_come_from_a_program(course, tmp_path):
    library = make(tmp_path / "library", course)
    assert library.add({"bell": Document("The bell", (Section("The bell", ("It is of iron.",)),))}) == ["bell"]
    assert repr(library).endswith("1 documents learned by " + course.model)


# ---------------------------------------------------------------------------------------------------------------------
# Ask


def test_each_question_is_answered_by_its_own_adapter(made):
    library = make(made)
    answers = library.ask(QUESTIONS)
    assert [answer.document for answer in answers] == ["lamp", "ferry", None]
    assert [answer.sure >= libraries.LEAST_SURE for answer in answers] == [True, True, False]
    for answer in answers[:2]:
        alone = library.adapted(answer.document).ask(answer.question)
        assert (answer.before, answer.after) == (alone.before, alone.after)
    assert any(answer.before != answer.after for answer in answers)
    assert answers[2].before == answers[2].after
    assert library.ask(QUESTIONS[1]) == answers[1:2]
    with pytest.raises(ValueError, match="the question is empty"):
        library.ask(["Who?", " "])


def test_an_empty_library_is_answered_by_the_base_model(course, tmp_path):
    (answer,) = make(tmp_path / "library", course).ask("Who is the keeper of the lamp?")
    assert (answer.document, answer.sure, answer.before) == (None, 0.0, answer.after)


def test_a_question_past_the_models_context_is_refused(made):
    with pytest.raises(ValueError, match="the model's context is 1024"):
        make(made).ask("lamp " * 2000)


# ---------------------------------------------------------------------------------------------------------------------
# Kills, and two at a time


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_library_killed_while_it_learns_carries_on(made, course, notes, tmp_path, killed_after, after):
    with killed_after(after):
        make(tmp_path / "library", course).add(notes)
    assert adapters(tmp_path / "library") == {}
    assert make(tmp_path / "library").add(notes) == ["ferry", "lamp", "school"]
    assert same(tmp_path / "library", made)


@pytest.mark.parametrize("nth", range(1, 8))
def test_a_kill_at_any_renaming_leaves_whole_documents(made, notes, tmp_path, monkeypatch, nth):
    """Two documents changed and one removed: old ones are there until the new ones are."""
    folder, changed = shutil.copytree(made, tmp_path / "library"), shutil.copytree(notes, tmp_path / "notes")
    for entry in (folder / "documents").glob("*/document.json"):
        entry.write_text(entry.read_text().replace(str(notes), str(changed)))
    for name in ("lamp", "ferry"):
        (changed / f"{name}.md").write_text(TEXTS[name] + "It is old.\n")
    rename, calls = Path.rename, []

    class Killed(BaseException):
        pass

    def dying(self, target):
        if len(calls) == nth - 1:
            raise Killed
        calls.append(self)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        try:
            make(folder).add(changed)
            make(folder).remove("school")
        except Killed:
            pass
    for entry in make(folder).entries():  # also before anything is cleared
        make(folder).path(entry.name)
    make(folder).add(changed)
    assert {entry.name for entry in make(folder).entries()} == {"lamp", "ferry", "school"}
    assert all("It is old." in make(folder).entry(name).passages[0] for name in ("lamp", "ferry"))
    make(folder).remove("school")
    assert not list((folder / "documents").glob(".*"))


@pytest.mark.slow
def test_a_process_killed_while_documents_appear(made, course, notes, tmp_path):
    """SIGKILL at the first document, and at the first line of the journal."""
    folder = tmp_path / "library"
    script = (
        "import sys, json; from tests.test_library import make, Path\n"
        "import msgspec; from seal_jax.run.adapted import Course\n"
        "make(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Course)).add(sys.argv[3])"
    )
    from seal_jax.run.journal import as_json

    words = [sys.executable, "-c", script, str(folder), json.dumps(as_json(course)), str(notes)]
    for pattern in ("working/journal.jsonl", "documents/.new-*", "documents/*/document.json"):
        process = subprocess.Popen(words, cwd=Path(__file__).parents[1], env=os.environ)
        while process.poll() is None and not list(folder.glob(pattern)):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    make(folder, course).add(notes)
    assert [entry.name for entry in make(folder).entries()] == ["ferry", "lamp", "school"]
    assert not list((folder / "documents").glob(".*"))


def test_while_one_process_adds_another_asks_and_does_not_add(made, notes, tmp_path):
    folder = shutil.copytree(made, tmp_path / "library")
    with make(folder)._writing():
        assert make(folder).ask(QUESTIONS[0])[0].document == "lamp"
        for change in (lambda: make(folder).add(notes), lambda: make(folder).remove("lamp")):
            with pytest.raises(OSError, match=r"another process is adding to this library .*questions can be asked"):
                change()


def test_work_that_was_left_over_is_dropped_where_others_are_given(course, notes, tmp_path, killed_after):
    with killed_after(4):
        make(tmp_path / "library", course).add(notes)
    assert make(tmp_path / "library").add(notes / "lamp.md") == ["lamp"]
    assert not (tmp_path / "library" / "working").exists()


def test_a_damaged_adapter_is_named(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "library")
    file = folder / "documents" / "lamp" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        ValueError, match="documents/lamp: the adapter is damaged: remove the document, and add it again"
    ):
        make(folder).ask(QUESTIONS[0])
    assert make(folder).ask(QUESTIONS[1])[0].document == "ferry"


def replaced(folder: Path, name: str, at: int = 2) -> None:
    """What `add` does to a document that changed, until its first or second renaming; its new weights are another's."""
    documents = folder / "documents"
    new, old = documents / f".new-{name}", documents / f".old-{name}"
    shutil.copytree(documents / name, new)
    shutil.copyfile(documents / "school" / peft.WEIGHTS, new / peft.WEIGHTS)
    entry = json.loads((new / "document.json").read_text())
    (new / "document.json").write_text(json.dumps({**entry, "adapter": peft.fingerprint(new)}))
    (documents / name).rename(old)
    if at == 2:
        new.rename(documents / name)
        shutil.rmtree(old)


def test_between_two_renamings_the_old_document_answers(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "library")
    replaced(folder, "lamp", at=1)
    assert [entry.name for entry in make(folder).entries()] == ["ferry", "lamp", "school"]
    assert make(folder).ask(QUESTIONS) == make(made).ask(QUESTIONS)
    make(folder).remove("lamp")
    assert [entry.name for entry in make(folder).entries()] == ["ferry", "school"]


def test_a_document_that_is_replaced_while_it_is_read_is_not_damaged(made, tmp_path, monkeypatch):
    folder, read = shutil.copytree(made, tmp_path / "library"), peft.fingerprint
    pending = ["lamp"]

    def fingerprint(adapter: Path) -> list[str]:
        if pending:  # after the entry was read
            replaced(folder, pending.pop())
        return read(adapter)

    with monkeypatch.context() as patch:
        patch.setattr(libraries.peft, "fingerprint", fingerprint)
        (answer,) = make(folder).ask(QUESTIONS[0])
    assert not pending
    assert [answer] == make(folder).ask(QUESTIONS[0])


def test_a_library_that_refused_its_first_document_is_not_made(made, course, notes, tmp_path):
    (tmp_path / "long.md").write_text("\n\n".join(f"Sentence {n} of many, many words." for n in range(900)))
    with pytest.raises(ValueError, match="at most 64 are taught"):
        make(tmp_path / "library", course).add(tmp_path / "long.md")
    other = dataclasses.replace(course, teaching=dataclasses.replace(course.teaching, most_passages=4000))
    assert make(tmp_path / "library", other).course == other
    with pytest.raises(ValueError, match="no document is called 'lamp'"):
        make(tmp_path / "typo", course).remove("lamp")
    assert not (tmp_path / "typo").exists()


def test_a_document_whose_entry_is_damaged_can_be_removed(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "library")
    (folder / "documents" / "lamp" / "document.json").write_text("{")
    with pytest.raises(ValueError, match=r"lamp/document\.json.*remove it and add it again"):
        make(folder).entries()
    make(folder).remove(["lamp", "lamp"])
    assert [entry.name for entry in make(folder).entries()] == ["ferry", "school"]


def test_other_programs_hidden_files_are_left_alone(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "library")
    (folder / "documents" / ".DS_Store").touch()
    make(folder).remove("lamp")
    assert [entry.name for entry in make(folder).entries()] == ["ferry", "school"]
    assert (folder / "documents" / ".DS_Store").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Names, and mistakes


def test_a_name_fits_a_folder_and_a_file_has_one_path(tmp_path, monkeypatch):
    for end in "12":
        (tmp_path / f"{'x' * 240}{end}.md").write_text("text")
    names = list(libraries.read_documents(tmp_path))
    assert [len(name) for name in names] == [LONGEST_NAME] * 2
    assert names[0] != names[1]
    monkeypatch.chdir(tmp_path)
    Path("a.md").write_text("text")
    one, other = (libraries.read_documents(path) for path in ("a.md", f"../{tmp_path.name}/a.md"))
    assert one == other
    with pytest.raises(ValueError, match=f"at most {LONGEST_NAME}"):
        libraries.read_documents({"x" * 240: Document("x", ())})


def test_importing_starts_no_device():
    """The number of devices and the cache of programs can be set before JAX starts, and not afterwards."""
    script = (
        "import experiments.adapt, seal_jax.run.library\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=True)


def test_mistakes_are_answered_by_a_sentence(made, course, notes, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("text")
    (tmp_path / "twice" / "a").mkdir(parents=True)
    for name in ("a/b.md", "a-b.md"):
        (tmp_path / "twice" / name).write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "lamp.md").write_text("another lamp")
    (tmp_path / "long.md").write_text("\n\n".join(f"Sentence {n} of many, many words." for n in range(900)))
    old = shutil.copytree(made, tmp_path / "old")
    (old / "library.json").write_text('{"schema": 0}')
    for work, said in [
        (lambda: make(tmp_path / "file"), "a file; expected a library's folder"),
        (lambda: make(tmp_path / "full"), r"neither empty nor a library \(it has no library\.json\)"),
        (lambda: make(old), r"damaged, or of another version .*expected schema 1"),
        (lambda: make(made, dataclasses.replace(course, seed=1)), r"other settings; .*\n  seed: 0 there, 1 now"),
        (lambda: make(made).remove("lump"), "no document is called 'lump': did you mean lamp?"),
        (lambda: make(made).add(tmp_path / "empty"), r"no document in this folder; expected \.md, \.txt or \.pdf"),
        (lambda: make(made).add(tmp_path / "twice"), "would both be called a-b: rename one of them"),
        (lambda: make(made).add(tmp_path / "lamp.md"), "lamp is there already, from .*notes.*lamp.md; remove it, or"),
        (lambda: make(made).add(tmp_path / "long.md"), r"long\.md: the document has .* at most 64 are taught"),
        (lambda: make(made).add({"a b": None}), "a document's name is 'a b'; expected letters"),
        (lambda: commands.existing(tmp_path / "none"), r"no library \(it has no library\.json\); make one"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            work()


def test_other_weights_under_the_same_name_are_refused(made, course, tmp_path):
    folder = shutil.copytree(made, tmp_path / "library")
    there = json.loads((folder / "library.json").read_text())
    (folder / "library.json").write_text(json.dumps({**there, "weights": "others"}))
    with pytest.raises(ValueError, match="made with other weights of"):
        make(folder).ask(QUESTIONS)


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def test_a_folder_given_to_adapt_becomes_a_library(monkeypatch, notes, capsys):
    seen: list[list[str]] = []
    monkeypatch.setattr(commands, "main", lambda words: seen.append(list(words)) or 0)
    monkeypatch.setattr(cli.ends, "until_heard", lambda: None)
    adapt.main([str(notes), "--library", "runs/x"])
    adapt.main(["a.md", "b.pdf"])
    for name in ("ask", "chat", "export"):
        cli.main([name, "runs/x", "more"], "experiments")
    assert adapt.main(["large", str(notes)]) == 2
    assert "the preset large is for one document" in capsys.readouterr().err
    assert seen == [
        ["add", str(notes), "--library", "runs/x"],
        ["add", "a.md", "b.pdf"],
        *([name, "runs/x", "more"] for name in ("ask", "chat", "export")),
    ]


def test_a_chat_reads_a_pipe_and_asks_library_or_adapter(made, monkeypatch, capsys):
    for source in (made, made / "documents" / "lamp"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTIONS[0]}\n\nWho?\n"))
        assert commands.main(["chat", str(source)]) == 0
        said = capsys.readouterr().out
        assert "an empty line ends" in said
        assert said.count(QUESTIONS[0]) == 1
        assert "Who?" not in said
        assert ("lamp (" in said) == (source == made)
    assert commands.main(["ask", str(made), *QUESTIONS, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["document"] for line in lines] == ["lamp", "ferry", None]
    assert commands.main(["ask", str(made.parent / "none"), "Who?"]) == 2
    assert "no library" in capsys.readouterr().err


def test_documents_are_listed_and_removed(made, tmp_path, capsys):
    folder = shutil.copytree(made, tmp_path / "library")
    assert commands.main(["remove", str(folder), "lamp", "school"]) == 0
    assert commands.main(["list", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "1 documents" in said
    assert "The ferry" in said


def test_servers_get_a_folder_of_adapters_and_their_command(made, course, tmp_path, capsys):
    for form, words in [("vllm", "--max-lora-rank 8 --lora-modules"), ("sglang", "--enable-lora --lora-paths")]:
        out = tmp_path / form
        assert commands.main(["export", str(made), "--to", form, "--out", str(out)]) == 0
        script = (out / "serve.sh").read_text()
        assert words in script
        assert course.model in script
        assert script.splitlines()[1] in capsys.readouterr().out
        for name in TEXTS:
            assert f"{name}={out / name}" in script
            loaded = load_adapted(out / name)
            assert loaded.ask(QUESTIONS[0]) == make(made).adapted(name).ask(QUESTIONS[0])


def test_an_adapter_is_asked_over_the_precision_it_was_trained_over(made, tmp_path):
    folder = shutil.copytree(made / "documents" / "lamp", tmp_path / "lamp")
    asking = json.loads((folder / "asking.json").read_text())
    assert (asking.pop("dtype"), asking.pop("base")) == ("float32", "full")
    for saved, dtype in [(asking, "float32"), ({**asking, "dtype": "bfloat16"}, "bfloat16")]:  # an older file: neither
        (folder / "asking.json").write_text(json.dumps(saved))
        adapted = load_adapted(folder, compute=COMPUTE)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(adapted.lm.params)} == {dtype}
        assert json.loads((adapted.save(tmp_path / dtype) / "asking.json").read_text())["dtype"] == dtype


def test_a_merged_folder_is_the_adapted_model(made, course, tmp_path):
    words = ["export", str(made), "--to", "merged", "--out", str(tmp_path / "out"), "--documents", "lamp"]
    assert commands.main(words) == 0
    _, params = weights.load_model(hub.find_model(str(tmp_path / "out" / "lamp" / "merged")))
    adapted = make(made).adapted("lamp")
    expected = lora.merge(adapted.lm.params, adapted.adapter)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)


def test_llama_cpp_gets_an_adapter_and_refuses_to_invent_a_tokenizer(made, tmp_path, capsys):
    source = made / "documents" / "lamp"
    assert commands.main(["export", str(source), "--to", "gguf", "--out", str(tmp_path / "out")]) == 0
    assert "llama-server -m BASE.gguf --lora" in capsys.readouterr().out
    assert (tmp_path / "out" / "lamp.Modelfile").read_text() == "FROM BASE.gguf\nADAPTER ./lamp.gguf\n"
    assert commands.main(["export", str(source), "--to", "merged-gguf", "--out", str(tmp_path / "out")]) == 2
    assert "convert that with llama.cpp's convert_hf_to_gguf.py" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Measured


def test_a_library_is_measured_with_the_right_adapter_the_one_found_and_none(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")

    def passage(name: str, question: str) -> Passage:
        return Passage(name, name, "", (Question(question, "nothing"), Question(question, "Quern")))

    mine, others = [passage("lamp", QUESTIONS[0]), passage("ferry", QUESTIONS[1])], [passage("play", QUESTIONS[2])]
    accuracy, costs = recall.measure(make(tmp_path / "copy"), mine, others, seed=0)["tables"]
    assert [row[1:3] for row in accuracy["rows"]] == [[2, 4], [2, 4], [2, 4], [1, 2], [1, 2]]
    facts = dict(costs["rows"])
    assert facts["questions whose document was found"] == facts["of"] == 4
    assert facts["questions on other passages given a document"] == 0
    assert facts["MB of a document"] > 0.005


def test_answers_that_are_on_disk_are_not_asked_for_again(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "copy")
    library, asked = make(tmp_path / "copy"), []
    ask_of = library.ask_of

    def noted(questions, documents):
        asked.append(questions)
        return ask_of(questions, documents)

    monkeypatch.setattr(recall, "PIECE", 1)
    monkeypatch.setattr(library, "ask_of", noted)
    pairs = [(QUESTIONS[0], "lamp"), (QUESTIONS[1], None), (QUESTIONS[0], "lamp")]
    first, _ = recall.answered(library, pairs)
    assert asked == [(QUESTIONS[0],), (QUESTIONS[1],)]
    assert first[0] == first[2] == ask_of([QUESTIONS[0]], ["lamp"])[0]
    (journal,) = (tmp_path / "copy").glob("asked-*/journal.jsonl")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))  # as a kill would leave it
    del asked[:]
    assert recall.answered(library, pairs)[0] == first
    assert asked == [(QUESTIONS[1],)]
