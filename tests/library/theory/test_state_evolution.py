"""State evolution: its scalar channels against quadrature, its curves against measured medians."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import unrolled as ur
from unrolled import analytic, dictionaries, layers, problems
from unrolled.theory import _state_evolution as channels
from unrolled.theory import state_evolution
from unrolled.theory._state_evolution import Prior

PRIOR = Prior(0.15, 1.7)


def expected(f, prior, tau2):
    """E f(X, X + tau n), by an integral over u and the mean of x given u where f is quadratic."""

    def part(weight, variance):
        T, k = variance + tau2, variance / (variance + tau2)
        density = stats.norm(scale=math.sqrt(T)).pdf
        reach = 12 * math.sqrt(T)
        points = np.linspace(-reach, reach, 200_001)
        return weight * integrate.trapezoid(
            f(k * points, k * tau2, points) * density(points), points
        )

    return part(1 - prior.probability, 0.0) + part(prior.probability, prior.variance)


@pytest.mark.parametrize("tau2", [0.5, 1e-2, 1e-6])
def test_soft_thresholds_have_these_errors(tau2):
    theta = 1.3 * math.sqrt(tau2)

    def eta(u):
        return np.sign(u) * np.maximum(np.abs(u) - theta, 0)

    found = channels.soft_threshold(PRIOR, tau2, theta)
    # The trapezoidal rule errs by the square of its step over that of the kink's scale.
    mse = expected(lambda x, rest, u: (eta(u) - x) ** 2 + rest, PRIOR, tau2)
    assert found.mse == pytest.approx(mse, rel=1e-3)
    slope = expected(lambda x, rest, u: 1.0 * (np.abs(u) > theta), PRIOR, tau2)
    assert found.slope == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("tau2", [0.5, 1e-2, 1e-5])
@pytest.mark.parametrize("assumed", [PRIOR, Prior(0.3, 1.0)])
def test_bernoulli_gaussian_estimates_have_these_errors(tau2, assumed):
    level = 1.2 * tau2 if assumed is not PRIOR else tau2

    def eta(u):
        options = dict(probability=assumed.probability, variance=assumed.variance)
        return np.asarray(layers.bernoulli_gaussian_mean(jnp.asarray(u), level, **options))

    found = channels.bernoulli_gaussian(PRIOR, tau2, assumed, level)
    mse = expected(lambda x, rest, u: (eta(u) - x) ** 2 + rest, PRIOR, tau2)
    assert found.mse == pytest.approx(mse, rel=2e-3)
    # By parts (Stein), the mean slope is E (u - x) eta / tau2.
    product = expected(lambda x, rest, u: (u - x) * eta(u), PRIOR, tau2)
    assert found.slope == pytest.approx(product / tau2, rel=2e-3)
    if assumed is PRIOR:  # of the Bayes estimate mse = tau2 E eta'
        assert found.mse == pytest.approx(tau2 * found.slope, rel=1e-3)


def test_the_rules_of_the_nodes():
    assert channels.mean(channels._Z**4) == pytest.approx(3, rel=1e-4)
    exact = math.sqrt(2 / math.pi) * math.sqrt(0.49 + 1)
    assert channels.mean_magnitude(0.7 * channels._Z, 1.0) == pytest.approx(exact, rel=1e-4)
    border = channels.cut(PRIOR, 0.1, 0.02)
    above = sum(
        w * channels.mean(np.abs(u) > border) for w, u, _, _ in channels.branches(PRIOR, 0.1)
    )
    assert above == pytest.approx(0.02, rel=2e-2)  # a jump between nodes
    assert channels.least(lambda t: (math.log(t) - 0.4) ** 2, 0.05, 40) == pytest.approx(
        math.exp(0.4), rel=1e-4
    )


# Measured medians. Name: layer.
FAMILIES = {
    "lamp": layers.lamp,
    "lamp_bg": layers.lamp_bg,
    "vamp_bg": layers.vamp_bg,
    "alista_at": lambda depth, **o: layers.alista_at(depth, onsager=True),
    "tista": lambda depth, **o: layers.tista(depth, onsager=True, **o),
}
FIRST = "tista", "vamp_bg", "lamp", "lamp_bg", "alista_at"  # by default the first of them
NOISE = {None: 1e-10, 40: 1e-4, 20: 1e-2}


def medians(layer, params, D, Y, X):
    """Of the NMSE of each signal after each step, in dB."""
    run = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))
    errors = np.sum((np.asarray(run(params, D, Y), float) - np.asarray(X)[:, None]) ** 2, -1)
    return np.median(10 * np.log10(errors / np.sum(np.asarray(X, float) ** 2, 1)[:, None]), 0)


def typical(name, m, depth, snr, signals):
    """(state evolution, medians) from step 1 on, in float32 as users measure."""
    with jax.enable_x64(False):
        D, _ = problems.standard_benchmark(0, m=m, d=2 * m)
        Y, X = problems.sampler(D, signals, snr=snr or math.inf)(1)
        sigma2 = 0.2 * NOISE[snr] if snr else 0.0  # E y^2 = (d / m) p
        known = dict(vamp_bg=dict(noise_ratio=NOISE[snr]), tista=dict(noise=sigma2))
        layer = FAMILIES[name](depth, **known.get(name, {}))
        found = state_evolution(layer, D, probability=0.1, noise=sigma2)
        params = layer.init(None, D)
        if found.thresholds is not None:
            field = layer.message_passing().threshold
            params = params._replace(
                steps=params.steps._replace(**{field: jnp.asarray(found.thresholds, D.dtype)})
            )
        if name == "alista_at":
            params = params._replace(steps=params.steps._replace(gamma=jnp.ones(depth)))
        return found, medians(layer, params, D, Y, X)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", FAMILIES)
def test_it_predicts_the_median(name):
    """At 250 x 500 with so many signals that their median is known to some tenths of a decibel."""
    found, measured = typical(name, 250, 6, None, 1000 if name == "tista" else 200)
    assert found.nmse.shape == (7,) and found.nmse[0] == 0 and found.tau.shape == (6,)
    assert found.holds
    assert np.abs(found.nmse[1:] - measured).max() < 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize(
    "snr, m, signals", [(None, 250, 1000), (40, 250, 1000), (20, 250, 1000), (None, 500, 500)]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_it_predicts_the_median_down_to_100_decibels(name, m, signals, snr):
    """Below, float32 rounds. Measured on these: at most 1.0 dB, and 1.2 for `alista_at`."""
    found, measured = typical(name, m, 16, snr, signals)
    above = found.nmse[1:] > -100
    assert found.holds
    assert np.abs(found.nmse[1:] - measured)[above].max() < (1.5 if name == "alista_at" else 1.1)


@pytest.fixture(scope="module")
def D():
    return dictionaries.gaussian(jax.random.key(0), 40, 80)


def test_the_mixture_over_the_number_of_nonzeros_is_worse_than_the_typical(D):
    """A few signals with more nonzeros carry the mean error."""
    for layer in (layers.lamp(4), layers.lamp_bg(4)):
        plain = state_evolution(layer, D, probability=0.1)
        mixed = state_evolution(layer, D, probability=0.1, mixed=True)
        assert (mixed.nmse[1:] > plain.nmse[1:]).all()
        assert mixed.nmse[-1] > plain.nmse[-1] + 0.5


def test_params_are_taken_at_their_word(D):
    """Thresholds that are not the best ones have a larger error; the best ones are found again."""
    layer = layers.lamp(5, alpha=2.5)
    start = layer.init(None, D)
    best = state_evolution(layer, D, probability=0.1)
    given = state_evolution(layer, D, probability=0.1, params=start)
    np.testing.assert_allclose(given.thresholds, 2.5, rtol=1e-6)
    assert given.nmse[-1] > best.nmse[-1] + 3
    steps = start.steps._replace(alpha=jnp.asarray(best.thresholds))
    again = state_evolution(layer, D, probability=0.1, params=start._replace(steps=steps))
    np.testing.assert_allclose(again.nmse, best.nmse, rtol=1e-12)
    trained = start._replace(steps=start.steps._replace(W=1.01 * start.steps.W))
    with pytest.raises(ValueError, match="W of the params differs from message passing"):
        state_evolution(layer, D, probability=0.1, params=trained)
    short = layers.alista_at(3, onsager=True)
    params = short.init(None, D)
    params = params._replace(steps=params.steps._replace(gamma=0.9 * jnp.ones(3)))
    with pytest.raises(ValueError, match="gamma of the params differs"):
        state_evolution(short, D, probability=0.1, params=params)


@pytest.mark.slow
def test_tista_has_state_evolution_with_its_correction_alone():
    """Without it the errors of a step and the next are correlated: -120 dB told, -72 measured."""
    with jax.enable_x64(False):
        D, _ = problems.standard_benchmark(0)
        Y, X = problems.sampler(D, 1000)(1)
        for onsager in (False, True):
            layer = layers.tista(16, onsager=onsager)
            found = state_evolution(layer, D, probability=0.1)
            apart = medians(layer, layer.init(None, D), D, Y, X) - found.nmse[1:]
            above = found.nmse[1:] > -100
            assert found.holds is onsager
            assert np.abs(apart[above]).max() < 1.1 if onsager else apart[-1] > 40


def test_it_says_where_it_does_not_hold(D):
    off = dictionaries.ill_conditioned(jax.random.key(0), 40, 80, 50.0)
    assert not state_evolution(layers.lamp(2), off, probability=0.1).holds
    assert state_evolution(layers.vamp_bg(2), off, probability=0.1).holds
    for layer in (layers.tista(2), layers.vamp_bg(2, em=True), layers.vamp_bg(2, noise_ratio=1e-3)):
        assert not state_evolution(layer, D, probability=0.1).holds
    assert not state_evolution(layers.tista(2, onsager=True), D, probability=0.1, noise=0.1).holds
    noisy = layers.vamp_bg(2, noise_ratio=1e-2)
    assert state_evolution(noisy, D, probability=0.1, noise=0.002).holds


def correlated(rho=0.8):
    """Neighbouring columns of an autoregressive process."""
    rng, lags = np.random.default_rng(0), np.arange(128)
    return rng.normal(size=(64, 128)) @ np.linalg.cholesky(rho ** abs(lags[:, None] - lags)).T


def learned():
    """Edges and spots of all sizes in an 8 x 8 window, as patches of photographs teach them."""
    rng, (i, j) = np.random.default_rng(0), np.mgrid[:8, :8]
    waves, places = rng.normal(size=(2, 128)), rng.uniform(0, 7, (2, 128))
    u, v = (grid.ravel()[:, None] - place for grid, place in zip((i, j), places))
    envelope = np.exp(-(u**2 + v**2) / rng.uniform(2, 20, 128))
    return envelope * np.cos(u * waves[0] + v * waves[1] + rng.uniform(0, 6, 128))


@pytest.mark.few(2)
@pytest.mark.parametrize("atoms", [correlated, learned])
@pytest.mark.parametrize("name", ["vamp_bg", "alista_at", "tista"])
def test_of_a_dictionary_without_random_singular_vectors_it_does_not_hold(name, atoms):
    """Their spectra, which are all that these families see, have a prediction."""
    D, _ = dictionaries.normalize(jnp.asarray(atoms()))
    found = state_evolution(FAMILIES[name](12), D, probability=0.1)
    assert not found.holds
    assert re.match(r"the median of drawn signals is -.* to .* dB after step \d", found.reason)


# Params without a sample.


def test_params_from_state_evolution_are_its_thresholds(D):
    more = state_evolution(layers.lamp(4), D, probability=0.15, noise=1e-3)
    params = analytic.lamp(D, 4, probability=0.1, noise=1e-3)
    np.testing.assert_array_equal(params.steps.alpha, more.thresholds)
    np.testing.assert_array_equal(params.steps.W[0], layers.lamp(4).init(None, D).steps.W[0])
    layer = layers.alista_at(4, onsager=True, support=(0.05, 0.1))
    params = analytic.alista_at(D, 4, probability=0.1, support=(0.05, 0.1), margin=1.0)
    layer.check(params, D)
    typical = state_evolution(layer, D, probability=0.1)
    np.testing.assert_array_equal(params.steps.theta, typical.thresholds)
    again = state_evolution(layer, D, probability=0.1, params=params)
    np.testing.assert_allclose(again.nmse, typical.nmse, rtol=1e-12)


def test_params_of_message_passing_warn_off_its_hypotheses():
    off = dictionaries.ill_conditioned(jax.random.key(0), 40, 80, 50.0)
    with pytest.warns(analytic.HypothesisWarning, match="the spectrum of D is not"):
        analytic.lamp(off, 2, probability=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
def test_thetas_without_a_sample_are_beyond_training():
    """ALISTA with support selection reaches -62 dB trained; LAMP stays at its start.

    Measured over three dictionaries, ratio of sums / median: -78.0 / -81.1 to -81.4 at the default
    margin; -30.3 to -30.6 / -35.1 to -35.8 for LAMP.
    """
    with jax.enable_x64(False):
        D, _ = problems.standard_benchmark(0)
        Y, X = problems.sampler(D, 1000)(1)
        layer = layers.alista_at(16, onsager=True)
        params = analytic.alista_at(D, 16, probability=0.1)
        codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y)
        assert float(ur.metrics.nmse(codes, X)) < -74
        assert medians(layer, params, D, Y, X)[-1] < -79
        layer = layers.lamp(16)
        params = analytic.lamp(D, 16, probability=0.1)
        codes = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y)
        assert float(ur.metrics.nmse(codes, X)) < -29


def test_the_mixture_counts_signals_without_nonzeros(D):
    """The zero code is at 0 dB, and d = 1 has a mixture of 0 and 1 nonzeros."""
    for p in (0.002, 0.05, 0.9, 0.999):
        found = state_evolution(layers.lamp(4), D, probability=p, mixed=True)
        assert abs(found.nmse[0]) < 0.02  # numbers of nonzeros beyond 5 deviations are left out
    one = state_evolution(layers.lamp(4), jnp.ones((1, 1)), probability=0.3, mixed=True)
    assert abs(one.nmse[0]) < 1e-4 and (np.diff(one.nmse) < 0).all()


@pytest.mark.few(1)
@pytest.mark.parametrize("name", FIRST)
def test_state_evolution_is_scale_free(name, D):
    """Codes of variance v and noise v sigma^2 have the same NMSE, and noise levels v^(1/2) tau."""
    one = state_evolution(layer_of(name, 1.0), D, probability=0.1, noise=1e-4)
    for v in (1e-300, 1e30):
        found = state_evolution(layer_of(name, v), D, probability=0.1, variance=v, noise=1e-4 * v)
        np.testing.assert_allclose(found.nmse, one.nmse, rtol=1e-9)
        np.testing.assert_allclose(found.tau, math.sqrt(v) * one.tau, rtol=1e-9)
        assert found.holds == (one.holds and _has_codes(name, v))


def _has_codes(name, v):
    """The estimates of `lamp_bg` and `tista` square variances: of codes near 1e-150 NaN is left."""
    return v > 1e-200 or name not in ("lamp_bg", "tista")


def layer_of(name, v):
    """A layer that assumes codes of variance v."""
    options = {} if name in ("lamp", "alista_at") else {"variance": v}
    noise = {"tista": {"noise": 1e-4 * v}, "vamp_bg": {"noise_ratio": 5e-4}}
    return FAMILIES[name](4, **options, **noise.get(name, {}))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_dictionary_in_half_precision_is_of_full_rank(name, D, dtype):
    """Its singular values are those of what is stored; the atoms are unit to its rounding."""
    stored = D.astype(dtype)
    found = state_evolution(FAMILIES[name](4), stored, probability=0.1)
    wide, _ = dictionaries.normalize(stored.astype(np.float64))
    wide = state_evolution(FAMILIES[name](4), wide, probability=0.1)
    # An error of eps of the norms is one of 10 log10(1 + 2 eps) dB = .07 in bfloat16.
    np.testing.assert_allclose(found.nmse, wide.nmse, atol=0.07)
    assert found.holds == wide.holds


@pytest.mark.slow
def test_tall_dictionaries_have_the_error_that_is_measured():
    """For m > d the rank of D is d, which the noise level of `tista` knows."""
    with jax.enable_x64(False):
        D = dictionaries.gaussian(jax.random.key(1), 400, 200)
        sigma2 = 0.1 * 200 / 400 * NOISE[20]
        Y, X = problems.sampler(D, 400, snr=20.0)(2)
        layer = layers.tista(3, onsager=True, noise=sigma2)
        found = state_evolution(layer, D, probability=0.1, noise=sigma2)
        measured = medians(layer, layer.init(None, D), D, Y, X)
    # 400 signals of 20 nonzeros each: their median is known to some tenths of a decibel.
    assert found.holds and np.abs(found.nmse[1:] - measured).max() < 0.5


def test_what_is_no_number_is_refused(D):
    layer = layers.lamp(4)
    start = layer.init(None, D)
    broken = start._replace(steps=start.steps._replace(alpha=jnp.full(4, jnp.nan)))
    with pytest.raises(ValueError, match="params has NaN"):
        state_evolution(layer, D, probability=0.1, params=broken)
    for name in FAMILIES:
        found = state_evolution(FAMILIES[name](4), D, probability=0.1, noise=1e90)
        assert np.isfinite(found.nmse).all()


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("seed", range(4))
def test_support_selection_is_predicted_within_two_decibels(seed):
    """At SNR 40, where the border is near the smallest entries: measured 1.6 to 1.7 dB."""
    with jax.enable_x64(False):
        D = dictionaries.gaussian(jax.random.key(seed), 250, 500)
        Y, X = problems.sampler(D, 1000, snr=40.0)(7)
        layer = layers.alista_at(16, onsager=True)
        found = state_evolution(layer, D, probability=0.1, noise=0.2 * NOISE[40])
        params = layer.init(None, D)
        steps = params.steps._replace(
            theta=jnp.asarray(found.thresholds, D.dtype), gamma=jnp.ones(16)
        )
        measured = medians(layer, params._replace(steps=steps), D, Y, X)
    assert np.abs(found.nmse[1:] - measured).max() < 1.8


@pytest.mark.parametrize("tau2", [0.5, 1e-2])
def test_support_selection_has_these_errors(tau2):
    theta, border = 0.8 * math.sqrt(tau2), 2 * math.sqrt(tau2)

    def eta(u):
        return np.where(np.abs(u) > border, u, np.sign(u) * np.maximum(np.abs(u) - theta, 0))

    x_error, z_error, before = channels._selected(PRIOR, tau2, theta, border)
    share = expected(lambda x, rest, u: 1.0 * (eta(u) != 0), PRIOR, tau2)
    momentum = share / (1 - share)
    # The nodes do not know the border, where eta jumps.
    for found, weight in ((x_error, 0), (z_error, momentum)):
        error = expected(
            lambda x, rest, u, w=weight: (eta(u) + w * (eta(u) - u) - x) ** 2 + rest, PRIOR, tau2
        )
        assert found == pytest.approx(error, rel=2e-2)
    assert sum(w * (channels.mean(mu**2) + rest) for w, mu, rest in before) == pytest.approx(
        z_error
    )
