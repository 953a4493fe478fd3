"""Recipes: what they take from the law of the codes, and how each family starts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import registry

import unrolled as ur
from unrolled import training
from unrolled.layers import FAMILIES, lasso_weights
from unrolled.training import _recipe

M, D_, K = 16, 32, 4


@pytest.fixture(scope="module")
def problem():
    D = ur.dictionaries.gaussian(0, M, D_)
    Y, X = ur.problems.sampler(D, 512, probability=0.1)(jax.random.key(1))
    return D, Y, X


def test_the_law_is_that_of_the_sample(problem):
    D, Y, X = problem
    law = training.law_of(D, Y, X)
    nonzeros = np.asarray(X)[np.asarray(X) != 0]
    assert law.probability == pytest.approx(len(nonzeros) / X.size, rel=1e-5)
    assert law.variance == pytest.approx(np.mean(nonzeros**2), rel=1e-5)
    assert law.noise == 0 and law.atoms == D_
    noise = 0.01 * np.random.default_rng(0).normal(size=Y.shape)
    assert training.law_of(D, Y + noise, X).noise == pytest.approx(np.mean(noise**2))


def test_of_codes_in_parts_the_law_has_the_share_of_the_parts():
    D = ur.dictionaries.Joint(np.eye(4), 2)
    X = np.zeros((3, 4, 2))
    X[0, 1], X[2, 3, 0] = 3.0, 4.0  # of the second part one entry is zero
    law = training.law_of(D, X.reshape(3, -1), X.reshape(3, -1))
    assert law.probability == pytest.approx(2 / 12, rel=1e-5)
    assert law.variance == pytest.approx((9 + 9 + 16) / 4, rel=1e-5)


def test_samples_of_one_law_have_the_options_of_one():
    """To two digits, as a rule of thumb has them: their layers are the same."""
    D = ur.dictionaries.gaussian(0, 50, 500)
    sample = jax.jit(ur.problems.sampler(D, 1280, probability=0.1))
    laws = [training.law_of(D, *sample(jax.random.key(seed))) for seed in range(5)]
    assert len({law.probability for law in laws}) == 5
    assert {law.support for law in laws} == {(0.012, 0.13)}
    assert {law.lams(0.02, 0.3) for law in laws} == {(0.02, 0.3)}


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.FAMILIES)
def test_every_family_starts_and_trains_by_its_recipe(name, problem):
    D, Y, X = problem
    if name == "sae":  # its codes are never negative
        Y, X = np.abs(X) @ np.asarray(D).T, np.abs(X)
    made = training.by_recipe(name, D, (Y, X), depth=K, steps=3)
    assert made.nmse <= made.start.nmse < 0
    assert 0 <= made.worse <= 1 and repr(made)
    assert made.fit.model.depth == K and type(made.fit.model).__name__ == name
    made.fit.model.check(made.fit.best, D)


@pytest.mark.slow
def test_a_recipe_learns_d_and_leaves_alone_what_is_not_trainable(problem):
    """Frozen thresholds are those of the start; the NMSE is that of the learned D."""
    D, Y, X = problem
    last = Y[-51:], X[-51:]
    options = dict(depth=K, steps=20, tied=False, validation=last, learn_dictionary=True)
    trains = ur.layers.Unrolled(None, ur.layers.WeightsAndThreshold(W=True, theta=False))
    made = training.by_recipe("lista_cp", D, (Y, X), trainable=trains, **options)
    start, best, learned = made.start.params.steps, made.fit.best.steps, made.fit.D
    np.testing.assert_array_equal(best.theta, start.theta)
    assert not np.array_equal(best.W, start.W) and not np.array_equal(learned, D)
    np.testing.assert_allclose(np.linalg.norm(learned, axis=0), 1, rtol=1e-5)
    codes = jax.vmap(made.fit.model.apply, (None, None, 0))(made.fit.best, learned, last[0])
    assert made.nmse == pytest.approx(float(ur.metrics.nmse(codes, last[1])), rel=1e-4)


@pytest.mark.parametrize("name", ["lista_cp", "lista", "lfista", "liht", "glista"])
def test_a_start_with_weights_is_alista(name, problem):
    """Two steps x + W'(y - D x): the second one sees the matrices that act on the code."""
    D, Y, _ = problem
    W = ur.theory.frobenius_weights(D)
    layer = FAMILIES[name](2, **({"sparsity": D_} if name == "liht" else {}))
    params, x = layer.from_weights(None, W, D), jnp.zeros((len(Y), D_))
    for k in range(2):
        x = x + (Y - x @ D.T) @ W
        x = x if name == "liht" else ur.activations.shrink(x, params.steps.theta[k])
    codes = jax.vmap(layer.apply, (None, None, 0))(params, D, Y)
    np.testing.assert_allclose(codes, x, atol=1e-6)


def test_a_start_is_made_of_a_layer_with_its_ridge(problem, monkeypatch):
    """The second of two ridges is better, the third is worse and ends the search."""
    errors = iter([-1.0, -3.0, -2.0])
    monkeypatch.setattr(_recipe, "calibrate", lambda layer, params, *_: params)
    monkeypatch.setattr(_recipe, "_error", lambda *_: next(errors))
    D, Y, X = problem
    signals = _recipe._Signals(D, (Y, X), (Y, X), training.law_of(D, Y, X), 0.0)
    start = _recipe._start(ur.alista(2), signals, None, (0.0, 0.5, 1.0, 2.0))
    assert (start.ridge, start.layer.ridge, start.nmse) == (0.5, 0.5, -3)
    W, expected = (np.asarray(A, float) for A in (start.params.shared.W, lasso_weights(D, 0.5)))
    np.testing.assert_allclose(W / W[0, 0], expected / expected[0, 0], rtol=1e-4)  # up to a step


def test_whitened_ada_lista_steps_along_the_weights(problem):
    """P = Q'Q = (D D')^-1 and gamma = d / m: D'P D = (d / m) times the projection on the rows."""
    D, Y, _ = problem
    layer = ur.layers.ada_lista(1)
    (P, Q), steps = layer.from_weights(None, D, D)
    np.testing.assert_allclose(P @ (D @ D.T), np.eye(M), atol=1e-4)
    np.testing.assert_allclose(Q @ Q, P, atol=1e-3 * float(jnp.abs(P).max()))
    np.testing.assert_allclose(steps.gamma, D_ / M)


@pytest.mark.slow
def test_starts_do_not_expand_where_the_weights_would():
    """On a part of a DCT with d = 4 m, GLISTA at gamma = 1 reached +166 dB."""
    D = ur.dictionaries.dct(12, 48)
    Y, X = ur.problems.sampler(D, 256, probability=0.05)(jax.random.key(0))
    W = ur.theory.frobenius_weights(D)
    assert float(ur.layers.stable_step(W, D)) < 0.7
    start = training.prepare("glista", D, Y, X, depth=8)
    assert start.nmse < 0


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["lamp", "lamp_bg"])
def test_message_passing_that_diverges_starts_with_smaller_weights(name, problem):
    """It does with a spectrum over two decades; with Gaussian D its own start stays."""
    U, _, V = np.linalg.svd(np.asarray(problem[0]), full_matrices=False)
    D = ur.dictionaries.normalize(jnp.asarray(U * np.logspace(0, -2, M) @ V))[0]
    Y, X = ur.problems.sampler(D, 512, probability=0.1)(jax.random.key(1))
    start = training.prepare(name, D, Y, X, depth=16)
    own = start.layer.init(None, D).steps.W
    (scale,) = np.unique(np.round(np.asarray(start.params.steps.W / own), 6))
    multiple = scale * np.linalg.norm(D, 2) ** 2 / 2  # W = D, of which the step is stable
    assert min(abs(multiple - tried) for tried in (1.0, 2.0, 2.6)) < 1e-4
    assert start.nmse < start.ista
    undamped = start.layer.init(None, D)
    codes = jax.vmap(start.layer.apply, (None, None, 0))(undamped, D, Y)
    assert not ur.metrics.nmse(codes, X) < 0
    start = training.prepare(name, *problem, depth=16)
    chex.assert_trees_all_equal(start.params, start.layer.init(None, problem[0]))


@pytest.mark.slow
def test_noise_chooses_a_ridge():
    D = ur.dictionaries.gaussian(0, 50, 100)
    Y, X = ur.problems.sampler(D, 512, snr=15.0)(jax.random.key(1))
    start = training.prepare("alista", D, Y, X, depth=8)
    plain = training.prepare("alista", D, Y, X, depth=8, ridge=0.0)
    assert start.ridge > 0 and start.layer.ridge == start.ridge
    assert start.nmse < plain.nmse


def test_options_that_are_given_win(problem):
    D, Y, X = problem
    assert training.prepare("alista", D, Y, X, depth=K, support=None).layer.support is None
    few = Y[:16], X[:16]  # as few as are taken
    start = training.prepare("ista", D, *few, depth=K, lam=0.5)
    assert start.layer.lam == 0.5 and start.law == training.law_of(D, *few)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_start_is_scale_free(problem, scale):
    D, Y, X = (jnp.asarray(part, jnp.float32) for part in problem)
    near, far = (training.prepare("ista", D, Y * s, X * s, depth=K) for s in (1.0, scale))
    assert far.nmse == pytest.approx(near.nmse, abs=1e-3)
    assert far.layer.lam == pytest.approx(scale * near.layer.lam, rel=1e-5)


def test_an_end_above_ista_is_said(problem, monkeypatch):
    """AMP diverges on an ill-conditioned dictionary; here nothing damps it."""
    recipe = FAMILIES["lamp"].recipe._replace(damped=())
    monkeypatch.setattr(FAMILIES["lamp"], "recipe", recipe)
    D = ur.dictionaries.ill_conditioned(0, M, D_, 100.0)
    sample = ur.problems.sampler(D, 64, probability=0.1)
    with pytest.warns(UserWarning, match="by_recipe: lamp.* ISTA of the same depth at"):
        training.by_recipe("lamp", D, sample, depth=12, steps=0)


REFUSED = {
    "an unknown family": (dict(family="mista"), ValueError, "unknown family 'mista'"),
    "unknown codes": (dict(X=None), ValueError, "recipes are for known codes"),
    "zero codes": (dict(X=np.zeros((512, D_))), ValueError, "all codes are zero"),
    "depth 0": (dict(depth=0), ValueError, "depth must be at least 1, got 0"),
    "zero codes to choose by": (
        dict(X=np.eye(512, D_)),
        ValueError,
        "the codes of the last 256 signals are all zero",
    ),
    "few signals": (dict(Y=np.ones((4, M)), X=np.ones((4, D_))), ValueError, "at least 16 signals"),
    "nan": (dict(Y=np.full((512, M), np.nan)), ValueError, "Y or X"),
    "a variance out of range": (
        dict(family="tista", X=1e30 * np.eye(D_)[np.zeros(512, int)]),
        ValueError,
        "which float32 does not hold",
    ),
    "width": (dict(Y=np.ones((512, M + 1))), ValueError, "shape"),
    "an option": (dict(lamda=1.0), TypeError, "lamda"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_prepare_refuses(case, problem):
    D, Y, X = problem
    change, error, words = REFUSED[case]
    given = dict(family="ista", D=D, Y=Y, X=X, depth=K) | change
    with pytest.raises(error, match=words):
        training.prepare(**given)


def test_by_recipe_wants_codes(problem):
    D, Y, _ = problem
    with pytest.raises(ValueError, match="have no codes; try fit"):
        training.by_recipe("ista", D, Y, depth=K)
