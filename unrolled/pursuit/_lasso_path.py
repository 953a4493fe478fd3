"""The LASSO for a sequence of penalties, each from the code of the last."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import ldexp
from unrolled.dictionaries import Dictionary, operands
from unrolled.pursuit._grids import flat_signal, on_grid
from unrolled.pursuit._lasso import (
    Near,
    Penalized,
    code,
    given_penalty,
    near_one,
    result,
    ridge,
    share_of_largest,
    start_code,
    with_penalty,
)
from unrolled.pursuit._options import in_dtype, in_precision_of, static_steps, static_tol
from unrolled.pursuit._problem import Pursuit, in_range


class Path(NamedTuple):
    """The codes of n penalties, and how good each is; see `Pursuit`."""

    lam: Array  # (n,)
    x: Array  # (n, d)
    gap: Array  # (n,)
    residual: Array  # (n,)
    steps: Array  # (n,)
    converged: Array  # (n,)


def lasso_path(
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike | None = None,
    *,
    ratio: ArrayLike | None = None,
    tol: float = 1e-6,
    nonnegative: bool = False,
    l2: ArrayLike = 0.0,
    start: ArrayLike | None = None,
    max_steps: int = 10_000,
) -> Path:
    r"""The codes of `lasso` for a sequence of penalties, each started from the one before.

    Traceable, and differentiable as `lasso` is.

    Args:
        D: (m, d).
        y: (m,), or a signal grid of a `Conv`; then the codes have the shape `D.code_grid`.
        lam: penalties, (n,), best from large to small.
        ratio: in place of lam, lam / lam_max(D, y), (n,). Without either, 50 ratios from 1 to 0.01,
            evenly spaced in their logarithms.
        tol, nonnegative, l2, start, max_steps: as in `lasso`, for each penalty; `start` for the
            first.

    Returns:
        Path. `gap` is relative to norm(y)^2 / 2. `converged` says of a ratio also that its lam is
        in the range of the dtype; where it is known not to be, it is refused.

    Raises:
        TypeError, ValueError: as in `lasso`.

    Reference: Friedman, Hastie, Tibshirani (2010).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> path = ur.pursuit.lasso_path(D, D[:, 3] - 0.5 * D[:, 20], ratio=[1.0, 0.5, 0.1])
        >>> path.x.shape, (path.x != 0).sum(1).tolist(), bool(path.converged.all())
        ((3, 32), [0, 1, 2], True)
    """
    where = "lasso_path"
    y, grid = flat_signal(D, y, where)
    D, y, _ = operands(D, y, where)
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    nonnegative = _checks.as_bool(nonnegative, "nonnegative", where)
    if lam is None and ratio is None:
        ratio = np.geomspace(1, 0.01, 50)
    weights = _sequence(y, *given_penalty(lam, ratio, where), where)
    near = near_one(Penalized(D, y, weights, ridge(l2, y, where)), where)
    lams, kept = weights.astype(y.dtype), jnp.ones(weights.shape, bool)
    if ratio is not None:
        a, b = near.exponents
        shares, k = share_of_largest(near, weights, nonnegative), a + b
        near, lams = with_penalty(near, shares), in_dtype(shares, k, y.dtype, where)
        kept = jax.vmap(in_range, (0, 0, None))(lams, shares, k)
    x = start_code(D, y, start, where)
    found = _path(near, x, tol, max_steps, nonnegative)
    return on_grid(Path(lams, *found._replace(converged=found.converged & kept)), grid)


def _sequence(y: Array, value: ArrayLike, name: str, where: str) -> Array:
    each = in_precision_of(y, value, name, where)
    if each.ndim != 1:
        raise ValueError(f"{where}: {name} has shape {each.shape}; expected a sequence, (n,)")
    return each


@partial(jax.jit, static_argnums=(2, 3, 4))
def _path(near: Near, start: Array, tol: float, max_steps: int, nonnegative: bool) -> Pursuit:
    a, b = near.exponents

    def body(x, lam):
        at = near._replace(problem=near.problem._replace(lam=lam))
        found = code(nonnegative, tol, max_steps, at.problem, lax.stop_gradient(x), near.size)
        return found[0], result(at, *found, tol)

    with jax.default_matmul_precision("highest"):
        return lax.scan(body, ldexp(start, a - b), near.problem.lam)[1]
