"""The coherence of weights for codes in parts, which carries the theorems on entries over."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from unrolled._base import checks
from unrolled._base.checks import Array
from unrolled._base.numbers import largest, largest_singular_value, norm
from unrolled._base.programs import program
from unrolled.dictionaries import Dictionary, Operator, as_dictionary, block_of, dense, unit_atoms
from unrolled.theory._coherence import refuse_cut_atoms

__all__ = ["BlockCoherence", "block_coherence"]


class BlockCoherence(NamedTuple):
    """The numbers that `schedule` takes as mu, C_W and eta if codes come in parts."""

    mu: Array  # max over i != j of norm(W_i'D_j, 2)
    gain: Array  # max of norm(W_i, 2)
    eta: Array  # max of norm(I - W_i'D_i, 2)


def block_coherence(W: Dictionary, D: Dictionary) -> BlockCoherence:
    r"""The coherence of weights W with a D whose codes come in parts x_i of g = `D.block` entries.

    .. math:: \mu = \max_{i \ne j} \|W_i'D_j\|_2, \qquad gain = \max_i \|W_i\|_2, \qquad
        \eta = \max_i \|I - W_i'D_i\|_2.

    `schedule(mu, gain, eta=eta, ...)` then holds for the codes with at most s parts of size |x_i|
    at most B, and noise of l2 norm at most delta: the iterates of x <- shrink(x + W'(y - D x),
    theta_k) are zero in all parts in which the code is zero, and E_k bounds sum_i |x_i - x*_i|. The
    proof of Theorem 12 uses only properties of magnitudes that these norms share: with e = x* - x
    and the noise n, the part u_i of the argument of the shrinkage differs from x*_i by

    .. math:: |u_i - x^*_i| \le \sum_{j \ne i} \|W_i'D_j\|_2 |e_j| + \|I - W_i'D_i\|_2 |e_i|
        + \|W_i\|_2 \|n\|_2,

    and shrinkage moves u_i by at most theta_k, to 0 if |u_i| <= theta_k. With g = 1 this is
    Theorem 12, with mu = mu_W. The products are d x d by nature. Traceable.

    Args:
        W, D: (m, d); the atoms of D have unit norm; atoms of a part need not be orthogonal.

    Returns:
        BlockCoherence(mu, gain, eta), () each.

    Raises:
        ValueError: the shapes differ, known atoms are off unit norm by more than 1e-4, or border
            atoms are cut.

    Not claimed: rounding, for which `analytic.alista` and `lista_cp` add a guard.

    Reference: Li, Feng, Zhou (2024), Theorem 12; Eldar, Kuppinger, Bolcskei (2010) for the
    coherence of blocks.

    Example:
        >>> D = ur.dictionaries.Joint(ur.dictionaries.identity_hadamard(16), 3)
        >>> [round(float(v), 3) for v in ur.theory.block_coherence(D, D)]
        [0.25, 1.0, 0.0]
    """
    where = "block_coherence"
    W, D = as_dictionary(W, where, "W"), as_dictionary(D, where)
    if W.shape != D.shape:
        raise ValueError(f"{where}: W has shape {W.shape} but D has shape {D.shape}; must agree")
    refuse_cut_atoms(D, where)
    unit_atoms(D, where)
    dtype = checks.common_dtype(W, D)
    return _block_coherence(checks.cast(W, dtype), checks.cast(D, dtype), block_of(D))


@program("g")
def _block_coherence(W: Operator, D: Operator, g: int) -> BlockCoherence:
    (m, d), n = D.shape, D.shape[1] // g
    checks.announce((d, d), D.dtype, "the matrix of all inner products", "block_coherence")
    with jax.default_matmul_precision("highest"):
        V, A = dense(W), dense(D)
        products = (V.T @ A).reshape(n, g, n, g).swapaxes(1, 2)
        own = jnp.arange(n)
        mu = largest(jnp.where(jnp.eye(n, dtype=bool), 0, _norms(products)))
        eta = largest(_norms(jnp.eye(g, dtype=D.dtype)[None] - products[own, own]))
        return BlockCoherence(mu, largest(_norms(V.reshape(m, n, g).swapaxes(0, 1))), eta)


def _norms(A: Array) -> Array:
    """norm(A, 2) of every matrix (..., rows, columns), rounded up a little."""
    rows, columns = A.shape[-2:]
    if 1 in (rows, columns):
        return norm(A, (-2, -1))
    each = jax.vmap(largest_singular_value)(A.reshape(-1, rows, columns))
    return each.reshape(A.shape[:-2])
