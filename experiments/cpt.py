"""Continued pre-training (paper table 2, n = 200 and 2,067): all passages' self-edits at once, then all questions.

    python -m experiments.cpt demo                      # 2 CPU cores: minutes; a 135M model, 20 invented passages
    python -m experiments.cpt demo --method full        # the same with every weight trained, not an adapter
    python -m experiments.cpt paper-200 --method full   # the paper's settings: a GPU that holds Qwen2.5-7B
    python -m experiments.cpt paper-2067 --questions 500 --dry-run
    python -m experiments.cpt paper-200 --seal runs/squad-paper --external gpt4_1.json --entigraph pairs triples

Each row of the result starts from the same model, trains it on one kind of text and asks the same questions without any
passage in view: the base model; the passages alone; the passages and k self-edits of each; and, where they are asked
for, the self-edits of a file, entity-graph text, and the self-edits of a model that an earlier run of
`experiments.squad` trained with RL. A training sequence is a whole completion under its passage's title. The paper does
not print how long and how fast it trained here: epochs, batch and learning rates are ours.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

from seal_jax.engine.full_training import FullTuning
from seal_jax.engine.training import FineTuning
from seal_jax.run import command, passages, pretraining
from seal_jax.run.passages import Knowledge
from seal_jax.run.pretraining import Corpus, Text
from seal_jax.run.session import Experiment, Preset, Session
from seal_jax.seal import evaluation
from seal_jax.seal.entigraph import Kind, Limits
from seal_jax.types import Compute, require_at_least


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """Continued pre-training: one run."""

    n: int = 200
    """Passages learnt at once (paper: 200, and all 2,067)."""
    completions: int = 5
    """Self-edits a passage (paper: 5), of a file too: the first so many."""
    method: Literal["lora", "full"] = "lora"
    """One adapter over everything (--inner), or every weight of the model (--full)."""
    full: FullTuning = FullTuning()
    """How all weights are trained, with --method full."""
    questions: int | None = None
    """Ask a fixed sample of so many questions, drawn with the seed, the same for every row (default: all)."""
    external: str | None = None
    """A row more: this file's completions for the passages (the reference's JSON; paper: GPT-4.1's)."""
    entigraph: tuple[Kind, ...] = ()
    """Rows more: entity-graph text, of pairs, of pairs and triples, or both one after the other."""
    limits: Limits = Limits()
    """How much entity-graph text is written."""
    seal: Path | None = None
    """A row more: the model that this run folder of experiments.squad trained writes the self-edits, and learns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, n=self.n, completions=self.completions)
        if self.questions is not None:
            require_at_least(1, questions=self.questions)
        if self.method == "full" and self.base != "full":
            raise ValueError(
                f"--method full trains the weights themselves, and --base {self.base} keeps none to train: "
                "leave --base out, or train adapters (--method lora)"
            )


# The paper's: n, k, the model, sampling, the prompt; and of the adapter rank, alpha and projections, as in its inner
# loop. Ours: its learning rate, epochs and batch, and all of `full`.
PAPER_200 = Config(
    "paper-200",
    **passages.PAPER,
    inner=FineTuning(learning_rate=3e-4, epochs=5, batch_size=8),
    full=FullTuning(learning_rate=1e-5, epochs=5, batch_size=16),
)
PAPER_2067 = dataclasses.replace(PAPER_200, preset="paper-2067", n=2067, method="full")  # the paper: full only

DEMO = Config(
    "demo",
    **passages.SMALL | {"inner": dataclasses.replace(passages.SMALL["inner"], batch_size=4)},
    n=20,
    completions=2,
    full=FullTuning(learning_rate=1e-4, epochs=8, batch_size=4),
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    **passages.SMALLEST | {"inner": FineTuning(epochs=1, batch_size=2)},
    n=3,
    completions=1,
    full=FullTuning(epochs=1, batch_size=2),
)

WIDE = Compute(width_cuts=(128, 192, 256, 384, 512))
PRESETS = {
    "demo": Preset(
        "Minutes on 2 CPU cores: a 135M model and 20 invented passages.",
        DEMO,
        Compute(chunk=10, write_chunk=20, width_cuts=(96,)),
    ),
    "paper-200": Preset("The paper's settings for 200 passages; --method full for its other column.", PAPER_200, WIDE),
    "paper-2067": Preset("The paper's settings for all 2,067 passages, full fine-tuning.", PAPER_2067, WIDE),
    "smoke": Preset("Everything once, as small as it goes.", SMOKE, Compute(chunk=2, write_chunk=20, width_cuts=())),
}


def run(here: Session, data: Corpus) -> dict[str, Any]:
    """The base model, then each row: its texts, its training, its answers."""
    config, labels = here.config, pretraining.row_names(here.config)
    pretraining.require_disk(config, here, rows=len(labels))
    base = here.try_base(data.asked, name="questions")
    stages = [evaluation.base_stage(base, "Base model")]
    texts = [
        Text(n, label, pretraining.write(config, here, pretraining.starts_from(config, here.lm, n), data, n))
        for n, label in labels.items()
    ]
    if config.method == "full":
        here.lm = pretraining.on_host(here.lm)
    trained = []
    for text in texts:
        name, (losses, scores) = text.name, pretraining.train_and_ask(config, here, data, text)
        trained.append(pretraining.row_of_table(config, here, data, text, losses))
        edits = [edit for row in text.edits for edit in row]
        problems = dict(sorted(Counter(edit.problem for edit in edits if edit.problem).items()))
        problems |= evaluation.problems_of_writing(edits) | evaluation.cut_answers(scores)
        accuracy, likely = [s.accuracy for s in scores], [s.log_likelihood for s in scores]
        stages.append(evaluation.Stage(name, text.label, accuracy, likely, problems))
        here.record(name, pretraining.trials(data, text, scores, base))
        here.folder.once(f"{name}/training metrics", partial(pretraining.plot, here, name, losses))
    rows = evaluation.rows(stages, data.asked, passages.questions_of(data.asked), seed=config.seed)
    return here.finish(rows, tables=[pretraining.table(trained)])


EXPERIMENT = Experiment("cpt", __doc__ or "", PRESETS, pretraining.choose, pretraining.prepare, run)

if __name__ == "__main__":
    sys.exit(command.main(EXPERIMENT, sys.argv[1:]))
