"""Families of dense dictionaries with unit-norm atoms, from random ones to those with the least
coherence.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries._answers import normalize


def gaussian(key: Array, m: int, d: int) -> Array:
    """Independent N(0, 1/m) entries, atoms then normalised; (m, d). The field's standard benchmark
    dictionary.
    """
    m, d = _size(m, d, "gaussian")
    return normalize(jax.random.normal(key, (m, d)) / math.sqrt(m))[0]


def dct(m: int | tuple[int, ...], d: int | tuple[int, ...]) -> Array:
    r"""Overcomplete cosines: atom k is cos(pi (i + 1/2) k / d), its mean removed for k > 0,
    normalised; (m, d).

    For d = m this is the orthonormal DCT-II.

    Tuples give the separable dictionary of patches: dct((8, 8), (16, 16)) is the usual 64 x 256
    one, for patches flattened row by row.

    Raises:
        ValueError: d < m in some dimension, or tuples of different length.

    Reference: Elad, Aharon (2006), section IV.
    """
    ms, ds = (v if isinstance(v, tuple) else (v,) for v in (m, d))
    if len(ms) != len(ds):
        raise ValueError(f"dct: m={m} and d={d}; expected the same number of dimensions")
    D = np.ones((1, 1))
    for rows, columns in zip(ms, ds):
        rows, columns = _size(rows, columns, "dct")
        if columns < rows:
            raise ValueError(f"dct: expected d >= m in every dimension, got m={m}, d={d}")
        V = np.cos(np.pi * np.outer(np.arange(rows) + 0.5, np.arange(columns)) / columns)
        V[:, 1:] -= V[:, 1:].mean(0)
        # In one row every cosine but the constant vanishes with its mean: keep the constant.
        V = np.where(np.abs(V).max(0) > 1e-12, V, 1.0)
        D = np.kron(D, V / np.linalg.norm(V, axis=0))
    return jnp.asarray(D, float)


def identity_hadamard(m: int) -> Array:
    """[I, H / sqrt(m)] with the Hadamard matrix of order m; (m, 2m), coherence 1 / sqrt(m) =
    generalized coherence.

    Raises:
        ValueError: m is not a power of two.
    """
    m = _checks.as_index(m, "m", "identity_hadamard", least=1)
    if m & (m - 1):
        raise ValueError(f"identity_hadamard: m must be a power of two, got {m}")
    H = np.ones((1, 1))
    while len(H) < m:
        H = np.block([[H, H], [H, -H]])
    return jnp.asarray(np.hstack([np.eye(m), H / math.sqrt(m)]), float)


def paley(q: int) -> Array:
    """The Paley equiangular tight frame: ((q+1)/2, q+1), coherence 1/sqrt(q), the Welch bound.

    From the conference matrix C of the quadratic residues mod q, the Gram matrix is I + C /
    sqrt(q).

    Raises:
        ValueError: q is not a prime with q = 1 mod 4 (prime powers are not built).
    """
    q = _checks.as_index(q, "q", "paley", least=2)
    if not _is_prime(q) or q % 4 != 1:
        raise ValueError(
            f"paley: q must be a prime with q = 1 mod 4, such as 5, 13, 61 or 1009; got {q}"
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


def transversal(key: Array, c: int, q: int, d: int) -> Array:
    """Sparse atoms: c nonzeros +-1/sqrt(c), one in each of c groups of q rows, two atoms share at
    most one row; (c q, d).

    Column (a, b) has its i-th nonzero at row a + i b mod q of group i: a transversal design of
    lines over the field of q elements. Hence coherence at most 1/c, and a sparse code makes a
    sparse signal: the layers j >= 2 of a chain. `key` chooses the d of the q^2 lines and the signs.

    Raises:
        ValueError: q is not prime, c > q, or d > q^2.
    """
    c, d = _size(c, d, "transversal")
    q = _checks.as_index(q, "q", "transversal", least=2)
    if not _is_prime(q) or c > q or d > q * q:
        raise ValueError(
            f"transversal: expected a prime q >= c and d <= q^2, got c={c}, q={q}, d={d}"
        )
    line_key, sign_key = jax.random.split(key)
    line = jax.random.permutation(line_key, q * q)[:d]
    i, (a, b) = jnp.arange(c)[:, None], (line[None, :] // q, line[None, :] % q)
    rows = i * q + (a + i * b) % q
    signs = jax.random.rademacher(sign_key, (c, d), float)
    return jnp.zeros((c * q, d), float).at[rows, jnp.arange(d)[None, :]].set(signs / math.sqrt(c))


def ill_conditioned(key: Array, m: int, d: int, kappa: float) -> Array:
    """A Gaussian matrix given the singular values 1 ... 1/kappa (log-spaced), atoms then
    normalised; (m, d).

    Normalising changes the condition number: kappa = 5 ends about where a plain Gaussian is.

    Raises:
        ValueError: kappa < 1.

    Reference: Chen, Liu, Wang, Yin (2018), section 4.
    """
    m, d = _size(m, d, "ill_conditioned")
    if not 1 <= kappa < math.inf:
        raise ValueError(
            f"ill_conditioned: kappa must be at least 1, got {kappa}; expected a finite number"
        )
    U, _, V = jnp.linalg.svd(jax.random.normal(key, (m, d)), full_matrices=False)
    s = jnp.logspace(0, -math.log10(kappa), min(m, d), dtype=U.dtype)
    with jax.default_matmul_precision("highest"):
        return normalize((U * s[None, :]) @ V)[0]


def _size(m: int, d: int, where: str) -> tuple[int, int]:
    return _checks.as_index(m, "m", where, least=1), _checks.as_index(d, "d", where, least=1)


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % p for p in range(2, math.isqrt(q) + 1))
