"""What the features of a network are: its layers as dictionaries, and their codes after a pursuit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import optimize

import unrolled as ur
from unrolled import experiments
from unrolled.experiments import as_dictionary, features

pytestmark = pytest.mark.usefixtures("quick_compilation")
EPS = float(np.finfo(np.float64).eps)


class Block(nnx.Module):
    """A block of a user: a padded convolution with a stride, batch norm, ReLU."""

    activation = staticmethod(jax.nn.relu)

    def __init__(self, rngs):
        options = dict(strides=(2, 1), padding="SAME", param_dtype=float, rngs=rngs)
        self.conv = nnx.Conv(4, 3, (3, 3), **options)
        self.norm = nnx.BatchNorm(3, param_dtype=float, rngs=rngs)

    def __call__(self, x):
        return self.activation(self.norm(self.conv(x)))


class Net(nnx.Module):
    """Orthonormal filters side by side, then a block."""

    def __init__(self, seed=0):
        rngs, draw = nnx.Rngs(seed), np.random.default_rng(seed)
        self.first = nnx.Conv(
            1, 4, (2, 2), strides=2, padding="VALID", param_dtype=float, rngs=rngs
        )
        Q = np.linalg.qr(draw.normal(size=(4, 4)))[0]
        self.first.kernel[...] = jnp.asarray(Q.reshape(2, 2, 1, 4))
        self.first.bias[...] = jnp.array([-0.3, -0.1, 0.0, 0.2])
        self.block = Block(rngs)
        self.block.conv.bias[...] = jnp.asarray(draw.normal(size=3))
        self.block.norm.scale[...] = jnp.array([0.5, -1.5, 2.0])
        self.block.norm.bias[...] = jnp.array([0.1, -0.2, 0.3])
        self.block.norm.mean = nnx.BatchStat(jnp.asarray(draw.normal(size=3)))
        self.block.norm.var = nnx.BatchStat(jnp.array([0.3, 1.0, 2.0]))

    def __call__(self, x):
        return self.block(jax.nn.relu(self.first(x)))


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 6, 1)))


@pytest.fixture(scope="module")
def found(net, images):
    return features(net, images, ["first", "block"], activation=ur.activations.relu, tol=1e-9)


def test_orthonormal_filters_side_by_side_give_the_exact_code(found):
    layer = found.layers["first"]
    assert layer.dictionary.D.shape == (36, 36)
    # One positive bias: the pursuit sees a shifted signal.
    assert layer.pursued.bounded and layer.pursued.negative == 0.25
    assert layer.admitted.coherence < 10 * EPS and layer.admitted.stripe == 36
    assert layer.pursued.step <= 1  # of a bound of norm(D), since the stride is not 1
    for name, value in dict(scale=1, change=0, scaled_change=0, gap=0, overlap=1).items():
        # Sums of squares of 36 entries, and the root of what is left of them.
        np.testing.assert_allclose(getattr(layer.pursued, name), value, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(layer.pursued.nonzeros, layer.codes.nonzeros)


def test_the_analysis_of_the_dictionary_is_the_layer(net, images):
    """With padding, stride and batch norm in float64, up to the rounding of 36 products."""
    model = nnx.clone(net)
    model.eval()
    (_, inputs), (_, outputs) = (
        ur.models.tap(model, "first", "block", inputs=inputs)(images) for inputs in (True, False)
    )
    for name, rho in (("first", lambda x: x), ("block", None)):
        x = inputs[name]
        layer = as_dictionary(model, name, x.shape[1:3], activation=rho)
        Y = layer.signals(x)
        assert layer.D.shape[0] == Y.shape[1]
        made = layer.features(layer.codes(Y))
        np.testing.assert_allclose(made, outputs[name], rtol=0, atol=200 * EPS)
        np.testing.assert_allclose(ur.dictionaries.column_norms(layer.D), 1, rtol=10 * EPS)


def test_the_codes_are_the_features_in_units_of_unit_atoms(found):
    layer, codes = found.layers["block"], found.layers["block"].codes
    assert layer.dictionary.D.code_grid == (3, 2, 3)
    assert (codes.nonzeros <= 18).all() and (codes.stripe <= codes.nonzeros).all()
    assert codes.zeros == pytest.approx(1 - codes.nonzeros.mean() / 18)


def test_the_pursuit_finds_the_minimum_of_the_objective(net, images, found):
    """Against bounded quasi-Newton steps on J itself, whose thresholds may be negative."""
    layer, pursued = found.layers["block"].dictionary, found.layers["block"].pursued
    assert pursued.bounded and (pursued.certificate <= 1e-8).all()
    D, theta = ur.dictionaries.dense(layer.D), layer.D.spread(layer.theta)
    Y = np.asarray(layer.signals(jax.nn.relu(net.first(images))))
    D, theta, X = np.asarray(D), np.asarray(theta), np.asarray(layer.codes(jnp.asarray(Y)))
    assert (theta < 0).any()

    def J(x, y):
        r = y - D @ x
        return r @ r / 2 + theta @ x, theta - r @ D

    for i, (y, x) in enumerate(zip(Y, X)):
        options = dict(jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(x))
        options["options"] = dict(ftol=1e-15, gtol=1e-10, maxiter=10_000)
        least = optimize.minimize(J, x, args=(y,), **options)
        multiples = optimize.minimize_scalar(lambda c: J(c * x, y)[0], (0, 1), tol=1e-12)
        gap = (multiples.fun - least.fun) / (J(0 * x, y)[0] - least.fun)
        assert pursued.gap[i] == pytest.approx(gap, abs=1e-6)
        assert pursued.scale[i] == pytest.approx(multiples.x, rel=1e-5)
        change = np.linalg.norm(least.x - x) / np.linalg.norm(least.x)
        assert pursued.change[i] == pytest.approx(change, rel=1e-3)
        assert pursued.scaled_change[i] <= pursued.change[i] + EPS
        assert 0 <= pursued.gap[i] <= 1 and 0 <= pursued.overlap[i] <= 1


def test_what_theory_admits_comes_from_the_coherence_of_the_atoms(found):
    layer, admitted = found.layers["block"].dictionary, found.layers["block"].admitted
    D = np.asarray(ur.dictionaries.dense(layer.D))
    products = np.abs(D.T @ D - np.eye(D.shape[1]))
    assert admitted.coherence == pytest.approx(products.max(), abs=1e-12)
    lower, upper = admitted.generalized
    assert lower <= upper <= admitted.weights_coherence * (1 + 1e-6)
    assert admitted.stripe <= admitted.signal


def test_a_reward_without_end_has_no_pursuit():
    """Two opposite filters whose thresholds are both negative explain nothing, and are paid."""
    net = Net()
    kernel = np.asarray(net.first.kernel[...])
    net.first.kernel[...] = jnp.asarray(np.stack([kernel[..., 0], -kernel[..., 0]] * 2, -1))
    net.first.bias[...] = jnp.full(4, 0.1)
    found = features(net, jnp.ones((1, 4, 4, 1)), ["first"], activation="relu", atoms=0)
    layer = found.layers["first"]
    assert not layer.pursued.bounded and np.isnan(layer.pursued.gap).all()
    assert layer.admitted.generalized is None
    assert "| none |" in found.table()
    assert json.loads(found.to_json())["first"]["pursued"]["gap"] == [None]


def test_the_model_is_not_changed(net, images, found):
    assert net.block.norm.use_running_average is False
    np.testing.assert_array_equal(net.block.norm.var[...], [0.3, 1.0, 2.0])


def test_table_figure_and_json(found):
    table = found.table().splitlines()
    assert len(table) == 4 and table[2].startswith("| network | first | 0.000 | 36 |")
    several = experiments.features_table({"gamma 0": [found, found, found]}).splitlines()
    assert "0.000 ± 0.000" in several[2]
    held = json.loads(found.to_json())["block"]
    assert held["shape"][1] == 18 and len(held["pursued"]["gap"]) == 3
    fig = ur.plots.features({"gamma 0": found, "gamma 0.1": found})
    assert [panel.get_title() for panel in fig.axes][0] == "Zeros of the code"
    assert len(fig.axes[1].patches) == 4
    with pytest.raises(ValueError, match="same layers"):
        ur.plots.features({"a": found, "b": experiments.Features({})})
    with pytest.raises(ValueError, match="at least one"):
        ur.plots.features({})


def test_taps_hand_out_inputs(net, images):
    model = nnx.clone(net)
    model.eval()
    _, taken = ur.models.tap(model, "block", "block.conv", inputs=True)(images)
    _, given = ur.models.tap(model, "first")(images)
    np.testing.assert_array_equal(taken["block"], jax.nn.relu(given["first"]))
    np.testing.assert_array_equal(taken["block"], taken["block.conv"])


def test_bad_layers_are_refused(net, images):
    with pytest.raises(ValueError, match="no submodule 'third'"):
        as_dictionary(net, "third", (6, 6))
    with pytest.raises(ValueError, match="pass activation="):
        as_dictionary(nnx.Sequential(net.first), "layers.0", (6, 6))
    with pytest.raises(ValueError, match="has no `early`; pass layers"):
        features(net, images)
    with pytest.raises(ValueError, match="expected \\(N, H, W, C\\)"):
        features(net, images[0], ["first"])
    with pytest.raises(ValueError, match="2 modules that are a convolution"):
        as_dictionary(nnx.Dict(a=net), "a", (6, 6))
    with pytest.raises(ValueError, match="no convolution"):
        as_dictionary(nnx.Dict(a=nnx.Linear(2, 2, rngs=nnx.Rngs(0))), "a", (6, 6))


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(kernel_dilation=2), "dilated"),
        (dict(feature_group_count=2), "groups"),
        (dict(padding="CIRCULAR"), "expected zeros"),
    ],
)
def test_convolutions_of_other_kinds_are_refused(options, said):
    conv = nnx.Conv(2, 2, (3, 3), rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match=said):
        as_dictionary(nnx.Dict(conv=conv), "conv", (6, 6), activation=jax.nn.relu)


def test_a_filter_of_zeros_is_refused():
    net = Net()
    net.first.kernel[...] = net.first.kernel[...].at[..., 2].set(0)
    with pytest.raises(ValueError, match=r"filters \[2\] of 'first' are zero"):
        as_dictionary(net, "first", (6, 6), activation=jax.nn.relu)
