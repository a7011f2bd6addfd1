"""Teaching a model a document: it writes notes and questions on it, learns the notes, and is asked.

The document is cut into passages. On each the model writes self-edits, and questions whose answers stand in it; the
questions are never trained on. A candidate is one adapter over the whole document: its own share of the self-edits of
every passage, the passages, and their sentences one by one. All candidates train at once, rows of one adapter axis, and
the one that answers the questions best is kept. `teach` reads as that list, for one document or for many at once.
`run/adapted.py` begins with a file's name, `run/library.py` with many.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from seal_jax.analysis.statistics import FEWEST
from seal_jax.domains import document as documents
from seal_jax.domains import squad
from seal_jax.domains.squad import Passage, Question
from seal_jax.engine import batching, training
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.graders.lexical import normalise
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.sharding import lanes
from seal_jax.seal.outer.rest_em import select
from seal_jax.seal.rewards import Score, gold_tokens, mean, score_tasks
from seal_jax.seal.rounds import Loop, write_self_edits
from seal_jax.types import Domain, Example, LanguageModel, Query, SelfEdit, Settings, require_at_least

GROUNDED_QUESTION = 0.5  # of a question's longer words, so many must stand in its passage, or it asks of something else
QUESTIONS = Path(squad.PROMPT_FOLDER).parent / "document" / "questions.toml"
WRITING_QUESTIONS = "writing questions"  # what the display says
TOGETHER = 8  # questions asked of an adapter at a time; more are asked in groups
T = TypeVar("T")
ANSWER_WORDS = 12  # of a self-written question, at most: longer ones are sentences, not answers


@dataclasses.dataclass(frozen=True)
class Teaching:
    """How a document is taught. All defaults are ours."""

    passage_tokens: int = 128  # at most, of a passage
    most_passages: int = 64  # of a document; more are refused: training time grows with them
    candidates: int = 4  # adapters trained at once, each on other self-edits of all passages
    edits: int = 2  # self-edits of a passage that one candidate is trained on
    grounded: float = 0.7  # of a sentence's longer words, so many must stand in its passage; 0 keeps all sentences
    sentences: bool = True  # train on the sentences of a passage, too, each for itself
    learning_rates: tuple[float, ...] = ()  # of the candidates, by turns; () is the inner loop's for all
    questions: int = 24  # self-written, spread over the passages; the candidate is chosen by them
    choose_by: Literal["accuracy", "log_likelihood", "probability"] = "accuracy"
    """Ties, and accuracy over fewer than eight questions: by log-likelihood."""

    def __post_init__(self) -> None:
        require_at_least(
            1, passage_tokens=self.passage_tokens, most_passages=self.most_passages, candidates=self.candidates,
            edits=self.edits, questions=self.questions,
        )  # fmt: skip
        if not 0 <= self.grounded <= 1:
            raise ValueError(f"grounded is {self.grounded}; expected a share, 0 to 1")
        if any(not rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates are {self.learning_rates}; expected numbers above 0")


class Lesson(NamedTuple):
    """A document made ready for a model."""

    title: str  # the topic of every question, as a person names it who asks one
    passages: list[Passage]  # without questions
    domain: Domain
    questions_prompt: Callable[[Passage], str]
    shapes: Shapes
    prompt_width: int


class Taught(NamedTuple):
    """What came of teaching C candidates P passages."""

    adapter: Adapter  # the best candidate's
    chosen: int
    passages: list[Passage]  # [P], with the self-written questions that were asked
    edits: list[list[list[SelfEdit]]]  # [P][C], `Teaching.edits` of each
    settings: list[Settings]  # [C]
    sequences: list[tuple[int, int]]  # [C], training sequences and their tokens
    losses: list[list[float]]  # [C], one a step
    base: list[Score]  # [P]
    scores: list[list[Score]]  # [P][C]


# ---------------------------------------------------------------------------------------------------------------------
# Teaching


def teach(lm: LanguageModel, lessons: Sequence[Lesson], loop: Loop, teaching: Teaching) -> list[Taught]:
    """The lines of the module's docstring, one after another, for D documents at once: all their candidates are rows of
    one adapter axis. What a document's learn depends on its neighbours only through the sizes that all share: longer
    self-written lines are cut, and longer questions left out. Each line is a piece of `loop.journal`, or several.
    `loop.trainer.shapes` and `loop.prompt_width` have room for every lesson.

    Raises:
        ValueError: every candidate of a document diverged.
    """
    each, passages = teaching.candidates, [passage for lesson in lessons for passage in lesson.passages]
    asked = write_questions(lm, lessons, loop, teaching)
    written = [
        write_self_edits(lm, passages, loop, samples=each, name=f"self-edits {n}") for n in range(1, teaching.edits + 1)
    ]
    edits = by_document(
        [[[part[p][c] for part in written] for c in range(each)] for p in range(len(passages))], lessons
    )
    queries = [list(map(lesson.domain.queries, own)) for lesson, own in zip(lessons, asked, strict=True)]
    at_once = chunk_of(lm, loop, each * len(lessons))
    # A small model writes few questions that can be asked, and an empty place costs as much as a question.
    most, shapes = max(sum(map(len, own)) for own in queries), loop.trainer.shapes
    shapes = shapes._replace(questions=min(shapes.questions, 1 << max(0, most - 1).bit_length()))
    loop = loop._replace(trainer=loop.trainer._replace(shapes=shapes))

    def untaught() -> Adapter:
        return training.untrained(lm, 1, loop.trainer._replace(chunk=Chunk(1)))

    everything = [[own for document in queries for own in document]]
    (known,) = compare(lm, untaught, everything, loop, at_once, rows=1, piece="base", shown="base model")
    settings = candidate_settings(teaching, loop.trainer.config)
    sequences = [
        [batching.tokenize(example, lm.codec) for example in candidate_examples(lesson.passages, own, c, teaching)]
        for lesson, own in zip(lessons, edits, strict=True)
        for c in range(each)
    ]
    candidates, losses = train_candidates(lm, sequences, settings * len(lessons), loop, at_once)
    of_rows = [own for own in queries for _ in range(each)]
    scores = compare(
        lm, candidates, of_rows, loop, at_once, rows=each, piece="candidates/scores", shown="candidates: questions"
    )
    places = [slice(d * each, (d + 1) * each) for d in range(len(lessons))]
    chosen = [
        choose(scores[own], losses[own], teaching, of=lesson.title) for own, lesson in zip(places, lessons, strict=True)
    ]

    def keep() -> Adapter:
        rows = np.array([own.start + c for own, c in zip(places, chosen, strict=True)])
        return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], candidates())

    like = training.adapter_shapes(lm, loop.trainer.config, len(lessons))
    adapters = restored(loop.journal.once_tree("adapters", keep, like=like))
    loop.journal.forget_tree("candidates")  # the others are not asked for again
    return [
        Taught(
            lora.take(adapters, d), chosen[d], asked[d], edits[d], settings, [size_of(s) for s in sequences[own]],
            losses[own], base, [list(row) for row in zip(*scores[own], strict=True)],
        )
        for d, (own, base) in enumerate(zip(places, by_document(known, lessons), strict=True))
    ]  # fmt: skip


def by_document(values: Sequence[T], lessons: Sequence[Lesson]) -> list[list[T]]:
    """One value a passage of all documents, in order -> [D][P]."""
    rest = iter(values)
    return [list(itertools.islice(rest, len(lesson.passages))) for lesson in lessons]


def train_candidates(
    lm: LanguageModel,
    sequences: Sequence[Sequence[batching.Tokens]],
    settings: Sequence[Settings],
    loop: Loop,
    at_once: Chunk,
) -> tuple[Callable[[], Adapter], list[list[float]]]:
    """E adapters, trained together, and their losses. The adapters are read only where something asks for them."""
    tokens = sum(chosen.epochs * size_of(own)[1] for chosen, own in zip(settings, sequences, strict=True))
    loop.display.phase("candidates: training", len(sequences), "adapters")

    def train() -> Adapter:
        adapters, losses = training.train(
            lm, sequences, loop.trainer._replace(chunk=at_once), seed=loop.seed, settings=settings
        )
        kept = [[float(loss) for loss in own if math.isfinite(loss)] for own in losses]
        loop.journal.once("candidates/losses", lambda: kept)  # before the checkpoint: where that is, these are
        return adapters

    @cache
    def candidates() -> Adapter:
        return restored(
            loop.journal.once_tree(
                "candidates", train, like=training.adapter_shapes(lm, loop.trainer.config, len(sequences))
            )
        )

    resumed = loop.journal.has("candidates/losses")
    if not loop.journal.has("candidates/scores"):
        candidates()
    loop.display.advance(len(sequences), adapters=len(sequences), tokens=tokens, resumed=resumed)
    return candidates, loop.journal.once("candidates/losses", list)


def compare(
    lm: LanguageModel,
    adapters: Callable[[], Adapter],
    queries: Sequence[Sequence[Sequence[Query]]],
    loop: Loop,
    at_once: Chunk,
    *,
    rows: int,
    piece: str,
    shown: str,
) -> list[list[Score]]:
    """What each of E adapters answers to its queries, [E][P][Q], graded: [E][P].

    The display calls it `shown`, and has the mean accuracy of the best of each `rows` adapters, those of a document.
    """
    asked = sum(len(own) for passages in queries[::rows] for own in passages)
    loop.display.phase(shown, asked, "questions")
    resumed = loop.journal.has(piece)

    def ask() -> list[list[Score]]:
        shapes, grade = loop.trainer.shapes, loop.domain.grade
        return score_tasks(lm, adapters(), queries, grade, shapes, max_tokens=loop.answer_tokens, chunk=at_once)

    scores = [[Score(**values) for values in row] for row in loop.journal.once(piece, ask)]
    accuracies = [figure(own, "accuracy") for own in scores]
    groups = (accuracies[start : start + rows] for start in range(0, len(accuracies), rows))
    best = mean(max((value for value in group if value is not None), default=None) for group in groups)
    loop.display.advance(asked, accuracy=best, resumed=resumed)
    return scores


def size_of(sequences: Sequence[batching.Tokens]) -> tuple[int, int]:
    """How many they are, and their tokens."""
    return len(sequences), sum(len(own.ids) for own in sequences)


def write_questions(
    lm: LanguageModel, lessons: Sequence[Lesson], loop: Loop, teaching: Teaching
) -> list[list[Passage]]:
    """The passages, [D][P], with self-written questions: those whose answer stands in the passage, spread evenly over
    the passages of a document.

    Drawn as often as self-edits are, with the same program.
    """
    first = lessons[0]
    domain = Domain(
        first.questions_prompt, lambda passage, text: SelfEdit(text, ()), lambda passage: [], loop.domain.grade
    )
    written = write_self_edits(
        lm, [passage for lesson in lessons for passage in lesson.passages], loop._replace(domain=domain),
        samples=teaching.candidates, name="questions", shown=WRITING_QUESTIONS,
    )  # fmt: skip
    begun = first.questions_prompt(first.passages[0]).rstrip().endswith("Question:")  # the first one, by the prompt
    width, gold_width = loop.trainer.shapes.question_width, loop.trainer.shapes.gold_width

    def fits(query: Query) -> bool:
        gold = len(gold_tokens(lm.codec.encode_more, query))
        return len(lm.codec.encode(query.prompt)) <= width and 0 < gold <= gold_width

    def asked_of(lesson: Lesson, passage: Passage, row: Sequence[SelfEdit]) -> list[Question]:
        own: dict[str, Question] = {}
        for edit in row:
            for question in parse_questions(f"Question: {edit.completion}" if begun else edit.completion):
                if answered_by(passage, question):
                    own.setdefault(normalise(question.question), question)
        asked = passage._replace(questions=tuple(own.values()))
        queries = lesson.domain.queries(asked)
        return [q for q, query in zip(asked.questions, queries, strict=True) if fits(query)]

    asked = []
    for lesson, rows in zip(lessons, by_document(written, lessons), strict=True):
        found = [asked_of(lesson, passage, row) for passage, row in zip(lesson.passages, rows, strict=True)]
        kept = spread([len(own) for own in found], teaching.questions)
        asked.append(
            [
                passage._replace(questions=tuple(own[:count]))
                for passage, own, count in zip(lesson.passages, found, kept, strict=True)
            ]
        )
    return asked


def spread(counts: Sequence[int], most: int) -> list[int]:
    """How many of each to take so that all are at most `most`, as evenly as the counts allow."""
    taken = [0] * len(counts)
    for turn in range(max(counts, default=0)):
        for i, count in enumerate(counts):
            if turn < count and sum(taken) < most:
                taken[i] += 1
    return taken


_PAIR = re.compile(
    r"^[^\w\n]*(?:\d{1,2}[.)]\s*)?(?:Question|Q)\s*\d*\s*[:.)]\s*(?P<question>[^\n]+?)\s*\n+[^\w\n]*(?:Answer|A)\s*\d*\s*[:.)]\s*"
    r"(?P<answer>[^\n]+)",
    re.MULTILINE | re.IGNORECASE,
)


def parse_questions(text: str) -> Iterator[Question]:
    """`Question: ...` and on the next line `Answer: ...`, as often as they come; anything else is passed over."""
    for match in _PAIR.finditer(text):
        yield Question(match["question"].strip(" *_"), match["answer"].strip(" *_").rstrip("."))


def answered_by(passage: Passage, question: Question) -> bool:
    """Whether a question is one: it asks of this passage, its answer stands there, is short, and is not given away."""
    gold, asked = normalise(question.answer), normalise(question.question)
    context = normalise(passage.context)
    return (
        question.question.endswith("?")
        and len(asked.split()) >= 3
        and 0 < len(gold.split()) <= ANSWER_WORDS
        and f" {gold} " in f" {context} "
        and f" {gold} " not in f" {asked} {normalise(passage.title)} "
        and squad.grounded(question.question, passage) >= GROUNDED_QUESTION
    )


def candidate_settings(teaching: Teaching, inner: FineTuning) -> list[Settings]:
    """Learning rate and epochs of each candidate."""
    rates = teaching.learning_rates or (inner.learning_rate,)
    return [Settings(rates[c % len(rates)], inner.epochs) for c in range(teaching.candidates)]


def passage_examples(passage: Passage, teaching: Teaching) -> list[Example]:
    """The document's own words: the sentences of the passage one by one, then the passage."""
    whole = squad.passage_only(passage).examples[0]
    if not teaching.sentences:
        return [whole]
    sentences = [s for line in passage.context.split("\n") for s in documents.sentences(line)]
    return [*(Example("", f"{passage.title}\n{s}") for s in sentences if s != passage.context), whole]


def candidate_examples(
    passages: Sequence[Passage], edits: Sequence[Sequence[Sequence[SelfEdit]]], c: int, teaching: Teaching
) -> list[Example]:
    """All that candidate `c` is trained on: of each passage its self-edits' lines and the document's own, each once."""
    chosen: dict[Example, None] = {}
    for passage, row in zip(passages, edits, strict=True):
        own = passage_examples(passage, teaching)
        lines = [example for edit in row[c] for example in edit.examples if example != own[-1]]
        chosen |= dict.fromkeys([*lines, *own])
    return list(chosen)


def choose(
    by_candidate: Sequence[Sequence[Score]], losses: Sequence[Sequence[float]], teaching: Teaching, of: str = ""
) -> int:
    """The candidate that answers the questions best; where there is no question, the one of the lowest last losses.

    Where no answer got a verdict, it is the one to which the answers expected are likeliest.

    Raises:
        ValueError: every candidate diverged (says of which document).
    """
    alive = [c for c, own in enumerate(by_candidate) if not any(score.problem for score in own) and losses[c]]
    if not alive:
        raise ValueError(
            f"{of or 'the document'}: every candidate diverged; lower --inner.learning-rate (or "
            "--teaching.learning-rates) in another run folder or library, or teach the others without this document"
        )
    if not any(score.answers for score in by_candidate[0]):
        return min(alive, key=lambda c: float(np.mean(losses[c][-max(1, len(losses[c]) // 8) :])))
    values = {
        name: np.array([[math.nan if c not in alive or (v := figure(own, name)) is None else v
                         for c, own in enumerate(by_candidate)]], float)
        for name in (teaching.choose_by, "log_likelihood")
    }  # fmt: skip
    by = teaching.choose_by if chosen_by(by_candidate[0], teaching) == teaching.choose_by else "log_likelihood"
    by = "log_likelihood" if np.isnan(values[by]).all() else by
    keep = select(values[by], np.zeros(1), rule="best", tie_break=values["log_likelihood"])
    return int(np.argmax(keep[0]))


def chosen_by(scores: Sequence[Score], teaching: Teaching) -> str:
    """What candidates are chosen by: of a few questions the share that is right is mostly ties and luck."""
    asked = sum(len(score.answers) for score in scores)
    return teaching.choose_by if asked >= FEWEST or teaching.choose_by != "accuracy" else "log_likelihood"


def figure(scores: Sequence[Score], name: str) -> float | None:
    """A candidate's accuracy, log_likelihood or probability: the mean over all questions, whatever passage's."""
    if name == "accuracy":
        return mean(verdict for score in scores for verdict in score.verdicts)
    values = [value for score in scores for value in score.log_likelihoods]
    return mean(value if name == "log_likelihood" or value is None else math.exp(value) for value in values)


def chunk_of(lm: LanguageModel, loop: Loop, adapters: int) -> Chunk:
    """As many adapters at a time as the run's plan allows, and no more than there are: idle ones cost as much."""
    devices = lanes(lm.mesh) * (lm.hosts.count if lm.hosts else 1)
    chunk = loop.trainer.chunk
    size = max(1, min(chunk.planned, batching.round_up(adapters, devices)))
    return dataclasses.replace(chunk, size=size)


def restored(tree: Adapter) -> Adapter:
    """On no device in particular, whichever wrote it."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)
