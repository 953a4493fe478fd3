"""Checks of dictionaries, chains and signals, and functions of a dictionary. For a plain array, the
functions of this module compute the result; for a structured dictionary, they call its methods.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, DTypeLike, checked, program
from unrolled._base.numbers import exponent, largest_singular_value, norm, times_power
from unrolled.dictionaries import _base
from unrolled.dictionaries._base import Dictionary, Operator, Structured

__all__ = [
    "as_chain",
    "as_dictionary",
    "magnitudes",
    "normalize",
    "spectral_norm",
    "spread",
]


# The theory accepts atoms whose norms differ from 1 by at most this number, which is well above the
# rounding of float32.
_UNIT_TOLERANCE = 1e-4
# A pseudo-inverse cuts an atom if more than this share of the norm of the atom lies outside of the
# span that the pseudo-inverse keeps.
_OUTSIDE = 0.1


def as_dictionary(
    D: Dictionary | ArrayLike, where: str, name: str = "D", on_host: bool = False
) -> Operator:
    """A dictionary in floating point, (m, d) with m and d at least 1.

    Args:
        D: a `Structured`, or an argument of `jnp.asarray`.
        where: the name of the caller, for messages.
        name: the name of the dictionary, for messages.
        on_host: whether known numbers that are not in an array of JAX stay in numpy.

    Raises:
        TypeError: D is complex, or not numeric, or on_host is not a bool.
        ValueError: D is not 2-D, is a batch of dictionaries, has a zero dimension, or has a known
            entry that is not finite.

    Example:
        >>> ur.dictionaries.as_dictionary([[1, 2], [3, 4]], "caller").dtype
        dtype('float32')
    """
    raw, on_host = D, checks.as_bool(on_host, "on_host", where)
    if not isinstance(D, Structured):
        D = (checks.on_host_or_device if on_host else checks.as_float)(D, name, where)
        if D.ndim != 2:
            raise ValueError(
                f"{where}: {name} has shape {D.shape}; expected (m, d), atoms in columns"
            )
    elif D.ndim != 2:
        raise ValueError(
            f"{where}: {name} is a batch of dictionaries, {type(D).__name__} with {D.ndim} axes; "
            "expected one, (m, d), try jax.vmap over the batch"
        )
    if 0 in D.shape:
        raise ValueError(
            f"{where}: {name} has shape {D.shape}; expected at least one row and one column"
        )
    # Check the given D: inside jit, an array made from a known numpy array is traced.
    checks.finite(raw if isinstance(raw, np.ndarray) else D, name, where)
    return D


def as_chain(Ds: Iterable[Dictionary], where: str) -> tuple[Operator, ...]:
    """The dictionaries of a chain in floating point, (d_{j-1}, d_j) each.

    Args:
        Ds: the dictionaries; the first is the dictionary of the signals.
        where: the name of the caller, for messages.

    Raises:
        TypeError: Ds is not a sequence, or `as_dictionary` refuses an entry.
        ValueError: Ds is one dictionary, there is no dictionary, or neighbouring shapes do not
            fit.

    Example:
        >>> Ds = ur.dictionaries.as_chain([jnp.ones((2, 3)), jnp.ones((3, 4))], "caller")
        >>> [D.shape for D in Ds]
        [(2, 3), (3, 4)]
    """
    if isinstance(Ds, Array | Structured | np.ndarray) and Ds.ndim == 2:
        raise ValueError(
            f"{where}: Ds is one dictionary of shape {Ds.shape}; expected a sequence of them, "
            "try [D]"
        )
    if not isinstance(Ds, Iterable) or (isinstance(Ds, Array | np.ndarray) and not Ds.ndim):
        raise TypeError(
            f"{where}: expected a sequence of dictionaries, got {type(Ds).__name__}; try [D]"
        )
    chain = tuple(as_dictionary(D, where) for D in Ds)
    if not chain:
        raise ValueError(f"{where}: expected at least one dictionary, got none")
    kind, shapes = shapes_of(chain)
    for j, (left, right) in enumerate(zip(shapes, shapes[1:]), start=1):
        if left[1] != right[0]:
            raise ValueError(
                f"{where}: D_{j} has {kind}shape {left} but D_{j + 1} has {kind}shape {right}; "
                "the columns of one must be as many as the rows of the next"
            )
    return chain


def is_complex(D: Any) -> bool:
    """Whether entries of signals and codes of D are complex numbers, in pairs.

    Example:
        >>> from unrolled.dictionaries import is_complex
        >>> is_complex(ur.dictionaries.Complex.of(jnp.eye(2))), is_complex(jnp.eye(2))
        (True, False)
    """
    return isinstance(D, Structured) and D.is_complex


def shapes_of(Ds: Iterable[Dictionary]) -> tuple[str, list[tuple[int, int]]]:
    """ "complex " and the complex shapes, if one of the dictionaries is complex; "" and the shapes.

    All dictionaries must then map pairs.
    """
    Ds = tuple(Ds)
    g = 2 if any(map(is_complex, Ds)) and all(block_of(D) == 2 for D in Ds) else 1
    shapes = [(D.shape[0] // g, D.shape[1] // g) for D in Ds]
    return "complex " if g == 2 else "", shapes


@checked
def check_batch(D: Dictionary, Y: ArrayLike, X: ArrayLike | None, where: str) -> None:
    """Raise ValueError unless Y has signals of D and X, if given, one code per signal.

    Args:
        D: (m, d).
        Y: (batch, m), with at least one signal.
        X: (batch, d), or None.
        where: the name of the caller, for messages.

    Raises:
        ValueError: the shapes differ from the shapes above, or the batch is empty.

    Example:
        >>> ur.dictionaries.check_batch(np.ones((2, 3)), np.ones((5, 2)), np.ones((5, 3)), "caller")
    """
    m, d = D.shape
    shape, codes = np.shape(Y), None if X is None else np.shape(X)
    fits = len(shape) == 2 and shape[0] > 0 and shape[1] == m
    if not fits or codes not in (None, (shape[0], d)):
        got, expected = ("", "") if X is None else (f" and X {codes}", f" and (batch, {d})")
        expected += in_parts(D, d) if X is not None else ""
        some = ", with at least one signal" if 0 in shape[:1] else ""
        raise ValueError(
            f"{where}: Y has shape {shape}{got}; expected (batch, {m}){expected}{some}"
            f"{checks.flattened('Y', shape)}"
        )


def operands(
    D: Dictionary, y: ArrayLike, where: str, *, params: Any = ()
) -> tuple[Operator, Array, Any]:
    """D, y and params, checked against each other and brought to one dtype.

    Args:
        D: (m, d).
        y: (m,), one signal.
        where: the name of the caller, for messages.
        params: a tree of arrays that takes part in the common dtype.

    Raises:
        TypeError: D or y is complex, or not numeric.
        ValueError: `as_dictionary` refuses D, or y is not one signal of length m (the message says
            if D or y looks transposed or batched).

    Example:
        >>> D, y, _ = ur.dictionaries.operands(jnp.ones((2, 3)), [1, 2], "caller")
        >>> D.dtype == y.dtype
        True
    """
    D = as_dictionary(D, where)
    y = checks.as_float(y, "y", where)
    m, d = D.shape
    if y.shape != (m,):
        kind, ((rows, columns),) = shapes_of([D])
        shape = (y.shape[0] // 2,) if kind and y.ndim == 1 else y.shape
        raise ValueError(
            f"{where}: D has {kind}shape {(rows, columns)} but y has {kind}shape {shape}; y must "
            f"have shape ({rows},). {_hint(D, y)}"
        )
    checks.arrays(params, "params", where)
    dtype = checks.common_dtype(D, y, params)
    return checks.cast(D, dtype), y.astype(dtype), checks.cast(params, dtype)


def _hint(D: Dictionary, y: Array) -> str:
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


@checked
def nonzero_atoms(norms: Array | np.ndarray, where: str) -> None:
    """Raise ValueError with a list of the zero atoms, if the norms are known.

    The function also raises if a norm exceeds the range of the dtype.

    Example:
        >>> ur.dictionaries.nonzero_atoms(jnp.array([1.0, 0.0]), "caller")
        Traceback (most recent call last):
        ValueError: caller: atoms [1] are zero; drop them, e.g. D[:, norms > 0]
    """
    if checks.is_concrete(norms) and not (np.asarray(norms) > 0).all():
        zero = np.flatnonzero(~(np.asarray(norms) > 0))[:8].tolist()
        raise ValueError(f"{where}: atoms {zero} are zero; drop them, e.g. D[:, norms > 0]")
    if checks.is_concrete(norms) and np.isinf(np.asarray(norms)).any():
        large = np.flatnonzero(np.isinf(np.asarray(norms)))[:8].tolist()
        raise ValueError(
            f"{where}: the norms of atoms {large} are above the range of {norms.dtype}; divide D"
        )


@checked
def kept_atoms(atoms: Array, images: Array, where: str) -> Array:
    """Which atoms a pseudo-inverse keeps, (d,); ValueError if an atom is known to be cut.

    A pseudo-inverse cuts singular values that are small relative to the largest singular value.
    Hence a pseudo-inverse cuts small atoms.

    Args:
        atoms: (m, d).
        images: (m, d), the projections of the atoms onto the span that the pseudo-inverse keeps.
        where: the name of the caller, for messages.

    Example:
        >>> ur.dictionaries.kept_atoms(jnp.eye(2), jnp.diag(jnp.array([1.0, 0.0])), "f")
        Traceback (most recent call last):
        ValueError: f: atoms [1] are too small next to others in float32; try unit atoms, or float64
    """
    checks.same_shape(where, atoms=atoms, images=images)
    kept = _kept(atoms, images)
    all_kept(kept, atoms.dtype, where)
    return kept


@program()
def _kept(atoms: Array, images: Array) -> Array:
    size = jnp.max(jnp.abs(atoms), axis=0, keepdims=True)  # the square of a size may be 0
    return norm((atoms - images) / size, axis=0) <= _OUTSIDE * norm(atoms / size, axis=0)


@checked
def all_kept(kept: ArrayLike, dtype: DTypeLike, where: str) -> None:
    """Raise ValueError with a list of the atoms that a pseudo-inverse does not keep, if known.

    Args:
        kept: (d,), bool.
        dtype: the dtype in which the atoms were too small.
        where: the name of the caller, for messages.

    Example:
        >>> ur.dictionaries.all_kept(np.array([True, True]), np.float32, "caller")
    """
    if checks.is_concrete(kept) and not np.asarray(kept).all():
        lost = np.flatnonzero(~np.asarray(kept))[:8].tolist()
        raise ValueError(
            f"{where}: atoms {lost} are too small next to others in {np.dtype(dtype)}; try unit "
            f"atoms{checks.or_float64(dtype)}"
        )


@checked
def unit_atoms(D: Dictionary, where: str, tolerance: float = _UNIT_TOLERANCE) -> None:
    """Raise ValueError if a known D has atoms off unit norm; the theory assumes unit norm.

    Example:
        >>> ur.dictionaries.unit_atoms(ur.dictionaries.identity_hadamard(4), "caller")
    """
    dense = checks.is_concrete(D) and not isinstance(D, Structured)  # numpy needs no compiler
    if dense:  # within the rounding of the dtype: half precision has three digits
        norms = np.linalg.norm(np.asarray(D, np.float64), axis=0).astype(D.dtype)
    else:
        norms = _base.column_norms(D)
    unit_norms(D, norms, where, tolerance)


@checked
def unit_norms(
    D: Dictionary, norms: Array | np.ndarray, where: str, tolerance: float = _UNIT_TOLERANCE
) -> None:
    """`unit_atoms` with given norms of the atoms.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(4)
        >>> ur.dictionaries.unit_norms(D, ur.dictionaries.column_norms(D), "caller")
    """
    nonzero_atoms(norms, where)
    if checks.is_concrete(norms) and (np.abs(np.asarray(norms) - 1) > tolerance).any():
        low, high = float(norms.min()), float(norms.max())
        cuts = isinstance(D, Structured) and D.cuts_atoms
        cut = ' (boundary "zero" cuts the atoms at the border)' if cuts else ""
        raise ValueError(
            f"{where}: atoms have norms in [{low:.6g}, {high:.6g}]{cut}; expected 1 within "
            f"{tolerance:g}, try dictionaries.normalize and rescale the codes by the norms"
        )


@checked
@program()
def normalized(D: Dictionary) -> tuple[Operator, Array]:
    """A traceable `normalize`, which does not check the norms; a zero atom gives nan.

    Example:
        >>> D, norms = jax.jit(ur.dictionaries.normalized)(jnp.array([[3.0, 0.0], [4.0, 2.0]]))
        >>> norms.tolist()
        [5.0, 2.0]
    """
    if isinstance(D, Structured):
        return D.normalized()
    k = exponent(D, 0)
    scaled = times_power(D, -k)  # 1 / norm of these atoms is in the range of the dtype
    norms = norm(scaled, 0)
    return _base.scale_columns(scaled, 1 / norms), times_power(norms, k[0])


@overload
def normalize(D: Array | np.ndarray) -> tuple[Array, Array]: ...
@overload
def normalize(D: Structured) -> tuple[Structured, Array]: ...
@overload
def normalize(D: Dictionary) -> tuple[Operator, Array]: ...
def normalize(D: Dictionary) -> tuple[Operator, Array]:
    """Unit-norm atoms and the norms: D = D_unit diag(norms), so x_unit = norms x.

    For `Conv` the filters are normalised; with boundary "zero" the cut border atoms keep norms
    below 1.

    Returns:
        D_unit, of the same kind as D, and norms, (d,).

    Raises:
        ValueError: an atom is zero, or its norm exceeds the range of the dtype (the message lists
            these atoms).

    Example:
        >>> D, norms = ur.dictionaries.normalize(jnp.array([[3.0, 0.0], [4.0, 2.0]]))
        >>> norms.tolist()
        [5.0, 2.0]
    """
    unit, norms = normalized(as_dictionary(D, "normalize"))
    nonzero_atoms(norms, "normalize")
    return unit, norms


@checked
@program()
def spectral_norm(D: Dictionary) -> Array:
    """norm(D, 2), rounded up a little so that 1 / norm^2 is a safe step size.

    For large structured dictionaries the result is an upper bound.

    Example:
        >>> D = ur.dictionaries.identity_hadamard(16)
        >>> round(float(ur.dictionaries.spectral_norm(D)) ** 2, 3)
        2.0
    """
    return D.spectral_norm() if isinstance(D, Structured) else largest_singular_value(D)


@overload
def spread(D: Dictionary, theta: Array) -> Array: ...
@overload
def spread(D: Dictionary, theta: ArrayLike) -> ArrayLike: ...
@checked
def spread(D: Dictionary | Any, theta: ArrayLike) -> ArrayLike:
    """Thresholds for the codes of D: the threshold of a group is repeated for all of its atoms.

    The groups of a `Conv` are its filters. Thresholds of other shapes are returned unchanged.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 3)), 5)
        >>> ur.dictionaries.spread(D, jnp.array([0.1, 0.2])).shape
        (6,)
    """
    return D.spread(theta) if isinstance(D, Structured) else theta


@checked
def block_of(D: Dictionary | Any) -> int:
    """The number of entries in a part of a code of D; 1 if D is an array.

    Example:
        >>> ur.dictionaries.block_of(ur.dictionaries.Joint(jnp.eye(2), 3))
        3
    """
    return D.block if isinstance(D, Structured) else 1


def in_parts(D: Dictionary | Any, d: int) -> str:
    """The parts of a code of d entries, in words for a message; "" if there are no parts.

    Example:
        >>> from unrolled.dictionaries import in_parts
        >>> in_parts(ur.dictionaries.Joint(jnp.eye(2), 3), 6)
        ', 2 parts of 3 entries'
    """
    g = block_of(D)
    return f", {d // g} parts of {g} entries" if g > 1 else ""


def refuse_parts(D: Dictionary | Any, where: str, instead: str) -> None:
    """Raise ValueError if codes of D come in parts, because `where` cannot handle parts.

    Example:
        >>> D = ur.dictionaries.Joint(jnp.eye(2), 3)
        >>> ur.dictionaries.refuse_parts(D, "f", "try g")
        Traceback (most recent call last):
        ValueError: f: codes of Joint come in parts of 3 entries, which are 0 together; try g
    """
    if block_of(D) > 1:
        raise ValueError(
            f"{where}: codes of {type(D).__name__} come in parts of {block_of(D)} entries, which "
            f"are 0 together; {instead}"
        )


def as_flat(
    D: Dictionary | Any, y: Any, batch: int = 0
) -> tuple[Any, Callable[[Array], Array] | None]:
    """A flattened signal or code of D, and a function that shows a flat code in the form of y.

    The function is None if y is flat.

    Args:
        D: (m, d).
        y: any value; a signal or code of D in another form is flattened, and other values stay
            unchanged.
        batch: the number of leading axes, for several signals.

    Example:
        >>> D = ur.dictionaries.Joint(jnp.eye(2), 3)
        >>> y, shown = ur.dictionaries.as_flat(D, np.ones((2, 3)))
        >>> y.shape, shown(jnp.ones(6)).shape
        ((6,), (2, 3))
    """
    view = D.view(y, batch) if isinstance(D, Structured) else None
    return (y, None) if view is None else view


def flat_batch(D: Any, batch: Any) -> Any:
    """Signals and codes, (Y, X, ...) or Y alone, in the flat form of `as_flat`.

    Args:
        D: (m, d), or the dictionaries of a chain.
        batch: signals with a leading axis, or a tuple of signals and codes; the codes are None if
            they are unknown, and a tuple for a chain.

    Example:
        >>> D = ur.dictionaries.Joint(jnp.eye(2), 3)
        >>> Y, X = ur.dictionaries.flat_batch(D, (np.ones((5, 2, 3)), None))
        >>> Y.shape
        (5, 6)
    """
    Ds = tuple(D) if isinstance(D, tuple | list) else (D,)
    if all(block_of(Dj) == 1 for Dj in Ds):
        return batch
    if not isinstance(batch, tuple):
        return as_flat(Ds[0], batch, 1)[0]
    Y, X, *own = batch
    if type(X) is tuple:  # a `Withheld` is flat
        X = tuple(as_flat(Dj, Xj, 1)[0] for Dj, Xj in zip(Ds[len(Ds) - len(X) :], X))
    elif X is not None and not isinstance(X, tuple):
        X = as_flat(Ds[-1], X, 1)[0]
    return as_flat(Ds[0], Y, 1)[0], X, *own


@checked
def threshold_shapes(D: Dictionary) -> tuple[tuple[int, ...], ...]:
    """Shapes that `spread` accepts: one threshold for all atoms, one per atom, one per group.

    If codes come in parts, a part has one threshold, and atoms have no separate thresholds.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 3)), 5)
        >>> ur.dictionaries.threshold_shapes(D)
        ((), (6,), (2,))
    """
    groups = D.groups if isinstance(D, Structured) else ()
    each = [(D.shape[-1],)] if block_of(D) == 1 else []
    return (), *each, *([groups] if groups else [])


@checked
def entries(D: Dictionary) -> Array:
    """An array that holds every entry of D at least once; for a `Conv`, its filters.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.array([[[1.0, -2.0]]]), 100)
        >>> float(jnp.abs(ur.dictionaries.entries(D)).max())
        2.0
    """
    return D.entries() if isinstance(D, Structured) else jnp.asarray(D)


@checked
def magnitudes(D: Dictionary) -> Operator:
    """|D|, entry by entry; for a product of factors, the product of their magnitudes.

    For a `Composed`, a `Sparse` or a wrapped `Conv`, the entries are at least the entries of |D|,
    and may be larger.

    Example:
        >>> ur.dictionaries.magnitudes(jnp.array([[1.0, -2.0]])).tolist()
        [[1.0, 2.0]]
    """
    return D.magnitudes() if isinstance(D, Structured) else jnp.abs(D)


@checked
def inner_terms(D: Dictionary) -> int:
    """How many terms the sums of D x and D'r have in excess of the d and m terms of a matrix.

    The rounding error of a sum of n terms is at most n eps times the product of `magnitudes` with
    |x| or |r|.

    Example:
        >>> D = ur.dictionaries.Composed(jnp.ones((2, 3)), jnp.ones((3, 4)))
        >>> ur.dictionaries.inner_terms(D), ur.dictionaries.inner_terms(jnp.ones((2, 4)))
        (3, 0)
    """
    return D.inner_terms if isinstance(D, Structured) else 0


@checked
def cuts_atoms(D: Dictionary) -> bool:
    """Whether a border cuts atoms, so that atoms of one group differ.

    Example:
        >>> filters = jnp.ones((2, 1, 3))
        >>> ur.dictionaries.cuts_atoms(ur.dictionaries.Conv(filters, 5, boundary="zero"))
        True
    """
    return isinstance(D, Structured) and D.cuts_atoms


@checked
def representatives(D: Dictionary) -> np.ndarray:
    """Indices of atoms that represent all atoms: all d atoms, or one per group.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 3)), 5, boundary="circular")
        >>> ur.dictionaries.representatives(D).tolist()
        [0, 5]
    """
    return D.representatives() if isinstance(D, Structured) else np.arange(D.shape[1])


@checked
def replicate(D: Dictionary, W: Array) -> Operator:
    """Weights (m, n) of the `representatives` of D as weights of all atoms, (m, d).

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 3)), 5, boundary="circular")
        >>> ur.dictionaries.replicate(D, jnp.ones((5, 2))).shape
        (5, 10)
    """
    shape = D.shape[0], len(representatives(D))
    if np.shape(W) != shape:
        raise ValueError(f"replicate: W has shape {np.shape(W)}; expected {shape}")
    return D.replicate(W) if isinstance(D, Structured) else W


@checked
@program()
def inner_products(W: Dictionary, D: Dictionary) -> tuple[Array, Array]:
    """w_i . d_j for representative rows i and all j, and the mask of i = j; (rows, d) each.

    For matrices the rows are all atoms, so the results are d x d. For two shift-invariant `Conv`
    dictionaries of the same geometry, the rows are the corner atoms of every filter, which meet the
    other atoms under every relative shift.

    Example:
        >>> D = jnp.array([[1.0, 0.6], [0.0, 0.8]])
        >>> products, own = ur.dictionaries.inner_products(D, D)
        >>> round(float(jnp.abs(jnp.where(own, 0, products)).max()), 3)
        0.6
    """
    if isinstance(D, Structured):
        return D.inner_products(W)
    return _base.matrix_products(W, D)
