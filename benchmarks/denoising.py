"""Denoising by a trained CSCNet, by BM3D, and by the LASSO in the dictionary of the CSCNet.

    python benchmarks/denoising.py                 a small net, an hour
    python benchmarks/denoising.py --published     the sizes of Simon and Elad, some hours
    python benchmarks/denoising.py --published --minutes 60   no new evaluation after an hour
    python benchmarks/denoising.py --stop          evaluates the saved state without training
    python benchmarks/denoising.py --table         prints the table of the small net or, with
                                                   --published, of the published sizes

The folder `--data DIR`, or the variable UNROLLED_DATA, holds denoising/Train400 and
denoising/Set12. Training writes its state to the folder `--weights` at every evaluation; a stopped
run continues from this state. Each stage averages the estimates of at least as many shifted grids
as the stage before. The last stage of the published sizes averages the estimates of all shifts, as
in the test. Arrays are float32, pictures are in [0, 1], and nothing is clipped.
"""

import argparse
import itertools
import json
import math
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import save
from flax import nnx

import unrolled as ur
from unrolled.vision.models import CSCNet, shift_average

SIGMA, LEVELS, RANGE = 25 / 255, (15, 25, 50), (5 / 255, 50 / 255)
BATCH, HELD_OUT, EVALUATE_EVERY = 4, 8, 400
LASSO_STEPS = 100  # steps of FISTA with restart


class Stage(NamedTuple):
    """A training stage; for the noise-adaptive net, steps and rate are halved."""

    grids: int  # in each direction, evenly apart; their estimates are averaged
    steps: int
    rate: float  # largest learning rate of Adam


class Design(NamedTuple):
    """The sizes and the training stages of a net."""

    filters: int
    kernel: int
    stride: int
    unfoldings: int
    positions: int  # of the atoms in a training window, in each direction
    stages: tuple[Stage, ...]

    @property
    def window(self) -> int:
        """The side of a training window in pixels, for one grid."""
        return (self.positions - 1) * self.stride + self.kernel


SMALL = Design(100, 9, 4, 8, 22, (Stage(1, 6000, 2e-3), Stage(2, 2000, 1e-3)))
GROWING = (Stage(1, 8000, 2e-3), Stage(2, 4000, 1e-3), Stage(4, 8000, 1e-3), Stage(8, 6000, 5e-4))
PUBLISHED = Design(175, 11, 8, 12, 8, GROWING)


def dct_filters(count: int, n: int, rng) -> np.ndarray:
    """Low frequencies of the 2-D DCT with a little noise; filters after the first n^2 are noise."""
    line = np.sqrt(2 / n) * np.cos(np.pi * (np.arange(n) + 0.5) * np.arange(n)[:, None] / n)
    line[0] /= np.sqrt(2)
    order = sorted(np.ndindex(n, n), key=sum)
    filters = np.stack([np.outer(line[i], line[j]) for i, j in order[:count]])
    extra = rng.normal(size=(max(0, count - n * n), n, n)) / n
    filters = np.concatenate([filters, extra])
    return (filters + 0.3 * rng.normal(size=filters.shape) / n).astype(np.float32)


def new_net(design: Design, noise_adaptive: bool = False) -> CSCNet:
    return CSCNet(
        *design[:4],
        rngs=nnx.Rngs(0),
        filters=dct_filters(design.filters, design.kernel, np.random.default_rng(0)),
        theta=0.03,
        noise_adaptive=noise_adaptive,
    )


def adapted(net: CSCNet, design: Design) -> CSCNet:
    """A noise-adaptive net with theta_0 = 0 and slope theta / sigma; at sigma it equals `net`."""
    new = new_net(design, noise_adaptive=True)
    for name in ("A", "B", "C"):
        getattr(new, name)[...] = getattr(net, name)[...]
    new.slope[...] = jnp.abs(net.theta[...]) / SIGMA
    new.theta[...] = jnp.zeros_like(new.theta[...])
    return new


def sampler(pictures, batch: int, size: int):
    """A function `sample(key, low, high) -> (clean, noisy, sigmas)`.

    The windows are turned and mirrored at random. Noise levels are uniform between `low` and
    `high`.
    """
    side = pictures.shape[1] - size + 1

    def sample(key, low, high):
        which, where, turn, level, noise = jax.random.split(key, 5)
        index = jax.random.randint(which, (batch,), 0, len(pictures))
        corner = jax.random.randint(where, (batch, 2), 0, side)
        cut = jax.vmap(
            lambda i, c: jax.lax.dynamic_slice(pictures, (i, c[0], c[1]), (1, size, size))[0]
        )
        clean = cut(index, corner)
        flips = jax.random.bernoulli(turn, 0.5, (3,))
        clean = jnp.where(flips[0], clean[:, ::-1], clean)
        clean = jnp.where(flips[1], clean[:, :, ::-1], clean)
        clean = jnp.where(flips[2], clean.transpose(0, 2, 1), clean)
        sigmas = jax.random.uniform(level, (batch,), clean.dtype, low, high)
        return (
            clean,
            clean + sigmas[:, None, None] * jax.random.normal(noise, clean.shape, clean.dtype),
            sigmas,
        )

    return sample


def objective(net, corners, clean, noisy, sigmas):
    """Squared error of the mean estimate of some grids, weighted so that all noise levels count.

    Pixels near the border, which fewer atoms cover than an interior pixel, do not count.
    """
    reach, border = max(max(corner) for corner in corners), net.kernel - net.stride
    side = noisy.shape[-1] - reach

    def inner(window, a, b):
        first, last = reach + border, side - border
        return window[first - a : last - a, first - b : last - b]

    def estimate(window, *sigma):
        cuts = jnp.stack([window[a : a + side, b : b + side] for a, b in corners])
        estimates = jax.vmap(lambda cut: net.estimate(cut, *sigma))(cuts)
        return jnp.mean(jnp.stack([inner(e, a, b) for e, (a, b) in zip(estimates, corners)]), 0)

    estimates = (
        jax.vmap(estimate)(noisy) if net.slope is None else jax.vmap(estimate)(noisy, sigmas)
    )
    errors = jnp.mean((estimates - jax.vmap(inner, (0, None, None))(clean, 0, 0)) ** 2, (1, 2))
    return 100 * jnp.mean(errors / sigmas)


class Job(NamedTuple):
    """The settings that all training runs share."""

    design: Design
    pictures: np.ndarray
    folder: Path  # folder of the weights
    until: float  # training stops at this time


def train(name: str, net: CSCNet, levels, job: Job) -> dict[str, list[dict]]:
    """Train in all stages; returns the curve of each stage that has begun."""
    share = 1.0 if net.slope is None else 0.5
    curves: dict[str, list[dict]] = {}
    for number, (grids, steps, rate) in enumerate(job.design.stages, start=1):
        stage = Stage(grids, round(share * steps), share * rate)
        curve = trained(f"{name}-{number}", net, levels, stage, job)
        if curve:
            curves[f"{number}: mean of {grids * grids}"] = curve
        if not curve or curve[-1]["step"] < stage.steps:
            break
    return curves


def trained(name: str, net: CSCNet, levels, stage: Stage, job: Job) -> list[dict]:
    """Train by Adam with a warm-up and a cosine schedule; returns the curve.

    The state is saved to a file. A stopped run continues from this file.
    """
    path, pictures, steps = job.folder / f"{name}.npz", job.pictures, stage.steps
    rates = optax.warmup_cosine_decay_schedule(
        0.0, stage.rate, max(1, steps // 30), steps, stage.rate / 100
    )
    optimizer = nnx.Optimizer(
        net, optax.chain(optax.clip_by_global_norm(5.0), optax.adam(rates)), wrt=nnx.Param
    )
    apart = [i * job.design.stride // stage.grids for i in range(stage.grids)]
    corners = list(itertools.product(apart, apart))
    size = job.design.window + apart[-1]
    batch = BATCH if stage.grids == 1 else BATCH // 2
    sample = sampler(jnp.asarray(pictures[:-HELD_OUT]), batch, size)

    @nnx.jit
    def step(net, optimizer, key):
        value, gradients = nnx.value_and_grad(objective)(net, corners, *sample(key, *levels))
        optimizer.update(net, gradients)
        return value

    curve = restore((net, optimizer), path)
    done, seconds = (curve[-1]["step"], curve[-1]["seconds"]) if curve else (0, 0.0)
    while done < steps and time.time() < job.until:
        began, losses = time.perf_counter(), []
        for k in range(done, min(done + EVALUATE_EVERY, steps)):
            losses.append(step(net, optimizer, jax.random.fold_in(jax.random.key(1), k)))
        loss = float(jnp.mean(jnp.stack(losses)))
        done, seconds = done + len(losses), seconds + time.perf_counter() - began
        quality = held_out(net, pictures[-HELD_OUT:])
        curve.append(dict(step=done, seconds=round(seconds, 1), loss=loss, psnr=quality))
        print(name, curve[-1], flush=True)
        store((net, optimizer), curve, path)
    return curve


def store(modules, curve, path: Path) -> None:
    leaves = jax.tree.leaves(nnx.state(modules))
    np.savez(path.with_suffix(".new.npz"), *map(np.asarray, leaves), curve=json.dumps(curve))
    path.with_suffix(".new.npz").replace(path)


def restore(modules, path: Path) -> list[dict]:
    if not path.exists():
        return []
    with np.load(path, allow_pickle=False) as found:
        curve = json.loads(str(found["curve"]))
        leaves, tree = jax.tree.flatten(nnx.state(modules))
        leaves = [jnp.asarray(found[f"arr_{i}"], leaf.dtype) for i, leaf in enumerate(leaves)]
    nnx.update(modules, jax.tree.unflatten(tree, leaves))
    return curve


@nnx.jit
def denoise(net, noisy, sigma):
    return net(noisy) if net.slope is None else net(noisy, sigma)


@nnx.jit
def density(net, noisy, sigma):
    return net.density(noisy) if net.slope is None else net.density(noisy, sigma)


def noise(picture: np.ndarray, level: float, seed: int) -> np.ndarray:
    draw = np.random.default_rng([seed, round(level)]).normal(size=picture.shape)
    return picture + (level / 255 * draw).astype(np.float32)


def psnr(estimate, picture) -> float:
    return float(ur.metrics.psnr(jnp.asarray(estimate), jnp.asarray(picture)))


def held_out(net, pictures, level: float = 25) -> float:
    """Mean PSNR over held-out pictures, with estimates averaged over all shifts."""
    noisy = [noise(picture, level, j) for j, picture in enumerate(pictures)]
    return float(np.mean([psnr(denoise(net, y, level / 255), p) for y, p in zip(noisy, pictures)]))


@partial(jax.jit, static_argnums=3)
def ista(A, noisy, lam, stride):
    """The LASSO estimate in the learned dictionary A, averaged over all shifts."""

    def estimate(window):
        D, x = lasso(A, window, lam, stride)
        return (D @ x).reshape(window.shape)

    mean = jnp.mean(noisy)
    return shift_average(estimate, noisy - mean, kernel=A.shape[-1], stride=stride) + mean


@partial(jax.jit, static_argnums=3)
def ista_density(A, noisy, lam, stride):
    """The share of nonzero entries in the code of the largest window from the first pixel."""
    kernel = A.shape[-1]
    rows, columns = (kernel + (N - kernel) // stride * stride for N in noisy.shape)
    window = noisy[:rows, :columns] - jnp.mean(noisy)
    return jnp.mean(lasso(A, window, lam, stride)[1] != 0)


def lasso(A, window, lam, stride):
    D = ur.dictionaries.Conv(A, window.shape, stride)
    return D, ur.pursuit.fista(D, window.reshape(-1), lam, tol=None, max_steps=LASSO_STEPS).x


def bm3d(noisy, level: float):
    from bm3d import bm3d as run

    return run(np.asarray(noisy, np.float64), level / 255)


def judged(name: str, estimate, pictures: dict, level: float, seed: int = 1000) -> dict:
    """PSNR of `estimate(noisy)` on every picture; median wall-clock and processor seconds."""
    found = []
    for j, (title, picture) in enumerate(pictures.items()):
        noisy = noise(picture, level, seed + j)
        began, worked = time.perf_counter(), time.process_time()
        result = np.asarray(estimate(noisy))
        seconds = time.perf_counter() - began, time.process_time() - worked
        found.append((title, psnr(result, picture), *seconds))
    titles, quality, clock, processor = zip(*found)
    row = dict(
        psnr=float(np.mean(quality)),
        seconds=float(np.median(clock)),
        processor_seconds=float(np.median(processor)),
        pictures={title: round(value, 3) for title, value in zip(titles, quality)},
    )
    print(
        f"{name}, sigma {level}: {row['psnr']:.2f} dB, {row['processor_seconds']:.2f} s", flush=True
    )
    return row


def net_row(net: CSCNet, pictures: dict, level: float) -> dict:
    for shape in {p.shape for p in pictures.values()}:
        blank = np.zeros(shape, np.float32)  # compiles; the times exclude compilation
        denoise(net, blank, level / 255).block_until_ready()
    name = "CSCNet" if net.slope is None else "CSCNet, noise-adaptive"
    row = judged(name, lambda noisy: denoise(net, noisy, level / 255), pictures, level)
    some = [noise(p, level, 1000 + j) for j, p in enumerate(pictures.values())]
    return row | {"density": float(np.mean([density(net, y, level / 255) for y in some]))}


def ista_row(net: CSCNet, pictures: dict, training) -> dict:
    """The row of the LASSO, with the lam that has the best mean PSNR on training pictures.

    The unit of lam is sigma times the mean norm of an atom.
    """
    A, stride = net.A[...], net.stride
    noisy = [noise(picture, 25, j) for j, picture in enumerate(training)]
    lams = [float(c) * SIGMA for c in (1.0, 2.0, 3.0, 4.5, 7.0, 10.0)]
    scale = float(jnp.linalg.norm(A.reshape(len(A), -1), axis=1).mean())
    scores = {
        lam: np.mean([psnr(ista(A, y, lam * scale, stride), p) for y, p in zip(noisy, training)])
        for lam in lams
    }
    lam = max(scores, key=scores.get)
    row = judged("LASSO in the learned A", lambda y: ista(A, y, lam * scale, stride), pictures, 25)
    some = [noise(p, 25, 1000 + j) for j, p in enumerate(pictures.values())]
    found = {"lam / (sigma norm(a))": lam / SIGMA, "steps": LASSO_STEPS}
    dense = np.mean([ista_density(A, y, lam * scale, stride) for y in some])
    return row | found | {"density": float(dense)}


def table(results: dict) -> list[str]:
    """A line per method and noise level; 09 is Barbara, 01 to 07 are the first seven pictures."""
    lines = [
        "| method | sigma | PSNR on Set12, dB | PSNR on 01 to 07, dB | PSNR without 09, dB | "
        "pictures with a PSNR above BM3D | nonzero entries of codes | processor seconds per "
        "picture |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for sigma, methods in results["Set12"].items():
        of_bm3d = methods["BM3D"]["pictures"]
        for method, row in methods.items():
            pictures = row["pictures"]
            first = np.mean([value for title, value in pictures.items() if title <= "07"])
            others = np.mean([value for title, value in pictures.items() if title != "09"])
            cells = [method, sigma.removeprefix("sigma "), f"{row['psnr']:.2f}"]
            cells += [f"{first:.2f}", f"{others:.2f}"]
            above = sum(value > of_bm3d[title] for title, value in pictures.items())
            cells += ["" if method == "BM3D" else str(above)]
            cells += [f"{100 * row['density']:.1f} %" if "density" in row else ""]
            cells += ["" if method == "noisy" else f"{row['processor_seconds']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return [line.replace("|  |", "| |").replace("|  |", "| |") for line in lines]


def figure(
    net: CSCNet, picture, seed: int, corner: tuple[int, int], curves, reference: float, path: Path
) -> None:
    """Draw a detail before and after denoising, the learned filters, and the training curve."""
    noisy = noise(picture, 25, 1000 + seed)
    shown = {"noisy": noisy, "BM3D": bm3d(noisy, 25), "CSCNet": denoise(net, noisy, SIGMA)}
    cut = tuple(slice(c, c + 96) for c in corner)
    fig, panels = ur.plots.figure(1, 5, width=2.2, height=2.4)
    axes = panels[0]
    for ax, (title, estimate) in zip(axes, shown.items()):
        ax.imshow(np.asarray(estimate)[cut], cmap="gray", vmin=0, vmax=1)
        ax.set_title(
            f"{title}, {psnr(np.asarray(estimate, np.float32), picture):.2f} dB", fontsize=9
        )
    axes[3].imshow(mosaic(np.asarray(net.A[...][:, 0])), cmap="gray")
    axes[3].set_title("learned filters A", fontsize=9)
    for ax in axes[:4]:
        ax.axis("off")
    before = 0
    for name, curve in curves.items():
        axes[4].plot([before + r["step"] for r in curve], [r["psnr"] for r in curve], label=name)
        before += curve[-1]["step"] if curve else 0
    axes[4].axhline(reference, color="gray", linestyle=":", label="BM3D")
    axes[4].set_title("PSNR on held-out pictures, dB", fontsize=9)
    axes[4].set_ylim(bottom=reference - 1.5)  # training recovers from lower values
    axes[4].set_xlabel("training step", fontsize=8)
    axes[4].tick_params(labelsize=7)
    axes[4].legend(fontsize=7, frameon=False, loc="lower right")
    fig.savefig(path, dpi=80)


def mosaic(filters: np.ndarray) -> np.ndarray:
    """The filters in a square, strongest first; each filter is scaled by its largest entry."""
    order, n = np.argsort(-np.linalg.norm(filters, axis=(1, 2))), math.isqrt(len(filters))
    cells = [np.pad(f / np.abs(f).max(), 1, constant_values=1) for f in filters[order[: n * n]]]
    return np.block([cells[i : i + n] for i in range(0, n * n, n)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder that holds denoising/")
    parser.add_argument("--published", action="store_true", help="the sizes of Simon and Elad")
    parser.add_argument("--weights", type=Path, default=Path("denoising-weights"))
    parser.add_argument("--output", type=Path, help="default: next to this file")
    parser.add_argument(
        "--minutes", type=float, default=np.inf, help="stop training after this time, and evaluate"
    )
    parser.add_argument(
        "--stop", action="store_true", help="evaluate the saved state without training"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the results")
    options = parser.parse_args()
    design, name = (PUBLISHED, "_published") if options.published else (SMALL, "")
    output = options.output or Path(__file__).with_name(f"denoising{name}.json")
    if options.table:
        print(*table(json.loads(output.read_text())), sep="\n")
        return
    folder = ur.vision.datasets.locate("denoising", options.data)
    training = np.stack([*ur.vision.datasets.read_images(folder / "Train400").values()])
    pictures = ur.vision.datasets.read_images(folder / "Set12")
    weights = options.weights / output.stem
    weights.mkdir(parents=True, exist_ok=True)

    until = 0.0 if options.stop else time.time() + 60 * options.minutes
    job = Job(design, training, weights, until)
    net = new_net(design)
    curves = train("plain", net, (SIGMA, SIGMA), job)
    adaptive = adapted(net, design)
    adaptive_curves = train("adaptive", adaptive, RANGE, job)

    held, done = (
        training[-HELD_OUT:],
        f"after {steps_of(curves)} and {steps_of(adaptive_curves)} steps",
    )
    row = partial(remembered, weights / "rows.json")
    rows = {}
    for level in LEVELS:
        rows[f"sigma {level}"] = {
            "noisy": row(f"noisy {level}", judged, "noisy", np.asarray, pictures, level),
            "BM3D": row(
                f"BM3D {level}", judged, "BM3D", partial(bm3d, level=level), pictures, level
            ),
        }
        if adaptive_curves:
            rows[f"sigma {level}"]["CSCNet, noise-adaptive"] = row(
                f"adaptive {level} {done}", net_row, adaptive, pictures, level
            )
    rows["sigma 25"]["CSCNet"] = row(f"plain {done}", net_row, net, pictures, 25)
    rows["sigma 25"]["LASSO in the learned A"] = row(
        f"LASSO {done}", ista_row, net, pictures, held[:2]
    )
    on_held = "BM3D, held out", partial(bm3d, level=25), dict(enumerate(held)), 25, 0
    reference = row("BM3D, held out", judged, *on_held)["psnr"]
    results = {
        "bm3d": metadata.version("bm3d"),
        "net": dict(zip(("filters", "kernel", "stride", "unfoldings"), design)),
        "parameters": {"CSCNet": parameters(net), "noise-adaptive": parameters(adaptive)},
        "training": dict(batch=BATCH, window=design.window)
        | {"CSCNet": curves, "noise-adaptive": adaptive_curves},
        "held-out pictures, sigma 25": {"CSCNet": held_out(net, held), "BM3D": reference},
        "Set12": rows,
    }
    save(output, results)
    figure(net, pictures["05"], 4, (70, 90), curves, reference, output.with_suffix(".png"))


def remembered(path: Path, key: str, compute, *args) -> dict:
    """The row of a method, read from the file of a stopped run, or computed and saved."""
    rows = json.loads(path.read_text()) if path.exists() else {}
    if key not in rows:
        rows[key] = compute(*args)
        path.write_text(json.dumps(rows, indent=1))
    return rows[key]


def steps_of(curves: dict) -> int:
    return sum(curve[-1]["step"] for curve in curves.values() if curve)


def parameters(net: CSCNet) -> int:
    return sum(int(p.size) for p in jax.tree.leaves(nnx.state(net, nnx.Param)))


if __name__ == "__main__":
    main()
