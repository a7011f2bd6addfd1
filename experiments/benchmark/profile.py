"""Where a training step's time goes, by kinds of XLA operations and for the longest ones, from JAX's own profiler."""

from __future__ import annotations

import collections
import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax

from seal_jax.engine.training import train

from . import ours, table, workloads
from .bench import Bench

STEPS, LONGEST = 3, 12
LOOPS = ("while", "conditional", "call")
KINDS = (  # the first that an operation's name matches; fusions are named after what they do
    ("products of matrices", r"ynn|dot|gemm|cublas|matmul|nvjet|cutlass|xmma"),
    ("activations put away, stacks filled", r"dynamic-update-slice"),
    ("layers sliced out of the stack", r"dynamic-slice|wrapped_slice"),
    ("copies and transposes", r"copy|transpose"),
    ("all else", ""),
)


def kind_of(operation: str) -> str:
    """Which line of the table an XLA operation belongs to."""
    return next(kind for kind, pattern in KINDS if re.search(pattern, operation))


class Trace(NamedTuple):
    """Seconds of all operations of a few steps, by name."""

    operations: collections.Counter[str]
    span: float  # seconds from the first one's start to the last one's end, of all devices together

    def shares(self) -> dict[str, float]:
        """The share of each kind."""
        seconds: collections.Counter[str] = collections.Counter({kind: 0.0 for kind, _ in KINDS})
        for name, taken in self.operations.items():
            seconds[kind_of(name)] += taken
        return {kind: taken / seconds.total() for kind, taken in seconds.items()}


def traced(bench: Bench, stage: str) -> Trace:
    """`STEPS` steps of the adapters in training, their start included. Loops and branches are left out: they are what
    they hold."""
    settings = bench.settings
    lengths = workloads.uniform(settings.adapters, sequences=STEPS)
    edits = workloads.draw_tokens(lengths, bench.model.vocab_size, seed=settings.seed)
    config = dataclasses.replace(settings.fine_tuning(stage), epochs=1)
    trainer = ours.trainer(bench.model, config, edits, settings.adapters)
    seconds: collections.Counter[str] = collections.Counter()
    jax.block_until_ready(train(bench.lm, edits, trainer, seed=settings.seed))  # compiles
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(train(bench.lm, edits, trainer, seed=settings.seed))
        (trace,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(trace)).planes
        starts, ends = [], []
        for of, event in ((line.name, event) for plane in planes for line in plane.lines for event in line.events):
            operation = dict(event.stats).get("hlo_op")  # of a GPU's kernels, which have streams, not all say it
            if (operation or of.startswith("Stream")) and not event.name.startswith(LOOPS):
                name = event.name if operation in (None, event.name) else f"{operation} {event.name}"
                seconds[name] += event.duration_ns / 1e9
                starts.append(event.start_ns)
                ends.append(event.end_ns)
    if not seconds:
        raise ValueError(f"JAX's profiler reports no operations of {bench.devices[0].device_kind}")
    return Trace(seconds, (max(ends) - min(starts)) / 1e9 * len(bench.devices))


def show(bench: Bench) -> dict[str, Any]:
    """Prints the shares for q,v and for all seven projections, how busy a device is, and the longest operations."""
    found = {stage: traced(bench, stage) for stage in ("train_qv", "train_all")}
    shares = {stage: trace.shares() for stage, trace in found.items()}
    print(f"{'share of the time of all operations':<40}{'q, v':>8}{'all seven':>12}")
    for kind, share in shares["train_qv"].items():
        print(f"{kind:<40}{share:>8.0%}{shares['train_all'][kind]:>12.0%}")
    busy = {stage: trace.operations.total() / trace.span for stage, trace in found.items()}
    print(f"{'operations at work, of the whole time':<40}{busy['train_qv']:>8.0%}{busy['train_all']:>12.0%}")
    for stage, trace in found.items():
        print(f"\n{table.TITLES[stage]}: the longest of {len(trace.operations)} operations, ms a step")
        for name, taken in trace.operations.most_common(LONGEST):
            print(f"{taken * 1e3 / STEPS:>10.2f}  {name[:100]}")
    return {"shares": shares, "busy": busy}
