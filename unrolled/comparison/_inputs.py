"""The sample of a comparison with its optimal codes, and the methods that fit it."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.checks import Array
from unrolled._base.numbers import (
    exponent,
    ldexp,
    power_of_two,
    times_power,
    wide_dtype,
    widened,
)
from unrolled.comparison._method import Method
from unrolled.dictionaries import Operator
from unrolled.networks import ROUNDING
from unrolled.pursuit import DEFAULT_LAM, default_lam, lasso_objective, lasso_optima

# The range of exponents of lam: a smaller lam acts like 0, a larger lam exceeds every signal.
_RANGE = 250


class Optima(NamedTuple):
    """F* of every signal, in units in which squares stay in the range of the dtype.

    D is divided by 2^a and all signals by 2^b, so that F is divided by 2^(2 b).
    """

    D: Operator
    Y: Array  # (batch, m)
    lam: Array  # ()
    values: Array  # (batch,)
    certified: Array  # (batch,) whether the duality gap met its tolerance
    exponent: Array  # b - a, the exponent of codes
    codes: Array  # (batch, d), the optimal codes, in the units of the signals

    def objectives(self, x: Array) -> Array:
        """F of codes in the units of the signals, (batch,)."""
        return _objectives(self.D, self.Y, ldexp(widened(x), -self.exponent), self.lam)

    def gap(self, x: Array) -> Array:
        """sum (F - F*) over sum F*, for signals with a certified F*.

        The gap is nan if no F* is certified, or if the certified F* are 0 and other signals have no
        certificate.
        """
        excess = jnp.sum(jnp.where(self.certified, self.objectives(x) - self.values, 0))
        total = jnp.sum(jnp.where(self.certified, self.values, 0))
        # If F does not exceed F*, the gap is 0, even if the optimum of every signal is 0.
        gap = jnp.where(excess == 0, 0, excess / total)
        return jnp.where((total > 0) | self.certified.all(), gap, jnp.nan)

    def gaps(self, x: Array) -> Array:
        """(F - F*) / F* of every signal, (batch,); nan without a certified F*."""
        excess = self.objectives(x) - self.values
        each = jnp.where(excess == 0, 0, excess / self.values)
        return jnp.where(self.certified, each, jnp.nan)

    def worse(self, x: Array, start: Array | None = None) -> Array:
        """The share of signals with F(x) above F(start), among signals whose F* is certified.

        By default `start` has the codes 0.
        """
        start = jnp.zeros_like(x) if start is None else start
        above = ~(self.objectives(x) <= self.objectives(start) * (1 + ROUNDING))
        share = jnp.sum(above & self.certified, dtype=x.dtype)
        return share / jnp.sum(self.certified, dtype=x.dtype)


class Sample(NamedTuple):
    """The data on which all methods run, layer by layer."""

    Ds: tuple[Operator, ...]
    Y: Array
    Xs: tuple[Array, ...]
    optima: tuple[Optima | None, ...]  # None without gaps to the optimum
    lams: tuple[Any, ...]  # weights of the LASSO; None without gaps
    remarks: tuple[tuple[str, ...], ...]  # how each lam was chosen, and what is wrong with it
    known: bool  # whether the codes are true codes
    chained: bool
    mask: Any = None  # (batch, m), which entries of each signal are known

    @property
    def pairs(self) -> list[tuple[Array, Array]]:
        """The signals and the codes of every layer."""
        return list(zip((self.Y, *self.Xs), self.Xs))


def fitted(method: Method, name: str, sample: Sample) -> Method:
    """The method with a dictionary that fits the sample, and given codes as floats.

    Raises:
        TypeError: the params are not params of the model.
        ValueError: the shapes of the D or of the codes of the method differ from the shapes of
            the sample, or the params do not fit the D.
    """
    whole: Any = sample.Ds if sample.chained else sample.Ds[0]
    D = whole if method.D is None else method.D
    what, given, expected = "was trained with D of", D, sample.Ds
    if method.layer is None:
        what, given, expected = "has codes of", method.params, sample.Xs
        if not method.chained:
            given = dictionaries.as_flat(D, given, 1)[0]
    shapes, fitting = ([part.shape for part in of] for of in (method.each(given), expected))
    if shapes != fitting:
        raise ValueError(f"compare: {name!r} {what} {shapes}; expected {fitting}")
    if method.layer is not None:  # checked here, because inside `jit` all params are tracers
        try:
            method.layer.check(method.params, D if method.chained else dictionaries.shared_part(D))
        except (TypeError, ValueError) as error:
            raise type(error)(f"compare: {name!r}: {error}") from error
    if sample.mask is not None and method.D is not None:
        D = dictionaries.known_part(D, sample.Y, sample.mask)[0]
    if method.layer is not None:
        return method.replace(D=D)
    floats = [checks.as_float(X, f"the codes of {name!r}", "compare") for X in method.each(given)]
    return method.replace(params=tuple(floats) if method.chained else floats[0], D=D)


def per_layer(value: Any, name: str, J: int, chained: bool) -> tuple[Any, ...]:
    """One value per layer."""
    if not chained or value is None:
        return (value,) * J
    if np.ndim(value) != 1 or len(value) != J:
        raise ValueError(f"compare: expected {J} values of {name}, one per layer, got {value!r}")
    return tuple(value)


def sample_of(chained: bool, D: Any, Y: Any, X: Any, lam: Any, mask: Any = None) -> Sample:
    """The checked D, signals and codes, with the optimum of the LASSO of every layer.

    If the codes are not known, the codes of the LASSO are used, layer by layer. With a mask, D is
    masked for each signal.
    """
    Ds = (
        dictionaries.as_chain(D, "compare")
        if chained
        else (dictionaries.as_dictionary(D, "compare"),)
    )
    codes: Any = (None,) * len(Ds)
    if mask is not None:
        mask = dictionaries.known_entries(Ds[0], mask, len(Y), "compare")
        mask = np.broadcast_to(mask, (len(Y), mask.shape[-1]))
        Y = np.where(mask, np.asarray(Y), 0)
    if X is None:
        dictionaries.check_batch(Ds[0], Y, None, "compare")
        Y = checks.as_signals(Y, "Y", "compare")
    else:
        Y, codes = _known(Ds, Y, X, chained)
    if mask is not None:
        Ds = (dictionaries.known_part(Ds[0], Y, mask)[0],)
    optima: list[Any] = []
    Xs, lams, remarks, signals = [], [], [], Y
    for j, asked in enumerate(per_layer(lam, "lam", len(Ds), chained and np.ndim(lam) > 0)):
        weight = asked
        if X is None:
            weight = _lam_without_codes(dictionaries.shared_part(Ds[j]), signals, asked, j)
        optima.append(None if weight is None else optima_of(Ds[j], signals, weight))
        remarks.append(_remarks(optima[j], weight, X is not None or asked is not None))
        signals = optima[j].codes if X is None else codes[j]
        Xs.append(signals)
        lams.append(weight)
    of_lams = tuple(optima), tuple(lams), tuple(remarks)
    return Sample(Ds, Y, tuple(Xs), *of_lams, X is not None, chained, mask)


def _known(Ds: Sequence[Operator], Y: Any, X: Any, chained: bool) -> tuple[Array, Sequence[Array]]:
    """The checked signals, and the checked codes of every layer."""
    if chained and not (isinstance(X, tuple | list) and len(X) == len(Ds)):
        got = f"{len(X)}" if isinstance(X, tuple | list) else f"an array of shape {np.shape(X)}"
        raise ValueError(
            f"compare: expected a tuple X with the codes of all {len(Ds)} layers, got {got}; "
            "the code before x_j is D_j x_j, try problems.synthesize(D_j, X_j)"
        )
    Xs = tuple(X) if chained else (X,)
    for Dj, signals, Xj in zip(Ds, (Y, *Xs), Xs):
        dictionaries.check_batch(Dj, signals, Xj, "compare")
    Y = checks.as_float(Y, "Y", "compare")
    Xs = tuple(checks.as_float(Xj, "X", "compare") for Xj in Xs)
    checks.finite((Y, Xs), "Y or X", "compare")
    return Y, Xs


def _lam_without_codes(D: Operator, signals: Array, lam: Any, j: int) -> Any:
    """The weight of the LASSO whose codes replace the true codes; a default if lam is None."""
    if not np.any(np.asarray(signals)):
        of = f"codes of layer {j}" if j else "signals"
        raise ValueError(f"compare: all {of} are zero; expected some to code")
    if np.ndim(lam) == 0 and lam is not None and lam == 0:
        raise ValueError(
            "compare: without codes lam must be positive, got 0: any code that reproduces its "
            "signal is then an optimum"
        )
    return default_lam(D, signals) if lam is None else lam


def _remarks(optima: Optima | None, lam: Any, given: bool) -> tuple[str, ...]:
    """Remarks on the lam of a layer: how lam was chosen, and whether it makes all codes zero."""
    if optima is None:
        return ()
    remarks = [] if given else [f"lam = {float(lam):.4g}, {DEFAULT_LAM}."]
    if not np.any(np.asarray(optima.codes)):
        remarks.append(f"lam = {float(lam):.4g} gives all signals the code 0; try a smaller lam.")
    return tuple(remarks)


def optima_of(D: Operator, Y: Array, lam: Any) -> Optima:
    """The optimum F* of the LASSO for every signal.

    Raises:
        ValueError: lam is not one number, is negative or is not finite.
    """
    checks.nonnegative(lam, "lam", "compare")
    checks.finite(lam, "lam", "compare")
    if np.ndim(lam):
        raise ValueError(f"compare: lam has shape {np.shape(lam)}; expected one number")
    # lam as a mantissa and an exponent, because the dtype of the signals may not hold lam.
    operands, of_codes = _scaled(D, Y, *np.frexp(np.asarray(lam, float)))
    solved = lasso_optima(*operands)
    return _with_values(operands, of_codes, solved.x, solved.converged, Y.dtype)


@jax.jit
def _scaled(
    D: Operator, Y: Array, mantissa: Array, of_lam: Array
) -> tuple[tuple[Operator, Array, Array], Array]:
    """D, the signals and lam in units near 1, and the exponent of codes."""
    D, Y = checks.cast(D, wide_dtype(Y.dtype)), widened(Y)
    a, b = exponent(dictionaries.column_norms(dictionaries.shared_part(D))), exponent(Y)
    k = jnp.clip(of_lam - (a + b), -_RANGE, _RANGE)
    weight = jnp.minimum(ldexp(mantissa.astype(Y.dtype), k), jnp.finfo(Y.dtype).max)
    return (D * power_of_two(-a, Y.dtype), times_power(Y, -b), weight), b - a


@partial(jax.jit, static_argnames="dtype")
def _with_values(
    operands: tuple[Operator, Array, Array],
    exponent: Array,
    x: Array,
    certified: Array,
    dtype: Any,
) -> Optima:
    D, Y, lam = operands
    codes = ldexp(x, exponent).astype(dtype)
    return Optima(D, Y, lam, _objectives(D, Y, x, lam), certified, exponent, codes)


def _objectives(D: Operator, Y: Array, x: Array, lam: Array) -> Array:
    return jax.vmap(lasso_objective, (dictionaries.signal_axes(D), 0, 0, None))(D, Y, x, lam)
