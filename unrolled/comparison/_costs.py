"""The costs of the methods of a comparison: seconds, and products with matrices."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, checked
from unrolled.comparison._comparison import Comparison
from unrolled.comparison._results import Cost, MethodResult
from unrolled.dictionaries import Dictionary, Structured
from unrolled.layers import codes_of
from unrolled.pursuit import FEWEST, in_turns, lasso_solvers, repeated
from unrolled.training import next_to_trained

__all__ = ["products"]


def timed(
    layers: Sequence[Comparison],
    methods: Mapping[str, tuple],
    Y: Array,
    problem: tuple | None,
    D: Dictionary | None = None,
) -> list[Comparison]:
    """The comparisons of all layers, with the seconds of methods and of the exact solvers.

    Args:
        layers: the comparisons.
        methods: name -> (model, params, D).
        Y: the signals of the first layer.
        problem: D, the signals and lam for the exact solvers; None to time no solver.
        D: the dictionary of the only layer; None to measure no untrained layers.
    """
    first = layers[0]
    trained = {
        name: (*of, first[name].trained)
        for name, of in methods.items()
        if first[name].trained and first[name].diverged is None
    }
    if trained and D is not None and not first.known:
        layers = [first.replace(rows=next_to_trained(D, Y, first.lam or 0.0, trained))]
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    times = max(1, -(-FEWEST // max(1, len(Y))))  # a timed call has at least so many signals
    for name, (model, params, own) in methods.items():
        calls["method", name] = partial(codes_of, model, params, *repeated(own, Y, times))
    if problem is not None:
        D, signals, lam = problem
        many, solvers = repeated(D, signals, times), lasso_solvers([D])
        calls |= {("exact", n): partial(solvers[n], *many, lam) for n in layers[0].exact}
    timings = in_turns(calls)

    def timed_of(kind: str, results: Mapping[str, MethodResult]) -> dict[str, MethodResult]:
        costs = dict(results)
        for name, of in results.items():
            if (timing := timings.get((kind, name))) is not None:
                products = None if of.cost is None else of.cost.products
                cost = Cost(timing.seconds / times, products, timing.spread)
                costs[name] = of.replace(cost=cost)
        return costs

    return [
        layer.replace(
            methods=timed_of("method", layer.methods), exact=timed_of("exact", layer.exact)
        )
        for layer in layers
    ]


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
        >>> ur.comparison.products(layer, layer.init(None, D), D, D[0])  # D z and D'(y - D z)
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
