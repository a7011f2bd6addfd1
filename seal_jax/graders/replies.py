"""A judge's replies, kept on disk so that none is paid for twice, and counts of what the judge was asked.

The file holds one JSON object a line and is only ever appended to. A reply is found by all that determines it: model,
prompt and parameters (`reply_key`). Every line is whole and on disk before its reply is used. A last line cut short by
a kill is ignored, and removed by the next writer. Processes may share a file: writers take turns, and each reads the
others' replies before it asks. Where two ask the same at the same moment, the first reply in the file counts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Usage:
    """What a judge has done in this process. Counts go up as it works."""

    calls: int = 0  # requests sent, or prompts run; retries included
    cached: int = 0  # prompts whose reply was on disk
    retries: int = 0
    failed: int = 0  # prompts without a reply in the end
    tokens_in: int = 0  # as the endpoint counts them; 0 where it does not say, and for a model here
    tokens_out: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)  # of calls, by kind: "429", "timeout", ...
    answered_by: Counter[str] = dataclasses.field(default_factory=Counter)  # replies by the model's name as replied


def reply_key(**asked: Any) -> str:
    """SHA-256 of all that determines a reply."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Replies:
    """The replies in one file, by key.

    Raises:
        ValueError: a line of the file is no reply; says which.
        OSError: the file can be neither read nor made.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self._replies: dict[str, str] = {}
        self._read_to = self._lines = 0  # bytes and lines that were read so far; all whole
        self._mutex = threading.Lock()  # between the threads of this process
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab+", buffering=0)
        weakref.finalize(self, self._file.close)
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def get(self, key: str) -> str | None:
        """The reply with this key, if there is one."""
        return self._replies.get(key)

    def refresh(self) -> None:
        """Reads what was added since, here or by another process."""
        with self._mutex:
            self._read_on()

    def add(self, key: str, reply: str, **about: Any) -> None:
        """Keeps a reply, with whatever is worth knowing about it. On disk when this returns."""
        line = (
            json.dumps({"key": key, "reply": reply, "check": reply_key(key=key, reply=reply), **about}).encode() + b"\n"
        )
        with self._mutex:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._read_on()
                self._file.truncate(self._read_to)  # whoever cut a line short was killed: it held the lock to write
                while line:
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
                self._read_on()
            except OSError as error:
                message = f"{error.strerror}; replies so far are kept: make room, then run the same command again"
                raise OSError(error.errno, message, str(self.path)) from error
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def ask(
        self,
        prompts: Sequence[str],
        send: Callable[[Sequence[str], Callable[..., None]], None],
        usage: Usage,
        **asked: Any,
    ) -> list[str | None]:
        """A reply to each prompt; None where none came.

        Args:
            send: `send(new, keep)` asks the judge; it calls `keep(prompt, reply, **about)` as soon as a reply comes.
            asked: what determines a reply besides the prompt.
        """
        self.refresh()
        keys = {prompt: reply_key(prompt=prompt, **asked) for prompt in prompts}
        new = [prompt for prompt, key in keys.items() if key not in self]
        usage.cached += len(keys) - len(new)

        def keep(prompt: str, reply: str, /, **about: Any) -> None:
            self.add(keys[prompt], reply, **{"prompt": prompt, **asked, **about})

        if new:
            send(new, keep)
        return [self.get(keys[prompt]) for prompt in prompts]

    def _read_on(self) -> None:
        self._file.seek(self._read_to)
        for line in self._file.readall().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                key, reply = str(record["key"]), str(record["reply"])
                if record.get("check", expected := reply_key(key=key, reply=reply)) != expected:
                    raise ValueError
                self._replies.setdefault(key, reply)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise ValueError(
                    f"{self.path}: line {self._lines + 1} is no judge's reply, {{key, reply, ...}}, or is damaged; "
                    "name another file for the cache, or remove that line"
                ) from None
            self._read_to += len(line)
            self._lines += 1
