"""The training set that a self-edit chooses for a task: the demonstrations, asked of one another (paper section 4.2).

    demonstrations -> leave one out, leave two out -> augmented -> recoloured and shuffled copies -> text -> at most 250

The steps are those of Akyürek et al. 2024 (arXiv 2411.07279), from whose code the paper's comes. Departures: a set is
a list without repeats, in the order in which its elements were first made, and every draw follows from the seed, where
theirs depend on string hashing and the clock.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from seal_jax.domains.arc import augmentations
from seal_jax.domains.arc.augmentations import Augmentation, map_task
from seal_jax.domains.arc.grids import Grid, Pair, Task, fits
from seal_jax.domains.arc.self_edits import Choice
from seal_jax.types import Example

CAP = 250  # training sequences of a self-edit; paper's code
MAX_SEQUENCE_TOKENS = 8_191  # the paper's code drops sequences of 8,192 or more
LEFT_OUT = (1, 2)  # demonstrations left out of each pseudo-task: the one that is asked for, and another
_TOKENS_BESIDE_TEXT = 8  # no tokenizer adds as many to a sequence: a BOS, a sentencepiece's leading space

# A pseudo-task: some demonstrations, and one of the others as its only test. Its id is that of the whole task.
PseudoTask = Task


class Counts(NamedTuple):
    """The number of pseudo-tasks after each step, for one number of demonstrations left out."""

    initial: int
    augmented: int  # of those, by each augmentation
    fitting: int  # of the augmented, with no side over 30
    distinct: int  # of the fitting and the initial together
    with_copies: int  # of those and their recoloured, shuffled copies, distinct too


def build(
    task: Task,
    choice: Choice,
    *,
    seed: int,
    prompt: Callable[[Sequence[Pair], Grid], str],
    answer: Callable[[Grid], str],
    count_tokens: Callable[[Example], int],
    max_sequence_tokens: int = MAX_SEQUENCE_TOKENS,
    cap: int = CAP,
) -> list[Example]:
    """The training sequences of `choice` for `task`: pseudo-tasks as text, those that are too long dropped, shuffled,
    the first `cap` of them.

    Which they are follows from `seed`, the task and the choice of augmentations: self-edits that differ in the rest of
    their choice train on the same pseudo-tasks in the same order.

    Args:
      prompt: demonstrations, test input -> what the model reads, chat template applied.
      answer: test output -> what it is to write, the end token included.
      count_tokens: ids of a sequence as it will be trained on (`batching.tokenize`).
      max_sequence_tokens: longer sequences are dropped.
    """
    groups = (choice.basic, choice.size, choice.chain, choice.repeat)
    rng = np.random.default_rng([seed, zlib.crc32(task.id.encode()), *groups])
    found, _ = pseudo_tasks(task, lambda: augmenters(rng, choice), lambda puzzle: copied(rng, puzzle, any(groups)))
    examples: list[Example] = []
    # Shuffled first, so that no more are written and counted than are kept: what is kept is the same.
    for index in rng.permutation(len(found)):
        if len(examples) == cap:
            break
        puzzle = found[index]
        (test,) = puzzle.test
        example = Example(prompt(puzzle.train, test.input), answer(test.output))
        if choice.strategy == "all_tokens":
            example = Example("", example.prompt + example.completion)
        if _is_short(example, max_sequence_tokens) or count_tokens(example) <= max_sequence_tokens:
            examples.append(example)
    return examples


def pseudo_tasks(
    task: Task,
    augment: Callable[[], Sequence[Augmentation]],
    copy: Callable[[PseudoTask], PseudoTask],
) -> tuple[list[PseudoTask], tuple[Counts, ...]]:
    """All pseudo-tasks of a task, none twice, and the counts for each of `LEFT_OUT`.

    `augment` is called once for each initial pseudo-task, whose grids all get the augmentations that it returns; `copy`
    once for each distinct one, to recolour and shuffle it.
    """
    found: list[PseudoTask] = []
    counts = []
    for n in LEFT_OUT:
        initial = leave_out(task, n)
        augmented = [map_task(puzzle, augmentation) for puzzle in initial for augmentation in augment()]
        fitting = [puzzle for puzzle in augmented if fits(puzzle)]
        distinct = _distinct(fitting + initial)
        with_copies = _distinct([copy(puzzle) for puzzle in distinct] + distinct)
        counts.append(Counts(len(initial), len(augmented), len(fitting), len(distinct), len(with_copies)))
        found += with_copies
    return found, tuple(counts)  # none is twice in it: another n is another number of demonstrations


def leave_out(task: Task, n: int) -> list[PseudoTask]:
    """Each demonstration in turn as the test, its context the others minus every n-1 of them, in the task's order.

    The context may be empty: n = 1 of a task with one demonstration, n = 2 of one with two.
    """
    puzzles = []
    for asked in range(len(task.train)):
        others = [i for i in range(len(task.train)) if i != asked]
        for removed in itertools.combinations(others, n - 1):
            context = tuple(task.train[i] for i in others if i not in removed)
            puzzles.append(Task(task.id, context, (task.train[asked],)))
    return puzzles


def augmenters(rng: np.random.Generator, choice: Choice) -> list[Augmentation]:
    """The augmentations of the chosen groups; those with parameters (a shift) draw them anew at each call."""
    chosen: list[Augmentation] = []
    if choice.basic:
        chosen += augmentations.basic(rng)
    if choice.size:
        chosen += augmentations.SIZE
    if choice.chain:
        chosen += augmentations.CHAIN
    if choice.repeat:
        chosen += augmentations.REPEAT
    return chosen


def copied(rng: np.random.Generator, puzzle: PseudoTask, recolour: bool) -> PseudoTask:
    """The pseudo-task with its demonstrations shuffled and, if asked for, one permutation of the colours but for 0."""
    if recolour:
        puzzle = map_task(puzzle, augmentations.random_colours(rng))
    return augmentations.permute_demonstrations(puzzle, rng.permutation(len(puzzle.train)).tolist())


def steps(num_examples: int, epochs: int, batch_size: int) -> float:
    """A self-edit's length by the paper's measure, whose limit is 375: epochs x examples / batch size.

    The optimiser may take up to one step an epoch more, since each epoch's last batch need not be full.
    """
    return epochs * num_examples / batch_size


def _distinct(puzzles: Iterable[PseudoTask]) -> list[PseudoTask]:
    """Those that differ in a digit, a size or the order of demonstrations from all before them."""
    first: dict[object, PseudoTask] = {}
    for puzzle in puzzles:
        first.setdefault(_content(puzzle), puzzle)
    return list(first.values())


def _content(puzzle: PseudoTask) -> tuple[tuple[tuple[int, ...], bytes], ...]:
    return tuple((grid.shape, grid.tobytes()) for pair in (*puzzle.train, *puzzle.test) for grid in pair)


def _is_short(example: Example, most: int) -> bool:
    """Whether it certainly has at most `most` tokens: a token of ASCII text stands for one character or more."""
    text = example.prompt + example.completion
    return text.isascii() and len(text) + _TOKENS_BESIDE_TEXT <= most
