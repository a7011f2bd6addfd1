"""Passages and their questions, and the places to load them from.

The file format is that of the paper's own code: `[{title, context, questions: [{question, answer}], completions?}]`,
where `completions` are recorded self-edits. Whatever the source, a passage is checked here once and trusted afterwards.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import socket
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import unquote
from urllib.request import Request, urlopen

import msgspec
import numpy as np

from seal_jax.domains.records import Text, decode

T = TypeVar("T")
Split = Literal["train", "held_out"]

INVENTED = Path(__file__).parent / "data" / "invented.json"
EMBEDDED = {"invented": [INVENTED], "invented-300": [INVENTED, INVENTED.with_name("invented_more.json")]}
SPLIT_SOURCES = (*EMBEDDED, "squad", "tfds:squad")  # all of them come with held-out passages
PUBLISHED_SPLITS = {"train": "train", "held_out": "validation"}  # what SQuAD's publishers call our splits
FORM = "[{title, context, questions: [{question, answer}], completions?: [text]}]"
TFDS_DOWNLOADS_FROM = "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v1.1.json"


STAND_IN = "stand-in"  # a source for plans, where the real one is not on this machine


class NotFetched(FileNotFoundError):
    """A published data set that is neither on this machine nor could be fetched."""


class Question(NamedTuple):
    """A question about a passage, and its gold answer."""

    question: str
    answer: str


class Passage(NamedTuple):
    """A passage of knowledge to incorporate, and what may be asked of it."""

    id: str  # readable and unique: the title and a hash of the context, `the-brindle-clock-3f9a01c2`
    title: str
    context: str
    questions: tuple[Question, ...]
    completions: tuple[str, ...] = ()  # self-edits recorded by another run, if the file holds any


_NOT_EMPTY = msgspec.Meta(min_length=1)


class _QuestionRecord(msgspec.Struct):
    question: Text
    answer: Text


class _PassageRecord(msgspec.Struct):
    """A passage of the reference's format."""

    title: Text
    context: Text
    questions: Annotated[list[_QuestionRecord], _NOT_EMPTY]  # without one there is no reward
    completions: list[str] = []


class _InventedRecord(_PassageRecord, kw_only=True):
    split: Split


class _AnswerRecord(_QuestionRecord, rename={"answer": "gold"}):
    answer: Text  # declared again: what is inherited is not renamed


class _SelfEditRecord(msgspec.Struct):
    """A line of self_edits.jsonl; what else it holds is not needed here."""

    stage: Text
    passage: Text
    title: Text
    context: Text
    completion: str
    answers: Annotated[list[_AnswerRecord], _NOT_EMPTY]


def load_passages(source: str, split: Split) -> list[Passage]:
    """Loads the passages of one split, in the order of their source.

    Args:
      source: `invented` (embedded: 40 passages to train on and 20 held out, of facts that no model can know),
        `invented-300` (those and 240 more: 200 and 100), `squad` (rajpurkar/squad through Hugging Face datasets;
        held-out is its validation split: 2,067 passages, the paper's), `tfds:squad` (the same through
        tensorflow-datasets; needs no TensorFlow), or the path of a JSON file.
      split: `train` or `held_out`. A file has no splits: it is returned whole, so slice it (see `shuffled`).

    Raises:
      FileNotFoundError: no such file; NotFetched, one of them: the data set is neither cached nor can be downloaded.
      ValueError: the file is not as expected; says the path in it, what was found and what was expected.
    """
    if split not in PUBLISHED_SPLITS:
        raise ValueError(f"split is {split!r}; expected 'train' or 'held_out'")
    if source in EMBEDDED:
        files = [decode(path.read_bytes(), list[_InventedRecord], source, FORM) for path in EMBEDDED[source]]
        return _passages([record for records in files for record in records if record.split == split], source)
    if source == STAND_IN:
        return _stand_ins()
    if source in SPLIT_SOURCES:
        return _group_by_context(_squad(source, PUBLISHED_SPLITS[split]), source)
    return _passages(decode(_find_file(source).read_bytes(), list[_PassageRecord], source, FORM), source)


def load_questions(path: Path, where: str) -> tuple[Question, ...]:
    """Reads an exam, `[{question, answer}]`. Errors begin with `where`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is not as expected; says the path in it, what was found and what was expected.
    """
    form = "[{question, answer}], at least one"
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no such file; expected JSON, {form}")
    kind = Annotated[list[_QuestionRecord], _NOT_EMPTY]
    return _questions(decode(path.read_bytes(), kind, where, form))


def load_recorded(path: str | Path, stage: str | None = None) -> list[Passage]:
    """Passages with recorded self-edits: a file of the reference's format, or the folder of a finished run.

    Of a run folder, the self-edits of `stage` ("self_edits_round_1", "round 1") are read from `self_edits.jsonl`; by
    default those of its last evaluation on held-out passages.

    Raises:
      FileNotFoundError: no such file, or a folder without self_edits.jsonl.
      ValueError: the file is not as expected, or the run has no such stage; says which stages it has.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return load_passages(str(path), "held_out")
    file = folder / "self_edits.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no self_edits.jsonl; expected the folder of a run, or a JSON file")
    form = "one self-edit a line, {stage, passage, title, context, completion, answers: [{question, gold}]}"
    by_stage: dict[str, dict[str, _PassageRecord]] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        where = f"{file}: line {number}"
        edit = decode(line, _SelfEditRecord, where, form)
        of_stage = by_stage.setdefault(edit.stage, {})
        record = of_stage.setdefault(edit.passage, _PassageRecord(edit.title, edit.context, [*edit.answers]))
        record.completions.append(edit.completion)
    evaluations = [name for name in by_stage if name.startswith("self_edits_round_")]
    chosen = stage or (evaluations[-1] if evaluations else None)
    if chosen not in by_stage:
        raise ValueError(
            f"{file}: no self-edits of stage {chosen!r}; it has {', '.join(map(repr, by_stage)) or 'none'}"
        )
    return _passages(list(by_stage[chosen].values()), str(file))


def recorded_together(paths: Iterable[str | Path]) -> list[Passage]:
    """The passages of several files or run folders, each passage once, with the self-edits of all of them in order.

    Raises what `load_recorded` raises.
    """
    together: dict[str, Passage] = {}
    for passage in (passage for path in paths for passage in load_recorded(path)):
        earlier = together.get(passage.id, passage._replace(completions=()))
        together[passage.id] = earlier._replace(completions=earlier.completions + passage.completions)
    return list(together.values())


def shuffled(tasks: Sequence[T], seed: int) -> list[T]:
    """Passages, or other tasks, in an order that depends on the seed alone.

    Rounds take disjoint slices of it, `[start : start + n]`, so that each sees fresh tasks, as in the paper.
    """
    return [tasks[i] for i in np.random.default_rng(seed).permutation(len(tasks))]


def identify(name: str, content: str) -> str:
    """A readable and unique id: a name, and a hash of the content, because many passages share a title."""
    return f"{name.strip('-') or 'passage'}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def slug(text: str) -> str:
    """A text as part of an id: lower-case letters and digits, hyphens between."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _find_file(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise FileNotFoundError(
            f"{source} is a folder; expected a JSON file of passages, such as {source}/passages.json"
        )
    close = difflib.get_close_matches(source, SPLIT_SOURCES, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(SPLIT_SOURCES)}, or an existing file"
    raise FileNotFoundError(f"no data set and no file is called {source!r}: {hint}")


def _passages(records: Sequence[_PassageRecord], source: str) -> list[Passage]:
    if not records:
        raise ValueError(f"{source}: no passages; expected at least one")
    passages: list[Passage] = []
    first_index: dict[str, int] = {}  # context -> the passage that had it first
    for i, record in enumerate(records):
        title, context = record.title.strip(), record.context.strip()
        first = first_index.setdefault(context, i)
        if first < i:
            raise ValueError(
                f"{source}: passage {i}: has the same context as passage {first}; remove one, or join their questions"
            )
        name = identify(slug(title)[:40], context)
        passages.append(Passage(name, title, context, _questions(record.questions), tuple(record.completions)))
    return passages


def _stand_ins() -> list[Passage]:
    """As many, and about as long, as SQuAD's: 130 words on average, one in fifty 600, with 5 questions each."""
    found = []
    for number in range(2 * 2_067):
        length = 600 if number % 50 == 0 else 20 + number % 200
        asked = tuple(
            Question(f"question {n} of stand-in {number}, some ten words long", "a short answer") for n in range(5)
        )
        found.append(Passage(f"stand-in-{number}", f"Stand-in {number}", " ".join(["word"] * length), asked))
    return found


def _questions(records: Sequence[_QuestionRecord]) -> tuple[Question, ...]:
    return tuple(Question(record.question.strip(), record.answer.strip()) for record in records)


def _group_by_context(rows: Iterable[Mapping[str, Any]], source: str) -> list[Passage]:
    """SQuAD's rows, one a question (`title`, `context`, `question`, `answers`), -> passages in order of appearance.

    Of several gold answers the first is kept, as in the paper's code. Rows without an answer or with a blank
    question cannot be mended by the user: they are left out.
    """
    records: dict[str, _PassageRecord] = {}
    for row in rows:
        title = unquote(_decode(row["title"])).replace("_", " ")  # a title is the end of a Wikipedia address
        context, question = _decode(row["context"]).strip(), _decode(row["question"]).strip()
        answers = [_decode(text).strip() for text in row["answers"]["text"]]
        if question and answers and answers[0]:
            record = records.setdefault(context, _PassageRecord(title, context, []))
            record.questions.append(_QuestionRecord(question, answers[0]))
    return _passages(list(records.values()), source)


def _decode(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)  # tensorflow-datasets gives bytes


@contextmanager
def _offline_without_network() -> Iterator[None]:
    """Hugging Face's libraries look into their cache alone where there is no network: else they retry for half a minute
    before. From then on, unless the network was only slow; what else is wrong (a certificate) they say themselves."""
    import datasets
    import huggingface_hub

    places: list[Any] = [huggingface_hub.constants, datasets.config]
    before, reason = [place.HF_HUB_OFFLINE for place in places], None
    try:
        urlopen(Request(huggingface_hub.constants.ENDPOINT, method="HEAD"), timeout=20).close()
    except OSError as error:
        reason = getattr(error, "reason", error)  # an HTTPError's is text: the hub is there
    if isinstance(reason, socket.gaierror | ConnectionError | TimeoutError):
        for place in places:
            place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        if isinstance(reason, TimeoutError):
            for place, was in zip(places, before, strict=True):
                place.HF_HUB_OFFLINE = was


def _squad(source: str, split: str) -> Iterable[Mapping[str, Any]]:
    """SQuAD's rows as published, through Hugging Face datasets or tensorflow-datasets."""
    if source == "squad":
        import datasets

        name, cache = "rajpurkar/squad", datasets.config.HF_CACHE_HOME
    else:
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise ValueError(
                "tfds:squad needs tensorflow-datasets, which is not installed: pip install 'seal_jax[tfds]'; or use "
                "--data squad, the same data from the hub"
            ) from None

        name, cache = "SQuAD (tensorflow-datasets)", tfds.core.constants.DATA_DIR
    try:
        if source == "squad":
            with _offline_without_network():
                return datasets.load_dataset(name, split=split)
        builder = tfds.builder("squad")
        if not builder.is_prepared():
            urlopen(Request(TFDS_DOWNLOADS_FROM, method="HEAD"), timeout=20).close()  # else it retries for minutes
            builder.download_and_prepare(file_format="array_record")  # the format that is read without TensorFlow
        return builder.as_data_source(split)
    except Exception as error:  # the hubs, their caches and http each raise their own, unrelated classes
        reason = str(error).strip().split("\n")[0] or "no reason given"
        raise NotFetched(
            f"{name} could be neither read from the cache {cache} nor downloaded ({type(error).__name__}: {reason}). "
            'Either run once where there is a network, python -c "from seal_jax.domains.passages import load_passages; '
            f"load_passages('{source}', 'train')\", and copy {cache} here; or use your own JSON file, --data FILE; "
            "or the demo preset, whose data is embedded."
        ) from error
