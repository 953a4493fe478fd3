"""`training.unsupervised` compared with FISTA and exact codes on signals of fourteen kinds.

We chose the learning rates of the recipe on four kinds of signals; the other ten test it
(`_kinds.py` describes all kinds). All options keep their defaults, except `relative=False`, because
the gap is that of mean objectives. Each row is one kind of signal
and one seed of data and training. A row has the gap F / F* - 1 of mean objectives on 1,000 fresh
signals, with F* by `lasso_batch`, and quantiles of the gaps of single signals whose optimal code is
not zero. It also has the CPU seconds of the whole call, compilation included, and the number of
signals after which they are repaid next to exact codes (null if exact codes take no more time than
the network). Microseconds are CPU time of one thread.

With `--starts`, a row is one kind of signal, with the gap at the start (`init`, without training)
of every family of layers with 16 steps, seed 0. `liht` keeps as many entries as the optimal codes
have nonzeros in the mean.

With `--relative`, a row is one kind of signal and seed, with the gaps before training, after
training with `relative=False` and after training with `relative=True`, and the share of the test
signals whose objective is above the objective before training.

    T="taskset -c 0 env OPENBLAS_NUM_THREADS=1 XLA_FLAGS='--xla_cpu_multi_thread_eigen=false"
    eval "$T intra_op_parallelism_threads=1' python benchmarks/recipe.py"       adds missing rows
    python benchmarks/recipe.py --family lfista_cp --seeds 0  adds rows of this family
    python benchmarks/recipe.py --depths 8,24,32 --seeds 0    adds rows for these numbers of steps
    python benchmarks/recipe.py --table               prints the tables
    python benchmarks/recipe.py --depths 8,16,24,32 --table   a column for each number of steps
    python benchmarks/recipe.py --starts              adds missing rows of starts
    python benchmarks/recipe.py --starts --table      prints the table of starts
    python benchmarks/recipe.py --relative --seeds 0  adds missing rows of both losses
    python benchmarks/recipe.py --relative --table    prints the table of both losses
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _kinds import CHOOSE, KINDS, TRAINED_ON
from _measure import environment

import unrolled as ur
from unrolled.pursuit import default_lam

HERE = Path(__file__).parent
ROWS, STARTS = HERE / "recipe.jsonl", HERE / "recipe_starts.jsonl"
LOSSES = HERE / "recipe_relative.jsonl"
TESTED_ON, SEEDS, DEPTH = 1000, (0, 1, 2), 16
RECOMMENDED = "bcd"  # the family that the recipe chooses for a matrix
CALLS = 5  # timed calls; the least time counts
TEST = tuple(name for name in KINDS if name not in CHOOSE)


class Problem(NamedTuple):
    D: jax.Array
    train: np.ndarray
    test: np.ndarray
    lam: float


class Exact(NamedTuple):
    """Optimal codes, their objectives, the objectives of zero codes, and us per signal."""

    codes: np.ndarray
    best: np.ndarray
    zero: np.ndarray
    microseconds: float


@functools.lru_cache(maxsize=1)
def problem_of(name: str, seed: int) -> Problem:
    """The dictionary, the signals, and the default lam of the library."""
    D, Y = KINDS[name](np.random.default_rng(seed), TRAINED_ON + TESTED_ON)
    D, Y = D.astype(np.float32), Y.astype(np.float32)
    lam = float(f"{default_lam(D, Y[:TRAINED_ON]):.3g}")
    return Problem(jnp.asarray(D), Y[:TRAINED_ON], Y[TRAINED_ON:], lam)


def objectives(D: Any, Y: np.ndarray, X: Any, lam: float) -> np.ndarray:
    """The objective of every signal, in float64."""
    X = np.asarray(X, float)
    residuals = Y.astype(float) - X @ np.asarray(D, float).T
    return (residuals**2).sum(1) / 2 + lam * np.abs(X).sum(1)


@functools.lru_cache(maxsize=1)
def exact(name: str, seed: int) -> Exact:
    D, _, Y, lam = problem_of(name, seed)
    found, microseconds = timed(lambda: ur.pursuit.lasso_batch(D, Y, lam, tol=3e-7))
    assert np.asarray(found.converged).all(), name
    X, zero = np.asarray(found.x), (Y.astype(float) ** 2).sum(1) / 2
    return Exact(X, objectives(D, Y, X, lam), zero, microseconds)


def timed(function: Callable[[], Any], calls: int = CALLS) -> tuple[Any, float]:
    """The result of `function`, and its least CPU microseconds per signal."""
    made, taken = jax.block_until_ready(function()), []
    for _ in range(calls):
        began = time.process_time()
        jax.block_until_ready(function())
        taken.append(time.process_time() - began)
    return made, 1e6 * min(taken) / TESTED_ON


def judged(name: str, seed: int, layer: ur.layers.Layer, params: Any) -> tuple[dict, np.ndarray]:
    """The gaps of a layer, its microseconds per signal, and its objectives."""
    (D, _, Y, lam), (_, best, zero, _) = problem_of(name, seed), exact(name, seed)
    run = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    codes, taken = timed(lambda: run(params, D, Y))
    F, few = objectives(D, Y, codes, lam), zero > best * (1 + 1e-6)
    gaps = F[few] / best[few] - 1
    numbers = {
        "mean": F.mean() / best.mean() - 1,
        "median": np.median(gaps),
        "90 %": np.quantile(gaps, 0.9),
        "99 %": np.quantile(gaps, 0.99),
        "worst": gaps.max(),
        "above zero": int(np.sum(F > zero * (1 + 1e-6))),
        "microseconds": taken,
    }
    return {key: float(f"{value:.4g}") for key, value in numbers.items()}, F


def measured(name: str, seed: int, depth: int, family: str) -> dict[str, Any]:
    """Measure one row; `family` is the family that the recipe trains."""
    (D, train, _, lam), optimum = problem_of(name, seed), exact(name, seed)
    began, clock = time.process_time(), time.perf_counter()
    options: Any = {} if family == RECOMMENDED else {"family": family}
    options["relative"] = False
    fit = ur.training.unsupervised(D, train, lam, depth, key=seed, progress=False, **options)
    assert fit.model.family == family
    seconds, wall = time.process_time() - began, time.perf_counter() - clock
    found, F = judged(name, seed, fit.model, fit.best)
    others = {}
    rivals = ("ista", depth), ("bcd", depth), *(("fista", K) for K in depths_of_fista(depth))
    for rival, K in rivals:
        layer = ur.layers.FAMILIES[rival](K, lam=lam)
        numbers, of_other = judged(name, seed, layer, layer.init(None, D))
        numbers["not better"] = float(np.mean(F <= of_other * (1 + 1e-6)))
        others[f"{rival} {K}"] = numbers
    saved = 1e-6 * (optimum.microseconds - found["microseconds"])
    return {
        "problem": name,
        "seed": seed,
        "depth": depth,
        "family": family,
        "shape": D.shape,
        "lam": lam,
        "nonzeros": float(np.mean((optimum.codes != 0).sum(1))),
        "recipe": found,
        **others,
        "exact microseconds": optimum.microseconds,
        "seconds": seconds,
        "seconds on the wall": wall,
        "signals that repay": round(seconds / saved) if saved > 0 else None,
        "tried": [each.asdict() for each in fit.tried],
        "environment": environment(),
    }


def depths_of_fista(depth: int) -> tuple[int, ...]:
    return tuple(sorted({depth, 2 * depth, 24, 32, 64}))


def started(name: str, seed: int = 0) -> dict[str, Any]:
    """Measure the starts of all families on one kind of signal."""
    (D, _, Y, lam), (X, best, _, _) = problem_of(name, seed), exact(name, seed)
    nonzeros = float(np.mean((X != 0).sum(1)))
    given = {"lam": lam, "sparsity": max(1, round(nonzeros))}
    gaps: dict[str, float | None] = {}
    for family, layer_of in ur.layers.FAMILIES.items():
        known = {key: given[key] for key in given.keys() & layer_of.__dataclass_fields__}
        layer = layer_of(DEPTH, **known)
        params = layer.init(jax.random.key(seed), D)
        codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y)
        gap = objectives(D, Y, codes, lam).mean() / best.mean() - 1
        gaps[family] = float(f"{gap:.4g}") if np.isfinite(gap) else None
    row = {"problem": name, "seed": seed, "depth": DEPTH, "shape": D.shape, "lam": lam}
    return row | {"nonzeros": nonzeros, "gaps": gaps, "environment": environment()}


def of_both_losses(name: str, seed: int) -> dict[str, Any]:
    """The gaps before training and after training by both losses, on one kind of signal."""
    D, train, _, lam = problem_of(name, seed)
    layer = ur.layers.bcd(DEPTH, lam=lam)
    start, before = judged(name, seed, layer, layer.init(None, D))
    row = {"problem": name, "seed": seed, "depth": DEPTH, "shape": D.shape, "lam": lam}
    row["start"] = start
    for loss in ("mean", "relative"):
        options: Any = dict(key=seed, progress=False, relative=loss == "relative")
        fit = ur.training.unsupervised(D, train, lam, DEPTH, **options)
        numbers, F = judged(name, seed, fit.model, fit.best)
        row[loss] = numbers | {"worse": float(np.mean(F > before * (1 + 1e-6)))}
    for loss in ("start", "mean", "relative"):
        del row[loss]["microseconds"]
    return row | {"environment": environment()}


def read(rows: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def write(rows: Path, row: dict[str, Any]) -> None:
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")


def middle(rows: list[dict], *path: str) -> float:
    """The median over rows of the number at a path of keys."""
    return statistics.median(functools.reduce(dict.__getitem__, path, row) for row in rows)


def rows_of(depth: int, family: str = RECOMMENDED) -> dict[str, list[dict]]:
    """The rows of every kind of signal that has some, the kinds that chose the rates first."""
    rows: dict[str, list[dict]] = {name: [] for name in (*CHOOSE, *TEST)}
    for row in read(ROWS):
        if (row["depth"], row["family"]) == (depth, family):
            rows[row["problem"]].append(row)
    return {name: own for name, own in rows.items() if own}


def tables(depth: int) -> str:
    """A table of the kinds on which we chose the rates, one of the other kinds, and a sentence."""
    rows = rows_of(depth)
    tests = [own for name, own in rows.items() if name in TEST]
    won = [middle(own, "recipe", "mean") <= middle(own, "fista 32", "mean") for own in tests]
    return "\n\n".join(
        [
            "Kinds of signals on which we chose the learning rates:",
            table({name: rows[name] for name in CHOOSE if name in rows}, depth),
            "Other kinds of signals:",
            table({name: rows[name] for name in TEST if name in rows}, depth),
            f"On {sum(won)} of these {len(won)} kinds of signals, the gap of the recipe with "
            f"K = {depth} (median over the seeds) is at or below the gap of FISTA with K = 32.",
        ]
    )


def by_depth(depths: list[int]) -> str:
    """A line for each kind: the gap of the recipe, and the gap of FISTA with twice the steps."""
    heads = [f"K = {depth}; FISTA with {2 * depth} steps" for depth in depths]
    lines = [f"| signals | {' | '.join(heads)} |", "|---" * (1 + len(depths)) + "|"]
    rows = {depth: rows_of(depth) for depth in depths}
    for name in (*CHOOSE, *TEST):
        own = {depth: rows[depth].get(name) for depth in depths}
        if all(own.values()):
            cells = (
                f"{middle(part, 'recipe', 'mean'):.2g}; "
                f"{middle(part, f'fista {2 * depth}', 'mean'):.2g}"
                for depth, part in own.items()
            )
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(rows: dict[str, list[dict]], depth: int) -> str:
    """A line for each kind, with medians over the seeds and the range of the gap."""
    depths, coupled = depths_of_fista(depth), rows_of(depth, "lfista_cp")
    heads = [
        "signals",
        "nonzeros per code",
        f"gap of FISTA, K = {', '.join(map(str, depths))}",
        f"gap of bcd before training, K = {depth}",
        f"gap of the recipe, K = {depth}",
        f"gap of lfista_cp by its recipe, K = {depth}",
        "codes no worse than FISTA, K = 32",
        "codes worse than the zero code",
        "CPU seconds of the call",
        "CPU microseconds per signal: recipe, FISTA with K = 32, exact codes",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, own in rows.items():
        gaps = sorted(row["recipe"]["mean"] for row in own)
        m, d = own[0]["shape"]
        times = [middle(own, key, "microseconds") for key in ("recipe", "fista 32")]
        cells = [
            f"{name.replace('_', ' ')}, {m} x {d}",
            f"{middle(own, 'nonzeros'):.1f}",
            ", ".join(f"{middle(own, f'fista {K}', 'mean'):.2g}" for K in depths),
            f"{middle(own, f'bcd {depth}', 'mean'):.2g}",
            f"{middle(own, 'recipe', 'mean'):.2g} ({gaps[0]:.2g} to {gaps[-1]:.2g})",
            f"{middle(coupled[name], 'recipe', 'mean'):.2g}" if name in coupled else "",
            f"{middle(own, 'fista 32', 'not better'):.0%}".replace("%", " %"),
            str(int(max(row["recipe"]["above zero"] for row in own))),
            f"{middle(own, 'seconds'):.0f}",
            ", ".join(f"{us:.0f}" for us in (*times, middle(own, "exact microseconds"))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_starts() -> str:
    """A line for each family, with its gap at the start on every kind of signal."""
    rows = {row["problem"]: row["gaps"] for row in read(STARTS)}
    names = [name for name in KINDS if name in rows]
    families = dict.fromkeys(family for name in names for family in rows[name])
    lines = [f"| family | {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines.append("|---" * (1 + len(names)) + "|")
    for family in families:
        gaps = (rows[name].get(family) for name in names)
        cells = ("not finite" if gap is None else f"{gap:.2g}" for gap in gaps)
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_losses() -> str:
    """A line for each kind of signal, with medians over the seeds."""
    heads = ["signals", "gap at the start", "gap", "median gap", "99 % of the gaps", "worse"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows = read(LOSSES)
    for name in KINDS:
        if own := [row for row in rows if row["problem"] == name]:
            cells = [name.replace("_", " "), f"{middle(own, 'start', 'mean'):.2g}"]
            for key in ("mean", "median", "99 %"):
                both = (middle(own, loss, key) for loss in ("mean", "relative"))
                cells.append("; ".join(f"{gap:.2g}" for gap in both))
            both = (middle(own, loss, "worse") for loss in ("mean", "relative"))
            cells.append("; ".join(f"{100 * share:.0f} %" for share in both))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def add_losses(names: list[str], seeds: list[int]) -> None:
    there = {(row["problem"], row["seed"]) for row in read(LOSSES)}
    for seed, name in itertools.product(seeds, names):
        if (name, seed) not in there:
            write(LOSSES, row := of_both_losses(name, seed))
            print(name, seed, row["mean"], row["relative"], flush=True)


def add_rows(names: list[str], depths: list[int], seeds: list[int], family: str) -> None:
    there = {(row["problem"], row["seed"], row["depth"], row["family"]) for row in read(ROWS)}
    for seed, name, depth in itertools.product(seeds, names, depths):
        if (name, seed, depth, family) in there:
            continue
        write(ROWS, row := measured(name, seed, depth, family))
        gaps = {key: row[key]["mean"] for key in row if key[-1].isdigit()}
        print(name, seed, depth, family, row["recipe"], gaps, round(row["seconds"]), flush=True)


def add_starts(names: list[str]) -> None:
    there = {row["problem"] for row in read(STARTS)}
    for name in names:
        if name not in there:
            write(STARTS, row := started(name))
            print(name, row["gaps"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--starts", action="store_true")
    parser.add_argument("--relative", action="store_true")
    parser.add_argument("--depths", default=str(DEPTH))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--family", default=RECOMMENDED, choices=(RECOMMENDED, "lfista_cp"))
    parser.add_argument("--problems", default=",".join(KINDS))
    arguments = parser.parse_args()
    names = arguments.problems.split(",")
    depths = [int(depth) for depth in arguments.depths.split(",")]
    if arguments.relative:
        if not arguments.table:
            add_losses(names, [int(seed) for seed in arguments.seeds.split(",")])
        print(table_of_losses())
        return
    if arguments.starts:
        if not arguments.table:
            add_starts(names)
        print(table_of_starts())
        return
    if not arguments.table:
        add_rows(
            names, depths, [int(seed) for seed in arguments.seeds.split(",")], arguments.family
        )
    print(tables(*depths) if len(depths) == 1 else by_depth(depths))


if __name__ == "__main__":
    main()
