"""Pursuits by name, for callers that receive the method and its options as data."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, checked
from unrolled._base.files import MappedRows
from unrolled._base.numbers import norm
from unrolled.dictionaries import (
    Dictionary,
    as_flat,
    block_of,
    dense,
    known_part,
    shared_part,
    signal_axes,
)
from unrolled.pursuit import _layered
from unrolled.pursuit._basis_pursuit import basis_pursuit, bpdn
from unrolled.pursuit._ista import fista, ista, ml_fista, ml_ista
from unrolled.pursuit._lasso import lasso
from unrolled.pursuit._lasso_batch import lasso_batch
from unrolled.pursuit._multilayer import holistic, ml_basis_pursuit
from unrolled.pursuit._omp import omp
from unrolled.pursuit._omp_batch import omp_batch
from unrolled.pursuit._problem import Pursuit
from unrolled.pursuit._splitting import half_quadratic, local_error, local_sparsity

__all__ = ["PURSUITS", "register"]


Solve = TypeVar("Solve", bound=Callable[..., Any])

# The leading operands of a pursuit -> `Named.takes`; options follow the operands.
_OPERANDS = {("D", "y"): "one", ("Ds", "y"): "chain", ("D", "Y"): "batch"}
# Parameters that do not count as options, because they have a row for every signal.
_OF_SIGNALS = {"start", "weights", "mask"}


class Named(NamedTuple):
    """A registered pursuit, with the facts that callers need."""

    solve: Callable[..., Any]
    takes: str  # "one" for (D, y), "chain" for (Ds, y), "batch" for (D, Y)
    options: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]  # groups of options; callers give one option per group
    aims: bool  # whether `converged` judges the code; False for thresholding
    many: str  # the batch pursuit that solves the same problem, or ""
    known: str  # the parameter of a batch pursuit that marks known entries, or ""


# The pursuits by name, for the command line, `sklearn` and `export`.
PURSUITS: dict[str, Named] = {}


@checked
def register(
    solve: Solve, *, one_of: tuple[str, ...] = (), aims: bool = True, many: str = ""
) -> Solve:
    """Add a pursuit to `PURSUITS` by its name, for use in `compare`, `encode` and `SparseCoder`.

    The signature defines the operands and options; an option without a default is required. For
    signals with missing entries, a function of (D, Y) needs a parameter `mask`, or `weights` that
    are 0 for these entries; other functions get a `dictionaries.Masked`.

    Args:
        solve: a function of (D, y), (Ds, y) or (D, Y) and options. Its result must have the fields
            `converged` and `x` or, for a chain, `converged` and `xs`, like `Pursuit` and
            `DeepPursuit`.
        one_of: options that have defaults; callers must give at least one of these options.
        aims: whether `converged` says that a code has the requested accuracy.
        many: the name of a batch pursuit that solves the same problem.

    Returns:
        `solve`, so that `register` also works as a decorator.

    Raises:
        TypeError: another module has registered this name.
        ValueError: the signature does not begin with (D, y), (Ds, y) or (D, Y).

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
    known = next((n for n in ("mask", "weights") if n in parameters), "")
    PURSUITS[name] = Named(solve, _OPERANDS[operands], tuple(options), needs, aims, many, known)
    return solve


# `lasso_path` is not registered, because it returns one code per penalty.
register(_layered.threshold, aims=False)
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
register(_layered.layered_thresholding, aims=False)
register(_layered.layered_basis_pursuit)
register(_layered.project, one_of=("sparsity", "lam"))
register(ml_ista)
register(ml_fista)
register(ml_basis_pursuit)
register(holistic)


CHAIN, BATCH = "chain", "batch"  # values of `Named.takes` for operands other than (D, y)


class Coded(NamedTuple):
    """The codes of every layer, (signals, d_j) each, and the signals that have not converged."""

    codes: tuple[Array, ...]
    missed: int  # number of signals that have not converged
    rows: np.ndarray  # the indices of these signals
    zeros: int  # number of nonzero signals coded as zero, because the largest is much larger


def check_options(name: str, options: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless the pursuit `name` has these options and requires no other option."""
    checks.one_of(name, PURSUITS, "pursuit", where)
    own, needs = PURSUITS[name].options, PURSUITS[name].needs
    if wrong := [option for option in options if option not in own]:
        raise ValueError(
            f"{where}: {name} has no {', '.join(wrong)}; its options are {', '.join(own)}"
        )
    ratio = options.get("ratio")
    if ratio is not None and np.max(ratio) > 1:
        raise ValueError(
            f"{where}: ratio must be at most 1, where all codes are zero, got {np.max(ratio):g}"
        )
    if missing := [some for some in needs if not set(some) & set(options)]:
        lacking = " and ".join(map(" or ".join, missing))
        raise ValueError(f"{where}: {name} needs {lacking}")


def check_dictionaries(name: str, n: int, where: str) -> None:
    """Raise ValueError unless the pursuit `name` takes n dictionaries."""
    if n > 1 and PURSUITS[name].takes != CHAIN:
        deep = ", ".join(other for other, named in PURSUITS.items() if named.takes == CHAIN)
        raise ValueError(f"{where}: {name} takes one dictionary, got {n}; for a chain try {deep}")


# The largest number of atoms, and of entries of a signal, for which a batch solver forms a Gram
# matrix in float64 (0.5 GB).
_LARGEST = 8192
# A relative duality gap that counts as exact, a gap that FISTA reaches, and the maximum number of
# steps of FISTA.
_CERTIFIED, _REACHED, _MAX_STEPS = 1e-9, 1e-6, 3000


# A signal counts as zero if its norm is below this many rounding errors of the largest norm in its
# batch: a constant image patch minus its mean has the norm of one or a few rounding errors.
ROUNDINGS = 8
_ABSOLUTE = ("lam", "lams", "theta", "thetas", "eps", "tol")  # in the units of the signals


def is_relative(name: str, options: Mapping[str, Any]) -> bool:
    """Whether no option has the units of the signals; such a pursuit also codes rounding errors.

    Examples of options without units are a sparsity and a ratio. (Only in OMP does tol have the
    units of the signals.)

    Example:
        >>> from unrolled.pursuit._by_name import is_relative
        >>> is_relative("omp", {"sparsity": 3}), is_relative("omp", {"tol": 0.1})
        (True, False)
    """
    names = _ABSOLUTE if name.startswith("omp") else _ABSOLUTE[:-1]
    return not any(np.any(options.get(option)) for option in names)


def negligible(Y: Any) -> np.ndarray:
    """Mark nonzero signals whose norm is below `ROUNDINGS` rounding errors of the largest norm.

    Example:
        >>> from unrolled.pursuit._by_name import negligible
        >>> negligible(np.float32([[1.0], [0.0], [1e-8]])).tolist()
        [False, False, True]
    """
    size = np.asarray(norm(Y, 1), float)
    least = ROUNDINGS * float(jnp.finfo(Y.dtype).eps) * size.max(initial=0)
    return (size > 0) & (size < least)


def pursue(
    name: str, Ds: tuple[Any, ...], Y: Any, options: Mapping[str, Any], known: Any = None
) -> Coded:
    """The codes of the signals Y, (signals, m), by a pursuit with checked arguments.

    If a batch solver has the same options, `pursue` calls the batch solver, because under `vmap`
    the loop of a pursuit runs for all signals until the slowest signal has converged. `pursue` does
    not work under `jit`, because it checks the values of the options. If no option has the units of
    the signals, the signals that `negligible` marks get the code 0.

    If `known` is given, bools in the shape of Y, the codes fit only the known entries; the other
    entries of Y must be 0.

    Example:
        >>> from unrolled.pursuit._by_name import pursue
        >>> coded = pursue("threshold", (jnp.eye(2),), jnp.array([[3.0, 0.5]]), {"theta": 1.0})
        >>> coded.codes[0].tolist(), coded.missed
        ([[2.0, 0.0]], 0)
    """
    named, zeros = PURSUITS[name], 0
    if is_relative(name, options):
        Y = jnp.asarray(Y)
        faint = negligible(Y)
        zeros = int(faint.sum())
        Y = jnp.where(faint[:, None], 0, Y) if zeros else Y
    if named.many and _fits(Ds[0]) and set(options) <= set(PURSUITS[named.many].options):
        named = PURSUITS[named.many]
    if named.takes == BATCH:
        if known is not None and not named.known:
            raise ValueError(
                f"{name}: entries of Y are missing; expected all entries, since {name} has no "
                "parameter mask or weights"
            )
        marks = {} if known is None else {named.known: known}
        result = named.solve(Ds[0], Y, **options, **marks)
    else:
        own, Y = known_part(Ds[0], Y, known)
        D = (own, *Ds[1:]) if named.takes == CHAIN else own
        result = jax.vmap(lambda D, y: named.solve(D, y, **options), (signal_axes(D), 0))(D, Y)
    codes = result.xs if named.takes == CHAIN else (result.x,)
    rows = np.flatnonzero(~np.asarray(result.converged)) if named.aims else np.zeros(0, int)
    return Coded(codes, len(rows), rows, zeros)


# The pursuits that solve the LASSO.
_LASSO = {"ista", "fista", "lasso", "lasso_batch"}


def lasso_problem(
    name: str, options: Mapping[str, Any], D: Dictionary, Y: ArrayLike
) -> dict[str, Any] | None:
    """The lam, l2 and nonnegative of the LASSO that a pursuit solves; None if it solves no LASSO.

    Example:
        >>> from unrolled.pursuit._by_name import lasso_problem
        >>> lasso_problem("lasso", {"ratio": 0.1, "tol": 1e-6}, np.eye(2), np.array([[3.0, 0.5]]))
        {'lam': array([[0.3]])}
    """
    if name not in _LASSO or "activation" in options:
        return None
    problem = {k: options[k] for k in ("lam", "l2", "nonnegative") if options.get(k) is not None}
    if "lam" not in problem:
        products = np.asarray(Y, float) @ np.asarray(dense(D), float)
        sizes = products if problem.get("nonnegative") else _sizes(D, products)
        problem["lam"] = options["ratio"] * np.maximum(sizes.max(1, keepdims=True), 0)
    return problem


def _sizes(D: Dictionary, products: np.ndarray) -> np.ndarray:
    """The magnitudes of the inner products with the atoms, (signals, d), or the norms of parts."""
    if block_of(D) == 1:
        return np.abs(products)
    return np.linalg.norm(products.reshape(len(products), -1, block_of(D)), axis=2)


def lasso_optima(D: Dictionary, Y: Array, lam: ArrayLike) -> Pursuit:
    """Codes of the signals Y that minimise the LASSO; `converged` certifies each code in float64,
    before it is rounded to the dtype of Y.

    Example:
        >>> from unrolled.pursuit._by_name import lasso_optima
        >>> codes = lasso_optima(jnp.eye(2), jnp.array([[3.0, 0.5]]), 1.0)
        >>> codes.x.tolist(), codes.converged.tolist()
        ([[2.0, 0.0]], [True])
    """
    if _fits(D):
        own: Any = D
        masks = None if shared_part(D) is D else own.mask > 0
        with jax.enable_x64(True):
            wide = checks.cast_on_host((shared_part(D), Y, lam), np.float64)
            optima = lasso_batch(*wide, tol=_CERTIFIED, mask=masks)
        return optima.replace(x=jnp.asarray(np.asarray(optima.x), Y.dtype))
    return _reached(D, Y, lam)


@jax.jit
def _reached(D: Dictionary, Y: Array, lam: Array) -> Pursuit:
    solve = partial(fista, tol=_REACHED, max_steps=_MAX_STEPS)
    return jax.vmap(solve, (signal_axes(D), 0, None))(D, Y, lam)


# A description of `default_lam`, as a part of a sentence.
LARGEST_LAM = "the lam at which nine codes in ten are 0"
DEFAULT_LAM = f"a tenth of {LARGEST_LAM}"


def default_lam(D: Dictionary, Y: Array | np.ndarray | MappedRows, ratio: float = 0.1) -> float:
    """A penalty for the LASSO: `ratio` times the lam at which nine signals in ten have the code 0.

    A signal has the code 0 if lam >= lam_max = max |D'y|. The function uses the first 2,000
    signals.

    Args:
        D: (m, d).
        Y: (signals, m), or signals in another form that D accepts.
        ratio: the factor of the lam at which nine signals in ten have the code 0.

    Raises:
        ValueError: all signals are zero, or orthogonal to all atoms.

    Example:
        >>> from unrolled.pursuit._by_name import default_lam
        >>> default_lam(np.eye(2), np.array([[1.0, 3.0], [4.0, 0.0]]))
        0.39
    """
    Y = as_flat(D, np.asarray(Y[:2000]), 1)[0]
    products = np.asarray(Y, float) @ np.asarray(dense(D), float)
    unit = np.abs(products).max(initial=0) or 1.0  # squares may leave the range
    largest = unit * _sizes(D, products / unit).max(1)
    if not largest.any():
        raise ValueError("lam cannot be chosen: all signals are zero, or orthogonal to all atoms")
    lam = float(np.quantile(largest, 0.9)) * ratio
    return lam or float(largest.max()) * ratio


def _fits(D: Dictionary) -> bool:
    return max(D.shape) <= _LARGEST and block_of(D) == 1
