"""The LASSO and the elastic net for one signal: solutions, derivatives, bad inputs; its path."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import normal, unit
from scipy.optimize import nnls
from sklearn.linear_model import ElasticNet, Lasso, lars_path

from unrolled import dictionaries, metrics, pursuit
from unrolled.pursuit._gap import relative_gap
from unrolled.pursuit._lasso import refuse_lost

M, N = 20, 40
D = unit(normal(0, M, N))
y = D[:, :3] @ normal(1, 3) + 0.1 * normal(2, M)
LAM = 0.1 * float(np.abs(D.T @ y).max())


def objective(x, lam=LAM, l2=0.0, D=D, y=y):
    x = np.asarray(x)
    return np.sum((y - D @ x) ** 2) / 2 + np.sum(lam * np.abs(x)) + l2 / 2 * np.sum(x**2)


# Solutions.


@pytest.mark.slow
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_codes_are_those_of_scikit_learn(l2, nonnegative):
    found = pursuit.lasso(D, y, LAM, l2=l2, nonnegative=nonnegative, tol=1e-13)
    options = dict(fit_intercept=False, tol=1e-14, max_iter=100_000, positive=nonnegative)
    if l2:
        model = ElasticNet(alpha=(LAM + l2) / M, l1_ratio=LAM / (LAM + l2), **options)
    else:
        model = Lasso(alpha=LAM / M, **options)
    assert found.converged and found.gap <= 1e-13
    assert found.x == pytest.approx(model.fit(D, y).coef_, abs=1e-7)


@pytest.mark.slow
def test_weights_per_atom_and_optimality():
    lam = LAM * np.random.default_rng(3).uniform(0.5, 3, N)
    found = pursuit.lasso(D, y, lam, tol=1e-13)
    assert metrics.kkt_violation(D, y, found.x, lam.min()) * lam.min() <= np.ptp(lam) + 1e-9
    g, x = D.T @ (y - D @ found.x), np.asarray(found.x)
    assert np.abs(g[x != 0] - (lam * np.sign(x))[x != 0]).max() <= 1e-9
    assert (np.abs(g) <= lam + 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize("l2", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_gap_bounds_the_excess_of_any_code(l2, nonnegative):
    """At codes on the way, of random entries, and of the solution."""
    options = dict(l2=l2, nonnegative=nonnegative)
    best = objective(pursuit.lasso(D, y, LAM, tol=1e-14, **options).x, l2=l2)
    for seed in range(10):
        start = 0.3 * normal(seed, N) * (normal(seed + 50, N) > 0.5)
        stopped = pursuit.lasso(D, y, LAM, start=start, max_steps=0, **options)
        excess = (objective(stopped.x, l2=l2) - best) / (np.sum(y**2) / 2)
        assert -1e-13 <= excess <= stopped.gap * (1 + 1e-12) + 1e-13


def test_orthonormal_atoms_beside_zero_ones_shrink_their_products():
    Q = np.hstack([np.linalg.qr(normal(4, M, M))[0], np.zeros((M, N - M))])
    p = Q.T @ y
    soft = np.sign(p) * np.maximum(np.abs(p) - LAM, 0)
    for l2 in (0.0, 0.5):
        found = pursuit.lasso(Q, y, np.full(N, LAM), l2=l2, tol=1e-12)
        assert found.x == pytest.approx(soft / (1 + l2), abs=1e-12)


def test_the_ridge_alone_is_a_linear_system():
    found = pursuit.lasso(D, y, 0.0, l2=0.3, tol=1e-12)
    expected = np.linalg.solve(D.T @ D + 0.3 * np.eye(N), D.T @ y)
    assert found.converged and found.x == pytest.approx(expected, abs=1e-7)


def free(n, dtype=float):
    """One weight per atom, 0 for the first n, the first of which is constant."""
    A = D.copy()
    A[:, 0] = 1 / np.sqrt(M)
    lam = np.where(np.arange(N) < n, 0, LAM)
    return A.astype(dtype), (y + 3).astype(dtype), lam.astype(dtype)


def without(n):
    """The least objective by the reference, in what the first n atoms leave of D and y."""
    A, signal, lam = free(n)
    Q = np.linalg.svd(A[:, :n], full_matrices=False)[0]
    B, left = A[:, n:] - Q @ (Q.T @ A[:, n:]), signal - Q @ (Q.T @ signal)
    x = Lasso(alpha=LAM / M, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(B, left).coef_
    return objective(x, lam[n:], D=B, y=left)


@pytest.mark.few(2)
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("dtype, tol, exact", [(float, 1e-12, 1e-13), (np.float32, 1e-6, 1e-6)])
def test_atoms_without_a_penalty_are_certified(n, dtype, tol, exact):
    A, signal, lam = free(n, dtype)
    found, half = pursuit.lasso(A, signal, lam, tol=tol), signal @ signal / 2
    A, signal, lam, x = (np.asarray(v, float) for v in (A, signal, lam, found.x))
    assert found.converged and found.steps < 500 and 0 <= found.gap <= tol
    assert abs(objective(x, lam, D=A, y=signal) - without(n)) <= (float(found.gap) + exact) * half


def test_the_gap_of_any_code_with_free_atoms_bounds_its_excess():
    A, signal, lam = free(4)
    best, gap = without(4), partial(pursuit.duality_gap, A, signal, lam=lam)
    (solution,) = np.asarray(pursuit.lasso_batch(A, signal[None], lam, tol=1e-12).x)
    assert gap(solution) <= 1e-12 * (signal @ signal)
    for seed in range(20):
        x = solution + 10.0 ** (seed % 5 - 3) * normal(seed, N)
        excess = objective(x, lam, D=A, y=signal) - best
        assert excess <= gap(x) * (1 + 1e-9) + 1e-9


def test_the_gap_over_the_energy_has_no_scale_where_rounding_in_free_atoms_is_all_of_it():
    A, signal, _ = free(4)
    lam = np.where(np.arange(N) < 4, 0, 9.0)
    x = np.append(np.linalg.lstsq(A[:, :4], signal)[0], np.zeros(N - 4))  # 9 keeps the rest at 0
    gap = jax.jit(lambda c: relative_gap(A, c * signal, c * lam, c * x))
    assert gap(0.125) == gap(1.0) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("solve", [
    pursuit.lasso, lambda A, y, lam, tol: jax.tree.map(
        lambda v: v[0], pursuit.lasso_batch(A, y[None], lam, tol=tol)
    )
])  # fmt: skip
@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-6])
def test_free_atoms_that_float32_hardly_tells_apart_have_no_certificate_that_is_wrong(solve, apart):
    """What sees them to rounding alone may be far from a vector that does not see them."""
    A, signal, lam = free(3)
    A[:, 1] = A[:, 0] + apart * A[:, 1]
    A, signal, lam = (v.astype(np.float32) for v in (A, signal - 3, lam))
    found = solve(A, signal, lam, tol=1e-5)
    A, signal, lam = (v.astype(float) for v in (A, signal, lam))
    exact = pursuit.lasso_batch(A, signal[None], lam, tol=1e-10).x[0]
    least = objective(np.asarray(exact), lam, D=A, y=signal)
    excess = objective(np.asarray(found.x, float), lam, D=A, y=signal) - least
    assert not found.converged or excess <= 2e-5 * (signal @ signal / 2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(30, 10), (10, 30)])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_without_penalties_codes_are_least_squares(shape, nonnegative):
    A, signal = unit(normal(5, *shape)), normal(6, shape[0])
    residual = (
        nnls(A, signal)[1]
        if nonnegative
        else np.linalg.norm(signal - A @ np.linalg.lstsq(A, signal)[0])
    )
    for lam in (0.0, np.zeros(shape[1])):
        found = pursuit.lasso(A, signal, lam, nonnegative=nonnegative, tol=1e-12)
        assert found.converged and found.residual == pytest.approx(residual, abs=1e-5)
    many = pursuit.lasso_batch(A, signal[None], 0.0, nonnegative=nonnegative, tol=1e-12)
    assert many.converged.all() and many.residual[0] == pytest.approx(residual, abs=1e-5)


@pytest.mark.slow
def test_large_penalties_give_zero_without_a_step():
    top = pursuit.lam_max(D, y)
    for options in (
        *(dict(lam=top), dict(lam=2 * top), dict(ratio=1.0), dict(lam=np.full(N, top))),
        *(dict(lam=top, start=np.ones(N)), dict(lam=top, l2=0.1)),
    ):
        found = pursuit.lasso(D, y, **options)
        assert found.steps == 0 and found.converged and not np.any(found.x)
    assert np.any(pursuit.lasso(D, y, ratio=0.99).x)
    assert not np.any(pursuit.lasso(np.abs(D), -np.abs(y), ratio=0.5, nonnegative=True).x)


@pytest.mark.slow
def test_a_fraction_and_the_letter_of_the_paper():
    value = pursuit.lasso(D, y, LAM, tol=1e-12).x
    assert pursuit.lasso(D, y, ratio=0.1, tol=1e-12).x == pytest.approx(
        np.asarray(value), abs=1e-12
    )
    paper = 1 / (2 * LAM)  # norm(x, 1) + paper norm(y - D x)^2
    assert float(pursuit.lam_of_paper(paper)) == pytest.approx(LAM)
    near = np.asarray(value) + 1e-3 * normal(5, 30, N)
    costs = [np.abs(x).sum() + paper * np.sum((y - D @ x) ** 2) for x in (value, *near)]
    assert costs[0] < min(costs[1:])


@pytest.mark.slow
def test_a_warm_start_saves_steps():
    E = np.asarray(dictionaries.dct((4, 4), (8, 8)), float)
    signal = normal(6, 16)
    cold = pursuit.lasso(E, signal, ratio=0.1, tol=1e-10)
    near = pursuit.lasso(E, signal, ratio=0.101, tol=1e-10)
    warm = pursuit.lasso(E, signal, ratio=0.1, tol=1e-10, start=near.x)
    assert warm.steps < cold.steps and warm.x == pytest.approx(np.asarray(cold.x), abs=1e-4)
    again = pursuit.lasso(E, signal, ratio=0.1, tol=1e-10, start=cold.x)
    assert again.steps == 0 and (again.x == cold.x).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["twins", "rank", "zero"])
def test_degenerate_dictionaries(kind):
    A = {
        "twins": np.hstack([D[:, :10], D[:, :10], -D[:, :10]]),
        "rank": normal(7, M, 4) @ normal(8, 4, 30),
        "zero": np.hstack([np.zeros((M, 2)), D]),
    }[kind]
    found = pursuit.lasso(A, y, ratio=0.1, tol=1e-9)
    assert found.converged and np.isfinite(found.x).all()
    far = pursuit.fista(A, y, 0.1 * np.abs(A.T @ y).max(), tol=1e-9, max_steps=100_000)
    lam = 0.1 * np.abs(A.T @ y).max()
    excess = objective(found.x, lam, D=A) - objective(far.x, lam, D=A)
    assert abs(excess) <= 1e-9 * np.sum(y**2)


@pytest.mark.slow
def test_half_precision_where_the_atoms_of_a_support_depend():
    """More atoms than dimensions on the way: conjugate gradients end before they diverge."""
    for seed in range(6):
        A = unit(normal(seed, 8, 20)).astype(np.float16)
        signal = normal(50 + seed, 8).astype(np.float16)
        found = pursuit.lasso(A, signal, ratio=0.01, tol=2e-2, max_steps=300)
        assert found.converged and np.isfinite(found.x).all()


@pytest.mark.slow
def test_an_unreachable_tolerance_is_reported():
    found = pursuit.lasso(D, y, LAM, tol=1e-12, max_steps=10)
    assert found.steps == 10 and found.converged == (found.gap <= 1e-12)
    single = pursuit.lasso(*(np.asarray(v, np.float32) for v in (D, y)), LAM, tol=1e-12)
    assert not single.converged and 0 < single.gap <= 1e-6 and np.isfinite(single.x).all()
    assert pursuit.lasso(*(np.asarray(v, np.float32) for v in (D, y)), LAM).converged


# Derivatives.


def loss(D, y, lam, l2):
    found = pursuit.lasso(D, y, lam, l2=l2, tol=1e-14)
    return jnp.sum(jnp.sin(found.x) * jnp.arange(1.0, N + 1)) + found.residual


@pytest.mark.slow
def test_implicit_derivatives_are_finite_differences():
    at = (D, y, np.full(N, LAM), 0.2)
    both, h = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))), 1e-5
    _, gradients = both(*at)
    for i, gradient in enumerate(gradients):
        direction = normal(10 + i, *np.shape(at[i])) if np.ndim(at[i]) else 1.0
        sides = [both(*at[:i], at[i] + s * h * direction, *at[i + 1 :])[0] for s in (1, -1)]
        # Truncation h^2; the support stays for steps this short.
        assert np.sum(gradient * direction) == pytest.approx(
            float(sides[0] - sides[1]) / (2 * h), rel=1e-6
        )
    forward = jax.jit(lambda lam: jax.jvp(lambda l: loss(D, y, l, 0.2), (lam,), (1.0,))[1])(LAM)
    assert forward == pytest.approx(jnp.sum(gradients[2]))


@pytest.mark.slow
def test_implicit_derivatives_are_those_of_many_steps():
    """Unrolled, FISTA has the derivative of its limit once the support is found."""

    def implicit(D, y, lam):
        return jnp.sum(jnp.sin(pursuit.lasso(D, y, lam, tol=1e-14).x))

    def unrolled(D, y, lam):
        return jnp.sum(jnp.sin(pursuit.fista(D, y, lam, tol=None, max_steps=2000).x))

    for ours, theirs in zip(*(jax.grad(f, (0, 1, 2))(D, y, LAM) for f in (implicit, unrolled))):
        assert ours == pytest.approx(np.asarray(theirs), rel=1e-7, abs=1e-9)


@pytest.mark.slow
def test_derivatives_where_the_atoms_of_the_support_depend():
    """Six atoms in four dimensions without a penalty: x is the least norm code, as it begins at 0.

    The derivative of x . c is that of the pseudoinverse, though c is not in the range of D'.
    """
    A, signal, c = normal(14, 4, 6), normal(15, 4), normal(16, 6)
    slope = jax.grad(lambda y: jnp.vdot(pursuit.lasso(A, y, 0.0, tol=1e-12).x, c))(signal)
    assert slope == pytest.approx(np.linalg.pinv(A).T @ c, abs=1e-9)


@pytest.mark.slow
def test_derivatives_of_a_structured_dictionary_and_of_a_batch():
    bank, Y = normal(11, 3, 1, 4), normal(12, 2, 12)

    def loss(filters):
        C = dictionaries.Conv(filters, 12)
        x = jax.vmap(lambda y: pursuit.lasso(C, y, ratio=0.1, tol=1e-14).x)(Y)
        return jnp.sum(x**2)

    slope = jnp.vdot(jax.grad(loss)(bank), normal(13, *bank.shape))
    sides = [loss(bank + s * 1e-5 * normal(13, *bank.shape)) for s in (1, -1)]
    assert slope == pytest.approx(float(sides[0] - sides[1]) / 2e-5, rel=1e-5)


# The path.


@pytest.mark.slow
def test_the_path_is_that_of_least_angles():
    alphas, _, codes = lars_path(D, y, method="lasso")
    path = pursuit.lasso_path(D, y, alphas[:-1] * M, tol=1e-13)
    assert path.converged.all() and path.x == pytest.approx(codes.T[:-1], abs=1e-6)


def test_the_path_is_a_sequence_of_solutions():
    ratios = np.array([1.0, 0.5, 0.2, 0.1])
    path = pursuit.lasso_path(D, y, ratio=ratios, tol=1e-13)
    alone = pursuit.lasso_batch(D, np.tile(y, (4, 1)), ratio=ratios[:, None], tol=1e-13)
    assert path.x == pytest.approx(np.asarray(alone.x), abs=1e-9)
    assert path.residual == pytest.approx(np.asarray(alone.residual), abs=1e-9)
    assert path.converged.all() and path.lam == pytest.approx(ratios * np.abs(D.T @ y).max())
    for lam, n in (((), 50), (([],), 0)):
        shape = jax.eval_shape(lambda y, lam=lam: pursuit.lasso_path(D, y, *lam), y).x.shape
        assert shape == (n, N)


def test_the_least_penalty_of_the_code_0_and_that_of_the_paper_have_their_values():
    products = D.T @ y
    assert pursuit.lam_max(D, y) == pytest.approx(np.abs(products).max())
    assert pursuit.lam_max(D, y, nonnegative=True) == pytest.approx(max(products.max(), 0))
    assert pursuit.lam_max(np.abs(D), -np.abs(y), nonnegative=True) == 0
    with pytest.raises(ValueError, match="lam_max: lam, about 1e4.*, leaves the range of float32"):
        pursuit.lam_max(np.float32(1e20) * D.astype(np.float32), np.float32(1e20 * y))
    assert pursuit.lam_of_paper(0.2) == pytest.approx(2.5)


def test_the_step_is_of_the_squared_norm_where_this_is_in_range():
    assert pursuit.lipschitz(D, "caller") == pytest.approx(np.linalg.norm(D, 2) ** 2)
    for c, words in ((0, "D is zero"), (1e30, "norm.D. is .* leaves the range of float32")):
        with pytest.raises(ValueError, match=f"^caller: {words}"):
            pursuit.lipschitz(np.float32(c) * D.astype(np.float32), "caller")
    least = np.finfo(np.float32).tiny  # the least normal number is in range
    refuse_lost(least, np.float32(1), -126, "caller")
    with pytest.raises(ValueError, match="caller: lam, about 1e-38, leaves the range of float32"):
        refuse_lost(least / 2, np.float32(0.5), -126, "caller")


def test_a_ratio_whose_penalty_leaves_the_range_is_refused():
    with pytest.raises(ValueError, match="lasso_path: lam, about 1e-309, leaves the range of"):
        pursuit.lasso_path(D, y / np.abs(D.T @ y).max() * 1e-307, ratio=[1.0, 0.01])
