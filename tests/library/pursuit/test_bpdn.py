"""Basis pursuit denoising against its dual, the LASSO, and its limits."""

import jax
import numpy as np
import pytest
from oracles import normal, unit

from unrolled import pursuit

M, N = 20, 40
D = unit(normal(0, M, N))
y = D[:, :3] @ normal(1, 3) + 0.1 * normal(2, M)


@pytest.mark.slow
@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5, 0.95])
def test_codes_are_feasible_and_their_value_is_that_of_a_dual_point(share):
    eps = share * np.linalg.norm(y)
    found = pursuit.bpdn(D, y, eps)
    x = np.asarray(found.x)
    r = y - D @ x
    assert found.converged and np.linalg.norm(r) <= eps * (1 + 1e-14)
    assert found.residual == pytest.approx(np.linalg.norm(r))
    z = r / np.abs(D.T @ r).max()
    size, dual = np.abs(x).sum(), y @ z - eps * np.linalg.norm(z)
    assert 0 <= size - dual <= 1e-6 * size
    assert found.gap == pytest.approx((size - dual) / size, abs=1e-12)


def test_coarse_codes_of_many_signals_reach_their_gap():
    Y = normal(4, 40, M) + 4 * normal(5, 40, 2) @ D[:, :2].T
    found = jax.vmap(lambda y: pursuit.bpdn(D, y, 0.3, tol=1e-2))(Y)
    assert found.converged.all() and (found.gap <= 1e-2).all()


@pytest.mark.slow
def test_a_code_is_that_of_the_lasso_with_its_residual():
    lasso = pursuit.lasso(D, y, ratio=0.2, tol=1e-14)
    found = pursuit.bpdn(D, y, lasso.residual, tol=1e-9)
    assert found.converged and found.x == pytest.approx(np.asarray(lasso.x), abs=1e-7)


@pytest.mark.slow
def test_a_small_ball_is_basis_pursuit():
    exact, found = pursuit.basis_pursuit(D, y), pursuit.bpdn(D, y, 1e-6)
    assert found.converged
    assert np.abs(found.x).sum() == pytest.approx(np.abs(exact.x).sum(), rel=1e-4)


@pytest.mark.slow
def test_a_signal_too_far_from_the_range_is_reported():
    tall = D[:, :5]
    least = np.linalg.norm(y - tall @ np.linalg.lstsq(tall, y, rcond=None)[0])
    found = pursuit.bpdn(tall, y, 0.9 * least)
    assert not found.converged and found.gap == np.inf and np.isfinite(found.x).all()
    assert found.residual >= least * (1 - 1e-12)
    assert pursuit.bpdn(tall, y, 1.01 * least).converged


@pytest.mark.slow
def test_float32_says_what_it_reached():
    single = [np.asarray(v, np.float32) for v in (D, y)]
    assert pursuit.bpdn(*single, 0.5).converged
    hard = pursuit.bpdn(*single, 1e-4)
    assert hard.converged == (hard.gap <= np.float32(1e-6)) and np.isfinite(hard.x).all()


@pytest.mark.parametrize("share", [1e-6, 1e-4, 1e-2])
def test_a_ball_that_barely_meets_the_range_claims_nothing_false(share):
    """There the penalty is small, and the dual value a difference of nearly equal numbers."""
    for seed in range(5):
        tall, y = normal(seed, 20, 10).astype("float32"), normal(seed + 50, 20).astype("float32")
        A, b = tall.astype(float), y.astype(float)
        least = np.linalg.lstsq(A, b, rcond=None)[0]
        distance = np.linalg.norm(b - A @ least)
        eps = np.float32(distance * (1 + share))
        found = pursuit.bpdn(tall, y, eps)
        # With the signs of the code, the least l1 norm on the sphere of radius eps.
        v = np.linalg.solve(A.T @ A, np.sign(found.x))
        room = max(float(eps) ** 2 - distance**2, 0)
        best = least - np.sqrt(room / (np.sign(found.x) @ v)) * v
        excess = 1 - np.abs(best).sum() / np.abs(np.asarray(found.x, float)).sum()
        assert not found.converged or excess <= 4e-6
        for beyond in (1.01 * np.linalg.norm(y), 10 * np.linalg.norm(y)):  # 0 is in the ball
            zero = pursuit.bpdn(tall, y, np.float32(beyond))
            assert zero.converged and zero.steps == 0 and not np.any(zero.x)


@pytest.mark.slow
def test_derivatives_move_with_the_residual_at_its_bound():
    """Differences of h = 1e-4 and of codes to a gap of 1e-13 are right to h^2 and 1e-13^(1/2) / h.

    The code is nearly quadratic in its data where its support is fixed.
    """
    v, turned, moved = normal(8, N), normal(9, M, N), normal(10, M)

    def value(A, z, eps):
        return v @ pursuit.bpdn(A, z, eps, tol=1e-13).x

    eps, both = 0.3 * np.linalg.norm(y), jax.jit(jax.value_and_grad(value, (0, 1, 2)))
    _, gradients = both(D, y, eps)
    change = sum(np.vdot(g, d) for g, d in zip(gradients, (turned, moved, 1.0)))
    h = 1e-4
    ends = [both(D + s * h * turned, y + s * h * moved, eps + s * h)[0] for s in (1, -1)]
    assert float(change) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=1e-3)
    assert not np.any(both(D, y, 2 * np.linalg.norm(y))[1][1])


def test_the_residual_moves_with_its_bound():
    def residual(eps):
        return pursuit.bpdn(D, y, eps, tol=1e-11).residual

    slope = jax.jit(lambda eps: jax.jvp(residual, (eps,), (1.0,))[1])(0.5)
    assert slope == pytest.approx(1.0, abs=1e-8)
