"""Text about passages up to a budget of tokens: by SPA's seven prompts, in Active Reading's two steps, by any others.

    passage -> its prompts, in turn and again -> a text each -> training sequences, until they hold the budget

The model that learns writes it all, through `rounds.write_self_edits`, so that it is batched, journaled and follows
from the seed. Rows of the same budget are trained on about the same number of tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from flax import nnx

from seal_jax.domains import squad
from seal_jax.domains.passages import Passage, Question
from seal_jax.domains.templates import fill, load_template
from seal_jax.engine import batching
from seal_jax.seal.rounds import Loop, stable_hash, write_self_edits
from seal_jax.types import Codec, Domain, Example, LanguageModel, SelfEdit, Style

PROMPT_FOLDER = squad.PROMPT_FOLDER.parent
MOST_TEXTS = 3  # times the first wave's, which expects half of a text to be kept: with less than a sixth, it stops
STRATEGIES = 10  # of Active Reading, a passage: the first that are listed
WIDTH = 64  # tokens that prompts are padded to multiples of: a program each
LEAST = 4  # tokens of a last sequence that is cut to the budget

Split = Callable[[Passage, str], Sequence[Example]]
"""(passage, what was written) -> training sequences."""


class Request(NamedTuple):
    """One text that is asked for."""

    id: str  # unique: what is drawn depends on it
    prompt: str  # as the model reads it


class Written(NamedTuple):
    """What was written of one passage."""

    completion: str
    examples: tuple[Example, ...]  # within the budget; the passage itself is not among them
    tokens: int = 0  # written for it, whether they are trained on or not
    texts: tuple[str, ...] = ()  # what the completion is made of, where `write` wrote it


def ask(
    lm: LanguageModel,
    requests: Sequence[Request],
    loop: Loop,
    *,
    name: str,
    samples: int = 1,
    drawn: str | None = None,
) -> list[list[SelfEdit]]:
    """Writes `samples` texts for each request; they are the completions. Of the loop, the domain is not asked.

    `name` and `drawn` as for `write_self_edits`.

    Raises:
      ValueError: a prompt that the model's context cannot hold.
    """
    if not requests:
        return []
    domain = Domain(lambda request: request.prompt, lambda _, text: SelfEdit(text, ()), lambda _: [], loop.domain.grade)
    lengths, most = [len(lm.codec.encode(request.prompt)) for request in requests], loop.sampling.max_tokens
    longest, context = max(lengths), nnx.merge(lm.model, lm.params).config.context_length
    if longest + most > context:
        raise ValueError(
            f"text for {requests[lengths.index(longest)].id!r} needs a context of {longest + most} tokens with its "
            f"prompt and --sampling.max-tokens {most}; the model has {context}. Shorten or remove the passage"
        )
    own = loop._replace(domain=domain, prompt_width=min(batching.round_up(longest, WIDTH), context - most))
    return write_self_edits(lm, requests, own, samples=samples, name=name, drawn=drawn)


def whole(passage: Passage, text: str) -> tuple[Example, ...]:
    """All of a text as one sequence, under the passage's title."""
    said = first_answer(text)
    return (squad.example(passage, said),) if said else ()


def first_answer(completion: str) -> str:
    """Without the further passages that a base model makes up after its answer, in the prompt's form."""
    return completion.split("\nPassage:")[0].strip()


def write(
    lm: LanguageModel,
    passages: Sequence[Passage],
    prompts: Sequence[Sequence[str]],
    loop: Loop,
    *,
    budget: float,
    name: str,
    drawn: str | None = None,
    split: Split = whole,
) -> list[Written]:
    """Writes of each passage by its `prompts` (as the model reads them), in turn, until the sequences hold the budget.

    Args:
      budget: tokens of a passage's sequences, times those of the passage under its title.
      name: of the pieces in the journal; another name draws anew, unless there is a `drawn`.
      drawn: what is drawn follows from it, the seed, the passage and the number of the text.

    Every wave asks for what the texts before promise, and for no more texts than there are (`more_texts`). What is
    written of a passage does not depend on the others, and a smaller budget is the beginning of a larger one. A passage
    without prompts, or of whose texts little is kept, stays below its budget.
    """
    wanted = [budget * size(squad.passage_only(passage).examples[0], lm.codec) for passage in passages]
    room = loop.trainer.shapes.capacity - 1  # the passage is a sequence too
    first = [
        math.ceil(want / (loop.sampling.max_tokens / 2)) if own and room else 0
        for want, own in zip(wanted, prompts, strict=True)
    ]
    texts: list[list[str]] = [[] for _ in passages]
    examples: list[list[Example]] = [[] for _ in passages]
    for wave in itertools.count():
        more = [
            more_texts(len(own), count, max(sum(size(e, lm.codec) for e in kept) / want, len(kept) / room))
            if count else 0
            for own, count, kept, want in zip(texts, first, examples, wanted, strict=True)
        ]  # fmt: skip
        if not any(more):
            break
        requests = [
            Request(f"{passage.id}/{n}", prompts[p][n % len(prompts[p])])
            for p, passage in enumerate(passages)
            for n in range(len(texts[p]), len(texts[p]) + more[p])
        ]
        found = iter(row[0].completion for row in ask(lm, requests, loop, name=f"{name}/{wave}", drawn=drawn or name))
        for p, passage in enumerate(passages):
            for _ in range(more[p]):
                texts[p].append(next(found))
                examples[p] += split(passage, texts[p][-1])
    return [
        Written("\n\n".join(own), within(each, want, lm.codec)[:room], written_tokens(own, lm.codec), tuple(own))
        for own, each, want in zip(texts, examples, wanted, strict=True)
    ]


def more_texts(written: int, first: int, share: float) -> int:
    """How many texts of a passage to ask for next, once those `written` hold this share of what is wanted.

    What they promise, but at most as many as there are: a few texts say little about the others. In all, at most
    `MOST_TEXTS` times the `first`. Below that limit it ends only at a share of 1, so that a larger budget has no fewer.
    """
    if not written or share >= 1:
        return 0 if written else first
    promised = math.ceil(written / share) - written if share else written
    return min(max(1, promised), written, MOST_TEXTS * first - written)


def within(examples: Sequence[Example], tokens: float, codec: Codec) -> tuple[Example, ...]:
    """The first examples that hold so many tokens together; the last is cut, unless it has a prompt."""
    kept: list[Example] = []
    for example in examples:
        count = size(example, codec)
        if count > tokens:
            if not example.prompt and tokens >= LEAST:
                ids = codec.encode_more(example.completion)[: int(tokens)]
                kept.append(example._replace(completion=codec.decode(ids)))
            break
        kept.append(example)
        tokens -= count
    return tuple(kept)


def beginning(edit: SelfEdit, budget: float, codec: Codec) -> SelfEdit:
    """A self-edit that `self_edits` made, with the first of its text that holds a smaller budget, and the passage."""
    if not edit.examples:
        return edit
    *text, passage = edit.examples
    return edit._replace(examples=(*within(text, budget * size(passage, codec), codec), passage))


def size(example: Example, codec: Codec) -> int:
    """Tokens of a training sequence."""
    return len(codec.encode_more(example.prompt) + codec.encode_more(example.completion))


def written_tokens(texts: Sequence[str], codec: Codec) -> int:
    """Tokens of texts together."""
    return sum(len(codec.encode_more(text)) for text in texts)


def self_edits(passages: Sequence[Passage], written: Sequence[Written]) -> list[list[SelfEdit]]:
    """What was written, and the passage itself, as one self-edit a passage. Without any text, nothing is trained on."""
    return [
        [SelfEdit(own.completion, (*own.examples, *squad.passage_only(passage).examples))]
        if own.examples
        else [SelfEdit(own.completion, (), "nothing was written")]
        for passage, own in zip(passages, written, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Prompts of SPA and of Active Reading


def spa_prompts(passage: Passage, style: Style, render: Callable[[str], str]) -> list[str]:
    """SPA's seven kinds of rewriting (Tang et al. 2026, arXiv 2603.22213), in an order of the passage's own."""
    files = sorted((PROMPT_FOLDER / "spa").glob("*.toml"))
    return in_own_order(passage, [_filled(file, style, render, passage) for file in files])


def in_own_order(passage: Passage, prompts: Sequence[str]) -> list[str]:
    """Prompts in an order that follows from the passage's id: a budget that holds few has others for each passage."""
    return squad.shuffled(prompts, stable_hash(passage.id))


def active_reading(
    lm: LanguageModel,
    passages: Sequence[Passage],
    loop: Loop,
    *,
    name: str,
    style: Style,
    render: Callable[[str], str],
) -> tuple[list[list[str]], list[int]]:
    """Active Reading (Lin et al. 2025, arXiv 2508.09494): ways to study each passage, which the model proposes, as
    prompts that ask to carry them out; and the tokens of what it proposed."""
    folder = PROMPT_FOLDER / "active-reading"
    first = [Request(p.id, _filled(folder / "strategies.toml", style, render, p)) for p in passages]
    lists = [first_answer(row[0].completion) for row in ask(lm, first, loop, name=f"{name}/strategies")]
    prompts = [
        [_filled(folder / "apply.toml", style, render, p, strategy=way) for way in parse_strategies(text)]
        for p, text in zip(passages, lists, strict=True)
    ]
    return prompts, [written_tokens([text], lm.codec) for text in lists]


def parse_strategies(text: str) -> list[str]:
    """The lines of a list that say something: of three words and more, without numbers and marks, each once."""
    lines = (re.sub(r"[*_`#]+", "", squad.without_number(line)).strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if len(line.split()) > 2))[:STRATEGIES]


def _filled(file: Path, style: Style, render: Callable[[str], str], passage: Passage, **more: str) -> str:
    template = load_template(file, style, "title", "context", *more)
    return render(fill(template, title=passage.title, context=passage.context, **more))


# ---------------------------------------------------------------------------------------------------------------------
# What context distillation is trained on


def in_view(passages: Sequence[Passage], edits: Sequence[Sequence[SelfEdit]]) -> list[list[SelfEdit]]:
    """The same self-edits; each sequence's teacher reads the passage first, unless it has a view already."""

    def seen(passage: Passage, edit: SelfEdit) -> SelfEdit:
        view = f"{passage.title}\n{passage.context}\n\n"
        return edit._replace(examples=tuple(e if e.view else e._replace(view=view + e.prompt) for e in edit.examples))

    return [[seen(passage, edit) for edit in row] for passage, row in zip(passages, edits, strict=True)]


def own_questions(
    lm: LanguageModel,
    passages: Sequence[Passage],
    loop: Loop,
    *,
    budget: float,
    name: str,
    drawn: str | None = None,
    style: Style,
    render: Callable[[str], str],
) -> list[Written]:
    """The model's own questions on each passage, and its own answers with the passage in view. `name` and `drawn` as
    for `write`.

    A sequence is a question as it is asked later, without the passage, and the answer; its teacher reads the question
    with the passage in view. Both count for the budget, with the prompt around them.
    """
    prompts = squad.load_prompts("self-qa", style)
    first = [[render(fill(prompts.self_edit, title=p.title, context=p.context))] for p in passages]
    drawn = drawn or name
    listed = write(
        lm, passages, first, loop, budget=budget, name=f"{name}/questions", drawn=f"{drawn}/questions",
        split=_question_pieces,
    )  # fmt: skip
    asked = [
        list(dict.fromkeys(question for text in own.texts for question in questions_in(p, text)))
        for p, own in zip(passages, listed, strict=True)
    ]
    file = PROMPT_FOLDER / "question-in-view.toml"
    template = load_template(file, style, "title", "context", "question")
    views = [
        [render(fill(template, title=p.title, context=p.context, question=question)) for question in own]
        for p, own in zip(passages, asked, strict=True)
    ]
    requests = [
        Request(f"{p.id}/{n}", view) for p, own in zip(passages, views, strict=True) for n, view in enumerate(own)
    ]
    short = loop._replace(sampling=dataclasses.replace(loop.sampling, max_tokens=loop.answer_tokens))
    answers = iter(row[0] for row in ask(lm, requests, short, name=f"{name}/answers", drawn=f"{drawn}/answers"))
    found = []
    for passage, questions, own, before in zip(passages, asked, views, listed, strict=True):
        queries = loop.domain.queries(passage._replace(questions=tuple(Question(q, "") for q in questions)))
        said = [next(answers) for _ in questions]
        texts = [first_answer(edit.completion).split("\n")[0] for edit in said]
        examples = [
            Example(query.prompt, _following(query.prompt, text) + lm.codec.end, view=view)
            for query, view, text in zip(queries, own, texts, strict=True)
            if text
        ]
        fitting = [e for e in examples if size(e, lm.codec) < loop.trainer.shapes.widths[-1]]
        wanted = budget * size(squad.passage_only(passage).examples[0], lm.codec)
        kept = within(fitting, wanted, lm.codec)[: loop.trainer.shapes.capacity - 1]
        tokens = before.tokens + written_tokens([edit.completion for edit in said], lm.codec)
        told = "\n\n".join(f"{question}\n{text}" for question, text in zip(questions, texts, strict=True))
        found.append(Written(told, kept, tokens))
    return found


def questions_in(passage: Passage, text: str) -> list[str]:
    """The questions in a text that the model wrote, without their answers; the first may have no number."""
    return [question for piece in _question_pieces(passage, text) for question in _QUESTION.findall(piece.completion)]


def _question_pieces(passage: Passage, text: str) -> tuple[Example, ...]:
    return squad.parse(passage, first_answer(text), "question", include_passage=False).examples


_QUESTION = re.compile(r"^[^\w\n]*(?:Question(?: +\d+)? *:[ *]*)+(\w[^\n]*?[?？])[\s*]*(?:Answer *:.*)?$", re.MULTILINE)


def _following(prompt: str, text: str) -> str:
    return text if prompt[-1:].isspace() else f" {text}"
