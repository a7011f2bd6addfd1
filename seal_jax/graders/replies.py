"""A judge's replies, kept on disk so that none is paid for twice, and what was asked of it.

The file holds one JSON object a line and is only ever added to.

A line is found again by what was asked: model, prompt and parameters (`reply_key`). Every line is whole and on disk
before its reply is used. A last line cut short by a kill is left out, and removed by whoever writes next. Processes may
share a file: writers take turns, and each sees the others' replies the next time it looks. Two that ask the same at the
same moment both ask; the first reply on file counts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_jax.graders.judge import Ask
from seal_jax.run.journal import explained


@dataclasses.dataclass
class Usage:
    """What a judge has done in this process. Counts go up as it works."""

    calls: int = 0  # requests sent, or prompts run; those of retries too
    cached: int = 0  # prompts whose reply was on disk
    retries: int = 0
    failed: int = 0  # prompts without a reply in the end
    tokens_in: int = 0  # as the endpoint counts them; 0 where it does not say, and for a model here
    tokens_out: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)  # of calls, by kind: "429", "timeout", ...
    answered_by: Counter[str] = dataclasses.field(default_factory=Counter)  # replies by the model's name as replied

    def as_json(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


def reply_key(**asked: Any) -> str:
    """SHA-256 of all that determines a reply."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Replies:
    """The replies in one file.

    Raises:
        ValueError: the file holds something else; says which line.
        OSError: it can be neither read nor made.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self._replies: dict[str, str] = {}
        self._read_to = self._lines = 0  # bytes and lines that were read so far; all whole
        self._mutex = threading.Lock()  # between the threads of this process
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+", buffering=0)
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def get(self, key: str) -> str | None:
        """The reply to what has this key, if there is one."""
        return self._replies.get(key)

    def refresh(self) -> None:
        """Reads what was added since, here or by another process."""
        with self._mutex:
            self._read_on()

    def add(self, key: str, reply: str, **about: Any) -> None:
        """Keeps a reply, with whatever is worth knowing about it. On disk when this returns."""
        line = json.dumps({"key": key, "reply": reply, **about}).encode() + b"\n"
        with self._mutex, explained(self.path):
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._read_on()
                self._file.truncate(self._read_to)  # whoever cut a line short is dead: it held the lock while writing
                try:
                    while line:
                        line = line[self._file.write(line) :]
                    os.fsync(self._file.fileno())
                except OSError:
                    self._file.truncate(self._read_to)
                    raise
                self._read_on()
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read_on(self) -> None:
        self._file.seek(self._read_to)
        for line in self._file.readall().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                self._replies.setdefault(str(record["key"]), str(record["reply"]))
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{self.path}: line {self._lines + 1} is no judge's reply, {{key, reply, ...}}; "
                    "name another file for the cache, or remove that line"
                ) from None
            self._read_to += len(line)
            self._lines += 1


def remember(ask: Ask, replies: Replies, usage: Usage, *, at_once: int, asked: Callable[[], dict[str, Any]]) -> Ask:
    """`ask`, but for what was asked before: `at_once` prompts at a time, like lengths together, each kept at once.

    `asked` says what, besides the prompt, determines a reply.
    """

    def remembering(prompts: Sequence[str]) -> list[str | None]:
        replies.refresh()
        about = asked()
        keys = {prompt: reply_key(prompt=prompt, **about) for prompt in prompts}
        new = sorted((prompt for prompt, key in keys.items() if key not in replies), key=len)
        usage.cached += len(keys) - len(new)
        for start in range(0, len(new), at_once):
            some = new[start : start + at_once]
            for prompt, reply in zip(some, ask(some), strict=True):
                usage.calls += 1
                if reply is None:
                    usage.failed += 1
                else:
                    replies.add(keys[prompt], reply, prompt=prompt, **about)
        return [replies.get(keys[prompt]) for prompt in prompts]

    return remembering
