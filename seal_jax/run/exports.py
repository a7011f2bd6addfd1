"""What was learned, in the form that other programs serve: vLLM, SGLang, llama.cpp, Ollama, transformers."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from seal_jax.io import gguf_export, hub, peft
from seal_jax.run.adapted import ASKING, Adapted
from seal_jax.run.journal import write_atomically

Form = Literal["vllm", "sglang", "gguf", "merged-gguf", "merged"]
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM allows as the largest

_SERVERS = {
    "vllm": "vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {adapters}",
    "sglang": "python -m sglang.launch_server --model-path {base} --enable-lora --lora-paths {adapters}",
}


def for_server(form: Literal["vllm", "sglang"], folders: Mapping[str, Path], model: str, out: Path) -> str:
    """Copies adapters to `out`, each in PEFT's layout under its name, with `serve.sh`; returns the command in it.

    In a request the adapter's name is the model; asking.json beside it has the prompt.
    """
    ranks = []
    for name, folder in folders.items():
        place = out / name
        place.mkdir(parents=True, exist_ok=True)
        for file in (peft.CONFIG, peft.WEIGHTS, ASKING):
            if (folder / file).is_file():
                shutil.copyfile(folder / file, place / file)
        ranks.append(peft.read_config(folder / peft.CONFIG).r)
    command = _SERVERS[form].format(
        base=shlex.quote(hub.published_as(model)),
        rank=next((rank for rank in _RANKS if rank >= max(ranks)), max(ranks)),
        adapters=" ".join(shlex.quote(f"{name}={(out / name).absolute()}") for name in folders),
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
            gguf_export.save_adapter(file, adapted.adapter, adapted.model, name=name)
            lines, served = f"FROM {start}\nADAPTER ./{file.name}\n", ["-m", str(start), "--lora", str(file)]
        else:
            gguf_export.save_model(file, adapted.model, adapted.merged(), base)
            lines, served = f"FROM ./{file.name}\n", ["-m", str(file)]
        write_atomically(out / f"{name}.Modelfile", lines)
        commands.append(shlex.join(["llama-server", *served]))
    return commands
