"""Convolutional codes of photographs: `pursuit.lasso` and `lasso_batch` next to ConvBPDN of sporco.

    python benchmarks/convolutional_codes.py --sporco PYTHON    rows, convolutional_codes.json
    python benchmarks/convolutional_codes.py --table            prints the table of the rows
    python benchmarks/convolutional_codes.py --figure           convolutional_codes.png

PYTHON is the interpreter of an environment with sporco, which needs an older numpy. The filters are
8 x 8 windows of a photograph, the pictures are high-passed, and the boundary is circular. We solve
to a certified gap of 1e-3; sporco, in float32, runs until its objective, recomputed in float64, is
at most ours, once with its default rho and once with rho = 1. The evaluation is not counted, every
10 steps. Times are medians, after a first call that compiles or plans.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "convolutional_codes.json"
TOL, LAM, KERNEL, PATIENCE = 1e-3, 0.02, 8, 60.0
CASES = {
    "128 x 128, 16 filters": (1, 128, 16),
    "128 x 128, 64 filters": (1, 128, 64),
    "256 x 256, 16 filters": (1, 256, 16),
    "256 x 256, 64 filters": (1, 256, 64),
    "32 of 64 x 64, 16 filters": (32, 64, 16),
    "32 of 64 x 64, 64 filters": (32, 64, 64),
}


def data(n: int, side: int, n_filters: int) -> tuple[np.ndarray, np.ndarray]:
    """High-passed pictures, (n, side, side), and filters of norm 1, (n_filters, 8, 8)."""
    from scipy.ndimage import gaussian_filter
    from sklearn.datasets import load_sample_image

    china, flower = (load_sample_image(f"{name}.jpg").mean(2) / 255 for name in ("china", "flower"))
    china, flower = (image - gaussian_filter(image, 2.0) for image in (china, flower))
    rng = np.random.default_rng(0)
    windows = np.lib.stride_tricks.sliding_window_view(flower, (KERNEL, KERNEL)).reshape(-1, 64)
    energy = np.sum(windows**2, 1)
    chosen = rng.choice(len(windows), n_filters, replace=False, p=energy / energy.sum())
    filters = windows[chosen] / np.sqrt(energy[chosen])[:, None]
    corners = [(80 + 80 * (i // 8), 10 + 75 * (i % 8)) for i in range(n)] if n > 1 else [(90, 190)]
    pictures = np.stack([china[r : r + side, c : c + side] for r, c in corners])
    return pictures.astype(np.float32), filters.reshape(-1, KERNEL, KERNEL).astype(np.float32)


def objective(pictures: np.ndarray, filters: np.ndarray, X: np.ndarray) -> float:
    """The sum of the objectives in float64; D x is a convolution on the circle."""
    shape = pictures.shape[1:]
    spectra, bank = np.fft.rfft2(X.astype(float)), np.fft.rfft2(filters.astype(float), shape)
    r = pictures - np.fft.irfft2(np.sum(spectra * bank, 1), shape)
    return float(np.sum(r**2) / 2 + LAM * np.abs(X).sum(dtype=float))


def ours(pictures: np.ndarray, filters: np.ndarray) -> dict:
    import jax

    import unrolled as ur

    D = ur.dictionaries.Conv(filters[:, None], pictures.shape[1:], boundary="circular")
    alone = len(pictures) == 1
    solve, Y = (ur.pursuit.lasso, pictures[0]) if alone else (ur.pursuit.lasso_batch, pictures)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        found = jax.block_until_ready(solve(D, Y, LAM, tol=TOL))
        seconds.append(time.perf_counter() - began)
    X = np.asarray(found.x).reshape(len(pictures), *D.code_grid)
    return {
        "seconds": float(np.median(seconds[1:])),
        "spread": [min(seconds[1:]), max(seconds[1:])],
        "first": seconds[0],
        "objective": objective(pictures, filters, X),
        "largest gap": float(np.max(found.gap)),
        "steps": int(np.max(found.steps)),
        "nonzeros per pixel": float(np.mean(np.sum(X != 0, 1))),
        "how": found.how,
    }


def sporco(pictures: np.ndarray, filters: np.ndarray, target: float) -> dict:
    from sporco.admm import cbpdn

    signals, bank = np.moveaxis(pictures, 0, -1), np.moveaxis(filters, 0, -1)
    rows = {}
    for name, rho in (("default rho", {}), ("rho 1", {"rho": 1.0})):
        options = cbpdn.ConvBPDN.Options(
            {"Verbose": False, "MaxMainIter": 10, "RelStopTol": 1e-9, "DataType": np.float32, **rho}
        )

        def begin(options=options):
            return cbpdn.ConvBPDN(bank, signals, LAM, options, dimK=1)

        begin().solve()  # plans the Fourier transforms
        solver, seconds, steps, value = begin(), 0.0, 0, np.inf
        while value > target and seconds < PATIENCE:
            began = time.perf_counter()
            solver.solve()
            seconds, steps = seconds + time.perf_counter() - began, steps + 10
            X = np.moveaxis(solver.getcoef()[:, :, 0], (2, 3), (0, 1))
            value = objective(pictures, filters, X)
        rows[name] = {"seconds": seconds, "steps": steps, "objective": value}
    return rows


def rival(python: str, pictures: np.ndarray, filters: np.ndarray, target: float) -> dict:
    """The rows of `sporco`, computed by another interpreter."""
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file.name, pictures=pictures, filters=filters, target=target)
        command = [python, __file__, "--data", file.name]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def table(rows: dict) -> str:
    lines = ["| codes | unrolled | gap | sporco, its rho | rho = 1 |", "|---|---|---|---|---|"]
    for name, row in rows["cases"].items():
        own, others = row["unrolled"], row["sporco"].values()
        times = " | ".join(
            f"{r['seconds']:.2f} s" + (" (above)" if r["objective"] > own["objective"] else "")
            for r in others
        )
        lines.append(f"| {name} | {own['seconds']:.2f} s | {own['largest gap']:.1e} | {times} |")
    return "\n".join(lines)


def figure() -> None:
    """A photograph, its details, their convolutional code, and the learned filters."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from scipy.ndimage import gaussian_filter
    from sklearn.datasets import load_sample_image

    import unrolled as ur

    picture = load_sample_image("china.jpg").mean(2)[60:188, 180:308].astype(np.float32) / 255
    high = picture - gaussian_filter(picture, 2.0, mode="wrap")
    learned = ur.dictionary_learning.convolutional(
        high[None], (16, 1, KERNEL, KERNEL), lam=0.1, sweeps=60, boundary="circular"
    )
    found = ur.pursuit.lasso(learned.D, high, 0.1, tol=TOL)
    code = (learned.D @ found.x.reshape(-1)).reshape(high.shape)
    share = float(np.mean(np.sum(np.asarray(found.x) != 0, 0)))
    filters = np.asarray(learned.D.filters)[:, 0]
    filters = np.pad(filters / np.abs(filters).max((1, 2), keepdims=True), ((0, 0), (1, 1), (1, 1)))
    sheet = filters.reshape(4, 4, 10, 10).swapaxes(1, 2).reshape(40, 40)
    largest = float(np.abs(high).max()) / 2
    panels = (
        ("photograph", picture, 0, 1),
        ("details", high, -largest, largest),
        (f"code, {share:.2f} nonzeros per pixel", code, -largest, largest),
        ("16 learned filters", sheet, -1, 1),
    )
    drawing, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
    for axis, (title, image, low, high_end) in zip(axes, panels):
        axis.imshow(image, cmap="gray", vmin=low, vmax=high_end, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    drawing.savefig(RESULTS.with_suffix(".png"), dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sporco", help="the Python of an environment with sporco")
    parser.add_argument("--only", choices=CASES, nargs="*", help="measure only these cases again")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--figure", action="store_true")
    parser.add_argument("--data", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.data:
        stored = np.load(arguments.data)
        print(json.dumps(sporco(stored["pictures"], stored["filters"], float(stored["target"]))))
        return
    if arguments.figure:
        figure()
        return
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}}
    if arguments.table:
        print(table(rows))
        return
    from _measure import save

    for name in arguments.only or CASES:
        pictures, filters = data(*CASES[name])
        row: dict = {"unrolled": ours(pictures, filters), "sporco": {}}
        if arguments.sporco:
            target = row["unrolled"]["objective"]
            row["sporco"] = rival(arguments.sporco, pictures, filters, target)
        rows["cases"][name] = row
        print(name, json.dumps(row), flush=True)
        save(RESULTS, {"tol": TOL, "lam": LAM, "cases": rows["cases"]})


if __name__ == "__main__":
    main()
