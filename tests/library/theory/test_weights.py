"""The closed-form weights against the quadratic programs that they solve."""

import os
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unit

from unrolled import dictionaries, theory

EPS = np.finfo(np.float64).eps


def gaussian(seed, m, d):
    return unit(np.random.default_rng(seed).normal(size=(m, d)))


def kkt(S, atoms):
    """min_w w'S w subject to w . a = 1, column by column, from its KKT system."""
    m = len(S)
    columns = []
    for a in atoms.T:
        system = np.block([[2 * S, a[:, None]], [a[None, :], np.zeros((1, 1))]])
        columns.append(np.linalg.lstsq(system, np.append(np.zeros(m), 1.0))[0][:m])
    return np.column_stack(columns)


# A solve loses cond(S) eps, S = D D' on its range; the largest, 1.7e4, is that of the square D.
SOLVE = 2e4 * EPS


@pytest.mark.few(2)
@pytest.mark.parametrize("m, d", [(8, 20), (12, 12), (15, 6), (1, 4), (5, 1)])
def test_weights_solve_the_quadratic_program(m, d):
    D = gaussian(0, m, d)
    W = np.asarray(theory.frobenius_weights(D))
    assert np.sum(W * D, axis=0) == pytest.approx(np.ones(d), abs=4 * m * EPS)
    assert np.linalg.norm(W.T @ D) == pytest.approx(
        np.linalg.norm(kkt(D @ D.T, D).T @ D), rel=SOLVE
    )
    if d >= m:  # S is invertible, so the optimum is one point
        assert W == pytest.approx(kkt(D @ D.T, D), rel=SOLVE, abs=SOLVE)
    else:  # the atoms are independent: W'D = I, coherence 0
        assert W.T @ D == pytest.approx(np.eye(d), abs=SOLVE)


def test_weights_are_stationary_against_projected_gradient_descent():
    D = gaussian(1, 10, 18)
    S, W = D @ D.T, D.copy()
    step = 1 / np.linalg.norm(S, 2)
    for _ in range(5000):  # contracts by 1 - 1/cond(S) per step, cond(S) < 100
        W -= step * (S @ W)
        W += D * (1 - np.sum(W * D, axis=0))  # the projection on w . d = 1, for unit atoms
    assert np.linalg.cond(S) < 100
    assert np.asarray(theory.frobenius_weights(D)) == pytest.approx(W, abs=SOLVE)


def test_rank_deficient_dictionaries_are_solved_within_their_span():
    D = unit(
        np.random.default_rng(2).normal(size=(9, 4)) @ np.random.default_rng(3).normal(size=(4, 15))
    )
    W = np.asarray(theory.frobenius_weights(D))
    Q = np.linalg.svd(D)[0][:, :4]  # a basis of the span, in which S is invertible
    assert W == pytest.approx(Q @ kkt(Q.T @ D @ D.T @ Q, Q.T @ D), abs=SOLVE)
    assert np.sum(W * D, axis=0) == pytest.approx(np.ones(15), abs=36 * EPS)


def test_tight_frames_are_their_own_weights():
    for D in (dictionaries.paley(13), dictionaries.identity_hadamard(8)):
        assert theory.frobenius_weights(D) == pytest.approx(np.asarray(D), abs=100 * EPS)


def test_weights_scale_inversely_with_their_atoms():
    D, scales = gaussian(4, 6, 10), np.random.default_rng(0).uniform(0.5, 2, 10)
    W = np.asarray(theory.frobenius_weights(D * 3.0))
    assert W == pytest.approx(np.asarray(theory.frobenius_weights(D)) / 3, rel=SOLVE, abs=SOLVE)
    assert np.sum(
        np.asarray(theory.frobenius_weights(D * scales)) * D * scales, axis=0
    ) == pytest.approx(1.0, abs=24 * EPS)


# Convolutions.


def window_system(filters, stride):
    """S on the entries of a window: every filter at every shift by a multiple of the stride."""
    n_atoms, channels, *kernel = filters.shape
    reach = [range(-((n - 1) // t), (n - 1) // t + 1) for n, t in zip(kernel, stride)]
    Q = np.zeros((channels * int(np.prod(kernel)),) * 2)
    for shift in np.stack(np.meshgrid(*reach, indexing="ij"), -1).reshape(-1, len(kernel)):
        shift = shift * np.asarray(stride)
        here = tuple(slice(max(0, s), min(n, n + s)) for s, n in zip(shift, kernel))
        there = tuple(slice(max(0, -s), min(n, n - s)) for s, n in zip(shift, kernel))
        for f in filters:
            cut = np.zeros_like(f)
            cut[(slice(None), *here)] = f[(slice(None), *there)]
            Q += np.outer(cut, cut)
    return Q


CASES = {
    "1-D": ((3, 1, 5), (16,), (1,)),
    "1-D, two channels, stride 2": ((3, 2, 4), (12,), (2,)),
    "1-D, stride above the kernel": ((2, 1, 3), (16,), (4,)),
    "2-D": ((2, 1, 3, 3), (8, 8), (1, 1)),
    "2-D, strides 1 and 2": ((3, 2, 3, 2), (7, 8), (1, 2)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("boundary", ["circular", "valid"])
@pytest.mark.parametrize("name", CASES)
def test_convolutional_weights_solve_the_small_system(name, boundary):
    shape, signal, stride = CASES[name]
    filters = np.random.default_rng(7).normal(size=shape)
    W = jax.jit(theory.frobenius_weights)(dictionaries.Conv(filters, signal, stride, boundary))
    flat = filters.reshape(shape[0], -1).T
    expected = kkt(window_system(filters, stride), flat).T.reshape(shape)
    assert (W.signal_shape, W.stride, W.boundary) == (signal, stride, boundary)
    # Coordinates that no shift reaches have no unique weight; the closed form and lstsq both set it
    # to 0.
    assert np.asarray(W.filters) == pytest.approx(expected, rel=SOLVE, abs=SOLVE)
    own = np.sum(np.asarray(W.filters).reshape(shape[0], -1).T * flat, axis=0)
    assert own == pytest.approx(np.ones(shape[0]), abs=4 * len(flat) * EPS)


# Long, overlapping round the circle, and as long as the kernel.
@pytest.mark.few(1)
@pytest.mark.parametrize("N", [12, 6, 4])
def test_circular_weights_are_the_dense_optimum_with_the_support_of_the_filter(N):
    n, filters = 4, np.random.default_rng(8).normal(size=(2, 1, 4))
    padded = np.pad(filters[:, 0], ((0, 0), (0, N - n)))
    D = np.column_stack([np.roll(f, i) for f in padded for i in range(N)])
    expected = kkt((D @ D.T)[:n, :n], filters[:, 0].T)
    W = theory.frobenius_weights(dictionaries.Conv(filters, N, boundary="circular"))
    assert np.asarray(W.filters)[:, 0].T == pytest.approx(expected, rel=SOLVE, abs=SOLVE)


@pytest.mark.slow
def test_circular_weights_beat_every_other_bank_of_the_same_support():
    rng = np.random.default_rng(9)
    D = dictionaries.normalize(
        dictionaries.Conv(rng.normal(size=(3, 1, 4)), 10, boundary="circular")
    )[0]
    W, filters = np.asarray(theory.frobenius_weights(D).filters), np.asarray(D.filters)

    @jax.jit
    def energy(weights):
        bank = dictionaries.Conv(weights, 10, boundary="circular")
        return jnp.sum((dictionaries.dense(bank).T @ dictionaries.dense(D)) ** 2)

    least = float(energy(W))
    for size in (1e-3, 1e-1, 1.0):
        nudge = rng.normal(size=W.shape) * size
        nudge -= filters * np.sum(nudge * filters, axis=(1, 2), keepdims=True)  # keep w . d = 1
        assert energy(W + nudge) > least
    assert energy(filters) > least


@pytest.mark.parametrize("shape", [(7, 61), (61, 7)])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_no_array_has_the_larger_dimension_twice(shape, ridge):
    """40,000 atoms would need 6 GB for one in float32."""

    def call(D):
        return theory.frobenius_weights(D, ridge)

    for function in (call, jax.grad(lambda D: call(D).sum())):
        assert "61,61]" not in str(jax.make_jaxpr(function)(gaussian(0, *shape)))


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
@pytest.mark.parametrize("cond", [1e3, 1e5])
def test_weights_of_ill_conditioned_dictionaries_are_those_of_exact_arithmetic(shape, cond):
    U, S, V = np.linalg.svd(gaussian(2, *shape), full_matrices=False)
    D = (U * np.geomspace(1, 1 / cond, len(S))) @ V
    # (A A')^+ A = A (A'A)^-1 where A is tall
    A = D if shape[0] <= shape[1] else D.T
    exact = solved_in_fractions(A)
    exact = exact if A is D else exact.T
    exact = exact / np.sum(exact * D, 0)
    off = np.linalg.norm(theory.frobenius_weights(D) - exact, axis=0)
    # A decomposition with an error of eps norm(A, 2) changes the pseudo-inverse by cond eps.
    assert (off <= 4 * cond * EPS * np.linalg.norm(exact, axis=0)).all()


def solved_in_fractions(A):
    """(A A')^-1 A, exactly, by elimination."""
    A = [list(map(Fraction, row)) for row in A.tolist()]
    rows = [[sum(p * q for p, q in zip(a, b)) for b in A] + a for a in A]
    for k in range(len(rows)):
        rows[k] = pivot = [v / rows[k][k] for v in rows[k]]
        rows = [r if r is pivot else [v - r[k] * p for v, p in zip(r, pivot)] for r in rows]
    return np.array(rows, float)[:, len(A) :]


# With a ridge.


@pytest.mark.few(5)
@pytest.mark.parametrize("ridge", [1e-6, 0.1, 3.0])
@pytest.mark.parametrize("m, d", [(8, 20), (12, 12), (15, 6), (1, 4), (5, 1)])
def test_weights_with_a_ridge_solve_their_quadratic_program(m, d, ridge):
    D = gaussian(0, m, d)
    W = np.asarray(theory.frobenius_weights(D, ridge))
    S = D @ D.T + ridge * np.eye(m)
    # cond(S) eps, with cond(S) up to 1e6 for the tall D.
    assert W == pytest.approx(kkt(S, D), rel=1e-8, abs=1e-8)
    assert np.sum(W * D, axis=0) == pytest.approx(np.ones(d), abs=4 * m * EPS)


def test_no_weights_have_a_lower_ridged_energy():
    D, rng = gaussian(1, 10, 18), np.random.default_rng(0)
    for ridge in (0.05, 2.0):
        W = np.asarray(theory.frobenius_weights(D, ridge))
        energy = np.sum((W.T @ D) ** 2) + ridge * np.sum(W**2)
        for size in (1e-3, 1.0):
            other = W + size * rng.normal(size=W.shape)
            other /= np.sum(other * D, axis=0)
            assert np.sum((other.T @ D) ** 2) + ridge * np.sum(other**2) > energy


def test_a_ridge_is_the_trade_of_noise_against_interference():
    """With codes of variance v and noise of variance s^2, ridge s^2 / v minimises the error."""
    D, v, noise = gaussian(2, 8, 20), 0.7, 0.4

    def error(W):  # of w_i . (D x + e) - x_i, in expectation
        products = W.T @ D - np.eye(20)
        return v * np.sum(products**2) + noise**2 * np.sum(W**2)

    best = error(np.asarray(theory.frobenius_weights(D, noise**2 / v)))
    assert all(
        error(np.asarray(theory.frobenius_weights(D, r))) > best for r in (0.0, 0.1, 0.5, 10.0)
    )


def test_a_large_ridge_gives_the_atoms_and_a_small_one_the_plain_weights():
    D = gaussian(3, 6, 10)
    for ridge in (1e8, 1e30, 1e300):
        assert theory.frobenius_weights(D, ridge) == pytest.approx(D, abs=1e2 / ridge + 10 * EPS)
    assert theory.frobenius_weights(D, 0) == pytest.approx(
        np.asarray(theory.frobenius_weights(D)), abs=0
    )
    assert theory.frobenius_weights(D, 1e-12) == pytest.approx(
        np.asarray(theory.frobenius_weights(D)), abs=1e-9
    )


@pytest.mark.few(4)
@pytest.mark.parametrize("ridge", [1e-8, 1e-12, 1e-16, 1e-300])
@pytest.mark.parametrize("shape", [(9, 4), (9, 15)])
def test_a_small_ridge_is_harmless_where_the_rank_is_deficient(shape, ridge):
    D = unit(
        np.random.default_rng(2).normal(size=(9, 4))
        @ np.random.default_rng(3).normal(size=(4, shape[1]))
    )
    W = np.asarray(theory.frobenius_weights(D, ridge))
    Q = np.linalg.svd(D)[0][:, :4]
    assert np.abs(W - Q @ Q.T @ W).max() <= 1e-5  # the weights lie in the span of the atoms
    # 1e-8 over the least singular value.
    assert W == pytest.approx(np.asarray(theory.frobenius_weights(D)), abs=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_a_traced_ridge_may_be_zero(shape):
    D = gaussian(4, *shape)
    traced = jax.jit(theory.frobenius_weights)
    for ridge in (0.0, 0.3):
        expected = np.asarray(theory.frobenius_weights(D, ridge))
        assert traced(D, ridge) == pytest.approx(expected, rel=SOLVE, abs=SOLVE)


@pytest.mark.parametrize("boundary", ["circular", "valid"])
def test_convolutional_weights_with_a_ridge_solve_the_small_system(boundary):
    shape, signal, stride = CASES["1-D, two channels, stride 2"]
    filters = np.random.default_rng(7).normal(size=shape)
    D, solve = (
        dictionaries.Conv(filters, signal, stride, boundary),
        jax.jit(theory.frobenius_weights),
    )
    flat = filters.reshape(shape[0], -1).T
    for ridge in (0.3, 1e-3):
        expected = kkt(window_system(filters, stride) + ridge * np.eye(len(flat)), flat).T.reshape(
            shape
        )
        assert np.asarray(solve(D, ridge).filters) == pytest.approx(expected, rel=SOLVE, abs=SOLVE)
    atoms = np.asarray(solve(D, 1e12).filters).reshape(shape[0], -1).T
    assert atoms == pytest.approx(flat / np.sum(flat**2, 0), abs=1e-9)


# Errors, and the public benchmark.


@pytest.mark.slow
@pytest.mark.parametrize("turn", [np.pi / 4, 0.0, 0.6])
def test_an_atom_that_the_pseudo_inverse_cuts_is_refused(turn):
    """Its weights were 0 / 0, or those of its part among the other atoms."""
    D = np.array([[1.0, np.sin(turn)], [0.0, np.cos(turn)]]) * [1, 1e-7]
    with pytest.raises(ValueError, match=r"atoms \[1\] are too small next to others in float32"):
        theory.frobenius_weights(D.astype(np.float32))
    W = jax.jit(theory.frobenius_weights)(D.astype(np.float32))
    assert np.isfinite(W[:, 0]).all() and np.isnan(W[:, 1]).all()
    assert np.asarray(theory.frobenius_weights(D)) == pytest.approx(np.linalg.inv(D).T, rel=1e-6)
    assert np.isfinite(theory.frobenius_weights(D.astype(np.float32), 0.1)).all()
    # Small atoms in the span of the others are kept.
    spanned = np.array([[1.0, 0.0, 1e-4], [0.0, 1.0, 1e-4]], np.float32)
    W = np.asarray(theory.frobenius_weights(spanned))
    assert np.sum(W * spanned, 0) == pytest.approx(1, rel=1e-5)
    assert W[:, 2] == pytest.approx(5e3, rel=1e-2)


@pytest.mark.slow
def test_a_small_filter_that_the_pseudo_inverse_cuts_is_refused():
    filters = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    filters[1] *= 1e-4
    D = dictionaries.Conv(filters, 8, boundary="circular")
    with pytest.raises(ValueError, match=r"atoms \[1\] are too small next to others in float32"):
        theory.frobenius_weights(D)
    D = dictionaries.Conv(filters.astype(float), 8, boundary="circular")
    assert np.isfinite(theory.frobenius_weights(D).filters).all()


@pytest.mark.slow
@pytest.mark.parametrize("signal, stride", [(8, 3), (2, 1)])
def test_atoms_that_are_not_shifts_of_each_other_get_dense_weights(signal, stride):
    """A stride that does not divide the circle, and a kernel longer than it."""
    D = dictionaries.Conv(
        np.array([[[1.0, 2.0, -1.0]], [[0.5, 0.0, 1.0]]]), signal, stride, "circular"
    )
    W = theory.frobenius_weights(D)
    assert W.shape == D.shape and not isinstance(W, dictionaries.Conv)
    np.testing.assert_array_equal(W, theory.frobenius_weights(dictionaries.dense(D)))


@pytest.mark.skipif("UNROLLED_DATA" not in os.environ, reason="UNROLLED_DATA is not set")
def test_the_public_lista_benchmark_has_the_known_optimum():
    path = Path(os.environ["UNROLLED_DATA"]) / "lista_benchmark" / "D.mat"
    if not path.exists():
        pytest.skip(f"there is no {path.name}")
    from scipy.io import loadmat

    D = loadmat(path)["D"]
    products = np.asarray(theory.frobenius_weights(D)).T @ D
    assert np.diag(products) == pytest.approx(np.ones(500), abs=250 * EPS)
    off = products - np.diag(np.diag(products))
    # The known numbers to their last digit; the atoms were made in float32.
    assert np.sum(off**2) == pytest.approx(502.270929, abs=5e-7)
    assert np.abs(off).max() == pytest.approx(0.206865, abs=5e-7)
