"""Seconds of `lasso_batch` on groups and on many measurements, next to skglm.

    python benchmarks/groups_seconds.py            rows, groups_seconds.json; needs skglm
    python benchmarks/groups_seconds.py --table    prints the table of groups_seconds.json

"many measurements": the MultiTask LASSO, 100 x 400 with 8 measurements. "groups": the group LASSO
of 50 groups of 10 atoms from 100 rows, with weights of roots. Atoms are Gaussian with norm 1, a
tenth of the parts are active, and noise has deviation 0.01. lam is 0.1 of the lam_max of each of
the signals. skglm codes one signal after another and gets a smaller tol until its objective, in
float64, is within 1e-7 of the least objective found; so do we. Calls take turns, after a first one;
the table has the least time of nine calls, because other programs ran, and the rows have all times.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from _measure import all_ms, markdown, save

import unrolled as ur

RESULTS = Path(__file__).with_suffix(".json")
M, ACTIVE, NOISE, RATIO, NEAR = 100, 0.1, 0.01, 0.1, 1e-7
SIGNALS, TOLS = (1, 16), (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
SHAPES = {"many measurements": (400, 8), "groups": (50, 10)}  # parts, entries of a part


def problem(name, signals):
    """The matrix, the dictionary, the signals, and the penalty of each signal."""
    rng, (parts, g) = np.random.default_rng(0), SHAPES[name]
    together = name == "many measurements"
    A = rng.normal(size=(M, parts if together else parts * g))
    A /= np.linalg.norm(A, axis=0)
    X = (rng.random((signals, parts, 1)) < ACTIVE) * rng.normal(size=(signals, parts, g))
    if together:
        D, Y = ur.dictionaries.Joint(A, g), A @ X
    else:
        D = ur.dictionaries.Grouped(A, np.repeat(np.arange(parts), g))
        Y = X.reshape(signals, -1) @ A.T
    Y = Y + NOISE * rng.normal(size=Y.shape)
    return A, D, Y, RATIO * sizes(name, A.T @ Y if together else Y @ A).max(1) / weight(name)


def weight(name):
    return 1 if name == "many measurements" else SHAPES[name][1] ** 0.5


def sizes(name, X):
    """The norms of the parts, (signals, parts)."""
    return np.linalg.norm(X.reshape(len(X), *SHAPES[name]), axis=2)


def objective(name, A, Y, X, lam):
    """The objective of each signal, in float64."""
    X = np.asarray(X, float)
    fit = Y - (A @ X if name == "many measurements" else X @ A.T)
    return (fit**2).reshape(len(Y), -1).sum(1) / 2 + lam * weight(name) * sizes(name, X).sum(1)


def rival(name, A, Y, lam):
    """skglm with a given tol; its objective is ours over the number of rows."""
    from skglm.datafits import QuadraticGroup, QuadraticMultiTask
    from skglm.penalties import L2_1, WeightedGroupL2
    from skglm.solvers import GroupBCD, MultiTaskBCD
    from skglm.utils.data import grp_converter
    from skglm.utils.jit_compilation import compiled_clone

    A, (parts, g) = np.asfortranarray(A), SHAPES[name]
    if name == "many measurements":
        solver, datafit = MultiTaskBCD(fit_intercept=False), QuadraticMultiTask()
        penalties = [L2_1(each / M) for each in lam]
    else:
        indices, pointers = grp_converter(g, A.shape[1])
        weights, solver = np.full(parts, weight(name)), GroupBCD()
        datafit = QuadraticGroup(pointers, indices)
        penalties = [WeightedGroupL2(each / M, weights, pointers, indices) for each in lam]
    datafit, penalties = compiled_clone(datafit), [compiled_clone(each) for each in penalties]
    signals = [np.asfortranarray(y) for y in Y]

    def code(tol):
        solver.tol = tol
        return np.stack([one(y, penalty) for y, penalty in zip(signals, penalties)])

    def one(y, penalty):
        datafit.initialize(A, y)
        return solver.solve(A, y, datafit, penalty)[0]

    return code


def row(name, signals):
    A, D, Y, lam = problem(name, signals)
    solve = {
        "unrolled": lambda tol: np.asarray(ur.pursuit.lasso_batch(D, Y, lam[:, None], tol=tol).x),
        "skglm": rival(name, A, Y, lam),
    }
    least = objective(name, A, Y, solve["unrolled"](1e-12), lam)
    calls, found = {}, {}
    for who, code in solve.items():
        for tol in TOLS:
            over = (objective(name, A, Y, code(tol), lam) / least - 1).max()
            if over <= NEAR:
                break
        calls[who], found[who] = (
            (lambda code=code, tol=tol: code(tol)),
            {"tol": tol, "over": float(over)},
        )
    for who, ms in all_ms(calls, rounds=3, calls=3).items():
        found[who] |= {"ms": sorted(round(each, 3) for each in ms)}
    print(name, signals, found, flush=True)
    return {"task": name, "signals": signals} | found


def table():
    def line(row):
        ours, theirs = (min(row[who]["ms"]) for who in ("unrolled", "skglm"))
        cells = {"task": row["task"], "signals": row["signals"]}
        cells |= {"unrolled, ms": f"{ours:.2f}", "skglm, ms": f"{theirs:.2f}"}
        return cells | {"ratio": f"{ours / theirs:.2f}"}

    print(markdown([line(row) for row in json.loads(RESULTS.read_text())["rows"]]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        jax.config.update("jax_enable_x64", True)
        save(RESULTS, {"rows": [row(name, n) for name in SHAPES for n in SIGNALS]})
    table()
