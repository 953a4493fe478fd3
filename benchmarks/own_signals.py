"""Every family on a dictionary and signals without codes.

The problems are mean-free 8 x 8 patches of pictures, with dictionaries by `online` and K-SVD; lines
of the same pictures, with a `Conv`; and digits. The script trains the params on pictures of
Train400, chooses them on other pictures of Train400, and tests them on the pictures of Set12. If
these pictures are missing (UNROLLED_DATA), the script uses separate parts of the photographs of
scikit-learn.

A row is one training run, or one start (no steps), of one family at one depth, seed and learning
rate. If the objective of `init` on the validation pictures is above the objective of ISTA, training
starts from `calibrate` or `search` with the same objective, provided that this start is better on
the validation pictures. The gap is (F - F*) / F* of mean objectives of the LASSO, with F* by
`lasso_batch`. Each gap is also measured for a layer with a guard and the same params. Each cell of
the table has the result of the learning rate with the least objective on validation pictures.

    python benchmarks/own_signals.py            adds the missing rows, most informative first
    python benchmarks/own_signals.py --minutes 30    begins no new row after 30 minutes
    python benchmarks/own_signals.py --family bcd    adds the missing rows of one family
    python benchmarks/own_signals.py --time     times all families, on a machine without other work
    python benchmarks/own_signals.py --table    prints the tables
    python benchmarks/own_signals.py --costs    CPU time of the methods in the figure
    python benchmarks/own_signals.py --figure   draws own_signals.svg and own_signals.png
"""

import argparse
import dataclasses
import functools
import itertools
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _measure import all_ms, environment, save

import unrolled as ur
from unrolled import layers

HERE = Path(__file__).parent
ROWS, SECONDS = HERE / "own_signals.jsonl", HERE / "own_signals_seconds.json"
# The dictionaries of the rows; other versions of `online` round differently.
DICTIONARIES = HERE / "own_signals.npz"
COSTS = HERE / "own_signals_costs.json"
ROUNDS = 9  # rounds of a measurement of CPU time
SIDE, LAM, BATCH, CLIP = 8, 0.1, 128, 0.01
PER_PICTURE, TESTED = 500, 2400
RATES = (5e-4, 3e-3, 1e-4)
PATCHES = "online 64 x 128"
PROBLEMS = (PATCHES, "online 64 x 256", "ksvd 64 x 128", "ksvd 64 x 256", "digits", "lines, Conv")
SHORT, LONG = 2000, 16_000
DEPTHS, WHOLE, SEEDS = (16, 8, 32), (8, 16, 32, 64), (0, 1, 2)  # WHOLE: depths of FISTA
# Families that need an option, and families with an option that matters.
OPTIONS = {
    "liht": ("liht", {"sparsity": 8}),
    "alista, support": ("alista", {"support": (0.012, 0.12)}),
    "lista, untied": ("lista", {"tied": False}),
    "lista_cp, untied": ("lista_cp", {"tied": False}),
    "vamp_bg, em": ("vamp_bg", {"em": True}),
}
CALIBRATED_ON = 1024  # signals
DRAWN = {
    "bcd": "#CC79A7",
    "lfista_cp": "#D55E00",
    "lista_cp, untied": "#0072B2",
    "lfista": "#009E73",
    "fista": "#7f7f7f",
}
# The families with the smallest gaps after short training come first.
BEST = ("bcd", "lfista_cp", "fista", "lista_cp, untied", "lfista", "glista", "tilista")
# These families compare objectives themselves: a guard changes no code.
JUDGING = ("bcd", "lfista_cp")
# Training of these families takes several times as long.
SLOW = ("robust_alista", "na_alista", "vamp_bg", "vamp_bg, em")
NAMES = tuple(n for n in dict.fromkeys([*BEST, *layers.FAMILIES, *OPTIONS]) if n not in SLOW)
NAMES += SLOW


class Row(NamedTuple):
    """The settings of a measurement; `pictures` is None for all training pictures."""

    problem: str
    family: str
    depth: int
    seed: int
    steps: int
    rate: float
    pictures: int | None = None


class Problem(NamedTuple):
    """A dictionary, signals for training, for choices and for tests, and their mean optima."""

    D: Any
    train: list[np.ndarray]  # the signals of each picture
    sets: dict[str, np.ndarray]  # "validation", "test"
    optimum: dict[str, float]
    certified: bool  # whether every optimum is certified


def rows(there: dict[Row, dict]) -> Iterator[Row]:
    """All rows, most informative first; the rate of a family is the best of three at K = 16."""
    head, zero = Row(PATCHES, "lfista_cp", 16, 0, SHORT, RATES[0]), Row(PATCHES, "", 16, 0, 0, 0.0)
    yield from (zero._replace(family="fista", depth=depth) for depth in WHOLE)
    yield from (head, head._replace(steps=LONG))
    yield from (zero._replace(family=name) for name in NAMES)
    yield from (head._replace(pictures=pictures) for pictures in (1, 10, 100))
    yield from (head._replace(depth=depth) for depth in (8, 32))
    yield from (head._replace(seed=seed) for seed in SEEDS[1:])
    for rate in RATES:
        yield from (head._replace(family=name, rate=rate) for name in NAMES)

    def everyone(names: tuple[str, ...], **cell: Any) -> Iterator[Row]:
        """Starts of all families in a cell, and training runs of named families at their rates."""
        yield from (zero._replace(family=name, **cell) for name in NAMES)
        for name in names:
            yield head._replace(family=name, rate=rate_of(there, name), **cell)

    for problem in PROBLEMS[1:]:
        yield from everyone(BEST, problem=problem)
    for depth in (8, 32):
        yield from everyone(NAMES, depth=depth)
    for seed in SEEDS[1:]:
        yield from everyone(NAMES, seed=seed)
    yield from (head._replace(pictures=pictures, steps=LONG) for pictures in (1, 10, 100))
    for seed, problem, depth in itertools.product(SEEDS, PROBLEMS, DEPTHS):
        yield from everyone(NAMES, problem=problem, depth=depth, seed=seed)
    for problem, depth, name in itertools.product(PROBLEMS, DEPTHS, BEST):
        rate = rate_of(there, name)
        yield Row(problem, name, depth, 0, LONG, rate)


def rate_of(there: dict[Row, dict], name: str) -> float:
    """The rate with the least validation objective on the first problem at K = 16."""
    cell = dict(problem=PATCHES, depth=16, seed=0, steps=SHORT, pictures=None)
    best = chosen(there, family=name, **cell)
    return best["row"]["rate"] if best else RATES[0]


def patches(picture: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Mean-free patches from random places, (count, SIDE^2)."""
    rng = np.random.default_rng(seed)
    top, left = (rng.integers(0, size - SIDE + 1, count) for size in picture.shape)
    Y = np.stack([picture[i : i + SIDE, j : j + SIDE].ravel() for i, j in zip(top, left)])
    return Y - Y.mean(1, keepdims=True)


def lines(picture: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Mean-free pieces of picture rows, (count, SIDE^2), as signals in one dimension."""
    rng = np.random.default_rng(seed)
    top = rng.integers(0, picture.shape[0], count)
    left = rng.integers(0, picture.shape[1] - SIDE**2 + 1, count)
    Y = np.stack([picture[i, j : j + SIDE**2] for i, j in zip(top, left)])
    return Y - Y.mean(1, keepdims=True)


@functools.cache
def pictures() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """The pictures for training, for the choice of the params and for the test."""
    try:
        root = ur.vision.datasets.locate("denoising")
        train, test = (
            list(ur.vision.datasets.read_images(root / name).values())
            for name in ("Train400", "Set12")
        )
        return train[:-40], train[-40:], test
    except FileNotFoundError:
        china, flower = ur.vision.datasets.photographs().values()
        middle = flower.shape[1] // 2
        return [china], [flower[:, :middle]], [flower[:, middle:]]


def signals(problem: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The signals of every training picture, of validation pictures and of test pictures."""
    if problem == "digits":
        (X, _), (T, _) = (ur.vision.datasets.digits().train, ur.vision.datasets.digits().test)
        Y, T = (A.reshape(len(A), -1) / 255.0 for A in (X, T))
        return [Y[:-300]], Y[-300:], T
    cut = lines if problem.startswith("lines") else patches
    train, *others = pictures()
    validation, test = (
        np.concatenate([cut(p, -(-TESTED // len(part)), seed + i) for i, p in enumerate(part)])
        for part, seed in zip(others, (10_000, 20_000))
    )
    count = PER_PICTURE if len(train) > 1 else 20_000
    return [cut(p, count, i) for i, p in enumerate(train)], validation, test


def learned(problem: str, Y: np.ndarray) -> Any:
    """The dictionary of a problem, learned from training signals."""
    rng = np.random.default_rng(0)
    Y = Y[rng.permutation(len(Y))[:40_000]]
    how, *sizes = problem.split()
    learning = ur.dictionary_learning
    if problem.startswith("lines"):
        D = learning.convolutional(Y[:1000], (4, 1, 9), lam=LAM, sweeps=50, key=0).D
    elif how == "ksvd":
        D = learning.ksvd(Y[:10_000], int(sizes[-1]), sparsity=6, sweeps=20, key=0).D
    else:
        atoms = int(sizes[-1]) if sizes else 128
        D = learning.online(np.array_split(Y, max(1, len(Y) // 500)), atoms, lam=LAM, key=0).D
    return jax.tree.map(jnp.asarray, D)


def optima(D: Any, Y: np.ndarray) -> tuple[float, bool]:
    """The mean optimum of the LASSO, and whether every optimum is certified."""
    found = ur.pursuit.lasso_batch(ur.dictionaries.dense(D), jnp.asarray(Y), LAM, tol=1e-5)
    return float(np.mean(objectives(D, Y, found.x))), bool(np.all(found.converged))


@functools.cache
def problem_of(name: str) -> Problem:
    train, validation, test = signals(name)
    size = np.sqrt(np.mean(np.sum(np.concatenate(train) ** 2, 1)))
    train = [(Y / size).astype(np.float32) for Y in train]
    stored = np.load(DICTIONARIES)
    if name in stored and (name == "digits" or len(train) > 1):
        D = jnp.asarray(stored[name])
    else:
        D = learned(name, np.concatenate(train))
    sets = {"validation": validation, "test": test}
    sets = {n: (Y / size).astype(np.float32) for n, Y in sets.items()}
    found = {n: optima(D, Y) for n, Y in sets.items()}
    certified = all(converged for _, converged in found.values())
    return Problem(D, train, sets, {n: F for n, (F, _) in found.items()}, certified)


@functools.cache
def seen_in_training(name: str, pictures: int | None) -> tuple[np.ndarray, float]:
    """The signals of the training pictures, and their mean optimum."""
    problem = problem_of(name)
    Y = np.concatenate(problem.train[:pictures])
    Y = Y[np.random.default_rng(1).permutation(len(Y))[:TESTED]]
    return Y, optima(problem.D, Y)[0]


def objectives(D: Any, Y: np.ndarray, codes: Any) -> np.ndarray:
    values = jax.vmap(ur.pursuit.lasso_objective, (None, 0, 0, None))(D, jnp.asarray(Y), codes, LAM)
    return np.asarray(values, float)


def layer_of(name: str, depth: int) -> layers.Layer:
    family, options = OPTIONS.get(name, (name, {}))
    family = layers.FAMILIES[family]
    weight = {"lam": LAM} if "lam" in family.__dataclass_fields__ else {}
    return family(depth, **weight, **options)


def trained(row: Row, layer: layers.Layer, problem: Problem, start: Any) -> tuple[Any, dict]:
    """The params with the least objective on validation pictures, and the training curve."""
    own = problem.train[: row.pictures]
    decay = optax.cosine_decay_schedule(row.rate, row.steps)
    F = problem.optimum["validation"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            fit = ur.fit(
                layer,
                start,
                problem.D,
                ur.problems.resampler(jnp.asarray(np.concatenate(own)), batch=BATCH),
                optimizer=optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(decay)),
                steps=row.steps,
                key=row.seed,
                loss=ur.training.lasso_loss(LAM),
                validation=(jnp.asarray(problem.sets["validation"]), None),
                evaluate_every=max(100, row.steps // 20),
                progress=False,
            )
        except ur.training.NonFiniteError as error:
            told, fit = [*told, error], error.fit
    texts = [str(getattr(entry, "message", entry)).partition(":")[2].strip() for entry in told]
    course = [[record.step, record.validation / F - 1] for record in fit.history.records]
    return fit.best, {"course": course, "warned": [text.partition(":")[0] for text in texts]}


def started(row: Row, layer: layers.Layer, problem: Problem) -> tuple[Any, dict[str, float]]:
    """The params to start from, and the validation gaps of all candidates."""
    D, Y = problem.D, problem.sets["validation"]
    F = problem.optimum["validation"]

    def gap(model: layers.Layer, params: Any) -> float:
        codes = jax.jit(jax.vmap(model.apply, (None, None, 0)))(params, D, Y)
        value = float(np.mean(objectives(D, Y, codes))) / F - 1
        return value if np.isfinite(value) else float("inf")

    params, ista = layer.init(jax.random.key(row.seed), D), layers.ista(row.depth, lam=LAM)
    ways, gaps = {"init": params}, {"init": gap(layer, params)}
    if gaps["init"] <= gap(ista, ista.init(None, D)) * (1 + 1e-3):
        return params, gaps
    own = np.concatenate(problem.train)
    sample = own[np.random.default_rng(2).permutation(len(own))[:CALIBRATED_ON]]
    for name, way in (("calibrate", ur.analytic.calibrate), ("search", searched)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = way(layer, params, D, jnp.asarray(sample), loss=ur.training.lasso_loss(LAM))
            except TypeError:  # does not apply to this family
                continue
        ways[name], gaps[name] = found, gap(layer, found)
    return ways[min(gaps, key=lambda name: gaps[name])], gaps


def searched(layer: layers.Layer, params: Any, D: Any, Y: Any, loss: Any) -> Any:
    """The params of `training.search` over the three numbers of HyperLISTA."""
    if layer.family != "hyperlista":
        raise TypeError("search is for HyperLISTA")
    grids: Any = dict(threshold=np.geomspace(0.003, 3, 10), momentum=[0, 0.1, 0.3, 1])
    grids["selection"] = [0, 1, 3, 12, 40]
    return ur.training.search(layer, params, D, Y, loss=loss, **grids).params


def measured(row: Row) -> dict:
    """Measure a row."""
    problem, layer = problem_of(row.problem), layer_of(row.family, row.depth)
    params, gaps = started(row, layer, problem)
    found: dict[str, Any] = {"start": gaps}
    weights = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    if row.steps:
        params, course = trained(row, layer, problem, params)
        found |= course
    seen, optimum = seen_in_training(row.problem, row.pictures)
    sets, optimum = problem.sets | {"train": seen}, problem.optimum | {"train": optimum}
    zero = np.sum(problem.sets["test"].astype(float) ** 2, 1) / 2
    for word, model in (("", layer), ("guarded_", dataclasses.replace(layer, guard=LAM))):
        code = jax.jit(jax.vmap(model.apply, (None, None, 0)))
        F = {n: objectives(problem.D, Y, code(params, problem.D, Y)) for n, Y in sets.items()}
        found |= {
            f"{word}gap": {n: float(np.mean(F[n])) / optimum[n] - 1 for n in F},
            f"{word}above_zero": int(np.sum(~(F["test"] <= 1.001 * zero))),
            f"{word}products": ur.comparison.products(
                model, params, problem.D, jnp.asarray(problem.sets["test"][0])
            ),
        }
    return found | {
        "weights": weights,
        "optimum": optimum["test"],
        "zero": float(np.mean(zero)),
        "certified": problem.certified,
        "data": "BSD" if len(problem.train) > 1 else "scikit-learn",
    }


def read() -> dict[Row, dict]:
    """The stored rows."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {Row(**entry["row"]): entry for entry in map(json.loads, lines)}


def run(minutes: float, family: str | None) -> None:
    """Add rows, all or those of a family, until the time is over; the last row may take longer."""
    there, began = read(), time.monotonic()
    for row in rows(there):
        if row in there or family not in (None, row.family):
            continue
        if time.monotonic() - began > 60 * minutes:
            break
        try:
            found = measured(row)
        except Exception as error:  # the reason why a family does not apply to this problem
            found = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        versions = {n: environment()[n] for n in ("jax", "processor")}
        there[row] = {"row": row._asdict(), **found, **versions}
        with ROWS.open("a") as file:
            file.write(json.dumps(there[row]) + "\n")
        print(*row, found.get("gap", found), flush=True)
        jax.clear_caches()


def timed() -> None:
    """Milliseconds for the codes of the test signals of the first problem, K = 16."""
    problem = problem_of(PATCHES)
    Y, functions = jnp.asarray(problem.sets["test"]), {}
    for name in NAMES:
        layer = layer_of(name, 16)
        params = layer.init(jax.random.key(0), problem.D)
        for word, model in (("", layer), (", guarded", dataclasses.replace(layer, guard=LAM))):
            code = jax.jit(jax.vmap(model.apply, (None, None, 0)))
            functions[name + word] = functools.partial(_wait, code, params, problem.D, Y)
    times = all_ms(functions, rounds=3, calls=3)
    rows = {n: [float(np.quantile(ms, q)) for q in (0, 0.5, 1)] for n, ms in times.items()}
    save(SECONDS, {"signals": len(Y), "least, median and most milliseconds": rows})


def _wait(code: Any, *arguments: Any) -> None:
    jax.block_until_ready(code(*arguments))


def chosen(there: dict[Row, dict], **cell: Any) -> dict | None:
    """The row with the least validation objective, of the rows of a cell with any rate."""
    entries = [
        entry
        for row, entry in there.items()
        if "gap" in entry and all(getattr(row, name) == value for name, value in cell.items())
    ]
    return min(entries, key=lambda entry: entry["gap"]["validation"], default=None)


def gap_of(entries: list[dict], word: str = "") -> str:
    """The median gap on test pictures over seeds, and the number of seeds if it exceeds 1."""
    gaps = [entry.get(f"{word}gap", entry["gap"])["test"] for entry in entries]
    return f"{np.median(gaps):.3g}" + (f" ({len(gaps)})" if len(gaps) > 1 else "")


def start_of(entry: dict | None) -> str:
    """The gap of the params that training starts from, and their source unless it is `init`."""
    if entry is None:
        return ""
    ways = entry.get("start", {"init": 0.0})
    way = min(ways, key=lambda name: ways[name])
    return f"{entry['gap']['test']:.3g}" + ("" if way == "init" else f" by `{way}`")


def table(there: dict[Row, dict]) -> str:
    """The tables of the page: the first problem, all depths, all problems, training pictures."""
    solver = [(K, chosen(there, problem=PATCHES, family="fista", depth=K, steps=0)) for K in WHOLE]
    gaps = ", ".join(f"{entry['gap']['test']:.4g} at K = {K}" for K, entry in solver if entry)
    found = [f"Gap of FISTA on {PATCHES}: {gaps}.", "", *table_of(there, PATCHES, 16)]
    certified = all(entry["certified"] for entry in there.values() if "gap" in entry)
    found += [f"{'All' if certified else 'Not all'} optima are certified.", ""]
    depths = {f"K = {K}": dict(problem=PATCHES, depth=K) for K in sorted(DEPTHS)}
    found += [
        "Each cell has the gap at the start and the gap with a guard after "
        f"{SHORT} training steps, by depth:",
        "",
        *overview(there, depths),
        "",
    ]
    problems = {name: dict(problem=name, depth=16) for name in PROBLEMS}
    found += [
        "Each cell has the same two gaps at K = 16, by problem; a single number is the gap at the "
        "start:",
        "",
        *overview(there, problems),
        "",
    ]
    found += [
        "Gap of lfista_cp, K = 16, by the number of training pictures:",
        "",
        "| training pictures | training steps | gap on training pictures | gap on other pictures |",
    ]
    found.append("|---|---|---|---|")
    head = dict(problem=PATCHES, family="lfista_cp", depth=16, seed=0)
    for steps, count in itertools.product((SHORT, LONG), (1, 10, 100, None)):
        if entry := chosen(there, pictures=count, steps=steps, **head):
            gap = entry["gap"]
            numbers = f"{gap['train']:.5f} | {gap['test']:.5f}"
            found.append(f"| {count or 'all'} | {steps} | {numbers} |")
    return "\n".join(found)


def overview(there: dict[Row, dict], cells: dict[str, dict[str, Any]]) -> list[str]:
    """A line per family, a column per cell: the gaps of the start and of the trained params."""
    lines = [f"| family | {' | '.join(cells)} |", "|---" * (len(cells) + 1) + "|"]
    for name in NAMES:
        row = [name]
        for cell in cells.values():
            start = chosen(there, family=name, steps=0, pictures=None, **cell)
            trained = seeds_of(there, family=name, steps=SHORT, pictures=None, **cell)
            ends = gap_of(trained, "guarded_").partition(" ")[0] if trained else ""
            begins = f"{start['gap']['test']:.3g}" if start else ""
            row.append(f"{begins} to {ends}" if begins and ends else begins or ends)
        if any(row[1:]):  # a family without measurements has no line
            lines.append(f"| {' | '.join(row)} |")
    return lines


def seeds_of(there: dict[Row, dict], **cell: Any) -> list[dict]:
    """The chosen row of every seed that has rows."""
    return [entry for seed in SEEDS if (entry := chosen(there, seed=seed, **cell))]


def milliseconds() -> dict[str, float]:
    """Median milliseconds for 1,000 signals of each measured family."""
    if not SECONDS.exists():
        return {}
    found = json.loads(SECONDS.read_text())
    rows = found["least, median and most milliseconds"].items()
    return {name: 1000 * median / found["signals"] for name, (_, median, _) in rows}


def table_of(there: dict[Row, dict], problem: str, depth: int) -> list[str]:
    """A line per family of a problem, with its gaps and its cost."""
    cell = dict(problem=problem, depth=depth, pictures=None)
    header = ["family", "numbers in the params", "products per signal", "gap at the start"]
    header += [f"gap after {SHORT} training steps", "signals worse than the zero code"]
    header += ["gap with a guard", "products with a guard", f"gap after {LONG} training steps"]
    times = milliseconds() if (problem, depth) == (PATCHES, 16) else {}
    header += ["ms per 1,000 signals", "ms per 1,000 signals with a guard"] if times else []
    lines = []
    for name in NAMES:
        start = chosen(there, family=name, steps=0, **cell)
        trained, long = (seeds_of(there, family=name, steps=n, **cell) for n in (SHORT, LONG))
        if not (some := [*trained, *filter(None, [start]), *long]):
            continue
        cells = [name, str(some[0]["weights"]), str(some[0]["products"] or "-"), start_of(start)]
        if trained:
            worse = sum(entry["above_zero"] for entry in trained) / len(trained)
            products = trained[0].get("guarded_products", trained[0]["products"])
            cells += [gap_of(trained), f"{worse:.3g}", gap_of(trained, "guarded_")]
            cells += [str(products or "-")]
        cells += [""] * (8 - len(cells)) + [gap_of(long) if long else ""]
        both = (name, f"{name}, guarded")
        cells += [f"{times[n]:.2g}" if n in times else "" for n in both if times]
        lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return []
    ista = chosen(there, family="ista", steps=0, **cell)
    first = f"| {' | '.join(header)} |"
    title = f"**{problem}, K = {depth}**; ISTA of this depth has a gap of "
    title += f"{ista['gap']['test']:.3g}."
    return [title, "", first, "|---" * len(header) + "|", *lines, ""]


def exact_solvers(problem: Problem) -> dict[str, Any]:
    """Exact solvers of the test signals by name, with SPAMS if it is installed."""
    D, Y = ur.dictionaries.dense(problem.D), jnp.asarray(problem.sets["test"])
    found = {"lasso_batch": functools.partial(ur.pursuit.lasso_batch, D, Y, LAM)}
    try:
        import spams
    except ImportError:
        return found
    atoms, columns = (np.asfortranarray(np.asarray(A, float)) for A in (D, Y.T))
    options = dict(lambda1=LAM, mode=2, numThreads=1)
    return found | {"SPAMS LARS": functools.partial(spams.lasso, columns, atoms, **options)}


def costs() -> None:
    """CPU microseconds per signal of all methods in the figure, in turns within one run."""
    problem = problem_of(PATCHES)
    Y, functions = jnp.asarray(problem.sets["test"]), {}
    for name, depth in itertools.product(DRAWN, WHOLE):
        layer = layer_of(name, depth)
        params = layer.init(jax.random.key(0), problem.D)
        kinds = {"": layer, ", guarded": dataclasses.replace(layer, guard=LAM)}
        for word, model in kinds.items():
            if (name in JUDGING and word) or (depth == WHOLE[-1] and (name, word) != ("fista", "")):
                continue
            code = jax.jit(jax.vmap(model.apply, (None, None, 0)))
            functions[f"{name}, {depth}{word}"] = functools.partial(code, params, problem.D, Y)
    functions |= exact_solvers(problem)
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():  # without compilation
        jax.block_until_ready(function())
    for _, (name, function) in itertools.product(range(ROUNDS), functions.items()):
        began = time.process_time()
        jax.block_until_ready(function())
        spent[name].append(1e6 * (time.process_time() - began) / len(Y))
    rows = {name: [float(np.quantile(us, q)) for q in (0, 0.5, 1)] for name, us in spent.items()}
    save(COSTS, {"signals": len(Y), "least, median and most microseconds per signal": rows})


def draw(there: dict[Row, dict]) -> None:
    """Draw the gap on test pictures against microseconds, for the first problem."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    times = json.loads(COSTS.read_text())["least, median and most microseconds per signal"]
    figure, panels = ur.plots.figure(1, 1)
    axes = panels[0, 0]

    def points(name: str, steps: int, word: str = "") -> np.ndarray:
        """The pairs (microseconds, gap) of the depths that have rows."""
        found = []
        for depth in WHOLE:
            cell = dict(problem=PATCHES, family=name, depth=depth, pictures=None)
            label = f"{name}, {depth}{', guarded' * bool(word and name not in JUDGING)}"
            if (entries := seeds_of(there, steps=steps, **cell)) and label in times:
                gaps = [entry.get(f"{word}gap", entry["gap"])["test"] for entry in entries]
                found.append((times[label][1], np.median(gaps)))
        return np.array(found).T

    solver = points("fista", 0)
    axes.plot(*solver, "k--", marker="s", markersize=4)
    note = dict(textcoords="offset points", fontsize=8)
    for K, x, y in zip(WHOLE, *solver):
        axes.annotate(f"FISTA, K = {K}", (x, y), (6, 2), **note)
    for name, colour in DRAWN.items():
        line = points(name, SHORT, "guarded_")
        axes.plot(*line, "-", marker="o", markersize=4, color=colour)
        label = "fista, trained" if name == "fista" else name
        end, place, side = (-1, 6, "left") if name in ("lfista", "bcd") else (0, -6, "right")
        axes.annotate(label, line[:, end], (place, -3), ha=side, color=colour, **note)
    for name in JUDGING:
        long, colour = points(name, LONG), DRAWN[name]
        axes.plot(*long, marker="*", markersize=9, color=colour, linestyle="")
        text = f"{LONG:,} steps"
        axes.annotate(text, long[:, 0], (-8, -4), ha="right", color=colour, **note)
    axes.set(xscale="log", yscale="log", xlabel="CPU time per signal, microseconds")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 2.2, high * 2.6)  # space for the names
    bottom, top = axes.get_ylim()
    ends = {"SPAMS LARS": (bottom, (-4, 4), "bottom", "right")}
    ends |= {"lasso_batch": (top, (4, -4), "top", "left")}
    for name in (name for name in ends if name in times):
        x, (y, place, up, side) = times[name][1], ends[name]
        axes.axvline(x, color="#444444", linestyle=":", linewidth=1.5)
        axes.annotate(f"{name},\nexact", (x, y), place, va=up, ha=side, **note)
    axes.set_xticks(ticks := (1, 2, 5, 10, 20, 50), map(str, ticks))
    axes.minorticks_off()
    axes.set(ylabel="(F - F*) / F* on other pictures", title="64 x 128, patches of pictures")
    for suffix in ("svg", "png"):
        figure.savefig(HERE / f"own_signals.{suffix}", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=np.inf, help="begin no new row after this time"
    )
    parser.add_argument("--family", choices=NAMES, help="measure the rows of this family alone")
    parser.add_argument("--time", action="store_true", help="time the codes of all families")
    parser.add_argument("--costs", action="store_true", help="CPU time of methods in the figure")
    parser.add_argument("--table", action="store_true", help="print the tables of the rows")
    parser.add_argument("--figure", action="store_true", help="draw the rows")
    options = parser.parse_args()
    if options.time:
        timed()
    elif options.costs:
        costs()
    elif options.table:
        print(table(read()))
    elif options.figure:
        draw(read())
    else:
        run(options.minutes, options.family)


if __name__ == "__main__":
    main()
