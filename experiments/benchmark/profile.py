"""Where a training step's time goes, by kinds of XLA operations, from JAX's own profiler."""

from __future__ import annotations

import collections
import re
import tempfile
from pathlib import Path
from typing import Any

import jax

from seal_jax.engine.training import train

from . import ours, workloads
from .bench import Bench

STEPS = 3
KINDS = (  # the first that an operation's name matches; fusions are named after what they do
    ("products of matrices", r"ynn|dot|gemm|cublas|matmul"),
    ("activations put away, stacks filled", r"dynamic-update-slice"),
    ("layers sliced out of the stack", r"dynamic-slice|wrapped_slice"),
    ("copies and transposes", r"copy|transpose"),
    ("all else", ""),
)


def kind_of(operation: str) -> str:
    """Which line of the table an XLA operation belongs to."""
    return next(kind for kind, pattern in KINDS if re.search(pattern, operation))


def training_shares(bench: Bench, stage: str) -> dict[str, float]:
    """The share of each kind in `STEPS` steps of a chunk, its start included. Loops and branches are left out: they are
    what they hold."""
    settings = bench.settings
    lengths = workloads.uniform(settings.adapters, sequences=STEPS)
    edits = workloads.draw_tokens(lengths, bench.model.vocab_size, seed=settings.seed)
    trainer = ours.trainer(bench.model, settings.fine_tuning(stage), edits, settings.adapters)
    seconds: collections.Counter[str] = collections.Counter({kind: 0.0 for kind, _ in KINDS})
    jax.block_until_ready(train(bench.lm, edits, trainer, seed=settings.seed))  # compiles
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(train(bench.lm, edits, trainer, seed=settings.seed))
        (trace,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(trace)).planes
        for event in (event for plane in planes for line in plane.lines for event in line.events):
            if "hlo_op" in dict(event.stats) and not event.name.startswith(("while", "conditional", "call")):
                seconds[kind_of(event.name)] += event.duration_ns / 1e9
    return {kind: taken / seconds.total() for kind, taken in seconds.items()}


def show(bench: Bench) -> dict[str, Any]:
    """Prints the shares for q,v and for all seven projections."""
    shares = {stage: training_shares(bench, stage) for stage in ("train_qv", "train_all")}
    print(f"{'share of the time of all operations':<40}{'q, v':>8}{'all seven':>12}")
    for kind, share in shares["train_qv"].items():
        print(f"{kind:<40}{share:>8.0%}{shares['train_all'][kind]:>12.0%}")
    return {"shares": shares}
