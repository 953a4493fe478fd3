"""Compare predictions of state evolution with measured errors on twenty dictionaries.

For each dictionary, state evolution predicts the errors of five families under three laws of codes
and noise. Each layer codes 4,000 fresh signals. `apart` is the largest difference over all steps
between the predicted error and the median error of the signals; errors below -100 dB count as -100
dB.

    python benchmarks/holds.py            adds the rows that are missing to holds.json
    python benchmarks/holds.py --table    prints the table of holds.json
"""

import json
import math
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _measure import environment

import unrolled as ur

PATH = Path(__file__).with_suffix(".json")
K, SIGNALS, FLOOR = 16, 4000, -100.0
LAWS = {"no noise": (0.1, 0.0), "SNR 20": (0.1, 20.0), "half as many": (0.05, 0.0)}
FAMILIES = ("lamp", "lamp_bg", "vamp_bg", "alista_at", "tista")


def rng(seed):
    return np.random.default_rng(seed)


def autoregressive(m, d, rho):
    lags = np.arange(d)
    return rng(1).normal(size=(m, d)) @ np.linalg.cholesky(rho ** abs(lags[:, None] - lags)).T


def patches(m, d, picture):
    """Atoms learned from mean-free patches of a photograph."""
    from sklearn.datasets import load_sample_image

    gray, side = load_sample_image(picture).mean(-1) / 255, math.isqrt(m)
    corners = np.stack([rng(0).integers(0, size - side, 10_000) for size in gray.shape], 1)
    Y = np.stack([gray[i : i + side, j : j + side].ravel() for i, j in corners])
    Y = (Y - Y.mean(1, keepdims=True)).astype(np.float32)
    Y /= np.sqrt(np.mean(np.sum(Y**2, 1)))
    return ur.dictionary_learning.online(np.split(Y, 40), d, lam=0.1, key=0).D


def shifts(m, d):
    """Circular shifts of a few random filters."""
    filters = rng(2).normal(size=(d // m, m)) * np.exp(-np.arange(m) / 8)
    return np.stack([np.roll(f, i) for f in filters for i in range(m)], 1)


def heavy(m, d):
    return rng(3).standard_t(2.5, size=(m, d))


def sparse(m, d):
    return rng(4).normal(size=(m, d)) * (rng(5).random((m, d)) < 0.1)


def rotated(m, d, condition):
    """A matrix with random singular vectors and geometric singular values."""
    U, V = (np.linalg.qr(rng(6 + n).normal(size=(n, m)))[0] for n in (m, d))
    return U * condition ** (-np.arange(m) / (m - 1)) @ V.T


def clusters(m, d):
    """Atoms in groups of eight neighbours."""
    centres = np.repeat(rng(8).normal(size=(m, d // 8)), 8, axis=1)
    return centres + rng(9).normal(size=(m, d))


def fourier(m, d):
    """Random rows of a DCT matrix with random signs of the columns."""
    from scipy.fft import dct

    basis = dct(np.diag(rng(10).choice([-1.0, 1.0], d)), norm="ortho", axis=0)
    return basis[rng(11).permutation(d)[:m]]


DICTIONARIES = {
    "Gaussian 64 x 128": lambda: rng(0).normal(size=(64, 128)),
    "Gaussian 100 x 200": lambda: rng(20).normal(size=(100, 200)),
    "Gaussian 250 x 500": lambda: rng(0).normal(size=(250, 500)),
    "Gaussian 250 x 1000": lambda: rng(0).normal(size=(250, 1000)),
    "signs 250 x 500": lambda: rng(12).choice([-1.0, 1.0], (250, 500)),
    "heavy tails 250 x 500": partial(heavy, 250, 500),
    "a tenth of the entries 250 x 500": partial(sparse, 250, 500),
    "cosines 250 x 500": partial(fourier, 250, 500),
    "AR .8 64 x 128": partial(autoregressive, 64, 128, 0.8),
    "AR .8 250 x 500": partial(autoregressive, 250, 500, 0.8),
    "AR .5 250 x 500": partial(autoregressive, 250, 500, 0.5),
    "AR .3 250 x 500": partial(autoregressive, 250, 500, 0.3),
    "condition 5 250 x 500": partial(rotated, 250, 500, 5.0),
    "condition 50 250 x 500": partial(rotated, 250, 500, 50.0),
    "condition 15 100 x 200": partial(rotated, 100, 200, 15.0),
    "clusters 250 x 504": partial(clusters, 250, 504),
    "shifts 64 x 128": partial(shifts, 64, 128),
    "DCT 64 x 128": lambda: np.asarray(ur.dictionaries.dct(64, 128)),
    "learned, china 64 x 128": partial(patches, 64, 128, "china.jpg"),
    "learned, flower 64 x 128": partial(patches, 64, 128, "flower.jpg"),
}


def layer_of(name, probability, noise, ratio):
    prior = dict(probability=probability)
    return {
        "lamp": lambda: ur.layers.lamp(K),
        "lamp_bg": lambda: ur.layers.lamp_bg(K, **prior),
        "vamp_bg": lambda: ur.layers.vamp_bg(K, **prior, noise_ratio=ratio),
        "alista_at": lambda: ur.layers.alista_at(K, onsager=True),
        "tista": lambda: ur.layers.tista(K, **prior, noise=noise, onsager=True),
    }[name]()


def row_of(name, D, family, law):
    probability, snr = LAWS[law]
    m, d = D.shape
    noise = d * probability / m * 10 ** (-snr / 10) if snr else 0.0
    ratio = max(noise * m / (d * probability), 1e-9)
    layer = layer_of(family, probability, noise, ratio)
    told = ur.theory.state_evolution(layer, D, probability=probability, noise=noise)
    params = layer.init(None, D)
    if told.thresholds is not None:
        make = ur.analytic.lamp if family == "lamp" else ur.analytic.alista_at
        options = dict(probability=probability, noise=noise, margin=1.0)
        if family == "alista_at":
            options["support"] = layer.support
        params = make(D, K, **options)
    draw = rng(99)
    X = draw.standard_normal((SIGNALS, d)) * (draw.random((SIGNALS, d)) < probability)
    Y = X @ np.asarray(D, float).T + math.sqrt(noise) * draw.standard_normal((SIGNALS, m))
    codes = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))
    parts = np.array_split(np.arange(SIGNALS), 4)
    errors = [
        np.sum((np.asarray(codes(params, D, jnp.float32(Y[i])), float) - X[i, None]) ** 2, -1)
        for i in parts
    ]
    energies = np.sum(X**2, 1)
    some = energies > 0
    with np.errstate(divide="ignore"):
        nmse = np.median(10 * np.log10(np.concatenate(errors)[some] / energies[some, None]), 0)
    predicted = np.maximum(told.nmse[1:], FLOOR)
    apart = np.abs(np.maximum(nmse, FLOOR) - predicted)
    return {
        "dictionary": name,
        "family": family,
        "law": law,
        "holds": bool(told.holds),
        "apart": float(np.nan_to_num(apart, nan=1e3).max()),
        "predicted": float(told.nmse[-1]),
        "measured": float(nmse[-1]),
        "reason": told.reason,
    }


def main():
    saved = json.loads(PATH.read_text()) if PATH.exists() else {"rows": []}
    if "--table" in sys.argv:
        return print(table(saved["rows"]))
    done = {(r["dictionary"], r["family"], r["law"]) for r in saved["rows"]}
    for name, make in DICTIONARIES.items():
        if all((name, f, law) in done for f in FAMILIES for law in LAWS):
            continue
        D = ur.dictionaries.normalize(jnp.asarray(make(), jnp.float32))[0]
        for family in FAMILIES:
            for law in LAWS:
                if (name, family, law) in done:
                    continue
                row = row_of(name, D, family, law)
                saved["rows"].append(row)
                saved["environment"] = environment()
                PATH.write_text(json.dumps(saved, indent=1) + "\n")
                print(row, flush=True)


def table(rows):
    lines = [
        "| dictionary | predictions with `holds` | largest distance with `holds`, dB | distances "
        "without `holds`, dB |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["dictionary"] for r in rows):
        here = [r for r in rows if r["dictionary"] == name]
        yes = [r["apart"] for r in here if r["holds"]]
        no = [r["apart"] for r in here if not r["holds"]]
        span = f"{min(no):.1f} to {min(max(no), 999):.1f}" if no else ""
        lines.append(
            f"| {name} | {len(yes)} of {len(here)} | {f'{max(yes):.1f}' if yes else ''} | {span} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
