"""The checks at the door: dictionaries, and what is passed in along with them."""

import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries._base import Structured, column_norms


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
        cuts = isinstance(D, Structured) and D.cuts_atoms
        cut = ' (boundary "zero" cuts the atoms at the border)' if cuts else ""
        raise ValueError(
            f"{where}: atoms have norms in [{low:.6g}, {high:.6g}]{cut}; expected 1 within {tolerance:g}, "
            "try dictionaries.normalize and rescale the codes by the norms"
        )
