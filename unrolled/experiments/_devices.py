"""The devices that share one run: its images are split along the batch, its state is on all."""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unrolled._sharded import DATA, data_mesh


class Devices(NamedTuple):
    """Where the arrays of a run are; without a mesh on the device of JAX."""

    mesh: Mesh | None = None

    def everywhere(self, tree: Any) -> Any:
        """A tree of arrays, on each device."""
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, P()))

    def whole(self, tree: Any) -> Any:
        """The same inside a program."""
        return tree if self.mesh is None else self._constrained(tree, P())

    def split(self, tree: Any) -> Any:
        """Inside a program: the images of a batch shared among the devices."""
        return tree if self.mesh is None else self._constrained(tree, P(DATA))

    def _constrained(self, tree: Any, spec: P) -> Any:
        assert self.mesh is not None
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, spec))

    @property
    def environment(self) -> dict[str, str]:
        """What a row says of them."""
        return {} if self.mesh is None else {"devices": str(self.mesh.devices.size)}


def devices_of(mesh: Any, batch: int) -> Devices:
    """The devices of a mesh, with axes that the compiler partitions.

    Raises:
        TypeError: no mesh.
        ValueError: a mesh without the axis "data", or devices that cannot share a batch equally.
    """
    if mesh is None:
        return Devices()
    mesh = data_mesh(mesh, "experiment")
    if batch % mesh.shape[DATA]:
        raise ValueError(
            f"experiment: {mesh.shape[DATA]} devices cannot share a batch of {batch} images "
            "equally; expected a multiple of their number"
        )
    return Devices(mesh)
