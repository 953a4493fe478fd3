"""Trained `bcd` and `fista` compared with exact codes on dictionaries of 256 x 1024.

On such dictionaries exact codes are expensive. A row is one problem and one seed of data and
training: Gaussian atoms or atoms learned from patches of photographs, and lam as a
share of the largest inner product of a signal with an atom (mean over signals). The codes of the
Gaussian problems have 51 nonzeros on average. A row has the share of nonzeros in optimal codes, and
for each method the gap F / F* - 1 of mean objectives on 500 fresh signals, with F* by
`lasso_batch`, the CPU microseconds per signal of one thread, the CPU seconds of the training with
compilation, and the number of signals that repay the training (null if exact codes take no more
time).

    T="taskset -c 0 env OPENBLAS_NUM_THREADS=1 XLA_FLAGS='--xla_cpu_multi_thread_eigen=false"
    eval "$T intra_op_parallelism_threads=1' python benchmarks/recipe_large.py"   adds missing rows
    python benchmarks/recipe_large.py --table                                     prints the table
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _kinds import TRAINED_ON, centred, crops, grey, learned, unit
from _measure import environment, rows_of

import unrolled as ur

ROWS = Path(__file__).with_suffix(".jsonl")
SHAPE, TESTED_ON, SEEDS = (256, 1024), 500, (0, 1, 2)
CALLS = 5  # timed calls; the least time counts
# name: family, depth, steps of the recipe (None: untrained, at `init`)
METHODS = {
    "fista 16": ("fista", 16, None),
    "bcd 8": ("bcd", 8, None),
    "bcd 8, 300 steps": ("bcd", 8, 300),
    "bcd 16, 300 steps": ("bcd", 16, 300),
    "fista 16, 300 steps": ("fista", 16, 300),
}


def gaussian(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    m, d = SHAPE
    D = unit(rng.normal(size=(m, d)))
    return D, (rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.05)) @ D.T


def patches(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    Y = centred(crops(rng, n, grey(), 16, contrast=5))
    return learned(Y[:TRAINED_ON], SHAPE[1], 0), Y


PROBLEMS = {
    "patches, lam .08": (patches, 0.08),
    "patches, lam .02": (patches, 0.02),
    "Gaussian, lam .10": (gaussian, 0.1),
    "Gaussian, lam .05": (gaussian, 0.05),
    "Gaussian, lam .02": (gaussian, 0.02),
}


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `function`, and its least CPU microseconds per signal."""
    made, taken = jax.block_until_ready(function()), []
    for _ in range(CALLS):
        began = time.process_time()
        jax.block_until_ready(function())
        taken.append(time.process_time() - began)
    return made, 1e6 * min(taken) / TESTED_ON


def problem_of(problem: str, seed: int) -> tuple[jax.Array, np.ndarray, np.ndarray, float]:
    """D, signals for training, signals for tests, and lam."""
    kind, share = PROBLEMS[problem]
    rng = np.random.default_rng(seed)
    D, signals = (A.astype(np.float32) for A in kind(rng, TRAINED_ON + TESTED_ON))
    lam = float(f"{share * np.abs(signals[:TRAINED_ON] @ D).max(1).mean():.3g}")
    return jnp.asarray(D), signals[:TRAINED_ON], signals[TRAINED_ON:], lam


def measured(problem: str, seed: int) -> dict[str, Any]:
    """Measure one row."""
    D, train, Y, lam = problem_of(problem, seed)

    def mean_objective(X: Any) -> float:
        residuals = Y.astype(float) - np.asarray(X, float) @ np.asarray(D, float).T
        return float(np.mean((residuals**2).sum(1) / 2 + lam * np.abs(np.asarray(X)).sum(1)))

    exact, microseconds = timed(lambda: ur.pursuit.lasso_batch(D, Y, lam))
    best = mean_objective(ur.pursuit.lasso_batch(D, Y, lam, tol=1e-8).x)
    row = {"problem": problem, "seed": seed, "lam": lam, "exact microseconds": microseconds}
    row["nonzeros / m"] = float(np.mean((np.asarray(exact.x) != 0).sum(1))) / SHAPE[0]
    for name, (family, depth, steps) in METHODS.items():
        layer = ur.layers.FAMILIES[family](depth, lam=lam)
        began, params = time.process_time(), layer.init(None, D)
        if steps is not None:
            options = dict(key=seed, family=family, steps=steps, progress=False)
            fit = ur.training.unsupervised(D, train, lam, depth, **options)
            layer, params = fit.model, fit.best
        seconds = time.process_time() - began
        run = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
        codes, taken = timed(partial(run, params, D, Y))
        saved = 1e-6 * (microseconds - taken)
        row[name] = {
            "gap": mean_objective(codes) / best - 1,
            "microseconds": taken,
            "seconds": seconds,
            "signals that repay": round(seconds / saved) if saved > 0 else None,
        }
        print(problem, seed, name, row[name], flush=True)
    return row | {"environment": environment()}


def table() -> str:
    """A line for each problem and method: the median over the seeds, and the range of the gap."""
    lines = [
        "| problem, nonzeros / m, microseconds of exact codes | method | gap | CPU microseconds "
        "per signal | CPU seconds of the training | signals that repay the training |",
        "|---|---|---|---|---|---|",
    ]
    for problem in PROBLEMS:
        own = [row for row in rows_of(ROWS) if row["problem"] == problem]
        for name in METHODS if own else ():
            cells = [row[name] for row in own]
            gaps = sorted(cell["gap"] for cell in cells)
            repay = [cell["signals that repay"] or np.inf for cell in cells]
            nonzeros, exact, taken, seconds = (
                statistics.median(values)
                for values in (
                    [row["nonzeros / m"] for row in own],
                    [row["exact microseconds"] for row in own],
                    [cell["microseconds"] for cell in cells],
                    [cell["seconds"] for cell in cells],
                )
            )
            trained = METHODS[name][2] is not None
            lines.append(
                f"| {problem}, {nonzeros:.2f}, {exact:.0f} | {name} | "
                f"{statistics.median(gaps):.2g} ({gaps[0]:.2g} to {gaps[-1]:.2g}) | {taken:.0f} | "
                f"{seconds if trained else 0:.0f} | "
                f"{statistics.median(repay) if trained else 0:,.0f} |".replace("inf", "never")
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        there = {(row["problem"], row["seed"]) for row in rows_of(ROWS)}
        for seed in SEEDS:
            for problem in PROBLEMS:
                if (problem, seed) not in there:
                    row = measured(problem, seed)
                    with ROWS.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    print(table())


if __name__ == "__main__":
    main()
