"""A document made ready for a model: cut into passages, with its prompts and the sizes of all programs."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, get_args

from seal_jax.domains import document as documents
from seal_jax.domains import squad
from seal_jax.domains.document import Document
from seal_jax.domains.passages import Passage
from seal_jax.domains.squad import make_query
from seal_jax.domains.templates import fill, load_template
from seal_jax.engine import batching
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import Shapes
from seal_jax.run.runtime import Speaker
from seal_jax.seal.teaching import QUESTIONS, TOGETHER, Lesson, Teaching, passage_examples
from seal_jax.types import Compute, Example, Grade, Query, SelfEdit, Style

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
