"""The outer loop: ReST-EM over self-edits (paper section 3.1, Algorithm 1).

One round, for n fresh tasks: write k self-edits for each (E-step), train and score them all, keep the winners,
fine-tune the model to write those (M-step: supervised, loss on the completion only), merge. `rest_em_round` reads as
that list; the functions above it are its lines, and the evaluation of a run uses the first of them.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from seal_jax.engine import batching
from seal_jax.engine.constrained import Constraint
from seal_jax.engine.inner import Chunk, Optimiser, in_chunks, is_finite
from seal_jax.engine.sampler import Completions, Sampling, row_keys, sample
from seal_jax.engine.training import FineTuning, Shapes, adapter_shapes, train
from seal_jax.nn import lora
from seal_jax.nn.lora import PROJECTIONS, Adapter
from seal_jax.run.journal import RunFolder
from seal_jax.seal.rewards import Score, mean, score, score_base
from seal_jax.types import Domain, Example, LanguageModel, Rate, SelfEdit, Task, require_at_least

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Bool, Float

Rule = Literal["best", "improved", "all_improved", "all_correct"]
Signal = Literal["accuracy", "log_likelihood", "probability", "proxy"]


@dataclasses.dataclass(frozen=True)
class OuterLoop:
    """ReST-EM. The defaults are the paper's (its section 3.1 and B.1, and its code) but for the reward."""

    rounds: int = 2  # of writing, scoring and training
    passages: int = 50  # fresh ones a round, disjoint from every other round's
    validation: int = 0  # passages apart from all others, on which the round to use is chosen
    samples: int = 5  # self-edits a passage
    reward_seeds: int = 3  # training runs a self-edit; the reward is their mean
    signal: Signal = "accuracy"  # what the reward is; proxy: a judge's rating of the text, no inner loop
    break_ties: bool = True  # equal accuracies are ordered by log-likelihood; the paper's code: the first wins
    select: Rule = "best"  # best: argmax; improved: argmax if above the base (eq. 2); all_improved; all_correct
    sft: FineTuning = FineTuning(
        projections=PROJECTIONS,
        rank=64,
        alpha=128.0,
        learning_rate=3e-4,
        epochs=2,
        batch_size=10,
        optimiser=Optimiser(remat=True),
        initialisation="stored",
        chunk=1,
    )

    def __post_init__(self) -> None:
        require_at_least(0, rounds=self.rounds, validation=self.validation)
        if self.select == "all_correct" and self.signal != "accuracy":
            raise ValueError(
                "--outer.select all_correct keeps what answers everything right: "
                f"it needs --outer.signal accuracy, not {self.signal}"
            )
        if self.signal == "proxy" and (self.select != "best" or self.break_ties):
            raise ValueError(
                "signal proxy rates a self-edit's text: there is no base to improve on and no likelihood to break ties "
                "with; use --outer.select best and --outer.no-break-ties"
            )
        require_at_least(1, passages=self.passages, samples=self.samples, reward_seeds=self.reward_seeds)


class Progress(Protocol):
    """What the loop tells whoever watches (report/progress.py draws it)."""

    def phase(self, name: str, total: int | None = None, unit: str | None = None) -> None: ...

    def advance(
        self, n: int = 1, *, adapters: int = 0, tokens: int = 0, accuracy: float | None = None, resumed: bool = False
    ) -> None: ...


class Loop(NamedTuple):
    """What stays the same through a run, whichever model is current."""

    domain: Domain
    inner: FineTuning
    sampling: Sampling  # of self-edits
    write_chunk: Chunk  # self-edits written at a time
    answer_tokens: int  # the most new tokens of an answer
    shapes: Shapes
    prompt_width: int  # tokens of a self-edit prompt
    seed: int
    chunk: Chunk
    run: RunFolder
    progress: Progress
    rate: Rate | None = None  # the proxy reward's judge
    constraint: Constraint | None = None  # what a self-edit may look like, token by token


class Trial(NamedTuple):
    """One self-edit with all that came of it."""

    task: Task
    sample: int  # which of the task's
    edit: SelfEdit
    scores: list[Score]  # one a training seed; none under the proxy reward
    base: Score  # of the model that learns from it, untrained
    proxy: float | None = None  # a judge's rating of the text, 0 to 1

    @property
    def accuracy(self) -> float | None:
        """Mean over training seeds."""
        return mean(score.accuracy for score in self.scores)

    @property
    def log_likelihood(self) -> float | None:
        """Mean over training seeds; None where every one diverged."""
        return mean(score.log_likelihood for score in self.scores)

    @property
    def probability(self) -> float | None:
        """Mean over training seeds; None where every one diverged."""
        return mean(score.probability for score in self.scores)

    @property
    def problem(self) -> str | None:
        """Why it trained nothing, or "diverged" if a training run did."""
        return self.edit.problem or next((score.problem for score in self.scores if score.problem), None)


class RoundLog(NamedTuple):
    """One finished round."""

    trials: list[list[Trial]]  # [P][E]
    keep: Bool[np.ndarray, "P E"]
    sft_losses: list[float]  # one a step; empty where nothing was kept


# ---------------------------------------------------------------------------------------------------------------------
# The lines of a round


def write_self_edits(
    lm: LanguageModel, tasks: Sequence[Task], loop: Loop, *, samples: int, name: str, shown: str = "writing self-edits"
) -> list[list[SelfEdit]]:
    """Samples k self-edits for each task. What one draws depends on the seed, `name`, its task and its number only.

    `shown` is what the progress display says is done.
    """
    domain, codec, devices = loop.domain, lm.codec, lm.mesh.size if lm.mesh else 1
    at_once = max(1, min(loop.write_chunk.planned // samples, len(tasks)))
    loop.progress.phase(f"{name}: {shown}", len(tasks))

    def write(group: Sequence[Task]) -> list[list[tuple[str, bool]]]:
        prompts = [codec.encode(domain.prompt(task)) for task in group]
        tokens, valid = batching.left_pad(prompts, loop.prompt_width)
        hashes = np.array([stable_hash(task.id) for task in group])

        def run(index: np.ndarray, live: np.ndarray) -> Completions:
            keys = row_keys(loop.seed, np.array(stable_hash(name)), hashes[index, None, None], np.arange(samples))
            limits = np.full(keys.shape, loop.sampling.max_tokens) * live[:, None, None]
            return sample(
                keys, lm.model, lm.params, None, tokens[index, None], valid[index, None], limits,
                sampling=loop.sampling, stop=codec.stop, mesh=lm.mesh, constraint=loop.constraint,
            )  # fmt: skip

        out = in_chunks(run, len(group), loop.write_chunk, devices=devices, each=samples, fill=False)
        written, lengths, stopped = (np.asarray(side[:, 0]) for side in out)
        return [
            [(codec.decode(written[p, k, : lengths[p, k]].tolist()), bool(stopped[p, k])) for k in range(samples)]
            for p in range(len(group))
        ]

    edits = []
    for start in range(0, len(tasks), at_once):
        group = tasks[start : start + at_once]
        piece = f"{name}/write/{start}"
        resumed = loop.run.has(piece)
        completions = loop.run.once(piece, partial(write, group))
        edits += [
            [domain.parse(task, text)._replace(finished=finished) for text, finished in row]
            for task, row in zip(group, completions, strict=True)
        ]
        tokens = sum(len(codec.encode_more(text)) for row in completions for text, _ in row)
        loop.progress.advance(len(group), tokens=tokens, resumed=resumed)
    return edits


def try_base(
    lm: LanguageModel, tasks: Sequence[Task], loop: Loop, *, name: str, shown: str = "base model"
) -> list[Score]:
    """Each task's questions to the model as it is: once per question. `shown` is what the display calls it."""
    loop.progress.phase(f"{name}: {shown}", len(tasks))
    scores: list[Score] = []
    for start in range(0, len(tasks), loop.chunk.planned):
        group = tasks[start : start + loop.chunk.planned]
        queries = [loop.domain.queries(task) for task in group]

        def work(queries=queries) -> list[Score]:
            return score_base(
                lm, queries, loop.domain.grade, loop.inner, loop.shapes, max_tokens=loop.answer_tokens, chunk=loop.chunk
            )

        piece = f"{name}/base/{start}"
        resumed = loop.run.has(piece)
        scores += [Score(*values) for values in loop.run.once(piece, work)]
        loop.progress.advance(len(group), accuracy=mean(score.accuracy for score in scores), resumed=resumed)
    return scores


def try_self_edits(
    lm: LanguageModel,
    tasks: Sequence[Task],
    edits: Sequence[Sequence[SelfEdit]],
    base: Sequence[Score],
    loop: Loop,
    *,
    seeds: int,
    name: str,
) -> list[list[Trial]]:
    """Trains an adapter on every self-edit, once a training seed, and scores what it then knows.

    A self-edit that yields no training sequence scores what the base model does.
    """
    flat = [(p, k) for p, row in enumerate(edits) for k in range(len(row)) if edits[p][k].examples]
    sequences = [[batching.tokenize(example, lm.codec) for example in edits[p][k].examples] for p, k in flat]
    epochs = [chosen.epochs if (chosen := edits[p][k].settings) else loop.inner.epochs for p, k in flat]
    groups = batching.by_size(sequences, loop.chunk.planned, epochs)
    results: dict[tuple[int, int], list[Score]] = {(p, k): [] for p, row in enumerate(edits) for k in range(len(row))}
    loop.progress.phase(f"{name}: inner loop", seeds * len(flat), "self-edits")

    for seed in range(seeds):
        for number, group in enumerate(groups):
            members = [flat[i] for i in group]

            def work(members=members, seed=seed) -> list[Score]:
                return score(
                    lm,
                    [edits[p][k] for p, k in members],
                    [loop.domain.queries(tasks[p]) for p, _ in members],
                    loop.domain.grade,
                    loop.inner,
                    loop.shapes,
                    seed=loop.seed * 1000 + seed,
                    max_tokens=loop.answer_tokens,
                    chunk=loop.chunk,
                )

            piece = f"{name}/seed {seed}/try/{number}"
            resumed = loop.run.has(piece)
            scored = [Score(*values) for values in loop.run.once(piece, work)]
            for member, outcome in zip(members, scored, strict=True):
                results[member].append(outcome)
            trained = sum(epochs[i] * len(s.ids) for i in group for s in sequences[i])
            accuracy = mean(outcome.accuracy for outcomes in results.values() for outcome in outcomes)
            loop.progress.advance(len(group), adapters=len(group), tokens=trained, accuracy=accuracy, resumed=resumed)

    return [
        [
            Trial(task, k, edits[p][k], results[p, k] or [base[p]._replace(problem=edits[p][k].problem)], base[p])
            for k in range(len(edits[p]))
        ]
        for p, task in enumerate(tasks)
    ]


def rate_self_edits(
    tasks: Sequence[Task], edits: Sequence[Sequence[SelfEdit]], base: Sequence[Score], loop: Loop, *, name: str
) -> list[list[Trial]]:
    """The paper's proxy reward: a judge rates each self-edit's text; nothing is trained.

    Raises:
        ValueError: the run has no judge that can rate.
    """
    rate = loop.rate
    if rate is None:
        raise ValueError("signal proxy needs a judge that rates texts: --grader.kind model or endpoint")
    loop.progress.phase(f"{name}: ratings", len(tasks))
    trials = []
    for p, (task, row) in enumerate(zip(tasks, edits, strict=True)):
        piece = f"{name}/rate/{p}"
        resumed = loop.run.has(piece)
        ratings = loop.run.once(piece, partial(rate, task, [edit.completion for edit in row]))
        trials.append([Trial(task, k, edit, [], base[p], ratings[k]) for k, edit in enumerate(row)])
        loop.progress.advance(1, resumed=resumed)
    return trials


def select(
    rewards: Float[np.ndarray, "P E"],
    baseline: Float[np.ndarray, "P"],
    *,
    rule: Rule,
    tie_break: Float[np.ndarray, "P E"] | None = None,
) -> Bool[np.ndarray, "P E"]:
    """Which self-edits the model is trained to write.

    `best` keeps each task's argmax, gain or not (the paper's code); `improved` keeps it only if it beats the base model
    (the paper's eq. 2, one a task); `all_improved` keeps every self-edit that does, `all_correct` every one of reward 1
    (the paper's section 3.3). NaN rewards are never kept. Among equals the higher `tie_break` wins, then the first.
    """
    valid = ~np.isnan(rewards)
    if rule == "all_correct":
        return valid & (rewards >= 1)
    if rule == "all_improved":
        return valid & (rewards > baseline[:, None])
    second = np.zeros_like(rewards) if tie_break is None else np.where(np.isnan(tie_break), -np.inf, tie_break)
    first = np.where(valid, rewards, -np.inf)
    top = first == first.max(axis=1, keepdims=True)
    winner = np.argmax(np.where(top, second, -np.inf), axis=1)
    keep = valid & (np.arange(rewards.shape[1]) == winner[:, None])
    return keep & (rewards > baseline[:, None]) if rule == "improved" else keep


def sft(
    lm: LanguageModel,
    pairs: Sequence[Example],
    config: FineTuning,
    *,
    seed: int,
    watch: Callable[[int, int], None] | None = None,
) -> tuple[Adapter, list[float]]:
    """Trains one adapter to write each completion after its prompt: the inner loop's own program, one adapter wide.

    Raises:
        ValueError: training diverged; merging it would spoil the model.
    """
    sequences = [batching.tokenize(pair, lm.codec) for pair in pairs]
    longest = max(len(s.ids) for s in sequences)
    sizes = Shapes((batching.round_up(longest, 32),), len(sequences), 0, 0, 0)  # all alike: one width to compile
    adapters, losses = train(lm, [sequences], config, sizes, seed=seed, chunk=Chunk(1, watch=watch))
    if not is_finite(adapters).all():
        raise ValueError(
            f"the SFT on the winners diverged at learning rate {config.learning_rate:g}; "
            "lower --outer.sft.learning-rate and use another --run-folder"
        )
    return lora.take(adapters, 0), [float(loss) for loss in losses[0] if not math.isnan(loss)]


def rest_em_round(
    lm: LanguageModel,
    tasks: Sequence[Task],
    config: OuterLoop,
    loop: Loop,
    *,
    number: int,
    learner: LanguageModel | None = None,
) -> tuple[LanguageModel, RoundLog]:
    """One round of ReST-EM over n fresh tasks: the model that writes better self-edits, and what happened.

    `learner` is the model that learns from them and answers, where that is not the writer itself; it stays as it is.
    """
    name, learner = f"round {number}", learner or lm
    base = try_base(learner, tasks, loop, name=name)
    edits = write_self_edits(lm, tasks, loop, samples=config.samples, name=name)
    if config.signal == "proxy":
        trials = rate_self_edits(tasks, edits, base, loop, name=name)
    else:
        trials = try_self_edits(learner, tasks, edits, base, loop, seeds=config.reward_seeds, name=name)

    loop.progress.phase(f"{name}: selection", len(tasks))
    rewards, likelihood = (_array(trials, field) for field in (config.signal, "log_likelihood"))
    baseline = np.array([getattr(s, config.signal, math.nan) for s in base], float)
    troubled = np.array([[bool(trial.problem) for trial in row] for row in trials])
    rewards = np.where(troubled, math.nan, rewards)  # never learn to write what trains nothing, or diverges
    keep = select(rewards, baseline, rule=config.select, tie_break=likelihood if config.break_ties else None)
    loop.progress.advance(len(tasks))

    winners = [trial for row, kept in zip(trials, keep, strict=True) for trial, k in zip(row, kept, strict=True) if k]
    if not winners:
        return lm, RoundLog(trials, keep, [])
    ends = (lm.codec.end if trial.edit.finished else "" for trial in winners)  # one cut off has no end to learn
    pairs = [Example(loop.domain.prompt(t.task), t.edit.completion + end) for t, end in zip(winners, ends, strict=True)]
    loop.progress.phase(f"{name}: SFT on the winners", len(pairs), "self-edits")

    def learn() -> Adapter:
        adapter, losses = sft(lm, pairs, config.sft, seed=loop.seed, watch=loop.chunk.watch)
        loop.run.once(f"{name}/sft losses", lambda: losses)  # before the checkpoint: where that is, these are
        return adapter

    adapter = loop.run.once_tree(f"round_{number}", learn, like=adapter_shapes(lm, config.sft))
    losses = loop.run.once(f"{name}/sft losses", list)
    loop.progress.advance(len(pairs))
    return lm._replace(params=lora.merge(lm.params, adapter)), RoundLog(trials, keep, losses)


def _array(trials: Sequence[Sequence[Trial]], field: str) -> Float[np.ndarray, "P E"]:
    values = [[getattr(trial, field) for trial in row] for row in trials]
    return np.array([[math.nan if value is None else value for value in row] for row in values])


def stable_hash(text: str) -> int:
    """31 bits of a string, the same in every process."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF
