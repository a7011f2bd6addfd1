"""What a self-edit adds to the others of its task: all of them trained together, less all but it (leave-one-out).

Two samples that say the same are each worth little beside the other, however well each does alone: a writer that is
rewarded so has a reason to stay varied. Every set is one more adapter of the same batch, k + 1 for k self-edits, each
of k or k - 1 times the sequences: the inner loop takes about k times as long again.
"""

from __future__ import annotations

from collections.abc import Sequence

from seal_jax.seal.rewards import Score, Trial
from seal_jax.seal.rounds import Loop, try_self_edits
from seal_jax.types import LanguageModel, SelfEdit, Task

SIGNALS = ("accuracy", "log_likelihood", "probability")


def try_in_sets(
    learner: LanguageModel,
    tasks: Sequence[Task],
    edits: Sequence[Sequence[SelfEdit]],
    base: Sequence[Score],
    loop: Loop,
    name: str,
    *,
    seeds: int,
) -> list[list[Trial]]:
    """`try_self_edits`, and beside it what each adds (`Trial.added`). The trainer has room for all k in one adapter."""
    alone = try_self_edits(learner, tasks, edits, base, loop, name, seeds=seeds)
    sets = [[union([*row[:k], *row[k + 1 :]]) for k in range(len(row))] + [union(row)] for row in edits]
    tried = try_self_edits(learner, tasks, sets, base, loop, f"{name}, sets", seeds=seeds)
    return [
        [trial._replace(added=_difference(rest, whole)) for trial, rest in zip(row, others, strict=True)]
        for row, (*others, whole) in zip(alone, tried, strict=True)
    ]


def union(edits: Sequence[SelfEdit]) -> SelfEdit:
    """Self-edits as one: each training sequence once, which two of them may share (the passage itself).

    Raises:
        ValueError: one of them has settings of its own.
    """
    if any(edit.settings for edit in edits):
        raise ValueError("self-edits that choose their own settings cannot be joined; use --outer.reward alone")
    examples = dict.fromkeys(example for edit in edits for example in edit.examples)
    return SelfEdit("", tuple(examples), None if examples else "no training sequence")


def _difference(rest: Trial, whole: Trial) -> dict[str, float | None]:
    """None where one of them diverged."""
    pairs = {signal: (getattr(rest, signal), getattr(whole, signal)) for signal in SIGNALS}
    known = "diverged" not in (rest.problem, whole.problem)
    return {s: b - a if known and a is not None and b is not None else None for s, (a, b) in pairs.items()}
