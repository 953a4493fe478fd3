"""A realization as a flax.nnx model."""

import functools

import jax

from unrolled.realize._cnn import Realization


def nnx_module(realization: Realization):
    """An nnx.Module with the weights of a realization: one nnx.Param per filter and bias,
    `module(y)` as `apply(y)`.

    All weights can be trained, the rearranging ones too; equal filters of tied steps become Params
    of their own. Signals are checked as in `apply`, though after training the codes are no longer
    those of the layer.

    Raises:
        ImportError: flax is not installed.
    """
    return _module_class()(realization)


@functools.cache
def _module_class():
    """The class, made once: a module's class is part of what jit compares."""
    from flax import nnx

    class ConvNetwork(nnx.Module):
        def __init__(self, realization: Realization):
            self.layers = nnx.data(jax.tree.map(nnx.Param, realization.layers))
            self.run = realization.run

        def __call__(self, y):
            weights = jax.tree.map(
                lambda p: p[...], self.layers, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)
            )
            return self.run(weights, y)

    return ConvNetwork
