"""Continual self-edits: streams of passages, each merged into the weights before the next, and what is forgotten.

    python -m experiments.continual demo                     # 2 CPU cores: minutes; a 135M model, invented facts
    python -m experiments.continual paper                    # 64 streams of 8: a GPU that holds Qwen2.5-7B
    python -m experiments.continual smoke                    # a minute; shows that everything runs, and no more
    python -m experiments.continual demo --options none replay+kl --replay None --kl 0.3

After each edit the model is asked about all passages of its stream: row r, column c of the matrix is the accuracy on
passage c after edit r. The paper has this for plain merging (`--options none`): 30.7 % before, 41.5 % on each passage
right after its own edit, 24.7 % on all after the last. The other options are answers to that forgetting which the paper
leaves open: `replay` trains again on earlier self-edits, `kl` holds each edit close to the model before it, `gate`
merges only what brings at least what it costs, reckoned on training lines alone; any of them join with a plus. All
options meet the same streams and the same draws, and are compared stream by stream.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from seal_jax.analysis.statistics import Interval, bootstrap_mean, paired_bootstrap
from seal_jax.domains import squad
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.nn.lora import PROJECTIONS
from seal_jax.run import knowledge, plan, session
from seal_jax.run.knowledge import Knowledge
from seal_jax.run.session import Experiment
from seal_jax.seal import continual
from seal_jax.seal.continual import MERGED, Figures, Retention, Stream
from seal_jax.seal.rest_em import Trial
from seal_jax.seal.rewards import Score
from seal_jax.types import Task, require_at_least

OPTIONS = ("none", "replay", "kl", "gate")


def retention(config: Config, option: str) -> Retention:
    """What an option's name stands for.

    Raises:
        ValueError: an unknown name, or none joined with another.
    """
    parts = option.split("+")
    for part in parts:
        if part not in OPTIONS:
            close = difflib.get_close_matches(part, OPTIONS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(OPTIONS)}, or some joined by a plus"
            raise ValueError(f"--options {option}: there is no option {part!r}; {hint}")
    if "none" in parts and len(parts) > 1:
        raise ValueError(f"--options {option}: none cannot be joined with another")
    return Retention(
        replay=config.replay if "replay" in parts else 0,
        kl=config.kl if "kl" in parts else 0.0,
        gate="gate" in parts,
    )


@dataclasses.dataclass(frozen=True)
class Config(Knowledge):
    """The streams, and what is done against forgetting."""

    split: Literal["train", "held_out"] = "held_out"
    """Which passages of a data set that has both; a file is taken whole."""
    streams: int = 64
    """Streams, side by side on the adapter axis (paper: 64). No passage is in two of them."""
    stream_length: int = 8
    """Passages of a stream (paper: 8)."""
    options: tuple[str, ...] = ("none",)
    """What to compare: none, replay, kl, gate, or several of the last three joined by a plus (replay+kl)."""
    replay: int | None = 2
    """Of option replay: earlier self-edits trained on again with each new one; None: all of the stream's."""
    kl: float = 0.1
    """Of option kl: the weight of KL(before || now), nats a token, beside the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, streams=self.streams, stream_length=self.stream_length)
        if not self.options or len(set(self.options)) < len(self.options):
            raise ValueError(f"--options {' '.join(self.options)}: expected one or more, none of them twice")
        for name in self.options:
            retention(self, name)


# Departures from the paper are those of experiments.squad. Streams are trained 16 at a time: each holds the adapters of
# all its edits (at 7B, q and v: 0.3 GiB), and is read by as many rows as it has questions.
PAPER = Config(
    "paper", model="Qwen/Qwen2.5-7B", dtype="bfloat16", data="squad", style="raw", inner=FineTuning(chunk=16)
)

DEMO = Config(
    "demo",
    prompt="facts",
    sampling=Sampling(max_tokens=96, temperature=0.7, top_p=0.95),
    answer_tokens=24,
    max_sequences=6,
    inner=FineTuning(projections=PROJECTIONS, rank=16, alpha=32.0, epochs=6, chunk=8, width_cuts=(24, 32, 96)),
    split="train",
    streams=8,
    stream_length=4,
    options=OPTIONS,
    replay=1,
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    sampling=Sampling(max_tokens=24),
    answer_tokens=8,
    max_sequences=3,
    inner=FineTuning(epochs=1, chunk=2, width_cuts=(96,)),
    streams=2,
    stream_length=2,
)

PRESETS = {
    "demo": ("Minutes on 2 CPU cores: a 135M model, invented facts, all options.", DEMO),
    "paper": ("The paper's streams and inner loop, nothing done against forgetting.", PAPER),
    "smoke": ("Two streams of two, as small as it goes.", SMOKE),
}


def most_self_edits(config: Config) -> int:
    """That an adapter of any option is trained on: all options share one program, and the order of what they share."""
    return max(retention(config, option).self_edits(config.stream_length) for option in config.options)


def label_of(config: Config, option: str) -> str:
    """An option as the report prints it."""
    words = {
        "none": "plain merging",
        "replay": f"replay of {'all' if config.replay is None else config.replay}",
        "kl": f"KL {config.kl:g}",
        "gate": "gate",
    }
    return ", ".join(words[part] for part in option.split("+"))


class Data(NamedTuple):
    """The streams of a run."""

    streams: list[list[squad.Passage]]
    inputs: list[Any]  # all that was read from files

    @property
    def everything(self) -> list[squad.Passage]:
        return [passage for stream in self.streams for passage in stream]

    @property
    def questions(self) -> int:
        return sum(len(passage.questions) for passage in self.everything)


def choose_streams(config: Config) -> Data:
    """A seeded shuffle, cut into streams.

    Raises:
        ValueError: fewer passages than the streams need.
    """
    passages = squad.load_passages(config.data, config.split)
    need = config.streams * config.stream_length
    if len(passages) < need:
        raise ValueError(
            f"--data {config.data}: {len(passages)} passages in its split {config.split}; {config.streams} streams of "
            f"{config.stream_length} need {need} (--streams, --stream-length)"
        )
    order = squad.shuffled(passages, config.seed)[:need]
    length = config.stream_length
    return Data(
        [order[start : start + length] for start in range(0, need, length)], [knowledge.prompt_texts(config), passages]
    )


def run(config: Config, run_folder: Path, command: str) -> dict[str, Any]:
    """One run, from passages to report.html. Carries on where an earlier run of the same config stopped."""
    data = choose_streams(config)
    with knowledge.opened(
        config, run_folder, "continual", data.everything, command=command, inputs=data.inputs,
        phases=["streams: base model", *(f"{option}: streams" for option in config.options)],
        capacity=config.max_sequences * most_self_edits(config),
    ) as here:  # fmt: skip
        base = continual.try_base(here.lm, data.streams, here.loop, name="streams")
        found: dict[str, list[Stream]] = {}
        for option in config.options:
            found[option] = continual.run_streams(
                here.lm, data.streams, base, retention(config, option), here.loop, name=option
            )
            record(here, option, found[option])
        return here.finish(
            rows(config, found, data),
            tables=[compare(config, found), differences(config, found)],
            matrices=[heat_map(config, option, streams) for option, streams in found.items()],
        )


def record(here: session.Session, option: str, streams: Sequence[Stream]) -> None:
    """Every self-edit with the answers about its own passage right after it, and all answers that got no verdict."""
    own: list[list[Trial]] = []
    missed: list[tuple[Task, Score, dict[str, Any]]] = []
    for r, stream in enumerate(streams):
        for n, step in enumerate(stream.steps):
            trials = [
                [Trial(done.task, r, step.edit, [score], base)]
                for done, score, base in zip(stream.steps, step.scores, stream.base, strict=True)
            ]
            where = f"{option}, after edit {n + 1} of stream {r + 1}"
            missed += [  # its own is recorded below
                (done.task, score, {"stage": where})
                for c, (done, score) in enumerate(zip(stream.steps, step.scores, strict=True))
                if c != n
            ]
            problem = None if step.outcome == MERGED else step.outcome
            mine = step.scores[n]._replace(losses=step.losses, problem=problem)
            own.append([trials[n][0]._replace(scores=[mine])])
    here.miss(missed)
    here.record(option, own)


# ---------------------------------------------------------------------------------------------------------------------
# Results


def rows(config: Config, found: dict[str, list[Stream]], data: Data) -> list[dict[str, Any]]:
    """Before any edit, and for each option on each passage right after its own edit and on all after the last."""
    first, seed = continual.figures(next(iter(found.values()))), config.seed

    def row(
        name: str,
        label: str,
        accuracy: Sequence[float | None],
        likelihood: Sequence[float | None],
        above: tuple[str, Sequence[float | None]] | None,
        problems: dict[str, int],
    ) -> dict[str, Any]:
        def against(name: str, before: Sequence[float | None]) -> dict[str, Any]:
            return {"row": name, **_as_json(paired_bootstrap(before, accuracy, seed=seed))}

        return {
            "name": name,
            "label": label,
            "unit": "stream",
            "passages": len(data.streams),
            "questions": data.questions,
            "accuracy": _as_json(bootstrap_mean(accuracy, seed=seed)),
            "log_likelihood": _as_json(bootstrap_mean(likelihood, seed=seed)),
            "versus_previous": above and against(*above),
            "versus_base": None if name == "base" else against("base", first.base),
            "problems": problems,
            "per_passage": {f"stream-{r + 1}": value for r, value in enumerate(accuracy)},
        }

    table = [row("base", "Before any edit", first.base, first.base_log_likelihood, None, {})]
    for option, streams in found.items():
        values, suffix = continual.figures(streams), "" if option == "none" else f"_{option}"
        own, final, shown = f"after_own_edit{suffix}", f"after_all_edits{suffix}", label_of(config, option)
        above = ("base", first.base) if len(table) == 1 else None  # the row above is another option's: nothing to say
        troubles = dict(_troubles(streams))
        table += [
            row(own, f"Right after its own edit: {shown}", values.own, values.own_log_likelihood, above, {}),
            row(
                final, f"After all edits: {shown}", values.final, values.final_log_likelihood,
                (own, values.own), troubles,
            ),
        ]  # fmt: skip
    return table


def compare(config: Config, found: dict[str, list[Stream]]) -> dict[str, Any]:
    """The options side by side: what was learned, what was left, and at what cost."""
    seed = config.seed
    lines = []
    for option, streams in found.items():
        values = continual.figures(streams)
        steps = [step for stream in streams for step in stream.steps]
        troubles = _troubles(streams)
        lines.append(
            [
                label_of(config, option),
                _percent(bootstrap_mean(values.own, seed=seed)),
                _percent(bootstrap_mean(values.final, seed=seed)),
                _percent(bootstrap_mean(values.forgetting, seed=seed), "+"),
                _percent(continual.retention(values, seed=seed)),
                ", ".join(f"{count} {why}" for why, count in troubles.items()) or "0",
                len(steps),
                sum(step.tokens for step in steps),
                round(sum(step.seconds for step in steps)),
            ]
        )
    return {
        "title": "Options against forgetting",
        "note": f"{config.streams} streams of {config.stream_length} passages; 95 % bootstrap intervals over streams. "
        "Forgetting: accuracy right after its own edit less that after all edits; retention: the second over the "
        "first. Seconds include writing, answering after each edit and, for the first option, compiling.",
        "columns": [
            "option", "right after its own edit, %", "after all edits, %", "forgetting, points", "retention, %",
            "edits not merged", "adapters trained", "tokens trained", "seconds",
        ],
        "rows": lines,
    }  # fmt: skip


def differences(config: Config, found: dict[str, list[Stream]]) -> dict[str, Any]:
    """Every other option against plain merging (or, without it, the first), paired by stream."""
    reference = "none" if "none" in found else next(iter(found))
    before = continual.figures(found[reference])

    def cell(field: str, values: Figures, scale: float, form: str) -> str:
        pair = (getattr(figures, field) for figures in (before, values))
        return _interval(paired_bootstrap(*pair, seed=config.seed), scale, form)

    lines = []
    for option, streams in found.items():
        if option != reference:
            values = continual.figures(streams)
            lines.append(
                [
                    label_of(config, option),
                    cell("own", values, 100, "+.1f"),
                    cell("final", values, 100, "+.1f"),
                    cell("forgetting", values, 100, "+.1f"),
                    cell("final_log_likelihood", values, 1, "+.3f"),
                ]
            )
    return {
        "title": f"Against {label_of(config, reference)}, on the same streams",
        "note": "Paired differences with 95 % bootstrap intervals over streams.",
        "columns": [
            "option", "right after its own edit, points", "after all edits, points", "forgetting, points",
            "gold answer's log-likelihood after all edits, nats a token",
        ],
        "rows": lines,
    }  # fmt: skip


def heat_map(config: Config, option: str, streams: Sequence[Stream]) -> dict[str, Any]:
    """After edit r, the accuracy on passage c."""
    values = continual.matrix(streams)
    return {
        "title": f"After each edit, accuracy on each passage: {label_of(config, option)}",
        "note": f"Mean over {len(streams)} streams; right of the diagonal are passages not learned yet.",
        "rows": ["before any edit", *(f"after edit {r}" for r in range(1, len(values)))],
        "columns": [f"passage {c}" for c in range(1, len(values))],
        "values": values,
    }


def _troubles(streams: Sequence[Stream]) -> dict[str, int]:
    """How many self-edits were not merged, and why."""
    outcomes = Counter(step.outcome for stream in streams for step in stream.steps)
    return {why: count for why, count in sorted(outcomes.items()) if why != MERGED}


def _percent(interval: Interval, sign: str = "") -> str:
    return _interval(interval, 100, f"{sign}.1f")


def _interval(interval: Interval, scale: float, form: str) -> str:
    """`12.3 [10.1, 14.5]`; without bounds where there is one stream, a dash where there is none."""
    if interval.mean != interval.mean:
        return "-"
    if interval.low != interval.low:
        return f"{scale * interval.mean:{form}}"
    return "{:{f}} [{:{f}}, {:{f}}]".format(*(scale * value for value in interval[:3]), f=form)


def _as_json(interval: Interval) -> dict[str, float | None]:
    names = ("mean", "low", "high")
    return {name: None if value != value else value for name, value in zip(names, interval[:3], strict=True)}


def describe(config: Config, run_folder: Path) -> str:
    """The plan of a run: what it reads, trains and needs. Loads no weights."""
    data = choose_streams(config)

    def work(edit: dict[str, int], alone: dict[str, int]) -> list[plan.Work]:
        stages = []
        for option in config.options:
            lessons = retention(config, option).self_edits(config.stream_length)
            lines = {name: value * lessons for name, value in edit.items()}
            stages.append(plan.inner_work(option, len(data.everything), config.inner, seeds=1, **lines))
        return stages

    lines = [
        f"{config.streams} streams of {config.stream_length} passages, {data.questions} questions: {config.data}, "
        f"{config.split}",
        f"asked {config.stream_length} times by each of {len(config.options)} options, and once before",
    ]
    return knowledge.describe(config, data.everything, lines, work, run_folder)


EXPERIMENT = Experiment("continual", __doc__, PRESETS, describe, run)

if __name__ == "__main__":
    sys.exit(session.main(EXPERIMENT, sys.argv[1:]))
