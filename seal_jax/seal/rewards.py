"""From self-edits to rewards: train each, ask the adapted model, grade its answers (paper section 3.1, Algorithm 1).

Three signals come of every self-edit: the share of questions answered right, and the mean log-likelihood and the mean
probability of the gold answers, which are denser (of best-of-5 choices by accuracy 4 in 10 are ties). How reliable each
is, analysis/reliability.py computes. The base model is scored once a question.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seal_jax.engine import batching, inner
from seal_jax.engine.chunks import Chunk, in_chunks
from seal_jax.engine.sampler import Read, Sampling, over_groups, read, row_keys, write
from seal_jax.engine.training import Shapes, Trainer, sharing, train_each, untrained
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.products import Program
from seal_jax.nn.sharding import lanes, spread
from seal_jax.types import Codec, GradeTasks, LanguageModel, Query, SelfEdit, Task, Verdict, without_thought

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Array, Bool, Float, Int


Train = Callable[..., Iterator[tuple[int, Adapter, "Float[np.ndarray, 'S']"]]]  # as `train_each`


class Score(NamedTuple):
    """One self-edit, tried. `None` where there is no number."""

    answers: list[str]  # [Q]
    verdicts: list[Verdict]  # [Q], or fewer where the domain votes
    log_likelihoods: list[float | None]  # [Q], mean over the gold answer's tokens, nats
    losses: list[float]  # one a step that was trained
    problem: str | None = None  # "diverged", or why there was nothing to train on
    cut: list[bool] = []  # noqa: RUF012 - [Q], which answers were cut off at the limit of tokens; empty: not known

    @property
    def accuracy(self) -> float | None:
        """The share of right answers among those that got a verdict."""
        return mean(self.verdicts)

    @property
    def log_likelihood(self) -> float | None:
        """The mean over questions, nats a token."""
        return mean(self.log_likelihoods)

    @property
    def probability(self) -> float | None:
        """The mean over questions of a gold answer's geometric mean probability of a token, 0 to 1.

        Unlike the log-likelihood it is bounded: one hopeless question does not outweigh the others.
        """
        return mean(None if value is None else math.exp(value) for value in self.log_likelihoods)


class Trial(NamedTuple):
    """One self-edit with all that came of it."""

    task: Task
    sample: int  # which of the task's
    edit: SelfEdit
    scores: list[Score]  # one a training seed; none without an inner loop
    base: Score  # of the model that learns from it, untrained
    rating: float | None = None  # a judge's, of the text, 0 to 1
    added: Mapping[str, float | None] | None = None  # by signal, to the task's others (seal/outer/sets.py)
    credit: Sequence[float | None] | None = None  # of each of `edit.lines` (seal/credit.py)

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


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# ---------------------------------------------------------------------------------------------------------------------
# Ask


class Said(NamedTuple):
    """What E adapters say to their queries."""

    answers: list[list[str]]  # [E][Q], without what the model thinks before it speaks
    likely: list[list[float | None]]  # of the gold answers, nats a token
    cut: list[list[bool]]  # at the limit of tokens


def ask(
    lm: LanguageModel,
    adapters: Adapter,
    queries: Sequence[Sequence[Query]],
    shapes: Shapes,
    *,
    max_tokens: int,
    chunk: Chunk,
) -> Said:
    """Greedy answers of E groups of queries, each by its own adapter, and each gold answer's mean log-likelihood.

    `adapters` carries the axis E; `training.untrained` are the base model. A group of more than `shapes.questions` is
    asked in parts. A non-finite adapter's answers mean nothing.
    """
    said = Said._make([[] for _ in queries] for _ in Said._fields)
    if not any(queries):
        return said
    codec, width = lm.codec, shapes.questions
    cuts = [(e, at) for e, group in enumerate(queries) for at in range(0, len(group), width)]
    of, parts = np.array([e for e, _ in cuts]), [queries[e][at : at + width] for e, at in cuts]
    prompts = [[codec.encode(query.prompt) for query in group] for group in parts]
    rows = [batching.left_pad([*group, *([[]] * (width - len(group)))], shapes.question_width) for group in prompts]
    tokens, valid = (np.stack(side) for side in zip(*rows, strict=True))
    limits = np.zeros((len(parts), width, 1), np.int32)
    for e, group in enumerate(parts):
        limits[e, : len(group), 0] = [min(max_tokens, query.max_tokens or max_tokens) for query in group]
    golds = _gold_rows(codec, parts, shapes)
    sampling = Sampling(max_tokens=max_tokens, temperature=0)

    def run(index: np.ndarray, live: np.ndarray) -> tuple[Array, ...]:
        base = (lm.model, lm.params, spread(lora.take(adapters, of[index]), lm.mesh))
        prompts = read(*base, tokens[index], valid[index], mesh=lm.mesh)  # once, for the answer and for the gold one
        likely = log_likelihoods(*base, prompts, valid[index], *(side[index] for side in golds), mesh=lm.mesh)
        keys = row_keys(0, np.zeros((len(index), width, 1), np.int32))  # greedy: never used
        allowed = limits[index] * live[:, None, None]
        written = write(
            keys, *base, prompts, valid[index], allowed, sampling=sampling, stop=codec.stop, mesh=lm.mesh
        )  # fmt: skip
        return written.tokens[:, :, 0], written.lengths[:, :, 0], written.stopped[:, :, 0], likely

    out = in_chunks(run, len(parts), chunk, devices=lanes(lm.mesh), hosts=lm.hosts)
    written, lengths, stopped, likely = map(np.asarray, out)
    for n, (e, group) in enumerate(zip(of, parts, strict=True)):
        texts = (codec.decode(written[n, q, : lengths[n, q]].tolist()) for q in range(len(group)))
        said.answers[e].extend(without_thought(text).strip() for text in texts)
        said.likely[e].extend(likely[n, : len(group)].tolist())
        said.cut[e].extend((~stopped[n, : len(group)]).tolist())
    return said


def _gold_rows(
    codec: Codec, queries: Sequence[Sequence[Query]], shapes: Shapes
) -> tuple[Int[np.ndarray, "E Q G"], Bool[np.ndarray, "E Q G"]]:
    """Gold answers, right-padded, and where they are real."""
    shape = (len(queries), shapes.questions, shapes.gold_width)
    tokens, real = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for e, group in enumerate(queries):
        for q, query in enumerate(group):
            gold = gold_tokens(codec.encode_more, query)
            tokens[e, q, : len(gold)] = gold
            real[e, q, : len(gold)] = True
    return tokens, real


def gold_tokens(encode_more: Callable[[str], list[int]], query: Query) -> list[int]:
    """The gold answer as it would follow the prompt."""
    return encode_more(query.gold if query.prompt[-1:].isspace() else f" {query.gold}")


@partial(Program, static_argnames=("model", "mesh"))
def log_likelihoods(
    model: nnx.GraphDef[Any],
    params: dict[str, Any],
    adapters: Adapter | None,
    prompts: Read,
    valid: Bool[Array, "E Q T"],
    tokens: Int[Array, "E Q G"],
    real: Bool[Array, "E Q G"],
    *,
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "E Q"]:
    """Mean log-probability, in nats a token, of continuations of prompts that have been read.

    `valid` is the prompts', `real` is False where a continuation is padded (on the right).
    """

    def group(
        params: dict[str, Any], adapter: Adapter | None, prompts: Read, valid: Array, tokens: Array, real: Array
    ) -> Array:
        decoder = nnx.merge(model, params)
        first = jnp.take_along_axis(jax.nn.log_softmax(prompts.logits), tokens[:, :1], axis=1)
        seen = jnp.concatenate([valid, real], axis=1)
        hidden, _ = decoder(tokens, valid=seen, adapter=adapter, past=prompts.cache.grown(tokens.shape[1]))
        log_probs = jnp.concatenate([first, decoder.log_probs(hidden[:, :-1], tokens[:, 1:])], axis=1)
        return jnp.sum(jnp.where(real, log_probs, 0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)

    many = over_groups(jax.vmap(group, in_axes=(None, 0, 0, 0, 0, 0)), mesh, arguments=5)
    return many(params, adapters, prompts, valid, tokens, real)


# ---------------------------------------------------------------------------------------------------------------------
# Score


def score(
    lm: LanguageModel,
    edits: Sequence[SelfEdit],
    queries: Sequence[Sequence[Query]],
    grade: GradeTasks,
    trainer: Trainer,
    *,
    seed: int,
    max_tokens: int,
) -> list[Score]:
    """Trains on each self-edit, by its own settings if it has any, asks its task's queries, grades.

    A diverged adapter answers nothing: all wrong.
    Every self-edit must yield training sequences: one that does not is scored as no training, by `score_base`.
    """
    scores = dict(score_each(lm, edits, queries, grade, trainer, seed=seed, max_tokens=max_tokens))
    return [scores[e] for e in range(len(edits))]


def score_each(
    lm: LanguageModel,
    edits: Sequence[SelfEdit],
    queries: Sequence[Sequence[Query]],
    grade: GradeTasks,
    trainer: Trainer,
    *,
    seed: int | Sequence[int],
    max_tokens: int,
    skip: Collection[int] = (),
    train: Train = train_each,
) -> Iterator[tuple[int, Score]]:
    """`score`, each with its number once a chunk of adapters has been trained and asked; those in `skip` left out.

    `train` is how: as `train_each` does, or another way with its arguments (engine/prefixes.py).
    """
    sequences = [[batching.tokenize(example, lm.codec) for example in edit.examples] for edit in edits]
    settings = [edit.settings for edit in edits]
    hosts = sharing(lm, len(edits))
    alone, own = lm._replace(hosts=None), trainer.chunk.part(hosts.count) if hosts else trainer.chunk

    def tried() -> Iterator[tuple[Sequence[int], Said, list[list[float]], Bool[np.ndarray, "E"]]]:
        trained = train(lm, sequences, trainer, seed=seed, settings=settings, skip=skip)
        while chunk := list(itertools.islice(trained, own.planned)):
            numbers, each, losses = zip(*sorted(chunk, key=itemgetter(0)), strict=True)
            adapters = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
            asked = [queries[e] for e in numbers]
            said = ask(alone, adapters, asked, trainer.shapes, max_tokens=max_tokens, chunk=own)
            finite = inner.is_finite(adapters)  # and not too large to compute with
            finite &= [bool(np.isfinite(np.array(group, float)).all()) for group in said.likely]
            yield numbers, said, [[float(loss) for loss in row if math.isfinite(loss)] for row in losses], finite

    for numbers, said, losses, finite in hosts.pool(tried()) if hosts else tried():
        yield from zip(numbers, graded([queries[e] for e in numbers], said, losses, finite, grade), strict=True)


def graded(
    queries: Sequence[Sequence[Query]],
    said: Said,
    losses: Sequence[list[float]],
    finite: Bool[np.ndarray, "E"],
    grade: GradeTasks,
) -> list[Score]:
    """Scores from E groups of answers, graded in one call; those of an adapter that is not finite are empty."""
    answers = [group if ok else [""] * len(group) for group, ok in zip(said.answers, finite, strict=True)]
    verdicts = grade(queries, answers)
    scores = []
    for e, group in enumerate(queries):
        if finite[e]:
            scores.append(Score(answers[e], verdicts[e], said.likely[e], losses[e], cut=said.cut[e]))
        else:
            scores.append(Score(answers[e], [False] * len(verdicts[e]), [None] * len(group), losses[e], "diverged"))
    return scores


def score_tasks(
    lm: LanguageModel,
    adapters: Adapter,
    queries: Sequence[Sequence[Sequence[Query]]],
    grade: GradeTasks,
    shapes: Shapes,
    *,
    max_tokens: int,
    chunk: Chunk,
) -> list[list[Score]]:
    """What each of E adapters knows of its P tasks: [E][P], from [E][P][Q] queries. One that diverged knows nothing."""
    flat = [[query for own in tasks for query in own] for tasks in queries]
    said = ask(lm, adapters, flat, shapes, max_tokens=max_tokens, chunk=chunk)
    where = [
        (e, slice(end - len(own), end))
        for e, tasks in enumerate(queries)
        for own, end in zip(tasks, itertools.accumulate(map(len, tasks)), strict=True)
    ]
    parts = Said._make([side[e][own] for e, own in where] for side in said)
    finite = np.asarray(inner.is_finite(adapters))[[e for e, _ in where]]  # and not too large to compute with
    finite = finite & [bool(np.isfinite(np.array(own, float)).all()) for own in parts.likely]
    asked = [own for tasks in queries for own in tasks]
    scores = iter(graded(asked, parts, [[] for _ in where], finite, grade))
    return [[next(scores) for _ in tasks] for tasks in queries]


def score_base(
    lm: LanguageModel,
    queries: Sequence[Sequence[Query]],
    grade: GradeTasks,
    trainer: Trainer,
    *,
    max_tokens: int,
) -> list[Score]:
    """The same for the model as it is: once per question."""
    adapters = untrained(lm, len(queries), trainer)
    said = ask(lm, adapters, queries, trainer.shapes, max_tokens=max_tokens, chunk=trainer.chunk)
    everything = np.ones(len(queries), bool)
    return graded(queries, said, [[] for _ in queries], everything, grade)
