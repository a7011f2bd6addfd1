"""The easy tasks: each follows the rule that its id names, worked out again here, and has one answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from seal_jax.domains.arc.grids import SPLITS, Grid, Pair, Split, Task, as_grid
from seal_jax.domains.arc.tasks import EASY, load_tasks
from tests.golden import make_easy_tasks as easy

Rows = list[list[int]]

# The rules once more, on lists of rows: the outputs that each may make of an input, one for each of its parameters


def turned(rows: Rows) -> Rows:
    return [[row[x] for row in rows] for x in reversed(range(len(rows[0])))]


def recoloured(rows: Rows, new: dict[int, int]) -> Rows:
    return [[new.get(cell, cell) for cell in row] for row in rows]


RULES: dict[str, Callable[[Rows], list[Rows]]] = {
    "keep": lambda rows: [rows],
    "flip": lambda rows: [rows[::-1], [row[::-1] for row in rows]],
    "rotate": lambda rows: [turned(rows), turned(turned(rows)), turned(turned(turned(rows)))],
    "transpose": lambda rows: [[list(column) for column in zip(*rows, strict=True)]],
    "shift": lambda rows: [
        rows[-1:] + rows[:-1],
        rows[1:] + rows[:1],
        [row[-1:] + row[:-1] for row in rows],
        [row[1:] + row[:1] for row in rows],
    ],
    "mirror": lambda rows: [
        rows + rows[::-1],
        rows[::-1] + rows,
        [row + row[::-1] for row in rows],
        [row[::-1] + row for row in rows],
    ],
    "tile": lambda rows: [rows + rows, [row + row for row in rows]],
    "crop": lambda rows: [rows[:1], rows[-1:], [row[:1] for row in rows], [row[-1:] for row in rows]],
    "fill": lambda rows: [recoloured(rows, {0: new}) for new in range(1, 10)],
    "recolour": lambda rows: [
        recoloured(rows, {old: new}) for old in range(1, 10) for new in range(1, 10) if new != old
    ],
    "swap": lambda rows: [recoloured(rows, {a: b, b: a}) for a in range(1, 10) for b in range(a + 1, 10)],
}


def parameters(rule: str, pairs: tuple[Pair, ...]) -> list[int]:
    """Which of a rule's parameters explain all of these pairs."""
    made = [RULES[rule](pair.input.tolist()) for pair in pairs]
    return [
        i for i in range(len(made[0])) if all(m[i] == pair.output.tolist() for m, pair in zip(made, pairs, strict=True))
    ]


def rule_of(task: Task) -> str:
    prefix, rule, _ = task.id.split("-")
    assert prefix == "easy"
    return rule


def digest(tasks: list[Task]) -> str:
    text = repr([(t.id, [(p.input.tolist(), p.output.tolist()) for p in t.train + t.test]) for t in tasks])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.fixture(scope="module", params=SPLITS)
def split(request: pytest.FixtureRequest) -> Split:
    return request.param


@pytest.fixture(scope="module")
def many(split: Split) -> list[Task]:
    return easy.generate(split, count=220, seed=3)


def test_each_task_follows_the_rule_it_is_named_after(many: list[Task]):
    for task in many:
        assert parameters(rule_of(task), task.train + task.test), task.id


def test_each_task_has_one_answer(many: list[Task]):
    """Whatever rule explains the demonstrations, it makes the same of the test input."""
    for task in many:
        for rule in RULES:
            for i in parameters(rule, task.train):
                for pair in task.test:
                    assert RULES[rule](pair.input.tolist())[i] == pair.output.tolist(), (task.id, rule)


def test_every_rule_and_every_direction_comes_up(many: list[Task]):
    assert {rule_of(task) for task in many} == {*RULES}
    for rule in ("flip", "rotate", "shift", "mirror", "tile", "crop"):
        of_rule = [parameters(rule, task.train + task.test) for task in many if rule_of(task) == rule]
        assert {i for found in of_rule for i in found} == {*range(len(RULES[rule]([[1, 2], [3, 4]])))}, rule


def test_sizes(many: list[Task]):
    for task in many:
        assert len(task.train) in (3, 4)
        assert len(task.test) == 1
        pairs = task.train + task.test
        assert len({pair.input.shape for pair in pairs}) == len({pair.output.shape for pair in pairs}) == 1
        for pair in pairs:
            assert min(pair.input.shape) >= 2
            assert max(pair.input.shape) <= 3
            assert min(pair.output.shape) >= 1
            assert max(pair.output.shape) <= 4
        assert (
            60 <= sum(2 * grid.size for pair in pairs for grid in pair) <= 150
        )  # a digit and what parts it from the next
        assert len(np.unique(np.concatenate([pair.input.ravel() for pair in pairs]))) <= 4


def test_every_pair_shows_the_rule(many: list[Task]):
    for task in many:
        for pair in task.train + task.test:
            assert (rule_of(task) == "keep") == np.array_equal(*pair), task.id


def test_no_input_twice(many: list[Task]):
    for task in many:
        inputs = [pair.input.tolist() for pair in task.train + task.test]
        assert all(inputs.count(grid) == 1 for grid in inputs), task.id
    assert len({digest([task._replace(id="")]) for task in many}) == len(many)


def test_the_splits_share_neither_input_nor_id():
    training, evaluation = (
        [*easy.generate(split, count=220), *easy.generate(split, count=33, seed=9)] for split in SPLITS
    )

    def inputs(tasks: list[Task]) -> set[str]:
        return {str(pair.input.tolist()) for task in tasks for pair in task.train + task.test}

    assert not inputs(training) & inputs(evaluation)
    assert not {task.id for task in training} & {task.id for task in evaluation}


def test_ids_name_the_rule_and_a_number():
    assert [task.id for task in easy.generate("training", count=13)][:2] == ["easy-keep-1", "easy-flip-1"]
    assert [task.id for task in easy.generate("training", count=13)][-2:] == ["easy-keep-3", "easy-flip-3"]
    assert [task.id for task in easy.generate("evaluation", count=13)][-2:] == ["easy-keep-4", "easy-flip-4"]


def test_the_same_seed_gives_the_same_tasks(split: Split):
    tasks = easy.generate(split, count=30, seed=1)
    assert digest(tasks) == digest(easy.generate(split, count=30, seed=1))
    assert digest(tasks) == digest(easy.generate(split, count=60, seed=1)[:30])
    assert digest(tasks) != digest(easy.generate(split, count=30, seed=2))


def test_the_file_is_what_its_script_writes():
    assert EASY.read_text(encoding="utf-8") == easy.written()


def test_the_tasks_are_those_of_every_machine():
    """A change here changes everybody's numbers: it belongs into the change log."""
    assert {split: digest(load_tasks("easy", split)) for split in SPLITS} == {
        "training": "863ff8edda1c09a3",
        "evaluation": "e14a92ad97f52478",
    }


def test_four_of_each_rule_by_default(split: Split):
    tasks = load_tasks("easy", split)
    assert {rule: sum(rule_of(task) == rule for task in tasks) for rule in RULES} == dict.fromkeys(RULES, 4)


def test_what_cannot_be_made():
    assert easy.generate("training", count=0) == []
    with pytest.raises(ValueError, match=r"count is -1; expected at least 0"):
        easy.generate("training", count=-1)
    with pytest.raises(ValueError, match=r"split is 'test'; expected 'training' or 'evaluation'"):
        easy.generate("test")  # type: ignore[arg-type]


def test_ambiguous_demonstrations_are_seen():
    """Demonstrations that both a flip and a rotation explain need a test input that both treat alike."""

    def pair(rows: Rows) -> Pair:
        grid: Grid = as_grid(rows)
        return Pair(grid, as_grid(rows[::-1]))

    shown = (pair([[1, 1], [2, 2]]), pair([[3, 3], [1, 1]]))  # flipped, shifted or half a turn
    assert {variant.rule for variant in easy.explanations(Task("t", shown, shown))} == {"flip", "rotate", "shift"}
    assert easy.has_one_answer(Task("t", shown, (pair([[4, 4], [1, 1]]),)))
    assert not easy.has_one_answer(Task("t", shown, (pair([[4, 1], [1, 1]]),)))
