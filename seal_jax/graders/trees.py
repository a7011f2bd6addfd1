"""Small trees that weigh figures: boosted (Friedman 2001), each with one question a level, so that an array is a tree.

Pure numpy, without a random number in use: the same figures always give the same verdict.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

DEPTH = 3  # questions a tree asks
TREES = 150
RATE = 0.08  # of what a tree would change, how much it does
PRIOR = 20.0  # verdicts against every leaf: a leaf of few answers says little
CUTS = 24  # places at which a figure may be cut


class Trees(NamedTuple):
    """`score` is the log-odds that an answer is right."""

    figure: Int[np.ndarray, "N D"]  # which figure a tree asks about, at each level
    cut: Float[np.ndarray, "N D"]  # is it more than this?
    leaf: Float[np.ndarray, "N L"]  # what is added where all D answers lead; the first answer is the highest bit
    bias: float

    def score(self, figures: Float[np.ndarray, "A F"]) -> Float[np.ndarray, "A"]:
        """The log-odds of each of A answers."""
        at = (figures[:, self.figure] > self.cut) @ (1 << np.arange(DEPTH)[::-1])
        return self.bias + self.leaf[np.arange(len(self.leaf)), at].sum(axis=1)


def fit(figures: Float[np.ndarray, "A F"], right: Bool[np.ndarray, "A"]) -> Trees:
    """Fits trees to verdicts by Newton steps of the logistic loss; no chance is involved."""
    edges = [np.unique(np.quantile(column, np.linspace(0, 1, CUTS + 2)[1:-1])) for column in figures.T]
    bins = np.stack([np.searchsorted(cuts, column) for cuts, column in zip(edges, figures.T, strict=True)])
    bias = float(np.log(right.mean() / (1 - right.mean())))
    score, trees = np.full(len(right), bias), []
    for _ in range(TREES):
        chance = 1 / (1 + np.exp(-score))
        slope, curve = right - chance, chance * (1 - chance)
        at, questions = np.zeros(len(right), int), []
        for level in range(DEPTH):
            gains = [_gain(one, at, 1 << level, slope, curve) for one in bins]
            best = int(np.argmax([gain.max() for gain in gains]))
            cut = int(np.argmax(gains[best]))
            questions.append((best, round(float(edges[best][min(cut, len(edges[best]) - 1)]), 4)))
            at = 2 * at + (figures[:, best] > questions[-1][1])
        sums = (np.bincount(at, weights, 1 << DEPTH) for weights in (slope, curve))
        leaf = np.round(RATE * next(sums) / (next(sums) + PRIOR / 4), 4)
        score += leaf[at]
        trees.append((questions, leaf))
    pairs = np.array([questions for questions, _ in trees])
    return Trees(pairs[..., 0].astype(int), pairs[..., 1], np.array([leaf for _, leaf in trees]), round(bias, 4))


def _gain(
    bins: Int[np.ndarray, "A"], at: Int[np.ndarray, "A"], leaves: int, slope: np.ndarray, curve: np.ndarray
) -> Float[np.ndarray, "C"]:
    """How much better the loss gets if every leaf is cut, for each place to cut."""
    width = CUTS + 1
    totals = [np.bincount(at * width + bins, w, leaves * width).reshape(leaves, width) for w in (slope, curve)]
    below = [total.cumsum(1)[:, :-1] for total in totals]
    above = [total.sum(1, keepdims=True) - part for total, part in zip(totals, below, strict=True)]
    return sum(s * s / (c + PRIOR / 4) for s, c in (below, above)).sum(0)


def to_json(trees: Trees, names: Sequence[str]) -> str:
    """As text, a line a tree: its questions by name, and its leaves."""
    lines = [
        json.dumps([[[names[f], float(c)] for f, c in zip(figure, cut, strict=True)], leaf.tolist()])
        for figure, cut, leaf in zip(trees.figure, trees.cut, trees.leaf, strict=True)
    ]
    return f'{{"bias": {trees.bias}, "trees": [\n' + ",\n".join(lines) + "\n]}\n"


def load(names: Sequence[str]) -> Trees:
    """The fitted trees of data/trees.json, for figures in the order of `names`."""
    stored = json.loads(resources.files(__package__).joinpath("data/trees.json").read_text(encoding="utf-8"))
    order = {name: k for k, name in enumerate(names)}
    questions = [tree[0] for tree in stored["trees"]]
    return Trees(
        np.array([[order[name] for name, _ in levels] for levels in questions]),
        np.array([[cut for _, cut in levels] for levels in questions]),
        np.array([tree[1] for tree in stored["trees"]]),
        stored["bias"],
    )
