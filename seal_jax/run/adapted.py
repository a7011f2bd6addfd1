"""An adapted model, to be asked and saved; and `adapt`, from a document's name to it.

    adapted = seal_jax.adapt("notes.md", model="smollm2-135m")
    answer = adapted.ask("Who keeps the lamp?")
    print(answer.before, "->", answer.after)
    adapted.save("my-adapter", merged=True)

How the model is taught is in `teaching.py`; `experiments/adapt.py` does the same in a run folder with a report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack, get_args, overload

import jax
import jax.numpy as jnp
import msgspec

from seal_jax.domains import document as documents
from seal_jax.domains import records, squad
from seal_jax.domains.document import Document
from seal_jax.domains.passages import Passage
from seal_jax.domains.squad import Question, make_query
from seal_jax.domains.templates import fill, load_template
from seal_jax.engine import batching
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.memory import Writing
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes, make_trainer
from seal_jax.graders.lexical import grade_by_match
from seal_jax.io import fingerprint, hub, peft, tokenizer, weights
from seal_jax.nn import lora, quantised
from seal_jax.nn.lora import Adapter
from seal_jax.nn.sharding import lanes
from seal_jax.nn.transformer import ModelConfig
from seal_jax.run import runtime
from seal_jax.run.journal import RunFolder, as_json, digest, write_atomically
from seal_jax.run.runtime import Speaker
from seal_jax.run.session import decided
from seal_jax.run.terminal import show
from seal_jax.seal.rewards import ask
from seal_jax.seal.rounds import Loop
from seal_jax.seal.teaching import QUESTIONS, TOGETHER, Lesson, Taught, Teaching, passage_examples, teach
from seal_jax.types import (
    PROJECTIONS,
    Base,
    Compute,
    Example,
    Grade,
    Journal,
    LanguageModel,
    Memory,
    Query,
    SelfEdit,
    Silent,
    Style,
)

QUESTION_TOKENS, GOLD_TOKENS = 48, 24  # of a self-written question and its answer, at most
STYLES: tuple[Style, ...] = get_args(Style)


@dataclasses.dataclass(frozen=True)
class Notes:
    """How a model writes on a passage, and answers."""

    prompt: str  # of self-edits: a name of `squad.prompt_variants`, or a TOML file
    max_sequences: int  # training sequences of a passage's self-edit at most, the passage included
    sampling: Sampling
    answer_tokens: int  # the most new tokens of an answer


def make_lesson(
    document: Document, speaker: Speaker, grade: Grade, teaching: Teaching, notes: Notes, compute: Compute
) -> Lesson:
    """Cuts the document into passages and measures what every program is compiled for.

    Raises:
        ValueError: more passages than allowed, or one that the model's context cannot hold with its prompt.
    """
    encode, style, render = speaker.lm.codec.encode, speaker.style, speaker.render
    sampling, answer_tokens = notes.sampling, notes.answer_tokens
    passages = documents.passages(document, count=lambda text: len(encode(text)), budget=teaching.passage_tokens)
    if len(passages) > teaching.most_passages:
        raise ValueError(
            f"the document has {document.words:,} words: {len(passages)} passages of at most "
            f"{teaching.passage_tokens} tokens, and at most {teaching.most_passages} are taught "
            "(--teaching.most-passages). Cut out the part that matters, or raise that and expect time in proportion"
        )
    prompts = squad.load_prompts(notes.prompt, style)
    about = squad.make_domain(
        prompts._replace(grounded=teaching.grounded), render, grade, max_examples=notes.max_sequences
    )
    asking = question_template(style)

    def parse(passage: Passage, text: str) -> SelfEdit:
        edit, title = about.parse(passage, text), f"{passage.title}\n"
        lines = [squad.without_number(example.completion.removeprefix(title)) for example in edit.examples[:-1]]
        return edit._replace(examples=(*(Example("", title + line) for line in lines if line), *edit.examples[-1:]))

    def queries(passage: Passage) -> list[Query]:
        return [make_query(render, prompts.question, document.title, q.question, q.answer) for q in passage.questions]

    def questions_prompt(passage: Passage) -> str:
        return render(fill(asking, title=passage.title, context=passage.context))

    domain = about._replace(parse=parse, queries=queries)
    longest = max(len(encode(p.title)) + 2 + max(sampling.max_tokens, len(encode(p.context))) for p in passages)
    asked = len(encode(make_query(render, prompts.question, document.title, "", "").prompt)) + min(
        2 * answer_tokens, QUESTION_TOKENS
    )
    written = max(len(encode(text(p))) for p in passages for text in (domain.prompt, questions_prompt))
    needed = max(longest, written + sampling.max_tokens, asked + answer_tokens)
    if needed > speaker.context_length:
        raise ValueError(
            f"a passage of {teaching.passage_tokens} tokens needs a context of {needed} with its prompt and "
            f"--sampling.max-tokens {sampling.max_tokens}; the model has {speaker.context_length}. Lower "
            "--teaching.passage-tokens"
        )
    sizes = Shapes(
        widths=batching.bucket_widths(longest, compute.width_cuts),
        capacity=sum(
            teaching.edits * (notes.max_sequences - 1) + len(passage_examples(passage, teaching))
            for passage in passages
        ),
        questions=TOGETHER,
        question_width=batching.round_up(asked, 8),
        gold_width=batching.round_up(min(answer_tokens, GOLD_TOKENS), 8),
    )
    return Lesson(document.title, passages, domain, questions_prompt, sizes, batching.round_up(written, 8))


def question_template(style: Style) -> str:
    """What the model reads before it writes questions on a passage."""
    return load_template(QUESTIONS, style, "title", "context")


def lesson_texts(prompt: str) -> list[Any]:
    """All prompts of a lesson, in both styles: what is read from files is part of what a run is."""
    return [read(style) for style in STYLES for read in (partial(squad.load_prompts, prompt), question_template)]


AT_ONCE, BYTES_AT_ONCE = (64, 32, 16), 1 << 30  # answers that are written at a time, by what their adapters take
ASKING = "asking.json"  # beside a saved adapter: how it is to be asked

# For a small model on a CPU: prompts and lengths as in experiments/squad.py's demo.
NOTES = Notes(
    "facts", max_sequences=8, sampling=Sampling(max_tokens=128, temperature=0.7, top_p=0.95), answer_tokens=64
)
INNER = FineTuning(projections=PROJECTIONS, rank=16, alpha=32.0, epochs=8)
COMPUTE = Compute(width_cuts=(24, 32, 48, 96))


@dataclasses.dataclass(frozen=True)
class Course:
    """How documents are taught, and what model: the identity of what comes of them."""

    model: str = "smollm2-135m"  # as `--model`: embedded, a Hugging Face folder or id, or a GGUF file
    teaching: Teaching = Teaching()
    inner: FineTuning = INNER
    notes: Notes = NOTES
    style: Literal["auto", "raw", "chat"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    base: Base = "full"
    seed: int = 0


class Answer(NamedTuple):
    """A question to the model before and after it was taught."""

    question: str
    before: str
    after: str
    before_cut: bool = False  # at the limit of tokens
    after_cut: bool = False
    document: str | None = None  # of a library, that was found; None: none, and both answers are the base model's
    sure: float | None = None  # that the document answers the question, 0 to 1 (run/library.py)

    @property
    def shown(self) -> tuple[str, str]:
        """Before and after as they are displayed: one that was cut off ends in dots."""
        return mark_cut(self.before, self.before_cut), mark_cut(self.after, self.after_cut)


def mark_cut(answer: str, was_cut: bool) -> str:
    """An answer as it is displayed."""
    return f"{answer} … (cut off)" if was_cut else answer


@dataclasses.dataclass(frozen=True, repr=False)
class Adapted:
    """A model that was taught something: it can be asked, and saved."""

    lm: LanguageModel  # before
    model: ModelConfig
    name: str  # of the model, as `hub.find_model` takes it
    adapter: Adapter
    below: tuple[Adapter, ...]  # adapters that `lm` has in its weights already, in order
    topic: str  # what questions are about: the document's title
    template: str  # of a question
    render: Callable[[str], str]
    answer_tokens: int
    taught: Taught | None = None  # how it was taught, where it was here
    dtype: Literal["float32", "bfloat16"] = "float32"  # of `lm`
    base: Base = "full"

    def __repr__(self) -> str:
        rank = next(iter(self.adapter.a.values())).shape[-1]
        return f"Adapted({self.name}, taught {self.topic!r}, adapter of rank {rank} on {', '.join(self.adapter.a)})"

    def ask(self, question: str, *, topic: str | None = None) -> Answer:
        """One question, to the model before and after."""
        return self.ask_all([question], topic=topic)[0]

    def ask_all(self, questions: Sequence[str], *, topic: str | None = None) -> list[Answer]:
        """Several at a time.

        Raises:
            ValueError: an empty question, or one too long for the model's context.
        """
        if not all(question.strip() for question in questions):
            raise ValueError("the question is empty; expected a sentence that ends in a question mark")
        return self.ask_queries(self.queries([Question(question.strip(), "") for question in questions], topic=topic))

    def ask_queries(self, queries: Sequence[Query]) -> list[Answer]:
        """The same for questions as the model reads them.

        Raises:
            ValueError: one too long for the model's context.
        """
        both = lora.stack([jax.tree.map(jnp.zeros_like, self.adapter), self.adapter])
        of = [0] * len(queries) + [1] * len(queries)
        said = ask_each(self.lm, self.model, both, [*queries, *queries], of, max_tokens=self.answer_tokens)
        pairs = zip(queries, said[: len(queries)], said[len(queries) :], strict=True)
        return [Answer(query.question, before, after, cut, cut_too) for query, (before, cut), (after, cut_too) in pairs]

    def queries(self, questions: Sequence[Question], *, topic: str | None = None) -> list[Query]:
        """Questions with their answers, as the model reads them."""
        about = self.topic if topic is None else topic
        return [make_query(self.render, self.template, about, q.question, q.answer) for q in questions]

    def save(self, folder: str | Path, *, merged: bool = False) -> Path:
        """Writes the adapter as PEFT reads it into `folder`, and with `merged` the whole model into `folder`/merged.

        The adapter is over the model as it was named: what was merged before (`below`) is in it. The merged model is a
        Hugging Face checkpoint with its tokenizer; transformers and `--model` here read it. Raises ValueError for one
        over a quantised base.
        """
        folder = Path(folder).expanduser()
        params = self.merged() if merged else None
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: a file; expected a folder to write into, or a name that is free")
        whole = stacked([*self.below, self.adapter], self.lm.params["blocks"])
        rank = whole.a[next(iter(whole.a))].shape[-1]
        peft.save_peft(folder, whole, rank=rank, base_model=hub.published_as(self.name))
        asking = {  # to be answered elsewhere as here
            "base_model": self.name,
            "topic": self.topic,
            "prompt": make_query(self.render, self.template, self.topic, "{question}", "").prompt,
            "max_new_tokens": self.answer_tokens,
            "sampling": "greedy",
            "dtype": self.dtype,
            "base": self.base,
        }
        write_atomically(folder / ASKING, json.dumps(asking, indent=1) + "\n")
        if params is not None:
            text = tokenizer.load_tokenizer(hub.find_model(self.name))
            weights.save_model(folder / "merged", self.model, params, text, stop=self.lm.codec.stop)
        return folder

    def merged(self) -> dict[str, Any]:
        """The model's parameters with the adapter in them. Raises ValueError for a quantised base."""
        if quantised.is_quantised(self.lm.params):
            raise ValueError("a quantised base keeps no full weights to merge into: save the adapter alone")
        return lora.merge(self.lm.params, self.adapter)


def at_once(adapters: Adapter) -> int:
    """How many answers are written at a time, each by one of these E adapters: few sizes, few programs."""
    fit = BYTES_AT_ONCE * len(adapters.scale) // sum(leaf.nbytes for leaf in jax.tree.leaves(adapters))
    return next((rows for rows in AT_ONCE if rows <= fit), AT_ONCE[-1])


def ask_each(
    lm: LanguageModel,
    model: ModelConfig,
    adapters: Adapter,
    queries: Sequence[Query],
    of: Sequence[int],
    *,
    max_tokens: int,
) -> list[tuple[str, bool]]:
    """Greedy answers, each by the adapter of that number among E, and whether it was cut off: a row a question.

    Raises:
        ValueError: a question too long for the model's context.
    """
    longest = max((len(lm.codec.encode(query.prompt)) for query in queries), default=0)
    if longest + max_tokens > model.context_length:
        raise ValueError(
            f"a question of {longest} tokens with its prompt; the model's context is {model.context_length}, and "
            f"{max_tokens} are kept for the answer"
        )
    sizes = Shapes((8,), 1, 1, batching.round_up(max(longest, 1), 64), 8)  # few widths: each is a program to compile
    chunk = Chunk(batching.round_up(min(at_once(adapters), len(queries)), lanes(lm.mesh)), "answers", show)
    asked = [(query._replace(gold=""), e) for query, e in zip(queries, of, strict=True)]
    groups = [[query for query, e in asked if e == each] for each in range(len(adapters.scale))]
    said = ask(lm, adapters, groups, sizes, max_tokens=max_tokens, chunk=chunk)
    rest = [zip(*own, strict=True) for own in zip(said.answers, said.cut, strict=True)]
    return [next(rest[e]) for e in of]


def stacked(adapters: Sequence[Adapter], blocks: dict[str, Any]) -> Adapter:
    """Adapters merged one after another, as the one adapter that computes the same."""
    if len(adapters) == 1:
        return adapters[0]
    names = sorted({name for adapter in adapters for name in adapter.a})
    ranks = [next(iter(adapter.a.values())).shape[-1] for adapter in adapters]
    whole, at = lora.empty(blocks, names, sum(ranks)), 0
    for adapter, rank in zip(adapters, ranks, strict=True):
        whole, at = lora.join(whole, adapter, at), at + rank
    return whole


class Phases(Silent):
    """A display that says a line a phase."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say

    def phase(self, name: str, total: int | None = None, unit: str | None = None) -> None:
        self._say(name)


def tenths(say: Callable[[str], None]) -> Callable[[int, int, int], None]:
    """A `Trainer.watch` that says a line for every tenth of the training."""
    told = 0

    def watch(computed: int, of: int, adapters: int) -> None:
        nonlocal told
        told = told if computed else 0
        if (tenth := 10 * computed // max(of, 1)) > told:
            told = tenth
            say(f"training: {10 * tenth} %")

    return watch


class _Settings(TypedDict, total=False):
    """Keywords of `adapt`, said again for editors and mypy: what it returns depends on the document, and a
    str, which is a sequence of str, is the first overload's."""

    start: str | Path | None
    run_folder: str | Path | None
    teaching: Teaching
    inner: FineTuning
    notes: Notes
    compute: Compute
    style: Literal["auto", "raw", "chat"]
    dtype: Literal["float32", "bfloat16"]
    base: Base
    seed: int
    say: Callable[[str], None] | None


@overload
def adapt(document: str | Path, model: str = ..., **settings: Unpack[_Settings]) -> Adapted: ...  # type: ignore[overload-overlap]
@overload
def adapt(document: Sequence[str | Path], model: str = ..., **settings: Unpack[_Settings]) -> list[Adapted]: ...
def adapt(  # all but the document may be left out: one flat list, as people call it
    document: str | Path | Sequence[str | Path],
    model: str = "smollm2-135m",
    *,
    start: str | Path | None = None,
    run_folder: str | Path | None = None,
    teaching: Teaching = Teaching(),
    inner: FineTuning = INNER,
    notes: Notes = NOTES,
    compute: Compute = COMPUTE,
    style: Literal["auto", "raw", "chat"] = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    base: Base = "full",
    seed: int = 0,
    say: Callable[[str], None] | None = show,
) -> Adapted | list[Adapted]:
    """Teaches a model a document; minutes on two CPU cores for a page. The same arguments give the same adapter.

    Given a list of documents, it teaches each an adapter of its own, all trained together, and returns them in order.
    `Library` keeps such adapters, and finds the one that a question is about.

    Args:
      document: a .md, .txt or .pdf file, or several.
      model: as `--model`: embedded, a Hugging Face folder or id, or a GGUF file.
      start: a folder with a PEFT adapter that the model begins with.
      run_folder: where finished work is kept, so that a call that was interrupted carries on; by default nowhere.
      teaching, inner, notes: how passages and candidates, training, and writing are set.
      compute: how many adapters are trained at a time, on which devices.
      style: raw continues text, chat goes through the chat template (auto: where the model has one).
      dtype, base: precision of the model, and whether its layers are quantised.
      say: called with the name of each phase; None for silence.

    Raises:
      FileNotFoundError, ValueError: as `document.read_document` and `hub.find_model`; a document too long; divergence.
    """
    paths = [document] if isinstance(document, str | Path) else list(document)
    alone, read = isinstance(document, str | Path), [documents.read_document(path) for path in paths]
    if not read:
        raise ValueError("nothing to teach: the list of documents is empty")
    course = Course(model, teaching, inner, notes, style, dtype, base, seed)
    speaker = load_speaker(course, compute)
    below: tuple[Adapter, ...] = ()
    if start is not None:
        start = Path(start).expanduser()
        assert speaker.model is not None  # it has been loaded
        below = (peft.load_peft(start, speaker.model, hub.names(model)),)
        speaker = speaker._replace(lm=speaker.lm._replace(params=lora.merge(speaker.lm.params, below[0])))
    compute = dataclasses.replace(compute, chunk=compute.chunk or teaching.candidates)
    what = [read[0] if alone else read, lesson_texts(notes.prompt), [] if start is None else peft.fingerprint(start)]
    settings = identity(course, speaker, inputs=digest(what))
    with contextlib.ExitStack() as stack:
        journal: Journal = Memory()
        if run_folder is not None:
            folder = RunFolder(Path(run_folder).expanduser(), settings)
            journal = stack.enter_context(contextlib.closing(folder))
        taught = teach_documents(read, speaker, course, compute, journal, say or (lambda text: None))
    found = [dataclasses.replace(adapted, below=below) for adapted in taught]
    return found[0] if alone else found


def load_speaker(course: Course, compute: Compute) -> Speaker:
    """The course's model, on the devices."""
    with_devices(compute.devices)
    return runtime.load(
        course.model, dtype=course.dtype, style=course.style, devices=compute.devices, base=course.base,
        mesh=compute.mesh,
    )  # fmt: skip


def identity(course: Course, speaker: Speaker, **more: Any) -> dict[str, Any]:
    """What makes teaching the same: a run folder carries on only where all of it is."""
    weights = {"model": fingerprint.of_model(course.model)}
    return {**as_json(dataclasses.replace(course, style=speaker.style)), "weights": weights, **more}


def teach_documents(
    read: Sequence[Document],
    speaker: Speaker,
    course: Course,
    compute: Compute,
    journal: Journal,
    report: Callable[[str], None],
) -> list[Adapted]:
    """D documents, an adapter each, trained together. `report` is called with the name of each phase.

    Raises:
        ValueError: a document too long, or every candidate of one diverged.
    """
    lm, model, notes, inner = speaker.lm, speaker.model, course.notes, course.inner
    assert model is not None  # it has been loaded
    lessons = [make_lesson(one, speaker, grade_by_match, course.teaching, notes, compute) for one in read]
    all_shapes = [lesson.shapes for lesson in lessons]
    shapes = max(all_shapes, key=lambda own: own.widths[-1])._replace(
        capacity=max(own.capacity for own in all_shapes), question_width=max(own.question_width for own in all_shapes)
    )
    width = max(lesson.prompt_width for lesson in lessons)
    sizes = Writing(course.teaching.candidates, width, notes.sampling.max_tokens, notes.answer_tokens)
    cut = decided(
        journal, partial(runtime.fit, model, inner, shapes, compute, sizes, course.dtype, course.base, lm.mesh)
    )
    trainer = make_trainer(inner, shapes, cut, say=report)._replace(watch=tenths(report))
    loop = Loop(
        lessons[0].domain, trainer, notes.sampling, width,
        Chunk(cut.write_chunk or 1, "self-edits", report), notes.answer_tokens, course.seed, journal, Phases(report),
    )  # fmt: skip
    template = squad.load_prompts(notes.prompt, speaker.style).question
    return [
        Adapted(
            lm, model, course.model, taught.adapter, (), lesson.title, template, speaker.render, notes.answer_tokens,
            taught, course.dtype, course.base,
        )
        for lesson, taught in zip(lessons, teach(lm, lessons, loop, course.teaching), strict=True)
    ]  # fmt: skip


class Asking(msgspec.Struct):
    """asking.json."""

    base_model: str
    topic: str
    prompt: str
    max_new_tokens: int
    dtype: Literal["float32", "bfloat16"] = "float32"  # older files do not say what it was trained over
    base: Base = "full"


def read_asking(folder: Path, model: str | None = None) -> Asking:
    """How a saved adapter is asked, over `model` where one is named. Raises as `load_adapted`."""
    peft.require_files(folder)
    asking, file = Asking(model or "", "", "", NOTES.answer_tokens), folder / ASKING
    if file.is_file():
        asking = records.decode(file.read_bytes(), Asking, str(file), "the file as it was saved")
        asking.base_model = model or asking.base_model
    if not asking.base_model:
        raise ValueError(f"{folder}: no {ASKING} says which model the adapter is for: name it, --model NAME")
    return asking


def load_adapted(
    folder: str | Path, model: str | None = None, *, speaker: Speaker | None = None, compute: Compute = COMPUTE
) -> Adapted:
    """An adapter that was saved, by `Adapted.save` or by PEFT, over its model: `speaker`, or `model` in the
    precision that it was trained over (as PEFT saves one, float32).

    Raises:
        FileNotFoundError, ValueError: no adapter; one without asking.json where no model is named; another model's.
    """
    folder = Path(folder).expanduser()
    asking = read_asking(folder, model)
    name = asking.base_model
    if speaker is None:
        plain = squad.load_prompts(NOTES.prompt, "raw").question
        raw = asking.prompt == make_query(str, plain, asking.topic, "{question}", "").prompt
        course = Course(name, style="raw" if raw else "auto", dtype=asking.dtype, base=asking.base)
        speaker = load_speaker(course, compute)
    lm, shape = speaker.lm, speaker.model
    assert shape is not None  # it has been loaded
    template = squad.load_prompts(NOTES.prompt, speaker.style).question
    return Adapted(
        lm, shape, name, peft.load_peft(folder, shape, hub.names(name)), (), asking.topic, template, speaker.render,
        asking.max_new_tokens, dtype=asking.dtype, base=asking.base,
    )  # fmt: skip


def with_devices(devices: int | None) -> None:
    """Settles devices and the cache of programs, unless JAX has started already: then it stays as it is."""
    try:
        runtime.start(devices)
    except RuntimeError:
        if devices is not None:
            runtime.device_count(devices)
