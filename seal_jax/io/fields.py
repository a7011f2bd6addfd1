"""What is read, refused and ignored of config.json, a GGUF file's metadata and adapter_config.json.

One table for each kind of file, in fields.toml: its reader decides by it, docs/fields.py makes docs/fields.md of it.
A field that is in no table may change what a model computes, so it refuses the file, unless its value says that it is
not in use.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from seal_jax.domains.records import convert, describe

R = TypeVar("R", bound=msgspec.Struct)

OFF: tuple[Any, ...] = (None, False, 0, "", [], {})  # values that say "not in use", whatever the field


class Only(NamedTuple):
    """A field that changes what is computed: the values with which it is what this program computes."""

    values: Sequence[Any]
    why: str  # what other values would change


class Table(NamedTuple):
    """A kind of file."""

    form: str  # what was expected, as errors say it
    record: type[msgspec.Struct]  # what is read
    refused: Mapping[str, Only]
    ignored: Mapping[str, str]  # a name, or a pattern with `*` -> why it changes nothing


def read(table: Table, kind: type[R], values: Mapping[str, Any], where: str, prefix: str = "") -> R:
    """The fields that are read, as a `kind`, which is the table's record. `prefix` stands before each name in the file.

    Raises:
        ValueError: a field that is missing, of another type, refused, or not known; names it, begins with `where`.
    """
    assert kind is table.record
    read_here = {field.encode_name: field.required for field in msgspec.structs.fields(kind)}
    for name, value in values.items():
        if name in table.refused:
            values_allowed = table.refused[name].values
            if value is not None and not any(value == v and type(value) is type(v) for v in values_allowed):
                shown = "null" if values_allowed is OFF else " or ".join(map(repr, values_allowed))
                raise ValueError(
                    f"{where}: {prefix}{name} = {describe(value)} is not supported ({table.refused[name].why}); this "
                    f"program computes only {prefix}{name} = {shown}"
                )
        elif (
            name not in read_here and value not in OFF and not any(fnmatch.fnmatchcase(name, p) for p in table.ignored)
        ):
            raise ValueError(
                f"{where}: {prefix}{name} = {describe(value)}: a field that this program does not know, and that may "
                "change what is computed. If it does not, remove it from the file"
            )
        if value != value:
            raise ValueError(f"{where}: {prefix}{name} is NaN; expected a number")
    for name, required in read_here.items():
        if required and name not in values:
            raise ValueError(f"{where}: field '{prefix}{name}' is missing; expected {table.form}")
    return convert({name: values[name] for name in read_here if name in values}, kind, where, table.form)


# ---------------------------------------------------------------------------------------------------------------------
# config.json

Size = Annotated[int, Meta(ge=1, le=2**31)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]
Base = Annotated[float, Meta(gt=1, le=1e12)]
Number = Annotated[float, Meta(ge=0, le=1e6)]
Ids = list[int] | int | None


class RopeFields(msgspec.Struct):
    """`rope_parameters`, or as it was before transformers 5, `rope_scaling`."""

    rope_type: Annotated[str | None, Meta(description="default, linear, llama3 or yarn")] = None
    type: Annotated[str | None, Meta(description="older name of rope_type")] = None
    rope_theta: Annotated[Base | None, Meta(description="goes before the config's own")] = None
    factor: Annotated[Positive | None, Meta(description="all but default")] = None
    low_freq_factor: Annotated[Positive | None, Meta(description="llama3")] = None
    high_freq_factor: Annotated[Positive | None, Meta(description="llama3")] = None
    original_max_position_embeddings: Annotated[
        Positive | None, Meta(description="llama3 and yarn; by default max_position_embeddings")
    ] = None
    attention_factor: Annotated[Positive | None, Meta(description="yarn; by default from factor or the mscales")] = None
    mscale: Annotated[Number | None, Meta(description="yarn")] = None
    mscale_all_dim: Annotated[Number | None, Meta(description="yarn")] = None
    beta_fast: Annotated[Number | None, Meta(description="yarn; 32 by default")] = None
    beta_slow: Annotated[Number | None, Meta(description="yarn; 1 by default")] = None
    truncate: Annotated[bool | UnsetType | None, Meta(description="yarn; true by default")] = UNSET


class ConfigFields(msgspec.Struct):
    """config.json."""

    model_type: Annotated[str, Meta(description="llama, qwen2 or qwen3")]
    vocab_size: Annotated[Size, Meta(description="rows of the embedding")]
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Annotated[
        Size | UnsetType | None, Meta(description="null: as many as heads; absent: 32 of a Qwen")
    ] = UNSET
    head_dim: Annotated[Size | None, Meta(description="by default hidden_size / heads, and 128 of Qwen3")] = None
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1)] = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: Annotated[Size | None, Meta(description="the context; 2,048 or 32,768 by default")] = None
    rope_parameters: Annotated[dict[str, Any] | None, Meta(description="see below")] = None
    rope_scaling: Annotated[dict[str, Any] | None, Meta(description="goes before rope_parameters")] = None
    rope_theta: Base | None = None
    original_max_position_embeddings: Annotated[
        Positive | None, Meta(description="goes before the one in rope_parameters")
    ] = None
    hidden_act: Annotated[str | None, Meta(description="silu, also called swish; all else is refused")] = "silu"
    attention_bias: Annotated[bool | None, Meta(description="true is refused but of Qwen2, which always has them")] = (
        None
    )
    layer_types: Annotated[list[str] | None, Meta(description="all must be full_attention")] = None
    use_sliding_window: Annotated[bool | None, Meta(description="refused where it gives some layer a window")] = None
    sliding_window: Annotated[int | UnsetType | None, Meta(description="Qwen: as above; of a Llama not in use")] = UNSET
    max_window_layers: Annotated[
        int | None, Meta(description="layers before the first with a window; 28 by default")
    ] = 28
    eos_token_id: Annotated[Ids, Meta(description="ends an answer; so does generation_config.json's")] = None
    name_or_path: Annotated[str | None, Meta(description="a name that an adapter's base may have")] = msgspec.field(
        default=None, name="_name_or_path"
    )


# ---------------------------------------------------------------------------------------------------------------------
# GGUF: keys of the architecture, without its name before them


class GgufFields(msgspec.Struct, rename=lambda name: name.replace("__", ".")):
    """Keys of the architecture, such as `llama.block_count`."""

    block_count: Size
    context_length: Size
    embedding_length: Size
    feed_forward_length: Size
    attention__head_count: Size
    attention__layer_norm_rms_epsilon: Annotated[float, Meta(ge=0, le=1)]
    attention__head_count_kv: Annotated[Size | None, Meta(description="by default as many as heads")] = None
    attention__key_length: Annotated[Size | None, Meta(description="by default embedding_length / heads")] = None
    attention__value_length: Annotated[Size | None, Meta(description="must be key_length")] = None
    rope__dimension_count: Annotated[Size | None, Meta(description="must be key_length")] = None
    rope__freq_base: Base = 10_000.0
    rope__scaling__type: Annotated[
        str | None, Meta(description="none, linear or yarn; absent with a factor: linear, as in llama.cpp")
    ] = None
    rope__scaling__factor: Annotated[Number | None, Meta(description="0 is none")] = None
    rope__scale_linear: Annotated[Number | None, Meta(description="older name of rope.scaling.factor")] = None
    rope__scaling__original_context_length: Annotated[
        Size | None, Meta(description="yarn; by default context_length")
    ] = None
    rope__scaling__attn_factor: Annotated[Positive, Meta(description="yarn; times what its rule yields")] = 1.0
    rope__scaling__yarn_beta_fast: Annotated[Positive, Meta(description="yarn")] = 32.0
    rope__scaling__yarn_beta_slow: Annotated[Positive, Meta(description="yarn")] = 1.0


class TokenizerFields(msgspec.Struct, rename=lambda name: name.replace("__", ".")):
    """Keys of a GGUF file's tokenizer, after `tokenizer.`"""

    ggml__model: Annotated[str, Meta(description="gpt2 (byte-level BPE) or llama (sentencepiece)")]
    ggml__tokens: Annotated[list[str], Meta(min_length=1, description="each once")]
    ggml__token_type: Annotated[list[int], Meta(description="3 is special, 4 a word of the user's")]
    ggml__scores: Annotated[list[float] | None, Meta(description="llama")] = None
    ggml__merges: Annotated[list[str] | None, Meta(description="gpt2")] = None
    ggml__pre: Annotated[str, Meta(description="how text is cut: smollm, qwen2, llama-bpe")] = "absent"
    ggml__bos_token_id: int | None = None
    ggml__eos_token_id: Annotated[int | None, Meta(description="ends an answer")] = None
    ggml__eot_token_id: Annotated[int | None, Meta(description="ends an answer")] = None
    ggml__eom_token_id: Annotated[int | None, Meta(description="ends an answer")] = None
    ggml__unknown_token_id: int | None = None
    ggml__padding_token_id: int | None = None
    ggml__add_bos_token: Annotated[bool | None, Meta(description="by default as llama.cpp has it")] = None
    ggml__add_space_prefix: bool = True
    chat_template: str | None = None


# ---------------------------------------------------------------------------------------------------------------------
# adapter_config.json


class AdapterFields(msgspec.Struct):
    """adapter_config.json."""

    r: Size
    lora_alpha: Annotated[Positive, Meta(description="the adapter is scaled by lora_alpha / r")]
    use_rslora: Annotated[bool | None, Meta(description="scaled by lora_alpha / root of r instead")] = False
    target_modules: Annotated[
        list[str] | str | None, Meta(description="a list must name the projections whose weights are there")
    ] = None
    init_lora_weights: Annotated[
        bool | str | None, Meta(description="initialisations that changed the base weights are refused")
    ] = True
    base_model_name_or_path: Annotated[str | None, Meta(description="compared with the model's names")] = None


# ---------------------------------------------------------------------------------------------------------------------


def _tables() -> dict[str, Table]:
    """What fields.toml says of each kind of file."""
    records: dict[str, type[msgspec.Struct]] = {
        "config": ConfigFields, "rope": RopeFields, "gguf": GgufFields, "tokenizer": TokenizerFields,
        "adapter": AdapterFields,
    }  # fmt: skip
    said: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        kind: Table(
            table["form"], records[kind],
            {name: Only(only.get("only", OFF), only["why"]) for name, only in table["refused"].items()},
            {name: why for why, names in table["ignored"].items() for name in names},
        )
        for kind, table in said.items()
    }  # fmt: skip


CONFIG, ROPE, GGUF, TOKENIZER, ADAPTER = _tables().values()
