"""Few-shot reasoning (paper section 3.3): the self-edit chooses how a task is learned, the answer is a vote.

    task -> prompt -> JSON -> training sequences and settings -> views of the test inputs -> answers -> two attempts

The four functions of this domain are the same four as any other's: what a self-edit chooses has become more sequences,
a loss mask, a learning rate and a number of epochs before the inner loop sees it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from seal_jax.domains.arc import inference, prompts, self_edits, training_set
from seal_jax.domains.arc.augmentations import VIEWS
from seal_jax.domains.arc.grids import Grid, Pair, Task
from seal_jax.domains.arc.inference import IDENTITY, View
from seal_jax.domains.arc.prompts import Prompts
from seal_jax.domains.arc.self_edits import Bounds, Choice
from seal_jax.types import Codec, Domain, Example, Query, SelfEdit, Settings, Verdict, require_at_least

TOO_MANY_STEPS = "too many steps"
NO_SEQUENCE = "no training sequence"  # none that is short enough


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What is made of a self-edit's choice. The defaults are the paper's code's."""

    cap: int = training_set.CAP  # training sequences of a self-edit at most
    max_tokens: int = training_set.MAX_SEQUENCE_TOKENS  # longer sequences are dropped
    bounds: Bounds = Bounds()  # what a self-edit may choose

    def __post_init__(self) -> None:
        require_at_least(1, cap=self.cap, max_tokens=self.max_tokens)


@dataclasses.dataclass(frozen=True)
class Inference:
    """From how many sides a test input is asked. The defaults are the paper's code's."""

    leave_one_out: bool = True  # the demonstrations without each one in turn; otherwise all of them
    permutations: int = 2  # random orders of all demonstrations
    transformations: tuple[str, ...] = tuple(name for name in VIEWS if name != IDENTITY)  # each turned back

    def __post_init__(self) -> None:
        require_at_least(0, permutations=self.permutations)


def make_domain(
    texts: Prompts,
    render: Callable[[str], str],
    codec: Codec,
    *,
    training: TrainingSet,
    asking: Inference,
    batch_size: int,
    seed: int,
) -> Domain:
    """The domain of ARC tasks: its four functions take a `Task`.

    Args:
      render: a prompt as `texts` has it -> as the model reads it: the identity for a base model, the chat template
        around one user message for an instruct model.
      codec: the model's, by which training sequences and answers are measured.
      batch_size: the inner loop's, by which a self-edit's steps are counted.
      seed: of the training sets and of the orders of demonstrations; nothing else is drawn.
    """
    built: dict[tuple[str, Choice], tuple[Example, ...]] = {}  # many self-edits choose the same augmentations

    def prompt(task: Task) -> str:
        return render(prompts.self_edit_prompt(texts, task, training.bounds))

    def parse(task: Task, completion: str) -> SelfEdit:
        choice = self_edits.parse_choice(completion, training.bounds)
        if isinstance(choice, str):
            return SelfEdit(completion, (), choice)
        same = task.id, choice._replace(learning_rate=0.0, epochs=0)
        if same not in built:
            built[same] = tuple(examples_of(task, choice, texts, render, codec, training=training, seed=seed))
        if not built[same]:
            return SelfEdit(completion, (), NO_SEQUENCE)
        if training_set.steps(len(built[same]), choice.epochs, batch_size) > training.bounds.steps:
            return SelfEdit(completion, (), TOO_MANY_STEPS)
        return SelfEdit(completion, built[same], settings=Settings(choice.learning_rate, choice.epochs))

    def queries(task: Task) -> list[Query]:
        sides = inference.views(
            task,
            leave_one_out=asking.leave_one_out,
            permutations=asking.permutations,
            transformations=asking.transformations,
            seed=seed,
        )
        return [_query(task, view, texts, render, codec) for view in sides]

    def grade(queries: Sequence[Sequence[Query]], answers: Sequence[Sequence[str]]) -> list[list[Verdict]]:
        return [
            [inference.solved(asked[0].about[0], attempts(texts, asked, given))]
            for asked, given in zip(queries, answers, strict=True)
        ]

    return Domain(prompt, parse, queries, grade)


def examples_of(
    task: Task,
    choice: Choice,
    texts: Prompts,
    render: Callable[[str], str],
    codec: Codec,
    *,
    training: TrainingSet,
    seed: int,
) -> list[Example]:
    """The training sequences that `choice` makes of `task`, for one model."""

    def ask(demonstrations: Sequence[Pair], test_input: Grid) -> str:
        return render(prompts.puzzle_prompt(texts, demonstrations, test_input))

    return training_set.build(
        task, choice, seed=seed, prompt=ask, answer=lambda grid: prompts.grid_text(grid) + codec.end,
        count_tokens=lambda example: _count_tokens(example, codec),
        max_sequence_tokens=training.max_tokens, cap=training.cap,
    )  # fmt: skip


def _count_tokens(example: Example, codec: Codec) -> int:
    """Ids of a sequence as it will be trained on (`batching.tokenize`)."""
    if not example.prompt:
        return len(codec.encode(example.completion))
    return len(codec.encode(example.prompt)) + len(codec.encode_more(example.completion))


def attempts(texts: Prompts, queries: Sequence[Query], answers: Sequence[str]) -> list[list[Grid]]:
    """At most two grids for each test input of one task, from the answers to all of its queries."""
    task = queries[0].about[0]
    given = [prompts.answer_text(texts, answer) for answer in answers]
    return [inference.vote(found) for found in inference.candidates(task, [q.about[1] for q in queries], given)]


def _query(task: Task, view: View, texts: Prompts, render: Callable[[str], str], codec: Codec) -> Query:
    demonstrations, test_input, expected = inference.prompt_parts(task, view)
    largest = np.zeros(prompts.largest_output(task, view.test), np.int8)
    written = prompts.grid_text(VIEWS[view.transformation].apply(largest))
    return Query(
        question=f"test {view.test}, {view.transformation}, demonstrations {list(view.order)}",
        prompt=render(prompts.puzzle_prompt(texts, demonstrations, test_input)),
        gold=prompts.grid_text(expected),
        about=(task, view),
        max_tokens=len(codec.encode_more(written + codec.end)),
    )
