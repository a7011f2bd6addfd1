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
    read: Mapping[str, str]  # what a field of it means, where its name does not say so
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

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Base | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Positive | None = None
    attention_factor: Positive | None = None
    mscale: Number | None = None
    mscale_all_dim: Number | None = None
    beta_fast: Number | None = None
    beta_slow: Number | None = None
    truncate: bool | UnsetType | None = UNSET


class ConfigFields(msgspec.Struct):
    """config.json."""

    model_type: str
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size | UnsetType | None = UNSET
    head_dim: Size | None = None
    rms_norm_eps: Annotated[float, Meta(ge=0, le=1)] = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: Size | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_theta: Base | None = None
    original_max_position_embeddings: Positive | None = None
    hidden_act: str | None = "silu"
    attention_bias: bool | None = None
    layer_types: list[str] | None = None
    use_sliding_window: bool | None = None
    sliding_window: int | UnsetType | None = UNSET
    max_window_layers: int | None = 28
    eos_token_id: Ids = None
    name_or_path: str | None = msgspec.field(default=None, name="_name_or_path")


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
    attention__head_count_kv: Size | None = None
    attention__key_length: Size | None = None
    attention__value_length: Size | None = None
    rope__dimension_count: Size | None = None
    rope__freq_base: Base = 10_000.0
    rope__scaling__type: str | None = None
    rope__scaling__factor: Number | None = None
    rope__scale_linear: Number | None = None
    rope__scaling__original_context_length: Size | None = None
    rope__scaling__attn_factor: Positive = 1.0
    rope__scaling__yarn_beta_fast: Positive = 32.0
    rope__scaling__yarn_beta_slow: Positive = 1.0


class TokenizerFields(msgspec.Struct, rename=lambda name: name.replace("__", ".")):
    """Keys of a GGUF file's tokenizer, after `tokenizer.`"""

    ggml__model: str
    ggml__tokens: Annotated[list[str], Meta(min_length=1)]
    ggml__token_type: list[int]
    ggml__scores: list[float] | None = None
    ggml__merges: list[str] | None = None
    ggml__pre: str = "absent"
    ggml__bos_token_id: int | None = None
    ggml__eos_token_id: int | None = None
    ggml__eot_token_id: int | None = None
    ggml__eom_token_id: int | None = None
    ggml__unknown_token_id: int | None = None
    ggml__padding_token_id: int | None = None
    ggml__add_bos_token: bool | None = None
    ggml__add_space_prefix: bool = True
    chat_template: str | None = None


# ---------------------------------------------------------------------------------------------------------------------
# adapter_config.json


class AdapterFields(msgspec.Struct):
    """adapter_config.json."""

    r: Size
    lora_alpha: Positive
    use_rslora: bool | None = False
    target_modules: list[str] | str | None = None
    init_lora_weights: bool | str | None = True
    base_model_name_or_path: str | None = None


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
            table["form"], records[kind], table["read"],
            {name: Only(only.get("only", OFF), only["why"]) for name, only in table["refused"].items()},
            {name: why for why, names in table["ignored"].items() for name in names},
        )
        for kind, table in said.items()
    }  # fmt: skip


CONFIG, ROPE, GGUF, TOKENIZER, ADAPTER = _tables().values()
