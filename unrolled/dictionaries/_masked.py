"""The dictionary of signals with missing entries, or with entries of different accuracy."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import norm
from unrolled.dictionaries import _base
from unrolled.dictionaries._base import Derived, Dictionary, Operator, Structured, scale_columns
from unrolled.dictionaries._operands import (
    as_dictionary,
    block_of,
    magnitudes,
    shapes_of,
    spectral_norm,
    spread,
)

__all__ = ["Masked"]


@_base.pytree(data=("base", "mask"))
@dataclass(frozen=True, eq=False, init=False)
class Masked(Derived, Structured):
    r"""diag(mask) D: the dictionary of the known entries of a signal.

    A code x of the known entries solves

    .. math:: \min_x \tfrac12 \|mask \odot (y - D x)\|^2 + lam \|x\|_1,

    which is the LASSO of `Masked(D, mask)` and the signal `jnp.where(mask, y, 0)`. In this signal
    missing entries are 0, even if they are NaN in y. `synthesize(D, x)` then fills in the missing
    entries. **The code is right only if the signal is 0 wherever the mask is 0.**

    Under `vmap` every signal can have its own mask, while D is stored once:
    `jax.vmap(lambda mask, y: ur.pursuit.lasso(Masked(D, mask), y, lam))(masks, Y)`.

    Args:
        D: (m, d), plain or structured.
        mask: (m,), True or 1 where an entry is known, False or 0 where it is missing. Other numbers
            weight the entries: for noise whose standard deviation sigma differs from entry to
            entry, pass 1 / sigma. For a complex dictionary, pass one number per complex entry; for
            a `Joint`, pass one number per row of the signals, or an array of the shape (m, g) of
            the signals.

    Masked atoms are shorter than the atoms of D, and an atom that lies only in missing entries is
    0. Functions that need unit atoms raise ValueError for masked atoms; `normalize` gives unit
    atoms if no atom is 0. Computing the norms of masked atoms requires the matrix of D.

    Raises:
        TypeError: the mask is complex or not numeric.
        ValueError: the mask has another shape, or an entry is not finite.

    Example:
        >>> D = ur.dictionaries.dct(8, 8)
        >>> mask = jnp.arange(8) != 3
        >>> M = ur.dictionaries.Masked(D, mask)
        >>> x = ur.pursuit.lasso(M, jnp.where(mask, D[:, 2], 0), 1e-3).x
        >>> float((D @ x)[3]).__round__(2), float(D[3, 2]).__round__(2)
        (-0.46, -0.46)
    """

    base: Operator
    mask: Array  # (m,)

    def __init__(self, D: Dictionary, mask: ArrayLike):
        where = "Masked"
        base = as_dictionary(D, where)
        mask = _flat(base, checks.on_host_or_device(mask, "mask", where), 0)
        mask = checks.as_float(mask, "mask", where)
        m = base.shape[0]
        if mask.shape != (m,):
            hint = "; for masks of many signals use jax.vmap" if mask.ndim == 2 else ""
            kind, ((m, d),) = shapes_of([base])
            raise ValueError(
                f"{where}: mask has shape {mask.shape} but D has {kind}shape {(m, d)}; expected "
                f"({m},), one number for each {kind}entry of a signal{hint}"
            )
        checks.finite(mask, "mask", where)
        checks.in_range(jnp.abs(mask), base.dtype, "mask", where)
        vars(self).update(base=base, mask=mask.astype(base.dtype))

    @property
    def ndim(self) -> int:
        return max(self.base.ndim, self.mask.ndim + 1)

    def synthesize(self, x: Array) -> Array:
        return self.mask * (self.base @ x)

    def analyze(self, r: Array) -> Array:
        return (self.mask * r) @ self.base

    def scale(self, c: ArrayLike) -> "Masked":
        return Masked._of(self.base * c, self.mask)

    def scale_columns(self, c: Array) -> "Masked":
        return Masked._of(scale_columns(self.base, c), self.mask)

    def column_norms(self) -> Array:
        rows = _base.dense(self.base)  # without the product that makes the masked matrix
        return norm(self.mask[:, None] * rows, 0)

    def spectral_norm(self) -> Array:
        """norm(diag(mask) D, 2); for a large D the bound max(abs(mask)) norm(D, 2)."""
        if math.prod(self.shape) <= _base.DENSE_LIMIT:
            return spectral_norm(_base.dense(self))
        return jnp.max(jnp.abs(self.mask)) * spectral_norm(self.base)

    def magnitudes(self) -> "Masked":
        return Masked._of(magnitudes(self.base), jnp.abs(self.mask))

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups of D: one threshold per filter of a `Conv`."""
        return self.base.groups if isinstance(self.base, Structured) else ()

    def spread(self, theta: ArrayLike) -> ArrayLike:
        return spread(self.base, theta)


def _flat(base: Operator, mask: Any, batch: int) -> Any:
    """The mask with one number for each real entry of a signal, if the shape of the mask fits."""
    block = block_of(base)
    if block > 1 and mask.shape[batch:] == (base.shape[0] // block,):
        known = checks.is_concrete(mask)
        return (np if known else jnp).repeat(np.asarray(mask) if known else mask, block, axis=batch)
    seen = base.view(mask, batch) if isinstance(base, Structured) else None
    return mask if seen is None else seen[0]


def known_entries(D: Operator, mask: Any, n: int, where: str) -> Any:
    """Which entries of n flat signals are known, (m,) or (n, m), from bools in any signal form.

    Raises:
        TypeError: the mask has entries other than bools.
        ValueError: the mask has another shape.
    """
    try:
        mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    except ValueError as error:
        message = f"{where}: mask has rows of different lengths; expected an array of bools"
        raise TypeError(message) from error
    if mask.dtype != bool:
        raise TypeError(f"{where}: mask has dtype {mask.dtype}; expected bool, True for known")
    m, shape = D.shape[0], mask.shape
    for batch in (0, 1):
        flat = _flat(D, mask, batch)
        grid = getattr(D, "signal_grid", None)
        if grid is not None and flat.shape[batch:] in (grid, grid[1:] if grid[0] == 1 else grid):
            flat = flat.reshape(*flat.shape[:batch], m)
        if flat.shape == ((m,), (n, m))[batch]:
            return flat
    raise ValueError(f"{where}: mask has shape {shape}; expected ({m},) or ({n}, {m})")


def known_part(D: Operator, Y: Any, known: Any) -> tuple[Operator, Any]:
    """D on the known entries, signal by signal if masks differ, and Y with 0 where unknown."""
    if known is None:
        return D, Y
    return Masked._of(D, jnp.asarray(known, D.dtype)), jnp.where(known, Y, 0)


def signal_axes(D: Any) -> Any:
    """`in_axes` of D, or of a chain, for `vmap` over signals: 0 if every signal has its own D.

    For a `Masked` with one mask per signal, `vmap` maps over the masks and D is stored once.

    Example:
        >>> from unrolled.dictionaries._masked import signal_axes
        >>> signal_axes(jnp.eye(2)), signal_axes(jnp.ones((5, 2, 2)))
        (None, 0)
    """
    if isinstance(D, tuple):
        return tuple(map(signal_axes, D))
    if shared_part(D) is not D:
        return Masked._of(None, 0)
    return 0 if getattr(D, "ndim", 2) == 3 else None


def shared_part(D: Any) -> Any:
    """The D that all signals share if D is a `Masked` with one mask per signal; otherwise D."""
    return D.base if isinstance(D, Masked) and D.mask.ndim == 2 and D.base.ndim == 2 else D
