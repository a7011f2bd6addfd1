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
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.io import peft, tokenizer, weights
from seal_jax.io.hub import ModelFiles, find_model
from seal_jax.nn import transformer
from seal_jax.nn.transformer import ModelConfig
from seal_jax.run import runtime
from seal_jax.types import PROJECTIONS, LanguageModel

from .benchmark import ours
from .benchmark.bench import number_codec

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Float, Int

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


class Run(NamedTuple):
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


def as_lm(config: ModelConfig, params: dict[str, Any]) -> LanguageModel:
    """The model, to be given token ids."""
    return LanguageModel(transformer.graph(config), params, number_codec())


def greedy(lm: LanguageModel, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The likeliest next tokens, one after another, with the sampler's cache. Nothing ends them early."""
    row = np.asarray(prompt, np.int32)[None, None]
    out = ours.writer(lm, None, row, 1, Sampling(max_tokens, temperature=0), 0)()
    return np.asarray(out.tokens)[0, 0, 0].tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons: with the module `peers` the other side is computed, without it is read from tests/golden


def small_files(name: str) -> ModelFiles:
    """A random checkpoint that transformers saved."""
    return ModelFiles(name, "safetensors", GOLDEN / name, "tests/golden")


def compare_small_logits(name: str, peers: Any = None) -> Row:
    """A small checkpoint, over 2,048 positions."""
    golden = np.load(GOLDEN / name / "expected.npz")
    tokens, positions, expected = golden["tokens"], golden["positions"], golden["logits"]
    prompt, expected_greedy = tokens[:GREEDY_PROMPT].tolist(), golden["greedy"].tolist()
    if peers:
        theirs = peers.load(small_files(name))
        positions = np.arange(len(tokens))
        expected, expected_greedy = peers.logits(theirs, tokens), peers.greedy(theirs, prompt, GREEDY_TOKENS)
    lm = as_lm(*weights.load_model(small_files(name)))
    found = np.asarray(logits(lm.model, lm.params, tokens[None]))[0, positions]
    same = greedy(lm, prompt, GREEDY_TOKENS) == expected_greedy
    return _row(name, f"logits, {len(tokens):,} positions", "transformers", peers, _largest(found, expected), same)


def compare_smollm2_logits(lm: LanguageModel, peers: Any = None, theirs: Any = None) -> Row:
    """The embedded model on a chat prompt. `theirs` is transformers' own reading of the GGUF."""
    golden = json.loads((GOLDEN / "smollm2.json").read_text(encoding="utf-8"))
    ids, expected_greedy = golden["ids"], golden["greedy"]
    found = np.asarray(logits(lm.model, lm.params, np.array([ids])))[0]
    same = greedy(lm, ids, len(expected_greedy)) == expected_greedy
    if peers:
        difference = _largest(found, peers.logits(theirs, np.array(ids)))
        same = same and peers.greedy(theirs, ids, len(expected_greedy)) == expected_greedy
    else:
        stored = np.load(GOLDEN / "smollm2.npz")  # every 97th entry after each token, all of them after the last
        difference = max(_largest(found[:, ::97], stored["strided"]), _largest(found[-1], stored["last"]))
    return _row("smollm2-135m", f"logits, {len(ids)} positions", "transformers", peers, difference, same)


def compare_losses(
    name: str, lm: LanguageModel, config: ModelConfig, which: str, folder: Path, run: Run, peers: Any
) -> Row:
    """80 steps from the adapter that PEFT initialised and saved in `folder`."""
    saved = json.loads((folder / peft.CONFIG).read_text(encoding="utf-8"))
    settings = FineTuning(TARGETS[which], saved["r"], saved["lora_alpha"], LEARNING_RATE)
    found = ours.losses(lm, peft.load_peft(folder, config), run.tokens, run.order.tolist(), settings)
    learned = f"{run.losses[:8].mean():.2f} to {run.losses[-8:].mean():.2f}"
    targets = "q, v" if which == "qv" else "all seven"
    compared = f"{len(run.order)} losses, {targets}, r {settings.rank}: {learned}"
    return _row(name, compared, "PEFT", peers, _largest(found, run.losses))


def read_golden_losses(folder: Path) -> Run:
    """What tests/golden/make_peft.py wrote."""
    golden = np.load(folder / "expected.npz")
    tokens = [row[:n].tolist() for row, n in zip(golden["tokens"], golden["lengths"], strict=True)]
    return Run(tokens, golden["order"], golden["losses"])


def compare_small_losses(name: str, which: str, peers: Any = None) -> Row:
    """A small checkpoint; live, PEFT draws another initial adapter than the golden's."""
    config, params = weights.load_model(small_files(name))
    folder, lm = GOLDEN / "peft" / f"{name}_{which}", as_lm(config, params)
    run = read_golden_losses(folder)
    if not peers:
        return compare_losses(name, lm, config, which, folder, run, peers)
    theirs = peers.load(small_files(name))
    return _compare_live(name, lm, config, which, peers, theirs, run.tokens, run.order, rank=16)


def compare_smollm2_losses(lm: LanguageModel, config: ModelConfig, which: str, peers: Any, theirs: Any) -> Row:
    """The embedded model on a few invented lines, at the paper's rank and alpha. Live only: its adapter is large."""
    files = find_model("smollm2-135m")
    codec = tokenizer.make_codec(tokenizer.load_tokenizer(files), files)
    tokens = sorted((codec.encode(f"{TITLE}\n{line}") for line in LINES), key=len, reverse=True)
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(tokens)) for _ in range(EPOCHS)]).astype(np.int32)
    return _compare_live(files.name, lm, config, which, peers, theirs, tokens, order, rank=32)


def _compare_live(
    name: str, lm: LanguageModel, config: ModelConfig, which: str, peers: Any, theirs: Any,
    tokens: list[list[int]], order: Int[np.ndarray, "S"], *, rank: int,
) -> Row:  # fmt: skip
    settings = {"projections": TARGETS[which], "rank": rank, "alpha": 2 * rank, "learning_rate": LEARNING_RATE}
    with tempfile.TemporaryDirectory() as scratch:
        losses = peers.fine_tune(theirs, tokens, order, start=Path(scratch), **settings)
        return compare_losses(name, lm, config, which, Path(scratch), Run(tokens, order, losses), peers)


def _row(model: str, compared: str, peer: str, live: Any, difference: float, same: bool | None = None) -> Row:
    return Row(model, compared, peer if live else f"golden of {peer}", difference, same)


def _largest(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


# ---------------------------------------------------------------------------------------------------------------------
# The table


def compare(peers: Any) -> Iterator[Row]:
    """All comparisons, as they are made."""
    for name in CHECKPOINTS:
        yield compare_small_logits(name, peers)
    for name, which in FINE_TUNED:
        yield compare_small_losses(name, which, peers)
    files = find_model("smollm2-135m")
    config, params = weights.load_model(files, dtype=jnp.float32)
    lm, theirs = as_lm(config, params), peers and peers.load(files)
    yield compare_smollm2_logits(lm, peers, theirs)
    for which in TARGETS if peers else ():
        yield compare_smollm2_losses(lm, config, which, peers, theirs)


def main() -> int:
    runtime.start(1)
    peers: Any = None
    if all(importlib.util.find_spec(name) for name in ("torch", "peft")):
        from .benchmark import peers
    else:
        print("torch and peft are not installed (`make parity` does it): comparing with the goldens in tests/golden")
    start, held = time.perf_counter(), True
    print(f"{'model':<14}{'compared':<52}{'against':<24}{'largest difference':>18}  greedy tokens", flush=True)
    for row in compare(peers):
        tokens = {True: "the same", False: "DIFFER", None: ""}[row.same_tokens]
        mark = "" if row.holds else f"  OUT OF BOUNDS ({BOUND:g})"
        print(f"{row.model:<14}{row.compared:<52}{row.against:<24}{row.difference:>18.1e}  {tokens}{mark}", flush=True)
        held = held and row.holds
    verdict = f"all within {BOUND:g}" if held else f"not all within {BOUND:g}"
    print(f"{verdict}; float32 on {jax.devices()[0].platform}, {time.perf_counter() - start:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
