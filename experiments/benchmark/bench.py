"""What all stages of one run share: the options, the model, the devices with their peak, and the peers."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from seal_jax.engine import costs
from seal_jax.engine.inner import Optimiser
from seal_jax.engine.training import FineTuning
from seal_jax.io import peft, weights
from seal_jax.io.architectures import named
from seal_jax.nn import lora, quantised, sharding, transformer
from seal_jax.nn.transformer import ModelConfig
from seal_jax.run import runtime
from seal_jax.types import Base, Codec, LanguageModel, require_at_least

from . import measuring, ours, workloads
from .peer_process import SKYRL_TX, Peer

CHECKED_ORDER = (0, 1) * 4  # steps whose losses are compared before any time is taken
SAME_LOSS, SAME_ROUNDED_LOSS = 1e-3, 0.1  # nats: in float32 on a CPU; elsewhere


Command = Literal["peers", "inner", "decode", "sample", "round", "scaling", "profile", "check", "bases"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and how much of it."""

    command: tyro.conf.Positional[Command] = "peers"  # everything that is compared; or one of the parts described above
    model: str = "smollm2-135m"  # smollm2-135m (embedded), a Hugging Face folder or hub id, or a GGUF file
    random: str | None = None  # random weights of a published shape instead: llama-3.2-1b, qwen2.5-7b, ... or tiny
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of the base model (auto: float32 on a CPU, else bfloat16)
    base: Base = "full"  # how the matrices of the base model's layers are kept: as dtype, or quantised
    attention: Literal["auto", "xla", "cudnn"] = "auto"  # auto: cudnn on an NVIDIA GPU in bfloat16, else xla
    devices: int | None = None  # that adapters are spread over; by default all GPUs or TPUs, and a CPU's cores up to 4
    peer: tuple[Literal["peft", "peft-x2", "skyrl-tx"], ...] = ()  # who else does the same work here
    peer_python: Path | None = None  # of an environment with skyrl-tx, for that peer
    adapters: int = 16  # self-edits trained at a time
    epochs: int = 10  # over a self-edit's sequences
    rank: int = 32  # LoRA r; alpha is twice that
    repeats: int = 3  # turns of each; medians are reported
    seed: int = 0  # of all tokens, lengths and orders
    json: Path | None = None  # where all figures are written
    dry_run: bool = False  # print the least that it can cost, and run nothing
    edits: int = 64  # peers, inner: self-edits of ragged lengths
    loss: Literal["next_token", "distillation"] = "next_token"  # inner: distillation is timed beside next_token
    workload: Literal["uniform", "seal", "both"] = "both"  # inner: sequences all alike, of ragged lengths, or both
    passages: int = 4  # round: passages of the round
    samples: int = 3  # round: self-edits of each
    seeds: int = 1  # round: training runs of each self-edit
    paper: bool = False  # round: the paper's numbers: 50 passages, 5 self-edits, 3 training runs
    over_adapters: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)  # scaling: numbers of adapters
    over_tokens: tuple[int, ...] = (16, 32, 64, 128, 256)  # scaling: lengths of all sequences
    over_models: tuple[str, ...] | None = None  # scaling: shapes (default: those the device has time and memory for)
    at_adapters: int = 8  # scaling: adapters where something else is varied
    steps: int = 8  # scaling: steps of a self-edit
    plot: Path | None = None  # scaling: where a plot is written (.svg, .png or .pdf)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) is int and field.name != "seed":
                    require_at_least(1, **{field.name: number})
        for name in (*filter(None, [self.random]), *(self.over_models or ())):
            named(name)

    def fine_tuning(self, stage: str) -> FineTuning:
        """The paper's inner loop, with this run's numbers."""
        return FineTuning(workloads.TARGETS[stage], self.rank, alpha=2.0 * self.rank, epochs=self.epochs)


class Bench(NamedTuple):
    """A model on its devices, and the peers that hold the same weights."""

    settings: Settings
    lm: LanguageModel
    model: ModelConfig
    itemsize: int  # bytes of a base parameter
    devices: Sequence[Any]
    peak: costs.Peak
    peers: dict[str, Peer]


def number_codec(stop: tuple[int, ...] = ()) -> Codec:
    """A token is a number, numbers are separated by blanks: no tokenizer is needed."""

    def encode(text: str) -> list[int]:
        return [int(word) for word in text.split()]

    return Codec(encode, encode, lambda ids: " ".join(map(str, ids)), f" {stop[0]}" if stop else "", stop)


@contextmanager
def opened(settings: Settings, peak: costs.Peak | None = None) -> Iterator[Bench]:
    """The bench of a run, with every peer's losses checked against ours; the peers end with it.

    Raises:
        ValueError: a peer that cannot run, or whose losses are not ours.
    """
    if settings.peer:  # leave the peers their share of a GPU
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    runtime.start(settings.devices)
    jax.config.update("jax_enable_compilation_cache", False)  # compile time is then what it is
    devices = jax.devices()[: runtime.device_count(settings.devices)]
    on_cpu = jax.default_backend() == "cpu"
    name = settings.dtype if settings.dtype != "auto" else "float32" if on_cpu else "bfloat16"
    dtype = jax.numpy.dtype(name)
    if settings.random is None:
        speaker = runtime.load(settings.model, dtype=name, style="auto", devices=settings.devices, base=settings.base)
        lm, model = speaker.lm, speaker.model
        assert model is not None, "loaded with its weights"
    else:
        model = named(settings.random)
        quantised.require(settings.base)
        mesh = runtime.make_mesh(model, settings.devices, None, name, settings.base)
        params = sharding.placed(quantised.of_params(transformer.random_params(0, model, dtype), settings.base), mesh)
        lm = LanguageModel(transformer.graph(model, dtype), params, number_codec(), mesh)
    attention = runtime.attention(name, model.head_dim) if settings.attention == "auto" else settings.attention
    lm = lm._replace(model=transformer.graph(model, dtype, attention, runtime.activations(name)))
    if peak is None:
        peak = measuring.measure_peak(dtype, devices)
        rates = f"{peak.flops / 1e12:.3g} TFLOP/s of {name} matrix products, {peak.bandwidth / 1e9:.3g} GB/s copied"
        print(f"{len(devices)} x {devices[0].device_kind}: {rates}", flush=True)
    bench = Bench(settings, lm, model, dtype.itemsize, devices, peak, {})
    with ExitStack() as stack:
        if settings.peer:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            weights.save_model(folder / "model", model, lm.params)
            for who in settings.peer:
                device = "cpu" if on_cpu else "cuda"
                peer = Peer(who, folder / "model", device=device, dtype=name, python=settings.peer_python)
                bench.peers[who] = stack.enter_context(closing(peer))
                bound = SAME_LOSS if on_cpu and name == "float32" else SAME_ROUNDED_LOSS
                require_equal_losses(bench, peer, folder / "adapter", bound)
        yield bench


def require_equal_losses(bench: Bench, peer: Peer, folder: Path, bound: float) -> None:
    """Trains some steps from one adapter on both sides: times of programs that compute something else say nothing.

    Raises:
        ValueError: a loss that differs by more than `bound` nats.
    """
    config, seed = bench.settings.fine_tuning("train_qv"), bench.settings.seed
    tokens = [s.ids for s in workloads.draw_tokens(workloads.uniform(1), bench.model.vocab_size, seed=seed)[0]]
    adapter = lora.init(
        jax.random.key(seed), bench.lm.params["blocks"], config.projections,
        max_rank=config.rank, rank=config.rank, alpha=config.alpha,
    )  # fmt: skip
    peft.save_peft(folder, adapter, rank=config.rank, base_model="")
    if peer.name == SKYRL_TX:  # it clips no gradients
        config = dataclasses.replace(config, optimiser=Optimiser(clip_norm=math.inf))
    expected = ours.losses(bench.lm, adapter, tokens, CHECKED_ORDER, config)
    work = (tokens, CHECKED_ORDER, config.projections, config.rank, config.alpha, config.learning_rate)
    peer.do("train", [(*work, str(folder))] * peer.processes)
    difference = max(float(np.abs(expected - reply["losses"]).max()) for reply in peer.replies)
    if not difference < bound:
        raise ValueError(
            f"--peer {peer.name}: trained from the same adapter, its losses differ from ours by {difference:.2g} nats, "
            f"expected less than {bound:g}: it does not do the same work here"
        )
    print(
        f"{peer.name}: {len(expected)} losses from the same adapter are ours within {difference:.1e} nats", flush=True
    )
