"""How the cost of a self-edit changes with the number trained at a time, the length of its sequences, and the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seal_jax.engine import costs
from seal_jax.engine.inner import Chunk
from seal_jax.engine.training import Shapes, train

from . import workloads
from .measuring import by_turns, seconds
from .peer_process import Peer
from .stages import REFERENCE, REFERENCE_WIDTH, Bench, training_phases

SEQUENCES, TOKENS = 8, 48  # of the self-edit whose cost is given


class Point(NamedTuple):
    """One size. Seconds are of a whole self-edit: all its steps, and what does not depend on their number."""

    over: str  # adapters, tokens or models
    label: str
    x: float  # adapters, tokens of a sequence, or millions of parameters
    adapters: int
    seconds: float
    floor: float
    step_seconds: float  # of all adapters together
    fixed_seconds: float  # of a call, whatever its number of steps
    peers: dict[str, float]  # seconds of a self-edit


def measure_point(bench: Bench, *, over: str, label: str, x: float, adapters: int, tokens: int, steps: int) -> Point:
    """Times one step and `steps` more, by one program: the difference is the steps, the rest is fixed.

    The fewest seconds of `bench.repeats` turns count: a difference of two medians would be mostly noise.
    """
    bench = bench._replace(adapters=adapters)
    config = dataclasses.replace(bench.fine_tuning("train_qv"), epochs=1)
    lengths = workloads.uniform(adapters, sequences=1 + steps, tokens=tokens)
    many = workloads.draw_tokens(lengths, bench.model.vocab_size, seed=bench.seed)
    few = [edit[:1] for edit in many]
    shapes, chunk = Shapes((tokens,), 1 + steps, 0, 0, 0), Chunk(adapters)

    def timed(edits: Any) -> float:
        return seconds(lambda: train(bench.lm, edits, config, shapes, seed=bench.seed, chunk=chunk))[0]

    timed(few)  # compiles
    programs: dict[str, Callable[[int], float]] = {"short": lambda turn: timed(few), "long": lambda turn: timed(many)}
    programs |= {name: _peer_turn(bench, peer, many[0][:steps], config, steps) for name, peer in bench.peers.items()}
    best = {name: min(runs) for name, runs in by_turns(programs, bench.repeats, label).items()}
    short, long = best.pop("short"), best.pop("long")
    step = max(0.0, long - short) / steps
    fixed = max(0.0, short - step)
    edit = [[tokens] * SEQUENCES]
    whole = dataclasses.replace(config, epochs=bench.epochs)
    floor = costs.floor(training_phases(bench, whole, edit, bench.sharing), bench.peak)
    taken = (SEQUENCES * bench.epochs * step + fixed) / adapters
    return Point(over, label, x, adapters, taken, floor, step, fixed, best)


def _peer_turn(bench: Bench, peer: Peer, edit: Any, config: Any, steps: int) -> Callable[[int], float]:
    """Seconds of a self-edit, from a few steps. Warms the peer up."""
    sequences = [s.ids for s in edit]
    options = (config.projections, config.rank, config.alpha, config.learning_rate)
    pad_to = REFERENCE_WIDTH if peer.name == REFERENCE else None
    each = [(sequences, list(range(steps)), *options, pad_to)] * peer.processes

    def turn(number: int) -> float:
        return peer.do("train", each) / peer.processes / steps * SEQUENCES * bench.epochs

    turn(-1)
    return turn


def scaling_points(
    make_bench: Callable[[str | None], Bench],
    done_with: Callable[[Bench], None],
    say: Callable[[str], None],
    *,
    over_adapters: Sequence[int],
    over_tokens: Sequence[int],
    over_models: Sequence[str],
    at_adapters: int,
    steps: int,
) -> list[Point]:
    """All points, the chosen model's first. `make_bench(None)` is that model; by name, one of random weights."""
    points: list[Point] = []

    def add(bench: Bench, **sizes: Any) -> None:
        points.append(measure_point(bench, steps=steps, **sizes))
        say(point_line(points[-1]))

    bench = make_bench(None)
    for count in over_adapters:
        add(bench, over="adapters", label=f"E = {count}", x=count, adapters=count, tokens=TOKENS)
    for tokens in over_tokens:
        add(bench, over="tokens", label=f"T = {tokens}", x=tokens, adapters=at_adapters, tokens=tokens)
    done_with(bench)
    del bench
    for name in over_models:
        bench = make_bench(name)
        millions = costs.model_parameters(bench.model) / 1e6
        add(bench, over="models", label=name, x=millions, adapters=at_adapters, tokens=TOKENS)
        done_with(bench)
        del bench
    return points


HEAD = f"{'size':<16}{'adapters':>9}{'s a self-edit':>15}{'floor':>9}{'x floor':>9}{'ms a step':>11}{'fixed ms':>10}"


def point_line(point: Point) -> str:
    """A point as a line of the table under `HEAD`."""
    peers = "".join(
        f"  {name} {seconds:.3g} s ({seconds / point.seconds:.1f} x)" for name, seconds in point.peers.items()
    )
    return (
        f"{point.label:<16}{point.adapters:>9}{point.seconds:>15.3g}{point.floor:>9.3g}"
        f"{point.seconds / point.floor:>9.1f}{1e3 * point.step_seconds:>11.4g}{1e3 * point.fixed_seconds:>10.3g}{peers}"
    )


AXES = {"adapters": "adapters trained at a time", "tokens": "tokens of a sequence", "models": "million parameters"}


def draw(points: Sequence[Point], title: str, path: Path) -> None:
    """A panel for each kind of size, seconds of a self-edit: ours, the floor under it, and the peers'."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    kinds = [over for over in AXES if any(point.over == over for point in points)]
    figure = Figure(figsize=(4.4 * len(kinds), 3.6), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    colors = {"peft": "#b3541e", "peft-x2": "#d9a066", "reference": "#7a7a7a"}
    for axes, over in zip(panels, kinds, strict=True):
        row = sorted((point for point in points if point.over == over), key=lambda point: point.x)
        xs = [point.x for point in row]
        axes.plot(xs, [point.seconds for point in row], "o-", color="#1f5fa8", label="seal_jax")
        axes.plot(xs, [point.floor for point in row], ":", color="#1f5fa8", label="its floor on this device")
        for name in sorted({name for point in row for name in point.peers}):
            had = [point for point in row if name in point.peers]
            axes.plot([p.x for p in had], [p.peers[name] for p in had], "s--", color=colors[name], label=name)
        axes.set_xscale("log", base=2 if over != "models" else 10)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        names = [point.label if over == "models" else f"{point.x:g}" for point in row]
        axes.set_xticks(xs, names, fontsize=8 if over == "models" else None)
        if over == "models":
            axes.margins(x=0.25)  # room for their names
        axes.minorticks_off()
        axes.set_xlabel(AXES[over] if over != "models" else "model")
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"seconds a self-edit ({SEQUENCES} sequences)")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)
