"""The LASSO of a batch beside other libraries: speed, with the gap of every code recomputed.

    python benchmarks/pursuit.py [--signals 1000] [--slow 100] [--output benchmarks/pursuit.json]

lam is 0.1 lam_max of every signal. Two dictionaries: a Gaussian one of 250 x 500 with noiseless
Bernoulli-Gaussian codes, and 8x8 patches of a photograph without their means in the separable
cosines of 64 x 256. Each contestant has the loosest of its tolerances with which every code has a
relative gap of 1e-6, computed here in float64; one that never does is reported with its gap. SPAMS,
jaxopt and scico take part where they are installed, the slow ones with fewer signals: scico, which
solves one after the other, with the first ten of them.
"""

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _measure import median_ms, save
from sklearn.datasets import load_sample_image
from sklearn.linear_model import lasso_path

import unrolled as ur

GAP, RATIO, SCICO = 1e-6, 0.1, 10
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)


def gaussian(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The standard benchmark without noise."""
    D = ur.dictionaries.gaussian(jax.random.key(0), 250, 500)
    Y, _ = ur.problems.sampler(D, n)(jax.random.key(1))
    return np.asarray(D), np.asarray(Y)


def patches(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of a photograph and cosines, both without their means and of unit norm."""
    D = np.array(ur.dictionaries.dct((8, 8), (16, 16)))
    D[:, 1:] -= D[:, 1:].mean(0)
    D /= np.linalg.norm(D, axis=0)
    picture = load_sample_image("china.jpg").mean(2)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (8, 8)).reshape(-1, 64)
    Y = np.random.default_rng(0).permutation(windows)[: 2 * n]
    Y = Y - Y.mean(1, keepdims=True)
    Y = Y[np.linalg.norm(Y, axis=1) > 1][:n]
    return D, (Y / np.linalg.norm(Y, axis=1, keepdims=True)).astype(np.float32)


def largest_gap(D: np.ndarray, Y: np.ndarray, X: np.ndarray) -> float:
    """The largest gap relative to norm(y)^2 / 2, in float64."""
    D, Y, X = (np.asarray(a, np.float64) for a in (D, Y, X))
    lam = RATIO * np.abs(Y @ D).max(1, keepdims=True)
    R = Y - X @ D.T
    G = R @ D
    s = np.minimum(1, np.min(lam / np.maximum(np.abs(G), 1e-300), 1, keepdims=True))
    gap = (1 - s[:, 0]) ** 2 * np.sum(R**2, 1) / 2 + np.sum(lam * np.abs(X) - s * X * G, 1)
    return float(np.max(gap / (np.sum(Y**2, 1) / 2)))


def ours(D: np.ndarray, Y: np.ndarray) -> dict[str, Callable]:
    """`lasso_batch`, which takes the gap itself as its tolerance."""
    D, Y = jnp.asarray(D), jnp.asarray(Y)
    return {
        "unrolled lasso_batch": lambda tol: ur.pursuit.lasso_batch(D, Y, ratio=RATIO, tol=GAP).x
    }


def scikit_learn(D: np.ndarray, Y: np.ndarray) -> dict[str, Callable]:
    """Coordinate descent on the Gram matrix, signal by signal."""
    D, Y = np.asfortranarray(D, np.float64), np.asarray(Y, np.float64)

    def run(tol):
        gram, products = D.T @ D, Y @ D
        X = np.empty((len(Y), D.shape[1]))
        for i, (y, p) in enumerate(zip(Y, products)):
            alpha = RATIO * np.abs(p).max() / len(D)
            X[i] = lasso_path(
                D,
                y,
                alphas=[alpha],
                precompute=gram,
                Xy=p,
                tol=tol,
                max_iter=100_000,
                check_input=False,
            )[1][:, 0]
        return X

    return {"scikit-learn lasso_path, Gram": run}


def spams_solvers(D: np.ndarray, Y: np.ndarray) -> dict[str, Callable]:
    """Coordinate descent and LARS of SPAMS, in float64 with all cores."""
    try:
        import spams
    except ImportError:
        return {}
    from scipy.sparse import csc_matrix

    lam = RATIO * np.abs(np.asarray(Y, np.float64) @ D).max(1)
    # Its penalty is one number: the signals are divided by theirs.
    D, signals = np.asfortranarray(D, np.float64), np.asfortranarray((Y / lam[:, None]).T, float)
    start = csc_matrix((D.shape[1], len(Y)))
    options = dict(lambda1=1.0, mode=2, numThreads=len(os.sched_getaffinity(0)))

    def result(X):
        return np.asarray(X.todense()).T * lam[:, None]

    def descent(tol):
        return result(spams.cd(signals, D, start.copy(), tol=tol, itermax=100_000, **options))

    return {
        "SPAMS cd": descent,
        "SPAMS lars": lambda tol: result(spams.lasso(signals, D, **options)),
        "SPAMS lars, cholesky": lambda tol: result(
            spams.lasso(signals, D, cholesky=True, **options)
        ),
    }


def jaxopt_solver(D: np.ndarray, Y: np.ndarray) -> dict[str, Callable]:
    """Accelerated proximal gradients of jaxopt, for a batch by `vmap`."""
    try:
        from jaxopt import ProximalGradient, objective, prox
    except ImportError:
        return {}
    D, Y = (jnp.asarray(a, float) for a in (D, Y))

    def run(tol):
        solver = ProximalGradient(objective.least_squares, prox.prox_lasso, tol=tol, maxiter=20_000)

        def one(y):
            lam = RATIO * jnp.abs(y @ D).max() / len(y)
            return solver.run(jnp.zeros(D.shape[1], D.dtype), lam, data=(D, y)).params

        return jax.jit(jax.vmap(one))

    made: dict[float, Callable] = {}
    return {"jaxopt ProximalGradient": lambda tol: made.setdefault(tol, run(tol))(Y)}


def scico_solver(D: np.ndarray, Y: np.ndarray) -> dict[str, Callable]:
    """Accelerated proximal gradients of scico, for the first signals, one by one."""
    try:
        from scico import functional, linop, loss
        from scico.optimize.pgm import AcceleratedPGM
    except ImportError:
        return {}
    D, Y = (jnp.asarray(a, float) for a in (D, Y))
    A, L = linop.MatrixOperator(D), float(jnp.linalg.norm(D, 2) ** 2)

    def run(tol):
        steps = int(40 * (1 - np.log10(tol)))

        def one(y):
            lam = float(RATIO * jnp.abs(y @ D).max())
            fit = loss.SquaredL2Loss(y=y, A=A)
            start = jnp.zeros(D.shape[1], D.dtype)
            return AcceleratedPGM(
                f=fit, g=lam * functional.L1Norm(), L0=L, x0=start, maxiter=steps
            ).solve()

        return np.stack([np.asarray(one(y)) for y in Y[:SCICO]])

    return {"scico AcceleratedPGM": run}


def loosest(solve: Callable, D: np.ndarray, Y: np.ndarray) -> tuple[float, float, int]:
    """The loosest tolerance that certifies all codes (or the tightest), its gap, and how many."""
    gap, tol, n = np.inf, TOLERANCES[0], len(Y)
    for tol in TOLERANCES:
        X = np.asarray(solve(tol))
        n = len(X)
        gap = largest_gap(D, Y[:n], X)
        if gap <= GAP:
            break
    return tol, gap, n


def race(
    D: np.ndarray, Y: np.ndarray, *families: Callable, rounds: int = 5, calls: int = 3
) -> dict:
    """Microseconds per signal of every contestant, and its largest gap."""
    solvers = {name: solve for family in families for name, solve in family(D, Y).items()}
    found, timed = {}, {}
    for name, solve in solvers.items():
        tol, gap, n = loosest(solve, D, Y)
        found[name] = {"tolerance": tol, "largest gap": gap, "signals": n}
        timed[name] = lambda solve=solve, tol=tol: jax.block_until_ready(solve(tol))
    for name, ms in median_ms(timed, rounds=rounds, calls=calls).items():
        found[name]["us per signal"] = 1e3 * ms / found[name]["signals"]
    base = found["unrolled lasso_batch"]["us per signal"]
    for entry in found.values():
        entry["times ours"] = entry["us per signal"] / base
    return found


def main() -> None:
    """Run everything and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signals", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=100, help="signals beside jaxopt and scico")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # that a rival has not converged is seen from its gap
    results = {}
    for name, problem in (("Gaussian 250 x 500", gaussian), ("patches 64 x 256", patches)):
        n = arguments.signals
        results[f"{name}, {n} signals"] = race(*problem(n), ours, scikit_learn, spams_solvers)
        n = arguments.slow
        with jax.enable_x64(True):
            found = race(*problem(n), ours, jaxopt_solver, scico_solver, rounds=3, calls=1)
        if len(found) > 1:
            results[f"{name}, {n} signals, against JAX"] = found
    save(arguments.output, results)


if __name__ == "__main__":
    main()
