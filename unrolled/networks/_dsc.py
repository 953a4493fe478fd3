"""Deep sparse coding (DSC): layers that run one after the other, each on the code before."""

from collections.abc import Iterable
from typing import Any

import jax

from unrolled import _checks
from unrolled.layers import Layer, option
from unrolled.networks._network import Network, chain_of, where


def as_layers(value: Any, name: str, caller: str) -> tuple[Layer, ...]:
    """`value` as a tuple of at least one layer."""
    if not isinstance(value, Iterable):
        raise TypeError(
            f"networks.{caller}: expected a sequence of layers, got {type(value).__name__}; "
            "try [layer]"
        )
    layers = tuple(value)
    if not layers:
        raise ValueError(f"networks.{caller}: expected at least one layer, got none")
    for layer in layers:
        if not isinstance(layer, Layer):
            got = type(layer).__name__
            raise TypeError(f"networks.{caller}: expected layers, such as lista_cp(16), got {got}")
    return layers


class dsc(Network):
    r"""The DSC network: x_j = layer_j(D_j, x_{j-1}) with x_0 = y, the code of the code.

    Params come from `init`, `analytic.dsc` or training: a tuple with those of every layer.

    Raises:
        ValueError: no layers; when called, params or dictionaries of another number, or shapes that
            do not meet.

    Reference: Li, Feng, Zhou (2024), Definition 2 and Theorem 6.

    Example:
        >>> network = ur.dsc([ur.lista_cp(8), ur.lista_cp(4)])
        >>> Ds = ur.dictionaries.gaussian(jax.random.key(0), 8, 12), jnp.eye(12)
        >>> [x.shape for x in network.apply(network.init(None, Ds), Ds, jnp.ones(8))]
        [(12,), (12,)]
        >>> network, network.depth
        (dsc((lista_cp(8), lista_cp(4))), 12)
    """

    layers: tuple[Layer, ...] = option(
        kw_only=False, check=as_layers, help="J layers, of any families and depths"
    )

    @property
    def depth(self) -> int:
        """The number of steps of all layers together."""
        return sum(layer.depth for layer in self.layers)

    def forms(self, j):
        return self.layers[j].forms

    def weights(self, j):
        return self.layers[j].weights

    def init(self, key, Ds):
        Ds = chain_of(self, Ds, len(self.layers))
        key = key if key is None else _checks.as_key(key, where(self))
        keys = [key if key is None else jax.random.fold_in(key, j) for j in range(len(self.layers))]
        return tuple(layer.init(k, D) for layer, k, D in zip(self.layers, keys, Ds))

    def check(self, params, Ds):
        Ds = chain_of(self, Ds, len(self.layers), params)
        for layer, p, D in zip(self.layers, params, Ds):
            layer.check(p, D)

    def run(self, params, Ds, y):
        Ds = chain_of(self, Ds, len(self.layers), params)
        codes, paths = [], []
        for layer, p, D in zip(self.layers, params, Ds):
            state, path = layer.run(p, D, y)
            y = state.x
            codes.append(y)
            paths.append(path)
        return tuple(codes), tuple(paths)
