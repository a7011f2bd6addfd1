"""Adapters and merged models as GGUF files, which llama.cpp and Ollama read; `gguf.py` reads the latter.

An adapter is laid out as llama.cpp's convert_lora_to_gguf.py does it: `lora_a` [r, in] and `lora_b` [out, r] of each
tensor's name, and alpha, which llama.cpp divides by the rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from seal_jax.io.gguf import ROPE_FACTORS
from seal_jax.io.weights import TENSORS, layout
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.transformer import ModelConfig

_OF_THE_FILE = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version", "split.")


def save_adapter(path: Path, adapter: Adapter, config: ModelConfig, *, name: str) -> None:
    """Writes one adapter over a model of `config`; the file appears when it is whole.

    Raises:
        ValueError: a prefix.
    """
    lora.require_low_rank(adapter, "a GGUF adapter")
    writer = GGUFWriter(path.with_suffix(".unfinished"), architecture(config))
    writer.add_type("adapter")
    writer.add_name(name)
    writer.add_string("adapter.type", "lora")
    rank = next(iter(adapter.a.values())).shape[-1]
    writer.add_float32("adapter.lora.alpha", float(adapter.scale) * rank)
    for projection in sorted(adapter.a):
        a, b = (np.asarray(side[projection], np.float32).swapaxes(1, 2) for side in (adapter.a, adapter.b))
        for layer in range(config.num_layers):
            tensor = TENSORS[("blocks", projection, "kernel")][1].format(layer)
            writer.add_tensor(f"{tensor}.lora_a", np.ascontiguousarray(a[layer]))
            writer.add_tensor(f"{tensor}.lora_b", _as_llama_cpp(b[layer], projection, config))
    _write(writer, path)


def save_model(path: Path, config: ModelConfig, params: dict[str, Any], base: Path) -> None:
    """Writes a merged model: matrices in half precision, everything else as the GGUF file `base` says, tokenizer too.

    Raises:
        ValueError: the base is no GGUF file, so its tokenizer is not in llama.cpp's form.
    """
    if not base.is_file():
        raise ValueError(
            f"{base}: no GGUF file, from which the tokenizer would be taken: write a merged Hugging Face folder, "
            "--to merged, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    source, writer = GGUFReader(base), GGUFWriter(path.with_suffix(".unfinished"), architecture(config))
    for field in source.fields.values():
        if not field.name.startswith(_OF_THE_FILE):
            of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of)
    writer.add_file_type(1)  # mostly F16
    for name, tensor in _tensors(config, params):
        writer.add_tensor(name, tensor.astype(np.float16 if tensor.ndim == 2 else np.float32))
    for tensor in source.tensors:
        if tensor.name == ROPE_FACTORS:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    _write(writer, path)


def architecture(config: ModelConfig) -> str:
    """llama.cpp's name for a model of this shape."""
    return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection from Hugging Face's RoPE order (halves) to llama.cpp's (pairs adjacent)."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _as_llama_cpp(weight: np.ndarray, projection: str, config: ModelConfig) -> np.ndarray:
    """A matrix, or an adapter's B, [out, ...], with its rows in llama.cpp's order."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(projection)
    if heads and architecture(config) == "llama":
        weight = permute(weight, heads)
    return np.ascontiguousarray(weight)


def _tensors(config: ModelConfig, params: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by llama.cpp's name, kernels as [out, in]."""
    for path in layout(config):
        leaf, name = params, TENSORS[path][1]
        for key in path:
            leaf = leaf[key]
        array = np.asarray(leaf, np.float32)
        for i, layer in enumerate(array) if path[0] == "blocks" else [(0, array)]:
            yield name.format(i), _as_llama_cpp(layer.T, path[1], config) if path[-1] == "kernel" else layer


def _write(writer: GGUFWriter, path: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(path.with_suffix(".unfinished"), path)
