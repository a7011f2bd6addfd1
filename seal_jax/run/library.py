"""A library: many documents, each learned by an adapter of its own, and questions that find their document.

    library = seal_jax.Library("runs/notes")
    library.add(["notes/", "report.pdf"])
    for answer in library.ask(["Who keeps the lamp?", "What does the ferry cost?"]):
        print(answer.document, answer.sure, answer.before, "->", answer.after)

Its folder holds library.json (the model, and how documents are taught), documents/NAME (an adapter as PEFT reads it,
with asking.json and document.json) and, while documents are added, working/ (a run folder). There is no other index: a
document is in the library once its folder has its name, which it gets in one step when everything in it is written.
So a kill loses nothing that was finished, the same call carries on, and questions can be asked while another process
adds; only one process at a time adds or removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fcntl
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import msgspec
import numpy as np

from seal_jax.domains import document as texts
from seal_jax.domains import records
from seal_jax.domains.document import Document
from seal_jax.domains.passages import slug
from seal_jax.domains.squad import about_nothing, load_prompts, make_query
from seal_jax.graders.lexical import grade_by_match
from seal_jax.io import fingerprint, peft
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.run import runtime
from seal_jax.run.adapted import (
    COMPUTE,
    INNER,
    Adapted,
    Answer,
    Course,
    ask_each,
    identity,
    lesson_texts,
    load_adapted,
    load_speaker,
    make_lesson,
    teach_documents,
)
from seal_jax.run.journal import (
    LONGEST_NAME,
    RunFolder,
    as_json,
    differences,
    digest,
    read_json,
    short,
    write_atomically,
)
from seal_jax.run.retrieval import LEAST_SURE, Finder
from seal_jax.run.runtime import Speaker
from seal_jax.run.terminal import show
from seal_jax.seal.teaching import Teaching, figure
from seal_jax.types import Compute, Query

DRAFT = "draft.json"  # in a library's folder: what the page was given to learn, until it is learned
SCHEMA = 1  # of what a library's folder holds
GROUP = 32  # adapters in training that are kept, or lost by a damaged disk, together
TRIES, PAUSE = 4, 0.05  # to read a document that another process may be replacing, and seconds between them
PIECE = 64  # questions whose adapters are in memory together
# One adapter a document: none is chosen by questions. Half of `adapt`'s epochs at twice its rate (docs/results.md).
COURSE = Course(
    teaching=Teaching(candidates=1, questions=8), inner=dataclasses.replace(INNER, epochs=4, learning_rate=2e-3)
)
_NAME = re.compile(r"\w[\w.-]*")
T = TypeVar("T")


class Entry(msgspec.Struct):
    """document.json: a document in the library."""

    name: str
    title: str
    source: str  # the file it was read from; "" where it was none
    digest: str  # of the text that was taught
    passages: list[str]  # each under its title: what a question is compared with
    questions: list[str]  # which the model wrote on it, and can be asked
    before: float | None  # share of them answered right by the base model
    after: float | None  # ... with the adapter
    adapter: list[str]  # sha256 of its two files
    seconds: float  # that teaching took, of the documents taught together an equal share


class Found(NamedTuple):
    """What a question is about."""

    document: str | None  # None: nothing in the library
    sure: float  # 0 to 1


class Given(NamedTuple):
    """A document that is to be in the library."""

    source: str
    document: Document
    digest: str


class Library:
    """Documents that a model has learned, each by an adapter of its own.

    Args:
        folder: where it is, or is made by the first `add`.
        model: of a new library; one that is there keeps what it was made with.
        course: of a new library, how documents are taught (default: `COURSE`).
        compute: how many adapters are trained at a time, on which devices.
        say: called with what is being done; None for silence.

    Raises:
        ValueError: the folder is something else, of another version, or was made with another course (says where).
    """

    def __init__(
        self,
        folder: str | Path,
        model: str | None = None,
        *,
        course: Course | None = None,
        compute: Compute = COMPUTE,
        say: Callable[[str], None] | None = show,
    ):
        self.folder, self.compute = Path(folder).expanduser(), compute
        self.say = say or (lambda text: None)
        self._file, self._documents = self.folder / "library.json", self.folder / "documents"
        if model is not None:
            course = dataclasses.replace(course or self._open(None)[0], model=model)
        self.course, self._weights = self._open(course)

    def __repr__(self) -> str:
        return f"Library({str(self.folder)!r}): {len(self.entries())} documents learned by {self.course.model}"

    def _open(self, course: Course | None) -> tuple[Course, str | None]:
        """The course, and a fingerprint of the model's weights if the library is there."""
        if not self._file.is_file():
            if self.folder.exists() and not self.folder.is_dir():
                raise ValueError(f"{self.folder}: a file; expected a library's folder, or a name that is free")
            if self.folder.is_dir() and any(
                file.name not in ("lock", DRAFT, f"{self._file.name}.tmp") for file in self.folder.iterdir()
            ):
                raise ValueError(
                    f"{self.folder}: neither empty nor a library (it has no {self._file.name}); name another folder"
                )
            return course or COURSE, None
        there = read_json(self._file)
        if not isinstance(there, dict) or there.get("schema") != SCHEMA:
            raise ValueError(
                f"{self._file}: damaged, or of another version of seal_jax (expected schema {SCHEMA}); make the "
                "library again under another name"
            )
        found = records.convert(there.get("course"), Course, str(self._file), "the settings it was made with")
        if course is not None and (odd := list(differences(as_json(found), as_json(course)))):
            lines = "".join(f"\n  {name}: {a!r} there, {b!r} now" for name, a, b in odd)
            raise ValueError(
                f"{self.folder}: the library was made with other settings; leave yours out, or name another folder:"
                + lines
            )
        return found, str(there.get("weights"))

    @cached_property
    def speaker(self) -> Speaker:
        """The model. Raises ValueError where its weights are not those that the adapters were trained over."""
        found = fingerprint.of_model(self.course.model)
        if self._weights not in (None, found):
            raise ValueError(
                f"{self.folder}: made with other weights of {self.course.model}; put those back, or make the library "
                "again"
            )
        return load_speaker(self.course, self.compute)

    # -----------------------------------------------------------------------------------------------------------------
    # What is in it

    def entries(self) -> list[Entry]:
        """Its documents, by name. Raises ValueError for one that is damaged."""
        found = []
        for name in self._names():
            with contextlib.suppress(FileNotFoundError):  # removed a moment ago
                found.append(self._read(name, lambda entry, folder: entry))
        return found

    def _names(self) -> list[str]:
        """Of all documents, those included of which a process that is replacing them has moved the old folder away."""
        names = {path.name.removeprefix(".old-") for path in self._documents.glob("*") if not path.is_file()}
        return sorted(name for name in names if _NAME.fullmatch(name))

    def _read(self, name: str, read: Callable[[Entry, Path], T]) -> T:
        """What `read` makes of a document: anew, where another process replaced it meanwhile."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(FileNotFoundError, ValueError):
                return self._read_once(name, read)
            time.sleep(PAUSE)
        return self._read_once(name, read)

    def _read_once(self, name: str, read: Callable[[Entry, Path], T]) -> T:
        place, old = self._documents / name, self._documents / f".old-{name}"
        folder = old if old.exists() and not place.exists() else place
        file = folder / "document.json"
        what = "a document's entry: remove it and add it again"
        return read(records.decode(file.read_bytes(), Entry, str(file), what), folder)

    def entry(self, name: str) -> Entry:
        """The document of that name. Raises ValueError with the nearest name where there is none."""
        self._require(name)
        return self._read(name, lambda entry, folder: entry)

    def _require(self, name: str) -> None:
        names = self._names()
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names[:8]) or 'none'}"
            raise ValueError(f"{self.folder}: no document is called {name!r}: {hint}")

    def path(self, name: str) -> Path:
        """A document's folder, which PEFT reads. Raises ValueError where there is none, or its files were altered."""
        return self._whole(name, lambda folder: folder)

    def _whole(self, name: str, read: Callable[[Path], T]) -> T:
        """What `read` makes of a document's folder, if its adapter is as it was written. Raises as `path`."""

        def checked(entry: Entry, folder: Path) -> T:
            if peft.fingerprint(folder) != entry.adapter:
                raise ValueError(f"{folder}: the adapter is damaged: remove the document, and add it again")
            return read(folder)

        self._require(name)
        return self._read(name, checked)

    def adapted(self, name: str) -> Adapted:
        """The model with one document's adapter: to be asked by itself, or saved."""
        speaker = self.speaker
        return self._whole(name, lambda folder: load_adapted(folder, self.course.model, speaker=speaker))

    # -----------------------------------------------------------------------------------------------------------------
    # Ask

    def ask(self, questions: str | Sequence[str]) -> list[Answer]:
        """Each question to the adapter of the document that it is about, and to the base model.

        A question about nothing in the library (`sure` below `LEAST_SURE`) is answered by the base model alone.

        Raises:
            ValueError: an empty question, or one too long for the model's context.
        """
        questions = [questions] if isinstance(questions, str) else list(questions)
        found = self.find(questions)
        answers = self.ask_of(questions, [one.document for one in found])
        return [answer._replace(sure=one.sure) for answer, one in zip(answers, found, strict=True)]

    def find(self, questions: Sequence[str]) -> list[Found]:
        """The document that each question is about, and how sure that is."""
        _ = self.speaker  # loaded first: bm25s starts JAX's devices with whatever settings there are
        entries = self.entries()
        finder = Finder([entry.passages for entry in entries])
        found = [finder.find(question) for question in questions]
        return [
            Found(None if one.document is None or one.sure < LEAST_SURE else entries[one.document].name, one.sure)
            for one in found
        ]

    def ask_of(self, questions: Sequence[str], documents: Sequence[str | None]) -> list[Answer]:
        """Each question to the adapter of the document that is named beside it, and to the base model."""
        if not all(question.strip() for question in questions):
            raise ValueError("the question is empty; expected a sentence that ends in a question mark")
        answers: list[Answer] = []
        for start in range(0, len(questions), PIECE):
            part = slice(start, start + PIECE)
            answers += self._ask([question.strip() for question in questions[part]], documents[part])
        return answers

    def _ask(self, questions: Sequence[str], documents: Sequence[str | None]) -> list[Answer]:
        """A row each for the base model, and one with its own adapter for each that has a document."""
        lm, model, inner = self.speaker.lm, self.speaker.model, self.course.inner
        assert model is not None  # it has been loaded
        names = list(dict.fromkeys(name for name in documents if name is not None))
        titles = {name: self.entry(name).title for name in names}
        nothing = jax.device_get(lora.empty(lm.params["blocks"], inner.projections, inner.rank))
        learned = [jax.device_get(self._whole(name, lambda folder: peft.load_peft(folder, model))) for name in names]
        adapters: Adapter = jax.tree.map(lambda *leaves: np.stack(leaves), nothing, *learned)
        template, render = load_prompts(self.course.notes.prompt, self.speaker.style).question, self.speaker.render

        def query(question: str, name: str | None) -> Query:
            about = template if name else about_nothing(template)
            return make_query(render, about, titles[name] if name else "", question, "")

        queries = [query(*each) for each in zip(questions, documents, strict=True)]
        found = {n: 1 + names.index(name) for n, name in enumerate(documents) if name is not None}
        of = [0] * len(queries) + list(found.values())
        rows, limit = [*queries, *(queries[n] for n in found)], self.course.notes.answer_tokens
        said = ask_each(lm, model, adapters, rows, of, max_tokens=limit)
        after = said[: len(queries)]
        for n, own in zip(found, said[len(queries) :], strict=True):
            after[n] = own
        return [
            Answer(questions[n], said[n][0], after[n][0], said[n][1], after[n][1], documents[n])
            for n in range(len(questions))
        ]

    # -----------------------------------------------------------------------------------------------------------------
    # Add and remove

    def add(self, documents: str | Path | Sequence[str | Path] | Mapping[str, Document]) -> list[str]:
        """Teaches documents: files, folders of files, or texts by name. Returns the names of those that were taught.

        One that is there as it is given is left alone; one whose file has changed is taught again, and replaced.
        The same call carries on where an earlier one was stopped.

        Raises:
            FileNotFoundError, ValueError: a file that is no document, two of one name, one too long; divergence.
            OSError: another process adds or removes.
        """
        given = read_documents(documents)
        with self._writing():
            there = {entry.name: entry for entry in self.entries()}
            for name, (source, *_) in given.items():
                if name in there and there[name].source != source:
                    raise ValueError(
                        f"{self.folder}: {name} is there already, from {there[name].source or 'a text'}, and not from "
                        f"{source or 'a text'}; remove it, or rename the file"
                    )
            new = [name for name, own in given.items() if name not in there or there[name].digest != own.digest]
            for name in new:  # now, and not hours later when it is its turn
                self._require_teachable(given[name], name)
            if not self._file.exists() and (hint := runtime.faster_here(self.course.dtype)):
                self.say(f"{hint} (in a new library: this one keeps {self.course.dtype})")
            self._make()  # and not before: settings that a document is refused for can still be changed
            left = self._left_over(given)
            rest = [name for name in new if name not in left]
            size = max(1, GROUP // self.course.teaching.candidates)
            groups = [left] if left else []
            groups += [rest[start : start + size] for start in range(0, len(rest), size)]
            done, started = 0, time.monotonic()
            for group in groups:
                which = f"s {done + 1} to {done + len(group)}" if len(group) > 1 else f" {done + 1}"
                self.say(f"document{which} of {len(left) + len(rest)}")
                self._teach({name: given[name] for name in group})
                done += len(group)
                spent = time.monotonic() - started
                self.say(f"{done} of {len(left) + len(rest)} documents, {spent:.0f} s, {spent / done:.1f} s each")
            return new

    def remove(self, names: str | Sequence[str]) -> None:
        """Removes documents, damaged ones too; the others stay as they are. Raises ValueError where there is none of
        that name."""
        names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        for name in names:  # before a folder is made
            self._require(name)
        with self._writing():
            for name in names:
                self._require(name)
            for name in names:
                self._documents.joinpath(name).rename(self._documents / f".removed-{name}")
            self._clear()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Only one process at a time, in a folder that is a library, or empty."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OSError(
                    f"{self.folder}: another process is adding to this library or removing from it; wait until it has "
                    "ended (questions can be asked meanwhile)"
                ) from error
            self.course, self._weights = self._open(self.course)  # it may have been made since
            self._clear()
            yield

    def _make(self) -> None:
        """Writes what the library is made with, unless it is there."""
        if self._weights is None:
            self._weights = fingerprint.of_model(self.course.model)
            made = {"schema": SCHEMA, "course": as_json(self.course), "weights": self._weights}
            write_atomically(self._file, json.dumps(made, indent=1) + "\n")
        self._documents.mkdir(exist_ok=True)

    def _clear(self) -> None:
        """Removes what a kill left: documents half written, half removed, or replaced (if they have been)."""
        for old in self._documents.glob(".old-*"):
            if not (place := self._documents / old.name.removeprefix(".old-")).exists():
                old.rename(place)
        left = [self._documents.glob(pattern) for pattern in (".new-*", ".old-*", ".removed-*")]
        for folder in itertools.chain(*left, self.folder.glob(".done-*")):
            shutil.rmtree(folder)

    def _require_teachable(self, own: Given, name: str) -> None:
        how, speaker = self.course, self.speaker  # whose errors are not the document's
        try:
            make_lesson(own.document, speaker, grade_by_match, how.teaching, how.notes, self.compute)
        except ValueError as error:
            raise ValueError(f"{own.source or name}: {error}") from error

    def _left_over(self, given: Mapping[str, Given]) -> list[str]:
        """The documents that were being taught when a call was stopped, if they are given again as they were."""
        working = self.folder / "working"
        kept = read_json(working / "config.json")
        left = kept.get("documents", {}) if isinstance(kept, dict) else {}
        if left and all(name in given and given[name].digest == of for name, of in left.items()):
            return list(left)
        shutil.rmtree(working, ignore_errors=True)
        return []

    def _teach(self, group: Mapping[str, Given]) -> None:
        """Documents trained together: one after another they appear under their names."""
        started, working = time.monotonic(), self.folder / "working"
        what = identity(
            self.course, self.speaker, inputs=digest(lesson_texts(self.course.notes.prompt)),
            documents={name: own.digest for name, own in group.items()},
        )  # fmt: skip
        with contextlib.closing(RunFolder(working, what, self.say)) as journal:
            journal.clock = lambda: {"total": time.monotonic() - started}
            read = [own.document for own in group.values()]
            taught = teach_documents(read, self.speaker, self.course, self.compute, journal, self.say)
            journal.once("taught", lambda: True)  # so that the time until here is in the journal
            seconds = journal.timings["total"] / len(group)
            for (name, own), adapted in zip(group.items(), taught, strict=True):
                self._publish(name, own, adapted, seconds)
        working.rename(done := self.folder / f".done-{digest(list(group))}")
        shutil.rmtree(done)

    def _publish(self, name: str, own: Given, adapted: Adapted, seconds: float) -> None:
        taught, place = adapted.taught, self._documents / name
        assert taught is not None
        scratch = adapted.save(self._documents / f".new-{name}")
        scores = [row[taught.chosen] for row in taught.scores]
        entry = Entry(
            name, adapted.topic, own.source, own.digest,
            [f"{adapted.topic}\n{passage.title}\n{passage.context}" for passage in taught.passages],
            [question.question for passage in taught.passages for question in passage.questions],
            figure(taught.base, "accuracy"), figure(scores, "accuracy"), peft.fingerprint(scratch), round(seconds, 1),
        )  # fmt: skip
        write_atomically(scratch / "document.json", msgspec.json.format(msgspec.json.encode(entry), indent=1))
        old = self._documents / f".old-{name}"
        if place.exists():
            place.rename(old)
        scratch.rename(place)
        shutil.rmtree(old, ignore_errors=True)


def name_of(title: str) -> str:
    """The name in a library of a document with this title, or file."""
    return short(slug(title), title) or f"document-{digest(title)[:8]}"


def read_documents(documents: str | Path | Sequence[str | Path] | Mapping[str, Document]) -> dict[str, Given]:
    """Documents by name: of a file its stem, of one in a folder its path there.

    Raises:
        FileNotFoundError, ValueError: as `document.read_document`; a folder without any; two of one name.
    """
    if isinstance(documents, Mapping):
        if odd := [name for name in documents if not _NAME.fullmatch(name) or len(name.encode()) > LONGEST_NAME]:
            raise ValueError(
                f"a document's name is {odd[0]!r}; expected letters, digits, dots, dashes or underscores, at most "
                f"{LONGEST_NAME} bytes"
            )
        return {name: Given("", document, digest(document)) for name, document in documents.items()}
    found: dict[str, Given] = {}
    for given in [documents] if isinstance(documents, str | Path) else documents:
        path = Path(given).expanduser()
        files = {path: path.stem}
        if path.is_dir():
            inside = {file: file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file()}
            files = {
                file: str(own.with_suffix(""))
                for file, own in inside.items()
                if file.suffix.lower() in (*texts.TEXT, texts.PDF) and not any(p.startswith(".") for p in own.parts)
            }
            if not files:
                raise ValueError(f"{path}: no document in this folder; expected .md, .txt or .pdf files")
        for file, stem in files.items():
            document, source = texts.read_document(file), os.path.abspath(file)
            name = name_of(stem)
            if name in found and found[name].source != source:
                raise ValueError(f"{file} and {found[name].source} would both be called {name}: rename one of them")
            found[name] = Given(source, document, digest(document))
    return found
