"""ISTA and FISTA, for one dictionary to a duality gap, and for a chain to a fixed point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, checked
from unrolled._base.numbers import widened
from unrolled.activations import by_name, relu, shrink
from unrolled.dictionaries import Dictionary, spectral_norm, spread
from unrolled.penalties import L1, Penalty
from unrolled.pursuit import _problem
from unrolled.pursuit._gap import chain_gap, relative_gap
from unrolled.pursuit._problem import Codes, DeepPursuit, Found, Problem, Pursuit

__all__ = [
    "Momentum",
    "State",
    "extrapolated",
    "fista",
    "fista_step",
    "ista",
    "ista_step",
    "lipschitz",
    "ml_fista",
    "ml_ista",
    "ml_ista_step",
    "sweep",
]


class State(NamedTuple):
    """The state of a method without memory: only the code."""

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
        ValueError: a known D is zero, or L or 1 / L is outside of the range of the dtype.

    Example:
        >>> round(float(ur.pursuit.lipschitz(2 * jnp.eye(3), "caller")), 3)
        4.0
    """
    L, size, step = _lipschitz(D)
    if checks.is_concrete(L) and not np.asarray(size) > 0:
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
    if checks.is_concrete(L) and not (np.asarray(L) > 0 and np.asarray(step) > 0):
        raise ValueError(
            f"{where}: norm(D) is {float(size):.3g}, and the step size 1 / norm(D)^2 leaves the "
            f"range of {L.dtype}; divide D by a constant"
        )
    return L


def with_step_size(made: tuple[Any, Array], D: Dictionary, where: str) -> Any:
    """The first of the pair (params, whether the step size 1 / norm(D)^2 is usable).

    Raises:
        ValueError: the step size is known not to be usable, as in `lipschitz`.
    """
    params, usable = made
    if not checks.may_hold(usable):
        lipschitz(D, where)  # raises with the reason
    return params


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
    penalty: Penalty = L1,
) -> Array:
    """One ISTA step, x <- shrink(x + gamma D'(y - D x), theta): a gradient step and a shrinkage.

    The solver `ista` and the layers that unroll ISTA share this function.

    Args:
        D: (m, d).
        y, x: (m,) and (d,).
        gamma: step size, of shape () or (d,).
        theta: thresholds: one number, one per atom, or one per filter of a `Conv`.
        activation: function that replaces ReLU in the shrinkage.
        penalty: the penalty whose proximal map is the shrinkage; D determines its parts.

    Returns:
        The next code, of shape (d,).

    Reference: Daubechies, Defrise, De Mol (2004).

    Example:
        >>> D, y = jnp.eye(3), jnp.array([3.0, 0.5, -2.0])
        >>> ur.pursuit.ista_step(D, y, jnp.zeros(3), 1.0, 1.0).tolist()
        [2.0, 0.0, -1.0]
    """
    checks.vector(x, "x", "ista_step")
    checks.broadcast("ista_step", x=x, gamma=gamma, theta=spread(D, theta))
    return penalty.of(D).shrink(x + gamma * ((y - D @ x) @ D), spread(D, theta), activation)


@checked
def fista_step(
    D: Dictionary,
    y: Array,
    state: Momentum,
    gamma: ArrayLike,
    theta: ArrayLike,
    activation: Callable[[Array], Array] = relu,
    restart: bool = False,
    penalty: Penalty = L1,
) -> Momentum:
    r"""An ISTA step at the extrapolated point z, then the next extrapolation.

    .. math:: t_+ = (1 + \sqrt{1 + 4 t^2}) / 2, \qquad z_+ = x_+ + (t - 1) / t_+ \, (x_+ - x).

    Args:
        D, y, gamma, theta, activation, penalty: as in `ista_step`.
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
    x = ista_step(D, y, state.z, gamma, theta, activation, penalty)
    return extrapolated(state, x, restart)


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
    r"""One sweep through a chain: down from x_J to the signal, and back up with new codes.

    .. math::
        x_{j-1} &= D_j x_j, \quad j = J, \dots, 1, \\
        \hat x_j &= update(j, \hat x_{j-1}, x_j, x_{j-1}), \quad j = 1, \dots, J,
        \quad \hat x_0 = y.

    ML-ISTA and the networks that unroll ML-ISTA differ only in `update`.

    Args:
        Ds: J dictionaries, or anything with `D @ x` and `r @ D`.
        y, x: (m,) and (d_J,), or the arrays that the dictionaries take.
        update: (index of the layer, from 0; new code of the layer before; x_j; D_j x_j) -> new x_j.

    Returns:
        The new codes, of shapes (d_j,).

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> def shrunk(j, before, x, Dx):
        ...     return ur.shrink(before, 1.0)
        >>> [x.tolist() for x in ur.pursuit.sweep((D, D), y, y, shrunk)]
        [[2.0, 0.0], [1.0, 0.0]]
    """
    for j, D in enumerate(Ds):
        checks.has(D, "__matmul__", "a dictionary", f"Ds[{j}]", "sweep")
        if () in (np.shape(x), getattr(D, "shape", None)):
            raise ValueError(f"sweep: x has shape {np.shape(x)}; Ds[{j}] and x have no product")
        checks.arrays(D, f"Ds[{j}]", "sweep")
    xs = _problem.codes_of(Ds, x)
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
    r"""One step of ML-ISTA from x = x_J: down by products, up by an ISTA step in each layer.

    .. math::
        x_{j-1} &= D_j x_j, \quad j = J, \dots, 2, \\
        \hat x_j &= shrink(x_j + \gamma_j D_j'(\hat x_{j-1} - D_j x_j), \theta_j),
        \quad j = 1, \dots, J, \quad \hat x_0 = y.

    The solvers and the classifiers of `models.MLCSC` share this function.

    Args:
        Ds: J dictionaries of shapes (d_{j-1}, d_j), or anything with `D @ x` and `r @ D`.
        y, x: (m,) and (d_J,), or the arrays that the dictionaries take.
        gammas, thetas: J step sizes and thresholds, as in `ista_step`.
        shrinkage: (v, theta) -> code; `activations.nonnegative_threshold` for codes x >= 0.

    Returns:
        The codes after the step, of shapes (d_j,); the last code is the next x_J.

    Reference: Sulam, Aberdam, Beck, Elad (2020).

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> xs = ur.pursuit.ml_ista_step((D, D), y, jnp.zeros(2), (1.0, 1.0), (1.0, 0.5))
        >>> [x.tolist() for x in xs]
        [[2.0, 0.0], [1.5, 0.0]]
    """

    def update(j, before, x, Dx):
        gamma = jnp.asarray(gammas[j])
        return shrinkage(x + gamma * ((before - Dx) @ Ds[j]), spread(Ds[j], thetas[j]))

    return sweep(Ds, y, x, update)


def ista(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike,
    *,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
    activation: Callable[[Array], Array] = relu,
) -> Pursuit:
    r"""Solve the LASSO by ISTA, from x = 0.

    .. math:: x \leftarrow shrink(x + D'(y - D x) / L, lam / L), \qquad L = \|D\|_2^2.

    The objective never rises, and F(x_k) - F* <= L norm(x*)^2 / (2 k).

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`, whose code has the shape `D.code_grid`.
        lam: penalty weight: one number, one per atom, or one per filter of a `Conv`; if lam >= max
            abs(D'y), then x = 0. (If a paper puts lambda on the data term, norm(x, 1) + lambda
            norm(y - D x)^2, then lam = 1 / (2 lambda).)
        tol: relative duality gap to stop at. If None, `ista` takes exactly `max_steps` steps and is
            differentiable in reverse mode.
        max_steps: maximum number of steps; with a tol, rounded up to a multiple of 10.
        activation: function that replaces ReLU in the shrinkage. The gap certifies a code only with
            ReLU, because other activations do not solve the LASSO.

    Returns:
        Pursuit. In float32 the gap of hard problems stalls near 1e-6.

    Raises:
        TypeError: an operand is not real, or tol or max_steps is traced.
        ValueError: shapes do not fit, lam is negative or beyond the range of the dtype, D = 0
            (if known), or tol <= 0.

    Reference: Daubechies, Defrise, De Mol (2004); Beck, Teboulle (2009), Theorem 3.1.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.ista(D, D[:, 3] - 0.5 * D[:, 20], 0.01)
        >>> bool(result.converged), jnp.flatnonzero(jnp.abs(result.x) > 0.1).tolist()
        (True, [3, 20])
    """
    return _problem.single(
        Iterated(tol, max_steps, activation).checked("ista"), "ista", D, y, lam, parts=True
    )


def fista(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike,
    *,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
    restart: bool = True,
    activation: Callable[[Array], Array] = relu,
) -> Pursuit:
    r"""Solve the LASSO by FISTA: ISTA steps at extrapolated points, see `fista_step`.

    Without restart, F(x_k) - F* <= 2 L norm(x*)^2 / (k + 1)^2. With restart, this bound is not
    guaranteed, but the local rate is linear, and FISTA reaches the gap sooner than without restart.

    Args:
        D, y, lam, tol, max_steps, activation: as in `ista`.
        restart: drop the momentum whenever it points uphill.

    Returns:
        Pursuit, as from `ista`.

    Raises:
        TypeError, ValueError: as in `ista`.

    Reference: Beck, Teboulle (2009), Theorem 4.4; O'Donoghue, Candes (2015) for the restart.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.fista(D, D[:, 3] - 0.5 * D[:, 20], 0.01)
        >>> bool(result.converged), jnp.flatnonzero(jnp.abs(result.x) > 0.1).tolist()
        (True, [3, 20])
    """
    restart = checks.as_bool(restart, "restart", "fista")
    method = Accelerated(tol, max_steps, activation, restart=restart).checked("fista")
    return _problem.single(method, "fista", D, y, lam, parts=True)


def ml_ista(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    lams: Sequence[ArrayLike],
    *,
    step: float = 1.0,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
    start: ArrayLike | None = None,
) -> DeepPursuit:
    r"""ML-ISTA for the problem of `ml_basis_pursuit`, up to a fixed point of ML-ISTA.

    .. math:: \min_{x_J} \|y - D_1 x_1\|^2 / 2 + \sum_j lam_j \|x_j\|_1, \qquad x_{j-1} = D_j x_j.

    Every step is an `ml_ista_step` with gamma_1 = step / L_1, gamma_j = 1 / L_j and theta_j =
    gamma_1 ... gamma_j lam_j, where L_j = norm(D_j, 2)^2. The steps converge to a fixed point if
    one exists, because the gradient mapping of a layer is cocoercive, with at least half of the
    constant of an exact gradient. With one layer, `ml_ista` is `ista`.

    The fixed point is not the optimum: the excess of the objective over the minimum is zero only by
    coincidence. A smaller `step` gives a smaller excess, but slower convergence. `gap` bounds the
    excess.

    Args:
        Ds: J dictionaries of shapes (d_{j-1}, d_j).
        y: (m,).
        lams: J penalties, each one number, one per atom, or one per filter of a `Conv`.
        step: gamma_1 L_1, in (0, 1].
        tol: tolerance of the fixed point, see Returns. If None, `ml_ista` takes exactly `max_steps`
            steps and is differentiable in reverse mode.
        max_steps: maximum number of steps; with a tol, rounded up to a multiple of 10.
        start: the x_J to start from, of shape (d_J,); zero by default.

    Returns:
        DeepPursuit. `converged` says that a step moves x_J by at most `tol gamma_1 ... gamma_J max
        abs(D_J' ... D_1' y)`; it does not say that the gap is small. `gap` bounds the excess of the
        objective at every point, also before convergence.

    Raises:
        TypeError: an operand is not real, or step, tol or max_steps is traced.
        ValueError: shapes do not fit, the number of lams is not J, lam_j < 0, D_j = 0 (if known),
            tol <= 0, or step is outside (0, 1].

    Not claimed: a rate of convergence. The first version of the paper states a rate, which the
    final version withdraws.

    Reference: Sulam, Aberdam, Beck, Elad (2020).

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), ur.dictionaries.dct(32, 32)
        >>> result = ur.pursuit.ml_ista(Ds, Ds[0][:, 3], (0.01, 0.01))
        >>> bool(result.converged), bool(result.gap < 0.01), [x.shape for x in result.xs]
        (True, True, [(32,), (32,)])
    """
    method = Iterated(tol, max_steps, step=step, chained=True).checked("ml_ista")
    return _problem.deep(method, "ml_ista", Ds, y, lams, start=start)


def ml_fista(
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    lams: Sequence[ArrayLike],
    *,
    step: float = 1.0,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
    restart: bool = True,
    start: ArrayLike | None = None,
) -> DeepPursuit:
    """ML-FISTA: steps of ML-ISTA at extrapolated points, with the momentum of `fista_step`.

    ML-FISTA and ML-ISTA have the same fixed points. With one layer, `ml_fista` is `fista`.

    Args:
        Ds, y, lams, step, tol, max_steps, start: as in `ml_ista`.
        restart: drop the momentum whenever it points uphill.

    Returns:
        DeepPursuit, as from `ml_ista`.

    Raises:
        TypeError, ValueError: as in `ml_ista`.

    Not claimed: convergence, which is observed but not proved.

    Reference: Sulam, Aberdam, Beck, Elad (2020).

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), ur.dictionaries.dct(32, 32)
        >>> result = ur.pursuit.ml_fista(Ds, Ds[0][:, 3], (0.01, 0.01))
        >>> bool(result.converged), bool(result.gap < 0.01)
        (True, True)
    """
    restart = checks.as_bool(restart, "restart", "ml_fista")
    method = Accelerated(tol, max_steps, step=step, chained=True, restart=restart)
    return _problem.deep(method.checked("ml_fista"), "ml_fista", Ds, y, lams, start=start)


@dataclass(frozen=True)
class Iterated:
    """ISTA, for one dictionary to a gap, and for a chain to a fixed point."""

    tol: float | None
    max_steps: int
    activation: Any = relu
    step: float = 1.0  # gamma_1 L_1
    chained: bool = False

    def checked(self, where: str) -> "Iterated":
        """The method with checked options."""
        none = "" if self.chained else ", or None for a fixed number of steps"
        step = checks.as_number(self.step, "step", where)
        if not 0 < step <= 1:
            raise ValueError(f"{where}: step must be in (0, 1], got {step}")
        return replace(
            self,
            tol=None if self.tol is None else _problem.static_tol(self.tol, where, none),
            max_steps=_problem.static_steps(self.max_steps, where),
            activation=by_name(self.activation),
            step=step,
        )

    def __call__(self, problem: Problem, x: Array) -> Found:
        first, *others = (1 / size**2 for size in problem.sizes)
        gammas = [self.step * first, *others]
        ts = list(accumulate(gammas, mul))
        thetas = [t * lam for t, lam in zip(ts, problem.lams)]
        activation = _problem.activation_in_units(self.activation, problem.up[-1])

        def once(x):
            if self.chained:
                return ml_ista_step(problem.Ds, problem.y, x, gammas, thetas)[-1]
            return ista_step(problem.Ds[0], problem.y, x, gammas[0], thetas[0], activation)

        def gap(x):
            if not self.chained:
                D = problem.Ds[0]
                return relative_gap(D, problem.y, problem.lams[0], x, penalty=L1.of(D))
            xs = _problem.codes_of(problem.Ds, x)
            # A multiplier is the amount that the shrinkage of a layer subtracts, divided by t_j.
            return chain_gap(
                problem,
                xs,
                lambda j, c: jnp.clip(c + xs[j] / ts[j], -problem.lams[j], problem.lams[j]),
            )

        def distance_to_fixed_point(state):
            if not self.chained:
                return gap(state.x)
            c = problem.y
            for D in problem.Ds:
                c = c @ D
            size = jnp.max(jnp.abs(c))
            unit = ts[-1] * jnp.where(size > 0, size, 1)
            return jnp.max(jnp.abs(once(state.x) - state.x)) / unit

        start, advance = self.moves(once, x)
        state, steps, least = _problem.solve(
            advance, start, distance_to_fixed_point, tol=self.tol, max_steps=self.max_steps
        )

        def judge(x, least=None):
            least = distance_to_fixed_point(State(x)) if least is None else least
            met = least <= (0 if self.tol is None else self.tol)
            return gap(x) if self.chained else least, met

        value, met = judge(state.x, least)
        return Found(state.x, value, steps, met, judge=judge)

    def moves(self, once: Callable[[Array], Array], x: Array) -> tuple[Any, Callable]:
        """The first state, and the step from state to state."""
        return State(x), lambda state: State(once(state.x))


@dataclass(frozen=True)
class Accelerated(Iterated):
    """FISTA: steps at extrapolated points."""

    restart: bool = True

    def moves(self, once: Callable[[Array], Array], x: Array) -> tuple[Any, Callable]:
        start = Momentum(x, x, jnp.ones((), x.dtype))
        return start, lambda state: extrapolated(state, once(state.z), self.restart)
