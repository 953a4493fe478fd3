"""The pursuits that `MLCSC` unfolds: images in, the codes of all layers out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from unrolled._checks import Array
from unrolled.models._image_conv import ImageConv
from unrolled.pursuit import Momentum, extrapolated, ml_ista_step, sweep

Codes = tuple[Array, ...]
Rho = Callable[[Array], Array]
Carry = TypeVar("Carry")


class Step(NamedTuple):
    """What a step of a pursuit takes in one layer."""

    D: ImageConv
    gamma: Array  # ()
    theta: Array  # (1, 1, 1, m), the bias with its sign changed
    B: ImageConv  # the analysis filters: D, or filters of their own in ML-LISTA


Steps = Sequence[Step]
Pursue = Callable[[Steps, Array, int, Rho], Codes]


def forward(steps: Steps, y: Array, rho: Rho) -> Codes:
    r"""A plain CNN, x_j = rho(gamma_j D_j' x_{j-1} - theta_j): a step of ML-ISTA from x_J = 0."""
    xs = []
    for _, gamma, theta, B in steps:
        y = rho(gamma * (y @ B) - theta)
        xs.append(y)
    return tuple(xs)


def ml_ista(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    return _repeated(lambda xs: _ml_ista_step(steps, y, xs[-1], rho), forward(steps, y, rho), T)


def ml_fista(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    def advance(carry):
        state, _ = carry
        xs = _ml_ista_step(steps, y, state.z, rho)
        return extrapolated(state, xs[-1], restart=False), xs

    xs = forward(steps, y, rho)
    zero = jnp.zeros_like(xs[-1])
    start = Momentum(zero, zero, jnp.ones((), zero.dtype))
    return _repeated(advance, (extrapolated(start, xs[-1], restart=False), xs), T)[1]


def ml_lista(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    r"""x_j <- rho(x_j - D_j' D_j x_j + B_j' x_{j-1} - theta_j), in sweeps as those of ML-ISTA."""

    def update(j, before, x, Dx):
        D, _, theta, B = steps[j]
        return rho(x - Dx @ D + before @ B - theta)

    def advance(xs):
        return sweep([step.D for step in steps], y, xs[-1], update)

    return _repeated(advance, forward(steps, y, rho), T)


def layered_bp(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    """T steps of ISTA in every layer, one layer after the other."""
    xs: list[Array] = []
    for step in steps:
        xs.append(ml_ista([step], xs[-1] if xs else y, T, rho)[0])
    return tuple(xs)


def all_free(steps: Steps, y: Array, T: int, rho: Rho) -> Codes:
    """ML-ISTA with steps of their own: the leaves of `steps` lead with T + 1."""
    xs = forward(at_time(steps, 0), y, rho)
    for t in range(1, T + 1):
        xs = _ml_ista_step(at_time(steps, t), y, xs[-1], rho)
    return xs


def at_time(steps: Steps, t: int) -> Steps:
    """The steps at time t of layers that have params for every time."""
    return jax.tree.map(lambda leaf: leaf[t], steps)


PURSUITS: dict[str, Pursue] = {
    "cnn": lambda steps, y, T, rho: forward(steps, y, rho),
    "ml-ista": ml_ista,
    "ml-fista": ml_fista,
    "ml-lista": ml_lista,
    "layered-bp": layered_bp,
    "all-free": all_free,
}


def _ml_ista_step(steps: Steps, y: Array, x: Array, rho: Rho) -> Codes:
    Ds, gammas, thetas, _ = zip(*steps)
    return ml_ista_step(Ds, y, x, gammas, thetas, lambda v, theta: rho(v - theta))


def _repeated(advance: Callable[[Carry], Carry], carry: Carry, T: int) -> Carry:
    # Not a scan: inside of one XLA's convolutions on a CPU are many times slower.
    for _ in range(T):
        carry = advance(carry)
    return carry
