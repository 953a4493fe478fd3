"""Reconstruct 256 x 256 pictures from a quarter of the frequencies that eight coils measure.

    python benchmarks/mri.py            the rows, mri.json, and the figures; ten minutes on one core
    python benchmarks/mri.py --table    prints the table of mri.json

There are two sets of pictures. T1 slices are axial slices of the MNI template, an average of 152
brains, which the package nilearn ships (`pip install --no-deps nilearn`; without it the rows of
these slices stay as they are); ellipses are random. All have a random smooth phase. The frequencies
are drawn with a density that falls from the centre, and have noise of deviation 0.01 in each coil.
The weights of the LASSO and the params of the networks are chosen on 12 pictures (the weights on
one of them); the rows are of five other pictures and another mask. The first network is trained on
the codes of complete pictures. The second one sees the measured frequencies alone: in each training
step it gets about 60 % of these frequencies, and its loss compares the others.
"""

import argparse
import gzip
import json
from importlib.util import find_spec
from pathlib import Path

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
CHOOSING, TESTED, STEPS, BATCH, RATE = 12, 5, 50, 2, 0.03
LAMS = 0.002, 0.004, 0.008
VOLUME = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
SLICES = {0: range(46, 94, 4), 1: range(102, 142, 8)}  # to choose by, to test on
V, U = np.mgrid[-1 : 1 : N * 1j, -1 : 1 : N * 1j]
ud = ur.dictionaries


def ellipses(rng):
    """Twelve random ellipses; the largest value is 1."""
    image = 0.3 * (U**2 + V**2 < 0.8)
    for _ in range(12):
        x, y, angle = *rng.uniform(-0.5, 0.5, 2), rng.uniform(0, np.pi)
        a, b = rng.uniform(0.05, 0.35, 2)
        along = (U - x) * np.cos(angle) + (V - y) * np.sin(angle)
        across = (V - y) * np.cos(angle) - (U - x) * np.sin(angle)
        image += rng.uniform(-0.1, 0.3) * ((along / a) ** 2 + (across / b) ** 2 < 1)
    return np.maximum(image, 0) / image.max()


def slices(planes):
    """Axial slices of the volume, in the middle of pictures of 256 x 256."""
    found = find_spec("nilearn")
    raw = gzip.decompress((Path(found.origin).parent / VOLUME).read_bytes())
    volume = np.frombuffer(raw, np.uint8, offset=352).reshape(189, 233, 197)  # z, y, x
    images = np.zeros((len(planes), N, N))
    images[:, 11:244, 29:226] = volume[list(planes), ::-1] / volume.max()
    return images


def pictures(kind, seed, n):
    rng = np.random.default_rng(seed)
    Z = slices(SLICES[seed][:n]) if kind == "T1" else np.stack([ellipses(rng) for _ in range(n)])
    a, b, c = rng.normal(size=(3, n, 1, 1))
    return Z * np.exp(1j * (2 * U * V * a + U * b + V * c))


def sensitivities():
    """Smooth complex maps of coils on a circle; the sum of squares is 1 at each pixel."""
    angles = 2 * np.pi * np.arange(COILS) / COILS
    away = [np.hypot(U - 1.2 * np.cos(a), V - 1.2 * np.sin(a)) for a in angles]
    maps = np.exp(-(np.square(away)) + 1j * (np.array(away) + angles[:, None, None]))
    return (maps / np.sqrt((abs(maps) ** 2).sum(0))).astype(np.complex64)


def drawn_mask(seed):
    density = np.minimum(0.12 / (np.hypot(U, V) + 0.05), 1)
    density = np.minimum(density * SHARE / density.mean(), 1)
    return np.fft.ifftshift(np.random.default_rng(seed).random((N, N)) < density)


def measured(Z, mask, seed):
    """The frequencies of all coils, (pictures, coils n n)."""
    rng = np.random.default_rng(10 + seed)
    seen = MAPS * Z[:, None]
    noise = NOISE * rng.normal(size=(*seen.shape, 2)) @ [1, 1j] / np.sqrt(2)
    Y = mask * (np.fft.fft2(seen, norm="ortho") + noise)
    return Y.reshape(len(Z), -1).astype(np.complex64)


def dictionary(mask, name="haar"):
    frequencies = ud.fourier((COILS, N, N), mask, axes=(1, 2))
    return frequencies @ ud.coils(MAPS) @ ud.wavelet((N, N), name, LEVELS)


def zero_filled(Y):
    return (MAPS.conj() * np.fft.ifft2(Y.reshape(-1, COILS, N, N), norm="ortho")).sum(1)


def shown(D, X):
    """The pictures of codes: the last factor of D is the synthesis of wavelets."""
    synthesize = jax.jit(jax.vmap(lambda x: D.factors[-1] @ x))
    return np.asarray(ud.from_pairs(synthesize(ud.to_pairs(np.asarray(X))))).reshape(-1, N, N)


def coded(solve, D, Y):
    """The codes; D is an argument of the program, so that XLA folds none of its constants."""
    solve = jax.jit(solve)
    return np.stack([np.asarray(solve(D, y)) for y in Y])


def lasso(lam):
    return lambda D, y: ur.pursuit.fista(D, y, lam, tol=1e-6, max_steps=300).x


def scores(found, Z):
    """PSNR and SSIM of the modulus, of each picture."""
    a, b = (np.abs(each).astype(np.float32) for each in (found, Z))
    psnr = [float(ur.metrics.psnr(*pair)) for pair in zip(a, b)]
    return {"psnr": np.round(psnr, 2).tolist(), "ssim": np.round(ur.metrics.ssim(a, b), 4).tolist()}


def seen(key):
    """The frequencies that a layer sees in training: 60 %, and all of the lowest."""
    low = np.fft.ifftshift(np.hypot(U, V) < 0.05)
    return jnp.tile((jax.random.bernoulli(key, 0.6, (N, N)) | low).ravel(), COILS)


def kinds(params):
    """The kind of each leaf: a threshold, or not."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "theta" if "theta" in jax.tree_util.keystr(path) else "other", params
    )


def trained(Z, Y, mask, lam):
    """FISTA whose step sizes and thresholds are trained on codes, or on frequencies alone."""
    D, whole, layer = dictionary(mask), dictionary(None), ur.layers.fista(DEPTH, lam=lam)
    W = D.factors[-1]
    X = jax.jit(jax.vmap(lambda z: z @ W))(ud.to_pairs(Z.reshape(len(Z), -1).astype(np.complex64)))
    pairs = jnp.asarray(ud.to_pairs(Y))

    def sample(key):
        some = jax.random.choice(key, len(pairs), (BATCH,), replace=False)
        return pairs[some], X[some]

    start = layer.init(None, D)
    rates = {"other": optax.adam(RATE), "theta": optax.adam(RATE * lam)}  # in their own units
    optimizer = optax.multi_transform(rates, kinds)
    how = dict(optimizer=optimizer, steps=STEPS, evaluate_every=STEPS // 2, key=0, progress=True)
    by_codes = ur.fit(layer, start, D, sample, **how)
    known = np.tile(mask.ravel(), COILS)
    alone = ur.training.withholding(whole, Y, seen=seen, mask=known, batch=BATCH)
    by_itself = ur.fit(layer, start, whole, alone, loss=ur.training.withheld, **how)
    return layer, start, by_codes.best, by_itself.best


def of_pictures(kind):
    """Scores by method, and the pictures of the first test signal."""
    masks = drawn_mask(0), drawn_mask(1)
    Z, T = pictures(kind, 0, CHOOSING), pictures(kind, 1, TESTED)
    Y, S = measured(Z, masks[0], 0), measured(T, masks[1], 1)
    found, weights = {"zero-filled": zero_filled(S)}, {}
    for name, wavelet in (("Haar", "haar"), ("Daubechies 4", "db4")):
        D, test = dictionary(masks[0], wavelet), dictionary(masks[1], wavelet)
        errors = {}
        for lam in LAMS:
            codes = shown(D, coded(lasso(lam), D, Y[:1]))
            errors[lam] = np.mean((abs(codes) - abs(Z[:1])) ** 2)
        weights[name] = min(errors, key=errors.get)
        found[f"LASSO, {name}"] = shown(test, coded(lasso(weights[name]), test, S))
    test = dictionary(masks[1])
    eps = NOISE * (COILS * masks[1].sum()) ** 0.5
    bpdn = coded(lambda D, y: ur.pursuit.bpdn(D, y, eps, tol=1e-2).x, test, S)
    found["basis pursuit denoising, Haar"] = shown(test, bpdn)
    layer, *params = trained(Z, Y, masks[0], weights["Haar"])
    names = (
        "FISTA",
        "network, trained on complete pictures",
        "network, trained on frequencies alone",
    )
    for name, each in zip(names, params):
        codes = coded(lambda D, y, each=each: layer.apply(each, D, y), test, S)
        found[f"{name}, {DEPTH} steps"] = shown(test, codes)
    rows = {name: scores(pictures, T) for name, pictures in found.items()}
    figure(kind, T[0], {name: pictures[0] for name, pictures in found.items()}, rows)
    return {"weights": weights, "rows": rows}


def figure(kind, picture, found, rows):
    """The modulus of each reconstruction above its error, which is drawn five times as bright."""
    short = {"zero-filled": "zero-filled", "LASSO, Haar": "LASSO, Haar"}
    short |= {
        f"network, trained on frequencies alone, {DEPTH} steps": "network,\nfrequencies alone"
    }
    short |= {
        f"network, trained on complete pictures, {DEPTH} steps": "network,\ncomplete pictures"
    }
    size, layout = (2 * (1 + len(short)), 4.5), "constrained"
    fig, axes = plt.subplots(2, 1 + len(short), figsize=size, layout=layout)
    axes[0, 0].imshow(abs(picture), cmap="gray", vmin=0, vmax=1)
    axes[0, 0].set_title("picture", fontsize=9)
    for (above, below), (name, title) in zip(axes.T[1:], short.items()):
        above.imshow(abs(found[name]), cmap="gray", vmin=0, vmax=1)
        below.imshow(abs(abs(found[name]) - abs(picture)), cmap="gray", vmin=0, vmax=0.2)
        psnr, ssim = (rows[name][score][0] for score in ("psnr", "ssim"))
        above.set_title(title, fontsize=9)
        below.set_title(f"{psnr:.1f} dB, SSIM {ssim:.3f}", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    fig.savefig(HERE / f"mri_{kind}.png", dpi=110)


def table():
    found = json.loads(RESULTS.read_text())
    for kind, results in found["pictures"].items():
        print(f"| {kind} | PSNR, dB | range of PSNR, dB | SSIM |\n|---|---|---|---|")
        for name, row in results["rows"].items():
            psnr, ssim = row["psnr"], np.mean(row["ssim"])
            span = f"{min(psnr):.1f} to {max(psnr):.1f}"
            print(f"| {name} | {np.mean(psnr):.1f} | {span} | {ssim:.3f} |")
        print()


MAPS = sensitivities()

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--only", choices=("T1", "ellipses"), help="one set of pictures")
    options = parser.parse_args()
    if not options.table:
        stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        kinds = (options.only,) if options.only else ("T1", "ellipses")
        results = stored.get("pictures", {})
        for kind in kinds:
            if kind == "ellipses" or find_spec("nilearn"):
                results[kind] = of_pictures(kind)
                RESULTS.write_text(
                    json.dumps({"pictures": results, "environment": environment()}, indent=1) + "\n"
                )
    table()
