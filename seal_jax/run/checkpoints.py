"""Pytrees of arrays on disk, each an Orbax checkpoint, and a digest by which one that was damaged is known.

The digest is of the arrays themselves, so it also covers whatever reads them back.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


def tree_digest(tree: Any) -> str:
    """SHA-256 of a pytree's paths, dtypes, shapes and bytes; a leaf at a time is on the host."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def save(path: Path, tree: Any) -> None:
    """Writes a checkpoint in place of what may lie there. It has its name only once it is whole."""
    import orbax.checkpoint as ocp  # where it is used: it takes 0.3 s to import

    shutil.rmtree(path, ignore_errors=True)
    with _quiet(), ocp.StandardCheckpointer() as checkpointer:  # writes elsewhere, then renames
        checkpointer.save(path, tree)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the 200 lines that Orbax logs of an error that it raises as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _left_behind(error: object) -> bool:
    """Whether it is of a coroutine that a failed restore left behind, which Python tells of when it collects it."""
    return any(words in str(error) for words in ("TensorStore", "OCDBT", "Event loop is closed"))


class _WithoutOrbax:
    """The hook for exceptions that cannot be raised, without such."""

    def __init__(self, report: Callable[[sys.UnraisableHookArgs], object]):
        self.report = report

    def __call__(self, left: sys.UnraisableHookArgs) -> None:
        if not _left_behind(left.exc_value):
            self.report(left)


def _is_ours(record: logging.LogRecord) -> bool:
    """For asyncio's log, which is told of tasks whose exception nobody asked for."""
    return not (record.exc_info and _left_behind(record.exc_info[1]))


def restore(path: Path, like: Any, expected: str) -> Any | None:
    """The arrays of a checkpoint; None where it is not there, cannot be read, or is not the one with this digest.

    `like` is a tree of `jax.ShapeDtypeStruct`.
    """
    import orbax.checkpoint as ocp

    with _quiet():
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                tree = checkpointer.restore(path, like)
        except MemoryError:
            raise
        except Exception as error:  # of any kind: Orbax and TensorStore raise many for a file that is not as it was
            if "RESOURCE_EXHAUSTED" in str(error):  # no room on the device
                raise
            tree = None
    if tree is None:
        if not isinstance(sys.unraisablehook, _WithoutOrbax):
            sys.unraisablehook = _WithoutOrbax(sys.unraisablehook)
        logging.getLogger("asyncio").addFilter(_is_ours)  # the same one is added once
        return None
    return tree if tree_digest(tree) == expected else None
