"""The costs are those counted by hand on a small model, and the floor is a sum of phases, each bound by one thing."""

from __future__ import annotations

import math

import pytest

from seal_jax.engine import costs
from seal_jax.engine.costs import Cost, Peak
from seal_jax.io.architectures import NAMED
from seal_jax.io.weights import layout
from seal_jax.nn.transformer import ModelConfig

# 3 layers of width 8: 2 heads of 4, one key-value head, an MLP of 16, 10 tokens. By hand:
HAND = ModelConfig(
    vocab_size=10, hidden_size=8, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4, intermediate_size=16
)
LAYER = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k, v, o, and three of the MLP
MATMUL = 3 * LAYER + 8 * 10
LORA_QV = 3 * 2 * ((8 + 8) + (8 + 4))  # rank 2


def attention(context: float) -> float:
    """Scores: 2 heads x 4 dimensions x context products and sums; the weighted sum of values: as many; 3 layers."""
    return 3 * 2 * (2 * 2 * 4 * context)


def test_parameters_are_those_counted_by_hand_and_by_the_layout_of_weights():
    assert costs.matmul_parameters(HAND) == MATMUL
    assert costs.lora_parameters(HAND, ("q_proj", "v_proj"), 2) == LORA_QV
    for model in (HAND, *NAMED.values()):
        shapes = layout(model)
        times = {path: model.num_layers if path[0] == "blocks" else 1 for path in shapes}
        assert costs.model_parameters(model) == sum(math.prod(shape) * times[path] for path, shape in shapes.items())


def test_training_costs_what_is_counted_by_hand():
    """Two sequences of 5 and 3 tokens, 4 epochs, a base model of 2 bytes a number, 6 adapters on one reading of it."""
    products, optimiser = costs.training(HAND, LORA_QV, [5, 3], epochs=4, sharing=6, itemsize=2)
    forward = 2 * MATMUL + 2 * LORA_QV
    of_inputs = 2 * MATMUL + 2 * LORA_QV
    of_weights = 2 * LORA_QV
    flops = sum(n * (forward + of_inputs + of_weights + 3 * attention(n)) for n in (5, 3))
    assert products.flops == pytest.approx(4 * flops)
    steps = 4 * 2
    assert products.bytes == pytest.approx(steps * (2 * MATMUL * 2 / 6 + 3 * LORA_QV * 4))
    assert optimiser == Cost(0, steps * (4 + 3) * LORA_QV * 4)


def test_answering_costs_what_is_counted_by_hand():
    """2 prompts of 5 tokens, 3 samples each, 4 new tokens: the first falls out of the prompt, 3 steps follow."""
    sizes = {"prompts": 2, "samples": 3, "prompt_tokens": 5, "new_tokens": 4}
    prefill, steps = costs.decoding(HAND, LORA_QV, **sizes, sharing=2, itemsize=4)
    slot = 3 * 2 * 4 * 4  # 3 layers, key and value, one head of 4, float32
    weights = MATMUL * 4 / 2 + LORA_QV * 4
    token = 2 * 3 * LAYER + 2 * LORA_QV
    head = 2 * 8 * 10
    assert prefill.flops == pytest.approx(2 * (5 * (token + attention(5)) + head))
    assert prefill.bytes == pytest.approx(weights + 2 * 5 * slot)
    contexts = (6, 7, 8)
    assert steps.flops == pytest.approx(sum(6 * (token + head + attention(c)) for c in contexts))
    assert steps.bytes == pytest.approx(sum(weights + 6 * c * slot for c in contexts))


def test_a_phase_is_bound_by_arithmetic_or_by_memory_and_phases_add_up():
    peak = Peak(flops=100, bandwidth=10)
    assert Cost(200, 10).seconds(peak) == 2  # 2 s of arithmetic, 1 s of memory
    assert Cost(200, 50).seconds(peak) == 5
    assert costs.floor([Cost(200, 10), Cost(0, 30)], peak) == 2 + 3
    assert costs.total([Cost(1, 2), Cost(3, 4)]) == Cost(4, 6)


def test_more_adapters_share_the_weights_and_nothing_else():
    alone, together = (costs.training(HAND, LORA_QV, [5], epochs=1, sharing=n, itemsize=4) for n in (1, 4))
    assert alone[0].flops == together[0].flops
    assert alone[0].bytes - together[0].bytes == pytest.approx(2 * MATMUL * 4 * (1 - 1 / 4))
    assert alone[1] == together[1]
