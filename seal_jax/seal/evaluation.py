"""Stages of a run on held-out tasks, each compared with the one before it: the rows of the paper's table 2.

A figure is a mean over tasks, with a 95 % bootstrap interval over tasks; a comparison is paired by task.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seal_jax.analysis import diversity
from seal_jax.analysis.statistics import FEW, FEWEST, GAIN, SHARE, bootstrap_mean, paired_bootstrap, wilson
from seal_jax.engine import batching
from seal_jax.seal.rewards import Score, Trial, mean
from seal_jax.seal.rounds import RoundLog
from seal_jax.types import Codec, Query, SelfEdit, Task, Verdict


class Stage(NamedTuple):
    """One row: how well each of P held-out tasks is answered."""

    name: str  # "base", "passage", "self_edits_round_0", ...
    label: str  # as the report prints it
    accuracy: list[float | None]  # [P], mean over self-edits and training seeds
    log_likelihood: list[float | None]  # [P], of the gold answers, nats a token
    problems: dict[str, int]  # how many self-edits trained nothing or diverged, and what was left out or cut


def base_stage(scores: Sequence[Score], label: str) -> Stage:
    """The model as it is."""
    return Stage("base", label, [s.accuracy for s in scores], [s.log_likelihood for s in scores], cut_answers(scores))


def trained_stage(name: str, label: str, trials: Sequence[Sequence[Trial]]) -> Stage:
    """The model after training on self-edits."""
    return Stage(
        name,
        label,
        [mean(trial.accuracy for trial in row) for row in trials],
        [mean(trial.log_likelihood for trial in row) for row in trials],
        problems_of([trial for row in trials for trial in row]),
    )


def problems_of(trials: Sequence[Trial]) -> dict[str, int]:
    """What went wrong with so many self-edits: no training, divergence, what was not trained on, answers cut off."""
    scores = [score for trial in trials for score in trial.scores if score is not trial.base]
    edits = [trial.edit for trial in trials]
    found = Counter(trial.problem for trial in trials if trial.problem)
    return dict(sorted(found.items())) | problems_of_writing(edits) | cut_answers(scores)


def problems_of_writing(edits: Sequence[SelfEdit]) -> dict[str, int]:
    """What of self-edits was not trained on, although they were."""
    counts = {
        "sentences about something else than the task, left out": sum(edit.left_out for edit in edits),
        "training sequences cut at the widest step": sum(edit.shortened for edit in edits),
    }
    return {name: count for name, count in counts.items() if count}


def cut_answers(scores: Sequence[Score]) -> dict[str, int]:
    """How many answers ended at the limit of tokens, rather than by themselves."""
    count = sum(map(sum, (score.cut for score in scores)))
    return {"answers cut off at the limit of tokens": count} if count else {}


def rows(stages: Sequence[Stage], tasks: Sequence[Task], questions: int, *, seed: int) -> list[dict[str, Any]]:
    """The stages as results.json holds them, each against the one above and against the base model."""
    ids, base = [task.id for task in tasks], stages[0]
    return [
        row(stage, ids, questions, above=stages[n - 1] if n else None, base=base if n else None, seed=seed)
        for n, stage in enumerate(stages)
    ]


def row(
    stage: Stage, ids: Sequence[str], questions: int, *, above: Stage | None, base: Stage | None, seed: int
) -> dict[str, Any]:
    """One of them: its figures over the tasks of these ids, and against two others."""

    def against(other: Stage | None) -> dict[str, Any] | None:
        if other is None:
            return None
        gain = paired_bootstrap(other.accuracy, stage.accuracy, seed=seed, within=GAIN)
        return {"row": other.name, **gain.as_json()}

    return {
        "name": stage.name,
        "label": stage.label,
        "passages": len(ids),
        "questions": questions,
        "accuracy": bootstrap_mean(stage.accuracy, seed=seed, within=SHARE).as_json(),
        "log_likelihood": bootstrap_mean(stage.log_likelihood, seed=seed).as_json(),
        "versus_previous": against(above),
        "versus_base": against(base),
        "problems": stage.problems,
        "per_passage": dict(zip(ids, stage.accuracy, strict=True)),
    }


def spread(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """How far runs that differ in their seed alone lie apart, as a table: of each row the mean, the SD and each figure.

    Args:
      runs: the results of each seed's.
    """
    lines = []
    for row in next(iter(runs.values()))["rows"]:
        same = [other for run in runs.values() for other in run["rows"] if other["name"] == row["name"]]
        shares = [other["accuracy"]["mean"] for other in same]
        known = [100 * share for share in shares if share is not None]
        middle, sd = mean(known), float(np.std(known, ddof=1)) if len(known) > 1 else None
        lines.append([row["label"], middle, sd, *(None if share is None else 100 * share for share in shares)])
    return {
        "title": f"Accuracy of {len(runs)} seeds on the same tasks, %",
        "columns": ["", "mean", "SD", *(f"seed {seed}" for seed in runs)],
        "rows": lines,
    }


def with_solved(table: Sequence[dict[str, Any]], tried: Sequence[Sequence[Score]]) -> list[dict[str, Any]]:
    """`rows` of tasks that are solved or not: solved of tried (each row's scores), with Wilson's interval."""
    found = []
    for row, scores in zip(table, tried, strict=True):
        solved = sum(verdict is True for score in scores for verdict in score.verdicts)
        share = wilson(solved, len(scores)).as_json()
        counts = {"solved": solved, "tried": len(scores), "accuracy": share}
        found.append(row | {"unit": "task", "interval": "Wilson"} | counts)
    return found


def scores_by_seed(trials: Sequence[Sequence[Trial]]) -> list[Score]:
    """One score for each self-edit and training seed; one that trained nothing has the same score for every seed."""
    seeds = max(len(trial.scores) for row in trials for trial in row)
    return [trial.scores[s % len(trial.scores)] for row in trials for trial in row for s in range(seeds)]


def differences(stages: Sequence[Stage], *, seed: int) -> dict[str, Any]:
    """Every stage against every one before it, by each reward."""
    rows = [
        [after.name, before.name, paired_bootstrap(before.accuracy, after.accuracy, seed=seed).text(form="+.1f"),
         paired_bootstrap(before.log_likelihood, after.log_likelihood, seed=seed).text(1, "+.3f")]
        for before, after in itertools.combinations(stages, 2)
    ]  # fmt: skip
    return {
        "title": "Paired differences",
        "note": "Over the same passages, with 95 % bootstrap intervals over passages.",
        "columns": ["row", "against", "accuracy, points", "log-likelihood of the gold answer, nats a token"],
        "rows": rows,
    }


def first_and_last(losses: Sequence[float], epochs: int) -> tuple[float | None, float | None]:
    """Mean losses of the first and of the last of so many epochs; None without any."""
    each = max(1, len(losses) // epochs)
    first, last = (float(np.mean(part)) if part else None for part in (losses[:each], losses[-each:]))
    return first, last


def trial_record(
    stage: str, trial: Trial, queries: Sequence[Query], kept: bool, about: Mapping[str, Any]
) -> dict[str, Any]:
    """One line of self_edits.jsonl: a self-edit with its sequences, rewards, and each answer before and after.

    `about` says which task it is. The answers after are those of the first training seed; there are none where
    nothing was trained. Where the domain votes, an answer has no verdict of its own (null): the reward is the vote's.
    """
    before, chosen = trial.base, trial.edit.settings
    after = trial.scores[0] if trial.scores else None
    accuracy, base = trial.accuracy, before.accuracy
    return {
        "stage": stage,
        **about,
        "sample": trial.sample,
        "completion": trial.edit.completion,
        "problem": trial.problem,
        "sequences": [example.prompt + example.completion for example in trial.edit.examples],
        "reward": accuracy,
        "base_reward": base,
        "gain": None if accuracy is None or base is None else accuracy - base,
        "log_likelihood": trial.log_likelihood,
        "base_log_likelihood": before.log_likelihood,
        "rewards_by_seed": [score.accuracy for score in trial.scores],
        "probability": trial.probability,
        "added": trial.added,
        "credit": list(trial.credit or ()),
        "rating": trial.rating,
        "settings": chosen and {name: value for name, value in chosen._asdict().items() if value is not None},
        "losses": after.losses if after else [],
        "kept": kept,
        "answers": [
            {
                "question": query.question,
                "gold": query.gold,
                "before": before.answers[q],
                "before_correct": _verdict(before, q),
                "before_cut": _was_cut(before, q),
                "after": after.answers[q] if after else None,
                "after_correct": _verdict(after, q) if after else None,
                "after_cut": after is not None and _was_cut(after, q),
            }
            for q, query in enumerate(queries)
        ],
    }


def _verdict(score: Score, q: int) -> Verdict:
    """Of one answer; None too where only the task as a whole has one."""
    return score.verdicts[q] if len(score.verdicts) == len(score.answers) else None


def _was_cut(score: Score, q: int) -> bool:
    return q < len(score.cut) and score.cut[q]


def round_record(number: int, log: RoundLog, prompts: Sequence[str]) -> dict[str, Any]:
    """One finished round of RL, as results.json holds it; `prompts` are those of its tasks."""
    trials = [trial for row in log.trials for trial in row]
    skipped = {"tasks without two rewards that differ, from which nothing was learned": log.skipped}
    return {
        "round": number,
        "passages": len(log.trials),
        "self_edits": len(trials),
        "kept": int(log.keep.sum()),
        "mean_reward": mean(trial.accuracy for trial in trials),
        **diversity.figures([[trial.edit.completion for trial in row] for row in log.trials], prompts),
        "mean_sequences": mean(len(trial.edit.examples) for trial in trials),
        "mean_best_reward": mean(
            max((t.accuracy for t in row if t.accuracy is not None), default=None) for row in log.trials
        ),
        "mean_base_reward": mean(row[0].base.accuracy for row in log.trials),
        "problems": problems_of(trials) | (skipped if log.skipped else {}),
        "sft_losses": log.losses,
    }


def round_tokens(log: RoundLog, writer: Codec, learner: Codec, epochs: int) -> dict[str, int | None]:
    """What a round cost, in each model's tokens: of its self-edits, and of all steps of the inner loop.

    The latter is None where adapters were trained on sets of self-edits as well.
    """
    trials = [trial for row in log.trials for trial in row]
    steps = 0
    for trial in trials:
        chosen = trial.edit.settings
        size = sum(len(batching.tokenize(example, learner).ids) for example in trial.edit.examples)
        steps += len(trial.scores) * (chosen.epochs if chosen else epochs) * size
    return {
        "tokens_written": sum(len(writer.encode_more(trial.edit.completion)) for trial in trials),
        "tokens_trained": None if any(trial.added is not None for trial in trials) else steps,
    }


def written_record(stage: str, edits: Sequence[Sequence[SelfEdit]], prompts: Sequence[str]) -> dict[str, Any]:
    """What the self-edits of a stage are like, as results.json holds it; `prompts` are those of its tasks."""
    texts = [[edit.completion for edit in row] for row in edits]
    mean_sequences = mean(len(edit.examples) for row in edits for edit in row)
    label = stage[:1].upper() + stage[1:]
    return {"label": label, **diversity.figures(texts, prompts), "mean_sequences": mean_sequences}


def ungraded(task: Task, queries: Sequence[Query], score: Score, **where: Any) -> list[dict[str, Any]]:
    """The answers that a judge failed to grade, as lines of ungraded.jsonl: `experiments.grade` reads them."""
    return [
        {
            **where,
            "passage": task.id,
            "question": query.question,
            "gold": query.gold,
            "answer": score.answers[q],
            "cut": _was_cut(score, q),
        }
        for q, query in enumerate(queries)
        if q < len(score.verdicts) and score.verdicts[q] is None
    ]


def mean_losses(trials: Sequence[Sequence[Trial]]) -> list[float]:
    """The inner loop's loss at each step, mean over the adapters that were still training then."""
    curves = [score.losses for row in trials for trial in row for score in trial.scores if not score.problem]
    longest = max(map(len, curves), default=0)
    return [
        sum(c[step] for c in curves if len(c) > step) / sum(len(c) > step for c in curves) for step in range(longest)
    ]


def summary(table: Sequence[dict[str, Any]]) -> str:
    """The rows as a terminal shows them, and in words what the last one changed.

    Rows with "solved" and "tried" show them ("29 of 40"); rows whose accuracy has another interval than the bootstrap's
    name it ("interval": "Wilson").
    """
    first, last = table[0], table[-1]
    unit = first.get("unit", "passage")
    asked = [f"{first['passages']} {unit}s"]
    if first.get("questions") is not None:
        asked.append(f"{first['questions']} {'test inputs' if unit == 'task' else 'questions'}")
    named = {row.get("interval") for row in table}
    if named == {None}:
        intervals = f"95 % intervals, paired by {unit}"
    else:
        others = [] if None not in named else ["bootstrap"] if first["passages"] >= FEW else ["Student's"]
        intervals = f"95 % intervals ({', '.join(sorted(filter(None, named)) + others)}), differences paired by {unit}"
    lines = [["", "solved", "accuracy, %", "against row above"]]
    for row in table:
        count = f"{row['solved']} of {row['tried']}" if row.get("tried") else ""
        against = "" if row["versus_previous"] is None else _points(row["versus_previous"], sign="+")
        lines.append([row["label"], count, _points(row["accuracy"]), against])
    lines = lines if any(line[1] for line in lines[1:]) else [[label, *rest] for label, _, *rest in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [f"{', '.join(asked)}; {intervals}"]
    for label, *cells in lines:
        right = (f"{cell:>{width + 2}}" for cell, width in zip(cells, widths[1:], strict=True))
        shown.append(f"{label:<{widths[0]}}{''.join(right)}".rstrip())
    change = last["versus_previous"]
    if change and change["low"] is not None:
        rounding = 1e-9  # of sums: the low end of an interval may be exactly nothing
        clear = "better" if change["low"] > rounding else "worse" if change["high"] < -rounding else "no clear change"
        if first["passages"] < FEWEST:
            clear = f"too few {unit}s to say"
        shown.append(f"Last row against the one above: {_points(change, sign='+')} points: {clear}")
    return "\n".join(shown)


def _points(interval: dict[str, float | None], sign: str = "") -> str:
    """`12.3 [10.1, 14.5]`, in percent or points."""
    mean_, low, high = (interval[key] for key in ("mean", "low", "high"))
    if mean_ is None:
        return "-"
    bounds = "" if low is None or high is None else f" [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    return f"{100 * mean_:{sign}.1f}{bounds}"
