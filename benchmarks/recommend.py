"""`ur.recommend` judged by an independent measurement, on the problems of two other benchmarks.

`recommend` sees the first 6,000 signals of a kind and measures 256 of them. All its untrained
candidates and the exact solver then code other signals (1,000 of the kinds in `_kinds.py`, 500 of
the problems of 256 x 1024 in `recipe_large.py`), in turns, with F* by
`lasso_batch` in float64. A row is one kind: the number of nonzeros, the microseconds of CPU time
and the mean gaps of all candidates as `recommend` and as the independent measurement see them, and
for gaps of 1e-2, 1e-3 and 1e-4 the untrained choice, and its cost over that of the cheapest
candidate within the gap. `seconds` is the CPU time of the whole call, compilation included.

    T="taskset -c 0 env OPENBLAS_NUM_THREADS=1 XLA_FLAGS='--xla_cpu_multi_thread_eigen=false"
    eval "$T intra_op_parallelism_threads=1' python benchmarks/recommend.py"     adds missing rows
    python benchmarks/recommend.py --table                                       prints the table
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _kinds import KINDS
from _measure import environment, markdown, rows_of
from recipe import objectives
from recipe import problem_of as problem_of_kind
from recipe_large import PROBLEMS
from recipe_large import problem_of as large_problem_of

import unrolled as ur
from unrolled.pursuit import in_turns

ROWS = Path(__file__).parent / "recommend.jsonl"
GAPS = 1e-2, 1e-3, 1e-4


def measured(name: str) -> dict[str, Any]:
    D, train, test, lam = (large_problem_of if name in PROBLEMS else problem_of_kind)(name, 0)
    began = time.process_time()
    advice = ur.recommend(D, train, lam=lam, gap=min(GAPS))
    seconds = time.process_time() - began
    calls = {"lasso_batch": lambda: ur.pursuit.lasso_batch(D, test, lam).x}
    for row in advice.rows:
        if row.K is not None:
            layer = ur.layers.FAMILIES[row.method](row.K, lam=lam)
            params = layer.init(None, D)
            calls[f"{row.method} {row.K}"] = lambda layer=layer, params=params: layer.encode(
                D, test, params
            )
    with jax.enable_x64(True):
        wide = (np.asarray(A, float) for A in (D, test))
        optima = np.asarray(ur.pursuit.lasso_batch(*wide, lam, tol=1e-9).x)
    best = objectives(D, test, optima, lam)
    some = best > 0  # the signals that are not zero

    def mean_gap(codes: Any) -> float:
        return float((objectives(D, test, codes, lam)[some] / best[some] - 1).mean())

    gaps = {n: mean_gap(call()) for n, call in calls.items()}
    spent = {n: 1e6 * timing.seconds / len(test) for n, timing in in_turns(calls).items()}
    told = {f"{row.method} {row.K or ''}".strip(): row for row in advice.rows}
    return {
        "problem": name,
        "shape": D.shape,
        "nonzeros": float((optima != 0).sum(1).mean()),
        "seconds": seconds,
        "microseconds": {n: [told[n].microseconds, spent[n]] for n in calls},
        "gaps": {n: [told[n].mean, gaps[n]] for n in calls},
        "choices": {f"{gap:g}": _choice(told, gaps, spent, gap) for gap in GAPS},
        "environment": environment(),
    }


def _choice(told: dict, gaps: dict, spent: dict, gap: float) -> list:
    """The cheapest candidate by `recommend`, and its measured cost over that of the cheapest."""
    within = [n for n in told if n in gaps and told[n].mean <= gap]
    chosen = min(within, key=lambda n: told[n].microseconds)
    least = min(spent[n] for n in gaps if gaps[n] <= gap)
    return [chosen, spent[chosen] / least, gaps[chosen]]


def table() -> str:
    lines = []
    for row in rows_of(ROWS):
        m, d = row["shape"]
        line: dict[str, object] = {
            "signals": f"{row['problem'].replace('_', ' ')}, {m} x {d}",
            "nonzeros per code": f"{row['nonzeros']:.1f}",
            "exact codes, us": f"{row['microseconds']['lasso_batch'][1]:.1f}",
        }
        for gap, (chosen, ratio, _) in row["choices"].items():
            spent = row["microseconds"][chosen][1]
            line[f"gap {gap}: choice, us, over the cheapest"] = (
                f"{chosen}, {spent:.1f}, {ratio:.2f}"
            )
        lines.append(line | {"CPU seconds of the call": f"{row['seconds']:.0f}"})
    return markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--problems", default=";".join((*KINDS, *PROBLEMS)))
    arguments = parser.parse_args()
    done = {row["problem"] for row in rows_of(ROWS)}
    for name in [] if arguments.table else arguments.problems.split(";"):
        if name not in done:
            with ROWS.open("a") as file:
                file.write(json.dumps(measured(name)) + "\n")
    print(table())


if __name__ == "__main__":
    main()
