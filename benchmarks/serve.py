"""Exported networks that prove their codes, on a million signals: gaps against F* in float64.

A network of 16 sweeps of `bcd`, without training, is exported with the tolerance 1e-3 for a
Gaussian dictionary of 32 x 64, and for piecewise constant signals in a staircase of correlated
atoms (64 x 63, `steps` in `_kinds.py`). The file is run without this library, in batches of 1,000
signals. There are five classes with equal numbers of signals: the class of the held-out signals,
noise, signals times 10^k with k uniform in [-20, 20], signals plus a constant and a trend, and sums
of two signals with one large entry. A gap is false if it is below the excess of the objective over
the objective of exact codes (`lasso_batch` in float64, to 1e-13).

    python benchmarks/serve.py           adds missing rows; about 20 minutes on one core
    python benchmarks/serve.py --table   prints the table
"""

import argparse
import json
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from _kinds import KINDS
from _measure import environment, markdown, rows_of

import unrolled as ur
from unrolled.pursuit import default_lam

ROWS = Path(__file__).parent / "serve.jsonl"
SIGNALS, BATCH, TOL, STEPS, HELD_OUT = 500_000, 1000, 1e-3, 16, 20_000
CLASSES = "own", "noise", "scaled", "drifted", "outlier"


def gaussian(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    D = np.asarray(ur.dictionaries.gaussian(0, 32, 64), float)
    X = rng.normal(size=(n, 64)) * (rng.random((n, 64)) < 0.06)
    return D, X @ D.T + 0.05 * rng.normal(size=(n, 32))


PROBLEMS: dict[str, Callable] = {"gaussian": gaussian, "steps": KINDS["steps"]}


def changed(rng: np.random.Generator, Y: np.ndarray, name: str) -> np.ndarray:
    """Signals of another class."""
    n, m = Y.shape
    if name == "noise":
        return rng.normal(size=Y.shape)
    if name == "scaled":
        return Y * 10 ** rng.uniform(-20, 20, (n, 1))
    if name == "drifted":
        return Y + rng.normal(size=(n, 1)) + rng.normal(size=(n, 1)) * np.linspace(-1, 1, m)
    if name == "outlier":
        Y = Y + Y[::-1]
        Y[np.arange(n), rng.integers(0, m, n)] += 10 * rng.normal(size=n)
    return Y


def excess(D: np.ndarray, Y: np.ndarray, X: np.ndarray, lam: float) -> np.ndarray:
    """F(x) - F* over norm(y)^2 / 2, in float64."""
    with jax.enable_x64(True):
        D, Y, X = (np.asarray(v, float) for v in (D, Y, X))
        best = np.asarray(ur.pursuit.lasso_batch(D, Y, lam, tol=1e-13).x)
    values = [((Y - Z @ D.T) ** 2).sum(1) / 2 + lam * abs(Z).sum(1) for Z in (X, best)]
    energy = (Y**2).sum(1) / 2
    return (values[0] - values[1]) / np.where(energy > 0, energy, 1)


def measured(name: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    D, held_out = PROBLEMS[name](rng, HELD_OUT)
    D, lam = D.astype("f"), default_lam(D, held_out)
    layer = ur.layers.bcd(STEPS, lam=lam)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.stablehlo"
        ur.export.save(path, layer, layer.init(None, D), D, tol=TOL, held_out=held_out)
        with zipfile.ZipFile(path) as archive:
            program = bytearray(archive.read("program"))
            proof = json.loads(archive.read("manifest.json"))["proof"]
    run = jax.jit(jax.export.deserialize(program).call)
    rows = []
    for kind in CLASSES:
        row: dict[str, Any] = {"problem": name, "shape": D.shape, "class": kind, "proof": proof}
        row |= dict.fromkeys(("signals", "false", "above tol", "more steps", "seconds"), 0)
        most, least = 0, np.inf
        for _ in range(SIGNALS // len(CLASSES) // BATCH):
            Y = changed(rng, PROBLEMS[name](rng, BATCH)[1], kind).astype("f")
            if not row["signals"]:
                jax.block_until_ready(run(Y))  # compiles
            began = time.process_time()
            X, gap, steps = map(np.asarray, jax.block_until_ready(run(Y)))
            row["seconds"] += time.process_time() - began
            true = excess(D, Y, X, proof["lam"])
            row["signals"] += BATCH
            row["false"] += int((true > gap).sum())
            row["above tol"] += int((gap > TOL).sum())
            row["more steps"] += int((steps > STEPS).sum())
            most, least = max(most, int(steps.max())), min(least, float((gap - true).min()))
        rows.append(row | {"most steps": most, "least slack": least, "environment": environment()})
    return rows


def table() -> str:
    return markdown(
        [
            {
                "dictionary": f"{row['problem']}, {' x '.join(map(str, row['shape']))}",
                "signals": f"{row['class']}, {row['signals']:,}",
                "false gaps": row["false"],
                "gaps above tol": row["above tol"],
                "more than 16 steps": f"{100 * row['more steps'] / row['signals']:.0f} %",
                "bound from held-out signals": f"{100 * row['proof']['share']:.2g} %"
                if row["class"] == "own"
                else "-",
                "most steps": row["most steps"],
                "CPU us per signal": f"{1e6 * row['seconds'] / row['signals']:.0f}",
            }
            for row in rows_of(ROWS)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    done = {row["problem"] for row in rows_of(ROWS)}
    for name in [] if arguments.table else PROBLEMS:
        if name not in done:
            with ROWS.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in measured(name))
    print(table())


if __name__ == "__main__":
    main()
