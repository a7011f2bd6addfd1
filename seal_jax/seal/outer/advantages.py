"""Policy gradient over all samples of a task, each against its siblings (GRPO: Shao et al. 2024, arXiv 2402.03300).

With `A_k = r_k - mean(r)` over a task's samples (divided by their standard deviation where `std` asks for it; Liu et
al. 2025, arXiv 2503.20783, leave it out, since it makes most of the tasks whose rewards hardly differ), q the writer
that wrote and p the writer that learns, each token y of sample k has the loss

    -min(r A_k, clip(r, e^-c, e^c) A_k) + kl (1 / r - 1 + log r),      r = p(y) / q(y)

At p = q it is on-policy: r = 1, and the gradient, `-A_k grad log p(y)`, is that of the likelihood weighted by its
advantage; the second term (the k3 estimator of a KL divergence) has none. Further on it is what makes negative
weights safe: `-A log p` has no lower bound, while `-A r` fades as r goes to 0, stops past the clip, and k3 grows. The
gradient of k3, `-(q(y) / p(y) - 1) grad log p(y)`, has the mean of KL(q || p)'s over what p writes. `q` is the model
without the adapter, read in the same step, so no log-probability has to be kept from sampling.

A self-edit that trains nothing counts as the base model does: beside siblings that teach, it is pushed down. The mean
is over a step's tokens, not over its samples: the length of a sample changes no token's weight. Departures from the
paper: a round is a pass over all samples, not over a small batch of them, so that the clip is wide and in nats, the
same both ways; q is read at temperature 1 and over all tokens, whatever the sampling was, and a sample's text as the
tokenizer cuts it. As in its Algorithm 1, the writer that the divergence is from is renewed each round.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

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

FAR = 20.0  # nats that a token's likelihood has moved: from there on k3 is a straight line, which float32 holds
EQUAL = 1e-9  # a reward that lies no further from its task's mean is the mean


@dataclasses.dataclass(frozen=True)
class Advantages:
    """Advantages over all samples of a task. `epochs` of the training is the passes over them: on-policy is 1."""

    std: bool = False  # divide by the standard deviation of a task's rewards
    kl: float = 0.04  # of the divergence from the writer before the round (paper: 0.04)
    clip: float = 1.0  # nats that a token's likelihood may move in a round before its advantage no longer pulls; ours

    def __post_init__(self) -> None:
        require_at_least(0, kl=self.kl, clip=self.clip)


def _total(values: Float[Array, "B T"], weight: Float[Array, "B T"], numbers: Numbers) -> Float[Array, ""]:
    near, clip = jnp.clip(values, -FAR, FAR), numbers["clip"]
    gain = jnp.minimum(weight * jnp.exp(near), weight * jnp.exp(jnp.clip(near, -clip, clip)))
    k3 = jnp.exp(-near) - 1 + values - math.exp(FAR) * jnp.minimum(values + FAR, 0)
    return jnp.sum(jnp.where(weight != 0, numbers["kl"] * k3 - gain, 0))


policy = Loss(log_ratio, teacher="base", total=_total)
"""The loss above; a token's weight is the advantage of its sample, `kl` and `clip` are numbers."""


def outer_loop(
    config: Advantages = Advantages(), *, signal: str = "accuracy", seeds: int = 1, sft: FineTuning = SFT
) -> OuterLoop:
    """All self-edits are learned from, by the advantage of their `signal`; `seeds` are training runs a self-edit."""

    def learn(
        writer: LanguageModel, trials: Sequence[Sequence[Trial]], loop: Loop, name: str
    ) -> tuple[LanguageModel, RoundLog]:
        found = advantages(rewards_of(trials, signal, all_count=True), std=config.std)
        log = RoundLog([list(row) for row in trials], found > 0, [], skipped=int((found == 0).all(axis=1).sum()))
        examples = [
            example_of(writer, trial, loop, weight)
            for row, weights in zip(trials, found.tolist(), strict=True)
            for trial, weight in zip(row, weights, strict=True)
            if weight
        ]
        numbers = {"kl": config.kl, "clip": config.clip}
        return learn_from(writer, log, examples, sft, loop, name, loss=policy, numbers=numbers)

    return OuterLoop(partial(rounds.try_self_edits, seeds=seeds), learn)


def advantages(rewards: Float[np.ndarray, "P E"], *, std: bool = False) -> Float[np.ndarray, "P E"]:
    """Each reward less the mean of its task's. 0 where there is none (NaN)."""
    there = ~np.isnan(rewards)
    count = np.maximum(there.sum(axis=1, keepdims=True), 1)
    centred = np.where(there, rewards - np.where(there, rewards, 0).sum(axis=1, keepdims=True) / count, 0)
    found = np.where(np.abs(centred) > EQUAL, centred, 0)
    spread = np.sqrt((found**2).sum(axis=1, keepdims=True) / count)
    return found / np.where(spread > 0, spread, 1) if std else found
