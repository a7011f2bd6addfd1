"""The command line of every experiment: `[preset] [--typed.overrides]`, one sentence for a user's mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from seal_jax.run import ends, hosts, runtime
from seal_jax.run.hosts import Distributed
from seal_jax.run.journal import as_json, differences, digest, explained
from seal_jax.run.session import Experiment, Place, Preset, describe, execute, table_text
from seal_jax.run.terminal import shell_command, show
from seal_jax.run.trackers import Tracker
from seal_jax.seal import evaluation
from seal_jax.types import Compute

LONGEST_NAME = 120  # characters of a run folder's name


def parse(experiment: Experiment, arguments: Sequence[str]) -> tuple[Any, Compute, Place]:
    """Settings, compute and place. Without a preset, the first. Exits with a suggestion at a typo."""
    presets = experiment.presets
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = [next(iter(presets)), *arguments]
    config_type = type(next(iter(presets.values())).config)
    unnamed = tyro.conf.arg(name="")
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("config", Annotated[config_type, unnamed]),
            ("compute", Compute),
            ("place", Annotated[Place, unnamed], Place()),
        ],
        frozen=True,
    )

    def default(preset: Preset) -> Any:
        return command(preset.config, preset.compute)

    prog, (first, *rest) = shell_command(experiment.name), arguments
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if first in presets:  # parsed by itself, so that a suggestion is of this one and not of all
                preset = presets[first]
                parsed: Any = tyro.cli(
                    command, default=default(preset), prog=f"{prog} {first}", args=rest, description=preset.text
                )
            else:
                commands = tyro.extras.subcommand_type_from_defaults(
                    {name: default(preset) for name, preset in presets.items()},
                    {name: preset.text for name, preset in presets.items()},
                )
                parsed = tyro.cli(
                    commands, prog=prog, args=arguments,
                    description=f"{experiment.description}\nAll options: {prog} {next(iter(presets))} --help",
                )  # fmt: skip
    finally:
        sys.stderr.write(_readable(said.getvalue()))
    return parsed.config, parsed.compute, parsed.place


def _readable(said: str) -> str:
    """What tyro says of a value that a config refuses, with the option's name; the box stays one."""
    lines = []
    for line in said.splitlines():
        plain = line.replace("Error parsing config.", "Error parsing --").replace("Error parsing config:", "Error:")
        if plain != line and plain.endswith("│"):
            plain = plain.removesuffix("│").ljust(len(line) - 1) + "│"
        lines.append(f"{plain}\n")
    return "".join(lines)


def folder_name(experiment: Experiment, config: Any) -> str:
    """The run folder where none is given: after the preset, and each setting that is not as the preset has it.

    So that another command has another folder, and the same command the same.
    """
    start = experiment.called(config) if experiment.called else f"{experiment.name}-{config.preset}"
    parts = [start.replace("_", "-")]
    for setting, _, value in differences(as_json(experiment.presets[config.preset].config), as_json(config)):
        if setting.partition(".")[0] not in experiment.unnamed:
            values = value if isinstance(value, list) else [value]
            parts += [setting.replace("_", "-"), *(str(v).rstrip("/").rpartition("/")[2] for v in values)]
    name = re.sub(r"[^\w.+-]+", "-", "-".join(parts))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{digest(parts)[:8]}"


def command_of(experiment: str, arguments: Sequence[str], *, replica: int | None = None) -> str:
    """The command that gives the same results: without the folder they are kept in, of one replica's seed alone."""
    left_out = {"--run-folder", *(f"--distributed.{field.name}" for field in dataclasses.fields(Distributed))}
    left_out |= set() if replica is None else {"--replicas", "--seed"}
    kept: list[str] = []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        if not left_out & {previous.replace("_", "-"), argument.partition("=")[0].replace("_", "-")}:
            kept.append(argument)
    return shell_command(experiment, *kept, *([] if replica is None else ["--seed", str(replica)]))


def main(experiment: Experiment, arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback; Ctrl-C and SIGTERM do too."""

    def work() -> None:
        config, compute, place = parse(experiment, arguments)
        runtime.start(compute.devices)
        many, found = place.replicas > 1, {}
        alone = dataclasses.replace(place.distributed, join="never")
        with hosts.together(alone if place.dry_run else place.distributed) as apart:
            for seed in range(config.seed, config.seed + place.replicas):
                one = dataclasses.replace(config, seed=seed)
                folder = place.run_folder or Path("runs") / folder_name(experiment, one)
                here = dataclasses.replace(
                    place, run_folder=folder / f"seed-{seed}" if many and place.run_folder else folder
                )
                if place.dry_run:
                    show((experiment.describe or describe)(experiment, one, compute, here))
                    continue
                if apart is not None:
                    here = dataclasses.replace(here, run_folder=apart / str(seed), tracker=Tracker("none"))
                called = command_of(experiment.name, arguments, replica=seed if many else None)
                found[seed] = _run(experiment, one, compute, here, called)
        if len(found) > 1 and all(run.get("rows") for run in found.values()):
            show(table_text(evaluation.spread(found)))

    return ends.ended(work)


def _run(experiment: Experiment, config: Any, compute: Compute, place: Place, called: str) -> dict[str, Any]:
    assert place.run_folder is not None
    try:
        with explained(place.run_folder):
            return (experiment.execute or execute)(experiment, config, compute, place, command=called)
    except FloatingPointError as error:
        raise ValueError(
            f"{error}: JAX_DEBUG_NANS and JAX_DEBUG_INFS end a run there. Without them an adapter that diverges is "
            "left out and counted, and the others go on: unset them, and the same command carries on"
        ) from error
