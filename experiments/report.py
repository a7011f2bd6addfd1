"""Finished runs side by side, on one page.

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

from seal_jax.report.compare import comparison_text, read_runs, write_comparison
from seal_jax.run import ends
from seal_jax.run.invocation import shell_command
from seal_jax.run.terminal import show


@dataclasses.dataclass(frozen=True)
class Command:
    """Compares finished runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, or their results.json."""
    out: Path | None = None
    """The page (default: comparison.html beside the first run's folder)."""


def main(arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback."""
    command = tyro.cli(Command, prog=shell_command("report"), args=arguments, description=__doc__)

    def work() -> None:
        runs = read_runs(command.runs)
        out = command.out or runs[0].folder.parent / "comparison.html"
        write_comparison(runs, out)
        show(comparison_text(runs), f"\nReport: {out}")

    return ends.ended(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
