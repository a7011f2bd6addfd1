"""Knowledge incorporation: learn a passage from self-written implications, then answer without it.

    passage -> prompt -> completion -> one training sequence a line, and the passage itself -> questions, passage unseen

The prompts are text files beside this one (`prompts/squad/`); what they hold is said at `load_prompts`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import msgspec

from seal_jax.domains.document import sentences
from seal_jax.domains.passages import SPLIT_SOURCES, Passage, Question, load_passages, shuffled
from seal_jax.domains.records import Text
from seal_jax.domains.templates import Templates, fill, load_template, read_templates
from seal_jax.types import Domain, Example, Grade, Query, SelfEdit, Style, by_query

__all__ = [
    "SPLIT_SOURCES",
    "Passage",
    "Prompts",
    "Question",
    "example",
    "load_passages",
    "load_prompts",
    "make_domain",
    "make_query",
    "parse",
    "passage_only",
    "prompt_variants",
    "shuffled",
]


PROMPT_FOLDER = Path(__file__).parent / "prompts" / "squad"
QUESTION_FILE = PROMPT_FOLDER / "question.toml"
Split = Literal["line", "question"]  # where one training sequence ends and the next begins
MAX_EXAMPLES = 30  # training sequences of a self-edit, the passage included; paper's code: 30 besides the passage


class Prompts(NamedTuple):
    """What the model reads before it writes a self-edit, and before it answers a question."""

    name: str
    style: Style  # raw: text to be continued by a base model; chat: a user's message to an instruct model
    self_edit: str  # with {title} and {context}
    question: str  # with {title} and {question}
    split: Split
    keep_after: str | None = None  # train only on what follows this heading (the conclusions of a chain of thought)
    grounded: float = 0.0  # of a sentence's longer words, so many must stand in its passage, or it is not trained on


class _SelfEditTemplates(Templates, kw_only=True):
    form: ClassVar[str] = "raw, chat, split ('line' or 'question'), keep_after (optional), grounded (optional, 0 to 1)"
    split: Split
    keep_after: Text | None = None
    grounded: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0


def prompt_variants() -> list[str]:
    """The names of the embedded self-edit prompts: the paper's seven, and `facts` for models too small for those."""
    return sorted(path.stem for path in PROMPT_FOLDER.glob("*.toml") if path != QUESTION_FILE)


def load_prompts(name_or_path: str | Path, style: Style, question_path: str | Path = QUESTION_FILE) -> Prompts:
    """Loads a self-edit prompt, by name (`implications`) or from your own file, and the question prompt.

    A self-edit prompt file holds `raw` and `chat` texts with the placeholders {title} and {context}, `split`
    ("line": a training sequence a line; "question": one a numbered question with its answer) and perhaps `keep_after`,
    and `grounded` where it has a worked example: small models go on about that one.
    The question file holds `raw` and `chat` with {title} and {question}. Other braces are ordinary text.

    Raises:
      FileNotFoundError: no variant and no file of that name; the nearest variant is suggested.
      ValueError: not TOML, a key or placeholder that is missing or unknown; says which file and which key.
    """
    path = _prompt_file(name_or_path)
    template, file = read_templates(path, style, ("title", "context"), _SelfEditTemplates)
    question = load_template(question_path, style, "title", "question")
    return Prompts(path.stem, style, template, question, file.split, file.keep_after, file.grounded)


def about_nothing(question: str) -> str:
    """The question prompt without the line that says what it is about, for a question about no passage."""
    return question.replace("Topic: {title}\n", "{title}")


def make_domain(
    prompts: Prompts,
    render: Callable[[str], str],
    grade: Grade,
    max_examples: int = MAX_EXAMPLES,
    include_passage: bool = True,
) -> Domain:
    """The domain of passages and questions: its four functions take a `Passage` as the task.

    Args:
      render: a prompt as `Prompts` has it -> as the model reads it: the identity for a base model, the chat template
        around one user message for an instruct model.
      grade: right or wrong, for each answer (`lexical.grade_by_match`).
      max_examples: the most training sequences of a self-edit; those past it are dropped, the passage never.
      include_passage: train on the passage itself too, as the paper does.
    """

    def prompt(passage: Passage) -> str:
        return render(fill(prompts.self_edit, title=passage.title, context=passage.context))

    def parse_completion(passage: Passage, completion: str) -> SelfEdit:
        return parse(
            passage, completion, prompts.split, prompts.keep_after, max_examples, include_passage, prompts.grounded
        )

    def queries(passage: Passage) -> list[Query]:
        return [make_query(render, prompts.question, passage.title, q.question, q.answer) for q in passage.questions]

    return Domain(prompt, parse_completion, queries, by_query(grade))


def make_query(render: Callable[[str], str], template: str, title: str, question: str, gold: str) -> Query:
    """A question as the model reads it: under the title of what it asks about, which it does not see."""
    return Query(question, render(fill(template, title=title, question=question)), gold)


def parse(
    passage: Passage,
    completion: str,
    split: Split = "line",
    keep_after: str | None = None,
    max_examples: int = MAX_EXAMPLES,
    include_passage: bool = True,
    least_grounded: float = 0.0,
) -> SelfEdit:
    """A completion -> training sequences: each piece, then the passage itself, each under the passage's title.

    Pieces are the lines, once `---` has been read as a line break; a first line that only announces a list (the
    second begins with "1.") is dropped. With `split="question"` they are the numbered questions, each with all
    that follows it; text before "Question 1:" is dropped, while text before a later number is the first question,
    whose "Question 1:" ended the prompt. `keep_after` first drops everything up to that heading, if it is there. Of
    a line, the sentences that are less `grounded` in the passage than `least_grounded` are left out, and counted; a
    question and its answer stay or go together.

    A completion with no piece trains on nothing, not even the passage, and `problem` says so: writing nothing must
    not earn the reward of the passage.
    """
    if not completion.strip():
        return SelfEdit(completion, (), "empty completion")
    text = _after_heading(completion, keep_after) if keep_after else completion
    pieces = _questions(text) if split == "question" else _lines(text)
    if not pieces:
        return SelfEdit(completion, (), "no training sequence")
    read = [_about(passage, piece, least_grounded, whole=split == "question") for piece in pieces]
    about, left_out = [piece for piece, _ in read if piece], sum(count for _, count in read)
    if not about:
        return SelfEdit(completion, (), "no sentence about the passage", left_out=left_out)
    kept = about[: max_examples - include_passage]
    examples = [example(passage, piece) for piece in kept]
    if include_passage:
        examples.append(example(passage, passage.context))
    return SelfEdit(completion, tuple(examples), left_out=left_out, lines=tuple(kept))


def _about(passage: Passage, piece: str, least: float, *, whole: bool) -> tuple[str, int]:
    """A piece without the sentences that are about something else, and how many those are; "" where all are.

    One that says nothing ("Dr.", of a name cut in two) stays with what is kept.
    """
    if not least:
        return piece, 0
    text = without_number(piece)
    parts = [text] if whole else sentences(text)
    kept = [part for part in parts if grounded(part, passage) >= least or not _roots(part)]
    if not any(map(_roots, kept)):
        return "", len(parts)
    left_out = len(parts) - len(kept)
    return piece.removesuffix(text) + " ".join(kept) if left_out else piece, left_out


def grounded(sentence: str, passage: Passage) -> float:
    """The share of a sentence's words, numbers and what has four letters and says something, that stand in the passage.

    Words with the same first four letters count as the same: "keeps" stands in a passage that has "keeper".
    """
    there, asked = set(_roots(f"{passage.title} {passage.context}")), _roots(sentence)
    return sum(word in there for word in asked) / len(asked) if asked else 0.0


def without_number(line: str) -> str:
    """A line of a list without its bullet or number."""
    return _NUMBERING.sub("", line)


def passage_only(passage: Passage) -> SelfEdit:
    """Training on the passage alone: the paper's baseline without synthetic data."""
    return SelfEdit("", (example(passage, passage.context),))


def example(passage: Passage, text: str) -> Example:
    """A text as a training sequence: under the passage's title."""
    return Example(prompt="", completion=f"{passage.title}\n{text}")


_COMMON = frozenset(
    ("what", "which", "where", "when", "whom", "whose", "does", "were", "have", "that", "this", "with", "from", "many",
     "much", "there", "their")
)  # fmt: skip
_NUMBERING = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.)])\s+")


def _roots(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+", re.sub(r"['’]", "", text.lower()))
    said = [word for word in words if (len(word) > 3 or word.isdigit()) and word not in _COMMON]
    return [word[:4] if word.isalpha() else word for word in said]


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.replace("---", "\n").splitlines()]
    lines = [line for line in lines if line.strip("-")]  # a longer rule, `-----`, leaves dashes behind
    return lines[1:] if len(lines) > 1 and lines[1].startswith("1.") else lines


def _questions(text: str) -> list[str]:
    text = text.replace("---", "\n")
    starts = list(re.finditer(r"^[^\w\n]*Question\s+(\d+)\s*:", text, re.MULTILINE))
    bounds = [match.start() for match in starts] + [len(text)]
    pieces = [text[begin:end].strip() for begin, end in pairwise(bounds)]
    head = text[: bounds[0]].strip()
    if head and not (starts and int(starts[0][1]) == 1):
        pieces.insert(0, f"Question 1: {head}")
    return pieces


def _after_heading(text: str, heading: str) -> str:
    match = re.search(rf"^[^\w\n]*{re.escape(heading)}[^\w\n]*", text, re.MULTILINE)
    return text[match.end() :] if match else text


def _prompt_file(name_or_path: str | Path) -> Path:
    variants, path = prompt_variants(), Path(name_or_path).expanduser()
    if str(name_or_path) in variants:
        return PROMPT_FOLDER / f"{name_or_path}.toml"
    if path.is_file():
        return path
    close = difflib.get_close_matches(str(name_or_path), variants, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise FileNotFoundError(
        f"no prompt and no file is called {str(name_or_path)!r}: {hint}The variants are {', '.join(variants)}; "
        f"begin your own file as a copy of {PROMPT_FOLDER / 'implications.toml'}"
    )
