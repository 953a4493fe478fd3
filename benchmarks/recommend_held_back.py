"""`ur.recommend` judged on ten kinds of signals that chose nothing (`_held_back.py`).

`recommend` sees 6,000 signals of a kind and measures 256 of them. The methods then code 1,000 other
signals: exact codes, `fista` and `bcd` untrained with 8 to 128 steps, and networks that are trained
for 300 steps at each rate. Trained are the predicted network, and `bcd` with 8 and 16 and `fista`
with 8, 16 and 32 steps if they take less time than the cheapest untrained codes within the gap, and
if their untrained gap is at most 0.3. The cost of a method for N signals is the CPU seconds of its
training, compilation included, and N times its CPU seconds per signal. A row has all costs and
gaps. The table judges them: for 1e4, 1e6 and 1e7 signals it has the method that `recommend`
advises, the cheapest method within the gap if it is another one, and the ratio of their costs (inf
if the gap of the advised method is above the wanted gap). Where `recommend` predicts a training,
the table has the measured gap, and the predicted and measured seconds and number of signals that
repay the training.

With --gap 1e-4, `recommend` predicts a training on kmers.

    T="taskset -c 0 env OPENBLAS_NUM_THREADS=1 XLA_FLAGS='--xla_cpu_multi_thread_eigen=false"
    eval "$T intra_op_parallelism_threads=1' python benchmarks/recommend_held_back.py"  adds rows
    python benchmarks/recommend_held_back.py --table                              prints the table
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _held_back import SHARES
from _kinds import TRAINED_ON
from _measure import environment, markdown, rows_of
from recipe import objectives

import unrolled as ur
from unrolled.pursuit import default_lam, in_turns

ROWS = Path(__file__).with_suffix(".jsonl")
TESTED_ON, SIGNALS = 1000, (10**4, 10**6, 10**7)
DEPTHS = 8, 16, 32, 64, 128
TRAINED = ("bcd", 8), ("bcd", 16), ("fista", 8), ("fista", 16), ("fista", 32)
KINDS = {kind.__name__: (kind, share) for kind, share in SHARES.items()}
MOST = 0.3  # untrained gap of a network to train


def measured(name: str, gap: float) -> dict[str, Any]:
    kind, share = KINDS[name]
    D, Y = (A.astype(np.float32) for A in kind(np.random.default_rng(0), TRAINED_ON + TESTED_ON))
    train, test = Y[:TRAINED_ON], Y[TRAINED_ON:]
    lam = float(f"{share * default_lam(D, train):.3g}")
    began = time.process_time()
    advice = ur.recommend(D, train, lam=lam, gap=gap, signals=max(SIGNALS))
    seconds = time.process_time() - began
    with jax.enable_x64(True):
        wide = (np.asarray(A, float) for A in (D, test))
        optima = np.asarray(ur.pursuit.lasso_batch(*wide, lam, tol=1e-9).x)
    best = objectives(D, test, optima, lam)
    some = best > 0  # the signals that are not zero

    def gap_of(codes: Any) -> float:
        return float((objectives(D, test, codes, lam)[some] / best[some] - 1).mean())

    D = jax.numpy.asarray(D)
    calls: dict[str, Callable[[], Any]] = {
        "lasso_batch": lambda: ur.pursuit.lasso_batch(D, test, lam).x
    }
    for family in ("fista", "bcd"):
        for K in DEPTHS:
            layer = ur.layers.FAMILIES[family](K, lam=lam)
            calls[f"{family} {K}"] = _call(layer, layer.init(None, D), D, test)
    gaps = {n: gap_of(call()) for n, call in calls.items()}
    spent = {n: timing.seconds / TESTED_ON for n, timing in in_turns(calls).items()}
    least = min(spent[n] for n in calls if gaps[n] <= gap)
    trainings: dict[str, float] = {}
    told = advice.training
    wanted = [] if told is None else [(told.method, told.K)]
    wanted += [
        (family, K)
        for family, K in TRAINED
        if spent[f"{family} {K}"] < least and gap < gaps[f"{family} {K}"] <= MOST
    ]
    trained = {"lasso_batch": calls["lasso_batch"]}
    for family, K in dict.fromkeys(wanted):
        began, n = time.process_time(), f"{family} {K} trained"
        fit = ur.training.unsupervised(
            D, train, lam, K, family=family, steps=300, key=0, progress=False
        )
        trainings[n] = time.process_time() - began
        trained[n] = _call(fit.model, fit.best, D, test)
        gaps[n] = gap_of(trained[n]())
    again = {n: timing.seconds / TESTED_ON for n, timing in in_turns(trained).items()}
    scale = spent["lasso_batch"] / again.pop("lasso_batch")  # other load changes with time
    spent |= {n: scale * each for n, each in again.items()}
    return {
        "problem": name,
        "gap": gap,
        "shape": D.shape,
        "lam": lam,
        "nonzeros": float((optima != 0).sum(1).mean()),
        "seconds": seconds,
        "microseconds": {n: 1e6 * each for n, each in spent.items()},
        "gaps": gaps,
        "trainings": trainings,
        "advice": [row.asdict() for row in advice.rows],
        "training": None if told is None else told.asdict(),
        "why": advice.why,
        "environment": environment(),
    }


def _call(layer: Any, params: Any, D: Any, Y: np.ndarray) -> Callable[[], Any]:
    return lambda: layer.encode(D, Y, params)


def judged(row: dict[str, Any], n: int) -> tuple[str, str, float]:
    """The advised method, the cheapest method within the gap, and the ratio of their costs."""

    def cost(name: str) -> float:
        return row["trainings"].get(name, 0.0) + 1e-6 * n * row["microseconds"][name]

    (told, best), gap = advised(row, n), row["gap"]
    chosen = f"{best.method} {best.K or ''}".strip()
    if told is not None and n > told.repaid(best):
        chosen = f"{told.method} {told.K} trained"
    least = min((name for name in row["gaps"] if row["gaps"][name] <= gap), key=cost)
    within = row["gaps"][chosen] <= gap
    return chosen, least, cost(chosen) / cost(least) if within else math.inf


def advised(row: dict[str, Any], n: int) -> tuple[Any, Any]:
    """The predicted training, and the cheapest method without training for n signals, as
    `recommend` saw them.
    """
    rows = [ur.training.Candidate(**each) for each in row["advice"]]
    told = row["training"] and ur.training.Candidate(**row["training"])
    own = [of for of in rows if of.K is not None or of.method == "lasso_batch"]
    within = [of for of in own if of.mean <= row["gap"]] or own[:1]
    return told, min(within, key=lambda of: of.seconds(n))


def predicted(row: dict[str, Any]) -> str:
    """The measured gap, and the predicted and measured seconds and signals that repay."""
    told, best = advised(row, max(SIGNALS))
    if told is None:
        return "no gain"
    name, spent = f"{told.method} {told.K} trained", row["microseconds"]
    own = min(spent[n] for n in spent if n not in row["trainings"] and row["gaps"][n] <= row["gap"])
    seconds = row["trainings"][name]
    repaid = 1e6 * seconds / (own - spent[name]) if own > spent[name] else math.inf
    return (
        f"{told.method} {told.K}: {row['gaps'][name]:.1e}; "
        f"{told.training:.0f} s, {seconds:.0f} s; {told.repaid(best):.2g}, {repaid:.2g}"
    )


def table() -> str:
    lines = []
    for row in rows_of(ROWS):
        m, d = row["shape"]
        line: dict[str, object] = {
            "signals": f"{row['problem']}, {m} x {d}",
            "gap": f"{row['gap']:g}",
            "nonzeros per code": f"{row['nonzeros']:.1f}",
            "exact codes, us": f"{row['microseconds']['lasso_batch']:.1f}",
        }
        for n in SIGNALS:
            chosen, least, ratio = judged(row, n)
            cell = chosen if chosen == least else f"{chosen}; {least}"
            line[f"{n:.0e} signals".replace("+0", "")] = f"{cell}, {ratio:.2f}"
        line["training: gap; seconds; signals"] = predicted(row)
        lines.append(line | {"CPU seconds of the call": f"{row['seconds']:.0f}"})
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--problems", default=",".join(KINDS))
    parser.add_argument("--gap", type=float, default=1e-3)
    arguments = parser.parse_args()
    done = {row["problem"] for row in rows_of(ROWS) if row["gap"] == arguments.gap}
    for name in [] if arguments.table else arguments.problems.split(","):
        if name not in done:
            row = measured(name, arguments.gap)
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table())


if __name__ == "__main__":
    main()
