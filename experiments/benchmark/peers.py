# mypy: disable-error-code="import-not-found"
"""The other side of parity and of the benchmark: what transformers and peft compute with torch (extra `peers`).

Imported only where torch is installed: by the live half of `experiments.parity`, by the tests marked `peers`, by
`tests/golden/make_peft.py`, and by the benchmark's peer processes (`experiments.benchmark.peer_process`). Nothing here
needs JAX.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config, get_scheduler
from transformers.utils import logging

from . import process_memory

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from seal_jax.io.hub import ModelFiles

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


# ---------------------------------------------------------------------------------------------------------------------
# The benchmark: the same work, done as well as PEFT and transformers do it, one self-edit after another


class Machine(NamedTuple):
    """Where and how the peer runs."""

    device: str  # cpu or cuda
    dtype: str  # of the base model: float32 or bfloat16; PEFT keeps adapters in float32
    threads: int  # on a CPU, at the most


class Answering(NamedTuple):
    """One way of having transformers answer."""

    merged: bool  # the adapter is folded into the weights first, and taken out again afterwards
    cache: str | None  # transformers' cache implementation: None grows, "static" compiles on a GPU


ANSWERING = {
    "cpu": (Answering(False, None), Answering(True, None)),
    "cuda": (Answering(True, None), Answering(True, "static")),
}


def random_model(shape: dict[str, Any], machine: Machine) -> Any:
    """A model of this `ModelConfig` (as a dict) with random weights: what they are does not change the time."""
    kind = Qwen3Config if shape["qk_norm"] else Qwen2Config if shape["qkv_bias"] else LlamaConfig
    heads = {} if kind is Qwen2Config else {"head_dim": shape["head_dim"]}
    config = kind(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"],
        max_position_embeddings=shape["context_length"],
        rms_norm_eps=shape["rms_norm_eps"],
        tie_word_embeddings=shape["tie_embeddings"],
        rope_theta=shape["rope_theta"],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **heads,
    )
    with torch.device(machine.device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, machine.dtype), attn_implementation="sdpa"
        )
    return model.eval()  # no dropout anywhere


class Bench:
    """A base model that trains one adapter after another, and answers with it.

    Seconds are those of the work itself, the device waited for; peak memory is the process's, on a GPU torch's.
    """

    def __init__(self, shape: dict[str, Any], machine: Machine):
        if machine.device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch finds no GPU where JAX does: install a CUDA build of torch")
        warnings.filterwarnings("ignore")  # of the libraries to their own callers
        torch.set_num_threads(machine.threads)
        torch.set_float32_matmul_precision("high" if machine.device == "cuda" else "highest")
        torch.manual_seed(0)
        self.machine = machine
        self.model = random_model(shape, machine)
        self.adapted: Any = None
        self.targets: tuple[tuple[str, ...], int] | None = None
        self.threads: int | None = None  # the best number, once found
        self.answering: Answering | None = None
        self.forms: dict[str, float] = {}

    def versions(self) -> dict[str, str]:
        """Of what is being measured."""
        import peft
        import transformers

        return {"torch": torch.__version__, "peft": peft.__version__, "transformers": transformers.__version__}

    def _seconds(self, work: Callable[[], Any]) -> tuple[float, Any]:
        self._wait()
        start = time.perf_counter()
        result = work()
        self._wait()
        return time.perf_counter() - start, result

    def _wait(self) -> None:
        if self.machine.device == "cuda":
            torch.cuda.synchronize()

    def _adapt(self, projections: tuple[str, ...], rank: int, alpha: float) -> None:
        """Puts a LoRA on these projections, if it is not there yet. Not timed."""
        if self.targets == (projections, rank):
            return
        if self.adapted is not None:
            self.model = self.adapted.unload()
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(projections), task_type="CAUSAL_LM")
        self.adapted, self.targets = get_peft_model(self.model, config).eval(), (projections, rank)
        self.threads = None  # to be found out anew

    def train(
        self,
        sequences: Sequence[Sequence[int]],
        order: Sequence[int],
        projections: tuple[str, ...],
        rank: int,
        alpha: float,
        learning_rate: float,
        pad_to: int | None = None,
    ) -> dict[str, Any]:
        """One self-edit from a fresh adapter: as `fine_tune` above, but the loss is read once, at the end.

        With `pad_to` every sequence is padded to that length and the pads are trained on, as the paper's code does. The
        first call on new projections, which is no measurement, also finds out with how many threads a CPU is fastest:
        for a small model, or on a busy machine, one can beat two by far.
        """
        self._adapt(projections, rank, alpha)
        device = self.machine.device

        def row(ids: Sequence[int]) -> dict[str, Any]:
            if pad_to is None:
                tokens = torch.tensor([list(ids)], device=device)
                return {"input_ids": tokens, "labels": tokens}
            tokens = torch.tensor([[*ids, *[0] * (pad_to - len(ids))]], device=device)
            mask = torch.tensor([[1] * len(ids) + [0] * (pad_to - len(ids))], device=device)
            return {"input_ids": tokens, "attention_mask": mask, "labels": tokens}

        def work() -> float:
            for module in self.adapted.modules():
                if hasattr(module, "reset_lora_parameters"):
                    module.reset_lora_parameters("default", True)
            weights = [w for w in self.adapted.parameters() if w.requires_grad]
            # On a CPU the fused form was slower than the default, foreach (230 against 261 ms a step of SmolLM2).
            adamw = torch.optim.AdamW(
                weights, lr=learning_rate, weight_decay=0.0, fused=True if device == "cuda" else None
            )
            schedule = get_scheduler("linear", adamw, num_warmup_steps=0, num_training_steps=len(order))
            rows = [row(ids) for ids in sequences]
            loss = torch.zeros(())
            for i in order:
                loss = self.adapted(**rows[i]).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                adamw.step()
                schedule.step()
                adamw.zero_grad()
            return loss.item()

        if self.threads is None and pad_to is None:
            self.threads = self._best_threads(work)
        seconds, loss = self._seconds(work)
        return {"seconds": seconds, "loss": loss, "peak": self._peak(), "threads": torch.get_num_threads()}

    def _best_threads(self, work: Callable[[], Any]) -> int:
        tried = {}
        if self.machine.device == "cpu" and self.machine.threads > 1:
            work()
            for threads in (self.machine.threads, (self.machine.threads + 1) // 2):
                torch.set_num_threads(threads)
                tried[threads] = min(self._seconds(work)[0] for _ in range(2))
        best = min(tried, key=tried.__getitem__, default=self.machine.threads)
        torch.set_num_threads(best)
        return best

    def decode(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> dict[str, Any]:
        """All questions of one adapter as one batch, greedy, each for the full `max_tokens`.

        The first call tries the ways of `ANSWERING`, and the fastest is used from then on.
        """
        if self.answering is None:
            self.answering = self._fastest(prompts, max_tokens)
        return {"seconds": self._answer(self.answering, prompts, max_tokens), "forms": self.forms, "peak": self._peak()}

    def _fastest(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Answering:
        tried: dict[Answering, float] = {}
        for form in ANSWERING[self.machine.device]:
            try:
                self._answer(form, prompts, max_tokens)  # compiles, where it compiles
                tried[form] = self._answer(form, prompts, max_tokens)
            except Exception as error:  # a way that this machine has no compiler for, say: the others are left
                print(f"peer: {form} failed ({type(error).__name__})", file=sys.stderr)
        if not tried:
            raise RuntimeError("transformers could not generate in any of the ways tried")
        for form, seconds in tried.items():
            self.forms[f"{'merged' if form.merged else 'unmerged'}, {form.cache or 'growing'} cache"] = seconds
        return min(tried, key=tried.__getitem__)

    def _answer(self, form: Answering, prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.machine.device)

        def work() -> Any:
            if form.merged:
                self.adapted.merge_adapter()
            try:
                return self._generate(
                    self.adapted, ids, max_new_tokens=max_tokens, do_sample=False, cache_implementation=form.cache
                )
            finally:
                if form.merged:
                    self.adapted.unmerge_adapter()

        return self._seconds(work)[0]

    def sample(self, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int, top_p: float) -> dict[str, Any]:
        """`samples` completions of each prompt by the base model, as one batch, at temperature 1."""
        if self.adapted is not None:
            self.model, self.adapted, self.targets = self.adapted.unload(), None, None
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.machine.device)
        seconds, _ = self._seconds(
            lambda: self._generate(
                self.model,
                ids,
                max_new_tokens=max_tokens,
                do_sample=True,
                temperature=1.0,
                top_p=top_p,
                top_k=0,
                num_return_sequences=samples,
            )
        )
        return {"seconds": seconds, "peak": self._peak()}

    @staticmethod
    def _generate(model: Any, ids: Any, *, max_new_tokens: int, **options: Any) -> Any:
        model.generation_config.eos_token_id = None
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, max_new_tokens=max_new_tokens, **options
        )
        assert written.shape[1] == ids.shape[1] + max_new_tokens, "it ended early"
        return written

    def _peak(self) -> int:
        """Bytes at the most since the last call."""
        if self.machine.device == "cuda":
            most = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            most = process_memory.peak()
            process_memory.forget_peak()
        return most
