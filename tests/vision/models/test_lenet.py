"""LeNet-5 and its convolutions: the number of params, the plain form, what it refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import unrolled as ur
from unrolled.vision.models import LeNet5, _convolution

# Sums of 75 to 400 terms in another order, through five layers, stay far below 1e4 roundings.
ROUNDING = 1e4 * np.finfo(np.float64).eps


def pictures(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def parameters(**options):
    net = nnx.eval_shape(lambda: LeNet5(rngs=nnx.Rngs(0), **options))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))


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


def test_lenet_has_as_many_params_as_the_paper_counts():
    assert parameters() == 62_006
    assert parameters(channels=1, side=28) == 44_426


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 8}, "side must be at least 16, got 8"),
        ({"classes": 0}, "classes must be at least 1"),
        ({"activation": "rely"}, "unknown name 'rely'"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LeNet5(rngs=nnx.Rngs(0), **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 32, 32, 1), r"shape \(2, 32, 32, 1\); expected \(N, H, W, 3\)"),
        ((2, 28, 28, 3), "expected sides of 32 pixels, try side=28"),
        ((0, 32, 32, 3), "expected"),
    ],
)
def test_pictures_that_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        LeNet5(rngs=nnx.Rngs(0))(jnp.ones(shape))
