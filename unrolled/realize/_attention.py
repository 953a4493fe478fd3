"""A convolution computed by multi-head attention with relative positions: one head per tap of the
kernel (Remark 11).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import Conv


class Heads(NamedTuple):
    """Weights of a multi-head attention whose queries and keys are positions alone, W_q = W_k = 0."""

    directions: Array  # (heads, 1 + p), integers; v_h is alpha times a row
    values: Array  # (heads, channels out, channels in), V_h
    bias: Array  # (channels out,)


class Attention(NamedTuple):
    """One multi-head attention that computes a convolution.

    Attributes:
        apply: `apply(X) -> (n_atoms, *positions)` for X of shape (n_channels, *signal_shape).
        heads: its weights.
        depth: 1.
        n_weights: how many numbers the weights hold.
    """

    apply: Callable
    heads: Heads
    depth: int
    n_weights: int


def multi_head_attention(
    tokens: Array,
    heads: Heads,
    queries: np.ndarray,
    keys: np.ndarray,
    *,
    alpha: float | None = None,
    period: tuple[int, ...] | None = None,
) -> Array:
    r"""Multi-head attention that looks at relative positions alone, and the sum of its heads.

    .. math::
        z_q = b + \sum_h \sum_k \mathrm{softmax}_k(v_h \cdot r_{k - q}) \, V_h x_k, \qquad
        r_\delta = (|\delta|^2, \delta).

    Args:
        tokens: (T, channels in), x_k at position `keys[k]`.
        heads: `relative_heads` makes them, with v_h = -alpha (1, -2 h): the logits are -alpha
            norm(delta - h)^2, up to a constant, and head h looks at the token h ahead of the query,
            or at the nearest one if there is none.
        queries, keys: (Q, p) and (T, p), static integers.
        alpha: concentration; None is its limit, hard attention: all mass on the largest logit.
        period: of the positions along each dimension, for tokens on a circle; each h is then in 0
            .. period - 1.

    Returns:
        (Q, channels out).

    Reference: Cordonnier, Loukas, Jaggi (2020), Theorem 1 and Lemmas 1, 2.
    """
    relative = keys[None] - queries[:, None]
    relative = relative if period is None else relative % np.array(period)
    encoding = np.concatenate([np.sum(relative**2, -1, keepdims=True), relative], -1)
    logits = jnp.einsum(
        "hr,qkr->hqk", heads.directions, jnp.asarray(encoding, heads.directions.dtype)
    )
    # In integers and below their maximum: neither rounding nor overflow reaches the keys that
    # matter.
    logits = logits - logits.max(-1, keepdims=True)
    mass = (
        (logits == 0).astype(tokens.dtype)
        if alpha is None
        else jnp.exp(alpha * logits.astype(tokens.dtype))
    )
    mass = mass / mass.sum(-1, keepdims=True)
    seen = jnp.einsum("hoi,ki->hko", heads.values, tokens)
    return jnp.einsum("hqk,hko->qo", mass, seen) + heads.bias[None]


def relative_heads(taps: np.ndarray, values: Array, bias: Array) -> Heads:
    """Heads that look at the relative positions `taps`, (heads, p), through `values`, (heads, out,
    in).
    """
    directions = np.concatenate([np.full((len(taps), 1), -1), 2 * taps], -1)
    return Heads(jnp.asarray(directions, jnp.int32), values, bias)


def grid(shape: tuple[int, ...]) -> np.ndarray:
    """All positions of a grid in row-major order, (T, p)."""
    return np.argwhere(np.ones(shape, bool))


def attention(
    filters: Array,
    bias: Array | None = None,
    *,
    signal_shape: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    alpha: float | None = None,
) -> Attention:
    r"""The convolution of Definition 5 as one multi-head attention, in one, two or more dimensions.

    .. math:: out[f, i] = b_f + \sum_{c, k} filters[f, c, k] \; X[c, i t + k], \qquad i < \lceil N / t \rceil.

    Tokens are the positions, with the channels of X. Head k has V_k = filters[:, :, k] and looks k
    ahead of the queries, which stand at i t. Zero tokens past the far border, as far as the last
    query looks, give every head its target: without them a head at the border sees the last token
    in place of zero, an error that no alpha removes.

    Args:
        filters: (n_atoms, n_channels, *kernel); a kernel may be longer than the signal.
        bias: (n_atoms,) or None.
        signal_shape, stride: as in `Conv`.
        alpha: None for hard attention, which is exact; soft attention errs by at most
            `attention_error`, which is below rounding from alpha = 40 in float64 and 18 in float32.

    Returns:
        Attention. It is a convolution in the limit alpha -> inf only, and no layer norm is in it:
        in general a block with one does not contain this map.

    Raises:
        ValueError: shapes that do not fit, alpha that is not positive and finite; when called, X of
            another shape.

    Reference: Cordonnier, Loukas, Jaggi (2020), Theorem 1; Li, Feng, Zhou (2024), Remark 11.
    """
    where = "attention"
    alpha = concentration(alpha, where)
    conv = Conv(filters, signal_shape, stride, "zero")
    n_atoms, n_channels = conv.filters.shape[:2]
    b = _checks.as_float(jnp.zeros(n_atoms, conv.dtype) if bias is None else bias, "bias", where)
    if b.shape != (n_atoms,):
        raise ValueError(
            f"{where}: bias has shape {b.shape}; expected ({n_atoms},), one per filter"
        )
    values = jnp.moveaxis(conv.filters.reshape(n_atoms, n_channels, -1), -1, 0)
    heads = relative_heads(grid(conv.kernel), values, b)
    queries = grid(conv.positions) * np.array(conv.stride)
    sizes = zip(conv.signal_shape, conv.positions, conv.stride, conv.kernel)
    reach = tuple(max(N, (p - 1) * t + n) for N, p, t, n in sizes)
    zeros = [(0, 0), *((0, r - N) for r, N in zip(reach, conv.signal_shape))]

    def apply(X: Array) -> Array:
        X = _checks.as_float(X, "X", where)
        if X.shape != conv.signal_grid:
            raise ValueError(
                f"{where}: X has shape {X.shape}; expected {conv.signal_grid}, channels first. "
                "One signal per call: use jax.vmap over a batch."
            )
        dtype = _checks.common_dtype(heads, X)
        tokens = jnp.pad(X.astype(dtype), zeros).reshape(n_channels, -1).T
        with jax.default_matmul_precision("highest"):
            out = multi_head_attention(
                tokens, _checks.cast(heads, dtype), queries, grid(reach), alpha=alpha
            )
        return out.T.reshape(conv.code_grid)

    return Attention(apply, heads, 1, n_weights(heads))


def attention_leak(alpha: float | None, dimensions: int = 1) -> float:
    r"""A bound on the mass that a head leaves on other tokens than its target; about 2 p
    exp(-alpha).

    .. math:: 1 - \Bigl(1 + 2 \sum_{u \ge 1} e^{-\alpha u^2}\Bigr)^{-p}.

    Args:
        alpha: concentration; None gives 0.
        dimensions: p; the tokens must fill a grid (or a torus), so that the mass is a product over
            the dimensions.

    Raises:
        ValueError: alpha that is not positive and finite.
    """
    alpha = concentration(alpha, "attention_leak")
    if alpha is None:
        return 0.0
    p = _checks.as_index(dimensions, "dimensions", "attention_leak", least=1)
    u = np.arange(1, 30)
    if alpha >= 1:
        others = 2 * np.exp(-alpha * u**2).sum()
    else:  # the same sum after Poisson's formula, whose terms fall fast where these do not
        others = (
            math.sqrt(math.pi / alpha) * (1 + 2 * np.exp(-((math.pi * u) ** 2) / alpha).sum()) - 1
        )
    return -math.expm1(-p * math.log1p(others))


def attention_error(filters: Array, X: Array | float, alpha: float | None) -> np.ndarray:
    r"""A bound on how far soft attention is from the convolution, in exact arithmetic.

    .. math:: |out - conv| \le 2 \, leak(\alpha) \sum_h \max_j |V_h x_j|.

    The mass off the target is at most the leak, and what it reads differs from the target by at
    most twice the maximum. Rounding is not in it.

    Args:
        filters: as in `attention`.
        X: (n_channels, *signal_shape), or a bound on the magnitudes of all signals: scalar or
            (n_channels,).
        alpha: as in `attention`; None gives 0.

    Returns:
        (n_atoms,), float64, one bound for all positions of a filter.

    Raises:
        ValueError: shapes that do not fit, a negative bound, alpha that is not positive and finite.
        TypeError: traced arguments: this is a host function.
    """
    where = "attention_error"
    filters, X = (_checks.as_float(v, name, where) for v, name in ((filters, "filters"), (X, "X")))
    if not _checks.is_concrete((filters, X)):
        raise TypeError(f"{where}: expected known arrays, got traced ones; call it outside jit")
    filters, X = np.asarray(filters, np.float64), np.asarray(X, np.float64)
    n_channels, p = filters.shape[1], filters.ndim - 2
    if X.shape not in ((), (n_channels,)) and (X.ndim != 1 + p or len(X) != n_channels):
        expected = f"a bound, () or ({n_channels},), or a signal of {n_channels} channels and {p} dimensions"
        raise ValueError(f"{where}: X has shape {X.shape}; expected {expected}")
    taps = filters.reshape(*filters.shape[:2], -1)
    if X.ndim > 1:
        most = np.abs(np.einsum("oih,ij->hoj", taps, X.reshape(n_channels, -1))).max(-1).sum(0)
    else:
        _checks.nonnegative(X, "the bound", where)
        most = np.abs(taps).sum(-1) @ np.broadcast_to(X, n_channels)
    return 2 * attention_leak(alpha, p) * most


def concentration(alpha: float | None, where: str) -> float | None:
    """`alpha` as a positive, finite float, or None."""
    if alpha is None:
        return None
    value = float(alpha)
    if not 0 < value < math.inf:
        raise ValueError(
            f"{where}: alpha must be positive and finite, got {value}; try None for hard attention"
        )
    return value


def n_weights(tree) -> int:
    """Number of entries in all leaves of `tree`."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
