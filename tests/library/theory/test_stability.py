"""Theorem 3, its corollaries and bounds that skip layers, against random pairs of chains."""

import functools
import math

import jax
import numpy as np
import pytest
from members import coherence_of
from oracles import unit

from unrolled import dictionaries, theory
from unrolled.theory._stability import (
    holistic_stability,
    model_stability,
    noise_stability,
    perturbed_eps,
    product_stability,
    stability,
)

# Distances and residuals are accurate to a few hundred eps of the size of the codes, which is up to
# 1e3 times that of the distances.
ROUNDING = 1 + 1e-9


def sparse_columns(seed, c, q, d, m):
    """A transversal design with zero rows up to m: c nonzeros per column, mu <= 1/c."""
    D = np.asarray(dictionaries.transversal(jax.random.key(seed), c, q, d))
    return np.pad(D, ((0, m - len(D)), (0, 0)))


@functools.cache
def chain(name):
    """Dictionaries, and sparsities that Theorem 3 admits on all layers."""
    rng = np.random.default_rng(0)
    return {
        "identity_hadamard": lambda: ([np.asarray(dictionaries.identity_hadamard(16))], [2]),
        "paley": lambda: ([np.asarray(dictionaries.paley(29))], [3]),
        "gaussian": lambda: ([unit(rng.normal(size=(60, 70)))], [1]),
        "near-orthogonal": lambda: ([unit(np.eye(12) + 0.02 * rng.normal(size=(12, 12)))], [6]),
        "two layers": lambda: (
            [np.asarray(dictionaries.identity_hadamard(32)), sparse_columns(0, 2, 31, 60, 64)],
            [3, 1],
        ),
        "three layers": lambda: (
            [
                unit(np.eye(40) + 0.01 * rng.normal(size=(40, 40))),
                unit(np.eye(40) + 0.1 * (rng.random((40, 40)) < 0.01)),
                sparse_columns(1, 3, 13, 60, 40),
            ],
            [8, 4, 1],
        ),
    }[name]()


CHAINS = ["identity_hadamard", "paley", "gaussian", "near-orthogonal", "two layers", "three layers"]


def largest_entries(X, s):
    """X with all but the s largest entries of every row set to zero."""
    order = np.argsort(-np.abs(X), axis=1, kind="stable")
    Z = np.zeros_like(X)
    rows = np.arange(len(X))[:, None]
    Z[rows, order[:, :s]] = X[rows, order[:, :s]]
    return Z


def pairs(Ds, sparsities, n, seed=0):
    """n exact and n perturbed chains with at most s_j nonzeros, and eps_j: far, near, worst.

    In the worst case the deepest codes differ by the least singular vector of 2 s_J columns.
    """
    rng = np.random.default_rng(seed)
    d, s = Ds[-1].shape[1], sparsities[-1]
    support = np.argsort(rng.random((n, d)), axis=1)[:, : min(2 * s, d)]
    _, _, V = np.linalg.svd(Ds[-1].T[support].transpose(0, 2, 1))
    h = V[:, -1] * rng.normal(size=(n, 1))
    rows, kind = np.arange(n)[:, None], np.arange(n)[:, None] % 3
    X, Z = np.zeros((n, d)), np.zeros((n, d))
    X[rows, support[:, :s]] = np.where(kind == 2, h[:, :s], rng.normal(size=(n, s)))
    half = np.where(kind == 2, -h[:, s:], rng.normal(size=h[:, s:].shape))
    Z[rows, support[:, s:]] = np.where(kind == 1, 0, half)
    Z += (kind == 1) * (X + 1e-3 * rng.normal(size=(n, 1)) * (X != 0))
    exact, other = [X], [Z]
    for D, t in zip(Ds[::-1], [*sparsities[::-1][1:], None]):
        exact.insert(0, exact[0] @ D.T)
        noise = rng.normal(size=exact[0].shape) * 10.0 ** rng.uniform(-6, 0, (n, 1))
        moved = other[0] @ D.T
        moved += noise * ((moved != 0) if t else 1)
        other.insert(0, largest_entries(moved, t) if t else moved)
    for x, t in zip(exact[1:], sparsities):
        assert np.count_nonzero(x, axis=1).max() <= t
    eps = np.stack([np.linalg.norm(b - z @ D.T, axis=1) for D, b, z in zip(Ds, other, other[1:])])
    distance = np.stack([np.linalg.norm(x - z, axis=1) for x, z in zip(exact, other)])
    return eps, distance, exact, other


@pytest.mark.few(1)
@pytest.mark.parametrize("name", CHAINS)
def test_no_pair_of_chains_is_further_apart_than_delta(name):
    Ds, s = chain(name)
    eps, distance, _, _ = pairs(Ds, s, 3000)
    # delta is linear in (eps0, eps), so its columns give all bounds at once.
    J = len(Ds)
    gains = [stability(Ds, s, e[1:], e[0]).delta for e in np.eye(J + 1)]
    assert np.isfinite(gains).all()
    delta = np.einsum("ij,in->jn", gains, np.stack([distance[0], *eps]))
    assert (distance[1:] <= delta * ROUNDING).all()
    for i in range(0, 3000, 600):
        found = stability(Ds, s, eps[:, i], distance[0, i])
        assert found.holds and found.delta == pytest.approx(delta[:, i], rel=1e-12)


def test_the_bound_of_theorem_3_is_attained():
    # [I | Hadamard] at s = 1: e_1 - h_1 has norm sqrt(2) and an image of norm sqrt(2 - 2 mu).
    D = np.asarray(dictionaries.identity_hadamard(16))
    found = stability([D], [1], 0.0, np.linalg.norm(D[:, 0] - D[:, 16]))
    assert found.delta[0] == pytest.approx(math.sqrt(2), rel=1e-8)  # mu is rounded up by 1e-9


@pytest.mark.slow
def test_the_factors_are_those_of_the_theorems():
    Ds, s = chain("two layers")
    eps, eps0 = [0.3, 0.2], 0.1
    found = stability(Ds, s, eps, eps0)
    radicands = [1 - (2 * n - 1) * coherence_of(D) for D, n in zip(Ds, s)]
    assert found.factor == pytest.approx([1 / math.sqrt(r) for r in radicands], rel=1e-7)
    one = (eps[0] + eps0) / math.sqrt(radicands[0])
    assert found.delta == pytest.approx([one, (eps[1] + one) / math.sqrt(radicands[1])], rel=1e-7)
    assert (found.factor_W == math.inf).all()
    # With W = D the second factor is never below the first.
    own = stability(Ds, s, eps, eps0, Ws=Ds)
    assert (own.factor_W >= own.factor).all() and (own.delta == found.delta).all()


def weights_factor(W, D, s):
    t = min(2 * s, D.shape[1])
    G, C = np.abs(W.T @ D), np.abs(W.T @ W)
    off = lambda A: (A - np.diag(np.diag(A))).max()  # noqa: E731
    omega, eta = np.linalg.norm(W, axis=0).max(), np.abs(1 - np.diag(W.T @ D)).max()
    least = min(math.sqrt(t) * omega, np.linalg.norm(W, 2), math.sqrt(omega**2 + (t - 1) * off(C)))
    return least / (1 - eta - (t - 1) * off(G))


@pytest.mark.slow
@pytest.mark.parametrize("off_diagonal", [0.0, 0.02])
def test_weights_reach_sparsities_that_the_coherence_does_not(off_diagonal):
    rng = np.random.default_rng(2)
    D = unit(rng.normal(size=(60, 64)))
    W = np.asarray(theory.frobenius_weights(D)) * rng.uniform(
        1 - off_diagonal, 1 + off_diagonal, 64
    )
    reached = 0
    for s in range(1, 6):
        alone, found = stability([D], [s], 0.0, 1.0), stability([D], [s], 0.0, 1.0, Ws=[W])
        assert found.factor[0] == alone.factor[0]
        if not found.holds:
            continue
        assert found.factor_W[0] == pytest.approx(weights_factor(W, D, s), rel=1e-7)
        assert found.delta[0] == min(found.factor[0], found.factor_W[0])
        support = np.argsort(rng.random((2000, 64)), axis=1)[:, : 2 * s]
        values = np.linalg.svd(D.T[support], compute_uv=False)
        assert (1 / values[:, -1] <= found.delta[0]).all()
        reached += found.holds and not alone.holds
    assert reached >= 2 and not found.holds


def test_the_norm_of_the_weights_and_their_products_take_turns():
    even = np.full((4, 4), 0.1) + 0.9 * np.eye(4)
    uneven = unit(np.eye(4) + np.diag([0.2, 0.0, 0.0], k=1))  # one pair of four has a product
    for W, D, s, by_norm in ((even, np.eye(4), 1, False), (uneven, uneven, 2, True)):
        without, found = stability([D, D], [s, s], 0.0, 1.0, Ws=[None, W]).factor_W
        assert without == math.inf and found == pytest.approx(weights_factor(W, D, s), rel=1e-7)
        mu_W = np.abs(W.T @ D - np.diag(np.diag(W.T @ D))).max()
        assert (
            found == pytest.approx(np.linalg.norm(W, 2) / (1 - (2 * s - 1) * mu_W), rel=1e-7)
        ) == by_norm


def test_violated_hypotheses_give_inf_and_never_nan():
    Ds, s = chain("two layers")
    # Even exact data do not bound a code that need not be unique.
    found = stability(Ds, [3, 2], 0.0, 0.0)
    assert (
        not found.holds and found.delta.tolist() == [0.0, math.inf] and found.factor[1] == math.inf
    )
    found = stability(Ds, [9, 1], 0.0, 1.0)
    assert (
        not found.holds
        and found.delta.tolist() == [math.inf, math.inf]
        and math.isfinite(found.factor[1])
    )
    # At s = 0 both codes are 0, whatever the layers before.
    found = stability(Ds, [9, 0], 1.0, 1.0)
    assert not found.holds and found.delta.tolist() == [math.inf, 0.0] and found.factor[1] == 0
    assert stability(Ds, [0, 1], 1.0, 1.0).delta == pytest.approx([0.0, math.sqrt(2)], rel=1e-7)
    for extreme in (math.inf, 1e308):
        found = stability(Ds, s, extreme, extreme)
        assert not found.holds and (found.delta == math.inf).all()


def test_a_radicand_of_zero_is_not_positive_after_rounding():
    # Two equal atoms: mu = 1, which rounds to 1 - eps for every third of them.
    rng = np.random.default_rng(0)
    for v in rng.normal(size=(50, 7, 1)):
        D = unit(np.hstack([v, v]))
        found = stability([D], [1], 0.0, 1e-3)
        assert not found.holds and found.delta[0] == math.inf
        assert (
            noise_stability([D], [1], 1.0)[0] == math.inf
            and not product_stability([D], 1, 0.0, 1.0).holds
        )


def test_orthonormal_dictionaries_and_single_atoms_pass_errors_on_unchanged():
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    assert stability([Q, Q, Q], [8, 8, 8], 0.25, 0.5).delta == pytest.approx(
        [0.75, 1.0, 1.25], rel=1e-9
    )
    assert stability([np.ones((1, 1))], [1], 0.0, 2.0).delta.tolist() == [2.0]
    # t = min(2 s, d): the bound of d independent atoms is finite where that of 2 s is not.
    D = unit(np.array([[1.0, 0.4], [0.0, 1.0]]))
    assert stability([D], [2], 0.0, 1.0).delta[0] == pytest.approx(
        1 / math.sqrt(1 - coherence_of(D)), rel=1e-7
    )
    assert 1 - 3 * coherence_of(D) < 0


def test_atoms_a_little_off_unit_norm_are_taken_as_they_are():
    D = np.eye(4) * (1 - 5e-5)
    assert stability([D], [2], 0.0, 1.0).delta[0] >= 1 / (1 - 5e-5)


# Corollaries 4 and 5


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["two layers", "three layers"])
def test_the_corollaries_are_the_recursion_in_their_special_cases(name):
    Ds, s = chain(name)
    rng = np.random.default_rng(0)
    for bad in range(4):
        s = list(s)
        if bad:  # a code that is 0, then one without a bound
            s[rng.integers(len(s))] = 0 if bad < 3 else 12
        eps, eps0 = rng.random(len(Ds)) * rng.integers(0, 2, len(Ds)), rng.random()
        assert noise_stability(Ds, s, eps0) == pytest.approx(
            stability(Ds, s, 0.0, eps0).delta, rel=1e-12
        )
        assert model_stability(Ds, s, eps) == pytest.approx(
            stability(Ds, s, eps, 0.0).delta, rel=1e-12
        )
    assert not np.isfinite(model_stability(Ds, s, 0.0)).all()


def test_the_closed_forms_have_the_index_of_each_layer():
    # C-7: layer i of the product has its own sparsity and coherence.
    Ds, s = chain("three layers")
    radicands = np.array(
        [1 - (min(2 * n, D.shape[1]) - 1) * coherence_of(D) for D, n in zip(Ds, s)]
    )
    assert noise_stability(Ds, s, 0.3) == pytest.approx(
        0.3 / np.sqrt(np.cumprod(radicands)), rel=1e-7
    )
    eps = np.array([0.1, 0.2, 0.3])
    expected = [
        sum(eps[i] / math.sqrt(np.prod(radicands[i : j + 1])) for i in range(j + 1))
        for j in range(3)
    ]
    assert model_stability(Ds, s, eps) == pytest.approx(expected, rel=1e-7)
    printed = 0.3 / np.sqrt(radicands ** np.arange(1, 4))  # with j in place of i
    assert (printed < noise_stability(Ds, s, 0.3) * 0.99).any()


def test_noise_alone_needs_a_signal_in_the_model():
    # C-8: x~ = 0 explains y~ within eps_0 but not exactly; Corollary 4 does not cover it, Theorem 3
    # does.
    D = np.eye(2)
    x, y_noisy = np.array([2.0, 0.0]), np.array([1.0, 0.0])
    eps0, eps1 = np.linalg.norm(D @ x - y_noisy), np.linalg.norm(y_noisy)
    assert np.linalg.norm(x) > noise_stability([D], [1], eps0)[0]
    assert np.linalg.norm(x) <= stability([D], [1], eps1, eps0).delta[0]


# Perturbed dictionaries


def test_perturbed_dictionaries_enter_through_eps():
    Ds, s = chain("two layers")
    rng = np.random.default_rng(3)
    others = [D + 1e-2 * rng.normal(size=D.shape) * (D != 0) for D in Ds]
    _, _, exact, _ = pairs(Ds, s, 60)
    for X2 in exact[-1]:
        x1, z2 = Ds[1] @ X2, X2 * (1 + 0.1 * rng.normal(size=60))
        z1 = others[1] @ z2 + 1e-3 * (others[1] @ z2 != 0)
        y, z0 = Ds[0] @ x1, others[0] @ z1 + 1e-3 * rng.normal(size=32)
        own = [np.linalg.norm(z0 - others[0] @ z1), np.linalg.norm(z1 - others[1] @ z2)]
        eps = perturbed_eps(Ds, others, [z1, z2], own)
        assert eps == pytest.approx(
            [e + np.linalg.norm((o - D) @ z) for e, o, D, z in zip(own, others, Ds, [z1, z2])]
        )
        seen = [np.linalg.norm(z0 - Ds[0] @ z1), np.linalg.norm(z1 - Ds[1] @ z2)]
        assert (seen <= eps * ROUNDING).all()
        found = stability(Ds, s, eps, np.linalg.norm(y - z0))
        assert (
            np.linalg.norm(x1 - z1) <= found.delta[0] and np.linalg.norm(X2 - z2) <= found.delta[1]
        )


# Bounds that skip layers


def test_the_norm_of_the_columns_of_a_product_must_enter():
    # C-6: the product has orthogonal columns, the first of squared norm 0.4.
    D1 = np.column_stack(
        [np.eye(4)[0], 0.6 * np.eye(4)[0] + 0.8 * np.eye(4)[1], np.eye(4)[2], np.eye(4)[3]]
    )
    D2 = np.column_stack([(np.eye(4)[0] - np.eye(4)[1]) / math.sqrt(2), np.eye(4)[2]])
    P = D1 @ D2
    eps0 = np.linalg.norm(P[:, 0])  # x = e_1 against x~ = 0, both exact
    found = product_stability([D1, D2], 1, 0.0, eps0)
    assert coherence_of(P) == 0 and eps0**2 == pytest.approx(0.4)
    assert eps0**2 / (1 - coherence_of(P)) < 1  # the printed bound of norm(x - x~)^2 = 1
    assert (
        found.delta == pytest.approx(1.0, rel=1e-12)
        and found.nu == pytest.approx(math.sqrt(0.4))
        and found.holds
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("start, stop", [(0, 3), (1, 3), (0, 2), (2, 3)])
def test_products_bound_the_codes_behind_several_layers(start, stop):
    Ds, s = chain("three layers")
    eps, distance, _, other = pairs(Ds, s, 3000, seed=start)
    part = Ds[start:stop]
    gains = [product_stability(part, s[stop - 1], e[1:], e[0]) for e in np.eye(len(part) + 1)]
    P = functools.reduce(np.matmul, part)
    c = 1 / (
        np.linalg.norm(P, axis=0).min() * math.sqrt(1 - (2 * s[stop - 1] - 1) * coherence_of(P))
    )
    assert gains[0].delta == pytest.approx(c, rel=1e-6)
    bound = np.einsum(
        "i,in->n", [found.delta for found in gains], np.stack([distance[start], *eps[start:stop]])
    )
    assert (distance[stop] <= bound * ROUNDING).all()
    # eps of the layers together, against the measured one.
    together = np.einsum("i,in->n", [found.eps for found in gains[1:]], eps[start:stop])
    seen = np.linalg.norm(other[start] - other[stop] @ P.T, axis=1)
    assert (seen <= together * ROUNDING).all()
    measured = product_stability(
        [dictionaries.Composed(*part)], s[stop - 1], seen[0], distance[start, 0]
    )
    assert distance[stop, 0] <= measured.delta * ROUNDING <= bound[0] * ROUNDING**2
    assert measured.eps == seen[0]


def test_a_product_may_bound_codes_where_the_layers_between_do_not():
    # D_1 has every atom twice and D_1 D_2 = I: the recursion stops at layer 1.
    D1, D2 = np.tile(np.eye(4), 2), np.eye(8, 4)
    assert stability([D1, D2], [2, 2], 0.0, 1.0).delta.tolist() == [math.inf, math.inf]
    assert product_stability([D1, D2], 2, 0.0, 1.0).delta == pytest.approx(1.0)


def test_products_that_bound_nothing():
    D1, D2 = (
        np.tile(np.eye(4), 2),
        np.column_stack([np.eye(8)[0] - np.eye(8)[4], np.eye(8)[1]]) / math.sqrt(2),
    )
    found = product_stability([D1, D2], 1, 0.0, 0.0)
    assert not found.holds and found.delta == math.inf and found.nu == 0 and found.mu == math.inf
    found = product_stability([D1, D2], 0, 1.0, 1.0)
    assert found.holds and found.delta == 0
    assert not product_stability([D1], 1, 0.0, 1.0).holds  # mu = 1


def on_supports(rng, n):
    """n exact and perturbed chains 6 -> 8 -> 9 -> 8 on supports that D_2 and D_3 preserve."""
    supports = [np.array([0, 2, 3, 5, 7]), np.array([1, 2, 4, 8]), np.array([0, 3, 6])]
    D1, D2, D3 = (rng.normal(size=shape) for shape in ((6, 8), (8, 9), (9, 8)))
    for S, T, D in zip(supports, supports[1:], (D2, D3)):
        rest = np.setdiff1d(np.arange(len(D)), S)
        D[np.ix_(rest, T[:-1])] = 0  # the last column of T may not be used
    X3, Z3 = np.zeros((2, n, 8))
    X3[:, supports[2][:-1]] = rng.normal(size=(n, 2))
    Z3[:, supports[2]] = X3[:, supports[2]] + rng.normal(size=(n, 3)) * 10.0 ** rng.uniform(
        -6, 0, (n, 1)
    )
    return supports, [D1, D2, D3], X3, Z3


def test_the_whole_system_bounds_the_deepest_codes():
    rng = np.random.default_rng(5)
    worst = 0.0
    for _ in range(8):
        supports, Ds, X3, Z3 = on_supports(rng, 1000)
        exact, other = [X3], [Z3]
        for D, S in zip(Ds[::-1], [*supports[::-1][1:], None]):
            exact.insert(0, exact[0] @ D.T)
            noise = rng.normal(size=exact[0].shape) * 10.0 ** rng.uniform(-6, -1, (1000, 1))
            moved = other[0] @ D.T + noise
            if S is not None:
                moved[:, np.setdiff1d(np.arange(len(D)), S)] = 0
            other.insert(0, moved)
        eps = np.stack(
            [np.linalg.norm(b - z @ D.T, axis=1) for D, b, z in zip(Ds, other, other[1:])]
        )
        eps0, distance = (
            np.linalg.norm(exact[0] - other[0], axis=1),
            np.linalg.norm(X3 - Z3, axis=1),
        )
        found = holistic_stability(Ds, supports, eps[:, 0], eps0[0])
        assert found.holds and found.delta == pytest.approx(found.eps / found.sigma_min)
        P, Q, S = Ds[0] @ Ds[1] @ Ds[2], Ds[1] @ Ds[2], supports[2]
        K = [np.delete(E, T, axis=0)[:, S] for E, T in ((Q, supports[0]), (Ds[2], supports[1]))]
        assert found.sigma_min == pytest.approx(
            np.linalg.svd(np.vstack([P[:, S], *K]), compute_uv=False)[-1], rel=1e-9
        )
        # eps of all draws, by the amended formula and by the norms of the partial products.
        norms = [
            1,
            np.linalg.norm(Ds[0], 2),
            np.linalg.norm(Ds[0] @ Ds[1], 2),
            1,
            np.linalg.norm(Ds[1], 2),
            1,
        ]
        whole = (
            np.einsum("i,in->n", norms[:3], eps),
            np.einsum("i,in->n", norms[3:5], eps[1:]),
            eps[2],
        )
        total = np.sqrt((eps0 + whole[0]) ** 2 + whole[1] ** 2 + whole[2] ** 2)
        assert found.eps == pytest.approx(total[0], rel=1e-9)
        assert (distance <= total / found.sigma_min * ROUNDING).all()
        worst = max(worst, (distance * found.sigma_min / total).max())
    assert worst > 0.01  # not vacuous


def test_the_printed_bound_on_supports_applies_to_the_zero_code_alone():
    # C-25: a positive 1 - (k-1) mu(K) makes K injective, but x_J is in its kernel.
    rng = np.random.default_rng(6)
    K = rng.normal(size=(2000, 6, 4))
    K[:, :, 3] = np.einsum("nij,nj->ni", K[:, :, :3], rng.normal(size=(2000, 3)))
    G = np.abs(np.einsum("nij,nik->njk", *(K / np.linalg.norm(K, axis=1, keepdims=True),) * 2))
    mu = (G - np.eye(4)[None]).max(axis=(1, 2))
    assert (1 - 3 * mu).max() <= 1e-14
    # With the rows of y the same K gives a bound wherever the codes are unique.
    D2 = np.vstack([rng.normal(size=(3, 4)), K[0]])
    assert holistic_stability([rng.normal(size=(5, 9)), D2], [[0, 1, 2], range(4)], 0.0, 1.0).holds


def test_supports_that_determine_nothing_or_everything():
    Ds = [np.tile(np.eye(2), 2), np.eye(4)]
    found = holistic_stability(Ds, [[0, 2], [0, 2]], 0.0, 0.0)  # two equal atoms
    assert not found.holds and found.delta == math.inf and found.sigma_min == 0
    # More columns than rows.
    assert holistic_stability(Ds, [[0, 1, 2], [0, 1, 2]], 0.0, 1.0).delta == math.inf
    found = holistic_stability(Ds, [[0], []], 1.0, 1.0)
    assert found.holds and found.delta == 0 and found.sigma_min == math.inf
    found = holistic_stability(Ds, [[0], [0]], math.inf, 1.0)
    assert not found.holds and found.delta == math.inf


# Structured dictionaries and bad input


@pytest.mark.slow
def test_structured_dictionaries_have_the_bounds_of_their_matrices():
    # Filters of two taps at stride 2: orthogonal except for the product of the two filters.
    filters = np.array([[[1.0, 0.1]], [[0.0, 1.0]]])
    conv = dictionaries.normalize(dictionaries.Conv(filters, 8, 2))[0]
    mu = 0.1 / math.sqrt(1.01)
    Ds = [conv, dictionaries.Sparse(np.eye(8), np.eye(8)[:, ::2])]
    found = stability(Ds, [2, 2], 0.1, 0.2, Ws=[conv, None])
    assert found.factor == pytest.approx([1 / math.sqrt(1 - 3 * mu), 1.0], rel=1e-7)
    # The product keeps the first four positions of the first filter and of the second: columns 0, 2
    # of each.
    one = product_stability(Ds, 1, 0.1, 0.2)
    assert one.nu == pytest.approx(1.0) and one.mu == pytest.approx(mu, rel=1e-7)
    assert one.eps == pytest.approx(0.1 + 0.1 * math.sqrt(1 + mu)) and one.holds
