"""Networks through dictionaries D_1 .. D_J: deep sparse coding (DSC) chains, and ML-LISTA."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from unrolled import _checks
from unrolled._checks import Array, Key
from unrolled._export import exportable
from unrolled.activations import Activation, relu, shrink
from unrolled.dictionaries import Dictionary, as_chain, dense, operands, spread
from unrolled.layers import (
    Acting,
    Interned,
    Layer,
    Looped,
    Matrix,
    StepAndThreshold,
    Unrolled,
    as_activation,
    check_params,
    option,
    unstack,
)
from unrolled.pursuit import lipschitz, sweep

__all__ = ["NETWORKS", "Analysis", "Network", "dsc", "ml_lista"]

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


def as_layers(value: Any, name: str, where: str) -> tuple[Layer, ...]:
    """`value` as a tuple of at least one layer."""
    if not isinstance(value, Iterable):
        raise TypeError(
            f"networks.{where}: expected a sequence of layers, got {type(value).__name__}; "
            "try [layer]"
        )
    layers = tuple(value)
    if not layers:
        raise ValueError(f"networks.{where}: expected at least one layer, got none")
    for layer in layers:
        if not isinstance(layer, Layer):
            got = type(layer).__name__
            raise TypeError(f"networks.{where}: expected layers, such as lista_cp(16), got {got}")
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
        Ds = _chain(self, Ds, len(self.layers))
        key = key if key is None else _checks.as_key(key, _where(self))
        keys = [key if key is None else jax.random.fold_in(key, j) for j in range(len(self.layers))]
        return tuple(layer.init(k, D) for layer, k, D in zip(self.layers, keys, Ds))

    def check(self, params, Ds):
        Ds = _chain(self, Ds, len(self.layers), params)
        for layer, p, D in zip(self.layers, params, Ds):
            layer.check(p, D)

    def run(self, params, Ds, y):
        Ds = _chain(self, Ds, len(self.layers), params)
        codes, paths = [], []
        for layer, p, D in zip(self.layers, params, Ds):
            state, path = layer.run(p, D, y)
            y = state.x
            codes.append(y)
            paths.append(path)
        return tuple(codes), tuple(paths)


class Analysis(NamedTuple):
    """The matrix that the steps of a block of ML-LISTA share."""

    B: Matrix  # (d_{j-1}, d_j), applied to the code before as B'x


exportable(Analysis)


class AllCodes(NamedTuple):
    """The state of ML-LISTA: the codes of all blocks."""

    x: Codes


class Blocks(NamedTuple):
    """The params of one step of ML-LISTA, block by block."""

    blocks: tuple[StepAndThreshold, ...]


class ml_lista(Network, Looped):
    r"""ML-LISTA: K steps that estimate the codes of all layers together.

    .. math::
        x_j &\leftarrow D_{j+1} x_{j+1}, \quad j = J - 1, \dots, 1, \\
        x_j &\leftarrow \mathrm{shrink}(x_j - \gamma_j D_j' D_j x_j + B_j' x_{j-1}, \; \theta_j),
        \quad j = 1, \dots, J, \quad x_0 = y,

    where the first line goes down from the deepest code and the second goes up, each time from the
    code just found.

    Params: for each block shared B, which is learned, and steps (gamma, theta). `init` is ML-ISTA:
    B_j = D_j / L_j, gamma_j = 1 / L_j and theta_j = lam / (L_1 ... L_j), with L_j = norm(D_j, 2)^2,
    the steps of `pursuit.ml_ista`; J = 1 is ISTA.

    Reference: Sulam, Aberdam, Beck, Elad (2020), section 5. Not claimed: a rate; the fixed point of
    ML-ISTA is only near the optimum of its objective.

    Example:
        >>> network = ur.networks.ml_lista(8, lam=0.02)
        >>> Ds = ur.dictionaries.gaussian(jax.random.key(0), 8, 12), jnp.eye(12)
        >>> params = network.init(None, Ds)
        >>> [x.shape for x in network.iterates(params, Ds, jnp.ones(8))]
        [(8, 12), (8, 12)]
    """

    depth: int = option(kw_only=False, help="K, the number of steps")
    lam: float = option(default=0.1, least=0, help="weight of the l1 norm at the start")
    activation: Activation | Callable = option(
        default=relu, check=as_activation, help="replaces ReLU in the shrinkage"
    )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """None: the blocks do not run one after the other."""
        return ()

    def forms(self, j):
        return (Unrolled(Analysis, StepAndThreshold),)

    def weights(self, j):
        return _acting

    def init(self, key, Ds):
        params: list[Unrolled] = []
        theta: Any = self.lam
        for D in _chain(self, Ds):
            gamma = 1 / lipschitz(D, _where(self))
            theta = theta * gamma
            steps = (jnp.full(self.depth, value, D.dtype) for value in (gamma, theta))
            params.append(Unrolled(Analysis(D * gamma), StepAndThreshold(*steps)))
        return tuple(params)

    def check(self, params, Ds):
        Ds = _chain(self, Ds, None, params)
        for j, (p, D) in enumerate(zip(params, Ds)):
            check_params(p, D, self.forms(j), self.depth, _where(self))

    def run(self, params, Ds, y):
        Ds = _chain(self, Ds, None, params)
        _, y, (params, *Ds) = operands(Ds[0], y, _where(self), params=(params, *Ds))
        self.check(params, Ds)
        state, path = _sweeps(self, params, Ds, y)
        return state.x, path

    def step(self, shared, p, Ds, y, state):
        """One sweep down and up through the codes of all blocks."""

        def update(j, before, x, Dx):
            D, at = Ds[j], p.blocks[j]
            u = x - at.gamma * (Dx @ D) + before @ shared[j].B
            return shrink(u, spread(D, at.theta), self.activation)

        return AllCodes(sweep(Ds, y, state.x[-1], update))


def _acting(shared: Analysis, p: StepAndThreshold, D: Dictionary) -> Acting:
    """B and I - gamma D'D, by which a step acts on the code before and on its own."""
    A = dense(D)
    return Acting(shared.B, S=jnp.eye(A.shape[1], dtype=A.dtype) - p.gamma * (A.T @ A))


# Compiled once, where an eager scan would be compiled at every call.
@partial(jax.jit, static_argnums=0)
def _sweeps(network: ml_lista, params: Params, Ds: Dictionaries, y: Array) -> tuple[Any, Any]:
    start = AllCodes(tuple(jnp.zeros(D.shape[1], y.dtype) for D in Ds))
    return network.loop(network.step, _together(params), Ds, y, start)


def _together(params: Params) -> Unrolled:
    """The params of all blocks as those of one loop, stacked if all of them are."""
    steps = [p.steps for p in params]
    shared = tuple(p.shared for p in params)
    if not any(type(s) is tuple for s in steps):
        return Unrolled(shared, Blocks(tuple(steps)))
    alone = [s if type(s) is tuple else unstack(p).steps for s, p in zip(steps, params)]
    return Unrolled(shared, tuple(Blocks(blocks) for blocks in zip(*alone)))


def _where(network: Network) -> str:
    return f"networks.{network.family}"


def _chain(network: Network, Ds: Any, J: int | None = None, params: Any = None) -> Dictionaries:
    """The checked dictionaries; raise unless there are J of them, and as many params if given."""
    Ds = as_chain(Ds, _where(network))
    J = len(Ds) if J is None else J
    for name, given in (("Ds", Ds), ("params", params)):
        if given is not None and (not isinstance(given, (tuple, list)) or len(given) != J):
            got = len(given) if isinstance(given, (tuple, list)) else type(given).__name__
            raise ValueError(
                f"{_where(network)}: expected a tuple of {J} {name}, one per layer, got {got}"
            )
    return Ds
