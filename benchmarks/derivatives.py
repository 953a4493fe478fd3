"""The gradient of a loss of LASSO codes, in D and in the signals: time and agreement.

    python benchmarks/derivatives.py [--signals 64] [--rounds 5] [--output benchmarks/derivatives.json]
    python benchmarks/derivatives.py --table                 prints the table of that file

The loss is a random linear function of the codes of signals with about 25 nonzeros in a Gaussian
dictionary of 250 x 500, in float32; lam is a tenth of the largest lam_max. Contestants take turns:
`lasso_batch`, `lasso` under `vmap`, and the implicit derivative of jaxopt around its proximal
gradient method. jaxopt takes part if it is installed (`pip install jaxopt`). A time is the median
of the CPU times of the process, for a value and its gradient; compilation is not part of it.
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
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _measure import markdown, save

import unrolled as ur

SHAPE, TOL = (250, 500), 1e-6


def problem(n: int) -> tuple[jax.Array, jax.Array, jax.Array, float]:
    """D, signals, the weights of the loss, and lam."""
    keys = jax.random.split(jax.random.key(0), 4)
    D = ur.dictionaries.gaussian(keys[0], *SHAPE)
    Y = ur.problems.exact_sparse(keys[1], (n, SHAPE[1]), 25) @ D.T
    Y = Y + 0.01 * jax.random.normal(keys[2], Y.shape)
    lam = 0.1 * float(jnp.abs(Y @ D).max())
    return D, Y, jax.random.normal(keys[3], (n, SHAPE[1])), lam


def contestants(lam: float, C: jax.Array) -> dict[str, Callable]:
    """Values and gradients in D and Y, by name."""

    def batch(D, Y):
        return jnp.vdot(ur.pursuit.lasso_batch(D, Y, lam, tol=TOL).x, C)

    def each(D, Y):
        return jnp.vdot(jax.vmap(lambda y: ur.pursuit.lasso(D, y, lam, tol=TOL).x)(Y), C)

    losses = {"lasso_batch": batch, "lasso under vmap": each} | of_jaxopt(lam, C)
    return {name: jax.jit(jax.value_and_grad(loss, (0, 1))) for name, loss in losses.items()}


def of_jaxopt(lam: float, C: jax.Array) -> dict[str, Callable]:
    """The implicit derivative of jaxopt, if jaxopt is installed."""
    try:
        from jaxopt import ProximalGradient
        from jaxopt.prox import prox_lasso
    except ImportError:
        return {}

    def objective(x, parts):
        D, y = parts
        return jnp.sum((y - D @ x) ** 2) / 2

    solver = ProximalGradient(objective, prox_lasso, tol=1e-4, maxiter=5000, implicit_diff=True)

    def loss(D, Y):
        start = jnp.zeros(SHAPE[1], Y.dtype)
        codes = jax.vmap(lambda y: solver.run(start, lam, (D, y)).params)(Y)
        return jnp.vdot(codes, C)

    return {"jaxopt, implicit": loss}


def race(n: int, rounds: int) -> list[dict]:
    """Milliseconds per signal of each contestant, and distances of the gradients from the first."""
    D, Y, C, lam = problem(n)
    functions = contestants(lam, C)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    slopes = {name: jax.block_until_ready(f(D, Y))[1] for name, f in functions.items()}
    for _ in range(rounds):
        for name, function in functions.items():
            begun = time.process_time()
            jax.block_until_ready(function(D, Y))
            seconds[name].append(time.process_time() - begun)
    first = next(iter(slopes.values()))
    nonzeros = float((ur.pursuit.lasso_batch(D, Y, lam).x != 0).sum(1).mean())
    return [
        {
            "method": name,
            "ms": 1e3 * statistics.median(seconds[name]) / n,
            "least": 1e3 * min(seconds[name]) / n,
            "most": 1e3 * max(seconds[name]) / n,
            "distance": max(
                float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(own, first)
            ),
            "nonzeros": nonzeros,
            "signals": n,
        }
        for name, own in slopes.items()
    ]


def table(rows: list[dict]) -> str:
    """Markdown: milliseconds per signal, and the distances of the gradients."""
    return markdown(
        [
            {
                "method": row["method"],
                "ms per signal (least, most)": (
                    f"{row['ms']:.2f} ({row['least']:.2f}, {row['most']:.2f})"
                ),
                "times lasso_batch": f"{row['ms'] / rows[0]['ms']:.1f}",
                "relative distance of the gradient": f"{row['distance']:.0e}",
            }
            for row in rows
        ]
    )


def main() -> None:
    """Run the measurement and write the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signals", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.output.read_text())["rows"]))
        return
    rows = race(arguments.signals, arguments.rounds)
    print(table(rows), flush=True)
    save(arguments.output, {"rows": rows})


if __name__ == "__main__":
    main()
