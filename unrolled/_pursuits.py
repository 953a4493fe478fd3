"""Pursuits by name, on many signals, for callers whose method and options are data."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from unrolled import pursuit
from unrolled._checks import Array
from unrolled.dictionaries import Dictionary

CHAIN, BATCH = "chain", "batch"  # what a pursuit takes, where it is not (D, y)


class Named(NamedTuple):
    """A pursuit, and the names of its options."""

    solve: Callable[..., Any]
    options: str
    needs: str = ""  # those without a default; a|b for one of two
    takes: str = ""  # CHAIN for (Ds, y), BATCH for (D, Y)
    aims: bool = True  # whether `converged` judges it: thresholding aims at no problem


_ACCURACY = "tol max_steps"
_LASSO = f"lam ratio nonnegative l2 {_ACCURACY}"
# `lasso_path` is not here: it has a code for every penalty.
PURSUITS = {
    "threshold": Named(pursuit.threshold, "theta", "theta", aims=False),
    "ista": Named(pursuit.ista, f"lam {_ACCURACY}", "lam"),
    "fista": Named(pursuit.fista, f"lam {_ACCURACY}", "lam"),
    "omp": Named(pursuit.omp, "sparsity tol", "sparsity|tol"),
    "basis_pursuit": Named(pursuit.basis_pursuit, "tol"),
    "bpdn": Named(pursuit.bpdn, f"eps {_ACCURACY}", "eps"),
    "half_quadratic": Named(pursuit.half_quadratic, f"lam p {_ACCURACY}", "lam"),
    "lasso": Named(pursuit.lasso, _LASSO, "lam|ratio"),
    "lasso_batch": Named(pursuit.lasso_batch, _LASSO, "lam|ratio", BATCH),
    "local_error": Named(pursuit.local_error, f"radius {_ACCURACY}", "radius"),
    "local_sparsity": Named(pursuit.local_sparsity, f"lam {_ACCURACY}", "lam"),
    "layered_thresholding": Named(
        pursuit.layered_thresholding, "thetas nonnegative", "thetas", CHAIN, aims=False
    ),
    "layered_basis_pursuit": Named(pursuit.layered_basis_pursuit, f"lams {_ACCURACY}", takes=CHAIN),
    "project": Named(pursuit.project, f"sparsity lam {_ACCURACY}", "sparsity|lam", CHAIN),
    "ml_ista": Named(pursuit.ml_ista, f"lams step {_ACCURACY}", "lams", CHAIN),
    "ml_fista": Named(pursuit.ml_fista, f"lams step {_ACCURACY}", "lams", CHAIN),
    "ml_basis_pursuit": Named(pursuit.ml_basis_pursuit, f"lams {_ACCURACY}", "lams", CHAIN),
    "holistic": Named(pursuit.holistic, f"lam zeros sparsity {_ACCURACY}", "lam zeros", CHAIN),
}


class Found(NamedTuple):
    """The codes of every layer, (signals, d_j) each, and how many are not as good as asked for."""

    codes: tuple[Array, ...]
    missed: int


def check_options(name: str, options: Mapping[str, Any], where: str) -> None:
    """Raise ValueError unless `options` are those of the pursuit `name`, with all it needs."""
    if name not in PURSUITS:
        names = ", ".join(PURSUITS)
        raise ValueError(f"{where}: unknown pursuit {name!r}; expected one of {names}")
    known, needs = PURSUITS[name].options.split(), PURSUITS[name].needs.split()
    if wrong := [option for option in options if option not in known]:
        raise ValueError(
            f"{where}: {name} has no {', '.join(wrong)}; its options are {', '.join(known)}"
        )
    if missing := [option for option in needs if not set(option.split("|")) & set(options)]:
        told = " and ".join(missing).replace("|", " or ")
        raise ValueError(f"{where}: {name} needs {told}")


def check_dictionaries(name: str, n: int, where: str) -> None:
    """Raise ValueError unless the pursuit `name` takes n dictionaries."""
    if n > 1 and PURSUITS[name].takes != CHAIN:
        deep = ", ".join(other for other, named in PURSUITS.items() if named.takes == CHAIN)
        raise ValueError(f"{where}: {name} takes one dictionary, got {n}; for a chain try {deep}")


# Those of one signal that another solver finds for many at once. Their own loop, under vmap, runs
# for all signals as long as the hardest one needs.
_MANY = {"lasso": "lasso_batch"}
# The most atoms, and entries of a signal, whose Gram matrix that solver makes in float64: 0.5 GB.
_LARGEST = 8192
# Relative duality gaps: small beside any objective, and what FISTA reaches, in so many steps.
_CERTIFIED, _REACHED, _MAX_STEPS = 1e-9, 1e-6, 3000


def pursue(
    name: str, Ds: tuple[Any, ...], Y: Any, options: Mapping[str, Any], many: bool = False
) -> Found:
    """The codes of the signals Y, (signals, m), by a pursuit whose arguments were checked.

    It is not for `jit`: the options are checked as values.

    Args:
        name: the pursuit.
        Ds, Y, options: its arguments.
        many: whether `lasso_batch` solves `lasso`, but for a D that is too large for it.

    Example:
        >>> from unrolled._pursuits import pursue
        >>> found = pursue("threshold", (jnp.eye(2),), jnp.array([[3.0, 0.5]]), {"theta": 1.0})
        >>> found.codes[0].tolist(), found.missed
        ([[2.0, 0.0]], 0)
    """
    named = PURSUITS[_MANY.get(name, name) if many and _fits(Ds[0]) else name]
    D = Ds if named.takes == CHAIN else Ds[0]
    if named.takes == BATCH:
        found = named.solve(D, Y, **options)
    else:
        found = jax.vmap(lambda y: named.solve(D, y, **options))(Y)
    codes = found.xs if named.takes == CHAIN else (found.x,)
    return Found(codes, int((~np.asarray(found.converged)).sum()) if named.aims else 0)


def lasso_optima(D: Dictionary, Y: Array, lam: ArrayLike) -> pursuit.Pursuit:
    """Codes of the signals Y that minimise the LASSO, where `converged` certifies it.

    Example:
        >>> from unrolled._pursuits import lasso_optima
        >>> found = lasso_optima(jnp.eye(2), jnp.array([[3.0, 0.5]]), 1.0)
        >>> found.x.tolist(), found.converged.tolist()
        ([[2.0, 0.0]], [True])
    """
    if _fits(D):
        return pursuit.lasso_batch(D, Y, lam, tol=_CERTIFIED)
    solve = partial(pursuit.fista, tol=_REACHED, max_steps=_MAX_STEPS)
    return jax.jit(jax.vmap(solve, (None, 0, None)))(D, Y, lam)


def _fits(D: Dictionary) -> bool:
    return max(D.shape) <= _LARGEST
