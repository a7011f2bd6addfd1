"""What every experiment on passages shares: its settings, and a run of it in a `Session`.

with knowledge.opened(config, run_folder, "squad", passages, ...) as run:
    base = run.try_base(passages, name="held-out")
    ...
    return run.finish(rows)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seal_jax.domains import squad
from seal_jax.engine import batching
from seal_jax.engine.training import Shapes
from seal_jax.graders.choose import Grader, Judge, make_judge
from seal_jax.run import plan, session
from seal_jax.run.journal import RunFolder
from seal_jax.run.session import Prepared, RunConfig, Session, Speaker
from seal_jax.seal import rewards
from seal_jax.types import Domain, LanguageModel, require_at_least

PROMPT_TOKENS = 48  # around a question: the chat template and the title; a guess for --dry-run, which has no tokenizer


@dataclasses.dataclass(frozen=True)
class Knowledge(RunConfig):
    """The settings of every experiment on passages. The defaults are the paper's where it has any."""

    data: str = "invented"
    """invented (embedded), squad, tfds:squad, or a file in the reference's JSON."""
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


def longest_sequence(
    config: Knowledge,
    lm: LanguageModel,
    passages: Sequence[squad.Passage],
    recorded: Mapping[str, Sequence[str]],
    *,
    written: bool = True,
) -> int:
    """Tokens of the longest training sequence: of those recorded, and (`written`) of those the model may yet write."""
    split = squad.load_prompts(config.prompt, "raw")
    longest = 0
    for passage in passages:
        if written:
            longest = max(longest, len(lm.codec.encode(passage.title)) + 2 + config.sampling.max_tokens)
        for text in recorded.get(passage.id, ()):
            edit = squad.parse(passage, text, split.split, split.keep_after, config.max_sequences)
            longest = max([longest, *(len(batching.tokenize(example, lm.codec).ids) for example in edit.examples)])
    return longest


def opened(
    config: Knowledge,
    run_folder: Path,
    experiment: str,
    passages: Sequence[squad.Passage],
    *,
    command: str,
    phases: Sequence[str],
    inputs: Any,
    samples: int = 1,
    longest_written: Callable[[LanguageModel], int] | None = None,
    capacity: int | None = None,
    writer: str | None = None,
) -> contextlib.AbstractContextManager[Session]:
    """A run of one experiment over `passages` (all that it will read, held-out ones too); carries on what was begun.

    Args:
      longest_written: tokens of the longest training sequence a self-edit may yield; by default title and
        `sampling.max_tokens`.
      capacity: training sequences of an adapter at most; by default `max_sequences`.
      writer: the name of another model that writes the self-edits.
      command, phases, inputs, samples: as for `session.opened`, which says what is raised.
    """

    def prepare(learner: Speaker, folder: RunFolder, say: Callable[[str], None]) -> Prepared:
        judge = make_judge(config.grader, cache=folder.path / "judge.jsonl", devices=config.devices, say=say)
        domain = make_domain(config, learner, judge)
        other = None if writer is None else session.load(config, writer)
        if other is not None:
            domain = domain._replace(prompt=make_domain(config, other, judge).prompt)
        shapes, prompt_width = measure(
            config, learner.lm, (other or learner).lm, domain, passages, learner.model.context_length,
            written=longest_written(learner.lm) if longest_written else None,
            capacity=capacity or config.max_sequences,
        )  # fmt: skip
        judge_rate = judge.rate

        def rate(passage: squad.Passage, texts: Sequence[str]) -> list[float | None]:
            assert judge_rate is not None
            return judge_rate([(passage.context, text) for text in texts])

        return Prepared(domain, shapes, prompt_width, judge, other, judge_rate and rate, about=about)

    return session.opened(
        config, run_folder, experiment, command=command, phases=phases, inputs=inputs, prepare=prepare, samples=samples
    )


def about(passage: squad.Passage) -> dict[str, Any]:
    """Which passage a line of self_edits.jsonl is about."""
    return {"passage": passage.id, "title": passage.title, "context": passage.context}


def make_domain(config: Knowledge, speaker: Speaker, judge: Judge) -> Domain:
    """Passages and questions, in the form that a model reads."""
    prompts = squad.load_prompts(config.prompt, speaker.style)
    return squad.make_domain(prompts, speaker.render, judge.grade, max_examples=config.max_sequences)


def measure(
    config: Knowledge,
    lm: LanguageModel,
    writer: LanguageModel,
    domain: Domain,
    passages: Sequence[squad.Passage],
    context_length: int,
    *,
    written: int | None,
    capacity: int,
) -> tuple[Shapes, int]:
    """The sizes that every program is compiled for, from what the longest passage and question need.

    Raises:
        ValueError: a passage that the model's context cannot hold, with what it has to be read with.
    """
    encode, more = lm.codec.encode, lm.codec.encode_more
    longest_sequence, longest_prompt, longest_question, longest_gold = written or 0, 0, 0, 0
    for passage in passages:
        own = len(batching.tokenize(squad.passage_only(passage).examples[0], lm.codec).ids)
        edit = len(encode(passage.title)) + 2 + config.sampling.max_tokens if written is None else written
        prompt = len(writer.codec.encode(domain.prompt(passage)))
        queries = [(len(encode(q.prompt)), len(rewards.gold_tokens(more, q))) for q in domain.queries(passage)]
        question, gold = max(n for n, _ in queries), max(g for _, g in queries)
        asked = question + max(config.answer_tokens, gold)
        needed = max(own, edit, prompt + config.sampling.max_tokens, asked)
        if needed > context_length:
            raise ValueError(
                f"passage {passage.id!r} ({own} tokens) needs a context of {needed} tokens with its prompt and "
                f"--sampling.max-tokens {config.sampling.max_tokens}; {config.model} has {context_length}. "
                "Shorten or remove it"
            )
        longest_sequence = max(longest_sequence, own, edit)
        longest_prompt, longest_question = max(longest_prompt, prompt), max(longest_question, question)
        longest_gold = max(longest_gold, gold)
    shapes = Shapes(
        widths=batching.bucket_widths(longest_sequence, config.inner.width_cuts),
        capacity=capacity,
        questions=max(len(passage.questions) for passage in passages),
        question_width=batching.round_up(longest_question, 8),
        gold_width=batching.round_up(longest_gold, 8),
    )
    return shapes, batching.round_up(longest_prompt, 8)


def describe(
    config: Knowledge,
    passages: Sequence[squad.Passage],
    data_lines: Sequence[str],
    work: Callable[[dict[str, int], dict[str, int]], Sequence[plan.Work]],
    run_folder: Path,
    *,
    samples: int = 1,
) -> str:
    """What a run reads, trains and needs. Loads no weights.

    `work` gets the most sequences and tokens of a self-edit, and of a passage alone, and returns the stages' work.
    """
    words = max(len(f"{p.title} {p.context}".split()) for p in passages)
    passage_tokens = plan.tokens_of(words)
    edit = {"sequences": config.max_sequences, "tokens": passage_tokens + 2 * config.sampling.max_tokens}
    alone = {"sequences": 1, "tokens": passage_tokens}
    asked = max(len(question.question.split()) for passage in passages for question in passage.questions)
    answer = max(len(question.answer.split()) for passage in passages for question in passage.questions)
    shapes = Shapes(
        widths=batching.bucket_widths(max(passage_tokens, config.sampling.max_tokens), config.inner.width_cuts),
        capacity=config.max_sequences,
        questions=max(len(passage.questions) for passage in passages),
        question_width=batching.round_up(plan.tokens_of(asked) + PROMPT_TOKENS, 8),
        gold_width=batching.round_up(plan.tokens_of(answer), 8),
    )
    return session.describe(
        config, data_lines, work(edit, alone), shapes, passage_tokens + 4 * PROMPT_TOKENS, run_folder, samples=samples
    )
