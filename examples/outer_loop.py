"""An outer loop of your own: every self-edit is imitated, weighted by how much better than its siblings it is.

    python examples/outer_loop.py

`try_edits` says what comes of self-edits (here: an adapter each, as the paper has it), `learn` makes a better writer of
that. Writing, the journal, progress and the rounds come from seal_jax/seal/rounds.py. A toy bears negative weights on
likelihoods, which have no lower bound; seal_jax/seal/outer/advantages.py is the same idea made safe.
"""

from __future__ import annotations

import numpy as np
from domain import DOMAIN, DOORS
from toy_model import INNER, SFT, make_model

from seal_jax.engine.sampler import Sampling
from seal_jax.nn import lora
from seal_jax.seal.outer.imitation import train_on
from seal_jax.seal.outer.rest_em import rewards_of
from seal_jax.seal.rounds import OuterLoop, RoundLog, make_loop, rounds, try_self_edits
from seal_jax.types import Example


def try_edits(learner, tasks, edits, base, loop, name):
    """What an adapter trained on each self-edit then knows."""
    return try_self_edits(learner, tasks, edits, base, loop, seeds=1, name=name)


def learn(writer, trials, loop, name):
    """Reward less the mean of the task's: better ones are made likelier, worse ones less likely."""
    rewards = np.nan_to_num(rewards_of(trials, "accuracy"))
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    pairs = [
        Example(loop.domain.prompt(trial.task), trial.edit.completion, weight=float(advantages[p, k]))
        for p, row in enumerate(trials)
        for k, trial in enumerate(row)
        if advantages[p, k] and trial.edit.completion
    ]
    log = RoundLog(trials, advantages > 0, [])
    if not pairs:
        return writer, log
    adapter, losses = train_on(writer, pairs, SFT, seed=loop.seed)
    return writer._replace(params=lora.merge(writer.params, adapter)), log._replace(losses=losses)


def main() -> list[float]:
    """Four rounds: prints and returns the mean rewards."""
    lm, rewards = make_model(), []
    loop = make_loop(lm, DOMAIN, DOORS, INNER, Sampling(max_tokens=1), longest=8, capacity=1, answer_tokens=1)
    for state in rounds(lm, [DOORS] * 4, OuterLoop(try_edits, learn), loop, samples=16):
        if state.log is not None:
            rewards.append(float(np.nanmean(rewards_of(state.log.trials, "accuracy"))))
            print(f"round {state.number}: mean reward {rewards[-1]:.2f}")
    return rewards


if __name__ == "__main__":
    main()
