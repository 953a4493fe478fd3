"""Convolution as multi-head attention over relative positions: one head per tap (Remark 11)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.programs import program
from unrolled.dictionaries import Conv
from unrolled.realize._conv_layer import count_weights

# Terms of the sums in `attention_leak`: the first one left out is below exp(-899) times the first.
_DISTANCES = np.arange(1, 30)


class Heads(NamedTuple):
    """Weights of a multi-head attention that scores positions only: W_q = W_k = 0.

    Attributes:
        directions: (heads, 1 + p), integers; v_h is alpha times row h.
        values: (heads, channels out, channels in), V_h.
        bias: (channels out,).
    """

    directions: Array
    values: Array
    bias: Array


class Attention(NamedTuple):
    """A multi-head attention that computes a convolution.

    Attributes:
        apply: `apply(X) -> (n_atoms, *positions)` for X of shape (n_channels, *signal_shape).
        heads: the weights.
        depth: 1, the number of attention layers.
        n_weights: number of entries in the weights.
    """

    apply: Callable[[Array], Array]
    heads: Heads
    depth: int
    n_weights: int


@checked
def multi_head_attention(
    tokens: Array,
    heads: Heads,
    queries: np.ndarray,
    keys: np.ndarray,
    *,
    alpha: float | None = None,
    period: tuple[int, ...] | None = None,
) -> Array:
    r"""Multi-head attention over relative positions, summed over its heads.

    .. math::
        z_q = b + \sum_h \sum_k \mathrm{softmax}_k(v_h \cdot r_{k - q}) \, V_h x_k, \qquad
        r_\delta = (|\delta|^2, \delta).

    With v_h = -alpha (1, -2h) the logits are -alpha norm(delta - h)^2 up to a constant: head h
    attends to the token at offset h from the query, or to the nearest one if there is none.

    Args:
        tokens: (T, channels in), x_k at position `keys[k]`.
        heads: the weights, for instance `attention(...).heads`.
        queries: (Q, p), integer positions, static.
        keys: (T, p), integer positions, static.
        alpha: concentration; None is the limit alpha -> inf, hard attention, with all mass on the
            largest logit.
        period: (p,), period of the positions along each dimension, for tokens on a circle. Each
            offset h then lies in 0 .. period - 1.

    Returns:
        (Q, channels out).

    Raises:
        TypeError, ValueError: a known alpha is no number, or not positive and finite.

    Reference: Cordonnier, Loukas, Jaggi (2020), Theorem 1 and Lemmas 1, 2.

    Example:
        >>> heads = ur.realize.attention(jnp.ones((1, 1, 2)), signal_shape=3).heads
        >>> tokens, positions = jnp.array([[1.0], [2.0], [4.0]]), np.arange(3)[:, None]
        >>> z = ur.realize.multi_head_attention(tokens, heads, positions, positions, period=(3,))
        >>> z[:, 0].tolist()  # x_q + x_(q+1) on a circle
        [3.0, 6.0, 5.0]
    """
    if checks.is_concrete(alpha):
        alpha = concentration(alpha, "multi_head_attention")
    for name, array in (("tokens", tokens), ("queries", queries), ("keys", keys)):
        checks.shaped(array, "(T, p)", name, "multi_head_attention")
    if queries.dtype.kind not in "iu" or keys.dtype.kind not in "iu":
        raise TypeError(
            f"multi_head_attention: queries are {queries.dtype} and keys {keys.dtype}; expected "
            "integers"
        )
    if len(tokens) != len(keys) or keys.shape[1] != queries.shape[1]:
        raise ValueError(
            f"multi_head_attention: tokens have shape {tokens.shape}, queries {queries.shape} and "
            f"keys {keys.shape}; expected (T, channels), (Q, p) and (T, p)"
        )
    relative = keys[None] - queries[:, None]
    relative = relative if period is None else relative % np.array(period)
    encoding = np.concatenate([np.sum(relative**2, -1, keepdims=True), relative], -1)
    return _attended(tokens, heads, encoding.astype(heads.directions.dtype), alpha)


@program()
def _attended(tokens: Array, heads: Heads, encoding: ArrayLike, alpha: float | None) -> Array:
    logits = jnp.einsum("hr,qkr->hqk", heads.directions, encoding)
    # Integers, shifted so that the largest is 0: the keys that matter see neither rounding nor
    # overflow.
    logits = logits - logits.max(-1, keepdims=True)
    mass = (
        (logits == 0).astype(tokens.dtype)
        if alpha is None
        else jnp.exp(alpha * logits.astype(tokens.dtype))
    )
    mass = mass / mass.sum(-1, keepdims=True)
    values = jnp.einsum("hoi,ki->hko", heads.values, tokens)
    return jnp.einsum("hqk,hko->qo", mass, values) + heads.bias[None]


def relative_heads(taps: np.ndarray, values: Array, bias: Array) -> Heads:
    """Heads that attend to the offsets `taps`, (heads, p), with `values`, (heads, out, in)."""
    directions = np.concatenate([np.full((len(taps), 1), -1), 2 * taps], -1)
    return Heads(jax.device_put(directions.astype(np.int32)), values, bias)


def grid(shape: tuple[int, ...]) -> np.ndarray:
    """All positions of a grid in row-major order, (T, p)."""
    return np.argwhere(np.ones(shape, bool))


@checked
def attention(
    filters: Array,
    bias: Array | None = None,
    *,
    signal_shape: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    alpha: float | None = None,
) -> Attention:
    r"""The convolution of Definition 5 as one multi-head attention, in any number of dimensions.

    .. math::
        out[f, i] = b_f + \sum_{c, k} filters[f, c, k] \; X[c, i t + k], \qquad
        i < \lceil N / t \rceil.

    Each position of X is a token, and its channels are the features. Head k has the values
    V_k = filters[:, :, k] and attends to the token k ahead of its query; the queries stand at i t.
    Zero tokens are appended past the far border, so that every head finds its target. Without them
    a head at the border reads the last token instead of zero, an error that no alpha removes.

    Args:
        filters: (n_atoms, n_channels, *kernel); a kernel may be longer than the signal.
        bias: (n_atoms,), or None for zero.
        signal_shape: N, one length per dimension, as in `dictionaries.Conv`.
        stride: t, one for all dimensions or one for each.
        alpha: concentration; None is hard attention, which is exact. Soft attention errs by at most
            `attention_error`, which is below rounding from alpha = 40 in float64 and 18 in float32.

    Returns:
        Attention.

    Raises:
        ValueError: shapes do not fit, alpha is not positive and finite; when called, X has another
            shape.

    Not claimed: equality with the convolution at finite alpha; and nothing about attention followed
    by a layer norm, which in general does not compute this map.

    Reference: Cordonnier, Loukas, Jaggi (2020), Theorem 1; Li, Feng, Zhou (2024), Remark 11.

    Example:
        >>> filters = jnp.array([[[1.0, 2.0]]])
        >>> convolution = ur.realize.attention(filters, signal_shape=3, stride=2)
        >>> convolution.apply(jnp.array([[1.0, 2.0, 3.0]])).tolist()
        [[5.0, 3.0]]
    """
    where = "attention"
    alpha = concentration(alpha, where)
    conv = Conv(filters, signal_shape, stride, "zero")
    n_atoms, n_channels = conv.filters.shape[:2]
    none = jax.device_put(np.zeros(n_atoms, conv.dtype))
    b = none if bias is None else checks.as_float(bias, "bias", where)
    if b.shape != (n_atoms,):
        raise ValueError(
            f"{where}: bias has shape {b.shape}; expected ({n_atoms},), one per filter"
        )
    heads = relative_heads(grid(conv.kernel), _values_of_taps(conv), b)

    def apply(X: Array) -> Array:
        X = checks.as_float(X, "X", where)
        if X.shape != conv.signal_grid:
            raise ValueError(
                f"{where}: X has shape {X.shape}; expected {conv.signal_grid}, channels first. "
                "One signal per call: use jax.vmap over a batch."
            )
        return _convolved(heads, X, conv, alpha)

    return Attention(apply, heads, 1, count_weights(heads))


@program()
def _values_of_taps(conv: Conv) -> Array:
    n_atoms, n_channels = conv.filters.shape[:2]
    return jnp.moveaxis(conv.filters.reshape(n_atoms, n_channels, -1), -1, 0)


@program()
def _convolved(heads: Heads, X: Array, conv: Conv, alpha: float | None) -> Array:
    heads, X = checks.cast((heads, X), checks.common_dtype(heads, X))
    sizes = zip(conv.signal_shape, conv.positions, conv.stride, conv.kernel)
    reach = tuple(max(N, (p - 1) * t + n) for N, p, t, n in sizes)
    zeros = [(0, 0), *((0, r - N) for r, N in zip(reach, conv.signal_shape))]
    tokens = jnp.pad(X, zeros).reshape(len(X), -1).T
    queries = grid(conv.positions) * np.array(conv.stride)
    with jax.default_matmul_precision("highest"):
        out = multi_head_attention(tokens, heads, queries, grid(reach), alpha=alpha)
    return out.T.reshape(conv.code_grid)


def attention_leak(alpha: float | None, dimensions: int = 1) -> float:
    r"""A bound on the attention mass off the target of a head, about 2 p exp(-alpha).

    .. math:: leak(\alpha) = 1 - \Bigl(1 + 2 \sum_{u \ge 1} e^{-\alpha u^2}\Bigr)^{-p}.

    It holds for tokens that fill a grid or a torus, where the mass is a product over dimensions.

    Args:
        alpha: concentration; None gives 0.
        dimensions: p, the number of dimensions.

    Returns:
        The bound, in [0, 1].

    Raises:
        ValueError: alpha is not positive and finite.

    Reference: Cordonnier, Loukas, Jaggi (2020), Lemma 2, states the limit alpha -> inf.

    Example:
        >>> round(ur.realize.attention_leak(4.0), 4), round(ur.realize.attention_leak(8.0), 4)
        (0.0353, 0.0007)
    """
    alpha = concentration(alpha, "attention_leak")
    if alpha is None:
        return 0.0
    p = checks.as_index(dimensions, "dimensions", "attention_leak", least=1)
    return -math.expm1(-p * math.log1p(others_on_a_line(alpha)))


def others_on_a_line(alpha: float) -> float:
    """The sum of exp(-alpha u^2) over all integers u but 0."""
    squares = _DISTANCES**2
    with np.errstate(over="ignore"):  # to exp(-inf) = 0
        if alpha >= 1:
            return 2 * float(np.exp(-alpha * squares).sum())
        # The same sum by Poisson summation, which converges fast for small alpha.
        dual = 1 + 2 * float(np.exp(-(math.pi**2) * squares / alpha).sum())
    return math.sqrt(math.pi / alpha) * dual - 1


@checked
def attention_error(filters: Array, X: ArrayLike, alpha: float | None) -> np.ndarray:
    r"""A bound on the difference between soft attention and the convolution.

    .. math:: |out - conv| \le 2 \, leak(\alpha) \sum_h \max_j |V_h x_j|.

    At most `attention_leak` of the mass lies off the target, and a value read there differs from
    the value at the target by at most twice the maximum.

    Args:
        filters: (n_atoms, n_channels, *kernel).
        X: the signal, (n_channels, *signal_shape), or a bound on the magnitudes of all signals,
            () or (n_channels,).
        alpha: concentration; None gives 0.

    Returns:
        (n_atoms,), float64, one bound per filter for all its positions.

    Raises:
        ValueError: shapes do not fit, the bound is negative, alpha is not positive and finite.
        TypeError: the arguments are traced; this is a host function.

    Not claimed: a bound on rounding errors; this one is for exact arithmetic.

    Example:
        >>> filters, X = jnp.ones((1, 1, 2)), jnp.array([[1.0, 2.0, 3.0]])
        >>> exact = ur.realize.attention(filters, signal_shape=3).apply(X)
        >>> soft = ur.realize.attention(filters, signal_shape=3, alpha=8.0).apply(X)
        >>> bool(jnp.abs(soft - exact).max() < ur.realize.attention_error(filters, X, 8.0)[0])
        True
    """
    where = "attention_error"
    filters, X = (checks.as_float(v, name, where) for v, name in ((filters, "filters"), (X, "X")))
    if not checks.is_concrete((filters, X)):
        raise TypeError(f"{where}: expected concrete arrays, got traced ones; call it outside jit")
    X = np.asarray(X, np.float64)
    if filters.ndim < 3:
        raise ValueError(
            f"{where}: filters have shape {filters.shape}; expected (n_atoms, n_channels, *kernel)"
        )
    n_channels, p = filters.shape[1], filters.ndim - 2
    if X.shape not in ((), (n_channels,)) and (X.ndim != 1 + p or len(X) != n_channels):
        raise ValueError(
            f"{where}: X has shape {X.shape}; expected a bound, () or ({n_channels},), or a signal "
            f"of {n_channels} channels and {p} dimensions"
        )
    taps = np.asarray(filters, np.float64).reshape(*filters.shape[:2], -1)
    checks.finite(X, "X", where)
    if X.ndim > 1:
        most = np.abs(np.einsum("oih,ij->hoj", taps, X.reshape(n_channels, -1))).max(-1).sum(0)
    else:
        checks.nonnegative(X, "the bound", where)
        most = np.abs(taps).sum(-1) @ np.broadcast_to(X, n_channels)
    return 2 * attention_leak(alpha, p) * most


def concentration(alpha: float | None, where: str) -> float | None:
    """`alpha` as a positive, finite float, or None."""
    if alpha is None:
        return None
    value = checks.as_number(alpha, "alpha", where)
    if not 0 < value < math.inf:
        raise ValueError(
            f"{where}: alpha must be positive and finite, got {value}; try None for hard attention"
        )
    return value
