"""The LASSO and OMP of many signals compared with other libraries: CPU time and gaps.

    python benchmarks/pursuit.py [--signals 1000] [--rounds 5] [--output benchmarks/pursuit.json]
    python benchmarks/pursuit.py --table                     prints the table of that file

The eleven problems in float64 are Gaussian dictionaries, learned and sampled patches of
photographs, a blur, pulses with equal atoms, atoms of many norms, non-negative codes and noise. The
lam of each signal is a fixed share of its lam_max. The times are CPU time of one thread by
`time.process_time`. Contestants take turns, and a time is the median of the rounds; the least and
the most time are stored, too.

Coordinate descent of SPAMS, scikit-learn and celer solve the LASSO for the first 20 signals only.
An iterative rival has the loosest tolerance that gives every code a relative gap of at most 1e-6,
or the tightest tolerance if no tolerance suffices; the script computes the gap from its definition.
OMP selects as many atoms as the LASSO has nonzeros on average, and the script compares the
residuals. SPAMS and celer take part if they are installed (`pip install spams-bin celer`).
"""

import os

# Use one thread; set this before a library starts other threads.
os.environ |= {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _measure import save
from sklearn.datasets import load_sample_image
from sklearn.linear_model import lasso_path, orthogonal_mp_gram

import unrolled as ur

GAP, FEW = 1e-6, 20
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)


class Problem(NamedTuple):
    """A LASSO of many signals."""

    D: np.ndarray  # (m, d)
    Y: np.ndarray  # (n, m)
    lam: np.ndarray  # (n, 1)
    nonnegative: bool = False


def problem(D: np.ndarray, Y: np.ndarray, ratio: float, nonnegative: bool = False) -> Problem:
    """The problem in which the lam of each signal is a share of its lam_max."""
    D, Y = np.asarray(D, float), np.asarray(Y, float)
    products = Y @ D if nonnegative else np.abs(Y @ D)
    return Problem(D, Y, ratio * products.max(1, keepdims=True), nonnegative)


def unit(D: np.ndarray) -> np.ndarray:
    return D / np.linalg.norm(D, axis=0)


def patches(n: int, colour: bool = False) -> np.ndarray:
    """8x8 patches of a photograph with mean 0 and norm 1."""
    picture = load_sample_image("china.jpg").astype(float)
    picture = picture if colour else picture.mean(2, keepdims=True)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (8, 8, picture.shape[2]))
    windows = windows.reshape(-1, 64 * picture.shape[2])
    Y = np.random.default_rng(0).permutation(windows)[: 2 * n]
    Y = Y - Y.mean(1, keepdims=True)
    Y = Y[np.linalg.norm(Y, axis=1) > 1][:n]
    return Y / np.linalg.norm(Y, axis=1, keepdims=True)


def sparse(rng: np.random.Generator, n: int, d: int, share: float) -> np.ndarray:
    return rng.normal(size=(n, d)) * (rng.random((n, d)) < share)


def problems(n: int) -> dict[str, Problem]:
    """The problems by name."""
    rng = np.random.default_rng(0)
    gaussian = unit(rng.normal(size=(250, 500)))
    learned = ur.dictionary_learning.online(
        jnp.split(jnp.asarray(patches(12_000), jnp.float32), 40), 128, lam=0.1, key=0
    )
    pixels, sampled = patches(n), unit(patches(384, colour=True).T)
    t = np.arange(128)
    blur = unit(np.exp(-0.5 * ((t[:, None] - t) / 2.0) ** 2))
    edges = 0.05 * rng.normal(size=(n, 128)) + sparse(rng, n, 128, 0.1) @ blur.T
    s = np.linspace(0, 1, 100)[:, None]
    pulses = unit(np.exp(-0.5 * ((s - np.linspace(0, 1, 90)) / 0.03) ** 2))
    pulses = np.concatenate([pulses, pulses[:, ::9], -pulses[:, ::9]], 1)
    waves = np.abs(sparse(rng, n, 90, 0.08)) @ pulses[:, :90].T + 0.02 * rng.normal(size=(n, 100))
    small = unit(rng.normal(size=(64, 256)))
    uneven = unit(rng.normal(size=(100, 200))) * 10 ** rng.uniform(-1, 1, 200)
    positive = unit(np.abs(rng.normal(size=(64, 128))))
    return {
        "Gaussian 250 x 500": problem(gaussian, sparse(rng, n, 500, 0.1) @ gaussian.T, 0.1),
        "learned patches 64 x 128, .1": problem(learned.D, pixels, 0.1),
        "learned patches 64 x 128, .02": problem(learned.D, pixels, 0.02),
        "cosines 64 x 256": problem(ur.dictionaries.dct((8, 8), (16, 16)), pixels, 0.1),
        "sampled colour patches 192 x 384": problem(sampled, patches(n, colour=True), 0.1),
        "compressed sensing 64 x 256": problem(
            small, sparse(rng, n, 256, 0.05) @ small.T + 0.02 * rng.normal(size=(n, 64)), 0.1
        ),
        "blur 128 x 128": problem(blur, edges, 0.1),
        "pulses with equal atoms 100 x 110": problem(pulses, waves, 0.1),
        "atoms of many norms 100 x 200": problem(uneven, rng.normal(size=(n, 100)), 0.2),
        "non-negative 64 x 128": problem(
            positive, np.abs(sparse(rng, n, 128, 0.1)) @ positive.T, 0.02, nonnegative=True
        ),
        "noise, small lam 64 x 128": problem(
            unit(rng.normal(size=(64, 128))), rng.normal(size=(n, 64)), 0.01
        ),
    }


def gaps(p: Problem, X: np.ndarray) -> np.ndarray:
    """The duality gaps relative to norm(y)^2 / 2, in float64."""
    n = len(X)
    Y, lam = p.Y[:n], p.lam[:n]
    R = Y - X @ p.D.T
    G = R @ p.D
    size = G if p.nonnegative else np.abs(G)
    s = np.minimum(1, np.min(lam / np.maximum(size, 1e-300), 1, keepdims=True))
    gap = (1 - s[:, 0]) ** 2 * np.sum(R**2, 1) / 2 + np.sum(lam * np.abs(X) - s * X * G, 1)
    return gap / (np.sum(Y**2, 1) / 2)


def ours(p: Problem) -> dict[str, Callable]:
    """`lasso_batch`, which takes the gap itself as its tolerance."""
    D, Y = jnp.asarray(p.D), jnp.asarray(p.Y)
    options = dict(tol=GAP, nonnegative=p.nonnegative)
    return {"unrolled": lambda tol: np.asarray(ur.pursuit.lasso_batch(D, Y, p.lam, **options).x)}


def scikit_learn(p: Problem) -> dict[str, Callable]:
    """Coordinate descent on the Gram matrix, signal by signal."""
    D = np.asfortranarray(p.D)
    options = dict(max_iter=100_000, check_input=False, positive=p.nonnegative)

    def run(tol):
        gram, products = D.T @ D, p.Y @ D
        X = np.empty((len(p.Y), D.shape[1]))
        for i, (y, g, lam) in enumerate(zip(p.Y, products, p.lam[:, 0])):
            alphas = [lam / len(D)]
            path = lasso_path(D, y, alphas=alphas, precompute=gram, Xy=g, tol=tol, **options)
            X[i] = path[1][:, 0]
        return X

    return {"scikit-learn, Gram": run}


def scaled(p: Problem) -> tuple[np.ndarray, np.ndarray, dict]:
    """Signals divided by their lam, because SPAMS takes one lam for all signals."""
    D, signals = np.asfortranarray(p.D), np.asfortranarray((p.Y / p.lam).T)
    return D, signals, dict(lambda1=1.0, mode=2, numThreads=1)


def spams_lars(p: Problem) -> dict[str, Callable]:
    """LARS (homotopy) by SPAMS."""
    try:
        import spams
    except ImportError:
        return {}
    D, signals, options = scaled(p)

    def run(tol):
        return spams.lasso(signals, D, pos=p.nonnegative, **options).toarray().T * p.lam

    return {"SPAMS, LARS": run}


def spams_descent(p: Problem) -> dict[str, Callable]:
    """Coordinate descent by SPAMS, for atoms of norm 1."""
    try:
        import spams
    except ImportError:
        return {}
    from scipy.sparse import csc_matrix

    if p.nonnegative or np.ptp(np.linalg.norm(p.D, axis=0)) > 1e-6:
        return {}
    (D, signals, options), start = scaled(p), csc_matrix((p.D.shape[1], len(p.Y)))

    def run(tol):
        codes = spams.cd(signals, D, start.copy(), tol=tol, itermax=100_000, **options)
        return codes.toarray().T * p.lam

    return {"SPAMS, descent": run}


def celer_solver(p: Problem) -> dict[str, Callable]:
    """Working sets and dual extrapolation by celer, signal by signal."""
    try:
        from celer import celer_path
    except ImportError:
        return {}
    D, m = np.asfortranarray(p.D), len(p.D)
    options = dict(max_iter=100, positive=p.nonnegative)

    def run(tol):
        X = [
            celer_path(D, y, pb="lasso", alphas=np.array([lam / m]), tol=tol, **options)[1][:, 0]
            for y, lam in zip(p.Y, p.lam[:, 0])
        ]
        return np.array(X)

    return {"celer": run}


def matching(p: Problem, atoms: int) -> dict[str, Callable]:
    """Orthogonal matching pursuits by name; SPAMS selects each atom by least squares."""
    D, Y, F = jnp.asarray(p.D), jnp.asarray(p.Y), np.asfortranarray(p.D)
    solvers = {
        "unrolled": lambda: np.asarray(ur.pursuit.omp_batch(D, Y, atoms).x),
        "unrolled, least squares": lambda: np.asarray(
            ur.pursuit.omp_batch(D, Y, atoms, selection="least_squares").x
        ),
        "scikit-learn": lambda: (
            orthogonal_mp_gram(p.D.T @ p.D, p.D.T @ p.Y.T, n_nonzero_coefs=atoms).T
        ),
    }
    try:
        import spams
    except ImportError:
        return solvers
    signals = np.asfortranarray(p.Y.T)
    return solvers | {
        "SPAMS": lambda: np.asarray(spams.omp(signals, F, L=atoms, numThreads=1).todense()).T
    }


def loosest(solve: Callable, p: Problem) -> tuple[float, np.ndarray]:
    """The loosest tolerance that certifies all codes, else the tightest tolerance; and the gaps."""
    tol, gap = TOLERANCES[0], np.array([np.inf])
    for tol in TOLERANCES:
        gap = gaps(p, solve(tol))
        if gap.max() <= GAP:
            break
    return tol, gap


def in_turns(functions: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every function, in turns in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begun = time.process_time()
            function()
            seconds[name].append(time.process_time() - begun)
    return seconds


def spread(seconds: list[float], n: int) -> dict[str, float]:
    """Microseconds per signal: median, least and most."""
    us = [1e6 * s / n for s in seconds]
    return {"us": statistics.median(us), "least": min(us), "most": max(us)}


def race(p: Problem, rounds: int) -> dict:
    """Microseconds per signal and gaps of every contestant."""
    first = p._replace(Y=p.Y[:FEW], lam=p.lam[:FEW])
    solvers = ours(p) | spams_lars(p)
    for family in (spams_descent, scikit_learn, celer_solver):
        solvers |= family(first)
    rows, timed = {}, {}
    for name, solve in solvers.items():
        tol, gap = loosest(solve, p)
        rows[name] = {
            "tolerance": tol,
            "signals": len(gap),
            "largest gap": float(gap.max()),
            "uncertified": int((gap > GAP).sum()),
        }
        timed[name] = lambda solve=solve, tol=tol: solve(tol)
    for name, seconds in in_turns(timed, rounds).items():
        rows[name] |= spread(seconds, rows[name]["signals"])
    return rows


def race_of_matching(p: Problem, atoms: int, rounds: int) -> dict:
    """Microseconds per signal and mean relative residual of every contestant."""
    solvers = matching(p, atoms)
    rows: dict = {}
    for name, solve in solvers.items():
        left = np.linalg.norm(p.Y - solve() @ p.D.T, axis=1) / np.linalg.norm(p.Y, axis=1)
        rows[name] = {"atoms": atoms, "residual": float(left.mean())}
    for name, seconds in in_turns(solvers, rounds).items():
        rows[name] |= spread(seconds, len(p.Y))
    return rows


CONTESTANTS = ("unrolled", "SPAMS, LARS", "SPAMS, descent", "scikit-learn, Gram", "celer")
MATCHING = ("unrolled", "unrolled, least squares", "SPAMS", "scikit-learn")


def table(results: dict) -> str:
    """Markdown: microseconds per signal, with the uncertified codes or the residual."""
    names = [f"LASSO by {name}, us (uncertified codes)" for name in CONTESTANTS]
    names += [f"OMP by {name}, us (residual)" for name in MATCHING]
    lines = [
        f"| problem | nonzeros per code | {' | '.join(names)} |",
        "|---" * (len(names) + 2) + "|",
    ]

    def lasso(row):
        missed = f" ({row['uncertified']} of {row['signals']})" if row["uncertified"] else ""
        return f"{row['us']:.0f}{missed}"

    for name, found in results.items():
        if "lasso" not in found:
            continue
        cells = [lasso(found["lasso"][c]) if c in found["lasso"] else "" for c in CONTESTANTS]
        omp = found.get("omp", {})
        cells += [
            f"{omp[c]['us']:.0f} ({omp[c]['residual']:.3f})" if c in omp else "" for c in MATCHING
        ]
        lines.append(f"| {name} | {found['nonzeros']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run all measurements and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signals", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.output.read_text())))
        return
    warnings.simplefilter("ignore")  # the gap shows that a rival has not converged
    jax.config.update("jax_enable_x64", True)
    results: dict = {}
    for name, p in problems(arguments.signals).items():
        X = ur.pursuit.lasso_batch(p.D, p.Y, p.lam, nonnegative=p.nonnegative).x
        nonzeros = float(np.count_nonzero(X) / len(X))
        results[name] = {"nonzeros": nonzeros, "lasso": race(p, arguments.rounds)}
        if not p.nonnegative:
            atoms = max(1, min(round(nonzeros), p.D.shape[0] // 2))
            results[name]["omp"] = race_of_matching(p, atoms, arguments.rounds)
        print(name, {k: round(v["us"], 1) for k, v in results[name]["lasso"].items()}, flush=True)
        save(arguments.output, results)


if __name__ == "__main__":
    main()
