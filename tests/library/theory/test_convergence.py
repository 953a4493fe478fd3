"""Schedules per atom, stability of iterates, objectives and plans, on random members of classes."""

import dataclasses
import functools
import itertools
import math
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import barker, matrix_of, members, off_diagonal
from oracles import unit

from unrolled import activations as act
from unrolled import dictionaries, theory
from unrolled.theory import activation_schedule, atom_schedule, deep_schedule, plan, schedule

EPS = np.finfo(np.float64).eps


def soft(u, theta):
    return np.sign(u) * np.maximum(np.abs(u) - theta, 0)


def iterates(D, W, theta, Y, rho=None):
    """The codes of a batch after every step, (n, d) each, in the dtype of D."""
    X = np.zeros((len(Y), D.shape[1]), D.dtype)
    for t in np.asarray(theta, D.dtype):
        u = X + (Y - X @ D.T) @ W
        X = soft(u, t) if rho is None else np.asarray(rho(u - t)) - np.asarray(rho(-u - t))
        yield X


class Pair(NamedTuple):
    """A dictionary, weights, and the numbers of theory, by plain sums in float64."""

    D: np.ndarray
    W: np.ndarray
    mus: np.ndarray
    C_Ws: np.ndarray
    eta: float

    @property
    def mu(self):
        return self.mus.max()

    @property
    def C(self):
        return self.C_Ws.max()

    def guard(self, s, bound=1.0):
        return theory.rounding_guard(self.W, self.D, sparsity=s, bound=bound)

    def atoms(self, **options):
        return atom_schedule(self.mus, self.C_Ws, eta=self.eta, **options)

    def common(self, **options):
        return schedule(self.mu, self.C, eta=self.eta, **options)


def pair(D, W, dtype=np.float64):
    D, W = matrix_of(D, dtype), matrix_of(W, dtype)
    off, own = off_diagonal(W, D)
    return Pair(D, W, off.max(1), np.abs(W).max(0).astype(float), np.abs(1 - own).max())


@functools.cache
def minimax():
    D = unit(np.random.default_rng(0).normal(size=(36, 48)))
    return D, np.asarray(theory.generalized_coherence(D).W)


def one_poor_atom():
    """Good weights for all atoms except the first: w_1 . d_1 = 1 and w_1 . d_2 = .34."""
    D, W = minimax()
    away = D[:, 1] - (D[:, 0] @ D[:, 1]) * D[:, 0]
    w = W[:, 0] + (0.34 - W[:, 0] @ D[:, 1]) / (away @ D[:, 1]) * away
    return D, np.column_stack([w, W[:, 1:]])


@functools.cache
def conv():
    D = barker(32)
    return D, theory.generalized_coherence(D).W


def transversal():
    """30 lines over the field of 7 elements with 4 nonzeros each; the first four are disjoint."""
    rng, D = np.random.default_rng(0), np.zeros((28, 30))
    for column, line in zip(D.T, [0, 7, 14, 21, *rng.choice(np.arange(22, 49), 26, replace=False)]):
        column[[7 * i + (line // 7 + i * line) % 7 for i in range(4)]] = rng.choice([-1, 1], 4) / 2
    return D


@functools.cache
def load(name, dtype=np.float64):
    rng = np.random.default_rng(1)
    D, W = {
        "minimax": minimax,
        "minimax, off its diagonal": lambda: (
            minimax()[0],
            minimax()[1] * rng.uniform(0.97, 1.03, 48),
        ),
        "one poor atom": one_poor_atom,
        "transversal": lambda: (transversal(),) * 2,
        "conv": conv,
        "hadamard": lambda: (dictionaries.identity_hadamard(64),) * 2,
        "paley": lambda: (dictionaries.paley(101),) * 2,  # 51 x 102
    }[name]()
    return pair(D, W, dtype)


UNEVEN = ["minimax", "minimax, off its diagonal", "one poor atom", "transversal", "conv"]


def l1_noise(rng, p, n, delta):
    """Noise of l1 norm delta: where some |w_i| has its largest entry, or spread out."""
    m, d = p.D.shape
    spike = np.eye(m)[np.abs(p.W).argmax(0)[rng.integers(d, size=n)]] * rng.choice([-1, 1], (n, 1))
    spread = rng.laplace(size=(n, m))
    return delta * np.where(
        rng.random((n, 1)) < 0.7, spike, spread / np.abs(spread).sum(1, keepdims=True)
    )


def signals(p, X, E=0.0):
    return (X @ p.D.astype(float).T + E).astype(p.D.dtype)


def assert_certified(p, found, X, Y, rho=None):
    """No false positives, no l1 error above the certified one; the guard is the only slack."""
    for k, codes in enumerate(iterates(p.D, p.W, found.theta, Y, rho), start=1):
        assert not codes[X == 0].any(), k
        assert np.abs(codes - X).sum(1).max() <= found.error[k], k


# Thresholds per atom.


@pytest.mark.slow
def test_atom_coherence_is_the_largest_product_of_every_atom(dtype):
    for name in ("minimax, off its diagonal", "conv"):
        p = load(name, dtype)
        found = theory.atom_coherence(p.W, p.D)
        assert found.mu_W.dtype == found.C_W.dtype == dtype
        # Rounding of a product of two unit vectors of length 48.
        assert np.asarray(found.mu_W) == pytest.approx(p.mus, abs=48 * float(np.finfo(dtype).eps))
        assert np.asarray(found.C_W).tolist() == p.C_Ws.tolist()


@pytest.mark.slow
def test_atom_coherence_of_structured_dictionaries_and_under_jit():
    D, W = conv()
    found, expected = theory.atom_coherence(W, D), load("conv")
    assert np.asarray(found.mu_W) == pytest.approx(expected.mus, abs=64 * EPS)
    assert float(found.mu_W.max()) == pytest.approx(float(theory.coherence(W, D).mu_W))
    traced = jax.jit(theory.atom_coherence)(expected.W, expected.D)
    assert np.asarray(traced.mu_W) == pytest.approx(expected.mus, abs=64 * EPS)
    alone = theory.atom_coherence(np.ones((1, 1)), np.ones((1, 1)))
    assert (float(alone.mu_W[0]), float(alone.C_W[0])) == (0, 1)


def test_atom_schedule_is_the_worst_support_by_brute_force():
    # Over supports S of s atoms: sum_{i in S} of (mu_i (E - |e_i|) + eta |e_i| + c_i + theta_i), e
    # on one atom of S.
    rng = np.random.default_rng(2)
    for s, noise in itertools.product((1, 2, 3, 4), (0.0, 0.1)):
        mus, C_Ws, eta = rng.uniform(0, 0.4, 7) ** 2, rng.uniform(0.3, 1, 7), rng.uniform(0, 0.1)
        found = atom_schedule(
            mus, C_Ws, sparsity=s, bound=1.5, noise=noise, depth=9, guard=1e-3, eta=eta
        )
        c = C_Ws * noise + 1e-3
        for E, after, theta in zip(found.error, found.error[1:], found.theta):
            assert theta == pytest.approx(mus * E + c)
            worst = max(
                sum(mus[i] * E * (i != j) + c[i] + theta[i] for i in S) + eta * E
                for S in itertools.combinations(range(7), s)
                for j in S
            )
            # With noise, the two sums of the largest entries may run over different atoms.
            assert worst <= after * (1 + 8 * EPS) and (noise or after == pytest.approx(worst))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("s, noise", [(1, 0.0), (2, 0.0), (2, 0.05), (3, 0.01)])
def test_atom_schedule_is_never_above_the_common_one(name, s, noise):
    p = load(name)
    options = dict(sparsity=s, bound=2.0, noise=noise, depth=30, guard=1e-9)
    ours, common = p.atoms(**options), p.common(**options)
    slack = 1 + 30 * 8 * EPS  # the sums are rounded in another order
    assert ours.contraction <= common.contraction * slack and ours.floor <= common.floor * slack
    assert (ours.error <= common.error * slack).all() and (
        ours.theta <= common.theta[:, None] * slack
    ).all()
    assert ours.holds or not common.holds


def test_equal_atoms_have_the_common_schedule():
    options = dict(sparsity=3, bound=2.0, noise=0.01, depth=20, guard=1e-6, eta=1e-3)
    ours, common = (
        atom_schedule(np.full(9, 0.1), np.full(9, 0.7), **options),
        schedule(0.1, 0.7, **options),
    )
    assert ours.error == pytest.approx(common.error, rel=160 * EPS)
    assert ours.theta == pytest.approx(
        np.broadcast_to(common.theta[:, None], (20, 9)), rel=160 * EPS
    )
    for name in ("contraction", "rate", "floor", "holds"):
        assert getattr(ours, name) == pytest.approx(getattr(common, name))


@pytest.mark.few(2)
@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_no_member_breaks_the_bounds_of_its_atoms(name, noise):
    p, rng = load(name), np.random.default_rng(3)
    for s in (1, 2):
        found = p.atoms(sparsity=s, bound=1.0, noise=noise, depth=50, guard=p.guard(s))
        assert found.holds
        X = members(rng, p.W, p.D, 400, s)
        assert_certified(p, found, X, signals(p, X, l1_noise(rng, p, len(X), noise)))


def tiny(rng):
    """A few atoms, with weights near them or far away, and an exact or inexact diagonal."""
    D = unit(rng.normal(size=(rng.integers(2, 6), rng.integers(1, 7))))
    W = D + rng.choice([0, 0.1, 0.5]) * rng.normal(size=D.shape)
    off = rng.choice([0, 0.1, 0.5])
    return pair(D, W / (W * D).sum(0) * rng.uniform(1 - off, 1 + off, D.shape[1]))


def test_tiny_pairs_stay_under_the_recursion_whether_it_contracts_or_not():
    rng, tightest = np.random.default_rng(30), 0.0
    for trial in range(300):
        p = tiny(rng)
        s, noise = int(rng.integers(1, min(3, p.D.shape[1]) + 1)), 0.1 * (trial % 2)
        found = p.atoms(sparsity=s, bound=1.0, noise=noise, depth=6)
        X = members(rng, p.W, p.D, 200, s)
        codes = iterates(p.D, p.W, found.theta, signals(p, X, l1_noise(rng, p, 200, noise)))
        for error, x in zip(found.error[1:], codes):
            # No guard: rounding of codes of size 1, and of errors that grow.
            slack = 1e-12 * max(1, error)
            assert (
                np.abs(x[X == 0]).max(initial=0) <= slack
                and np.abs(x - X).sum(1).max() <= error + slack
            )
            tightest = max(tightest, np.abs(x - X).sum(1).max() / error if error > 1e-6 else 0)
    assert tightest > 0.99


def test_schedules_per_atom_contract_where_the_worst_atom_does_not():
    p, rng = load("one poor atom"), np.random.default_rng(4)
    assert np.sort(p.mus)[-2] < 0.18 and 0.34 * (1 - 4 * EPS) <= p.mu < 0.4  # .34 to rounding
    options = dict(sparsity=2, bound=1.0, depth=100, guard=p.guard(2))
    found = p.atoms(**options)
    assert found.holds and not p.common(**options).holds
    X = members(rng, p.W, p.D, 400, 2)
    X[:200] *= 0  # half of the codes contain the poor atom
    X[:200, 0], X[np.arange(200), rng.integers(1, 48, 200)] = 1, -1
    assert_certified(p, found, X, signals(p, X))
    assert found.error[-1] < 1e-3


def test_more_noise_than_declared_breaks_the_bounds_of_the_atoms():
    p, rng = load("minimax"), np.random.default_rng(5)
    found = p.atoms(sparsity=1, bound=1.0, noise=0.05, depth=40)
    X = np.zeros((300, 48))
    last = list(iterates(p.D, p.W, found.theta, signals(p, X, l1_noise(rng, p, 300, 0.1))))[-1]
    assert last.any()


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["minimax", "minimax, off its diagonal", "one poor atom", "conv"])
def test_the_guard_of_the_atoms_keeps_depth_harmless(name, dtype):
    p, rng = load(name, dtype), np.random.default_rng(6)
    X = members(rng, p.W, p.D, 200, 1).astype(dtype).astype(float)
    found = p.atoms(sparsity=1, bound=1.0, depth=300, guard=p.guard(1))
    assert found.holds and found.floor < 75 * p.guard(1)
    assert_certified(p, found, X, signals(p, X))


@pytest.mark.few(1)
def test_without_the_guard_the_atoms_diverge(dtype):
    # d = 3 m, so I - W'D expands the rounding errors off the support.
    D = unit(np.random.default_rng(1).normal(size=(40, 120)))
    p, rng = pair(D, theory.frobenius_weights(D), dtype), np.random.default_rng(7)
    X = members(rng, p.W, p.D, 100, 1).astype(dtype).astype(float)
    E = np.finfo(dtype).eps / 2 * (X @ D.T) * rng.choice([-1, 1], (100, 40))  # the last bit of y
    guarded, bare = (p.atoms(sparsity=1, bound=1.0, depth=250, guard=g) for g in (p.guard(1), 0.0))
    assert_certified(p, guarded, X, signals(p, X, E))
    with np.errstate(over="ignore", invalid="ignore"):
        last = list(iterates(p.D, p.W, bare.theta, signals(p, X, E)))[-1]
    assert not np.abs(last).max() < 10


def test_the_error_per_atom_over_s_does_not_bound_the_largest_entry():
    # w_1 = e_1 meets d_2 by mu, w_2 does not meet d_1: mus (mu, 0), E_1 = 2 mu E_0. From x* = (1,
    # -1) the first entry is 1 - mu - 2 mu after a step, off by 3 mu, where E_1 / 2 = 2 mu.
    mu = 0.2
    D = np.array([[1.0, mu], [0.0, math.sqrt(1 - mu**2)]])
    p = pair(D, np.diag([1.0, 1 / D[1, 1]]))
    assert p.mus == pytest.approx([mu, 0]) and p.eta < 4 * EPS
    found = p.atoms(sparsity=2, bound=1.0, depth=1)
    X = np.array([[1.0, -1.0]])
    (codes,) = iterates(p.D, p.W, found.theta, signals(p, X))
    assert np.abs(codes - X).max() == pytest.approx(3 * mu) and found.error[1] / 2 == pytest.approx(
        2 * mu
    )
    assert np.abs(codes - X).sum() <= found.error[1]


def test_atom_schedule_at_the_ends_of_its_range():
    mus, C_Ws = [0.1, 0.2], [1.0, 0.5]
    none = atom_schedule(mus, C_Ws, sparsity=0, bound=1.0, noise=0.1, depth=3)
    assert (
        none.holds
        and not none.error.any()
        and (none.contraction, none.rate, none.floor) == (0, math.inf, 0)
    )
    clipped, full = (atom_schedule(mus, C_Ws, sparsity=s, bound=1.0, depth=3) for s in (9, 2))
    assert clipped.error.tolist() == full.error.tolist()
    exact = atom_schedule([0.0, 0.0], C_Ws, sparsity=2, bound=1.0, depth=2)
    assert exact.error.tolist() == [2, 0, 0]
    start = atom_schedule(mus, C_Ws, sparsity=1, bound=1.0, depth=0)
    assert start.error.tolist() == [1] and start.theta.shape == (0, 2)
    beyond = atom_schedule([0.9, 0.9], C_Ws, sparsity=2, bound=1.0, noise=0.1, depth=3000)
    assert not beyond.holds and beyond.floor == math.inf and not np.isnan(beyond.theta).any()
    assert not np.isnan(beyond.error).any() and beyond.error[-1] == math.inf
    for unbounded in ({"bound": math.inf}, {"noise": math.inf}, {"guard": math.inf}):
        found = atom_schedule(
            [0.1, 0.0], C_Ws, **{"sparsity": 1, "bound": 1.0, "depth": 3, **unbounded}
        )
        assert not found.holds and found.floor == math.inf
        assert not np.isnan(found.error).any() and not np.isnan(found.theta).any()


# Noise in l2.


def test_noise_gain_is_the_largest_norm(dtype):
    p = load("minimax", dtype)
    expected = np.linalg.norm(p.W.astype(float), axis=0).max()
    assert theory.noise_gain(p.W) == pytest.approx(expected, rel=2e-9)  # rounded up
    assert theory.noise_gain(conv()[1]) == pytest.approx(
        np.linalg.norm(load("conv").W, axis=0).max()  # of its filters
    )
    assert type(theory.noise_gain(p.W)) is float


def test_twice_the_l2_noise_makes_a_false_positive_of_every_atom():
    # At the floor theta = delta (1 + 2 mu / (1 - mu)) < 2 delta.
    p, delta = load("hadamard"), 0.05
    found = schedule(p.mu, theory.noise_gain(p.W), sparsity=1, bound=1.0, noise=delta, depth=40)
    last = list(iterates(p.D, p.W, found.theta, 2 * delta * p.D.T))[-1]
    assert (np.diag(last) != 0).all()
    # So the bound on the noise is tight. With its l1 norm, 8 times as large, thresholds and error
    # would be 8 times larger.
    assert schedule(
        p.mu, p.C, sparsity=1, bound=1.0, noise=8 * delta, depth=1
    ).floor == pytest.approx(8 * found.floor)


def test_largest_entries_do_not_cover_noise_in_l2():
    # C_W delta in place of omega delta: only a w_i with a single entry has C_W = omega.
    p, delta = load("minimax"), 0.05
    Y = delta * unit(p.W).T
    assert theory.noise_gain(p.W) > 1.1 * p.C
    for gain, false_positives in ((p.C, True), (theory.noise_gain(p.W), False)):
        found = schedule(p.mu, gain, sparsity=0, bound=1.0, noise=delta * (1 + 1e-12), depth=20)
        assert list(iterates(p.D, p.W, found.theta, Y))[-1].any() == false_positives


# Steps until the support is found.


@pytest.mark.few(2)
@pytest.mark.parametrize("name, s, noise", [
    ("hadamard", 2, 0.0), ("hadamard", 4, 0.0), ("paley", 3, 0.0),
    ("hadamard", 2, 0.01), ("paley", 2, 0.01), ("minimax", 2, 0.0),
])  # fmt: skip
def test_the_support_is_found_from_the_promised_step_on(name, s, noise):
    p, rng, depth = load(name), np.random.default_rng(9), 80
    found = p.common(sparsity=s, bound=1.0, noise=noise, depth=depth, guard=p.guard(s))
    for smallest in (0.9, 0.3, 0.15):
        promised = found.steps_to_support(smallest, sparsity=s)
        assert 1 <= promised <= depth and found.error[promised] / s < smallest
        X = members(rng, p.W, p.D, 200, s, least=smallest)
        # All nonzeros as small as allowed.
        X[:50] *= smallest / np.abs(np.where(X[:50] == 0, 1, X[:50]))
        codes = list(
            iterates(p.D, p.W, found.theta, signals(p, X, l1_noise(rng, p, len(X), noise)))
        )
        assert all(((x != 0) == (X != 0)).all() for x in codes[promised - 1 :])


def test_the_support_is_not_found_before_the_promised_step():
    # C-23: x* = (1, .02) in [I | Hadamard]. E_k / 2 = (3/8)^k falls below .02 at k = 4.
    p = load("hadamard")
    found = schedule(1 / 8, 1.0, sparsity=2, bound=1.0, depth=20)
    for small, promised in ((0.02, 4), (0.0198, 4), (0.0075, 5), (1e-4, 10)):
        assert found.steps_to_support(small, sparsity=2) == promised
        X = np.zeros((4, 128))
        for x, (i, j) in zip(X, [(0, 1), (0, 64), (64, 65), (5, 100)]):
            x[[i, j]] = 1, -small
        sizes = [
            np.count_nonzero(codes, axis=1)
            for codes in iterates(p.D, p.W, found.theta, signals(p, X))
        ]
        assert (sizes[promised - 2] == 1).any() and all(
            (size == 2).all() for size in sizes[promised - 1 :]
        )


def test_with_noise_the_support_may_never_be_found():
    p = load("hadamard")
    found = schedule(1 / 8, 1.0, sparsity=2, bound=1.0, noise=0.05, depth=200)
    small = found.floor / 2
    assert (
        found.steps_to_support(small, sparsity=2)
        == math.inf
        > found.steps_to_support(1.01 * small, sparsity=2)
    )
    X = np.zeros((1, 128))
    X[0, [0, 70]] = 1, 0.04
    assert all(
        (x != 0).sum() < 2
        for x in iterates(p.D, p.W, found.theta, signals(p, X, -0.05 * p.D[:, 70]))
    )


def test_steps_to_support_at_the_ends_of_its_range():
    found = schedule(0.1, 1.0, sparsity=2, bound=1.0, depth=9)
    assert found.steps_to_support(1.0, sparsity=2) == 1  # error_0 / s is 1, not below
    # No such code.
    assert (
        found.steps_to_support(1.01, sparsity=2)
        == found.steps_to_support(math.inf, sparsity=2)
        == 0
    )
    assert found.steps_to_support(0.0, sparsity=2) == math.inf
    assert found.steps_to_support(0.1, sparsity=0) == 0
    assert (
        schedule(0.0, 1.0, sparsity=2, bound=1.0, depth=1).steps_to_support(1e-9, sparsity=2) == 1
    )
    assert (
        schedule(0.5, 1.0, sparsity=2, bound=1.0, depth=1).steps_to_support(0.5, sparsity=2)
        == math.inf
    )


# Lemma 13.


@pytest.mark.few(1)
@pytest.mark.parametrize("shape", [(20, 60), (24, 30), (12, 8)])
def test_two_runs_stay_within_the_sequence_bound(shape):
    rng = np.random.default_rng(10)
    D = unit(rng.normal(size=shape))
    for W in (D, np.asarray(theory.frobenius_weights(D)), rng.normal(size=shape)):
        factors = theory.sequence_bound(W, D, 30)
        for thresholds in (
            np.zeros(30),
            rng.exponential(0.3, 30),
            0.7 ** np.arange(30),
            rng.exponential(1, (30, shape[1])),
        ):
            Y = rng.normal(size=(200, shape[0])) * 10.0 ** rng.uniform(-2, 2, (200, 1))
            change = rng.normal(size=Y.shape) * 10.0 ** rng.uniform(-6, 1, (200, 1))
            change[:50] = W.T[rng.integers(shape[1], size=50)]
            runs = zip(iterates(D, W, thresholds, Y), iterates(D, W, thresholds, Y + change))
            # Rounding of codes of size |x| with a small difference.
            for k, (x, other) in enumerate(runs, start=1):
                limit = factors[k] * np.linalg.norm(change, axis=1)
                slack = 1e3 * EPS * factors[k] * np.linalg.norm(Y, axis=1)
                assert (np.linalg.norm(x - other, axis=1) <= limit + slack).all()


def test_sequence_bound_is_the_sum_of_its_definition_and_grows():
    D = unit(np.random.default_rng(11).normal(size=(10, 25)))
    W = np.asarray(theory.frobenius_weights(D))
    found, step = theory.sequence_bound(W, D, 12), np.linalg.norm(np.eye(25) - W.T @ D, 2)
    expected = [np.linalg.norm(W, 2) * sum(step**i for i in range(k)) for k in range(13)]
    # Each factor is rounded up by 1e-9.
    assert found == pytest.approx(expected, rel=2e-8) and (found >= expected).all()
    assert (found >= np.linalg.norm(W, 2) * np.arange(13)).all()  # d > m: at least linearly
    assert theory.sequence_bound(W, D, 0).tolist() == [0]
    # No growth: W'D = I.
    assert theory.sequence_bound(np.eye(3), np.eye(3), 4) == pytest.approx([0, 1, 1, 1, 1])


def test_sequence_bound_overflows_to_infinity_without_a_warning():
    D = unit(np.random.default_rng(11).normal(size=(10, 25)))
    found = theory.sequence_bound(np.asarray(theory.frobenius_weights(D)), D, 3000)
    assert found[-1] == math.inf and not np.isnan(found).any()


def test_without_thresholds_the_iterates_grow_as_the_spectral_radius():
    # C-12: d / m = 3. The map is linear, the mean nonzero eigenvalue of I - W'D is 1 - d/m = -2.
    D = unit(np.random.default_rng(0).normal(size=(20, 60)))
    W, rng = np.asarray(theory.frobenius_weights(D)), np.random.default_rng(12)
    Y, change = rng.normal(size=(2, 50, 20))
    runs = zip(iterates(D, W, np.zeros(40), Y), iterates(D, W, np.zeros(40), Y + change))
    growth = [
        (np.linalg.norm(x - z, axis=1) / np.linalg.norm(change, axis=1)).max() for x, z in runs
    ]
    radius = np.abs(np.linalg.eigvals(np.eye(60) - W.T @ D)).max()
    assert 2.4 < radius < 2.7
    assert (growth[39] / growth[19]) ** (1 / 20) == pytest.approx(radius, rel=0.01)
    assert growth[0] < 5 and growth[39] > 1e15  # no constant serves all k
    assert (np.array(growth) <= theory.sequence_bound(W, D, 40)[1:]).all()


def test_two_runs_on_one_support_stay_within_the_support_bound():
    # Runs on a dictionary of these atoms alone stay on them, for any thresholds and signals.
    rng, tightest = np.random.default_rng(13), 0.0
    for _ in range(60):
        p, t = (
            load(rng.choice(["minimax, off its diagonal", "paley", "conv", "hadamard"])),
            rng.integers(1, 6),
        )
        bound = theory.support_bound(p.mu, p.C, size=t, eta=p.eta)
        chosen = rng.choice(p.D.shape[1], t, replace=False)
        theta = rng.exponential(0.2, (25, t)) * rng.integers(0, 2)
        Y = signals(p, members(rng, p.W, p.D, 100, 3))
        known = p._replace(D=p.D[:, chosen], W=p.W[:, chosen])
        change = l1_noise(rng, known, 100, 1.0) * 10.0 ** rng.uniform(-3, 1, (100, 1))
        runs = (iterates(known.D, known.W, theta, Z) for Z in (Y, Y + change))
        for x, other in zip(*runs):
            ratio = np.abs(x - other).sum(1) / np.abs(change).sum(1)
            assert ratio.max() <= bound * (1 + 1e-9)  # differences of codes of size 1, rounded
            tightest = max(tightest, ratio.max() / bound)
    assert tightest > 0.9  # one atom and theta = 0: |w . e| = C_W


def test_inside_the_class_the_support_bound_holds_for_all_k():
    # C-12: Paley 51 x 102, s = 4. Bound about 5, observed below .5; the printed constant is (d
    # mu)^k.
    p, rng, s, delta = load("paley"), np.random.default_rng(14), 4, 0.05
    found = p.common(sparsity=s, bound=1.0, noise=delta, depth=60)
    X = members(rng, p.W, p.D, 400, s)
    E, other = l1_noise(rng, p, 400, delta), l1_noise(rng, p, 400, delta)
    bound, worst = theory.support_bound(p.mu, p.C, size=s), 0.0
    for x, z in zip(*(iterates(p.D, p.W, found.theta, signals(p, X, e)) for e in (E, other))):
        assert not x[X == 0].any() and not z[X == 0].any()
        apart = np.abs(E - other).sum(1)
        worst = max(worst, (np.abs(x - z).sum(1)[apart > 0] / apart[apart > 0]).max())
    assert bound == pytest.approx(4 * p.C / (1 - 3 * p.mu)) and 5 < bound < 6
    assert 0.1 < worst <= bound
    assert (102 * p.mu) ** 60 > 1e59 * bound


def test_support_bound_at_the_ends_of_its_range():
    assert theory.support_bound(0.1, 0.7, size=0) == 0
    assert theory.support_bound(0.1, 0.7, size=1) == 0.7
    assert (
        theory.support_bound(0.25, 1.0, size=5)
        == theory.support_bound(0.1, 1.0, size=2, eta=0.95)
        == math.inf
    )
    assert theory.support_bound(math.inf, 1.0, size=1) == 1
    assert theory.support_bound(0.1, math.inf, size=2) == math.inf


# Corollary 8.


def objective(D, z, X, gamma):
    return ((z - X @ D.T) ** 2).sum(1) + gamma * np.abs(X).sum(1)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ["hadamard", "paley", "minimax, off its diagonal", "conv"])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 1.0, 30.0])
def test_the_objective_stays_within_its_bound_on_both_sides(name, gamma):
    p, rng, s = load(name), np.random.default_rng(15), 2
    found = p.common(sparsity=s, bound=1.0, noise=0.02, depth=25, guard=p.guard(s))
    X = members(rng, p.W, p.D, 300, s)
    z = signals(p, X)
    bounds = [
        theory.objective_bound(p.D, e, sparsity=s, gamma=gamma) for e in found.error[[0, 1, 5, 25]]
    ]
    codes = [0 * X, *iterates(p.D, p.W, found.theta, z + l1_noise(rng, p, len(X), 0.02))]
    for k, bound in zip((0, 1, 5, 25), bounds):
        assert np.abs(
            objective(p.D, z, codes[k], gamma) - objective(p.D, z, X, gamma)
        ).max() <= bound * (1 + 1e-12)


def test_objective_bound_by_its_formula(dtype):
    D = unit(np.random.default_rng(16).normal(size=(30, 70))).astype(dtype)
    norm = np.linalg.norm(D.astype(float), 2)
    found = theory.objective_bound(D, 0.3, sparsity=4, gamma=0.7)
    assert norm**2 * 0.09 / 4 + 0.21 <= found == pytest.approx(norm**2 * 0.09 / 4 + 0.21, rel=1e-5)
    assert theory.objective_bound(D, 0.3, sparsity=0, gamma=0.7) == 0
    assert theory.objective_bound(D, math.inf, sparsity=1, gamma=0.0) == math.inf


def test_the_true_code_does_not_minimise_the_objective():
    # C-14: a shrunk code does. D = [1], y = 1, gamma = 1/2: .4375 at .75, .5 at 1.
    D, z = np.ones((1, 1)), np.ones((1, 1))
    assert objective(D, z, np.array([[0.75], [1.0]]), 0.5).tolist() == [0.4375, 0.5]
    # Iterates of LISTA-CP are shrunk too: lower at every step, but never by more than the bound.
    p = load("hadamard")
    found = schedule(1 / 8, 1.0, sparsity=2, bound=1.0, depth=8)
    X = np.zeros((1, 128))
    X[0, [0, 1]] = 1
    for k, codes in enumerate(iterates(p.D, p.W, found.theta, signals(p, X)), start=1):
        change = (
            objective(p.D, signals(p, X), codes, 0.5) - objective(p.D, signals(p, X), X, 0.5)
        ).item()
        assert -theory.objective_bound(p.D, found.error[k], sparsity=2, gamma=0.5) <= change < -1e-4


@pytest.mark.parametrize("error", [1e200, 1e308])
def test_the_objective_of_a_diverging_schedule_is_infinite(error):
    assert theory.objective_bound(np.eye(2), error, sparsity=1, gamma=0.1) == math.inf


# Plans.


def chains(rng, J):
    """Parameters of a random chain, sometimes with a trivial block."""
    s, options = rng.integers(1, 4, J), {}
    a = np.where(rng.random(J) < 0.1, 0.0, rng.uniform(0.05, 0.7, J))
    C = np.where(rng.random(J) < 0.05, 0.0, rng.uniform(0.05, 0.8, J))
    options["sparsities"] = [int(v) for v in np.where(rng.random(J) < 0.05, 0, s)]
    options["bounds"] = (rng.uniform(0.3, 2, J) * (rng.random(J) > 0.05)).tolist()
    for name, scale in (("noises", 0.02), ("guards", 1e-3), ("etas", 0.1)):
        if rng.random() < 0.6:
            options[name] = rng.uniform(0, scale, J).tolist()
    return (a / (2 * s - 1)).tolist(), C.tolist(), options


def last_errors(mus, C_Ws, N, *, sparsities, bounds, noises=None, guards=None, etas=None):
    """E^{(J)} for every vector of depths in 0..N, by the recursion alone, (N+1, ..., N+1)."""
    J = len(mus)
    noises, guards, etas = (v if v is not None else [0.0] * J for v in (noises, guards, etas))
    E = np.zeros(())
    for mu, C, s, B, delta, g, eta in zip(mus, C_Ws, sparsities, bounds, noises, guards, etas):
        c, a = C * (delta + E) + g, (max(2 * s - 1, 0) * mu + eta) if s else 0.0
        steps = [np.full(E.shape, s * B)]
        for _ in range(N):
            steps.append(a * steps[-1] + 2 * s * c)
        E = np.stack(steps, -1)
    return E


@pytest.mark.parametrize("J, N, draws", [(1, 60, 300), (2, 40, 300), (3, 22, 150)])
def test_a_plan_is_the_best_of_all_depths(J, N, draws):
    rng, reached = np.random.default_rng(17 + J), 0
    for _ in range(draws):
        mus, C_Ws, options = chains(rng, J)
        E = last_errors(mus, C_Ws, N, **options)[(slice(1, None),) * J]
        low = E.min()
        # Neither on an E_k, where rounding decides, nor below what N steps reach.
        tol = float(low + (E.max() - low) * 10.0 ** rng.uniform(-4, -0.05) + 1e-9)
        steps = sum(np.meshgrid(*[np.arange(1, N + 1)] * J, indexing="ij"))
        best = steps[E <= tol].min()
        found = plan(mus, C_Ws, tol=tol, **options)
        assert found.holds and sum(found.depths) <= best
        assert found.schedules[-1].error[-1] <= tol
        if best <= N + J - 1:  # a depth above N makes a larger sum
            reached += 1
            assert sum(found.depths) == best and E[tuple(np.array(found.depths) - 1)] <= tol
        expected = deep_schedule(mus, C_Ws, depths=found.depths, **options)
        assert [block.error.tolist() for block in found.schedules] == [
            block.error.tolist() for block in expected
        ]
    assert reached > draws / 2


def test_a_plan_with_infinite_noise_does_not_hold():
    """Also where the last block has no nonzeros, so that its error is 0."""
    noisy = dict(bounds=(1.0, 1.0), noises=(math.inf, 0.0))
    found = plan((0.25, 0.25), (1.0, 1.0), sparsities=(1, 0), tol=math.inf, **noisy)
    assert not found.holds and found.reason == "the noise of block 1 is not finite"
    found = plan([0.5], [1.0], sparsities=[1], bounds=[1.0], tol=0.0)
    assert found.reason == "no depths end at 0: their errors stay above 0"
    found = plan([0.25], [1.0], sparsities=[1], bounds=[1e308], tol=1e300)
    assert found.holds and all(block.holds for block in found.schedules)


def test_a_plan_of_one_block_is_steps_for():
    rng = np.random.default_rng(21)
    for _ in range(300):
        mus, C_Ws, options = chains(rng, 1)
        alone = deep_schedule(mus, C_Ws, depths=[0], **options)[0]
        tol = alone.floor + 10.0 ** rng.uniform(-8, 1)
        if alone.error[0] < alone.floor:
            continue  # the error grows from its start: see below
        found = plan(mus, C_Ws, tol=tol, **options)
        assert found.holds and found.depths == (max(1, alone.steps_for(tol)),)


def test_an_error_that_starts_below_its_floor_is_planned_too():
    # B = .01 and noise .1: E = .01, .205, .2245, ... grows to .2278. If one step is not enough, no
    # depth is.
    options = dict(sparsities=[1], bounds=[0.01], noises=[0.1])
    E = deep_schedule([0.1], [1.0], depths=[30], **options)[0].error
    assert E[0] < E[1] < E[30]
    assert plan([0.1], [1.0], tol=E[1] + 1e-9, **options).depths == (1,)
    assert plan([0.1], [1.0], tol=E[1] - 1e-9, **options).depths == (math.inf,)


def test_a_plan_for_the_exact_error_of_some_depths_ends_at_it():
    rng = np.random.default_rng(22)
    for _ in range(100):
        mus, C_Ws, options = chains(rng, 2)
        tol = float(last_errors(mus, C_Ws, 9, **options)[tuple(rng.integers(2, 9, 2))])
        found = plan(mus, C_Ws, tol=tol, **options)
        # The closed form and the recursion round differently.
        assert not found.holds or found.schedules[-1].error[-1] <= tol * (1 + 100 * EPS)


@pytest.mark.parametrize("problem", [
    dict(mus=[0.4, 0.1], noises=[0.0, 0.0], tol=1e-3),  # (2s-1) mu = 1.2
    dict(mus=[0.1, 0.4], noises=[0.0, 0.0], tol=1e-3),
    dict(mus=[0.1, 0.1], noises=[0.1, 0.0], tol=1e-3),  # below the floor
    dict(mus=[0.1, 0.1], noises=[0.0, 0.1], tol=1e-3),
    dict(mus=[0.1, 0.1], noises=[0.0, 0.0], tol=0.0),
    dict(mus=[0.1, 0.1], noises=[math.inf, 0.0], tol=1.0),
])  # fmt: skip
def test_unreachable_tolerances_have_no_plan(problem):
    found = plan(C_Ws=[1.0, 1.0], sparsities=[2, 2], bounds=[1.0, 1.0], **problem)
    assert found.replace(reason="") == theory.Plan((math.inf, math.inf), (), False)
    assert found.reason


def test_a_tolerance_just_above_the_floor_is_reached_and_just_below_is_not():
    options = dict(sparsities=[2, 1], bounds=[1.0, 1.0], noises=[0.01, 0.002], guards=[1e-6, 0.0])
    floor = deep_schedule([0.1, 0.2], [0.8, 0.5], depths=[400, 400], **options)[1].floor
    found = plan([0.1, 0.2], [0.8, 0.5], tol=floor * (1 + 1e-6), **options)
    assert found.holds and found.schedules[-1].error[-1] <= floor * (1 + 1e-6)
    assert not plan([0.1, 0.2], [0.8, 0.5], tol=floor * (1 - 1e-6), **options).holds


def test_more_blocks_before_need_more_steps():
    found = plan([0.3, 0.3], [1.0, 1.0], sparsities=[2, 2], bounds=[1.0, 1.0], tol=1e-6)
    assert found.depths[0] > found.depths[1]
    loose = plan([0.3, 0.3], [1.0, 1.0], sparsities=[2, 2], bounds=[1.0, 1.0], tol=math.inf)
    assert loose.depths == (1, 1) and loose.holds


def test_a_hopeless_plan_is_given_up_at_once():
    # The floors are known beforehand; the search would visit all pairs of depths that still matter.
    options = dict(sparsities=[2, 2], bounds=[1.0, 1.0], noises=[0.01, 0.0])
    module = theory._convergence
    with mock.patch.object(module, "_fewest", wraps=module._fewest) as search:
        assert not plan([0.98 / 3] * 2, [1.0] * 2, tol=0.1, **options).holds
    assert search.call_count == 1


@pytest.mark.slow
def test_a_slow_block_has_a_plan_of_many_steps():
    options = dict(sparsity=1, bound=1.0)
    steps = schedule(1 - 1e-6, 1.0, depth=0, **options).steps_for(0.3)
    assert 1_000_000 < steps < 1_300_000
    found = plan([1 - 1e-6], [1.0], sparsities=[1], bounds=[1.0], tol=0.3)
    assert found.holds and found.depths == (steps,)


@pytest.mark.parametrize("name", ["noises", "guards", "etas", "bounds", "sparsities"])
def test_plans_take_arrays_as_deep_schedule_does(name):
    options = dict(
        sparsities=[1, 1],
        bounds=[1.0, 1.0],
        noises=[0.01, 0.0],
        guards=[1e-9, 1e-9],
        etas=[0.0, 1e-3],
    )
    expected = plan([0.1, 0.1], [0.5, 0.5], tol=0.2, **options)
    found = plan(
        np.array([0.1, 0.1]),
        np.array([0.5, 0.5]),
        tol=0.2,
        **{**options, name: np.array(options[name])},
    )
    assert expected.holds and found.depths == expected.depths


@pytest.mark.parametrize("kind", [np.float32, jnp.float32])
def test_plans_of_float32_numbers_are_as_short_as_those_of_floats(kind):
    # As returned by `coherence`; a search in float32 would miss the last digits of the tolerance.
    options = dict(sparsities=[2, 2], bounds=[1.0, 1.0])
    for i in range(0, 40, 2):
        mus, C_Ws = [kind(0.1 + 0.002 * i)] * 2, [kind(0.3 + 0.01 * i)] * 2
        tol = deep_schedule(mus, C_Ws, depths=[7, 5], **options)[1].error[-1] * (1 + 1e-9)
        found = plan(mus, C_Ws, tol=tol, **options)
        assert found.schedules[-1].error[-1] <= tol
        expected = plan([float(v) for v in mus], [float(v) for v in C_Ws], tol=tol, **options)
        assert sum(found.depths) == sum(expected.depths)


@pytest.mark.parametrize(
    "problem", [dict(mus=[0.1, 0.1], bounds=[0.0, 0.0]), dict(mus=[0.0, 0.0], bounds=[1.0, 1.0])]
)
def test_a_chain_without_error_has_a_plan_for_tolerance_zero(problem):
    options = dict(C_Ws=[1.0, 1.0], sparsities=[1, 1], **problem)
    assert deep_schedule(depths=[1, 1], **options)[1].error[1] == 0
    assert plan(tol=0.0, **options).depths == (1, 1)


def test_a_plan_of_no_blocks_is_empty():
    assert deep_schedule([], [], sparsities=[], bounds=[], depths=[]) == ()
    found = plan([], [], sparsities=[], bounds=[], tol=0.1)
    assert (found.depths, found.schedules) == ((), ())


# General activations: definitions, and printed statements against the corrected ones.


MORE = [
    act.scale(act.softplus, 1e3), act.scale(act.silu, 30.0), act.scale(act.hard_swish, 0.5),
    act.compose(act.elu(0.5), 4), act.scale(act.elu(1.6732632423543772), 1e3),
    act.compose(act.silu, 2), act.compose(act.leaky_relu(0.5), 3),
    act.scale(act.compose(act.elu(0.1), 2), 100.0), act.compose(act.scale(act.mish, 10.0), 2),
    act.scale(act.selu, 50.0), act.elu(0.0), act.leaky_relu(0.0),
]  # fmt: skip


@pytest.mark.few(10)
@pytest.mark.parametrize("rho", [*act.NAMED.values(), *MORE], ids=str)
def test_theorem_of_follows_the_definitions(rho):
    x = np.concatenate([np.linspace(0, 50, 5001), 10.0 ** np.arange(2, 7)])
    values, tail = np.asarray(rho(x)), np.asarray(rho(-x))
    exact = np.allclose(values, x, rtol=1e-12, atol=0)  # rho(x) = x on x >= 0
    distance = np.maximum(np.abs(values - x), np.abs(tail))
    bounded = distance[-1] < 10 * distance[:-5].max() + 1e-3  # an unbounded gap grows by 1e4 here
    expected = "12" if not distance.any() else "15" if exact else "10" if bounded else ""
    assert theory.theorem_of(rho) == expected
    for mu, covers in ((1e-3, True), (1.0, False)):
        found = activation_schedule(rho, mu, 1.0, d=16, sparsity=2, bound=1.0, noise=0.01, depth=3)
        assert (found.theorem, found.holds) == (
            (expected, bool(expected)) if covers else ("", False)
        )
        assert not np.isnan(found.error).any() and not np.isnan(found.theta).any()


def shifted(x):
    return jax.nn.relu(x + 0.1) - 0.05


def test_theorem_of_agrees_with_the_schedule_on_activations_of_a_user():
    # Only the gap is given: line_oscillation, at most twice as large, keeps its default.
    rho = act.Activation("shifted", 1.0, 0.05, 0.1, 0.05, shifted)
    assert theory.theorem_of(rho) == "10"
    found = activation_schedule(rho, 1e-3, 1.0, d=16, sparsity=1, bound=1.0, depth=3)
    assert found.holds and found.theorem == "10"


def test_false_constants_of_a_user_are_refused():
    rho = act.Activation("shifted", 1.0, 0.05, 0.1, 0.04, shifted)
    with pytest.raises(ValueError, match="shifted claims relu_gap = 0.04, measured 0.0[45]"):
        activation_schedule(rho, 1e-3, 1.0, d=16, sparsity=1, bound=1.0, depth=3)
    false = dataclasses.replace(act.elu(1.0), tail_sup=0.5, tail_oscillation=0.5)
    for rho in (false, act.scale(false, 3.0)):
        with pytest.raises(ValueError, match=r"claims tail_sup = 0\.\d+, measured"):
            activation_schedule(rho, 1e-3, 1.0, d=16, sparsity=1, bound=1.0, depth=3)


@pytest.mark.few(1)
@pytest.mark.parametrize("make", [act.sigmoid_sum, act.tanh_sum])
def test_sums_of_sigmoids_stay_under_the_bounds_of_theorem_10(make):
    # The largest argument is B + 2 theta_0 = 1 + 4 mu B = 1.5, and 1.6 leaves room for the gap.
    p, X = load("hadamard"), two_spikes(128, 3, 70)
    options = dict(d=128, sparsity=2, bound=1.0, depth=60)
    last = []
    for h in (4e-3, 1e-3):
        found = activation_schedule(make(h, 1.6), 1 / 8, 1.0, **options)
        assert (found.holds, found.theorem, found.vacuous) == (True, "10", False)
        errors = errors_of(make(h, 1.6), p, found, X)
        assert (errors <= found.error[1:]).all()
        last.append(errors[-1])
    assert last[0] / last[1] == pytest.approx(4, rel=0.5)  # no factor that grows with the depth
    # Where an argument may leave the reach, nothing is claimed.
    short = activation_schedule(make(1e-3, 1.4), 1 / 8, 1.0, **options)
    assert (short.holds, short.theorem, short.floor) == (False, "", math.inf)


def test_the_printed_condition_on_L_is_void_and_the_corrected_one_is_that_of_the_tail():
    # C-17. L, the Lipschitz constant of rho, is at least 1 since rho(x) = x on x >= 0: 2 - 2 L <=
    # 0. With L_h instead, mu (2 L_h^m d + (2 - 2 L_h^m) s) < 1 holds for ELU(.1) from m = 2 on, for
    # ELU(.5) from m = 8, for ELU(1) never.
    mu, d, s = 1 / 8, 128, 2
    first = {}
    for alpha in (0.1, 0.5, 1.0):
        for m in (1, 2, 4, 8, 32):
            rho, L = act.compose(act.elu(alpha), m), alpha**m
            found = activation_schedule(rho, mu, 1.0, d=d, sparsity=s, bound=1.0, depth=1)
            slope = mu * (2 * L * d + (2 - 2 * L) * s)
            assert found.holds  # by its bounded tail, with a = (2s-1) mu alone
            if slope < 1:
                first.setdefault(alpha, m)
                # The condition bounds the l1 norm, which is above the spectral radius.
                assert found.contraction <= slope
                assert found.floor <= s * rho.tail_oscillation / (1 - slope) * (1 + 1e-12)
            else:
                assert found.contraction == pytest.approx(3 * mu)
    assert first == {0.1: 2, 0.5: 8}
    x = np.linspace(0, 1, 9)
    assert np.asarray(act.compose(act.elu(0.5), 4)(x)).tolist() == x.tolist()  # slope 1, not .5^3


def hump(x):
    return jnp.where(x >= 0, x, jnp.minimum(-x, 1) / 2)


def test_composing_does_not_shrink_a_positive_tail():
    # C-18, property (c): rho(x) = min(|x|, 1) / 2 on x < 0 has L_h = beta = 1/2, and rho^m = rho
    # there.
    rho = act.Activation("hump", 0.5, 0.5, 0.5, 0.5, hump, identity_on_positives=True)
    x = np.linspace(-3, 0, 301)
    for m in (2, 3):
        composed = act.compose(rho, m)
        assert np.asarray(composed(x)).tolist() == np.asarray(rho(x)).tolist()
        assert composed.tail_sup >= 0.5 > 0.5**m and composed.tail_oscillation >= 0.5
        assert theory.theorem_of(composed) in ("", "15")


TAILS = {
    act.leaky_relu(0.3): lambda u: np.where(u > 0, u, 0.3 * u),
    act.elu(0.7): lambda u: np.where(u > 0, u, 0.7 * np.expm1(np.minimum(u, 0))),
    act.scale(act.elu(1.67), 5.0): lambda u: np.where(
        u > 0, u, 0.334 * np.expm1(5 * np.minimum(u, 0))
    ),
    act.softplus: lambda u: np.logaddexp(0, u),
    act.scale(act.softplus, 20.0): lambda u: np.logaddexp(0, 20 * u) / 20,
    act.silu: lambda u: u / 2 * (1 + np.tanh(u / 2)),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("rho", TAILS, ids=str)
def test_tiny_pairs_stay_under_the_recursion_of_an_activation(rho):
    rng, tightest = np.random.default_rng(31), 0.0
    for trial in range(150):
        p = tiny(rng)
        d = p.D.shape[1]
        s, noise = int(rng.integers(1, min(3, d) + 1)), 0.1 * (trial % 2)
        options = dict(d=d, sparsity=s, bound=1.0, noise=noise, depth=6, eta=p.eta)
        found = activation_schedule(rho, p.mu, p.C, **options)
        X = members(rng, p.W, p.D, 200, s)
        codes = iterates(
            p.D, p.W, found.theta, signals(p, X, l1_noise(rng, p, 200, noise)), TAILS[rho]
        )
        for error, off_support, x in zip(found.error[1:], found.off_support[1:], codes):
            assert np.abs(x - X).sum(1).max() <= error * (1 + 1e-12) + 1e-12
            tightest = max(tightest, np.abs(x - X).sum(1).max() / error if error > 1e-6 else 0)
            if d > s:
                assert np.abs(x[X == 0]).max() <= off_support / (d - s) * (1 + 1e-12) + 1e-12
    assert tightest > 0.4


def two_spikes(d, i, j):
    X = np.zeros((1, d))
    X[0, [i, j]] = 1, -0.7
    return X


def errors_of(rho, p, found, X):
    return [
        np.abs(codes - X).sum() for codes in iterates(p.D, p.W, found.theta, signals(p, X), rho)
    ]


def test_the_tail_leaves_an_error_that_the_printed_rate_does_not_have():
    # C-18: ELU(.1)^4 in [I | Hadamard 256], alpha^200 < 1e-100; the error stays near osc.
    p, rho = pair(*(dictionaries.identity_hadamard(256),) * 2), act.compose(act.elu(0.1), 4)
    X = two_spikes(512, 3, 300)
    found = activation_schedule(rho, 1 / 16, 1.0, d=512, sparsity=2, bound=1.0, depth=200)
    assert found.contraction**200 < 1e-100
    errors = errors_of(rho, p, found, X)
    assert 1e-5 < errors[199] == pytest.approx(errors[50]) and (errors <= found.error[1:]).all()
    # ReLU's thresholds with plain ELU(.1) diverge, its own do not.
    elu, relu = act.elu(0.1), schedule(1 / 16, 1.0, sparsity=2, bound=1.0, depth=200)
    assert errors_of(elu, p, relu, X)[199] > 1e3 * relu.error[0]
    own = activation_schedule(elu, 1 / 16, 1.0, d=512, sparsity=2, bound=1.0, depth=200)
    assert own.holds and (errors_of(elu, p, own, X) <= own.error[1:]).all()


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "rho", [act.softplus, act.silu, act.gelu, act.mish, act.hard_swish, act.elu(1.0)], ids=str
)
def test_the_error_is_exactly_proportional_to_the_scale_and_free_of_the_depth(rho):
    # C-21: the printed constant has the sum of ((d-1) mu)^k, about 1e72 here at K = 60.
    p, X = load("hadamard"), two_spikes(128, 3, 70)
    observed = []
    for k in (1e2, 1e4, 1e6):
        scaled = act.scale(rho, k)
        found = activation_schedule(scaled, 1 / 8, 1.0, d=128, sparsity=2, bound=1.0, depth=60)
        errors = errors_of(scaled, p, found, X)
        assert (errors <= found.error[1:] * (1 + 1e-12)).all()
        # 230 = (s + 2 s mu (d-s)) / (1-a) + d - s.
        assert k * found.floor == pytest.approx(230 * rho.line_oscillation)
        observed.append(k * errors[-1])
    # At scale 1e6 the rounding of 1e-14 meets an error of 1e-5.
    assert observed == pytest.approx(observed[:1] * 3, rel=1e-6)
    assert 127 / 8 * (127 / 8) ** 59 > 1e70 * max(observed)


def test_composition_is_dominated_by_scaling():
    # C-31: [I | Hadamard 64], ELU(1): 32 compositions leave x at 0, scales leave errors of osc / k.
    p, X = load("hadamard"), two_spikes(128, 3, 70)
    last = {}
    for rho in (act.compose(act.elu(), 32), act.scale(act.elu(), 1e4), act.scale(act.elu(), 1e6)):
        found = activation_schedule(rho, 1 / 8, 1.0, d=128, sparsity=2, bound=1.0, depth=60)
        errors = errors_of(rho, p, found, X)
        assert (errors <= found.error[1:] * (1 + 1e-12)).all()
        last[rho.name] = errors[-1]
    stuck, fine, finer = last.values()
    assert stuck > 1.5 and fine < 6e-3 and finer == pytest.approx(fine / 100, rel=1e-6)
    # C-30: beta_m of ELU(1) decays as 2/m, not geometrically.
    assert [act.compose(act.elu(), m).tail_sup for m in (2, 8, 32)] == pytest.approx(
        [0.632, 0.210, 0.0589], abs=5e-4
    )


@pytest.mark.parametrize("slope", [0.01, 0.3, 0.9])
def test_relu_is_a_combination_of_two_leaky_ones(slope):
    rho, x = act.leaky_relu(slope), np.linspace(-4, 4, 101)
    combined = (np.asarray(rho(x)) + slope * np.asarray(rho(-x))) / (1 - slope**2)
    assert combined == pytest.approx(np.maximum(x, 0), abs=64 * EPS)  # divided by .19


def test_an_unbounded_code_is_covered_by_no_activation():
    for rho in (act.relu, act.scale(act.softplus, 1e3), act.leaky_relu(0.01)):
        found = activation_schedule(rho, 0.01, 1.0, d=9, sparsity=1, bound=math.inf, depth=3)
        assert found.error[-1] == math.inf and found.floor == math.inf and not found.holds


# Bad input.


def test_infinite_numbers_make_no_nan():
    for found in (
        atom_schedule([math.inf, 0.1], [1.0, 1.0], sparsity=0, bound=1.0, depth=2),
        atom_schedule([0.1, 0.1], [0.0, 1.0], sparsity=1, bound=1.0, noise=math.inf, depth=2),
        activation_schedule(act.silu, math.inf, 1.0, d=4, sparsity=1, bound=1.0, depth=3),
    ):
        assert not np.isnan(found.theta).any() and not np.isnan(found.error).any()
    assert not math.isnan(theory.objective_bound(np.zeros((2, 2)), math.inf, sparsity=1, gamma=1.0))


def test_plans_of_the_ends_of_the_range():
    """A tolerance whose ratio to the start overflows; a start that is no number."""
    found = plan([0.5], [1.0], sparsities=[1], bounds=[1.0], tol=5e-324)
    assert found.depths == (1074,) and found.holds  # 2^-1074
    found = plan([0.0], [1.0], sparsities=[1], bounds=[math.inf], tol=1e-3)
    assert not found.holds and "not finite" in found.reason


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_noise_gain_is_never_too_low(dtype):
    for seed in range(8):
        W = np.random.default_rng(seed).normal(size=(40, 80)) / 6
        W = jnp.asarray(W).astype(dtype)
        exact = np.linalg.norm(np.asarray(W, float), axis=0).max()
        assert exact <= theory.noise_gain(W) <= exact * (1 + 2e-9)  # rounded up by 1e-9
