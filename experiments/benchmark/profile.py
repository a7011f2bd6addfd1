"""Where a training step's time goes, by kinds of XLA operations, from JAX's own profiler."""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from seal_jax.engine import batching
from seal_jax.engine.inner import Chunk
from seal_jax.engine.training import train

from . import workloads
from .stages import Bench, shapes_for

STEPS, TOKENS = 3, 48
KINDS = (  # the first that an operation's name matches; fusions are named after what they do
    ("products of matrices", r"ynn|dot|gemm|cublas|matmul"),
    ("activations put away, stacks filled", r"dynamic-update-slice"),
    ("layers sliced out of the stack", r"dynamic-slice|wrapped_slice"),
    ("copies and transposes", r"copy|transpose"),
)
REST = "all else"


def kind_of(operation: str) -> str:
    """Which line of the table an XLA operation belongs to."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, operation)), REST)


def time_by_operation(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of every XLA operation that `work` ran, loops and branches left out: they are what they hold."""
    seconds: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(work())
        (trace,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
            for line in plane.lines:
                for event in line.events:
                    if "hlo_op" in dict(event.stats) and not event.name.startswith(("while", "conditional", "call")):
                        seconds[re.sub(r"[.\d]+$", "", event.name)] += event.duration_ns / 1e9
    return dict(seconds)


def training_shares(bench: Bench, stage: str) -> dict[str, float]:
    """The share of each kind in a chunk's `STEPS` steps, its start included."""
    config = bench.fine_tuning(stage)
    lengths = workloads.uniform(bench.adapters, sequences=STEPS, tokens=TOKENS)
    edits: list[list[batching.Tokens]] = workloads.draw_tokens(lengths, bench.model.vocab_size, seed=bench.seed)
    shapes, chunk = shapes_for(edits, config), Chunk(bench.adapters)

    def work() -> Any:
        return train(bench.lm, edits, config, shapes, seed=bench.seed, chunk=chunk)

    jax.block_until_ready(work())  # compiles
    found = time_by_operation(work)
    total = sum(found.values())
    shares = dict.fromkeys((*(kind for kind, _ in KINDS), REST), 0.0)
    for operation, taken in found.items():
        shares[kind_of(operation)] += taken / total
    return shares


def table(bench: Bench) -> tuple[list[str], dict[str, dict[str, float]]]:
    """The shares for q,v and for all seven projections, as lines and as figures."""
    found = {stage: training_shares(bench, stage) for stage in ("train_qv", "train_all")}
    lines = [f"{'share of the time of all operations':<40}{'q, v':>8}{'all seven':>12}"]
    lines += [f"{kind:<40}{share:>8.0%}{found['train_all'][kind]:>12.0%}" for kind, share in found["train_qv"].items()]
    return lines, found
