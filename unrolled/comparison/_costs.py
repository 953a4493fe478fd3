"""The costs of codes: seconds of networks and of exact solvers, and products with matrices."""

import math
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, ArrayLike
from unrolled.dictionaries import Dictionary, Structured, known_part, shared_part
from unrolled.pursuit import lasso_optima

__all__ = ["products"]


_MOST_RUNS, _MOMENT = 5, 0.1  # the most timed runs, and the seconds after which timing stops
_TIMED = 1000  # the fewest signals in a timed call of an exact solver

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
