"""The page of one run or of several: what their folders hold becomes one HTML file that needs nothing else.

`sections.py` decides what the page says, `report.html` how it looks. All text goes through Jinja2's
autoescaping, because most of it was written by a model.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2

from seal_jax.report.blocks import percent, points
from seal_jax.report.results import Run, read_runs
from seal_jax.report.sections import contents

SHOWN_CHARACTERS = 4_000  # of one text; the rest is in self_edits.jsonl


def write_report(run_folder: str | os.PathLike[str]) -> Path:
    """Writes `run_folder/report.html`, the page of that run, and returns its path.

    Only a whole page ever lies there. Missing values, no rounds and no self-edits leave their places out. Raises
    FileNotFoundError without a results.json, and ValueError (file, line) for what is not JSON.
    """
    path = Path(run_folder) / "report.html"
    write_page(read_runs([run_folder]), path)
    return path


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Writes the page of a run, or of several side by side, with links to their own pages relative to `path`."""
    page = _template().render(contents(runs, path.parent.resolve()))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cut": cut, "percent": percent, "points": points}
    return environment.get_template("report.html")


def cut(text: str) -> str:
    """A text short enough for the page, saying what was left out."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]}… ({len(text) - SHOWN_CHARACTERS:,} more characters in self_edits.jsonl)"
