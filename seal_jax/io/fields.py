"""What is read, refused and ignored of config.json, a GGUF file's metadata and adapter_config.json.

One table for each kind of file. Its reader decides by it, and `python -m seal_jax.io.fields` prints it: docs/fields.md.
A field that is in no table may change what a model computes, so it refuses the file, unless its value says that it is
not in use.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

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


ROPE = Table(
    "one set of RoPE parameters for all layers: {rope_type, rope_theta, factor, ...}",
    RopeFields,
    {"partial_rotary_factor": Only((1, 1.0), "it rotates a part of each head")},
    {"finetuned": "says how the model was trained"},
)


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


CONFIG = Table(
    "the config.json of a llama, qwen2 or qwen3",
    ConfigFields,
    {
        "partial_rotary_factor": Only((1, 1.0), "it rotates a part of each head"),
        "mlp_bias": Only((False,), "it adds biases"),
        "is_causal": Only((True,), "tokens would see later ones"),
        "use_bidirectional_attention": Only((False,), "tokens would see later ones"),
        "is_encoder_decoder": Only((False,), "it is another architecture"),
        "add_cross_attention": Only((False,), "it is another architecture"),
        "rope_interleaved": Only((False,), "pairs of dimensions are other ones"),
        "quantization_config": Only(OFF, "weights are stored as codes"),
        "compression_config": Only(OFF, "weights are stored as codes"),
    },
    {
        "architectures": "model_type says it",
        "auto_map": "code of a repository is never run",
        "attention_dropout": "the base model is not trained",
        "hidden_dropout": "the base model is not trained",
        "embd_pdrop": "the base model is not trained",
        "resid_pdrop": "the base model is not trained",
        "initializer_range": "weights are read",
        "initializer_factor": "weights are read",
        "pretraining_tp": "how it was trained; the sums are the same",
        "neftune_noise_alpha": "how it was trained",
        "is_llama_config": "a remark of SmolLM2's",
        "use_cache": "how it is run",
        "cache_implementation": "how it is run",
        "attn_implementation": "how it is run",
        "_attn_implementation*": "how it is run",
        "_flash_attn_2_enabled": "how it is run",
        "experts_implementation": "how it is run",
        "return_dict*": "how it is run",
        "use_return_dict": "how it is run",
        "output_*": "how it is run",
        "chunk_size_feed_forward": "how it is run",
        "low_cpu_mem_usage": "how it is run",
        "torchscript": "how it is run",
        "use_bfloat16": "how it is run",
        "tf_legacy_loss": "how it is run",
        "torch_dtype": "--model-dtype says it",
        "dtype": "--model-dtype says it",
        "bos_token_id": "the tokenizer says it",
        "pad_token_id": "padding is masked",
        "cls_token_id": "the tokenizer says it",
        "sep_token_id": "the tokenizer says it",
        "tokenizer_class": "the tokenizer says it",
        "transformers_version": "a remark",
        "transformers.js_config": "for another program",
        "unsloth*": "a remark",
        "model_name": "a remark",
        "_commit_hash": "a remark",
        "license": "a remark",
        "finetuning_task": "of a classifier's head, which is refused as a tensor without a place",
        "problem_type": "of a classifier's head",
        "num_labels": "of a classifier's head",
        "id2label": "of a classifier's head",
        "label2id": "of a classifier's head",
        "task_specific_params": "settings of generate()",
        **dict.fromkeys(
            (
                *("do_sample", "temperature", "top_k", "top_p", "typical_p", "min_p", "num_beams", "num_beam_groups"),
                *("num_return_sequences", "max_length", "min_length", "max_new_tokens", "early_stopping", "prefix"),
                *(
                    "diversity_penalty",
                    "length_penalty",
                    "repetition_penalty",
                    "no_repeat_ngram_size",
                    "suppress_tokens",
                ),
                *("encoder_no_repeat_ngram_size", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
                *("begin_suppress_tokens", "exponential_decay_length_penalty", "remove_invalid_values"),
                "decoder_start_token_id",
            ),
            "settings of generate()",
        ),
    },
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


GGUF = Table(
    "the metadata that llama.cpp's converter writes for a llama, qwen2 or qwen3",
    GgufFields,
    {
        "attention.causal": Only((True,), "tokens would see later ones"),
        "attention.sliding_window": Only(OFF, "layers would see a window"),
        "attention.scale": Only(OFF, "scores are scaled by the root of key_length"),
        "attention.clamp_kqv": Only(OFF, "values would be clamped"),
        "attention.max_alibi_bias": Only(OFF, "positions would be added to scores"),
        "expert_count": Only(OFF, "it is a mixture of experts"),
        "logit_scale": Only(OFF, "logits would be scaled"),
        "embedding_scale": Only(OFF, "embeddings would be scaled"),
        "residual_scale": Only(OFF, "sums would be scaled"),
        "pooling_type": Only(OFF, "it is an embedding model"),
        "use_parallel_residual": Only(OFF, "layers would be computed side by side"),
        "rope.scaling.yarn_log_multiplier": Only(OFF, "attention would be scaled by another rule"),
        "rope.scaling.yarn_ext_factor": Only((1.0, -1.0), "frequencies would be blended by another rule"),
        "rope.scaling.yarn_attn_factor": Only((1.0,), "llama.cpp's versions differ in what they do with it"),
    },
    {
        "vocab_size": "token_embd.weight says it",
        "rope.scaling.finetuned": "says how the model was trained",
        "tensor_data_layout": "a remark of old converters",
    },
)


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


TOKENIZER = Table(
    "the tokenizer of a GGUF file",
    TokenizerFields,
    {
        "ggml.remove_extra_whitespaces": Only(OFF, "text would be cut in another way"),
        "ggml.precompiled_charsmap": Only(OFF, "text would be normalised"),
    },
    {
        "ggml.add_eos_token": "a prompt is not ended",
        "ggml.add_sep_token": "a prompt is not ended",
        "ggml.token_type_count": "of BERT",
        "ggml.*_token_id": "for filling in the middle, masks and the like",
        "huggingface.json": "the tokenizer once more",
        "chat_template.*": "templates for other uses",
        "chat_templates": "templates for other uses",
    },
)


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


ADAPTER = Table(
    "the configuration of a LoRA adapter",
    AdapterFields,
    {
        "peft_type": Only(("LORA",), "it is another kind of adapter"),
        "task_type": Only(("CAUSAL_LM",), "it belongs to another head"),
        "fan_in_fan_out": Only((False,), "weights are stored the other way round"),
        "bias": Only(("none", False, ""), "biases were trained"),
        "use_dora": Only(OFF, "it is DoRA"),
        "lora_bias": Only(OFF, "biases were trained"),
        "modules_to_save": Only(OFF, "whole modules were trained"),
        "layers_to_transform": Only(OFF, "layers are not all alike"),
        "layer_replication": Only(OFF, "layers are repeated"),
        "rank_pattern": Only(OFF, "layers are not all alike"),
        "alpha_pattern": Only(OFF, "layers are not all alike"),
        "trainable_token_indices": Only(OFF, "embeddings were trained"),
        "target_parameters": Only(OFF, "it is on parameters that are no projections"),
        "alora_invocation_tokens": Only(OFF, "it is switched on by a text"),
        "alora_invocation_string": Only(OFF, "it is switched on by a text"),
        "use_qalora": Only(OFF, "it is QA-LoRA"),
        "use_bdlora": Only(OFF, "it is block diagonal"),
        "arrow_config": Only(OFF, "it routes between adapters"),
        "kasa_config": Only(OFF, "it is KaSA"),
        "velora_config": Only(OFF, "it is VeLoRA"),
        "monteclora_config": Only(OFF, "it is MonteCLoRA"),
    },
    {
        "auto_mapping": "for PEFT's loader",
        "peft_version": "a remark",
        "revision": "a remark",
        "unsloth*": "a remark",
        "inference_mode": "how it is run",
        "runtime_config": "how it is run",
        "lora_dropout": "how it was trained",
        "exclude_modules": "the weights say what it is on",
        "layers_pattern": "of layers_to_transform",
        "ensure_weight_tying": "of modules_to_save",
        "qalora_group_size": "of use_qalora",
        "megatron_*": "how it was trained",
        "loftq_config": "of init_lora_weights",
        "eva_config": "of init_lora_weights",
        "corda_config": "of init_lora_weights",
        "lora_ga_config": "of init_lora_weights",
    },
)


# ---------------------------------------------------------------------------------------------------------------------
# docs/fields.md

PAGE = """# What is read of a model's files

Made from the tables that the readers use by `python -m seal_jax.io.fields > docs/fields.md`.

A field that a table lists as refused stops the run, with the file, the field and the value, unless it is absent, null
or has the value that is given. A field in no table stops it likewise, unless its value says that it is not in use:
null, false, 0, or empty. Of `generation_config.json`, `eos_token_id` is read; a folder's tokenizer is read by
transformers.
"""


def page() -> str:
    """The tables as Markdown."""
    parts = [PAGE]
    for title, table in {
        "config.json": CONFIG,
        "RoPE in config.json: `rope_parameters` or `rope_scaling`": ROPE,
        "GGUF: keys of the architecture, such as `llama.block_count`": GGUF,
        "GGUF: keys of the tokenizer, such as `tokenizer.ggml.model`": TOKENIZER,
        "adapter_config.json": ADAPTER,
    }.items():
        rows = [f"| `{name}` | read | {text} |" for name, text in _described(table.record)]
        for name, only in table.refused.items():
            values = "not in use" if only.values is OFF else " or ".join(f"`{json.dumps(v)}`" for v in only.values)
            rows.append(f"| `{name}` | refused unless {values} | {only.why} |")
        rows += [f"| `{name}` | ignored | {why} |" for name, why in table.ignored.items()]
        parts += [f"\n## {title}\n\n| field | | |\n|---|---|---|\n" + "\n".join(rows) + "\n"]
    parts.append(
        "\nOf a GGUF file's other keys `general.architecture`, `general.alignment`, `general.type` (refused unless "
        "`model`) and `split.count`\n(refused unless 1) are read; the rest of `general.`, and whatever belongs to "
        "other programs, is ignored.\n"
    )
    return "".join(parts)


def _described(record: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    hints = get_type_hints(record, include_extras=True)
    for field in msgspec.structs.fields(record):
        metas = [meta for meta in getattr(hints[field.name], "__metadata__", ()) if isinstance(meta, Meta)]
        texts = [meta.description for meta in metas if meta.description]
        yield field.encode_name, "; ".join([*(["required"] if field.required else []), *texts])


if __name__ == "__main__":
    print(page(), end="")
