"""Numbers at every scale: powers of two in, the same bits out; seeds, and memory."""

import inspect
import math
import types
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import registry
from numpy.testing import assert_allclose, assert_array_equal

import unrolled as ur
from unrolled._base import checks, numbers
from unrolled.theory import _coherence

ua, ud, um, up, ut = ur.activations, ur.dictionaries, ur.metrics, ur.pursuit, ur.theory


M, D_ATOMS, BATCH = 6, 10, 4
# D is multiplied by 2^a, signals by 2^b: then codes have the factor 2^(b - a), penalties 2^(a + b).
SCALES = [(0, 0), (0, 14), (0, -14), (13, 0), (-13, 0), (8, 7), (-8, -7), (9, -5), (-7, 8)]
# What the numbers above are multiplied by: the range of the exponent of a dtype over 16 or so.
RANGES = {"float32": 8, "float64": 64, "float16": 0.5, "bfloat16": 8}


def arrays(dtype):
    """D, y, a code x, a batch of codes and estimates of them; no entry is small against others."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return (rng.choice([-1.0, 1.0], shape) * rng.uniform(0.25, 2, shape)).astype(dtype)

    return dict(
        D=draw(M, D_ATOMS), y=draw(M), x=draw(D_ATOMS), X=draw(BATCH, D_ATOMS), Z=draw(2, 10)
    )


def unit(D):
    return ud.normalize(D)[0]


# Each is called with D, y, a code x, a penalty lam, codes X and signals Z; its results have the
# exponents that follow, for the scales 2^a of D and 2^b of y. The pursuits are in
# test_pursuit_programs.py.
ANY = {  # what follows any dtype at any of the scales
    "column_norms": (lambda D, y, x, lam, X, Z: ud.column_norms(D), lambda a, b: a),
    "normalize": (lambda D, y, x, lam, X, Z: ud.normalize(D), lambda a, b: (0, a)),
    "normalized": (lambda D, y, x, lam, X, Z: ud.normalized(D), lambda a, b: (0, a)),
    "spectral_norm": (lambda D, y, x, lam, X, Z: ud.spectral_norm(D), lambda a, b: a),
    "entries": (lambda D, y, x, lam, X, Z: ud.entries(D), lambda a, b: a),
    "magnitudes": (lambda D, y, x, lam, X, Z: ud.magnitudes(D), lambda a, b: a),
    "mutual_coherence": (lambda D, y, x, lam, X, Z: ut.mutual_coherence(D), lambda a, b: 0),
    "coherence": (lambda D, y, x, lam, X, Z: ut.coherence(D, unit(D)), lambda a, b: (a, a)),
    "babel": (lambda D, y, x, lam, X, Z: ut.babel(unit(D), 3), lambda a, b: 0),
    "frobenius": (lambda D, y, x, lam, X, Z: ut.frobenius_weights(D), lambda a, b: -a),
    "frobenius_conv": (
        lambda D, y, x, lam, X, Z: ut.frobenius_weights(ud.Conv(D[:2, None, :3], 7)).filters,
        lambda a, b: -a,
    ),
    "nmse": (lambda D, y, x, lam, X, Z: um.nmse(X[:2], X[2:]), lambda a, b: 0),
    "signal_nmse": (lambda D, y, x, lam, X, Z: um.signal_nmse(X[:2], X[2:]), lambda a, b: 0),
    "mean_nmse": (lambda D, y, x, lam, X, Z: um.mean_nmse(X[:2], X[2:]), lambda a, b: 0),
    "failure_rate": (lambda D, y, x, lam, X, Z: um.failure_rate(X[:2], X[2:], 3.0), lambda a, b: 0),
    "support_scores": (lambda D, y, x, lam, X, Z: um.support_scores(X[:2], X[2:]), lambda a, b: 0),
    "psnr": (lambda D, y, x, lam, X, Z: um.psnr(X[:2], X[2:], x[0]), lambda a, b: 0),
    "add_noise": (lambda D, y, x, lam, X, Z: ur.problems.add_noise(0, Z, 9.0), lambda a, b: b),
    "shrink": (lambda D, y, x, lam, X, Z: ua.shrink(Z, abs(y[0])), lambda a, b: b),
    "soft": (lambda D, y, x, lam, X, Z: ua.soft_threshold(Z, abs(y[0])), lambda a, b: b),
    "hard": (lambda D, y, x, lam, X, Z: ua.hard_threshold(Z, abs(y[0])), lambda a, b: b),
    "firm": (lambda D, y, x, lam, X, Z: ua.firm_threshold(Z, abs(y[0]) / 4, abs(y[0])), "signal"),
    "nonnegative": (lambda D, y, x, lam, X, Z: ua.nonnegative_threshold(Z, abs(y[0])), "signal"),
    "select": (lambda D, y, x, lam, X, Z: ua.select_support(Z[0], abs(y[0]), 0.3), "signal"),
    "kth_largest": (lambda D, y, x, lam, X, Z: ua.kth_largest(abs(Z[0]), 3), lambda a, b: b),
    "keep_largest": (lambda D, y, x, lam, X, Z: ur.layers.keep_largest(Z[0], 3), lambda a, b: b),
    "lamp": (lambda D, y, x, lam, X, Z: ur.layers.lamp(2).init(None, D).steps.alpha, "code"),
}
# Products, whose terms must be in the range as well: the scales stay moderate.
PRODUCTS = {
    "lasso_objective": (lambda D, y, x, lam, X, Z: up.lasso_objective(D, y, x, lam), "square"),
    "duality_gap": (lambda D, y, x, lam, X, Z: up.duality_gap(D, y, x, lam), "square"),
    "kkt_violation": (lambda D, y, x, lam, X, Z: um.kkt_violation(D, y, x, lam), lambda a, b: 0),
    "inner_products": (lambda D, y, x, lam, X, Z: ud.inner_products(D, D)[0], lambda a, b: 2 * a),
    "ridge": (lambda D, y, x, lam, X, Z: ut.frobenius_weights(D, D[0, 0] ** 2), lambda a, b: -a),
    "diagonal": (lambda D, y, x, lam, X, Z: ut.diagonal(D, D), lambda a, b: 2 * a),
}
# Without another unit of D: x is not linear in it.
SIGNALS = {
    "residual": (
        lambda D, y, x, lam, X, Z: ut.recover_on_supports(y, [D], [[0, 3]]).residual,
        "signal",
    ),
    "ista_step": (lambda D, y, x, lam, X, Z: up.ista_step(D, y, x, 0.25, lam), "code"),
}
NAMED = {
    "signal": lambda a, b: b,
    "code": lambda a, b: b - a,
    "square": lambda a, b: 2 * b,
}
NAMED_LAMP = {"lamp": lambda a, b: -a}


def called(f, at, a=0, b=0):
    """f with its arguments multiplied by powers of two, exactly."""

    def times(v, k):
        return jnp.asarray(np.ldexp(v.astype(np.float64), k).astype(v.dtype))

    D, y, x, X, Z = (at[name] for name in ("D", "y", "x", "X", "Z"))
    lam = times(np.abs(y[:1]) / 4, a + b)[0]
    return f(times(D, a), times(y, b), times(x, b - a), lam, times(X, b - a), times(Z, b))


def agrees(got, exact, k, dtype, rounding):
    """got = exact 2^k, where that is in the range of the dtype; past it, inf or what is near 0."""
    with np.errstate(all="ignore"):
        want = np.ldexp(np.asarray(exact, np.float64), k)
    got = np.asarray(got, np.float64)
    info = jnp.finfo(dtype)
    large, small = np.abs(want) > float(info.max) / 2, np.abs(want) < 2 * float(info.tiny)
    inside = ~(large | small) | (want == 0) | np.isnan(want) | np.isinf(np.asarray(exact))
    assert_allclose(got[inside], want[inside], rtol=rounding, atol=0)
    assert (np.abs(got[large & ~inside]) >= float(info.max) / 4).all()
    assert (np.abs(got[small & ~inside]) <= 4 * float(info.tiny)).all()


def cases():
    for name, (f, degree) in {**ANY, **PRODUCTS, **SIGNALS}.items():
        degree = NAMED_LAMP.get(name, NAMED.get(degree, degree))
        for dtype in RANGES:
            yield pytest.param(f, degree, name, dtype, id=f"{name}-{dtype}")


@pytest.mark.few(6)
@pytest.mark.parametrize("f, degree, name, dtype", [*cases()])
def test_powers_of_two_go_through(f, degree, name, dtype):
    """f(2^k inputs) = 2^(degree k) f(inputs): bit for bit, but where the range of half precision
    cuts entries inside of the products of the caller.
    """
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    at, unscaled = arrays(kind), None
    rounding = 0 if dtype.startswith("float") and dtype != "float16" else 0.02
    for i, j in SCALES:
        if name in SIGNALS and i:
            continue
        half = 0.5 if name in PRODUCTS else 1
        a, b = (int(RANGES[dtype] * n * half) for n in (i, j))
        if name in ("coherence", "babel") and np.dtype(kind).itemsize == 2:
            with pytest.raises(ValueError, match="atoms have norms in"):  # not within 1e-4 of 1
                called(f, at, a, b)
            continue
        result = called(f, at, a, b)
        if unscaled is None:
            unscaled = result
        degrees = degree(a, b)
        leaves = jax.tree.leaves(result)
        degrees = jax.tree.leaves(degrees) if jax.tree.leaves(degrees) != [0] else [0] * len(leaves)
        degrees = degrees * len(leaves) if len(degrees) == 1 else degrees
        for got, exact, k in zip(leaves, jax.tree.leaves(unscaled), degrees, strict=True):
            agrees(got, exact, k, kind, rounding)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize("solve", [up.lasso, up.lasso_path])
def test_a_share_of_lam_max_has_no_scale(solve, dtype):
    """lam_max has the factor 2^(a + b), which leaves the range long before D, y and the code do."""
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    D, y = (arrays(kind)[name] for name in ("D", "y"))

    def solved(a, b):
        scaled = (np.ldexp(v.astype(float), k).astype(v.dtype) for v, k in ((D, a), (y, b)))
        ratio = [0.5, 0.25] if solve is up.lasso_path else 0.25
        # The gap of a code that is rounded to its dtype is a few eps.
        tol = max(1e-2, 4 * float(jnp.finfo(kind).eps))
        return solve(*map(jnp.asarray, scaled), ratio=ratio, tol=tol, max_steps=50)

    exact, refused = solved(0, 0), 0
    assert exact.converged.all() and exact.x.any()
    for i, j in [(14, 14), (-14, -14), (8, 7), (-7, 9)]:
        a, b = (int(RANGES[dtype] * n) for n in (i, j))
        try:
            found = solved(a, b)
        except ValueError as error:
            assert solve is up.lasso_path and f"leaves the range of {dtype}" in str(error)
            refused += 1
            continue
        # A subnormal lam of a path in half precision is not the lam of its code.
        assert found.converged.all() or np.max(found.lam) < 2 * float(jnp.finfo(kind).tiny)
        for name in exact._fields[:-1]:
            k = {"lam": a + b, "x": b - a, "residual": b}.get(name, 0)
            agrees(getattr(found, name), getattr(exact, name), k, kind, 0)
    assert refused <= 2


@pytest.mark.slow
def test_a_penalty_of_a_path_beyond_the_range_is_no_success(D32):
    """Under jit it cannot be refused: `converged` says it, and the code is what it is."""
    y, path = D32[:, 3] - D32[:, 7] / 2, partial(up.lasso_path, ratio=[0.5, 0.1])
    exact = jax.jit(path)(D32, y)
    for k in (66, -70):
        found = jax.jit(path)(D32 * F32(2.0**k), y * F32(2.0**k))
        assert not found.converged.any() and exact.converged.all()
        assert_array_equal(found.x, exact.x)


def test_lam_max_is_right_or_refused(D32):
    y, top = D32[:, 3], up.lam_max(D32, D32[:, 3])
    assert up.lam_max(D32 * F32(2.0**60), y * F32(2.0**-100)) == 2.0**-40 * top
    for k in (66, -70):
        with pytest.raises(ValueError, match="lam_max: lam, about 1e.* leaves the range of float3"):
            up.lam_max(D32 * F32(2.0**k), y * F32(2.0**k))


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", registry.DICTIONARIES)
def test_every_dictionary_has_norms_at_every_scale(kind):
    D = registry.DICTIONARIES[kind]().astype(jnp.float32)

    @jax.jit
    def measured(D):
        unit, sizes = ud.normalized(D)
        return ud.column_norms(D), ud.spectral_norm(D), sizes, ud.dense(unit)

    norms, top, sizes, unit = measured(D)
    for k in (80, -80):
        scale = 2.0**k
        their_norms, their_top, their_sizes, their_unit = measured(D * jnp.asarray(scale, F32))
        assert_allclose(their_norms, norms * scale, rtol=1e-6)
        # Two iterations, each to a few units in the last place.
        assert_allclose(their_top, top * scale, rtol=16 * 2.0**-23)
        assert_allclose(their_sizes, sizes * scale, rtol=1e-6)
        assert_allclose(their_unit, unit, rtol=1e-5, atol=1e-6)


def test_a_large_part_beside_the_identity_has_a_norm():
    F = jnp.diag(jnp.asarray([2.0**80, 1.0], jnp.float32))
    assert_allclose(ud.spectral_norm(ud.WithIdentity(F)), 2.0**80, rtol=1e-6)


# The examples that were wrong

F32 = np.float32


@pytest.fixture
def D32():
    D = np.random.default_rng(0).normal(size=(20, 40))
    return (D / np.linalg.norm(D, axis=0)).astype(F32)


@pytest.mark.slow
def test_coherence_of_a_large_dictionary(D32):
    mu = ut.mutual_coherence(D32)
    assert mu > 0.3
    assert_allclose(ut.mutual_coherence(D32 * F32(1e20)), mu, rtol=1e-5)
    half = (D32 * 300).astype(jnp.float16)
    assert_allclose(ut.mutual_coherence(half), mu, rtol=5e-3)


def test_normalize_of_a_large_dictionary(D32):
    unit, norms = ud.normalize(D32 * F32(1e20))
    assert_allclose(np.linalg.norm(unit, axis=0), 1, rtol=1e-5)
    assert_allclose(norms, 1e20, rtol=1e-5)


def test_atoms_of_very_different_norms():
    D = jnp.asarray([[1e-30, 3e30, 1.0], [1e-30, 4e30, 0.0]], F32)
    unit, norms = ud.normalize(D)
    assert_allclose(norms, [math.sqrt(2) * 1e-30, 5e30, 1], rtol=1e-6)
    assert_allclose(np.linalg.norm(unit, axis=0), 1, rtol=1e-6)


def test_norms_above_the_range_are_refused():
    D = jnp.full((9, 2), 3e38, F32)
    for f in (ud.normalize, ut.mutual_coherence):
        with pytest.raises(ValueError, match="the norms of atoms .* above the range of float32"):
            f(D)
    assert np.isnan(jax.jit(ut.mutual_coherence)(D))


@pytest.mark.few(1)
@pytest.mark.parametrize("solve", [up.ista, up.fista])
def test_a_faint_signal_is_coded(solve, D32):
    y = D32[:, 3] - D32[:, 7] / 2
    exact = solve(D32, y, 0.01)
    faint = solve(D32, y * F32(1e-20), 1e-22)
    assert faint.converged and exact.converged and faint.steps == exact.steps
    assert_allclose(faint.x * 1e20, exact.x, atol=1e-5)
    large = solve(D32 * F32(1e20), y, 1e18)
    assert large.converged
    assert_allclose(large.x * 1e20, exact.x, atol=1e-5)


def test_a_code_out_of_range_is_not_called_converged(D32):
    for D, size, lam in ((D32 * F32(1e-20), 1e30, 1e8), (D32 * F32(1e20), 1e-30, 0)):
        y = D32[:, 3] * F32(size)
        assert not up.fista(D, y, F32(lam)).converged
        assert not up.basis_pursuit(D, y).converged


# How far the signal is explained along the atom that is nearly lost: by its penalty, or as far as a
# bound of the residual asks for.
SHARES = dict.fromkeys(("omp", "omp_batch", "omp, tol", "omp, least squares", "basis_pursuit"), 1)
SHARES["bpdn"] = 0.7
FAINT = [(F32, (1e-12, 1e-19, 1e-30, 1e-36, 1e-40)), (np.float64, (1e-160, 1e-250, 1e-310))]
PENALISED = {
    f"{name}, {kind}": (solve, kind)
    for name, solve in registry.SOLVERS.items()
    for kind in ("none", "as the atoms")
} | {name: (solve, "own") for name, solve in registry.PURSUITS.items()}


@pytest.mark.few(6)
@pytest.mark.parametrize("name", dict.fromkeys(["lasso, none", "omp", "omp_batch", *PENALISED]))
def test_an_atom_whose_square_underflows_is_part_of_the_code_or_no_gap_is_claimed(name):
    """Of orthogonal atoms: what converges has explained the signal along each as far as it must."""
    solve, kind = PENALISED[name]
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for dtype, sizes in FAINT:
        for size in sizes:
            norms = np.array([1, 1, size])
            D, y = (Q * norms).astype(dtype), (Q @ [1, 0.5, 1]).astype(dtype)
            lam = {"none": 0 * norms, "as the atoms": norms / 10, "own": None}[kind]
            if lam is not None and size / 10 < np.finfo(dtype).tiny:
                lam[2] = 0  # others are refused
            found = solve(D, y) if lam is None else solve(D, y, lam.astype(dtype))
            share = SHARES.get(name, 0) if lam is None else 1 - lam[2] / size
            x, right = np.atleast_2d(found.x)[-1].astype(float), np.atleast_1d(found.converged)[-1]
            if right:
                assert abs(x[2] * size - share) < 0.01
            assert right or size / np.finfo(dtype).tiny < 1 or "omp" not in name


def test_a_penalty_above_the_range_gives_zero(D32):
    found = up.fista(D32 * F32(1e-20), D32[:, 0] * F32(1e-10), 1e20)
    assert found.converged and not found.x.any() and found.gap == 0


def test_other_activations_keep_their_units(D32):
    """ELU does not commute with a change of units, so that the solver must not change them."""
    rho, y = ua.elu(0.5), 100 * D32[:, 0]
    found = up.ista(D32, y, 1.0, tol=None, max_steps=3, activation=rho)
    x, gamma = jnp.zeros(40, F32), 1 / ud.spectral_norm(D32) ** 2
    for _ in range(3):
        x = up.ista_step(D32, y, x, gamma, gamma, rho)
    assert_allclose(found.x, x, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gradients_go_through_the_change_of_units(D32):
    y = D32[:, 3] - D32[:, 7] / 2

    def total(D, y, lam):
        return jnp.sum(up.ista(D, y, lam, tol=None, max_steps=20).x)

    exact = jax.grad(total, (0, 1, 2))(D32, y, F32(0.01))
    scaled = jax.grad(total, (0, 1, 2))(D32 * F32(2.0**20), y * F32(2.0**-30), F32(0.01 * 2.0**-10))
    for got, want, k in zip(scaled, exact, (-70, -20, -40), strict=True):
        assert_allclose(np.ldexp(np.asarray(got, float), -k), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, b", [("float32", -100), ("float32", -60), ("float32", 80), ("float16", -9)]
)
def test_derivatives_of_the_lasso_have_no_scale(D32, dtype, b):
    """A derivative is linear: factors that squares would take out of the range go through."""
    D, y = D32.astype(dtype), (D32[:, 3] - D32[:, 7] / 2).astype(dtype)

    def total(y, lam, weight):
        x = up.lasso(D, y, lam, tol=1e-2).x
        return weight * jnp.sum(x.astype(float))

    exact = jax.grad(total)(y, y.dtype.type(0.25), 1.0)
    small = jax.grad(total)(np.ldexp(y, b), y.dtype.type(2.0 ** (b - 2)), 0.125)
    assert np.any(exact)
    assert_allclose(8 * np.asarray(small, float), np.asarray(exact, float), rtol=2e-2, atol=5e-3)


def test_metrics_of_large_and_of_half_precision_codes():
    Z = np.random.default_rng(0).normal(size=(5, 30)).astype(np.float32)
    assert um.failure_rate(0 * Z, np.float32(1e20) * Z) == 1
    assert um.failure_rate(0 * Z, np.float32(1e-30) * Z) == 1
    half = (300 * Z).astype(np.float16)
    assert_allclose(um.nmse((half * 0.9).astype(np.float16), half), -20, atol=0.1)
    assert_allclose(um.nmse(np.float32(1e-25) * Z, np.float32(1e25) * Z), 0, atol=1e-3)
    error = np.zeros((1, 2), np.float32), np.asarray([[1e-30, 1e10]], np.float32)
    assert_allclose(um.nmse(np.asarray([[0, 1e10]], np.float32), error[1]), -800, atol=0.1)
    assert_allclose(um.psnr(np.float32(1e25) * (Z + 1), np.float32(1e25) * Z, 1e25), 0, atol=1e-3)


def test_support_scores_of_nan_codes_are_nan():
    X = jnp.ones((2, 5))
    scores = um.support_scores(X.at[0, 1].set(jnp.nan), X)
    assert all(np.isnan(score) for score in jax.tree.leaves(scores))


def test_what_hard_threshold_and_keep_largest_keep():
    assert np.isnan(ua.hard_threshold(jnp.asarray([jnp.nan]), 1.0)).all()
    v = jnp.asarray([3.0, -1.0, 2.0])
    for keep in (ur.layers.keep_largest, jax.jit(ur.layers.keep_largest)):
        assert_array_equal(keep(v, 0), [0, 0, 0])
        assert_array_equal(keep(v, 1), [3, 0, 0])
        assert_array_equal(keep(v, 9), v)
        assert_array_equal(keep(v.at[1].set(jnp.nan), 1), [0, jnp.nan, 0])
    with pytest.raises(ValueError, match="sparsity must be non-negative"):
        ur.layers.keep_largest(v, -1)
    with pytest.raises(ValueError, match="k must be in 1..3, got 0"):
        ua.kth_largest(v, 0)


MAPS = {
    "shrink": ua.shrink,
    "keep_largest": lambda v, theta: ur.layers.keep_largest(v, 1),
    **{name: lambda v, _, build=build: build()(v) for name, build in registry.ACTIVATIONS.items()},
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", MAPS)
def test_integers_become_floats(name):
    """Of 8 bits and more, in arrays and in lists. test_doors.py has those of 64 bits."""
    f = MAPS[name]
    want = np.asarray(f(np.asarray([3.0, 4.0]), 1.0))
    for dtype in (np.uint8, np.int8, np.int32):
        v = np.asarray([3, 4], dtype)
        for given in (v, jax.device_put(v), v.tolist()):
            got = f(given, 1)
            assert got.dtype == float
            assert_array_equal(got, want)
    # A fused polynomial rounds otherwise, by a few units in the last place.
    assert_allclose(jax.jit(f)(v, 1), want, rtol=4 * np.finfo(float).eps, atol=0)


@pytest.mark.parametrize("family", ["lamp", "lamp_bg", "tista", "vamp_bg"])
def test_a_zero_dictionary_is_refused(family):
    with pytest.raises(ValueError, match=f"{family}: D is zero"):
        ur.layers.FAMILIES[family](2).init(None, jnp.zeros((3, 5)))


@pytest.mark.parametrize("power", [-80, 80])
def test_sums_of_squares_of_known_arrays_are_in_the_range(power):
    """XLA knows the array, and would compute (x c)^2 as x^2 c^2."""
    x = np.ldexp(np.arange(1, 5, dtype=np.float32), power)
    e, k = jax.jit(lambda: numbers.energy(jnp.asarray(x)))()
    assert np.ldexp(float(e), 2 * (int(k) - power)) == 30


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["lamp", "lamp_bg", "tista", "vamp_bg"])
def test_codes_have_no_scale_of_the_dictionary(D32, family):
    """D and y in other units: the codes are the same, where the squares leave the range too."""
    layer, y = ur.layers.FAMILIES[family](3), D32[:, 3] - D32[:, 7] / 2
    exact = layer.apply(layer.init(None, D32), D32, y)
    assert np.any(exact)
    for k in (-80, 80):
        D = np.ldexp(D32, k)
        params = layer.init(None, D)
        assert_allclose(layer.apply(params, D, np.ldexp(y, k)), exact, atol=1e-4)
        constant = jax.jit(lambda y, p=params, D=D: layer.apply(p, D, y))
        assert_allclose(constant(np.ldexp(y, k)), exact, atol=1e-4)


def test_the_noise_of_tista_is_in_the_units_of_the_signal(D32):
    y = D32[:, 3] - D32[:, 7] / 2

    def codes(k):
        D, layer = np.ldexp(D32, k), ur.layers.tista(3, noise=float(np.ldexp(0.01, 2 * k)))
        return layer.apply(layer.init(None, D), D, np.ldexp(y, k))

    for k in (-80, 3, 80):
        assert_allclose(codes(k), codes(0), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "onsager", "residual"])
def test_codes_of_alista_at_follow_powers_of_two_bit_for_bit(D32, options):
    by = "residual" if options == "residual" else "code"
    layer = ur.layers.alista_at(5, onsager=options == "onsager", by=by, support=(0.1, 0.2))
    y = D32[:, 3] - D32[:, 7] / 2
    exact = layer.iterates(layer.init(None, D32), D32, y)
    assert np.any(exact)
    for signal, dictionary in ((-80, 0), (80, 0), (0, 60), (0, -60), (40, 60)):
        D = np.ldexp(D32, dictionary)
        found = layer.iterates(layer.init(None, D), D, np.ldexp(y, signal))
        assert_array_equal(np.ldexp(found, dictionary - signal), exact)


@pytest.mark.parametrize("em", [False, True])
def test_codes_of_vamp_bg_follow_powers_of_two_bit_for_bit(D32, em):
    layer, y = ur.layers.vamp_bg(5, em=em), D32[:, 3] - D32[:, 7] / 2
    params = layer.init(None, D32)
    exact = layer.iterates(params, D32, y)
    assert np.any(exact)
    for signal, dictionary in ((-80, 0), (80, 0), (0, 60), (0, -60), (40, 60)):
        s = np.ldexp(params.shared.W.s, dictionary)
        there = params._replace(shared=ur.layers.Fixed(params.shared.W._replace(s=s)))
        D = np.ldexp(D32, dictionary)
        found = layer.iterates(there, D, np.ldexp(y, signal))
        assert_array_equal(np.ldexp(found, dictionary - signal), exact)
        assert_allclose(layer.init(None, D).shared.W.s, s, rtol=1e-6)  # of float64, rounded
    assert not np.any(layer.apply(params, D32, 0 * y))


@pytest.mark.slow
def test_the_variance_of_vamp_bg_is_in_the_units_of_the_codes(D32):
    y = D32[:, 3] - D32[:, 7] / 2

    def codes(k):
        layer = ur.layers.vamp_bg(5, variance=float(np.ldexp(0.6, 2 * k)))
        return np.ldexp(layer.apply(layer.init(None, D32), D32, np.ldexp(y, k)), -k)

    assert np.any(codes(0)) and np.any(
        codes(0) != ur.layers.vamp_bg(5).apply(ur.layers.vamp_bg(5).init(None, D32), D32, y)
    )
    for k in (-40, 40):
        assert_array_equal(codes(k), codes(0))


def test_codes_of_lamp_follow_a_scaled_signal(D32):
    layer, y = ur.layers.lamp(3), D32[:, 3] - D32[:, 7] / 2
    params = layer.init(None, D32)
    exact = layer.apply(params, D32, y)
    assert np.any(exact)
    for k in (-80, 80):
        found = layer.apply(params, D32, np.ldexp(y, k))
        assert_allclose(np.ldexp(found, -k), exact, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["lamp", "lamp_bg", "tista", "vamp_bg"])
def test_signals_whose_energy_is_above_the_range_of_half_precision(D32, family):
    layer = ur.layers.FAMILIES[family](2)
    half, y = D32.astype(np.float16), (300 * (D32[:, 3] - D32[:, 7] / 2)).astype(np.float16)
    params = layer.init(None, half)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    exact = layer.apply(wide, half.astype(np.float32), y.astype(np.float32))
    assert_allclose(layer.apply(params, half, y), exact, rtol=0.05, atol=3)


@pytest.mark.parametrize("dtype, scale", [("float32", 1e20), ("float32", 1e-25), ("float16", 1e4)])
@pytest.mark.parametrize("family", ["ista", "lista_cp", "liht"])
def test_a_step_size_outside_of_the_range_is_refused(family, dtype, scale):
    options = dict(sparsity=1) if family == "liht" else {}
    layer = ur.layers.FAMILIES[family](2, **options)
    with pytest.raises(ValueError, match=f"{family}: norm.D. is .* leaves the range of {dtype}"):
        layer.init(None, jnp.asarray(scale * np.eye(3), dtype))


@pytest.mark.parametrize("lam", [-1.0, float("nan")])
def test_the_loss_refuses_a_negative_penalty(lam):
    with pytest.raises(ValueError, match="lasso_loss: lam must be non-negative"):
        ur.training.lasso_loss(lam)


# Helpers


def test_powers_of_two_are_exact_to_the_ends_of_the_range():
    @jax.jit
    def there_and_back(x):
        k = numbers.exponent(x)
        ways = numbers.ldexp, numbers.times_power
        return k, numbers.norm(x), [by(by(x, -k), k) for by in ways]

    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        info = jnp.finfo(dtype)
        for v in (float(info.tiny), 1.0, 1.5, float(info.max)):
            x = np.asarray([v, 0], dtype)
            k, size, again = there_and_back(x)
            assert -info.minexp >= int(k) >= info.minexp
            assert size.dtype == dtype and size == x[0]
            for same in again:
                assert_array_equal(same, x)
    assert not jax.grad(numbers.norm)(jnp.zeros(2)).any()
    x = jnp.asarray(2.0**-100, F32)
    assert jax.jit(lambda: numbers.ldexp(x, jnp.asarray(200)))() == 2.0**100
    k = np.arange(-252, 253)  # from the largest numbers of float32 to the least, and back
    x = np.exp2(-k.astype(np.float32) / 2)
    assert_array_equal(numbers.ldexp(jnp.asarray(x), jnp.asarray(k)), np.ldexp(x, k))
    assert numbers.exponent(jnp.asarray([0.0, jnp.inf])) == numbers.exponent(jnp.zeros(0)) == 0


def test_a_code_is_in_the_range_where_the_power_of_its_unit_is_not():
    """In units the code is 1/4, and its unit 2^128: above float32 and what one factor reaches."""
    D, y = 2.0**-65 * jnp.eye(2, dtype=F32), jnp.asarray([0, 2.0**63], F32)
    found = ur.pursuit.lasso(D, y, 0.75 * float(ur.pursuit.lam_max(D, y)))
    assert found.converged
    assert_array_equal(found.x, [0, 2.0**126])


# Seeds

SEEDED = {
    "gaussian": lambda key: ud.gaussian(key, 3, 5),
    "transversal": lambda key: ud.transversal(key, 2, 3, 4),
    "ill_conditioned": lambda key: ud.ill_conditioned(key, 3, 5, 2.0),
    "bernoulli_gaussian": lambda key: ur.problems.bernoulli_gaussian(key, (2, 9), 0.5),
    "exact_sparse": lambda key: ur.problems.exact_sparse(key, (2, 9), 3),
    "bounded": lambda key: ur.problems.bounded(key, (2, 9), 3),
    "add_noise": lambda key: ur.problems.add_noise(key, jnp.arange(3.0), 1.0),
    "l1_noise": lambda key: ur.problems.l1_noise(key, (3,), 1.0),
    "standard_benchmark": lambda key: ur.problems.standard_benchmark(key, m=3, d=5).D,
    "sampler": lambda key: ur.problems.sampler(jnp.eye(3), 2)(key)[1],
    "na_alista": lambda key: ur.layers.na_alista(2, units=3).init(key, jnp.eye(3)).shared.kernel,
    "dsc": lambda key: _CHAIN.init(key, [jnp.eye(3)] * 2)[1].shared.kernel,
    "fit": lambda key: _validation(key),
}
_CHAIN = ur.dsc([ur.lista_cp(1), ur.layers.na_alista(2, units=3)])


def _validation(key):
    """The validation loss of no training, on samples of the key."""
    layer, D = ur.layers.step_lista(1), jnp.eye(3)
    given = layer, layer.init(None, D), D, ur.problems.sampler(D, 2)
    return ur.fit(*given, optimizer=optax.sgd(0.1), steps=0, key=key).history.records[0].validation


@pytest.mark.few(3)
@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_is_a_key(name):
    draw = SEEDED[name]
    want = draw(jax.random.key(3))
    for seed in (3, np.int64(3), jnp.asarray(3)):
        assert_array_equal(draw(seed), want)
    for bad, error in ((-1, "at least 0"), (2**32, "at most 4294967295")):
        with pytest.raises(ValueError, match=error):
            draw(bad)


def test_traced_seeds_and_raw_keys_stay():
    raw = jax.random.key_data(jax.random.key(3))
    want = jax.random.normal(jax.random.key(3))
    assert jax.random.normal(jax.jit(lambda n: checks.as_key(n, "f"))(3)) == want
    assert jax.random.normal(checks.as_key(raw, "f")) == want


# Memory


@pytest.mark.slow
def test_products_come_in_tiles(monkeypatch):
    D = ud.gaussian(0, 7, 43)
    composed = ud.normalize(ud.Composed(ud.gaussian(1, 7, 9), ud.gaussian(2, 9, 43)))[0]

    def all_of(D):
        values = (
            *jax.tree.leaves(ut.coherence(D * 1.5, D)),
            ut.mutual_coherence(D),
            ut.babel(D, 3),
            ut.babel(D, 60),
            ut.rounding_guard(D, D, sparsity=2, bound=1.0),
            ut.diagonal(D * 1.5, D),
        )
        return [np.asarray(v) for v in values]

    whole = [all_of(D) for D in (D, composed)]
    slope = jax.grad(ut.mutual_coherence)(D)
    monkeypatch.setattr(_coherence, "_SIDE", 4)
    monkeypatch.setattr(_coherence, "BLOCK", 200)
    jax.clear_caches()
    for D_, want in zip((D, composed), whole):
        for got, exact in zip(all_of(D_), want, strict=True):
            assert_allclose(got, exact, rtol=1e-12)
    assert_allclose(jax.grad(ut.mutual_coherence)(D), slope, atol=1e-12)
    program = str(jax.make_jaxpr(ut.mutual_coherence)(D))
    assert "43,43" not in program and "44,44" not in program and "[4,4]" in program
    jax.clear_caches()


@pytest.fixture
def large_machine(monkeypatch):
    monkeypatch.setattr(checks, "host_bytes", lambda: 1e12)


def test_results_above_the_memory_of_the_machine_are_refused(large_machine):
    """Where JAX has its own words, or ends the process: 1.1 TB of filters, 80 GB and more."""
    D = ud.Conv(jnp.ones((1, 1, 3)) / 3**0.5, 370_000)
    for refused in (lambda: ud.dense(D), lambda: ut.sequence_bound(D, D, 2)):
        with pytest.raises(MemoryError, match="dense: .*takes 1095.2 GB of memory; .* 1000.0"):
            refused()
    with pytest.raises(MemoryError, match="generalized_coherence: the solution of all programs"):
        ut.generalized_coherence(jnp.broadcast_to(jnp.eye(2)[:, :1], (2, 400_000)))


def test_large_results_are_announced(large_machine):
    shape = jax.ShapeDtypeStruct((2, 30_000), jnp.float32)
    with pytest.warns(UserWarning, match="inner_products: .* takes 3.6 GB of memory"):
        jax.eval_shape(ud.inner_products, shape, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(ut.mutual_coherence, shape)
        jax.eval_shape(lambda D: ut.babel(D, 2), shape)
        jax.eval_shape(ut.atom_coherence, shape, shape)
    D = ud.Conv(jnp.ones((1, 1, 3)), 20_000)
    with pytest.warns(UserWarning, match=r"dense: .*\(20000, 19998\) in float64, takes 3.2 GB"):
        jax.eval_shape(ud.dense, D)


DENSE_S = {  # of 2000 atoms, 16 MB in float32
    "lista": (ur.lista(1), (12_000,), 12_000),
    "lista, untied": (ur.lista(600, tied=False), (600, 1998), 2000),
    "lfista": (ur.layers.lfista(600), (600, 1998), 2000),
    "liht": (ur.layers.liht(600, sparsity=1), (600, 1998), 2000),
}


@pytest.mark.parametrize("name", DENSE_S)
def test_the_dense_matrices_of_a_layer_are_announced(name, large_machine):
    layer, S, signal = DENSE_S[name]
    D = ud.Conv(jnp.ones((2, 1, 3), F32), signal)
    d = D.shape[1]
    size = 4 * d * d * getattr(layer, "depth", 1) * (len(S) > 1) or 4 * d * d
    message = f"{layer.family}: S, which is dense for every D, .*takes {size / 1e9:.1f} GB"
    with pytest.warns(UserWarning, match=message):
        jax.eval_shape(lambda D: layer.init(None, D), D)


# The module


def test_help_names_the_types_of_arrays_and_dictionaries_in_a_word():
    modules = [getattr(ur, n) for n in ur.__all__ if isinstance(getattr(ur, n), types.ModuleType)]
    functions = [f for m in modules for f in vars(m).values() if inspect.isfunction(f)]
    assert len(functions) > 200
    for function in functions:
        text = str(inspect.signature(function))
        text = text.replace("complex: bool", "")  # an option
        assert "complex" not in text and "Structured | numpy" not in text, function


def test_the_version_and_what_dir_shows():
    assert ur.__version__.count(".") == 2
    assert dir(ur) == sorted([*ur.__all__, "__version__"])
    assert dir(ur.dictionaries) == sorted(ur.dictionaries.__all__)
    assert dir(ur.nnx) == ["Module", "fit"] and "Sparsity" not in dir(ur.metrics)
    assert "dsc" in dir(ur.networks) and not {"Network", "jax"} & set(dir(ur.networks))
    modules = [getattr(ur, n) for n in ur.__all__ if isinstance(getattr(ur, n), types.ModuleType)]
    modules += [ur.vision.models, ur.vision.datasets, ur.app.studies]  # found on first use
    assert dir(ur.vision) == sorted(ur.vision.__all__) and dir(ur.app) == ["studies"]
    for module in set(modules) - {ur.vision, ur.app}:
        for name in dir(module):
            assert not name.startswith("_") and name != "Array", (module, name)
            assert not isinstance(getattr(module, name), types.ModuleType), (module, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ur.nothing  # noqa: B018
