"""Does this device compute what the CPU computes, on which all tests run? Training, answers, precision, attention."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from seal_jax.engine import training
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.nn import lora, transformer
from seal_jax.nn.lora import Adapter
from seal_jax.nn.transformer import Attention
from seal_jax.run import runtime
from seal_jax.types import PROJECTIONS, LanguageModel

from . import ours, workloads
from .bench import Bench

EDITS, EPOCHS, RANK = 6, 2, 8  # ragged self-edits, all projections
QUESTIONS, TOKENS = 2, 24  # of each adapter, answered greedily
EXACT = 2e-4  # largest difference of a loss, in nats, and of an adapter relative to its size: float32, other sums
ROUNDED = 0.1  # nats: bfloat16 against float32
SAME = 0.9  # of greedy answers, at the least: where two tokens are as likely rounding decides, and the rest differs
LINE = "{what:<62}{found:>11}{bound:>11}  {verdict}"


class Trained:
    """The same self-edits trained and asked on one device, in one precision."""

    def __init__(
        self, bench: Bench, device: Any, dtype: str, attention: Attention, *, only: int | None = None, ask: bool = False
    ):
        config = FineTuning(PROJECTIONS, RANK, alpha=2.0 * RANK, epochs=EPOCHS)
        seed, model = bench.settings.seed, bench.model
        edits = workloads.draw_tokens(workloads.seal(EDITS, seed=seed), model.vocab_size, seed=seed)
        params = jax.device_put(jax.tree.map(lambda w: w.astype(dtype), bench.lm.params), device)
        shown = jax.numpy.dtype("float32" if device.platform == "cpu" else dtype)  # as runtime.activations, there
        graph = transformer.graph(model, jax.numpy.dtype(dtype), attention, shown)
        lm = LanguageModel(graph, params, bench.lm.codec)
        chosen = slice(None) if only is None else slice(only, only + 1)
        with jax.default_device(device):
            trainer = ours.trainer(model, config, edits, EDITS)
            shapes = trainer.shapes._replace(widths=trainer.shapes.widths[-1:])  # few programs to compile
            self.adapters, self.losses = training.train(lm, edits[chosen], trainer._replace(shapes=shapes), seed=seed)
            self.answers = self._answer(lm, self.adapters, seed) if ask else None

    def _answer(self, lm: LanguageModel, adapters: Adapter, seed: int) -> np.ndarray:
        shape = (len(self.losses), QUESTIONS, workloads.QUESTION_TOKENS)
        vocabulary = lm.params["embed"]["embedding"].shape[0]
        prompts = np.random.default_rng([seed, 9]).integers(vocabulary, size=shape, dtype=np.int32)
        return np.asarray(ours.writer(lm, adapters, prompts, 1, Sampling(TOKENS, temperature=0), seed)().tokens)


def loss_difference(a: Trained, b: Trained) -> float:
    """The largest, in nats, over all steps of all adapters."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a.losses, b.losses, strict=True))


def adapter_difference(a: Adapter, b: Adapter) -> float:
    """The norm of the difference relative to the norm, of the matrix that differs most."""
    pairs = zip(jax.tree.leaves((a.a, a.b)), jax.tree.leaves((b.a, b.b)), strict=True)
    return max(float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in pairs)


def rows(bench: Bench) -> list[tuple[str, float, float]]:
    """What is compared, what was found, and the bound on it (of shares: from below, written negative)."""
    try:
        device, cpu = bench.devices[0], jax.devices("cpu")[0]
    except RuntimeError:
        raise ValueError("check compares with the CPU; let JAX_PLATFORMS name it too: cuda,cpu, or unset it") from None
    with jax.default_matmul_precision("highest"):
        there, here = (Trained(bench, where, "float32", "xla", ask=True) for where in (device, cpu))
        alone = Trained(bench, device, "float32", "xla", only=EDITS - 1)
    first = lora.take(there.adapters, slice(EDITS - 1, EDITS))
    found = [
        ("float32: losses against the CPU's, nats", loss_difference(there, here), EXACT),
        ("float32: adapters against the CPU's, relative", adapter_difference(there.adapters, here.adapters), EXACT),
        ("float32: greedy tokens that are the CPU's", -float(np.mean(there.answers == here.answers)), -SAME),
        ("float32: an adapter trained alone against in company", adapter_difference(alone.adapters, first), EXACT),
    ]
    kernels: set[Attention] = {"xla", runtime.attention("bfloat16", bench.model.head_dim)}
    for attention in sorted(kernels):
        rounded = Trained(bench, device, "bfloat16", attention)
        found.append((f"bfloat16, attention by {attention}: losses against float32, nats",
                      loss_difference(rounded, here), ROUNDED))  # fmt: skip
    return found


def show(bench: Bench) -> dict[str, Any]:
    """Prints what was compared.

    Raises:
        ValueError: a row out of bounds.
    """
    print(LINE.format(what=f"{bench.devices[0].device_kind} against the CPU", found="found", bound="bound", verdict=""))
    found = rows(bench)
    for what, value, bound in found:
        verdict = "" if value <= bound else "OUT OF BOUNDS"
        print(LINE.format(what=what, found=f"{abs(value):.2g}", bound=f"{abs(bound):.2g}", verdict=verdict).rstrip())
    wrong = [what for what, value, bound in found if not value <= bound]
    if wrong:
        raise ValueError(f"{bench.devices[0].device_kind} does not compute what the CPU computes: {'; '.join(wrong)}")
    return {"check": [dict(zip(("what", "found", "bound"), row, strict=True)) for row in found]}
