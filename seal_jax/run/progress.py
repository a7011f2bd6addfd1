"""The live display of a run: which stage it is in, how fast it goes, how long the stage will take, how well it does.

On a terminal one block is redrawn in place and notes scroll above it. Elsewhere (a pipe, a log file) the same facts
come as plain lines: one when a stage starts, one when it ends, and one every ten seconds at most in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL = 10.0  # seconds between the plain lines of one stage
REFRESH = 4  # redraws a second on a terminal
INDENT = 4  # columns before a stage's name


@dataclass
class _Stage:
    name: str
    total: int | None = None
    unit: str = ""
    resumed: int = 0  # done by an earlier run: they count as done, never as speed
    done: int = 0
    adapters: int = 0
    tokens: int = 0
    accuracy: float | None = None
    started: float | None = None
    ended: float | None = None
    failed: bool = False
    steps: tuple[int, int] | None = None  # optimiser steps of the units in hand: done, and of how many
    first_step: tuple[int, float] = (0, 0.0)  # steps done when they were first told of, and when that was
    last_step: float = 0.0  # when they were last told of

    def seconds(self, now: float) -> float:
        return 0.0 if self.started is None else (now if self.ended is None else self.ended) - self.started

    def amount(self) -> str:
        """`7/12 passages` while it runs, `12 passages` once all are done."""
        if self.total is None or (self.ended is not None and self.done == self.total):
            return f"{self.done} {self.unit}" if self.done else ""
        return f"{self.done}/{self.total} {self.unit}"

    def facts(self, now: float) -> list[str]:
        """Speeds over the whole stage, the time left at that speed (while it runs) and the accuracy: what is known."""
        facts, seconds = [], self.seconds(now)
        if self.adapters and seconds > 0:
            facts.append(f"{_rate(self.adapters / seconds)} adapters/s")
        if self.tokens and seconds > 0:
            facts.append(f"{_rate(self.tokens / seconds)} tokens/s")
        fresh = self.done - self.resumed
        if self.ended is None and self.total is not None and fresh > 0:
            facts.append(f"{_clock(max(0, self.total - self.done) * seconds / fresh)} left")
        if self.ended is None and self.steps is not None:
            facts += self._of_steps()
        if self.accuracy is not None:
            facts.append(f"accuracy {100 * self.accuracy:.1f} %")
        return facts

    def _of_steps(self) -> list[str]:
        """How far the units in hand are; and when they will be, as long as that is all that is known."""
        assert self.steps is not None
        (done, of), (before, since) = self.steps, self.first_step
        facts = [f"step {done}/{of}"]
        if self.done == self.resumed and done > before:
            facts.append(f"{_clock((of - done) * (self.last_step - since) / (done - before))} to the last")
        return facts


class Progress:
    """Shows the stages of a run as they pass; a context manager, so that the terminal is restored whatever happens.

    `stages` are the names that `phase` will be called with, in order, so that the reader sees what is still to come. A
    name not among them is inserted after the current one. `tasks` is what a stage's units are, if it does not say.
    """

    def __init__(
        self,
        stages: Sequence[str] = (),
        *,
        title: str = "SEAL",
        tasks: str = "passages",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,  # seconds
    ):
        self._title, self._tasks = title, tasks
        self._console = console or Console()
        self._clock = clock
        self._stages = [_Stage(name) for name in stages]
        self._current = -1  # index of the stage that runs, or ran last
        self._started = clock()
        self._last_line = 0.0
        self._finished = False
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = (
            Live(get_renderable=self._render, console=self._console, refresh_per_second=REFRESH) if live else None
        )

    def __enter__(self) -> Progress:
        self._started = self._clock()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, exception_type: object, *_: object) -> None:
        self._end_stage(failed=exception_type is not None)
        self._finished = True
        if self._live is not None:
            self._live.stop()

    def phase(self, name: str, total: int | None = None, unit: str | None = None) -> None:
        """Ends the stage that runs and starts `name`: `total` units of work."""
        self._end_stage()
        upcoming = [i for i in range(self._current + 1, len(self._stages)) if self._stages[i].name == name]
        if upcoming:
            self._current = upcoming[0]
        else:
            self._current += 1
            self._stages.insert(self._current, _Stage(name))
        stage, unit = self._stages[self._current], unit or self._tasks
        stage.total, stage.unit, stage.started = total, unit, self._clock()
        self._line(name if total is None else f"{name}: {total} {unit}")

    def advance(
        self,
        n: int = 1,
        *,
        adapters: int = 0,
        tokens: int = 0,
        accuracy: float | None = None,
        resumed: bool = False,
    ) -> None:
        """Counts `n` more units done, with the adapters and the tokens (not pads) that they took.

        `accuracy` is a fraction, the mean so far in this stage; None keeps the one shown. `resumed` units were done by
        an earlier run: they count as done, never as speed.
        """
        stage = self._running("advance")
        stage.done += n
        stage.steps = None
        if resumed:
            stage.resumed += n
        else:
            stage.adapters += adapters
            stage.tokens += tokens
        stage.accuracy = stage.accuracy if accuracy is None else accuracy
        self._now_and_then(stage)

    def steps(self, done: int, of: int) -> None:
        """How many optimiser steps of the units in hand are done; the next `advance` counts those units."""
        stage, now = self._running("steps"), self._clock()
        if stage.steps is None or done <= stage.steps[0]:  # the next units, or the same ones anew
            stage.first_step = (done, now)
        stage.steps, stage.last_step = (done, of), now
        self._now_and_then(stage)

    def note(self, text: str) -> None:
        """Leaves a line for good, above the display: what the user should know of once."""
        if self._live is not None:
            self._console.print(Text(f"{' ' * INDENT}{text}", style="yellow"), soft_wrap=False)
        else:
            self._line(text)

    def timings(self) -> dict[str, float]:
        """Seconds that each stage has taken, by name."""
        now = self._clock()
        return {stage.name: stage.seconds(now) for stage in self._stages if stage.started is not None}

    def _running(self, called: str) -> _Stage:
        if self._current < 0:
            raise ValueError(f"{called}() was called before any phase(): there is no stage to count it for.")
        return self._stages[self._current]

    def _now_and_then(self, stage: _Stage) -> None:
        now = self._clock()
        if self._live is None and now - self._last_line >= PLAIN_INTERVAL:
            self._line(f"{stage.name}: {', '.join([stage.amount(), *stage.facts(now)])}")

    def _end_stage(self, *, failed: bool = False) -> None:
        if self._current < 0 or self._stages[self._current].ended is not None:
            return
        stage = self._stages[self._current]
        now = stage.ended = self._clock()
        stage.failed = failed
        took = f"{'stopped' if failed else 'done'} after {_clock(stage.seconds(now))}"
        self._line(f"{stage.name}: {', '.join(filter(None, [took, stage.amount(), *stage.facts(now)]))}")

    def _line(self, text: str) -> None:
        if self._live is None:
            now = self._clock()
            self._last_line = now
            line = f"[{_clock(now - self._started)}] {text}"
            self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        now, width = self._clock(), self._console.width
        header = Table.grid(expand=True)
        header.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        header.add_column(justify="right", no_wrap=True)
        header.add_row(Text(self._title, style="bold"), Text(f"{_clock(now - self._started)} elapsed", style="dim"))
        lines: list[RenderableType] = [Text(), header, Text()]
        first, last = self._window()
        if first > 0:
            lines.append(Text(f"{' ' * INDENT}{first} finished before", style="dim"))
        for i in range(first, last):
            lines += self._stage_lines(self._stages[i], now, width)
        if last < len(self._stages):
            lines.append(Text(f"{' ' * INDENT}{len(self._stages) - last} more to come", style="dim"))
        return Group(*lines, Text())

    def _window(self) -> tuple[int, int]:
        """The stages to draw: all of them if the terminal is high enough, else those around the current one."""
        rows = max(1, self._console.height - 9)  # less the header, the bar, its facts and blank lines
        if self._finished or len(self._stages) <= rows:
            return 0, len(self._stages)
        first = min(max(0, self._current - rows // 2), len(self._stages) - rows)
        return first, first + rows

    def _stage_lines(self, stage: _Stage, now: float, width: int) -> list[RenderableType]:
        ascii_only = self._console.options.ascii_only
        if stage.started is None:
            mark, style = ("-" if ascii_only else "·"), "dim"
        elif stage.ended is None:
            mark, style = (">" if ascii_only else "▸"), "bold cyan"
        elif stage.failed:
            mark, style = ("x" if ascii_only else "✗"), "red"
        else:
            mark, style = ("+" if ascii_only else "✓"), "green"
        row = Table.grid(expand=True)
        row.add_column(width=INDENT, no_wrap=True)
        row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for column_width in (20, 9, 9):
            row.add_column(width=column_width, justify="right", no_wrap=True)
        ended = stage.ended is not None
        row.add_row(
            Text(f"  {mark} ", style=style),
            Text(stage.name, style="dim" if stage.started is None else "" if ended else "bold"),
            Text(stage.amount() if ended else "", style="dim"),
            Text(_clock(stage.seconds(now)) if stage.started is not None else "", style="dim"),
            Text(f"{100 * stage.accuracy:.1f} %" if ended and stage.accuracy is not None else ""),
        )
        if stage.started is None or ended:
            return [row]
        work = Table.grid()
        work.add_column(width=INDENT)
        work.add_column(width=max(10, min(40, width - 34)))
        work.add_column(no_wrap=True)
        pulse = stage.total is None
        bar = ProgressBar(
            total=stage.total or 1,
            completed=stage.done,
            pulse=pulse,
            animation_time=now,
            complete_style="cyan",
            finished_style="cyan",
            pulse_style="cyan",
        )
        work.add_row("", bar, Text(f"  {stage.amount()}"))
        separator = ", " if ascii_only else " · "
        facts = Text(" " * INDENT + separator.join(stage.facts(now)), style="dim", no_wrap=True, overflow="ellipsis")
        return [row, work, facts]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
