"""Coherence programs: this library compared with HiGHS and, if it is installed, Clarabel.

    python benchmarks/coherence.py

The script takes about five minutes on two cores and writes coherence.json. The other solvers solve
one program per atom, two atoms at a time, for all atoms of a small dictionary. If this would take
hours, the other solvers solve a sample of the atoms, and the script scales the total time up from
the sample. All times of this library include the certificates.
"""

import importlib.util
import math
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from _measure import save

SIZES = ((64, 128), (100, 200), (250, 500), (500, 1000))
WHOLE = 500  # most atoms for which HiGHS solves all programs
ROUNDS, SAMPLE = 5, 16
FEWER_ROUNDS, SMALLER_SAMPLE = 3, 8  # for dictionaries with more atoms


def gaussian(m: int, d: int) -> np.ndarray:
    D = np.random.default_rng(0).normal(size=(m, d))
    return D / np.linalg.norm(D, axis=0)


def highs_coherence(job) -> float:
    """Minimise norm(v, 1) subject to sum_{j != i} v_j d_j = d_i, and return 1 / minimum.

    HiGHS solves the program fastest in this form, by the dual simplex.
    """
    from scipy.optimize import linprog

    D, i = job
    others = np.delete(D, i, axis=1)
    found = linprog(
        np.ones(2 * others.shape[1]),
        A_eq=np.hstack([others, -others]),
        b_eq=D[:, i],
        method="highs-ds",
    )
    return 1 / found.fun


def highs_entries(job) -> float:
    """Minimise max abs(w) subject to w . d_i = 1 and abs(w . d_j) <= level for all j != i.

    HiGHS solves the program fastest in this form, by the interior-point method.
    """
    from scipy.optimize import linprog

    D, i, level = job
    (m, _), others = D.shape, np.delete(D, i, axis=1)
    n = others.shape[1]
    rows = np.vstack([others.T, -others.T, np.eye(m), -np.eye(m)])
    rows = np.hstack([rows, np.repeat([0.0, -1.0], [2 * n, 2 * m])[:, None]])
    right = np.repeat([level, 0.0], [2 * n, 2 * m])
    cost, equal = np.append(np.zeros(m), 1.0), np.append(D[:, i], 0.0)[None]
    found = linprog(
        cost, A_ub=rows, b_ub=right, A_eq=equal, b_eq=[1.0], bounds=(None, None), method="highs-ipm"
    )
    return found.fun


def clarabel_coherence(job) -> float:
    """The basis-pursuit form by the interior-point method of Clarabel."""
    import clarabel
    from scipy import sparse

    D, i = job
    others = np.delete(D, i, axis=1)
    (m, n), eye = others.shape, sparse.eye(others.shape[1])
    rows = sparse.vstack([
        sparse.hstack([sparse.csc_matrix(others), sparse.csc_matrix((m, n))]),
        sparse.hstack([eye, -eye]),
        sparse.hstack([-eye, -eye]),
    ]).tocsc()  # fmt: skip
    cones = [clarabel.ZeroConeT(m), clarabel.NonnegativeConeT(2 * n)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cost, right = np.append(np.zeros(n), np.ones(n)), np.append(D[:, i], np.zeros(2 * n))
    quadratic = sparse.csc_matrix((2 * n, 2 * n))
    solver = clarabel.DefaultSolver(quadratic, cost, rows, right, cones, settings)
    return 1 / solver.solve().obj_val


def rival(solve, jobs) -> tuple[float, np.ndarray]:
    """Seconds and values of all jobs in two processes of one thread, without their start-up."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(solve, jobs[:2])
        began = time.perf_counter()
        values = np.array(pool.map(solve, jobs, chunksize=1))
        return time.perf_counter() - began, values


def ours(run, rounds: int = FEWER_ROUNDS) -> tuple[float, object]:
    """The median seconds of `rounds` calls, and the last result."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = run()
        times.append(time.perf_counter() - began)
    return statistics.median(times), found


def measure(m: int, d: int) -> dict:
    import jax

    from unrolled import theory

    D = gaussian(m, d)
    rounds, n = (ROUNDS, SAMPLE) if d <= WHOLE else (FEWER_ROUNDS, SMALLER_SAMPLE)
    with jax.enable_x64(True):
        everything, found = ours(lambda: theory.generalized_coherence(D), rounds)
        maximum, top = ours(lambda: theory.generalized_coherence(D, only_maximum=True), rounds)
        decided, _ = ours(lambda: theory.coherence_at_most(D, float(found.upper) / 2), rounds)
        began = time.perf_counter()
        entries = theory.minimal_entry_weights(D, top) if d <= WHOLE else None
        entries_s = time.perf_counter() - began
        mu = float(theory.mutual_coherence(D))
    upper, lower = np.asarray(found.per_atom_upper), np.asarray(found.per_atom_lower)
    atoms = range(d) if d <= WHOLE else range(0, d, d // n)
    sample = list(range(0, d, max(1, d // n)))[:n]
    highs_s, values = rival(highs_coherence, [(D, i) for i in atoms])
    outside = np.maximum(lower[atoms] - values, values - upper[atoms]).max() / values.max()
    result = {
        "mu": mu,
        "mu~ upper": float(found.upper),
        "mu~ lower": float(found.lower),
        "largest relative gap": float(np.max((upper - lower) / upper)),
        "holds": bool(found.holds and top.holds),
        "all atoms, s": everything,
        "mu~ and an optimal W, s": maximum,
        "is mu~ below a half of it, s": decided,
        "HiGHS all atoms, s": highs_s * d / len(atoms),
        "HiGHS atoms solved": len(atoms),
        "HiGHS value outside our bounds, relative": float(outside),
        "speed-up, all atoms": highs_s * d / len(atoms) / everything,
    }
    if entries is not None:
        jobs = [(D, i, entries.coherence) for i in sample]
        seconds, values = rival(highs_entries, jobs)
        result |= {
            "least entries, all atoms, s": entries_s,
            "least entries, largest relative gap": float(
                np.max((entries.per_atom_upper - entries.per_atom_lower) / entries.per_atom_upper)
            ),
            "least entries, HiGHS, s": seconds * d / len(sample),
            "least entries, HiGHS atoms solved": len(sample),
            "least entries, largest difference": float(
                np.abs(entries.per_atom_upper[sample] - values).max()
            ),
            "speed-up, least entries": seconds * d / len(sample) / entries_s,
            "least entries, ms per atom": 1e3 * entries_s / d,
            "least entries, HiGHS ms per atom in one process": 1e3 * 2 * seconds / len(sample),
        }
    if importlib.util.find_spec("clarabel"):
        seconds, values = rival(clarabel_coherence, [(D, i) for i in sample])
        result |= {
            "Clarabel all atoms, s": seconds * d / len(sample),
            "Clarabel atoms solved": len(sample),
        }
    return result


def cost_law(results: dict, key: str) -> float:
    """The exponent p of seconds ~ d^p at d = 2 m, from the two largest sizes."""
    (small, a), (large, b) = (
        (int(name.split("x")[1]), value[key]) for name, value in list(results.items())[-2:]
    )
    return math.log(b / a) / math.log(large / small)


def rectangular() -> dict:
    """Seconds for all atoms at fixed m and growing d, and at fixed d and growing m."""
    import jax

    from unrolled import theory

    shapes = [(100, 200), (100, 400), (100, 800), (50, 800), (200, 800), (400, 800)]
    with jax.enable_x64(True):
        return {
            f"{m}x{d}": ours(lambda m=m, d=d: theory.generalized_coherence(gaussian(m, d)))[0]
            for m, d in shapes
        }


if __name__ == "__main__":
    results = {}
    for m, d in SIZES:
        print(f"{m}x{d}", file=sys.stderr, flush=True)
        results[f"{m}x{d}"] = found = measure(m, d)
        print(found, file=sys.stderr, flush=True)
    results |= {
        "exponent of d at d = 2 m, all atoms": cost_law(results, "all atoms, s"),
        "all atoms at other shapes, s": rectangular(),
        "peak memory of this process, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / 1024,
    }
    save(Path(__file__).with_suffix(".json"), results)
