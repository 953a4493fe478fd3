"""Functions of a dictionary: a plain array is answered here, a structured one answers itself."""

from typing import Any, overload

import jax.numpy as jnp
import numpy as np

from unrolled._arguments import checked
from unrolled._checks import Array, ArrayLike
from unrolled._numbers import exponent, largest_singular_value, norm, times_power
from unrolled._program import program
from unrolled.dictionaries._base import (
    Dictionary,
    Operator,
    Structured,
    matrix_products,
    scale_columns,
)
from unrolled.dictionaries._operands import as_dictionary, nonzero_atoms


@checked
@program()
def normalized(D: Dictionary) -> tuple[Operator, Array]:
    """As `normalize`, but traceable: it does not check the norms, and a zero atom gives nan.

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
    return scale_columns(scaled, 1 / norms), times_power(norms, k[0])


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
        D_unit, of the kind of D, and norms, (d,).

    Raises:
        ValueError: an atom is zero, or its norm is above the range of the dtype (the message lists
            which).

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
    """norm(D, 2), rounded up a little so that 1 / norm^2 is a safe step.

    For large structured dictionaries it is an upper bound.

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
    """Thresholds against the codes of D: one per group of atoms becomes one per atom.

    The groups of a `Conv` are its filters; any other shape is returned as it is.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 3)), 5)
        >>> ur.dictionaries.spread(D, jnp.array([0.1, 0.2])).shape
        (6,)
    """
    return D.spread(theta) if isinstance(D, Structured) else theta


@checked
def threshold_shapes(D: Dictionary) -> tuple[tuple[int, ...], ...]:
    """Shapes that `spread` takes: one threshold for all atoms, one per atom, one per group.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 3)), 5)
        >>> ur.dictionaries.threshold_shapes(D)
        ((), (6,), (2,))
    """
    groups = D.groups if isinstance(D, Structured) else ()
    return (), (D.shape[-1],), *((groups,) if groups else ())


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

    The entries of a `Composed`, `Sparse` or wrapped `Conv` are then at least those of |D|.

    Example:
        >>> ur.dictionaries.magnitudes(jnp.array([[1.0, -2.0]])).tolist()
        [[1.0, 2.0]]
    """
    return D.magnitudes() if isinstance(D, Structured) else jnp.abs(D)


@checked
def inner_terms(D: Dictionary) -> int:
    """How many terms the sums of D x and D'r have above those of a matrix, d and m.

    With `magnitudes` they bound the rounding of products, n eps of the magnitudes for n terms.

    Example:
        >>> D = ur.dictionaries.Composed(jnp.ones((2, 3)), jnp.ones((3, 4)))
        >>> ur.dictionaries.inner_terms(D), ur.dictionaries.inner_terms(jnp.ones((2, 4)))
        (3, 0)
    """
    return D.inner_terms if isinstance(D, Structured) else 0


@checked
def cuts_atoms(D: Dictionary) -> bool:
    """Whether atoms of one group differ because a border cuts them.

    Example:
        >>> filters = jnp.ones((2, 1, 3))
        >>> ur.dictionaries.cuts_atoms(ur.dictionaries.Conv(filters, 5, boundary="zero"))
        True
    """
    return isinstance(D, Structured) and D.cuts_atoms


@checked
def representatives(D: Dictionary) -> np.ndarray:
    """Indices of atoms that stand for all: all d of them, or one per group.

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

    For matrices the rows are all atoms: d x d by nature. For two shift-invariant `Conv` of the same
    geometry they are the corner atoms of every filter, which meet every relative shift.

    Example:
        >>> D = jnp.array([[1.0, 0.6], [0.0, 0.8]])
        >>> products, own = ur.dictionaries.inner_products(D, D)
        >>> round(float(jnp.abs(jnp.where(own, 0, products)).max()), 3)
        0.6
    """
    if isinstance(D, Structured):
        return D.inner_products(W)
    return matrix_products(W, D)
