"""A search over the fields of a config, declared as data: names and values in, one config a cell out.

    axes = read_grid(["inner.learning_rate=1e-4,3e-4,1e-3", "inner.rank=8,32"], fields(Config))
    for values in cells(axes):                       # 6 of them, in the order of the grid
        config = with_values(base, values)

A field is named by its path through nested dataclasses; its type is the one that the dataclass declares. The parts of a
tuple are joined by a plus: `inner.projections=q_proj+v_proj,q_proj`. For a random search a number may also be a span,
`inner.learning_rate=1e-5..1e-2`. A TOML file says the same (`read_table`).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import random
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

MOST_CELLS = 10_000  # of a grid that is run whole: more than that is a mistake

Config = TypeVar("Config")
Values = dict[str, Any]  # a cell: dotted name -> value


class Span(NamedTuple):
    """Values to draw from, ends included: evenly in the logarithm where both are positive, otherwise evenly."""

    low: float
    high: float

    def draw(self, rng: random.Random) -> float:
        """One value, with three significant digits; a whole number where the ends are."""
        if self.low > 0:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        value = min(max(float(f"{value:.3g}"), self.low), self.high)
        return round(value) if isinstance(self.low, int) else value


FORM = "[grid] with lines such as inner.rank = [8, 32]"
Axes = dict[str, list[Any] | Span]  # dotted name -> what it may be


class Named(NamedTuple):
    """A search as a file has it."""

    title: str
    axes: Axes
    random: int | None  # cells to draw; None: all


class _File(msgspec.Struct, forbid_unknown_fields=True):
    grid: Annotated[dict[str, Any], msgspec.Meta(min_length=1)]
    title: str | None = None
    random: Annotated[int, msgspec.Meta(ge=1)] | None = None


def fields(config: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> declared type, of every field of a config dataclass that is not itself a dataclass."""
    declared = typing.get_type_hints(config)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        kind = declared[field.name]
        nested = dataclasses.is_dataclass(kind)
        found |= fields(kind, f"{prefix}{field.name}.") if nested else {prefix + field.name: kind}
    return found


def parse(value: Any, kind: Any, *, strict: bool = False) -> Any:
    """A value of a declared type, from text as a person types it; `strict`: from TOML, which has types.

    Raises:
        ValueError: it is of another type.
    """
    if type(None) in typing.get_args(kind) and value == "none":
        return None
    if typing.get_origin(kind) is tuple and not strict:
        value = [part.strip() for part in value.split("+")] if value else []
    found = msgspec.convert(value, kind, strict=strict)
    if isinstance(found, float) and not math.isfinite(found):
        raise ValueError(f"{value} is not finite")
    return found


def text_of(value: Any) -> str:
    """A value as a person types it: what `parse` reads."""
    if isinstance(value, tuple | list):
        return "+".join(map(text_of, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Grids


def read_grid(entries: Sequence[str], known: Mapping[str, Any], *, barred: Mapping[str, str] | None = None) -> Axes:
    """`name=value,value` or `name=low..high`, one entry a field.

    Args:
      known: dotted name -> type (`fields`).
      barred: names that cannot be searched, and why.

    Raises:
        ValueError: an entry of another form, an unknown field (with a suggestion), a value of the wrong type, none at
            all, or one of them twice.
    """
    split = []
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals:
            raise ValueError(f"--grid {entry}: expected FIELD=VALUE,VALUE such as inner.rank=8,32")
        values = [part.strip() for part in text.split(",") if part.strip()]
        split.append((name.strip(), values[0] if len(values) == 1 and ".." in values[0] else values))
    return _axes(split, known, barred or {}, "--grid", strict=False)


def read_table(
    table: Mapping[str, Any], path: Path, known: Mapping[str, Any], *, barred: Mapping[str, str] | None = None
) -> Named:
    """A search as a TOML file, `path`, has it: `title`, `[grid]` with a list (or "low..high") a field, maybe `random`.

    Raises:
        ValueError: what `read_grid` refuses, or an entry that does not belong there.
    """
    try:
        content = msgspec.convert(table, _File)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; expected {FORM}") from error
    axes = _axes(leaves(content.grid), known, barred or {}, str(path), strict=True)
    return Named(content.title or path.stem, axes, content.random)


def find(name: str, folder: Path) -> Path:
    """The file of a named search in `folder`, or the file of this path.

    Raises:
        FileNotFoundError: there is none (suggests).
    """
    names = sorted(path.stem for path in folder.glob("*.toml"))
    path = folder / f"{name}.toml" if name in names else Path(name)
    if not path.is_file():
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(names)}, or a TOML file"
        raise FileNotFoundError(f"--ablation: no ablation and no file is called {name!r}; {hint}")
    return path


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each entry of a table and its tables."""
    for name, value in table.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def _axes(
    entries: Iterable[tuple[str, Any]], known: Mapping[str, Any], barred: Mapping[str, str], where: str, *, strict: bool
) -> Axes:
    axes: Axes = {}
    for written, values in entries:
        name = _known(written.replace("-", "_"), known, barred, where)
        here, kind = f"{where}: {name}", known[name]
        if name in axes:
            raise ValueError(f"{here} is given twice; put all of its values into one entry")
        if isinstance(values, str) and ".." in values and kind in (int, float):
            low, high = (_value(end.strip(), kind, here, False) for end in values.split("..", 1))
            if not low < high:
                raise ValueError(f"{here}: the span {values} is empty; expected LOW..HIGH with LOW below HIGH")
            axes[name] = Span(low, high)
            continue
        if not isinstance(values, list) and strict:
            raise ValueError(f'{here} is {values!r}; expected a list of values, or a span such as "1e-5..1e-2"')
        found = [_value(value, kind, here, strict) for value in ([values] if isinstance(values, str) else values)]
        twice = next((value for n, value in enumerate(found) if value in found[:n]), None)
        if not found or twice is not None:
            what = f"{text_of(twice)} is given twice" if found else "no values; expected at least one"
            raise ValueError(f"{here}: {what}")
        axes[name] = found
    return axes


def _known(name: str, known: Mapping[str, Any], barred: Mapping[str, str], where: str) -> str:
    if name in barred:
        raise ValueError(f"{where}: {name} cannot be searched: {barred[name]}")
    if name in known:
        return name
    there = [field for field in known if field not in barred]
    last = {field.rpartition(".")[2]: field for field in there}  # rank -> inner.rank
    close = [last[found] for found in difflib.get_close_matches(name.rpartition(".")[2], last, n=1)]
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(there)}"
    raise ValueError(f"{where}: there is no field {name!r}; {hint}")


def _value(value: Any, kind: Any, where: str, strict: bool) -> Any:
    try:
        return parse(value, kind, strict=strict)
    except ValueError:  # msgspec's is one
        expected = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
        expected = expected.replace("typing.", "")
        raise ValueError(f"{where}: {value!r} is not what the field takes: {expected}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Cells


def cells(axes: Axes, *, draw: int | None = None, seed: int = 0) -> list[Values]:
    """All cells of a grid, the last field changing fastest; or `draw` different ones of them, drawn with the seed.

    Raises:
        ValueError: no field, a span without `draw`, more cells to draw than there are, or far too many.
    """
    if not axes:
        raise ValueError("the grid is empty: name fields and values, such as --grid inner.rank=8,32, or an --ablation")
    spans = [name for name, values in axes.items() if isinstance(values, Span)]
    lists = [values for values in axes.values() if not isinstance(values, Span)]
    total = math.prod(map(len, lists))
    if draw is None:
        if spans:
            raise ValueError(f"{spans[0]} is a span: say how many cells to draw from it (--random 20), or list values")
        if total > MOST_CELLS:
            raise ValueError(f"the grid has {total:,} cells; draw some of them with --random 20, or name fewer values")
        return [dict(zip(axes, combination, strict=True)) for combination in itertools.product(*lists)]
    if draw < 1:
        raise ValueError(f"--random {draw}: expected at least 1 cell to draw")
    if not spans and draw > total:
        raise ValueError(f"--random {draw}: the grid has only {total} cells; leave --random out to run them all")
    rng = random.Random(seed)
    drawn: dict[str, Values] = {}
    for _ in range(1000 * draw):  # a span of whole numbers may hold fewer cells than are asked for
        values = {name: c.draw(rng) if isinstance(c, Span) else rng.choice(c) for name, c in axes.items()}
        drawn.setdefault(label(values), values)
        if len(drawn) == draw:
            return list(drawn.values())
    raise ValueError(
        f"--random {draw}: only {len(drawn)} different cells found in {1000 * draw:,} draws; ask for fewer"
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
        path, dot, last = name.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            words.append(f"--{path}{dot}{'' if value else 'no-'}{last}")
        else:
            words += [f"--{path}{dot}{last}", *map(str, value if isinstance(value, tuple) else [value])]
    return " ".join(words)


def with_values(config: Config, values: Values) -> Config:
    """The config with a cell's values in their places.

    Raises:
        ValueError: values that do not go together (names the cell).
    """

    def replaced(config: Any, values: Values) -> Any:
        own: Values = {}
        for name, value in values.items():
            head, dot, rest = name.partition(".")
            if dot:
                own.setdefault(head, {})[rest] = value
            else:
                own[head] = value
        nested = {head for head in own if dataclasses.is_dataclass(getattr(config, head))}
        return dataclasses.replace(
            config, **{head: replaced(getattr(config, head), v) if head in nested else v for head, v in own.items()}
        )

    try:
        return replaced(config, values)
    except ValueError as error:
        raise ValueError(f"cell {label(values)}: {error}") from error
