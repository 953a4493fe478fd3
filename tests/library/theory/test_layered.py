"""Thresholds and penalties of layered pursuits: no planted chain breaks them."""

import jax
import numpy as np
import pytest

import unrolled as ur

ud, up, ut = ur.dictionaries, ur.pursuit, ur.theory


def transversal_chain():
    """Two dictionaries whose coherences admit 3 and 1 nonzeros: (64, 128) and (128, 49)."""
    D1 = np.asarray(ud.identity_hadamard(64))
    D2 = np.asarray(ud.transversal(jax.random.key(1), 3, 7, 49))
    return D1, np.vstack([D2, np.zeros((128 - 21, 49))])


def planted(n, bound, noise, seed=0):
    """Signals of one atom of D_2 of size at most `bound` and at least half of it, and noise."""
    Ds, rng = transversal_chain(), np.random.default_rng(seed)
    X2 = np.zeros((n, 49))
    X2[np.arange(n), rng.integers(49, size=n)] = (
        bound * rng.choice([-1, 1], n) * rng.uniform(0.5, 1, n)
    )
    X1 = X2 @ Ds[1].T
    E = rng.normal(size=(n, 64))
    E *= noise / np.linalg.norm(E, axis=1, keepdims=True)
    return Ds, X1 @ Ds[0].T + E, (X1, X2)


def assert_within(found, xs, error):
    """No false positives, and errors within the bounds."""
    for x, estimate, bound in zip(xs, found.xs, error):
        assert not np.any(np.asarray(estimate)[x == 0])
        assert np.abs(estimate - x).max() <= bound * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_no_signal_of_the_class_breaks_the_thresholds(noise):
    Ds, Y, xs = planted(300, 1.0, noise)
    plan = ut.layered_thresholds(Ds, sparsities=(3, 1), bounds=(1 / np.sqrt(3), 1.0), noise=noise)
    assert plan.holds
    found = jax.jit(jax.vmap(lambda y: up.layered_thresholding(Ds, y, tuple(plan.lams))))(Y)
    assert_within(found, xs, plan.error)
    # The first layer errs even without noise, and by no less than its threshold.
    assert np.abs(np.asarray(found.xs[0]) - xs[0]).max() >= plan.lams[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("noise", [1e-3, 0.02])
def test_no_signal_of_the_class_breaks_the_penalties(noise):
    Ds, Y, xs = planted(40, 1.0, noise)
    plan = ut.layered_penalties(Ds, sparsities=(3, 1), noise=noise)
    assert plan.holds
    solve = jax.vmap(lambda y: up.layered_basis_pursuit(Ds, y, tuple(plan.lams), tol=1e-12))
    found = jax.jit(solve)(Y)
    assert np.asarray(found.converged).all()
    for x, estimate, bound in zip(xs, found.xs, plan.error):
        # A gap of 1e-12 leaves entries of its root.
        assert np.abs(np.asarray(estimate)[x == 0]).max() <= 1e-5
        assert np.abs(estimate - x).max() <= bound + 1e-5


@pytest.mark.slow
def test_the_error_of_penalties_is_in_proportion_to_the_noise_and_that_of_thresholds_is_not():
    Ds = transversal_chain()
    small, large = (ut.layered_penalties(Ds, sparsities=(3, 1), noise=n) for n in (0.01, 1.0))
    assert np.allclose(100 * small.error, large.error, rtol=1e-12)
    none = ut.layered_penalties(Ds, sparsities=(3, 1), noise=0.0)
    assert none.holds and not none.lams.any() and not none.error.any()
    thresholds = ut.layered_thresholds(Ds, sparsities=(3, 1), bounds=1.0)
    assert (thresholds.error > 0).all()


def test_the_numbers_by_their_definition():
    D1, D2 = transversal_chain()
    mu1, mu2 = 1 / 8, 1 / 3
    plan = ut.layered_thresholds((D1, D2), sparsities=(3, 1), bounds=(2.0, 1.0), noise=0.1)
    theta = mu1 * 3 * 2 + 0.1
    first = theta + 2 * mu1 * 2 + 0.1
    delta = first * 3 / np.sqrt(3)  # three entries of 1 / sqrt(3) in every atom
    assert np.allclose(plan.lams, [theta, mu2 + delta]) and plan.error[0] == pytest.approx(first)
    penalties = ut.layered_penalties((D1,), sparsities=(3,), noise=0.1)
    lam = 0.1 * (1 + mu1) / (1 - 5 * mu1)
    assert penalties.lams == pytest.approx([lam])
    assert penalties.error == pytest.approx([(lam + 0.1) / (1 - 2 * mu1)])


@pytest.mark.parametrize("norm", [1 - 9e-5, 1 + 9e-5])
def test_atoms_off_unit_norm_as_far_as_allowed_stay_within_the_bounds(norm):
    D, delta = norm * np.eye(3), 0.1
    plan = ut.layered_thresholds((D,), sparsities=(1,), bounds=1.0, noise=delta)
    for e in (-delta, delta):  # d_1 . e
        found = np.maximum(norm**2 + e - plan.lams[0], 0)
        assert abs(found - 1) <= plan.error[0]
    y = norm * np.array([0, 1.0, 0]) + [delta, 0, 0]  # norm(e, 2) = delta, d_1 . e is norm delta
    assert up.layered_thresholding((D,), y, tuple(plan.lams)).xs[0][0] == 0
    plan = ut.layered_penalties((D,), sparsities=(1,), noise=delta)
    assert up.layered_basis_pursuit((D,), y, tuple(plan.lams)).xs[0][0] == 0
    for e in (-delta, delta):
        found = (norm**2 + e - plan.lams[0]) / norm**2
        assert abs(found - 1) <= plan.error[0] and plan.holds


def test_the_admissible_sparsity_is_that_of_theorem_1():
    D = transversal_chain()[0]  # (1 + 8) / 2 = 4.5
    for s, holds in ((0, True), (4, True), (5, False), (100, False)):
        plan = ut.layered_penalties((D,), sparsities=(s,), noise=0.1)
        assert plan.holds == holds and np.isfinite(plan.error[0]) == holds
    assert ut.layered_penalties((D,), sparsities=(0,), noise=0.1).error == [0.0]


@pytest.mark.slow
def test_stripes_of_convolutions_count_locally():
    """Many atoms, but few in every stripe: the penalties of the stripe norm hold."""
    rng = np.random.default_rng(0)
    filters = np.linalg.qr(rng.normal(size=(8, 8)))[0][:2].reshape(2, 1, 8)
    D = ud.Conv(filters, 160, stride=4, boundary="circular")
    mu = float(ut.mutual_coherence(D))
    s = ut.max_sparsity(mu, D.shape[1])
    assert s >= 1
    x = np.zeros((2, 40))
    x[rng.integers(2, size=10), np.arange(0, 40, 4)] = rng.uniform(0.5, 1, 10)
    assert ut.stripe_norm(x, 8, stride=4, circular=True) == 1 and np.count_nonzero(x) > s
    x, e = x.ravel(), rng.normal(size=160)
    noise = 0.02
    e *= noise / np.linalg.norm(np.asarray(D.patches(e)), axis=1).max()
    plan = ut.layered_penalties((D,), sparsities=(1,), noise=noise, stripes=True)
    assert plan.holds
    found = up.layered_basis_pursuit((D,), D @ x + e, tuple(plan.lams), tol=1e-12)
    estimate = np.asarray(found.xs[0])
    assert np.abs(estimate[x == 0]).max() <= 1e-5
    assert np.abs(estimate - x).max() <= plan.error[0] + 1e-5


# The errors of the oracles.


def random_supports(rng, p, d, s, zeros):
    return np.setdiff1d(np.arange(p), rng.choice(p, zeros, replace=False)), rng.choice(d, s, False)


@pytest.mark.few(2)
@pytest.mark.parametrize("zeros", [0, 1, 4, 7])
def test_the_holistic_oracle_is_never_worse_than_the_projection(zeros):
    rng = np.random.default_rng(zeros)
    for _ in range(10):
        Ds = rng.normal(size=(20, 40)), rng.normal(size=(40, 25))
        supports = random_supports(rng, 40, 25, 8, zeros)
        found = ut.oracle_errors(Ds, supports, sigma=0.3)
        assert found.freedom == 8 - zeros
        assert (found.holistic <= found.projection * (1 + 1e-10)).all()
        A = (Ds[0] @ Ds[1])[:, supports[1]]
        assert found.projection[1] == pytest.approx(0.09 * np.trace(np.linalg.inv(A.T @ A)))
        if not zeros:
            assert found.holistic == pytest.approx(found.projection)
        else:
            assert (found.holistic < found.projection).all()


@pytest.mark.slow
def test_least_squares_on_the_supports_has_the_error_of_the_oracle():
    rng = np.random.default_rng(0)
    Ds = rng.normal(size=(20, 40)), rng.normal(size=(40, 25))
    supports = random_supports(rng, 40, 25, 8, 5)
    E = 0.1 * rng.normal(size=(4000, 20))
    # The estimate is linear in y: the codes of the noise are the errors.
    fit = jax.jit(jax.vmap(lambda y: ut.recover_on_supports(y, Ds, supports).xs))
    errors = [np.mean(np.sum(np.asarray(x) ** 2, 1)) for x in fit(E)]
    # A mean of 4,000 squares with 3 degrees of freedom: 1.3 % of relative deviation.
    assert errors == pytest.approx(ut.oracle_errors(Ds, supports, 0.1).holistic, rel=0.06)


@pytest.mark.slow
def test_oracles_that_cannot_know_and_empty_supports():
    rng = np.random.default_rng(0)
    Ds = rng.normal(size=(5, 12)), rng.normal(size=(12, 10))
    found = ut.oracle_errors(Ds, (np.arange(8), np.arange(7)))
    assert np.isinf(found.projection).all() and np.isfinite(found.holistic).all()
    silent = ut.oracle_errors(Ds, (np.arange(8), np.arange(7)), sigma=0.0)
    assert np.isinf(silent.projection).all() and not silent.holistic.any()
    nothing = ut.oracle_errors(Ds, (np.arange(12), []))
    assert nothing.freedom == 0 and not nothing.projection.any() and not nothing.holistic.any()
    assert not ut.oracle_errors(Ds, ([], np.arange(7))).holistic.any()
