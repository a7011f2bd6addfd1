"""The live display of a run: which stage it is in, how fast it goes, how long the stage will take, how well it does.

On a terminal the running stage is redrawn in place, and what has ended scrolls above it. Elsewhere (a pipe, a log file)
the same facts come as plain lines: one when a stage starts, one when it ends, and at most one every ten seconds in
between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import progress
from rich.console import Console, RenderableType
from rich.text import Text

from seal_jax.run import ends
from seal_jax.run.terminal import plain

PLAIN_INTERVAL = 10.0  # seconds between the plain lines of one stage


@dataclass
class _Stage:
    task: progress.Task  # its clock; `completed` also holds the fractions of units that train
    unit: str
    done: int = 0
    resumed: int = 0  # done by an earlier run: part of `done`, never of a speed
    adapters: int = 0
    tokens: int = 0
    accuracy: float | None = None
    training: tuple[int, int] = (0, 0)  # tokens computed by the training that runs, and that it will compute
    began: int = 0  # units done when that training began
    units: int = 0  # that it trains
    counted: float = 0.0  # seconds into the stage at which `completed` last changed

    def count(self, done: float) -> None:
        """Notes the units done, those that train as fractions: never more than the total, never fewer than before."""
        most = float("inf") if self.task.total is None else self.task.total
        self.task.completed = min(most, max(self.task.completed, done))
        self.counted = self.task.elapsed or 0.0

    def __str__(self) -> str:
        """`7/12 passages` while it runs, `12 passages` once all are done."""
        total = self.task.total
        if total is None or (self.task.stop_time is not None and self.done == total):
            return f"{self.done} {self.unit}" if self.done else ""
        return f"{self.done}/{total:g} {self.unit}"

    def facts(self) -> list[str]:
        """Speeds over the whole stage, the time left at that speed (while it runs) and the accuracy: what is known."""
        seconds = self.task.elapsed or 0.0
        speeds = ((self.adapters, "adapters/s"), (self.tokens, "tokens/s"))
        facts = [f"{_rate(count / seconds)} {unit}" for count, unit in speeds if count and seconds > 0]
        fresh = self.task.completed - self.resumed
        if self.task.total is not None and self.task.stop_time is None and fresh > 0:
            left = (self.task.total - self.task.completed) * self.counted / fresh
            facts.append(f"{clock(max(0.0, left - (seconds - self.counted)))} left")  # falls between two counts, too
        done, of = self.training
        if done < of and self.task.stop_time is None:
            facts.append(f"training {100 * done / of:.0f} %")
        if self.accuracy is not None:
            facts.append(f"accuracy {100 * self.accuracy:.1f} %")
        return facts


class _Display(progress.Progress):
    """rich's bar of the running stage, under its name and above its facts and the stages to come."""

    stage: _Stage | None = None
    coming: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines to draw, each cut at the terminal's edge."""
        if self.stage is None:
            return
        number = f"  stage {len(self.tasks)} of {len(self.tasks) + len(self.coming)}"
        yield _line((self.stage.task.description, "bold cyan"), (number, "dim"))
        yield self.make_tasks_table([self.stage.task])
        yield _line(", ".join(self.stage.facts()))
        yield _line((f"then {', '.join(self.coming)}" if self.coming else "", "dim"))


class Progress:
    """Shows the stages of a run as they pass; a context manager, so that the terminal is restored whatever happens.

    `stages` are the names that `phase` will be called with, in order, so that the reader sees what is still to come.
    Other names may come between them. `tasks` is what a stage's units are, if it does not say.
    """

    def __init__(
        self,
        stages: Sequence[str] = (),
        *,
        tasks: str = "passages",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,  # seconds
    ):
        self._tasks, self._clock = tasks, clock
        self._stages: list[_Stage] = []
        self._console = console or Console()
        self._started = self._last_line = clock()
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._display = _Display(
            progress.BarColumn(max(10, min(40, self._console.width - 45))),
            progress.TextColumn("{task.fields[stage]}", markup=False),
            progress.TimeElapsedColumn(),
            console=self._console,
            get_time=clock,
            refresh_per_second=4,
            transient=True,
            disable=not self._live,
        )
        self._display.coming = stages

    def __enter__(self) -> Progress:
        self._started = self._clock()
        self._display.start()
        return self

    def __exit__(self, exception_type: object, *_: object) -> None:
        self._end_stage("done" if exception_type is None else "stopped")
        self._display.stop()

    def phase(self, name: str, total: int | None = None, unit: str | None = None) -> None:
        """Ends the stage that runs and starts `name`: `total` units of work."""
        self._end_stage()
        display, coming, unit = self._display, list(self._display.coming), unit or self._tasks
        if name in coming:
            display.coming = coming[coming.index(name) + 1 :]
        display.add_task(name, total=total)
        stage = display.stage = _Stage(display.tasks[-1], unit)
        stage.task.fields["stage"] = stage
        self._stages.append(stage)
        if not self._live:
            self._print(name if total is None else f"{name}: {total} {unit}")

    def advance(
        self, n: int = 1, *, adapters: int = 0, tokens: int = 0, accuracy: float | None = None, resumed: bool = False
    ) -> None:
        """Counts `n` more units done, with the adapters and the tokens (not pads) that they took.

        `accuracy` is a fraction, the mean so far in this stage; None keeps the one shown. `resumed` units were done by
        an earlier run: they count as done, never as speed.
        """
        stage = self._running("advance")
        stage.done += n
        if resumed:
            stage.resumed += n
        else:
            stage.adapters += adapters
            stage.tokens += tokens
        stage.accuracy = stage.accuracy if accuracy is None else accuracy
        stage.count(stage.done)
        self._now_and_then(stage)

    def training(self, done: int, of: int, units: int | None = None) -> None:
        """How many tokens a training has computed, of all that it will; `units` are trained by it (None: all left).

        They count as fractions of their units, whichever of them are finished first. Tokens that start again are those
        of the next training.
        """
        stage = self._running("training")
        if of != stage.training[1] or done < stage.training[0]:
            stage.began = max(stage.done, stage.began + stage.units)
            left = max(0, int(stage.task.total or 0) - stage.began)
            stage.units = left if units is None else min(units, left)
        stage.training = (done, of)
        stage.count(stage.began + stage.units * done / (of + 1))
        self._now_and_then(stage)

    def note(self, text: str) -> None:
        """Prints a line that stays, above the display: what the user should know of once."""
        self._print(text, style="yellow")

    def timings(self) -> dict[str, float]:
        """Seconds that each stage has taken, by name."""
        seconds: dict[str, float] = {}
        for stage in self._stages:
            name = stage.task.description
            seconds[name] = seconds.get(name, 0.0) + (stage.task.elapsed or 0.0)
        return seconds

    def _running(self, called: str) -> _Stage:
        if not self._stages:
            raise ValueError(f"{called}() was called before any phase(): there is no stage to count it for.")
        return self._stages[-1]

    def _now_and_then(self, stage: _Stage) -> None:
        ends.stop_if_asked()
        if not self._live and self._clock() - self._last_line >= PLAIN_INTERVAL:
            self._print(f"{stage.task.description}: {', '.join([str(stage), *stage.facts()])}")

    def _end_stage(self, how: str = "done") -> None:
        stage, self._display.stage = self._display.stage, None
        if stage is None:
            return
        self._display.stop_task(stage.task.id)
        facts = [f"{how} after {clock(stage.task.elapsed or 0.0)}", str(stage), *stage.facts()]
        self._print(f"{stage.task.description}: {', '.join(filter(None, facts))}")

    def _print(self, text: str, style: str | None = None) -> None:
        self._last_line = self._clock()
        line = f"[{clock(self._last_line - self._started)}] {plain(text)}"
        self._console.print(line, style=style, markup=False, highlight=False, emoji=False, soft_wrap=not self._live)


def _line(*parts: str | tuple[str, str]) -> Text:
    cleaned = (plain(part) if isinstance(part, str) else (plain(part[0]), part[1]) for part in parts)
    return Text.assemble(*cleaned, no_wrap=True, overflow="ellipsis")


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` under an hour."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
