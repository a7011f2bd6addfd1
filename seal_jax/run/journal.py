"""What a run keeps on disk, so that it can be killed at any moment and lose nothing that was finished.

A run is a sequence of named pieces of work, each a pure function of the config and of earlier pieces. `RunFolder.once`
runs a piece, or returns what it returned the last time: small results as lines of journal.jsonl, pytrees as Orbax
checkpoints. So the same command on the same folder carries on, and ends as an undisturbed run does.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

PLAN = "memory"  # a piece of this name, or under it, is a plan of the work and none of it


class RunFolder:
    """A run's folder: config.json, journal.jsonl, checkpoints/.

    Raises:
        ValueError: the folder holds a run of another config (names the fields), or is no run folder.
        OSError: another process is running in it, or there is no room (says how to go on).
    """

    def __init__(self, path: str | Path, config: dict[str, Any]):
        self.path = Path(path).absolute()
        self._config_file, self._journal_file = self.path / "config.json", self.path / "journal.jsonl"
        with explained(self.path):
            self._refuse_strangers()
            self.path.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk refuses must not lie in a buffer and be written later.
            self._journal = self._journal_file.open("ab+", buffering=0)
            try:
                self._lock()
                self._finished = self._read_journal()
                self._claim(json.loads(json.dumps(config)))
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
        """Writes the config, or compares with it. One under which nothing was finished bars no other."""
        if self._config_file.exists() and any(name.partition("/")[0] != PLAN for name in self._finished):
            differing = [
                f"{name}: {a!r} there, {b!r} now"
                for name, a, b in differences(json.loads(self._config_file.read_text()), config)
            ]
            if differing:
                raise ValueError(
                    f"{self.path} holds a run of another config; use another --run-folder or remove this one. "
                    "Differing fields:\n  " + "\n  ".join(differing)
                )
        elif not self._config_file.exists() or json.loads(self._config_file.read_text()) != config:
            self._journal.truncate(0)  # another config's plans
            self._finished = {}
            write_atomically(self._config_file, json.dumps(config, indent=2))

    def _read_journal(self) -> dict[str, Any]:
        """Finished pieces by name. A last line cut short by a kill is removed."""
        content = self._journal_file.read_bytes()
        finished, end = {}, 0
        for line in content.splitlines(keepends=True):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if record is None:
                break
            finished[record["name"]] = record["value"]
            end += len(line)
        if end < len(content):
            self._journal.truncate(end)
        return finished

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
        return len(self._finished)

    def has(self, name: str) -> bool:
        """Whether the piece was finished before."""
        return name in self._finished

    def under(self, prefix: str) -> dict[str, Any]:
        """The finished pieces whose names begin so."""
        return {name: value for name, value in self._finished.items() if name.startswith(prefix)}

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """The JSON value of a piece of work, from the journal if it is there. On disk before it is returned."""
        if name not in self._finished:
            line = json.dumps({"name": name, "value": work()})
            with explained(self.path):
                self._append(line.encode() + b"\n")
            self._finished[name] = json.loads(line)["value"]  # as a resumed run would read it
        return self._finished[name]

    def once_tree(self, name: str, work: Callable[[], Any], like: Any) -> Any:
        """The pytree of arrays of a piece of work, from its Orbax checkpoint if it is there.

        `like` is a tree of `jax.ShapeDtypeStruct`; a checkpoint appears under its name only when it is whole.
        """
        path = self.path / "checkpoints" / name
        with explained(self.path):
            if not path.exists():
                with ocp.StandardCheckpointer() as checkpointer:  # writes elsewhere, then renames
                    checkpointer.save(path, work())
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(path, like)

    def forget_tree(self, name: str) -> None:
        """Removes a checkpoint that nothing will ask for again, if it is there."""
        shutil.rmtree(self.path / "checkpoints" / name, ignore_errors=True)

    def close(self) -> None:
        """Gives the folder free for another process."""
        self._journal.close()


def differences(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves in which two nested configs differ, with their dotted names."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name, a, b


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, meets the old text or the new one, never half of it."""
    scratch = path.with_name(path.name + ".tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
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
        full = (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "No space left" in str(
            error
        )
        if error is not None and full and "make room" not in str(error):
            raise OSError(
                errno.ENOSPC,
                f"{self.path}: the disk is full. What was finished is kept: make room, then run the same command again",
            ) from error


def digest(inputs: Any) -> str:
    """What stands in a run's config for all that it read from files."""
    return hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]


def as_json(config: Any) -> dict[str, Any]:
    """A nested config dataclass as plain JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
