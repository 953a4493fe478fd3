"""Reconstruct 256 x 256 pictures from a quarter of their frequencies: LASSO and a network.

    python benchmarks/mri.py            the rows, mri.json, and the figure, minutes on one core
    python benchmarks/mri.py --table    prints the table of mri.json

The pictures have twelve random ellipses and a smooth phase. The frequencies are drawn with a
density that falls from the centre, and have noise of deviation 0.01. The weight of each LASSO, and
the params of the network, are chosen on 12 pictures (the weights on four of them); the rows are of
five other pictures and another mask.
"""

import argparse
import json
from pathlib import Path

import jax
import matplotlib
import numpy as np
import optax
from _measure import environment

import unrolled as ur

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
RESULTS = HERE / "mri.json"
N, SHARE, NOISE, LEVELS, DEPTH = 256, 0.25, 0.01, 4, 10
CHOOSING, TESTED, STEPS, BATCH, RATE = 12, 5, 150, 2, 0.02
LAMS = 0.002, 0.004, 0.008
WAVELETS = {"Haar": "haar", "Daubechies 4": "db4"}
ud = ur.dictionaries


def picture(rng):
    """Random ellipses with a smooth phase; the largest modulus is 1."""
    v, u = np.mgrid[-1 : 1 : N * 1j, -1 : 1 : N * 1j]
    image = 0.3 * (u**2 + v**2 < 0.8)
    for _ in range(12):
        x, y, angle = *rng.uniform(-0.5, 0.5, 2), rng.uniform(0, np.pi)
        a, b = rng.uniform(0.05, 0.35, 2)
        along = (u - x) * np.cos(angle) + (v - y) * np.sin(angle)
        across = (v - y) * np.cos(angle) - (u - x) * np.sin(angle)
        image += rng.uniform(-0.1, 0.3) * ((along / a) ** 2 + (across / b) ** 2 < 1)
    image = np.maximum(image, 0) / image.max()
    return image * np.exp(1j * (2 * u * v * rng.normal() + u * rng.normal() + v * rng.normal()))


def problem(seed, pictures):
    """A mask, (n, n), the pictures, and their measured frequencies, flat."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[-1 : 1 : N * 1j, -1 : 1 : N * 1j]
    density = np.minimum(0.12 / (np.hypot(u, v) + 0.05), 1)
    density = np.minimum(density * SHARE / density.mean(), 1)
    mask = np.fft.ifftshift(rng.random((N, N)) < density)
    Z = np.stack([picture(rng) for _ in range(pictures)])
    noise = NOISE * rng.normal(size=(*Z.shape, 2)) @ [1, 1j] / np.sqrt(2)
    Y = mask * (np.fft.fft2(Z, norm="ortho") + noise)
    return mask, Z, Y.reshape(pictures, -1).astype(np.complex64)


def psnr(found, Z):
    """dB of the modulus, for each picture."""
    error = np.abs(found.reshape(Z.shape)) - np.abs(Z)
    return -10 * np.log10(np.mean(error**2, (1, 2)))


def shown(D, X):
    """The pictures of codes: the last factor of D is the synthesis of wavelets."""
    synthesize = jax.jit(jax.vmap(lambda x: D.factors[-1] @ x))
    return np.asarray(ud.from_pairs(synthesize(ud.to_pairs(np.asarray(X)))))


def dictionary(mask, name):
    return ud.fourier((N, N), mask) @ ud.wavelet((N, N), name, LEVELS)


def lasso(D, lam):
    return jax.jit(lambda y: ur.pursuit.fista(D, y, lam, tol=1e-6, max_steps=300))


def coded(solve, Y):
    return np.stack([np.asarray(solve(y).x) for y in Y])


def trained(mask, Z, Y, lam):
    """A network of FISTA steps whose step sizes and thresholds are trained on pairs of pictures."""
    D, layer = dictionary(mask, "haar"), ur.layers.fista(DEPTH, lam=lam)
    W = jax.jit(jax.vmap(lambda z: z @ D.factors[-1]))
    X = W(ud.to_pairs(Z.reshape(len(Z), -1).astype(np.complex64)))
    Y = jax.numpy.asarray(ud.to_pairs(Y))

    def sample(key):
        some = jax.random.choice(key, len(Y), (BATCH,), replace=False)
        return Y[some], X[some]

    start, adam = layer.init(None, D), optax.adam(RATE)
    fit = ur.fit(layer, start, D, sample, optimizer=adam, steps=STEPS, key=0)
    return layer, fit


def measured():
    mask, Z, Y = problem(0, CHOOSING)
    other, T, S = problem(1, TESTED)
    rows, codes = {"zero-filled": psnr(np.fft.ifft2(S.reshape(T.shape), norm="ortho"), T)}, {}
    weights = {}
    for name, wavelet in WAVELETS.items():
        D = dictionary(mask, wavelet)
        scores = {lam: psnr(shown(D, coded(lasso(D, lam), Y[:4])), Z[:4]).mean() for lam in LAMS}
        weights[name] = max(scores, key=scores.get)
        test = dictionary(other, wavelet)
        codes[name] = shown(test, coded(lasso(test, weights[name]), S))
        rows[f"LASSO, {name}"] = psnr(codes[name], T)
    layer, fit = trained(mask, Z, Y, weights["Haar"])
    test = dictionary(other, "haar")
    run = jax.jit(lambda params, y: layer.apply(params, test, y))
    for name, params in (("FISTA", layer.init(None, test)), ("network", fit.best)):
        codes[name] = shown(test, np.stack([np.asarray(run(params, y)) for y in S]))
        rows[f"{name}, {DEPTH} steps"] = psnr(codes[name], T)
    figure(T[0], np.fft.ifft2(S[0].reshape(N, N), norm="ortho"), codes, rows)
    rows = {name: [round(float(v), 2) for v in row] for name, row in rows.items()}
    steps = [int(lasso(test, weights["Haar"])(y).steps) for y in S]
    found = {"rows": rows, "weights": weights, "steps of the LASSO, Haar": steps}
    RESULTS.write_text(json.dumps(found | {"environment": environment()}, indent=1) + "\n")


def figure(picture, zero_filled, codes, rows):
    panels = {"picture": picture, "zero-filled": zero_filled}
    panels |= {"LASSO, Haar": codes["Haar"][0].reshape(N, N)}
    panels |= {f"network, {DEPTH} steps": codes["network"][0].reshape(N, N)}
    fig, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
    for axis, (name, panel) in zip(axes, panels.items()):
        axis.imshow(np.abs(panel), cmap="gray", vmin=0, vmax=1)
        score = f"\n{rows[name][0]:.1f} dB" if name in rows else "\n"
        axis.set_title(name + score, fontsize=9)
        axis.set_axis_off()
    fig.savefig(HERE / "mri.png", dpi=110)


def table():
    found = json.loads(RESULTS.read_text())
    print("| method | mean PSNR, dB | range of PSNR, dB |\n|---|---|---|")
    for name, row in found["rows"].items():
        print(f"| {name} | {np.mean(row):.1f} | {min(row):.1f} to {max(row):.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        measured()
    table()
