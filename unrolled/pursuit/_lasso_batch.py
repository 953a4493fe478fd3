"""The LASSO of many signals in one dictionary: its arguments, its scales and its answers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import exponent, ldexp
from unrolled.dictionaries import Dictionary, as_dictionary, dense, spread
from unrolled.pursuit._batch_stages import solve
from unrolled.pursuit._grids import flat_code, flat_signal, on_grid
from unrolled.pursuit._lasso import given_penalty, ridge
from unrolled.pursuit._options import in_precision_of, static_steps, static_tol
from unrolled.pursuit._problem import Pursuit, in_range


def lasso_batch(
    D: Dictionary,
    Y: ArrayLike,
    lam: ArrayLike | None = None,
    *,
    ratio: ArrayLike | None = None,
    tol: float = 1e-6,
    nonnegative: bool = False,
    l2: ArrayLike = 0.0,
    start: ArrayLike | None = None,
    max_steps: int = 10_000,
) -> Pursuit:
    r"""`lasso` for many signals with one dictionary, by an algorithm of its own.

    .. math:: \min_x \tfrac12 \|y - D x\|^2 + \sum_i lam_i |x_i| + \tfrac{l2}{2} \|x\|^2
        \quad \text{for every row } y \text{ of } Y.

    ADMM in float32 guesses supports, linear systems in float64 solve on them, and a duality gap in
    float64 certifies every code. It runs on the host. Traceable; it has no derivative, for which
    see `lasso` under `vmap`.

    Args:
        D: (m, d). Structured dictionaries are made dense; for one that is too large for a matrix
            use `lasso` under `vmap`.
        Y: (batch, m), or a batch of signal grids of a `Conv`; then codes have the shape
            `D.code_grid`. The batch may be empty.
        lam: penalty weight: one number, one per atom (d,), one per filter of a `Conv`, one per
            signal (batch, 1), or all of them (batch, d).
        ratio: in place of lam, lam / lam_max(D, y) of every signal, in the shapes of lam.
        tol, nonnegative, l2: as in `lasso`.
        start: (batch, d), codes to start from.
        max_steps: the most steps of ADMM for a signal.

    Returns:
        Pursuit with a leading axis of signals in every field; `steps` counts those of ADMM, and
        `gap` is that of the code before it is rounded to the dtype of Y.

    Raises:
        TypeError, ValueError: as in `lasso`.

    Reference: Boyd et al. (2011), section 6.4, for ADMM; Lee et al. (2007) for solving on a support
    and its signs.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> found = ur.pursuit.lasso_batch(D, (D[:, 3:5] - 0.5 * D[:, 20:22]).T, ratio=0.1)
        >>> found.converged.tolist(), [jnp.flatnonzero(x).tolist() for x in found.x]
        ([True, True], [[3, 20], [4, 21]])
    """
    where = "lasso_batch"
    Y, grid = flat_signal(D, Y, where, batch=1)
    D, Y = as_dictionary(D, where), _checks.as_float(Y, "Y", where)
    m, d = D.shape
    if Y.ndim != 2 or Y.shape[1] != m:
        raise ValueError(f"{where}: Y has shape {Y.shape}; expected (batch, {m}), signals in rows")
    dtype = _checks.common_dtype(D, Y)
    matrix, Y = dense(_checks.cast(D, dtype)), Y.astype(dtype)
    if _checks.is_concrete(matrix) and not np.asarray(matrix).any():
        raise ValueError(f"{where}: D is zero")
    tol, max_steps = static_tol(tol, where), static_steps(max_steps, where)
    nonnegative = _checks.as_bool(nonnegative, "nonnegative", where)
    weights = _weights(D, Y, lam, ratio, where)
    X = _start(D, Y, start, where)
    a, b = exponent(matrix), exponent(Y, 1)
    top = float(jnp.finfo(dtype).max)
    near = (
        ldexp(matrix, -a),
        ldexp(Y, -b),
        weights if lam is None else jnp.minimum(ldexp(weights, -(a + b)), top),
        jnp.minimum(ldexp(ridge(l2, Y, where), -2 * a), top),
        ldexp(X, a - b),
    )
    host = partial(
        solve,
        relative=lam is None,
        tol=tol,
        nonnegative=nonnegative,
        max_steps=max_steps,
        warm=start is not None,
    )
    if _checks.is_concrete(near):
        answers = tuple(map(jnp.asarray, host(*map(np.asarray, near))))
    else:
        n, integer = len(Y), jnp.zeros((), int).dtype
        shapes = [jax.ShapeDtypeStruct((n, d), dtype)] + [
            jax.ShapeDtypeStruct((n,), kind) for kind in (dtype, dtype, integer, bool)
        ]
        answers = jax.pure_callback(host, shapes, *near, vmap_method="sequential")
    x, gap, residual, steps, converged = answers
    found, residual = ldexp(x, b - a), ldexp(residual, b[:, 0])
    converged = converged & _in_range(found, x, (b - a)[:, 0])
    return on_grid(Pursuit(found, gap, residual, steps, converged), grid)


_in_range = jax.jit(jax.vmap(in_range))


def _weights(
    D: Dictionary, Y: Array, lam: ArrayLike | None, ratio: ArrayLike | None, where: str
) -> Array:
    """lam or ratio for every signal, checked: (batch, 1) or (batch, d)."""
    value, name = given_penalty(lam, ratio, where)
    each = spread(D, in_precision_of(Y, flat_code(D, value), name, where))
    n, d = len(Y), D.shape[1]
    if each.shape not in ((), (d,), (n, 1), (n, d)):
        raise ValueError(
            f"{where}: {name} has shape {each.shape}; expected (), ({d},), ({n}, 1) or ({n}, {d})"
        )
    return jnp.broadcast_to(each, (n, d if each.shape[-1:] == (d,) else 1)).astype(Y.dtype)


def _start(D: Dictionary, Y: Array, start: ArrayLike | None, where: str) -> Array:
    """The codes to start from, checked: (batch, d); (batch, 1) of zeros if there are none."""
    if start is None:
        return jnp.zeros((len(Y), 1), Y.dtype)
    X = _checks.as_float(flat_code(D, start), "start", where)
    if X.shape != (len(Y), D.shape[1]):
        raise ValueError(f"{where}: start has shape {X.shape}; expected ({len(Y)}, {D.shape[1]})")
    _checks.finite(X, "start", where)
    return X.astype(Y.dtype)
