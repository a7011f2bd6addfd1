"""What was learned, in the form that other programs serve: vLLM, SGLang, llama.cpp, Ollama, transformers."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from seal_jax.io import gguf_export, hub, peft
from seal_jax.run.adapted import ASKING, Adapted, stacked
from seal_jax.run.journal import write_atomically

Form = Literal["peft", "vllm", "sglang", "gguf", "merged-gguf", "merged"]
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM allows as the largest

_SERVERS = {
    "vllm": "vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {adapters}",
    "sglang": "python -m sglang.launch_server --model-path {base} --enable-lora --lora-paths {adapters}",
}


def copied(folder: Path, place: Path) -> Path:
    """An adapter's files, as PEFT reads them, in another folder; asking.json beside them has the prompt."""
    place.mkdir(parents=True, exist_ok=True)
    for file in (peft.CONFIG, peft.WEIGHTS, ASKING):
        if (folder / file).is_file():
            shutil.copyfile(folder / file, place / file)
    return place


def for_server(form: Literal["vllm", "sglang"], names: Sequence[str], model: str, out: Path) -> str:
    """Writes `serve.sh` for adapters that lie in `out`, each under its name; returns the command in it.

    In a request the adapter's name is the model.
    """
    ranks = [peft.read_config(out / name / peft.CONFIG).r for name in names]
    command = _SERVERS[form].format(
        base=shlex.quote(hub.published_as(model)),
        rank=next((rank for rank in _RANKS if rank >= max(ranks)), max(ranks)),
        adapters=" ".join(shlex.quote(f"{name}={(out / name).absolute()}") for name in names),
    )
    write_atomically(out / "serve.sh", f"#!/bin/sh\n{command}\n")
    return command


def for_llama_cpp(
    form: Literal["gguf", "merged-gguf"], names: Iterable[str], load: Callable[[str], Adapted], out: Path
) -> list[str]:
    """A GGUF file for each adapter, or each merged model, with a Modelfile for Ollama; returns llama.cpp's commands.

    Raises:
        ValueError: a merged model of a base that is quantised, or no GGUF file.
    """
    commands = []
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        adapted, file = load(name), out / f"{name}.gguf"
        base = hub.find_model(adapted.name).path
        start = base if base.is_file() else "BASE.gguf"
        if form == "gguf":
            whole = stacked([*adapted.below, adapted.adapter], adapted.lm.params["blocks"])
            gguf_export.save_adapter(file, whole, adapted.model, name=name)
            lines, served = f"FROM {start}\nADAPTER ./{file.name}\n", ["-m", str(start), "--lora", str(file)]
        else:
            gguf_export.save_model(file, adapted.model, adapted.merged(), base)
            lines, served = f"FROM ./{file.name}\n", ["-m", str(file)]
        write_atomically(out / f"{name}.Modelfile", lines)
        commands.append(shlex.join(["llama-server", *served]))
    return commands
