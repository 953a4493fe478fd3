"""Unfolded pursuits against dictionaries, dense matrices and plain convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import unrolled as ur
from unrolled.models import MLCSC, Filters, ImageConv

IMAGE, FILTERS = (9, 8, 2), (Filters(4, 4, 2), Filters(5, 2))
METHODS = ("ml-ista", "ml-fista", "ml-lista", "layered-bp", "all-free")
# Sums of at most 1000 terms in another order, through a few products: far below 1e4 roundings.
ROUNDING = 1e4 * np.finfo(np.float64).eps
pytestmark = pytest.mark.usefixtures("quick_compilation")


def make(method, unfoldings=3, image=IMAGE, filters=FILTERS, **options):
    """A net whose biases, step sizes and analysis filters are no longer those of the start."""
    net = MLCSC(image, filters, method, unfoldings, classes=3, rngs=nnx.Rngs(0), **options)
    for j, layer in enumerate(net.layers, start=1):
        layer.filters[...] = 3 * layer.filters[...]
        layer.bias[...] = layer.bias[...] + 0.02 * normal(*layer.bias.shape, seed=j)
        if layer.c is not None:
            layer.c[...] = layer.c[...] / (j + 1)
        if layer.analysis is not None:
            layer.analysis[...] = 0.7 * layer.filters[...]
    return net


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def images(n=3, image=IMAGE):
    return jnp.asarray(np.random.default_rng(7).uniform(size=(n, *image)))


@nnx.jit
def run(net, y):
    return net(y)


@nnx.jit
def pursue(net, y):
    return net.pursue(y)


def flat(images):
    """NHWC as the flat vectors of `Conv`."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def biased(v, theta):
    return jnp.maximum(v - theta, 0)


# The dictionary of a batch


@pytest.mark.parametrize(
    "side, kernel, stride, padding",
    [((9, 8), 4, 2, 0), ((7, 9), 3, 2, 1), ((6, 6), 2, 1, 0), ((4, 4), 4, 1, 0), ((8, 7), 4, 3, 2)],
)
def test_batches_of_images_meet_the_atoms_of_a_convolution(side, kernel, stride, padding):
    D = ImageConv(normal(3, 2, kernel, kernel), side, stride, padding)
    r = normal(2, *side, 2, seed=1)
    codes = r @ D
    framed = jnp.pad(r, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    A = ur.dictionaries.dense(D.conv)
    np.testing.assert_allclose(flat(codes), flat(framed) @ A, atol=ROUNDING)
    x = normal(*codes.shape, seed=2)
    grid = (flat(x) @ A.T).reshape(2, *D.conv.signal_grid)
    inside = grid[:, :, padding : padding + side[0], padding : padding + side[1]]
    np.testing.assert_allclose(D @ x, inside.transpose(0, 2, 3, 1), atol=ROUNDING)


# The methods


@pytest.mark.parametrize("method", METHODS)
def test_without_unfoldings_it_is_the_plain_cnn_bit_for_bit(method):
    net, cnn = make(method, 0), make("cnn")
    if method == "all-free":
        for layer in net.layers:
            for leaf in (layer.filters, layer.c, layer.bias):
                leaf[...] = leaf[...]
    del cnn
    assert net is not None
