"""A transformer that computes LISTA-CP for a convolutional dictionary, one iteration per block."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, loops
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.programs import program
from unrolled.activations import relu
from unrolled.dictionaries import Conv, operands
from unrolled.layers import Layer, Unrolled, stack
from unrolled.realize._attention import attention_leak, concentration, others_on_a_line
from unrolled.realize._blocks import activation_of
from unrolled.realize._conv_layer import count_weights
from unrolled.realize._transformer_block import (
    BlockWeights,
    analysis_weights,
    as_bound,
    block_weights,
    check_per_filter,
    check_within,
    embed,
    head_values,
    read_code,
    run_block,
    shift_invariant,
)

# exp(-745) is the last positive one: distances whose weight is zero are not summed.
_UNDERFLOW = 750.0
_FLAT = 1e-6  # concentrations below this have too many other weights to sum


class Leak:
    r"""The operators of the bound, for one dictionary and one concentration of the attention.

    Head tau reads G_tau z in place of z, where the rows of G_tau are masses. If all heads have the
    masses g around their targets, what leaks is spread by g from the sums of the values:

    .. math:: \sum_\tau V_\tau (G_\tau - I) z = (g - \delta) * (V z).

    V z = gamma W'(y - D x) is the update of the layer, much smaller than the sum of |V_tau z|. On a
    line the masses differ from g by those past the border, on a circle for the outermost offsets.

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
        """Codes (n_atoms, *positions) on the grid of tokens, zero where no code is."""
        tokens = np.zeros((len(codes), *self.grid))
        tokens[(slice(None), *self._at(1))] = codes
        return tokens

    def signal(self, y: np.ndarray) -> np.ndarray:
        """A signal (m,) on the grid of tokens, (n_channels, *grid)."""
        y = y.reshape(-1, *self.D.signal_shape)
        return np.pad(y, [(0, 0), *((0 if self.circular else n, 0) for n in self.reach)])

    def everywhere(self, most: np.ndarray) -> np.ndarray:
        """The bounds (channels,) at all positions of the grid of tokens."""
        return np.broadcast_to(most.reshape(-1, *[1] * len(self.grid)), (len(most), *self.grid))

    def read(self, V: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """sum_tau V_tau z(q + tau) at every position q that meets a token, (n_atoms, ...)."""
        kernel = np.moveaxis(V, 0, -1).reshape(*V.shape[1:], *(2 * n + 1 for n in self.reach))
        times = 1 if self.circular else 2
        pad = [(0, 0), *((times * n, times * n) for n in self.reach)]
        padded = np.pad(tokens, pad, mode="wrap") if self.circular else np.pad(tokens, pad)
        arguments = jnp.asarray(padded)[None], jnp.asarray(kernel)
        out = lax.conv_general_dilated(*arguments, (1,) * len(self.reach), "VALID")
        return np.array(out)[0]

    def at_codes(self, values: np.ndarray) -> np.ndarray:
        """The part of what `read` returns at the positions of the codes, a view."""
        return values[(slice(None), *self._at(2))]

    def of_update(self, V: np.ndarray, update: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What leaks to the positions of the codes.

        Args:
            V: (heads, n_atoms, channels), magnitudes.
            update: |V z|, as `read` returns V z.
            tokens: |z|, (channels, *grid).
        """
        size = sum(math.log1p(self._others_of_one(n)) for n in update.shape[1:])
        own, lost = math.exp(-size), -math.expm1(-size)  # the masses of g at its target and off it
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
        """The masses of g off its target along one dimension, relative to that of the target."""
        return float(self._others(size)[0].sum() if self.circular else 2 * self._tail(0))

    def _others(self, size: int) -> np.ndarray:
        """exp(-alpha u^2) at the distances u of two positions, 0 for u = 0."""
        u = np.abs(np.arange(size)[:, None] - np.arange(size))
        u = np.minimum(u, size - u) if self.circular else u
        return np.where(u == 0, 0, self._mass(u))

    def _moved(self, axis: int, values: np.ndarray) -> np.ndarray:
        """What the other positions along an axis of `values` add, relative to their own mass."""
        others = self._others(values.shape[axis])
        return np.moveaxis(np.tensordot(others, values, (1, axis)), 0, axis)

    def _apart(self, V: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What is added where the masses of a head are not those of g."""
        if self.circular:
            most = tokens.reshape(len(tokens), -1).max(1)
            added = np.einsum("hoc,c,h->o", V, most, self._distances())
            return added.reshape(-1, *[1] * len(self.reach))
        more, total = np.zeros(self.grid), tokens
        for axis, size in enumerate(self.grid):
            i = np.arange(size)
            gone = self._tail(i) + self._tail(size - 1 - i)  # past the two borders
            inside = 1 + self._others(size).sum(1)
            more = more + np.log1p(gone / inside).reshape(
                [-1 if a == axis else 1 for a in range(more.ndim)]
            )
            total = total + self._moved(axis + 1, total)
        return self.read(V, np.expm1(more) * (1 - self.leak) * total)

    def _mass(self, u: np.ndarray) -> np.ndarray:
        """exp(-alpha u^2)."""
        with np.errstate(over="ignore"):  # to exp(-inf) = 0
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
        """The l1 distance of the masses of every head on a circle from g, (heads,).

        The offsets of a head go from 0 to N - 1, not to both sides of its target.
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
    r"""Bounds on the error after every block for one signal, (K + 1,), the largest over its code.

    .. math::
        \Delta_k = |T_k| e_k + |g - \delta| * |V_k z_k| + 2 \, leak \, |V_{k,x}| \max e_k + \dots,
        \qquad e_{k+1} = \Delta_k \text{ where } |u_k| + \Delta_k > \theta_k, \text{ else } 0.

    Args:
        D: the dictionary.
        V: (K, heads, n_atoms, n_atoms + n_channels), the values of the heads.
        theta: (K, 1 or n_atoms).
        alpha: concentration of the attention.
        y: (m,).
    """
    leak, n_atoms = Leak(D, alpha), V.shape[-2]
    # The head that reads the target's own position also carries the identity in x + ...
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
        # Both codes are 0 where neither argument exceeds the threshold.
        e = np.where(np.abs(u) + delta > t, delta, 0)
        x = np.sign(u) * np.maximum(np.abs(u) - t, 0)
        errors.append(float(e.max()))
    return np.array(errors)


class Transformer(NamedTuple):
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
    code from the last tokens. With hard attention, or alpha of at least about 40 in float64 and 18
    in float32, the code equals `layer.apply(params, D, y)` to rounding. For smaller alpha
    `transformer_error` bounds the difference.

    Args:
        layer: a layer of the family `lista_cp`, `alista`, `tilista` or `ista`, with the activation
            ReLU and no support selection.
        params: of the layer. At every step theta is a scalar or has one entry per filter; W is a
            `Conv` of the geometry of D.
        D: a `dictionaries.Conv` with boundary "valid" or "circular".
        alpha: concentration of the attention; None is hard attention, which is exact.
        signal_bound: bound on abs(y), () or (n_channels,). It bounds the codes, and these bounds
            set the G of every block.

    Returns:
        Transformer. Its derivatives are those of the layer, except where u is exactly 0: there the
        derivative of a block is 1.

    Raises:
        TypeError: D or W is not a `Conv`, or the layer or the params are of another family.
        ValueError: the layer selects supports or has another activation, or a check of
            `transformer_block` fails; when called, a known y exceeds `signal_bound`.

    Not claimed: correct codes for a traced y above `signal_bound`, which cannot be checked.

    Reference: Li, Feng, Zhou (2024), (23) and Remark 11; Cordonnier, Loukas, Jaggi (2020).

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((1, 1, 2)) / 2, signal_shape=4)
        >>> layer, y = ur.layers.ista(3, lam=0.1), jnp.array([1.0, 3.0, -2.0, 0.0])
        >>> params = layer.init(jax.random.key(0), D)
        >>> stack = ur.realize.transformer(layer, params, D, signal_bound=3.0)
        >>> bool(jnp.allclose(stack.apply(y), layer.apply(params, D, y), atol=1e-5))
        True
    """
    where = "transformer"
    alpha = concentration(alpha, where)
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
    """The weights of all blocks: each for the codes that the blocks before it can make."""

    def grow(code_bound, p):
        W, gamma = _weights_and_step(layer, shared, p, D)
        weights, code_bound = block_weights(D, W, gamma, p.theta, code_bound, signal_bound)
        return code_bound, weights

    none = jnp.zeros(D.filters.shape[0], D.dtype)
    return loops.scan(grow, none, steps, length=layer.depth)[1]


@program()
def _run_blocks(blocks: BlockWeights, D: Conv, y: Array, alpha: float | None) -> Array:
    def run(tokens, block):
        return run_block(block, tokens, D, alpha), None

    return read_code(D, loops.scan(run, embed(D, y), blocks)[0])


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

    with one entry per filter and e_0 = b_0 = 0. Here b bounds the codes of the layer and M the
    signal; `|T|` and `|W'|` are the magnitudes of the filters of I - W'D and of W', summed over
    positions. The recursion holds because shrinkage is 1-Lipschitz and the leak is bounded as in
    `attention_error`. The bound vanishes with the leak, about 2 exp(-alpha) per dimension, and
    grows geometrically with the depth if row sums of `|T|` exceed 1.

    This holds for every signal within M, and some come near it. With 4 filters of length 5 on 64
    samples, theory's weights, six blocks and alpha = 8 it is 625. A signal found by ascent errs
    by 1.9, but signals with one nonzero by 3e-4: thresholds stop most of what T spreads. For given
    `signals` the bound follows their codes. It is 0 where no threshold is reached, and what leaks
    is the update gamma W'(y - D x), not the sum of the magnitudes of its terms: .002 there.

    Args:
        layer: as in `transformer`.
        params: of the layer.
        D: a `dictionaries.Conv` with boundary "valid" or "circular".
        alpha: concentration of the attention; None gives 0.
        signal_bound: M, bound on abs(y), () or (n_channels,).
        code_bound: a known bound on the codes of the layer, which replaces b where it is smaller.
        signals: (n, m), or (m,): the bound is for these alone, without `signal_bound`.

    Returns:
        (K + 1,), float64, at each step the largest entry over the filters (and over the signals).

    Raises:
        TypeError: params or D are traced (this is a host function), and as `transformer`.
        ValueError: as `transformer`, or neither or both of `signal_bound` and `signals`.

    Not claimed: a bound on rounding errors; this one is for exact arithmetic.

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
    if not checks.is_concrete((params, D, signals)):
        raise TypeError(
            f"{where}: params or D are traced; this function runs on the host, call it outside jit"
        )
    if (signal_bound is None) == (signals is None):
        raise ValueError(f"{where}: expected either signal_bound or signals")
    checks.nonnegative(code_bound, "code_bound", where)
    with jax.enable_x64(True):
        D, params = _in_float64((D, params))
        D, shared, steps = _realizable(layer, params, D, where)
        V = np.asarray(_head_values(layer, shared, steps, D))
        theta = np.asarray(steps.theta).reshape(layer.depth, -1)
        if signals is not None:
            return _errors_of_signals(D, V, theta, concentration(alpha, where), signals)
        assert signal_bound is not None  # one of the two is given
        M = np.asarray(as_bound(signal_bound, V.shape[-1] - V.shape[-2], "signal_bound", where))
    leak, n_atoms = attention_leak(alpha, len(D.kernel)), V.shape[-2]
    depth = layer.depth
    read = np.abs(V).sum(1)
    # The head that reads the target's own position also carries the identity in x + ...
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


@program()
def _in_float64(tree: Any) -> Any:
    return checks.cast(tree, np.float64)


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
    return np.max([errors_of_signal(D, V, theta, alpha, y) for y in Y], axis=0)


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
