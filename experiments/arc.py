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
from typing import Any, Literal

from seal_jax.domains.arc import domain as arc
from seal_jax.domains.arc import self_edits
from seal_jax.domains.arc.self_edits import Bounds, Choice
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.run import command, puzzles
from seal_jax.run.puzzles import Evaluation, Puzzles, Shown
from seal_jax.run.session import Experiment, Preset, RunConfig, Session
from seal_jax.seal import evaluation
from seal_jax.seal.outer import Outer
from seal_jax.seal.rounds import rounds, write_self_edits
from seal_jax.types import Compute

LORA_ON = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")  # paper section B.2


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
    outer: Outer = Outer()
    """The outer loop. `passages` are tasks."""
    evaluation: Evaluation = Evaluation()
    """What is measured on the evaluation tasks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outer.credit == "lines":
            raise ValueError("--outer.credit lines is for passages (experiments.squad): a self-edit here has no lines")
        if self.outer.reward == "set" or self.outer.method in ("best_of_n", "imitation"):
            raise ValueError(
                f"--outer.method {self.outer.method} with --outer.reward {self.outer.reward}: best_of_n, imitation and "
                "set are for passages (experiments.squad): a self-edit here is settings, which no judge rates, no file "
                "records and no two self-edits share"
            )


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
    ),
    outer=Outer(
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
            optimiser=Optimiser(schedule="cosine"),
            initialisation="stored",
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
    inner=dataclasses.replace(DEMO.inner, epochs=1),
    outer=dataclasses.replace(DEMO.outer, passages=2, samples=2),
    evaluation=Evaluation(tasks=2, samples=1),
)

PRESETS = {
    "demo": Preset(
        "Minutes on 2 CPU cores: a 135M model and tasks of a few cells.",
        DEMO,
        Compute(chunk=10, width_cuts=(96, 128, 160)),
    ),
    "paper": Preset(
        "The paper's settings (its sections 4.2, B.2).",
        PAPER,
        Compute(width_cuts=(128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)),
    ),
    "smoke": Preset("Everything once, as small as it goes.", SMOKE, Compute(chunk=2, width_cuts=(96, 128, 160))),
}


def run(here: Session, data: Puzzles) -> dict[str, Any]:
    """In context, with fixed settings, and by self-edits before and after each round."""
    config, loop, held_out = here.config, here.loop, data.held_out
    test = config.evaluation
    base = here.try_base(held_out, name="evaluation", shown="in-context learning")
    by_hand = [[loop.domain.parse(task, self_edits.to_json(config.fixed))] for task in held_out]
    trials = here.try_edits(held_out, by_hand, base, name="fixed settings", row="fixed")
    stages, records = [Shown("fixed", "Trained with fixed settings", trials)], []
    for state in rounds(here.lm, data.rounds, config.outer.make(), loop, samples=config.outer.samples):
        number, here.lm = state.number, state.writer
        if state.log:
            prompts = [loop.domain.prompt(row[0].task) for row in state.log.trials]
            records.append(evaluation.round_record(number, state.log, prompts))
            here.record(f"round {number}", state.log.trials, state.log.keep, state.log.losses)
        name, free = puzzles.stage_name(number), None
        edits = write_self_edits(here.lm, held_out, loop, samples=test.samples, name=name)
        if config.constrained:
            own = loop._replace(constraint=None)
            free = write_self_edits(here.lm, held_out, own, samples=test.samples, name=puzzles.unconstrained(number))
        label = f"SEAL, after RL round {number}" if number else "Trained by its self-edits, before RL"
        trials = here.try_edits(held_out, edits, base, name=name, row=f"self_edits_round_{number}")
        stages.append(Shown(f"self_edits_round_{number}", label, trials, free))
    rows, parts = puzzles.report(stages, base, held_out, here)
    return here.finish(rows, rounds=records, left_out=data.left_out, **parts)


EXPERIMENT = Experiment("arc", __doc__ or "", PRESETS, puzzles.choose, puzzles.prepare, run, unit="tasks")

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
