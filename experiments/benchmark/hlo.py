"""What a compiled program does, read from its text: the operations that it starts, how often, and the bytes they move.

A loop's operations count as often as it goes round. Where nobody knows how often (writing ends with its last row), the
program's step is once around the loop that moves most; of any other program it is the whole. Bytes are those of a
device's main memory: a fusion that only slices an operand reads the slice, one that updates in place writes the update,
and what lies in a TPU's scratch memory, S(1), costs nothing.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
NAMED_GROUPS = (  # as some versions of XLA write them: the axes of a mesh of its own, and the order of its devices
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([\w',]+)\}"
)
BITS = {"pred": 8, "token": 0}  # of other types the name says it: s32, bf16, f8e4m3fn
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
COLLECTIVE = re.compile(r"(all-reduce|all-gather|reduce-scatter|collective-permute|(?:ragged-)?all-to-all)(-start)?")
MOVING = {"copy", "copy-start", "slice", "dynamic-slice", "transpose", "reshape", "convert", "concatenate"}
CHOOSING = {"add", "subtract", "compare", "select", "clamp", "broadcast", "iota", "and"}  # what to slice, and where


class Op(NamedTuple):
    """A line of a computation."""

    name: str
    shape: str
    kind: str
    operands: list[str]  # by name; of a constant, its value
    attributes: str
    root: bool


Computation = dict[str, Op]


class Run(NamedTuple):
    """An operation that is started."""

    kind: str
    made: str  # the shape of its result
    times: int
    bytes_read: float
    bytes_written: float
    cycles: int  # XLA's static estimate, where the target has one
    moves_only: bool  # computes nothing
    in_loop: bool
    endless: str  # the outermost loop around it of which nobody knows how often it goes round
    attributes: str

    @property
    def moved(self) -> float:
        return self.times * (self.bytes_read + self.bytes_written)


class Step(NamedTuple):
    """What a step of a program does on one device."""

    kernels: int
    moved: float  # bytes read and written
    copied_in_loops: float  # bytes read and written to take weights out of a stack, or to lay them out anew
    copied_once: float  # the same, outside of all loops
    cycles: int
    collectives: dict[str, float]  # bytes by kind, and by the axes of the mesh; of the whole program


def step(text: str, weights: Collection[tuple[int, ...]] = (), mesh: Mapping[str, int] | None = None) -> Step:
    """What a step does. `weights` are the `dims` of matrices that nothing should copy, `mesh` the devices by axis."""
    runs = list(executed(*parse(text)))
    loops: dict[str, float] = defaultdict(float)
    for run in runs:
        loops[run.endless] += run.moved if run.endless else 0
    largest = max(loops, key=lambda name: loops[name])
    own = [run for run in runs if run.endless == largest]
    sent: dict[str, float] = defaultdict(float)
    for run in runs:
        if found := COLLECTIVE.fullmatch(run.kind):
            over = f" over {axes(run.attributes, mesh)}" if mesh else ""
            sent[found[1] + over] += run.times * _received(run)
    copies = lambda of: sum(r.moved for r in of if r.moves_only and any(d in weights for d in dims(r.made)))
    return Step(
        kernels=sum(run.times for run in own),
        moved=sum(run.moved for run in own),
        copied_in_loops=copies(run for run in own if run.in_loop),
        copied_once=copies(run for run in runs if not run.in_loop),
        cycles=sum(run.times * run.cycles for run in own),
        collectives=dict(sent),
    )


def axes(attributes: str, mesh: Mapping[str, int]) -> str:
    """The axes of a mesh along which a collective exchanges anything; all of them where it does not say."""
    groups = np.arange(math.prod(mesh.values()))[None]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, of, order = ([int(n) for n in part.split(",")] if part else None for part in found.groups())
        groups = np.arange(math.prod(of or ())).reshape(of or ()).transpose(order).reshape(shape or ())
    elif found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]+\})\}", attributes):
        groups = np.array([[int(n) for n in group.split(",")] for group in re.findall(r"[\d,]*\d", found[1])])
    elif found := re.search(NAMED_GROUPS, attributes):
        sizes = {name: int(size) for name, size in re.findall(r"('\w+')=(\d+)", found[1])}
        of, order = ([int(n) for n in part.split(",")] if part else None for part in found.groups()[1:3])
        along = [list(sizes).index(name) for name in found[4].split(",")]
        there = np.arange(math.prod(sizes.values())).reshape(of or -1).transpose(order).reshape([*sizes.values()])
        last = np.moveaxis(there, along, range(-len(along), 0))
        groups = last.reshape(-1, math.prod(last.shape[-len(along) :]))
    places = np.unravel_index(groups, tuple(mesh.values()))
    return ", ".join(name for name, at in zip(mesh, places, strict=True) if (at != at[:, :1]).any())


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the name of the one that is the program."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$", line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif found := LINE.match(line):
            inside, _, attributes = found[5].partition("), ")
            operands = re.findall(r"%([\w.\-]+)", inside) or [inside.rstrip(")")]
            current[found[2]] = Op(found[2], found[3], found[4], operands, attributes, bool(found[1]))
    return computations, entry


def executed(computations: dict[str, Computation], entry: str) -> Iterator[Run]:
    """All operations that a program starts; of a choice, those of every branch."""

    def of(name: str, times: int, in_loop: bool, endless: str) -> Iterator[Run]:
        for op in computations[name].values():
            if op.kind == "while":
                rounds, body = _rounds(op, computations), _attribute(op, r"body=%?([\w.\-]+)")
                yield from of(body, times * (rounds or 1), True, endless or ("" if rounds else body))
            elif op.kind in ("call", "conditional"):
                branches = _attribute(op, r"branch_computations=\{([^}]*)\}") or op.attributes
                for branch in re.findall(r"(?:^|, |to_apply=|_computation=)%([\w.\-]+)", branches):
                    yield from of(branch, times, in_loop, endless)
            elif op.kind not in FREE and not op.kind.endswith(("-done", "-update")):
                fused = computations.get(_attribute(op, r"calls=%?([\w.\-]+)"))
                if fused is None:  # by itself: as if it were fused with nothing
                    around = computations[name]
                    fused = {x: around[x]._replace(kind="parameter", root=False) for x in op.operands if x in around}
                    fused[op.name] = op._replace(root=True)
                root = next(inner for inner in fused.values() if inner.root)
                kinds = {inner.kind for inner in fused.values()} - FREE
                moves_only = bool(kinds & MOVING) and kinds <= MOVING | CHOOSING
                cycles = int(_attribute(op, r'estimated_cycles"?:"?(\d+)') or 0)
                yield Run(
                    op.kind, root.shape, times, *_traffic(fused, root), cycles, moves_only, in_loop, endless,
                    op.attributes,
                )  # fmt: skip

    yield from of(entry, 1, False, "")


def dims(shape: str) -> list[tuple[int, ...]]:
    """The sizes of each array, ones left out, in ascending order: layouts differ, weights do not. Without those in
    scratch memory: weights are fetched there to be used."""
    each = [sizes for _, sizes, layout in ARRAY.findall(shape) if "S(" not in layout]
    return [tuple(sorted(int(n) for n in sizes.split(",") if n not in ("", "1"))) for sizes in each]


def size(shape: str) -> float:
    """Bytes in main memory."""
    return sum(_bytes(kind, sizes) for kind, sizes, layout in ARRAY.findall(shape) if "S(" not in layout)


def _bytes(kind: str, sizes: str) -> float:
    bits = BITS[kind] if kind in BITS else int(re.search(r"\d+", kind)[0])  # type: ignore[index]
    return math.prod(int(n) for n in sizes.split(",") if n) * bits / 8


def _received(run: Run) -> float:
    """Bytes that a collective makes on a device, in scratch memory too."""
    each = [_bytes(kind, sizes) for kind, sizes, _ in ARRAY.findall(run.made)]
    if run.kind.endswith("-start") and run.kind != "all-reduce-start":  # what it reads comes first, and is no result
        each = each[1:2] if "permute" in run.kind else each[len(each) // 2 :]
    return sum(each)


def _attribute(op: Op, pattern: str) -> str:
    found = re.search(pattern, op.attributes)
    return found[1] if found else ""


def _rounds(loop: Op, computations: dict[str, Computation]) -> int:
    """How often a loop goes round: XLA says so, or a counter stays below a constant. 0 if it depends on data."""
    if known := _attribute(loop, r'known_trip_count"?:\{"?n"?:"?(\d+)'):
        return int(known)
    condition = computations[_attribute(loop, r"condition=%?([\w.\-]+)")]
    root = next(op for op in condition.values() if op.root)
    bounds = [condition[name].operands[0] for name in root.operands if condition[name].kind == "constant"]
    return int(bounds[0]) if root.kind == "compare" and "direction=LT" in root.attributes and bounds else 0


def _traffic(body: Computation, root: Op) -> tuple[float, float]:
    """Bytes that a fusion reads and writes."""
    users: dict[str, list[Op]] = defaultdict(list)
    for inner in body.values():
        for name in inner.operands:
            users[name].append(inner)

    def wanted(name: str) -> float:  # of an operand
        whole, total = size(body[name].shape), 0.0
        for user in users[name]:
            first = user.operands[0] == name
            if user.kind == "bitcast":
                total += wanted(user.name)
            elif user.kind in ("dynamic-slice", "slice", "gather") and first:
                total += size(user.shape)
            elif user.kind != "dynamic-update-slice" or not first:
                return whole
        return min(total, whole)

    def written(inner: Op) -> float:
        if inner.kind == "bitcast" and inner.operands[0] in body:
            return min(size(inner.shape), written(body[inner.operands[0]]))  # it may lie in scratch memory
        if inner.kind == "tuple":
            return sum(written(body[name]) for name in inner.operands)
        if inner.kind == "dynamic-update-slice":
            return size(body[inner.operands[1]].shape)
        if inner.kind == "custom-call":  # the rest of its tuple is its workspace
            return size(re.sub(r", s8\[.*", "", inner.shape))
        named_again = inner.kind.endswith("-start") and inner.kind != "all-reduce-start"  # what it reads
        return size(inner.shape) - (read if named_again else 0)

    read = sum(wanted(inner.name) for inner in body.values() if inner.kind == "parameter")
    return read, written(root)
