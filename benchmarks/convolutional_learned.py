"""Ten learned steps on a convolution next to FISTA and ADMM: the gap of a picture, and seconds.

    python benchmarks/convolutional_learned.py            trains; convolutional_learned.json
    python benchmarks/convolutional_learned.py --seconds  measures the seconds of its rows again
    python benchmarks/convolutional_learned.py --table    prints the table of the rows

The problem is the first case of `convolutional_codes.py`: 128 x 128 pixels of one photograph, 16
filters from the other. `training.unsupervised` trains `lfista_cp` without codes, on windows of
24 x 24 pixels of the photograph of the filters; the learned filters fit any size. Seconds are
medians of nine calls, after a first one.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from _measure import all_ms, markdown, save
from convolutional_codes import CASES, LAM, data

import unrolled as ur

RESULTS = Path(__file__).with_suffix(".json")
PARAMS = RESULTS.with_suffix(".npz")
DEPTH, WINDOW, WINDOWS, STEPS = 10, 24, 2000, 100


def windows():
    """High-passed windows of the photograph of the filters, (WINDOWS, WINDOW, WINDOW)."""
    from scipy.ndimage import gaussian_filter
    from sklearn.datasets import load_sample_image

    flower = load_sample_image("flower.jpg").mean(2) / 255
    flower = flower - gaussian_filter(flower, 2.0)
    rng, (height, width) = np.random.default_rng(1), flower.shape
    corners = zip(
        rng.integers(0, height - WINDOW, WINDOWS), rng.integers(0, width - WINDOW, WINDOWS)
    )
    return np.stack([flower[i : i + WINDOW, j : j + WINDOW] for i, j in corners]).astype(np.float32)


def dictionary(filters, side):
    return ur.dictionaries.Conv(filters[:, None], (side, side), boundary="circular")


def train(filters):
    """Save the arrays, which do not depend on the size of a picture, and the seconds."""
    D = dictionary(filters, WINDOW)
    options = dict(depth=DEPTH, key=0, family="lfista_cp", steps=STEPS, progress=False)
    trained = ur.training.unsupervised(D, windows().reshape(WINDOWS, -1), LAM, **options)
    np.savez(PARAMS, *jax.tree.leaves(trained.params), trained.seconds)


def methods(D, leaves):
    """A compiled function of a picture for each row of the table."""
    layers = {"lfista_cp, 10 trained steps": (ur.layers.lfista_cp(DEPTH, lam=LAM), leaves)}
    for depth in (10, 20, 40):
        layers[f"FISTA, {depth} steps"] = ur.layers.fista(depth, lam=LAM), None
    codes = {}
    for name, (layer, arrays) in layers.items():
        params = layer.init(None, D)
        if arrays is not None:
            params = jax.tree.unflatten(jax.tree.structure(params), arrays)
        codes[name] = jax.jit(lambda y, own=(layer, params): own[0].apply(own[1], D, y.reshape(-1)))
    for steps in (10, 20, 40, 100):
        codes[f"ADMM, {steps} steps"] = jax.jit(
            lambda y, steps=steps: ur.pursuit.lasso(D, y, LAM, tol=1e-9, max_steps=steps).x
        )
    return codes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seconds", action="store_true")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.table:
        return print(table(results))
    pictures, filters = data(*CASES["128 x 128, 16 filters"])
    y, D = pictures[0], dictionary(filters, pictures.shape[1])
    if not options.seconds:
        train(filters)
    with np.load(PARAMS) as file:
        arrays = [file[name] for name in file.files]
    codes = methods(D, arrays[:-1])
    half = float(np.sum(y.astype(float) ** 2)) / 2
    with jax.enable_x64(True):
        wide = dictionary(filters.astype(float), y.shape[0])
        least = ur.pursuit.lasso(wide, y.astype(float), LAM, tol=1e-6, max_steps=5000)
        value = partial(ur.pursuit.lasso_objective, wide, y.astype(float), lam=LAM)
        gaps = {name: float(value(x=np.asarray(code(y), float))) for name, code in codes.items()}
        lowest = float(value(x=least.x))
    calls = {
        name: partial(lambda code: jax.block_until_ready(code(y)), code)
        for name, code in codes.items()
    }
    rows = [
        {"method": name, "gap": (gaps[name] - lowest) / half, "ms": sorted(ms)}
        for name, ms in all_ms(calls, rounds=3, calls=3).items()
    ]
    save(RESULTS, {"training seconds": round(float(arrays[-1])), "rows": rows})
    print(table(json.loads(RESULTS.read_text())))


def table(results):
    lines = [
        {"method": row["method"], "gap": f"{row['gap']:.1e}", "ms": f"{np.median(row['ms']):.1f}"}
        for row in results["rows"]
    ]
    return markdown(lines)


if __name__ == "__main__":
    main()
