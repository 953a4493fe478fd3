"""Where the arrays of a fit are: on every device of its mesh, or split along the atoms.

A second axis of the mesh, "atoms", splits D and what grows with it, as the annotations of params
say, and the moments of the optimiser that follow them. The compiler splits the products by that:
the devices add up D x, and no column of D or W moves.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unrolled.dictionaries import Structured
from unrolled.layers import along_atoms
from unrolled.training._records import Trained

ATOMS = "atoms"  # the axis of the mesh


class Places(NamedTuple):
    """Those of the arrays of a fit; without a mesh they stay where they are."""

    mesh: Mesh | None
    sizes: Trained | None = None  # of the last axis of the leaves that are split, 0 for others

    def __call__(self, tree: Any) -> Any:
        """A tree in its place; every `Trained` in it is params and D, or moments of them."""
        if self.mesh is None:
            return tree

        def of_node(node):
            if isinstance(node, Trained) and self.sizes is not None:
                return self.split(self.sizes, node)
            return jax.tree.map(partial(self._put, 0), node)

        return jax.tree.map(of_node, tree, is_leaf=lambda node: isinstance(node, Trained))

    def split(self, sizes: Any, tree: Any) -> Any:
        """A tree of which `sizes` is a prefix."""

        def of_prefix(size, part):
            return jax.tree.map(partial(self._put, size), part)

        return jax.tree.map(of_prefix, sizes, tree)

    def batch(self, batch: tuple) -> tuple:
        """(Y, X), or with a dictionary for each signal: all but the signals end in the atoms."""
        if self.sizes is None:
            return self(batch)
        Y, *others = batch
        sizes = jax.tree.map(lambda leaf: leaf.shape[-1], others)
        return self(Y), *self.split(sizes, others)

    def _put(self, size: int, leaf: Any) -> Any:
        """A leaf split along its last axis if that has this size, else on every device."""
        assert self.mesh is not None  # or nothing is put anywhere
        splits = size and np.shape(leaf)[-1:] == (size,)
        spec = P(*(None,) * (np.ndim(leaf) - 1), ATOMS) if splits else P()
        return _put(leaf, NamedSharding(self.mesh, spec))


def places_of(mesh: Mesh | None, whole: Trained, where: str) -> Places:
    """The places of a fit of these params and this D.

    Raises:
        ValueError: an axis "atoms" where there is no dense D, or with devices that cannot share
            its atoms equally, or that belong to several processes.
    """
    devices = 1 if mesh is None else mesh.shape.get(ATOMS, 1)
    if mesh is None or devices == 1:
        return Places(mesh)
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
    return Places(mesh, sizes)


def _put(leaf: Any, where: NamedSharding) -> Any:
    """A leaf that each process has, on the devices of all."""
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
