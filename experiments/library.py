"""A library of your documents: each learned by an adapter of its own, and questions that find their document.

    python -m experiments.library add notes/ report.pdf --library runs/notes     # 2 CPU cores: minutes a page
    python -m experiments.library ask runs/notes "Who keeps the lamp?" "What does the ferry cost?"
    python -m experiments.library chat runs/notes
    python -m experiments.library list runs/notes
    python -m experiments.library export runs/notes --to vllm --out served
    python -m experiments.library demo --data squad --passages 200     # how well it works, measured: hours

Documents (.md, .txt, .pdf) are taught many at a time, all adapters in one batch; each is on disk once it is done, and
the same command carries on after a kill. Adding or removing some leaves the others as they are. `seal-jax adapt
notes/`, `ask`, `chat` and `export` are short for these; the last three also take an adapter that `adapt` saved.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import tyro

from seal_jax.domains.document import Document, Section
from seal_jax.domains.passages import load_passages, shuffled, slug
from seal_jax.run import ends, exports, published, recall, web
from seal_jax.run.adapted import COMPUTE, Adapted, Answer, Course, load_adapted, read_asking
from seal_jax.run.documents import converse, side_by_side
from seal_jax.run.exports import Form
from seal_jax.run.journal import write_atomically
from seal_jax.run.library import COURSE, Library
from seal_jax.run.session import table_text
from seal_jax.run.terminal import shell_command, show
from seal_jax.types import Compute, require_at_least

Unnamed = tyro.conf.arg(name="")


@dataclasses.dataclass(frozen=True)
class Add:
    """Teaches documents: files, or folders of them. The same command carries on; a changed file is taught again."""

    documents: tyro.conf.Positional[tuple[Path, ...]]
    """.md, .txt or .pdf files, and folders of such."""
    library: Path | None = None
    """The library's folder (default: runs/ and the name of the first document or folder)."""
    course: Annotated[Course, Unnamed] = COURSE
    compute: Compute = COMPUTE

    def run(self) -> None:
        folder = self.library or Path("runs") / (slug(self.documents[0].resolve().stem) or "library")
        library = Library(folder, course=None if self.course == COURSE else self.course, compute=self.compute)
        taught = library.add(self.documents)
        rows = [[e.name, e.title, len(e.questions), e.before, e.after] for e in library.entries() if e.name in taught]
        show(*([table_text({"title": "Taught", "columns": COLUMNS, "rows": rows, "note": NOTE})] if rows else []))
        show(f"{library!r}\nAsk it: {shell_command('library', 'ask', str(folder), 'A question?')}")


COLUMNS = ["document", "title", "its own questions", "right before", "right after"]
NOTE = "Questions are the model's own, on what it was taught: accuracy on them is no measure of what others ask."


@dataclasses.dataclass(frozen=True)
class Ask:
    """Answers questions: each by the adapter of the document it is about, beside the base model's answer."""

    source: tyro.conf.Positional[Path]
    """A library, or the folder of one adapter."""
    questions: tyro.conf.Positional[tuple[str, ...]]
    """Each in quotes."""
    model: str | None = None
    """For an adapter that does not say which model it is for."""
    json: bool = False
    """Print a line of JSON a question instead."""

    def run(self) -> None:
        _, answer = opened(self.source, self.model)
        answers = answer(self.questions)
        show(*([json.dumps(a._asdict()) for a in answers] if self.json else [side_by_side(answers)]))


@dataclasses.dataclass(frozen=True)
class Chat:
    """Questions from the terminal, or a pipe, one a line, until an empty line; each is answered by itself."""

    source: tyro.conf.Positional[Path]
    """A library, or the folder of one adapter."""
    model: str | None = None
    """For an adapter that does not say which model it is for; of a library that --web begins."""
    web: bool = False
    """A page in the browser instead, which also learns what is pasted into it. The library may be a new one."""
    port: int = 8080
    """Of the page, on this machine alone."""
    browser: bool = True
    """Open the page, where there is a browser."""

    def run(self) -> None:
        if self.web:
            web.serve(Library(self.source, self.model), port=self.port, browser=self.browser)
        else:
            topic, answer = opened(self.source, self.model)
            converse(SimpleNamespace(topic=topic, ask=lambda question: answer([question])[0]))


@dataclasses.dataclass(frozen=True)
class List:
    """The documents of a library."""

    library: tyro.conf.Positional[Path]

    def run(self) -> None:
        entries = existing(self.library).entries()
        rows = [[e.name, e.title, len(e.questions), e.before, e.after, e.source] for e in entries]
        show(table_text({"title": f"{len(rows)} documents", "columns": [*COLUMNS, "from"], "rows": rows, "note": NOTE}))


@dataclasses.dataclass(frozen=True)
class Remove:
    """Removes documents from a library; the others stay as they are."""

    library: tyro.conf.Positional[Path]
    names: tyro.conf.Positional[tuple[str, ...]]

    def run(self) -> None:
        library = existing(self.library)
        library.remove(self.names)
        show(repr(library))


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes what was learned for another program, and prints the command that serves it."""

    source: tyro.conf.Positional[Path]
    """A library, the folder of one adapter, or the run folder of a model that experiments.squad trained."""
    to: Form
    """peft: adapters as PEFT reads them; vllm, sglang: the same, and the command that serves them; gguf: adapters for
    llama.cpp and Ollama; merged-gguf, merged: whole models, as GGUF and in Hugging Face's layout."""
    out: Path
    """The folder that is written."""
    documents: tuple[str, ...] = ()
    """Only these of the library."""
    model: str | None = None
    """For an adapter that does not say which model it is for."""
    push: str | None = None
    """Upload it to the Hugging Face hub too, as this model (USER/NAME), private. Of one adapter or model."""

    def __post_init__(self) -> None:
        for field in ("source", "out"):
            object.__setattr__(self, field, getattr(self, field).expanduser())

    def run(self) -> None:
        names, model, place, load = self._source()
        if not names:
            raise ValueError(f"{self.source}: an empty library; add documents first")
        if self.push is not None and len(names) > 1:
            raise ValueError(f"--push {self.push}: one model, and there are {len(names)}: name one by --documents")
        address = None if self.push is None else published.reserve(self.push)
        of_run = is_run(self.source)
        if self.to in ("peft", "vllm", "sglang"):
            written = [place(name) for name in names]
            commands = [f'PeftModel.from_pretrained(model, "{folder}")' for folder in written]
            commands = commands if self.to == "peft" else [exports.for_server(self.to, names, model, self.out)]
        elif self.to in ("gguf", "merged-gguf"):
            written = [self.out / names[0] if of_run or self.push else self.out]  # a folder of nothing else
            commands = exports.for_llama_cpp(self.to, names, load, written[0])
        else:
            written = [load(name).save(self.out / name, merged=True) / "merged" for name in names]
            commands = [f'AutoModelForCausalLM.from_pretrained("{folder}")' for folder in written]
        if of_run:
            text = published.card(self.source, load(names[0]), names[0], merged=self.to.startswith("merged"))
            write_atomically(written[0] / "README.md", text)
        show(f"Written to {self.out}", *commands)
        if self.push is not None:
            published.upload(written[0], self.push)
            show(address)

    def _source(self) -> tuple[list[str], str, Callable[[str], Path], Callable[[str], Adapted]]:
        """Names, their base model, a way to write one as PEFT reads it, and a way to load one."""
        if is_library(self.source):
            library = existing(self.source)
            names = list(self.documents or (entry.name for entry in library.entries()))
            copy = lambda name: exports.copied(library.path(name), self.out / name)
            return names, library.course.model, copy, library.adapted
        name = self.source.resolve().name
        if is_run(self.source):
            if self.documents or self.model is not None:
                raise ValueError(
                    f"{self.source}: a run, whose one model is exported: leave --documents and --model out"
                )
            whole = published.trained(self.source)
            return [name], whole.name, lambda name: whole.save(self.out / name), lambda name: whole
        model = read_asking(self.source, self.model).base_model
        copy = lambda name: exports.copied(self.source, self.out / name)
        return [name], model, copy, lambda name: load_adapted(self.source, model)


@dataclasses.dataclass(frozen=True)
class Demo:
    """Measures a library on passages with questions: a document each, and as many passages that are not in it."""

    data: str = "invented"
    """invented, squad, or a JSON file of passages."""
    passages: int = 10
    library: Path | None = None
    """The library's folder (default: in runs/, after the data and the number of passages)."""
    course: Annotated[Course, Unnamed] = COURSE
    compute: Compute = COMPUTE

    def __post_init__(self) -> None:
        require_at_least(1, passages=self.passages)

    def run(self) -> None:
        passages = shuffled(load_passages(self.data, "held_out"), self.course.seed)
        mine, others = passages[: self.passages], passages[self.passages : 2 * self.passages]
        if not others:
            raise ValueError(
                f"{self.data} has {len(passages)} passages, and {self.passages} were to be taught: lower --passages, "
                "so that some are left to ask about what is not in the library"
            )
        folder = self.library or Path("runs") / f"library-demo-{slug(Path(self.data).stem)}-{self.passages}"
        library = Library(folder, course=self.course, compute=self.compute)
        library.add({p.id: Document(p.title, (Section(p.title, (p.context,)),)) for p in mine})
        results = recall.measure(library, mine, others, seed=self.course.seed)
        write_atomically(folder / "measured.json", json.dumps(results, indent=1))
        show(*(table_text(table) for table in results["tables"]))


def is_library(folder: Path) -> bool:
    """Whether a folder is a library's."""
    return (folder.expanduser() / "library.json").is_file()


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "journal.jsonl").is_file()


def existing(folder: Path) -> Library:
    """The library in a folder. Raises FileNotFoundError where there is none."""
    if not is_library(folder):
        raise FileNotFoundError(
            f"{folder}: no library (it has no library.json); make one: {shell_command('library', 'add')}"
        )
    return Library(folder)


def opened(source: Path, model: str | None) -> tuple[str, Callable[[Sequence[str]], list[Answer]]]:
    """What a library, or the folder of an adapter, is about; and its answers."""
    if is_library(source) or not source.expanduser().is_dir():
        library = existing(source)
        return f"{len(library.entries())} documents", library.ask
    adapted = load_adapted(source, model)
    return adapted.topic, adapted.ask_all


COMMANDS: Any = Add | Ask | Chat | List | Remove | Export | Demo


def parse(arguments: Sequence[str]) -> Any:
    """One of the commands above. Exits with a suggestion at a typo."""
    return tyro.cli(COMMANDS, prog=shell_command("library"), args=arguments, description=__doc__)


def main(arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback."""
    command = parse(arguments)
    return ends.ended(command.run, "stopped" if isinstance(command, Chat) else ends.STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
