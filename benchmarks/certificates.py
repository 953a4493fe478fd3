"""Check certificates of single codes with linear programs.

The signals have codes with s nonzeros in four dictionaries of 250 x 500. Six methods code each
signal, `theory.certify_code` checks every code, and one linear program per signal checks the six
certificates. `refuted` counts the codes that are certified `unique` although another code has no
larger l1 norm. `linear_programs.basis_pursuit` solves each program to a gap that a dual point
proves. HiGHS solves one program in eight again, and every program whose code differs from a
certified code. For each signal, the script makes three codes wrong on purpose; `wrong` counts the
wrong codes that are certified.

    python benchmarks/certificates.py [signals]    adds rows to certificates.json until every cell
                                                   has this number of signals (72 by default)
    python benchmarks/certificates.py --table      prints the table of certificates.json
"""

import json
import sys
import time
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _measure import environment, markdown
from scipy.optimize import linprog

import unrolled as ur

PATH = Path(__file__).with_suffix(".json")
M, N, K, SIGNALS, PART = 250, 500, 16, 72, 24
SPARSITIES = (7, 20, 50, 60, 75, 100)
FAULTS = ("swapped", "turned", "residual")
METHODS = ("ISTA", "ALISTA", "ALISTA-SS", "OMP", "LASSO", "OAT")
# Two codes differ if they are this far apart: programs are solved to about 1e-9.
FAR = 1e-6
EVERY = 8  # HiGHS always solves the program of every 8th signal again


def gaussian(m, d):
    return ur.dictionaries.gaussian(0, m, d)


def condition_50(m, d):
    return ur.dictionaries.ill_conditioned(0, m, d, 50.0)


def learned(m, d):
    """Atoms learned from mean-free patches of a photograph, with m pixels in 10 columns each."""
    from sklearn.datasets import load_sample_image

    picture = load_sample_image("china.jpg").mean(-1) / 255
    rng = np.random.default_rng(0)
    shape = (m // 10, 10)
    corners = np.stack([rng.integers(0, a - b, 20_000) for a, b in zip(picture.shape, shape)], 1)
    Y = np.stack([picture[i : i + shape[0], j : j + shape[1]].ravel() for i, j in corners])
    Y = (Y - Y.mean(1, keepdims=True)).astype(np.float32)
    Y /= np.sqrt(np.mean(np.sum(Y**2, 1)))
    return ur.dictionary_learning.online(np.split(Y, 40), d, lam=0.1, key=0).D


DICTIONARIES = {
    "Gaussian": gaussian,
    "condition 50": condition_50,
    "DCT": ur.dictionaries.dct,
    "learned": learned,
}


def contestants(D, K=K, samples=256):
    """The six methods as functions of signals; layers are calibrated for d/10 nonzeros."""
    s = D.shape[1] // 10
    sampled = ur.problems.exact_sparse(1, (samples, D.shape[1]), s)
    share = (1.2 * s / D.shape[1] / 10, 1.2 * s / D.shape[1])
    layers = {
        "ISTA": ur.layers.ista(K),
        "ALISTA": ur.layers.alista(K),
        "ALISTA-SS": ur.layers.alista(K, support=share),
        "OAT": ur.layers.alista_at(K, onsager=True),
    }
    methods = {}
    for name, layer in layers.items():
        start, Y = layer.init(None, D), ur.problems.synthesize(D, sampled)
        params = ur.analytic.calibrate(layer, start, D, Y, sampled)
        methods[name] = partial(jax.jit(jax.vmap(layer.apply, (None, None, 0))), params, D)
    methods["OMP"] = lambda Y: ur.pursuit.omp_batch(D, Y, int(0.3 * D.shape[0])).x
    methods["LASSO"] = lambda Y: ur.pursuit.lasso_batch(D, Y, ratio=0.01, tol=1e-4).x
    return {name: methods[name] for name in METHODS}


def highs(D, y):
    """A code of least l1 norm with D x = y, or nan if HiGHS finds no code."""
    tight = dict(primal_feasibility_tolerance=1e-10, dual_feasibility_tolerance=1e-10)
    d = D.shape[1]
    found = linprog(np.ones(2 * d), A_eq=np.hstack([D, -D]), b_eq=y, method="highs", options=tight)
    return found.x[:d] - found.x[d:] if found.status == 0 else np.full(d, np.nan)


def apart(X, Z):
    """The relative distance of codes X from Z; at least 1 if a code of X has a larger l1 norm."""
    heavier = np.abs(X).sum(1) > np.abs(Z).sum(1) * (1 + FAR)
    distance = np.linalg.norm(X - Z, axis=1) / np.linalg.norm(Z, axis=1)
    return np.where(heavier, np.maximum(distance, 1), distance)


def made_wrong(rng, X, Y):
    """Codes with a moved entry, codes with a changed sign, and signals changed by 1e-6."""
    swapped, turned = X.copy(), X.copy()
    for x, z in zip(swapped, turned):
        on, off = rng.choice(np.flatnonzero(x)), rng.choice(np.flatnonzero(x == 0))
        x[off], x[on] = x[on], 0
        z[on] *= -1
    noise = rng.normal(size=Y.shape)
    size = np.linalg.norm(Y, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return {
        "swapped": (Y, swapped),
        "turned": (Y, turned),
        "residual": (Y + 1e-6 * size * noise, X),
    }


def judged(D, X, methods, rng, every=EVERY):
    """Counts for the signals D X; D and X are float64, and methods map signals to codes."""
    Y = X @ D.T
    solution = ur.linear_programs.basis_pursuit(ur.linear_programs.whiten(D), Y.T)
    Z = solution.V.T.copy()
    again = np.arange(len(Y)) % every == 0
    found = {name: ur.theory.certify_code(D, Y, f(jnp.asarray(Y))) for name, f in methods.items()}
    for certificate in found.values():
        again |= certificate.unique & (apart(certificate.x, Z) > FAR)
    for i in np.flatnonzero(again):
        Z[i] = highs(D, Y[i])
    judged = np.isfinite(Z).all(1)
    row = {
        "signals": len(Y),
        "recovered": int((apart(X, Z) <= FAR).sum()),
        "highs": int(again.sum()),
        "gap": float(np.max(1 - solution.dual / solution.primal)),
    }
    for name, certificate in found.items():
        far = apart(certificate.x, Z)
        unique, exact = certificate.unique, certificate.residual <= 1e-9
        row[name] = {
            "unique": int(unique.sum()),
            "refuted": int((unique & (far > FAR)).sum()),
            "unjudged": int((unique & ~judged).sum()),
            "missed": int((~unique & exact & (far <= FAR)).sum()),
            "apart": float(far[unique & judged].max(initial=0)),
        }
    for fault, (signals, codes) in made_wrong(rng, X, Y).items():
        unique = ur.theory.certify_code(D, signals, codes, finish=None).unique
        row[fault] = {"codes": len(unique), "wrong": int(unique.sum())}
    return row


@cache
def dictionary(name):
    return np.asarray(DICTIONARIES[name](M, N), float)


@cache
def methods_for(name):
    return contestants(jnp.asarray(dictionary(name), jnp.float32))


def cells(signals):
    """Each part of each cell: its name, its codes, and the generator that drew the codes."""
    for part in range(-(-signals // PART)):
        for name in DICTIONARIES:
            for s in SPARSITIES:
                rng = np.random.default_rng([list(DICTIONARIES).index(name), s, part])
                X = np.zeros((PART, N))
                for x in X:
                    x[rng.permutation(N)[:s]] = rng.normal(size=s)
                yield {"dictionary": name, "s": s, "part": part}, X, rng


def main(signals):
    rows = json.loads(PATH.read_text())["rows"] if PATH.exists() else []
    for cell, X, rng in cells(signals):
        if not any(row.items() >= cell.items() for row in rows):
            began = time.perf_counter()
            name = cell["dictionary"]
            rows.append(cell | judged(dictionary(name), X, methods_for(name), rng))
            PATH.write_text(json.dumps({"environment": environment(), "rows": rows}) + "\n")
            print(cell, f"{time.perf_counter() - began:.0f} s", flush=True)


def table():
    """The certified codes of each method in %, and the faults, for every dictionary and s."""
    rows = json.loads(PATH.read_text())["rows"]
    faults = ("refuted", "unjudged", "missed")
    entries = []
    for name in DICTIONARIES:
        for s in SPARSITIES:
            cell = [row for row in rows if (row["dictionary"], row["s"]) == (name, s)]
            if not cell:
                continue
            n = sum(row["signals"] for row in cell)
            entry = {"dictionary": name, "nonzeros s": s}
            for method in METHODS:
                unique = sum(row[method]["unique"] for row in cell)
                entry[f"{method} codes certified, %"] = f"{100 * unique / n:.0f}"
            for fault in faults:
                entry[f"codes {fault}"] = sum(row[m][fault] for row in cell for m in METHODS)
            entry["codes wrong"] = sum(row[fault]["wrong"] for row in cell for fault in FAULTS)
            recovered = sum(row["recovered"] for row in cell)
            found = f"{100 * recovered / n:.0f}"
            entries.append(entry | {"codes that the linear program recovers, %": found})
    n = sum(row["signals"] for row in rows)
    certified = sum(row[method]["unique"] for row in rows for method in METHODS)
    again, gap = sum(row["highs"] for row in rows), max(row["gap"] for row in rows)
    far = max(row[method]["apart"] for row in rows for method in METHODS)
    return (
        f"{markdown(entries)}\n\n{certified:,} of {len(METHODS) * n:,} codes of {n:,} signals are "
        f"certified. The relative distance of a certified code from the code of its linear program "
        f"is at most {far:.0e}. HiGHS solved {again} programs; the gaps of the other programs are "
        f"at most {gap:.0e}."
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        print(table())
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else SIGNALS)
