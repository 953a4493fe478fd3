"""Forms of a convolution, of pooling and of batch norm, against what they stand for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.test_util import check_grads

import unrolled as ur
from unrolled.vision.models import _convolution, _layers

# Sums of at most 9 x 70 terms in another order, or through transforms whose entries are at most 1.
ROUNDING = 1e4 * np.finfo(np.float64).eps


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def plain(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def same(x, kernel):
    return _convolution.convolve(x, kernel, "SAME")


def with_gradients(convolution, x, kernel, g):
    def run(x, kernel, g):
        output, pull = jax.vjp(convolution, x, kernel)
        return output, pull(g)

    return jax.jit(run)(x, kernel, g)


def assert_close(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("shape", "filters", "form"),
    [
        ((3, 4, 6, 64), 65, "winograd"),
        ((2, 2, 3, 5), 7, "_gathered"),
        ((2, 1, 1, 5), 3, "_gathered"),
        ((2, 5, 4, 64), 64, None),  # an odd side
        ((2, 4, 4, 3), 64, None),  # few channels
        ((2, 5, 6, 3), 16, "_convolve_blocks"),
        ((2, 3, 7, 4), 8, "_convolve_blocks"),
        ((1, 64, 65, 16), 20, "in_strips"),
        ((2, 64, 64, 20), 16, "in_strips"),
        ((1, 63, 65, 16), 17, None),  # few pixels
        ((1, 64, 64, 15), 17, None),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_form(shape, filters, form, monkeypatch):
    used = []
    monkeypatch.setattr(_convolution, "_MANY_PRODUCTS", 0)
    for name in ("winograd", "_gathered", "_convolve_blocks", "in_strips"):
        function = getattr(_convolution, name)
        monkeypatch.setattr(
            _convolution, name, lambda *a, f=function, n=name: used.append(n) or f(*a)
        )
    x, kernel = normal(*shape), normal(3, 3, shape[-1], filters, seed=1)
    g = normal(*shape[:-1], filters, seed=2)
    found = with_gradients(same, x, kernel, g)
    assert set(used) == ({form} if form else set())
    assert_close(found, with_gradients(plain, x, kernel, g), ROUNDING)


def test_a_few_small_pictures_are_not_transformed(monkeypatch):
    monkeypatch.setattr(_convolution, "winograd", None)
    x, kernel = normal(1, 4, 4, 64), normal(3, 3, 64, 64)
    assert jax.eval_shape(same, x, kernel).shape == (1, 4, 4, 64)


def test_accelerators_get_the_plain_form(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for form in ("winograd", "_gathered", "_convolve_blocks", "in_strips"):
        monkeypatch.setattr(_convolution, form, None)
    for shape in ((1, 4, 4, 64), (1, 2, 2, 64), (1, 4, 4, 3), (1, 64, 64, 16)):
        x, kernel = normal(*shape), normal(3, 3, shape[-1], 64)
        assert jax.eval_shape(same, x, kernel).shape == (*shape[:-1], 64)


def test_winograd_goes_through_a_batch_in_chunks(monkeypatch):
    x, kernel, g = normal(6, 4, 4, 3), normal(3, 3, 3, 2, seed=1), normal(6, 4, 4, 2, seed=2)
    monkeypatch.setattr(_convolution, "_TILES_AT_ONCE", 40)  # two pictures
    assert _convolution._chunks(x).shape == (3, 2, 4, 4, 3)
    found = with_gradients(_convolution.winograd, x, kernel, g)
    assert_close(found, with_gradients(plain, x, kernel, g), ROUNDING)


@pytest.mark.parametrize(("H", "W", "rows"), [(6, 4, 3), (7, 4, 1), (4, 30, 1)])
def test_a_map_is_divided_into_strips_of_whole_rows(H, W, rows, monkeypatch):
    monkeypatch.setattr(_convolution, "_AT_ONCE", 15)
    x, kernel, g = normal(2, H, W, 3), normal(3, 3, 3, 2, seed=1), normal(2, H, W, 2, seed=2)
    assert _convolution._rows_at_once(H, W) == rows
    found = with_gradients(_convolution.in_strips, x, kernel, g)
    assert_close(found, with_gradients(plain, x, kernel, g), ROUNDING)


@pytest.mark.parametrize(
    "form, at_once",
    [("_kernel_gradient", "_AT_ONCE"), ("_winograd_kernel_gradient", "_TILES_AT_ONCE")],
)
def test_a_long_sum_in_half_precision_does_not_stop(form, at_once, monkeypatch):
    """Of 512 parts with 4 equal terms: bfloat16 has 8 bits, so that 1024 + 4 would be 1024."""
    monkeypatch.setattr(_convolution, at_once, 4)
    ones = np.ones((512, 2, 2, 1), jnp.bfloat16)
    assert jax.jit(getattr(_convolution, form))(ones, ones)[1, 1, 0, 0] == ones.size


def test_winograd_in_float32_has_a_few_times_the_rounding_of_the_plain_form():
    """Lavin and Gray measured a factor of about 2 for F(2 x 2, 3 x 3)."""
    arrays = normal(2, 8, 8, 64), normal(3, 3, 64, 64, seed=1), normal(2, 8, 8, 64, seed=2)
    exact = with_gradients(plain, *arrays)
    single = with_gradients(_convolution.winograd, *(a.astype(np.float32) for a in arrays))
    # Of 576 terms: sqrt(576) roundings, four times as many for the transforms.
    assert_close(
        single,
        jax.tree.map(lambda a: np.asarray(a, np.float32), exact),
        1e2 * np.finfo(np.float32).eps,
    )


def test_up_convolution_is_the_adjoint_of_the_convolution_of_stride_2():
    x, kernel = normal(2, 3, 4, 5), normal(2, 2, 5, 3, seed=1)

    def down(y):
        return lax.conv_general_dilated(
            y, kernel.swapaxes(2, 3), (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    (expected,) = jax.jit(jax.linear_transpose(down, normal(2, 6, 8, 3)))(x)
    assert_close(jax.jit(_convolution.up_convolve)(x, kernel), expected, ROUNDING)


def test_max_pool_leaves_out_odd_rows_and_columns():
    x = normal(2, 5, 4, 3)
    expected = x[:, :4].reshape(2, 2, 2, 2, 2, 3).max((2, 4))
    np.testing.assert_array_equal(jax.jit(_convolution.max_pool)(x), expected)


def test_max_pool_keeps_nan_and_gives_the_gradient_of_ties_to_the_first():
    squares = np.array(
        [[1.0, 1, 1, 1], [0, 2, 2, 1], [np.nan, 0, 0, 0], [0, np.nan, 0, 0], [0, 0, 0, np.nan]]
    )

    @jax.jit
    def pooled(x):
        maxima, pull = jax.vjp(_convolution.max_pool, x)
        return maxima, pull(jnp.ones_like(maxima))[0]

    maxima, g = pooled(squares.reshape(5, 2, 2, 1))
    np.testing.assert_array_equal(maxima.reshape(-1), [1, 2, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(g.reshape(5, 4), np.eye(4)[[0, 1, 0, 1, 3]])


@pytest.mark.parametrize("name", ["relu", "mish"])
def test_batch_norm_has_the_values_and_derivatives_of_its_formula(name):
    rho, x = ur.activations.by_name(name), normal(3, 4, 5, 2) + 3
    scale, bias = normal(2, seed=1), normal(2, seed=2)
    per_channel = lambda a: a.reshape(1, 1, 1, -1)  # noqa: E731

    def formula(x, scale, bias):
        mean = per_channel(x.mean((0, 1, 2)))
        var = per_channel(jnp.square(x - mean).mean((0, 1, 2)))
        return rho(per_channel(scale) * (x - mean) / jnp.sqrt(var + 1e-5) + per_channel(bias))

    def ours(x, scale, bias):
        return _layers._normalized(x, scale, bias, rho)[0]

    def run(function, g):
        y, pull = jax.vjp(function, x, scale, bias)
        return y, pull(g)

    g = normal(*x.shape, seed=3)
    found, expected = (jax.jit(lambda g, f=f: run(f, g))(g) for f in (ours, formula))
    assert_close(found, expected, ROUNDING)

    def penalty(function, x):
        """A squared slope, whose own gradient is a second derivative."""
        slopes = jax.grad(lambda *p: jnp.vdot(function(*p), g), (0, 1, 2))(x, scale, bias)
        return sum(jnp.sum(slope**2) for slope in slopes)

    found, expected = (jax.jit(jax.grad(lambda x, f=f: penalty(f, x)))(x) for f in (ours, formula))
    assert_close(found, expected, ROUNDING)


def test_batch_norm_moves_its_statistics_in_training_alone():
    net = nnx.Sequential(_layers.BatchNorm(2, ur.activations.relu))
    run = nnx.jit(lambda net, x: net(x))
    norm, x = net.layers[0], normal(3, 4, 5, 2) + 3
    run(net, x)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-12)
    net.eval()
    before = np.array(norm.mean[...])
    y = run(net, x)
    np.testing.assert_array_equal(norm.mean[...], before)
    by_hand = (x - before) / np.sqrt(np.asarray(norm.var[...]) + 1e-5)
    np.testing.assert_allclose(y, np.maximum(by_hand, 0), atol=1e-12)


def test_no_gradient_goes_through_the_statistics_of_batch_norm():
    """A loss of what is kept for evaluation moves nothing, as the statistics are no params."""
    graph, state = nnx.split(_layers.BatchNorm(2, ur.activations.relu))

    def kept(x):
        norm = nnx.merge(graph, state, copy=True)
        norm(x)
        return jnp.sum(norm.mean[...] ** 2) + jnp.sum(norm.var[...] ** 2)

    value, slope = jax.jit(jax.value_and_grad(kept))(normal(3, 4, 5, 2) + 3)
    assert value > 0 and not slope.any()


def test_of_a_square_the_value_with_the_largest_key_is_taken():
    """The first of equal keys, and NaN before all others: of every order of four keys."""
    keys = np.array([*itertools.permutations((0.0, 1.0, 1.0, 2.0))])
    undefined = np.where(keys == 0, np.nan, keys)
    values = np.arange(4.0) + 10 * np.arange(len(keys))[:, None]
    run = jax.jit(lambda keys, values: _convolution._where_largest([*keys], [*values]))
    for given, largest in ((keys, keys.argmax(1)), (-keys, (-keys).argmax(1)),
                           (undefined, np.isnan(undefined).argmax(1))):  # fmt: skip
        expected = np.take_along_axis(values, largest[:, None], 1)[:, 0]
        np.testing.assert_array_equal(run(given.T, values.T), expected)


@pytest.mark.slow
def test_derivatives_against_finite_differences():
    x, kernel = normal(1, 4, 4, 2), normal(3, 3, 2, 2, seed=1)
    check_grads(_convolution.winograd, (x, kernel), 1, modes=["rev"])
    check_grads(_convolution.in_strips, (x, kernel), 2, modes=["rev"])
