"""Runs that teach a document: what is read, what is found, and what is done afterwards."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from seal_jax.analysis.statistics import wilson
from seal_jax.domains import document as documents
from seal_jax.domains import squad
from seal_jax.domains.document import Document
from seal_jax.domains.passages import Passage, Question, load_questions
from seal_jax.io import hub, peft
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.run import passages, plan, pretraining
from seal_jax.run.adapted import Adapted, Answer, Notes, lesson_texts, make_lesson
from seal_jax.run.journal import RunFolder, digest, write_atomically
from seal_jax.run.plan import Most, Stage, section
from seal_jax.run.session import Model, Prepared, Session
from seal_jax.run.terminal import shell_command, show
from seal_jax.seal import evaluation
from seal_jax.seal.rewards import Score, Trial, mean
from seal_jax.seal.teaching import WRITING_QUESTIONS, Taught, chosen_by, figure
from seal_jax.types import SelfEdit, Verdict

# ---------------------------------------------------------------------------------------------------------------------
# What is read


class Material(NamedTuple):
    """All that a run reads from files."""

    document: Document
    exam: tuple[Question, ...]
    config: Any  # with what is done afterwards, which is no part of what a run is
    inputs: list[Any]
    lines: list[str]
    stages: list[Stage]


def read(config: Any) -> Material:
    """The document and the exam.

    Raises:
        FileNotFoundError, ValueError: nothing to teach, a file that is not what it should be.
    """
    if config.document is None:
        raise ValueError(
            "nothing to teach: name a document, --document notes.md (.md, .txt or .pdf). An adapter is asked as it is "
            f"by {shell_command('library', 'ask', str(config.adapter or 'FOLDER'), 'A question?')}"
        )
    if config.merged and config.save is None:
        raise ValueError("--merged writes into the folder of --save: name one, --save my-adapter --merged")
    if config.merged and config.base != "full":
        raise ValueError(
            f"--merged writes a model of full weights, and --base {config.base} keeps none to merge into: leave one of "
            "the two out; --save alone writes the adapter"
        )
    if config.save is not None and config.save.expanduser().is_file():
        raise ValueError(f"--save {config.save}: a file; expected a folder to write into, or a name that is free")
    if config.adapter is not None:
        peft.require_files(config.adapter)
    if any(not question.strip() for question in config.ask):
        raise ValueError('--ask "": an empty question; expected a sentence')
    document = documents.read_document(config.document)
    exam = () if config.exam is None else load_questions(config.exam, f"--exam {config.exam}")
    everything: list[Any] = [document, lesson_texts(config.prompt)]
    if config.seal is not None:
        everything.append(pretraining.trained_by(config))
    if config.adapter is not None:
        everything.append(peft.fingerprint(config.adapter))
    how, lines, stages = config.teaching, [f"adapter {config.adapter}"] if config.adapter else [], list[Stage]()
    lines.append(f"{config.document}: {document.words:,} words")
    lines.append(f"{how.candidates} candidates, chosen by up to {how.questions} self-written questions")
    stages.append(Stage("questions", (WRITING_QUESTIONS,)))
    stages += [Stage(f"self-edits {n}", (plan.WRITE,)) for n in range(1, how.edits + 1)]
    stages += [Stage("", ("base model",)), Stage("candidates", ("training", "questions"), how.candidates)]
    if exam:
        lines.append(f"{len(exam)} questions of an exam: {config.exam}")
        stages.append(Stage("", ("exam",)))
    return Material(document, exam, config, everything, lines, stages)


def prepare(config: Any, data: Material, model: Model) -> Prepared:
    """The lesson, and the sizes of all programs."""
    speaker, how = model.speaker, config.teaching
    notes = Notes(config.prompt, config.max_sequences, config.sampling, config.answer_tokens)
    lesson = make_lesson(data.document, speaker, model.judge.grade, how, notes, model.compute)
    most = Most(lesson.shapes.capacity, lesson.shapes.capacity * config.sampling.max_tokens, how.passage_tokens)
    return Prepared(
        lesson.domain, lesson.shapes, lesson.prompt_width, most, samples=how.candidates, about=passages.about,
        notes=[section("Lesson", [f"{len(lesson.passages)} passages of at most {how.passage_tokens} tokens"])],
        lesson=lesson,
    )  # fmt: skip


def adapted_model(config: Any, here: Session, below: Sequence[Adapter], taught: Taught) -> Adapted:
    """The session's model with what it was taught."""
    assert here.speaker.model is not None
    alone = here.lm._replace(hosts=None)  # process 0 asks it when the others have gone
    return Adapted(
        alone, here.speaker.model, config.model, taught.adapter, tuple(below), here.lesson.title,
        squad.load_prompts(config.prompt, here.writer.style).question, here.writer.render, config.answer_tokens, taught,
        config.dtype, config.base,
    )  # fmt: skip


def begin_with(config: Any, here: Session) -> list[Adapter]:
    """Merges what the run begins with into the session's model, and returns those adapters in order."""
    below = [] if config.seal is None else pretraining.seal_rounds(config, here.lm)
    if config.adapter is not None:
        assert here.speaker.model is not None
        below.append(peft.load_peft(config.adapter, here.speaker.model, hub.names(config.model)))
    for adapter in below:
        here.lm = here.lm._replace(params=lora.merge(here.lm.params, adapter))
    return below


# ---------------------------------------------------------------------------------------------------------------------
# The results


def finish(config: Any, here: Session, inputs: Material, adapted: Adapted) -> dict[str, Any]:
    """results.json and the page: base model and kept adapter, every candidate, every question before and after."""
    taught, rows = adapted.taught, []
    assert taught is not None
    tables, parts = [candidates_table(config, taught)], dict[str, Any](chosen_candidate=taught.chosen)
    asked = [p for p, passage in enumerate(taught.passages) if passage.questions]
    passages = [taught.passages[p] for p in asked]
    questions = sum(len(passage.questions) for passage in passages)
    if questions:
        rows = evaluation.rows(stages(taught, asked), passages, questions, seed=config.seed)
        rows = [row | counted(scores) for row, scores in zip(rows, scores_of(taught, asked), strict=True)]
        tables.append(questions_table(taught))
    else:
        here.closing.append(
            "The model wrote no question whose answer stands in the document: the candidate with the lowest last "
            "loss was kept. Ask it yourself before you trust it, or use a larger model."
        )
    record(here, taught)
    if inputs.exam:
        parts["exam"], table = examine(here, adapted, inputs.exam)
        tables.append(table)
    answered = keep_answers(here.folder, adapted.ask_all(config.ask) if config.ask else [])
    if answered:
        told = [[answer.question, *answer.shown] for answer in answered]
        tables.insert(0, {"title": "Asked", "columns": COLUMNS[:1] + COLUMNS[2:], "rows": told, "page_only": True})
    return here.finish(rows, tables=tables, **parts)


def stages(taught: Taught, asked: Sequence[int]) -> list[evaluation.Stage]:
    """The base model and the kept adapter, on the passages that have questions."""
    before, after = scores_of(taught, asked)
    count = len(taught.settings)
    label = "Taught the document" + (f" (best of {count} candidates, by these questions)" if count > 1 else "")
    accuracy, likely = [score.accuracy for score in after], [score.log_likelihood for score in after]
    base = evaluation.base_stage(before, "Base model")
    own = [edit for row in taught.edits for edit in row[taught.chosen]]
    problems = evaluation.problems_of_writing(own) | evaluation.cut_answers(after)
    return [base, evaluation.Stage("taught", label, accuracy, likely, problems)]


def scores_of(taught: Taught, asked: Sequence[int]) -> tuple[list[Score], list[Score]]:
    """Before and after, of the passages that have questions."""
    return [taught.base[p] for p in asked], [taught.scores[p][taught.chosen] for p in asked]


def counted(scores: Sequence[Score]) -> dict[str, Any]:
    """The share of questions answered right, its interval over questions: they are of one document, and few."""
    known = [verdict for score in scores for verdict in score.verdicts if verdict is not None]
    found = wilson(sum(known), len(known))
    return {"accuracy": found.as_json(), "interval": "Wilson"}


def record(here: Session, taught: Taught) -> None:
    """Every self-edit in self_edits.jsonl, and the losses as metrics."""
    trials = []
    for p, passage in enumerate(taught.passages):
        row = []
        for c, edits in enumerate(taught.edits[p]):
            score = taught.scores[p][c]
            examples = tuple(dict.fromkeys(example for edit in edits for example in edit.examples))
            problem = None if examples else edits[0].problem
            edit = SelfEdit(
                "\n\n".join(edit.completion for edit in edits), examples, problem,
                left_out=sum(edit.left_out for edit in edits), shortened=sum(edit.shortened for edit in edits),
            )  # fmt: skip
            row.append(Trial(passage, c, edit, [score._replace(losses=[] if p else taught.losses[c])], taught.base[p]))
        trials.append(row)
    keep = [[c == taught.chosen for c in range(len(taught.settings))] for _ in trials]
    here.miss((p, score, {"stage": "base"}) for p, score in zip(taught.passages, taught.base, strict=True))
    here.record("candidates", trials, np.array(keep))


def candidates_table(config: Any, taught: Taught) -> dict[str, Any]:
    """What each candidate was trained on, and how it answered."""
    asked = any(p.questions for p in taught.passages)
    by = chosen_by(taught.base, config.teaching) if asked else "the last loss: no question"
    rows = []
    for c, (settings, (count, tokens)) in enumerate(zip(taught.settings, taught.sequences, strict=True)):
        first, last = evaluation.first_and_last(taught.losses[c], settings.epochs)
        own = [row[c] for row in taught.scores]
        rows.append(
            [
                f"{c + 1}, kept" if c == taught.chosen else str(c + 1), settings.learning_rate, count, tokens, first,
                last, share(verdict for score in own for verdict in score.verdicts),
                figure(own, "log_likelihood"),
            ]
        )  # fmt: skip
    return {
        "title": "Candidates",
        "note": f"Losses are means over an epoch, nats a token. Chosen by {by}.",
        "columns": ["candidate", "learning rate", "sequences", "tokens", "loss, first epoch", "loss, last epoch",
                    "right", "log-likelihood"],
        "rows": rows,
    }  # fmt: skip


def questions_table(taught: Taught) -> dict[str, Any]:
    """The self-written questions, and what the model answered before and after."""
    rows = []
    for p, passage in enumerate(taught.passages):
        base, after = taught.base[p], taught.scores[p][taught.chosen]
        for q, question in enumerate(passage.questions):
            cut, cut_too = (q < len(score.cut) and score.cut[q] for score in (base, after))
            answer = Answer(question.question, base.answers[q], after.answers[q], cut, cut_too)
            rows.append(compared(question, answer, (base.verdicts[q], after.verdicts[q])))
    title = "Questions that the model wrote, not trained on"
    return {"title": title, "columns": COLUMNS, "widths": WIDTHS, "rows": rows}


COLUMNS, WIDTHS = ["question", "expected", "before", "after"], [56, 24, 38, 38]


def compared(question: Question, answer: Answer, verdicts: Sequence[Verdict]) -> list[str]:
    """A line of such a table; what was right is marked."""
    marks = ("+ " if verdict else "" for verdict in verdicts)
    said = (mark + text for mark, text in zip(marks, answer.shown, strict=True))
    return [question.question, question.answer, *said]


def share(verdicts: Iterable[Verdict]) -> str:
    """`9 of 12`; those without a verdict are left out."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return f"{sum(known)} of {len(known)}" if known else ""


def examine(here: Session, adapted: Adapted, exam: Sequence[Question]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The user's own questions before and after, graded: for results.json, and as a table."""
    queries = adapted.queries(exam)
    here.progress.phase("exam", len(queries), "questions")
    piece = f"exam/{digest(list(exam))}"
    resumed = here.folder.has(piece)

    def ask() -> list[list[Any]]:
        answers = adapted.ask_queries(queries)
        before, after = [answer.before for answer in answers], [answer.after for answer in answers]
        return [list(answers), here.judge.grade(queries, before), here.judge.grade(queries, after)]

    kept, right_before, right_after = here.folder.once(piece, ask)
    answers = [Answer(*fields) for fields in kept]
    here.progress.advance(len(queries), accuracy=mean(right_after), resumed=resumed)
    task = Passage("exam", adapted.topic, "", tuple(exam))
    record: dict[str, Any] = {"questions": [question._asdict() for question in exam]}
    for stage, right in (("before", right_before), ("after", right_after)):
        said, cut = ([getattr(answer, name) for answer in answers] for name in (stage, f"{stage}_cut"))
        here.miss([(task, Score(said, right, [], [], cut=cut), {"stage": f"exam, {stage}"})])
        record[stage] = {"answers": said, "cut": cut, "verdicts": right, "accuracy": mean(right)}
    verdicts = zip(right_before, right_after, strict=True)
    rows = [compared(*asked) for asked in zip(exam, answers, verdicts, strict=True)]
    title = f"Your exam: {share(right_before)} right before, {share(right_after)} after"
    note = "+ is right."
    if known := [verdict for verdict in right_after if verdict is not None]:
        shares = wilson(sum(known), len(known))
        note += f" After: {100 * shares.low:.0f} to {100 * shares.high:.0f} % (Wilson, 95 %)."
    return record, {"title": title, "note": note, "columns": COLUMNS, "widths": WIDTHS, "rows": rows}


# ---------------------------------------------------------------------------------------------------------------------
# Afterwards: save it, ask it


def keep_answers(folder: RunFolder, answers: Sequence[Answer]) -> list[Answer]:
    """Adds answers to answers.jsonl in the run folder, and returns all that this run's model ever gave, once each.

    A line also holds the run's identity (an adapter that was replaced answers anew) and a checksum.
    """
    file = folder.path / "answers.jsonl"
    given = file.read_bytes().splitlines() if file.is_file() else []
    mine = [{"run": folder.identity, **answer._asdict()} for answer in answers]
    lines = list(dict.fromkeys([*given, *(json.dumps({**own, "check": digest(own)}).encode() for own in mine)]))
    if answers:
        write_atomically(file, b"".join(line + b"\n" for line in lines))
    kept = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # a damaged line is no answer
            own = dict(json.loads(line))
            if own.pop("check", None) == digest(own) and own.pop("run") == folder.identity:
                kept.append(Answer(**own))
    return kept


def afterwards(config: Any, adapted: Adapted, folder: RunFolder) -> None:
    """Writes the adapter where it is asked for, then shows the answers, which `folder` keeps, or asks for questions."""
    if config.save is not None:
        saved = adapted.save(config.save, merged=config.merged)
        show(f"Adapter (PEFT): {saved}")
        if config.merged:
            show(f"Whole model (Hugging Face): {saved / 'merged'}")
    if config.ask:
        given = {answer.question: answer for answer in keep_answers(folder, [])}
        show(side_by_side([given[question.strip()] for question in config.ask]))
    elif sys.stdin is not None and sys.stdin.isatty():
        converse(adapted, folder)
    elif config.exam is None:  # a pipe or a batch job is not kept waiting
        show('No terminal, so no question is read; to ask, give the command again with --ask "..." "..."')


class Asked(Protocol):
    """What answers questions: an `Adapted`, or a library."""

    @property
    def topic(self) -> str: ...
    def ask(self, question: str) -> Answer: ...


def converse(asked: Asked, folder: RunFolder | None = None) -> None:
    """Questions from the terminal until an empty line, the end of input, or Ctrl-C. A run folder keeps the answers."""
    show(f"Ask about {asked.topic or 'anything'}; an empty line ends.")
    while True:
        try:
            question = input("? ").strip()
        except (EOFError, KeyboardInterrupt):
            show("")
            return
        if not question:
            return
        try:
            answer = asked.ask(question)
            if folder is not None:
                keep_answers(folder, [answer])
            show(side_by_side([answer]))
        except (ValueError, FileNotFoundError) as error:  # the latter of a document that was removed
            show(f"error: {error}")
        except KeyboardInterrupt:
            show("")
            return


def side_by_side(answers: Sequence[Answer], width: int | None = None) -> str:
    """Each question over its two answers, in two columns of the terminal's width."""
    columns = width or min(120, shutil.get_terminal_size((80, 24)).columns)
    half = max(16, (columns - 5) // 2)
    lines = []
    for answer in answers:
        cells = [textwrap.wrap(text or "(nothing)", half) for text in answer.shown]
        after = "after" if answer.sure is None else f"{answer.document or 'no document'} ({answer.sure:.0%} sure)"
        lines += ["", *textwrap.wrap(answer.question, columns), f"  {'before':<{half}} | {after}"]
        lines += [f"  {a:<{half}} | {b}".rstrip() for a, b in itertools.zip_longest(*cells, fillvalue="")]
    return "\n".join(lines)
