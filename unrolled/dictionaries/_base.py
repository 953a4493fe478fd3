"""What every dictionary answers, plain array or structured, and the checks at the door."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import widened


def pytree(*, data: tuple[str, ...], static: tuple[str, ...] = ()):
    """Register a frozen dataclass as a pytree whose rebuilding skips `__init__`.

    `vmap` and `tree.map` rebuild a node with leaves that are not arrays; the checks of the
    constructor are for users.
    """

    def register(cls):
        def flatten(self):
            return [(GetAttrKey(n), getattr(self, n)) for n in data], tuple(
                getattr(self, n) for n in static
            )

        def unflatten(aux, children):
            self = object.__new__(cls)
            for name, value in zip(data + static, (*children, *aux)):
                object.__setattr__(self, name, value)
            return self

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
        return cls

    return register


class Structured:
    """A dictionary that is not a plain array: subclasses give `shape`, `synthesize` (D x) and
    `analyze` (D' r).
    """

    __array_ufunc__ = None  # a numpy array on the left defers to __rmatmul__
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """(m, d)."""
        raise TypeError(f"{type(self).__name__} does not define shape")

    @property
    def dtype(self):
        return _checks.common_dtype(self)

    def synthesize(self, x: Array) -> Array:
        raise TypeError(f"{type(self).__name__} does not define synthesize")

    def analyze(self, r: Array) -> Array:
        raise TypeError(f"{type(self).__name__} does not define analyze")

    def scale(self, c: Array) -> "Structured":
        """c D."""
        raise TypeError(f"{type(self).__name__} does not define scale")

    def scale_columns(self, c: Array) -> "Structured":
        """D diag(c), with c of shape (d,)."""
        return Rescaled(self, c)

    def normalized(self) -> tuple["Structured", Array]:
        """The dictionary with unit atoms, and the norms, (d,)."""
        norms = self.column_norms()
        return self.scale_columns(1 / norms), norms

    def column_norms(self) -> Array:
        """Euclidean norms of the atoms, (d,)."""
        return jnp.linalg.norm(dense(self), axis=0)

    def spectral_norm(self) -> Array:
        """norm(D, 2), or an upper bound of it where the exact one would need the matrix."""
        return spectral_norm(dense(self))

    def astype(self, dtype) -> "Structured":
        return _checks.cast(self, dtype)

    @property
    def T(self) -> "Transposed":
        return Transposed(self)

    def __matmul__(self, x):
        if isinstance(x, Structured):
            raise TypeError(
                "D_1 @ D_2: the product of two structured dictionaries is Composed(D_1, D_2)"
            )
        x = jnp.asarray(x)
        self, x = _promoted(self, x)
        _match(self.shape, x.shape, x.shape[0] if x.ndim else None, self.shape[1], "D @ x")
        return self.synthesize(x) if x.ndim == 1 else jax.vmap(self.synthesize, 1, 1)(x)

    def __rmatmul__(self, r):
        r = jnp.asarray(r)
        self, r = _promoted(self, r)
        _match(self.shape, r.shape, r.shape[-1] if r.ndim else None, self.shape[0], "r @ D")
        return self.analyze(r) if r.ndim == 1 else jax.vmap(self.analyze)(r)

    def __mul__(self, c):
        if np.ndim(c):
            raise ValueError(
                f"c D: c has shape {np.shape(c)}; expected a scalar, or try scale_columns for one per atom"
            )
        return self.scale(c)

    def __rmul__(self, c):
        return self * c

    def __truediv__(self, c):
        return self * (1 / c)


@pytree(data=("base",))
@dataclass(frozen=True, eq=False)
class Transposed(Structured):
    """D' of a structured dictionary: `D.T @ r` is `r @ D`, exactly."""

    base: Structured

    @property
    def shape(self) -> tuple[int, int]:
        m, d = self.base.shape
        return d, m

    def synthesize(self, x: Array) -> Array:
        return self.base.analyze(x)

    def analyze(self, r: Array) -> Array:
        return self.base.synthesize(r)

    def scale(self, c: Array) -> "Transposed":
        return Transposed(self.base.scale(c))

    @property
    def T(self) -> Structured:
        return self.base


@pytree(data=("base", "weights"))
@dataclass(frozen=True, eq=False)
class Rescaled(Structured):
    """D diag(weights) of a structured dictionary that cannot take the weights in."""

    base: Structured
    weights: Array  # (d,)

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    def synthesize(self, x: Array) -> Array:
        return self.base.synthesize(self.weights * x)

    def analyze(self, r: Array) -> Array:
        return self.weights * self.base.analyze(r)

    def scale(self, c: Array) -> "Rescaled":
        return Rescaled(self.base, self.weights * c)

    def scale_columns(self, c: Array) -> "Rescaled":
        return Rescaled(self.base, self.weights * c)

    def column_norms(self) -> Array:
        return jnp.abs(self.weights) * self.base.column_norms()


def dense(D) -> Array:
    """The matrix of a dictionary, (m, d); a plain array is returned as it is."""
    if not isinstance(D, Structured):
        return jnp.asarray(D)
    m, d = D.shape
    return jnp.eye(m, dtype=D.dtype) @ D if m < d else D @ jnp.eye(d, dtype=D.dtype)


def column_norms(D) -> Array:
    """Euclidean norms of the atoms, (d,)."""
    return D.column_norms() if isinstance(D, Structured) else jnp.linalg.norm(D, axis=0)


def scale_columns(D, c: Array):
    """D diag(c): every atom times its own factor, c of shape (d,)."""
    return D.scale_columns(c) if isinstance(D, Structured) else D * c[None, :]


def normalized(D):
    """As `normalize`, without looking at values: a zero atom gives nan."""
    if isinstance(D, Structured):
        return D.normalized()
    norms = column_norms(D)
    return scale_columns(D, 1 / norms), norms


def spectral_norm(D) -> Array:
    """norm(D, 2), rounded up a little so that 1 / norm^2 is a safe step; for large structured D an
    upper bound.
    """
    if isinstance(D, Structured):
        return D.spectral_norm()
    m, d = D.shape
    wide = widened(D)
    with jax.default_matmul_precision("highest"):
        gram = wide @ wide.T if m <= d else wide.T @ wide
    return jnp.sqrt(jnp.linalg.eigvalsh(gram)[-1] * (1 + 8 * float(jnp.finfo(D.dtype).eps))).astype(
        D.dtype
    )


def spread(D, theta: Array) -> Array:
    """`theta` against the codes of D: one value per filter of a `Conv` is repeated over its
    positions.
    """
    return D.spread(theta) if isinstance(D, Structured) and hasattr(D, "spread") else theta


def normalize(D):
    """Unit-norm atoms and the norms: D = D_unit diag(norms), so x_unit = norms x.

    For `Conv` the filters are normalised; with boundary "zero" the cut border atoms keep norms
    below 1.

    Returns:
        D_unit, of the kind of D, and norms, (d,).

    Raises:
        ValueError: an atom is zero (the message lists which).
    """
    unit, norms = normalized(as_dictionary(D, "normalize"))
    nonzero_atoms(norms, "normalize")
    return unit, norms


def as_dictionary(D, where: str):
    """A dictionary in floating point: (m, d) with both at least 1; values are looked at where they
    are known.

    Raises:
        TypeError: complex, or not numeric.
        ValueError: not 2-D, a zero dimension, NaN or infinite entries.
    """
    if not isinstance(D, Structured):
        D = _checks.as_float(D, "D", where)
        if D.ndim != 2:
            raise ValueError(f"{where}: D has shape {D.shape}; expected (m, d), atoms in columns")
    if 0 in D.shape:
        raise ValueError(
            f"{where}: D has shape {D.shape}; expected at least one row and one column"
        )
    _checks.finite(D, "D", where)
    return D


def operands(D, y, where: str, *, params=()):
    """D, y and params checked against each other and brought to one dtype.

    Raises:
        ValueError: `y` is not one signal of length m (the message says when D or y looks transposed
            or batched).
    """
    D = as_dictionary(D, where)
    y = _checks.as_float(y, "y", where)
    m, d = D.shape
    if y.shape != (m,):
        raise ValueError(
            f"{where}: D has shape {(m, d)} but y has shape {y.shape}; y must have shape ({m},). {_hint(D, y)}"
        )
    dtype = _checks.common_dtype(D, y, params)
    return _checks.cast(D, dtype), y.astype(dtype), _checks.cast(params, dtype)


def _hint(D, y) -> str:
    m, d = D.shape
    if y.ndim == 1:
        return (
            "Did you pass D.T?"
            if y.shape == (d,)
            else "Is y a signal (m,) rather than a code (d,)?"
        )
    if y.ndim == 2 and y.shape[1] == m:
        return "One signal per call: use jax.vmap over the rows."
    if y.ndim == 2 and y.shape[0] == m:
        return "One signal per call: use jax.vmap with in_axes=1 over the columns."
    return "One signal per call: use jax.vmap over a batch."


def nonzero_atoms(norms: Array, where: str) -> None:
    """Raise ValueError that lists the zero atoms, where the norms are known."""
    if _checks.is_concrete(norms) and not (np.asarray(norms) > 0).all():
        zero = np.flatnonzero(~(np.asarray(norms) > 0))[:8].tolist()
        raise ValueError(f"{where}: atoms {zero} are zero; drop them, e.g. D[:, norms > 0]")


def unit_atoms(D, where: str, tolerance: float = 1e-4) -> None:
    """Raise ValueError if a known D has atoms off unit norm, as the theory assumes."""
    norms = column_norms(D)
    nonzero_atoms(norms, where)
    if _checks.is_concrete(norms) and (np.abs(np.asarray(norms) - 1) > tolerance).any():
        low, high = float(norms.min()), float(norms.max())
        cut = (
            ' (boundary "zero" cuts the atoms at the border)'
            if getattr(D, "boundary", None) == "zero"
            else ""
        )
        raise ValueError(
            f"{where}: atoms have norms in [{low:.6g}, {high:.6g}]{cut}; expected 1 within {tolerance:g}, "
            "try dictionaries.normalize and rescale the codes by the norms"
        )


def _promoted(D: Structured, v: Array):
    if D.dtype == v.dtype:
        return D, v
    dtype = _checks.common_dtype(D, v)
    return D.astype(dtype), v.astype(dtype)


def _match(shape, got, length, expected, what: str) -> None:
    if length != expected or len(got) > 2:
        raise ValueError(
            f"{what}: D has shape {shape} but the operand has shape {got}; expected length {expected}"
        )
