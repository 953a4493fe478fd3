"""Dictionaries from formulas and random draws, and dictionaries made of other dictionaries."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, checked, program
from unrolled._base.numbers import norm
from unrolled.dictionaries import _base
from unrolled.dictionaries._base import (
    DENSE_LIMIT,
    Dictionary,
    Operator,
    Structured,
    column_norms,
    dense,
    scale_columns,
)
from unrolled.dictionaries._conv import Conv
from unrolled.dictionaries._operands import (
    as_chain,
    as_dictionary,
    block_of,
    cuts_atoms,
    inner_terms,
    is_complex,
    magnitudes,
    normalize,
    normalized,
    refuse_parts,
    shapes_of,
    spectral_norm,
    spread,
)
from unrolled.dictionaries._parts import in_pairs

__all__ = [
    "Composed",
    "Concatenated",
    "Sparse",
    "WithIdentity",
    "dct",
    "gaussian",
    "identity_hadamard",
    "ill_conditioned",
    "paley",
    "transversal",
]


@checked
def gaussian(key: Key, m: int, d: int) -> Array:
    """A dictionary of independent Gaussian entries, normalised: the standard benchmark dictionary.

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
    # Three programs, because one fused program would change the last bits.
    return normalize(jax.random.normal(key, (m, d)) / math.sqrt(m))[0]


def dct(m: int | tuple[int, ...], d: int | tuple[int, ...]) -> Array:
    """The overcomplete cosine dictionary, orthonormal (the DCT-II) for d = m.

    Atom k is cos(pi (i + 1/2) k / d), i = 0, ..., m - 1, minus its mean for k > 0, normalised.
    Tuples give the separable dictionary of patches: dct((8, 8), (16, 16)) is the usual 64 x 256
    dictionary, for patches flattened row by row.

    Args:
        m, d: the numbers of rows and of atoms, an int or one per dimension.

    Returns:
        D, (prod(m), prod(d)).

    Raises:
        ValueError: d < m in some dimension, or the tuples have different lengths.

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
        # With one row, an atom minus its mean is only a rounding error: keep the constant atom.
        V = np.where(np.abs(V).max(0) > 1e-12, V, 1.0)
        D = np.kron(D, V / np.linalg.norm(V, axis=0))
    return jnp.asarray(D, float)


def identity_hadamard(m: int) -> Array:
    """[I, H / sqrt(m)] with the Hadamard matrix H of order m.

    The mutual and the generalized coherence are both 1 / sqrt(m).

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

    The Gram matrix is I + C / sqrt(q) with the conference matrix C of the quadratic residues mod q.

    Returns:
        D, ((q + 1) / 2, q + 1).

    Raises:
        ValueError: q is not a prime with q = 1 mod 4 (prime powers are not supported).

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

    An atom has c nonzeros +-1/sqrt(c), one in each of c groups of q rows, so that a sparse code
    gives a sparse signal. Two atoms share at most one row. The i-th nonzero of column (a, b) is in
    row a + i b mod q of group i. This is a transversal design of lines over the field of q
    elements.

    Args:
        key: a typed key or a seed, to draw d of the q^2 lines, and the signs.
        c: number of nonzeros of an atom, at most q.
        q: number of rows of a group, a prime.
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
    """Unit atoms from a Gaussian matrix with log-spaced singular values 1, ..., 1/kappa.

    Normalising the atoms changes the condition number: kappa = 5 gives about the condition number
    of a plain Gaussian dictionary.

    Args:
        key: a typed key, or a seed.
        m, d: the numbers of rows and of atoms.
        kappa: condition number before the atoms are normalised, finite and at least 1.

    Returns:
        D, (m, d).

    Raises:
        ValueError: kappa is below 1, infinite or NaN.

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
    """A with its singular values replaced by 1, ..., 10^last, log-spaced."""
    U, _, V = jnp.linalg.svd(A, full_matrices=False)
    s = jnp.logspace(0, last, min(A.shape), dtype=U.dtype)
    with jax.default_matmul_precision("highest"):
        return (U * s[None, :]) @ V


def _announce(shape: tuple[int, int], where: str) -> None:
    """Warn before a large dictionary is made, or raise if it does not fit in memory.

    Up to four arrays of this size exist at once: random bits, entries before normalisation, and
    factors.
    """
    checks.announce(shape, jnp.result_type(float), "the dictionary", where, copies=4)


def _size(m: int, d: int, where: str) -> tuple[int, int]:
    return checks.as_index(m, "m", where, least=1), checks.as_index(d, "d", where, least=1)


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % p for p in range(2, math.isqrt(q) + 1))


@_base.pytree(data=("factors",))
@dataclass(frozen=True, eq=False, init=False)
class Composed(Structured):
    """D_1 D_2 ... D_J, never multiplied out: the effective dictionary of a chain.

    Li, Feng, Zhou (2024) write D_[1,J] for this dictionary.

    Args:
        factors: D_1, ..., D_J, plain or structured, (d_{j-1}, d_j) each. If a factor is complex
            (`is_complex`), the product is complex, and real factors act on complex numbers.

    Raises:
        ValueError: there is no factor, or neighbouring shapes do not fit.

    Example:
        >>> D = ur.dictionaries.Composed(jnp.ones((2, 3)), jnp.ones((3, 4)))
        >>> D.shape, (D @ jnp.ones(4)).tolist()
        ((2, 4), [12.0, 12.0])
    """

    factors: tuple[Operator, ...]

    def __init__(self, *factors: Dictionary):
        factors = as_chain(in_pairs(factors), "Composed")
        object.__setattr__(self, "factors", checks.cast(factors, checks.common_dtype(factors)))

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors[0].shape[-2], self.factors[-1].shape[-1]

    @property
    def ndim(self) -> int:
        return max(D.ndim for D in self.factors)

    def synthesize(self, x: Array) -> Array:
        for D in reversed(self.factors):
            x = D @ x
        return x

    def analyze(self, r: Array) -> Array:
        for D in self.factors:
            r = r @ D
        return r

    def scale(self, c: ArrayLike) -> "Composed":
        return Composed(self.factors[0] * c, *self.factors[1:])

    def scale_columns(self, c: Array) -> "Composed":
        return Composed(*self.factors[:-1], scale_columns(self.factors[-1], c))

    @property
    def is_complex(self) -> bool:
        return any(map(is_complex, self.factors))

    @property
    def block(self) -> int:
        return block_of(self.factors[-1])

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups of the last factor if its codes come in parts; otherwise no groups."""
        last = self.factors[-1]
        return last.groups if isinstance(last, Structured) and last.block > 1 else ()

    def spread(self, theta: ArrayLike) -> ArrayLike:
        return spread(self.factors[-1], theta) if self.block > 1 else theta

    def spectral_norm(self) -> Array:
        if math.prod(self.shape) <= DENSE_LIMIT:
            return spectral_norm(dense(self))
        return functools.reduce(jnp.multiply, map(spectral_norm, self.factors))

    def magnitudes(self) -> "Composed":
        return Composed(*map(magnitudes, self.factors))

    @property
    def inner_terms(self) -> int:
        return sum(map(inner_terms, self.factors)) + sum(D.shape[1] for D in self.factors[:-1])


@_base.pytree(data=("parts",))
@dataclass(frozen=True, eq=False, init=False)
class Concatenated(Structured):
    """[D_1, D_2, ...]: all atoms of the parts; the code joins the codes of the parts.

    Args:
        parts: D_1, D_2, ..., plain or structured, (m, d_j) each. If a part is complex
            (`is_complex`), the dictionary is complex, and real parts act on complex codes.

    Raises:
        ValueError: there is no part, or parts have different signal lengths.

    Example:
        >>> D = ur.dictionaries.Concatenated(jnp.eye(3), ur.dictionaries.dct(3, 4))
        >>> D.shape
        (3, 7)
    """

    parts: tuple[Operator, ...]

    def __init__(self, *parts: Dictionary):
        parts = tuple(as_dictionary(D, "Concatenated") for D in parts)
        if not parts:
            raise ValueError("Concatenated: expected at least one dictionary, got none")
        parts = in_pairs(parts)
        if not any(map(is_complex, parts)):
            for D in parts:
                refuse_parts(D, "Concatenated", "try one such dictionary with the atoms of all")
        if len({D.shape[0] for D in parts}) > 1:
            kind, shapes = shapes_of(parts)
            raise ValueError(
                f"Concatenated: parts have {kind}shapes {shapes}; expected one number of rows"
            )
        object.__setattr__(self, "parts", checks.cast(parts, checks.common_dtype(parts)))

    @property
    def is_complex(self) -> bool:
        return any(map(is_complex, self.parts))

    @property
    def shape(self) -> tuple[int, int]:
        return self.parts[0].shape[-2], sum(D.shape[-1] for D in self.parts)

    @property
    def ndim(self) -> int:
        return max(D.ndim for D in self.parts)

    def _split(self, x: Array) -> list[Array]:
        ends = np.cumsum([D.shape[1] for D in self.parts])[:-1]
        return jnp.split(x, ends)

    def synthesize(self, x: Array) -> Array:
        return jnp.asarray(sum(D @ part for D, part in zip(self.parts, self._split(x))))

    def analyze(self, r: Array) -> Array:
        return jnp.concatenate([r @ D for D in self.parts])

    def scale(self, c: ArrayLike) -> "Concatenated":
        return Concatenated(*(D * c for D in self.parts))

    def scale_columns(self, c: Array) -> "Concatenated":
        return Concatenated(
            *(scale_columns(D, part) for D, part in zip(self.parts, self._split(c)))
        )

    def normalized(self) -> tuple[Structured, Array]:
        if any(map(cuts_atoms, self.parts)):  # in unit parts, cut atoms have norms < 1
            return super().normalized()
        parts, norms = zip(*map(normalized, self.parts))
        return Concatenated(*parts), jnp.concatenate(norms)

    def column_norms(self) -> Array:
        return jnp.concatenate([column_norms(D) for D in self.parts])

    def spectral_norm(self) -> Array:
        """The upper bound norm([A, B])^2 <= norm(A)^2 + norm(B)^2, exact for orthonormal parts."""
        return norm(jnp.stack([spectral_norm(D) for D in self.parts]))

    def magnitudes(self) -> "Concatenated":
        return Concatenated._of(tuple(map(magnitudes, self.parts)))

    @property
    def inner_terms(self) -> int:
        return max(map(inner_terms, self.parts))


@_base.pytree(data=("base", "indices", "values"))
@dataclass(frozen=True, eq=False, init=False)
class Sparse(Structured):
    """Phi A with sparse columns in A ("double sparsity"): each atom combines a few base atoms.

    A is stored column by column, padded to the largest count k: `indices` and `values`, (k, d).

    Args:
        base: Phi, (m, p), plain or structured.
        atoms: A, a concrete (p, d) matrix.

    Raises:
        TypeError: `atoms` is traced (the shapes depend on its zeros).
        ValueError: the shapes do not fit.

    Reference: Rubinstein, Zibulevsky, Elad (2010).

    Example:
        >>> D = ur.dictionaries.Sparse(ur.dictionaries.dct(4, 4), jnp.eye(4)[:, :2])
        >>> D.shape, D.values.shape
        ((4, 2), (1, 2))
    """

    base: Operator
    indices: Array
    values: Array

    def __init__(self, base: Dictionary, atoms: ArrayLike):
        base = as_dictionary(base, "Sparse")
        if not checks.is_concrete(atoms):
            raise TypeError(
                "Sparse: atoms must be concrete, got a traced array; build it outside jit"
            )
        atoms = np.asarray(as_dictionary(atoms, "Sparse"))
        if base.shape[1] != atoms.shape[0]:
            raise ValueError(
                f"Sparse: base has shape {base.shape} but atoms have shape {atoms.shape}"
            )
        largest = max(1, int(np.count_nonzero(atoms, axis=0).max()))
        indices = np.argsort(atoms == 0, axis=0, kind="stable")[:largest]
        values = jnp.asarray(np.take_along_axis(atoms, indices, 0))
        base, values = checks.cast((base, values), checks.common_dtype(base, values))
        vars(self).update(base=base, indices=jnp.asarray(indices, jnp.int32), values=values)

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape[-2], self.values.shape[-1]

    @property
    def ndim(self) -> int:
        return self.values.ndim

    def synthesize(self, x: Array) -> Array:
        coefficients = (
            jnp.zeros(self.base.shape[1], x.dtype).at[self.indices].add(self.values * x[None, :])
        )
        return self.base @ coefficients

    def analyze(self, r: Array) -> Array:
        return jnp.sum(self.values * (r @ self.base)[self.indices], axis=0)

    def scale(self, c: ArrayLike) -> "Sparse":
        return Sparse._of(self.base, self.indices, self.values * c)

    def scale_columns(self, c: Array) -> "Sparse":
        return Sparse._of(self.base, self.indices, self.values * c[None, :])

    def magnitudes(self) -> "Sparse":
        return Sparse._of(magnitudes(self.base), self.indices, jnp.abs(self.values))

    @property
    def inner_terms(self) -> int:
        return inner_terms(self.base) + self.base.shape[1]


@_base.pytree(data=("F",))
@dataclass(frozen=True, eq=False, init=False)
class WithIdentity(Structured):
    """[I, F], (m, m + d), with an identity that is neither stored nor multiplied.

    Analysis is (r, F'r). If F is a `Conv` with as many positions as samples, analysis is a dense
    connection: it returns the channels of a signal, then the feature maps of F.

    Args:
        F: (m, d), plain or structured.

    Raises:
        TypeError, ValueError: F is not a dictionary, or its codes come in parts.

    Reference: Zhang, Zhang (2021), the dictionary of MSD-CSC.

    Example:
        >>> D = ur.dictionaries.WithIdentity(jnp.array([[1.0], [2.0]]))
        >>> ur.dictionaries.dense(D).tolist()
        [[1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]
    """

    F: Operator

    def __init__(self, F: Dictionary):
        refuse_parts(F, "WithIdentity", "expected a dictionary without parts")
        object.__setattr__(self, "F", as_dictionary(F, "WithIdentity"))

    @property
    def shape(self) -> tuple[int, int]:
        m, d = self.F.shape[-2:]
        return m, m + d

    @property
    def ndim(self) -> int:
        return self.F.ndim

    def synthesize(self, x: Array) -> Array:
        m = self.shape[0]
        return x[:m] + self.F @ x[m:]

    def analyze(self, r: Array) -> Array:
        return jnp.concatenate([r, r @ self.F])

    def scale(self, c: ArrayLike) -> _base.Rescaled:
        return _base.Rescaled(self, jnp.full(self.shape[1], c, self.dtype))

    def normalized(self) -> tuple["WithIdentity", Array]:
        """[I, F] with unit atoms in F, and the norms of all atoms."""
        F, norms = normalized(self.F)
        return WithIdentity(F), self._after_ones(norms)

    def column_norms(self) -> Array:
        return self._after_ones(column_norms(self.F))

    def spectral_norm(self) -> Array:
        """sqrt(1 + norm(F)^2), exact if the norm of F is exact."""
        norm = spectral_norm(self.F)
        return jnp.hypot(jnp.ones_like(norm), norm)

    def magnitudes(self) -> "WithIdentity":
        return WithIdentity(magnitudes(self.F))

    @property
    def inner_terms(self) -> int:
        return inner_terms(self.F)

    @property
    def cuts_atoms(self) -> bool:
        return cuts_atoms(self.F)

    @property
    def groups(self) -> tuple[int, ...]:
        """(channels + filters,) if F is a `Conv`, one group per map; otherwise no groups."""
        if not isinstance(self.F, Conv):
            return ()
        return (self.F.signal_grid[0] + self.F.code_grid[0],)

    def spread(self, theta: ArrayLike) -> Array:
        """Repeat one value per channel and per filter over the positions."""
        theta = jnp.asarray(theta)
        if not isinstance(self.F, Conv) or theta.shape != self.groups:
            return theta
        channels, samples = self.F.signal_grid[0], math.prod(self.F.signal_shape)
        own = jnp.broadcast_to(theta[:channels, None], (channels, samples)).reshape(-1)
        return jnp.concatenate([own, self.F.spread(theta[channels:])])

    def _after_ones(self, norms: Array) -> Array:
        return jnp.concatenate([jnp.ones(self.shape[0], norms.dtype), norms])
