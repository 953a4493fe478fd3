"""Bounds from a sample: their coverage over many samples, against exact binomial sums."""

import math
from fractions import Fraction

import numpy as np
import pytest

from unrolled.theory import exceedance, signals_needed, tolerance_bound

REPETITIONS = 2000
CLASS = dict(share=0.05, confidence=0.9)


def binomial(r, n, p):
    """P(Bin(n, p) <= r), a sum of positive terms."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(r + 1))


# The sample that is needed


@pytest.mark.parametrize(
    "share, confidence, at_once, n",
    [
        (1e-3, 1 - 1e-6, 1, 13_809),
        (1e-3, 1 - 1e-6, 17, 16_641),
        (1e-3, 1 - 1e-6, 170, 18_942),
        (1e-2, 1 - 1e-6, 1, 1_375),
        (0.05, 0.95, 1, 59),
        (0.5, 1 - 2.0**-10, 1, 10),  # an exact quotient of logarithms, which they round
        (0.999, 0.5, 1, 1),
    ],
)
def test_the_least_sample(share, confidence, at_once, n):
    assert signals_needed(share, confidence, at_once) == n
    risk = Fraction(1 - confidence) / at_once
    assert (1 - Fraction(share)) ** n <= risk
    assert n == 1 or (1 - Fraction(share)) ** (n - 1) > risk


@pytest.mark.parametrize("at_once", [1, 7])
@pytest.mark.parametrize("n", [1, 43, 45, 46, 76, 77, 200, 333])
def test_as_many_are_left_out_as_the_binomial_law_permits(n, at_once):
    found = tolerance_bound(np.arange(n), at_once=at_once, **CLASS)
    risk = (1 - CLASS["confidence"]) / at_once
    permitted = [r for r in range(min(n, 40)) if binomial(r, n, CLASS["share"]) <= risk]
    assert found.holds == bool(permitted)
    assert found.missing == max(0, found.needed - n)
    if permitted:
        assert (found.left_out, found.bound) == (permitted[-1], n - 1 - permitted[-1])
    else:
        assert (found.left_out, found.bound) == (0, math.inf)


def test_eleven_largest_of_34416():
    assert [tolerance_bound(np.zeros(n)).left_out for n in (34_415, 34_416)] == [9, 10]


# Coverage


def cauchy(u):
    return np.tan(np.pi * (u - 0.5))


LAWS = {
    "heavy tails": (cauchy, lambda bound: 0.5 - math.atan(bound) / math.pi),
    # Geometric with p = .3: at most a few values, each many times.
    "ties": (
        lambda u: np.floor(np.log1p(-u) / math.log(0.7)),
        lambda bound: 0.7 ** (bound + 1),
    ),
    # 3 % of the errors are infinite.
    "failures": (
        lambda u: np.where(u < 0.97, u, np.nan),
        lambda bound: 1 - bound if bound < math.inf else 0.0,
    ),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("n", [45, 120])
@pytest.mark.parametrize("law", LAWS)
def test_coverage_over_samples(law, n):
    draw, exceeding = LAWS[law]
    rng = np.random.default_rng(n)
    found = [tolerance_bound(draw(rng.random(n)), **CLASS) for _ in range(REPETITIONS)]
    broken = np.mean([exceeding(f.bound) > CLASS["share"] for f in found])
    promised = binomial(found[0].left_out, n, CLASS["share"])
    spread = 4 * math.sqrt(promised / REPETITIONS)  # four standard deviations
    assert broken <= promised + spread <= 1 - CLASS["confidence"] + spread
    if law == "heavy tails":
        assert broken >= promised - spread  # exact for a continuous law


def test_coverage_of_several_at_once():
    rng, M = np.random.default_rng(0), 5
    kept = [
        all(tolerance_bound(e, at_once=M, **CLASS).bound >= 0.95 for e in rng.random((M, 90)))
        for _ in range(REPETITIONS // M)
    ]
    assert np.mean(kept) >= 0.9 - 4 * math.sqrt(0.1 * M / REPETITIONS)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.97])
def test_coverage_of_the_exceedance(p):
    rng = np.random.default_rng(1)
    found = [exceedance(rng.random(50), 1 - p, 0.9) for _ in range(REPETITIONS)]
    assert np.mean(np.array(found) < p) <= 0.1 + 4 * math.sqrt(0.1 / REPETITIONS)


@pytest.mark.parametrize("k, n", [(0, 20), (3, 20), (19, 20), (5, 1000)])
def test_the_exceedance_inverts_the_binomial_law(k, n):
    errors = np.r_[np.zeros(n - k), np.ones(k)]
    bound = exceedance(errors, 0.5, 0.99)
    # It is rounded up by 1e-9, and the slope of ln P is at most n / (1 - p).
    assert binomial(k, n, bound) == pytest.approx(0.01, rel=2e-9 * n / (1 - bound))
    assert binomial(k, n, bound) <= 0.01
    assert exceedance(np.ones(n), 0.5, 0.99) == exceedance([], 0.5, 0.99) == 1.0


def test_the_bound_of_a_sample_and_the_exceedance_agree():
    errors = np.random.default_rng(0).normal(size=20_000)
    found = tolerance_bound(errors)
    assert exceedance(errors, found.bound) <= 1e-3
    assert exceedance(errors, np.sort(errors)[-found.left_out - 2]) > 1e-3


# Errors that are no numbers, and faults


def test_errors_that_are_not_finite_are_the_largest():
    errors = np.arange(200.0)
    least = tolerance_bound(errors, **CLASS)
    r = least.left_out
    assert r == 5
    worse = errors.copy()
    worse[:r] = [np.nan, np.inf, np.nan, np.inf, np.nan]
    assert tolerance_bound(worse, **CLASS) == least.replace(bound=199.0)
    worse[r] = np.nan
    assert tolerance_bound(worse, **CLASS) == least.replace(bound=math.inf, holds=False)
    assert exceedance(np.array([np.nan, 0.0]), 1e300, 0.9) == exceedance([1.0, 0.0], 0.5, 0.9)
    # Errors in decibels may be -inf.
    assert tolerance_bound(np.full(60, -np.inf), **CLASS).bound == -np.inf


def test_too_small_a_sample_says_how_many_are_missing():
    found = tolerance_bound(np.zeros(13_000))
    assert (found.holds, found.bound, found.needed, found.missing) == (False, math.inf, 13_809, 809)


def test_errors_of_float32_keep_their_values():
    errors = np.random.default_rng(0).random(60).astype(np.float32)
    assert tolerance_bound(errors, **CLASS).bound == float(errors.max())


def test_a_sample_of_none_certifies_nothing():
    """1 - 1e-17 is 1 in float64: without risk to avoid, a bound still is the error of a signal."""
    assert signals_needed(0.1, 1e-17) == 1
    found = tolerance_bound([], share=0.1, confidence=1e-17)
    assert (found.bound, found.holds, found.missing) == (math.inf, False, 1)
