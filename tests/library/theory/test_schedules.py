"""Schedules against the closed form of their recursion, and the bounds that need no schedule."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import unit

from unrolled import activations, dictionaries, theory
from unrolled.theory import activation_schedule, deep_schedule, schedule

EPS = np.finfo(np.float64).eps
# Scores and coherences are each rounded up by 1e-9, and 1 - mu - eta >= 1/4 divides by at most 4.
ROUNDED_UP = 1e-8
CLASS = dict(sparsity=3, bound=2.0, noise=0.01, depth=50, guard=1e-6)


def closed_form(a, s, B, c, k):
    """E_k = a^k s B + 2 s c (1 - a^k) / (1 - a)."""
    return a**k * s * B + 2 * s * c * (1 - a**k) / (1 - a)


# One block.


@pytest.mark.parametrize("mu", [0.0, 0.02, 0.1, 0.199])
@pytest.mark.parametrize(
    "noise, guard, eta", [(0.0, 0.0, 0.0), (0.01, 1e-6, 0.0), (0.01, 0.0, 1e-3)]
)
def test_schedule_follows_the_closed_form(mu, noise, guard, eta):
    s, B, C, K = 3, 2.0, 0.7, 50
    found = schedule(mu, C, sparsity=s, bound=B, noise=noise, depth=K, guard=guard, eta=eta)
    a, c = 5 * mu + eta, C * noise + guard
    expected = closed_form(a, s, B, c, np.arange(K + 1))
    # Every step of the recursion rounds a few times; these errors contract too.
    assert found.error == pytest.approx(expected, rel=8 * K * EPS)
    assert found.theta == pytest.approx(mu * expected[:-1] + c, rel=8 * K * EPS)
    assert (found.contraction, found.holds) == (pytest.approx(a), True)
    assert found.rate == (pytest.approx(-math.log(a)) if a else math.inf)
    assert found.floor == pytest.approx(2 * s * c / (1 - a))
    assert (found.theta.shape, found.error.shape) == ((K,), (K + 1,))
    assert found.theta.dtype == found.error.dtype == np.float64


def test_one_coherent_step_is_the_recursion_of_the_sup_norm():
    # m_{k+1} = a m_k + 2 (C_W delta + g) from m_0 = B is E / s, with the same threshold s mu_W m_k
    # + C_W delta + g.
    found = schedule(0.05, 0.7, **CLASS)
    m = 2.0
    for theta, error in zip(found.theta, found.error):
        assert (error / 3, theta) == pytest.approx((m, 3 * 0.05 * m + 0.007 + 1e-6), rel=400 * EPS)
        m = 0.25 * m + 2 * (0.007 + 1e-6)


def test_scalars_of_every_kind_are_accepted():
    for mu in (np.float32(0.25), jnp.asarray(0.25), 0.25):
        assert schedule(mu, 1, sparsity=np.int64(1), bound=1, depth=2).error.tolist() == [
            1,
            0.25,
            0.0625,
        ]


def test_no_nonzeros_leave_no_error():
    found = schedule(0.9, 1.0, **{**CLASS, "sparsity": 0})
    assert found.holds and found.error.tolist() == [0] * 51
    assert (found.contraction, found.rate, found.floor) == (0, math.inf, 0)
    # The threshold suffices to keep noise out of the code.
    assert found.theta == pytest.approx(np.full(50, 0.01 + 1e-6))


def test_incoherent_atoms_are_found_in_one_step():
    exact = schedule(0.0, 1.0, sparsity=3, bound=2.0, depth=4)
    assert (exact.error.tolist(), exact.theta.tolist()) == ([6, 0, 0, 0, 0], [0, 0, 0, 0])
    noisy = schedule(0.0, 0.5, sparsity=3, bound=2.0, noise=0.1, depth=4)
    assert noisy.error == pytest.approx([6, 0.3, 0.3, 0.3, 0.3])
    assert (noisy.rate, noisy.floor, noisy.steps_for(0.31)) == (math.inf, pytest.approx(0.3), 1)
    assert noisy.steps_for(noisy.floor) == 1
    assert noisy.steps_for(math.nextafter(noisy.floor, 0)) == math.inf


def test_the_largest_numbers_hold_and_infinite_ones_do_not():
    assert schedule(0.25, 1.0, sparsity=1, bound=1e308, depth=2).holds
    assert theory.atom_schedule([0.25], [1.0], sparsity=1, bound=1e308, depth=2).holds
    assert not schedule(0.25, 1.0, sparsity=1, bound=math.inf, depth=2).holds
    assert not schedule(0.25, 1.0, sparsity=1, bound=1.0, noise=math.inf, depth=2).holds


def test_depth_zero_is_the_starting_error():
    found = schedule(0.1, 1.0, **{**CLASS, "depth": 0})
    assert (found.error.tolist(), found.theta.shape, found.holds) == ([6], (0,), True)


@pytest.mark.parametrize("mu, s", [(0.2, 3), (0.5, 3), (1.0, 1), (3.0, 40)])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("depth", [5, 2000])
def test_beyond_the_hypotheses_the_recursion_is_returned_without_a_floor(mu, s, noise, depth):
    found = schedule(mu, 1.0, sparsity=s, bound=1.0, noise=noise, depth=depth)
    assert not found.holds and found.floor == math.inf and found.contraction >= 1
    assert not np.isnan(found.error).any() and not np.isnan(found.theta).any()
    assert (np.diff(found.error[np.isfinite(found.error)]) >= -8 * s * EPS).all()
    assert found.steps_for(s / 2) == math.inf and found.steps_for(s) == 0


def test_eta_counts_against_the_hypotheses():
    assert schedule(0.1, 1.0, sparsity=5, bound=1.0, depth=1, eta=0.09).holds
    assert not schedule(0.1, 1.0, sparsity=5, bound=1.0, depth=1, eta=0.11).holds


def test_a_coherence_in_float32_is_not_trusted_to_its_last_bit():
    """The simplex has mu = 1/3, where s = 2 does not contract; rounding makes it a little less."""
    mu = np.float32(0.33333331)
    assert mu < 1 / 3
    class_ = dict(sparsity=2, bound=1.0)
    elu = activations.scale(activations.elu(1.0), 1e4)
    for hold, expected in ((mu, False), (mu * np.float32(1 - 1e-5), True)):
        mus, ones = np.full(4, hold), np.ones(4)
        assert schedule(hold, 1.0, **class_, depth=3).holds == expected
        assert (
            deep_schedule([hold], [1.0], sparsities=[2], bounds=[1.0], depths=[3])[0].holds
            == expected
        )
        assert theory.plan([hold], [1.0], sparsities=[2], bounds=[1.0], tol=0.1).holds == expected
        assert theory.atom_schedule(mus, ones, **class_, depth=3).holds == expected
        assert (theory.support_bound(hold, 1.0, size=4) < math.inf) == expected
        assert theory.max_sparsity(hold, 4) == 1 + expected
        soft = theory.activation_schedule(elu, hold, 1.0, d=4, **class_, depth=3)
        assert soft.holds == expected


def test_a_start_beyond_the_range_holds_nothing():
    found = schedule(0.01, 1.0, sparsity=10, bound=1e308, depth=3)
    assert not found.holds and found.steps_for(1.0) == math.inf
    found = theory.plan([0.1, 0.1], [1.0, 1.0], sparsities=[2, 1], bounds=[1e308, 1.0], tol=1.0)
    assert not found.holds and "block 1 begins at an error s B that is not finite" == found.reason


# Steps to a tolerance.


def test_steps_for_every_case():
    found = schedule(0.1, 0.7, **CLASS)
    assert [found.steps_for(tol) for tol in (6, 7, math.inf)] == [0, 0, 0]
    assert [found.steps_for(tol) for tol in (found.floor, found.floor / 2, 0, -1)] == [math.inf] * 4
    assert found.steps_for(found.floor * (1 + 1e-9)) < math.inf
    assert schedule(0.1, 1.0, **{**CLASS, "sparsity": 0}).steps_for(0) == 0


@pytest.mark.parametrize("mu, noise", [(0.1, 0.0), (0.19, 0.0), (0.1, 0.01), (0.02, 0.001)])
def test_steps_for_is_the_first_step_below_the_tolerance(mu, noise):
    found = schedule(mu, 0.7, sparsity=3, bound=2.0, noise=noise, depth=500)
    for tol in found.floor + (6 - found.floor) * 10.0 ** np.linspace(-9, -0.01, 40):
        k = found.steps_for(tol)
        # If the tolerance is itself some E_k, rounding may change the count by one; these are not.
        assert isinstance(k, int) and k >= 1
        assert found.error[k] <= tol < found.error[k - 1]


@pytest.mark.parametrize("mu", [0.25, 0.2, 0.1, 1 / 3])
def test_an_error_of_the_schedule_is_reached_after_its_own_steps(mu):
    found = schedule(mu, 0.7, sparsity=1, bound=1.0, depth=30)
    for k, error in enumerate(found.error[:20].tolist()):
        assert found.steps_for(error) == k
        assert found.steps_for(math.nextafter(error, 0)) == k + 1
        # A nonzero as small as the error may still be missed.
        assert found.steps_to_support(error, sparsity=1) == k + 1
    assert 300 < found.steps_for(1e-320) < math.inf


def test_a_product_rounded_to_below_one_is_no_contraction():
    mu = 1 / 49
    assert 49 * mu < 1  # in floating point
    problem = dict(sparsity=25, bound=1.0, depth=2)
    relu = activations.relu
    for found in (
        schedule(mu, 1.0, **problem),
        theory.atom_schedule(np.full(50, mu), np.ones(50), **problem),
        activation_schedule(relu, mu, 1.0, d=50, **problem),
    ):
        assert not found.holds and found.floor == math.inf
    chain = {name: (value,) for name, value in dict(sparsities=25, bounds=1.0).items()}
    assert not theory.plan((mu,), (1.0,), tol=0.5, **chain).holds
    assert theory.support_bound(mu, 1.0, size=50) == math.inf
    assert theory.max_sparsity(mu, 1000) == 24


# Chains.


def test_deep_schedule_follows_the_hand_recursion():
    mus, C_Ws, s, B, K = [0.05, 0.2, 0.1], [1.0, 0.5, 0.7], [4, 2, 1], [1.0, 3.0, 2.0], [30, 10, 20]
    noises, guards, etas = [0.01, 0.0, 0.1], [1e-7, 0.0, 1e-3], [0.0, 1e-2, 0.0]
    blocks = deep_schedule(
        mus, C_Ws, sparsities=s, bounds=B, noises=noises, depths=K, guards=guards, etas=etas
    )
    before = 0.0
    for j, block in enumerate(blocks):
        a, c = (2 * s[j] - 1) * mus[j] + etas[j], C_Ws[j] * (noises[j] + before) + guards[j]
        E = [s[j] * B[j]]
        for _ in range(K[j]):
            E.append(a * E[-1] + 2 * s[j] * c)
        assert block.error == pytest.approx(np.array(E), rel=16 * EPS)
        assert block.theta == pytest.approx(mus[j] * np.array(E[:-1]) + c, rel=16 * EPS)
        assert block.floor == pytest.approx(2 * s[j] * c / (1 - a))
        before = E[-1]


def test_gains_take_the_place_of_C_W_for_what_is_inherited():
    mus, C_Ws, s, B, K = [0.05, 0.2, 0.1], [1.0, 0.5, 0.7], [4, 2, 1], [1.0, 3.0, 2.0], [9, 10, 20]
    options = dict(sparsities=s, bounds=B, noises=[0.01, 0.0, 0.1], depths=K)
    plain = deep_schedule(mus, C_Ws, **options)
    same = deep_schedule(mus, C_Ws, gains=C_Ws, **options)
    assert [b.error.tolist() for b in same] == [b.error.tolist() for b in plain]
    gains, before = [9.0, 0.3, 0.2], 0.0  # the first is not used
    for j, block in enumerate(deep_schedule(mus, C_Ws, gains=gains, **options)):
        c = C_Ws[j] * options["noises"][j] + gains[j] * before
        a = (2 * s[j] - 1) * mus[j]
        assert block.floor == pytest.approx(2 * s[j] * c / (1 - a))
        assert block.error[0] == plain[j].error[0] and block.error[-1] <= plain[j].error[-1]
        before = block.error[-1]
    assert plain[2].error[-1] > 1.2 * before


def test_error_gain_is_the_most_that_a_sparse_error_moves_a_product():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(7, 9))
    assert theory.error_gain(W, sparsity=0) == theory.error_gain(W, sparsity=1) == np.abs(W).max()
    gains = [theory.error_gain(W, sparsity=s) for s in range(1, 12)]
    assert all(np.diff(gains) <= 0)
    assert gains[6] == pytest.approx(np.abs(W).sum(0).max() / 7)
    assert gains[10] == pytest.approx(np.abs(W).sum(0).max() / 11)  # longer than w_i
    for s in (1, 3, 7):
        h = np.zeros((2000, 7))
        for row in h:
            row[rng.choice(7, s, replace=False)] = rng.uniform(-1, 1, s)
        moved = np.abs(h @ W).max(1) / np.abs(h).max(1) / s
        assert moved.max() <= gains[s - 1] * (1 + 1e-12)
        i = np.argmax(np.sort(np.abs(W), 0)[-s:].sum(0))
        top = np.argsort(-np.abs(W[:, i]))[:s]
        worst = np.zeros(7)
        worst[top] = np.sign(W[top, i]) / s  # l1 norm 1, l_inf norm 1 / s
        assert worst @ W[:, i] == pytest.approx(gains[s - 1])


@pytest.mark.few(1)
@pytest.mark.parametrize("boundary, N", [("valid", 9), ("circular", 8), ("circular", 2)])
def test_error_gain_of_a_convolution_is_that_of_its_matrix(boundary, N):
    filters = np.random.default_rng(1).normal(size=(3, 2, 4))
    D = dictionaries.Conv(filters, N, 1, boundary)
    matrix = np.asarray(dictionaries.dense(D))
    for s in (1, 2, 5):
        assert theory.error_gain(D, sparsity=s) == pytest.approx(
            theory.error_gain(matrix, sparsity=s)
        )


def test_deep_schedule_of_one_block_is_schedule_and_defaults_are_zero():
    (block,) = deep_schedule([0.1], [0.7], sparsities=[3], bounds=[2.0], depths=[9])
    alone = schedule(0.1, 0.7, sparsity=3, bound=2.0, depth=9)
    assert (
        block.error.tolist() == alone.error.tolist()
        and block.theta.tolist() == alone.theta.tolist()
    )
    assert deep_schedule([], [], sparsities=[], bounds=[], depths=[]) == ()


def test_deep_errors_obey_the_explicit_bound():
    # E_j <= sum_{i <= j} (a_i^K_i s_i B_i + kappa_i delta_i) prod_{i < l <= j} kappa_l, kappa = 2 s
    # C / (1 - a).
    rng = np.random.default_rng(0)
    for _ in range(200):
        s, K = rng.integers(1, 5, 3), rng.integers(1, 40, 3)
        a, C, B, delta = (
            rng.uniform(0.05, 0.95, 3),
            rng.uniform(0.2, 1, 3),
            rng.uniform(0.5, 3, 3),
            rng.uniform(0, 0.1, 3),
        )
        blocks = deep_schedule(a / (2 * s - 1), C, sparsities=s, bounds=B, noises=delta, depths=K)
        kappa, bound = 2 * s * C / (1 - a), 0.0
        for j, block in enumerate(blocks):
            bound = a[j] ** K[j] * s[j] * B[j] + kappa[j] * (delta[j] + bound)
            assert block.error[-1] <= bound * (1 + 400 * EPS)


def test_a_diverging_block_is_unbounded_noise_for_the_next():
    blocks = deep_schedule(
        [0.5, 0.1], [1.0, 1.0], sparsities=[5, 1], bounds=[1.0, 1.0], depths=[2000, 3]
    )
    assert [block.holds for block in blocks] == [False, False]
    assert blocks[1].floor == math.inf and not np.isnan(blocks[1].error).any()


@pytest.mark.parametrize("mu, s", [(0.0, 1), (0.1, 0)])
def test_unbounded_noise_never_makes_nan(mu, s):
    blocks = deep_schedule(
        [0.5, mu], [1.0, 1.0], sparsities=[5, s], bounds=[1.0, 1.0], depths=[2000, 3]
    )
    assert not np.isnan(blocks[1].error).any() and not np.isnan(blocks[1].theta).any()


# Bounds after the fact.


@pytest.fixture(scope="module")
def pair():
    """A dictionary, weights whose diagonal is not 1, and their (mu_W, C_W, eta)."""
    rng = np.random.default_rng(0)
    D = unit(np.hstack([np.eye(24), np.linalg.qr(rng.normal(size=(24, 24)))[0]]))
    W = np.asarray(theory.frobenius_weights(D)) * rng.uniform(0.97, 1.03, 48)
    products = W.T @ D
    off = np.abs(products - np.diag(np.diag(products)))
    return D, W, off.max(), np.abs(W).max(), np.abs(1 - np.diag(products)).max()


def sparse(rng, d, s, least=0.0):
    x = np.zeros(d)
    x[rng.choice(d, s, replace=False)] = rng.uniform(least, 1, s) * rng.choice([-1, 1], s)
    return x


def test_error_bar_and_code_bound_are_never_violated(pair):
    D, W, *_ = pair
    rng = np.random.default_rng(1)
    for trial in range(60):
        noise = 10.0 ** rng.uniform(-4, -1) * (trial % 3 > 0)
        truth = sparse(rng, 48, 1)
        e = rng.laplace(size=24) if trial % 3 == 1 else np.eye(24)[rng.integers(24)]
        y = D @ truth + noise * e / np.abs(e).sum()
        guesses = sparse(rng, 48, 1), truth * rng.uniform(0.5, 1.5), np.zeros(48)
        for guess in guesses:
            h = guess - truth
            bar = theory.error_bar(W, D, guess, y, sparsity=1, noise=noise)
            assert bar.holds
            true = [np.abs(h).max(), np.linalg.norm(h), np.abs(h).sum()]
            # y itself is rounded, by a few dozen eps.
            assert (np.array(true) <= np.array([bar.linf, bar.l2, bar.l1]) + 1e-14).all()
        assert theory.code_bound(W, D, y, sparsity=1, noise=noise) >= np.abs(truth).max() * (
            1 - 48 * EPS
        )


def test_error_bar_by_its_formula(pair):
    D, W, mu, C, eta = pair
    rng = np.random.default_rng(2)
    y = rng.normal(size=24)
    for x, n in ((sparse(rng, 48, 1, least=0.1), 2), (np.zeros(48), 1)):
        r = np.sort(np.abs(W.T @ (y - D @ x)))[::-1] + C * 0.3
        expected = np.array([r[0], r[:n].sum()]) / (1 - (n - 1) * mu - eta)
        bar = theory.error_bar(W, D, x, y, sparsity=1, noise=0.3)
        assert bar.holds and (bar.linf, bar.l1) == pytest.approx(expected, rel=ROUNDED_UP)
        assert bar.linf >= expected[0] and bar.l1 >= expected[1]
        assert bar.l2 == pytest.approx(math.sqrt(bar.linf * bar.l1))
        assert bar.l1 <= n * bar.linf and bar.l2 <= math.sqrt(n) * bar.linf
    for s in (1, 2):
        expected = (np.abs(W.T @ y).max() + C * 0.3) / (1 - (s - 1) * mu - eta)
        found = theory.code_bound(W, D, y, sparsity=s, noise=0.3)
        assert found == pytest.approx(expected, rel=ROUNDED_UP)
        assert found == theory.error_bar(W, D, np.zeros(48), y, sparsity=s, noise=0.3).linf


def test_error_bars_of_one_entry_are_all_the_same(pair):
    D, W, *_ = pair
    for y in np.random.default_rng(5).normal(size=(20, 24)):
        bar = theory.error_bar(W, D, np.zeros(48), y, sparsity=1)
        assert bar.linf == bar.l1 and bar.l2 <= bar.l1 and bar.l2 == pytest.approx(bar.l1)


def test_error_bar_counts_the_nonzeros_of_the_given_code(pair):
    D, W, mu, _, eta = pair
    rng, tightest = np.random.default_rng(4), 0.0
    for _ in range(40):
        # x has more nonzeros than the class, none, or as many; W'D restricted to n atoms decides.
        s, k = int(rng.integers(0, 2)), int(rng.integers(0, 4))
        truth, x = sparse(rng, 48, s), sparse(rng, 48, k, least=0.1)
        bar = theory.error_bar(W, D, x, D @ truth, sparsity=s)
        n = k + s
        assert bar.holds == (n == 0 or (n - 1) * mu + eta < 1)
        h = x - truth
        true = np.array([np.abs(h).max(), np.linalg.norm(h), np.abs(h).sum()])
        assert (true <= np.array([bar.linf, bar.l2, bar.l1]) * (1 + 1e-12)).all()
        if bar.holds and true[0]:
            tightest = max(tightest, true[2] / bar.l1)
    assert tightest > 0.7
    # All entries of h: n is capped by d.
    full = theory.error_bar(np.eye(3), np.eye(3), np.ones(3), np.zeros(3), sparsity=3)
    assert full.holds and full.linf == pytest.approx(1) and full.l1 == pytest.approx(3)


def test_error_bar_covers_the_rounding_of_its_own_residual():
    # The residual of x = x* is mostly rounding: fractions give the exact code of the stored y.
    rng, below = np.random.default_rng(5), 0
    for _ in range(60):
        m = 6
        D = unit(rng.integers(-9, 10, (m, m)) + 20 * np.eye(m))
        W = np.linalg.inv(D).T
        x = rng.normal(size=m)
        y = D @ x
        bar = theory.error_bar(W, D, x, y, sparsity=m)
        exact = [[Fraction(v) for v in row] for row in np.column_stack([D, y]).tolist()]
        h = np.array([float(a - Fraction(b)) for a, b in zip(solved(exact), x.tolist())])
        assert np.abs(h).max() <= bar.linf and np.abs(h).sum() <= bar.l1
        assert bar.linf < 1e-11
        below += np.abs(W.T @ (y - D @ x)).max() < 0.99 * np.abs(h).max()
    assert below > 5  # the score alone is no bound


def solved(rows):
    """The exact solution of a square system of fractions, by Gauss and Jordan."""
    n = len(rows)
    for i in range(n):
        pivot = next(k for k in range(i, n) if rows[k][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for k in range(n):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i])]
    return [row[n] for row in rows]


def test_error_bar_is_attained_by_two_atoms():
    # x* = 1/2 e_1, x = -1/2 e_2, d_1 . d_2 = mu: y - D x = (d_1 + d_2) / 2, correlation (1 + mu) /
    # 2 with both.
    mu = 0.4
    for sign in (1, -1):
        D = np.array([[1.0, mu * sign], [0.0, math.sqrt(1 - mu**2)]])
        bar = theory.error_bar(D, D, np.array([0.0, -0.5]), D @ np.array([0.5, 0.0]), sparsity=1)
        assert bar.linf == pytest.approx((1 + sign * mu) / 2 / (1 - mu), rel=ROUNDED_UP)
    assert bar.linf == pytest.approx(0.5)  # the opposite sign attains the bound: the error is 1/2


def test_error_bar_beyond_its_hypotheses(pair):
    D, W, *_ = pair
    y = np.ones(24)
    for s, x in ((40, np.zeros(48)), (1, sparse(np.random.default_rng(3), 48, 40, least=0.1))):
        bar = theory.error_bar(W, D, x, y, sparsity=s)
        assert bar == theory.ErrorBar(math.inf, math.inf, math.inf, False)
    assert theory.code_bound(W, D, y, sparsity=48) == math.inf
    empty = theory.error_bar(W, D, np.zeros(48), y, sparsity=0)
    assert (empty.l2, empty.l1, empty.holds) == (0, 0, True)


# Activations.


@pytest.mark.parametrize(
    "options", [CLASS, {**CLASS, "sparsity": 0}, {**CLASS, "noise": 0.0, "guard": 0.0}]
)
@pytest.mark.parametrize("mu", [0.0, 0.1, 0.3])
def test_activation_schedule_of_relu_is_schedule(mu, options):
    expected = schedule(mu, 0.7, eta=0.01, **options)
    for relu in (activations.relu, activations.leaky_relu(0.0)):
        found = activation_schedule(relu, mu, 0.7, d=20, eta=0.01, **options)
        assert found.error == pytest.approx(expected.error, rel=400 * EPS)
        assert found.theta == pytest.approx(expected.theta, rel=400 * EPS)
        assert (found.holds, found.theorem) == (expected.holds, "12" if expected.holds else "")
        assert (found.contraction, found.floor) == pytest.approx(
            (expected.contraction, expected.floor)
        )
        assert found.on_support.tolist() == found.error.tolist() and not found.off_support.any()


def test_activation_schedule_follows_the_hand_recursion():
    rho, mu, C, d, s, B, K = activations.elu(0.3), 0.02, 0.7, 40, 3, 2.0, 30
    found = activation_schedule(
        rho, mu, C, d=d, sparsity=s, bound=B, noise=0.01, depth=K, guard=1e-6
    )
    E_S, E_O, c = s * B, 0.0, C * 0.01 + 1e-6
    for k in range(K):
        theta = mu * (E_S + E_O) + c
        assert (found.theta[k], found.on_support[k], found.off_support[k]) == pytest.approx(
            (theta, E_S, E_O), rel=K * 16 * EPS
        )
        tail = min(0.3, 0.3 * (B + 2 * theta))
        E_S, E_O = (
            (s - 1) * mu * E_S + s * mu * E_O + s * (c + theta + tail),
            (d - s) * min(2 * 0.3 * theta, 0.3),
        )
    assert found.error[K] == pytest.approx(E_S + E_O, rel=K * 16 * EPS)


SMALL, LARGE = dict(mu=0.01, d=40, sparsity=2), dict(mu=0.3, d=40, sparsity=2)
act = activations


@pytest.mark.parametrize("activation, problem, theorem", [
    (act.elu(0.1), SMALL, "15"), (act.elu(0.1), LARGE, "15"), (act.celu(0.1), LARGE, "15"),
    (act.compose(act.elu(0.5), 4), SMALL, "15"), (act.compose(act.elu(0.5), 4), LARGE, "15"),
    (act.scale(act.elu(1.673), 1e3), LARGE, "15"),
    # An unbounded tail is covered only while mu (2 s + 2 L (d - s) + 2 s L) < 1.
    (act.leaky_relu(0.01), SMALL, "15"),
    (act.leaky_relu(0.1), LARGE, ""),
    (act.scale(act.gelu, 1e3), LARGE, "10"), (act.silu, LARGE, "10"),
    (act.scale(act.softplus, 1e4), LARGE, "10"),
    (act.compose(act.silu, 2), SMALL, "10"),
    (act.selu, SMALL, ""),  # slope 1.05 on x > 0: unbounded distance from ReLU
    (act.relu, LARGE, "12"),
    (act.relu, dict(mu=0.34, d=40, sparsity=2), ""),
    (act.silu, dict(mu=0.34, d=40, sparsity=2), ""),
])  # fmt: skip
def test_which_theorem_covers_which_activation(activation, problem, theorem):
    found = activation_schedule(activation, C_W=1.0, bound=1.0, noise=1e-3, depth=400, **problem)
    assert (found.theorem, found.holds, math.isfinite(found.floor)) == (
        theorem,
        bool(theorem),
        bool(theorem),
    )
    if theorem:
        # With a contraction of at most .9 the error has settled after 400 steps.
        assert found.error[-1] <= found.floor * (1 + 1e-9)
        assert found.rate == pytest.approx(-math.log(found.contraction)) and found.contraction < 1


def test_the_floor_of_a_bounded_tail():
    # (2 s C delta + s osc + 2 s mu (d - s) osc) / (1 - a) + (d - s) osc, Theorem 10.
    mu, C, d, s, delta, osc = 0.1, 0.7, 30, 2, 0.01, 0.69314719 / 1e3
    found = activation_schedule(
        act.scale(act.softplus, 1e3), mu, C, d=d, sparsity=s, bound=1.0, noise=delta, depth=1
    )
    off = (d - s) * osc
    assert found.floor == pytest.approx(
        (2 * s * C * delta + s * osc + 2 * s * mu * off) / 0.7 + off
    )


def test_the_floor_of_a_small_slope():
    # The l1 norm of the recursion gives alpha = mu (2 L d + (2 - 2 L) s) and the floor
    # (s osc + (2 s + 2 L (d - s)) C delta) / (1 - alpha); the radius and the limit are smaller.
    mu, C, d, s, delta, L = 0.01, 0.7, 40, 2, 0.01, 0.1
    found = activation_schedule(
        act.elu(L), mu, C, d=d, sparsity=s, bound=1.0, noise=delta, depth=60
    )
    alpha = mu * (2 * L * d + (2 - 2 * L) * s)
    assert 0.9 * alpha < found.contraction < alpha
    floor = (s * L + (2 * s + 2 * L * (d - s)) * C * delta) / (1 - alpha)
    assert 0.9 * floor < found.floor < floor
    assert found.floor == pytest.approx(found.error[-1], rel=1e-12)


def test_a_small_slope_of_an_unbounded_tail_needs_more_than_the_condition_of_theorem_9():
    # The slope acts on the support too, where a bounded tail is a constant.
    options = dict(d=3, sparsity=2, bound=1.0, depth=400)
    mu, L = 0.2, 0.4
    assert mu * (2 * L * 3 + (2 - 2 * L) * 2) == pytest.approx(0.96)
    found = activation_schedule(act.leaky_relu(L), mu, 1.0, **options)
    assert found.contraction > 1.1 and not found.holds and found.error[-1] > 1e9
    assert activation_schedule(act.elu(L), mu, 1.0, **options).holds
    mu = 0.999 / (2 * L * 3 + 2 * 2)
    assert activation_schedule(act.leaky_relu(L), mu, 1.0, **options).holds
    for d in range(2, 12):
        for s in range(1, d + 1):
            for L in (1e-3, 0.1, 0.5, 1.0):
                mu = 0.999 / (2 * L * d + 2 * s)
                found = activation_schedule(
                    act.leaky_relu(L), mu, 1.0, d=d, sparsity=s, bound=1.0, depth=0
                )
                assert found.holds and found.contraction < 0.9991


def test_an_unbounded_tail_contracts_by_its_spectral_radius():
    # The l1 norm is 1.016, the radius .771: the errors converge although the norm does not say so.
    options = dict(d=32, sparsity=2, bound=1.0, noise=0.0)
    found = activation_schedule(act.leaky_relu(0.001), 0.25, 1.0, depth=200, **options)
    assert found.holds and found.theorem == "15" and not found.vacuous
    assert found.contraction == pytest.approx(0.771, abs=5e-4)
    assert found.floor == pytest.approx(0.00869, abs=5e-6)
    assert found.error[-1] == pytest.approx(found.floor, rel=1e-12)


RECURSIONS = [
    act.leaky_relu(0.001), act.leaky_relu(0.03), act.leaky_relu(0.3), act.elu(0.1), act.elu(1.0),
    act.compose(act.elu(0.5), 4), act.scale(act.elu(), 1e3), act.scale(act.softplus, 30.0),
    act.relu,
]  # fmt: skip


@pytest.mark.few(6)
@pytest.mark.parametrize("rho", RECURSIONS, ids=str)
def test_the_floor_is_the_limit_of_the_recursion_and_exists_exactly_where_it_converges(rho):
    rng, converging, diverging = np.random.default_rng(0), 0, 0
    for _ in range(25):
        d, s = int(rng.integers(2, 60)), int(rng.integers(0, 4))
        mu, noise, eta = 10.0 ** rng.uniform(-3, 0), rng.choice([0, 0.02]), rng.choice([0, 0.01])
        found = activation_schedule(
            rho, mu, 1.0, d=d, sparsity=s, bound=1.0, noise=noise, eta=eta, depth=2000
        )
        if found.holds and found.contraction < 0.98:
            converging += 1
            assert found.error[-1] == pytest.approx(found.floor, rel=1e-9, abs=1e-12)
            # Around the limit the error contracts by the radius, and no faster.
            off = np.abs(found.error - found.floor)
            k = np.flatnonzero(off > 1e-9 * (1 + found.floor))[-1:]
            if len(k) and k[0] > 60 and not noise:
                assert off[k[0]] / off[k[0] - 1] == pytest.approx(found.contraction, rel=1e-3)
        elif not found.holds:
            diverging += 1
            assert found.contraction >= 1 and found.floor == math.inf
            assert s == 0 or found.contraction < 1.01 or found.error[-1] > 1e3
    assert converging > 2 and diverging > 0


def test_an_error_above_its_beginning_is_vacuous():
    options = dict(d=40, sparsity=2, bound=1.0)
    wide = activation_schedule(act.silu, 0.3, 1.0, depth=400, **options)
    assert wide.holds and wide.vacuous and wide.error[-1] > wide.error[0]
    for rho in (act.relu, act.scale(act.silu, 1e3)):
        found = activation_schedule(rho, 0.3, 1.0, depth=400, **options)
        assert found.holds and not found.vacuous and found.error[-1] < found.error[0]
        assert activation_schedule(rho, 0.3, 1.0, depth=0, **options).vacuous
        assert activation_schedule(rho, 0.34, 1.0, depth=400, **options).vacuous
    assert not activation_schedule(
        act.relu, 0.3, 1.0, depth=3, d=40, sparsity=0, bound=1.0
    ).vacuous  # x = 0 is the code


def test_scaling_divides_the_noiseless_floor():
    floors = [
        activation_schedule(
            act.scale(act.gelu, k), 0.1, 1.0, d=30, sparsity=2, bound=1.0, depth=1
        ).floor
        for k in (10.0, 1000.0)
    ]
    assert floors[0] == pytest.approx(100 * floors[1])


def test_sparsity_is_clipped_to_the_length_of_the_code():
    options = dict(bound=1.0, depth=5, d=3)
    clipped, full = (
        activation_schedule(act.elu(0.1), 0.05, 1.0, sparsity=s, **options) for s in (9, 3)
    )
    assert clipped.error.tolist() == full.error.tolist() and not full.off_support.any()


def test_a_diverging_activation_is_reported_without_nan():
    found = activation_schedule(
        act.leaky_relu(0.5), 0.5, 1.0, d=1000, sparsity=2, bound=1.0, depth=500
    )
    assert not found.holds and found.error[-1] == math.inf
    assert not np.isnan(found.error).any() and not np.isnan(found.theta).any()


def test_a_diverging_activation_with_one_nonzero_is_reported_without_nan():
    found = activation_schedule(
        act.leaky_relu(0.5), 0.5, 1.0, d=1000, sparsity=1, bound=1.0, depth=500
    )
    assert not np.isnan(found.error).any() and not np.isnan(found.theta).any()


def test_without_a_regime_there_is_no_contraction():
    found = activation_schedule(act.leaky_relu(0.1), 0.3, 1.0, d=40, sparsity=2, bound=1.0, depth=1)
    assert not found.holds and found.contraction >= 1
