"""Reconstruct T1 slices of 256 x 256 from a quarter of the frequencies of one coil, or of eight.

    python benchmarks/mri.py            adds missing rows to mri.jsonl and draws mri.png; minutes
    python benchmarks/mri.py --table    prints the table of mri.jsonl

The slices are axial slices of the MNI template, an average of 152 brains, which the package nilearn
ships (`pip install --no-deps nilearn`), with a random smooth phase. The frequencies are drawn with
a density that falls from the centre, and have noise of deviation 0.01 in each coil. The weight of
each method is the best of LAMS on two slices. These two slices also choose the params of the
networks, which train on 12 other slices. The rows are of three further slices and another mask.

A network is FISTA with a trained step size and threshold for each step. One network is trained on
the codes of complete pictures, the other one on the measured frequencies alone: it sees about 60 %
of these frequencies, and its loss compares the others. This network trains only the thresholds,
because step sizes for 60 % of the frequencies are too long for all of them.
"""

import argparse
import functools
import gzip
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from _measure import environment, markdown, rows_of

import unrolled as ur

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
RESULTS = HERE / "mri.jsonl"
PICTURES = HERE.parent / "build" / "mri"  # for the figure
N, SHARE, NOISE, LEVELS, DEPTH = 256, 0.25, 0.01, 4, 10
STEPS, BATCH, RATE = {1: 160, 8: 60}, 2, 0.03
LAMS = 0.004, 0.006, 0.009, 0.013
VOLUME = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
TESTED, CHOOSING = (90, 110, 130), (100, 120)  # planes of the volume
TRAINING = (82, 86, 94, 98, 102, 106, 114, 118, 122, 126, 134, 138)
SHIFTS = (0, 0), (1, 2), (2, 1), (3, 3)
ud = ur.dictionaries


class Scan(NamedTuple):
    """What the coils measure of slices."""

    slices: Any  # (slices, N, N), complex; the largest modulus is 1
    maps: Any  # (coils, N, N)
    mask: Any  # (N, N), the frequency 0 first
    Y: Any  # (slices, coils N N)

    def dictionary(self, wavelets, mask=None):
        mask = self.mask if mask is None else mask
        return ud.fourier(self.maps.shape, mask, axes=(1, 2)) @ ud.coils(self.maps) @ wavelets


GRID = np.mgrid[-1 : 1 : N * 1j, -1 : 1 : N * 1j]


def phased(planes, seed):
    """Axial slices with a smooth phase, in the middle of pictures of 256 x 256."""
    raw = gzip.decompress((Path(find_spec("nilearn").origin).parent / VOLUME).read_bytes())
    volume = np.frombuffer(raw, np.uint8, offset=352).reshape(189, 233, 197)  # z, y, x
    images = np.zeros((len(planes), N, N))
    images[:, 11:244, 29:226] = volume[list(planes), ::-1] / volume.max()
    v, u = GRID
    a, b, c = np.random.default_rng(seed).normal(size=(3, len(planes), 1, 1))
    return images * np.exp(1j * (2 * u * v * a + u * b + v * c))


def sensitivities(coils):
    """Smooth complex maps of coils on a circle; the sum of squares is 1 at each pixel."""
    v, u = GRID
    angles = 2 * np.pi * np.arange(coils) / coils
    away = np.array([np.hypot(u - 1.2 * np.cos(a), v - 1.2 * np.sin(a)) for a in angles])
    maps = np.exp(-(away**2) + 1j * (away + angles[:, None, None]))
    return (maps / np.sqrt((abs(maps) ** 2).sum(0))).astype(np.complex64)


def drawn_mask(seed):
    density = np.minimum(0.12 / (np.hypot(*GRID) + 0.05), 1)
    density = np.minimum(density * SHARE / density.mean(), 1)
    return np.fft.ifftshift(np.random.default_rng(seed).random((N, N)) < density)


def scanned(planes, coils, seed, mask_seed):
    Z, maps, mask = phased(planes, seed), sensitivities(coils), drawn_mask(mask_seed)
    rng = np.random.default_rng(10 + seed)
    seen = maps * Z[:, None]
    noise = NOISE * rng.normal(size=(*seen.shape, 2)) @ [1, 1j] / np.sqrt(2)
    Y = mask * (np.fft.fft2(seen, norm="ortho") + noise)
    return Scan(Z, maps, mask, Y.reshape(len(Z), -1).astype(np.complex64))


def shifted(W, shifts=SHIFTS):
    """The frame of the wavelets at several shifts, divided by the root of their number."""
    parts = len(shifts)

    def synthesize(x):
        pictures = [(W @ one).reshape(N, N) for one in x.reshape(parts, -1)]
        return sum(map(jnp.roll, pictures, shifts, parts * [(0, 1)])).ravel() / parts**0.5

    def analyze(z):
        back = [jnp.roll(z.reshape(N, N), (-i, -j), (0, 1)) for i, j in shifts]
        return jnp.concatenate([one.ravel() @ W for one in back]) / parts**0.5

    norms = np.full(parts * N * N, parts**-0.5, np.float32)
    return ud.from_functions(synthesize, analyze, (N * N, parts * N * N), norms=norms)


@functools.cache
def wavelets(name):
    own = ud.wavelet((N, N), name.split(",")[0], LEVELS)
    return shifted(own) if name.endswith("shifts") else own


def lasso(D, y, lam):
    found = ur.pursuit.fista(D, y, lam, tol=1e-4, max_steps=100)
    return found.x, found.steps


def start(D, lam, depth=DEPTH):
    """The params of FISTA with the weight lam."""
    p = ur.layers.fista(depth).init(None, D)
    return p._replace(steps=p.steps._replace(theta=lam * p.steps.gamma))


def fista(depth):
    return lambda D, y, lam: (ur.layers.fista(depth).apply(start(D, lam, depth), D, y), depth)


def bpdn(D, y, eps):
    found = ur.pursuit.bpdn(D, y, eps, tol=1e-2)
    return found.x, found.steps


@jax.jit
def picture(D, x):
    """The picture of a code: the last factor of D is the synthesis of wavelets."""
    return ud.from_pairs(D.factors[-1] @ ud.to_pairs(x)).reshape(N, N)


def solved(code, D, scan, *args):
    """The pictures, and seconds after a first call; D is an argument, no constant of a program."""
    code, pictures, seconds, steps = jax.jit(code), [], [], []
    jax.block_until_ready(code(D, scan.Y[0], *args))
    for y in scan.Y:
        began = time.perf_counter()
        x, number = jax.block_until_ready(code(D, y, *args))
        seconds.append(time.perf_counter() - began)
        steps.append(int(number))
        pictures.append(np.asarray(picture(D, x)))
    seconds = round(float(np.median(seconds)), 3)
    return np.stack(pictures), {"steps": steps, "seconds": seconds}


def scores(pictures, slices):
    """PSNR and SSIM of the modulus, of each picture."""
    a, b = (np.abs(each).astype(np.float32) for each in (pictures, slices))
    psnr = [round(float(ur.metrics.psnr(*pair)), 2) for pair in zip(a, b)]
    return {"psnr": psnr, "ssim": np.asarray(ur.metrics.ssim(a, b), float).round(4).tolist()}


@functools.cache
def scans(coils):
    """The scans that train, that choose, and that are tested."""
    planes = (TRAINING, 0, 0), (CHOOSING, 1, 0), (TESTED, 2, 1)
    return [scanned(*of[:1], coils, *of[1:]) for of in planes]


@functools.cache
def best_weight(code, name, coils):
    """The weight whose codes have the largest PSNR on the slices that choose."""
    scan = scans(coils)[1]
    D = scan.dictionary(wavelets(name))

    def quality(lam):
        return np.mean(scores(solved(code, D, scan, lam)[0], scan.slices)["psnr"])

    return max(LAMS, key=quality)


def chosen(code, name):
    """A method: the codes with the best weight."""

    def method(coils):
        test, lam = scans(coils)[2], best_weight(code, name, coils)
        pictures, row = solved(code, test.dictionary(wavelets(name)), test, lam)
        return pictures, row | {"weight": lam}

    return method


def zero_filled(coils):
    test = scans(coils)[2]
    seen = np.fft.ifft2(test.Y.reshape(-1, *test.maps.shape), norm="ortho")
    return (test.maps.conj() * seen).sum(1), {}


def denoised(coils):
    """Basis pursuit denoising: the radius of the noise is known, and no weight is chosen."""
    test = scans(coils)[2]
    eps = NOISE * (coils * test.mask.sum()) ** 0.5
    return solved(bpdn, test.dictionary(wavelets("sym4")), test, eps)


def seen(key):
    """The frequencies that a network sees in training: 60 %, and all of the lowest."""
    low = np.fft.ifftshift(np.hypot(*GRID) < 0.05)
    return (jax.random.bernoulli(key, 0.6, low.shape) | low).ravel()


def trained(alone):
    """A network of DEPTH steps; `alone` trains thresholds on the measured frequencies alone."""

    def method(coils):
        train, choose, test = scans(coils)
        lam, layer = best_weight(TEN, "sym4", coils), ur.layers.fista(DEPTH)
        batches = on_frequencies if alone else on_pictures
        D, samples, validation, loss = batches(train, choose)
        fit = ur.fit(
            layer,
            start(train.dictionary(wavelets("sym4")), lam),
            D,
            samples,
            validation=validation,
            loss=loss,
            optimizer=optax.adam(optax.cosine_decay_schedule(RATE, STEPS[coils])),
            steps=STEPS[coils],
            evaluate_every=STEPS[coils] // 4,
            trainable=ur.layers.Unrolled(None, ur.layers.StepAndThreshold(not alone, True)),
            key=0,
            progress=False,
        )
        tested = test.dictionary(wavelets("sym4"))
        run = lambda D, y, params: (layer.apply(params, D, y), DEPTH)  # noqa: E731
        pictures, row = solved(run, tested, test, fit.best)
        losses = [float(f"{one.validation:.6g}") for one in fit.history.records]
        of = {"gamma": fit.best.steps.gamma, "theta": abs(fit.best.steps.theta) / lam}
        params = {name: np.asarray(value).round(3).tolist() for name, value in of.items()}
        return pictures, row | params | {"training": round(fit.seconds), "losses": losses}

    return method


def on_pictures(*both):
    """Frequencies with the codes of the complete pictures."""
    unmeasured = ud.fourier((1, N, N), axes=(1, 2)) @ ud.wavelet((N, N), "sym4", LEVELS)
    analyze = jax.jit(jax.vmap(lambda z: z @ unmeasured))

    def pairs(scan):
        Z = np.fft.fft2(scan.slices, norm="ortho").reshape(len(scan.slices), -1)
        X = analyze(ud.to_pairs(Z.astype(np.complex64)))
        return jnp.asarray(ud.to_pairs(scan.Y)), X

    train, choose = map(pairs, both)
    samples = ur.problems.resampler(*train, batch=BATCH)
    return both[0].dictionary(wavelets("sym4")), samples, choose, ur.training.supervised


def on_frequencies(*both):
    """Some of the measured frequencies, and the others to compare with."""
    whole = both[0].dictionary(wavelets("sym4"), np.ones((N, N), bool))
    coils = len(both[0].maps)
    known = np.tile(both[0].mask.ravel(), coils)
    how = {"seen": lambda key: jnp.tile(seen(key), coils), "mask": known, "batch": BATCH}
    train, choose = (ur.training.withholding(whole, scan.Y, **how) for scan in both)
    return whole, train, choose(jax.random.key(1)), ur.training.withheld


TEN = fista(DEPTH)
METHODS = {
    "zero-filled": zero_filled,
    "LASSO, haar": chosen(lasso, "haar"),
    "LASSO, sym4": chosen(lasso, "sym4"),
    "LASSO, sym4, four shifts": chosen(lasso, "sym4, four shifts"),
    "basis pursuit denoising, sym4": denoised,
    "FISTA, 10 steps, sym4": chosen(TEN, "sym4"),
    "FISTA, 20 steps, sym4": chosen(fista(20), "sym4"),
    "FISTA, 40 steps, sym4": chosen(fista(40), "sym4"),
    "network, 10 steps, sym4, complete pictures": trained(alone=False),
    "network, 10 steps, sym4, frequencies alone": trained(alone=True),
}
SHOWN = "LASSO, sym4", *[name for name in METHODS if name.startswith("network")]


def measured():
    """Adds the rows that are missing; the pictures of the first slice, by method."""
    done = {(row["coils"], row["method"]) for row in rows_of(RESULTS)}
    for coils in STEPS:
        for name, method in METHODS.items():
            if (coils, name) in done:
                continue
            began, slices = time.process_time(), scans(coils)[2].slices
            pictures, row = method(coils)
            row = {"coils": coils, "method": name} | scores(pictures, slices) | row
            row |= {"cpu": round(time.process_time() - began), "environment": environment()}
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            np.save(PICTURES / f"{coils} {name}.npy", pictures[0])
            print(row, flush=True)


def figure():
    """The modulus of the pictures of one coil above, and their errors, ten times as bright."""
    truth = abs(scans(1)[2].slices[0])
    rows = {row["method"]: row for row in rows_of(RESULTS) if row["coils"] == 1}
    names = "zero-filled", "FISTA, 10 steps, sym4", *SHOWN
    fig, axes = plt.subplots(2, 1 + len(names), figsize=(11, 4.2), layout="constrained")
    axes[0, 0].imshow(truth, cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("picture", fontsize=8)
    axes[1, 0].text(0.5, 0.5, "errors, ten times\nas bright", ha="center", va="center")
    for (above, below), name in zip(axes.T[1:], names):
        found, row = abs(np.load(PICTURES / f"1 {name}.npy")), rows[name]
        above.imshow(found, cmap="gray", vmin=0, vmax=1)
        above.set_title(name.replace(", sym4", "").replace(" steps, ", " steps,\n"), fontsize=8)
        below.imshow(abs(found - truth), cmap="gray", vmin=0, vmax=0.1)
        below.set_title(f"{row['psnr'][0]:.1f} dB, SSIM {row['ssim'][0]:.2f}", fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    fig.savefig(HERE / "mri.png", dpi=80)


def table():
    order = list(METHODS)
    rows = sorted(rows_of(RESULTS), key=lambda row: (row["coils"], order.index(row["method"])))
    print(markdown([shown(row) for row in rows]))


def shown(row):
    psnr = row["psnr"]
    return {
        "coils": row["coils"],
        "method": row["method"],
        "PSNR, dB": f"{np.mean(psnr):.1f}",
        "range of PSNR, dB": f"{min(psnr):.1f} to {max(psnr):.1f}",
        "SSIM": f"{np.mean(row['ssim']):.2f}",
        "steps": max(row.get("steps", [""])),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        PICTURES.mkdir(parents=True, exist_ok=True)
        measured()
        figure()
    table()
