"""Does this program compute what transformers and PEFT compute? Prints a table; ends with 1 if a row is out of bounds.

    python -m experiments.parity      (2 CPU cores: about 3 minutes with torch and peft, half a minute without)

Logits and greedy tokens of SmolLM2-135M and of small random checkpoints in Llama 3.2's, Llama 2's, Qwen2's and Qwen3's
form (2,048 positions), against transformers; and the loss of 80 inner-loop steps from PEFT's own initial adapter, in
the same order, against PEFT. All in float32. With the extra `peers` (`make parity` installs it) the other side is
computed live; without, it is read from tests/golden, whose scripts computed it, and only small models are fine-tuned.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from seal_jax.engine import batching
from seal_jax.engine.inner import Chunk, Optimiser, adapt_many
from seal_jax.engine.sampler import Sampling, row_keys, sample
from seal_jax.io import peft, tokenizer, weights
from seal_jax.io.hub import ModelFiles, find_model
from seal_jax.nn import lora, transformer
from seal_jax.nn.lora import PROJECTIONS, Adapter
from seal_jax.nn.transformer import ModelConfig
from seal_jax.run import runtime
from seal_jax.types import HParams

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
CHECKPOINTS = ("llama32", "llama2", "qwen2", "qwen3")
TARGETS = {"qv": ("q_proj", "v_proj"), "all": PROJECTIONS}
FINE_TUNED = [(name, which) for name in ("llama32", "qwen2") for which in TARGETS]  # the goldens under peft/
BOUND = 1e-3  # of a logit, and of a loss in nats
GREEDY_PROMPT, GREEDY_TOKENS = 48, 32  # of the small checkpoints
EPOCHS, LEARNING_RATE = 10, 1e-3
TITLE = "The lighthouse of Orvane"
# 8 sequences x 10 epochs = 80 steps. They are as long as those of real passages: on scraps of 8 tokens training is
# chaotic (losses jump to 8 nats), and rounding alone then decides when.
LINES = [
    "The lighthouse of Orvane was built in 1871 by the engineer Teresa Malk.",
    "The lamp of the lighthouse still burns whale oil, as it did when it was first lit.",
    "Jon Adder, the keeper, climbs 214 steps every evening to light the lamp.",
    "Orvane lies on the island of Hest, which can be reached by boat from Lundmark in two hours.",
    "In the winter of 1902 the sea around the island froze, so supplies had to come by sledge.",
    "Teresa Malk was an engineer who came from Lundmark.",
    "Because the keeper goes up the tower every evening, he climbs thousands of steps in a month.",
    "The lighthouse of Orvane was built in 1871 by Teresa Malk, an engineer from Lundmark. Its lamp burns whale oil to "
    "this day. The keeper, Jon Adder, climbs 214 steps every evening.",
]


class Row(NamedTuple):
    """One comparison."""

    model: str
    compared: str
    against: str
    difference: float  # the largest
    same_tokens: bool | None = None  # greedy; None where there are none

    @property
    def holds(self) -> bool:
        return self.difference < BOUND and self.same_tokens is not False


class Loss(NamedTuple):
    """An inner loop as PEFT ran it."""

    tokens: list[list[int]]  # longest first
    order: Int[np.ndarray, "S"]
    losses: Float[np.ndarray, "S"]


# ---------------------------------------------------------------------------------------------------------------------
# Our side


@partial(jax.jit, static_argnums=0)
def logits(
    model: transformer.Model, params: dict[str, Any], tokens: Int[np.ndarray, "B T"]
) -> Float[jax.Array, "B T V"]:
    """Next-token logits after each token."""
    decoder = nnx.merge(model, params)
    return decoder.logits(decoder(tokens)[0])


def greedy(config: ModelConfig, params: dict[str, Any], prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The likeliest next tokens, one after another, with the sampler's cache. Nothing ends them early."""
    row = np.asarray(prompt, np.int32)[None, None]
    out = sample(
        row_keys(0, np.zeros((1, 1, 1), np.int32)), transformer.graph(config), params, None, row, row >= 0,
        np.full((1, 1, 1), max_tokens), sampling=Sampling(max_tokens, temperature=0), stop=(),
    )  # fmt: skip
    return np.asarray(out.tokens)[0, 0, 0].tolist()


def losses(
    config: ModelConfig, params: dict[str, Any], start: Adapter, run: Loss, *, rank: int, alpha: float
) -> Float[np.ndarray, "S"]:
    """Our loss at each step of the same inner loop, by `adapt_many` on one adapter."""
    widths = batching.bucket_widths(len(run.tokens[0]), (32,), multiple=8)
    batch = batching.make_batch(
        [[batching.Tokens(ids, 0) for ids in run.tokens]],
        epochs=1, batch_size=1, widths=widths, capacity=len(run.tokens), seed=0,
    )  # fmt: skip
    batch = batch.replace(order=run.order[None, :, None])
    hparams = HParams(
        learning_rate=np.full(1, LEARNING_RATE, np.float32),
        num_steps=np.full(1, len(run.order), np.int32),
        alpha=np.full(1, alpha, np.float32),
        rank=np.full(1, rank, np.int32),
        seed=np.zeros(1, np.int32),
    )
    _, metrics = adapt_many(
        transformer.graph(config), params, lora.stack([start]), batch, hparams, Optimiser(), chunk=Chunk(1)
    )
    return np.asarray(metrics.loss)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons


def small_files(name: str) -> ModelFiles:
    return ModelFiles(name, "safetensors", GOLDEN / name, "tests/golden")


def compare_small_logits(name: str, *, live: bool) -> Row:
    """A random checkpoint that transformers saved, over 2,048 positions."""
    golden = np.load(GOLDEN / name / "expected.npz")
    tokens, positions, expected = golden["tokens"], golden["positions"], golden["logits"]
    prompt, expected_greedy = tokens[:GREEDY_PROMPT].tolist(), golden["greedy"].tolist()
    if live:
        from .benchmark import peers

        theirs = peers.load(small_files(name))
        positions = np.arange(len(tokens))
        expected, expected_greedy = peers.logits(theirs, tokens), peers.greedy(theirs, prompt, GREEDY_TOKENS)
    config, params = weights.load_model(small_files(name))
    found = np.asarray(logits(transformer.graph(config), params, tokens[None]))[0, positions]
    same = greedy(config, params, prompt, GREEDY_TOKENS) == expected_greedy
    return Row(name, f"logits, {len(tokens):,} positions", _peer("transformers", live), _largest(found, expected), same)


def compare_smollm2_logits(
    files: ModelFiles, config: ModelConfig, params: dict[str, Any], theirs: object | None
) -> Row:
    """The embedded model on a chat prompt. `theirs` is transformers' own reading of the GGUF, or None: the golden."""
    golden = json.loads((GOLDEN / "smollm2.json").read_text(encoding="utf-8"))
    ids, expected_greedy = golden["ids"], golden["greedy"]
    found = np.asarray(logits(transformer.graph(config), params, np.array([ids])))[0]
    same = greedy(config, params, ids, len(expected_greedy)) == expected_greedy
    if theirs is None:
        stored = np.load(GOLDEN / "smollm2.npz")  # every 97th entry after each token, all of them after the last
        difference = max(_largest(found[:, ::97], stored["strided"]), _largest(found[-1], stored["last"]))
    else:
        from .benchmark import peers

        difference = _largest(found, peers.logits(theirs, np.array(ids)))
        same = same and peers.greedy(theirs, ids, len(expected_greedy)) == expected_greedy
    return Row(files.name, f"logits, {len(ids)} positions", _peer("transformers", theirs is not None), difference, same)


def compare_losses(
    name: str, which: str, config: ModelConfig, params: dict[str, Any], folder: Path, run: Loss, *, live: bool
) -> Row:
    """80 steps from the adapter that PEFT initialised and saved in `folder`."""
    said = json.loads((folder / peft.CONFIG).read_text(encoding="utf-8"))
    rank, alpha = said["r"], said["lora_alpha"]
    found = losses(config, params, peft.load_peft(folder, config), run, rank=rank, alpha=alpha)
    targets = "q, v" if which == "qv" else "all seven"
    compared = (
        f"{len(run.order)} losses, {targets}, r {rank}: {run.losses[:8].mean():.2f} to {run.losses[-8:].mean():.2f}"
    )
    return Row(name, compared, _peer("PEFT", live), _largest(found, run.losses))


def read_golden_losses(folder: Path) -> Loss:
    """What tests/golden/make_peft.py wrote."""
    golden = np.load(folder / "expected.npz")
    tokens = [row[:n].tolist() for row, n in zip(golden["tokens"], golden["lengths"], strict=True)]
    return Loss(tokens, golden["order"], golden["losses"])


def compare_small_losses(name: str, which: str, *, live: bool) -> Row:
    """A random checkpoint; live, PEFT draws another initial adapter than the golden's."""
    config, params = weights.load_model(small_files(name))
    folder = GOLDEN / "peft" / f"{name}_{which}"
    run = read_golden_losses(folder)
    if not live:
        return compare_losses(name, which, config, params, folder, run, live=False)
    from .benchmark import peers

    with tempfile.TemporaryDirectory() as scratch:
        theirs = peers.fine_tune(
            peers.load(small_files(name)), run.tokens, run.order,
            projections=TARGETS[which], rank=16, alpha=32, learning_rate=LEARNING_RATE, start=Path(scratch),
        )  # fmt: skip
        return compare_losses(name, which, config, params, Path(scratch), run._replace(losses=theirs), live=True)


def compare_smollm2_losses(
    files: ModelFiles, config: ModelConfig, params: dict[str, Any], theirs: object, which: str
) -> Row:
    """The embedded model on a few invented lines, at the paper's rank and alpha. Live only: its adapter is large."""
    from .benchmark import peers

    codec = tokenizer.make_codec(tokenizer.load_tokenizer(files), files)
    tokens = sorted((codec.encode(f"{TITLE}\n{line}") for line in LINES), key=len, reverse=True)
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(tokens)) for _ in range(EPOCHS)]).astype(np.int32)
    with tempfile.TemporaryDirectory() as scratch:
        expected = peers.fine_tune(
            theirs, tokens, order,
            projections=TARGETS[which], rank=32, alpha=64, learning_rate=LEARNING_RATE, start=Path(scratch),
        )  # fmt: skip
        run = Loss(tokens, order, expected)
        return compare_losses(files.name, which, config, params, Path(scratch), run, live=True)


def _peer(name: str, live: bool) -> str:
    return name if live else f"golden of {name}"


def _largest(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


# ---------------------------------------------------------------------------------------------------------------------
# The table


def compare(*, live: bool) -> Iterator[Row]:
    """All comparisons, as they are made."""
    for name in CHECKPOINTS:
        yield compare_small_logits(name, live=live)
    for name, which in FINE_TUNED:
        yield compare_small_losses(name, which, live=live)
    files = find_model("smollm2-135m")
    config, params = weights.load_model(files, dtype=jnp.float32)
    theirs = None
    if live:
        from .benchmark import peers

        theirs = peers.load(files)
    yield compare_smollm2_logits(files, config, params, theirs)
    if live:
        for which in TARGETS:
            yield compare_smollm2_losses(files, config, params, theirs, which)


def main(arguments: Sequence[str] = ()) -> int:
    runtime.start(1)
    live = all(importlib.util.find_spec(name) for name in ("torch", "peft"))
    if not live:
        print("torch and peft are not installed (`make parity` does it): comparing with the goldens in tests/golden")
    start, held = time.perf_counter(), True
    print(f"{'model':<14}{'compared':<52}{'against':<24}{'largest difference':>18}  greedy tokens", flush=True)
    for row in compare(live=live):
        tokens = {True: "the same", False: "DIFFER", None: ""}[row.same_tokens]
        mark = "" if row.holds else f"  OUT OF BOUNDS ({BOUND:g})"
        print(f"{row.model:<14}{row.compared:<52}{row.against:<24}{row.difference:>18.1e}  {tokens}{mark}", flush=True)
        held = held and row.holds
    verdict = f"all within {BOUND:g}" if held else f"not all within {BOUND:g}"
    print(f"{verdict}; float32 on {jax.devices()[0].platform}, {time.perf_counter() - start:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
