"""The models: deep sparse coding (Definition 2), multilayer convolutional sparse coding (Definition
1), and chains.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import (
    Conv,
    Structured,
    as_chain,
    column_norms,
    dense,
    magnitudes,
    nonzero_atoms,
)
from unrolled.theory._coherence import max_sparsity, mutual_coherence, sparsity_bound
from unrolled.theory._schedules import _numbers

# A column of a product that cancels to below this part of its terms is taken for zero: rounding is
# most of it.
CANCELLED = 1e-6


def stripe_norm(
    x: Array,
    kernel: int | tuple[int, ...],
    *,
    stride: int | tuple[int, ...] = 1,
    circular: bool = False,
    tol: float = 0.0,
) -> Array:
    r"""The most nonzeros in one stripe: all the channels at the positions whose atoms overlap those
    of one position.

    .. math:: \|x\|^s_{0,\infty} = \max_p \#\{(f, q) : x_{f,q} \ne 0, \; |q_k - p_k| < \lceil n_k / t_k \rceil\}.

    A stripe has 2 ceil(n/t) - 1 positions in every dimension, fewer at a border, all of them on a
    short circle. Traceable in x and tol.

    Args:
        x: (n_atoms, *positions), as `Conv.unflatten_code` gives it.
        kernel, stride: n and t, an int or one per dimension; on a circle t divides the signal.
        circular: positions are on a circle (torus).
        tol: entries of magnitude at most tol count as zeros; nan never does.

    Returns:
        An integer, ().

    Raises:
        ValueError: x without channels or positions, a kernel or stride below 1 or for other
            dimensions, tol < 0.

    Reference: Papyan, Romano, Elad (2017); Li, Feng, Zhou (2024), Definition 1.
    """
    where = "stripe_norm"
    x = _checks.as_float(x, "x", where)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"{where}: x has shape {x.shape}; expected (n_atoms, *positions), none of them 0"
        )
    _checks.nonnegative(tol, "tol", where)
    kernel, stride = (
        _per_dimension(v, x, name, where) for v, name in ((kernel, "kernel"), (stride, "stride"))
    )
    reach = tuple(-(-n // t) - 1 for n, t in zip(kernel, stride))
    return _fullest_stripe(~(jnp.abs(x) <= jnp.asarray(tol, x.dtype)), reach, circular)


def _fullest_stripe(nonzero: Array, reach: tuple[int, ...], circular: bool) -> Array:
    """The largest count in a window of 2 reach + 1 positions, all channels together."""
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
    values = value if isinstance(value, (tuple, list)) else (value,) * (x.ndim - 1)
    if len(values) != x.ndim - 1:
        raise ValueError(
            f"{where}: {name} {value} does not fit x of shape {x.shape}; expected one per dimension"
        )
    return tuple(_checks.as_index(v, name, where, least=1) for v in values)


class Feasibility(NamedTuple):
    """How a chain of codes meets the DSC problem."""

    holds: bool  # residuals <= eps + rounding and counts <= sparsities, in every layer
    residuals: np.ndarray  # (J,) norm(x_{j-1} - D_j x_j), inf where a code is not finite
    counts: np.ndarray  # (J,) nonzeros of x_j
    rounding: np.ndarray  # (J,) what rounding in the dtype of the data may put into a residual


def is_feasible(y, Ds, xs, sparsities, eps, *, tol: float = 0.0) -> Feasibility:
    r"""Whether the codes x_1, ..., x_J solve the deep sparse coding problem, with x_0 = y.

    .. math:: \|x_{j-1} - D_j x_j\|_2 \le \epsilon_j, \qquad \|x_j\|_0 \le s_j, \qquad j = 1, \dots, J.

    In float64, on the host. A residual may exceed eps_j by `rounding`, (s + 2) eps norm(|x_{j-1}| +
    |D_j| |x_j|) with s nonzeros and eps of the coarsest dtype in the layer: what a product in that
    dtype can leave, so that eps = 0 can be met. More, as from products in TF32, is for eps to
    allow.

    Args:
        y: (m,).
        Ds, xs: J dictionaries (d_{j-1}, d_j), d_0 = m, and J codes (d_j,).
        sparsities: J integers s_j (the paper's lambda_j).
        eps: one tolerance, or one per layer.
        tol: entries of the codes of magnitude at most tol are set to zero first, for counts and
            residuals alike.

    Raises:
        TypeError: traced arguments. ValueError: shapes or lengths that do not meet, negative or NaN
            numbers.

    Reference: Li, Feng, Zhou (2024), Definition 2.
    """
    where = "is_feasible"
    (tol,) = _numbers(where, tol=tol)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where, dtype=None)
        codes, residuals, rounding = _evaluated(y, Ds, xs, tol, where)
    s, eps = layer_counts(sparsities, len(Ds), where), layer_numbers(eps, "eps", len(Ds), where)
    counts = np.array([np.count_nonzero(x) for x in codes])
    return Feasibility(_met(residuals, eps + rounding, counts, s), residuals, counts, rounding)


class CscFeasibility(NamedTuple):
    """How a chain of codes meets the ML-CSC problem, and the local condition for it to be the only
    one.
    """

    holds: bool  # residuals <= rounding and stripes <= sparsities, in every layer
    residuals: np.ndarray  # (J,) norm(x_{j-1} - D_j x_j), inf where a code is not finite
    stripes: np.ndarray  # (J,) stripe norms of x_j
    rounding: np.ndarray  # (J,) what rounding in the dtype of the data may put into a residual
    bounds: np.ndarray  # (J,) (1 + 1/mu(D_j)) / 2
    unique: np.ndarray  # (J,) stripes < bounds, strictly beyond rounding


def is_csc_feasible(y, Ds, xs, sparsities, *, tol: float = 0.0) -> CscFeasibility:
    r"""Whether the codes solve the multilayer convolutional sparse coding problem, with x_0 = y.

    .. math:: x_{j-1} = D_j x_j, \qquad \|x_j\|^s_{0,\infty} \le s_j, \qquad j = 1, \dots, J.

    Equality up to `rounding`, as in `is_feasible`. Stripes follow the kernel, stride and boundary
    of each `Conv`; on a circle that the stride does not divide they are widened to what overlaps
    across the seam. Where `unique` is True in every layer, no other chain for y has all its stripe
    norms below `bounds`; global counts may be far above them.

    Args: as in `is_feasible`; Ds are `Conv`, whose code grid is the signal grid of the next.

    Raises:
        TypeError: traced arguments, or a dictionary that is not a `Conv`. ValueError: grids or
            lengths that do not meet, negative or NaN numbers, a zero filter, or boundary "zero"
            (its cut atoms are not those of one filter).

    Reference: Papyan, Romano, Elad (2017), Theorem 4; Li, Feng, Zhou (2024), Definition 1.
    """
    where = "is_csc_feasible"
    (tol,) = _numbers(where, tol=tol)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        Ds = host_chain(Ds, where, dtype=None)
        _grids_meet(Ds, where)
        codes, residuals, rounding = _evaluated(y, Ds, xs, tol, where)
        stripes = np.array([int(_conv_stripe_norm(D, x)) for D, x in zip(Ds, codes)])
        mus = [_coherence_of(D, where) for D in Ds]
    met = _met(residuals, rounding, stripes, layer_counts(sparsities, len(Ds), where))
    unique = np.array([n <= max_sparsity(mu, D.shape[1]) for n, mu, D in zip(stripes, mus, Ds)])
    return CscFeasibility(
        met, residuals, stripes, rounding, np.array([sparsity_bound(mu) for mu in mus]), unique
    )


def _coherence_of(D: Conv, where: str) -> float:
    mu, norms = measured(_checks.cast(D, np.float64))
    nonzero_atoms(norms, where)
    return float(mu)


def _conv_stripe_norm(D: Conv, x: Array) -> Array:
    reach, circular = D.stripe_reach()
    return _fullest_stripe(D.unflatten_code(x) != 0, reach, circular)


def _grids_meet(Ds, where: str) -> None:
    for j, D in enumerate(Ds, start=1):
        if not isinstance(D, Conv):
            raise TypeError(
                f"{where}: D_{j} is a {type(D).__name__}; expected a Conv, or try is_feasible"
            )
    for j, (left, right) in enumerate(zip(Ds, Ds[1:]), start=1):
        if left.code_grid != right.signal_grid:
            raise ValueError(
                f"{where}: D_{j} has code grid {left.code_grid} but D_{j + 1} has signal grid {right.signal_grid}; "
                "they must agree"
            )


def _evaluated(
    y, Ds, xs, tol: float, where: str
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The codes without what tol drops, norm(x_{j-1} - D_j x_j), (J,), and its rounding, (J,), in
    float64.
    """
    given = _signals(y, Ds, xs, where)
    signals = [np.asarray(x, np.float64) for x in given]
    signals[1:] = [np.where(np.abs(x) <= tol, 0.0, x) for x in signals[1:]]
    residuals, rounding = [], []
    for j, D in enumerate(Ds):
        before, x = signals[j : j + 2]
        eps = max(float(jnp.finfo(a.dtype).eps) for a in (D, *given[j : j + 2]))
        image, size = map(np.asarray, _images(_checks.cast(D, np.float64), x))
        with np.errstate(invalid="ignore"):
            residuals.append(np.linalg.norm(before - image))
            rounding.append((np.count_nonzero(x) + 2) * eps * np.linalg.norm(np.abs(before) + size))
    finite = np.isfinite(residuals)
    return signals[1:], np.where(finite, residuals, np.inf), np.where(finite, rounding, 0.0)


@jax.jit
def _images(D, x: Array) -> tuple[Array, Array]:
    """D x and |D| |x|."""
    return D @ x, magnitudes(D) @ jnp.abs(x)


def _signals(y, Ds, xs, where: str) -> list[Array]:
    """y, x_1, ..., x_J in the dtypes they came in, checked against the dictionaries."""
    _checks.on_host((y, xs), where)
    of_length(xs, "xs", len(Ds), where)
    names = ["y", *(f"x_{j}" for j in range(1, len(Ds) + 1))]
    signals = [_checks.as_float(x, name, where) for x, name in zip((y, *xs), names)]
    for x, name, size in zip(signals, names, (Ds[0].shape[0], *(D.shape[1] for D in Ds))):
        if x.shape != (size,):
            shapes = ", ".join(str(D.shape) for D in Ds)
            raise ValueError(
                f"{where}: {name} has shape {x.shape}; expected ({size},) with Ds of shapes {shapes}"
            )
    return signals


def _met(residuals, allowed, counts, sparsities) -> bool:
    return bool(np.all(np.isfinite(residuals) & (residuals <= allowed) & (counts <= sparsities)))


def host_chain(Ds, where: str, dtype=np.float64) -> tuple:
    """`as_chain` for functions that run on the host, cast to `dtype`; traced dictionaries are a
    TypeError.
    """
    _checks.on_host(Ds, where)
    Ds = as_chain(Ds, where)
    return Ds if dtype is None else _checks.cast(Ds, dtype)


def effective(Ds) -> tuple:
    """D_1 ... D_J, a matrix unless it is one structured dictionary, and its column norms, 0 for
    those that cancel.
    """
    D, size = _product(Ds), _product([magnitudes(D) for D in Ds])
    norms, sizes = (np.asarray(column_norms(A)) for A in (D, size))
    return D, np.where(norms > CANCELLED * sizes, norms, 0.0)


# Compiled as one: operation by operation, every new shape would compile some twenty kernels.
@jax.jit
def measured(D) -> tuple[Array, Array]:
    """mu(D), nan with a zero atom, and the norms of the atoms, (d,)."""
    return mutual_coherence(D), column_norms(D)


def _product(Ds):
    if len(Ds) == 1 and isinstance(Ds[0], Structured):
        return Ds[0]
    return functools.reduce(
        np.matmul, [np.asarray(dense(D) if isinstance(D, Structured) else D) for D in Ds]
    )


def of_length(values, name: str, J: int, where: str) -> None:
    """Raise ValueError unless there is one value per layer."""
    if len(values) != J:
        raise ValueError(f"{where}: {name} has length {len(values)}; expected {J}, one per layer")


def layer_counts(values, J: int, where: str, name: str = "sparsities") -> np.ndarray:
    """J integers that are not negative, (J,)."""
    of_length(values, name, J, where)
    return np.array([_checks.as_index(s, name, where) for s in values])


def layer_numbers(values, name: str, J: int, where: str) -> np.ndarray:
    """J floats that are not negative, (J,); a scalar is repeated."""
    values = (values,) * J if np.ndim(values) == 0 else values
    of_length(values, name, J, where)
    return np.array([_numbers(where, **{name: v})[0] for v in values])
