"""Attention against a convolution in loops: equal if hard, within its error bound if soft."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import rows

from unrolled.dictionaries import Conv
from unrolled.realize import _cnn_layers
from unrolled.realize._attention import (
    attention,
    attention_error,
    attention_leak,
    grid,
    multi_head_attention,
)

# (n_atoms, n_channels, *kernel), signal shape, stride
SHAPES = [
    ((2, 1, 3), (8,), 1),
    ((3, 2, 4), (9,), 2),
    ((1, 3, 2), (7,), 3),  # the stride skips inputs
    ((2, 2, 1), (5,), 2),
    ((2, 1, 6), (4,), 1),  # a kernel longer than the signal
    ((2, 2, 3, 3), (5, 4), 1),
    ((1, 2, 2, 3), (6, 5), (2, 1)),
    ((2, 1, 4, 2), (3, 5), 3),
]


@partial(jax.jit, static_argnames=("signal_shape", "stride", "alpha"))
def attended(filters, bias, X, **options):
    return attention(filters, bias, **options).apply(X)


def naive_conv(filters, X, stride, bias):
    """Definition 5 entry by entry: zero-based, no flip, zeros past the end, ceil(N / t) outputs."""
    n_atoms, n_channels, *kernel = filters.shape
    shape = X.shape[1:]
    stride = stride if isinstance(stride, tuple) else (stride,) * len(shape)
    out = np.zeros((n_atoms, *(math.ceil(N / t) for N, t in zip(shape, stride))))
    for f, *i in np.ndindex(out.shape):
        out[f, *i] = bias[f]
        for c, *k in np.ndindex(n_channels, *kernel):
            place = [a * t + b for a, b, t in zip(i, k, stride)]
            if all(p < N for p, N in zip(place, shape)):
                out[f, *i] += filters[f, c, *k] * X[c, *place]
    return out


def integers(rng, *shape):
    """Whole numbers, so that sums in any order are exact."""
    return rng.integers(-9, 10, shape).astype(float)


def draw(filter_shape, signal_shape, seed=0):
    rng = np.random.default_rng(seed)
    return (
        integers(rng, *filter_shape),
        integers(rng, filter_shape[1], *signal_shape),
        integers(rng, filter_shape[0]),
    )


def rounding(filters, dtype=float):
    """The rounding of a sum over channels and taps, of its masses and of the bias; entries <= 9."""
    n_terms = filters[0].size + 4
    largest = 9 * (np.abs(filters).sum((1, *range(2, filters.ndim))).max() + 1)
    return n_terms * float(np.finfo(dtype).eps) * largest


@pytest.mark.parametrize("filter_shape, signal_shape, stride", SHAPES)
def test_hard_attention_is_the_convolution(filter_shape, signal_shape, stride):
    filters, X, bias = draw(filter_shape, signal_shape)
    out = attended(filters, bias, X, signal_shape=signal_shape, stride=stride)
    np.testing.assert_array_equal(np.asarray(out), naive_conv(filters, X, stride, bias))


@pytest.mark.few(1)
@pytest.mark.parametrize("filter_shape, signal_shape, stride", [SHAPES[i] for i in (1, 6)])
def test_soft_attention_errs_by_less_than_its_bound(filter_shape, signal_shape, stride):
    """The bound from the signal is at most the bound from its largest magnitude."""
    for alpha, seed in itertools.product((0.1, 1.0, 4.0, 16.0, 40.0), range(3)):
        filters, X, bias = draw(filter_shape, signal_shape, seed)
        out = attention(filters, bias, signal_shape=signal_shape, stride=stride, alpha=alpha).apply(
            X
        )
        difference = np.asarray(out) - naive_conv(filters, X, stride, bias)
        error = np.abs(difference).reshape(len(filters), -1).max(1)
        bound = attention_error(filters, X, alpha)
        assert (error <= bound + rounding(filters)).all()
        assert (bound <= attention_error(filters, np.abs(X).max(), alpha) * (1 + 1e-12)).all()
        if alpha == 40.0:
            assert (bound < rounding(filters)).all()


def test_the_error_halves_as_alpha_grows_by_log_2():
    """It is proportional to exp(-alpha), up to a term of order exp(-2 alpha)."""
    filters, X, _ = draw((2, 2, 3), (10,))
    exact = naive_conv(filters, X, 1, np.zeros(2))
    errors = [
        np.asarray(attention(filters, signal_shape=10, alpha=a).apply(X)) - exact
        for a in (10.0, 10.0 + math.log(2))
    ]
    assert np.abs(errors[0]).max() > 1e-3
    np.testing.assert_allclose(
        errors[0], 2 * errors[1], rtol=0, atol=2 * math.exp(-10) * np.abs(errors[0]).max()
    )
    bounds = [attention_error(filters, X, a) for a in (10.0, 10.0 + math.log(2))]
    np.testing.assert_allclose(bounds[0], 2 * bounds[1], rtol=4 * math.exp(-10))


@pytest.mark.parametrize("alpha", [4.0, 40.0, None])
def test_without_zero_tokens_the_border_reads_the_last_token(alpha):
    """C-26: at the last output all heads read x_N; the convolution reads it once, then zeros."""
    N, w = 6, np.array([1.0, 2.0, 3.0])
    X = np.arange(1.0, N + 1)
    made = attention(w[None, None], signal_shape=N, alpha=alpha)
    zero_based = naive_conv(w[None, None], X[None], 1, np.zeros(1))[0]
    tokens, positions = X[:, None], grid((N,))
    bare = np.asarray(multi_head_attention(tokens, made.heads, positions, positions, alpha=alpha))
    leaked = 6 * attention_leak(alpha or 800.0) * 2 * N
    assert abs(bare[-1, 0] - w.sum() * N) <= leaked + 1e-12  # 36 instead of 6
    assert abs(bare[-1, 0] - zero_based[-1]) > 25
    np.testing.assert_allclose(
        np.asarray(made.apply(X[None]))[0], zero_based, rtol=0, atol=leaked + 1e-12
    )


def test_periodic_positions_give_the_circular_convolution():
    filters, X, _ = draw((2, 1, 4), (6,))
    heads = attention(filters, signal_shape=6).heads
    out = np.asarray(multi_head_attention(X.T, heads, grid((6,)), grid((6,)), period=(6,)))
    twice = naive_conv(filters, np.tile(X, 2), 1, np.zeros(2))[:, :6]
    np.testing.assert_array_equal(out.T, twice)


def test_distant_positions_are_resolved_in_float32():
    """Squared distances exceed 2^24, the integers exact in float32: logits are integers."""
    T = 20_000
    heads = attention(np.eye(3, dtype=np.float32)[:, None], signal_shape=T).heads
    tokens = np.arange(T, dtype=np.float32)[:, None]
    for alpha in (None, 18.0):
        out = multi_head_attention(
            tokens, heads, np.array([[17], [T - 5]]), grid((T,)), alpha=alpha
        )
        np.testing.assert_array_equal(np.asarray(out), [[17, 18, 19], [T - 5, T - 4, T - 3]])


def test_the_dtype_is_kept_and_alpha_18_reaches_rounding_in_float32(dtype):
    filters, X, bias = (v.astype(dtype) for v in draw((2, 2, 4), (12,)))
    alpha = 18.0 if dtype == np.float32 else 40.0
    out = attended(filters, bias, X, signal_shape=12, alpha=alpha)
    assert out.dtype == dtype
    tolerance = rounding(filters, dtype)
    np.testing.assert_allclose(
        np.asarray(out), naive_conv(filters, X, 1, bias), rtol=0, atol=tolerance
    )
    wide = jax.eval_shape(attention(filters, signal_shape=12).apply, X.astype(np.float64))
    assert wide.dtype == np.float64


@pytest.mark.slow
def test_jit_vmap_and_derivatives():
    """Attention is linear in X and in the filters; its adjoint in X is the synthesis of `Conv`."""
    filters, _, bias = draw((2, 2, 3), (7,))
    Xs = integers(np.random.default_rng(1), 4, 2, 7)
    made = attention(filters, bias, signal_shape=7, stride=2)
    batch = np.asarray(jax.jit(jax.vmap(made.apply))(Xs))
    np.testing.assert_array_equal(batch, np.stack([np.asarray(made.apply(X)) for X in Xs]))
    g = integers(np.random.default_rng(2), 2, 4)

    def loss(filters, bias, X):
        return jnp.vdot(attention(filters, bias, signal_shape=7, stride=2).apply(X), g)

    by_filter, by_bias, by_X = jax.jit(jax.grad(loss, (0, 1, 2)))(filters, bias, Xs[0])
    np.testing.assert_array_equal(np.asarray(by_bias), g.sum(1))
    np.testing.assert_array_equal(
        np.asarray(by_X).reshape(-1), np.asarray(Conv(filters, 7, 2, "zero") @ g.reshape(-1))
    )
    unit = np.zeros_like(filters)
    unit[1, 0, 2] = 1
    assert by_filter[1, 0, 2] == np.vdot(naive_conv(unit, Xs[0], 2, np.zeros(2)), g)


@pytest.mark.parametrize("alpha", [1e-3, 0.3, 0.999, 1.0, 4.0, 40.0, 700.0])
def test_the_leak_is_the_sum_of_the_theory(alpha):
    others = 2 * np.exp(-alpha * np.arange(1.0, 1000.0) ** 2).sum()
    # About ten roundings; the terms left out are below exp(-1000).
    assert attention_leak(alpha) == pytest.approx(others / (1 + others), rel=1e-14)
    for p in (2, 3):
        assert attention_leak(alpha, p) == pytest.approx(
            -math.expm1(p * math.log1p(-attention_leak(alpha))), rel=1e-12
        )


def test_the_leak_bounds_the_mass_off_the_target_and_is_attained_far_from_the_border():
    positions = np.arange(-30.0, 31.0)
    for alpha in (0.2, 1.0, 5.0):
        mass = np.exp(-alpha * positions**2)
        assert 1 - 1 / mass.sum() == pytest.approx(attention_leak(alpha), rel=1e-12)
        assert 1 - 1 / mass[28:].sum() < attention_leak(alpha)
        plane = np.multiply.outer(mass, mass)
        assert 1 - 1 / plane.sum() == pytest.approx(attention_leak(alpha, 2), rel=1e-12)
    assert attention_leak(None) == 0 and attention_leak(1e-9) < 1


def test_error_bounds_per_channel_and_for_hard_attention():
    filters, X, _ = draw((3, 2, 4), (9,))
    per_channel = attention_error(filters, np.abs(X).max(1), 5.0)
    assert per_channel.shape == (3,)
    assert (attention_error(filters, X, 5.0) <= per_channel).all()
    assert (per_channel <= attention_error(filters, np.abs(X).max(), 5.0)).all()
    np.testing.assert_array_equal(attention_error(filters, X, None), np.zeros(3))


def test_weights_are_counted():
    made = attention(np.ones((3, 2, 4, 5)), signal_shape=(6, 7))
    assert made.depth == 1 and made.heads.values.shape == (4 * 5, 3, 2)
    assert made.n_weights == 20 * (3 + 3 * 2) + 3
    assert _cnn_layers.count_weights(made.heads) == made.n_weights


FILTERS = np.ones((2, 3, 4))


def _applied(shape):
    return lambda: attention(FILTERS, signal_shape=5).apply(np.zeros(shape))


test_what_does_not_fit_is_refused = rows(
    *(
        (partial(call, alpha=alpha), "alpha must be positive and finite")
        for name, call in (
            ("attention", partial(attention, FILTERS, signal_shape=5)),
            ("attention_leak", attention_leak),
            ("attention_error", partial(attention_error, FILTERS, 1.0)),
        )
        for alpha in (0.0, -1.0, math.nan, math.inf)
    ),
    (partial(attention, FILTERS, signal_shape=(5, 5)), r"filters have shape \(2, 3, 4\)"),
    (partial(attention, FILTERS, signal_shape=5, stride=0), "stride must be at least 1"),
    (
        partial(attention, FILTERS, np.zeros(3), signal_shape=5),
        r"bias has shape \(3,\); expected \(2,\)",
    ),
    *(
        (_applied(shape), r"expected \(3, 5\), channels first")
        for shape in ((3, 6), (5, 3), (15,), (2, 3, 5))
    ),
    (
        partial(attention_error, FILTERS, np.zeros((2, 5)), 4.0),
        r"a bound, \(\) or \(3,\), or a signal of 3 channels",
    ),
    (partial(attention_error, FILTERS, -1.0, 4.0), "the bound must be non-negative"),
    (
        lambda: jax.jit(lambda X: attention_error(FILTERS, X, 4.0))(np.zeros((3, 5))),
        TypeError,
        "call it outside jit",
    ),
    (
        partial(attention_error, FILTERS, np.full((3, 5), np.nan), 4.0),
        "attention_error: X has NaN or infinite entries",
    ),
)
