"""GGUF files, llama.cpp's format: metadata and de-quantised tensors.

The header is parsed here, in one pass that the file's length bounds; the `gguf` package knows the quantisations. What
differs from Hugging Face's conventions is known here, so that `weights.py` need not.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from seal_jax.io import fields
from seal_jax.io.fields import GGUF, GgufFields
from seal_jax.nn.transformer import ModelConfig, RopeScaling, yarn_attention_factor

ARCHITECTURES = ("llama", "qwen2", "qwen3")
ROPE_FACTORS = "rope_freqs.weight"  # llama3 scaling, as one divisor for each rotary frequency

_NUMBERS = dict(enumerate("BbHhIif")) | {7: "?", 10: "Q", 11: "q", 12: "d"}  # GGUF's types, as `struct` names them
_STRING, _ARRAY = 8, 9


class Tensor(NamedTuple):
    """A tensor as it is stored."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # in Hugging Face's order: [out, in]
    data: np.ndarray  # its bytes, in the file


class GgufFile(NamedTuple):
    """A GGUF file, mapped into memory."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]

    def architecture_fields(self) -> GgufFields:
        """The keys of its architecture. Raises ValueError for one that is missing, refused or not known."""
        architecture = self.fields["general.architecture"]
        found = {
            key.removeprefix(f"{architecture}."): _if_all_alike(value, self.path, key)
            for key, value in self.fields.items()
            if key.startswith(f"{architecture}.")
        }
        return fields.read(GGUF, GgufFields, found, str(self.path), f"{architecture}.")


def open_gguf(path: Path) -> GgufFile:
    """Maps a GGUF file; the last one is remembered.

    Raises ValueError where the file is cut off, altered, no GGUF file, or of another kind or architecture.
    """
    stat = Path(path).stat()
    return _open(Path(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _open(path: Path, size: int, changed: int) -> GgufFile:
    try:
        with path.open("rb") as file:
            found = _parse(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), path)
    except (ValueError, struct.error) as error:
        raise ValueError(
            f"{path}: not a readable GGUF file ({error}). It has {size:,} bytes; it was probably cut off or altered on "
            "its way here: delete it and fetch it again"
        ) from error
    architecture, kind = found.fields.get("general.architecture"), found.fields.get("general.type", "model")
    if kind != "model":
        raise ValueError(f"{path}: general.type is {kind!r}; expected a model")
    if architecture is None:
        raise ValueError(
            f"{path}: metadata field 'general.architecture' is missing; the file was not converted by llama.cpp"
        )
    return found


def _parse(data: memoryview, path: Path) -> GgufFile:
    """Reads the header. Raises ValueError or struct.error where it says what cannot be."""
    at = 0

    def take(form: str) -> Any:
        nonlocal at
        value = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return value[0] if len(value) == 1 else value

    def text() -> str:
        nonlocal at
        start, length = at + 8, take("Q")
        if length > len(data) - start:
            raise ValueError(f"a text of {length:,} bytes at byte {start:,}, past the file's end")
        at = start + length
        return str(data[start:at], "utf-8")

    def value(kind: int) -> Any:
        nonlocal at
        if kind == _STRING:
            return text()
        if kind in _NUMBERS:
            return take(_NUMBERS[kind])
        if kind != _ARRAY:
            raise ValueError(f"a value of type {kind} at byte {at:,}; expected 0 to 12")
        of, count = take("I"), take("Q")
        if of == _STRING and count <= (len(data) - at) // 8:
            return [text() for _ in range(count)]
        if of in _NUMBERS and count * struct.calcsize(f"<{_NUMBERS[of]}") <= len(data) - at:
            array = np.frombuffer(data, np.dtype(_NUMBERS[of]).newbyteorder("<"), count, at)
            at += array.nbytes
            return array.tolist()
        raise ValueError(f"an array of {count:,} values of type {of} at byte {at:,}")

    if (magic := bytes(data[:4])) != b"GGUF":
        raise ValueError(f"it begins with {magic!r}, not with the magic bytes b'GGUF'")
    at = 4
    version, tensor_count, field_count = take("I"), take("Q"), take("Q")
    if version not in (2, 3):
        raise ValueError(f"version {version}; expected 2 or 3, little-endian")
    found: dict[str, Any] = {}
    for _ in range(field_count):
        name = text()
        if name in found:
            raise ValueError(f"metadata field {name!r} is there twice")
        found[name] = value(take("I"))
    described: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name, rank = text(), take("I")
        if name in described or rank > 4:
            raise ValueError(f"tensor {name!r} is there twice, or has {rank} axes; expected at most 4")
        described[name] = (tuple(take("Q") for _ in range(rank))[::-1], take("I"), take("Q"))
    alignment = found.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}; expected a number of bytes")
    start = -(-at // alignment) * alignment
    tensors = {}
    for name, (shape, code, offset) in described.items():
        kind = GGMLQuantizationType(code)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        numbers = math.prod(shape)
        end = start + offset + numbers // block * block_bytes
        if not shape or shape[-1] % block or not numbers or end > len(data):
            raise ValueError(f"tensor {name!r} of shape {shape} ends at byte {end:,}, past the file's end")
        tensors[name] = Tensor(name, kind, shape, np.frombuffer(data[start + offset : end], np.uint8))
    return GgufFile(path, found, tensors)


def read_tensor(tensor: Tensor) -> np.ndarray:
    """A tensor in float32 (or as stored, if it is not quantised), axes in Hugging Face's order: [out, in]."""
    if tensor.kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return tensor.data.view(f"<f{4 if tensor.kind == GGMLQuantizationType.F32 else 2}").reshape(tensor.shape)
    try:
        return dequantize(tensor.data.reshape(*tensor.shape[:-1], -1), tensor.kind)
    except NotImplementedError as error:
        raise ValueError(
            f"GGUF tensor {tensor.name!r} is of type {tensor.kind.name}, which the gguf package cannot read; "
            "use a file in F16, BF16, Q8_0, Q4_0 or Q4_1"
        ) from error


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k projection from llama.cpp's RoPE order (pairs adjacent) to Hugging Face's (halves).

    llama.cpp permutes them when it converts models of architecture `llama`, and only those.
    """
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _if_all_alike(value: Any, path: Path, key: str) -> Any:
    """One value for a list of equal ones, one a layer."""
    if not isinstance(value, list) or not value:
        return value
    if any(one != value[0] for one in value):
        raise ValueError(f"{path}: {key} differs between layers; this decoder's layers are all alike")
    return value[0]


def read_config(file: GgufFile, path: Path) -> ModelConfig:
    """The model's shape from the metadata. Raises ValueError for what this decoder does not compute."""
    architecture = file.fields["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{path}: architecture {architecture!r} is not supported; expected one of {ARCHITECTURES}")
    if (parts := file.fields.get("split.count", 0)) not in (0, 1):
        raise ValueError(f"{path}: one of {parts} parts; join them first with llama-gguf-split --merge")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{path}: tensor 'token_embd.weight' is missing; the file holds no whole model")
    found = file.architecture_fields()
    heads = found.attention__head_count
    kv_heads = found.attention__head_count_kv or heads
    head_dim = found.attention__key_length or found.embedding_length // heads
    for key, value in [
        ("attention.value_length", found.attention__value_length),
        ("rope.dimension_count", found.rope__dimension_count),
    ]:
        if value not in (None, head_dim):
            raise ValueError(f"{path}: {architecture}.{key} is {value}, and this decoder computes only {head_dim}")
    if heads % kv_heads or not head_dim or head_dim % 2:
        raise ValueError(f"{path}: {heads} heads of {head_dim} dimensions over {kv_heads} of keys: no such attention")
    theta = found.rope__freq_base
    return ModelConfig(
        vocab_size=embedding.shape[0],
        hidden_size=found.embedding_length,
        num_layers=found.block_count,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=found.feed_forward_length,
        rope_theta=theta,
        rope_scaling=_rope_scaling(found, file.tensors.get(ROPE_FACTORS), theta, head_dim, path),
        rms_norm_eps=found.attention__layer_norm_rms_epsilon,
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        tie_embeddings="output.weight" not in file.tensors,
        context_length=found.context_length,
    )


def _rope_scaling(
    found: GgufFields, divisors: Tensor | None, theta: float, head_dim: int, path: Path
) -> RopeScaling | None:
    factor = found.rope__scale_linear if found.rope__scaling__factor is None else found.rope__scaling__factor
    kind = found.rope__scaling__type or "linear"  # llama.cpp's default, with a factor of 1
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(
            f"{path}: RoPE scaling {kind!r} is not supported; expected 'linear', 'yarn' or llama3's factors"
        )
    if kind == "yarn":
        return RopeScaling(
            "yarn", factor or 1.0,
            original_context_length=found.rope__scaling__original_context_length or found.context_length,
            attention_factor=yarn_attention_factor(factor or 1.0) * found.rope__scaling__attn_factor,
            beta_fast=found.rope__scaling__yarn_beta_fast, beta_slow=found.rope__scaling__yarn_beta_slow,
        )  # fmt: skip
    if found.rope__scaling__attn_factor != 1.0:
        raise ValueError(f"{path}: rope.scaling.attn_factor is {found.rope__scaling__attn_factor} without yarn")
    if kind == "linear" and factor not in (None, 0.0, 1.0):
        return RopeScaling("linear", factor=factor)
    if divisors is None:
        return None
    # A GGUF file stores what the llama3 rule yields, not its arguments. All of Meta's models share three of the four,
    # so we guess those, try the factor, and accept only what gives the stored divisors back.
    with np.errstate(all="ignore"):
        stored = read_tensor(divisors).astype(np.float64)
    if np.allclose(stored, 1):
        return None
    for guess in (8.0, 32.0, max(1.0, float(np.nan_to_num(stored.max())))):
        scaling = RopeScaling("llama3", factor=guess)
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
