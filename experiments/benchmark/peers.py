# mypy: disable-error-code="import-not-found"
"""The other side of parity and of the benchmark: what transformers and peft compute with torch (extra `peers`).

Imported only where torch is installed: by the live half of `experiments.parity`, by the tests marked `peers`, by
`tests/golden/make_peft.py`, and in the benchmark's peer processes. Nothing here needs JAX.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_scheduler
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
    return _generate(model, torch.tensor([list(prompt)]), max_tokens)[0, len(prompt) :].tolist()


def _generate(model: Any, ids: Any, max_tokens: int, **options: Any) -> Any:
    """Greedy by default; `options` are `generate`'s."""
    model.generation_config.eos_token_id = None
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": max_tokens, **options}
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    assert written.shape[1] == ids.shape[1] + max_tokens, "it ended early"
    return written


def _take_steps(
    adapted: Any, rows: Sequence[dict[str, Any]], order: Sequence[int], learning_rate: float
) -> list[float]:
    """The loss before each step, on one sequence a step: the reference's inner loop (the paper's section B.1).

    AdamW without decay, a linear decay to 0 over the steps, gradients clipped to a norm of 1.
    """
    weights = [w for w in adapted.parameters() if w.requires_grad]
    # On a CPU the fused form was slower than the default, foreach (230 against 261 ms a step of SmolLM2).
    adamw = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0, fused=weights[0].is_cuda or None)
    schedule = get_scheduler("linear", adamw, num_warmup_steps=0, num_training_steps=len(order))
    losses = []
    for i in order:
        loss = adapted(**rows[i]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()  # read once, at the end: reading waits for a GPU


def _lora(projections: Sequence[str], rank: int, alpha: float) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(projections), task_type="CAUSAL_LM")


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
    """PEFT's loss before each step. The adapter as PEFT initialises it from `seed` is saved under `start`, without what
    differs between machines and runs; `model` is left without any."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, _lora(projections, rank, alpha))
    adapted.save_pretrained(start)
    (start / "README.md").unlink()  # a model card with nothing in it
    (start / "adapter_model.safetensors").chmod(0o644)
    file = start / "adapter_config.json"
    saved = json.loads(file.read_text())
    saved["base_model_name_or_path"] = None  # a path
    saved["target_modules"].sort()  # was a set
    file.write_text(json.dumps(saved, indent=2) + "\n")
    rows = [{"input_ids": ids, "labels": ids} for ids in (torch.tensor([list(sequence)]) for sequence in sequences)]
    losses = _take_steps(adapted, rows, order.tolist(), learning_rate)
    adapted.unload()
    return np.array(losses, np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The benchmark: the same work, done as well as PEFT and transformers do it, one self-edit after another


CACHES = {"cpu": (None,), "cuda": (None, "static")}  # of transformers: None grows, "static" compiles on a GPU


class Bench:
    """A base model that trains one adapter after another, and answers with it.

    `model` is a folder, `dtype` its precision (PEFT keeps adapters in float32), `threads` the most on a CPU. Seconds
    are those of the work itself, the device waited for; peak memory is the process's, on a GPU torch's.
    """

    def __init__(self, model: str, device: str, dtype: str, threads: int):
        if device == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch finds no GPU where JAX does: install a CUDA build of torch")
        warnings.filterwarnings("ignore")  # of the libraries to their own callers
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
        torch.manual_seed(0)
        self.device, self.most_threads = device, threads
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        self.model = loaded.to(device).eval()  # no dropout anywhere
        self.adapted: Any = None
        self.targets: tuple[Any, ...] | None = None
        self.threads: int | None = None  # the best number, once found
        self.tried: dict[str | None, float] = {}  # seconds with each cache

    def versions(self) -> dict[str, Any]:
        """Of what is being measured."""
        modules = (torch, peft, transformers)
        return {"versions": {module.__name__: str(module.__version__) for module in modules}, "seconds": 0.0, "peak": 0}

    def _seconds(self, work: Callable[[], Any]) -> tuple[float, Any]:
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        start = time.perf_counter()
        result = work()
        wait()
        return time.perf_counter() - start, result

    def train(
        self,
        sequences: Sequence[Sequence[int]],
        order: Sequence[int],
        projections: tuple[str, ...],
        rank: int,
        alpha: float,
        learning_rate: float,
        start: str | None = None,
    ) -> dict[str, Any]:
        """One self-edit, from a fresh adapter or from that of the folder `start`.

        The first call on new projections, which is no measurement, also finds out with how many threads a CPU is
        fastest: for a small model, or on a busy machine, one can beat two by far.
        """
        if self.targets != (projections, rank):  # not timed
            base = self.model if self.adapted is None else self.adapted.unload()
            self.adapted, self.targets = (
                get_peft_model(base, _lora(projections, rank, alpha)).eval(),
                (projections, rank),
            )
            self.threads = None

        def work() -> list[float]:
            if start is not None:
                peft.set_peft_model_state_dict(self.adapted, peft.load_peft_weights(start, device=self.device))
            for module in self.adapted.modules() if start is None else ():
                if hasattr(module, "reset_lora_parameters"):
                    module.reset_lora_parameters("default", True)
            tokens = [torch.tensor([list(ids)], device=self.device) for ids in sequences]
            rows = [{"input_ids": ids, "labels": ids} for ids in tokens]
            return _take_steps(self.adapted, rows, order, learning_rate)

        if self.threads is None:
            self.threads = self._best_threads(work)
        seconds, losses = self._seconds(work)
        threads = f"{torch.get_num_threads()} threads a process, " if self.device == "cpu" else ""
        return {
            "seconds": seconds,
            "losses": losses,
            "peak": self._peak(),
            "note": f"{threads}{len(order)} steps timed",
        }

    def _best_threads(self, work: Callable[[], Any]) -> int:
        tried = {}
        if self.device == "cpu" and self.most_threads > 1:
            work()
            for threads in (self.most_threads, (self.most_threads + 1) // 2):
                torch.set_num_threads(threads)
                tried[threads] = min(self._seconds(work)[0] for _ in range(2))
        best = min(tried, key=tried.__getitem__, default=self.most_threads)
        torch.set_num_threads(best)
        return best

    def decode(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> dict[str, Any]:
        """All questions of one adapter as one batch, greedy, each for the full `max_tokens`.

        The adapter is folded into the weights first and taken out again afterwards, which was faster wherever both were
        timed. The first call tries all `CACHES`, and the fastest is used from then on.
        """
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.device)

        def answer(cache: str | None) -> None:
            self.adapted.merge_adapter()
            try:
                _generate(self.adapted, ids, max_tokens, cache_implementation=cache)
            finally:
                self.adapted.unmerge_adapter()

        for cache in () if self.tried else CACHES[self.device]:
            try:
                answer(cache)  # compiles, where it compiles
                self.tried[cache], _ = self._seconds(partial(answer, cache))
            except Exception as error:  # no compiler on this machine, say: the others remain
                print(f"peer: cache {cache} failed ({type(error).__name__})", file=sys.stderr)
        if not self.tried:
            raise RuntimeError("transformers could not generate with any cache")
        best = min(self.tried, key=self.tried.__getitem__)
        seconds, _ = self._seconds(partial(answer, best))
        return {"seconds": seconds, "peak": self._peak(), "note": f"adapter merged, {best or 'growing'} cache"}

    def sample(self, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int, top_p: float) -> dict[str, Any]:
        """`samples` completions of each prompt by the base model, as one batch, at temperature 1."""
        if self.adapted is not None:
            self.model, self.adapted, self.targets = self.adapted.unload(), None, None
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.device)
        options = {"do_sample": True, "temperature": 1.0, "top_p": top_p, "top_k": 0, "num_return_sequences": samples}
        seconds, _ = self._seconds(lambda: _generate(self.model, ids, max_tokens, **options))
        return {"seconds": seconds, "peak": self._peak(), "note": ""}

    def _peak(self) -> int:
        """Bytes at the most since the last call."""
        if self.device == "cuda":
            most = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            most = process_memory.peak()
            process_memory.forget_peak()
        return most
