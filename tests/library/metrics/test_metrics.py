"""Metrics against plain numpy formulas, their edge cases, and the LASSO of scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

from unrolled import dictionaries, metrics

EPS = np.finfo(float).eps


@pytest.fixture
def codes():
    """Estimates and truth, (6, 9), with about half of the entries zero in each."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6, 9)) * (rng.uniform(size=(6, 9)) < 0.5)
    X[:, 0] = 1
    return (X + 0.1 * rng.normal(size=X.shape)) * (rng.uniform(size=X.shape) < 0.7), X


def decibel(error, energy):
    return 10 * np.log10(np.sum(error**2) / np.sum(energy**2))


def test_nmse_formulas(codes):
    estimates, X = codes
    by_signal = [decibel(e - x, x) for e, x in zip(estimates, X)]
    # Sums of 54 squares and a logarithm: values of size 10 to a relative 1e-14.
    assert float(metrics.nmse(estimates, X)) == pytest.approx(decibel(estimates - X, X), rel=1e-13)
    np.testing.assert_allclose(np.asarray(metrics.signal_nmse(estimates, X)), by_signal, rtol=1e-13)
    assert float(metrics.mean_nmse(estimates, X)) == pytest.approx(np.mean(by_signal), rel=1e-13)


def test_one_of_two_arrays_may_be_traced(codes):
    """The other one is a constant of numpy, in either place."""
    for metric in (metrics.nmse, metrics.signal_nmse, metrics.mean_nmse, metrics.psnr):
        expected = np.asarray(metric(*codes))
        for place in (0, 1):
            pair = list(codes)
            traced = jax.jit(lambda v: metric(*pair[:place], v, *pair[place + 1 :]))  # noqa: B023
            np.testing.assert_allclose(traced(codes[place]), expected, rtol=64 * EPS)


def test_gradients_are_finite_where_the_metrics_are():
    """At a zero code, which counts for nothing, and at an estimate that is exact."""
    X = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]])
    estimates = X + np.array([[0.1, 0.0], [0.1, 0.1], [0.0, 0.0]])
    value, slope = jax.jit(jax.value_and_grad(metrics.mean_nmse))(estimates, X)
    # 10 log10(e^2 / 5) of the first row, half of the mean, has the derivative 10 / (log(10) e).
    assert float(value) == pytest.approx((10 * np.log10(0.01 / 5) - 300) / 2, rel=1e-12)
    expected = [[10 / np.log(10) / 0.1, 0], [0, 0], [0, 0]]
    np.testing.assert_allclose(slope, expected, rtol=1e-12, atol=0)
    hoyer = np.asarray(jax.jit(jax.grad(lambda x: metrics.sparsity(x).hoyer))(X))
    assert np.isfinite(hoyer).all() and not hoyer[1].any() and hoyer[0].all()


def test_support_scores_keep_float32():
    scores = metrics.support_scores(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert {score.dtype for score in jax.tree.leaves(scores)} == {np.dtype("float32")}


def test_the_two_definitions_differ_when_a_few_signals_fail():
    X = np.ones((10, 4))
    estimates = X * (1 + 1e-5)  # -100 dB
    estimates[0] = 0  # 0 dB: its error is all the error
    assert float(metrics.nmse(estimates, X)) == pytest.approx(-10, abs=1e-6)
    assert float(metrics.mean_nmse(estimates, X)) == pytest.approx(
        -90, abs=1e-4
    )  # 1 + 1e-5 is rounded
    assert float(metrics.failure_rate(estimates, X)) == pytest.approx(0.1)


def test_scales_weigh_in_nmse_only():
    X = np.array([[1.0, 0.0], [100.0, 0.0]])
    estimates = np.array([[0.0, 0.0], [99.0, 0.0]])  # 0 dB and -40 dB
    assert float(metrics.mean_nmse(estimates, X)) == pytest.approx(-20)
    assert float(metrics.nmse(estimates, X)) == pytest.approx(10 * np.log10(2 / 10001))


def test_mean_nmse_floors_and_leaves_out_zero_codes():
    X = np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    estimates = np.array([[1.0, 0.0], [0.5, 0.0], [2.2, 0.0]])  # exact; of a zero code; -20 dB
    assert float(metrics.mean_nmse(estimates, X)) == pytest.approx((-300 - 20) / 2)
    first, second, _ = metrics.signal_nmse(estimates, X)
    assert first == -np.inf and second == np.inf


def test_failure_rate():
    X = np.ones((4, 10))
    estimates = X * np.array(
        [[1.0], [0.95], [0.8], [np.nan]]
    )  # exact, -26 dB, -14 dB, not a number
    for level, rate in ((-20.0, 0.5), (-30.0, 0.75), (-10.0, 0.25)):
        assert float(metrics.failure_rate(estimates, X, level)) == rate
    zero = np.zeros((1, 10))
    assert metrics.failure_rate(zero, zero) == 0 and metrics.failure_rate(zero + 1e-9, zero) == 1
    assert metrics.failure_rate(X, X * np.inf) == 1


def test_support_scores_formula(codes):
    estimates, X = codes
    for tolerance in (0.0, 0.3):
        precision, recall, wrong = [], [], []
        for e, x in zip(estimates, X):
            chosen, true = set(np.flatnonzero(np.abs(e) > tolerance)), set(np.flatnonzero(x))
            precision.append(len(chosen & true) / len(chosen))
            recall.append(len(chosen & true) / len(true))
            wrong.append(len(chosen - true))
        scores = metrics.support_scores(estimates, X, tolerance)
        # Means of six numbers of size 1.
        np.testing.assert_allclose(
            np.array(jax.tree.leaves(scores)),
            np.mean([precision, recall, wrong], axis=1),
            rtol=16 * EPS,
        )


@pytest.mark.parametrize(
    "estimate, truth, expected",
    [
        ([0, 0, 0], [1, 0, 2], (np.nan, 0, 0)),  # nothing chosen
        ([1, 0, 2], [0, 0, 0], (0, np.nan, 2)),  # nothing true
        ([0, 0, 0], [0, 0, 0], (np.nan, np.nan, 0)),  # neither
        ([1, 2, 3], [1, 0, 0], (1 / 3, 1, 2)),
        ([1e-9, 0, 0], [1, 1, 0], (1, 0.5, 0)),
    ],
)
def test_support_scores_edges(estimate, truth, expected):
    scores = metrics.support_scores(np.array([estimate], float), np.array([truth], float))
    np.testing.assert_allclose(np.array(jax.tree.leaves(scores)), expected, rtol=2 * EPS)


def test_support_scores_are_means_over_the_signals_that_have_them():
    X = np.array([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]])
    estimates = np.array([[1.0, 1, 0], [0, 0, 0], [0, 1, 0]])
    scores = metrics.support_scores(estimates, X)
    np.testing.assert_allclose(jax.tree.leaves(scores), (0.25, 0.5, 2 / 3))


def test_support_scores_tolerance_is_strict():
    X = np.array([[1.0, 1.0]])
    assert metrics.support_scores(np.array([[0.5, 0.6]]), X, 0.5).recall == 0.5


def test_psnr(dtype):
    rng = np.random.default_rng(1)
    reference = rng.uniform(size=(8, 8)).astype(dtype)
    estimate = (reference + 0.05 * rng.normal(size=(8, 8))).astype(dtype)
    error = estimate.astype(float) - reference.astype(float)
    for peak in (1.0, 255.0):
        expected = 10 * np.log10(peak**2 / np.mean(error**2))
        ours = metrics.psnr(jnp.asarray(estimate), jnp.asarray(reference), peak)
        assert ours.dtype == dtype
        # A mean of 64 squares whose differences carry the rounding of numbers of size 1 over 0.05.
        assert float(ours) == pytest.approx(expected, abs=200 * float(np.finfo(dtype).eps))
    assert metrics.psnr(jnp.asarray(reference), jnp.asarray(reference)) == jnp.inf
    assert jnp.isnan(metrics.psnr(jnp.zeros((0, 8)), jnp.zeros((0, 8))))  # not a perfect score


def test_psnr_of_byte_images():
    black, white = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    assert float(metrics.psnr(black, white, 255.0)) == pytest.approx(0, abs=1e-5)


def test_ssim_is_its_formula_window_by_window(dtype):
    """Against weighted moments of each window, computed one window after the other."""
    rng = np.random.default_rng(2)
    reference = rng.uniform(size=(2, 14, 17)).astype(dtype)
    estimate = np.clip(reference + 0.3 * rng.normal(size=(2, 14, 17)), 0, 1).astype(dtype)
    weights = np.exp(-0.5 * (np.hypot(*np.mgrid[-5:6, -5:6]) / 1.5) ** 2)
    weights /= weights.sum()

    def one(x, y):
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        dx, dy = x - mean_x, y - mean_y
        xx, yy, xy = ((weights * product).sum() for product in (dx * dx, dy * dy, dx * dy))
        light = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        return light * (2 * xy + 9e-4) / (xx + yy + 9e-4)

    def whole(x, y):
        at = [(slice(i, i + 11), slice(j, j + 11)) for i in range(4) for j in range(7)]
        return np.mean([one(x[window], y[window]) for window in at])

    expected = [whole(x, y) for x, y in zip(estimate.astype(float), reference.astype(float))]
    for one_kind in (np.asarray, jnp.asarray):
        ours = metrics.ssim(one_kind(estimate), one_kind(reference))
        # Moments of 121 numbers of size 1, over variances of at least 0.05.
        assert np.abs(np.asarray(ours) - expected).max() < 200 * float(np.finfo(dtype).eps)
        np.testing.assert_array_equal(metrics.ssim(one_kind(reference), one_kind(reference)), 1)
    scaled = metrics.ssim(256 * estimate, 256 * reference, 256.0)
    np.testing.assert_array_equal(scaled, metrics.ssim(estimate, reference))


def test_ssim_needs_a_window():
    with pytest.raises(ValueError, match=r"ssim: pictures have shape \(16, 10\); expected"):
        metrics.ssim(np.ones((16, 10)), np.ones((16, 10)))


@pytest.mark.parametrize(
    "name", ["nmse", "signal_nmse", "mean_nmse", "failure_rate", "support_scores"]
)
def test_a_metric_is_the_same_under_jit(codes, name):
    eager, traced = (f(*codes) for f in (getattr(metrics, name), jax.jit(getattr(metrics, name))))
    for a, b in zip(jax.tree.leaves(traced), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_kkt_violation_formula(codes):
    rng = np.random.default_rng(2)
    D, y, x, lam = rng.normal(size=(5, 9)), rng.normal(size=5), codes[0][0], 0.3
    g = D.T @ (y - D @ x)
    violations = [
        abs(g[i] - lam * np.sign(x[i])) if x[i] else max(abs(g[i]) - lam, 0) for i in range(9)
    ]
    ours = metrics.kkt_violation(jnp.asarray(D), jnp.asarray(y), jnp.asarray(x), lam)
    assert float(ours) == pytest.approx(max(violations) / lam, rel=1e-13)


def test_kkt_violation_of_orthonormal_and_zero_codes():
    y, lam = jnp.asarray([3.0, -0.5, 1.0, -2.0]), 0.75
    soft = jnp.sign(y) * jnp.maximum(jnp.abs(y) - lam, 0)
    assert metrics.kkt_violation(jnp.eye(4), y, soft, lam) == 0  # every number here is exact
    assert metrics.kkt_violation(jnp.eye(4), y, jnp.zeros(4), 3.0) == 0  # lam = norm(D' y, inf)
    assert metrics.kkt_violation(jnp.eye(4), y, jnp.zeros(4), 2.0) == 0.5


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_kkt_violation_vanishes_at_the_lasso_optimum(key, share):
    rng = np.random.default_rng(3)
    m, d = 20, 30
    D = np.asarray(dictionaries.gaussian(key, m, d))
    y = rng.normal(size=m)
    lam = share * np.abs(D.T @ y).max()
    # scikit-learn minimises norm(y - D x)^2 / (2 m) + alpha norm(x, 1).
    x = Lasso(alpha=lam / m, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(D, y).coef_
    assert (x != 0).any()
    # Its duality gap is 1e-14 norm(y)^2, so D x is off by sqrt(2e-14) norm(y) at most and D' r by
    # as much.
    ours = metrics.kkt_violation(jnp.asarray(D), jnp.asarray(y), jnp.asarray(x), lam)
    assert ours <= 1.5e-7 * np.linalg.norm(y) / lam
    assert metrics.kkt_violation(jnp.asarray(D), jnp.asarray(y), jnp.asarray(1.01 * x), lam) > 1e-3
    assert metrics.kkt_violation(jnp.asarray(D), jnp.asarray(y), jnp.asarray(x), 1.1 * lam) > 0.09


@pytest.mark.slow
def test_kkt_violation_takes_structured_dictionaries():
    rng = np.random.default_rng(4)
    D = dictionaries.Conv(rng.normal(size=(2, 1, 3)), 8)
    y, x = jnp.asarray(rng.normal(size=8)), jnp.asarray(rng.normal(size=12))
    ours, plain = (
        metrics.kkt_violation(D, y, x, 0.5),
        metrics.kkt_violation(dictionaries.dense(D), y, x, 0.5),
    )
    assert float(ours) == pytest.approx(float(plain), rel=1e-13)


@pytest.mark.parametrize(
    "metric", ["nmse", "signal_nmse", "mean_nmse", "failure_rate", "support_scores", "psnr"]
)
def test_shapes_must_agree(metric):
    # These would broadcast, and give a number that means nothing.
    for a, b in (((3, 4), (4,)), ((3, 4), (1, 4)), ((3, 4), (4, 3))):
        with pytest.raises(ValueError, match="shapes .* and .* differ; expected equal ones"):
            getattr(metrics, metric)(np.ones(a), np.ones(b))


def test_levels_and_penalties_out_of_range_are_refused():
    D, y, x = np.eye(3), np.ones(3), np.zeros(3)
    for lam in (-1.0, 0.0, np.nan, np.ones(3)):
        with pytest.raises(ValueError, match="kkt_violation: lam must be one positive number"):
            metrics.kkt_violation(D, y, x, lam)
    assert metrics.kkt_violation(D.tolist(), y, x, 1.0) == 0
    for tolerance in (-1.0, np.nan):
        with pytest.raises(ValueError, match="support_scores: tolerance"):
            metrics.support_scores(np.ones((2, 3)), np.ones((2, 3)), tolerance)
    with pytest.raises(ValueError, match="failure_rate: level is nan"):
        metrics.failure_rate(np.ones((2, 3)), np.ones((2, 3)), np.nan)
    assert metrics.failure_rate(np.zeros((2, 3)), np.ones((2, 3)), 5000.0) == 0


def test_a_new_number_of_rows_compiles_nothing(compiled):
    def scores(n):
        X = np.random.default_rng(n).normal(size=(n, 5)).astype(np.float32)
        for score in (metrics.nmse, metrics.mean_nmse, metrics.signal_nmse):
            score(0.9 * X, X)
        return metrics.failure_rate(X, X), metrics.support_scores(X, X)

    scores(2)
    before = len(compiled)
    scores(3), scores(7)
    assert len(compiled) == before


@pytest.mark.parametrize("name", ["nmse", "mean_nmse", "failure_rate", "support_scores", "psnr"])
def test_known_arrays_have_the_scores_of_traced_ones(name):
    rng, score = np.random.default_rng(0), getattr(metrics, name)
    X = rng.normal(size=(6, 4)).astype(np.float32)
    X[1], X[2, 0] = 0, np.inf
    Z = np.where(np.arange(6)[:, None] % 2, X, X + rng.normal(size=X.shape)).astype(np.float32)
    for rows in (slice(None), slice(3, None), slice(1, 2)):
        known, traced = score(Z[rows], X[rows]), jax.jit(score)(Z[rows], X[rows])
        for ours, theirs in zip(*map(jax.tree.leaves, (known, traced)), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
