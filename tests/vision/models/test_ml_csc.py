"""Unfolded pursuits against dictionaries, dense matrices and plain convolutions."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import Fault, refusals
from flax import nnx
from jax import lax

import unrolled as ur
from unrolled.vision.models import MLCSC, Filters, ImageConv, _ml_csc
from unrolled.vision.models._layers import norm_from_below
from unrolled.vision.models._ml_csc import Linear

PICTURE, FILTERS = (9, 8, 2), (Filters(4, 4, 2), Filters(5, 2))
METHODS = ("ml-ista", "ml-fista", "ml-lista", "layered-bp", "all-free")
# Sums of at most 1000 terms in another order, through a few products: far below 1e4 roundings.
ROUNDING = 1e4 * np.finfo(np.float64).eps


def make(method, unfoldings=3, shape=PICTURE, filters=FILTERS, classifier=Linear, **options):
    """A net with equal filters, step sizes and biases whatever the method, as after training."""
    options |= dict(unfoldings=unfoldings, classes=3, classifier=classifier)
    net = abstract(MLCSC, shape, filters, method, **options)
    for j, layer in enumerate(net.layers, start=1):
        fill(layer.kernel, 0.3 * normal(*layer.kernel.shape[-4:], seed=j))
        fill(layer.bias, 0.05 * normal(*layer.bias.shape[-1:], seed=-j))
        if layer.c is not None:
            fill(layer.c, 0.5 / j)
        if layer.analysis is not None:
            fill(layer.analysis, 0.25 * normal(*layer.kernel.shape, seed=j))
    dense = net.classifier.dense
    fill(dense.kernel, normal(*dense.kernel.shape) / np.sqrt(len(dense.kernel)))
    fill(dense.bias, 0.1)
    return net


def abstract(build, *args, **options):
    """A network of shapes: nothing is drawn."""
    return nnx.eval_shape(lambda: build(*args, **options, rngs=nnx.Rngs(0)))


def fill(leaf, value):
    leaf.set_value(jnp.asarray(np.broadcast_to(value, leaf.shape), leaf.dtype))


def normal(*shape, seed=0):
    return np.random.default_rng(abs(2 * seed) + (seed < 0)).normal(size=shape)


def pictures(n=3, shape=PICTURE):
    return np.random.default_rng(7).uniform(size=(n, *shape))


def moved(tree, step, direction):
    return jax.tree.map(lambda leaf, d: np.asarray(leaf) + step * d, tree, direction)


@nnx.jit
def run(net, y):
    return net(y)


@nnx.jit
def pursue(net, y):
    return net.pursue(y)


def flat(x):
    """NHWC as the flat vectors of `Conv`."""
    return np.asarray(x).transpose(0, 3, 1, 2).reshape(len(x), -1)


@jax.jit
def matrix(D):
    return ur.dictionaries.dense(D)


@nnx.jit
def steps_of(net):
    """Step sizes and thresholds, as the steps of a net take them."""
    steps = [layer.step() for layer in net.layers]
    return [step.gamma for step in steps], [step.theta for step in steps]


@nnx.jit
def dense_chain(net):
    """The dictionaries of a net as matrices, its step sizes and its thresholds."""
    steps = [layer.step() for layer in net.layers]
    Ds = [step.D.conv for step in steps]
    thetas = [D.spread(-layer.bias[...]) for D, layer in zip(Ds, net.layers)]
    return [*map(ur.dictionaries.dense, Ds)], [step.gamma for step in steps], thetas


def chain(net):
    """The same on the host."""
    return [[np.asarray(part) for part in parts] for parts in dense_chain(net)]


@jax.jit
def norm_in_30_steps(D):
    return jax.value_and_grad(lambda D: norm_from_below(D, 30))(D)


def biased(v, theta):
    return np.maximum(v - theta, 0)


# The dictionary of a batch


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "side, kernel, stride, padding",
    [((9, 8), 4, 2, 0), ((7, 9), 3, 2, 1), ((6, 6), 2, 1, 0), ((4, 4), 4, 1, 0), ((8, 7), 4, 3, 2)],
)
def test_batches_of_pictures_meet_the_atoms_of_a_convolution(side, kernel, stride, padding):
    D = ImageConv(normal(kernel, kernel, 2, 3), side, stride, padding)
    r, x = normal(2, *side, 2, seed=1), normal(2, *D.positions, 3, seed=2)
    codes, found = jax.jit(lambda D: (r @ D, D @ x))(D)
    framed = np.pad(r, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    A = matrix(D.conv)
    np.testing.assert_allclose(flat(codes), flat(framed) @ A, atol=ROUNDING)
    grid = (flat(x) @ A.T).reshape(2, *D.conv.signal_grid)
    inside = grid[:, :, padding : padding + side[0], padding : padding + side[1]]
    np.testing.assert_allclose(found, inside.transpose(0, 2, 3, 1), atol=ROUNDING)


@pytest.mark.few(1)
@pytest.mark.parametrize("wide, narrow", [("float32", "float16"), ("float64", "float32")])
def test_batches_and_filters_meet_in_the_wider_dtype(wide, narrow):
    """Both products and all four gradients, whichever of the two is the wider one."""
    kernel, r = normal(3, 3, 2, 3), normal(2, 5, 5, 2, seed=1)
    x = normal(2, 3, 3, 3, seed=2)

    def both(kernel, r, x):
        D = ImageConv(kernel, (5, 5))
        return jnp.sum((r @ D) ** 2) + jnp.sum((D @ x) ** 2)

    gradients = jax.jit(jax.grad(both, (0, 1, 2)))
    for dtypes in ((narrow, wide, wide), (wide, narrow, narrow)):
        given = [a.astype(t) for a, t in zip((kernel, r, x), dtypes)]
        found, exact = gradients(*given), gradients(*(a.astype("float64") for a in given))
        for mine, theirs, dtype in zip(found, exact, dtypes):
            assert mine.dtype == dtype
            # Sums of some hundred products in the wider dtype, rounded to that of the operand.
            atol = 1e4 * float(jnp.finfo(wide).eps) + 4 * float(jnp.finfo(dtype).eps)
            mine, theirs = np.asarray(mine, float), np.asarray(theirs)
            np.testing.assert_allclose(mine, theirs, atol=atol * np.abs(theirs).max())


def test_accelerators_get_the_transpose_of_the_convolution(monkeypatch):
    D = ImageConv(normal(3, 3, 2, 3), (7, 9), 2, 1)
    x = normal(2, *D.positions, 3)
    found = jax.jit(lambda D, x: D @ x)(D, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(jax.jit(lambda D, x: D @ x)(D, x), found, atol=ROUNDING)


# The methods


@pytest.mark.slow
def test_without_unfoldings_they_are_the_plain_cnn_bit_for_bit():
    y = pictures()
    net = make("cnn")
    assert net.unfoldings == 0
    logits = run(net, y)
    for method in ("ml-ista", "ml-fista", "layered-bp", "all-free"):
        np.testing.assert_array_equal(run(make(method, 0), y), logits)

    @nnx.jit
    def plain(net, x):
        for layer, (_, _, stride, _) in zip(net.layers, FILTERS):
            layout = ("NHWC", "HWIO", "NHWC")
            x = lax.conv_general_dilated(
                x, layer.kernel[...], (stride, stride), "VALID", dimension_numbers=layout
            )
            x = jnp.maximum(layer.c[...] * x + layer.bias[...][None, None, None], 0)
        return net.classifier(x), x

    expected, x = plain(net, y)
    np.testing.assert_allclose(logits, expected, atol=ROUNDING)
    assert 0.1 < np.mean(np.asarray(x) > 0) < 0.9


def loop(gradient, theta, steps, momentum=False):
    """Proximal gradient steps from zero for nonnegative codes."""
    x = z = np.zeros(len(theta))
    t = 1.0
    for _ in range(steps):
        last, x = x, biased(z - gradient(z), theta)
        t, t_last = (1 + np.sqrt(1 + 4 * t**2)) / 2, t
        z = x + (t_last - 1) / t * (x - last) if momentum else x
    return x


def test_ml_ista_is_the_pursuit_of_its_dictionaries():
    net, y = make("ml-ista", 2), pictures(2)
    Ds, gammas, thetas = chain(net)

    @jax.jit
    def pursued(Y):
        def rectified(v, theta):
            return ur.activations.relu(v - theta)

        def step(y, x):
            return ur.pursuit.ml_ista_step(Ds, y, x, gammas, thetas, rectified)

        def one(y):
            xs = step(y, jnp.zeros(len(thetas[-1])))
            return lax.fori_loop(0, net.unfoldings, lambda _, xs: step(y, xs[-1]), xs)

        return jax.vmap(one)(Y)

    for x, expected in zip(pursue(net, y), pursued(flat(y))):
        np.testing.assert_allclose(flat(x), expected, atol=ROUNDING)


def test_momentum_is_that_of_fista():
    net, y = make("ml-fista", 3), pictures(2)
    Ds, gammas, thetas = chain(net)
    found = flat(pursue(net, y)[-1])
    for x, signal in zip(found, flat(y)):

        def gradient(z, signal=signal):
            below = Ds[1] @ z
            x_1 = biased_step(Ds[0], signal, below, gammas[0], thetas[0])
            return gammas[1] * Ds[1].T @ (below - x_1)

        expected = loop(gradient, thetas[1], net.unfoldings + 1, momentum=True)
        np.testing.assert_allclose(x, expected, atol=ROUNDING)


def biased_step(D, y, x, gamma, theta):
    return biased(x + gamma * D.T @ (y - D @ x), theta)


@pytest.mark.few(1)
@pytest.mark.parametrize("method", ["ml-fista", "ml-ista", "layered-bp"])
def test_one_layer_is_ista_or_fista_for_nonnegative_codes(method):
    net, y = make(method, 4, filters=FILTERS[:1]), pictures(2)
    (D,), (gamma,), (theta,) = chain(net)
    for x, r in zip(flat(pursue(net, y)[0]), flat(y)):
        expected = loop(
            lambda z, r=r: gamma * D.T @ (D @ z - r), theta, 5, momentum=method == "ml-fista"
        )
        np.testing.assert_allclose(x, expected, atol=ROUNDING)


def test_layered_pursuits_solve_one_layer_after_the_other():
    net, y = make("layered-bp", 4), pictures(2)
    found = pursue(net, y)
    for n, before in enumerate(flat(y)):
        for j, (D, gamma, theta) in enumerate(zip(*chain(net))):
            before = loop(lambda z, D=D, r=before, g=gamma: g * D.T @ (D @ z - r), theta, 5)
            np.testing.assert_allclose(flat(found[j])[n], before, atol=ROUNDING)


def test_ml_lista_has_analysis_filters_of_its_own():
    net, y = make("ml-lista", 2), pictures(2)
    found = pursue(net, y)
    Ds, _, thetas = chain(net)
    Bs = [np.asarray(matrix(layer.step().B.conv)) for layer in net.layers]
    for n, signal in enumerate(flat(y)):
        x_2 = np.zeros(len(thetas[1]))
        for _ in range(net.unfoldings + 1):
            x_1 = Ds[1] @ x_2
            new_1 = biased(x_1 - Ds[0].T @ (Ds[0] @ x_1) + Bs[0].T @ signal, thetas[0])
            x_2 = biased(x_2 - Ds[1].T @ x_1 + Bs[1].T @ new_1, thetas[1])
        np.testing.assert_allclose(flat(found[0])[n], new_1, atol=ROUNDING)
        np.testing.assert_allclose(flat(found[1])[n], x_2, atol=ROUNDING)


def test_free_steps_have_params_of_their_own_at_every_time():
    """Step t of ML-ISTA has the filters, step sizes and biases of time t."""
    rng, rho = np.random.default_rng(0), jax.nn.relu
    y, sizes = rng.normal(size=(3, 4)), ((4, 6), (6, 5))

    class Products(NamedTuple):
        """A matrix in place of a convolution: x @ D = D'x, and D @ x."""

        D: jax.Array
        __array_ufunc__ = None

        def __matmul__(self, x):
            return x @ self.D.T

        def __rmatmul__(self, y):
            return y @ self.D

    Ds = [rng.normal(size=(3, *size)) for size in sizes]
    gammas, thetas = rng.random((2, 3)), [rng.normal(size=(3, 1, size[1])) for size in sizes]
    steps = [
        _ml_csc.Step(Products(D), gamma, theta, Products(D))
        for D, gamma, theta in zip(Ds, gammas, thetas)
    ]
    found = jax.jit(lambda steps, y: _ml_csc.all_free(steps, y, 2, rho))(steps, y)
    x_2 = np.zeros((3, 5))
    for t in range(3):
        (D, E), (g, h), (a, b) = ([of[t] for of in part] for part in (Ds, gammas, thetas))
        below = x_2 @ E.T
        x_1 = biased(below + g * (y - below @ D.T) @ D, a)
        x_2 = biased(x_2 + h * (x_1 - below) @ E, b)
    np.testing.assert_allclose(found[0], x_1, atol=ROUNDING)
    np.testing.assert_allclose(found[1], x_2, atol=ROUNDING)


@pytest.mark.slow
def test_free_steps_that_are_equal_are_those_of_ml_ista():
    y = pictures(2)
    tied, free = pursue(make("ml-ista"), y), pursue(make("all-free"), y)
    for x, expected in zip(free, tied):
        np.testing.assert_allclose(x, expected, atol=ROUNDING)


def test_the_codes_of_the_last_step_can_be_tapped():
    net, y = make("ml-ista", 2), pictures(2)
    assert net.early == ("codes.0", "codes.1")
    _, features = nnx.jit(lambda net, y: ur.vision.models.tap(net, *net.early)(y))(net, y)
    for x, name in zip(pursue(net, y), net.early):
        np.testing.assert_allclose(features[name], x, atol=ROUNDING)


# Training


def loss(params, rest, y, labels):
    net = nnx.merge(*rest, params)
    return optax.softmax_cross_entropy_with_integer_labels(net(y), labels).mean()


def split(net):
    graph, params = nnx.split(net)
    return params, (graph,)


@pytest.mark.slow
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
    ahead, behind = (value(moved(params, step, direction)) for step in (h, -h))
    np.testing.assert_allclose((ahead - behind) / (2 * h), slope, rtol=1e-6)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient))


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


@pytest.mark.few(1)
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


def test_the_network_for_cifar10_has_the_parameters_of_the_paper():
    net = abstract(MLCSC.cifar10, "ml-ista", 6)
    filters = 16 * (32 * 3 + 64 * 32 + 128 * 64)
    head = 9 * (256 * 128 + 512 * 256 + 512 * 512) + 256 + 512 + 512
    assert count(net) == filters + (32 + 64 + 128) + 3 + head + 512 * 10 + 10 == 4_005_869
    assert [layer.shape for layer in net.layers] == [(16, 16, 32), (8, 8, 64), (4, 4, 128)]


@pytest.mark.slow
def test_the_networks_of_the_paper_are_plain_cnns_without_unfoldings():
    net, y = MLCSC.cifar10("cnn", rngs=nnx.Rngs(0)), pictures(2, (32, 32, 3))

    def convolved(x, kernel, stride, c=1.0):
        layout = ("NHWC", "HWIO", "NHWC")
        pads = [(1, 1), (1, 1)]
        z = lax.conv_general_dilated(x, kernel, (stride,) * 2, pads, dimension_numbers=layout)
        return jnp.maximum(c * z, 0)  # the biases are zero at the start

    @nnx.jit
    def plain(net, x):
        for layer in net.layers:
            x = convolved(x, layer.kernel[...], 2)
        for j, conv in enumerate(net.classifier.convs):
            x = convolved(x, conv.kernel[...], 1)
            if j:
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return net.classifier.dense(x.reshape(2, -1))

    logits = plain(net, y)
    np.testing.assert_allclose(run(net, y), logits, rtol=1e-9)
    assert np.std(logits) > 0


def test_the_first_filters_are_small_and_the_same_for_all_methods():
    nets = [MLCSC(PICTURE, FILTERS, method, rngs=nnx.Rngs(3)) for method in METHODS[:-1]]
    for j, layer in enumerate(nets[0].layers):
        draws = np.asarray(layer.kernel[...]) * np.sqrt(np.prod(layer.kernel.shape[:-1])) / 0.1
        # 128 or 80 draws: four standard errors.
        assert abs(draws.std() - 1) < 4 / np.sqrt(2 * draws.size)
        assert np.all(layer.c[...] == 1) and np.all(layer.bias[...] == 0)
        for net in nets[1:]:
            np.testing.assert_array_equal(net.layers[j].kernel[...], layer.kernel[...])
            np.testing.assert_array_equal(
                net.classifier.dense.kernel[...], nets[0].classifier.dense.kernel[...]
            )


# Steps of a proximal gradient method


def norms_squared(net):
    return [np.linalg.norm(D, 2) ** 2 for D in chain(net)[0]]


def test_violations_are_counted_against_the_norms_of_the_matrices():
    net = make("ml-ista")
    fill(net.layers[0].c, 2.0 / norms_squared(net)[0])
    fill(net.layers[1].c, 0.5 / norms_squared(net)[1])
    found = net.violations()
    positive = [int((np.asarray(layer.bias[...]) > 0).sum()) for layer in net.layers]
    assert found.thresholds == tuple(positive) and all(positive)
    np.testing.assert_allclose(found.steps, (2.0, 0.5), rtol=1e-6)
    assert found.layers == 2
    fill(net.layers[1].bias, -0.1)
    assert net.violations().layers == 1
    fill(net.layers[1].c, -0.1)
    assert net.violations().layers == 2


@pytest.mark.parametrize(
    "shape, filters, signs",
    [
        ((14, 14, 2), Filters(3, 3), ((1, -1, 0), (0, 0, 0.1))),
        ((6, 6, 1), Filters(2, 3), ((1, -1),)),
        ((4, 4, 1), Filters(1, 4), ((1,),)),
        ((4, 4, 1), Filters(1, 3), ((0,),)),
    ],
)
def test_violations_see_filters_that_are_blind_to_a_code_of_ones(shape, filters, signs):
    net = make("ml-ista", shape=shape, filters=[filters])
    side = filters.kernel
    picture = np.random.default_rng(0).normal(size=(side, side, 1, 1))
    fill(net.layers[0].kernel, picture * np.array(signs))
    fill(net.layers[0].c, 1)
    found = net.violations()
    np.testing.assert_allclose(found.steps, norms_squared(net), rtol=1e-6)
    assert found.layers == (not 0 < found.steps[0] <= 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ml-ista", "cnn", "ml-fista", "layered-bp"])
def test_constrained_steps_are_proximal_whatever_the_params(method):
    net = make(method, constrained=True)
    sizes = norms_squared(net)
    for layer, L in zip(net.layers, sizes):
        fill(layer.c, -3.0 / L)
    gammas, thetas = steps_of(net)
    for layer, L, gamma, theta in zip(net.layers, sizes, gammas, thetas):
        assert 0.9 < gamma * L <= 1
        np.testing.assert_array_equal(theta.reshape(-1), np.abs(layer.bias[...]))
    assert net.violations().layers == 0
    fill(net.layers[0].c, 0.01)
    assert steps_of(net)[0][0] == 0.01


def test_a_step_that_is_too_long_becomes_the_longest_proximal_one():
    net = make("ml-ista", filters=FILTERS[:1], constrained=True)
    fill(net.layers[0].c, 1e6)
    (gamma,), _ = steps_of(net)
    assert 0.9 < gamma * norms_squared(net)[0] <= 1


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e22])
def test_constrained_steps_of_filters_at_the_ends_of_the_range(scale):
    net = make("ml-ista", filters=FILTERS[:1], constrained=True)
    fill(net.layers[0].kernel, scale * np.asarray(net.layers[0].kernel[...]))
    (gamma,), _ = steps_of(net)
    assert np.isfinite(gamma) and (gamma == net.layers[0].c[...]) == (scale < 1)
    D = ur.dictionaries.Conv(jnp.asarray(np.full((1, 1, 2, 2), scale, np.float32)), (4, 4), 2)
    norm, gradient = norm_in_30_steps(D)
    np.testing.assert_allclose(norm, 2 * scale, rtol=1e-6)
    assert np.isfinite(gradient.filters).all()


@pytest.mark.parametrize("rest", [0.5, 0.93, 0.97, 0.999])
def test_constrained_steps_know_a_norm_that_stands_alone(rest):
    """One singular value, of 1, and 255 whose squares are the rest; the margin is 5 %."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(n, 256)))[0] for n in (512, 256))
    filters = (V * np.sqrt([1, *[rest] * 255])) @ U.T
    D = ur.dictionaries.Conv(jnp.asarray(filters.reshape(256, 32, 4, 4)), (4, 4))
    assert 0.99 < float(norm_in_30_steps(D)[0]) ** 2 < 1 + 1e-12


def test_constrained_steps_pass_on_the_gradient_of_the_norm():
    D = ur.dictionaries.Conv(jnp.asarray(normal(2, 1, 3, 3)), (5, 5), 2)
    direction = jax.tree.map(lambda leaf: normal(*leaf.shape, seed=3), D)
    gradient = jax.jit(jax.grad(lambda D: norm_from_below(D, 200)))(D)
    h = 1e-5  # an error of h^2 + eps / h
    ahead, behind = (np.linalg.norm(matrix(moved(D, step, direction)), 2) for step in (h, -h))
    slope = np.vdot(gradient.filters, direction.filters)
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("build", [MLCSC.mnist, MLCSC.cifar10])
def test_the_margin_covers_what_power_iteration_misses_on_random_filters(build):
    for seed in range(2):
        net = build("cnn", constrained=True, rngs=nnx.Rngs(seed))
        for layer in net.layers:
            layer.c[...] = jnp.asarray(1e6)
        assert max(net.violations().steps) <= 1


def test_products_take_numpy_lists_and_integers():
    D = ImageConv(np.ones((3, 3, 1, 2), "float32"), (5, 5))
    images = np.ones((1, 5, 5, 1), int)
    assert (images @ D).shape == (1, 3, 3, 2)
    for kernel in (np.ones((3, 3, 1, 2), int), np.ones((3, 3, 1, 2)).tolist()):
        np.testing.assert_array_equal(images @ ImageConv(kernel, (5, 5)), images @ D)


# Bad input


IMAGES = r"images have shape \(1, 9, 9, 2\); .*\(N, 7, 9, 2\)"
CODES = r"codes have shape \(1, 4, 4, 4\); .*\(N, 4, 5, 4\)"
KERNEL = r"ImageConv: the kernel has shape .*; expected"
NETS = {
    "unknown method 'ista'; expected one of cnn, ml-ista": dict(method="ista"),
    "unknown method .'cnn'.; expected one of cnn, ml-ista": dict(method=["cnn"]),
    "ml-lista cannot be constrained; expected": dict(method="ml-lista", constrained=True),
    "no filters": dict(filters=[]),
    "layer 1 has a kernel of 10 on pictures of 9 x 8": dict(filters=[Filters(4, 10)]),
    "layer 2 has a kernel of 8": dict(filters=[Filters(4, 3), Filters(4, 8)]),
    "stride of layer 1 must be at least 1": dict(filters=[Filters(4, 3, 0)]),
    r"shape is \(9, 8\); expected \(H, W, C\)": dict(shape=(9, 8)),
    "C must be at least 1": dict(shape=(9, 8, 0)),
}


def net_of(**change):
    options = dict(shape=PICTURE, filters=FILTERS, method="ml-ista", unfoldings=2) | change
    return MLCSC(**options, rngs=nnx.Rngs(0))


def operator():
    return ImageConv(normal(3, 3, 2, 4), (7, 9), 2, 1)


test_what_does_not_fit_is_refused = refusals(
    {
        name: Fault(call, error, message)
        for name, call, error, message in [
            ("images", lambda: normal(1, 9, 9, 2) @ operator(), ValueError, IMAGES),
            ("codes", lambda: operator() @ normal(1, 4, 4, 4), ValueError, CODES),
            ("a code", lambda: operator() @ [1.0], ValueError, r"codes have shape \(1,\)"),
            ("oblong", lambda: ImageConv(np.ones((6, 6, 1, 2)), (4, 4)), ValueError, KERNEL),
            ("long", lambda: ImageConv(np.ones((3, 2, 1, 2)), (5, 5)), ValueError, KERNEL),
            ("of 3 axes", lambda: ImageConv(np.ones((3, 3, 2)), (5, 5)), ValueError, KERNEL),
            *(
                (message, partial(net_of, **change), ValueError, message)
                for message, change in NETS.items()
            ),
            ("pairs", lambda: net_of(filters=[(4, 3)]), TypeError, r"layer 1 are \(4, 3\); exp"),
            ("no module", lambda: net_of(classifier=None), TypeError, "make a module, got None"),
            ("one picture", lambda: make("cnn")(normal(9, 8, 2)), ValueError, r"expected \(N, "),
            ("turned", lambda: make("cnn")(normal(1, 8, 9, 2)), ValueError, r"expected \(N, "),
        ]
    }
)
