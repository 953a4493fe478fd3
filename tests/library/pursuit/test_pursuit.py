"""ISTA and FISTA against the theory of the LASSO, an exact solution, and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled import activations, dictionaries, pursuit

EPS = np.finfo(np.float64).eps
SOLVERS = [pursuit.ista, pursuit.fista]
M, N = 15, 30


def unit(D):
    return D / np.linalg.norm(D, axis=0)


def problem(seed, m=M, d=N, share=0.2):
    """D, a noisy signal of three atoms, and a penalty that is `share` of the largest useful one."""
    rng = np.random.default_rng(seed)
    D = unit(rng.normal(size=(m, d)))
    y = D[:, :3] @ rng.normal(size=3) + 0.1 * rng.normal(size=m)
    return D, y, share * np.abs(D.T @ y).max()


def objective(D, y, x, lam):
    return np.sum((y - D @ x) ** 2) / 2 + np.sum(lam * np.abs(x))


@jax.jit
def far(D, y, lam):
    return pursuit.fista(D, y, lam, tol=1e-13, max_steps=100_000).x


def exact(D, y, lam):
    """The solution from its support and signs by a linear solve, checked to be optimal."""
    x = np.asarray(far(D, y, lam))
    S = np.abs(x) > 1e-6 * np.abs(x).max()
    signs = np.sign(x[S])
    A = D[:, S]
    solution = np.zeros(D.shape[1])
    solution[S] = np.linalg.solve(A.T @ A, A.T @ y - lam * signs)
    slack = D.T @ (y - D @ solution)
    assert (np.sign(solution[S]) == signs).all()
    assert (
        np.abs(slack[S] - lam * signs).max() < 1e-12 and np.abs(slack[~S]).max() < lam
    )  # so it is the only one
    return solution


def iterates(solver, D, y, lam, steps, **options):
    """The codes after 1..steps steps, by the solver alone."""
    run = jax.jit(lambda n: solver(D, y, lam, tol=None, max_steps=n, **options).x, static_argnums=0)
    return np.stack([np.asarray(run(n)) for n in steps])


def path(step, state, steps):
    """The codes after every step of a `step` function."""
    return np.asarray(jax.lax.scan(lambda s, _: (step(s),) * 2, state, length=steps)[1].x)


# Rates.


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_ista_never_raises_the_objective_and_obeys_its_rate(seed):
    D, y, lam = problem(seed)
    L = float(dictionaries.spectral_norm(D)) ** 2
    codes = path(
        lambda s: pursuit.State(pursuit.ista_step(D, y, s.x, 1 / L, lam / L)),
        pursuit.State(jnp.zeros(N)),
        300,
    )
    F = np.array([objective(D, y, x, lam) for x in codes])
    start = np.append(np.sum(y**2) / 2, F)
    assert (
        np.diff(start) <= 10 * EPS * start[0]
    ).all()  # an objective is a sum of some 45 rounded terms
    solution = exact(D, y, lam)
    k = np.arange(1, 301)
    assert (F - objective(D, y, solution, lam) <= L * np.sum(solution**2) / (2 * k) + 1e-14).all()
    # The step is the solver's.
    assert iterates(pursuit.ista, D, y, lam, [1, 17]) == pytest.approx(codes[[0, 16]], abs=50 * EPS)


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(2))
def test_fista_without_restart_obeys_its_rate_at_every_step(seed):
    D, y, lam = problem(seed, share=0.02)
    L = float(dictionaries.spectral_norm(D)) ** 2
    x = jnp.zeros(N)
    codes = path(
        lambda s: pursuit.fista_step(D, y, s, 1 / L, lam / L),
        pursuit.Momentum(x, x, jnp.ones(())),
        300,
    )
    solution = exact(D, y, lam)
    above = np.array([objective(D, y, x, lam) for x in codes]) - objective(D, y, solution, lam)
    k = np.arange(1, 301)
    assert (above <= 2 * L * np.sum(solution**2) / (k + 1) ** 2 + 1e-14).all()
    assert iterates(pursuit.fista, D, y, lam, [1, 25], restart=False) == pytest.approx(
        codes[[0, 24]], abs=1e-13
    )


@pytest.mark.slow
def test_restart_helps_where_momentum_overshoots():
    D, y, lam = problem(0, share=0.02)
    steps = [int(pursuit.fista(D, y, lam, tol=1e-8, restart=r).steps) for r in (True, False)]
    assert steps[0] < steps[1] < 10_000


def test_the_momentum_counter_restarts_when_it_points_uphill():
    D, y = np.eye(2), np.array([1.0, 0.0])
    step = jax.jit(lambda state: pursuit.fista_step(D, y, state, 1.0, 0.0, restart=True))
    state = pursuit.Momentum(np.array([2.0, 0.0]), np.array([3.0, 0.0]), 5.0)
    # From z = (3, 0) the step goes to (1, 0): z - x_new = (2, 0), x_new - x = (-1, 0): downhill, t
    # goes on.
    assert step(state).t == pytest.approx((1 + np.sqrt(101)) / 2)
    # From x = (0, 0): x_new - x = (1, 0), uphill: t = 1, no extrapolation.
    off = step(state._replace(x=np.zeros(2)))
    assert off.t == pytest.approx((1 + np.sqrt(5)) / 2)
    assert off.z.tolist() == off.x.tolist() == [1, 0]


def test_the_momentum_counter_goes_on_in_half_precision():
    """Its square would leave the range after 128 steps without a restart."""
    x, counter = np.ones(2, np.float16), np.float16(200)
    after = jax.jit(lambda state: pursuit.extrapolated(state, 2 * state.x, restart=False))
    state = after(pursuit.Momentum(x, x, counter))
    assert state.t == 200.5 and state.z == pytest.approx(3, abs=0.01)


# Certificates.


@pytest.mark.parametrize("share", [0.9, 0.2, 0.01])
def test_the_duality_gap_is_above_the_excess_of_any_code_and_vanishes_at_the_solution(share):
    D, y, lam = problem(4, share=share)
    solution, rng = exact(D, y, lam), np.random.default_rng(0)
    best = objective(D, y, solution, lam)
    gap = jax.jit(lambda x: pursuit.duality_gap(D, y, x, lam))
    for scale in (0.0, 1e-6, 1e-3, 1.0, 10.0):
        for x in (
            solution + scale * rng.normal(size=N),
            solution * (1 + scale),
            scale * rng.normal(size=N),
        ):
            # The two objectives are rounded: some 100 terms of size up to F.
            assert gap(x) >= objective(D, y, x, lam) - best - 100 * EPS * objective(D, y, x, lam)
    # D'r is lam to some M eps norm(y), times the entries of x.
    assert 0 <= gap(solution) <= M * EPS * np.linalg.norm(y) * np.abs(solution).sum()


def test_signals_of_rounding_beside_the_largest_are_negligible_and_zeros_are_not():
    signals = np.outer([1e3, 1e-20, 0, 1e-10], np.ones(4))
    assert pursuit.negligible(signals).tolist() == [False, True, False, False]
    assert pursuit.negligible(1e-30 * signals).tolist() == [False, True, False, False]


def test_the_duality_gap_by_its_definition_with_a_penalty_per_entry():
    D, y, lam = problem(5)
    weights = lam * np.random.default_rng(1).uniform(0.5, 2, N)
    x = np.random.default_rng(2).normal(size=N)
    r = y - D @ x
    nu = r * min(1, (weights / np.abs(D.T @ r)).min())
    expected = objective(D, y, x, weights) - (nu @ y - nu @ nu / 2)
    assert pursuit.duality_gap(D, y, x, weights) == pytest.approx(expected, rel=100 * EPS)


def test_the_objective_by_its_definition():
    D, y, lam = problem(5)
    x = np.random.default_rng(2).normal(size=N)
    for weights in (lam, lam * np.arange(N)):
        found = pursuit.lasso_objective(D, y, x, weights)
        assert found.shape == ()
        assert found == pytest.approx(objective(D, y, x, weights), rel=100 * EPS)


def test_the_objective_and_the_gap_take_one_weight_per_filter():
    bank = dictionaries.Conv(np.random.default_rng(0).normal(size=(2, 1, 3)), 8)
    y, x, weights = np.arange(8.0), np.linspace(-1, 1, 12), np.array([0.1, 0.3])
    for f in (pursuit.lasso_objective, pursuit.duality_gap):
        each = f(bank, y, x, np.repeat(weights, 6))
        assert f(bank, y, x, weights) == pytest.approx(float(each), rel=100 * EPS)


@pytest.mark.few(1)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(2))
def test_the_certificate_of_a_solution_is_true(solver, seed):
    D, y, lam = problem(seed)
    found = solver(D, y, lam, tol=1e-10)
    x, energy = np.asarray(found.x), np.sum(y**2) / 2
    assert found.converged and 0 <= found.gap <= 1e-10
    assert found.gap == pytest.approx(
        float(pursuit.duality_gap(D, y, x, lam)) / energy, abs=100 * EPS
    )
    assert found.residual == pytest.approx(np.linalg.norm(y - D @ x), rel=100 * EPS)
    assert found.steps % 10 == 0 and 0 < found.steps < 10_000
    # KKT: a gap g gives norm(D (x - x*))^2 <= 2 g, so unit atoms see |D'r| <= lam + sqrt(2 g).
    slack = D.T @ (y - D @ x)
    assert np.abs(slack).max() <= lam + np.sqrt(2 * 1e-10 * energy)
    # A gap of g leaves lam |x_i| - s x_i (D'r)_i <= g for every i: correlation lam with the sign of
    # x where x is large.
    large = np.abs(x) > 0.05
    assert slack[large] == pytest.approx(
        lam * np.sign(x[large]), abs=1e-10 * energy / 0.05 + np.sqrt(2 * 1e-10 * energy)
    )
    assert x == pytest.approx(
        exact(D, y, lam), abs=1e-3
    )  # strong convexity on the support, sqrt(2 g) / sigma_min


@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_scikit_learn(seed):
    from sklearn import linear_model

    D, y, lam = problem(seed, share=0.1)
    peer = linear_model.Lasso(alpha=lam / M, fit_intercept=False, tol=1e-14, max_iter=100_000)
    peer, found = peer.fit(D, y).coef_, np.asarray(far(D, y, lam))
    # Both within a gap of 1e-13 |y|^2 / 2: distance sqrt(1e-13) / sigma_min of the support.
    assert found == pytest.approx(peer, abs=1e-5)
    assert objective(D, y, found, lam) == pytest.approx(objective(D, y, peer, lam), rel=1e-12)


# Cases with a known answer.


@pytest.mark.slow
def test_orthonormal_atoms_are_solved_by_one_threshold():
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    y, lam = np.random.default_rng(1).normal(size=12), 0.3
    one = pursuit.threshold(Q, y, lam)
    expected = np.sign(Q.T @ y) * np.maximum(np.abs(Q.T @ y) - lam, 0)
    assert one.x == pytest.approx(expected, abs=12 * EPS)
    assert 0 <= one.gap <= 12 * 12 * EPS and one.converged and one.steps == 1
    assert one.residual == pytest.approx(np.linalg.norm(y - Q @ expected), rel=100 * EPS)
    for solver in SOLVERS:
        assert solver(Q, y, lam, tol=1e-12).x == pytest.approx(
            expected, abs=1e-5
        )  # sqrt of the gap


@pytest.mark.parametrize("size", [1e12, 1e14, 1e20, 1e30])
def test_the_gap_of_a_threshold_above_the_range_is_infinite(size):
    """Relative to norm(y)^2 / 2 it is near norm(D)^4."""
    D, y, lam = (np.asarray(v, np.float32) for v in problem(0))
    found = pursuit.threshold(np.float32(size) * D, y, np.float32(size) * lam)
    assert np.isfinite(found.x).all() and found.gap == np.inf and not found.converged
    assert found.residual == np.inf if size > 1e19 else np.isfinite(found.residual)
    assert np.isnan(pursuit.threshold(D, y * np.float32(np.nan), lam).gap)


def test_a_picture_has_the_code_of_its_samples_on_its_grid():
    bank = dictionaries.Conv(np.random.default_rng(0).normal(size=(2, 1, 2, 2)), (3, 4))
    picture, theta = np.random.default_rng(1).normal(size=(3, 4)), np.array([0.2, 0.9])
    matrix = np.asarray(jax.jit(dictionaries.dense)(bank))
    products = (picture.ravel() @ matrix).reshape(bank.code_grid)
    shrunk = np.maximum(np.abs(products) - theta[:, None, None], 0)
    found = pursuit.threshold(bank, picture, theta)
    np.testing.assert_allclose(found.x, np.sign(products) * shrunk, atol=20 * EPS)


@pytest.mark.slow
def test_threshold_takes_one_value_per_atom_and_per_filter():
    D, y, _ = problem(0)
    theta = np.linspace(0, 1, N)
    c = D.T @ y
    assert pursuit.threshold(D, y, theta).x == pytest.approx(
        np.sign(c) * np.maximum(np.abs(c) - theta, 0), abs=20 * EPS
    )
    bank = dictionaries.Conv(
        np.random.default_rng(0).normal(size=(2, 1, 3)), M, boundary="circular"
    )
    each, repeated = (
        pursuit.threshold(bank, y, t) for t in (np.array([0.1, 0.9]), np.repeat([0.1, 0.9], M))
    )
    assert each.x.tolist() == repeated.x.tolist() and each.gap == repeated.gap
    assert not pursuit.threshold(D, y, 0.1).converged  # a frame is not orthonormal


@pytest.mark.few(1)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_large_penalty_gives_zero_at_once(solver):
    """Also at the largest limit of the steps. A zero signal has the code 0 at any penalty."""
    D, y, _ = problem(1)
    top = np.abs(y @ D).max()
    for factor in (1 + EPS, 2):
        found = solver(D, y, factor * top, max_steps=2**31 - 1)
        assert not np.any(found.x) and found.gap == 0 and found.converged and found.steps == 0
    assert np.any(solver(D, y, 0.99 * top, max_steps=2**31 - 1).x)
    silent = solver(D, 0 * y, 0.0 * top, max_steps=2**31 - 1)
    assert silent.converged and not np.any(silent.x) and silent.gap == silent.residual == 0


@pytest.mark.few(1)
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_penalty_gives_the_least_squares_residual(solver):
    D, y, _ = problem(2)
    found = solver(D, y, 0.0, tol=1e-12)
    assert found.converged
    # The gap of lam = 0 is the energy of the residual.
    assert found.gap == pytest.approx(float(found.residual) ** 2 / np.sum(y**2), rel=1e-9)
    # From 0 the iterates stay in the row space, so the limit is the least-norm solution.
    assert found.x == pytest.approx(
        np.linalg.pinv(D) @ y, abs=1e-5
    )  # sqrt of the gap over sigma_min


@pytest.mark.parametrize("solver", SOLVERS)
def test_solutions_follow_signs_permutations_and_scales(solver):
    D, y, lam = problem(3)
    solve = jax.jit(lambda D, y, lam: solver(D, y, lam, tol=None, max_steps=60).x)
    x = np.asarray(solve(D, y, lam))
    rng = np.random.default_rng(0)
    signs, order = rng.choice([-1.0, 1.0], N), rng.permutation(N)
    # The same 60 steps in exact arithmetic: only the order of sums differs.
    assert solve(D * signs, y, lam) == pytest.approx(x * signs, abs=1e-13)
    assert solve(D[:, order], y, lam) == pytest.approx(x[order], abs=1e-13)
    assert solve(D, -y, lam) == pytest.approx(-x, abs=1e-13)
    assert solve(D, 8 * y, 8 * lam) == pytest.approx(8 * x, abs=1e-12)
    assert solve(8 * D, y, 8 * lam) == pytest.approx(x / 8, abs=1e-13)


# Fields and transformations.


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_and_convergence_are_reported_as_they_are(solver):
    D, y, lam = problem(0)
    few = solver(D, y, lam, tol=1e-12, max_steps=15)
    assert (
        few.steps == 20 and not few.converged and few.gap > 1e-12
    )  # rounded up to a multiple of 10
    assert few.x.tolist() == solver(D, y, lam, tol=None, max_steps=20).x.tolist()
    none = solver(D, y, lam, max_steps=0)
    assert not none.x.any() and none.steps == 0 and not none.converged
    assert none.residual == pytest.approx(np.linalg.norm(y))
    fixed = solver(D, y, lam, tol=None, max_steps=7)
    assert fixed.steps == 7 and fixed.gap > 0 and not fixed.converged
    loose, tight = solver(D, y, lam, tol=1e-2), solver(D, y, lam, tol=1e-8)
    assert loose.steps < tight.steps and loose.gap <= 1e-2 and tight.gap <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_fixed_number_of_steps_is_differentiable_in_everything(solver):
    D, y, lam = problem(6)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=N)

    @jax.jit
    def loss(D, y, lam):
        return jnp.vdot(solver(D, y, lam, tol=None, max_steps=40).x, weight)

    at, along = (D, y, lam), (rng.normal(size=D.shape), rng.normal(size=M), 1.0)
    slopes = [
        float(jnp.vdot(g, v))
        for g, v in zip(jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*at), along)
    ]
    h = 1e-6  # truncation h^2 times third derivatives below 1e4, rounding EPS / h = 2e-10
    for i, slope in enumerate(slopes):
        moved = [
            [a + sign * h * v if j == i else a for j, (a, v) in enumerate(zip(at, along))]
            for sign in (1, -1)
        ]
        assert slope == pytest.approx(
            float(loss(*moved[0]) - loss(*moved[1])) / (2 * h), rel=1e-6, abs=1e-8
        )


@pytest.mark.slow
def test_the_gradient_is_finite_where_singular_values_coincide():
    D = np.asarray(dictionaries.identity_hadamard(4))
    gradient = jax.grad(
        lambda D: jnp.sum(pursuit.ista(D, np.ones(4), 0.1, tol=None, max_steps=5).x)
    )(D)
    assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.slow
@pytest.mark.parametrize("k", [-70, 70])
def test_an_activation_without_units_has_the_same_certificate_at_any_scale(k):
    """The squares of these signals leave the range of float32."""
    D, y, lam = (np.float32(v) for v in problem(0))
    rho = activations.leaky_relu(0.1)
    for solve in (
        lambda y, lam: pursuit.threshold(D, y, lam, activation=rho),
        lambda y, lam: pursuit.ista(D, y, lam, activation=rho, max_steps=20),
        lambda y, lam: pursuit.fista(D, y, lam, activation=rho, max_steps=20),
    ):
        plain, found = (jax.jit(solve)(c * y, c * lam) for c in (np.float32(1), np.float32(2**k)))
        assert not found.converged and found.gap == plain.gap > 1e-3
        assert (found.x == plain.x * 2.0**k).all() and found.steps == plain.steps


# Errors.
