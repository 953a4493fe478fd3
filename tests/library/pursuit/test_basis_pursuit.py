"""Basis pursuit against HiGHS and optimality conditions, where it equals l0, and its chain."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import matrix, normal, unit

from unrolled import dictionaries, pursuit, theory

EPS = np.finfo(float).eps
# All but the large one, which tests request by name.
# The first are those by default.
NAMES = list(dict.fromkeys(["gaussian 8x16", "dct 64x256", *oracles.DICTIONARIES]))


def sparse(d, s, seed=0):
    """A code of s nonzeros between 1/2 and 3/2 in size."""
    rng, x = np.random.default_rng(seed), np.zeros(d)
    x[rng.choice(d, s, replace=False)] = rng.choice([-1, 1], s) * rng.uniform(0.5, 1.5, s)
    return x


@cache
def identity_dct():
    return np.hstack([np.eye(16), np.asarray(dictionaries.dct(16, 16))])


def assert_solved(D, y, found, expected, near=1e-7):
    """The fields of a result are consistent, and its l1 norm is the least."""
    x = np.asarray(found.x)
    assert found.converged and -1e-9 <= found.gap <= 1e-9
    assert found.residual == pytest.approx(
        np.linalg.norm(y - D @ x), abs=4 * len(D) * EPS * np.linalg.norm(y)
    )
    assert found.residual <= 1e-12 * np.linalg.norm(y) and found.steps >= 0
    assert np.abs(x).sum() == pytest.approx(expected, rel=near)


# Values.


@pytest.mark.few(5)
@pytest.mark.parametrize("s", [1, 2, None])
@pytest.mark.parametrize("name", NAMES)
def test_codes_have_the_least_l1_norm_of_highs(name, s):
    D = matrix(name)
    d = D.shape[1]
    y = D @ (normal(0, d) if s is None else sparse(d, min(s, d)))
    found = pursuit.basis_pursuit(D, y)
    assert_solved(D, y, found, oracles.least_l1(D, y)[0], oracles.agreement(name))


def test_the_gap_is_closed_where_many_atoms_tie():
    """The sum of all atoms of a separable cosine dictionary: highly degenerate."""
    D = np.asarray(dictionaries.dct((4, 4), (8, 8)))
    y = D @ np.ones(64)
    found = pursuit.basis_pursuit(D, y)
    assert np.abs(found.x).sum() == pytest.approx(oracles.least_l1(D, y)[0], rel=1e-7)
    assert found.converged == (found.gap <= 1e-9)


def test_optimality_by_a_dual_certificate_of_its_own():
    """z with D_S'z = sign(x_S) and |D'z| <= 1 elsewhere proves that x is optimal."""
    D = matrix("gaussian 8x16")
    for seed in range(5):
        x = np.asarray(pursuit.basis_pursuit(D, D @ normal(seed, 16)).x)
        S = x != 0
        assert S.sum() == 8
        z = np.linalg.solve(D[:, S].T, np.sign(x[S]))
        assert np.abs(D[:, ~S].T @ z).max() <= 1 + 1e-9


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [n for n in NAMES if n not in oracles.WITH_TWINS])
def test_the_unique_code_of_a_dense_signal_has_no_more_nonzeros_than_the_rank(name):
    """A vertex: zeros are exact."""
    D = matrix(name)
    x = np.asarray(pursuit.basis_pursuit(D, D @ normal(0, D.shape[1])).x)
    assert np.count_nonzero(x) <= np.linalg.matrix_rank(D)


UNIQUE = {
    "identity and dct": identity_dct,
    "gaussian 20x60": lambda: matrix("gaussian 20x60"),
    "paley 15x30": lambda: np.asarray(dictionaries.paley(29)),
    "identity and hadamard 16x32": lambda: np.asarray(dictionaries.identity_hadamard(16)),
    "dct 64x256": lambda: matrix("dct 64x256")[:, ::16],
    "transversal": lambda: np.asarray(dictionaries.transversal(jax.random.key(0), 3, 7, 40)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("name", UNIQUE)
def test_a_unique_sparse_code_is_found_with_exact_zeros_off_its_support(name, s):
    D = UNIQUE[name]()
    code = sparse(D.shape[1], s)
    value, x = oracles.least_l1(D, D @ code)
    assert x == pytest.approx(code, abs=1e-7)  # it is the one
    found = pursuit.basis_pursuit(D, D @ code)
    assert found.x == pytest.approx(code, abs=1e-8)
    assert np.flatnonzero(found.x).tolist() == np.flatnonzero(code).tolist()


# Signals and dictionaries at the edge.


@pytest.mark.parametrize("scale, of_atoms", [(1, 1), (0, 1), (1e-200, 1), (1e100, 1), (1, 1e50)])
def test_an_atom_is_its_own_code_at_every_scale(scale, of_atoms):
    D = of_atoms * matrix("gaussian 8x16")
    found = pursuit.basis_pursuit(D, 2 * scale * D[:, 3])
    assert found.converged and np.asarray(found.x)[3] == pytest.approx(2 * scale, rel=1e-9)
    assert not np.delete(np.asarray(found.x), 3).any()


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["rank 6 of 12", "tall", "two atoms", "one atom"])
def test_a_signal_out_of_range_gets_the_code_of_its_projection_and_is_not_converged(name):
    D = matrix(name)
    y = normal(3, len(D))
    inside = D @ np.linalg.lstsq(D, y)[0]
    found, projected = pursuit.basis_pursuit(D, y), pursuit.basis_pursuit(D, inside)
    assert not found.converged and projected.converged
    assert np.abs(found.x).sum() == pytest.approx(float(np.abs(projected.x).sum()), rel=1e-9)
    assert found.residual == pytest.approx(np.linalg.norm(y - inside), rel=1e-9)


@pytest.mark.few(1)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_signal_that_is_not_finite_is_marked_and_spoils_no_other(bad):
    D, Y = matrix("gaussian 8x16"), normal(0, 4, 8)
    spoilt = Y.copy()
    spoilt[1, 2] = bad
    found = jax.jit(jax.vmap(pursuit.basis_pursuit, (None, 0)))(D, spoilt)
    assert found.converged.tolist() == [True, False, True, True] and not np.isfinite(found.gap[1])
    assert not np.any(found.x[1]) and not np.isfinite(found.residual[1])
    for k in (0, 2, 3):
        expected = pursuit.basis_pursuit(D, Y[k]).x
        assert found.x[k] == pytest.approx(np.asarray(expected), abs=1e-9)
    alone = pursuit.basis_pursuit(D, spoilt[1])
    assert not alone.converged and not np.any(alone.x)


def test_a_traced_dictionary_that_is_not_finite_or_zero_is_marked():
    D, y = matrix("gaussian 8x16"), normal(0, 8)
    for bad in (np.where(D == D[0, 0], np.nan, D), 0 * D):
        found = jax.jit(pursuit.basis_pursuit)(bad, y)
        assert not found.converged and not found.x.any() and not np.isfinite(found.gap)
    assert not pursuit.basis_pursuit(0 * D, y).converged
    assert pursuit.basis_pursuit(0 * D, np.zeros(8)).converged


def test_zero_atoms_get_no_weight():
    D = matrix("gaussian 8x16") * (np.arange(16) % 5 > 0)
    found = pursuit.basis_pursuit(D, normal(0, 8))
    assert found.converged and not np.asarray(found.x)[::5].any()


def test_twins_share_one_weight():
    """With duplicate atoms the solution is not unique, but twins never oppose each other."""
    D = matrix("duplicate and antiparallel")
    y = D @ normal(1, 16)
    found = pursuit.basis_pursuit(D, y)
    assert_solved(D, y, found, oracles.least_l1(D[:, :14], y)[0])
    x = np.asarray(found.x)
    assert x[0] * x[14] >= -1e-15 and x[1] * x[15] <= 1e-15


def test_atoms_of_any_norms():
    """Long atoms are cheap: the program is that of the norms, not of the directions."""
    D = matrix("gaussian 8x16") * 10.0 ** np.random.default_rng(0).uniform(-3, 3, 16)
    y = normal(0, 8)
    found = pursuit.basis_pursuit(D, y)
    assert_solved(D, y, found, oracles.least_l1(D, y)[0], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("m, d", [(1, 12), (2, 5), (4, 4), (4, 9), (6, 8), (6, 12)])
def test_small_random_degenerate_programs(m, d):
    """Entries -1, 0, 1, repeated atoms, low rank: each is solved to the value of HiGHS."""
    rng = np.random.default_rng([m, d])
    Ds = rng.choice([-1.0, 0, 1], (20, m, d))
    Y = np.einsum("imd,id->im", Ds, rng.normal(size=(20, d)) * (rng.random((20, d)) < 0.4))
    found = jax.vmap(pursuit.basis_pursuit)(Ds, Y)
    expected = [oracles.least_l1(D, y)[0] for D, y in zip(Ds, Y)]
    np.testing.assert_allclose(np.abs(found.x).sum(1), expected, rtol=1e-7, atol=1e-12)
    assert found.converged.all()


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", [139, 206, 236, 305, 333])
def test_signals_of_tying_atoms_are_made_to_rounding(seed):
    """Here the interior point ends between several optimal codes."""
    rng = np.random.default_rng(seed)
    m, d = rng.integers(1, 5), rng.integers(1, 13)
    D = rng.choice([-1.0, 0, 1], (m, d))
    Y = D @ np.where(rng.random((d, 20)) < 0.4, rng.normal(size=(d, 20)), 0)
    found = jax.vmap(pursuit.basis_pursuit, (None, 0))(D, Y.T)
    assert found.converged.all()
    assert (found.residual <= 1e-13 * np.maximum(np.linalg.norm(Y, axis=0), 1e-300)).all()


# Where the l1 norm is as good as counting (Theorem 2).


def test_mu_tilde_certifies_two_nonzeros_in_identity_and_dct_where_mu_certifies_one():
    D = identity_dct()
    mu, wide = float(theory.mutual_coherence(D)), float(theory.generalized_coherence(D).upper)
    assert [theory.max_sparsity(v, 32) for v in (mu, wide)] == [1, 2]


@pytest.mark.slow
def test_all_codes_that_mu_tilde_admits_are_recovered():
    D = identity_dct()
    pairs = [*itertools.combinations(range(32), 2)]
    rng = np.random.default_rng(0)
    X = np.zeros((len(pairs), 32))
    for x, pair in zip(X, pairs):
        x[list(pair)] = rng.choice([-1, 1], 2) * rng.uniform(0.2, 2, 2)
    found = jax.vmap(pursuit.basis_pursuit, (None, 0))(D, X @ D.T)
    assert found.converged.all() and found.x == pytest.approx(X, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_codes_within_the_generalized_sparsity_bound_are_recovered(seed):
    D = np.asarray(dictionaries.gaussian(jax.random.key(seed), 30, 36))
    s = theory.max_sparsity(float(theory.generalized_coherence(D, only_maximum=True).upper), 36)
    assert s >= 2 > theory.max_sparsity(float(theory.mutual_coherence(D)), 36)
    X = np.stack([sparse(36, s, k) for k in range(30)])
    found = jax.vmap(pursuit.basis_pursuit, (None, 0))(D, X @ D.T)
    assert found.x == pytest.approx(X, abs=1e-7)


# Transformations.


@pytest.mark.few(1)
@pytest.mark.parametrize("nested", [False, True])
def test_vmap_over_dictionaries_and_nested_vmaps_are_loops(nested):
    Ds = np.stack([matrix("gaussian 8x16"), unit(normal(5, 8, 16)), matrix("gaussian 8x16")])
    Y = normal(1, 3, 8)
    over_both = jax.vmap(jax.vmap(pursuit.basis_pursuit, (0, None)), (None, 0), 1)
    found = jax.jit(over_both if nested else jax.vmap(pursuit.basis_pursuit))(Ds, Y)
    assert found.converged.all() and found.gap.shape == (3, 3)[nested - 1 :]
    x = np.asarray(found.x)
    for i, j in np.ndindex(3, 3):
        if nested or i == j:
            expected = np.asarray(pursuit.basis_pursuit(Ds[i], Y[j]).x)
            ours = x[i, j] if nested else x[i]
            assert ours == pytest.approx(expected, rel=1e-9, abs=1e-12)


@jax.jit
def slopes(D, y, dD, dy):
    """How the code and the gap move with D and y."""

    def solve(D, y):
        found = pursuit.basis_pursuit(D, y)
        return found.x, found.gap

    return jax.jvp(solve, (D, y), (dD, dy))[1]


def test_derivatives_at_a_nondegenerate_vertex_match_finite_differences():
    D, y, h = matrix("gaussian 8x16"), normal(0, 8), 1e-6
    assert np.count_nonzero(pursuit.basis_pursuit(D, y).x) == 8
    for dD, dy in ((0 * D, normal(1, 8)), (normal(2, 8, 16), 0 * y)):
        slope, of_gap = slopes(D, y, dD, dy)
        sides = [pursuit.basis_pursuit(D + s * h * dD, y + s * h * dy).x for s in (1, -1)]
        numeric = np.subtract(*map(np.asarray, sides)) / (2 * h)
        # Rounding EPS / h times cond.
        assert slope == pytest.approx(numeric, rel=1e-6, abs=1e-7) and np.any(slope)
        assert of_gap == 0
    assert not np.any(slopes(D, 0 * y, 0 * D, normal(1, 8))[0])


def test_gradients_are_the_transposed_derivatives_under_jit_and_vmap():
    D, Y, weight = matrix("gaussian 8x16"), normal(0, 3, 8), normal(1, 16)

    def loss(D, y):
        return pursuit.basis_pursuit(D, y).x @ weight

    gradients = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), (None, 0)))(D, Y)
    for k, y in enumerate(Y):
        for argument, along in ((0, normal(2, 8, 16)), (1, normal(3, 8))):
            tangents = [np.zeros_like(D), np.zeros_like(y)]
            tangents[argument] = along
            slope = weight @ np.asarray(slopes(D, y, *tangents)[0])
            assert np.vdot(gradients[argument][k], along) == pytest.approx(slope, rel=1e-9)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", UNIQUE)
def test_the_derivative_at_a_sparse_code_is_least_squares_on_its_support(name):
    D = UNIQUE[name]()
    code = sparse(D.shape[1], 2)
    S, dy = code != 0, normal(4, len(D))
    slope, _ = slopes(D, D @ code, 0 * D, dy)
    assert slope[S] == pytest.approx(np.linalg.pinv(D[:, S]) @ dy, abs=1e-8)
    assert not np.any(slope[~S])


# Dtypes.


def test_a_float32_signal_of_a_tall_dictionary_is_in_its_range_to_rounding():
    D = matrix("tall").astype(np.float32)
    y = D @ normal(0, 5).astype(np.float32)
    assert pursuit.basis_pursuit(D, y).converged
    assert not pursuit.basis_pursuit(
        D, y + np.float32(1e-3) * normal(1, 9).astype(np.float32)
    ).converged


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, lambda f: lambda D, y: jax.vmap(f, (None, 0))(D, y[None])]
)
def test_it_runs_where_float64_is_off(transform):
    D, y = matrix("gaussian 8x16").astype(np.float32), normal(0, 8).astype(np.float32)
    with jax.enable_x64(False):
        found = transform(pursuit.basis_pursuit)(D, y)
        assert (
            found.x.dtype == np.float32
            and found.steps.dtype == np.int32
            and np.all(found.converged)
        )


def test_float64_inside_a_scope_and_float32_outside():
    D, y = matrix("gaussian 8x16"), normal(0, 8)
    with jax.enable_x64(False):
        with jax.enable_x64(True):
            found = jax.jit(pursuit.basis_pursuit)(D, y)
    assert found.x.dtype == np.float64 and np.array_equal(found.x, pursuit.basis_pursuit(D, y).x)


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_narrower_dtypes_get_the_solution_of_float64_rounded(dtype):
    D, y = matrix("gaussian 8x16").astype(dtype), normal(0, 8).astype(dtype)
    wide = pursuit.basis_pursuit(D.astype(np.float64), y.astype(np.float64))
    found = pursuit.basis_pursuit(D, y)
    assert found.x.dtype == found.gap.dtype == found.residual.dtype == dtype
    rounding = float(jnp.finfo(dtype).eps)
    assert np.float64(found.x) == pytest.approx(np.asarray(wide.x), rel=rounding)
    assert found.converged


@pytest.mark.few(1)
@pytest.mark.parametrize("half", [jnp.bfloat16, np.float16])
def test_a_signal_out_of_range_is_not_reproduced_in_half_precision(half):
    """Rounding is no excuse for a residual as large as y, however many entries y has."""
    m = 32 if half == jnp.bfloat16 else 256
    D, y = unit(normal(0, m, 4)).astype(half), normal(1, m).astype(half)
    found = pursuit.basis_pursuit(D, y)
    assert np.float64(found.residual) > np.linalg.norm(np.float64(y)) / 2 and not found.converged
    inside = pursuit.basis_pursuit(D, (np.float64(D) @ normal(2, 4)).astype(half))
    assert inside.converged


def without_mean(dtype, m=16, d=40):
    """Atoms of mean 0, whose rank is m - 1 but for the rounding of their dtype."""
    A = normal(0, m, d)
    return unit(A - A.mean(0)).astype(dtype)


@pytest.mark.parametrize("share", [1e-3, 0.1, 1])
@pytest.mark.parametrize("solve", [
    pursuit.basis_pursuit,
    lambda D, y: pursuit.layered_basis_pursuit([D], y)[0],
])  # fmt: skip
def test_terms_that_cancel_are_no_excuse_for_a_misfit(solve, share):
    """Rounding gives D its last rank, by codes of 1e7 times y that lose all digits of y."""
    D, inside = without_mean(np.float32), sparse(40, 3)
    for mean in (0, share):
        y = (np.float64(D) @ inside + mean).astype(np.float32)
        found = solve(D, y)
        misfit = np.linalg.norm(y - np.float64(D) @ np.float64(found.x)) / np.linalg.norm(y)
        assert found.converged == (mean == 0) == (misfit < 1e-6)


def test_a_float32_code_of_an_ill_conditioned_dictionary_still_reproduces_its_signal():
    """Of terms that cancel to a thousandth, four digits of y are left."""
    U, _, V = np.linalg.svd(normal(0, 16, 40), full_matrices=False)
    D, y = ((U * np.geomspace(1, 1e-3, 16)) @ V).astype(np.float32), normal(1, 16)
    found = pursuit.basis_pursuit(D, y.astype(np.float32))
    terms = np.linalg.norm(D, axis=0) @ np.abs(np.asarray(found.x, float)) / np.linalg.norm(y)
    assert found.converged and terms > 100 and float(found.residual) < 1e-4 * np.linalg.norm(y)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_gradients_have_the_dtype_of_their_signal(dtype):
    D, y = matrix("gaussian 8x16").astype(dtype), normal(0, 8).astype(dtype)
    gradient = jax.grad(lambda y: pursuit.basis_pursuit(D, y).x.sum())
    with jax.enable_x64(dtype != np.float32):
        found = gradient(y)
        assert found.dtype == dtype and np.isfinite(np.float64(found)).all()
        np.testing.assert_array_equal(jax.jit(gradient)(y), found)


@pytest.mark.slow
def test_structured_dictionaries_give_the_codes_of_their_matrix():
    bank = dictionaries.Conv(normal(0, 2, 1, 3), 8, boundary="circular")
    y = normal(1, 8)
    for D in (bank, dictionaries.Concatenated(np.eye(8), unit(normal(2, 8, 4)))):
        for solve in (pursuit.basis_pursuit, jax.jit(pursuit.basis_pursuit)):
            found = solve(D, y)
            assert found.x == pytest.approx(
                np.asarray(pursuit.basis_pursuit(dictionaries.dense(D), y).x), abs=1e-12
            )


# The chain (DSC_1).


@cache
def chain():
    """Two dictionaries: sparse codes of the second make sparse codes of the first."""
    D1 = np.asarray(dictionaries.identity_hadamard(32))  # mu = 1 / sqrt(32): s <= 3
    D2 = np.asarray(dictionaries.transversal(jax.random.key(1), 3, 7, 40))  # mu = 1 / 3: s <= 1
    D2 = np.vstack([D2, np.zeros((64 - 21, 40))])  # its 21 rows are the first atoms of D1
    return D1, D2


def planted(seed):
    D1, D2 = chain()
    x2 = sparse(40, 1, seed)
    return D1 @ D2 @ x2, D2 @ x2, x2


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype, near", [("float64", 1e-8), ("float32", 1e-5)])
def test_planted_chains_are_recovered(dtype, near):
    Ds = [D.astype(dtype) for D in chain()]
    for seed in range(6):
        y, *codes = (v.astype(dtype) for v in planted(seed))
        found = pursuit.layered_basis_pursuit(Ds, y)
        assert found.converged and found.residual.dtype == dtype
        for layer, x in zip(found, codes):
            assert layer.x == pytest.approx(x, abs=near)


def test_a_chain_of_wide_gaussian_layers_is_feasible_all_the_way():
    Ds = [unit(normal(k, 6 + 6 * k, 12 + 6 * k)) for k in range(3)]
    y = normal(9, 6)
    found = pursuit.layered_basis_pursuit(Ds, y)
    for D, layer, signal in zip(Ds, found, (y, found[0].x, found[1].x)):
        assert layer.converged and D @ np.asarray(layer.x) == pytest.approx(
            np.asarray(signal), abs=1e-11
        )
        assert np.abs(layer.x).sum() == pytest.approx(
            oracles.least_l1(D, np.asarray(signal))[0], rel=1e-7
        )


def test_an_infeasible_layer_says_so_and_the_rest_goes_on():
    D1, D2 = chain()
    first, second = pursuit.layered_basis_pursuit((D1, D2), D1 @ normal(0, 64))
    assert first.converged and not second.converged
    assert second.residual > 0.1 and np.isfinite(second.x).all()


def test_one_layer_is_basis_pursuit_and_zero_stays_zero():
    D, y = matrix("gaussian 8x16"), normal(0, 8)
    (only,) = pursuit.layered_basis_pursuit([D], y)
    assert only == pursuit.basis_pursuit(D, y)
    assert all(
        not layer.x.any() and layer.converged
        for layer in pursuit.layered_basis_pursuit(chain(), np.zeros(32))
    )


@pytest.mark.slow
def test_the_gradient_goes_through_a_chain():
    y, x1, x2 = planted(0)
    motion = np.where(x2 != 0, 1.0, 0)
    D1, D2 = chain()
    _, slopes = jax.jvp(
        lambda y: [p.x for p in pursuit.layered_basis_pursuit((D1, D2), y)],
        (y,),
        (D1 @ D2 @ motion,),
    )
    assert slopes[0] == pytest.approx(D2 @ motion, abs=1e-7) and slopes[1] == pytest.approx(
        motion, abs=1e-7
    )


# Errors.


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_a_code_of_a_loose_tolerance_says_its_gap(tol):
    found = pursuit.basis_pursuit(matrix("gaussian 8x16"), normal(0, 8), tol=tol)
    assert found.converged and found.gap <= tol
