"""A run of one experiment: a model made ready, the loop's fixed parts, and what is kept on disk.

An experiment is a typed config and four functions (`Experiment`); `execute` runs it in its folder, `describe` says what
it would do. The command line is in command.py, what experiments on passages share in passages.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import tyro

from seal_jax.analysis import paper
from seal_jax.engine.chunks import Chunk
from seal_jax.engine.constrained import Constraint
from seal_jax.engine.memory import Writing
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes, Trainer
from seal_jax.graders.choose import Connection, Judge
from seal_jax.io import fingerprint
from seal_jax.report.page import write_report
from seal_jax.run import hosts, plan, runtime, settings
from seal_jax.run.hosts import Distributed
from seal_jax.run.journal import (
    PLAN,
    Line,
    RunFolder,
    as_json,
    differences,
    digest,
    read_lines,
    require_room,
    write_atomically,
)
from seal_jax.run.judges import make_judge
from seal_jax.run.plan import Most, Stage
from seal_jax.run.progress import Progress, clock
from seal_jax.run.runtime import Speaker
from seal_jax.run.terminal import shell_command, show
from seal_jax.run.trackers import MetricsWriter, Tracker, require
from seal_jax.seal import evaluation
from seal_jax.seal.outer import LEARNING, TRYING, until_learning
from seal_jax.seal.rewards import Score, Trial, mean
from seal_jax.seal.rounds import Loop, before_learning, try_base, try_self_edits
from seal_jax.types import Base, Compute, Domain, Journal, LanguageModel, Rate, SelfEdit, Task, require_at_least

TERMINAL = 100  # columns that a table is made to fit
ROOM = 256 * 2**20  # bytes a run folder wants free: its checkpoints (one adapter a round), journal and report


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What changes the figures of a run: its identity. The defaults are the paper's where it has any."""

    preset: tyro.conf.Suppress[str]  # where it began
    model: str = "smollm2-135m"
    """smollm2-135m (embedded), a Hugging Face folder or hub id, or a GGUF file: Llama, SmolLM2, Qwen2, Qwen3."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen base model and the activations. Adapters and Adam are float32."""
    base: Base = "full"
    """How the matrices of the base model's layers are kept: in full as --dtype, or in 8 or 4 bits by qwix."""
    data: str = ""
    """What the tasks are read from."""
    style: Literal["auto", "raw", "chat"] = "auto"
    """raw continues text (base models); chat goes through the chat template (auto: where the model has one)."""
    sampling: Sampling = Sampling(max_tokens=512, temperature=1.0, top_p=0.95)
    """How self-edits are written (paper: T = 1, top-p 0.95; on ARC T = 0.8)."""
    answer_tokens: int = 64
    """The most new tokens of an answer, greedy (paper's code, on SQuAD: 64)."""
    inner: FineTuning = FineTuning()
    """The inner loop: how an adapter is trained on a self-edit."""
    seed: int = 0
    """Of what is drawn while it runs: self-edits, adapters, orders. Not of the tasks, so that seeds can be compared."""
    data_seed: int = 0
    """Of which tasks are drawn, held-out ones too, and in which order."""

    def __post_init__(self) -> None:
        require_at_least(1, answer_tokens=self.answer_tokens)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is kept and shown, and whether to run at all: no figure depends on it."""

    run_folder: Path | None = None
    """Kept here; the same command on the same folder carries on (default: runs/EXPERIMENT-PRESET, and what differs)."""
    begin_as: Path | None = None
    """Another run's folder, of the same settings but for how its outer loop learns: what it finished before it learned
    anything, the first round's self-edits and their rewards with it, is taken over and not done again. Its plan of how
    many are trained and written at a time is, too."""
    replicas: int = 1
    """Runs of as many seeds, from --seed on, each in a folder of its own; their spread is printed at the end."""
    dry_run: bool = False
    """Print what would be done, loaded and needed, and load no weights."""
    tracker: Tracker = Tracker()
    """Where metrics are shown, beside metrics.jsonl."""
    judge: Connection = Connection()
    """How a judge that is a model is reached."""
    distributed: Distributed = Distributed()
    """Other processes, on this machine or elsewhere, that share the run."""

    def __post_init__(self) -> None:
        require_at_least(1, replicas=self.replicas)
        if self.begin_as is not None and self.replicas > 1:
            raise ValueError(f"--begin-as {self.begin_as}: a run has one seed; leave --replicas out")


class Preset(NamedTuple):
    """A named choice of settings."""

    text: str  # a sentence, for --help
    config: Any
    compute: Compute = Compute()


class Data(Protocol):
    """What an experiment reads before it knows the model."""

    @property
    def inputs(self) -> list[Any]:
        """All that was read from files: a run does not carry on over others."""

    @property
    def lines(self) -> list[str]:
        """The data, for people to read."""

    @property
    def stages(self) -> list[Stage]:
        """What the run will do, in order."""


class Prepared(NamedTuple):
    """What an experiment makes of its data and a model: its domain, and the sizes of its programs."""

    domain: Domain
    shapes: Shapes
    prompt_width: int  # tokens of a self-edit prompt
    most: Most  # the longest self-edit, for the plan
    samples: int = 1  # self-edits a task that are written at a time
    writer: Speaker | None = None  # where another model writes the self-edits
    rate: Rate | None = None
    constraint: Constraint | None = None
    about: Callable[[Task], dict[str, Any]] = lambda task: {"passage": task.id}  # which task, in self_edits.jsonl
    notes: Sequence[str] = ()  # sections of the plan
    lesson: Any = None  # whatever else the experiment's run wants of it


class Model(NamedTuple):
    """What `Experiment.prepare` gets: the model that learns, a way to load another, and the judge."""

    speaker: Speaker
    load: Callable[[str], Speaker]
    judge: Judge
    compute: Compute


class Experiment(NamedTuple):
    """One experiment: its settings, and what it does with them."""

    name: str
    description: str
    presets: Mapping[str, Preset]  # the first is the default
    read: Callable[[Any], Any]  # config -> Data
    prepare: Callable[[Any, Any, Model], Prepared]  # config, data, model
    run: Callable[[Session, Any], dict[str, Any]]  # session, data -> results
    unit: str = "passages"  # what the display calls the tasks
    called: Callable[[Any], str] | None = None  # what its run folder's name begins with; by default it and the preset
    unnamed: Sequence[str] = ()  # settings that are not in that name: a folder is kept when they change
    execute: Callable[..., dict[str, Any]] | None = None  # in place of `execute` below: an experiment of several runs
    describe: Callable[..., str] | None = None  # in place of `describe` below


# ---------------------------------------------------------------------------------------------------------------------
# A run


@dataclasses.dataclass
class Session:
    """A run under way: the model, the loop's fixed parts, and what has been recorded so far."""

    experiment: str
    config: Any  # the experiment's RunConfig
    command: str
    lm: LanguageModel  # that learns and answers
    speaker: Speaker  # of `lm`
    loop: Loop
    folder: RunFolder
    progress: Progress
    metrics: MetricsWriter
    judge: Judge
    writer: Speaker  # of the self-edits: the same model, unless the experiment has another
    compute: Compute  # as given: what it left open is decided in `loop`
    about: Callable[[Task], dict[str, Any]]  # which task a line of self_edits.jsonl is about
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # of self_edits.jsonl
    closing: list[str] = dataclasses.field(default_factory=list)  # printed once the progress display is gone
    afterwards: list[Callable[[], None]] = dataclasses.field(default_factory=list)  # called after that
    lesson: Any = None  # `Prepared.lesson`
    ungraded: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def try_base(self, tasks: Sequence[Task], *, name: str, shown: str = "base model") -> list[Score]:
        """The tasks' questions to the model as it is. `shown` is what the display calls it."""
        scores = try_base(self.lm, tasks, self.loop, name=name, shown=shown)
        self.miss((task, score, {"stage": "base"}) for task, score in zip(tasks, scores, strict=True))
        return scores

    def try_edits(
        self, tasks: Sequence[Task], edits: Sequence[Sequence[SelfEdit]], base: Sequence[Score], *, name: str, row: str
    ) -> list[list[Trial]]:
        """An adapter for each self-edit, tried and recorded; `name` is the stage's, `row` the one of the results."""
        seeds = self.config.evaluation.seeds
        trials = try_self_edits(self.lm, tasks, edits, base, self.loop, seeds=seeds, name=name)
        self.record(row, trials)
        return trials

    def miss(self, tried: Iterable[tuple[Task, Score, dict[str, Any]]]) -> None:
        """Adds the answers without a verdict, of tasks with what says where they come from, to ungraded.jsonl."""
        before = len(self.ungraded)
        for task, score, where in tried:
            if None in score.verdicts:
                self.ungraded += evaluation.ungraded(task, self.loop.domain.queries(task), score, **where)
        if len(self.ungraded) > before:
            write_lines(self.folder.path / "ungraded.jsonl", self.ungraded)

    def record(
        self, stage: str, trials: Sequence[Sequence[Trial]], keep: Any = None, sft: Sequence[float] = ()
    ) -> None:
        """A finished stage's self-edits and metrics, on disk at once."""
        for p, row in enumerate(trials):
            queries = self.loop.domain.queries(row[0].task) if row else []
            for k, trial in enumerate(row):
                kept = bool(keep is not None and keep[p, k])
                self.records.append(evaluation.trial_record(stage, trial, queries, kept, self.about(trial.task)))
        write_lines(self.folder.path / "self_edits.jsonl", self.records)
        self.miss(
            (trial.task, score, {"stage": stage, "sample": trial.sample, "training_seed": seed})
            for row in trials
            for trial in row
            for seed, score in enumerate(trial.scores)
        )

        def record_metrics() -> None:
            for step, loss in enumerate(evaluation.mean_losses(trials)):
                self.metrics.write(f"{stage}/inner loop", step, {"loss": loss})
            for step, loss in enumerate(sft):
                self.metrics.write(f"{stage}/sft", step, {"loss": loss})
            accuracy, likely = (mean(getattr(t, f) for r in trials for t in r) for f in ("accuracy", "log_likelihood"))
            self.metrics.write(*curve(stage), {"accuracy": accuracy, "log_likelihood": likely})

        self.folder.once(f"{stage}/metrics", record_metrics)  # not again when a run carries on

    def finish(self, rows: Sequence[dict[str, Any]], **parts: Any) -> dict[str, Any]:
        """Writes results.json and report.html, which the run ends by printing, and returns the results.

        `parts` are further entries of results.json: `rounds`, `tables`, `matrices`, and the experiment's own figures.
        """
        config = self.config
        settings = as_json(config)
        self.folder.once("finished", lambda: {"experiment": self.experiment, "validation": parts.get("validation")})
        results = {
            "name": self.experiment,
            "preset": config.preset,
            "model": config.model,
            "data": config.data,
            "seed": config.seed,
            "settings": settings,
            "compute": as_json(self.compute),
            "rows": paper.beside(rows, settings, self.experiment),
            "rounds": [],
            **parts,
            "ungraded": len(self.ungraded),
            "judge": self.judge.usage(),
            "timings": self.folder.timings,
            "machine": runtime.describe_machine(),
            "command": self.command,
        }
        write_atomically(self.folder.path / "results.json", json.dumps(results, indent=1))
        page = write_report(self.folder.path)
        shown = [evaluation.summary(rows)] if rows else []
        shown += [table_text(table) for table in parts.get("tables", ()) if not table.get("page_only")]
        said = self.judge.report()
        took = f"Time in all: {clock(self.folder.timings.get('total', 0.0))}"
        self.closing += ["\n\n".join(shown), *([said] if said else []), *self._missing(), took, f"Report: {page}"]
        return results

    def _missing(self) -> list[str]:
        if not self.ungraded:
            return []
        path, grader = self.folder.path / "ungraded.jsonl", getattr(self.config, "grader", None)
        judge = f" --grader.kind {grader.kind} --grader.model {grader.model}" if grader and grader.model else ""
        return [
            f"{len(self.ungraded)} answers were not graded; they count neither as right nor as wrong. "
            f"They are listed in {path}: {shell_command('grade', '--answers', str(path))}{judge}"
        ]


def execute(experiment: Experiment, config: Any, compute: Compute, place: Place, *, command: str) -> dict[str, Any]:
    """One run, from data to report.html. Carries on where an earlier run of the same config stopped.

    Raises:
        ValueError: a task that the model's context cannot hold, a folder of another config, a setting that is wrong.
        OSError: no room on the disk, or another process runs in the folder.
    """
    started = time.monotonic()
    assert place.run_folder is not None  # the command line names one
    data = experiment.read(config)
    require(place.tracker)
    require_room(place.run_folder, needed=ROOM)
    what = {"experiment": experiment.name, **identity(config, data), "weights": weights_of(config)}
    with contextlib.closing(RunFolder(place.run_folder, what)) as folder:
        settings.write(folder.path, experiment.name, config, compute)
        show(opening(experiment.name, config, compute, place.run_folder))
        taken = folder.take_over(hosts.shared([] if hosts.follows() else beginning(place.begin_as, what)))
        load = speaker_of(config, compute)
        speaker = load(config.model)
        stages = [shown for stage in data.stages for shown in stage.shown()]
        name = f"{experiment.name}-{config.preset}"
        with (
            Progress(stages, tasks=experiment.unit) as progress,
            MetricsWriter(
                folder.path, place.tracker, name=name, settings=as_json(config), say=progress.note
            ) as metrics,
        ):
            folder.say, folder.clock = progress.note, lambda: progress.timings() | {"total": time.monotonic() - started}
            if group := hosts.joined():
                progress.note(f"{group.count} processes, each with {runtime.device_count(compute.devices)} devices")
            if folder.finished:
                progress.note(f"carrying on: {folder.finished} pieces of work were finished before")
            if taken:
                progress.note(f"{taken} pieces of work taken over from {place.begin_as}")
            judge = judge_of(config, compute, place, progress.note)
            ready = experiment.prepare(config, data, Model(speaker, load, judge, compute))
            cut = decided(folder, partial(fit, config, speaker, ready, compute))
            chunk = Chunk(cut.answer_chunk or 1, "answering adapters", progress.note)
            trainer = Trainer(config.inner, ready.shapes, cut, chunk, watch=progress.training)
            loop = Loop(
                ready.domain, trainer, config.sampling, ready.prompt_width,
                Chunk(cut.write_chunk or 1, "self-edits", progress.note), config.answer_tokens, config.seed,
                folder, progress, ready.rate, ready.constraint,
            )  # fmt: skip
            session = Session(
                experiment.name, config, command, speaker.lm, speaker, loop, folder, progress, metrics, judge,
                ready.writer or speaker, compute, ready.about, lesson=ready.lesson,
            )  # fmt: skip
            results = experiment.run(session, data)
    show(*session.closing)
    for last in [] if hosts.follows() else session.afterwards:
        last()
    return results


def beginning(path: Path | None, config: Mapping[str, Any]) -> list[Line]:
    """What a run finished before it learned anything in a round, for another of `config`, which may learn otherwise.

    Raises:
        ValueError: it is no run folder of this version, or damaged; it differs in more than that; no outer loop.
    """
    if path is None:
        return []
    there, lines = read_lines(path)
    if "outer" not in config or there["experiment"] != config["experiment"]:
        raise ValueError(
            f"--begin-as {path}: a run of {there['experiment']}; expected one of {config['experiment']}, and an "
            "experiment with an outer loop"
        )

    def common(settings: Mapping[str, Any]) -> dict[str, Any]:
        until = {**settings, "outer": until_learning(settings["outer"])}
        return {name: value for name, value in until.items() if name not in ("schema", "preset")}

    for name, theirs, ours in differences(common(there), json.loads(json.dumps(common(config)))):
        raise ValueError(
            f"--begin-as {path}: {name} is {theirs!r} there and {ours!r} here; only how the outer loop learns from "
            f"what it tried may differ (--outer.method {', '.join(TRYING)}, and {', '.join(LEARNING)} of --outer)"
        )
    return [line for line in lines if line.name == PLAN or before_learning(line.name)]


def opening(name: str, config: RunConfig, compute: Compute, folder: Path) -> str:
    """The line that a run begins with: what is run on what, and where it is kept."""
    precision = config.dtype if config.base == "full" else f"{config.base}, all else {config.dtype}"
    read, devices = f" on {config.data}" if config.data else "", runtime.device_name(compute.devices)
    return f"{name} {config.preset}: {config.model} ({precision}){read}; {devices}; seed {config.seed}; {folder}"


def describe(experiment: Experiment, config: Any, compute: Compute, place: Place) -> str:
    """What a run reads, trains and needs. It is prepared as it would be, with the model's tokenizer and no weights."""
    assert place.run_folder is not None  # the command line names one
    data = experiment.read(config)
    if place.begin_as is not None:
        beginning(
            place.begin_as, {"experiment": experiment.name, **identity(config, data), "weights": weights_of(config)}
        )
    load = speaker_of(config, compute, with_weights=False)
    speaker = load(config.model)
    ready = experiment.prepare(config, data, Model(speaker, load, NO_JUDGE, compute))
    needs = ["unknown until the model is here: its shape is in its files"]
    if speaker.model is not None:
        needs = plan.memory_lines(
            speaker.model, config.inner, ready.shapes, compute, writing(config, ready), config.dtype, config.base,
            speaker.lm.mesh,
        )  # fmt: skip
    devices = runtime.device_count(compute.devices)
    lacking = plan.missing(getattr(config, "grader", None), place.judge, place.tracker)
    work = plan.work_table(data.stages, config.inner, ready.most)
    return "\n".join(
        [
            plan.section("Model", plan.model_lines(config.model, config.dtype, config.base)),
            plan.section("Data", data.lines),
            *([plan.section("Inner loop, at most", work)] if len(work) > 2 else []),
            plan.section(f"Memory on each of {devices} devices, about", needs),
            *ready.notes,
            *([plan.section("Missing, without which it will not run", lacking)] if lacking else []),
            plan.section("Run folder", plan.folder_lines(place.run_folder)),
        ]
    )


NO_JUDGE = Judge(lambda queries, answers: [None] * len(queries), lambda pairs: [None] * len(pairs), lambda: None, dict)
"""Of a domain that grades itself, and of a plan: it is asked nothing."""


def speaker_of(config: RunConfig, compute: Compute, *, with_weights: bool = True) -> Callable[[str], Speaker]:
    """A function that loads a model by name, in the run's precision and style."""
    return lambda name: runtime.load(
        name, dtype=config.dtype, style=config.style, devices=compute.devices, base=config.base, mesh=compute.mesh,
        with_weights=with_weights,
    )  # fmt: skip


def judge_of(config: RunConfig, compute: Compute, place: Place, say: Callable[[str], None]) -> Judge:
    """The judge that an experiment's config names; one that is asked nothing where it names none."""
    grader = getattr(config, "grader", None)
    if grader is None or (hosts.follows() and grader.kind != "lexical"):  # process 0 asks
        return NO_JUDGE
    assert place.run_folder is not None
    return make_judge(grader, place.judge, cache=place.run_folder / "judge.jsonl", devices=compute.devices, say=say)


def decided(folder: Journal, fit: Callable[[], Compute], name: str = "memory") -> Compute:
    """How the run is cut to memory: decided once, so that one that carries on with less memory keeps its pieces."""
    kept = folder.once(name, lambda: as_json(fit()))
    return Compute(**{**kept, "width_cuts": tuple(kept["width_cuts"])})


def fit(config: RunConfig, speaker: Speaker, ready: Prepared, compute: Compute) -> Compute:
    """How the run is cut to the memory that is free now."""
    assert speaker.model is not None  # it has been loaded
    sizes = writing(config, ready)
    return runtime.fit(
        speaker.model, config.inner, ready.shapes, compute, sizes, config.dtype, config.base, speaker.lm.mesh
    )


def writing(config: RunConfig, ready: Prepared) -> Writing:
    """The sizes of what the run writes."""
    return Writing(ready.samples, ready.prompt_width, config.sampling.max_tokens, config.answer_tokens)


def identity(config: RunConfig, data: Data) -> dict[str, Any]:
    """What makes a run the same run, as far as it is known without the model: its config, and what it read."""
    return {**as_json(config), "inputs": digest(data.inputs)}


def weights_of(config: RunConfig) -> dict[str, str]:
    """Fingerprints of the models that a config names: other weights at the same path are another run."""
    grader = getattr(config, "grader", None)
    judge = grader.model if grader is not None and grader.kind == "model" else None
    named = {"model": config.model, "writer": getattr(config, "writer", None), "grader": judge}
    return {field: fingerprint.of_model(name) for field, name in named.items() if name}


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Records as JSON lines, the old file or the new one."""
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def curve(stage: str) -> tuple[str, int]:
    """The phase and the step of a stage's figures: those of all rounds are one curve, a step a round."""
    match = re.fullmatch(r"(.*), (?:before RL|after round (\d+))|(.*?)[ _]?round[ _](\d+)", stage)
    return (match[1] or match[3] or "rounds", int(match[2] or match[4] or 0)) if match else (stage, 0)


def cut(text: str, width: int) -> str:
    """A text on one line, shortened at a word where it is long, within one that is longer than all."""
    short = textwrap.shorten(text, width, placeholder=" ...")
    return short if short != "..." else f"{text.strip()[: width - 4]} ..."


def table_text(table: Mapping[str, Any]) -> str:
    """A table of results.json, for a terminal: cells cut to the table's `widths`, if it has some.

    Where it is wider than `TERMINAL`, names of columns take several lines, and where that is not enough what a row is
    stands above its figures.
    """

    def text(cell: Any) -> str:
        return "" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)

    names, *rows = [list(map(str, table["columns"])), *([text(cell) for cell in row] for row in table["rows"])]
    if most := table.get("widths"):
        names, *rows = [[cut(cell, width) for cell, width in zip(row, most, strict=True)] for row in [names, *rows]]
    head, labels, note = [names], list[str](), [table["note"]] if table.get("note") else []
    if _width([names, *rows]) > TERMINAL:
        note = [textwrap.fill(line, TERMINAL) for line in note]
        folded = [textwrap.wrap(name, max([10, *(len(row[i]) for row in rows)])) for i, name in enumerate(names)]
        deep = max(map(len, folded))
        head = [list(line) for line in zip(*([""] * (deep - len(name)) + name for name in folded), strict=True)]
    if _width([*head, *rows]) > TERMINAL:
        labels = [row[0] for row in rows]
        head, rows = ([["", *row[1:]] for row in part] for part in (head, rows))
    shown = _columns([*head, *rows])
    if labels:
        body = zip(labels, shown[len(head) :], strict=True)
        shown = [*shown[: len(head)], *(line for pair in body for line in pair)]
    return "\n".join([table["title"], *shown, *note])


def _width(rows: Sequence[Sequence[str]]) -> int:
    return max(map(len, _columns(rows)))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    parts = ([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows)
    return ["  ".join(part).rstrip() for part in parts]
