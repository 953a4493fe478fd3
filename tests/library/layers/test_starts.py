"""Starts without training: on any dictionary they are usable, beside ISTA and beside zero codes."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.linalg import eigvals, norm

import unrolled as ur
from unrolled import layers
from unrolled.layers._alista import _scaled
from unrolled.layers._lista import _counts

M, N, K, SIGNALS = 24, 48, 16, 64


def _unit(D):
    return D / norm(D, axis=0)


def _smooth(rng):
    """Atoms and signals of low frequencies without their mean: coherent, of rank below M."""
    B = np.cos(np.pi * np.outer(np.arange(M) + 0.5, np.arange(1, M // 2)) / M)
    falls = 1 / np.arange(1, M // 2)[:, None] ** 1.5
    return _unit(B @ (falls * rng.normal(size=(M // 2 - 1, N)))), (
        B @ (falls * rng.normal(size=(M // 2 - 1, SIGNALS)))
    ).T


def _planted(D, rng, snr=None):
    X = rng.normal(size=(SIGNALS, N)) * (rng.random((SIGNALS, N)) < 0.1)
    Y = X @ D.T
    if snr is None:
        return D, Y
    return D, Y + rng.normal(size=Y.shape) * norm(Y) / np.sqrt(Y.size) * 10 ** (-snr / 20)


def _conditioned(rng, kappa):
    U, _, V = np.linalg.svd(rng.normal(size=(M, N)), full_matrices=False)
    return _unit(U * np.geomspace(1, 1 / kappa, M) @ V)


def _correlated(rng):
    C = 0.8 ** np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    return _unit(rng.normal(size=(M, N)) @ np.linalg.cholesky(C).T)


# Of one shape, so that each family is compiled once. Each gives D and signals.
PROBLEMS = {
    "smooth": _smooth,
    "gaussian": lambda rng: _planted(_unit(rng.normal(size=(M, N))), rng),
    "gaussian, SNR 10": lambda rng: _planted(_unit(rng.normal(size=(M, N))), rng, 10),
    "condition 50, SNR 10": lambda rng: _planted(_conditioned(rng, 50), rng, 10),
    "correlated": lambda rng: _planted(_correlated(rng), rng),
    "norms": lambda rng: _planted(rng.normal(size=(M, N)) * np.exp(rng.normal(size=N)), rng),
}
STARTS = {
    "alista": layers.alista,
    "robust_alista": layers.robust_alista,
    "lista": layers.lista,
    "lista_cp": layers.lista_cp,
    "lista_cp, untied": lambda K, lam: layers.lista_cp(K, lam=lam, tied=False),
    "tilista": layers.tilista,
    "step_lista": layers.step_lista,
    "glista": layers.glista,
    "ada_lista": layers.ada_lista,
    "fista": layers.fista,
    "lfista": layers.lfista,
    "lfista_cp": layers.lfista_cp,
    "bcd": layers.bcd,
}
# A start whose weights are not D / L solves a problem of its own. Where ISTA has reached its
# optimum in K steps, no other code is as good: by so much it may be worse.
SLACK = 1.02


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request):
    return tuple(map(jnp.asarray, PROBLEMS[request.param](np.random.default_rng(1))))


@partial(jax.jit, static_argnums=0)
def codes(layer, params, D, Y):
    return jax.vmap(layer.apply, (None, None, 0))(params, D, Y)


def objective(layer, params, D, Y, lam):
    X = codes(layer, params, D, Y)
    assert np.isfinite(X).all()
    return float(jnp.mean(jnp.sum((Y - X @ D.T) ** 2, 1) / 2 + lam * jnp.sum(jnp.abs(X), 1)))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.2])
def test_no_start_is_above_that_of_ista(problem, share):
    """Signals whose largest penalty is 1: the same layers, and programs, for all problems."""
    D, Y = problem
    Y = Y / jnp.max(jnp.abs(Y @ D))
    ista = layers.ista(K, lam=share)
    limit = SLACK * objective(ista, ista.init(None, D), D, Y, share)
    for name, make in STARTS.items():
        layer = make(K, lam=share)
        assert objective(layer, layer.init(None, D), D, Y, share) <= limit, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["na_alista", "hyperlista", "tista", "alista_at", "vamp_bg"])
def test_starts_that_know_no_lam_are_below_zero_codes(problem, name):
    """Their thresholds follow the residual; in the objective they are worse than ISTA."""
    D, Y = problem
    D = D / jnp.linalg.norm(D, axis=0)[None, :]
    layer = layers.FAMILIES[name](K)
    found = objective(layer, layer.init(jax.random.key(0), D), D, Y, 0.0)
    assert found < float(jnp.mean(jnp.sum(Y**2, 1))) / 2


@pytest.mark.slow
def test_steps_without_a_step_size_do_not_expand():
    """Four times as many atoms as rows: W'D itself expands, with an eigenvalue near 4."""
    D = ur.dictionaries.gaussian(jax.random.key(0), M, 4 * M)
    W = np.asarray(ur.analytic.frobenius_weights(D))
    assert max(abs(eigvals(W.T @ np.asarray(D)))) > 3
    for name in ("na_alista", "hyperlista"):
        shared = layers.FAMILIES[name](K).init(jax.random.key(0), D).shared
        W = shared.analytic.W
        gamma = float(jax.nn.softplus(shared.head_bias)[0]) if name == "na_alista" else 1.0
        W = np.asarray(W if name == "na_alista" else W.W)
        # A power iteration is a little below the radius.
        assert gamma * max(abs(eigvals(W.T @ np.asarray(D)))) < 2.1


@pytest.mark.slow
def test_the_estimated_radius_is_the_largest_eigenvalue():
    """From below: of a symmetric matrix, up to a symmetric scaling, and near it."""
    for seed, atoms in enumerate((M // 2, N, 4 * M)):
        D = ur.dictionaries.gaussian(jax.random.key(seed), M, atoms)
        W = ur.analytic.frobenius_weights(D)
        exact = max(abs(eigvals(np.asarray(W).T @ np.asarray(D))))
        found = float(ur.theory.spectral_radius(W, D))
        assert 0.95 * exact < found < 1.01 * exact


@pytest.mark.few(1)
@pytest.mark.parametrize("ridge", [0.3, 0.0])
def test_the_weights_of_the_start_are_those_of_the_formula(ridge):
    """In numpy, for atoms of any norm: the ridge is in units of the squared norm of D."""
    D = np.random.default_rng(2).normal(size=(M, N))
    squares = np.sum(D**2, 0)
    W = np.linalg.solve(D @ D.T + ridge * norm(D, 2) ** 2 * np.eye(M), D)
    W *= squares / squares.mean() / np.sum(W * D, 0)
    params = layers.alista(2, lam=0.2, ridge=ridge).init(None, D)
    # A solve of condition below 50, and a norm that is rounded up by 4 eps.
    np.testing.assert_allclose(params.shared.W, W, rtol=0, atol=1e-13 * abs(W).max())
    gamma = params.steps.gamma
    np.testing.assert_allclose(params.steps.theta, 0.2 * gamma / squares.mean(), rtol=1e-12)


@pytest.mark.slow
def test_without_a_ridge_the_weights_are_those_of_the_paper():
    D = ur.dictionaries.gaussian(jax.random.key(0), M, N)
    W = layers.alista(2, ridge=0.0).init(None, D).shared.W
    np.testing.assert_allclose(W, ur.analytic.frobenius_weights(D), rtol=0, atol=1e-14 * M)
    far = layers.alista(2, ridge=1e6).init(None, D)  # ISTA
    step = layers.ista(2).init(None, D).steps
    np.testing.assert_allclose(far.shared.W, D, rtol=0, atol=1e-5)
    # The norm is rounded up, and the powers approach it from below.
    np.testing.assert_allclose(far.steps.gamma, step.gamma, rtol=0.05)
    np.testing.assert_allclose(far.steps.theta, 0.1 * far.steps.gamma, rtol=1e-12)


@pytest.mark.parametrize("k", [-60, 60])
def test_weights_are_computed_of_a_dictionary_of_norm_near_1(k):
    scaled, factor = _scaled(np.ldexp(np.eye(2, dtype=np.float32), k))
    assert 0.5 <= np.linalg.norm(scaled, 2) <= 2 and factor == 2.0**-k


def test_the_weights_of_a_scaled_dictionary_are_scaled():
    """In float32, where the square of a norm leaves the range."""
    D = np.asarray(ur.dictionaries.gaussian(jax.random.key(0), M, N), np.float32)
    W = np.asarray(layers.lasso_weights(D, 0.5))
    for k in (-60, 60):
        scaled = layers.lasso_weights(np.ldexp(D, k), 0.5)
        np.testing.assert_array_equal(scaled, np.ldexp(W, -k))


@pytest.mark.slow
@pytest.mark.parametrize("k", [-60, 60])
def test_the_start_of_a_scaled_dictionary_is_scaled(k):
    """In float32, where the square of a norm leaves the range: D 2^k has the start times 2^-k."""
    D = np.asarray(ur.dictionaries.gaussian(jax.random.key(0), M, N), np.float32)
    for family in (layers.alista, layers.robust_alista):
        # lam is in the units of y D.
        params = family(2, lam=0.1).init(None, D)
        scaled = family(2, lam=0.1 * 4.0**k).init(None, np.ldexp(D, k).astype(np.float32))
        for ours, theirs in zip(jax.tree.leaves(scaled), jax.tree.leaves(params), strict=True):
            power = -k if ours.ndim == 2 else 0
            np.testing.assert_array_equal(ours, np.ldexp(np.asarray(theirs), power))


@pytest.mark.slow
def test_files_from_before_the_ridge_have_none(tmp_path):
    """A robust ALISTA of such a file computes the weights that it was trained with."""
    from unrolled.training._forms import build_model, describe_model

    layer = layers.robust_alista(2)
    described = describe_model(layer)
    assert build_model(described) is layer
    del described["ridge"]
    assert build_model(described) is layers.robust_alista(2, ridge=0.0)


def test_numbers_of_entries_to_keep_are_tried_around_the_mean_number_of_nonzeros():
    tried = [_counts(SimpleNamespace(sparsity=3, atoms=atoms)) for atoms in (20, 4)]
    assert tried == [{"sparsity": (3, 4, 5)}, {"sparsity": (3, 4, 4)}]
