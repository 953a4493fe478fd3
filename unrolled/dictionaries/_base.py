"""The base class of structured dictionaries, and their transposed and rescaled forms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from unrolled._base import checks, programs
from unrolled._base.arguments import KNOWN, matrix_or
from unrolled._base.checks import TypeAliasType
from unrolled._base.doors import Array, ArrayLike, DTypeLike, Result, checked, program
from unrolled._base.numbers import largest_singular_value, norm
from unrolled.dictionaries._pairs import from_pairs, to_pairs

__all__ = [
    "Dictionary",
    "KINDS",
    "Operator",
    "Rescaled",
    "Structured",
    "Transposed",
    "column_norms",
    "dense",
    "pytree",
]


def pytree(*, data: tuple[str, ...], static: tuple[str, ...] = ()) -> Callable[[type], type]:
    """Register a frozen dataclass as a pytree whose rebuilding skips `__init__`.

    `vmap` and `tree.map` rebuild a node with leaves that are not arrays, so rebuilding must not run
    the checks of the constructor.

    Args:
        data: names of the fields that hold arrays or dictionaries.
        static: names of the fields that are hashable and part of the structure.

    Returns:
        The decorator of the class.

    Example:
        >>> from dataclasses import dataclass
        >>> @ur.dictionaries.pytree(data=("gain",), static=("m",))
        ... @dataclass(frozen=True, eq=False)
        ... class Multiple(ur.dictionaries.Structured):
        ...     gain: jax.Array
        ...     m: int
        >>> len(jax.tree.leaves(Multiple(jnp.ones(()), 3)))
        1
    """

    def register(cls):
        def flatten(self):
            return [(GetAttrKey(n), getattr(self, n)) for n in data], tuple(
                getattr(self, n) for n in static
            )

        def unflatten(aux, children):
            self = object.__new__(cls)
            vars(self).update(zip(data + static, (*children, *aux)))
            return self

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
        programs.exportable(cls)
        return cls

    return register


# Up to this many entries (64 MiB in float32) the norm of a product is computed from its matrix. For
# more entries, a product or a sum of norms bounds the norm.
DENSE_LIMIT = 2**24
# The dictionaries by name: a weights file can name one of these classes, and no other class.
KINDS: dict[str, type["Structured"]] = {}


class Structured:
    """A dictionary that is not a plain array.

    A subclass defines `shape`, `synthesize` (D x), `analyze` (D' r) and `scale` (c D), as a frozen
    dataclass registered with `pytree`. All other methods have defaults that use these four methods,
    in most cases through the matrix. A subclass overrides the defaults that its structure
    makes cheaper:

    - `column_norms`, `spectral_norm`, `scale_columns`, `normalized`, `entries`, `magnitudes`,
      `inner_terms`, `closed_form`, and `dtype` if no field is a floating array;
    - `ndim`, for losses in which every signal has its own dictionary;
    - for atoms that come in groups, like the shifts of one filter: `groups`, `spread`,
      `inner_products`, `representatives`, `neighbourhood`, `replicate` and `cuts_atoms`;
    - `is_complex`, if D is a complex dictionary that acts on pairs of real numbers;
    - for codes that come in other parts: `block`, with `groups` and `spread` that give a part one
      threshold, and `view`.

    Example:
        >>> from dataclasses import dataclass
        >>> @ur.dictionaries.pytree(data=("gains",))
        ... @dataclass(frozen=True, eq=False)
        ... class Diagonal(ur.dictionaries.Structured):
        ...     gains: jax.Array  # (m,)
        ...     shape = property(lambda self: (self.gains.shape[-1],) * 2)
        ...     synthesize = analyze = lambda self, v: self.gains * v
        ...     scale = lambda self, c: Diagonal(self.gains * c)
        >>> D = Diagonal(jnp.array([1.0, 3.0]))
        >>> (D @ jnp.ones(2)).tolist(), ur.dictionaries.dense(D / 2).tolist()
        ([1.0, 3.0], [[0.5, 0.0], [0.0, 1.5]])
        >>> float(ur.theory.mutual_coherence(D))
        0.0
    """

    __array_ufunc__ = None  # a numpy array on the left defers to __rmatmul__

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        checks.register(KINDS, cls, "dictionary")

    @classmethod
    def _of(cls, *fields: Any) -> Self:
        """A dictionary of checked fields, which may have a batch axis; `__init__` does not run."""
        self = object.__new__(cls)
        vars(self).update(zip(cls.__dataclass_fields__, fields))  # type: ignore[attr-defined]
        return self

    # What a subclass defines

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        raise TypeError(f"{type(self).__name__} does not define shape")

    def synthesize(self, x: Array) -> Array:
        """D x for one code, (d,) -> (m,)."""
        raise TypeError(f"{type(self).__name__} does not define synthesize")

    def analyze(self, r: Array) -> Array:
        """D' r for one signal, (m,) -> (d,): the exact adjoint of `synthesize`."""
        raise TypeError(f"{type(self).__name__} does not define analyze")

    def scale(self, c: ArrayLike) -> "Structured":
        """c D, with a scalar c."""
        raise TypeError(f"{type(self).__name__} does not define scale")

    @property
    def ndim(self) -> int:
        """2, plus 1 for each axis over which `vmap` maps a batch of dictionaries."""
        return 2

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the floating leaves; the default float if there are none."""
        return checks.common_dtype(self)

    def scale_columns(self, c: Array) -> "Structured":
        """D diag(c), with c of shape (d,)."""
        return Rescaled(self, c)

    def normalized(self) -> tuple["Structured", Array]:
        """The dictionary with unit atoms, and the norms, (d,)."""
        norms = self.column_norms()
        # If the inverse of a norm is out of the range of the dtype, the norm counts as infinite.
        return self.scale_columns(1 / norms), jnp.where(1 / norms > 0, norms, jnp.inf)

    def column_norms(self) -> Array:
        """Euclidean norms of the atoms, (d,)."""
        return norm(dense(self), 0)

    def spectral_norm(self) -> Array:
        """norm(D, 2), or an upper bound if the exact value would need the matrix."""
        return largest_singular_value(dense(self))

    def entries(self) -> Array:
        """An array that holds every entry of D at least once."""
        return dense(self)

    def magnitudes(self) -> "Operator":
        """|D|, entry by entry, or a dictionary with entries at least as large."""
        return jnp.abs(dense(self))

    @property
    def inner_terms(self) -> int:
        """How many terms the sums of D x and D'r have in excess of the d and m terms of a matrix.

        The rounding error of a sum of n terms is at most n eps times the product of `magnitudes`
        with |x| or |r|.
        """
        return 0

    def closed_form(self, ridge: ArrayLike) -> "Operator | None":
        """W of `theory.frobenius_weights` in a structured form; None if W needs the matrix."""
        return None

    @property
    def cuts_atoms(self) -> bool:
        """Whether a border cuts atoms, so that atoms of a group differ; theory refuses such a D."""
        return False

    @property
    def groups(self) -> tuple[int, ...]:
        """Shape of the thresholds for `spread`, one per group of atoms; empty without groups."""
        return (self.shape[1] // 2,) if self.is_complex else ()

    def spread(self, theta: ArrayLike) -> ArrayLike:
        """Repeat values of shape `groups` over the atoms, (d,); keep values of other shapes."""
        own = self.is_complex and np.shape(theta) == self.groups
        return jnp.repeat(jnp.asarray(theta), 2) if own else theta

    @property
    def is_complex(self) -> bool:
        """Whether entries of signals and codes are complex numbers, in pairs as in `to_pairs`."""
        return False

    @property
    def block(self) -> int:
        """The number of entries in a part of a code; a part is shrunk as a whole, by its norm."""
        return 2 if self.is_complex else 1

    def view(self, y: Any, batch: int = 0) -> tuple[Any, Callable[[Array], Array]] | None:
        """A flattened signal or code, and a function that gives a flat code the form of `y`.

        The result is None if `y` is flat already. `batch` is the number of leading axes of several
        signals.
        """
        if not self.is_complex:
            return None
        dtype = getattr(y, "dtype", None)
        dtype = np.asarray(y).dtype if dtype is None else dtype
        return (to_pairs(y), from_pairs) if jnp.issubdtype(dtype, jnp.complexfloating) else None

    def inner_products(self, W: "Dictionary") -> tuple[Array, Array]:
        """w_i . d_j for representative rows i and all j, and the mask of i = j; (rows, d) each.

        The rows must contain every value of w_i . d_j over all pairs. The atoms d_j may belong to a
        smaller dictionary that gives the same values.
        """
        return matrix_products(W, self)

    def representatives(self) -> np.ndarray:
        """Indices of atoms that represent all atoms: all d atoms, or one per group.

        One atom is enough if all atoms of a group have the same inner products with the other
        atoms, up to their order.
        """
        return np.arange(self.shape[1])

    def neighbourhood(self) -> tuple["Structured", np.ndarray]:
        """A dictionary, and the indices of its atoms that bound the inner products of D.

        For every atom of D, the magnitudes of its inner products, in some order, are at most the
        magnitudes for one of these atoms, entry by entry.
        """
        return self, self.representatives()

    def replicate(self, W: Array) -> "Operator":
        """Weights (m, n) of the representatives as weights of all atoms, (m, d)."""
        return W

    def astype(self, dtype: DTypeLike) -> "Structured":
        """The dictionary with its floating leaves in `dtype`."""
        return checks.cast(self, dtype)

    @property
    def T(self) -> "Structured":
        """D', as a dictionary."""
        return Transposed(self)

    @overload
    def __matmul__(self, x: "Structured") -> "Structured": ...
    @overload
    def __matmul__(self, x: ArrayLike) -> Array: ...
    def __matmul__(self, x: Any) -> Any:
        if isinstance(x, Structured):
            product: Any = KINDS["Composed"]
            return product(self, x)
        if isinstance(x, Result):  # sparse codes know their product
            return NotImplemented
        x = _operand(x, self, "x", "D @ x")
        _match(self.shape, x.shape, x.shape[0] if x.ndim else None, self.shape[1], "D @ x")
        return _synthesized(self, x)

    def __rmatmul__(self, r: ArrayLike) -> Array:
        r = _operand(r, self, "r", "r @ D")
        _match(self.shape, r.shape, r.shape[-1] if r.ndim else None, self.shape[0], "r @ D")
        return _analyzed(self, r)

    def __mul__(self, c: ArrayLike) -> "Structured":
        if np.ndim(c):
            raise ValueError(
                f"c D: c has shape {np.shape(c)}; expected a scalar, or try scale_columns for one "
                "per atom"
            )
        return self.scale(c)

    def __rmul__(self, c: ArrayLike) -> "Structured":
        return self * c

    def __truediv__(self, c: ArrayLike) -> "Structured":
        return self * (1 / c)


@pytree(data=("base",))
@dataclass(frozen=True, eq=False)
class Transposed(Structured):
    """D' of a structured dictionary: `D.T @ r` is `r @ D`, exactly.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 3)), 5)
        >>> D.T.shape, (D.T @ jnp.ones(5)).tolist()
        ((6, 5), [3.0, 3.0, 3.0, 3.0, 3.0, 3.0])
    """

    base: Structured

    @property
    def shape(self) -> tuple[int, int]:
        m, d = self.base.shape
        return d, m

    @property
    def ndim(self) -> int:
        return self.base.ndim

    def synthesize(self, x: Array) -> Array:
        return self.base.analyze(x)

    def analyze(self, r: Array) -> Array:
        return self.base.synthesize(r)

    @property
    def is_complex(self) -> bool:
        return self.base.is_complex

    def scale(self, c: ArrayLike) -> "Transposed":
        return Transposed(self.base.scale(c))

    def magnitudes(self) -> "Operator":
        return self.base.magnitudes().T

    @property
    def inner_terms(self) -> int:
        return self.base.inner_terms

    @property
    def T(self) -> Structured:
        return self.base


class Derived:
    """A dictionary with the shape, signals and codes of its `base`, and one more factor."""

    base: Any  # a `Structured` or an array

    @property
    def shape(self) -> tuple[int, int]:
        m, d = self.base.shape[-2:]
        return m, d

    @property
    def ndim(self) -> int:
        return self.base.ndim

    @property
    def is_complex(self) -> bool:
        return isinstance(self.base, Structured) and self.base.is_complex

    @property
    def block(self) -> int:
        return self.base.block if isinstance(self.base, Structured) else 1

    def view(self, y: Any, batch: int = 0) -> tuple[Any, Callable[[Array], Array]] | None:
        return self.base.view(y, batch) if isinstance(self.base, Structured) else None

    @property
    def inner_terms(self) -> int:
        return (self.base.inner_terms if isinstance(self.base, Structured) else 0) + 1


@pytree(data=("base", "weights"))
@dataclass(frozen=True, eq=False)
class Rescaled(Derived, Structured):
    """D diag(weights), for a structured dictionary that cannot absorb the weights.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((1, 1, 2)), 3)
        >>> ur.dictionaries.dense(ur.dictionaries.Rescaled(D, jnp.array([1.0, 5.0]))).tolist()
        [[1.0, 0.0], [1.0, 5.0], [0.0, 5.0]]
    """

    base: Structured
    weights: Array  # (d,)

    def synthesize(self, x: Array) -> Array:
        return self.base.synthesize(self.weights * x)

    def analyze(self, r: Array) -> Array:
        return self.weights * self.base.analyze(r)

    def scale(self, c: ArrayLike) -> "Rescaled":
        return Rescaled(self.base, self.weights * c)

    def scale_columns(self, c: Array) -> "Rescaled":
        return Rescaled(self.base, self.weights * c)

    def column_norms(self) -> Array:
        return jnp.abs(self.weights) * self.base.column_norms()

    @property
    def groups(self) -> tuple[int, ...]:
        return self.base.groups if self.block > 1 else ()

    def spread(self, theta: ArrayLike) -> ArrayLike:
        return self.base.spread(theta) if self.block > 1 else theta

    def magnitudes(self) -> "Operator":
        return scale_columns(self.base.magnitudes(), jnp.abs(self.weights))


# The type that `as_dictionary` returns and that results hold.
Operator = TypeAliasType("Operator", Array | Structured)
# The type that functions of the library take for D or W.
Dictionary = TypeAliasType("Dictionary", Array | Structured | np.ndarray)
KNOWN[Dictionary] = matrix_or(Structured)


@checked
def dense(D: Structured | ArrayLike) -> Array:
    """The matrix of a dictionary, (m, d); a plain array is returned unchanged.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.array([[[1.0, 2.0]]]), 3)
        >>> ur.dictionaries.dense(D).tolist()
        [[1.0, 0.0], [2.0, 1.0], [0.0, 2.0]]
    """
    if not isinstance(D, Structured):
        return jnp.asarray(D)
    m, d = D.shape
    checks.announce((m, d), D.dtype, "the matrix of a structured dictionary", "dense")
    return _dense(D)


@program()
def _dense(D: Structured) -> Array:
    m, d = D.shape
    return jnp.eye(m, dtype=D.dtype) @ D if m < d else D @ jnp.eye(d, dtype=D.dtype)


@checked
@program()
def column_norms(D: Dictionary) -> Array:
    """Euclidean norms of the atoms, (d,).

    Example:
        >>> ur.dictionaries.column_norms(jnp.array([[3.0, 0.0], [4.0, 2.0]])).tolist()
        [5.0, 2.0]
    """
    return D.column_norms() if isinstance(D, Structured) else norm(D, 0)


def scale_columns(D: Dictionary, c: Array) -> Operator:
    """D diag(c): atom j is multiplied by c_j, with c of shape (d,)."""
    return D.scale_columns(c) if isinstance(D, Structured) else jnp.asarray(D * c[None, :])


def matrix_products(W: Dictionary, D: Dictionary) -> tuple[Array, Array]:
    """w_i . d_j and the mask of i = j, (d, d) each, computed as one product of the matrices."""
    d = D.shape[1]
    checks.announce((d, d), D.dtype, "the matrix of all inner products", "inner_products")
    with jax.default_matmul_precision("highest"):
        return dense(W).T @ dense(D), jnp.eye(d, dtype=bool)


@program()
def _synthesized(D: Structured, x: Any) -> Array:
    D, x = _promoted(D, x)
    return D.synthesize(x) if x.ndim == 1 else jax.vmap(D.synthesize, 1, 1)(x)


@program()
def _analyzed(D: Structured, r: Any) -> Array:
    D, r = _promoted(D, r)
    return D.analyze(r) if r.ndim == 1 else jax.vmap(D.analyze)(r)


def _promoted(D: Structured, v: Array) -> tuple[Structured, Array]:
    if D.dtype == v.dtype:
        return D, v
    dtype = checks.common_dtype(D, v)
    return D.astype(dtype), v.astype(dtype)


def _operand(v: Any, D: Structured, name: str, where: str) -> Array | np.ndarray:
    """A real array; a numpy array of floats stays in numpy, as compiled products accept it.

    Raises:
        TypeError: the value is not an array of reals.
    """
    if isinstance(v, jax.Array) and v.dtype.kind in "biu":
        return v
    v = checks.as_array(v)
    plain = isinstance(v, np.ndarray) and not np.ma.isMaskedArray(v)
    if not plain or v.dtype.kind not in "biuf" or v.dtype.itemsize > 8:
        return checks.as_float(v, name, where)
    if v.dtype.kind != "f":
        return v.astype(D.dtype)  # before JAX converts 64 bits to 32
    return v


def _match(shape, got, length, expected, what: str) -> None:
    if length != expected or len(got) > 2:
        raise ValueError(
            f"{what}: D has shape {shape} but the operand has shape {got}; expected length "
            f"{expected}"
        )
