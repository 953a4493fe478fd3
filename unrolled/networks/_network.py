"""The base of all networks: a record of options that maps a signal to the codes of J blocks."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unrolled import _checks
from unrolled._checks import Array, Key
from unrolled.dictionaries import Dictionary, as_chain
from unrolled.layers import Acting, Interned, Layer, Unrolled

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
        def layers(self) -> tuple[Layer, ...]: ...

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

    def run(self, params: Params, Ds: Dictionaries, y: Array) -> tuple[Codes, Codes]:
        """The code of every block, (d_j,), and the codes after each of its steps, (K_j, d_j)."""
        raise NotImplementedError

    def apply(self, params: Params, Ds: Dictionaries, y: Array) -> Codes:
        """The code of every block, (x_1, ..., x_J)."""
        return self.run(params, Ds, y)[0]

    def iterates(self, params: Params, Ds: Dictionaries, y: Array) -> Codes:
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
