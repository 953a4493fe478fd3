"""Exact LASSO codes at many sizes: the two methods of `lasso_batch` next to other solvers.

    python benchmarks/exact_codes.py

Random unit atoms, signals of 20 atoms with 5 % noise, in float32. The rows, in exact_codes.jsonl,
hold the CPU microseconds per signal of one thread (the least of the repeats), and the largest
duality gap, which this script computes in float64 for the returned codes. SPAMS, skglm and celer
take part if they are installed; scikit-learn and they code the first 16 signals.
"""

import os

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))

import importlib  # noqa: E402
import importlib.metadata  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

import unrolled as ur  # noqa: E402

# The bounds by which `lasso_batch` chooses a method; here each method is measured.
_lasso_batch = importlib.import_module("unrolled.pursuit._lasso_batch")
ROWS = Path(__file__).with_name("exact_codes.jsonl")
FEW = 16
# m, d, signals, lam, repeats
CASES = [
    (64, 128, 2000, 0.2, 3),
    (256, 1024, 500, 0.15, 3),
    (256, 1024, 32, 0.15, 3),
    (256, 2048, 256, 0.15, 3),
    (256, 2048, 2000, 0.15, 1),
    (768, 6144, 64, 0.1, 1),
    (512, 16384, 64, 0.15, 1),
]


def gaps(D, Y, X, lam):
    """The duality gaps of codes, relative to norm(y)^2 / 2, in float64."""
    D, Y, X = (np.asarray(v, float) for v in (D, Y, X))
    R = Y - X @ D.T
    G = R @ D
    s = np.minimum(1, lam / np.abs(G).max(1))
    excess = np.maximum(lam * np.abs(X) - s[:, None] * X * G, 0).sum(1)
    return (excess + (1 - s) ** 2 * (R**2).sum(1) / 2) / ((Y**2).sum(1) / 2)


def by_method(name):
    """`lasso_batch` by the given method."""

    def solve(D, Y, lam):
        _lasso_batch.FEW, _lasso_batch.GRAMS = (10**9 if name == _lasso_batch.GRAM else 0), 0
        result = ur.pursuit.lasso_batch(D, Y, lam)
        assert result.how == name
        return result.x

    return solve


def by_estimator(model):
    """A solver of one signal with the interface of scikit-learn."""

    def solve(D, Y, lam):
        made = model(lam / len(D))
        return np.array([made.fit(D, y).coef_ for y in Y])

    return solve


def solvers(d):
    """The solvers by name, and whether each codes all signals."""
    from sklearn.linear_model import Lasso

    options = dict(fit_intercept=False, tol=1e-6)
    own = [] if d > _lasso_batch.LARGEST else [_lasso_batch.GRAM]
    found = {name: (by_method(name), True) for name in (*own, _lasso_batch.SETS)}
    found["scikit-learn"] = by_estimator(lambda a: Lasso(a, max_iter=10**5, **options)), False
    for package, kind in (("celer", "Lasso"), ("skglm", "Lasso")):
        try:
            cls = getattr(importlib.import_module(package), kind)
        except ImportError:
            continue
        found[package] = by_estimator(lambda a, cls=cls: cls(a, **options)), False
    try:
        import spams
    except ImportError:
        return found

    def lars(D, Y, lam):
        X, A = np.asfortranarray(Y.T), np.asfortranarray(D)
        return spams.lasso(X, A, lambda1=lam, mode=2, numThreads=1).toarray().T

    return found | {"SPAMS LARS": (lars, True)}


def measured():
    """The rows of all cases."""
    for m, d, n, lam, repeats in CASES:
        rng = np.random.default_rng(0)
        D = rng.normal(size=(m, d)).astype(np.float32)
        D /= np.linalg.norm(D, axis=0)
        X = rng.normal(size=(n, d)) * (rng.random((n, d)) < 20 / d)
        Y = (X @ D.T + 0.05 * rng.normal(size=(n, m))).astype(np.float32)
        Y /= np.linalg.norm(Y, axis=1, keepdims=True)
        for name, (solve, is_batch) in solvers(d).items():
            signals, best = Y if is_batch else Y[:FEW], np.inf
            np.asarray(solve(D, signals[:4], lam))
            for _ in range(repeats):
                start = time.process_time()
                codes = np.asarray(solve(D, signals, lam))
                best = min(best, time.process_time() - start)
            row = dict(m=m, d=d, signals=len(signals), lam=lam, solver=name)
            row |= dict(microseconds=round(best / len(signals) * 1e6, 1))
            row |= dict(nonzeros=round(float((codes != 0).sum(1).mean()), 1))
            yield row | dict(gap=float(f"{gaps(D, signals, codes, lam).max():.2g}"))


def main():
    rows = []
    for row in measured():
        print(row, flush=True)
        rows.append(row)
    versions = {p: importlib.metadata.version(p) for p in ("numpy", "numba", "scikit-learn")}
    where = dict(versions=versions, processor=platform.processor() or platform.machine())
    ROWS.write_text("\n".join(json.dumps(row) for row in [where, *rows]) + "\n")


if __name__ == "__main__":
    main()
