"""Passages and their questions, and the four places to load them from.

The file format is that of the paper's own code: `[{title, context, questions: [{question, answer}], completions?}]`,
where `completions` are recorded self-edits. Whatever the source, a passage is checked here once and trusted afterwards.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote
from urllib.request import Request, urlopen

import numpy as np

from seal_jax.domains.records import describe, field, list_field, slug, text_field

Split = Literal["train", "held_out"]

INVENTED = Path(__file__).parent / "data" / "invented.json"
NAMED_SOURCES = ("invented", "squad", "tfds:squad")
SPLIT_SOURCES = ("invented", "squad", "tfds:squad")  # sources that come with held-out passages
PUBLISHED_SPLITS = {"train": "train", "held_out": "validation"}  # what SQuAD's publishers call our splits
TFDS_DOWNLOADS_FROM = "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v1.1.json"


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


def load_passages(source: str, split: Split) -> list[Passage]:
    """Loads the passages of one split, in the order of their source.

    Args:
      source: `invented` (embedded: 40 passages to train on and 20 held out, of facts that no model can know), `squad`
        (rajpurkar/squad through Hugging Face datasets; held-out is its validation split: 2,067 passages, the
        paper's), `tfds:squad` (the same through tensorflow-datasets; needs no TensorFlow), or the path of a
        JSON file.
      split: `train` or `held_out`. A file has no splits: it is returned whole, so slice it (see `shuffled`).

    Raises:
      FileNotFoundError: no such file, or the data set is neither cached nor to be had from here.
      ValueError: the file is not what it should be; says where (index, field) and what was expected.
    """
    if split not in PUBLISHED_SPLITS:
        raise ValueError(f"split is {split!r}; expected 'train' or 'held_out'")
    if source == "invented":
        records = _read_json(INVENTED)
        return _check_records([r for r in records if r["split"] == split], str(INVENTED))
    if source == "squad":
        return _group_by_context(_squad_from_hub(PUBLISHED_SPLITS[split]), source)
    if source == "tfds:squad":
        return _group_by_context(_squad_from_tfds(PUBLISHED_SPLITS[split]), source)
    return _check_records(_read_json(_find_file(source)), source)


def load_recorded(path: str | Path, stage: str | None = None) -> list[Passage]:
    """Passages with recorded self-edits: a file of the reference's format, or the folder of a finished run.

    Of a run folder, `self_edits.jsonl` lends the self-edits of `stage` ("self_edits_round_1", "round 1"), by default of
    its last evaluation on held-out passages.

    Raises:
      FileNotFoundError: no such file, or a folder without self_edits.jsonl.
      ValueError: the file is not what it should be, or the run has no such stage; says which it has.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return load_passages(str(path), "held_out")
    file = folder / "self_edits.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no self_edits.jsonl; expected the folder of a run, or a JSON file")
    by_stage: dict[str, dict[str, dict[str, Any]]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{file}: line {number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON: {error.msg}; expected one object a line") from error
        of_stage = by_stage.setdefault(text_field(entry, "stage", where), {})
        record = of_stage.setdefault(
            text_field(entry, "passage", where),
            {
                "title": text_field(entry, "title", where),
                "context": text_field(entry, "context", where),
                "questions": [
                    {"question": answer.get("question"), "answer": answer.get("gold")}
                    for answer in list_field(entry, "answers", where)
                ],
                "completions": [],
            },
        )
        record["completions"].append(field(entry, "completion", where))
    evaluations = [name for name in by_stage if name.startswith("self_edits_round_")]
    chosen = stage or (evaluations[-1] if evaluations else None)
    if chosen not in by_stage:
        raise ValueError(
            f"{file}: no self-edits of stage {chosen!r}; it has {', '.join(map(repr, by_stage)) or 'none'}"
        )
    return _check_records(list(by_stage[chosen].values()), str(file))


def recorded_together(paths: Iterable[str | Path]) -> list[Passage]:
    """The passages of several files or run folders, each passage once, with the self-edits of all of them in order.

    Raises what `load_recorded` raises.
    """
    together: dict[str, Passage] = {}
    for passage in (passage for path in paths for passage in load_recorded(path)):
        earlier = together.get(passage.id, passage._replace(completions=()))
        together[passage.id] = earlier._replace(completions=earlier.completions + passage.completions)
    return list(together.values())


def shuffled(passages: Sequence[Passage], seed: int) -> list[Passage]:
    """The passages in an order that depends on the seed alone.

    Rounds take disjoint slices of it, `[start : start + n]`, so that each sees fresh passages, as in the paper.
    """
    return [passages[i] for i in np.random.default_rng(seed).permutation(len(passages))]


def _find_file(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise FileNotFoundError(
            f"{source} is a folder; expected a JSON file of passages, such as {source}/passages.json"
        )
    close = difflib.get_close_matches(source, NAMED_SOURCES, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(NAMED_SOURCES)}, or an existing file"
    raise FileNotFoundError(f"no data set and no file is called {source!r}: {hint}")


def _read_json(path: Path) -> list[Any]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save the passages as UTF-8 JSON") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not JSON: line {error.lineno}, column {error.colno}: {error.msg}; "
            "expected [{title, context, questions: [{question, answer}]}] (JSON lines are not read)"
        ) from error
    if not isinstance(records, list):
        raise ValueError(
            f"{path}: found a JSON {type(records).__name__}; expected a list of passages, "
            "[{title, context, questions: [{question, answer}]}]"
        )
    return records


def _check_records(records: Sequence[Any], source: str) -> list[Passage]:
    """Records of the reference's format -> passages. Fields it does not know are ignored."""
    if not records:
        raise ValueError(f"{source}: no passages; expected at least one")
    passages: list[Passage] = []
    first_index: dict[str, int] = {}  # context -> the passage that had it first
    for i, record in enumerate(records):
        where = f"{source}: passage {i}"
        title = text_field(record, "title", where)
        context = text_field(record, "context", where)
        questions = tuple(
            Question(
                text_field(entry, "question", f"{where}, question {j}"),
                text_field(entry, "answer", f"{where}, question {j}"),
            )
            for j, entry in enumerate(list_field(record, "questions", where))
        )
        if not questions:
            raise ValueError(f"{where}: field 'questions' is empty; a passage without questions has no reward")
        completions = list_field(record, "completions", where) if "completions" in record else []
        for j, completion in enumerate(completions):
            if not isinstance(completion, str):
                raise ValueError(f"{where}: field 'completions'[{j}] is {describe(completion)}; expected text")
        if context in first_index:
            raise ValueError(
                f"{where}: has the same context as passage {first_index[context]}; remove one, or join their questions"
            )
        first_index[context] = i
        passages.append(Passage(_passage_id(title, context), title, context, questions, tuple(completions)))
    return passages


def _passage_id(title: str, context: str) -> str:
    """A hash of the context, because many passages share a title and results must not overwrite each other."""
    name = slug(title)[:40].strip("-") or "passage"
    return f"{name}-{hashlib.sha256(context.encode()).hexdigest()[:8]}"


def _group_by_context(rows: Iterable[Mapping[str, Any]], source: str) -> list[Passage]:
    """SQuAD's rows, one a question (`title`, `context`, `question`, `answers`), -> passages in order of appearance.

    Of several gold answers the first is kept, as in the paper's code. Rows without an answer or with a blank
    question are the publisher's, not the user's to mend: they are left out.
    """
    records: dict[str, dict[str, Any]] = {}
    for row in rows:
        title = unquote(_decode(row["title"])).replace("_", " ")  # a title is the end of a Wikipedia address
        context, question = _decode(row["context"]).strip(), _decode(row["question"]).strip()
        answers = [_decode(text).strip() for text in row["answers"]["text"]]
        if question and answers and answers[0]:
            record = records.setdefault(context, {"title": title, "context": context, "questions": []})
            record["questions"].append({"question": question, "answer": answers[0]})
    return _check_records(list(records.values()), source)


def _decode(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)  # tensorflow-datasets gives bytes


def _squad_from_hub(split: str) -> Iterable[Mapping[str, Any]]:
    import datasets

    try:
        return datasets.load_dataset("rajpurkar/squad", split=split)
    except Exception as error:  # the hub, its cache and http each raise their own, unrelated classes
        raise _not_to_be_had("squad", "rajpurkar/squad", datasets.config.HF_CACHE_HOME, error) from error


def _squad_from_tfds(split: str) -> Iterable[Mapping[str, Any]]:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(
            "tfds:squad needs tensorflow-datasets, which is not installed: pip install 'seal_jax[tfds]'; or use "
            "--data squad, the same data from the hub"
        ) from None
    try:
        builder = tfds.builder("squad")
        if not builder.is_prepared():
            urlopen(Request(TFDS_DOWNLOADS_FROM, method="HEAD"), timeout=20).close()  # else it retries for minutes
            builder.download_and_prepare(file_format="array_record")  # the format that is read without TensorFlow
        return builder.as_data_source(split)
    except Exception as error:  # as above
        folder = tfds.core.constants.DATA_DIR
        raise _not_to_be_had("tfds:squad", "SQuAD (tensorflow-datasets)", str(folder), error) from error


def _not_to_be_had(source: str, name: str, cache: str, error: Exception) -> FileNotFoundError:
    reason = str(error).strip().split("\n")[0] or "no reason given"
    return FileNotFoundError(
        f"{name} could be neither read from the cache {cache} nor downloaded ({type(error).__name__}: {reason}). "
        f'Either run once where there is a network, python -c "from seal_jax.domains.passages import load_passages; '
        f"load_passages('{source}', 'train')\", and copy {cache} here; or use a JSON file of your own, --data FILE; "
        "or the demo preset, whose data is embedded."
    )
