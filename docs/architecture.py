"""Reads which room of the house imports which, and draws it: `make architecture` writes docs/architecture.svg.

A room is a folder of `seal_jax/`, or `experiments/`. Imports in functions count; those under `TYPE_CHECKING` do not.
"""

from __future__ import annotations

import ast
import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PICTURE = Path(__file__).with_name("architecture.svg")

LEVELS = (  # from the ground up: a room imports from lower levels only
    ("types",),
    ("nn", "domains", "graders", "analysis"),
    ("io", "engine", "report"),
    ("seal",),
    ("run",),
    ("experiments",),
)
ON_TYPES_ALONE = {"domains", "graders", "analysis", "report"}
CONTENTS = {
    "experiments": "a file an experiment; the console script seal-jax",
    "run": "run folder, command line, progress, plan",
    "seal": "reward, rounds, outer loops",
    "engine": "batches, inner loop, sampler, memory",
    "io": "checkpoints, tokenizers, PEFT",
    "nn": "decoder, LoRA, losses",
    "domains": "passages, documents, ARC",
    "graders": "by rule, by a model",
    "analysis": "statistics, the paper's figures",
    "report": "a run as a page",
    "types": "types.py: SelfEdit, Domain, HParams, ...",
}


class Import(NamedTuple):
    """One file that imports another."""

    importer: str  # seal_jax.run.session
    imported: str


def files() -> dict[str, Path]:
    """Every module of the house by its dotted name; a package is its `__init__`."""
    found = sorted(itertools.chain((ROOT / "seal_jax").rglob("*.py"), (ROOT / "experiments").rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in found}


def imports() -> set[Import]:
    """Who imports whom, file by file. Importing a name from a package counts as importing the file that it names."""
    modules = files()
    found = set()
    for importer, path in modules.items():
        for name in _imported_names(ast.parse(path.read_text(encoding="utf-8")), importer):
            known = next((known for known in (name, name.rpartition(".")[0]) if known in modules), None)
            package = next((p for p in (name, name.rpartition(".")[0]) if f"{p}.__init__" in modules), None)
            target = known or (f"{package}.__init__" if package else None)
            if target and target != importer:
                found.add(Import(importer, target))
    return found


def _imported_names(node: ast.AST, importer: str) -> Iterator[str]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children: list[ast.stmt] = node.orelse
    else:
        children = list(ast.iter_child_nodes(node))  # type: ignore[arg-type]
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = importer.split(".")[: -node.level] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    for child in children:
        yield from _imported_names(child, importer)


def room(module: str) -> str:
    """The room that a file is in. `cli` belongs to the experiments; `__init__`, the public names, to run."""
    top, *rest = module.split(".")
    if top == "experiments" or rest == ["cli"]:
        return "experiments"
    return {"__init__": "run"}.get(rest[0], rest[0])


def circles(edges: set[Import]) -> list[list[str]]:
    """The groups of files each of which imports, by way of others, itself."""
    below: dict[str, set[str]] = {}
    for edge in edges:
        below.setdefault(edge.importer, set()).add(edge.imported)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for module in below.get(waiting.pop(), set()) - seen:
                seen.add(module)
                waiting.append(module)
        return seen

    far = {module: reached(module) for module in below}
    groups = {
        tuple(sorted(m for m in far[module] if module in far.get(m, ()))) for module in far if module in far[module]
    }
    return [list(group) for group in sorted(groups)]


def is_allowed(importer: str, imported: str) -> bool:
    """Whether one room may import another."""
    if importer == imported or imported == "types":
        return True
    level = {name: n for n, names in enumerate(LEVELS) for name in names}
    if importer == "report":
        return imported == "analysis"  # the figures it draws
    return importer not in ON_TYPES_ALONE and level[imported] < level[importer]


# ---------------------------------------------------------------------------------------------------------------------
# The picture

COLUMN, ROW, HEIGHT, GAP = 160, 118, 62, 16  # of the grid and of a box, pixels
PLACES = {  # room -> column, columns that it spans; its row follows from its level
    "experiments": (0, 6),
    "run": (0, 6),
    "seal": (1, 1),
    "engine": (1, 1),
    "io": (0, 1),
    "nn": (0, 2),
    "domains": (2, 1),
    "graders": (3, 1),
    "analysis": (4, 1),
    "report": (5, 1),
    "types": (0, 6),
}


def shown_arrows(edges: set[Import]) -> set[tuple[str, str]]:
    """Which rooms import which, without those that other arrows imply, and without `types`, which all may import."""
    direct = {(room(edge.importer), room(edge.imported)) for edge in edges}
    direct = {(upper, lower) for upper, lower in direct if upper != lower and lower != "types"}
    down = {pair for pair in direct if is_allowed(*pair)}
    reach = set(down)
    while more := {(a, d) for a, b in reach for c, d in down if b == c} - reach:
        reach |= more
    implied = {(a, d) for a, b in reach for c, d in reach if b == c}
    return (down - implied) | (direct - down)


def drawn(edges: set[Import]) -> str:
    """The rooms, one level above another, as SVG; an import that points up is a dashed red line."""
    rows = {name: len(LEVELS) - 1 - n for n, names in enumerate(LEVELS) for name in names}

    def box(name: str) -> tuple[int, int, int]:
        column, span = PLACES[name]
        return GAP + column * COLUMN, GAP + rows[name] * ROW, span * COLUMN - GAP

    parts = []
    for upper, lower in sorted(shown_arrows(edges)):
        (x, y, width), (x2, y2, width2) = box(upper), box(lower)
        end = x2 + width2 // 2
        if is_allowed(upper, lower):
            start = min(max(end, x + 12), x + width - 12)
            end = min(max(start, x2 + 12), x2 + width2 - 12) if width2 > COLUMN else end
            parts.append(f'<path class="arrow" d="M{start} {y + HEIGHT} L{end} {y2 - 2}" marker-end="url(#tip)"/>')
        else:
            parts.append(f'<path class="up" d="M{x + width // 2} {y} L{end} {y2 + HEIGHT}"><title>up</title></path>')
    for name in PLACES:
        (x, y, width), kind = box(name), "ground" if name == "types" else "room"
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6"/>')
        parts.append(f'<text class="name" x="{x + width // 2}" y="{y + 24}">{name}</text>')
        lines = textwrap.wrap(CONTENTS[name], width // 7)
        parts += [f'<text x="{x + width // 2}" y="{y + 41 + 14 * n}">{line}</text>' for n, line in enumerate(lines)]
    width, height = 6 * COLUMN + GAP, (len(LEVELS) - 1) * ROW + HEIGHT + 2 * GAP
    return "\n".join([HEAD.format(width=width, height=height), *parts, "</svg>\n"])


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<title>The rooms of seal_jax; an arrow leads from a room to one that it imports</title>
<style>
text {{ font: 12px sans-serif; text-anchor: middle; fill: #444 }}
.name {{ font-weight: bold; font-size: 15px; fill: #111 }}
.room {{ fill: #eef3fa; stroke: #5b7fab }} .ground {{ fill: #f2efe6; stroke: #9b8f6a }}
.arrow {{ stroke: #5b7fab; stroke-width: 1.6; fill: none }}
.up {{ stroke: #c33; stroke-width: 1.6; stroke-dasharray: 5 4; fill: none }}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 L8 4 L0 8 z" fill="#5b7fab"/></marker></defs>
<rect width="100%" height="100%" fill="white"/>"""


if __name__ == "__main__":
    PICTURE.write_text(drawn(imports()), encoding="utf-8")
    print(PICTURE)
