"""What experiments.rivals compares: ways to put a passage into weights, each a row over the same passages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from seal_jax.analysis.statistics import GAIN, SHARE, bootstrap_mean, paired_bootstrap
from seal_jax.domains import squad
from seal_jax.domains.passages import Passage
from seal_jax.engine import batching, on_policy, prefixes
from seal_jax.engine.training import train_each
from seal_jax.nn.losses import Loss, distillation, mixed
from seal_jax.run import passages, plan, sources
from seal_jax.run.plan import Stage
from seal_jax.run.session import Session
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
    if unknown := [name for name in config.rows if name not in OWN]:
        raise ValueError(f"--rows: {unknown[0]!r} is no row; expected some of {', '.join(OWN)}")
    if config.recorded:
        found = sources.together("--recorded", config.recorded, config, taken=("base", *OWN))
    else:
        held_out = squad.shuffled(squad.load_passages(config.data, "held_out"), config.data_seed)
        chosen = [passage._replace(completions=()) for passage in held_out[: config.passages]]
        lines = [f"{len(chosen)} passages, {passages.questions_of(chosen)} questions: {config.data}"]
        found = Sources(chosen, {}, 0, [passages.prompt_texts(config), held_out], lines, [])
    count, stages = len(found.passages), [Stage("base", (plan.BASE,)), Stage("base and beside", (plan.BASE,))]
    for name in rows_of(config, found):
        reads = name == "passage" or name in found.completions
        reads |= name in (*ON_TEXT, *ON_QUESTIONS) and name not in (writer(config, found), asker(config))
        phases = (plan.TRAIN,) if reads else (plan.WRITE, plan.TRAIN)
        stages.append(Stage(name, phases, count, config.seeds, alone=name == "passage"))
    return found._replace(stages=stages)


def rows_of(config: Any, data: Sources) -> dict[str, str]:
    """All rows but the base's, in order, with their labels: SEAL's, then the recorded ones, then all others."""
    text = next(iter(data.completions), "its own self-edits")
    own = {name: f"{OWN[name]} {text}" if name in ON_TEXT else OWN[name] for name in OWN if name in config.rows}
    recorded = {name: f"Recorded: {name}" for name in data.completions}
    first = {name: label for name, label in own.items() if name in ("passage", "seal")}
    return first | recorded | own


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
