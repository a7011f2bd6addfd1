"""Direct preference optimisation: a task's best self-edit against its worst (Rafailov et al. 2023, arXiv 2305.18290).

With w the better and l the worse of a pair, p the writer that learns and q the writer before the round:

    -log sigmoid(beta m),      m = [log p(w) - log q(w)] - [log p(l) - log q(l)]

A pair is two neighbouring sequences of a step, of weight 1 and -1, and m the weighted sum of their tokens' log-ratios.
The gradient follows by the chain rule through that sum, which weights each token's by `beta sigmoid(-beta m)`: one
forward and one backward pass, where margins computed apart from the gradient would take a second forward pass.

A self-edit that trains nothing counts as the base model does, and so may be the worst of its task.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from seal_jax.engine.training import FineTuning
from seal_jax.nn.losses import Loss, Numbers, log_ratio
from seal_jax.seal import rounds
from seal_jax.seal.outer.imitation import SFT, example_of, learn_from
from seal_jax.seal.outer.rest_em import rewards_of
from seal_jax.seal.rewards import Trial
from seal_jax.seal.rounds import Loop, OuterLoop, RoundLog
from seal_jax.types import LanguageModel, require_at_least

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Preferences over the best and the worst sample of a task."""

    beta: float = 0.1  # how soon a pair is learned well enough (paper: 0.1)

    def __post_init__(self) -> None:
        require_at_least(0, beta=self.beta)


def _total(values: Float[Array, "B T"], weight: Float[Array, "B T"], numbers: Numbers) -> Float[Array, ""]:
    pairs = weight.reshape(len(weight) // 2, -1)
    margins = jnp.sum(pairs * values.reshape(pairs.shape), axis=1)
    there = jnp.any(pairs != 0, axis=1)  # a step that is not full has empty pairs
    return jnp.sum(jnp.where(there, jax.nn.softplus(-numbers["beta"] * margins), 0))


preference = Loss(log_ratio, teacher="base", total=_total, rows=2)
"""The loss above, mean over a step's pairs; `beta` is a number."""


def outer_loop(
    config: Preferences = Preferences(),
    *,
    signal: str = "accuracy",
    break_ties: bool = True,
    seeds: int = 1,
    sft: FineTuning = SFT,
) -> OuterLoop:
    """The best self-edit of each task is preferred to the worst, by `signal`, then by log-likelihood if `break_ties`.

    `sft.batch_size` counts self-edits, two a pair; `seeds` are training runs a self-edit.
    """

    def learn(
        writer: LanguageModel, trials: Sequence[Sequence[Trial]], loop: Loop, name: str
    ) -> tuple[LanguageModel, RoundLog]:
        rewards = rewards_of(trials, signal, all_count=True)
        pairs = best_and_worst(rewards, rewards_of(trials, "log_likelihood", all_count=True) if break_ties else None)
        keep, examples = np.zeros(rewards.shape, bool), []
        for p, pair in enumerate(pairs):
            if pair is not None:
                keep[p, pair[0]] = True
                examples += [
                    example_of(writer, trials[p][k], loop, sign) for k, sign in zip(pair, (1, -1), strict=True)
                ]
        log = RoundLog([list(row) for row in trials], keep, [], skipped=pairs.count(None))
        numbers = {"beta": config.beta}
        return learn_from(writer, log, examples, sft, loop, name, loss=preference, numbers=numbers)

    return OuterLoop(partial(rounds.try_self_edits, seeds=seeds), learn)


def best_and_worst(
    rewards: Float[np.ndarray, "P E"], tie_break: Float[np.ndarray, "P E"] | None = None
) -> list[tuple[int, int] | None]:
    """Each task's self-edits of the highest and of the lowest reward, by number; None where no two differ.

    NaN rewards are left out. Among equals `tie_break` decides (NaN is lowest), then the order.
    """
    second = np.zeros_like(rewards) if tie_break is None else np.where(np.isnan(tie_break), -np.inf, tie_break)
    found: list[tuple[int, int] | None] = []
    for row in np.stack([rewards, second], axis=-1).round(9).tolist():
        known = [k for k, (reward, _) in enumerate(row) if not math.isnan(reward)]
        pair = (max(known, key=row.__getitem__), min(known, key=row.__getitem__)) if known else None
        found.append(pair if pair and row[pair[0]] != row[pair[1]] else None)
    return found
