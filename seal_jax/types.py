"""The vocabulary every other file shares: what a task asks, what a self-edit says, what training sees.

Axes, one alphabet throughout: P tasks (passages or puzzles), E self-edits (one adapter each), N training
sequences of a self-edit, S inner steps, B sequences a step, T tokens, Q questions, L layers, D model width,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx, struct
from jax.sharding import Mesh

if TYPE_CHECKING:  # names of shapes: read by people and mypy, not needed to run
    from jaxtyping import Float, Int

AnyArray = jax.Array | np.ndarray  # made on the host, used on the device

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # what an adapter may be on

Base = Literal["full", "int8", "nf4"]  # how the matrices of a frozen base model's layers are kept (nn/quantised.py)

Style = Literal["raw", "chat"]  # a prompt is text to be continued (base models), or a user's message (instruct models)

Task = Any  # what a domain is about: a `Passage`, an ARC puzzle. It has an `id: str`, unique in its data set.


class Example(NamedTuple):
    """One training sequence as text. No loss falls on `prompt`; it falls on every token of `completion`."""

    prompt: str  # "" where every token is trained on
    completion: str
    weight: float = 1.0  # of its tokens in the loss; negative: made less likely; 0 still takes its optimiser step
    view: str | None = None  # what an in_context teacher (nn/losses.py) reads in place of `prompt`


class Settings(NamedTuple):
    """What an adapter has of its own in a program that trains many: a self-edit's choice (paper section 3.3), or the
    cell of an ablation. None is the run's."""

    learning_rate: float
    epochs: int  # at most `FineTuning.epochs`
    rank: int | None = None  # at most `FineTuning.rank`
    alpha: float | None = None
    projections: tuple[str, ...] | None = None  # among `FineTuning.projections`; nothing changes in the others


class SelfEdit(NamedTuple):
    """What the model wrote for a task, and the training sequences which that yields (paper section 3.1)."""

    completion: str
    examples: tuple[Example, ...]
    problem: str | None = None  # why it yields no training ("empty completion"); `examples` is then ()
    finished: bool = True  # it ended by itself, rather than at the limit of tokens
    settings: Settings | None = None  # None: those of the run
    left_out: int = 0  # sentences of the completion that speak of something else, and are not trained on
    shortened: int = 0  # of the examples: longer than a training step has room for
    lines: tuple[str, ...] = ()  # of the completion, those that the first of the examples were made of, one each


class Query(NamedTuple):
    """One question to the adapted model (paper section 4.1: without the task's text in context)."""

    question: str  # as a person reads it
    prompt: str  # as the model reads it, chat template applied
    gold: str
    about: Any = None  # whatever else the domain's `grade` wants to know of it
    max_tokens: int | None = None  # of an answer, where that is less than the run's own limit


Verdict = bool | None  # right, wrong, or missing (a judge that failed; never counted as wrong)

Grade = Callable[[Sequence[Query], Sequence[str]], list[Verdict]]
"""(queries, one answer for each) -> one verdict for each."""

GradeTasks = Callable[[Sequence[Sequence[Query]], Sequence[Sequence[str]]], list[list[Verdict]]]
"""([P] tasks' queries, an answer for each) -> [P] tasks' verdicts: one a query, or fewer where the domain votes."""

Rate = Callable[[Task, Sequence[str]], list[float | None]]
"""(task, self-edits written for it) -> how good each looks to a judge, 0 to 1; None where the judge failed."""


class Domain(NamedTuple):
    """All that the SEAL loop knows of a domain: four functions."""

    prompt: Callable[[Task], str]  # what the model reads before it writes a self-edit
    parse: Callable[[Task, str], SelfEdit]  # its completion -> training sequences
    queries: Callable[[Task], list[Query]]
    grade: GradeTasks


class Codec(NamedTuple):
    """Text to token ids and back, for one model: all that the loop needs of a tokenizer."""

    encode: Callable[[str], list[int]]  # with the beginning-of-sequence token where the model wants one
    encode_more: Callable[[str], list[int]]  # a continuation: never with one
    decode: Callable[[Sequence[int]], str]  # special tokens left out
    end: str  # the text of the token that ends a completion
    stop: tuple[int, ...]  # ids that end a completion
    vocabulary: Callable[[], Sequence[bytes | None]] | None = None  # what each token adds to a text (constrained.py)


class LanguageModel(NamedTuple):
    """A model that reads and writes text: what is adapted, and what the outer loop improves."""

    model: nnx.GraphDef[Any]  # static
    params: dict[str, Any]
    codec: Codec
    mesh: Mesh | None = None  # nn/sharding.py; None is one device
    hosts: Hosts | None = None  # the processes that share its work, each with such a mesh of its own; None is this one


_THOUGHTS = tuple(  # how models begin and end what they think before they speak, as the texts of the two marks
    [(f"<{name}>", f"</{name}>") for name in ("think", "thinking", "thought", "reasoning", "seed:think")]
    + [("[THINK]", "[/THINK]"), ("\u25c1think\u25b7", "\u25c1/think\u25b7")]
    + [("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|START_THINKING|>", "<|END_THINKING|>")]
    + [("<|channel|>analysis", "<|channel|>final<|message|>")]
)
_OPEN = "|".join(re.escape(opening) for opening, _ in _THOUGHTS)
_CLOSED = "|".join(re.escape(closing) for _, closing in _THOUGHTS)
_A_THOUGHT = re.compile(f"(?:{_OPEN})(?:(?!{_OPEN}).)*?(?:{_CLOSED})", re.DOTALL | re.IGNORECASE)
_UP_TO_CLOSED = re.compile(f".*(?:{_CLOSED})", re.DOTALL | re.IGNORECASE)
_FROM_OPEN = re.compile(f"(?:{_OPEN}).*", re.DOTALL | re.IGNORECASE)


def without_thought(text: str) -> str:
    """What a model says, without what it thinks first (`<think>...</think>`): "" where it has not finished thinking.

    A mark that only closes ends a thought that the prompt opened.
    """
    if not re.search(f"{_OPEN}|{_CLOSED}", text, re.IGNORECASE):
        return text
    said = _UP_TO_CLOSED.sub("", _A_THOUGHT.sub("", text))
    return _FROM_OPEN.sub("", said).strip()


def opens_thought(prompt: str) -> bool:
    """Whether a prompt, as a model reads it, ends where a thought has been opened: any reply begins inside it."""
    return re.search(f"(?:{_OPEN})\\s*\\Z", prompt, re.IGNORECASE) is not None


def by_query(grade: Grade) -> GradeTasks:
    """Grades all tasks' answers in one call, each by itself: a judge elsewhere can be asked many at a time."""

    def grade_tasks(queries: Sequence[Sequence[Query]], answers: Sequence[Sequence[str]]) -> list[list[Verdict]]:
        verdicts = iter(grade([q for task in queries for q in task], [a for task in answers for a in task]))
        return [list(itertools.islice(verdicts, len(task))) for task in queries]

    return grade_tasks


def require_at_least(least: float, **values: float) -> None:
    """Raises ValueError naming the first of these settings that is below `least`."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} is {value}; expected at least {least}")


class HParams(struct.PyTreeNode):
    """Everything that may differ between self-edits, so an ablation is more rows of the same axis."""

    learning_rate: Float[AnyArray, "E"]
    num_steps: Int[AnyArray, "E"]  # optimiser steps; the decay ends here and later steps change nothing
    alpha: Float[AnyArray, "E"]  # LoRA alpha: the adapter's output is scaled by alpha / rank
    rank: Int[AnyArray, "E"]  # at most the static maximum; columns past it stay zero
    seed: Int[AnyArray, "E"]  # of the initialisation and of dropout
    numbers: dict[str, Float[AnyArray, "E"]] = struct.field(default_factory=dict)  # of the loss (nn/losses.py)


class MeshShape(NamedTuple):
    """Devices along each axis of a mesh (nn/sharding.py)."""

    adapter: int
    fsdp: int = 1
    tensor: int = 1


def mesh_sizes(text: str) -> dict[str, int]:
    """`adapter=4,tensor=2` as sizes by axis. Raises ValueError."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    sizes = {name.strip(): int(size) for name, _, size in pairs if size.strip().isdecimal()}
    if len(sizes) < len(pairs) or not set(sizes) <= set(MeshShape._fields) or not all(sizes.values()):
        raise ValueError(
            f"--compute.mesh {text}: expected sizes of {', '.join(MeshShape._fields)}, such as adapter=4,tensor=2"
        )
    return sizes


@dataclasses.dataclass(frozen=True)
class Compute:
    """What changes the cost of a run and none of its figures, but for the rounding of sums. No part of its identity."""

    chunk: int | None = None
    """Adapters in training at a time, over all devices; by default as many as fit in memory."""
    answer_chunk: int | None = None
    """Adapters that answer at a time, over all devices; by default as many as fit in memory."""
    tick_tokens: int | None = None
    """Tokens that training computes at a time on each device, about; by default what keeps one busy."""
    write_chunk: int | None = None
    """Self-edits written at a time; by default as many as fit in memory."""
    width_cuts: tuple[int, ...] = (16, 24, 28, 32, 40, 48, 56, 72, 96, 128, 160, 192, 224, 256, 320, 416)
    """Tokens that a training step may be cut to; those that pad least for their time to compile are used."""
    remat: bool = False
    """Recompute layers in the backward pass: about a third more work, far less memory."""
    unroll: bool | None = None
    """Layers one after another in the program of an inner step, not in a loop: a GPU then copies no layer's weights
    out of their stack and starts a third fewer kernels; compiling takes three times as long. By default on GPUs, for
    models of less than 2 billion parameters whose layers are not recomputed."""
    loss_chunk: int = 256
    """Tokens of an adapter whose logits exist at a time."""
    accumulate: int = 1
    """Micro-batches that a step is split into (the greatest common divisor with the batch size): less memory."""
    devices: int | None = None
    """Devices that are used; by default all GPUs or TPUs, and a CPU's cores up to 4."""
    mesh: str | None = None
    """How they share the work: adapter=4,tensor=2 is four groups that train adapters of their own, two devices of each
    with half of every matrix (fsdp splits the other side). What is left out is 1, or of adapter whatever remains. By
    default each device trains by itself, or as few together as a model needs that does not fit on one."""

    def __post_init__(self) -> None:
        require_at_least(1, accumulate=self.accumulate, loss_chunk=self.loss_chunk)
        for name in ("chunk", "answer_chunk", "tick_tokens", "write_chunk", "devices"):
            if getattr(self, name) is not None:
                require_at_least(1, **{name: getattr(self, name)})
        sizes = mesh_sizes(self.mesh) if self.mesh else {}
        if "adapter" in sizes:
            count = MeshShape(**sizes)
            product = count.adapter * count.fsdp * count.tensor
            if self.devices not in (None, product):
                raise ValueError(
                    f"--compute.mesh {self.mesh} is {product} devices and --compute.devices {self.devices}; expected "
                    "the same, or leave one of them out"
                )
            object.__setattr__(self, "devices", product)


# ---------------------------------------------------------------------------------------------------------------------
# What the method needs of the world: somewhere to keep finished work, and somebody to show progress to


class Journal(Protocol):
    """Keeps finished pieces of work by name, so that a run that is repeated does none of them again."""

    def has(self, name: str) -> bool:
        """Whether the piece was finished before."""

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returns (plain JSON values; a NamedTuple as a dict of its fields), or returned before."""

    def once_tree(self, name: str, work: Callable[[], Any], like: Any) -> Any:
        """The same for a pytree of arrays; `like` holds a `jax.ShapeDtypeStruct` for each."""

    def forget_tree(self, name: str) -> None:
        """Removes a pytree that nothing will ask for again."""


class Hosts(Protocol):
    """The processes that share a run (run/hosts.py): all make the same calls in the same order."""

    index: int  # of this one
    count: int

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in their order."""

    def pool(self, own: Iterator[Any]) -> Iterator[Any]:
        """What all processes' iterators yield, everywhere in the same order."""


class Display(Protocol):
    """Shows what is being done (run/progress.py draws it in a terminal)."""

    def phase(self, name: str, total: int | None = None, unit: str | None = None) -> None:
        """A phase of `total` items begins."""

    def advance(
        self, n: int = 1, *, adapters: int = 0, tokens: int = 0, accuracy: float | None = None, resumed: bool = False
    ) -> None:
        """So many items of the phase are done; `resumed` ones were read from a journal."""


def by_name(value: Any) -> Any:
    """A value of which NamedTuples, at any depth, are dicts of their fields: what is kept is read by name."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: by_name(own) for name, own in value.items()}
    return [by_name(own) for own in value] if isinstance(value, list | tuple) else value


class Memory:
    """A journal for a notebook: finished pieces are kept while it lives, and nowhere else."""

    def __init__(self) -> None:
        self._finished: dict[str, Any] = {}

    def has(self, name: str) -> bool:
        return name in self._finished

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        if name not in self._finished:
            self._finished[name] = by_name(work())
        return self._finished[name]

    def once_tree(self, name: str, work: Callable[[], Any], like: Any) -> Any:
        if name not in self._finished:
            self._finished[name] = work()
        return self._finished[name]

    def forget_tree(self, name: str) -> None:
        self._finished.pop(name, None)


class Silent:
    """A display that shows nothing."""

    def phase(self, name: str, total: int | None = None, unit: str | None = None) -> None:
        pass

    def advance(
        self, n: int = 1, *, adapters: int = 0, tokens: int = 0, accuracy: float | None = None, resumed: bool = False
    ) -> None:
        pass
