"""A penalty, and whatever reads it: layers, pursuits, objectives and gaps."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from faults import rows
from registry import FAMILIES
from registry import _unit as unit

import unrolled as ur
from unrolled import layers, pursuit, theory
from unrolled.penalties import NONNEGATIVE, Penalty

EPS = np.finfo(float).eps
SHRINKING = [name for name, build in FAMILIES.items() if isinstance(build(1), layers.Shrinking)]

# Codes x >= 0


@pytest.mark.few(6)
@pytest.mark.parametrize("name", sorted(SHRINKING))
def test_codes_of_a_nonnegative_layer_are_nonnegative_at_every_step(name):
    D, Y = unit(0, 6, 10), np.random.default_rng(0).normal(size=(8, 6))
    layer = FAMILIES[name](4, nonnegative=True)
    params = layer.init(jax.random.key(0), D)
    paths = np.asarray(jax.jit(jax.vmap(layer.iterates, (None, None, 0)))(params, D, Y))
    assert (paths >= 0).all()
    assert (paths > 0).any()


def test_a_step_beyond_its_end_stops_at_zero():
    D, y = unit(0, 6, 10), np.random.default_rng(0).normal(size=6)
    layer = layers.glista(6, nonnegative=True)
    start = layer.init(None, D)
    far = start._replace(steps=start.steps._replace(overshoot=np.full(6, 40.0)))
    assert (np.asarray(layer.iterates(far, D, y)) >= 0).all()
    assert (np.asarray(replace(layer, nonnegative=False).iterates(far, D, y)) < 0).any()


@pytest.mark.parametrize("family", [layers.ista, layers.fista])
def test_the_end_of_a_nonnegative_layer_is_the_optimum_over_nonnegative_codes(family):
    D, y = unit(1, 8, 12), np.random.default_rng(1).normal(size=8)
    layer = family(3000, lam=0.1, nonnegative=True)
    x = layer.apply(layer.init(None, D), D, y)
    best = pursuit.lasso(D, y, 0.1, nonnegative=True, tol=1e-14)
    # An excess e moves the code by at most sqrt(2 e / sigma^2), and the support is independent.
    np.testing.assert_allclose(x, best.x, rtol=0, atol=1e-6)
    assert (pursuit.lasso(D, y, 0.1).x < -1e-3).any()


def test_a_share_of_the_largest_entries_above_zero_passes():
    u = np.array([3.0, -9.0, 2.0, 1.5, 0.5])
    x = NONNEGATIVE.shrink(u, 1.0, fraction=0.4)
    np.testing.assert_array_equal(x, [3.0, 0.0, 2.0, 0.5, 0.0])
    np.testing.assert_array_equal(
        layers.alista(1, nonnegative=True).shrink(np.eye(5), u, 1.0, 0.4), x
    )


test_what_has_no_theorem_over_nonnegative_codes_says_so = rows(
    (
        lambda: theory.certify(
            layers.lista_cp(2, nonnegative=True),
            layers.lista_cp(2).init(None, np.eye(2)),
            np.eye(2),
            sparsity=1,
            bound=1.0,
        ),
        TypeError,
        "such a family, .* not nonnegative",
    ),
    (
        lambda: ur.realize.cnn(
            layers.ista(2, nonnegative=True),
            layers.ista(2).init(None, np.eye(2)),
            np.eye(2),
            kernel_size=2,
            signal_bound=1.0,
        ),
        TypeError,
        "such a family, .* not nonnegative",
    ),
    (lambda: Penalty(nonnegative=1), TypeError, "nonnegative must be"),
)


def test_a_prediction_is_not_of_nonnegative_codes():
    for layer in (layers.lamp(2), layers.alista_at(2, onsager=True)):
        assert layer.message_passing() is not None
        assert replace(layer, nonnegative=True).message_passing() is None


def test_an_objective_with_a_weight_for_each_atom_is_one_number():
    D, x, lam = np.eye(3), np.array([1.0, -2.0, 0.0]), np.array([1.0, 0.5, 7.0])
    value = pursuit.lasso_objective(D, np.zeros(3), x, lam)
    np.testing.assert_allclose(value, 2.5 + 2.0, rtol=4 * EPS)
    assert value.shape == ()
