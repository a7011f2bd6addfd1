"""A loss of your own: next-token prediction against smoothed targets, its weight a number of each adapter.

    python examples/loss.py

A loss is a function of the logits of a few tokens: its value, and its derivative in the logits. Chunking, the backward
pass, many adapters and several devices come from the head under it (seal_jax/nn/losses.py).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from domain import DOORS, parse
from toy_model import INNER, make_model

from seal_jax.engine.batching import tokenize
from seal_jax.engine.training import Shapes, make_trainer, train
from seal_jax.nn.losses import Loss
from seal_jax.types import Compute


def smoothed_next_token(logits, targets, teacher, numbers):
    """`-sum_v t(v) log p(v)`, where t puts `smoothing` evenly on all tokens and the rest on the target."""
    log_p = jax.nn.log_softmax(logits)
    size, smoothing = logits.shape[-1], numbers["smoothing"]
    wanted = (1 - smoothing) * jax.nn.one_hot(targets, size) + smoothing / size
    return -jnp.sum(wanted * log_p, axis=-1), jnp.exp(log_p) - wanted


def main() -> list[float]:
    """Two adapters in one program, without and with smoothing: prints and returns their last losses."""
    lm = make_model()
    line = [tokenize(example, lm.codec) for example in parse(DOORS[0], "red").examples]
    shapes = Shapes(widths=(8,), capacity=1, questions=0, question_width=0, gold_width=0)
    trainer = make_trainer(INNER, shapes, Compute(chunk=2), loss=Loss(smoothed_next_token))
    _, losses = train(lm, [line, line], trainer, seed=0, numbers={"smoothing": [0.0, 0.2]})
    for smoothing, row in zip((0.0, 0.2), losses, strict=True):
        print(f"smoothing {smoothing}: loss {row[0]:.2f} -> {row[-1]:.2f} nats")
    return [float(row[-1]) for row in losses]


if __name__ == "__main__":
    main()
