"""Arrays that a caller has spread over the devices of a mesh with Explicit axes.

`jax.make_mesh` makes such axes by default. There the type of an array says how it is placed, and
most operations ask where their result goes. The compiler knows, as it does for Auto axes: so what
this package computes runs with these.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"  # the axis of a mesh whose devices share what there is of signals

F = TypeVar("F", bound=Callable[..., Any])


def on_auto_axes(function: F) -> F:
    """A compiled function whose arrays may lie on Explicit axes, also under `vmap` and `jit`.

    The results are on the same mesh, in every axis that the function sees on all devices; an axis
    of `vmap` stays spread as it was.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, options))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
        mesh = _explicit_mesh(leaves[i] for i in places)
        if mesh is None:
            return function(*args, **options)

        def with_arrays(*arrays: Any) -> Any:
            whole = list(leaves)
            for i, array in zip(places, arrays):
                whole[i] = array
            args, options = jax.tree.unflatten(tree, whole)
            return function(*args, **options)

        with jax.sharding.use_abstract_mesh(mesh):
            automatic = jax.sharding.auto_axes(
                with_arrays, axes=mesh.explicit_axes, out_sharding=PartitionSpec()
            )
            return automatic(*(leaves[i] for i in places))

    return call  # type: ignore[return-value]  # of the same signature


def takes_sharded(function: F) -> F:
    """A function of the host whose known arrays may lie on Explicit axes: there they become Auto.

    No number is moved. A mesh with Explicit axes that the caller has set is an Auto one meanwhile.
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        leaves = jax.tree.leaves((args, options))
        mesh = _explicit_mesh(leaf for leaf in leaves if isinstance(leaf, jax.Array))
        if mesh is None:
            return function(*args, **options)
        args, options = jax.tree.map(_retyped, (args, options))
        if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
            return function(*args, **options)
        with jax.set_mesh(_auto(jax.sharding.get_mesh())):
            return function(*args, **options)

    return call  # type: ignore[return-value]  # of the same signature


def compiler_splits() -> bool:
    """Whether a mesh is set along which the compiler may split arrays: an Auto axis of several."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_sizes, mesh.axis_types)
    return any(size > 1 and kind == AxisType.Auto for size, kind in axes)


def _explicit_mesh(arrays: Any) -> Any:
    """The mesh with Explicit axes of some array; None where there is none."""
    meshes = (jax.typeof(array).sharding.mesh for array in arrays)
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def data_mesh(mesh: Any, where: str) -> Mesh:
    """A mesh with the axis "data", with axes that the compiler partitions.

    Raises:
        TypeError: no mesh. ValueError: a mesh without that axis.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"{where}: mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}; try "
            'jax.make_mesh((len(jax.devices()),), ("data",))'
        )
    if DATA not in mesh.shape:
        raise ValueError(f"{where}: mesh has the axes {mesh.axis_names}; expected one named 'data'")
    return _auto(mesh)


def _auto(mesh: Any) -> Mesh:
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def _retyped(leaf: Any) -> Any:
    placed = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    if not (placed and isinstance(leaf.sharding, NamedSharding)):
        return leaf
    return jax.device_put(leaf, NamedSharding(_auto(leaf.sharding.mesh), leaf.sharding.spec))
