"""Of every pursuit: residual, gap and `converged` are those of the code that is returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import normal, unit
from scipy.optimize import linprog

from unrolled import dictionaries, pursuit

M, N, P, TOL = 8, 12, 10, 1e-4
C, D, E = normal(3, 2, 1, 3), unit(normal(0, M, N)), unit(normal(1, N, P))
LAM, RADIUS, EPS = 0.1, 0.2, 0.3

# The options of the pursuits; those that are not here have the options of `LAM` alone.
OPTIONS = {
    "threshold": dict(theta=LAM),
    "omp": dict(sparsity=3),
    "omp_batch": dict(sparsity=3),
    "basis_pursuit": dict(tol=TOL),
    "bpdn": dict(eps=EPS, tol=TOL),
    "local_error": dict(radius=RADIUS, tol=TOL),
    "layered_thresholding": dict(thetas=(LAM, LAM)),
    "layered_basis_pursuit": dict(lams=(LAM, LAM), tol=TOL),
    "project": dict(lam=LAM, tol=TOL),
    "holistic": dict(lam=LAM, zeros=2, tol=TOL),
}
CHAINED = dict(lams=(LAM, LAM), tol=TOL)
# Their gaps have no formula in terms of the codes alone: they need multipliers, or judge no code.
BOUNDS = {"local_sparsity", "ml_ista", "ml_fista", "ml_basis_pursuit", "local_error"}
OTHER = {"holistic", "layered_thresholding", "layered_basis_pursuit", "project"}


def lasso_gap(A, y, x, lam=LAM):
    """Relative to norm(y)^2 / 2."""
    r = y - A @ x
    g = r @ A
    s = min(1, lam / np.abs(g).max())
    excess = np.maximum(lam * np.abs(x) - s * x * g, 0).sum() + (1 - s) ** 2 * (r @ r) / 2
    return excess / (y @ y / 2)


def omp_gap(A, y, x):
    """The excess over least squares on the support, relative to norm(y)^2."""
    S = A[:, x != 0]
    r = y - A @ x
    return np.sum((S @ np.linalg.lstsq(S, r, rcond=None)[0]) ** 2) / (y @ y)


def basis_pursuit_gap(A, y, x):
    """The relative distance of the l1 norm from that of the minimum, from another solver."""
    least = linprog(np.ones(2 * N), A_eq=np.hstack([A, -A]), b_eq=y).fun
    return abs(np.abs(x).sum() - least) / np.abs(x).sum()


def bpdn_gap(A, y, x):
    """(norm(x, 1) - y . z + eps norm(z)) / norm(x, 1)."""
    r = y - A @ x
    z = r / np.abs(r @ A).max()
    return (np.abs(x).sum() - y @ z + EPS * np.linalg.norm(z)) / np.abs(x).sum()


GAPS = {"omp": omp_gap, "omp_batch": omp_gap, "basis_pursuit": basis_pursuit_gap, "bpdn": bpdn_gap}


def answer(name, dtype):
    """The result of the pursuit; the matrices and the signal in float64."""
    named = pursuit.PURSUITS[name]
    local = name.startswith("local")
    bank = dictionaries.Conv(C.astype(dtype), M, boundary="circular")
    first, second = bank if local else D.astype(dtype), E.astype(dtype)
    y = normal(2, M).astype(dtype)
    chained = CHAINED if named.takes == "chain" else dict(lam=LAM, tol=TOL)
    options = OPTIONS.get(name, chained)
    if named.takes == "batch":
        found = jax.tree.map(lambda v: v[0], named.solve(first, y[None], **options))
    else:
        found = named.solve((first, second) if named.takes == "chain" else first, y, **options)
    wide = np.asarray(dictionaries.dense(first)).astype(float)
    return found, wide, y.astype(float)


@pytest.mark.few(3)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("name", pursuit.PURSUITS)
def test_residual_gap_and_converged_are_those_of_the_returned_code(name, dtype):
    found, A, y = answer(name, dtype)
    x = np.asarray(found.xs[0] if hasattr(found, "xs") else found.x)
    assert x.dtype == dtype
    x, eps = x.astype(float), float(jnp.finfo(dtype).eps)
    rounding = 40 * float(np.finfo(np.float32).eps) * np.linalg.norm(y)
    residual = np.linalg.norm(y - A @ x)
    assert np.all(
        np.abs(np.ravel(np.asarray(found.residual, float))[0] - residual)
        <= eps * residual + rounding
    )
    if name in OTHER:
        return
    said, converged = float(found.gap), bool(found.converged)
    if name not in BOUNDS:
        gap = GAPS.get(name, lasso_gap)(A, y, x)
        if name != "bpdn" or residual <= EPS:
            tiny = float(jnp.finfo(dtype).smallest_subnormal)  # the spacing of a gap in float16
            least = 1e-9 if name.startswith("omp") else 5e-6  # of sums in float32
            assert said == pytest.approx(gap, rel=2 * eps, abs=max(least, tiny))
    if name == "bpdn":
        assert converged == (said <= TOL and float(found.residual) <= EPS * (1 + 2 * eps))
    elif not name.startswith(("omp", "ml_", "local_error")):
        assert converged == (said <= TOL)
    elif name == "local_error":
        assert converged == (max(said, float(found.violation)) <= TOL)
    # Rounding to bfloat16 leaves a gap that a tol of 1e-4 sees.
    if dtype == jnp.bfloat16 and name in ("bpdn", "local_error", "local_sparsity"):
        assert not converged and said > TOL
