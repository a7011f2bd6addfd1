"""`benchmark compile`: what is read from a compiled program; that ours compile for devices that are not here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, PartitionSpec

from experiments.benchmark import command as benchmark
from experiments.benchmark import compiled, fits, hlo
from seal_jax.engine import memory
from seal_jax.io.architectures import NAMED

ROOT = Path(__file__).parents[1]
D = 64
LAYER = D * D * 2  # bytes of a matrix in bfloat16

# A layer's matrix is taken out of the stack and multiplied; a GPU's loop, whose count XLA wrote down.
COPIES = """
%slice (p.1: bf16[3,64,64], i.1: s32[]) -> bf16[64,64] {
  %p.1 = bf16[3,64,64]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %ds.1 = bf16[1,64,64]{2,1,0} dynamic-slice(%p.1, %i.1, %zero.1, %zero.1), dynamic_slice_sizes={1,64,64}
  ROOT %layer.1 = bf16[64,64]{1,0} bitcast(%ds.1)
}

%body (c.1: (s32[], bf16[8,64], bf16[3,64,64])) -> (s32[], bf16[8,64], bf16[3,64,64]) {
  %c.1 = (s32[], bf16[8,64]{1,0}, bf16[3,64,64]{2,1,0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%c.1), index=0
  %x.1 = bf16[8,64]{1,0} get-tuple-element(%c.1), index=1
  %w.1 = bf16[3,64,64]{2,1,0} get-tuple-element(%c.1), index=2
  %taken.1 = bf16[64,64]{1,0} fusion(%w.1, %n.1), kind=kLoop, calls=%slice
  %gemm.1 = (bf16[8,64]{1,0}, s8[4194304]{0}) custom-call(%x.1, %taken.1), custom_call_target="__cublas$gemm"
  %y.1 = bf16[8,64]{1,0} get-tuple-element(%gemm.1), index=0
  ROOT %t.1 = (s32[], bf16[8,64]{1,0}, bf16[3,64,64]{2,1,0}) tuple(%n.1, %y.1, %w.1)
}

%condition (c.2: (s32[], bf16[8,64], bf16[3,64,64])) -> pred[] {
  %c.2 = (s32[], bf16[8,64]{1,0}, bf16[3,64,64]{2,1,0}) parameter(0)
  %n.2 = s32[] get-tuple-element(%c.2), index=0
  %bound.2 = s32[] constant(3)
  ROOT %lt.2 = pred[] compare(%n.2, %bound.2), direction=LT
}

ENTRY %main (a.3: (s32[], bf16[8,64], bf16[3,64,64])) -> (s32[], bf16[8,64], bf16[3,64,64]) {
  %a.3 = (s32[], bf16[8,64]{1,0}, bf16[3,64,64]{2,1,0}) parameter(0)
  ROOT %loop.3 = (s32[], bf16[8,64]{1,0}, bf16[3,64,64]{2,1,0}) while(%a.3), condition=%condition, body=%body
}
"""
KNOWN = COPIES.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
WEIGHTS = {(D, D)}
TAKEN = 2 * LAYER + 4  # read, by a number, and written
ROUND = TAKEN + LAYER + 2 * 8 * D * 2  # and multiplied with 8 rows


@pytest.mark.parametrize("text", [KNOWN, COPIES], ids=["as XLA says", "by the condition"])
def test_a_loop_counts_as_often_as_it_goes_round(text: str):
    step = hlo.step(text, WEIGHTS)
    assert (step.kernels, step.moved) == (6, 3 * ROUND)
    assert (step.copied_in_loops, step.copied_once) == (3 * TAKEN, 0)


def test_of_a_loop_that_ends_by_its_data_one_round_is_the_step():
    step = hlo.step(COPIES.replace("direction=LT", "direction=NE"), WEIGHTS)
    assert (step.kernels, step.moved, step.copied_in_loops) == (2, ROUND, TAKEN)


def test_a_matrix_that_is_multiplied_where_it_lies_is_no_copy():
    inside = """  %x.9 = bf16[8,64]{1,0} parameter(2)
  ROOT %gemm.9 = (bf16[8,64]{1,0}, s8[4194304]{0}) custom-call(%x.9, %layer.1), custom_call_target="__cublas$gemm"
"""
    text = COPIES.replace("ROOT %layer.1", "%layer.1").replace("bitcast(%ds.1)\n", "bitcast(%ds.1)\n" + inside)
    text = text.replace(
        "%taken.1 = bf16[64,64]{1,0} fusion(%w.1, %n.1)", "%taken.1 = (bf16[8,64]{1,0}) fusion(%w.1, %n.1, %x.1)"
    )
    assert hlo.step(text, WEIGHTS).copied_in_loops == 0


def test_a_matrix_that_is_fetched_into_scratch_memory_is_no_copy():
    text = COPIES.replace("ROOT %layer.1 = bf16[64,64]{1,0}", "ROOT %layer.1 = bf16[64,64]{1,0:T(8,128)(2,1)S(1)}")
    step = hlo.step(text, WEIGHTS)
    assert step.copied_in_loops == 0
    assert step.moved == 3 * (ROUND - LAYER)  # read, and nothing written


def test_an_update_in_place_writes_the_update():
    text = """
ENTRY %main (a: f32[100,8], b: f32[1,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %dus = f32[100,8]{1,0} dynamic-update-slice(%a, %b, %i, %i), backend_config={"estimated_cycles":"70"}
}
"""
    step = hlo.step(text)
    assert (step.moved, step.cycles) == (32 + 4 + 32, 70)


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("all-reduce(%a), to_apply=%add", {"all-reduce": 4096}),
        ("all-reduce-start(%a), to_apply=%add", {"all-reduce": 4096}),
        ("all-gather-start(%a), dimensions={0}", {"all-gather": 4 * 4096}),
    ],
)
def test_what_is_exchanged_is_counted(line: str, sent: dict[str, float]):
    made = "(f32[1024]{0}, f32[4096]{0})" if "gather" in line else "f32[1024]{0}"
    program = "ENTRY %main (a: f32[1024]) -> f32[1024] {\n  %a = f32[1024]{0} parameter(0)\n"
    text = f"{program}  ROOT %r = {made} {line}\n}}\n"
    assert hlo.step(text).collectives == sent


@pytest.mark.parametrize(
    ("groups", "over"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "tensor"),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}", "fsdp"),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", "adapter, fsdp"),
        ("source_target_pairs={{0,4},{4,0}}", "adapter"),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, to_apply=%add", "tensor"),
        ("replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_2'}", "adapter, fsdp"),
        ("replica_groups={}, to_apply=%add", "adapter, fsdp, tensor"),
    ],
)
def test_the_axes_of_a_collective(groups: str, over: str):
    assert hlo.axes(f"channel_id=1, {groups}", {"adapter": 2, "fsdp": 2, "tensor": 2}) == over


def test_what_is_exchanged_through_scratch_memory_counts():
    text = "ENTRY %main (a: f32[8]) -> f32[8] {\n  %a = f32[8]{0:S(1)} parameter(0)\n"
    assert hlo.step(f"{text}  ROOT %r = f32[8]{{0:S(1)}} all-reduce(%a), to_apply=%add\n}}\n").collectives == {
        "all-reduce": 32
    }


def test_a_program_compiled_here_is_read():
    """Of today's XLA, whatever it writes: a scan's layers are found, and a sum over devices."""

    def layers(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    step = hlo.step(jax.jit(layers).lower(jnp.zeros((5, D, D)), jnp.zeros((8, D))).compile().as_text(), WEIGHTS)
    assert step.collectives == {}
    assert step.kernels >= 5
    assert step.moved >= 5 * D * D * 4
    mesh = Mesh(jax.devices()[:2], ("x",))
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, "x"), mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec()
    )
    assert hlo.step(jax.jit(total).lower(jnp.zeros((2, 256))).compile().as_text()).collectives == {"all-reduce": 1024}


def test_shapes_that_activations_have_too_are_no_weights():
    model = NAMED["qwen2.5-7b"]
    assert {(3584, 3584), (3584, 18_944), (28, 3584, 3584), (3584, 4608)} <= compiled.matrices(model, 768)
    assert (512, 3584) in compiled.matrices(model, 768) - compiled.matrices(model, 512)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def test_without_a_compiler_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert benchmark.main(["compile", "--random", "tiny"]) == 2
    assert "no compiler for a TPU or GPU is installed: pip install 'seal_jax[aot-tpu]'" in capsys.readouterr().err


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="--target tpu-v9:2x2: expected tpu-v4, tpu-v5e"):
        compiled.Settings("tpu-v9:2x2")


@pytest.mark.parametrize(
    ("name", "base", "place", "devices", "share"),
    [
        ("qwen2.5-7b", "full", "80 GB", 8, 1),
        ("qwen2.5-7b", "full", "24 GB", 1, None),  # 14.2 GiB, and a second time while it writes
        ("qwen2.5-7b", "full", "24 GB", 4, 2),
        ("qwen2.5-7b", "nf4", "24 GB", 1, 1),
        ("qwen2.5-72b", "full", "80 GB", 4, None),
        ("qwen2.5-72b", "full", "80 GB", 8, 8),
    ],
)
def test_what_fits_where(name: str, base, place: str, devices: int, share: int | None):
    found = fits.cell(compiled.Settings(base=base), NAMED[name], fits.PLACES[place], devices)
    adapters, _, size = found.partition("/")
    assert (found == "-") if share is None else (int(adapters) >= memory.ENOUGH and int(size or 1) == share)


@pytest.mark.parametrize(("target", "package"), [(name, package) for name, package in compiled.SMALL.items()])
def test_the_programs_compile_for_devices_that_are_not_here(target: str, package: str, tmp_path):
    """Two devices: adapters exchange nothing, the rows of one adapter's SFT their gradients."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"without {package} nothing compiles for {target}")
    target = target.replace(":1", ":2") if "gpu" in target else target
    options = f"--target {target} --random tiny --adapters 4 --devices 2 --programs inner answer sft --json".split()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", "compile", *options, str(tmp_path / "out.json")],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["targets"][target]["programs"]
    assert rows["inner"]["collectives"] == rows["answer"]["collectives"] == {}
    assert "all-reduce over adapter" in rows["sft"]["collectives"]
    assert all(row["bytes"] > 0 and row["floor"] > 0 for row in rows.values())
