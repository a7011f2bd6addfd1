"""What the benchmark prints: every table is a layout, `str.format`'s, and a line of figures under it."""

from __future__ import annotations

import re
from typing import Any

TITLES = {
    "train_qv": "train q,v",
    "train_all": "train all 7",
    "decode": "answer",
    "edit": "train + answer",
    "seal": "train ragged",
    "sample": "write",
}
ROWS = (
    "{stage:<15}{who:<10}{seconds:>9.3g}{floor_seconds:>9.3g}{times_floor:>5.1f}{tokens_per_second:>7.0f}"
    "{processed_tokens_per_second:>7.0f}{padding:>6.2f}{mfu:>5.1f}{mfu_processed:>6.1f}{gigabytes:>7.2f}"
    "{gibibytes:>6.1f}{compile_seconds:>7.1f}"
)
HEAD = [
    f"{'':<25}{'per self-edit, s':>18}{'':>5}{'tokens/s':>14}{'':>6}{'MFU, %':>11}{'':>7}{'peak':>6}{'comp.':>7}",
    f"{'stage':<15}{'by':<10}{'time':>9}{'floor':>9}{'x':>5}{'real':>7}{'all':>7}{'ratio':>6}"
    f"{'real':>5}{'all':>6}{'GB/s':>7}{'GiB':>6}{'s':>7}",
]


class Cell:
    """A figure or a word: blank where there is none, and never in powers of ten."""

    def __init__(self, value: float | str | None):
        self.value = value

    def __format__(self, form: str) -> str:
        width = re.match(r"[<>]?\d*", form)[0]  # type: ignore[index]
        if self.value is None or isinstance(self.value, str):
            return format(self.value or "", width)
        text = format(self.value, form)
        return format(f"{self.value:.0f}", width) if "e+" in text else text


def line(layout: str, **figures: Any) -> str:
    """Figures, or the titles above them, in a layout's columns."""
    return layout.format(**{name: Cell(value) for name, value in figures.items()}).rstrip()


def row_line(row: dict[str, Any]) -> str:
    """A row of the main table (`stages.Row.figures`), under `HEAD`."""
    shown = {
        "stage": TITLES.get(row["stage"], row["stage"]),
        "mfu": 100 * row["mfu"],
        "mfu_processed": 100 * row["mfu_processed"],
    }
    gibibytes = row["peak_bytes"] and row["peak_bytes"] / 2**30
    return line(ROWS, **{**row, **shown, "gigabytes": row["bytes_per_second"] / 1e9, "gibibytes": gibibytes})
