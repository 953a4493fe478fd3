"""VGG11 and U-Net: the number of params, shapes, features, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unrolled.vision.models import VGG11, UNet, tap


def parameters(make):
    net = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))


def shapes(make, *shape):
    """Of the outputs, and of the early features by name."""

    def run():
        net = make(rngs=nnx.Rngs(0))
        return tap(net, *net.early)(jnp.ones(shape))

    outputs, features = jax.eval_shape(run)
    return outputs.shape, [x.shape for x in features.values()]


def test_params_are_as_many_as_the_paper_counts():
    assert parameters(VGG11) == 9_231_114
    assert parameters(UNet) == 31_037_633


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
@pytest.mark.parametrize("make", [VGG11, lambda rngs: UNet(4, rngs=rngs)])
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


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (VGG11, (2, 28, 28, 3), "VGG11: the pictures have shape .* expected sides of 32 pixels"),
        (VGG11, (2, 32, 32, 1), r"expected \(N, H, W, 3\)"),
        (UNet, (2, 15, 64, 3), "UNet: the pictures have shape .* sides of at least 16 pixels"),
        (UNet, (32, 32, 3), r"expected \(N, H, W, 3\)"),
    ],
)
def test_pictures_that_are_refused(make, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: make(rngs=nnx.Rngs(0))(jnp.ones(shape)))


def test_sizes_that_are_refused():
    with pytest.raises(ValueError, match="width must be at least 1"):
        UNet(0, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="classes"):
        VGG11(1.5, rngs=nnx.Rngs(0))
