"""What every experiment shares: its settings, a model made ready in a run folder, and the command line.

An experiment is a config that inherits `RunConfig`, a flat function that works in a `Session`, and `main`:

    with session.opened(config, run_folder, "arc", prepare=..., ...) as run:
        base = run.try_base(tasks, name="held-out")
        ...
        return run.finish(rows)

What the experiments on passages share besides is in knowledge.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import re
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from seal_jax.analysis import paper
from seal_jax.engine import memory
from seal_jax.engine.constrained import Constraint
from seal_jax.engine.inner import Chunk
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.graders.choose import Judge
from seal_jax.io import hub
from seal_jax.nn.transformer import ModelConfig
from seal_jax.report.page import write_report
from seal_jax.run import plan, runtime
from seal_jax.run.journal import RunFolder, as_json, differences, digest, require_room, write_atomically
from seal_jax.run.metrics import MetricsWriter
from seal_jax.run.progress import Progress
from seal_jax.run.trackers import Tracker, require
from seal_jax.seal import evaluation
from seal_jax.seal.rest_em import Loop, Trial, try_base
from seal_jax.seal.rewards import Score, mean
from seal_jax.types import Domain, LanguageModel, Rate, Style, Task, require_at_least

LONGEST_NAME = 120  # characters of a run folder's name
JUDGED_BY = ("kind", "model", "dtype", "base_url")  # what of a grader its verdicts depend on
ROOM = 256 * 2**20  # bytes a run folder wants free: its checkpoints (one adapter a round), journal and report


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of every experiment. The defaults are the paper's where it has any."""

    preset: tyro.conf.Suppress[str]  # where it began
    model: str = "smollm2-135m"
    """smollm2-135m (embedded), a Hugging Face folder or hub id, or a GGUF file: Llama, SmolLM2, Qwen2, Qwen3."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen base model and the activations. Adapters and Adam are float32."""
    data: str = ""
    """What the tasks are read from."""
    style: Literal["auto", "raw", "chat"] = "auto"
    """raw continues text (base models); chat goes through the chat template (auto: where the model has one)."""
    sampling: Sampling = Sampling(max_tokens=512, temperature=1.0, top_p=0.95)
    """How self-edits are written (paper: T = 1, top-p 0.95; on ARC T = 0.8)."""
    write_chunk: int | None = None
    """Self-edits written at a time; by default as many as fit in memory."""
    answer_tokens: int = 64
    """The most new tokens of an answer, greedy (paper's code, on SQuAD: 64)."""
    inner: FineTuning = FineTuning()
    """The inner loop: how an adapter is trained on a self-edit."""
    seed: int = 0
    """Of everything that is drawn: tasks, self-edits, adapters, orders."""
    devices: int | None = None
    """Devices that adapters are spread over; by default all GPUs or TPUs, and a CPU's cores up to 4."""
    tracker: Tracker = Tracker()
    """Where metrics are shown, beside metrics.jsonl."""

    def __post_init__(self) -> None:
        require_at_least(1, answer_tokens=self.answer_tokens)
        if self.write_chunk is not None:
            require_at_least(1, write_chunk=self.write_chunk)


class Speaker(NamedTuple):
    """A model made ready, and how it is spoken to."""

    lm: LanguageModel
    model: ModelConfig
    style: Style
    render: Callable[[str], str]  # a prompt -> as it reads it


class Prepared(NamedTuple):
    """What an experiment makes of a model that has been loaded: its domain, and the sizes of its programs."""

    domain: Domain
    shapes: Shapes
    prompt_width: int  # tokens of a self-edit prompt
    judge: Judge
    writer: Speaker | None = None  # where another model writes the self-edits
    rate: Rate | None = None
    constraint: Constraint | None = None
    about: Callable[[Task], dict[str, Any]] = lambda task: {"passage": task.id}  # which task, in self_edits.jsonl


# ---------------------------------------------------------------------------------------------------------------------
# A run


@dataclasses.dataclass
class Session:
    """A run under way: the model, the loop's fixed parts, and what has been recorded so far."""

    experiment: str
    config: RunConfig
    command: str
    lm: LanguageModel  # that learns and answers
    model: ModelConfig  # of `lm`
    loop: Loop
    folder: RunFolder
    progress: Progress
    metrics: MetricsWriter
    judge: Judge
    started: float
    writer: Speaker  # of the self-edits: the same model, unless the experiment has another
    about: Callable[[Task], dict[str, Any]]  # which task a line of self_edits.jsonl is about
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # of self_edits.jsonl
    closing: list[str] = dataclasses.field(default_factory=list)  # printed once the progress display is gone
    ungraded: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def try_base(self, tasks: Sequence[Task], *, name: str, shown: str = "base model") -> list[Score]:
        """The tasks' questions to the model as it is. `shown` is what the display calls it."""
        scores = try_base(self.lm, tasks, self.loop, name=name, shown=shown)
        self.miss((task, score, {"stage": "base"}) for task, score in zip(tasks, scores, strict=True))
        return scores

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
            self.metrics.write(stage, 0, {"accuracy": accuracy, "log_likelihood": likely})

        self.folder.once(f"{stage}/metrics", record_metrics)  # not again when a run carries on

    def finish(self, rows: Sequence[dict[str, Any]], **parts: Any) -> dict[str, Any]:
        """Writes results.json and report.html, which the run ends by printing, and returns the results.

        `parts` are further entries of results.json: `rounds`, `tables`, `matrices`, and the experiment's own figures.
        """
        config = self.config
        settings = as_json(config)
        results = {
            "name": self.experiment,
            "preset": config.preset,
            "model": config.model,
            "data": config.data,
            "seed": config.seed,
            "settings": settings,
            "rows": paper.beside(rows, settings, self.experiment),
            "rounds": [],
            **parts,
            "ungraded": len(self.ungraded),
            "judge": self.judge.usage(),
            "timings": {**self.progress.timings(), "total": time.monotonic() - self.started},
            "machine": runtime.describe_machine(),
            "command": self.command,
        }
        write_atomically(self.folder.path / "results.json", json.dumps(results, indent=1))
        page = write_report(self.folder.path)
        shown = [evaluation.summary(rows)] if rows else []
        shown += [table_text(table) for table in parts.get("tables", ()) if not table.get("page_only")]
        said = self.judge.report()
        self.closing += ["\n\n".join(shown), *([said] if said else []), *self._missing(), f"Report: {page}"]
        return results

    def _missing(self) -> list[str]:
        if not self.ungraded:
            return []
        path, grader = self.folder.path / "ungraded.jsonl", getattr(self.config, "grader", None)
        judge = f" --grader.kind {grader.kind} --grader.model {grader.model}" if grader and grader.model else ""
        return [
            f"{len(self.ungraded)} answers were not graded; they count neither as right nor as wrong. "
            f"They are listed in {path}: python -m experiments.grade --answers {path}{judge}"
        ]


@contextlib.contextmanager
def opened(
    config: RunConfig,
    run_folder: Path,
    experiment: str,
    *,
    command: str,
    phases: Sequence[str],
    inputs: Any,
    prepare: Callable[[Speaker, RunFolder, Callable[[str], None]], Prepared],
    samples: int = 1,
    unit: str = "passages",
) -> Iterator[Session]:
    """A run of one experiment; carries on what was begun.

    Args:
      phases: the names that the progress display will show, in order.
      inputs: whatever was read from files; a run does not carry on over others.
      prepare: (the model, the run's folder, who is told of troubles) -> what the experiment makes of it.
      samples: self-edits a task, for the memory plan.
      unit: what the display calls the tasks.

    Raises:
      ValueError: a task that the model's context cannot hold, a folder of another config, a setting that is wrong.
      OSError: no room on the disk, or another process runs in the folder.
    """
    started = time.monotonic()
    require(config.tracker)
    require_room(run_folder, needed=ROOM)
    folder = RunFolder(run_folder, {**identity(config), "inputs": digest(inputs)})
    with contextlib.closing(folder):
        speaker = load(config, config.model)
        with (
            Progress(phases, title="SEAL", tasks=unit) as progress,
            MetricsWriter(
                folder.path, config.tracker, name=f"{experiment}-{config.preset}", settings=as_json(config),
                say=progress.note,
            ) as metrics,
        ):  # fmt: skip
            if folder.finished:
                progress.note(f"carrying on: {folder.finished} pieces of work were finished before")
            ready = prepare(speaker, folder, progress.note)
            cut = memory.Plan(  # decided once: a run that carries on with less memory free keeps its pieces
                *folder.once(
                    "memory", lambda: list(fit(config, speaker.model, ready.shapes, ready.prompt_width, samples))
                )
            )
            loop = Loop(
                ready.domain, cut.applied(config.inner), config.sampling,
                Chunk(cut.write_chunk, "self-edits", progress.note), config.answer_tokens, ready.shapes,
                ready.prompt_width, config.seed, Chunk(cut.chunk, "adapters", progress.note, progress.steps),
                folder, progress, ready.rate, ready.constraint,
            )  # fmt: skip
            session = Session(
                experiment, config, command, speaker.lm, speaker.model, loop, folder, progress, metrics,
                ready.judge, started, ready.writer or speaker, ready.about,
            )  # fmt: skip
            yield session
    print(*session.closing, sep="\n")


def load(config: RunConfig, name: str) -> Speaker:
    """A model by name, and the form in which it is spoken to: that of `config.style`.

    Raises:
        ValueError: a chat style for a model without a chat template.
    """
    lm, chat, model = runtime.load_language_model(name, config.dtype, config.devices)
    return Speaker(lm, model, *runtime.in_style(config.style, chat, name))


def identity(config: RunConfig) -> dict[str, Any]:
    """What makes a run the same run: all settings but where metrics go and how a judge elsewhere is spoken to."""
    settings = as_json(config)
    del settings["tracker"]
    if "grader" in settings:
        settings["grader"] = {name: settings["grader"][name] for name in JUDGED_BY}
    return settings


def fit(config: RunConfig, model: ModelConfig, shapes: Shapes, prompt_width: int, samples: int) -> memory.Plan:
    """How the run is cut to the memory that is free."""
    return runtime.fit(
        model,
        config.inner,
        shapes,
        max_tokens=config.answer_tokens,
        prompt_width=prompt_width,
        samples=samples,
        written_tokens=config.sampling.max_tokens,
        write_chunk=config.write_chunk,
        dtype=config.dtype,
        devices=config.devices,
    )


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Records as JSON lines, the old file or the new one."""
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def cut(text: str, width: int) -> str:
    """A text on one line, shortened at a word where it is long, within one that is longer than all."""
    short = textwrap.shorten(text, width, placeholder=" ...")
    return short if short != "..." else f"{text.strip()[: width - 4]} ..."


def table_text(table: Mapping[str, Any]) -> str:
    """A table of results.json, for a terminal: cells cut to the table's `widths`, if it has some."""

    def text(cell: Any) -> str:
        return "" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)

    lines = [[str(name) for name in table["columns"]], *([text(cell) for cell in row] for row in table["rows"])]
    if most := table.get("widths"):
        lines = [[cut(cell, width) for cell, width in zip(line, most, strict=True)] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))])
        for first, *rest in lines
    ]
    return "\n".join(
        [table["title"], *(line.rstrip() for line in shown), *([table["note"]] if table.get("note") else [])]
    )


# ---------------------------------------------------------------------------------------------------------------------
# The plan of a run, without running it


def describe(
    config: RunConfig,
    data_lines: Sequence[str],
    work: Sequence[plan.Work],
    shapes: Shapes,
    prompt_width: int,
    run_folder: Path,
    *,
    samples: int = 1,
) -> str:
    """What a run reads, trains and needs. Loads no weights, so `shapes` and `prompt_width` are estimates."""
    location, model = hub.locate(config.model), plan.read_config(config.model)
    needs = ["unknown until the model is here: its shape is in its files"]
    if model is not None:
        needs = describe_memory(config, model, shapes, prompt_width, samples)
    fetched = "on this machine" if location.cached else "to be fetched"
    devices = runtime.device_count(config.devices)
    return "\n".join(
        [
            plan.section("Model", [f"{config.model}: {location.source}, {fetched}", str(location.path), config.dtype]),
            plan.section("Data", data_lines),
            plan.section("Inner loop, at most", plan.table(work)),
            plan.section(f"Memory on each of {devices} devices, about", needs),
            plan.section("Run folder", [str(run_folder.absolute()), "holds a run" if run_folder.exists() else "new"]),
        ]
    )


def describe_memory(
    config: RunConfig, model: ModelConfig, shapes: Shapes, prompt_width: int, samples: int
) -> list[str]:
    """How the run would be cut to the memory that is free, and what its two hungriest phases would then need."""
    devices, size = runtime.device_count(config.devices), runtime.itemsize(config.dtype)
    cut = fit(config, model, shapes, prompt_width, samples)
    inner, each = cut.applied(config.inner), math.ceil(cut.chunk / devices)
    training = memory.training(model, inner, adapters=each, width=shapes.widths[-1], itemsize=size)
    answering = memory.answering(
        model, inner, shapes, adapters=each, max_tokens=config.answer_tokens, itemsize=size
    )  # fmt: skip
    free = runtime.free_memory(config.devices)
    return [
        f"{cut.chunk} adapters at a time over all devices ({each} on each), {cut.write_chunk} self-edits written at a "
        f"time; layers are {'recomputed' if cut.remat else 'kept'}, loss over {cut.loss_chunk} tokens",
        "",
        f"inner loop, a step of {each} x {shapes.widths[-1]} tokens (the longest there can be)",
        *memory.lines(training, free),
        "",
        f"answers, {each} x {shapes.questions} questions",
        *memory.lines(answering, free),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The command line


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a run is kept, and whether to run at all. No part of its config."""

    run_folder: Path | None = None
    """Kept here; the same command on the same folder carries on (default: runs/EXPERIMENT-PRESET, and what differs)."""
    dry_run: bool = False
    """Print what would be done, loaded and needed, and load no weights."""


class Experiment(NamedTuple):
    """What `main` needs of one."""

    name: str
    description: str
    presets: Mapping[str, tuple[str, Any]]  # a sentence on each, and its config; the first is the default
    plan: Callable[[Any, Path], str]
    run: Callable[[Any, Path, str], Any]  # config, run folder, command line
    called: Callable[[Any], str] | None = None  # what its run folder's name begins with; by default it and the preset
    unnamed: Sequence[str] = ()  # settings that are not in that name: a folder is kept when they change


def parse(experiment: Experiment, arguments: Sequence[str]) -> tuple[Any, Run]:
    """`[preset] [--typed.overrides]`; without a preset, the first. Exits with a suggestion at a typo."""
    presets = experiment.presets
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = [next(iter(presets)), *arguments]
    config_type = type(next(iter(presets.values()))[1])
    unnamed = tyro.conf.arg(name="")
    command = dataclasses.make_dataclass(
        "Command",
        [("config", Annotated[config_type, unnamed]), ("run", Annotated[Run, unnamed], Run())],
        frozen=True,
    )
    prog, (first, *rest) = f"python -m experiments.{experiment.name}", arguments
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if first in presets:  # parsed by itself, so that a suggestion is of this one and not of all
                text, config = presets[first]
                parsed: Any = tyro.cli(
                    command, default=command(config), prog=f"{prog} {first}", args=rest, description=text
                )
            else:
                commands = tyro.extras.subcommand_type_from_defaults(
                    {name: command(config) for name, (_, config) in presets.items()},
                    {name: text for name, (text, _) in presets.items()},
                )
                parsed = tyro.cli(
                    commands, prog=prog, args=arguments,
                    description=f"{experiment.description}\nAll options: {prog} {next(iter(presets))} --help",
                )  # fmt: skip
    finally:
        sys.stderr.write(_readable(said.getvalue()))
    return parsed.config, parsed.run


def _readable(said: str) -> str:
    """What tyro says of a value that a config refuses, with the option's name; the box stays one."""
    lines = []
    for line in said.splitlines():
        plain = line.replace("Error parsing config.", "Error parsing --").replace("Error parsing config:", "Error:")
        if plain != line and plain.endswith("│"):
            plain = plain.removesuffix("│").ljust(len(line) - 1) + "│"
        lines.append(f"{plain}\n")
    return "".join(lines)


def folder_name(experiment: Experiment, config: Any) -> str:
    """The run folder where none is given: after the preset, and each setting that is not as the preset has it.

    So that another command has another folder, and the same command the same.
    """
    start = experiment.called(config) if experiment.called else f"{experiment.name}-{config.preset}"
    parts = [start.replace("_", "-")]
    for setting, _, value in differences(identity(experiment.presets[config.preset][1]), identity(config)):
        if setting.partition(".")[0] not in experiment.unnamed:
            values = value if isinstance(value, list) else [value]
            parts += [setting.replace("_", "-"), *(str(v).rstrip("/").rpartition("/")[2] for v in values)]
    name = re.sub(r"[^\w.+-]+", "-", "-".join(parts))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{digest(parts)[:8]}"


def command_of(experiment: str, arguments: Sequence[str]) -> str:
    """The command that gives the same results: without the folder they are kept in."""
    kept: list[str] = []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        if not (_is_folder(previous) or _is_folder(argument.partition("=")[0])):
            kept.append(argument)
    return shlex.join(["python", "-m", f"experiments.{experiment}", *kept])


def _is_folder(argument: str) -> bool:
    return argument.replace("_", "-") == "--run-folder"


def main(experiment: Experiment, arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback, and so does Ctrl-C."""
    try:
        config, where = parse(experiment, arguments)
        run_folder = where.run_folder or Path("runs") / folder_name(experiment, config)
        runtime.start(config.devices)
        if where.dry_run:
            print(experiment.plan(config, run_folder))
        else:
            experiment.run(config, run_folder, command_of(experiment.name, arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command carries on", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0
