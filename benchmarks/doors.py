"""Counts of faults at the doors: gaps, distances, bounds and forms of arrays.

    JAX_PLATFORMS=cpu python benchmarks/doors.py

Each row prints the number of cases in which the library is wrong, and the number of cases.
"""

import warnings

import jax
import numpy as np

import unrolled as ur

RNG = np.random.default_rng(0)
TOL = 1e-8


def gap(D, y, x, lam):
    """The gap of a code relative to norm(y)^2 / 2, in float64."""
    D, y, x = (np.asarray(v, float) for v in (D, y, x))
    r = y - D @ x
    g = D.T @ r
    s = min(1.0, lam / np.abs(g).max())
    return ((1 - s) ** 2 * (r @ r) / 2 + lam * np.abs(x).sum() - s * (x @ g)) / (y @ y / 2)


def converged(solver):
    """Codes that a pursuit in float32 calls converged although their gap exceeds the tolerance."""
    said = []
    for i in range(40):
        D = ur.gaussian(jax.random.key(i), 64, 128)
        y = np.asarray(D[:, :3] @ RNG.normal(size=3), "float32")
        lam = float(0.1 * np.abs(y @ D).max())
        found = solver(D, y, lam, tol=TOL)
        if found.converged:
            said.append(gap(D, y, found.x, np.float32(lam)) > 1.05 * TOL)
    return sum(said), len(said)


def in_order(order):
    """Calls with arrays in another layout or byte order that fail or give other numbers."""
    D = np.asarray(ur.gaussian(jax.random.key(0), 20, 40))
    X = (RNG.normal(size=(9, 40)) * (RNG.random((9, 40)) < 0.1)).astype("float32")
    Y = np.asarray(ur.synthesize(D, X))
    calls = (
        lambda D, X, Y: ur.synthesize(D, X),
        lambda D, X, Y: ur.pursuit.duality_gap(D, Y[0], X[0], 0.1),
        lambda D, X, Y: ur.pursuit.omp_batch(D, Y, 3).x,
        lambda D, X, Y: ur.pursuit.omp_batch(D, Y, 3, nonnegative=True).x,
        lambda D, X, Y: ur.pursuit.lasso_batch(D, Y, 0.1).x,
    )
    wrong = 0
    for call in calls:
        try:
            wrong += not np.array_equal(call(*map(order, (D, X, Y))), call(D, X, Y))
        except (AssertionError, TypeError):
            wrong += 1
    return wrong, len(calls)


def moduli():
    """Bounds by `certify_signals` that are below the size of a complex code, in longdouble."""
    n = 2_000
    z = RNG.normal(size=(n, 2)).astype("float32")
    D = ur.dictionaries.Complex.of(np.eye(4, dtype="complex64"))
    layer, X = ur.alista(2), np.zeros((n, 4), "complex64")
    X[:, 0] = z[:, 0] + 1j * z[:, 1]
    bounds = ur.theory.certify_signals(layer, layer.init(None, D), D, X).errors[:, 0]
    a, b = z.T.astype(np.longdouble)
    return int((a**2 + b**2 > bounds.astype(np.longdouble) ** 2).sum()), n


def main():
    warnings.simplefilter("ignore")
    rows = {
        f"lasso says converged, tol {TOL:g}": lambda: converged(ur.pursuit.lasso),
        f"fista says converged, tol {TOL:g}": lambda: converged(ur.pursuit.fista),
        "Fortran order": lambda: in_order(np.asfortranarray),
        "big-endian": lambda: in_order(lambda v: v.astype(v.dtype.newbyteorder(">"))),
        "bounds below moduli": moduli,
    }
    for name, count in rows.items():
        wrong, cases = count()
        print(f"{name}: {wrong} of {cases}")


if __name__ == "__main__":
    main()
