"""Theorems 1, 2 and equation (6) against enumeration; codes on given supports (equation 7)."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import coherence_of
from oracles import unit
from scipy.optimize import linprog

from unrolled import dictionaries, theory
from unrolled.theory._uniqueness import recover_on_supports, uniqueness


def spark(D):
    """The least number of dependent columns, d + 1 if all are independent."""
    d = D.shape[1]
    for k in range(1, d + 1):
        columns = np.stack([D[:, S] for S in map(list, itertools.combinations(range(d), k))])
        # Unit columns: rounding is below 1e-14.
        if k > len(D) or (np.linalg.svd(columns, compute_uv=False)[:, -1] < 1e-10).any():
            return k
    return d + 1


def near_orthogonal(rng, m, d):
    return unit(np.eye(m, d) + 0.15 * rng.normal(size=(m, d)) / math.sqrt(m))


@functools.cache
def load(name, dtype="float64"):
    """A dictionary padded by zero rows to 10, so that all kinds share one compilation."""
    rng = np.random.default_rng(0)
    D = {
        "gaussian": lambda: unit(rng.normal(size=(5, 8))),
        "wide gaussian": lambda: unit(rng.normal(size=(3, 8))),
        "identity_hadamard": lambda: dictionaries.identity_hadamard(4),
        "paley": lambda: np.asarray(dictionaries.paley(13))[:, :8],
        "transversal": lambda: dictionaries.transversal(jax.random.key(0), 3, 3, 8),
        "near-orthogonal": lambda: near_orthogonal(rng, 10, 8),
        "orthonormal": lambda: np.linalg.qr(rng.normal(size=(8, 8)))[0],
        "duplicates": lambda: np.eye(8)[:, [0, 0, 1, 2, 3, 4, 5, 6]],
    }[name]()
    return jnp.asarray(np.pad(D, ((0, 10 - len(D)), (0, 0))), dtype)


KINDS = ["gaussian", "wide gaussian", "identity_hadamard", "paley",
         "transversal", "near-orthogonal", "orthonormal",
         "duplicates"]  # fmt: skip


# Theorem 1


@pytest.mark.few(4)
@pytest.mark.parametrize("name", KINDS)
def test_certified_sparsities_are_below_half_the_spark(name):
    D = np.asarray(load(name))
    mu, least = coherence_of(D), spark(D)
    for s in range(9):
        found = uniqueness([D], [s])
        assert (
            found.holds
            == found.unique[0]
            == found.l1[0]
            == (s == 0 or s <= theory.max_sparsity(mu, 8))
        )
        assert not found.holds or 2 * s < least or least == 9  # 9: no columns are dependent
        # 10 terms of an inner product.
        assert 1 / (2 * found.bounds[0] - 1) == pytest.approx(mu, abs=1e-14)
        assert found.slack[0] == found.bounds[0] - s and found.path[0] == 1
    assert found.holds == (name == "orthonormal")


def test_one_atom_is_always_unique():
    found = uniqueness([np.ones((1, 1))], [1])
    assert found.holds and found.bounds[0] == found.slack[0] == math.inf


def test_certificates_of_random_dictionaries_are_sound_for_every_pair_of_counts():
    rng, certified, missed = np.random.default_rng(1), 0, 0
    for n in range(40):
        D = unit(rng.normal(size=(6, 8)) + 3 * (n % 2) * np.eye(6, 8))
        least, total = spark(D), 1 + 1 / coherence_of(D)
        for pair in range(2, 9):
            c, s = pair // 2, pair - pair // 2
            found = uniqueness([D], [s], counts=[c]).holds
            assert found == (pair < total)  # none is within rounding of an integer
            assert not found or pair < least
            certified, missed = certified + found, missed + (not found and pair >= least)
    assert certified >= 30 and missed >= 30


def test_the_bound_must_be_assumed_for_the_sparsity_not_for_one_solution():
    # C-1: e_1 has 1 < 1.207 nonzeros, yet with two there is another solution.
    D = unit(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))
    other = np.array([0.0, -1.0, math.sqrt(2)])
    assert D @ other == pytest.approx(np.eye(2)[0], abs=1e-15)
    assert 1 < theory.sparsity_bound(coherence_of(D))  # the printed hypothesis
    assert not uniqueness([D], [2], counts=[1]).holds
    assert uniqueness([D], [1], counts=[1]).holds and uniqueness([D], [1]).holds


def test_bounds_are_strict_and_guarded():
    # A duplicate atom: mu = 1, bound 1; the code of one nonzero is not unique, for l0 as for l1
    # (C-5).
    found = uniqueness([load("duplicates")], [1])
    assert found.bounds[0] == 1 and not found.holds and not found.l1[0]
    assert uniqueness([load("duplicates")], [0]).holds
    # mu = 1/3: a regular simplex of four dependent vectors; the bound is 2, also where it is
    # rounded up.
    D = np.zeros((6, 4))
    for i, (j, k) in enumerate(itertools.combinations(range(4), 2)):
        D[i, j], D[i, k] = 1 / math.sqrt(3), -1 / math.sqrt(3)
    assert spark(D) == 4 and coherence_of(D) == pytest.approx(1 / 3, abs=1e-15)
    for mu in (coherence_of, lambda D: 1 / 3 * (1 - 1e-12), lambda D: 1 / 3 * (1 + 1e-12)):
        assert (
            uniqueness([D], [1], coherence=mu).holds
            and not uniqueness([D], [2], coherence=mu).holds
        )
        assert not uniqueness([D], [2], coherence=mu).l1[0]
    # In float32 it may be too low by its rounding.
    below = np.nextafter(np.float32(1 / 3), np.float32(0))
    assert not uniqueness([D], [2], coherence=lambda D: below).holds


def test_counts_and_sparsities_may_be_traded():
    D = load("identity_hadamard")  # 1 + 1/mu = 3 = spark
    holds = {(c, s): uniqueness([D], [s], counts=[c]).holds for c in range(4) for s in range(4)}
    assert holds == {(c, s): c + s < 3 for c in range(4) for s in range(4)}
    found = uniqueness([D], [3], counts=[0])
    # Basis pursuit finds 0 whatever else is allowed.
    assert found.slack[0] == 0 and not found.holds and found.l1[0]


# Equation (6)


def subspaces(D2, s1, s2):
    """Bases of all {z on S_2 : D_2 z on S_1}, |S_j| = s_j, that are not 0."""
    d1, d2 = D2.shape
    bases = []
    for S2 in itertools.combinations(range(d2), s2):
        for S1 in itertools.combinations(range(d1), s1):
            _, values, V = np.linalg.svd(np.delete(D2, S1, axis=0)[:, S2])
            kernel = V[np.sum(values > 1e-10) :]
            if len(kernel):
                z = np.zeros((d2, len(kernel)))
                z[list(S2)] = kernel.T
                bases.append(z)
    return bases


def unique_by_enumeration(D1, D2, s1, s2):
    """Whether x_1 and x_2 are unique for every y: D_1 D_2 is injective on all sums of subspaces."""
    rank = functools.partial(np.linalg.matrix_rank, tol=1e-9)
    unique = [True, True]
    for B, C in itertools.combinations_with_replacement(subspaces(D2, s1, s2), 2):
        both = np.hstack([B, C])
        image = rank(D1 @ D2 @ both)
        unique[0] &= bool(image == rank(D2 @ both))
        unique[1] &= bool(image == rank(both))
    return unique


def test_certified_layers_of_random_chains_are_unique_by_enumeration():
    rng = np.random.default_rng(0)
    seen = {"layer alone": 0, "product": 0, "by a deeper layer": 0, "several solutions": 0}
    for _ in range(60):
        atoms = np.hstack([np.eye(4), dictionaries.identity_hadamard(4)[:, 4:]])
        D1 = atoms[:, rng.integers(8, size=5)] * rng.choice([-1, 1], 5)
        D2 = unit(rng.choice([-1, 0, 0, 0, 1], (5, 4)) + 2 * np.eye(5)[:, rng.permutation(5)[:4]])
        s = rng.integers(1, 3), rng.integers(1, 3)
        found, truth = uniqueness([D1, D2], s), unique_by_enumeration(D1, D2, *s)
        assert (truth >= found.unique).all()
        seen["layer alone"] += found.unique[1] and found.path[1] == 2
        seen["product"] += found.unique[1] and found.path[1] == 1
        seen["by a deeper layer"] += found.unique[0] and found.slack[0] <= 0
        seen["several solutions"] += not all(truth)
    assert min(seen.values()) >= 3, seen


def test_the_product_from_j_needs_the_layer_before_j_and_certifies_all_below():
    # C-3: D_1 has every atom twice, so x_1 alone is not unique; D_2 uses the first of each pair,
    # and D_1 D_2 = I.
    D1, D2 = np.tile(np.eye(4), 2), np.eye(8, 4)
    # D_[1,2] x_2 lies where y does, not where x_1 does.
    assert dictionaries.Composed(D1, D2).shape == (4, 4)
    found = uniqueness([D1, D2], [2, 2])
    assert found.holds and found.path.tolist() == [1, 1]
    assert found.bounds.tolist() == [1, math.inf] and found.slack[0] == -1
    assert unique_by_enumeration(D1, D2, 2, 2) == [True, True]
    # The printed requirement, x_1 unique for D_[1,2], is not met by x_1 alone: it would certify
    # neither.
    assert not uniqueness([D1], [2]).holds
    # Basis pursuit proceeds by layer and cannot use the product: it may return the other atom.
    assert found.l1.tolist() == [False, False]
    assert uniqueness([D1[:, :4], D2[:4]], [2, 2]).l1.tolist() == [True, True]
    assert uniqueness([np.eye(4), D1], [2, 2]).l1.tolist() == [True, False]


def test_a_layer_certified_late_opens_products_for_the_others():
    # x_1 is not unique alone, nor is x_2 through D_1 D_2 or alone; x_3 is through D_1 D_2 D_3 = I.
    D1 = np.tile(np.eye(4), 2)
    D2 = np.eye(8)[:, [0, 0, 1, 1, 2, 3]]
    D3 = np.eye(6)[:, [0, 2, 4, 5]]
    found = uniqueness([D1, D2, D3], [2, 2, 2], coherence=coherence_of)
    assert found.unique.tolist() == [True] * 3 and found.path[2] in (1, 2, 3)
    assert not uniqueness([D1, D2], [2, 2], coherence=coherence_of).unique.any()


def test_bounds_are_the_best_over_the_products_that_may_be_used():
    rng = np.random.default_rng(3)
    for _ in range(30):
        Ds = [near_orthogonal(rng, 6, 7), near_orthogonal(rng, 7, 8), near_orthogonal(rng, 8, 8)]
        s = rng.integers(0, 4, 3)
        found = uniqueness(Ds, s, coherence=coherence_of)
        known = [True, *found.unique]
        for j0 in (1, 2, 3):
            mus = {
                j: coherence_of(functools.reduce(np.matmul, Ds[j - 1 : j0]))
                for j in range(1, j0 + 1)
                if known[j - 1]
            }
            assert found.bounds[j0 - 1] == pytest.approx((1 + 1 / min(mus.values())) / 2, rel=1e-9)
            assert mus[found.path[j0 - 1]] == pytest.approx(min(mus.values()), rel=1e-12)
            certified = s[j0 - 1] == 0 or s[j0 - 1] < found.bounds[j0 - 1]
            assert known[j0] == (certified or any(known[j0 + 1 :]))


def test_products_with_a_vanishing_column_are_not_used():
    D1 = unit(np.random.default_rng(4).normal(size=(4, 6)))
    for kernel in (np.linalg.svd(D1)[2][-1], None):
        if kernel is None:  # cancels exactly
            D1, kernel = np.tile(np.eye(4), 2)[:, :6], np.array([1, 0, 0, 0, -1, 0]) / math.sqrt(2)
        D2 = np.column_stack([kernel, np.eye(6)[:, 1]])
        assert np.linalg.norm(D1 @ D2[:, 0]) < 1e-15
        found = uniqueness([D1, D2], [2, 1])  # x_1 is not unique, so D_2 alone may not be used
        assert found.unique.tolist() == [False, False]
        assert found.bounds[1] == 0 and found.path[1] == 0 and found.slack[1] == -1
        # 0 is the only code, and x_1 = D_2 0.
        assert uniqueness([D1, D2], [2, 0]).unique.tolist() == [True, True]


@pytest.mark.slow
def test_structured_dictionaries_and_their_products_are_those_of_the_matrices():
    # Filters of two taps at stride 2 against a few columns of the identity.
    conv = dictionaries.Conv(np.array([[[0.8, 0.6]], [[0.0, 1.0]]]), 8, 2)
    A, B = np.zeros((8, 8)), np.eye(8)[:, [0, 1, 2, 5]]
    for p in range(4):
        A[2 * p : 2 * p + 2, p], A[2 * p + 1, 4 + p] = (0.8, 0.6), 1
    found = uniqueness([conv, dictionaries.Sparse(np.eye(8), B)], [1, 2])
    assert found.unique.tolist() == [True, True] and found.path.tolist() == [1, 2]
    assert (
        found.bounds[0] == pytest.approx((1 + 1 / 0.6) / 2, rel=1e-9)
        and found.bounds[1] == math.inf
    )
    assert coherence_of(A) == pytest.approx(0.6) and coherence_of(A @ B) == pytest.approx(0.6)


# Other coherences, and basis pursuit (Theorem 2)


def basis_pursuit(D, y):
    d = D.shape[1]
    done = linprog(np.ones(2 * d), A_eq=np.hstack([D, -D]), b_eq=y, method="highs")
    return done.x[:d] - done.x[d:]


def mu_of_weights(W, D):
    G = np.abs(W.T @ np.asarray(D))
    return np.max(G - np.diag(np.diag(G)), initial=0.0)


def least_coherent_weights(D):
    """Columns w_i with w_i . d_i = 1 and the least max |w_i . d_j|, one linear program each."""
    m, d = D.shape
    W = np.zeros((m, d))
    for i in range(d):
        A = np.delete(D, i, axis=1).T
        A = np.block([[A, -np.ones((d - 1, 1))], [-A, -np.ones((d - 1, 1))]])
        target = np.append(D[:, i], 0.0)[None]
        w = linprog(
            np.eye(m + 1)[m], A, np.zeros(len(A)), target, [1.0], (None, None), method="highs"
        ).x[:m]
        W[:, i] = w / (w @ D[:, i])
    return W


def test_smaller_coherences_certify_more_for_l0_and_l1():
    # [I | DCT]: the mutual coherence admits one nonzero, the generalized coherence two.
    D = np.asarray(dictionaries.Concatenated(np.eye(16), dictionaries.dct(16, 16)) @ np.eye(32))
    W = least_coherent_weights(D)
    by_W = functools.partial(uniqueness, [D], coherence=lambda D: mu_of_weights(W, D))
    assert uniqueness([D], [1]).holds and not uniqueness([D], [2]).holds
    assert by_W([2]).holds and by_W([2]).l1[0] and not by_W([3]).holds
    rng = np.random.default_rng(6)
    for _ in range(60):
        x = np.zeros(32)
        x[rng.choice(32, 2, replace=False)] = rng.normal(size=2)
        # Up to the tolerance of the linear program.
        assert basis_pursuit(D, D @ x) == pytest.approx(x, abs=1e-7)


def null_space_constant(D, s):
    """max norm(h_S, 1) / norm(h, 1) over kernel vectors h, |S| = s: below 1/2 iff l1 succeeds."""
    d, best = D.shape[1], 0.0
    for S in itertools.combinations(range(d), s):
        for signs in itertools.product([1], *[[-1, 1]] * (s - 1)):
            c = np.zeros(d)
            c[list(S)] = signs
            done = linprog(
                -np.append(c, -c),
                np.ones((1, 2 * d)), [1.0], np.hstack([D, -D]), np.zeros(len(D)), method="highs",
            )  # fmt: skip
            best = max(best, -done.fun)
    return best


@pytest.mark.parametrize("name, most", [("gaussian", 1), ("identity_hadamard", 1), ("paley", 2)])
def test_l1_certificates_imply_the_null_space_property(name, most):
    D = np.asarray(load(name))
    assert max(s for s in range(9) if uniqueness([D], [s]).l1[0]) == most
    assert null_space_constant(D, most) < 0.5


def test_norms_within_the_tolerance_for_unit_atoms_count_against_l1():
    # The first atom, 1.8e-4 shorter than its neighbours on both sides, costs more than half of each
    # of them: basis pursuit takes these, although 1 < (1 + 1/mu) / 2.
    c = 1 - 5e-5
    D = np.array([[1, c, c], [0, math.sqrt(1 - c * c), -math.sqrt(1 - c * c)]])
    assert uniqueness([D], [1]).l1[0] and null_space_constant(D, 1) < 0.5
    D = D * np.array([1 - 9e-5, 1 + 9e-5, 1 + 9e-5])
    found = uniqueness([D], [1])
    assert found.holds and not found.l1[0] and null_space_constant(D, 1) > 0.5


@pytest.mark.slow
def test_basis_pursuit_layer_after_layer_finds_certified_chains():
    rng = np.random.default_rng(7)
    D1 = np.asarray(dictionaries.identity_hadamard(16))
    D2 = np.pad(
        np.asarray(dictionaries.transversal(jax.random.key(0), 2, 13, 40)), ((0, 6), (0, 0))
    )
    found = uniqueness([D1, D2], [2, 1], coherence=coherence_of)
    assert found.holds and found.l1.all()
    for _ in range(30):
        x2 = rng.normal() * np.eye(40)[rng.integers(40)]
        x1 = basis_pursuit(D1, D1 @ D2 @ x2)
        assert x1 == pytest.approx(D2 @ x2, abs=1e-7) and basis_pursuit(
            D2, D2 @ x2
        ) == pytest.approx(x2, abs=1e-7)


@pytest.mark.slow
def test_weights_in_closed_form_certify_where_the_mutual_coherence_does_not():
    def mu_W(D):
        D = np.asarray(D)
        W = np.linalg.pinv(D).T
        return mu_of_weights(W / np.sum(W * D, axis=0), D)

    D = unit(np.random.default_rng(8).normal(size=(50, 52)))
    D2 = near_orthogonal(np.random.default_rng(9), 52, 60)
    assert uniqueness([D], [2], coherence=mu_W).holds and not uniqueness([D], [2]).holds
    # Behind a layer that is not unique only the product counts, and it is normalised.
    found = uniqueness([D, D2], [20, 20], coherence=mu_W)
    assert not found.unique.any() and found.path.tolist() == [1, 1]
    assert found.bounds[1] == pytest.approx((1 + 1 / mu_W(unit(D @ D2))) / 2, rel=1e-9)
    assert mu_W(D @ D2) != pytest.approx(mu_W(unit(D @ D2)), rel=0.01)


# Equation (7)


def planted(rng, n):
    """n chains 3 -> 5 -> 6 of entries -1, 0, 1, with x_2 on {0, 2, 3, 5}, x_1 on {1, 2, 4}."""
    supports = [np.array([1, 2, 4]), np.array([0, 2, 3, 5])]
    D1 = rng.integers(-1, 2, (n, 3, 5)).astype(float)
    D2 = rng.choice([-1, 0, 0, 1], (n, 5, 6)).astype(float)
    D2[:, [0, 3]] *= rng.random((n, 2, 1)) < 0.5  # often no entry is forbidden
    z = rng.normal(size=(n, 4))
    K = D2[:, [0, 3]][:, :, supports[1]]
    z -= np.einsum("nij,nj->ni", np.linalg.pinv(K) @ K, z)
    X2 = np.zeros((n, 6))
    X2[:, supports[1]] = z
    return supports, D1, D2, X2


def systems(supports, D1, D2):
    """(D_1 D_2)_{S_2} and K of n chains, by numpy."""
    return (D1 @ D2)[:, :, supports[1]], np.delete(D2, supports[0], axis=1)[:, :, supports[1]]


@functools.cache
def recovery(*supports):
    return jax.jit(jax.vmap(lambda y, D1, D2: recover_on_supports(y, [D1, D2], supports)))


def recovery_of(supports):
    return recovery(*(tuple(map(int, S)) for S in supports))


def test_codes_on_supports_are_exact_where_they_are_unique():
    supports, D1, D2, X2 = planted(np.random.default_rng(0), 500)
    X1 = np.einsum("nij,nj->ni", D2, X2)
    found = jax.tree.map(np.asarray, recovery_of(supports)(np.einsum("nij,nj->ni", D1, X1), D1, D2))
    A, K = systems(supports, D1, D2)
    # Small integers: singular values are 0 up to rounding or above 1e-3, which decides the rank.
    M = np.concatenate([A, K], axis=1)
    values = np.linalg.svd(M, compute_uv=False)
    assert not ((values > 1e-12) & (values < 1e-3)).any()
    unique, kernel = values[:, -1] > 1e-3, 4 - np.linalg.matrix_rank(K)
    assert (found.unique == unique).all() and 0.1 < unique.mean() < 0.9
    assert (found.kernel_dim == kernel).all() and set(kernel) >= {2, 3, 4}
    assert found.sigma_min == pytest.approx(values[:, -1], abs=1e-13)
    # 5 terms of size 10 at most, and a condition number below 1e3.
    assert found.residual.max() < 1e-13
    for x, X in zip(found.xs, (X1, X2)):
        assert x[unique] == pytest.approx(X[unique], abs=1e-12)
    assert not found.xs[0][:, [0, 3]].any() and not found.xs[1][:, [1, 4]].any()
    # Codes that are not unique solve the chain too, with least norm.
    assert found.xs[0] == pytest.approx(np.einsum("nij,nj->ni", D2, found.xs[1]), abs=1e-12)
    assert (np.linalg.norm(found.xs[1], axis=1) <= np.linalg.norm(X2, axis=1) + 1e-12).all()


def test_the_null_space_of_the_supports_alone_does_not_decide():
    # C-4: without y every z in null(K) solves (7); with it the codes of this chain are unique.
    supports, D1, D2, X2 = planted(np.random.default_rng(1), 500)
    found = recovery_of(supports)(np.einsum("nij,njk,nk->ni", D1, D2, X2), D1, D2)
    kernel, unique = np.asarray(found.kernel_dim), np.asarray(found.unique)
    assert (unique & (kernel > 0)).sum() > 50 and (~unique & (kernel > 0)).sum() > 50
    # Its dimension is |S_J| - rank K: a bound of 5 on the nonzeros of x_2 would say one more.
    assert (kernel <= len(supports[1])).all() and (kernel == 4).any()


def test_noisy_signals_give_the_least_squares_among_codes_on_the_supports():
    rng = np.random.default_rng(2)
    supports, D1, D2, _ = planted(rng, 500)
    Y = rng.normal(size=(500, 3))
    found = jax.tree.map(np.asarray, recovery_of(supports)(Y, D1, D2))
    A, K = systems(supports, D1, D2)
    z = found.xs[1][:, supports[1]]
    assert np.einsum("nij,nj->ni", K, z) == pytest.approx(0, abs=1e-11)  # x_1 stays on its support
    assert found.xs[0] == pytest.approx(np.einsum("nij,nj->ni", D2, found.xs[1]), abs=1e-11)
    r = Y - np.einsum("nij,nj->ni", A, z)
    assert found.residual == pytest.approx(np.linalg.norm(r, axis=1), abs=1e-12)
    N = np.eye(4) - np.linalg.pinv(K) @ K
    # No other code on the supports is closer to y.
    assert np.einsum("nji,njk,nk->ni", N, A.transpose(0, 2, 1), r) == pytest.approx(0, abs=1e-11)


def test_dependence_is_decided_in_the_dtype_of_the_data(dtype):
    # Column 2 of (D_1 D_2)_{S_2} is a combination of the others, up to the rounding of its storage.
    rng, missed = np.random.default_rng(3), 0
    n, S = 500, [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2]]
    D1, D2 = rng.normal(size=(n, 6, 8)), rng.normal(size=(n, 8, 4))
    D2[1::2, :, 2] = D2[1::2, :, 0] - D2[1::2, :, 1]
    found = recovery_of(S)(*(v.astype(dtype) for v in (rng.normal(size=(n, 6)), D1, D2)))
    unique = np.asarray(found.unique)
    assert not unique[1::2].any()
    missed = (~unique[::2]).sum()
    assert missed == 0  # condition numbers of Gaussian 6 x 3 products are far below 1e4
    assert {leaf.dtype for leaf in (*found.xs, found.sigma_min, found.residual)} == {dtype}


def test_one_layer_is_least_squares_on_the_support():
    rng = np.random.default_rng(4)
    D, y, S = rng.normal(size=(6, 9)), rng.normal(size=6), [7, 2, 4]
    found = recover_on_supports(y, [D], [S])
    assert np.asarray(found.xs[0])[S] == pytest.approx(np.linalg.lstsq(D[:, S], y)[0], abs=1e-12)
    assert found.unique and found.kernel_dim == 3
    assert found.sigma_min == pytest.approx(np.linalg.svd(D[:, S], compute_uv=False)[-1], rel=1e-12)


def test_the_smallest_singular_value_decides_against_1e_10_of_the_largest():
    rng = np.random.default_rng(14)
    U, V = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (6, 3))
    recover = jax.jit(jax.vmap(lambda D: recover_on_supports(jnp.ones(6), [D], [[0, 1, 2]])))
    ratios = np.array([1e-8, 2e-10, 0.5e-10, 0.0])
    Ds = np.stack([5 * U[:, :3] * [1, 0.1, ratio] @ V for ratio in ratios])
    found = recover(Ds)
    assert found.unique.tolist() == [True, True, False, False]
    # The rounding of the largest singular value, 5.
    assert np.asarray(found.sigma_min) == pytest.approx(5 * ratios, abs=1e-14)


def test_fewer_equations_than_unknowns_have_the_smallest_singular_value_0():
    rng = np.random.default_rng(15)
    found = recovery_of([[0, 1, 2, 3], [0, 1, 2, 3]])(
        *(rng.normal(size=(200, *n)) for n in ((2,), (2, 5), (5, 4)))
    )
    assert not found.unique.any() and not found.sigma_min.any() and (found.kernel_dim == 3).all()
    assert found.residual.max() < 1e-11  # condition numbers of 2 x 3 are below 1e3


def test_three_layers_under_vmap_and_the_gradient_in_y():
    rng = np.random.default_rng(5)
    Ds = [rng.normal(size=(4, 6)), np.eye(6)[:, [0, 1, 2, 2, 4]], np.eye(5)[:, [0, 3, 4, 1]]]
    X3 = np.outer(rng.normal(size=50), [1.0, -2.0, 0.0, 0.0])
    code = lambda y: recover_on_supports(y, Ds, [[0, 2], [0, 3], [0, 1]])  # noqa: E731
    Y = X3 @ (Ds[0] @ Ds[1] @ Ds[2]).T
    found = jax.jit(jax.vmap(code))(Y)
    assert found.unique.all()
    for x, X in zip(found.xs, (X3 @ (Ds[1] @ Ds[2]).T, X3 @ Ds[2].T, X3)):
        assert np.asarray(x) == pytest.approx(X, abs=1e-12)
    jacobian = jax.jit(jax.jacobian(lambda y: code(y).xs[2]))(Y[0])
    assert np.asarray(jacobian) @ Y[0] == pytest.approx(X3[0], abs=1e-12)  # linear in y


def test_structured_dictionaries_on_supports():
    conv = dictionaries.Conv(np.random.default_rng(6).normal(size=(2, 1, 3)), 8)
    D2 = dictionaries.Sparse(np.eye(12), np.eye(12)[:, ::2])
    x2 = np.array([0.0, 1.0, 0.0, -2.0, 0.0, 0.0])
    x1 = np.zeros(12)
    x1[[2, 6]] = x2[[1, 3]]
    found = jax.jit(lambda x: recover_on_supports(conv @ x, [conv, D2], [[2, 6], [1, 3]]))(x1)
    assert found.unique and np.asarray(found.xs[1]) == pytest.approx(x2, abs=1e-13)


def test_a_stack_of_matrices_is_a_chain():
    D = unit(np.random.default_rng(0).normal(size=(4, 4)))
    one, other = (uniqueness(Ds, (1, 1)) for Ds in (np.stack([D, D]), [D, D]))
    np.testing.assert_array_equal(one.slack, other.slack)


def test_empty_supports():
    D1, D2, y = np.eye(3), np.eye(3)[:, :2], np.array([3.0, 0.0, 4.0])
    found = jax.jit(lambda y: recover_on_supports(y, [D1, D2], [[0], []]))(y)
    assert (
        found.unique
        and found.sigma_min == math.inf
        and found.kernel_dim == 0
        and found.residual == 5
    )
    assert not any(np.asarray(x).any() for x in found.xs)
    # x_1 = 0 leaves x_2 = 0.
    found = jax.jit(lambda y: recover_on_supports(y, [D1, D2], [[], [0, 1]]))(y)
    assert found.unique and found.kernel_dim == 0 and not np.asarray(found.xs[1]).any()
    found = jax.jit(lambda y: recover_on_supports(y, [np.zeros((3, 3)), D2], [[0, 1, 2], [0]]))(y)
    assert not found.unique and found.sigma_min == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_that_cancels_determines_no_code(dtype):
    """Its entries are the rounding of its terms, so no singular value of theirs counts as one."""
    supports = [range(4), [0]]
    D1 = np.array([[1, 2, -3, 0], [2, 1, -3, 0], [1, 1, -2, 0]], dtype)
    D2 = np.full((4, 1), 0.1, dtype)
    for Ds, S in (((D1, D2), supports), ((dictionaries.Composed(D1, D2),), supports[1:])):
        found = recover_on_supports(np.ones(3, dtype), Ds, S)
        assert not found.unique and not found.xs[-1].any()
        errors = theory.oracle_errors(Ds, S)
        assert np.isinf(errors.projection).all() and np.isinf(errors.holistic).all()
        assert theory.holistic_stability(Ds, S, 0.0, 0.1).delta == math.inf
    # The null vector of a random matrix, rounded: the product is no exact zero.
    for seed in range(20):
        D1 = unit(np.random.default_rng(seed).normal(size=(3, 4))).astype(dtype)
        D2 = np.linalg.svd(D1)[2][-1:].T
        assert not recover_on_supports(np.ones(3, dtype), [D1, D2], [range(4), [0]]).unique
        if dtype == np.float64:
            assert not theory.holistic_stability([D1, D2], [range(4), [0]], 0.0, 0.1).holds


@pytest.mark.few(1)
@pytest.mark.parametrize("x64, kind", [(True, jnp.bfloat16), (False, np.float32)])
def test_recovery_in_half_precision_and_under_float32_jax(x64, kind):
    D, y = np.eye(4, 3).astype(kind), np.array([1, 2, 0, 0], kind)
    with jax.enable_x64(x64):
        found = jax.jit(lambda y: recover_on_supports(y, [D], [[0, 1]]))(y)
    assert found.unique and found.xs[0].dtype == kind and found.xs[0].tolist() == [1, 2, 0]
