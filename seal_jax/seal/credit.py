"""Which lines of a self-edit taught what was asked: what the gold answers' likelihood owes to each.

Exactly, by leaving one line out: an adapter is trained on the whole self-edit and one on all but each line, k + 1
adapters of one batch for k lines. A line that is left out has no loss, and all else stays as it was (initialisation,
order, rates; its steps are taken without it), so that adapters differ by what the line says and not by chance. By
gradient, with one adapter: engine/credit.py. Sets of whole self-edits are seal/outer/sets.py's.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np

from seal_jax.analysis.reliability import spearman
from seal_jax.analysis.statistics import bootstrap_mean
from seal_jax.engine import batching
from seal_jax.engine.batching import Tokens
from seal_jax.engine.credit import credit_each
from seal_jax.engine.training import Trainer, train_each
from seal_jax.seal.rewards import ask, gold_tokens, mean
from seal_jax.types import Codec, LanguageModel, Query, SelfEdit

FEWEST_LINES = 3  # of a self-edit whose lines are ranked: of two, one is first


class Left(NamedTuple):
    """What the gold answers lose when each line of one self-edit is left out."""

    log_likelihood: list[float | None]  # nats a token, mean over questions
    probability: list[float | None]


def tokens_of(lm: LanguageModel, edits: Sequence[SelfEdit]) -> list[list[Tokens]]:
    """Self-edits as their training sequences."""
    return [[batching.tokenize(example, lm.codec) for example in edit.examples] for edit in edits]


def golds_of(codec: Codec, queries: Sequence[Query]) -> list[Tokens]:
    """Each question's prompt and its gold answer, on which alone the loss falls: as `rewards.ask` reads them."""
    rows = [(codec.encode(query.prompt), gold_tokens(codec.encode_more, query)) for query in queries]
    return [Tokens(prompt + gold, len(prompt)) for prompt, gold in rows]


def by_gradient(
    lm: LanguageModel,
    edits: Sequence[SelfEdit],
    queries: Sequence[Sequence[Query]],
    trainer: Trainer,
    *,
    seed: int,
    curvature: bool = True,
    room: float | None = None,
) -> list[list[float | None]]:
    """Each line's credit, the derivative of the mean log-likelihood in its weight; None where training diverged.

    `room` and what is raised are as for `credit_each`."""
    found = credit_each(
        lm, tokens_of(lm, edits), [golds_of(lm.codec, own) for own in queries], trainer, seed=seed,
        settings=[edit.settings for edit in edits], curvature=curvature, room=room,
    )  # fmt: skip
    lines = [one.lines[: len(edit.lines)].tolist() for one, edit in zip(found, edits, strict=True)]
    return [[value if math.isfinite(value) else None for value in own] for own in lines]


def leave_one_out(
    lm: LanguageModel,
    edits: Sequence[SelfEdit],
    queries: Sequence[Sequence[Query]],
    trainer: Trainer,
    *,
    seed: int,
) -> list[Left]:
    """The same by training: what is lost without each line, of the log-likelihood and of the probability."""
    rows, asked, settings = list[list[Tokens]](), list[Sequence[Query]](), []
    for edit, sequences, own in zip(edits, tokens_of(lm, edits), queries, strict=True):
        without = ([s._replace(weight=0.0) if n == line else s for n, s in enumerate(sequences)]
                   for line in range(-1, len(edit.lines)))  # fmt: skip
        rows += without
        asked += [own] * (1 + len(edit.lines))
        settings += [edit.settings] * (1 + len(edit.lines))
    likely: dict[int, list[float | None]] = {}
    lm = lm._replace(hosts=None)  # each process trains them all
    trained = train_each(lm, rows, trainer, seed=seed, settings=settings)
    while chunk := list(itertools.islice(trained, trainer.chunk.planned)):
        numbers, each, _ = zip(*sorted(chunk, key=itemgetter(0)), strict=True)
        adapters = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        said = ask(lm, adapters, [asked[e] for e in numbers], trainer.shapes, max_tokens=1, chunk=trainer.chunk)
        likely |= dict(zip(numbers, said.likely, strict=True))
    found, at = [], 0
    for edit in edits:
        whole, *rest = (likely[at + n] for n in range(1 + len(edit.lines)))
        found.append(Left(*([_lost(signal, whole, one) for one in rest] for signal in (_same, math.exp))))
        at += 1 + len(edit.lines)
    return found


def _same(value: float) -> float:
    return value


def _lost(
    signal: Callable[[float], float], whole: Sequence[float | None], rest: Sequence[float | None]
) -> float | None:
    before, after = (mean(signal(v) for v in own if v is not None and math.isfinite(v)) for own in (whole, rest))
    return None if before is None or after is None else before - after


def helpful(edit: SelfEdit, credit: Sequence[float | None]) -> str:
    """A self-edit's completion with only the lines that helped, what is numbered numbered anew; "" where none did.

    Where the prompt ended with the first question's number, as the completion then does not say it, nor does this.
    """
    lines = [line for line, value in zip(edit.lines, credit, strict=True) if value is not None and value > 0]
    text = "\n".join(_NUMBER.sub(rf"\g<1>{n}\g<2>", line) for n, line in enumerate(lines, 1))
    begun = bool(edit.lines and _QUESTION.match(edit.lines[0])) and edit.lines[0] not in edit.completion
    return _QUESTION.sub("", text, count=1) if begun else text


_NUMBER = re.compile(r"^(\s*(?:Question\s+)?)\d+([.)](?=\s|$)|\s*:)")
_QUESTION = re.compile(r"^Question\s+1\s*:")


# ---------------------------------------------------------------------------------------------------------------------
# How well one agrees with the other


class Method(NamedTuple):
    """One way to credit lines, measured under S training seeds."""

    label: str
    credit: list[list[list[float | None]]]  # [S][E], of each line
    seconds: list[float]  # [S], of all E
    peak: float | None = None  # bytes that a device had in use, at most, up to the end of it


def agreement(
    one: Sequence[Sequence[float | None]], other: Sequence[Sequence[float | None]], tasks: Sequence[int]
) -> list[float | None]:
    """Spearman's correlation over the lines of each self-edit, as the mean of each task's (`tasks` are [E] numbers);
    None for a task without one: fewer than three lines, a line without credit, or no two that differ."""

    def of(a: Sequence[float | None], b: Sequence[float | None]) -> float | None:
        known = len(a) >= FEWEST_LINES and None not in a and None not in b
        value = spearman(a, b) if known else math.nan  # type: ignore[arg-type]  # none of them is None
        return None if math.isnan(value) else value

    found = [of(a, b) for a, b in zip(one, other, strict=True)]
    return [mean(value for task, value in zip(tasks, found, strict=True) if task == p) for p in dict.fromkeys(tasks)]


def credit_table(
    exact: Method, chance: Method, methods: Sequence[Method], tasks: Sequence[int], inner: Sequence[float], *, seed: int
) -> dict[str, Any]:
    """Each method against leaving one line out; intervals over tasks. `exact` and `chance` are the reference in nats
    and in probability, `inner` the seconds [S] of the inner loop alone, `tasks` [E] which task each self-edit is of."""
    seeds, rows = len(exact.credit), list[list[Any]]()

    def correlation(one: Method, other: Method, *, same_seed: bool) -> str:
        pairs = [(s, t) for s in range(seeds) for t in range(seeds) if (s == t) == same_seed]
        if not pairs or (one is other and same_seed):
            return "-"
        each = [agreement(one.credit[s], other.credit[t], tasks) for s, t in pairs]
        return bootstrap_mean([mean(own) for own in zip(*each, strict=True)], seed=seed).text(1, ".2f")

    def same_sign(one: Method) -> str:
        pairs = [(a, b) for s in range(seeds) for x, y in zip(one.credit[s], exact.credit[s], strict=True)
                 for a, b in zip(x, y, strict=True) if a is not None and b is not None]  # fmt: skip
        return f"{100 * np.mean([(a > 0) == (b > 0) for a, b in pairs]):.0f} %" if pairs and one is not exact else "-"

    for one in (exact, *methods):
        rows.append(
            [one.label, correlation(one, exact, same_seed=True), correlation(one, exact, same_seed=False),
             correlation(one, chance, same_seed=True), same_sign(one), f"{one.seconds[-1] / inner[-1]:.1f}",
             f"{one.seconds[-1] / len(tasks):.2f}", None if one.peak is None else f"{one.peak / 2**30:.1f} GiB"]
        )  # fmt: skip
    ranked = [agreement(exact.credit[0], exact.credit[0], tasks)]
    lines = sum(map(len, exact.credit[0]))
    return {
        "title": "Credit for each line",
        "note": (
            f"{len(tasks)} self-edits of {len(set(tasks))} passages, {lines} lines, {seeds} training seeds. Spearman's "
            f"correlation over the lines of a self-edit that has {FEWEST_LINES} or more, as a mean over the "
            f"{sum(value is not None for value in ranked[0])} passages that have one, with 95 % intervals over them. "
            "Same seed: both methods credit lines of the same training run; another: of another run, which is as much "
            "as leaving out agrees with itself. Cost: the time of the last seed over that of its inner loop alone "
            f"({inner[-1] / len(tasks):.2f} s a self-edit); with two seeds or more nothing of it is compiling."
        ),
        "columns": ["method", "with leaving out, same seed", "another seed", "of the probability, same seed",
                    "same sign", "cost, inner loops", "s a self-edit", "memory peak"],
        "rows": rows,
    }  # fmt: skip


def ranking(
    exact: Method, method: Method, edits: Sequence[SelfEdit], titles: Sequence[str], *, most: int
) -> dict[str, Any]:
    """The lines of the first self-edits, best first by leaving out, with both credits: means over seeds."""
    rows = []
    for e, (edit, title) in enumerate(zip(edits, titles, strict=True)):
        means = [[mean(own[e][n] for own in one.credit) for n in range(len(edit.lines))] for one in (exact, method)]
        order = sorted(range(len(edit.lines)), key=lambda n: -(means[0][n] or 0.0))
        rows += [[title, edit.lines[n], *(None if own[n] is None else f"{own[n]:+.3f}" for own in means)]
                 for n in order]  # fmt: skip
    return {
        "title": "Lines and what they taught",
        "note": "Nats a token of the gold answers, means over training seeds.",
        "columns": ["passage", "line", "left out", method.label],
        "rows": rows[:most],
        "page_only": True,
    }
