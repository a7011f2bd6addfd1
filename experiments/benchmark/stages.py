"""The stages of the benchmark: train, answer, write; each measured here and, by turns, by the peers.

A stage makes a `Row` for each who did it. Times are per self-edit (of `sample`: per prompt), medians over repeats.
Compile time is the first call less a warm one and is in no other figure. A row's floor is what `engine.costs` says
it must take at least, at the peaks that the device itself has shown.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from seal_jax.engine import costs
from seal_jax.engine.batching import Tokens
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Trainer, train
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.losses import distillation

from . import ours, process_memory, workloads
from .bench import Bench
from .measuring import by_turns, peak_memory, seconds
from .peer_process import SKYRL_TX, DidNotFitError, Peer
from .workloads import ANSWER_TOKENS, PROMPT_TOKENS, PROMPTS, QUESTION_TOKENS, QUESTIONS, SAMPLE_TOKENS, SAMPLES, TOP_P

OURS = "seal_jax"
DISTILLED = "distilled"  # ours again, with a teacher that reads each sequence once with a passage in view
WARM = -1  # the number of the turn that compiles, or warms a peer up
WARM_STEPS = 3
PICKS = 4  # self-edits that a peer trains in a turn, a quarter of all sizes each
RATIOS = ("train_qv", "train_all", "decode", "edit", "seal")

Program = Callable[[int], tuple[float, float]]  # number of its turn -> seconds, and self-edits' worth of work in them


class Row(NamedTuple):
    """What one program took for one stage. All but `runs` is per self-edit."""

    stage: str
    who: str
    seconds: float  # median
    runs: list[float]  # seconds, of every repeat
    tokens: float  # real ones: trained, or new
    processed_tokens: float  # the same with pads
    flops: float  # of the real tokens, at the least
    bytes: float
    floor_seconds: float | None = None  # ours only
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    note: str = ""

    def figures(self, peak: costs.Peak) -> dict[str, Any]:
        """All that is kept of a row: its fields, and what follows from them."""
        used = self.flops / self.seconds / peak.flops
        padding = self.processed_tokens / self.tokens
        return {
            **self._asdict(),
            "times_floor": None if self.floor_seconds is None else self.seconds / self.floor_seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "processed_tokens_per_second": self.processed_tokens / self.seconds,
            "padding": padding,
            "mfu": used,
            "mfu_processed": used * padding,
            "bytes_per_second": self.bytes / self.seconds,
        }


def per_unit(runs: Sequence[tuple[float, float]], turns: int) -> list[float]:
    """Seconds a self-edit in each repeat, all its turns together."""
    repeats = [zip(*runs[i : i + turns], strict=True) for i in range(0, len(runs), turns)]
    return [sum(taken) / sum(units) for taken, units in repeats]


def measure(
    bench: Bench,
    stage: str,
    programs: dict[str, Program],
    phases: Callable[[float], list[costs.Cost]],
    *,
    together: int,
    tokens: float,
    processed: dict[str, float],
    turns: int = 1,
) -> list[Row]:
    """Times the programs by turns, `turns` of each a repeat, and makes their rows.

    `phases` are the least costs, given how many share a reading of the weights: of ours, `together` over all devices.
    """
    process_memory.forget_peak()
    first = {}
    for name, program in list(programs.items()):
        try:
            first[name] = program(WARM)
        except DidNotFitError as error:
            print(f"{together} adapters: {error}", flush=True)
            del programs[name]
    runs = by_turns(programs, bench.settings.repeats * turns, stage)
    rows = []
    for name, done in runs.items():
        each = per_unit(done, turns)
        least = phases(max(1.0, together / len(bench.devices)) if name == OURS else 1.0)
        cost, padded = costs.total(least), processed.get(name, tokens)
        row = Row(stage, name, statistics.median(each), each, tokens, padded, cost.flops, cost.bytes)
        if name == OURS:
            taken, units = first[OURS]
            compiling = taken - statistics.median(each) * units
            row = row._replace(floor_seconds=costs.floor(least, bench.peak), compile_seconds=max(0.0, compiling))
            rows.append(row._replace(peak_bytes=peak_memory(bench.devices)))
        elif name == DISTILLED:
            rows.append(row)
        else:
            peer, reply = bench.peers[name], bench.peers[name].replies[0]
            known = {
                "processed_tokens": padded * reply.get("padding", 1),
                "compile_seconds": reply.get("compile_seconds"),
            }
            rows.append(row._replace(peak_bytes=peer.peak_bytes, note=reply["note"], **known))
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Train


def train_stage(bench: Bench, stage: str, lengths: Sequence[Sequence[int]]) -> tuple[list[Row], Adapter]:
    """All self-edits of these lengths, E of them in training at a time; a peer trains some of them, of every size.

    Rates are real tokens a second; a row has them as seconds for the mean self-edit, so that a peer, which trains
    only some of them, is compared on the same work. Also returns E of the adapters.
    """
    settings, config, model = bench.settings, bench.settings.fine_tuning(stage), bench.model
    edits = workloads.draw_tokens(lengths, model.vocab_size, seed=settings.seed)
    together = min(settings.adapters, len(lengths))
    trainer = ours.trainer(model, config, edits, together)
    mean, count = sum(map(sum, lengths)) / len(lengths), len(lengths)
    units = [sum(edit) / mean for edit in lengths]
    latest: list[Adapter] = []

    def turn(trainer: Trainer, edits: Sequence[Sequence[Tokens]], number: int) -> tuple[float, float]:
        latest.clear()  # before the next ones take their room
        once = trainer._replace(config=dataclasses.replace(config, epochs=1)) if number == WARM else trainer
        taken, (adapters, _) = seconds(lambda: train(bench.lm, edits, once, seed=settings.seed))
        latest.append(lora.take(adapters, slice(0, together)))
        return taken, sum(units) * once.config.epochs / config.epochs

    def phases(sharing: float) -> list[costs.Cost]:
        numbers = costs.lora_parameters(model, config.projections, config.rank)
        sizes = {"epochs": config.epochs, "itemsize": bench.itemsize}
        return costs.mean_training(model, numbers, lengths, sharing=sharing, **sizes)

    programs: dict[str, Program] = {OURS: partial(turn, trainer, edits)}
    if settings.loss == "distillation":
        taught = workloads.in_view(edits, model.vocab_size, seed=settings.seed)
        programs[DISTILLED] = partial(turn, trainer._replace(loss=distillation), taught)
    for name, peer in bench.peers.items():
        if name == SKYRL_TX:
            programs[name] = _training_together(bench, peer, config, edits, units, together)
        else:
            programs[name] = _peer_training(bench, peer, config, edits, units)
    parameters, devices = costs.model_parameters(model), len(bench.devices)
    padded = ours.processed_tokens(parameters, edits, trainer, seed=settings.seed, devices=devices) / count
    processed = {OURS: padded, DISTILLED: padded}
    sizes: dict[str, Any] = {"together": together, "tokens": config.epochs * mean, "processed": processed}
    return measure(bench, stage, programs, phases, **sizes), latest[0]


def _peer_training(
    bench: Bench, peer: Peer, config: FineTuning, edits: Sequence[Sequence[Tokens]], units: Sequence[float]
) -> Program:
    """A peer's turn: each of its processes trains `PICKS` self-edits, of every size; others in each repeat."""
    seed = bench.settings.seed
    by_size = np.array_split(sorted(range(len(edits)), key=lambda e: (units[e], e)), min(PICKS, len(edits)))
    picks = [np.random.default_rng([seed, 6, g]).permutation(group).tolist() for g, group in enumerate(by_size)]
    options = (config.projections, config.rank, config.alpha, config.learning_rate)

    def one(e: int, number: int, limit: int | None) -> tuple[Any, float]:
        rng = np.random.default_rng([seed, 7, number, e])
        order = [int(i) for _ in range(config.epochs) for i in rng.permutation(len(edits[e]))]
        return ([s.ids for s in edits[e]], order[:limit], *options), len(order[:limit]) / len(order)

    def turn(number: int) -> tuple[float, float]:
        limit = WARM_STEPS if number == WARM else None
        number = max(number, 0)
        taken = done = 0.0
        for group in picks[: 1 if limit else None]:
            chosen = [group[(number * peer.processes + n) % len(group)] for n in range(peer.processes)]
            work = [one(e, number, limit) for e in chosen]
            taken += peer.do("train", [own for own, _ in work]) / work[0][1]
            done += sum(units[e] for e in chosen)
        return taken, done

    return turn


def _training_together(
    bench: Bench, peer: Peer, config: FineTuning, edits: Sequence[Sequence[Tokens]], units: Sequence[float], count: int
) -> Program:
    """The turn of a peer that trains many at a time: a group of self-edits with about as many sequences each.

    A step is padded to the longest of its sequences, so each self-edit's are ranked by length and one shuffle of ranks
    serves all: long ones meet.
    """
    seed, by_count = bench.settings.seed, sorted(range(len(edits)), key=lambda e: (len(edits[e]), units[e]))
    starts = np.random.default_rng([seed, 6]).permutation(range(0, len(edits) - count + 1, count))
    options = (config.projections, config.rank, config.alpha, config.learning_rate)

    def turn(number: int) -> tuple[float, float]:
        rng, start = np.random.default_rng([seed, 7, max(number, 0)]), starts[max(number, 0) % len(starts)]
        group = by_count[start : start + count]
        by_length = [np.argsort([-len(s.ids) for s in edits[e]]).tolist() for e in group]
        ranks = [int(r) for _ in range(config.epochs) for r in rng.permutation(max(map(len, by_length)))]
        steps = [[own[r] if r < len(own) else None for own in by_length] for r in ranks]
        work = ([[s.ids for s in edits[e]] for e in group], steps, *options, number == WARM)
        return peer.do("train_many", [work]), sum(units[e] for e in group)

    return turn


# ---------------------------------------------------------------------------------------------------------------------
# Answer and write


def _writing_stage(
    bench: Bench,
    stage: str,
    adapters: Adapter | None,
    shape: tuple[int, int, int],
    sampling: Sampling,
    samples: int,
    theirs: Callable[[Peer, np.ndarray, int], tuple[float, float]],
) -> list[Row]:
    """All groups' prompts [E, Q, T] at once, against what `theirs` has a peer do in a turn. No row ends early."""
    settings, model, (E, Q, T) = bench.settings, bench.model, shape
    prompts = np.random.default_rng([settings.seed, 8]).integers(model.vocab_size, size=shape, dtype=np.int32)
    work = ours.writer(bench.lm, adapters, prompts, samples, sampling, settings.seed)
    programs: dict[str, Program] = {OURS: lambda turn: (seconds(work)[0], E)}
    for name, peer in bench.peers.items():
        if name != SKYRL_TX:
            programs[name] = partial(theirs, peer, prompts)
    lora = 0 if adapters is None else costs.lora_parameters(model, workloads.TARGETS["train_qv"], settings.rank)

    def phases(sharing: float) -> list[costs.Cost]:
        return costs.decoding(
            model, lora, prompts=Q, samples=samples, prompt_tokens=T, new_tokens=sampling.max_tokens,
            sharing=sharing, itemsize=bench.itemsize,
        )  # fmt: skip

    new = Q * samples * sampling.max_tokens
    return measure(bench, stage, programs, phases, together=E, tokens=new, processed={})


def decode_stage(bench: Bench, adapters: Adapter) -> list[Row]:
    """Every adapter's questions, all at once, against a peer's one adapter. No answer ends before `ANSWER_TOKENS`."""

    def theirs(peer: Peer, prompts: np.ndarray, turn: int) -> tuple[float, float]:
        chosen = [prompts[(max(turn, 0) + n) % len(prompts)].tolist() for n in range(peer.processes)]
        return peer.do("decode", [(questions, ANSWER_TOKENS) for questions in chosen]), peer.processes

    shape, sampling = (bench.settings.adapters, QUESTIONS, QUESTION_TOKENS), Sampling(ANSWER_TOKENS, temperature=0)
    return _writing_stage(bench, "decode", adapters, shape, sampling, 1, theirs)


def sample_stage(bench: Bench) -> list[Row]:
    """Self-edits as the outer loop writes them: `SAMPLES` of each of `PROMPTS` prompts. A row is per prompt."""

    def theirs(peer: Peer, prompts: np.ndarray, turn: int) -> tuple[float, float]:
        shares = np.array_split(prompts[:, 0], peer.processes)
        return peer.do("sample", [(s.tolist(), SAMPLES, SAMPLE_TOKENS, TOP_P) for s in shares]), PROMPTS

    shape, sampling = (PROMPTS, 1, PROMPT_TOKENS), Sampling(SAMPLE_TOKENS, top_p=TOP_P)
    rows = _writing_stage(bench, "sample", None, shape, sampling, SAMPLES, theirs)
    return [row._replace(note=f"seconds of one prompt's {SAMPLES} samples") for row in rows]


def edit_rows(training: Sequence[Row], answering: Sequence[Row]) -> list[Row]:
    """A whole self-edit, trained and then asked: the sum of both, for whoever did both."""

    def both(a: Row, b: Row) -> Row:
        names = ("seconds", "tokens", "processed_tokens", "flops", "bytes", "floor_seconds", "compile_seconds")
        sums: dict[str, Any] = {n: None if getattr(a, n) is None else getattr(a, n) + getattr(b, n) for n in names}
        runs = [x + y for x, y in zip(a.runs, b.runs, strict=True)]
        return a._replace(
            stage="edit", runs=runs, peak_bytes=max(a.peak_bytes or 0, b.peak_bytes or 0), note="", **sums
        )

    return [both(a, b) for a in training for b in answering if a.who == b.who]


# ---------------------------------------------------------------------------------------------------------------------
# Ratios


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """For each peer and stage: their seconds a self-edit over ours."""
    ours = {row.stage: row.seconds for row in rows if row.who == OURS}
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.who != OURS and row.stage in ours:
            found.setdefault(row.who, {})[row.stage] = row.seconds / ours[row.stage]
    return found


def peer_ratio(rows: Sequence[Row]) -> dict[str, float | None]:
    """The ratios of `RATIOS`: against `peft`, or where that did not run `peft-x2`; None where neither did."""
    by_peer = ratios(rows)
    found = {**by_peer.get("peft-x2", {}), **by_peer.get("peft", {})}
    return {stage: found.get(stage) for stage in RATIOS}
