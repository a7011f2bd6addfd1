"""How long the inner loop takes, how far that is from what the device can do, and from PEFT on the same device.

    python -m experiments.benchmark --peer peft --json out.json    # all that is compared
    python -m experiments.benchmark inner --random llama-3.2-1b --adapters 16
    python -m experiments.benchmark --dry-run --random qwen2.5-7b  # the least it can cost; runs nothing

peers: inner, decode and both together. inner: training on 8 sequences of 48 tokens, all alike (q,v and all seven
projections), and on ragged lengths; --loss distillation also with a teacher, which reads 151 tokens before each
sequence. decode: 5 questions of 40 tokens for each adapter, 64 new tokens each, greedy.
sample: 5 self-edits for each of 8 prompts of 200 tokens, 128 new tokens each, T = 1, top-p 0.95. round: a whole round
of ReST-EM on tasks made of random numbers, phase by phase. scaling: the cost of a self-edit over the number trained at
a time, the length of its sequences and the model's size. profile: where the time of a step, and of a written token,
goes. check: whether this device computes what the CPU computes, which is what the tests are run on. bases: what a
quantised base costs in perplexity. compile: what the programs take on a TPU or a GPU that is not here (it has options
of its own: compile --help).

Without `--random` the weights are those of `--model`; with it, random ones of a published shape, made on the device,
which takes the same time and needs no file. Peers (torch, transformers, peft) hold the same weights and run in
processes of their own, by turns with us, once their losses are seen to be ours: peft trains one self-edit after another
without a pad, the best it can do; peft-x2 is two such processes at once; skyrl-tx trains as many at a time as we do, in
an environment of its own. A ratio is their time for a self-edit over ours; compile time is in none.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from seal_jax.engine import costs
from seal_jax.io import hub, weights
from seal_jax.io.architectures import named
from seal_jax.nn.transformer import ModelConfig
from seal_jax.run import runtime

from . import bases, compiled, device, fits, ours, profile, scaling, stages, table, whole_round, workloads
from .bench import Bench, Settings, opened
from .peer_process import SKYRL_TX, require_installed

PROGRAM = "python -m experiments.benchmark"
BUSY = 0.5  # processes at work on average in the last minute: from here on a warning is printed
PARTS = {  # options that only some subcommands have
    "base": ("peers", "inner", "decode", "sample", "round", "profile"),
    "edits": ("peers", "inner", "scaling"),
    "loss": ("inner",),
    "workload": ("inner", "scaling"),
    **dict.fromkeys(("passages", "samples", "seeds", "paper"), ("round",)),
    **dict.fromkeys(("over_adapters", "over_tokens", "over_models", "at_adapters", "steps", "plot"), ("scaling",)),
}


def compared(bench: Bench) -> Iterator[stages.Row]:
    """The rows of `peers`, `inner`, `decode` or `sample`, as they are measured."""
    settings = bench.settings
    command, workload = settings.command, settings.workload
    groups, devices = workloads.PROMPTS if command == "sample" else settings.adapters, len(bench.devices)
    if command != "inner" and groups % devices:
        raise ValueError(
            f"{devices} devices cannot share {groups} groups of answers evenly; change --adapters or --devices"
        )
    if command == "sample":
        yield from stages.sample_stage(bench)
        return
    lengths = workloads.uniform(settings.adapters)
    if workload != "seal":
        rows, adapters = stages.train_stage(bench, "train_qv", lengths)
        yield from rows
        if command != "inner":
            answers = stages.decode_stage(bench, adapters)
            yield from (*answers, *stages.edit_rows(rows, answers))
        del adapters
        if command != "decode":
            yield from stages.train_stage(bench, "train_all", lengths)[0]
    if workload != "uniform" and command != "decode":
        yield from stages.train_stage(bench, "seal", workloads.seal(settings.edits, seed=settings.seed))[0]


def compare(bench: Bench) -> dict[str, Any]:
    """Prints the main table and its ratios."""
    settings = bench.settings
    print(f"{settings.random or settings.model}, {settings.adapters} adapters of rank {settings.rank} at a time\n")
    print(*table.HEAD, sep="\n", flush=True)
    rows = []
    for row in compared(bench):
        rows.append(row)
        print(table.row_line(row.figures(bench.peak)), flush=True)
    print(*(f"\n{table.TITLES[row.stage]}, {row.who}: {row.note}" for row in rows if row.note), sep="")
    ratios = stages.ratios(rows)
    if ratios:
        print("\ntheir time for a self-edit over ours, compiling left out:")
    for name, of in ratios.items():
        print(f"  {name:<11}" + "   ".join(f"{table.TITLES[stage]} {ratio:.2f}" for stage, ratio in of.items()))
    figures = [row.figures(bench.peak) for row in rows]
    return {"peer_ratio": stages.peer_ratio(rows), "ratios": ratios, "rows": figures}


def about(bench: Bench) -> dict[str, Any]:
    """What the figures were measured on and with."""
    versions = {package: importlib.metadata.version(package) for package in ("jax", "jaxlib", "flax", "optax", "numpy")}
    for peer in bench.peers.values():
        versions |= peer.versions
    described = {"machine": runtime.describe_machine(), "versions": versions, "peak": bench.peak._asdict()}
    return {**described, "model": dataclasses.asdict(bench.model)}


def shape_of(name: str) -> ModelConfig:
    """The shape of a model, by name or from its files; nothing is fetched.

    Raises:
        ValueError: it is not on this machine yet.
    """
    try:
        return named(name)
    except ValueError:
        if hub.locate(name).cached:
            return weights.read_shape(hub.find_model(name))
        raise ValueError(f"{name} is not on this machine yet; name a shape: --random llama-3.2-1b") from None


def parse(arguments: Sequence[str]) -> Settings | compiled.Settings:
    """`[peers|inner|...|check|compile] [--options]`; peers if none is named. A typo ends it."""
    if arguments[:1] == ["compile"]:
        return tyro.cli(compiled.Settings, prog=f"{PROGRAM} compile", args=arguments[1:], description=compiled.__doc__)
    return tyro.cli(Settings, prog=PROGRAM, args=arguments, description=__doc__)


def check(settings: Settings) -> None:
    """What would only fail at the end fails at once.

    Raises:
        ValueError: an option of another subcommand, a peer that is not installed, a plot that cannot be drawn.
        OSError: a folder that is not there.
    """
    for name, commands in PARTS.items():
        if getattr(settings, name) != getattr(Settings, name) and settings.command not in commands:
            raise ValueError(
                f"--{name.replace('_', '-')} belongs to {' and '.join(commands)}, not to {settings.command}"
            )
    for peer in settings.peer:
        if peer == SKYRL_TX and settings.command not in ("peers", "inner", "scaling"):
            raise ValueError(f"--peer {peer} only trains: it belongs to peers, inner and scaling")
        require_installed(peer, settings.peer_python)
    if settings.base != "full" and (settings.peer or settings.dry_run):
        raise ValueError(f"--base {settings.base}: peers hold full weights, and the limit is of those: leave it out")
    if settings.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install matplotlib, or leave --plot out")
    for path in (settings.json, settings.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"{path}: its folder does not exist")


def measured(settings: Settings) -> dict[str, Any]:
    """Runs a subcommand, which prints as it goes, and returns what belongs into the JSON file."""
    with opened(settings) as bench:
        work = {
            "round": whole_round.show,
            "profile": profile.show,
            "scaling": scaling.show,
            "check": device.show,
            "bases": bases.show,
        }
        found = work.get(settings.command, compare)(bench)
        return {"peer_ratio": dict.fromkeys(stages.RATIOS), **about(bench), **found}


def main(arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback."""
    try:
        settings, status = parse(arguments), 0
        if isinstance(settings, compiled.Settings):
            if settings.fits:
                result = fits.show(settings)
            else:
                status, result = compiled.main(settings, shape_of(settings.model))
        else:
            check(settings)
            if settings.dry_run:
                print(*limit_lines(shape_of(settings.random or settings.model), settings), sep="\n")
                return 0
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            if load is not None and load > BUSY:
                print(f"note: the machine is busy (load {load:.1f}); figures worth keeping want an idle one")
            result = {**measured(settings), "load_before": load, "settings": dataclasses.asdict(settings)}
        if settings.json is not None:
            result["command"] = shlex.join([*PROGRAM.split(), *arguments])
            settings.json.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


# ---------------------------------------------------------------------------------------------------------------------
# The limit, without running


def limit_lines(model: ModelConfig, settings: Settings) -> list[str]:
    """FLOPs and bytes of a self-edit at the least, for a model of this shape."""
    size, devices = 4 if settings.dtype == "float32" else 2, settings.devices or 1
    sharing, epochs = settings.adapters / devices, settings.epochs
    lines = [
        f"{settings.random or settings.model}: {costs.model_parameters(model) / 1e6:,.1f} M parameters, "
        f"{costs.matmul_parameters(model) / 1e6:,.1f} M of them multiplied with every token, {size} bytes each",
        f"{settings.adapters} adapters of rank {settings.rank} at a time, {epochs} epochs; on each of "
        f"{devices} devices {sharing:g} share a reading of the weights",
        "",
        f"{'a self-edit':<44}{'tokens':>8}{'TFLOP':>9}{'GB':>9}{'FLOP/byte':>11}",
    ]

    def add(title: str, tokens: float, phases: Sequence[costs.Cost], second: str) -> None:
        for phase, name, count in zip(phases, (title, f"{title}: {second}"), (f"{tokens:,.0f}", ""), strict=True):
            figures = f"{phase.flops / 1e12:>9.3g}{phase.bytes / 1e9:>9.3g}{phase.flops / phase.bytes:>11.3g}"
            lines.append(f"{name:<44}{count:>8}{figures}")

    for stage in workloads.TARGETS:
        lengths = workloads.seal(64, seed=settings.seed) if stage == "seal" else workloads.uniform(1)
        lora = costs.lora_parameters(model, workloads.TARGETS[stage], settings.rank)
        phases = costs.mean_training(model, lora, lengths, epochs=epochs, sharing=sharing, itemsize=size)
        add(table.TITLES[stage], epochs * sum(map(sum, lengths)) / len(lengths), phases, "optimiser")
    lora = costs.lora_parameters(model, workloads.TARGETS["train_qv"], settings.rank)
    answering = costs.decoding(
        model, lora, prompts=workloads.QUESTIONS, samples=1, prompt_tokens=workloads.QUESTION_TOKENS,
        new_tokens=workloads.ANSWER_TOKENS, sharing=sharing, itemsize=size,
    )  # fmt: skip
    add("answer", workloads.QUESTIONS * workloads.ANSWER_TOKENS, answering, "token by token")
    ragged = workloads.draw_tokens(workloads.seal(settings.edits, seed=settings.seed), 2, seed=settings.seed)
    trainer = ours.trainer(model, settings.fine_tuning("seal"), ragged, min(settings.adapters, settings.edits))
    computed = ours.processed_tokens(
        costs.model_parameters(model), ragged, trainer, seed=settings.seed, devices=devices
    )  # fmt: skip
    padding = computed / (epochs * sum(len(s.ids) for edit in ragged for s in edit))
    lines.append(f"\n{settings.edits} ragged self-edits in ticks: {padding:.2f} tokens computed for each real one")
    return lines
