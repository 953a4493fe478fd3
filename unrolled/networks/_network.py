"""Networks, which map a signal to the codes of J blocks, and checks against zero codes.

Deep sparse coding (DSC) is a chain: each layer runs on the code of the layer before.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries, layers
from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, Key, checked, program
from unrolled._base.programs import exportable
from unrolled.activations import Activation, relu, shrink
from unrolled.dictionaries import Dictionary
from unrolled.layers import (
    Acting,
    Interned,
    Layer,
    StepAndThreshold,
    Unrolled,
    ista,
    ista_params,
    mean_thresholds,
    option,
)
from unrolled.pursuit import State, lipschitz, sweep, with_step_size

__all__ = ["Analysis", "NETWORKS", "Network", "dsc", "ml_lista"]


# The networks by name; files with weights refer to a network by this name.
NETWORKS: dict[str, type["Network"]] = {}

Dictionaries = Sequence[Dictionary]
Params = tuple[Unrolled, ...]
Codes = tuple[Array, ...]


class Network(Interned):
    """A map from a signal to the codes of J dictionaries: a frozen record with pure methods.

    A subclass defines `layers`, `depth`, `forms`, `init`, `check` and `run`. If the name of a
    subclass has no leading underscore, the subclass joins `NETWORKS`, as layers join `FAMILIES`.

    Attributes:
        layers: the layers of a chain; an empty tuple if the blocks do not run one after the other.
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
            checks.register(NETWORKS, cls, "network")

    @property
    def family(self) -> str:
        """The name of the network."""
        return type(self).__name__

    def forms(self, j: int) -> tuple[Unrolled, ...]:
        """The forms of the params of block j, as in `Layer`."""
        raise NotImplementedError

    def weights(self, j: int) -> Callable[..., Acting] | None:
        """The `weights` of block j, as in `Layer`; None for a block without weights."""
        return None

    def thresholds(self, j: int) -> Callable[[Unrolled], np.ndarray | None]:
        """The `thresholds` of block j, as in `Layer`."""
        return lambda params: mean_thresholds(params.steps)

    def init(self, key: Key | None, Ds: Dictionaries) -> Params:
        """The usual initial params, a tuple with one entry per block."""
        raise NotImplementedError

    def check(self, params: Params, Ds: Dictionaries) -> None:
        """Raise unless `params` belong to this network and fit the Ds, as in `Layer.check`."""
        raise NotImplementedError

    def run(self, params: Params, Ds: Dictionaries, y: ArrayLike) -> tuple[Codes, Codes]:
        """The last code, (d_j,), and the codes after every step, (K_j, d_j), of every block."""
        raise NotImplementedError

    def apply(self, params: Params, Ds: Dictionaries, y: ArrayLike) -> Codes:
        """The code of every block, (x_1, ..., x_J)."""
        return self.run(params, Ds, y)[0]

    def iterates(self, params: Params, Ds: Dictionaries, y: ArrayLike) -> Codes:
        """The codes of every block after each of its steps, J arrays (K_j, d_j)."""
        return self.run(params, Ds, y)[1]


def where(network: Network) -> str:
    """The name of a network at the beginning of messages."""
    return f"networks.{network.family}"


def chain_of(network: Network, Ds: Any, J: int | None = None, params: Any = None) -> Dictionaries:
    """The checked dictionaries; raise unless there are J dictionaries, and J params if given."""
    Ds = dictionaries.as_chain(Ds, where(network))
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
    r"""The DSC network: x_j = layer_j(D_j, x_{j-1}) with x_0 = y.

    Params come from `init`, `analytic.dsc` or training: a tuple with the params of every layer.

    Args:
        layers: J layers, of any families and depths.

    Raises:
        ValueError: there are no layers; when called, the number of params or dictionaries differs,
            or shapes do not fit.

    Reference: Li, Feng, Zhou (2024), Definition 2 and Theorem 6.

    Example:
        >>> network = ur.dsc([ur.lista_cp(8), ur.lista_cp(4)])
        >>> Ds = ur.dictionaries.gaussian(jax.random.key(0), 8, 12), jnp.eye(12)
        >>> [x.shape for x in network.apply(network.init(None, Ds), Ds, jnp.ones(8))]
        [(12,), (12,)]
        >>> network, network.depth
        (dsc((lista_cp(8), lista_cp(4))), 12)
    """

    layers: Sequence[Layer] = option(kw_only=False, check=as_layers)

    @property
    def depth(self) -> int:
        """The total number of steps of all layers."""
        return sum(layer.depth for layer in self.layers)

    def forms(self, j):
        return self.layers[j].forms

    def weights(self, j):
        return self.layers[j].weights

    def thresholds(self, j):
        return self.layers[j].thresholds

    def init(self, key: Key | None, Ds: Dictionaries) -> Params:
        Ds = chain_of(self, Ds, len(self.layers))
        key = key if key is None else checks.as_key(key, where(self))
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


class Unfolded(Network, layers.Looped):
    """J blocks of K steps each that are not a chain of layers with zero initial codes.

    A subclass defines `forms`, `init` and `unfold`. If steps run through all blocks at once,
    subclass `Sweeping` instead.
    """

    depth: int = option(kw_only=False, most=checks.DEEPEST, help="K, the number of steps")
    lam: float = option(default=0.1, least=0, help="weight of the l1 norm at the start")
    step: ClassVar[Callable[..., Any]]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """No layers: the blocks do not run one after the other from zero codes."""
        return ()

    def unfold(self, params: Params, Ds: Dictionaries, y: Array) -> tuple[Codes, Codes]:
        """`run` for checked arguments, inside `jit`."""
        codes, paths = [y], []
        for p, D in zip(params, Ds):
            state, path = self.loop(self.step, p, D, codes[-1], State(self.begin(codes, D)))
            codes.append(state.x)
            paths.append(path)
        return tuple(codes[1:]), tuple(paths)

    def begin(self, codes: list[Array], D: Dictionary) -> Array:
        """The initial code of a block, given y and the codes of the blocks before it."""
        return jnp.zeros(D.shape[1], codes[0].dtype)

    def check(self, params, Ds):
        Ds = chain_of(self, Ds, None, params)
        for j, (p, D) in enumerate(zip(params, Ds)):
            dictionaries.refuse_parts(
                D, where(self), "try networks.dsc of layers.alista or lista_cp"
            )
            layers.check_params(p, D, self.forms(j), self.depth, where(self))

    def run(self, params, Ds, y):
        Ds = chain_of(self, Ds, None, params)
        _, y, (params, *Ds) = dictionaries.operands(Ds[0], y, where(self), params=(params, *Ds))
        self.check(params, Ds)
        return _run(self, params, Ds, y)

    def start_of(self, D: Dictionary, lam: Any) -> tuple[Array, Array, StepAndThreshold]:
        """Return gamma = 1 / L, theta = lam / L and K such steps, where L = norm(D, 2)^2."""
        return with_step_size(_steps_of(D, lam, self.depth), D, where(self))


@program("depth")
def _steps_of(D: Dictionary, lam: Any, depth: int) -> tuple[Any, Array]:
    gamma = 1 / (L := lipschitz(D, "networks"))
    theta = lam * gamma
    steps = StepAndThreshold(*(jnp.full(depth, value, D.dtype) for value in (gamma, theta)))
    return (gamma, theta, steps), (L > 0) & (gamma > 0)


# Compiled once: an eager scan would be compiled at every call.
@programs.on_auto_axes
@partial(jax.jit, static_argnums=0)
def _run(network: Unfolded, params: Params, Ds: Dictionaries, y: Array) -> tuple[Codes, Codes]:
    return network.unfold(params, Ds, y)


class Activated(Unfolded):
    """Blocks whose steps end in a shrinkage with any activation.

    Args:
        activation: replaces ReLU in the shrinkage.
    """

    activation: Activation | Callable = option(default=relu, check=layers.as_activation)


class AllCodes(NamedTuple):
    """The state of a sweep: the codes of all blocks."""

    x: Codes


class Blocks(NamedTuple):
    """The params of one sweep, block by block."""

    blocks: tuple[StepAndThreshold, ...]


class Sweeping(Activated):
    """J blocks whose codes are found together by K sweeps down and up from zero codes."""

    def update(
        self, shared: Any, p: Any, D: Dictionary, before: Array, x: Array, Dx: Array
    ) -> Array:
        """The next code of a block, from the code of the block before, the old code x, and D x."""
        raise NotImplementedError

    def step(self, shared, p, Ds, y, state):
        """One sweep down and up through the codes of all blocks."""

        def update(j, before, x, Dx):
            return self.update(shared[j], p.blocks[j], Ds[j], before, x, Dx)

        return AllCodes(sweep(Ds, y, state.x[-1], update))

    def unfold(self, params, Ds, y):
        start = AllCodes(tuple(jnp.zeros(D.shape[1], y.dtype) for D in Ds))
        state, path = self.loop(self.step, _together(params), Ds, y, start)
        return state.x, path


def _together(params: Params) -> Unrolled:
    """The params of all blocks as params of one loop, stacked if all blocks have stacked params."""
    steps = [p.steps for p in params]
    shared = tuple(p.shared for p in params)
    if not any(type(s) is tuple for s in steps):
        return Unrolled(shared, Blocks(tuple(steps)))
    alone = [s if type(s) is tuple else layers.unstack(p).steps for s, p in zip(steps, params)]
    return Unrolled(shared, tuple(Blocks(blocks) for blocks in zip(*alone)))


class Analysis(NamedTuple):
    """The matrix that all steps of an ML-LISTA block share."""

    B: layers.Matrix  # (d_{j-1}, d_j); B' multiplies the code of the block before


exportable(Analysis)


class ml_lista(Sweeping):
    r"""ML-LISTA: K steps that estimate the codes of all layers together.

    .. math::
        x_j &\leftarrow D_{j+1} x_{j+1}, \quad j = J - 1, \dots, 1, \\
        x_j &\leftarrow \mathrm{shrink}(x_j - \gamma_j D_j' D_j x_j + B_j' x_{j-1}, \; \theta_j),
        \quad j = 1, \dots, J, \quad x_0 = y,

    where the first line goes down from the deepest code, and the second line goes up and uses the
    codes that it has just found.

    Params: each block has a shared, learned B and steps (gamma, theta). `init` gives the steps of
    `pursuit.ml_ista`: B_j = D_j / L_j, gamma_j = 1 / L_j and theta_j = lam / (L_1 ... L_j), with
    L_j = norm(D_j, 2)^2. For J = 1 these are the steps of ISTA.

    Reference: Sulam, Aberdam, Beck, Elad (2020), section 5. Not claimed: a convergence rate; the
    fixed point of ML-ISTA is only near the optimum of its objective.

    Example:
        >>> network = ur.networks.ml_lista(8, lam=0.02)
        >>> Ds = ur.dictionaries.gaussian(jax.random.key(0), 8, 12), jnp.eye(12)
        >>> params = network.init(None, Ds)
        >>> [x.shape for x in network.iterates(params, Ds, jnp.ones(8))]
        [(8, 12), (8, 12)]
    """

    def forms(self, j):
        return (Unrolled(Analysis, StepAndThreshold),)

    def weights(self, j):
        return _acting

    def init(self, key: Key | None, Ds: Dictionaries) -> Params:
        params: list[Unrolled] = []
        theta: Any = self.lam
        for D in chain_of(self, Ds):
            gamma, theta, steps = self.start_of(D, theta)
            params.append(Unrolled(Analysis(D * gamma), steps))
        return tuple(params)

    def update(self, shared, p, D, before, x, Dx):
        u = x - p.gamma * (Dx @ D) + before @ shared.B
        return shrink(u, dictionaries.spread(D, p.theta), self.activation)


def _acting(shared: Analysis, p: StepAndThreshold, D: Dictionary) -> Acting:
    """B, which acts on the code of the block before, and I - gamma D'D, which acts on this code."""
    A, gamma = dictionaries.dense(D), jnp.reshape(p.gamma, (-1, 1))
    return Acting(shared.B, S=jnp.eye(A.shape[1], dtype=A.dtype) - gamma * (A.T @ A))


# The library judges codes by one rule: it compares them with zero codes, and with ISTA of the same
# depth.

# Two compiled programs may add the losses of a batch in different orders.
ROUNDING = 1e-5


@checked
def exceeds(loss: float, other: float) -> bool:
    """Whether a loss exceeds another by more than the rounding of a sum.

    Example:
        >>> from unrolled.networks import exceeds
        >>> exceeds(1.0001, 1.0), exceeds(1.0 + 1e-7, 1.0)
        (True, False)
    """
    return bool(loss > other and not np.isclose(loss, other, rtol=ROUNDING, atol=0))


def worse_than_zero(
    codes: str, measure: str, loss: Any, zero: Any, ista: Any = np.nan, unit: str = ""
) -> str:
    """A sentence which says, with the numbers, that codes are worse than zero codes.

    Args:
        codes: subject and verb of the sentence, such as "they are".
        measure: what the numbers measure, such as "loss" or "NMSE".
        loss, zero, ista: values for the codes, for zero codes, for ISTA of the same depth; NaN if
            unknown.
        unit: unit of the numbers.

    Example:
        >>> from unrolled.networks import worse_than_zero
        >>> worse_than_zero("they are", "loss", 3.0, 2.0, 0.5)
        'they are worse than zero codes: their loss is 3, zero codes have 2, ISTA has 0.5'
    """
    return _sentence("zero codes", codes, measure, loss, zero, ista, unit)


def worse(codes: str, measure: str, loss: Any, zero: Any, ista: Any = np.nan) -> str:
    """A sentence which says that codes are worse than zero codes or than ISTA; "" if they are not.

    The function takes the arguments of `worse_than_zero`.

    Example:
        >>> from unrolled.networks import worse
        >>> worse("they are", "loss", 1.0, 2.0, 0.5)[:42]
        'they are worse than ISTA of the same depth'
        >>> worse("they are", "loss", 0.4, 2.0, 0.5)
        ''
    """
    if exceeds(loss, zero):
        return worse_than_zero(codes, measure, loss, zero, ista)
    if exceeds(loss, ista):
        return _sentence("ISTA of the same depth", codes, measure, loss, zero, ista)
    return ""


def _sentence(
    other: str, codes: str, measure: str, loss: Any, zero: Any, ista: Any, unit: str = ""
) -> str:
    numbers = [f"their {measure} is {loss:.6g}{unit}", f"zero codes have {zero:.6g}{unit}"]
    numbers += [] if np.isnan(ista) else [f"ISTA has {ista:.6g}{unit}"]
    return f"{codes} worse than {other}: {', '.join(numbers)}"


def codes_of_ista(D: Dictionary, lam: Any, depth: int, Y: Array, where: str) -> Array:
    """The codes of ISTA after every step, (K, batch, d)."""
    solver, params = ista(depth), ista_params(dictionaries.shared_part(D), lam, depth, where)
    return jax.vmap(solver.iterates, (None, dictionaries.signal_axes(D), 0), out_axes=1)(
        params, D, Y
    )


def loss_of(loss: Any, X: Any, where: str) -> Callable[..., Array] | None:
    """The checked loss of codes; None stands for the error of the codes, which needs X.

    Raises:
        TypeError: the loss is not a function.
        ValueError: X and the loss are both None.
    """
    if loss is None and X is None:
        raise ValueError(
            f"{where}: there are no codes; expected X, or a loss that needs none, try "
            "loss=training.lasso_loss(lam)"
        )
    if loss is not None and not callable(loss):
        raise TypeError(
            f"{where}: loss must be a function of (codes, X, D, Y), such as "
            f"training.lasso_loss(lam), got {type(loss).__name__}"
        )
    return loss if X is not None else checks.without_codes(loss, where)


def lam_of(loss: Any, model: Any) -> float | None:
    """The lam of a loss, or the lam of a layer if the loss has none; None if neither has a lam."""
    lams = (getattr(part, "lam", None) for part in (loss, model))
    lam = next((lam for lam in lams if lam is not None), None)
    return None if lam is None or np.ndim(lam) or not checks.is_concrete(lam) else float(lam)
