"""A run's settings as a file: `run.toml` in every run folder, which `--config FILE` reads; and the short --help."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from seal_jax.analysis.grid import leaves
from seal_jax.domains.records import load_toml
from seal_jax.run.journal import write_atomically
from seal_jax.run.terminal import nearest

FILE = "run.toml"
HEAD = "# What this run was set to. The same again: --config with this file; options that are typed beside it count.\n"
WIDTH, NAMES = 100, 30  # columns of the short help, and of its names


def write(folder: Path, experiment: str, config: Any, compute: Any) -> None:
    """Writes `run.toml`: a line a setting, named as on the command line."""
    lines = [("experiment", experiment), ("preset", config.preset), *flat(config), *flat(compute, "compute")]
    write_atomically(folder / FILE, HEAD + "".join(f"{name} = {_spelled(value)}\n" for name, value in lines))


def flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each option that a config has, nested ones too."""
    names = getattr(settings, "_fields", ())
    if dataclasses.is_dataclass(settings):
        names = tuple(field.name for field in dataclasses.fields(settings) if "Suppress" not in str(field.type))
    for name in names:
        yield from flat(getattr(settings, name), f"{prefix}.{name}" if prefix else name)
    if not names:
        yield prefix, settings


def _spelled(value: Any) -> str:
    """A value in TOML, which has no word for None."""
    return json.dumps("None" if value is None else value, default=str, ensure_ascii=False)


def read(path: Path, experiment: str) -> dict[str, Any]:
    """The settings in a file by their dotted names, with "preset" if it names one.

    Raises:
        ValueError: no such file, no TOML, or the settings of another experiment.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"--config {path}: {error.strerror}; expected a TOML file, such as a run folder's {FILE}"
        ) from None
    found = load_toml(content, f"--config {path}", "lines such as outer.rounds = 2")
    if (named := found.pop("experiment", experiment)) != experiment:
        raise ValueError(f"--config {path} holds settings of {named}, and this is {experiment}; run {named} with it")
    return dict(leaves(found))


def words(settings: Mapping[str, Any], options: Collection[str], path: str) -> list[str]:
    """Settings as the words of a command line that has these options.

    Raises:
        ValueError: a setting that it has not.
    """
    found: list[str] = []
    for name, value in settings.items():
        option = f"--{name}".replace("_", "-")
        if option not in options:
            near = nearest(option, options, others="--help-all lists all")
            raise ValueError(f"--config {path}: no setting {name}: {near}")
        if isinstance(value, bool) and (off := re.sub(r"^(--|.*\.)(?=[^.]*$)", r"\1no-", option)) in options:
            found.append(option if value else off)
        else:
            found += [option, *map(str, value if isinstance(value, list) else [value])]
    return found


def short_help(parser: Any) -> str:
    """The options of a run, a line each, and of the groups of further ones their names and defaults."""
    lines, groups = [], []
    for group in parser._action_groups:
        said = [(action.option_strings[0], _parted(action.help or "")) for action in group._group_actions]
        known = [(name, *match.groups()) for name, match in said if match]
        if group.title == "options":
            for name, what, default in known:
                short = textwrap.shorten(what.split(". ")[0], WIDTH - NAMES, placeholder=" ...")
                lines.append(f"  {name + ' ' + default:<{NAMES - 3}} {short}")
        elif known:
            start = known[0][0].rpartition(".")[0] + "."
            names = " ".join(f"{name.removeprefix(start)}={default.replace(' ', ',')}" for name, _, default in known)
            groups.append(f"  {start:<{NAMES - 3}} {(group.description or '').split('. ')[0]}")
            indent = " " * 6
            groups += textwrap.wrap(
                names, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
            )
    return "\n".join([*lines, "", "More, by group:", "", *groups])


def _parted(said: str) -> re.Match[str] | None:
    """What tyro says of an option, and its default."""
    return re.fullmatch(r"(.*?)\s*\(default: ([^()]*)\)", said, re.DOTALL)
