"""How varied texts are: repeats within one task's samples and across tasks, overlap, copies of the prompt's example.

A writer that collapses shows it here first. All functions take texts as they were written; words are compared without
case and punctuation.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

ORDERS = (1, 2, 4)  # words of an n-gram
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+")
_NUMBERING = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.)])\s+")


def words(text: str) -> list[str]:
    """Its words and numbers, in lower case."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Each n words that follow one another."""
    found = words(text)
    return list(zip(*(found[start:] for start in range(n)), strict=False))


def distinct(texts: Iterable[str], n: int) -> float | None:
    """The share of all their n-grams that repeats none before it (distinct-n, Li et al. 2016): 1 without repeats."""
    together = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(together)) / len(together) if together else None


def overlap(texts: Sequence[str], n: int = 1) -> float | None:
    """How much of their n-grams two of the texts share (Jaccard), mean over pairs: 1 if all say the same."""
    sets = [set(ngrams(text, n)) for text in texts]
    return _mean(len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2) if a | b)


def sentences(text: str) -> set[str]:
    """Its sentences and lines, without numbers of lists, case and punctuation."""
    lines = (_NUMBERING.sub("", line) for line in text.splitlines())
    return {" ".join(found) for line in lines for piece in _SENTENCE_ENDS.split(line) if (found := words(piece))}


def copied(texts: Iterable[str], source: set[str]) -> float | None:
    """The share of the texts' sentences that stand among those of `source`; a text's own repeats count once."""
    written = [sentence for text in texts for sentence in sentences(text)]
    return sum(sentence in source for sentence in written) / len(written) if written else None


def figures(texts: Sequence[Sequence[str]], prompts: Sequence[str]) -> dict[str, float | None]:
    """What k texts for each of P tasks, written after P prompts, are like; None where there is nothing to compare.

    `mean_words` is a text's. `distinct_2` is over the texts of a task, mean over tasks; `distinct_2_across` over all
    texts together. `similarity` is the mean `overlap` of single words within a task. `copied` is the share of sentences
    taken from what all prompts have in common, such as a worked example.
    """
    everything = [text for row in texts for text in row]
    example = set.intersection(*map(sentences, prompts)) if len(prompts) > 1 else set()
    return {
        "mean_words": _mean(len(text.split()) for text in everything),
        **{f"distinct_{n}": _mean(distinct(row, n) for row in texts) for n in ORDERS},
        **{f"distinct_{n}_across": distinct(everything, n) for n in ORDERS},
        "similarity": _mean(overlap(row) for row in texts),
        "copied": copied(everything, example) if example else None,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
