"""Where the time of training and of writing goes, by kinds of XLA operations and the longest: by JAX's profiler."""

from __future__ import annotations

import collections
import dataclasses
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import train

from . import ours, table, workloads
from .bench import Bench
from .workloads import PROMPT_TOKENS, PROMPTS, SAMPLES, TOP_P

STEPS, TOKENS, LONGEST = 3, 32, 12
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


def training(bench: Bench, stage: str) -> Callable[[], Any]:
    """`STEPS` steps of the adapters in training, their start included."""
    settings = bench.settings
    lengths = workloads.uniform(settings.adapters, sequences=STEPS)
    edits = workloads.draw_tokens(lengths, bench.model.vocab_size, seed=settings.seed)
    config = dataclasses.replace(settings.fine_tuning(stage), epochs=1)
    trainer = ours.trainer(bench.model, config, edits, settings.adapters)
    return lambda: train(bench.lm, edits, trainer, seed=settings.seed)


def writing(bench: Bench) -> Callable[[], Any]:
    """The first `TOKENS` tokens of the benchmark's self-edits, the reading of their prompts included."""
    shape, seed = (PROMPTS, 1, PROMPT_TOKENS), bench.settings.seed
    prompts = np.random.default_rng([seed, 8]).integers(bench.model.vocab_size, size=shape, dtype=np.int32)
    return ours.writer(bench.lm, None, prompts, SAMPLES, Sampling(TOKENS, top_p=TOP_P), seed)


def traced(bench: Bench, work: Callable[[], Any]) -> Trace:
    """A piece of work, once compiled. Loops and branches are left out: they are what they hold."""
    seconds: collections.Counter[str] = collections.Counter()
    jax.block_until_ready(work())  # compiles
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(work())
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
    """Prints the shares in training, of q,v and of all seven projections, and in writing, how busy a device is, and the
    longest operations."""
    work = {stage: (training(bench, stage), STEPS) for stage in ("train_qv", "train_all")}
    work["sample"] = (writing(bench), TOKENS)
    found = {stage: traced(bench, run) for stage, (run, _) in work.items()}
    shares = {stage: trace.shares() for stage, trace in found.items()}
    busy = {stage: trace.operations.total() / trace.span for stage, trace in found.items()}
    print(f"{'share of the time of all operations':<40}", *(f"{table.TITLES[stage]:>13}" for stage in found), sep="")
    for kind, _ in KINDS:
        print(f"{kind:<40}", *(f"{own[kind]:>13.0%}" for own in shares.values()), sep="")
    print(f"{'operations at work, of the whole time':<40}", *(f"{share:>13.0%}" for share in busy.values()), sep="")
    for stage, trace in found.items():
        of = "token" if stage == "sample" else "step"
        print(f"\n{table.TITLES[stage]}: the longest of {len(trace.operations)} operations, ms a {of}")
        for name, taken in trace.operations.most_common(LONGEST):
            print(f"{taken * 1e3 / work[stage][1]:>10.2f}  {name[:100]}")
    return {"shares": shares, "busy": busy}
