"""Calibration: the greedy choice of thresholds and step sizes, and the params it leaves alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unrolled import analytic, dictionaries, layers, problems
from unrolled.analytic import calibrate
from unrolled.layers import Unrolled

DEPTH = 4
FAMILIES = {
    "ista": layers.ista(DEPTH),
    "fista": layers.fista(DEPTH),
    "lista": layers.lista(DEPTH),
    "lista untied": layers.lista(DEPTH, tied=False),
    "lista_cp": layers.lista_cp(DEPTH),
    "lista_cp untied": layers.lista_cp(DEPTH, tied=False),
    "alista": layers.alista(DEPTH),
    "alista with support": layers.alista(DEPTH, support=(0.02, 0.05)),
}
# Two evaluations of one sum of squares, compiled differently: far below 1e4 roundings.
ROUNDING = 1e4 * np.finfo(float).eps


@pytest.fixture(scope="module")
def planted():
    """D, Y, X: 40 signals with 3 nonzeros, without noise."""
    D = dictionaries.gaussian(jax.random.key(1), 30, 60)
    X = problems.exact_sparse(jax.random.key(2), (40, 60), 3)
    return D, problems.synthesize(D, X), X


@pytest.fixture(scope="module")
def calibrated(planted):
    """name -> (params of `init`, calibrated params)."""
    D, Y, X = planted
    starts = {name: layer.init(jax.random.key(0), D) for name, layer in FAMILIES.items()}
    return {
        name: (start, calibrate(FAMILIES[name], start, D, Y, X)) for name, start in starts.items()
    }


@partial(jax.jit, static_argnums=0)
def iterates(layer, params, D, Y):
    return jax.vmap(layer.iterates, (None, None, 0), out_axes=1)(params, D, Y)


def errors(layer, params, D, Y, X):
    """Squared error of the whole sample after every step, relative to its energy."""
    codes = np.asarray(iterates(layer, params, D, Y))
    return ((codes - np.asarray(X)) ** 2).sum((1, 2)) / (np.asarray(X) ** 2).sum()


def with_step(params, k, step):
    """Params with step k replaced."""
    steps = layers.unstack(params).steps
    return layers.stack(Unrolled(params.shared, (*steps[:k], step, *steps[k + 1 :])))


def others(params):
    """The leaves that calibration must not touch."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [np.asarray(leaf) for path, leaf in leaves if path[-1].name not in ("theta", "gamma")]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_step_is_at_least_as_good_as_the_one_it_replaces(name, planted, calibrated):
    """After the calibrated steps before it, step k of the start is never better than its own."""
    layer, (start, found) = FAMILIES[name], calibrated[name]
    ours = errors(layer, found, *planted)
    for k, step in enumerate(layers.unstack(start).steps):
        assert ours[k] <= errors(layer, with_step(found, k, step), *planted)[k] * (1 + ROUNDING)


@pytest.mark.parametrize("name", ["ista", "lista_cp", "alista with support"])
def test_no_pair_of_a_coarse_grid_beats_a_step_by_much(name, planted, calibrated):
    """Step 2 against a grid of our own.

    The search ends between grid points 4 % apart, where the error is flat.
    """
    layer, (start, found) = FAMILIES[name], calibrated[name]
    chosen, peak = errors(layer, found, *planted)[1], float(jnp.abs(planted[2]).max())
    step = layers.unstack(found).steps[1]
    for theta in peak * np.geomspace(1e-4, 1, 12):
        for factor in (0.4, 1.0, 2.5) if hasattr(step, "gamma") else (1.0,):
            trial = step._replace(theta=jnp.asarray(theta))
            if hasattr(step, "gamma"):
                trial = trial._replace(gamma=factor * layers.unstack(start).steps[1].gamma)
            assert chosen <= 1.001 * errors(layer, with_step(found, 1, trial), *planted)[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_without_noise_every_step_lowers_the_error(name, planted, calibrated):
    """This holds for weights that can contract; the next test has some that cannot."""
    found = errors(FAMILIES[name], calibrated[name][1], *planted)
    assert (np.diff([1.0, *found]) < 0).all()


def test_thresholds_cannot_mend_weights_that_expand(planted):
    D, Y, X = planted
    start = layers.lista_cp(DEPTH).init(None, D)._replace(shared=layers.Weights(3 * D))
    layer = layers.lista_cp(DEPTH)
    found = errors(layer, calibrate(layer, start, D, Y, X), D, Y, X)
    assert found[0] < 1 and found.max() > found[0]


def test_calibration_beats_the_solver_by_several_decibels(planted, calibrated):
    """At the best penalty of a grid for ISTA's own params, after as many steps."""
    D, Y, X = planted
    layer = FAMILIES["ista"]
    best = min(
        errors(layer, analytic.ista(D, lam, DEPTH), D, Y, X)[-1] for lam in (0.01, 0.03, 0.1, 0.3)
    )
    assert errors(layer, calibrated["ista"][1], D, Y, X)[-1] < best / 10**0.2
    assert errors(FAMILIES["alista"], calibrated["alista"][1], D, Y, X)[-1] < best / 10**0.6


@pytest.mark.parametrize("name", FAMILIES)
def test_only_thresholds_and_step_sizes_change(name, calibrated):
    start, found = calibrated[name]
    assert jax.tree.structure(found) == jax.tree.structure(start)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(start)]
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(found)] == shapes
    for ours, given in zip(others(found), others(start), strict=True):
        np.testing.assert_array_equal(ours, given)
    assert (np.asarray(found.steps.theta) != np.asarray(start.steps.theta)).all()
    if hasattr(start.steps, "gamma"):
        assert (np.asarray(found.steps.gamma) != np.asarray(start.steps.gamma)).any()


def test_the_support_schedule_is_part_of_the_search(planted, calibrated):
    """Thresholds chosen without support selection are worse for a layer that has it."""
    layer = FAMILIES["alista with support"]
    with_it = errors(layer, calibrated["alista with support"][1], *planted)
    without = errors(layer, calibrated["alista"][1], *planted)
    assert with_it[-1] < without[-1]


def test_the_unstacked_form_comes_back_unstacked(planted, calibrated):
    D, Y, X = planted
    start, expected = calibrated["lista_cp untied"]
    found = calibrate(FAMILIES["lista_cp untied"], layers.unstack(start), D, Y, X)
    assert type(found.steps) is tuple and len(found.steps) == DEPTH
    for ours, theirs in zip(
        jax.tree.leaves(layers.stack(found)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.fixture(scope="module")
def filters():
    """D, Y, X of three filters on 20 samples."""
    D = dictionaries.normalize(
        dictionaries.Conv(np.random.default_rng(0).normal(size=(3, 1, 5)), 20)
    )[0]
    X = problems.exact_sparse(jax.random.key(2), (20, D.shape[1]), 2)
    return D, problems.synthesize(D, X), X


@pytest.mark.parametrize("per_filter", [False, True])
def test_a_convolutional_dictionary(filters, per_filter):
    D, Y, X = filters
    layer = layers.alista(2)
    start = layer.init(jax.random.key(0), D)
    if per_filter:
        start = start._replace(steps=start.steps._replace(theta=jnp.full((2, 3), 0.1)))
    found = calibrate(layer, start, D, Y, X)
    assert found.steps.theta.shape == start.steps.theta.shape and found.steps.gamma.shape == (2,)
    rows = np.asarray(found.steps.theta).reshape(2, -1)
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape))
    assert errors(layer, found, D, Y, X)[-1] < errors(layer, start, D, Y, X)[-1]


def test_thresholds_per_atom_keep_their_shape(planted, calibrated):
    D, Y, X = planted
    start, expected = calibrated["lista_cp"]
    start = start._replace(steps=start.steps._replace(theta=jnp.full((DEPTH, 60), 0.1)))
    found = calibrate(FAMILIES["lista_cp"], start, D, Y, X).steps.theta
    # The value of a single threshold: the same sums, compiled differently, around a flat optimum.
    np.testing.assert_allclose(
        np.asarray(found), np.asarray(expected.steps.theta)[:, None] * np.ones(60), rtol=1e-2
    )


def test_in_float32():
    with jax.enable_x64(False):
        D = dictionaries.gaussian(jax.random.key(1), 30, 60)
        X = problems.exact_sparse(jax.random.key(2), (40, 60), 3)
        Y = problems.synthesize(D, X)
        start = FAMILIES["alista"].init(jax.random.key(0), D)
        found = calibrate(FAMILIES["alista"], start, D, Y, X)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
        assert (
            errors(FAMILIES["alista"], found, D, Y, X)[-1]
            < errors(FAMILIES["alista"], start, D, Y, X)[-1]
        )


def test_a_family_without_thresholds_is_refused(planted):
    D, Y, X = planted
    layer = layers.liht(1, sparsity=3)
    with pytest.raises(TypeError, match="steps with a threshold.*this family has none"):
        calibrate(layer, layer.init(None, D), D, Y, X)


def test_params_of_another_family_are_refused(planted):
    D, Y, X = planted
    with pytest.raises(TypeError, match="another family"):
        calibrate(layers.ista(1), Unrolled(None, (layers.Weights(D),)), D, Y, X)


def test_samples_that_do_not_fit_are_refused(planted):
    D, Y, X = planted
    layer = FAMILIES["ista"]
    start = layer.init(jax.random.key(0), D)
    wrong = {
        "shapes": (Y, X[:, 1:]),
        "swapped": (X, Y),
        "numbers": (Y, X[1:]),
        "one signal": (Y[0], X[0]),
        "no signal": (Y[:0], X[:0]),
    }
    for bad in wrong.values():
        with pytest.raises(ValueError, match=r"expected \(batch, 30\) and \(batch, 60\)"):
            calibrate(layer, start, D, *bad)
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibrate(layer, start, D, Y.at[0, 0].set(jnp.nan), X)
    with pytest.raises(ValueError, match="all codes of the sample are zero"):
        calibrate(layer, start, D, Y, 0 * X)
