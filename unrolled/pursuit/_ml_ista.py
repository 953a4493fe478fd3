"""ML-ISTA and ML-FISTA: the codes of all layers together, by nested shrinkages."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled.activations import shrink
from unrolled.dictionaries import Dictionary, spread
from unrolled.pursuit._deep import (
    Chain,
    Codes,
    DeepPursuit,
    as_problem,
    as_start,
    chain_gap,
    codes_of,
    result,
    sweep,
)
from unrolled.pursuit._gap import half_energy
from unrolled.pursuit._ista import Momentum, State, extrapolated
from unrolled.pursuit._options import static_steps, static_tol
from unrolled.pursuit._problem import solve


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
        >>> found = ur.pursuit.ml_ista(Ds, Ds[0][:, 3], (0.01, 0.01))
        >>> bool(found.converged), bool(found.gap < 0.01), [x.shape for x in found.xs]
        (True, True, [(32,), (32,)])
    """
    options = _options("ml_ista", step, tol, max_steps)
    chain = as_problem("ml_ista", Ds, y, lams)
    return _ml_ista(chain, as_start(chain, start, "ml_ista"), *options)


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
        >>> found = ur.pursuit.ml_fista(Ds, Ds[0][:, 3], (0.01, 0.01))
        >>> bool(found.converged), bool(found.gap < 0.01)
        (True, True)
    """
    options = _options("ml_fista", step, tol, max_steps)
    restart = _checks.as_bool(restart, "restart", "ml_fista")
    chain = as_problem("ml_fista", Ds, y, lams)
    return _ml_fista(chain, as_start(chain, start, "ml_fista"), *options, restart)


# Compiled once per shape and options, as in `ista`.
@partial(jax.jit, static_argnums=(2, 3, 4))
def _ml_ista(chain: Chain, x: Array, step: float, tol: float | None, max_steps: int) -> DeepPursuit:
    once = _step_of(chain, step)
    return pursue(chain, once, lambda state: State(once(state.x)), State(x), step, tol, max_steps)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _ml_fista(
    chain: Chain, x: Array, step: float, tol: float | None, max_steps: int, restart: bool
) -> DeepPursuit:
    once = _step_of(chain, step)
    start = Momentum(x, x, jnp.ones((), x.dtype))

    def accelerated(state):
        return extrapolated(state, once(state.z), restart)

    return pursue(chain, once, accelerated, start, step, tol, max_steps)


def _step_of(chain: Chain, step: float) -> Callable[[Array], Array]:
    """x_J -> the next x_J."""
    gammas = _gammas(chain, step)
    thetas = [t * lam for t, lam in zip(_products(gammas), chain.lams)]
    return lambda x: ml_ista_step(chain.Ds, chain.y, x, gammas, thetas)[-1]


def _gammas(chain: Chain, step: float) -> list[Array]:
    first, *others = (1 / size**2 for size in chain.sizes)
    return [step * first, *others]


def _products(gammas: Sequence[Array]) -> list[Array]:
    """t_j = gamma_1 ... gamma_j."""
    ts = [gammas[0]]
    for gamma in gammas[1:]:
        ts.append(ts[-1] * gamma)
    return ts


def pursue(
    chain: Chain,
    once: Callable[[Array], Array],
    advance: Callable[[Any], Any],
    start: Any,
    step: float,
    tol: float | None,
    max_steps: int,
) -> DeepPursuit:
    ts = _products(_gammas(chain, step))
    with jax.default_matmul_precision("highest"):
        c = chain.y
        for D in chain.Ds:
            c = c @ D
        unit = jnp.max(jnp.abs(c))
        unit = ts[-1] * jnp.where(unit > 0, unit, 1)

        def moves(state):
            return jnp.max(jnp.abs(once(state.x) - state.x)) / unit

        state, steps = solve(advance, start, moves, tol=tol, max_steps=max_steps)
        met = moves(state) <= (0 if tol is None else tol)

        def multipliers(j, c):
            # What the shrinkage of layer j takes away, over t_j.
            return jnp.clip(c + xs[j] / ts[j], -chain.lams[j], chain.lams[j])

        xs = codes_of(chain.Ds, state.x)
        gap = chain_gap(chain.Ds, chain.y, xs, chain.lams, multipliers) / half_energy(chain.y)
        return result(chain, xs, gap, steps, met)


def _options(where: str, step: Any, tol: Any, max_steps: Any) -> tuple[float, float | None, int]:
    step = _checks.as_number(step, "step", where)
    if not 0 < step <= 1:
        raise ValueError(f"{where}: step must be in (0, 1], got {step}")
    tol = None if tol is None else static_tol(tol, where)
    return step, tol, static_steps(max_steps, where)
