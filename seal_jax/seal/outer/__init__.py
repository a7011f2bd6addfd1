"""Ways for a model to learn from its tried self-edits, a file each (`rounds.OuterLoop`), and the choice among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from seal_jax.seal.outer import advantages, best_of_n, imitation, preferences, rest_em
from seal_jax.seal.outer.advantages import Advantages
from seal_jax.seal.outer.imitation import SFT
from seal_jax.seal.outer.preferences import Preferences
from seal_jax.seal.outer.rest_em import ReSTEM
from seal_jax.seal.outer.sets import try_in_sets
from seal_jax.seal.rounds import OuterLoop
from seal_jax.types import require_at_least


@dataclasses.dataclass(frozen=True)
class Outer(ReSTEM):
    """The outer loop of an experiment. The defaults are the paper's."""

    method: Literal["rest_em", "advantages", "preferences", "imitation", "best_of_n"] = "rest_em"
    """rest_em: the winners are imitated; advantages: a policy gradient over all samples (GRPO); preferences: best
    against worst (DPO); imitation: of `recorded`. The reward is what an adapter then knows, but in best_of_n: a judge's
    rating of the text, no inner loop."""
    rounds: int = 2  # of writing, trying and learning
    passages: int = 50  # fresh ones a round, disjoint from every other round's
    validation: int = 0  # passages apart from all others, on which the round to use is chosen
    samples: int = 5  # self-edits a passage
    reward: Literal["alone", "set"] = "alone"
    """alone: what an adapter trained on the self-edit then knows; set: what it adds to the passage's others, by
    adapters trained on all of them together and on all but one."""
    advantages: Advantages = Advantages()
    """Of --outer.method advantages."""
    preferences: Preferences = Preferences()
    """Of --outer.method preferences."""
    recorded: str | None = None
    """Of --outer.method imitation: self-edits for the passages of all rounds, a JSON file of the reference's format or
    the folder of a run that held those passages out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, rounds=self.rounds, validation=self.validation)
        require_at_least(1, passages=self.passages, samples=self.samples)
        if self.reward == "set" and (self.method == "best_of_n" or self.select == "all_correct" or self.samples < 2):
            raise ValueError(
                "--outer.reward set is what a self-edit adds to others: it needs two --outer.samples or more, and "
                "goes with neither --outer.method best_of_n nor --outer.select all_correct"
            )
        if self.credit == "lines" and self.method != "rest_em":
            raise ValueError(f"--outer.credit lines is of --outer.method rest_em; it is {self.method}")
        if (self.method == "imitation") != (self.recorded is not None):
            raise ValueError(
                f"--outer.method is {self.method} and --outer.recorded is {self.recorded}: "
                "imitation, and no other method, needs a file of recorded self-edits"
            )

    def make(self, recorded: Mapping[str, Sequence[str]] | None = None) -> OuterLoop:
        """What these settings describe; `recorded` are the completions to imitate, by the task's id.

        Raises:
            ValueError: there is nothing to imitate.
        """
        loop = self._method(recorded)
        return loop._replace(try_edits=partial(try_in_sets, seeds=self.reward_seeds)) if self.reward == "set" else loop

    def _method(self, recorded: Mapping[str, Sequence[str]] | None) -> OuterLoop:
        seeds, sft = self.reward_seeds, self.sft
        if self.method == "advantages":
            return advantages.outer_loop(self.advantages, signal=self.signal, seeds=seeds, sft=sft)
        if self.method == "preferences":
            ties = self.break_ties
            return preferences.outer_loop(self.preferences, signal=self.signal, break_ties=ties, seeds=seeds, sft=sft)
        if self.method == "imitation":
            if recorded is None:
                raise ValueError("--outer.method imitation is for passages (experiments.squad): only they are recorded")
            return imitation.outer_loop(recorded, seeds=seeds, sft=sft)
        return best_of_n.outer_loop(sft) if self.method == "best_of_n" else rest_em.outer_loop(self)


LEARNING = ("select", "signal", "break_ties", "credit", "sft", "advantages", "preferences")
TRYING = ("rest_em", "advantages", "preferences")  # methods that try what the writer writes, in one way


def until_learning(outer: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of an outer loop, by name, what its first round depends on up to where it learns."""
    method = "trying" if outer["method"] in TRYING else outer["method"]
    return {name: value for name, value in outer.items() if name not in LEARNING} | {"method": method}


__all__ = ["SFT", "Advantages", "Outer", "Preferences", "ReSTEM", "best_of_n", "rest_em"]
