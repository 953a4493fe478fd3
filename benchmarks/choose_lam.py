"""`ur.choose_lam` next to cross-validation by scikit-learn, on three of the kinds in `_kinds.py`.

The signals f of a kind get Gaussian noise whose norm is a fifth or the half of the mean norm of a
signal. A row is one kind, one noise and one seed: for each rule the seconds of CPU time for 100
signals, codes included, and the error norm(f - D x)^2 as a share of norm(y - f)^2, summed over the
signals. `LassoCV` fits a model for each signal, with five random parts of the entries and 31
penalties. The oracle knows f, and takes the penalty of the path with the least error: one for all
signals, or one for each signal.

    T="taskset -c 0 env OPENBLAS_NUM_THREADS=1 XLA_FLAGS='--xla_cpu_multi_thread_eigen=false"
    eval "$T intra_op_parallelism_threads=1' python benchmarks/choose_lam.py"    adds missing rows
    python benchmarks/choose_lam.py --table                                      prints the table
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _kinds import KINDS, TRAINED_ON, spread
from _measure import environment, markdown, rows_of

import unrolled as ur

ROWS = Path(__file__).parent / "choose_lam.jsonl"
PROBLEMS = "photographs", "sounds", "sines_and_spikes"
NOISES, SEEDS, SIGNALS = (0.2, 0.5), (0, 1, 2), 100
RULES: dict[str, dict[str, Any]] = {
    "SURE": {"by": "sure"},
    "discrepancy": {"by": "discrepancy"},
    "GCV": {},
    "held out": {"by": "held out"},
    "SURE, each": {"by": "sure", "each": True},
    "discrepancy, each": {"by": "discrepancy", "each": True},
    "GCV, each": {"each": True},
    "held out, each": {"by": "held out", "each": True},
}
CV = "LassoCV, each"


def cross_validated(D: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """The codes of a `LassoCV` for each signal."""
    from sklearn.linear_model import LassoCV
    from sklearn.model_selection import KFold

    parts = KFold(5, shuffle=True, random_state=0)
    model = LassoCV(eps=1e-3, alphas=31, cv=parts, fit_intercept=False, max_iter=10_000)
    return np.stack([model.fit(D, y).coef_ for y in Y])


def measured(name: str, noise: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    D, F = KINDS[name](rng, TRAINED_ON + SIGNALS)
    D, F = D.astype("float32"), F[TRAINED_ON:]
    sigma = noise * spread(F)
    Y = (F + sigma * rng.normal(size=F.shape)).astype("float32")

    def codes(rule: dict[str, Any]) -> np.ndarray:
        known = {"noise": sigma} if rule.get("by") in ("sure", "discrepancy") else {}
        lam = ur.choose_lam(D, Y, **known, **rule).lam
        return np.asarray(ur.pursuit.lasso_batch(D, Y, lam).x)

    def errors(X: np.ndarray) -> np.ndarray:
        return ((X @ D.T - F) ** 2).sum(1)

    energy, path = ((Y - F) ** 2).sum(), ur.choose_lam(D, Y, noise=sigma).lams
    of_path = np.stack([errors(np.asarray(ur.pursuit.lasso_batch(D, Y, lam).x)) for lam in path])
    calls: dict[str, Callable] = {rule: lambda o=o: codes(o) for rule, o in RULES.items()}
    calls[CV] = lambda: cross_validated(D, Y)
    row: dict[str, Any] = {"problem": name, "shape": D.shape, "noise": noise, "seed": seed}
    row |= {"seconds": {}, "error": {}}
    for rule, call in calls.items():
        if rule != CV:
            call()  # compiles
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # models of scikit-learn that have not converged
            X = call()
        row["seconds"][rule] = time.process_time() - began
        row["error"][rule] = float(errors(X).sum() / energy)
    row["error"]["oracle"] = float(of_path.sum(1).min() / energy)
    row["error"]["oracle, each"] = float(of_path.min(0).sum() / energy)
    return row | {"environment": environment()}


def table() -> str:
    lines = []
    of: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows_of(ROWS):
        of.setdefault((row["problem"], *row["shape"], row["noise"]), []).append(row)
    for rule in (*RULES, CV, "oracle", "oracle, each"):
        line: dict[str, object] = {"rule": rule}
        for (name, m, d, noise), seeds in of.items():
            errors = [row["error"][rule] for row in seeds]
            spent = [
                1e3 * row["seconds"][rule] / SIGNALS for row in seeds if rule in row["seconds"]
            ]
            cost = f"; {np.median(spent):.2f} ms" if spent else ""
            title = f"{name.replace('_', ' ')}, {m} x {d}, noise {noise}"
            line[title] = f"{np.mean(errors):.3f} ± {np.std(errors, ddof=1):.3f}{cost}"
        lines.append(line)
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    done = {(row["problem"], row["noise"], row["seed"]) for row in rows_of(ROWS)}
    tasks = [(name, noise, seed) for name in PROBLEMS for noise in NOISES for seed in SEEDS]
    for task in [] if arguments.table else tasks:
        if task not in done:
            with ROWS.open("a") as file:
                file.write(json.dumps(measured(*task)) + "\n")
    print(table())


if __name__ == "__main__":
    main()
