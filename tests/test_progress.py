"""The display of a run: plain lines without a terminal, a display that fits its terminal, a time left that falls."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console

from seal_jax.run.progress import Progress


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_have_the_facts_and_come_at_most_every_ten_seconds():
    clock, stream = Clock(), io.StringIO()
    with Progress(["Base", "Round 1"], console=Console(file=stream, width=40), clock=clock) as progress:
        progress.phase("Base", 20)
        for _ in range(20):
            clock.now += 1
            progress.advance(adapters=2, tokens=1_500, accuracy=np.float32(0.25))
        progress.phase("Round 1", 10, "self-edits")
        progress.advance(4, adapters=4, resumed=True)
        clock.now += 5
        progress.advance(2, adapters=2)
        progress.note("chunk halved to 4: not enough device memory [really]")
        progress.advance(4, adapters=4)
    assert stream.getvalue().splitlines() == [
        "[0:00] Base: 20 passages",
        "[0:10] Base: 10/20 passages, 2.0 adapters/s, 1,500 tokens/s, 0:10 left, accuracy 25.0 %",
        "[0:20] Base: 20/20 passages, 2.0 adapters/s, 1,500 tokens/s, 0:00 left, accuracy 25.0 %",
        "[0:20] Base: done after 0:20, 20 passages, 2.0 adapters/s, 1,500 tokens/s, accuracy 25.0 %",
        "[0:20] Round 1: 10 self-edits",
        "[0:25] chunk halved to 4: not enough device memory [really]",
        "[0:25] Round 1: done after 0:05, 10 self-edits, 1.2 adapters/s",
    ]


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed():
    clock, stream = Clock(), io.StringIO()
    with Progress(console=Console(file=stream), clock=clock) as progress:
        progress.phase("Round 1", 100)
        progress.advance(80, resumed=True)
        clock.now += 10
        progress.advance(10)
    assert "90/100 passages, 0:10 left" in stream.getvalue()


def test_the_tokens_of_units_that_train_are_shown_and_count_as_fractions_of_them():
    clock, stream = Clock(), io.StringIO()
    with Progress(console=Console(file=stream), clock=clock) as progress:
        progress.phase("Training", 8, "adapters")
        clock.now += 10  # compiling
        progress.training(4, 100, 4)
        for done in (20, 36):
            clock.now += 8
            progress.training(done, 100, 4)
        progress.training(100, 100, 4)
        clock.now += 20
        progress.advance(4, adapters=4)
        clock.now += 11
        progress.training(50, 100, 4)
    assert [line.split(": ", 1)[1] for line in stream.getvalue().splitlines()] == [
        "8 adapters",
        "0/8 adapters, 8:15 left, training 4 %",
        "0/8 adapters, 2:00 left, training 36 %",
        "4/8 adapters, 0.09 adapters/s, 0:46 left",
        "4/8 adapters, 0.07 adapters/s, 0:19 left, training 50 %",
        "done after 0:57, 4/8 adapters, 0.07 adapters/s",
    ]


def test_an_error_ends_the_stage_as_stopped():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress(console=Console(file=stream), clock=Clock()) as progress:
        progress.phase("Base", 2)
        raise RuntimeError
    assert stream.getvalue().splitlines()[-1] == "[0:00] Base: stopped after 0:00, 0/2 passages"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (60, 24), (120, 50)])
def test_the_display_fits_its_terminal(width, height):
    clock, stream = Clock(), io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, height=height, color_system=None)
    stages = [f"Stage {i}: a name of some length" for i in range(10)]
    with Progress(stages, console=console, clock=clock) as progress:
        for name in stages[:6]:
            progress.phase(name, 12)
            clock.now += 3_700
            progress.advance(7, adapters=100_000, tokens=123_456_789, accuracy=0.5)
            progress.training(12_000, 34_000)
        paper = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
        with paper.capture() as capture:
            paper.print(progress._display.get_renderable())
    lines = capture.get().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert any("Stage 5" in line for line in lines)
    assert any("7/12 passages" in line for line in lines)


def test_advance_needs_a_phase():
    progress = Progress(["Base"], console=Console(file=io.StringIO()))
    with pytest.raises(ValueError, match=r"advance\(\) was called before any phase"):
        progress.advance()
    with pytest.raises(ValueError, match=r"training\(\) was called before any phase"):
        progress.training(1, 2)


def seconds_left(line: str) -> int:
    minutes, seconds = re.search(r"(\d+):(\d\d) left", line).groups()
    return 60 * int(minutes) + int(seconds)


def test_the_time_left_falls_while_a_chunk_trains_and_between_reports():
    clock, stream = Clock(), io.StringIO()
    with Progress(console=Console(file=stream), clock=clock) as progress:
        progress.phase("Training", 30, "adapters")
        progress.advance(10, resumed=True)
        for _ in range(2):
            for done in range(1, 20):
                clock.now += 10
                progress.training(done, 19, 10)
            clock.now += 10
            progress.advance(10, adapters=10)
        lines = stream.getvalue().splitlines()[1:]
        progress.phase("Training", 30, "adapters")
        clock.now += 4
        progress.advance(10)
        told = progress._stages[-1].facts()
        clock.now += 3
        assert (told, progress._stages[-1].facts()) == (["0:08 left"], ["0:05 left"])
    left = [seconds_left(line) for line in lines if " left" in line]
    assert left == list(range(390, -1, -10))


def test_tokens_that_start_again_are_those_of_the_next_training():
    clock = Clock()
    with Progress(console=Console(file=io.StringIO()), clock=clock) as progress:
        progress.phase("Training", 20, "adapters")
        completed = []
        for _ in range(2):
            for done in (3, 9):
                clock.now += 1
                progress.training(done, 9, 10)
                completed.append(progress._stages[-1].task.completed)
        progress.advance(20)
        completed.append(progress._stages[-1].task.completed)
    assert completed == [3, 9, 13, 19, 20]


def test_units_that_finish_while_others_train_do_not_count_twice():
    """The time left falls all the while, though the first adapter is finished only when most tokens are computed."""
    clock, left = Clock(), []
    with Progress(console=Console(file=io.StringIO()), clock=clock) as progress:
        progress.phase("Training", 10, "adapters")
        for done in range(1, 21):
            clock.now += 10
            progress.training(done, 20, 10)
            if done > 15:
                progress.advance(2)
            left += [seconds_left(fact) for fact in progress._stages[-1].facts() if " left" in fact]
    assert left == sorted(left, reverse=True)
    assert left[0] <= 210 and left[-1] == 0


def test_a_terminal_keeps_what_has_ended_and_clears_the_rest():
    clock, stream = Clock(), io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, height=24, color_system=None)
    with Progress(["Base", "Round 1"], console=console, clock=clock) as progress:
        progress.phase("Base", 2)
        progress.note("look [here]")
        clock.now += 2
        progress.advance(2)
    text = stream.getvalue()
    assert "[0:00] look [here]\n" in text
    assert "[0:02] Base: done after 0:02, 2 passages\n" in text
    assert "\x1b[2K" in text.rpartition("\n")[2]  # the display's lines are erased


def test_without_a_terminal_no_control_codes_are_written():
    stream = io.StringIO()
    with Progress(["Base"], console=Console(file=stream)) as progress:
        progress.phase("Base", 2)
        progress.advance(2, accuracy=0.5)
        progress.note("look")
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
