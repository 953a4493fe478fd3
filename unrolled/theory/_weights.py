"""Analytic weights W in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import widened
from unrolled.dictionaries import Structured, as_dictionary, column_norms, dense, nonzero_atoms
from unrolled.theory._coherence import _refuse_cut_atoms


def frobenius_weights(D, ridge: float = 0.0):
    r"""W with w_i . d_i = 1 and the least norm(W'D, "fro"), in closed form: w_i = S^+ d_i / (d_i'
    S^+ d_i), S = D D'.

    A `ridge` regularises for noise: S = D D' + ridge I minimises norm(W'D, "fro")^2 + ridge norm(W,
    "fro")^2. For codes of variance v and white noise of variance sigma^2 per entry, ridge = sigma^2
    / v weighs both as they come; ridge -> inf is W = D.

    Any rank of D is handled by the pseudo-inverse. For a shift-invariant `Conv` the same formula
    holds on one window of the signal, where S collects every shift of every filter: one small
    system for the whole bank, and W is a `Conv` (optimal among shared filters of the same support;
    border effects are not used). Other structured dictionaries are made dense. Traceable, and
    differentiable in D. The maximal coherence mu_W may exceed that of D (`coherence` tells).

    Returns:
        W, (m, d): an array, or a `Conv` for a `Conv` whose atoms are shifts of each other (on a
        circle the stride must divide the signal and the kernel fit into it).

    Raises:
        ValueError: a zero atom, a negative ridge, or a `Conv` with cut border atoms.

    Reference: Liu, Chen, Wang, Yin (2019), equation (16), solved exactly.
    """
    D = as_dictionary(D, "frobenius_weights")
    nonzero_atoms(column_norms(D), "frobenius_weights")
    _checks.nonnegative(ridge, "ridge", "frobenius_weights")
    _refuse_cut_atoms(D, "frobenius_weights")
    shared = D.closed_form(ridge) if isinstance(D, Structured) else None
    if shared is not None:
        return shared
    D, dtype = dense(D), D.dtype
    D = widened(D)
    with jax.default_matmul_precision("highest"):
        if _is_zero(ridge):
            return _unit_diagonal(jnp.linalg.pinv(D).T, D).astype(dtype)  # pinv(D)' = (D D')^+ D
        ridge = jnp.asarray(ridge, D.dtype)
        # below, rounding decides what lies outside the span: as without
        least = 1e-9 * jnp.sum(D**2) / min(D.shape)
        S = D @ D.T + jnp.maximum(ridge, least) * jnp.eye(len(D), dtype=D.dtype)
        W = jnp.where(ridge > least, jnp.linalg.solve(S, D), jnp.linalg.pinv(D).T)
        return _unit_diagonal(W, D).astype(dtype)


def pseudo_inverse(D) -> Array:
    """D^+, (d, m), in the dtype of D."""
    A = dense(D)
    with jax.default_matmul_precision("highest"):
        return jnp.linalg.pinv(widened(A)).astype(A.dtype)


def _is_zero(ridge) -> bool:
    return _checks.is_concrete(ridge) and float(np.asarray(ridge)) == 0


def _unit_diagonal(W: Array, D: Array) -> Array:
    """W with its columns scaled to w_i . d_i = 1."""
    return W / jnp.sum(W * D, axis=0, keepdims=True)
