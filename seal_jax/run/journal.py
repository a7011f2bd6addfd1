"""What a run keeps on disk, so that it can be killed at any moment and lose nothing that was finished.

A run is a sequence of named pieces of work, each a pure function of the config and of earlier pieces. `RunFolder.once`
runs a piece, or returns what it returned the last time: small results as lines of journal.jsonl, pytrees as Orbax
checkpoints. So the same command on the same folder carries on, and ends as an undisturbed run does.

What is read back is verified. Every line ends in a checksum of itself, of the line before it and so, through the first
one, of the config; the line of a checkpoint holds its digest. Only a last line that a kill cut short is dropped in
silence. After a line that was altered nothing is read: what it held and what was built on it is done again, and said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from seal_jax.run import checkpoints, ends, hosts
from seal_jax.run.terminal import show
from seal_jax.types import by_name

SCHEMA = 3  # of what a run folder holds: a folder of another one is refused by name, never misread
PLAN = "memory"  # a piece of this name, or under it, is a plan of the work and none of it
# What a run has in its folder before it works.
EMPTY = {"config.json", "journal.jsonl", "run.toml", "metrics.jsonl", "tensorboard", "tracker.json"}
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk
CHECK = 16  # hexadecimal digits of a line's checksum
LONGEST_NAME = 120  # characters of a folder's


class Line(NamedTuple):
    """A line of the journal: a finished piece of work."""

    name: str
    value: Any = None
    tree: str | None = None  # the digest of its checkpoint, where it is a pytree
    spent: Mapping[str, float] = {}  # seconds since the line before, by phase and in "total"


class RunFolder:
    """A run's folder: config.json, journal.jsonl, checkpoints/.

    Args:
        say: called with what was found damaged and is done again.

    Raises:
        ValueError: the folder holds a run of another config (names the fields) or of another version, or is no run
            folder.
        OSError: another process is running in it, or there is no room (says how to go on).
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], say: Callable[[str], None] = show):
        self.path, self.say = Path(path).absolute(), say
        self.clock: Callable[[], Mapping[str, float]] = dict  # seconds that this process has taken, by phase
        self._config_file, self._journal_file = self.path / "config.json", self.path / "journal.jsonl"
        claimed: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **config}))
        self.identity = digest(claimed)
        self._pieces: dict[str, Any] = {}
        self._trees: dict[str, str] = {}
        self._spent: Counter[Any] = Counter()  # of all processes, as far as it is in the journal
        self._counted: Mapping[str, float] = {}  # of this one
        with explained(self.path):
            self._refuse_strangers()
            self._made = sum(not path.exists() for path in (self.path, *self.path.parents))
            self.path.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk refuses must not lie in a buffer and be written later.
            self._journal = self._journal_file.open("ab+", buffering=0)
            try:
                self._lock()
                self._claim(claimed)
                self._follow(claimed)
            except BaseException:
                self._journal.close()
                raise

    def _refuse_strangers(self) -> None:
        if self.path.exists() and not self._journal_file.exists() and any(self.path.iterdir()):
            raise ValueError(
                f"{self.path} is neither empty nor a run folder (it has no {self._journal_file.name}); "
                "name another --run-folder"
            )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(
                f"{self.path}: another process is running here; wait for it, or use another --run-folder"
            ) from error

    def _claim(self, config: dict[str, Any]) -> None:
        """Reads the journal of this config, or takes over a folder in which nothing was finished under another one."""
        content, there = self._journal_file.read_bytes(), read_json(self._config_file)
        lines, end = verified(content, config)
        if there != config and end:  # the journal is this config's, to the bit
            self.say(f"{self._config_file} was damaged or is gone; it is written again")
        elif there != config:
            if b"\n" in content:
                self._require_unused(content, there, config)
            content = b""
        if b"\n" in content[end:]:
            self._set_aside(content[end:], len(lines))
        self._journal.truncate(end)
        if there != config:
            write_atomically(self._config_file, json.dumps(config, indent=2))
        self._check = content[end - CHECK - 3 : end - 3].decode() if end else self.identity
        for line in lines:
            self._enter(line)

    def _follow(self, config: dict[str, Any]) -> None:
        """Among processes that share the run, takes over what process 0's folder holds.

        Raises:
            ValueError: they were started for different runs.
        """
        if group := hosts.joined():
            for other, claimed in enumerate(group.gather(config)):
                if claimed != config:
                    name, a, b = next(differences(config, claimed))
                    raise ValueError(f"two processes that share a run differ in {name}: {a!r} here, {b!r} in {other}")
            self._pieces, self._trees = group.share((self._pieces, self._trees))

    def _require_unused(self, content: bytes, there: Any, config: dict[str, Any]) -> None:
        """Raises where something was finished under what config.json says, or may have been."""
        lines, end = verified(content, there)
        if end == content.rfind(b"\n") + 1 and all(line.name.partition("/")[0] == PLAN for line in lines):
            return
        another = "use another --run-folder or remove this one"
        if not isinstance(there, dict):
            raise ValueError(
                f"{self._config_file} is damaged or gone, and {self._journal_file.name} is not of this command, or is "
                f"damaged too: nothing says what was run here; {another}"
            )
        if there.get("schema") != SCHEMA:
            found = f"schema {there['schema']}" if "schema" in there else "no schema number"
            raise ValueError(
                f"{self.path} was written by another version of seal_jax ({found} in config.json, expected {SCHEMA}); "
                f"finish it with that version, or {another}"
            )
        differing = [f"{name}: {a!r} there, {b!r} now" for name, a, b in differences(there, config)]
        raise ValueError(
            f"{self.path} holds a run of another config; {another}. Differing fields:\n  " + "\n  ".join(differing)
        )

    def _set_aside(self, lost: bytes, whole: int) -> None:
        """Keeps what is not read any more, and says so, unless it is a last line that was cut short."""
        aside = self._journal_file.with_suffix(".damaged")
        aside.write_bytes(lost)
        count = lost.count(b"\n")
        self.say(
            f"{self._journal_file}: line {whole + 1} is damaged; what it held"
            f"{f' and the {count - 1} lines after it, which build on it,' if count > 1 else ''} "
            f"{'are' if count > 1 else 'is'} done again. They are kept in {aside.name}"
        )

    def _enter(self, line: Line) -> None:
        if line.tree is None:
            self._pieces[line.name] = line.value
        else:
            self._trees[line.name] = line.tree
        self._spent.update(line.spent)

    def _finish(self, name: str, **kept: Any) -> None:
        """Adds a line to the journal, with the seconds since the last one."""
        now = self.clock()
        spent = {phase: round(seconds - self._counted.get(phase, 0.0), 3) for phase, seconds in now.items()}
        self._add({"name": name, **kept, "spent": {p: s for p, s in spent.items() if s > 0}})
        self._counted = now

    def _add(self, entry: Mapping[str, Any]) -> None:
        body = json.dumps(by_name(entry))
        line, check = seal(body.encode(), self._check)
        with explained(self.path):
            self._append(line)
        self._check = check
        self._enter(Line(**json.loads(body)))  # as a resumed run would read it

    def _append(self, line: bytes) -> None:
        """The whole line, or nothing of it."""
        end = self._journal.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._journal.write(line) :]
            os.fsync(self._journal.fileno())
        except OSError:
            self._journal.truncate(end)
            raise

    @property
    def finished(self) -> int:
        """How many pieces of work are on disk."""
        return len(self._pieces)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds that the finished pieces took, in all processes that worked here: by phase, and in "total"."""
        return dict(self._spent)

    def has(self, name: str) -> bool:
        """Whether the piece was finished before."""
        return name in self._pieces

    def under(self, prefix: str) -> dict[str, Any]:
        """The finished pieces whose names begin so."""
        return {name: value for name, value in self._pieces.items() if name.startswith(prefix)}

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """The JSON value of a piece of work, from the journal if it is there. On disk before it is returned.

        A NamedTuple in it comes back as a dict of its fields.
        """
        ends.stop_if_asked()
        if name not in self._pieces:
            self._finish(name, value=hosts.shared(work()))
        return self._pieces[name]

    def once_tree(self, name: str, work: Callable[[], Any], like: Any) -> Any:
        """The pytree of arrays of a piece of work, from its Orbax checkpoint if it is there and whole.

        `like` is a tree of `jax.ShapeDtypeStruct`; a checkpoint appears under its name only when it is whole.

        Raises:
            ValueError: it is lost, and comes out differently now: what was built on it would not be of this run.
        """
        ends.stop_if_asked()
        path, kept = self.path / "checkpoints" / name, self._trees.get(name)
        with explained(self.path):
            tree = checkpoints.restore(path, like, kept) if kept and not hosts.follows() else None
            wanted = hosts.shared(tree is None)
            if wanted and hosts.follows():
                work()
            elif wanted:
                if kept:
                    self.say(f"{path} is {'damaged' if path.exists() else 'gone'}; it is made again")
                made = work()
                found = checkpoints.tree_digest(made)
                if kept not in (None, found):
                    raise ValueError(
                        f"{path} is damaged or gone, and made again it is another one (another machine, or other "
                        "libraries?), so what was built on it cannot be carried on; use another --run-folder"
                    )
                checkpoints.save(path, made)
                if kept is None:
                    self._finish(name, tree=found)
                tree = checkpoints.restore(path, like, found)
        if tree is None and not hosts.follows():
            raise OSError(f"{path} is not as it was written a moment ago; check the disk, then run the same command")
        if hosts.joined():  # what process 0 made, to the bit, whatever others did
            return jax.tree.map(
                lambda leaf, a: jax.device_put(a, leaf.sharding), like, hosts.shared(jax.device_get(tree))
            )
        return tree

    def take_over(self, lines: Iterable[Line]) -> int:
        """Pieces that another run finished, with the seconds that they took there; how many were not here yet.

        Raises:
            ValueError: this one is planned otherwise, and its pieces are cut otherwise.
        """
        lines = list(lines)
        if any(line.name == PLAN and self._pieces.get(PLAN, line.value) != line.value for line in lines):
            raise ValueError(
                f"{self.path} was begun with another plan of its work than the run to begin as; use another "
                "--run-folder"
            )
        new = [line for line in lines if line.name not in self._pieces]
        for line in new:
            self._add({"name": line.name, "value": line.value, "spent": line.spent})
        return len(new)

    def forget_tree(self, name: str) -> None:
        """Removes a checkpoint that nothing will ask for again, if it is there."""
        shutil.rmtree(self.path / "checkpoints" / name, ignore_errors=True)

    def close(self) -> None:
        """Releases the folder for another process. One that was made here and holds nothing finished is removed."""
        finished = self._trees or any(name.partition("/")[0] != PLAN for name in self._pieces)
        there = self.path.iterdir() if self.path.is_dir() else ()
        kept = {path.name for path in there if path.name != "judge.jsonl" or path.stat().st_size}
        if self._made and not finished and kept <= EMPTY:
            shutil.rmtree(self.path, ignore_errors=True)
            for parent in self.path.parents[: self._made - 1]:
                with contextlib.suppress(OSError):  # another run is there
                    parent.rmdir()
        self._journal.close()


class Kept(NamedTuple):
    """What another run's folder holds."""

    config: dict[str, Any]
    pieces: dict[str, Any]
    trees: dict[str, str]  # digests of checkpoints
    timings: dict[str, float]  # as of `RunFolder`


def read_run(path: Path) -> Kept:
    """What a run's folder holds, verified. It is not changed. Raises as `read_lines`."""
    config, lines = read_lines(path)
    trees, spent = {line.name: line.tree for line in lines if line.tree is not None}, Counter[str]()
    for line in lines:
        spent.update(line.spent)
    return Kept(config, {line.name: line.value for line in lines if line.tree is None}, trees, dict(spent))


def read_lines(path: Path) -> tuple[dict[str, Any], list[Line]]:
    """The config of a run's folder and its journal, verified. It is not changed.

    Raises:
        ValueError: it is no run folder of this version, or damaged.
    """
    config, file = read_json(path / "config.json"), path / "journal.jsonl"
    if not isinstance(config, dict) or not file.is_file():
        raise ValueError(f"{path}: no run folder (config.json and journal.jsonl), or a damaged one")
    if config.get("schema") != SCHEMA:
        raise ValueError(f"{path} was written by another version of seal_jax; run its command again with this one")
    content = file.read_bytes()
    lines, end = verified(content, config)
    if b"\n" in content[end:]:
        raise ValueError(
            f"{file}: line {len(lines) + 1} is damaged, or config.json is; run the command of that run again, which "
            "does again what was lost"
        )
    return config, lines


def seal(body: bytes, previous: str) -> tuple[bytes, str]:
    """A line of the journal from its JSON object, and its checksum, which the next one builds on."""
    check = hashlib.sha256(previous.encode() + body).hexdigest()[:CHECK]
    return body[:-1] + f', "check": "{check}"}}\n'.encode(), check


def verified(content: bytes, config: Any) -> tuple[list[Line], int]:
    """The lines of a journal of this config up to the first that is not as it was written, and where they end."""
    lines, end, check = list[Line](), 0, digest(config)
    for line in content.splitlines(keepends=True):
        body = line.rpartition(b', "check": "')[0] + b"}"
        sealed, check = seal(body, check)
        if sealed != line:
            break
        lines.append(Line(**json.loads(body)))
        end += len(line)
    return lines, end


def read_json(path: Path) -> Any:
    """What a file holds; None where it is not there or holds no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def differences(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves in which two nested configs differ, with their dotted names."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name, a, b


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that a reader, or a kill, meets the old text or the new one, never half of it."""
    scratch = path.with_name(path.name + ".tmp")
    with scratch.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def require_room(path: Path, needed: int) -> None:
    """Raises OSError if the disk that would hold `path` has less than `needed` bytes free."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{path}: the run needs about {needed / 2**20:.0f} MiB and its disk has {free / 2**20:.0f} MiB free; "
            "make room or name a --run-folder elsewhere",
        )


class explained:
    """Adds to a full disk's error what was kept and how to go on."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        full = (isinstance(error, OSError) and error.errno in FULL) or "No space left" in str(error)
        if error is not None and full and "make room" not in str(error):
            where = getattr(error, "filename", None) or self.path
            raise OSError(
                errno.ENOSPC,
                f"{where}: the disk is full. What was finished is kept: make room, then run the same command again",
            ) from error


def digest(inputs: Any) -> str:
    """What stands in a run's config for all that it read from files. Arrays count with all their bytes."""
    return hashlib.sha256(repr(_spelled(inputs)).encode()).hexdigest()[:16]


def short(name: str, of: Any) -> str:
    """A name that a folder can have: a long one ends in a digest of what it is the name `of`."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{digest(of)[:8]}"


def _spelled(value: Any) -> Any:
    """A value as lists of names, numbers and texts, which say all of it when they are printed."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.ascontiguousarray(value)
        return ["array", str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return ["mapping", *sorted([str(name), _spelled(own)] for name, own in value.items())]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = list(value._asdict().items())
    return [_spelled(own) for own in value] if isinstance(value, list | tuple) else value


def as_json(config: Any) -> dict[str, Any]:
    """A nested config dataclass as plain JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
