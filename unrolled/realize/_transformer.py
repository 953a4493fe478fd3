"""Transformers that compute LISTA-CP for a convolutional dictionary, one iteration per block."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.doors import Array, ArrayLike, Result, checked, program
from unrolled.activations import relu
from unrolled.dictionaries import Conv, Dictionary, as_dictionary, operands
from unrolled.layers import Layer, Unrolled, stack
from unrolled.realize import _attention
from unrolled.realize._attention import Heads
from unrolled.realize._cnn_layers import activation_of, count_weights

__all__ = [
    "Block",
    "BlockWeights",
    "Transformer",
    "embed",
    "read_code",
    "transformer",
    "transformer_block",
    "transformer_error",
]


# The ratio of G to the bound on abs(u) that G must exceed. The margin is far above rounding errors.
_MARGIN = 2


class BlockWeights(NamedTuple):
    """Weights of a block on tokens of c = n_atoms + n_channels + 1 channels.

    In a stack of K blocks each array has a leading axis of length K.

    Attributes:
        heads: heads of the attention, with values (heads, c, c).
        hidden: (4 n_atoms, c), first matrix of the feed-forward part.
        offset: (4 n_atoms,), bias of the feed-forward part.
        output: (c, 4 n_atoms), second matrix of the feed-forward part.
    """

    heads: Heads
    hidden: Array
    offset: Array
    output: Array


class Block(Result):
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

    Each token stands for one position and has the channels [x, y, p] (see `embed`); p = 1 marks
    positions without a code. There is one head for every offset tau with -n < tau < n, where n is
    the length of the kernel. Head tau attends to the token tau positions after the query. The head
    adds the contribution of x and y on that token to the code at the query:

    .. math::
        V_\tau[x_g \to x_f] = -\gamma \sum_{c, k} w_f[c, k] \, d_g[c, k - \tau], \qquad
        V_\tau[y_c \to x_f] = \gamma w_f[c, \tau].

    The feed-forward part has 4 n_atoms ReLUs and acts on the channels x. Since G >= abs(u) on all
    tokens, the feed-forward part and its residual connection together give the shrinkage of u on
    tokens with p = 0, and 0 on tokens with p = 1.

    Args:
        D: a `dictionaries.Conv` with boundary "valid" or "circular", of any stride and number of
            dimensions.
        W: (m, d), a `Conv` with the geometry of D.
        theta: non-negative threshold of shape () or (n_atoms,).
        gamma: step size, a scalar; 1 in LISTA-CP.
        signal_bound: bound on abs(y), of shape () or (n_channels,).
        code_bound: bound on abs(x) of the incoming code, of shape () or (n_atoms,). `signal_bound`
            and `code_bound` set G.
        alpha: concentration of the attention; None means hard attention, which is exact.

    Returns:
        Block.

    Raises:
        TypeError: D or W is not a `Conv`.
        ValueError: the boundary is "zero", W has another geometry, theta or gamma has another
            shape, a bound or theta is negative, or alpha is not positive and finite. `apply` raises
            ValueError if tokens have another shape or concrete tokens exceed the bounds.

    Not claimed: correct codes for traced tokens above the bounds, which cannot be checked; codes
    may then appear on tokens with p = 1. These blocks have no layer norm; in general a block with a
    layer norm does not compute this map.

    Reference: Cordonnier, Loukas, Jaggi (2020), Theorem 1; Li, Feng, Zhou (2024), equation (23) and
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

    Each sample of the signal has one token. The code at position i is stored on the token of sample
    i t, where t is the stride, because the atom at position i begins at this sample. All tokens
    without a code have p = 1. If the boundary is "valid", n - 1 zero tokens come before the tokens
    of the samples in each dimension, where n is the length of the kernel. The code at position i is
    then on token i t + n - 1, counted from 0. For queries at the first positions, heads with tau <
    0 attend to these zero tokens. If the boundary is "circular", no zero tokens are added.

    Args:
        D: a `dictionaries.Conv` with boundary "valid" or "circular".
        y: the signal, (m,).
        x: the code, (d,); None means the zero code.

    Returns:
        The tokens, (T, n_atoms + n_channels + 1).

    Raises:
        TypeError: D is not a `Conv`, or y or x is not a real array.
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
    # Tokens before the first code, after the last code, and between two codes.
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
        D: the dictionary with which the tokens were embedded.
        tokens: (T, n_atoms + n_channels + 1).

    Returns:
        The code, (d,).

    Raises:
        TypeError: D is not a `Conv`, or tokens are not a real array.
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
    """The tokens after attention and the feed-forward part, both with residual connections."""
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
    """The weights of a block for tokens within bounds, and a bound on the codes after the block."""
    dtype = checks.common_dtype(D, W)
    D, W = checks.cast((D, W), dtype)
    gamma, theta = jnp.asarray(gamma, dtype), jnp.asarray(theta, dtype)
    limits = jnp.concatenate([code_bound.astype(dtype), signal_bound.astype(dtype)])
    n_atoms, n_channels = D.filters.shape[:2]
    c = n_atoms + n_channels + 1
    V = head_values(D, W, gamma)
    # This bound on abs(u) holds for any concentration because the masses of a head sum to 1.
    grown = limits[:n_atoms] + jnp.einsum("hoi,i->o", jnp.abs(V), limits)
    # Neither G nor the next bounds may overflow; codes above this limit would overflow anyway.
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
    """V_tau for all tau, (heads, n_atoms, n_atoms + n_channels), which maps (x, y) to updates."""
    window = [n - 1 for n in D.kernel]
    with jax.default_matmul_precision("highest"):
        from_x = -lax.conv_general_dilated(
            W.filters, D.filters, (1,) * len(window), [(n, n) for n in window]
        )
    from_y = jnp.pad(W.filters, [(0, 0), (0, 0), *((n, 0) for n in window)])
    V = gamma * jnp.concatenate([from_x, from_y], 1)
    return jnp.moveaxis(V.reshape(*V.shape[:2], -1), -1, 0)


def _taps(D: Conv) -> np.ndarray:
    """The offsets tau of the heads, (heads, p); on a circle, modulo the length of the signal."""
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
    """D, after the check that D is a `Conv` whose atoms are all shifts of its filters.

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
    as_dictionary(D, where)  # raises if D is not a valid dictionary
    return D


def analysis_weights(W: Dictionary, D: Conv, where: str) -> Conv:
    """W, after the check that W is a `Conv` with the geometry of D.

    Raises:
        TypeError: W is not a `Conv`.
        ValueError: W has another geometry.
    """
    if not isinstance(W, Conv):
        raise TypeError(f"{where}: W is {type(W).__name__}; expected a Conv, or D itself")
    if not D.is_shift_of(W):
        raise ValueError(
            f"{where}: W has kernel {W.kernel}, signal {W.signal_grid}, stride {W.stride} and "
            f"boundary {W.boundary!r}; expected the same as D: {D.kernel}, {D.signal_grid}, "
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
    """A bound of shape () or (n,) as an array (n,); checked to be finite and non-negative."""
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


class Transformer(Result):
    """A stack of transformer blocks that computes the codes of a layer.

    Attributes:
        apply: `apply(y) -> x`, (m,) -> (d,).
        blocks: the weights of all blocks, stacked along a leading axis of length K.
        depth: K, the number of blocks.
        n_weights: number of entries in the weights.
    """

    apply: Callable[[Array], Array]
    blocks: BlockWeights
    depth: int
    n_weights: int


def transformer(
    layer: Layer, params: Unrolled, D: Conv, *, alpha: float | None = None, signal_bound: ArrayLike
) -> Transformer:
    r"""A stack of K transformer blocks that computes the codes of a layer of K LISTA-CP steps.

    Block k is the `transformer_block` of W, theta_k and gamma_k in `params`; `read_code` reads the
    code from the tokens after the last block. With hard attention, or if alpha is at least about 40
    in float64 or 18 in float32, the code equals `layer.apply(params, D, y)` to rounding. For
    smaller alpha `transformer_error` bounds the difference.

    Args:
        layer: a layer of the family `lista_cp`, `alista`, `tilista` or `ista`, with the activation
            ReLU and without support selection.
        params: params of the layer. At every step theta is a scalar or has one entry per filter,
            and W is a `Conv` with the geometry of D.
        D: a `dictionaries.Conv` with boundary "valid" or "circular".
        alpha: concentration of the attention; None means hard attention, which is exact.
        signal_bound: bound on abs(y), of shape () or (n_channels,). `signal_bound` implies bounds
            on the codes, which set the G of every block.

    Returns:
        Transformer. The derivatives of `apply` equal the derivatives of the layer unless an entry
        of u is exactly 0. At such an entry the derivative of a block is 1.

    Raises:
        TypeError: D or W is not a `Conv`, or the layer or the params are of another family.
        ValueError: the layer selects supports or has another activation, or a check of
            `transformer_block` fails. `apply` raises ValueError if y is concrete and exceeds
            `signal_bound`.

    Not claimed: correct codes for a traced y above `signal_bound`, which cannot be checked.

    Reference: Li, Feng, Zhou (2024), equation (23) and Remark 11; Cordonnier, Loukas, Jaggi (2020).

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((1, 1, 2)) / 2, signal_shape=4)
        >>> layer, y = ur.layers.ista(3, lam=0.1), jnp.array([1.0, 3.0, -2.0, 0.0])
        >>> params = layer.init(jax.random.key(0), D)
        >>> stack = ur.realize.transformer(layer, params, D, signal_bound=3.0)
        >>> bool(jnp.allclose(stack.apply(y), layer.apply(params, D, y), atol=1e-5))
        True
    """
    where = "transformer"
    alpha = _attention.concentration(alpha, where)
    D, shared, steps = _realizable(layer, params, D, where)
    n_channels = D.filters.shape[1]
    signal_bound = as_bound(signal_bound, n_channels, "signal_bound", where)

    blocks = _grown(layer, shared, steps, D, signal_bound)

    def apply(y: Array) -> Array:
        _, y, weights = operands(D, y, where, params=blocks)
        check_within(y.reshape(n_channels, -1), signal_bound[:, None], "y", where)
        return _run_blocks(weights, D, y, alpha)

    return Transformer(apply, blocks, layer.depth, count_weights(blocks))


@program("layer")
def _grown(layer: Layer, shared: Any, steps: Any, D: Conv, signal_bound: Array) -> BlockWeights:
    """The weights of all blocks; each block accepts all codes of the blocks before it."""

    def grow(code_bound, p):
        W, gamma = _weights_and_step(layer, shared, p, D)
        weights, code_bound = block_weights(D, W, gamma, p.theta, code_bound, signal_bound)
        return code_bound, weights

    none = jnp.zeros(D.filters.shape[0], D.dtype)
    return programs.scan(grow, none, steps, length=layer.depth)[1]


@program()
def _run_blocks(blocks: BlockWeights, D: Conv, y: Array, alpha: float | None) -> Array:
    def run(tokens, block):
        return run_block(block, tokens, D, alpha), None

    return read_code(D, programs.scan(run, embed(D, y), blocks)[0])


@program("layer")
def _head_values(layer: Layer, shared: Any, steps: Any, D: Conv) -> Array:
    """V_tau of every step."""
    return jax.vmap(lambda p: head_values(D, *_weights_and_step(layer, shared, p, D)))(steps)


@checked
def transformer_error(
    layer: Layer,
    params: Unrolled,
    D: Conv,
    *,
    alpha: float | None,
    signal_bound: ArrayLike | None = None,
    code_bound: float = math.inf,
    signals: ArrayLike | None = None,
) -> np.ndarray:
    r"""A bound on the error of a transformer with soft attention, after every block.

    .. math::
        e_{k+1} &= |T_k| e_k
            + 2 \, leak(\alpha) \sum_\tau |V_\tau| \begin{pmatrix} b_k + e_k \\ M \end{pmatrix}, \\
        b_{k+1} &= relu(|T_k| b_k + |W_k'| M - \theta_k),

    with one entry per filter and e_0 = b_0 = 0. Here b bounds the codes of the layer and M bounds
    the signal; `|T|` and `|W'|` are the magnitudes of the filters of I - W'D and of W', summed over
    positions. The recursion holds because shrinkage is 1-Lipschitz and because the leak is bounded
    as in `attention_error`. The bound vanishes with the leak, which is about 2 exp(-alpha) per
    dimension. The bound grows geometrically with the depth if row sums of `|T|` exceed 1.

    The bound holds for every signal within M. The error of a single signal can be far smaller. We
    measured an example with 4 filters of length 5 on 64 samples, weights from theory, six blocks
    and alpha = 8, for which the bound is 625. The error of a signal found by gradient ascent is
    1.9. The errors of signals whose codes have one nonzero are only 3e-4, because the thresholds
    stop most of the error that T spreads.

    For given `signals` the bound follows the codes of these signals. The bound is then 0 at every
    entry that certainly stays below its threshold, and the leak depends on the update gamma W'(y -
    D x) instead of the sum of the magnitudes of its terms. In the example above this bound is 0.002
    for the signals whose codes have one nonzero.

    Args:
        layer: a layer as in `transformer`.
        params: params of the layer.
        D: a `dictionaries.Conv` with boundary "valid" or "circular".
        alpha: concentration of the attention; None gives 0.
        signal_bound: M, bound on abs(y), of shape () or (n_channels,).
        code_bound: a known bound on the codes of the layer, which replaces every larger entry of b.
        signals: (n, m) or (m,). The bound then holds only for these signals, and `signal_bound` is
            not needed.

    Returns:
        (K + 1,), float64, the largest bound over the filters (and over the signals) at each step.

    Raises:
        TypeError: params or D are traced (`transformer_error` is a host function), or as in
            `transformer`.
        ValueError: both or neither of `signal_bound` and `signals` are given, or as in
            `transformer`.

    Not claimed: a bound on rounding errors; the bound holds in exact arithmetic.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((1, 1, 2)) / 2, signal_shape=4)
        >>> layer = ur.layers.ista(2, lam=0.1)
        >>> params = layer.init(jax.random.key(0), D)
        >>> bounds = [
        ...     ur.realize.transformer_error(layer, params, D, alpha=alpha, signal_bound=1.0)[-1]
        ...     for alpha in (8.0, 16.0)
        ... ]
        >>> round(float(bounds[0] / bounds[1]))  # about exp(16 - 8)
        2980
    """
    where = "transformer_error"
    checks.on_host((params, D, signals), where, "params, D or signals")
    if (signal_bound is None) == (signals is None):
        raise ValueError(f"{where}: expected either signal_bound or signals")
    checks.nonnegative(code_bound, "code_bound", where)
    with jax.enable_x64(True):
        D, params = jax.device_put(checks.cast_on_host((D, params), np.float64))
        D, shared, steps = _realizable(layer, params, D, where)
        V = np.asarray(_head_values(layer, shared, steps, D))
        theta = np.asarray(steps.theta).reshape(layer.depth, -1)
        if signals is not None:
            return _errors_of_signals(D, V, theta, _attention.concentration(alpha, where), signals)
        assert signal_bound is not None  # exactly one of the two is given
        M = np.asarray(as_bound(signal_bound, V.shape[-1] - V.shape[-2], "signal_bound", where))
    leak, n_atoms = _attention.attention_leak(alpha, len(D.kernel)), V.shape[-2]
    depth = layer.depth
    read = np.abs(V).sum(1)
    # The identity in x + ... is added to the values of the head with offset 0.
    here = np.zeros(V.shape[1:])
    here[len(here) // 2, :, :n_atoms] = np.eye(n_atoms)
    update = np.abs(V + here).sum(1)
    e, b, errors = np.zeros(n_atoms), np.zeros(n_atoms), [0.0]
    for k in range(depth):
        e_next = update[k, :, :n_atoms] @ e + 2 * leak * (read[k] @ np.concatenate([b + e, M]))
        b = np.clip(update[k] @ np.concatenate([b, M]) - theta[k], 0, code_bound)
        e = e_next
        errors.append(e.max())
    return np.array(errors)


def _errors_of_signals(
    D: Conv, V: np.ndarray, theta: np.ndarray, alpha: float | None, signals: ArrayLike
) -> np.ndarray:
    Y = np.atleast_2d(np.asarray(checks.as_float(signals, "signals", "transformer_error")))
    if Y.ndim != 2 or Y.shape[1] != D.shape[0] or not len(Y):
        raise ValueError(
            f"transformer_error: signals have shape {np.shape(signals)}; expected (n, {D.shape[0]})"
        )
    checks.finite(Y, "signals", "transformer_error")
    if alpha is None:
        return np.zeros(len(V) + 1)
    return np.max([_attention.errors_of_signal(D, V, theta, alpha, y) for y in Y], axis=0)


def _realizable(layer: Layer, params: Unrolled, D: Conv, where: str) -> tuple[Conv, Any, Any]:
    """D, the shared params and the stacked steps, checked and in one dtype."""
    activation = activation_of(layer, None, where)
    if activation != relu:
        raise ValueError(
            f"{where}: a block shrinks by ReLU, but the layer has the activation {activation}"
        )
    D = shift_invariant(D, where)
    layer.check(params, D)
    D, (shared, steps) = checks.cast((D, stack(params)), checks.common_dtype(D, params))
    if layer.depth:
        W, gamma, _ = layer.weights(shared, steps, D)
        analysis_weights(W, D, where)
        check_per_filter(steps.theta, gamma, D.filters.shape[0], 1, where)
    return D, shared, steps


def _weights_and_step(layer: Layer, shared: Any, p: Any, D: Conv) -> tuple[Conv, Array]:
    """W and gamma of a step."""
    W, gamma, _ = layer.weights(shared, p, D)
    return W, jnp.ones((), D.dtype) if gamma is None else gamma
