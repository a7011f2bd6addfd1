"""The one place that writes to the terminal: what a model, a document or a server wrote may hold what controls it."""

from __future__ import annotations

import re
import sys
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
