"""Dictionaries against matrices built entry by entry: families, convolutions, compositions."""

import dataclasses
import itertools
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from faults import Fault, rows

from unrolled import dictionaries as ud
from unrolled import theory as ut
from unrolled.dictionaries._base import scale_columns

EPS = np.finfo(float).eps
assert_close = partial(chex.assert_trees_all_close, rtol=0)


def off_diagonal(D):
    """The largest inner product of two different atoms, in magnitude."""
    gram = np.abs(np.asarray(D).T @ np.asarray(D))
    return (gram - np.diag(np.diag(gram))).max()


def assert_unit(D, tolerance=16 * EPS):
    # A norm of n entries and a division: about n / 2 + 1 roundings in the worst case, far fewer at
    # these sizes.
    assert_close(np.linalg.norm(np.asarray(D), axis=0), 1, atol=tolerance)


# Families


def test_gaussian(key):
    D = ud.gaussian(key, 200, 300)
    assert D.shape == (200, 300) and D.dtype == float
    assert_unit(D)
    # Entries are near N(0, 1/200): five standard errors of the mean, the variance and the fourth
    # moment.
    z = np.asarray(D) * math.sqrt(200)
    assert abs(z.mean()) < 5 / math.sqrt(z.size)
    assert (
        abs((z**4).mean() - 3) < 5 * math.sqrt(96 / z.size) + 6 / 200
    )  # unit norms cost 6 / (m + 2)
    chex.assert_trees_all_equal(D, ud.gaussian(key, 200, 300))
    assert not np.array_equal(D, ud.gaussian(jax.random.key(1), 200, 300))


@pytest.mark.parametrize("m", [1, 2, 8, 64])
def test_identity_hadamard(m):
    D = np.asarray(ud.identity_hadamard(m))
    assert D.shape == (m, 2 * m)
    assert_unit(D)
    chex.assert_trees_all_equal(D[:, :m], np.eye(m))
    chex.assert_trees_all_equal(np.abs(D[:, m:]), np.full((m, m), 1 / math.sqrt(m)))
    assert_close(D[:, m:].T @ D[:, m:], np.eye(m), atol=8 * EPS)
    assert off_diagonal(D) == pytest.approx(1 / math.sqrt(m), abs=8 * EPS)


@pytest.mark.parametrize("q", [5, 13, 61])
def test_paley_reaches_the_welch_bound(q):
    D = np.asarray(ud.paley(q))
    m, d = D.shape
    assert (m, d) == ((q + 1) // 2, q + 1)
    assert_unit(D, 64 * EPS)
    welch = math.sqrt((d - m) / (m * (d - 1)))
    assert welch == pytest.approx(1 / math.sqrt(q))
    assert_close(np.abs(D.T @ D - np.eye(d)), welch * (1 - np.eye(d)), atol=64 * EPS)
    assert_close(D @ D.T, 2 * np.eye(m), atol=64 * EPS)


transversal = jax.jit(ud.transversal, static_argnums=(1, 2, 3))


@pytest.mark.few(2)
@pytest.mark.parametrize("c, q, d", [(1, 2, 4), (3, 3, 9), (4, 7, 20)])
def test_transversal(key, c, q, d):
    D = np.asarray(transversal(key, c, q, d))
    assert D.shape == (c * q, d)
    support = D != 0
    chex.assert_trees_all_equal(
        support.reshape(c, q, d).sum(1), np.ones((c, d))
    )  # one row of every group
    assert_close(np.abs(D[support]), 1 / math.sqrt(c), rtol=EPS)
    shared = support.T.astype(int) @ support.astype(int)
    assert (
        shared - np.diag(np.diag(shared))
    ).max() <= 1 or c == 1  # with one group, lines of one a coincide
    if c > 1:
        assert off_diagonal(D) <= (1 + 4 * EPS) / c


def test_transversal_depends_on_its_key(key):
    one, two = (np.asarray(transversal(k, 3, 3, 9)) for k in jax.random.split(key))
    assert not np.array_equal(one, two)
    assert (one > 0).any() and (one < 0).any()


@pytest.mark.parametrize("m", [1, 2, 7, 16])
def test_square_dct_is_dct_2(m):
    D = np.asarray(ud.dct(m, m))
    assert_close(D.T, scipy.fft.dct(np.eye(m), axis=0, norm="ortho"), atol=8 * m * EPS)


@pytest.mark.parametrize("m, d", [(1, 1), (1, 4), (2, 5), (8, 16), (8, 11)])
def test_overcomplete_dct(m, d):
    D = np.asarray(ud.dct(m, d))
    assert D.shape == (m, d)
    assert_unit(D)
    for k in range(d):
        atom = np.array([math.cos(math.pi * (i + 0.5) * k / d) for i in range(m)])
        atom = atom - atom.mean() if k and m > 1 else np.ones(m)
        assert_close(D[:, k], atom / np.linalg.norm(atom), atol=64 * EPS)


def test_dct_of_patches_is_a_kronecker_product():
    assert ud.dct((8, 8), (16, 16)).shape == (64, 256)
    D = ud.dct((3, 4), (5, 4))
    assert_close(D, np.kron(ud.dct(3, 5), ud.dct(4, 4)), atol=2 * EPS)
    patch = np.outer(np.asarray(ud.dct(3, 5))[:, 2], np.asarray(ud.dct(4, 4))[:, 1])
    assert_close(D[:, 2 * 4 + 1], patch.reshape(-1), atol=2 * EPS)


def test_ill_conditioned(key):
    conditions = []
    for kappa in (1, 5, 50, 500):
        D = ud.ill_conditioned(key, 20, 40, kappa)
        assert D.shape == (20, 40)
        assert_unit(D)
        conditions.append(np.linalg.cond(D))
    assert conditions == sorted(conditions)
    assert conditions[0] < 3 and conditions[3] > 100


# Convolutions


def conv_matrix(filters, signal_shape, stride, boundary):
    """The matrix of a `Conv` from its definition: filters[f, c, k] at row (c, i t + k)."""
    n_atoms, n_channels, *kernel = filters.shape
    if boundary == "valid":
        positions = [(N - n) // t + 1 for N, n, t in zip(signal_shape, kernel, stride)]
    else:
        positions = [math.ceil(N / t) for N, t in zip(signal_shape, stride)]
    M = np.zeros((n_channels, *signal_shape, n_atoms, *positions))
    for f, c in itertools.product(range(n_atoms), range(n_channels)):
        for i in itertools.product(*map(range, positions)):
            for k in itertools.product(*map(range, kernel)):
                place = [a * t + b for a, b, t in zip(i, k, stride)]
                if boundary == "circular":
                    place = [p % N for p, N in zip(place, signal_shape)]
                if all(p < N for p, N in zip(place, signal_shape)):
                    M[(c, *place, f, *i)] += filters[(f, c, *k)]
    return M.reshape(n_channels * math.prod(signal_shape), -1)


@jax.jit
def products(Ds):
    """Synthesis and analysis of all unit vectors, for several dictionaries at once."""
    return [(D @ jnp.eye(D.shape[1]), jnp.eye(D.shape[0]) @ D) for D in Ds]


@jax.jit
def all_norms(Ds):
    return [(ud.column_norms(D), ud.spectral_norm(D), *ud.normalize(D)) for D in Ds]


def assert_convs(filters, signal_shape, strides, boundary):
    """The `Conv` of each stride is the matrix of the definition; so are its norms."""
    Ds = [ud.Conv(filters, signal_shape, stride, boundary) for stride in strides]
    Ms = [conv_matrix(filters, signal_shape, stride, boundary) for stride in strides]
    # a sum of that many entries, in another order
    tolerance = 4 * EPS * filters.size * np.abs(filters).max()
    for D, M, both in zip(Ds, Ms, products(Ds)):
        assert D.shape == M.shape
        for product in both:
            assert_close(product, M, atol=tolerance)
    if filters.shape[1] == 1:
        return
    for stride, M, (atom_norms, norm, unit, norms) in zip(
        strides, Ms, jax.device_get(all_norms(Ds))
    ):
        assert_close(atom_norms, np.linalg.norm(M, axis=0), atol=4 * tolerance)
        assert norm >= np.linalg.norm(M, 2) * (1 - 4 * EPS)
        if set(stride) == {1} and boundary == "circular":
            assert norm == pytest.approx(np.linalg.norm(M, 2), rel=64 * EPS)
        U = conv_matrix(unit.filters, signal_shape, stride, boundary)
        assert_close(U * norms, M, atol=tolerance)
        # Only "zero" cuts atoms, so that they lose norm.
        np.testing.assert_array_less(np.linalg.norm(U, axis=0), 1 + 16 * EPS)
        if boundary != "zero":
            assert_unit(U)


KERNELS = {"shorter": (2, 3), "equal": (4, 5), "longer": (9, 6)}  # against signals of shape (4, 5)


# Under "valid" a kernel longer than the signal is an error, tested below.
FITS = [
    (b, length)
    for b in ("valid", "circular", "zero")
    for length in KERNELS
    if (b, length) != ("valid", "longer")
]


@pytest.mark.few(1)
@pytest.mark.parametrize("dimensions, channels", [(1, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("boundary, length", FITS)
def test_conv_is_its_matrix(boundary, length, dimensions, channels):
    signal_shape, kernel = (4, 5)[-dimensions:], KERNELS[length][-dimensions:]
    filters = np.random.default_rng(channels).normal(size=(2, channels, *kernel))
    assert_convs(filters, signal_shape, [(t,) * dimensions for t in (1, 2, 3)], boundary)


@pytest.mark.few(1)
@pytest.mark.parametrize("boundary", ["valid", "circular", "zero"])
def test_conv_in_three_dimensions_with_unequal_strides(boundary):
    assert_convs(
        np.random.default_rng(0).normal(size=(2, 2, 2, 3, 1)), (3, 4, 2), [(2, 1, 2)], boundary
    )


def test_conv_with_a_kernel_of_many_strides():
    """More than 32 strides take another path."""
    filters = np.random.default_rng(0).normal(size=(2, 1, 33))
    assert_convs(filters, (35,), [(1,), (2,)], "valid")


def test_conv_with_the_full_kernel_is_dense():
    filters = np.random.default_rng(0).normal(size=(5, 2, 3))
    chex.assert_trees_all_equal(ud.dense(ud.Conv(filters, 3)), filters.reshape(5, 6).T)


def test_conv_grids_and_codes():
    D = ud.Conv(np.ones((3, 2, 2, 2)), (5, 6), (1, 2), "valid")
    assert (D.kernel, D.stride, D.positions) == ((2, 2), (1, 2), (4, 3))
    assert (D.signal_grid, D.code_grid, D.shape) == ((2, 5, 6), (3, 4, 3), (60, 36))
    x = np.arange(36.0)
    maps = D.unflatten_code(x)
    assert maps.shape == (3, 4, 3) and maps[2, 1, 0] == 2 * 12 + 1 * 3
    chex.assert_trees_all_equal(D.unflatten_code(np.stack([x, 2 * x])), np.stack([maps, 2 * maps]))


def test_spread_repeats_one_value_per_filter():
    D = ud.Conv(np.ones((3, 1, 2)), 5)
    assert ud.spread(D, np.arange(3.0)).tolist() == np.repeat(np.arange(3.0), 4).tolist()
    for theta in (np.asarray(0.5), np.arange(12.0)):
        for dictionary in (D, np.ones((4, 12))):
            np.testing.assert_array_equal(ud.spread(dictionary, theta), theta)
    assert ud.threshold_shapes(D) == ((), (12,), (3,)) and D.groups == (3,)


CONVS = {
    "valid": ud.Conv(np.random.default_rng(0).normal(size=(2, 1, 3)), 9),
    "valid, stride 2": ud.Conv(np.random.default_rng(1).normal(size=(3, 2, 4)), 12, 2),
    "valid, 2-D": ud.Conv(np.random.default_rng(2).normal(size=(2, 1, 2, 3)), (5, 7), (1, 2)),
    "circular": ud.Conv(np.random.default_rng(3).normal(size=(2, 2, 3)), 8, 1, "circular"),
    "circular, stride 2": ud.Conv(
        np.random.default_rng(4).normal(size=(2, 1, 3)), 8, 2, "circular"
    ),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", CONVS)
def test_correlations_of_filters_hold_the_coherence(name):
    @jax.jit
    def matrices(D):
        D, _ = ud.normalize(D)
        return [ud.dense(d) for d in (D, D.local(1), D.local(2))], D.corner_codes()

    assert CONVS[name].is_shift_invariant()
    (M, *local), codes = jax.device_get(matrices(CONVS[name]))
    chex.assert_trees_all_equal(
        np.sort(codes, 1)[:, -2:], np.tile([0.0, 1.0], (len(codes), 1))
    )  # one-hot rows
    rows = np.abs(codes @ M.T @ M * (1 - codes))
    for L in local:
        assert off_diagonal(L) == pytest.approx(
            off_diagonal(M), abs=16 * EPS
        )  # sums of at most 8 terms
    assert rows.max() == pytest.approx(off_diagonal(M), abs=16 * EPS)


@pytest.mark.parametrize("name", ["valid, 2-D", "circular", "circular, stride 2"])
def test_stripes_hold_the_coefficients_of_the_atoms_that_overlap(name):
    D = CONVS[name]
    x = np.arange(1.0, D.shape[1] + 1)
    stripes, matrix = jax.device_get(jax.jit(lambda D, x: (D.stripes(x), ud.dense(D)))(D, x))
    overlap = np.abs(matrix).T @ np.abs(matrix) > 0
    position = np.arange(len(x)) % math.prod(D.positions)
    for i, stripe in enumerate(stripes):
        assert sorted(stripe[stripe > 0]) == x[overlap[position == i].any(0)].tolist()


def test_shift_invariance_and_shifts():
    D = CONVS["circular"]
    assert not ud.Conv(D.filters, 8, 3, "circular").is_shift_invariant()  # 3 does not divide 8
    assert not ud.Conv(D.filters, 8, 1, "zero").is_shift_invariant()
    assert D.is_shift_of(D * 2)
    for other in (
        ud.Conv(D.filters, 9, 1, "circular"),
        ud.Conv(D.filters, 8, 1, "zero"),
        ud.dense(D),
    ):
        assert not D.is_shift_of(other)
    short = ud.Conv(D.filters, 4, 1, "circular")  # a circle below 2 n - 1
    assert short.local(1) is short
    assert ud.Conv(np.ones((2, 1, 4)), 40).local(2).signal_shape == (10,)  # 4 + 2 shifts by 3


# Dictionaries made of dictionaries


@jax.jit
def answers(D):
    """What synthesis and analysis make of all unit vectors, and the norms."""
    return ud.dense(D), ud.dense(D.T).T, ud.column_norms(D), ud.spectral_norm(D)


def assert_answers(D, M, name=""):
    """`D` answers as the matrix `M` does, to the rounding of sums of m + d terms of size 1."""
    assert D.shape == M.shape, name
    by_one, by_other, norms, norm = jax.device_get(answers(D))
    tolerance = 4 * EPS * sum(M.shape) * max(1, np.abs(M).max()) ** 2
    for ours, expected in ((by_one, M), (by_other, M), (norms, np.linalg.norm(M, axis=0))):
        assert_close(ours, expected, atol=tolerance, custom_message=name)
    assert norm >= np.linalg.norm(M, 2) * (1 - 4 * EPS), name


def _kinds():
    """Pairs (D, M) of a structured dictionary and its matrix, all with m = 8."""
    rng = np.random.default_rng(5)
    A, B, E = (rng.normal(size=shape) for shape in ((8, 6), (6, 10), (5, 4)))
    filters = rng.normal(size=(2, 1, 3))
    conv, C = ud.Conv(filters, 8, 1, "circular"), conv_matrix(filters, (8,), (1,), "circular")
    zero, Z = ud.Conv(filters, 8, 2, "zero"), conv_matrix(filters, (8,), (2,), "zero")
    S, T = (rng.normal(size=shape) * (rng.uniform(size=shape) < 0.3) for shape in ((6, 7), (16, 5)))
    S[:, 2] = 1  # a full column, so that the others are padded
    T[3] = 1  # no empty column
    S_over_A, T_over_conv = ud.Sparse(A, S), ud.Sparse(conv, T)
    return {
        "Conv": (conv, C),
        "Conv.T": (zero.T, Z.T),
        "Composed of one": (ud.Composed(A), A),
        "Composed of arrays": (ud.Composed(A, B), A @ B),
        "Composed of three": (ud.Composed(conv, T, E), C @ T @ E),
        "Composed, Conv last": (ud.Composed(A @ A.T, conv), A @ A.T @ C),
        "Composed, nested": (ud.Composed(conv, conv.T, A), C @ C.T @ A),
        "Concatenated of arrays": (ud.Concatenated(A, np.eye(8)), np.hstack([A, np.eye(8)])),
        "Concatenated, mixed": (ud.Concatenated(conv, A, zero), np.hstack([C, A, Z])),
        "Concatenated, nested": (
            ud.Concatenated(ud.Composed(A, B), T_over_conv),
            np.hstack([A @ B, C @ T]),
        ),
        "Sparse": (S_over_A, A @ S),
        "Sparse over Conv": (T_over_conv, C @ T),
        "Sparse over Sparse": (ud.Sparse(S_over_A, np.eye(7)[:, :3]), (A @ S)[:, :3]),
        "Sparse, nested": (
            ud.Sparse(ud.Concatenated(A, conv), np.eye(22)[:, ::3]),
            np.hstack([A, C])[:, ::3],
        ),
    }


KINDS = _kinds()


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture(
    params=["Conv", "Conv.T", "Composed, nested", "Concatenated, mixed", "Sparse over Conv"]
)
def main_kind(request):
    """One dictionary of each class, for what the combinations share."""
    return KINDS[request.param]


@pytest.mark.few(6)
def test_structured_dictionaries_are_their_matrices(kind):
    assert_answers(*kind)


def test_a_batch_of_dictionaries_is_not_taken_for_one(kind):
    """Its `shape` is that of one dictionary: products would fail in the words of JAX."""
    batched = jax.tree.map(lambda leaf: np.stack([leaf] * 3), kind[0])
    assert batched.shape == kind[0].shape
    for function in (ud.as_dictionary, lambda D, where: ud.as_chain([D], where)):
        with pytest.raises(ValueError, match="^caller: D.* is a batch of dictionaries"):
            function(batched, "caller")


def test_transposing_twice_gives_the_dictionary_back(main_kind):
    D, M = main_kind
    assert D.T.shape == M.T.shape
    assert D.T.T is D or D.T is D.base


@pytest.mark.few(5)
@pytest.mark.parametrize("name", KINDS)
def test_normalize_splits_off_the_norms(name):
    D, M = KINDS[name]

    @jax.jit
    def split(D):
        unit, norms = ud.normalize(D)
        return unit, norms, ud.dense(unit)

    unit, norms, U = jax.device_get(split(D))
    # A transpose cannot absorb the weights: it is wrapped.
    assert isinstance(unit, ud.Rescaled if name == "Conv.T" else type(D))
    assert norms.shape == M.shape[1:]
    # The norm and the products behind an atom: m + d terms at most, of size at most that of M.
    tolerance = 4 * EPS * sum(M.shape) * np.abs(M).max()
    assert_close(U * norms, M, atol=tolerance)
    assert_unit(U, 64 * EPS)


def test_normalize_of_an_array_keeps_its_dtype(dtype):
    D = np.asarray([[3.0, 0.0], [4.0, 2.0]], dtype)
    unit, norms = ud.normalize(D)
    assert unit.dtype == norms.dtype == dtype
    assert_close(unit, np.array([[0.6, 0.0], [0.8, 1.0]]), rtol=2 * np.finfo(dtype).eps)
    chex.assert_trees_all_equal(norms, np.array([5.0, 2.0]))
    chex.assert_trees_all_equal(ud.column_norms(D), norms)


def test_a_kernel_longer_than_its_circle_wraps_onto_itself():
    filters = np.random.default_rng(0).normal(size=(2, 1, 4, 7))
    C = ud.Conv(filters, (5, 3), boundary="circular")
    folded = np.zeros((2, 1, 4, 3))
    for k in range(7):
        folded[..., k % 3] += filters[..., k]
    np.testing.assert_allclose(C._folded(), folded, rtol=1e-14)


def test_plain_arrays_are_dictionaries(dtype):
    D = np.random.default_rng(0).normal(size=(5, 9)).astype(dtype)
    chex.assert_trees_all_equal(ud.dense(D), D)
    for matrix in (D, D.T):
        true = np.linalg.norm(matrix.astype(float), 2)
        # The eigenvalue of the Gram matrix is good to a few eps, and rounded up.
        assert (
            true * (1 - np.finfo(dtype).eps)
            <= float(ud.spectral_norm(matrix))
            <= true * (1 + 32 * np.finfo(dtype).eps)
        )


def test_concatenated_norm_is_exact_for_orthonormal_parts():
    D = ud.Concatenated(np.eye(8), ud.dct(8, 8))
    assert D.spectral_norm() == pytest.approx(math.sqrt(2), rel=32 * EPS)


def test_large_composed_norm_is_the_product(monkeypatch):
    monkeypatch.setattr("unrolled.dictionaries._families.DENSE_LIMIT", 10)
    D, M = KINDS["Composed of arrays"]
    product = math.prod(np.linalg.norm(np.asarray(F), 2) for F in D.factors)
    assert D.spectral_norm() == pytest.approx(product, rel=64 * EPS)
    assert D.spectral_norm() > np.linalg.norm(M, 2)


# Under transformations


@pytest.mark.few(1)
def test_arrays_of_both_libraries_defer_on_the_left(main_kind):
    D, M = main_kind
    r = np.random.default_rng(2).normal(size=M.shape[0])
    left = [
        r @ D,
        jnp.asarray(r) @ D,
        list(r) @ D,
        np.stack([r, r]) @ D,
        jnp.stack([r, r]) @ D,
        np.float64(1) * (r @ D),
    ]
    for ours in left:
        assert isinstance(ours, jax.Array)
        assert_close(ours, np.broadcast_to(r @ M, ours.shape), atol=4 * EPS * np.abs(M).sum())
    for scaled in (
        np.float64(2) * D,
        jnp.asarray(2.0) * D,
        D * np.float64(2),
        D / 0.5,
        D / jnp.asarray(0.5),
    ):
        assert type(scaled) is type(D)
        chex.assert_trees_all_equal(r @ scaled, 2 * (r @ D))


@pytest.mark.slow
@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_conv_in_half_precision(half):
    eps = float(jnp.finfo(half).eps)
    for D in (CONVS["valid"], CONVS["circular"]):
        low = ud.normalize(D)[0].astype(half)
        high = low.astype(float)
        for f in (ud.spectral_norm, lambda D: ut.frobenius_weights(D).filters):
            ours, expected = f(low), f(high)
            assert ours.dtype == half
            # The bound of the norm is raised by 32 eps of the dtype under the root.
            assert_close(ours, expected, rtol=20 * eps, atol=2 * eps)


# Dtypes


def there_and_back(D, x):
    y = D @ x
    return y, y @ D, ud.dense(D)


def dtypes(D, x):
    return [out.dtype for out in jax.eval_shape(there_and_back, D, x)]


@pytest.mark.parametrize("name", ["Conv", "Concatenated, mixed", "Sparse over Conv"])
def test_products_promote(name):
    D, M = KINDS[name]
    narrow, x = D.astype(jnp.float32), np.ones(M.shape[1])
    wide, single = np.dtype(float), np.dtype(np.float32)
    for dictionary, operand, dtype in (
        (narrow, x.astype(np.float32), single),
        (narrow, x, wide),
        (D, x.astype(np.float32), wide),
        (narrow, x.astype(int), single),
    ):
        assert dtypes(dictionary, operand) == [dtype, dtype, dictionary.dtype]


def test_a_narrow_dictionary_is_exact_to_the_rounding_of_its_entries():
    D, M = KINDS["Conv"]
    x = np.ones(M.shape[1])
    y = D.astype(jnp.float32) @ x
    assert_close(y, M @ x, atol=4 * np.finfo(np.float32).eps * np.abs(M).sum())


def test_products_take_arrays_of_numpy_and_refuse_what_is_not_real(tmp_path):
    D, M = KINDS["Conv"]
    narrow, d = D.astype(jnp.float32), M.shape[1]
    x = np.arange(d)
    for operand in (x.astype(">f8"), x.astype(">i4"), x.astype(float).tolist(), jnp.asarray(x)):
        assert_close(D @ operand, M @ x, atol=64 * EPS * np.abs(M).sum() * d)
    with jax.enable_x64(False):
        large = narrow @ (x.astype(np.int64) * 2**40)  # not made 32 bits
        np.testing.assert_array_equal(large, (narrow @ x.astype(np.float32)) * 2.0**40)
        mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=d)  # without a warning
        assert (narrow @ mapped).dtype == np.float32
    for bad, message in (
        (x * 1j, "x is complex128; expected real numbers"),
        (np.ma.masked_array(x * 1.0, x == 0), "x is a masked array"),
        (x.astype(object), "x is not a numeric array"),
        (None, "x is not a numeric array"),
    ):
        with pytest.raises(TypeError, match=f"D @ x: {message}"):
            D @ bad
    with pytest.raises(TypeError, match="r @ D: r is complex128"):
        np.ones(M.shape[0]) * 1j @ D


def test_matrices_of_integers_have_norms():
    M = np.array([[3, 0], [4, 2]])
    np.testing.assert_array_equal(ud.column_norms(M), [5, 2])
    np.testing.assert_array_equal(ud.normalized(M)[1], [5, 2])
    assert float(ud.spectral_norm(M)) == pytest.approx(np.linalg.norm(M, 2), rel=16 * EPS)


@pytest.mark.parametrize("name", ["Composed", "Concatenated", "Sparse"])
def test_parts_of_different_dtypes_meet_in_the_wider(name):
    A, B = np.eye(4, dtype=np.float32), np.diag(np.arange(1.0, 5))
    make = getattr(ud, name)
    for D in (make(A, B), make(B, A)):
        for dtype in (np.float32, float):
            assert dtypes(D, np.ones(D.shape[1], dtype)) == [np.dtype(float)] * 3


def test_integers_become_floats():
    assert ud.Conv(np.ones((1, 1, 2), int), 4).dtype == jnp.float64
    assert ud.Composed(np.eye(2, dtype=bool), np.ones((2, 2), int)).dtype == jnp.float64
    assert ud.Sparse(np.eye(2, dtype=int), np.eye(2, dtype=int)).values.dtype == jnp.float64


def test_a_sparse_dictionary_stores_as_many_numbers_as_its_fullest_atom():
    atoms = np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 0.0, 0.0]])  # a row has more nonzeros
    assert ud.Sparse(np.eye(2), atoms).values.shape == (2, 4)
    of_one_row = np.eye(4)[:, :1] * np.ones(4)
    assert ud.Sparse(np.eye(4), of_one_row).values.shape == (1, 4)


def test_float64_without_x64_warns_and_says_what_to_do():
    with jax.enable_x64(False):
        with pytest.warns(
            UserWarning,
            match="normalize: D is float64 but JAX runs in float32 here; cast it to float32",
        ):
            assert ud.normalize(np.ones((2, 3)))[0].dtype == jnp.float32


# Errors

FILTERS = np.ones((2, 1, 3))
CONV = ud.Conv(FILTERS, 8)  # (8, 12)


# Product, shape of the operand, words of the message.
MISFITS = (
    (
        lambda v: CONV @ v,
        (8,),
        r"D @ x: D has shape \(8, 12\) but the operand has shape \(8,\); expected length 12",
    ),
    (lambda v: CONV @ v, (5, 12), r"D @ x: .*shape \(5, 12\); expected length 12"),
    (lambda v: CONV @ v, (12, 2, 2), "D @ x: "),
    (lambda v: CONV @ v, (), "D @ x: "),
    (lambda v: v @ CONV, (12,), r"r @ D: .*shape \(12,\); expected length 8"),
    (lambda v: v @ CONV, (8, 5), "r @ D: .*expected length 8"),
    (lambda v: v @ CONV, (2, 2, 8), "r @ D: "),
    (lambda v: CONV.T @ v, (12,), "D @ x: .*expected length 8"),
    (lambda v: ud.Composed(CONV) @ v, (8,), "D @ x: .*expected length 12"),
)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"])
def test_operands_that_do_not_fit(wrap):
    batch = (3,) if wrap is jax.vmap else ()
    for product, shape, message in MISFITS:
        Fault(partial(wrap(product), np.ones(batch + shape)), ValueError, message).check()


BAD_ARRAYS = {
    "vector": (np.ones(3), ValueError, r"D has shape \(3,\); expected \(m, d\), atoms in columns"),
    "rank 3": (np.ones((2, 2, 2)), ValueError, "expected .m, d., atoms in columns"),
    "no rows": (np.ones((0, 3)), ValueError, "expected at least one row and one column"),
    "no columns": (np.ones((3, 0)), ValueError, "expected at least one row and one column"),
    "NaN": (np.array([[1.0, np.nan]]), ValueError, "D has NaN or infinite entries"),
    "infinity": (np.array([[1.0, np.inf]]), ValueError, "D has NaN or infinite entries"),
    "complex": (np.ones((2, 2), complex), TypeError, "D is complex128; expected real numbers"),
    "strings": (np.array([["a", "b"]]), TypeError, "D is not a numeric array"),
    "objects": (np.array([[object()]]), TypeError, "D is not a numeric array"),
    "None": (None, TypeError, "D is not a numeric array"),
    "ragged": ([[1.0, 2.0], [3.0]], TypeError, "D is not a numeric array"),
    "keys": (jax.random.split(jax.random.key(0)), TypeError, "D is key.*expected real numbers"),
    "8 bits": (jnp.eye(2, dtype=jnp.float8_e5m2), TypeError, "D is float8_e5m2; expected real"),
    "80 bits": (
        np.eye(2, dtype=np.longdouble),
        TypeError,
        "array .got ndarray of float128",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_array(case):
    D, error, message = BAD_ARRAYS[case]
    for name in ("normalize", "Composed", "Concatenated"):
        with pytest.raises(error, match=f"{name}: .*{message}"):
            getattr(ud, name)(D)
    for make in (lambda: ud.Sparse(D, np.eye(2)), lambda: ud.Sparse(np.eye(2), D)):
        with pytest.raises(error, match=f"Sparse: .*{message}"):
            make()


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4"])
def test_numbers_of_the_other_byte_order_are_taken(dtype):
    D = np.array([[3, 0], [4, 2]])
    np.testing.assert_array_equal(ud.normalize(D.astype(dtype))[1], [5, 2])


def test_normalize_lists_zero_atoms():
    D = np.ones((3, 5))
    D[:, [1, 4]] = 0
    with pytest.raises(ValueError, match=r"normalize: atoms \[1, 4\] are zero; drop them"):
        ud.normalize(D)
    with pytest.raises(ValueError, match=r"normalize: atoms \[2, 3\] are zero"):
        ud.normalize(ud.Conv(np.array([[[1.0, 1.0]], [[0.0, 0.0]]]), 3))
    with pytest.raises(ValueError, match=r"normalize: atoms \[0\] are zero"):
        ud.normalize(ud.Sparse(np.eye(2), np.array([[0.0, 1.0], [0.0, 1.0]])))


def _conv(*arguments):
    return partial(ud.Conv, *arguments)


def _transversal(*sizes):
    return partial(ud.transversal, 0, *sizes)


# Call, error, words of the message.
test_what_does_not_meet_is_refused = rows(
    (_conv(np.ones((2, 3)), 8), r"filters have shape \(2, 3\); expected .* with 1"),
    (_conv(FILTERS, (8, 8)), "with 2 kernel dimensions"),
    (_conv(np.ones((2, 1, 0)), 8), "none of them 0"),
    (_conv(np.ones((0, 1, 3)), 8), "none of them 0"),
    (
        _conv(FILTERS, 2),
        r'kernel \(3,\) is longer than the signal \(2,\); try boundary="circular" or "zero"',
    ),
    (_conv(np.ones((1, 1, 2, 3)), (5, 2)), "is longer than the signal"),
    (_conv(FILTERS, 8, 1, "same"), "'same'; expected one of valid, circular, zero"),
    (_conv(FILTERS, 8, 0), "stride must be at least 1, got 0"),
    (_conv(FILTERS, 8, -2), "stride must be at least 1, got -2"),
    (
        _conv(FILTERS, 8, (1, 1)),
        r"stride \(1, 1\) does not fit signal_shape \(8,\); expected one per dimension",
    ),
    (_conv(FILTERS, 0), "signal_shape must be at least 1, got 0"),
    (_conv(FILTERS * 1j, 8), TypeError, "filters is complex128; expected real numbers"),
    (_conv(None, 8), TypeError, "filters is not a numeric array .got NoneType"),
    (_conv(FILTERS, 8.0), TypeError, "signal_shape must be an integer, got 8.0"),
    (_conv(FILTERS, 8, 1.5), TypeError, "stride must be an integer, got 1.5"),
    (_conv(FILTERS, 8, True), TypeError, "stride must be an integer, got True"),
    (
        lambda: jax.jit(lambda t: ud.Conv(FILTERS, 8, t).filters)(2),
        TypeError,
        "Conv: stride must be static, got a traced value",
    ),
    (
        lambda: jax.jit(lambda A: ud.Sparse(np.eye(3), A).values)(np.eye(3)),
        TypeError,
        "Sparse: atoms must be concrete, got a traced array; build it outside jit",
    ),
    (
        lambda: jax.jit(lambda m: ud.gaussian(0, m, 4))(3),
        TypeError,
        "gaussian: m must be static",
    ),
    (ud.Composed, "Composed: expected at least one dictionary, got none"),
    (
        partial(ud.Composed, np.eye(2), np.eye(3)),
        r"Composed: D_1 has shape \(2, 2\) but D_2 has shape \(3, 3\)",
    ),
    (
        partial(ud.Composed, np.eye(8), CONV, CONV),
        r"Composed: D_2 has shape \(8, 12\) but D_3 has shape \(8, 12\)",
    ),
    (ud.Concatenated, "Concatenated: expected at least one dictionary, got none"),
    (
        partial(ud.Concatenated, np.eye(2), CONV),
        r"parts have shapes .*\(8, 12\)\]; expected one number of rows",
    ),
    (
        partial(ud.Sparse, CONV, np.eye(8)),
        r"base has shape \(8, 12\) but atoms have shape \(8, 8\)",
    ),
    (partial(ud.dct, 4, 3), "dct: expected d >= m in every dimension, got m=4, d=3"),
    (partial(ud.dct, (4, 4), (4, 3)), "dct: expected d >= m in every dimension"),
    (partial(ud.dct, (4, 4), 16), "dct: .*expected the same number of dimensions"),
    (partial(ud.dct, 0, 3), "dct: m must be at least 1, got 0"),
    (partial(ud.dct, 2.0, 4), TypeError, "must be an integer"),
    (partial(ud.identity_hadamard, 12), "m must be a power of two, got 12"),
    (partial(ud.identity_hadamard, 0), "identity_hadamard: m must be at least 1"),
    *(
        (partial(ud.paley, q), f"paley: q must be a prime with q = 1 mod 4.*got {q}")
        for q in (2, 7, 9, 21)
    ),
    (_transversal(2, 4, 4), "a prime q >= c and d <= q.2, got c=2, q=4, d=4"),
    (_transversal(4, 3, 4), "expected a prime q >= c and d <= q.2, got c=4"),
    (_transversal(2, 3, 10), "expected a prime q >= c and d <= q.2, got .*d=10"),
    (partial(ud.gaussian, 0, 0, 3), "gaussian: m must be at least 1, got 0"),
    *(
        (partial(ud.ill_conditioned, 0, 3, 4, k), f"kappa must be at least 1, got {k}")
        for k in (0.5, math.nan)
    ),
)


def test_a_kind_that_defines_nothing_says_so():
    @ud.pytree(data=("weights",))
    class Empty(ud.Structured):
        shape = (2, 2)
        weights = jnp.ones(2)

    for use, name in (
        (lambda D: D @ np.ones(2), "synthesize"),
        (lambda D: np.ones(2) @ D, "analyze"),
        (lambda D: D * 2, "scale"),
        (lambda D: ud.Structured.shape.fget(D), "shape"),
    ):
        with pytest.raises(TypeError, match=f"Empty does not define {name}"):
            use(Empty())


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["Conv", "Composed, nested"])
def test_weighted_columns(name):
    D, M = KINDS[name]
    c = np.random.default_rng(6).normal(size=M.shape[1])
    assert_answers(scale_columns(ud.Rescaled(D, jnp.asarray(c)), jnp.asarray(c)), M * c**2)


# A dictionary of a user's own


@ud.pytree(data=("direction", "gains"))
@dataclasses.dataclass(frozen=True, eq=False)
class Reflected(ud.Structured):
    """[H diag(gains), I] with the reflection H = I - 2 v v': no matrix is stored."""

    direction: jax.Array  # (m,), a unit vector
    gains: jax.Array  # (m,)

    @property
    def shape(self):
        m = self.gains.shape[-1]
        return m, 2 * m

    def _reflect(self, r):
        return r - 2 * self.direction * (self.direction @ r)

    def synthesize(self, x):
        left, right = jnp.split(x, 2)
        return self._reflect(self.gains * left) + self.gains * right

    def analyze(self, r):
        return jnp.concatenate([self.gains * self._reflect(r), self.gains * r])

    def scale(self, c):
        return Reflected(self.direction, self.gains * c)


def _reflected(gains):
    v = np.array([1.0, -2.0, 0.5, 3.0, 1.0])
    v /= np.linalg.norm(v)
    H, G = np.eye(5) - 2 * np.outer(v, v), np.diag(gains)
    return Reflected(jnp.asarray(v), jnp.asarray(gains)), np.hstack([H @ G, G])


def test_a_kind_of_a_users_own_is_its_matrix():
    assert_answers(*_reflected(np.array([1.0, 2.0, -0.5, 3.0, 0.1])))


@pytest.mark.slow
def test_the_theory_of_a_kind_of_a_users_own_is_that_of_its_matrix():
    D, M = _reflected(np.array([1.0, 2.0, -0.5, 3.0, 0.1]))
    unit, norms = ud.normalize(D)
    plain, expected = ud.normalize(M)
    assert_close(norms, expected, rtol=8 * EPS)
    assert_close(ud.dense(unit), plain, atol=16 * EPS)
    V = np.random.default_rng(7).normal(size=M.shape)
    rounding = 1e3 * EPS  # a pseudo-inverse of a matrix with condition number 30
    for name, ours, theirs in (
        ("mu", ut.mutual_coherence(D), ut.mutual_coherence(M)),
        ("mu of units", ut.mutual_coherence(unit), ut.mutual_coherence(plain)),
        ("coherence", ut.coherence(unit, unit), ut.coherence(plain, plain)),
        ("coherence of other weights", ut.coherence(V, unit), ut.coherence(V, plain)),
        ("babel", ut.babel(unit, 3), ut.babel(plain, 3)),
        ("norm", ud.spectral_norm(D), ud.spectral_norm(M)),
        ("closed form", ut.frobenius_weights(D), ut.frobenius_weights(M)),
        ("closed form, ridge", ut.frobenius_weights(D, 0.3), ut.frobenius_weights(M, 0.3)),
        ("magnitudes", ud.magnitudes(D), np.abs(M)),
        ("magnitudes of units", ud.dense(ud.magnitudes(unit)), np.abs(plain)),
        ("magnitudes of the transpose", ud.magnitudes(D.T), np.abs(M.T)),
    ):
        assert_close(ours, theirs, atol=rounding, custom_message=name)
    # The sums of a structured dictionary may have more terms than the sums of its matrix.
    ours, theirs = (ut.rounding_guard(A, A, sparsity=2, bound=1.0) for A in (unit, plain))
    assert theirs <= ours <= 2 * theirs
    assert ud.threshold_shapes(D) == ud.threshold_shapes(M) == ((), (10,))
    theta = jnp.arange(10.0)
    assert ud.spread(D, theta) is theta
    ours, theirs = ut.generalized_coherence(unit), ut.generalized_coherence(plain)
    assert ours.holds and ours.W.shape == M.shape
    assert_close(ours.upper, theirs.upper, rtol=2e-6)  # the gap of the programs
    assert_close(ours.per_atom_upper, theirs.per_atom_upper, rtol=2e-6)
    assert_close(ut.coherence(ours.W, unit).mu_W, ours.upper, rtol=1e-9)


@pytest.mark.slow
def test_a_kind_of_a_users_own_stands_inside_others():
    D, M = _reflected(np.array([1.0, 2.0, -0.5, 3.0, 0.1]))
    A = np.random.default_rng(8).normal(size=(10, 4))
    for made, matrix in (
        (ud.Composed(D, A), M @ A),
        (ud.Concatenated(D, np.eye(5)), np.hstack([M, np.eye(5)])),
        (ud.Sparse(D, np.eye(10)[:, ::3]), M[:, ::3]),
    ):
        assert_answers(made, matrix)
        assert np.all(np.asarray(ud.dense(ud.magnitudes(made))) >= np.abs(matrix) - 16 * EPS)


def test_a_kind_without_arrays_has_the_default_dtype():
    @ud.pytree(data=(), static=("m",))
    @dataclasses.dataclass(frozen=True, eq=False)
    class Reversed(ud.Structured):
        m: int
        shape = property(lambda self: (self.m, self.m))
        synthesize = analyze = lambda self, v: v[::-1]

    D = Reversed(4)
    assert D.dtype == float and (D @ jnp.ones(4, np.float32)).dtype == np.float32
    chex.assert_trees_all_equal(ud.dense(D), np.eye(4)[::-1])
    assert ut.mutual_coherence(D) == 0


# The checks at the door of the solvers


def test_operands_come_in_one_dtype():
    D, y, theta = ud.operands(
        np.eye(2, dtype=np.float32), np.ones(2, int), "f", params=np.ones(2, np.float32)
    )
    assert (D.dtype, y.dtype, theta.dtype) == (jnp.float64,) * 3  # integers are default floats
    D, y, theta = ud.operands(
        np.eye(2, dtype=np.float32), np.ones(2, np.float32), "f", params=np.ones(2, np.float32)
    )
    assert (D.dtype, y.dtype, theta.dtype) == (jnp.float32,) * 3


@pytest.mark.parametrize(
    "shape, hint",
    [
        ((12,), "Did you pass D.T"),
        ((5,), "Is y a signal"),
        ((7, 8), "use jax.vmap over the rows"),
        ((8, 7), "use jax.vmap with in_axes=1 over the columns"),
        ((2, 2, 8), "use jax.vmap over a batch"),
        ((), "use jax.vmap over a batch"),
    ],
)
def test_operands_hint_at_the_slip(shape, hint):
    for D in (CONV, ud.dense(CONV)):
        with pytest.raises(
            ValueError,
            match=rf"f: D has shape \(8, 12\) but y has shape .*must have shape \(8,\)\. .*{hint}",
        ):
            ud.operands(D, np.ones(shape), "f")


def test_chains():
    Ds = ud.as_chain((D for D in (np.eye(8), CONV, np.ones((12, 2), int))), "f")
    assert [D.shape for D in Ds] == [(8, 8), (8, 12), (12, 2)]
    assert all(D.dtype == float for D in Ds)
    for wrong, error, message in (
        (np.eye(2), ValueError, r"f: Ds is one dictionary of shape \(2, 2\); .* try \[D\]"),
        (CONV, ValueError, r"f: Ds is one dictionary of shape \(8, 12\)"),
        ([], ValueError, "f: expected at least one dictionary, got none"),
        (None, TypeError, "f: expected a sequence of dictionaries, got NoneType"),
        ([np.eye(2), np.ones(2)], ValueError, r"f: D has shape \(2,\)"),
        (
            [np.eye(2), np.eye(3)],
            ValueError,
            r"f: D_1 has shape \(2, 2\) but D_2 has shape \(3, 3\)",
        ),
    ):
        with pytest.raises(error, match=message):
            ud.as_chain(wrong, "f")


def test_batches():
    Y, X = np.ones((3, 8)), np.ones((3, 12))
    for D in (CONV, ud.dense(CONV)):
        ud.check_batch(D, Y, X, "f")
        ud.check_batch(D, jnp.asarray(Y), None, "f")
        for wrong in ((Y[0], X), (Y, X[0]), (Y, X[:2]), (X, Y), (Y.T, X.T), (Y[:, :7], X)):
            with pytest.raises(
                ValueError, match=r"f: Y has .* and X .*; expected \(batch, 8\) and \(batch, 12\)$"
            ):
                ud.check_batch(D, *wrong, "f")
        with pytest.raises(ValueError, match=r"\(0, 8\) and X \(0, 12\);.* at least one signal"):
            ud.check_batch(D, Y[:0], X[:0], "f")
        with pytest.raises(ValueError, match=r"f: Y has shape \(8,\); expected \(batch, 8\)$"):
            ud.check_batch(D, Y[0], None, "f")
    jax.jit(lambda Y: ud.check_batch(CONV, Y, None, "f"))(Y)


@pytest.mark.slow
def test_unit_atoms():
    ud.unit_atoms(ud.normalize(CONV)[0], "f")
    ud.unit_atoms(np.eye(3) * (1 + 5e-5), "f")
    with pytest.raises(
        ValueError,
        match=r"f: atoms have norms in \[1, 2\]; expected 1 within 0.0001, try dictionaries.norm",
    ):
        ud.unit_atoms(np.diag([1.0, 2.0]), "f")
    with pytest.raises(ValueError, match=r"f: atoms \[1\] are zero"):
        ud.unit_atoms(np.diag([1.0, 0.0]), "f")
    with pytest.raises(ValueError, match='boundary "zero" cuts the atoms at the border'):
        ud.unit_atoms(ud.normalize(ud.Conv(FILTERS, 8, 1, "zero"))[0], "f")


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["valid", "zero"])
def test_norms_of_zero_atoms_have_the_gradient_zero(boundary):
    """As those of a matrix have: a zero filter, and one of which the border leaves nothing."""
    filters = np.array([[[3.0, 4.0]], [[0.0, 0.0]], [[0.0, 2.0]]])

    def total(filters, of):
        return jnp.sum(ud.column_norms(of(ud.Conv(filters, 3, boundary=boundary))))

    ours, matrix = (jax.grad(total)(jnp.asarray(filters), of) for of in (lambda D: D, ud.dense))
    np.testing.assert_allclose(np.asarray(ours), np.asarray(matrix), rtol=1e-12, atol=1e-12)
    assert not np.any(ours[1])


@pytest.mark.parametrize("boundary, kernel", [("circular", 2), ("circular", 5), ("valid", 3)])
def test_a_stripe_holds_the_coefficients_whose_atoms_overlap(boundary, kernel):
    D = ud.Conv(np.ones((2, 1, kernel)), 6, boundary=boundary)
    x = np.arange(1.0, D.shape[1] + 1)
    maps, (p,) = x.reshape(D.code_grid), D.positions
    steps = np.abs(np.arange(p)[:, None] - np.arange(p))
    apart = np.minimum(steps, 6 - steps) if boundary == "circular" else steps
    stripes = np.asarray(jax.jit(D.stripes)(x))
    assert [sorted(s[s != 0]) for s in stripes] == [
        sorted(maps[:, near].ravel()) for near in apart < kernel
    ]
