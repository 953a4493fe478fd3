"""Reconstruct T1 slices of 256 x 256 from a quarter of the frequencies that eight coils measure.

    python benchmarks/mri.py            the rows, mri.json, and the figure; minutes on two cores
    python benchmarks/mri.py --table    prints the table of mri.json

The slices are axial slices of the MNI template, an average of 152 brains, which the package nilearn
ships (`pip install --no-deps nilearn`), with a random smooth phase. The frequencies are drawn with
a density that falls from the centre, and have noise of deviation 0.01 in each coil. The weights of
the LASSO and the params of the networks are chosen on 12 slices (the weights on two of them); the
rows are of three other slices and another mask.

The network is FISTA with a trained threshold for each band of the wavelets in each step. The
thresholds do not depend on the size of a picture: the networks are trained on a quarter of each
slice, 128 x 128 pixels. One network is trained on the codes of complete pictures,
the other one on the measured frequencies alone: it sees about 60 % of these frequencies, and its
loss compares the others.
"""

import argparse
import gzip
import json
import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from _measure import environment

import unrolled as ur

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
RESULTS = HERE / "mri.json"
N, COILS, SHARE, NOISE, LEVELS, DEPTH = 256, 8, 0.25, 0.01, 4, 10
STEPS, BATCH, RATE = 60, 2, 0.1
LAMS = 0.003, 0.004, 0.006, 0.008
VOLUME = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
CHOOSING, TESTED = range(46, 94, 4), range(102, 142, 16)  # planes of the volume
QUARTER = np.s_[..., : N // 2, : N // 2]  # what the networks train on
ud = ur.dictionaries


def grid(n):
    return np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]


def slices(planes, seed):
    """Axial slices with a smooth phase, in the middle of pictures of 256 x 256."""
    raw = gzip.decompress((Path(find_spec("nilearn").origin).parent / VOLUME).read_bytes())
    volume = np.frombuffer(raw, np.uint8, offset=352).reshape(189, 233, 197)  # z, y, x
    images = np.zeros((len(planes), N, N))
    images[:, 11:244, 29:226] = volume[list(planes), ::-1] / volume.max()
    v, u = grid(N)
    a, b, c = np.random.default_rng(seed).normal(size=(3, len(planes), 1, 1))
    return images * np.exp(1j * (2 * u * v * a + u * b + v * c))


def sensitivities():
    """Smooth complex maps of coils on a circle; the sum of squares is 1 at each pixel."""
    v, u = grid(N)
    angles = 2 * np.pi * np.arange(COILS) / COILS
    away = np.array([np.hypot(u - 1.2 * np.cos(a), v - 1.2 * np.sin(a)) for a in angles])
    maps = np.exp(-(away**2) + 1j * (away + angles[:, None, None]))
    return (maps / np.sqrt((abs(maps) ** 2).sum(0))).astype(np.complex64)


MAPS = sensitivities()


def drawn_mask(seed, n=N):
    density = np.minimum(0.12 / (np.hypot(*grid(n)) + 0.05), 1)
    density = np.minimum(density * SHARE / density.mean(), 1)
    return np.fft.ifftshift(np.random.default_rng(seed).random((n, n)) < density)


def measured(Z, mask, seed, maps=MAPS):
    """The frequencies of all coils, (pictures, coils n n)."""
    rng = np.random.default_rng(10 + seed)
    seen = maps * Z[:, None]
    noise = NOISE * rng.normal(size=(*seen.shape, 2)) @ [1, 1j] / np.sqrt(2)
    Y = mask * (np.fft.fft2(seen, norm="ortho") + noise)
    return Y.reshape(len(Z), -1).astype(np.complex64)


def dictionary(mask, name="sym4", maps=MAPS):
    frequencies = ud.fourier(maps.shape, mask, axes=(1, 2))
    return frequencies @ ud.coils(maps) @ ud.wavelet(maps.shape[1:], name, LEVELS)


def zero_filled(y):
    return (MAPS.conj() * np.fft.ifft2(y.reshape(COILS, N, N), norm="ortho")).sum(0)


@jax.jit
def picture(D, x):
    """The picture of a code: the last factor of D is the synthesis of wavelets."""
    return ud.from_pairs(D.factors[-1] @ ud.to_pairs(x)).reshape(N, N)


def bands(size):
    """The band of each wavelet coefficient, flat: 0 is the coarsest, and each level has three."""
    of = np.zeros((size, size), np.int32)
    for level in range(LEVELS):
        n = size >> (LEVELS - level)
        for band, (i, j) in enumerate(((0, n), (n, 0), (n, n)), 1):
            of[i : i + n, j : j + n] = 3 * level + band
    return of.ravel()


class Bands(NamedTuple):
    """The params of one step: a step size, and thresholds in units of lam."""

    gamma: Any
    theta: Any  # (bands,)


class _bands(ur.layers.fista):
    """FISTA with a threshold for each band of the wavelets in each step."""

    forms = (ur.layers.Unrolled(None, Bands),)

    def init(self, key, D):
        gamma = ur.layers.fista(self.depth).init(key, D).steps.gamma
        theta = jnp.tile(gamma[:, None], 3 * LEVELS + 1)
        return ur.layers.Unrolled(None, Bands(gamma, theta))

    def step(self, shared, p, D, y, state):
        of = bands(math.isqrt(D.shape[1] // 2))
        theta = self.lam * ur.layers.magnitude(p.theta)[of]
        return super().step(shared, p._replace(theta=theta), D, y, state)


def seen(key):
    """The frequencies that a layer sees in training: 60 %, and all of the lowest."""
    low = np.fft.ifftshift(np.hypot(*grid(N // 2)) < 0.05)
    return jnp.tile((jax.random.bernoulli(key, 0.6, low.shape) | low).ravel(), COILS)


def trained(layer, Z):
    """The params at the start, trained on complete pictures, and on frequencies alone."""
    maps, Z, mask = MAPS[QUARTER], Z[QUARTER], drawn_mask(0, N // 2)
    Y = measured(Z, mask, 0, maps)
    D, whole = dictionary(mask, maps=maps), dictionary(None, maps=maps)
    analyze = jax.jit(jax.vmap(lambda z: z @ D.factors[-1]))
    X = analyze(ud.to_pairs(Z.reshape(len(Z), -1).astype(np.complex64)))
    pairs = jnp.asarray(ud.to_pairs(Y))

    def sample(key):
        some = jax.random.choice(key, len(pairs), (BATCH,), replace=False)
        return pairs[some], X[some]

    known = np.tile(mask.ravel(), COILS)
    alone = ur.training.withholding(whole, Y, seen=seen, mask=known, batch=BATCH)
    start = layer.init(None, D)
    adam = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))
    how = {"optimizer": adam, "steps": STEPS, "evaluate_every": STEPS // 3, "key": 0}
    how["trainable"] = ur.layers.Unrolled(False, Bands(gamma=False, theta=True))
    losses = (D, sample, ur.training.supervised), (whole, alone, ur.training.withheld)
    fits = [
        ur.fit(layer, start, on, batches, loss=loss, progress=False, **how)
        for on, batches, loss in losses
    ]
    return start, *(fit.best for fit in fits), [round(fit.seconds) for fit in fits]


def scores(pictures, Z, seconds):
    """PSNR and SSIM of the modulus, of each picture, and the median of the seconds."""
    a, b = (np.abs(each).astype(np.float32) for each in (np.stack(pictures), Z))
    psnr = [round(float(ur.metrics.psnr(*pair)), 2) for pair in zip(a, b)]
    ssim = np.asarray(ur.metrics.ssim(a, b), float).round(4).tolist()
    return {"psnr": psnr, "ssim": ssim, "seconds": round(float(np.median(seconds)), 3)}


def solved(code, D, Y):
    """The pictures, and the seconds of each after a first call; D is no constant of the program."""
    code, pictures, seconds = jax.jit(code), [], []
    jax.block_until_ready(code(D, Y[0]))
    for y in Y:
        began = time.perf_counter()
        x = jax.block_until_ready(code(D, y))
        seconds.append(time.perf_counter() - began)
        pictures.append(np.asarray(picture(D, x)))
    return pictures, seconds


def lasso(lam):
    return lambda D, y: ur.pursuit.fista(D, y, lam, tol=1e-4, max_steps=300).x


def best_weight(Z, Y, D):
    """The weight whose codes have the largest PSNR on two pictures."""

    def quality(lam):
        pictures, seconds = solved(lasso(lam), D, Y[:2])
        return np.mean(scores(pictures, Z[:2], seconds)["psnr"])

    return max(LAMS, key=quality)


def results():
    masks = drawn_mask(0), drawn_mask(1)
    Z, T = slices(CHOOSING, 0), slices(TESTED, 1)
    Y, S = measured(Z, masks[0], 0), measured(T, masks[1], 1)
    pictures = {"zero-filled": ([zero_filled(y) for y in S], [0])}
    weights = {}
    for name in ("haar", "sym4"):
        weights[name] = best_weight(Z, Y, dictionary(masks[0], name))
        test = dictionary(masks[1], name)
        pictures[f"LASSO, {name}"] = solved(lasso(weights[name]), test, S)
        print(name, weights[name], scores(pictures[f"LASSO, {name}"][0], T, [0]), flush=True)
    eps = NOISE * (COILS * masks[1].sum()) ** 0.5
    bpdn = "basis pursuit denoising, sym4"
    pictures[bpdn] = solved(lambda D, y: ur.pursuit.bpdn(D, y, eps, tol=1e-2).x, test, S)
    layer = _bands(DEPTH, lam=weights["sym4"])
    *params, costs = trained(layer, Z)
    for name, each in zip(NETWORKS, params):
        pictures[name] = solved(lambda D, y, each=each: layer.apply(each, D, y), test, S)
    rows = {name: scores(each, T, seconds) for name, (each, seconds) in pictures.items()}
    figure(T[0], {name: each[0] for name, (each, _) in pictures.items()}, rows)
    thetas = [np.abs(np.asarray(each.steps.theta)).round(3).tolist() for each in params]
    found = {"rows": rows, "weights": weights, "seconds of training": costs}
    found |= {"thresholds of the last step": {n: t[-1] for n, t in zip(NETWORKS, thetas)}}
    RESULTS.write_text(json.dumps(found | {"environment": environment()}, indent=1) + "\n")


NETWORKS = (
    f"FISTA, {DEPTH} steps",
    f"network, {DEPTH} steps, complete pictures",
    f"network, {DEPTH} steps, frequencies alone",
)


def figure(image, found, rows):
    """The modulus of each reconstruction above its error, which is drawn ten times as bright."""
    shown = ("zero-filled", "LASSO, sym4", *NETWORKS[1:])
    fig, axes = plt.subplots(2, 5, figsize=(10, 4.6), layout="constrained")
    axes[0, 0].imshow(abs(image), cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("picture", fontsize=9)
    axes[1, 0].text(0.5, 0.5, "errors, ten times\nas bright", ha="center", va="center")
    for (above, below), name in zip(axes.T[1:], shown):
        above.imshow(abs(found[name]), cmap="gray", vmin=0, vmax=1)
        below.imshow(abs(abs(found[name]) - abs(image)), cmap="gray", vmin=0, vmax=0.1)
        above.set_title(name.replace(" steps, ", " steps,\n"), fontsize=9)
        below.set_title(f"{rows[name]['psnr'][0]:.1f} dB, SSIM {rows[name]['ssim'][0]:.3f}")
    for axis in axes.flat:
        axis.set_axis_off()
    fig.savefig(HERE / "mri.png", dpi=110)


def table():
    found = json.loads(RESULTS.read_text())
    print("| method | PSNR, dB | range of PSNR, dB | SSIM | seconds |\n|---|---|---|---|---|")
    for name, row in found["rows"].items():
        psnr, ssim, seconds = row["psnr"], np.mean(row["ssim"]), row["seconds"]
        span = f"{min(psnr):.1f} to {max(psnr):.1f}"
        cost = f"{seconds:.2f}" if seconds else ""
        print(f"| {name} | {np.mean(psnr):.1f} | {span} | {ssim:.3f} | {cost} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        results()
    table()
