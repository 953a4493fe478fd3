"""The measurements of a comparison: errors of the codes step by step, bounds from an
independent sample, proofs of single codes, and predictions of theory.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import metrics, problems, theory
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
from unrolled.compare._comparison import (
    Cost,
    Curve,
    Divergence,
    Guarantee,
    Predicted,
    Proved,
    Sampled,
    Solver,
)
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    Structured,
    block_of,
    check_batch,
    column_norms,
    dense,
    known_part,
    shared_part,
    signal_axes,
)
from unrolled.layers import Law, Layer, Unrolled, alista_rt, unstack
from unrolled.networks import ROUNDING, Network, codes_of_ista, dsc, worse_than_zero
from unrolled.penalties import L1
from unrolled.pursuit import lasso_objective, lasso_optima
from unrolled.training import law_of

__all__ = ["QUANTILES", "products"]


Class = tuple[Any, Any, Any]  # (sparsity, bound, noise); None: computed from the sample
ClassOf = Callable[[int, Dictionary], tuple[int, float, float]]


def guarantees(
    model: Layer | Network,
    params: tuple[Unrolled, ...],
    Ds: tuple[Dictionary, ...],
    class_of: ClassOf,
) -> list[Guarantee | None]:
    """The guarantee of every layer; None from the first layer without a certificate on.

    Args:
        model: a layer, or a network of J layers.
        params, Ds: params and dictionaries, one per layer.
        class_of: a function; `class_of(j, D)` gives the sparsity, bound and noise of layer j with
            D.
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


# The most codes of a sample that are checked, and the most products with |W'D| for these proofs.
_PROVED_ON, _MOST_PRODUCTS = 100, 2**31


def proofs(
    model: Layer | Network,
    params: tuple[Unrolled, ...],
    Ds: tuple[Dictionary, ...],
    pairs: list[tuple[Array, Array]],
    noises: list[Any],
) -> list[Proved]:
    """The share of the first codes of every layer that the steps provably find.

    Args:
        model: a layer, or a network of J layers.
        params, Ds, pairs: params, dictionaries and (signals, codes), one per layer.
        noises: bounds on the norm of the noise, as in `Guarantee`, one per layer; if a bound is
            None, the noise of each signal is used.
    """
    layers = (model,) if isinstance(model, Layer) else tuple(model.layers)
    size = sum(layer.depth * D.shape[1] ** 2 for layer, D in zip(layers, Ds))
    n = max(1, min(_PROVED_ON, len(pairs[0][0]), _MOST_PRODUCTS // max(1, size)))
    some = [(np.asarray(Y[:n]), np.asarray(X[:n])) for Y, X in pairs]
    codes = tuple(X for _, X in some)
    bounds = tuple(
        _noise_of(D, *pair) if noise is None else noise for D, pair, noise in zip(Ds, some, noises)
    )
    try:
        if isinstance(model, alista_rt):
            of = [_by_supports(model, params[0], Ds[0], *some[0], bounds[0])]
        else:
            layered = theory.certify_signals(dsc(layers), params, Ds, codes, noise=bounds)
            if reasons := [signals.uncovered for signals in layered if signals.uncovered]:
                return [Proved(None, n, f"no theorem is about {reasons[0]}")] * len(params)
            of = [signals.proved for signals in layered]
    except (TypeError, ValueError) as error:  # the message says what theory does not cover
        reason = str(error).partition(": ")[2].partition(";")[0]
        return [Proved(None, n, reason)] * len(params)
    return [Proved(float(np.mean(proved)), n) for proved in of]


def _noise_of(D: Dictionary, Y: Any, X: Any) -> np.ndarray:
    """The l1 norm of y - D x (l2 if codes have parts) for each signal; rounding counts as noise."""
    with jax.enable_x64(True):
        D, Y, X = checks.cast((D, Y, X), np.float64)
        left = np.abs(np.asarray(Y) - np.asarray(problems.synthesize(D, X)))
    return left.sum(1) if block_of(D) == 1 else np.hypot.reduce(left, axis=1)


def _by_supports(
    layer: alista_rt, params: Unrolled, D: Dictionary, Y: np.ndarray, X: np.ndarray, noise: Any
) -> np.ndarray:
    """For each code, (n,), whether the steps keep entries off its support at 0 and converge."""
    checks.finite((params, D), "params or D", "certify_supports")
    W, c, g = params.shared.analytic.W, abs(float(params.shared.ratio)), block_of(D)
    parts = _part_sizes(D, X)
    sizes, proved = np.count_nonzero(parts, axis=1), np.zeros(len(X), bool)
    for s in np.unique(sizes):
        rows = sizes == s
        supports = np.argsort(parts[rows] == 0, axis=1, kind="stable")[:, :s]
        of_supports = theory.certify_supports(W, D, supports)
        proved[rows] = of_supports.proved(c) if 0 < c < 1 else False
    matrix = np.asarray(dense(W), float)
    # The steps allow for the noise in the layer's options, and for this rounding of the signals.
    rounded = np.linalg.norm(matrix, axis=0).max() * np.linalg.norm(Y.reshape(len(Y), -1), axis=1)
    allowed = layer.noise + theory.OF_SIGNAL * np.finfo(Y.dtype).eps / 2 * rounded
    gain = np.abs(matrix).max()
    if g > 1:  # for noise bounded in l2
        gain = np.linalg.norm(matrix.reshape(len(matrix), -1, g), 2, axis=(0, 2)).max()
    return proved & (gain * noise <= allowed)


def _part_sizes(D: Dictionary, X: Any) -> np.ndarray:
    """The sizes of the parts of codes; the magnitudes of the entries if D has no parts."""
    sizes, g = np.abs(np.asarray(X)), block_of(D)
    return sizes if g == 1 else np.hypot.reduce(sizes.reshape(len(sizes), -1, g), axis=2)


def classes_of(
    Ds: tuple[Dictionary, ...], pairs: list[tuple[Array, Array]], classes: list[Class]
) -> ClassOf:
    """A function (j, D) -> the class of layer j, which computes the class of Ds[j] only once.

    Args:
        Ds, pairs: dictionaries and (signals, codes), one per layer.
        classes: the given numbers of the class, one triple per layer; None for numbers to compute.
    """

    @functools.cache
    def own(j: int) -> tuple[int, float, float]:
        return _class_of(Ds[j], *pairs[j], classes[j])

    return lambda j, D: own(j) if D is Ds[j] else _class_of(D, *pairs[j], classes[j])


def _class_of(D: Dictionary, Y: Array, X: Array, asked: Class) -> tuple[int, float, float]:
    """The class; the least number that covers the sample replaces each None."""
    s, B, delta = asked
    sizes = _part_sizes(D, X)
    s = int(np.count_nonzero(sizes, axis=1).max()) if s is None else s
    B = float(sizes.max()) if B is None else checks.as_number(B, "bound", "compare")
    delta = _noise_of(D, Y, X).max() if delta is None else delta
    return s, B, checks.as_number(delta, "noise", "compare")


# The quantiles of the errors of single signals that a `Curve` holds.
QUANTILES = (0.1, 0.5, 0.9)
# The allowance for rounding in the error of the zero code: in dB, and as a share of F*.
_ROUNDING = 1e-3
# The range of exponents of lam: a smaller lam acts like 0, a larger lam exceeds every signal.
_RANGE = 250
_EXTREME = 300.0  # dB


class Sample(NamedTuple):
    """The data on which all methods run, layer by layer."""

    Ds: tuple[Operator, ...]
    Y: Array
    Xs: tuple[Array, ...]
    optima: tuple["Optima | None", ...]  # None without gaps to the optimum
    lams: tuple[Any, ...]  # weights of the LASSO; None without gaps
    known: bool  # whether the codes are true codes
    chained: bool

    @property
    def whole_D(self) -> Any:
        """The dictionary, for a chain the tuple of dictionaries."""
        return self.Ds if self.chained else self.Ds[0]

    @property
    def pairs(self) -> list[tuple[Array, Array]]:
        """The signals and the codes of every layer."""
        return list(zip((self.Y, *self.Xs), self.Xs))


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


Paths = tuple[Array, ...]  # codes of every layer after every step, (steps, batch, d)
_MOST_RUNS, _MOMENT = 5, 0.1  # the most timed runs, and the seconds after which timing stops
_TIMED = 1000  # the fewest signals in a timed call of an exact solver


class Measured(NamedTuple):
    """The measurements of the codes of one layer, step by step."""

    errors: dict[str, Array]  # the fields of a `Curve`
    gap: Array | None
    zero_gap: Array | None  # the gap of the zero code
    worse: Array | None  # share of signals with a larger objective than the zero code
    silent: Array


def run(model: Any, params: Any, D: Any, Y: Array, timed: bool) -> tuple[Paths, Cost]:
    """The codes of every layer after every step, (steps, batch, d), and their cost."""
    operands = params, D, Y
    paths = jax.block_until_ready(codes_by_step(model, *operands))
    spent = seconds(lambda: codes_by_step(model, *operands)) if timed else None
    signal = jax.ShapeDtypeStruct(Y.shape[1:], Y.dtype)
    cost = Cost(spent, products(model, params, shared_part(D), signal))
    return paths if isinstance(paths, tuple) else (paths,), cost


def seconds(f: Callable[[], Any]) -> float:
    """The least time of several runs of a compiled program; other load only adds time."""
    times: list[float] = []
    while not times or (len(times) < _MOST_RUNS and sum(times) < _MOMENT):
        began = time.perf_counter()
        jax.block_until_ready(f())
        times.append(time.perf_counter() - began)
    return min(times)


def seconds_of(solve: "Solve", D: Any, Y: Array, lam: Any) -> float:
    """The time of an exact solver for all signals; few signals are repeated for the measurement."""
    times = -(-_TIMED // max(len(Y), 1))
    many = np.tile(np.asarray(Y), (times, 1)) if times > 1 else Y
    if times > 1 and shared_part(D) is not D:
        D, _ = known_part(D.base, many, np.tile(np.asarray(D.mask > 0), (times, 1)))
    jax.block_until_ready(solve(D, many, lam))  # compiles for this shape
    return seconds(lambda: solve(D, many, lam)) / times


# A separate program: only the paths depend on the model, and `measure` serves all models.
@partial(jax.jit, static_argnames="model")
def codes_by_step(model: Any, params: Any, D: Any, Y: Array) -> Any:
    """The codes of every layer after every step, (steps, batch, d)."""
    return jax.vmap(model.iterates, (None, signal_axes(D), 0), out_axes=1)(params, D, Y)


@jax.jit
def measure(
    paths: Paths,
    pairs: list[tuple[Array, Array]],
    optima: tuple["Optima | None", ...],
    Ds: tuple[Operator, ...],
) -> list[Measured]:
    """Measure the codes of every layer against the true codes and the signals of a `Sample`.

    `Ds` are the dictionaries of the method, which rebuild the signals.
    """
    blocks = []
    for path, (Y, X), of, D in zip(paths, pairs, optima, Ds):
        gap = zero_gap = worse = None
        if of is not None:
            measured = partial(_objective_gap, of)
            gap, zero_gap = jax.lax.map(measured, path), measured(jnp.zeros_like(X))
            worse = jax.lax.map(partial(_worse_objectives, of), path)
        silent = ~(path[-1] != 0).any() & (X != 0).any()
        errors = jax.lax.map(partial(_numbers, D, Y, X), path)
        blocks.append(Measured(errors, gap, zero_gap, worse, silent))
    return blocks


def _numbers(D: Operator, Y: Array, X: Array, x: Array) -> dict[str, Array]:
    numbers = _errors(X, x) | _rebuilt(D, Y, x)
    if block_of(D) == 1:
        return numbers
    of, true, off = (jax.vmap(L1.of(D).sizes)(v) for v in (x, X, x - X))
    numbers |= dict(largest_l1=largest(off.sum(-1)), **metrics.support_scores(of, true).asdict())
    return numbers | dict(nonzeros=(of != 0).sum(-1).astype(x.dtype).mean())


def _rebuilt(D: Any, Y: Array, x: Array) -> dict[str, Array]:
    """The errors of the rebuilt signals, and the mean number of nonzeros of a code."""
    signals, size = problems.synthesize(shared_part(D), x).astype(Y.dtype), norm(Y)
    peak: Any = jnp.max(Y) - jnp.min(Y)
    if shared_part(D) is not D:  # each signal has its own known entries
        signals, peak = D.mask * signals, jnp.zeros_like(peak)
    return dict(
        residual=norm(Y - signals) / jnp.where(size > 0, size, 1),
        psnr=jnp.where(peak > 0, metrics.psnr(signals, Y, peak), jnp.nan),  # constant Y: no peak
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
        **metrics.support_scores(x, X).asdict(),
    )


def _quantiles(errors: Array) -> Array:
    """The quantiles of errors in dB; 300 or more becomes infinite, and -300 means exact codes."""
    levels = jnp.asarray(QUANTILES, errors.dtype)
    quantiles = jnp.nanquantile(jnp.clip(errors, -_EXTREME, _EXTREME), levels)
    return jnp.where(quantiles >= _EXTREME, jnp.inf, quantiles)


def _worse_objectives(optima: Optima, x: Array) -> Array:
    """The share of signals with F(x) above F(0), among signals whose F* is certified."""
    objective = _objectives(optima, ldexp(widened(x), -optima.exponent))
    zero = _objectives(optima, jnp.zeros_like(widened(x)))
    worse = ~(objective <= zero * (1 + ROUNDING)) & optima.certified
    return jnp.sum(worse, dtype=x.dtype) / jnp.sum(optima.certified, dtype=x.dtype)


def _objective_gap(optima: Optima, x: Array) -> Array:
    """sum (F - F*) over sum F*, for signals with a certified F*.

    The gap is nan if no F* is certified, or if the certified F* are 0 and other signals have no
    certificate.
    """
    objective = _objectives(optima, ldexp(widened(x), -optima.exponent))
    excess = jnp.sum(jnp.where(optima.certified, objective - optima.values, 0))
    total = jnp.sum(jnp.where(optima.certified, optima.values, 0))
    # If F does not exceed F*, the gap is 0, even if the optimum of every signal is 0.
    gap = jnp.where(excess == 0, 0, excess / total)
    return jnp.where((total > 0) | optima.certified.all(), gap, jnp.nan)


@partial(jax.jit, static_argnames="depth")
def gaps_of_ista(D: Dictionary, Y: Array, lam: Array, optima: Optima, depth: int) -> Array:
    """The gap of ISTA after 0, ..., K steps; the first is the gap of zero codes."""
    path = codes_of_ista(D, lam, depth, Y, "compare")
    path = jnp.concatenate([jnp.zeros_like(path, shape=(1, *path.shape[1:])), path])
    return jax.lax.map(partial(_objective_gap, optima), path)


def _objectives(optima: Optima, x: Array) -> Array:
    axes = signal_axes(optima.D), 0, 0, None
    return jax.vmap(lasso_objective, axes)(optima.D, optima.Y, x, optima.lam)


Solve = Callable[[Any, Any, Any], Any]  # D, the signals and lam -> codes, or a Pursuit


def solvers(Ds: Sequence[Any]) -> dict[str, Solve]:
    """The exact solvers of the LASSO by name, with SPAMS if it is installed and D is a matrix."""
    named: dict[str, Solve] = {"exact": lasso_optima}
    if not any(isinstance(D, Structured) for D in Ds) and find_spec("spams") is not None:
        if hasattr(import_module("spams"), "lasso"):  # not just a folder of that name
            named["SPAMS LARS"] = _lars
    return named


def _lars(D: Any, Y: Any, lam: Any) -> np.ndarray:
    """Codes by the homotopy method of SPAMS, on all cores."""
    import spams  # type: ignore[import-not-found]

    signals, atoms = (np.asfortranarray(np.asarray(A, float)) for A in (np.asarray(Y).T, D))
    codes = spams.lasso(signals, atoms, lambda1=float(lam), mode=2)
    return np.asarray(codes.T.todense(), np.asarray(Y).dtype)


def exact(sample: Sample, timed: bool) -> list[dict[str, Solver]]:
    """For every layer, results and costs of the exact solvers by name; empty without gaps."""
    optima = [of for of in sample.optima if of is not None]
    if len(optima) < len(sample.Ds):
        return [{}] * len(sample.Ds)
    problems = [(of.D, of.Y, of.lam) for of in optima]  # in units in which numbers are near 1
    rows: list[dict[str, Solver]] = [{} for _ in problems]
    for name, solve in solvers(sample.Ds).items():
        first = name == "exact"  # all gaps are measured from its codes
        codes = [
            of.codes
            if first
            else ldexp(jnp.asarray(solve(*problem)), of.exponent).astype(of.codes.dtype)
            for of, problem in zip(optima, problems)
        ]
        paths = tuple(X[None] for X in codes)
        measured = jax.device_get(measure(paths, sample.pairs, sample.optima, sample.Ds))
        for row, of, problem in zip(rows, measured, problems):
            errors = of.errors if sample.known else of.errors | {"worse": of.worse}
            curve = Curve(**errors, gap=0 * of.gap if first else of.gap)
            row[name] = Solver(curve, seconds_of(solve, *problem) if timed else None)
    return rows


def optima_of(D: Dictionary, Y: Array, lam: Any) -> Optima:
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
    a, b = exponent(column_norms(shared_part(D))), exponent(Y)
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
    """The divergence of a method whose last codes are worse than the zero code; otherwise None.

    Codes without any error are not worse, even if the true codes are all zero.

    Args:
        curve: the curve of the method.
        zero_gap: the gap of the zero code; None if there is no optimum.
        known: whether the true codes are known; otherwise the codes of the LASSO are used.
        by_codes: whether the method is an array of codes of another solver. The other solver may
            solve another problem, such as the LASSO with another lam, so its codes are not judged
            by the objective.
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


# The operations of JAX that multiply a matrix and a vector, for any kind of dictionary.
_PRODUCTS = ("dot_general", "conv_general_dilated")


@checked
def products(
    model: Any,
    params: Any,
    D: Dictionary | tuple[Dictionary, ...],
    y: ArrayLike | jax.ShapeDtypeStruct,
) -> int | None:
    """The number of products with a matrix, or of convolutions, for the code of one signal.

    If a step visits D block by block, the products with all blocks count as one product. The result
    is None if the number depends on the signal.

    Example:
        >>> layer, D = ur.layers.fista(16), jnp.eye(3)
        >>> ur.compare.products(layer, layer.init(None, D), D, D[0])  # D z and D'(y - D z)
        32
    """
    checks.has(model, "apply", "a Layer or a Network", "model", "products")
    checks.arrays(params, "params", "products")
    Ds = D if isinstance(D, tuple | list) else (D,)
    whole = min((np.size(each) for each in Ds if not isinstance(each, Structured)), default=0)
    scans = int(type(getattr(params, "steps", None)) is tuple)  # a Python loop over the steps
    count = _count(jax.make_jaxpr(model.apply)(params, D, y).jaxpr, whole, scans)
    return None if count is None else round(count)


def _count(jaxpr: Any, whole: int, scans: int) -> float | None:
    """The products of a program inside of `scans` loops; `whole` is the number of entries of D.

    A scan inside of the loop over the steps visits D in blocks, each a part of a product.
    """
    from jax.extend.core import jaxprs_in_params

    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _PRODUCTS:
            shapes = [variable.aval.shape for variable in equation.invars]
            if max(map(len, shapes)) > 1:  # not a product of two vectors
                blocks = scans > 1 and whole > 0
                total += min(1, max(map(math.prod, shapes)) / whole) if blocks else 1
            continue
        within = scans + (name == "scan")
        counts = [_count(part, whole, within) for part in jaxprs_in_params(equation.params)]
        inner = [count for count in counts if count is not None]
        if len(inner) < len(counts) or (name == "while" and any(inner)):
            return None
        times = equation.params["length"] if name == "scan" else 1
        total += times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _worse_from(worse: np.ndarray) -> int:
    """The step from which all steps are worse, counted from 1; 0 if the last step is not worse."""
    good = np.flatnonzero(~worse)
    first = good[-1] + 2 if len(good) else 1
    return int(first) if first <= len(worse) else 0


# An independent sample, proofs of single codes, and predictions

_SHARE, _CONFIDENCE = 1e-3, 1 - 1e-6
_CHUNK = 1000  # signals per call
_SEED = 2**31 - 1  # seed of the draws, which users are unlikely to use for a sample


def drawn(D: Dictionary, Y: Array, X: Array, n: int) -> tuple[Array, Array]:
    """Draw n signals of the class of a sample."""
    probability, variance, noise, *_ = law_of(D, Y, X)
    keys = jax.random.split(jax.random.key(_SEED))
    codes = problems.planted(keys[0], (n, X.shape[-1]), probability, block_of(D))
    codes = (codes * math.sqrt(variance)).astype(X.dtype)
    signals = problems.synthesize(D, codes)
    noises = math.sqrt(noise) * jax.random.normal(keys[1], (n, Y.shape[-1]))
    return (signals + noises).astype(Y.dtype), codes


def held_out(D: Dictionary, Y: Array, X: Array, sampled: Any) -> tuple[Array, Array]:
    """The given signals and codes, or new draws if `sampled` is the number of draws."""
    where = "compare"
    if isinstance(sampled, tuple | list):
        if len(sampled) != 2:
            raise ValueError(f"{where}: sampled has {len(sampled)} entries; expected (Y, X)")
        check_batch(D, sampled[0], sampled[1], where)
        pair = tuple(checks.as_float(a, "sampled", where) for a in sampled)
        checks.finite(pair, "sampled", where)
        return pair[0], pair[1]
    n = checks.as_index(sampled, "sampled", where, least=1)
    checks.announce((n, X.shape[-1]), X.dtype, "the codes that are sampled", where)
    return drawn(D, Y, X, n)


@partial(jax.jit, static_argnums=0)
def _last_codes(model: Any, params: Any, D: Any, Y: Array) -> Array:
    return jax.lax.map(lambda y: model.apply(params, D, y), Y, batch_size=_CHUNK)


def bounds(methods: Mapping[str, tuple], Y: Array, X: Array, drawn: bool) -> dict[str, Sampled]:
    """The sampled bound of every method (model, params, D)."""
    results = {}
    for name, (model, params, D) in methods.items():
        codes = _last_codes(model, params, D, Y)
        right = np.asarray((codes == X).all(1))  # also if both are zero
        errors = np.where(right, -math.inf, np.asarray(metrics.signal_nmse(codes, X)))
        options = dict(share=_SHARE, confidence=_CONFIDENCE)
        tolerance = theory.tolerance_bound(errors, at_once=len(methods), **options)
        results[name] = Sampled(
            tolerance.bound, len(Y), tolerance.needed, _SHARE, _CONFIDENCE, drawn
        )
    return results


def certified_shares(methods: Mapping[str, tuple], Y: Array) -> dict[str, float]:
    """For every method, the share of the last codes that `theory.certify_code` certifies.

    A method is (model, params, D), or (None, codes, D). `certify_code` runs without a search for
    codes (`finish=0`): a search would find the right code even for methods that did not find it.
    """
    shares = {}
    for name, (model, params, D) in methods.items():
        codes = params if model is None else _last_codes(model, params, D, Y)
        shares[name] = float(np.mean(theory.certify_code(D, Y, codes, finish=0).certified(Y)))
    return shares


_SUPPORTS = 5  # number of drawn supports; the rate is the median over these supports
_WEIGHTS = {"amp": "dictionary"}  # kind of message passing -> `weights` of `local_rate`


def predictions(
    methods: Mapping[str, tuple], D: Dictionary, Y: Array, X: Array
) -> dict[str, Predicted]:
    """The predictions for every method (layer, params, D), for codes like the codes in X."""
    law = law_of(D, Y, X)
    return {
        name: _prediction(layer, params, own, law) for name, (layer, params, own) in methods.items()
    }


def _prediction(layer: Layer, params: Unrolled, D: Dictionary, law: Law) -> Predicted:
    nmse, remark, passing = None, "none is known for this family and its options", _passing(layer)
    has_rate = True
    if passing is not None:
        try:
            evolution = theory.state_evolution(
                layer,
                D,
                probability=law.probability,
                variance=law.variance,
                noise=law.noise,
                params=params,
            )
            nmse = evolution.nmse[1:] if evolution.holds else None
            remark = evolution.reason
            # A plain step ("projected") has a rate even if state evolution does not hold.
            has_rate = evolution.holds or passing.step == "projected"
        except (TypeError, ValueError) as error:  # the message says what theory does not cover
            remark = str(error).partition(": ")[2].partition(";")[0]
    rate = _rate(layer, params, D, law) if has_rate else None
    return Predicted(nmse, rate, remark)


def _passing(layer: Layer) -> theory.MessagePassing | None:
    described = layer.message_passing is not None and layer.guard is None
    return layer.message_passing() if described else None


def _rate(layer: Layer, params: Unrolled, D: Dictionary, law: Law) -> float | None:
    """The rate in dB per step, from the last weights or, for message passing, by `local_rate`."""
    m, d = D.shape
    s = round(law.probability * d)
    if law.noise > 0 or not 1 <= s <= m <= d or block_of(D) > 1:
        return None
    passing = _passing(layer)
    if passing is not None and passing.step != "projected":
        if isinstance(D, Structured):
            return None
        weights = _WEIGHTS.get(passing.step, "frobenius")
        return _decibels(theory.local_rate(m, d, s, weights=weights).accelerated)
    if not layer.is_coupled:
        return None
    shared, steps = unstack(Unrolled(params.shared, jax.device_get(params.steps)))
    W, gamma, _ = layer.weights(shared, steps[-1], D)
    acting: Any = np.asarray(dense(W), float) * (1.0 if gamma is None else np.asarray(gamma, float))
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(d)[:s] for _ in range(_SUPPORTS)]
    return _decibels(float(np.median([theory.support_rate(acting, D, S).plain for S in drawn])))


def _decibels(rate: float) -> float | None:
    """A rate in dB; None if the steps do not converge, or one step is enough."""
    return 20 * math.log10(rate) if 0 < rate < 1 else None
