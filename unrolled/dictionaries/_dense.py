"""Families of dense dictionaries with unit atoms, from random ones to the least coherent."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.arguments import checked
from unrolled._base.checks import Array, Key
from unrolled._base.programs import program
from unrolled.dictionaries._operands import normalize


@checked
def gaussian(key: Key, m: int, d: int) -> Array:
    """Independent Gaussian entries, atoms then normalised: the standard benchmark dictionary.

    Args:
        key: a typed key, or a seed.
        m, d: the numbers of rows and of atoms.

    Returns:
        D, (m, d).

    Example:
        >>> D = ur.dictionaries.gaussian(jax.random.key(0), 50, 100)
        >>> D.shape, round(float(jnp.linalg.norm(D[:, 7])), 3)
        ((50, 100), 1.0)
    """
    m, d = _size(m, d, "gaussian")
    _announce((m, d), "gaussian")
    # Three programs: as one, fused, its last bits would be others.
    return normalize(jax.random.normal(key, (m, d)) / math.sqrt(m))[0]


def dct(m: int | tuple[int, ...], d: int | tuple[int, ...]) -> Array:
    """The overcomplete cosine dictionary, orthonormal (the DCT-II) for d = m.

    Atom k is cos(pi (i + 1/2) k / d), i = 0, ..., m - 1, with its mean removed for k > 0 and
    normalised. Tuples give the separable dictionary of patches: dct((8, 8), (16, 16)) is the usual
    64 x 256 dictionary, for patches flattened row by row.

    Args:
        m, d: the numbers of rows and of atoms, an int or one per dimension.

    Returns:
        D, (prod(m), prod(d)).

    Raises:
        ValueError: d < m in some dimension, or tuples of different length.

    Reference: Elad, Aharon (2006), section IV.

    Example:
        >>> ur.dictionaries.dct((8, 8), (16, 16)).shape
        (64, 256)
    """
    ms, ds = (v if isinstance(v, tuple) else (v,) for v in (m, d))
    if len(ms) != len(ds):
        raise ValueError(f"dct: m={m} and d={d}; expected the same number of dimensions")
    sizes = [_size(rows, columns, "dct") for rows, columns in zip(ms, ds)]
    _announce((math.prod(m for m, _ in sizes), math.prod(d for _, d in sizes)), "dct")
    D = np.ones((1, 1))
    for rows, columns in sizes:
        if columns < rows:
            raise ValueError(f"dct: expected d >= m in every dimension, got m={m}, d={d}")
        V = np.cos(np.pi * np.outer(np.arange(rows) + 0.5, np.arange(columns)) / columns)
        V[:, 1:] -= V[:, 1:].mean(0)
        # With one row, removing the mean leaves nothing but rounding: keep the constant.
        V = np.where(np.abs(V).max(0) > 1e-12, V, 1.0)
        D = np.kron(D, V / np.linalg.norm(V, axis=0))
    return jnp.asarray(D, float)


def identity_hadamard(m: int) -> Array:
    """[I, H / sqrt(m)] with the Hadamard matrix H of order m.

    Mutual and generalized coherence are both 1 / sqrt(m).

    Returns:
        D, (m, 2m).

    Raises:
        ValueError: m is not a power of two.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> float(ur.theory.mutual_coherence(D))
        0.25
    """
    m = checks.as_index(m, "m", "identity_hadamard", least=1)
    if m & (m - 1):
        raise ValueError(f"identity_hadamard: m must be a power of two, got {checks.brief(m)}")
    _announce((m, 2 * m), "identity_hadamard")
    H = np.ones((1, 1))
    while len(H) < m:
        H = np.block([[H, H], [H, -H]])
    return jnp.asarray(np.hstack([np.eye(m), H / math.sqrt(m)]), float)


def paley(q: int) -> Array:
    """The Paley equiangular tight frame: every two atoms have coherence 1/sqrt(q), the Welch bound.

    Its Gram matrix is I + C / sqrt(q) with the conference matrix C of the quadratic residues mod q.

    Returns:
        D, ((q + 1) / 2, q + 1).

    Raises:
        ValueError: q is not a prime with q = 1 mod 4 (prime powers are not built).

    Example:
        >>> D = ur.dictionaries.paley(13)
        >>> D.shape, round(float(ur.theory.mutual_coherence(D)) ** -2, 3)
        ((7, 14), 13.0)
    """
    q = checks.as_index(q, "q", "paley", least=2)
    _announce((q + 1, q + 1), "paley")
    if not _is_prime(q) or q % 4 != 1:
        raise ValueError(
            f"paley: q must be a prime with q = 1 mod 4, e.g. 5, 13, 61 or 1009; got {q}"
        )
    character = -np.ones(q)
    character[np.unique(np.arange(1, q) ** 2 % q)] = 1
    character[0] = 0
    C = np.ones((q + 1, q + 1))
    C[1:, 1:] = character[(np.arange(q)[:, None] - np.arange(q)) % q]
    C[0, 0] = 0
    # C / sqrt(q) has eigenvalues +-1, each with multiplicity (q+1)/2: the frame spans the +1
    # eigenvectors.
    _, vectors = np.linalg.eigh(C)
    return jnp.asarray(math.sqrt(2) * vectors[:, (q + 1) // 2 :].T, float)


@checked
def transversal(key: Key, c: int, q: int, d: int) -> Array:
    """Sparse atoms with coherence at most 1/c, for the layers j >= 2 of a chain.

    An atom has c nonzeros +-1/sqrt(c), one in each of c groups of q rows, and two atoms share at
    most one row, so that a sparse code makes a sparse signal. Column (a, b) has its i-th nonzero at
    row a + i b mod q of group i: a transversal design of lines over the field of q elements.

    Args:
        key: a typed key or a seed; it chooses d of the q^2 lines, and the signs.
        c: nonzeros of an atom, at most q.
        q: rows of a group, a prime.
        d: the number of atoms, at most q^2.

    Returns:
        D, (c q, d).

    Raises:
        ValueError: q is not prime, c > q, or d > q^2.

    Example:
        >>> D = ur.dictionaries.transversal(jax.random.key(0), 4, 5, 25)
        >>> D.shape, float(ur.theory.mutual_coherence(D))
        ((20, 25), 0.25)
    """
    c, d = _size(c, d, "transversal")
    q = checks.as_index(q, "q", "transversal", least=2)
    _announce((c * q, d), "transversal")
    checks.check_memory((q, q), jnp.result_type(int), "all lines", "transversal", 2)
    if not _is_prime(q) or c > q or d > q * q:
        raise ValueError(
            f"transversal: expected a prime q >= c and d <= q^2, got c={c}, q={q}, d={d}"
        )
    return _transversal(key, c, q, d)


@program("c", "q", "d")
def _transversal(key: Key, c: int, q: int, d: int) -> Array:
    line_key, sign_key = jax.random.split(key)
    line = jax.random.permutation(line_key, q * q)[:d]
    i, (a, b) = jnp.arange(c)[:, None], (line[None, :] // q, line[None, :] % q)
    rows = i * q + (a + i * b) % q
    signs = jax.random.rademacher(sign_key, (c, d), float)
    return jnp.zeros((c * q, d), float).at[rows, jnp.arange(d)[None, :]].set(signs / math.sqrt(c))


@checked
def ill_conditioned(key: Key, m: int, d: int, kappa: float) -> Array:
    """A Gaussian matrix with singular values 1, ..., 1/kappa (log-spaced), then normalised atoms.

    Normalising changes the condition number: with kappa = 5 it ends near that of a plain Gaussian
    dictionary.

    Args:
        key: a typed key, or a seed.
        m, d: the numbers of rows and of atoms.
        kappa: condition number before the atoms are normalised, finite and at least 1.

    Returns:
        D, (m, d).

    Raises:
        ValueError: kappa < 1, infinite or NaN.

    Reference: Chen, Liu, Wang, Yin (2018), section 4.

    Example:
        >>> D = ur.dictionaries.ill_conditioned(jax.random.key(0), 20, 40, 50.0)
        >>> bool(jnp.linalg.cond(D) > 10)
        True
    """
    m, d = _size(m, d, "ill_conditioned")
    if not 1 <= kappa < math.inf:
        raise ValueError(
            f"ill_conditioned: kappa must be at least 1, got {kappa}; it must also be finite"
        )
    _announce((m, d), "ill_conditioned")
    return normalize(_with_spectrum(jax.random.normal(key, (m, d)), -math.log10(kappa)))[0]


@program()
def _with_spectrum(A: Array, last: float) -> Array:
    """A with the singular values 1, ..., 10^last, log-spaced."""
    U, _, V = jnp.linalg.svd(A, full_matrices=False)
    s = jnp.logspace(0, last, min(A.shape), dtype=U.dtype)
    with jax.default_matmul_precision("highest"):
        return (U * s[None, :]) @ V


def _announce(shape: tuple[int, int], where: str) -> None:
    """Warn before a large dictionary is made, or refuse one that memory does not hold.

    Up to four arrays have its size at once: random bits, entries before they are normalised, and
    factors.
    """
    checks.announce(shape, jnp.result_type(float), "the dictionary", where, copies=4)


def _size(m: int, d: int, where: str) -> tuple[int, int]:
    return checks.as_index(m, "m", where, least=1), checks.as_index(d, "d", where, least=1)


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % p for p in range(2, math.isqrt(q) + 1))
