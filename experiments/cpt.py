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
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from seal_jax.domains import squad
from seal_jax.engine import batching, full_training, memory
from seal_jax.engine.full_training import FullTuning
from seal_jax.engine.inner import Chunk, is_finite
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, adapter_shapes, train
from seal_jax.nn import lora
from seal_jax.nn.lora import PROJECTIONS, Adapter
from seal_jax.nn.transformer import ModelConfig
from seal_jax.run import knowledge, plan, runtime, session
from seal_jax.run.journal import require_room
from seal_jax.run.knowledge import Knowledge
from seal_jax.run.session import Experiment, Session
from seal_jax.seal import entigraph, evaluation
from seal_jax.seal.entigraph import Kind, Limits
from seal_jax.seal.rest_em import Trial, try_base, write_self_edits
from seal_jax.seal.rewards import Score
from seal_jax.types import Example, LanguageModel, SelfEdit, require_at_least


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


# The paper's: n, k, the model, sampling, the prompt; and of the adapter rank, alpha and projections, as in its inner
# loop. Ours: its learning rate, epochs and batch, and all of `full`.
PAPER_200 = Config(
    "paper-200",
    model="Qwen/Qwen2.5-7B",
    dtype="bfloat16",
    data="squad",
    style="raw",
    inner=FineTuning(learning_rate=3e-4, epochs=5, batch_size=8, width_cuts=(128, 192, 256, 384, 512)),
    full=FullTuning(learning_rate=1e-5, epochs=5, batch_size=16, width_cuts=(128, 192, 256, 384, 512)),
)
PAPER_2067 = dataclasses.replace(PAPER_200, preset="paper-2067", n=2067, method="full")  # the paper: full only

DEMO = Config(
    "demo",
    prompt="facts",
    sampling=Sampling(max_tokens=128, temperature=0.7, top_p=0.95),
    answer_tokens=24,
    write_chunk=20,
    max_sequences=8,
    inner=FineTuning(projections=PROJECTIONS, rank=16, alpha=32.0, epochs=8, batch_size=4, chunk=10, width_cuts=(96,)),
    n=20,
    completions=2,
    full=FullTuning(learning_rate=1e-4, epochs=8, batch_size=4, width_cuts=(96,)),
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    sampling=Sampling(max_tokens=24),
    answer_tokens=8,
    max_sequences=4,
    inner=FineTuning(epochs=1, batch_size=2, chunk=2, width_cuts=()),
    n=3,
    completions=1,
    full=FullTuning(epochs=1, batch_size=2, width_cuts=()),
)

PRESETS = {
    "demo": ("Minutes on 2 CPU cores: a 135M model and 20 invented passages.", DEMO),
    "paper-200": ("The paper's settings for 200 passages; --method full for its other column.", PAPER_200),
    "paper-2067": ("The paper's settings for all 2,067 passages, full fine-tuning.", PAPER_2067),
    "smoke": ("Everything once, as small as it goes.", SMOKE),
}


# ---------------------------------------------------------------------------------------------------------------------
# What is learnt and asked


class Data(NamedTuple):
    """The passages of a run, and those of them that are asked about."""

    passages: list[squad.Passage]
    asked: list[squad.Passage]  # with the questions that are asked; passages without one left out
    external: dict[str, tuple[str, ...]]  # recorded completions, by passage
    inputs: list[Any]  # all that was read from files: a run does not carry on over other passages or prompts


def choose_passages(config: Config) -> Data:
    """N passages by a seeded shuffle, and the questions to ask.

    Raises:
        ValueError: fewer passages or questions than the run needs, or an external file that lacks one.
    """
    inputs: list[Any] = [*knowledge.prompt_texts(config), squad.load_passages(config.data, "held_out")]
    passages = squad.shuffled(inputs[-1], config.seed)[: config.n]
    if len(passages) < config.n:
        raise ValueError(f"--data {config.data}: {len(passages)} passages; the run learns {config.n} (--n)")
    external = {}
    if config.external:
        recorded = {passage.id: passage.completions for passage in squad.load_passages(config.external, "held_out")}
        external = {p.id: recorded.get(p.id, ())[: config.completions] for p in passages}
        lacking = [passage for passage in passages if not external[passage.id]]
        if lacking:
            raise ValueError(
                f"--external {config.external}: no completion for {len(lacking)} of {len(passages)} passages, the "
                f"first of them {lacking[0].id!r}; passages are matched by their title and context"
            )
        inputs.append(external)
    if config.seal:
        inputs.append(trained_by(config))
    return Data(passages, choose_questions(passages, config.questions, config.seed), external, inputs)


def choose_questions(passages: Sequence[squad.Passage], count: int | None, seed: int) -> list[squad.Passage]:
    """The passages with a seeded sample of all their questions; those that are left with none go.

    Raises:
        ValueError: fewer questions than that.
    """
    every = [(p, q) for p, passage in enumerate(passages) for q in range(len(passage.questions))]
    if count is None:
        return list(passages)
    if count > len(every):
        raise ValueError(
            f"--questions {count}: the {len(passages)} passages have {len(every)}; leave it out to ask all"
        )
    chosen = {every[i] for i in np.random.default_rng([seed, len(every)]).choice(len(every), count, replace=False)}
    kept = [
        passage._replace(questions=tuple(q for i, q in enumerate(passage.questions) if (p, i) in chosen))
        for p, passage in enumerate(passages)
    ]
    return [passage for passage in kept if passage.questions]


class Text(NamedTuple):
    """What one row trains on besides the passages themselves."""

    name: str
    label: str
    edits: list[list[SelfEdit]]  # [P]; their examples are whole texts, the passage not among them


def whole(passage: squad.Passage, completion: str) -> SelfEdit:
    """A completion as one training sequence under its title, not split into lines."""
    text = completion.strip()
    if not text:
        return SelfEdit(completion, (), "empty completion")
    return SelfEdit(completion, (Example("", f"{passage.title}\n{text}"),))


def sequences_of(lm: LanguageModel, passages: Sequence[squad.Passage], text: Text) -> list[list[batching.Tokens]]:
    """Each passage's training sequences: its texts, then itself, once."""
    return [
        [
            batching.tokenize(example, lm.codec)
            for example in (*(e for edit in row for e in edit.examples), *squad.passage_only(passage).examples)
        ]
        for passage, row in zip(passages, text.edits, strict=True)
    ]


def most_sequences(config: Config, data: Data) -> int:
    """Training sequences of a row at most: every program is compiled for so many."""
    each = [config.completions]
    for kind in config.entigraph:
        both = config.limits.pairs + (config.limits.triples if kind == "triples" else 0)
        each.append(config.completions * both)
    return config.n * (max(each) + 1)


def longest_text(config: Config, lm: LanguageModel, data: Data) -> int:
    """Tokens of the longest text there may be: what the model may yet write, and what a file holds."""
    longest = 0
    for passage in data.passages:
        longest = max(longest, len(lm.codec.encode(passage.title)) + 2 + config.sampling.max_tokens)
        for completion in data.external.get(passage.id, ()):
            edit = whole(passage, completion)
            longest = max([longest, *(len(batching.tokenize(example, lm.codec).ids) for example in edit.examples)])
    return longest


# ---------------------------------------------------------------------------------------------------------------------
# A model that an earlier run trained with RL


class Trained(NamedTuple):
    """What a run of experiments.squad made of its model."""

    settings: dict[str, Any]  # of that run; empty where there is none
    rounds: int  # of RL that are taken: all, or those up to the one that its validation chose


def trained_by(config: Config) -> Trained:
    """The run that `--seal` names.

    Raises:
        ValueError: no finished run of experiments.squad on this model, or one with a separate writer.
    """
    folder = config.seal
    if folder is None:
        return Trained({}, 0)
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(
            f"--seal {folder}: no results.json; expected the folder of a finished run of experiments.squad"
        )
    results = json.loads(path.read_text(encoding="utf-8"))
    settings = results["settings"]
    if results["name"] != "squad" or not settings["outer"]["rounds"]:
        raise ValueError(f"--seal {folder}: a run of {results['name']}; expected experiments.squad with rounds of RL")
    if settings["model"] != config.model or settings["dtype"] != config.dtype:
        raise ValueError(
            f"--seal {folder}: trained {settings['model']} in {settings['dtype']}; this run has --model {config.model} "
            f"--dtype {config.dtype}"
        )
    if settings.get("writer"):
        raise ValueError(
            f"--seal {folder}: its self-edits were written by another model, {settings['writer']}, which alone was "
            "trained; expected a run in which one model writes and learns"
        )
    rounds = results.get("validation", {}).get("chosen_round", settings["outer"]["rounds"])
    if not rounds:
        raise ValueError(f"--seal {folder}: its validation chose the model as it was before RL; leave --seal out")
    return Trained(settings, rounds)


def seal_rounds(config: Config, lm: LanguageModel) -> list[Adapter]:
    """The adapters of the rounds of RL that are taken of the run that `--seal` names, in order."""
    settings, rounds = trained_by(config)
    sft, found = settings["outer"]["sft"], []
    like = adapter_shapes(lm, FineTuning(projections=tuple(sft["projections"]), rank=sft["rank"]))
    assert config.seal is not None
    for number in range(1, rounds + 1):
        path = (config.seal / "checkpoints" / f"round_{number}").absolute()
        if path.exists():  # a round that kept nothing left the model as it was
            with ocp.StandardCheckpointer() as checkpointer:
                found.append(checkpointer.restore(path, like))
    return found


def merge_rounds(config: Config, lm: LanguageModel) -> LanguageModel:
    """The model after those rounds: their adapters merged, one after the other."""
    for adapter in seal_rounds(config, lm):
        lm = lm._replace(params=lora.merge(lm.params, adapter))
    return lm


# ---------------------------------------------------------------------------------------------------------------------
# The run


def row_names(config: Config) -> dict[str, str]:
    """The rows of the result after the base model, in order: name and label."""
    each = "a self-edit" if config.completions == 1 else f"{config.completions} self-edits"
    names = {"passage": "Passages alone", "self_edits": f"Passages and {each} of each"}
    if config.external:
        names["external"] = "Passages and external synthetic data"
    for kind in config.entigraph:
        names[f"entigraph_{kind}"] = "Passages and entity pairs" + (" and triples" if kind == "triples" else "")
    if config.seal:
        rounds = trained_by(config).rounds
        names[f"self_edits_round_{rounds}"] = f"SEAL, {rounds} {'round' if rounds == 1 else 'rounds'} of RL"
    return names


def phases(config: Config) -> list[str]:
    """All that a run will show, in order."""
    names, rows = ["questions: base model"], row_names(config)
    for name in rows:
        kinds = [kind for kind in config.entigraph if name == f"entigraph_{kind}"]
        names += [f"{name}: {step}: writing self-edits" for kind in kinds for step in ("entities", kind)]
        names += [f"{name}: writing self-edits"] if name.startswith("self_edits") else []
    return names + [f"{name}: {step}" for name in rows for step in ("training", "questions")]


def run(config: Config, run_folder: Path, command: str) -> dict[str, Any]:
    """One run, from passages to report.html. Carries on where an earlier run of the same config stopped."""
    data, labels = choose_passages(config), row_names(config)
    with knowledge.opened(
        config, run_folder, "cpt", data.passages, command=command, phases=phases(config), inputs=data.inputs,
        samples=config.completions, capacity=most_sequences(config, data),
        longest_written=lambda lm: longest_text(config, lm, data),
    ) as here:  # fmt: skip
        if config.method == "full":
            size = full_training.disk(here.model, itemsize=runtime.itemsize(config.dtype))
            require_room(run_folder, needed=size * len(labels))
        base = here.try_base(data.asked, name="questions")
        stages = [evaluation.base_stage(base, "Base model")]
        texts = [
            Text(n, label, write(config, here, starts_from(config, here, n), data, n)) for n, label in labels.items()
        ]
        if config.method == "full":
            here.lm = on_host(here.lm)
        trained: list[list[Any]] = []
        for text in texts:
            name, losses, scores = text.name, *train_and_ask(config, here, data, text)
            trained.append(row_of_table(config, here, data, text, losses))
            problems = Counter(edit.problem for row in text.edits for edit in row if edit.problem)
            accuracy, likely = [s.accuracy for s in scores], [s.log_likelihood for s in scores]
            stages.append(evaluation.Stage(name, text.label, accuracy, likely, dict(sorted(problems.items()))))
            here.record(name, trials(data, text, scores, base))
            here.folder.once(f"{name}/training metrics", partial(plot, here, name, losses))
        questions = sum(len(passage.questions) for passage in data.asked)
        rows = evaluation.rows(stages, data.asked, questions, seed=config.seed)
        table = {
            "title": "What was trained on",
            "note": "Losses are means over an epoch, nats a token.",
            "columns": ["", "self-edits", "sequences", "tokens", "steps", "loss, first epoch", "loss, last epoch"],
            "rows": trained,
        }
        return here.finish(rows, tables=[table])


def write(config: Config, here: Session, lm: LanguageModel, data: Data, name: str) -> list[list[SelfEdit]]:
    """The texts of one row, by passage."""
    loop, passages = here.loop, data.passages
    if name == "passage":
        return [[] for _ in passages]
    if name == "external":
        return [[whole(passage, text) for text in data.external[passage.id]] for passage in passages]
    if name.startswith("entigraph_"):
        kind: Kind = "triples" if name.endswith("triples") else "pairs"
        edits = entigraph.write(
            lm, passages, loop, kind=kind, samples=config.completions, name=name,
            prompts=entigraph.load_prompts(here.writer.style), render=here.writer.render, limits=config.limits,
        )  # fmt: skip
        return [[edit._replace(examples=edit.examples[:-1]) for edit in row] for row in edits]  # the passage: once
    edits = write_self_edits(lm, passages, loop, samples=config.completions, name=name)
    return [
        [whole(passage, edit.completion)._replace(finished=edit.finished) for edit in row]
        for passage, row in zip(passages, edits, strict=True)
    ]


def starts_from(config: Config, here: Session, name: str) -> LanguageModel:
    """The model that writes and learns in one row."""
    return merge_rounds(config, here.lm) if name.startswith("self_edits_round_") else here.lm


def on_host(lm: LanguageModel) -> LanguageModel:
    """The model with its weights off the devices: full fine-tuning wants their room."""
    params = jax.tree.map(np.array, lm.params)
    for leaf in jax.tree.leaves(lm.params):
        leaf.delete()  # whoever else holds it
    return lm._replace(params=params)


def train_and_ask(config: Config, here: Session, data: Data, text: Text) -> tuple[list[float], list[Score]]:
    """One row: the losses of its training, and the scores of the passages that are asked about.

    A row whose answers are all in the run folder is not trained again.
    """
    name, start = text.name, starts_from(config, here, text.name)
    pieces = [f"{name}/base/{first}" for first in range(0, len(data.asked), here.loop.chunk.planned)]
    if not all(here.folder.has(piece) for piece in pieces):
        flat = [s for row in sequences_of(start, data.passages, text) for s in row]
        start = learn(config, here, start, flat, name)
    scores = try_base(start, data.asked, here.loop, name=name, shown="questions")
    return here.folder.once(f"{name}/losses", list), scores


def learn(
    config: Config, here: Session, lm: LanguageModel, sequences: Sequence[batching.Tokens], name: str
) -> LanguageModel:
    """The model after training on one row's sequences."""
    tokens = sum(len(s.ids) for s in sequences)
    if config.method == "full":
        here.progress.phase(f"{name}: training", config.full.epochs * len(sequences), "sequences")
        return full_training.train_all_weights(
            lm, sequences, config.full, seed=config.seed, say=here.progress.note,
            on_step=lambda rows, real: here.progress.advance(rows, tokens=real),
            free=runtime.free_memory(config.devices), itemsize=runtime.itemsize(config.dtype),
            run=here.folder, name=name,
        )[0]  # fmt: skip
    here.progress.phase(f"{name}: training", 1, "adapters")

    def adapt() -> Adapter:
        alone = Chunk(1, watch=here.progress.steps)
        adapters, losses = train(
            lm, [sequences], row_tuning(config, here), here.loop.shapes, seed=config.seed, chunk=alone
        )
        if not is_finite(adapters).all():
            raise ValueError(
                f"continued pre-training on {name} diverged at learning rate {config.inner.learning_rate:g}; "
                "lower --inner.learning-rate and use another --run-folder"
            )
        kept = [float(loss) for loss in losses[0] if not math.isnan(loss)]
        here.folder.once(f"{name}/losses", lambda: kept)  # before the checkpoint: where that is, these are
        return lora.take(adapters, 0)

    resumed = here.folder.has(f"{name}/losses")
    adapter = here.folder.once_tree(name, adapt, like=adapter_shapes(lm, config.inner))
    here.progress.advance(1, adapters=1, tokens=config.inner.epochs * tokens, resumed=resumed)
    return lm._replace(params=lora.merge(lm.params, adapter))


def row_tuning(config: Config, here: Session) -> FineTuning:
    """The settings of the one adapter, cut to the memory that is free: each device takes its share of a step's rows."""
    devices, inner = runtime.device_count(config.devices), config.inner
    micro = inner.optimiser.accumulate
    share = dataclasses.replace(inner, chunk=1, batch_size=micro * math.ceil(inner.batch_size / (micro * devices)))
    cut = here.folder.once(
        "memory of training",
        lambda: list(
            session.fit(
                dataclasses.replace(config, inner=share),
                here.model,
                here.loop.shapes,
                here.loop.prompt_width,
                config.completions,
            )
        ),
    )
    return memory.Plan(*cut).applied(inner)


def row_of_table(config: Config, here: Session, data: Data, text: Text, losses: Sequence[float]) -> list[Any]:
    """What a row was trained on, and its mean loss in the first and last epoch."""
    sequences = [s for row in sequences_of(here.lm, data.passages, text) for s in row]
    epochs = (config.full if config.method == "full" else config.inner).epochs
    first, last = evaluation.first_and_last(losses, epochs)
    edits, tokens = sum(map(len, text.edits)), sum(len(s.ids) for s in sequences)
    return [text.label, edits, len(sequences), tokens, len(losses), first, last]


def trials(data: Data, text: Text, scores: Sequence[Score], base: Sequence[Score]) -> list[list[Trial]]:
    """One record a passage that was asked about: all its texts together, and what came of all passages' texts."""
    rows = dict(zip((passage.id for passage in data.passages), text.edits, strict=True))
    records = []
    for passage, score, before in zip(data.asked, scores, base, strict=True):
        edits = rows[passage.id]
        examples = (*(e for edit in edits for e in edit.examples), *squad.passage_only(passage).examples)
        joined = SelfEdit("\n\n---\n\n".join(edit.completion for edit in edits), examples)
        records.append([Trial(passage, 0, joined, [score], before)])
    return records


def plot(here: Session, name: str, losses: Sequence[float]) -> None:
    """A row's training loss, step by step."""
    for step, loss in enumerate(losses):
        here.metrics.write(f"{name}/training", step, {"loss": loss})


# ---------------------------------------------------------------------------------------------------------------------
# The plan of a run, without running it


def describe(config: Config, run_folder: Path) -> str:
    """What a run reads, trains and needs. Loads no weights."""
    data = choose_passages(config)
    tuning = config.full if config.method == "full" else config.inner

    def work(edit: Mapping[str, int], alone: Mapping[str, int]) -> list[plan.Work]:
        passages = config.n * alone["tokens"]

        def row(name: str, edits: int, texts: int) -> plan.Work:
            steps = tuning.epochs * math.ceil((config.n + texts) / tuning.batch_size)
            tokens = tuning.epochs * (passages + texts * config.sampling.max_tokens)
            return plan.Work(name, edits, 1, steps, tokens)

        rows, k = [], config.n * config.completions
        for name in row_names(config):
            both = config.limits.pairs + (config.limits.triples if name == "entigraph_triples" else 0)
            edits = 0 if name == "passage" else k
            rows.append(row(name, edits, edits * (both if name.startswith("entigraph_") else 1)))
        return rows

    questions = sum(len(passage.questions) for passage in data.asked)
    lines = [f"{config.n} passages learnt at once, {questions} questions to {len(data.asked)} of them: {config.data}"]
    shown = knowledge.describe(config, data.passages, lines, work, run_folder, samples=config.completions)
    model = plan.read_config(config.model)
    if config.method == "full" and model is not None:
        shown = f"{shown}\n{plan.section('Full fine-tuning, on each device', full_memory(config, model, data))}"
    return shown


def full_memory(config: Config, model: ModelConfig, data: Data) -> list[str]:
    """What a step of full fine-tuning takes at the longest there can be."""
    words = max(len(f"{p.title} {p.context}".split()) for p in data.passages)
    width = batching.round_up(max(plan.tokens_of(words), config.sampling.max_tokens), 8)
    need = full_training.need(
        model,
        config.full,
        width=width,
        devices=runtime.device_count(config.devices),
        itemsize=runtime.itemsize(config.dtype),
    )
    return full_training.lines(need, runtime.free_memory(config.devices))


EXPERIMENT = Experiment("cpt", __doc__, PRESETS, describe, run)

if __name__ == "__main__":
    sys.exit(session.main(EXPERIMENT, sys.argv[1:]))
