"""The stages of the benchmark: train, answer, sample; each measured here and, by turns, by the peers.

A stage makes a `Row` for each who did it. Times are per self-edit (of `sample`: per prompt), medians over repeats.
Compile time is the first call less a warm one and is in no other figure. A row's floor is what `engine.costs` says
it must take at least, at the peaks that the device itself has shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seal_jax.engine import batching, costs, memory, sampler
from seal_jax.engine.inner import Chunk
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes, train
from seal_jax.nn.lora import PROJECTIONS, Adapter
from seal_jax.nn.transformer import ModelConfig
from seal_jax.types import LanguageModel

from . import process_memory, workloads
from .measuring import by_turns, peak_memory, seconds
from .peer_process import Peer

OURS = "seal_jax"
REFERENCE = "reference"  # of the peers, the one that does what the paper's code does; no ratio is against it
REFERENCE_WIDTH = 2048  # tokens that the paper's code pads every sequence to
REFERENCE_STEPS_ON_CPU = 1  # timed and scaled: one takes half a minute
WARM_STEPS = 3  # of a peer, before it is timed

TARGETS = {"train_qv": ("q_proj", "v_proj"), "train_all": PROJECTIONS, "seal": ("q_proj", "v_proj")}
QUESTIONS, QUESTION_TOKENS, ANSWER_TOKENS = 5, 40, 64  # answered with an adapter: greedy, the full length
PROMPTS, PROMPT_TOKENS, SAMPLES, SAMPLE_TOKENS, TOP_P = 8, 200, 5, 128, 0.95  # of the self-edits that are written


class Bench(NamedTuple):
    """What all stages of one run share."""

    lm: LanguageModel
    model: ModelConfig
    itemsize: int  # bytes of a base parameter
    devices: Sequence[Any]
    peak: costs.Peak
    peers: dict[str, Peer]
    adapters: int  # E, trained at a time
    epochs: int
    rank: int
    repeats: int
    seed: int

    @property
    def sharing(self) -> float:
        """Adapters that one device trains on the same reading of the weights."""
        return max(1, self.adapters / len(self.devices))

    def fine_tuning(self, stage: str) -> FineTuning:
        """The paper's inner loop, with this run's numbers."""
        return FineTuning(
            projections=TARGETS[stage],
            rank=self.rank,
            alpha=2.0 * self.rank,
            epochs=self.epochs,
            chunk=self.adapters,
        )


class Row(NamedTuple):
    """What one program took for one stage. All but `runs` is per self-edit."""

    stage: str
    who: str
    seconds: float  # median
    runs: list[float]  # seconds, of every repeat
    tokens: float  # real ones: trained, or new
    processed: float  # the same with pads
    cost: costs.Cost  # of the real tokens, at the least
    floor: float | None = None  # seconds; ours only
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    note: str = ""


class Run(NamedTuple):
    """One turn of one program."""

    seconds: float
    units: float  # self-edits' worth of work done in them


Programs = dict[str, Callable[[int], Run]]


def _seconds_a_unit(runs: Sequence[Run], turns_a_repeat: int) -> list[float]:
    """For each repeat, all its turns together."""
    repeats = [runs[i : i + turns_a_repeat] for i in range(0, len(runs), turns_a_repeat)]
    return [sum(run.seconds for run in turns) / sum(run.units for run in turns) for turns in repeats]


# ---------------------------------------------------------------------------------------------------------------------
# Train


def shapes_for(edits: Sequence[Sequence[batching.Tokens]], config: FineTuning) -> Shapes:
    """As an experiment sets them: widths from the longest sequence and the config's cuts."""
    longest = max(len(s.ids) for edit in edits for s in edit)
    return Shapes(batching.bucket_widths(longest, config.width_cuts), max(map(len, edits)), 0, 0, 0)


def processed_tokens(
    edits: Sequence[Sequence[batching.Tokens]],
    config: FineTuning,
    shapes: Shapes,
    *,
    adapters: int,
    seed: int,
    devices: int,
) -> int:
    """Tokens that training these self-edits computes, `adapters` at a time, pads and idle places included."""
    batch = batching.make_batch(
        edits,
        epochs=config.epochs,
        batch_size=min(config.batch_size, shapes.capacity),
        widths=shapes.widths,
        capacity=shapes.capacity,
        seed=seed,
    )
    devices = min(
        devices, adapters
    )  # a single adapter's rows are shared by all, and a step of one row has one to share
    return batching.processed_tokens(batch, max(devices, adapters // devices * devices), devices)


def training_phases(bench: Bench, config: FineTuning, lengths: Sequence[Sequence[int]], sharing: float) -> list[Any]:
    """The mean self-edit's work, phase by phase."""
    lora = costs.lora_parameters(bench.model, config.projections, config.rank)
    return costs.mean_training(
        bench.model, lora, lengths, epochs=config.epochs, sharing=sharing, itemsize=bench.itemsize
    )


def train_stage(bench: Bench, stage: str, lengths: Sequence[Sequence[int]]) -> tuple[list[Row], Adapter]:
    """Self-edits of these lengths, E at a time and like with like; a peer trains one of each group after it.

    Rates are real tokens a second; a row gives them as seconds for the mean self-edit, so that a peer, which trains
    only some of them, is held against the same work. Also returns the adapters of the last group.
    """
    bench = bench._replace(adapters=min(bench.adapters, len(lengths)))
    config = bench.fine_tuning(stage)
    edits = workloads.draw_tokens(lengths, bench.model.vocab_size, seed=bench.seed)
    shapes = shapes_for(edits, config)
    groups = batching.by_size(edits, bench.adapters)
    sums = [sum(edit) for edit in lengths]
    mean = sum(sums) / len(sums)
    chunk = Chunk(bench.adapters)
    latest: list[Adapter] = []

    def ours(turn: int) -> Run:
        group = groups[turn % len(groups)]
        latest.clear()  # before the next ones take their room
        work = lambda: train(bench.lm, [edits[e] for e in group], config, shapes, seed=bench.seed, chunk=chunk)
        taken, (adapters, _) = seconds(work)
        latest.append(adapters)
        return Run(taken, sum(sums[e] for e in group) / mean)

    process_memory.forget_peak()
    before = peak_memory(bench.devices)
    first = ours(0).seconds
    programs: Programs = {OURS: ours}
    notes: dict[str, str] = {}
    for name, peer in bench.peers.items():
        if name != REFERENCE:
            programs[name] = _peer_training(bench, peer, config, edits, groups, mean)
        elif stage == "train_qv":  # as the paper's; what a step takes does not depend on how long its sequence is
            few = REFERENCE_STEPS_ON_CPU if jax.default_backend() == "cpu" else None
            programs[name] = _peer_training(bench, peer, config, edits, groups, mean, timed_steps=few)
            notes[name] = f"{few} step a self-edit timed, and scaled" if few else ""
    runs = by_turns(programs, bench.repeats * len(groups), stage)
    most = peak_memory(bench.devices)
    notes[OURS] = _memory_note(bench, config, shapes, most - before)

    real, steps = config.epochs * mean, config.epochs * sum(map(len, lengths)) / len(lengths)
    devices = len(bench.devices)
    padded = sum(
        processed_tokens(
            [edits[e] for e in group], config, shapes, adapters=bench.adapters, seed=bench.seed, devices=devices
        )
        for group in groups
    )
    processed = {OURS: padded / len(edits), REFERENCE: REFERENCE_WIDTH * steps}
    warm = statistics.median(run.seconds for run in runs[OURS][:: len(groups)])
    rows = []
    for name, turns in runs.items():
        each = _seconds_a_unit(turns, len(groups))
        phases = training_phases(bench, config, lengths, bench.sharing if name == OURS else 1)
        row = Row(
            stage,
            name,
            statistics.median(each),
            each,
            real,
            processed.get(name, real),
            costs.total(phases),
            note=notes.get(name, ""),
        )
        if name == OURS:
            floor = costs.floor(phases, bench.peak)
            row = row._replace(floor=floor, compile_seconds=max(0.0, first - warm), peak_bytes=most)
        else:
            row = row._replace(peak_bytes=bench.peers[name].peak_bytes)
            if jax.default_backend() == "cpu":
                peer = bench.peers[name]
                threads = f"processes x threads: {peer.processes} x {peer.replies[0]['threads']}"
                row = row._replace(note="; ".join(filter(None, (threads, row.note))))
        rows.append(row)
    return rows, latest[0]


def _memory_note(bench: Bench, config: FineTuning, shapes: Shapes, grew: int) -> str:
    """What the planner says that training needs beside the base model, and what it took."""
    devices = len(bench.devices)
    each = -(-bench.adapters // devices)
    need = memory.training(bench.model, config, adapters=each, width=shapes.widths[-1], itemsize=bench.itemsize)
    planned = devices * (need.total - need.base)
    return f"memory beside the weights: {memory.readable(planned)} planned, {memory.readable(grew)} taken"


def _peer_training(
    bench: Bench,
    peer: Peer,
    config: FineTuning,
    edits: Sequence[Sequence[batching.Tokens]],
    groups: Sequence[Sequence[int]],
    mean: float,
    *,
    timed_steps: int | None = None,
) -> Callable[[int], Run]:
    """A peer's turn: one self-edit of the group at hand for each of its processes, another in each repeat.

    `timed_steps` stand for all, where given. Warms the peer up.
    """
    picks = [np.random.default_rng([bench.seed, 6, g]).permutation(group).tolist() for g, group in enumerate(groups)]
    pad_to = REFERENCE_WIDTH if peer.name == REFERENCE else None

    def turn(number: int, limit: int | None = timed_steps) -> Run:
        repeat, g = divmod(number, len(groups))
        each, share, units = [], 1.0, 0.0
        for n in range(peer.processes):
            sequences = [s.ids for s in edits[picks[g][(repeat * peer.processes + n) % len(picks[g])]]]
            rng = np.random.default_rng([bench.seed, 7, number, n])
            order = [int(i) for _ in range(config.epochs) for i in rng.permutation(len(sequences))]
            share = 1.0 if limit is None else min(1.0, limit / len(order))
            each.append(
                (sequences, order[:limit], config.projections, config.rank, config.alpha, config.learning_rate, pad_to)
            )
            units += sum(map(len, sequences)) / mean
        return Run(peer.do("train", each) / share, units)

    turn(0, 1 if pad_to else WARM_STEPS)
    return turn


# ---------------------------------------------------------------------------------------------------------------------
# Answer and write


def _random_prompts(bench: Bench, shape: tuple[int, ...], salt: int) -> np.ndarray:
    rng = np.random.default_rng([bench.seed, salt])
    return rng.integers(bench.model.vocab_size, size=shape, dtype=np.int32)


def require_divisible(rows: int, devices: int, option: str) -> None:
    """Raises ValueError where groups of rows cannot be shared evenly."""
    if rows % devices:
        raise ValueError(
            f"{option} is {rows}, which {devices} devices cannot share evenly when answering; "
            f"choose a multiple of {devices}, or --devices 1"
        )


def decode_stage(bench: Bench, adapters: Adapter) -> list[Row]:
    """Every adapter's questions, all at once, against a peer's one adapter. No answer ends before `ANSWER_TOKENS`."""
    E = bench.adapters
    prompts = _random_prompts(bench, (E, QUESTIONS, QUESTION_TOKENS), 8)
    sampling = Sampling(max_tokens=ANSWER_TOKENS, temperature=0)
    work = _sampling_work(bench, adapters, prompts, 1, sampling)

    def ours(turn: int) -> Run:
        return Run(seconds(work)[0], E)

    process_memory.forget_peak()
    first = ours(0).seconds
    programs: Programs = {OURS: ours}
    for name, peer in bench.peers.items():
        if name != REFERENCE:
            programs[name] = _peer_answering(peer, prompts)
    runs = by_turns(programs, bench.repeats, "decode")
    lora = costs.lora_parameters(bench.model, TARGETS["train_qv"], bench.rank)
    sizes = {"prompts": QUESTIONS, "samples": 1, "prompt_tokens": QUESTION_TOKENS, "new_tokens": ANSWER_TOKENS}
    new = QUESTIONS * ANSWER_TOKENS
    rows = _decoding_rows(bench, "decode", runs, lora, sizes, new, first - statistics.median(r[0] for r in runs[OURS]))
    for i, row in enumerate(rows):
        if row.who != OURS:
            forms = bench.peers[row.who].replies[0]["forms"]
            best = min(forms, key=forms.__getitem__)
            rows[i] = row._replace(note=f"adapter {best}: the fastest of {len(forms)} ways tried")
    return rows


def _sampling_work(
    bench: Bench, adapters: Adapter | None, prompts: np.ndarray, samples: int, sampling: Sampling
) -> Any:
    E, Q, _ = prompts.shape
    index = np.broadcast_arrays(np.arange(E)[:, None, None], np.arange(Q)[:, None], np.arange(samples))
    keys = sampler.row_keys(bench.seed, *index)
    valid = np.ones(prompts.shape, bool)
    limits = np.full((E, Q, samples), sampling.max_tokens, np.int32)
    return lambda: sampler.sample(
        keys, bench.lm.model, bench.lm.params, adapters, prompts, valid, limits,
        sampling=sampling, stop=(), mesh=bench.lm.mesh,
    )  # fmt: skip


def _peer_answering(peer: Peer, prompts: np.ndarray) -> Callable[[int], Run]:
    def turn(number: int) -> Run:
        each = [(prompts[(number + n) % len(prompts)].tolist(), ANSWER_TOKENS) for n in range(peer.processes)]
        return Run(peer.do("decode", each), peer.processes)

    turn(0)  # finds the fastest way
    return turn


def _decoding_rows(bench, stage, runs, lora, sizes, new, compile_seconds) -> list[Row]:
    most, rows = peak_memory(bench.devices), []
    for name, turns in runs.items():
        each = _seconds_a_unit(turns, 1)
        sharing = turns[0].units / len(bench.devices) if name == OURS else 1
        phases = costs.decoding(bench.model, lora, sharing=max(1, sharing), itemsize=bench.itemsize, **sizes)
        row = Row(stage, name, statistics.median(each), each, new, new, costs.total(phases))
        if name == OURS:
            floor = costs.floor(phases, bench.peak)
            row = row._replace(floor=floor, compile_seconds=max(0.0, compile_seconds), peak_bytes=most)
        else:
            row = row._replace(peak_bytes=bench.peers[name].peak_bytes)
        rows.append(row)
    return rows


def sample_stage(bench: Bench) -> list[Row]:
    """Self-edits as the outer loop writes them: `SAMPLES` of each of `PROMPTS` prompts. A row is per prompt."""
    require_divisible(PROMPTS, len(bench.devices), "the number of prompts")
    prompts = _random_prompts(bench, (PROMPTS, 1, PROMPT_TOKENS), 9)
    sampling = Sampling(max_tokens=SAMPLE_TOKENS, temperature=1.0, top_p=TOP_P)
    work = _sampling_work(bench, None, prompts, SAMPLES, sampling)

    def ours(turn: int) -> Run:
        return Run(seconds(work)[0], PROMPTS)

    def peer_turn(peer: Peer) -> Callable[[int], Run]:
        def turn(number: int) -> Run:
            shares = np.array_split(prompts[:, 0], peer.processes)
            return Run(peer.do("sample", [(s.tolist(), SAMPLES, SAMPLE_TOKENS, TOP_P) for s in shares]), PROMPTS)

        turn(0)
        return turn

    process_memory.forget_peak()
    first = ours(0).seconds
    programs: Programs = {OURS: ours}
    programs |= {name: peer_turn(peer) for name, peer in bench.peers.items() if name != REFERENCE}
    runs = by_turns(programs, bench.repeats, "sample")
    sizes = {"prompts": 1, "samples": SAMPLES, "prompt_tokens": PROMPT_TOKENS, "new_tokens": SAMPLE_TOKENS}
    compile_seconds = first - statistics.median(run.seconds for run in runs[OURS])
    rows = _decoding_rows(bench, "sample", runs, 0, sizes, SAMPLES * SAMPLE_TOKENS, compile_seconds)
    return [row._replace(note=f"seconds of one prompt's {SAMPLES} samples") for row in rows]


def edit_rows(training: Sequence[Row], answering: Sequence[Row]) -> list[Row]:
    """A whole self-edit, trained and then asked: the sum of both, for whoever did both."""
    answers = {row.who: row for row in answering}
    return [
        Row(
            "edit",
            a.who,
            a.seconds + b.seconds,
            [x + y for x, y in zip(a.runs, b.runs, strict=True)],
            a.tokens + b.tokens,
            a.processed + b.processed,
            a.cost + b.cost,
            None if a.floor is None or b.floor is None else a.floor + b.floor,
            None if a.compile_seconds is None or b.compile_seconds is None else a.compile_seconds + b.compile_seconds,
            max(a.peak_bytes or 0, b.peak_bytes or 0),
        )
        for a in training
        if (b := answers.get(a.who)) is not None
    ]


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
    """The five ratios that are asked for: against `peft`, or where that did not run `peft-x2`; None where none did."""
    by_peer = ratios(rows)
    found = {**by_peer.get("peft-x2", {}), **by_peer.get("peft", {})}
    return {stage: found.get(stage) for stage in ("train_qv", "train_all", "decode", "edit", "seal")}


def figures(row: Row, peak: costs.Peak) -> dict[str, Any]:
    """All that the table prints of a row, and its runs."""
    used = row.cost.flops / row.seconds / peak.flops
    padding = row.processed / row.tokens
    return {
        "stage": row.stage,
        "who": row.who,
        "seconds": row.seconds,
        "runs": row.runs,
        "floor_seconds": row.floor,
        "times_floor": None if row.floor is None else row.seconds / row.floor,
        "tokens": row.tokens,
        "processed_tokens": row.processed,
        "tokens_per_second": row.tokens / row.seconds,
        "processed_tokens_per_second": row.processed / row.seconds,
        "padding": padding,
        "mfu": used,
        "mfu_processed": used * padding,
        "flops": row.cost.flops,
        "bytes": row.cost.bytes,
        "bytes_per_second": row.cost.bytes / row.seconds,
        "peak_bytes": row.peak_bytes,
        "compile_seconds": row.compile_seconds,
        "note": row.note,
    }
