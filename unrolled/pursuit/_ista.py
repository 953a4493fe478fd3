"""ISTA and FISTA for one dictionary, to a duality gap, and for a chain, to a fixed point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import Any

import jax.numpy as jnp

from unrolled import _checks
from unrolled._checks import Array, ArrayLike
from unrolled.activations import by_name, relu
from unrolled.dictionaries import Dictionary
from unrolled.pursuit import _problem
from unrolled.pursuit._door import deep, single, static_steps, static_tol
from unrolled.pursuit._gap import chain_gap, relative_gap
from unrolled.pursuit._problem import Answer, DeepPursuit, Problem, Pursuit, codes_of, in_units
from unrolled.pursuit._steps import Momentum, State, extrapolated, ista_step, ml_ista_step


def ista(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike,
    *,
    tol: float | None = 1e-6,
    max_steps: int = 10_000,
    activation: Callable[[Array], Array] = relu,
) -> Pursuit:
    r"""The LASSO by ISTA, from x = 0.

    .. math:: x \leftarrow shrink(x + D'(y - D x) / L, lam / L), \qquad L = \|D\|_2^2.

    The objective never rises, and F(x_k) - F* <= L norm(x*)^2 / (2 k).

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`; then the code has the shape `D.code_grid`.
        lam: penalty weight, one number, one per atom, or one per filter of a `Conv`; lam >= max
            abs(D'y) gives x = 0. (A paper that puts lambda on the data term, norm(x, 1) + lambda
            norm(y - D x)^2, has lam = 1 / (2 lambda).)
        tol: relative duality gap to stop at; None runs exactly `max_steps` steps and is
            differentiable in reverse mode.
        max_steps: the most steps; with a tol, rounded up to a multiple of 10.
        activation: replaces ReLU in the shrinkage; the gap certifies the LASSO, so ReLU only.

    Returns:
        Pursuit. In float32 the gap of hard problems stalls near 1e-6.

    Raises:
        TypeError: operands that are not real numbers, or a traced tol or max_steps.
        ValueError: shapes that do not fit, lam < 0 or beyond the range of the dtype, D = 0
            (where known), or tol <= 0.

    Reference: Daubechies, Defrise, De Mol (2004); Beck, Teboulle (2009), Theorem 3.1.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> result = ur.pursuit.ista(D, D[:, 3] - 0.5 * D[:, 20], 0.01)
        >>> bool(result.converged), jnp.flatnonzero(jnp.abs(result.x) > 0.1).tolist()
        (True, [3, 20])
    """
    return single(Iterated(tol, max_steps, activation).checked("ista"), "ista", D, y, lam)


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
    r"""The LASSO by FISTA: ISTA steps at extrapolated points, see `fista_step`.

    Without restart F(x_k) - F* <= 2 L norm(x*)^2 / (k + 1)^2. With restart there is no such
    guarantee, but the local rate is linear and the gap is reached sooner.

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
    restart = _checks.as_bool(restart, "restart", "fista")
    method = Accelerated(tol, max_steps, activation, restart=restart).checked("fista")
    return single(method, "fista", D, y, lam)


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
    r"""ML-ISTA for the multi-layer basis pursuit of `ml_basis_pursuit`, to its fixed point.

    .. math:: \min_{x_J} \|y - D_1 x_1\|^2 / 2 + \sum_j lam_j \|x_j\|_1, \qquad x_{j-1} = D_j x_j.

    The steps are those of `ml_ista_step` with gamma_1 = step / L_1, gamma_j = 1 / L_j and theta_j =
    gamma_1 ... gamma_j lam_j, where L_j = norm(D_j, 2)^2. They converge to a fixed point, if there
    is one: the gradient mapping of a layer is cocoercive, with at least half of the constant of an
    exact gradient. One layer is `ista`.

    The fixed point is not the optimum. Its excess falls with `step`, and so does the speed; it is
    zero only by accident. `gap` bounds it.

    Args:
        Ds: J dictionaries (d_{j-1}, d_j).
        y: (m,).
        lams: J penalties, one number, one per atom, or one per filter of a `Conv` each.
        step: in (0, 1], share of the largest first step.
        tol: how near to the fixed point, see below; None runs exactly `max_steps` steps and is
            differentiable in reverse mode.
        max_steps: the most steps; with a tol, rounded up to a multiple of 10.
        start: x_J to begin from, (d_J,); zero by default.

    Returns:
        DeepPursuit. `converged` says that a step moves x_J by at most tol gamma_1 ... gamma_J max
        abs(D_J' ... D_1' y), not that the gap is small. `gap` bounds the excess of the objective at
        any point.

    Raises:
        TypeError: operands that are not real numbers, or a traced step, tol or max_steps.
        ValueError: shapes that do not fit, another number of lams, lam_j < 0, D_j = 0 (where
            known), tol <= 0, or step outside (0, 1].

    Not claimed: a rate. That of the first version of the paper was withdrawn in its final one.

    Reference: Sulam, Aberdam, Beck, Elad (2020).

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), ur.dictionaries.dct(32, 32)
        >>> result = ur.pursuit.ml_ista(Ds, Ds[0][:, 3], (0.01, 0.01))
        >>> bool(result.converged), bool(result.gap < 0.01), [x.shape for x in result.xs]
        (True, True, [(32,), (32,)])
    """
    method = Iterated(tol, max_steps, step=step, chained=True).checked("ml_ista")
    return deep(method, "ml_ista", Ds, y, lams, start=start)


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
    """ML-FISTA: the steps of ML-ISTA at extrapolated points, as `fista_step` extrapolates.

    Its fixed points are those of ML-ISTA. One layer is `fista`.

    Args:
        Ds, y, lams, step, tol, max_steps, start: as in `ml_ista`.
        restart: drop the momentum whenever it points uphill.

    Returns:
        DeepPursuit, as from `ml_ista`.

    Raises:
        TypeError, ValueError: as in `ml_ista`.

    Not claimed: convergence, which is observed.

    Reference: Sulam, Aberdam, Beck, Elad (2020).

    Example:
        >>> Ds = ur.dictionaries.identity_hadamard(16), ur.dictionaries.dct(32, 32)
        >>> result = ur.pursuit.ml_fista(Ds, Ds[0][:, 3], (0.01, 0.01))
        >>> bool(result.converged), bool(result.gap < 0.01)
        (True, True)
    """
    restart = _checks.as_bool(restart, "restart", "ml_fista")
    method = Accelerated(tol, max_steps, step=step, chained=True, restart=restart)
    return deep(method.checked("ml_fista"), "ml_fista", Ds, y, lams, start=start)


@dataclass(frozen=True)
class Iterated:
    """ISTA: for one dictionary to a gap, for a chain to a fixed point."""

    tol: float | None
    max_steps: int
    activation: Any = relu
    step: float = 1.0  # share of the largest first step
    chained: bool = False

    def checked(self, where: str) -> "Iterated":
        """With its options checked."""
        none = "" if self.chained else ", or None for a fixed number of steps"
        step = _checks.as_number(self.step, "step", where)
        if not 0 < step <= 1:
            raise ValueError(f"{where}: step must be in (0, 1], got {step}")
        return replace(
            self,
            tol=None if self.tol is None else static_tol(self.tol, where, none),
            max_steps=static_steps(self.max_steps, where),
            activation=by_name(self.activation),
            step=step,
        )

    def __call__(self, problem: Problem, x: Array) -> Answer:
        first, *others = (1 / size**2 for size in problem.sizes)
        gammas = [self.step * first, *others]
        ts = list(accumulate(gammas, mul))
        thetas = [t * lam for t, lam in zip(ts, problem.lams)]
        activation = in_units(self.activation, problem.up[-1])

        def once(x):
            if self.chained:
                return ml_ista_step(problem.Ds, problem.y, x, gammas, thetas)[-1]
            return ista_step(problem.Ds[0], problem.y, x, gammas[0], thetas[0], activation)

        def gap(x):
            if not self.chained:
                return relative_gap(problem.Ds[0], problem.y, problem.lams[0], x)
            xs = codes_of(problem.Ds, x)
            # The multipliers are what the shrinkage of a layer takes away, over t_j.
            return chain_gap(
                problem,
                xs,
                lambda j, c: jnp.clip(c + xs[j] / ts[j], -problem.lams[j], problem.lams[j]),
            )

        def missed(state):
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
            advance, start, missed, tol=self.tol, max_steps=self.max_steps
        )
        met = least <= (0 if self.tol is None else self.tol)
        return Answer(state.x, gap(state.x) if self.chained else least, steps, met)

    def moves(self, once: Callable[[Array], Array], x: Array) -> tuple[Any, Callable]:
        """The state to begin from, and the step from state to state."""
        return State(x), lambda state: State(once(state.x))


@dataclass(frozen=True)
class Accelerated(Iterated):
    """FISTA: steps at extrapolated points."""

    restart: bool = True

    def moves(self, once: Callable[[Array], Array], x: Array) -> tuple[Any, Callable]:
        start = Momentum(x, x, jnp.ones((), x.dtype))
        return start, lambda state: extrapolated(state, once(state.z), self.restart)
