"""The devices that share one run: its images are split along the batch, its state is on all."""

from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

_AXIS = "data"


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
        return tree if self.mesh is None else self._constrained(tree, P(_AXIS))

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
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"experiment: mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}; try "
            'jax.make_mesh((len(jax.devices()),), ("data",))'
        )
    if _AXIS not in mesh.shape:
        raise ValueError(
            f"experiment: mesh has the axes {mesh.axis_names}; expected one named 'data'"
        )
    if batch % mesh.shape[_AXIS]:
        raise ValueError(
            f"experiment: {mesh.shape[_AXIS]} devices cannot share a batch of {batch} images "
            "equally; expected a multiple of their number"
        )
    auto = (AxisType.Auto,) * mesh.devices.ndim
    return Devices(Mesh(mesh.devices, mesh.axis_names, axis_types=auto))
