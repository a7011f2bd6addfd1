"""The one place that writes to the terminal, where what a model wrote may hold what controls it; and our commands."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

# Escape sequences whole, then every other control character but tabs and ends of lines, and what turns the direction of
# the text around.
CONTROLS = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def plain(text: str) -> str:
    """A text without what would control a terminal."""
    return CONTROLS.sub("", text)


def show(*texts: object, file: TextIO | None = None) -> None:
    """Prints texts, each on lines of its own."""
    print(*(plain(str(text)) for text in texts), sep="\n", file=file or sys.stdout, flush=True)


CLONE = Path(__file__).parents[2] / "experiments" / "squad.py"  # not there where a wheel was installed


def shell_command(experiment: str, *arguments: str) -> str:
    """`seal-jax NAME ...` where it is installed or was used; `python -m experiments.NAME ...` in a clone."""
    by_script = Path(sys.argv[0]).stem == "seal-jax"
    start = (
        ["seal-jax", experiment] if by_script or not CLONE.is_file() else ["python", "-m", f"experiments.{experiment}"]
    )
    return shlex.join([*start, *arguments])


def nearest(name: str, known: Collection[str], others: str = "") -> str:
    """What to say of a name that is not known: the one most like it, or else `others`, by default all there are."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else others or f"expected one of {', '.join(known)}"
