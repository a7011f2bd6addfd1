"""ReST-EM over self-edits (paper section 3.1, Algorithm 1): keep the winners, train the model to write those, merge."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from seal_jax.engine.credit import free_room
from seal_jax.engine.training import FineTuning
from seal_jax.seal import rounds
from seal_jax.seal.credit import by_gradient, helpful
from seal_jax.seal.outer.imitation import SFT, example_of, imitate, learn_from
from seal_jax.seal.rewards import Trial
from seal_jax.seal.rounds import Loop, OuterLoop, RoundLog
from seal_jax.types import LanguageModel, require_at_least

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Bool, Float

Rule = Literal["best", "improved", "all_improved", "all_correct"]
Signal = Literal["accuracy", "log_likelihood", "probability"]


@dataclasses.dataclass(frozen=True)
class ReSTEM:
    """ReST-EM. The defaults are the paper's (its section 3.1 and B.1, and its code) but for the ties."""

    reward_seeds: int = 3  # training runs a self-edit; the reward is their mean
    signal: Signal = "accuracy"  # what the reward is
    break_ties: bool = True  # equal accuracies are ordered by log-likelihood; the paper's code: the first wins
    select: Rule = "best"
    """Of rest_em alone. best: argmax; improved: argmax if above the base (eq. 2); all_improved; all_correct."""
    credit: Literal["whole", "lines"] = "whole"
    """Of rest_em alone. whole: a winner is imitated as it was written; lines: only those of its lines that helped, by
    their credit by gradient (seal/credit.py); one with none is not imitated."""
    sft: FineTuning = SFT

    def __post_init__(self) -> None:
        require_at_least(1, reward_seeds=self.reward_seeds)
        if self.select == "all_correct" and self.signal != "accuracy":
            raise ValueError(
                "--outer.select all_correct keeps what answers everything right: "
                f"it needs --outer.signal accuracy, not {self.signal}"
            )


def outer_loop(config: ReSTEM = ReSTEM()) -> OuterLoop:
    """The paper's outer loop: the reward of a self-edit is what an adapter trained on it then knows."""

    def learn(
        writer: LanguageModel, trials: Sequence[Sequence[Trial]], loop: Loop, name: str
    ) -> tuple[LanguageModel, RoundLog]:
        baseline = np.array(
            [getattr(row[0].base, config.signal) if row[0].added is None else 0 for row in trials], float
        )
        tie_break = rewards_of(trials, "log_likelihood") if config.break_ties else None
        keep = select(rewards_of(trials, config.signal), baseline, rule=config.select, tie_break=tie_break)
        if config.credit == "lines":
            return imitate_lines(writer, trials, keep, config.sft, loop, name)
        return imitate(writer, trials, keep, config.sft, loop, name)

    return OuterLoop(partial(rounds.try_self_edits, seeds=config.reward_seeds), learn)


def imitate_lines(
    writer: LanguageModel,
    trials: Sequence[Sequence[Trial]],
    keep: Bool[np.ndarray, "P E"],
    sft: FineTuning,
    loop: Loop,
    name: str,
) -> tuple[LanguageModel, RoundLog]:
    """`imitate` of winners cut to the lines that helped, each credited in the run of its first training seed.

    The writer is the model that learned from them. Raises as `learn_from`; ValueError for a domain whose self-edits
    have no lines.
    """
    winners = [(p, k) for p, k in np.argwhere(keep).tolist() if trials[p][k].edit.examples]
    edits = [trials[p][k].edit for p, k in winners]
    if edits and not any(edit.lines for edit in edits):
        raise ValueError("--outer.credit lines: these self-edits are not made of lines; use --outer.credit whole")
    asked = [loop.domain.queries(trials[p][k].task) for p, k in winners]
    loop.display.phase(f"{name}: credit", len(winners))

    def work() -> list[list[float | None]]:
        room = loop.journal.once(f"{name}/credit, room", partial(free_room, writer))
        return by_gradient(writer, edits, asked, loop.trainer, seed=loop.seed * 1000, room=room)

    credits = loop.journal.once(f"{name}/credit", work) if winners else []
    loop.display.advance(len(winners))
    tried, examples = [list(row) for row in trials], []
    keep = np.zeros_like(keep)
    for (p, k), edit, credit in zip(winners, edits, credits, strict=True):
        tried[p][k] = trial = tried[p][k]._replace(credit=credit)
        if text := helpful(edit, credit):
            keep[p, k] = True
            examples.append(example_of(writer, trial._replace(edit=edit._replace(completion=text)), loop))
    return learn_from(writer, RoundLog(tried, keep, []), examples, sft, loop, name)


def rewards_of(trials: Sequence[Sequence[Trial]], field: str, *, all_count: bool = False) -> Float[np.ndarray, "P E"]:
    """One reward of every trial: what it adds to its task's others where that was measured, else its own. NaN where
    there is none, and where it trained nothing or diverged: the model must not learn to write that.

    Where `all_count`, one that trained nothing has the reward of the base model, which is what it leads to: a model
    that learns from bad samples too learns not to write that.
    """

    def reward(trial: Trial) -> float | None:
        if trial.problem and not (all_count and trial.edit.problem):
            return None
        return getattr(trial, field) if trial.added is None else trial.added[field]

    values = [[reward(trial) for trial in row] for row in trials]
    return np.array([[math.nan if value is None else value for value in row] for row in values])


def select(
    rewards: Float[np.ndarray, "P E"],
    baseline: Float[np.ndarray, "P"],
    *,
    rule: Rule,
    tie_break: Float[np.ndarray, "P E"] | None = None,
) -> Bool[np.ndarray, "P E"]:
    """Which self-edits the model is trained to write.

    `best` keeps each task's argmax, gain or not (the paper's code); `improved` keeps it only if it beats the base model
    (the paper's eq. 2, one a task); `all_improved` keeps every self-edit that does, `all_correct` every one of reward 1
    (the paper's section 3.3). NaN rewards are never kept. Among equals the higher `tie_break` wins, then the first.
    """
    valid = ~np.isnan(rewards)
    if rule == "all_correct":
        return valid & (rewards >= 1)
    if rule == "all_improved":
        return valid & (rewards > baseline[:, None])
    second = np.zeros_like(rewards) if tie_break is None else np.where(np.isnan(tie_break), -np.inf, tie_break)
    first = np.where(valid, rewards, -np.inf)
    top = first == first.max(axis=1, keepdims=True)
    winner = np.argmax(np.where(top, second, -np.inf), axis=1)
    keep = valid & (np.arange(rewards.shape[1]) == winner[:, None])
    return keep & (rewards > baseline[:, None]) if rule == "improved" else keep
