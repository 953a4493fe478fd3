"""Exported solvers that prove their codes: no gap is false, and what the file says holds."""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import rows
from oracles import normal, unit

import unrolled as ur
from unrolled.pursuit import proved_gap

M, N, LAM, TOL, K = 16, 32, 0.125, 1e-3, 4
D = unit(normal(0, M, N)).astype("f")
X = normal(1, 200, N) * (np.random.default_rng(2).random((200, N)) < 0.1)
Y = (X @ D.T + 0.05 * normal(3, 200, M)).astype("f")
LAYER = ur.layers.bcd(K, lam=LAM)


def excess(D, Y, X, lam=LAM):
    """F(x) - F* over norm(y)^2 / 2 in float64, with F* by an active set."""
    D, Y, X = (np.asarray(v, float) for v in (D, Y, X))

    def values(X):
        return ((Y - X @ D.T) ** 2).sum(1) / 2 + lam * abs(X).sum(1)

    best = ur.pursuit.lasso_batch(D, Y, lam, tol=1e-13).x
    energy = (Y**2).sum(1) / 2
    return (values(X) - values(np.asarray(best))) / np.where(energy > 0, energy, 1)


def save(folder, layer=LAYER, params=None, D=D, **options):
    with jax.enable_x64(False):
        params = layer.init(None, D) if params is None else params
        return ur.export.save(folder / "net", layer, params, D, platforms="cpu", **options)


@pytest.fixture(scope="module")
def solver(tmp_path_factory):
    return ur.export.load(save(tmp_path_factory.mktemp("proof"), tol=TOL, held_out=Y[:100]))


@pytest.mark.parametrize(
    "kind", ["own", "drifted", "1e-3", "1e3", "1e12", "1e-12", "1e30", "1e-30"]
)
def test_no_gap_is_false(solver, kind):
    """Also for signals of another class, and for signals whose squares leave the range."""
    signals = normal(4, 200, M) if kind == "drifted" else float(kind) * Y if kind != "own" else Y
    signals = signals.astype("f")
    codes, gap, steps = map(np.asarray, solver.run(signals))
    assert codes.dtype == gap.dtype == np.float32 and (excess(D, signals, codes) <= gap).all()
    assert (gap <= TOL).all() and (steps >= K).all() and (steps <= K + 1000).all()


def test_a_code_that_meets_the_gap_is_the_code_of_the_layer(solver):
    codes, gap, steps = solver.run(Y)
    own = jax.jit(jax.vmap(LAYER.apply, (None, None, 0)))(LAYER.init(None, D), D, Y)
    done = np.asarray(steps) == K
    assert 0.05 < done.mean() < 1 and (steps[~done] > K).all()
    done &= np.asarray(codes).any(1)  # the zero code may meet the gap, too
    np.testing.assert_allclose(codes[done], own[done], rtol=1e-4, atol=1e-5)
    alone = solver.run(Y[:1])
    np.testing.assert_allclose(alone[0], codes[:1], rtol=1e-4, atol=1e-5)


def test_the_file_says_how_many_signals_need_more_steps(solver):
    proof, steps = solver.manifest["proof"], np.asarray(solver.run(Y[:100])[2])
    assert proof["more steps"] == (steps > K).sum() and proof["held out"] == 100
    assert proof["share"] == ur.theory.exceedance(steps, K, 1 - 1e-6) < 1
    assert proof["lam"] == LAM and proof["tol"] == TOL and proof["confidence"] == 1 - 1e-6


def test_the_end_of_the_steps_is_told(tmp_path):
    solver = ur.export.load(save(tmp_path, tol=1e-5, max_steps=0))
    codes, gap, steps = map(np.asarray, solver.run(Y))
    assert (steps == K).all() and (gap > 1e-5).any() and (excess(D, Y, codes) <= gap).all()


def test_signals_that_are_zero_or_not_finite_are_told(solver):
    signals = np.stack([np.zeros(M), np.full(M, np.nan), Y[0] * np.float32(np.inf), Y[0]])
    codes, gap, _ = map(np.asarray, solver.run(signals.astype("f")))
    assert gap[0] <= TOL and (gap[1:3] == np.inf).all() and gap[3] <= TOL
    assert not codes[:3].any() and codes[3].any()


@pytest.mark.slow
@pytest.mark.parametrize("factor", [100.0, 1e30])
def test_a_broken_network_is_repaired(tmp_path, factor):
    layer = ur.layers.ista(K, lam=LAM)
    params = jax.tree.map(lambda leaf: factor * leaf, layer.init(None, D))
    codes, gap, steps = map(
        np.asarray, ur.export.load(save(tmp_path, layer, params, tol=TOL)).run(Y)
    )
    assert (gap <= TOL).all() and (steps > K).any() and (excess(D, Y, codes) <= gap).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["complex", "joint", "nonnegative"])
def test_codes_in_parts_and_signs_are_proved(tmp_path, kind):
    A = unit(normal(5, 8, 12) + (1j * normal(6, 8, 12) if kind == "complex" else 0))
    A = {
        "complex": lambda: ur.dictionaries.Complex.of(A.astype("c8")),
        "joint": lambda: ur.dictionaries.Joint(A.astype("f"), 3),
        "nonnegative": lambda: A.astype("f"),
    }[kind]()
    flat, sign = normal(7, 20, A.shape[0]).astype("f"), {"nonnegative": True}
    layer = ur.layers.fista(3, lam=0.3, **(sign if kind == "nonnegative" else {}))
    found = ur.export.load(save(tmp_path, layer, D=A, tol=TOL)).run(flat)
    codes, gap, _ = map(np.asarray, found)
    penalty = ur.penalties.Penalty(nonnegative=kind == "nonnegative").of(A)
    matrix = np.asarray(ur.dictionaries.dense(A), float)
    options = sign if kind == "nonnegative" else {}
    best = ur.pursuit.lasso_batch(A, flat, 0.3, tol=1e-6, **options).x

    def values(X):
        X = np.asarray(X, float)
        sizes = np.array([float(penalty.value(jnp.asarray(x), 0.3)) for x in X])
        return ((flat - X @ matrix.T) ** 2).sum(1) / 2 + sizes

    assert (gap <= TOL).all()
    assert ((values(codes) - values(best)) / ((flat**2.0).sum(1) / 2) <= gap).all()


def test_the_bound_is_the_gap_plus_its_rounding():
    """Above the gap in float64 of the same bytes, by at most what the docstring says."""
    x = np.asarray(ur.pursuit.lasso_batch(D, Y, LAM, tol=1e-6).x)
    norms = np.linalg.norm(np.float64(D), axis=0).max()
    with jax.enable_x64(False):
        of = jax.jit(jax.vmap(lambda y, x: proved_gap(jnp.asarray(D), y, jnp.float32(LAM), x)))
        bound = np.asarray(of(Y, x), float)
    wide = [np.asarray(v, float) for v in (D, Y, x)]
    R = wide[1] - wide[2] @ wide[0].T
    half = (wide[1] ** 2).sum(1) / 2
    exact = excess(*wide)
    rounding = 4 * M * 2.0**-24 * np.linalg.norm(R, axis=1) * abs(x).sum(1) * norms / (2 * half)
    assert (bound >= exact).all() and (bound <= 4 * rounding + 1e-6).all()


def test_the_gap_is_in_the_manifest_of_files_without_a_proof(tmp_path):
    layer = ur.alista(2)
    path = ur.export.save(tmp_path / "net", layer, layer.init(None, D), D, platforms="cpu")
    manifest = json.loads(zipfile.ZipFile(path).read("manifest.json"))
    assert manifest["proof"] is None and isinstance(ur.export.load(path).run(Y), jax.Array)


def refused(**options):
    model, params = options.pop("model", LAYER), options.pop("params", None)
    return lambda: ur.export.save("unused", model, params, options.pop("D", D), **options)


BANK = ur.dictionaries.Conv(normal(9, 2, 1, 3), M, boundary="circular")
test_refusals = rows(
    (refused(lam=0.1), "lam is for a program with a proof; give tol, too"),
    (refused(held_out=Y), "held_out is for a program with a proof; give tol, too"),
    (refused(tol=0.0), "tol must be positive and finite"),
    (refused(tol=1e-3, lam=0.0), "lam must be between 1e-30 and inf, got 0.0"),
    (refused(tol=1e-3, max_steps=-1), "max_steps must be"),
    (refused(tol=1e-3, model=ur.pursuit.omp), "tol is for a layer in one dictionary, got function"),
    (
        refused(tol=1e-3, model=ur.layers.liht(2, sparsity=3)),
        TypeError,
        "lam must be a number, got None",
    ),
    (refused(tol=1e-3, D=BANK), "the rounding of products with Conv is not known"),
    (refused(tol=1e-3, params=LAYER.init(None, D), held_out=Y[:, 1:]), "held_out has shape"),
)
