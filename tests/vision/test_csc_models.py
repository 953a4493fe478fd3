"""Convolutional sparse coding layers of flax.nnx, and the residual and mixed-scale models."""

import inspect
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import Fault, refusals
from flax import nnx

from unrolled.dictionaries import Conv
from unrolled.vision.models import MSDCSC, CSCLayer, MSDCSCBlock, ResCSC, ResCSCBlock
from unrolled.vision.models._csc_blocks import norm_bound

pytestmark = pytest.mark.usefixtures("float32_by_default")
EPS = np.finfo(np.float32).eps
assert_close = partial(chex.assert_trees_all_close, rtol=0, atol=1e3 * EPS)


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(key, shape, dtype):
    """Filters of numpy: every shape that JAX draws is a program."""
    return jnp.asarray(images(*shape), dtype)


@nnx.jit
def run(model, *args):
    return model(*args)


def layer_of(inputs, outputs, **options):
    options = dict(kernel_init=drawn, rngs=nnx.Rngs(0)) | options
    return CSCLayer(inputs, outputs, (3, 3), **options)


# The layer


@pytest.mark.few(1)
@pytest.mark.parametrize("options", [{}, dict(padding="VALID", strides=2, use_bias=False)])
def test_no_unfolding_is_the_convolution_and_its_activation(options):
    conv = nnx.Conv(2, 3, (3, 3), kernel_init=drawn, rngs=nnx.Rngs(0), **options)
    layer = layer_of(2, 3, activation="silu", **options)
    y = images(2, 6, 5, 2)
    np.testing.assert_array_equal(run(layer, y), nnx.jit(lambda c, y: jax.nn.silu(c(y)))(conv, y))
    assert nnx.state(layer).keys() == nnx.state(conv).keys()


@pytest.mark.slow
def test_unfoldings_are_steps_of_ista():
    layer = CSCLayer(2, 3, (3, 3), unfoldings=1, padding="CIRCULAR", rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.array([-0.1, 0.0, -0.2])
    y, s = images(1, 6, 6, 2), float(layer.step[...])
    # The same bank as a dictionary, whose positions are not centred.
    filters = jnp.moveaxis(layer.kernel[...], (-1, -2), (0, 1))
    W = Conv(filters, (6, 6), boundary="circular")
    theta = -np.repeat(np.asarray(layer.bias[...]), 36)
    r = np.roll(y[0], (1, 1), (0, 1)).transpose(2, 0, 1).reshape(-1)
    first = jax.nn.relu(r @ W - theta)
    x = jax.nn.relu(first + (r - s * (W @ first)) @ W - theta)
    assert x.any()
    assert_close(run(layer, y)[0], x.reshape(3, 6, 6).transpose(1, 2, 0))
    assert_close(layer.step_ratio(), 1)


@pytest.mark.slow
def test_the_bound_of_the_norm_holds_and_is_near():
    for shape in ((3, 3, 2, 4), (5, 3, 1)):
        kernel = jnp.asarray(images(*shape))
        filters = jnp.moveaxis(kernel, (-1, -2), (0, 1))
        torus = (24,) * (len(shape) - 2)
        exact = float(Conv(filters, torus, boundary="circular").spectral_norm())
        assert exact * (1 - 1e-5) <= float(norm_bound(kernel)) <= 1.15 * exact
        assert_close(jax.jit(norm_bound)(kernel) / norm_bound(kernel), 1)


@pytest.mark.few(1)
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize("kernel, stride, dilation", [(3, 2, 1), (3, 3, 1), (3, 4, 2), (5, 3, 1)])
def test_the_first_step_is_safe_for_every_stride_and_size(kernel, stride, dilation, padding):
    """s norm(W)^2 <= 1, and near it but for circles, of the matrix of the convolution."""
    layer = CSCLayer(
        2,
        3,
        (kernel, kernel),
        stride,
        unfoldings=1,
        use_bias=False,
        padding=padding,
        kernel_dilation=dilation,
        rngs=nnx.Rngs(1),
    )
    ratios = []
    for side in (11, 16):
        W = jax.jit(jax.jacobian(partial(nnx.Conv.__call__, layer)))(images(1, side, side, 2))
        W = np.asarray(W).reshape(-1, 2 * side**2)
        ratios.append(float(layer.step[...]) * np.linalg.norm(W, 2) ** 2)
    assert (0.3 if padding == "CIRCULAR" else 0.6) < max(ratios) < 1 + 1e-5
    assert_close(layer.step_ratio(), 1)


def test_the_bound_is_that_of_the_masked_kernel():
    mask = jnp.asarray(np.float32([[[[1, 1], [1, 0]]]]))  # whose product may have a larger norm
    init = lambda *_: jnp.asarray(np.float32([[[[1, 1], [1, -1]]]]))  # noqa: E731
    layer = CSCLayer(2, 2, (1, 1), mask=mask, warm=True, kernel_init=init, rngs=nnx.Rngs(0))
    norm = np.linalg.norm([[1, 1], [1, 0]], 2)
    np.testing.assert_allclose(layer.step_ratio(), layer.step[...] * norm**2, rtol=1e-5)


def test_integer_images_are_those_of_floats():
    layer = layer_of(1, 2, unfoldings=1)
    y = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(run(layer, y), run(layer, y.astype(np.float32)))


def test_a_warm_start_is_a_skip_connection():
    block = ResCSCBlock(3, 3, unfoldings=0, rngs=nnx.Rngs(0))
    block.eval()

    def by_hand(block, x):
        u, W = block.first(x), block.second
        residual = u - W.step[...] * jax.vjp(lambda r: nnx.Conv.__call__(W, r), u)[1](x)[0]
        return jax.nn.relu(W.norms[0](x + nnx.Conv.__call__(W, residual)))

    x = images(2, 5, 5, 3)
    assert_close(run(block, x), nnx.jit(by_hand)(block, x))


# Mixed scales


def test_a_block_without_unfolding_is_a_concatenation_net():
    block = MSDCSCBlock(2, growth=1, depth=2, dilations=(1, 2), unfoldings=0, rngs=nnx.Rngs(0))
    block.eval()
    y = images(2, 6, 6, 2)

    @nnx.jit
    def by_hand(block, x):
        for F, c, norms in zip(block.filters, block.steps, block.norms):
            x = jax.nn.relu(norms[0](c[...] * jnp.concatenate([x, F(x)], -1)))
        return x

    x = by_hand(block, y)
    assert_close(run(block, y), x)
    assert x.shape == (2, 6, 6, 4) and block.filters[1].kernel_dilation in (2, (2, 2))
    assert_close(block.step_ratios(), np.ones(2))


def test_an_unfolding_goes_down_by_the_adjoint_and_up_again():
    block = MSDCSCBlock(2, growth=1, depth=2, dilations=(1, 2), unfoldings=1, rngs=nnx.Rngs(0))
    block.eval()
    y = images(1, 6, 6, 2)

    @nnx.jit
    def by_hand(block, y):
        def D(i, x):  # [I, F_i] x, from the adjoint of F_i
            kept, added = x[..., : 2 + i], x[..., 2 + i :]
            return kept + jax.linear_transpose(block.filters[i], kept)(added)[0]

        def up(i, t, x, r):
            g = jnp.concatenate([r, block.filters[i](r)], -1)
            return jax.nn.relu(block.norms[i][t](x + block.steps[i][...] * g))

        x_1 = up(0, 0, 0.0, y)
        x_2 = up(1, 0, 0.0, x_1)
        x_1 = D(1, x_2)
        z_1 = up(0, 1, x_1, y - D(0, x_1))
        return up(1, 1, x_2, z_1 - x_1)

    assert_close(run(block, y), by_hand(block, y))


def test_filters_are_drawn_as_those_of_a_convolution():
    filters = MSDCSCBlock(100, growth=20, depth=1, rngs=nnx.Rngs(0)).filters[0].kernel[...]
    scaled = np.asarray(filters).ravel() * math.sqrt(900)
    # 18,000 numbers: the mean is known to 1 / sqrt(18000), and 4.5 of these are never seen.
    assert abs(scaled.mean()) < 4.5 / math.sqrt(len(scaled)) and abs(scaled.std() - 1) < 0.02
    assert 2.2 < np.abs(scaled).max() < 2.28 and len(np.unique(scaled)) > 0.99 * len(scaled)


# Models


MODELS = {
    "ResCSC": lambda rngs: ResCSC(widths=(2, 3), blocks=1, unfoldings=1, rngs=rngs),
    "MSDCSC": lambda rngs: MSDCSC(width=2, blocks=2, growth=1, depth=2, rngs=rngs),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResCSC", "MSDCSC"])
def test_pictures_whose_squares_leave_the_range_give_no_finite_number(name):
    model, pictures = MODELS[name](nnx.Rngs(0)), images(2, 8, 8, 3)
    model.train()
    assert np.isnan(run(model, np.float32(1e20) * pictures)).all()
    assert np.isnan(run(model, pictures)).all()  # the running variance is lost, too
    fresh = MODELS[name](nnx.Rngs(0))
    assert np.isfinite(run(fresh, np.float32(1e10) * pictures)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MSDCSC", "ResCSC"])
def test_batch_norms_are_trained_saved_and_switched(name):
    model, x = MODELS[name](nnx.Rngs(0)), images(4, 8, 8, 3)
    norms = [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.BatchNorm)]
    steps = {"ResCSC": 1 + 2 * 2 * 2, "MSDCSC": 1 + 2 * 2 * 2}[name]
    assert len(norms) == steps
    in_state = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert len(in_state) == 2 * steps
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    before = [(jnp.copy(n.scale[...]), jnp.copy(n.mean[...])) for n in norms]

    @nnx.jit
    def train_step(model, optimizer, x):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    labels = jnp.arange(4)
    first = train_step(model, optimizer, x)
    assert np.isfinite(first)
    for norm, (scale, mean) in zip(norms, before):
        assert (norm.scale[...] != scale).any() and (norm.mean[...] != mean).any()
    model.eval()
    alone, together = run(model, x[:1]), run(model, x)
    assert_close(alone[0], together[0])  # it no longer depends on the rest of the batch
    other = MODELS[name](nnx.Rngs(1))
    nnx.update(other, nnx.state(model))
    other.eval()
    np.testing.assert_array_equal(run(other, x), together)


@pytest.mark.slow
def test_the_sizes_of_msd_csc_are_those_of_the_paper():
    model = nnx.eval_shape(lambda: MSDCSC(rngs=nnx.Rngs(0)))
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in params) == 1_036_430
    assert [block.filters[0].in_features for block in model.blocks] == [16, 160, 304]
    assert model.head.in_features == 448


# What does not fit


CALLS = {
    "unfoldings must be at least 0": lambda: layer_of(1, 1, unfoldings=-1),
    "padding": lambda: layer_of(1, 1, padding="FULL"),
    "input_dilation is not supported": lambda: layer_of(2, 2, input_dilation=2),
    "one size for each side": lambda: CSCLayer(2, 2, (), rngs=nnx.Rngs(0)),
    "one group": lambda: layer_of(2, 2, feature_group_count=2),
    "unknown name .nothing.": lambda: layer_of(1, 1, activation="nothing"),
    "expected .N, H, W, 1.": lambda: layer_of(1, 1)(images(1, 6, 6, 2)),
    "ResCSC: the pictures have shape .1, 6, 6, 2.; expected .N, H, W, 3.": lambda: ResCSC(
        widths=(1,), blocks=1, rngs=nnx.Rngs(0)
    )(images(1, 6, 6, 2)),
    "too long for pictures": lambda: layer_of(1, 1, padding="VALID")(images(1, 2, 2, 1)),
    "extent .17, 17. are too long": lambda: block_of(1, dilations=(8,))(images(1, 8, 8, 1)),
    "start has shape .1, 6, 6, 1.; expected warm": lambda: layer_of(1, 1)(
        images(1, 6, 6, 1), images(1, 6, 6, 1)
    ),
    "start has shape .1, 5, 5, 1.; expected .1, 6": lambda: layer_of(1, 1, warm=True)(
        images(1, 6, 6, 1), images(1, 5, 5, 1)
    ),
    "dilations must be at least 1": lambda: MSDCSC(dilations=(), rngs=nnx.Rngs(0)),
    "stages must be at least 1": lambda: ResCSC(widths=(), rngs=nnx.Rngs(0)),
    r"dilations\[1\] must be at least 1": lambda: block_of(1, dilations=(1, 0)),
    "MSDCSCBlock: the pictures have shape .1, 8, 8, 3.; expected .N, H, W, 2.": lambda: block_of(2)(
        images(1, 8, 8, 3)
    ),
}


def block_of(inputs, **options):
    return MSDCSCBlock(inputs, growth=1, depth=1, rngs=nnx.Rngs(0), **options)


# Nothing is drawn, and nothing computed.
test_what_does_not_fit_is_refused = refusals(
    {
        message: Fault(partial(nnx.eval_shape, call), ValueError, message)
        for message, call in CALLS.items()
    }
)


def test_the_logits_of_a_network_see_the_mean_over_all_pixels():
    class Same(nnx.Module):
        in_features = 2

        def __call__(self, y):
            return y

    net = ResCSC(channels=2, widths=(2,), blocks=1, classes=3, rngs=nnx.Rngs(0))
    net.stem, net.blocks = Same(), nnx.List([])
    y = images(2, 4, 5, 2)
    np.testing.assert_allclose(net(y), net.head(np.asarray(y).mean((1, 2))), rtol=1e-5)


def test_filters_of_zeros_take_steps_that_stay_at_zero():
    layer = layer_of(1, 2, unfoldings=1, kernel_init=nnx.initializers.zeros)
    assert float(layer.step_ratio()) == 0
    np.testing.assert_array_equal(run(layer, images(1, 4, 4, 1)), 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_csc_layers_with_batch_norm_stay_in_their_dtype(dtype):
    y = images(1, 5, 5, 1)
    for unfoldings in (0, 1):
        layer = layer_of(1, 2, unfoldings=unfoldings, batch_norm=True, dtype=jnp.dtype(dtype))
        x = run(layer, y)
        assert x.dtype == dtype and np.isfinite(np.asarray(x, float)).all()


def test_a_warm_start_may_have_any_dtype():
    layer, y = layer_of(1, 2, warm=True), images(1, 4, 4, 1)
    start = np.round(run(layer, y))  # integers, that all dtypes hold
    expected = run(layer, y, start)
    for given in (start.astype(jnp.bfloat16), start.astype(int)):
        np.testing.assert_array_equal(run(layer, y, given), expected)
    given = start.tolist()
    np.testing.assert_array_equal(nnx.jit(lambda layer: layer(y, given))(layer), expected)


def test_the_bound_of_the_norm_holds_and_is_near_for_strides():
    kernel = images(3, 3, 2, 3).astype(np.float64)
    # Row by row of the matrix: a correlation on a circle of 8 x 8, read at every second position.
    rows = []
    for i, j, f in np.ndindex(4, 8, 3):
        row = np.zeros((8, 8, 2))
        row[np.ix_((2 * i + np.arange(3)) % 8, (j + np.arange(3)) % 8)] = kernel[..., f]
        rows.append(row.ravel())
    exact = np.linalg.norm(rows, 2)
    bound = float(norm_bound(jnp.asarray(kernel, jnp.float32), (2, 1)))
    assert exact * (1 - 1e-5) <= bound <= 1.15 * exact


def test_the_layers_of_a_mixed_scale_block_are_dilated_by_1_to_6():
    options = inspect.signature(MSDCSCBlock.__init__).parameters
    assert options["dilations"].default == (1, 2, 3, 4, 5, 6)
