"""Ways for a model to learn from its tried self-edits, a file each (`rounds.OuterLoop`), and the choice among them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from seal_jax.seal.outer import best_of_n, rest_em
from seal_jax.seal.outer.imitation import SFT
from seal_jax.seal.outer.rest_em import ReSTEM
from seal_jax.seal.rounds import OuterLoop
from seal_jax.types import require_at_least


@dataclasses.dataclass(frozen=True)
class Outer(ReSTEM):
    """The outer loop of an experiment. The defaults are the paper's."""

    method: Literal["rest_em", "best_of_n"] = "rest_em"
    """rest_em: the reward is what an adapter then knows; best_of_n: a judge's rating of the text, no inner loop."""
    rounds: int = 2  # of writing, trying and learning
    passages: int = 50  # fresh ones a round, disjoint from every other round's
    validation: int = 0  # passages apart from all others, on which the round to use is chosen
    samples: int = 5  # self-edits a passage

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, rounds=self.rounds, validation=self.validation)
        require_at_least(1, passages=self.passages, samples=self.samples)

    def make(self) -> OuterLoop:
        """What these settings describe."""
        return best_of_n.outer_loop(self.sft) if self.method == "best_of_n" else rest_em.outer_loop(self)


__all__ = ["SFT", "Outer", "ReSTEM", "best_of_n", "rest_em"]
