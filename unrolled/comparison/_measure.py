"""The measurements of a comparison: errors of the codes step by step, divergence, and the records
of every method.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import metrics, problems
from unrolled._base.checks import Array
from unrolled._base.numbers import largest, ldexp, norm
from unrolled.analytic import bound_remark
from unrolled.comparison import _promises
from unrolled.comparison._comparison import Comparison
from unrolled.comparison._costs import products, timed
from unrolled.comparison._inputs import Optima, Sample
from unrolled.comparison._method import About, Method
from unrolled.comparison._promises import Class, ClassOf
from unrolled.comparison._results import QUANTILES, Cost, Curve, Divergence, MethodResult
from unrolled.comparison._weights import changes, coupling
from unrolled.dictionaries import Dictionary, Operator, block_of, shared_part, signal_axes
from unrolled.layers import Layer, stack
from unrolled.networks import ROUNDING, Network, codes_of_ista, worse_than_zero
from unrolled.penalties import L1
from unrolled.pursuit import lasso_solvers
from unrolled.training import law_of

# The allowance for rounding in the error of the zero code: in dB, and as a share of F*.
_ROUNDING = 1e-3
_EXTREME = 300.0  # dB

Paths = tuple[Array, ...]  # codes of every layer after every step, (steps, batch, d)


class Asked(NamedTuple):
    """What a comparison is asked for."""

    reference: str | None
    classes: list[Class]  # the given numbers of the class of codes, layer by layer
    timed: bool
    sampled: Any
    certify: bool
    predict: bool


class Measured(NamedTuple):
    """The measurements of the codes of one layer, step by step."""

    errors: dict[str, Array]  # the fields of a `Curve`, and `worse_objective`
    zero_gap: Array | None  # the gap of the zero code
    silent: Array


def layers_of(methods: dict[str, Method], sample: Sample, asked: Asked) -> list[Comparison]:
    """The comparison of every layer: the only entrance to the measurements."""
    class_of = _promises.classes_of(sample.Ds, sample.pairs, asked.classes)
    results = {name: _results(of, sample, class_of, asked) for name, of in methods.items()}
    if asked.sampled is not None or asked.certify or asked.predict:  # of one layer
        more = _more(methods, sample, asked)
        results = {name: [of.replace(**more[name])] for name, (of,) in results.items()}
    solved = _solved(sample)
    layers = [
        _comparison({n: of[j] for n, of in results.items()}, methods, sample, j, solved[j], asked)
        for j in range(len(sample.Ds))
    ]
    optima = sample.optima[0]
    if not asked.timed or optima is None:
        return layers
    running = _running(methods)
    problem = None if sample.chained else (optima.D, optima.Y, optima.lam)
    D = sample.Ds[0] if problem is not None and sample.mask is None else None
    return timed(layers, running, sample.Y, problem, D)  # a chain is timed as a whole


def _comparison(
    results: dict[str, MethodResult],
    methods: dict[str, Method],
    sample: Sample,
    j: int,
    solved: dict[str, MethodResult],
    asked: Asked,
) -> Comparison:
    """The comparison of layer j, from the results of all methods."""
    running = {n: of.each(of.params)[j] for n, of in methods.items() if of.layer is not None}
    params = {name: stack(p) if p.steps else p for name, p in running.items()}
    for name, (other, distances) in changes(params, asked.reference).items():
        results[name] = results[name].replace(reference=other, changes=distances)
    optima = sample.optima[j]
    depth = max((len(results[name].curve.nmse) for name in running), default=0)
    return Comparison(
        results,
        signals=len(sample.Y),
        known=sample.known,
        lam=sample.lams[j],
        exact=solved,
        ista_gap=_gaps_of_ista(sample, j, depth) if optima is not None and depth else None,
        uncertified=0 if optima is None else int((~np.asarray(optima.certified)).sum()),
        remarks=sample.remarks[j],
    )


def _results(method: Method, sample: Sample, class_of: ClassOf, asked: Asked) -> list[MethodResult]:
    """Run a method; measure the codes, weights, guarantees and proofs of each of its layers."""
    model, params, D, trained = method.layer, method.params, method.D, method.seconds
    Ds, ps = method.each(D), method.each(params)
    if model is None:
        paths = tuple(X.astype(sample.Y.dtype)[None] for X in ps)
        codes = _measured(paths, Ds, sample, given=True)
        return [of.replace(about=method.about if method.origin else None) for of in codes]
    codes = codes_by_step(model, params, D, sample.Y)
    signal = jax.ShapeDtypeStruct(sample.Y.shape[1:], sample.Y.dtype)
    cost = Cost(None, products(model, params, shared_part(D), signal))
    none: list[Any] = [None] * len(Ds)
    certified = (
        none
        if sample.mask is not None
        else _promises.guarantees(model, ps, Ds, sample.Xs, class_of)
    )
    proved = none
    if sample.known and sample.mask is None:
        noises = [noise for _, _, noise in asked.classes]
        proved = _promises.proofs(model, ps, Ds, sample.pairs, noises)
    of_codes = _measured(codes if isinstance(codes, tuple) else (codes,), Ds, sample)
    results, start = [], (None, None) if trained is None else _untrained(method, sample, codes)
    for j, (result, p) in enumerate(zip(of_codes, ps)):
        stacked = stack(p) if p.steps else p
        thresholds, weights = (
            (model.thresholds(j), model.weights(j))
            if isinstance(model, Network)
            else (model.thresholds, model.weights)
        )
        results.append(
            result.replace(
                about=method.about,
                cost=cost,
                trained=trained,
                untrained=start[0],
                raised=start[1],
                thresholds=thresholds(stacked),
                coupling=coupling(weights, stacked, shared_part(Ds[j])),
                guarantee=certified[j],
                beyond=_beyond(method, sample),
                proved=proved[j],
            )
        )
    return results


def _beyond(method: Method, sample: Sample) -> str:
    """A sentence if known codes of one layer exceed the bound that its params are made for."""
    covered = method.bound is None or method.chained or not sample.known
    return "" if covered else bound_remark(sample.Ds[0], sample.Xs[0], method.bound)


def _untrained(method: Method, sample: Sample, codes: Any) -> tuple[float | None, float | None]:
    """The last gap of a layer with the params of `init`, and the share of signals with a larger
    objective after training; None for networks and without gaps.
    """
    model, D = method.layer, method.D
    optima = sample.optima[0]
    if not isinstance(model, Layer) or optima is None:
        return None, None
    params = model.init(jax.random.key(0), shared_part(D))
    start = codes_by_step(model, params, D, sample.Y)[-1]
    return float(optima.gap(start)), float(optima.worse(codes[-1], start))


def _running(methods: dict[str, Method]) -> dict[str, tuple[Any, Any, Any]]:
    """(model, params, D) of the methods with steps, by name."""
    ran = {name: of for name, of in methods.items() if of.layer is not None}
    return {name: (of.layer, of.params, of.D) for name, of in ran.items()}


def _more(methods: dict[str, Method], sample: Sample, asked: Asked) -> dict[str, dict[str, Any]]:
    """The sampled bounds, certified shares and predictions that are asked for, by method."""
    D, Y, X = sample.Ds[0], sample.Y, sample.Xs[0]
    running = _running(methods)
    more: dict[str, dict[str, Any]] = {name: {} for name in methods}
    if asked.sampled is not None:
        drawn, pair = (
            not isinstance(asked.sampled, tuple | list),
            _promises.held_out(D, Y, X, asked.sampled),
        )
        for name, method in running.items():
            more[name]["sampled"] = _promises.bound(method, *pair, drawn, len(running))
    if asked.certify:
        for name, of in methods.items():
            more[name]["certified"] = _promises.certified_share(of.layer, of.params, of.D, Y)
    if asked.predict:
        law = law_of(D, Y, X)
        for name, method in running.items():
            more[name]["predicted"] = _promises.prediction(method[0], method[1], method[2], law)
    return more


def _measured(
    paths: Paths, Ds: tuple[Operator, ...], sample: Sample, given: bool = False
) -> list[MethodResult]:
    """The curves of codes, their divergence, and whether all last codes are zero."""
    results = []
    for of in jax.device_get(measure(paths, sample.pairs, sample.optima, Ds)):
        errors: dict[str, Any] = dict(of.errors)
        worse = errors.pop("worse_objective", None)
        if not sample.known:  # the codes of the LASSO are not the true codes
            errors["worse"] = worse
        curve = Curve(**errors)
        diverged = divergence(curve, of.zero_gap, known=sample.known, by_codes=given)
        results.append(MethodResult(curve, given, diverged, bool(of.silent)))
    return results


def _solved(sample: Sample) -> list[dict[str, MethodResult]]:
    """For every layer, the results of the exact solvers by name; empty without gaps."""
    optima = [of for of in sample.optima if of is not None]
    if len(optima) < len(sample.Ds):
        return [{}] * len(sample.Ds)
    problems = [(of.D, of.Y, of.lam) for of in optima]  # in units in which numbers are near 1
    rows: list[dict[str, MethodResult]] = [{} for _ in problems]
    for name, solve in lasso_solvers(sample.Ds).items():
        first = name == "exact"  # all gaps are measured from its codes
        codes = [
            of.codes
            if first
            else ldexp(jnp.asarray(solve(*problem)), of.exponent).astype(of.codes.dtype)
            for of, problem in zip(optima, problems)
        ]
        results = _measured(tuple(X[None] for X in codes), sample.Ds, sample, given=True)
        for row, result in zip(rows, results):
            if first:
                zero = {f: 0 * getattr(result.curve, f) for f in ("gap", "gap_quantiles")}
                result = result.replace(curve=result.curve.replace(**zero))
            about = About(name, "", "exact", numbers=0)
            row[name] = result.replace(diverged=None, silent=False, about=about)
    return rows


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
    measured = []
    for path, (Y, X), of, D in zip(paths, pairs, optima, Ds):
        errors = jax.lax.map(partial(_numbers, D, Y, X), path)
        if of is not None:
            errors |= jax.lax.map(partial(_distances, of), path)
        zero_gap = None if of is None else of.gap(jnp.zeros_like(X))
        silent = ~(path[-1] != 0).any() & (X != 0).any()
        measured.append(Measured(errors, zero_gap, silent))
    return measured


def _distances(optima: Optima, x: Array) -> dict[str, Array]:
    """The distances of codes from the optimum, and the share of codes worse than zero codes."""
    gaps = optima.gaps(x)
    quantiles = jnp.nanquantile(gaps, jnp.asarray(QUANTILES, gaps.dtype))
    return dict(gap=optima.gap(x), gap_quantiles=quantiles, worse_objective=optima.worse(x))


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


def _gaps_of_ista(sample: Sample, j: int, depth: int) -> np.ndarray:
    """The gap of ISTA after 0, ..., K steps; the first is the gap of zero codes."""
    Y = sample.pairs[j][0]
    lam = np.asarray(sample.lams[j], Y.dtype)
    return np.asarray(_path_gaps(sample.Ds[j], Y, lam, sample.optima[j], depth), float)


@partial(jax.jit, static_argnames="depth")
def _path_gaps(D: Dictionary, Y: Array, lam: Array, optima: Optima, depth: int) -> Array:
    path = codes_of_ista(D, lam, depth, Y, "compare")
    path = jnp.concatenate([jnp.zeros_like(path, shape=(1, *path.shape[1:])), path])
    return jax.lax.map(optima.gap, path)


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


def _worse_from(worse: np.ndarray) -> int:
    """The step from which all steps are worse, counted from 1; 0 if the last step is not worse."""
    good = np.flatnonzero(~worse)
    first = good[-1] + 2 if len(good) else 1
    return int(first) if first <= len(worse) else 0
