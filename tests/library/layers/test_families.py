"""The learned families: each equals its formula in numpy, and reduces to a simpler one."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import Fault, rows
from registry import _unit as unit
from scipy import integrate, stats

import unrolled as ur
from unrolled import layers
from unrolled.layers import Unrolled, Weights

M, N, K, LAM = 6, 10, 4, 0.1
# K steps of sums of M + N products of numbers near 1, each rounded, twice.
CLOSE = 2 * (M + N) * K * np.finfo(float).eps
assert_close = partial(chex.assert_trees_all_close, rtol=0, atol=CLOSE)
SUPPORT = (0.1, 0.3)


@pytest.fixture(scope="module")
def problem():
    return np.array(unit(2, M, N)), np.random.default_rng(4).normal(size=M)


def shrink(u, theta):
    return np.sign(u) * np.maximum(np.abs(u) - theta, 0)


def moved(params, seed=0):
    """Params with every entry times its own number near 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf) * rng.uniform(0.8, 1.2, leaf.shape), params)


def steps_of(params):
    steps = jax.tree.map(np.asarray, params.steps)
    return [jax.tree.map(lambda leaf, k=k: leaf[k], steps) for k in range(len(steps[0]))]


@pytest.mark.few(2)
@pytest.mark.parametrize("selecting, plain", [("lista_ss", "lista"), ("lista_cpss", "lista_cp")])
@pytest.mark.parametrize("tied", [True, False])
def test_support_selection_makes_ss_and_cpss(problem, selecting, plain, tied):
    """They are families of their own, with the params and the codes of the plain one."""
    D, y = problem
    ours, theirs = getattr(layers, selecting), getattr(layers, plain)
    assert layers.FAMILIES[selecting] is ours and issubclass(ours, theirs)
    assert ours(3).schedule == pytest.approx((0.012, 0.024, 0.036))
    params = moved(theirs(K, tied=tied).init(None, D))
    found = ours(K, tied=tied, support=SUPPORT).iterates(params, D, y)
    expected = theirs(K, tied=tied, support=SUPPORT).iterates(params, D, y)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_params_may_be_plain_numbers(problem):
    D, y = (np.asarray(v, np.float32) for v in problem)
    plain, arrays = (
        layers.ista(2).apply(Unrolled(None, (layers.StepAndThreshold(*p),) * 2), D, y)
        for p in ((0.25, 0.125), (np.float32(0.25), np.float32(0.125)))
    )
    assert plain.dtype == np.float32 and np.any(plain)
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(arrays))


def test_options_may_be_numbers_of_any_library():
    assert layers.tista(K, probability=jnp.asarray(0.5)) is layers.tista(K, probability=0.5)
    assert layers.lista_ss(K, support=np.array(SUPPORT)) is layers.lista_ss(K, support=SUPPORT)


@pytest.mark.slow
def test_tilista_is_alista_with_weights_that_move(problem):
    D, y = problem
    params = moved(layers.alista(K).init(None, D))
    trained = Unrolled(Weights(params.shared.W), params.steps)
    for support in (None, SUPPORT):
        ours = layers.tilista(K, support=support).iterates(trained, D, y)
        assert_close(ours, layers.alista(K, support=support).iterates(params, D, y))
    gradient = jax.grad(lambda p: jnp.sum(layers.tilista(K).apply(p, D, y)))(trained)
    assert np.any(np.asarray(gradient.shared.W))


@pytest.mark.slow
def test_robust_alista_is_alista_of_the_dictionary_in_hand(problem):
    D, y = problem
    steps = moved(layers.robust_alista(K).init(None, D)).steps
    for E in (D, np.array(ur.dictionaries.gaussian(jax.random.key(9), M, N))):
        alista = layers.alista(K).init(None, E)._replace(steps=steps)
        assert_close(
            layers.robust_alista(K).iterates(Unrolled(None, steps), E, y),
            layers.alista(K).iterates(alista, E, y),
        )


def test_step_lista_is_ista_whose_thresholds_follow_its_steps(problem):
    D, y = problem
    layer = layers.step_lista(K, lam=LAM)
    params = moved(layer.init(None, D))
    gamma = params.steps.gamma
    ista = Unrolled(None, layers.StepAndThreshold(gamma, gamma * LAM))
    assert_close(layer.iterates(params, D, y), layers.ista(K).iterates(ista, D, y))


def test_glista_is_its_formula_and_without_gates_lista_cpss(problem):
    D, y = problem
    layer = layers.glista(K, support=SUPPORT)
    params = moved(layer.init(None, D))
    plain = Unrolled(None, layers.WeightsAndThreshold(params.steps.W, params.steps.theta))
    assert_close(
        layer.iterates(params, D, y), layers.lista_cp(K, support=SUPPORT).iterates(plain, D, y)
    )
    steps = params.steps._replace(gain=np.linspace(0.3, 0.6, K), overshoot=np.linspace(0.2, 0.5, K))
    x, shrunk_by, path = np.zeros(N), np.zeros(N), []
    for k, p in enumerate(steps_of(Unrolled(None, steps))):
        u = x * (1 + p.gain * np.maximum(1 - p.slope * np.abs(x), 0))
        v = u + p.W.T @ (y - D @ u)
        count = round((k + 1) * 0.1 * N) if k < 2 else 3
        passes = (np.abs(v) > np.sort(np.abs(v))[-count - 1]) & (np.abs(v) > p.theta)
        end = np.where(passes, v, shrink(v, p.theta))
        x = x + (1 + p.overshoot * shrunk_by / (np.abs(end - x) + 0.1)) * (end - x)
        shrunk_by = np.where(passes, 0, p.theta)
        path.append(x)
    assert_close(layer.iterates(Unrolled(None, steps), D, y), np.array(path))


def test_lfista_starts_as_fista_and_without_memory_is_lista(problem):
    D, y = problem
    layer = layers.lfista(K, lam=LAM)
    params = layer.init(None, D)
    assert_close(
        layer.iterates(params, D, y), layers.fista(K).iterates(ur.analytic.ista(D, LAM, K), D, y)
    )
    params = moved(params)
    forgetful = params._replace(steps=params.steps._replace(M=np.zeros((K, N, N))))
    lista = Unrolled(
        None, layers.MatricesAndThreshold(params.steps.B, params.steps.S, params.steps.theta)
    )
    assert_close(layer.iterates(forgetful, D, y), layers.lista(K, tied=False).iterates(lista, D, y))


def least(D, y, path, lam):
    """Of 0 and the codes up to each step, the one with the least objective."""
    codes = [np.zeros(N), *np.asarray(path)]
    F = [np.sum((y - D @ x) ** 2) / 2 + lam * np.abs(x).sum() for x in codes]
    return np.array([codes[int(np.argmin(F[: k + 1]))] for k in range(1, len(codes))])


def test_lfista_cp_is_its_formula_and_starts_as_fista(problem):
    D, y = problem
    layer = layers.lfista_cp(K, lam=LAM)
    params = layer.init(None, D)
    assert params.steps.theta.shape == (K, N)
    fista = layers.fista(K).iterates(ur.analytic.ista(D, LAM, K), D, y)
    assert_close(layer.iterates(params, D, y), least(D, y, fista, LAM))
    params = moved(params)
    x, before, path = np.zeros(N), np.zeros(N), []
    for p in steps_of(params):
        z = x + p.beta * (x - before)
        x, before = shrink(z + p.W.T @ (y - D @ z), p.theta), x
        path.append(x)
    assert_close(layer.iterates(params, D, y), least(D, y, path, LAM))


def test_without_momentum_lfista_cp_is_the_best_of_lista_cp(problem):
    D, y = problem
    layer = layers.lfista_cp(K, lam=LAM)
    steps = moved(layer.init(None, D)).steps
    forgetful = Unrolled(None, steps._replace(beta=np.zeros(K)))
    untied = Unrolled(None, layers.WeightsAndThreshold(steps.W, steps.theta))
    path = layers.lista_cp(K, tied=False).iterates(untied, D, y)
    assert_close(layer.iterates(forgetful, D, y), least(D, y, path, LAM))


def test_codes_of_lfista_cp_are_never_worse_than_zero_codes(problem):
    """Also with weights that expand without bound; the code is then that of an earlier step."""
    D, y = problem
    layer = layers.lfista_cp(2 * K, lam=LAM)
    steps = layer.init(None, D).steps
    good = np.asarray(layer.iterates(Unrolled(None, steps), D, y))[K - 1]
    W = np.array(steps.W)
    away = Unrolled(None, steps._replace(W=-W))
    W[K:] *= 1e200
    wild = Unrolled(None, steps._replace(W=W))
    assert_close(layer.apply(wild, D, y), good)
    assert_close(layer.apply(away, D, y), np.zeros(N))
    assert np.isnan(layer.apply(wild, D, y * np.nan)).all()


def test_lamp_is_its_formula(problem):
    D, y = problem
    layer = layers.lamp(K, alpha=0.8)
    params = moved(layer.init(None, D))
    x, v, path = np.zeros(N), np.zeros(M), []
    for p in steps_of(params):
        v = y - D @ x + np.count_nonzero(x) / M * v
        x = shrink(x + p.W.T @ v, p.alpha * np.linalg.norm(v) / np.sqrt(M))
        path.append(x)
    assert 0 < np.count_nonzero(path[-2]) < N
    # The memory term carries rounding from step to step.
    assert_close(layer.iterates(params, D, y), np.array(path), atol=10 * CLOSE)


def test_lamp_starts_as_amp_whatever_the_scale_of_the_dictionary(problem):
    D, y = problem
    layer = layers.lamp(K, alpha=0.3)
    ours, scaled = (layer.apply(layer.init(None, c * D), c * D, c * y) for c in (1, 3))
    assert_close(scaled, ours, atol=10 * CLOSE)


def test_lamp_bg_is_its_formula_whatever_the_scale_of_the_dictionary(problem):
    D, y = problem
    layer = layers.lamp_bg(K, probability=0.3, variance=2.0)
    params = moved(layer.init(None, D))
    x, v, memory, path, h = np.zeros(N), np.zeros(M), 0.0, [], 1e-6
    for p in steps_of(params):
        v = y - D @ x + memory * v
        tau2 = p.alpha**2 * v @ v / M
        u = x + p.W.T @ v

        def eta(u, tau2=tau2):
            slab = 0.3 * stats.norm(scale=np.sqrt(2 + tau2)).pdf(u)
            return u * 2 / (2 + tau2) * slab / (0.7 * stats.norm(scale=np.sqrt(tau2)).pdf(u) + slab)

        x, memory = eta(u), np.sum(eta(u + h) - eta(u - h)) / (2 * h) / M
        path.append(x)
    # Central differences truncate h^2 and round 1e-16 / h, which later steps carry on.
    assert_close(layer.iterates(params, D, y), np.array(path), atol=1e-8)
    ours, scaled = (layer.apply(layer.init(None, c * D), c * D, c * y) for c in (1, 3))
    assert_close(scaled, ours, atol=100 * CLOSE)


@pytest.mark.parametrize("r", [-2.0, 0.3, 1.1])
def test_the_bernoulli_gaussian_mean_is_the_integral(r):
    probability, variance, tau2 = 0.1, 1.7, 0.04
    noise = stats.norm(scale=np.sqrt(tau2)).pdf
    slab = stats.norm(scale=np.sqrt(variance)).pdf
    mass, mean = (
        integrate.quad(
            lambda x, f=f: f(x) * probability * slab(x) * noise(r - x),
            -9,
            9,
            epsabs=1e-13,
            points=[r],
        )[0]
        for f in (lambda x: 1.0, lambda x: x)
    )
    expected = mean / (mass + (1 - probability) * noise(r))
    ours = layers.bernoulli_gaussian_mean(r, tau2, probability=probability, variance=variance)
    # The tolerance of the quadrature over a mass of 1e-3.
    assert float(ours) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    "r, tau2", [(2e3, 1e3), (1e9, 1e8), (1e20, 1e10), (1e25, 1e30), (3.0, 1e-3), (1e-20, 1e-10)]
)
def test_the_bernoulli_gaussian_mean_far_off_its_prior(r, tau2):
    """r^2 / 2 (1 / tau2 - 1 / (variance + tau2)) cancels and overflows; ours does not."""
    prior = dict(probability=0.1, variance=1.0)
    found = layers.bernoulli_gaussian_mean(np.float32(r), np.float32(tau2), **prior)
    expected = layers.bernoulli_gaussian_mean(np.float64(r), np.float64(tau2), **prior)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_gradients_of_na_alista_in_the_signal_have_no_scale(problem):
    layer = layers.na_alista(K, units=3, threshold=0.1)
    params = layer.init(0, problem[0])
    D, y, params = jax.tree.map(lambda v: np.asarray(v, np.float32), (*problem, params))
    params = params._replace(shared=params.shared._replace(kernel=10 * params.shared.kernel))
    gradient = jax.jit(jax.grad(lambda y: jnp.sum(layer.apply(params, D, y)[:3])))
    plain = gradient(y)
    assert plain.dtype == np.float32 and np.any(plain)
    for scale in np.float32([1e-30, 1e-19, 1e20, 1e30]):
        np.testing.assert_allclose(gradient(y * scale), plain, rtol=1e-3, atol=1e-5)


@pytest.mark.few(1)
@pytest.mark.parametrize("m, plain", [(20, 1.5), (15, 2.0), (6, 2.0), (40, 1.0)])
def test_tista_starts_unbiased(m, plain):
    """gamma = d / m, and 1 for more rows than atoms; beyond 2 only with the correction."""
    D = ur.dictionaries.gaussian(0, m, 30)
    for onsager, gamma in ((False, plain), (True, max(30 / m, 1.0))):
        params = layers.tista(2, onsager=onsager).init(None, D)
        np.testing.assert_allclose(params.steps.gamma, gamma, rtol=1e-15)
    if m <= 30:  # r = x + gamma D^+ D (x* - x): the mean of its slope in x* is 1
        P = 30 / m * np.asarray(params.shared.W).T @ np.asarray(D)
        assert np.trace(P) / 30 == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("onsager", [False, True])
def test_tista_is_its_formula(problem, onsager):
    D, y = problem
    noise = 0.01
    layer = layers.tista(K, probability=0.2, variance=1.5, noise=noise, onsager=onsager)
    params = moved(layer.init(None, D).steps)
    W = np.linalg.pinv(D).T
    z, path = np.zeros(N), []
    for gamma in np.asarray(params.gamma):
        r = y - D @ z
        v = max((r @ r - M * noise) / np.sum(D**2), 1e-9)
        tau2 = v / N * (N + (gamma**2 - 2 * gamma) * M) + gamma**2 * noise / N * np.sum(W**2)
        u = z + gamma * W.T @ r
        slab = 0.2 * stats.norm(scale=np.sqrt(1.5 + tau2)).pdf(u)
        share = slab / (0.8 * stats.norm(scale=np.sqrt(tau2)).pdf(u) + slab)
        x, k = 1.5 / (1.5 + tau2) * share * u, 1.5 / (1.5 + tau2)
        a = min(np.mean(k * share + x * u * k / tau2 * (1 - share)), 0.9)
        z = (x - a * u) / (1 - a) if onsager else x
        path.append(x)
    ours = layer.iterates(Unrolled(layers.Fixed(jnp.asarray(W)), params), D, y)
    # The odds are exponentials of r^2 / tau2, here below 1e3, which magnify rounding as much.
    assert_close(ours, np.array(path), atol=1e4 * CLOSE)


def test_the_correction_of_tista_sees_entries_that_the_least_error_hides():
    """An orthonormal D leaves no error, so that tau is the square root of the least: 3e-5, 3e-7."""
    y = jnp.asarray([1.0, 1e-5])
    for onsager, least in ((False, 0.0), (True, 1e-5)):
        layer = layers.tista(1, onsager=onsager)
        x = layer.apply(layer.init(None, jnp.eye(2)), jnp.eye(2), y)
        assert_close(x, np.array([1.0, least]), atol=1e-8)


def test_liht_keeps_the_largest_and_starts_as_iterative_hard_thresholding(problem):
    D, y = problem
    layer, L, x = layers.liht(K, sparsity=3), np.linalg.norm(D, 2) ** 2, np.zeros(N)
    for _ in range(K):
        u = x + D.T @ (y - D @ x) / L
        x = np.where(np.abs(u) >= np.sort(np.abs(u))[-3], u, 0)
    found = layer.apply(layer.init(None, D), D, y)
    assert_close(found, x)
    assert np.count_nonzero(found) == 3
    every = layers.liht(1, sparsity=99)  # above d: everything is kept
    assert_close(every.apply(every.init(None, D), D, y), D.T @ y / L)


def test_ada_lista_serves_a_dictionary_per_signal(problem):
    D, y = problem
    layer = layers.ada_lista(K, lam=LAM)
    params = layer.init(None, D)
    assert_close(
        layer.iterates(params, D, y), layers.ista(K).iterates(ur.analytic.ista(D, LAM, K), D, y)
    )
    params = moved(params)
    Ds, Y = np.stack([D, D[:, ::-1]]), np.stack([y, 2 * y])
    P, Q, x = *(np.asarray(a) for a in params.shared), np.zeros(N)
    for p in steps_of(params):
        x = shrink(x + p.gamma * Ds[1].T @ (P.T @ Y[1] - Q.T @ Q @ Ds[1] @ x), p.theta)
    together = np.asarray(jax.jit(jax.vmap(layer.apply, (None, 0, 0)))(params, Ds, Y))
    assert_close(together[1], x)
    assert_close(together[0], layer.apply(params, D, y))


@pytest.mark.slow
def test_na_alista_reads_step_and_threshold_from_an_lstm(problem):
    D, y = problem
    layer = layers.na_alista(K, units=3, threshold=0.4)
    params = moved(layer.init(jax.random.key(0), D))
    p = jax.tree.map(np.asarray, params.shared)
    p = p._replace(
        bias=np.linspace(-1, 1, 12), kernel=3 * p.kernel, middle_bias=np.array([0.3, -0.2, 0.4])
    )
    (W,), x, hidden, memory, path = p.analytic, np.zeros(N), np.zeros(3), np.zeros(3), []

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    for _ in range(K):
        r = y - D @ x
        g = W.T @ r
        sizes = np.array([np.abs(r).mean(), np.abs(g).mean()])
        write, keep, candidate, show = np.split(
            np.concatenate([np.log(sizes / np.abs(y).mean()), hidden]) @ p.kernel + p.bias, 4
        )
        memory = sigmoid(keep) * memory + sigmoid(write) * np.tanh(candidate)
        hidden = sigmoid(show) * np.tanh(memory)
        out = np.maximum(memory @ p.middle + p.middle_bias, 0) @ p.head + p.head_bias
        gamma, tau = np.log1p(np.exp(out))
        x = shrink(x + gamma * g, tau * sizes[1])
        path.append(x)
    assert_close(layer.iterates(Unrolled(p, None), D, y), np.array(path), atol=10 * CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["code", "residual"])
@pytest.mark.parametrize("onsager", [False, True])
def test_alista_at_is_its_formula(problem, by, onsager):
    D, y = problem
    layer = layers.alista_at(K, by=by, onsager=onsager, support=SUPPORT)
    params = moved(layer.init(None, D))
    params = params._replace(steps=params.steps._replace(beta=jnp.linspace(0.4, 0.7, K)))
    W, x, z, path = np.asarray(params.shared.W), np.zeros(N), np.zeros(N), []
    for k, p in enumerate(steps_of(params)):
        r = y - D @ z
        u = z + p.gamma * W.T @ r
        theta = p.theta * np.abs(W.T @ r if by == "code" else r).mean()
        count = min(k + 1, 3)
        passes = (np.abs(u) > np.sort(np.abs(u))[-count - 1]) & (np.abs(u) > theta)
        before, x = x, np.where(passes, u, shrink(u, theta))
        a = np.count_nonzero(x) / N
        z = x + p.beta * (a / (1 - a) * (x - u) if onsager else x - before)
        path.append(x)
    assert 0 < np.count_nonzero(path[-1]) < N
    assert_close(layer.iterates(params, D, y), np.array(path), atol=10 * CLOSE)
    assert int(layer.run(params, D, y)[0].refused) == 0


@pytest.mark.slow
def test_alista_at_takes_no_step_that_leaves_more(problem):
    """The second step is ten times too long: the third begins where the second did."""
    D, y = problem
    layer = layers.alista_at(3, support=None)
    params = layer.init(None, D)
    gamma = params.steps.gamma * jnp.asarray([1.0, 10.0, 1.0])
    state, path = layer.run(params._replace(steps=params.steps._replace(gamma=gamma)), D, y)
    assert int(state.refused) == 1
    np.testing.assert_array_equal(path[1], path[0])
    assert_close(path[2], layers.alista_at(2, support=None).apply(_first(params, 2), D, y))
    worse = params._replace(steps=params.steps._replace(gamma=10 * gamma))
    state, path = layer.run(worse, D, y)  # where every step leaves more than y there is no code
    assert int(state.refused) == 3 and not np.any(path)


@pytest.mark.few(1)
@pytest.mark.parametrize("em", [False, True])
@pytest.mark.parametrize("variance", [None, 2.0])
def test_vamp_bg_is_its_formula(problem, em, variance):
    """With an inverse in place of the singular values, and in the units of y and D."""
    D, y = problem
    layer = layers.vamp_bg(
        K, em=em, probability=0.3, variance=variance, noise_ratio=0.03, damping=0.2
    )
    params = layer.init(None, D)
    steps = moved(params.steps)
    power = y @ y / np.sum(D**2)
    r, tau, share, limit, path, x = np.zeros(N), power, 1.0, y @ y, [], np.zeros(N)
    for k, p in enumerate(steps_of(Unrolled(None, steps))):
        if k == 0 or not em:
            probability = 1 / (1 + np.exp(-p.log_odds))
            v = (power / 0.3 if variance is None else variance) * np.exp(p.log_variance)
            noise = np.exp(p.log_noise) * y @ y / M
        G = D.T @ np.linalg.inv(D @ D.T + noise / tau * np.eye(M))
        c = np.trace(G @ D) / N
        u, tau_u = r + G @ (y - D @ r) / c, tau * (1 - c) / c
        slab = probability * stats.norm(scale=np.sqrt(v + tau_u)).pdf(u)
        pi = slab / ((1 - probability) * stats.norm(scale=np.sqrt(tau_u)).pdf(u) + slab)
        mean, spread = v / (v + tau_u) * u, v * tau_u / (v + tau_u)
        new, second = pi * mean, pi * (mean**2 + spread)
        a = np.mean(second - new**2) / tau_u
        energy = np.sum((y - D @ new) ** 2)
        if energy <= limit:
            x = new
        share = max(share / 2, 0.2) if energy > limit else min(1.1 * share, 1)
        limit = min(limit, 1.1**2 * energy)
        if em:
            weights = 1 / (1 + np.linalg.eigvalsh(D @ D.T)[::-1] * a * tau_u / noise) ** 2
            U = np.asarray(params.shared.W.U)
            noise = weights @ (U.T @ (y - D @ new)) ** 2 / np.sum(weights) / max(1 - N * a / M, 0.2)
            probability, v = pi.mean(), np.sum(pi * (mean**2 + spread)) / pi.sum()
        keep = share * (1 - p.damping) if k else 1.0
        r = keep * (new - a * u) / (1 - a) + (1 - keep) * r
        tau = keep * tau_u * a / (1 - a) + (1 - keep) * tau
        path.append(x)
    # Singular values and an inverse round otherwise; exponentials magnify it.
    ours = layer.iterates(params._replace(steps=steps), D, y)
    assert_close(ours, np.array(path), atol=1e4 * CLOSE)


def _first(params, depth):
    return params._replace(steps=jax.tree.map(lambda leaf: leaf[:depth], params.steps))


WITHOUT_MEMORY = {
    "ista": layers.ista(K),
    "step_lista": layers.step_lista(K, lam=0.0),  # its thresholds are gamma lam
    "lista": layers.lista(K),
    "lista, untied": layers.lista(K, tied=False),
    "lista_ss": layers.lista_ss(K),
    "lista_cp": layers.lista_cp(K),
    "lista_cp, untied": layers.lista_cp(K, tied=False),
    "lista_cpss": layers.lista_cpss(K),
    "alista": layers.alista(K, support=SUPPORT),
    "tilista": layers.tilista(K),
    "robust_alista": layers.robust_alista(K),
    "ada_lista": layers.ada_lista(K),
    "liht": layers.liht(K, sparsity=N),
}
# Their steps carry more than the code, or end in another estimate than shrinkage.
OTHERS = {"fista", "lfista", "glista", "hyperlista", "lamp", "lamp_bg", "tista", "na_alista"}
OTHERS |= {"alista_at", "alista_rt", "vamp_bg", "lfista_cp", "bcd", "sae"}


@pytest.mark.few(13)
@pytest.mark.parametrize("name", WITHOUT_MEMORY)
@pytest.mark.parametrize("per_atom", [False, True])
def test_weights_are_those_that_act_in_the_step(problem, name, per_atom):
    """With thresholds of 0 a step is x <- S x + gamma W'y, where S is I - gamma W'D unless given.

    Step sizes take either sign: `step_lista` acts by their magnitude.
    """
    (D, y), layer, rng = problem, WITHOUT_MEMORY[name], np.random.default_rng(7)
    params, x, step = moved(layer.init(None, D)), rng.normal(size=N), jax.jit(layer.step)
    start, weights = layer.start(D, y), jax.jit(layer.weights)
    for p in steps_of(params):
        zero = dict.fromkeys(layers.names_with_role(p, "threshold"), np.zeros(()))
        gamma = np.asarray(rng.normal(size=N if per_atom else ()))
        p = p._replace(**zero, **dict.fromkeys(layers.names_with_role(p, "step size"), gamma))
        constants = () if layer.schedule is None else (0.2,)
        found = np.asarray(step(params.shared, p, D, y, start._replace(x=x), *constants).x)
        W, gamma, S = weights(params.shared, p, D)
        G = np.broadcast_to(1.0 if gamma is None else gamma, (N,))[:, None] * np.asarray(W).T
        S = np.eye(N) - G @ D if S is None else np.asarray(S)
        assert_close(found, S @ x + G @ y, atol=10 * CLOSE)
        x = found / np.linalg.norm(found)


FAMILIES = {n: f for n, f in layers.FAMILIES.items() if f.__module__.startswith("unrolled.")}


def test_every_family_has_weights_but_those_of_blocks_and_those_that_depend_on_the_signal():
    assert {name for name, family in FAMILIES.items() if family.weights is None} == {
        "bcd",
        "na_alista",
        "vamp_bg",
    }
    assert {layer.family for layer in WITHOUT_MEMORY.values()} == set(FAMILIES) - OTHERS


SELECTED, PRIOR = dict(support=(0.012, 0.13)), dict(probability=0.1, variance=4.0)
# What recipes say of 55 entries, a tenth of them N(0, 4): lam is in units of 2 (of codes) times 2
# (of atoms), and 6 nonzeros are kept give or take a fifth or three.
TOLD = {
    **dict.fromkeys(["alista", "tilista", "robust_alista", "alista_at"], SELECTED),
    **dict.fromkeys(["na_alista", "glista"], SELECTED),
    **dict.fromkeys(["lista", "lista_cp"], dict(tied=False)),
    **dict.fromkeys(["lista_ss", "lista_cpss"], dict(tied=False) | SELECTED),
    **dict.fromkeys(["lfista_cp", "bcd"], dict(lam=0.08)),
    "lamp_bg": PRIOR,
    "tista": PRIOR | dict(noise=0.01),
    "vamp_bg": PRIOR | dict(noise_ratio=0.01 / 0.2),
}
LAMS = dict(lam=(0.08, 0.2, 0.4, 0.8, 1.2, 1.6))
TRIED = {
    "ista": LAMS,
    "fista": LAMS,
    "step_lista": dict(lam=(0.08, 0.2, 0.4, 0.8)),
    "liht": dict(sparsity=(5, 8, 10)),
}


def test_recipes_follow_the_law_of_the_codes():
    law = layers.Law(probability=0.1, variance=4.0, noise=0.01, signal=0.2, atoms=55, unit=2.0)
    for name in FAMILIES:
        recipe = layers.FAMILIES[name].recipe
        assert recipe.options(law, {}) == TOLD.get(name, {}), name
        assert recipe.tried(law) == TRIED.get(name, {}), name


@pytest.fixture(scope="module")
def two():
    return np.array(unit(0, M, N)), np.array(unit(1, N, 12))


def test_ml_lista_is_its_formula_and_starts_as_ml_ista(two, problem):
    network, y = ur.networks.ml_lista(K, lam=0.05), problem[1]
    L = [np.linalg.norm(D, 2) ** 2 for D in two]
    start = network.init(None, two)
    for params in (start, moved(start)):
        x = np.zeros(12)
        for k in range(K):
            below, codes = y, []
            for D, p, u in zip(two, params, (two[1] @ x, x)):
                v = u - float(p.steps.gamma[k]) * D.T @ (D @ u) + np.asarray(p.shared.B).T @ below
                below = shrink(v, float(p.steps.theta[k]))
                codes.append(below)
            x = codes[-1]
        for ours, expected in zip(network.apply(params, two, y), codes, strict=True):
            assert_close(ours, expected, atol=4 * CLOSE)
    for p, D, gamma, theta in zip(start, two, 1 / np.array(L), 0.05 / np.cumprod(L)):
        assert_close(p.shared.B, D * gamma)
        assert_close(p.steps.gamma, np.full(K, gamma))
        assert_close(p.steps.theta, np.full(K, theta))


def test_the_matrices_of_ml_lista_act_as_its_step_does(problem):
    """Also with a step size per entry, which scales the rows of D'D."""
    D, y = problem
    network, rng = ur.networks.ml_lista(2), np.random.default_rng(0)
    ((shared, steps),), weights = network.init(None, (D,)), jax.jit(network.weights(0))
    for gamma in (rng.uniform(0.1, 0.5, 2), rng.uniform(0.1, 0.5, (2, N))):
        params = Unrolled(shared, steps._replace(gamma=gamma))
        first, second = np.asarray(network.iterates((params,), (D,), y)[0])
        p = steps_of(params)[1]
        W, _, S = map(np.asarray, weights(shared, p, D))
        assert_close(second, shrink(S @ first + y @ W, p.theta))


def test_ml_lista_of_one_layer_is_ista(problem):
    D, y = problem
    network = ur.networks.ml_lista(K, lam=LAM)
    (code,) = network.apply(network.init(None, (D,)), (D,), y)
    assert_close(code, layers.ista(K).apply(ur.analytic.ista(D, LAM, K), D, y))


@pytest.mark.slow
def test_ml_lista_trains_and_takes_structured_dictionaries(problem):
    y = problem[1]
    bank = ur.dictionaries.Conv(np.random.default_rng(0).normal(size=(2, 1, 3)), M)
    Ds = (bank, np.array(ur.dictionaries.gaussian(jax.random.key(2), bank.shape[1], 5)))
    network = ur.networks.ml_lista(2, lam=0.02)
    params = network.init(None, Ds)
    dense = (ur.dictionaries.dense(Ds[0]), Ds[1])
    matrices = (
        params[0]._replace(
            shared=type(params[0].shared)(ur.dictionaries.dense(params[0].shared.B))
        ),
        params[1],
    )
    loose = tuple(map(layers.unstack, params))
    for other in (network.apply(matrices, dense, y), network.apply(loose, Ds, y)):
        for ours, expected in zip(network.apply(params, Ds, y), other, strict=True):
            assert_close(ours, expected, atol=10 * CLOSE)
    none = ur.networks.ml_lista(0)
    for form in (none.init(None, Ds), tuple(map(layers.unstack, none.init(None, Ds)))):
        assert [np.abs(x).sum() for x in none.apply(form, Ds, y)] == [0, 0]
    gradient = jax.grad(lambda p: jnp.sum(network.apply(p, Ds, y)[-1] ** 2))(params)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradient))


test_options_outside_their_limits_are_refused = rows(
    (partial(layers.liht, K, sparsity=0), "sparsity must be at least 1"),
    (partial(layers.tista, K, probability=0.0), "probability must be above 0"),
    (partial(layers.lamp_bg, K, probability=1.0), "probability must be .*below 1"),
    (partial(layers.tista, K, variance=-1.0), "variance must be above 0"),
    (partial(layers.tista, K, noise=-0.1), "noise must be at least 0"),
    (partial(layers.vamp_bg, K, noise_ratio=0.0), "noise_ratio must be above 0"),
    (partial(layers.vamp_bg, K, damping=1.0), "damping must be at least 0 and below 1"),
    (partial(layers.alista_at, K, by="x"), "unknown by 'x'; expected one of code, residual"),
    (partial(layers.na_alista, K, units=0), "units must be at least 1"),
    (partial(layers.na_alista, K, threshold=0.0), "threshold must be above 0"),
    (partial(layers.na_alista, K, threshold=np.inf), "threshold must be .*finite"),
    (partial(layers.glista, K, support=(0.1, 1.5)), "support must be"),
    (partial(layers.alista, K, support=(0.1,)), "support must be"),
    (partial(layers.lamp, K, alpha=-1.0), "alpha must be at least 0"),
    (partial(layers.glista, K, gain=np.nan), "gain must be .*finite, got nan"),
    (partial(layers.lista_cp, K, lam=-0.1), "lam must be at least 0"),
    (partial(layers.alista, K, theta=-0.1), "theta must be at least 0"),
    (partial(layers.ista, K, unroll=0), "unroll must be at least 1"),
    (partial(layers.ista, K, precision="best"), "unknown precision 'best'"),
    (partial(layers.ista, K, activation="rely"), "unknown name 'rely'"),
)


def _with(family, field, value):
    """The codes of a family whose params have another value in a field."""

    def call(D, y, two):
        layer = getattr(layers, family)(K)
        params = layer.init(None, D)
        part = "steps" if hasattr(params.steps, field) else "shared"
        wrong = getattr(params, part)._replace(**{field: value})
        return layer.apply(params._replace(**{part: wrong}), D, y)

    return call


def _na_alista(units, atoms):
    """The codes of a layer with so many units and atoms, with params of 3 units and N atoms."""

    def call(D, y, two):
        params = layers.na_alista(K, units=3, threshold=0.1).init(0, D)
        return layers.na_alista(K, units=units).apply(params, D[:, :atoms], y)

    return call


def _calibrate_without_thresholds(D, y, two):
    layer = layers.hyperlista(K)
    sample = np.ones((2, M)), np.ones((2, N))
    return ur.analytic.calibrate(layer, layer.init(None, D), D, *sample)


def _realize_another_family(D, y, two):
    layer = layers.hyperlista(K)
    return ur.realize.cnn(layer, layer.init(None, D), D, kernel_size=3, signal_bound=1.0)


def _realize_no_chain(D, y, two):
    network = ur.networks.ml_lista(K)
    return ur.realize.cnn(network, network.init(None, two), two, kernel_size=3, signal_bound=1.0)


# Name: call of (D, y, two), error, the essential words of the message.
MISUSES = {
    **{
        f"{field} of {family}": Fault(
            _with(family, field, np.ones((K, M))),
            ValueError,
            rf"{field} has shape \({M},\) at a st",
        )
        for family, field in (("glista", "gain"), ("glista", "slope"), ("lamp", "alpha"))
    },
    "P of ada_lista": Fault(
        _with("ada_lista", "P", np.eye(M + 1)), ValueError, r"P has shape \(7, 7\)"
    ),
    "units of na_alista": Fault(
        _na_alista(4, N), ValueError, r"kernel has shape \(5, 12\); expected \(6, 16\) for 4 units"
    ),
    "a dictionary of na_alista": Fault(
        _na_alista(3, N - 1), ValueError, "W has shape .*another dictionary"
    ),
    "calibration without thresholds": Fault(
        _calibrate_without_thresholds, TypeError, "steps with a threshold.*this family has none"
    ),
    "a CNN of another family": Fault(_realize_another_family, TypeError, "expected such a family"),
    "a CNN of no chain": Fault(_realize_no_chain, TypeError, "chain of layers"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuses_are_refused(problem, two, misuse):
    MISUSES[misuse].check(*problem, two)


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_tista_starts_and_codes_nothing_in_half_precision(problem, dtype):
    """Its least error of 1e-9 is below every positive number of float16."""
    D, layer = problem[0].astype(dtype), layers.tista(K)
    params = layer.init(None, D)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(np.asarray(layer.apply(params, D, np.zeros(M, dtype)), float), 0)


@pytest.mark.slow
def test_numbers_used_by_their_magnitude_can_leave_zero(problem):
    D, y = problem
    lamp, hyper = layers.lamp(1, alpha=0.0), layers.hyperlista(1)
    at, shared = lamp.init(None, D), hyper.init(None, D).shared

    def with_alpha(alpha):
        return lamp.apply(Unrolled(None, at.steps._replace(alpha=alpha)), D, y)

    def with_threshold(c):
        return hyper.apply(Unrolled(shared._replace(threshold=c), None), D, y)

    for code, zero in ((with_alpha, jnp.zeros(1)), (with_threshold, jnp.zeros(()))):
        gradient = jax.grad(lambda number, code=code: jnp.sum(jnp.abs(code(number))))(zero)
        assert np.all(np.asarray(gradient) < 0)  # a threshold shrinks


@pytest.mark.slow
def test_a_trained_na_alista_follows_a_scaled_signal(problem):
    """Weights that react to their inputs; by powers of two no step rounds differently."""
    D, y = problem
    layer = layers.na_alista(K, units=3, threshold=0.4)
    params = layer.init(jax.random.key(0), D)
    strong = params.shared._replace(kernel=30 * params.shared.kernel, head=30 * params.shared.head)
    code = jax.jit(lambda y: layer.apply(Unrolled(strong, None), D, y))
    other = jax.jit(lambda y: layer.apply(params, D, y))
    assert np.any(code(y)) and np.abs(code(y) - other(y)).max() > 1e-2 * np.abs(code(y)).max()
    for scale in (2.0**-40, 0.125, 1024.0, 2.0**40):
        np.testing.assert_array_equal(code(scale * y), scale * code(y))
    assert not np.any(code(0 * y))
    gradient = jax.grad(lambda y: jnp.sum(layer.apply(params, D, y)))(0 * y)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_a_large_threshold_of_na_alista_is_the_one_it_starts_with(problem):
    layer = layers.na_alista(1, units=2, threshold=1e3)
    shared = layer.init(jax.random.key(0), problem[0]).shared
    gamma = float(layers.stable_step(shared.analytic.W, problem[0]))
    found = jax.nn.softplus(shared.head_bias)
    np.testing.assert_allclose(found, [gamma, gamma * 1e3], rtol=1e-12)


@pytest.mark.parametrize("m, rank", [(40, 10), (8, 8), (8, 5)])
def test_ada_lista_from_weights_has_unit_weights_of_any_rank(m, rank):
    """D'P D is a projection of trace rank(D): d over that makes the mean of w_i . d_i one."""
    rng = np.random.default_rng(0)
    D = rng.normal(size=(m, rank)) @ rng.normal(size=(rank, 10)) if rank < 10 else None
    D = rng.normal(size=(m, 10)) if D is None else D
    layer = layers.ada_lista(3)
    params = layer.from_weights(None, D, D)
    acting = layer.weights(
        params.shared, jax.tree.map(lambda leaf: np.asarray(leaf)[0], params.steps), D
    )
    own = np.sum(np.asarray(acting.W) * D, 0) * float(acting.gamma)
    assert own.mean() == pytest.approx(1, rel=1e-6)


def test_the_memory_of_na_alista_is_an_lstm():
    from unrolled.layers._alista import Recurrent, Remembered, _lstm

    rng, n = np.random.default_rng(0), 3
    kernel, bias, u = rng.normal(size=(2 + n, 4 * n)), rng.normal(size=4 * n), rng.normal(size=2)
    hidden, memory = rng.normal(size=(2, n))
    weights = Recurrent(None, kernel, bias, *[None] * 4)
    write, keep, candidate, show = np.split(np.concatenate([u, hidden]) @ kernel + bias, 4)
    on = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    after = on(keep) * memory + on(write) * np.tanh(candidate)
    found = _lstm(weights, u, Remembered(None, hidden, memory))
    np.testing.assert_allclose(found, [on(show) * np.tanh(after), after], rtol=1e-12)


# The codes of many signals


def test_the_codes_of_many_signals_are_those_of_each_signal(problem):
    """With a mask, each is the code of the known entries, whatever stands at the others."""
    D, _ = problem
    layer, Y = layers.fista(K, lam=LAM), np.random.default_rng(5).normal(size=(3, M))
    params = layer.init(None, D)
    assert_close(layer.encode(D, Y), jnp.stack([layer.apply(params, D, y) for y in Y]))
    others = moved(params)
    assert_close(layer.encode(D, Y, others)[1], layer.apply(others, D, Y[1]))
    mask = np.random.default_rng(6).random(Y.shape) < 0.7
    codes = layer.encode(D, np.where(mask, Y, np.nan), mask=mask)
    masked = ur.dictionaries.Masked
    expected = [layer.apply(params, masked(D, k), k * y) for k, y in zip(1.0 * mask, Y)]
    assert_close(codes, jnp.stack(expected))
    assert_close(layer.encode(D, Y, mask=mask[0])[0], expected[0])


def test_codes_of_many_complex_signals_with_missing_entries_have_their_form(problem):
    D = ur.dictionaries.Complex.of(problem[0] + 1j * problem[0][:, ::-1])
    Y = np.random.default_rng(5).normal(size=(2, M, 2)) @ [1, 1j]
    layer, mask = layers.fista(K, lam=LAM), np.arange(M) != 2
    codes = layer.encode(D, np.where(mask, Y, np.nan), mask=mask)
    assert codes.dtype == complex and codes.shape == (2, N)
    assert_close(codes, layer.encode(D, Y, mask=np.stack([mask] * 2)))
    assert_close(layer.encode(D, Y, mask=mask | True), layer.encode(D, Y))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (dict(mask=np.ones((2, M))), TypeError, "fista: mask has dtype float64; expected bool"),
        (dict(mask=np.ones(M + 1, bool)), ValueError, r"fista: mask has shape \(7,\)"),
        (dict(Y=np.ones((2, M + 1))), ValueError, "fista: .*y has shape"),
        (dict(params=layers.fista(2).init(None, np.eye(M, N))), ValueError, "fista"),
    ],
)
def test_the_codes_of_many_signals_are_refused(problem, changes, error, match):
    arguments = dict(D=problem[0], Y=np.ones((2, M))) | changes
    with pytest.raises(error, match=match):
        layers.fista(K).encode(**arguments)
