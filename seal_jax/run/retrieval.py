"""Which document a question is about, by its words (BM25, through bm25s), and how sure that is.

The surest sign is how much of the question stands in the best passage, its rare words above all; then, how far that
passage is ahead of every other document. `sure` is a logistic regression on both and on the number of passages (of many
one fits by chance), fitted on SQuAD: libraries of 1 to 250 passages drawn from half of 1,124, as many questions on
passages left out of the same articles. There it is calibrated: of such questions as many as it says have their answer
in the document found. Of questions that resemble none of a library's it says too much rather than too little.

Words are cut at blanks and marks, and English endings left out: a language without blanks is not found.

bm25s starts JAX's devices when it is imported, so it is imported late: settle them first (`runtime.start`).
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST_SURE = 0.5  # below, the base model answers
_FIT = (-4.4, 9.5, 3.2, -0.4)  # 1, share of the question, lead over the next document, log of the number of passages
_ENDING = re.compile(r"(?:ing|edly|ed|es|s|ly)$")


class Found(NamedTuple):
    """The document that a question is most likely about."""

    document: int | None  # None where no word of the question stands in any
    sure: float  # 0 to 1


class Finder:
    """Finds among D documents, each of some passages: texts."""

    def __init__(self, documents: Sequence[Sequence[str]]):
        import bm25s

        self._of = np.array([d for d, passages in enumerate(documents) for _ in passages], int)
        words = _words([passage for passages in documents for passage in passages])
        self._known = [set(own) for own in words]
        self._counts = Counter(word for own in self._known for word in own)
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it reports every index that it builds
        self._index = bm25s.BM25()
        if self._counts:
            self._index.index(words, show_progress=False)

    def find(self, question: str) -> Found:
        """The document with the best passage."""
        words = list(dict.fromkeys(_words([question])[0]))
        if not any(word in self._counts for word in words):
            return Found(None, 0.0)
        scores = self._index.get_scores([word for word in words if word in self._counts])
        best = int(np.argmax(scores))
        document, total = int(self._of[best]), len(self._known)
        others = scores[self._of != document]
        lead = 1 - float(others.max(initial=0.0)) / float(scores[best])
        rarity = {word: math.log1p((total - n + 0.5) / (n + 0.5)) for word in words for n in [self._counts[word]]}
        there = sum(rarity[word] for word in words if word in self._known[best]) / sum(rarity.values())
        logit = float(np.dot(_FIT, (1.0, there, lead, math.log(total))))
        return Found(document, 1 / (1 + math.exp(-logit)))


def _words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, without the commonest, in lower case and without their endings."""
    if not texts:
        return []
    import bm25s

    cut = bm25s.tokenize(list(texts), stopwords="en_plus", return_ids=False, show_progress=False)
    return [[_ENDING.sub("", word) if len(word) > 4 else word for word in own] for own in cut]
