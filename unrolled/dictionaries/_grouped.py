"""`Grouped`: a dictionary whose codes come in groups of atoms, of equal or unequal sizes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.checks import Array, ArrayLike
from unrolled.dictionaries import _base
from unrolled.dictionaries._base import Dictionary, Operator, Structured, column_norms, dense
from unrolled.dictionaries._operands import (
    as_dictionary,
    block_of,
    cuts_atoms,
    entries,
    inner_terms,
    magnitudes,
    refuse_parts,
    spectral_norm,
)
from unrolled.dictionaries._parts import Joint

__all__ = ["Grouped"]


@dataclass(frozen=True)
class _Chosen:
    """The entries of the atoms in a code with padding, over the weights; of a signal, m entries."""

    m: int
    d: int  # of a code with padding
    places: tuple[int, ...]
    weights: tuple[float, ...]  # one per atom; empty if all are 1

    def __call__(self, x: Array) -> Array:
        if x.shape[-1] != self.d:
            return x[..., : self.m]
        return x[..., np.array(self.places)] / self.divisor(x.dtype, x.ndim)

    def divisor(self, dtype: np.dtype, ndim: int) -> np.ndarray:
        """The weights as an array with `ndim` axes."""
        return np.array(self.weights or 1.0, dtype).reshape((1,) * (ndim - 1) + (-1,))


@_base.pytree(data=("base", "tail"), static=("places", "largest", "weights"))
@dataclass(frozen=True, eq=False, init=False)
class Grouped(Structured):
    r"""D with atoms in disjoint groups, which are nonzero together: the dictionary of group LASSO.

    .. math:: \min_x \tfrac12 \|y - D x\|^2 + lam \sum_i w_i \|x_i\|_2,

    where x_i are the entries of group i. For a signal (m,), a layer or a pursuit returns a code
    (d,) in the order of the atoms of D. A penalty is one number for all groups, or one number per
    group, (n,).

    Inside, all groups have the size g of the largest group: the missing atoms are unit vectors in
    p = n g - d additional rows, in which every signal is 0. So the entries of these atoms are 0 in
    the solution and in every step, each group is a part of g entries as in `Joint`, and the shape
    is (m + p, n g). Atoms of group i are divided by w_i, so the code inside is w_i x_i, and the
    thresholds of a layer refer to it. If weights is 1 and the atoms of D have norm 1, all atoms
    have norm 1, and the theory of codes in parts holds; `theory.block_coherence` takes other
    weights, too. Products `D @ x` and `r @ D` take and return vectors of the inner form; `view`
    converts signals and codes.

    Args:
        D: (m, d), plain or structured, real and without parts.
        groups: the group of each atom, (d,) integers, or n sequences of indices that together
            contain each atom once.
        weights: w_i, positive, one number or one per group; by default the root of the size.

    If a few groups are much larger than the others, most of the n g atoms are padding, which costs
    time and memory.

    Raises:
        TypeError: groups are not integers, or weights are not real numbers.
        ValueError: groups do not contain each atom once, a weight is not positive, D is square (its
            codes would look like signals), or codes of D already come in parts.

    Reference: Yuan, Lin (2006).

    Example:
        >>> D = ur.dictionaries.Grouped(jnp.eye(4)[:, :3], [0, 1, 0], weights=1)
        >>> D.shape, D.groups, D.block
        ((5, 4), (2,), 2)
        >>> print(ur.pursuit.lasso(D, jnp.array([3.0, 0.5, 4.0, 0.0]), 1.0).x.round(1))
        [2.4 0.  3.2]
    """

    base: Operator  # (m, d), the atoms divided by the weights
    tail: Array  # (p,), the entries of the additional atoms
    places: tuple[int, ...]  # (d,), the entries of the atoms in a code with padding
    largest: int  # g
    weights: tuple[float, ...]  # (d,), of the group of each atom; empty if all are 1

    def __init__(
        self,
        D: Dictionary,
        groups: Sequence[Sequence[int]] | ArrayLike,
        weights: ArrayLike | None = None,
    ):
        base = as_dictionary(D, "Grouped")
        refuse_parts(base, "Grouped", "expected a dictionary without parts")
        if base.shape[0] == base.shape[1]:
            raise ValueError(
                f"Grouped: D has shape {base.shape}, so that codes look like signals; append a row "
                "of zeros to D, and a zero to each signal"
            )
        labels, n = _labels(groups, base.shape[1])
        sizes = np.bincount(labels, minlength=n)
        w = _weights(weights, sizes)[labels]
        order = np.argsort(labels, kind="stable")
        # Padding shows which form a code has, if the forms differ.
        changed = (order != np.arange(len(order))).any() or (w != 1).any()
        hidden = changed and (sizes == sizes[0]).all()
        g = int(sizes.max()) + int(hidden)
        places = np.empty(len(labels), int)
        within = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels[order]]
        places[order] = labels[order] * g + within
        if (w != 1).any():
            base = _base.scale_columns(base, jnp.asarray(1 / w, base.dtype))
        vars(self).update(
            base=base,
            tail=jnp.ones(n * g - len(labels), base.dtype),
            places=tuple(places.tolist()),
            largest=g,
            weights=tuple(w.tolist()) if (w != 1).any() else (),
        )

    def _with(self, base: Operator, tail: Array, weights: tuple[float, ...] = ()) -> "Grouped":
        new = object.__new__(Grouped)
        vars(new).update(vars(self) | dict(base=base, tail=tail, weights=weights))
        return new

    @property
    def shape(self) -> tuple[int, int]:
        (m, d), p = self.base.shape[-2:], self.tail.shape[-1]
        return m + p, d + p

    @property
    def block(self) -> int:
        return self.largest

    @property
    def ndim(self) -> int:
        return max(self.base.ndim, self.tail.ndim + 1)

    @property
    def groups(self) -> tuple[int, ...]:
        return (self.shape[1] // self.block,)

    def spread(self, theta: ArrayLike) -> ArrayLike:
        own = np.shape(theta) == self.groups
        return jnp.repeat(jnp.asarray(theta), self.block) if own else theta

    @property
    def _order(self) -> np.ndarray:
        """The places of the atoms, then of the padding, (n g,)."""
        padding = np.setdiff1d(np.arange(self.shape[1]), self.places)
        return np.concatenate([np.array(self.places, int), padding])

    def _joined(self, atoms: Array, padding: Array) -> Array:
        """One value per atom and one per padding as an array in the order of a code."""
        return jnp.concatenate([atoms, padding])[np.argsort(self._order)]

    def synthesize(self, x: Array) -> Array:
        x, d = x[self._order], self.base.shape[1]
        return jnp.concatenate([self.base @ x[:d], self.tail * x[d:]])

    def analyze(self, r: Array) -> Array:
        m = self.base.shape[0]
        return self._joined(r[:m] @ self.base, self.tail * r[m:])

    def scale(self, c: ArrayLike) -> "Grouped":
        return self._with(self.base * c, self.tail * c, self.weights)

    def scale_columns(self, c: Array) -> "Grouped":
        """D diag(c), whose codes have no weights."""
        c, d = c[self._order], self.base.shape[1]
        return self._with(_base.scale_columns(self.base, c[:d]), self.tail * c[d:])

    def scale_parts(self, c: Array) -> "Grouped":
        """The dictionary with the atoms of group i multiplied by c_i, with c of shape (n,)."""
        return self.scale_columns(jnp.repeat(c, self.block))

    def column_norms(self) -> Array:
        return self._joined(column_norms(self.base), jnp.abs(self.tail))

    def spectral_norm(self) -> Array:
        norm = spectral_norm(self.base)
        return jnp.max(jnp.append(jnp.abs(self.tail), norm))

    def entries(self) -> Array:
        return jnp.append(entries(self.base).reshape(-1), self.tail)

    def magnitudes(self) -> "Grouped":
        return self._with(magnitudes(self.base), jnp.abs(self.tail))

    @property
    def inner_terms(self) -> int:
        return inner_terms(self.base)

    @property
    def cuts_atoms(self) -> bool:
        return cuts_atoms(self.base)

    def view(self, y: Any, batch: int = 0) -> tuple[Any, Callable[[Array], Array]] | None:
        """Signals (m,) or codes (d,) with their padding, and the inverse map for codes."""
        shape, (m, d) = np.shape(y), self.base.shape
        own = _Chosen(m, self.shape[1], self.places, self.weights)
        if len(shape) != batch + 1 or shape[-1] in set(self.shape) - {m}:
            return None
        if shape[-1] not in (m, d) or not (self.weights or len(self.tail)):
            return None
        numbers: Any = jnp if isinstance(y, jax.Array) else np
        y = numbers.asarray(y)
        rest = numbers.zeros((*shape[:-1], self.tail.shape[-1]), y.dtype)
        if shape[-1] == m:
            return numbers.concatenate([y, rest], -1), own
        y = y * own.divisor(y.dtype, y.ndim)
        return numbers.concatenate([y, rest], -1)[..., np.argsort(self._order)], own


def matrix_of_parts(D: Operator) -> tuple[Any, ...]:
    """A, (m, d), p and T, with D = A x for codes of parts (p, T); (None,) if A is not stored.

    D stores A if its arrays have at least a quarter as many numbers: a complex matrix has half as
    many as the matrix of its pairs. A missing atom of a `Grouped` is a column of zeros, and A lacks
    the additional rows.

    Example:
        >>> from unrolled.dictionaries import matrix_of_parts
        >>> A, p, T = matrix_of_parts(ur.dictionaries.Joint(jnp.eye(2), 3))
        >>> A.shape, p, T
        ((2, 2), 1, 3)
        >>> matrix_of_parts(ur.dictionaries.fourier((8, 8)))
        (None,)
    """
    base, T = (D.base, D.measurements) if isinstance(D, Joint) else (D, 1)
    p, d = block_of(base), base.shape[1]
    base = D.base if isinstance(D, Grouped) else base
    shape = base.shape[0], d
    if block_of(D) == 1 or 4 * sum(map(np.size, jax.tree.leaves(base))) < math.prod(shape):
        return (None,)
    A = np.asarray(dense(base))
    if isinstance(D, Grouped):
        whole = np.zeros(shape, A.dtype)
        whole[:, np.array(D.places)] = A
        A = whole
    return A, p, T


def _labels(groups: Any, d: int) -> tuple[np.ndarray, int]:
    """The group of each atom, (d,), and the number of groups."""
    each = list(groups)
    if each and all(np.ndim(group) == 0 for group in each):
        labels = np.asarray(each)
        if labels.shape != (d,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"Grouped: groups have shape {labels.shape} and dtype {labels.dtype}; expected "
                f"({d},) integers, one per atom, or sequences of indices"
            )
        names, labels = np.unique(labels, return_inverse=True)
        return labels, len(names)
    members = [checks.as_indices(list(group), "groups", "Grouped") for group in each]
    flat = [index for group in members for index in group]
    if sorted(flat) != list(range(d)) or not all(members):
        raise ValueError(
            f"Grouped: groups contain {len(flat)} indices; expected each of the {d} atoms once, "
            "and no empty group"
        )
    labels = np.empty(d, int)
    for i, group in enumerate(members):
        labels[list(group)] = i
    return labels, len(members)


def _weights(weights: Any, sizes: np.ndarray) -> np.ndarray:
    """The weights of the groups, (n,), by default the roots of their sizes."""
    if weights is None:
        return np.sqrt(sizes)
    w = checks.host_floats(weights, "weights", "Grouped")
    if w.shape not in ((), sizes.shape) or not (np.isfinite(w) & (w > 0)).all():
        raise ValueError(
            f"Grouped: weights have shape {w.shape}; expected one positive number, or "
            f"({len(sizes)},) of them, one per group"
        )
    return np.broadcast_to(w, sizes.shape).astype(float)
