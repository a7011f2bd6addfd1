"""Where arrays lie on a mesh (adapter, fsdp, tensor): the logical axes of a model, and the mesh axes of each.

`adapter` counts lanes: groups of devices that hold the model together, train and ask adapters of their own, and
exchange nothing with one another. Within a lane `fsdp` and `tensor` split each matrix along one axis each, and the
compiler sums activations over them. No weight moves: SEAL's steps are short, and a layer's activations are smaller
than its weights (Pope et al. 2022, arXiv 2211.05102, section 3.2.2: two-dimensional, weight-stationary).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, keystr

from seal_jax.nn.transformer import ModelConfig
from seal_jax.types import MeshShape

AXES = MeshShape._fields
RULES: dict[str | None, tuple[str, ...]] = {
    None: (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor", "fsdp"),  # so that no device sums logits of another, which are wider than all else
}
KERNELS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), ("embed", "heads")),
    **dict.fromkeys(("gate_proj", "up_proj"), ("embed", "mlp")),
    "o_proj": ("heads", "embed"),
    "down_proj": ("mlp", "embed"),
    "lm_head": (None, "vocab"),
}


def make_mesh(devices: Sequence[Any], shape: MeshShape) -> Mesh:
    """Devices as a mesh of three axes, which the compiler partitions over (but for `by_lane`)."""
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def lanes(mesh: Mesh | None) -> int:
    """Groups of devices that train and answer each for itself."""
    return 1 if mesh is None else mesh.shape["adapter"]


def share(mesh: Mesh | None) -> int:
    """Devices that hold a model together."""
    return 1 if mesh is None else mesh.size // lanes(mesh)


def lane(mesh: Mesh, number: int) -> Mesh:
    """One lane of a mesh, as a mesh."""
    return Mesh(mesh.devices[number : number + 1], mesh.axis_names, axis_types=mesh.axis_types)


def undivided(model: ModelConfig, shape: MeshShape) -> str:
    """What of a model a mesh splits and does not divide; "" if there is nothing. A vocabulary may also lie whole."""
    split = [("tensor", name) for name in ("num_heads", "num_kv_heads", "intermediate_size")]
    for axis, name in [*split, ("fsdp", "hidden_size")]:
        if getattr(model, name) % getattr(shape, axis):
            return f"{axis}={getattr(shape, axis)} does not divide the model's {name}, {getattr(model, name)}"
    return ""


def spec(path: Any, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How the array at a path of any tree lies within a lane: a parameter, an adapter's A or B, a moment of either.

    A and B follow the matrix that they are beside: A is split as its rows are, B as its columns.
    """
    logical = _logical([keystr((key,), simple=True) for key in path])
    logical = (*[None] * (len(shape) - len(logical)), *logical)
    return PartitionSpec(*(_dividing(RULES[name], size, mesh) for name, size in zip(logical, shape, strict=True)))


def _logical(names: Sequence[str]) -> tuple[str | None, ...]:
    """The logical axes of an array's last dimensions."""
    owner, leaf = ("", "", *names)[-2:]
    if leaf == "embedding":
        return "vocab", None
    if leaf in ("kernel", "bias"):
        return KERNELS[owner][0 if leaf == "kernel" else 1 :]
    if owner == "kernel":  # of a quantised one: codes and scales, and adapters laid over it, which one side splits
        rows, columns = KERNELS[names[-3]]
        return {"a": (rows, None), "b": (None, columns)}.get(leaf, (rows, columns))
    if leaf in KERNELS:  # of an adapter; of its moments, a tuple of two
        rows, columns = KERNELS[leaf]
        return (rows, None) if owner in ("a", "0") else (None, columns)
    return ()


def _dividing(axes: tuple[str, ...], size: int, mesh: Mesh) -> tuple[str, ...] | str | None:
    while axes and size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else axes[0] if axes else None


def shardings(tree: Any, mesh: Mesh) -> Any:
    """`spec` of each array of a tree, which may hold shapes alone."""
    return jax.tree_util.tree_map_with_path(lambda path, x: NamedSharding(mesh, spec(path, x.shape, mesh)), tree)


def placed(tree: Any, mesh: Mesh | None, under: Sequence[str] = ()) -> Any:
    """Parameters, of which the tree stands at a path of a model's, on the devices of the mesh or on the first.

    For good also on a single one: merged weights are placed, and would otherwise compile every program anew.
    """
    if mesh is None:
        return jax.device_put(tree, jax.devices()[0])
    above = tuple(DictKey(name) for name in under)
    where = lambda path, x: NamedSharding(mesh, spec((*above, *path), x.shape, mesh))
    return jax.device_put(tree, jax.tree_util.tree_map_with_path(where, tree))


def spread_shardings(tree: Any, mesh: Mesh) -> Any:
    """Of E adapters: each lane's on its own devices, and split as `spec` says."""
    where = lambda path, x: NamedSharding(mesh, PartitionSpec("adapter", *spec(path, x.shape, mesh)[1:]))
    return jax.tree_util.tree_map_with_path(where, tree)


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """E adapters on the devices, as `spread_shardings` says; as they are where there is no mesh."""
    return tree if mesh is None else jax.device_put(tree, spread_shardings(tree, mesh))


def constrained(tree: Any, mesh: Mesh | None) -> Any:
    """Inside of a program: the tree, to be laid out as `shardings` says."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def on_lane(tree: Any, own: Mesh) -> Any:
    """What a lane holds of a tree that all have; nothing is copied that lies there as it should."""
    devices = list(own.devices.flat)

    def view(leaf: Any, where: NamedSharding) -> Any:
        shards = {shard.device: shard.data for shard in getattr(leaf, "addressable_shards", ())}
        size = where.shard_shape(leaf.shape)
        if all(device in shards and shards[device].shape == size for device in devices):
            return jax.make_array_from_single_device_arrays(leaf.shape, where, [shards[d] for d in devices])
        return jax.device_put(leaf, where)

    return jax.tree.map(view, tree, shardings(tree, own))


def by_lane(function: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """A function that each lane computes of its share. The specs name `adapter` alone: the compiler does the rest."""
    if lanes(mesh) == 1:
        return function
    axes = set(AXES) if share(mesh) == 1 else {"adapter"}
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)
