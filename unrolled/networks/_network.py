"""The base of all networks, records that map a signal to the codes of J blocks; and chains.

Deep sparse coding (DSC) is a chain: layers that run one after the other, each on the code before.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from unrolled import _checks
from unrolled._checks import Array, ArrayLike, Key
from unrolled.dictionaries import Dictionary, as_chain
from unrolled.layers import Acting, Interned, Layer, Unrolled, option

# The networks by name, where files of weights look them up.
NETWORKS: dict[str, type["Network"]] = {}

Dictionaries = Sequence[Dictionary]
Params = tuple[Unrolled, ...]
Codes = tuple[Array, ...]


class Network(Interned):
    """Codes of J dictionaries: a frozen record of options whose methods are pure functions.

    A subclass defines `layers`, `depth`, `forms`, `init`, `check` and `run`. As with families of
    layers, a subclass whose name has no leading underscore joins `NETWORKS`.

    Attributes:
        layers: the layers of a chain, or () if the blocks do not run one after the other.
        depth: the number of steps, summed over the blocks of a chain.

    Example:
        >>> network = ur.dsc([ur.lista_cp(8), ur.lista_cp(4)])
        >>> isinstance(network, ur.networks.Network), network.family
        (True, 'dsc')
    """

    bound = ("apply", "iterates")
    if TYPE_CHECKING:  # options of a subclass, or properties

        @property
        def layers(self) -> Sequence[Layer]: ...

        @property
        def depth(self) -> int: ...

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        if cls.init is not Network.init and cls.run is not Network.run:
            _checks.register(NETWORKS, cls, "network")

    @property
    def family(self) -> str:
        """The name of the network."""
        return type(self).__name__

    def forms(self, j: int) -> tuple[Unrolled, ...]:
        """The forms of the params of block j, as in `Layer`."""
        raise NotImplementedError

    def weights(self, j: int) -> Callable[..., Acting] | None:
        """The `weights` of block j, as in `Layer`; None for a block without them."""
        return None

    def init(self, key: Key | None, Ds: Dictionaries) -> Params:
        """The usual params to start from, a tuple with those of every block."""
        raise NotImplementedError

    def check(self, params: Params, Ds: Dictionaries) -> None:
        """Raise unless `params` are of this network and fit the shapes of Ds, as `Layer.check`."""
        raise NotImplementedError

    def run(self, params: Params, Ds: Dictionaries, y: ArrayLike) -> tuple[Codes, Codes]:
        """The code of every block, (d_j,), and the codes after each of its steps, (K_j, d_j)."""
        raise NotImplementedError

    def apply(self, params: Params, Ds: Dictionaries, y: ArrayLike) -> Codes:
        """The code of every block, (x_1, ..., x_J)."""
        return self.run(params, Ds, y)[0]

    def iterates(self, params: Params, Ds: Dictionaries, y: ArrayLike) -> Codes:
        """The codes of every block after each of its steps, J arrays (K_j, d_j)."""
        return self.run(params, Ds, y)[1]


def where(network: Network) -> str:
    """The name that messages of a network begin with."""
    return f"networks.{network.family}"


def chain_of(network: Network, Ds: Any, J: int | None = None, params: Any = None) -> Dictionaries:
    """The checked dictionaries; raise unless there are J of them, and as many params if given."""
    Ds = as_chain(Ds, where(network))
    J = len(Ds) if J is None else J
    for name, parts in (("Ds", Ds), ("params", params)):
        if parts is not None and (not isinstance(parts, (tuple, list)) or len(parts) != J):
            got = len(parts) if isinstance(parts, (tuple, list)) else type(parts).__name__
            raise ValueError(
                f"{where(network)}: expected a tuple of {J} {name}, one per layer, got {got}"
            )
    return Ds


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

    layers: Sequence[Layer] = option(
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

    def init(self, key: Key | None, Ds: Dictionaries) -> Params:
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
