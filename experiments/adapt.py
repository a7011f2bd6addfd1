"""Teach the model a document of your own, then ask it: answers before and after, side by side.

    python -m experiments.adapt --document notes.md                   # 2 CPU cores: minutes; then ask in the terminal
    python -m experiments.adapt --document notes.md --ask "Who keeps the lamp?" --save my-adapter --merged
    python -m experiments.adapt --document report.pdf --exam exam.json     # graded, on questions of your own
    python -m experiments.adapt large --document notes.md --model Qwen/Qwen2.5-7B --seal runs/squad-paper     # a GPU
    python -m experiments.adapt notes/ report.pdf        # many documents: a library (experiments/library.py)

The document (.md, .txt, .pdf) is cut into passages. The model writes notes on each, and questions whose answers stand
in it, which it is never trained on. Several candidate adapters, each trained on other notes of the whole document,
train at once, and the one that answers the questions best is kept. Its accuracy on them is slightly too
high, since it was chosen by them; on an exam of your own (--exam) it is not. The same command on the same folder
resumes a run that was killed, and goes straight to the questions of one that had finished.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.run import command, documents, ends, session
from seal_jax.run.adapted import COMPUTE, INNER, NOTES
from seal_jax.run.documents import Material
from seal_jax.run.passages import Knowledge
from seal_jax.run.session import Experiment, Place, Preset, Session
from seal_jax.run.terminal import shell_command
from seal_jax.seal.teaching import Teaching, teach
from seal_jax.types import PROJECTIONS, Compute

from . import library


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """Teaching a document: one run, and what is done with it afterwards."""

    data: tyro.conf.Suppress[str] = ""
    document: Path | None = None
    """What is taught: a .md, .txt or .pdf file."""
    prompt: str = "facts"
    """The self-edit prompt: facts (for small models), one of the paper's seven by name, or a TOML file of your own."""
    teaching: Teaching = Teaching()
    """Passages, candidates, and the questions that one is chosen by."""
    seal: Path | None = None
    """Begin with the model that this run folder of experiments.squad trained: it writes the notes, and learns."""
    adapter: Path | None = None
    """Begin with a PEFT adapter from this folder."""
    exam: Path | None = None
    """Questions of your own, asked before and after and graded: JSON, [{"question", "answer"}]. Never trained on."""
    ask: tuple[str, ...] = ()
    """Questions, each in quotes. Without any, and in a terminal, you are asked for them."""
    save: Path | None = None
    """Write the adapter here, as PEFT reads it."""
    merged: bool = False
    """With --save: the whole model too, as a Hugging Face checkpoint, in the folder `merged` there."""


# no part of what a run is: what is done with the model that comes of it
AFTERWARDS: dict[str, Any] = {"exam": None, "ask": (), "save": None, "merged": False}

SMALL = Config(
    "small",
    sampling=NOTES.sampling,
    answer_tokens=NOTES.answer_tokens,
    max_sequences=NOTES.max_sequences,
    inner=INNER,
)
LARGE = Config(
    "large",
    model="Qwen/Qwen2.5-7B-Instruct",
    dtype="bfloat16",
    prompt="implications",
    sampling=Sampling(max_tokens=512, temperature=1.0, top_p=0.95),
    answer_tokens=64,
    inner=FineTuning(projections=PROJECTIONS, rank=32, alpha=64.0, learning_rate=3e-4, epochs=6, batch_size=4),
    teaching=Teaching(
        passage_tokens=512,
        most_passages=256,
        candidates=8,
        learning_rates=(1e-4, 3e-4),
        grounded=0.0,  # an implication may well use other words than its passage
        questions=96,
    ),
)
SMOKE = dataclasses.replace(
    SMALL,
    preset="smoke",
    sampling=Sampling(max_tokens=24),
    answer_tokens=8,
    max_sequences=4,
    inner=FineTuning(epochs=1),
    teaching=Teaching(candidates=2, questions=4),
)

PRESETS = {
    "small": Preset(
        "Minutes on 2 CPU cores for a page: a 135M model, 4 candidates.",
        SMALL,
        dataclasses.replace(COMPUTE, chunk=Teaching().candidates),
    ),
    "large": Preset("A GPU that holds Qwen2.5-7B: 8 candidates at two learning rates.", LARGE),
    "smoke": Preset("Everything once, as small as it goes.", SMOKE, Compute(chunk=2, width_cuts=())),
}


def run(here: Session, data: Material) -> dict[str, Any]:
    """Teaches the document; then saves and asks."""
    config = data.config
    below = documents.begin_with(config, here)
    (taught,) = teach(here.lm, [here.lesson], here.loop, config.teaching)
    adapted = documents.adapted_model(config, here, below, taught)
    results = documents.finish(config, here, data, adapted)
    here.afterwards.append(lambda: documents.afterwards(config, adapted, here.folder))
    return results


def execute(experiment: Experiment, config: Config, compute: Compute, place: Place, *, command: str) -> dict[str, Any]:
    """A run: what is done afterwards is no part of its identity."""
    kept = dataclasses.replace(config, **AFTERWARDS, data=str(config.document))
    whole = experiment._replace(read=lambda _: documents.read(config))
    return session.execute(whole, kept, compute, place, command=command)


def called(config: Config) -> str:
    """What the run folder's name begins with: each document has one of its own."""
    return f"adapt-{config.preset}" if config.document is None else f"adapt-{config.preset}-{config.document.stem}"


EXPERIMENT = Experiment(
    "adapt", __doc__ or "", PRESETS, documents.read, documents.prepare, run, called=called,
    unnamed=("document", *AFTERWARDS), execute=execute,
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Runs a command line, in which the document may stand without its option: `adapt notes.md`.

    Several documents, or a folder of them, are taught as a library (experiments/library.py).
    """
    words = list(arguments)
    first = 1 if words and words[0] in PRESETS else 0
    given = [Path(word) for word in itertools.takewhile(lambda word: not word.startswith("-"), words[first:])]
    if len(given) > 1 or (given and given[0].is_dir()):
        if first:
            return ends.ended(partial(_refuse_preset, words[0]))
        return int(library.main(["add", *words[first:]]))
    if given and given[0].suffix.lower() in (".md", ".txt", ".pdf"):
        words.insert(first, "--document")
    return command.main(EXPERIMENT, words)


def _refuse_preset(name: str) -> None:
    raise ValueError(
        f"the preset {name} is for one document, and several, or a folder, become a library: leave it out, and set "
        f"what you need by options ({shell_command('library', 'add', '--help')})"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
