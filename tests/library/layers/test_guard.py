"""A guarded layer: of the codes of all steps, and the zero code, the one of least objective."""

from functools import partial

import chex
import jax
import numpy as np
import pytest
from registry import LAYERS
from registry import _unit as unit

import unrolled as ur
from unrolled import layers
from unrolled.analytic._calibrate import scaled_weights
from unrolled.layers import Unrolled

M, N, K, LAM = 6, 10, 4, 0.1
# An objective is a sum of M + N products and squares near 1, each rounded.
CLOSE = 4 * (M + N) * np.finfo(float).eps


@pytest.fixture(scope="module")
def problem():
    return np.array(unit(4, M, N)), np.random.default_rng(4).normal(size=(3, M))


def objectives(D, Y, X):
    return np.sum((Y - X @ D.T) ** 2, -1) / 2 + LAM * np.abs(X).sum(-1)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", LAYERS)
def test_the_code_is_the_best_of_the_steps_and_the_zero_code(problem, name):
    D, Y = problem
    plain, guarded = LAYERS[name](K), LAYERS[name](K, guard=LAM)
    params = plain.init(jax.random.key(0), D)
    (_, path), (state, best) = (
        jax.device_get(jax.jit(jax.vmap(layer.run, (None, None, 0)))(params, D, Y))
        for layer in (plain, guarded)
    )
    steps = np.stack([objectives(D, Y, path[:, k]) for k in range(K)])
    least = np.minimum.accumulate(np.fmin(steps, np.sum(np.square(Y), 1) / 2), axis=0)
    for k in range(K):
        np.testing.assert_allclose(objectives(D, Y, best[:, k]), least[k], rtol=CLOSE)
    chex.assert_trees_all_equal(state.x, best[:, -1])
    assert (objectives(D, Y, best[:, -1]) <= np.sum(np.square(Y), 1) / 2).all()


def test_steps_that_explode_leave_the_code_before_them(problem):
    D, Y = problem
    layer = layers.lista_cp(2 * K, guard=LAM, tied=False)
    steps = layer.init(None, D).steps
    W = np.array(steps.W)
    away = Unrolled(None, steps._replace(W=-W))
    W[K:] *= 1e200
    wild = Unrolled(None, steps._replace(W=W))
    good = np.asarray(layer.iterates(Unrolled(None, steps), D, Y[0]))[K - 1]
    chex.assert_trees_all_close(layer.apply(wild, D, Y[0]), good, rtol=0, atol=CLOSE)
    np.testing.assert_array_equal(np.asarray(layer.apply(away, D, Y[0])), np.zeros(N))
    assert np.isnan(layer.apply(wild, D, Y[0] * np.nan)).all()


def test_no_step_is_the_zero_code(problem):
    D, Y = problem
    params = layers.ista(0).init(None, D)
    assert not layers.ista(0, guard=LAM).apply(params, D, Y[0]).any()


def test_a_guard_costs_one_product_a_step(problem):
    D, Y = problem
    params = layers.ista(K).init(None, D)
    plain, guarded = (
        ur.comparison.products(layer, params, D, Y[0])
        for layer in (layers.ista(K), layers.ista(K, guard=LAM))
    )
    assert (plain, guarded) == (2 * K, 3 * K)


def test_calibration_tries_the_same_weights_with_a_guard(problem):
    """Those of a step that expands, scaled: a guard changes no step."""
    D, _ = problem
    params = ur.analytic.lista_cp(D, depth=K, sparsity=1, bound=1.0)
    expanding = Unrolled(params.shared._replace(W=4 * params.shared.W), params.steps)
    plain, guarded = (
        scaled_weights(layer, expanding, D)
        for layer in (layers.lista_cp(K), layers.lista_cp(K, guard=LAM))
    )
    assert len(plain) == 1
    chex.assert_trees_all_equal(plain, guarded)


@pytest.mark.parametrize(("size", "tried"), [(1, 0), (1 + 1e-6, 0), (1.01, 1)])
def test_calibration_scales_no_weights_for_a_rounding_of_their_radius(size, tried):
    """W'D = size (D'D) of a tight frame: D'D has the eigenvalues 0 and 2."""
    D = np.asarray(ur.dictionaries.identity_hadamard(16), np.float32)
    params = ur.layers.lista_cp(K).init(None, D)
    params = params._replace(shared=params.shared._replace(W=np.float32(size) * D))
    begun = scaled_weights(layers.lista_cp(K), params, D)
    assert len(begun) == tried
    for scaled in begun:
        chex.assert_trees_all_close(scaled.shared.W, D, rtol=1e-4)  # of 32 steps of powers


@pytest.mark.slow
def test_a_comparison_predicts_no_code_that_a_guard_picks(problem):
    D, _ = problem
    Y, X = ur.problems.sampler(D, 8)(jax.random.key(0))
    made = {n: layers.lamp(2, guard=g) for n, g in (("plain", None), ("guarded", LAM))}
    methods = {name: (layer, layer.init(None, D)) for name, layer in made.items()}
    found = ur.compare(methods, D, Y, X, predict=True)
    predicted = {name: of.predicted for name, of in found.methods.items()}
    assert predicted["guarded"].remark.startswith("none is known")
    assert predicted["plain"].remark != predicted["guarded"].remark


def test_theorems_speak_of_the_last_step(problem):
    D, _ = problem
    layer = layers.ista(K, guard=LAM)
    params = layer.init(None, D)
    for refuses in (
        partial(ur.theory.certify, layer, params, D, sparsity=1, bound=1.0),
        partial(ur.realize.cnn, layer, params, D, kernel_size=3, signal_bound=1.0),
    ):
        with pytest.raises(TypeError, match="such a family, .* without a guard"):
            refuses()
    message_passing = layers.lamp(K, guard=LAM)
    with pytest.raises(TypeError, match="and no guard"):
        ur.theory.state_evolution(message_passing, D, probability=0.1)


def test_products_with_blocks_of_atoms_count_as_their_share(problem):
    """A sweep of `bcd` has the two products of a step of FISTA, in pieces, and a fresh residual."""
    D, Y = problem
    layer = layers.bcd(K, block=5)
    params = layer.init(None, D)
    for form in (params, layers.unstack(params)):
        assert ur.comparison.products(layer, form, D, Y[0]) == 3 * K
