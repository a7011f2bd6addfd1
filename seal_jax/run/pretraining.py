"""Continued pre-training: what is learned and asked, and how a row of the result is written, trained and asked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from seal_jax.domains import squad
from seal_jax.engine import batching, full_training
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.inner import is_finite
from seal_jax.engine.memory import Writing
from seal_jax.engine.training import FineTuning, Trainer, adapter_shapes, train
from seal_jax.io import fingerprint
from seal_jax.nn import lora
from seal_jax.nn.lora import Adapter
from seal_jax.nn.sharding import lanes
from seal_jax.nn.transformer import ModelConfig
from seal_jax.run import checkpoints, hosts, plan, runtime
from seal_jax.run import passages as passages_of
from seal_jax.run.journal import read_run, require_room
from seal_jax.run.passages import Recorded, prompt_texts, questions_of, recorded_completions
from seal_jax.run.plan import BASE, WRITE, Stage
from seal_jax.run.session import Model, Prepared, Session, decided
from seal_jax.seal import entigraph, evaluation
from seal_jax.seal.entigraph import Kind
from seal_jax.seal.rewards import Score, Trial
from seal_jax.seal.rounds import fitted, try_base, write_self_edits
from seal_jax.types import Compute, Example, LanguageModel, SelfEdit

# ---------------------------------------------------------------------------------------------------------------------
# What is learnt and asked


class Corpus(NamedTuple):
    """The passages of a run, and those of them that are asked about."""

    passages: list[squad.Passage]
    asked: list[squad.Passage]  # with the questions that are asked; passages without one left out
    external: dict[str, tuple[str, ...]]  # recorded completions, by passage
    inputs: list[Any]
    lines: list[str]
    stages: list[Stage]


def choose(config: Any) -> Corpus:
    """N passages by a seeded shuffle, and the questions to ask. `config` is experiments.cpt's.

    Raises:
        ValueError: fewer passages or questions than the run needs, or an external file that lacks one.
    """
    inputs: list[Any] = [*prompt_texts(config), squad.load_passages(config.data, "held_out")]
    passages = squad.shuffled(inputs[-1], config.data_seed)[: config.n]
    if len(passages) < config.n:
        raise ValueError(f"--data {config.data}: {len(passages)} passages; the run learns {config.n} (--n)")
    external = {}
    if config.external:
        recorded = recorded_completions("--external", config.external, passages)
        external = {p.id: recorded[p.id][: config.completions] for p in passages}
        inputs.append(external)
    if config.seal:
        inputs.append(trained_by(config))
    asked = choose_questions(passages, config.questions, config.data_seed)
    lines = [
        f"{config.n} passages learnt at once, {questions_of(asked)} questions to {len(asked)} of them: {config.data}"
    ]
    return Corpus(passages, asked, external, inputs, lines, stages_of(config))


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


def row_sequences(config: Any) -> dict[str, int]:
    """Training sequences of each row at most: its texts, and the passages."""
    both = {name: config.limits.pairs + config.limits.triples * name.endswith("triples") for name in row_names(config)}
    each = {name: both[name] if name.startswith("entigraph_") else 1 for name in both} | {"passage": 0}
    return {name: config.n * (config.completions * count + 1) for name, count in each.items()}


# ---------------------------------------------------------------------------------------------------------------------
# A model that an earlier run trained with RL


class Trained(NamedTuple):
    """What a run of experiments.squad made of its model."""

    settings: dict[str, Any]  # of that run; empty where there is none
    rounds: int  # of RL that are taken: all, or those up to the one that its validation chose
    adapters: tuple[tuple[str, str], ...] = ()  # of those rounds, in order: a checkpoint and its digest


def trained_by(config: Any, *, said: str = "--seal {}") -> Trained:
    """The run that `--seal` names, as its journal says: nothing of it is taken unverified. `said` is what an error
    calls it.

    Raises:
        ValueError: no finished run of experiments.squad on this model, one with a separate writer, or a damaged one.
    """
    folder = config.seal
    if folder is None:
        return Trained({}, 0)
    where = said.format(folder)
    if not (folder / "results.json").is_file():
        raise ValueError(f"{where}: no results.json; expected the folder of a finished run of experiments.squad")
    settings, pieces, trees, _ = read_run(folder)
    trained = settings.get("outer", {}).get("rounds", 0) if settings["experiment"] == "squad" else 0
    if not trained:
        raise ValueError(f"{where}: a run of {settings['experiment']}; expected experiments.squad with rounds of RL")
    rounds = (pieces.get("finished", {}).get("validation") or {}).get("chosen_round", trained)
    theirs, here = (f"--model {said['model']} --dtype {said['dtype']} --base {said.get('base', 'full')}"
                    for said in (settings, vars(config)))  # fmt: skip
    for is_so, why in (
        ("finished" not in pieces, f"{where}: that run was not finished; run its command again"),
        (theirs != here, f"{where}: trained with {theirs}; this run has {here}"),
        (settings.get("writer"), f"{where}: its self-edits were written by another model, {settings.get('writer')}, "
         "which alone was trained; expected a run in which one model writes and learns"),
        (settings["weights"].get("model") != fingerprint.of_model(config.model),
         f"{where}: trained other weights than those that {config.model} has now; train it again"),
        (not rounds, f"{where}: its validation chose the model as it was before RL: nothing of it to take"),
    ):  # fmt: skip
        if is_so:
            raise ValueError(why)
    names = [f"round_{number}" for number in range(1, rounds + 1)]
    return Trained(settings, rounds, tuple((name, trees[name]) for name in names if name in trees))


def seal_rounds(config: Any, lm: LanguageModel, *, said: str = "--seal {}") -> list[Adapter]:
    """The adapters of the rounds of RL that are taken of the run that `--seal` names, in order.

    A round that kept nothing left the model as it was and has none. `said` as for `trained_by`.

    Raises:
        ValueError: one is gone or damaged.
    """
    settings, _, adapters = trained_by(config, said=said)
    sft, found = settings["outer"]["sft"], []
    like = adapter_shapes(lm, FineTuning(projections=tuple(sft["projections"]), rank=sft["rank"]))
    assert config.seal is not None
    for name, digest in adapters:
        path = (config.seal / "checkpoints" / name).absolute()
        adapter = checkpoints.restore(path, like, digest)
        if adapter is None:
            raise ValueError(
                f"{said.format(config.seal)}: {path} is {'damaged' if path.exists() else 'gone'}; run the command of "
                "that run again, which makes it anew"
            )
        found.append(adapter)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The run


def row_names(config: Any) -> dict[str, str]:
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


def stages_of(config: Any) -> list[Stage]:
    """All that a run does, in order: all texts are written first, then each row is trained and asked."""
    stages, rows = [Stage("questions", (BASE,))], row_names(config)
    for name in rows:
        kinds = [kind for kind in config.entigraph if name == f"entigraph_{kind}"]
        stages += [Stage(f"{name}: {step}", (WRITE,)) for kind in kinds for step in ("entities", kind)]
        stages += [Stage(name, (WRITE,))] if name.startswith("self_edits") else []
    return stages + [Stage(name, ("training", "questions")) for name in rows]


def write(config: Any, here: Session, lm: LanguageModel, data: Corpus, name: str) -> list[list[SelfEdit]]:
    """The texts of one row, by passage."""
    loop, passages, samples = here.loop, data.passages, config.completions
    texts: list[list[SelfEdit]] = [[] for _ in passages]
    if name == "external":
        texts = [[whole(passage, text) for text in data.external[passage.id]] for passage in passages]
    elif name.startswith("entigraph_"):
        kind: Kind = "triples" if name.endswith("triples") else "pairs"
        edits = entigraph.write(
            lm, passages, loop, kind=kind, samples=samples, name=name,
            prompts=entigraph.load_prompts(here.writer.style), render=here.writer.render, limits=config.limits,
        )  # fmt: skip
        texts = [[edit._replace(examples=edit.examples[:-1]) for edit in row] for row in edits]  # the passage: once
    elif name != "passage":
        edits = write_self_edits(lm, passages, loop, samples=samples, name=name)
        texts = [
            [whole(passage, edit.completion)._replace(finished=edit.finished) for edit in row]
            for passage, row in zip(passages, edits, strict=True)
        ]
    return [[fitted(edit, lm.codec, loop.trainer.shapes) for edit in row] for row in texts]


def starts_from(config: Any, lm: LanguageModel, name: str) -> LanguageModel:
    """The model that writes and learns in one row: of SEAL's, with the adapters of its rounds merged, one by one."""
    for adapter in seal_rounds(config, lm) if name.startswith("self_edits_round_") else ():
        lm = lm._replace(params=lora.merge(lm.params, adapter))
    return lm


def on_host(lm: LanguageModel) -> LanguageModel:
    """The model with its weights off the devices: full fine-tuning wants their room."""
    params = jax.tree.map(np.array, lm.params)
    for leaf in jax.tree.leaves(lm.params):
        leaf.delete()  # whoever else holds it
    return lm._replace(params=params)


def train_and_ask(config: Any, here: Session, data: Corpus, text: Text) -> tuple[list[float], list[Score]]:
    """One row: the losses of its training, and the scores of the passages that are asked about.

    A row whose answers are all in the run folder is not trained again.
    """
    name, start = text.name, starts_from(config, here.lm, text.name)
    pieces = [f"{name}/base/{first}" for first in range(0, len(data.asked), here.loop.trainer.chunk.planned)]
    if not all(here.folder.has(piece) for piece in pieces):
        flat = [s for row in sequences_of(start, data.passages, text) for s in row]
        start = learn(config, here, start, flat, name)
    scores = try_base(start, data.asked, here.loop, name=name, shown="questions")
    return here.folder.once(f"{name}/losses", list), scores


def learn(
    config: Any, here: Session, lm: LanguageModel, sequences: Sequence[batching.Tokens], name: str
) -> LanguageModel:
    """The model after training on one row's sequences."""
    tokens, progress = sum(len(s.ids) for s in sequences), here.progress
    if config.method == "full":
        progress.phase(f"{name}: training", config.full.epochs * len(sequences), "sequences")
        require_room_for_all_weights(config, here, sequences)
        return full_training.train_all_weights(
            lm, sequences, config.full, recomputed(here.compute), seed=config.seed, journal=here.folder, name=name,
            say=progress.note, on_step=lambda rows, real: progress.advance(rows, tokens=real),
        )[0]  # fmt: skip
    progress.phase(f"{name}: training", 1, "adapters")

    def adapt() -> Adapter:
        alone = Trainer(
            config.inner, here.loop.trainer.shapes, one_adapter(config, here), Chunk(1), watch=progress.training
        )
        adapters, losses = train(lm, [sequences], alone, seed=config.seed)
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
    progress.advance(1, adapters=1, tokens=config.inner.epochs * tokens, resumed=resumed)
    return lm._replace(params=lora.merge(lm.params, adapter))


def recomputed(compute: Compute) -> Compute:
    """How a step of full fine-tuning is computed: layers are always recomputed."""
    return dataclasses.replace(compute, remat=True)


def require_room_for_all_weights(config: Any, here: Session, sequences: Sequence[batching.Tokens]) -> None:
    """Raises ValueError where the devices' free memory does not hold a step of full fine-tuning."""
    assert here.speaker.model is not None
    longest = max((len(s.ids) for s in sequences), default=1)
    width = batching.bucket_widths(longest, here.compute.width_cuts)[-1]
    # The model that is given lies on the devices already: it is not in what is free.
    need = need_of_all_weights(config, here.speaker.model, here.compute, width, here.lm.mesh)._replace(base=0)
    full_training.require_memory(need, runtime.free_memory(here.compute.devices))


def need_of_all_weights(
    config: Any, model: ModelConfig, compute: Compute, width: int, mesh: Mesh | None
) -> full_training.Need:
    """What a step of full fine-tuning takes on each device, of sequences up to `width` tokens."""
    machine = runtime.machine(model, compute.devices, config.dtype, mesh=mesh)
    return full_training.need(model, config.full, recomputed(compute), machine, width=width)


def require_disk(config: Any, here: Session, *, rows: int) -> None:
    """Raises where the disk does not hold all weights of each row, with --method full."""
    if config.method == "full":
        assert here.speaker.model is not None
        size = full_training.disk(here.speaker.model, itemsize=runtime.itemsize(config.dtype))
        require_room(here.folder.path, needed=size * rows)


def one_adapter(config: Any, here: Session) -> Compute:
    """How the one adapter's steps are cut to the memory that is free: each device takes its share of a step's rows."""
    given, model, shapes = here.compute, here.speaker.model, here.loop.trainer.shapes
    share = dataclasses.replace(config.inner, batch_size=math.ceil(config.inner.batch_size / lanes(here.lm.mesh)))
    sizes = Writing(config.completions, here.loop.prompt_width, config.sampling.max_tokens, config.answer_tokens)
    alone = dataclasses.replace(given, chunk=1)
    assert model is not None
    return decided(
        here.folder,
        lambda: runtime.fit(model, share, shapes, alone, sizes, config.dtype, config.base, here.lm.mesh),
        "memory/training",
    )


def table(rows: list[list[Any]]) -> dict[str, Any]:
    """The table of what each row was trained on, from `row_of_table`."""
    return {
        "title": "What was trained on",
        "note": "Losses are means over an epoch, nats a token.",
        "columns": ["", "self-edits", "sequences", "tokens", "steps", "loss, first epoch", "loss, last epoch"],
        "rows": rows,
    }


def row_of_table(config: Any, here: Session, data: Corpus, text: Text, losses: Sequence[float]) -> list[Any]:
    """What a row was trained on, and its mean loss in the first and last epoch."""
    sequences = [s for row in sequences_of(here.lm, data.passages, text) for s in row]
    epochs = (config.full if config.method == "full" else config.inner).epochs
    first, last = evaluation.first_and_last(losses, epochs)
    edits, tokens = sum(map(len, text.edits)), sum(len(s.ids) for s in sequences)
    return [text.label, edits, len(sequences), tokens, len(losses), first, last]


def trials(data: Corpus, text: Text, scores: Sequence[Score], base: Sequence[Score]) -> list[list[Trial]]:
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


def prepare(config: Any, data: Corpus, model: Model) -> Prepared:
    """The domain and the sizes of all programs; in the plan, what each row trains."""
    if config.method == "full" and hosts.joined():
        raise ValueError(
            "--method full trains one model, on the devices of one process: start one (--distributed.join never), "
            "or use --method lora"
        )
    most = max(row_sequences(config).values())  # every program is compiled for so many
    ready = passages_of.prepare(
        config, model, data.passages, samples=config.completions, capacity=most,
        recorded=Recorded(data.external), parse=whole,
    )  # fmt: skip
    tuning = config.full if config.method == "full" else config.inner
    work = {
        name: (count, tuning.epochs * math.ceil(count / tuning.batch_size))
        for name, count in row_sequences(config).items()
    }
    sequences, steps = (sum(column) for column in zip(*work.values(), strict=True))
    work["together"] = sequences, steps
    rows = [f"{name:<34}{count:>11,}{taken:>12,}" for name, (count, taken) in work.items()]
    notes = [plan.section("Inner loop, at most", [f"{'row':<34}{'sequences':>11}{'steps':>12}", *rows])]
    if config.method == "full" and model.speaker.model is not None:
        width, mesh = ready.shapes.widths[-1], model.speaker.lm.mesh
        need = need_of_all_weights(config, model.speaker.model, model.compute, width, mesh)
        lines = full_training.lines(need, runtime.free_memory(model.compute.devices))
        notes.append(plan.section("Full fine-tuning, on each device", lines))
    return ready._replace(notes=notes)
