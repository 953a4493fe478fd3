"""Prove one by one that LASSO codes of patches are optimal, from the signs after a few steps.

    python benchmarks/lasso_codes.py [--signals 6000]    writes lasso_codes.json
    python benchmarks/lasso_codes.py --table             prints the table of lasso_codes.json

The signals are 8x8 patches of two photographs with mean 0 and norm 1. For each photograph, a
dictionary of 64 x 128 is learned from one half of its columns. The dictionary is tested on patches
of the other half, and on patches of the other photograph. `theory.certify_lasso` begins with zero
codes, with codes of 16 steps of FISTA, and with codes of 16 learned steps of `lfista_cp`, trained
without codes as in the README. lam is one number: a tenth of the lam at which nine codes in ten are
0. The script compares all codes with codes of coordinate descent in scikit-learn at a duality gap
of 1e-15.
"""

import argparse
import json
import time
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import environment, markdown
from sklearn.datasets import load_sample_image
from sklearn.linear_model import lasso_path

import unrolled as ur

PATH = Path(__file__).with_suffix(".json")
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
ATOMS, DEPTH, STEPS = 128, 16, 2000


def patches(name: str, test: bool, n: int) -> np.ndarray:
    """Patches of one half of a photograph."""
    picture = load_sample_image(name).astype(float).mean(2)
    half = picture.shape[1] // 2
    picture = picture[:, half:] if test else picture[:, :half]
    windows = np.lib.stride_tricks.sliding_window_view(picture, (8, 8)).reshape(-1, 64)
    Y = np.random.default_rng(0).permutation(windows)[: 3 * n]
    Y = Y - Y.mean(1, keepdims=True)
    Y = Y[np.linalg.norm(Y, axis=1) > 1][:n]
    return (Y / np.linalg.norm(Y, axis=1, keepdims=True)).astype(np.float32)


def starts(D: np.ndarray, lam: float, Y: np.ndarray) -> dict:
    """The functions that compute codes, by name."""
    fista, layer = ur.layers.fista(DEPTH, lam=lam), ur.layers.lfista_cp(DEPTH, lam=lam)
    rate = optax.cosine_decay_schedule(5e-4, STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(0.01), optax.adam(rate))
    options = dict(optimizer=optimizer, steps=STEPS, key=0, loss=ur.training.lasso_loss(lam))
    learned = ur.fit(layer, layer.init(0, D), D, Y, **options).params
    return {
        "zero": lambda Y: np.zeros((len(Y), D.shape[1])),
        f"FISTA {DEPTH}": jax.jit(jax.vmap(partial(fista.apply, fista.init(0, D), D))),
        f"lfista_cp {DEPTH}, learned": jax.jit(jax.vmap(partial(layer.apply, learned, D))),
    }


def coordinate_descent(D: np.ndarray, Y: np.ndarray, lam: float) -> np.ndarray:
    """The codes of scikit-learn at a duality gap of 1e-15."""
    D, Y = np.asfortranarray(D, np.float64), Y.astype(float)
    options = dict(alphas=[lam / len(D)], tol=1e-15, max_iter=10**6, precompute=D.T @ D)
    return np.stack([lasso_path(D, y, Xy=D.T @ y, **options)[1][:, 0] for y in Y])


def row(D: np.ndarray, Y: np.ndarray, lam: float, given: np.ndarray, X: np.ndarray) -> dict:
    """Count the codes proved optimal and the repairs; measure distances to the optima and to X."""
    begun = time.process_time()
    proof = ur.theory.certify_lasso(D, Y, given, lam)
    seconds = time.process_time() - begun
    size = np.linalg.norm(proof.x, axis=1)
    far = proof.distance / np.where(size > 0, size, 1)
    return {
        "signals": len(Y),
        "nonzeros": float(np.count_nonzero(proof.x) / len(Y)),
        "unique": int(proof.unique.sum()),
        "at once": float(np.mean(proof.unique & (proof.repairs == 0))),
        "after 2": float(np.mean(proof.unique & (proof.repairs <= 2))),
        "most repairs": int(proof.repairs.max()),
        "median distance": float(np.median(far)),
        "largest distance": float(far.max()),
        "least margin": float(proof.margin.min() / lam),
        "us": 1e6 * seconds / len(Y),
        "from scikit-learn": float(np.abs(proof.x - X).max()),
    }


def main() -> None:
    """Run all measurements and write the JSON file, or print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signals", type=int, default=6000)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(PATH.read_text())["rows"]))
        return
    warnings.simplefilter("ignore")  # a gap of 1e-15 is below the rounding of some codes
    rows = []
    for learned_on in PHOTOGRAPHS:
        Y = patches(learned_on, False, 12_000)
        batches = jnp.split(jnp.asarray(Y), 40)
        D = np.asarray(ur.dictionary_learning.online(batches, ATOMS, lam=0.1, key=0).D)
        lam = ur.pursuit.default_lam(D, Y)
        codes = starts(D, lam, Y)
        for tested_on in PHOTOGRAPHS:
            tested = patches(tested_on, True, arguments.signals)
            X = coordinate_descent(D, tested, lam)
            for name, solve in codes.items():
                found = row(D, tested, lam, np.asarray(solve(tested)), X)
                rows.append(
                    {"learned on": learned_on, "tested on": tested_on, "from": name} | found
                )
                print(rows[-1], flush=True)
    PATH.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


def table(rows: list[dict]) -> str:
    """The table of the rows in Markdown."""
    return markdown(
        [
            {
                "photograph of the dictionary": r["learned on"][:-4],
                "photograph of the patches": r["tested on"][:-4],
                "source of the codes": r["from"],
                "codes proved": f"{r['unique']} of {r['signals']}",
                "codes proved without repair": f"{r['at once']:.1%}",
                "codes proved after 2 repairs": f"{r['after 2']:.1%}",
                "most repairs of a code": r["most repairs"],
                "median relative distance to the optimum": f"{r['median distance']:.2g}",
                "CPU microseconds per signal": f"{r['us']:.0f}",
            }
            for r in rows
        ]
    )


if __name__ == "__main__":
    main()
