"""The shapes of published models by name: the cost of a size can be computed, or measured on random weights, without
its files.

The numbers are those of each model's published config.json (base models; instruct ones differ at most in context).
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from seal_jax.nn.transformer import ModelConfig, RopeScaling

_SMOLLM2 = ModelConfig(
    vocab_size=49_152,
    hidden_size=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    rope_theta=100_000.0,
    context_length=8192,
)

_LLAMA32 = ModelConfig(
    vocab_size=128_256,
    hidden_size=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=8192,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
    context_length=131_072,
)

_QWEN25 = ModelConfig(
    vocab_size=151_936,
    hidden_size=896,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=4864,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    qkv_bias=True,
    context_length=32_768,
)

_QWEN3 = ModelConfig(
    vocab_size=151_936,
    hidden_size=1024,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=3072,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    qk_norm=True,
    context_length=32_768,
)


def _shape(base: ModelConfig, layers: int, width: int, heads: int, kv: int, mlp: int, **changes: Any) -> ModelConfig:
    return replace(
        base,
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=kv,
        intermediate_size=mlp,
        **changes,
    )


NAMED: dict[str, ModelConfig] = {
    "tiny": _shape(_SMOLLM2, 2, 64, 4, 2, 128, head_dim=16, vocab_size=512),  # no published model: for tests
    "smollm2-135m": _SMOLLM2,
    "smollm2-360m": _shape(_SMOLLM2, 32, 960, 15, 5, 2560),
    "smollm2-1.7b": _shape(_SMOLLM2, 24, 2048, 32, 32, 8192, rope_theta=130_000.0),
    "llama-3.2-1b": _LLAMA32,
    "llama-3.2-3b": _shape(_LLAMA32, 28, 3072, 24, 8, 8192, head_dim=128),
    "qwen2.5-0.5b": _QWEN25,
    "qwen2.5-1.5b": _shape(_QWEN25, 28, 1536, 12, 2, 8960, head_dim=128, context_length=131_072),
    "qwen2.5-3b": _shape(_QWEN25, 36, 2048, 16, 2, 11_008, head_dim=128),
    "qwen2.5-7b": _shape(
        _QWEN25, 28, 3584, 28, 4, 18_944, head_dim=128, vocab_size=152_064, tie_embeddings=False, context_length=131_072
    ),
    "qwen3-0.6b": _QWEN3,
    "qwen3-1.7b": _shape(_QWEN3, 28, 2048, 16, 8, 6144),
    "qwen3-4b": _shape(_QWEN3, 36, 2560, 32, 8, 9728),
    "qwen3-8b": _shape(_QWEN3, 36, 4096, 32, 8, 12_288, tie_embeddings=False),
}


def named(name: str) -> ModelConfig:
    """The shape of a model by its name.

    Raises:
        ValueError: a name that is not in `NAMED`.
    """
    if name not in NAMED:
        close = difflib.get_close_matches(name, NAMED, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"architecture {name!r} is unknown: {meant}There are {', '.join(NAMED)}")
    return NAMED[name]
