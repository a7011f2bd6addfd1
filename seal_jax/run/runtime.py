"""The machine: which devices a run uses, compiled programs kept between runs, and a named model made ready on them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from seal_jax.engine import memory
from seal_jax.engine.memory import Writing
from seal_jax.engine.training import FineTuning, Shapes
from seal_jax.io import hub, tokenizer, weights
from seal_jax.io.hub import cache_folder
from seal_jax.nn import quantised, sharding, transformer
from seal_jax.nn.transformer import Attention, ModelConfig
from seal_jax.run import hosts
from seal_jax.run.terminal import CLONE
from seal_jax.types import Base, Compute, Hosts, LanguageModel, MeshShape, Style, mesh_sizes, opens_thought

# A CPU's cores become devices of one thread each: adapters are split over them, which beats one device of many threads
# (docs/log.md) and adds nothing up in an order that depends on timing. It has to be said before JAX starts.
MAX_CPU_DEVICES = 4  # each holds a copy of the weights
PACKAGES = ("seal_jax", "jax", "jaxlib", "flax", "optax", "transformers", "orbax-checkpoint", "qwix", "torch", "peft")
CPU_FLAGS = "--xla_cpu_multi_thread_eigen=false"


def start(devices: int | None) -> None:
    """Settles the number of CPU devices and the cache of compiled programs. Call before any other use of JAX."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # ten lines of retries, before the error that counts
    if CPU_FLAGS not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {CPU_FLAGS}".strip()
    if devices or "xla_force_host_platform_device_count" not in os.environ["XLA_FLAGS"]:
        jax.config.update("jax_num_cpu_devices", devices or min(_cores(), MAX_CPU_DEVICES))
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # which JAX reads by itself
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def device_count(devices: int | None) -> int:
    """How many devices a run uses: those asked for, or all. Starts them.

    Raises:
        ValueError: more than there are; JAX starts none.
    """
    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is missing, and says nothing
        asked = f" for JAX_PLATFORMS={name}" if (name := os.environ.get("JAX_PLATFORMS")) else ""
        reason = str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".") or "this machine has none of that kind"
        raise ValueError(
            f"JAX finds no device{asked}: {reason}. Set JAX_PLATFORMS=cpu, which works everywhere, or unset it; a GPU "
            "wants JAX installed for it: pip install -e '.[cuda13]' (or '.[cuda12]')"
        ) from error
    if devices is not None and not 1 <= devices <= len(found):
        raise ValueError(f"--compute.devices {devices}: found {len(found)} ({found[0].platform})")
    return devices or len(found)


def make_mesh(
    model: ModelConfig,
    devices: int | None,
    mesh: str | None,
    dtype: str,
    base: Base = "full",
    group: Hosts | None = None,
) -> Mesh | None:
    """The mesh over so many devices (None: all) that was asked for, or the smallest lanes that the model fits on; None
    for a single device. A CPU's share one memory, of which others take their part: there each is a lane. The processes
    of a group have the same mesh, which fits on the devices of each.

    Raises:
        ValueError: the mesh is not as many devices, or does not divide the model.
    """
    count = device_count(devices)
    if mesh is None and jax.default_backend() == "cpu":
        shape = MeshShape(count)
    elif mesh is None:
        here = machine(model, devices, dtype, base)._replace(devices=count)
        free = min(group.gather(here.free)) if group else here.free
        chosen = memory.smallest_share(model, here._replace(free=free))
        shape = MeshShape(chosen.devices, chosen.fsdp, chosen.tensor)
    else:
        sizes = mesh_sizes(mesh)
        size = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
        shape = MeshShape(**{"adapter": count // size, **sizes})
        if shape.adapter * size != count:
            raise ValueError(
                f"--compute.mesh {mesh}: there are {count} devices; expected sizes whose product is that number, or "
                "another --compute.devices"
            )
        if problem := sharding.undivided(model, shape):
            raise ValueError(f"--compute.mesh {mesh}: {problem}; expected a divisor of it")
    return None if count == 1 else sharding.make_mesh(jax.devices()[:count], shape)


def free_memory(devices: int | None) -> float:
    """Bytes that each device of a run has left. The devices of a CPU share its memory."""
    stats = [device.memory_stats() or {} for device in jax.devices()[: device_count(devices)]]
    if all("bytes_limit" in s for s in stats):
        return min(s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats)
    group = hosts.joined()
    return memory.available() / len(stats) / (group.neighbours if group else 1)


class Speaker(NamedTuple):
    """A model made ready, and how it is prompted."""

    lm: LanguageModel
    model: ModelConfig | None  # None in a plan where the model is not on this machine yet
    style: Style
    render: Callable[[str], str]  # a prompt -> as it reads it

    @property
    def opens_thought(self) -> bool:
        """Whether its chat template begins every reply inside a thought (Qwen3-Thinking, R1's distillations)."""
        return self.style == "chat" and opens_thought(self.render("?"))

    @property
    def context_length(self) -> int:
        """Tokens."""
        return sys.maxsize if self.model is None else self.model.context_length


def load(
    name: str,
    *,
    dtype: str,
    style: str,
    devices: int | None,
    base: Base = "full",
    mesh: str | None = None,
    with_weights: bool = True,
    may_think: bool = False,
    alone: bool = False,
) -> Speaker:
    """A model by name, on the devices. Without weights, for a plan: nothing is fetched. All processes that share a run
    load it, unless this one does it `alone`.

    Raises:
        ValueError: a chat style for a model without a chat template; a template that opens a thought where there is no
            room for one (unless it `may_think`); files of it that are refused; a mesh that does not fit; no qwix, where
            `base` needs it.
        FileNotFoundError: there is no such model.
    """
    quantised.require(base)
    if not with_weights and not hub.locate(name).cached:
        nothing: Any = None
        lm = LanguageModel(nothing, {}, tokenizer.stand_in_codec())
        return Speaker(lm, None, "chat" if style == "chat" else "raw", str)
    files = hub.find_model(name)
    device_count(devices)  # too many are refused before anything is read
    text = tokenizer.load_tokenizer(files)
    codec = tokenizer.make_codec(text, files)
    chat = (lambda prompt: tokenizer.chat(text, prompt)) if text.chat_template else None
    manner, render = in_style(style, chat, name)
    if not may_think and manner == "chat" and opens_thought(render("?")):
        raise ValueError(
            f"{name}: its chat template opens a thought before every reply, and answers and self-edits would end "
            "inside it. Use a model that answers at once (of Qwen3, one named Instruct, or one that can do both), or "
            "prompt it without its template: --style raw"
        )
    shape, params = weights.read_shape(files), {}
    group = None if alone else hosts.joined()
    over = make_mesh(shape, devices, mesh, dtype, base, group)
    if with_weights:
        params = sharding.placed(weights.load_model(files, dtype=jnp.dtype(dtype), base=base, mesh=over)[1], over)
    tokenizer.require_rows(text, shape.vocab_size, str(files.path))
    render("a template that cannot be rendered is refused now, and not in the middle of a run")
    graph = transformer.graph(shape, jnp.dtype(dtype), attention(dtype, shape.head_dim), activations(dtype))
    return Speaker(LanguageModel(graph, params, codec, over, group), shape, manner, render)


def in_style(style: str, chat: Callable[[str], str] | None, name: str) -> tuple[Style, Callable[[str], str]]:
    """How model `name`, with or without a chat template, is spoken to: in chat or raw style (auto: as it is made), and
    a prompt -> as it then reads it.

    Raises:
        ValueError: a chat style for a model without a chat template.
    """
    if style == "raw" or (style == "auto" and chat is None):
        return "raw", str
    if chat is None:
        raise ValueError(f"style chat: {name} has no chat template; use style raw (--style raw)")
    return "chat", chat


def attention(dtype: str, head_dim: int) -> Attention:
    """What computes attention here: cuDNN on an NVIDIA GPU in bfloat16, where this JAX can differentiate through it and
    it has heads of that size."""
    nvidia = jax.default_backend() == "gpu" and "NVIDIA" in jax.devices()[0].device_kind
    if not nvidia or dtype != "bfloat16" or jax.__version_info__ < (0, 11, 2):
        return "xla"
    fits = float(jax.devices()[0].compute_capability) >= 8 and head_dim % 8 == 0 and head_dim <= 128
    return "cudnn" if fits else "xla"


def activations(dtype: str) -> jnp.dtype:
    """What a model of weights in `dtype` computes in: on a CPU always in float32 (nn/products.py)."""
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else dtype)


def itemsize(dtype: str) -> int:
    """Bytes of a number while the base model computes. Weights are counted like activations: too many on a CPU."""
    return 2 if dtype == "bfloat16" and jax.default_backend() != "cpu" else 4


def for_device(compute: Compute, preset: Compute) -> Compute:
    """`compute` without the sizes that a preset has for a CPU's cores, on GPUs and TPUs: there the memory decides.

    Raises as `device_count`.
    """
    device_count(compute.devices)
    if jax.default_backend() == "cpu":
        return compute
    sizes = ("chunk", "answer_chunk", "write_chunk")
    left_open: dict[str, Any] = {n: None for n in sizes if getattr(compute, n) == getattr(preset, n)}
    return dataclasses.replace(compute, **left_open)


def fit(
    model: ModelConfig, config: FineTuning, shapes: Shapes, compute: Compute, sizes: Writing, dtype: str, base: Base,
    mesh: Mesh | None,
) -> Compute:  # fmt: skip
    """`memory.fit` on this machine, to the memory that is free now on each of the devices. The model is loaded: what
    it takes is no longer free, and in the plan."""
    here = before_loading(model, machine(model, compute.devices, dtype, base, mesh), dtype)
    return memory.fit(model, config, shapes, compute, sizes, here)


def before_loading(model: ModelConfig, here: memory.Machine, dtype: str) -> memory.Machine:
    """The machine as it was before it held the model: bfloat16 is widened on a CPU where it computes, not kept so."""
    kept = here._replace(itemsize=2 if dtype == "bfloat16" else 4)
    return here._replace(free=here.free + memory.base_bytes(model, kept))


def machine(
    model: ModelConfig, devices: int | None, dtype: str, base: Base = "full", mesh: Mesh | None = None
) -> memory.Machine:
    """What a run on so many devices is planned for."""
    backend, group = jax.default_backend(), hosts.joined()
    return memory.Machine(
        free_memory(devices), sharding.lanes(mesh) * (group.count if group else 1), itemsize(dtype),
        on_cpu=backend == "cpu", attention=attention(dtype, model.head_dim),
        vector_width=memory.TPU_LANES if backend == "tpu" else 1, base=base,
        fsdp=mesh.shape["fsdp"] if mesh else 1, tensor=mesh.shape["tensor"] if mesh else 1,
    )  # fmt: skip


def device_name(devices: int | None) -> str:
    """`1 x NVIDIA H200`; of a CPU the processor's name."""
    count, kind = device_count(devices), jax.devices()[0].device_kind
    return f"{count} x {_processor() if kind == 'cpu' else kind}"


def describe_machine() -> dict[str, Any]:
    """What the figures of a run were measured on, by which version, and when; memory is this process's."""
    devices, group = jax.devices(), hosts.joined()
    processes = f"{group.count} processes, each with " if group else ""
    on_device = max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    at_peak = f"{resident / 2**30:.1f} GiB"
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": _cores(),
        "devices": f"{processes}{len(devices)} x {devices[0].device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "seal_jax": versions().get("seal_jax"),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "memory at the peak": at_peak + (f", {on_device / 2**30:.1f} GiB on a device" if on_device else ""),
    }


def versions() -> dict[str, str]:
    """Of the packages that a run's figures or errors may depend on, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def environment() -> str:
    """Versions, devices and folders, for a person to copy into a report."""
    start(None)
    try:
        devices = device_name(None)
    except ValueError as error:
        devices = str(error)
    lines = {"python": f"{platform.python_version()}, {sys.executable}", "platform": platform.platform()}
    lines |= versions() | {"commit": _commit() or "no clone", "devices": devices, "models": str(cache_folder())}
    return "\n".join(f"{name:<18}{text}" for name, text in lines.items())


def _commit() -> str | None:
    """Of the clone that runs, `-dirty` where files were changed; None where it is no clone."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(CLONE.parent), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        if CLONE.is_file():
            return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return None


def _cores() -> int:
    """Cores this process may run on (not every system can tell)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    return _of_cpu("model name") or platform.processor()


def _of_cpu(field: str) -> str:
    """What Linux says of the processor; nothing elsewhere."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(field))
    return ""


def faster_here(dtype: str) -> str | None:
    """What one is told who trains in float32 on a CPU whose products of bfloat16 are faster (docs/performance.md)."""
    if dtype == "float32" and jax.default_backend() == "cpu" and "amx_bf16" in _of_cpu("flags").split():
        return "this processor has AMX: --dtype bfloat16 trains in about two thirds of the time"
    return None
