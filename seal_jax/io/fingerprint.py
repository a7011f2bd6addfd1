"""What tells whether the files of a model or an adapter are those that a run began with.

Small files, and weights up to `WHOLE` bytes together, are hashed whole. Of larger weights the size, the header and
`BLOCKS` blocks spread evenly are: training changes every tensor, so other weights differ there too, and 15 GB take as
long as 64 MB. A change of a few bytes between the blocks is not seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from seal_jax.io import hub

WHOLE = 256 * 2**20  # bytes
BLOCKS, BLOCK = 256, 256 * 2**10  # how many, and bytes of each; the first holds the header
WEIGHTS = (".safetensors", ".gguf")
READ = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab*", "merges.txt")  # of a model's folder


def of_model(name: str) -> str:
    """Of the model that `hub.find_model` takes by this name; fetched first if need be.

    Raises:
        ValueError, OSError: as `hub.find_model`.
    """
    if name in hub.EMBEDDED:
        return hub.EMBEDDED[name].member_sha256[:16]  # which `find_model` verifies whenever it is loaded
    path = hub.find_model(name).path
    return of_files({file for pattern in READ for file in path.glob(pattern)} if path.is_dir() else [path])


def of_files(files: Iterable[Path]) -> str:
    """Of files: their names and contents."""
    ordered = sorted(files, key=lambda file: file.name)
    large = sum(file.stat().st_size for file in ordered) > WHOLE
    found = hashlib.sha256()
    for file in ordered:
        size = file.stat().st_size
        found.update(f"{file.name} {size} ".encode() if file.suffix != ".gguf" else f"{size} ".encode())
        with file.open("rb") as opened:
            if large and file.suffix in WEIGHTS and size > BLOCKS * BLOCK:
                for number in range(BLOCKS):
                    opened.seek(number * (size - BLOCK) // (BLOCKS - 1))
                    found.update(opened.read(BLOCK))
            else:
                found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()[:16]
