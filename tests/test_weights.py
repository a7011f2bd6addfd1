"""The decoder computes what transformers computes, from every format; and a bad checkpoint is refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from seal_jax.io.hub import ModelFiles, find_model
from seal_jax.io.weights import load_model, read_config, read_shape, save_model
from seal_jax.nn.transformer import ModelConfig, RopeScaling, graph, random_params, rope_frequencies

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = ("llama32", "llama2", "qwen2", "qwen3")
TOLERANCE = 1e-3  # of a logit, in float32, against transformers


def folder_files(folder: Path) -> ModelFiles:
    return ModelFiles(str(folder), "safetensors", folder, "test")


def gguf_files(path: Path) -> ModelFiles:
    return ModelFiles(str(path), "gguf", path, "test")


@pytest.fixture(scope="module")
def smollm2() -> ModelFiles:
    try:
        return find_model("smollm2-135m")
    except OSError as error:
        pytest.skip(f"SmolLM2-135M is neither cached nor downloadable: {error}")


def make_logits(config: ModelConfig):
    model = graph(config)

    @jax.jit
    def logits(params, tokens):
        transformer = nnx.merge(model, params)
        return transformer.logits(transformer(tokens)[0])

    return logits


def continue_greedily(logits, params, tokens: list[int], steps: int) -> list[int]:
    """Without a cache: the plainest decoding there is."""
    row = np.zeros((1, len(tokens) + steps), np.int32)
    row[0, : len(tokens)] = tokens
    for end in range(len(tokens), row.shape[1]):
        row[0, end] = logits(params, row)[0, end - 1].argmax()
    return row[0, len(tokens) :].tolist()


def assert_same(one: dict, other: dict, **tolerance) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


# ---------------------------------------------------------------------------------------------------------------------
# Parity with transformers


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_and_greedy_tokens_are_those_of_transformers(name):
    config, params = load_model(folder_files(GOLDEN / name), dtype=jnp.float32)
    expected = np.load(GOLDEN / name / "expected.npz")
    assert expected["positions"].max() > 2000
    logits = make_logits(config)
    found = logits(params, expected["tokens"][None])[0, expected["positions"]]
    difference = np.abs(found - expected["logits"]).max()
    print(f"{name}: largest difference of a logit {difference:.1e}")
    assert difference < TOLERANCE
    assert continue_greedily(logits, params, expected["tokens"][:48].tolist(), 32) == expected["greedy"].tolist()


@pytest.mark.parametrize("name", ["llama32", "llama2"])
def test_rope_scaling_is_seen_by_the_parity_test(name):
    config, params = load_model(folder_files(GOLDEN / name))
    expected = np.load(GOLDEN / name / "expected.npz")
    unscaled = make_logits(dataclasses.replace(config, rope_scaling=None))
    found = unscaled(params, expected["tokens"][None])[0, expected["positions"]]
    assert np.abs(found - expected["logits"]).max() > 100 * TOLERANCE


@pytest.mark.slow
def test_smollm2_is_that_of_transformers(smollm2):
    config, params = load_model(smollm2, dtype=jnp.float32)
    golden = json.loads((GOLDEN / "smollm2.json").read_text(encoding="utf-8"))
    expected = np.load(GOLDEN / "smollm2.npz")
    logits = make_logits(config)
    found = np.asarray(logits(params, np.array([golden["ids"]])))[0]
    difference = max(np.abs(found[:, ::97] - expected["strided"]).max(), np.abs(found[-1] - expected["last"]).max())
    print(f"SmolLM2-135M: largest difference of a logit {difference:.1e}")
    assert difference < TOLERANCE
    assert continue_greedily(logits, params, golden["ids"], len(golden["greedy"])) == golden["greedy"]


# ---------------------------------------------------------------------------------------------------------------------
# config.json


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("type_key", ["rope_type", "type"])
def test_both_spellings_of_rope_mean_the_same(name, type_key, tmp_path):
    new = json.loads((GOLDEN / name / "config.json").read_text())
    rope = new.pop("rope_parameters")
    old = {**new, "rope_theta": rope.pop("rope_theta"), "rope_scaling": {**rope, type_key: rope.pop("rope_type")}}
    if old["rope_scaling"][type_key] == "default":
        old["rope_scaling"] = None
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_config(tmp_path / "config.json") == read_config(GOLDEN / name / "config.json")


def test_config_fields():
    assert read_config(GOLDEN / "llama32" / "config.json") == ModelConfig(
        vocab_size=128,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=64,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
        rms_norm_eps=1e-6,
        tie_embeddings=True,
        context_length=131_072,
    )


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "llama2",
            {"model_type": "gpt_neox"},
            r"'gpt_neox' is not supported; expected one of .'llama', 'qwen2', 'qwen3'",
        ),
        ("llama2", {"attention_bias": True}, "attention_bias"),
        ("llama2", {"mlp_bias": True}, "mlp_bias"),
        ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ("llama2", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("llama2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("llama2", {"rope_parameters": {"rope_type": "longrope", "factor": 4}}, "RoPE scaling 'longrope'"),
        ("llama2", {"rope_parameters": {"rope_type": "linear"}}, "field 'factor' is missing"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ("qwen3", {"hidden_size": ...}, "field 'hidden_size' is missing"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(name, changes, said, tmp_path):
    raw = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    file = tmp_path / "config.json"
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))
    with pytest.raises(ValueError, match=said) as error:
        read_config(file)
    assert str(file) in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# safetensors


def altered(tmp_path: Path, name: str, change) -> ModelFiles:
    """A copy of a golden checkpoint after `change` of its tensors."""
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder_files(folder)


def test_a_missing_tensor_is_named(tmp_path):
    files = altered(tmp_path, "llama32", lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"):
        load_model(files)


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path):
    files = altered(tmp_path, "llama32", lambda t: t.update({"model.norm.weight": np.ones(31, np.float32)}))
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' is \(31,\), expected \(32,\)"):
        load_model(files)


def test_a_left_over_tensor_is_named(tmp_path):
    extra = {"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}
    with pytest.raises(ValueError, match=r"1 tensors have no place .*q_proj\.bias"):
        load_model(altered(tmp_path, "llama32", lambda t: t.update(extra)))


def test_harmless_tensors_are_passed_over(tmp_path):
    def change(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    assert_same(
        load_model(altered(tmp_path, "llama32", change))[1], load_model(folder_files(GOLDEN / "llama32"))[1], rtol=0
    )


def test_a_tied_head_that_is_not_the_embedding_is_refused(tmp_path):
    head = {"lm_head.weight": np.zeros((128, 32), np.float32)}
    with pytest.raises(ValueError, match=r"'lm_head\.weight' differs from the embedding"):
        load_model(altered(tmp_path, "llama32", lambda t: t.update(head)))


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_a_cut_off_safetensors_file_is_named(keep, tmp_path):
    files = altered(tmp_path, "llama32", lambda t: None)
    file = files.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut off or altered .* fetch it again") as error:
        load_model(files)
    assert str(file) in str(error.value)


def test_a_missing_shard_is_named(tmp_path):
    shutil.copytree(GOLDEN / "qwen2", tmp_path / "qwen2")
    (tmp_path / "qwen2" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors: missing"):
        load_model(folder_files(tmp_path / "qwen2"))


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_saved_and_loaded_again_is_the_same(name, dtype, tmp_path):
    config, params = load_model(folder_files(GOLDEN / name), dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    save_model(tmp_path, config, params)
    again, loaded = load_model(folder_files(tmp_path), dtype=dtype)
    assert again == config
    assert_same(loaded, params, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# GGUF


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of a llama (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama32_divisors() -> np.ndarray:
    """Llama 3.2's rope_freqs.weight for heads of 16, as llama.cpp's converter writes it, one frequency at a time."""
    divisors = []
    for i in range(8):
        wavelength = 2 * np.pi * 500_000.0 ** (i / 8)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / 3
            divisors.append(1 / ((1 - smooth) / 32 + smooth))
    return np.array(divisors, np.float32)


def write_gguf(path: Path, name: str, quantisation: str = "F32", metadata=(), tensors=None, without=()) -> Path:
    """A golden checkpoint as llama.cpp's converter would write it; matrices quantised."""
    raw = json.loads((GOLDEN / name / "config.json").read_text())
    kind, heads, kv = raw["model_type"], raw["num_attention_heads"], raw["num_key_value_heads"]
    weights: dict[str, np.ndarray] = {}
    for shard in (GOLDEN / name).glob("*.safetensors"):
        weights |= load_file(shard)
    writer = gguf.GGUFWriter(path, dict(metadata).get("architecture", kind))
    writer.add_block_count(raw["num_hidden_layers"])
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    writer.add_rope_freq_base(raw["rope_parameters"]["rope_theta"])
    if "head_dim" in raw:
        writer.add_key_length(raw["head_dim"])
        writer.add_value_length(raw["head_dim"])
    if raw["rope_parameters"]["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(raw["rope_parameters"]["factor"])
    for key, value in dict(metadata).items():
        if key != "architecture":
            kind = {bool: "bool", int: "uint32", float: "float32", str: "string"}[type(value)]
            getattr(writer, f"add_{kind}")(key, value)
    if raw["rope_parameters"]["rope_type"] == "llama3":
        weights["rope_freqs.weight"] = llama32_divisors()
    weights |= tensors or {}
    for key, weight in weights.items():
        if kind == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            weight = permute(weight, heads if "q_proj" in key else kv)
        renamed = key.replace("model.layers.", "blk.")
        for theirs, llama_cpp in GGUF_NAMES.items():
            renamed = renamed.replace(theirs, llama_cpp)
        if renamed in without:
            continue
        weight = weight.astype(np.float32)
        stored = gguf.GGMLQuantizationType[quantisation if weight.ndim == 2 else "F32"]
        writer.add_tensor(renamed, gguf.quantize(weight, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def close_config(found: ModelConfig, expected: ModelConfig) -> bool:
    """Equal but for the rounding of `rms_norm_eps`, which a GGUF file keeps in float32."""
    assert found.rms_norm_eps == pytest.approx(expected.rms_norm_eps)
    return dataclasses.replace(found, rms_norm_eps=expected.rms_norm_eps) == expected


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_gguf_holds_the_same_model_as_the_folder(name, tmp_path):
    config, params = load_model(gguf_files(write_gguf(tmp_path / "m.gguf", name)))
    expected, same = load_model(folder_files(GOLDEN / name))
    assert close_config(config, expected)
    assert_same(params, same, rtol=0)


@pytest.mark.parametrize(
    ("quantisation", "error"),  # the largest, as a share of the largest weight in a block of 32
    [("F32", 0), ("F16", 2**-11), ("BF16", 2**-8), ("Q8_0", 0.005), ("Q4_0", 0.14), ("Q4_1", 0.07)],
)
def test_gguf_quantisations(quantisation, error, tmp_path):
    _, params = load_model(gguf_files(write_gguf(tmp_path / "m.gguf", "llama2", quantisation)))
    _, exact = load_model(folder_files(GOLDEN / "llama2"))

    def check(found, expected):
        scale = np.abs(expected).max()
        assert np.abs(found - expected).max() <= error * scale
        assert error == 0 or expected.ndim < 3 or np.abs(found - expected).max() > 0  # it was quantised indeed

    jax.tree.map(check, params, exact)


def test_gguf_in_bfloat16(tmp_path):
    _, params = load_model(gguf_files(write_gguf(tmp_path / "m.gguf", "llama2", "Q8_0")), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 0.999])
def test_a_cut_off_gguf_file_is_named(share, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama2")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"m\.gguf: not a readable GGUF file .* fetch it again"):
        load_model(gguf_files(path))


def test_an_altered_gguf_file_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"m\.gguf: not a readable GGUF file .*magic"):
        load_model(gguf_files(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metadata": {"architecture": "gemma3"}}, "architecture 'gemma3' is not supported; expected one of"),
        ({"metadata": {"llama.expert_count": 8}}, "llama.expert_count = 8 is not supported"),
        ({"metadata": {"llama.rope.dimension_count": 4}}, "llama.rope.dimension_count is 4"),
        ({"metadata": {"llama.rope.scaling.type": "longrope"}}, "RoPE scaling 'longrope'"),
        ({"metadata": {"split.count": 2}}, "one of 2 parts"),
        ({"without": ["blk.2.ffn_up.weight"]}, r"'blk\.2\.ffn_up\.weight' is missing"),
        ({"without": ["token_embd.weight"]}, r"'token_embd\.weight' is missing"),
        (
            {"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}},
            r"no place in this decoder .blk\.0\.attn_q\.bias",
        ),
        ({"tensors": {"rope_freqs.weight": np.geomspace(1, 6, 8)}}, "not those of Llama 3.1 to 3.3"),
    ],
)
def test_gguf_files_that_are_refused(change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        load_model(gguf_files(write_gguf(tmp_path / "m.gguf", "llama32", **change)))


# ---------------------------------------------------------------------------------------------------------------------
# Yarn, and files that say something else than they hold


@pytest.mark.parametrize(
    ("fields", "attention"),
    [
        ({}, 0.1 * np.log(4) + 1),
        ({"attention_factor": 1.3}, 1.3),
        ({"mscale": 2.0, "mscale_all_dim": 0.5}, (0.2 * np.log(4) + 1) / (0.05 * np.log(4) + 1)),
        ({"mscale": 2.0}, 0.1 * np.log(4) + 1),  # both, or none
    ],
)
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_yarn_is_read_from_both_places(place, fields, attention, tmp_path):
    raw = json.loads((GOLDEN / "qwen2" / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "truncate": False, **fields}
    (tmp_path / "config.json").write_text(json.dumps(raw | {place: yarn}))  # rope_scaling goes before rope_parameters
    scaling = read_config(tmp_path / "config.json").rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_context_length) == ("yarn", 4.0, 1024)
    assert scaling.attention_factor == pytest.approx(attention)
    assert (scaling.beta_fast, scaling.beta_slow, scaling.truncate) == (32.0, 1.0, False)


def test_yarn_keeps_fast_pairs_and_slows_the_others():
    """Equation 20 of the paper, pair by pair."""
    scaling = RopeScaling("yarn", 4.0, original_context_length=1024, beta_fast=8.0, beta_slow=2.0, truncate=False)
    config = read_config(GOLDEN / "qwen3" / "config.json")
    config = dataclasses.replace(config, rope_theta=10_000.0, head_dim=32, rope_scaling=scaling)
    plain = 10_000.0 ** -(np.arange(0, 32, 2) / 32)
    low, high = (32 * np.log(1024 / (turns * 2 * np.pi)) / (2 * np.log(10_000)) for turns in (8, 2))
    slowed = np.clip((np.arange(16) - low) / (high - low), 0, 1)
    assert 0 < slowed[(slowed > 0) & (slowed < 1)].size < 16
    np.testing.assert_allclose(rope_frequencies(config), plain * (1 - slowed) + plain / 4 * slowed, rtol=1e-5)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["llama2", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"truncate": False, "beta_fast": 16, "beta_slow": 2},
        {"mscale": 1.2, "mscale_all_dim": 0.7},
        {"attention_factor": 0.9},
    ],
)
def test_yarn_is_that_of_transformers(name, changes, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    raw = json.loads((tmp_path / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **changes}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_scaling": yarn}))
    tokens = np.load(GOLDEN / name / "expected.npz")["tokens"][:200]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        theirs = model(torch.tensor(tokens)[None]).logits[0].numpy()
    config, params = load_model(folder_files(tmp_path))
    difference = np.abs(make_logits(config)(params, tokens[None])[0] - theirs).max()
    print(f"{name}: largest difference of a logit {difference:.1e}")
    assert difference < 1e-5 * max(1, np.abs(theirs).max())


def test_yarn_is_saved_and_loaded_again(tmp_path):
    config, params = load_model(folder_files(GOLDEN / "qwen2"))
    config = dataclasses.replace(config, rope_scaling=RopeScaling("yarn", 4.0, attention_factor=1.1, truncate=False))
    save_model(tmp_path, config, params)
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"rope.scale_linear": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scaling.factor": 2.0}, RopeScaling("linear", 2.0)),
        ({"rope.scaling.factor": 0.0}, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, None),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 512,
                "rope.scaling.attn_factor": 2.0,
                "rope.scaling.yarn_beta_fast": 16.0,
            },
            RopeScaling(
                "yarn", 4.0, original_context_length=512, attention_factor=2 * (0.1 * np.log(4) + 1), beta_fast=16.0
            ),
        ),
    ],
)
def test_rope_scaling_of_a_gguf_is_llama_cpps(keys, expected, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "qwen2", metadata={f"qwen2.{key}": value for key, value in keys.items()})
    assert read_shape(gguf_files(path)).rope_scaling == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.causal", False),
        ("attention.sliding_window", 64),
        ("final_logit_softcapping", 30.0),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("a_key_of_tomorrow", 1),
    ],
)
def test_keys_of_a_gguf_that_are_not_understood_are_refused(key, value, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "qwen3", metadata={f"qwen3.{key}": value})
    with pytest.raises(ValueError, match=rf"m\.gguf: qwen3\.{key} = {value}"):
        read_shape(gguf_files(path))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("qwen2", {"is_causal": False}, "is_causal = False is not supported"),
        (
            "llama2",
            {"attention_multiplier": 0.5},
            "attention_multiplier = 0.5: a field that this program does not know",
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": ...},
            "use_sliding_window = True with sliding_window",
        ),
        ("qwen2", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters: full_attention"),
        ("llama2", {"hidden_size": "32"}, r"\$\.hidden_size: Expected `int`"),
        ("llama2", {"num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide"),
        ("llama2", {"rope_theta": float("nan")}, "rope_theta is NaN"),
    ],
)
def test_fields_that_are_not_understood_are_refused(name, changes, said, tmp_path):
    raw = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))
    with pytest.raises(ValueError, match=said):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["llama2", "qwen2", "qwen3"])
def test_fields_that_change_nothing_pass(name, tmp_path):
    """Those that transformers writes, and those of published models."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    raw = json.loads((GOLDEN / name / "config.json").read_text())
    written = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[raw["model_type"]]().to_dict()
    idle = {
        "_name_or_path": "x/y", "use_cache": False, "pretraining_tp": 2, "attention_dropout": 0.1, "dtype": "float16",
        "unsloth_version": "1", "is_llama_config": True, "auto_map": {"AutoModel": "x.Y"}, "hidden_act": "swish",
        "id2label": {"0": "a"}, "_attn_implementation_autoset": True, "a_field_not_in_use": None, "another": [],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(written | idle | raw | {"hidden_act": "swish"}))
    assert read_config(tmp_path / "config.json") == read_config(GOLDEN / name / "config.json")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_weights_that_are_no_numbers_are_named(value, dtype, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors):
        tensors[name] = tensors[name].astype(dtype)
        tensors[name][3, 4] = value

    with pytest.raises(ValueError, match=rf"model\.safetensors: tensor '{name}' holds NaN or infinities"):
        load_model(altered(tmp_path, "llama32", spoil))


def test_weights_stored_as_codes_are_refused(tmp_path):
    change = {"model.norm.weight": np.ones(32, np.int8)}
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' is of type I8"):
        load_model(altered(tmp_path, "llama32", lambda t: t.update(change)))


def test_a_newer_file_goes_before_an_index_of_older_shards(tmp_path):
    for file in (GOLDEN / "qwen2").iterdir():
        shutil.copy(file, tmp_path)
    config, params = load_model(folder_files(GOLDEN / "qwen2"))
    newer = jax.tree.map(lambda w: w * 2, params)
    save_model(tmp_path, config, newer)
    assert_same(load_model(folder_files(tmp_path))[1], newer, rtol=0)


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../x.safetensors"}}', "{"])
def test_an_index_that_is_none_is_refused(index, tmp_path):
    for file in (GOLDEN / "qwen2").iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: "):
        load_model(folder_files(tmp_path))


LOAD_UNDER_A_LIMIT = """
import resource, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from seal_jax.io import weights
from seal_jax.io.hub import ModelFiles
from seal_jax.nn import sharding
from seal_jax.types import MeshShape
from pathlib import Path

mesh = sharding.make_mesh(jax.devices(), MeshShape(1, 4, 2))
jax.block_until_ready([jax.device_put(np.zeros(8), device) for device in jax.devices()])
with open("/proc/self/status") as file:
    now = next(int(line.split()[1]) for line in file if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (now + int(sys.argv[2]),) * 2)
params = weights.load_model(ModelFiles("m", "safetensors", Path(sys.argv[1]), "test"), dtype="bfloat16", mesh=mesh)[1]
print(sum(float(np.abs(w).sum(dtype=np.float64)) for w in jax.tree.leaves(jax.device_get(params["blocks"]["q_proj"]))))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
def test_a_checkpoint_larger_than_a_limit_is_loaded_under_it(tmp_path):
    """All memory counts that the process takes, its eight devices' too; not the file's pages, which the system drops
    when it needs the room. The model in bfloat16 is half the checkpoint: there is no room for another copy."""
    shape = ModelConfig(
        vocab_size=2048, hidden_size=512, num_layers=8, num_heads=8, num_kv_heads=4, head_dim=64, intermediate_size=2048
    )
    params = random_params(0, shape)
    save_model(tmp_path, shape, params)
    size = (tmp_path / "model.safetensors").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", LOAD_UNDER_A_LIMIT, str(tmp_path), str(int(0.75 * size))],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole = np.asarray(params["blocks"]["q_proj"]["kernel"].astype(jnp.bfloat16), np.float64)
    assert float(done.stdout) == pytest.approx(np.abs(whole).sum(), rel=1e-6)
