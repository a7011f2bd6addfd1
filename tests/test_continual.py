"""Streams that learn one task after another: what each option does against forgetting, and what it must not do.

The toy world: a task is a key with a value, and its self-edit says `ask KEY ?` and then the value, so that training on
it teaches the answer. All keys share the little model, so a later value spoils an earlier one. A task whose value is
`poison` diverges (the word has no finite embedding), and one whose value is `nothing` has no training sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import pytest

from seal_jax.engine import batching, training
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes, Trainer
from seal_jax.nn import lora
from seal_jax.nn.losses import distillation, next_token
from seal_jax.run.journal import RunFolder
from seal_jax.run.streams import figures, matrix, retained
from seal_jax.seal import continual
from seal_jax.seal.continual import DIVERGED, MERGED, Retention, run_streams, try_base
from seal_jax.seal.rewards import Score
from seal_jax.seal.rounds import Loop
from seal_jax.types import PROJECTIONS, Compute, Domain, Example, LanguageModel, Query, SelfEdit, Verdict, by_query
from tests import tiny
from tests.test_rounds import Silent


class Key(NamedTuple):
    id: str
    value: str


WORDS = ("ask", "write", "?", "north", "south", "east", "west", "red", "blue", "green", "poison", "nothing")
COLOURS = ("red", "blue", "green")
CALM = [Key("north", "red"), Key("south", "blue"), Key("east", "green")]
OTHER = [Key("west", "green"), Key("north", "blue"), Key("south", "red")]
SHAPES = Shapes(widths=(8,), capacity=3, questions=2, question_width=8, gold_width=8)
INNER = FineTuning(PROJECTIONS[3:], rank=4, alpha=8.0, learning_rate=1e-2, epochs=14)


def parse(task: Key, completion: str) -> SelfEdit:
    if task.value == "nothing":
        return SelfEdit(completion, (), "empty completion")
    return SelfEdit(completion, (Example(f"ask {task.id} ?", task.value),))


def grade(queries: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
    return [answer == query.gold for query, answer in zip(queries, answers, strict=True)]


DOMAIN = Domain(
    prompt=lambda task: f"write {task.id}",
    parse=parse,
    queries=lambda task: [Query(f"{task.id}?", f"ask {task.id} ?", task.value if task.value in COLOURS else "red")],
    grade=by_query(grade),
)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    model = tiny.language_model(WORDS, seed=2, width=64)
    params = dict(model.params)
    params["lm_head"] = {"kernel": params["lm_head"]["kernel"] * 5}  # room to become sure of a word
    poison = model.codec.encode("poison")[0]
    params["embed"] = {"embedding": params["embed"]["embedding"].at[poison].set(math.nan)}
    return model._replace(params=jax.device_put(params, jax.devices()[0]))


def make_loop(folder, **changes) -> Loop:
    loop = Loop(
        domain=DOMAIN,
        trainer=Trainer(INNER, SHAPES, Compute(chunk=2), Chunk(2)),
        sampling=Sampling(max_tokens=6),
        write_chunk=Chunk(4),
        answer_tokens=1,
        prompt_width=8,
        seed=0,
        journal=RunFolder(folder, {}),
        display=Silent(),
    )
    return loop._replace(**changes)


NOTHING = Retention()


def run(lm, folder, streams, option=NOTHING, **changes):
    loop = make_loop(folder, **changes)
    base = try_base(lm, streams, loop, name="streams")
    out = run_streams(lm, streams, base, option, loop, name="option")
    loop.journal.close()
    return out, loop


def timeless(streams):
    return [stream._replace(steps=[step._replace(seconds=0.0) for step in stream.steps]) for stream in streams]


def outcomes(streams) -> list[list[str]]:
    return [[step.outcome for step in stream.steps] for stream in streams]


@pytest.fixture(scope="module")
def plain(lm, tmp_path_factory):
    """Three streams, two at a time, nothing done against forgetting."""
    return run(lm, tmp_path_factory.mktemp("plain"), [CALM, OTHER, CALM[::-1]])


def test_what_was_written_beforehand_teaches_as_what_is_written_on_the_way(lm, plain, tmp_path):
    """The edits of a run, given to another: the same streams, not a word written; another loss is the loop's."""
    streams, _ = plain
    given = [[step.edit for step in stream.steps] for stream in streams]
    tasks = [[step.task for step in stream.steps] for stream in streams]

    def taught(edits, folder, loss=next_token, **option):
        loop = make_loop(tmp_path / folder)
        loop = loop._replace(trainer=loop.trainer._replace(loss=loss))
        found = run_streams(lm, tasks, [s.base for s in streams], Retention(**option), loop, name="t", taught=edits)
        assert not loop.journal.has("t/streams 0/step 0/write")
        loop.journal.close()
        return found

    assert timeless(taught(given, "same")) == timeless(streams)
    viewed = [
        [edit._replace(examples=tuple(e._replace(view=f"red blue {e.prompt}") for e in edit.examples)) for edit in row]
        for row in given
    ]
    again, replayed = taught(viewed, "view", distillation), taught(viewed, "replay", distillation, replay=None)
    assert again[0].steps[0].losses != streams[0].steps[0].losses
    assert [step.sequences for step in again[0].steps] == [1, 1, 1]
    assert [step.sequences for step in replayed[0].steps] == [1, 2, 3]
    assert replayed[0].steps[0].losses == pytest.approx(again[0].steps[0].losses, abs=1e-5)
    with pytest.raises(ValueError, match="kl is added to the loss of the next token"):
        taught(viewed, "kl", distillation, kl=0.1)


def test_each_task_is_learned_right_after_its_own_edit(plain):
    streams, _ = plain
    assert outcomes(streams) == [[MERGED] * 3] * 3
    for stream in streams:
        for n, step in enumerate(stream.steps):
            before = (stream.base if n == 0 else stream.steps[n - 1].scores)[n]
            assert step.scores[n].accuracy == 1
            assert step.scores[n].log_likelihood > before.log_likelihood + 0.5
            assert len(step.losses) == INNER.epochs
            assert step.losses[-1] < step.losses[0]


def test_a_stream_is_adapters_merged_into_the_weights_one_after_another(lm, plain, tmp_path):
    """The same stream step by step with really merged weights, by functions that know of no stream."""
    streams, _ = plain
    params, loop = lm.params, make_loop(tmp_path)
    for n, step in enumerate(streams[0].steps):
        lesson = [batching.tokenize(example, lm.codec) for example in step.edit.examples]
        merged = lm._replace(params=params)
        adapters, losses = training.train(
            merged, [lesson], training.make_trainer(INNER, SHAPES, Compute(chunk=1)), seed=n
        )
        params = lora.merge(params, lora.take(adapters, 0))
        np.testing.assert_allclose(losses[0][np.isfinite(losses[0])], step.losses, atol=1e-3)
        scores = try_base(lm._replace(params=params), [CALM], loop, name=f"after {n}")[0]
        for mine, score in zip(scores, step.scores, strict=True):
            assert mine.answers == score.answers
            np.testing.assert_allclose(mine.log_likelihoods, score.log_likelihoods, atol=1e-3)


def test_self_edits_are_written_by_the_model_at_that_point(lm, plain):
    """The same task with the same draws, first in one stream and later in another: other weights, other words."""
    streams, _ = plain
    first = {stream.steps[0].task.id: stream.steps[0].edit.completion for stream in streams}
    later = [(step.task.id, step.edit.completion) for stream in streams for step in stream.steps[1:]]
    pairs = [(first[name], text) for name, text in later if name in first]
    assert len(pairs) >= 3
    assert any(one != other for one, other in pairs)


def test_neighbours_and_chunks_change_no_stream(lm, plain, tmp_path):
    streams, _ = plain
    alone, _ = run(lm, tmp_path, [OTHER])
    for step, expected in zip(alone[0].steps, streams[1].steps, strict=True):
        assert step.edit == expected.edit
        np.testing.assert_allclose(step.losses, expected.losses, atol=1e-3)
        assert [s.answers for s in step.scores] == [s.answers for s in expected.scores]


@pytest.mark.slow
def test_two_devices_give_what_one_does(lm, plain, mesh, tmp_path):
    streams, _ = plain
    spread = lm._replace(
        params=jax.device_put(lm.params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    )
    both, _ = run(spread._replace(mesh=mesh), tmp_path, [CALM, OTHER])
    for stream, expected in zip(both, streams[:2], strict=True):
        assert outcomes([stream]) == outcomes([expected])
        for step, other in zip(stream.steps, expected.steps, strict=True):
            np.testing.assert_allclose(step.losses, other.losses, atol=1e-3)
            assert [s.answers for s in step.scores] == [s.answers for s in other.scores]


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


@pytest.mark.parametrize("value", ["poison", "nothing"])
def test_what_trains_nothing_or_diverges_is_not_merged_and_spoils_nobody(lm, plain, tmp_path, value):
    spoiled = [CALM[0], Key("south", value), CALM[2]]
    streams, _ = run(lm, tmp_path, [spoiled, OTHER])
    expected = "empty completion" if value == "nothing" else DIVERGED
    assert outcomes(streams) == [[MERGED, expected, MERGED], [MERGED] * 3]
    bad, before = streams[0].steps[1], streams[0].steps[0]
    assert [s.answers for s in bad.scores] == [s.answers for s in before.scores]  # the stream is as it was
    assert [s.log_likelihoods for s in bad.scores] == [s.log_likelihoods for s in before.scores]
    assert streams[0].steps[2].scores[2].accuracy == 1
    for step, other in zip(streams[1].steps, plain[0][1].steps, strict=True):
        assert [s.answers for s in step.scores] == [s.answers for s in other.scores]


def test_a_finite_adapter_is_not_merged_if_a_loss_of_its_training_was_not_finite(lm, tmp_path, monkeypatch):
    def spoiled(*arguments, **named):
        adapters, losses = training.train(*arguments, **named)
        first, *others = losses
        return adapters, [np.where(np.arange(len(first)) == 1, math.inf, first), *others]  # of a step that was taken

    monkeypatch.setattr(continual, "train", spoiled)
    streams, _ = run(lm, tmp_path, [CALM, OTHER])
    assert outcomes(streams) == [[DIVERGED] * 3, [MERGED] * 3]


def test_streams_must_be_of_one_length(lm, tmp_path):
    loop = make_loop(tmp_path)
    with pytest.raises(ValueError, match=r"streams of \[2, 3\] tasks"):
        try_base(lm, [CALM, CALM[:2]], loop, name="x")


@pytest.mark.slow
def test_a_stream_of_one_task_is_one_inner_loop(lm, tmp_path):
    streams, _ = run(lm, tmp_path, [[CALM[0]]])
    assert streams[0].steps[0].scores[0].accuracy == 1


# ---------------------------------------------------------------------------------------------------------------------
# Against forgetting


def test_replay_trains_again_on_what_was_merged(lm, plain, tmp_path):
    """All earlier ones: more of what was learned is left, at the price of longer training."""
    streams, _ = run(lm, tmp_path, [CALM, OTHER], Retention(replay=None))
    assert [[step.sequences for step in stream.steps] for stream in streams] == [[1, 2, 3]] * 2
    assert [len(step.losses) for step in streams[0].steps] == [n * INNER.epochs for n in (1, 2, 3)]
    kept, lost = figures(streams), figures(plain[0][:2])
    assert sum(kept.final) > sum(lost.final)
    assert all(a > b + 0.5 for a, b in zip(kept.final_log_likelihood, lost.final_log_likelihood, strict=True))


def test_replay_of_one_draws_one_and_never_what_was_not_merged(lm, tmp_path):
    streams, _ = run(lm, tmp_path, [[Key("north", "poison"), *CALM[1:]], CALM], Retention(replay=1))
    assert [[step.sequences for step in stream.steps] for stream in streams] == [[1, 1, 2], [1, 2, 2]]
    assert outcomes(streams) == [[DIVERGED, MERGED, MERGED], [MERGED] * 3]


@pytest.mark.slow
def test_a_penalty_on_change_holds_on_to_the_model_before(lm, plain, tmp_path):
    held, _ = run(lm, tmp_path, [CALM, OTHER], Retention(kl=30.0))
    for stream, free in zip(held, plain[0], strict=False):
        step, other = stream.steps[0], free.steps[0]
        assert step.scores[0].log_likelihood < other.scores[0].log_likelihood - 0.5  # it learns less
        change, free_change = (
            sum(abs(s.log_likelihood - b.log_likelihood) for s, b in zip(one.scores[1:], stream.base[1:], strict=True))
            for one in (step, other)
        )
        assert change < free_change  # and spoils less


# ---------------------------------------------------------------------------------------------------------------------
# Killed and carried on


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, *range(3, 28, 4)])
def test_killed_after_any_piece_it_ends_as_if_undisturbed(lm, tmp_path_factory, killed_after, after):
    """Two groups of streams with a penalty and replay; the folder is opened again after the kill."""
    tasks, option = [CALM, OTHER, CALM[::-1]], Retention(replay=1, kl=0.5)
    folder = tmp_path_factory.mktemp("killed")
    straight = _STRAIGHT.get("streams") or run(lm, tmp_path_factory.mktemp("straight"), tasks, option)[0]
    _STRAIGHT["streams"] = straight
    with killed_after(after):
        run(lm, folder, tasks, option)
    streams, loop = run(lm, folder, tasks, option)
    assert timeless(streams) == timeless(straight)
    assert not list((folder / "checkpoints").iterdir())  # and no adapter is left lying about
    again, loop = run(lm, folder, tasks, option)
    assert again == streams
    assert loop.display.fresh == 0


_STRAIGHT: dict[str, list] = {}  # the undisturbed run, once


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def stream_of(base: Sequence[float], *rows: Sequence[float | None]) -> continual.Stream:
    def score(value: float | None) -> Score:
        return Score([""] * 2, [None, None] if value is None else [value > 0, value == 1], [-1.0, -1.0], [])

    steps = [
        continual.Step(Key("", ""), SelfEdit("", ()), MERGED, [], 1, 1, 0.0, [score(v) for v in row]) for row in rows
    ]
    return continual.Stream([score(v) for v in base], steps)


def test_figures_are_those_of_the_matrix():
    one = stream_of([0, 0], [1, 0.5], [0.5, 1])
    other = stream_of([0.5, 0], [1, 0], [0, 0.5])
    assert matrix([one, other]) == [[0.25, 0], [1, 0.25], [0.25, 0.75]]
    found = figures([one, other])
    assert (found.base, found.own, found.final) == ([0, 0.25], [1, 0.75], [0.75, 0.25])
    assert found.forgetting == [0.25, 0.5]
    kept = retained(found, seed=0)
    assert kept.mean == pytest.approx(1 / 1.75)
    assert kept.low == pytest.approx(1 / 3)
    assert kept.high == pytest.approx(0.75)


def test_what_was_not_graded_is_left_out_and_never_wrong():
    streams = [stream_of([0, 0], [1, 0], [None, 1]), stream_of([0, 0], [None, 0], [None, None])]
    found = figures(streams)
    assert found.own == [1, None]
    assert found.final == [1, None]
    assert found.forgetting == [0, None]
    assert matrix(streams)[2] == [None, 1]
    kept = retained(found, seed=0)
    assert (kept.mean, kept.passages, kept.dropped) == (1, 1, 1)


def test_where_nothing_was_known_there_is_no_retention():
    assert math.isnan(retained(figures([stream_of([0], [0])] * 3), seed=0).mean)


@pytest.mark.parametrize("wrong", [{"replay": -1}, {"kl": -0.1}])
def test_options_that_make_no_sense_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is -"):
        Retention(**wrong)
