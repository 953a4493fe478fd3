"""Compare methods on one sample: errors step by step, and the changes by training."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.programs import host_function, takes_sharded
from unrolled._base.text import an
from unrolled.compare._comparison import (
    ChainComparison,
    Change,
    Comparison,
    Cost,
    Curve,
    Divergence,
    DivergenceWarning,
    Guarantee,
    Proved,
    Weights,
    coupling,
)
from unrolled.compare._measure import (
    ClassOf,
    Optima,
    Paths,
    Sample,
    bounds,
    certified_shares,
    classes_of,
    codes_by_step,
    divergence,
    exact,
    gaps_of_ista,
    guarantees,
    held_out,
    measure,
    optima_of,
    predictions,
    proofs,
    run,
    seconds,
    seconds_of,
    solvers,
)
from unrolled.dictionaries import (
    Dictionary,
    Operator,
    as_chain,
    as_dictionary,
    as_flat,
    check_batch,
    flat_batch,
    known_entries,
    known_part,
    refuse_parts,
    shared_part,
)
from unrolled.layers import Layer, Unrolled, stack
from unrolled.networks import Network
from unrolled.pursuit import DEFAULT_LAM, default_lam
from unrolled.training import Fit

__all__ = ["compare"]


Model = Layer | Network


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
            result of `fit`, or the codes of another solver, such as a pursuit. For a result of
            `fit`, `compare` runs the best params with the dictionary of the training. Codes of
            another solver are an array in the shape of X, for networks a tuple of arrays, and count
            as one step.
        D: (m, d); for networks a tuple with one dictionary per layer.
        Y: (batch, m), the signals.
        X: (batch, d), the true codes of Y, or None if the codes are not known. For networks, a
            tuple with the codes of every layer.
        reference: the name of a method. The distances of all params of the same form are measured
            from the params of this method. By default, the distances of a method are measured from
            the first earlier method with params of the same form.
        lam: weight of the LASSO (one number, or one per layer). If lam is given, `compare` also
            reports the gap to the optimum of the LASSO, over the signals for which a duality gap
            certifies the optimum, and the cost of exact solvers: `pursuit.lasso_batch`, and SPAMS
            if it is installed. The signal of a layer of a network is then the true code of the
            layer before. If X and lam are None, lam is a tenth of the lam at which 90 % of the
            codes are zero, and a note says so.
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
        >>> curves = ur.compare(methods, D, Y, X).curves
        >>> bool(curves["FISTA"].nmse[-1] < curves["ISTA"].nmse[-1])
        True
    """
    numbers = dict(sparsity=sparsity, bound=bound, noise=noise)
    asked = dict(sampled=sampled, certify=certify, predict=predict, mask=mask)
    result = compared(methods, D, Y, X, reference, lam=lam, timed=True, **numbers, **asked)
    layers = result.layers if isinstance(result, ChainComparison) else (result,)
    category = DivergenceWarning if any(layer.diverged for layer in layers) else UserWarning
    if any(layer.diverged or layer.uncertified for layer in layers):
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
    given = _as_methods(methods, reference)
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
    known = None
    if mask is not None:
        known = known_entries(as_dictionary(D, "compare"), mask, len(Y), "compare")
        known = np.broadcast_to(known, (len(Y), known.shape[-1]))
    sample = _sample(chained, D, Y, X, lam, known)
    J = len(sample.Ds)
    classes = [_per_layer(numbers.get(name), name, J, chained) for name in _CLASS]
    class_of = classes_of(sample.Ds, sample.pairs, list(zip(*classes)))
    fitting = {name: method.on(name, sample, known) for name, method in given.items()}
    running = partial(_blocks, sample=sample, class_of=class_of, noises=classes[-1], timed=timed)
    blocks = {name: running(method) for name, method in fitting.items()}
    optimal = exact(sample, timed and not chained)  # a chain is timed as a whole
    layers = [
        _comparison({name: b[j] for name, b in blocks.items()}, reference, sample, j, lam).replace(
            exact=optimal[j],
            trained={n: method.seconds for n, method in fitting.items() if method.seconds},
        )
        for j in range(J)
    ]
    if chained:
        return ChainComparison(tuple(layers))
    return _told(layers[0], fitting, sample, sampled, certify, predict)


_CLASS = ("sparsity", "bound", "noise")


def _told(
    result: Comparison,
    methods: dict[str, "_Method"],
    sample: Sample,
    sampled: Any,
    certify: bool,
    predict: bool,
) -> Comparison:
    """The result with the sampled bounds, certified shares and predictions that are asked for."""
    D, Y, X = sample.Ds[0], sample.Y, sample.Xs[0]
    whole = {name: method[:3] for name, method in methods.items()}
    running = {name: method for name, method in whole.items() if method[0] is not None}
    if sampled is not None:
        drawn = not isinstance(sampled, tuple | list)
        bounded = bounds(running, *held_out(D, Y, X, sampled), drawn)
        result = result.replace(sampled=bounded)
    if certify:
        result = result.replace(certified=certified_shares(whole, Y))
    return result.replace(predicted=predictions(running, D, Y, X)) if predict else result


def with_seconds(
    result: Comparison, methods: Mapping[str, tuple[Layer, Unrolled]], D: Dictionary, Y: Array
) -> Comparison:
    """A comparison of layers, with seconds added for some methods and for the exact solvers."""
    costs = {
        name: Cost(seconds(partial(codes_by_step, *method, D, Y)), result.costs[name].products)
        for name, method in methods.items()
    }
    named = solvers([D])
    exact = {
        n: of.replace(seconds=seconds_of(named[n], D, Y, result.lam))
        for n, of in result.exact.items()
    }
    return result.replace(costs={**result.costs, **costs}, exact=exact)


class _Method(NamedTuple):
    model: Model | None  # None for codes
    params: Any  # or the codes, a tuple for a chain
    D: Any = None  # the dictionary of the method, or a tuple; None for the D of the sample
    seconds: float = 0.0  # duration of the training, 0 if unknown

    @property
    def chained(self) -> bool:
        if self.model is None:
            return isinstance(self.params, tuple)
        return isinstance(self.model, Network)

    def each(self, tree: Any) -> tuple[Any, ...]:
        """Params, dictionaries or codes of every layer."""
        return tuple(tree) if self.chained else (tree,)

    def on(self, name: str, sample: Sample, known: Any = None) -> "_Method":
        """The method with a dictionary that fits the sample, and given codes as floats.

        Args:
            name: the name of the method.
            sample: the sample on which the method runs.
            known: (batch, m), which entries of each signal are known.

        Raises:
            TypeError: the params are not params of the model.
            ValueError: the shapes of the D or of the codes of the method differ from the shapes of
                the sample, or the params do not fit the D.
        """
        D = sample.whole_D if self.D is None else self.D
        what, given, expected = "was trained with D of", D, sample.Ds
        if self.model is None:
            what, given, expected = "has codes of", self.params, sample.Xs
            if not self.chained:
                given = as_flat(D, given, 1)[0]
        shapes, fitting = ([part.shape for part in of] for of in (self.each(given), expected))
        if shapes != fitting:
            raise ValueError(f"compare: {name!r} {what} {shapes}; expected {fitting}")
        if self.model is not None:  # checked here, because inside `jit` all params are tracers
            try:
                self.model.check(self.params, D if self.chained else shared_part(D))
            except (TypeError, ValueError) as error:
                raise type(error)(f"compare: {name!r}: {error}") from error
        if known is not None and self.D is not None:
            D = known_part(D, sample.Y, known)[0]
        if self.model is not None:
            return self._replace(D=D)
        floats = [checks.as_float(X, f"the codes of {name!r}", "compare") for X in self.each(given)]
        return self._replace(params=tuple(floats) if self.chained else floats[0], D=D)


class _Block(NamedTuple):
    """A layer of a method: its stacked params, and the measurements of its codes."""

    D: Operator
    curve: Curve
    diverged: Divergence | None
    silent: bool
    params: Unrolled | None = None  # for given codes, this and all later fields are None
    weights: Weights | None = None
    thresholds: np.ndarray | None = None
    guarantee: Guarantee | None = None
    proved: Proved | None = None  # also None if codes are not known
    cost: Cost | None = None


def _as_methods(methods: Mapping[str, Any], reference: str | None) -> dict[str, _Method]:
    if not isinstance(methods, Mapping) or not all(isinstance(name, str) for name in methods):
        raise TypeError('compare: methods must be a dict by name, as in {"ISTA": (layer, params)}')
    if not methods:
        raise ValueError("compare: expected at least one method, got none")
    if reference is not None and reference not in methods:
        names = ", ".join(methods)
        raise ValueError(f"compare: unknown reference {reference!r}; expected one of {names}")
    checked = {name: _method(name, value) for name, value in methods.items()}
    kinds = {method.chained: name for name, method in checked.items()}
    if len(kinds) > 1:
        raise TypeError(
            f"compare: {kinds[False]!r} is a layer and {kinds[True]!r} a network, which have "
            "codes of different dictionaries; compare them separately, or try dsc([layer])"
        )
    return checked


def _method(name: str, value: Any) -> _Method:
    if isinstance(value, Fit):
        records = value.history.records if value.history is not None else ()
        return _Method(value.model, value.best, value.D, records[-1].seconds if records else 0.0)
    if isinstance(value, jax.Array | np.ndarray):
        return _Method(None, value)
    if (
        value
        and type(value) is tuple  # not a record such as `Pursuit`
        and all(isinstance(X, jax.Array | np.ndarray) for X in value)
    ):
        return _Method(None, value)
    if not (isinstance(value, tuple | list) and len(value) == 2):
        what = an(type(value).__name__)
    elif isinstance(value[0], type):
        what = f"a pair that begins with the class {value[0].__name__}"
    elif not isinstance(value[0], Model):
        what = f"a pair that begins with {an(type(value[0]).__name__)}"
    else:
        return _Method(value[0], value[1])
    hint = "; try its .x" if hasattr(value, "x") else ""
    raise TypeError(
        f"compare: {name!r} is {what}; expected (layer, params), (network, params), the result "
        f"of `fit`, or codes{hint}"
    )


def _per_layer(value: Any, name: str, J: int, chained: bool) -> tuple[Any, ...]:
    """One value per layer."""
    if not chained or value is None:
        return (value,) * J
    if np.ndim(value) != 1 or len(value) != J:
        raise ValueError(f"compare: expected {J} values of {name}, one per layer, got {value!r}")
    return tuple(value)


def _sample(chained: bool, D: Any, Y: Any, X: Any, lam: Any, known: Any = None) -> Sample:
    """The checked D, signals and codes, with the optimum of the LASSO of every layer.

    If the codes are not known, the codes of the LASSO are used, layer by layer. If `known` is
    given, D is masked.
    """
    if known is not None:
        Y = np.where(known, np.asarray(Y), 0)
    Ds = as_chain(D, "compare") if chained else (as_dictionary(D, "compare"),)
    codes: Any = (None,) * len(Ds)
    if X is None:
        check_batch(Ds[0], Y, None, "compare")
        Y = checks.as_signals(Y, "Y", "compare")
    else:
        Y, codes = _known(Ds, Y, X, chained)
    optima: list[Any] = []
    Ds = Ds if known is None else (known_part(Ds[0], Y, known)[0],)
    Xs, lams, signals = [], [], Y
    for j, weight in enumerate(_per_layer(lam, "lam", len(Ds), chained and np.ndim(lam) > 0)):
        if X is None:
            weight = _lam_without_codes(shared_part(Ds[j]), signals, weight, j)
        optima.append(None if weight is None else optima_of(Ds[j], signals, weight))
        signals = optima[j].codes if X is None else codes[j]
        Xs.append(signals)
        lams.append(weight)
    return Sample(Ds, Y, tuple(Xs), tuple(optima), tuple(lams), X is not None, chained)


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
        check_batch(Dj, signals, Xj, "compare")
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


def _blocks(
    method: _Method, sample: Sample, class_of: ClassOf, noises: tuple[Any, ...], timed: bool
) -> list[_Block]:
    """Run a method; measure the codes, weights, guarantees and proofs of each of its layers."""
    model, params, D, _ = method
    Ds = method.each(D)
    if model is None:
        paths = tuple(X.astype(sample.Y.dtype)[None] for X in method.each(params))
        return _measured(method, paths, sample)
    paths, cost = run(model, params, D, sample.Y, timed)
    masked = shared_part(Ds[0]) is not Ds[0]
    certified: list[Any] = [None] * len(Ds)
    if not masked:
        certified = guarantees(model, method.each(params), Ds, class_of)
    proved: list[Any] = [None] * len(Ds)
    if sample.known and not masked:
        proved = proofs(model, method.each(params), Ds, sample.pairs, list(noises))
    stacked = [stack(p) if p.steps else p for p in method.each(params)]
    return [
        block._replace(
            params=p,
            **_of_block(model, j, p),
            guarantee=guarantee,
            proved=share,
            cost=cost,
        )
        for j, (block, p, guarantee, share) in enumerate(
            zip(_measured(method, paths, sample), stacked, certified, proved)
        )
    ]


def _of_block(model: Layer | Network, j: int, params: Unrolled) -> dict[str, Any]:
    """The thresholds and the weights of a layer, or of block j of a network."""
    if isinstance(model, Network):
        return dict(thresholds=model.thresholds(j, params), weights=model.weights(j))
    return dict(thresholds=model.thresholds(params), weights=model.weights)


def _measured(method: _Method, paths: Paths, sample: Sample) -> list[_Block]:
    """The curves of a method's codes, their divergence, and whether all last codes are zero."""
    Ds, blocks = method.each(method.D), []
    for D, of in zip(Ds, jax.device_get(measure(paths, sample.pairs, sample.optima, Ds))):
        errors = of.errors if sample.known else of.errors | {"worse": of.worse}
        curve = Curve(**errors, gap=of.gap)
        flags = dict(known=sample.known, by_codes=method.model is None)
        blocks.append(
            _Block(shared_part(D), curve, divergence(curve, of.zero_gap, **flags), bool(of.silent))
        )
    return blocks


def _comparison(
    blocks: dict[str, _Block], reference: str | None, sample: Sample, j: int, asked: Any
) -> Comparison:
    """The comparison of layer j, from the blocks of all methods."""
    references, changes = {}, {}
    params = _without_none({name: block.params for name, block in blocks.items()})
    for i, (name, p) in enumerate(params.items()):
        earlier = list(params)[:i] if reference is None else [reference]
        same = (n for n in earlier if n != name and _same_form(params.get(n), p))
        if (other := next(same, None)) is not None:
            references[name] = other
            changes[name] = _changes(params[other], p)
    optima = sample.optima[j]
    return Comparison(
        {name: block.curve for name, block in blocks.items()},
        _without_none({name: blocks[name].thresholds for name in params}),
        references,
        changes,
        _without_none({n: coupling(blocks[n].weights, p, blocks[n].D) for n, p in params.items()}),
        _without_none({name: block.guarantee for name, block in blocks.items()}),
        _without_none({name: block.diverged for name, block in blocks.items()}),
        silent=tuple(name for name, block in blocks.items() if block.silent),
        given=tuple(name for name in blocks if name not in params),
        uncertified=0 if optima is None else int((~np.asarray(optima.certified)).sum()),
        costs=_without_none({name: block.cost for name, block in blocks.items()}),
        lam=sample.lams[j],
        known=sample.known,
        remarks=_of_lam(optima, sample.lams[j], sample.known or asked is not None),
        ista_gap=_gaps_of_ista(sample, j, [blocks[name] for name in params]),
        proved=_without_none({name: block.proved for name, block in blocks.items()}),
        signals=len(sample.Y),
    )


def _of_lam(optima: Optima | None, lam: Any, given: bool) -> tuple[str, ...]:
    """Remarks on the lam of a layer: how lam was chosen, and whether it makes all codes zero."""
    if optima is None:
        return ()
    remarks = [] if given else [f"lam = {float(lam):.4g}, {DEFAULT_LAM}."]
    if not np.any(np.asarray(optima.codes)):
        remarks.append(f"lam = {float(lam):.4g} gives all signals the code 0; try a smaller lam.")
    return tuple(remarks)


def _gaps_of_ista(sample: Sample, j: int, running: list[_Block]) -> np.ndarray | None:
    """The gaps of ISTA, up to the depth of the deepest method; None if there are no gaps or no
    methods."""
    optima = sample.optima[j]
    if optima is None or not running:
        return None
    Y, depth = sample.pairs[j][0], max(len(block.curve.nmse) for block in running)
    lam = np.asarray(sample.lams[j], Y.dtype)
    return np.asarray(gaps_of_ista(sample.Ds[j], Y, lam, optima, depth), float)


def _without_none(values: dict) -> dict:
    return {name: value for name, value in values.items() if value is not None}


def _same_form(a, b) -> bool:
    shapes = ([np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (a, b))
    forms: list[Any] = [jax.tree.structure(tree) for tree in (a, b)]
    return forms[0] == forms[1] and len(set(map(tuple, shapes))) == 1


def _changes(a: Unrolled, b: Unrolled) -> tuple[Change, ...]:
    """Relative distances of b from a, leaf by leaf."""
    changes = []
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
        old, new = np.asarray(old, float), np.asarray(new, float)
        shared = getattr(path[0], "name", None) == "shared"
        rows = (1 if shared else len(old), -1)
        size = np.linalg.norm(old.reshape(rows), axis=1)
        per_step = np.linalg.norm((new - old).reshape(rows), axis=1) / np.where(size > 0, size, 1)
        whole = np.linalg.norm(new - old) / (np.linalg.norm(old) or 1.0)
        changes.append(
            Change(".".join(str(getattr(k, "name", k)) for k in path[1:]), float(whole), per_step)
        )
    return tuple(changes)
