"""The console script: `seal-jax squad demo`, `seal-jax adapt FILE`, `seal-jax report RUN`, `seal-jax env`.

Without arguments it lists the experiments, without importing JAX. In a clone, `python -m experiments` does the same.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from seal_jax.run import ends
from seal_jax.run.terminal import nearest

OF_A_LIBRARY = {  # subcommands of `library` that are names of their own
    "ask": "Asks a library, or one adapter: answers with what was learned beside the base model's.",
    "chat": "Questions to a library, or to one adapter, from the terminal.",
    "export": "Writes what was learned for vLLM, SGLang, llama.cpp, Ollama or transformers.",
}


def available(folder: Path) -> dict[str, str]:
    """The experiments in a folder by name, each with the first line of its docstring."""
    files = {path.stem: path for path in folder.glob("[!_]*.py")}
    files |= {path.parent.name: path.with_name("__init__.py") for path in folder.glob("*/__main__.py")}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in sorted(files.items())}
    found = {name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in trees.items()}
    return dict(sorted((found | OF_A_LIBRARY).items())) if "library" in found else found


def main(arguments: Sequence[str] | None = None, package: str = "seal_jax.experiments") -> int:
    """Runs `NAME ...`, an experiment of `package` with its options, and returns the exit status.

    Raises:
        ModuleNotFoundError: seal_jax is not installed.
    """
    if arguments is None:  # the console script: what is imported below takes seconds
        ends.until_heard()
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package}: install seal_jax, or run `python -m experiments` in a clone")
    folder = Path(spec.submodule_search_locations[0])
    known = available(folder)
    if name in ("-h", "--help"):
        start, width = ("seal-jax" if package.startswith("seal_jax") else f"python -m {package}"), max(map(len, known))
        print(f"usage: {start} NAME ...     ({start} NAME --help shows its options)\n")
        print(*(f"  {experiment:<{width}}  {text}" for experiment, text in known.items()), sep="\n")
        print(f"\n  {'env':<{width}}  Versions and devices, for a report of a bug.")
        return 0
    if name == "env":
        print(importlib.import_module("seal_jax.run.runtime").environment())
        return 0
    if (chosen := name.replace("-", "_")) not in known:
        print(f"error: no experiment {name}: {nearest(chosen, known)}", file=sys.stderr)
        return 2
    if chosen in OF_A_LIBRARY:
        chosen, rest = "library", [chosen, *rest]
    program = f"{chosen}.__main__" if (folder / chosen).is_dir() else chosen
    module = importlib.import_module(f"{package}.{program}")
    if hasattr(module, "main"):
        return int(module.main(rest))
    return int(importlib.import_module("seal_jax.run.command").main(module.EXPERIMENT, rest))


if __name__ == "__main__":
    sys.exit(main())
