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

PICTURE, FILTERS = (9, 8, 2), (Filters(4, 4, 2), Filters(5, 2))
METHODS = ("ml-ista", "ml-fista", "ml-lista", "layered-bp", "all-free")
# Sums of at most 1000 terms in another order, through a few products: far below 1e4 roundings.
ROUNDING = 1e4 * np.finfo(np.float64).eps
pytestmark = pytest.mark.usefixtures("quick_compilation")


def make(method, unfoldings=3, shape=PICTURE, filters=FILTERS, **options):
    """A net with equal filters, step sizes and biases whatever the method, as after training."""
    net = MLCSC(shape, filters, method, unfoldings, classes=3, rngs=nnx.Rngs(0), **options)
    for j, layer in enumerate(net.layers, start=1):
        fill(layer.kernel, 0.3 * normal(*layer.kernel.shape[-4:], seed=j))
        fill(layer.bias, 0.05 * normal(*layer.bias.shape[-1:], seed=-j))
        if layer.c is not None:
            fill(layer.c, jnp.asarray(0.5 / j))
        if layer.analysis is not None:
            fill(layer.analysis, 0.25 * normal(*layer.kernel.shape, seed=j))
    return net


def fill(leaf, value):
    leaf[...] = jnp.broadcast_to(value, leaf.shape)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(abs(2 * seed) + (seed < 0)).normal(size=shape))


def pictures(n=3, shape=PICTURE):
    return jnp.asarray(np.random.default_rng(7).uniform(size=(n, *shape)))


@nnx.jit
def run(net, y):
    return net(y)


@nnx.jit
def pursue(net, y):
    return net.pursue(y)


def flat(x):
    """NHWC as the flat vectors of `Conv`."""
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def biased(v, theta):
    return jnp.maximum(v - theta, 0)


# The dictionary of a batch


@pytest.mark.parametrize(
    "side, kernel, stride, padding",
    [((9, 8), 4, 2, 0), ((7, 9), 3, 2, 1), ((6, 6), 2, 1, 0), ((4, 4), 4, 1, 0), ((8, 7), 4, 3, 2)],
)
def test_batches_of_images_meet_the_atoms_of_a_convolution(side, kernel, stride, padding):
    D = ImageConv(normal(kernel, kernel, 2, 3), side, stride, padding)
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


def test_without_unfoldings_they_are_the_plain_cnn_bit_for_bit():
    y = pictures()
    net = make("cnn")
    assert net.unfoldings == 0
    logits = run(net, y)
    for method in ("ml-ista", "ml-fista", "layered-bp", "all-free"):
        np.testing.assert_array_equal(run(make(method, 0), y), logits)
    x = y
    for layer, (_, _, stride, _) in zip(net.layers, FILTERS):
        kernel = layer.kernel[...]
        x = lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.maximum(layer.c[...] * x + layer.bias[...][None, None, None], 0)
    plain = net.classifier(x)
    np.testing.assert_allclose(logits, plain, atol=ROUNDING)
    assert 0.1 < np.mean(np.asarray(x) > 0) < 0.9


def chain(net):
    """The dictionaries, step sizes and thresholds of a net for one signal."""
    Ds = [layer.step().D.conv for layer in net.layers]
    gammas = [layer.c[...] for layer in net.layers]
    thetas = [D.spread(-layer.bias[...]) for D, layer in zip(Ds, net.layers)]
    return Ds, gammas, thetas


@pytest.mark.parametrize("kind", ["Conv", "dense"])
def test_ml_ista_is_the_pursuit_of_its_dictionaries(kind):
    net, y = make("ml-ista", 2), pictures(2)
    Ds, *options = chain(net)
    if kind == "dense":
        Ds = [ur.dictionaries.dense(D) for D in Ds]

    @jax.jit
    def pursuit(y):
        x = jnp.zeros(Ds[-1].shape[1])
        for _ in range(net.unfoldings + 1):
            xs = ur.pursuit.ml_ista_step(Ds, y, x, *options, biased)
            x = xs[-1]
        return xs

    found = pursue(net, y)
    for x, expected in zip(found, jax.vmap(pursuit)(flat(y))):
        np.testing.assert_allclose(flat(x), expected, atol=ROUNDING)


@pytest.mark.parametrize("method", ["ml-ista", "ml-fista", "layered-bp"])
def test_one_layer_is_ista_or_fista_for_nonnegative_codes(method):
    net, y = make(method, 4, filters=FILTERS[:1]), pictures(2)
    (D,), (gamma,), (theta,) = chain(net)
    A, momentum = np.asarray(ur.dictionaries.dense(D)), method == "ml-fista"
    for found, r in zip(flat(pursue(net, y)[0]), np.asarray(flat(y))):
        x = z = np.zeros(A.shape[1])
        t = 1.0
        for _ in range(net.unfoldings + 1):
            last, x = x, np.maximum(z + gamma * A.T @ (r - A @ z) - theta, 0)
            t, t_last = (1 + np.sqrt(1 + 4 * t**2)) / 2, t
            z = x + (t_last - 1) / t * (x - last) if momentum else x
        np.testing.assert_allclose(found, x, atol=ROUNDING)


def test_layered_pursuits_solve_one_layer_after_the_other():
    net, y = make("layered-bp", 4), pictures(2)
    found = pursue(net, y)
    for j, layer in enumerate(net.layers):
        D, gamma, theta, _ = layer.step()
        before = found[j - 1] if j else y
        x = jnp.zeros_like(found[j])
        for _ in range(net.unfoldings + 1):
            x = biased(x + gamma * ((before - D @ x) @ D), theta)
        np.testing.assert_allclose(found[j], x, atol=ROUNDING)


def test_ml_lista_has_analysis_filters_of_its_own():
    net, y = make("ml-lista", 2), pictures(2)
    found = pursue(net, y)
    Ds, _, thetas, Bs = zip(*(layer.step() for layer in net.layers))
    x_2 = jnp.zeros_like(found[1])
    for _ in range(net.unfoldings + 1):
        x_1 = Ds[1] @ x_2
        new_1 = biased(x_1 - (Ds[0] @ x_1) @ Ds[0] + y @ Bs[0], thetas[0])
        x_2 = biased(x_2 - (Ds[1] @ x_2) @ Ds[1] + new_1 @ Bs[1], thetas[1])
    np.testing.assert_allclose(found[0], new_1, atol=ROUNDING)
    np.testing.assert_allclose(found[1], x_2, atol=ROUNDING)


def test_free_steps_that_are_equal_are_those_of_ml_ista():
    y = pictures(2)
    tied, free = pursue(make("ml-ista"), y), pursue(make("all-free"), y)
    for x, expected in zip(free, tied):
        np.testing.assert_allclose(x, expected, atol=ROUNDING)


def test_unfoldings_and_momentum_change_the_codes():
    y = pictures(2)
    found = [pursue(make(*args), y)[-1] for args in [("cnn",), ("ml-ista", 3), ("ml-fista", 3)]]
    for a, b in [(0, 1), (1, 2)]:
        assert np.max(np.abs(found[a] - found[b])) > 1e-3


# Training


def loss(params, rest, y, labels):
    net = nnx.merge(*rest, params)
    return optax.softmax_cross_entropy_with_integer_labels(net(y), labels).mean()


def split(net):
    graph, params = nnx.split(net)
    return params, (graph,)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_central_differences(method):
    params, rest = split(make(method, 2))
    y, labels = pictures(2), jnp.array([0, 2])
    direction = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=leaf.size), params)
    value = jax.jit(lambda params: loss(params, rest, y, labels))
    gradient = jax.jit(jax.grad(lambda params: loss(params, rest, y, labels)))(params)
    slope = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))

    # The error of a central difference is about h^2 + eps / h, unless a step crosses a kink.
    h = 1e-6
    ahead, behind = (
        value(jax.tree.map(lambda p, d: p + step * d, params, direction)) for step in (h, -h)
    )
    np.testing.assert_allclose((ahead - behind) / (2 * h), slope, rtol=1e-6)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))


def test_compiled_and_eager_logits_agree():
    net, y = make("ml-fista", 2), pictures(2)
    np.testing.assert_allclose(run(net, y), net(y), atol=ROUNDING)


def test_a_few_steps_of_gradient_descent_lower_the_loss():
    params, rest = split(make("ml-ista", 2))
    y, labels = pictures(8), jnp.arange(8) % 3

    @jax.jit
    def descend(params):
        value, gradient = jax.value_and_grad(loss)(params, rest, y, labels)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

    values = []
    for _ in range(8):
        value, params = descend(params)
        values.append(float(value))
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 0.01


# Sizes


def count(net):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))


@pytest.mark.parametrize("method, unfoldings", [("cnn", 6), ("ml-ista", 2), ("layered-bp", 6)])
def test_the_networks_for_mnist_have_the_parameters_of_the_paper(method, unfoldings):
    net = abstract(MLCSC.mnist, method, unfoldings)
    filters = 32 * 36 + 64 * 32 * 36 + 512 * 64 * 16
    # Filters, biases, step sizes, and the linear classifier with its biases.
    assert count(net) == filters + (32 + 64 + 512) + 3 + 512 * 10 + 10 == 604_909
    assert [layer.shape for layer in net.layers] == [(12, 12, 32), (4, 4, 64), (1, 1, 512)]
    other = abstract(MLCSC.mnist, "ml-lista", unfoldings)
    assert count(other) == 604_909 + filters - 3  # filters of two kinds, no step sizes
    free = abstract(MLCSC.mnist, "all-free", unfoldings)
    assert count(free) == 5_130 + (unfoldings + 1) * (604_909 - 5_130)


def abstract(build, *args):
    """A network of shapes: nothing is drawn."""
    return nnx.eval_shape(lambda: build(*args, rngs=nnx.Rngs(0)))


def test_the_first_filters_are_small_and_the_same_for_all_methods():
    nets = [MLCSC(PICTURE, FILTERS, method, rngs=nnx.Rngs(3)) for method in METHODS[:-1]]
    for j, layer in enumerate(nets[0].layers):
        draws = np.asarray(layer.kernel[...]) * np.sqrt(np.prod(layer.kernel.shape[:-1])) / 0.1
        # 128 or 80 draws: four standard errors.
        assert abs(draws.std() - 1) < 4 / np.sqrt(2 * draws.size)
        assert np.all(layer.c[...] == 1) and np.all(layer.bias[...] == 0)
        for net in nets[1:]:
            np.testing.assert_array_equal(net.layers[j].kernel[...], layer.kernel[...])
            np.testing.assert_array_equal(net.classifier.dense.kernel[...], nets[0].classifier.dense.kernel[...])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(method="ista"), "unknown method 'ista'; expected one of cnn, ml-ista"),
        (dict(unfoldings=-1), "unfoldings must be at least 0"),
        (dict(filters=[]), "no filters"),
        (dict(filters=[Filters(4, 10)]), "layer 1 has a kernel of 10 on pictures of 9 x 8"),
        (dict(filters=[Filters(4, 3), Filters(4, 8)]), "layer 2 has a kernel of 8"),
        (dict(filters=[Filters(4, 3, 0)]), "stride of layer 1 must be at least 1"),
    ],
)
def test_a_network_that_cannot_be_is_refused(change, message):
    options = dict(shape=PICTURE, filters=FILTERS, method="ml-ista", unfoldings=2) | change
    with pytest.raises(ValueError, match=message):
        MLCSC(**options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(9, 8, 2), (1, 8, 9, 2)])
def test_pictures_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(N, "):
        make("cnn")(jnp.zeros(shape))
