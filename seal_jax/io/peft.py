"""Adapters to and from PEFT's files: `adapter_model.safetensors` and `adapter_config.json` in a folder.

What is trained here serves wherever PEFT's LoRA does (transformers, vLLM, llama.cpp's converter). An adapter from there
is evaluated here, merged (`with_peft`), or what is trained next stands on top of it. PEFT keeps A as [r, in] and B as
[out, r], a pair for each projection of each layer.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from seal_jax.domains import records
from seal_jax.io import fields
from seal_jax.io.fields import ADAPTER, AdapterFields
from seal_jax.io.weights import TENSORS, layout, open_safetensors, read_floats
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.transformer import ModelConfig
from seal_jax.types import PROJECTIONS, LanguageModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

# These only choose the first values; the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights as well.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")  # a path begins with a dot or a slash


def tensor_name(projection: str, layer: int, side: str) -> str:
    """PEFT's name of a tensor; `side` is "A" or "B"."""
    module = TENSORS[("blocks", projection, "kernel")][0].format(layer).removesuffix(".weight")
    return f"base_model.model.{module}.lora_{side}.weight"


def save_peft(folder: Path, adapter: Adapter, *, rank: int, base_model: str) -> None:
    """Writes one adapter as PEFT would. `rank` is its own, which may be less than the one it was padded to.

    Raises:
        ValueError: E adapters at once, an adapter that is not zero past `rank`, or a prefix.
    """
    lora.require_low_rank(adapter, "a PEFT folder of matrices")
    if adapter.scale.ndim:
        raise ValueError(f"{folder}: {adapter.scale.size} adapters; one folder holds one: choose with lora.take")
    tensors = {}
    for name in adapter.a:
        a, b = np.asarray(adapter.a[name], np.float32), np.asarray(adapter.b[name], np.float32)
        if a[:, :, rank:].any() or b[:, rank:].any():
            raise ValueError(f"{folder}: {name} has weights past rank {rank}; its rank is up to {a.shape[-1]}")
        for layer in range(len(a)):
            tensors[tensor_name(name, layer, "A")] = np.ascontiguousarray(a[layer, :, :rank].T)
            tensors[tensor_name(name, layer, "B")] = np.ascontiguousarray(b[layer, :rank].T)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": float(f"{float(adapter.scale) * rank:.6g}"),  # scale is a float32: 16 / 3 · 3 is not quite 16
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.a),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))  # save_file lets no one else read it
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_peft(folder: Path, config: ModelConfig, names: Collection[str] = ()) -> Adapter:
    """One adapter for a model of `config` from PEFT's files: plain LoRA, on the same projections in every layer.

    Args:
        names: what the model is called (`hub.names`); an adapter that was made for another is refused.

    Raises:
        FileNotFoundError: one of the two files is not there.
        ValueError: a file that cannot be read, an option that changes what is computed (DoRA, biases, patterns, ...), a
            tensor that is missing, left over, not of numbers, or of another shape than `config` calls for.
    """
    require_files(folder)
    file, about = folder / WEIGHTS, read_config(folder / CONFIG)
    rank = about.r
    scale = about.lora_alpha / (math.sqrt(rank) if about.use_rslora else rank)
    if _is_another(about.base_model_name_or_path, names):
        raise ValueError(
            f"{folder / CONFIG}: base_model_name_or_path = {about.base_model_name_or_path!r}, and the model is "
            f"{' or '.join(names)}. Name the model that the adapter was trained for; if it is this one, write its name "
            "there"
        )
    with open_safetensors(file) as handle:
        tensors = {name: read_floats(handle, name, file) for name in handle.keys()}  # noqa: SIM118
    projections = [name for name in PROJECTIONS if any(f".{name}.lora_" in key for key in tensors)]
    if not projections:
        raise ValueError(f"{file}: no LoRA weights of {list(PROJECTIONS)}; found {sorted(tensors)[:3]}")
    if isinstance(about.target_modules, list):
        targets = {name.rpartition(".")[2] for name in about.target_modules}
        if odd := sorted(targets ^ set(projections)):
            raise ValueError(
                f"{folder / CONFIG}: target_modules and the weights of {file.name} differ in {', '.join(odd)}; one of "
                "the two files belongs to another adapter"
            )

    def read(projection: str, layer: int, side: str) -> np.ndarray:
        d_in, d_out = shapes[("blocks", projection, "kernel")]
        name, expected = tensor_name(projection, layer, side), (rank, d_in) if side == "A" else (d_out, rank)
        if name not in tensors:
            raise ValueError(
                f"{file}: tensor {name!r} is missing; the model has {config.num_layers} layers, and the "
                f"file holds {min(tensors, default='no more')}"
            )
        tensor = tensors.pop(name)
        if tensor.shape != expected:
            raise ValueError(f"{file}: tensor {name!r} is {tensor.shape}, expected {expected} from r and the model")
        return tensor.astype(np.float32).T

    shapes, layers = layout(config), range(config.num_layers)
    a = {name: jnp.asarray(np.stack([read(name, layer, "A") for layer in layers])) for name in sorted(projections)}
    b = {name: jnp.asarray(np.stack([read(name, layer, "B") for layer in layers])) for name in sorted(projections)}
    if tensors:
        raise ValueError(f"{file}: {len(tensors)} tensors have no place in this model ({sorted(tensors)[:3]})")
    return Adapter(a, b, jnp.float32(scale))


def with_peft(lm: LanguageModel, folder: Path, config: ModelConfig) -> LanguageModel:
    """The model with a PEFT adapter merged into its weights: to be evaluated, or to begin from.

    Raises:
        FileNotFoundError, ValueError: as `load_peft`.
    """
    return lm._replace(params=lora.merge(lm.params, load_peft(folder, config)))


def require_files(folder: Path) -> None:
    """Raises FileNotFoundError if one of the two files is not there."""
    for needed in (folder / CONFIG, folder / WEIGHTS):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed}: not there; expected a folder that PEFT's save_pretrained wrote")


def fingerprint(folder: Path) -> list[str]:
    """Of an adapter's files, as far as they are there."""
    files = [folder / name for name in (CONFIG, WEIGHTS)]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]


def _is_another(base: str | None, names: Collection[str]) -> bool:
    """Whether an adapter's base is surely another model: both are names on Hugging Face, and not the same one.

    A path says nothing, and copies in other formats bear the name with something added ("unsloth/Qwen3-4B-bnb-4bit").
    """
    hub_names = [name for name in names if _HUB_NAME.fullmatch(name)]
    if not base or not hub_names or not _HUB_NAME.fullmatch(base):
        return False
    model = base.lower().rpartition("/")[2]
    others = [name.lower().rpartition("/")[2] for name in hub_names]
    return not any(model.startswith(other) or other.startswith(model) for other in others)


def read_config(file: Path) -> AdapterFields:
    """The fields of adapter_config.json, once nothing else matters."""
    raw = records.decode(file.read_bytes(), dict[str, Any], str(file), ADAPTER.form)
    found = fields.read(ADAPTER, AdapterFields, raw, str(file))
    if found.init_lora_weights not in _INITIALISATIONS and found.init_lora_weights is not None:
        raise ValueError(
            f"{file}: init_lora_weights = {found.init_lora_weights!r} also changed the base weights; convert the "
            "adapter to plain LoRA first (PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return found
