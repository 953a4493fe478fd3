"""Convolution as multi-head attention over relative positions: one head per tap (Remark 11)."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Result, checked, program
from unrolled.dictionaries import Conv
from unrolled.realize._cnn_layers import count_weights

__all__ = [
    "Attention",
    "Heads",
    "attention",
    "attention_error",
    "attention_leak",
    "multi_head_attention",
]


# The sums in `attention_leak` keep these terms: the first omitted term is below exp(-899) times the
# first term.
_DISTANCES = np.arange(1, 30)


class Heads(NamedTuple):
    """Weights of a multi-head attention that scores positions only: W_q = W_k = 0.

    Attributes:
        directions: (heads, 1 + p), integers; v_h is alpha times row h.
        values: (heads, channels out, channels in), V_h.
        bias: b, (channels out,).
    """

    directions: Array
    values: Array
    bias: Array


class Attention(Result):
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

    With v_h = -alpha (1, -2h) the logits are -alpha norm(delta - h)^2 up to a constant. Head h
    therefore attends to the token at offset h from the query, or to the nearest token if no token
    has this offset.

    Args:
        tokens: (T, channels in), x_k at position `keys[k]`.
        heads: the weights, for instance `attention(...).heads`.
        queries: (Q, p), integer positions, static.
        keys: (T, p), integer positions, static.
        alpha: concentration; None means hard attention, the limit alpha -> inf, which puts all mass
            on the largest logit.
        period: (p,), period of the positions along each dimension if the tokens lie on a circle.
            Each offset h then lies in 0 .. period - 1.

    Returns:
        The outputs z, (Q, channels out).

    Raises:
        TypeError: alpha is concrete and not a number.
        ValueError: alpha is concrete and not positive and finite.

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
    # The logits are integers, and the largest logit becomes 0. The keys with nonzero weight then
    # have neither rounding errors nor overflow.
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

    Each position of X is a token whose features are the channels. Head k has the values
    V_k = filters[:, :, k] and attends to the token k positions after the query. The query of output
    i is the token at position i t, where t is the stride. Zero tokens are appended past the far
    border so that every head finds its target. Without these zero tokens a head at the border would
    read the last token instead of zero, and no alpha would remove this error.

    Args:
        filters: (n_atoms, n_channels, *kernel); a kernel may be longer than the signal.
        bias: (n_atoms,), or None for zero.
        signal_shape: N, one length per dimension, as in `dictionaries.Conv`.
        stride: t, one number for all dimensions or one number for each dimension.
        alpha: concentration; None means hard attention, which is exact. The error of soft attention
            is at most `attention_error`. This bound is below rounding if alpha is at least 40 in
            float64 or 18 in float32.

    Returns:
        Attention.

    Raises:
        ValueError: shapes do not fit, or alpha is not positive and finite. `apply` raises
            ValueError if X has another shape.

    Not claimed: equality with the convolution at finite alpha. Attention followed by a layer norm
    does not compute this map in general.

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

    The bound holds for tokens that fill a grid or a torus, on which the mass is a product over
    dimensions.

    Args:
        alpha: concentration; None gives 0.
        dimensions: p, the number of dimensions.

    Returns:
        The bound, in [0, 1].

    Raises:
        ValueError: alpha is not positive and finite.

    Reference: Cordonnier, Loukas, Jaggi (2020), Lemma 2, which states the limit alpha -> inf.

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
    """The sum of exp(-alpha u^2) over all integers u except 0."""
    squares = _DISTANCES**2
    with np.errstate(over="ignore"):  # an overflow leads to exp(-inf) = 0
        if alpha >= 1:
            return 2 * float(np.exp(-alpha * squares).sum())
        # The same sum by Poisson summation, which converges fast for small alpha.
        dual = 1 + 2 * float(np.exp(-(math.pi**2) * squares / alpha).sum())
    return math.sqrt(math.pi / alpha) * dual - 1


@checked
def attention_error(filters: Array, X: ArrayLike, alpha: float | None) -> np.ndarray:
    r"""A bound on the difference between soft attention and the convolution.

    .. math:: |out - conv| \le 2 \, leak(\alpha) \sum_h \max_j |V_h x_j|.

    At most a fraction `attention_leak` of the mass of a head lies off its target. The value of any
    other token differs from the value of the target by at most twice the maximum.

    Args:
        filters: (n_atoms, n_channels, *kernel).
        X: the signal, (n_channels, *signal_shape), or a bound on the magnitudes of all signals, of
            shape () or (n_channels,).
        alpha: concentration; None gives 0.

    Returns:
        One bound per filter, (n_atoms,), float64; each bound holds at all positions.

    Raises:
        ValueError: shapes do not fit, the bound is negative, or alpha is not positive and finite.
        TypeError: the arguments are traced (`attention_error` is a host function).

    Not claimed: a bound on rounding errors; the bound holds in exact arithmetic.

    Example:
        >>> filters, X = jnp.ones((1, 1, 2)), jnp.array([[1.0, 2.0, 3.0]])
        >>> exact = ur.realize.attention(filters, signal_shape=3).apply(X)
        >>> soft = ur.realize.attention(filters, signal_shape=3, alpha=8.0).apply(X)
        >>> bool(jnp.abs(soft - exact).max() < ur.realize.attention_error(filters, X, 8.0)[0])
        True
    """
    where = "attention_error"
    filters, X = (checks.as_float(v, name, where) for v, name in ((filters, "filters"), (X, "X")))
    checks.on_host((filters, X), where, "filters or X")
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


# exp(-745) is the last positive value in float64: the sums skip distances whose mass is zero.
_UNDERFLOW = 750.0
_FLAT = 1e-6  # a smaller alpha leaves too many positive masses to sum


class Leak:
    r"""The operators in `errors_of_signal`, for one dictionary and one concentration of attention.

    Head tau reads G_tau z instead of z; each row of G_tau holds the attention masses of one query.
    If all heads have the same masses g around their targets, the total leak is the convolution of
    V z, the sum of the values, with g - delta:

    .. math:: \sum_\tau V_\tau (G_\tau - I) z = (g - \delta) * (V z).

    V z = gamma W'(y - D x) is the update of the layer, which is much smaller than the sum of
    |V_tau z|. The masses of a head can differ from g: on a line no mass lies past the border, and
    on a circle the masses of the outermost offsets differ.

    Args:
        D: the dictionary.
        alpha: concentration of the attention.
    """

    def __init__(self, D: Conv, alpha: float):
        self.D, self.alpha = D, alpha
        self.circular = D.boundary == "circular"
        self.reach = tuple(n - 1 for n in D.kernel)
        self.leak = attention_leak(alpha, len(D.kernel))
        lead = 0 if self.circular else 1
        self.grid = tuple(N + lead * n for N, n in zip(D.signal_shape, self.reach))

    def place(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n_atoms, *positions) on the grid of tokens, zero at tokens without a code."""
        tokens = np.zeros((len(codes), *self.grid))
        tokens[(slice(None), *self._at(1))] = codes
        return tokens

    def signal(self, y: np.ndarray) -> np.ndarray:
        """A signal (m,) on the grid of tokens, (n_channels, *grid)."""
        y = y.reshape(-1, *self.D.signal_shape)
        return np.pad(y, [(0, 0), *((0 if self.circular else n, 0) for n in self.reach)])

    def everywhere(self, most: np.ndarray) -> np.ndarray:
        """The bounds (channels,), repeated at all positions of the grid of tokens."""
        return np.broadcast_to(most.reshape(-1, *[1] * len(self.grid)), (len(most), *self.grid))

    def read(self, V: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The sum over tau of V_tau z(q + tau) at every q with a token in reach, (n_atoms, ...)."""
        kernel = np.moveaxis(V, 0, -1).reshape(*V.shape[1:], *(2 * n + 1 for n in self.reach))
        times = 1 if self.circular else 2
        pad = [(0, 0), *((times * n, times * n) for n in self.reach)]
        padded = np.pad(tokens, pad, mode="wrap") if self.circular else np.pad(tokens, pad)
        arguments = jnp.asarray(padded)[None], jnp.asarray(kernel)
        out = lax.conv_general_dilated(*arguments, (1,) * len(self.reach), "VALID")
        return np.array(out)[0]

    def at_codes(self, values: np.ndarray) -> np.ndarray:
        """A view of a result of `read` at the positions of the codes."""
        return values[(slice(None), *self._at(2))]

    def of_update(self, V: np.ndarray, update: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """A bound on the leak at the positions of the codes.

        Args:
            V: the magnitudes of the values, (heads, n_atoms, channels).
            update: |V z|, with V z as `read` returns it.
            tokens: |z|, (channels, *grid).
        """
        size = sum(math.log1p(self._others_of_one(n)) for n in update.shape[1:])
        own, lost = math.exp(-size), -math.expm1(-size)  # the masses of g at and off the target
        spread, total = np.zeros_like(update), update
        for axis in range(1, update.ndim):
            moved = self._moved(axis, total)
            spread, total = spread + moved, total + moved
        return self.at_codes(own * spread + lost * update + self._apart(V, tokens))

    def _at(self, leads: int) -> Iterator[slice]:
        leads = 0 if self.circular else leads
        sizes = zip(self.reach, self.D.positions, self.D.stride)
        return (slice(leads * n, leads * n + (p - 1) * t + 1, t) for n, p, t in sizes)

    def _others_of_one(self, size: int) -> float:
        """The mass of g off the target along one dimension, divided by the mass at the target."""
        return float(self._others(size)[0].sum() if self.circular else 2 * self._tail(0))

    def _others(self, size: int) -> np.ndarray:
        """exp(-alpha u^2) for the distance u of any two positions, but 0 for u = 0."""
        u = np.abs(np.arange(size)[:, None] - np.arange(size))
        u = np.minimum(u, size - u) if self.circular else u
        return np.where(u == 0, 0, self._mass(u))

    def _moved(self, axis: int, values: np.ndarray) -> np.ndarray:
        """The sum of the other `values` along an axis, weighted by exp(-alpha u^2)."""
        others = self._others(values.shape[axis])
        return np.moveaxis(np.tensordot(others, values, (1, axis)), 0, axis)

    def _apart(self, V: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The correction for heads whose masses differ from g."""
        if self.circular:
            most = tokens.reshape(len(tokens), -1).max(1)
            added = np.einsum("hoc,c,h->o", V, most, self._distances())
            return added.reshape(-1, *[1] * len(self.reach))
        more, total = np.zeros(self.grid), tokens
        for axis, size in enumerate(self.grid):
            i = np.arange(size)
            gone = self._tail(i) + self._tail(size - 1 - i)  # the masses past the two borders
            inside = 1 + self._others(size).sum(1)
            more = more + np.log1p(gone / inside).reshape(
                [-1 if a == axis else 1 for a in range(more.ndim)]
            )
            total = total + self._moved(axis + 1, total)
        return self.read(V, np.expm1(more) * (1 - self.leak) * total)

    def _mass(self, u: np.ndarray) -> np.ndarray:
        """exp(-alpha u^2)."""
        with np.errstate(over="ignore"):  # an overflow leads to exp(-inf) = 0
            return np.exp(-self.alpha * u.astype(float) ** 2)

    def _tail(self, i: np.ndarray | int) -> np.ndarray:
        """The sum of exp(-alpha u^2) over u > i."""
        if self.alpha < _FLAT:
            terms = self._mass(np.arange(1, np.max(i) + 1))
            return others_on_a_line(self.alpha) / 2 - np.append(0.0, np.cumsum(terms))[i]
        last = math.ceil(math.sqrt(_UNDERFLOW / self.alpha)) + 1
        terms = self._mass(np.arange(last + 1))
        sums = np.append(np.cumsum(terms[::-1])[::-1], 0.0)
        return sums[np.minimum(np.asarray(i) + 1, last + 1)]

    def _distances(self) -> np.ndarray:
        """The l1 distance between g and the masses of each head on a circle, (heads,).

        The offsets of a head run from 0 to N - 1; the offsets of g lie on both sides of the target.
        """
        distance = np.zeros([2 * n + 1 for n in self.reach])
        for axis, (n, N) in enumerate(zip(self.reach, self.D.signal_shape)):
            u = np.abs(np.arange(N)[None] - (np.arange(-n, n + 1) % N)[:, None])
            line, circle = (self._mass(d) for d in (u, np.minimum(u, N - u)))
            line[u == 0], circle[u == 0] = 0, 0
            S, C = line.sum(1, keepdims=True), circle.sum(1, keepdims=True)
            own = np.abs(S - C) / ((1 + S) * (1 + C))
            off = own[:, 0] + np.abs(line / (1 + S) - circle / (1 + C)).sum(1)
            distance = distance + off.reshape(
                [-1 if a == axis else 1 for a in range(distance.ndim)]
            )
        return distance.reshape(-1)


def errors_of_signal(
    D: Conv, V: np.ndarray, theta: np.ndarray, alpha: float, y: np.ndarray
) -> np.ndarray:
    r"""Bounds on the largest error in the code of one signal after every block, (K + 1,).

    .. math::
        \Delta_k = |T_k| e_k + |g - \delta| * |V_k z_k| + 2 \, leak \, |V_{k,x}| \max e_k + \dots,
        \qquad e_{k+1} = \Delta_k \text{ where } |u_k| + \Delta_k > \theta_k, \text{ else } 0.

    Args:
        D: the dictionary.
        V: (K, heads, n_atoms, n_atoms + n_channels), the values of the heads.
        theta: (K, 1 or n_atoms).
        alpha: concentration of the attention.
        y: the signal, (m,).
    """
    leak, n_atoms = Leak(D, alpha), V.shape[-2]
    # The identity in x + ... is added to the values of the head with offset 0.
    here = np.zeros(V.shape[1:])
    here[len(here) // 2, :, :n_atoms] = np.eye(n_atoms)
    x, e, y, errors = np.zeros(D.code_grid), np.zeros(D.code_grid), leak.signal(y), [0.0]
    for values, t in zip(V, theta.reshape(len(V), -1, *[1] * (x.ndim - 1))):
        size, tokens = np.abs(values), np.concatenate([leak.place(x), y])
        update = leak.read(values, tokens)
        u = x + leak.at_codes(update)
        most = leak.everywhere(e.reshape(n_atoms, -1).max(1))
        moved = leak.read(np.abs(values + here)[..., :n_atoms], leak.place(e))
        again = 2 * leak.leak * leak.read(size[..., :n_atoms], most)
        delta = leak.at_codes(moved + again) + leak.of_update(size, np.abs(update), np.abs(tokens))
        # Both codes are 0 if neither argument exceeds the threshold.
        e = np.where(np.abs(u) + delta > t, delta, 0)
        x = np.sign(u) * np.maximum(np.abs(u) - t, 0)
        errors.append(float(e.max()))
    return np.array(errors)
