"""`training.unsupervised` on ten problems whose signals have very different sizes.

Each problem draws a dictionary, 3,000 signals for the recipe, and 1,000 unseen signals. The sizes
of the signals have heavy tails: Student's t with 2 degrees of freedom, a log-normal law with sigma
2, or 1 % of the signals with 100 times the norm; other problems have sparse counts, echoes, or
mixtures of two kinds. A row has the share of the unseen signals whose objective F after training
exceeds F of the untrained layer by more than 1e-3 of F(0), the share that the result states for the
signals held back, the mean, median and 90 % quantile of (F - F*) / F(0) before and after training,
and the CPU seconds of the call, compilation included.

    python benchmarks/unequal_signals.py --output rows.jsonl    adds missing rows
    python benchmarks/unequal_signals.py --table                prints the table
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from _measure import environment, markdown, rows_of

import unrolled as ur
from unrolled.pursuit import default_lam

ROWS = Path(__file__).parent / "unequal_signals.jsonl"
TRAINED_ON, TESTED_ON, DEPTH = 3000, 1000, 16
WORSE = 1e-3  # of F(0)


def gaussian(rng: np.random.Generator, m: int, d: int) -> np.ndarray:
    D = rng.normal(size=(m, d))
    return D / np.linalg.norm(D, axis=0)


def echoes(rng: np.random.Generator, m: int, d: int) -> np.ndarray:
    """Shifted pulses, each with an echo: neighbours have large inner products."""
    time, at = np.arange(m)[:, None], np.linspace(0, m, d, endpoint=False)
    delay, width = rng.uniform(4, 8), rng.uniform(1.5, 2.5)
    D = sum(
        gain * np.exp(-(((time - at - k * delay) / width) ** 2) / 2)
        for k, gain in enumerate((1, 0.6))
    )
    return D / np.linalg.norm(D, axis=0)


def sparse(rng: np.random.Generator, n: int, D: np.ndarray, share: float = 0.06) -> np.ndarray:
    X = rng.normal(size=(n, D.shape[1])) * (rng.random((n, D.shape[1])) < share)
    return X @ D.T + 0.02 * rng.normal(size=(n, D.shape[0]))


def student(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.abs(rng.standard_t(2, (n, 1)))


def lognormal(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.exp(2 * rng.normal(size=(n, 1)))


def outliers(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random((n, 1)) < 0.01, 100.0, 1.0)


def counts(rng: np.random.Generator, n: int, m: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of few events, whose rates are sums of few profiles of a log-normal strength."""
    D = rng.gamma(0.3, size=(m, d))
    D /= np.linalg.norm(D, axis=0)
    rates = np.abs(sparse(rng, n, D)) * np.exp(rng.normal(size=(n, 1)))
    return D, rng.poisson(rates).astype(float)


def scaled(kind: Any, size: Any, m: int, d: int) -> Any:
    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        D = kind(rng, m, d)
        return D, size(rng, n) * sparse(rng, n, D)

    return draw


def mixed(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Dense small signals, and sparse large signals."""
    D = gaussian(rng, 48, 96)
    large = rng.random((n, 1)) < 0.2
    return D, np.where(large, 20 * sparse(rng, n, D, 0.03), sparse(rng, n, D, 0.2))


PROBLEMS = {
    "Student-t(2)": scaled(gaussian, student, 64, 128),
    "Student-t(2), echoes": scaled(echoes, student, 64, 96),
    "log-normal": scaled(gaussian, lognormal, 48, 128),
    "log-normal, echoes": scaled(echoes, lognormal, 64, 128),
    "outliers": scaled(gaussian, outliers, 64, 128),
    "outliers, echoes": scaled(echoes, outliers, 48, 96),
    "counts": lambda rng, n: counts(rng, n, 64, 96),
    "counts, wide": lambda rng, n: counts(rng, n, 48, 160),
    "echoes": scaled(echoes, lambda rng, n: np.exp(rng.normal(size=(n, 1))), 64, 128),
    "mixture": mixed,
}


def objectives(D: np.ndarray, Y: np.ndarray, X: Any, lam: float) -> np.ndarray:
    X = np.asarray(X, float)
    return ((Y - X @ D.T) ** 2).sum(1) / 2 + lam * np.abs(X).sum(1)


def measured(name: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, list(PROBLEMS).index(name)])
    D, Y = (A.astype("f") for A in PROBLEMS[name](rng, TRAINED_ON + TESTED_ON))
    Y = Y[Y.any(1)]
    train, test = Y[:-TESTED_ON], Y[-TESTED_ON:]
    lam = float(f"{default_lam(D, train):.3g}")
    began = time.process_time()
    fit = ur.training.unsupervised(D, train, lam, DEPTH, key=seed, progress=False)
    seconds = time.process_time() - began
    wide, zero = (D.astype(float), test.astype(float)), (test.astype(float) ** 2).sum(1) / 2
    layer: Any = fit.model
    codes = {"start": layer.encode(D, test), "end": layer.encode(D, test, fit.best)}
    best = objectives(*wide, ur.pursuit.lasso_batch(D, test, lam, tol=1e-6).x, lam)
    F = {at: objectives(*wide, of, lam) for at, of in codes.items()}
    gaps = {at: (of - best) / zero for at, of in F.items()}
    return {
        "problem": name,
        "seed": seed,
        "shape": D.shape,
        "lam": lam,
        "worse": float(np.mean(F["end"] - F["start"] > WORSE * zero)),
        "stated": getattr(fit, "raised", None),
        "gaps": {
            at: [float(of.mean()), float(np.median(of)), float(np.quantile(of, 0.9))]
            for at, of in gaps.items()
        },
        "F": {at: float(of.sum() / best.sum() - 1) for at, of in F.items()},
        "steps": sum(each.steps for each in fit.tried),
        "seconds": seconds,
        "environment": environment(),
    }


def table(path: Path) -> str:
    lines = []
    for row in rows_of(path):
        m, d = row["shape"]
        cells = {
            f"{name} of (F - F*) / F(0)": f"{before:.1e}, {after:.1e}"
            for name, before, after in zip(("mean", "median", "90 %"), *row["gaps"].values())
        }
        stated = "" if row["stated"] is None else f", {100 * row['stated']:.1f} %"
        worse = {"worse: unseen, stated": f"{100 * row['worse']:.1f} %{stated}"}
        totals = {"gap of the mean F": ", ".join(f"{gap:.1e}" for gap in row["F"].values())}
        spent = {"steps": row["steps"], "CPU seconds": f"{row['seconds']:.0f}"}
        lines.append({"signals": f"{row['problem']}, {m} x {d}"} | worse | cells | totals | spent)
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROWS)
    parser.add_argument("--problems", default=";".join(PROBLEMS))
    arguments = parser.parse_args()
    done = {row["problem"] for row in rows_of(arguments.output)}
    for name in [] if arguments.table else arguments.problems.split(";"):
        if name not in done:
            with arguments.output.open("a") as file:
                file.write(json.dumps(measured(name, arguments.seed)) + "\n")
    print(table(arguments.output))


if __name__ == "__main__":
    main()
