"""One transformer block that is one LISTA-CP iteration with a convolutional dictionary."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import Conv, as_dictionary
from unrolled.realize._attention import (
    Heads,
    concentration,
    grid,
    multi_head_attention,
    relative_heads,
)


class BlockWeights(NamedTuple):
    """Weights of one block on tokens of c = n_atoms + n_channels + 1 channels; those of a stack
    lead with K.
    """

    heads: Heads  # values (heads, c, c)
    hidden: Array  # (4 n_atoms, c)
    offset: Array  # (4 n_atoms,)
    output: Array  # (c, 4 n_atoms)


class Block(NamedTuple):
    """A transformer block: `apply(tokens) -> tokens`, both (T, c), and its weights."""

    apply: Callable
    weights: BlockWeights


def transformer_block(
    D: Conv,
    W: Conv,
    theta: Array,
    *,
    gamma: Array | float = 1.0,
    signal_bound: Array | float,
    code_bound: Array | float,
    alpha: float | None = None,
) -> Block:
    r"""One transformer block that is one iteration x <- shrink(x + gamma W'(y - D x), theta).

    .. math::
        u = z + \sum_\tau \mathrm{head}_\tau(z), \qquad
        z^+ = u + relu(u - \theta - G p) - relu(-u - \theta - G p) - relu(u) + relu(-u).

    Tokens are positions with the channels [x, y, p], see `embed`; p = 1 marks those that hold no
    code. Head tau, for -n < tau < n, looks tau ahead and carries what x and y there add to the code
    here,

    .. math:: V_\tau[x_g \to x_f] = -\gamma \sum_{c, k} w_f[c, k] \, d_g[c, k - \tau], \qquad
        V_\tau[y_c \to x_f] = \gamma w_f[c, \tau].

    The feed-forward part, 4 n_atoms ReLUs, acts on the channels x: with the residual it is the
    shrinkage where p = 0, and 0 where p = 1, since G >= abs(u) on all tokens. No layer norm: in
    general a block with one does not contain this map.

    Args:
        D: boundary "valid" or "circular", any stride, in one, two or more dimensions.
        W: (m, d), a `Conv` of the geometry of D.
        theta: () or (n_atoms,), non-negative.
        gamma: step size, (); 1 in LISTA-CP.
        signal_bound: of abs(y), () or (n_channels,).
        code_bound: of abs(x), the code that comes in, () or (n_atoms,). Together they set G.
        alpha: concentration of the attention; None is hard attention, which is exact.

    Raises:
        TypeError: D or W is not a `Conv`.
        ValueError: boundary "zero", W of another geometry, theta or gamma of another shape, bounds
            or theta that are negative, alpha that is not positive and finite; when called, tokens
            of another shape, or known ones above the bounds. Traced tokens are not looked at: above
            the bounds, codes may then appear where none belong.

    Reference: Cordonnier, Loukas, Jaggi (2020), Theorem 1; Li, Feng, Zhou (2024), (23) and Remark
    11.
    """
    where = "transformer_block"
    alpha = concentration(alpha, where)
    D, W = shift_invariant(D, where), analysis_weights(W, D, where)
    n_atoms, n_channels = D.filters.shape[:2]
    _checks.nonnegative(theta, "theta", where)
    check_per_filter(theta, gamma, n_atoms, 0, where)
    signal_bound = as_bound(signal_bound, n_channels, "signal_bound", where)
    code_bound = as_bound(code_bound, n_atoms, "code_bound", where)
    dtype = _checks.common_dtype(D, W)
    D, W = _checks.cast((D, W), dtype)
    theta, gamma = jnp.asarray(theta, dtype), jnp.asarray(gamma, dtype)
    weights, _ = block_weights(D, W, gamma, theta, limits_of(code_bound, signal_bound, dtype))

    def apply(tokens: Array) -> Array:
        tokens = _checks.as_float(tokens, "tokens", where)
        expected = (math.prod(_token_grid(D)), n_atoms + n_channels + 1)
        if tokens.shape != expected:
            raise ValueError(
                f"{where}: tokens have shape {tokens.shape}; expected {expected}, try embed(D, y)"
            )
        check_within(tokens[:, :n_atoms], code_bound[None], "x", where)
        check_within(tokens[:, n_atoms:-1], signal_bound[None], "y", where)
        dtype = _checks.common_dtype(weights, tokens)
        return run_block(_checks.cast(weights, dtype), tokens.astype(dtype), D, alpha)

    return Block(apply, weights)


def embed(D: Conv, y: Array, x: Array | None = None) -> Array:
    r"""Tokens (T, c) with the channels [x, y, p] at the positions of the signal, the code x being 0
    if not given.

    The code at position i stands on the token i t, where its atom begins. Under "valid" n - 1 zero
    tokens come before the
    first: they are the targets of the heads that look back from it. On a circle there are none. p =
    1 on all tokens without a code.
    """
    x = jnp.zeros(D.shape[1], y.dtype) if x is None else x
    sizes = zip(_lead(D), D.signal_shape, D.positions, D.stride)
    # Before the first code, after the last one and between two.
    around = [(a, N - (p - 1) * t - 1, t - 1) for a, N, p, t in sizes]
    x = lax.pad(x.reshape(D.code_grid), jnp.zeros((), x.dtype), [(0, 0, 0), *around])
    y = jnp.pad(y.reshape(D.signal_grid), [(0, 0), *((a, 0) for a in _lead(D))])
    mask = np.ones((1, *_token_grid(D)))
    mask[(0, *_code_places(D))] = 0
    tokens = jnp.concatenate([x, y, jnp.asarray(mask, y.dtype)])
    return tokens.reshape(len(tokens), -1).T


def read_code(D: Conv, tokens: Array) -> Array:
    """The code on the tokens, (d,)."""
    n_atoms = D.filters.shape[0]
    return (
        tokens[:, :n_atoms]
        .T.reshape(n_atoms, *_token_grid(D))[(slice(None), *_code_places(D))]
        .reshape(-1)
    )


def run_block(block: BlockWeights, tokens: Array, D: Conv, alpha: float | None) -> Array:
    """The tokens after one block: attention, then the feed-forward part, both with a residual."""
    positions = grid(_token_grid(D))
    period = D.signal_shape if D.boundary == "circular" else None
    with jax.default_matmul_precision("highest"):
        z = tokens + multi_head_attention(
            tokens, block.heads, positions, positions, alpha=alpha, period=period
        )
        return z + jax.nn.relu(z @ block.hidden.T + block.offset[None]) @ block.output.T


def block_weights(
    D: Conv, W: Conv, gamma: Array, theta: Array, limits: Array
) -> tuple[BlockWeights, Array]:
    """The weights of a block for codes and signals within `limits`, and the bound of the codes that
    come out.
    """
    n_atoms, n_channels = D.filters.shape[:2]
    c = n_atoms + n_channels + 1
    V = head_values(D, W, gamma)
    grown = limits[:n_atoms] + jnp.einsum(
        "hoi,i->o", jnp.abs(V), limits
    )  # holds for any attention: masses sum to 1
    G = 2 * grown.max()  # twice: far more than rounding
    theta = jnp.broadcast_to(theta, (n_atoms,))
    heads = relative_heads(
        _taps(D), jnp.pad(V, [(0, 0), (0, c - n_atoms), (0, 1)]), jnp.zeros(c, V.dtype)
    )
    one, none, mask = (
        jnp.eye(n_atoms, c, dtype=V.dtype),
        jnp.zeros_like(theta),
        jnp.eye(1, c, c - 1, dtype=V.dtype),
    )
    hidden = jnp.concatenate([one - G * mask, -one - G * mask, one, -one])
    offset = jnp.concatenate([-theta, -theta, none, none])
    output = jnp.concatenate([one, -one, -one, one]).T
    # Beyond the square root of the largest number codes have diverged; the bound must not overflow
    # before they do.
    most = math.sqrt(jnp.finfo(V.dtype).max)
    return BlockWeights(heads, hidden, offset, output), jnp.clip(grown - theta, 0, most)


def head_values(D: Conv, W: Conv, gamma: Array) -> Array:
    """V_tau for all tau, (heads, n_atoms, n_atoms + n_channels): what x and y at distance tau add
    to x.
    """
    window = [n - 1 for n in D.kernel]
    with jax.default_matmul_precision("highest"):
        from_x = -lax.conv_general_dilated(
            W.filters, D.filters, (1,) * len(window), [(n, n) for n in window]
        )
    from_y = jnp.pad(W.filters, [(0, 0), (0, 0), *((n, 0) for n in window)])
    V = gamma * jnp.concatenate([from_x, from_y], 1)
    return jnp.moveaxis(V.reshape(*V.shape[:2], -1), -1, 0)


def _taps(D: Conv) -> np.ndarray:
    """The relative positions tau of the heads, (heads, p); on a circle they are counted forward."""
    taps = grid(tuple(2 * n - 1 for n in D.kernel)) - (np.array(D.kernel) - 1)
    return taps % np.array(D.signal_shape) if D.boundary == "circular" else taps


def _lead(D: Conv) -> tuple[int, ...]:
    """Zero tokens before the signal, along each dimension."""
    return tuple(0 if D.boundary == "circular" else n - 1 for n in D.kernel)


def _token_grid(D: Conv) -> tuple[int, ...]:
    return tuple(a + N for a, N in zip(_lead(D), D.signal_shape))


def _code_places(D: Conv) -> tuple[slice, ...]:
    """Where on the grid of tokens the codes stand."""
    return tuple(
        slice(a, a + (p - 1) * t + 1, t) for a, p, t in zip(_lead(D), D.positions, D.stride)
    )


def shift_invariant(D, where: str) -> Conv:
    """D as a `Conv` whose atoms are all shifts of its filters; raises where it is not."""
    if not isinstance(D, Conv):
        raise TypeError(
            f"{where}: D is {type(D).__name__}; expected a Conv, whose codes stand at positions"
        )
    if D.boundary == "zero":
        raise ValueError(
            f'{where}: boundary "zero" cuts atoms at the border, so that W\'D is not the same at all positions, as the '
            'weights of a block are; expected "valid" or "circular"'
        )
    return as_dictionary(D, where)


def analysis_weights(W, D: Conv, where: str) -> Conv:
    """W as a `Conv` of the geometry of D; raises where it is not."""
    if not isinstance(W, Conv):
        raise TypeError(f"{where}: W is {type(W).__name__}; expected a Conv, or D itself")
    if not D.is_shift_of(W):
        raise ValueError(
            f"{where}: W has kernel {W.kernel}, signal {W.signal_grid}, stride {W.stride} and boundary {W.boundary!r}; "
            f"expected those of D: {D.kernel}, {D.signal_grid}, {D.stride}, {D.boundary!r}"
        )
    return W


def check_per_filter(theta, gamma, n_atoms: int, lead: int, where: str) -> None:
    """Raise unless theta, after `lead` axes, is a scalar or one per filter and gamma a scalar."""
    for name, value, shapes in (("theta", theta, [(), (n_atoms,)]), ("gamma", gamma, [()])):
        if value is not None and np.shape(value)[lead:] not in shapes:
            raise ValueError(
                f"{where}: {name} has shape {np.shape(value)[lead:]} at a step; expected one of {shapes}: a block does "
                "the same at all positions"
            )


def as_bound(value, n: int, name: str, where: str) -> Array:
    """A bound as (n,), one per channel."""
    value = _checks.as_float(value, name, where)
    if value.shape not in ((), (n,)):
        raise ValueError(f"{where}: {name} has shape {value.shape}; expected () or ({n},)")
    _checks.nonnegative(value, name, where)
    _checks.finite(value, name, where)
    return jnp.broadcast_to(value, (n,))


def limits_of(code_bound: Array, signal_bound: Array, dtype) -> Array:
    """Bounds of the channels x and y of the tokens, (n_atoms + n_channels,)."""
    return jnp.concatenate([code_bound.astype(dtype), signal_bound.astype(dtype)])


def check_within(values: Array, bound, name: str, where: str) -> None:
    """Raise ValueError if known values exceed a known bound."""
    if not _checks.is_concrete((values, bound)):
        return
    if not (np.abs(np.asarray(values)) <= np.asarray(bound)).all():
        raise ValueError(
            f"{where}: {name} exceeds the declared bound (magnitude {np.abs(np.asarray(values)).max():.6g}); "
            "build it with larger bounds"
        )
