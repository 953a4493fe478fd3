"""The LASSO of MR images next to sigpy and scico, at the same objective.

    python benchmarks/mri_rivals.py --sigpy PYTHON --scico PYTHON    rows, mri_rivals.json

PYTHON is the interpreter of an environment of its own; scico needs an older jax. All solve the same
problem: a picture of 256 x 256 pixels with random ellipses and a smooth phase, a quarter of the
frequencies of one coil with noise of deviation 0.01, Haar wavelets, complex64. We solve to a
relative gap of 1e-3. A rival runs FISTA until its objective, recomputed in complex128, is at most
ours times 1 + 1e-4; the number of steps is found first, and the timed call takes this number of
steps. Times are medians of five calls after a first one.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "mri_rivals.json"
LAM, LEVELS, TOL, NEAR, CALLS = 0.004, 4, 1e-3, 1 + 1e-4, 5
N, SHARE, NOISE = 256, 0.25, 0.01
STEPS = (10, 20, 30, 40, 50, 60, 80, 100, 120, 150, 200, 300, 500)


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


def haar(image, levels=LEVELS):
    """Haar coefficients in place of the pixels; the inverse is `unhaar`."""
    image, n = np.array(image, complex), len(image)
    for _ in range(levels):
        for axis in (0, 1):
            part = np.moveaxis(image[:n, :n], axis, 0)
            low, high = part[::2] + part[1::2], part[::2] - part[1::2]
            part[:] = np.concatenate([low, high]) / np.sqrt(2)
        n //= 2
    return image


def objective(picture, mask, y) -> float:
    """1/2 norm(y - mask F picture)^2 + lam norm(W picture)_1, in complex128."""
    r = y - mask * np.fft.fft2(np.asarray(picture, complex), norm="ortho")
    return float(np.sum(np.abs(r) ** 2) / 2 + LAM * np.sum(np.abs(haar(picture))))


def timed(run, picture_of, mask, y) -> dict:
    run()
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": float(np.median(seconds)),
        "spread": [min(seconds), max(seconds)],
        "objective": objective(picture_of(found), mask, y),
    }


def least_steps(run, picture_of, mask, y, target) -> int:
    """The fewest steps of STEPS that reach the target; STEPS[-1] if none does."""
    for steps in STEPS:
        if objective(picture_of(run(steps)), mask, y) <= target:
            break
    return steps


def ours(mask, y) -> dict:
    import jax

    import unrolled as ur

    W = ur.dictionaries.wavelet(mask.shape, "haar", LEVELS)
    D = ur.dictionaries.fourier(mask.shape, mask) @ W
    solve = jax.jit(lambda y: ur.pursuit.fista(D, y, LAM, tol=TOL))
    flat = y.reshape(-1)

    def picture_of(found):
        x = np.asarray(found.x)
        return (np.asarray(W @ x.real) + 1j * np.asarray(W @ x.imag)).reshape(mask.shape)

    row = timed(lambda: jax.block_until_ready(solve(flat)), picture_of, mask, y)
    found = solve(flat)
    return {**row, "steps": int(found.steps), "gap": float(found.gap), "version": ur.__version__}


def sigpy(mask, y, target) -> dict:
    import sigpy as sp

    F = sp.linop.FFT(mask.shape, center=False)
    W = sp.linop.Wavelet(mask.shape, wave_name="haar", level=LEVELS)
    A = sp.linop.Multiply(mask.shape, mask.astype(np.float32)) * F
    prox = sp.prox.UnitaryTransform(sp.prox.L1Reg(W.oshape, LAM), W)

    def run(steps):
        app = sp.app.LinearLeastSquares(
            A, y, proxg=prox, alpha=1.0, max_iter=steps, show_pbar=False, tol=0
        )
        return app.run()

    steps = least_steps(run, np.asarray, mask, y, target)
    return {
        **timed(lambda: run(steps), np.asarray, mask, y),
        "steps": steps,
        "version": sp.__version__,
    }


def scico(mask, y, target) -> dict:
    import jax
    import jax.numpy as jnp
    import scico as package
    from scico import functional, linop, loss
    from scico.optimize import AcceleratedPGM

    class HaarNorm(functional.Functional):
        """The l1 norm of the Haar coefficients; its prox thresholds them."""

        has_eval, has_prox = True, True

        def __call__(self, x):
            return jnp.sum(jnp.abs(analysis(x)))

        def prox(self, v, lam=1.0, **_):
            w = analysis(v)
            size = jnp.abs(w)
            return synthesis(w * jnp.maximum(1 - lam / jnp.where(size > 0, size, 1), 0))

    @jax.jit
    def analysis(x):
        n = len(x)
        for _ in range(LEVELS):
            part = x[:n, :n]
            for axis in (0, 1):
                a, b = (jnp.moveaxis(part, axis, 0)[i::2] for i in (0, 1))
                part = jnp.moveaxis(jnp.concatenate([a + b, a - b]), 0, axis) / np.sqrt(2)
            x, n = x.at[:n, :n].set(part), n // 2
        return x

    @jax.jit
    def synthesis(w):
        n = len(w) >> (LEVELS - 1)
        for _ in range(LEVELS):
            part = w[:n, :n]
            for axis in (1, 0):
                low, high = jnp.split(jnp.moveaxis(part, axis, 0), 2)
                pairs = jnp.stack([low + high, low - high], 1).reshape(n, n)
                part = jnp.moveaxis(pairs, 0, axis) / np.sqrt(2)
            w, n = w.at[:n, :n].set(part), 2 * n
        return w

    F = linop.DFT(mask.shape, norm="ortho")
    A = linop.Diagonal(jnp.asarray(mask, jnp.complex64)) @ F
    f, g = loss.SquaredL2Loss(y=jnp.asarray(y), A=A), LAM * HaarNorm()

    def run(steps):
        start = jnp.zeros(mask.shape, jnp.complex64)
        solver = AcceleratedPGM(f=f, g=g, L0=1.0, x0=start, maxiter=steps)
        return jax.block_until_ready(solver.solve())

    steps = least_steps(run, np.asarray, mask, y, target)
    return {
        **timed(lambda: run(steps), np.asarray, mask, y),
        "steps": steps,
        "version": f"{package.__version__}, jax {jax.__version__}",
    }


RIVALS = {"sigpy": sigpy, "scico": scico}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in RIVALS:
        parser.add_argument(f"--{name}", help=f"the Python of an environment with {name}")
    parser.add_argument("--data", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.data:
        name, path = arguments.data
        stored = np.load(path)
        print(json.dumps(RIVALS[name](stored["mask"], stored["y"], float(stored["target"]))))
        return
    from _measure import save

    mask, _, Y = problem(1, 1)
    y = Y[0].reshape(mask.shape)
    rows = {"unrolled": ours(mask, y)}
    print("unrolled", rows["unrolled"], flush=True)
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file.name, mask=mask, y=y, target=NEAR * rows["unrolled"]["objective"])
        for name in RIVALS:
            if python := getattr(arguments, name):
                command = [python, __file__, "--data", name, file.name]
                found = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
                rows[name] = json.loads(found.splitlines()[-1])
                print(name, rows[name], flush=True)
    save(RESULTS, {"lam": LAM, "tol": TOL, "rows": rows})


if __name__ == "__main__":
    main()
