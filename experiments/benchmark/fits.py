"""What fits where: the planner's cut (engine/memory.py) of every published shape, for cards and TPUs that one can rent.

A cell has the adapters that train at a time over all devices, and after a slash how many devices share one model where
one alone does not hold it; a dash where all of them do not. A forecast: nothing is compiled.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from seal_jax.engine import memory
from seal_jax.engine.training import Shapes
from seal_jax.io.architectures import NAMED
from seal_jax.nn.transformer import Attention, ModelConfig
from seal_jax.types import MeshShape

from .compiled import CHIPS, Chip, Settings, machine, planned
from .workloads import ANSWER_TOKENS, QUESTION_TOKENS, QUESTIONS

COUNTS = (1, 4, 8)  # devices
CARDS = {"24 GB": 24.0, "80 GB": 79.1, "141 GB": 140.4}  # GiB, of which JAX takes three quarters where nobody says more
PLACES = {name: CHIPS["gpu-h100"]._replace(usable=0.75 * size * 2**30) for name, size in CARDS.items()}
PLACES |= {"v5e": CHIPS["tpu-v5e"], "v5p": CHIPS["tpu-v5p"]}


def cell(settings: Settings, model: ModelConfig, chip: Chip, count: int) -> str:
    """What so many devices of a kind train of a model."""
    attention: Attention = "xla" if chip.clock or settings.dtype == "float32" else "cudnn"
    settings = dataclasses.replace(settings, attention=attention)
    here = memory.smallest_share(model, machine(settings, chip, MeshShape(count)))
    cut, config, size = planned(settings, model, chip, here), settings.fine_tuning, here.fsdp * here.tensor
    asked = Shapes((settings.tokens,), 1, QUESTIONS, QUESTION_TOKENS, 1)
    train = memory.training(model, config, cut, here, adapters=1, width=settings.tokens).total
    answer = memory.answering(model, config, asked, here, adapters=1, max_tokens=ANSWER_TOKENS).total
    if max(train, answer) > memory.SHARE * here.free:
        return "-"
    return f"{cut.chunk}/{size}" if size > 1 else f"{cut.chunk}"


def show(settings: Settings) -> dict[str, Any]:
    """Prints a line for each shape, and returns its cells."""
    used = "".join(f"{f'{name}: {chip.usable / 2**30:.1f}':>21}" for name, chip in PLACES.items())
    print(
        f"adapters of rank {settings.rank} on q and v that train at a time, {settings.tokens} tokens a sequence; "
        f"{settings.dtype}, base {settings.base}\n\n{'GiB used of':<15}{used}\n{'devices':<15}"
        + "".join(f"{count:>7}" for _ in PLACES for count in COUNTS)
    )
    found: dict[str, list[str]] = {}
    for name in NAMED:
        if name != "tiny":
            found[name] = [cell(settings, NAMED[name], chip, n) for chip in PLACES.values() for n in COUNTS]
            print(f"{name:<15}" + "".join(f"{text:>7}" for text in found[name]), flush=True)
    return {"fits": found}
