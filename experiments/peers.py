# mypy: disable-error-code="import-not-found"
"""The other side of parity: what transformers and peft compute, with torch on a CPU (extra `peers`).

Imported only where torch is installed: by the live half of `experiments.parity`, by the tests marked `peers`, and by
`tests/golden/make_peft.py`. Nothing here needs JAX.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_scheduler
from transformers.utils import logging

from seal_jax.models.hub import ModelFiles

logging.disable_progress_bar()
torch.set_num_threads(1)  # for models this small; on a busy machine of 2 cores a second thread made it 10 x slower


def load(files: ModelFiles) -> Any:
    """Transformers' own reading of a checkpoint, in float32."""
    folder, gguf_file = (files.path.parent, files.path.name) if files.kind == "gguf" else (files.path, None)
    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf_file, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def logits(model: Any, tokens: Int[np.ndarray, "T"]) -> Float[np.ndarray, "T V"]:
    """Next-token logits after each token."""
    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens, np.int64)[None])).logits[0].numpy()


def greedy(model: Any, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The `max_tokens` likeliest next tokens, one after another, with transformers' cache. Nothing ends them early."""
    ids = torch.tensor([list(prompt)])
    model.generation_config.eos_token_id = None
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    return written[0, ids.shape[1] :].tolist()


def fine_tune(
    model: Any,
    sequences: Sequence[Sequence[int]],
    order: Int[np.ndarray, "S"],
    *,
    projections: Sequence[str],
    rank: int,
    alpha: int,
    learning_rate: float,
    start: Path,
    seed: int = 0,
) -> Float[np.ndarray, "S"]:
    """PEFT's loss before each step, on one sequence a step: the reference's inner loop (the paper's section B.1).

    AdamW without decay, a linear decay to 0 over the steps, gradients clipped to a norm of 1. The adapter as PEFT
    initialises it from `seed` is saved under `start`; `model` is left without any.
    """
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(projections), task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(start)
    _tidy(start)
    weights = [w for w in adapted.parameters() if w.requires_grad]
    adamw = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    schedule = get_scheduler("linear", adamw, num_warmup_steps=0, num_training_steps=len(order))
    losses = []
    for row in order:
        ids = torch.tensor([list(sequences[row])])
        loss = adapted(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        losses.append(loss.item())
    adapted.unload()
    return np.array(losses, np.float32)


def _tidy(folder: Path) -> None:
    """Leaves out of a saved adapter what differs between machines and runs."""
    (folder / "README.md").unlink()  # a model card with nothing in it
    (folder / "adapter_model.safetensors").chmod(0o644)
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text())
    saved["base_model_name_or_path"] = None  # a path
    saved["target_modules"].sort()  # was a set
    file.write_text(json.dumps(saved, indent=2) + "\n")
