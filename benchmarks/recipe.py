"""`training.unsupervised` compared with FISTA and exact codes on signals of six kinds.

The kinds of signals are digits and patches of photographs, with learned dictionaries; sounds in a
Gabor frame; steps in a staircase; sines with spikes; and signals with heavy tails in atoms of many
sizes. All options keep their defaults. Each row is one kind of signal and one seed of data and
training. A row has the gap F / F* - 1 of mean objectives on 1,000 fresh signals, with F* by
`lasso_batch`, and the CPU seconds of the whole call, compilation included. Microseconds are CPU
time of one thread.

    T="taskset -c 0 env OPENBLAS_NUM_THREADS=1 XLA_FLAGS='--xla_cpu_multi_thread_eigen=false"
    eval "$T intra_op_parallelism_threads=1' python benchmarks/recipe.py"       adds missing rows
    python benchmarks/recipe.py --depths 8,16,24,32   adds rows for these numbers of steps
    python benchmarks/recipe.py --table               prints the table
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _measure import environment

import unrolled as ur
from unrolled.pursuit import default_lam

ROWS = Path(__file__).with_name("recipe.jsonl")
TRAINED_ON, TESTED_ON, SEEDS = 6000, 1000, (0, 1, 2)
CALLS = 5  # timed calls; the least time counts


class Problem(NamedTuple):
    D: jax.Array
    train: np.ndarray
    test: np.ndarray
    lam: float


def learned(Y: np.ndarray, atoms: int, seed: int) -> np.ndarray:
    """A dictionary that `online` learns from signals."""
    size = np.linalg.norm(Y, axis=1).mean()
    parts = np.array_split((Y / size).astype(np.float32), 12)
    return np.asarray(ur.dictionary_learning.online(parts, atoms, lam=0.1, key=seed).D, float)


def digits(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits of 8 x 8 pixels, shifted by fractions of a pixel."""
    from scipy.ndimage import shift
    from sklearn.datasets import load_digits

    images = load_digits().images
    chosen, moves = rng.integers(0, len(images), n), rng.uniform(-0.7, 0.7, (n, 2))
    Y = np.stack([shift(images[i], move, order=1).ravel() for i, move in zip(chosen, moves)])
    return learned(Y[:TRAINED_ON], 128, 0), Y


def photographs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of 12 x 12 pixels of two photographs, without their mean."""
    from sklearn.datasets import load_sample_images

    grey = [image.mean(2) for image in load_sample_images().images]
    side, cut = 12, []
    for k in range(n):
        picture = grey[k % 2]
        i, j = (rng.integers(0, size - side) for size in picture.shape)
        cut.append(picture[i : i + side, j : j + side].ravel())
    Y = np.stack(cut) - np.mean(cut, axis=1, keepdims=True)
    return learned(Y[:TRAINED_ON], 288, 0), Y


def sounds(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Bursts of tones with times and pitches off the grid, in a frame of Gabor atoms."""
    t, m = np.arange(128), 128

    def burst(at, pitch, phase):
        return np.exp(-(((t - at) / 12) ** 2) / 2) * np.cos(np.pi * pitch * (t - at) / m + phase)

    grid = [
        burst(at, pitch, phase)
        for at in np.arange(4, m, 12)
        for pitch in np.arange(3, m, 8)
        for phase in (0, np.pi / 2)
    ]
    D = np.stack(grid, axis=1)
    Y = 0.05 * rng.normal(size=(n, m))
    for k in range(n):
        for _ in range(rng.poisson(3) + 1):
            place = rng.uniform(0, m), rng.uniform(2, m - 2), rng.uniform(0, 2 * np.pi)
            Y[k] += rng.normal() * burst(*place)
    return D / np.linalg.norm(D, axis=0), Y


def steps(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Piecewise constant signals with noise, in a staircase of strongly correlated atoms."""
    m = 64
    D = np.tril(np.ones((m, m)))[:, 1:] - np.linspace(1, 0, m, endpoint=False)[None, 1:]
    jumps = rng.normal(size=(n, m - 1)) * (rng.random((n, m - 1)) < 0.06)
    Y = jumps @ D.T + 0.1 * rng.normal(size=(n, m))
    return D / np.linalg.norm(D, axis=0), Y


def sines_and_spikes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of sines on an oversampled frequency grid and of single samples."""
    m = 80
    sines = np.cos(np.pi * (np.arange(m)[:, None] + 0.5) * np.arange(2 * m)[None] / (2 * m))
    D = np.hstack([np.eye(m), sines / np.linalg.norm(sines, axis=0)])
    kinds = np.where(np.arange(3 * m) < m, 0.02, 0.03)
    X = rng.normal(size=(n, 3 * m)) * (rng.random((n, 3 * m)) < kinds)
    return D, X @ D.T + 0.02 * rng.normal(size=(n, m))


def heavy(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Heavy-tailed codes in a 60 x 150 dictionary of condition 30 with atom norms 1 to 9."""
    U, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    V, _ = np.linalg.qr(rng.normal(size=(150, 60)))
    D = (U * np.geomspace(30, 1, 60)) @ V.T
    D *= rng.uniform(1, 9, 150) / np.linalg.norm(D, axis=0)
    X = rng.standard_t(3, size=(n, 150)) * (rng.random((n, 150)) < 0.06)
    return D, 10 * (X @ D.T + 0.1 * rng.normal(size=(n, 60)))


PROBLEMS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    each.__name__: each for each in (digits, photographs, sounds, steps, sines_and_spikes, heavy)
}


@functools.lru_cache(maxsize=1)
def problem_of(name: str, seed: int) -> Problem:
    """The dictionary, the signals, and the default lam of the library."""
    D, Y = PROBLEMS[name](np.random.default_rng(seed), TRAINED_ON + TESTED_ON)
    D, Y = D.astype(np.float32), Y.astype(np.float32)
    lam = float(f"{default_lam(D, Y[:TRAINED_ON]):.3g}")
    return Problem(jnp.asarray(D), Y[:TRAINED_ON], Y[TRAINED_ON:], lam)


def objectives(D: Any, Y: np.ndarray, X: Any, lam: float) -> np.ndarray:
    """The objective of every signal, in float64."""
    X = np.asarray(X, float)
    residuals = Y.astype(float) - X @ np.asarray(D, float).T
    return (residuals**2).sum(1) / 2 + lam * np.abs(X).sum(1)


@functools.lru_cache(maxsize=1)
def exact(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Optimal codes, their objectives, and the microseconds per signal."""
    D, _, Y, lam = problem_of(name, seed)
    found, seconds = timed(lambda: ur.pursuit.lasso_batch(D, Y, lam, tol=1e-7))
    assert np.asarray(found.converged).all(), name
    X = np.asarray(found.x)
    return X, objectives(D, Y, X, lam), seconds


def timed(function: Callable[[], Any], calls: int = CALLS) -> tuple[Any, float]:
    """The result of `function`, and its least CPU microseconds per signal."""
    made, taken = jax.block_until_ready(function()), []
    for _ in range(calls):
        began = time.process_time()
        jax.block_until_ready(function())
        taken.append(time.process_time() - began)
    return made, 1e6 * min(taken) / TESTED_ON


def measured(name: str, seed: int, depth: int) -> dict[str, Any]:
    """Measure one row."""
    D, train, Y, lam = problem_of(name, seed)
    X, best, microseconds = exact(name, seed)
    zero = (Y.astype(float) ** 2).sum(1) / 2
    began, clock = time.process_time(), time.perf_counter()
    fit = ur.training.unsupervised(D, train, lam, depth, key=seed, progress=False)
    seconds, wall = time.process_time() - began, time.perf_counter() - clock

    def judged(layer, params) -> tuple[dict[str, float], np.ndarray]:
        run = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
        codes, taken = timed(lambda: run(params, D, Y))
        F, few = objectives(D, Y, codes, lam), zero > best * (1 + 1e-6)
        gaps = F[few] / best[few] - 1
        numbers = {
            "mean": F.mean() / best.mean() - 1,
            "median": np.median(gaps),
            "90 %": np.quantile(gaps, 0.9),
            "worst": gaps.max(),
            "above zero": int(np.sum(F > zero * (1 + 1e-6))),
            "microseconds": taken,
        }
        return {name: float(f"{value:.4g}") for name, value in numbers.items()}, F

    found, F = judged(fit.model, fit.best)
    others = {}
    for K in dict.fromkeys((depth, 24, 32, 64)):
        layer: Any = ur.layers.fista(K, lam=lam)
        others[f"fista {K}"], of_fista = judged(layer, layer.init(None, D))
        others[f"fista {K}"]["not better"] = float(np.mean(F <= of_fista * (1 + 1e-6)))
    return {
        "problem": name,
        "seed": seed,
        "depth": depth,
        "shape": D.shape,
        "lam": lam,
        "nonzeros": float(np.mean((X != 0).sum(1))),
        "recipe": found,
        **others,
        "exact microseconds": microseconds,
        "seconds": seconds,
        "seconds on the wall": wall,
        "tried": [each.asdict() for each in fit.tried],
        "environment": environment(),
    }


def read() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table(depth: int = 16) -> str:
    """A line for each problem, with medians over the seeds and the range of the gap."""
    lines = [
        f"| signals | nonzeros per code | gap of FISTA, K = {depth}, 24, 32, 64 | gap of the "
        f"recipe, K = {depth} | codes no worse than FISTA, K = 32 | codes worse than the zero code "
        "| CPU seconds of the call | CPU microseconds per signal: recipe, FISTA with K = 32, exact "
        "codes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in PROBLEMS:
        rows = [row for row in read() if (row["problem"], row["depth"]) == (name, depth)]
        if not rows:
            continue

        def middle(*path: str, rows: list = rows) -> float:
            return statistics.median(functools.reduce(dict.__getitem__, path, row) for row in rows)

        gaps = sorted(row["recipe"]["mean"] for row in rows)
        m, d = rows[0]["shape"]
        fista = ", ".join(f"{middle(f'fista {K}', 'mean'):.2g}" for K in (depth, 24, 32, 64))
        times = middle("recipe", "microseconds"), middle("fista 32", "microseconds")
        cells = [
            f"{name.replace('_', ' ')}, {m} x {d}",
            f"{middle('nonzeros'):.1f}",
            fista,
            f"{middle('recipe', 'mean'):.2g} ({gaps[0]:.2g} to {gaps[-1]:.2g})",
            f"{middle('fista 32', 'not better'):.0%}".replace("%", " %"),
            str(int(max(row["recipe"]["above zero"] for row in rows))),
            f"{middle('seconds'):.0f}",
            ", ".join(f"{us:.0f}" for us in (*times, middle("exact microseconds"))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--depths", default="16")
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    arguments = parser.parse_args()
    depths = [int(depth) for depth in arguments.depths.split(",")]
    if not arguments.table:
        there = {(row["problem"], row["seed"], row["depth"]) for row in read()}
        for seed in SEEDS:
            for name in arguments.problems.split(","):
                for depth in depths:
                    if (name, seed, depth) in there:
                        continue
                    row = measured(name, seed, depth)
                    with ROWS.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    gaps = {key: row[key]["mean"] for key in row if key.startswith("fista")}
                    print(name, seed, depth, row["recipe"], gaps, round(row["seconds"]), flush=True)
    for depth in depths:
        print(table(depth))


if __name__ == "__main__":
    main()
