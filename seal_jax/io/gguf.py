"""GGUF files, llama.cpp's format: metadata and de-quantised tensors, through the `gguf` package.

Knows which metadata and tensor conventions differ from Hugging Face's, so that `weights.py` need not.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from seal_jax.nn.transformer import ModelConfig, RopeScaling

ARCHITECTURES = ("llama", "qwen2", "qwen3")
ROPE_FACTORS = "rope_freqs.weight"  # llama3 scaling, as one divisor for each rotary frequency

_REQUIRED = object()


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Maps a GGUF file. The header of a large vocabulary takes seconds to parse, so the last file is remembered.

    Raises ValueError where the file is cut off, altered, or no GGUF file.
    """
    stat = Path(path).stat()
    return _open(Path(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _open(path: Path, size: int, changed: int) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(
            f"{path}: not a readable GGUF file ({error}). It has {size:,} bytes; it was probably cut off or altered on "
            "its way here: delete it and fetch it again"
        ) from error


def field(reader: gguf.GGUFReader, name: str, default: Any = _REQUIRED) -> Any:
    """One metadata value as a Python object; ValueError if it is required and missing."""
    found = reader.fields.get(name)
    if found is not None:
        return found.contents()
    if default is _REQUIRED:
        raise ValueError(
            f"{reader.data.filename}: metadata field {name!r} is missing; the file was not converted by llama.cpp"
        )
    return default


def read_tensor(tensor: gguf.ReaderTensor) -> np.ndarray:
    """A tensor in float32 (or as stored, if it is not quantised), axes in Hugging Face's order: [out, in]."""
    if tensor.data.dtype in (np.float32, np.float16):
        return tensor.data
    try:
        return gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ValueError(
            f"GGUF tensor {tensor.name!r} is of type {tensor.tensor_type.name}, which the gguf package cannot read; "
            "use a file in F16, BF16, Q8_0, Q4_0 or Q4_1"
        ) from error


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection from llama.cpp's RoPE order (pairs adjacent) to Hugging Face's (halves).

    llama.cpp permutes them when it converts models of architecture `llama`, and only those.
    """
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def read_config(reader: gguf.GGUFReader, path: Path) -> ModelConfig:
    """The model's shape from the metadata. Raises ValueError for what this decoder does not compute."""
    architecture = field(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path}: architecture {architecture!r} is not supported; expected one of {ARCHITECTURES}")

    def get(key: str, default: Any = _REQUIRED) -> Any:
        return field(reader, f"{architecture}.{key}", default)

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path}: tensor 'token_embd.weight' is missing; the file holds no whole model")
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        if isinstance(get(key, 0), list):
            raise ValueError(
                f"{path}: {architecture}.{key} differs between layers; this decoder's layers are all alike"
            )
    heads, width = get("attention.head_count"), get("embedding_length")
    head_dim = get("attention.key_length", width // heads)
    if (parts := field(reader, "split.count", 1)) > 1:
        raise ValueError(f"{path}: one of {parts} parts; join them first with llama-gguf-split --merge")
    for key, expected in [
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("attention.sliding_window", 0),
        ("expert_count", 0),
    ]:
        if (found := get(key, expected)) != expected:
            raise ValueError(f"{path}: {architecture}.{key} is {found}, and this decoder computes only {expected}")
    theta = get("rope.freq_base", 10_000.0)
    return ModelConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=width,
        num_layers=get("block_count"),
        num_heads=heads,
        num_kv_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=get("feed_forward_length"),
        rope_theta=theta,
        rope_scaling=_rope_scaling(get, tensors.get(ROPE_FACTORS), theta, head_dim, path),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        tie_embeddings="output.weight" not in tensors,
        context_length=get("context_length"),
    )


def _rope_scaling(get: Any, factors: Any, theta: float, head_dim: int, path: Path) -> RopeScaling | None:
    kind = get("rope.scaling.type", "none")
    if kind == "linear":
        return RopeScaling("linear", factor=float(get("rope.scaling.factor")))
    if kind != "none":
        raise ValueError(f"{path}: RoPE scaling {kind!r} is not supported; expected 'linear' or llama3's factors")
    if factors is None:
        return None
    # A GGUF file stores what the llama3 rule yields, not its arguments. All of Meta's models share three of the four,
    # so we guess those, try the factor, and accept only what gives the stored divisors back.
    stored = read_tensor(factors).astype(np.float64)
    if np.allclose(stored, 1):
        return None
    for factor in (8.0, 32.0, float(stored.max())):
        scaling = RopeScaling("llama3", factor=factor)
        expected = _llama3_divisors(scaling, theta, head_dim)
        if stored.shape == expected.shape and np.allclose(stored, expected, rtol=1e-3):
            return scaling
    raise ValueError(
        f"{path}: tensor {ROPE_FACTORS!r} holds RoPE divisors that are not those of Llama 3.1 to 3.3 (largest: "
        f"{stored.max():.4g}); load this model from its safetensors, where config.json states the rule"
    )


def _llama3_divisors(scaling: RopeScaling, theta: float, head_dim: int) -> np.ndarray:
    """By how much the llama3 rule slows each rotary frequency, [head_dim / 2]."""
    frequency = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = scaling.original_context_length * frequency / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0, 1)
    return 1 / ((1 - blend) / scaling.factor + blend)
