"""A complete domain: its four functions, a model, and ReST-EM on it. docs/guide.md walks through it.

    python examples/toy_domain.py      # a minute or less; downloads nothing: the model has random weights

Its world: every door has a colour, which the model is asked for and has never seen. A self-edit is one word; training
on it makes the adapted model answer with that word. So the best self-edit is known, the door's colour, and the result
can be checked: after a few rounds the model writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from seal_jax.engine.chunks import Chunk
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes, make_trainer
from seal_jax.nn import transformer
from seal_jax.nn.lora import PROJECTIONS
from seal_jax.run import runtime
from seal_jax.seal.outer import ReSTEM, rest_em
from seal_jax.seal.rounds import Loop, rounds
from seal_jax.types import (
    Codec,
    Compute,
    Domain,
    Example,
    LanguageModel,
    Memory,
    Query,
    SelfEdit,
    Silent,
    Verdict,
    by_query,
)

# ---------------------------------------------------------------------------------------------------------------------
# The domain: what a task is, and four functions


class Door(NamedTuple):
    """A task: any object with a unique `id`."""

    id: str
    colour: str


DOORS = [Door("north", "red"), Door("south", "blue")]


def prompt(door: Door) -> str:
    """What the model reads before it writes a self-edit."""
    return f"describe {door.id}"


def parse(door: Door, completion: str) -> SelfEdit:
    """What it wrote -> training sequences. If there are none, `problem` says why, and it scores as no training."""
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
# The model: two layers, nine words. `runtime.load` loads a real one

WORDS = ("<end>", "describe", "colour", "?", "north", "south", "red", "blue", "green")


def encode(text: str) -> list[int]:
    """One token per word."""
    return [WORDS.index(word) for word in text.split()]


def decode(ids: Sequence[int]) -> str:
    """Words separated by spaces, without `<end>`."""
    return " ".join(WORDS[i] for i in ids if i)


def make_model() -> LanguageModel:
    """Random weights: at first it writes every word about equally often, so any later preference was learned."""
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
    params["lm_head"]["kernel"] *= 5  # so that it can become certain of a word
    codec = Codec(encode, encode, decode, end=" <end>", stop=(0,))
    return LanguageModel(transformer.graph(shape), jax.device_put(params, jax.devices()[0]), codec)


# ---------------------------------------------------------------------------------------------------------------------
# The loop: how an adapter is trained, how a round goes, and the sizes that programs are compiled for

INNER = FineTuning(projections=("o_proj", "gate_proj", "up_proj", "down_proj"), rank=4, alpha=8.0, learning_rate=3e-2,
                   epochs=8)  # fmt: skip
SFT = FineTuning(projections=PROJECTIONS, rank=8, alpha=16.0, learning_rate=5e-3, epochs=8, batch_size=2,
                 initialisation="stored")  # fmt: skip
SHAPES = Shapes(widths=(8,), capacity=1, questions=1, question_width=8, gold_width=8)  # of the longest task, tokens
LOOP = Loop(
    domain=DOMAIN,
    trainer=make_trainer(INNER, SHAPES, Compute(chunk=32)),  # 32 adapters at a time
    sampling=Sampling(max_tokens=1),  # of a self-edit
    prompt_width=8,  # tokens of the longest self-edit prompt
    write_chunk=Chunk(32),  # self-edits written at a time
    answer_tokens=1,
    seed=0,
    journal=Memory(),  # a run.journal.RunFolder instead keeps what is finished on disk, so that a run can be resumed
    display=Silent(),
)


def main() -> list[float]:
    """Four rounds; prints what is written in each, and returns the mean rewards."""
    outer, rewards = rest_em(ReSTEM(reward_seeds=1, select="improved", sft=SFT)), []
    for state in rounds(make_model(), [DOORS] * 4, outer, LOOP, samples=16):
        if state.log is None:  # before the first round
            continue
        right = [trial.accuracy or 0.0 for row in state.log.trials for trial in row]
        rewards.append(sum(right) / len(right))
        print(f"round {state.number}: mean reward {rewards[-1]:.2f}, {int(state.log.keep.sum())} kept")
        for row in state.log.trials:
            print(f"  {row[0].task.id:<6}", *(trial.edit.completion or "-" for trial in row))
    return rewards


if __name__ == "__main__":
    runtime.start(1)  # before any other use of JAX: one device, and compiled programs are kept for the next time
    main()
