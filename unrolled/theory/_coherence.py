"""Mutual coherence (Definition 3), the coherence of given weights W, and what they allow."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import largest
from unrolled.dictionaries import (
    Dictionary,
    as_dictionary,
    cuts_atoms,
    dense,
    entries,
    inner_products,
    magnitudes,
    nonzero_atoms,
    normalized,
    representatives,
    unit_atoms,
)

# Unit roundoffs (spacing at 1) of the products that accelerators use in place of float32.
_PRODUCT_EPS = {
    "bfloat16": 2.0**-7,
    "tensorfloat32": 2.0**-10,
    "float32": 2.0**-23,
    "highest": None,
}


class Coherence(NamedTuple):
    """The two numbers through which weights W enter every theorem."""

    mu_W: Array  # max over i != j of abs(w_i . d_j)
    C_W: Array  # max abs(W_ij)


def mutual_coherence(D) -> Array:
    r"""mu(D) = max_{i != j} |d_i . d_j| / (|d_i| |d_j|), in [0, 1]; 0 for a single atom.

    Columns need not be normalised. A zero atom is a ValueError where it can be seen, nan under
    `jit`. Convolutional dictionaries are answered from the correlations of their filters.

    Reference: Li, Feng, Zhou (2024), Definition 3; Donoho, Huo (2001).
    """
    D = as_dictionary(D, "mutual_coherence")
    _refuse_cut_atoms(D, "mutual_coherence")
    unit, norms = normalized(D)
    nonzero_atoms(norms, "mutual_coherence")
    mu = jnp.minimum(weights_coherence(unit, unit).mu_W, 1.0)
    return jnp.where((norms > 0).all(), mu, jnp.nan)


def coherence(W, D) -> Coherence:
    r"""(mu_W, C_W): mu_W = max_{i != j} |w_i . d_j| and C_W = max |W_ij|.

    Every convergence theorem holds with these two numbers for any W with w_i . d_i = 1, so weights
    from anywhere (D itself, the closed form, linear programs, training) are certified by evaluating
    them.

    Raises:
        ValueError: shapes that differ, or a known D whose atoms are off unit norm by more than
            1e-4.

    Reference: Li, Feng, Zhou (2024), Definitions 7 and 8.
    """
    D, W = as_dictionary(D, "coherence"), as_dictionary(W, "coherence")
    if W.shape != D.shape:
        hint = " Did you pass W.T?" if W.shape == D.shape[::-1] else ""
        raise ValueError(
            f"coherence: W has shape {W.shape} but D has shape {D.shape}; they must agree.{hint}"
        )
    _refuse_cut_atoms(D, "coherence")
    unit_atoms(D, "coherence")
    dtype = _checks.common_dtype(W, D)
    return weights_coherence(_checks.cast(W, dtype), _checks.cast(D, dtype))


def weights_coherence(W, D) -> Coherence:
    """As `coherence`, without its checks: atoms of any norm, traced or known."""
    products, own = inner_products(W, D)
    return Coherence(largest(jnp.where(own, 0.0, jnp.abs(products))), largest(jnp.abs(entries(W))))


def diagonal(W, D) -> Array:
    """w_i . d_i for every row of `inner_products`: all atoms, or those that stand for all of a
    `Conv`.
    """
    products, own = inner_products(W, D)
    return jnp.sum(jnp.where(own, products, 0.0), axis=1)


def _refuse_cut_atoms(D: Dictionary, where: str) -> None:
    if cuts_atoms(D):
        raise ValueError(
            f'{where}: boundary "zero" cuts the atoms at the border, so they have norms below 1 and '
            'neighbours of their own; use boundary="valid" or "circular", or '
            "dictionaries.normalize(dictionaries.dense(D))"
        )


def babel(D, s: int) -> Array:
    r"""mu_1(s) = max_i of the sum of the s largest |d_i . d_j|, j != i: the coherence of one atom
    with s others.

    mu_1(1) = mu, and mu_1(s) <= s mu. Codes with at most s nonzeros are unique, and basis pursuit
    finds them, if mu_1(s - 1) + mu_1(s) < 1. Unit atoms; s >= d counts all others. Traceable.

    Raises:
        ValueError: atoms off unit norm, or s negative.

    Reference: Tropp (2004), Greed is good.
    """
    D = as_dictionary(D, "babel")
    _refuse_cut_atoms(D, "babel")
    unit_atoms(D, "babel")
    s, d = _checks.as_index(s, "s", "babel"), D.shape[1]
    rows = representatives(D)
    with jax.default_matmul_precision("highest"):
        products = jnp.abs(dense(D)[:, rows].T @ D)
    others = jnp.where(rows[:, None] == jnp.arange(d)[None, :], 0, products)
    return largest(jnp.sum(jnp.sort(others, axis=1)[:, d - min(s, d) :], axis=1))


def spark_bound(mu: float) -> float:
    """1 + 1/mu: fewer atoms are never dependent. For mu the mutual, the generalized coherence or
    any mu_W; inf at mu = 0.
    """
    return 2 * sparsity_bound(mu)


def welch_bound(m: int, d: int) -> float:
    """sqrt((d - m) / (m (d - 1))), 0 if d <= m: no dictionary has less coherence, and no W less
    mu_W.

    For W: G = W'D has rank at most m and trace d, so d <= sqrt(m) norm(G)_F <= sqrt(m (d + d (d -
        1) mu_W^2)).
    """
    m, d = (
        _checks.as_index(m, "m", "welch_bound", least=1),
        _checks.as_index(d, "d", "welch_bound", least=1),
    )
    return math.sqrt((d - m) / (m * (d - 1))) if d > m else 0.0


def sparsity_bound(mu: float) -> float:
    """(1 + 1/mu) / 2, inf at mu = 0: codes with fewer nonzeros are unique (Theorem 1) and LISTA-CP
    finds them.
    """
    mu = _host(mu, "mu", "sparsity_bound")
    if not mu >= 0:
        raise ValueError(f"sparsity_bound: mu must be non-negative, got {mu}")
    return (1 + 1 / mu) / 2 if mu else math.inf


def max_sparsity(mu: float, d: int) -> int:
    """The largest integer strictly below `sparsity_bound(mu)`, at most d; conservative within
    rounding of an integer.

    A mu computed in float32 may be low by its rounding: multiply it by 1 + 1e-6 first.
    """
    d = _checks.as_index(d, "d", "max_sparsity", least=1)
    b = sparsity_bound(mu)
    return d if b == math.inf else max(0, min(d, math.ceil(b - 1e-9 * max(1.0, b)) - 1))


def rounding_guard(W, D, *, sparsity: int, bound: float, precision: str | None = None) -> float:
    r"""g = 4 eps G s B with G = max_ij (|W|' |D|)_ij: what rounding adds to an inner product w_i .
    (y - D x).

    Theoretical thresholds fall to zero, rounding does not; without the guard the iteration diverges
    at depth. Pass it to `schedule`, where it stands beside C_W delta inside the recursion.

    Args:
        W, D: (m, d).
        sparsity, bound: s and B of the class of signals.
        precision: of the products: None for the dtype of D, or "tensorfloat32" or "bfloat16" where
            an accelerator uses those for float32.

    Not claimed: a worst case; the rigorous one is (m + s + 3) / 8 times larger.
    """
    _checks.nonnegative(bound, "bound", "rounding_guard")
    s = _checks.as_index(sparsity, "sparsity", "rounding_guard")
    if precision is not None and precision not in _PRODUCT_EPS:
        raise ValueError(
            f"rounding_guard: unknown precision {precision!r}; expected one of {', '.join(_PRODUCT_EPS)}"
        )
    _checks.on_host((W, D), "rounding_guard")
    dtype = _checks.common_dtype(W, D)
    eps = _PRODUCT_EPS[precision] if precision else None
    eps = float(jnp.finfo(dtype).eps) if eps is None else eps
    products, _ = inner_products(*(magnitudes(_checks.cast(A, dtype)) for A in (W, D)))
    return 4 * eps * float(products.max()) * s * float(bound)


def _host(x, name: str, where: str) -> float:
    """`x` as a Python float; a tracer is a TypeError that says so."""
    _checks.on_host(x, where, name)
    return float(np.asarray(x))
