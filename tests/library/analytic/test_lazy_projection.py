"""Calibrated ALISTA against a random projection that is drawn as it is asked: there is no D."""

import jax
import numpy as np
import pytest
from oracles import LazyProjection

from unrolled import analytic, layers, problems

DEPTH = 16


def test_a_lazy_projection_is_a_projection():
    rng = np.random.default_rng(0)
    P = LazyProjection(rng, 6, 15)
    vectors = rng.normal(size=(5, 15))
    images = np.array([P(v) for v in vectors])
    np.testing.assert_allclose([P(v) for v in vectors], images, atol=1e-12)
    np.testing.assert_allclose([P(v) for v in images], images, atol=1e-12)
    products = vectors @ images.T
    np.testing.assert_allclose(products, products.T, atol=1e-12)
    # Of all directions it keeps the share m / d; after 6 + 9 of them nothing is left to draw.
    traces = [LazyProjection(rng, 6, 15)(np.eye(15)[0])[0] for _ in range(4000)]
    # A Beta(3, 4.5) has a standard deviation of 0.168: 4 of those of the mean.
    assert abs(np.mean(traces) - 0.4) < 4 * 0.168 / np.sqrt(4000)


def drawn(layer, steps, m, d, signals, seed):
    """Squared errors of each signal after each step, and its energy, where W'D = (d / m) P."""
    rng = np.random.default_rng(seed)
    schedule = layer.schedule or (0.0,) * layer.depth
    errors, energies = [], []
    for _ in range(signals):
        P, x = LazyProjection(rng, m, d), np.zeros(d)
        code = rng.normal(size=d) * (rng.random(d) < 0.1)
        path = []
        for gamma, theta, fraction in zip(*steps, schedule):
            u = x + gamma * d / m * P(code - x)
            size = np.abs(u)
            border = np.sort(size)[-round(fraction * d) - 1]
            passes = (size > border) & (size > theta)
            x = np.where(passes, u, np.sign(u) * np.maximum(size - theta, 0))
            path.append(np.sum((x - code) ** 2))
        errors.append(path)
        energies.append(np.sum(code**2))
    return np.array(errors), np.array(energies)


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("support", [None, (0.012, 0.13)])
def test_it_predicts_calibrated_alista(support):
    """Whatever D is: its errors are those of W'D, a projection up to a factor.

    The medians of 400 signals are known to some 0.2 dB, and with support selection, where the last
    steps spread more, to 0.7 dB.
    """
    with jax.enable_x64(False):
        D, _ = problems.standard_benchmark(0)
        sample = problems.sampler(D, 96)
        layer = layers.alista(DEPTH, support=support, ridge=0.0)
        params = analytic.calibrate(layer, layer.init(None, D), D, *sample(1))
        Y, X = problems.sampler(D, 1000)(2)
        codes = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))(params, D, Y)
    X, codes = np.asarray(X, float), np.asarray(codes, float)
    measured = np.sum((codes - X[:, None]) ** 2, -1) / np.sum(X**2, 1)[:, None]
    steps = (np.asarray(leaf, float) for leaf in params.steps)
    errors, energies = drawn(layer, tuple(steps), *D.shape, 400, 0)
    difference = 10 * np.log10(np.median(errors / energies[:, None], 0) / np.median(measured, 0))
    # Measured: at most 0.4 dB.
    assert np.abs(difference[:8]).max() < 0.6
    assert np.abs(difference).max() < (0.7 if support is None else 1.2)
