"""GGUF files that are written here hold what they should, by the gguf package's reader, ours, and llama.cpp itself."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from gguf import GGUFReader

from seal_jax.domains.passages import Question
from seal_jax.io import gguf_export, hub, peft
from seal_jax.io.weights import load_model, read_shape
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.run import runtime
from seal_jax.run.adapted import load_adapted
from tests.test_weights import GGUF_NAMES, gguf_files, permute, write_gguf

CHECKPOINTS = ("llama2", "llama32", "qwen2", "qwen3")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "down_proj")


def adapter_of(config, params, rank: int = 3, scale: float = 1.5) -> Adapter:
    """One whose B is not zero."""
    fresh = lora.init(jax.random.key(0), params["blocks"], PROJECTIONS, max_rank=rank, rank=rank, alpha=scale * rank)
    keys = dict(zip(fresh.b, jax.random.split(jax.random.key(1), len(fresh.b)), strict=True))
    return fresh.replace(b={name: jax.random.normal(keys[name], b.shape) for name, b in fresh.b.items()})


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_adapter_holds_what_it_adds_to_each_matrix(name, tmp_path):
    config, params = load_model(gguf_files(write_gguf(tmp_path / "base.gguf", name)))
    adapter = adapter_of(config, params)
    gguf_export.save_adapter(tmp_path / "a.gguf", adapter, config, name="lamp")
    reader = GGUFReader(tmp_path / "a.gguf")
    said = {key: reader.fields[key].contents() for key in ("general.type", "adapter.type", "general.architecture")}
    kind = GGUFReader(tmp_path / "base.gguf").fields["general.architecture"].contents()
    assert said == {"general.type": "adapter", "adapter.type": "lora", "general.architecture": kind}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert len(tensors) == 2 * len(PROJECTIONS) * config.num_layers
    names = {theirs.rpartition(".")[2]: ours for theirs, ours in GGUF_NAMES.items()}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    for projection in PROJECTIONS:
        for layer in range(config.num_layers):
            a, b = (tensors.pop(f"blk.{layer}.{names[projection]}.weight.lora_{side}") for side in "ab")
            added = alpha / len(a) * b @ a  # as llama.cpp has it
            expected = np.asarray(adapter.scale * adapter.a[projection][layer] @ adapter.b[projection][layer]).T
            if kind == "llama" and projection in ("q_proj", "k_proj"):
                expected = permute(expected, config.num_heads if projection == "q_proj" else config.num_kv_heads)
            np.testing.assert_allclose(added, expected, atol=1e-5)
    assert not tensors


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_merged_model_is_read_back_with_all_its_metadata(name, tmp_path):
    base = write_gguf(tmp_path / "base.gguf", name, metadata={"general.name": "base", "tokenizer.ggml.pre": "qwen2"})
    config, params = load_model(gguf_files(base))
    merged = lora.merge(params, adapter_of(config, params))
    gguf_export.save_model(tmp_path / "merged.gguf", config, merged, base)
    again, found = load_model(gguf_files(tmp_path / "merged.gguf"))
    assert dataclasses.asdict(again) == dataclasses.asdict(config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, merged)
    fields = GGUFReader(tmp_path / "merged.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "qwen2"
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_base_that_is_no_gguf_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no GGUF file.*--to merged, and convert that with llama\.cpp's"):
        gguf_export.save_model(
            tmp_path / "m.gguf", read_shape(gguf_files(write_gguf(tmp_path / "b", "qwen2"))), {}, tmp_path
        )


@pytest.mark.peers
def test_llama_cpp_answers_as_we_do(tmp_path):
    """SmolLM2 in half precision: with the adapter beside it, and merged into it. By hand, after `pip install
    xllamacpp==2026.10.11549` (llama.cpp as a wheel): its kernels are another CPU's on another machine."""
    llama = pytest.importorskip("xllamacpp")
    speaker = runtime.load("smollm2-135m", dtype="float32", style="auto", devices=1)
    config, params, base = speaker.model, speaker.lm.params, hub.find_model("smollm2-135m").path
    adapter = adapter_of(config, params, scale=0.5)
    peft.save_peft(tmp_path / "peft", adapter, rank=3, base_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    adapted = load_adapted(tmp_path / "peft", "smollm2-135m", speaker=speaker)
    gguf_export.save_adapter(tmp_path / "adapter.gguf", adapter, config, name="random")
    gguf_export.save_model(tmp_path / "plain.gguf", config, params, base)
    gguf_export.save_model(tmp_path / "merged.gguf", config, adapted.merged(), base)
    questions = ["Who wrote Hamlet?", "What is the capital of France?", "How many legs has a spider?"]
    prompts = [str(query.prompt) for query in adapted.queries([Question(question, "") for question in questions])]

    def answers(model: str, *adapters: str) -> list[str]:
        settings = llama.CommonParams()
        settings.model.path, settings.n_ctx, settings.warmup = str(tmp_path / model), 512, False
        settings.lora_adapters = [llama.CommonAdapterLoraInfo(str(tmp_path / name), 1.0) for name in adapters]
        server = llama.Server(settings)
        said = [
            server.handle_completions({"prompt": prompt, "max_tokens": 24, "temperature": 0, "cache_prompt": False})
            for prompt in prompts
        ]
        return [one["choices"][0]["text"].strip() for one in said]

    ours = dataclasses.replace(adapted, answer_tokens=24).ask_all(questions)
    assert answers("plain.gguf") == [answer.before for answer in ours]
    after = [answer.after for answer in ours]
    assert answers("plain.gguf", "adapter.gguf") == answers("merged.gguf") == after
    assert after != [answer.before for answer in ours]
