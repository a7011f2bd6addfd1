"""Ablations: which settings should I use? A grid, or a random search, over any field of knowledge incorporation.

    python -m experiments.ablations demo                       # 12 cells, one program, on 2 CPU cores
    python -m experiments.ablations demo --grid inner.learning_rate=1e-4,3e-4,1e-3 inner.rank=8,32
    python -m experiments.ablations demo --grid inner.learning_rate=1e-5..1e-2 inner.epochs=2..16 --random 20
    python -m experiments.ablations demo --ablation targets    # a named one (experiments/grids), or a TOML file
    python -m experiments.ablations paper --ablation prompts --jobs.where slurm --jobs.partition gpu

Every cell trains the same self-edits of the same passages, one adapter each, by settings of its own, and answers the
same questions. Cells that differ in learning rate, epochs, rank, alpha or projections are rows of one compiled program;
other fields of the inner loop (batch size, schedule, dropout) need a program each, but share self-edits and base
answers; what lies outside the inner loop (prompt, model, sampling) is a run of its own, one after another or as jobs.

The page says which cell to use and how sure that is; results.csv has a line a cell. A larger grid on the same folder
keeps the cells that it has. Settings are chosen on the passages that the main experiment trains on (--split).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from seal_jax.analysis import grid
from seal_jax.analysis.ablations import Metric, compare
from seal_jax.domains.records import load_toml
from seal_jax.run import cells, command, search, session, settings
from seal_jax.run.cells import Part, Settings
from seal_jax.run.jobs import Jobs
from seal_jax.run.journal import RunFolder, as_json, require_room
from seal_jax.run.passages import PAPER as PAPERS
from seal_jax.run.passages import SMALL, SMALLEST
from seal_jax.run.session import Experiment, Place, Preset
from seal_jax.types import Compute

GRIDS = Path(__file__).parent / "grids"  # named ablations


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """An ablation: the settings, and what is searched."""

    grid: tuple[str, ...] | None = None
    """FIELD=VALUE,VALUE (several: inner.rank=8,32 prompt=facts,rewrite), or FIELD=LOW..HIGH with --random."""
    ablation: str | None = None
    """A named one (demo, paper, prompts, targets) or a TOML file; --grid is instead of it."""
    random: int | None = None
    """Draw this many cells, with the seed, instead of running all."""
    metric: Metric = "accuracy"
    """What the best cell is best at. log_likelihood and probability (of the gold answers) are less noisy."""
    jobs: Jobs = Jobs()
    """Where runs that cannot share a program run."""


PAPER = Config("paper", **PAPERS, ablation="paper")

DEMO = Config("demo", **SMALL, passages=8, ablation="demo")
SMOKE = dataclasses.replace(DEMO, preset="smoke", **SMALLEST, passages=2, ablation="smoke")

PRESETS = {
    "demo": Preset(
        "Twelve cells on 2 CPU cores: a 135M model and invented facts.",
        DEMO,
        Compute(chunk=16, write_chunk=20, width_cuts=(24, 32, 48, 96)),
    ),
    "paper": Preset("The paper's model, and its own search: a GPU, or several through --jobs.", PAPER),
    "smoke": Preset(
        "Two passages, one epoch: shows that everything runs, and no more.",
        SMOKE,
        Compute(chunk=4, write_chunk=20, width_cuts=(96,)),
    ),
}


class Search(NamedTuple):
    """What a command asks for."""

    title: str
    parts: list[Part]  # the runs that its cells make
    drawn: bool  # at random, rather than a whole grid


def read(config: Config) -> Search:
    """The cells of a command, each with its settings checked, and the runs they make.

    Raises:
        ValueError: no grid, an unknown field, a value of the wrong type, settings that do not go together.
        FileNotFoundError: no such ablation.
    """
    known, draw = grid.fields(Settings), config.random
    if config.grid is not None:
        title, axes = "Ablation", grid.read_grid(config.grid, known, barred=cells.BARRED)
    elif config.ablation:
        path = grid.find(config.ablation, GRIDS)
        named = grid.read_table(load_toml(path.read_bytes(), str(path), grid.FORM), path, known, barred=cells.BARRED)
        title, axes, draw = named.title, named.axes, named.random if draw is None else draw
    else:
        raise ValueError("nothing to search: give --grid FIELD=VALUE,VALUE or --ablation NAME")
    values = grid.cells(axes, draw=draw, seed=config.seed)
    return Search(title, cells.parts_of(settings_of(config), values), draw is not None)


def settings_of(config: Config) -> Settings:
    """The settings without the search."""
    return Settings(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Settings)})


def execute(experiment: Experiment, config: Config, compute: Compute, place: Place, *, command: str) -> dict[str, Any]:
    """One search, from a grid to report.html. Carries on where an earlier one stopped; finished cells are skipped."""
    started, (title, parts, drawn) = time.monotonic(), read(config)  # every mistake before any training
    parts = [cells.with_weights(part) for part in parts]
    assert place.run_folder is not None  # the command line names one
    require_room(place.run_folder, needed=session.ROOM * len(parts))
    identity = {"experiment": experiment.name, **as_json(settings_of(config))}
    with contextlib.closing(RunFolder(place.run_folder, identity)) as folder:
        settings.write(folder.path, experiment.name, config, compute)
        folder.clock = lambda: {"total": time.monotonic() - started}
        spent = list(search.run(parts, folder, config.jobs, compute, place))
        outcomes = search.outcomes(parts, folder)
        found = compare(outcomes, config.metric, seed=config.seed, title=title, drawn=drawn)
        return search.report(folder, config, compute, found, parts, spent, command=command)


def describe(experiment: Experiment, config: Config, compute: Compute, place: Place) -> str:
    """The plan of a search: its cells, runs and programs, what it trains and needs. Loads no weights."""
    title, parts, _ = read(config)
    wide = dataclasses.replace(parts[0].config, inner=cells.programs_of(parts[0].cells)[0].inner)
    shown = experiment._replace(read=lambda config: search.plan_of(title, parts))
    return session.describe(shown, wide, compute, place)


EXPERIMENT = Experiment(
    "ablations", __doc__ or "", PRESETS, read, cells.prepare, cells.try_part,
    unnamed=("grid", "ablation", "random", "metric", "jobs"), execute=execute, describe=describe,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
