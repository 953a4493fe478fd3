"""Local rates: by formula against spectra, iterations and each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled import dictionaries
from unrolled.theory import LocalRate, StepsTo, frobenius_weights, local_rate, support_rate


def decibels(rate):
    return 20 * math.log10(rate)


@pytest.mark.parametrize(
    "m, s, plain, accelerated, edges",
    [
        (250, 50, -4.44, -9.54, (0.400, 1.600)),
        (250, 25, -7.21, -12.79, (0.564, 1.436)),
        (250, 100, -1.94, -6.02, (0.200, 1.800)),
        (333, 50, -6.47, -12.54, (0.525, 1.375)),
        (125, 25, -1.36, -8.02, (0.345, 1.855)),
    ],
)
def test_figures(m, s, plain, accelerated, edges):
    rate = local_rate(m, 500, s)
    # Stated to as many digits.
    assert decibels(rate.plain) == pytest.approx(plain, abs=0.006)
    assert decibels(rate.accelerated) == pytest.approx(accelerated, abs=0.006)
    assert (rate.least, rate.largest) == pytest.approx(edges, abs=6e-4)


def test_best_steps():
    assert decibels(local_rate(333, 500, 50).best) == pytest.approx(-6.99, abs=0.006)
    assert local_rate(333, 500, 50).best_step == pytest.approx(1.05, abs=0.006)
    assert decibels(local_rate(125, 500, 25).best) == pytest.approx(-3.27, abs=0.006)
    assert local_rate(125, 500, 25).best_step == pytest.approx(0.91, abs=0.006)


@pytest.mark.parametrize("m, d, s", [(250, 500, 50), (3, 7, 2), (100, 101, 1), (5, 9, 4)])
def test_momentum_has_the_rate_of_the_onsager_term(m, d, s):
    """OAMP halves nothing: tau2 = tau1 a / (1 - a), tau1 = tau2 (d - m) / m, a = s / d."""
    assert local_rate(m, d, s).accelerated ** 2 == pytest.approx((s / (d - s)) * ((d - m) / m))
    amp = local_rate(m, d, s, weights="dictionary")
    assert amp.accelerated**2 == pytest.approx(s / m)


@pytest.mark.parametrize("m, d, s", [(1, 1, 1), (4, 4, 3), (4, 9, 4), (6, 9, 5), (60, 90, 50)])
def test_sizes_at_their_limits(m, d, s):
    rate = local_rate(m, d, s)
    assert 0 <= rate.least <= rate.largest <= d / m * (1 + 1e-15)
    if m == d:
        assert (rate.plain, rate.best, rate.accelerated) == (0, 0, 0)
    if s > d - m and m < d:  # the row space and the support share a subspace
        assert rate.largest == d / m
    if s == m < d:  # the least eigenvalue tends to 0
        assert rate.accelerated == rate.best == 1 and rate.steps_to(-1).best == math.inf


@pytest.mark.parametrize(
    "m, s, condition",
    [
        (100, 20, None),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((100, 20, 30.0), (160, 60, 30.0))
        ),
    ],
)
def test_spectra_of_drawn_dictionaries(m, s, condition):
    """Edges fluctuate by a few m^(-2/3), 5 %, of the largest."""
    d, key = 200, jax.random.key(3)
    D = (
        dictionaries.gaussian(key, m, d)
        if condition is None
        else dictionaries.ill_conditioned(key, m, d, condition)
    )
    measured = support_rate(frobenius_weights(D), D, range(s))
    expected = local_rate(m, d, s)
    assert measured.least == pytest.approx(expected.least, abs=0.1)
    assert measured.largest == pytest.approx(expected.largest, abs=0.1)
    if condition is None:
        own, law = support_rate(D, D, range(s)), local_rate(m, d, s, weights="dictionary")
        assert (own.least, own.largest) == pytest.approx((law.least, law.largest), abs=0.25)


def error_after(rates, M, steps, beta=0.0, gamma=1.0):
    """The factor by which momentum of strength beta shrinks an error, at its worst."""
    E, last = np.eye(len(M)), np.eye(len(M))
    for _ in range(steps):
        E, last = E - gamma * M @ E + beta * (E - last), E
    return np.linalg.norm(E, 2)


def test_iterations_have_the_rates():
    D = np.asarray(dictionaries.gaussian(jax.random.key(0), 30, 60))
    W, S = np.asarray(frobenius_weights(D)), np.arange(8)
    rate, M = support_rate(W, D, S), W[:, S].T @ D[:, S]
    # The spectral radius is the limit of the roots of norms; 400 steps leave the constant, which is
    # a condition number, and for momentum a factor of the number of steps.
    slack = 400 ** (1 / 400) * 10 ** (1 / 400)
    for gamma, rho in ((1.0, rate.plain), (rate.best_step, rate.best)):
        assert rho <= error_after(rate, M, 400, gamma=gamma) ** (1 / 400) <= rho * slack
    low, high = math.sqrt(rate.least), math.sqrt(rate.largest)
    momentum = dict(gamma=4 / (high + low) ** 2, beta=rate.accelerated**2)
    measured = error_after(rate, M, 100, **momentum) ** (1 / 100)
    assert rate.accelerated <= measured <= rate.accelerated * 1000 ** (1 / 100)
    assert rate.accelerated < rate.best <= rate.plain


def test_eigenvalues_that_are_not_real():
    """A rotation by 60 degrees and 1/2: |1 - gamma v| is least at gamma = cos / 1."""
    D = jnp.eye(2)
    W = jnp.array([[0.5, -math.sqrt(3) / 2], [math.sqrt(3) / 2, 0.5]])
    rate = support_rate(W, D, [0, 1])
    assert (rate.least, rate.largest) == pytest.approx((0.5, 0.5))
    assert rate.plain == pytest.approx(1)
    assert rate.best_step == pytest.approx(0.5, abs=1e-3)
    assert rate.best == rate.accelerated == pytest.approx(math.sqrt(3) / 2, abs=1e-6)
    back = support_rate(-W, D, [0, 1])  # every step enlarges the error
    assert (back.best_step, back.best, back.accelerated) == (0, 1, 1) and back.plain > 1


def test_dependent_atoms_do_not_converge():
    D = jnp.array([[1.0, 1.0], [0.0, 0.0]])
    rate = support_rate(D, D, [0, 1])
    assert rate.best == pytest.approx(1) and rate.steps_to(-20).accelerated > 1e6


def test_structured_dictionaries():
    D = dictionaries.Conv(np.array([[[0.6, 0.8, 0.0]], [[0.0, 0.28, 0.96]]]), 13)
    matrix = dictionaries.dense(D)
    S = [0, 3, 12]
    assert support_rate(D, D, S) == pytest.approx(support_rate(matrix, matrix, S), abs=1e-12)


@pytest.mark.parametrize(
    "rate, dB, steps",
    [(0.6, -100, 23), (1 / 3, -100, 11), (0.1, -20, 1), (0.0, -5, 1), (0.5, 0, 0), (0.5, 9, 0)],
)
def test_steps(rate, dB, steps):
    found = LocalRate(1, 1, rate, 1, rate, rate).steps_to(dB)
    assert found == StepsTo(steps, steps, steps)
    assert LocalRate(1, 1, 1.2, 1, 1.0, 1.0).steps_to(-1) == StepsTo(*(math.inf,) * 3)


def test_no_number_of_steps_reaches_an_error_of_zero():
    assert local_rate(250, 500, 50).steps_to(-math.inf) == StepsTo(*(math.inf,) * 3)
    assert local_rate(5, 5, 1).steps_to(-math.inf) == StepsTo(1, 1, 1)  # one step does


def test_beyond_d_less_m_the_largest_eigenvalue_is_d_over_m():
    """Where s > d - m it takes the place of the upper edge, also in the rate of momentum."""
    rate = local_rate(90, 100, 50)
    assert rate.largest == 100 / 90
    low, high = math.sqrt(rate.least), math.sqrt(rate.largest)
    assert rate.accelerated == pytest.approx((high - low) / (high + low), rel=1e-12)
    assert rate.accelerated > math.sqrt(50 * 10 / (90 * 50)) + 0.04
