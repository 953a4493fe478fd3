"""The pursuits by name, for callers whose method and options are data."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from unrolled._arguments import checked
from unrolled.pursuit._basis_pursuit import basis_pursuit
from unrolled.pursuit._bpdn import bpdn
from unrolled.pursuit._half_quadratic import half_quadratic
from unrolled.pursuit._holistic import holistic
from unrolled.pursuit._ista import fista, ista, ml_fista, ml_ista
from unrolled.pursuit._lasso import lasso
from unrolled.pursuit._lasso_batch import lasso_batch
from unrolled.pursuit._layered import layered_basis_pursuit, layered_thresholding, threshold
from unrolled.pursuit._local import local_error, local_sparsity
from unrolled.pursuit._ml_basis_pursuit import ml_basis_pursuit
from unrolled.pursuit._omp import omp, omp_batch
from unrolled.pursuit._project import project

Solve = TypeVar("Solve", bound=Callable[..., Any])

# The operands of a pursuit, after which its options come, and what it takes.
_OPERANDS = {("D", "y"): "one", ("Ds", "y"): "chain", ("D", "Y"): "batch"}
# Operands that stand among the options: one for every signal.
_OF_SIGNALS = {"start", "weights"}


class Named(NamedTuple):
    """A pursuit, and what its signature says."""

    solve: Callable[..., Any]
    takes: str  # "one" for (D, y), "chain" for (Ds, y), "batch" for (D, Y)
    options: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]  # of each of these options one or the other
    aims: bool  # whether `converged` judges it: thresholding aims at no problem
    many: str  # the pursuit of a batch that solves the same problem, or ""


# The pursuits by name, for the command line, `sklearn` and `export`.
PURSUITS: dict[str, Named] = {}


@checked
def register(
    solve: Solve, *, one_of: tuple[str, ...] = (), aims: bool = True, many: str = ""
) -> Solve:
    """Add a pursuit to `PURSUITS` by its name: `compare`, `encode` and `SparseCoder` then take it.

    Its operands and options are those of its signature; an option without a default is needed.

    Args:
        solve: a function of (D, y), (Ds, y) or (D, Y) and options. Its result has `converged`, and
            the code `x`, or the codes `xs` of a chain, as `Pursuit` and `DeepPursuit` do.
        one_of: options of which one is needed, though each has a default.
        aims: whether `converged` says that a code is as good as asked for.
        many: the name of the pursuit of a batch that solves the same problem.

    Returns:
        solve, so that this is a decorator, too.

    Raises:
        TypeError: another module has registered that name.
        ValueError: other operands.

    Example:
        >>> @ur.pursuit.register
        ... def backprojection(D, y, scale=1.0):
        ...     return ur.pursuit.threshold(D, scale * y, 0.0)
        >>> ur.pursuit.PURSUITS["backprojection"].options
        ('scale',)
        >>> del ur.pursuit.PURSUITS["backprojection"]
    """
    name, parameters = solve.__name__, inspect.signature(solve).parameters
    other = PURSUITS.get(name)
    if other is not None and other.solve.__module__ != solve.__module__:
        raise TypeError(
            f"register: {other.solve.__module__} already has a pursuit {name}; choose another name"
        )
    operands = tuple(parameters)[:2]
    if operands not in _OPERANDS:
        raise ValueError(
            f"register: {name} begins with ({', '.join(operands)}); expected (D, y), (Ds, y) or "
            "(D, Y)"
        )
    options = {n: p for n, p in list(parameters.items())[2:] if n not in _OF_SIGNALS}
    needed = [(n,) for n, p in options.items() if p.default is p.empty]
    needs = (*needed, *([one_of] if one_of else []))
    PURSUITS[name] = Named(solve, _OPERANDS[operands], tuple(options), needs, aims, many)
    return solve


# `lasso_path` is not here: it has a code for every penalty.
register(threshold, aims=False)
register(ista)
register(fista)
register(omp, one_of=("sparsity", "tol"), many="omp_batch")
register(omp_batch)
register(basis_pursuit)
register(bpdn)
register(half_quadratic)
register(lasso, one_of=("lam", "ratio"), many="lasso_batch")
register(lasso_batch, one_of=("lam", "ratio"))
register(local_error)
register(local_sparsity)
register(layered_thresholding, aims=False)
register(layered_basis_pursuit)
register(project, one_of=("sparsity", "lam"))
register(ml_ista)
register(ml_fista)
register(ml_basis_pursuit)
register(holistic)
