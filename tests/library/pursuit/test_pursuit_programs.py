"""Of every pursuit: the programs that a first call compiles, and its answers at other scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import normal, unit

from unrolled import dictionaries, pursuit

# Shapes of this file alone: a first call compiles.
M, N, P = 7, 11, 9
D, E, Y = unit(normal(0, M, N)), normal(1, N, P) / 3, normal(2, 3, M)
C = normal(3, 2, 1, 3)  # filters
L = 0.1  # a penalty for D, E and Y of this size

# Calls with D, E, a convolution F and Y, where D, F and Y are in units of u and v; so is a penalty.
# The first are those by default: of each way to loop one.
SOLVERS = {
    "fista": lambda D, E, F, Y, u, v: pursuit.fista(D, Y[0], L * u * v, tol=1e-2),
    "omp": lambda D, E, F, Y, u, v: pursuit.omp(D, Y[0], 3),
    "threshold": lambda D, E, F, Y, u, v: pursuit.threshold(D, Y[0], L * u * v),
    "ista": lambda D, E, F, Y, u, v: pursuit.ista(D, Y[0], L * u * v, tol=1e-2),
    "omp_batch": lambda D, E, F, Y, u, v: pursuit.omp_batch(D, Y, 3),
    "basis_pursuit": lambda D, E, F, Y, u, v: pursuit.basis_pursuit(D, Y[0]),
    "bpdn": lambda D, E, F, Y, u, v: pursuit.bpdn(D, Y[0], 0.5 * v, tol=1e-2),
    "half_quadratic": lambda D, E, F, Y, u, v: pursuit.half_quadratic(D, Y[0], L * u * v, tol=1e-2),
    "lasso": lambda D, E, F, Y, u, v: pursuit.lasso(D, Y[0], L * u * v),
    "lasso, ratio": lambda D, E, F, Y, u, v: pursuit.lasso(D, Y[0], ratio=0.1),
    "lasso, free atoms": lambda D, E, F, Y, u, v: pursuit.lasso(
        D, Y[0], L * u * v * (np.arange(N) > 1)
    ),
    "lasso_path": lambda D, E, F, Y, u, v: pursuit.lasso_path(D, Y[0], ratio=[0.5, 0.1]),
    "lasso_batch": lambda D, E, F, Y, u, v: pursuit.lasso_batch(D, Y, L * u * v),
    "local_error": lambda D, E, F, Y, u, v: pursuit.local_error(F, Y[0], 0.5 * v, tol=1e-2),
    "local_sparsity": lambda D, E, F, Y, u, v: pursuit.local_sparsity(F, Y[0], L * u * v, tol=1e-2),
    "layered_thresholding": lambda D, E, F, Y, u, v: pursuit.layered_thresholding(
        (D, E), Y[0], (L * u * v, L / u * v)
    ),
    "layered_basis_pursuit": lambda D, E, F, Y, u, v: pursuit.layered_basis_pursuit(
        (D, E), Y[0], (L * u * v, L / u * v), tol=1e-2
    ),
    "project": lambda D, E, F, Y, u, v: pursuit.project((D, E), Y[0], sparsity=3),
    "ml_ista": lambda D, E, F, Y, u, v: pursuit.ml_ista((D, E), Y[0], (L * u * v,) * 2, tol=1e-2),
    "ml_fista": lambda D, E, F, Y, u, v: pursuit.ml_fista((D, E), Y[0], (L * u * v,) * 2, tol=1e-2),
    "ml_basis_pursuit": lambda D, E, F, Y, u, v: pursuit.ml_basis_pursuit(
        (D, E), Y[0], (L * u * v,) * 2, tol=1e-2
    ),
    "holistic": lambda D, E, F, Y, u, v: pursuit.holistic(
        (D, E), Y[0], lam=L * u * v, zeros=1, tol=1e-2
    ),
}


def answer(name, dtype, k=0, l=0):
    """The result where D has the unit 2^k and the signals 2^l; numpy makes what is passed."""
    u, v = 2.0**k, 2.0**l
    A, G, signals, filters = (np.asarray(a, dtype) for a in (D, E, Y, C))
    F = dictionaries.Conv(filters * np.asarray(u, dtype), M, boundary="circular")
    return SOLVERS[name](A * np.asarray(u, dtype), G, F, signals * np.asarray(v, dtype), u, v)


def codes(result):
    return result.xs if hasattr(result, "xs") else (result.x,)


def test_every_pursuit_is_here():
    assert set(pursuit.PURSUITS) <= set(SOLVERS)


HELPERS = {
    "lam_max": lambda D, y, x: pursuit.lam_max(D, y),
    "lam_of_paper": lambda D, y, x: pursuit.lam_of_paper(2.0),
    "lipschitz": lambda D, y, x: pursuit.lipschitz(D, "caller"),
    "duality_gap": lambda D, y, x: pursuit.duality_gap(D, y, x, 0.1),
    "lasso_objective": lambda D, y, x: pursuit.lasso_objective(D, y, x, 0.1),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [*SOLVERS, *HELPERS])
def test_a_first_call_compiles_three_programs_at_most(name, compiled):
    """The checks at the door compile nothing; before it is one program, behind it another."""
    A, signals, x = (jnp.asarray(v, jnp.float32) for v in (D, Y, np.zeros(N)))
    F = dictionaries.Conv(jnp.asarray(C, jnp.float32), M, boundary="circular")
    E32, y = jnp.asarray(E, jnp.float32), signals[0]  # the programs of an index are not counted
    del compiled[:]
    if name in HELPERS:
        HELPERS[name](A, y, x)
    else:
        SOLVERS[name](A, E32, F, signals, 1.0, 1.0)
    assert len(compiled) <= 3


@pytest.mark.few(1)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_pursuit_runs_inside_shard_map_with_its_checks(name):
    """JAX knows which numbers differ among devices, also where there is one device."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    F = dictionaries.Conv(C, M, boundary="circular")

    def solve(signals):
        return codes(SOLVERS[name](D, E, F, signals, 1.0, 1.0))

    given = jax.sharding.PartitionSpec("data")
    shared = jax.shard_map(solve, mesh=mesh, in_specs=given, out_specs=given)
    for x, z in zip(jax.jit(shared)(Y), jax.jit(solve)(Y)):
        np.testing.assert_allclose(x, z, rtol=1e-9, atol=1e-12)


@pytest.fixture
def float64_as_users_compile(dtype):
    """The programs of float64 with all optimisations: there the bits are the same, too."""
    if dtype == jnp.float64:
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


# Of D and of the signals: to the ends of the range of float32, and a penalty is their product.
SCALES = [(20, -25), (0, 112), (0, -112), (104, 0), (-104, 0), (64, 56), (-64, -56), (72, -40)]
HALF_SCALES = [(2, -3), (0, 3), (-2, 0), (1, 2)]
DTYPES = [
    jnp.bfloat16,
    *(pytest.param(t, marks=pytest.mark.slow) for t in (jnp.float16, jnp.float32, jnp.float64)),
]


@pytest.mark.few(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOLVERS)
def test_powers_of_two_go_through_every_pursuit(name, dtype, float64_as_users_compile):
    """2^k D and 2^l y have the code times 2^(l - k), to the bit: the problem inside is the same.

    In float16 the range is short: entries below its least normal number are multiples of 2^-24, and
    a code may say that it is not held.
    """
    half = dtype == jnp.float16
    plain, spacing = answer(name, dtype), 2.0**-24 if half else 0.0
    for k, l in HALF_SCALES if half else SCALES:
        other = answer(name, dtype, k, l)
        for x, z in zip(codes(plain), codes(other)):
            assert x.dtype == z.dtype == dtype
            assert off(x, z, l - k) <= spacing or not np.asarray(other.converged).all()
        if not half:
            assert np.array_equal(plain.converged, other.converged)
        certified = isinstance(plain, pursuit.Pursuit | pursuit.Path)
        assert not certified or plain.gap.dtype == plain.residual.dtype == dtype
        # The gap of a threshold is that of the LASSO, which is another one in other units of D.
        if certified and not half and (name != "threshold" or k == 0):
            assert off(plain.residual, other.residual, l) <= jnp.finfo(dtype).tiny  # or 0
            assert np.array_equal(plain.gap, other.gap)
            assert np.array_equal(plain.steps, other.steps)


def off(x, z, k):
    """The largest difference of 2^k x and z."""
    return np.abs(np.ldexp(np.asarray(x, float), k) - np.asarray(z, float)).max()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_the_rounded_code_of_float32(dtype):
    half = [jnp.asarray(v, dtype) for v in (D, Y[0])]
    wide = [v.astype(jnp.float32) for v in half]
    for solve in (
        lambda D, y: pursuit.omp(D, y, 3).x,
        lambda D, y: pursuit.lasso(D, y, 0.1).x,
        lambda D, y: pursuit.ml_ista((D,), y, (0.1,), tol=1e-3).xs[0],
    ):
        found = solve(*half)
        assert found.dtype == dtype and jnp.any(found != 0)
        assert jnp.array_equal(found, solve(*wide).astype(dtype))


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_residual_is_that_of_the_code_in_half_precision(dtype):
    """And a bound on it that this code does not keep is not met."""
    A, I, signals = (np.asarray(v, dtype) for v in (D, np.eye(M), Y))
    y, wide = signals[0], np.asarray(signals[0], float)
    near, far = (pursuit.bpdn(A, y, eps, tol=1e-3) for eps in (3e-3, 0.5))
    for B, found in (
        (A, near),
        (A, jax.tree.map(lambda v: v[0], pursuit.lasso_batch(A, signals, 1e-3))),
        (I, pursuit.threshold(I, y, 1e-2)),
    ):
        r = wide - np.asarray(B, float) @ np.asarray(found.x, float)
        assert float(found.residual) == pytest.approx(np.linalg.norm(r), rel=2e-2, abs=1e-6)
    slack = 1 + 2 * float(jnp.finfo(dtype).eps)
    is_inside = near.residual <= 3e-3 * slack
    assert is_inside == (dtype == jnp.float16)
    assert near.converged == (is_inside and near.gap <= 1e-3)
    assert far.converged <= (far.residual <= 0.5 * slack)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_violation_is_that_of_the_code_in_half_precision(dtype):
    filters, y = np.asarray(C, dtype), np.asarray(Y[0], dtype)
    found = pursuit.local_error(
        dictionaries.Conv(filters, M, boundary="circular"), y, 1e-3, tol=1e-4
    )
    # Entry i + k of an atom at i is entry k of its filter.
    x = np.asarray(found.x, float).reshape(2, M)
    made = sum(np.roll(x, k, 1).T @ np.asarray(filters, float)[:, 0, k] for k in range(3))
    y = np.asarray(y, float)
    most, left = (np.sqrt(sum(np.roll(r, -k) ** 2 for k in range(3))).max() for r in (y, y - made))
    over = max(left - 1e-3, 0) / most
    assert float(found.violation) == pytest.approx(over, rel=5e-2, abs=1e-5)
    assert not found.converged or over <= 1.1e-4


def test_a_traced_negative_ridge_is_not_converged():
    solve = jax.jit(lambda l2: pursuit.lasso(D, Y[0], 0.1, l2=l2))
    good, bad = solve(0.1), solve(-0.3)
    assert good.converged and not bad.converged and np.isnan(bad.gap)


def test_a_ratio_means_the_same_at_the_ends_of_the_range():
    """lam_max is that of the scaled problem: D and y of 1e20 have one above the range."""
    plain, *others = (answer("lasso, ratio", np.float32, k, k) for k in (0, 66, -80))
    for other in others:
        assert np.array_equal(plain.x, other.x) and other.converged


SECOND = {
    "lasso": lambda D, y: pursuit.lasso(D, y, 0.1, tol=1e-12).x,
    "omp": lambda D, y: pursuit.omp(D, y, 3).x,
    "half_quadratic": lambda D, y: pursuit.half_quadratic(D, y, 0.05, p=0.8, tol=1e-12).x,
    "bpdn": lambda D, y: pursuit.bpdn(D, y, 0.2, tol=1e-12).x,
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_are_differences_of_the_first(name):
    """Also through the code itself, which an implicit derivative is taken at."""
    D, w, h = unit(normal(0, 6, 10)), np.arange(10.0), 1e-5
    y, along = 1.3 * D[:, 0] - 0.7 * D[:, 4] + 0.05, normal(1, 6)

    def value(y):
        x = SECOND[name](D, y)
        return jnp.sum(x**2) + w @ x

    slope = jax.jit(lambda y: jax.jvp(jax.grad(value), (y,), (along,)))
    found = np.asarray(slope(y)[1])
    expected = np.subtract(*(np.asarray(slope(y + s * h * along)[0]) for s in (1, -1))) / (2 * h)
    # The truncation is of h^2; a gap of 1e-12 leaves its root in the code, over h.
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(expected).max() > 0.1
