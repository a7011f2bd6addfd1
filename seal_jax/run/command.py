"""The command line of every experiment: `[preset] [--typed.overrides]`, one sentence for a user's mistake."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from seal_jax.domains.passages import STAND_IN, NotFetched
from seal_jax.run import ends, hosts, runtime, settings
from seal_jax.run.hosts import Distributed
from seal_jax.run.journal import as_json, differences, explained, short
from seal_jax.run.session import Experiment, Place, describe, execute, table_text
from seal_jax.run.terminal import nearest, shell_command, show
from seal_jax.run.trackers import Tracker
from seal_jax.seal import evaluation
from seal_jax.types import Compute


def parse(experiment: Experiment, arguments: Sequence[str]) -> tuple[Any, Compute, Place]:
    """Settings, compute and place. Without a preset, the first.

    Raises:
        ValueError: no such preset, option or value, or a --config file that is not of this experiment.
    """
    presets, prog = experiment.presets, shell_command(experiment.name)
    ours = argparse.ArgumentParser(prog, add_help=False, allow_abbrev=False)
    ours.add_argument("--config", type=Path)
    ours.add_argument("--help", "-h", action="store_true")
    ours.add_argument("--help-all", action="store_true")
    asked, typed = ours.parse_known_args(list(arguments))
    in_file = settings.read(asked.config, experiment.name) if asked.config else {}
    named = typed.pop(0) if typed and not typed[0].startswith("-") else None
    chosen = str(in_file.pop("preset", named or next(iter(presets))))
    if named not in (None, chosen):
        raise ValueError(
            f"--config {asked.config} is of preset {chosen}, the command says {named}: leave one of them out"
        )
    if chosen not in presets:
        raise ValueError(f"{prog}: no preset {chosen}: {nearest(chosen, presets)}")
    if asked.help and named is None:
        listed = "\n".join(f"  {name:<12} {preset.text}" for name, preset in presets.items())
        show(f"usage: {prog} [PRESET] [--OPTION VALUE ...]\n\n{experiment.description}\npresets:\n{listed}\n")
        show(f"options: {prog} {chosen} --help, or --help-all; --config FILE reads them from a run.toml")
        raise SystemExit(0)
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

    preset, prog = presets[chosen], f"{prog} {chosen}"
    default: Any = command(preset.config, preset.compute)
    if asked.help or in_file:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            parser = tyro.extras.get_parser(command, default=default)
        if asked.help:
            show(f"usage: {prog} [--OPTION VALUE ...]\n\n{preset.text}\n", settings.short_help(parser))
            show(f"\n{prog} --help-all explains every option; --config FILE reads them from a run.toml")
            raise SystemExit(0)
        typed = [*settings.words(in_file, parser._option_string_actions, str(asked.config)), *typed]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            words = ["--help"] if asked.help_all else typed
            parsed: Any = tyro.cli(command, default=default, prog=prog, args=words, description=preset.text)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(f"{_sentence(said.getvalue())} ({prog} --help)") from None
    return parsed.config, parsed.compute, parsed.place


def _sentence(said: str) -> str:
    """What tyro says in a box, as one sentence, with the option's name."""
    lines = [line.strip("│| ") for line in said.splitlines()[1:]]  # without the box's title
    text = " ".join(line for line in lines if line.strip("─-+╭╮╰╯ "))
    text = re.sub(r" (Argument|For full) helptext.*", "", text)
    found = re.match(r"Unrecognized options: ([^\s,]+)(?:.*?Perhaps you meant: (--[^\s,]+))?", text)
    if found:
        return f"no option {found[1]}" + (f": did you mean {found[2]}?" if found[2] else "")
    text = re.sub(r"^Error parsing (?:config|place)\.", "--", text)
    text = re.sub(r"^Error parsing (?:(?:config|compute|place): )?", "", text)
    text = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number", text)
    return re.sub(r"could not convert string to float: (.*)", r"\1 is no number", text)


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
    return short(re.sub(r"[^\w.+-]+", "-", "-".join(parts)), parts)


def command_of(experiment: str, arguments: Sequence[str], *, replica: int | None = None) -> str:
    """The command that gives the same results: without the folder they are kept in, of one replica's seed alone."""
    left_out = {
        "--run-folder",
        "--begin-as",
        *(f"--distributed.{field.name}" for field in dataclasses.fields(Distributed)),
    }
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
            if config.preset in experiment.presets:
                compute = runtime.for_device(compute, experiment.presets[config.preset].compute)
            for seed in range(config.seed, config.seed + place.replicas):
                one = dataclasses.replace(config, seed=seed)
                folder = place.run_folder or Path("runs") / folder_name(experiment, one)
                here = dataclasses.replace(
                    place, run_folder=folder / f"seed-{seed}" if many and place.run_folder else folder
                )
                if place.dry_run:
                    show(_planned(experiment, one, compute, here))
                    continue
                if apart is not None:
                    here = dataclasses.replace(here, run_folder=apart / str(seed), tracker=Tracker("none"))
                called = command_of(experiment.name, arguments, replica=seed if many else None)
                found[seed] = _run(experiment, one, compute, here, called)
        if len(found) > 1 and all(run.get("rows") for run in found.values()):
            show(table_text(evaluation.spread(found)))

    return ends.ended(work)


def _planned(experiment: Experiment, config: Any, compute: Compute, place: Place) -> str:
    """The plan of a run; over stand-ins for passages that cannot be fetched here, which is said."""
    plan_of = experiment.describe or describe
    try:
        return plan_of(experiment, config, compute, place)
    except NotFetched as missing:
        shown = plan_of(experiment, dataclasses.replace(config, data=STAND_IN), compute, place)
        return (
            f"Planned with stand-ins for the passages of --data {config.data}: 130 words and 5 questions each, one in "
            f"fifty of 600 words. {missing}\n\n{shown}"
        )


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
