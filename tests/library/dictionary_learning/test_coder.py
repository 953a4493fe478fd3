"""How learners find codes: up to the gap of the coder, in the units of the caller, with weights."""

import math

import numpy as np
import pytest

import unrolled as ur
from unrolled.dictionary_learning._coder import Coder
from unrolled.dictionary_learning._learning import weighted_signals

RNG = np.random.default_rng(0)
D = RNG.normal(size=(8, 12))
D /= np.linalg.norm(D, axis=0)
Y = 40 * RNG.normal(size=(6, 8))  # a learner divides them by a power of two
WEIGHTS = RNG.uniform(1, 9, Y.shape)
LAM = 25.0


def objective(Y, V, X, lam):
    return np.sum(V * (Y - X @ D.T) ** 2, 1) / 2 + lam * np.abs(X).sum(1)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_codes_minimise_the_objective_of_the_caller_up_to_the_gap(weighted, nonnegative):
    signals = weighted_signals(Y, "", WEIGHTS if weighted else None)
    V = WEIGHTS if weighted else np.ones_like(Y)
    coder = Coder(nonnegative, lam=LAM)
    exact = np.stack(
        [
            ur.pursuit.lasso(
                np.sqrt(v)[:, None] * D, np.sqrt(v) * y, LAM, nonnegative=nonnegative
            ).x
            for v, y in zip(V, Y)
        ]
    )
    best = objective(Y, V, exact, LAM)
    for tol in (coder.tol, 1e-8):
        coded = coder._replace(tol=tol).coded(D, signals)
        X = np.ldexp(coded.X, signals.exponent)
        apart = objective(Y, V, X, LAM) - best
        assert (np.abs(apart) <= tol * np.sum(V * Y**2, 1) / 2).all()
        assert signals.in_units(coded.objective) == pytest.approx(np.mean(best + apart))
        assert (X >= 0).all() or not nonnegative
    assert np.abs(apart).max() < 1e-6 * best.max()  # at the smaller tol, which is what is asked


def test_greedy_codes_are_weighted_least_squares_on_their_supports():
    signals = weighted_signals(Y, "", WEIGHTS)
    coded, unit = Coder(False, 3).coded(D, signals), math.ldexp(1, -signals.exponent)
    for x, r, v, y in zip(coded.X, coded.R, np.sqrt(WEIGHTS), Y):
        S = np.flatnonzero(x)
        best = np.linalg.lstsq(v[:, None] * D[:, S], v * y, rcond=None)[0]
        assert len(S) == 3
        np.testing.assert_allclose(x[S], unit * best, rtol=1e-9)
        np.testing.assert_allclose(r, unit * y - D @ x, atol=1e-12)
    assert coded.penalty == 0


def test_a_file_names_what_the_coder_was_told_and_signs_only_if_they_are_constrained():
    assert Coder.of(0.5, None, False, "").config() == {"lam": 0.5}
    assert Coder.of(None, 3, True, "").config() == {"sparsity": 3, "nonnegative": True}
    assert Coder.of_omp(3, False, "").config() == {"sparsity": 3}
