"""What the inner loop and its answers cost at the least: floating-point operations and bytes, from first principles.

Pure arithmetic: no JAX, nothing measured. A phase that does `flops` operations and moves `bytes` through memory takes
at least `max(flops / peak, bytes / bandwidth)`; phases that must wait for one another add up. That sum is the floor a
measured time is held against. What is left out (norms, softmax, biases, activations written between layers) only makes
the real cost larger, so the floor stays a floor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from seal_jax.nn.transformer import ModelConfig

FLOAT32 = 4  # bytes: adapters, their gradients and Adam's moments


class Peak(NamedTuple):
    """What the devices of a run can do together, at best."""

    flops: float  # multiplications and additions a second, of matrix products
    bandwidth: float  # bytes a second, read and written


@dataclasses.dataclass(frozen=True)
class Cost:
    """The work of one phase."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.bytes * times)

    def seconds(self, peak: Peak) -> float:
        """The least time it takes, arithmetic and memory overlapping as well as they can."""
        return max(self.flops / peak.flops, self.bytes / peak.bandwidth)


def total(phases: Sequence[Cost]) -> Cost:
    """All phases' work."""
    return sum(phases, Cost(0, 0))


def floor(phases: Sequence[Cost], peak: Peak) -> float:
    """The least seconds of phases that wait for one another."""
    return sum(phase.seconds(peak) for phase in phases)


# ---------------------------------------------------------------------------------------------------------------------
# Parameters


def layer_parameters(model: ModelConfig) -> int:
    """Of the matrices of all layers."""
    return model.num_layers * sum(d_in * d_out for d_in, d_out in model.kernels().values())


def matmul_parameters(model: ModelConfig) -> int:
    """All that a token is multiplied with: every layer's matrices and the output head. A table that is only looked up
    (an untied embedding) is not among them."""
    return layer_parameters(model) + model.hidden_size * model.vocab_size


def model_parameters(model: ModelConfig) -> int:
    """All parameters: the matrices, the embedding, biases and norms."""
    d, h = model.hidden_size, model.head_dim
    norms = 2 * d + (2 * h if model.qk_norm else 0)
    biases = (model.num_heads + 2 * model.num_kv_heads) * h if model.qkv_bias else 0
    tables = model.vocab_size * d * (1 if model.tie_embeddings else 2)
    return layer_parameters(model) + model.num_layers * (norms + biases) + d + tables


def lora_parameters(model: ModelConfig, projections: Sequence[str], rank: int) -> int:
    """Of one adapter: r (in + out) for each adapted matrix."""
    shapes = model.kernels()
    return model.num_layers * rank * sum(sum(shapes[name]) for name in projections)


# ---------------------------------------------------------------------------------------------------------------------
# One token


def attention_flops(model: ModelConfig, context: float) -> float:
    """Scores and their weighted sum of one token over `context` positions: 2 + 2 operations a position, head and
    dimension, in each layer. Positions that causality masks are counted: a dense kernel computes them."""
    return 4 * context * model.num_heads * model.head_dim * model.num_layers


def forward_flops(model: ModelConfig, context: float, lora: int, *, head: bool = True) -> float:
    """One token, forward: 2 operations a parameter of the matrices (with or without the output head) and of the
    adapter, and attention."""
    parameters = matmul_parameters(model) if head else layer_parameters(model)
    return 2 * (parameters + lora) + attention_flops(model, context)


def training_flops(model: ModelConfig, context: float, lora: int) -> float:
    """One token, forward and backward, over a frozen base model.

    A frozen matrix costs 2 operations a parameter forward and 2 for the gradient of its input: 4, where full training
    costs 6, for there is no gradient of the matrix. The adapter's own costs all 6. Attention has no weights and costs
    its forward three times.
    """
    return 4 * matmul_parameters(model) + 6 * lora + 3 * attention_flops(model, context)


def kv_bytes(model: ModelConfig, itemsize: int) -> int:
    """Keys and values of one position, in all layers."""
    return 2 * model.num_kv_heads * model.head_dim * model.num_layers * itemsize


# ---------------------------------------------------------------------------------------------------------------------
# One self-edit


def training(
    model: ModelConfig, lora: int, lengths: Sequence[int], *, epochs: int, sharing: float, itemsize: int
) -> list[Cost]:
    """Training one adapter on a self-edit's sequences, one a step: the phase of matrix products, then the optimiser's.

    Each step reads the base model's matrices twice (forward, backward), once for all `sharing` adapters that a device
    trains together; it reads the adapter twice and writes its gradient. The optimiser comes after, for the norm that
    clips needs the whole gradient: AdamW reads weight, gradient and two moments and writes weight and moments, 7
    float32 numbers a parameter.
    """
    steps = epochs * len(lengths)
    flops = epochs * sum(n * training_flops(model, n, lora) for n in lengths)
    weights = 2 * matmul_parameters(model) * itemsize / sharing
    return [Cost(flops, steps * (weights + 3 * lora * FLOAT32)), Cost(0, steps * 7 * lora * FLOAT32)]


def mean_training(
    model: ModelConfig, lora: int, edits: Sequence[Sequence[int]], *, epochs: int, sharing: float, itemsize: int
) -> list[Cost]:
    """`training` of the mean of self-edits, each given by the lengths of its sequences."""
    each = [training(model, lora, edit, epochs=epochs, sharing=sharing, itemsize=itemsize) for edit in edits]
    return [total(phase) * (1 / len(edits)) for phase in zip(*each, strict=True)]


def decoding(
    model: ModelConfig,
    lora: int,
    *,
    prompts: int,
    samples: int,
    prompt_tokens: int,
    new_tokens: int,
    sharing: float,
    itemsize: int,
) -> list[Cost]:
    """One adapter's answers (or, with `lora` 0, a prompt's samples): reading the prompts, then a token a row and step.

    Prefill multiplies every prompt token with the layers and the last one with the head, and yields the first new
    token; the other `new_tokens - 1` come one a step. A step reads the matrices once for all `sharing` groups that a
    device decodes together, the adapter once, and each row's keys and values up to there.
    """
    rows, slot = prompts * samples, kv_bytes(model, itemsize)
    weights = matmul_parameters(model) * itemsize / sharing + lora * FLOAT32
    head = 2 * model.hidden_size * model.vocab_size
    prefill = Cost(
        prompts * (prompt_tokens * forward_flops(model, prompt_tokens, lora, head=False) + head),
        weights + prompts * prompt_tokens * slot,
    )
    steps = new_tokens - 1
    context = prompt_tokens + (steps + 1) / 2  # mean over steps: prompt + 1, ..., prompt + steps
    step = Cost(rows * forward_flops(model, context, lora), weights + rows * context * slot)
    return [prefill, step * steps]
