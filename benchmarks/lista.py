"""The LISTA benchmark: every learned family by its recipe, in main cells and a design of cells.

A cell is a problem: sizes, share of nonzeros, depth, noise, law of the codes, kind of dictionary.
The main cells have the size 250 x 500, K = 16 and 10 % Gaussian nonzeros. Their D is
`RandomState(i).normal` with unit columns; i = 0 gives the dictionary of NA-ALISTA. The design has
40 cells with m = 100, and each level of a factor is in equally many cells. All arrays are float32.

A row is one family on one dictionary with one seed. `training.by_recipe` makes the family: it draws
separate signals to calibrate, to choose and to train. The choices are written to the file before
the 10,000 test signals are drawn. The key of the test signals depends only on the dictionary and
the seed, so that families are paired. Rows of the same sizes compile the same programs. If JAX
keeps compiled programs (JAX_COMPILATION_CACHE_DIR=folder
JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0), rows read the kept programs, and successive rows of
one family have them in memory. Such rows do not record their seconds.

    python benchmarks/lista.py                      adds the missing rows, most informative first
    python benchmarks/lista.py --minutes 30         begins no new row after 30 minutes
    python benchmarks/lista.py --cells main,design  adds rows of these groups, or of cells by name
    python benchmarks/lista.py --times              processor time of layers and of their products
    python benchmarks/lista_report.py               prints the tables and draws the figure
"""

import argparse
import fcntl
import itertools
import json
import math
import re
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.io
from _measure import environment

import unrolled as ur
from unrolled import layers

ROWS = Path(__file__).with_suffix(".jsonl")
TESTED, CHUNK, ELSEWHERE, RESAMPLED = 10_000, 500, 2_000, 1_000
BOUNDED, PROVED = 20_000, 500  # signals for the bound, and codes that are checked for a certificate
BROKEN = 1e200  # the error of a code that is not finite
DICTIONARIES, SEEDS = range(5), range(3)
ANOTHER, APART = "another dictionary", 100  # difference of the seeds of the two dictionaries


class Cell(NamedTuple):
    """A problem; its dictionaries differ in their seed."""

    m: int = 250
    d: int = 500
    depth: int = 16
    probability: float = 0.1
    snr: float = math.inf  # dB
    codes: str = "Gaussian"  # or Laplacian, constant
    dictionary: str = "Gaussian"  # or DCT, correlated, condition 50, public


class Row(NamedTuple):
    """One run of a recipe for a family."""

    cell: str
    family: str
    dictionary: int = 0
    seed: int = 0


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ISTA": ("ista", {}),
    "FISTA": ("fista", {}),
    "ALISTA-SS": ("alista", {}),
    "OAT": ("alista_at", {"onsager": True}),
    "VAMP-BG": ("vamp_bg", {}),
    "AUTO-VAMP": ("vamp_bg", {"em": True}),
    "LISTA-CPSS": ("lista_cpss", {}),
    "LISTA": ("lista", {}),
    "LAMP-BG": ("lamp_bg", {}),
    "HyperLISTA": ("hyperlista", {}),
    "GLISTA": ("glista", {}),
    "ALISTA-AT": ("alista_at", {}),
    "TISTA": ("tista", {}),
    "TISTA, Onsager": ("tista", {"onsager": True}),
    "LISTA-CP": ("lista_cp", {}),
    "LISTA-SS": ("lista_ss", {}),
    "TiLISTA": ("tilista", {}),
    "ALISTA": ("alista", {"support": None}),
    "LAMP": ("lamp", {}),
    "NA-ALISTA": ("na_alista", {}),
    "Ada-LISTA": ("ada_lista", {}),
    "LFISTA": ("lfista", {}),
    "LFISTA-CP": ("lfista_cp", {}),
    "step-LISTA": ("step_lista", {}),
    "LIHT": ("liht", {}),
}
ORACLE, LIMIT = "oracle", "Bayes limit"  # least squares on the true support; VAMP-BG with K = 32
# ALISTA-SS with the params of Theorem 12 for the most nonzeros that it covers, and the largest
# entry of 512 codes; without noise only.
ANALYTIC = "ALISTA-SS, analytic"
MAIN = {
    "noiseless": Cell(),
    "SNR 40": Cell(snr=40.0),
    "SNR 20": Cell(snr=20.0),
    "condition 50": Cell(dictionary="condition 50"),
}
OTHERS = {
    "SNR 30": Cell(snr=30.0),
    "SNR 10": Cell(snr=10.0),
    "condition 15": Cell(dictionary="condition 15"),
    "condition 30": Cell(dictionary="condition 30"),
    "DCT": Cell(dictionary="DCT"),
    "correlated": Cell(dictionary="correlated"),
    "250 x 1000, p = .05": Cell(d=1000, probability=0.05),
    "constant magnitude": Cell(codes="constant"),
    "public": Cell(dictionary="public"),
}
LEVELS: dict[str, tuple] = {
    "d": (150, 200, 400),
    "depth": (8, 16, 32),
    "probability": (0.05, 0.1, 0.2),
    "snr": (math.inf, 40.0, 20.0, 10.0),
    "codes": ("Gaussian", "Laplacian", "constant"),
    "dictionary": ("Gaussian", "DCT", "condition 15", "condition 50", "correlated"),
}


def design(cells: int = 40) -> dict[str, Cell]:
    """Cells with m = 100; the levels of a factor occur equally often, up to one."""
    rng = np.random.RandomState(0)
    columns = {
        name: rng.permutation(np.resize(np.arange(len(levels)), cells))
        for name, levels in LEVELS.items()
    }
    return {
        f"design {i:02}": Cell(100, **{n: LEVELS[n][column[i]] for n, column in columns.items()})
        for i in range(cells)
    }


DESIGN = design()
GROUPS = {"main": MAIN, "others": OTHERS, "design": DESIGN}
CELLS = MAIN | OTHERS | DESIGN


def rows(cells: list[str]) -> Iterator[Row]:
    """All rows of some cells: first one dictionary per cell, then more rows of the main cells."""
    names = [ORACLE, LIMIT, *FAMILIES]
    main = [cell for cell in cells if cell in MAIN]
    others = [cell for cell in cells if cell in OTHERS]
    designed = [cell for cell in cells if cell in DESIGN]
    for cell, name in (*itertools.product(main, names), *itertools.product(others, names)):
        yield Row(cell, name)
    if "noiseless" in main:
        yield Row("noiseless", ANALYTIC)
    for cell, name in itertools.product(designed, FAMILIES):
        yield Row(cell, name)
    for seed, i, name, cell in itertools.product(SEEDS, DICTIONARIES, names, main):
        yield Row(cell, name, i, seed)
    for seed, name, cell in itertools.product(SEEDS, names, others):
        yield Row(cell, name, 0, seed)


# Problems


def dictionary(cell: Cell, seed: int) -> np.ndarray:
    """D with unit columns, float64."""
    rng = np.random.RandomState(seed)
    if cell.dictionary == "public":
        return scipy.io.loadmat(ur.vision.datasets.locate("lista_benchmark") / "D.mat")["D"]
    if cell.dictionary == "DCT":
        rows = rng.permutation(cell.d)[: cell.m]
        return _unit(scipy.fft.dct(np.eye(cell.d), axis=0, norm="ortho")[rows])
    D = rng.normal(size=(cell.m, cell.d)) / math.sqrt(cell.m)
    if cell.dictionary == "correlated":
        i = np.arange(cell.d)
        D = D @ np.linalg.cholesky(0.8 ** abs(i[:, None] - i)).T
    kind, _, kappa = cell.dictionary.partition(" ")
    if kind == "condition":  # normalising changes the spectrum, so both alternate
        spectrum = np.logspace(0, -math.log10(float(kappa)), cell.m)
        for _ in range(20):
            U, _, V = np.linalg.svd(D, full_matrices=False)
            D = _unit(U * spectrum @ V)
    return _unit(D)


def _unit(D: np.ndarray) -> np.ndarray:
    return D / np.linalg.norm(D, axis=0)


def sampler(cell: Cell, D: jax.Array, batch: int) -> Any:
    """Noisy signals and their codes, with Bernoulli supports and nonzeros of variance 1."""
    draw = {"Gaussian": jax.random.normal, "Laplacian": jax.random.laplace}.get(cell.codes)

    def sample(D, key):
        where, what, noise = jax.random.split(key, 3)
        shape = (batch, cell.d)
        values = draw(what, shape) if draw else jax.random.rademacher(what, shape, jnp.float32)
        values = values / math.sqrt(2) if cell.codes == "Laplacian" else values
        X = jnp.where(jax.random.bernoulli(where, cell.probability, shape), values, 0)
        Y = ur.problems.synthesize(D, X)
        return (Y if math.isinf(cell.snr) else ur.problems.add_noise(noise, Y, cell.snr)), X

    return jax.tree_util.Partial(sample, D)


def test_signals(cell: Cell, D: jax.Array, row: Row) -> tuple[jax.Array, jax.Array]:
    """The test signals and codes of a dictionary and a seed, equal for all families."""
    if cell.dictionary == "public":
        codes = np.load(ur.vision.datasets.locate("lista_benchmark") / "xtest_n500_p10.npy").T
        X = jnp.asarray(codes, jnp.float32)
        return ur.problems.synthesize(D, X), X
    return drawn(cell, D, jax.random.key(1_000_000 + 1000 * row.dictionary + row.seed), TESTED)


def drawn(cell: Cell, D: jax.Array, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`count` signals and their codes."""
    parts = jax.lax.map(sampler(cell, D, CHUNK), jax.random.split(key, count // CHUNK))
    Y, X = (part.reshape(count, -1) for part in parts)
    return Y, X


def elsewhere(cell: Cell) -> dict[str, tuple[Cell, float]]:
    """Problems that differ from the training problem: the cell, and a factor of the amplitudes."""
    return {
        "amplitude 10": (cell, 10.0),
        "amplitude .001": (cell, 1e-3),
        "p x 1.5": (cell._replace(probability=1.5 * cell.probability), 1.0),
        "Laplacian": (cell._replace(codes="Laplacian"), 1.0),
        "constant": (cell._replace(codes="constant"), 1.0),
        "SNR 30": (cell._replace(snr=30.0), 1.0),
    }


def carried(layer: layers.Layer, params: Any, D: jax.Array, other: jax.Array, ridge: Any) -> Any:
    """The params that were trained or chosen on D, adapted to the dictionary `other`.

    Closed-form weights and spectra are computed anew from `other`; trained matrices are kept.
    """
    trained, fixed = ur.training.split(params, D)
    if not jax.tree.leaves(fixed.params):
        return params
    W = other if ridge is None else layers.lasso_weights(other, ridge)
    scale = 1.0 if ridge is None else layers.stable_step(W, other)
    fresh = layer.from_weights(jax.random.key(0), W * scale, other)
    if type(params.steps) is tuple:
        fresh = layers.unstack(fresh)
    return ur.training.merge(trained, ur.training.split(fresh, other)[1]).params


# Scores


def squares(layer: layers.Layer, params: Any, D: jax.Array, Y: jax.Array, X: jax.Array) -> Any:
    """norm(x_k - x)^2 of every signal after every step, (signals, K)."""

    @jax.jit
    def of_chunks(params, D, Y, X):
        def of(pair):
            codes = jax.vmap(layer.iterates, (None, None, 0))(params, D, pair[0])
            return jnp.sum((codes - pair[1][:, None]) ** 2, -1)

        return jax.lax.map(of, (Y, X))

    chunks = [array.reshape(-1, min(CHUNK, len(array)), array.shape[1]) for array in (Y, X)]
    return np.asarray(of_chunks(params, D, *chunks), float).reshape(len(Y), -1)


def scores(errors: np.ndarray, X: jax.Array) -> dict[str, Any]:
    """The scores of a cell, computed from the errors norm(x_K - x)^2 of its signals."""
    errors, sizes, each = _of_signals(errors, X)
    counts = _resampled(len(errors))
    resampled = (counts @ errors) / (counts @ sizes)
    return {
        "nmse": _dB(np.sum(errors) / np.sum(sizes)),
        "interval": [_dB(q) for q in np.quantile(resampled, (0.025, 0.975))],
        "mean": round(float(np.mean(each)), 2),
        "worst 1 %": round(float(np.quantile(each, 0.99)), 2),
        "above -20 dB": round(float(np.mean(~(each <= -20))), 6),
        "worse than zero": round(float(np.mean(~(errors <= sizes * (1 + 1e-5)))), 6),
    }


def _of_signals(errors: np.ndarray, X: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The errors, the squared norms and the errors in dB, for the codes that are not zero."""
    sizes = np.sum(np.square(np.asarray(X, float)), 1)
    errors, sizes = errors[sizes > 0], sizes[sizes > 0]
    errors = np.where(np.isfinite(errors), errors, BROKEN)
    with np.errstate(divide="ignore"):
        return errors, sizes, np.maximum(10 * np.log10(errors / sizes), -300)


@lru_cache(2)
def _resampled(signals: int) -> np.ndarray:
    """The count of each signal in each bootstrap sample, (RESAMPLED, signals)."""
    even = np.full(signals, 1 / signals)
    return np.random.default_rng(0).multinomial(signals, even, RESAMPLED).astype(float)


def _dB(ratio: float) -> float | None:
    return round(10 * math.log10(max(ratio, 1e-30)), 2) if ratio < math.sqrt(BROKEN) else None


def bound(cell: Cell, D: jax.Array, layer: layers.Layer, params: Any) -> float | None:
    """A bound in dB on the errors of 99.9 % of all signals of a cell, for all families at once.

    The confidence is 1 - 1e-6. The bound comes from fresh signals, which played no part in any
    choice. For a code that is zero, the relative error counts as 0 if the layer finds the zero
    code, and as 1 otherwise.
    """
    Y, X = drawn(cell, D, jax.random.key(3_000_000), BOUNDED)
    sizes = np.sum(np.square(np.asarray(X, float)), 1)
    errors = squares(layer, params, D, Y, X)[:, -1]
    ratios = np.where(sizes > 0, errors / np.where(sizes > 0, sizes, 1), errors > 0)
    return _dB(ur.theory.tolerance_bound(ratios, at_once=len(FAMILIES) + 1).bound)


def certified(D: jax.Array, Y: jax.Array, layer: layers.Layer, params: Any) -> float:
    """The share of codes proved, without repair, to be the only codes of least l1 norm."""
    codes = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
    return float(np.mean(ur.theory.certify_code(D, Y, codes, finish=0).certified(Y)))


def away(
    layer: layers.Layer, params: Any, D: jax.Array, cell: Cell, factor: float = 1.0
) -> list[float | None]:
    """The ratio of sums and the mean of dB on signals of another problem."""
    Y, X = (part * factor for part in sampler(cell, D, ELSEWHERE)(jax.random.key(2_000_000)))
    errors, sizes, each = _of_signals(squares(layer, params, D, Y, X)[:, -1], X)
    return [_dB(np.sum(errors) / np.sum(sizes)), round(float(np.mean(each)), 2)]


def oracle(D: jax.Array, Y: jax.Array, X: jax.Array) -> np.ndarray:
    """norm(x - x*)^2 of least squares on the true support, float64."""
    A, Y, X = (np.asarray(part, float) for part in (D, Y, X))
    found = np.zeros(len(Y))
    for i, (y, x) in enumerate(zip(Y, X)):
        support = np.flatnonzero(x)
        code = np.linalg.lstsq(A[:, support], y, rcond=None)[0]
        found[i] = np.sum((code - x[support]) ** 2)
    return found


# Rows


def from_theory(row: Row, cell: Cell, D: jax.Array) -> tuple[dict[str, Any], Any]:
    """The params of `ANALYTIC`: what they are made for, and the layer with its params."""
    X = sampler(cell, D, 512)(jax.random.key(row.seed))[1]
    layer = ur.alista(cell.depth, support=(0.12 * cell.probability, 1.3 * cell.probability))
    s = ur.theory.max_sparsity(ur.analytic.certified_weights(D).mu_W, cell.d)
    bound = float(jnp.abs(X).max())
    params = ur.analytic.alista(D, depth=cell.depth, sparsity=s, bound=bound)
    products = ur.comparison.products(layer, params, D, jnp.ones(cell.m, jnp.float32))
    made_for = {"layer": repr(layer), "sparsity": s, "bound": round(bound, 3), "numbers": 0}
    return made_for | {"seconds": 0.0, "products": products}, (layer, params)


def made(row: Row, cell: Cell, D: jax.Array) -> tuple[dict[str, Any], Any]:
    """Make a family by its recipe: the choices, and the layer with its params."""
    family, options = FAMILIES.get(row.family, FAMILIES["VAMP-BG"])
    depth = 32 if row.family == LIMIT else cell.depth
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ur.training.by_recipe(
            family, D, sampler(cell, D, 64), depth=depth, key=row.seed, **options
        )
    seconds = None if jax.config.jax_compilation_cache_dir else time.perf_counter() - began
    layer, params = found.fit.model, found.fit.best
    weights = jax.tree.leaves(ur.training.split(params, D)[0].params)
    y = jnp.zeros(cell.m, jnp.float32).at[0].set(1)
    return {
        "layer": repr(layer),
        "ridge": found.start.ridge,
        "start": round(found.start.nmse, 2),
        "validation": round(found.nmse, 2),
        "ISTA": round(found.start.ista, 2),
        "steps": found.fit.history.records[-1].step if layer.recipe.rate else 0,
        "seconds": seconds and round(seconds, 1),  # with compilation, or None
        "numbers": int(sum(np.size(leaf) for leaf in weights)),
        "products": ur.comparison.products(layer, params, D, y),
    }, (layer, params)


def first(row: Row) -> bool:
    """Whether a row is the first row of a main cell; only such a row has all columns."""
    return row.cell in MAIN and row.dictionary == row.seed == 0


def measured(row: Row, write: Any) -> None:
    """Make a row; write its choices, then its scores on the test signals."""
    cell = CELLS[row.cell]
    D = jnp.asarray(dictionary(cell, row.dictionary), jnp.float32)
    if row.family == ORACLE:
        Y, X = test_signals(cell, D, row)
        write(row, test=scores(oracle(D, Y, X), X))
        return
    choice, (layer, params) = (from_theory if row.family == ANALYTIC else made)(row, cell, D)
    write(row, choice=choice)
    Y, X = test_signals(cell, D, row)
    errors = squares(layer, params, D, Y, X)
    sizes = np.sum(np.square(np.asarray(X, float)), 1)
    found = scores(errors[:, -1], X)
    found["per step"] = [_dB(np.sum(e) / np.sum(sizes)) for e in errors.T]
    if first(row):
        found["99.9 %"] = bound(cell, D, layer, params)
        if math.isinf(cell.snr):
            found["certified"] = certified(D, Y[:PROVED], layer, params)
    if first(row) and row.family in FAMILIES:
        found["elsewhere"] = {
            name: away(layer, params, D, other, factor)
            for name, (other, factor) in elsewhere(cell).items()
        }
        other = jnp.asarray(dictionary(cell, row.dictionary + APART), jnp.float32)
        moved = carried(layer, params, D, other, choice["ridge"])
        found["elsewhere"][ANOTHER] = away(layer, moved, other, cell)
    write(row, test=found)


# Times


def timed(row: Row) -> dict[str, float]:
    """Processor milliseconds of a layer for 1,000 signals, and of its bare products, in turns."""
    cell, (family, options) = CELLS[row.cell], FAMILIES[row.family]
    D = jnp.asarray(dictionary(cell, row.dictionary), jnp.float32)
    Y, X = sampler(cell, D, 256)(jax.random.key(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = ur.training.prepare(family, D, Y, X, depth=cell.depth, key=0, **options)
    layer, params = start.layer, start.params
    Y = jnp.tile(Y, (4, 1))[:1000]
    code = jax.jit(lambda Y: jax.vmap(layer.apply, (None, None, 0))(params, D, Y))
    count = ur.comparison.products(layer, params, D, Y[0])

    @jax.jit
    def bare(r):
        for _ in range(count // 2):
            r = (r @ D) @ D.T / 4  # of spectral norm below 1
        return r

    spent: dict[str, list[float]] = {"ms": [], "products, ms": []}
    for _ in range(15):
        for name, call in zip(spent, (code, bare)):
            call(Y).block_until_ready()
            began = time.process_time()
            call(Y).block_until_ready()
            spent[name].append(1e3 * (time.process_time() - began))
    return {name: round(statistics.median(values), 2) for name, values in spent.items()}


def read() -> dict[Row, dict]:
    """The stored rows: their choices and their test scores, or the reason for a failure."""
    found: dict[Row, dict] = {}
    for line in ROWS.read_text().splitlines() if ROWS.exists() else []:
        entry = json.loads(line)
        row = found.setdefault(Row(**entry.pop("row")), {})
        if "choice" in entry and entry["choice"]["seconds"] is None:  # kept from an earlier run
            entry["choice"]["seconds"] = row.get("choice", {}).get("seconds")
        row.update(entry)
    return found


def complete(row: Row, there: dict) -> bool:
    """Whether a row has all its scores; older rows have fewer."""
    test = there.get("test", {})
    bounded = first(row) and row.family != ORACLE
    moved = row == Row(next(iter(MAIN)), row.family) and row.family in FAMILIES
    return "failed" in there or (
        ("99.9 %" if bounded else "nmse") in test
        and (not moved or ANOTHER in test.get("elsewhere", {}))
    )


@contextmanager
def adding() -> Iterator[Any]:
    """A function that writes an entry of a row, for one process at a time."""
    versions = {n: environment()[n] for n in ("jax", "processor")}
    with ROWS.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"{ROWS.name}: another process adds rows; try again later") from None

        def write(row: Row, **entry: Any) -> None:
            file.write(json.dumps({"row": row._asdict(), **entry, **versions}) + "\n")
            file.flush()

        yield write


def run(cells: list[str], minutes: float) -> None:
    """Add rows until the time is over; the last row may take longer."""
    began, family = time.monotonic(), None
    with adding() as write:
        for row in rows(cells):
            if complete(row, read().get(row, {})):
                continue
            if time.monotonic() - began > 60 * minutes:
                break
            if row.family != family or not jax.config.jax_compilation_cache_dir:
                jax.clear_caches()  # recorded seconds include compilation
                family = row.family
            started = time.monotonic()
            try:
                measured(row, write)
            except FileNotFoundError:  # the public dictionary is missing
                continue
            except Exception as error:
                write(row, failed=f"{type(error).__name__}: {error}".splitlines()[0])
            entry = read()[row]
            told = entry.get("failed") or f"{entry['test']['nmse']} / {entry['test']['mean']} dB"
            print(*row, told, f"{time.monotonic() - started:.0f} s", flush=True)


def run_times() -> None:
    """Add the missing times of the first main cell."""
    with adding() as write:
        for row in map(partial(Row, next(iter(MAIN))), FAMILIES):
            if "time" not in read().get(row, {}):
                write(row, time=timed(row))
                print(*row, read()[row]["time"], flush=True)
                jax.clear_caches()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=np.inf, help="begin no new row after this time"
    )
    parser.add_argument("--cells", default="main,others,design", help="groups, or cells by name")
    parser.add_argument("--times", action="store_true", help="measure times; add no other rows")
    given = parser.parse_args()
    if given.times:
        run_times()
        return
    cells = [c for name in re.split(",(?! )", given.cells) for c in GROUPS.get(name, {name: None})]
    if unknown := [name for name in cells if name not in CELLS]:
        parser.error(f"unknown cell {unknown[0]!r}; expected some of {', '.join(CELLS)}")
    run(cells, given.minutes)


if __name__ == "__main__":
    main()
