"""Convolutional dictionary learning compared with alphacsc (1-D) and sporco (2-D).

    python benchmarks/convolutional.py [--output benchmarks/convolutional.json]

Every contestant starts from the same filters and minimises the same objective. After each iteration
of a contestant, the script recomputes the objective in float64 from the filters and codes; this
time is not counted. The score is the time until a contestant is within 1 % of the least objective
that any contestant reached.

The 1-D problem has 10 signals of 5,000 samples with planted events of 8 kinds, codes x >= 0
(alphacsc has no other codes), filters of 64 samples and the boundary "valid". The 2-D problem has 5
high-passed crops of 128 x 128 pixels from photographs, 64 filters of 8 x 8 pixels, lam = 0.2 and
the boundary "circular", as in the examples of sporco. The problem of two photographs has crops of
256 x 256 pixels, 32 filters and lam = 0.1. alphacsc and sporco take part if they are installed. The
time of compilation is reported separately.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _measure import environment, save
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

import unrolled as ur

NEAR = 1.01
LAM_1D = 1.0


class Case(NamedTuple):
    """The images, the filters to start from, and the problem."""

    images: np.ndarray  # (n, n_channels, *signal_shape)
    start: np.ndarray  # (n_atoms, n_channels, *kernel)
    lam: float
    boundary: str
    nonnegative: bool


def events(seed: int = 0, n_atoms: int = 8, kernel: int = 64) -> Case:
    """Signals with planted events."""
    rng = np.random.default_rng(seed)
    time_ = np.arange(kernel) / kernel
    waves = np.sin(
        2 * np.pi * np.outer(rng.uniform(1, 8, n_atoms), time_) + rng.random((n_atoms, 1))
    )
    filters = waves * np.hanning(kernel) ** rng.uniform(0.5, 3, (n_atoms, 1))
    filters /= np.linalg.norm(filters, axis=1, keepdims=True)
    D = ur.dictionaries.Conv(jnp.asarray(filters[:, None]), 5000)
    X = (rng.random((10, D.shape[1])) < 0.002) * rng.uniform(0.5, 2, (10, D.shape[1]))
    clean = np.asarray(jax.vmap(D.synthesize)(jnp.asarray(X, D.filters.dtype)))
    images = (clean + 0.05 * rng.standard_normal(clean.shape))[:, None]
    images /= images.std()  # alphacsc does so itself
    return Case(images, patches(images, (kernel,), n_atoms, rng), LAM_1D, "valid", True)


def photographs(seed: int = 0, n_atoms: int = 64, kernel: int = 8) -> Case:
    """High-passed crops of photographs."""
    rng = np.random.default_rng(seed)
    pictures = [load_sample_image(name).mean(2) / 255 for name in ("china.jpg", "flower.jpg")]
    corners = [(0, 50, 300), (0, 170, 100), (0, 170, 380), (1, 100, 250), (1, 170, 150)]
    crops = [pictures[i][r : r + 256 : 2, c : c + 256 : 2] for i, r, c in corners]
    images = np.stack([crop - gaussian_filter(crop, 2.0, mode="wrap") for crop in crops])[:, None]
    return Case(images, patches(images, (kernel, kernel), n_atoms, rng), 0.2, "circular", False)


def two_photographs(n_atoms: int = 32, kernel: int = 8) -> Case:
    """High-passed crops of two photographs."""
    rng = np.random.default_rng(0)
    pictures = [load_sample_image(name).mean(2) / 255 for name in ("china.jpg", "flower.jpg")]
    crops = [picture[80:336, 150:406] for picture in pictures]
    images = np.stack([crop - gaussian_filter(crop, 2.0, mode="wrap") for crop in crops])[:, None]
    return Case(images, patches(images, (kernel, kernel), n_atoms, rng), 0.1, "circular", False)


def patches(images: np.ndarray, kernel: tuple, count: int, rng) -> np.ndarray:
    """Random windows of large energy, scaled to norm 1."""
    axes = tuple(range(2, images.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(images, kernel, axes)
    windows = windows.reshape(-1, *kernel)[:, None]
    energy = np.sum(windows**2, tuple(range(1, windows.ndim)))
    chosen = windows[rng.choice(len(windows), count, replace=False, p=energy / energy.sum())]
    return chosen / np.sqrt(np.sum(chosen**2, tuple(range(1, chosen.ndim)), keepdims=True))


def objective(case: Case, filters: np.ndarray, X: np.ndarray) -> float:
    """The sum of the objective over the images, in float64; filters of norm > 1 are an error."""
    filters, X = np.asarray(filters, float), np.asarray(X, float)
    norms = np.sqrt(np.sum(filters**2, tuple(range(1, filters.ndim))))
    assert norms.max() < 1 + 1e-4, norms.max()
    shape = case.images.shape[2:]
    axes = tuple(range(2, 2 + len(shape)))
    spectra = np.fft.rfftn(X, shape, axes)  # (n, n_atoms, ...)
    bank = np.fft.rfftn(filters, shape, axes)  # (n_atoms, n_channels, ...)
    product = np.fft.irfftn(np.einsum("na...,ac...->nc...", spectra, bank), shape, axes)
    if case.nonnegative:
        assert X.min() >= 0
    return float(np.sum((case.images - product) ** 2) / 2 + case.lam * np.sum(np.abs(X)))


Curve = list[tuple[float, float]]


class TimeIsUp(Exception):
    """Raised in the callback of a contestant when its time is up."""


def ours(case: Case, seconds: float) -> tuple[Curve, dict]:
    """`dictionary_learning.convolutional` in float32 until the time is up."""
    images, start = case.images.astype(np.float32), case.start.astype(np.float32)
    options = dict(lam=case.lam, boundary=case.boundary, nonnegative=case.nonnegative)
    learn = ur.dictionary_learning.convolutional
    began = time.perf_counter()
    learn(images, start, sweeps=1, **options)
    first = time.perf_counter() - began

    found = None
    while found is None or found.history[-1].seconds < seconds:
        sweeps = 10 + (len(found.history) if found else 0)
        found = learn(images, start, sweeps=sweeps, resume=found, **options)
    exact = objective(case, found.D.filters, found.X)
    claimed = found.objective * len(images)
    assert abs(exact - claimed) < 1e-4 * exact, (exact, claimed)
    use = float(np.mean(np.asarray(found.X) != 0))
    curve = [(step.seconds, step.objective * len(images)) for step in found.history]
    return curve, {"first_sweep_with_compilation": first, "nonzeros": use}


def alphacsc(case: Case, seconds: float, tol: float) -> tuple[Curve, dict]:
    """alphacsc with locally greedy coordinate descent, filters of full rank, in float64."""
    from alphacsc.learn_d_z_multi import learn_d_z_multi

    def run(seconds: float) -> Curve:
        curve: Curve = []
        paused, began = 0.0, time.perf_counter()

        def callback(encoder, _):
            nonlocal paused
            now = time.perf_counter()
            filters, X = encoder.D_hat, encoder.get_z_hat()
            curve.append((now - began - paused, objective(case, filters, X)))
            paused += time.perf_counter() - now
            if curve[-1][0] > seconds:
                raise TimeIsUp

        n_atoms, _, length = case.start.shape
        with suppress(TimeIsUp):
            learn_d_z_multi(
                case.images,
                n_atoms,
                length,
                n_iter=100_000,
                reg=case.lam,
                rank1=False,
                solver_z="lgcd",
                solver_z_kwargs={"tol": tol, "max_iter": 100_000},
                solver_d="fista",
                D_init=case.start.copy(),
                eps=-np.inf,
                raise_on_increase=False,
                verbose=0,
                callback=callback,
                random_state=0,
            )
        return curve

    run(0.0)  # compiles
    return run(seconds), {}


def sporco(case: Case, seconds: float, xmethod: str, dmethod: str) -> tuple[Curve, dict]:
    """sporco in float32 with the options of its examples."""
    from sporco.dictlrn import cbpdndl

    lam = case.lam
    sparse = {"rho": 50 * lam + 0.5} if xmethod == "admm" else {"L": 50.0}
    bank = {"rho": 10.0} if dmethod == "cns" else {"L": 50.0}
    options = cbpdndl.ConvBPDNDictLearn.Options(
        {"Verbose": False, "MaxMainIter": 1, "CBPDN": sparse, "CCMOD": bank},
        xmethod=xmethod,
        dmethod=dmethod,
    )
    images = np.moveaxis(case.images[:, 0], 0, -1).astype(np.float32)
    start = np.moveaxis(case.start[:, 0], 0, -1).astype(np.float32)

    def begin():
        return cbpdndl.ConvBPDNDictLearn(
            start, images, lam, options, xmethod=xmethod, dmethod=dmethod, dimK=1
        )

    begin().solve()  # plans the Fourier transforms
    learner = begin()
    curve, elapsed = [], 0.0
    while elapsed < seconds:
        began = time.perf_counter()
        learner.solve()
        elapsed += time.perf_counter() - began
        filters = np.moveaxis(learner.getdict().squeeze(), -1, 0)[:, None]
        X = np.moveaxis(learner.getcoef().squeeze(), (-2, -1), (0, 1))
        curve.append((elapsed, objective(case, filters, X)))
    return curve, {}


def measured(case: Case, contestants: dict[str, Callable], seconds: float) -> dict:
    """All curves, and the seconds until each contestant is within 1 % of the least objective."""
    curves, more = {}, {}
    for name, run in contestants.items():
        try:
            curves[name], more[name] = run(case, seconds)
            print(name, len(curves[name]), curves[name][-1], flush=True)
        except ImportError as error:
            print(f"{name} is not installed: {error}", flush=True)
    least = min(value for curve in curves.values() for _, value in curve)
    found = {}
    for name, curve in curves.items():
        found[name] = {
            "seconds_to_1_percent": reached(curve, NEAR * least),
            "least": min(value for _, value in curve),
            "unrolled_to_its_least": reached(curves["unrolled"], min(v for _, v in curve)),
            "iterations": len(curve),
            **more[name],
            "curve": [[round(t, 4), value] for t, value in thinned(curve)],
        }
    return {"least": least, "contestants": found}


def reached(curve: Curve, value: float) -> float | None:
    """The seconds until a curve is at most a value."""
    return next((t for t, other in curve if other <= value), None)


def thinned(curve: Curve, count: int = 40) -> Curve:
    """Some points of a curve, always with the last point."""
    chosen = np.unique(np.geomspace(1, len(curve), count).astype(int)) - 1
    return [curve[i] for i in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="time per contestant")
    parser.add_argument("--only", choices=("1-D", "2-D", "two photographs"), nargs="*")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/convolutional.json"))
    arguments = parser.parse_args()
    one = {"unrolled": ours}
    for tol in (1e-1, 1e-2):
        one[f"alphacsc lgcd, {tol:g}"] = lambda case, s, tol=tol: alphacsc(case, s, tol)
    two = {"unrolled": ours}
    for x, d in (("admm", "cns"), ("admm", "pgm"), ("pgm", "pgm")):
        two[f"sporco {x}, {d}"] = lambda case, s, x=x, d=d: sporco(case, s, x, d)
    cases = {
        "1-D": (events, one),
        "2-D": (photographs, two),
        "two photographs": (two_photographs, two),
    }
    output = arguments.output
    results = json.loads(output.read_text()) if output.exists() else {}
    for name in arguments.only or cases:
        case, contestants = cases[name]
        results[name] = measured(case(), contestants, arguments.seconds)
        results[name] |= {"load_average": os.getloadavg()[0], "environment": environment()}
    save(arguments.output, results)


if __name__ == "__main__":
    main()
