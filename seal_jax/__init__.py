"""Self-adapting language models (SEAL, arXiv 2506.10943) in JAX. Start reading at `engine/inner.py`.

`seal_jax.adapt(document, model)` teaches a model a document (`run/adapted.py`), `seal_jax.Library(folder)` many
(`run/library.py`); importing this package loads no JAX.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seal_jax.run.adapted import Adapted, Answer, Course, adapt
    from seal_jax.run.library import Library
    from seal_jax.seal.teaching import Teaching

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found": it is not needed

__version__ = "0.1.0"
__all__ = ["Adapted", "Answer", "Course", "Library", "Teaching", "adapt"]


def __getattr__(name: str) -> Any:
    """`adapt`, `Library` and their types, imported on first use."""
    if name in __all__:
        from seal_jax.run import adapted, library

        return getattr(library if name == "Library" else adapted, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
