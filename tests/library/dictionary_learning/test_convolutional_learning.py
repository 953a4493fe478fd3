"""Convolutional dictionary learning: recovery, special cases, certificates, masks, bad input."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import unrolled as ur
from unrolled.dictionary_learning import _convolutional
from unrolled.dictionary_learning._conv_sweep import (
    Fit,
    Problem,
    descend,
    drawn_windows,
    filter_gradient,
    filter_maps,
    in_fourier_space,
    moved,
    products,
    shifted_copies,
    steps_to_centre,
    sweep,
)

Conv, learn = ur.dictionaries.Conv, ur.dictionary_learning.convolutional
made = jax.jit(products)


def planted(seed, shape=(3, 1, 12), signal=(200,), n=10, density=0.01, noise=0.01):
    """Smooth unit filters, and images with few of their shifts: (filters, images)."""
    rng = np.random.default_rng(seed)
    filters = rng.standard_normal(shape)
    for axis, size in enumerate(shape[2:], start=2):
        window = np.hanning(size + 2)[1:-1]
        filters *= window.reshape(-1, *(1,) * (len(shape) - 1 - axis))
    filters /= np.sqrt(np.sum(filters**2, tuple(range(1, filters.ndim)), keepdims=True))
    D = Conv(filters, signal)
    X = rng.uniform(1, 2, (n, D.shape[1])) * rng.choice([-1, 1], (n, D.shape[1]))
    X *= rng.random(X.shape) < density
    clean = np.asarray(made(D, X)).reshape(n, shape[1], *signal)
    return filters, clean + noise * rng.standard_normal(clean.shape)


def recovered(filters, found):
    """For every planted filter the largest inner product with a shift of a learned one."""
    shape = [2 * n - 1 for n in filters.shape[2:]]
    axes = tuple(range(2, filters.ndim))
    a, b = (np.fft.fftn(np.asarray(f, float), shape, axes) for f in (filters, found))
    inner = np.fft.ifftn(np.einsum("ac...,bc...->ab...", a, b.conj()), shape, axes).real
    return np.abs(inner).reshape(len(filters), len(found), -1).max((1, 2))


def objectives(found):
    return np.array([step.objective for step in found.history])


def gaps(D, Y, X, lam, V=None):
    """Duality gaps of the codes, relative to norm(y)^2 / 2, by the matrix of D."""
    A, V = ur.dictionaries.dense(D), np.ones(Y.shape) if V is None else V
    rows = (
        (ur.pursuit.duality_gap(np.sqrt(v)[:, None] * A, np.sqrt(v) * y, x, lam), v @ y**2 / 2)
        for y, x, v in zip(Y, X, V)
    )
    return np.array([gap / unit for gap, unit in rows])


def filter_moves(D, Y, X):
    """How far a projected gradient step, 1 / norm(x)^2 long, moves each filter."""

    def error(filters):
        return jnp.sum((Y - products(dataclasses.replace(D, filters=filters), X)) ** 2) / 2

    use = jnp.sum(X.reshape(len(X), len(D.filters), -1) ** 2, (0, 2))[:, None, None]
    there = D.filters - jax.grad(error)(D.filters) / use
    there /= jnp.maximum(1, jnp.linalg.norm(there, axis=-1, keepdims=True))
    return jnp.linalg.norm(there - D.filters, axis=-1)


@pytest.fixture(scope="module")
def small():
    """One learning in float64 that several tests look at: (filters, images, result)."""
    filters, images = planted(0, n=6)
    return filters, images, learn(images, (3, 1, 12), lam=0.05, sweeps=60, key=1)


@pytest.mark.slow
def test_planted_filters_are_recovered_up_to_order_sign_and_shift(small):
    filters, _, found = small
    assert recovered(filters, found.D.filters).min() > 0.97


def test_the_objective_never_rises_and_is_that_of_the_result(small):
    _, images, found = small
    assert all(step.replaced == 0 for step in found.history)
    assert (np.diff(objectives(found)) <= 0).all()
    D, Y, X = found.D, images.reshape(6, -1), np.asarray(found.X).reshape(6, -1)
    mean = np.mean([ur.pursuit.lasso_objective(D, y, x, 0.05) for y, x in zip(Y, X)])
    np.testing.assert_allclose([found.objective, objectives(found)[-1]], mean, rtol=1e-12)
    norms = np.linalg.norm(np.asarray(D.filters).reshape(3, -1), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-14)
    # Under a large lam, codes of either sign vanish.
    problem = Problem(Y, None, np.array(50.0))
    for codes in (np.abs(X), -np.abs(X)):
        end = sweep(problem, D, codes, found.state.curvature, False)
        assert not end.X.any()


@pytest.mark.slow
def test_filters_and_codes_are_nearly_stationary(small):
    _, images, found = small
    Y, X = images.reshape(6, -1), found.X.reshape(6, -1)
    assert gaps(found.D, Y, X, 0.05).max() < 1e-6
    assert filter_moves(found.D, Y, X).max() < 1e-2
    assert gaps(found.D, Y, 0.9 * X, 0.05).min() > 1e-3
    assert filter_moves(found.D, Y, 0.9 * X[:, ::-1]).max() > 0.1


def test_a_resumed_learning_is_the_same_to_the_last_bit(small, tmp_path):
    _, images, _ = small
    run = partial(learn, images, (3, 1, 12), key=1, lam=0.05)
    whole, part, file = run(sweeps=12), run(sweeps=4), tmp_path / "learning.npz"
    run(sweeps=4, checkpoint=file)
    for other in (run(sweeps=12, resume=part), run(sweeps=12, checkpoint=file)):
        pairs = zip(*(jax.tree.leaves((of.D, of.X)) for of in (whole, other)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
        assert (objectives(other) == objectives(whole)).all()
    with pytest.raises(ValueError, match=r"(?s)holds another learning;.*lam +0.05 +"):
        run(sweeps=12, checkpoint=file, lam=0.06)
    with pytest.raises(ValueError, match="resume is not a result of `convolutional`"):
        learn(images[:5], (3, 1, 12), sweeps=12, resume=part, lam=0.05, key=1)


def test_progress_is_told_every_sweep(small):
    _, images, found = small
    told = []
    learn(images, (3, 1, 12), lam=0.05, sweeps=3, key=1, progress=told.append)
    assert [step.step for step in told] == [1, 2, 3]
    assert [step.objective for step in told] == objectives(found)[:3].tolist()


@pytest.mark.slow
def test_the_learned_dictionary_is_certified_saved_and_trained_with(small, tmp_path):
    _, images, found = small
    D = found.D
    assert 0 < ur.theory.mutual_coherence(D) < 1
    layer = ur.layers.lista_cp(2)
    params = layer.init(jax.random.key(0), D)
    file = ur.training.save(tmp_path / "weights.npz", params, D, layer)
    again = ur.training.restore(file).D
    assert again.boundary == "valid" and (again.filters == D.filters).all()

    def sample(key):
        x = ur.problems.exact_sparse(key, (4, D.shape[1]), 3)
        return jax.vmap(D.synthesize)(x), x

    fitted = ur.training.fit(
        layer, params, D, sample, optimizer=optax.adam(1e-3), steps=2, key=0, learn_dictionary=True
    )
    assert fitted.D.filters.shape == D.filters.shape
    assert not (fitted.D.filters == D.filters).all()


@pytest.mark.slow
def test_a_kernel_as_long_as_the_signal_is_a_dense_dictionary():
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((5, 8))
    found = learn(Y, (4, 1, 8), lam=0.3, sweeps=300)
    D = found.D.filters[:, 0].T
    codes = jnp.stack([ur.pursuit.lasso(D, y, 0.3, tol=1e-12).x for y in Y])
    np.testing.assert_allclose(found.X[..., 0], codes, atol=1e-5)


def test_images_twice_as_large_have_the_same_filters(small):
    _, images, found = small
    twice = learn(4 * images, (3, 1, 12), lam=0.2, sweeps=60, key=1)
    assert (twice.D.filters == found.D.filters).all() and (twice.X == 4 * found.X).all()
    assert twice.objective == 16 * found.objective


@pytest.mark.slow
def test_shifted_circles_have_shifted_codes(small):
    _, images, _ = small
    start = np.random.default_rng(3).standard_normal((2, 1, 12))
    one = learn(images, start, lam=0.1, sweeps=5, boundary="circular")
    two = learn(np.roll(images, 7, -1), start, lam=0.1, sweeps=5, boundary="circular")
    np.testing.assert_allclose(one.D.filters, two.D.filters, atol=1e-9)
    np.testing.assert_allclose(np.roll(one.X, 7, -1), two.X, atol=1e-9)


@pytest.mark.slow
def test_a_second_channel_of_zeros_changes_nothing(small):
    _, images, found = small
    start = np.asarray(found.D.filters)[::-1] + 0.1
    one = learn(images, start, lam=0.1, sweeps=5)
    two = learn(
        np.concatenate([images, 0 * images], 1),
        np.concatenate([start, 0 * start], 1),
        lam=0.1,
        sweeps=5,
    )
    np.testing.assert_allclose(two.D.filters[:, :1], one.D.filters, atol=1e-9)
    np.testing.assert_allclose(two.X, one.X, atol=1e-9)


@pytest.mark.slow
def test_unknown_samples_count_nothing(small):
    filters, images, _ = small
    mask = np.random.default_rng(0).random(images.shape) < 0.8
    holes = np.where(mask, images, np.nan)
    found = learn(holes, (3, 1, 12), lam=0.05, sweeps=80, mask=mask, key=2)
    other = learn(np.where(mask, images, 7.0), (3, 1, 12), lam=0.05, sweeps=80, mask=mask, key=2)
    assert (found.D.filters == other.D.filters).all()
    assert (np.diff(objectives(found)) <= 0).all()
    assert recovered(filters, found.D.filters).min() > 0.9
    Y, X, V = (a.reshape(6, -1) for a in (np.where(mask, images, 0), found.X, 1.0 * mask))
    assert gaps(found.D, Y, X, 0.05, V).max() < 1e-3


@pytest.mark.slow
def test_codes_can_be_non_negative_and_filters_strided(small):
    _, images, _ = small
    found = learn(images, (3, 1, 12), lam=0.1, sweeps=5, stride=4, nonnegative=True)
    assert found.X.min() >= 0 and found.X.max() > 0 and found.X.shape == (6, 3, 48)
    assert (np.diff(objectives(found)) <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrower_images_have_nearly_the_same_result(small, dtype):
    _, images, found = small
    start = np.asarray(found.D.filters)
    wide = learn(images, start, lam=0.1, sweeps=5)
    narrow = learn(images.astype(dtype), start, lam=0.1, sweeps=5)
    assert narrow.D.filters.dtype == narrow.X.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    # The filters and codes of 5 sweeps are well determined by the images, near 1 in magnitude.
    np.testing.assert_allclose(narrow.D.filters.astype(float), wide.D.filters, atol=100 * eps)
    np.testing.assert_allclose(narrow.objective, wide.objective, rtol=100 * eps)


def test_unused_and_shifted_filters_are_replaced(small):
    _, images, found = small
    start = np.array(found.D.filters)
    start[1, :, 1:] = start[0, :, :-1]  # a shift of the first
    start[1, :, 0] = 0
    start[2] = -start[0]
    again = learn(images, start, lam=0.05, sweeps=40, key=3)
    assert again.history[1].replaced >= 1
    assert len(shifted_copies(np.asarray(again.D.filters), np.ones(3))) == 0
    assert np.abs(again.X).sum((0, 2)).min() > 0


def test_a_filter_whose_codes_cancel_is_used():
    rng = np.random.default_rng(0)
    D = Conv(jnp.asarray(rng.normal(size=(3, 1, 4))), 12, boundary="circular")
    X = np.zeros((2, 3, 12))
    X[0, 0, 4], X[1, 0, 9], X[:, 1] = 2.0, -2.0, 0.1
    state = _convolutional.at_rest(D, jnp.asarray(X.reshape(2, -1)), np.array(1.0), None)
    problem = Problem(jnp.asarray(rng.normal(size=(2, 12))), None, jnp.asarray(0.1))
    after, replaced = _convolutional.refreshed(state, problem, rng)
    changed = (np.asarray(after.D.filters) != np.asarray(D.filters)).any((1, 2))
    assert replaced == 1 and changed.tolist() == [False, False, True]


def test_a_start_of_zero_filters_is_that_from_a_shape():
    images = np.random.default_rng(0).standard_normal((3, 12))
    drawn, zero = (
        learn(images, start, lam=0.1, sweeps=0) for start in ((2, 1, 4), np.zeros((2, 1, 4)))
    )
    np.testing.assert_array_equal(drawn.D.filters, zero.D.filters)
    np.testing.assert_allclose(np.sum(np.square(drawn.D.filters), (1, 2)), 1, rtol=1e-12)


def test_the_gradient_of_the_filters_is_a_derivative():
    rng = np.random.default_rng(0)
    D = Conv(rng.standard_normal((2, 3, 2, 3)), (5, 6), (1, 2), "circular")
    X, R = (rng.standard_normal((2, size)) for size in D.shape[::-1])
    change = rng.standard_normal(D.filters.shape)
    moved = made(dataclasses.replace(D, filters=change), X)
    slope = np.vdot(jax.jit(filter_gradient)(D, X, R), change)
    np.testing.assert_allclose(slope, np.vdot(R, moved), rtol=1e-12)


@pytest.mark.parametrize("boundary", ["circular", "valid", "zero"])
def test_products_of_filters_in_fourier_space_are_convolutions(boundary):
    rng = np.random.default_rng(0)
    D = Conv(rng.standard_normal((2, 3, 4, 8)), (9, 12), boundary=boundary)
    X, R = (rng.standard_normal((2, size)) for size in D.shape[::-1])
    assert in_fourier_space(D)
    with jax.disable_jit():
        product, adjoint = filter_maps(D, jnp.asarray(X))
        found = product(D.filters), adjoint(jnp.asarray(R))
    np.testing.assert_allclose(found[0], made(D, X), atol=1e-12)
    np.testing.assert_allclose(found[1], filter_gradient(D, X, R), atol=1e-12)


def test_descent_finds_the_minimum_whatever_the_first_curvature():
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((8, 5)), rng.standard_normal(8)
    fit = Fit(
        y, None, lambda u: A @ u, lambda r: r @ A, np.ones(()), lambda u, _: u, jnp.zeros_like
    )
    run = jax.jit(lambda L: descend(fit, jnp.zeros(5), jnp.zeros(8), L, 300).u)
    for L in (1e-3, 1e3):
        np.testing.assert_allclose(run(L), np.linalg.lstsq(A, y)[0], atol=1e-6)


@pytest.mark.parametrize("boundary", ["valid", "circular"])
def test_drawn_windows_are_windows_where_the_energy_is(boundary):
    R = np.zeros((2, 9, 9))
    R[1, 7:, 7:] = [[1, 2], [3, 4]]
    D = Conv(np.zeros((1, 1, 2, 2)), (9, 9), boundary=boundary)
    found = drawn_windows(D, R.reshape(2, -1), np.zeros((0, 4)), 4, np.random.default_rng(0))
    assert found.shape == (4, 1, 2, 2)
    flat = np.pad(R[1], (0, 1), "wrap" if boundary == "circular" else "constant")
    all_ = np.lib.stride_tricks.sliding_window_view(flat, (2, 2)).reshape(-1, 4)
    all_ = all_[np.abs(all_).max(1) > 0]
    all_ = all_ / np.linalg.norm(all_, axis=1, keepdims=True)
    assert all(np.abs(all_ @ f.ravel()).max() > 1 - 1e-12 for f in found)


@pytest.mark.slow
def test_moves_to_the_centre_bring_back_what_a_kernel_cuts_off(monkeypatch):
    filters, images = planted(18, n=6)
    centred = learn(images, (3, 1, 12), lam=0.05, sweeps=60, key=18)
    monkeypatch.setattr("unrolled.dictionary_learning._convolutional._PERIOD", 1000)
    cut = learn(images, (3, 1, 12), lam=0.05, sweeps=60, key=18)
    assert recovered(filters, cut.D.filters).min() < 0.95
    assert recovered(filters, centred.D.filters).min() > 0.97
    assert centred.objective < 0.9 * cut.objective
    assert (np.diff(objectives(centred)) <= 0).all()


def test_entries_move_forth_and_back():
    A = np.arange(1, 6)
    for s, cut in ((2, [0, 0, 1, 2, 3]), (0, A), (-1, [2, 3, 4, 5, 0])):
        np.testing.assert_array_equal(moved(A, np.array([s]), False), cut)
        np.testing.assert_array_equal(moved(A, np.array([s]), True), np.roll(A, s))


@pytest.mark.few(1)
@pytest.mark.parametrize("boundary", ["valid", "circular"])
def test_filters_and_codes_that_move_apart_give_the_same_images(boundary):
    rng = np.random.default_rng(0)
    filters = np.zeros((2, 3, 6, 8))
    filters[0, :, 4:, 4:] = rng.standard_normal((3, 2, 4))
    filters[1, :, 2:4] = rng.standard_normal((3, 1, 8)) * np.hanning(8)
    D = Conv(filters, (18, 24), (1, 2), boundary)
    X = rng.standard_normal((4, *D.code_grid))
    if boundary == "valid":  # here what leaves on a side is lost
        X[:, 0, -2:], X[:, 0, :, -2:] = 0, 0
    steps = steps_to_centre(D)
    assert steps[0].tolist() in ([-2, -1], [-3, -1], [-2, -2]) and abs(steps[1]).max() <= 1
    there, codes = np.zeros_like(filters), np.zeros_like(X)
    for j, s in enumerate(steps):
        there[j] = moved(filters[j], s * D.stride, False)
        codes[:, j] = moved(X[:, j], -s, boundary == "circular")
    again = made(dataclasses.replace(D, filters=there), codes.reshape(4, -1))
    np.testing.assert_allclose(again, made(D, X.reshape(4, -1)), atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:convolutional. all codes are zero")
def test_constant_images_give_finite_results():
    for value in (0.0, 1.0):
        found = learn(np.full((3, 20), value), (2, 1, 4), lam=0.5, sweeps=3)
        assert all(jnp.isfinite(leaf).all() for leaf in (found.D.filters, found.X))
        assert np.isfinite(found.objective)


def test_a_lam_above_every_correlation_gives_zero_codes_and_says_so(small):
    _, images, _ = small
    with pytest.warns(UserWarning, match="all codes are zero and D is the start"):
        found = learn(images, (3, 1, 12), lam=1e3, sweeps=2)
    assert not found.X.any()
    np.testing.assert_allclose(found.objective, np.sum(images**2) / 12, rtol=1e-12)


@pytest.mark.slow
def test_weights_of_any_size_are_a_smaller_lam(small):
    """F for weights w and lam is w times F for lam / w."""
    filters, images, _ = small
    start = np.float32(1e-30) * filters.astype(np.float32)  # whose squares underflow
    images = images.astype(np.float32)
    plain = learn(images, start, lam=0.05, sweeps=2)
    heavy = learn(images, start, lam=0.05e30, sweeps=2, weights=np.full(6, 1e30))
    np.testing.assert_allclose(heavy.X, plain.X, atol=1e-5)
    assert heavy.objective == pytest.approx(1e30 * plain.objective, rel=1e-5)
    assert plain.X.any()


@pytest.mark.slow
@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize(
    ("shape", "signal", "sweeps"),
    [((3, 1, 12), (200,), 100), ((3, 4, 12), (200,), 100), ((3, 1, 6, 6), (24, 24), 60)],
)
def test_the_rate_of_recovery_over_4_seeds(shape, signal, sweeps):
    """Above 0.9 are, over 20 seeds, 100 % of the inner products in one dimension and 98 % in two.

    Without moves to the centre it is 85 % in all three.
    """
    inner = []
    for seed in range(4):
        filters, images = planted(seed, shape, signal)
        found = learn(images, shape, lam=0.05, sweeps=sweeps, key=seed)
        inner.append(recovered(filters, found.D.filters))
    assert np.mean(np.array(inner) > 0.9) >= 0.95
    assert np.mean(np.array(inner) > 0.8) >= 0.98
