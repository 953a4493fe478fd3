"""Codes of a `Conv` by ADMM in Fourier space, compared with the active set method on its matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled import dictionaries, pursuit
from unrolled.dictionaries import Conv, Masked, dense
from unrolled.pursuit import _lasso, _lasso_batch
from unrolled.pursuit._problem import flat_code
from unrolled.pursuit._torus import Torus, inverse


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


BANK = normal(0, 3, 1, 3, 2)
COLOUR = normal(1, 3, 2, 3, 2)
MASK = np.arange(42) % 5 > 0
WEIGHTS = 1 + 0.5 * np.sin(np.arange(42))
CASES = {
    "circular": (Conv(BANK, (6, 7), boundary="circular"), {}),
    "valid": (Conv(BANK, (6, 7)), {}),
    "zero": (Conv(BANK, (6, 7), boundary="zero"), {}),
    "two channels": (Conv(COLOUR, (6, 7), boundary="circular"), {}),
    "zero, two channels": (Conv(COLOUR, (5, 4), boundary="zero"), {}),
    "dilated": (Conv(BANK, (6, 7), boundary="circular", dilation=(2, 1)), {}),
    "masked": (Masked(Conv(BANK, (6, 7), boundary="circular"), MASK), {}),
    "weighted, zero": (Masked(Conv(BANK, (6, 7), boundary="zero"), WEIGHTS * MASK), {}),
    "one filter free": (Conv(BANK, (6, 7)), {"lam": np.array([0.0, 0.3, 0.4])}),
    "nonnegative": (Conv(BANK, (6, 7), boundary="circular"), {"nonnegative": True}),
    "elastic": (Conv(BANK, (6, 7), boundary="circular"), {"l2": 0.2}),
    "elastic, masked": (Masked(Conv(BANK, (6, 7)), MASK), {"l2": 0.2, "nonnegative": True}),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", sorted(CASES))
def test_codes_are_those_of_the_matrix(name):
    D, options = CASES[name][0], dict(CASES[name][1])
    D, lam = D / dictionaries.spectral_norm(D), options.pop("lam", 0.3)
    y = normal(2, D.shape[0]) * (np.asarray(D.mask) != 0 if name == "masked" else 1)
    exact = pursuit.lasso_batch(
        np.asarray(dense(D)),
        y[None],
        np.repeat(lam, D.shape[1] // 3) if np.ndim(lam) else lam,
        tol=1e-12,
        **options,
    )
    found = pursuit.lasso(D, y, lam, tol=1e-9, **options)
    assert found.converged and found.how == "admm"
    np.testing.assert_allclose(D @ found.x, D @ exact.x[0], atol=2e-4)
    # The gap of a code that is not yet optimal bounds its distance from the optimum, too.
    early = pursuit.lasso(D, y, lam, tol=0.05, **options)

    def objective(x):
        r, lams = y - D @ x, D.base.spread(lam) if isinstance(D, Masked) else D.spread(lam)
        ridge = options.get("l2", 0) * jnp.sum(x**2) / 2
        return float(jnp.sum(r**2) / 2 + jnp.sum(lams * jnp.abs(x)) + ridge)

    half, least = np.sum(y**2) / 2, objective(exact.x[0])
    for result in (found, early):
        assert -1e-11 * half <= objective(result.x) - least <= float(result.gap) * half + 1e-11


@pytest.mark.parametrize("name", ["circular", "valid", "zero, two channels", "dilated"])
def test_products_on_the_torus_are_those_of_the_dictionary(name):
    D, _ = CASES[name]
    torus, x, r = Torus.of(D), normal(3, D.shape[1]), normal(4, D.shape[0])
    np.testing.assert_allclose(torus @ x, D @ x, atol=1e-12)
    np.testing.assert_allclose(torus.__rmatmul__(r), r @ D, atol=1e-12)


def test_codes_in_the_grid_of_a_convolution_are_flattened_and_flat_ones_unchanged():
    D, flat = CASES["valid"][0], normal(12, 4, CASES["valid"][0].shape[1])
    np.testing.assert_array_equal(flat_code(D, flat.reshape(4, *D.code_grid)), flat)
    assert flat_code(D, flat) is flat


def test_inverses_of_gauss_and_jordan_are_inverses():
    A = normal(5, 6, 4, 4) + 1j * normal(6, 6, 4, 4)
    G = A @ A.conj().swapaxes(1, 2) + 0.1 * np.eye(4)
    found = jnp.moveaxis(inverse(jnp.moveaxis(G, 0, -1)), -1, 0)
    np.testing.assert_allclose(found @ G, np.broadcast_to(np.eye(4), G.shape), atol=1e-9)


@pytest.mark.slow
def test_fista_continues_where_admm_stalls(monkeypatch):
    D, y = CASES["zero"][0], normal(7, 42)
    monkeypatch.setattr("unrolled.pursuit._torus._PATIENCE", 10)
    jax.clear_caches()
    found = pursuit.lasso(D, y, ratio=0.05, tol=1e-10, max_steps=5000)
    jax.clear_caches()
    assert found.converged and found.steps > 10


@pytest.mark.slow
def test_gradients_are_those_of_the_matrix():
    def loss(D, y):
        return jnp.sum(pursuit.lasso(D, y, 0.8, tol=1e-12).x ** 2)

    D, y = CASES["circular"][0], jnp.asarray(normal(8, 42))
    own = jax.grad(loss, (0, 1))(D, y)
    through = jax.grad(lambda D, y: loss(dense(D), y), (0, 1))(D, y)
    np.testing.assert_allclose(own[0].filters, through[0].filters, atol=1e-6)
    np.testing.assert_allclose(own[1], through[1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("together", [2**17, 1])
def test_a_batch_is_coded_signal_by_signal(monkeypatch, together):
    monkeypatch.setattr(_lasso_batch, "FEW", 0)
    monkeypatch.setattr(_lasso_batch, "_ENTRIES", together)
    D, Y = CASES["valid"][0], normal(9, 3, 6, 7)
    masks, lam = normal(10, 3, 42) > -1, np.array([[0.5], [0.8], [1.0]])
    found = pursuit.lasso_batch(D, Y, lam, tol=1e-10, mask=masks.reshape(Y.shape))
    assert found.how == "admm" and found.converged.all() and found.x.shape == (3, *D.code_grid)
    for x, y, own, mask in zip(found.x, Y.reshape(3, -1), lam, masks):
        alone = pursuit.lasso(Masked(D, mask), np.where(mask, y, 0), own[0], tol=1e-10)
        np.testing.assert_allclose(x.reshape(-1), alone.x, atol=1e-4)
    flat = pursuit.lasso_batch(D, Y.reshape(3, -1), lam, tol=1e-10, sparse=True)
    whole = pursuit.lasso_batch(D, Y.reshape(3, -1), lam, tol=1e-10)
    np.testing.assert_array_equal(flat.x.dense(), whole.x)


def test_other_dictionaries_use_fista():
    assert pursuit.lasso(Conv(BANK, (6, 7), stride=2), normal(11, 42), 0.5).how == _lasso.FISTA
    assert pursuit.lasso(np.eye(3), np.ones(3), 0.5).how == _lasso.FISTA
