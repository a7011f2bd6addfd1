"""One whole round of ReST-EM, timed phase by phase, on tasks made of numbers (`experiments.benchmark.number_tasks`)."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from seal_jax.engine import batching
from seal_jax.engine.inner import Chunk
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import Shapes

from . import number_tasks, workloads
from .stages import PROMPT_TOKENS, TOP_P, Bench

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
WRITE_CHUNK = 64  # self-edits written at a time
MAX_COMPLETION = 512  # tokens
ANSWER_TOKENS = 64


class Phase(NamedTuple):
    """One line of the result."""

    name: str
    seconds: float  # compiling included
    compile_seconds: float
    adapters: int
    tokens: int  # trained, or written


class Stopwatch:
    """The `Progress` of a round: how long each phase takes, and how much of that was compiling."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self._name: str | None = None
        self._start = self._compiled = 0.0
        self._adapters = self._tokens = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILE_EVENT:
            self._compiled += duration_secs

    def phase(self, name: str, total: int | None = None, unit: str | None = None) -> None:
        """Ends the phase before it."""
        now = time.perf_counter()
        if self._name is not None:
            taken = Phase(self._name, now - self._start, self._compiled, self._adapters, self._tokens)
            self.phases.append(taken)
        self._name, self._start = name, now
        self._adapters, self._tokens, self._compiled = 0, 0, 0.0

    def advance(
        self, n: int = 1, *, adapters: int = 0, tokens: int = 0, accuracy: float | None = None, resumed: bool = False
    ) -> None:
        """Counts what was done."""
        self._adapters += adapters
        self._tokens += tokens


def round_phases(bench: Bench, *, passages: int, samples: int, reward_seeds: int) -> list[Phase]:
    """Plays `rest_em_round` once, in a folder that is thrown away."""
    from seal_jax.run.journal import RunFolder
    from seal_jax.seal.rest_em import Loop, OuterLoop, rest_em_round

    codec = number_tasks.number_codec(number_tasks.stop_ids(bench.model.vocab_size, seed=bench.seed))
    lm = number_tasks.flattened(bench.lm._replace(codec=codec))
    tasks = number_tasks.make_tasks(passages, bench.model.vocab_size, seed=bench.seed)
    config = bench.fine_tuning("seal")
    shapes = Shapes(
        widths=batching.bucket_widths(workloads.MAX_TOKENS, config.width_cuts),
        capacity=workloads.MAX_SEQUENCES,
        questions=number_tasks.QUESTIONS,
        question_width=number_tasks.QUESTION_TOKENS,
        gold_width=number_tasks.GOLD_TOKENS,
    )
    outer = OuterLoop(rounds=1, passages=passages, samples=samples, reward_seeds=reward_seeds)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run", {})
        loop = Loop(
            domain=number_tasks.make_domain(seed=bench.seed),
            inner=config,
            sampling=Sampling(max_tokens=MAX_COMPLETION, temperature=1.0, top_p=TOP_P),
            write_chunk=Chunk(WRITE_CHUNK, "self-edits"),
            answer_tokens=ANSWER_TOKENS,
            shapes=shapes,
            prompt_width=PROMPT_TOKENS,
            seed=bench.seed,
            chunk=Chunk(bench.adapters),
            run=run,
            progress=watch,
        )
        better, _ = rest_em_round(lm, tasks, outer, loop, number=1)
        jax.block_until_ready(better.params)
        watch.phase("end")
        run.close()
    return [phase._replace(name=phase.name.removeprefix("round 1: ")) for phase in watch.phases]


def round_table(phases: list[Phase]) -> list[str]:
    """The phases and their sum, in columns."""
    total = Phase("together", *(sum(column) for column in list(zip(*phases, strict=True))[1:]))
    head = f"{'phase':<24}{'seconds':>10}{'of it compiling':>18}{'adapters':>10}{'tokens':>12}"
    return [
        head,
        *(
            f"{p.name:<24}{p.seconds:>10.2f}{p.compile_seconds:>18.2f}{p.adapters or '':>10}{p.tokens or '':>12}"
            for p in (*phases, total)
        ),
    ]
