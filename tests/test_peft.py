"""Adapters go to PEFT's files and come back the same; what such files hold beyond plain LoRA is refused by name."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seal_jax.io.hub import ModelFiles
from seal_jax.io.peft import load_peft, save_peft, tensor_name, with_peft
from seal_jax.io.weights import load_model, read_config
from seal_jax.nn import lora
from seal_jax.nn.transformer import graph
from seal_jax.types import PROJECTIONS, LanguageModel

GOLDEN = Path(__file__).parent / "golden"
MODEL = read_config(GOLDEN / "llama32" / "config.json")


@pytest.fixture(scope="module")
def params():
    return load_model(ModelFiles("llama32", "safetensors", GOLDEN / "llama32", "golden"))[1]


def trained(params, projections=PROJECTIONS, *, rank=3, max_rank=5, alpha=16.0):
    """An adapter whose B is not zero, as after training."""
    adapter = lora.init(jax.random.key(0), params["blocks"], projections, max_rank=max_rank, rank=rank, alpha=alpha)
    live = (np.arange(max_rank) < rank)[:, None]
    b = {name: live * jax.random.normal(jax.random.key(1), w.shape) for name, w in adapter.b.items()}
    return adapter.replace(b=b)


def altered(tmp_path: Path, *, config=None, tensors=None) -> Path:
    """A copy of an adapter that PEFT saved, after changes of its configuration and of its tensors."""
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "peft" / "llama32_qv", folder)
    raw = json.loads((folder / "adapter_config.json").read_text()) | (config or {})
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))
    if tensors:
        weights = load_file(folder / "adapter_model.safetensors")
        tensors(weights)
        save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("projections", [("q_proj", "v_proj"), PROJECTIONS])
def test_an_adapter_comes_back_the_same_at_its_own_rank(params, projections, tmp_path):
    adapter = trained(params, projections)
    save_peft(tmp_path, adapter, rank=3, base_model="some/model")
    found = load_peft(tmp_path, MODEL)
    assert sorted(found.a) == sorted(found.b) == sorted(projections)
    for name in projections:
        np.testing.assert_array_equal(found.a[name], adapter.a[name][:, :, :3])
        np.testing.assert_array_equal(found.b[name], adapter.b[name][:, :3])
    assert found.scale == adapter.scale == np.float32(16 / 3)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["base_model_name_or_path"]) == (3, 16.0, "some/model")


def test_files_mean_what_peft_means_by_them(params, tmp_path):
    """PEFT's rule, W + alpha / r · B A on its [out, in] weights, spelled out in NumPy on the files."""
    save_peft(tmp_path, trained(params), rank=3, base_model="")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    merged = lora.merge(params, load_peft(tmp_path, MODEL))
    for name in PROJECTIONS:
        for layer in range(MODEL.num_layers):
            a, b = (tensors[tensor_name(name, layer, side)] for side in "AB")
            weight = np.asarray(params["blocks"][name]["kernel"][layer]).T + 16 / 3 * b @ a
            np.testing.assert_allclose(merged["blocks"][name]["kernel"][layer], weight.T, atol=1e-4)
    assert "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight" in tensors
    assert "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight" in tensors


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank(tmp_path):
    assert load_peft(altered(tmp_path, config={"use_rslora": True}), MODEL).scale == np.float32(64 / 32**0.5)


@pytest.mark.parametrize(
    "option",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 4}},
        {"layers_to_transform": [0, 1]},
        {"fan_in_fan_out": True},
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [5]},
        {"task_type": "SEQ_CLS"},
        {"an_option_of_tomorrow": True},
    ],
)
def test_an_option_that_is_not_computed_is_refused(option, tmp_path):
    (field, value) = next(iter(option.items()))
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {field} = ") as error:
        load_peft(altered(tmp_path, config=option), MODEL)
    assert repr(value) in str(error.value)


def test_a_missing_field_is_named(tmp_path):
    with pytest.raises(ValueError, match="field 'lora_alpha' is missing"):
        load_peft(altered(tmp_path, config={"lora_alpha": ...}), MODEL)


Q1 = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(Q1), r"layers\.1\.self_attn\.q_proj\.lora_A\.weight' is missing"),
        (
            lambda t: t.update({Q1: np.ones((32, 31), np.float32)}),
            r"lora_A\.weight' is \(32, 31\), expected \(32, 32\)",
        ),
        (lambda t: t.update({Q1.replace(".1.", ".3."): t[Q1]}), r"1 tensors have no place in this model .*layers\.3\."),
        (lambda t: [t.clear(), t.update(x=np.ones(1))], r"no LoRA weights of .* found \['x'\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        load_peft(altered(tmp_path, tensors=change), MODEL)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_that_are_absent_or_no_such_files_are_named(name, tmp_path):
    file = altered(tmp_path) / name
    file.write_bytes(b"not this")
    with pytest.raises(ValueError, match=name):
        load_peft(file.parent, MODEL)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_peft(file.parent, MODEL)


def test_what_cannot_be_saved_as_one_adapter_is_refused(params, tmp_path):
    adapter = trained(params)
    with pytest.raises(ValueError, match=r"has weights past rank 2"):
        save_peft(tmp_path, adapter, rank=2, base_model="")
    with pytest.raises(ValueError, match="2 adapters; one folder holds one"):
        save_peft(tmp_path, lora.stack([adapter, adapter]), rank=3, base_model="")


def test_a_model_with_an_adapter_from_elsewhere_is_the_merged_model_and_the_model_stays_as_it_was(params, tmp_path):
    """To be evaluated, or to begin from; `params` are not changed by it."""
    save_peft(tmp_path, trained(params), rank=3, base_model="some/model")
    before = jax.tree.map(np.array, params)
    lm = with_peft(LanguageModel(graph(MODEL), params, None), tmp_path, MODEL)
    expected = lora.merge(params, trained(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), lm.params, expected)
    assert np.abs(lm.params["blocks"]["q_proj"]["kernel"] - before["blocks"]["q_proj"]["kernel"]).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, params, before)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json: not there"):
        with_peft(lm, tmp_path / "none", MODEL)


def test_an_adapter_can_be_trained_on_top_of_a_merged_one(params, tmp_path):
    """Merging one and then another is both added: what an adapter as the start means."""
    first, second = trained(params, ("q_proj",)), trained(params, ("q_proj", "o_proj"), rank=2)
    found = lora.merge(lora.merge(params, first), second)
    for name in ("q_proj", "o_proj"):
        parts = [a for a in (first, second) if name in a.a]
        change = sum(a.scale * np.einsum("ldr,lrf->ldf", a.a[name], a.b[name]) for a in parts)
        expected = np.asarray(params["blocks"][name]["kernel"]) + change
        np.testing.assert_allclose(found["blocks"][name]["kernel"], expected, atol=1e-4)


@pytest.mark.peers
def test_peft_loads_ours_and_computes_the_same_logits(params, tmp_path):
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from experiments import parity
    from experiments.benchmark import peers

    files = ModelFiles("llama32", "safetensors", GOLDEN / "llama32", "golden")
    adapter = trained(params)
    adapter = adapter.replace(b=jax.tree.map(lambda w: 0.1 * w, adapter.b))
    save_peft(tmp_path, adapter, rank=3, base_model=str(files.path))
    tokens = np.load(GOLDEN / "llama32" / "expected.npz")["tokens"][:64]
    base = peers.load(files)
    plain = peers.logits(base, tokens)
    theirs = peers.logits(peft.PeftModel.from_pretrained(base, tmp_path), tokens)
    ours = np.asarray(parity.logits(graph(MODEL), lora.merge(params, adapter), tokens[None]))[0]
    assert np.abs(theirs - plain).max() > 1  # the adapter does something
    assert np.abs(ours - theirs).max() < 1e-3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 0}, r"\$\.r: Expected `int` >= 1; found 0"),
        ({"r": None}, r"\$\.r: Expected `int`, got `null`"),
        ({"r": "32"}, r"\$\.r: Expected `int`, got `str`"),
        ({"lora_alpha": None}, r"\$\.lora_alpha: Expected `float`, got `null`"),
        ({"lora_alpha": float("nan")}, "lora_alpha is NaN"),
        ({"target_modules": ["q_proj"]}, "target_modules and the weights of .* differ in v_proj"),
    ],
)
def test_a_field_that_is_wrong_is_named(config, said, tmp_path):
    with pytest.raises(ValueError, match=rf"adapter_config\.json: .*{said}|{said}"):
        load_peft(altered(tmp_path, config=config), MODEL)


@pytest.mark.parametrize("content", ["[1]", '"x"', "[" * 100_000, '{"r": 1, "r": 2}'])
def test_a_configuration_that_is_none_is_refused(content, tmp_path):
    folder = altered(tmp_path)
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json: "):
        load_peft(folder, MODEL)


def test_fields_that_change_nothing_pass(tmp_path):
    idle = {"auto_mapping": {"unsloth_fixed": True}, "lora_dropout": 0.1, "peft_version": "1", "eva_config": {"rho": 2}}
    load_peft(altered(tmp_path, config=idle | {"inference_mode": True, "a_field_not_in_use": None}), MODEL)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(value, tmp_path):
    with pytest.raises(ValueError, match=rf"tensor '{Q1}' holds NaN or infinities"):
        load_peft(altered(tmp_path, tensors=lambda t: t[Q1].__setitem__((0, 0), value)), MODEL)


def test_a_tiny_alpha_is_kept(params, tmp_path):
    save_peft(tmp_path, trained(params, ("q_proj",), alpha=2e-5), rank=3, base_model="")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 2e-5


@pytest.mark.parametrize(
    ("base", "names", "refused"),
    [
        ("org/another", ["HuggingFaceTB/SmolLM2-135M-Instruct"], True),
        ("Qwen/Qwen3-4B", ["Qwen/Qwen3-4B"], False),
        ("unsloth/Qwen3-4B-bnb-4bit", ["Qwen/Qwen3-4B"], False),  # a copy in another format
        ("/home/me/my-model", ["Qwen/Qwen3-4B"], False),  # a path says nothing
        ("org/another", ["./my-model"], False),
        (None, ["Qwen/Qwen3-4B"], False),
    ],
)
def test_an_adapter_for_another_base_is_refused(base, names, refused, tmp_path):
    folder = altered(tmp_path, config={"base_model_name_or_path": base})
    if refused:
        with pytest.raises(ValueError, match="base_model_name_or_path = 'org/another', and the model is HuggingFaceTB"):
            load_peft(folder, MODEL, names)
    else:
        load_peft(folder, MODEL, names)


@pytest.mark.peers
def test_every_option_of_peft_is_in_the_table():
    peft = pytest.importorskip("peft")
    from seal_jax.io import fields

    written = {"r": 8, "lora_alpha": 8} | peft.LoraConfig(task_type="CAUSAL_LM").to_dict()
    known = {*fields.ADAPTER.record.__struct_fields__, *fields.ADAPTER.refused}
    missing = [
        n for n in written if n not in known and not any(fnmatch.fnmatchcase(n, p) for p in fields.ADAPTER.ignored)
    ]
    assert missing == []
