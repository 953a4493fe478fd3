"""Coherence of weights for codes in parts: numbers that extend theorems on entries to parts."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import Array, Result, program
from unrolled._base.numbers import largest, largest_singular_value, norm
from unrolled.dictionaries import Dictionary, Joint, Operator
from unrolled.theory._coherence import refuse_cut_atoms
from unrolled.theory._convergence import atom_products

__all__ = ["BlockCoherence", "block_coherence"]


# The number of parts whose products are formed at once.
_PARTS = 1_000


class BlockCoherence(Result):
    """The numbers to pass to `schedule` as mu, C_W and eta if codes come in parts."""

    mu: Array  # max over i != j of norm(W_i'D_j, 2)
    gain: Array  # max of norm(W_i, 2)
    eta: Array  # max of norm(I - W_i'D_i, 2)


def block_coherence(W: Dictionary, D: Dictionary) -> BlockCoherence:
    r"""The coherence of weights W with a D whose codes come in parts x_i of g = `D.block` entries.

    .. math:: \mu = \max_{i \ne j} \|W_i'D_j\|_2, \qquad gain = \max_i \|W_i\|_2, \qquad
        \eta = \max_i \|I - W_i'D_i\|_2.

    `schedule(mu, gain, eta=eta, ...)` then holds for codes with at most s nonzero parts of size
    |x_i| at most B, and noise of l2 norm at most delta. The iterates of
    x <- shrink(x + W'(y - D x), theta_k) are zero in all parts in which the code is zero, and E_k
    bounds sum_i |x_i - x*_i|. The proof of Theorem 12 uses only properties of magnitudes that these
    norms share. Let e = x* - x, and let n be the noise. The part u_i of the argument of the
    shrinkage differs from x*_i by

    .. math:: |u_i - x^*_i| \le \sum_{j \ne i} \|W_i'D_j\|_2 |e_j| + \|I - W_i'D_i\|_2 |e_i|
        + \|W_i\|_2 \|n\|_2.

    Shrinkage moves u_i by at most theta_k, and to 0 if |u_i| <= theta_k. For g = 1 the statement is
    Theorem 12 with mu = mu_W. The function forms d x d products. Traceable.

    A `Grouped` D with weights w_i has the atoms D_i / w_i and the codes w_i x_i. Its W is
    `Grouped(V, groups, 1 / w)`, with the atoms w_i V_i, so that V alone determines eta:

    .. math:: \mu = \max_{i \ne j} \frac{w_i}{w_j} \|V_i'D_j\|_2, \qquad
        gain = \max_i w_i \|V_i\|_2.

    Then B bounds w_i |x_i|, and E_k bounds sum_i w_i |x_i - x*_i|.

    Args:
        W, D: (m, d). The atoms of D have unit norm, before weights of `Grouped` divide them; atoms
            of a part need not be orthogonal.

    Returns:
        BlockCoherence(mu, gain, eta), three arrays of shape ().

    Raises:
        ValueError: the shapes differ, D is not traced and an atom is off unit norm by more than
            1e-4, or border atoms are cut.

    Not claimed: a bound that includes rounding; `analytic.alista` and `lista_cp` add a guard for
    rounding.

    Reference: Li, Feng, Zhou (2024), Theorem 12; Eldar, Kuppinger, Bolcskei (2010) for the
    coherence of blocks.

    Example:
        >>> D = ur.dictionaries.Joint(ur.dictionaries.identity_hadamard(16), 3)
        >>> jax.tree.map(lambda v: round(float(v), 3), ur.theory.block_coherence(D, D))
        BlockCoherence(mu=0.25, gain=1.0, eta=0.0)
    """
    where = "block_coherence"
    W, D = dictionaries.as_dictionary(W, where, "W"), dictionaries.as_dictionary(D, where)
    if W.shape != D.shape:
        raise ValueError(f"{where}: W has shape {W.shape} but D has shape {D.shape}; must agree")
    refuse_cut_atoms(D, where)
    if isinstance(D, dictionaries.Grouped) and D.weights:
        atoms = dictionaries.column_norms(D.base) * jnp.asarray(D.weights, D.dtype)
        dictionaries.unit_norms(D, atoms, where)
    else:
        dictionaries.unit_atoms(D, where)
    dtype = checks.common_dtype(W, D)
    return _block_coherence(checks.cast(W, dtype), checks.cast(D, dtype), dictionaries.block_of(D))


@program("g")
def _block_coherence(W: Operator, D: Operator, g: int) -> BlockCoherence:
    (m, d), n = D.shape, D.shape[1] // g
    checks.announce((d, d), D.dtype, "the matrix of all inner products", "block_coherence")
    with jax.default_matmul_precision("highest"):
        V, A = dictionaries.dense(W), dictionaries.dense(D)
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


class Products(NamedTuple):
    """The numbers of weights W that the theory uses, one per part; a part may be one atom."""

    own: np.ndarray  # (n,) w_i . d_i, or (n, g, g) W_i'D_i
    mu: np.ndarray  # (n,) max over j != i of norm(W_i'D_j, 2)
    C: np.ndarray  # (n,) max_j abs(W_ji); norm(W_i, 2) if codes come in parts
    G: np.ndarray  # (n,) max_j norm((|W|'|D|)_ij, 2)

    def drift(self, gamma: np.ndarray) -> np.ndarray:
        """norm(I - gamma_i W_i'D_i, 2), (n,)."""
        if self.own.ndim == 1:
            return np.abs(1 - gamma * self.own)
        return spectral_norms(np.eye(self.own.shape[1]) - gamma[:, None, None] * self.own)


def part_products(W: Operator, D: Operator, g: int | None = None) -> Products:
    """The products of W and D, in float64, by the parts of D, or by parts of g entries."""
    g = dictionaries.block_of(D) if g is None else g
    in_parts = g > 1
    W, D, g = without_measurements(W, D, g)
    if g == 1:
        own, mu, C, G = map(np.asarray, atom_products(W, D))
        return Products(own, mu, np.asarray(dictionaries.column_norms(W)) if in_parts else C, G)
    n = D.shape[1] // g
    own, (mu, G) = np.empty((n, g, g)), np.empty((2, n))
    for some in chunks(n, _PARTS // g):
        products, each = _blocks(D, W, some, g), np.arange(len(some))
        own[some] = products[some, :, each].swapaxes(1, 2)
        sizes = spectral_norms(products.swapaxes(1, 2))
        sizes[some, each] = 0
        mu[some] = sizes.max(0)
        G[some] = spectral_norms(
            _blocks(dictionaries.magnitudes(D), dictionaries.magnitudes(W), some, g).swapaxes(1, 2)
        ).max(0)
    columns = np.asarray(dictionaries.dense(W)).reshape(-1, n, g).swapaxes(0, 1)
    return Products(own, mu, spectral_norms(columns), G)


def without_measurements(W: Operator, D: Operator, g: int) -> tuple[Operator, Operator, int]:
    """W, D and g of one measurement of a `Joint`, because all norms of W_i'D_j are the same."""
    if isinstance(W, Joint) and isinstance(D, Joint) and W.measurements == D.measurements:
        return W.base, D.base, g // D.measurements
    return W, D, g


def part_norms(D: Operator, W: Operator, some: np.ndarray) -> np.ndarray:
    """norm(W_i'D_j, 2) for all parts j and some parts i, (n, len(some)), in float64."""
    W, D, g = without_measurements(W, D, dictionaries.block_of(D))
    if g == 1:
        return np.abs(signed_products(D, W, some))
    return spectral_norms(_blocks(D, W, some, g).swapaxes(1, 2))


def _blocks(D: Operator, W: Operator, some: np.ndarray, g: int) -> np.ndarray:
    """D_j'W_i for all parts j and some parts i, (n, g, len(some), g)."""
    columns = (some[:, None] * g + np.arange(g)).reshape(-1)
    return signed_products(D, W, columns).reshape(-1, g, len(some), g)


def spectral_norms(A: np.ndarray) -> np.ndarray:
    """norm(A, 2) of every matrix (..., rows, columns)."""
    if 1 in A.shape[-2:]:
        return np.hypot.reduce(A, axis=(-2, -1))
    if A.shape[-2:] == (2, 2):  # the sum of the moduli of the complex and the conjugate part
        a, b, c, d = A[..., 0, 0], A[..., 0, 1], A[..., 1, 0], A[..., 1, 1]
        return (np.hypot(a + d, c - b) + np.hypot(a - d, c + b)) / 2
    return np.linalg.svd(A, compute_uv=False)[..., 0]


def chunks(n: int, size: int) -> Iterator[np.ndarray]:
    """The indices below n, in chunks of `size`."""
    size = max(1, size)
    return (np.arange(i, min(i + size, n)) for i in range(0, n, size))


def signed_products(W: Dictionary, D: Dictionary, columns: np.ndarray) -> np.ndarray:
    """Columns of W'D, in float64."""
    with jax.enable_x64(True):
        return np.asarray(_products_of(W, D, jax.device_put(columns))).T


@program()
def _products_of(W: Dictionary, D: Dictionary, columns: Array) -> Array:
    def column(j: Array) -> Any:
        return (D @ jnp.zeros(D.shape[1], D.dtype).at[j].set(1)) @ W

    with jax.default_matmul_precision("highest"):
        return jax.vmap(column)(columns)
