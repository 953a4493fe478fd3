"""One transformer block that is one LISTA-CP iteration with a convolutional dictionary."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.programs import program
from unrolled.dictionaries import Conv, Dictionary, as_dictionary
from unrolled.realize import _attention

# G over the bound on abs(u) that it must exceed: far more than rounding.
_MARGIN = 2


class BlockWeights(NamedTuple):
    """Weights of a block on tokens of c = n_atoms + n_channels + 1 channels.

    In a stack of K blocks each array has a leading axis of length K.

    Attributes:
        heads: of the attention, with values (heads, c, c).
        hidden: (4 n_atoms, c), first matrix of the feed-forward part.
        offset: (4 n_atoms,), its bias.
        output: (c, 4 n_atoms), second matrix of the feed-forward part.
    """

    heads: _attention.Heads
    hidden: Array
    offset: Array
    output: Array


class Block(NamedTuple):
    """A transformer block.

    Attributes:
        apply: `apply(tokens) -> tokens`, both (T, c).
        weights: the weights.
    """

    apply: Callable[[Array], Array]
    weights: BlockWeights


@checked
def transformer_block(
    D: Conv,
    W: Conv,
    theta: ArrayLike,
    *,
    gamma: ArrayLike = 1.0,
    signal_bound: ArrayLike,
    code_bound: ArrayLike,
    alpha: float | None = None,
) -> Block:
    r"""A transformer block that computes one step x <- shrink(x + gamma W'(y - D x), theta).

    .. math::
        u = z + \sum_\tau \mathrm{head}_\tau(z), \qquad
        z^+ = u + relu(u - \theta - G p) - relu(-u - \theta - G p) - relu(u) + relu(-u).

    Each token is a position with the channels [x, y, p], see `embed`; p = 1 marks positions without
    a code. Head tau, -n < tau < n for kernels of length n, attends to the token tau ahead and adds
    what x and y there contribute to the code here,

    .. math::
        V_\tau[x_g \to x_f] = -\gamma \sum_{c, k} w_f[c, k] \, d_g[c, k - \tau], \qquad
        V_\tau[y_c \to x_f] = \gamma w_f[c, \tau].

    The feed-forward part has 4 n_atoms ReLUs and acts on the channels x. With its residual it is
    the shrinkage where p = 0, and it is 0 where p = 1, since G >= abs(u) on all tokens.

    Args:
        D: a `dictionaries.Conv` with boundary "valid" or "circular", of any stride and number of
            dimensions.
        W: (m, d), a `Conv` of the geometry of D.
        theta: threshold, () or (n_atoms,), non-negative.
        gamma: step size, (); 1 in LISTA-CP.
        signal_bound: bound on abs(y), () or (n_channels,).
        code_bound: bound on abs(x) of the incoming code, () or (n_atoms,). The two bounds set G.
        alpha: concentration of the attention; None is hard attention, which is exact.

    Returns:
        Block.

    Raises:
        TypeError: D or W is not a `Conv`.
        ValueError: the boundary is "zero", W has another geometry, theta or gamma has another
            shape, a bound or theta is negative, alpha is not positive and finite; when called,
            tokens have another shape or concrete tokens exceed the bounds.

    Not claimed: correct codes for traced tokens above the bounds, which cannot be checked; codes
    may then appear on tokens with p = 1. There is no layer norm; in general a block with one does
    not compute this map.

    Reference: Cordonnier, Loukas, Jaggi (2020), Theorem 1; Li, Feng, Zhou (2024), (23) and
    Remark 11.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((1, 1, 2)) / 2, signal_shape=4)
        >>> y = jnp.array([1.0, 3.0, -2.0, 0.0])
        >>> block = ur.realize.transformer_block(D, D, 0.5, signal_bound=3.0, code_bound=0.0)
        >>> ur.realize.read_code(D, block.apply(ur.realize.embed(D, y))).tolist()
        [1.5, 0.0, -0.5]
        >>> ur.soft_threshold(y @ D, 0.5).tolist()
        [1.5, 0.0, -0.5]
    """
    where = "transformer_block"
    alpha = _attention.concentration(alpha, where)
    D, W = shift_invariant(D, where), analysis_weights(W, D, where)
    n_atoms, n_channels = D.filters.shape[:2]
    checks.nonnegative(theta, "theta", where)
    gamma = checks.as_float(gamma, "gamma", where)
    checks.finite(gamma, "gamma", where)
    check_per_filter(theta, gamma, n_atoms, 0, where)
    signal_bound = as_bound(signal_bound, n_channels, "signal_bound", where)
    code_bound = as_bound(code_bound, n_atoms, "code_bound", where)
    weights, _ = block_weights(D, W, gamma, theta, code_bound, signal_bound)

    def apply(tokens: Array) -> Array:
        tokens = checks.as_float(tokens, "tokens", where)
        _check_tokens(D, tokens, where)
        check_within(tokens[:, :n_atoms], code_bound[None], "x", where)
        check_within(tokens[:, n_atoms:-1], signal_bound[None], "y", where)
        return run_block(weights, tokens, D, alpha)

    return Block(apply, weights)


def embed(D: Conv, y: Array, x: Array | None = None) -> Array:
    """The tokens of a signal and a code, with the channels [x, y, p].

    The code at position i is stored on the token i t, where its atom begins; p = 1 on all tokens
    without a code. If the boundary is "valid", n - 1 zero tokens come first: heads with tau < 0
    attend to them from the first positions. If it is "circular" there are none.

    Args:
        D: a `dictionaries.Conv` with boundary "valid" or "circular".
        y: (m,).
        x: (d,); None is the zero code.

    Returns:
        (T, n_atoms + n_channels + 1).

    Raises:
        TypeError: D is no `Conv`, y or x is no array of reals.
        ValueError: the boundary is "zero", or y or x has another shape.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((1, 1, 2)), signal_shape=3)
        >>> ur.realize.embed(D, jnp.array([4.0, 5.0, 6.0]), jnp.array([1.0, 2.0])).tolist()
        [[0.0, 0.0, 1.0], [1.0, 4.0, 0.0], [2.0, 5.0, 0.0], [0.0, 6.0, 1.0]]
    """
    D, y = shift_invariant(D, "embed"), checks.as_float(y, "y", "embed")
    x = x if x is None else checks.as_float(x, "x", "embed")
    for name, v, n in (("y", y, D.shape[0]), ("x", x, D.shape[1])):
        if v is not None and v.shape != (n,):
            raise ValueError(
                f"embed: {name} has shape {v.shape}; expected ({n},), one signal per call: try "
                "jax.vmap"
            )
    return _embedded(D, y, x)


@program()
def _embedded(D: Conv, y: Array, x: Array | None) -> Array:
    x = jnp.zeros(D.shape[1], y.dtype) if x is None else x
    sizes = zip(_lead(D), D.signal_shape, D.positions, D.stride)
    # Tokens before the first code, after the last one and between two.
    around = [(a, N - (p - 1) * t - 1, t - 1) for a, N, p, t in sizes]
    x = lax.pad(x.reshape(D.code_grid), jnp.zeros((), x.dtype), [(0, 0, 0), *around])
    y = jnp.pad(y.reshape(D.signal_grid), [(0, 0), *((a, 0) for a in _lead(D))])
    mask = np.ones((1, *_token_grid(D)))
    mask[0][_code_places(D)] = 0
    tokens = jnp.concatenate([x, y, jnp.asarray(mask, y.dtype)])
    return tokens.reshape(len(tokens), -1).T


def read_code(D: Conv, tokens: Array) -> Array:
    """The code stored on tokens.

    Args:
        D: the dictionary that the tokens were embedded with.
        tokens: (T, n_atoms + n_channels + 1).

    Returns:
        (d,).

    Raises:
        TypeError: D is no `Conv`, tokens are no array of reals.
        ValueError: the boundary is "zero", or tokens have another shape.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((1, 1, 2)), signal_shape=3)
        >>> tokens = ur.realize.embed(D, jnp.zeros(3), jnp.array([1.0, 2.0]))
        >>> ur.realize.read_code(D, tokens).tolist()
        [1.0, 2.0]
    """
    D, tokens = shift_invariant(D, "read_code"), checks.as_float(tokens, "tokens", "read_code")
    _check_tokens(D, tokens, "read_code")
    return _read(D, tokens)


@program()
def _read(D: Conv, tokens: Array) -> Array:
    n_atoms = D.filters.shape[0]
    channels = tokens[:, :n_atoms].T.reshape(n_atoms, *_token_grid(D))
    return channels[(slice(None), *_code_places(D))].reshape(-1)


@program()
def run_block(block: BlockWeights, tokens: Array, D: Conv, alpha: float | None) -> Array:
    """The tokens after one block: attention, then the feed-forward part, each with a residual."""
    block, tokens = checks.cast((block, tokens), checks.common_dtype(block, tokens))
    positions = _attention.grid(_token_grid(D))
    period = D.signal_shape if D.boundary == "circular" else None
    with jax.default_matmul_precision("highest"):
        z = tokens + _attention.multi_head_attention(
            tokens, block.heads, positions, positions, alpha=alpha, period=period
        )
        return z + jax.nn.relu(z @ block.hidden.T + block.offset[None]) @ block.output.T


@program()
def block_weights(
    D: Conv,
    W: Conv,
    gamma: ArrayLike,
    theta: ArrayLike,
    code_bound: Array,
    signal_bound: Array,
) -> tuple[BlockWeights, Array]:
    """The weights of a block for tokens within bounds, and a bound on the codes after it."""
    dtype = checks.common_dtype(D, W)
    D, W = checks.cast((D, W), dtype)
    gamma, theta = jnp.asarray(gamma, dtype), jnp.asarray(theta, dtype)
    limits = jnp.concatenate([code_bound.astype(dtype), signal_bound.astype(dtype)])
    n_atoms, n_channels = D.filters.shape[:2]
    c = n_atoms + n_channels + 1
    V = head_values(D, W, gamma)
    # A bound on abs(u) for any concentration, since the masses of a head sum to 1.
    grown = limits[:n_atoms] + jnp.einsum("hoi,i->o", jnp.abs(V), limits)
    # Neither G nor the next bounds may overflow; codes beyond have left the range themselves.
    grown = jnp.minimum(grown, float(jnp.finfo(V.dtype).max) / (2 * _MARGIN))
    G = _MARGIN * grown.max()
    theta = jnp.broadcast_to(theta, (n_atoms,))
    heads = _attention.relative_heads(
        _taps(D), jnp.pad(V, [(0, 0), (0, c - n_atoms), (0, 1)]), jnp.zeros(c, V.dtype)
    )
    one, mask = jnp.eye(n_atoms, c, dtype=V.dtype), jnp.eye(1, c, c - 1, dtype=V.dtype)
    none = jnp.zeros_like(theta)
    hidden = jnp.concatenate([one - G * mask, -one - G * mask, one, -one])
    offset = jnp.concatenate([-theta, -theta, none, none])
    output = jnp.concatenate([one, -one, -one, one]).T
    return BlockWeights(heads, hidden, offset, output), jnp.maximum(grown - theta, 0)


def head_values(D: Conv, W: Conv, gamma: Array) -> Array:
    """V_tau for all tau, (heads, n_atoms, n_atoms + n_channels): what x and y there add to x."""
    window = [n - 1 for n in D.kernel]
    with jax.default_matmul_precision("highest"):
        from_x = -lax.conv_general_dilated(
            W.filters, D.filters, (1,) * len(window), [(n, n) for n in window]
        )
    from_y = jnp.pad(W.filters, [(0, 0), (0, 0), *((n, 0) for n in window)])
    V = gamma * jnp.concatenate([from_x, from_y], 1)
    return jnp.moveaxis(V.reshape(*V.shape[:2], -1), -1, 0)


def _taps(D: Conv) -> np.ndarray:
    """The offsets tau of the heads, (heads, p); on a circle they are taken modulo its length."""
    taps = _attention.grid(tuple(2 * n - 1 for n in D.kernel)) - (np.array(D.kernel) - 1)
    return taps % np.array(D.signal_shape) if D.boundary == "circular" else taps


def _lead(D: Conv) -> tuple[int, ...]:
    """The number of zero tokens before the signal, along each dimension."""
    return tuple(0 if D.boundary == "circular" else n - 1 for n in D.kernel)


def _token_grid(D: Conv) -> tuple[int, ...]:
    """The number of tokens along each dimension."""
    return tuple(a + N for a, N in zip(_lead(D), D.signal_shape))


def _code_places(D: Conv) -> tuple[slice, ...]:
    """The positions of the codes on the grid of tokens."""
    return tuple(
        slice(a, a + (p - 1) * t + 1, t) for a, p, t in zip(_lead(D), D.positions, D.stride)
    )


def shift_invariant(D: Dictionary, where: str) -> Conv:
    """D, checked to be a `Conv` whose atoms are all shifts of its filters.

    Raises:
        TypeError: D is not a `Conv`.
        ValueError: the boundary of D is "zero", or its filters are dilated.
    """
    if not isinstance(D, Conv):
        raise TypeError(
            f"{where}: D is {type(D).__name__}; expected a Conv, whose codes have positions"
        )
    if D.boundary == "zero":
        raise ValueError(
            f'{where}: boundary "zero" cuts atoms at the border, so that W\'D differs between '
            'positions, while the weights of a block do not; expected "valid" or "circular"'
        )
    if max(D.dilation) > 1:
        raise ValueError(f"{where}: D has dilation {D.dilation}; expected 1")
    as_dictionary(D, where)  # its checks
    return D


def analysis_weights(W: Dictionary, D: Conv, where: str) -> Conv:
    """W, checked to be a `Conv` of the geometry of D.

    Raises:
        TypeError: W is not a `Conv`.
        ValueError: W has another geometry.
    """
    if not isinstance(W, Conv):
        raise TypeError(f"{where}: W is {type(W).__name__}; expected a Conv, or D itself")
    if not D.is_shift_of(W):
        raise ValueError(
            f"{where}: W has kernel {W.kernel}, signal {W.signal_grid}, stride {W.stride} and "
            f"boundary {W.boundary!r}; expected those of D: {D.kernel}, {D.signal_grid}, "
            f"{D.stride}, {D.boundary!r}"
        )
    return W


def check_per_filter(
    theta: ArrayLike, gamma: ArrayLike | None, n_atoms: int, lead: int, where: str
) -> None:
    """Raise ValueError unless, after `lead` axes, theta is () or (n_atoms,) and gamma is ()."""
    for name, value, shapes in (("theta", theta, [(), (n_atoms,)]), ("gamma", gamma, [()])):
        if value is not None and np.shape(value)[lead:] not in shapes:
            raise ValueError(
                f"{where}: {name} has shape {np.shape(value)[lead:]} at a step; expected one of "
                f"{shapes}: a block does the same at all positions"
            )


def as_bound(value: ArrayLike, n: int, name: str, where: str) -> Array:
    """A bound, () or (n,), as (n,), one per channel; checked to be finite and non-negative."""
    value = checks.as_float(value, name, where)
    if value.shape not in ((), (n,)):
        raise ValueError(f"{where}: {name} has shape {value.shape}; expected () or ({n},)")
    checks.nonnegative(value, name, where)
    checks.finite(value, name, where)
    xp: Any = np if checks.is_concrete(value) else jnp
    return xp.broadcast_to(xp.asarray(value), (n,))


def _check_tokens(D: Conv, tokens: Array, where: str) -> None:
    expected = (math.prod(_token_grid(D)), sum(D.filters.shape[:2]) + 1)
    if tokens.shape != expected:
        raise ValueError(
            f"{where}: tokens have shape {tokens.shape}; expected {expected}, try embed(D, y)"
        )


def check_within(values: Array, bound: Array, name: str, where: str) -> None:
    """Raise ValueError if concrete values exceed a concrete bound."""
    if not checks.is_concrete((values, bound)):
        return
    if not (np.abs(np.asarray(values)) <= np.asarray(bound)).all():
        raise ValueError(
            f"{where}: {name} exceeds the declared bound "
            f"(magnitude {np.abs(np.asarray(values)).max():.6g}); build it with larger bounds"
        )
