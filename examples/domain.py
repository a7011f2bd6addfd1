"""A domain of your own: four functions, and ReST-EM on them (docs/guide.md).

    python examples/domain.py      # a minute or less; downloads nothing

Its world: every door has a colour, which the model has never seen. A self-edit is one word; training on it makes the
adapted model answer with that word. So the best self-edit is known, and after a few rounds the model writes it.
"""

from statistics import mean
from typing import NamedTuple

from toy_model import INNER, SFT, make_model

from seal_jax.engine.sampler import Sampling
from seal_jax.seal.outer import ReSTEM, rest_em
from seal_jax.seal.rounds import make_loop, rounds
from seal_jax.types import Domain, Example, Query, SelfEdit, by_query


class Door(NamedTuple):
    id: str  # a task is any object with a unique one
    colour: str


def prompt(door: Door) -> str:
    """What the model reads before it writes a self-edit."""
    return f"describe {door.id}"


def parse(door: Door, completion: str) -> SelfEdit:
    """What it wrote -> training sequences. If there are none, `problem` says why, and it scores as no training."""
    if not completion:
        return SelfEdit(completion, (), problem="empty completion")
    return SelfEdit(completion, (Example(prompt=f"colour {door.id} ?", completion=completion),))


def queries(door: Door) -> list[Query]:
    """What the adapted model is asked, without the self-edit in view."""
    return [Query(question=f"What colour is {door.id}?", prompt=f"colour {door.id} ?", gold=door.colour)]


DOORS = [Door("north", "red"), Door("south", "blue")]
DOMAIN = Domain(prompt, parse, queries, by_query(lambda asked, said: [q.gold == a for q, a in zip(asked, said)]))


def main() -> list[float]:
    """Four rounds: prints and returns the mean rewards."""
    lm, rewards = make_model(*(word for door in DOORS for word in door)), []
    loop = make_loop(lm, DOMAIN, DOORS, INNER, Sampling(max_tokens=1), longest=8, capacity=1, answer_tokens=1)
    outer = rest_em.outer_loop(ReSTEM(reward_seeds=1, select="improved", sft=SFT))
    for state in rounds(lm, [DOORS] * 4, outer, loop, samples=16):
        if state.log is not None:  # None before the first round
            rewards.append(mean(trial.accuracy or 0.0 for row in state.log.trials for trial in row))
            print(f"round {state.number}: mean reward {rewards[-1]:.2f}, {state.log.keep.sum()} kept")
    return rewards


if __name__ == "__main__":
    main()
