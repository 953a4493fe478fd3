"""Codes in parts: complex numbers, and rows of many measurements, through the whole library."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import rows
from jax.test_util import check_grads
from registry import FAMILIES

import unrolled as ur
from unrolled import analytic, dictionaries, layers, pursuit, theory
from unrolled.dictionaries import Complex, Joint, from_pairs, to_pairs
from unrolled.penalties import Penalty

EPS = np.finfo(float).eps


def complex_matrix(seed, *shape):
    """Unit columns; a third of the matrices have a common direction in all of them."""
    rng = np.random.default_rng([seed, *shape])
    A = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    A = A + (seed % 3 == 0) * 2 * A[..., :1]
    return A / np.linalg.norm(A, axis=-2, keepdims=True)


def shrunk(z, theta):
    size = np.abs(z)
    return z * np.maximum(1 - theta / np.where(size > 0, size, 1), 0)


def complex_optima(A, y, lam, steps=20_000):
    """Complex FISTA with restart, of many problems, in numpy; and their objectives."""
    L = np.linalg.norm(A, 2, (1, 2))[:, None] ** 2
    AH = A.conj().swapaxes(1, 2)
    x = z = np.zeros(A.shape[::2], complex)
    t = np.ones((len(A), 1))
    for _ in range(steps):
        after = shrunk(z + (AH @ (y - (A @ z[..., None])[..., 0])[..., None])[..., 0] / L, lam / L)
        t = np.where(np.sum(((z - after).conj() * (after - x)).real, 1)[:, None] > 0, 1, t)
        grown = (1 + np.sqrt(1 + 4 * t**2)) / 2
        moved = np.abs(after - x).max()
        x, z, t = after, after + (t - 1) / grown * (after - x), grown
        if moved == 0:
            break
    return x, complex_objective(A, y, x, lam)


def complex_objective(A, y, x, lam):
    r = y - (A @ x[..., None])[..., 0]
    return np.sum(np.abs(r) ** 2, 1) / 2 + lam[:, 0] * np.abs(x).sum(1)


def wrong_codes(n, scales):
    """How many codes of n problems, each at these scales, are not those of complex FISTA."""
    A = np.stack([complex_matrix(seed, 12, 24) for seed in range(n)])
    rng = np.random.default_rng(n)
    y = rng.normal(size=(n, 12)) + 1j * rng.normal(size=(n, 12))
    lam = rng.uniform(0.1, 0.6, (n, 1)) * np.abs(A.conj().swapaxes(1, 2) @ y[..., None]).max(1)
    x, least = complex_optima(A, y, lam)

    @jax.jit
    @jax.vmap
    def solve(real, imag, y, lam):
        return pursuit.lasso(Complex(real, imag), y, lam, tol=1e-10)

    wrong = 0
    for scale in scales:
        found = jax.device_get(solve(A.real, A.imag, y * scale, lam[:, 0] * scale))
        energy = np.sum(np.abs(y) ** 2, 1) / 2
        excess = (complex_objective(A, y, found.x / scale, lam) - least) / energy
        # Objectives round to some eps; the gap bounds their difference.
        certified = (found.gap <= 1e-10) & (excess <= found.gap + 100 * EPS)
        # On the support the curvature is at least lam |x| / |x|^2: an excess moves the code.
        near = np.abs(found.x / scale - x).max(1) <= 1e-3 * np.abs(x).max(1)
        wrong += np.sum(~(found.converged & certified & near))
    return wrong


@pytest.mark.few(1)
@pytest.mark.parametrize("n, scales", [(12, [1e-10, 1.0, 1e10]), (100, np.logspace(-10, 10, 5))])
def test_the_complex_lasso_has_the_codes_of_another_solver_at_every_scale(n, scales):
    assert wrong_codes(n, scales) == 0


def test_a_complex_dictionary_is_its_matrix():
    A, rng = complex_matrix(1, 5, 7), np.random.default_rng(0)
    D, x, r = Complex.of(A), *(rng.normal(size=(n, 2)) @ [1, 1j] for n in (7, 5))
    np.testing.assert_allclose(from_pairs(D @ to_pairs(x)), A @ x, rtol=0, atol=40 * EPS)
    np.testing.assert_allclose(from_pairs(to_pairs(r) @ D), A.conj().T @ r, rtol=0, atol=40 * EPS)
    assert Complex.of(A.real).shape == (10, 14)


def test_weights_in_closed_form_are_those_of_the_complex_matrix():
    A = complex_matrix(2, 6, 10)
    W = theory.frobenius_weights(Complex.of(A))
    V = np.linalg.solve(A @ A.conj().T, A)
    V = V / np.sum(V.conj() * A, 0).real
    np.testing.assert_allclose(W.real, V.real, rtol=0, atol=1e-12)
    np.testing.assert_allclose(W.imag, V.imag, rtol=0, atol=1e-12)
    of = theory.block_coherence(W, Complex.of(A))
    products = np.abs(V.conj().T @ A)
    np.testing.assert_allclose(of.mu, np.max(products - np.diag(np.diag(products))), rtol=1e-12)
    np.testing.assert_allclose(of.gain, np.linalg.norm(V, axis=0).max(), rtol=1e-12)
    assert of.eta < 1e-13


@pytest.mark.parametrize("name", ["alista", "lista_cp", "lista_cpss", "fista", "lfista_cp"])
def test_a_layer_keeps_the_phase(name):
    A = complex_matrix(3, 8, 12)
    D, y = Complex.of(A), A[:, 2] + 1j * A[:, 5]
    layer = FAMILIES[name](5)
    apply = jax.jit(layer.apply)
    params = layer.init(None, D)
    x, turned = (np.asarray(apply(params, D, y * turn)) for turn in (1, np.exp(1j)))
    assert x.shape == (12,) and np.abs(x).max() > 0.1
    np.testing.assert_allclose(turned, x * np.exp(1j), rtol=0, atol=1000 * EPS)
    flat = apply(params, D, to_pairs(y))
    np.testing.assert_array_equal(from_pairs(flat), x)


def test_steps_of_ista_are_the_complex_ones():
    A = complex_matrix(4, 8, 12)
    y = A @ np.r_[1, 2j, np.zeros(10)]
    layer = layers.ista(4, lam=0.1)
    params = layer.init(None, Complex.of(A))
    path, x = layer.iterates(params, Complex.of(A), y), np.zeros(12, complex)
    for gamma, theta, found in zip(*map(np.asarray, params.steps), path):
        x = shrunk(x + gamma * (A.conj().T @ (y - A @ x)), theta)
        np.testing.assert_allclose(found, x, rtol=0, atol=100 * EPS)


def test_rows_of_many_measurements_are_the_group_lasso():
    """The optimum by its conditions: D_i'R = lam X_i / |X_i| in rows in use, |D_i'R| <= lam."""
    rng = np.random.default_rng(5)
    A, Y, lam = complex_matrix(1, 6, 9).real, rng.normal(size=(6, 4)), 0.8
    found = pursuit.lasso(Joint(A, 4), Y, lam, tol=1e-13)
    X = np.asarray(found.x)
    g, size = A.T @ (Y - A @ X), np.linalg.norm(X, axis=1)
    on = size > 0
    assert found.converged and 0 < on.sum() < 9
    np.testing.assert_allclose(g[on], lam * X[on] / size[on, None], rtol=0, atol=1e-5)
    assert (np.linalg.norm(g, axis=1) <= lam + 1e-5).all()
    alone = pursuit.lasso(Joint(A, 1), Y[:, :1], lam, tol=1e-13).x[:, 0]
    np.testing.assert_allclose(alone, pursuit.lasso(A, Y[:, 0], lam, tol=1e-13).x, atol=1e-6)


def test_complex_measurements_are_rows_of_complex_numbers():
    A = complex_matrix(2, 6, 9)
    X = np.zeros((9, 3), complex)
    X[[1, 4]] = [[1, 1j, -1], [2, 0, 1j]]
    found = pursuit.lasso(Joint(Complex.of(A), 3), A @ X, 1e-4, tol=1e-12)
    np.testing.assert_allclose(found.x, X, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rho", ["relu", "elu"])
def test_shrinkage_of_parts_has_its_derivatives(rho):
    penalty, rng = Penalty(block=3), np.random.default_rng(6)
    v = rng.normal(size=(4, 3))
    v[1] *= 1e-3  # below the threshold
    activation = ur.activations.by_name(rho)

    def f(v, theta):
        return penalty.shrink(v, theta, activation)

    check_grads(f, (v.reshape(-1), np.full(12, 0.4)), order=2, atol=1e-4, rtol=1e-4)
    zero = np.zeros(3)
    slope = jax.jacobian(lambda v: penalty.shrink(v, 0.4, activation))(zero)
    expected = 0 if rho == "relu" else 2 * np.exp(-0.4)
    np.testing.assert_allclose(slope, expected * np.eye(3), rtol=1e-12, atol=0)
    assert np.isnan(f(np.full(3, np.nan), 0.1)).all()


def test_the_divergence_of_parts_is_the_trace_of_their_derivative():
    penalty, v = Penalty(block=3), np.random.default_rng(8).normal(size=30)
    x = penalty.shrink(v, 1.2)
    assert 0 < np.sum(x != 0) < 30
    trace = np.trace(jax.jacobian(lambda v: penalty.shrink(v, 1.2))(v))
    np.testing.assert_allclose(penalty.divergence(v, x), trace, rtol=100 * EPS)


@pytest.mark.parametrize("layer", [layers.lamp(20), layers.alista_at(20, onsager=True)])
def test_message_passing_finds_complex_codes(layer):
    D = Complex.of(complex_matrix(1, 60, 100))
    Y, X = ur.problems.sampler(D, 20, probability=0.08)(jax.random.key(0))
    run = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    assert np.sum((run(layer.init(None, D), D, Y) - X) ** 2) < 1e-3 * np.sum(X**2)


def test_a_correction_that_counts_entries_is_worse(monkeypatch):
    D, layer = Complex.of(complex_matrix(1, 60, 100)), layers.lamp(5)
    Y, X = ur.problems.sampler(D, 20, probability=0.08)(jax.random.key(0))

    def error():
        return float(jnp.sum((jax.vmap(layer.apply, (None, None, 0))(params, D, Y) - X) ** 2))

    params = layer.init(None, D)
    right = error()
    monkeypatch.setattr(Penalty, "divergence", lambda self, u, x: jnp.sum(x != 0, dtype=x.dtype))
    jax.clear_caches()
    assert right < 0.6 * error()
    jax.clear_caches()


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_parts_scale(scale):
    penalty, v = Penalty(block=2), np.array([3.0, 4.0, 0.1, 0.2, -5.0, 12.0])
    x = penalty.shrink(scale * v, scale, fraction=1 / 3)
    np.testing.assert_allclose(x / scale, [2.4, 3.2, 0, 0, -5, 12], rtol=8 * EPS)
    jacobian = jax.jacobian(lambda v: penalty.shrink(v, scale))(scale * v)
    expected = jax.jacobian(lambda v: penalty.shrink(v, 1.0))(v)
    np.testing.assert_allclose(jacobian, expected, rtol=0, atol=16 * EPS)
    directions = penalty.directions(scale * v)
    np.testing.assert_allclose(directions[:2], [0.6, 0.8], rtol=8 * EPS)


def test_the_derivative_of_a_complex_code_is_that_of_differences():
    A = complex_matrix(1, 8, 10)
    y = A @ np.r_[1 + 1j, -2j, np.zeros(8)] + 0.05 * A[:, 3]

    @jax.jit
    def code(real, imag, y, lam):
        return pursuit.lasso(Complex(real, imag), y, lam, tol=1e-14).x

    point = A.real, A.imag, to_pairs(y), 0.2
    check_grads(code, point, order=1, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4, eps=1e-5)


@pytest.mark.parametrize("name", ["complex", "joint"])
def test_a_schedule_by_parts_bounds_every_draw(name):
    """1,000 noisy codes: none has a false part, and none errs by more than the bound."""
    A = dictionaries.identity_hadamard(32) if name == "joint" else complex_matrix(1, 40, 60)
    D = Joint(A, 4) if name == "joint" else Complex.of(A)
    g, n, s, B, delta, K = D.block, A.shape[1], 2, 1.0, 0.02, 12
    params = analytic.alista(D, depth=K, sparsity=s, bound=B, noise=delta)
    _, planned = analytic.block_schedule(D, depth=K, sparsity=s, bound=B, noise=delta)
    assert planned.holds
    rng = np.random.default_rng(7)
    X = np.zeros((1000, n, g))
    for x in X:
        parts = rng.normal(size=(s, g))
        sizes = B * rng.choice([1, rng.uniform()], s)[:, None]
        x[rng.permutation(n)[:s]] = sizes * parts / np.linalg.norm(parts, axis=1)[:, None]
    noise = rng.normal(size=(1000, D.shape[0]))
    noise *= delta / np.linalg.norm(noise, axis=1)[:, None]
    Y = X.reshape(1000, -1) @ np.asarray(dictionaries.dense(D)).T + noise
    run = jax.jit(jax.vmap(layers.alista(K).iterates, (None, None, 0)))
    path = np.asarray(run(params, D, Y)).reshape(1000, K, n, g)
    errors = np.linalg.norm(path - X[:, None], axis=3).sum(2)
    assert (errors <= planned.error[1:]).all()
    assert (errors / planned.error[1:]).max() > 0.3  # the bound is of use
    assert not ((path != 0).any(3) & ~(X != 0).any(2)[:, None]).any()


def test_a_layer_trains_on_complex_signals_by_the_calls_of_a_real_one(tmp_path):
    A = complex_matrix(1, 12, 20)
    D, layer = Complex.of(A), layers.alista(4)
    Y, X = map(from_pairs, ur.problems.sampler(D, 40)(jax.random.key(0)))
    np.testing.assert_allclose(Y, X @ A.T, rtol=0, atol=1e-12)
    start = layer.init(None, D)
    fit = ur.fit(
        layer, start, D, (Y, X), optimizer=optax.adam(0.02), steps=20, key=jax.random.key(1)
    )
    found = ur.compare({"start": (layer, start), "fit": fit, "X": X}, D, Y, X, lam=0.1)
    assert found["fit"].curve.nmse[-1] < found["start"].curve.nmse[-1]
    assert found["X"].curve.nmse[-1] < -200
    assert ur.compare({"fit": fit}, D, Y)["fit"].curve.gap[-1] > 0
    ur.training.save(tmp_path / "weights.npz", fit.best, D, layer=layer)
    kept = ur.training.restore(tmp_path / "weights.npz")
    assert isinstance(kept.params.shared.W, Complex)
    np.testing.assert_array_equal(
        kept.layer.apply(kept.params, kept.D, Y[0]), layer.apply(fit.best, D, Y[0])
    )


def pursued(atoms, y, k):
    """Simultaneous OMP in numpy: atoms (m, n) of numbers or of complex ones, y (m, g); the code."""
    X, S, r = np.zeros((atoms.shape[1], y.shape[1]), atoms.dtype), [], y
    for _ in range(k):
        sizes = np.linalg.norm(atoms.conj().T @ r, axis=1)
        sizes[S] = 0
        S.append(sizes.argmax())
        X[S] = np.linalg.lstsq(atoms[:, S], y, rcond=None)[0]
        r = y - atoms @ X
    return X


PURSUED = ["complex", "joint", "complex joint"]


def pursued_problem(name, n=30, k=3):
    """A dictionary, noisy signals of k parts, and the codes of matching pursuit in numpy."""
    rng, g = np.random.default_rng(len(name)), 1 if name == "complex" else 3
    A = complex_matrix(4, 12, 20)
    A = A.real / np.linalg.norm(A.real, axis=0) if name == "joint" else A

    def draw(*shape):
        values = rng.normal(size=shape)
        return values if name == "joint" else values + 1j * rng.normal(size=shape)

    Y = np.stack([A[:, rng.permutation(20)[:k]] @ draw(k, g) for _ in range(n)])
    Y = Y + 0.1 * draw(*Y.shape)
    X = np.stack([pursued(A, y, k) for y in Y])
    base = A if name == "joint" else Complex.of(A)
    return (base, Y[..., 0], X[..., 0]) if g == 1 else (Joint(base, g), Y, X)


@pytest.mark.parametrize("name", PURSUED)
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_matching_pursuit_by_part_is_the_simultaneous_one(name, scale):
    D, Y, X = pursued_problem(name)
    alone = jax.jit(jax.vmap(lambda y: pursuit.omp(D, y, sparsity=3)))(Y * scale)
    for found in (alone, pursuit.omp_batch(D, Y * scale, 3)):
        assert found.converged.all() and (found.steps == 3).all()
        np.testing.assert_allclose(found.x / scale, X, rtol=0, atol=1e4 * EPS)
        r = Y - np.einsum("mn,bn...->bm...", _matrix(D), X)
        norms = np.sqrt(np.sum(np.abs(r) ** 2, tuple(range(1, r.ndim))))
        np.testing.assert_allclose(found.residual / scale, norms, rtol=1e4 * EPS)


def _matrix(D):
    base = D.base if isinstance(D, Joint) else D
    if isinstance(base, Complex):
        return np.asarray(base.real) + 1j * np.asarray(base.imag)
    return np.asarray(base)


def test_matching_pursuit_by_part_ends_at_a_residual():
    D, Y, _ = pursued_problem("joint", 8)
    tol = 0.8
    found = jax.jit(jax.vmap(lambda y: pursuit.omp(D, y, tol=tol)))(Y)
    assert found.converged.all() and (found.residual <= tol).all()
    fewer = pursuit.omp_batch(D, Y[:1], int(found.steps[0]) - 1)
    assert fewer.residual[0] > tol
    everything = pursuit.omp(D, Y[0], sparsity=20)  # as many rows as A has explain all signals
    assert everything.converged and everything.steps == 12 and everything.residual < 1e-12


def test_a_measurement_that_is_not_known_has_no_share_in_a_choice():
    """The atoms of its column are 0: their codes are 0, and the other columns choose alone."""
    D, Y, _ = pursued_problem("joint", 8)
    mask = np.ones((12, 3))
    mask[:, 1] = 0
    for known in (mask.reshape(-1), np.broadcast_to(mask.reshape(-1), (8, 36))):
        found = pursuit.omp_batch(D, Y, 3, weights=known)
        expected = np.stack([pursued(np.asarray(D.base), y[:, [0, 2]], 3) for y in Y])
        np.testing.assert_allclose(found.x[..., [0, 2]], expected, rtol=0, atol=1e4 * EPS)
        assert (found.x[..., 1] == 0).all() and (found.steps == 3).all()
    alone = pursuit.omp(ur.dictionaries.Masked(D, mask), (Y[0] * mask).reshape(-1), sparsity=3)
    np.testing.assert_allclose(alone.x.reshape(20, 3), found.x[0], rtol=0, atol=1e4 * EPS)
    assert alone.converged


def test_the_derivative_of_matching_pursuit_moves_all_entries_of_its_parts():
    A = complex_matrix(2, 6, 8)
    y = to_pairs(A[:, 1] * 2 + A[:, 4])  # codes with an imaginary part of 0
    check_grads(lambda y: pursuit.omp(Complex.of(A), y, sparsity=2).x, (y,), order=1, eps=1e-5)


@pytest.mark.parametrize("name, shape", [*zip(PURSUED, [(9, 20), (9, 1), (20,)])])
def test_codes_of_many_signals_in_parts_are_those_of_the_lasso_of_each(name, shape):
    D, Y, _ = pursued_problem(name, 9)
    lam = np.random.default_rng(3).uniform(0.1, 0.5, shape)
    found = pursuit.lasso_batch(D, Y, lam, tol=1e-12)
    assert found.converged.all()
    each = np.broadcast_to(lam, (9, 20))
    one = jax.jit(lambda y, lam: pursuit.lasso(D, y, lam, tol=1e-12))
    for i in (0, 8):
        # An excess of 1e-12 moves a code by at most the root of its share.
        np.testing.assert_allclose(found.x[i], one(Y[i], each[i]).x, rtol=0, atol=1e-5)
    warm = pursuit.lasso_batch(D, Y, lam, tol=1e-9, start=found.x)
    assert (warm.steps == 0).all()
    assert pursuit.omp_batch(D, Y[:0], 2).x.shape == found.x[:0].shape


def test_many_signals_in_parts_may_be_none_and_the_largest_lam_gives_zeros():
    D, Y, X = pursued_problem("complex joint", 4)
    assert pursuit.lasso_batch(D, Y[:0], 0.1).x.shape == X[:0].shape
    high = pursuit.lasso_batch(D, Y, ratio=1.0)
    assert (high.x == 0).all() and high.converged.all()


def test_a_file_of_signals_in_parts_is_read_in_chunks(tmp_path, monkeypatch):
    D, Y, _ = pursued_problem("joint", 9)
    monkeypatch.setattr("unrolled.pursuit._lasso_batch._PARTS", 4)
    np.save(tmp_path / "signals.npy", Y.reshape(9, -1))
    mapped = np.load(tmp_path / "signals.npy", mmap_mode="r")
    lam = np.linspace(0.1, 0.5, 9)[:, None]
    found = pursuit.lasso_batch(D, mapped[:8], lam[:8])
    whole = pursuit.lasso_batch(D, Y[:8].reshape(8, -1), lam[:8])
    np.testing.assert_allclose(found.x, whole.x, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        pursuit.omp_batch(D, mapped, 2).x, pursuit.omp_batch(D, Y.reshape(9, -1), 2).x, atol=1e-12
    )


def test_sizes_and_supports_of_complex_codes_are_those_of_their_numbers():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6, 9)) + 1j * rng.normal(size=(6, 9))
    X[rng.random(X.shape) < 0.6] = 0
    near = np.where(rng.random(X.shape) < 0.8, X, 0) + 0.01j
    dB = 10 * np.log10(np.sum(np.abs(near - X) ** 2) / np.sum(np.abs(X) ** 2))
    np.testing.assert_allclose(ur.metrics.nmse(near, X), dB, rtol=1e-12)
    each = 10 * np.log10(np.sum(np.abs(near - X) ** 2, 1) / np.sum(np.abs(X) ** 2, 1))
    np.testing.assert_allclose(ur.metrics.signal_nmse(near, X), each, rtol=1e-12)
    chosen, true = np.abs(near) > 0.1, X != 0
    scores = ur.metrics.support_scores(near, X, tolerance=0.1)
    hits = np.sum(chosen & true, 1)
    np.testing.assert_allclose(scores.recall, np.mean(hits / true.sum(1)), rtol=1e-12)
    np.testing.assert_allclose(scores.false_positives, np.mean(chosen.sum(1) - hits), rtol=1e-12)
    with pytest.raises(TypeError, match="complex128; expected real numbers"):
        ur.metrics.nmse(near, X.real)


@pytest.mark.parametrize("name", PURSUED)
def test_codes_in_parts_have_estimates_of_the_form_of_signals(name):
    D, Y, X = pursued_problem(name, 4)
    expected = np.einsum("mn,bn...->bm...", _matrix(D), X)
    np.testing.assert_allclose(ur.synthesize(D, X), expected, rtol=0, atol=100 * EPS)
    np.testing.assert_allclose(ur.synthesize(D, X[0]), expected[0], rtol=0, atol=100 * EPS)
    products = np.einsum("mn,bm...->bn...", _matrix(D).conj(), Y).reshape(4, 20, -1)
    largest = np.quantile(np.linalg.norm(products, axis=2).max(1), 0.9)
    np.testing.assert_allclose(pursuit.default_lam(D, Y), largest / 10, rtol=1e-12)


@pytest.mark.parametrize("name", PURSUED)
def test_objectives_and_gaps_of_codes_in_parts_are_those_of_their_form(name):
    """Next to numpy; the gap bounds the excess of any code over the optimum, and vanishes there."""
    D, Y, X = pursued_problem(name, 5)
    flat = partial(dictionaries.as_flat, D, batch=1)
    estimate = np.einsum("mn,bn...->bm...", _matrix(D), X)
    sizes = np.linalg.norm(X.reshape(5, 20, -1), axis=2).sum(1)
    expected = np.sum(np.abs(Y - estimate).reshape(5, -1) ** 2, 1) / 2 + 0.2 * sizes
    objective, gap = (
        jax.jit(jax.vmap(partial(f, D), (0, 0, None)))
        for f in (pursuit.lasso_objective, pursuit.duality_gap)
    )
    F = objective(Y, X, 0.2)
    np.testing.assert_allclose(F, expected, rtol=100 * EPS)
    np.testing.assert_allclose(objective(flat(Y)[0], flat(X)[0], 0.2), F, rtol=100 * EPS)
    np.testing.assert_allclose(objective(Y, X, np.full(20, 0.2)), F, rtol=100 * EPS)
    found = pursuit.lasso_batch(D, Y, 0.2, tol=1e-12)
    energy = np.sum(np.abs(Y).reshape(5, -1) ** 2, 1) / 2
    assert (gap(Y, X, 0.2) >= F - objective(Y, found.x, 0.2)).all()
    assert (gap(Y, found.x, 0.2) <= 1e-11 * energy).all()
    for f in (pursuit.lasso_objective, pursuit.duality_gap):
        with pytest.raises(ValueError, match=f"{f.__name__}: D has shape .* but y has shape"):
            f(D, Y[0], X[0][:3], 0.2)


def test_the_penalty_of_a_ratio_is_that_of_parts():
    D, Y, _ = pursued_problem("complex", 5)
    flat = np.asarray(to_pairs(Y))
    lam = pursuit.lasso_problem("lasso", {"ratio": 0.3}, D, flat)["lam"]
    largest = np.abs(Y @ _matrix(D).conj()).max(1, keepdims=True)
    np.testing.assert_allclose(lam, 0.3 * largest, rtol=1e-12)


def test_complex_signals_calibrate_and_train_without_codes():
    A = complex_matrix(1, 8, 12)
    D, layer = Complex.of(A), layers.lista_cp(3, lam=1.0)
    Y, X = map(from_pairs, ur.problems.sampler(D, 40)(jax.random.key(0)))
    start = layer.init(None, D)
    apply = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    better = analytic.calibrate(layer, start, D, Y, X)
    assert ur.metrics.nmse(apply(better, D, Y), X) < ur.metrics.nmse(apply(start, D, Y), X) - 1
    found = ur.training.unsupervised(D, Y, 0.1, depth=3, key=0, steps=4)
    assert found.judged["best"] < found.judged["ista"]


C = Complex.of(complex_matrix(1, 4, 6))
PLANNED = dict(depth=2, sparsity=1, bound=1.0)

test_what_does_not_know_parts_says_so = rows(
    *(
        (call, "codes of Complex come in parts of 2 entries")
        for call in (
            lambda: pursuit.basis_pursuit(C, np.ones(8)),
            lambda: pursuit.half_quadratic(C, np.ones(8), 0.1),
            lambda: pursuit.ml_ista([C], np.ones(8), [0.1]),
            lambda: theory.mutual_coherence(C),
            lambda: theory.coherence(C, C),
            lambda: theory.babel(C, 1),
            lambda: theory.generalized_coherence(C),
            lambda: analytic.minimax_weights(C),
            lambda: theory.frobenius_weights(C, power=3),
            lambda: theory.uniqueness([C], [1], coherence=theory.generalized_coherence),
            lambda: theory.certify_code(C, np.ones(8), np.ones(12)),
            lambda: theory.certify_run(
                layers.alista(2),
                layers.alista(2).init(None, C),
                C,
                np.ones(12),
                noise=0.0,
            ),
            lambda: analytic.alista(C, per_atom=True, **PLANNED),
            lambda: ur.dictionaries.WithIdentity(C),
            *(
                lambda name=name: FAMILIES[name](2).check(None, C)
                for name in (
                    "glista",
                    "hyperlista",
                    "liht",
                    "tista",
                    "vamp_bg",
                )
            ),
            lambda: ur.networks.ml_lista(2).check([None], [C]),
        )
    ),
    (
        lambda: ur.dictionaries.Concatenated(Joint(np.eye(2), 2)),
        "codes of Joint come in parts of 2",
    ),
    (lambda: pursuit.lasso(C, np.ones(8), 0.1, nonnegative=True), "parts of 2 .* no sign"),
    (lambda: pursuit.lasso_batch(C, np.ones((2, 8)), 0.1, nonnegative=True), "parts of 2 .* no"),
    (lambda: pursuit.lasso_batch(C, np.ones((2, 8)), np.ones((2, 12))), r"lam has .* \(2, 6\)"),
    (lambda: pursuit.omp(C, np.ones(8), sparsity=7), "exceeds the number of parts 6"),
    (lambda: pursuit.omp_batch(C, np.ones((2, 8)), 7), "exceeds the number of parts 6"),
    (lambda: pursuit.lasso(C, np.ones(8), np.ones(12)), r"lam has shape \(12,\); .* \(6,\)"),
    (lambda: pursuit.lasso(np.eye(2), [1j, 0], 0.1), TypeError, "y is complex128.*Complex"),
    (lambda: Complex(np.ones((2, 3)), np.ones((3, 2))), "real has shape .* must agree"),
    (lambda: Complex.of([["a"]]), TypeError, "A is not a numeric array"),
    (lambda: Joint(np.eye(2), 0), "measurements must be at least 1"),
    (lambda: Joint(Joint(np.eye(2), 2), 2), "already come in parts"),
    (lambda: from_pairs(np.ones(3)), "expected pairs"),
    (lambda: from_pairs(np.ones(4, np.float16)), TypeError, "float16"),
    (lambda: analytic.alista(C, depth=2, sparsity=7, bound=1.0), "exceeds the number of parts 6"),
)
