"""A finished run, or several side by side, on one page.

    python -m experiments.report runs/squad-demo
    python -m experiments.report runs/squad-demo runs/squad-rewrite
    python -m experiments.report runs/squad-*/ --out squad.html

Takes folders of runs, of one experiment or of several, and compares the others with the first. Nothing is run again:
seconds, whatever the model.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from seal_jax.report.page import write_page
from seal_jax.report.results import read_runs
from seal_jax.report.sections import as_text
from seal_jax.run import ends
from seal_jax.run.terminal import shell_command, show


@dataclasses.dataclass(frozen=True)
class Command:
    """Shows a finished run, or compares several."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or their results.json."""
    out: Path | None = None
    """The page (default: report.html in the folder of a single run, or comparison.html beside the first run's)."""


def main(arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback."""
    command = tyro.cli(Command, prog=shell_command("report"), args=arguments, description=__doc__)

    def work() -> None:
        runs = read_runs(command.runs)
        folder = runs[0].folder
        out = command.out or (folder / "report.html" if len(runs) == 1 else folder.parent / "comparison.html")
        write_page(runs, out)
        show(as_text(runs), f"\nReport: {out}")

    return ends.ended(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
