# mypy: disable-error-code="import-not-found"
"""A peer of the benchmark that trains many LoRA adapters at once, in JAX too: skyrl-tx 0.3.0.

Its pins differ from ours, so it is a program of its own, which `peer_process.Elsewhere` starts with `--peer-python`.
A line of JSON holds a method and its arguments, the next line the reply; the first error ends it.

It is used as fast as it goes: a sequence of every adapter is one batch, logits are not cut into chunks, and making
adapters is not timed. It has room for adapters on all seven projections and on the embedding, where A and B are 0 both
stay 0: it trains the projections that we train. It clips no gradients.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
from flax import nnx
from safetensors.numpy import load_file
from tx.tinker import types
from tx.tinker.backends import jax as tx

from . import process_memory

MEMORY_SHARE = 0.75  # of the memory that is available: past it an allocation fails, which ends this process alone
MICRO_BATCH = 1  # sequences: on a CPU `ragged_dot` makes a copy of all tokens for each adapter, for every projection
MLP = {"gate_proj", "up_proj", "down_proj"}
BASE = "base"  # its slot holds no adapter
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
tx.AutoTokenizer = SimpleNamespace(from_pretrained=lambda path: None)  # tokens are numbers

Step = Sequence[int | None]  # each adapter's sequence, None where it waits


class Bench:
    """A base model with `count` adapters; made anew for another number of them."""

    def __init__(self, model: str):
        self.model, self.count = model, 0
        self.backend: Any = None
        self.widths: set[int] = set()  # compiled
        self.compile_seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._count_compiling)

    def _count_compiling(self, event: str, duration_secs: float, **_: Any) -> None:
        self.compile_seconds += duration_secs if event.endswith("backend_compile_duration") else 0

    def start(self, *_: Any) -> dict[str, Any]:
        """The versions of what is being measured; the arguments are the command line's."""
        found = {f"{name} (skyrl-tx)": version(name) for name in ("jax", "flax", "optax")}
        return {"versions": {"skyrl-tx": version("skyrl-tx"), **found}, "seconds": 0, "peak": 0}

    def train(self, sequences: Any, order: Sequence[int], *given: Any) -> dict[str, Any]:
        """The losses of one self-edit, in the arguments of `peers.Bench.train`; its neighbour has other sequences."""
        *options, start = given
        return self.train_many([sequences, sequences[::-1]], [(i, i) for i in order], *options, start=start)

    def train_many(
        self, edits: Sequence[Sequence[Sequence[int]]], steps: Sequence[Step], projections: Sequence[str], rank: int,
        alpha: float, learning_rate: float, compile_only: bool = False, *, start: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Self-edits side by side, from fresh adapters or from copies of that of the folder `start`. Losses are the
        first one's."""
        self._reset(len(edits), projections, rank, alpha, start)
        batches = [_batch(edits, step) for step in steps]
        widths = [tx.round_up_seq_len(max(map(len, batch.all_input_ids))) for batch in batches]
        new = {width: k for k, width in enumerate(widths) if width not in self.widths}
        if not self.widths:  # every adapter's optimiser is compiled for itself
            k = next(k for k, step in enumerate(steps) if None not in step)
            new[widths[k]] = k
        for k in new.values():
            self._step(batches[k], steps[k], 0.0)
        self.widths.update(new)
        self._reset(len(edits), projections, rank, alpha, start)
        rates = [learning_rate * (1 - k / len(steps)) for k in range(len(steps))]
        began = time.perf_counter()
        losses = [] if compile_only else list(map(self._step, batches, steps, rates))
        seconds = time.perf_counter() - began
        held = jax.devices()[0].memory_stats()  # of a GPU, since the process began
        peak = held["peak_bytes_in_use"] if held else process_memory.peak()
        process_memory.forget_peak()
        real = sum(len(edits[e][i]) for step in steps for e, i in enumerate(step) if i is not None)
        return {
            "seconds": seconds,
            "losses": losses,
            "peak": peak,
            "padding": len(edits) * sum(widths) / real,
            "compile_seconds": self.compile_seconds,
            "note": f"{len(edits)} adapters, {len(steps)} steps, programs for {len(self.widths)} widths",
        }

    def _reset(self, count: int, projections: Sequence[str], rank: int, alpha: float, start: str | None) -> None:
        """Adapters as new, no gradient, and Adam's moments 0."""
        trained = {"train_attn": True, "train_mlp": not MLP.isdisjoint(projections)}
        configs = [types.LoraConfig(rank=rank, alpha=alpha, seed=e, **trained) for e in range(count)]
        if self.count != count:
            self.backend, self.count, self.widths, self.compile_seconds = None, count, set(), 0.0
            jax.clear_caches()
            sizes = {"max_lora_adapters": count + 1, "max_lora_rank": rank}
            options = tx.JaxBackendConfig(train_micro_batch_size=MICRO_BATCH, loss_chunk_size=0, **sizes)
            self.backend = tx.JaxBackendImpl(self.model, options)
            for e, config in enumerate(configs):
                self.backend.create_model(str(e), config)
            self.backend.models[BASE] = types.ModelMetadata(adapter_index=0, lora_config=configs[0])
        backend = self.backend
        tensors = {} if start is None else load_file(Path(start) / "adapter_model.safetensors")
        for e, config in enumerate(configs):
            tx.init_lora_adapter(backend.model, e + 1, config)
            backend.accumulated_grads = backend.accumulated_grads.reset_adapter(e + 1)
            for _, value in nnx.to_flat_state(nnx.state(backend.optimizers[str(e)])):
                value[...] = jax.numpy.zeros_like(value[...])
        for path, value in nnx.to_flat_state(backend.lora_params):
            *module, side = map(str, path)
            if module[-1] not in projections:
                value[...] = jax.numpy.zeros_like(value[...])
            elif tensors:
                tensor = tensors[".".join(("base_model.model", *module, side, "weight"))]
                value[...] = value[...].at[1:].set(tensor.T)

    def _step(self, batch: Any, step: Step, rate: float) -> float:
        """The first adapter's loss."""
        result = self.backend.forward_backward(batch)["0"].loss_fn_outputs[0]["elementwise_loss"]["data"]
        request = types.OptimStepInput(adam_params=types.AdamParams(learning_rate=rate, **ADAM))
        for e in (e for e, i in enumerate(step) if i is not None):
            self.backend.optim_step(str(e), request)
        jax.block_until_ready(jax.tree.leaves(self.backend.lora_params))
        return sum(result) / len(result)


def _batch(edits: Sequence[Sequence[Sequence[int]]], step: Step) -> Any:
    """A sequence of each adapter; in place of one that waits a token of no weight, for a batch keeps its size."""
    ids = [[0, 0] if i is None else edits[e][i] for e, i in enumerate(step)]
    names = [BASE if i is None else str(e) for e, i in enumerate(step)]
    zeros = [[0.0] * (len(own) - 1) for own in ids]
    weights = [[float(name != BASE)] * len(own) for name, own in zip(names, zeros, strict=True)]
    return types.PreparedModelPassBatch(
        all_input_ids=[own[:-1] for own in ids], all_targets=[own[1:] for own in ids], all_token_weights=weights,
        all_sampling_logprobs=zeros, all_advantages=zeros, all_model_ids=names, all_loss_fn_configs=[None] * len(ids),
        all_loss_fn_types=[types.LOSS_TYPES["cross_entropy"]] * len(ids),
        request_batch_slices=[(str(e), name, e, e + 1) for e, name in enumerate(names)],
    )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Answers until its input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    logging.disable(logging.CRITICAL)
    if arguments[1] == "cpu" and sys.platform == "linux":
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        resource.setrlimit(resource.RLIMIT_DATA, (int(MEMORY_SHARE * available),) * 2)
        Path("/proc/self/oom_score_adj").write_text("1000")  # and it is the first that the system would end
    bench = Bench(arguments[0])
    for line in sys.stdin:
        method, given = json.loads(line)
        try:
            reply = getattr(bench, method)(*given)
        except Exception as error:
            short = isinstance(error, MemoryError) or any(
                words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")
            )
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0], "short_of_memory": short}
        print(json.dumps(reply), file=replies, flush=True)
        if "error" in reply:
            os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
