"""What runs on ARC need besides the loop: how tasks are chosen, how a run is prepared, and what it found."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seal_jax.domains.arc import domain as arc
from seal_jax.domains.arc import inference, prompts, self_edits, tasks
from seal_jax.domains.arc.grids import Grid, Split, Task
from seal_jax.domains.arc.self_edits import Bounds, Choice
from seal_jax.engine import batching
from seal_jax.engine.constrained import compile_pattern
from seal_jax.run import plan
from seal_jax.run.plan import Most, Stage
from seal_jax.run.session import Model, Prepared, Session
from seal_jax.seal import evaluation
from seal_jax.seal.rewards import Score, Trial
from seal_jax.types import SelfEdit, require_at_least

LARGEST = Choice(True, True, True, True, "all_tokens", 1e-4, 1)  # the largest training set there is


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured on the evaluation tasks."""

    tasks: int | None = None  # drawn with the seed; None: all there are
    samples: int = 5  # self-edits a task (paper: 40 of 8 tasks)
    seeds: int = 1  # training runs a self-edit

    def __post_init__(self) -> None:
        require_at_least(1, samples=self.samples, seeds=self.seeds)


class Puzzles(NamedTuple):
    """The tasks of a run: fresh ones for each round, and those that are evaluated."""

    rounds: list[list[Task]]
    held_out: list[Task]
    left_out: int  # by `max_cells`
    inputs: list[Any]
    lines: list[str]
    stages: list[Stage]

    @property
    def everything(self) -> list[Task]:
        return [task for group in (*self.rounds, self.held_out) for task in group]


def choose(config: Any) -> Puzzles:
    """Seeded shuffles, cut so that no task is used twice. `config` is experiments.arc's.

    Raises:
        ValueError: fewer tasks than the run needs, a file that is not what it should be.
    """
    outer, asked = config.outer, config.evaluation.tasks
    inputs: list[Any] = [prompts.load_prompts("raw"), prompts.load_prompts("chat")]

    def read(split: Split) -> list[Task]:
        found = tasks.load_tasks(config.data, split)
        if config.tasks == "paper":
            found = tasks.by_id(found, tasks.PAPER_TASKS[split])
        inputs.append(
            [(task.id, [grid.tolist() for pair in (*task.train, *task.test) for grid in pair]) for task in found]
        )
        return [found[i] for i in np.random.default_rng(config.data_seed).permutation(len(found))]

    train, held_out = read("training"), read("evaluation")
    if config.data not in tasks.NAMED_SOURCES:  # a path has no splits: both are the same tasks
        asked = len(held_out) - outer.rounds * outer.passages if asked is None else asked
        train, held_out = train[asked:], held_out[:asked]
    short = [
        [t for t in group if config.max_cells is None or cells(t) <= config.max_cells] for group in (train, held_out)
    ]
    left_out = len(train) + len(held_out) - sum(map(len, short))
    train, held_out = short
    need, asked = outer.rounds * outer.passages, max(1, len(held_out) if asked is None else asked)
    if len(train) < need or len(held_out) < asked:
        raise ValueError(
            f"--data {config.data}: {len(train)} tasks to learn from and {len(held_out)} to evaluate on"
            + (f" ({left_out} left out by --max-cells {config.max_cells})" if left_out else "")
            + f"; the run needs {need} (--outer.rounds x --outer.passages) and {asked} (--evaluation.tasks)"
        )
    rounds = [train[r * outer.passages : (r + 1) * outer.passages] for r in range(outer.rounds)]
    held_out, bounds = held_out[:asked], config.training_set.bounds
    lines = [
        f"{need} tasks to learn from, {outer.passages} a round: {config.data}",
        f"{len(held_out)} to evaluate on, {sum(len(task.test) for task in held_out)} test inputs",
        f"self-edits: {'constrained' if config.constrained else 'free'}; learning rate {bounds.learning_rate[0]:g} to "
        f"{bounds.learning_rate[1]:g}, {bounds.epochs[0]} to {bounds.epochs[1]} epochs, {bounds.steps} steps at most",
    ]
    if left_out:
        lines.append(f"{left_out} left out, of more than {config.max_cells} cells")
    return Puzzles(rounds, held_out, left_out, inputs, lines, stages_of(config, len(held_out)))


def cells(task: Task) -> int:
    """Of all grids of a task."""
    return sum(grid.size for pair in (*task.train, *task.test) for grid in pair)


def stage_name(number: int) -> str:
    """What the evaluation after a round is called while it runs."""
    return f"evaluation, {f'after round {number}' if number else 'before RL'}"


def unconstrained(number: int) -> str:
    """The same, where self-edits are sampled freely only to see how many fail."""
    return f"{stage_name(number)}, unconstrained"


def stages_of(config: Any, count: int) -> list[Stage]:
    """All that a run on `count` evaluation tasks does, in order."""
    outer, test, bounds = config.outer, config.evaluation, config.training_set.bounds
    # A self-edit has its bound of steps: many epochs of few sequences, or few of many.
    epochs = max(1, min(config.inner.epochs, bounds.steps * config.inner.batch_size // config.training_set.cap))
    stages = [
        Stage("evaluation", ("in-context learning",)),
        Stage("fixed settings", self_edits=count, seeds=test.seeds, epochs=config.fixed.epochs),
    ]
    for number in range(outer.rounds + 1):
        if number > 0:
            edits = outer.passages * outer.samples
            stages.append(Stage(f"round {number}", plan.ROUND, edits, outer.reward_seeds, epochs=epochs))
        name, edits = stage_name(number), count * test.samples
        free = [Stage(unconstrained(number), (plan.WRITE,))] if config.constrained else []
        stages += [Stage(name, (plan.WRITE,)), *free, Stage(name, (plan.TRAIN,), edits, test.seeds, epochs=epochs)]
    return stages


def prepare(config: Any, data: Puzzles, model: Model) -> Prepared:
    """The domain for this model, the sizes of its programs and, if asked for, what a self-edit may look like."""
    speaker, bounds = model.speaker, config.training_set.bounds
    codec = speaker.lm.codec
    if config.inner.epochs < bounds.epochs[1] or config.inner.epochs < config.fixed.epochs:
        raise ValueError(
            f"--inner.epochs {config.inner.epochs} is the most that a self-edit may choose; "
            f"--training-set.bounds.epochs goes to {bounds.epochs[1]} and --fixed.epochs is {config.fixed.epochs}"
        )
    texts = prompts.load_prompts(speaker.style)
    domain = arc.make_domain(
        texts, speaker.render, codec, training=config.training_set, asking=config.inference,
        batch_size=config.inner.batch_size, seed=config.seed,
    )  # fmt: skip
    chosen = self_edits.parse_choice(self_edits.to_json(config.fixed), bounds)
    if isinstance(chosen, str):
        raise ValueError(f"--fixed: {chosen}; it has to keep --training-set.bounds as self-edits do")
    whole, cap = dataclasses.replace(config.training_set, cap=sys.maxsize), config.training_set.cap

    def longest_sequence(task: Task) -> int:
        made = arc.examples_of(task, LARGEST, texts, speaker.render, codec, training=whole, seed=config.seed)
        made.sort(key=lambda example: -len(example.prompt + example.completion))
        return max((len(batching.tokenize(example, codec).ids) for example in made[:3]), default=0)

    mend = "Leave out tasks of many cells with --max-cells"
    need = plan.measure(config, speaker, speaker.lm, domain, data.everything, longest_sequence, mend)
    longest = max(1, min(need.sequence, config.training_set.max_tokens))
    shapes = need.shapes(longest, model.compute.width_cuts, cap)
    constraint = None
    if config.constrained and codec.vocabulary is not None and speaker.model is not None:
        constraint = compile_pattern(
            self_edits.pattern(bounds), codec.vocabulary(), codec.stop, vocab_size=speaker.model.vocab_size
        )
        if constraint.shortest() > config.sampling.max_tokens:
            raise ValueError(
                f"--sampling.max-tokens {config.sampling.max_tokens}: the shortest self-edit has "
                f"{constraint.shortest()} tokens"
            )
    most = Most(cap, cap * shapes.widths[-1], shapes.widths[-1])
    return Prepared(domain, shapes, need.prompt_width, most, samples=config.outer.samples, constraint=constraint)


class Shown(NamedTuple):
    """One stage of the run on the evaluation tasks."""

    name: str
    label: str
    trials: list[list[Trial]]  # [P][E]
    free: list[list[SelfEdit]] | None = None  # what was written without the constraint


def report(
    stages: Sequence[Shown], base: Sequence[Score], held_out: Sequence[Task], here: Session
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the result (solved of tried, with Wilson's interval), and the tables and grids of its page."""
    in_context = "In-context learning"
    compared = [evaluation.base_stage(base, in_context)]
    compared += [evaluation.trained_stage(stage.name, stage.label, stage.trials) for stage in stages]
    tests = sum(len(task.test) for task in held_out)
    rows = evaluation.rows(compared, held_out, tests, seed=here.config.seed)
    tried = [base, *(evaluation.scores_by_seed(stage.trials) for stage in stages)]
    completions, problems = {}, {}
    for stage in stages:
        completions[stage.label] = [trial.edit.completion for row in stage.trials for trial in row]
        problems[stage.label] = [trial.problem for row in stage.trials for trial in row]
        free = [edit.problem for row in stage.free or () for edit in row]
        problems[f"{stage.label}: sampled freely, not trained"] = free
    scores = {in_context: base} | {stage.label: [row[0].scores[0] for row in stage.trials] for stage in stages}
    texts = prompts.load_prompts(here.writer.style)
    queries = [here.loop.domain.queries(task) for task in held_out]
    attempts = {
        label: [arc.attempts(texts, asked, score.answers) for asked, score in zip(queries, of_stage, strict=True)]
        for label, of_stage in scores.items()
    }
    tables = what_was_chosen(completions, here.config.training_set.bounds), what_failed(problems)
    parts = {"tables": [table for table in tables if table["rows"]], "grids": [grids_of(held_out, attempts)]}
    return evaluation.with_solved(rows, tried), parts


GROUPS = ("basic", "size", "chain", "repeat")


def what_was_chosen(completions: Mapping[str, Sequence[str]], bounds: Bounds) -> dict[str, Any]:
    """A table: which augmentations and settings the valid self-edits of each stage (its label) chose."""
    rows: list[list[Any]] = []
    for label, written in completions.items():
        read = [self_edits.parse_choice(completion, bounds) for completion in written]
        valid = [choice for choice in read if isinstance(choice, Choice)]
        if valid:
            chosen = [[getattr(choice, group) for choice in valid] for group in GROUPS]
            chosen.append([choice.strategy == "output_tokens" for choice in valid])
            shares = [f"{sum(yes) / len(valid):.0%}" for yes in chosen]
            medians = [
                statistics.median(getattr(choice, name) for choice in valid) for name in ("learning_rate", "epochs")
            ]
            rows.append([label, len(valid), *shares, *medians])
    columns = ["chosen", "self-edits", *GROUPS, "output tokens only", "learning rate", "epochs"]
    return {"title": "What was chosen", "note": "Learning rate and epochs: medians.", "columns": columns, "rows": rows}


def what_failed(problems: Mapping[str, Sequence[str | None]]) -> dict[str, Any]:
    """A table: how many self-edits of each stage (its label) trained nothing or diverged, and why."""
    rows = []
    for label, found in problems.items():
        counted = Counter(problem for problem in found if problem)
        why = ", ".join(f"{count} {problem}" for problem, count in counted.most_common())
        if found:
            rows.append([label, len(found), f"{counted.total() / len(found):.0%}", why or "-"])
    return {
        "title": "Self-edits that failed",
        "note": "They are scored as no training.",
        "columns": ["sampled", "self-edits", "failed", "why"],
        "rows": rows,
    }


def grids_of(tasks: Sequence[Task], attempts: Mapping[str, Sequence[Sequence[Sequence[Grid]]]]) -> dict[str, Any]:
    """The tasks as the report draws them: each stage's attempts at each test input of each task, and what is right."""
    items = []
    for p, task in enumerate(tasks):
        for number, test in enumerate(task.test):
            shown = []
            for label, of_stage in attempts.items():
                tried = of_stage[p][number]
                for n in range(inference.ATTEMPTS):
                    grid = tried[n] if n < len(tried) else None
                    right = grid is not None and np.array_equal(grid, test.output)
                    name = f"{label}, attempt {n + 1}"
                    shown.append({"label": name, "grid": None if grid is None else grid.tolist(), "right": right})
            items.append(
                {
                    "label": f"{task.id}, test {number + 1}" if len(task.test) > 1 else task.id,
                    "pairs": [[pair.input.tolist(), pair.output.tolist()] for pair in task.train],
                    "input": test.input.tolist(),
                    "expected": test.output.tolist(),
                    "attempts": shown,
                }
            )
    return {"title": "Attempts", "note": "After the first self-edit of each stage.", "items": items}
