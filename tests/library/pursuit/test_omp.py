"""Orthogonal matching pursuit against scikit-learn, planted codes, degenerate inputs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import normal, unit
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from unrolled import dictionaries, pursuit, theory
from unrolled.pursuit import _active_set, _omp_batch, pursue

EPS = np.finfo(float).eps
M, N = 20, 40
D = unit(normal(0, M, N))
Y = normal(1, 4, M)


@pytest.mark.few(1)
@pytest.mark.parametrize("sparsity", [10, 1, 3, M])
def test_codes_are_those_of_scikit_learn(sparsity):
    for y in Y:
        found = pursuit.omp(D, y, sparsity)
        assert found.steps == sparsity and found.converged and found.gap <= 1e-28
        assert found.x == pytest.approx(
            orthogonal_mp(D, y, n_nonzero_coefs=sparsity), abs=1e-12 * np.linalg.norm(y)
        )


def _offset(m, offset):
    """Unit atoms with a common part, in float32."""
    A = offset + np.random.default_rng(0).normal(size=(m, 20))
    return (A / np.linalg.norm(A, axis=0)).astype(np.float32)


def _with_constant(m):
    A = _offset(m, 0) - _offset(m, 0).mean(0)
    A[:, 0] = m**-0.5
    return A


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "A, x",
    [
        (_offset(16_000, 0), {3: 1, 7: 6e-3}),
        (_offset(784, 50), {3: 1, 7: 2, 11: 1}),
        (_with_constant(784), {0: 84_000, 3: 28, 7: -28}),
    ],
    ids=["long", "offset atoms", "offset signal"],
)
def test_atoms_go_on_below_the_worst_case_of_rounding(A, x):
    """A residual is the signal to a few eps, and more atoms than there are stay unused."""
    y = (A[:, list(x)] @ np.array([*x.values()], np.float32)).astype(np.float32)
    alone, batch = pursuit.omp(A, y, 6), pursuit.omp_batch(A, y[None], 6)
    assert alone.converged and batch.converged[0]
    for found, steps in ((alone.x, alone.steps), (batch.x[0], batch.steps[0])):
        assert int(steps) == len(x) == np.count_nonzero(found)
        assert np.linalg.norm(y - A @ found) < 16 * np.finfo(np.float32).eps * np.linalg.norm(y)


@pytest.mark.slow
def test_a_tolerance_bounds_the_residual_as_in_scikit_learn():
    """Theirs is the square of ours."""
    for y in Y:
        for tol in np.array([0.7, 0.3, 0.03]) * np.linalg.norm(y):
            found = pursuit.omp(D, y, tol=tol)
            assert found.x == pytest.approx(orthogonal_mp(D, y, tol=tol**2), abs=1e-12)
            assert found.residual <= tol and found.converged
            fewer = pursuit.omp(D, y, int(found.steps) - 1, tol)
            assert fewer.residual > tol and not fewer.converged


def test_the_residual_is_orthogonal_to_the_chosen_atoms():
    A = unit(normal(2, M, N) + 5)  # all atoms are near (1, ..., 1)
    found = pursuit.omp(A, Y[0], 10)
    S = np.flatnonzero(found.x)
    assert np.abs(A[:, S].T @ (Y[0] - A @ found.x)).max() <= 1e-13 * np.linalg.norm(Y[0])
    assert len(S) == found.steps == 10


def test_orthonormal_atoms_beside_zero_ones_keep_the_largest_products():
    Q = np.hstack([np.linalg.qr(normal(3, M, M))[0], np.zeros((M, N - M))])
    products = Q.T @ Y[0]
    least = np.sort(np.abs(products))[-10]
    expected = np.where(np.abs(products) >= least, products, 0)
    assert pursuit.omp(Q, Y[0], 10).x == pytest.approx(expected, abs=1e-14)


@pytest.mark.slow
def test_codes_below_the_coherence_bound_are_recovered():
    H = np.asarray(dictionaries.identity_hadamard(64), float)
    s = int(theory.max_sparsity(float(theory.mutual_coherence(H)), 128))
    x = np.zeros(128)
    x[np.random.default_rng(0).choice(128, s, replace=False)] = 1 + np.arange(s)
    found = pursuit.omp(H, H @ x, s)
    assert s >= 4 and found.x == pytest.approx(x, abs=1e-12)


@pytest.mark.slow
def test_dependent_atoms_are_never_chosen_together():
    """A zero atom, every other atom twice or with the other sign, and a sum of two."""
    B = D[:, :5]
    A = np.column_stack([np.zeros(M), B, B, -B, (B[:, 0] + B[:, 1]) / 2])
    inside, outside = B @ normal(4, 5), Y[0]
    found = pursuit.omp(A, inside, 12)
    assert found.converged and found.steps == 5 and found.x[0] == 0
    assert found.residual <= 1e-13 * np.linalg.norm(inside)
    found = pursuit.omp(A, outside, 12)
    least = np.linalg.lstsq(B, outside, rcond=None)[0]
    assert found.steps == 5 and found.converged
    assert found.residual == pytest.approx(np.linalg.norm(outside - B @ least))
    found = pursuit.omp(A, outside, tol=1e-3)
    assert found.steps == 5 and not found.converged and np.isfinite(found.x).all()


@pytest.mark.slow
def test_no_atom_and_no_signal():
    none = pursuit.omp(D, Y[0], 0)
    assert not none.x.any() and none.residual == pytest.approx(np.linalg.norm(Y[0]))
    zero = pursuit.omp(D, np.zeros(M), 3)
    assert zero.steps == 0 and zero.converged and not zero.x.any()
    assert pursuit.omp(D, Y[0], N).steps == M  # as many as there are rows
    assert pursuit.omp(np.zeros((M, 3)), Y[0], 2).steps == 0
    assert jax.vmap(lambda y: pursuit.omp(D, y, 3).x)(np.zeros((0, M))).shape == (0, N)


@pytest.mark.slow
@pytest.mark.parametrize("half, m", [(jnp.bfloat16, 31), (jnp.bfloat16, 256), (np.float16, 256)])
def test_half_precision_is_computed_in_single_and_rounded(half, m):
    """4 m eps exceeds 1: it tells no atom from rounding. The code has the rounding of the dtype."""
    A = unit(normal(5, m, 2 * m)).astype(half)
    y = (2 * np.float64(A[:, 3]) - np.float64(A[:, 9])).astype(half)
    found = pursuit.omp(A, y, 2)
    assert np.flatnonzero(found.x).tolist() == [3, 9] and found.converged and found.steps == 2
    assert found.x.dtype == found.residual.dtype == found.gap.dtype == half
    wide = pursuit.omp(A.astype(np.float32), y.astype(np.float32), 2)
    assert np.array_equal(found.x, wide.x.astype(half))
    r = np.linalg.norm(np.float64(y) - np.float64(A) @ np.float64(found.x))
    eps = float(jnp.finfo(half).eps)
    assert np.float64(found.residual) == pytest.approx(r, rel=eps, abs=m * 2.0**-23)
    # A bound that the code in float32 keeps, and its rounding breaks, is not kept.
    for tol in (r / 2, 2 * r):
        assert bool(pursuit.omp(A, y, 2, tol).converged) == (r <= tol)


# Derivatives, and many signals at once


@pytest.mark.slow
@pytest.mark.parametrize(
    "solve",
    [
        lambda D, y, unit: pursuit.omp(D, y, 2),
        lambda D, y, unit: pursuit.lasso(D, y, 0.01 * unit),
        lambda D, y, unit: pursuit.basis_pursuit(D, y),
    ],
    ids=["omp", "lasso", "basis_pursuit"],
)
def test_small_atoms_of_a_support_have_derivatives(solve):
    """Of orthogonal atoms each entry follows its own row of y, over the norm of the atom."""
    for least in (1e-2, 1e-5):
        norms = jnp.ones(9, jnp.float32).at[1].set(least)
        y = jnp.zeros(9, jnp.float32).at[:2].set(1)
        slopes = jax.jacobian(lambda y, D: solve(D, y, jnp.diag(D)).x)(y, jnp.diag(norms))
        slopes = slopes[:2, :2] * norms[:2, None]
        np.testing.assert_allclose(slopes, np.eye(2), rtol=0, atol=1e-5)


def test_derivatives_are_those_of_least_squares_on_the_support():
    """Central differences of h = 1e-6 are right to h^2 and eps / h, some 1e-9."""
    v, y, turned, moved, h = normal(8, N), Y[0], normal(9, M, N), normal(10, M), 1e-6
    value = jax.jit(jax.value_and_grad(lambda A, y: pursuit.omp(A, y, 4).x @ v, (0, 1)))
    expected = sum(np.vdot(g, d) for g, d in zip(value(D, y)[1], (turned, moved)))
    ends = [float(value(D + s * h * turned, y + s * h * moved)[0]) for s in (1, -1)]
    assert float(expected) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_batch_has_the_codes_of_every_signal(dtype):
    """The norms of atoms differ, and count in both; one signal is zero, one is not a number."""
    A = np.asarray(D * np.linspace(0.5, 2, N), dtype)
    S = np.asarray(np.concatenate([Y, 0 * Y[:1], np.nan * Y[:1]]), dtype)
    each = jax.vmap(lambda y: pursuit.omp(A, y, 5))(S)
    batch = pursuit.omp_batch(A, S, 5)
    # Two ways to solve least squares of 5 atoms differ by their condition, at most 100, times eps.
    assert batch.x == pytest.approx(np.asarray(each.x), abs=1e3 * float(np.finfo(dtype).eps))
    assert batch.steps.tolist() == each.steps.tolist() == [5] * len(Y) + [0, 0]
    assert batch.converged.tolist() == each.converged.tolist() == [True] * (len(Y) + 1) + [False]
    assert batch.residual[:-1] == pytest.approx(np.asarray(each.residual[:-1]), rel=1e-5)
    assert np.isnan(batch.residual[-1]) and np.isinf(batch.gap[-1])
    traced = jax.jit(lambda S: pursuit.omp_batch(A, S, 5))(S)
    assert all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(jax.tree.leaves, (batch, traced)))
    )


def test_weights_of_a_batch_are_those_of_least_squares():
    V = np.random.default_rng(0).uniform(0.5, 2, Y.shape)
    V[:, :4] = 0  # entries that nobody knows
    S = np.where(V > 0, Y, np.nan)
    found = pursuit.omp_batch(D, np.where(V > 0, Y, 1e3), 3, V)
    for y, w, x, size in zip(np.nan_to_num(S), np.sqrt(V), found.x, found.residual):
        support = np.flatnonzero(x)
        least = np.linalg.lstsq(w[:, None] * D[:, support], w * y, rcond=None)[0]
        assert len(support) == 3 and np.asarray(x)[support] == pytest.approx(least, rel=1e-10)
        assert size == pytest.approx(np.linalg.norm(w * (y - D @ x)), rel=1e-10)
    assert found.converged.all()
    same = pursuit.omp_batch(D, np.where(V > 0, Y, 0), 3, 4.0 * V)
    assert np.array_equal(found.x, same.x)
    assert np.array_equal(2 * np.asarray(found.residual), same.residual)


def least_squares_atoms(A, y, sparsity):
    """Atom by atom, the one after whose entry least squares leaves the least residual."""
    S = []
    for _ in range(sparsity):
        others = [j for j in range(A.shape[1]) if j not in S]
        grown = [[*S, j] for j in others if np.linalg.matrix_rank(A[:, [*S, j]]) > len(S)]
        left = [np.linalg.norm(y - T @ np.linalg.lstsq(T, y)[0]) for T in (A[:, T] for T in grown)]
        S = grown[int(np.argmin(left))]
    x = np.zeros(A.shape[1])
    x[S] = np.linalg.lstsq(A[:, S], y)[0]
    return x


@pytest.mark.parametrize("weights", [None, np.abs(normal(5, 6, 12)) + 0.1])
def test_least_squares_selects_the_atom_that_leaves_the_least_residual(weights):
    """Of atoms with any norms, some of them 0, equal or dependent; the residual falls."""
    D, Y = normal(0, 12, 20) * np.geomspace(0.1, 10, 20), normal(1, 6, 12)
    D[:, 3], D[:, 5], D[:, 7] = 0, D[:, 6], D[:, 8] + D[:, 9]
    roots = np.ones_like(Y) if weights is None else np.sqrt(weights)
    found = pursuit.omp_batch(D, Y, 4, weights, selection="least_squares")
    for x, y, w in zip(found.x, Y, roots):
        expected = w * (D @ least_squares_atoms(w[:, None] * D, w * y, 4))
        # Of equal atoms either may be chosen.
        np.testing.assert_allclose(w * (D @ np.asarray(x)), expected, atol=1e-9)
    assert found.converged.all() and (found.steps == 4).all()
    one_more = pursuit.omp_batch(D, Y, 5, weights, selection="least_squares")
    assert (one_more.residual < found.residual).all()
    first = pursuit.omp_batch(D / (np.linalg.norm(D, axis=0) + (D == 0).all(0)), Y, 1)
    same = pursuit.omp_batch(D, Y, 1, selection="least_squares")
    np.testing.assert_allclose(same.residual, first.residual, rtol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 1e150, 1e-150])
def test_least_squares_selects_for_one_signal_as_for_a_batch(scale):
    """By another algorithm; with a tol, and by name; up to the end, where atoms depend."""
    D, Y = scale * normal(0, 12, 20) * np.geomspace(0.1, 10, 20), normal(1, 6, 12) / scale
    D[:, 3], D[:, 7] = 0, D[:, 8] + D[:, 9]
    options = dict(selection="least_squares")
    for sparsity in (4, 12):
        expected = pursuit.omp_batch(D, Y, sparsity, **options)
        found = jax.vmap(lambda y, s=sparsity: pursuit.omp(D, y, s, **options))(Y)
        np.testing.assert_array_equal(found.steps, expected.steps)
        # Of atoms that leave the same residual, as all do at the end, either may be chosen.
        np.testing.assert_allclose(found.x @ D.T, expected.x @ D.T, atol=1e-9 / scale)
        assert found.converged.all()
    tol = float(np.median(pursuit.omp_batch(D, Y, 4, **options).residual))
    stopped = jax.vmap(lambda y: pursuit.omp(D, y, tol=tol, **options))(Y)
    assert (stopped.residual <= tol).all() and (stopped.steps <= 4).sum() == 3
    for given, same in ((dict(sparsity=12), expected), (dict(tol=tol), stopped)):
        np.testing.assert_array_equal(pursue("omp", (D,), Y, given | options).codes[0], same.x)


@pytest.mark.parametrize("solve", [pursuit.omp, pursuit.omp_batch])
def test_a_selection_that_is_unknown_or_of_parts_is_refused(solve):
    def one(size):
        return np.ones(size) if solve is pursuit.omp else np.ones((1, size))

    with pytest.raises(ValueError, match="unknown selection 'ols'; expected correlation or"):
        solve(np.eye(3), one(3), 2, selection="ols")
    with pytest.raises(ValueError, match=f"{solve.__name__}: codes of Joint come in parts of 2"):
        solve(dictionaries.Joint(np.eye(3), 2), one(6), 2, selection="least_squares")


# Codes x >= 0, and batches without the Gram matrix


def nonnegative_code(A, y, sparsity, by_fit):
    """Atom by atom, with scipy's non-negative least squares; atoms with entry 0 leave."""
    S, r = [], y
    while len(S) < sparsity:
        Q = np.linalg.qr(A[:, S])[0] if S else np.zeros((len(y), 0))
        apart = np.sum((A - Q @ (Q.T @ A)) ** 2, 0) if by_fit else np.ones(A.shape[1])
        score = np.maximum(r @ A, 0) / np.sqrt(np.where(apart > 1e-9, apart, np.inf))
        score[S] = 0
        if score.max() <= 1e-12:
            break
        S.append(int(np.argmax(score)))
        u, left = nnls(A[:, S], y)
        S = [j for j, value in zip(S, u) if value > 0]
        r = y - A[:, S] @ u[u > 0]
    x = np.zeros(A.shape[1])
    x[S] = u[u > 0]
    return x


@pytest.mark.parametrize("selection", ["correlation", "least_squares"])
def test_nonnegative_codes_are_those_of_nonnegative_least_squares(selection):
    """For one signal, from the Gram matrix, and by products with D; in float32 too."""
    A, S = normal(11, 12, 30) + 0.2, normal(12, 40, 12)
    options = dict(selection=selection, nonnegative=True)
    expected = np.array([nonnegative_code(A, y, 5, selection != "correlation") for y in S])
    found = pursuit.omp_batch(A, S, 5, **options)
    assert found.converged.all() and (found.steps >= (expected > 0).sum(1)).all()
    np.testing.assert_allclose(found.x, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.residual, np.linalg.norm(S - expected @ A.T, axis=1))
    assert (found.steps > 5).any()  # an atom has left
    weighted = pursuit.omp_batch(A, S, 5, np.ones(12), **options)
    np.testing.assert_allclose(weighted.x, expected, rtol=0, atol=1e-12)
    single = jax.jit(jax.vmap(lambda y: pursuit.omp(A, y, 5, **options)))(S)
    np.testing.assert_allclose(single.x, expected, rtol=0, atol=1e-12)
    assert np.array_equal(single.steps, found.steps) and single.converged.all()
    short = pursuit.omp_batch(*(v.astype(np.float32) for v in (A, S)), 5, **options)
    np.testing.assert_allclose(short.x, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("selection", ["correlation", "least_squares"])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_codes_by_products_with_a_structured_dictionary(selection, nonnegative, monkeypatch):
    """No matrix of these dictionaries is made."""
    A = normal(11, 12, 30)
    functions = dictionaries.from_functions(lambda x: A @ x, lambda r: r @ A, A.shape)
    conv = dictionaries.Conv(normal(13, 3, 1, 4), 12)
    for D in (functions, conv, dictionaries.Composed(functions, normal(14, 30, 20))):
        Y = normal(12, 8, D.shape[0])
        options = dict(selection=selection, nonnegative=nonnegative)
        expected = pursuit.omp_batch(dictionaries.dense(D), Y, 4, **options)
        with monkeypatch.context() as patch:
            patch.setattr(_omp_batch, "_MATRIX", 0)
            patch.setattr(_omp_batch, "dense", None)
            found = pursuit.omp_batch(D, Y, 4, **options)
        np.testing.assert_allclose(found.x, expected.x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.residual, expected.residual, rtol=1e-9)
        np.testing.assert_allclose(found.margin, expected.margin, rtol=0, atol=1e-9)


def test_the_margin_is_the_distance_of_the_closest_choice():
    found = pursuit.omp_batch(np.eye(4), np.array([[3.0, 2.0, 1.9, 0.0]]), 2)
    assert float(found.margin[0]) == pytest.approx(0.05)  # 1.9 is chosen if 2 falls by 5 %
    assert pursuit.omp_batch(np.eye(4), np.array([[3.0, 2.0, 2.0, 0.0]]), 2).margin[0] == 0


@pytest.mark.parametrize("selection, width", [("correlation", 0.1), ("least_squares", 0.02)])
def test_float32_chooses_the_atoms_of_float64_among_coherent_ones(selection, width):
    """Scores whose order rounding may change are computed in float64."""
    rng = np.random.default_rng(1)
    A = unit(np.exp(-((np.linspace(0, 1, 100)[:, None] - rng.random(300)) ** 2) / 2 / width**2))
    X = (rng.random((500, 300)) < 5 / 300) * rng.normal(size=(500, 300))
    A, S = A.astype("f4"), (X @ A.T + 0.02 * rng.normal(size=(500, 100))).astype("f4")
    short = pursuit.omp_batch(A, S, 6, selection=selection)
    wide = pursuit.omp_batch(A.astype(float), S.astype(float), 6, selection=selection)
    same = ((short.x != 0) == (wide.x != 0)).all(1)
    assert same[wide.margin > 1e-6].all() and same.mean() > 0.99


def test_a_batch_of_another_size_compiles_no_program(compiled):
    pursuit.omp_batch(D, Y, 3)
    before = len(compiled)
    for n in (1, 2, 3):
        assert np.asarray(pursuit.omp_batch(D, Y[:n], 3).converged).all()
    assert len(compiled) == before


def test_codes_in_parts_have_no_signs():
    with pytest.raises(ValueError, match="codes of Joint come in parts of 2"):
        pursuit.omp(dictionaries.Joint(np.eye(3), 2), np.ones(6), 2, nonnegative=True)
    # The only part of a dictionary has no rival.
    found = pursuit.omp_batch(dictionaries.Joint(np.eye(3, 1), 2), np.arange(6.0)[None], 1)
    assert found.x.ravel().tolist() == [0, 1] and found.margin == 1


@pytest.mark.parametrize("options", [{}, {"nonnegative": True}])
def test_sparse_codes_are_the_nonzeros_of_the_codes(options, tmp_path):
    signals = np.vstack([Y, np.full((1, M), np.nan), np.zeros((1, M))])
    whole = pursuit.omp_batch(D, signals, 5, **options)
    sparse = pursuit.omp_batch(D, signals, 5, sparse=True, **options)
    np.testing.assert_array_equal(sparse.x.scipy().toarray(), whole.x)
    assert sparse.x.counts.tolist() == np.count_nonzero(whole.x, axis=1).tolist()
    assert (np.diff(sparse.x.indices[:4], axis=1) > 0).all()
    out = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", float, (6, N))
    found = pursuit.omp_batch(D, signals, 5, out=out, **options)
    assert found.x is out and (whole.x == out).all()
    for field in ("gap", "residual", "converged", "steps"):
        np.testing.assert_array_equal(getattr(sparse, field), getattr(whole, field))
    with pytest.raises(ValueError, match="omp_batch: expected one of sparse and out"):
        pursuit.omp_batch(D, Y, 5, sparse=True, out=out)


@pytest.mark.parametrize("options", [{}, dict(sparse=True), dict(nonnegative=True)])
@pytest.mark.parametrize("gram", [True, False])
def test_signals_in_fortran_order_have_the_same_codes(options, gram, monkeypatch):
    monkeypatch.setattr(_omp_batch, "gram_pays", lambda *_: gram)
    rng = np.random.default_rng(6)
    D, Y = rng.normal(size=(12, 20)), rng.normal(size=(30, 12))
    for dtype in (np.float32, np.float64):
        chex.assert_trees_all_equal(
            pursuit.omp_batch(D.astype(dtype), np.asfortranarray(Y, dtype), 3, **options),
            pursuit.omp_batch(D.astype(dtype), Y.astype(dtype), 3, **options),
        )


def test_a_kernel_refuses_an_array_that_it_would_read_in_the_wrong_order():
    for array in (np.eye(3, 4).T, np.ones(3, ">f8"), np.ones(3, "float16")):
        with pytest.raises(ValueError, match="^pointer: .* try operand"):
            _active_set.pointer(array)
