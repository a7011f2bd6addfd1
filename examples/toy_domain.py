"""A domain of one's own, whole: its four functions, a model, and ReST-EM on it. docs/guide.md walks through it.

    python examples/toy_domain.py      # a minute or less; nothing is fetched: the model is made here, random weights

Its world: every door has a colour, which the model is asked for and was never told. A self-edit is one word; training
on it makes the adapted model answer with that word. So the best self-edit is known, the door's own colour, and what
comes out can be checked: after a few rounds the model writes that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from seal_jax.engine.inner import Chunk
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.nn import transformer
from seal_jax.nn.lora import PROJECTIONS
from seal_jax.run import runtime
from seal_jax.run.journal import RunFolder
from seal_jax.run.progress import Progress
from seal_jax.seal.rest_em import Loop, OuterLoop, rest_em_round
from seal_jax.types import Codec, Domain, Example, LanguageModel, Query, SelfEdit, Verdict, by_query

# ---------------------------------------------------------------------------------------------------------------------
# The domain: what a task is, and four functions


class Door(NamedTuple):
    """A task. All that the core asks of one is an `id`, unique among them."""

    id: str
    colour: str


DOORS = [Door("north", "red"), Door("south", "blue")]


def prompt(door: Door) -> str:
    """What the model reads before it writes a self-edit."""
    return f"describe {door.id}"


def parse(door: Door, completion: str) -> SelfEdit:
    """What it wrote -> training sequences. What yields none says why, and is scored as no training."""
    if not completion:
        return SelfEdit(completion, (), "empty completion")
    return SelfEdit(completion, (Example(prompt=f"colour {door.id} ?", completion=completion),))


def queries(door: Door) -> list[Query]:
    """What the adapted model is asked, without the self-edit in view."""
    return [Query(question=f"What colour is {door.id}?", prompt=f"colour {door.id} ?", gold=door.colour)]


def grade(asked: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
    """Right, wrong, or None where there is no verdict, which is never counted as wrong."""
    return [answer == query.gold for query, answer in zip(asked, answers, strict=True)]


DOMAIN = Domain(prompt, parse, queries, by_query(grade))

# ---------------------------------------------------------------------------------------------------------------------
# The model: two layers, nine words. A real one is `runtime.load_language_model("smollm2-135m", "float32", None)`

WORDS = ("<end>", "describe", "colour", "?", "north", "south", "red", "blue", "green")


def encode(text: str) -> list[int]:
    """A token a word."""
    return [WORDS.index(word) for word in text.split()]


def decode(ids: Sequence[int]) -> str:
    """Words with blanks between; `<end>` is not shown."""
    return " ".join(WORDS[i] for i in ids if i)


def make_model() -> LanguageModel:
    """Random weights: it writes every word about as often as any other, so what it prefers later it has learned."""
    shape = transformer.ModelConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        intermediate_size=128,
        tie_embeddings=False,
    )
    params = transformer.random_params(2, shape)
    params["embed"]["embedding"] /= jnp.std(params["embed"]["embedding"])
    params["lm_head"]["kernel"] *= 5  # room to become sure of a word
    codec = Codec(encode, encode, decode, end=" <end>", stop=(0,))
    return LanguageModel(transformer.graph(shape), jax.device_put(params, jax.devices()[0]), codec)


# ---------------------------------------------------------------------------------------------------------------------
# The loop: how an adapter is trained, how a round goes, and the sizes that programs are compiled for

INNER = FineTuning(projections=("o_proj", "gate_proj", "up_proj", "down_proj"), rank=4, alpha=8.0, learning_rate=3e-2,
                   epochs=8, chunk=32, width_cuts=())  # fmt: skip
SFT = FineTuning(projections=PROJECTIONS, rank=8, alpha=16.0, learning_rate=5e-3, epochs=8, batch_size=2,
                 initialisation="stored", chunk=1)  # fmt: skip
OUTER = OuterLoop(rounds=4, passages=len(DOORS), samples=16, reward_seeds=1, select="improved", sft=SFT)
SHAPES = Shapes(widths=(8,), capacity=1, questions=1, question_width=8, gold_width=8)  # of the longest task, tokens


def main() -> list[float]:
    """Four rounds; prints what is written in each, and returns the mean rewards."""
    lm, rewards = make_model(), []
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(
            domain=DOMAIN,
            inner=INNER,
            sampling=Sampling(max_tokens=1),  # of a self-edit
            write_chunk=Chunk(32),  # self-edits written at a time
            answer_tokens=1,
            shapes=SHAPES,
            prompt_width=8,  # tokens of the longest self-edit prompt
            seed=0,
            chunk=Chunk(32),  # adapters trained at a time
            run=RunFolder(folder, {}),  # keeps what is finished: a folder of your own, and a run can be carried on
            progress=Progress(console=Console(quiet=True)),
        )
        for number in range(1, OUTER.rounds + 1):
            lm, log = rest_em_round(lm, DOORS, OUTER, loop, number=number)
            right = [trial.accuracy or 0.0 for row in log.trials for trial in row]
            rewards.append(sum(right) / len(right))
            written = {row[0].task.id: " ".join(trial.edit.completion or "-" for trial in row) for row in log.trials}
            print(f"round {number}: mean reward {rewards[-1]:.2f}, {int(log.keep.sum())} kept")
            print(*(f"  {door:<6} {words}" for door, words in written.items()), sep="\n")
        loop.run.close()
    return rewards


if __name__ == "__main__":
    runtime.start(1)  # before any other use of JAX: one device, and compiled programs are kept for the next time
    main()
