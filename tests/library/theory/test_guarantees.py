"""Theorems 12, 15, 10 and 6 on thousands of members of their classes: no draw may break a bound."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import barker, lines, matrix_of, members, noise_along, off_diagonal
from oracles import unit

from unrolled import activations as act
from unrolled import analytic, dictionaries, layers, theory
from unrolled.layers import Threshold, Unrolled, Weights

BOUND = 1.5


class Pair(NamedTuple):
    """A dictionary, its weights, and the numbers of theory, in float64 from the stored arrays."""

    D: Any
    W: Any
    mu: float
    C: float
    eta: float

    def schedule(self, s, noise=0.0, depth=200, guard=None):
        problem = dict(sparsity=s, bound=BOUND, noise=noise)
        if guard is None:
            guard = theory.rounding_guard(self.W, self.D, **problem)
        return theory.schedule(self.mu, self.C, depth=depth, guard=guard, eta=self.eta, **problem)


def pair(D, W, dtype):
    D, W = (jax.tree.map(lambda leaf: np.asarray(leaf, dtype), A) for A in (D, W))
    off, own = off_diagonal(matrix_of(W), matrix_of(D))
    C = float(np.abs(matrix_of(W)).max())
    return Pair(D, W, float(off.max() * (1 + 1e-9)), C, float(np.abs(1 - own).max()))


@functools.cache
def load(name, dtype="float64"):
    rng = np.random.default_rng(0)
    D = {
        "identity_hadamard": lambda: dictionaries.identity_hadamard(32),
        "paley": lambda: dictionaries.paley(61),
        "gaussian, closed-form W": lambda: unit(rng.normal(size=(100, 108))),
        "gaussian, W off its diagonal": lambda: unit(rng.normal(size=(100, 108))),
        "transversal": lambda: lines(0, 4, 11, 100, 44),
        "Conv, circular": lambda: barker(32, "circular"),
        "Conv, valid": lambda: barker(32, "valid"),
        "[I | DCT]": lambda: dictionaries.Concatenated(np.eye(64), dictionaries.dct(64, 64)),
    }[name]()
    W = theory.frobenius_weights(D) if "gaussian" in name else D
    if "off its diagonal" in name:
        W = np.asarray(W) * rng.uniform(0.98, 1.02, 108)
    return pair(D, W, np.dtype(dtype))


PAIRS = ["identity_hadamard", "paley", "gaussian, closed-form W",
         "gaussian, W off its diagonal", "transversal",
         "Conv, circular", "Conv, valid", "[I | DCT]"]  # fmt: skip


class Worst(NamedTuple):
    """The largest of the batch at every step, (K,)."""

    false_positives: np.ndarray
    l1: np.ndarray
    l2: np.ndarray
    linf: np.ndarray
    on_support: np.ndarray
    off_support: np.ndarray
    missed: np.ndarray  # nonzeros missed although the schedule guarantees them


@functools.partial(jax.jit, static_argnames="layer")
def iterates(layer, params, D, Y):
    """The codes of a batch after every step, (K, n, d)."""
    with jax.default_matmul_precision("highest"):
        return jax.vmap(layer.iterates, (None, None, 0), out_axes=1)(params, D, Y)


def worst_of(pair, found, s, X, E, activation=act.relu):
    """The worst over the given codes and noises under the thresholds of a schedule."""
    dtype = pair.D.dtype
    X = X.astype(dtype).astype(np.float64)
    # Exact, then rounded once.
    Y = (X @ matrix_of(pair.D).T + E).astype(dtype)
    params = Unrolled(Weights(pair.W), Threshold(found.theta.astype(dtype)))
    layer = layers.lista_cp(len(found.theta), activation=activation)
    codes = np.asarray(iterates(layer, params, pair.D, Y), np.float64)
    h, inside = np.nan_to_num(np.abs(codes - X), nan=np.inf), X != 0
    sure = inside & (np.abs(X) > found.error[1:, None, None] / s)
    sums = (codes != 0) & ~inside, h, h**2, np.where(inside, h, 0), np.where(inside, 0, h)
    wrong, l1, squared, on, off, missed = (v.sum(2).max(1) for v in (*sums, sure & (codes == 0)))
    return Worst(wrong, l1, np.sqrt(squared), h.max((1, 2)), on, off, missed)


def worst(pair, found, s, noise, *, n, seed=0, activation=act.relu):
    """The worst of n members of the class."""
    rng = np.random.default_rng(seed)
    X, E = BOUND * members(rng, pair.W, pair.D, n, s), noise_along(rng, pair.W, n, noise, "l1")
    return worst_of(pair, found, s, X, E, activation)


# Theorem 12. The bounds are compared without tolerance: the guard covers the rounding.


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize(
    "name, dtype",
    [(name, "float64") for name in PAIRS] + [(name, "float32") for name in PAIRS[1:6]],
)
def test_no_member_of_the_class_breaks_a_bound(name, dtype):
    p = load(name, dtype)
    n, depth = (1000, 60) if dtype == "float64" else (200, 200)
    most = theory.max_sparsity(p.mu, p.D.shape[1])
    assert most >= 2
    for s, noise in ((most, 0.0), (most, 0.05), (1, 0.05)):
        found = p.schedule(s, noise, depth)
        assert found.holds
        seen = worst(p, found, s, noise, n=n)
        assert not seen.false_positives.any()
        assert (seen.l1 <= found.error[1:]).all()
        assert (seen.l2 <= found.error[1:] / math.sqrt(s)).all()
        assert (seen.linf <= found.error[1:] / s).all()
        assert not seen.missed.any()  # the support is found once error / s < min |x|


def test_the_rate_is_attained_by_a_paley_frame():
    # Signs with which every product in the support is -mu make every inequality of the proof an
    # equality.
    p = load("paley")
    G = np.asarray(p.D).T @ np.asarray(p.D)
    support = next(
        S
        for S in itertools.combinations(range(62), 3)
        if G[S[0], S[1]] * G[S[1], S[2]] * G[S[0], S[2]] < 0
    )
    signs = np.array([1, -np.sign(G[support[0], support[1]]), -np.sign(G[support[0], support[2]])])
    x = np.zeros((1, 62))
    x[0, list(support)] = BOUND * signs
    for codes, s in ((x, 3), (BOUND * np.eye(62)[:1], 1)):
        found = p.schedule(s, depth=20, guard=0.0)
        seen = worst_of(p, found, s, codes, np.zeros((1, 31)))
        # At s = 1 the error reaches 1e-17 after 20 steps: compared down to the rounding of D x*,
        # about 31 eps B.
        assert np.asarray(seen.l1) == pytest.approx(found.error[1:], rel=1e-7, abs=1e-14)


def test_with_noise_the_error_settles_under_the_floor():
    p = load("paley")
    found = p.schedule(2, noise=0.05)
    assert found.error[-1] == pytest.approx(found.floor)
    assert 0.01 * found.floor < worst(p, found, 2, 0.05, n=300).l1[-1] <= found.floor * (1 + 1e-9)


# Params from `analytic`.


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name", ["paley", "gaussian, W off its diagonal", "Conv, valid", "[I | DCT]"]
)
def test_analytic_params_are_the_schedule(name, dtype):
    p = load(name, dtype.name)
    options = dict(depth=30, sparsity=2, bound=BOUND, noise=0.05)
    found, bare = (p.schedule(2, noise=0.05, depth=30, guard=g) for g in (None, 0.0))
    tied = analytic.lista_cp(p.D, W=p.W, **options)
    steps = analytic.alista(p.D, W=p.W, **options)
    # theta is rounded to the dtype of D. Only a part of the guard is the same at every step.
    for theta in (tied.steps.theta, steps.steps.theta):
        assert theta.dtype == dtype
        up = 1 + 4 * float(np.finfo(dtype).eps)
        theta = np.asarray(theta, np.float64)
        # `analytic` rounds the coherence up by 1e-9, which the recursion amplifies.
        assert (bare.theta <= up * theta).all() and (theta <= (up + 1e-7) * found.theta).all()
    for W in (tied.shared.W, steps.shared.W):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), W, p.W))
    assert (np.asarray(steps.steps.gamma) == 1).all()


def test_the_three_forms_of_the_params_compute_the_same_codes():
    p = load("paley")
    options = dict(depth=10, sparsity=2, bound=BOUND)
    y = p.D @ (BOUND * np.eye(62)[0])
    tied = layers.lista_cp(10).iterates(analytic.lista_cp(p.D, **options), p.D, y)
    untied = layers.lista_cp(10, tied=False).iterates(
        analytic.lista_cp(p.D, tied=False, **options), p.D, y
    )
    fixed = layers.alista(10).iterates(analytic.alista(p.D, **options), p.D, y)
    for other in (untied, fixed):
        # Products in another order: about 31 eps B.
        assert other == pytest.approx(np.asarray(tied), abs=1e-14)


@pytest.mark.slow
def test_weights_are_chosen_by_their_coherence():
    p = load("gaussian, closed-form W")
    assert p.mu < theory.mutual_coherence(p.D)
    chosen = analytic.lista_cp(p.D, depth=1, sparsity=1, bound=1.0).shared.W
    assert np.asarray(chosen) == pytest.approx(np.asarray(p.W))
    # With near-duplicates, the closed form is worse than D, so D is taken.
    D = load("transversal").D
    assert theory.coherence(theory.frobenius_weights(D), D).mu_W > theory.mutual_coherence(D)
    chosen = analytic.lista_cp(D, depth=1, sparsity=1, bound=1.0).shared.W
    assert (np.asarray(chosen) == D).all()


# Theorems 15 and 10: other activations.


ACTIVATIONS = [
    act.elu(0.1), act.elu(0.5), act.elu(1.0), act.celu(0.3),
    act.compose(act.elu(0.5), 4), act.scale(act.elu(1.0), 1e4), act.leaky_relu(0.01),
    act.scale(act.gelu, 1e3), act.scale(act.softplus, 1e4), act.scale(act.mish, 30.0),
    act.hard_swish, act.scale(act.elu(1.6732632423543772), 1e3),
]  # fmt: skip


@pytest.mark.few(1)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_other_activations_stay_under_their_bounds(activation, noise):
    p, s, depth = load_hadamard(), 2, 60
    options = dict(d=p.D.shape[1], sparsity=s, bound=BOUND, noise=noise, depth=depth)
    loose = theory.activation_schedule(activation, p.mu, p.C, **options)
    unit_guard = theory.rounding_guard(p.W, p.D, sparsity=1, bound=1.0)
    guard = unit_guard * (s * BOUND + 1.01 * loose.off_support.max())
    found = theory.activation_schedule(activation, p.mu, p.C, guard=guard, eta=p.eta, **options)
    assert found.holds
    seen = worst(p, found, s, noise, n=300, activation=activation)
    assert (seen.l1 <= found.error[1:]).all()
    assert (seen.on_support <= found.on_support[1:]).all()
    assert (seen.off_support <= found.off_support[1:]).all()
    # `analytic` returns these thresholds.
    params = analytic.lista_cp(
        p.D, W=p.W, activation=activation, **{k: v for k, v in options.items() if k != "d"}
    )
    # Its guard may exceed ours by .1 %.
    assert np.asarray(params.steps.theta) == pytest.approx(found.theta, rel=1e-9)


@functools.cache
def load_hadamard():
    return pair(dictionaries.identity_hadamard(64), dictionaries.identity_hadamard(64), np.float64)


def test_activations_with_weights_far_off_their_diagonal():
    # One atom: mu_W = 0, eta = 1/2; x <- 3/2 (x* + (x - x*) / 2) tends to 3 x*.
    D, W, rho = np.ones((1, 1)), np.full((1, 1), 0.5), act.leaky_relu(0.5)
    found = theory.activation_schedule(rho, 0.0, 0.5, d=1, sparsity=1, bound=1.0, depth=40, eta=0.5)
    params = Unrolled(Weights(W), Threshold(found.theta))
    codes = layers.lista_cp(40, activation=rho).iterates(params, D, np.ones(1))
    assert not found.holds or (np.abs(np.asarray(codes)[:, 0] - 1) <= found.error[1:] + 1e-12).all()


# Theorem 6: chains.


def planted(seed, D, s, n):
    """n codes of s nonzeros, the first half of magnitude 1, and the codes D x that they make."""
    rng = np.random.default_rng(seed)
    X = np.zeros((n, D.shape[1]))
    for i, x in enumerate(X):
        x[rng.choice(D.shape[1], s, replace=False)] = rng.choice([-1, 1], s) * (
            1.0 if i < n // 2 else rng.uniform(0.2, 1, s)
        )
    return X, X @ D.T


@functools.cache
def short_chain():
    """256 -> 512 -> 700 with contractions (15/16, 3/4): the first block is the slower one."""
    D1, D2 = dictionaries.identity_hadamard(256), lines(0, 4, 127, 700, 512)
    X2, X1 = planted(0, D2, 2, 12)
    assert np.count_nonzero(X1, axis=1).max() <= 8 and np.abs(X1).max() <= 1
    return np.asarray(D1), D2, X1, X2


def chain_params(Ds, schedules):
    return [
        Unrolled(Weights(D), Threshold(jnp.asarray(found.theta))) for D, found in zip(Ds, schedules)
    ]


@functools.partial(jax.jit, static_argnames="depths")
def code(depths, params, Ds, Y):
    """The codes of every block, one block after the other."""
    codes = []
    for depth, p, D in zip(depths, params, Ds):
        Y = jax.vmap(lambda y: layers.lista_cp(depth).apply(p, D, y))(Y)  # noqa: B023
        codes.append(Y)
    return codes


@pytest.mark.slow
@pytest.mark.parametrize("K, certificate", [(40, 4.84), (160, 2.1e-3)])
def test_the_corrected_chain_converges_where_the_printed_one_diverges(K, certificate):
    D1, D2, X1, X2 = short_chain()
    options = dict(sparsities=(8, 2), bounds=(1.0, 1.0), depths=(K, K))
    schedules = theory.deep_schedule((1 / 16, 1 / 4), (1.0, 0.5), guards=(1e-13, 1e-13), **options)
    # The numbers of C-13, to their digits.
    assert schedules[1].error[-1] == pytest.approx(certificate, rel=0.02)
    # A code with 8 nonzeros errs on 8 entries, and w_i has 4 nonzeros: half of C_W = 1/2.
    gains = tuple(theory.error_gain(D, sparsity=s) for D, s in zip((D1, D2), (0, 8)))
    assert gains[1] == pytest.approx(1 / 4)
    sharper = theory.deep_schedule(
        (1 / 16, 1 / 4), (1.0, 0.5), guards=(1e-13, 1e-13), gains=gains, **options
    )
    assert sharper[1].error[-1] < 0.52 * schedules[1].error[-1]
    schedules = sharper
    params = analytic.dsc((D1, D2), Ws=(D1, D2), **options)
    codes = code((K, K), params, (D1, D2), X1 @ D1.T)
    for found, truth, p, x in zip(schedules, (X1, X2), params, codes):
        # mu is padded by 1e-9.
        assert np.asarray(p.steps.theta) == pytest.approx(found.theta, rel=1e-6, abs=1e-11)
        assert not np.asarray(x)[truth == 0].any()
        assert np.abs(np.asarray(x) - truth).sum(1).max() <= found.error[-1]
    # The printed construction: thresholds of block 2 for an exact x_1.
    alone = theory.schedule(1 / 4, 0.5, sparsity=2, bound=1.0, depth=K)
    printed = code((K, K), chain_params((D1, D2), (schedules[0], alone)), (D1, D2), X1 @ D1.T)
    assert np.linalg.norm(np.asarray(printed[1]) - X2, axis=1).max() > {40: 1e3, 160: 1e30}[K]
    # The error of block 1 is the cause: on the exact x_1 the same thresholds converge.
    given = code((K,), chain_params((D2,), (alone,)), (D2,), X1)
    assert (
        np.linalg.norm(np.asarray(given[0]) - X2, axis=1).max()
        <= alone.error[-1] / math.sqrt(2) + 1e-9
    )


@pytest.mark.slow
def test_a_long_chain_reaches_1e_11_without_false_positives():
    # Coherences and entries known by construction: 1/32 and 1/5, 1 and 1/sqrt(5); the guard is 4
    # eps s B.
    D1, D2 = np.asarray(dictionaries.identity_hadamard(1024)), lines(1, 5, 409, 4096, 2048)
    X2, X1 = planted(1, D2, 2, 4)
    guards = (40 * np.finfo(float).eps, 8 * np.finfo(float).eps)
    options = dict(sparsities=(10, 2), bounds=(1.0, 1.0), depths=(60, 60), guards=guards)
    schedules = theory.deep_schedule((1 / 32, 1 / 5), (1.0, 1 / math.sqrt(5)), **options)
    codes = code((60, 60), chain_params((D1, D2), schedules), (D1, D2), X1 @ D1.T)
    for found, truth, x in zip(schedules, (X1, X2), codes):
        assert not np.asarray(x)[truth == 0].any()
        assert np.abs(np.asarray(x) - truth).sum(1).max() <= found.error[-1] <= 1e-11
