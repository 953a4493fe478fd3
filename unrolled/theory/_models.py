"""Deep sparse coding (Definition 2) and its convolutional form (Definition 1): feasible codes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.checks import Array, ArrayLike, DTypeLike
from unrolled._base.doors import Result, checked, host_function, program
from unrolled._base.numbers import norm
from unrolled.dictionaries import Conv, Dictionary, Operator, Structured
from unrolled.theory._coherence import max_sparsity, measured, sparsity_bound, without_parts
from unrolled.theory._schedules import host_numbers

__all__ = ["CscFeasibility", "Feasibility", "is_csc_feasible", "is_feasible", "stripe_norm"]


# A column of a product that cancels to below this share of its terms may be mostly rounding, so the
# column counts as zero.
CANCELLED = 1e-6


def host_chain(
    Ds: Sequence[Dictionary],
    where: str,
    dtype: DTypeLike | None = np.float64,
    parts: bool = False,
) -> tuple[Operator, ...]:
    """`as_chain` for host functions: the dictionaries, cast to `dtype`.

    Raise TypeError if a dictionary is traced, and ValueError if codes come in parts, unless `parts`
    is True.
    """
    checks.on_host(Ds, where)
    Ds = dictionaries.as_chain(Ds, where)
    for D in () if parts else Ds:
        without_parts(D, where)
    return Ds if dtype is None else checks.cast(Ds, dtype)


def effective(Ds: Sequence[Dictionary]) -> tuple[Operator, np.ndarray]:
    """The product D_1 ... D_J and the norms of its columns, 0 if a column cancels.

    The product is a matrix, but a single structured dictionary stays structured.
    """
    D = _product(Ds)
    magnitude = [dictionaries.magnitudes(A) if isinstance(A, Structured) else np.abs(A) for A in Ds]
    size = _product(magnitude)
    norms, sizes = (np.asarray(dictionaries.column_norms(A)) for A in (D, size))
    return D, np.where(norms > CANCELLED * sizes, norms, 0.0)


def _product(Ds: Sequence[Dictionary]) -> Operator:
    """D_1 ... D_J as a matrix, by numpy; a single structured dictionary stays structured."""
    if len(Ds) == 1 and isinstance(Ds[0], Structured):
        return Ds[0]
    return jnp.asarray(functools.reduce(np.matmul, [np.asarray(dictionaries.dense(D)) for D in Ds]))


def of_length(values: Sequence, name: str, J: int, where: str) -> None:
    """Raise ValueError unless there is one value per layer."""
    if len(values) != J:
        raise ValueError(f"{where}: {name} has length {len(values)}; expected {J}, one per layer")


def layer_counts(values: Sequence[int], J: int, where: str, name: str = "sparsities") -> np.ndarray:
    """J non-negative integers, (J,)."""
    of_length(values, name, J, where)
    return np.array([checks.as_index(s, name, where) for s in values])


def layer_numbers(values: Any, name: str, J: int, where: str) -> np.ndarray:
    """J non-negative floats, (J,), from one number for all layers or a sequence of J."""
    values = values if isinstance(values, list | tuple) or np.ndim(values) else (values,) * J
    of_length(values, name, J, where)
    return np.array([host_numbers(where, **{name: v})[0] for v in values])


@checked
def stripe_norm(
    x: ArrayLike,
    kernel: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    circular: bool = False,
    tol: float = 0.0,
) -> Array:
    r"""The largest number of nonzeros in one stripe of a convolutional code.

    .. math::
        \|x\|^s_{0,\infty} =
        \max_p \#\{(f, q) : x_{f,q} \ne 0, \; |q_k - p_k| < \lceil n_k / t_k \rceil\}.

    The stripe of a position consists of all channels at positions whose atoms overlap the atoms of
    this position. A stripe has 2 ceil(n/t) - 1 positions in every dimension, fewer at a border, and
    all positions on a short circle. Traceable in x and tol.

    Args:
        x: (n_atoms, *positions), as returned by `Conv.unflatten_code`.
        kernel, stride: n and t, an int or one int per dimension; on a circle, t must divide the
            length of the signal.
        circular: whether the positions lie on a circle (torus).
        tol: entries of magnitude at most tol count as zeros; a nan never counts as a zero.

    Returns:
        An integer array of shape ().

    Raises:
        ValueError: x has no channels or positions, the kernel or stride is below 1 or has another
            number of dimensions, or tol < 0.

    Reference: Papyan, Romano, Elad (2017); Li, Feng, Zhou (2024), Definition 1.

    Example:
        >>> x = jnp.zeros((2, 10)).at[:, jnp.array([1, 3, 8])].set(1.0)
        >>> int(ur.theory.stripe_norm(x, kernel=3))
        4
    """
    where = "stripe_norm"
    x = checks.as_float(x, "x", where)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"{where}: x has shape {x.shape}; expected (n_atoms, *positions), none of them 0"
        )
    checks.nonnegative(tol, "tol", where)
    kernel, stride = (
        _per_dimension(v, x, name, where) for v, name in ((kernel, "kernel"), (stride, "stride"))
    )
    reach = tuple(-(-n // t) - 1 for n, t in zip(kernel, stride))
    return _stripe_norm(x, tol, reach, circular)


@program("reach", "circular")
def _stripe_norm(x: Array, tol: ArrayLike, reach: tuple[int, ...], circular: bool) -> Array:
    return _fullest_stripe(~(jnp.abs(x) <= jnp.asarray(tol, x.dtype)), reach, circular)


def _fullest_stripe(nonzero: Array, reach: tuple[int, ...], circular: bool) -> Array:
    """The largest count in a window of 2 reach + 1 positions, over all channels together."""
    counts = jnp.sum(nonzero, axis=0)
    if circular:
        window = tuple(min(2 * r + 1, N) for r, N in zip(reach, counts.shape))
        counts = jnp.pad(counts, [(w // 2, (w - 1) // 2) for w in window], mode="wrap")
    else:
        window = tuple(2 * min(r, N - 1) + 1 for r, N in zip(reach, counts.shape))
        counts = jnp.pad(counts, [(w // 2, w // 2) for w in window])
    zero, steps = np.zeros((), counts.dtype), (1,) * counts.ndim
    return lax.reduce_window(counts, zero, lax.add, window, steps, "VALID").max()


def _per_dimension(value, x: Array, name: str, where: str) -> tuple[int, ...]:
    """One positive integer per dimension of the positions."""
    values = value if isinstance(value, (tuple, list)) else (value,) * (x.ndim - 1)
    if len(values) != x.ndim - 1:
        raise ValueError(
            f"{where}: {name} {value} does not fit x of shape {x.shape}; expected one per dimension"
        )
    return tuple(checks.as_index(v, name, where, least=1) for v in values)


class Feasibility(Result):
    """Residuals and sparsities of a chain of codes, and whether they solve the DSC problem."""

    holds: bool  # whether residuals <= eps + rounding and counts <= sparsities in every layer
    residuals: np.ndarray  # (J,) norm(x_{j-1} - D_j x_j), inf if a code is not finite
    counts: np.ndarray  # (J,) numbers of nonzeros of x_j
    rounding: np.ndarray  # (J,) possible rounding of a residual in the dtype of the data


@host_function
def is_feasible(
    y: ArrayLike,
    Ds: Sequence[Dictionary],
    xs: Sequence[ArrayLike],
    sparsities: Sequence[int],
    eps: ArrayLike | Sequence[ArrayLike],
    *,
    tol: float = 0.0,
) -> Feasibility:
    r"""Whether the codes x_1, ..., x_J solve the deep sparse coding problem, with x_0 = y.

    .. math::
        \|x_{j-1} - D_j x_j\|_2 \le \epsilon_j, \qquad \|x_j\|_0 \le s_j, \qquad j = 1, \dots, J.

    Residuals are computed in float64 on the host. To allow eps = 0, a residual may exceed eps_j by
    `rounding` = (n + 2) u norm(|x_{j-1}| + |D_j| |x_j|, 2), where x_j has n nonzeros and u is the
    machine epsilon of the coarsest dtype in the layer. This number bounds the rounding of a product
    in that dtype. Choose an eps that covers larger errors, such as errors of products in TF32.

    Args:
        y: (m,).
        Ds: J dictionaries (d_{j-1}, d_j), with d_0 = m.
        xs: J codes (d_j,).
        sparsities: J integers s_j (the paper's lambda_j).
        eps: one tolerance, or one per layer.
        tol: entries of the codes of magnitude at most tol are set to zero before the function
            computes counts and residuals.

    Raises:
        TypeError: an argument is traced.
        ValueError: shapes or lengths do not fit, or a number is negative or NaN.

    Reference: Li, Feng, Zhou (2024), Definition 2.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> x = jnp.zeros(32).at[jnp.array([3, 20])].set(1.0)
        >>> ur.theory.is_feasible(D @ x, [D], [x], sparsities=[2], eps=0.0).holds
        True
    """
    where = "is_feasible"
    (tol,) = host_numbers(where, tol=tol)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where, dtype=None)
        s, eps = layer_counts(sparsities, len(Ds), where), layer_numbers(eps, "eps", len(Ds), where)
        codes, residuals, rounding = _evaluated(y, Ds, xs, tol, where)
    counts = np.array([np.count_nonzero(x) for x in codes])
    return Feasibility(_met(residuals, eps + rounding, counts, s), residuals, counts, rounding)


class CscFeasibility(Result):
    """Residuals and stripe norms of a chain of codes, and the local condition for uniqueness."""

    holds: bool  # whether residuals <= rounding and stripes <= sparsities in every layer
    residuals: np.ndarray  # (J,) norm(x_{j-1} - D_j x_j), inf if a code is not finite
    stripes: np.ndarray  # (J,) stripe norms of x_j
    rounding: np.ndarray  # (J,) possible rounding of a residual in the dtype of the data
    bounds: np.ndarray  # (J,) (1 + 1/mu(D_j)) / 2
    unique: np.ndarray  # (J,) whether stripes < bounds by more than rounding


@host_function
def is_csc_feasible(
    y: ArrayLike,
    Ds: Sequence[Conv],
    xs: Sequence[ArrayLike],
    sparsities: Sequence[int],
    *,
    tol: float = 0.0,
) -> CscFeasibility:
    r"""Whether the codes solve the multilayer convolutional sparse coding problem, with x_0 = y.

    .. math:: x_{j-1} = D_j x_j, \qquad \|x_j\|^s_{0,\infty} \le s_j, \qquad j = 1, \dots, J.

    Equality is tested up to `rounding`, as in `is_feasible`. Stripes follow the kernel, stride and
    boundary of each `Conv`. If the stride does not divide the length of a circle, stripes are
    widened to include all overlaps across the seam. If `unique` is True in every layer, no
    other chain for y has all stripe norms below `bounds`. The number of nonzeros of a whole code
    may be far above `bounds`.

    Args:
        y, xs, sparsities, tol: as in `is_feasible`.
        Ds: J `Conv` dictionaries; the code grid of each `Conv` is the signal grid of the next one.

    Raises:
        TypeError: an argument is traced, or a dictionary is not a `Conv`.
        ValueError: grids or lengths do not fit, a number is negative or NaN, a filter is zero, or
            the boundary is "zero", which cuts the atoms at the border.

    Reference: Papyan, Romano, Elad (2017), Theorem 4; Li, Feng, Zhou (2024), Definition 1.

    Example:
        >>> filters = jax.random.normal(jax.random.key(0), (2, 1, 5))
        >>> D = ur.dictionaries.Conv(filters, (40,), boundary="circular")
        >>> x = jnp.zeros((2, 40)).at[0, ::10].set(1.0).ravel()
        >>> result = ur.theory.is_csc_feasible(D @ x, [D], [x], sparsities=[1])
        >>> result.holds, result.stripes.tolist()
        (True, [1])
    """
    where = "is_csc_feasible"
    (tol,) = host_numbers(where, tol=tol)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = _on_grids(host_chain(Ds, where, dtype=None), where)
        s = layer_counts(sparsities, len(Ds), where)
        codes, residuals, rounding = _evaluated(y, Ds, xs, tol, where)
        stripes = np.array([int(_conv_stripe_norm(D, x)) for D, x in zip(Ds, codes)])
        mus = [_coherence_of(D, where) for D in Ds]
    met = _met(residuals, rounding, stripes, s)
    unique = np.array([n <= max_sparsity(mu, D.shape[1]) for n, mu, D in zip(stripes, mus, Ds)])
    return CscFeasibility(
        met, residuals, stripes, rounding, np.array([sparsity_bound(mu) for mu in mus]), unique
    )


def _coherence_of(D: Conv, where: str) -> float:
    """mu(D) in float64."""
    mu, norms = measured(checks.cast(D, np.float64))
    dictionaries.nonzero_atoms(norms, where)
    return float(mu)


@program()
def _conv_stripe_norm(D: Conv, x: Any) -> Array:
    """`stripe_norm` of a flat code of D."""
    reach, circular = D.stripe_reach()
    return _fullest_stripe(D.unflatten_code(x) != 0, reach, circular)


def _on_grids(Ds: Any, where: str) -> Sequence[Conv]:
    """The dictionaries; raise unless each signal grid is the code grid of the previous one."""
    for j, (left, right) in enumerate(zip(Ds, Ds[1:]), start=1):
        if left.code_grid != right.signal_grid:
            raise ValueError(
                f"{where}: D_{j} has code grid {left.code_grid} but D_{j + 1} has signal grid "
                f"{right.signal_grid}; they must agree"
            )
    return Ds


def _evaluated(
    y: ArrayLike, Ds: Sequence[Dictionary], xs: Sequence[ArrayLike], tol: float, where: str
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The codes without entries up to tol, the norms of x_{j-1} - D_j x_j, and their rounding."""
    raw = _signals(y, Ds, xs, where)
    signals = [np.asarray(x, np.float64) for x in raw]
    signals[1:] = [np.where(np.abs(x) <= tol, 0.0, x) for x in signals[1:]]
    residuals, rounding = [], []
    for j, D in enumerate(Ds):
        before, x = signals[j : j + 2]
        eps = max(float(jnp.finfo(a.dtype).eps) for a in (D, *raw[j : j + 2]))
        residual, size = map(float, _distance(checks.cast(D, np.float64), before, x))
        residuals.append(residual)
        rounding.append((np.count_nonzero(x) + 2) * eps * size)
    finite = np.isfinite(residuals)
    return signals[1:], np.where(finite, residuals, np.inf), np.where(finite, rounding, 0.0)


@jax.jit
def _distance(D: Dictionary, y: Array, x: Array) -> tuple[Array, Array]:
    """norm(y - D x) and norm(|y| + |D| |x|), also if squares leave the range of the dtype."""
    return norm(y - D @ x), norm(jnp.abs(y) + dictionaries.magnitudes(D) @ jnp.abs(x))


def _signals(
    y: ArrayLike, Ds: Sequence[Dictionary], xs: Sequence[ArrayLike], where: str
) -> list[Array]:
    """y, x_1, ..., x_J in their own dtypes, checked against the dictionaries."""
    checks.on_host((y, xs), where)
    of_length(xs, "xs", len(Ds), where)
    names = ["y", *(f"x_{j}" for j in range(1, len(Ds) + 1))]
    signals = [checks.as_float(x, name, where) for x, name in zip((y, *xs), names)]
    for x, name, size in zip(signals, names, (Ds[0].shape[0], *(D.shape[1] for D in Ds))):
        if x.shape != (size,):
            shapes = ", ".join(str(D.shape) for D in Ds)
            raise ValueError(
                f"{where}: {name} has shape {x.shape}; expected ({size},) with Ds of shapes "
                f"{shapes}"
            )
    return signals


def _met(
    residuals: np.ndarray, allowed: np.ndarray, counts: np.ndarray, sparsities: np.ndarray
) -> bool:
    """Whether all residuals and counts are within their limits."""
    return bool(np.all(np.isfinite(residuals) & (residuals <= allowed) & (counts <= sparsities)))
