"""Makes the small random checkpoints beside this script, and what transformers computes with them.

    python tests/golden/make_checkpoints.py      (torch 2.13.0 on CPU, transformers 5.23.0; seconds)

Each folder holds a checkpoint as `save_pretrained` writes it and `expected.npz`: tokens [2,048], logits [positions, V]
at `positions`, and the greedy continuation of the first 48 tokens, all in float32. Norms and biases are moved off their
trivial initial values, so that leaving one out shows.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 131_072,
    "initializer_range": 0.2,  # large enough for attention to be far from uniform
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
PLAIN = {"rope_type": "default", "rope_theta": 1_000_000.0}

CHECKPOINTS = {
    # Llama 3.2: scaled RoPE, grouped queries, tied head
    "llama32": (
        LlamaForCausalLM,
        LlamaConfig(**SHAPE, num_key_value_heads=2, head_dim=16, rope_parameters=LLAMA3, tie_word_embeddings=True),
        torch.float32,
    ),
    # Llama 2: every head its own keys, linearly scaled RoPE, untied head
    "llama2": (
        LlamaForCausalLM,
        LlamaConfig(**SHAPE, num_key_value_heads=4, rope_parameters=LINEAR, tie_word_embeddings=False),
        torch.float32,
    ),
    # Qwen2: biases on q, k, v; saved in bfloat16, in shards
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**SHAPE, num_key_value_heads=2, rope_parameters=PLAIN, tie_word_embeddings=False),
        torch.bfloat16,
    ),
    # Qwen3: norms of queries and keys, heads wider than width / heads
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SHAPE, num_key_value_heads=1, head_dim=16, rope_parameters=PLAIN, tie_word_embeddings=True),
        torch.float32,
    ),
}


def main() -> None:
    for seed, (name, (architecture, config, dtype)) in enumerate(CHECKPOINTS.items()):
        torch.manual_seed(seed)
        model = architecture(config).eval()
        with torch.no_grad():
            for path, weight in model.named_parameters():
                if path.endswith("bias"):
                    weight.normal_(0, 0.5)
                elif "norm" in path:
                    weight.add_(0.3 * torch.randn_like(weight))
        shutil.rmtree(HERE / name, ignore_errors=True)
        model.to(dtype).save_pretrained(HERE / name, max_shard_size="40KB" if name == "qwen2" else "1GB")

        model = architecture.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager").eval()
        tokens = torch.randint(3, config.vocab_size, (1, 2048))
        positions = np.array([*range(0, 2048, 64), 2000, 2047])
        with torch.no_grad():
            logits = model(tokens).logits[0, positions]
            greedy = model.generate(tokens[:, :48], max_new_tokens=32, do_sample=False, eos_token_id=None)[0, 48:]
        np.savez_compressed(
            HERE / name / "expected.npz",
            tokens=tokens[0].numpy().astype(np.int32),
            positions=positions.astype(np.int32),
            logits=logits.numpy(),
            greedy=greedy.numpy().astype(np.int32),
        )
        print(
            f"{name}: largest logit {logits.abs().max():.2f}, spread {logits.std():.2f}, greedy {greedy[:8].tolist()}"
        )


if __name__ == "__main__":
    main()
