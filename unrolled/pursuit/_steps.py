"""The steps that solvers, layers and networks share: ISTA, FISTA, and ML-ISTA through a chain."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import widened
from unrolled.activations import relu, shrink
from unrolled.dictionaries import Dictionary, spectral_norm, spread
from unrolled.pursuit._problem import Codes, codes_of


class State(NamedTuple):
    """The state of a method without memory: the code alone."""

    x: Array  # (d,)


class Momentum(NamedTuple):
    """The state of FISTA: the code, the extrapolated point, and the momentum counter t."""

    x: Array  # (d,)
    z: Array  # (d,)
    t: Array  # ()


@checked
def lipschitz(D: Dictionary, where: str) -> Array:
    """L = norm(D, 2)^2, the Lipschitz constant of the gradient D'(D x - y), for the step 1 / L.

    Raises:
        ValueError: a known D is zero, or L is outside of the range of its dtype.

    Example:
        >>> round(float(ur.pursuit.lipschitz(2 * jnp.eye(3), "caller")), 3)
        4.0
    """
    L, size, step = _lipschitz(D)
    if _checks.is_concrete(L) and not np.asarray(size) > 0:
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
    if _checks.is_concrete(L) and not (np.asarray(L) > 0 and np.asarray(step) > 0):
        raise ValueError(
            f"{where}: norm(D) is {float(size):.3g}, and the step size 1 / norm(D)^2 leaves the "
            f"range of {L.dtype}; divide D by a constant"
        )
    return L


@jax.jit
def _lipschitz(D: Dictionary) -> tuple[Array, Array, Array]:
    size = spectral_norm(D)
    return size**2, size, 1 / size**2


@checked
def ista_step(
    D: Dictionary,
    y: Array,
    x: Array,
    gamma: ArrayLike,
    theta: ArrayLike,
    activation: Callable[[Array], Array] = relu,
) -> Array:
    """x <- shrink(x + gamma D'(y - D x), theta): one gradient step, one shrinkage.

    The solver and the layer share this function.

    Args:
        D: (m, d).
        y, x: (m,) and (d,).
        gamma: step size, () or (d,).
        theta: thresholds, (), (d,), or one per filter of a `Conv`.
        activation: replaces ReLU in the shrinkage.

    Returns:
        The next code, (d,).

    Reference: Daubechies, Defrise, De Mol (2004).

    Example:
        >>> D, y = jnp.eye(3), jnp.array([3.0, 0.5, -2.0])
        >>> ur.pursuit.ista_step(D, y, jnp.zeros(3), 1.0, 1.0).tolist()
        [2.0, 0.0, -1.0]
    """
    _checks.vector(x, "x", "ista_step")
    _checks.broadcast("ista_step", x=x, gamma=gamma, theta=spread(D, theta))
    return shrink(x + gamma * ((y - D @ x) @ D), spread(D, theta), activation)


@checked
def fista_step(
    D: Dictionary,
    y: Array,
    state: Momentum,
    gamma: ArrayLike,
    theta: ArrayLike,
    activation: Callable[[Array], Array] = relu,
    restart: bool = False,
) -> Momentum:
    r"""An ISTA step at the extrapolated point z, then the next extrapolation.

    .. math:: t_+ = (1 + \sqrt{1 + 4 t^2}) / 2, \qquad z_+ = x_+ + (t - 1) / t_+ \, (x_+ - x).

    Args:
        D, y, gamma, theta, activation: as in `ista_step`.
        state: x, z and t; at the start x = z = 0 and t = 1.
        restart: set t = 1 whenever the momentum points uphill, (z - x_+) . (x_+ - x) > 0.

    Returns:
        The next state.

    Reference: Beck, Teboulle (2009); O'Donoghue, Candes (2015) for the restart.

    Example:
        >>> D, y, zero = jnp.eye(2), jnp.array([3.0, 0.5]), jnp.zeros(2)
        >>> start = ur.pursuit.Momentum(zero, zero, jnp.ones(()))
        >>> ur.pursuit.fista_step(D, y, start, 1.0, 1.0).x.tolist()
        [2.0, 0.0]
    """
    return extrapolated(state, ista_step(D, y, state.z, gamma, theta, activation), restart)


@checked
def extrapolated(state: Momentum, x: Array, restart: bool) -> Momentum:
    """The state of FISTA after a step from `state.z` to x; see `fista_step`.

    Example:
        >>> state = ur.pursuit.Momentum(jnp.ones(2), jnp.ones(2), jnp.asarray(2.0))
        >>> z = ur.pursuit.extrapolated(state, 2 * jnp.ones(2), restart=False).z
        >>> [round(entry, 3) for entry in z.tolist()]  # 2 + 1 / t_+
        [2.39, 2.39]
    """
    step = x - state.x
    t = (
        jnp.where(jnp.vdot(state.z - x, step) > 0, jnp.ones_like(state.t), state.t)
        if restart
        else state.t
    )
    wide = widened(t)  # t^2 leaves the range of half precision
    t_next = ((1 + jnp.sqrt(1 + 4 * wide**2)) / 2).astype(t.dtype)
    return Momentum(x, x + (t - 1) / t_next * step, t_next)


@checked
def sweep(
    Ds: Sequence[Any], y: Array, x: Array, update: Callable[[int, Array, Array, Array], Array]
) -> Codes:
    r"""One sweep through a chain: down from x_J, and up again with a new code in every layer.

    .. math::
        x_{j-1} &= D_j x_j, \quad j = J, \dots, 1, \\
        \hat x_j &= update(j, \hat x_{j-1}, x_j, x_{j-1}), \quad j = 1, \dots, J,
        \quad \hat x_0 = y.

    ML-ISTA and the networks that unroll it differ in `update` alone.

    Args:
        Ds: J dictionaries, or anything with `D @ x` and `r @ D`.
        y, x: (m,) and (d_J,), or what the dictionaries take.
        update: takes the index of the layer, from 0, the new code before it, its code x_j, and
            D_j x_j.

    Returns:
        The new codes, (d_j,) each.

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> def shrunk(j, before, x, Dx):
        ...     return ur.shrink(before, 1.0)
        >>> [x.tolist() for x in ur.pursuit.sweep((D, D), y, y, shrunk)]
        [[2.0, 0.0], [1.0, 0.0]]
    """
    for j, D in enumerate(Ds):
        _checks.has(D, "__matmul__", "a dictionary", f"Ds[{j}]", "sweep")
        if () in (np.shape(x), getattr(D, "shape", None)):
            raise ValueError(f"sweep: x has shape {np.shape(x)}; Ds[{j}] and x have no product")
        _checks.arrays(D, f"Ds[{j}]", "sweep")
    xs = codes_of(Ds, x)
    below = (Ds[0] @ xs[0], *xs)
    before, codes = y, []
    for j, code in enumerate(xs):
        before = update(j, before, code, below[j])
        codes.append(before)
    return tuple(codes)


@checked
def ml_ista_step(
    Ds: Sequence[Any],
    y: Array,
    x: Array,
    gammas: Sequence[ArrayLike],
    thetas: Sequence[ArrayLike],
    shrinkage: Callable[[Array, Any], Array] = shrink,
) -> Codes:
    r"""One step of ML-ISTA from x = x_J: down by multiplication, up by an ISTA step per layer.

    .. math::
        x_{j-1} &= D_j x_j, \quad j = J, \dots, 2, \\
        \hat x_j &= shrink(x_j + \gamma_j D_j'(\hat x_{j-1} - D_j x_j), \theta_j),
        \quad j = 1, \dots, J, \quad \hat x_0 = y.

    Solvers and the classifiers of `models.MLCSC` share this function.

    Args:
        Ds: J dictionaries (d_{j-1}, d_j), or anything with `D @ x` and `r @ D`.
        y, x: (m,) and (d_J,), or what the dictionaries take.
        gammas, thetas: J step sizes and thresholds, as in `ista_step`.
        shrinkage: takes v and theta; `activations.nonnegative_threshold` for codes x >= 0.

    Returns:
        The codes after the step, (d_j,) each; the last one is the next x_J.

    Reference: Sulam, Aberdam, Beck, Elad (2020).

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> xs = ur.pursuit.ml_ista_step((D, D), y, jnp.zeros(2), (1.0, 1.0), (1.0, 0.5))
        >>> [x.tolist() for x in xs]
        [[2.0, 0.0], [1.5, 0.0]]
    """

    def update(j, before, x, Dx):
        return shrinkage(x + gammas[j] * ((before - Dx) @ Ds[j]), spread(Ds[j], thetas[j]))

    return sweep(Ds, y, x, update)
