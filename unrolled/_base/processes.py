"""Training in several processes: values and errors of one process reach all processes.

Each process runs the same program. If one process fails on the host, the others would wait for it
in the next exchange: `on_all` makes all processes fail, with the message of the first failure.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from unrolled._base import text
from unrolled._base.files import CheckpointError, in_line
from unrolled._base.text import differences

T = TypeVar("T")


class Processes(NamedTuple):
    """The processes whose devices share a run; a run of one process needs no exchange."""

    several: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files, logs and progress bars."""
        return not self.several or jax.process_index() == 0

    def gathered(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all processes, stacked to an array of shape (processes, ...)."""
        if not self.several:
            return array[None]
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array))

    def on_all(self, f: Callable[[], T], *, first_alone: bool = False) -> T | None:
        """Call f in every process, or only in the first process.

        Raises:
            CheckpointError: f failed in another process. If f fails in this process, the error of f
                is raised.
        """
        error, result = None, None
        try:
            if self.is_first or not first_alone:
                result = f()
        except Exception as failure:
            if not self.several:
                raise
            error = failure
        if self.several:
            texts = self._texts("" if error is None else in_line(error))
            if error is not None:
                raise error
            for i, text in enumerate(texts):
                if text:
                    raise CheckpointError(f"process {i}: {text}")
        return result

    def require_equal(self, where: str, config: dict[str, Any]) -> None:
        """Raise ValueError, with a table of differences, unless `config` is equal everywhere."""
        if not self.several:
            return
        mine = json.dumps({name: str(value) for name, value in config.items()}, sort_keys=True)
        hashes = self.gathered(np.frombuffer(bytes.fromhex(text.digest(mine)), np.uint8))
        others = [i for i, row in enumerate(hashes) if not np.array_equal(row, hashes[0])]
        if others:
            tables = [json.loads(text) for text in self._texts(mine)]
            heads = ("process 0", f"process {others[0]}")
            raise ValueError(
                f"{where}: processes 0 and {others[0]} were started with different arguments; "
                "expected the same call in every process:\n"
                + differences(tables[0], tables[others[0]], heads)
            )

    def broadcast_signal(self, signals: list[int]) -> None:
        """Give every process the first signal that any process has received."""
        first = self.gathered(np.array(signals[0] if signals else 0))
        if not signals:
            signals += first[first > 0][:1].tolist()

    def _texts(self, text: str) -> list[str]:
        """The texts of all processes."""
        encoded = text.encode()
        longest = int(self.gathered(np.array(len(encoded))).max())
        rows = self.gathered(np.frombuffer(encoded.ljust(longest + 1, b"\0"), np.uint8))
        return [bytes(row).rstrip(b"\0").decode() for row in rows]

    def local(self, tree: Any) -> Any:
        """Replace globally sharded arrays by local copies.

        Arrays that are split along the atoms stay split, on the devices of this process.
        """
        if not self.several:
            return tree
        device = jax.local_devices()[0]

        def of_leaf(leaf: Any) -> Any:
            if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
                return leaf
            place: Any = device
            if not leaf.is_fully_replicated:
                of_all: Any = leaf.sharding
                place = NamedSharding(of_all.mesh.local_mesh, of_all.spec)
            return jax.device_put(copy_of(leaf), place)

        return jax.tree.map(of_leaf, tree)


def copy_of(leaf: Any) -> np.ndarray:
    """A copy of an array on the host, or of its local parts if processes share the array."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.array(leaf, order="C")
    whole = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        whole[shard.index] = shard.data
    return whole


def processes_of(mesh: Mesh | None, where: str) -> Processes:
    """The processes of a mesh: this process, or all processes.

    Raises:
        ValueError: the mesh has devices of only some processes; the other processes would wait.
    """
    indices = set() if mesh is None else {device.process_index for device in mesh.devices.flat}
    if len(indices) > 1 and len(indices) < jax.process_count():
        raise ValueError(
            f"{where}: mesh has devices of {len(indices)} of {jax.process_count()} processes; "
            "expected one process or all of them"
        )
    if indices and jax.process_index() not in indices:
        raise ValueError(
            f"{where}: mesh has no device of this process, {jax.process_index()}; try "
            'jax.make_mesh((len(jax.devices()),), ("data",))'
        )
    return Processes(len(indices) > 1)
