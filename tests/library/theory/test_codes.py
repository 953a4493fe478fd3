"""Certificates of codes: against linear programs, planted truths, and codes made wrong."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from unrolled import dictionaries
from unrolled.theory import _codes, certify_code

M, N = 30, 60
FIELDS = "residual sigma off_support mismatch error_gain l1_gain".split()


@functools.cache
def drawn(seed=0, m=M, d=N):
    A = np.random.default_rng(seed).normal(size=(m, d))
    return A / np.linalg.norm(A, axis=0)


def sparse(seed, n, s, d=N):
    rng = np.random.default_rng(seed)
    X = np.zeros((n, d))
    for x in X:
        x[rng.permutation(d)[:s]] = rng.choice([-1, 1], s) * rng.uniform(0.5, 2, s)
    return X


def least_l1(D, y):
    """A code of least l1 norm with D x = y, by HiGHS."""
    d = D.shape[1]
    found = linprog(np.ones(2 * d), A_eq=np.hstack([D, -D]), b_eq=y, method="highs")
    return found.x[:d] - found.x[d:]


@functools.cache
def batch():
    """Signals of 2 to 14 nonzeros, where l1 recovers the first ones alone; and their certificates.

    The supports are given, and nothing else. Parts of 7 are padded to 8, as all small batches here.
    """
    X = np.concatenate([sparse(s, 4, s) for s in (2, 4, 6, 8, 10, 12, 14)])
    Y = X @ drawn().T
    parts = [certify_code(drawn(), y, np.sign(x)) for y, x in zip(np.split(Y, 4), np.split(X, 4))]
    return X, Y, jax.tree.map(lambda *fields: np.concatenate(fields), *parts)


# What is certified


@pytest.mark.slow
def test_certified_codes_are_those_of_linear_programs():
    """HiGHS meets the equations to 1e-7."""
    X, Y, found = batch()
    assert found.unique[:8].all() and not found.unique.all()
    others = [least_l1(drawn(), y) for y in Y]
    for other, x, unique in zip(others, found.x, found.unique):
        if unique:
            np.testing.assert_allclose(x, other, atol=1e-6)
        else:
            assert np.abs(other).sum() <= np.abs(x).sum() + 1e-6
    agree = np.array([np.abs(other - x).max() <= 1e-6 for other, x in zip(others, X)])
    # A code that l1 recovers may lack a certificate, where the best dual vector is close to 1.
    assert (found.unique <= agree).all() and found.unique.sum() >= agree.sum() - 2


def test_certified_codes_are_the_planted_ones():
    X, _, found = batch()
    np.testing.assert_allclose(found.x[found.unique], X[found.unique], atol=1e-13)


def test_what_is_returned_is_what_the_statement_asks():
    _, Y, found = batch()
    D, X = drawn(), found.x
    eps = 1e-12  # far above the rounding of 30 products and below what is claimed
    for i in np.flatnonzero(found.holds):
        T, nu = np.flatnonzero(X[i]), found.dual[i]
        g, sigma = nu @ D, np.linalg.svd(D[:, T], compute_uv=False)[-1]
        assert np.abs(np.delete(g, T)).max() <= found.off_support[i] < 1
        assert np.abs(g[T] - np.sign(X[i, T])).max() <= found.mismatch[i] <= eps
        assert sigma * (1 - 1e-2) <= found.sigma[i] <= sigma * (1 + eps)
        assert found.residual[i] == pytest.approx(np.linalg.norm(Y[i] - D @ X[i]), abs=eps)
    assert np.isinf(found.error_gain[~found.holds]).all()


def test_no_code_breaks_the_bound():
    """Of codes near x, far from x, and between x and its rivals, with any l1 norm."""
    _, _, found = batch()
    D, rng = drawn(), np.random.default_rng(0)
    above = []
    for i in np.flatnonzero(found.holds):
        x = found.x[i]
        size = 10.0 ** rng.uniform(-4, 1, (200, 1))
        Z = x + size * rng.normal(size=(200, N)) * (rng.random((200, N)) < rng.random((200, 1)))
        kernel = np.linalg.svd(D)[2][M:]
        Z[:60] = x + size[:60] * (rng.normal(size=(60, len(kernel))) @ kernel)  # D z = D x
        Z[60:120] *= np.minimum(1, np.abs(x).sum() / np.abs(Z[60:120]).sum(1, keepdims=True))
        H = Z - x
        u = np.linalg.norm(H @ D.T, axis=1)
        t = np.maximum(np.abs(Z).sum(1) - np.abs(x).sum(), 0)
        bound = found.error_gain[i] * u + found.l1_gain[i] * t
        above.append(np.linalg.norm(H, axis=1) - bound)
    assert np.max(above) <= 0


# Codes that are wrong


@functools.cache
def wrong():
    X = sparse(7, 6, 5)
    Y = X @ drawn().T
    swapped, turned = X.copy(), X.copy()
    for x, z in zip(swapped, turned):
        T = np.flatnonzero(x)
        x[(T[0] + 1) % N if not x[(T[0] + 1) % N] else (T[0] + 2) % N] = x[T[0]]
        x[T[0]] = 0
        z[T[1]] *= -1
    rng = np.random.default_rng(0)
    noise = rng.normal(size=Y.shape)
    noisy = Y + 1e-6 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return X, Y, dict(swapped=(Y, swapped), turned=(Y, turned), noisy=(noisy, X))


@pytest.mark.parametrize("fault", ["swapped", "turned", "noisy"])
def test_no_wrong_code_is_unique(fault):
    _, _, cases = wrong()
    found = certify_code(drawn(), *cases[fault], finish=None)
    assert not found.unique.any() and (found.residual > 1e-7).all()
    np.testing.assert_array_equal(found.x, cases[fault][1])


def test_finishing_repairs_what_least_squares_can():
    X, Y, cases = wrong()
    # A sign does not matter to least squares; a missing atom is found by subspace pursuit.
    assert certify_code(drawn(), *cases["turned"], finish=0).unique.all()
    swapped = certify_code(drawn(), *cases["swapped"], finish=0)
    assert not swapped.unique.any()
    repaired = certify_code(drawn(), *cases["swapped"])
    assert repaired.unique.all()
    np.testing.assert_allclose(repaired.x, X, atol=1e-13)
    noisy = certify_code(drawn(), *cases["noisy"])
    assert not noisy.unique.any() and noisy.holds.all()
    # The gain bounds the truth, which fits as well up to the noise, if its l1 norm is no larger.
    t = np.maximum(np.abs(X).sum(1) - np.abs(noisy.x).sum(1), 0)
    bound = noisy.error_gain * (noisy.residual + 1e-6) + noisy.l1_gain * t
    assert (np.linalg.norm(noisy.x - X, axis=1) <= bound).all()


@pytest.mark.slow
def test_a_code_that_fits_without_being_the_least():
    """Of two codes of the same signal with independent supports, one has the larger l1 norm."""
    D = drawn()
    x = sparse(3, 1, 14)[0]
    z = least_l1(D, D @ x)
    assert np.abs(z).sum() < np.abs(x).sum() - 1e-3
    found = certify_code(D, D @ x, x, finish=None)
    assert found.residual <= 1e-14 and not found.holds and math.isinf(found.error_gain)


def test_the_search_ends_where_no_vector_can_be_found():
    """However many steps it may take: such codes are not the least, and the others keep theirs."""
    X, Y, _ = batch()
    D, hopeless = drawn(), sparse(4, 4, 16)
    signals, codes = (np.concatenate(pair) for pair in ((Y[:4], hopeless @ D.T), (X[:4], hopeless)))
    endless = certify_code(D, signals, codes, finish=None, steps=10**8)
    assert endless.unique[:4].all() and not endless.holds[4:].any()
    for x in hopeless:
        assert np.abs(least_l1(D, D @ x)).sum() < np.abs(x).sum() - 1e-3


# Signals and codes at the door


@pytest.mark.slow
def test_one_code_is_a_batch_of_one():
    X, Y, found = batch()
    one = certify_code(drawn(), Y[5], np.sign(X[5]))
    assert one.x.shape == (N,) and one.dual.shape == (M,)
    assert one.unique is True and one.holds is True and isinstance(one.error_gain, float)
    np.testing.assert_allclose(one.x, found.x[5], atol=1e-13)
    assert one.error_gain == pytest.approx(found.error_gain[5], rel=0.5)  # it may stop elsewhere


def test_zero_codes_and_zero_signals():
    D, Y, X = drawn(), np.zeros((3, M)), np.zeros((3, N))
    Y[1], X[2] = D[:, 0], 1
    found = certify_code(D, Y, X)
    assert found.unique.all()  # subspace pursuit finds the atom
    assert (found.sigma[0], found.error_gain[0]) == (math.inf, 0) and not found.x[[0, 2]].any()
    left = certify_code(D, Y, X, finish=None)
    assert left.holds[1] and not left.unique[1] and left.residual[1] == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("finish", [None, 3])
def test_supports_of_m_and_more(finish):
    rng = np.random.default_rng(0)
    for n in (M, M + 1, *([N] if finish else [])):  # one size, or cut to it
        x = np.zeros(N)
        x[:n] = rng.normal(size=n)
        found = certify_code(drawn(), drawn() @ x, x, finish=finish)
        assert not found.unique and all(not np.isnan(v).any() for v in jax.tree.leaves(found))
        if n > M and finish is None:
            assert found.sigma == 0 and not found.holds


@pytest.mark.slow
def test_a_vertex_of_m_nonzeros_is_certified():
    """The l1 code of any signal has at most m nonzeros, and nu is then the dual solution."""
    D = drawn(1, 6, 9)
    y = np.random.default_rng(1).normal(size=6)
    x = least_l1(D, y)
    found = certify_code(D, y, np.where(np.abs(x) > 1e-7, x, 0))
    assert np.count_nonzero(found.x) == 6 and found.unique
    square = certify_code(np.eye(4), np.ones(4), np.ones(4))
    assert square.unique and square.sigma == pytest.approx(1, rel=1e-3)


def test_the_least_singular_value_is_that_of_the_atoms_less_their_rounding():
    """Weyl: of s atoms that are `off`, it moves by sqrt(s) off, by padding not at all."""
    A, live = np.zeros((2, M, 5)), np.arange(5) < np.array([[3], [5]])
    A[:] = drawn()[:, :5]
    gram = np.where(live[:, :, None] & live[:, None], np.swapaxes(A, 1, 2) @ A, 0)
    gram += np.where(live, 1e-14, 1)[:, None] * np.eye(5)
    root = np.linalg.inv(np.linalg.cholesky(gram))
    support = _codes._Support(np.broadcast_to(np.arange(5), (2, 5)), live, root, np.asarray(1e-14))
    least = jax.jit(_codes._least_singular_value)
    sigma = np.array([np.linalg.svd(A[0, :, :s])[1][-1] for s in (3, 5)])
    plain = np.asarray(least(support, 0.0))
    assert (plain <= sigma).all() and (plain >= 0.99 * sigma).all()
    np.testing.assert_allclose(plain - least(support, 0.01), 0.01 * np.sqrt([3, 5]), rtol=1e-9)


def test_dependent_atoms_on_the_support():
    D = drawn().copy()
    D[:, 1] = D[:, 0]
    X = np.zeros((3, N))
    X[:, 7] = X[0, :2] = X[2, 0] = 1.0
    found = certify_code(D, X @ D.T, X)
    assert (found.sigma[0], found.holds[0], found.unique[0]) == (0, False, False)
    # Elsewhere the same dictionary has certificates, but none for one of two equal atoms.
    assert found.unique[1] and not found.holds[2]


def test_a_dictionary_of_low_rank():
    D = drawn()[:, :20] @ np.random.default_rng(2).normal(size=(20, N))
    D = D / np.linalg.norm(D, axis=0)
    X = sparse(1, 5, 3)
    found = certify_code(D, X @ D.T, X)
    assert found.unique.all()
    np.testing.assert_allclose(found.x, X, atol=1e-12)


def test_signals_of_float32_are_met_to_their_rounding():
    X = sparse(2, 5, 5)
    D = drawn().astype(np.float32)
    Y = (X @ D.astype(float).T).astype(np.float32)
    found = certify_code(D, Y, X.astype(np.float32))
    assert found.holds.all() and not found.unique.any()
    assert found.certified(Y).all() and not found.certified(Y.astype(float)).any()
    # Each entry of y is rounded by 2^-24 of itself.
    assert (found.residual <= 2.0**-24 * np.linalg.norm(Y, axis=1)).all()
    error = np.linalg.norm(found.x - X, axis=1)
    t = np.maximum(np.abs(X).sum(1) - np.abs(found.x).sum(1), 0)
    assert (error <= found.error_gain * 2 * found.residual + found.l1_gain * t).all()
    assert (error <= 1e-5).all()


@pytest.mark.parametrize("half, most", [(np.float16, 1.0005), (jnp.bfloat16, 1.004)])
def test_signals_of_half_precision_are_met_to_the_rounding_of_their_entries(half, most):
    """Of eps / 2, in an entry of y; a code that is .5 % off does not count."""
    D, X = drawn(), sparse(2, 5, 5)
    Y = (X @ D.T).astype(half)
    assert certify_code(D, Y, X).certified(Y).all()
    for off in (1 / 1.005, 1.005):
        assert not certify_code(D, Y, X * off, finish=None).certified(Y).any()
    assert certify_code(D, Y, X * np.sqrt(most), finish=None).certified(Y).any()


def test_certified_asks_whether_the_code_is_one_of_this_signal():
    _, Y, found = batch()
    Y, proof = Y[:4], jax.tree.map(lambda field: field[:4], found)
    assert proof.certified(Y).all() and proof.signal == pytest.approx(Y, abs=1e-13)
    for other in (1.001 * Y, 10 * Y, 1e30 * Y, -Y, Y[::-1], 0 * Y, np.full_like(Y, np.inf)):
        assert not proof.certified(other).any()
    one = jax.tree.map(lambda field: field[2], proof)
    assert one.certified(Y[2]) and not one.certified(Y[1])


def test_what_is_not_finite_is_not_certified():
    X, Y, _ = batch()
    Y, X = Y[:4].copy(), np.sign(X[:4])
    Y[1, :2], X[2, 3] = (np.nan, np.inf), np.inf
    found = certify_code(drawn(), Y, X)
    assert found.unique.tolist() == [True, False, True, True]  # a code may begin at 0
    assert found.certified(Y).tolist() == [True, False, True, True]
    assert found.residual[1] == math.inf and not found.x[1].any() and not found.holds[1]


def test_large_and_small_atoms_and_signals():
    """nu has the scale of 1 / D, and codes that of y / D."""
    X, Y, _ = batch()
    X, Y = X[:8], Y[:8]
    for a, b in ((1e-3, 1.0), (1e4, 1e-30), (1.0, 1e250), (1.0, 1e-250)):
        found = certify_code(a * drawn(), b * Y, np.sign(X) * min(b, 1))
        assert found.unique.all() and found.certified(b * Y).all()
        np.testing.assert_allclose(found.x / b * a, X, atol=1e-12)
        assert (found.residual <= 1e-12 * b).all()
    lost = certify_code(drawn(), Y, 1e250 * X, finish=None)
    assert not lost.unique.any() and not lost.x.any() and (lost.residual > 0.1).all()


@pytest.mark.parametrize("size", [1e-6, 1e10])
def test_atoms_that_the_code_does_not_need_are_dropped_at_any_scale(size):
    X, needed = sparse(1, 4, 7), sparse(1, 4, 7) != 0
    X[:, ::2] = 0  # the support is given with the atoms that are 0 now
    found = certify_code(size * drawn(), X @ drawn().T, 1.0 * needed)
    assert (needed & (X == 0)).any(1).all() and found.unique.all()
    np.testing.assert_array_equal(found.x != 0, X != 0)


def test_atoms_of_different_norms():
    scale = np.random.default_rng(0).uniform(0.5, 2, N)
    X = sparse(4, 6, 3)
    found = certify_code(drawn() * scale, X @ (drawn() * scale).T, np.sign(X))
    assert found.unique.all()
    assert np.all(found.off_support < 1)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_structured_dictionaries(whole, monkeypatch):
    D = dictionaries.Conv(np.random.default_rng(0).normal(size=(2, 1, 5)), M, boundary="circular")
    D, _ = dictionaries.normalize(D)
    matrix = np.asarray(dictionaries.dense(D))
    X = sparse(5, 6, 4, D.shape[1])
    if not whole:
        jax.clear_caches()
        monkeypatch.setattr(_codes, "_WHOLE", 1)
    found, same = (certify_code(A, X @ matrix.T, np.sign(X)) for A in (D, matrix))
    if not whole:
        jax.clear_caches()
    assert found.unique.sum() >= 3
    np.testing.assert_array_equal(found.unique, same.unique)
    for name in FIELDS:
        np.testing.assert_allclose(
            getattr(found, name), getattr(same, name), rtol=1e-6, atol=1e-12, err_msg=name
        )


def cancelling(seed, c):
    """[I, cG, -cG] [B; Z; Z] = B, where the first atom of B is the mean of the next two."""
    rng = np.random.default_rng(seed)
    G, B = (rng.integers(-8, 9, shape).astype(float) for shape in ((8, 8), (8, 12)))
    B[:, 0] = (B[:, 1] + B[:, 2]) / 2
    Z = rng.normal(size=(8, 12))
    factors = np.hstack([np.eye(8), c * G, -c * G]), np.vstack([B, Z, Z])
    return B, dictionaries.Composed(*(factor.astype(np.float32) for factor in factors))


@pytest.mark.parametrize("seed, e", [(43, 33), (31, 34), (13, 36)])
def test_products_whose_factors_cancel_round_by_their_magnitudes(seed, e):
    """The code of one atom has that of two others beside it, with the same l1 norm."""
    codes = np.eye(12)[[0, 3]]
    B, D = cancelling(seed, 2.0**e)
    assert not certify_code(D, codes @ B.T, codes, finish=None).holds[0]
    B, D = cancelling(seed, 2.0**10)
    found = certify_code(D, codes @ B.T, codes, finish=None)
    assert not found.holds[0]
    assert found.unique[1] and found.sigma[1] <= np.linalg.norm(B[:, 3])


def test_a_batch_in_parts_is_the_batch(monkeypatch):
    X, Y, found = batch()
    monkeypatch.setattr(_codes, "_CHUNK", 8 * 16**2)  # eight supports of 16 at a time, of 28
    parts = certify_code(drawn(), Y, np.sign(X))
    np.testing.assert_array_equal(parts.unique, found.unique)
    np.testing.assert_allclose(parts.x, found.x, atol=1e-13)
    empty = certify_code(drawn(), Y[:0], X[:0])
    assert empty.x.shape == (0, N) and empty.unique.shape == (0,)


@pytest.mark.slow
def test_fifty_nonzeros_of_five_hundred(float32_by_default):
    """250 x 500: the codes of subspace pursuit from D'y, where users have float32 by default."""
    D, X = drawn(0, 250, 500), sparse(0, 60, 50, 500)
    Y = X @ D.T
    found = certify_code(jnp.asarray(D, np.float32), Y, Y @ D, finish=12)
    assert not found.unique.any()  # D was rounded
    found = certify_code(D.astype(np.float64), Y, Y @ D, finish=12)
    assert found.unique.mean() >= 0.95
    np.testing.assert_allclose(found.x[found.unique], X[found.unique], atol=1e-12)
    assert 60 <= np.median(found.error_gain) <= 250
    none = certify_code(D, sparse(1, 20, 100, 500) @ D.T, sparse(1, 20, 100, 500))
    assert none.unique.mean() <= 0.2


@pytest.mark.parametrize("size", [1e59, 1e-59])
def test_atoms_of_any_size_that_is_taken_have_the_same_certificate(size):
    D, X = drawn(), np.zeros((2, N))
    X[:, [3, 20, 40]] = 1.0, -2.0, 0.5
    one, found = certify_code(D, X @ D.T, X), certify_code(size * D, size * (X @ D.T), X)
    assert one.unique.all() and found.unique.all()
    np.testing.assert_allclose(found.x, X, atol=1e-14)  # some roundings of 2
    assert found.sigma == pytest.approx(size * one.sigma, rel=1e-9)
    assert found.error_gain == pytest.approx(one.error_gain / size, rel=1e-6)
