"""Four tasks of users: sparse coding compared with the usual methods, in the same run.

    python benchmarks/tasks.py              all rows and figures, minutes on one core
    python benchmarks/tasks.py sharpen      one task, or several
    python benchmarks/tasks.py --table      prints the tables of tasks.json

The ECG comes with PyWavelets. The pictures are those of Set12, in the folder denoising/Set12 of the
folder that the variable UNROLLED_DATA names. The rivals come from PyWavelets, scipy and
scikit-image (extra `benchmarks`).

Every option, also every option of a rival, is chosen on other signals than the reported signals:
on one half of the record, on other tones, on the pictures 06 and 07. We report three seeds of the
noise and the masks of a signal, and the pictures 01 to 05 with one seed each.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pywt
import scipy.interpolate
from _measure import environment
from PIL import Image
from skimage import restoration

import unrolled as ur

HERE = Path(__file__).parent
RESULTS = HERE / "tasks.json"
CHOOSING, SEEDS = (10,), (0, 1, 2)  # seeds of the part for choosing options, and of the reported
CHOOSING_PICTURES, PICTURES = (6, 7), (1, 2, 3, 4, 5)  # numbers of pictures, and their seeds
ud = ur.dictionaries


class Task(NamedTuple):
    """A degraded signal, the methods that restore it with their options, and a figure."""

    data: Callable[[bool, int], tuple[np.ndarray, Any]]  # (tested, draw) -> true signal, known data
    methods: dict[str, tuple[Callable[..., np.ndarray], list[tuple]]]
    score: Callable[[np.ndarray, np.ndarray], float]  # of the true signal and an estimate, dB
    draw: Callable[..., Any]
    chosen: tuple[int, ...] = CHOOSING
    tested: tuple[int, ...] = SEEDS


def run(task: Task) -> tuple[dict, dict]:
    """The row of every method, and the estimate of every method for the first draw."""
    rows, estimates = {}, {}
    chosen = [task.data(False, draw) for draw in task.chosen]
    for name, (method, options) in task.methods.items():
        scores = [np.mean([task.score(t, method(k, *o)) for t, k in chosen]) for o in options]
        best = options[int(np.argmax(scores))]
        found = [(t, method(k, *best)) for t, k in (task.data(True, d) for d in task.tested)]
        rows[name] = {
            "choice": list(best),
            "chosen at": round(float(max(scores)), 2),
            "dB": [round(float(task.score(t, estimate)), 2) for t, estimate in found],
        }
        estimates[name] = found[0][1]
        print(name, rows[name], flush=True)
    return rows, estimates


def snr(truth: np.ndarray, estimate: np.ndarray) -> float:
    """The signal-to-noise ratio in dB of a signal without its mean."""
    return 10 * np.log10(np.var(truth) / np.mean((truth - estimate) ** 2))


def psnr(truth: np.ndarray, estimate: np.ndarray) -> float:
    return -10 * np.log10(np.mean((truth - estimate) ** 2))


# The ECG: 1024 samples; options are chosen on the first half

RECORD = pywt.data.ecg().astype(float)
RECORD /= np.abs(RECORD).max()
SIGMA = 10 ** (-10 / 20) * RECORD.std()
WINDOW = 32


def half(tested: bool) -> np.ndarray:
    return RECORD[512:] if tested else RECORD[:512]


def windows(y: np.ndarray, n: int = WINDOW) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(y, n)


def average(rows: np.ndarray) -> np.ndarray:
    """Average the windows at all positions into one signal."""
    n, m = rows.shape
    places = np.arange(n)[:, None] + np.arange(m)
    total, count = np.zeros(n + m - 1), np.zeros(n + m - 1)
    np.add.at(total, places, rows)
    np.add.at(count, places, 1)
    return total / count


def ksvd() -> Any:
    """A dictionary learned by K-SVD from the windows of the first half, without noise."""
    W = windows(half(False))
    W = (W - W.mean(1, keepdims=True)).astype(np.float32)
    return ur.dictionary_learning.ksvd(W, 2 * WINDOW, sparsity=3, sweeps=8, key=0).D


def denoise() -> Task:
    Ds = {"DCT": ud.dct(WINDOW, 2 * WINDOW), "K-SVD": ksvd()}

    def data(tested, seed):
        noise = SIGMA * np.random.default_rng(seed).normal(size=512)
        return half(tested), half(tested) + noise

    def in_windows(code):
        def method(y, *option):
            W = windows(y)
            mean = W.mean(1, keepdims=True)
            D, X = code((W - mean).astype(np.float32), *option)
            return average(np.asarray(ur.synthesize(D, X)) + mean)

        return method

    def lasso(name, W, c):
        return Ds[name], ur.pursuit.lasso_batch(Ds[name], W, c * SIGMA).x

    @partial(jax.jit, static_argnums=0)
    def to_noise(name, W, c):
        tol = c * SIGMA * WINDOW**0.5
        return jax.vmap(lambda y: ur.pursuit.omp(Ds[name], y, sparsity=10, tol=tol).x)(W)

    def omp(name, W, c):
        return Ds[name], to_noise(name, W, c)

    def wavelets(y, name, level, c):
        first, *rest = pywt.wavedec(y, name, "periodization", level)
        rest = [pywt.threshold(band, c * SIGMA, "soft") for band in rest]
        return pywt.waverec([first, *rest], name, "periodization")

    def all_shifts(y, *option):
        return np.mean(
            [np.roll(wavelets(np.roll(y, k), *option), -k) for k in range(WINDOW)], axis=0
        )

    options = list(product(("db2", "db4", "sym8", "coif3"), (3, 4), (0.8, 1.2, 1.6, 2.0, 2.5)))
    levels, tols = [(c,) for c in (1.0, 1.5, 2.0)], [(c,) for c in (1.0, 1.1, 1.2, 1.3, 1.4)]
    methods = {
        "noisy": (lambda y: y, [()]),
        "wavelets, soft thresholds": (wavelets, options),
        "wavelets, all shifts": (all_shifts, options),
        "LASSO, DCT": (in_windows(lambda W, c: lasso("DCT", W, c)), levels),
        "LASSO, K-SVD": (in_windows(lambda W, c: lasso("K-SVD", W, c)), levels),
        "OMP, DCT": (in_windows(lambda W, c: omp("DCT", W, c)), tols),
        "OMP, K-SVD": (in_windows(lambda W, c: omp("K-SVD", W, c)), tols),
    }
    shown = ("noisy", "wavelets, soft thresholds", "OMP, K-SVD")
    return Task(data, methods, snr, partial(draw_lines, shown=shown))


def tones(seed: int, n: int) -> np.ndarray:
    """Two signals of eight cosines with any frequency up to the Nyquist frequency."""
    rng = np.random.default_rng([7, seed])
    frequency, phase = rng.uniform(0, np.pi, (2, 8, 1)), rng.uniform(0, 2 * np.pi, (2, 8, 1))
    size = rng.uniform(0.5, 1, (2, 8, 1))
    return np.sum(size * np.cos(frequency * np.arange(n) + phase), axis=1)


def measure_less(of: str = "tones") -> Task:
    """64 numbers instead of 256 samples, random or every fourth, with noise at -30 dB."""
    m, n = 64, 256
    A = np.random.default_rng(5).normal(size=(m, n)) / m**0.5
    regular, chosen = np.arange(0, n, n // m), np.zeros(n, bool)
    chosen[np.random.default_rng(6).permutation(n)[:m]] = True
    Psi = ud.Concatenated(ud.dct(n, 2 * n), sines(n)) if of == "tones" else ud.dct(n, n)

    def data(tested, seed):
        S = tones(seed, n) if of == "tones" else half(tested).reshape(2, n)
        S = S - S.mean(1, keepdims=True)
        rng = np.random.default_rng(seed)

        def noisy(Y):
            return Y + 10 ** (-30 / 20) * Y.std(1, keepdims=True) * rng.normal(size=Y.shape)

        sampled = noisy(S)
        return S, {"sums": noisy(S @ A.T), "samples": sampled}

    def from_sums(known, ratio):
        return coded(ud.Composed(A.astype(np.float32), Psi), known["sums"], ratio)

    def from_samples(known, ratio):
        return coded(ud.Masked(Psi, chosen), np.where(chosen, known["samples"], 0), ratio)

    def coded(D, Y, ratio):
        X = ur.pursuit.lasso_batch(D, Y.astype(np.float32), ratio=ratio).x
        return np.asarray(ur.synthesize(Psi, X))

    def spline(known):
        at = known["samples"][:, regular]
        return scipy.interpolate.CubicSpline(regular, at, axis=1)(np.arange(n))

    ratios = [(ratio,) for ratio in (0.003, 0.01, 0.02, 0.05, 0.1)]
    methods = {
        "every fourth sample, cubic spline": (spline, [()]),
        "random sums, least norm": (lambda known: known["sums"] @ np.linalg.pinv(A).T, [()]),
        "random sums, LASSO": (from_sums, ratios),
        "random samples, LASSO": (from_samples, ratios),
    }
    shown = ("every fourth sample, cubic spline", "random samples, LASSO")
    return Task(data, methods, snr, partial(draw_lines, shown=shown, n=96))


def sines(n: int) -> np.ndarray:
    """The 2 n - 1 sines with the frequencies of a DCT of 2 n cosines."""
    atoms = np.sin(np.pi * (np.arange(n)[:, None] + 0.5) * np.arange(1, 2 * n) / (2 * n))
    return (atoms / np.linalg.norm(atoms, axis=0)).astype(np.float32)


def fill_in() -> Task:
    """Signals of eight tones, with half of the samples missing and noise at -30 dB."""
    n = 256
    D = ud.Concatenated(ud.dct(n, 2 * n), sines(n))

    def data(tested, seed):
        rng, S = np.random.default_rng(seed), tones(seed, n)
        masks = rng.random(S.shape) < 0.5
        noisy = S + 10 ** (-30 / 20) * S.std(1, keepdims=True) * rng.normal(size=S.shape)
        return S, (np.where(masks, noisy, 0), masks)

    def lasso(known, ratio):
        found = []
        for y, mask in zip(*known):
            M = ud.Masked(D, mask)
            x = ur.pursuit.lasso_batch(M, y[None].astype(np.float32), ratio=ratio).x
            found.append(ur.synthesize(D, x)[0])
        return np.stack(found)

    def between(known, kind):
        return np.stack([KINDS[kind](np.flatnonzero(m), y[m], n) for y, m in zip(*known)])

    methods = {
        "interpolation": (between, [(kind,) for kind in KINDS]),
        "LASSO, masked DCT and DST": (lasso, [(r,) for r in (0.003, 0.01, 0.02, 0.05, 0.1)]),
    }
    return Task(data, methods, snr, partial(draw_lines, shown=tuple(methods), n=96))


KINDS = {
    "linear": lambda at, y, n: np.interp(np.arange(n), at, y),
    "cubic spline": lambda at, y, n: scipy.interpolate.CubicSpline(at, y)(np.arange(n)),
    "monotone": lambda at, y, n: scipy.interpolate.PchipInterpolator(at, y)(np.arange(n)),
}


# The pictures: the central 128 x 128 pixels

SIDE, PATCH, APART = 128, 8, 2
DATA = os.environ.get("UNROLLED_DATA", ".")


def picture(number: int) -> np.ndarray:
    with Image.open(Path(DATA) / "denoising" / "Set12" / f"{number:02}.png") as image:
        margin = (image.width - SIDE) // 2
        return np.asarray(image)[margin:-margin, margin:-margin] / 255


def patches(u: np.ndarray) -> np.ndarray:
    every = np.lib.stride_tricks.sliding_window_view(u, (PATCH, PATCH))[::APART, ::APART]
    return every.reshape(-1, PATCH**2)


def merged(rows: np.ndarray) -> np.ndarray:
    """Average the patches at all positions into one picture."""
    total, count = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    corners = product(range(0, SIDE - PATCH + 1, APART), repeat=2)
    for (i, j), row in zip(corners, rows):
        total[i : i + PATCH, j : j + PATCH] += row.reshape(PATCH, PATCH)
        count[i : i + PATCH, j : j + PATCH] += 1
    return total / count


def fill_in_photograph() -> Task:
    """Pictures with half of the pixels missing."""
    D = ud.dct((PATCH, PATCH), (PATCH, PATCH))

    def data(_, number):
        u = picture(number)
        mask = np.random.default_rng(number).random(u.shape) < 0.5
        return u, (np.where(mask, u, 0), mask)

    @jax.jit
    def codes(masks, Y, lam):
        def one(mask, y):
            return ur.pursuit.fista(ud.Masked(D, mask), y, lam, tol=1e-3, max_steps=200).x

        return jax.vmap(one)(masks, Y)

    def lasso(known, lam):
        y, mask = known
        X = codes(patches(mask), patches(y).astype(np.float32), lam)
        return np.where(mask, y, merged(np.asarray(ur.synthesize(D, X))))

    def interpolated(known, kind):
        y, mask = known
        everywhere = np.indices(y.shape).reshape(2, -1).T

        def between(kind):
            return scipy.interpolate.griddata(np.argwhere(mask), y[mask], everywhere, kind)

        found = between(kind)
        return np.where(np.isnan(found), between("nearest"), found).reshape(y.shape)

    methods = {
        "interpolation": (interpolated, [("nearest",), ("linear",), ("cubic",)]),
        "biharmonic": (lambda known: restoration.inpaint_biharmonic(known[0], ~known[1]), [()]),
        "LASSO, masked DCT": (lasso, [(lam,) for lam in (0.003, 0.01, 0.03, 0.06)]),
    }
    draw = partial(draw_pictures, given=lambda known: known[0])
    return Task(data, methods, psnr, draw, CHOOSING_PICTURES, PICTURES)


def sharpen() -> Task:
    """Pictures with a Gaussian blur of deviation 1.6 pixels on a circle and noise of 0.01."""
    line = np.exp(-(np.arange(-4, 5) ** 2) / (2 * 1.6**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    blur = ud.Conv(kernel[None, None].astype(np.float32), (SIDE, SIDE), boundary="circular")
    m, bands = SIDE**2, 10

    def frame(u):
        """Haar wavelets at all shifts, three levels: a Parseval frame."""
        u, found = u.reshape(SIDE, SIDE), []
        for shift in (1, 2, 4):
            low, high = (u + jnp.roll(u, shift, 0)) / 2, (u - jnp.roll(u, shift, 0)) / 2
            turned = jnp.roll(low, shift, 1), jnp.roll(high, shift, 1)
            found += [(low - turned[0]) / 2, (high + turned[1]) / 2, (high - turned[1]) / 2]
            u = (low + turned[0]) / 2
        return jnp.stack([*found, u]).reshape(-1)

    back = jax.linear_transpose(frame, jnp.zeros(m))

    @jax.jit
    def synthesize(x):
        return blur @ back(x)[0]

    firsts = jnp.eye(bands)[:, :, None] * jnp.eye(1, m)
    norms = jnp.repeat(jnp.linalg.norm(jax.vmap(synthesize)(firsts.reshape(bands, -1)), axis=1), m)
    D = ud.from_functions(synthesize, lambda r: frame(r @ blur), (m, bands * m), norms=norms)

    @jax.jit
    def restored(y, lam):
        return back(ur.pursuit.fista(D, y, lam, max_steps=100).x)[0]

    def data(_, number):
        u = picture(number)
        noise = 0.01 * np.random.default_rng(number).normal(size=u.shape)
        return u, np.asarray(blur @ u.reshape(-1).astype(np.float32)).reshape(u.shape) + noise

    def lasso(y, lam):
        return np.asarray(restored(y.reshape(-1).astype(np.float32), lam)).reshape(y.shape)

    def centred(y):  # filters of `Conv` begin at a pixel; the rivals centre them
        return np.roll(y, (-4, -4), (0, 1))

    def wiener(y, balance):
        return restoration.wiener(centred(y), kernel, balance, clip=False)

    def richardson_lucy(y, steps):
        wide = np.pad(centred(y).clip(1e-3), 32, mode="wrap")  # the blur is on a circle
        return restoration.richardson_lucy(wide, kernel, steps, clip=False)[32:-32, 32:-32]

    methods = {
        "blurred": (lambda y: centred(y), [()]),
        "Wiener": (wiener, [(b,) for b in (3e-4, 1e-3, 2e-3, 3e-3, 0.01, 0.03)]),
        "Richardson-Lucy": (richardson_lucy, [(n,) for n in (10, 30, 50, 100, 200, 500)]),
        "LASSO, Haar at all shifts": (lasso, [(lam,) for lam in (1e-4, 3e-4, 1e-3, 3e-3)]),
    }
    draw = partial(draw_pictures, given=centred)
    return Task(data, methods, psnr, draw, CHOOSING_PICTURES, PICTURES)


# Figures


def draw_lines(
    truth: np.ndarray, known: Any, estimates: dict, rows: dict, *, shown: tuple, n: int = 256
) -> Any:
    from matplotlib.figure import Figure

    figure = Figure((7, 1.3 * len(shown)), layout="constrained")
    for axes, name in zip(figure.subplots(len(shown), sharex=True, sharey=True), shown):
        axes.plot(np.ravel(truth)[:n], color="#B0B0B0", linewidth=2.5)
        axes.plot(np.ravel(estimates[name])[:n], color="#0072B2", linewidth=1)
        axes.set_title(f"{name}: {np.mean(rows[name]['dB']):.1f} dB", fontsize=9, loc="left")
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("sample (grey: the true signal)", fontsize=8)
    return figure


def draw_pictures(
    truth: np.ndarray, known: Any, estimates: dict, rows: dict, *, given: Callable
) -> Any:
    from matplotlib.figure import Figure

    rivals = [name for name in rows if name != "blurred"]
    shown = {"given": given(known)} | {name: estimates[name] for name in rivals} | {"truth": truth}
    figure = Figure((2.1 * len(shown), 2.55), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, len(shown)), shown.items()):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        score = f"\n{rows[name]['dB'][0]:.1f} dB" if name in rows else "\n"
        axes.set_title(
            name.replace(", ", "\n") + (score if ", " not in name else score.replace("\n", ": ")),
            fontsize=8,
        )
    return figure


TASKS = {
    "denoise": denoise,
    "fill_in": fill_in,
    "fill_in, photograph": fill_in_photograph,
    "sharpen": sharpen,
    "measure_less": measure_less,
    "measure_less, ECG": partial(measure_less, "ECG"),
}
FIGURES = {"denoise": "svg", "fill_in": "svg", "sharpen": "png", "measure_less": "svg"}
FIGURES["fill_in, photograph"] = "png"
SCORES = dict.fromkeys(("fill_in, photograph", "sharpen"), "PSNR")  # others: SNR
CHOSEN = {"sharpen": "chosen option", "measure_less": "chosen `ratio`"}


def table(name: str, rows: dict) -> str:
    """A line for each method, with the mean, the least and the largest dB over the draws."""
    of, option = SCORES.get(name, "SNR"), CHOSEN.get(name.partition(",")[0], "chosen options")
    lines = [f"| method | mean {of}, dB | range of {of}, dB | {option} |", "|---|---|---|---|"]
    for method, row in rows.items():
        dB, chosen = row["dB"], ", ".join(map(str, row["choice"])) or "-"
        span = f"{min(dB):.1f} to {max(dB):.1f}"
        lines.append(f"| {method} | {np.mean(dB):.1f} | {span} | {chosen} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"some of {', '.join(TASKS)}")
    parser.add_argument("--table", action="store_true", help="print the tables and measure nothing")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if arguments.table:
        print("\n\n".join(table(name, rows) for name, rows in results["rows"].items()))
        return
    for name in arguments.tasks or TASKS:
        task = TASKS[name]()
        rows, estimates = run(task)
        if name in FIGURES:
            figure = task.draw(*task.data(True, task.tested[0]), estimates, rows)
            figure.savefig(HERE / f"tasks_{name.replace(', ', '_')}.{FIGURES[name]}", dpi=100)
        results["rows"][name] = rows
        ordered = {key: results["rows"][key] for key in TASKS if key in results["rows"]}
        text = json.dumps({"environment": environment(), "rows": ordered}, indent=1)
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
