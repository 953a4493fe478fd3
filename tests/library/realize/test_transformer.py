"""Transformers against their layers: equal if attention is hard, within their bound if soft."""

import functools
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import rows

from unrolled import activations, analytic, dictionaries, layers, theory
from unrolled.dictionaries import Conv, dense, normalize
from unrolled.layers._lista import Threshold
from unrolled.realize._attention import Leak, attention_leak, grid, multi_head_attention
from unrolled.realize._transformer import (
    embed,
    read_code,
    run_block,
    transformer,
    transformer_block,
    transformer_error,
)

EPS = np.finfo(float).eps
# Six steps, each of gain below 3, with sums of about 30 products and three roundings of shrinkage.
ROUNDING = 1e3 * EPS
assert_close = partial(chex.assert_trees_all_close, rtol=0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def conv(*filters, signal, stride=1, boundary="valid", seed=0):
    filters = normal(seed, *filters)
    norms = np.sqrt((filters**2).sum(tuple(range(1, filters.ndim)), keepdims=True))
    return Conv(filters / norms, signal, stride, boundary)


GEOMETRIES = {
    "valid": dict(filters=(3, 1, 4), signal=13),
    "valid, one position": dict(filters=(3, 2, 4), signal=4),
    "valid, one tap": dict(filters=(3, 2, 1), signal=5),
    "valid, stride 3": dict(filters=(4, 2, 5), signal=16, stride=3),
    "valid, 2-D": dict(filters=(2, 2, 3, 2), signal=(5, 4), stride=(1, 2)),
    "circular": dict(filters=(2, 2, 3), signal=7, boundary="circular"),
    "circular, longer kernel": dict(filters=(2, 1, 5), signal=3, boundary="circular"),
    "circular, stride 3": dict(filters=(3, 1, 4), signal=8, stride=3, boundary="circular"),
    "circular, 2-D": dict(filters=(2, 1, 2, 3), signal=(3, 4), boundary="circular"),
}


def geometry(name):
    options = dict(GEOMETRIES[name])
    return conv(*options.pop("filters"), **options)


@functools.cache
def families():
    """D with 4 filters on two channels, and layers of depth 6 with their params, by name."""
    D = conv(4, 2, 5, signal=18)
    W = analytic.frobenius_weights(D)
    per_filter = jnp.asarray(np.linspace(0.02, 0.2, 24).reshape(6, 4))
    tied, untied, alista, ista = (
        layers.lista_cp(6, lam=0.05),
        layers.lista_cp(6, tied=False, lam=0.05),
        layers.alista(6, theta=0.1),
        layers.ista(6, lam=0.05),
    )
    key = jax.random.key(0)
    varied = untied.init(key, D)
    varied = jax.tree.map(
        lambda leaf: leaf * (1 + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)), varied
    )
    steps = layers.StepAndThreshold(jnp.linspace(0.3, 0.6, 6), per_filter)
    return D, {
        "lista_cp": (tied, tied.init(key, D)),
        "lista_cp, per filter": (
            tied,
            layers.Unrolled(layers.Weights(W / 2), Threshold(per_filter)),
        ),
        "lista_cp, untied": (untied, varied),
        "lista_cp, untied, tuple": (untied, layers.unstack(varied)),
        "alista": (alista, layers.Unrolled(layers.Fixed(W), steps)),
        "ista": (ista, ista.init(key, D)),
    }


@partial(jax.jit, static_argnums=(0,), static_argnames="alpha")
def realized(layer, params, D, Y, alpha=None):
    """The codes of a batch from a transformer built under jit, where bounds are not checked."""
    return jax.vmap(transformer(layer, params, D, alpha=alpha, signal_bound=5.0).apply)(Y)


@partial(jax.jit, static_argnums=(0,))
def iterates(layer, params, D, Y):
    return jax.vmap(layer.iterates, (None, None, 0))(params, D, Y)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_block_equals_an_iteration(name):
    """Exactly, on whole numbers; tokens without a code stay without one."""
    D = geometry(name)
    rng = np.random.default_rng(1)
    banks = (rng.integers(-3, 4, D.filters.shape).astype(float) for _ in "DW")
    D, W = (Conv(bank, D.signal_shape, D.stride, D.boundary) for bank in banks)
    y, x = (rng.integers(-9, 10, n).astype(float) for n in D.shape)
    theta = np.arange(5.0, 5 + D.code_grid[0])

    @jax.jit
    def run(D, W, theta, x, y):
        block = transformer_block(D, W, theta, gamma=2.0, signal_bound=9.0, code_bound=9.0)
        before = embed(D, y, x)
        after = block.apply(before)
        return before, after, read_code(D, after), dictionaries.dense(D), dictionaries.dense(W)

    before, after, code, D_matrix, W_matrix = map(np.asarray, run(D, W, theta, x, y))
    u = x + 2 * ((y - D_matrix @ x) @ W_matrix)
    expected = np.sign(u) * np.maximum(np.abs(u) - np.repeat(theta, math.prod(D.positions)), 0)
    assert expected.any()
    np.testing.assert_array_equal(code, expected)
    n_atoms = D.code_grid[0]
    np.testing.assert_array_equal(after[:, n_atoms:], before[:, n_atoms:])
    assert not after[after[:, -1] == 1, :n_atoms].any()
    assert (after[:, -1] == 0).sum() == math.prod(D.positions)


def test_the_numbers_of_heads_and_hidden_units_are_those_of_the_theory():
    D = conv(3, 2, 4, signal=10)
    block = jax.eval_shape(
        lambda: transformer_block(D, D, 0.1, signal_bound=1.0, code_bound=1.0).weights
    )
    assert block.heads.values.shape == (2 * 4 - 1, 6, 6)
    assert block.hidden.shape == (4 * 3, 6) and block.output.shape == (6, 4 * 3)
    assert jax.eval_shape(lambda: embed(D, jnp.zeros(20))).shape == (10 + 3, 6)


def test_the_mask_keeps_codes_off_tokens_without_a_code():
    """With a G far too small, from bounds that a traced call cannot check, codes appear there."""
    D = conv(3, 1, 4, signal=13)

    @jax.jit
    def run(y, bound):
        return transformer_block(D, D, 0.1, signal_bound=bound, code_bound=bound).apply(embed(D, y))

    for bound, kept in ((5.0, True), (1e-3, False)):
        tokens = np.asarray(run(normal(1, 13), bound))
        assert (not tokens[tokens[:, -1] == 1, :3].any()) is kept


@pytest.mark.slow
def test_the_mask_exceeds_abs_u_on_all_tokens_and_blocks():
    """For signals that attain their bound, and for concentrated and spread attention."""
    D, cases = families()
    layer, params = cases["lista_cp, untied"]
    positions = grid((D.signal_shape[0] + 4,))

    @partial(jax.jit, static_argnames="alpha")
    def largest(params, Y, alpha):
        """G of every block, and the largest abs(u) in it."""
        blocks = transformer(layer, params, D, signal_bound=1.0).blocks

        def body(tokens, block):
            u = tokens + multi_head_attention(
                tokens, block.heads, positions, positions, alpha=alpha
            )
            return run_block(block, tokens, D, alpha), jnp.abs(u[:, :4]).max()

        return -blocks.hidden[:, 0, -1], jax.vmap(
            lambda y: jax.lax.scan(body, embed(D, y), blocks)[1]
        )(Y).max(0)

    for alpha in (None, 0.01):
        G, found = map(np.asarray, largest(params, np.sign(normal(3, 50, 36)), alpha=alpha))
        bound = G / 2  # G is twice the bound, as a margin for rounding
        assert (found <= bound * (1 + 1e-12)).all()
        assert alpha or found[0] > 0.9 * bound[0]


FORMS = [
    "lista_cp",
    "lista_cp, per filter",
    "lista_cp, untied",
    "lista_cp, untied, tuple",
    "alista",
    "ista",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, alpha", [*((name, None) for name in FORMS), ("lista_cp", 40.0), ("alista", 40.0)]
)
def test_a_stack_has_the_codes_of_its_layer(name, alpha):
    D, cases = families()
    layer, params = cases[name]
    Y = normal(7, 5, 36)
    expected = np.asarray(iterates(layer, params, D, Y))[:, -1]
    assert 0.05 < (expected != 0).mean() < 1
    assert_close(realized(layer, params, D, Y, alpha=alpha), expected, atol=ROUNDING)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name", ["valid, stride 3", "valid, 2-D", "circular, longer kernel", "circular, 2-D"]
)
def test_stacks_on_other_geometries(name):
    D, layer = geometry(name), layers.lista_cp(4, lam=0.02)

    @jax.jit
    def both(D, y):
        params = layer.init(jax.random.key(0), D)
        return transformer(layer, params, D, alpha=40.0, signal_bound=5.0).apply(y), layer.apply(
            params, D, y
        )

    ours, expected = both(D, normal(2, D.shape[0]))
    assert np.asarray(expected).any()
    assert_close(ours, expected, atol=ROUNDING)


@pytest.mark.few(1)
@pytest.mark.parametrize("depth", [0, 3])
def test_stacks_of_all_depths(depth):
    D, y = conv(2, 1, 3, signal=9), normal(2, 9)
    layer = layers.ista(depth, lam=0.05)
    params = layer.init(jax.random.key(0), D)
    made = transformer(layer, params, D, signal_bound=5.0)
    assert made.depth == depth and made.n_weights == depth * (5 * (2 + 16) + 4 + 32 + 8 + 32)
    assert_close(made.apply(y), layer.apply(params, D, y), atol=ROUNDING)


@pytest.mark.slow
def test_float32():
    """alpha = 18 reaches rounding; float64 signals are computed in float64."""
    D, cases = families()
    layer, params = cases["alista"]
    D, params = jax.tree.map(lambda leaf: leaf.astype(np.float32), (D, params))
    Y = normal(1, 3, 36).astype(np.float32)
    codes = realized(layer, params, D, Y, alpha=18.0)
    assert codes.dtype == np.float32
    tolerance = ROUNDING / EPS * np.finfo(np.float32).eps
    assert_close(codes, np.asarray(iterates(layer, params, D, Y))[:, -1], atol=tolerance)
    assert realized.eval_shape(layer, params, D, Y.astype(np.float64)).dtype == np.float64


def test_a_deep_stack_stays_finite():
    """The bounds behind G grow geometrically beyond the largest float32; the codes do not."""
    D, layer = conv(4, 1, 6, signal=16), layers.ista(300, lam=0.01)

    @jax.jit
    def both(D, y):
        params = layer.init(jax.random.key(0), D)
        made = transformer(layer, params, D, signal_bound=5.0)
        return made.blocks.hidden, made.apply(y), layer.apply(params, D, y)

    D = jax.tree.map(lambda leaf: leaf.astype(np.float32), D)
    hidden, ours, expected = map(np.asarray, both(D, normal(2, 16).astype(np.float32)))
    assert np.isfinite(hidden).all() and -hidden.min() > np.sqrt(np.finfo(np.float32).max)
    # ISTA is non-expansive: the roundings of its 300 steps add up, about 30 eps each.
    assert_close(ours, expected, atol=1e4 * np.finfo(np.float32).eps)


def test_growing_codes_near_the_end_of_the_range_keep_their_mask():
    """Codes far above the root of the largest float32: G must still exceed them."""
    D, layer = conv(2, 1, 3, signal=8, stride=2), layers.lista_cp(8)
    D = jax.tree.map(lambda leaf: leaf.astype(np.float32), D)
    scale = np.float32(1e20)
    params = layer.from_theory(D * np.float32(3), jnp.full(8, 0.01 * scale))
    y = normal(2, 8).astype(np.float32) * scale

    @jax.jit
    def both(y):
        made = transformer(layer, params, D, signal_bound=4 * scale)
        return made.apply(y), layer.apply(params, D, y)

    ours, expected = map(np.asarray, both(y))
    size = np.abs(expected).max()
    assert size > 1e3 * scale
    assert_close(ours / size, expected / size, atol=1e4 * np.finfo(np.float32).eps)


@pytest.mark.slow
def test_it_can_be_built_under_jit_and_its_derivatives_are_those_of_the_layer():
    D, cases = families()
    layer, params = cases["lista_cp, per filter"]
    y, g = jnp.asarray(normal(5, 36)), jnp.asarray(normal(6, D.shape[1]))

    def by_transformer(params, D, y):
        return g @ transformer(layer, params, D, signal_bound=5.0).apply(y)

    def by_layer(params, D, y):
        return g @ layer.apply(params, D, y)

    ours, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(params, D, y) for f in (by_transformer, by_layer)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.asarray(b).any()
        assert_close(a, b, atol=100 * ROUNDING)  # sums over all positions, six factors deep


@pytest.mark.slow
def test_the_fixed_weights_of_alista_stay_fixed():
    D, cases = families()
    layer, params = cases["alista"]

    def loss(params):
        return jnp.sum(
            transformer(layer, params, D, signal_bound=5.0).apply(jnp.asarray(normal(5, 36))) ** 2
        )

    gradient = jax.jit(jax.grad(loss))(params)
    assert (
        not np.asarray(gradient.shared.W.filters).any() and np.asarray(gradient.steps.gamma).all()
    )


@pytest.mark.slow
def test_soft_codes_stay_within_their_bound():
    """Also where the layer expands; a bound on the codes makes the error bound smaller."""
    layer = layers.lista_cp(6, lam=0.05)

    @jax.jit
    def params(D, c):
        """Those of the start, scaled by c: the step size is c / L."""
        return jax.tree.map(lambda leaf: leaf * c, layer.init(jax.random.key(0), D))

    for alpha in (2.0, 8.0, 16.0, 30.0):
        for seed in range(3):
            D = conv(3, 2, 4, signal=12, seed=seed)
            p = params(D, 1.0 + seed)
            Y = np.sign(normal(seed, 40, 24)) * np.random.default_rng(seed).uniform(0, 3, (40, 1))
            bounds = dict(alpha=alpha, signal_bound=np.abs(Y).max())
            exact = np.asarray(iterates(layer, p, D, Y))
            bound = transformer_error(layer, p, D, **bounds)
            sharper = transformer_error(layer, p, D, code_bound=np.abs(exact).max(), **bounds)
            error = np.abs(np.asarray(realized(layer, p, D, Y, alpha=alpha)) - exact[:, -1]).max()
            assert bound.shape == (7,) and bound[0] == 0 and (np.diff(bound) > 0).all()
            assert error <= sharper[-1] + ROUNDING
            assert (sharper <= bound).all() and sharper[-1] < bound[-1]


def test_the_bound_is_attained():
    """With one tap and W = -D / 2, so that codes and errors grow, and signs that alternate.

    Away from the border both neighbours of a target have the opposite value, and the contributions
    of x and y add up: the bound exceeds the error only by terms of second order in the leak.
    """
    alpha, theta = 6.0, 0.1
    D = Conv(np.ones((1, 1, 1)), 12)
    layer = layers.lista_cp(5)
    params = layers.Unrolled(layers.Weights(D * -0.5), Threshold(jnp.full(5, theta)))
    y = np.tile([1.0, -1.0], 6)
    exact = np.asarray(iterates(layer, params, D, y[None]))[0, -1]
    error = np.abs(np.asarray(realized(layer, params, D, y[None], alpha=alpha))[0] - exact)
    bound = transformer_error(layer, params, D, alpha=alpha, signal_bound=1.0)
    assert (error <= bound[-1]).all() and error[6] > bound[-1] * (1 - 5 * attention_leak(alpha))
    # By hand: x = 0.5 - 0.1 after the first block, and 1.5 x + 0.4 after the second.
    leak = 2 * attention_leak(alpha)
    first = leak * 0.5
    second = 1.5 * first + leak * (0.5 * (0.4 + first) + 0.5)
    assert bound[1:3] == pytest.approx([first, second])


def test_the_bound_for_a_signal_holds_where_steps_turn_signs():
    """T = 1 - 2.5: errors grow by 1.5 a step, whatever their sign."""
    alpha, D, layer = 6.0, Conv(np.ones((1, 1, 1)), 12), layers.lista_cp(5)
    W = Conv(np.full((1, 1, 1), 2.5), 12)
    params = layers.Unrolled(layers.Weights(W), Threshold(np.full(5, 0.1)))
    y = np.tile([1.0, -1.0], 6)
    exact = np.asarray(iterates(layer, params, D, y[None]))[0, -1]
    error = np.abs(np.asarray(realized(layer, params, D, y[None], alpha=alpha))[0] - exact).max()
    bounds = transformer_error(layer, params, D, alpha=alpha, signals=y)
    assert 0.05 * bounds[-1] < error <= bounds[-1]
    other = np.linspace(0, 3, 12)  # that of several signals is the largest, step by step
    largest = np.maximum(bounds, transformer_error(layer, params, D, alpha=alpha, signals=other))
    found = transformer_error(layer, params, D, alpha=alpha, signals=np.stack([y, other]))
    np.testing.assert_allclose(found, largest, rtol=1e-12)
    assert not transformer_error(layer, params, D, alpha=None, signals=y).any()  # hard attention


@pytest.mark.slow
def test_the_error_and_its_bound_vanish_as_alpha_grows():
    """Both fall as exp(-alpha); the leak of hard attention is 0."""
    D, cases = families()
    layer, params = cases["lista_cp"]
    y = normal(8, 36)
    exact = np.asarray(layer.apply(params, D, y))
    alphas = (8.0, 12.0, 16.0)
    codes = [np.asarray(realized(layer, params, D, y[None], alpha=a))[0] for a in alphas]
    errors = [np.abs(x - exact).max() for x in codes]
    bounds = [transformer_error(layer, params, D, alpha=a, signal_bound=5.0)[-1] for a in alphas]
    for numbers in (errors, bounds):
        for one, other in zip(numbers, numbers[1:]):
            # Up to terms of order exp(-2 alpha).
            assert one / other == pytest.approx(math.exp(4), rel=0.02)
    assert 1e-5 < errors[0] < 1e-2
    np.testing.assert_array_equal(
        transformer_error(layer, params, D, alpha=None, signal_bound=5.0), np.zeros(7)
    )


SHAPES = {
    "a line": (3, 2, 4, 12, 1, "valid"),
    "a line, stride 2": (3, 1, 4, 12, 2, "valid"),
    "a circle": (3, 1, 3, 10, 1, "circular"),
    "a circle, stride 2": (2, 1, 3, 10, 2, "circular"),
    "a short circle": (2, 1, 4, 5, 1, "circular"),
    "an image": (2, 1, (2, 3), (5, 6), 1, "valid"),
    "a torus": (2, 1, (2, 2), (4, 5), 1, "circular"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_bound_for_given_signals_is_never_exceeded(name):
    filters, channels, kernel, N, stride, boundary = SHAPES[name]
    rng = np.random.default_rng(0)
    size = (filters, channels, *np.atleast_1d(kernel))
    D, _ = normalize(Conv(rng.normal(size=size), N, stride, boundary))
    layer = layers.lista_cp(3, lam=0.1)
    params = layer.init(jax.random.key(0), D)
    params = params._replace(shared=layers.Weights(params.shared.W * 1.5))  # it may expand
    Y = rng.choice([-1, 1], (12, D.shape[0])) * rng.uniform(0, 2, (12, 1))
    Y[:4] = (rng.random((4, D.shape[1])) < 0.1) @ np.asarray(dense(D)).T
    exact = np.asarray(iterates(layer, params, D, Y))[:, -1]
    for alpha in (0.7, 9.0):
        options = dict(alpha=alpha, signals=Y)
        bound = transformer_error(layer, params, D, **options)
        seen = np.abs(np.asarray(realized(layer, params, D, Y, alpha=alpha)) - exact).max()
        assert bound.shape == (4,) and bound[0] == 0
        assert seen <= bound[-1] + ROUNDING
        box = transformer_error(layer, params, D, alpha=alpha, signal_bound=np.abs(Y).max())
        if alpha > 2:
            assert bound[-1] <= 100 * seen and bound[-1] < box[-1]
    assert not transformer_error(layer, params, D, alpha=None, signals=Y).any()
    assert transformer_error(layer, params, D, alpha=9.0, signals=Y[0])[-1] <= bound[-1]


def test_the_bound_for_signals_is_the_largest_of_each():
    D = conv(2, 1, 2, signal=4, boundary="circular")
    layer = layers.lista_cp(2, lam=0.1)
    params, Y = layer.init(None, D), normal(1, 3, 4) * [[1], [2], [1e-2]]
    each = [transformer_error(layer, params, D, alpha=2.0, signals=y) for y in Y]
    largest = transformer_error(layer, params, D, alpha=2.0, signals=Y)
    np.testing.assert_array_equal(largest, np.max(each, 0))


def test_the_leak_of_a_border_is_the_mass_past_it():
    """The masses of attention within the line sum to one; the masses of g sum to one without it."""
    D, alpha = conv(1, 1, 3, signal=5), 0.3
    leak, i = Leak(D, alpha), np.arange(7)
    masses = np.exp(-alpha * (i[:, None] - i) ** 2)
    free = np.exp(-alpha * np.arange(-30, 31) ** 2).sum()
    V, tokens = np.zeros((5, 1, 1)), np.random.default_rng(0).random((1, 7))
    V[2] = 1  # the head of offset 0
    exact = (1 / masses.sum(1) - 1 / free) * (masses @ tokens[0])
    np.testing.assert_allclose(leak._apart(V, tokens)[0, 2:9], exact, rtol=1e-9)


def test_a_flat_attention_has_a_bound_that_goes_on_where_its_sums_do():
    """Below a concentration the tails of its masses are no longer summed term by term."""
    D, _ = normalize(Conv(normal(7, 2, 1, 3), 8))
    layer = layers.lista_cp(1, lam=0.1)
    params, y = layer.init(jax.random.key(0), D), normal(8, D.shape[0])
    alphas = (1.01e-6, 0.99e-6, 1e-30, 1e308)
    bounds = [transformer_error(layer, params, D, alpha=a, signals=y)[-1] for a in alphas]
    exact = np.asarray(layer.apply(params, D, y))
    for alpha, bound in zip(alphas[1:3], bounds[1:3]):
        seen = np.asarray(realized(layer, params, D, y[None], alpha=alpha))[0]
        assert np.abs(seen - exact).max() <= bound < np.inf
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-4) and bounds[3] == 0


@pytest.mark.slow
def test_the_bound_for_sparse_signals_is_within_a_factor_of_30_of_the_error():
    """The bound for all signals is 6e5 times the error of these, and 350 times that of others."""
    rng, alpha = np.random.default_rng(0), 8.0
    D, _ = normalize(Conv(rng.normal(size=(4, 1, 5)), 64))
    layer = layers.lista_cp(6)
    W = analytic.frobenius_weights(D)
    of = theory.coherence(W, D)
    found = theory.schedule(float(of.mu_W), float(of.C_W), sparsity=1, bound=1.0, depth=6)
    params = layer.from_theory(W, jnp.asarray(found.theta))
    X = np.zeros((20, D.shape[1]))
    X[np.arange(20), rng.integers(D.shape[1], size=20)] = rng.uniform(0.8, 1, 20)
    Y = X @ np.asarray(dense(D)).T
    exact = np.asarray(iterates(layer, params, D, Y))[:, -1]
    error = np.abs(np.asarray(realized(layer, params, D, Y, alpha=alpha)) - exact).max()
    bound = transformer_error(layer, params, D, alpha=alpha, signals=Y)[-1]
    assert 1e-5 < error <= bound < 30 * error
    M = float(np.abs(Y).max())
    free = transformer_error(layer, params, D, alpha=alpha, signal_bound=M)[-1]
    assert free > 1e5 * error
    # The reason: signals within M that do not stop at a threshold err by thousands of times more.
    soft = transformer(layer, params, D, signal_bound=M, alpha=alpha)

    @jax.jit
    def ascent(Y):
        def largest(y):
            return jnp.abs(soft.apply(y) - layer.apply(params, D, y)).max()

        values, slopes = jax.vmap(jax.value_and_grad(largest))(Y)
        return values.max(), jnp.where(slopes > 0, M, -M)

    worst, Y = 0.0, jnp.asarray(M * rng.choice([-1, 1], (30, 64)))
    for _ in range(5):
        value, Y = ascent(Y)
        worst = max(worst, float(value))
    assert free / 2000 < worst <= free


def test_the_bound_is_computed_in_float64_from_float32_weights():
    options = dict(alpha=8.0, signal_bound=1.0)
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (PARAMS, SMALL))
    with jax.enable_x64(False):
        ours = transformer_error(LAYER, *narrow, **options)
    assert ours.dtype == np.float64
    expected = transformer_error(LAYER, PARAMS, SMALL, **options)
    np.testing.assert_allclose(ours, expected, rtol=1e3 * np.finfo(np.float32).eps)


# What is refused


def like(D, factor, **other):
    """A `Conv` as D, with its filters times a factor, in another geometry if given."""
    options = dict(signal_shape=D.signal_shape, stride=D.stride, boundary=D.boundary) | other
    return Conv(np.asarray(D.filters) * factor, **options)


SMALL = conv(2, 2, 3, signal=9)  # (18, 14)
m, d = SMALL.shape
LAYER = layers.lista_cp(2)
PARAMS = layers.Unrolled(layers.Weights(like(SMALL, 0.25)), Threshold(np.full(2, 0.05)))
STEPS = layers.StepAndThreshold(np.full(2, 0.25), np.full(2, 0.05))
ALISTA = layers.Unrolled(layers.Fixed(SMALL), STEPS)


def _built(layer=LAYER, params=PARAMS, D=SMALL, **options):
    return partial(transformer, layer, params, D, **{"signal_bound": 1.0, **options})


def _applied(y, **options):
    return lambda: _built(**options)().apply(y)


def _block(*arguments, **options):
    bounds = dict(signal_bound=1.0, code_bound=1.0)
    return partial(transformer_block, *(arguments or (SMALL, SMALL, 0.1)), **bounds | options)


def _run(tokens, **options):
    return lambda: _block(**options)().apply(tokens)


def _error(**options):
    return partial(transformer_error, LAYER, PARAMS, SMALL, **{"alpha": 4.0, **options})


def weighted(W):
    return PARAMS._replace(shared=layers.Weights(W))


BOUND = "signal_bound has shape .3,.; expected .. or .2,."
test_what_does_not_fit_is_refused = rows(
    (_built(D=np.ones((4, 6))), TypeError, "D is .*; expected a Conv"),
    (_built(D=like(SMALL, 1, boundary="zero")), 'boundary "zero" cuts atoms'),
    (lambda: _built(D=like(SMALL, 1, signal_shape=2))(), "longer than the signal"),
    (_built(params=weighted(np.ones((m, d)))), TypeError, "W is .*; expected a Conv, or D itself"),
    (
        _built(params=weighted(Conv(normal(0, 14, 2, 9), 9))),
        r"W has kernel \(9,\).*expected the same as D: \(3,\)",
    ),
    (_block(SMALL, like(SMALL, 1, boundary="circular"), 0.1), "expected the same as D"),
    (
        _built(params=PARAMS._replace(steps=Threshold(np.ones((2, d))))),
        r"theta has shape \(14,\) at a step; .* the same at all positions",
    ),
    (_block(gamma=np.ones(2)), r"gamma has shape \(2,\)"),
    (_block(SMALL, SMALL, -0.1), "theta must be non-negative"),
    (_built(layers.alista(2, support=(0.1, 0.2)), ALISTA), "the layer selects supports"),
    *(
        (_built(layer, PARAMS), TypeError, "is not x <- shrink.*expected such a family")
        for layer in (layers.lista(2), layers.fista(2))
    ),
    (_built(params=ALISTA), TypeError, "another family"),
    (_built(layers.lista_cp(3)), "params have .* steps but the layer has depth 3"),
    *(
        (_built(layer, params), "a block shrinks by ReLU")
        for layer, params in (
            (layers.lista_cp(2, activation="silu"), PARAMS),
            (layers.alista(2, activation=activations.elu(0.5)), ALISTA),
            (
                layers.ista(2, activation=activations.leaky_relu(1e-3)),
                layers.Unrolled(None, STEPS),
            ),
            (layers.lista_cp(2, activation=activations.scale(activations.gelu, 100.0)), PARAMS),
        )
    ),
    *(
        (make(alpha=alpha), f"{where}: alpha must be positive and finite")
        for where, make in (("transformer", _built), ("transformer_block", _block))
        for alpha in (0.0, -2.0, math.nan, math.inf)
    ),
    *(
        (_block(gamma=gamma), error, "transformer_block: gamma ")
        for gamma, error in ((math.nan, ValueError), (1j, TypeError), ("one", TypeError))
    ),
    *((_built(signal_bound=bound), "signal_bound") for bound in (-1.0, math.nan, math.inf)),
    (_built(signal_bound=np.ones(3)), BOUND),
    (_error(), "either signal_bound or signals"),
    (_error(signal_bound=1.0, signals=np.ones(m)), "either signal_bound or signals"),
    *(
        (_error(signals=bad), "transformer_error: signals ha(ve|s)")
        for bad in (np.ones(3), np.ones((2, 3)), np.ones((0, m)), np.full(m, np.nan))
    ),
    (_error(signals=np.ones(m) * 1j), TypeError, "transformer_error: signals is complex"),
    (_error(signal_bound=1.0, code_bound=-1.0), "code_bound must be non-negative"),
    (
        lambda: jax.jit(lambda p: transformer_error(LAYER, p, SMALL, alpha=4.0, signal_bound=1.0))(
            PARAMS
        ),
        TypeError,
        "call it outside jit",
    ),
    (
        _applied(np.full(m, -1.5), signal_bound=np.array([1.0, 2.0])),
        r"y exceeds the declared bound \(magnitude 1.5\)",
    ),
    (lambda: _run(embed(SMALL, np.zeros(m), np.ones(d)), code_bound=0.5)(), "x exceeds"),
    (lambda: _run(embed(SMALL, np.full(m, np.nan)))(), "y exceeds"),
    *(
        (_run(np.zeros(shape)), r"expected \(11, 5\), try embed")
        for shape in ((9, 5), (11, 4), (5, 11), (2, 11, 5))
    ),
    *(
        (_applied(np.zeros(shape)), r"y must have shape \(18,\)")
        for shape in ((11,), (9, 2), (3, 18))
    ),
    *(
        (partial(embed, SMALL, **bad), rf"embed: {name} has shape .*; expected \(")
        for name, bad in (
            ("y", dict(y=np.ones(m - 1))),
            ("y", dict(y=np.ones((2, m)))),
            ("x", dict(y=np.ones(m), x=np.ones(d + 1))),
        )
    ),
    (
        partial(read_code, SMALL, np.ones(3)),
        r"read_code: tokens have shape \(3,\); expected \(11, 5\)",
    ),
    *(
        (
            partial(function, np.eye(3), np.ones(3)),
            TypeError,
            f"{function.__name__}: D is .*; expected a Conv",
        )
        for function in (embed, read_code)
    ),
)


def test_a_signal_within_its_bounds_is_taken():
    assert np.isfinite(
        _applied(np.repeat([1.0, -2.0], 9), signal_bound=np.array([1.0, 2.0]))()
    ).all()


def test_lists_are_embedded():
    np.testing.assert_array_equal(embed(SMALL, np.ones(m).tolist()), embed(SMALL, np.ones(m)))
