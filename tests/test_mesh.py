"""Eight CPU devices in every arrangement compute what one does; and who holds what."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from seal_jax.engine import memory, sampler
from seal_jax.io.architectures import NAMED
from seal_jax.nn import lora, sharding, transformer
from seal_jax.run import runtime
from seal_jax.types import PROJECTIONS, Compute, MeshShape
from tests import tiny

ROOT = Path(__file__).parents[1]
MESHES = [pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("2x2x2", "8x1x1", "1x8x1", "1x1x8")]
needs_qwix = pytest.mark.skipif(not find_spec("qwix"), reason="the extra `quant` is not installed")
PROGRAMS = (
    "inner",
    "distillation",
    "prefix",
    "on_policy",
    "sampling",
    "likelihood",
    "evaluation",
    "sft",
    "full",
    pytest.param("quantised", marks=needs_qwix),
)
BASES = ("full", *(pytest.param(base, marks=needs_qwix) for base in ("int8", "nf4")))


@pytest.fixture(scope="module", params=MESHES)
def on(request, tmp_path_factory) -> tuple[str, dict[str, np.ndarray]]:
    """A mesh, and what tests/meshes.py computes on it and on one device: it needs a process of its own."""
    out = tmp_path_factory.mktemp("meshes") / "out.npz"
    done = subprocess.run(
        [sys.executable, "-m", "tests.meshes", str(out), request.param],
        cwd=ROOT, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return request.param, dict(np.load(out))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_mesh_computes_what_one_device_does(on, program: str):
    mesh, figures = on
    names = [name for name in figures if name.startswith(f"{mesh}/{program}")]
    assert names
    for name in names:
        expected = figures["1x1x1" + name.removeprefix(mesh)]
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(figures[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(figures[name], expected, err_msg=name)


@pytest.mark.parametrize("base", BASES)
def test_a_device_holds_its_share_of_the_model(on, base: str):
    mesh, figures = on
    assert figures[f"{mesh}/held/{base}"] == pytest.approx(int(mesh[0]) / 8, rel=0.03)  # norms lie whole


def test_lanes_exchange_nothing(on):
    """Read off the compiled programs; within a lane the compiler sums."""
    mesh, figures = on
    within = {axis for axis, size in zip(("fsdp", "tensor"), mesh[2::2], strict=True) if size != "1"}
    for program in ("inner", "read", "likelihood", "answer", "write"):
        assert set(figures[f"{mesh}/collectives/full/{program}"].tolist()) == within
    lanes = {"adapter"} if mesh[0] != "1" else set()
    assert set(figures[f"{mesh}/collectives/full/sft"].tolist()) >= lanes  # which share the rows of one adapter


@needs_qwix
@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_no_quantised_matrix_is_brought_together(on, base: str):
    """Read off the compiled step: as much is gathered as of a base in full, and that is no matrix."""
    mesh, figures = on
    assert figures[f"{mesh}/gathered/{base}/inner"] == figures[f"{mesh}/gathered/full/inner"]


def test_what_was_compiled_for_a_model_serves_it_with_an_adapter_merged(tmp_path):
    """On one device, where weights that lie there by default are not those that were put there."""
    lm = runtime.load(str(tiny.model_folder(tmp_path / "model")), dtype="float32", style="raw", devices=1).lm
    tokens, compiled = np.ones((1, 1, 4), np.int32), sampler.read._cache_size()
    adapter = lora.init(jax.random.key(0), lm.params["blocks"], PROJECTIONS, max_rank=2, rank=2, alpha=2.0)
    for params in (lm.params, lora.merge(lm.params, jax.device_get(adapter))):
        sampler.read(lm.model, params, None, tokens, tokens > 0)
    assert sampler.read._cache_size() == compiled + 1


# ---------------------------------------------------------------------------------------------------------------------
# Which mesh


@pytest.mark.parametrize(
    ("mesh", "devices", "problem"),
    [
        ("tensor", None, "expected sizes of adapter, fsdp, tensor, such as adapter=4,tensor=2"),
        ("tensor=0", None, "expected sizes of"),
        ("model=2", None, "expected sizes of"),
        ("adapter=4,tensor=2", 4, "is 8 devices and --compute.devices 4"),
    ],
)
def test_a_mesh_that_is_none_is_refused(mesh: str, devices: int | None, problem: str):
    with pytest.raises(ValueError, match=problem):
        Compute(mesh=mesh, devices=devices)


def test_a_mesh_says_how_many_devices():
    assert Compute(mesh="adapter=4,tensor=2").devices == 8
    assert Compute(mesh="tensor=2").devices is None


@pytest.mark.parametrize(
    ("shape", "found"), [(MeshShape(2, 1, 2), "xla"), (MeshShape(4, 1, 1), "cudnn"), (MeshShape(1, 2, 2), "cudnn")]
)
def test_attention_is_xlas_where_lanes_of_several_devices_share_rows(shape: MeshShape, found: str):
    """On GPUs jax 0.11.2 does not compile cuDNN's there."""
    seen, mesh = [], AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    split = PartitionSpec("adapter")
    lane = sharding.by_lane(lambda x: seen.append(transformer.possible("cudnn")) or x, mesh, split, split)
    jax.eval_shape(lane, jax.ShapeDtypeStruct((4,), np.float32))
    assert seen == [found]


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        (MeshShape(1, 1, 4), ""),
        (MeshShape(1, 1, 8), "tensor=8 does not divide the model's num_heads, 28"),
        (MeshShape(1, 3, 1), "fsdp=3 does not divide the model's hidden_size, 3584"),
    ],
)
def test_what_a_mesh_does_not_divide_is_named(shape: MeshShape, problem: str):
    assert sharding.undivided(NAMED["qwen2.5-7b"], shape) == problem


@pytest.mark.parametrize(
    ("gib", "shape"), [(80, (8, 1, 1)), (24, (4, 1, 2)), (16, (2, 1, 4)), (8, (1, 2, 4)), (1, (1, 2, 4))]
)
def test_a_lane_is_as_few_devices_as_hold_the_model_also_while_it_answers(gib: float, shape: tuple[int, ...]):
    """7B in bfloat16 is 14.2 GiB, 26.4 with its layers laid out a second time; it has four key-value heads."""
    machine = memory.Machine(gib * 2**30, 8, itemsize=2, on_cpu=False)
    found = memory.smallest_share(NAMED["qwen2.5-7b"], machine)
    assert (found.devices, found.fsdp, found.tensor) == shape
