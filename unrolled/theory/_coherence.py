"""Mutual coherence (Definition 3), the coherence of given weights W, and bounds on sparsity."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.arguments import F
from unrolled._base.doors import Array, ArrayLike, Result, checked, host_function, program
from unrolled._base.numbers import exponent, largest, times_power, up, wide_dtype
from unrolled.dictionaries import Dictionary, Operator, Structured
from unrolled.theory._rounding import Rounding, share

__all__ = [
    "Coherence",
    "babel",
    "coherence",
    "max_sparsity",
    "mutual_coherence",
    "rounding_guard",
    "spark_bound",
    "sparsity_bound",
    "welch_bound",
]


# The number of atoms on a side of a tile. A tile and its atoms fit in the cache of a core.
_SIDE = 512


@program("diagonal")
def row_maxima(W: Array, D: Array, diagonal: bool = False) -> Array:
    """The largest abs(w_i . d_j) for every i, (d,), over j != i, or over all j if `diagonal`."""

    def reduce(best, sizes, own):
        sizes = sizes if diagonal else jnp.where(own, 0, sizes)
        return jnp.maximum(best, largest(sizes, 1))

    return _reduced(reduce, W, D)


@program()
def row_excess(D: Array, level: Array) -> Array:
    """The sum of (abs(d_i . d_j) - level)_+ over j != i, (d,)."""

    def reduce(total, sizes, own):
        return total + jnp.sum(jnp.where(own, 0, jnp.maximum(sizes - level, 0)), 1)

    return _reduced(reduce, D, D)


def _reduced(reduce: Callable[[Array, Array, Array], Array], W: Array, D: Array) -> Array:
    """The folds of reduce(total, abs(W'D), i = j) over the tiles of each row from 0, (d,)."""
    (m, d), n = D.shape, -(-D.shape[1] // _SIDE)
    # One side has atoms in rows, the other in columns, so every tile is a plain product.
    left, right = (jnp.pad(A, ((0, 0), (0, n * _SIDE - d))) for A in (W, D))
    left, right = left.T.reshape(n, _SIDE, m), right.reshape(m, n, _SIDE).swapaxes(0, 1)
    tiles, side = jnp.arange(n), jnp.arange(_SIDE)

    @jax.checkpoint
    def tile(total, i, w, j, a):
        own = (i * _SIDE + side)[:, None] == (j * _SIDE + side)[None, :]
        with jax.default_matmul_precision("highest"):
            return reduce(total, jnp.abs(w @ a), own)

    def rows(of):
        i, w = of
        start = jnp.zeros(_SIDE, D.dtype)
        return lax.scan(lambda total, ja: (tile(total, i, w, *ja), None), start, (tiles, right))[0]

    return lax.map(rows, (tiles, left)).reshape(-1)[:d]


# The formats that accelerators use for float32 products.
_FORMATS = ("bfloat16", "tensorfloat32", "float32", "highest")
# A matrix of inner products with more entries than this (64 MiB in float32) is formed in tiles.
BLOCK = 2**24
_SORTED = 2**20  # a matrix with more entries is not sorted as a whole
# What to try if codes come in parts.
OF_PARTS = "theory.block_coherence and theory.schedule"
# A sparsity bound with a smaller relative distance to an integer counts as the integer. This
# distance is far above the rounding of the few float64 operations that compute the bound.
_INTEGER = 1e-9


class Coherence(Result):
    """The two numbers by which weights W enter every theorem."""

    mu_W: Array  # max over i != j of abs(w_i . d_j)
    C_W: Array  # max abs(W_ij)


def mutual_coherence(D: Dictionary) -> Array:
    r"""The largest cosine between two atoms, in [0, 1]; 0 for a single atom.

    .. math:: \mu(D) = \max_{i \ne j} |d_i \cdot d_j| / (\|d_i\|_2 \|d_j\|_2).

    Traceable. For a `Conv` the function uses the correlations of the filters. If there are many
    atoms, their inner products are formed block by block, never as a (d, d) array.

    Args:
        D: (m, d); atoms need not be normalised.

    Returns:
        mu, an array of shape (); nan for a traced D with a zero atom.

    Raises:
        ValueError: D is not traced, and an atom is zero or its norm exceeds the range of the dtype;
            or border atoms of a `Conv` are cut.

    Reference: Li, Feng, Zhou (2024), Definition 3; Donoho, Huo (2001).

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> float(ur.theory.mutual_coherence(D))
        0.25
    """
    D = without_parts(dictionaries.as_dictionary(D, "mutual_coherence"), "mutual_coherence")
    refuse_cut_atoms(D, "mutual_coherence")
    mu, norms = measured(D)
    dictionaries.nonzero_atoms(norms, "mutual_coherence")
    return mu


@program()
def measured(D: Dictionary) -> tuple[Array, Array]:
    """mu(D), nan if an atom is zero, and the norms of the atoms, (d,)."""
    refuse_cut_atoms(D, "mutual_coherence")
    unit, norms = dictionaries.normalized(D)
    mu = jnp.minimum(weights_coherence(unit, unit).mu_W, 1.0)
    return jnp.where(((norms > 0) & (norms < jnp.inf)).all(), mu, jnp.nan), norms


def coherence(W: Dictionary, D: Dictionary) -> Coherence:
    r"""The coherence of weights W with D, and the largest entry of W.

    .. math:: \mu_W = \max_{i \ne j} |w_i \cdot d_j|, \qquad C_W = \max_{i, j} |W_{ij}|.

    Every convergence theorem holds with these two numbers for any W with w_i . d_i = 1. So these
    numbers certify weights from any source (D, the closed form, linear programs, training).
    Traceable.

    Args:
        W, D: (m, d); the atoms of D have unit norm.

    Returns:
        Coherence(mu_W, C_W), two arrays of shape ().

    Raises:
        ValueError: the shapes differ, D is not traced and an atom is off unit norm by more than
            1e-4, or border atoms of a `Conv` are cut.

    Reference: Li, Feng, Zhou (2024), Definitions 7 and 8.

    Example:
        >>> D = ur.dictionaries.paley(13)
        >>> coherence = ur.theory.coherence(ur.theory.frobenius_weights(D), D)
        >>> round(float(coherence.mu_W) ** -2, 3)
        13.0
    """
    return weights_coherence(*weights_of(W, D, "coherence"))


def weights_of(W: Dictionary, D: Dictionary, where: str) -> tuple[Operator, Operator]:
    """W and D in their common dtype, checked as in `coherence`.

    Example:
        >>> from unrolled.theory._coherence import weights_of
        >>> [A.dtype.name for A in weights_of(jnp.eye(2), np.eye(2, dtype="float32"), "caller")]
        ['float32', 'float32']
    """
    W, D = _of_one_shape(W, D, where)
    without_parts(D, where)
    refuse_cut_atoms(D, where)
    dictionaries.unit_atoms(D, where)
    dtype = checks.common_dtype(W, D)
    return checks.cast(W, dtype), checks.cast(D, dtype)


def _of_one_shape(W: Dictionary, D: Dictionary, where: str) -> tuple[Operator, Operator]:
    """W and D in floating point; raise ValueError unless their shapes agree."""
    D, W = dictionaries.as_dictionary(D, where), dictionaries.as_dictionary(W, where, "W")
    if W.shape != D.shape:
        hint = " Did you pass W.T?" if W.shape == D.shape[::-1] else ""
        raise ValueError(
            f"{where}: W has shape {W.shape} but D has shape {D.shape}; they must agree.{hint}"
        )
    return W, D


@checked
@program()
def weights_coherence(W: Dictionary, D: Dictionary) -> Coherence:
    """`coherence` without its checks: atoms may have any norm.

    Example:
        >>> W, D = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 0.5], [0.1, 1.0]])
        >>> coherence = ur.theory.weights_coherence(W, D)
        >>> coherence.mu_W.item(), coherence.C_W.item()
        (0.5, 2.0)
    """
    if exceeds(D):
        mu_W = largest(row_maxima(dictionaries.dense(W), dictionaries.dense(D)))
    else:
        products, own = dictionaries.inner_products(W, D)
        mu_W = largest(jnp.where(own, 0.0, jnp.abs(products)))
    return Coherence(mu_W, largest(jnp.abs(dictionaries.entries(W))))


def exceeds(D: Dictionary) -> bool:
    """Whether the matrix of all inner products is too large to be formed at once."""
    whole = not isinstance(D, Structured) or type(D).inner_products is Structured.inner_products
    return whole and D.shape[1] ** 2 > BLOCK


@checked
@program()
def diagonal(W: Dictionary, D: Dictionary) -> Array:
    """w_i . d_i for every row of `inner_products`: all atoms, or the representatives of a `Conv`.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 4, 8)
        >>> bool(jnp.allclose(ur.theory.diagonal(ur.theory.frobenius_weights(D), D), 1, atol=1e-5))
        True
    """
    if exceeds(D):
        return jnp.sum(dictionaries.dense(W) * dictionaries.dense(D), axis=0)
    products, own = dictionaries.inner_products(W, D)
    return jnp.sum(jnp.where(own, products, 0.0), axis=1)


def without_parts(D: Operator, where: str, instead: str = OF_PARTS) -> Operator:
    """D; raise ValueError if codes of D come in parts, because `where` works on single entries."""
    dictionaries.refuse_parts(D, where, f"this is about entries, try {instead}")
    return D


def of_real_entries(order: str, instead: str = OF_PARTS) -> Callable[[F], F]:
    """A decorator that makes a function refuse complex numbers and codes in parts.

    Args:
        order: the names of the first arguments of the function, in order.
        instead: the alternative to suggest in the error message.

    Raises:
        TypeError: an argument W, D, y or x is complex.
        ValueError: codes of D come in parts.
    """

    def decorate(function: F) -> F:
        where, names = function.__name__, order.split()

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            given = dict(zip(names, args)) | options
            for name in ("D", "W", "y", "x"):
                if _is_complex(given.get(name)):
                    raise TypeError(
                        f"{where}: {name} is {getattr(given[name], 'dtype', 'complex')}; expected "
                        f"real numbers, because {where} is about real entries; for complex codes "
                        f"try {instead}, with D = dictionaries.Complex.of(A)"
                    )
            if "D" in given:
                without_parts(given["D"], where, instead)
            return function(*args, **options)

        return call  # type: ignore[return-value]  # of the same signature

    return decorate


def _is_complex(x: Any) -> bool:
    try:
        return bool(np.iscomplexobj(x))
    except (TypeError, ValueError):  # no array: the function says what it expects
        return False


def refuse_cut_atoms(D: Dictionary, where: str) -> None:
    if dictionaries.cuts_atoms(D):
        raise ValueError(
            f'{where}: boundary "zero" cuts the atoms at the border, so they have norms below 1 '
            'and neighbours of their own; use boundary="valid" or "circular", or '
            "dictionaries.normalize(dictionaries.dense(D))"
        )


def babel(D: Dictionary, s: int) -> Array:
    r"""The Babel function: the largest total coherence of one atom with s other atoms.

    .. math::
        \mu_1(s) = \max_i \max_{|J| = s, \, i \notin J} \sum_{j \in J}
            |d_i \cdot d_j| / (\|d_i\|_2 \|d_j\|_2).

    mu_1(1) = mu, and mu_1(s) <= s mu. If mu_1(s - 1) + mu_1(s) is below 1 by more than rounding,
    codes with at most s nonzeros are unique, and basis pursuit with unit atoms finds these codes.
    Traceable.

    Args:
        D: (m, d), unit atoms; the function divides by the norms, because rounding moves them off 1.
        s: number of other atoms; if s is at least d - 1, all other atoms count.

    Returns:
        mu_1(s), an array of shape ().

    Raises:
        ValueError: an atom is off unit norm, border atoms of a `Conv` are cut, or s is negative.

    Reference: Tropp (2004), Greed is good.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> float(ur.theory.babel(D, 3))
        0.75
    """
    D = without_parts(dictionaries.as_dictionary(D, "babel"), "babel")
    refuse_cut_atoms(D, "babel")
    dictionaries.unit_atoms(D, "babel")
    return _babel(D, checks.as_index(s, "s", "babel"))


@program("s")
def _babel(D: Dictionary, s: int) -> Array:
    D, _ = dictionaries.normalized(D)
    D, rows = D.neighbourhood() if isinstance(D, Structured) else (D, np.arange(D.shape[1]))
    d, s = D.shape[1], min(s, D.shape[1])
    if len(rows) * d > _SORTED and len(rows) == d:
        return _largest_row(dictionaries.dense(D), s)
    with jax.default_matmul_precision("highest"):
        if len(rows) == d:
            products = jnp.abs(dictionaries.dense(D).T @ D)
        else:
            units = jnp.zeros((len(rows), d), D.dtype).at[jnp.arange(len(rows)), rows].set(1)
            products = jnp.abs((units @ D.T) @ D)
    others = jnp.where(rows[:, None] == jnp.arange(d)[None, :], 0, products)
    return largest(jnp.sum(jnp.sort(others, axis=1)[:, d - s :], axis=1))


def _largest_row(A: Array, s: int) -> Array:
    """The Babel function of many atoms, without sorting all rows of A'A.

    top_s(v) is at most s t + sum (v - t)_+ for any t, with equality at the s-th largest entry.
    The function sorts the rows of the atoms one after another, in falling order of this bound,
    until the bound of the next atom is at most the largest value found.
    """

    def others(A, i):
        with jax.default_matmul_precision("highest"):
            products = jnp.abs(lax.dynamic_slice_in_dim(A, i, 1, 1)[:, 0] @ A)
        largest_s = jnp.sort(products.at[i].set(0))[A.shape[1] - s :]
        return jnp.sum(largest_s), largest_s

    fixed = lax.stop_gradient(A)
    with jax.default_matmul_precision("highest"):
        energy = jnp.sum(fixed * ((fixed @ fixed.T) @ fixed), 0)
    start = jnp.argmax(energy)
    best, largest_s = others(fixed, start)
    level = largest_s[0] if s else jnp.zeros((), A.dtype)
    bounds = s * level + row_excess(fixed, level)
    order = jnp.argsort(-bounds)

    def is_open(state):
        k, _, best = state
        return (k < A.shape[1]) & (bounds[order[jnp.minimum(k, A.shape[1] - 1)]] > best)

    def turn(state):
        k, i, best = state
        value = others(fixed, order[k])[0]
        return k + 1, jnp.where(value > best, order[k], i), jnp.maximum(value, best)

    _, i, _ = lax.while_loop(is_open, turn, (jnp.zeros_like(start), start, best))
    return others(A, i)[0]


@checked
def spark_bound(mu: float) -> float:
    """The bound 1 + 1/mu, inf at mu = 0: any set of fewer atoms is linearly independent.

    Args:
        mu: the mutual coherence, the generalized coherence, or any mu_W.

    Raises:
        TypeError: mu is traced. ValueError: mu is negative or NaN.

    Example:
        >>> ur.theory.spark_bound(0.25)
        5.0
    """
    return 2 * sparsity_bound(mu)


def welch_bound(m: int, d: int) -> float:
    r"""A lower bound on the coherence of any (m, d) dictionary, and on the mu_W of any W.

    .. math:: \mu \ge \sqrt{(d - m) / (m (d - 1))}.

    The bound is 0 if d <= m. The bound holds for mu_W because G = W'D has rank at most m and trace
    d, so d <= sqrt(m) norm(G, "fro") <= sqrt(m (d + d (d - 1) mu_W^2)).

    Raises:
        TypeError: a size is not an integer. ValueError: a size is below 1.

    Reference: Welch (1974).

    Example:
        >>> round(ur.theory.welch_bound(7, 14) ** -2, 3)
        13.0
    """
    m, d = checks.as_sizes("welch_bound", m=m, d=d)
    return math.sqrt((d - m) / (m * (d - 1))) if d > m else 0.0


def sparsity_bound(mu: float) -> float:
    """The bound (1 + 1/mu) / 2: codes with fewer nonzeros are unique, and LISTA-CP finds them.

    Args:
        mu: the mutual or generalized coherence, or any mu_W; at mu = 0 the bound is inf.

    Raises:
        TypeError: mu is traced. ValueError: mu is negative or NaN.

    Reference: Li, Feng, Zhou (2024), Theorem 1.

    Example:
        >>> ur.theory.sparsity_bound(0.25)
        2.5
    """
    mu = host_float(mu, "mu", "sparsity_bound")
    if not mu >= 0:
        raise ValueError(f"sparsity_bound: mu must be non-negative, got {mu}")
    return (1 + 1 / mu) / 2 if mu else math.inf


def max_sparsity(mu: float, d: int) -> int:
    """The largest integer strictly below `sparsity_bound(mu)`, at most d.

    A bound within rounding of an integer counts as the integer. A float32 mu may be too low by its
    rounding, so the function multiplies a float32 mu by 1 + 8 eps. If you pass such a mu as a
    Python float, multiply it yourself.

    Raises:
        TypeError: mu is traced, or d is not an integer.
        ValueError: mu is negative or NaN, or d is below 1.

    Example:
        >>> ur.theory.max_sparsity(0.25, 32), ur.theory.max_sparsity(1 / 3, 32)
        (2, 1)
    """
    d = checks.as_index(d, "d", "max_sparsity", least=1)
    b = sparsity_bound(host_float(mu, "mu", "max_sparsity") * up(mu))
    return d if b == math.inf else max(0, min(d, math.ceil(b - _INTEGER * max(1.0, b)) - 1))


@host_function
def rounding_guard(
    W: Dictionary,
    D: Dictionary,
    *,
    sparsity: int,
    bound: float,
    noise: float = 0.0,
    precision: str | None = None,
) -> float:
    r"""A bound on the rounding of an inner product w_i . (y - D x), in every step, proved.

    .. math:: g = G s B (2 h + 3 (1 + h) \gamma_s) + h C_W \delta + lost, \qquad
        G = \max_{i, j} (|W|' |D|)_{ij}, \qquad h \approx \gamma_m, \qquad
        \gamma_k = k u / (1 - k u).

    Here u is the unit roundoff, and `lost` is what products and sums below the smallest normal
    number lose. The bound covers the rounding of y, of D x, of the products with W and of the
    shrinkage, for errors norm(x* - x, 1) up to s B. Theoretical thresholds fall to zero, but
    rounding errors do not, so without the guard deep iterations may diverge. Pass g to `schedule`,
    which adds g to C_W delta in the recursion. The params of `analytic` have a smaller floor: there
    the part of g that is proportional to the error enlarges mu_W and eta.

    Args:
        W, D: (m, d).
        sparsity, bound, noise: s, B and delta of the class of signals. If you know a bound on the
            l2 norm of the noise, pass this bound times `noise_gain(W)` / C_W as `noise`.
        precision: precision of the products: None for the dtype of W and D, or "tensorfloat32" or
            "bfloat16" if an accelerator computes float32 products in this format. A precision finer
            than the dtype changes nothing.

    Returns:
        g, in the units of the signal.

    Raises:
        TypeError: W or D is traced, or sparsity is not an integer.
        ValueError: the shapes of W and D differ, an entry is not finite, the precision is unknown,
            or bound, noise or sparsity is negative.

    Assumed: D x and W'r are sums of products in any order, which are complete before y or x is
    added; operations round to nearest. The dtype or precision is that of the products.

    Reference: Higham (2002), section 3.1.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> bool(ur.theory.rounding_guard(D, D, sparsity=2, bound=1.0) < 2e-5)
        True
    """
    W, D = _of_one_shape(W, D, "rounding_guard")
    checks.nonnegative(bound, "bound", "rounding_guard")
    checks.nonnegative(noise, "noise", "rounding_guard")
    s = checks.as_index(sparsity, "sparsity", "rounding_guard")
    if precision is not None:
        checks.one_of(precision, _FORMATS, "precision", "rounding_guard")
    dtype = checks.common_dtype(W, D)
    if dtype == np.float64 and precision not in (None, "highest"):
        dtype = np.dtype(np.float32)
    with jax.enable_x64(True):
        W, D = checks.cast_on_host((W, D), np.float64)
        C_W, G = map(float, product_sizes(W, D, wide_dtype(dtype)))
        rounding = Rounding.of(W, D, dtype, precision, width=1)
    l1, noise = s * float(bound), float(noise)
    rates = rounding.of_error(s) + rounding.of_code(s)
    lost = rounding.lost(1.0, C_W, G, s, 2 * l1, noise)
    return float(max(G, 1.0) * share(rates, l1) + C_W * share(rounding.of_noise(), noise) + lost)


@program("dtype")
def product_sizes(W: Dictionary, D: Dictionary, dtype: np.dtype) -> tuple[Array, Array]:
    """max abs(W_ij) and max (|W|' |D|)_ij, for many atoms an upper bound by products in dtype."""
    C_W = largest(jnp.abs(dictionaries.entries(W)))
    W, D = dictionaries.magnitudes(W), dictionaries.magnitudes(D)
    if exceeds(D):
        return C_W, _largest_product(dictionaries.dense(W), dictionaries.dense(D), dtype)
    return C_W, largest(dictionaries.inner_products(W, D)[0])


def _largest_product(W: Array, D: Array, dtype: np.dtype) -> Array:
    """An upper bound on max w_i . d_j of nonnegative matrices, within 2 (m + 2) eps of the dtype.

    Each row of W is divided by a power of two near its maximum, and the same row of D is multiplied
    by this power. The largest product of two entries is then a lower bound on the maximum, so terms
    that underflow are far below the maximum.
    """
    k = exponent(W, 1)
    used = jnp.any(W > 0, axis=1, keepdims=True).astype(D.dtype)
    W, D = times_power(W, -k), times_power(D, k) * used
    size = exponent(D)
    scaled = times_power(D, -size)
    G = largest(row_maxima(W.astype(dtype), scaled.astype(dtype), diagonal=True)).astype(D.dtype)
    return times_power(G * (1 + (len(D) + 2) * float(jnp.finfo(dtype).eps)), size)


def host_float(x: ArrayLike, name: str, where: str) -> float:
    """`x` as a Python float; raise TypeError if it is a tracer or not a number."""
    checks.on_host(x, where, name)
    return checks.as_number(x, name, where)
