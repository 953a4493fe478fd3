"""The time of a sweep of `bcd` over the time of two steps of FISTA, without training.

A row is one size of a Gaussian dictionary: 16 sweeps and 32 steps code 200 to 1,000 signals in
turns, by CPU time of one thread after compilation. `ratio` is the time of 16 sweeps over the time
of 32 steps, and `gaps` are the mean gaps (F - F*) / F* of both, with F* by `lasso_batch`.

    T="taskset -c 0 env OPENBLAS_NUM_THREADS=1 XLA_FLAGS='--xla_cpu_multi_thread_eigen=false"
    eval "$T intra_op_parallelism_threads=1' python benchmarks/sweeps.py"    writes sweeps.jsonl
"""

import json
from pathlib import Path

import jax
import numpy as np
from _measure import environment

import unrolled as ur
from unrolled.pursuit import in_turns

ROWS, LAM = Path(__file__).parent / "sweeps.jsonl", 0.1
SIZES = (64, 128, 0.06, 1000), (256, 1024, 0.03, 300), (200, 2048, 0.01, 200)


def measured(m: int, d: int, share: float, n: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    D = np.asarray(ur.dictionaries.gaussian(0, m, d), "f")
    X = rng.normal(size=(n, d)) * (rng.random((n, d)) < share)
    Y = (X @ D.T + 0.05 * rng.normal(size=(n, m))).astype("f")
    calls = {}
    for layer in (ur.layers.bcd(16, lam=LAM), ur.layers.fista(32, lam=LAM)):
        params, run = layer.init(None, D), jax.jit(jax.vmap(layer.apply, (None, None, 0)))
        calls[layer.family] = lambda run=run, params=params: run(params, D, Y)
    times = in_turns(calls)

    def objectives(X):
        X = np.asarray(X, float)
        return ((Y - X @ D.T.astype(float)) ** 2).sum(1) / 2 + LAM * abs(X).sum(1)

    best = objectives(ur.pursuit.lasso_batch(D, Y, LAM, tol=1e-6).x)
    return {
        "shape": [m, d],
        "ratio": times["bcd"].seconds / times["fista"].seconds,
        "spread": max(timing.spread for timing in times.values()),
        "microseconds": {name: 1e6 * timing.seconds / n for name, timing in times.items()},
        "gaps": {n: float((objectives(call()) / best - 1).mean()) for n, call in calls.items()},
        "environment": environment(),
    }


if __name__ == "__main__":
    rows = [json.dumps(measured(*size)) for size in SIZES]
    ROWS.write_text("\n".join(rows) + "\n")
    print(*rows, sep="\n")
