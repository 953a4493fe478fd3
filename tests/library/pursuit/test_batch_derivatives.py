"""The derivatives of batches of codes: equal to those of one signal, and to finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import normal

from unrolled import dictionaries, pursuit
from unrolled._base.programs import host_callback

M, N, BATCH = 12, 30, 8
D, Y, C = normal(0, M, N), normal(1, BATCH, M), normal(2, BATCH, N)
KNOWN = np.random.default_rng(0).random((BATCH, M)) < 0.8
EACH = np.random.default_rng(1).uniform(0.5, 1, BATCH)
TOL = 1e-13  # of a gap, so that the codes are the minimisers to 1e-6 of their size or better


def batch(D, Y, lam, l2=0.0, **options):
    return jnp.sum(pursuit.lasso_batch(D, Y, lam, l2=l2, tol=TOL, **options).x * C)


def singles(D, Y, lam, l2=0.0, mask=None, **options):
    """The same sum, of `lasso` under `vmap`; lam has a row for each signal."""
    known = jnp.ones(Y.shape) if mask is None else jnp.asarray(mask, float)

    def one(y, lam, w):
        return pursuit.lasso(w[:, None] * D, w * y, lam, l2=l2, tol=TOL, **options).x

    return jnp.sum(jax.vmap(one)(Y, jnp.broadcast_to(lam, (BATCH, N)), known) * C)


@partial(jax.jit, static_argnames="nonnegative")
def slopes_of_singles(D, Y, lam, l2, mask, nonnegative):
    """For D, Y, lam, (BATCH, N), and l2: one program for penalties of all shapes."""

    def total(D, Y, lam, l2):
        return singles(D, Y, lam, l2, mask, nonnegative=nonnegative)

    return jax.grad(total, (0, 1, 2, 3))(D, Y, lam, l2)


CASES = {
    "lam": ((D, Y, 0.7), {}),
    "lam per atom": ((D, Y, np.linspace(0.5, 1, N)), {}),
    "lam per signal, l2": ((D, Y, EACH[:, None], 0.1), {}),
    "nonnegative": ((D, Y, 0.7, 0.1), dict(nonnegative=True)),
    "mask": ((D, Y, 0.7), dict(mask=KNOWN)),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", [pytest.param(n, id=n) for n in CASES])
def test_derivatives_of_lasso_batch_are_those_of_lasso_and_of_differences(name, jit):
    """Central differences of h = 1e-6 are right to h^2 and TOL / h."""
    arguments, options = CASES[name]
    over = tuple(range(len(arguments)))
    gradient = jax.grad(lambda *a: batch(*a, **options), over)
    slopes = (jax.jit(gradient) if jit else gradient)(*arguments)
    if jit:
        D, Y, lam, l2 = (*arguments, 0.0)[:4]
        mask = np.asarray(options.get("mask", np.ones(Y.shape)), float)
        each = np.broadcast_to(lam, (BATCH, N))
        expected = slopes_of_singles(D, Y, each, l2, mask, options.get("nonnegative", False))
        for slope, other in zip(slopes, expected):
            while np.ndim(other) > np.ndim(slope):
                other = np.sum(other, 0)
            if np.shape(slope) == (BATCH, 1):  # a penalty of each signal
                other = np.sum(other, 1, keepdims=True)
            scale = np.abs(other).max()
            np.testing.assert_allclose(slope, other, rtol=0, atol=1e-11 * scale)
        return
    moves = [normal(3 + i, *np.shape(v)) for i, v in enumerate(arguments)]
    ends = [
        float(batch(*(v + h * move for v, move in zip(arguments, moves)), **options))
        for h in (1e-6, -1e-6)
    ]
    along = sum(np.vdot(slope, move) for slope, move in zip(slopes, moves))
    assert float(along) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_a_ratio_moves_with_the_signals_and_the_atoms():
    def own(D, Y, ratio):
        return jnp.sum(pursuit.lasso_batch(D, Y, ratio=ratio, tol=TOL).x * C)

    def each(D, Y, ratio):
        return jnp.sum(jax.vmap(lambda y: pursuit.lasso(D, y, ratio=ratio, tol=TOL).x)(Y) * C)

    slopes, expected = (jax.grad(f, (0, 1, 2))(D, Y, 0.3) for f in (own, each))
    for slope, other in zip(slopes, expected):
        np.testing.assert_allclose(slope, other, rtol=0, atol=1e-11 * np.abs(other).max())


@pytest.mark.parametrize(
    "options", [{}, dict(selection="least_squares"), dict(nonnegative=True)], ids=str
)
def test_derivatives_of_omp_batch_are_those_of_omp(options):
    def own(D, Y):
        return jnp.sum(pursuit.omp_batch(D, Y, 4, **options).x * C)

    def each(D, Y):
        return jnp.sum(jax.vmap(lambda y: pursuit.omp(D, y, 4, **options).x)(Y) * C)

    expected = jax.grad(each, (0, 1))(D, Y)
    for gradient in (jax.grad(own, (0, 1)), jax.jit(jax.grad(own, (0, 1)))):
        for slope, other in zip(gradient(D, Y), expected):
            np.testing.assert_allclose(slope, other, rtol=0, atol=1e-12)


def test_derivatives_at_other_scales_and_in_the_weights():
    """Codes of atoms times 1e150 are smaller by this factor; weights are arguments, too."""
    V = 0.5 + np.abs(normal(5, BATCH, M))

    def own(D, Y, V):
        return jnp.sum(pursuit.omp_batch(D, Y, 4, V).x * C)

    slopes = jax.grad(own, (0, 1, 2))(D, Y, V)
    large = jax.grad(own, (0, 1, 2))(1e150 * D, Y, V)
    for slope, other, unit in zip(slopes, large, (1e300, 1e150, 1e150)):
        np.testing.assert_allclose(slope, np.asarray(other) * unit, rtol=1e-9)
    move, h = normal(6, BATCH, M), 1e-6
    ends = [float(own(D, Y, V + s * move)) for s in (h, -h)]
    along = float(np.vdot(slopes[2], move))
    assert along == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_derivatives_in_a_structured_dictionary():
    filters = normal(7, 3, 1, 4)

    def own(filters, dense):
        F = dictionaries.Conv(filters, M)
        F = dictionaries.dense(F) if dense else F
        return jnp.sum(pursuit.lasso_batch(F, Y, 0.5, tol=TOL).x ** 2)

    slopes = [jax.grad(own)(filters, dense) for dense in (False, True)]
    np.testing.assert_allclose(*slopes, rtol=1e-10)


def test_the_margin_says_how_near_a_change_of_the_support_is():
    """Of orthonormal atoms, 1 - |y_i| / lam off the support, |x_i| / max |x| on it."""
    y = np.array([[3.0, 1.5, 0.9, 0.0]])
    assert float(pursuit.lasso_batch(np.eye(4), y, 1.0).margin[0]) == pytest.approx(0.1)
    y = np.array([[3.0, 1.02, 0.5, 0.0]])
    assert float(pursuit.lasso_batch(np.eye(4), y, 1.0).margin[0]) == pytest.approx(0.01)
    y = np.array([[3.0, -1.5, -1.0, 0.0]])
    assert float(pursuit.lasso_batch(np.eye(4), y, 1.0, nonnegative=True).margin[0]) == 1
    assert float(pursuit.lasso_batch(np.eye(4), y, 1.0).margin[0]) == pytest.approx(0)


@pytest.fixture
def without_x64():
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


def test_numbers_of_64_bits_reach_the_host_where_one_thread_alone_has_them(without_x64):
    """The host computes in a thread that does not know the context of the caller."""
    seen = []

    def host(v, n):
        seen.append((v.dtype, n.dtype))
        return v + 1e-12, n + 1

    with jax.enable_x64(True):
        v, n = jnp.arange(6.0).reshape(2, 3), jnp.int64(2**40)
        kinds = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in (v, n)]
        call = jax.jit(lambda v, n: host_callback(host, kinds, v, n, vmap_method="sequential"))
        for _ in range(20):
            w, k = call(v, n)
            assert (np.asarray(w) == np.arange(6.0).reshape(2, 3) + 1e-12).all() and k == 2**40 + 1
        rows = jax.vmap(lambda n: host_callback(host, kinds, v, n, vmap_method="sequential"))
        assert rows(n + jnp.arange(2))[1].tolist() == [2**40 + 1, 2**40 + 2]
    assert set(seen) == {(np.dtype("float64"), np.dtype("int64"))}
