"""Stripe norms against brute force, and feasibility of chains (Definitions 1 and 2)."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import lines
from oracles import unit

from unrolled import dictionaries
from unrolled.theory import sparsity_bound
from unrolled.theory._models import _conv_stripe_norm, is_csc_feasible, is_feasible, stripe_norm

# Stripe norms


def stripe_by_definition(x, kernel, stride, circular):
    """The stripe norm by all pairs of positions whose kernel windows share a sample."""
    positions, most = list(np.ndindex(x.shape[1:])), 0
    for p in positions:
        total = 0
        for q in positions:
            meets = True
            for a, b, n, t, P in zip(p, q, kernel, stride, x.shape[1:]):
                first, second = (
                    {(i * t + k) % (P * t) if circular else i * t + k for k in range(n)}
                    for i in (a, b)
                )
                meets &= bool(first & second)
            total += meets * np.count_nonzero(x[(slice(None), *q)])
        most = max(most, total)
    return most


@pytest.mark.few(5)
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(
    "shape, kernel, stride",
    [
        ((3, 12), (3,), (1,)),
        ((2, 12), (5,), (2,)),
        ((1, 9), (6,), (2,)),
        ((2, 5), (4,), (1,)),  # the stripe is longer than the circle
        ((2, 7), (1,), (1,)),
        ((2, 6), (2,), (3,)),  # atoms that never overlap
        ((1, 1), (4,), (1,)),
        ((2, 6, 5), (3, 2), (1, 1)),
        ((2, 5, 4), (3, 4), (2, 1)),
        ((1, 3, 6), (4, 3), (1, 2)),
    ],
)
def test_stripe_norm_counts_overlapping_atoms(shape, kernel, stride, circular):
    rng = np.random.default_rng(0)
    norms = jax.jit(jax.vmap(lambda x: stripe_norm(x, kernel, stride=stride, circular=circular)))
    x = rng.normal(size=(20, *shape)) * (
        rng.random((20, *shape)) < rng.choice([0.05, 0.3, 0.8], (20, *[1] * len(shape)))
    )
    found = np.asarray(norms(x))
    assert np.issubdtype(found.dtype, np.integer)
    assert (found == [stripe_by_definition(one, kernel, stride, circular) for one in x]).all()


def test_stripe_norm_of_a_kernel_as_long_as_the_signal_is_the_count():
    x = np.random.default_rng(0).normal(size=(3, 6)) * (np.arange(18).reshape(3, 6) % 4 == 0)
    assert (
        stripe_norm(x, 6)
        == stripe_norm(x, 60)
        == stripe_norm(x, 4, circular=True)
        == np.count_nonzero(x)
    )
    assert stripe_norm(np.zeros((3, 6)), 2) == 0


def test_stripe_norm_has_a_tolerance_and_counts_nan(dtype):
    x = np.array([[0.0, 1e-3, 1.0, -1e-3, math.nan]], dtype)
    assert stripe_norm(x, 5) == 4 and stripe_norm(x, 5, tol=0.01) == 2
    assert stripe_norm(x, 5, tol=dtype.type(1e-3)) == 2  # at most tol
    assert jax.jit(lambda tol: stripe_norm(jnp.asarray(x), 5, tol=tol))(0.01) == 2
    assert stripe_norm(np.eye(3, dtype=int), 1) == 1


# Definition 2


def deep_chain(rng, dtype):
    """A chain 32 -> 64 -> 49 with codes of 6 and 2 nonzeros; columns of D_2 have three."""
    D1, D2 = dictionaries.identity_hadamard(32), lines(rng, 3, 7, 49, 64)
    x2 = np.zeros(49)
    x2[rng.choice(49, 2, replace=False)] = rng.normal(size=2)
    D1, D2, x2 = (np.asarray(a, dtype) for a in (D1, D2, x2))
    x1 = D2 @ x2
    return D1 @ x1, [D1, D2], [x1, x2]


@pytest.mark.few(1)
def test_planted_chains_are_feasible_with_the_right_residuals(dtype):
    rng = np.random.default_rng(0)
    for _ in range(100):
        y, Ds, xs = deep_chain(rng, dtype)
        found = is_feasible(y, Ds, xs, [6, 2], 0.0)
        assert found.holds
        assert (found.counts == [np.count_nonzero(x) for x in xs]).all()
        assert (found.rounding < 100 * np.finfo(dtype).eps * np.linalg.norm(xs[0])).all()


def test_residuals_are_exact_and_the_tolerance_is_met_from_above_only():
    rng = np.random.default_rng(1)
    for _ in range(30):
        y, Ds, xs = deep_chain(rng, np.float64)
        e0, e1 = rng.normal(size=32), rng.normal(size=64) * (xs[0] != 0)
        ys, codes = Ds[0] @ (xs[0] + e1) + e0, [xs[0] + e1, xs[1]]
        size = np.array([np.linalg.norm(e0), np.linalg.norm(e1)])
        found = is_feasible(ys, Ds, codes, [6, 2], size)
        assert found.holds and found.residuals == pytest.approx(size, rel=1e-12)
        assert is_feasible(ys, Ds, codes, [6, 2], size.max()).holds
        for j in (0, 1):
            assert not is_feasible(ys, Ds, codes, [6, 2], size - 1e-9 * np.eye(2)[j]).holds
    counts = found.counts
    for j in (0, 1):
        assert not is_feasible(ys, Ds, codes, counts - np.eye(2, dtype=int)[j], size).holds
    assert is_feasible(ys, Ds, codes, counts, size).holds


def test_small_entries_are_dropped_from_counts_and_residuals():
    y, Ds, (x1, x2) = deep_chain(np.random.default_rng(2), np.float64)
    dirty = [x1 + 1e-8 * (x1 == 0), x2 + 1e-8 * (x2 == 0)]
    assert is_feasible(y, Ds, dirty, [6, 2], 1e-6).counts.tolist() == [64, 49]
    found = is_feasible(y, Ds, dirty, [6, 2], 0.0, tol=1e-7)
    assert found.holds and found.counts.tolist() == [np.count_nonzero(x1), 2]


def test_rounding_of_float32_data_is_not_forgiven_to_float64_data():
    y, Ds, xs = deep_chain(np.random.default_rng(3), np.float64)
    off = y * (1 + 1e-7)
    assert not is_feasible(off, Ds, xs, [6, 2], 0.0).holds
    assert is_feasible(off.astype(np.float32), Ds, xs, [6, 2], 0.0).holds


@pytest.mark.parametrize("k", [-900, 900])
def test_residuals_whose_squares_leave_the_range(k):
    y, Ds, xs = deep_chain(np.random.default_rng(6), np.float64)
    for share, holds in ((1.0, True), (1.1, False)):
        want = is_feasible(share * y, Ds, xs, [6, 2], 0.0)
        scaled = np.ldexp(share * y, k), Ds, [np.ldexp(x, k) for x in xs]
        found = is_feasible(*scaled, [6, 2], 0.0)
        assert found.holds == want.holds == holds
        assert (found.residuals == np.ldexp(want.residuals, k)).all()
        assert (found.rounding == np.ldexp(want.rounding, k)).all()


@pytest.mark.slow
def test_structured_dictionaries_and_lists_and_integers():
    rng = np.random.default_rng(4)
    conv = dictionaries.Conv(rng.normal(size=(2, 1, 3)), 10, boundary="circular")
    D2 = dictionaries.Sparse(np.eye(20), lines(rng, 2, 5, 12, 20))
    x2 = np.zeros(12)
    x2[3] = 1
    x1 = D2 @ x2
    found = is_feasible(conv @ x1, (conv, D2), (x1, x2), (2, 1), 0)
    assert found.holds and found.counts.tolist() == [2, 1]
    whole = dictionaries.Composed(conv, D2)
    assert is_feasible(conv @ x1, [whole], [x2], [1], 0).holds
    assert is_feasible([3, 4], [np.eye(2)], [[3, 0]], [1], 4).residuals == pytest.approx([4.0])


def test_codes_that_are_not_finite_are_not_feasible():
    D = np.eye(3)
    for bad in (math.nan, math.inf):
        for eps in (0.0, math.inf):
            found = is_feasible(np.ones(3), [D], [np.array([bad, 1, 1])], [3], eps)
            assert not found.holds and found.residuals == math.inf and found.counts == 3
            assert found.rounding == 0


# Definition 1


def matrix(D):
    """The atoms one by one: filter f at position p t, wrapped on a circle."""
    columns, filters = [], np.asarray(D.filters, float)
    for f, *p in np.ndindex(*D.code_grid):
        atom = np.zeros(D.signal_grid)
        for c, *k in np.ndindex(filters.shape[1:]):
            at = tuple((a * t + b) % N for a, t, b, N in zip(p, D.stride, k, D.signal_shape))
            atom[(c, *at)] += filters[(f, c, *k)]
        columns.append(atom.reshape(-1))
    return np.stack(columns, axis=1)


def conv_chain(
    rng, boundary, filters=((3, 1, 4), (4, 3, 3)), signal=(24,), stride=(1, 1), dtype=np.float64
):
    """Two Conv layers, the second with sparse filters, and a code with one nonzero per channel."""
    first, second = (rng.normal(size=shape) for shape in filters)
    second *= np.arange(second[0].size).reshape(second.shape[1:]) < 2
    D1 = dictionaries.Conv(np.asarray(first, dtype), signal, stride[0], boundary)
    D2 = dictionaries.Conv(np.asarray(second, dtype), D1.positions, stride[1], boundary)
    x2 = np.zeros(D2.code_grid, dtype)
    x2.reshape(len(x2), -1)[:, rng.integers(math.prod(D2.positions))] = 1
    x2 = x2.reshape(-1)
    x1 = (matrix(D2) @ x2).astype(dtype)
    return (matrix(D1) @ x1).astype(dtype), [D1, D2], [x1, x2]


@pytest.mark.slow
def test_convolutional_chains_are_measured_by_their_stripes():
    y, Ds, xs = conv_chain(np.random.default_rng(0), "circular")
    found = is_csc_feasible(y, Ds, xs, [24, 4])
    by_definition = [
        stripe_by_definition(D.unflatten_code(x), D.kernel, D.stride, True) for D, x in zip(Ds, xs)
    ]
    assert found.holds and found.stripes.tolist() == by_definition
    mus = [np.abs(unit(A).T @ unit(A) - np.eye(len(A.T))).max() for A in map(matrix, Ds)]
    assert found.bounds == pytest.approx([sparsity_bound(mu) for mu in mus], rel=1e-12)
    assert (found.unique == (found.stripes < found.bounds)).all()
    for j in (0, 1):
        assert not is_csc_feasible(y, Ds, xs, found.stripes - np.eye(2, dtype=int)[j]).holds
    assert not is_csc_feasible(y + 1e-9, Ds, xs, [24, 4]).holds


@pytest.mark.slow
def test_convolutional_chains_in_two_dimensions_and_float32():
    rng = np.random.default_rng(1)
    y, Ds, xs = conv_chain(
        rng, "valid", ((2, 1, 3, 3), (3, 2, 2, 2)), (8, 6), ((2, 1), 1), np.float32
    )
    found = is_csc_feasible(y, Ds, xs, [12, 3])
    by_definition = [
        stripe_by_definition(D.unflatten_code(x), D.kernel, D.stride, False) for D, x in zip(Ds, xs)
    ]
    assert found.holds and found.stripes.tolist() == by_definition
    dirty = [x + 1e-6 * (x == 0).astype(np.float32) for x in xs]
    assert is_csc_feasible(y, Ds, dirty, [12, 3], tol=1e-5).holds
    assert not is_csc_feasible(y, Ds, dirty, [12, 3]).holds


def test_stripes_certify_codes_that_global_counts_cannot():
    # C-2: spikes and the Barker code of length 13, and 20 nonzeros with one in each stripe, where
    # global counts allow 2.
    barker = np.array([1, 1, 1, 1, 1, -1, -1, 1, 1, -1, 1, -1, 1]) / math.sqrt(13)
    D = dictionaries.Conv(np.stack([np.eye(13)[0], barker])[:, None], 500, boundary="circular")
    x = np.zeros(D.code_grid)
    x[np.arange(20) % 2, 25 * np.arange(20)] = 1
    found = is_csc_feasible(matrix(D) @ x.reshape(-1), [D], [x.reshape(-1)], [1])
    assert found.holds and found.stripes == 1 and found.unique.all()
    assert 2 < found.bounds[0] < 3


def dependent_supports(A):
    """All supports on which the columns of A are dependent, (n, d), kernel vectors included."""
    supports = np.array(list(itertools.product([False, True], repeat=A.shape[1])))[1:]
    values = np.linalg.svd(A[None] * supports[:, None, :], compute_uv=False)
    rank = (values > 1e-10).sum(1)  # unit columns: rounding is below 1e-14
    return supports[rank < supports.sum(1)]


CROWDED = {  # filters, signal, stride, boundary: at most 12 atoms
    "circular": ((2, 1, 3), 6, 1, "circular"),
    "valid": ((3, 1, 2), 5, 1, "valid"),
    "a stride of 2 on a circle of 9": ((2, 1, 4), 9, 2, "circular"),
    "a stride of 3 on a circle of 7": ((4, 1, 3), 7, 3, "circular"),
    "2-D": ((3, 1, 2, 2), (3, 3), 1, "valid"),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CROWDED)
def test_two_codes_never_differ_where_their_stripes_are_below_the_bounds(name):
    # Every kernel vector has a stripe norm of at least 1 + 1/mu, so codes with stripes below half
    # of it cannot differ.
    shape, *rest = CROWDED[name]
    stripe_norms = None
    for seed in range(5):
        filters = np.random.default_rng(seed).normal(size=shape)
        D = dictionaries.Conv(filters, *rest)
        A = unit(matrix(D))
        dependent = dependent_supports(A)
        assert len(dependent)
        stripe_norms = stripe_norms or jax.jit(jax.vmap(partial(_conv_stripe_norm, D)))
        mu = np.abs(A.T @ A - np.eye(len(A.T))).max()
        padded = np.zeros((2 ** len(A.T), len(A.T)))
        padded[: len(dependent)] = dependent
        assert np.asarray(stripe_norms(padded))[: len(dependent)].min() >= (1 + 1 / mu) * (
            1 - 1e-12
        )


@pytest.mark.parametrize("name", CROWDED)
def test_a_stripe_holds_every_atom_that_meets_its_middle(name):
    shape, *rest = CROWDED[name]
    D = dictionaries.Conv(np.ones(shape), *rest)
    A = matrix(D)
    pairs = np.array(
        [np.eye(len(A.T))[[i, j]].sum(0) for i, j in itertools.combinations(range(len(A.T)), 2)]
    )
    meet = np.array([(A[:, x > 0].min(axis=1) > 0).any() for x in pairs])
    together = np.asarray(jax.jit(jax.vmap(lambda x: _conv_stripe_norm(D, x)))(pairs)) == 2
    assert meet.any() and together[meet].all()


def test_a_code_that_is_not_finite_has_an_infinite_residual_and_no_rounding():
    found = is_feasible(np.ones(2), [np.eye(2)], [np.array([1.0, math.nan])], [2], 0.0)
    assert found.residuals == [math.inf] and found.rounding == [0.0] and not found.holds


def test_a_convolutional_chain_is_feasible_with_its_own_stripes_and_no_fewer():
    D = dictionaries.Conv(np.ones((1, 1, 2)), 5)
    x = np.array([1.0, 1.0, 0.0, 0.0])
    y = np.array([1.0, 2.0, 1.0, 0.0, 0.0])
    assert is_csc_feasible(y, [D], [x], [2]).holds
    assert not is_csc_feasible(y, [D], [x], [1]).holds
    assert not is_csc_feasible(y + 1e-9, [D], [x], [2]).holds
