"""What experiments.rivals compares: ways to put a passage into weights, each a row over the same passages."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from seal_jax.analysis.statistics import GAIN, SHARE, bootstrap_mean, paired_bootstrap
from seal_jax.domains import squad
from seal_jax.domains.passages import Passage
from seal_jax.engine import batching, on_policy, prefixes
from seal_jax.engine.training import train_each
from seal_jax.nn.losses import Loss, distillation, mixed
from seal_jax.run import passages, plan, sources
from seal_jax.run.plan import Most, Stage
from seal_jax.run.runtime import Speaker
from seal_jax.run.session import Prepared, Session
from seal_jax.run.sources import Sources
from seal_jax.seal import entigraph, evaluation, forgetting, writers
from seal_jax.seal.forgetting import Parts
from seal_jax.seal.rewards import Train, Trial
from seal_jax.seal.rounds import fitted
from seal_jax.seal.writers import Written
from seal_jax.types import Example, SelfEdit

OWN = {  # rows by name, and as the page calls them; all train on the passage as well
    "passage": "Passage alone",
    "seal": "SEAL: its own self-edits",
    "entigraph": "EntiGraph: pairs of entities",
    "spa": "SPA: seven kinds of rewriting",
    "active_reading": "Active Reading: its own strategies",
    "distilled_questions": "Context distillation on its own questions",
    "prefix": "Trained prefix on its own questions",
    "sdft": "SDFT: on its own answers, sampled anew",
    "distilled_text": "Context distillation on",  # the text: recorded self-edits, or SEAL's without any
    "mixed_text": "MixSD on",
}
ON_TEXT = ("distilled_text", "mixed_text")  # rows without a text of their own; a recorded row may be called nearly so
ON_QUESTIONS = ("distilled_questions", "prefix", "sdft")  # rows on the model's own questions, which are written once
SMALLER = "{}, smaller budgets"  # a row's stage that trains on the beginnings of its text
IN_STREAMS = (  # those that a stream can be taught by: a text and a loss say all, and what is trained can be merged
    "passage", "seal", "entigraph", "spa", "active_reading", "distilled_questions", "distilled_text", "mixed_text",
)  # fmt: skip
LOSSES: Mapping[str, Loss] = {
    "distilled_questions": distillation,
    "prefix": distillation,
    "sdft": distillation,
    "distilled_text": distillation,
    "mixed_text": mixed,
}


class Row(NamedTuple):
    """One way, tried."""

    name: str
    label: str
    parts: list[list[Parts]]  # [P][1]; none for the base
    written: list[int]  # [P], tokens of all that was written for it
    trained: list[int]  # [P], tokens of all its steps


def read(config: Any) -> Sources:
    """The passages, the recorded self-edits and the rows of a run. `config` is experiments.rivals'.

    Raises:
        ValueError: as `sources.together`; a row that there is not.
    """
    require_rows(config.rows, OWN)
    if config.recorded:
        found = sources.together("--recorded", config.recorded, config, taken=("base", *OWN))
    else:
        held_out = squad.shuffled(squad.load_passages(config.data, "held_out"), config.data_seed)
        chosen = [passage._replace(completions=()) for passage in held_out[: config.passages]]
        lines = [f"{len(chosen)} passages, {passages.questions_of(chosen)} questions: {config.data}"]
        found = Sources(chosen, {}, 0, [passages.prompt_texts(config), held_out], lines, [])
    count, stages = len(found.passages), [Stage("base", (plan.BASE,)), Stage("base and beside", (plan.BASE,))]
    for name in rows_of(config, found):
        phases = (plan.WRITE, plan.TRAIN) if writes(config, found, name) else (plan.TRAIN,)
        stages.append(Stage(name, phases, count, config.seeds, alone=name == "passage"))
        if name != "passage" and (smaller := len(config.budgets) - 1):
            stages.append(Stage(SMALLER.format(name), (plan.TRAIN,), count * smaller, config.seeds))
    return found._replace(stages=stages)


def require_rows(rows: Sequence[str], expected: Collection[str]) -> None:
    """Raises ValueError for a row that there is not."""
    if unknown := [name for name in rows if name not in expected]:
        raise ValueError(f"--rows: {unknown[0]!r} is no row; expected some of {', '.join(expected)}")


def rows_of(config: Any, data: Sources) -> dict[str, str]:
    """All rows but the base's, in order, with their labels: SEAL's, then the recorded ones, then all others."""
    text = next(iter(data.completions), "its own self-edits")
    own = {name: f"{OWN[name]} {text}" if name in ON_TEXT else OWN[name] for name in OWN if name in config.rows}
    recorded = {name: f"Recorded: {name}" for name in data.completions}
    first = {name: label for name, label in own.items() if name in ("passage", "seal")}
    return first | recorded | own


def writes(config: Any, data: Sources, name: str) -> bool:
    """Whether a row's text is written for it, and not read or another row's."""
    shared = name in (*ON_TEXT, *ON_QUESTIONS) and name not in (writer(config, data), asker(config))
    return not (name == "passage" or name in data.completions or shared)


def writer(config: Any, data: Sources) -> str:
    """The row that SEAL's text is written for: the first that is trained on it. The others read it."""
    rows = ("seal",) if data.completions else ("seal", *ON_TEXT)
    return next((name for name in rows if name in config.rows), "seal")


def asker(config: Any) -> str:
    """The row that questions are written for: the first that is trained on them. The others read them."""
    return next((name for name in ON_QUESTIONS if name in config.rows), ON_QUESTIONS[0])


def train(config: Any, name: str) -> Train:
    """How a row's adapters are trained."""
    if name == "prefix":
        return partial(prefixes.train_each, how=config.prefix)
    if name == "sdft":
        return partial(on_policy.train_each, how=config.sdft, max_tokens=config.answer_tokens)
    return train_each


def write(here: Session, data: Sources, name: str) -> tuple[list[list[SelfEdit]], list[int]]:
    """A row's self-edit for each passage, and the tokens that were written for it. Done once: the journal keeps it."""
    config, loop, read, lm = here.config, here.loop, data.passages, here.lm
    style, render = here.speaker.style, here.speaker.render
    to_budget = partial(writers.write, lm, read, loop=loop, budget=config.budget, name=name)
    lines = lambda passage, text: loop.domain.parse(passage, text).examples[:-1]  # the passage comes last
    more = [0] * len(read)
    if name == "passage":
        return [[squad.passage_only(passage)] for passage in read], more
    if name in ON_TEXT:
        edits, more = write(here, data, next(iter(data.completions), "seal"))
        return writers.in_view(read, edits), more
    if name in data.completions:
        written = [recorded(here, passage, data.completions[name][passage.id]) for passage in read]
    elif name == "seal":
        asks = [[loop.domain.prompt(passage)] for passage in read]
        written = to_budget(prompts=asks, split=lines, name=writer(config, data), drawn=name)
    elif name == "entigraph":
        prompts = entigraph.load_prompts(style)
        _, related, more = entigraph.relate(
            lm, read, loop, kind="pairs", samples=1, name=name, prompts=prompts, render=render
        )
        asks = [[entigraph.relation_request(prompts, render, r).prompt for r in row[0]] for row in related]
        written = to_budget(prompts=list(map(writers.in_own_order, read, asks)))
    elif name == "spa":
        written = to_budget(prompts=[writers.spa_prompts(passage, style, render) for passage in read])
    elif name == "active_reading":
        asks, more = writers.active_reading(lm, read, loop, name=name, style=style, render=render)
        written = to_budget(prompts=asks)
    else:
        written = writers.own_questions(
            lm, read, loop, budget=config.budget, name=asker(config), drawn=ON_QUESTIONS[0], style=style, render=render
        )
    edits = writers.self_edits(read, written)
    edits = writers.in_view(read, edits) if name in LOSSES else edits
    return edits, [own.tokens + before for own, before in zip(written, more, strict=True)]


def recorded(here: Session, passage: Passage, completions: Sequence[str]) -> Written:
    """Recorded self-edits of one passage, one after another, within the budget. All their lines count as about it."""
    codec, text = here.lm.codec, squad.passage_only(passage).examples[0]
    rules = squad.load_prompts(here.config.prompt, "raw")
    used, examples, wanted = list[str](), list[Example](), here.config.budget * writers.size(text, codec)
    for completion in completions:
        if sum(writers.size(example, codec) for example in examples) < wanted:
            used.append(completion)
            parsed = squad.parse(passage, completion, rules.split, rules.keep_after, include_passage=False)
            examples += fitted(parsed, codec, here.loop.trainer.shapes).examples
    kept = writers.within(examples, wanted, codec)[: here.loop.trainer.shapes.capacity - 1]
    return Written("\n\n".join(used), kept, writers.written_tokens(used, codec))


def most(config: Any, ready: Prepared, capacity: int) -> Most:
    """The longest self-edit of any row: the passage, and the budget's tokens."""
    alone = ready.most.alone
    return Most(capacity, round((1 + config.budget) * alone), alone)


def taught(config: Any) -> bool:
    """Whether a row has a teacher."""
    return not LOSSES.keys().isdisjoint(config.rows)


def require_view(config: Any, speaker: Speaker, ready: Prepared) -> None:
    """Raises ValueError where the model's context cannot hold what a teacher reads, if a row has one."""
    if not taught(config):
        return
    widest, longest = ready.shapes.widths[-1], ready.most.alone
    if widest + longest + 8 > speaker.context_length:
        raise ValueError(
            f"a teacher reads a passage of {longest} tokens and a sequence of {widest}; {config.model} has a context "
            f"of {speaker.context_length}. Shorten the passages, or lower --sampling.max-tokens"
        )


def beginnings(here: Session, name: str, edits: Sequence[Sequence[SelfEdit]]) -> list[list[SelfEdit]]:
    """Of a row's `[P][1]` self-edits, as much as each smaller budget holds: `[P][B - 1]`, the smallest first.

    Empty where there is nothing to cut: one budget alone, or a row without text.
    """
    smaller = here.config.budgets[:-1]
    if name == "passage" or not smaller:
        return []
    return [[writers.beginning(row[0], budget, here.lm.codec) for budget in smaller] for row in edits]


def trained_tokens(here: Session, trials: Sequence[Sequence[Trial]]) -> list[int]:
    """Tokens of all steps of each passage's self-edits, as they were tried: what a step has no room for is cut."""
    codec, epochs = here.lm.codec, here.config.inner.epochs
    sizes = lambda trial: sum(len(batching.tokenize(example, codec).ids) for example in trial.edit.examples)
    return [epochs * sum(map(sizes, row)) for row in trials]


# ---------------------------------------------------------------------------------------------------------------------
# The table


def stage_of(row: Row) -> evaluation.Stage:
    """A row as all experiments on passages have them."""
    return evaluation.trained_stage(row.name, row.label, [[part.own for part in own] for own in row.parts])


def tables(rows: Sequence[Row], base: Sequence[Parts], here: Session) -> list[dict[str, Any]]:
    """What each row learns, and what that costs; intervals over passages, differences paired by passage."""
    seed, count, stages = here.config.seed, len(base), {row.name: stage_of(row) for row in rows}
    learnt, spent = list[list[Any]](), list[list[Any]]()

    def against(name: str, other: str) -> str:
        if name == other or other not in stages:
            return ""
        change = paired_bootstrap(stages[other].accuracy, stages[name].accuracy, seed=seed, within=GAIN)
        return change.text(form="+.1f")

    for row in rows:
        stage, own = stages[row.name], [part for one in row.parts for part in one]
        unknown = bootstrap_mean([forgetting.of_unknown(part.own) for part in own], seed=seed, within=SHARE)
        kept = bootstrap_mean([part.others for part in own], seed=seed, within=SHARE)
        text = paired_bootstrap([part.text for part in base], [part.text for part in own], seed=seed)
        phases = {name: s for name, s in here.folder.timings.items() if re.match(rf"{re.escape(row.name)}[:/]", name)}
        written, trained = (f"{sum(tokens) / count:,.0f}" for tokens in (row.written, row.trained))
        learnt.append(
            [row.label, bootstrap_mean(stage.accuracy, seed=seed, within=SHARE).text(), against(row.name, "passage"),
             against(row.name, "seal"), unknown.text(), bootstrap_mean(stage.log_likelihood, seed=seed).text(1, ".2f")]
        )  # fmt: skip
        spent.append(
            [row.label, kept.text(), text.text(1, "+.3f"), written, trained, f"{sum(phases.values()) / count:.1f}"]
        )
    note = "95 % intervals over passages; differences are paired by passage."
    learnt_columns = ["", "accuracy, %", "against the passage", "against SEAL", "of what the base got wrong, %",
                      "gold answer, nats a token"]  # fmt: skip
    spent_columns = ["", "others' answers kept, %", "unrelated text, nats a token", "tokens written",
                     "tokens trained", "s a passage"]  # fmt: skip
    return [
        {"title": "What is learned", "note": note, "columns": learnt_columns, "rows": learnt},
        {
            "title": "What it costs, a passage",
            "note": "Others' answers: of questions on other passages that the base answers right, those that still "
            "are. Unrelated text: its likelihood against the base's. Text that several rows share is timed once.",
            "columns": spent_columns,
            "rows": spent,
        },
    ]


def over_budgets(
    curves: Mapping[str, Sequence[Row]], rows: Sequence[Row], here: Session
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What each row knows over the budget, as curves of the page and as a table; none without several budgets.

    The passage alone, where it is a row, is every curve's point at 0.
    """
    budgets, seed = here.config.budgets, here.config.seed
    lines, values = list[list[Any]](), list[list[Any]]()
    alone = next((stage_of(row).accuracy for row in rows if row.name == "passage"), None)
    start = [] if alone is None else [bootstrap_mean(alone, seed=seed, within=SHARE).as_json()]
    of_seal = [stage_of(row).accuracy for row in curves.get("seal", ())]
    for name, curve in curves.items():
        stages, before = [stage_of(row) for row in curve], alone
        values.append(list(start))
        for b, (row, stage) in enumerate(zip(curve, stages, strict=True)):
            accuracy = bootstrap_mean(stage.accuracy, seed=seed, within=SHARE)
            values[-1].append(accuracy.as_json())
            kept = bootstrap_mean([part.others for one in row.parts for part in one], seed=seed, within=SHARE)
            others = [before, of_seal[b] if of_seal and name != "seal" else None]
            against = (
                "" if other is None
                else paired_bootstrap(other, stage.accuracy, seed=seed, within=GAIN).text(form="+.1f")
                for other in others
            )  # fmt: skip
            likely, trained = bootstrap_mean(stage.log_likelihood, seed=seed), sum(row.trained) / len(row.trained)
            lines.append(
                [row.label, f"{budgets[b]:g} x", accuracy.text(), *against, likely.text(1, ".2f"), kept.text(),
                 f"{trained:,.0f}"]
            )  # fmt: skip
            before = stage.accuracy
    if not curves:
        return [], []
    title, note = "Accuracy over the budget", "Synthetic tokens trained on, as a multiple of the passage's own"
    same = "A smaller budget is the beginning of the same text; differences are paired by passage."
    columns = ["", "budget", "accuracy, %", "against the smaller one", "against SEAL with as much",
               "gold answer, nats a token", "others' answers kept, %", "tokens trained, a passage"]  # fmt: skip
    zero = " 0 is the passage alone." if start else ""
    trend = {
        "title": title,
        "note": f"{same}{zero}",
        "across": note,
        "rows": [curve[0].label for curve in curves.values()],
        "columns": [*("0" for _ in start), *(f"{budget:g}" for budget in budgets)],
        "values": values,
    }
    table = {"title": f"{title}, in figures", "note": f"{note}. {same}", "columns": columns, "rows": lines}
    return [trend], [table]
