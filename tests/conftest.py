"""Shared by all tests: two CPU devices, and small models with random weights in float32.

Nearly all of a test's time is compiling. So programs are compiled with few optimisations, and kept from run to run in
`.pytest_cache/compiled`, which the workers of pytest-xdist and the processes that tests start share (`make clean`
removes it).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import settings
from jax.sharding import Mesh

from seal_jax.nn.sharding import make_mesh
from seal_jax.nn.transformer import Model, ModelConfig, graph, random_params
from seal_jax.run.journal import RunFolder
from seal_jax.types import MeshShape

# XLA reads these before its first use, here and in every process that a test starts. One thread a device: two devices
# already use two cores. XLA's fusion emitters produce faster code, and take five times as long to compile it.
EMITTERS = " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""  # later ones have no choice
XLA_FLAGS = f"--xla_cpu_multi_thread_eigen=false{EMITTERS}"
COMPILING = {
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_disable_most_optimizations": True,
}
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA_FLAGS}".strip()
for name, value in COMPILING.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)
jax.config.update("jax_platforms", "cpu")  # equality in float32 is asked for, on machines with a GPU as well
jax.config.update("jax_num_cpu_devices", 2)

settings.register_profile("seal_jax", deadline=None, derandomize=True)  # no test asserts time; each run is the same
settings.load_profile("seal_jax")

TINY = ModelConfig(
    vocab_size=61,
    hidden_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    context_length=512,
)


class Tiny(NamedTuple):
    """A model whose logits differ by a few nats, whose attention is far from uniform and whose norms are not ones."""

    config: ModelConfig
    model: Model
    params: dict

    def logits(self, tokens, *, adapter=None, valid=None, params=None) -> np.ndarray:
        """All logits [B, T, V], without a cache."""
        return np.asarray(_logits(self.model, params or self.params, np.asarray(tokens), valid, adapter))


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens, valid, adapter):
    decoder = nnx.merge(model, params)
    return decoder.logits(decoder(tokens, valid=valid, adapter=adapter)[0])


@functools.cache
def make(seed: int, dtype: str, config: ModelConfig) -> Tiny:
    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        spread = {"scale": 0.3, "kernel": 0.2, "bias": 0.5, "embedding": 0.5}[path[-1].key]
        return jnp.asarray(spread * noise + (path[-1].key == "scale"), dtype)

    rng = np.random.default_rng(seed)
    params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: random_params(0, config)))
    return Tiny(config, graph(config, jnp.dtype(dtype)), params)


LONGEST = {
    "test_knowledge",
    "test_arc_experiment",
    "test_full_training",
    "test_inner",
    "test_rounds",
    "test_continual",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no worker is left with one when the others have finished."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="module", autouse=True)
def programs_of_this_file() -> Iterator[None]:
    """Drops compiled programs after a file where there are thousands: each uses some of the 65,530 mappings allowed."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def make_tiny():
    """`make_tiny(qk_norm=True, ...)`: a model of the shape `TINY` but for what is named."""

    def build(*, seed: int = 0, dtype: str = "float32", **changes) -> Tiny:
        return make(seed, dtype, ModelConfig(**{**vars(TINY), **changes}))

    return build


@pytest.fixture(scope="session")
def tiny(make_tiny) -> Tiny:
    return make_tiny()


@pytest.fixture(scope="session")
def mesh() -> Mesh:
    """Two CPU devices, each a lane."""
    return make_mesh(jax.devices()[:2], MeshShape(2))


@pytest.fixture
def killed_after(monkeypatch) -> Callable[[int], AbstractContextManager[list[bytes]]]:
    """`with killed_after(3) as lines: run()`: the run ends as its third line is in the journal; `lines` are those."""

    class Killed(BaseException):  # nothing may catch it
        pass

    @contextlib.contextmanager
    def context(count: int) -> Iterator[list[bytes]]:
        append, lines = RunFolder._append, []

        def dying(self, line):
            append(self, line)
            lines.append(line)
            if len(lines) == count:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(RunFolder, "_append", dying)
            yield lines

    return context
