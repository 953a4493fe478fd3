"""The penalty |x|^p: its proximal map against brute force, half-quadratic splitting by its aims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unrolled as ur
from unrolled.activations import power_threshold
from unrolled.pursuit import half_quadratic
from unrolled.pursuit._splitting import _correction

EPS = np.finfo(float).eps
POWERS = 2 / 3, 0.8, 0.3, 0.5, 0.99


# The proximal map


def least(v, theta, p):
    """The least (x - v)^2 / 2 + theta x^p over a grid, refined three times, and x = 0."""
    x = np.linspace(0, v, 20001)
    for _ in range(3):
        values = (x - v) ** 2 / 2 + theta * x**p
        i, h = values.argmin(), x[1] - x[0]
        x = np.linspace(max(x[i] - h, 0), x[i] + h, 2001)
    return min(v**2 / 2, values.min())


@pytest.mark.few(2)
@pytest.mark.parametrize("p", POWERS)
def test_the_proximal_map_is_no_worse_than_brute_force(p):
    rng = np.random.default_rng(0)
    thetas = np.repeat([1e-3, 0.3, 2.0, 50.0], 10)
    v = thetas * rng.uniform(0.1, 5, 40)
    x = np.asarray(power_threshold(v, thetas, p))
    assert (x >= 0).all() and (x <= v).all() and 5 < (x > 0).sum() < 40
    values = (x - v) ** 2 / 2 + thetas * x**p
    best = np.array([least(*at, p) for at in zip(v, thetas)])
    # Both are sums of two terms below v^2, each rounded, with a power that loses a few bits.
    assert (values <= best + 16 * EPS * v**2).all()
    slope = x - v + thetas * p * np.where(x > 0, x, 1) ** (p - 1)
    assert np.abs(np.where(x > 0, slope, 0) / v).max() < 16 * EPS
    np.testing.assert_array_equal(power_threshold(-v, thetas, p), -x)


@pytest.mark.slow
@pytest.mark.few(2)
@pytest.mark.parametrize("p", POWERS)
def test_the_proximal_map_in_float32_and_at_its_ends(p):
    v, thetas = np.float32([0.5, 1.5, -4.0, 30.0]), np.float32([1.0, 0.1, 0.7, 2.0])
    narrow = power_threshold(v, thetas, p)
    wide = power_threshold(v.astype(float), thetas.astype(float), p)
    assert narrow.dtype == np.float32
    # At most the slope 1 / (1 - p / 2) = 2 of the root times the rounding of v, and a few bits.
    np.testing.assert_allclose(narrow, wide, rtol=16 * np.finfo(np.float32).eps)
    ends = jnp.array([1e300, 0.0, -3.0, np.nan])
    for theta in (0.0, 1e-200):
        np.testing.assert_array_equal(power_threshold(ends, theta, p), ends)
    # In the middle of the branch that is not 0 the derivative is 1 / (1 - theta p (1-p) x^(p-2)).
    x = power_threshold(jnp.float64(3.0), 0.1, p)
    slopes = jax.grad(power_threshold, (0, 1))(jnp.float64(3.0), jnp.float64(0.1), p)
    inner = 1 - 0.1 * p * (1 - p) * x ** (p - 2)
    np.testing.assert_allclose(slopes, [1 / inner, -p * x ** (p - 1) / inner], rtol=1e-13)


def test_for_p_of_one_it_is_the_soft_threshold():
    v = jnp.linspace(-3, 3, 13)
    np.testing.assert_array_equal(power_threshold(v, 0.7, 1), ur.soft_threshold(v, 0.7))


# Half-quadratic splitting


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    D = np.asarray(ur.dictionaries.gaussian(jax.random.key(0), 12, 20))
    x = np.zeros(20)
    x[[3, 11]] = 1.0, -0.7
    return D, D @ x + 0.01 * rng.normal(size=12), x


def split_objective(D, y, x, lam, p, beta):
    """min over z of the three terms, with z from the normal equations."""
    z = np.linalg.solve(D.T @ D + beta * np.eye(len(x)), D.T @ y + beta * x)
    quadratic = np.sum((y - D @ z) ** 2) / 2 + beta / 2 * np.sum((z - x) ** 2)
    return quadratic + lam * np.sum(np.abs(x) ** p)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1, 0.5])
def test_the_objective_never_rises_within_a_stage(planted, p):
    D, y, _ = planted
    once, lam = 0.5, 0.05
    beta = once * np.linalg.norm(D, 2) ** 2
    options = dict(beta=(once, once), stages=1, max_steps=0)
    codes = [half_quadratic(D, y, lam, p, steps=k, **options).x for k in (1, 3)]
    values = [split_objective(D, y, np.asarray(x), lam, p, beta) for x in (np.zeros(20), *codes)]
    assert (np.diff(values) < EPS).all() and values[-1] < values[1] < values[0]


@pytest.mark.slow
def test_as_beta_grows_it_becomes_the_lasso(planted):
    """F <= (1 + L / beta) F*, from (I + D D' / beta)^{-1} >= I / (1 + L / beta)."""
    D, y, _ = planted
    lam = 0.05
    F = ur.pursuit.lasso_objective(D, y, ur.pursuit.lasso(D, y, lam, tol=1e-12).x, lam)
    last = 10.0
    # So many steps that the stage ends at its minimum, to 1e-6.
    found = half_quadratic(D, y, lam, beta=(last, last), stages=1, steps=3000, max_steps=0)
    excess = float(ur.pursuit.lasso_objective(D, y, found.x, lam) / F) - 1
    assert 1e-9 < excess < 1 / last + 1e-6
    assert not found.converged and found.gap > 1e-6 and found.steps == 3000
    found = half_quadratic(D, y, lam, tol=1e-10)
    assert found.converged
    assert float(ur.pursuit.lasso_objective(D, y, found.x, lam) / F) - 1 < 1e-8


@pytest.mark.few(1)
@pytest.mark.parametrize("p", [0.5, 0.8])
def test_below_one_it_converges_to_a_stationary_point(planted, p):
    D, y, x = planted
    lam, tol = 0.02, 1e-8
    found = half_quadratic(D, y, lam, p, tol=tol)
    assert found.converged and np.isinf(found.gap)
    on = np.flatnonzero(found.x)
    assert on.tolist() == np.flatnonzero(x).tolist()
    code = np.asarray(found.x)
    slope = (y - D @ code) @ D - lam * p * np.sign(code) * np.where(code, np.abs(code), 1) ** (
        p - 1
    )
    assert np.abs(slope[on]).max() <= tol * np.abs(y @ D).max() + 100 * EPS
    # Nearer to the planted code than the LASSO, whose entries are shrunk.
    (lasso,) = np.asarray(ur.pursuit.lasso_batch(D, y[None], lam).x)
    assert np.linalg.norm(code - x) < np.linalg.norm(lasso - x)


def test_the_three_ways_to_solve_the_linear_system_agree():
    filters = np.random.default_rng(0).normal(size=(3, 2, 2, 3))
    r, beta = np.random.default_rng(1).normal(size=40), 0.3
    circular = ur.dictionaries.Conv(filters, (4, 5), boundary="circular", dilation=(2, 1))
    for D in (circular, ur.dictionaries.Conv(filters, (4, 5))):
        A = np.asarray(ur.dictionaries.dense(D))
        expected = A.T @ np.linalg.solve(A @ A.T + beta * np.eye(40), r)
        # The condition is at most (norm(D)^2 + beta) / beta, near 100; sums of some 40 products.
        close = dict(rtol=0, atol=4e4 * EPS)
        np.testing.assert_allclose(
            jax.jit(lambda D, r: _correction(D, beta)(r))(D, r), expected, **close
        )
    for B in (A, A.T):
        r = np.linspace(-1, 1, len(B))
        expected = B.T @ np.linalg.solve(B @ B.T + beta * np.eye(len(B)), r)
        ours = jax.jit(lambda B, r: _correction(B, beta)(r))(B, r)
        np.testing.assert_allclose(ours, expected, **close)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1, 0.5])
@pytest.mark.parametrize("scale", [1e15, 1e-15])
def test_units_do_not_matter_in_float32(planted, p, scale):
    D, y, _ = planted
    lam = 0.05
    expected = half_quadratic(D, y, lam, p)
    found = half_quadratic(np.float32(D), np.float32(scale * y), lam * scale ** (2 - p), p)
    assert found.converged and found.x.dtype == np.float32
    # Within the gap of 1e-6 both; the code of a well-posed problem within its root.
    np.testing.assert_allclose(found.x / np.float32(scale), expected.x, rtol=0, atol=1e-3)


def test_what_the_proximal_map_does_not_take_is_refused():
    for p in ("1", True, np.ones(2), None):
        with pytest.raises(TypeError, match="p must be a number"):
            power_threshold(np.ones(2), 0.1, p)
    with pytest.raises(ValueError, match="theta must be non-negative"):
        power_threshold(np.ones(2), -0.1, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.0, 0.5])
def test_derivatives_are_those_of_the_stationary_point(p):
    """Differences of h = 1e-5 are right to h^2, and to the tolerance 1e-11 over h."""
    rng = np.random.default_rng(1)
    D, y, v = rng.normal(size=(6, 9)) / 3, rng.normal(size=6), rng.normal(size=9)
    turned, moved = rng.normal(size=(6, 9)), rng.normal(size=6)

    def value(D, y, lam):
        return v @ half_quadratic(D, y, lam, p, tol=1e-11).x

    both = jax.jit(jax.value_and_grad(value, (0, 1, 2)))
    _, gradients = both(D, y, 0.1)
    change = sum(np.vdot(g, d) for g, d in zip(gradients, (turned, moved, 1.0)))
    h = 1e-5
    ends = [both(D + s * h * turned, y + s * h * moved, 0.1 + s * h)[0] for s in (1, -1)]
    assert float(change) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-4)
