"""Dictionaries of what was measured: masks, and functions that multiply."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry
import scipy.fft
import scipy.sparse.linalg
from faults import rows

import unrolled as ur
from unrolled import dictionaries as ud

EPS = np.finfo(float).eps
assert_close = partial(chex.assert_trees_all_close, rtol=0)
M, N = 12, 20


def unit(seed=0):
    D = np.random.default_rng(seed).normal(size=(M, N))
    return D / np.linalg.norm(D, axis=0)


A = unit()
MASKS = np.random.default_rng(1).random((4, M)) < 0.7
Y = np.random.default_rng(2).normal(size=(4, M))
OPERATOR = scipy.sparse.linalg.aslinearoperator(A)


# Masks


@pytest.mark.parametrize(
    "mask", [MASKS[0], MASKS[0] / np.linspace(1, 3, M)], ids=["0, 1", "weights"]
)
@pytest.mark.parametrize("base", ["matrix", "functions"])
def test_a_masked_dictionary_has_the_rows_that_the_mask_leaves(mask, base):
    D = A if base == "matrix" else ud.from_functions(OPERATOR.matvec, OPERATOR.rmatvec, A.shape)
    assert_close(ud.dense(ud.Masked(D, mask)), mask[:, None] * A, atol=EPS)


def test_a_mask_of_one_signal_each_is_the_lasso_of_its_known_rows():
    """Independently: rows removed, by the batch solver."""

    @jax.jit
    def masked(masks, Y):
        def one(mask, y):
            return ur.pursuit.lasso(ud.Masked(A, mask), jnp.where(mask, y, 0), 0.1, tol=1e-12)

        return jax.vmap(one)(masks, Y)

    found = masked(MASKS, Y)
    assert found.converged.all()
    for mask, y, x in zip(MASKS, Y, found.x):
        expected = ur.pursuit.lasso_batch(A[mask], y[None, mask], 0.1, tol=1e-12).x[0]
        # A gap of 1e-12 of the energy, where the least eigenvalue of a support is above 1e-2.
        assert_close(x, expected, atol=1e-4)


def test_what_missing_entries_hold_has_no_part_in_a_code():
    D, layer = ud.Masked(A, MASKS[0]), ur.lista_cp(3)
    params, run = layer.init(None, A), jax.jit(layer.apply)
    y = np.where(MASKS[0], Y[0], 0)
    chex.assert_trees_all_equal((Y[0] @ D), (y @ D))
    # One network for all masks: its weights are those of the whole dictionary.
    codes = jax.vmap(lambda mask: run(params, ud.Masked(A, mask), jnp.where(mask, Y[0], 0)))(MASKS)
    for code, mask in zip(codes, MASKS):
        alone = run(params, mask[:, None] * A, np.where(mask, Y[0], 0))
        assert_close(code, alone, atol=64 * N * EPS)


def test_thresholds_of_filters_go_through_a_mask():
    bank = ud.Conv(np.random.default_rng(0).normal(size=(3, 1, 4)), M)
    D = ud.Masked(bank, MASKS[0])
    theta = jnp.array([0.1, 0.2, 0.3])
    assert D.groups == bank.groups
    chex.assert_trees_all_equal(ud.spread(D, theta), ud.spread(bank, theta))
    assert ud.threshold_shapes(D) == ud.threshold_shapes(bank)
    assert ud.threshold_shapes(ud.Masked(A, MASKS[0])) == ud.threshold_shapes(A)


def test_the_norm_of_a_large_masked_dictionary_is_a_bound(monkeypatch):
    D = ud.Masked(A, -2.0 * MASKS[0])
    exact = np.linalg.norm(2 * A[MASKS[0]], 2)
    assert ud.spectral_norm(D) == pytest.approx(exact, rel=1e-12)
    monkeypatch.setattr("unrolled.dictionaries._base.DENSE_LIMIT", 10)
    assert D.spectral_norm() == pytest.approx(2 * np.linalg.norm(A, 2), rel=1e-12)


def test_atoms_that_lie_in_missing_entries_are_named():
    D = ud.Masked(np.eye(3), [True, False, True])
    with pytest.raises(ValueError, match=r"normalize: atoms \[1\] are zero"):
        ud.normalize(D)


# Functions


def of(kind):
    products = {
        "jax": (lambda x: jnp.asarray(A, x.dtype) @ x, lambda r: r @ jnp.asarray(A, r.dtype)),
        "numpy": (partial(np.dot, A), partial(np.dot, A.T)),
        "scipy": (OPERATOR.matvec, OPERATOR.rmatvec),
    }
    return ud.from_functions(*products[kind], A.shape)


@pytest.mark.parametrize("kind", ["jax", "numpy", "scipy"])
def test_functions_are_their_matrix_in_every_transformation(kind):
    D, x = of(kind), np.random.default_rng(3).normal(size=(3, N))

    def loss(D, x):
        return jnp.sum((Y[0] - D @ x) ** 2) / 2 + jnp.sum((Y[1] @ D - x) ** 2) / 2

    def answers(D, x):
        one = partial(loss, D)
        both = jax.vmap(jax.value_and_grad(one))(x)
        forward = jax.jvp(one, (x[0],), (x[1],))[1]
        hessian = jax.jacfwd(jax.grad(one))(x[0])
        adjoint = jax.linear_transpose(lambda x: D @ x, x[0])(Y[0])
        return both, forward, hessian, adjoint, jax.vmap(lambda x: D @ x, 1, 1)(x.T), x[:0] @ D.T

    # Sums of at most N products, squared, in a few steps.
    assert D.on_host == (kind != "jax")
    assert_close(jax.jit(answers)(D, x), answers(A, x), atol=1e3 * N * EPS)
    found = jax.jit(ur.pursuit.lasso)(D, Y[0], 0.1)
    assert found.converged and found.residual == pytest.approx(np.linalg.norm(Y[0] - A @ found.x))


def test_a_blurred_signal_is_sharpened_without_a_matrix():
    """A blur that numpy computes, on the DCT of scipy: the matrix certifies the code."""
    kernel = np.fft.rfft(np.exp(-0.5 * np.arange(-8, 8) ** 2 / 4.0), norm="ortho")

    def blurred(v, kernel=kernel):
        return np.fft.irfft(np.fft.rfft(v) * kernel, 16)

    def synthesize(x):
        return blurred(scipy.fft.idct(x, norm="ortho"))

    def analyze(r):
        return scipy.fft.dct(blurred(r, kernel.conj()), norm="ortho")

    D = ud.from_functions(synthesize, analyze, (16, 16))
    y = synthesize(np.eye(16)[3])
    found = jax.jit(partial(ur.pursuit.lasso, tol=1e-10))(D, y, 1e-3)
    matrix = np.stack([synthesize(e) for e in np.eye(16)], 1)
    slope = (y - matrix @ found.x) @ matrix
    assert found.converged and np.argmax(np.abs(found.x)) == 3
    assert np.abs(slope).max() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
@pytest.mark.parametrize("case", ["gaussian", "decaying", "one direction", "identity", "zero"])
def test_lanczos_bounds_the_norm_from_above_and_not_by_much(case, scale, monkeypatch):
    monkeypatch.setattr("unrolled.dictionaries._functions._SMALL", 0)
    rng, (m, d) = np.random.default_rng(4), (60, 90)
    U, V = (np.linalg.qr(rng.normal(size=(n, m)))[0] for n in (m, d))
    spectra = {
        "decaying": 1.0 / np.arange(1, m + 1),
        "one direction": np.eye(1, m)[0],
        "identity": np.ones(m),
        "zero": np.zeros(m),
    }
    B = (U * spectra[case]) @ V.T if case in spectra else rng.normal(size=(m, d))
    D = ud.from_functions(lambda x: jnp.asarray(B) @ x, lambda r: r @ jnp.asarray(B), (m, d))
    exact, bound = np.linalg.norm(B, 2), float(jax.jit(ud.spectral_norm)(D * scale)) / scale
    # 1 / sqrt(1 - e) is 1.03 for 90 columns.
    assert exact <= bound <= 1.031 * exact


def test_norms_of_atoms_are_those_given_or_measured():
    plain, known = of("jax"), of("numpy")
    assert_close(ud.column_norms(plain * -2.0), 2 * np.ones(N), atol=8 * EPS)
    given = ud.from_functions(known.forward, known.adjoint, A.shape, norms=np.ones(N))
    chex.assert_trees_all_equal(ud.column_norms(given * -2.0), 2 * np.ones(N))
    unit, norms = ud.normalize(given * 4.0)
    assert_close((norms, ud.dense(unit)), (4 * np.ones(N), A), atol=8 * EPS)
    assert ud.column_norms(plain.astype(np.float32)).dtype == np.float32


# What the docstring of `from_functions` says.
WITHOUT_MATRIX = """ista fista step_lista lista_cp lista_cpss lfista_cp glista tilista ada_lista
lamp lamp_bg sae"""
PURSUITS_WITH_MATRIX = "lasso_batch omp_batch basis_pursuit"


def test_what_needs_the_matrix_is_named(monkeypatch):
    """By tracing alone: what makes the matrix, or takes its norm from it, fails."""

    def refused(D):
        raise RecursionError("the matrix")

    monkeypatch.setattr("unrolled.dictionaries._base._dense", refused)
    monkeypatch.setattr("unrolled.dictionaries._functions._SMALL", 0)
    D = of("jax")

    def makes_no_matrix(call):
        try:
            jax.eval_shape(call, D, Y[0])
        except RecursionError:
            return False
        return True

    def run(layer):
        return lambda D, y: layer.apply(layer.init(jax.random.key(0), D), D, y)

    layers = {name: run(build(2)) for name, build in registry.FAMILIES.items()}
    assert {n for n, call in layers.items() if makes_no_matrix(call)} == {*WITHOUT_MATRIX.split()}
    made = {n for n, call in registry.PURSUITS.items() if not makes_no_matrix(call)}
    assert made == {*PURSUITS_WITH_MATRIX.split()}


def made(f=jnp.flip, g=jnp.flip, shape=(4, 4), **options):
    return lambda: ud.from_functions(f, g, shape, **options)


SMALL_WEIGHTS = np.full(M, 1e-60)

test_refusals = rows(
    (lambda: ud.Masked(A, np.ones(3)), r"mask has shape \(3,\) but D has shape \(12, 20\)"),
    (lambda: ud.Masked(A, MASKS), "for masks of many signals use jax.vmap"),
    (lambda: ud.Masked(A, np.full(M, np.nan)), "Masked: mask has NaN or infinite entries"),
    (lambda: ud.Masked(A, "known"), TypeError, "mask is not a numeric array"),
    (lambda: ud.Masked(A.astype("f4"), SMALL_WEIGHTS), "mask=1e-60 leaves the range of float32"),
    (made(1), TypeError, "synthesize must be a function, got 1"),
    (made(shape=4), TypeError, "shape must be a sequence"),
    (made(shape=(4, 4, 4)), r"shape is \(4, 4, 4\); expected \(m, d\)"),
    (made(shape=(4, 0)), r"shape\[1\] must be at least 1"),
    (made(shape=(4, 5)), r"synthesize returns the shape \(5,\) for \(5,\); expected \(4,\)"),
    (made(np.fft.fft, np.fft.ifft), TypeError, "synthesize returns complex128"),
    (made(lambda x: x / 0), "what synthesize returns has NaN or infinite entries"),
    (made(jnp.cumsum, jnp.cumsum), r"<synthesize\(x\), r> = \S+ and <x, analyze\(r\)> = \S+;"),
    (made(jnp.abs, jnp.abs, (1, 1)), "analyze is not the adjoint of synthesize"),
    (made(lambda x: x + 1, lambda r: r), "analyze is not the adjoint of synthesize"),
    (made(lambda x: x, lambda r: r * (1 + 1e-9)), "expected equal numbers to the rounding of floa"),
    (made(np.cumsum, partial(np.dot, np.eye(4))), "analyze is not the adjoint of synthesize"),
    (made(np.fft.irfft, jnp.flip, (4, 3)), TypeError, "two functions of JAX, or two of numpy"),
    (made(norms=np.full(4, 2.0)), r"norms\[\d\] is 2 but atom \d has norm 1"),
    (made(norms=np.ones(3)), r"norms have shape \(3,\); expected \(4,\)"),
    (
        lambda: jax.jit(lambda k: made(lambda x: k * x, lambda r: k * r)())(2.0),
        TypeError,
        "what synthesize holds is traced",
    ),
    (
        lambda: ur.training.save("x.npz", (), made()()),
        TypeError,
        "cannot save the static field forward of Functions.*try dictionary=False",
    ),
)
