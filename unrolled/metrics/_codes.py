"""Scores of codes, (batch, d): errors, supports, optimality and sparsity."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import as_float, common_dtype
from unrolled._base.doors import Array, ArrayLike, Result, checked, program
from unrolled._base.numbers import (
    at_least,
    energy,
    exponent,
    host_energy,
    host_exponent,
    largest,
    ldexp,
    norm,
    times_power,
    wide_dtype,
    widened,
)
from unrolled.dictionaries import Dictionary, as_dictionary, operands, to_pairs

__all__ = [
    "Sparsity",
    "SupportScores",
    "failure_rate",
    "kkt_violation",
    "mean_nmse",
    "nmse",
    "psnr",
    "signal_nmse",
    "sparsity",
    "support_scores",
]


F = TypeVar("F", bound=Callable[..., Any])
# If the ratio of two magnitudes is up to this power of two, its square fits in float32.
_RATIO = 60


def of_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run `function(xp, *arrays)` with numpy for arrays of numpy, else as a program of JAX.

    A program is compiled for each number of rows; numpy compiles nothing.
    """

    @program("axis")
    def compiled(*arrays: Any, axis: int | None = None) -> Any:
        return function(jnp, *arrays, **({} if axis is None else dict(axis=axis)))

    @functools.wraps(function)
    def call(first: Any, *arrays: Any, **options: Any) -> Any:
        if not isinstance(first, np.ndarray) or any(isinstance(v, Array) for v in arrays):
            return compiled(first, *arrays, **options)
        with np.errstate(all="ignore"):
            result = function(np, first, *arrays, **options)
        return jax.tree.map(lambda v: jax.device_put(np.asarray(v)), result)

    return call


def energies(
    estimates: Array, X: Array, axis: int | None = None
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The sums of (x^ - x)^2 and of x^2, each as a pair (e, k) with the value e 2^(2 k)."""
    if isinstance(X, np.ndarray):
        estimates, X = (v.astype(wide_dtype(v.dtype), copy=False) for v in (estimates, X))
        error, k = host_energy(estimates / 2 - X / 2, axis)
        return (error, k + 1), host_energy(X, axis)
    estimates, X = widened(estimates), widened(X)
    error, k = energy(estimates / 2 - X / 2, axis)  # a difference of halves cannot overflow
    return (error, k + 1), energy(X, axis)


def decibels(above: tuple[Array, Array], below: tuple[Array, Array]) -> Array:
    """10 log10 of the ratio of two sums from `energies`, even if the ratio is out of range."""
    (top, j), (bottom, k) = above, below
    if isinstance(top, np.ndarray | np.generic):
        return 10 * np.log10(top / bottom) + 20 * math.log10(2) * (j - k)
    within = jnp.clip(j - k, -_RATIO, _RATIO)
    ratio = ldexp(top / bottom, 2 * within)
    return 10 * jnp.log10(ratio) + 20 * math.log10(2) * (j - k - within).astype(ratio.dtype)


@of_rows
def relative_error(xp: Any, estimates: Array, X: Array, axis: int | None = None) -> Array:
    """10 log10 of sum (x^ - x)^2 / sum x^2."""
    return decibels(*energies(estimates, X, axis)).astype(X.dtype)


def complex_too(of: Callable[[Any], Any]) -> Callable[[F], F]:
    """`checked`, also for two complex arrays: `of` turns them into real arrays."""

    def decorate(function: F) -> F:
        door = checked(function)

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            pair = [*args[:2], *(options.get(name) for name in ("estimates", "X")[len(args) :])]
            if not all(map(_is_complex, pair)):
                return door(*args, **options)
            rest = {name: v for name, v in options.items() if name not in ("estimates", "X")}
            return door(*map(of, pair), *args[2:], **rest)

        return call  # type: ignore[return-value]  # of the same signature

    return decorate


def _is_complex(v: Any) -> bool:
    is_array = isinstance(v, np.ndarray | Array) and not np.ma.isMaskedArray(v)
    return is_array and v.ndim > 0 and jnp.issubdtype(v.dtype, jnp.complexfloating)


def same_shape(a: ArrayLike, b: ArrayLike, where: str) -> tuple[Any, Any]:
    """Both arrays as floats of one dtype (bytes would wrap around); raise if the shapes differ."""
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"{where}: shapes {np.shape(a)} and {np.shape(b)} differ; expected equal ones"
        )
    names = "the first argument", "the second argument"
    pair = [checks.on_host_or_device(v, name, where) for v, name in zip((a, b), names)]
    if all(map(_is_on_cpu, pair)):
        pair = list(map(np.asarray, pair))
    dtype = common_dtype(*pair)
    a, b = (v.astype(dtype) for v in pair)
    return a, b


def _is_on_cpu(v: Any) -> bool:
    """Whether an array is known, and in the memory of the host."""
    if isinstance(v, np.ndarray):
        return True
    return checks.is_concrete(v) and {d.platform for d in v.devices()} == {"cpu"}


@checked
def psnr(estimate: ArrayLike, reference: ArrayLike, peak: float = 1.0) -> Array:
    """20 log10(peak / rms(estimate - reference)) in dB, over all entries; nothing is clipped.

    Args:
        estimate, reference: images or batches of images, of one shape.
        peak: the largest possible value.

    Returns:
        PSNR in dB, an array of shape (); nan if there are no entries.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> picture = jnp.full((4, 4), 0.5)
        >>> round(float(ur.metrics.psnr(picture + 0.1, picture)), 3)
        20.0
    """
    return _psnr(*same_shape(estimate, reference, "psnr"), peak)


@of_rows
def _psnr(xp: Any, estimate: Array, reference: Array, peak: ArrayLike) -> Array:
    (error, j), _ = energies(estimate, reference)
    top = xp.asarray(peak, error.dtype)
    mean = error / xp.asarray(estimate.size, error.dtype)
    return -decibels((mean, j), energies(top, top)[1]).astype(estimate.dtype)


def _mean(xp: Any, v: Array, of: Array) -> Array:
    """The mean of some entries; nan if there are none, which numpy's mean warns of."""
    return xp.sum(xp.where(of, v, v.dtype.type(0))) / xp.sum(of, dtype=v.dtype)


# The decibels of an exact estimate, instead of -inf.
_FLOOR = -300.0


@complex_too(to_pairs)
def nmse(estimates: ArrayLike, X: ArrayLike) -> Array:
    r"""The normalised error of a batch in dB, as a ratio of sums, as in LISTA-CPSS and ALISTA.

    .. math:: 10 \log_{10} \sum_i \|\hat x_i - x_i\|^2 / \sum_i \|x_i\|^2.

    Args:
        estimates, X: (batch, d), both real or both complex.

    Returns:
        NMSE in dB, an array of shape ().

    Raises:
        ValueError: shapes differ.

    Example:
        >>> X = jnp.ones((2, 5))
        >>> round(float(ur.metrics.nmse(0.9 * X, X)), 3)
        -20.0
    """
    return relative_error(*same_shape(estimates, X, "nmse"))


@complex_too(to_pairs)
def signal_nmse(estimates: ArrayLike, X: ArrayLike) -> Array:
    """10 log10(norm(x^ - x)^2 / norm(x)^2) of every signal, in dB; nan or inf for a zero code.

    Args:
        estimates, X: (batch, d), both real or both complex.

    Returns:
        (batch,).

    Raises:
        ValueError: shapes differ.

    Example:
        >>> X = jnp.ones((2, 5))
        >>> ur.metrics.signal_nmse(X * jnp.array([[0.9], [0.99]]), X).round(1).tolist()
        [-20.0, -40.0]
    """
    return relative_error(*same_shape(estimates, X, "signal_nmse"), axis=-1)


@complex_too(to_pairs)
def mean_nmse(estimates: ArrayLike, X: ArrayLike) -> Array:
    """The mean over the signals of max(`signal_nmse`, -300 dB), as in Open-L2O.

    Args:
        estimates, X: (batch, d); the mean omits zero codes.

    Returns:
        The mean in dB, an array of shape (); nan if all codes are zero.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> X = jnp.ones((2, 5))
        >>> round(float(ur.metrics.mean_nmse(X * jnp.array([[0.9], [0.99]]), X)), 1)
        -30.0
    """
    return _mean_nmse(*same_shape(estimates, X, "mean_nmse"))


@of_rows
def _mean_nmse(xp: Any, estimates: Array, X: Array) -> Array:
    nonzero, exact = (X != 0).any(-1), ((estimates == X) & xp.isfinite(X)).all(-1)
    # Rows whose logarithm, or its derivative, would not be finite never reach the logarithm.
    usual, zero, one = (nonzero & ~exact)[:, None], X.dtype.type(0), X.dtype.type(1)
    pair = energies(xp.where(usual, estimates, zero), xp.where(usual, X, one), -1)
    per_signal = decibels(*pair)
    per_signal = xp.where(exact | (per_signal < _FLOOR), _FLOOR, per_signal)
    return _mean(xp, per_signal, nonzero).astype(X.dtype)


@complex_too(to_pairs)
def failure_rate(estimates: ArrayLike, X: ArrayLike, level: float = -20.0) -> Array:
    """Share of the signals whose NMSE exceeds `level` dB; a signal without a finite NMSE fails.

    Args:
        estimates, X: (batch, d), both real or both complex.
        level: threshold in dB.

    Returns:
        The share, an array of shape () in [0, 1].

    Raises:
        ValueError: shapes differ, or level is nan.

    Example:
        >>> X = jnp.ones((2, 5))
        >>> float(ur.metrics.failure_rate(X * jnp.array([[0.5], [0.99]]), X))
        0.5
    """
    if np.isnan(level):
        raise ValueError("failure_rate: level is nan; expected decibels")
    with np.errstate(over="ignore"):
        most = float(np.power(10.0, level / 10))
    return _failure_rate(*same_shape(estimates, X, "failure_rate"), most)


@of_rows
def _failure_rate(xp: Any, estimates: Array, X: Array, most: ArrayLike) -> Array:
    (error, j), (size, k) = energies(estimates, X, -1)
    small = (np.ldexp if xp is np else ldexp)(error, 2 * (j - k)) <= most * size
    return xp.mean(~(small & xp.isfinite(size)), dtype=wide_dtype(X.dtype))


class SupportScores(Result):
    """Scores of a found support, averaged over the signals for which a score is defined."""

    precision: Array  # () share of chosen entries that are right; undefined if no entry is chosen
    recall: Array  # () share of true entries that are chosen; undefined if no entry is true
    false_positives: Array  # () number of wrong chosen entries per signal


@complex_too(jnp.abs)
def support_scores(estimates: ArrayLike, X: ArrayLike, tolerance: float = 0.0) -> SupportScores:
    """Precision and recall of the support, and false positives per signal.

    Args:
        estimates, X: (batch, d), both real or both complex.
        tolerance: an entry of an estimate is chosen if its magnitude exceeds the tolerance.

    Returns:
        SupportScores; a score is nan if it is undefined for every signal, or if a code has a NaN.

    Raises:
        ValueError: shapes differ, or a known tolerance is negative or nan.

    Example:
        >>> X = jnp.array([[1.0, 2.0, 0.0, 0.0]])
        >>> scores = ur.metrics.support_scores(jnp.array([[1.0, 0.0, 0.5, 0.0]]), X)
        >>> jax.tree.map(float, scores)
        SupportScores(precision=0.5, recall=0.5, false_positives=1.0)
    """
    checks.nonnegative(tolerance, "tolerance", "support_scores")
    return _support_scores(*same_shape(estimates, X, "support_scores"), tolerance)


@of_rows
def _support_scores(xp: Any, estimates: Array, X: Array, tolerance: ArrayLike) -> SupportScores:
    defined = ~(xp.isnan(estimates) | xp.isnan(X)).any(-1)
    chosen, true = xp.abs(estimates) > tolerance, X != 0
    hits, n_chosen, n_true = (
        xp.sum(mask, -1, dtype=wide_dtype(X.dtype)) for mask in (chosen & true, chosen, true)
    )
    precision = _mean(xp, hits / xp.maximum(n_chosen, 1), n_chosen > 0)
    recall = _mean(xp, hits / xp.maximum(n_true, 1), n_true > 0)
    scores = (precision, recall, (n_chosen - hits).mean())
    return SupportScores(*(xp.where(defined.all(), v, v.dtype.type(np.nan)) for v in scores))


@checked
def kkt_violation(D: Dictionary, y: ArrayLike, x: ArrayLike, lam: ArrayLike) -> Array:
    """The largest violation of the optimality of x for the LASSO, in units of lam.

    For r = y - D x, optimality means D' r = lam sign(x) on the support and abs(D' r) <= lam off it.

    Args:
        D: (m, d).
        y, x: (m,) and (d,).
        lam: penalty weight, positive.

    Returns:
        The violation, an array of shape (); 0 at a solution.

    Raises:
        ValueError: y or x has the wrong shape, lam is not one number, or a known lam is not
            positive.

    Example:
        >>> D, y = jnp.eye(2), jnp.array([3.0, 0.5])
        >>> float(ur.metrics.kkt_violation(D, y, jnp.array([2.0, 0.0]), 1.0))
        0.0
    """
    D = as_dictionary(D, "kkt_violation")
    if np.shape(lam) or (checks.is_concrete(lam) and not float(np.asarray(lam)) > 0):
        raise ValueError(f"kkt_violation: lam must be one positive number, got {lam}")
    if (np.shape(y), np.shape(x)) != ((D.shape[0],), (D.shape[1],)):
        raise ValueError(
            f"kkt_violation: D has shape {D.shape}, y {np.shape(y)} and x {np.shape(x)}; they "
            "must fit"
        )
    D, y, (x,) = operands(D, y, "kkt_violation", params=(as_float(x, "x", "kkt_violation"),))
    return _kkt_violation(D, y, x, lam)


@program()
def _kkt_violation(D: Dictionary, y: ArrayLike, x: ArrayLike, lam: ArrayLike) -> Array:
    g = (y - D @ x) @ D
    lam = jnp.asarray(lam, g.dtype)
    violation = jnp.where(x != 0, jnp.abs(g - lam * jnp.sign(x)), at_least(jnp.abs(g) - lam, 0.0))
    return largest(violation) / lam


class Sparsity(Result):
    """Three measures of sparsity in [0, 1], averaged over the samples; 1 for a zero sample."""

    zeros: Array  # () share of the entries that are zero
    below: Array  # () share of the entries up to `fraction` times the largest of their sample
    hoyer: Array  # () Hoyer's measure: 0 if all magnitudes are equal, 1 if one entry is nonzero


@checked
def sparsity(x: ArrayLike, fraction: ArrayLike = 0.01) -> Sparsity:
    r"""The sparsity of codes or features, per sample and averaged over the samples.

    Let x be a sample with n entries. The field `zeros` is the share of entries with x_i = 0. The
    field `below` is the share of entries with abs(x_i) <= fraction max abs(x_j). This share also
    suits activations such as ELU and Mish, whose outputs are hardly ever zero. The field `hoyer` is
    Hoyer's measure

    .. math:: \frac{\sqrt n - \|x\|_1 / \|x\|_2}{\sqrt n - 1}.

    For a sample of zeros all three measures are 1.

    Args:
        x: (N, ...), one sample of two or more entries for each index of the leading axis.
        fraction: threshold relative to the largest magnitude of the sample, in [0, 1].

    Returns:
        Sparsity; all its measures are nan if an entry is NaN or infinite.

    Raises:
        TypeError: x is complex or not numeric.
        ValueError: x has another shape or no samples, or a known fraction is outside [0, 1].

    Source: Hoyer, "Non-negative matrix factorization with sparseness constraints", JMLR 2004. The
    field `below` refers to the largest entry, so that one outlier can make a sample look sparse.

    Example:
        >>> x = jnp.array([[4.0, 0.0, 0.0, 0.0], [1.0, 1.0, -1.0, 1e-3]])
        >>> jax.tree.map(lambda measure: round(float(measure), 3), ur.metrics.sparsity(x))
        Sparsity(zeros=0.375, below=0.5, hoyer=0.634)
    """
    where = "sparsity"
    samples = checks.on_host_or_device(x, "x", where)
    n = math.prod(samples.shape[1:])
    if samples.ndim < 2 or len(samples) == 0 or n < 2:
        raise ValueError(
            f"{where}: x has shape {samples.shape}; expected (N, ...), samples with two entries or "
            "more"
        )
    checks.nonnegative(fraction, "fraction", where)
    checks.one_number(fraction, "fraction", where)
    if checks.is_concrete(fraction) and np.any(np.asarray(fraction) > 1):
        raise ValueError(f"{where}: fraction must be at most 1, got {fraction}")
    on_host = _is_on_cpu(samples) and checks.is_concrete(fraction)
    return _sparsity(np.asarray(samples) if on_host else jnp.asarray(samples), fraction)


@of_rows
def _sparsity(xp: Any, x: Any, fraction: ArrayLike) -> Sparsity:
    x = x.astype(wide_dtype(x.dtype)).reshape(len(x), -1)
    finite = xp.isfinite(x).all()
    if xp is np:  # scaled so that no square leaves the range
        size: Any = np.abs(np.ldexp(x, -host_exponent(x, 1)))
        l2: Any = np.linalg.norm(size, axis=1)
    else:
        size = jnp.abs(times_power(x, -exponent(x, 1)))
        l2 = norm(size, 1)
    small = size <= xp.asarray(fraction, x.dtype) * size.max(1, keepdims=True)
    hoyer = _hoyer(xp, size.sum(1), l2, math.sqrt(x.shape[1]))
    measures = ((x == 0).mean(1, dtype=x.dtype), small.mean(1, dtype=x.dtype), hoyer)
    nan = x.dtype.type(np.nan)
    return Sparsity(*(xp.where(finite, xp.mean(measure), nan) for measure in measures))


def _hoyer(xp: Any, l1: Array, l2: Array, root: float) -> Array:
    """Hoyer's measure of rows with these norms and root^2 entries."""
    measure = (root - l1 / xp.where(l2 == 0, 1, l2)) / (root - 1)
    return xp.where(l2 == 0, 1, xp.clip(measure, 0, 1))  # rounding may leave [0, 1]
