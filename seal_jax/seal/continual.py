"""Continual learning: a stream of tasks, an adapter merged after each, and what is left of the earlier ones.

At each step the model writes a self-edit for the next task of its stream, trains an adapter on it and merges that into
its weights; then it is asked about all tasks of the stream. Many streams run side by side on the adapter axis. Their
weights differ, but only by the adapters merged so far, and those are together one wider adapter over the one base
model (`lora.join`): so nothing is ever merged in place, and the base model is shared as everywhere else.

The paper measures how much a model forgets so (its streams of 8 passages) and leaves open what to do about it;
`Retention` holds some answers. What is trained on may also be written beforehand, by whatever means (`taught`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seal_jax.engine import batching
from seal_jax.engine.chunks import in_chunks
from seal_jax.engine.inner import is_finite
from seal_jax.engine.sampler import Completions, row_keys, sample
from seal_jax.engine.training import train
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.losses import kl_to_base, next_token
from seal_jax.nn.sharding import lanes, spread
from seal_jax.seal.rewards import Score, mean, score_tasks
from seal_jax.seal.rounds import Loop, fitted, stable_hash
from seal_jax.types import LanguageModel, SelfEdit, Task, require_at_least, without_thought

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Bool

MERGED, DIVERGED = "merged", "diverged"  # what became of a self-edit, if it could be trained on


@dataclasses.dataclass(frozen=True)
class Retention:
    """What is done against forgetting. The default is the paper's: nothing."""

    replay: int | None = 0  # earlier self-edits of the stream trained on again with each new one; None: all of them
    kl: float = 0.0  # weight of KL(model before the edit || model now) in the loss

    def __post_init__(self) -> None:
        require_at_least(0, replay=self.replay or 0, kl=self.kl)

    def self_edits(self, length: int) -> int:
        """How many an adapter is trained on at most, its own included, in streams of so many tasks."""
        return 1 + (length - 1 if self.replay is None else min(self.replay, length - 1))


class Step(NamedTuple):
    """One self-edit of a stream of N tasks, and what came of it."""

    task: Task
    edit: SelfEdit
    outcome: str  # MERGED, DIVERGED, or why there was nothing to train on
    losses: list[float]  # one an optimiser step
    sequences: int  # trained on, replayed ones included
    tokens: int  # trained on, those of every epoch
    seconds: float  # a stream's share of the time that the step took
    scores: list[Score]  # [N], all tasks of the stream, after this step


class Stream(NamedTuple):
    """One stream from its first task to its last."""

    base: list[Score]  # [N], before the first step
    steps: list[Step]  # [N]


Sequences = list[batching.Tokens]  # of one self-edit


# ---------------------------------------------------------------------------------------------------------------------
# Run


def try_base(lm: LanguageModel, streams: Sequence[Sequence[Task]], loop: Loop, *, name: str) -> list[list[Score]]:
    """All tasks of R streams to the model as it is: `[R][N]`."""
    _require_equal(streams)
    loop.display.phase(f"{name}: base model", sum(map(len, streams)))
    scores: list[list[Score]] = []
    for start in range(0, len(streams), loop.trainer.chunk.planned):
        group = streams[start : start + loop.trainer.chunk.planned]
        piece = f"{name}/base/{start}"
        resumed = loop.journal.has(piece)
        found = loop.journal.once(piece, partial(_ask_base, lm, group, loop))
        scores += _as_scores(found)
        accuracy = mean(score.accuracy for row in scores for score in row)
        loop.display.advance(sum(map(len, group)), accuracy=accuracy, resumed=resumed)
    return scores


def run_streams(
    lm: LanguageModel,
    streams: Sequence[Sequence[Task]],
    base: Sequence[Sequence[Score]],
    retention: Retention,
    loop: Loop,
    *,
    name: str,
    taught: Sequence[Sequence[SelfEdit]] | None = None,
) -> list[Stream]:
    """R streams of N tasks, as many side by side as adapters are trained at a time.

    With `taught`, `[R][N]` self-edits, nothing is written: each task is learned from its own of them, by the loss of
    `loop.trainer`. What a stream does depends on the seed and its own tasks, not on `name` or its neighbours: two
    options of `Retention` meet the same draws, so that they can be compared stream by stream.
    `loop.trainer.shapes.capacity` must hold a self-edit's training sequences and those replayed with it
    (`Retention.self_edits` of them at most).

    Raises:
        ValueError: streams of unequal length; KL where the loss is not the next token's.
    """
    _require_equal(streams)
    if retention.kl and loop.trainer.loss != next_token:
        raise ValueError("kl is added to the loss of the next token; expected a trainer of that loss, or kl 0")
    loop.display.phase(f"{name}: streams", sum(map(len, streams)), "self-edits")
    finished: list[Stream] = []
    for start in range(0, len(streams), loop.trainer.chunk.planned):
        rows = slice(start, start + loop.trainer.chunk.planned)
        given = None if taught is None else taught[rows]
        finished += _run_group(lm, streams[rows], base[rows], retention, loop, f"{name}/streams {start}", given)
    return finished


def _run_group(
    lm: LanguageModel,
    streams: Sequence[Sequence[Task]],
    base: Sequence[Sequence[Score]],
    retention: Retention,
    loop: Loop,
    name: str,
    taught: Sequence[Sequence[SelfEdit]] | None,
) -> list[Stream]:
    """The streams of a chunk, step by step. Each step is written, trained, merged or not, and asked.

    The adapters of a group that is under way are checkpoints; once it is finished its journal says all there is to say
    of it, and they are removed.
    """
    group = _Group(lm, streams, retention, loop, name, taught)
    log: list[list[Step]] = [[] for _ in streams]
    for n in range(len(streams[0])):
        resumed = loop.journal.has(f"{name}/step {n}/ask")
        steps = group.step(n, log)
        for row, step in zip(log, steps, strict=True):
            row.append(step)
        accuracy = mean(score.accuracy for row in log for score in row[-1].scores[: n + 1])
        tokens = sum(step.tokens for step in steps)
        loop.display.advance(len(steps), adapters=len(steps), tokens=tokens, accuracy=accuracy, resumed=resumed)
    group.finish()
    return [Stream(list(scores), steps) for scores, steps in zip(base, log, strict=True)]


class _Group:
    """R streams under way: their tasks, and the weights that each has come to."""

    def __init__(
        self,
        lm: LanguageModel,
        streams: Sequence[Sequence[Task]],
        retention: Retention,
        loop: Loop,
        name: str,
        taught: Sequence[Sequence[SelfEdit]] | None = None,
    ):
        self.lm, self.streams, self.retention, self.loop, self.name = lm, streams, retention, loop, name
        self.taught = taught
        self.trainer = loop.trainer._replace(loss=kl_to_base) if retention.kl else loop.trainer
        # A finished group is read from the journal alone: nothing then asks for its weights.
        self.weights = None if loop.journal.has(f"{name}/finished") else _room(lm, streams, loop)

    def step(self, n: int, log: Sequence[Sequence[Step]]) -> list[Step]:
        """Writes, learns, merges and answers once, in every stream. `log` holds the steps before."""
        loop, piece = self.loop, f"{self.name}/step {n}"
        tasks = [stream[n] for stream in self.streams]

        if self.taught is None:
            texts, seconds = loop.journal.once(f"{piece}/write", lambda: _timed(lambda: self._write(tasks)))
            edits = [
                loop.domain.parse(task, text)._replace(finished=ended)
                for task, (text, ended) in zip(tasks, texts, strict=True)
            ]
        else:
            edits, seconds = [row[n] for row in self.taught], 0.0
        edits = [fitted(edit, self.lm.codec, loop.trainer.shapes) for edit in edits]
        own = [self._sequences(edit) for edit in edits]
        lessons = [
            lines + self._replayed(task, row) if lines else [] for task, lines, row in zip(tasks, own, log, strict=True)
        ]

        adapters = self._train(n, lessons)
        losses, trained_for = loop.journal.once(f"{piece}/losses", list)
        outcomes = loop.journal.once(f"{piece}/merge", lambda: self._outcomes(adapters, edits, lessons, losses))
        if adapters is not None:
            candidate = _join(self._present, adapters, np.int32(n * loop.trainer.config.rank))
            self.weights = _choose(np.array([outcome == MERGED for outcome in outcomes]), candidate, self._present)
        scores, asked_for = loop.journal.once(
            f"{piece}/ask", lambda: _timed(lambda: _ask(self.lm, self.weights, self.streams, loop))
        )
        share = (seconds + trained_for + asked_for) / len(tasks)
        return [
            Step(
                task, edit, outcome, loss, len(lines),
                self.trainer.config.epochs * sum(len(line.ids) for line in lines), share, after,
            )
            for task, edit, outcome, loss, lines, after in zip(
                tasks, edits, outcomes, losses, lessons, _as_scores(scores), strict=True
            )
        ]  # fmt: skip

    def finish(self) -> None:
        """Says that all steps are in the journal, and makes room."""
        self.loop.journal.once(f"{self.name}/finished", lambda: True)
        for n in range(len(self.streams[0])):
            self.loop.journal.forget_tree(self._checkpoint(n))

    def _write(self, tasks: Sequence[Task]) -> list[tuple[str, bool]]:
        """A self-edit for each stream's task, by the model that it has come to, and whether that ended by itself."""
        lm, loop, codec = self.lm, self.loop, self.lm.codec
        prompts = [codec.encode(loop.domain.prompt(task)) for task in tasks]
        tokens, valid = batching.left_pad(prompts, loop.prompt_width)
        names = np.array([stable_hash(task.id) for task in tasks])

        def run(index: np.ndarray, live: np.ndarray) -> Completions:
            keys = row_keys(loop.seed, np.array(stable_hash("continual")), names[index, None, None])
            limits = np.full(keys.shape, loop.sampling.max_tokens) * live[:, None, None]
            return sample(
                keys, lm.model, lm.params, spread(lora.take(self._present, index), lm.mesh), tokens[index, None],
                valid[index, None], limits, sampling=loop.sampling, stop=codec.stop, mesh=lm.mesh,
            )  # fmt: skip

        out = in_chunks(run, len(tasks), loop.trainer.chunk, devices=lanes(lm.mesh), hosts=lm.hosts)
        written, lengths, stopped = (np.asarray(side[:, 0, 0]) for side in out)
        return [
            (without_thought(codec.decode(written[r, : lengths[r]].tolist())), bool(stopped[r]))
            for r in range(len(tasks))
        ]  # fmt: skip

    def _train(self, n: int, lessons: Sequence[Sequences]) -> Adapter | None:
        """An adapter for each stream, on top of all that it has merged. None where nobody will ask for it."""
        loop = self.loop
        if self.weights is None:
            return None

        def work() -> Adapter:
            # One program serves all steps: what lies below is always as wide as the last step finds it.
            below = (len(self.streams[0]) - 1) * loop.trainer.config.rank
            fixed = lora.columns(self._present, below) if below else None
            started = time.monotonic()
            adapters, losses = train(
                self.lm, lessons, self.trainer, seed=1000 * loop.seed + n, fixed=fixed,
                numbers={"kl": self.retention.kl} if self.retention.kl else None,
            )  # fmt: skip
            trained = [[float(loss) for loss in row[np.isfinite(row)]] for row in losses]
            seconds = time.monotonic() - started
            # Before the checkpoint: where that is, these are.
            loop.journal.once(f"{self.name}/step {n}/losses", lambda: (trained, seconds))
            return adapters

        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lora.columns(self.weights, loop.trainer.config.rank)
        )
        adapters = loop.journal.once_tree(self._checkpoint(n), work, like)
        return jax.tree.map(np.asarray, adapters)  # bound to no device: it joins weights that are spread over all

    def _outcomes(
        self,
        adapters: Adapter | None,
        edits: Sequence[SelfEdit],
        lessons: Sequence[Sequences],
        losses: Sequence[Sequence[float]],
    ) -> list[str]:
        """What becomes of each stream's adapter: merged if it is finite and so are the losses of all its steps."""
        assert adapters is not None  # a finished group's outcomes are in the journal
        epochs, size = self.trainer.config.epochs, min(self.trainer.config.batch_size, self.trainer.shapes.capacity)
        steps = [batching.num_steps(len(lines), epochs=epochs, batch_size=size) for lines in lessons]
        finite = np.asarray(is_finite(adapters)) & (np.array([len(row) for row in losses]) == np.array(steps))
        return [edit.problem or (MERGED if ok else DIVERGED) for edit, ok in zip(edits, finite, strict=True)]

    @property
    def _present(self) -> Adapter:
        """What each stream has merged so far."""
        assert self.weights is not None  # a finished group does nothing any more
        return self.weights

    def _sequences(self, edit: SelfEdit) -> Sequences:
        return [batching.tokenize(example, self.lm.codec) for example in edit.examples]

    def _replayed(self, task: Task, log: Sequence[Step]) -> Sequences:
        """The training lines of k self-edits that the stream has merged, drawn with the seed."""
        merged = [step.edit for step in log if step.outcome == MERGED]
        count = len(merged) if self.retention.replay is None else min(self.retention.replay, len(merged))
        draw = np.random.default_rng([self.loop.seed, stable_hash(task.id)])
        chosen = sorted(draw.choice(len(merged), count, replace=False)) if count else []
        return [line for i in chosen for line in self._sequences(merged[i])]

    def _checkpoint(self, n: int) -> str:
        return f"{self.name.replace('/', '_').replace(' ', '_')}_step_{n}"


def _room(lm: LanguageModel, streams: Sequence[Sequence[Task]], loop: Loop) -> Adapter:
    """For each of R streams a wide adapter that has room for one adapter a task, and holds none yet."""
    empty = lora.empty(lm.params["blocks"], loop.trainer.config.projections, loop.trainer.config.rank * len(streams[0]))
    room = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(streams), *x.shape)), empty)
    return room if len(streams) % lanes(lm.mesh) else spread(room, lm.mesh)


@jax.jit
def _join(weights: Adapter, adapters: Adapter, at: Any) -> Adapter:
    return jax.vmap(lora.join, in_axes=(0, 0, None))(weights, adapters, at)


@jax.jit
def _choose(merged: Bool[np.ndarray, "R"], candidate: Adapter, present: Adapter) -> Adapter:
    def choose(one: Any, new: Adapter, old: Adapter) -> Adapter:
        return jax.tree.map(partial(jnp.where, one), new, old)

    return jax.vmap(choose)(merged, candidate, present)


def _ask(
    lm: LanguageModel, weights: Adapter | None, streams: Sequence[Sequence[Task]], loop: Loop
) -> list[list[Score]]:
    """All questions of each stream to its model. They are packed: a task with few leaves room for the next one's."""
    assert weights is not None  # a finished group asks nothing any more
    queries = [[loop.domain.queries(task) for task in stream] for stream in streams]
    shapes, chunk = loop.trainer.shapes, loop.trainer.chunk
    return score_tasks(lm, weights, queries, loop.domain.grade, shapes, max_tokens=loop.answer_tokens, chunk=chunk)


def _ask_base(lm: LanguageModel, streams: Sequence[Sequence[Task]], loop: Loop) -> list[list[Score]]:
    """With room for adapters that holds none: the program that asks the adapted model asks this one."""
    return _ask(lm, _room(lm, streams, loop), streams, loop)


def _as_scores(rows: Any) -> list[list[Score]]:
    """As the journal keeps them."""
    return [[Score(**values) for values in row] for row in rows]


def _timed(work: Any) -> tuple[Any, float]:
    started = time.monotonic()
    return work(), time.monotonic() - started


def _require_equal(streams: Sequence[Sequence[Task]]) -> None:
    lengths = sorted({len(stream) for stream in streams})
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(f"streams of {lengths} tasks; expected at least one, and all of the same length")
