"""Runs on streams of passages: how they are cut, and what a run found, as rows, tables and heat maps of the report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from seal_jax.analysis.statistics import SHARE, Interval, bootstrap_mean, bootstrap_ratio, paired_bootstrap
from seal_jax.domains import squad
from seal_jax.run import passages, rivals, sources
from seal_jax.run.plan import BASE, WRITE, Stage
from seal_jax.run.session import Session
from seal_jax.run.sources import Sources
from seal_jax.seal import evaluation
from seal_jax.seal.continual import MERGED, Stream
from seal_jax.seal.rewards import Score, Trial, mean
from seal_jax.types import SelfEdit, Task


class Streams(NamedTuple):
    """The streams of a run."""

    streams: list[list[squad.Passage]]
    inputs: list[Any]
    lines: list[str]
    stages: list[Stage]
    sources: Sources  # all of the passages in the order of the streams, and what was recorded on them

    @property
    def everything(self) -> list[squad.Passage]:
        """All passages."""
        return [passage for stream in self.streams for passage in stream]

    @property
    def questions(self) -> int:
        """How many there are."""
        return passages.questions_of(self.everything)


class Way(NamedTuple):
    """What is compared: how the passages are taught, and what is done against forgetting."""

    name: str  # in results.json and in the journal
    label: str  # as the report prints it
    row: str | None  # of experiments.rivals, whose text is trained on; None: what the model writes as it goes
    option: str


def cut(config: Any) -> Streams:
    """A seeded shuffle, cut into streams. `config` is experiments.continual's.

    Raises:
        ValueError: fewer passages than the streams need; a row that there is not, or one that is there twice.
    """
    need, length = config.streams * config.stream_length, config.stream_length
    if config.recorded:
        found = sources.together("--recorded", config.recorded, config, taken=("base", *rivals.OWN))
        where, order = "--recorded: {} passages that all of them hold", found.passages
    else:
        read = squad.load_passages(config.data, config.split)
        where, order = f"--data {config.data}: {{}} passages in its split {config.split}", read
        order = squad.shuffled(read, config.data_seed)[:need]
        found = Sources(order, {}, 0, [passages.prompt_texts(config), read], [f"{config.data}, {config.split}"], [])
    if len(order) < need:
        raise ValueError(
            f"{where.format(len(order))}; {config.streams} streams of {length} need {need} (--streams, --stream-length)"
        )
    compared = ways(config, found)
    named = Counter(way.name for way in compared)
    if twice := [name for name, count in named.items() if count > 1]:
        raise ValueError(f"two of what is compared are called {twice[0]!r}; give --recorded files other names")
    lines = [
        f"{config.streams} streams of {length} passages, {passages.questions_of(order)} questions",
        *found.lines,
        f"asked {length} times by each of {len(compared)} options, and once before",
    ]
    stages = [Stage("streams", (BASE,))]
    for way in compared:
        if way.option == config.options[0] and way.row and rivals.writes(config, found, way.row):
            stages.append(Stage(way.row, (WRITE,)))
        stages.append(Stage(way.name, ("streams",), need, lessons=config.lessons(way.option)))
    cuts = [order[start : start + length] for start in range(0, need, length)]
    return Streams(cuts, found.inputs, lines, stages, found)


def ways(config: Any, data: Sources) -> list[Way]:
    """All that a run compares, in order: every option, for each way to teach if any is named."""
    if not (config.rows or data.completions):
        return [Way(option, label_of(config, option), None, option) for option in config.options]
    found = []
    for row, label in rivals.rows_of(config, data).items():
        for option in config.options:
            name, said = (
                (row, label) if option == "none" else (f"{row}+{option}", f"{label}, {label_of(config, option)}")
            )
            found.append(Way(name, said, row, option))
    return found


def written(here: Session, data: Streams, row: str) -> list[list[SelfEdit]]:
    """What each passage is taught by in a row of experiments.rivals, `[R][N]`: written once, by the model as it was."""
    trainer = here.loop.trainer
    shapes = trainer.shapes._replace(capacity=here.config.sequences)  # of one self-edit
    loop = here.loop._replace(trainer=trainer._replace(shapes=shapes))
    edits, _ = rivals.write(dataclasses.replace(here, loop=loop), data.sources, row)
    each, length = [edit for (edit,) in edits], here.config.stream_length
    return [each[start : start + length] for start in range(0, len(each), length)]


def record(here: Session, option: str, streams: Sequence[Stream]) -> None:
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


Found = Mapping[Way, list[Stream]]


def rows(config: Any, found: Found, data: Streams) -> list[dict[str, Any]]:
    """Before any edit, and for each way on each passage right after its own edit and on all after the last."""
    first, ids = figures(next(iter(found.values()))), [f"stream-{r}" for r in range(1, len(data.streams) + 1)]
    base = evaluation.Stage("base", "Before any edit", first.base, first.base_log_likelihood, {})
    stages: list[tuple[evaluation.Stage, evaluation.Stage | None]] = [(base, None)]  # each with what it is against
    for way, streams in found.items():
        values, suffix = figures(streams), "" if way.name == "none" else f"_{way.name}"
        troubles = dict(_troubles(streams)) | evaluation.problems_of_writing([s.edit for r in streams for s in r.steps])
        troubles |= evaluation.cut_answers([score for stream in streams for score in stream.steps[-1].scores])
        shown, above = way.label, base if len(stages) == 1 else None  # another way's says nothing
        own = evaluation.Stage(
            f"after_own_edit{suffix}", f"Right after its own edit: {shown}", values.own, values.own_log_likelihood, {}
        )
        final = evaluation.Stage(
            f"after_all_edits{suffix}", f"After all edits: {shown}", values.final, values.final_log_likelihood, troubles
        )
        stages += [(own, above), (final, own)]
    return [
        evaluation.row(
            stage, ids, data.questions, above=above, base=None if stage is base else base, seed=config.seed
        ) | {"unit": "stream"}
        for stage, above in stages
    ]  # fmt: skip


def compare(config: Any, found: Found) -> dict[str, Any]:
    """The ways side by side: what was learned, what was left, and at what cost."""
    seed = config.seed
    lines = []
    for way, streams in found.items():
        values = figures(streams)
        steps = [step for stream in streams for step in stream.steps]
        troubles = _troubles(streams)
        lines.append(
            [
                way.label,
                bootstrap_mean(values.own, seed=seed).text(),
                bootstrap_mean(values.final, seed=seed).text(),
                bootstrap_mean(values.forgetting, seed=seed).text(form="+.1f"),
                retained(values, seed=seed).text(),
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
        "first. Seconds include writing as the stream goes, answering after each edit and, for the first, compiling.",
        "columns": [
            "option", "right after its own edit, %", "after all edits, %", "forgetting, points", "retention, %",
            "edits not merged", "adapters trained", "tokens trained", "seconds",
        ],
        "rows": lines,
    }  # fmt: skip


def differences(config: Any, found: Found) -> dict[str, Any]:
    """Paired by stream: every other option against plain merging (or, without it, the first), taught in the same way;
    and every other way to teach against the first of them, under the same option."""
    options, known = config.options, {(way.row, way.option): way for way in found}
    plain, first = "none" if "none" in options else options[0], next(iter(found)).row
    pairs = [(known[way.row, plain], way) for way in found if way.option != plain]
    pairs += [(known[first, way.option], way) for way in found if way.row != first]

    def cells(before: Figures, values: Figures) -> list[str]:
        paired = {
            name: paired_bootstrap(getattr(before, name), getattr(values, name), seed=config.seed)
            for name in ("own", "final", "forgetting", "final_log_likelihood")
        }
        likelihood = paired.pop("final_log_likelihood").text(1, "+.3f")
        return [*(difference.text(form="+.1f") for difference in paired.values()), likelihood]

    lines = [[way.label, other.label, *cells(figures(found[other]), figures(found[way]))] for other, way in pairs]
    return {
        "title": "Paired differences, on the same streams",
        "note": "With 95 % bootstrap intervals over streams.",
        "columns": [
            "option", "against", "right after its own edit, points", "after all edits, points", "forgetting, points",
            "gold answer's log-likelihood after all edits, nats a token",
        ],
        "rows": lines,
    }  # fmt: skip


def so_far(config: Any, found: Found) -> dict[str, Any]:
    """After each edit, the accuracy on the passages that the stream has learned by then, as curves of the page."""

    def after(streams: Sequence[Stream], n: int) -> dict[str, Any]:
        learned = [mean(score.accuracy for score in stream.steps[n].scores[: n + 1]) for stream in streams]
        return bootstrap_mean(learned, seed=config.seed, within=SHARE).as_json()

    return {
        "title": "Accuracy on the passages learned so far",
        "note": f"Mean over {config.streams} streams, intervals over streams.",
        "across": "passages learned",
        "rows": [way.label for way in found],
        "columns": [str(n) for n in range(1, config.stream_length + 1)],
        "values": [[after(streams, n) for n in range(config.stream_length)] for streams in found.values()],
    }


def heat_map(way: Way, streams: Sequence[Stream]) -> dict[str, Any]:
    """After edit r, the accuracy on passage c."""
    values = matrix(streams)
    return {
        "title": f"After each edit, accuracy on each passage: {way.label}",
        "note": f"Mean over {len(streams)} streams; right of the diagonal are passages not learned yet.",
        "rows": ["before any edit", *(f"after edit {r}" for r in range(1, len(values)))],
        "columns": [f"passage {c}" for c in range(1, len(values))],
        "values": values,
    }


def _troubles(streams: Sequence[Stream]) -> dict[str, int]:
    """How many self-edits were not merged, and why."""
    outcomes = Counter(step.outcome for stream in streams for step in stream.steps)
    return {why: count for why, count in sorted(outcomes.items()) if why != MERGED}


def label_of(config: Any, option: str) -> str:
    """An option as the report prints it."""
    words = {
        "none": "plain merging",
        "replay": f"replay of {'all' if config.replay is None else config.replay}",
        "kl": f"KL {config.kl:g}",
    }
    return ", ".join(words[part] for part in option.split("+"))


# ---------------------------------------------------------------------------------------------------------------------
# Figures


class Figures(NamedTuple):
    """One figure a stream, each the mean over its tasks (None where no answer got a verdict)."""

    base: list[float | None]  # [R] accuracy before the first edit
    own: list[float | None]  # [R] on each task right after its own edit
    final: list[float | None]  # [R] on all tasks after the last edit
    forgetting: list[float | None]  # [R] own - final
    base_log_likelihood: list[float | None]  # [R] of gold answers, nats a token
    own_log_likelihood: list[float | None]
    final_log_likelihood: list[float | None]


def figures(streams: Sequence[Stream]) -> Figures:
    """How well each of R streams learned, and how much of it was left at its end."""

    def each(field: str, choose: Any) -> list[float | None]:
        return [mean(getattr(score, field) for score in choose(stream)) for stream in streams]

    def own(stream: Stream) -> list[Score]:
        return [step.scores[n] for n, step in enumerate(stream.steps)]

    def final(stream: Stream) -> list[Score]:
        return stream.steps[-1].scores

    learned, left = each("accuracy", own), each("accuracy", final)
    return Figures(
        base=each("accuracy", lambda stream: stream.base),
        own=learned,
        final=left,
        forgetting=[None if a is None or b is None else a - b for a, b in zip(learned, left, strict=True)],
        base_log_likelihood=each("log_likelihood", lambda stream: stream.base),
        own_log_likelihood=each("log_likelihood", own),
        final_log_likelihood=each("log_likelihood", final),
    )


def matrix(streams: Sequence[Stream]) -> list[list[float | None]]:
    """`[N + 1][N]`: accuracy on task c before any edit (row 0) and after edit r (row r), mean over streams."""
    tables = [[stream.base, *(step.scores for step in stream.steps)] for stream in streams]
    length = len(tables[0][0])
    return [[mean(table[r][c].accuracy for table in tables) for c in range(length)] for r in range(length + 1)]


def retained(figures: Figures, *, seed: int) -> Interval:
    """The share of what was known right after its own edit that is still known at the end: mean final over mean own.

    A ratio of means, its interval by resampling streams; a stream that never knew anything has no ratio of its own.
    NaN where nothing was known; resamples in which nothing was are left out.
    """
    return bootstrap_ratio(figures.final, figures.own, seed=seed)
