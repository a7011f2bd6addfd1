"""Few-shot reasoning on ARC (paper section 3.3): the self-edit chooses how the model is trained on a task.

    python -m experiments.arc demo                     # 2 CPU cores: minutes; a 135M model, tasks made here
    python -m experiments.arc paper --dry-run          # the paper's settings for Llama-3.2-1B-Instruct, its tasks
    python -m experiments.arc paper --tasks all        # the same on all of ARC-AGI-1
    python -m experiments.arc smoke                    # seconds; shows that everything runs, and no more

The rows of the result, each on the same evaluation tasks: the model as it is, shown the demonstrations (in-context
learning); trained with fixed settings; trained as its own self-edits say; the same after each round of RL. A task is
solved when one of two attempts at each of its test inputs is right in every cell. What `paper` departs in from the
paper is listed at `PAPER`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from seal_jax.domains.arc import domain as arc
from seal_jax.domains.arc import inference, prompts, self_edits, tasks
from seal_jax.domains.arc.results import Shown, grids_of, rows_of, what_failed, what_was_chosen
from seal_jax.domains.arc.self_edits import Bounds, Choice
from seal_jax.domains.arc.tasks import Task
from seal_jax.engine import batching
from seal_jax.engine.constrained import compile_pattern
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.graders.choose import Judge
from seal_jax.run import plan, session
from seal_jax.run.session import Experiment, Prepared, RunConfig, Speaker
from seal_jax.seal import evaluation
from seal_jax.seal.rest_em import OuterLoop, rest_em_round, try_self_edits, write_self_edits
from seal_jax.seal.rewards import gold_tokens
from seal_jax.types import Domain, SelfEdit, require_at_least

LORA_ON = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")  # paper section B.2
PROMPT_TOKENS = 48  # around a puzzle: instruction and chat template; a guess for --dry-run, which has no tokenizer
LARGEST = Choice(True, True, True, True, "all_tokens", 1e-4, 1)  # the largest training set there is


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured on the evaluation tasks."""

    tasks: int | None = None  # drawn with the seed; None: all there are
    samples: int = 5  # self-edits a task (paper: 40 of 8 tasks)
    seeds: int = 1  # training runs a self-edit

    def __post_init__(self) -> None:
        require_at_least(1, samples=self.samples, seeds=self.seeds)


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Few-shot reasoning: one run."""

    data: str = "arc-agi-1"
    """arc-agi-1, arc-agi-2, easy (made here), or a path: single-task files, or challenges with their solutions."""
    tasks: Literal["paper", "all"] = "all"
    """paper: the tasks that the paper was left with after its filter (12 to learn from, 10 held out; ARC-AGI-1)."""
    fixed: Choice = Choice(True, True, True, False, "all_tokens", 1e-4, 2)
    """The human-chosen settings that self-edits are compared with. Ours: the paper gives none."""
    constrained: bool = False
    """Only tokens with which a self-edit can still be valid; how often free sampling fails is reported beside it."""
    training_set: arc.TrainingSet = arc.TrainingSet()
    """What is made of a self-edit's choice."""
    inference: arc.Inference = arc.Inference()
    """From how many sides a test input is asked."""
    max_cells: int | None = None
    """Leave out, and count, the tasks whose grids have more cells than this together: a context has its length."""
    outer: OuterLoop = OuterLoop()
    """The outer loop: ReST-EM. `passages` are tasks."""
    evaluation: Evaluation = Evaluation()
    """What is measured on the evaluation tasks."""


# The paper's settings (its sections 4.2 and B.2, and its code). Departures, each for a reason: a self-edit that is not
# valid JSON is scored as no training, not drawn again; the learning rate and the epochs are bounded; training sequences
# begin with one BOS; pads carry no loss; the model without an adapter is asked once a task; prompts are ours.
PAPER = Config(
    "paper",
    model="meta-llama/Llama-3.2-1B-Instruct",
    dtype="bfloat16",
    tasks="paper",
    style="chat",
    sampling=Sampling(max_tokens=128, temperature=0.8),
    answer_tokens=1830,
    inner=FineTuning(
        projections=LORA_ON,
        rank=128,
        alpha=16.0,
        learning_rate=1e-4,
        epochs=50,
        batch_size=2,
        optimiser=Optimiser(schedule="cosine", warmup_steps=11),
        initialisation="stored",
        width_cuts=(128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096),
    ),
    outer=OuterLoop(
        rounds=1,
        passages=12,
        samples=15,
        reward_seeds=1,
        select="all_correct",
        sft=FineTuning(
            projections=LORA_ON,
            rank=16,
            alpha=16.0,
            learning_rate=5e-5,
            epochs=8,
            batch_size=5,
            optimiser=Optimiser(schedule="cosine", remat=True),
            initialisation="stored",
            chunk=1,
        ),
    ),
)

DEMO = Config(
    "demo",
    data="easy",
    sampling=Sampling(max_tokens=112, temperature=1.2),
    answer_tokens=48,
    fixed=Choice(True, False, False, False, "output_tokens", 2e-3, 2),
    constrained=True,
    training_set=arc.TrainingSet(cap=12, max_tokens=192, bounds=Bounds(learning_rate=(1e-3, 1e-2), epochs=(1, 2))),
    inference=arc.Inference(leave_one_out=False, permutations=1, transformations=("transpose",)),
    inner=FineTuning(
        projections=LORA_ON,
        rank=16,
        alpha=16.0,
        learning_rate=2e-3,
        epochs=2,
        batch_size=2,
        optimiser=Optimiser(schedule="cosine", warmup_steps=2),
        initialisation="stored",
        chunk=10,
        width_cuts=(96, 128, 160),
    ),
    outer=dataclasses.replace(
        PAPER.outer, passages=10, samples=2, sft=dataclasses.replace(PAPER.outer.sft, learning_rate=2e-4, epochs=3)
    ),
    evaluation=Evaluation(tasks=10, samples=1),
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    training_set=dataclasses.replace(DEMO.training_set, cap=2, bounds=Bounds(epochs=(1, 1))),
    fixed=Choice(False, False, False, False, "output_tokens", 1e-3, 1),
    answer_tokens=8,
    inference=arc.Inference(leave_one_out=False, permutations=0, transformations=()),
    inner=dataclasses.replace(DEMO.inner, epochs=1, chunk=2),
    outer=dataclasses.replace(DEMO.outer, passages=2, samples=2),
    evaluation=Evaluation(tasks=2, samples=1),
)

PRESETS = {
    "demo": ("Minutes on 2 CPU cores: a 135M model and tasks of a few cells.", DEMO),
    "paper": ("The paper's settings (its sections 4.2, B.2).", PAPER),
    "smoke": ("Everything once, as small as it goes.", SMOKE),
}


class Data(NamedTuple):
    """The tasks of a run: fresh ones for each round, and those that are evaluated."""

    rounds: list[list[Task]]
    held_out: list[Task]
    left_out: int  # by `max_cells`
    inputs: list[Any]  # all that was read from files

    @property
    def everything(self) -> list[Task]:
        return [task for group in (*self.rounds, self.held_out) for task in group]


def choose_tasks(config: Config) -> Data:
    """Seeded shuffles, cut so that no task is used twice.

    Raises:
        ValueError: fewer tasks than the run needs, a file that is not what it should be.
    """
    outer, asked = config.outer, config.evaluation.tasks
    inputs: list[Any] = [prompts.load_prompts("raw"), prompts.load_prompts("chat")]

    def read(split: tasks.Split) -> list[Task]:
        found = tasks.load_tasks(config.data, split)
        if config.tasks == "paper":
            found = tasks.by_id(found, tasks.PAPER_TASKS[split])
        inputs.append(
            [(task.id, [grid.tolist() for pair in (*task.train, *task.test) for grid in pair]) for task in found]
        )
        return [found[i] for i in np.random.default_rng(config.seed).permutation(len(found))]

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
    return Data(rounds, held_out[:asked], left_out, inputs)


def cells(task: Task) -> int:
    """Of all grids of a task."""
    return sum(grid.size for pair in (*task.train, *task.test) for grid in pair)


def phases(config: Config) -> list[str]:
    """All that a run will show, in order."""
    names = ["evaluation: in-context learning", "fixed settings: inner loop"]
    for number in range(config.outer.rounds + 1):
        if number > 0:
            steps = ("base model", "writing self-edits", "inner loop", "selection", "SFT on the winners")
            names += [f"round {number}: {step}" for step in steps]
        names.append(f"{stage_name(number)}: writing self-edits")
        names += [f"{unconstrained(number)}: writing self-edits"] if config.constrained else []
        names.append(f"{stage_name(number)}: inner loop")
    return names


def stage_name(number: int) -> str:
    """What the evaluation after so many rounds is called while it runs."""
    return f"evaluation, {'before RL' if number == 0 else f'after round {number}'}"


def unconstrained(number: int) -> str:
    """The same, where self-edits are sampled freely only to see how many fail."""
    return f"{stage_name(number)}, unconstrained"


def run(config: Config, run_folder: Path, command: str) -> dict[str, Any]:
    """One run, from tasks to report.html. Carries on where an earlier run of the same config stopped."""
    data, outer, test = choose_tasks(config), config.outer, config.evaluation
    held_out = data.held_out
    with session.opened(
        config, run_folder, "arc", command=command, phases=phases(config), inputs=data.inputs, samples=outer.samples,
        prepare=lambda speaker, folder, say: prepare(config, data, speaker), unit="tasks",
    ) as here:  # fmt: skip
        lm, loop = here.lm, here.loop
        base = here.try_base(held_out, name="evaluation", shown="in-context learning")
        stages: list[Shown] = []

        def try_on_tasks(shown: Shown, edits: Sequence[Sequence[SelfEdit]], name: str) -> None:
            trials = try_self_edits(lm, held_out, edits, base, loop, seeds=test.seeds, name=name)
            stages.append(shown._replace(trials=trials))
            here.record(shown.name, trials)

        by_hand = [[loop.domain.parse(task, self_edits.to_json(config.fixed))] for task in held_out]
        try_on_tasks(Shown("fixed", "Trained with fixed settings", []), by_hand, "fixed settings")
        rounds: list[dict[str, Any]] = []
        for number in range(outer.rounds + 1):
            if number > 0:
                lm, log = rest_em_round(lm, data.rounds[number - 1], outer, loop, number=number)
                rounds.append(evaluation.round_record(number, log))
                here.record(f"round {number}", log.trials, log.keep, log.sft_losses)
            name = stage_name(number)
            edits = write_self_edits(lm, held_out, loop, samples=test.samples, name=name)
            free = None
            if config.constrained:
                own = loop._replace(constraint=None)
                free = write_self_edits(lm, held_out, own, samples=test.samples, name=unconstrained(number))
            label = "Trained by its self-edits, before RL" if number == 0 else f"SEAL, after RL round {number}"
            try_on_tasks(Shown(f"self_edits_round_{number}", label, [], free), edits, name)
        tables = what_was_chosen(stages, config.training_set.bounds), what_failed(stages)
        return here.finish(
            rows_of(stages, base, held_out, config.seed), rounds=rounds, left_out=data.left_out,
            tables=[table for table in tables if table["rows"]], grids=[grids_of(held_out, base, stages, here)],
        )  # fmt: skip


def prepare(config: Config, data: Data, speaker: Speaker) -> Prepared:
    """The domain for this model, the sizes of its programs and, if asked for, what a self-edit may look like."""
    codec, bounds = speaker.lm.codec, config.training_set.bounds
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
    shapes, prompt_width = measure(config, data, speaker, domain, texts)
    constraint = None
    if config.constrained:
        assert codec.vocabulary is not None  # of a real model's tokenizer
        constraint = compile_pattern(
            self_edits.pattern(bounds), codec.vocabulary(), codec.stop, vocab_size=speaker.model.vocab_size
        )
        if constraint.shortest() > config.sampling.max_tokens:
            raise ValueError(
                f"--sampling.max-tokens {config.sampling.max_tokens}: the shortest self-edit has "
                f"{constraint.shortest()} tokens"
            )
    judge = Judge(lambda queries, answers: [], None, lambda: None, dict)  # the vote grades: there is none to ask
    return Prepared(domain, shapes, prompt_width, judge, constraint=constraint)


def measure(config: Config, data: Data, speaker: Speaker, domain: Domain, texts: prompts.Prompts) -> tuple[Shapes, int]:
    """The sizes that every program is compiled for, from what the longest task needs.

    Raises:
        ValueError: a task that the model's context cannot hold.
    """
    codec, widest = speaker.lm.codec, config.training_set.max_tokens
    everything = dataclasses.replace(config.training_set, cap=sys.maxsize)
    longest_sequence, longest_prompt, longest_question, longest_gold, questions = 0, 0, 0, 0, 0
    for task in data.everything:
        made = arc.examples_of(task, LARGEST, texts, speaker.render, codec, training=everything, seed=config.seed)
        made.sort(key=lambda example: -len(example.prompt + example.completion))
        sequence = max((len(batching.tokenize(example, codec).ids) for example in made[:3]), default=0)
        prompt = len(codec.encode(domain.prompt(task)))
        asked = domain.queries(task)
        question = max(len(codec.encode(query.prompt)) for query in asked)
        gold = max(len(gold_tokens(codec.encode_more, query)) for query in asked)
        answer = min(config.answer_tokens, max(query.max_tokens or config.answer_tokens for query in asked))
        needed = max(sequence, prompt + config.sampling.max_tokens, question + max(gold, answer))
        if needed > speaker.model.context_length:
            raise ValueError(
                f"task {task.id} ({cells(task)} cells) needs a context of {needed} tokens; {config.model} has "
                f"{speaker.model.context_length}. Leave out tasks of so many cells with --max-cells"
            )
        longest_sequence, longest_prompt = max(longest_sequence, sequence), max(longest_prompt, prompt)
        longest_question, longest_gold = max(longest_question, question), max(longest_gold, gold)
        questions = max(questions, len(asked))
    shapes = Shapes(
        widths=batching.bucket_widths(max(1, min(longest_sequence, widest)), config.inner.width_cuts),
        capacity=config.training_set.cap,
        questions=questions,
        question_width=batching.round_up(longest_question, 8),
        gold_width=batching.round_up(longest_gold, 8),
    )
    return shapes, batching.round_up(longest_prompt, 8)


def describe(config: Config, run_folder: Path) -> str:
    """The plan of a run: what it reads, trains and needs. Loads no weights."""
    data, inner, outer, test = choose_tasks(config), config.inner, config.outer, config.evaluation
    capacity, held_out, bounds = config.training_set.cap, len(data.held_out), config.training_set.bounds
    # A self-edit has its bound of steps: many epochs of few sequences, or few of many.
    epochs = max(1, min(inner.epochs, bounds.steps * inner.batch_size // capacity))
    longest_run = dataclasses.replace(inner, epochs=epochs)
    most = max(map(cells, data.everything))
    longest = min(
        4 * 2 * most, config.training_set.max_tokens
    )  # a digit and a space a cell; augmented grids are larger
    steps = {"sequences": capacity, "tokens": capacity * longest}
    by_hand = dataclasses.replace(inner, epochs=config.fixed.epochs)
    work = [plan.inner_work("fixed settings", held_out, by_hand, seeds=test.seeds, **steps)]
    for number in range(outer.rounds + 1):
        if number > 0:
            count = outer.passages * outer.samples
            work.append(plan.inner_work(f"round {number}", count, longest_run, seeds=outer.reward_seeds, **steps))
        name = stage_name(number)
        work.append(plan.inner_work(name, held_out * test.samples, longest_run, seeds=test.seeds, **steps))
    sides = [
        len(inference.views(
            task, leave_one_out=config.inference.leave_one_out, permutations=config.inference.permutations,
            transformations=config.inference.transformations, seed=config.seed,
        ))
        for task in data.everything
    ]  # fmt: skip
    shapes = Shapes(
        widths=batching.bucket_widths(longest, inner.width_cuts),
        capacity=capacity,
        questions=max(sides),
        question_width=batching.round_up(2 * most + PROMPT_TOKENS, 8),
        gold_width=batching.round_up(2 * max(pair.output.size for task in data.everything for pair in task.test), 8),
    )
    lines = [
        f"{sum(map(len, data.rounds))} tasks to learn from, {outer.passages} a round: {config.data}",
        f"{held_out} to evaluate on, {sum(len(task.test) for task in data.held_out)} test inputs, "
        f"each from up to {max(sides)} sides (all of a task's counted)",
        f"self-edits: {'constrained' if config.constrained else 'free'}; learning rate {bounds.learning_rate[0]:g} to "
        f"{bounds.learning_rate[1]:g}, {bounds.epochs[0]} to {bounds.epochs[1]} epochs, {bounds.steps} steps at most",
    ]
    if data.left_out:
        lines.append(f"{data.left_out} left out, of more than {config.max_cells} cells")
    return session.describe(
        config, lines, work, shapes, 2 * most + 8 * PROMPT_TOKENS, run_folder, samples=outer.samples
    )


EXPERIMENT = Experiment("arc", __doc__, PRESETS, describe, run)

if __name__ == "__main__":
    sys.exit(session.main(EXPERIMENT, sys.argv[1:]))
