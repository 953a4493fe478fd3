"""Base classes for families that shrink, that select a support, or that start as ISTA."""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, program
from unrolled.activations import NAMED, Activation, by_name, relu
from unrolled.dictionaries import Dictionary, Operator, as_dictionary, spread
from unrolled.layers._layer import Acting, Layer
from unrolled.layers._records import Unrolled
from unrolled.penalties import Penalty
from unrolled.pursuit import State, lipschitz, with_step_size
from unrolled.records import option

__all__ = ["Coupled", "FromISTA", "Selecting", "Shrinking"]


# The published setting of LISTA-CPSS: step k lets 1.2 k % of the entries pass, at most 13 %.
PUBLISHED_SUPPORT = (0.012, 0.13)


def as_activation(value: Any, name: str, where: str) -> Activation | Callable[[Array], Array]:
    """An activation from its name, its record, or a function of arrays.

    Raises:
        ValueError: the name is unknown, or the function fails on a traced array or changes its
            shape or dtype.
        TypeError: the value is neither a string nor callable.

    Example:
        >>> ur.layers.as_activation("silu", "activation", "caller")
        silu
        >>> ur.layers.as_activation(jax.nn.relu, "activation", "caller") is ur.activations.relu
        True
    """
    rho = by_name(value)
    try:
        hash(rho)
    except TypeError:  # `Activation` reports the fault
        return rho
    if problem := _problem_of(rho):
        raise ValueError(f"{where}: {name} {rho} {problem}")
    return rho


@functools.lru_cache(maxsize=256)
def _problem_of(rho) -> str:
    probe = jax.ShapeDtypeStruct((3,), np.float32)
    try:
        out = jax.eval_shape(rho, probe)
    except Exception as error:  # the caller's function can raise any error
        return f"fails on a traced float32 array (3,): {str(error).splitlines()[0]}"
    if getattr(out, "shape", None) == probe.shape and out.dtype == probe.dtype:
        return ""
    return f"maps float32 (3,) to {out}; expected the same shape and dtype"


def as_support(value: Any, name: str, where: str) -> tuple[float, float] | None:
    """The pair (rate, largest) of support selection, as two floats, or None.

    Raises:
        ValueError: the value is not two numbers with 0 <= rate and 0 <= largest <= 1.

    Example:
        >>> from unrolled.layers._shrinking import as_support
        >>> as_support([0.1, 1], "support", "caller")
        (0.1, 1.0)
    """
    if value is None:
        return None
    try:
        rate, largest = (checks.as_number(part, name, where) for part in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name} must be (rate, largest), got {value!r}") from error
    if not (0 <= rate < math.inf and 0 <= largest <= 1):
        raise ValueError(
            f"{where}: {name} must be (rate >= 0, largest in [0, 1]), got {(rate, largest)}"
        )
    return rate, largest


def support_option(default: tuple[float, float] | None) -> Any:
    """The option `support` of a family, with this default."""
    return option(
        default=default,
        check=as_support,
        help="(rate, largest) of support selection: at step k = 1..K, entries above theta pass "
        "unshrunk if they are among the min(k rate, largest) d of largest magnitude",
    )


class Shrinking(Layer):
    """A family whose steps end in `self.shrink(D, u, theta)`, with any activation.

    Steps that select a support end in `self.shrink(D, u, theta, fraction)`. With `nonnegative`, the
    steps are steps for the LASSO over x >= 0. With a `bend`, large entries pass unshrunk, as in the
    proximal map of the minimax concave penalty. No theorem in this library covers `nonnegative` or
    `bend`: certificates do not hold for layers with a `bend`, and `realize` and the predictions of
    `theory` refuse both options.

    Args:
        activation: replaces ReLU in the shrinkage.
        nonnegative: shrink by rho(u - theta); with ReLU this is the proximal map over x >= 0.
        bend: entries above bend * theta pass unshrunk (firm shrinkage); inf shrinks all entries.

    Example:
        >>> layer = ur.layers.ista(1, activation=ur.activations.leaky_relu(0.1))
        >>> print(layer.shrink(jnp.eye(2), jnp.array([3.0, 0.0]), 1.0).round(1))
        [2.4 0. ]
        >>> ur.layers.ista(1).shrink(jnp.eye(3), jnp.array([3.0, -2.0, 0.5]), 1.0, 1 / 3).tolist()
        [3.0, -1.0, 0.0]
        >>> ur.layers.ista(1, bend=2).shrink(jnp.eye(2), jnp.array([3.0, 1.5]), 1.0).tolist()
        [3.0, 1.0]

    Reference: Zhang (2010); Gao, Bruce (1997).
    """

    activation: Activation | Callable = option(default=relu, check=as_activation, choices=NAMED)

    nonnegative: bool = option(default=False)

    bend: float = option(default=math.inf, above=1, most=math.inf)

    def penalty(self, D: Dictionary) -> Penalty:
        """The penalty whose proximal map shrinks the codes of D."""
        return Penalty(nonnegative=self.nonnegative, bend=self.bend).of(D)

    @property
    def is_soft(self) -> bool:
        """Whether codes have both signs and shrinkage has no bend, as theorems assume."""
        return not self.nonnegative and self.bend == math.inf

    @property
    def takes_parts(self) -> bool:
        """True, because `shrink` handles parts; False for a family whose step acts on entries."""
        return True

    def shrink(
        self, D: Dictionary, u: Array, theta: ArrayLike, fraction: ArrayLike | None = None
    ) -> Array:
        """Shrink u to a code, (d,) -> (d,); the share `fraction` of entries may pass unshrunk.

        theta is one number, or has one number per atom or per group of atoms of D.
        """
        return self.penalty(D).shrink(u, spread(D, theta), self.activation, fraction)


class Selecting(Shrinking):
    """A family with the option `support`, which sets the share of entries that pass unshrunk.

    `step` takes this share as its last argument, `fraction=None`, and passes the share to
    `self.shrink`.

    Example:
        >>> ur.alista(3, support=(0.1, 0.25)).schedule
        (0.1, 0.2, 0.25)
    """

    support: tuple[float, float] | None = support_option(None)

    @property
    def schedule(self) -> tuple[float, ...] | None:
        """The support fractions min(k rate, largest) for k = 1..K, or None."""
        if self.support is None:
            return None
        rate, largest = self.support
        return tuple(min(k * rate, largest) for k in range(1, self.depth + 1))


class FromISTA(Layer):
    """A family that starts as ISTA for the LASSO with the weight `lam`.

    Example:
        >>> D, L, theta = ur.lista_cp(2, lam=0.1).ista_start(2 * jnp.eye(3))
        >>> print(L.round(3), theta.round(3))
        4.0 [0.025 0.025]
    """

    lam: float = option(default=0.1, least=0, help="weight of the LASSO at the start")

    def ista_start(self, D: Dictionary) -> tuple[Operator, Array, Array]:
        """D as a checked dictionary, L = norm(D, 2)^2, and the K thresholds lam / L."""
        D = as_dictionary(D, self.family)
        L = lipschitz(D, self.family)
        return D, L, jnp.full(self.depth, self.lam / L, D.dtype)

    def init(self, key: Key | None, D: Dictionary) -> Unrolled:
        D = as_dictionary(D, self.family)
        return with_step_size(_at_ista(self, D), D, self.family)

    def at_ista(self, D: Dictionary, L: Array, theta: Array) -> Unrolled:
        """The params that make every step a step of ISTA, from the results of `ista_start`."""
        raise NotImplementedError


@program("layer")
def _at_ista(layer: FromISTA, D: Dictionary) -> tuple[Unrolled, Array]:
    D, L, theta = layer.ista_start(D)
    return layer.at_ista(D, L, theta), (L > 0) & (1 / L > 0)


class Coupled(Shrinking):
    """A family whose step is x <- shrink(x + gamma W'(y - D x), theta), as in the theorems.

    A subclass defines `weights`, which returns W and gamma, and its params have a `theta`.
    `realize` turns layers of these families into CNNs and transformers.

    Example:
        >>> layer, D = ur.alista(2), jnp.eye(2)
        >>> shared, steps = ur.layers.unstack(layer.init(None, D))
        >>> state = layer.step(shared, steps[0], D, D[0], layer.start(D, D[0]))
        >>> print(state.x.round(2))
        [0.9 0. ]
    """

    if TYPE_CHECKING:  # each family defines `weights`
        weights: ClassVar[Callable[..., Acting]]

    @property
    def is_coupled(self) -> bool:
        """Whether a step of this layer has the form of the theorems.

        The form excludes a guard, `nonnegative`, a `bend`, and a step or a shrinkage that a
        subclass defines.
        """
        return self._steps_alike and not (self.uncovered or self.nonnegative)

    @property
    def uncovered(self) -> str:
        """The name of a shrinkage that no theorem covers (firm, or of a subclass), else "".

        Example:
            >>> ur.alista(2, bend=3).uncovered
            'the firm shrinkage of alista with bend=3'
        """
        own: Any = type(self)
        if not self._steps_alike:
            return ""
        if own.shrink is not Shrinking.shrink or own.penalty is not Shrinking.penalty:
            return f"the shrinkage that {self.family} defines"
        if self.bend == math.inf or self.nonnegative:
            return ""
        return f"the firm shrinkage of {self.family} with bend={self.bend:g}"

    @property
    def _steps_alike(self) -> bool:
        own: Any = type(self)
        return self.guard is None and own.step is Coupled.step and own.start is Layer.start

    def step(self, shared, p, D, y, state, *fraction):
        W, gamma, _ = self.weights(shared, p, D)
        g = (y - D @ state.x) @ W
        u = state.x + (g if gamma is None else gamma * g)
        return State(self.shrink(D, u, p.theta, *fraction))
