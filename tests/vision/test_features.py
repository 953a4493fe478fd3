"""What the features of a network are: dictionaries of layers, and codes beside a pursuit."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from forms import check_forms
from scipy import optimize

import unrolled as ur
from unrolled.app.cli import main
from unrolled.vision import experiments
from unrolled.vision.experiments import _layer_dictionary, features, layer_dictionary

EPS = float(np.finfo(np.float64).eps)


class Block(nnx.Module):
    """A block of a user: convolution, batch norm, ReLU."""

    activation = staticmethod(jax.nn.relu)

    def __init__(self, draw, rngs, kernel=(2, 2), **options):
        self.conv = nnx.Conv(1, 4, kernel, param_dtype=float, rngs=rngs, **options)
        self.conv.bias[...] = draw.normal(size=4)
        self.norm = nnx.BatchNorm(4, param_dtype=float, rngs=rngs)
        self.norm.scale[...] = np.array([0.5, -1.5, 2.0, 1.0])
        self.norm.bias[...] = np.array([0.1, -0.2, 0.3, 0.0])
        self.norm.mean = nnx.BatchStat(jnp.asarray(draw.normal(size=4)))
        self.norm.var = nnx.BatchStat(jnp.array([0.3, 1.0, 2.0, 1.0]))

    def __call__(self, x):
        return self.activation(self.norm(self.conv(x)))


class Net(nnx.Module):
    """Three layers on the same images, one of them with orthonormal filters side by side."""

    def __init__(self, seed=0):
        rngs, draw = nnx.Rngs(seed), np.random.default_rng(seed)
        side_by_side = dict(strides=2, padding="VALID")
        self.orthonormal = nnx.Conv(1, 4, (2, 2), param_dtype=float, rngs=rngs, **side_by_side)
        Q = np.linalg.qr(draw.normal(size=(4, 4)))[0]
        self.orthonormal.kernel[...] = Q.reshape(2, 2, 1, 4)
        self.orthonormal.bias[...] = np.array([-0.3, -0.1, 0.0, 0.2])
        self.coherent = Block(draw, rngs, **side_by_side)
        self.padded = Block(draw, rngs, (3, 2), strides=(2, 1), padding="SAME")

    def __call__(self, x):
        return self.orthonormal(x), self.coherent(x), self.padded(x)


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).normal(size=(3, 6, 6, 1))


@partial(nnx.jit, static_argnames=("names", "inputs"))
def tapped(model, x, names, inputs=False):
    return ur.vision.models.tap(model, *names, inputs=inputs)(x)[1]


def through(layer, y):
    """What a layer makes of its inputs, by its dictionary."""
    return jax.jit(lambda y: layer.features(layer.codes(layer.signals(y))))(y)


@pytest.fixture(scope="module")
def found(net, images):
    names = ["orthonormal", "coherent"]
    return features(net, images, names, activation=ur.activations.relu, tol=1e-9)


@pytest.mark.slow
def test_orthonormal_filters_side_by_side_give_the_exact_code(found):
    check_forms(found, rows=2)
    layer = found.layers["orthonormal"]
    assert layer.dictionary.D.shape == (36, 36)
    # One positive bias: the pursuit sees a shifted signal.
    assert layer.pursued.bounded and layer.pursued.negative == 0.25
    assert layer.admitted.coherence < 10 * EPS and layer.admitted.stripe == 36
    for name, value in dict(scale=1, change=0, scaled_change=0, gap=0, overlap=1).items():
        # Sums of squares of 36 entries, and the root of what is left of them.
        np.testing.assert_allclose(getattr(layer.pursued, name), value, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(layer.pursued.nonzeros, layer.codes.nonzeros)


def test_the_analysis_of_the_dictionary_is_the_layer(net, images):
    """With padding, stride and batch norm in float64, up to the rounding of 6 products."""
    model = nnx.clone(net)
    model.eval()
    names = ("orthonormal", "coherent", "padded")
    outputs = tapped(model, images, names)
    for name in names:
        rho = (lambda x: x) if name == "orthonormal" else None
        layer = layer_dictionary(model, name, images.shape[1:3], activation=rho)
        made = through(layer, images)
        np.testing.assert_allclose(made, outputs[name], rtol=0, atol=100 * EPS)
        norms = np.linalg.norm(np.asarray(layer.D.filters).reshape(4, -1), axis=1)
        np.testing.assert_allclose(norms, 1, rtol=10 * EPS)


def test_the_codes_are_the_features_in_units_of_unit_atoms(found):
    layer, codes = found.layers["coherent"], found.layers["coherent"].codes
    assert layer.dictionary.D.code_grid == (4, 3, 3)
    assert (codes.stripe <= 4).all()  # atoms of one position
    assert codes.zeros == pytest.approx(1 - codes.nonzeros.mean() / 36)


def test_the_pursuit_finds_the_minimum_of_the_objective(images, found):
    """Against bounded quasi-Newton steps on J itself, whose thresholds may be negative."""
    layer, pursued = found.layers["coherent"].dictionary, found.layers["coherent"].pursued
    assert pursued.bounded and (pursued.certificate <= 1e-8).all()
    D, theta = jax.jit(ur.dictionaries.dense)(layer.D), layer.D.spread(layer.theta)
    Y = layer.signals(images)
    D, theta, X, Y = (np.asarray(part) for part in (D, theta, layer.codes(Y), Y))
    assert (theta < 0).any()

    def J(x, y):
        r = y - D @ x
        return r @ r / 2 + theta @ x, theta - r @ D

    def best(x, y):
        """The scale that minimises J, and J there."""
        r = D @ x
        c = max(x @ (y @ D - theta) / (r @ r), 0)
        return c, J(c * x, y)[0]

    for i, (y, x) in enumerate(zip(Y, X)):
        options = dict(jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(x))
        options["options"] = dict(ftol=1e-15, gtol=1e-10, maxiter=10_000)
        least = optimize.minimize(J, x, args=(y,), **options)
        c, value = best(x, y)
        gap = (value - least.fun) / (J(0 * x, y)[0] - least.fun)
        assert pursued.gap[i] == pytest.approx(gap, abs=1e-6)
        assert pursued.scale[i] == pytest.approx(c, rel=1e-10)
        change = np.linalg.norm(least.x - x) / np.linalg.norm(least.x)
        assert pursued.change[i] == pytest.approx(change, rel=1e-3)
        assert pursued.scaled_change[i] <= pursued.change[i] + EPS
        assert 0 <= pursued.gap[i] <= 1
        # A nonzero below the tolerance of either solver may be a zero of the other.
        used, found_used = x > 0, least.x > 1e-6
        overlap = (used & found_used).sum() / (used | found_used).sum()
        assert pursued.overlap[i] == pytest.approx(overlap, abs=1e-12) and overlap < 1


def test_the_largest_gap_that_the_pursuit_may_leave_is_within_the_tolerance(
    images, found, monkeypatch
):
    """Also for a code that explains a small share of its signal."""

    def leaving(D, lam, e, Y, scale, X, *, tol, max_steps):
        return scale[:, None] * X, jnp.full(len(Y), tol)

    monkeypatch.setattr(_layer_dictionary, "_pursue", leaving)
    layer = found.layers["coherent"].dictionary
    left = _layer_dictionary.pursued(layer, layer.signals(images), 1e-2, 9).certificate
    assert (0 < left).all() and (left <= 1e-2).all()


def test_what_theory_admits_comes_from_the_coherence_of_the_atoms(found):
    layer, admitted = found.layers["coherent"].dictionary, found.layers["coherent"].admitted
    D = np.asarray(jax.jit(ur.dictionaries.dense)(layer.D))
    products = np.abs(D.T @ D - np.eye(D.shape[1]))
    assert admitted.coherence == pytest.approx(products.max(), abs=1e-12)
    lower, upper = admitted.generalized
    assert lower <= upper <= admitted.weights_coherence + 1e-12  # both 0: no more atoms than pixels
    assert admitted.stripe <= admitted.signal
    stripes = (admitted.coherence, admitted.weights_coherence)
    assert admitted.stripe == max(ur.theory.max_sparsity(mu, D.shape[1]) for mu in stripes)


def test_a_reward_without_end_has_no_pursuit():
    """Two opposite filters whose thresholds are both negative explain nothing, and are paid."""
    net = Net()
    kernel = np.asarray(net.orthonormal.kernel[...])
    net.orthonormal.kernel[...] = np.stack([kernel[..., 0], -kernel[..., 0]] * 2, -1)
    net.orthonormal.bias[...] = np.full(4, 0.1)
    found = features(net, np.ones((3, 6, 6, 1)), ["orthonormal"], activation="relu", atoms=0)
    layer = found.layers["orthonormal"]
    assert not layer.pursued.bounded and np.isnan(layer.pursued.gap).all()
    assert layer.admitted.generalized is None
    assert "| none |" in found.table()
    assert json.loads(found.to_json())["orthonormal"]["pursued"]["gap"] == [None] * 3


def test_the_model_is_not_changed(net, images, found):
    assert net.coherent.norm.use_running_average is False
    np.testing.assert_array_equal(net.coherent.norm.var[...], [0.3, 1.0, 2.0, 1.0])


def test_table_figure_and_json(found):
    table = found.table().splitlines()
    assert len(table) == 4 and table[2].startswith("| network | orthonormal | 0.000 | 36 |")
    several = experiments.features_table({"gamma 0": [found, found, found]}).splitlines()
    assert "0.000 ± 0.000" in several[2]
    again = experiments.Features.from_json(found.to_json())
    assert again.table() == found.table()
    fig = ur.plots.features({"relu, gamma 0": found, "relu, gamma 0.1": found})
    assert len({bar.get_facecolor() for bar in fig.axes[0].patches}) == 2
    assert [panel.get_title() for panel in fig.axes][0] == "Zeros of the code"
    assert len(fig.axes[1].patches) == 4
    with pytest.raises(ValueError, match="same layers"):
        ur.plots.features({"a": found, "b": experiments.Features({})})
    with pytest.raises(ValueError, match="at least one"):
        ur.plots.features({})


def test_taps_hand_out_inputs(net, images):
    linear = nnx.Linear(4, 2, param_dtype=float, rngs=nnx.Rngs(0))
    model = nnx.Sequential(net.orthonormal, nnx.relu, linear)
    taken = tapped(model, images, ("layers.0", "layers.2"), inputs=True)
    given = tapped(model, images, ("layers.0",))
    np.testing.assert_array_equal(taken["layers.0"], images)
    np.testing.assert_array_equal(taken["layers.2"], np.maximum(given["layers.0"], 0))


def of_res_csc(unfoldings, name):
    """A layer of a block, whose first is one step from 0 and whose second starts from the input."""
    options = dict(channels=1, widths=(2,), blocks=1, unfoldings=unfoldings)
    net = nnx.eval_shape(lambda: ur.vision.models.ResCSC(**options, rngs=nnx.Rngs(0)))
    plain = ("stem", "blocks.0.first") if unfoldings == 0 else ("stem",)
    assert net.convolutions == plain and net.early == ("stem", "blocks.0")
    return layer_dictionary(net, name, (6, 6))


def of_conv(**options):
    conv = nnx.Conv(2, 2, (3, 3), kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0), **options)
    return layer_dictionary(nnx.Dict(conv=conv), "conv", (6, 6), activation=jax.nn.relu)


def with_a_filter_of_zeros(net):
    net = nnx.clone(net)
    net.orthonormal.kernel[...] = np.asarray(net.orthonormal.kernel[...]) * [1, 1, 0, 1]
    return layer_dictionary(net, "orthonormal", (6, 6), activation=jax.nn.relu)


LINEAR = nnx.Dict(a=nnx.Linear(2, 2, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0)))
FAULTS = {
    "no submodule 'third'": lambda net: layer_dictionary(net, "third", (6, 6)),
    "pass activation=": lambda net: layer_dictionary(
        nnx.Sequential(net.orthonormal), "layers.0", (6, 6)
    ),
    "3 modules that are a convolution": lambda net: layer_dictionary(nnx.Dict(a=net), "a", (6, 6)),
    "no convolution": lambda net: layer_dictionary(LINEAR, "a", (6, 6)),
    r"filters \[2\] of 'orthonormal' are zero": with_a_filter_of_zeros,
    "dilated": lambda net: of_conv(kernel_dilation=2),
    "groups": lambda net: of_conv(feature_group_count=2),
    "expected zeros": lambda net: of_conv(padding="CIRCULAR"),
    "blocks.0.second' takes several steps, or one from a st": lambda net: of_res_csc(
        0, "blocks.0.second"
    ),
    "blocks.0.first' takes several steps": lambda net: of_res_csc(1, "blocks.0.first"),
    "has no `early`; pass layers": lambda net: features(net, np.ones((1, 6, 6, 1))),
    r"expected \(N, H, W, C\)": lambda net: features(net, np.ones((6, 6, 1)), ["orthonormal"]),
}


@pytest.mark.parametrize("message", FAULTS)
def test_layers_that_have_no_dictionary_are_refused(net, message):
    with pytest.raises(ValueError, match=message):
        FAULTS[message](net)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stem", "blocks.0.first"])
def test_one_step_of_a_network_of_sparse_coding_is_its_dictionary(name):
    """In float32, with running statistics that are not those of the start."""
    with jax.enable_x64(False):
        net = ur.vision.models.ResCSC(channels=1, widths=(2,), blocks=1, rngs=nnx.Rngs(0))
        for layer in (net.stem, net.blocks[0].first):
            layer.norms[0].mean[...] = jnp.array([0.3, -0.2])
            layer.norms[0].var[...] = jnp.array([0.5, 2.0])
        net.eval()
        X = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype(np.float32)
        taken, given = tapped(net, X, (name,), inputs=True), tapped(net, X, (name,))
        made = through(layer_dictionary(net, name, (6, 6)), taken[name])
        np.testing.assert_allclose(made, given[name], atol=1e-5)  # sums of 18 terms near 1


def test_the_mask_of_a_convolution_is_part_of_its_filters():
    mask = jnp.asarray(np.stack([np.ones((2, 1, 4)), np.zeros((2, 1, 4))]))
    options = dict(padding="VALID", param_dtype=float, mask=mask)
    conv = nnx.Conv(1, 4, (2, 2), **options, rngs=nnx.Rngs(0))
    layer = layer_dictionary(nnx.Sequential(conv), "layers.0", (5, 4), activation=jax.nn.relu)
    y = np.random.default_rng(0).normal(size=(3, 5, 4, 1))
    expected = nnx.jit(lambda conv, y: jax.nn.relu(conv(y)))(conv, y)
    np.testing.assert_allclose(through(layer, y), expected, rtol=1e-12, atol=1e-12)


def pictures(model):
    """Two, in float32, which the model has seen: they move the statistics of batch norm."""
    X = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    nnx.jit(lambda model, X: model(X))(model, X)
    model.eval()
    return X


@pytest.mark.slow
def test_the_features_of_lenet5_are_measured():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = ur.vision.models.LeNet5(activation="elu", rngs=nnx.Rngs(0))
        X = pictures(model)
        outputs = tapped(model, X, tuple(model.early))
        found = features(model, X, tol=1e-2)
    assert len(found.layers) == len(model.early)
    for features_, layer in zip(outputs.values(), found.layers.values()):
        zeros = float((features_ == 0).mean())
        assert layer.codes.zeros == pytest.approx(zeros, abs=1e-3)
        assert layer.codes.entries == features_[0].size
        assert not layer.pursued.bounded or (layer.pursued.gap < 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("make", [ur.vision.models.VGG11, partial(ur.vision.models.UNet, 2)])
def test_the_features_of_the_models_are_codes(make):
    """In float32: products of up to 1152 terms near 1, so 1e-4 is far above their rounding."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = make(rngs=nnx.Rngs(0))
        X = pictures(model)
        names = getattr(model, "convolutions", model.early)
        taken, given = tapped(model, X, tuple(names), inputs=True), tapped(model, X, tuple(names))
        for name, y in taken.items():
            made = through(layer_dictionary(model, name, y.shape[1:3]), y)
            np.testing.assert_allclose(made, given[name], atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_the_report_of_an_experiment_has_the_features(tmp_path, capsys):
    options = "--quick --activation relu --epochs 1 --seeds 2 --features --output".split()
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert main(["experiment", "classification", *options, str(tmp_path)]) == 0
        kept = sorted((tmp_path / "features").iterdir())
        assert len(kept) == 4
        times = [path.stat().st_mtime_ns for path in kept]
        assert main(["experiment", "classification", *options, str(tmp_path)]) == 0
    assert [path.stat().st_mtime_ns for path in kept] == times  # read, not measured again
    report = (tmp_path / "report.md").read_text()
    assert "What the features are: digits, lenet5, 1 epochs" in report
    assert report.count("| relu, gamma 0 | conv") == 2 and "±" in report
    assert len(list(tmp_path.glob("features-digits-lenet5-1-epochs-*.png"))) == 1
    capsys.readouterr()


class Double(nnx.Module):
    """A block of two layers with ReLU."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 2, (2, 2), rngs=rngs)
        self.second = nnx.Conv(2, 3, (2, 2), rngs=rngs)

    def __call__(self, x):
        return jax.nn.relu(self.second(jax.nn.relu(self.first(x))))


class Short(nnx.Module):
    early = "block", "conv"
    convolutions = "block.second", "conv"
    activation = staticmethod(jax.nn.relu)

    def __init__(self, classes, rngs):
        self.block = Double(rngs)
        self.conv = nnx.Conv(3, 2, (2, 2), rngs=rngs)
        self.last = nnx.Linear(32, classes, rngs=rngs)

    def __call__(self, x):
        return self.last(jax.nn.relu(self.conv(self.block(x))).reshape(len(x), -1))


@pytest.mark.slow
def test_the_features_of_a_row_are_those_that_its_run_followed(tmp_path):
    rng = np.random.default_rng(0)
    X, labels = rng.integers(0, 256, (9, 4, 4, 1), np.uint8), np.arange(9, dtype=np.int32) % 3
    images = ur.vision.datasets.Images("own", (X, labels), (X, labels), ("a", "b", "c"))
    recipe = experiments.Recipe(
        data="own", model="short", batch=3, epochs=1, augmentation="none", layers=Short.early
    )

    def build(recipe, shape, classes, rngs):
        return Short(classes, rngs)

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        experiments.run(recipe, images, tmp_path, build=build)
        (name,) = experiments.read_rows(tmp_path)
        found = experiments.row_features(tmp_path, name, images, build=build)
    assert tuple(found.layers) == Short.convolutions
