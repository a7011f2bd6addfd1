"""Teach the model a document of your own, then ask it: answers before and after, side by side.

    python -m experiments.adapt --document notes.md                   # 2 CPU cores: minutes; then ask in the terminal
    python -m experiments.adapt --document notes.md --ask "Who keeps the lamp?" --save my-adapter --merged
    python -m experiments.adapt --document report.pdf --exam exam.json     # graded, on questions of your own
    python -m experiments.adapt large --document notes.md --model Qwen/Qwen2.5-7B --seal runs/squad-paper     # a GPU
    python -m experiments.adapt --adapter my-adapter --ask "Who keeps the lamp?"      # nothing is trained

The document (.md, .txt, .pdf) is cut into passages. The model writes notes on each, and questions whose answers stand
in it, which it is never trained on. Several candidate adapters, each trained on other notes of the whole document,
train at once, and the one that answers the questions best is kept. Since it is chosen by them, what it gets right of
them is a little flattered: an exam of your own (--exam) is not. The same command on the same folder carries on where
it was killed, and asks at once where it had finished.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from seal_jax.analysis.statistics import wilson
from seal_jax.domains import document as documents
from seal_jax.domains import squad
from seal_jax.domains.document import Document
from seal_jax.domains.passages import Passage, Question, load_questions
from seal_jax.engine import batching
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.io import peft
from seal_jax.nn import lora
from seal_jax.nn.lora import PROJECTIONS, Adapter
from seal_jax.run import command, knowledge, plan, session
from seal_jax.run.adapted import ANSWER_TOKENS, ASKING, INNER, SAMPLING, SEQUENCES, Adapted, Answer
from seal_jax.run.journal import RunFolder, digest, write_atomically
from seal_jax.run.judges import make_judge
from seal_jax.run.knowledge import Knowledge
from seal_jax.run.session import Experiment, Prepared, Session, Speaker
from seal_jax.seal import evaluation, teaching
from seal_jax.seal.rest_em import Trial
from seal_jax.seal.rewards import Score, mean
from seal_jax.seal.teaching import Taught, Teaching
from seal_jax.types import SelfEdit, Verdict

from . import cpt


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """Teaching a document: one run, and what is done with it afterwards."""

    data: tyro.conf.Suppress[str] = ""
    document: Path | None = None
    """What is taught: a .md, .txt or .pdf file."""
    prompt: str = "facts"
    """The self-edit prompt: facts (for small models), one of the paper's seven by name, or a TOML file of your own."""
    teaching: Teaching = Teaching()
    """Passages, candidates, and the questions that one is chosen by."""
    seal: Path | None = None
    """Begin with the model that this run folder of experiments.squad trained: it writes the notes, and learns."""
    adapter: Path | None = None
    """Begin with a PEFT adapter from this folder; without --document it is asked as it is."""
    exam: Path | None = None
    """Questions of your own, asked before and after and graded: JSON, [{"question", "answer"}]. Never trained on."""
    ask: tuple[str, ...] = ()
    """Questions, each in quotes. Without any, and in a terminal, you are asked for them."""
    save: Path | None = None
    """Write the adapter here, as PEFT reads it."""
    merged: bool = False
    """With --save: the whole model too, as a Hugging Face checkpoint, in the folder `merged` there."""


# no part of what a run is: what is done with the model that comes of it
AFTERWARDS: dict[str, Any] = {"exam": None, "ask": (), "save": None, "merged": False}

SMALL = Config(
    "small",
    sampling=SAMPLING,
    answer_tokens=ANSWER_TOKENS,
    max_sequences=SEQUENCES,
    inner=dataclasses.replace(INNER, chunk=Teaching().candidates),
)
LARGE = Config(
    "large",
    model="Qwen/Qwen2.5-7B-Instruct",
    dtype="bfloat16",
    prompt="implications",
    sampling=Sampling(max_tokens=512, temperature=1.0, top_p=0.95),
    answer_tokens=64,
    inner=FineTuning(projections=PROJECTIONS, rank=32, alpha=64.0, learning_rate=3e-4, epochs=6, batch_size=4),
    teaching=Teaching(
        passage_tokens=512,
        most_passages=256,
        candidates=8,
        learning_rates=(1e-4, 3e-4),
        grounded=0.0,  # an implication may well use other words than its passage
        questions=96,
    ),
)
SMOKE = dataclasses.replace(
    SMALL,
    preset="smoke",
    sampling=Sampling(max_tokens=24),
    answer_tokens=8,
    max_sequences=4,
    inner=FineTuning(epochs=1, chunk=2, width_cuts=()),
    teaching=Teaching(candidates=2, questions=4),
)

PRESETS = {
    "small": ("Minutes on 2 CPU cores for a page: a 135M model, 4 candidates.", SMALL),
    "large": ("A GPU that holds Qwen2.5-7B: 8 candidates at two learning rates.", LARGE),
    "smoke": ("Everything once, as small as it goes.", SMOKE),
}


# ---------------------------------------------------------------------------------------------------------------------
# What is read


class Inputs(NamedTuple):
    """All that a run reads from files."""

    document: Document | None
    exam: tuple[Question, ...]
    everything: list[Any]  # a run does not carry on over other texts, prompts or adapters


def read(config: Config) -> Inputs:
    """The document and the exam.

    Raises:
        FileNotFoundError, ValueError: nothing to teach or ask, a file that is not what it should be.
    """
    if config.document is None and config.adapter is None:
        raise ValueError(
            "nothing to teach: name a document, --document notes.md (.md, .txt or .pdf); or an adapter that is to be "
            "asked as it is, --adapter FOLDER"
        )
    if config.merged and config.save is None:
        raise ValueError("--merged writes into the folder of --save: name one, --save my-adapter --merged")
    if config.save is not None and config.save.expanduser().is_file():
        raise ValueError(f"--save {config.save}: a file; expected a folder to write into, or a name that is free")
    if config.adapter is not None:
        peft.require_files(config.adapter)
        topic_of(config)
    if any(not question.strip() for question in config.ask):
        raise ValueError('--ask "": an empty question; expected a sentence')
    document = None if config.document is None else documents.read_document(config.document)
    exam = () if config.exam is None else load_questions(config.exam, f"--exam {config.exam}")
    everything: list[Any] = [document, teaching.lesson_texts(config.prompt)]
    if config.seal is not None:
        everything.append(cpt.trained_by(as_cpt(config)))
    if config.adapter is not None:
        everything.append(peft.fingerprint(config.adapter))
    return Inputs(document, exam, everything)


def as_cpt(config: Config) -> cpt.Config:
    """The part of the settings that says which SEAL-trained model to begin with."""
    return cpt.Config("adapt", model=config.model, dtype=config.dtype, seal=config.seal)


# ---------------------------------------------------------------------------------------------------------------------
# The run


def phases(config: Config) -> list[str]:
    """All that a run will show, in order."""
    names = teaching.phases(config.teaching) if config.document else []
    return names + (["exam"] if config.exam else [])


def run(config: Config, run_folder: Path, command: str) -> dict[str, Any]:
    """One run, from the document to report.html, then the user's questions. Carries on where an earlier one stopped."""
    inputs = read(config)
    kept = dataclasses.replace(config, **AFTERWARDS, data=str(config.document or config.adapter))
    lessons: list[teaching.Lesson] = []

    def prepare(speaker: Speaker, folder: RunFolder, say: Callable[[str], None]) -> Prepared:
        judge = make_judge(config.grader, cache=folder.path / "judge.jsonl", devices=config.devices, say=say)
        if inputs.document is None:  # an adapter is asked as it is
            domain = squad.make_domain(squad.load_prompts(config.prompt, speaker.style), speaker.render, judge.grade)
            return Prepared(domain, Shapes((8,), 1, teaching.TOGETHER, 64, 8), 8, judge)
        lesson = teaching.make_lesson(
            inputs.document, speaker.lm, context_length=speaker.model.context_length, style=speaker.style,
            render=speaker.render, grade=judge.grade, teaching=config.teaching, prompt=config.prompt,
            max_sequences=config.max_sequences, sampling=config.sampling, answer_tokens=config.answer_tokens,
            inner=config.inner,
        )  # fmt: skip
        lessons.append(lesson)
        return Prepared(lesson.domain, lesson.shapes, lesson.prompt_width, judge, about=knowledge.about)

    with session.opened(
        kept, run_folder, "adapt", command=command, phases=phases(config), inputs=inputs.everything, prepare=prepare,
        samples=config.teaching.candidates,
    ) as here:  # fmt: skip
        below = begin_with(config, here)
        taught = None
        if lessons:
            taught = teaching.teach(here.lm, lessons[0], here.loop, config.teaching)
        adapted = Adapted(
            here.lm, here.model, config.model, taught.adapter if taught else peft_adapter(config, here),
            tuple(below), lessons[0].title if lessons else topic_of(config),
            squad.load_prompts(config.prompt, here.writer.style).question, here.writer.render, config.answer_tokens,
            here.loop.shapes, teaching.chunk_of(here.lm, here.loop, config.teaching.candidates), taught,
        )  # fmt: skip
        results = finish(config, here, inputs, adapted)
    afterwards(config, adapted, run_folder)
    return results


def begin_with(config: Config, here: Session) -> list[Adapter]:
    """Merges what the run begins with into the session's model, and returns those adapters in order."""
    below = [] if config.seal is None else cpt.seal_rounds(as_cpt(config), here.lm)
    if config.adapter is not None and config.document is not None:  # without a document it is what is asked
        below.append(peft_adapter(config, here))
    for adapter in below:
        here.lm = here.lm._replace(params=lora.merge(here.lm.params, adapter))
    return below


def peft_adapter(config: Config, here: Session) -> Adapter:
    """The adapter that `--adapter` names."""
    assert config.adapter is not None
    return peft.load_peft(config.adapter, here.model)


def topic_of(config: Config) -> str:
    """What an adapter that was saved here is about; nothing for others."""
    assert config.adapter is not None
    file = config.adapter / ASKING
    if not file.is_file():
        return ""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("topic", ""))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not as it was saved ({error}); save the adapter again, or remove it") from error


# ---------------------------------------------------------------------------------------------------------------------
# The results


def finish(config: Config, here: Session, inputs: Inputs, adapted: Adapted) -> dict[str, Any]:
    """results.json and the page: base model and kept adapter, every candidate, every question before and after."""
    taught, rows, tables = adapted.taught, [], []
    parts: dict[str, Any] = {}
    if taught is not None:
        asked = [p for p, passage in enumerate(taught.passages) if passage.questions]
        passages = [taught.passages[p] for p in asked]
        questions = sum(len(passage.questions) for passage in passages)
        if questions:
            rows = evaluation.rows(stages(taught, asked), passages, questions, seed=config.seed)
            tables.append(questions_table(taught))
        else:
            here.closing.append(
                "The model wrote no question whose answer stands in the document: the candidate with the lowest last "
                "loss was kept. Ask it yourself before you trust it, or use a larger model."
            )
        tables.insert(0, candidates_table(config, taught))
        record(here, taught)
        parts["chosen_candidate"] = taught.chosen
    if inputs.exam:
        parts["exam"], table = examine(here, adapted, inputs.exam)
        tables.append(table)
    answered = keep_answers(here.folder.path, adapted.ask_all(config.ask) if config.ask else [])
    if answered:
        told = [[question, *map(adapted.shown, said)] for question, *said in answered]
        tables.insert(0, {"title": "Asked", "columns": COLUMNS[:1] + COLUMNS[2:], "rows": told, "page_only": True})
    return here.finish(rows, tables=tables, **parts)


def stages(taught: Taught, asked: Sequence[int]) -> list[evaluation.Stage]:
    """The base model and the kept adapter, on the passages that have questions."""
    after = [taught.scores[p][taught.chosen] for p in asked]
    count = len(taught.settings)
    label = "Taught the document" + (f" (best of {count} candidates, by these questions)" if count > 1 else "")
    accuracy, likely = [score.accuracy for score in after], [score.log_likelihood for score in after]
    base = evaluation.base_stage([taught.base[p] for p in asked], "Base model")
    return [base, evaluation.Stage("taught", label, accuracy, likely, {})]


def record(here: Session, taught: Taught) -> None:
    """Every self-edit in self_edits.jsonl, and the losses as metrics."""
    trials = []
    for p, passage in enumerate(taught.passages):
        row = []
        for c, edits in enumerate(taught.edits[p]):
            score = taught.scores[p][c]
            examples = tuple(dict.fromkeys(example for edit in edits for example in edit.examples))
            problem = None if examples else edits[0].problem
            edit = SelfEdit("\n\n".join(edit.completion for edit in edits), examples, problem)
            row.append(Trial(passage, c, edit, [score._replace(losses=[] if p else taught.losses[c])], taught.base[p]))
        trials.append(row)
    keep = [[c == taught.chosen for c in range(len(taught.settings))] for _ in trials]
    here.miss((p, score, {"stage": "base"}) for p, score in zip(taught.passages, taught.base, strict=True))
    here.record("candidates", trials, np.array(keep))


def candidates_table(config: Config, taught: Taught) -> dict[str, Any]:
    """What each candidate was trained on, and how it answered."""
    by = config.teaching.choose_by if any(p.questions for p in taught.passages) else "the last loss: no question"
    rows = []
    for c, (settings, (count, tokens)) in enumerate(zip(taught.settings, taught.sequences, strict=True)):
        first, last = evaluation.first_and_last(taught.losses[c], settings.epochs)
        own = [row[c] for row in taught.scores]
        rows.append(
            [
                f"{c + 1}, kept" if c == taught.chosen else str(c + 1), settings.learning_rate, count, tokens, first,
                last, share(verdict for score in own for verdict in score.verdicts),
                teaching.figure(own, "log_likelihood"),
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
            rows.append(compared(question, (base.answers[q], after.answers[q]), (base.verdicts[q], after.verdicts[q])))
    title = "Questions that the model wrote, not trained on"
    return {"title": title, "columns": COLUMNS, "widths": WIDTHS, "rows": rows}


COLUMNS, WIDTHS = ["question", "expected", "before", "after"], [56, 24, 38, 38]


def compared(question: Question, answers: Sequence[str], verdicts: Sequence[Verdict]) -> list[str]:
    """A line of such a table; what was right is marked."""
    marks = ("+ " if verdict else "" for verdict in verdicts)
    said = (mark + answer for mark, answer in zip(marks, answers, strict=True))
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
        return [before, after, here.judge.grade(queries, before), here.judge.grade(queries, after)]

    before, after, right_before, right_after = here.folder.once(piece, ask)
    here.progress.advance(len(queries), accuracy=mean(right_after), resumed=resumed)
    task = Passage("exam", adapted.topic, "", tuple(exam))
    for stage, answers, verdicts in (("exam, before", before, right_before), ("exam, after", after, right_after)):
        here.miss([(task, Score(answers, verdicts, [], []), {"stage": stage})])
    record = {
        "questions": [question._asdict() for question in exam],
        "before": {"answers": before, "verdicts": right_before, "accuracy": mean(right_before)},
        "after": {"answers": after, "verdicts": right_after, "accuracy": mean(right_after)},
    }
    rows = [
        compared(question, answers, verdicts)
        for question, answers, verdicts in zip(
            exam, zip(before, after, strict=True), zip(right_before, right_after, strict=True), strict=True
        )
    ]
    title = f"Your exam: {share(right_before)} right before, {share(right_after)} after"
    known = [verdict for verdict in right_after if verdict is not None]
    shares = wilson(sum(known), len(known)) if known else None
    note = "+ is right." + (
        f" After: {100 * shares.low:.0f} to {100 * shares.high:.0f} % (Wilson, 95 %)." if shares else ""
    )
    return record, {"title": title, "note": note, "columns": COLUMNS, "widths": WIDTHS, "rows": rows}


# ---------------------------------------------------------------------------------------------------------------------
# Afterwards: save it, ask it


def keep_answers(folder: Path, answers: Sequence[Answer]) -> list[list[str]]:
    """Adds answers to answers.jsonl in the run folder, and returns all that were ever given, once each."""
    file = folder / "answers.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    lines = list(dict.fromkeys([*lines, *(json.dumps(answer._asdict()) for answer in answers)]))
    if answers:
        write_atomically(file, "".join(f"{line}\n" for line in lines))
    return [list(json.loads(line).values()) for line in lines]


def afterwards(config: Config, adapted: Adapted, folder: Path) -> None:
    """Writes the adapter where it is asked for, then shows the answers, which `folder` keeps, or asks for questions."""
    if config.save is not None:
        saved = adapted.save(config.save, merged=config.merged)
        print(f"Adapter (PEFT): {saved}")
        if config.merged:
            print(f"Whole model (Hugging Face): {saved / 'merged'}")
    if config.ask:
        given = {question: said for question, *said in keep_answers(folder, [])}
        print(
            side_by_side([Answer(question.strip(), *given[question.strip()]) for question in config.ask], adapted.shown)
        )
    elif sys.stdin is not None and sys.stdin.isatty():
        converse(adapted, folder)
    elif config.exam is None:  # a pipe or a batch job is not kept waiting
        print('No terminal, so no question is read; to ask, give the command again with --ask "..." "..."')


def converse(adapted: Adapted, folder: Path) -> None:
    """Questions from the terminal until an empty line, the end of input, or Ctrl-C."""
    print(f"Ask about {adapted.topic or 'anything'}; an empty line ends.")
    while True:
        try:
            question = input("? ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question:
            return
        try:
            answer = adapted.ask(question)
            keep_answers(folder, [answer])
            print(side_by_side([answer], adapted.shown))
        except ValueError as error:
            print(f"error: {error}")
        except KeyboardInterrupt:
            print()
            return


def side_by_side(answers: Sequence[Answer], shown: Callable[[str], str] = str, width: int | None = None) -> str:
    """Each question over its two answers, each as `shown`, in two columns of the terminal's width."""
    columns = width or min(120, shutil.get_terminal_size((80, 24)).columns)
    half = max(16, (columns - 5) // 2)
    lines = []
    for answer in answers:
        cells = [textwrap.wrap(shown(text) or "(nothing)", half) for text in (answer.before, answer.after)]
        lines += ["", *textwrap.wrap(answer.question, columns), f"  {'before':<{half}} | after"]
        lines += [f"  {a:<{half}} | {b}".rstrip() for a, b in itertools.zip_longest(*cells, fillvalue="")]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# The plan of a run, without running it


def describe(config: Config, run_folder: Path) -> str:
    """What a run reads, trains and needs. Loads no weights."""
    inputs, how = read(config), config.teaching
    tokens = lambda text: plan.tokens_of(len(text.split()))
    lines, work, count = [f"adapter {config.adapter}"] if config.adapter else [], [], 1
    if inputs.document is not None:
        passages = documents.passages(inputs.document, count=tokens, budget=how.passage_tokens)
        count = len(passages)
        lines.append(f"{config.document}: {inputs.document.words:,} words, about {count} passages")
        lines.append(f"{how.candidates} candidates, chosen by up to {how.questions} self-written questions")
        work.append(
            plan.inner_work(
                "candidates", how.candidates, config.inner, seeds=1, sequences=count * how.edits * config.max_sequences,
                tokens=count * (2 * how.passage_tokens + how.edits * config.sampling.max_tokens),
            )
        )  # fmt: skip
    if inputs.exam:
        lines.append(f"{len(inputs.exam)} questions of an exam: {config.exam}")
    longest = max(how.passage_tokens, config.sampling.max_tokens)
    shapes = Shapes(
        widths=batching.bucket_widths(longest, config.inner.width_cuts),
        capacity=count * how.edits * config.max_sequences,
        questions=teaching.TOGETHER,
        question_width=batching.round_up(knowledge.PROMPT_TOKENS + 2 * config.answer_tokens, 8),
        gold_width=batching.round_up(config.answer_tokens, 8),
    )
    width = batching.round_up(how.passage_tokens + 4 * knowledge.PROMPT_TOKENS, 8)
    return session.describe(config, lines, work, shapes, width, run_folder, samples=how.candidates)


def called(config: Config) -> str:
    """What the run folder's name begins with: each document has one of its own."""
    return f"adapt-{config.preset}" if config.document is None else f"adapt-{config.preset}-{config.document.stem}"


EXPERIMENT = Experiment("adapt", __doc__, PRESETS, describe, run, called, ("document", *AFTERWARDS))


def main(arguments: Sequence[str]) -> int:
    """Runs a command line, in which the document may stand without its option: `adapt notes.md`."""
    words = list(arguments)
    first = 1 if words and words[0] in PRESETS else 0
    if words[first:] and Path(words[first]).suffix.lower() in (".md", ".txt", ".pdf"):
        words.insert(first, "--document")
    return command.main(EXPERIMENT, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
