"""Checkpoints to parameters and back: Hugging Face folders (safetensors) and GGUF files.

One table names every tensor three ways: ours, Hugging Face's and llama.cpp's. Both readers fill the same stacked
arrays.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import DictKey
from jax.typing import DTypeLike
from msgspec import UNSET
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from seal_jax.domains import records
from seal_jax.io import fields, gguf
from seal_jax.io.fields import CONFIG, ROPE, ConfigFields, RopeFields
from seal_jax.io.hub import ModelFiles
from seal_jax.nn import quantised, sharding
from seal_jax.nn.transformer import ModelConfig, RopeScaling, yarn_attention_factor
from seal_jax.types import Base

MODEL_TYPES = ("llama", "qwen2", "qwen3")  # config.json's model_type; SmolLM2 is a llama

# ours: (Hugging Face's name, llama.cpp's name). `{}` is the layer.
TENSORS: dict[tuple[str, ...], tuple[str, str]] = {
    ("embed", "embedding"): ("model.embed_tokens.weight", "token_embd.weight"),
    ("blocks", "input_norm", "scale"): ("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    ("blocks", "q_proj", "kernel"): ("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    ("blocks", "q_proj", "bias"): ("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
    ("blocks", "k_proj", "kernel"): ("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    ("blocks", "k_proj", "bias"): ("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
    ("blocks", "v_proj", "kernel"): ("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    ("blocks", "v_proj", "bias"): ("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
    ("blocks", "o_proj", "kernel"): ("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    ("blocks", "q_norm", "scale"): ("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight"),
    ("blocks", "k_norm", "scale"): ("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight"),
    ("blocks", "post_attention_norm", "scale"): (
        "model.layers.{}.post_attention_layernorm.weight",
        "blk.{}.ffn_norm.weight",
    ),
    ("blocks", "gate_proj", "kernel"): ("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    ("blocks", "up_proj", "kernel"): ("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    ("blocks", "down_proj", "kernel"): ("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
    ("final_norm", "scale"): ("model.norm.weight", "output_norm.weight"),
    ("lm_head", "kernel"): ("lm_head.weight", "output.weight"),
}


Part = tuple[slice, ...]  # of an array


class Stored(NamedTuple):
    """A tensor of a file, of which nothing has been read."""

    shape: tuple[int, ...]
    part: Callable[[Part], np.ndarray]


class Checkpoint(NamedTuple):
    """Tensors by name, wherever they are stored."""

    config: ModelConfig
    files: dict[str, Path]  # which file holds each tensor
    read: Callable[[str], Stored]  # kernels as [out, in], rows in Hugging Face's order
    column: int  # of the names in `TENSORS`: 0 Hugging Face's, 1 llama.cpp's


def load_model(
    files: ModelFiles, *, dtype: DTypeLike = jnp.float32, base: Base = "full", mesh: Mesh | None = None
) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a model: its config and its parameters as `dtype`, kernels [L, in, out] or quantised (`base`), on the
    devices of a mesh.

    The host holds one device's part of one stacked parameter at a time, and never the model: of a safetensors file no
    more is read than that, of a GGUF file a whole tensor of one layer. What is quantised
    is in full one layer at a time.

    Raises ValueError, naming file and tensor, for an unknown architecture, a feature that this decoder does not
    compute, a missing, left-over or misshapen tensor, and a cut-off or altered file.
    """
    reader = _open_gguf if files.kind == "gguf" else _open_safetensors
    with reader(files.path) as checkpoint:
        return checkpoint.config, _fill(checkpoint, np.dtype(dtype), files.path, base, mesh)


def layout(config: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every parameter, by its path; those of a layer without the leading L."""
    d, v, h, kernels = config.hidden_size, config.vocab_size, config.head_dim, config.kernels()
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {("embed", "embedding"): (v, d), ("final_norm", "scale"): (d,)}
    shapes |= {("blocks", name, "kernel"): shape for name, shape in kernels.items()}
    shapes |= {("blocks", name, "scale"): (d,) for name in ("input_norm", "post_attention_norm")}
    if config.qkv_bias:
        shapes |= {("blocks", name, "bias"): kernels[name][1:] for name in ("q_proj", "k_proj", "v_proj")}
    if config.qk_norm:
        shapes |= {("blocks", name, "scale"): (h,) for name in ("q_norm", "k_norm")}
    if not config.tie_embeddings:
        shapes[("lm_head", "kernel")] = (d, v)
    return shapes


def _fill(checkpoint: Checkpoint, dtype: np.dtype, where: Path, base: Base, mesh: Mesh | None) -> dict[str, Any]:
    """Every tensor that the config calls for, and no other."""
    config, unused = checkpoint.config, set(checkpoint.files)
    params: dict[str, Any] = {}

    def read(name: str, shape: tuple[int, ...], part: Part) -> np.ndarray:
        if name not in checkpoint.files:
            raise ValueError(
                f"{where}: tensor {name!r} is missing; the checkpoint is incomplete or of another architecture"
            )
        tensor = checkpoint.read(name)
        if tensor.shape != shape:
            raise ValueError(
                f"{checkpoint.files[name]}: tensor {name!r} is {tensor.shape}, expected {shape} from its config"
            )
        unused.discard(name)
        return tensor.part(part)

    def of_path(path: tuple[str, ...], shape: tuple[int, ...], part: Part) -> np.ndarray:
        """A part of one parameter."""
        name, is_kernel = TENSORS[path][checkpoint.column], path[-1] == "kernel"

        def one(name: str, part: Part) -> np.ndarray:
            return read(name, shape[::-1], part[::-1]).T if is_kernel else read(name, shape, part)

        if path[0] == "blocks":
            within, last = part[1:], config.num_layers - 1
            first = one(name.format(0), within)  # before memory is taken for as many as the config says
            one(name.format(last), (slice(0, 0),) * len(shape))
            leaf = np.empty((config.num_layers, *first.shape), dtype)
            for i, layer in enumerate(leaf):
                layer[...] = one(name.format(i), within) if i else first
            return leaf
        leaf = one(name, part).astype(dtype)
        twice = path[0] == "embed" and config.tie_embeddings and head in checkpoint.files  # as some savers write it
        if twice and not np.array_equal(read(head, shape, part).astype(dtype), leaf):
            raise ValueError(
                f"{checkpoint.files[head]}: {head!r} differs from the embedding that config.json ties it to"
            )
        return leaf

    def in_few_bits(path: tuple[str, ...], shape: tuple[int, ...]) -> Any:
        """One parameter of all layers, each quantised as it is read."""
        name, whole = TENSORS[path][checkpoint.column], (slice(None), slice(None))
        read(name.format(config.num_layers - 1), shape[::-1], (slice(0, 0), slice(0, 0)))  # it is there
        layers = (read(name.format(i), shape[::-1], whole).T for i in range(config.num_layers))
        return sharding.placed(quantised.stack(layers, base, dtype), mesh, under=path)

    head = TENSORS[("lm_head", "kernel")][checkpoint.column]
    for path, shape in layout(config).items():
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        if base != "full" and path[0] == "blocks" and path[-1] == "kernel":
            node[path[-1]] = in_few_bits(path, shape)
            continue
        whole = (config.num_layers, *shape) if path[0] == "blocks" else shape
        node[path[-1]] = _placed(partial(of_path, path, shape), path, whole, mesh)

    unused = {name for name in unused if not name.endswith("rotary_emb.inv_freq") and name != gguf.ROPE_FACTORS}
    if unused:
        some = ", ".join(sorted(unused)[:3]) + (", ..." if len(unused) > 3 else "")
        raise ValueError(
            f"{where}: {len(unused)} tensors have no place in this decoder ({some}); "
            "loading without them would compute another model"
        )
    return params


def _placed(
    part_of: Callable[[Part], np.ndarray], path: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh | None
) -> jax.Array:
    """A parameter on its devices, each of its parts read once and let go before the next."""
    if mesh is None:
        return jax.block_until_ready(jnp.asarray(part_of((slice(None),) * len(shape))))
    where = NamedSharding(mesh, sharding.spec(tuple(DictKey(key) for key in path), shape, mesh))
    devices_of: dict[str, list[jax.Device]] = {}
    parts = where.addressable_devices_indices_map(shape)
    for device, part in parts.items():
        devices_of.setdefault(str(part), []).append(device)  # a slice has no hash before Python 3.12
    held: list[jax.Array] = []
    for devices in devices_of.values():
        read = part_of(parts[devices[0]] or ())
        held += jax.block_until_ready([jax.device_put(read, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, where, held)


# ---------------------------------------------------------------------------------------------------------------------
# GGUF


@contextlib.contextmanager
def _open_gguf(path: Path) -> Iterator[Checkpoint]:
    file = gguf.open_gguf(path)
    config = gguf.read_config(file, path)
    permuted: dict[str, int] = {}  # rows to put back, and of how many heads
    if file.fields["general.architecture"] == "llama":
        for i in range(config.num_layers):
            permuted |= {f"blk.{i}.attn_q.weight": config.num_heads, f"blk.{i}.attn_k.weight": config.num_kv_heads}

    def read(name: str) -> Stored:
        weight = finite(gguf.read_tensor(file.tensors[name]), name, path)
        weight = gguf.unpermute(weight, permuted[name]) if name in permuted else weight
        return Stored(weight.shape, weight.__getitem__)

    yield Checkpoint(config, dict.fromkeys(file.tensors, path), read, column=1)


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face folders


@contextlib.contextmanager
def _open_safetensors(folder: Path) -> Iterator[Checkpoint]:
    config = read_config(folder / "config.json")
    with contextlib.ExitStack() as stack:
        files, handles = _open_folder(folder, stack)
        yield Checkpoint(config, files, lambda name: stored(handles[files[name]], name, files[name]), column=0)


class _Index(msgspec.Struct):
    """model.safetensors.index.json."""

    weight_map: Annotated[dict[str, str], msgspec.Meta(min_length=1)]


INDEX_FORM = "{weight_map: {tensor: file}}"


def _open_folder(folder: Path, stack: contextlib.ExitStack) -> tuple[dict[str, Path], dict[Path, Any]]:
    """Which file holds each tensor, and the open files. As transformers has it, model.safetensors goes before an index
    of shards, which older weights may have left in the folder."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    listed: dict[str, str] = {}
    if single.is_file():
        shards = [single]
    elif index.is_file():
        listed = records.decode(index.read_bytes(), _Index, str(index), INDEX_FORM).weight_map
        if odd := sorted(name for name in listed.values() if name != Path(name).name or not name):
            raise ValueError(f"{index}: $.weight_map: {odd[0]!r} is no file beside the index; expected {INDEX_FORM}")
        shards = sorted({folder / name for name in listed.values()})
    else:
        shards = sorted(folder.glob("*.safetensors"))
        if len(shards) != 1:
            raise ValueError(f"{folder}: {len(shards)} safetensors files and no index; expected model.safetensors")
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{shard}: missing, though {index.name} lists it; fetch the model again")
    handles = {file: stack.enter_context(open_safetensors(file)) for file in shards}
    files = {name: file for file, handle in handles.items() for name in handle.keys()}  # noqa: SIM118
    files |= {name: folder / file for name, file in listed.items() if name in handles[folder / file].keys()}  # noqa: SIM118
    return files, handles


def open_safetensors(file: Path) -> Any:
    """An open safetensors file of NumPy arrays. Raises ValueError where its header does not fit it."""
    try:
        return safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise ValueError(
            f"{file}: not a readable safetensors file ({error}). It has {file.stat().st_size:,} bytes; it was probably "
            "cut off or altered on its way here: delete it and fetch it again"
        ) from error


def stored(handle: Any, name: str, file: Path) -> Stored:
    """A tensor of an open safetensors file. Raises ValueError for weights stored as codes, NaN and infinities."""
    tensor = handle.get_slice(name)
    kind = tensor.get_dtype()
    if kind not in ("F64", "F32", "F16", "BF16"):
        raise ValueError(
            f"{file}: tensor {name!r} is of type {kind}; expected F32, F16 or BF16. Quantised weights are not read: "
            "fetch the model as it was before it was quantised"
        )
    return Stored(tuple(tensor.get_shape()), lambda part: finite(tensor[part], name, file))


def read_floats(handle: Any, name: str, file: Path) -> np.ndarray:
    """The whole of one tensor, likewise."""
    tensor = stored(handle, name, file)
    return tensor.part((slice(None),) * len(tensor.shape))


def finite(tensor: np.ndarray, name: str, file: Path) -> np.ndarray:
    """The tensor. Raises ValueError if it holds NaN or an infinity: nothing computed with it would be a number."""
    if tensor.dtype.itemsize == 2:  # the exponent's bits, all of them; faster than arithmetic of half precision
        exponent = np.uint16(0x7C00 if tensor.dtype == np.float16 else 0x7F80)
        odd = bool(tensor.size) and (np.ascontiguousarray(tensor).view(np.uint16) & exponent).max() == exponent
    else:
        with np.errstate(all="ignore"):
            odd = not np.isfinite(tensor.sum()) and not np.isfinite(tensor).all()  # a sum is cheap, and may overflow
    if odd:
        raise ValueError(
            f"{file}: tensor {name!r} holds NaN or infinities; the file was damaged, or saved by a run that diverged: "
            "fetch it or save it again"
        )
    return tensor


def read_shape(files: ModelFiles) -> ModelConfig:
    """The shape of a model from its header or config.json; loads no weights."""
    if files.kind == "gguf":
        return gguf.read_config(gguf.open_gguf(files.path), files.path)
    return read_config(files.path / "config.json")


def read_config(file: Path) -> ModelConfig:
    """config.json to our config. Where a key is absent, transformers' own default for that architecture holds.

    Read directly, not through transformers, because both spellings of RoPE are in use (`rope_theta` + `rope_scaling`,
    and since transformers 5 `rope_parameters`), and what we do not compute has to be refused by name (fields.py).
    """
    return to_model(read_fields(file), str(file))


def read_fields(file: Path) -> ConfigFields:
    """config.json as its fields. Raises ValueError for one that is missing, refused, not known, or of another type."""
    raw = records.decode(file.read_bytes(), dict[str, Any], str(file), CONFIG.form)
    if (kind := raw.get("model_type")) not in MODEL_TYPES:
        raise ValueError(f"{file}: model_type {kind!r} is not supported; expected one of {MODEL_TYPES}")
    return fields.read(CONFIG, ConfigFields, raw, str(file))


def to_model(config: ConfigFields, where: str) -> ModelConfig:
    """What the fields of config.json mean together. Raises ValueError, which begins with `where`."""
    kind, heads = config.model_type, config.num_attention_heads
    if kind == "llama":
        kv_heads = config.num_key_value_heads or heads
    else:
        kv_heads = 32 if config.num_key_value_heads is UNSET else config.num_key_value_heads or heads
    head_dim = config.head_dim or (128 if kind == "qwen3" else config.hidden_size // heads)
    context = config.max_position_embeddings or (2048 if kind == "llama" else 32_768)
    for refused, said in [
        (heads % kv_heads, f"num_key_value_heads = {kv_heads} does not divide num_attention_heads = {heads}"),
        (not head_dim or head_dim % 2, f"head_dim = {head_dim}: a head has an even number of dimensions"),
        (
            config.hidden_act not in ("silu", "swish"),
            f"hidden_act = {config.hidden_act!r} is not supported by this decoder",
        ),
        (
            kind != "qwen2" and config.attention_bias,  # it puts one on o_proj too
            "attention_bias = True is not supported by this decoder",
        ),
        (
            any(layer != "full_attention" for layer in config.layer_types or ()),
            f"layer_types = {records.describe(config.layer_types)} is not supported by this decoder",
        ),
        (
            _has_windows(config),
            f"use_sliding_window = True with sliding_window = {config.sliding_window} is not supported by this decoder",
        ),
    ]:
        if refused:
            raise ValueError(f"{where}: {said}")
    theta, scaling = _read_rope(config, context, where)
    return ModelConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=config.intermediate_size,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=config.rms_norm_eps,
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
        tie_embeddings=config.tie_word_embeddings,
        context_length=context,
    )


def _has_windows(config: ConfigFields) -> bool:
    """Whether some layer sees a window, by transformers' rule for Qwen2 and Qwen3."""
    window = 4096 if config.sliding_window is UNSET else config.sliding_window
    if config.model_type == "llama" or not config.use_sliding_window or window is None:
        return False
    return (config.max_window_layers or 0) < config.num_hidden_layers


def _read_rope(config: ConfigFields, context: int, where: str) -> tuple[float, RopeScaling | None]:
    """Theta and scaling from either spelling. As in transformers, `rope_scaling` goes before `rope_parameters`."""
    name = "rope_scaling" if config.rope_scaling else "rope_parameters"
    raw, where = config.rope_scaling or config.rope_parameters or {}, f"{where}: {name}"
    rope = fields.read(ROPE, RopeFields, raw, where)
    theta = rope.rope_theta or config.rope_theta or 10_000.0
    kind = rope.rope_type or rope.type or "default"
    original = config.original_max_position_embeddings or rope.original_max_position_embeddings or context
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3", "yarn"):
        raise ValueError(
            f"{where}: RoPE scaling {kind!r} is not supported; expected 'default', 'linear', 'llama3' or 'yarn'"
        )
    needed = {"llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(kind, ("factor",))
    for field in needed:
        if field not in raw or (raw[field] is None and kind != "yarn"):
            raise ValueError(f"{where}: field {field!r} is missing; RoPE scaling {kind!r} needs it")
    factor = rope.factor or context / original
    if kind == "llama3":
        low, high = rope.low_freq_factor or 1.0, rope.high_freq_factor or 4.0
        if low >= high:
            raise ValueError(f"{where}: low_freq_factor = {low}; expected less than high_freq_factor = {high}")
        return theta, RopeScaling("llama3", factor, low, high, int(original))
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    attention = rope.attention_factor
    if attention is None:
        attention = yarn_attention_factor(factor)
        if rope.mscale and rope.mscale_all_dim:
            attention = yarn_attention_factor(factor, rope.mscale) / yarn_attention_factor(factor, rope.mscale_all_dim)
    return theta, RopeScaling(
        "yarn", factor, original_context_length=int(original), attention_factor=attention,
        beta_fast=rope.beta_fast or 32.0, beta_slow=rope.beta_slow or 1.0,
        truncate=True if rope.truncate is UNSET else bool(rope.truncate),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Export


def save_model(
    folder: str | Path, config: ModelConfig, params: dict[str, Any], tokenizer: Any = None, *, stop: Sequence[int] = ()
) -> None:
    """Writes a folder that transformers, vLLM and `load_model` read: model.safetensors, config.json, the tokenizer.

    Whatever the model was read from, a GGUF file too. `params` is merged already: adapters are not written. `stop` are
    the ids that end an answer, where there are more than the tokenizer's one (generation_config.json). Raises
    ValueError for a config that no architecture of Hugging Face's has (query-key norms together with biases).
    """
    folder = Path(folder)
    described = _describe(config, params, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path in layout(config):
        leaf, name = params, TENSORS[path][0]
        for key in path:
            leaf = leaf[key]
        array, is_kernel = np.asarray(leaf), path[-1] == "kernel"
        for i, layer in enumerate(array) if path[0] == "blocks" else [(0, array)]:
            tensors[name.format(i)] = np.ascontiguousarray(layer.T if is_kernel else layer)
    unfinished = folder / "model.safetensors.unfinished"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    unfinished.chmod(config_file.stat().st_mode)  # save_file lets no one else read it
    os.replace(unfinished, folder / "model.safetensors")
    if stop:
        generation = {"bos_token_id": described["bos_token_id"], "eos_token_id": list(stop), "do_sample": False}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _describe(config: ModelConfig, params: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Our config as config.json, in the older spelling of RoPE, which old and new programs read."""
    if config.qkv_bias and config.qk_norm:
        raise ValueError("a model with both qkv_bias and qk_norm has no architecture in Hugging Face's format")
    kind, name = "llama", "LlamaForCausalLM"
    if config.qkv_bias:
        kind, name = "qwen2", "Qwen2ForCausalLM"
    elif config.qk_norm:
        kind, name = "qwen3", "Qwen3ForCausalLM"
    scaling: dict[str, Any] | None = None
    if config.rope_scaling is not None:
        scaling = {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
        if config.rope_scaling.kind == "yarn":
            scaling |= {
                "original_max_position_embeddings": config.rope_scaling.original_context_length,
                "attention_factor": config.rope_scaling.attention_factor,
                "beta_fast": config.rope_scaling.beta_fast,
                "beta_slow": config.rope_scaling.beta_slow,
                "truncate": config.rope_scaling.truncate,
            }
        if config.rope_scaling.kind == "llama3":
            scaling |= {
                "low_freq_factor": config.rope_scaling.low_freq_factor,
                "high_freq_factor": config.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": config.rope_scaling.original_context_length,
            }
    return {
        "architectures": [name],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": str(jax.tree.leaves(params)[0].dtype),
        "bos_token_id": getattr(tokenizer, "bos_token_id", None),
        "eos_token_id": getattr(tokenizer, "eos_token_id", None),
    }
