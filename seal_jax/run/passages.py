"""What every experiment on passages shares: its settings, how passages are chosen, and how a run of it is prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from seal_jax.domains import squad
from seal_jax.domains.passages import Passage, load_recorded
from seal_jax.engine import batching
from seal_jax.engine.sampler import Sampling
from seal_jax.engine.training import FineTuning
from seal_jax.graders.choose import Grader, Judge
from seal_jax.run import plan
from seal_jax.run.plan import Most, Stage
from seal_jax.run.runtime import Speaker
from seal_jax.run.session import Model, Prepared, RunConfig, Session
from seal_jax.seal import evaluation
from seal_jax.seal.outer import best_of_n
from seal_jax.seal.rewards import mean
from seal_jax.seal.rounds import Round, best_round, write_self_edits
from seal_jax.types import PROJECTIONS, Domain, LanguageModel, SelfEdit, require_at_least

# Settings that presets of several experiments share.
PAPER: dict[str, Any] = {"model": "Qwen/Qwen2.5-7B", "dtype": "bfloat16", "data": "squad", "style": "raw"}
SMALL: dict[str, Any] = {  # a 135M model on 2 CPU cores learns short facts by these
    "prompt": "facts",
    "sampling": Sampling(max_tokens=128, temperature=0.7, top_p=0.95),
    "answer_tokens": 64,
    "max_sequences": 8,
    "inner": FineTuning(projections=PROJECTIONS, rank=16, alpha=32.0, epochs=8),
}
SMALLEST: dict[str, Any] = {  # only shows that everything runs
    "sampling": Sampling(max_tokens=24), "answer_tokens": 8, "max_sequences": 4, "inner": FineTuning(epochs=1),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured on held-out passages."""

    passages: int = 200  # held-out passages (paper table 2: 200)
    samples: int = 1  # self-edits a passage; a passage's accuracy is their mean
    seeds: int = 1  # training runs a self-edit

    def __post_init__(self) -> None:
        require_at_least(1, passages=self.passages, samples=self.samples, seeds=self.seeds)


@dataclasses.dataclass(frozen=True)
class Knowledge(RunConfig):
    """The settings of every experiment on passages. The defaults are the paper's where it has any."""

    data: str = "invented"
    """invented or invented-300 (embedded), squad, tfds:squad, or a file in the reference's JSON."""
    prompt: str = "implications"
    """The self-edit prompt: one of the paper's seven by name, facts (for small models), or a TOML file of your own."""
    max_sequences: int = 30
    """Training sequences of a self-edit at most, the passage included (paper's code: 30)."""
    grader: Grader = Grader()
    """Who says whether an answer is right (paper: GPT-4.1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, max_sequences=self.max_sequences)


def prompt_texts(config: Knowledge) -> list[Any]:
    """The self-edit prompt in both forms: what is read from a file is part of what a run is."""
    return [squad.load_prompts(config.prompt, "raw"), squad.load_prompts(config.prompt, "chat")]


def questions_of(passages: Sequence[Passage]) -> int:
    """How many questions they have together."""
    return sum(len(passage.questions) for passage in passages)


class Recorded(NamedTuple):
    """Self-edits that were written before, by passage, and whether the model will write more of them."""

    completions: Mapping[str, Sequence[str]] = {}
    writes: bool = True
    imitated: Mapping[str, Sequence[str]] = {}  # those that the model is trained to write


def prepare(
    config: Knowledge,
    model: Model,
    passages: Sequence[Passage],
    *,
    recorded: Recorded = Recorded(),
    samples: int = 1,
    capacity: int | None = None,
    parse: Callable[[Passage, str], SelfEdit] | None = None,
    writer: str | None = None,
) -> Prepared:
    """The domain and the sizes of a run over `passages`: all that it will read, held-out ones too.

    Args:
      recorded: self-edits that are there already: a training sequence may be longer than what the model writes.
      samples: self-edits of a passage that are written at a time.
      capacity: training sequences of an adapter at most; by default `max_sequences`.
      parse: a recorded completion as training sequences, where it is not the prompt's way.
      writer: the name of another model that writes the self-edits.

    Raises:
      ValueError: a passage that the model's context cannot hold, with what it has to be read with.
    """
    learner, judge = model.speaker, model.judge
    domain, other = make_domain(config, learner, judge), None
    if writer is not None:
        other = model.load(writer)
        domain = domain._replace(prompt=make_domain(config, other, judge).prompt)
    lm, tokens = learner.lm, config.sampling.max_tokens
    need = plan.measure(
        config, learner, (other or learner).lm, domain, passages,
        lambda passage: len(batching.tokenize(squad.passage_only(passage).examples[0], lm.codec).ids),
        "Shorten or remove it",
    )  # fmt: skip
    written = longest_sequence(config, lm, passages, recorded, parse)
    if written > learner.context_length:
        raise ValueError(
            f"a self-edit's line may have {written} tokens with its title and --sampling.max-tokens {tokens}; "
            f"{config.model} has a context of {learner.context_length}. Lower the latter"
        )
    codec = (other or learner).lm.codec
    for passage in passages:
        for text in recorded.imitated.get(passage.id, ()):
            read = len(codec.encode(domain.prompt(passage))) + len(codec.encode_more(text))
            if read > learner.context_length:
                raise ValueError(
                    f"--outer.recorded: a completion for {passage.id!r} has {read} tokens with its prompt; "
                    f"{config.model} has a context of {learner.context_length}. Shorten or remove it"
                )
    longest = batching.round_up(max(need.sequence, written), 8)
    shapes = need.shapes(longest, model.compute.width_cuts, capacity or config.max_sequences)

    def rate(passage: Passage, texts: Sequence[str]) -> list[float | None]:
        assert judge.rate is not None
        return judge.rate([(passage.context, text) for text in texts])

    most = Most(config.max_sequences, need.sequence + 2 * tokens, need.sequence)
    return Prepared(
        domain, shapes, need.prompt_width, most, samples=samples, writer=other, rate=judge.rate and rate, about=about
    )


def longest_sequence(
    config: Knowledge,
    lm: LanguageModel,
    passages: Sequence[Passage],
    recorded: Recorded,
    parse: Callable[[Passage, str], SelfEdit] | None,
) -> int:
    """Tokens of the longest training sequence: of those recorded, and of those the model may yet write."""
    prompts = squad.load_prompts(config.prompt, "raw")
    parse = parse or partial(
        squad.parse, split=prompts.split, keep_after=prompts.keep_after, max_examples=config.max_sequences
    )
    longest = 0
    for passage in passages:
        if recorded.writes:
            longest = max(longest, len(lm.codec.encode(passage.title)) + 2 + config.sampling.max_tokens)
        edits = (parse(passage, text) for text in recorded.completions.get(passage.id, ()))
        examples = (example for edit in edits for example in edit.examples)
        longest = max([longest, *(len(batching.tokenize(example, lm.codec).ids) for example in examples)])
    return longest


def about(passage: Passage) -> dict[str, Any]:
    """Which passage a line of self_edits.jsonl is about."""
    return {"passage": passage.id, "title": passage.title, "context": passage.context}


def make_domain(config: Knowledge, speaker: Speaker, judge: Judge) -> Domain:
    """Passages and questions, in the form that a model reads."""
    prompts = squad.load_prompts(config.prompt, speaker.style)
    return squad.make_domain(prompts, speaker.render, judge.grade, max_examples=config.max_sequences)


# ---------------------------------------------------------------------------------------------------------------------
# Passages to learn to write on, and held-out ones


class Split(NamedTuple):
    """The passages of a run: fresh ones for each round, those to choose the round on, and the held-out ones."""

    rounds: list[list[Passage]]
    validation: list[Passage]
    held_out: list[Passage]
    external: dict[str, tuple[str, ...]]  # recorded completions of held-out passages
    recorded: dict[str, tuple[str, ...]]  # of the rounds' passages, to be imitated
    inputs: list[Any]
    lines: list[str]
    stages: list[Stage]

    @property
    def everything(self) -> list[Passage]:
        """All of them."""
        return [passage for group in (*self.rounds, self.validation, self.held_out) for passage in group]


def split(config: Any) -> Split:
    """Seeded shuffles, cut so that no passage is used twice. `config` is experiments.squad's.

    Raises:
        ValueError: fewer passages than the run needs, an external file that lacks one, no judge for best-of-n.
    """
    outer, size, asked = config.outer, config.outer.passages, config.evaluation.passages
    if outer.method == "best_of_n" and config.grader.kind not in ("model", "endpoint"):
        raise ValueError(best_of_n.NO_JUDGE)
    need = outer.rounds * size + outer.validation
    inputs: list[Any] = prompt_texts(config)
    inputs.append(squad.load_passages(config.data, "train"))
    train = squad.shuffled(inputs[-1], config.data_seed)
    if config.held_out_data or config.data in squad.SPLIT_SOURCES:
        inputs.append(squad.load_passages(config.held_out_data or config.data, "held_out"))
        held_out = squad.shuffled(inputs[-1], config.data_seed)[:asked]
        seen = {passage.id for passage in held_out}
        train = [passage for passage in train if passage.id not in seen]
    else:
        held_out, train = train[:asked], train[asked:]
    if len(train) < need or len(held_out) < asked:
        raise ValueError(
            f"--data {config.data}: {len(train)} passages to train on and {len(held_out)} held out; the run needs "
            f"{need} (--outer.rounds x --outer.passages + --outer.validation) and {asked} "
            "(--evaluation.passages)"
        )
    rounds = [train[r * size : (r + 1) * size] for r in range(outer.rounds)]
    external = recorded_completions("--external", config.external, held_out) if config.external else {}
    recorded, of_rounds = {}, [passage for group in rounds for passage in group]
    if outer.recorded:
        recorded = recorded_completions("--outer.recorded", outer.recorded, of_rounds, least=outer.samples)
    inputs += [found for found in (external, recorded) if found]
    chosen_on = f", {outer.validation} to choose the round on" if outer.validation else ""
    lines = [
        f"{outer.rounds * size} passages to learn from, {size} a round{chosen_on}: {config.data}",
        f"{len(held_out)} held out, {questions_of(held_out)} questions: {config.held_out_data or config.data}",
    ]
    validation = train[need - outer.validation : need]
    return Split(rounds, validation, held_out, external, recorded, inputs, lines, stages_of(config))


def recorded_completions(
    option: str, path: str, passages: Sequence[Passage], *, least: int = 1
) -> dict[str, tuple[str, ...]]:
    """The completions by passage of a file, or of a run folder's last evaluation, that an option names.

    Raises:
        ValueError: it has fewer than `least` for some of these passages.
    """
    found = {passage.id: passage.completions for passage in load_recorded(path)}
    lacking = [passage for passage in passages if len(found.get(passage.id, ())) < least]
    if lacking:
        fewer = f"fewer than {least} completions" if least > 1 else "no completion"
        raise ValueError(
            f"{option} {path}: {fewer} for {len(lacking)} of {len(passages)} passages, the "
            f"first of them {lacking[0].id!r}; passages are matched by their title and context"
        )
    return found


def stages_of(config: Any) -> list[Stage]:
    """All that a run of experiments.squad does, in order."""
    outer, test = config.outer, config.evaluation
    count, seeds = test.passages, test.seeds
    stages = [Stage("held-out", (plan.BASE,)), Stage("passage alone", self_edits=count, seeds=seeds, alone=True)]
    if config.external:
        stages.append(Stage("external", self_edits=count, seeds=seeds))
    stages += [Stage(f"entigraph {kind}", self_edits=count * test.samples, seeds=seeds) for kind in config.entigraph]
    for number in range(outer.rounds + 1):
        if number > 0:
            if outer.reward == "set":
                sets = outer.passages * (outer.samples + 1)
                stages.append(Stage(f"round {number}, sets", (), sets, outer.reward_seeds, lessons=outer.samples))
            tried = plan.RATE if outer.method == "best_of_n" else plan.TRAIN
            learned = (plan.CREDIT, plan.LEARN) if outer.credit == "lines" else (plan.LEARN,)
            phases = (plan.BASE, plan.WRITE, tried, *learned)
            stages.append(Stage(f"round {number}", phases, outer.passages * outer.samples, outer.reward_seeds))
        if outer.validation:
            validated = outer.validation * test.samples
            stages.append(Stage(validation_stage(number), (plan.WRITE, plan.TRAIN), validated, seeds))
        stages.append(Stage(held_out_stage(number), (plan.WRITE, plan.TRAIN), count * test.samples, seeds))
    return stages


def held_out_stage(number: int) -> str:
    """What the evaluation after a round is called while it runs."""
    return f"held-out, {f'after round {number}' if number else 'before RL'}"


def validation_stage(number: int) -> str:
    """What the validation after a round is called while it runs."""
    return f"validation, {f'after round {number}' if number else 'before RL'}"


def validate(here: Session, state: Round, passages: Sequence[Passage]) -> float | None:
    """The mean reward of a round's self-edits on the validation passages: what the round to use is chosen by."""
    name, test = validation_stage(state.number), here.config.evaluation
    base = here.try_base(passages, name="validation")
    edits = write_self_edits(state.writer, passages, here.loop, samples=test.samples, name=name)
    trials = here.try_edits(passages, edits, base, name=name, row=name)
    return mean(getattr(trial, here.config.outer.signal) for row in trials for trial in row)


def choose_round(
    stages: Sequence[evaluation.Stage], validated: Sequence[float | None], passages: int
) -> tuple[list[evaluation.Stage], dict[str, Any]]:
    """The stages, the row of the round that validation chose with its label, and what results.json says of it."""
    rows = list(stages)
    if not validated:
        return rows, {}
    best = best_round(validated)
    place = len(rows) - len(validated) + best
    label = f"{rows[place].label} (chosen on {passages} validation passages)"
    rows[place] = rows[place]._replace(label=label)
    return rows, {"validation": {"reward": list(validated), "chosen_round": best, "passages": passages}}
