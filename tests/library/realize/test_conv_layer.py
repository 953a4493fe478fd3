"""The convolution of Definitions 5 and 6 against loops over its indices."""

from functools import partial

import jax
import numpy as np
import pytest
from faults import rows

from unrolled import activations
from unrolled.realize import ConvLayer, conv_layer

EPS = np.finfo(float).eps

# (n_in, *spatial), (n_out, *kernel), stride
CASES = {
    "kernel = stride": ((1, 9), (4, 3), 3),
    "a last window past the end": ((2, 10), (3, 3), 3),
    "windows that overlap": ((2, 10), (3, 5), 2),
    "stride 1": ((2, 7), (3, 4), 1),
    "stride above the kernel": ((2, 11), (3, 2), 4),
    "stride above the kernel, nothing padded": ((1, 5), (1, 1), 3),
    "stride above the signal": ((3, 4), (2, 2), 9),
    "kernel above the signal": ((2, 3), (2, 5), 2),
    "length 1": ((5, 1), (4, 3), 3),
    "square": ((2, 6, 6), (3, 3, 3), 2),
    "not square": ((2, 5, 8), (3, 3, 2), 2),
    "a stride for each dimension": ((1, 7, 9), (2, 2, 4), (3, 2)),
    "stride above one kernel": ((2, 7, 5), (2, 2, 3), (4, 1)),
    "three dimensions": ((1, 3, 4, 5), (2, 2, 2, 2), (2, 1, 3)),
}


def by_loops(h, filters, bias, stride, activation):
    """out[l, i] = rho(b_l + sum_(c, k) filters[l, c, k] h[c, i t + k]), one number at a time."""
    spatial, kernel = h.shape[1:], filters.shape[2:]
    strides = stride if isinstance(stride, tuple) else (stride,) * len(spatial)
    out = np.zeros((len(filters), *(-(-n // t) for n, t in zip(spatial, strides))))
    for l, *i in np.ndindex(out.shape):
        total = bias[l]
        for c, *k in np.ndindex(filters.shape[1:]):
            at = tuple(i_ * t + k_ for i_, t, k_ in zip(i, strides, k))
            if all(a < n for a, n in zip(at, spatial)):
                total += filters[(l, c, *k)] * h[(c, *at)]
        out[(l, *i)] = activation(total)
    assert len(kernel) == len(spatial)
    return out


def draw(name, seed=0):
    (n_in, *spatial), (n_out, *kernel), stride = CASES[name]
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n_in, *spatial)),
        rng.normal(size=(n_out, n_in, *kernel)),
        rng.normal(size=n_out),
        stride,
    )


def close(filters):
    """The rounding of a sum of products, one for each weight of a filter, of numbers below 5."""
    return 25 * filters[0].size * EPS


@pytest.mark.few(3)
@pytest.mark.parametrize("name", CASES)
def test_a_layer_equals_its_loops(name):
    h, filters, bias, stride = draw(name)
    relu, linear = (
        conv_layer(h, filters, bias, stride=stride, activation=a) for a in (activations.relu, None)
    )
    expected = by_loops(h, filters, bias, stride, lambda u: u)
    assert relu.shape == linear.shape == expected.shape
    assert (expected < 0).any() or expected.size < 4
    np.testing.assert_allclose(linear, expected, rtol=0, atol=close(filters))
    np.testing.assert_allclose(relu, np.maximum(expected, 0), rtol=0, atol=close(filters))


def test_zeros_are_padded_past_the_end_only():
    h, filters = np.arange(1.0, 6)[None], np.ones((1, 1, 3))
    out = conv_layer(h, filters, np.zeros(1), stride=2)
    # "SAME" padding would give 0 + 1 + 2 first.
    np.testing.assert_array_equal(out, [[1 + 2 + 3, 3 + 4 + 5, 5]])


def test_other_activations_follow_the_bias():
    h, filters, bias, stride = draw("windows that overlap")
    out = conv_layer(h, filters, bias, stride=stride, activation=activations.elu(0.5))
    expected = by_loops(h, filters, bias, stride, lambda u: u if u > 0 else 0.5 * np.expm1(u))
    np.testing.assert_allclose(out, expected, rtol=0, atol=close(filters))


def test_a_batch_of_layers_and_the_gradient_in_a_bias():
    h, filters, bias, stride = draw("not square")

    def layer(h, filters, bias):
        return conv_layer(h, filters, bias, stride=2)

    @jax.jit
    def run(H, filters, bias):
        batch = jax.vmap(layer, (0, None, None))(H, filters, bias)
        return batch, jax.grad(lambda b: layer(H[0], filters, b).sum())(bias)

    expected = np.asarray(layer(h, filters, bias))
    batch, gradient = run(np.stack([h, -h]), filters, bias)
    np.testing.assert_allclose(batch[0], expected, rtol=0, atol=close(filters))
    np.testing.assert_allclose(batch[1], layer(-h, filters, bias), rtol=0, atol=close(filters))
    # A bias moves the outputs of its filter that are positive, one for one.
    np.testing.assert_array_equal(gradient, (expected > 0).sum((1, 2)))


def test_the_wider_dtype_wins():
    h, filters, bias, _ = draw("kernel = stride")
    narrow = [np.asarray(a, np.float32) for a in (h, filters, bias)]
    for image, dtype in ((narrow[0], np.float32), (h, np.float64)):
        assert conv_layer(image, *narrow[1:], stride=3).dtype == dtype
    integers = np.arange(6)[None]  # become the default float
    assert conv_layer(integers, *narrow[1:], stride=3).dtype == np.float64


def test_a_flat_layer_reads_channels_as_a_signal():
    _, filters, bias, stride = draw("a last window past the end")
    h = np.random.default_rng(1).normal(size=(10, 1))
    layer = ConvLayer(filters[:, :1], bias, stride, None, True, False)
    code = np.asarray(layer(h))
    expected = conv_layer(h.T, filters[:, :1], bias, stride=stride, activation=None)
    np.testing.assert_array_equal(code, expected)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, layer)
    assert doubled.stride == stride and doubled.flat
    np.testing.assert_allclose(doubled(h), 2 * code, rtol=1e-14)


H, F, B = np.ones((2, 9)), np.ones((3, 2, 4)), np.ones(3)


def _of(*arguments, stride=2, **options):
    return partial(conv_layer, *arguments, stride=stride, **options)


test_faults_are_refused = rows(
    (_of(H[:1], F, B), r"expect h with 2 channels.*got h of shape \(1, 9\)"),
    (_of(H, F, B[:2]), r"bias of shape \(3,\)"),
    (_of(H, F, np.ones((3, 5))), r"bias of shape \(3,\)"),
    (_of(H[None], F, B), r"try jax\.vmap"),
    (_of(H[0], F, B), r"h has shape \(9,\)"),
    (_of(H[:, :0], F, B), "none of them empty"),
    (_of(H, F, B, stride=0), "stride must be at least 1, got 0"),
    (_of(H, F, B, stride=(2, 2)), r"stride \(2, 2\) has 2 entries; expected 1"),
    (_of(H, F, B, activation="step"), "unknown name 'step'"),
)
