"""EntiGraph-style self-edits (Yang et al. 2024, arXiv 2409.07431; the paper's baseline): text about entities by twos.

    passage -> the entities it names -> a prompt for each pair (and triple) of them -> a text each -> training sequences

The model that learns writes both steps itself, through `rounds.write_self_edits`: a passage is a task of the first, a
pair or triple one of the second, so all of it is batched, journaled and follows from the seed like any self-edit.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from seal_jax.domains import squad
from seal_jax.domains.passages import Passage
from seal_jax.domains.templates import fill, load_template
from seal_jax.seal.rounds import Loop
from seal_jax.seal.writers import Request, ask, first_answer, written_tokens
from seal_jax.types import Example, LanguageModel, SelfEdit, Style, require_at_least

Kind = Literal["pairs", "triples"]  # triples: the pairs, and triples too (as the paper's baseline)

PROMPT_FOLDER = squad.PROMPT_FOLDER.parent / "entigraph"
NAMES = ("first", "second", "third")


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much is written of a passage. Ours: the original writes of all pairs, of much longer documents."""

    entities: int = 10  # of a passage, the first it lists
    words: int = 6  # of an entity: a longer line is a sentence
    pairs: int = 10  # of a self-edit, drawn with the seed where there are more
    triples: int = 10  # likewise

    def __post_init__(self) -> None:
        require_at_least(2, entities=self.entities)
        require_at_least(1, words=self.words, pairs=self.pairs, triples=self.triples)


class Prompts(NamedTuple):
    """What the model reads in each step."""

    entities: str  # with {title} and {context}
    pair: str  # with {first} and {second} besides
    triple: str  # and {third}


class Relation(NamedTuple):
    """A task of the second step: two or three entities of a passage."""

    id: str
    passage: Passage
    entities: tuple[str, ...]


def load_prompts(style: Style, folder: Path = PROMPT_FOLDER) -> Prompts:
    """The prompts in one style; a folder of your own holds `entities.toml`, `pair.toml` and `triple.toml`.

    Raises:
      FileNotFoundError, ValueError: as `load_template`.
    """

    def load(name: str, *placeholders: str) -> str:
        return load_template(folder / f"{name}.toml", style, "title", "context", *placeholders)

    return Prompts(load("entities"), load("pair", *NAMES[:2]), load("triple", *NAMES))


def write(
    lm: LanguageModel,
    passages: Sequence[Passage],
    loop: Loop,
    *,
    kind: Kind,
    samples: int,
    name: str,
    prompts: Prompts,
    render: Callable[[str], str],
    limits: Limits = Limits(),
) -> list[list[SelfEdit]]:
    """Writes `samples` self-edits for each passage, each from a list of entities of its own.

    A self-edit's training sequences are its texts and the passage, each whole, under the title; no more than
    `loop.trainer.shapes.capacity`. One whose list names fewer than two entities trains nothing and says why.

    Args:
      loop: its sampling, seed, journal and sizes; its domain is not asked.
      name: of the pieces in the journal; another name draws anew.
      prompts, render: `load_prompts` of the model's style, and a prompt -> as it reads it (as is; in a chat template).

    Raises:
      ValueError: a prompt that the model's context cannot hold.
    """
    entities, relations, _ = relate(
        lm, passages, loop, kind=kind, samples=samples, name=name, prompts=prompts, render=render, limits=limits
    )
    requests = [relation_request(prompts, render, r) for row in relations for group in row for r in group]
    flat = iter(first_answer(row[0].completion) for row in ask(lm, requests, loop, name=f"{name}: {kind}"))
    return [
        [_self_edit(passage, found, [(r, next(flat)) for r in group]) for found, group in zip(*row, strict=True)]
        for passage, row in zip(passages, zip(entities, relations, strict=True), strict=True)
    ]


def relate(
    lm: LanguageModel,
    passages: Sequence[Passage],
    loop: Loop,
    *,
    kind: Kind,
    samples: int,
    name: str,
    prompts: Prompts,
    render: Callable[[str], str],
    limits: Limits = Limits(),
) -> tuple[list[list[list[str]]], list[list[list[Relation]]], list[int]]:
    """The first step: `[P][samples]` lists of entities, the relations that are chosen of each, and the tokens of a
    passage's lists. Arguments as for `write`."""
    listing = [Request(p.id, render(fill(prompts.entities, title=p.title, context=p.context))) for p in passages]
    lists = ask(lm, listing, loop, name=f"{name}: entities", samples=samples)
    entities = [
        [parse_entities(p, edit.completion, limits) for edit in row] for p, row in zip(passages, lists, strict=True)
    ]
    room = loop.trainer.shapes.capacity - 1  # the passage is a sequence too
    relations = [
        [
            [
                Relation(f"{passage.id}/{k}/{' + '.join(chosen)}", passage, chosen)
                for chosen in choose_relations(
                    found, kind, limits, room, seed=(loop.seed, zlib.crc32(passage.id.encode()), k)
                )
            ]
            for k, found in enumerate(row)
        ]
        for passage, row in zip(passages, entities, strict=True)
    ]
    return entities, relations, [written_tokens([edit.completion for edit in row], lm.codec) for row in lists]


def parse_entities(passage: Passage, completion: str, limits: Limits = Limits()) -> list[str]:
    """The entities in a list that the model wrote, in its order: those that stand in the passage, as it spells them.

    A line is an entity, or what stands before its dash, colon or bracket; else each part between commas is; else, in a
    line of prose, what has capitals or digits. Bullets, numbers, quotes and a leading article do not count. What the
    passage does not contain, word by word, is no entity of it: so nothing invented, copied from the prompt's example,
    or said about the list gets through.
    """
    text, found = f"{passage.title}. {passage.context}", dict[str, str]()
    for line in first_answer(completion).splitlines():
        names = (
            _standing(_pieces(line), text, limits)[:1]
            or _standing(re.split(r"[,;]", line), text, limits)
            or _standing(NAME.findall(line), text, limits)
        )
        for name in names:
            found.setdefault(name.lower(), name)
    return list(found.values())[: limits.entities]


def choose_relations(
    entities: Sequence[str], kind: Kind, limits: Limits, room: int, *, seed: Sequence[int]
) -> list[tuple[str, ...]]:
    """The pairs (and triples) to write about, at most `room`; a seeded choice where there are more."""
    rng = np.random.default_rng(list(seed))

    def choose(size: int, most: int) -> list[tuple[str, ...]]:
        every = list(itertools.combinations(entities, size))
        if len(every) <= most:
            return every
        return [every[i] for i in sorted(rng.choice(len(every), max(most, 0), replace=False))]

    pairs = choose(2, min(limits.pairs, room if kind == "pairs" else math.ceil(room / 2)))
    return pairs if kind == "pairs" else pairs + choose(3, min(limits.triples, room - len(pairs)))


def _self_edit(passage: Passage, entities: Sequence[str], texts: Sequence[tuple[Relation, str]]) -> SelfEdit:
    said = "\n\n".join([f"Entities: {', '.join(entities)}", *(f"[{'; '.join(r.entities)}]\n{t}" for r, t in texts)])
    if len(entities) < 2:
        return SelfEdit(said, (), "no pair of entities" if entities else "no entities")
    written = [text for _, text in texts if text]
    if not written:
        return SelfEdit(said, (), "empty completion")
    return SelfEdit(said, tuple(Example("", f"{passage.title}\n{text}") for text in (*written, passage.context)))


def relation_request(prompts: Prompts, render: Callable[[str], str], relation: Relation) -> Request:
    """What asks for the text on a relation."""
    passage, names = relation.passage, dict(zip(NAMES, relation.entities, strict=False))
    template = prompts.pair if len(names) == 2 else prompts.triple
    return Request(relation.id, render(fill(template, title=passage.title, context=passage.context, **names)))


ARTICLES = {"the", "a", "an"}
FUNCTION_WORDS = {
    "all", "and", "are", "as", "at", "but", "by", "for", "from", "had", "has", "he", "her", "here", "his", "if", "in",
    "is", "it", "its", "no", "not", "of", "on", "or", "she", "some", "that", "their", "there", "they", "this", "to",
    "was", "were", "when", "which", "who", "with",
}  # fmt: skip
NAME = re.compile(r"\b[A-Z][\w'-]*(?: [A-Z][\w'-]*)*|\b\d[\d.,]*\d\b|\b\d\b")  # capitals, or a number
BETWEEN = r"(?:[^\w.;:!?]{1,2}|\.(?=\w))"  # two words of a name: not across the end of a sentence


def _standing(pieces: Iterable[str], text: str, limits: Limits) -> list[str]:
    """Those pieces that are names and stand in the text, word by word, as it spells them."""
    names = []
    for piece in pieces:
        words = re.findall(r"\w+", _bare(piece).lower())
        words = words[1:] if words and words[0] in ARTICLES else words
        if _is_name(words, limits):
            place = re.search(rf"\b{BETWEEN.join(map(re.escape, words))}\b", text, re.IGNORECASE)
            names += [place[0]] if place else []
    return names


def _is_name(words: Sequence[str], limits: Limits) -> bool:
    if not 0 < len(words) <= limits.words or {words[0], words[-1]} & FUNCTION_WORDS:
        return False
    letters = "".join(words)
    return len(letters) > 2 or letters.isdigit()


def _bare(text: str) -> str:
    """Without what lists put around a name."""
    text = re.sub(r"^\s*(?:[-*•–+#]+\s*|\(?\d{1,2}[.)]\s+)+", "", text)
    return text.strip(" \t\"'`*_[]{}.,;:“”‘’")


def _pieces(line: str) -> list[str]:
    """A line as a name, and what stands before a description."""
    whole = _bare(line)
    return [whole, *(re.split(mark, whole, maxsplit=1)[0] for mark in (r"\s[-–—]\s", r":\s", r"\s\("))]
