"""Networks of layers: deep sparse coding (DSC) chains through dictionaries D_1 .. D_J of any shapes and kinds."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from unrolled._checks import Array
from unrolled.layers._unroll import Layer


class Network(NamedTuple):
    """A chain of layers as pure functions of one signal.

    Attributes:
        init: `init(key, Ds) -> params`, a tuple with the params of every layer.
        apply: `apply(params, Ds, y) -> (x_1, ..., x_J)`, the code of every layer.
        layers: the layers.
    """

    init: Callable
    apply: Callable
    layers: tuple[Layer, ...]


def dsc(layers) -> Network:
    r"""The DSC network: layer j codes the code of layer j - 1 in D_j, x_j = layer_j(D_j, x_{j-1}), x_0 = y.

    Args:
        layers: J layers, of any families and depths. Params come from `init`, `analytic.dsc` or training.

    Raises:
        ValueError: no layers; when called, params or dictionaries of another number, or shapes that do not meet.

    Reference: Li, Feng, Zhou (2024), Definition 2 and Theorem 6.
    """
    layers = tuple(layers)
    if not layers:
        raise ValueError("networks.dsc: expected at least one layer, got none")

    def init(key, Ds):
        _check("networks.dsc", layers, Ds=Ds)
        return tuple(layer.init(jax.random.fold_in(key, j), D) for j, (layer, D) in enumerate(zip(layers, Ds)))

    def apply(params, Ds, y: Array) -> tuple[Array, ...]:
        _check("networks.dsc", layers, params=params, Ds=Ds)
        codes = []
        for layer, p, D in zip(layers, params, Ds):
            y = layer.apply(p, D, y)
            codes.append(y)
        return tuple(codes)

    return Network(init, apply, layers)


def _check(where: str, layers, *, Ds, params=None) -> None:
    J = len(layers)
    for name, given in (("params", params), ("Ds", Ds)):
        if given is not None and (not isinstance(given, (tuple, list)) or len(given) != J):
            got = len(given) if isinstance(given, (tuple, list)) else type(given).__name__
            raise ValueError(f"{where}: expected a tuple of {J} {name}, one per layer, got {got}")
    for j, (left, right) in enumerate(zip(Ds, Ds[1:]), start=1):
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"{where}: D_{j} has shape {left.shape} but D_{j + 1} has shape {right.shape}")
