"""Dictionary learning compared with other libraries: seconds and objectives.

    python benchmarks/dictionary_learning.py [--only digits] [--patches 100000]

Part 1 is online learning of 256 atoms in one pass over 8x8 patches of photographs. The patches have
mean 0 and norm 1. Every contestant starts from the same patches and has the same batches and the
same penalty. The objective is the mean of 1/2 norm(y - D x)^2 + lam norm(x, 1) over 5000 other
patches, with codes of `lasso_batch` for atoms of norm 1, in float64. SPAMS takes part if it is
installed.

Part 2 is online learning at equal time on the 1797 digits of scikit-learn in [0, 1]. The mean of
every pixel, and then the mean of every digit, is subtracted, as in scikit-learn's example of faces.
Every contestant makes as many passes as fit into a budget of wall time. Each contestant runs once
before with the same number of atoms, so that no budget includes compilation or imports. `online`
has batches of 256. scikit-learn takes part with its defaults (LARS, batches of 256, a start by SVD)
and in its fastest form on this problem (coordinate descent, batches of 32, a start from digits of
norm 1, as in `online`). The objective is the mean over all digits. "ratio" is the objective of
`online` divided by the better objective of scikit-learn with the same seed.

Part 3 has the seconds for a sweep of K-SVD and of MOD, with 500 atoms of 250 entries and 10,000
signals.
"""

import argparse
import contextlib
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _measure import save
from sklearn.datasets import load_digits
from sklearn.decomposition import MiniBatchDictionaryLearning

import unrolled as ur

ATOMS, BATCH, LAM, HELD_BACK = 256, 512, 0.15, 5000
DIGITS_ATOMS, BUDGETS, DIGITS_LAM = (32, 64), (0.25, 1.0, 4.0), 0.2


def patches(n: int) -> np.ndarray:
    """n patches of photographs with mean 0 and norm 1, (n, 64), in float32."""
    rng = np.random.default_rng(0)
    found = []
    for picture in ur.vision.datasets.photographs().values():
        windows = np.lib.stride_tricks.sliding_window_view(picture, (8, 8))
        rows, columns = (rng.integers(0, size, 2 * n) for size in windows.shape[:2])
        found.append(windows[rows, columns].reshape(-1, 64))
    Y = np.concatenate(found)
    Y = Y - Y.mean(1, keepdims=True)
    norms = np.linalg.norm(Y, axis=1, keepdims=True)
    Y, norms = Y[norms[:, 0] > 0.1], norms[norms[:, 0] > 0.1]
    assert len(Y) >= n, (len(Y), n)
    return rng.permutation(Y / norms)[:n].astype(np.float32)


def objective(D: np.ndarray, Y: np.ndarray, lam: float) -> float:
    """The mean objective of Y in D with atoms scaled to norm 1."""
    with jax.enable_x64(True):
        D, Y = np.asarray(D, float), np.asarray(Y, float)
        D = D / np.linalg.norm(D, axis=0)
        X = np.asarray(ur.pursuit.lasso_batch(jnp.asarray(D), Y, lam, tol=1e-5).x)
    return float((np.sum((Y - X @ D.T) ** 2) / 2 + lam * np.abs(X).sum()) / len(Y))


def ours(Y: np.ndarray) -> np.ndarray:
    batches = (Y[first : first + BATCH] for first in range(0, len(Y), BATCH))
    found = ur.dictionary_learning.online(batches, ATOMS, lam=LAM, start=jnp.asarray(Y[:ATOMS].T))
    return np.asarray(found.D)


def scikit_learn(Y: np.ndarray) -> np.ndarray:
    learner = MiniBatchDictionaryLearning(
        ATOMS,
        alpha=LAM,
        max_iter=1,
        batch_size=BATCH,
        fit_algorithm="cd",
        dict_init=np.ascontiguousarray(Y[:ATOMS]),
        shuffle=False,
        max_no_improvement=None,
        tol=0,
    )
    return learner.fit(Y).components_.T


def spams_learning() -> Callable[[np.ndarray], np.ndarray] | None:
    """Learning by SPAMS in float64, its faster dtype; None if SPAMS is not installed."""
    try:
        import spams
    except ImportError:
        return None

    def learn(Y):
        signals = np.asfortranarray(Y.T, float)
        start = np.asfortranarray(signals[:, :ATOMS])
        options = dict(lambda1=LAM, mode=2, batchsize=BATCH, iter=len(Y) // BATCH, verbose=False)
        return spams.trainDL(signals, D=start, numThreads=-1, **options)

    return learn


def compare(n: int, rounds: int) -> dict[str, dict]:
    """Seconds and objective of every contestant, in turns after one short run of each."""
    Y = patches(n + HELD_BACK)
    learners = {"unrolled": ours, "scikit-learn": scikit_learn, "SPAMS": spams_learning()}
    learners = {name: learn for name, learn in learners.items() if learn is not None}
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    objectives = {}
    for learn in learners.values():
        learn(Y[: 2 * BATCH])
    for _ in range(rounds):
        for name, learn in learners.items():
            time.sleep(0.3)
            began = time.perf_counter()
            D = learn(Y[:n])
            seconds[name].append(time.perf_counter() - began)
            if name not in objectives:
                objectives[name] = objective(D, Y[n:], LAM)
            print(
                f"{name}: {seconds[name][-1]:.2f} s, objective {objectives[name]:.6f}", flush=True
            )
    return {
        name: {"seconds": spread(seconds[name]), "objective": objectives[name]} for name in learners
    }


class Learnt(NamedTuple):
    """The dictionary that a contestant learned within its time."""

    D: np.ndarray
    batches: int
    seconds: float


def ours_within(seconds: float, Y: np.ndarray, d: int, seed: int) -> Learnt:
    began = time.perf_counter()

    def batches() -> Iterator[np.ndarray]:
        for first in itertools.cycle(range(0, len(Y), 256)):
            yield Y[first : first + 256]
            if time.perf_counter() - began > seconds:
                return

    found = ur.dictionary_learning.online(batches(), d, lam=DIGITS_LAM, key=seed)
    return Learnt(np.asarray(found.D), len(found.history), time.perf_counter() - began)


class TimeIsOver(Exception):
    """Raised in the callback of scikit-learn to end its `fit`."""


def scikit_learn_within(seconds: float, Y: np.ndarray, d: int, **options) -> Learnt:
    def stop(step: dict) -> None:
        nonlocal learnt
        learnt = Learnt(step["dictionary"].T, step["i"] + 1, time.perf_counter() - began)
        if learnt.seconds > seconds:
            raise TimeIsOver

    options |= dict(alpha=DIGITS_LAM, max_iter=10**9, max_no_improvement=None, tol=0, callback=stop)
    learner, learnt, began = MiniBatchDictionaryLearning(d, **options), None, time.perf_counter()
    with contextlib.suppress(TimeIsOver):
        learner.fit(Y)
    return learnt


def within(seconds: float, d: int, seed: int) -> dict[str, dict[str, float]]:
    """Batches, seconds and objective of every contestant, from digits in a random order."""
    Y = load_digits().data / 16
    Y = Y - Y.mean(0)
    Y = np.random.default_rng(seed).permutation(Y - Y.mean(1, keepdims=True))
    start = Y[:d] / np.linalg.norm(Y[:d], axis=1, keepdims=True)
    fastest = dict(fit_algorithm="cd", batch_size=32, dict_init=start)
    found = {}
    for name, learn in {
        "unrolled": partial(ours_within, seed=seed),
        "scikit-learn": partial(scikit_learn_within, random_state=seed),
        "scikit-learn, fastest": partial(scikit_learn_within, **fastest),
    }.items():
        time.sleep(0.3)
        D, batches, passed = learn(seconds, Y, d)
        value = objective(D, Y, DIGITS_LAM)
        found[name] = {"objective": value, "batches": batches, "seconds": passed}
    return found


def digits(seeds: int) -> dict[str, dict[str, dict[str, float]]]:
    """The median, the least and the largest of every number over the seeds, for every budget."""
    found = {}
    for d in DIGITS_ATOMS:
        within(0.1, d, 0)  # compiles and imports
    for d, seconds in itertools.product(DIGITS_ATOMS, BUDGETS):
        runs = [within(seconds, d, seed) for seed in range(seeds)]
        for run in runs:
            ours, *others = (contestant["objective"] for contestant in run.values())
            run["unrolled"]["ratio"] = ours / min(others)
        case = found[f"{d} atoms, {seconds} s"] = {
            name: {key: spread([run[name][key] for run in runs]) for key in runs[0][name]}
            for name in runs[0]
        }
        print(f"{d} atoms, {seconds} s: ratio {case['unrolled']['ratio']}", flush=True)
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "largest": max(values)}


def sweeps() -> dict[str, float]:
    """Seconds of a sweep of K-SVD and of MOD with codes of 10 atoms, in float32."""
    D = ur.dictionaries.gaussian(0, 250, 500)
    Y = np.asarray(ur.problems.exact_sparse(1, (10_000, 500), 10) @ D.T, np.float32)
    found = {}
    for name in ("ksvd", "mod"):
        learn = getattr(ur.dictionary_learning, name)
        history = learn(Y, 500, sparsity=10, sweeps=3).history
        found[name] = min(b.seconds - a.seconds for a, b in zip(history, history[1:]))
        print(f"a sweep of {name}: {found[name]:.2f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of part 1")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of part 2")
    parser.add_argument("--only", choices=("online", "digits", "sweeps"))
    default = Path(__file__).with_suffix(".json")
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    parts = {
        "online": lambda: compare(arguments.patches, arguments.rounds),
        "digits": lambda: digits(arguments.seeds),
        "sweeps": sweeps,
    }
    chosen = [arguments.only] if arguments.only else parts
    results = {name: parts[name]() for name in chosen}
    save(arguments.output, {"patches": arguments.patches, **results})


if __name__ == "__main__":
    main()
