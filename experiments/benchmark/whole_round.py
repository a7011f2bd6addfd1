"""One whole round of ReST-EM, timed phase by phase, on tasks without text: passages and questions are random token ids.

Every word is one token, so no tokenizer is needed, and lengths are those of the paper's runs: a model whose logits are
flat writes every token about equally often and so ends, by one of the ids that stop it, after `MEAN_COMPLETION` tokens
on average; what it wrote is cut into lines as long as those that the paper's model writes.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seal_jax.engine import batching, memory
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes, make_trainer
from seal_jax.run import runtime
from seal_jax.seal.outer import ReSTEM, rest_em
from seal_jax.seal.rounds import Loop, rounds
from seal_jax.types import Compute, Domain, Example, Memory, Query, SelfEdit, Silent, Verdict, by_query

from . import table, workloads
from .bench import Bench, number_codec
from .measuring import peak_memory
from .workloads import ANSWER_TOKENS, PROMPT_TOKENS, QUESTION_TOKENS, QUESTIONS, TOP_P

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
MEAN_COMPLETION, MAX_COMPLETION, GOLD_TOKENS = 200, 512, 4  # tokens
PAPER = {"passages": 50, "samples": 5, "seeds": 3}
PHASES = "{name:<24}{seconds:>10.2f}{compile_seconds:>18.2f}{adapters:>10.0f}{tokens:>12.0f}"


class NumberTask(NamedTuple):
    """A passage of random tokens."""

    id: str
    passage: str
    prompt: str
    queries: list[Query]


def stop_ids(vocab_size: int, *, seed: int) -> tuple[int, ...]:
    """The ids that end a completion: one in `MEAN_COMPLETION`."""
    count = max(1, vocab_size // MEAN_COMPLETION)
    return tuple(sorted(np.random.default_rng([seed, 3]).choice(vocab_size, count, replace=False).tolist()))


def make_tasks(count: int, vocab_size: int, *, seed: int) -> list[NumberTask]:
    """Passages of drawn lengths, each with its questions."""
    rng = np.random.default_rng([seed, 4])
    lengths = workloads.tokens_of(workloads.WORDS_A_PASSAGE.draw(rng, count))

    def text(n: int) -> str:
        return " ".join(map(str, rng.integers(vocab_size, size=n)))

    def queries() -> list[Query]:
        return [Query("", text(QUESTION_TOKENS), text(GOLD_TOKENS)) for _ in range(QUESTIONS)]

    return [NumberTask(f"task {i}", text(n), text(PROMPT_TOKENS), queries()) for i, n in enumerate(lengths)]


def make_domain(*, seed: int) -> Domain:
    """Lines of a completion and the passage are what an adapter trains on; an answer is right if it is the gold one."""

    def parse(task: NumberTask, completion: str) -> SelfEdit:
        words: list[str] = completion.split()
        lines: list[str] = []
        if not words:
            return SelfEdit(completion, (), "empty completion")
        rng = np.random.default_rng((seed, zlib.crc32(f"{task.id}/{completion}".encode())))
        while words and len(lines) < workloads.MAX_SEQUENCES - 1:
            (n,) = workloads.tokens_of(workloads.WORDS_A_LINE.draw(rng, 1))
            lines.append(" ".join(words[:n]))
            words = words[n:]
        return SelfEdit(completion, tuple(Example("", line) for line in (*lines, task.passage)))

    def grade(queries: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
        return [answer == query.gold for query, answer in zip(queries, answers, strict=True)]

    return Domain(lambda task: task.prompt, parse, lambda task: task.queries, by_query(grade))


class Stopwatch(Silent):
    """The display of a round: how long each phase takes, and how much of that was compiling."""

    def __init__(self) -> None:
        self.phases: list[dict[str, Any]] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILE_EVENT and self.phases:
            self.phases[-1]["compile_seconds"] += duration_secs

    def phase(self, name: str, total: int | None = None, unit: str | None = None) -> None:
        """Ends the phase before it."""
        now = time.perf_counter()
        if self.phases:
            self.phases[-1]["seconds"] += now
        zero = {"compile_seconds": 0.0, "adapters": 0, "tokens": 0}
        self.phases.append({"name": name.removeprefix("round 1: "), "seconds": -now, **zero})

    def advance(self, n: int = 1, *, adapters: int = 0, tokens: int = 0, **_: Any) -> None:
        self.phases[-1]["adapters"] += adapters
        self.phases[-1]["tokens"] += tokens


def planned(bench: Bench, config: FineTuning, shapes: Shapes, sizes: memory.Writing) -> tuple[Compute, dict[str, int]]:
    """How a run would be cut to the memory that is free, and what each phase is then forecast to take of a device."""
    model, settings, dtype = bench.model, bench.settings, "bfloat16" if bench.itemsize == 2 else "float32"
    machine = runtime.machine(model, settings.devices, dtype, settings.base, bench.lm.mesh)
    compute = Compute(chunk=settings.adapters, devices=settings.devices)
    cut = runtime.fit(model, config, shapes, compute, sizes, dtype, settings.base, bench.lm.mesh)
    each, prompts = ((n or 1) // machine.devices for n in (cut.chunk, (cut.write_chunk or 1) // sizes.samples))
    needs = {
        "training": memory.training_at(model, config, shapes, cut, machine, adapters=each),
        "answering": memory.answering(
            model, config, shapes, machine, adapters=(cut.answer_chunk or 1) // machine.devices,
            max_tokens=sizes.answer_tokens,
        ),
        "writing": memory.writing(
            model, machine, prompts=prompts, samples=sizes.samples, prompt_width=sizes.prompt_width,
            max_tokens=sizes.max_tokens,
        ),
    }  # fmt: skip
    return cut, {name: need.total for name, need in needs.items()}


def play(
    bench: Bench, *, passages: int, samples: int, seeds: int
) -> tuple[list[dict[str, Any]], Compute, dict[str, int]]:
    """Plays a round once; its phases, how it was cut, and the bytes that each phase was forecast to take."""
    settings, vocab_size, seed = bench.settings, bench.model.vocab_size, bench.settings.seed
    norm = bench.lm.params["final_norm"]  # near zero: whatever model it was, it now writes all tokens equally often
    params = {**bench.lm.params, "final_norm": {**norm, "scale": norm["scale"] * 1e-3}}
    lm = bench.lm._replace(params=params, codec=number_codec(stop_ids(vocab_size, seed=seed)))
    watch, config = Stopwatch(), settings.fine_tuning("seal")
    widths = batching.bucket_widths(workloads.MAX_TOKENS, Compute().width_cuts)
    shapes = Shapes(widths, workloads.MAX_SEQUENCES, QUESTIONS, QUESTION_TOKENS, GOLD_TOKENS)
    sizes = memory.Writing(samples, PROMPT_TOKENS, MAX_COMPLETION, ANSWER_TOKENS)
    compute, needs = planned(bench, config, shapes, sizes)
    sampling = Sampling(max_tokens=MAX_COMPLETION, temperature=1.0, top_p=TOP_P)
    loop = Loop(
        make_domain(seed=seed), make_trainer(config, shapes, compute), sampling, PROMPT_TOKENS,
        Chunk(compute.write_chunk or 1, "self-edits"), ANSWER_TOKENS, seed, journal=Memory(), display=watch,
    )  # fmt: skip
    tasks = make_tasks(passages, vocab_size, seed=seed)
    for state in rounds(lm, [tasks], rest_em.outer_loop(ReSTEM(reward_seeds=seeds)), loop, samples=samples):
        jax.block_until_ready(state.writer.params)
    watch.phase("end")
    return watch.phases[:-1], compute, needs


def show(bench: Bench) -> dict[str, Any]:
    """Prints a round's phases and their sum."""
    sizes = PAPER if bench.settings.paper else {name: getattr(bench.settings, name) for name in PAPER}
    print("a round of {passages} passages, {samples} self-edits each, {seeds} training runs each\n".format(**sizes))
    phases, cut, needs = play(bench, **sizes)
    total = {"name": "together", **{name: sum(phase[name] for phase in phases) for name in list(phases[0])[1:]}}
    titles = {"name": "phase", "seconds": "seconds", "compile_seconds": "of it compiling"}
    print(table.line(PHASES, **titles, adapters="adapters", tokens="tokens"))
    for phase in (*phases, total):
        print(table.line(PHASES, **{**phase, "adapters": phase["adapters"] or None, "tokens": phase["tokens"] or None}))
    held = peak_memory(bench.devices)
    print(
        f"\n{cut.chunk} adapters in training at a time, {cut.answer_chunk} that answer, {cut.write_chunk} self-edits "
        f"written at a time\nmemory of a device: {memory.readable(held)} at the peak; forecast: "
        + ", ".join(f"{name} {memory.readable(need)}" for name, need in needs.items())
    )
    sums = {"seconds": total["seconds"], "peak_bytes": held, "forecast_bytes": needs}
    return {"round": sizes, "compute": dataclasses.asdict(cut), "phases": phases, **sums}
