"""Codes in parts by working sets: the optimum by hand, `lasso`, units, starts, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import normal, unit

from unrolled import pursuit
from unrolled.dictionaries import (
    Complex,
    Grouped,
    Joint,
    Masked,
    dense,
    fourier,
    matrix_of_parts,
    wavelet,
)

M, N = 12, 24
SIZES = np.array([1, 6, 3, 5, 2, 4, 3])
EPS = np.finfo(float).eps


def complex_normal(seed, *shape):
    return normal(seed, *shape) + 1j * normal(seed + 1, *shape)


A, C = unit(normal(0, M, N)), complex_normal(1, M, N) / 5
TWIN = np.c_[A[:, :20], A[:, 0], 2 * A[:, 1], 0 * A[:, 2], A[:, 3] - A[:, 4]]
FORMS = {
    "complex": (Complex.of(C), complex_normal(3, 5, M)),
    "joint": (Joint(A, 3), normal(4, 5, M, 3)),
    "complex joint": (Joint(Complex.of(C), 2), complex_normal(5, 5, M, 2)),
    "groups": (Grouped(A, np.repeat(np.arange(7), SIZES)), normal(6, 5, M)),
    "groups of one size": (Grouped(A, np.arange(N) % 8, weights=1), normal(7, 5, M)),
    "dependent groups": (Grouped(TWIN, np.arange(N) // 4, weights=1), normal(8, 5, M)),
    "one group": (Grouped(A[:, :4], [0] * 4), normal(9, 5, M)),
}


def gaps(D, Y, X, lam, l2=0.0):
    """The relative duality gaps from the definition, in float64, part by part."""
    D, wide = jax.tree.map(lambda v: jnp.asarray(v, float), D), np.result_type(Y, float)
    Y, X = (np.asarray(v, complex if wide.kind == "c" else float) for v in (Y, X))
    block, values = D.block, []
    for y, x, weight in zip(Y, X, np.broadcast_to(lam, (len(Y), D.shape[1] // block))):
        y, x = (v if D.view(v) is None else np.asarray(D.view(v)[0]) for v in (y, x))
        K = np.asarray(dense(D))
        r = y - K @ x
        h = K.T @ r - l2 * x
        sizes, slopes = (np.linalg.norm(v.reshape(-1, block), axis=1) for v in (x, h))
        s = min(1, (weight / np.maximum(slopes, 1e-300)).min())
        penalty = weight @ sizes - s * x @ h
        rest = (1 - s) ** 2 * (r @ r + l2 * x @ x) / 2
        values.append((penalty + rest) / max(y @ y / 2, 1e-300))
    return np.array(values)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("name", FORMS)
def test_codes_of_parts_have_the_gap_that_they_claim(name, ratio, l2):
    D, Y = FORMS[name]
    lam = ratio * np.array([float(pursuit.lam_max(D, y)) for y in Y])[:, None]
    found = pursuit.lasso_batch(D, Y, lam, l2=l2, tol=1e-9)
    assert found.how == "working sets" and found.converged.all() and (found.gap <= 1e-9).all()
    # The gap of a vector r that differs by e from y - D x moves by e^2 + e sqrt(2 gap).
    np.testing.assert_allclose(gaps(D, Y, found.x, lam, l2), found.gap, rtol=1e-3, atol=1e-13)
    same = pursuit.lasso_batch(D, Y, ratio=ratio, l2=l2, tol=1e-9)
    np.testing.assert_allclose(same.x, found.x, rtol=0, atol=1e-4 * np.abs(found.x).max())


@pytest.mark.parametrize("name", FORMS)
def test_codes_of_parts_in_float32_have_the_gap_that_they_claim(name):
    D, Y = FORMS[name]
    D = jax.tree.map(lambda v: jnp.asarray(v, np.float32), D)
    Y = Y.astype(np.complex64 if Y.dtype.kind == "c" else np.float32)
    found = pursuit.lasso_batch(D, Y, ratio=0.1, tol=1e-6)
    assert found.converged.all() and found.x.dtype == Y.dtype
    lam = 0.1 * np.array(
        [float(pursuit.lam_max(D, y)) for y in Y.astype(complex if Y.dtype.kind == "c" else float)]
    )
    assert (gaps(D, Y, found.x, lam[:, None]) <= 1.01e-6).all()
    never = pursuit.lasso_batch(D, Y, ratio=0.1, tol=1e-13)
    assert not never.converged.all() and (never.gap < 1e-6).all()
    assert (never.converged == (never.gap <= 1e-13)).all()
    bits = np.asarray(never.x).view(np.int32)
    assert (bits & 3).any()  # all 24 binary digits are in use


def test_the_code_of_orthonormal_groups_is_shrunk_by_its_norms():
    Q, lam = np.linalg.qr(normal(10, M, M))[0][:, :9], 1.6
    D, Y = Grouped(Q, np.arange(9) // 3, weights=1), normal(11, 6, M)
    h = (Y @ Q).reshape(6, 3, 3)
    norms = np.linalg.norm(h, axis=2, keepdims=True)
    expected = np.maximum(1 - lam / norms, 0) * h
    found = pursuit.lasso_batch(D, Y, lam, tol=1e-14)
    np.testing.assert_allclose(found.x, expected.reshape(6, 9), rtol=0, atol=1e-7)
    assert 0 < (expected == 0).sum() < expected.size


@pytest.mark.parametrize("c, b", [(1e-120, 1e100), (1e90, 1e-150)])
@pytest.mark.parametrize("name", ["complex joint", "groups"])
def test_units_do_not_change_the_codes_of_parts(name, c, b):
    D, Y = FORMS[name]
    found, scaled = (pursuit.lasso_batch(d, y, ratio=0.1) for d, y in ((D, Y), (D * c, Y * b)))
    np.testing.assert_allclose(scaled.x * (c / b), found.x, rtol=0, atol=1e-5)
    assert scaled.converged.all()


@pytest.mark.parametrize("name", ["joint", "groups"])
def test_a_start_in_parts_may_be_anything(name):
    D, Y = FORMS[name]
    cold = pursuit.lasso_batch(D, Y, ratio=0.1, tol=1e-10)
    again = pursuit.lasso_batch(D, Y, ratio=0.1, tol=1e-9, start=cold.x)
    assert (again.steps == 0).all()
    np.testing.assert_allclose(again.x, cold.x, rtol=0, atol=8 * EPS * np.abs(cold.x).max())
    for start in (1e6 * normal(12, *cold.x.shape), jnp.roll(cold.x, 3, 1), 0 * cold.x):
        found = pursuit.lasso_batch(D, Y, ratio=0.1, tol=1e-10, start=start)
        assert found.converged.all()
        np.testing.assert_allclose(found.x, cold.x, rtol=0, atol=1e-4)


def test_signals_without_a_code_and_signals_without_an_end():
    D, Y = FORMS["groups"]
    Y = np.concatenate([Y, np.zeros((1, M)), np.full((1, M), np.nan)])
    for options in (dict(ratio=0.1), dict(lam=0.1)):
        found = pursuit.lasso_batch(D, Y, **options)
        assert found.converged.tolist() == [True] * 6 + [False]
        assert (found.x[5:] == 0).all() and found.gap[5] == 0 and found.gap[6] == jnp.inf
    early = pursuit.lasso_batch(D, Y, 0.01, max_steps=5)
    assert (early.steps[:5] == 5).all() and not early.converged[:5].any()
    claimed = gaps(D, Y[:5], early.x[:5], 0.01)
    np.testing.assert_allclose(claimed, early.gap[:5], rtol=1e-9)
    lam = np.array([float(pursuit.lam_max(D, y)) for y in Y[:5]])[:, None]
    none = pursuit.lasso_batch(D, Y[:5], lam * (1 + 4 * EPS))
    assert (none.x == 0).all() and none.converged.all() and (none.steps == 0).all()


def test_the_margin_of_parts_tells_how_near_another_support_is():
    D, Y = FORMS["joint"]
    found = pursuit.lasso_batch(D, Y, 0.5, tol=1e-12)
    for y, x, margin in zip(Y, np.asarray(found.x), found.margin):
        sizes, slopes = (np.linalg.norm(v, axis=1) for v in (x, A.T @ (y - A @ x)))
        on = sizes > 0
        least = min(sizes[on].min() / sizes.max(), 1 - slopes[~on].max() / 0.5)
        np.testing.assert_allclose(margin, least, atol=1e-9)


def test_a_mask_of_all_signals_is_a_dictionary_and_what_has_no_sets_is_coded_one_by_one():
    for name, how in (("groups", "working sets"), ("joint", "fista")):
        D, Y = FORMS[name]
        mask = np.random.default_rng(15).random(Y.shape[1:]) < 0.8
        found = pursuit.lasso_batch(D, np.where(mask, Y, np.nan), 0.3, mask=mask, tol=1e-10)
        each = pursuit.lasso_batch(D, Y, 0.3, mask=np.broadcast_to(mask, Y.shape), tol=1e-10)
        assert (found.how, each.how) == (how, "fista")
        assert found.converged.all() and each.converged.all()
        np.testing.assert_allclose(found.x, each.x, rtol=0, atol=1e-4)
    D, Y = FORMS["joint"]
    free = pursuit.lasso_batch(D, Y, np.r_[0.0, np.full(N - 1, 0.3)])
    assert free.how == "fista" and free.converged.all()


def test_sparse_codes_of_parts():
    D, Y = FORMS["groups"]
    Y = np.asarray([D.view(y)[0] for y in Y])  # flat
    whole = pursuit.lasso_batch(D, Y, 0.3)
    sparse = pursuit.lasso_batch(D, Y, 0.3, sparse=True)
    assert sparse.how == "working sets" and (sparse.x.dense() == whole.x).all()


def test_many_signals_share_the_products_of_the_atoms():
    """With few signals each set computes its own."""
    D, Y = Joint(unit(normal(13, 60, 300)), 2), normal(14, 40, 60, 2)
    many, few = (pursuit.lasso_batch(D, signals, ratio=0.2, tol=1e-10) for signals in (Y, Y[:1]))
    np.testing.assert_allclose(few.x[0], many.x[0], rtol=0, atol=1e-4)


def test_an_operator_is_never_made_a_matrix():
    """Its matrix would have 65,536 x 131,072 entries, and more with a wavelet."""
    mask = np.random.default_rng(16).random((256, 256)) < 0.5
    F = fourier((256, 256), mask)
    for D in (F, F @ wavelet((256, 256), "haar", 2), Joint(F, 2), Masked(F, np.ones(F.shape[0]))):
        assert matrix_of_parts(D) == (None,)
    small = fourier((8, 8), mask[:8, :8])
    Y = complex_normal(17, 2, small.shape[0] // 2)
    assert pursuit.lasso_batch(small, Y, ratio=0.5).how == "fista"


def test_atoms_of_zeros_and_infinite_starts_have_finite_codes():
    """With penalties far from the products, and starts that leave the range in units."""
    zero = A.copy()
    zero[:, :2] = 0
    D, Y = Joint(zero, 3), FORMS["joint"][1]
    for lam in (1e-300, 0.3, 1e9):
        found = pursuit.lasso_batch(D, Y, lam, max_steps=20)
        assert np.isfinite(np.asarray(found.x)).all() and (found.x[:, :2] == 0).all()
    start = np.zeros((5, N, 3))
    start[:, 3] = 1e300
    for d, y, x in ((D, Y, start), (zero, Y[..., 0], start[..., 0])):
        found = pursuit.lasso_batch(d, 1e-200 * y, ratio=0.1, start=x)
        assert found.converged.all() and np.isfinite(np.asarray(found.x)).all()


@pytest.mark.parametrize("seed", range(4))
def test_proportional_atoms_compete_until_one_is_left(seed):
    """All atoms are multiples of one, so the longest codes alone."""
    u, scales = complex_normal(20 + seed, 6), 1 + 0.01 * np.random.default_rng(seed).random(9)
    scales[4] = 1.011
    D, y = Complex.of(u[:, None] * scales), complex_normal(30 + seed, 6)
    found = pursuit.lasso_batch(D, y[None], ratio=0.2, tol=1e-12)
    expected = np.zeros(9, complex)
    expected[4] = 0.8 * scales[4] * u.conj() @ y / np.sum(np.abs(scales[4] * u) ** 2)
    assert found.converged.all()
    np.testing.assert_allclose(found.x[0], expected, rtol=0, atol=1e-6 * abs(expected[4]))
