"""The command that starts an experiment for this reader, for messages and records."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

CLONE = Path(__file__).parents[2] / "experiments" / "squad.py"  # not there where a wheel was installed


def shell_command(experiment: str, *arguments: str) -> str:
    """`seal-jax NAME ...` where it is installed or was used; `python -m experiments.NAME ...` in a clone."""
    by_script = Path(sys.argv[0]).stem == "seal-jax"
    start = (
        ["seal-jax", experiment] if by_script or not CLONE.is_file() else ["python", "-m", f"experiments.{experiment}"]
    )
    return shlex.join([*start, *arguments])
