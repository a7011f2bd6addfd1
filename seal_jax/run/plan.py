"""What a run would do and need, computed before any weight is loaded: its stages, and the text of `--dry-run`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from seal_jax.engine import batching, memory
from seal_jax.engine.memory import Writing
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.graders import endpoint
from seal_jax.graders.choose import Connection, Grader
from seal_jax.io import hub
from seal_jax.nn.transformer import ModelConfig
from seal_jax.run import runtime
from seal_jax.run.runtime import Speaker
from seal_jax.run.trackers import Tracker, require
from seal_jax.seal.rewards import gold_tokens
from seal_jax.types import Base, Compute, Domain, LanguageModel, Task

BASE, WRITE, TRAIN, RATE, CREDIT, LEARN = (
    "base model", "writing self-edits", "inner loop", "ratings", "credit", "learning to write",
)  # fmt: skip
ROUND = (BASE, WRITE, TRAIN, LEARN)


class Stage(NamedTuple):
    """One stage of a run: the phases that the display shows, and its share of the inner loop."""

    name: str
    phases: tuple[str, ...] = (TRAIN,)
    self_edits: int = 0  # that adapters are trained on
    seeds: int = 1  # adapters a self-edit
    alone: bool = False  # trained on the task's own text alone
    epochs: int | None = None  # of each, where that is not the run's
    lessons: int = 1  # self-edits that each adapter is trained on

    def shown(self) -> list[str]:
        """The phases as the display names them."""
        return [f"{self.name}: {phase}" if self.name else phase for phase in self.phases]


class Most(NamedTuple):
    """The longest self-edit there can be."""

    sequences: int
    tokens: int  # of all its sequences
    alone: int  # tokens of a task's own text


class Need(NamedTuple):
    """What a task needs, or the most that any of them does: tokens, and how many questions."""

    sequence: int  # the longest training sequence
    prompt: int  # of the self-edit
    question: int
    gold: int
    questions: int

    @property
    def prompt_width(self) -> int:
        """Of the program that writes self-edits."""
        return batching.round_up(self.prompt, 8)

    def shapes(self, longest: int, width_cuts: tuple[int, ...], capacity: int) -> Shapes:
        """Of the programs that train on `capacity` sequences of at most `longest` tokens, and ask."""
        question, gold = (batching.round_up(tokens, 8) for tokens in (self.question, self.gold))
        return Shapes(batching.bucket_widths(longest, width_cuts), capacity, self.questions, question, gold)


def measure(
    config: Any,
    learner: Speaker,
    writer: LanguageModel,
    domain: Domain,
    tasks: Iterable[Task],
    sequence: Callable[[Task], int],
    mend: str,
) -> Need:
    """The most that any task needs; `sequence` counts the tokens of its longest training sequence.

    Raises:
        ValueError: a task that the model's context cannot hold, with what it has to be read with; ends with `mend`.
    """
    codec, needs = learner.lm.codec, []
    for task in tasks:
        queries = domain.queries(task)
        need = Need(
            sequence(task),
            len(writer.codec.encode(domain.prompt(task))),
            max(len(codec.encode(query.prompt)) for query in queries),
            max(len(gold_tokens(codec.encode_more, query)) for query in queries),
            len(queries),
        )
        answer = min(config.answer_tokens, max(query.max_tokens or config.answer_tokens for query in queries))
        context = max(need.sequence, need.prompt + config.sampling.max_tokens, need.question + max(need.gold, answer))
        if context > learner.context_length:
            raise ValueError(
                f"{task.id!r} ({need.sequence} tokens) needs a context of {context} tokens with its prompt and "
                f"--sampling.max-tokens {config.sampling.max_tokens}; {config.model} has {learner.context_length}. "
                f"{mend}"
            )
        needs.append(need)
    return Need(*map(max, zip(*needs, strict=True)))


def work_table(stages: Iterable[Stage], config: FineTuning, most: Most) -> list[str]:
    """Each stage's share of the inner loop, at most, and their sum, in columns."""
    rows: list[tuple[str, int, int, int, int]] = []
    for stage in stages:
        if stage.self_edits and RATE not in stage.phases:
            sequences, tokens = (1, most.alone) if stage.alone else (most.sequences, most.tokens)
            sequences, tokens = sequences * stage.lessons, tokens * stage.lessons
            epochs, adapters = stage.epochs or config.epochs, stage.self_edits * stage.seeds
            steps = epochs * math.ceil(sequences / config.batch_size)
            rows.append((stage.name, stage.self_edits, adapters, adapters * steps, adapters * epochs * tokens))
    a, b, c, d = (sum(column) for column in zip(*(row[1:] for row in rows), strict=True)) if rows else (0, 0, 0, 0)
    rows.append(("together", a, b, c, d))
    head = f"{'stage':<34}{'self-edits':>11}{'adapters':>10}{'steps':>12}{'tokens':>14}"
    return [head, *(f"{name:<34}{a:>11,}{b:>10,}{c:>12,}{d:>14,}" for name, a, b, c, d in rows)]


def memory_lines(
    model: ModelConfig, config: FineTuning, shapes: Shapes, compute: Compute, sizes: Writing, dtype: str, base: Base,
    mesh: Mesh | None,
) -> list[str]:  # fmt: skip
    """How the run would be cut to the memory that is free, and what its two hungriest phases would then need."""
    machine = runtime.machine(model, compute.devices, dtype, base, mesh)
    cut = memory.fit(model, config, shapes, compute, sizes, machine)
    each = math.ceil((cut.chunk or 1) / machine.devices)
    together = math.ceil((cut.answer_chunk or 1) / machine.devices)
    training = memory.training_at(model, config, shapes, cut, machine, adapters=each)
    states = each * shapes.capacity * shapes.widths[-1] * model.hidden_size * machine.itemsize
    kept = [f"a teacher's hidden states, on the host: at most {memory.readable(states)} for each device's adapters"]
    answering = memory.answering(model, config, shapes, machine, adapters=together, max_tokens=sizes.answer_tokens)
    return [
        f"{cut.chunk} adapters in training at a time over all devices ({each} on each), {cut.answer_chunk} that "
        f"answer, {cut.write_chunk} self-edits written at a time",
        f"about {cut.tick_tokens} tokens computed at a time on each device, layers "
        f"{'recomputed' if cut.remat else 'kept'}, loss over {cut.loss_chunk} tokens",
        "",
        f"inner loop, {each} adapters and a step {shapes.widths[-1]} tokens wide (the longest there can be)",
        *memory.lines(training, machine.free),
        *(kept if shapes.taught else ()),
        "",
        f"answers, {together} x {shapes.questions} questions",
        *memory.lines(answering, machine.free),
    ]


def model_lines(name: str, dtype: str, base: Base) -> list[str]:
    """Where a model comes from."""
    location = hub.locate(name)
    fetched = "on this machine" if location.cached else "to be fetched; lengths below are estimated from words"
    return [
        f"{name}: {location.source}, {fetched}",
        str(location.path),
        dtype if base == "full" else f"{base}, all else {dtype}",
    ]


def folder_lines(folder: Path) -> list[str]:
    """The run folder, and whether something is in it."""
    return [str(folder.absolute()), "holds a run" if folder.exists() else "new"]


def missing(grader: Grader | None, connection: Connection, tracker: Tracker) -> list[str]:
    """What else a run would end at: a tracker or a judge's client that is not installed, a judge without a key."""
    found = []
    checks: list[Callable[[], object]] = [lambda: require(tracker)]
    if grader is not None and grader.kind == "endpoint":
        checks.append(lambda: endpoint.require(grader, connection))
    elif grader is not None and grader.kind == "model":
        checks.append(lambda: hub.locate(str(grader.model)))
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            found.append(str(error))
    return found


def section(title: str, lines: Sequence[str]) -> str:
    """A titled block of the plan."""
    return "\n".join([title, *(f"  {line}" for line in lines), ""])
