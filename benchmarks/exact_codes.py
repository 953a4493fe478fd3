"""Exact LASSO codes at many sizes, and their derivative: `lasso_batch` next to other solvers.

    python benchmarks/exact_codes.py [--memory | --selection | --start | --table]

Random unit atoms, signals of 20 or 102 atoms with 5 % noise, in float32. The rows, in
exact_codes.jsonl, hold the CPU microseconds per signal of one thread (the least and the most of the
repeats), and the largest duality gap, which this script computes in float64 for the returned codes.
SPAMS, skglm and celer take part if they are installed; skglm, celer and scikit-learn code the first
16 signals. The solver "chosen" is `lasso_batch` with its own choice of the method.

Rows with "screened" hold, for each round of the working sets, the share of atoms that gap safe
rules (Ndiaye et al., 2017) prove to be zero: in the code of a signal, on average, and in the codes
of all signals, as only these atoms could leave the product of all signals with D.

The last rows hold the time of the gradient of sum(C X) in D, Y and lam, with a compiled program or
without, and its distance from that of `lasso_batch` in float64. jaxopt (its implicit derivative of
proximal gradient) takes part if it is installed.

--memory codes 100,000 signals of 1000 x 4000 from a file, with sparse results, and adds a row with
the peak memory of the process. --selection adds rows of OMP whose atoms are selected by least
squares, next to `omp` of SPAMS: the median, the least and the most CPU time of the repeats, and the
share of signals for which both select the same atoms. --start adds rows of exact codes that start
from the codes of a network, with the microseconds of both parts, next to exact codes without a
start and SPAMS; for a trained network, with the CPU seconds of the training and the number of
signals that repay it. --table prints the table of the page.
"""

import os

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import importlib  # noqa: E402
import importlib.metadata  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from functools import partial  # noqa: E402
from itertools import chain  # noqa: E402
from pathlib import Path  # noqa: E402
from unittest import mock  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from scipy.linalg import hadamard  # noqa: E402

import unrolled as ur  # noqa: E402

# The bounds by which `lasso_batch` chooses a method; here each method is measured.
_lasso_batch = importlib.import_module("unrolled.pursuit._lasso_batch")
_working_sets = importlib.import_module("unrolled.pursuit._working_sets")
ROWS = Path(__file__).with_name("exact_codes.jsonl")
FEW, REPEATS = 16, 2
# m, d, signals, lam, atoms in a signal
CASES = [
    (64, 128, 2000, 0.2, 20),
    (256, 1024, 500, 0.15, 20),
    (256, 1024, 32, 0.15, 20),
    (256, 1024, 64, 0.05, 102),
    (256, 1024, 64, 0.02, 102),
    (256, 2048, 256, 0.15, 20),
    (256, 2048, 64, 0.05, 102),
    (256, 2048, 2000, 0.15, 20),
    (768, 6144, 64, 0.1, 20),
    (512, 16384, 64, 0.15, 20),
]
SCREENED = {(768, 6144), (512, 16384)}


def gaps(D, Y, X, lam):
    """The duality gaps of codes, relative to norm(y)^2 / 2, in float64."""
    D, Y, X = (np.asarray(v, float) for v in (D, Y, X))
    R = Y - X @ D.T
    G = R @ D
    s = np.minimum(1, lam / np.abs(G).max(1))
    excess = np.maximum(lam * np.abs(X) - s[:, None] * X * G, 0).sum(1)
    return (excess + (1 - s) ** 2 * (R**2).sum(1) / 2) / ((Y**2).sum(1) / 2)


def by_method(name):
    """`lasso_batch` by the given method."""

    def solve(D, Y, lam):
        limits = dict(FEW=10**9 if name == _lasso_batch.GRAM else 0, GRAMS=0)
        with mock.patch.multiple(_lasso_batch, **limits):
            result = ur.pursuit.lasso_batch(D, Y, lam)
        assert result.how == name
        return result.x

    return solve


def chosen(D, Y, lam):
    return ur.pursuit.lasso_batch(D, Y, lam).x


def by_estimator(model):
    """A solver of one signal with the interface of scikit-learn."""

    def solve(D, Y, lam):
        made = model(lam / len(D))
        return np.array([made.fit(D, y).coef_ for y in Y])

    return solve


def solvers(d):
    """The solvers by name, and whether each codes all signals."""
    from sklearn.linear_model import Lasso

    options = dict(fit_intercept=False, tol=1e-6)
    own = [] if d > _lasso_batch.LARGEST else [_lasso_batch.GRAM]
    found = {name: (by_method(name), True) for name in (*own, _lasso_batch.SETS)}
    found["chosen"] = chosen, True
    found["scikit-learn"] = by_estimator(lambda a: Lasso(a, max_iter=10**5, **options)), False
    for package, kind in (("celer", "Lasso"), ("skglm", "Lasso")):
        try:
            cls = getattr(importlib.import_module(package), kind)
        except ImportError:
            continue
        found[package] = by_estimator(lambda a, cls=cls: cls(a, **options)), False
    try:
        import spams
    except ImportError:
        return found

    def lars(D, Y, lam):
        X, A = np.asfortranarray(Y.T), np.asfortranarray(D)
        return spams.lasso(X, A, lambda1=lam, mode=2, numThreads=1).toarray().T

    return found | {"SPAMS LARS": (lars, True)}


def problem(m, d, n, atoms=20):
    """D, (m, d), and n signals of unit norm."""
    rng = np.random.default_rng(0)
    D = rng.normal(size=(m, d)).astype(np.float32)
    D /= np.linalg.norm(D, axis=0)
    X = rng.normal(size=(n, d)) * (rng.random((n, d)) < atoms / d)
    Y = (X @ D.T + 0.05 * rng.normal(size=(n, m))).astype(np.float32)
    return D, Y / np.linalg.norm(Y, axis=1, keepdims=True)


def seconds(call, repeats):
    """The least and the most CPU seconds of a call, after a first one, and its result."""
    result, times = jax.block_until_ready(call()), []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(call())
        times.append(time.process_time() - start)
    return min(times), max(times), result


def differentiable():
    """Functions of D, Y and lam whose values are the codes, by name."""

    def together(D, Y, lam):
        return ur.pursuit.lasso_batch(D, Y, lam).x

    def one_by_one(D, Y, lam):
        return jax.vmap(lambda y: ur.pursuit.lasso(D, y, lam).x)(Y)

    found = {"lasso_batch": together, "lasso under vmap": one_by_one}
    try:
        import jaxopt
    except ImportError:
        return found

    def by_jaxopt(D, Y, lam):
        def cost(x, own):
            D, y = own
            return jnp.sum((y - D @ x) ** 2) / 2

        step = 1 / jnp.linalg.norm(jax.lax.stop_gradient(D), 2) ** 2
        solver = jaxopt.ProximalGradient(
            cost, jaxopt.prox.prox_lasso, stepsize=lambda _: step, maxiter=5000, tol=1e-5
        )

        def one(y):
            return solver.run(jnp.zeros(D.shape[1]), lam, (D, y)).params

        return jax.vmap(one)(Y)

    return found | {"jaxopt": by_jaxopt}


def derivatives(m=250, d=500, n=256, lam=0.1):
    """The rows of the derivative."""
    D, Y = problem(m, d, n)
    C = np.random.default_rng(1).normal(size=(n, d)).astype(np.float32)
    arguments = jnp.asarray(D), jnp.asarray(Y), jnp.float32(lam)

    def gradient(codes, C):
        return jax.grad(lambda *of: jnp.sum(codes(*of) * C), (0, 1, 2))

    jax.config.update("jax_enable_x64", True)  # in all threads, also of callbacks
    wide = tuple(jnp.asarray(v, float) for v in arguments)
    exact = gradient(differentiable()["lasso_batch"], C.astype(float))(*wide)
    exact = [np.asarray(v) for v in exact]
    jax.config.update("jax_enable_x64", False)
    for name, codes in differentiable().items():
        for kind, wrapped in (("compiled", jax.jit), ("not compiled", lambda f: f)):
            if kind == "not compiled" and name == "jaxopt":
                continue  # takes minutes
            slope = wrapped(gradient(codes, C))
            best, _, slopes = seconds(lambda slope=slope: slope(*arguments), 3)
            apart = [np.linalg.norm(v - u) / np.linalg.norm(u) for v, u in zip(slopes, exact)]
            yield dict(
                m=m, d=d, signals=n, lam=lam, derivative=name, program=kind,
                microseconds=round(best / n * 1e6, 1), apart=float(f"{max(apart):.2g}"),
            )  # fmt: skip


def measured():
    """The rows of all cases."""
    for m, d, n, lam, atoms in CASES:
        D, Y = problem(m, d, n, atoms)
        for name, (solve, is_batch) in solvers(d).items():
            signals = Y if is_batch else Y[:FEW]
            call = partial(lambda solve, *of: np.asarray(solve(*of)), solve, D, signals, lam)
            least, most, codes = seconds(call, REPEATS)
            row = dict(m=m, d=d, signals=len(signals), lam=lam, solver=name)
            if name == "chosen":
                row |= dict(how=ur.pursuit.lasso_batch(D, signals, lam).how)
            row |= dict(microseconds=round(least / len(signals) * 1e6, 1))
            row |= dict(most=round(most / len(signals) * 1e6, 1))
            row |= dict(nonzeros=round(float((codes != 0).sum(1).mean()), 1))
            yield row | dict(gap=float(f"{gaps(D, signals, codes, lam).max():.2g}"))
        if (m, d) in SCREENED:
            yield dict(m=m, d=d, signals=n, lam=lam, screened=screened(D, Y, lam))


def screened(D, Y, lam):
    """The shares of atoms that gap safe rules screen in each round: (of a signal, of all)."""
    rounds, judged = [], _working_sets._judged

    def noted(task, block, live, products, *of, **options):
        sets, r, y = block.sets(live), block.r[live], block.y[live]  # D, y and lam are scaled
        atoms, own = D * 2.0**-task.atoms.a, block.lam[live][:, 0]
        wide = r @ atoms
        s = np.minimum(1, own / np.abs(wide).max(1))[:, None]
        primal = (r**2).sum(1) / 2 + own * np.abs(sets.x).sum(1)
        gap = np.maximum(primal - ((y**2).sum(1) - ((y - s * r) ** 2).sum(1)) / 2, 0)
        far = np.sqrt(2 * gap)[:, None] * np.linalg.norm(atoms, axis=0)
        zero = np.abs(s * wide) + far < own[:, None]
        rounds.append([round(float(zero.mean()), 4), round(float(zero.all(0).mean()), 4)])
        return judged(task, block, live, products, *of, **options)

    with mock.patch.object(_working_sets, "_judged", noted):
        by_method(_lasso_batch.SETS)(D, Y, lam)
    return rounds


def memory(m=1000, d=4000, n=100_000, lam=0.1, part=2000):
    """The row of many signals, which come from a file."""
    D, Y = problem(m, d, part)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "Y.npy"
        file = np.lib.format.open_memmap(path, "w+", np.float32, (n, m))
        for first in range(0, n, part):  # the same signals with other norms
            file[first : first + part] = Y * (1 + first / n)
        del file
        signals = np.load(path, mmap_mode="r")
        start = time.process_time()
        result = ur.pursuit.lasso_batch(D, signals, ratio=0.5, sparse=True)
        spent = time.process_time() - start
    assert bool(result.converged.all())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    row = dict(m=m, d=d, signals=n, ratio=0.5, solver=result.how, peak_gb=round(peak, 2))
    row |= dict(microseconds=round(spent / n * 1e6, 1))
    return row | dict(nonzeros=round(float(result.x.counts.mean()), 1))


def motion(rng, n):
    """Gaits, four harmonics of any frequency, in the packets of Haar's wavelet: (64, 384)."""
    levels = [2**level for level in range(1, 7)]
    D = [np.kron(np.eye(64 // size), hadamard(size) / size**0.5) for size in levels]
    phase = 2 * np.pi * rng.uniform(0.5, 3, n)[:, None] * np.linspace(0, 1, 64)
    tones = [rng.normal(size=(n, 1)) * np.cos(k * phase + k * rng.random((n, 1))) for k in range(5)]
    return np.hstack(D), sum(tones)


def chirps(rng, n):
    """Sums of ten chirps: (200, 2048)."""
    t, (f, sweep, phase) = np.linspace(0, 1, 200)[:, None], rng.random((3, 2048))
    D = np.cos(2 * np.pi * ((2 + 38 * f) * t + 30 * (sweep - 0.5) * t**2 + phase))
    return D, sums_of(D, 10, rng, n)


def genes(rng, n):
    """Mixtures of 16 of many profiles of positive numbers: (256, 1024)."""
    D = rng.gamma(0.3, size=(256, 1024))
    return D, sums_of(D, 16, rng, n)


def random(rng, n):
    """Sums of eight random atoms: (64, 128)."""
    D = rng.normal(size=(64, 128))
    return D, sums_of(D, 8, rng, n)


def sums_of(D, k, rng, n):
    """Signals of k atoms of norm 1."""
    places = rng.random((n, D.shape[1])).argsort(1)[:, :k]
    X = np.zeros((n, D.shape[1]))
    np.put_along_axis(X, places, rng.normal(size=(n, k)), 1)
    return X @ (D / np.linalg.norm(D, axis=0)).T


SELECTION = {motion: (1000, 12), chirps: (300, 10), genes: (400, 16), random: (2000, 8)}


def selection(repeats=25):
    """The rows of the selection by least squares."""
    import spams

    for of, (n, k) in SELECTION.items():
        D, Y = of(np.random.default_rng(0), n)
        Y = Y + 0.05 * Y.std(1, keepdims=True) * np.random.default_rng(1).normal(size=Y.shape)
        D, Y = (D / np.linalg.norm(D, axis=0)).astype(np.float32), Y.astype(np.float32)
        A, columns = np.asfortranarray(D), np.asfortranarray(Y.T)
        by_fit = partial(ur.pursuit.omp_batch, D, Y, k, selection="least_squares")
        spams_omp = partial(spams.omp, columns, A, L=k, eps=0.0, numThreads=1)
        calls = {
            "omp_batch": lambda by_fit=by_fit: np.asarray(by_fit().x),
            "SPAMS": lambda spams_omp=spams_omp: spams_omp().toarray().T,
        }
        codes = {name: call() for name, call in calls.items()}
        times = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                start = time.process_time()
                call()
                times[name].append((time.process_time() - start) / n * 1e6)
        same = np.mean([(a.astype(bool) == b.astype(bool)).all() for a, b in zip(*codes.values())])
        for name, spent in times.items():
            left = np.linalg.norm(Y - codes[name] @ D.T, axis=1) / np.linalg.norm(Y, axis=1)
            yield dict(
                selection=of.__name__, m=len(D), d=D.shape[1], signals=n, atoms=k, solver=name,
                microseconds=round(float(np.median(spent)), 1), least=round(min(spent), 1),
                most=round(max(spent), 1), residual=round(float(left.mean()), 5),
                same=round(float(same), 4),
            )  # fmt: skip


def started(n=2000, trained_on=20_000):
    """The rows of codes that start from those of `bcd`, untrained and trained for 900 steps."""
    for lam in (0.05, 0.02):
        D, Y = problem(256, 1024, n + trained_on, 102)
        train, Y = Y[n:], Y[:n]
        shared = dict(m=256, d=1024, signals=n, lam=lam)
        alone = {}
        for name in ("chosen", "SPAMS LARS"):
            solve = solvers(1024)[name][0]
            least, _, codes = seconds(partial(solve, D, Y, lam), 4)
            alone[name] = least / n * 1e6
            nonzeros = round(float(np.count_nonzero(codes) / n), 1)
        for depth, trains in ((4, True), (8, True), (8, False), (16, False)):
            layer, begun = ur.layers.bcd(depth, lam=lam), time.process_time()
            if trains:
                params = ur.training.unsupervised(
                    D, train, lam, depth, key=0, family="bcd", steps=300, progress=False
                ).params
            else:
                params = layer.init(None, D)
            spent = time.process_time() - begun if trains else 0.0
            network = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
            first = partial(network, jax.tree.map(jnp.asarray, params), jnp.asarray(D), Y)
            coded, _, start = seconds(first, 4)
            finish = partial(ur.pursuit.lasso_batch, D, Y, lam, start=np.asarray(start))
            least, most, result = seconds(lambda finish=finish: np.asarray(finish().x), 4)
            both = (coded + least) / n * 1e6
            saved = min(alone.values()) - both
            yield shared | dict(
                start="bcd", depth=depth, trained=trains, nonzeros=nonzeros,
                network=round(coded / n * 1e6, 1), microseconds=round(least / n * 1e6, 1),
                most=round(most / n * 1e6, 1), alone=round(alone["chosen"], 1),
                spams=round(alone["SPAMS LARS"], 1), ratio=round(min(alone.values()) / both, 2),
                before=float(f"{gaps(D, Y, start, lam).max():.2g}"),
                gap=float(f"{gaps(D, Y, result, lam).max():.2g}"), training_s=round(spent, 1),
                repaid=int(spent / saved * 1e6) if trains and saved > 0 else None,
            )  # fmt: skip


def table(rows):
    """The rows as a table: CPU microseconds per signal, and the largest gap."""
    cases = {}
    for row in (row for row in rows if "solver" in row and "gap" in row):
        many = row["signals"] if row["signals"] != FEW else ""
        key = next((k for k in reversed(cases) if k[:3] == (row["m"], row["d"], row["lam"])), None)
        if key is None or (many and many != key[3]):
            key = (row["m"], row["d"], row["lam"], many)
        cases.setdefault(key, {})[row["solver"]] = row
    names = list(dict.fromkeys(name for of in cases.values() for name in of))
    print("| m x d, signals | nonzeros |", " | ".join(names), "|")
    print("|---" * (len(names) + 2) + "|")
    for (m, d, _, n), of in cases.items():
        cells = (of.get(name) for name in names)
        texts = [f"{c['microseconds']:,.0f} ({c['gap']:.0e})" if c else "" for c in cells]
        nonzeros = of["working sets"]["nonzeros"]
        print(f"| {m} x {d}, {n:,} | {nonzeros:.0f} |", " | ".join(texts), "|")


def main():
    if "--table" in sys.argv:
        return table(list(map(json.loads, ROWS.read_text().splitlines())))
    if "--memory" in sys.argv:
        row = memory()
        print(row)
        rows = [r for r in map(json.loads, ROWS.read_text().splitlines()) if "peak_gb" not in r]
        return ROWS.write_text("\n".join(map(json.dumps, [*rows, row])) + "\n")
    if "--selection" in sys.argv:
        kept = [r for r in map(json.loads, ROWS.read_text().splitlines()) if "selection" not in r]
        new = list(selection())
        print(*new, sep="\n")
        return ROWS.write_text("\n".join(map(json.dumps, [*kept, *new])) + "\n")
    if "--start" in sys.argv:
        kept = [r for r in map(json.loads, ROWS.read_text().splitlines()) if "start" not in r]
        new = []
        for row in started():
            print(row, flush=True)
            new.append(row)
        return ROWS.write_text("\n".join(map(json.dumps, [*kept, *new])) + "\n")
    packages = ("numpy", "numba", "scikit-learn", "spams-bin", "skglm", "celer", "jaxopt")
    versions = {p: version(p) for p in packages if version(p)}
    rows = [dict(versions=versions, processor=platform.processor() or platform.machine())]
    for row in chain(measured(), derivatives()):
        print(row, flush=True)
        rows.append(row)
    ROWS.write_text("\n".join(map(json.dumps, rows)) + "\n")


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
