"""A training step on the devices of a mesh: a mean over batches, summed in a fixed order.

A step draws `accumulate` batches, each from a different key, and takes the mean of their losses and
gradients. On a mesh the devices share the batches: each device draws its own batches, and no signal
leaves its device. The mean is computed by a sum along one binary tree. The lower levels of the tree
are loops on a device, and the upper levels are exchanges between devices. The bits of the sum
therefore do not depend on the number of devices. With the reduction "psum" the runtime computes the
upper levels in one exchange.

A second axis of the mesh, "atoms", splits D, the params that grow with D, and the moments of the
optimiser among devices. Annotations in the classes of params say which params are split. The
compiler splits the products accordingly: the devices add up D x, and no column of D or W leaves its
device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unrolled._base.checks import Array
from unrolled._base.programs import DATA
from unrolled.dictionaries import Structured
from unrolled.layers import along_atoms
from unrolled.training._types import Trained

ATOMS = "atoms"  # the name of the second axis of a mesh


class Placement(NamedTuple):
    """The devices that hold the arrays of a fit; without a mesh no array is moved."""

    mesh: Mesh | None
    sizes: Trained | None = None  # the size of the last axis of split leaves; 0 for other leaves

    def __call__(self, tree: Any) -> Any:
        """Place a tree; every `Trained` in this tree holds params and D, or their moments."""
        if self.mesh is None:
            return tree

        def of_node(node):
            if isinstance(node, Trained) and self.sizes is not None:
                return self.split(self.sizes, node)
            return jax.tree.map(partial(self._put, 0), node)

        return jax.tree.map(of_node, tree, is_leaf=lambda node: isinstance(node, Trained))

    def split(self, sizes: Any, tree: Any) -> Any:
        """Place a tree; `sizes` is a tree prefix of this tree."""

        def of_prefix(size, part):
            return jax.tree.map(partial(self._put, size), part)

        return jax.tree.map(of_prefix, sizes, tree)

    def batch(self, batch: tuple) -> tuple:
        """Place (Y, X), or (Y, X, Ds); the last axis of X and Ds is the axis of atoms."""
        if self.sizes is None:
            return self(batch)
        Y, *others = batch
        sizes = jax.tree.map(lambda leaf: leaf.shape[-1], others)
        return self(Y), *self.split(sizes, others)

    def _put(self, size: int, leaf: Any) -> Any:
        """The leaf, split along its last axis if that axis has this size, else on every device."""
        assert self.mesh is not None  # otherwise no method calls `_put`
        splits = size and np.shape(leaf)[-1:] == (size,)
        spec = P(*(None,) * (np.ndim(leaf) - 1), ATOMS) if splits else P()
        return _put(leaf, NamedSharding(self.mesh, spec))


class Sharing(NamedTuple):
    """The batches of a step, the devices that share them, and how the devices add their parts."""

    batches: int = 1
    mesh: Mesh | None = None
    reduction: str = "tree"

    @property
    def compiler(self) -> dict[str, Any]:
        """Options of the compiler for programs that round alike on every number of devices.

        If there are several devices, XLA removes common expressions before algebraic
        simplification; if there is one device, XLA removes common expressions after algebraic
        simplification. Two quotients with the same divisor then become products with the inverse of
        the divisor on some numbers of devices and not on others. We saw this difference only on
        CPUs. The options switch the simplification off only on CPUs, because other devices need the
        simplification.
        """
        device = jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]
        accumulated = self.batches > 1 and device.platform == "cpu"
        return {"xla_disable_hlo_passes": "algsimp"} if accumulated else {}


def sharing(accumulate: int, mesh: Any, reduction: str, where: str) -> Sharing:
    """The `Sharing` of these arguments.

    Raises:
        ValueError: `accumulate` is not a power of two, the devices of the mesh cannot share the
            batches equally, or the reduction is "psum" and no devices share a step.
    """
    if accumulate & (accumulate - 1):
        raise ValueError(f"{where}: accumulate must be a power of two, got {accumulate}")
    if reduction == "psum" and (mesh is None or accumulate == 1):
        raise ValueError(
            f'{where}: reduction="psum" is for devices that share the batches of a step, got '
            f"accumulate={accumulate} and {'no mesh' if mesh is None else 'a mesh'}; try the "
            "default, or accumulate of at least two with a mesh"
        )
    if mesh is not None and accumulate % mesh.shape[DATA]:
        raise ValueError(
            f"{where}: {mesh.shape[DATA]} devices cannot share {accumulate} batches equally; "
            "expected a multiple of their number, a power of two"
        )
    return Sharing(accumulate, mesh, reduction)


@contextmanager
def computing_on(mesh: Mesh | None, where: str) -> Iterator[None]:
    """Set JAX's mesh to `mesh` within a `with` block, whatever mesh the caller has set.

    Raises:
        RuntimeError: a process of the mesh has ended, or is out of reach.
    """
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh):
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if all(device.process_index == jax.process_index() for device in mesh.devices.flat):
                raise
            raise RuntimeError(
                f"{where}: process {jax.process_index()} lost another one, which has ended or is "
                "out of reach; the same call with a checkpoint, also on another number of "
                "processes, resumes from the last save"
            ) from error


def mean(f: Callable[..., Any], key: Array, shared: Sharing, *arguments: Any) -> Any:
    """The mean of f(key, *arguments) over the keys of the batches, which the devices share."""
    n, mesh, reduction = shared
    keys = jax.random.split(key, n)
    if mesh is None:
        total = _sum(lambda key: f(key, *arguments), keys)
    else:
        everywhere = tuple(P() for _ in arguments)

        @partial(
            jax.shard_map,
            mesh=mesh,
            axis_names={DATA},
            in_specs=(P(DATA), *everywhere),
            out_specs=P(),
            check_vma=False,  # JAX cannot infer that all devices hold the same sum
        )
        def among(keys, *arguments):
            part = _sum(lambda key: f(key, *arguments), keys)
            return _exchanged(part, mesh, reduction)

        total = among(keys, *arguments)
    return jax.tree.map(lambda v: v / n, total)


def _sum(f: Callable[[Array], Any], keys: Array) -> Any:
    """The sum of f over the keys, computed as the sum of two halves."""
    if len(keys) == 1:
        return _looped(lambda: f(keys[0]))
    halves = lax.map(partial(_sum, f), keys.reshape(2, -1))
    return jax.tree.map(lambda v: v[0] + v[1], halves)


def _looped(f: Callable[[], Any]) -> Any:
    """The result of f(), computed in a loop of one turn, so that XLA fuses f as in longer loops.

    The compiler cannot know the length of this loop. Outside of loops XLA fuses operations
    differently: a device with one batch would then compute other bits than a device with two
    batches.
    """
    blank = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), jax.eval_shape(f))
    return lax.fori_loop(0, lax.optimization_barrier(1), lambda *_: f(), blank)


def _exchanged(part: Any, mesh: Mesh, reduction: str) -> Any:
    """The sum of the parts of all devices, on each device.

    The tree adds neighbouring devices first, then neighbouring pairs, and so on. All leaves of one
    dtype are sent together, in log2(devices) exchanges by the tree or in one exchange by "psum"; if
    leaves are split along the atoms, each leaf is sent alone.
    """
    add = partial(_by_tree, mesh.shape[DATA])
    if reduction == "psum":
        add = partial(lax.psum, axis_name=DATA)
    if mesh.shape.get(ATOMS, 1) > 1:
        return jax.tree.map(add, part)
    leaves, tree = jax.tree.flatten(part)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):  # in the same order in all processes
        own = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat = jnp.concatenate([leaves[i].reshape(-1) for i in own])
        flat = add(flat)
        ends = np.cumsum([leaves[i].size for i in own])[:-1].tolist()
        for i, piece in zip(own, jnp.split(flat, ends)):
            leaves[i] = piece.reshape(leaves[i].shape)
    return jax.tree.unflatten(tree, leaves)


def _by_tree(devices: int, part: Array) -> Array:
    reach = 1
    while reach < devices:
        pairs = [(i, i ^ reach) for i in range(devices)]
        part = part + lax.ppermute(part, DATA, pairs)
        reach *= 2
    return part


def with_gradient(value_and_gradient: Callable[[Any], Any]) -> Callable[[Any], Array]:
    """A function that returns the value, and whose reverse derivative is the gradient.

    Line searches need the derivative, and a loop of unknown length has no reverse derivative.
    """
    value = jax.custom_vjp(lambda x: value_and_gradient(x)[0])
    value.defvjp(value_and_gradient, lambda g, c: (jax.tree.map(lambda v: c * v, g),))
    return value


def batches(key: Array, k: Any, n: int, sample: Callable[[Array], Any]) -> Any:
    """The batch of step k, or the n batches of step k joined to one batch."""
    step_key = jax.random.fold_in(key, k)
    if n == 1:
        return sample(step_key)
    many = lax.map(sample, jax.random.split(step_key, n))
    return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), many)


def places_of(mesh: Mesh | None, whole: Trained, where: str) -> Placement:
    """The placement of the params and the D of a fit.

    Raises:
        ValueError: the mesh has an axis "atoms" and D is not dense, or the devices of this axis
            cannot share the atoms equally or belong to several processes.
    """
    devices = 1 if mesh is None else mesh.shape.get(ATOMS, 1)
    if mesh is None or devices == 1:
        return Placement(mesh)
    chained = isinstance(whole.D, tuple)
    for D in whole.D if chained else (whole.D,):
        if D is None or isinstance(D, Structured):
            got = "none" if D is None else type(D).__name__
            raise ValueError(
                f"{where}: the axis 'atoms' of mesh splits a dense dictionary, got {got}; try a "
                "mesh with the axis 'data' alone"
            )
        if D.shape[1] % devices:
            raise ValueError(
                f"{where}: {devices} devices of the axis 'atoms' cannot share {D.shape[1]} atoms "
                "equally; expected a divisor of their number"
            )
    processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
    if np.ptp(processes, axis=mesh.axis_names.index(ATOMS)).any():
        raise ValueError(
            f"{where}: devices of the axis 'atoms' belong to several processes; expected that axis "
            "within each process, and 'data' across them"
        )
    params = tuple(map(along_atoms, whole.params)) if chained else along_atoms(whole.params)
    flags = Trained(params, jax.tree.map(lambda D: True, whole.D))
    sizes = jax.tree.map(lambda splits, leaf: np.shape(leaf)[-1] if splits else 0, flags, whole)
    return Placement(mesh, sizes)


def _put(leaf: Any, where: NamedSharding) -> Any:
    """The leaf, which every process holds, placed on the devices of all processes."""
    if isinstance(leaf, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(leaf, where)
    shared = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if where.is_fully_addressable or shared:
        return jax.device_put(leaf, where)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), where)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])
