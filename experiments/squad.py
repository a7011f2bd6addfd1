"""Knowledge incorporation (paper table 2): learn passages from self-written notes, then to write better notes.

    python -m experiments.squad demo                        # 2 CPU cores: minutes; a 135M model, invented facts
    python -m experiments.squad paper --data squad          # the paper's settings: a GPU that holds Qwen2.5-7B
    python -m experiments.squad smoke                       # seconds; shows that everything runs, and no more
    python -m experiments.squad demo --outer.rounds 2 --seed 1 --dry-run

The rows of the result, each on the same held-out passages: the base model; trained on the passage alone; on the
passage and the model's own self-edits; the same after each round of RL. What `paper` departs in from the paper is
listed at `PAPER`.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, Literal

from seal_jax.domains import squad
from seal_jax.engine.credit import require_creditable
from seal_jax.run import command, passages
from seal_jax.run.passages import Evaluation, Knowledge, Recorded, Split
from seal_jax.run.session import Experiment, Model, Prepared, Preset, Session
from seal_jax.seal import entigraph, evaluation
from seal_jax.seal.outer import SFT, Outer
from seal_jax.seal.rounds import rounds, write_self_edits
from seal_jax.types import Compute


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """Knowledge incorporation: one run."""

    held_out_data: str | None = None
    """Where --data is a file: a second one to evaluate on. Without it, held-out passages come from the first."""
    writer: str | None = None
    """Another model that writes the self-edits and learns to write better ones; --model learns them and answers."""
    external: str | None = None
    """A row more: trained on this file's completions for the held-out passages (reference's JSON; paper: GPT-4.1)."""
    entigraph: tuple[Literal["pairs", "triples"], ...] = ()
    """Rows more: trained on entity-graph text, of pairs, of pairs and triples, or both one after the other."""
    outer: Outer = Outer()
    """The outer loop: how the model learns to write better self-edits."""
    evaluation: Evaluation = Evaluation()
    """What is measured on held-out passages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.writer is not None and self.outer.credit == "lines":
            raise ValueError("--outer.credit lines credits what the writer itself learned: leave out --writer")


# The paper's settings are the defaults of Config, FineTuning and Outer. Departures, each for a reason:
# pads carry no loss (the reference trains on them); the base model is scored once a question, not once a self-edit;
# answers are graded by normalised match, not by GPT-4.1 (graders/lexical.py says how far the two agree); the adapter's
# initialisation and the order of sequences come from the run's seed, not from the clock.
PAPER = Config("paper", **passages.PAPER, outer=Outer(break_ties=False))

DEMO = Config(
    "demo",
    **passages.SMALL,
    outer=Outer(
        rounds=1,
        passages=5,
        samples=4,
        reward_seeds=1,
        select="improved",
        sft=dataclasses.replace(SFT, rank=16, alpha=32.0, epochs=3, batch_size=2),
    ),
    evaluation=Evaluation(passages=10),
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    **passages.SMALLEST,
    outer=dataclasses.replace(DEMO.outer, passages=2, samples=2, select="best"),
    evaluation=Evaluation(passages=3),
)

PRESETS = {
    "demo": Preset(
        "Minutes on 2 CPU cores: a 135M model and invented facts.",
        DEMO,
        Compute(chunk=10, write_chunk=20, width_cuts=(24, 32, 96)),
    ),
    "paper": Preset("The paper's settings (its section 4.1, B.1).", PAPER),
    "smoke": Preset("Everything once, as small as it goes.", SMOKE, Compute(chunk=2, write_chunk=20, width_cuts=(96,))),
}


def prepare(config: Config, data: Split, model: Model) -> Prepared:
    """The domain and the sizes of all programs."""
    recorded = Recorded({**data.external, **data.recorded}, imitated=data.recorded)
    samples = config.outer.samples
    together = config.max_sequences * (samples if config.outer.reward == "set" else 1)  # sequences of an adapter
    return passages.prepare(
        config, model, data.everything, recorded=recorded, samples=samples, capacity=together, writer=config.writer
    )


def run(here: Session, data: Split) -> dict[str, Any]:
    """The rows of table 2, in order."""
    config, loop, held_out = here.config, here.loop, data.held_out
    outer, test = config.outer, config.evaluation
    if outer.credit == "lines":
        require_creditable(here.lm, loop.trainer)
    base = here.try_base(held_out, name="held-out")
    stages = [evaluation.base_stage(base, "Base model")]

    def row(name: str, label: str, stage: str, edits: Any) -> None:
        trials = here.try_edits(held_out, edits, base, name=stage, row=name)
        stages.append(evaluation.trained_stage(name, label, trials))

    row("passage", "Trained on the passage alone", "passage alone", [[squad.passage_only(p)] for p in held_out])
    if data.external:
        recorded = [[loop.domain.parse(p, text) for text in data.external[p.id]] for p in held_out]
        row("external", "Trained on external synthetic data", "external", recorded)
    for kind in config.entigraph:
        label = "Trained on entity pairs" if kind == "pairs" else "Trained on entity pairs and triples"
        written = entigraph.write(
            here.writer.lm, held_out, loop, kind=kind, samples=test.samples, name=f"entigraph {kind}",
            prompts=entigraph.load_prompts(here.writer.style), render=here.writer.render,
        )  # fmt: skip
        row(f"entigraph_{kind}", label, f"entigraph {kind}", written)

    validated: list[float | None] = []  # accuracy on the validation passages, before RL and after each round
    records, texts, learner = [], [], here.lm if config.writer else None
    prompts = [loop.domain.prompt(passage) for passage in held_out]
    method = outer.make(data.recorded)
    for state in rounds(here.writer.lm, data.rounds, method, loop, samples=outer.samples, learner=learner):
        number, here.lm = state.number, state.learner
        if state.log:
            read = [loop.domain.prompt(row[0].task) for row in state.log.trials]
            tokens = evaluation.round_tokens(state.log, here.writer.lm.codec, here.lm.codec, config.inner.epochs)
            records.append(evaluation.round_record(number, state.log, read) | tokens)
            here.record(f"round {number}", state.log.trials, state.log.keep, state.log.losses)
        if data.validation:
            validated.append(passages.validate(here, state, data.validation))
        stage = passages.held_out_stage(number)
        edits = write_self_edits(state.writer, held_out, loop, samples=test.samples, name=stage)
        label = f"SEAL, after RL round {number}" if number else "Trained on its self-edits, before RL"
        row(f"self_edits_round_{number}", label, stage, edits)
        texts.append(evaluation.written_record(stage, edits, prompts))

    stages, chosen = passages.choose_round(stages, validated, len(data.validation))
    rows = evaluation.rows(stages, held_out, passages.questions_of(held_out), seed=config.seed)
    return here.finish(rows, rounds=records, written=texts, **chosen)


EXPERIMENT = Experiment("squad", __doc__ or "", PRESETS, passages.split, prepare, run)

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
