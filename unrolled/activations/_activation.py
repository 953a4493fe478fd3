"""A scalar activation with its constants."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from unrolled import _checks
from unrolled._checks import Array
from unrolled._program import program


# jax.nn.relu loses NaN where XLA fuses its maximum with a sum on a CPU.
def _relu(x):
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@dataclass(frozen=True, repr=False)
class Activation:
    r"""A scalar activation rho and its constants; hashable and equal by value.

    It can be a static argument of `jit` without retracing. The constants are upper bounds; for the
    activations of this package they are the exact suprema, rounded up. Write h for rho on the tail
    x <= 0.

    Attributes:
        name: shown in tables and messages, and as `repr`.
        tail_lipschitz: L_h, the Lipschitz constant of h.
        tail_sup: beta = sup abs(h).
        tail_oscillation: sup h - inf h.
        relu_gap: sup over abs(x) <= reach of abs(rho - relu).
        function: called as `function(x, *parameters)`; give a module-level function, not a lambda.
        parameters: hashable arguments of `function`.
        line_oscillation: sup - inf of rho - relu over abs(x) <= reach (at most twice `relu_gap`).
        identity_on_positives: rho(x) = x for x >= 0, the hypothesis of Theorems 9 and 15.
        nonpositive_tail: rho(x) <= 0 for x <= 0; without it composing does not shrink the tail.
        reach: the constants hold for abs(x) <= reach, the whole line by default.

    `check` compares the constants with the function.

    Example:
        >>> rho = ur.activations.elu(0.5)
        >>> rho, rho.tail_sup, float(rho(jnp.float32(2.0)))
        (elu(0.5), 0.5, 2.0)
    """

    name: str
    tail_lipschitz: float
    tail_sup: float
    tail_oscillation: float
    relu_gap: float
    function: Callable[..., Array] = _relu
    parameters: tuple = ()
    line_oscillation: float = math.inf
    identity_on_positives: bool = False
    nonpositive_tail: bool = False
    reach: float = math.inf

    def __call__(self, x: Array) -> Array:
        x = _checks.as_float(x, "x", self.name)
        return _value(self.function, self.parameters, x)

    def __repr__(self) -> str:
        return self.name


@program("function", "parameters")
def _value(function: Callable[..., Array], parameters: tuple, x: Array) -> Array:
    return function(x, *parameters)


def one_signed(name, function, parameters=(), *, lipschitz, sup, gap, exact=False) -> Activation:
    """An activation whose tail and distance from ReLU keep one sign: oscillation = supremum."""
    return Activation(
        name, lipschitz, sup, sup, gap, function, parameters, gap, exact, nonpositive_tail=exact
    )


def parameter(
    value: float, name: str, where: str, *, most: float = math.inf, positive: bool = False
) -> float:
    """A parameter of an activation as a float, checked."""
    value = float(value)
    if not (0 < value if positive else 0 <= value) or not value <= most or not math.isfinite(value):
        bounds = f"{'above' if positive else 'at least'} 0" + (
            f" and at most {most:g}" if most < math.inf else ""
        )
        raise ValueError(f"{where}: {name} must be {bounds}, got {value}")
    return value


def shown(value: float) -> str:
    """A parameter with all its digits, and no more."""
    return short if float(short := f"{value:g}") == value else repr(value)
