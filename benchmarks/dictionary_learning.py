"""Dictionary learning beside other libraries: seconds and the objective on signals held back.

    python benchmarks/dictionary_learning.py [--patches 100000] [--output dictionary_learning.json]

Online learning of 256 atoms from 8x8 patches of photographs, without their means and of unit norm,
in one pass: every contestant starts from the same patches and has the same batches and penalty.
The objective is the mean of 1/2 norm(y - D x)^2 + lam norm(x, 1) over 5000 other patches, with
codes of `lasso_batch` in unit atoms, in float64. SPAMS takes part where it is installed. Then
seconds for a sweep of K-SVD and of MOD, 500 atoms of 250 entries from 10,000 signals.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _measure import save
from sklearn.decomposition import MiniBatchDictionaryLearning

import unrolled as ur

ATOMS, BATCH, LAM, HELD_BACK = 256, 512, 0.15, 5000


def patches(n: int) -> np.ndarray:
    """n patches of photographs, (n, 64), without their means and of unit norm, in float32."""
    rng = np.random.default_rng(0)
    found = []
    for picture in ur.datasets.photographs().values():
        windows = np.lib.stride_tricks.sliding_window_view(picture, (8, 8))
        rows, columns = (rng.integers(0, size, n) for size in windows.shape[:2])
        found.append(windows[rows, columns].reshape(-1, 64))
    Y = np.concatenate(found)
    Y = Y - Y.mean(1, keepdims=True)
    norms = np.linalg.norm(Y, axis=1, keepdims=True)
    Y, norms = Y[norms[:, 0] > 0.1], norms[norms[:, 0] > 0.1]
    return rng.permutation(Y / norms)[:n].astype(np.float32)


def objective(D: np.ndarray, Y: np.ndarray) -> float:
    """The mean objective for unit atoms."""
    with jax.enable_x64(True):
        D, Y = np.asarray(D, float), np.asarray(Y, float)
        D = D / np.linalg.norm(D, axis=0)
        X = np.asarray(ur.pursuit.lasso_batch(jnp.asarray(D), Y, LAM, tol=1e-5).x)
    return float((np.sum((Y - X @ D.T) ** 2) / 2 + LAM * np.abs(X).sum()) / len(Y))


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
    """The learning of SPAMS in float64, in which it is faster; None where it is not installed."""
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


def compare(n: int, rounds: int) -> dict[str, dict[str, float]]:
    """The least seconds and the objective of every contestant, in turns."""
    Y = patches(n + HELD_BACK)
    learners = {"unrolled": ours, "scikit-learn": scikit_learn, "SPAMS": spams_learning()}
    learners = {name: learn for name, learn in learners.items() if learn is not None}
    found: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, learn in learners.items():
            time.sleep(0.3)
            began = time.perf_counter()
            D = learn(Y[:n])
            seconds = time.perf_counter() - began
            if name in found:
                found[name]["seconds"] = min(found[name]["seconds"], seconds)
            else:
                found[name] = {"seconds": seconds, "objective": objective(D, Y[n:])}
            print(f"{name}: {seconds:.2f} s, objective {found[name]['objective']:.6f}", flush=True)
    return found


def sweeps() -> dict[str, float]:
    """Seconds of a sweep of K-SVD and of MOD, codes of 10 atoms, in float32."""
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
    parser.add_argument("--rounds", type=int, default=2)
    default = Path(__file__).with_suffix(".json")
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {
        "patches": arguments.patches,
        "online": compare(arguments.patches, arguments.rounds),
        "seconds of a sweep": sweeps(),
    }
    save(arguments.output, results)


if __name__ == "__main__":
    main()
