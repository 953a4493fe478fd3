"""Decorators, loops and adjoints for compiled programs, also with arrays that devices share.

One decorator compiles a function, one runs a function on the host, and two accept arrays that are
split over devices. `exportable` registers the pytree nodes that an exported program may take.

The loops and the adjoint call the functions of JAX, and also run inside `jax.shard_map` with its
default checks. In a `shard_map` the type of an array says along which axes its numbers differ
between devices, and JAX requires that the state of a loop keeps its type. Initial zeros are equal
on all devices, but later states are not; the loops give the initial state the type of later states.
"""

import functools
import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unrolled._base import checks
from unrolled._base.arguments import checked

DATA = "data"  # the axis of a mesh whose devices share the signals

F = TypeVar("F", bound=Callable[..., Any])


def on_auto_axes(function: F) -> F:
    """Let a compiled function take arrays split along Explicit axes, also under `vmap` and `jit`.

    The results are on the mesh of the arguments. Every device holds the whole of each axis that the
    function sees; an axis of `vmap` stays split as before.
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
    """Let a host function take known arrays split along Explicit axes; the axes become Auto.

    No number moves to another device. If the caller has set a mesh with Explicit axes, its axes are
    Auto during the call.
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
    """Whether the compiler may split arrays: the mesh has an Auto axis of several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_sizes, mesh.axis_types)
    return any(size > 1 and kind == AxisType.Auto for size, kind in axes)


def _explicit_mesh(arrays: Any) -> Any:
    """The mesh of an array with Explicit axes; None if no array has such axes."""
    meshes = (jax.typeof(array).sharding.mesh for array in arrays)
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def data_mesh(mesh: Any, where: str) -> Mesh:
    """The mesh with Auto axes, which the compiler partitions; an axis must be named "data".

    Raises:
        TypeError: the argument is not a mesh.
        ValueError: the mesh has no axis named "data".
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


_KNOWN = np.zeros((), bool)


def program(*static: str) -> Callable[[F], F]:
    """Compile a function as one program for each shape of its arguments; keep the function's type.

    Outside of `jit` every operation on a new shape compiles a separate program. A function that
    checks values makes the checks first and then passes the arrays to a compiled function; a
    function that checks only shapes is compiled itself. Inside another `jit` the function is part
    of that program, as if it were not compiled.

    Args:
        static: names of the arguments that are not arrays. If one of these arguments has no hash,
            the function runs without compilation.
    """

    def decorate(function: F) -> F:
        compiled = on_auto_axes(jax.jit(function, static_argnames=static, inline=True))
        parameters = inspect.signature(function).parameters
        names = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
        places = [names.index(name) for name in static if name in names]

        @functools.wraps(function)
        def call(*args, **options):
            try:
                hash(tuple(args[i] for i in places if i < len(args)))
            except TypeError:
                return function(*args, **options)
            return compiled(*args, **options)

        return call  # type: ignore[return-value]  # of the same signature

    return decorate


def host_function(function: F) -> F:
    """A function of known arguments, which a user may call inside the `jit` of another function.

    Inside a `jit` the function runs during tracing, as a numpy function does, and its result is a
    constant. The arguments are `checked`.

    Raises:
        TypeError: an argument is traced, or its annotation excludes the argument.

    Example:
        >>> from unrolled._base.programs import host_function
        >>> @host_function
        ... def total(x):
        ...     return float(jnp.sum(x))
        >>> known = jnp.ones(2)
        >>> float(jax.jit(lambda y: y + total(known))(1.0))
        3.0
    """
    names, behind = list(inspect.signature(function).parameters), checked(function)

    @functools.wraps(function)
    def call(*args, **options):
        for name, value in (*zip(names, args), *options.items()):
            checks.on_host(value, function.__name__, name)
        if not _is_traced():
            return behind(*args, **options)
        with jax.ensure_compile_time_eval():
            return behind(*args, **options)

    return call  # type: ignore[return-value]  # of the same signature


def host_callback(
    function: Callable, results: Any, *operands: Any, vmap_method: str | None = None
) -> Any:
    """`jax.pure_callback` that keeps numbers of 64 bits as they are.

    JAX calls the function in another thread, and would narrow the arguments there if only the
    thread of the caller has `jax.enable_x64(True)`. So numbers of 64 bits travel as two of 32 bits.

    Args:
        function: function of arrays of numpy, or of trees of them.
        results: the shapes and dtypes of its results, a tree.
        operands, vmap_method: as in `jax.pure_callback`.
    """
    leaves, tree = jax.tree.flatten(operands)
    shapes, form = jax.tree.flatten(results)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    dtypes = [leaf.dtype for leaf in leaves]

    def call(*halves: Any) -> list[np.ndarray]:
        values = [np.asarray(v) for v in halves]
        values = [v.view(t)[..., 0] if _is_wide(t) else v for v, t in zip(values, dtypes)]
        answers = jax.tree.leaves(function(*jax.tree.unflatten(tree, values)))
        whole = [np.asarray(v, shape.dtype, order="C") for v, shape in zip(answers, shapes)]
        return [v[..., None].view(np.uint32) if _is_wide(v.dtype) else v for v in whole]

    halves = [lax.bitcast_convert_type(v, np.uint32) if _is_wide(v.dtype) else v for v in leaves]
    kinds = [
        jax.ShapeDtypeStruct((*s.shape, 2), np.uint32) if _is_wide(s.dtype) else s for s in shapes
    ]
    answers = jax.pure_callback(call, kinds, *halves, vmap_method=vmap_method)
    whole = [
        lax.bitcast_convert_type(v, s.dtype) if _is_wide(s.dtype) else v
        for v, s in zip(answers, shapes)
    ]
    return jax.tree.unflatten(form, whole)


def _is_wide(dtype: Any) -> bool:
    """Whether a number is an integer or a real number of 64 bits."""
    return np.dtype(dtype) in map(np.dtype, ("float64", "int64", "uint64"))


def _is_traced() -> bool:
    """Whether JAX traces the current code for a `jit`, so that known arrays become tracers."""
    return not checks.is_concrete(jax.device_put(_KNOWN))


def exportable(cls: type) -> None:
    """Let `jax.export` write a record (a NamedTuple), or a node whose static part JSON can hold.

    If a class is defined again, the entry of the first definition stays, because JAX has one entry
    per name.
    """
    name = f"{cls.__module__.partition('._')[0]}.{cls.__name__}"
    with suppress(ValueError):
        if hasattr(cls, "_fields"):
            export.register_namedtuple_serialization(cls, serialized_name=name)
        else:
            export.register_pytree_node_serialization(
                cls,
                serialized_name=name,
                serialize_auxdata=lambda static: json.dumps(static).encode(),
                deserialize_auxdata=lambda text: _tuples(json.loads(text)),
            )


def _tuples(value: Any) -> Any:
    """Tuples instead of JSON's lists, because static fields must be hashable."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# Loops


def scan(body: Callable[[Any, Any], Any], start: Any, xs: Any = None, **options: Any) -> Any:
    """`lax.scan`; in shard_map the initial state gets the type that it has after a step."""
    if not _inside_shard_map():
        return lax.scan(body, start, xs, **options)
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    axes = _axes(start, jax.eval_shape(lambda state: body(state, first)[0], start))

    def alike(state: Any, x: Any) -> Any:
        after, out = body(state, x)
        return _varying(after, axes), out

    return lax.scan(alike, _varying(start, axes), xs, **options)


def while_loop(not_done: Callable[[Any], Any], body: Callable[[Any], Any], start: Any) -> Any:
    """`lax.while_loop`, with the type of the state as in `scan`."""
    if not _inside_shard_map():
        return lax.while_loop(not_done, body, start)
    axes = _axes(start, jax.eval_shape(body, start))
    return lax.while_loop(
        not_done, lambda state: _varying(body(state), axes), _varying(start, axes)
    )


def fori_loop(lower: int, upper: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """`lax.fori_loop`, with the type of the state as in `scan`."""
    if not _inside_shard_map():
        return lax.fori_loop(lower, upper, body, start)
    axes = _axes(start, jax.eval_shape(body, jnp.int32(lower), start))
    return lax.fori_loop(
        lower, upper, lambda i, state: _varying(body(i, state), axes), _varying(start, axes)
    )


def cond(holds: Any, yes: Callable[..., Any], no: Callable[..., Any], *operands: Any) -> Any:
    """`lax.cond`; branches may use arrays besides `operands`; in shard_map both branches run."""
    if not _inside_shard_map():
        return lax.cond(holds, yes, no, *operands)
    return jax.tree.map(functools.partial(jnp.where, holds), yes(*operands), no(*operands))


def adjoint(linear: Callable[[Any], Any], primal: Any, image: Any) -> Any:
    """Apply the adjoint of `linear` to an image; `primal` has the type of the result."""
    if _inside_shard_map():
        primal = jnp.zeros(primal.shape, primal.dtype)
        axes = _axes(image, jax.eval_shape(linear, primal))
        primal, image = _varying(primal, axes), _varying(image, axes)
    return jax.linear_transpose(linear, primal)(image)[0]


def _inside_shard_map() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _axes(*trees: Any) -> frozenset[Any]:
    """The axes along which the devices hold different numbers in some leaf."""
    leaves = jax.tree.leaves(trees)
    return frozenset[Any]().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))


def _varying(tree: Any, axes: frozenset[Any]) -> Any:
    """The tree, with leaves declared to JAX to differ among devices along the axes."""

    def of_leaf(leaf: Any) -> Any:
        missing = axes - _axes(leaf)
        return lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf

    return jax.tree.map(of_leaf, tree)
