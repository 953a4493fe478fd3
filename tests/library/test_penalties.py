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


test_what_has_no_theorem_over_such_codes_says_so = rows(
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
    (
        lambda: theory.certify_run(
            layers.lista_cp(2, bend=3),
            layers.lista_cp(2).init(None, np.eye(2)),
            np.eye(2),
            np.ones(2),
            noise=0.0,
        ),
        TypeError,
        "such a family, .* without a guard or a bend",
    ),
    (lambda: Penalty(nonnegative=1), TypeError, "nonnegative must be"),
    (lambda: Penalty(bend=1), "bend must be above 1"),
    (lambda: Penalty(bend=np.nan), "bend must be"),
    (lambda: layers.lista_cp(2, bend=1.0), "bend must be above 1"),
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


# A bend: firm shrinkage


@pytest.mark.parametrize("scale", [2.0**-500, 1.0, 2.0**500])
@pytest.mark.parametrize("penalty", [Penalty(bend=3), Penalty(block=3, bend=1.5)])
def test_a_bend_gives_the_proximal_map_of_the_minimax_concave_penalty(penalty, scale):
    """No point of a fine grid along v has a lower objective, and it is `firm_threshold`."""
    rng, theta = np.random.default_rng(0), 0.7
    V = rng.normal(size=(40, penalty.block))
    V *= rng.uniform(0, 4, (40, 1)) * theta / np.linalg.norm(V, axis=1)[:, None]
    X = np.asarray(jax.jit(penalty.shrink)(V.reshape(-1) * scale, theta * scale)) / scale
    X, sizes = X.reshape(V.shape), np.linalg.norm(V, axis=1)
    np.testing.assert_array_equal(X[sizes > penalty.bend * theta], V[sizes > penalty.bend * theta])
    assert (X[sizes < theta] == 0).all() and 0 < np.sum(sizes < theta) < 40
    firm = ur.activations.firm_threshold(sizes, theta, penalty.bend * theta)
    np.testing.assert_allclose(X, V / sizes[:, None] * firm[:, None], rtol=0, atol=20 * EPS)

    @jax.vmap
    def objective(v, x):
        return ((v - x) ** 2).sum() / 2 + penalty.value(x, theta)

    least = objective(V, X)
    for t in np.linspace(0, 1.2, 200):
        assert (objective(V, t * V) >= least - 20 * EPS).all()


@pytest.mark.few(3)
@pytest.mark.parametrize("name", sorted(SHRINKING))
def test_every_shrinking_family_takes_a_bend(name):
    """With a bend beyond all codes it is soft to the first order in 1 / bend; with 2 it is not."""
    D, y = unit(0, 6, 10), np.random.default_rng(0).normal(size=6)
    layer = FAMILIES[name](4)
    params = layer.init(jax.random.key(0), D)
    soft, far, near = (
        np.asarray(replace(layer, bend=bend).apply(params, D, y)) for bend in (np.inf, 1e9, 2.0)
    )
    # A weight 1 + 1e-9 in each of 4 steps, which an accumulated gradient amplifies little.
    np.testing.assert_allclose(far, soft, rtol=0, atol=1e-5 * max(1, np.abs(soft).max()))
    assert np.isfinite(near).all() and np.abs(near - soft).max() > 1e-4


@pytest.mark.parametrize("penalty", [Penalty(bend=3), Penalty(block=3, bend=1.5)])
def test_the_divergence_of_a_bend_is_the_trace_of_its_derivative(penalty):
    rng = np.random.default_rng(1)
    u = rng.normal(size=60)
    x, J = penalty.shrink(u, 0.7), jax.jacobian(lambda u: penalty.shrink(u, 0.7))(u)
    bent = (penalty.sizes(x) > 0) & (penalty.sizes(x) < penalty.sizes(u))
    assert bent.any() and not bent.all()
    np.testing.assert_allclose(penalty.divergence(u, x), np.trace(J), rtol=1e-12)


def test_a_bend_over_nonnegative_codes_and_with_a_selected_share():
    u = np.array([3.0, -9.0, 1.5, 1.2, 0.5])
    penalty = Penalty(nonnegative=True, bend=2)
    np.testing.assert_allclose(penalty.shrink(u, 1.0), [3, 0, 1, 0.4, 0], rtol=0, atol=8 * EPS)
    found = Penalty(bend=2).shrink(u, 1.0, fraction=0.6)
    np.testing.assert_allclose(found, [3, -9, 1.5, 0.4, 0], rtol=0, atol=8 * EPS)


def test_a_prediction_is_not_of_a_bend_and_a_file_keeps_it(tmp_path):
    for layer in (layers.lamp(2, bend=3), layers.alista_at(2, onsager=True, bend=3)):
        assert layer.message_passing() is None
    D, layer = unit(0, 6, 10), layers.lista_cp(2, bend=3)
    params = layer.init(None, D)
    assert not layer.is_coupled and ur.compare({"a": (layer, params)}, D, np.ones((2, 6)))
    ur.training.save(tmp_path / "weights.npz", params, D, layer=layer)
    assert ur.training.restore(tmp_path / "weights.npz").layer is layer
