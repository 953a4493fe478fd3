"""The convolutional networks of Lemma 14: their codes are those of the layers, and their sizes."""

import itertools
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import rows

from unrolled import activations, analytic, dictionaries, layers, networks
from unrolled.layers import (
    Fixed,
    Matrices,
    StepAndThreshold,
    Threshold,
    Unrolled,
    Weights,
    WeightsAndThreshold,
)
from unrolled.realize import CnnSize, cnn, cnn_size, nnx_module
from unrolled.realize._cnn_layers import (
    Architecture,
    Bound,
    MatrixStep,
    Update,
    identity_from,
    next_bound,
    polyphase,
    tree_depth,
)

EPS = np.finfo(float).eps
FORMS = ("compact", "positive", "literal")
assert_close = partial(chex.assert_trees_all_close, rtol=0)
every_form = pytest.mark.parametrize("form", FORMS)


def rounding(realization, n, depth, eps=EPS):
    """The rounding of n-term sums of numbers up to 1 + offset, one at every step.

    Two computations are compared, the absolute row sums of the weights are at most 4, and later
    steps, with norm(T) near 1, hardly amplify the errors.
    """
    return 8 * eps * n * (depth + 1) * (1 + realization.offset)


def dictionary(m, d, seed=0):
    """Unit columns, drawn by numpy, which compiles nothing for a new shape."""
    D = np.random.default_rng([seed, m, d]).normal(size=(m, d))
    return D / np.linalg.norm(D, axis=0)


def tied(D, K, seed=0):
    """W near D / norm(D, 2)^2, so that I - W'D hardly expands; about half of the entries pass."""
    rng = np.random.default_rng([seed, K])
    W = D / np.linalg.norm(D, 2) ** 2 * rng.uniform(0.9, 1.1, D.shape)
    return Unrolled(Weights(W), Threshold(rng.uniform(0.01, 0.05, K)))


def untied(D, K, seed=0):
    """Different weights at every step, and one threshold per atom."""
    rng = np.random.default_rng([seed, K])
    W = D / np.linalg.norm(D, 2) ** 2 * rng.uniform(0.9, 1.1, (K, *D.shape))
    return Unrolled(None, WeightsAndThreshold(W, rng.uniform(0.01, 0.05, (K, D.shape[1]))))


def signal(m, seed=0):
    """A signal with max abs(y) = 1, attained by a negative entry."""
    y = np.random.default_rng([seed, m]).uniform(-1, 1, m)
    y[0] = -1
    return y


def relu(u):
    return np.maximum(u, 0)


def on_numpy(rho):
    """An activation of numpy arrays of any shape, padded to one shape that is compiled once."""

    def apply(u):
        padded = np.zeros(256)
        padded[: u.size] = u.ravel()
        return np.asarray(rho(jnp.asarray(padded)))[: u.size].reshape(u.shape)

    return apply


def iterate(D, params, y, rho=relu):
    """LISTA-CP in numpy."""
    x = np.zeros(D.shape[1])
    for k in range(len(params.steps.theta)):
        W = params.steps.W[k] if params.shared is None else params.shared.W
        theta = params.steps.theta[k]
        u = x + W.T @ (y - D @ x)
        x = rho(u - theta) - rho(-u - theta)
    return x


def run_by_numpy(network, y, rho=relu):
    """The layers in numpy: window by window, with zeros past the end and rho unless linear."""
    hidden = h = np.asarray(y)[None]
    codes = []
    for layer in network.layers:
        filters, bias, t = np.asarray(layer.filters), np.asarray(layer.bias), layer.stride
        h = h.reshape(1, -1) if layer.flat else h
        count, s = -(-h.shape[1] // t), filters.shape[2]
        padded = np.pad(h, ((0, 0), (0, count * t + s)))
        windows = np.stack([padded[:, i * t : i * t + s] for i in range(count)], -1)
        h = np.tensordot(filters, windows, ((1, 2), (0, 1))) + bias[:, None]
        h = h if layer.activation is None else rho(h)
        hidden = hidden if layer.readout else h
        if layer.activation is None:
            codes.append(h[:, 0])
            h = hidden
    return codes


# The numbers include powers of 2, 3, 4 and 5.
SHAPES = [(1, 1), (1, 4), (3, 1), (2, 3), (4, 7), (9, 5), (8, 8), (16, 3), (25, 12)]


@pytest.mark.slow
@every_form
@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
def test_the_layers_as_records_compute_the_codes(kernel_size, form):
    for (m, d), K, params_of in zip(
        SHAPES, (5, 1, 2, 0, 3, 4, 1, 5, 2), itertools.cycle([tied, untied])
    ):
        D, y = dictionary(m, d), signal(m)
        params, layer = params_of(D, K), layers.lista_cp(K)
        network = cnn(layer, params, D, kernel_size=kernel_size, signal_bound=1.0, form=form)
        (ours,), expected = run_by_numpy(network, y), iterate(D, params, y)
        assert ours.shape == (d,) and (expected.any() or not K)
        assert_close(ours, expected, atol=min(1e-12, rounding(network, 2 * d + m, K)))
        assert len(network.layers) == network.depth
        assert CnnSize(network.depth, network.n_weights) == cnn_size(
            m, d, K, kernel_size=kernel_size, form=form
        )


@pytest.mark.few(1)
@every_form
def test_apply_gives_the_codes_of_the_layer(form):
    """Eagerly and compiled, for one signal and a batch, with negative entries (C-9)."""
    D, Y = dictionary(6, 10), np.stack([signal(6, seed) for seed in range(4)])
    layer, params = layers.lista_cp(5, tied=False), untied(D, 5)
    network = cnn(layer, params, D, kernel_size=3, signal_bound=1.0, form=form)
    expected = jax.jit(jax.vmap(layer.apply, (None, None, 0)))(params, D, Y)
    close = min(1e-12, rounding(network, 26, 5))
    assert (np.asarray(expected) < -0.01).any() and (np.asarray(expected) == 0).any()
    assert_close(network.apply(Y[0]), expected[0], atol=close)
    assert_close(jax.jit(network.apply)(Y[0]), expected[0], atol=close)
    assert_close(jax.jit(jax.vmap(network.run, (None, 0)))(network.layers, Y), expected, atol=close)
    assert network.apply(Y[0]).dtype == np.float64


@every_form
def test_only_layers_that_emit_a_code_are_linear(form):
    """Definition 5 ends every layer with a ReLU, which would remove the negative entries."""
    D = dictionary(6, 10)
    for kernel_size, stride in ((3, 3), (5, 2)):
        sizes = dict(kernel_size=kernel_size, stride=stride, form=form)
        network = cnn(layers.lista_cp(2), tied(D, 2), D, signal_bound=1.0, **sizes)
        assert all(one.activation == activations.relu for one in network.layers[:-1])
        assert network.layers[-1].activation is None
        assert all(
            one.filters.shape[2] == kernel_size and one.stride == stride for one in network.layers
        )
        (x,) = run_by_numpy(network, signal(6))
        assert_close(x, iterate(D, tied(D, 2), signal(6)), atol=rounding(network, 26, 2))
        assert cnn_size(6, 10, 2, **sizes) == CnnSize(network.depth, network.n_weights)


@every_form
def test_alista(form):
    """With one step size for all atoms and with one per atom."""
    D, y, K = dictionary(6, 10), signal(6), 3
    W = tied(D, K).shared.W
    for gamma in (np.array([1.2, 0.7, 0.9]), np.random.default_rng(1).uniform(0.7, 1.2, (K, 10))):
        params = Unrolled(Fixed(W), StepAndThreshold(gamma, np.array([0.05, 0.02, 0.01])))
        network = cnn(layers.alista(K), params, D, kernel_size=4, signal_bound=1.0, form=form)
        assert_close(
            run_by_numpy(network, y)[0],
            layers.alista(K).apply(params, D, y),
            atol=rounding(network, 26, K),
        )


@pytest.mark.slow
def test_params_from_theory_and_as_a_tuple_of_steps():
    D = dictionaries.identity_hadamard(16)
    params = analytic.lista_cp(D, depth=5, sparsity=2, bound=1.0)
    y = np.asarray(D)[:, [3, 20]] @ [1.0, -0.5]
    expected = layers.lista_cp(5).apply(params, D, y)
    for form in FORMS:
        for some in (params, layers.unstack(params)):
            network = cnn(layers.lista_cp(5), some, D, kernel_size=2, signal_bound=1.3, form=form)
            # norm(I - W'D, 2) is 2 here: five steps may amplify by 2^5.
            assert_close(run_by_numpy(network, y)[0], expected, atol=32 * rounding(network, 80, 5))


def chain(depths, shapes=((6, 8), (8, 11)), activation=activations.relu):
    network = networks.dsc([layers.lista_cp(K, activation=activation) for K in depths])
    Ds = tuple(dictionary(*shape) for shape in shapes)
    return network, tuple(tied(D, K) for D, K in zip(Ds, depths)), Ds


@every_form
@pytest.mark.parametrize("depths", [(2, 3), (0, 2), (2, 0), (0, 0), (1, 2, 1)])
def test_a_chain_gives_every_code(depths, form):
    shapes = ((6, 8), (8, 11), (11, 4))[: len(depths)]
    network, params, Ds = chain(depths, shapes)
    realized = cnn(network, params, Ds, kernel_size=3, signal_bound=1.0, form=form)
    y = expected = signal(6)
    ours = run_by_numpy(realized, y)
    assert [len(x) for x in ours] == [d for _, d in shapes]
    for x, D, p in zip(ours, Ds, params):
        expected = iterate(D, p, expected)
        assert_close(x, expected, atol=min(1e-12, rounding(realized, 30, sum(depths))))
    size = cnn_size(6, tuple(d for _, d in shapes), depths, kernel_size=3, form=form)
    assert size == CnnSize(realized.depth, realized.n_weights)


def test_a_chain_runs_as_its_network():
    network, params, Ds = chain((2, 3))
    realized = cnn(network, list(params), list(Ds), kernel_size=3, signal_bound=1.0)
    codes = realized.apply(signal(6))
    assert type(codes) is tuple
    for ours, expected in zip(codes, network.apply(params, Ds, signal(6)), strict=True):
        assert np.asarray(expected).any()
        assert_close(ours, expected, atol=rounding(realized, 38, 5))


def test_deeper_blocks_need_a_bound_only_in_the_literal_form():
    network, params, Ds = chain((4, 4))
    offsets = {
        form: cnn(network, params, Ds, kernel_size=3, signal_bound=1.0, form=form).offset
        for form in FORMS
    }
    assert offsets["compact"] == offsets["positive"] == 1.0 < offsets["literal"]


@every_form
def test_signals_out_of_range_are_refused(form):
    network, params, Ds = chain((2, 1))
    realized = cnn(network, params, Ds, kernel_size=3, signal_bound=1.0, form=form)
    inside, outside, nan = signal(6), -1.5 * signal(6), np.full(6, np.nan)
    assert [bool(realized.in_range(y)) for y in (inside, outside, nan)] == [True, False, False]
    batch = np.stack([inside, outside, nan])
    assert jax.jit(jax.vmap(realized.in_range))(batch).tolist() == [True, False, False]
    for y in (outside, nan):
        with pytest.raises(ValueError, match="signal_bound = 1"):
            realized.apply(y)
    with pytest.raises(ValueError, match="signal_bound = 1"):
        realized.run(realized.layers, outside)
    # Under jit nothing is raised: the state y + M is cut at 0, and the codes are wrong.
    below = 3 * inside
    assert not np.allclose(jax.jit(realized.apply)(below)[1], network.apply(params, Ds, below)[1])


def test_apply_takes_one_signal():
    D = dictionary(6, 10)
    network = cnn(layers.lista_cp(1), tied(D, 1), D, kernel_size=2, signal_bound=1.0)
    for y in (np.zeros(10), np.zeros((2, 6)), np.zeros(())):
        with pytest.raises(
            ValueError, match=r"expected \(6,\), one signal per call: try jax\.vmap"
        ):
            network.apply(y)


def test_the_zero_bound_admits_the_zero_signal():
    D = dictionary(6, 10)
    network = cnn(layers.lista_cp(2), tied(D, 2), D, kernel_size=2, signal_bound=0)
    np.testing.assert_array_equal(network.apply(np.zeros(6)), np.zeros(10))


ACTIVATIONS = {
    "elu": activations.elu(0.5),
    "celu": activations.celu(0.5),
    "leaky_relu": activations.leaky_relu(0.1),
    "elu composed": activations.compose(activations.elu(0.9), 2),
    "softplus scaled": activations.scale(activations.softplus, 20.0),
    "silu scaled": activations.scale(activations.silu, 50.0),
    "gelu scaled": activations.scale(activations.gelu, 10.0),
    "mish": activations.mish,
    "hard_swish": activations.hard_swish,
    "selu as an elu": activations.scale(activations.elu(1.6732632423543772), 10.0),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_other_activations_shrink_as_the_layer_does(name):
    """The state is carried where rho(x) = x, exactly or to rounding."""
    rho, y = ACTIVATIONS[name], signal(6)
    network, params, Ds = chain((2, 2), activation=rho)
    first = iterate(Ds[0], params[0], y, on_numpy(rho))
    expected = first, iterate(Ds[1], params[1], first, on_numpy(rho))
    assert np.abs(first - iterate(Ds[0], params[0], y)).max() > 1e-4  # it is not ReLU
    for form in FORMS:
        realized = cnn(
            network, params, Ds, kernel_size=3, signal_bound=1.0, form=form, activation=rho
        )
        for ours, x in zip(run_by_numpy(realized, y, on_numpy(rho)), expected, strict=True):
            assert_close(ours, x, atol=min(1e-11, rounding(realized, 38, 4)))
        if rho.identity_on_positives:
            assert_close(ours, x, atol=1e-12)
            if math.isfinite(rho.relu_gap) and form != "literal":
                assert realized.offset == max(1.0, rho.relu_gap)


def test_a_soft_network_runs_as_its_layer():
    """It takes the activation of the layer; passing that too changes nothing."""
    D, rho = dictionary(6, 10), ACTIVATIONS["softplus scaled"]
    params, layer = tied(D, 3), layers.lista_cp(3, activation=rho)
    options = dict(kernel_size=3, signal_bound=1.0, form="positive")
    network = cnn(layer, params, D, **options)
    assert network.layers[0].activation == rho
    given = cnn(layer, params, D, activation=rho, **options)
    assert jax.tree.all(jax.tree.map(np.array_equal, network.layers, given.layers))
    expected = layer.apply(params, D, signal(6))
    assert_close(
        jax.jit(network.run)(network.layers, signal(6)), expected, atol=rounding(network, 26, 3)
    )


def test_identity_from_is_where_the_activation_is_the_identity_to_rounding():
    for name, rho in ACTIVATIONS.items():
        for dtype in (np.float32, np.float64):
            c = identity_from(rho, dtype, "test")
            x = c + np.geomspace(1e-3, 1e6, 500)
            off = np.abs(np.asarray(rho(jnp.asarray(x))) - x)
            # Twice the tolerance of the search, for the points between those that it tries.
            assert (off <= 16 * np.finfo(dtype).eps * x).all(), name
            assert (c == 0) is rho.identity_on_positives
    # x sigmoid(x) is nearly x (1 - exp(-x)), so that c is about -log(8 eps).
    for dtype, expected in ((np.float32, 13.9), (np.float64, 34.0)):
        assert identity_from(activations.silu, dtype, "test") == pytest.approx(expected, abs=0.2)


def test_a_compact_leaky_network_needs_no_bound_on_its_codes():
    """A single block carries only y + M."""
    D, rho = dictionary(6, 10), activations.leaky_relu(0.1)
    layer, params = layers.lista_cp(3, activation=rho), tied(D, 3)
    network = cnn(layer, params, D, kernel_size=3, signal_bound=1.0, activation=rho)
    assert network.offset == 1.0
    expected = layer.apply(params, D, signal(6))
    assert_close(network.apply(signal(6)), expected, atol=rounding(network, 26, 3))


@pytest.mark.slow
def test_float32():
    D, y = dictionary(12, 20), signal(12)
    layer, params = layers.lista_cp(5), tied(D, 5)
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (params, D, y))
    wide = jax.tree.map(lambda leaf: leaf.astype(float), narrow)
    expected = iterate(wide[1], wide[0], wide[2])
    for form in FORMS:
        network = cnn(layer, *narrow[:2], kernel_size=3, signal_bound=1.0, form=form)
        assert {leaf.dtype for leaf in jax.tree.leaves(network.layers)} == {np.dtype(np.float32)}
        (x,) = run_by_numpy(network, narrow[2])
        assert x.dtype == np.float32
        assert_close(
            np.asarray(x, float), expected, atol=rounding(network, 52, 5, np.finfo(np.float32).eps)
        )
    x = cnn(layer, *narrow[:2], kernel_size=3, signal_bound=1.0).apply(narrow[2])
    assert x.dtype == np.float32
    assert_close(
        np.asarray(x, float), expected, atol=rounding(network, 52, 5, np.finfo(np.float32).eps)
    )


@pytest.mark.slow
def test_a_wide_network_of_sixteen_steps():
    D, K = dictionary(256, 512).astype(np.float32), 16
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tied(D, K))
    network = cnn(layers.lista_cp(K), params, D, kernel_size=3, signal_bound=1.0, form="positive")
    y = signal(256).astype(np.float32)
    x = jax.jit(network.run)(network.layers, y)
    expected = iterate(*jax.tree.map(lambda leaf: leaf.astype(float), (D, params, y)))
    # Random errors in sums of n = 1280 terms add up like sqrt(n), not n.
    close = rounding(network, math.sqrt(1280), K, np.finfo(np.float32).eps)
    assert_close(x, expected, atol=close * np.abs(expected).max())
    # Tied steps share their filters, and so do all trees.
    distinct = {id(one.filters): one.filters.size for one in network.layers}
    assert sum(distinct.values()) < 0.2 * network.n_weights


@pytest.mark.slow
def test_an_nnx_module_of_a_realization_trains():
    from flax import nnx

    D = dictionary(3, 4)
    realized = cnn(layers.lista_cp(2), tied(D, 2), D, kernel_size=3, signal_bound=1.0)
    model, y = nnx_module(realized), jnp.asarray(signal(3))
    x = realized.apply(y)
    assert_close(nnx.jit(lambda model, y: model(y))(model, y), x, atol=rounding(realized, 11, 2))

    def loss(model):
        return jnp.sum((model(y) - x - 0.1) ** 2)

    gradient = nnx.grad(loss)(model)
    expected = jax.tree.leaves(
        jax.grad(lambda layers: jnp.sum((realized.run(layers, y) - x - 0.1) ** 2))(realized.layers)
    )
    assert all(np.asarray(g).any() for g in expected)
    sums = (
        sorted(float(jnp.sum(g)) for g in jax.tree.leaves(some)) for some in (gradient, expected)
    )
    np.testing.assert_allclose(*sums, rtol=1e-12, atol=1e-12)
    graph, state = nnx.split(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == realized.n_weights
    assert_close(nnx.merge(graph, state)(y), x, atol=rounding(realized, 11, 2))
    before = float(loss(model))
    nnx.Optimizer(model, optax.sgd(1e-3), wrt=nnx.Param).update(model, gradient)
    assert float(loss(model)) < 0.99 * before
    assert_close(realized.apply(y), x, atol=rounding(realized, 11, 2))  # its weights are unchanged
    with pytest.raises(ValueError, match="signal_bound"):
        model(2 * y)


def test_the_counts_of_the_specification():
    """For m = 6, d = 10 and K = 5."""
    expected = {
        ("positive", 3): (17, 3974),
        ("positive", 2): (28, 5872),
        ("literal", 3): (29, 6174),
        ("compact", 3): (7, 272 + 4 * 26 * (3 * 26 + 1) + 10 * (3 * 26 + 1)),
    }
    for (form, kernel_size), size in expected.items():
        assert cnn_size(6, 10, 5, kernel_size=kernel_size, form=form) == CnnSize(*size)


def test_depth_and_weights_have_the_orders_of_lemma_14():
    """Both lie between fixed multiples; the number of weights varies with q / s^L, by up to s."""
    for m, K, s in itertools.product((64, 128, 256, 512, 1024), (5, 10, 50), (2, 3)):
        d = 2 * m
        size = cnn_size(m, d, K, kernel_size=s, form="positive")
        assert 1.1 <= size.depth / (K * math.log(d + m, s)) <= 1.45
        assert 3.4 <= size.n_weights / (K * (d + m) ** 2) <= 9.4
        literal, compact = (
            cnn_size(m, d, K, kernel_size=s, form=form) for form in ("literal", "compact")
        )
        assert size.depth < literal.depth <= 2 * size.depth
        assert literal.n_weights <= 2 * size.n_weights
        assert compact.depth == tree_depth(m, s) + K
        assert compact.n_weights <= s * K * (2 * d + m + 1) ** 2 + s**2 * m**2
        n = 2 * d + m  # the bound of the specification
        assert size.n_weights <= K * (s + s**2 / (s**2 - 1)) * n**2 + 3 * K * s * n


def test_the_weights_of_a_chain_add_up():
    """C-16: at 1024 -> 2048 -> 4096 the printed product is 7 orders of magnitude above the sum."""
    K, pairs = 10, ((1024, 2048), (2048, 4096))
    for form in FORMS:
        size = cnn_size(1024, (2048, 4096), (K, K), kernel_size=3, form=form)
        total = sum((m + d) ** 2 for m, d in pairs)
        assert 3 <= size.n_weights / (K * total) <= 16
        assert size.n_weights < 1e-5 * K * math.prod((m + d) ** 2 for m, d in pairs)
        alone = sum(cnn_size(m, d, K, kernel_size=3, form=form).depth for m, d in pairs)
        assert size.depth <= alone


def test_a_chain_of_one_is_a_layer():
    for form in FORMS:
        options = dict(kernel_size=3, form=form)
        assert cnn_size(6, (10,), [5], **options) == cnn_size(6, 10, 5, **options)


def geometry(kernel_size, stride=None):
    stride, rho = stride or kernel_size, activations.relu
    return Architecture("positive", kernel_size, stride, rho, 0.0, False, np.dtype(float), {})


class Only:
    """Layers without a realization, for `run_by_numpy`."""

    def __init__(self, layers):
        self.layers = layers


@pytest.mark.few(2)
@pytest.mark.parametrize("kernel_size, stride", [(2, 2), (3, 3), (4, 4), (4, 3), (5, 2)])
def test_a_polyphase_tree_equals_its_dense_map(kernel_size, stride):
    rng = np.random.default_rng(0)
    for p, q in itertools.product((1, 3), (1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 27, 28)):
        A, b, h = rng.normal(size=(p, q)), rng.normal(size=p), rng.uniform(-2, 2, q)
        found = polyphase(A, b, -2.0, geometry(kernel_size, stride), readout=True)
        assert len(found) == tree_depth(q, stride)
        (out,) = run_by_numpy(Only(found), h)
        assert_close(out, A @ h + b, atol=16 * q * EPS * np.abs(A).sum())
        for one in found[:-1]:  # these only rearrange
            assert set(np.unique(one.filters)) <= {0.0, 1.0}
            np.testing.assert_array_equal(np.asarray(one.filters).sum((1, 2)), 1)


def test_nonnegative_entries_and_single_layers_get_no_offset():
    A, b = np.ones((2, 9)), np.arange(2.0)
    for low, kernel_size in ((0.0, 3), (-5.0, 9)):
        *rearranging, last = polyphase(A, b, low, geometry(kernel_size))
        assert not any(np.asarray(one.bias).any() for one in rearranging)
        np.testing.assert_array_equal(last.bias, b)
    first, last = polyphase(A, b, -5.0, geometry(3))
    np.testing.assert_array_equal(first.bias, np.full(3, 5.0))
    np.testing.assert_array_equal(last.bias, b - 45)


def test_depth_is_counted_in_integers():
    """Floating logarithms fail at 125 = 5^3, 216 = 6^3 and 16807 = 7^5."""
    depths = {(125, 5): 3, (126, 5): 4, (216, 6): 3, (16807, 7): 5}
    for (q, stride), L in (depths | {(1, 2): 1, (2, 2): 1, (3, 2): 2}).items():
        assert tree_depth(q, stride) == L


def test_the_literal_form_has_the_matrices_of_the_lemma():
    """If the kernel is as long as the state, the filters of a layer are its matrix (C-15)."""
    (m, d), K, M, n = (3, 4), 2, 1.5, 11
    D = dictionary(m, d)
    params = untied(D, K)
    network = cnn(layers.lista_cp(K), params, D, kernel_size=n, signal_bound=M, form="literal")
    maps = [np.asarray(one.filters)[:, 0] for one in network.layers]
    shapes = [(n, m), (d + m, n), (n, d + m), (d, n)]
    assert len(maps) == 4 and all(
        not np.any(A[:, q:]) and len(A) == p for A, (p, q) in zip(maps, shapes)
    )
    B_0, A, B_1, read = (A[:, :q] for A, (_, q) in zip(maps, shapes))
    T, identity = np.eye(d) - params.steps.W[1].T @ D, np.eye(m)
    assert_close(B_0, np.vstack([params.steps.W[0].T, -params.steps.W[0].T, identity]), atol=EPS)
    np.testing.assert_array_equal(
        A, np.block([[np.eye(d), -np.eye(d), np.zeros((d, m))], [np.zeros((m, 2 * d)), identity]])
    )
    W = params.steps.W[1].T
    assert_close(B_1, np.block([[T, W], [-T, -W], [np.zeros((m, d)), identity]]), atol=8 * EPS)
    np.testing.assert_array_equal(read, A[:d])
    theta = params.steps.theta
    assert_close(
        network.layers[0].bias, np.concatenate([-theta[0], -theta[0], np.full(m, M)]), atol=EPS
    )
    # v is lifted to pass its ReLU, by e + lift, and the next layer subtracts the lift.
    lift = np.asarray(network.layers[1].bias) + np.concatenate([np.zeros(d), np.full(m, M)])
    c_1 = np.concatenate([theta[1], theta[1], np.full(m, -M)])
    assert_close(network.layers[2].bias, -c_1 - B_1 @ lift, atol=8 * n * EPS * lift.max())
    np.testing.assert_array_equal(network.layers[3].bias, np.zeros(d))


def test_the_lift_of_the_literal_state_bounds_every_code():
    D, K = dictionary(6, 10), 6
    params = untied(D, K)
    # The corners of the cube, where codes are large.
    Y = np.sign(np.random.default_rng(3).normal(size=(200, 6)))
    for rho in (activations.relu, activations.elu(0.5), activations.leaky_relu(0.2)):
        layer = layers.lista_cp(K, activation=rho)
        network = cnn(
            layer, params, D, kernel_size=26, signal_bound=1.0, form="literal", activation=rho
        )
        codes = jax.jit(jax.vmap(layer.iterates, (None, None, 0)))(params, D, Y)
        largest = np.abs(np.asarray(codes[:, : K - 1])).max((0, 1))
        lift = np.asarray(network.layers[2 * K - 3].bias)[:10]
        assert (np.abs(np.asarray(codes[:, K - 2])).max(0) <= lift).all()
        assert largest.max() <= network.offset <= 50 * largest.max()


def test_bounds_on_codes_are_attained():
    """By u = theta = 1, where leaky ReLU gives 2 slope and ReLU gives 0, and by a rotation."""
    one, step = (
        Bound(np.ones(1), 1.0),
        MatrixStep(Update(np.zeros((1, 1)), np.ones((1, 1))), np.ones(1)),
    )
    for rho in (activations.relu, activations.leaky_relu(0.2)):
        u, code = next_bound(step, one, one, rho)
        attained = float(rho(jnp.zeros(())) - rho(jnp.full((), -2.0)))
        assert (u, code.entries, code.norm) == (1, pytest.approx(attained), pytest.approx(attained))
    rotation = np.array([[0.6, -0.8], [0.8, 0.6]])
    step = MatrixStep(Update(rotation, np.zeros((2, 1))), np.zeros(2))
    _, code = next_bound(step, Bound(np.full(2, 5.0), 1.0), one, activations.relu)
    assert code.norm == pytest.approx(1) and code.entries == pytest.approx(np.ones(2))
    equal = MatrixStep(Update(np.array([[1.0, 1.0], [0, 0]]), np.zeros((2, 1))), np.zeros(2))
    u, _ = next_bound(equal, Bound(np.full(2, 5.0), 1.0), one, activations.relu)
    assert u == pytest.approx([math.sqrt(2), 0])  # by x of equal entries


D = dictionary(4, 6)
OK = dict(kernel_size=3, signal_bound=1.0)
LAYER, PARAMS = layers.lista_cp(2), tied(D, 2)
CONV = dictionaries.Conv(np.ones((2, 1, 3)), 6)
STEPS = StepAndThreshold(np.full(2, 0.5), np.full(2, 0.05))
LISTA = Unrolled(Matrices(D, np.eye(6)), PARAMS.steps)
ALISTA, FISTA = Unrolled(Fixed(D), STEPS), Unrolled(None, STEPS)
CHAIN = chain((1, 1), ((4, 6), (6, 5)))


def spoiled(value):
    return PARAMS._replace(steps=Threshold(np.array([0.1, value])))


def weighted(W):
    return PARAMS._replace(shared=Weights(W))


def shrinking_by(activation):
    return layers.lista_cp(2, activation=activation), PARAMS, D


class _doubled(layers.lista_cp):
    """A test double: LISTA-CP that takes every step twice."""

    def step(self, shared, p, D, y, state, *fraction):
        once = super().step(shared, p, D, y, state, *fraction)
        return super().step(shared, p, D, y, once, *fraction)


def _of(*arguments, **options):
    return partial(cnn, *(arguments or (LAYER, PARAMS, D)), **OK | options)


test_faults_are_refused = rows(
    (_of(kernel_size=1), "at least 2: with stride 1 .* logarithmic"),
    (_of(kernel_size=0), "kernel_size is 0"),
    (_of(stride=1), "no depth is logarithmic"),
    (_of(stride=4), "layers would skip entries"),
    (_of(kernel_size=2.5), TypeError, "kernel_size must be an integer"),
    (_of(form="short"), "unknown form 'short'; expected one of compact"),
    (_of(signal_bound=-1.0), "signal_bound must be non-negative"),
    (_of(signal_bound=np.inf), "signal_bound has NaN or infinite"),
    (_of(activation="silu"), "expected one activation, the layer's, got silu and relu"),
    (_of(activation=jnp.tanh), "one activation"),
    (
        _of(layers.lista(2), LISTA, D),
        TypeError,
        r"a step of lista\(2\) is not x <- shrink.*expected such a family",
    ),
    (_of(layers.fista(2), FISTA, D), TypeError, r"a step of fista\(2\) is not"),
    (_of(_doubled(2), PARAMS, D), TypeError, r"a step of _doubled\(2\) is not"),
    (_of(LAYER, LISTA, D), TypeError, r"Matrices\(B, S\).*another family"),
    (_of(LAYER.apply, PARAMS, D), TypeError, "expected a Layer or a Network, got method"),
    (
        _of(*shrinking_by(jnp.tanh)),
        TypeError,
        "expected an Activation, with the constants of its tail",
    ),
    (_of(layers.lista_cp(3), PARAMS, D), r"params have \[2\] steps .* depth 3"),
    (_of(LAYER, PARAMS, D.T), "W has shape"),
    (_of(LAYER, weighted(D * np.nan), D), "params has NaN"),
    (_of(LAYER, PARAMS, D * np.inf), "D has NaN or infinite"),
    (_of(LAYER, spoiled(np.inf), D), "params has NaN or infinite"),
    (_of(LAYER, spoiled(-0.1), D), "theta must be non-negative"),
    (_of(LAYER, PARAMS, CONV), r"Conv; try dictionaries\.dense\(D\)"),
    (_of(LAYER, weighted(CONV), dictionary(*CONV.shape)), r"dense\(W\)"),
    (
        _of(layers.alista(2, support=(0.1, 0.3)), ALISTA, D),
        "selects supports, which compares all entries",
    ),
    (
        _of(*shrinking_by("elu"), activation="relu"),
        "expected one activation, the layer's, got relu and elu",
    ),
    (
        _of(*shrinking_by(activations.scale(activations.gelu, 1e6)), activation="relu"),
        "expected one activation",
    ),
    (_of(*shrinking_by("selu")), "selu does not become"),
    (
        _of(networks.dsc([LAYER, layers.lista_cp(2, activation="elu")]), CHAIN[1], CHAIN[2]),
        "expected one activation, the layer's, got relu and elu",
    ),
    (_of(CHAIN[0], CHAIN[1], CHAIN[2][0]), "Ds is one dictionary"),
    (_of(CHAIN[0], (), CHAIN[2]), "expected a tuple of 2 params"),
    (_of(CHAIN[0], CHAIN[1], CHAIN[2][::-1]), "D_1 has shape"),
)


def test_a_bound_beyond_the_range_of_the_dtype_is_refused():
    layer, narrow = layers.lista_cp(2), D.astype(jnp.float32)
    params = layer.init(jax.random.key(0), narrow)
    for bound in (3e38, 1e300):
        with pytest.raises(ValueError, match="leave the range of float32; try signals near 1"):
            cnn(layer, params, narrow, kernel_size=2, signal_bound=bound)
    with pytest.raises(TypeError, match=r"signal_bound must be a number, got \[2.0\]"):
        cnn(layer, params, narrow, kernel_size=2, signal_bound=[2.0])


@pytest.mark.slow
def test_a_bound_that_leaves_no_digit_is_refused():
    """The literal form lifts by a bound on the codes: at least 20^K for W = 20 D, even infinite."""
    for K in (40, 400):
        params = Unrolled(Weights(20 * D), Threshold(np.full(K, 0.1)))
        with pytest.raises(ValueError, match='leaves no digit .* try form="compact"'):
            cnn(layers.lista_cp(K), params, D, form="literal", **OK)
        assert cnn(layers.lista_cp(K), params, D, form="positive", **OK).offset == 1.0


def test_traced_arguments_are_refused():
    with pytest.raises(TypeError, match="call it outside jit"):
        jax.jit(lambda D: cnn(LAYER, PARAMS, D, **OK).layers)(D)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((6, (8, 9), 3), "one depth for each"),
        ((6, (8, 9), (3,)), "one depth for each"),
        ((6, 8, (3, 3)), "one depth for each"),
        ((6, (), ()), "at least one d"),
        ((0, 8, 3), "m must be at least 1, got 0"),
        ((6, 0, 3), "d must be at least 1"),
        ((6, 8, -1), "depth must be at least 0, got -1"),
    ],
)
def test_invalid_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cnn_size(*arguments, kernel_size=3)
