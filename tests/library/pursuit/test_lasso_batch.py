"""The LASSO of a batch: certificates recomputed, the codes of other solvers, degenerate inputs."""

import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import AS_USERS
from oracles import normal, unit
from sklearn.linear_model import ElasticNet

from unrolled import dictionaries, pursuit
from unrolled.pursuit import _lasso_batch, _many

M, N, BATCH = 20, 40, 9
D = unit(normal(0, M, N))
Y = normal(1, BATCH, M)


def gaps(D, Y, X, lam):
    """Relative gaps, from the definition in terms of primal and dual values."""
    R = Y - X @ D.T
    s = np.minimum(1, np.min(lam / np.abs(R @ D), 1, keepdims=True))
    primal = np.sum(R**2, 1) / 2 + np.sum(lam * np.abs(X), 1)
    half = np.sum(Y**2, 1) / 2
    return (primal - half + np.sum((Y - s * R) ** 2, 1) / 2) / half


def patches(n):
    """Smooth signals: the codes of a coherent dictionary with many supports that nearly tie."""
    t = np.linspace(0, 1, 8)
    waves = [np.outer(np.sin(a * t + b), np.cos(c * t)).ravel() for a, b, c in normal(2, n, 3) * 4]
    return unit((np.array(waves) + 0.02 * normal(3, n, 64)).T).T


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["gaussian", "dct"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_code_has_its_certificate(kind, dtype):
    A, signals = (
        (unit(normal(4, 50, 100)), normal(5, 150, 50))
        if kind == "gaussian"
        else (np.asarray(dictionaries.dct((8, 8), (16, 16)), float), patches(150))
    )
    A, signals = A.astype(dtype), signals.astype(dtype)
    found = pursuit.lasso_batch(A, signals, ratio=0.1)
    wide = A.astype(float), signals.astype(float)
    lam = 0.1 * np.abs(wide[1] @ wide[0]).max(1, keepdims=True)
    assert found.converged.all() and (found.gap <= 1e-6).all()
    # The code and lam, rounded to the dtype, move the gap by their rounding.
    slack = 20 * float(np.finfo(dtype).eps)
    assert (
        gaps(*wide, np.asarray(found.x, float), lam) <= np.asarray(found.gap, float) + slack
    ).all()
    R = np.linalg.norm(wide[1] - np.asarray(found.x, float) @ wide[0].T, axis=1)
    assert found.residual == pytest.approx(R, rel=slack)
    assert found.x.dtype == found.gap.dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("weights", ["one", "per atom", "per signal", "all"])
def test_codes_are_those_of_the_solver_of_one_signal(weights, l2, nonnegative):
    rng = np.random.default_rng(6)
    lam = {
        "one": 0.2,
        "per atom": rng.uniform(0.1, 0.4, N),
        "per signal": rng.uniform(0.1, 0.4, (BATCH, 1)),
        "all": rng.uniform(0.1, 0.4, (BATCH, N)),
    }[weights]
    options = dict(l2=l2, nonnegative=nonnegative, tol=1e-13)
    found = pursuit.lasso_batch(D, Y, lam, **options)
    each = np.broadcast_to(lam, (BATCH, N))
    alone = jax.vmap(lambda y, lam: pursuit.lasso(D, y, lam, **options))(Y, each)
    assert found.converged.all()
    assert found.x == pytest.approx(np.asarray(alone.x), abs=1e-6)
    assert found.residual == pytest.approx(np.asarray(alone.residual), abs=1e-6)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_ratio_is_one_of_lam_max_of_every_signal(nonnegative):
    A = np.abs(D)
    signals = np.vstack([Y, -np.abs(Y[:1])])  # the last one has no code that is positive
    top = np.max(signals @ A if nonnegative else np.abs(signals @ A), 1, keepdims=True)
    options = dict(nonnegative=nonnegative, tol=1e-12)
    found = pursuit.lasso_batch(A, signals, ratio=0.3, **options)
    same = pursuit.lasso_batch(A, signals, 0.3 * np.maximum(top, 0), **options)
    assert found.converged.all() and found.x == pytest.approx(np.asarray(same.x), abs=1e-6)
    assert found.x[-1].any() != nonnegative


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_codes_are_those_of_scikit_learn(l2, nonnegative):
    found = pursuit.lasso_batch(D, Y, 0.2, l2=l2, nonnegative=nonnegative, tol=1e-12)
    options = dict(fit_intercept=False, tol=1e-14, max_iter=100_000, positive=nonnegative)
    model = ElasticNet(alpha=(0.2 + l2) / M, l1_ratio=0.2 / (0.2 + l2), **options)
    for x, y in zip(found.x, Y):
        assert x == pytest.approx(model.fit(D, y).coef_, abs=1e-6)
    assert found.converged.all() and (found.gap <= 1e-12).all()


@pytest.mark.few(1)
@pytest.mark.parametrize("shape", [(30, 12), (12, 12), (6, 40)])
def test_tall_square_and_wide_dictionaries(shape):
    A, signals = unit(normal(7, *shape)), normal(8, 5, shape[0])
    found = pursuit.lasso_batch(A, signals, ratio=0.05, tol=1e-10)
    assert found.converged.all()
    lam = 0.05 * np.abs(signals @ A).max(1, keepdims=True)
    assert (gaps(A, signals, np.asarray(found.x), lam) <= 1e-10 + 1e-14).all()


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["twins", "rank", "zero"])
def test_degenerate_dictionaries(kind):
    A = {
        "twins": np.hstack([D[:, :10], D[:, :10], -D[:, :10]]),
        "rank": normal(7, M, 4) @ normal(8, 4, 30),
        "zero": np.hstack([np.zeros((M, 2)), D]),
    }[kind]
    found = pursuit.lasso_batch(A, Y, ratio=0.1, tol=1e-9)
    assert found.converged.all() and np.isfinite(found.x).all()


def test_signals_do_not_depend_on_their_neighbours():
    """But for the rounding of products of other sizes; chunks, and one thread or several."""
    many = np.tile(Y, (40, 1))  # several chunks
    found, few = (pursuit.lasso_batch(D, signals, 0.2) for signals in (many, Y))
    assert found.x == pytest.approx(np.tile(few.x, (40, 1)), abs=1e-9)
    spoilt = Y.copy()
    spoilt[2, 1], spoilt[3] = np.nan, 0
    other = pursuit.lasso_batch(D, spoilt, 0.2)
    kept = np.delete(np.arange(BATCH), [2, 3])
    assert other.x[kept] == pytest.approx(np.asarray(few.x[kept]), abs=1e-9)
    assert not other.converged[2] and not np.isfinite([other.gap[2], other.residual[2]]).any()
    assert other.converged[3] and not other.x[3].any() and other.steps[3] == 0


OPTIONS = {  # of the LASSO: of all signals, and of every signal
    "lam": {"lam": 0.2},
    "of atoms": {"ratio": np.linspace(0.1, 0.5, N)},
    "of signals": {"lam": np.linspace(0.1, 0.5, BATCH)[:, None], "start": normal(3, BATCH, N)},
    "of both": {"ratio": np.abs(normal(4, BATCH, N)) / 9, "nonnegative": True},
}


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """Signals of a file, one of them not finite, of which four are read at a time."""
    monkeypatch.setattr(_lasso_batch, "_chunk", lambda shape: 4)
    np.save(tmp_path / "Y.npy", np.where(np.arange(BATCH)[:, None] == 2, np.nan, Y))
    return np.load(tmp_path / "Y.npy", mmap_mode="r")


@pytest.mark.few(2)
@pytest.mark.parametrize("options", ["of both", "of signals", "of atoms", "lam"])
def test_a_mapped_file_has_the_bits_of_its_array(mapped, monkeypatch, options):
    """And no more than a chunk of it is made an array."""
    whole = pursuit.lasso_batch(D, np.array(mapped), **OPTIONS[options])
    seen, rows_of = [], _many.rows_of

    def noted(Y, rows, *rest):
        assert isinstance(Y, np.memmap)
        seen.append(rows.stop - rows.start)
        return rows_of(Y, rows, *rest)

    monkeypatch.setattr(_many, "rows_of", noted)
    found = pursuit.lasso_batch(D, mapped, **OPTIONS[options])
    assert sorted(seen) == [1, 4, 4] and found.converged.sum() == BATCH - 1
    for ours, theirs in zip(*map(jax.tree.leaves, (found, whole)), strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=True)


def test_parts_of_a_mapped_file_have_the_codes_of_its_array(tmp_path, monkeypatch):
    monkeypatch.setattr(_lasso_batch, "_PARTS", 4)
    A, signals = dictionaries.Joint(normal(5, 6, 9), 2), normal(6, 9, 6, 2)
    np.save(tmp_path / "Y.npy", signals)
    mapped = np.load(tmp_path / "Y.npy", mmap_mode="r")
    options = dict(ratio=np.linspace(0.3, 0.5, 9)[:, None], mask=normal(7, 9, 6, 2) > -1)
    found, whole = (pursuit.lasso_batch(A, v, **options) for v in (mapped, signals))
    assert found.x.shape == whole.x.shape and found.converged.all()
    np.testing.assert_allclose(found.x, whole.x, atol=1e-5)


def test_matching_of_a_mapped_file_has_the_codes_of_its_array(mapped):
    """`residual` and `gap` are sums of other matrix products, each rounded."""
    for weights in (None, np.linspace(0.5, 1, M), np.abs(normal(4, BATCH, M))):
        whole = pursuit.omp_batch(D, np.array(mapped), 3, weights)
        found = pursuit.omp_batch(D, mapped, 3, weights)
        np.testing.assert_allclose(found.x, whole.x, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(found.residual, whole.residual, rtol=1e-12)
        assert np.array_equal(found.converged, whole.converged)


def test_what_a_mapped_file_does_not_fit_is_said_of_the_whole(mapped):
    with pytest.raises(ValueError, match=r"Y has shape \(9, 20\); expected \(batch, 19\)"):
        pursuit.lasso_batch(D[:19], mapped, 0.2)
    with pytest.raises(ValueError, match=r"lam has shape \(4, 1\); expected .*\(9, 1\)"):
        pursuit.lasso_batch(D, mapped, np.ones((4, 1)))
    traced = jax.jit(lambda lam: pursuit.lasso_batch(D, mapped, lam).x)(0.2)
    assert np.array_equal(traced, pursuit.lasso_batch(D, mapped, 0.2).x)


MAPPED = """
import numpy as np, sys, threading
import unrolled as ur
n, m = 100_000, 512
Y = np.lib.format.open_memmap(sys.argv[1], "w+", np.float32, (n, m))
for first in range(0, n, 4000):
    Y[first : first + 4000] = np.random.default_rng(first).random((4000, m), np.float32)
Y.flush()
D = np.asarray(ur.dictionaries.gaussian(0, m, 4))

def rss():
    return int(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0]) / 1e3

def call(Y):
    return ur.pursuit.lasso_batch(D, Y, ratio=0.5)

call(np.array(Y[:9000]))
before, peak, over = rss(), [0], threading.Event()
def watch():
    while not over.wait(0.005):
        peak[0] = max(peak[0], rss())
watcher = threading.Thread(target=watch)
watcher.start()
call(np.load(sys.argv[1], mmap_mode="r"))
over.set(), watcher.join()
print(peak[0] - before)
"""


@pytest.mark.slow
def test_a_mapped_file_is_not_copied_into_memory(tmp_path):
    """All arrays, of which some are in float64, take less than the file, which has 205 MB.

    Measured 121 MB, whatever the number of signals; an array of all of them took 1,056 MB.
    """
    if not os.path.exists("/proc/self/status"):
        pytest.skip("this system does not tell the memory of a process")
    environment = os.environ | AS_USERS | {"JAX_ENABLE_X64": "0"}
    command = [sys.executable, "-c", MAPPED, str(tmp_path / "Y.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 205


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_atom_that_is_lost_in_the_range_is_not_left_out_in_silence(dtype):
    """lam lets the second atom in, but no unit holds both; a larger lam keeps it out for sure."""
    tiny = float(np.finfo(dtype).tiny)
    A = np.diag([8e4, 1e3 * tiny, 1e-3]).astype(dtype)
    signals, lam = np.ones((3, 3), dtype), np.array([[10 * tiny], [1e-2], [1.0]], dtype)
    found = pursuit.lasso_batch(A, signals, lam)
    assert found.converged.tolist() == [False, True, True]
    assert np.isinf(found.gap[0]) and not np.asarray(found.x[0]).any()
    assert not np.asarray(found.x[1:, 1]).any() and (np.asarray(found.x[1:, 0]) > 0).all()


def test_threads_take_few_signals_at_once_where_codes_may_take_long():
    """Between them they can be interrupted; small codes come by hundreds."""
    for shape, most in (((400, 1600), 16), ((250, 500), 40), ((64, 128), 256)):
        assert most / 2 <= _lasso_batch._chunk(shape) <= most


def test_without_threadpoolctl_one_thread_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert pursuit.lasso_batch(D, Y, 0.2).converged.all()


def test_machine_code_is_made_where_no_folder_keeps_it(monkeypatch):
    from unrolled.pursuit import _active_set

    def refusing(signature, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: SimpleNamespace(ctypes=function)

    monkeypatch.setattr(_active_set, "cfunc", refusing)
    assert _active_set.entry.__wrapped__(_active_set.many, _active_set.MANY) is _active_set.many


def test_machine_code_is_made_anew_if_a_function_that_it_calls_has_changed(monkeypatch):
    """numba compares the name and the file of the function that it is asked for, and no other."""
    from unrolled.pursuit import _active_set, _compiled

    def name_of(source):
        monkeypatch.setattr(_compiled.pkgutil, "get_data", lambda *of: source)
        _compiled.digest.cache_clear()
        return _active_set.entry.__wrapped__(_active_set.many, _active_set.MANY)

    monkeypatch.setattr(_active_set.many, "__qualname__", "many")
    seen = dict(ctypes=property(lambda made: made.function.__qualname__))
    made = type("Made", (SimpleNamespace,), seen)
    monkeypatch.setattr(
        _active_set, "cfunc", lambda *of, **options: lambda function: made(function=function)
    )
    names = [name_of(source) for source in (b"a", b"b", b"a")]
    monkeypatch.undo()
    _compiled.digest.cache_clear()
    assert names[0] == names[2] != names[1] and all(n.startswith("many_") for n in names)


def test_the_cholesky_factor_of_few_atoms(monkeypatch):
    """That of numpy, for sizes with and without blocks of four; none for dependent atoms."""
    from unrolled.pursuit import _compiled

    monkeypatch.setattr(_compiled, "_block", _compiled._block.py_func)
    for k in range(14):
        A, b = D[:, :k].T @ D[:, :k] + np.eye(k), normal(5, k)
        L, x = np.full((k, k), np.nan), b.copy()
        assert _compiled.factor.py_func(A, L, k, 1e-10)
        np.testing.assert_allclose(np.tril(L), np.linalg.cholesky(A), rtol=0, atol=1e-14)
        _compiled.solve.py_func(L, x, k)
        np.testing.assert_allclose(A @ x, b, rtol=0, atol=1e-13)
    twins = np.c_[D[:, :6], D[:, 2]]
    assert not _compiled.factor.py_func(twins.T @ twins, np.zeros((7, 7)), 7, 1e-10)


def test_working_sets_are_compiled_where_no_folder_keeps_machine_code(monkeypatch):
    from unrolled.pursuit import _compiled

    def refusing(signatures, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(_compiled, "njit", refusing)
    assert _compiled.cached(fastmath=True)(gaps) is gaps


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, float])
def test_atoms_without_a_penalty_are_certified(dtype, nonnegative):
    """A constant and two more atoms, beside signals with a mean."""
    A, lam = D.copy(), np.where(np.arange(N) < 3, 0, 0.2)
    tol = {np.float32: 1e-6, float: 1e-9}[dtype]
    A[:, 0] = 1 / np.sqrt(M)
    found = pursuit.lasso_batch(
        A.astype(dtype), (Y + 5).astype(dtype), lam, nonnegative=nonnegative, tol=tol
    )
    X = np.asarray(found.x, float)
    assert found.converged.all() and (found.steps < 1000).all() and (found.gap <= tol).all()
    g = (Y + 5 - X @ A.T) @ A
    # To the rounding of codes of size 20 in their dtype.
    near = 1e3 * np.finfo(dtype).eps
    assert (np.abs(g - lam * np.sign(X))[X != 0] <= near).all()
    assert ((g if nonnegative else np.abs(g)) <= lam + near).all()


def test_large_penalties_and_empty_batches():
    found = pursuit.lasso_batch(D, Y, ratio=1.0, start=np.ones((BATCH, N)))
    assert found.converged.all() and not found.x.any() and not found.steps.any()
    empty = pursuit.lasso_batch(D, Y[:0], ratio=0.1)
    assert empty.x.shape == (0, N) and empty.converged.shape == (0,)
    free = pursuit.lasso_batch(D, Y, 0.0)
    assert free.converged.all() and (free.residual <= 1e-3).all()


def test_small_penalties_are_finished_by_the_active_set():
    """Supports of m atoms, which ADMM alone does not find in 10,000 steps."""
    found = pursuit.lasso_batch(D, Y, ratio=1e-4, tol=1e-9)
    lam = 1e-4 * np.abs(Y @ D).max(1, keepdims=True)
    assert found.converged.all() and found.steps.max() < 1000
    assert (gaps(D, Y, np.asarray(found.x), lam) <= 1e-9).all()


@pytest.mark.parametrize("dtype, size", [("f4", 1e-36), ("f8", 1e-200)])
def test_an_atom_below_the_range_whose_penalty_is_too_leaves_no_certificate(dtype, size):
    A = np.where(np.arange(N) == 3, D * size, D).astype(dtype)
    faint = np.where(np.arange(N) == 3, size / 10, 0.2)
    for lam, proved in ((0.2, True), (faint, False)):
        found = pursuit.lasso_batch(A, Y.astype(dtype), lam)
        assert (np.asarray(found.converged) == proved).all()


def test_a_warm_start_saves_steps(by_sets):
    loud = 2.0**40 * Y  # a signal and its start have one unit
    first = pursuit.lasso_batch(D, loud, ratio=0.1, tol=1e-10)
    again = pursuit.lasso_batch(D, loud, ratio=0.1, tol=1e-10, start=first.x)
    near = pursuit.lasso_batch(D, loud, ratio=0.099, tol=1e-10, start=first.x)
    assert not again.steps.any() and near.steps.sum() < first.steps.sum()
    assert again.converged.all() and near.converged.all()
    by_sets(0)
    many = np.vstack([loud] * 40)  # more signals than one thread takes at once
    warm = pursuit.lasso_batch(D, many, ratio=0.1, tol=1e-9, start=np.vstack([first.x] * 40))
    assert warm.how == "working sets" and 2 * warm.steps.max() < first.steps.max()


@pytest.mark.parametrize("case", ["plain", "nonnegative", "l2", "mask", "free", "twins"])
def test_every_start_leads_to_the_minimiser(case):
    """Few changes lead from a support that is nearly right; no other start changes the codes."""
    atoms = np.hstack([D, D[:, :5]]) if case == "twins" else D
    d, rng = atoms.shape[1], np.random.default_rng(0)
    lam = np.where(np.arange(d) < 3, 0.0, 0.5) if case == "free" else 0.5
    options = {
        "nonnegative": dict(nonnegative=True),
        "l2": dict(l2=0.1),
        "mask": dict(mask=rng.random(Y.shape) < 0.9),
    }.get(case, {})
    solve = partial(pursuit.lasso_batch, atoms, Y, lam, tol=1e-12, **options)
    plain = solve()
    x = np.array(plain.x)
    x[:, 7], x[:, 11] = 0.0, 1e-3
    near, wrong = solve(start=x), solve(start=-x)
    dense = solve(start=rng.normal(size=x.shape))
    assert 2 * near.steps.sum() < plain.steps.sum()
    for other in (near, wrong, dense):
        assert other.converged.all()
        fitted = (np.asarray(code.x) @ atoms.T for code in (other, plain))
        np.testing.assert_allclose(*fitted, atol=1e-5)


@pytest.mark.parametrize("start", ["zero", "near", "dense", "dense in part"])
def test_the_sets_of_any_start_stay_small(monkeypatch, start):
    """A start with more nonzeros than a signal has entries would need a set of all atoms."""
    from unrolled.pursuit import _active_set

    monkeypatch.setattr(_lasso_batch, "FEW", 0)
    monkeypatch.setattr(_lasso_batch, "GRAMS", 0)
    widths, workspace = [0], _active_set.workspace
    monkeypatch.setattr(
        _active_set, "workspace", lambda n, m, d: widths.append(d) or workspace(n, m, d)
    )
    A = unit(normal(8, M, 400))
    plain = pursuit.lasso_batch(A, Y, ratio=0.3, tol=1e-12)
    widest, x = max(widths), np.array(plain.x)
    x = {"zero": 0 * x, "near": x + 1e-3 * (np.arange(400) == 7)}.get(start, x + 1)
    x[: BATCH // 2] *= start != "dense in part"
    found = pursuit.lasso_batch(A, Y, ratio=0.3, tol=1e-12, start=x)
    assert found.how == plain.how == "working sets" and found.converged.all()
    np.testing.assert_allclose(found.x, plain.x, atol=1e-5)
    assert max(widths) <= widest + M


def test_an_unreachable_tolerance_is_reported():
    found = pursuit.lasso_batch(D, Y, ratio=0.1, tol=1e-12, max_steps=3)
    assert (found.converged == (found.gap <= 1e-12)).all() and not found.converged.all()
    lam = 0.1 * np.abs(Y @ D).max(1, keepdims=True)
    assert found.gap == pytest.approx(gaps(D, Y, np.asarray(found.x), lam), abs=1e-12)
    assert (found.steps <= 3).all()
    hopeless = pursuit.lasso_batch(D, Y, ratio=0.1, tol=1e-30, max_steps=300)
    assert not hopeless.converged.all() and (hopeless.gap <= 1e-12).all()


def test_scales_leave_the_codes_as_they_are():
    plain = pursuit.lasso_batch(D, Y, ratio=0.1)
    for a, b in ((-300, 200), (250, -300)):
        found = pursuit.lasso_batch(D * 2.0**a, Y * 2.0**b, ratio=0.1)
        assert found.converged.all() and (found.x == plain.x * 2.0 ** (b - a)).all()
    mixed = Y * 2.0 ** (60 * np.arange(BATCH))[:, None]
    assert (pursuit.lasso_batch(D, mixed, ratio=0.1).gap == plain.gap).all()


@pytest.mark.slow
def test_convolutions_take_batches_of_pictures():
    C = dictionaries.Conv(normal(9, 3, 1, 2, 2), (5, 6))
    pictures = normal(10, 4, 5, 6)
    found = pursuit.lasso_batch(C, pictures, np.array([0.2, 0.3, 0.4]), tol=1e-10)
    assert found.x.shape == (4, *C.code_grid) and found.converged.all()
    alone = pursuit.lasso(C, pictures[1], np.array([0.2, 0.3, 0.4]), tol=1e-12)
    assert found.x[1] == pytest.approx(np.asarray(alone.x), abs=1e-5)
    lam = jnp.full(C.code_grid, 0.3)
    assert pursuit.lasso_batch(C, pictures, lam, start=found.x).x.shape == found.x.shape


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_gap_of_many_codes_is_that_of_one(l2):
    """After a few moves, far from the optimum."""
    from unrolled.penalties import L1
    from unrolled.pursuit._gap import elastic_gap

    found = pursuit.lasso_batch(D, Y, 0.05, l2=l2, max_steps=3)
    X = np.asarray(found.x)
    R = Y - X @ D.T
    of_one = jax.vmap(lambda s, x, h: elastic_gap(s, 0.05, l2, x, h, L1))
    expected = of_one(np.sum(R**2, 1), X, R @ D) / (np.sum(Y**2, 1) / 2)
    assert (found.gap >= 0.99 * expected).all() and not found.converged.any()
    if l2 == 0:
        np.testing.assert_allclose(found.gap, expected, rtol=1e-10)


MASKS = np.random.default_rng(12).random((BATCH, M)) < 0.6
MASKS[0], MASKS[1] = True, False  # a whole signal, and a signal without a known entry
OF_MASKS = {
    "lam": dict(lam=0.2),
    "ratio": dict(ratio=0.2),
    "elastic, nonnegative": dict(lam=0.2, l2=0.3, nonnegative=True),
    "free atoms": dict(lam=np.where(np.arange(N) < 2, 0, 0.2)),
    "one a signal": dict(lam=np.linspace(0.1, 0.5, BATCH)[:, None]),
    "start": dict(lam=0.2, start=normal(13, BATCH, N)),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("options", OF_MASKS)
def test_a_mask_for_each_signal_is_the_lasso_of_its_known_rows(options, dtype):
    """Also where an atom has no known entry; missing ones are NaN."""
    A, options = D.copy(), OF_MASKS[options]
    A[2:, 5] = 0
    A, signals = jnp.asarray(A, dtype), jnp.asarray(np.where(MASKS, Y, np.nan), dtype)
    tol = {"float64": 1e-10, "float32": 1e-6, "bfloat16": 0.1}[dtype]  # as the dtype can reach
    found = pursuit.lasso_batch(A, signals, tol=1e-10, mask=MASKS, **options)
    assert (found.gap <= tol).all() and (found.converged == (found.gap <= 1e-10)).all()
    assert not np.asarray(found.x[1]).any() and found.residual[1] == 0
    for i in (0, 2, 3):
        own = {k: v[i : i + 1] if np.shape(v)[:1] == (BATCH,) else v for k, v in options.items()}
        known = MASKS[i]
        alone = pursuit.lasso_batch(A[known], signals[i : i + 1, known], tol=1e-10, **own)
        close = dict(rtol=1e-2 if dtype == "bfloat16" else 1e-4, atol=1e-5)
        np.testing.assert_allclose(
            *(np.asarray(v, float) for v in (found.x[i], alone.x[0])), **close
        )
        np.testing.assert_allclose(*map(float, (found.residual[i], alone.residual[0])), **close)


def test_a_full_mask_changes_nothing_and_one_mask_holds_for_all():
    plain = pursuit.lasso_batch(D, Y, 0.2, tol=1e-10)
    for full in (np.ones(M, bool), jnp.ones((BATCH, M), bool)):
        found = pursuit.lasso_batch(D, Y, 0.2, tol=1e-10, mask=full)
        np.testing.assert_allclose(found.x, plain.x, atol=1e-8)
    one = pursuit.lasso_batch(D, np.where(MASKS[2], Y, np.nan), 0.2, mask=MASKS[2], tol=1e-10)
    each = pursuit.lasso_batch(D, Y, 0.2, mask=np.tile(MASKS[2], (BATCH, 1)), tol=1e-10)
    np.testing.assert_allclose(one.x, each.x, atol=1e-8)


def test_masks_of_a_mapped_file_under_jit_and_at_any_scale(mapped):
    masks = np.random.default_rng(3).random(mapped.shape) < 0.6
    found = pursuit.lasso_batch(D, mapped, 0.2, mask=masks)
    traced = jax.jit(lambda Y, mask: pursuit.lasso_batch(D, Y, 0.2, mask=mask))
    assert (found.x == traced(np.array(mapped), masks).x).all()
    assert np.flatnonzero(~found.converged).tolist() == [2]  # not finite where it is known
    scaled = pursuit.lasso_batch(D * 2.0**200, Y * 2.0**-90, 0.2 * 2.0**110, mask=MASKS)
    plain = pursuit.lasso_batch(D, Y, 0.2, mask=MASKS)
    assert (scaled.x == plain.x * 2.0**-290).all() and (scaled.gap == plain.gap).all()


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["joint", "complex", "conv"])
def test_a_mask_has_the_form_of_its_signals(kind):
    rng, lam = np.random.default_rng(5), 0.2
    if kind == "joint":
        A, signals = dictionaries.Joint(D, 3), normal(5, 4, M, 3)
    elif kind == "complex":
        A = dictionaries.Complex.of(D[:, :20] + 1j * D[:, 20:])
        signals = normal(5, 4, M) + 1j * normal(6, 4, M)
    else:
        A, signals = dictionaries.Conv(normal(9, 3, 1, 2, 2), (5, 6)), normal(10, 4, 5, 6)
    masks = rng.random(signals.shape) < 0.7
    signals[1] = np.nan  # also where the mask says that it is known
    found = pursuit.lasso_batch(A, np.where(masks, signals, np.nan), lam, mask=masks, tol=1e-10)
    assert found.converged.tolist() == [True, False, True, True]
    assert found.gap[1] == np.inf and not found.x[1].any()
    for i in (0, 3):
        own = dictionaries.Masked(A, masks[i].reshape(-1) if kind == "conv" else masks[i])
        y = np.where(masks[i], signals[i], 0)
        alone = pursuit.lasso(own, y.reshape(-1) if kind == "conv" else y, lam, tol=1e-12)
        np.testing.assert_allclose(found.x[i].reshape(-1), alone.x.reshape(-1), atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[True], [True, False]], TypeError, "lasso_batch: mask has rows of different lengths"),
        (MASKS.astype(int), TypeError, "lasso_batch: mask has dtype int64; expected bool"),
        (MASKS[:3], ValueError, r"mask has shape \(3, 20\); expected \(20,\) or \(9, 20\)"),
        (MASKS[:, :3], ValueError, r"mask has shape \(9, 3\)"),
    ],
)
def test_masks_that_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        pursuit.lasso_batch(D, Y, 0.2, mask=mask)


@pytest.mark.parametrize("options", [{}, dict(l2=0.1), dict(nonnegative=True), dict(mask=MASKS)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_gap_is_that_of_the_code_that_is_returned(dtype, options):
    """Of a code in float32 it is above 1e-8, in half precision far above."""
    A, signals = np.asarray(D, dtype), np.asarray(Y, dtype)
    for weight in (np.full(N, 0.1), np.where(np.arange(N) < 3, 0, 0.1)):
        found = pursuit.lasso_batch(A, signals, weight, tol=1e-8, **options)
        exact = pursuit.lasso_batch(
            A.astype(float), signals.astype(float), weight, tol=1e-13, **options
        )

        def objective(x, weight=weight):
            r = options.get("mask", True) * (signals.astype(float) - x @ A.astype(float).T)
            return (r**2).sum(1) / 2 + np.abs(x) @ weight + options.get("l2", 0) / 2 * (x**2).sum(1)

        excess = objective(np.asarray(found.x, float)) - objective(np.asarray(exact.x))
        half = np.sum(np.where(options.get("mask", True), signals.astype(float), 0) ** 2, 1) / 2
        said, rounding = np.asarray(found.gap, float), 2 * float(jnp.finfo(dtype).eps)
        assert (excess / np.maximum(half, 1e-30) <= said * (1 + rounding) + 1e-12).all()
        assert (said <= 1e-8).sum() == found.converged.sum()
        assert not found.converged.all() or "l2" in options
        assert found.x.dtype == found.gap.dtype == dtype


def test_a_new_number_of_rows_a_new_tol_or_a_new_lam_compiles_nothing(compiled):
    A, start = D.astype(np.float32), np.zeros((BATCH, N), np.float32)

    def call(n):
        signals, lam = Y[:n].astype(np.float32), 0.1 + n / 100
        pursuit.lasso_batch(A, signals, lam, tol=n * 1e-6, start=start[:n], mask=MASKS[:n])
        pursuit.lasso_batch(A, signals, ratio=np.full((n, 1), lam), l2=lam, nonnegative=True)
        pursuit.omp_batch(A, signals, 3, np.ones((n, M)))

    call(2)
    before = len(compiled)
    for n in (3, 5, 8):
        call(n)
    assert len(compiled) == before


SETS = {  # of `lasso_batch` by working sets
    "lam": dict(lam=0.05),
    "ratio, one a signal and atom": dict(ratio=np.abs(normal(4, BATCH, N)) / 9 + 0.1),
    "elastic, nonnegative, one mask": dict(lam=0.1, l2=0.2, nonnegative=True, mask=MASKS[2]),
    "masks": dict(lam=np.linspace(0.1, 0.5, N), mask=MASKS),
    "start": dict(lam=np.linspace(0.1, 0.5, BATCH)[:, None], start=normal(13, BATCH, N)),
}


@pytest.fixture
def by_sets(monkeypatch):
    """A function that sets the number of atoms above which `lasso_batch` uses working sets."""
    monkeypatch.setattr(_lasso_batch, "GRAMS", 0)
    return lambda few: monkeypatch.setattr(_lasso_batch, "FEW", few)


@pytest.mark.parametrize("dtype", [float, np.float32])
@pytest.mark.parametrize("options", SETS)
def test_working_sets_have_the_codes_of_the_gram_matrix(options, dtype, by_sets, monkeypatch):
    """At a scale far from 1; gaps are those of the codes, also by products in float32.

    In float64 the sets outgrow their slots, and the blocks are split.
    """
    from unrolled.pursuit import _working_sets

    if dtype is float:
        monkeypatch.setattr(_working_sets, "_MORE", 2)
        monkeypatch.setattr(_working_sets, "_ATOMS", 3000)
    A, signals = (2.0**20 * D).astype(dtype), np.asfortranarray(Y.astype(dtype))
    options = dict(SETS[options])
    if "lam" in options:
        options["lam"] = 2.0**20 * options["lam"]
    if "l2" in options:
        options["l2"] = 2.0**40 * options["l2"]
    tol = {float: 1e-11, np.float32: 1e-6}[dtype]
    by_sets(N)
    gram = pursuit.lasso_batch(A, signals, tol=tol, **options)
    by_sets(0)
    sets = pursuit.lasso_batch(A, signals, tol=tol, **options)
    assert (gram.how, sets.how) == ("gram", "working sets")
    assert sets.converged.all() and gram.converged.all()
    near = 1e-6 if dtype is float else 1e-3
    np.testing.assert_allclose(2.0**20 * sets.x, 2.0**20 * gram.x, atol=near)
    np.testing.assert_allclose(sets.residual, gram.residual, rtol=near)
    if options.keys() == {"lam"}:
        wide, X = (A.astype(float), signals.astype(float)), np.asarray(sets.x, float)
        np.testing.assert_allclose(sets.gap, gaps(*wide, X, options["lam"]), atol=1e-13)


def test_working_sets_use_products_and_columns_alone(by_sets, monkeypatch):
    """No dictionary becomes a matrix; the codes are those of the matrix."""
    F = dictionaries.Conv(normal(9, 3, 1, 4), 20, stride=2)
    kinds = {
        "conv": F,
        "masked": dictionaries.Masked(F, np.arange(F.shape[0]) % 5 > 0),
        "composed": dictionaries.Composed(normal(1, 10, 12), normal(2, 12, 30)),
        "functions": dictionaries.from_functions(lambda x: D @ x, lambda r: D.T @ r, (M, N)),
    }
    for kind, A in kinds.items():
        signals = normal(3, 4, A.shape[0]) * (np.asarray(A.mask) if kind == "masked" else 1)
        by_sets(10**6)
        gram = pursuit.lasso_batch(A, signals, ratio=0.2, tol=1e-11)
        by_sets(0)
        with monkeypatch.context() as patch:
            patch.setattr(_lasso_batch, "dense", None)
            sets = pursuit.lasso_batch(A, signals, ratio=0.2, tol=1e-11)
        assert sets.converged.all() and sets.how == "working sets"
        np.testing.assert_allclose(sets.x, gram.x, atol=1e-6, err_msg=kind)


@pytest.mark.parametrize("kind", ["numpy", "functions"])
def test_unused_slots_of_a_working_set_stay_empty(kind, by_sets):
    """One signal needs 20 atoms and the others one; atom 0 fits all and stays below lam."""
    rng = np.random.default_rng(0)
    A = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    A[:, 0] = A[:, 0] / 2 + A[:, 1:22].sum(1) / 9
    signals = 8 * np.stack([A[:, 1:21].sum(1), *A[:, 21:24].T]) + 3 * A[:, 0]
    D = (
        A
        if kind == "numpy"
        else dictionaries.from_functions(lambda x: A @ x, lambda r: A.T @ r, A.shape)
    )
    by_sets(A.size)
    exact = pursuit.lasso_batch(A, signals, 5.0, tol=1e-11)
    by_sets(0)
    sets = pursuit.lasso_batch(D, signals, 5.0, tol=1e-11)
    assert sets.how == "working sets" and sets.converged.all()
    assert (np.count_nonzero(exact.x, axis=1).min(), exact.x[1, 0]) == (1, 0)
    np.testing.assert_allclose(sets.x, exact.x, atol=1e-6)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_norms_for_the_rounding_of_products_are_upper_bounds_within_a_thousandth(dtype):
    from unrolled.pursuit import _working_sets

    for A in (D, np.ldexp(D, -np.arange(N) * 3), normal(0, 2000, 7)):
        f, k = _working_sets._norms(A.astype(dtype))
        ratio = np.ldexp(f, k) / np.linalg.norm(A.astype(dtype).astype(float), axis=0)
        assert (ratio > 1.0005).all() and (ratio < 1.002).all()


@pytest.mark.parametrize("dtype, power", [("f4", -100), ("f4", 100), ("f8", -1000), ("f8", 1000)])
def test_working_sets_scale_with_dictionaries_of_any_size(dtype, power, by_sets):
    """The squares of entries leave the range; the codes follow bit for bit."""
    by_sets(0)
    A, signals = np.ldexp(D, -np.arange(N) // 4).astype(dtype), Y.astype(dtype)
    near = pursuit.lasso_batch(A, signals, ratio=0.2)
    far = pursuit.lasso_batch(np.ldexp(A, power), signals, ratio=0.2)
    assert near.converged.all() and far.converged.all() and near.x.any(1).all()
    np.testing.assert_array_equal(np.ldexp(np.asarray(far.x, float), power), near.x)
    np.testing.assert_array_equal(far.gap, near.gap)


def test_a_dictionary_of_numpy_is_read_where_it_is(by_sets, tmp_path, monkeypatch):
    """In any order of memory, from a file, and without a copy in JAX."""
    path = tmp_path / "D.npy"
    np.save(path, D)
    wide = np.zeros((M, 2 * N))
    wide[:, ::2] = D
    kept = {"file": np.load(path, mmap_mode="r"), "columns": np.asfortranarray(D)}
    kept |= {"jax": jnp.asarray(D), "view": wide[:, ::2], "list": D.tolist()}
    for few in (0, N):
        by_sets(few)
        expected = pursuit.lasso_batch(D, Y, 0.2, tol=1e-11)
        for name, A in kept.items():
            found = pursuit.lasso_batch(A, Y, 0.2, tol=1e-11)
            np.testing.assert_allclose(found.x, expected.x, atol=1e-6, err_msg=name)
    copies = []
    copy = jnp.asarray
    monkeypatch.setattr(jnp, "asarray", lambda v, *a, **k: copies.append(v) or copy(v, *a, **k))
    pursuit.lasso_batch(D, Y, 0.2)
    pursuit.omp_batch(D, Y, 2)
    assert not any(np.shape(v) == D.shape for v in copies)


@pytest.mark.parametrize("size", [1.0, 1e25])  # the square of 1e25 is infinite in float32
@pytest.mark.parametrize("order", ["C", "F"])
def test_one_spoilt_entry_of_a_dictionary_is_found(size, order):
    A = np.asarray(size * D, np.float32, order)
    assert pursuit.lasso_batch(A, Y.astype(np.float32), ratio=0.2).converged.all()
    for value in (np.nan, np.inf):
        A[3, 4] = value
        with pytest.raises(ValueError, match="lasso_batch: D has NaN or infinite entries"):
            pursuit.lasso_batch(A, Y, ratio=0.2)


def test_the_choice_of_the_method_follows_the_number_of_atoms_and_of_signals():
    def how(d, n, lam=0.1, nonzeros=None):
        D, lam = np.zeros((256, d)), np.full((1, 1), lam)
        return _lasso_batch._method(D, lam, n, "caller", lambda: nonzeros)

    assert how(512, 1) == how(2048, 1000) == how(4096, 10_000, 0.0) == "gram"
    assert how(2048, 100) == how(65_536, 10**6) == "working sets"
    assert how(1024, 64, nonzeros=92) == "gram"
    assert how(1024, 64, nonzeros=10) == how(4096, 32, nonzeros=200) == "working sets"
    with pytest.raises(ValueError, match="D has 65536 atoms and some of them have lam 0; expected"):
        how(65_536, 1, 0.0)


def test_the_choice_of_the_method_sees_how_dense_the_codes_are(monkeypatch):
    monkeypatch.setattr(_lasso_batch, "FEW", 0)
    signals = np.tile(Y, (5, 1))
    for ratio, method in ((0.5, "working sets"), (0.02, "gram")):
        monkeypatch.setattr(_lasso_batch, "GRAMS", 2 * N**2 / len(signals) / M**2)
        monkeypatch.setattr(_lasso_batch, "_LEAST_SET", 0)
        assert pursuit.lasso_batch(D, signals, ratio=ratio).how == method
    few = jax.jit(lambda Y: pursuit.lasso_batch(D, Y, 0.2))(signals)
    assert few.converged.all()


@pytest.mark.parametrize("n, m", [(1, 100), (64, 256), (256, 4000)])
def test_sets_begin_with_slots_that_fit_in_memory(n, m):
    """Also if nearly every constraint is violated at the code 0, as in a nonnegative D."""
    from unrolled.pursuit import _working_sets

    w = _working_sets._slots(np.ones((n, 60_000), np.float32), np.full((n, 1), 0.1), m)
    assert w == 64 or n * w * (m + 3 * w) <= _working_sets._ATOMS
    assert _working_sets._slots(np.zeros((n, 10)), np.full((n, 1), 0.1), m) == 64


def test_working_sets_mark_what_they_do_not_code(by_sets):
    by_sets(0)
    spoilt = Y.copy()
    spoilt[2, 1], spoilt[3] = np.nan, 0
    few, other = pursuit.lasso_batch(D, Y, 0.2), pursuit.lasso_batch(D, spoilt, 0.2)
    kept = np.delete(np.arange(BATCH), [2, 3])
    np.testing.assert_allclose(other.x[kept], few.x[kept], atol=1e-9)
    assert not other.converged[2] and np.isinf(other.gap[2]) and not other.x[2].any()
    assert other.converged[3] and not other.x[3].any() and other.steps[3] == 0
    traced = jax.jit(lambda Y: pursuit.lasso_batch(D, Y, 0.2))(Y)
    assert few.how == "working sets" and (traced.x == few.x).all()


@pytest.mark.parametrize("few", [0, N])
def test_sparse_codes_are_the_nonzeros_of_the_codes(few, by_sets):
    by_sets(few)
    signals = np.vstack([Y, np.full((1, M), np.nan)])
    whole = pursuit.lasso_batch(D, signals, 0.2)
    found = pursuit.lasso_batch(D, signals, 0.2, sparse=True)
    codes = found.x
    assert (codes.dense() == whole.x).all() and codes.dense().dtype == whole.x.dtype
    assert codes.counts.tolist() == (whole.x != 0).sum(1).tolist() and codes.shape == (10, N)
    assert codes.values.shape[1] == codes.counts.max()
    np.testing.assert_array_equal(codes.scipy().toarray(), whole.x)
    for A in (D, jnp.asarray(D), dictionaries.Masked(D, np.ones(M))):
        np.testing.assert_allclose(A @ codes, whole.x @ D.T, atol=1e-12)
    for field in ("gap", "residual", "converged", "steps"):
        np.testing.assert_array_equal(getattr(found, field), getattr(whole, field))
    with pytest.raises(ValueError, match=r"D @ codes: D has shape \(20, 39\); expected \(m, 40\)"):
        D[:, 1:] @ codes


@pytest.mark.parametrize("few", [0, N])
def test_codes_go_into_an_array_of_the_caller(few, by_sets, tmp_path):
    by_sets(few)
    out = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", float, (BATCH, N))
    found = pursuit.lasso_batch(D, Y, 0.2, out=out)
    assert found.x is out and (pursuit.lasso_batch(D, Y, 0.2).x == out).all()


OUTS = {
    "out is list": dict(out=[1]),
    "out has shape .3, 40. and dtype float64; expected .9, 40., float64": dict(
        out=np.zeros((3, N))
    ),
    "out has shape .9, 40. and dtype float32; expected": dict(out=np.zeros((BATCH, N), np.float32)),
    "expected one of sparse and out": dict(out=np.zeros((BATCH, N)), sparse=True),
    "sparse must be True or False, got 2": dict(sparse=2),
}


def test_codes_that_do_not_fit_in_memory_are_refused(monkeypatch):
    monkeypatch.setattr(_lasso_batch.checks, "host_bytes", lambda: 1000)
    for call in (lambda: pursuit.lasso_batch(D, Y, 0.2), lambda: pursuit.omp_batch(D, Y, 2)):
        with pytest.raises(MemoryError, match=r"the array of codes.*; try sparse=True, or a memm"):
            call()
    assert pursuit.lasso_batch(D, Y, 0.2, sparse=True).converged.all()


@pytest.mark.parametrize("message", OUTS)
def test_destinations_that_are_refused(message):
    with pytest.raises((TypeError, ValueError), match=f"lasso_batch: {message}"):
        pursuit.lasso_batch(D, Y, 0.2, **OUTS[message])
    with pytest.raises(TypeError, match="is traced; this function runs on the host"):
        jax.jit(lambda Y: pursuit.lasso_batch(D, Y, 0.2, sparse=True))(Y)
