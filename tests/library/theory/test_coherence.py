"""Coherence against brute force, what it permits (Theorem 1), and the rounding guard."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import coherence_of, off_diagonal
from oracles import unit

from unrolled import dictionaries, theory
from unrolled.theory import _coherence

EPS = np.finfo(np.float64).eps

CONVS = {  # filters, signal, stride, boundary
    "1-D valid": ((3, 1, 5), 20, 1, "valid"),
    "1-D valid, short": ((2, 2, 5), 7, 1, "valid"),
    "1-D valid, one position": ((3, 1, 5), 5, 1, "valid"),
    "1-D valid, stride 3": ((2, 3, 7), 25, 3, "valid"),
    "1-D circular": ((2, 1, 4), 16, 1, "circular"),
    "1-D circular, short": ((2, 1, 4), 5, 1, "circular"),
    "1-D circular, kernel longer than the signal": ((2, 1, 7), 5, 1, "circular"),
    "1-D circular, stride 2": ((3, 2, 5), 12, 2, "circular"),
    "1-D circular, stride 3 does not divide 8": ((2, 1, 3), 8, 3, "circular"),
    "2-D valid": ((3, 2, 3, 2), (7, 6), 1, "valid"),
    "2-D valid, strides 2 and 1": ((2, 1, 3, 3), (9, 6), (2, 1), "valid"),
    "2-D circular": ((2, 1, 3, 3), (8, 7), 1, "circular"),
    "2-D circular, stride 2, short in one dimension": ((2, 2, 3, 3), (4, 8), 2, "circular"),
}


def conv(name, seed=0):
    shape, *rest = CONVS[name]
    filters = np.random.default_rng(seed).normal(size=shape)
    return dictionaries.normalize(dictionaries.Conv(filters, *rest))[0]


# The rounding of an inner product of unit vectors of length m is at most m eps; m <= 250 here.
ROUNDING = 250 * EPS


@pytest.mark.few(2)
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (30, 60), (1, 5), (5, 2)])
def test_mutual_coherence_is_the_largest_cosine_between_columns(shape):
    D = np.random.default_rng(1).normal(size=shape)
    assert theory.mutual_coherence(D) == pytest.approx(coherence_of(D), abs=ROUNDING)


def test_mutual_coherence_ignores_scale_sign_and_order():
    rng = np.random.default_rng(2)
    D = rng.normal(size=(10, 25))
    changed = (D * rng.choice([-1, 1], 25) * 10.0 ** rng.uniform(-6, 6, 25))[:, rng.permutation(25)]
    assert theory.mutual_coherence(changed) == pytest.approx(
        float(theory.mutual_coherence(D)), abs=ROUNDING
    )


def test_mutual_coherence_of_one_atom_is_zero_and_of_orthonormal_atoms_is_rounding():
    assert theory.mutual_coherence(np.ones((3, 1))) == 0
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    assert theory.mutual_coherence(Q) <= 20 * EPS


@pytest.mark.few(1)
def test_mutual_coherence_of_duplicate_or_opposite_columns_is_one_and_never_above(dtype):
    D = np.random.default_rng(3).normal(size=(7, 6)).astype(dtype)
    for twin in (D[:, 2], -3 * D[:, 2]):
        mu = theory.mutual_coherence(np.column_stack([D, twin]).astype(dtype))
        assert mu.dtype == dtype
        assert 1 - 7 * np.finfo(dtype).eps <= mu <= 1


@jax.jit
def everything(W, D):
    """What theory says about a pair, and the pair as matrices, from one compilation."""
    return (
        theory.mutual_coherence(D),
        *jax.tree.leaves(theory.coherence(W, D)),
        theory.diagonal(W, D),
        dictionaries.dense(W),
        dictionaries.dense(D),
    )


def test_a_zero_column_or_weights_with_nan_give_nan_under_jit_at_any_size():
    D = np.random.default_rng(0).normal(size=(32, 64))
    W = unit(D)
    W[0, 5] = math.nan
    found = jax.jit(theory.coherence)(W, unit(D)).mu_W
    D[:, 5] = 0
    assert math.isnan(found) and math.isnan(jax.jit(theory.mutual_coherence)(D))


@pytest.mark.slow
def test_weights_may_have_a_longer_kernel_than_the_dictionary():
    D = conv("1-D circular")
    W = dictionaries.Conv(
        np.pad(np.asarray(D.filters), ((0, 0), (0, 0), (0, 2))), 16, boundary="circular"
    )
    assert theory.coherence(W, D).mu_W == pytest.approx(
        float(theory.coherence(D, D).mu_W), abs=ROUNDING
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("name", CONVS)
def test_convolutional_coherences_are_those_of_the_dense_matrix(name):
    mu_D, mu_W, C_W, own, weights, matrix = map(
        np.asarray, everything(conv(name, seed=1), conv(name))
    )
    assert mu_D == pytest.approx(coherence_of(matrix), abs=ROUNDING)
    assert mu_W == pytest.approx(off_diagonal(weights, matrix)[0].max(), abs=ROUNDING)
    assert C_W == pytest.approx(np.abs(weights).max(), abs=EPS)
    # One entry per representative atom; it is the same for all shifts of a filter.
    expected = np.sum(weights * matrix, axis=0)
    assert [own.min(), own.max()] == pytest.approx([expected.min(), expected.max()], abs=ROUNDING)


def test_coherence_of_other_structured_dictionaries_is_dense():
    rng = np.random.default_rng(4)
    D1, D2 = np.linalg.qr(rng.normal(size=(8, 8)))[0], unit(rng.normal(size=(8, 5)))
    for D in (dictionaries.Concatenated(np.eye(8), D1), dictionaries.Composed(D1, D2)):
        matrix = dictionaries.dense(D)
        assert theory.mutual_coherence(D) == pytest.approx(coherence_of(matrix), abs=ROUNDING)
        assert theory.coherence(D, D).mu_W == pytest.approx(
            off_diagonal(matrix, matrix)[0].max(), abs=ROUNDING
        )


def test_coherence_of_weights_is_the_largest_product_and_the_largest_entry():
    rng = np.random.default_rng(5)
    D = unit(rng.normal(size=(12, 30)))
    W = rng.normal(size=(12, 30))
    of = theory.coherence(W, D)
    assert of.mu_W == pytest.approx(off_diagonal(W, D)[0].max(), rel=12 * EPS)
    assert of.C_W == np.abs(W).max()
    assert theory.diagonal(W, D) == pytest.approx(
        np.sum(W * D, axis=0), abs=12 * np.abs(W).max() * EPS
    )


# Babel function and spark.


def babel_by_sorting(D, s):
    return np.sort(off_diagonal(D, D)[0], axis=1)[:, ::-1][:, :s].sum(1).max()


@pytest.mark.few(1)
@pytest.mark.parametrize("m, d", [(4, 9), (9, 4), (30, 60), (1, 5), (5, 2)])
def test_babel_is_the_largest_sum_of_s_products(m, d):
    D = unit(np.random.default_rng(1).normal(size=(m, d)))
    sizes = sorted({0, 1, 2, d // 2, d - 1, d, d + 2})
    values = dict(zip(sizes, map(float, jax.jit(lambda D: [theory.babel(D, s) for s in sizes])(D))))
    assert list(values.values()) == pytest.approx(
        [babel_by_sorting(D, s) for s in sizes], abs=d * ROUNDING
    )
    mu = float(theory.mutual_coherence(D))
    assert values[0] == 0 and values[1] == pytest.approx(mu, abs=ROUNDING)
    assert all(values[s] <= s * mu + d * ROUNDING for s in sizes)
    # From s = d - 1 on, all other atoms count.
    assert [values[d], values[d + 2]] == pytest.approx([values[d - 1]] * 2, rel=d * EPS)


def test_babel_of_many_atoms_needs_not_all_rows():
    """The row with the most energy, with which the search starts, is seldom the largest."""
    Ds = np.stack([unit(np.random.default_rng(seed).normal(size=(4, 12))) for seed in range(20)])
    values = jax.jit(jax.vmap(lambda D: _coherence._largest_row(D, 2)))(Ds)
    assert np.asarray(values) == pytest.approx([babel_by_sorting(D, 2) for D in Ds], abs=ROUNDING)


def test_babel_of_equiangular_atoms_is_s_mu_and_of_one_atom_zero():
    D = dictionaries.paley(13)
    found = jax.jit(lambda D: [theory.babel(D, s) for s in (1, 3, 13, 99)])(D)
    assert list(map(float, found)) == pytest.approx(
        np.array([1, 3, 13, 13]) / math.sqrt(13), rel=1e-12
    )
    assert [float(theory.babel(np.ones((1, 1)), s)) for s in (0, 1, 5)] == [0, 0, 0]
    assert theory.babel(np.eye(4), 2) == 0


def test_babel_knows_that_close_pairs_are_far_from_the_rest():
    """With coherent pairs only, mu admits one nonzero but the Babel condition any number."""
    D = np.kron(np.eye(4), unit(np.array([[1, 0.45], [0, math.sqrt(1 - 0.45**2)]])))
    assert theory.max_sparsity(theory.mutual_coherence(D), 8) == 1
    assert theory.babel(D, 6) + theory.babel(D, 7) == pytest.approx(0.9, abs=ROUNDING)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["1-D valid, stride 3", "1-D circular, stride 2", "2-D circular",
                                  "1-D circular, kernel longer than the signal",
                                  "1-D circular, stride 3 does not divide 8"])  # fmt: skip
def test_babel_of_convolutions_is_that_of_the_dense_matrix(name):
    D = conv(name)
    found, matrix = jax.jit(
        lambda D: ([theory.babel(D, s) for s in (1, 3, 10**6)], dictionaries.dense(D))
    )(D)
    expected = [babel_by_sorting(np.asarray(matrix), s) for s in (1, 3, 10**6)]
    assert [float(v) for v in found] == pytest.approx(expected, abs=100 * ROUNDING)


def test_spark_bound_by_hand():
    assert [theory.spark_bound(mu) for mu in (1.0, 0.5, 0.0)] == [2, 3, math.inf]
    assert theory.spark_bound(jnp.asarray(0.25)) == 5 and isinstance(
        theory.spark_bound(0.25), float
    )


@pytest.mark.parametrize("seed", range(3))
def test_fewer_atoms_than_the_spark_bound_are_independent_and_the_bound_is_attained(seed):
    rng = np.random.default_rng(seed)
    D = np.hstack([np.eye(6), unit(rng.normal(size=(6, 4)))])
    fewer = math.ceil(theory.spark_bound(theory.mutual_coherence(D)) - 1e-9) - 1
    sets = np.array([*itertools.combinations(range(10), fewer)])
    assert np.linalg.svd(D.T[sets], compute_uv=False).min() > 1e-9
    simplex = unit(np.eye(4) - 0.25)  # four vertices in three dimensions: mu = 1/3, spark 4
    assert theory.spark_bound(theory.mutual_coherence(simplex)) == pytest.approx(4, rel=1e-12)
    assert np.linalg.matrix_rank(simplex) == 3


# Welch bound.


@pytest.mark.few(2)
@pytest.mark.parametrize("q", [5, 13, 29, 61])
def test_paley_frames_attain_the_welch_bound(q):
    D = dictionaries.paley(q)
    assert theory.welch_bound(*D.shape) == pytest.approx(1 / math.sqrt(q), rel=4 * EPS)
    # The rounding of the eigenvectors.
    assert theory.mutual_coherence(D) == pytest.approx(1 / math.sqrt(q), abs=D.shape[0] * 8 * EPS)


@pytest.mark.parametrize("seed", range(5))
def test_the_welch_bound_is_below_every_mu_W(seed):
    rng = np.random.default_rng(seed)
    m, d = 10, 25
    D = unit(rng.normal(size=(m, d)))
    others = rng.normal(size=(m, d))
    arbitrary = others / np.sum(others * D, axis=0)  # w_i . d_i = 1
    for W in (D, theory.frobenius_weights(D), arbitrary):
        assert theory.coherence(W, D).mu_W >= theory.welch_bound(m, d)


def test_welch_bound_of_few_atoms_is_zero():
    assert not any(theory.welch_bound(*shape) for shape in ((4, 4), (5, 3), (3, 1), (1, 1)))
    assert theory.welch_bound(1, 2) == 1


# Sparsity.


def test_sparsity_bound_by_hand():
    assert theory.sparsity_bound(1 / 31) == pytest.approx(16, rel=4 * EPS)
    assert theory.sparsity_bound(1.0) == 1
    assert theory.sparsity_bound(0.0) == math.inf
    assert theory.sparsity_bound(jnp.asarray(0.5)) == 1.5


@pytest.mark.parametrize("mu, d, expected", [
    (1 / 31, 100, 15),  # exactly 16: strictly below
    (1 / 31, 10, 10),  # no more than d
    (1 / 32, 2048, 16),  # 16.5
    (1 / 30.9999999999, 100, 15),  # an integer within rounding
    (0.0, 7, 7), (1e-320, 7, 7), (1.0, 5, 0), (2.0, 5, 0), (0.34, 5, 1), (1 / 3, 5, 1),
    (0.33, 5, 2),
])  # fmt: skip
def test_max_sparsity_is_the_largest_integer_strictly_below_the_bound(mu, d, expected):
    assert theory.max_sparsity(mu, d) == expected


def test_max_sparsity_is_what_the_schedule_admits():
    # For any mu that differs from 1 / (2s - 1) by more than the conservative margin of 1e-9.
    for mu in np.random.default_rng(0).uniform(0.005, 1.2, 500):
        s = theory.max_sparsity(mu, 10**6)
        admitted = [
            theory.schedule(mu, 1.0, sparsity=k, bound=1.0, depth=0).holds for k in (s, s + 1)
        ]
        assert admitted == [True, False]


# Rounding guard.


U = 2.0**-24  # of float32


def roundings(u, m, d, s, factors=0.0):
    """The rounding per unit of norm(x, 1), and per unit of the noise, to first order."""
    products = (m + 5) * u + (m + d + 5) * 2.0**-53 + 2 * factors
    return products + 3 * ((s + 2) * u + 2 * factors), products


@pytest.mark.parametrize(
    "precision, u, factors",
    [
        (None, None, 0.0),
        ("highest", None, 0.0),
        ("float32", U, 0.0),
        ("tensorfloat32", 2 * U, 2.0**-11),
        ("bfloat16", 2 * U, 2.0**-8),
    ],
)
def test_rounding_guard_grows_with_the_length_of_the_sums(dtype, precision, u, factors):
    rng = np.random.default_rng(6)
    D = unit(rng.normal(size=(9, 14))).astype(dtype)
    W = rng.normal(size=(9, 14)).astype(dtype)
    G = (np.abs(W).T.astype(np.float64) @ np.abs(D)).max()
    u = float(np.finfo(dtype).eps) / 2 if u is None else u
    expected = roundings(u, 9, 14, 3, factors)[0] * G * 3 * 2.5
    found = theory.rounding_guard(W, D, sparsity=3, bound=2.5, precision=precision)
    assert found == pytest.approx(expected, rel=1e-5 if not factors else 0.03)


def test_a_precision_finer_than_the_dtype_makes_the_guard_no_smaller():
    for dtype, precision in (("bfloat16", "tensorfloat32"), ("float16", "float32")):
        D = dictionaries.identity_hadamard(4).astype(dtype)
        guard = partial(theory.rounding_guard, D, D, sparsity=1, bound=1.0)
        assert guard(precision=precision) == guard()


def test_rounding_guard_covers_the_noise():
    rng = np.random.default_rng(6)
    D, W = unit(rng.normal(size=(9, 14))), rng.normal(size=(9, 14))
    of_code, of_noise = roundings(EPS / 2, 9, 14, 3)
    C = np.abs(W).max()
    expected = of_code * (np.abs(W).T @ np.abs(D)).max() * 3 * 2.5 + of_noise * C * 7
    assert theory.rounding_guard(W, D, sparsity=3, bound=2.5, noise=7.0) == pytest.approx(expected)
    alone = theory.rounding_guard(W, D, sparsity=0, bound=0.0, noise=1.0)
    assert alone == pytest.approx(of_noise * C)
    # A Conv is measured by its filters.
    C = conv("1-D valid, stride 3")
    dense = np.asarray(everything(C, C)[-1])
    given = dict(sparsity=2, bound=1.0, noise=5.0)
    assert theory.rounding_guard(C, C, **given) == pytest.approx(
        theory.rounding_guard(dense, dense, **given), rel=ROUNDING
    )


def test_large_noise_makes_no_false_positive_by_its_rounding():
    # float32: rounding of y and of W'y grows with delta, far above 4 eps s B.
    rng, B, delta = np.random.default_rng(0), 1.0, 1e5
    D = np.linalg.qr(rng.normal(size=(12, 12)))[0].astype(np.float32)
    X = np.zeros((3000, 12), np.float32)
    X[np.arange(3000), rng.integers(12, size=3000)] = B
    # Noise in the entry that holds C_W meets the whole bound in the product with its atom.
    E = np.zeros((3000, 12))
    row, atom = np.unravel_index(np.abs(D).argmax(), D.shape)
    E[:, row] = delta * rng.uniform(1 - 1e-7, 1, 3000)
    Y = (X.astype(float) @ D.T.astype(float) + E).astype(np.float32)
    scores = np.abs(Y @ D)
    products = D.T.astype(float) @ D
    mu, C_W = np.abs(products - np.diag(np.diag(products))).max(), float(np.abs(D).max())
    wrong = []
    for noise in (0.0, delta):
        guard = theory.rounding_guard(D, D, sparsity=1, bound=B, noise=noise)
        options = dict(sparsity=1, bound=B, noise=delta, depth=1, guard=guard)
        theta = theory.schedule(mu, C_W, **options).theta
        wrong.append(int(((scores > theta) & (X == 0)).any(1).sum()))
    assert wrong[0] > 0 and wrong[1] == 0


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["1-D valid, stride 3", "1-D circular, short", "2-D circular"])
def test_rounding_guard_of_convolutions_is_that_of_the_dense_matrices(name):
    D, W = conv(name), conv(name, seed=1)
    *_, weights, matrix = everything(W, D)
    expected = 4 * EPS * (np.abs(weights).T @ np.abs(matrix)).max() * 2
    assert theory.rounding_guard(W, D, sparsity=2, bound=1.0) == pytest.approx(
        expected, rel=ROUNDING
    )


@pytest.mark.slow
def test_rounding_guard_of_a_kernel_that_wraps_onto_itself_is_no_smaller():
    D = conv("1-D circular, kernel longer than the signal")
    *_, matrix = everything(D, D)
    expected = 4 * EPS * (np.abs(matrix).T @ np.abs(matrix)).max()  # |a + b| <= |a| + |b|
    assert theory.rounding_guard(D, D, sparsity=1, bound=1.0) >= expected * (1 - ROUNDING)


# Host functions.


def test_babel_of_equal_atoms_is_one_whatever_their_norms():
    """Atoms count as unit to 1e-4: products of two of .99995 would certify that they differ."""
    D = np.array([[0.99995, 0.99995, 0.0], [0.0, 0.0, 1.0]])
    assert float(theory.babel(D, 1)) == pytest.approx(1.0, abs=4 * EPS)
    assert float(theory.babel(D, 1)) == pytest.approx(
        float(theory.mutual_coherence(D)), abs=4 * EPS
    )
