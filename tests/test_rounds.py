"""The outer loop: a toy world whose best self-edit is known is solved; what is kept, and what never; nothing twice.

The toy world: each task is a key with a value, and a self-edit is one word. Training on it makes the adapted model
answer the key's question with that word, so the value is the one self-edit that helps. The word `poison` has no finite
embedding: training on it diverges.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import pytest

from seal_jax.engine import batching
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.sampler import Sampling, read
from seal_jax.engine.training import FineTuning, Shapes, Trainer
from seal_jax.run.journal import RunFolder
from seal_jax.seal import rewards, rounds
from seal_jax.seal.outer import Outer, imitation
from seal_jax.seal.outer.imitation import train_on
from seal_jax.seal.outer.rest_em import select
from seal_jax.seal.outer.sets import try_in_sets
from seal_jax.seal.rewards import Score, Trial, log_likelihoods
from seal_jax.seal.rounds import Loop, fitted, run_round, try_base, try_self_edits, write_self_edits
from seal_jax.types import (
    PROJECTIONS,
    Codec,
    Compute,
    Domain,
    Example,
    LanguageModel,
    Query,
    SelfEdit,
    Verdict,
    by_query,
)
from tests import tiny


class Key(NamedTuple):
    id: str
    value: str


KEYS = [Key("north", "red"), Key("south", "blue")]
WORDS = ("ask", "write", "?", "north", "south", "red", "blue", "green", "poison")
SHAPES = Shapes(widths=(32,), capacity=1, questions=1, question_width=8, gold_width=8)
INNER = FineTuning(PROJECTIONS[3:], rank=4, alpha=8.0, learning_rate=3e-2, epochs=8)
SFT = FineTuning(PROJECTIONS, rank=8, alpha=16.0, learning_rate=5e-3, epochs=8, batch_size=2, initialisation="stored")
OUTER = Outer(rounds=4, passages=2, samples=16, reward_seeds=1, select="improved", sft=SFT)


def parse(task: Key, completion: str) -> SelfEdit:
    if not completion:
        return SelfEdit("", (), "empty completion")
    return SelfEdit(completion, (Example(f"ask {task.id} ?", completion),))


def grade(queries: Sequence[Query], answers: Sequence[str]) -> list[Verdict]:
    return [answer == query.gold for query, answer in zip(queries, answers, strict=True)]


DOMAIN = Domain(
    prompt=lambda task: f"write {task.id}",
    parse=parse,
    queries=lambda task: [Query(f"{task.id}?", f"ask {task.id} ?", task.value)],
    grade=by_query(grade),
)


class Silent:
    """Progress that only remembers how much was resumed."""

    def __init__(self):
        self.resumed, self.fresh = 0, 0

    def phase(self, name: str, total: int | None = None, unit: str = "passages") -> None:
        pass

    def advance(self, n=1, *, adapters=0, tokens=0, accuracy=None, resumed=False) -> None:
        self.resumed += n * resumed
        self.fresh += n * (not resumed)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    model = tiny.language_model(WORDS, seed=2, width=64)
    params = dict(model.params)
    params["lm_head"] = {"kernel": params["lm_head"]["kernel"] * 5}  # room to become sure of a word
    poison = model.codec.encode("poison")[0]
    params["embed"] = {"embedding": params["embed"]["embedding"].at[poison].set(math.nan)}
    return model._replace(params=jax.device_put(params, jax.devices()[0]))


@pytest.fixture
def loop(tmp_path) -> Loop:
    return make_loop(tmp_path / "run")


def make_loop(folder, chunk: int = 32, **changes) -> Loop:
    loop = Loop(
        domain=DOMAIN,
        trainer=Trainer(INNER, SHAPES, Compute(), Chunk(chunk)),
        sampling=Sampling(max_tokens=1),
        write_chunk=Chunk(32),
        answer_tokens=1,
        prompt_width=8,
        seed=0,
        journal=RunFolder(folder, {}),
        display=Silent(),
    )
    return loop._replace(**changes)


def a_round(lm: LanguageModel, tasks: Sequence[Key], config: Outer, loop: Loop, number: int = 1):
    """One round of the outer loop that `config` describes."""
    return run_round(lm, tasks, config.make(), loop, number=number, samples=config.samples)


def probability_of_best(lm: LanguageModel) -> np.ndarray:
    """[P]: how likely the model is to write each key's own value."""
    prompts, valid = batching.left_pad([lm.codec.encode(f"write {key.id}") for key in KEYS], 8)
    values = np.array([[lm.codec.encode(key.value) for key in KEYS]])
    prompts_read = read(lm.model, lm.params, None, prompts[None], valid[None])
    likely = log_likelihoods(lm.model, lm.params, None, prompts_read, valid[None], values, values >= 0)
    return np.exp(np.asarray(likely))[0]


# ---------------------------------------------------------------------------------------------------------------------
# A world whose best self-edit is known


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        OUTER,
        dataclasses.replace(OUTER, signal="log_likelihood"),
        dataclasses.replace(OUTER, method="advantages"),
        dataclasses.replace(OUTER, method="preferences"),
    ],
    ids=lambda config: f"{config.method} by {config.signal}",
)
def test_the_best_self_edit_of_every_task_is_found(lm, loop, config):
    before = probability_of_best(lm)
    assert (before < 0.3).all(), "the untrained model knows the answer"
    rewards, problems = [], set()
    for number in range(1, OUTER.rounds + 1):
        lm, log = a_round(lm, KEYS, config, loop, number)
        rewards.append(np.mean([[trial.accuracy for trial in row] for row in log.trials]))
        problems |= {trial.problem for row in log.trials for trial in row}
        for row, kept in zip(log.trials, log.keep, strict=True):
            assert all(trial.edit.completion == trial.task.value for trial, k in zip(row, kept, strict=True) if k)
    assert (probability_of_best(lm) > 0.9).all(), f"{before} became {probability_of_best(lm)}; rewards {rewards}"
    assert rewards[-1] > rewards[0] + 0.5
    assert problems == {None, "empty completion", "diverged"}  # they were tried, and changed nothing of the above


def test_what_another_model_wrote_is_imitated_and_has_its_rewards(lm, loop, monkeypatch):
    monkeypatch.setattr(rounds, "write_self_edits", None)  # nobody else writes
    recorded = {"north": ["red", "poison", "unread"], "south": ["blue", ""]}
    config = dataclasses.replace(OUTER, method="imitation", recorded="file", samples=2)
    for number in range(1, OUTER.rounds + 1):
        lm, log = run_round(lm, KEYS, config.make(recorded), loop, number=number, samples=2)
    assert [[trial.edit.completion for trial in row] for row in log.trials] == [["red", "poison"], ["blue", ""]]
    assert [row[0].accuracy for row in log.trials] == [1, 1]
    assert log.keep.tolist() == [[True, False], [True, False]]
    assert (probability_of_best(lm) > 0.9).all()


def test_what_a_self_edit_adds_to_the_others_of_its_task(lm, tmp_path):
    """Said twice, it adds nothing either time; what helps adds more than what does not."""
    trainer = Trainer(INNER, SHAPES._replace(capacity=3), Compute(), Chunk(32))
    loop = make_loop(tmp_path / "run", trainer=trainer)
    edits = [[parse(KEYS[0], word) for word in ("red", "red", "")], [parse(KEYS[1], w) for w in ("green", "blue")]]
    found = try_in_sets(lm, KEYS, edits, try_base(lm, KEYS, loop, name="a"), loop, "a", seeds=1)
    assert [trial.added["log_likelihood"] for trial in found[0]] == [0, 0, 0]
    useless, helps = (trial.added["probability"] for trial in found[1])
    assert useless < 0 < helps
    alone = try_self_edits(lm, KEYS[1:], edits[1:], [found[1][0].base], make_loop(tmp_path / "alone"), "b", seeds=1)
    np.testing.assert_allclose([t.log_likelihood for t in found[1]], [t.log_likelihood for t in alone[0]], atol=1e-4)
    config = dataclasses.replace(OUTER, signal="probability", reward="set")  # improved: it adds something
    log = config.make().learn(lm, found[1:], loop, "a")[1]
    assert log.keep.tolist() == [[False, True]]


def test_winners_are_imitated_by_the_lines_that_helped(lm, tmp_path):
    """Of two lines one says the answer and the other another; a winner with no line that helped teaches nothing."""

    def lined(task: Key, completion: str) -> SelfEdit:
        lines = tuple(completion.splitlines())
        return SelfEdit(completion, tuple(Example(f"ask {task.id} ?", line) for line in lines), lines=lines)

    trainer = Trainer(INNER, SHAPES._replace(capacity=2), Compute(), Chunk(32))
    loop = make_loop(tmp_path / "run", trainer=trainer, domain=DOMAIN._replace(parse=lined))
    edits = [
        [lined(KEYS[0], "green\nred"), lined(KEYS[0], "green")],
        [lined(KEYS[1], "green"), lined(KEYS[1], "red")],
    ]
    config = dataclasses.replace(OUTER, credit="lines", select="best", signal="log_likelihood")
    outer = config.make()
    trials = outer.try_edits(lm, KEYS, edits, try_base(lm, KEYS, loop, name="a"), loop, "a")
    after, log = outer.learn(lm, trials, loop, "a")
    harms, helps = log.trials[0][0].credit
    assert harms < 0 < helps and log.trials[0][1].credit is None
    assert all(credit < 0 for trial in log.trials[1] for credit in trial.credit or ())
    assert log.keep.tolist() == [[True, False], [False, False]]
    assert len(log.losses) == OUTER.sft.epochs
    assert probability_of_best(after)[0] > probability_of_best(lm)[0] + 0.1
    assert outer.learn(lm, trials, loop, "a")[1].trials == log.trials  # from the journal
    none = trials[:1]
    with pytest.raises(ValueError, match="not made of lines"):
        outer.learn(lm, [[t._replace(edit=t.edit._replace(lines=())) for t in row] for row in none], loop, "b")


@pytest.mark.parametrize("method", ["advantages", "preferences"])
def test_a_round_that_is_killed_after_each_of_its_pieces_ends_as_one_that_is_not(lm, tmp_path, killed_after, method):
    config = dataclasses.replace(OUTER, method=method, samples=3, signal="log_likelihood")

    def attempt(name: str) -> tuple:
        loop = make_loop(tmp_path / name)
        try:
            return a_round(lm, KEYS, config, loop)
        finally:
            loop.journal.close()

    expected, expected_log = attempt("undisturbed")
    pieces = len((tmp_path / "undisturbed" / "journal.jsonl").read_bytes().splitlines())
    assert pieces >= 8  # writing, the base model, each self-edit that trains, the losses, and the adapter
    for _ in range(pieces):
        with killed_after(1):
            attempt("killed")
    found, log = attempt("killed")
    assert (log.trials, log.losses, log.skipped) == (expected_log.trials, expected_log.losses, expected_log.skipped)
    assert log.losses and (log.keep == expected_log.keep).all()
    jax.tree.map(np.testing.assert_array_equal, found.params["blocks"], expected.params["blocks"])


@pytest.mark.parametrize("method", ["advantages", "preferences"])
@pytest.mark.parametrize(("samples", "right"), [(1, None), (4, True)], ids=["one sample", "equal rewards"])
def test_a_task_whose_rewards_do_not_differ_teaches_nothing_and_is_counted(lm, tmp_path, method, samples, right):
    loop = make_loop(tmp_path / "run")
    if right:
        loop = loop._replace(domain=DOMAIN._replace(grade=by_query(lambda queries, _: [True] * len(queries))))
    config = dataclasses.replace(OUTER, method=method, samples=samples, break_ties=False)
    after, log = a_round(lm, KEYS, config, loop)
    assert after is lm and log.losses == [] and not log.keep.any()
    assert log.skipped == len(KEYS)


# ---------------------------------------------------------------------------------------------------------------------
# One round, looked at closely


def test_a_round_asks_the_base_once_a_question_and_does_nothing_twice(lm, tmp_path, monkeypatch):
    asked, tried = [], []
    real_base, real_score = rounds.score_base, rounds.score_each

    def counting_base(lm, queries, *rest, **options):
        asked.extend(query.question for group in queries for query in group)
        return real_base(lm, queries, *rest, **options)

    def counting_score(lm, edits, *rest, **options):
        tried.extend(options["seed"])
        return real_score(lm, edits, *rest, **options)

    monkeypatch.setattr(rounds, "score_base", counting_base)
    monkeypatch.setattr(rounds, "score_each", counting_score)
    config = dataclasses.replace(OUTER, samples=8, reward_seeds=2)
    loop = make_loop(tmp_path / "run")
    after, log = a_round(lm, KEYS, config, loop)
    assert asked == ["north?", "south?"]
    trained = sum(bool(trial.edit.examples) for row in log.trials for trial in row)
    assert tried == [0] * trained + [1] * trained  # every self-edit that can be trained on, once a training seed
    assert all(len(trial.scores) == (2 if trial.edit.examples else 1) for row in log.trials for trial in row)
    loop.journal.close()

    def not_again(*_, **__):
        raise AssertionError("finished work was done again")

    for module, name in ((rounds, "score_base"), (rewards, "ask"), (rounds, "sample"), (imitation, "train")):
        monkeypatch.setattr(module, name, not_again)
    # Another chunk, as after a run that found too little memory late: the pieces it finished are still its pieces.
    again = make_loop(tmp_path / "run")
    resumed, resumed_log = a_round(lm, KEYS, config, again)
    assert resumed_log.trials == log.trials
    assert resumed_log.losses == log.losses
    assert (resumed_log.keep == log.keep).all()
    assert again.display.fresh <= 2  # what was kept
    jax.tree.map(np.testing.assert_array_equal, resumed.params["blocks"], after.params["blocks"])


def test_a_chunk_halved_by_lack_of_memory_does_not_change_which_pieces_a_run_has(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "score_base", lambda lm, queries, *_, **__: [one_score(0.5) for _ in queries])
    monkeypatch.setattr(
        rounds,
        "score_each",
        lambda lm, edits, *_, skip, **__: [
            (i, one_score(len(e.completion) / 8)) for i, e in enumerate(edits) if i not in skip
        ],
    )
    edits = [[parse(key, word) for word in ("red", "blue", "green")] for key in KEYS * 2]

    def play(loop: Loop) -> tuple:
        base = try_base(lm, KEYS * 2, loop, name="a")
        return base, try_self_edits(lm, KEYS * 2, edits, base, loop, seeds=1, name="a")

    first = make_loop(tmp_path / "run", chunk=4)
    first.trainer.chunk.size = 2  # as `in_chunks` leaves it
    played = play(first)
    first.journal.close()
    again = make_loop(tmp_path / "run", chunk=4)
    assert play(again) == played
    assert again.display.fresh == 0


def test_an_empty_completion_scores_as_no_training_and_is_never_kept(lm, loop):
    edits = [[parse(key, ""), parse(key, "green")] for key in KEYS]
    base = try_base(lm, KEYS, loop, name="a")
    trials = try_self_edits(lm, KEYS, edits, base, loop, seeds=2, name="a")
    for row, untrained in zip(trials, base, strict=True):
        empty = row[0]
        assert empty.problem == "empty completion"
        assert empty.scores == [untrained._replace(problem="empty completion")]
        assert (empty.accuracy, empty.log_likelihood) == (untrained.accuracy, untrained.log_likelihood)
        assert empty.scores[0].losses == []
        assert row[1].problem is None
        assert len(row[1].scores) == 2


@pytest.mark.parametrize("rule", ["best", "improved", "all_improved"])
def test_what_trains_nothing_or_diverges_is_never_kept_nor_stands_in_anothers_way(lm, tmp_path, monkeypatch, rule):
    """Even where it scores highest; the best of the others is chosen then."""
    words = ["", "green", "poison", "red"]
    accuracy = {"": 1.0, "green": 0.5, "poison": 1.0, "red": 0.75}
    task = Key("north", "red")
    base = one_score(0.25)
    trials = [
        Trial(task, k, parse(task, word), [one_score(accuracy[word], "diverged" if word == "poison" else None)], base)
        for k, word in enumerate(words)
    ]
    kept = round_of(lm, monkeypatch, make_loop(tmp_path / "run"), trials, base, rule)
    assert kept == (["green", "red"] if rule == "all_improved" else ["red"])


@pytest.mark.parametrize(
    ("signal", "break_ties", "expected"),
    [("accuracy", False, "green"), ("accuracy", True, "red"), ("log_likelihood", False, "blue")],
)
def test_the_signal_and_the_tie_break_are_the_configs(lm, tmp_path, monkeypatch, signal, break_ties, expected):
    task, base = KEYS[0], one_score(0.0, log_likelihood=-9.0)
    figures = {"green": (1.0, -3.0), "red": (1.0, -2.0), "blue": (0.5, -1.0)}
    trials = [
        Trial(task, k, parse(task, word), [one_score(accuracy, log_likelihood=likely)], base)
        for k, (word, (accuracy, likely)) in enumerate(figures.items())
    ]
    loop = make_loop(tmp_path / "run")
    assert round_of(lm, monkeypatch, loop, trials, base, "best", signal=signal, break_ties=break_ties) == [expected]


def one_score(accuracy: float, problem: str | None = None, log_likelihood: float = -1.0) -> Score:
    """A score of four questions."""
    return Score(["?"] * 4, [q < 4 * accuracy for q in range(4)], [log_likelihood] * 4, [], problem)


def round_of(lm, monkeypatch, loop, trials: list[Trial], base: Score, rule, **config) -> list[str]:
    """The completions that a round of one task with these trials learns to write."""
    learned: list[Example] = []
    monkeypatch.setattr(rounds, "try_base", lambda *_, **__: [base])
    monkeypatch.setattr(rounds, "write_self_edits", lambda *_, **__: [[trial.edit for trial in trials]])
    monkeypatch.setattr(rounds, "try_self_edits", lambda *_, **__: [trials])
    monkeypatch.setattr(
        imitation,
        "train_on",
        lambda lm, pairs, *_, **__: (learned.extend(pairs), train_on(lm, pairs[:1], SFT, seed=0))[1],
    )
    _, log = a_round(lm, [trials[0].task], dataclasses.replace(OUTER, select=rule, **config), loop)
    kept = [trial.edit.completion for trial, k in zip(trials, log.keep[0], strict=True) if k]
    assert [pair.completion for pair in learned] == [f"{text} {tiny.END}" for text in kept]
    assert all(pair.prompt == "write north" for pair in learned)
    return kept


def test_a_completion_that_was_cut_off_is_learned_without_an_end(lm, tmp_path, monkeypatch):
    pairs: list[Example] = []

    def record(lm, given, config, **options):
        pairs.extend(given)
        return train_on(lm, given, config, **options)

    monkeypatch.setattr(imitation, "train_on", record)
    loop = make_loop(tmp_path / "run")
    _, log = a_round(lm, KEYS, dataclasses.replace(OUTER, samples=8, select="best"), loop)
    kept = [trial for row, k in zip(log.trials, log.keep, strict=True) for trial, k in zip(row, k, strict=True) if k]
    assert len(kept) == 2
    assert not any(trial.edit.finished for trial in kept)  # one token is the limit here
    assert [pair.completion for pair in pairs] == [trial.edit.completion for trial in kept]


def test_a_round_that_keeps_nothing_leaves_the_model_as_it_is(lm, tmp_path):
    never = DOMAIN._replace(grade=by_query(lambda queries, answers: [False] * len(queries)))
    loop = make_loop(tmp_path / "run", domain=never)
    after, log = a_round(lm, KEYS, OUTER, loop)
    assert after is lm
    assert not log.keep.any()
    assert log.losses == []
    assert not (loop.journal.path / "checkpoints").exists()


def test_an_sft_that_diverges_does_not_spoil_the_model(lm):
    pairs = [Example("write north", f"north {tiny.END}")]
    with pytest.raises(ValueError, match=r"diverged at learning rate inf.*lower --outer.sft.learning-rate"):
        train_on(lm, pairs, dataclasses.replace(SFT, learning_rate=math.inf), seed=0)


def test_a_missing_verdict_is_not_a_wrong_one(lm, tmp_path):
    silent = make_loop(tmp_path / "run", domain=DOMAIN._replace(grade=by_query(lambda asked, _: [None] * len(asked))))
    after, log = a_round(lm, KEYS, dataclasses.replace(OUTER, select="best"), silent)
    trials = [trial for row in log.trials for trial in row if trial.problem != "diverged"]
    assert trials
    assert {trial.accuracy for trial in trials} == {None}
    assert after is lm  # no reward, nothing kept


def test_the_reward_is_the_mean_over_training_seeds():
    scores = [one_score(1.0, log_likelihood=-1.0), one_score(0.5, log_likelihood=-2.0)]
    trial = Trial(KEYS[0], 0, parse(KEYS[0], "red"), scores, one_score(0.0))
    assert (trial.accuracy, trial.log_likelihood, trial.problem) == (0.75, -1.5, None)
    lost = Score([""], [False], [None], [], "diverged")
    trial = trial._replace(scores=[*scores, lost])
    assert (trial.accuracy, trial.log_likelihood, trial.problem) == (0.5, -1.5, "diverged")
    missing = trial._replace(scores=[one_score(1.0), Score(["?"], [None], [None], [])])
    assert missing.accuracy == 1.0


def test_what_a_task_draws_does_not_depend_on_its_neighbours_or_the_chunk(lm, tmp_path):
    draws = []
    for i, (tasks, chunk) in enumerate([(KEYS, 32), (KEYS[::-1], 32), (KEYS[:1], 32), (KEYS, 4)]):
        loop = make_loop(tmp_path / str(i), write_chunk=Chunk(chunk))
        edits = write_self_edits(lm, tasks, loop, samples=4, name="a")
        draws.append({task.id: [edit.completion for edit in row] for task, row in zip(tasks, edits, strict=True)})
    assert draws[0] == draws[1] == draws[3]
    assert draws[2]["north"] == draws[0]["north"]
    assert draws[0]["north"] != draws[0]["south"]
    other = write_self_edits(lm, KEYS, make_loop(tmp_path / "seed", seed=1), samples=4, name="a")
    assert [edit.completion for edit in other[0]] != draws[0]["north"]
    later = write_self_edits(lm, KEYS, make_loop(tmp_path / "name"), samples=4, name="b")
    assert [edit.completion for edit in later[0]] != draws[0]["north"]


# ---------------------------------------------------------------------------------------------------------------------
# Selection

NAN = math.nan


@pytest.mark.parametrize(
    ("rule", "rewards", "baseline", "expected"),
    [
        ("best", [0.2, 0.6, 0.4], 0.9, [1]),  # gain or not
        ("best", [0.2, 0.6, 0.6], 0.0, [1]),  # the first of equals
        ("best", [0.0, 0.0, 0.0], 0.0, [0]),
        ("best", [NAN, 0.1, NAN], 0.5, [1]),
        ("best", [NAN, NAN, NAN], 0.5, []),
        ("best", [-9.0, -3.0, -4.0], -1.0, [1]),  # log-likelihoods
        ("best", [0.2, 0.6, 0.4], NAN, [1]),
        ("improved", [0.2, 0.6, 0.8], 0.5, [2]),  # one a task
        ("improved", [0.2, 0.6, 0.5], 0.6, []),  # as good as the base is no gain
        ("improved", [NAN, 0.6, NAN], 0.5, [1]),
        ("improved", [0.6, 0.6, 0.2], 0.5, [0]),
        ("improved", [0.2, 0.6, 0.4], NAN, []),  # nothing to compare with
        ("all_improved", [0.2, 0.6, 0.8], 0.5, [1, 2]),
        ("all_improved", [0.5, 0.5, 0.6], 0.5, [2]),
        ("all_correct", [1.0, 0.5, 1.0], 1.0, [0, 2]),  # whatever the base model does
        ("all_correct", [NAN, 0.9, 0.0], 0.0, []),
        ("all_improved", [NAN, 0.5, 0.2], 0.0, [1, 2]),
        ("all_improved", [0.1, 0.2, 0.3], NAN, []),
    ],
)
def test_select(rule, rewards, baseline, expected):
    keep = select(np.array([rewards]), np.array([baseline]), rule=rule)
    assert keep.dtype == bool
    assert np.flatnonzero(keep[0]).tolist() == expected


@pytest.mark.parametrize(
    ("rule", "tie_break", "expected"),
    [
        ("best", [-3.0, -2.0, -1.0], [1]),  # among the best only
        ("best", [-2.0, -2.0, -1.0], [0]),
        ("best", [NAN, -5.0, -1.0], [1]),
        ("best", [NAN, NAN, -1.0], [0]),
        ("improved", [-3.0, -2.0, -1.0], [1]),
        ("all_improved", [-3.0, -2.0, -1.0], [0, 1]),  # no tie to break
    ],
)
def test_select_breaks_ties(rule, tie_break, expected):
    keep = select(np.array([[0.6, 0.6, 0.4]]), np.array([0.5]), rule=rule, tie_break=np.array([tie_break]))
    assert np.flatnonzero(keep[0]).tolist() == expected


def test_select_takes_each_task_by_itself():
    rewards = np.array([[0.1, 0.2], [0.9, 0.8], [0.5, 0.5]])
    baseline = np.array([0.15, 0.95, 0.5])
    kept = {rule: select(rewards, baseline, rule=rule).astype(int).tolist() for rule in ("best", "improved")}
    assert kept == {"best": [[0, 1], [1, 0], [1, 0]], "improved": [[0, 1], [0, 0], [0, 0]]}


def test_a_self_edit_that_reads_back_too_long_is_cut_and_counted():
    def encode(text):  # longer than it was written: three tokens where one was not a whole character
        return [1] * (len(text) + 2 * text.count("?"))

    codec = Codec(encode, encode, lambda ids: "", end="", stop=())
    edit = SelfEdit("...", (Example("", "ab?d????"), Example("", "abc")))
    found = fitted(edit, codec, Shapes((4, 8), 2, 1, 8, 8))
    assert found.shortened == 1 and found.examples[1] == edit.examples[1]
    kept = found.examples[0].completion
    assert "ab?d????".startswith(kept) and 0 < len(encode(kept)) <= 8
    assert fitted(found, codec, Shapes((4, 8), 2, 1, 8, 8)) == found
