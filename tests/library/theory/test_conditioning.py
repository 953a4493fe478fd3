"""The conditioning of Gaussian dictionaries: exact laws, Monte Carlo, and all sets of atoms."""

import copy
import functools
import itertools
import math
import pickle

import jax
import numpy as np
import pytest
from scipy import stats

from unrolled import dictionaries
from unrolled.theory import ErrorBar, error_bar, gaussian_conditioning
from unrolled.theory._spectra import _law


@pytest.mark.parametrize(
    "shape, k, kappa",
    [
        ((250, 500), 20, 0.284),
        ((250, 500), 50, 0.136),
        ((250, 500), 100, 0.038),
        ((250, 500), 120, 0.020),
        ((250, 500), 160, 0.0034),
        ((333, 500), 100, 0.089),
        ((500, 1000), 100, 0.148),
        ((500, 1000), 200, 0.042),
        ((125, 500), 50, 0.0205),
    ],
)
def test_figures(shape, k, kappa):
    # Stated to two or three digits.
    assert gaussian_conditioning(*shape, k, 1 - 1e-6) == pytest.approx(kappa, rel=0.03)


@pytest.mark.parametrize("m", [1, 2, 7, 250])
def test_the_law_of_one_column_is_that_of_its_energy(m):
    for quantile in (1e-9, 1e-3, 0.5, 0.999):
        t = stats.chi2.ppf(quantile, m)
        assert math.exp(_law(math.log(t), m, 1)) == pytest.approx(quantile, rel=1e-9)


@pytest.mark.parametrize("m", [2, 30, 250])
def test_the_law_of_a_square_matrix_starts_as_the_root(m):
    # P(l <= t) = sqrt(m t) for small t: the limit law 1 - exp(-x/2 - sqrt(x)) of m l, with the
    # Gamma function for sqrt(m): Gamma((m+1)/2) / Gamma(m/2) = sqrt(m/2) (1 - 1/(4m) + ...).
    assert math.exp(_law(math.log(1e-12), m, m)) == pytest.approx(math.sqrt(m) * 1e-6, rel=1 / m)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "m, k",
    [
        (6, 2),
        (20, 5),
        pytest.param(20, 20, marks=SLOW),
        pytest.param(40, 25, marks=SLOW),
    ],
)
def test_the_law_bounds_the_least_eigenvalue_and_is_tight_in_the_tail(m, k):
    """By 20,000 draws, at two quantiles of them."""
    n = 20_000
    G = np.random.default_rng(m).normal(size=(n, m, k))
    least = np.sort(np.linalg.eigvalsh(np.swapaxes(G, 1, 2) @ G)[:, 0])
    for quantile, factor in ((1e-2, 5), (0.1, math.inf)):
        bound = math.exp(_law(math.log(least[int(quantile * n) - 1]), m, k))
        spread = 4 * math.sqrt(quantile / n)  # four standard deviations
        assert quantile - spread <= bound <= factor * quantile


def least_of_all_sets(D, k):
    sets = np.array(list(itertools.combinations(range(D.shape[1]), k)))
    atoms = np.swapaxes(D.T[sets], 1, 2)
    return np.sqrt(np.linalg.eigvalsh(np.swapaxes(atoms, 1, 2) @ atoms)[:, 0].min())


def test_no_set_of_atoms_of_drawn_dictionaries_is_below():
    kappa = gaussian_conditioning(8, 12, 3, 0.99)
    least = [least_of_all_sets(drawn(seed, 8, 12), 3) for seed in range(40)]
    assert min(least) >= kappa > 0.04


@SLOW
def test_no_set_of_atoms_is_below_in_all_of_150_dictionaries():
    """All C(22, 5) = 26,334 sets."""
    kappa = gaussian_conditioning(16, 22, 5, 0.99)
    least = [least_of_all_sets(drawn(seed, 16, 22), 5) for seed in range(150)]
    assert min(least) >= kappa > 0.07


def drawn(seed, m, d):
    return np.asarray(dictionaries.gaussian(jax.random.key(seed), m, d))


def test_it_falls_with_more_atoms_and_more_confidence():
    kappas = [gaussian_conditioning(40, 80, k) for k in range(1, 42)]
    assert kappas[0] == 1 and kappas[40] == 0
    assert all(a > b for a, b in itertools.pairwise(kappas))
    assert gaussian_conditioning(40, 80, 5, 0.9) > gaussian_conditioning(40, 80, 5, 0.99)


def test_a_bound_below_every_float_is_zero():
    assert gaussian_conditioning(2000, 20_000, 2000) == 0


def test_more_atoms_than_there_are():
    assert gaussian_conditioning(40, 20, 30) == gaussian_conditioning(40, 20, 20) > 0


def test_a_copy_knows_of_how_many_atoms():
    kappa = gaussian_conditioning(40, 80, 5)
    for other in (copy.deepcopy(kappa), pickle.loads(pickle.dumps(kappa))):
        assert (other, other.atoms) == (kappa, 5)


# Error bars


def sparse(rng, d, s):
    x = np.zeros(d)
    x[rng.permutation(d)[:s]] = rng.normal(size=s)
    return x


@functools.cache
def large():
    return drawn(0, 250, 500), gaussian_conditioning(250, 500, 100)


def test_fifty_nonzeros_of_five_hundred():
    """A residual of 1e-4 norm(y) puts a code within 2.6e-3 norm(y) of every truth."""
    D, kappa = large()
    rng = np.random.default_rng(0)
    truth = sparse(rng, 500, 50)
    y, x = D @ truth, truth.copy()
    T = np.flatnonzero(truth)
    x[T] += 1e-3 * rng.normal(size=50)
    x[T] += np.linalg.lstsq(D[:, T], y - D @ x, rcond=None)[0] * (1 - 1e-2)
    x[T] = truth[T] + (x[T] - truth[T]) * 1e-4 * np.linalg.norm(y) / np.linalg.norm(y - D @ x)
    bar = error_bar(None, D, x, y, sparsity=50, conditioning=kappa)
    assert bar.holds and bar.l2 == pytest.approx(2.6e-3 * np.linalg.norm(y), rel=0.01)
    assert np.linalg.norm(x - truth) <= bar.l2
    # Mutual coherence says nothing here, and the bar with both is the one that holds.
    assert not error_bar(D, D, x, y, sparsity=50).holds
    assert error_bar(D, D, x, y, sparsity=50, conditioning=kappa) == bar
    noisy = error_bar(None, D, x, y, sparsity=50, noise=0.1, conditioning=kappa)
    assert noisy.l2 == pytest.approx(bar.l2 + 0.1 / kappa)
    assert bar.linf == bar.l2 and bar.l1 == pytest.approx(10 * bar.l2)


def test_codes_of_more_nonzeros_than_the_conditioning_knows():
    D, kappa = large()
    x = sparse(np.random.default_rng(1), 500, 51)
    beyond = error_bar(None, D, x, D @ x, sparsity=50, conditioning=kappa)
    assert not beyond.holds and math.isinf(beyond.l2)
    # A number of one's own is taken at its word, up to m atoms.
    assert error_bar(None, D, x, D @ x, sparsity=50, conditioning=float(kappa)).holds
    assert not error_bar(None, D, x, D @ x, sparsity=200, conditioning=float(kappa)).holds
    assert not error_bar(None, D, x, D @ x, sparsity=9, conditioning=0.0).holds


def test_bars_are_never_violated_by_all_pairs_of_supports():
    """kappa is the least singular value of all sets of 4 atoms; codes of two nonzeros each."""
    D, rng = drawn(3, 8, 12), np.random.default_rng(2)
    kappa = least_of_all_sets(D, 4)
    for _ in range(200):
        x, truth = sparse(rng, 12, 2), sparse(rng, 12, 2)
        e = rng.normal(size=8) * 0.01
        bar = error_bar(
            None, D, x, D @ truth + e, sparsity=2, noise=np.abs(e).sum(), conditioning=kappa
        )
        h = np.abs(x - truth)
        assert h.max() <= bar.linf and np.linalg.norm(h) <= bar.l2 and h.sum() <= bar.l1


def test_with_weights_the_bar_is_the_lesser_in_every_norm():
    D = np.asarray(dictionaries.identity_hadamard(64))
    x = sparse(np.random.default_rng(0), 128, 2)
    y = D @ x + 1e-3
    one, other = (
        error_bar(D, D, x, y, sparsity=2),
        error_bar(None, D, x, y, sparsity=2, conditioning=0.7),
    )
    both = error_bar(D, D, x, y, sparsity=2, conditioning=0.7)
    assert both == jax.tree.map(min, one, other).replace(holds=True)


def test_zero_codes_and_dictionaries_of_float32():
    D = drawn(0, 20, 40)
    zero = np.zeros(40)
    bar = error_bar(None, D, zero, D[:, 0], sparsity=0, conditioning=0.5)
    assert bar == ErrorBar(0, 0, 0, True)
    kappa = gaussian_conditioning(20, 40, 3)
    x = sparse(np.random.default_rng(0), 40, 2)
    wide, stored = (
        error_bar(None, A, x, D @ x + 1e-3, sparsity=1, conditioning=kappa)
        for A in (D, D.astype(np.float32))
    )
    # Two roundings of the entries of three atoms, and norms off by 1e-7.
    assert wide.l2 < stored.l2 <= wide.l2 * (1 + 1e-5)


def test_a_conditioning_of_ones_own_is_that_of_the_atoms_as_they_are():
    """Norms above 1, which the tolerance of unit atoms lets through, do not enlarge it."""
    D, x = 1.00009 * np.eye(4), np.eye(4)[0]
    bar = error_bar(None, D, np.zeros(4), D @ x, sparsity=1, conditioning=1.00009)
    assert bar.holds and 1.0 <= bar.l2 <= 1.0002
