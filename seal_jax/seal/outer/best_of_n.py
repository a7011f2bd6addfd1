"""Best-of-n imitation without an inner loop: a judge rates each self-edit's text, the best of a task is imitated.

The paper's cheap alternative to its reward: nothing is trained on a self-edit before the model learns to write it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from seal_jax.engine.training import FineTuning
from seal_jax.seal.outer.imitation import SFT, imitate
from seal_jax.seal.outer.rest_em import rewards_of, select
from seal_jax.seal.rewards import Score, Trial
from seal_jax.seal.rounds import Loop, OuterLoop, RoundLog
from seal_jax.types import LanguageModel, SelfEdit, Task


def outer_loop(sft: FineTuning = SFT) -> OuterLoop:
    """Imitation of the self-edits that a judge (`Loop.rate`) rates best."""

    def try_edits(
        learner: LanguageModel,
        tasks: Sequence[Task],
        edits: Sequence[Sequence[SelfEdit]],
        base: Sequence[Score],
        loop: Loop,
        name: str,
    ) -> list[list[Trial]]:
        return rate_self_edits(tasks, edits, base, loop, name=name)

    def learn(
        writer: LanguageModel, trials: Sequence[Sequence[Trial]], loop: Loop, name: str
    ) -> tuple[LanguageModel, RoundLog]:
        ratings = rewards_of(trials, "rating")
        return imitate(writer, trials, select(ratings, ratings[:, 0], rule="best"), sft, loop, name)

    return OuterLoop(try_edits, learn)


NO_JUDGE = "best-of-n needs a judge that rates texts: --grader.kind model or endpoint"


def rate_self_edits(
    tasks: Sequence[Task], edits: Sequence[Sequence[SelfEdit]], base: Sequence[Score], loop: Loop, *, name: str
) -> list[list[Trial]]:
    """Each self-edit with a judge's rating of its text; nothing is trained.

    Raises:
        ValueError: there is no judge that can rate.
    """
    if loop.rate is None:
        raise ValueError(NO_JUDGE)
    loop.display.phase(f"{name}: ratings", len(tasks))
    trials = []
    for p, (task, row) in enumerate(zip(tasks, edits, strict=True)):
        piece = f"{name}/rate/{p}"
        resumed = loop.journal.has(piece)
        ratings = loop.journal.once(piece, partial(loop.rate, task, [edit.completion for edit in row]))
        trials.append([Trial(task, k, edit, [], base[p], ratings[k]) for k, edit in enumerate(row)])
        loop.display.advance(1, resumed=resumed)
    return trials
