"""What a comparison measures of the codes of a method, step by step."""

import functools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import metrics, theory
from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import (
    exponent,
    largest,
    ldexp,
    norm,
    power_of_two,
    times_power,
    wide_dtype,
    widened,
)
from unrolled.activations import relu
from unrolled.compare._comparison import Cost, Curve, Divergence, Guarantee
from unrolled.dictionaries import Dictionary, Operator, column_norms
from unrolled.layers import Layer, Unrolled
from unrolled.networks import ROUNDING, Network, codes_of_ista, dsc, worse_than_zero
from unrolled.problems import synthesize
from unrolled.pursuit import lasso_objective, lasso_optima

Class = tuple[Any, Any, Any]  # (sparsity, bound, noise); None where the sample decides
ClassOf = Callable[[int, Dictionary], tuple[int, float, float]]


def guarantees(
    model: Layer | Network,
    params: tuple[Unrolled, ...],
    Ds: tuple[Dictionary, ...],
    class_of: ClassOf,
) -> list[Guarantee | None]:
    """The guarantee of every layer, from the first to the last that theory certifies.

    Args:
        model: a layer, or a network of J layers.
        params, Ds: J of each.
        class_of: the sparsity, bound and noise of layer j with a dictionary.
    """
    layers = (model,) if isinstance(model, Layer) else model.layers
    certified: list[Layer] = []
    for layer, p in zip(layers, params):
        if not _has_certificate(layer, p):
            break
        certified.append(layer)
    if not certified:
        return [None] * len(params)
    J = len(certified)
    numbers = [class_of(j, D) for j, D in enumerate(Ds[:J])]
    sparsity, bound, noise = zip(*numbers)
    certificates = theory.certify(
        dsc(tuple(certified)), params[:J], Ds[:J], sparsity=sparsity, bound=bound, noise=noise
    )
    proved = [Guarantee(*of, certificate) for of, certificate in zip(numbers, certificates)]
    return [*proved, *[None] * (len(params) - J)]


def _has_certificate(layer: Any, params: Unrolled) -> bool:
    finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params))
    return finite and layer.is_coupled and layer.activation == relu


def classes_of(
    Ds: tuple[Dictionary, ...], pairs: list[tuple[Array, Array]], classes: list[Class]
) -> ClassOf:
    """The class of every layer of a sample; that with its own dictionary is found once.

    Args:
        Ds, pairs: J dictionaries, and (signals, codes), as in `check_batch`.
        classes: J of them.
    """

    @functools.cache
    def own(j: int) -> tuple[int, float, float]:
        return _class_of(Ds[j], *pairs[j], classes[j])

    return lambda j, D: own(j) if D is Ds[j] else _class_of(D, *pairs[j], classes[j])


def _class_of(D: Dictionary, Y: Array, X: Array, asked: Class) -> tuple[int, float, float]:
    """The least class that holds the sample, where it is not given."""
    s, B, delta = asked
    codes = np.asarray(X)
    s = int(np.count_nonzero(codes, axis=1).max()) if s is None else s
    B = float(np.abs(codes).max()) if B is None else checks.as_number(B, "bound", "compare")
    if delta is None:
        with jax.enable_x64(True):  # the rounding of the signals counts as noise
            D, Y, X = checks.cast((D, Y, X), np.float64)
            delta = np.abs(np.asarray(Y) - np.asarray(synthesize(D, X))).sum(1).max()
    return s, B, checks.as_number(delta, "noise", "compare")


# The quantiles of the errors of single signals that a `Curve` holds.
QUANTILES = (0.1, 0.5, 0.9)
# What rounding may add to the error of the zero code: in dB, and as a share of F*.
_ROUNDING = 1e-3
# The exponents of lam that are told apart: beyond, it is 0 or above that of any signal.
_RANGE = 250
_EXTREME = 300.0  # dB


class Sample(NamedTuple):
    """What all methods run on, layer by layer."""

    Ds: tuple[Operator, ...]
    Y: Array
    Xs: tuple[Array, ...]
    optima: tuple["Optima | None", ...]  # None without gaps to the optimum

    @property
    def pairs(self) -> list[tuple[Array, Array]]:
        """The signals and the codes of every layer."""
        return list(zip((self.Y, *self.Xs), self.Xs))


class Optima(NamedTuple):
    """F* of every signal, in units in which squares of the numbers stay in the range.

    D is divided by 2^a and the signals by 2^b, all by the same, so that F is divided by 2^(2 b).
    """

    D: Operator
    Y: Array  # (batch, m)
    lam: Array  # ()
    values: Array  # (batch,)
    certified: Array  # (batch,) whether the duality gap met its tolerance
    exponent: Array  # b - a, that of codes
    codes: Array  # (batch, d), those of the optimum, in the units of the signals


class Measured(NamedTuple):
    """The codes of one layer, step by step."""

    errors: dict[str, Array]  # the fields of a `Curve`
    gap: Array | None
    zero_gap: Array | None  # of the zero code
    worse: Array | None  # share of signals whose objective is above that of the zero code
    silent: Array


def measure(model: Any, params: Any, D: Any, sample: Sample) -> tuple[list[Measured], Cost]:
    """`measure_codes` of a model, and what the codes cost."""
    operands = params, D, sample.Y
    jax.block_until_ready(_paths(model, *operands))  # compiled
    began = time.perf_counter()
    paths = jax.block_until_ready(_paths(model, *operands))
    seconds = time.perf_counter() - began
    chained = isinstance(paths, tuple)
    measured = measure_codes(paths if chained else (paths,), sample, D if chained else (D,))
    signal = jax.ShapeDtypeStruct(sample.Y.shape[1:], sample.Y.dtype)
    return measured, Cost(seconds, products(model, params, D, signal))


# A program of its own: only the paths are the model's, `measure_codes` serves all models.
@partial(jax.jit, static_argnames="model")
def _paths(model: Any, params: Any, D: Any, Y: Array) -> Any:
    """The codes of every layer after every step, (steps, batch, d)."""
    return jax.vmap(model.iterates, (None, None, 0), out_axes=1)(params, D, Y)


@jax.jit
def measure_codes(
    paths: tuple[Array, ...], sample: Sample, Ds: tuple[Operator, ...]
) -> list[Measured]:
    """The codes of every layer, (steps, batch, d), against the true ones and the signals.

    `Ds` are the dictionaries of the method, which rebuild its signals.
    """
    blocks = []
    for path, (Y, X), optima, D in zip(paths, sample.pairs, sample.optima, Ds):
        gap = zero_gap = worse = None
        if optima is not None:
            measured = partial(_objective_gap, optima)
            gap, zero_gap = jax.lax.map(measured, path), measured(jnp.zeros_like(X))
            worse = jax.lax.map(partial(_worse_objectives, optima), path)
        silent = ~(path[-1] != 0).any() & (X != 0).any()
        errors = jax.lax.map(partial(_numbers, D, Y, X), path)
        blocks.append(Measured(errors, gap, zero_gap, worse, silent))
    return blocks


def _numbers(D: Operator, Y: Array, X: Array, x: Array) -> dict[str, Array]:
    return _errors(X, x) | _rebuilt(D, Y, x)


def _rebuilt(D: Operator, Y: Array, x: Array) -> dict[str, Array]:
    """How well the codes rebuild their signals, and with how many entries."""
    signals = synthesize(D, x).astype(Y.dtype)
    size = norm(Y)
    peak: Any = jnp.max(Y) - jnp.min(Y)
    return dict(
        residual=norm(Y - signals) / jnp.where(size > 0, size, 1),
        psnr=jnp.where(peak > 0, metrics.psnr(signals, Y, peak), jnp.nan),  # of constant signals
        nonzeros=(x != 0).sum(-1).astype(x.dtype).mean(),
    )


def _errors(X: Array, x: Array) -> dict[str, Array]:
    norms = jax.vmap(norm)
    return dict(
        nmse=metrics.nmse(x, X),
        mean_nmse=metrics.mean_nmse(x, X),
        quantiles=_quantiles(metrics.signal_nmse(x, X)),
        failure_rate=metrics.failure_rate(x, X),
        worse=jnp.mean(~(norms(x - X) <= norms(X) * (1 + ROUNDING)), dtype=x.dtype),
        largest_l1=largest(jnp.abs(x - X).sum(-1)),
        **metrics.support_scores(x, X)._asdict(),
    )


def _quantiles(errors: Array) -> Array:
    """Of errors in dB; beyond 300 they are infinite, and -300 stands for codes that are exact."""
    levels = jnp.asarray(QUANTILES, errors.dtype)
    quantiles = jnp.nanquantile(jnp.clip(errors, -_EXTREME, _EXTREME), levels)
    return jnp.where(quantiles >= _EXTREME, jnp.inf, quantiles)


def _worse_objectives(optima: Optima, x: Array) -> Array:
    """The share of the signals, among those whose F* is certified, with F(x) above F(0)."""
    objective = _objectives(optima, ldexp(widened(x), -optima.exponent))
    zero = _objectives(optima, jnp.zeros_like(widened(x)))
    worse = ~(objective <= zero * (1 + ROUNDING)) & optima.certified
    return jnp.sum(worse, dtype=x.dtype) / jnp.sum(optima.certified, dtype=x.dtype)


def _objective_gap(optima: Optima, x: Array) -> Array:
    """sum F - F* over sum F* of the signals whose F* is certified; nan if they are none, or 0."""
    objective = _objectives(optima, ldexp(widened(x), -optima.exponent))
    excess = jnp.sum(jnp.where(optima.certified, objective - optima.values, 0))
    total = jnp.sum(jnp.where(optima.certified, optima.values, 0))
    # Without any excess there is no gap, also where the optimum of every signal is 0.
    gap = jnp.where(excess == 0, 0, excess / total)
    return jnp.where((total > 0) | optima.certified.all(), gap, jnp.nan)


@partial(jax.jit, static_argnames="depth")
def gaps_of_ista(D: Dictionary, Y: Array, lam: Array, optima: Optima, depth: int) -> Array:
    """The gap of ISTA after 0, ..., K steps; that after none is of zero codes."""
    path = codes_of_ista(D, lam, depth, Y, "compare")
    path = jnp.concatenate([jnp.zeros_like(path, shape=(1, *path.shape[1:])), path])
    return jax.lax.map(partial(_objective_gap, optima), path)


def _objectives(optima: Optima, x: Array) -> Array:
    return jax.vmap(lasso_objective, (None, 0, 0, None))(optima.D, optima.Y, x, optima.lam)


def optima_of(D: Dictionary, Y: Array, lam: Any) -> Optima:
    """F* of every signal.

    Raises:
        ValueError: a lam that is not one number, negative or not finite.
    """
    checks.nonnegative(lam, "lam", "compare")
    checks.finite(lam, "lam", "compare")
    if np.ndim(lam):
        raise ValueError(f"compare: lam has shape {np.shape(lam)}; expected one number")
    # As a mantissa and an exponent: the dtype of the signals may not hold it.
    operands, codes_exponent = _scaled(D, Y, *np.frexp(np.asarray(lam, float)))
    solved = lasso_optima(*operands)
    return _with_values(operands, codes_exponent, solved.x, solved.converged, Y.dtype)


@jax.jit
def _scaled(
    D: Operator, Y: Array, mantissa: Array, of_lam: Array
) -> tuple[tuple[Operator, Array, Array], Array]:
    """D, the signals and lam in units near 1, and the exponent of codes."""
    D, Y = checks.cast(D, wide_dtype(Y.dtype)), widened(Y)
    a, b = exponent(column_norms(D)), exponent(Y)
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
    optima = Optima(*operands, jnp.zeros_like(x[:, 0]), certified, exponent, ldexp(x, exponent))
    optima = optima._replace(codes=optima.codes.astype(dtype))
    return optima._replace(values=_objectives(optima, x))


def divergence(
    curve: Curve, zero_gap: Any, *, known: bool = True, by_codes: bool = False
) -> Divergence | None:
    """How the codes end worse than the zero code, where every method starts; None if they do not.

    Codes without any error are no worse, also where the true codes are all zero.

    Args:
        curve: of the method.
        zero_gap: that of the zero code; None where there is no optimum.
        known: whether the true codes are known, or those of the LASSO stand for them.
        by_codes: the method was given by its codes, which may be of another problem: the LASSO of
            another lam, or so many nonzeros. Then its objective is not judged.
    """
    error = curve.nmse[-1]
    if not known:
        if not np.isfinite(curve.largest_l1[-1]):
            return Divergence(len(curve.nmse), "its codes are not finite")
    elif step := _worse_from(~((curve.nmse <= _ROUNDING) | (curve.largest_l1 == 0))):
        if not np.isfinite(error):
            return Divergence(step, f"its error is not finite from step {step} on")
        rule = worse_than_zero("its codes are", "NMSE", error, 0.0, unit=" dB")
        return Divergence(step, f"{rule}, from step {step} on")
    if by_codes or curve.gap is None or np.isnan(zero_gap):  # without a certified F*
        return None
    most = float(zero_gap) + _ROUNDING
    if step := _worse_from(~(curve.gap <= most)):
        rule = worse_than_zero("its codes are", "(F - F*) / F*", curve.gap[-1], float(zero_gap))
        return Divergence(step, f"{rule}, from step {step} on")
    return None


# The operations of a matrix with a vector, whatever the dictionary is made of.
_PRODUCTS = ("dot_general", "conv_general_dilated")


@checked
def products(
    model: Any,
    params: Any,
    D: Dictionary | tuple[Dictionary, ...],
    y: ArrayLike | jax.ShapeDtypeStruct,
) -> int | None:
    """How many products with a matrix, or convolutions, the code of one signal takes.

    None where that depends on the signal.

    Example:
        >>> layer, D = ur.layers.fista(16), jnp.eye(3)
        >>> ur.compare.products(layer, layer.init(None, D), D, D[0])  # D z and D'(y - D z)
        32
    """
    checks.has(model, "apply", "a Layer or a Network", "model", "products")
    checks.arrays(params, "params", "products")
    return _count(jax.make_jaxpr(model.apply)(params, D, y).jaxpr)


def _count(jaxpr: Any) -> int | None:
    from jax.extend.core import jaxprs_in_params

    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _PRODUCTS:
            shapes = [variable.aval.shape for variable in equation.invars]
            total += max(map(len, shapes)) > 1  # not of two vectors
            continue
        counts = [_count(part) for part in jaxprs_in_params(equation.params)]
        inner = [count for count in counts if count is not None]
        if len(inner) < len(counts) or (name == "while" and any(inner)):
            return None
        times = equation.params["length"] if name == "scan" else 1
        total += times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _worse_from(worse: np.ndarray) -> int:
    """The step from which on all are worse, counted from 1; 0 if the last is not."""
    good = np.flatnonzero(~worse)
    first = good[-1] + 2 if len(good) else 1
    return int(first) if first <= len(worse) else 0
