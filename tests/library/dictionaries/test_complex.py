"""Complex operators: from functions, from structured parts, and in products with real ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse.linalg
from faults import rows
from jax.test_util import check_grads

import unrolled as ur
from unrolled import dictionaries as ud
from unrolled import pursuit
from unrolled.dictionaries import from_pairs, to_pairs

EPS = np.finfo(float).eps
M, N = 12, 20


def draw(*shape, seed=0):
    rng = np.random.default_rng([seed, *shape])
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


A = draw(M, N)
A = A / np.linalg.norm(A, axis=0)
Y = draw(4, M)
MASKS = np.random.default_rng(1).random((4, M)) < 0.8
OPERATOR = scipy.sparse.linalg.aslinearoperator(A)


def of(kind, A=A, **options):
    products = {
        "jax": (lambda x: jnp.asarray(A) @ x, lambda r: jnp.asarray(A.conj().T) @ r),
        "numpy": (partial(np.dot, A), partial(np.dot, A.conj().T)),
        "scipy": (OPERATOR.matvec, OPERATOR.rmatvec),
    }
    return ud.from_functions(*products[kind], A.shape, complex=True, **options)


def conv(m, seed):
    D = ud.Conv(np.random.default_rng(seed).normal(size=(2, 1, 3)), m, boundary="circular")
    return D, np.asarray(ud.dense(D))


def pairs():
    """Pairs of a dictionary and its matrix: complex ones, and real ones of m x 2m."""
    square, real = draw(M, M), np.random.default_rng(2).normal(size=(M, 3))
    (R, C), (S, Z) = conv(M, 0), conv(M, 1)
    scattered = real * (abs(real) > 0.5)
    return {
        "functions": (of("jax"), A),
        "functions of numpy, scaled": (2.0 * of("numpy"), 2 * A),
        "transposed": (of("jax").T, A.conj().T),
        "of structured parts": (ud.Complex(R, S), C + 1j * Z),
        "of mixed parts": (ud.Complex(R, Z), C + 1j * Z),
        "structured, transposed": (ud.Complex(R, S).T, (C + 1j * Z).conj().T),
        "real first": (ud.Composed(R.T, of("jax")), C.T @ A),
        "real last": (ud.Composed(of("jax", square), R), square @ C),
        "real between": (ud.Composed(of("jax", square), R, ud.Complex(R, S).T),
                         square @ C @ (C + 1j * Z).conj().T),
        "real first, matrix": (ud.Composed(Z.T, ud.Complex.of(A)), Z.T @ A),
        "concatenated": (ud.Concatenated(R, of("jax"), real), np.hstack([C, A, real])),
        "concatenated, nested": (
            ud.Concatenated(ud.Composed(square.real, R), ud.Masked(ud.Complex.of(A), MASKS[0])),
            np.hstack([square.real @ C, MASKS[0][:, None] * A]),
        ),
        "masked": (ud.Masked(of("jax"), MASKS[0]), MASKS[0][:, None] * A),
        "real masked, first": (
            ud.Composed(ud.Masked(square.real, MASKS[0]), of("jax")),
            (MASKS[0][:, None] * square.real) @ A,
        ),
        "masked product": (
            ud.Masked(ud.Composed(of("jax", square), ud.Sparse(np.eye(M), scattered)), MASKS[0]),
            MASKS[0][:, None] * (square @ scattered),
        ),
    }  # fmt: skip


PAIRS = pairs()


def complex_dense(D):
    matrix = np.asarray(ud.dense(D))
    np.testing.assert_array_equal(matrix[1::2, 1::2], matrix[::2, ::2])
    np.testing.assert_array_equal(matrix[1::2, ::2], -matrix[::2, 1::2])
    return matrix[::2, ::2] + 1j * matrix[1::2, ::2]


@pytest.mark.few(5)
@pytest.mark.parametrize("name", PAIRS)
def test_a_complex_dictionary_is_its_dense_twin(name):
    D, B = PAIRS[name]
    m, d = B.shape
    assert D.shape == (2 * m, 2 * d) and D.is_complex and D.block == 2
    close = dict(rtol=0, atol=16 * (m + d) * max(1, abs(B).max()) ** 2 * EPS)
    np.testing.assert_allclose(complex_dense(D), B, **close)
    x, r = draw(d), draw(m)
    np.testing.assert_allclose(from_pairs(D @ to_pairs(x)), B @ x, **close)
    np.testing.assert_allclose(from_pairs(to_pairs(r) @ D), B.conj().T @ r, **close)
    norms = np.repeat(np.linalg.norm(B, axis=0), 2)
    np.testing.assert_allclose(ud.column_norms(D), norms, **close)
    assert np.linalg.norm(B, 2) * (1 - 8 * EPS) <= ud.spectral_norm(D)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["concatenated", "real last", "of structured parts", "masked"])
def test_the_lasso_of_an_operator_is_that_of_its_matrix(name):
    D, B = PAIRS[name]
    y = B @ np.r_[1, 2j, np.zeros(B.shape[1] - 2)] + 0.1 * draw(M)
    found, expected = (jax.jit(partial(pursuit.lasso, tol=1e-12))(C, y, ratio=0.3)
                       for C in (D, ud.Complex.of(B)))  # fmt: skip
    assert found.converged and found.x.shape == B.shape[1:] and 0 < (found.x != 0).sum() < M
    # A gap of 1e-12 moves the code by about its root.
    np.testing.assert_allclose(found.x, expected.x, rtol=0, atol=1e-5 * abs(expected.x).max())


@pytest.mark.parametrize("kind", ["jax", "numpy", "scipy"])
def test_functions_of_complex_numbers_are_their_matrix_in_every_transformation(kind):
    D, C, x = of(kind), ud.Complex.of(A), to_pairs(draw(3, N))

    def loss(D, x):
        return jnp.sum((to_pairs(Y[0]) - D @ x) ** 2) + jnp.sum((to_pairs(Y[1]) @ D - x) ** 2)

    def answers(D, x):
        one = partial(loss, D)
        both = jax.vmap(jax.value_and_grad(one))(x)
        return both, jax.jvp(one, (x[0],), (x[1],))[1], jax.vmap(lambda x: D @ x, 1, 1)(x.T)

    assert D.on_host == (kind != "jax")
    for ours, theirs in zip(*(jax.tree.leaves(jax.jit(answers)(B, x)) for B in (D, C))):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e3 * N * EPS)


def test_many_signals_with_masks_of_their_own():
    D = of("jax")
    found = pursuit.lasso_batch(D, np.where(MASKS, Y, np.nan), 0.3, mask=MASKS, tol=1e-12)
    assert found.converged.all() and found.x.shape == (4, N)
    for mask, y, x in zip(MASKS, Y, found.x):
        known = ud.Complex.of(mask[:, None] * A)  # all of one shape, for one program
        expected = pursuit.lasso(known, mask * y, 0.3, tol=1e-12).x
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5)


def test_the_derivative_of_a_code_of_functions():
    D, y = of("jax"), to_pairs(Y[0])

    def code(y, gain, lam):
        return pursuit.lasso(gain * D, y, lam, tol=1e-14).x

    check_grads(code, (y, jnp.ones(()), 0.5), order=1, modes=("rev",), atol=1e-4, rtol=1e-4,
                eps=1e-5)  # fmt: skip


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["functions", "matrix"])
def test_denoising_takes_complex_codes(kind):
    """The optimum by its conditions: A_i^H r = lam x_i / |x_i| in use, |A_i^H r| <= lam."""
    D = ud.Complex.of(A) if kind == "matrix" else of("jax")
    y, eps = Y[0], 0.4 * np.linalg.norm(Y[0])
    found = jax.jit(partial(pursuit.bpdn, tol=1e-12))(D, y, eps)
    x = np.asarray(found.x)
    assert found.converged and x.shape == (N,)
    r, on = y - A @ x, x != 0
    g = A.conj().T @ r
    lam = abs(g).max()
    assert 0 < on.sum() < N and np.linalg.norm(r) == pytest.approx(eps, rel=1e-6)
    np.testing.assert_allclose(g[on], lam * x[on] / abs(x[on]), rtol=0, atol=1e-5 * lam)
    least = pursuit.lasso(D, y, lam, tol=1e-13).x
    assert abs(x).sum() <= abs(least).sum() * (1 + 1e-6)


@pytest.mark.slow
def test_the_derivative_of_denoising_moves_complex_codes():
    def code(y, eps):
        return pursuit.bpdn(ud.Complex.of(A), y, eps, tol=1e-13).x

    y = to_pairs(Y[0])
    check_grads(code, (y, 1.5), order=1, modes=("rev",), atol=1e-3, rtol=1e-3, eps=1e-4)


@pytest.mark.few(1)
@pytest.mark.parametrize("family", ["lista_cp", "alista", "fista"])
def test_a_layer_runs_on_functions_as_on_the_matrix(family):
    layer = getattr(ur.layers, family)(4)
    codes = []
    for D in (of("jax"), ud.Complex.of(A)):
        params = layer.init(jax.random.key(0), D)
        codes.append(jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y))
    assert codes[0].shape == (4, N)
    np.testing.assert_allclose(*codes, rtol=0, atol=1e5 * EPS)


@pytest.mark.slow
def test_functions_of_complex_numbers_train_with_and_without_codes_and_are_exported(tmp_path):
    D, layer = of("jax"), ur.layers.lista_cp(3)
    X = np.where(np.random.default_rng(0).random((30, N)) < 0.1, draw(30, N), 0)
    Y = X @ A.T
    start = layer.init(jax.random.key(0), D)
    fit = ur.fit(layer, start, D, (Y, X), optimizer=optax.adam(0.01), steps=5, key=0)
    run = jax.jit(jax.vmap(layer.apply, (None, None, 0)))
    assert ur.metrics.nmse(run(fit.best, D, Y), X) < ur.metrics.nmse(run(start, D, Y), X)
    found = ur.training.unsupervised(D, Y, 0.1, depth=3, key=0, steps=3)
    assert found.judged["best"] <= found.judged["ista"]
    ur.export.save(tmp_path / "layer.npz", layer, fit.best, D)
    again = ur.export.load(tmp_path / "layer.npz").run(Y[:2])
    np.testing.assert_allclose(again, run(fit.best, D, Y[:2]), rtol=0, atol=1e4 * EPS)


def test_norms_of_complex_atoms_are_those_given_or_measured():
    for D in (of("numpy", norms=np.ones(N)), of("jax")):
        np.testing.assert_allclose(ud.column_norms(-2.0 * D), 2, rtol=8 * EPS)
    B = np.array([[1, 2j, 0], [1j, 0, 3]])
    D = ud.from_functions(lambda x: B @ x, lambda r: B.conj().T @ r, B.shape, complex=True)
    norms = np.repeat(np.sqrt([2, 4, 9]), 2)
    np.testing.assert_allclose(ud.column_norms(D), norms, rtol=8 * EPS)


def test_lanczos_bounds_the_norm_of_a_complex_operator(monkeypatch):
    monkeypatch.setattr("unrolled.dictionaries._functions._SMALL", 0)
    exact, bound = np.linalg.norm(A, 2), float(jax.jit(ud.spectral_norm)(of("jax")))
    assert exact <= bound <= 1.031 * exact


C, R = ud.Complex.of(draw(3, 4)), np.ones((5, 4))


def made(f, g, shape=(4, 4), **options):
    return lambda: ud.from_functions(f, g, shape, **options)


test_refusals = rows(
    (made(jnp.fft.fft, jnp.fft.ifft), TypeError, "returns complex128; expected real.*complex=True"),
    (made(jnp.conj, jnp.conj, complex=True), "analyze is not the adjoint of synthesize"),
    (made(np.fft.fft, np.fft.ifft, complex=True), "analyze is not the adjoint"),
    (made(lambda x: 1j * x, lambda r: 1j * r, complex=True), "analyze is not the adjoint"),
    (made(jnp.real, jnp.real, complex=True), "analyze is not the adjoint of synthesize"),
    (made(lambda x: x / 0, lambda r: r, complex=True), "what synthesize returns has NaN"),
    (made(jnp.flip, jnp.flip, norms=np.full(4, 2.0), complex=True), r"norms\[\d\] is 2 but atom"),
    (lambda: ud.Composed(C, R), r"D_1 has complex shape \(3, 4\) but D_2 has complex shape \(5, 4"),
    (lambda: ud.Composed(R, C), r"D_1 has complex shape \(5, 4\) .* D_2 has complex shape \(3, 4"),
    (lambda: ud.Concatenated(C, R), r"complex shapes \[\(3, 4\), \(5, 4\)\]"),
    (lambda: ud.Masked(C, np.ones(4)), r"complex shape \(3, 4\); expected \(3,\), one .* complex"),
    (lambda: ud.Composed(C, ud.Joint(np.eye(4), 3)), "codes of Joint already come in parts of 3"),
    (lambda: ur.lasso(C, draw(4), 0.1), r"complex shape \(3, 4\) but y has complex shape \(4,\)"),
    (lambda: ud.Complex(C, C), "Complex: codes of Complex come in parts"),
)
