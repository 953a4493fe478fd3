"""The shrinkage that ends a step: with any activation, and with support selection."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from unrolled._checks import Array
from unrolled.activations import Activation, by_name, relu, select_support, shrink
from unrolled.dictionaries import spread
from unrolled.layers._layer import Layer
from unrolled.layers._options import option
from unrolled.pursuit import State


def as_activation(value, name: str, where: str) -> Activation | Callable:
    """An activation by name, as a record, or as a function of arrays that keeps shape and dtype."""
    rho = by_name(value)
    try:
        problem = _problem_of(rho)
    except TypeError:  # not hashable: the record says so
        return rho
    if problem:
        raise ValueError(f"{where}: {name} {rho} {problem}")
    return rho


@functools.lru_cache(maxsize=256)
def _problem_of(rho) -> str:
    probe = jax.ShapeDtypeStruct((3,), np.float32)
    out = jax.eval_shape(rho, probe)
    if getattr(out, "shape", None) == probe.shape and out.dtype == probe.dtype:
        return ""
    return f"maps float32 (3,) to {out}; expected the same shape and dtype"


def as_support(value, name: str, where: str) -> tuple[float, float] | None:
    """(rate, largest) of support selection, or None.

    Raises:
        ValueError: not 0 <= rate and 0 <= largest <= 1.
    """
    if value is None:
        return None
    try:
        rate, largest = (float(part) for part in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name} must be (rate, largest), got {value!r}") from error
    if not (0 <= rate < math.inf and 0 <= largest <= 1):
        raise ValueError(
            f"{where}: {name} must be (rate >= 0, largest in [0, 1]), got {(rate, largest)}"
        )
    return rate, largest


def support_schedule(support: tuple[float, float] | None, depth: int) -> tuple[float, ...] | None:
    """Support fractions min(k rate, largest) for k = 1..K; None selects nothing."""
    if support is None:
        return None
    rate, largest = support
    return tuple(min(k * rate, largest) for k in range(1, depth + 1))


def select_or_shrink(
    u: Array, theta: Array, fraction: Array | None, activation: Callable = relu
) -> Array:
    """`select_support` with the fraction of the step, or `shrink` where nothing is selected.

    Example:
        >>> u = jnp.array([3.0, -2.0, 0.5])
        >>> ur.layers.select_or_shrink(u, 1.0, None).tolist()
        [2.0, -1.0, 0.0]
        >>> ur.layers.select_or_shrink(u, 1.0, 1 / 3).tolist()
        [3.0, -1.0, 0.0]
    """
    if fraction is None:
        return shrink(u, theta, activation)
    return select_support(u, theta, fraction, activation)


class Shrinking(Layer):
    """A family whose steps end in `self.shrink`, with any activation."""

    activation: Activation | Callable = option(
        default=relu, check=as_activation, help="in place of ReLU in the shrinkage"
    )

    def shrink(self, u: Array, theta: Array) -> Array:
        return shrink(u, theta, self.activation)


class Selecting(Layer):
    """A family whose steps end in `self.shrink`, with any activation and with support selection.

    `step` takes one more argument, the share of the entries that pass: `fraction=None`.
    """

    support: tuple[float, float] | None = option(
        default=None,
        check=as_support,
        help="(rate, largest): at step k = 1..K the largest min(k rate, largest) share of the "
        "entries pass unshrunk where they exceed theta (support selection)",
    )
    activation: Activation | Callable = option(
        default=relu, check=as_activation, help="in place of ReLU in the shrinkage"
    )

    @property
    def schedule(self) -> tuple[float, ...] | None:
        return support_schedule(self.support, self.depth)

    def shrink(self, u: Array, theta: Array, fraction: Array | None = None) -> Array:
        return select_or_shrink(u, theta, fraction, self.activation)


class Coupled(Layer):
    """A family of the step x <- shrink(x + gamma W'(y - D x), theta), the form of the theorems.

    A subclass says by `weights` which W and gamma act. `realize` computes these families as
    networks.
    """

    def step(self, shared, p, D, y, state, *fraction):
        W, gamma, _ = self.weights(shared, p, D)
        g = (y - D @ state.x) @ W
        u = state.x + (g if gamma is None else gamma * g)
        return State(self.shrink(u, spread(D, p.theta), *fraction))
