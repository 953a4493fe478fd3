"""LeNet-5, VGG11 and U-Net: the number of params, shapes, features, what they refuse."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import Fault, refusals
from flax import nnx
from jax import lax

import unrolled as ur
from unrolled.vision.models import VGG11, LeNet5, ResCSC, UNet, _convolution, tap

# Sums of 75 to 400 terms in another order, through five layers, stay far below 1e4 roundings.
ROUNDING = 1e4 * np.finfo(np.float64).eps


@pytest.mark.parametrize(
    "make, params",
    [
        (LeNet5, 62_006),
        (partial(LeNet5, channels=1, side=28), 44_426),
        (VGG11, 9_231_114),
        (UNet, 31_037_633),
        # ResNet-20 has 269,722 without those of its shortcuts; 7 skips have a step size.
        pytest.param(ResCSC, 269_729, marks=pytest.mark.slow),
    ],
)
def test_params_are_as_many_as_the_papers_count(make, params):
    net = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))) == params


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def plain(x, kernel, bias, activation):
    """What `convolve_and_pool` says, by functions of XLA."""
    z = lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    features = activation(z + bias.reshape(1, 1, 1, -1))
    pooled = lax.reduce_window(
        features, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), padding="VALID"
    )
    return pooled, features


def value_and_gradients(function, x, kernel, bias):
    """Both results and the gradients of a weighted sum of their squares."""

    def weighted(x, kernel, bias):
        results = function(x, kernel, bias)
        weights = (pictures(*r.shape, seed=r.ndim) for r in results)
        return sum(jnp.sum(w * r**2) for w, r in zip(weights, results)), results

    return jax.jit(jax.value_and_grad(weighted, (0, 1, 2), has_aux=True))(x, kernel, bias)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("side", "k", "channels", "filters", "activation"),
    [
        (16, 5, 3, 6, "relu"),  # blocks of 4 x 4 that fit
        (11, 5, 1, 6, "mish"),  # sides that are neither even nor multiples of 4
        (9, 3, 6, 16, "elu"),  # blocks of 2 x 2
        (8, 3, 4, 20, "relu"),  # as it is
    ],
)
def test_values_and_gradients_are_those_of_the_plain_form(side, k, channels, filters, activation):
    activation = ur.activations.by_name(activation)
    x = pictures(2, side, side + 1, channels)
    kernel, bias = pictures(k, k, channels, filters, seed=1), pictures(filters, seed=2)
    found = value_and_gradients(
        lambda *a: _convolution.convolve_and_pool(*a, activation), x, kernel, bias
    )
    expected = value_and_gradients(lambda *a: plain(*a, activation), x, kernel, bias)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=ROUNDING * np.abs(b).max())


def test_an_activation_that_falls_is_pooled_where_its_values_are_largest():
    """Not where its arguments are: of a bump that is another pixel."""
    x, kernel, bias = pictures(2, 6, 7, 2), pictures(3, 3, 2, 20, seed=1), pictures(20, seed=2)

    def bump(z):
        return jnp.exp(-(z**2))

    found = jax.jit(lambda *a: _convolution.convolve_and_pool(*a, bump))(x, kernel, bias)
    expected = jax.jit(lambda *a: plain(*a, bump))(x, kernel, bias)
    chex.assert_trees_all_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def test_lenet_is_two_pooled_convolutions_and_three_dense_layers():
    net, x = LeNet5(5, "relu", channels=1, side=16, rngs=nnx.Rngs(0)), pictures(2, 16, 16, 1)

    @nnx.jit
    def by_hand(net, x):
        for layer in (net.conv1, net.conv2):
            x = plain(x, layer.kernel[...], layer.bias[...], jax.nn.relu)[0]
        x = x.reshape(2, -1)
        for layer in (net.dense1, net.dense2, net.dense3):
            x = jax.nn.relu(x) @ layer.kernel[...] + layer.bias[...].reshape(1, -1)
        return x

    found, expected = nnx.jit(lambda net, x: net(x))(net, x), by_hand(net, x)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("filters", [6, 16])
def test_activations_may_differ_from_filter_to_filter(filters):
    slopes = jnp.linspace(0.5, 2, filters)
    given = pictures(2, 16, 16, 3), pictures(5, 5, 3, filters, seed=1), pictures(filters, seed=2)

    def softplus(z):
        return jax.nn.softplus(z * jnp.broadcast_to(slopes, z.shape))

    found = _convolution.convolve_and_pool(*given, softplus)
    chex.assert_trees_all_close(found, plain(*given, softplus), rtol=ROUNDING, atol=ROUNDING)


def test_accelerators_get_the_plain_form(monkeypatch):
    kernel = pictures(5, 5, 3, 6)
    assert _convolution._block_side(kernel) == 4
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _convolution._block_side(kernel) == 1


@pytest.mark.slow
def test_params_are_drawn_as_pytorch_draws_them():
    net = LeNet5(rngs=nnx.Rngs(0))
    for layer in (net.conv1, net.conv2, net.dense1, net.dense2, net.dense3):
        bound = layer.kernel[...][..., 0].size ** -0.5
        for values in (layer.kernel[...], layer.bias[...]):
            assert jnp.abs(values).max() <= bound
        assert abs(float(jnp.std(layer.kernel[...])) / (bound / 3**0.5) - 1) < 0.1


def shapes(make, *shape):
    """Of the outputs, and of the early features by name."""

    def run():
        net = make(rngs=nnx.Rngs(0))
        return tap(net, *net.early)(jnp.ones(shape))

    outputs, features = jax.eval_shape(run)
    return outputs.shape, [x.shape for x in features.values()]


def test_shapes_of_vgg11_and_of_its_early_features():
    outputs, features = shapes(lambda rngs: VGG11(7, channels=1, rngs=rngs), 2, 32, 32, 1)
    assert outputs == (2, 7)
    assert features == [(2, 32, 32, 64), (2, 16, 16, 128), (2, 8, 8, 256), (2, 8, 8, 256)]


@pytest.mark.few(1)
@pytest.mark.parametrize("sides", [(37, 30), (32, 48), (16, 17)])
def test_unet_takes_any_sides_and_gives_one_logit_per_pixel(sides):
    outputs, features = shapes(lambda rngs: UNet(2, rngs=rngs), 3, *sides, 3)
    assert outputs == (3, *sides)
    halved = [(3, sides[0] // 2**j, sides[1] // 2**j, 2 * 2**j) for j in range(4)]
    assert features == halved


@pytest.mark.slow
def test_a_logit_sees_the_pixels_around_it_through_every_level():
    """At odd sides too, where levels have been cut and padded."""
    net = UNet(1, channels=1, activation="softplus", rngs=nnx.Rngs(0))
    net.eval()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 19, 18, 1)))
    seen = nnx.jit(nnx.grad(lambda net, x: net(x)[0, 9, 9], argnums=1))(net, x)
    assert jnp.all(jnp.isfinite(seen)) and jnp.mean(seen != 0) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("make", [VGG11, partial(UNet, 2)])
def test_a_step_in_float32_has_the_gradients_of_float64(make):
    """Through eight to eighteen layers with batch norm; measured errors are below 1e-4."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 32, 32, 3)))

    def gradients(dtype):
        net = make(rngs=nnx.Rngs(0))
        graph, params, stats = nnx.split(net, nnx.Param, ...)
        params, stats = jax.tree.map(lambda a: a.astype(dtype), (params, stats))

        def loss(params, x):
            return jnp.mean(jnp.square(nnx.merge(graph, params, stats, copy=True)(x)))

        found = jax.jit(jax.grad(loss))(params, x.astype(dtype))
        return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(found)]

    for a, b in zip(gradients(jnp.float32), gradients(jnp.float64), strict=True):
        assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b) + 1e-6


def called(make, *shape):
    return lambda: jax.eval_shape(lambda: make(rngs=nnx.Rngs(0))(np.ones(shape)))


test_what_does_not_fit_is_refused = refusals(
    {
        f"{make.__name__}: {message}": Fault(call, ValueError, message)
        for make, message, call in [
            (VGG11, "VGG11: .* expected sides of 32 pixels", called(VGG11, 2, 28, 28, 3)),
            (VGG11, r"expected \(N, H, W, 3\)", called(VGG11, 2, 32, 32, 1)),
            (UNet, "UNet: .* sides of at least 16 pixels", called(UNet, 2, 15, 64, 3)),
            (UNet, r"expected \(N, H, W, 3\)", called(UNet, 32, 32, 3)),
            (LeNet5, r"\(2, 32, 32, 1\); expected \(N, H, W, 3\)", called(LeNet5, 2, 32, 32, 1)),
            (LeNet5, "sides of 32 pixels, try side=28", called(LeNet5, 2, 28, 28, 3)),
            (LeNet5, r"\(0, 32, 32, 3\); expected", called(LeNet5, 0, 32, 32, 3)),
            (LeNet5, "side must be at least 16, got 8", called(partial(LeNet5, side=8))),
            (LeNet5, "unknown name 'rely'", called(partial(LeNet5, activation="rely"))),
        ]
    }
)
