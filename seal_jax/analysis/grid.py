"""A search over the fields of a config, declared as data: names and values in, one config a cell out.

    axes = read_grid(["inner.learning_rate=1e-4,3e-4,1e-3", "inner.rank=8,32"], fields(Config))
    for values in cells(axes):                       # 6 of them, in the order of the grid
        config = with_values(base, values)

A field is named by its path through nested dataclasses; its type is the one that the dataclass declares. A value that
is several (a tuple) joins its parts with a plus: `inner.projections=q_proj+v_proj,q_proj`. For a random search a number
may also be a span, `inner.learning_rate=1e-5..1e-2`. Files say the same in TOML (`read_file`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import math
import random
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union

MOST_CELLS = 10_000  # of a grid that is run whole: more than that is a slip of the pen
UNIONS = (Union, types.UnionType)  # `Optional[int]` and `int | None`
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")

Config = TypeVar("Config")
Values = dict[str, Any]  # a cell: dotted name -> value


class Span(NamedTuple):
    """Values to draw from, ends included: evenly in the logarithm where both are positive, otherwise evenly."""

    low: float
    high: float

    def draw(self, rng: random.Random) -> float:
        """One of them, with three digits that count: nobody wants to type more."""
        if self.low > 0:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return min(max(float(f"{value:.3g}"), self.low), self.high)


Axes = dict[str, list[Any] | Span]  # dotted name -> what it may be


class Named(NamedTuple):
    """A search as a file has it."""

    title: str
    axes: Axes
    random: int | None  # cells to draw; None: all


# ---------------------------------------------------------------------------------------------------------------------
# Fields and their values


def fields(config: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> declared type, of every field of a config dataclass that is not itself a dataclass."""
    declared = typing.get_type_hints(config)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        kind = declared[field.name]
        if dataclasses.is_dataclass(kind):
            found |= fields(typing.cast(type, kind), f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = kind
    return found


def expected(kind: Any) -> str:
    """What a field of this type takes, in words."""
    if kind in (int, float, bool, str):
        return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, parts))
    if origin is tuple:
        return f"{expected(parts[0])}, or several joined by a plus"
    if origin in UNIONS:
        return " or ".join("none" if part is type(None) else expected(part) for part in parts)
    return str(kind)


def parse(text: str, kind: Any) -> Any:
    """A value of a declared type from how a person writes it.

    Raises:
        ValueError: it is none (the caller says which field, and what was expected).
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind in (int, str):
        return kind(text)
    if kind is float and math.isfinite(float(text)):
        return float(text)
    if kind is bool and text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    if origin is tuple:
        return tuple(parse(part.strip(), parts[0]) for part in text.split("+")) if text else ()
    if origin is Literal:
        for part in parts:
            if str(part) == text:
                return part
    if origin in UNIONS:
        if type(None) in parts and text.lower() == "none":
            return None
        for part in parts:
            with contextlib.suppress(ValueError):
                return parse(text, part)
    raise ValueError(text)


def checked(value: Any, kind: Any) -> Any:
    """A value of a declared type from TOML, which has types of its own; "none" is None.

    Raises:
        ValueError: it is of another type.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(checked(part, parts[0]) for part in value)
    if origin is Literal and value in parts:
        return value
    if origin in UNIONS:
        if type(None) in parts and value == "none":
            return None
        for part in parts:
            with contextlib.suppress(ValueError):
                return checked(value, part)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise ValueError(value)


def text_of(value: Any) -> str:
    """A value as a person writes it: what `parse` reads."""
    if isinstance(value, tuple | list):
        return "+".join(map(text_of, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Grids


def read_grid(entries: Sequence[str], known: Mapping[str, Any], *, barred: Mapping[str, str] | None = None) -> Axes:
    """`name=value,value` or `name=low..high`, one entry a field.

    Args:
      known: dotted name -> type (`fields`).
      barred: names that cannot be searched, and why.

    Raises:
        ValueError: an entry that is no such thing, an unknown field (with a suggestion), a value of the wrong type,
            none at all, or one of them twice.
    """
    axes: Axes = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals:
            raise ValueError(f"--grid {entry}: expected FIELD=VALUE,VALUE such as inner.rank=8,32")
        name = _known(name.strip().replace("-", "_"), known, barred or {}, "--grid")
        if name in axes:
            raise ValueError(f"--grid: {name} is given twice; put all of its values into one entry")
        kind = known[name]
        written = [part.strip() for part in text.split(",") if part.strip()]
        if len(written) == 1 and (span := _span(written[0], kind, f"--grid {name}")):
            axes[name] = span
        else:
            axes[name] = _distinct([_value(part, kind, f"--grid {name}") for part in written], f"--grid {name}")
    return axes


def read_file(path: Path, known: Mapping[str, Any], *, barred: Mapping[str, str] | None = None) -> Named:
    """A search as a TOML file has it: `title`, `[grid]` with a list (or "low..high") a field, and maybe `random`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what `read_grid` refuses, an entry that does not belong there, or no TOML at all.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not TOML: {error}; expected [grid] and lines such as inner.rank = [8, 32]"
        ) from error
    strange = sorted(content.keys() - {"title", "random", "grid"})
    if strange:
        raise ValueError(f"{path}: {strange[0]!r} does not belong here; expected title, random and [grid]")
    table, count = content.get("grid"), content.get("random")
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path}: [grid] is missing or empty; expected lines such as inner.rank = [8, 32]")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ValueError(f"{path}: random is {count!r}; expected a whole number of cells to draw, at least 1")
    axes: Axes = {}
    for written, values in _leaves(table):
        name = _known(written.replace("-", "_"), known, barred or {}, str(path))
        where, kind = f"{path}: {name}", known[name]
        if isinstance(values, str) and (span := _span(values, kind, where)):
            axes[name] = span
        elif isinstance(values, list):
            axes[name] = _distinct([_checked(value, kind, where) for value in values], where)
        else:
            raise ValueError(f'{where} is {values!r}; expected a list of values, or a span such as "1e-5..1e-2"')
    return Named(str(content.get("title") or path.stem), axes, count)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _known(name: str, known: Mapping[str, Any], barred: Mapping[str, str], where: str) -> str:
    if name in barred:
        raise ValueError(f"{where}: {name} cannot be searched: {barred[name]}")
    if name in known:
        return name
    open_fields = [field for field in known if field not in barred]
    last = {field.rpartition(".")[2]: field for field in open_fields}  # rank -> inner.rank
    close = [last[name]] if name in last else difflib.get_close_matches(name, open_fields, n=1)
    close = close or [last[found] for found in difflib.get_close_matches(name.rpartition(".")[2], last, n=1)]
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(open_fields)}"
    raise ValueError(f"{where}: there is no field {name!r}; {hint}")


def _span(text: str, kind: Any, where: str) -> Span | None:
    if kind not in (int, float) or ".." not in text:
        return None
    low, _, high = text.partition("..")
    ends = [_value(end.strip(), kind, where) for end in (low, high)]
    if not ends[0] < ends[1]:
        raise ValueError(f"{where}: the span {text} is empty; expected LOW..HIGH with LOW below HIGH")
    return Span(*ends)


def _value(text: str, kind: Any, where: str) -> Any:
    try:
        return parse(text, kind)
    except ValueError:
        raise ValueError(f"{where}: {text!r} is not what the field takes: {expected(kind)}") from None


def _checked(value: Any, kind: Any, where: str) -> Any:
    try:
        return checked(value, kind)
    except ValueError:
        raise ValueError(f"{where}: {value!r} is not what the field takes: {expected(kind)}") from None


def _distinct(values: list[Any], where: str) -> list[Any]:
    if not values:
        raise ValueError(f"{where}: no values; expected at least one")
    for n, value in enumerate(values):
        if value in values[:n]:
            raise ValueError(f"{where}: {text_of(value)} is given twice")
    return values


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def cells(
    axes: Axes, *, draw: int | None = None, seed: int = 0, kinds: Mapping[str, Any] | None = None
) -> list[Values]:
    """All cells of a grid, the last field changing fastest; or `draw` different ones of them, drawn with the seed.

    `kinds` are the fields' types: whole numbers are drawn whole.

    Raises:
        ValueError: no field, a span without `draw`, more cells to draw than there are, or far too many.
    """
    if not axes:
        raise ValueError("the grid is empty: name fields and values, such as --grid inner.rank=8,32, or an --ablation")
    spans = [name for name, values in axes.items() if isinstance(values, Span)]
    total = math.prod(1 if isinstance(values, Span) else len(values) for values in axes.values())
    if draw is None:
        if spans:
            raise ValueError(f"{spans[0]} is a span: say how many cells to draw from it (--random 20), or list values")
        if total > MOST_CELLS:
            raise ValueError(f"the grid has {total:,} cells; draw some of them with --random 20, or name fewer values")
        lists = [values for values in axes.values() if not isinstance(values, Span)]
        return [dict(zip(axes, combination, strict=True)) for combination in itertools.product(*lists)]
    if draw < 1:
        raise ValueError(f"--random {draw}: expected at least 1 cell to draw")
    if not spans and draw > total:
        raise ValueError(f"--random {draw}: the grid has only {total} cells; leave --random out to run them all")
    rng, whole = random.Random(seed), {name for name, kind in (kinds or {}).items() if kind is int}
    drawn: dict[str, Values] = {}
    for _ in range(1000 * draw):  # a span of whole numbers may hold fewer cells than are asked for
        values: Values = {}
        for name, choice in axes.items():
            value = choice.draw(rng) if isinstance(choice, Span) else rng.choice(choice)
            values[name] = round(value) if isinstance(choice, Span) and name in whole else value
        drawn.setdefault(label(values), values)
        if len(drawn) == draw:
            return list(drawn.values())
    raise ValueError(
        f"--random {draw}: only {len(drawn)} different cells were found in 1,000 draws each; ask for fewer"
    )


def label(values: Values) -> str:
    """A cell as a person reads it: the last part of each field's name, or the whole where two would be alike."""
    last = [name.rpartition(".")[2] for name in values]
    shown = [full if last.count(short) > 1 else short for full, short in zip(values, last, strict=True)]
    return ", ".join(f"{name}={text_of(value)}" for name, value in zip(shown, values.values(), strict=True))


def options(values: Values) -> str:
    """A cell as options of a command line."""
    words = []
    for name, value in values.items():
        path, _, last = name.replace("_", "-").rpartition(".")
        dotted = f"{path}." if path else ""
        if isinstance(value, bool):
            words.append(f"--{dotted}{'' if value else 'no-'}{last}")
        else:
            parts = [text_of(part) for part in value] if isinstance(value, tuple) else [_exact(value)]
            words.append(" ".join([f"--{dotted}{last}", *parts]))
    return " ".join(words)


def _exact(value: Any) -> str:
    return "None" if value is None else repr(value) if isinstance(value, float) else str(value)


def with_values(config: Config, values: Values) -> Config:
    """The config with a cell's values in their places.

    Raises:
        ValueError: values that do not go together (names the cell).
    """
    try:
        return _replaced(config, values)
    except ValueError as error:
        raise ValueError(f"cell {label(values)}: {error}") from error


def _replaced(config: Any, values: Values) -> Any:
    own = {name: value for name, value in values.items() if "." not in name}
    nested: dict[str, Values] = {}
    for name, value in values.items():
        head, dot, rest = name.partition(".")
        if dot:
            nested.setdefault(head, {})[rest] = value
    below = {head: _replaced(getattr(config, head), inner) for head, inner in nested.items()}
    return dataclasses.replace(config, **own, **below)
