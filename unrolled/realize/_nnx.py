"""A realization as a flax.nnx model."""

import functools
from typing import TYPE_CHECKING

import jax

from unrolled._arguments import checked
from unrolled._checks import Array
from unrolled.realize._cnn import Realization

if TYPE_CHECKING:
    from flax import nnx


@checked
def nnx_module(realization: Realization) -> "nnx.Module":
    """A realization as an nnx.Module: `module(y)` is `realization.apply(y)`.

    Every filter array and every bias is an nnx.Param and can be trained, also those that only
    rearrange entries. Filters that tied steps share become separate Params. Signals are checked as
    in `apply`.

    Not claimed: that the codes are those of the layer after training.

    Raises:
        ImportError: flax is not installed.
        TypeError: no realization.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> layer, y = ur.lista_cp(1), jnp.array([1.0, 0.0, 0.0, 0.0])
        >>> params = layer.init(jax.random.key(0), D)
        >>> network = ur.realize.cnn(layer, params, D, kernel_size=4, signal_bound=1.0)
        >>> module = ur.realize.nnx_module(network)
        >>> bool((module(y) == network.apply(y)).all())
        True
    """
    if not isinstance(realization, Realization):
        raise TypeError(
            f"nnx_module: expected a Realization, as realize.cnn makes it, got {realization!r}"
        )
    return _module_class()(realization)


@functools.cache
def _module_class() -> type:
    """The class, made once: jit retraces if the class of a module changes."""
    from flax import nnx

    class ConvNetwork(nnx.Module):
        def __init__(self, realization: Realization):
            self.layers = nnx.data(jax.tree.map(nnx.Param, realization.layers))
            self.run = realization.run

        def __call__(self, y: Array) -> Array | tuple[Array, ...]:
            weights = jax.tree.map(
                lambda p: p[...], self.layers, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)
            )
            return self.run(weights, y)

    return ConvNetwork
