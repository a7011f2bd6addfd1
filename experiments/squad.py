"""Knowledge incorporation (paper table 2): learn passages from self-written notes, then to write better notes.

    python -m experiments.squad demo                        # 2 CPU cores: minutes; a 135M model, invented facts
    python -m experiments.squad paper --data squad          # the paper's settings: a GPU that holds Qwen2.5-7B
    python -m experiments.squad smoke                       # seconds; shows that everything runs, and no more
    python -m experiments.squad demo --outer.rounds 2 --seed 1 --dry-run

The rows of the result, each on the same held-out passages: the base model; trained on the passage alone; on the
passage and the model's own self-edits; the same after each round of RL. What `paper` departs in from the paper is
listed at `PAPER`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from seal_jax import batching, evaluation, memory, plan, rewards, runtime
from seal_jax.checkpoint import RunFolder, as_json, require_room, write_atomically
from seal_jax.domains import squad
from seal_jax.domains.grading import grade_by_match
from seal_jax.inner import Chunk
from seal_jax.lora import PROJECTIONS
from seal_jax.models import hub
from seal_jax.models.transformer import ModelConfig
from seal_jax.report.metrics import MetricsWriter
from seal_jax.report.page import write_report
from seal_jax.report.progress import Progress
from seal_jax.rest_em import Loop, OuterLoop, Trial, mean, rest_em_round, try_base, try_self_edits, write_self_edits
from seal_jax.sampler import Sampling
from seal_jax.training import FineTuning, Shapes
from seal_jax.types import Domain, LanguageModel, require_at_least


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured on held-out passages."""

    passages: int = 200  # held-out passages (paper table 2: 200)
    samples: int = 1  # self-edits a passage; a passage's accuracy is their mean
    seeds: int = 1  # training runs a self-edit

    def __post_init__(self) -> None:
        require_at_least(1, passages=self.passages, samples=self.samples, seeds=self.seeds)


@dataclasses.dataclass(frozen=True)
class Config:
    """Knowledge incorporation: one run."""

    preset: tyro.conf.Suppress[str]  # where it began
    model: str = "smollm2-135m"
    """smollm2-135m (embedded), a Hugging Face folder or hub id, or a GGUF file: Llama, SmolLM2, Qwen2, Qwen3."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen base model and the activations. Adapters and Adam are float32."""
    data: str = "invented"
    """invented (embedded), squad, tfds:squad, or a file in the reference's JSON."""
    held_out_data: str | None = None
    """Where --data is a file: a second one to evaluate on. Without it, held-out passages come from the first."""
    prompt: str = "implications"
    """The self-edit prompt: one of the paper's seven by name, facts (for small models), or a TOML file of your own."""
    style: Literal["auto", "raw", "chat"] = "auto"
    """raw continues text (base models); chat goes through the chat template (auto: where the model has one)."""
    sampling: Sampling = Sampling(max_tokens=512, temperature=1.0, top_p=0.95)
    """How self-edits are written (paper: T = 1, top-p 0.95)."""
    write_chunk: int | None = None
    """Self-edits written at a time; by default as many as fit in memory."""
    answer_tokens: int = 64
    """The most new tokens of an answer, greedy (paper's code: 64)."""
    max_sequences: int = 30
    """Training sequences of a self-edit at most, the passage included (paper's code: 30)."""
    inner: FineTuning = FineTuning()
    """The inner loop: how an adapter is trained on a self-edit."""
    outer: OuterLoop = OuterLoop()
    """The outer loop: ReST-EM."""
    evaluation: Evaluation = Evaluation()
    """What is measured on held-out passages."""
    seed: int = 0
    """Of everything that is drawn: passages, self-edits, adapters, orders."""
    devices: int | None = None
    """Devices that adapters are spread over; by default all GPUs or TPUs, and a CPU's cores up to 4."""


# The paper's settings are the defaults of Config, FineTuning and OuterLoop. Departures, each for a reason:
# pads carry no loss (the reference trains on them); the base model is scored once a question, not once a self-edit;
# answers are graded by normalised match, not by GPT-4.1 (domains/grading.py says how far the two agree); the adapter's
# initialisation and the order of sequences come from the run's seed, not from the clock.
PAPER = Config("paper", model="Qwen/Qwen2.5-7B", dtype="bfloat16", data="squad", style="raw")

DEMO = Config(
    "demo",
    prompt="facts",
    sampling=Sampling(max_tokens=128, temperature=0.7, top_p=0.95),
    answer_tokens=24,
    write_chunk=20,
    max_sequences=8,
    inner=FineTuning(projections=PROJECTIONS, rank=16, alpha=32.0, epochs=8, chunk=10, width_cuts=(24, 32, 96)),
    outer=OuterLoop(
        rounds=1,
        passages=5,
        samples=4,
        reward_seeds=1,
        break_ties=True,
        select="improved",
        sft=dataclasses.replace(OuterLoop.sft, rank=16, alpha=32.0, epochs=3, batch_size=2),
    ),
    evaluation=Evaluation(passages=10),
)

SMOKE = dataclasses.replace(
    DEMO,
    preset="smoke",
    sampling=Sampling(max_tokens=24),
    answer_tokens=8,
    max_sequences=4,
    inner=FineTuning(epochs=1, chunk=2, width_cuts=(96,)),
    outer=dataclasses.replace(DEMO.outer, passages=2, samples=2, select="best"),
    evaluation=Evaluation(passages=3),
)

PRESETS = {
    "demo": ("Minutes on 2 CPU cores: a 135M model and invented facts.", DEMO),
    "paper": ("The paper's settings (its section 4.1, B.1).", PAPER),
    "smoke": ("Everything once, as small as it goes.", SMOKE),
}


PROMPT_TOKENS = 48  # around a question: the chat template and the title; a guess for --dry-run, which has no tokenizer
ROOM = 256 * 2**20  # bytes a run folder wants free: its checkpoints (one adapter a round), journal and report


class Data(NamedTuple):
    """The passages of a run: fresh ones for each round, and the held-out ones of every evaluation."""

    rounds: list[list[squad.Passage]]
    held_out: list[squad.Passage]
    fingerprint: str  # of all that was read from files: a run does not carry on over other passages or prompts


def choose_passages(config: Config) -> Data:
    """Seeded shuffles, cut so that no passage is used twice.

    Raises:
        ValueError: fewer passages than the run needs.
    """
    need = config.outer.rounds * config.outer.passages
    texts: list[Any] = [squad.load_prompts(config.prompt, "raw"), squad.load_prompts(config.prompt, "chat")]
    texts.append(squad.load_passages(config.data, "train"))
    train = squad.shuffled(texts[-1], config.seed)
    if config.held_out_data or config.data in squad.SPLIT_SOURCES:
        texts.append(squad.load_passages(config.held_out_data or config.data, "held_out"))
        held_out = squad.shuffled(texts[-1], config.seed)[: config.evaluation.passages]
        seen = {passage.id for passage in held_out}
        train = [passage for passage in train if passage.id not in seen]
    else:
        held_out, train = train[: config.evaluation.passages], train[config.evaluation.passages :]
    if len(train) < need or len(held_out) < config.evaluation.passages:
        raise ValueError(
            f"--data {config.data}: {len(train)} passages to train on and {len(held_out)} held out; the run needs "
            f"{need} (--outer.rounds x --outer.passages) and {config.evaluation.passages} (--evaluation.passages)"
        )
    size = config.outer.passages
    fingerprint = hashlib.sha256(repr(texts).encode()).hexdigest()[:16]
    return Data([train[r * size : (r + 1) * size] for r in range(config.outer.rounds)], held_out, fingerprint)


def make_domain(config: Config, lm: LanguageModel, chat: Any) -> Domain:
    """The prompts in the model's own form: through its chat template, or as text to continue."""
    style = config.style if config.style != "auto" else ("chat" if chat else "raw")
    if style == "chat" and chat is None:
        raise ValueError(f"--style chat: {config.model} has no chat template; use --style raw")
    prompts = squad.load_prompts(config.prompt, style)
    return squad.make_domain(
        prompts, chat if style == "chat" else str, grade_by_match, max_examples=config.max_sequences
    )


def measure(config: Config, lm: LanguageModel, domain: Domain, data: Data, context_length: int) -> tuple[Shapes, int]:
    """The sizes that every program is compiled for, from what the longest passage and question need.

    Raises:
        ValueError: a passage that the model's context cannot hold, with what it has to be read with.
    """
    passages = [passage for group in (*data.rounds, data.held_out) for passage in group]
    encode, more = lm.codec.encode, lm.codec.encode_more
    longest_sequence = longest_prompt = longest_question = longest_gold = 0
    for passage in passages:
        own = len(batching.tokenize(squad.passage_only(passage).examples[0], lm.codec).ids)
        written = len(encode(passage.title)) + 2 + config.sampling.max_tokens
        prompt = len(encode(domain.prompt(passage)))
        queries = [(len(encode(q.prompt)), len(rewards.gold_tokens(more, q))) for q in domain.queries(passage)]
        question, gold = max(n for n, _ in queries), max(g for _, g in queries)
        asked = question + max(config.answer_tokens, gold)
        needed = max(own, written, prompt + config.sampling.max_tokens, asked)
        if needed > context_length:
            raise ValueError(
                f"passage {passage.id!r} ({own} tokens) needs a context of {needed} tokens with its prompt and "
                f"--sampling.max-tokens {config.sampling.max_tokens}; {config.model} has {context_length}. "
                "Shorten or remove it"
            )
        longest_sequence = max(longest_sequence, own, written)
        longest_prompt, longest_question = max(longest_prompt, prompt), max(longest_question, question)
        longest_gold = max(longest_gold, gold)
    shapes = Shapes(
        widths=batching.bucket_widths(longest_sequence, config.inner.width_cuts),
        capacity=config.max_sequences,
        questions=max(len(passage.questions) for passage in passages),
        question_width=batching.round_up(longest_question, 8),
        gold_width=batching.round_up(longest_gold, 8),
    )
    return shapes, batching.round_up(longest_prompt, 8)


def itemsize(config: Config) -> int:
    """Bytes of a number of the base model while it computes: XLA widens bfloat16 to float32 on a CPU."""
    return 2 if config.dtype == "bfloat16" and jax.default_backend() != "cpu" else 4


def fit(config: Config, model: ModelConfig, shapes: Shapes, prompt_width: int) -> memory.Plan:
    """How the run is cut to the memory that is free."""
    on_cpu = jax.default_backend() == "cpu"
    return memory.fit(
        model,
        config.inner,
        shapes,
        max_tokens=config.answer_tokens,
        prompt_width=prompt_width,
        samples=config.outer.samples,
        written_tokens=config.sampling.max_tokens,
        write_chunk=config.write_chunk,
        free=runtime.free_memory(config.devices),
        devices=runtime.device_count(config.devices),
        itemsize=itemsize(config),
        most=memory.MOST_ON_CPU if on_cpu else memory.MOST,
    )


def held_out_stage(number: int) -> str:
    """What the evaluation after so many rounds is called while it runs."""
    return f"held-out, {'before RL' if number == 0 else f'after round {number}'}"


def phases(rounds: int) -> list[str]:
    """All that a run will show, in order."""
    names = ["held-out: base model", "passage alone: inner loop"]
    for number in range(rounds + 1):
        if number > 0:
            steps = ("base model", "writing self-edits", "inner loop", "selection", "SFT on the winners")
            names += [f"round {number}: {step}" for step in steps]
        names += [f"{held_out_stage(number)}: {step}" for step in ("writing self-edits", "inner loop")]
    return names


def run(config: Config, run_folder: Path, command: str) -> dict[str, Any]:
    """One run, from passages to report.html. Carries on where an earlier run of the same config stopped."""
    started = time.monotonic()
    data = choose_passages(config)
    require_room(run_folder, needed=ROOM)
    folder = RunFolder(run_folder, {**as_json(config), "inputs": data.fingerprint})
    lm, chat, model = runtime.load_language_model(config.model, config.dtype, config.devices)
    with Progress(phases(config.outer.rounds), title="SEAL") as progress, MetricsWriter(folder.path) as metrics:
        if folder.finished:
            progress.note(f"carrying on: {folder.finished} pieces of work were finished before")
        domain = make_domain(config, lm, chat)
        shapes, prompt_width = measure(config, lm, domain, data, model.context_length)
        cut = memory.Plan(  # decided once: a run that carries on with less memory free keeps its pieces
            *folder.once("memory", lambda: list(fit(config, model, shapes, prompt_width)))
        )
        loop = Loop(
            domain, cut.applied(config.inner), config.sampling, Chunk(cut.write_chunk, "self-edits", progress.note),
            config.answer_tokens, shapes, prompt_width, config.seed,
            Chunk(cut.chunk, "adapters", progress.note), folder, progress,
        )  # fmt: skip
        records: list[dict[str, Any]] = []
        held_out, test = data.held_out, config.evaluation

        def finish(stage: str, trials: Sequence[Sequence[Trial]], keep: Any = None, sft: Sequence[float] = ()) -> None:
            """A finished stage's self-edits and metrics, on disk at once."""
            for p, row in enumerate(trials):
                for k, trial in enumerate(row):
                    records.append(evaluation.trial_record(stage, trial, bool(keep is not None and keep[p, k])))
            lines = "".join(json.dumps(record) + "\n" for record in records)
            write_atomically(folder.path / "self_edits.jsonl", lines)

            def record_metrics() -> None:
                for step, loss in enumerate(evaluation.mean_losses(trials)):
                    metrics.write(f"{stage}/inner loop", step, {"loss": loss})
                for step, loss in enumerate(sft):
                    metrics.write(f"{stage}/sft", step, {"loss": loss})
                accuracy, likely = (
                    mean(getattr(t, f) for r in trials for t in r) for f in ("accuracy", "log_likelihood")
                )
                metrics.write(stage, 0, {"accuracy": accuracy, "log_likelihood": likely})

            folder.once(f"{stage}/metrics", record_metrics)  # not again when a run carries on

        base = try_base(lm, held_out, loop, name="held-out")
        stages = [evaluation.base_stage(base, "Base model")]

        alone = [[squad.passage_only(passage)] for passage in held_out]
        trials = try_self_edits(lm, held_out, alone, base, loop, seeds=test.seeds, name="passage alone")
        stages.append(evaluation.trained_stage("passage", "Trained on the passage alone", trials))
        finish("passage", trials)

        rounds: list[dict[str, Any]] = []
        for number in range(config.outer.rounds + 1):
            if number > 0:
                lm, log = rest_em_round(lm, data.rounds[number - 1], config.outer, loop, number=number)
                rounds.append(evaluation.round_record(number, log))
                finish(f"round {number}", log.trials, log.keep, log.sft_losses)
            name = f"self_edits_round_{number}"
            label = "Trained on its self-edits, before RL" if number == 0 else f"SEAL, after RL round {number}"
            edits = write_self_edits(lm, held_out, loop, samples=test.samples, name=held_out_stage(number))
            trials = try_self_edits(lm, held_out, edits, base, loop, seeds=test.seeds, name=held_out_stage(number))
            stages.append(evaluation.trained_stage(name, label, trials))
            finish(name, trials)

        questions = sum(len(passage.questions) for passage in held_out)
        table = evaluation.rows(stages, held_out, questions, seed=config.seed)
        results = {
            "name": "squad",
            "preset": config.preset,
            "model": config.model,
            "data": config.data,
            "seed": config.seed,
            "settings": as_json(config),
            "rows": table,
            "rounds": rounds,
            "timings": {**progress.timings(), "total": time.monotonic() - started},
            "machine": runtime.describe_machine(),
            "command": command,
        }
        write_atomically(folder.path / "results.json", json.dumps(results, indent=1))
        page = write_report(folder.path)
    folder.close()
    print(evaluation.summary(table), f"\nReport: {page}", sep="\n")
    return results


def describe(config: Config, data: Data, run_folder: Path) -> str:
    """The plan of a run: what it reads, trains and needs. Loads no weights."""
    location, model = hub.locate(config.model), plan.read_config(config.model)
    inner, outer, test = config.inner, config.outer, config.evaluation
    passages = [passage for group in (*data.rounds, data.held_out) for passage in group]
    words = max(len(f"{p.title} {p.context}".split()) for p in passages)
    passage_tokens = math.ceil(1.4 * words)  # a fair rule for English; the tokenizer is not loaded
    edit = {"sequences": config.max_sequences, "tokens": passage_tokens + 2 * config.sampling.max_tokens}
    alone = {"sequences": 1, "tokens": passage_tokens}
    held_out = len(data.held_out)
    work = [plan.inner_work("held-out: passage alone", held_out, inner, seeds=test.seeds, **alone)]
    for number in range(outer.rounds + 1):
        if number > 0:
            count = outer.passages * outer.samples
            work.append(plan.inner_work(f"round {number}", count, inner, seeds=outer.reward_seeds, **edit))
        name = f"held-out: {'before RL' if number == 0 else f'after round {number}'}"
        work.append(plan.inner_work(name, held_out * test.samples, inner, seeds=test.seeds, **edit))
    devices = runtime.device_count(config.devices)
    needs = ["unknown until the model is here: its shape is in its files"]
    if model is not None:
        needs = describe_memory(config, model, passages, passage_tokens)
    fetched = "on this machine" if location.cached else "to be fetched"
    held_out_source = config.held_out_data or config.data
    return "\n".join(
        [
            plan.section("Model", [f"{config.model}: {location.source}, {fetched}", str(location.path), config.dtype]),
            plan.section(
                "Data",
                [
                    f"{len(passages) - held_out} passages to learn from, {outer.passages} a round: {config.data}",
                    f"{held_out} held out, {sum(len(p.questions) for p in data.held_out)} questions: {held_out_source}",
                ],
            ),
            plan.section("Inner loop, at most", plan.table(work)),
            plan.section(f"Memory on each of {devices} devices, about", needs),
            plan.section("Run folder", [str(run_folder.absolute()), "holds a run" if run_folder.exists() else "new"]),
        ]
    )


def describe_memory(
    config: Config, model: ModelConfig, passages: Sequence[squad.Passage], passage_tokens: int
) -> list[str]:
    """How the run would be cut to the memory that is free, and what its two hungriest phases would then need."""
    devices, size = runtime.device_count(config.devices), itemsize(config)
    asked = max(len(question.question.split()) for passage in passages for question in passage.questions)
    answer = max(len(question.answer.split()) for passage in passages for question in passage.questions)
    shapes = Shapes(
        widths=batching.bucket_widths(max(passage_tokens, config.sampling.max_tokens), config.inner.width_cuts),
        capacity=config.max_sequences,
        questions=max(len(passage.questions) for passage in passages),
        question_width=batching.round_up(math.ceil(1.4 * asked) + PROMPT_TOKENS, 8),
        gold_width=batching.round_up(math.ceil(1.4 * answer), 8),
    )
    prompt_width = passage_tokens + 4 * PROMPT_TOKENS
    cut = fit(config, model, shapes, prompt_width)
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


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a run is kept, and whether to run at all. No part of its config."""

    run_folder: Path | None = None
    """Kept here; the same command on the same folder carries on (default: runs/squad-PRESET)."""
    dry_run: bool = False
    """Print what would be done, loaded and needed, and load no weights."""


@dataclasses.dataclass(frozen=True)
class Command:
    config: Annotated[Config, tyro.conf.arg(name="")]
    run: Annotated[Run, tyro.conf.arg(name="")] = Run()


def parse(arguments: Sequence[str]) -> Command:
    """`[demo|paper|smoke] [--typed.overrides]`; without a preset, demo. Exits with a suggestion at a typo."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["demo", *arguments]
    presets = {name: Command(config) for name, (_, config) in PRESETS.items()}
    descriptions = {name: text for name, (text, _) in PRESETS.items()}
    commands = tyro.extras.subcommand_type_from_defaults(presets, descriptions)
    return tyro.cli(commands, prog="python -m experiments.squad", args=arguments, description=__doc__)


def command_of(arguments: Sequence[str]) -> str:
    """The command that gives the same results: without the folder they are kept in."""
    kept: list[str] = []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        if not (previous == "--run-folder" or argument.startswith("--run-folder")):
            kept.append(argument)
    return shlex.join(["python", "-m", "experiments.squad", *kept])


def main(arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback."""
    try:
        command = parse(arguments)
        config, where = command.config, command.run
        run_folder = where.run_folder or Path("runs") / f"squad-{config.preset}"
        runtime.start(config.devices)
        if where.dry_run:
            print(describe(config, choose_passages(config), run_folder))
        else:
            run(config, run_folder, command_of(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
