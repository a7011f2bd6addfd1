"""The outer loop's rounds: write self-edits, try them, learn to write better ones (paper section 3.1, Algorithm 1).

`rounds` is the loop, the same for every domain and every way to learn; the functions above it are its lines, and the
evaluation of a run uses the first of them. How a model learns from what was tried is an `OuterLoop` (seal/outer/): the
paper's is ReST-EM. Nothing here knows a run folder or a terminal: a `Journal` and a `Display` are handed in (types.py).

    for state in rounds(lm, tasks, outer, loop, samples=5):
        print(state.number, state.log)
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from seal_jax.engine import batching
from seal_jax.engine.chunks import Chunk, in_chunks
from seal_jax.engine.constrained import Constraint
from seal_jax.engine.sampler import Completions, Sampling, row_keys, sample
from seal_jax.engine.training import FineTuning, Shapes, Trainer, make_trainer, train_each
from seal_jax.nn.sharding import lanes
from seal_jax.seal.rewards import Score, Train, Trial, gold_tokens, mean, score_base, score_each
from seal_jax.types import (
    Codec,
    Compute,
    Display,
    Domain,
    Journal,
    LanguageModel,
    Memory,
    Query,
    Rate,
    SelfEdit,
    Silent,
    Task,
    without_thought,
)

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Bool


class Loop(NamedTuple):
    """What stays the same through a run, whichever model is current."""

    domain: Domain
    trainer: Trainer
    sampling: Sampling  # of self-edits
    prompt_width: int  # tokens of a self-edit prompt
    write_chunk: Chunk  # self-edits written at a time
    answer_tokens: int  # the most new tokens of an answer
    seed: int
    journal: Journal  # types.Memory() in a notebook
    display: Display  # types.Silent() in a notebook
    rate: Rate | None = None  # a judge of a self-edit's text
    constraint: Constraint | None = None  # what a self-edit may look like, token by token


def make_loop(
    lm: LanguageModel,
    domain: Domain,
    tasks: Sequence[Task],
    inner: FineTuning,
    sampling: Sampling,
    *,
    longest: int,
    capacity: int = 30,
    answer_tokens: int = 64,
) -> Loop:
    """A loop for a notebook: sizes measured on `tasks`, nothing kept on disk or shown. `_replace` changes its fields.

    `longest` is the most tokens of a training sequence, `capacity` the most sequences of a self-edit.
    """
    codec, asked = lm.codec, [domain.queries(task) for task in tasks]
    shapes = Shapes(
        widths=batching.bucket_widths(longest, Compute().width_cuts),
        capacity=capacity,
        questions=max(map(len, asked)),
        question_width=batching.round_up(max(len(codec.encode(q.prompt)) for row in asked for q in row), 8),
        gold_width=batching.round_up(max(len(gold_tokens(codec.encode_more, q)) for row in asked for q in row), 8),
    )
    return Loop(
        domain,
        make_trainer(inner, shapes, Compute(chunk=8)),
        sampling,
        prompt_width=batching.round_up(max(len(codec.encode(domain.prompt(task))) for task in tasks), 8),
        write_chunk=Chunk(32, "self-edits"),
        answer_tokens=answer_tokens,
        seed=0,
        journal=Memory(),
        display=Silent(),
    )


class RoundLog(NamedTuple):
    """One finished round."""

    trials: list[list[Trial]]  # [P][E]
    keep: Bool[np.ndarray, "P E"]  # what the model was trained to write
    losses: list[float]  # of that training, one a step; empty where nothing was kept
    skipped: int = 0  # tasks that taught nothing: their self-edits have no two rewards that differ


class OuterLoop(NamedTuple):
    """How a model gets better at writing self-edits: two functions (seal/outer/ has some)."""

    try_edits: Callable[
        [LanguageModel, Sequence[Task], Sequence[Sequence[SelfEdit]], Sequence[Score], Loop, str], list[list[Trial]]
    ]
    """(learner, P tasks, `[P][E]` self-edits, the learner's scores before, loop, name) -> what came of each."""
    learn: Callable[[LanguageModel, Sequence[Sequence[Trial]], Loop, str], tuple[LanguageModel, RoundLog]]
    """(writer, `[P][E]` trials, loop, name) -> the writer after the round, and what happened."""
    write: Callable[..., list[list[SelfEdit]]] | None = None
    """(writer, tasks, loop, samples=, name=) -> `[P][E]` self-edits; by default `write_self_edits`."""


class Round(NamedTuple):
    """Where the outer loop is: before any training (number 0), or after a round."""

    number: int
    writer: LanguageModel  # writes self-edits, and has learned to
    learner: LanguageModel  # learns from them and answers; the same, unless another was given
    log: RoundLog | None = None


# ---------------------------------------------------------------------------------------------------------------------
# The lines of a round


def write_self_edits(
    lm: LanguageModel,
    tasks: Sequence[Task],
    loop: Loop,
    *,
    samples: int,
    name: str,
    shown: str = "writing self-edits",
    drawn: str | None = None,
) -> list[list[SelfEdit]]:
    """Samples k self-edits for each task. What one draws depends on the seed, `drawn` (by default `name`, which the
    journal's pieces have), its task and its number only.

    `shown` is what the progress display says is done.
    """
    domain, codec, devices = loop.domain, lm.codec, lanes(lm.mesh)
    at_once = max(1, min(loop.write_chunk.planned // samples, len(tasks)))
    loop.display.phase(f"{name}: {shown}", len(tasks))

    def write(group: Sequence[Task]) -> list[list[tuple[str, bool]]]:
        prompts = [codec.encode(domain.prompt(task)) for task in group]
        tokens, valid = batching.left_pad(prompts, loop.prompt_width)
        hashes = np.array([stable_hash(task.id) for task in group])

        def run(index: np.ndarray, live: np.ndarray) -> Completions:
            keys = row_keys(
                loop.seed, np.array(stable_hash(drawn or name)), hashes[index, None, None], np.arange(samples)
            )
            limits = np.full(keys.shape, loop.sampling.max_tokens) * live[:, None, None]
            return sample(
                keys, lm.model, lm.params, None, tokens[index, None], valid[index, None], limits,
                sampling=loop.sampling, stop=codec.stop, mesh=lm.mesh, constraint=loop.constraint,
            )  # fmt: skip

        fill = jax.default_backend() != "cpu"  # rows cost next to nothing there, and another number of them a program
        out = in_chunks(run, len(group), loop.write_chunk, devices=devices, each=samples, fill=fill, hosts=lm.hosts)
        written, lengths, stopped = (np.asarray(side[:, 0]) for side in out)
        return [
            [
                (without_thought(codec.decode(written[p, k, : lengths[p, k]].tolist())), bool(stopped[p, k]))
                for k in range(samples)
            ]
            for p in range(len(group))
        ]

    edits = []
    for start in range(0, len(tasks), at_once):
        group = tasks[start : start + at_once]
        piece = f"{name}/write/{start}"
        resumed = loop.journal.has(piece)
        completions = loop.journal.once(piece, partial(write, group))
        edits += [
            [
                fitted(domain.parse(task, text), codec, loop.trainer.shapes)._replace(finished=finished)
                for text, finished in row
            ]
            for task, row in zip(group, completions, strict=True)
        ]
        tokens = sum(len(codec.encode_more(text)) for row in completions for text, _ in row)
        loop.display.advance(len(group), tokens=tokens, resumed=resumed)
    return edits


def fitted(edit: SelfEdit, codec: Codec, shapes: Shapes) -> SelfEdit:
    """The self-edit with examples that a training step has room for: a longer one is cut at its end, and counted.

    What a model wrote within its limit of tokens may be longer when it is read back, and in another model's tokens.
    """
    most, shortened, examples = shapes.widths[-1], 0, []
    for example in edit.examples:
        long = size = len(batching.tokenize(example, codec).ids)
        while size > most and example.completion:
            kept = min(len(example.completion) - 1, len(example.completion) * most // size)
            example = example._replace(completion=example.completion[:kept])
            size = len(batching.tokenize(example, codec).ids)
        shortened += size < long
        examples.append(example)
    return edit._replace(examples=tuple(examples), shortened=edit.shortened + shortened) if shortened else edit


def try_base(
    lm: LanguageModel, tasks: Sequence[Task], loop: Loop, *, name: str, shown: str = "base model"
) -> list[Score]:
    """Each task's questions to the model as it is: once per question. `shown` is what the display calls it."""
    loop.display.phase(f"{name}: {shown}", len(tasks))
    scores: list[Score] = []
    for start in range(0, len(tasks), loop.trainer.chunk.planned):
        group = tasks[start : start + loop.trainer.chunk.planned]
        queries = [loop.domain.queries(task) for task in group]

        def work(queries: list[list[Query]] = queries) -> list[Score]:
            return score_base(lm, queries, loop.domain.grade, loop.trainer, max_tokens=loop.answer_tokens)

        piece = f"{name}/base/{start}"
        resumed = loop.journal.has(piece)
        scores += [Score(**values) for values in loop.journal.once(piece, work)]
        loop.display.advance(len(group), accuracy=mean(score.accuracy for score in scores), resumed=resumed)
    return scores


def try_self_edits(
    lm: LanguageModel,
    tasks: Sequence[Task],
    edits: Sequence[Sequence[SelfEdit]],
    base: Sequence[Score],
    loop: Loop,
    name: str,
    *,
    seeds: int,
    train: Train = train_each,
) -> list[list[Trial]]:
    """Trains an adapter on every self-edit, once a training seed, and scores what it then knows: the paper's reward.

    A self-edit that yields no training sequence scores what the base model does. `train` as for `score_each`. An outer
    loop's `try_edits`, given its `seeds`.
    """
    edits = [[fitted(edit, lm.codec, loop.trainer.shapes) for edit in row] for row in edits]
    flat = [(p, k) for p, row in enumerate(edits) for k in range(len(row)) if edits[p][k].examples]
    sequences = [[batching.tokenize(example, lm.codec) for example in edits[p][k].examples] for p, k in flat]
    epochs = [chosen.epochs if (chosen := edits[p][k].settings) else loop.trainer.config.epochs for p, k in flat]
    loop.display.phase(f"{name}: inner loop", seeds * len(flat), "self-edits")

    jobs = [(seed, p, k) for seed in range(seeds) for p, k in flat]
    pieces = [f"{name}/seed {seed}/try/{p}.{k}" for seed, p, k in jobs]
    finished = {i for i, piece in enumerate(pieces) if loop.journal.has(piece)}
    tried = score_each(
        lm,
        [edits[p][k] for _, p, k in jobs],
        [loop.domain.queries(tasks[p]) for _, p, _ in jobs],
        loop.domain.grade,
        loop.trainer,
        seed=[loop.seed * 1000 + seed for seed, _, _ in jobs],
        max_tokens=loop.answer_tokens,
        skip=finished,
        train=train,
    )
    scores: dict[int, Score] = {}
    for i, fresh in itertools.chain(((i, None) for i in sorted(finished)), tried):
        scores[i] = Score(**loop.journal.once(pieces[i], partial(_same, fresh)))
        trained = epochs[i % len(flat)] * sum(len(s.ids) for s in sequences[i % len(flat)])
        accuracy = mean(score.accuracy for score in scores.values())
        loop.display.advance(adapters=1, tokens=trained, accuracy=accuracy, resumed=fresh is None)
    results: dict[tuple[int, int], list[Score]] = {(p, k): [] for p, row in enumerate(edits) for k in range(len(row))}
    for i, (_, p, k) in enumerate(jobs):
        results[p, k].append(scores[i])

    return [
        [
            Trial(task, k, edits[p][k], results[p, k] or [base[p]._replace(problem=edits[p][k].problem)], base[p])
            for k in range(len(edits[p]))
        ]
        for p, task in enumerate(tasks)
    ]


def _same(score: Score | None) -> Score | None:
    return score


def before_learning(piece: str) -> bool:
    """Whether a piece of a journal was written, asked or tried by a model that had learned nothing in a round yet."""
    stage, _, work = piece.partition("/")
    round_of = re.search(r"\bround (\d+)", stage)
    learned = round_of and (round_of[1] != "1" or "after" in stage)
    return not learned and re.match(r"(base|write|rate|seed \d+/try)/", work) is not None


def stable_hash(text: str) -> int:
    """31 bits of a string, the same in every process."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def run_round(
    writer: LanguageModel,
    tasks: Sequence[Task],
    outer: OuterLoop,
    loop: Loop,
    *,
    number: int,
    samples: int,
    learner: LanguageModel | None = None,
) -> tuple[LanguageModel, RoundLog]:
    """One round over P fresh tasks: the model that writes better self-edits, and what happened.

    `samples` are self-edits a task. `learner` is the model that learns from them and answers, where that is not the
    writer itself; it stays as it is.
    """
    name, learner = f"round {number}", learner or writer
    base = try_base(learner, tasks, loop, name=name)
    edits = (outer.write or write_self_edits)(writer, tasks, loop, samples=samples, name=name)
    trials = outer.try_edits(learner, tasks, edits, base, loop, name)
    return outer.learn(writer, trials, loop, name)


def rounds(
    writer: LanguageModel,
    tasks: Sequence[Sequence[Task]],
    outer: OuterLoop,
    loop: Loop,
    *,
    samples: int,
    learner: LanguageModel | None = None,
) -> Iterator[Round]:
    """The model before any training, then after each round over fresh tasks, [rounds][P]; others as for `run_round`."""
    yield Round(0, writer, learner or writer)
    for number, group in enumerate(tasks, 1):
        writer, log = run_round(writer, group, outer, loop, number=number, samples=samples, learner=learner)
        yield Round(number, writer, learner or writer, log)


def best_round(figures: Sequence[float | None]) -> int:
    """The round of the highest figure, such as the accuracy on validation tasks; the earliest of equals."""
    return max(range(len(figures)), key=lambda n: (-np.inf if (value := figures[n]) is None else value, -n))
