"""Makes the inner-loop goldens under peft/: PEFT's initial adapter, the order of sequences, and its loss at every step.

    python -m tests.golden.make_peft      (after `make parity` has installed torch 2.13.0 and peft 0.21.2; seconds)

80 steps: 8 sequences of 9 to 40 tokens in another order each of 10 epochs, batch 1. `adapter_model.safetensors` and
`adapter_config.json` are as PEFT saves them; `expected.npz` holds tokens [8, 40], longest first, their lengths, order
[80] and losses [80].
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from experiments.benchmark import peers
from seal_jax.io.hub import ModelFiles

HERE = Path(__file__).parent
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CASES = [
    ("llama32", "qv", ("q_proj", "v_proj"), 32, 64),
    ("llama32", "all", ALL, 8, 16),
    ("qwen2", "qv", ("q_proj", "v_proj"), 32, 64),
    ("qwen2", "all", ALL, 8, 16),
]


def main() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([40, 37, 33, 26, 21, 17, 12, 9], np.int32)
    tokens = rng.integers(3, 128, (8, 40), np.int32) * (np.arange(40) < lengths[:, None])
    sequences = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
    order = np.concatenate([rng.permutation(8) for _ in range(10)]).astype(np.int32)
    for seed, (name, which, projections, rank, alpha) in enumerate(CASES):
        folder = HERE / "peft" / f"{name}_{which}"
        shutil.rmtree(folder, ignore_errors=True)
        model = peers.load(ModelFiles(name, "safetensors", HERE / name, "golden"))
        losses = peers.fine_tune(
            model,
            sequences,
            order,
            projections=projections,
            rank=rank,
            alpha=alpha,
            learning_rate=1e-3,
            start=folder,
            seed=seed,
        )
        np.savez_compressed(folder / "expected.npz", tokens=tokens, lengths=lengths, order=order, losses=losses)
        print(f"{folder.name}: loss {losses[:8].mean():.3f} in the first epoch, {losses[-8:].mean():.3f} in the last")


if __name__ == "__main__":
    main()
