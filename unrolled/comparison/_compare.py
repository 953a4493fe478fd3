"""Compare methods on one sample: errors step by step, and the changes by training."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

from unrolled._base import checks
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.programs import host_function, takes_sharded
from unrolled.comparison._comparison import ChainComparison, Comparison
from unrolled.comparison._costs import timed
from unrolled.comparison._inputs import fitted, per_layer, sample_of
from unrolled.comparison._measure import Asked, layers_of
from unrolled.comparison._method import Method, methods_of
from unrolled.comparison._results import DivergenceWarning
from unrolled.comparison._weights import form_of
from unrolled.dictionaries import Dictionary, flat_batch, refuse_parts

__all__ = ["compare"]


@overload
def compare(
    methods: Mapping[str, Any],
    D: Dictionary,
    Y: ArrayLike,
    X: ArrayLike | None = None,
    reference: str | None = None,
    *,
    lam: ArrayLike | None = None,
    sparsity: int | None = None,
    bound: float | None = None,
    noise: float | None = None,
    sampled: int | tuple[ArrayLike, ArrayLike] | None = None,
    certify: bool = False,
    predict: bool = False,
    mask: ArrayLike | None = None,
) -> Comparison: ...


@overload
def compare(
    methods: Mapping[str, Any],
    D: Sequence[Dictionary],
    Y: ArrayLike,
    X: Sequence[ArrayLike] | None = None,
    reference: str | None = None,
    *,
    lam: ArrayLike | Sequence[float] | None = None,
    sparsity: Sequence[int] | None = None,
    bound: Sequence[float] | None = None,
    noise: Sequence[float] | None = None,
) -> ChainComparison: ...


@takes_sharded
@host_function
def compare(
    methods: Any,
    D: Any,
    Y: Any,
    X: Any = None,
    reference: str | None = None,
    *,
    lam: Any = None,
    sparsity: Any = None,
    bound: Any = None,
    noise: Any = None,
    sampled: Any = None,
    certify: bool = False,
    predict: bool = False,
    mask: Any = None,
) -> Comparison | ChainComparison:
    """Run methods on one sample and measure their errors, thresholds, weights and guarantees.

    The methods are either layers, or networks with the same dictionaries. The result marks a method
    whose last error is not finite or exceeds the error of the zero code, and one
    `DivergenceWarning` names all such methods. A warning also counts the signals whose LASSO
    optimum is not certified.

    If the true codes are known, `compare` also checks the first codes, at most 100, one by one, and
    counts for how many of them theory proves that the steps of a method find the code (`Proved`).
    The tables show the share of these codes next to the worst-case bound of the class.

    If the true codes are not known, `compare` judges the methods by the objective of the LASSO, and
    the optimal codes of the LASSO replace the true codes in the curves. Codes of another solver may
    minimise a different objective, such as the LASSO with a different lam. Hence `compare` never
    marks such codes as divergent because of their objective.

    Args:
        methods: the methods by name. A method is a pair (layer, params) or (network, params), a
            `Method`, which also says where the params come from, a result of `fit`, or the codes of
            another solver, such as a pursuit. For a result of `fit`, `compare` runs the best params
            with the dictionary of the training. Codes of another solver are an array in the shape
            of X, for networks a tuple of arrays, and count as one step.
        D: (m, d); for networks a tuple with one dictionary per layer.
        Y: (batch, m), the signals.
        X: (batch, d), the true codes of Y, or None if the codes are not known. For networks, a
            tuple with the codes of every layer.
        reference: the name of a method. The distances of all params of the same form are measured
            from the params of this method. By default, the distances of a method are measured from
            the first earlier method with params of the same form.
        lam: weight of the LASSO (one number, or one per layer). If lam is given, `compare` also
            reports the gap to the optimum of the LASSO, over the signals for which a duality gap
            certifies the optimum, and the CPU times of the methods and of exact solvers:
            `pursuit.lasso_batch`, and SPAMS if it is installed. The signal of a layer of a network
            is then the true code of the layer before. If X and lam are None, lam is a tenth of the
            lam at which 90 % of the codes are zero, and a note says so.
        sparsity, bound, noise: s, B and delta of the class of codes for `theory.certify`; for
            networks one value per layer. By default, these are the least numbers that cover the
            sample.
        sampled: if given, `compare` also bounds the errors of 99.9 % of the codes of a class, with
            confidence 1 - 1e-6 for all methods together, from an independent sample. Pass held-out
            (Y, X) that played no part in any choice, or the number of Bernoulli-Gaussian codes to
            draw, such as 20,000. Drawn codes have the share of nonzeros, the variance and the noise
            of the sample, and these numbers define the class.
        certify: if True, also find the share of the last codes that `theory.certify_code` proves,
            after least squares on their supports, to be the only codes of least l1 norm.
        predict: if True, also predict the median error of layers that pass messages, by
            `theory.state_evolution` for Bernoulli-Gaussian codes like the codes of the sample. Also
            predict the rate of convergence, without noise, of layers that have found the support,
            by `theory.local_rate` (for plain steps, by `theory.support_rate` of the last weights).
            `predictions_table` and a row of the figure show the predictions next to the measured
            medians. The table also says why state evolution makes no prediction.
        mask: bools, in the shape of Y or of one signal, True where an entry is known; unknown
            entries of Y may be NaN. Every method runs with `dictionaries.Masked(D, mask)` for each
            signal, and residuals and objectives include only known entries. No guarantee or proof
            covers signals with a mask.

    Returns:
        A Comparison; for networks a ChainComparison with a Comparison of every layer.

    Raises:
        TypeError: methods is not a dict with names as keys, a value of the dict is not a method,
            codes are complex and D is real, or methods has both layers and networks.
        ValueError: there are no methods, shapes do not fit, signals are not finite, the reference
            is unknown, the mask has another shape, or params do not fit their layer. `sampled`,
            `certify` and `predict` raise ValueError for networks and with a mask, and `certify`
            does so for codes in parts. If X is None, ValueError is also raised if lam is 0, if all
            signals are zero, and if `sampled` or `predict` is given.

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 20, 30)
        >>> Y, X = ur.problems.sampler(D, 64)(jax.random.key(1))
        >>> layers = {"ISTA": ur.layers.ista(8), "FISTA": ur.layers.fista(8)}
        >>> methods = {name: (layer, layer.init(None, D)) for name, layer in layers.items()}
        >>> result = ur.compare(methods, D, Y, X)
        >>> bool(result["FISTA"].curve.nmse[-1] < result["ISTA"].curve.nmse[-1])
        True
    """
    numbers = dict(sparsity=sparsity, bound=bound, noise=noise)
    asked = dict(sampled=sampled, certify=certify, predict=predict, mask=mask)
    result = compared(methods, D, Y, X, reference, lam=lam, timed=True, **numbers, **asked)
    layers = result.layers if isinstance(result, ChainComparison) else (result,)
    diverged = any(of.diverged for layer in layers for of in layer.methods.values())
    if diverged or any(layer.uncertified for layer in layers):
        category = DivergenceWarning if diverged else UserWarning
        checks.warn(f"compare: {' '.join(result.notes())}", category)
    return result


def compared(
    methods: Any,
    D: Any,
    Y: Any,
    X: Any = None,
    reference: str | None = None,
    *,
    lam: Any = None,
    timed: bool = False,
    sampled: Any = None,
    certify: bool = False,
    predict: bool = False,
    mask: Any = None,
    **numbers: Any,
) -> Comparison | ChainComparison:
    """The result of `compare`, without the warning and, unless `timed`, without times."""
    given = methods_of(methods, reference)
    chained = any(method.chained for method in given.values())
    if chained and (certify or predict or sampled is not None):
        raise ValueError("compare: sampled, certify and predict are for layers, got networks")
    if mask is not None and (chained or certify or predict or sampled is not None):
        raise ValueError("compare: mask is for layers only, without sampled, certify or predict")
    if (predict or sampled is not None) and X is None:
        raise ValueError("compare: sampled and predict need known codes; expected X")
    if certify:
        refuse_parts(
            D, "compare", "certify needs codes of single entries, try compare without certify"
        )
    Y, X = flat_batch(D, (Y, X))
    sample = sample_of(chained, D, Y, X, lam, mask)
    J = len(sample.Ds)
    classes = [per_layer(numbers.get(name), name, J, chained) for name in _CLASS]
    asked = Asked(reference, [*zip(*classes)], timed, sampled, certify, predict)
    fitting = {name: fitted(method, name, sample) for name, method in given.items()}
    layers = layers_of(fitting, sample, asked)
    return ChainComparison(tuple(layers)) if chained else layers[0]


_CLASS = ("sparsity", "bound", "noise")


def with_seconds(
    result: Comparison,
    methods: Mapping[str, Method],
    D: Dictionary,
    Y: Array,
    trained: Mapping[str, float] | None = None,
) -> Comparison:
    """A comparison of layers, with seconds added for some methods and for the exact solvers.

    Methods with one layer and params of one form have one cost, which is measured once. `trained`
    has the seconds that the training of methods took.
    """
    spent = {name: result[name].replace(trained=(trained or {}).get(name)) for name in methods}
    result = result.replace(methods=result.methods | spent)
    forms = {name: (of.layer, form_of(of.params)) for name, of in methods.items()}
    first = {name: next(n for n in forms if forms[n] == form) for name, form in forms.items()}
    running = {n: (methods[n].layer, methods[n].params, D) for n in dict.fromkeys(first.values())}
    problem = (D, Y, result.lam) if result.exact else None
    (timings,) = timed([result], running, Y, problem, D if result.exact else None)
    costs = {name: result[name].replace(cost=timings[own].cost) for name, own in first.items()}
    return timings.replace(methods=timings.methods | costs)
