"""Convolutional dictionaries: atoms are shifted filters, in one or more spatial dimensions."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.checks import Array, ArrayLike
from unrolled._base.numbers import exponent, largest, ldexp, norm, times_power, widened
from unrolled._base.programs import program
from unrolled.dictionaries._base import Dictionary, Operator, Structured, dense, pytree
from unrolled.dictionaries._operands import kept_atoms

__all__ = ["Conv"]


def window_weights(D: "Conv", ridge: ArrayLike) -> "Conv":
    """The closed form of `theory.frobenius_weights` on one window as long as the kernel.

    The columns of A are the atoms that meet the window, cut to the window; S = A A' gives one small
    linear system for the whole bank of filters.
    """
    k = exponent(D.filters)  # the squares of the filters must be in the range of the dtype
    scaled = jax.tree.map(lambda filters: times_power(filters, -k), D)
    whole = scaled.local(2)
    # On a circle any window will do; under "valid" take the middle window, which every shift meets.
    start = (
        (0,) * len(D.kernel)
        if whole is scaled
        else tuple((N - n) // 2 for N, n in zip(whole.signal_shape, D.extent))
    )
    sides = zip(start, D.extent, D.dilation)
    window = (slice(None), *(slice(s, s + n, delta) for s, n, delta in sides))
    A = dense(whole).reshape(*whole.signal_grid, -1)[window].reshape(-1, whole.shape[1])
    A, filters = widened(A), widened(scaled.filters.reshape(D.filters.shape[0], -1).T)
    with jax.default_matmul_precision("highest"):
        S = A @ A.T
        S = S + ldexp(jnp.asarray(ridge, S.dtype), -2 * k) * jnp.eye(len(S), dtype=S.dtype)
        W = jnp.linalg.pinv(S, hermitian=True) @ filters
        kept = kept_atoms(filters, S @ W, "frobenius_weights")
        W = jnp.where(kept[None, :], W, jnp.nan)
        W = times_power(W / jnp.sum(W * filters, axis=0, keepdims=True), -k)
    return replace(D, filters=W.T.reshape(D.filters.shape).astype(D.filters.dtype))


def windows(
    r: Array,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    positions: tuple[int, ...],
    dilation: tuple[int, ...] = (),
) -> Array:
    """All windows of a signal: (n_channels, *signal) -> (prod(positions), n_channels prod(kernel)).

    Rows and columns are in row-major order. The signal is cut into blocks as long as the stride,
    and a window consists of a few neighbouring blocks. The function uses only slices and
    concatenations, whose transposes cost no more than the operations themselves; the transpose of a
    gather would be a scatter. A dilated window takes one slice for each entry.
    """
    dilation = dilation or (1,) * len(kernel)
    for i, (n, t, p, delta) in enumerate(zip(kernel, stride, positions, dilation)):
        axis = 1 + 2 * i  # the axes before it are pairs (position, offset) already
        if delta > 1:
            starts = range(0, n * delta, delta)
            entries = [lax.slice_in_dim(r, k, k + (p - 1) * t + 1, t, axis) for k in starts]
            r = jnp.stack(entries, axis + 1)
            continue
        blocks = -(-n // t)
        r = _resized(r, axis, (p + blocks - 1) * t)
        r = r.reshape(*r.shape[:axis], p + blocks - 1, t, *r.shape[axis + 1 :])
        r = jnp.concatenate(
            [lax.slice_in_dim(r, j, j + p, axis=axis) for j in range(blocks)], axis + 1
        )
        r = lax.slice_in_dim(r, 0, n, axis=axis + 1)
    spatial = range(1, r.ndim)
    r = r.transpose(*spatial[::2], 0, *spatial[1::2])
    return r.reshape(math.prod(positions), -1)


def _resized(r: Array, axis: int, length: int) -> Array:
    """`r` cut or padded along `axis` to `length`; no window contains the padded entries."""
    size = r.shape[axis]
    if size >= length:
        return lax.slice_in_dim(r, 0, length, axis=axis)
    return jnp.pad(r, [(0, length - size if a == axis else 0) for a in range(r.ndim)])


BOUNDARIES = ("valid", "circular", "zero")
# Kernels longer than this many strides use XLA's convolution, because windows of such kernels would
# take much time and memory to compile.
_LONGEST = 32


@pytree(data=("filters",), static=("signal_shape", "stride", "boundary", "dilation"))
@dataclass(frozen=True, eq=False, init=False)
class Conv(Structured):
    r"""The dictionary of the shifts of a bank of filters.

    Analysis is the paper's convolution (Definition 5), a correlation with the stride t,

    .. math:: (D' r)[f, i] = \sum_{c, k} filters[f, c, k] \; r[c, i t + k \delta],

    where c is a channel, k an index into the kernel, and delta the dilation, 1 by default. All
    indices start at 0. Synthesis, `D @ x`, is the exact adjoint of analysis. Signals and codes are
    flat vectors of the row-major grids `signal_grid` and `code_grid`.

    Args:
        filters: (n_atoms, n_channels, *kernel).
        signal_shape: spatial shape of a signal, an int for 1-D; a signal has n_channels planes of
            this shape.
        stride: t, an int or one per dimension.
        boundary: which shifts are atoms, for N samples and a kernel of n entries along a dimension.
            "valid": the floor((N - n) / t) + 1 shifts inside the signal. "circular": ceil(N / t)
            shifts, wrapped around. "zero": ceil(N / t) shifts, cut at the far border.
        dilation: delta, the distance between neighbouring entries of a filter on the signal, an int
            or one per dimension. For dilated filters, the extent (n - 1) delta + 1 replaces n in
            the formula of `boundary`.

    Raises:
        TypeError: filters are not real numbers, or a size, stride or dilation is not an integer.
        ValueError: shapes do not fit, a stride or dilation is below 1, the boundary is unknown,
            filters are NaN or infinite, a kernel is longer than the signal under "valid", or a
            dilated kernel is longer than the signal under any boundary.
        MemoryError: a signal or a code does not fit in memory.

    Reference: Li, Feng, Zhou (2024), Definition 5; Yu, Koltun (2016) for the dilation.

    Example:
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 3)), 10, boundary="circular")
        >>> D.shape, D.code_grid, (jnp.ones(10) @ D).shape
        ((10, 20), (2, 10), (20,))
        >>> ur.dictionaries.Conv(jnp.ones((1, 1, 2)), 5, dilation=2).extent
        (3,)
    """

    filters: Array
    signal_shape: tuple[int, ...]
    stride: tuple[int, ...]
    boundary: str
    dilation: tuple[int, ...]

    def __init__(
        self,
        filters: ArrayLike,
        signal_shape: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        boundary: str = "valid",
        dilation: int | tuple[int, ...] = 1,
    ):
        filters = checks.as_float(filters, "filters", "Conv")
        shape = _integers(signal_shape, 1, "signal_shape")
        if filters.ndim != 2 + len(shape) or 0 in filters.shape:
            raise ValueError(
                f"Conv: filters have shape {filters.shape}; expected (n_atoms, n_channels, "
                f"*kernel) with {len(shape)} kernel dimensions, none of them 0"
            )
        strides = _integers(stride, len(shape), "stride")
        dilations = _integers(dilation, len(shape), "dilation")
        for name, each in (("stride", strides), ("dilation", dilations)):
            if len(each) != len(shape):
                raise ValueError(
                    f"Conv: {name} {each} does not fit signal_shape {shape}; expected one per "
                    "dimension"
                )
        if boundary not in BOUNDARIES:
            raise ValueError(
                f"Conv: unknown boundary {boundary!r}; expected one of {', '.join(BOUNDARIES)}"
            )
        checks.finite(filters, "filters", "Conv")
        kernel = filters.shape[2:]
        if boundary == "valid" and any(n > N for n, N in zip(kernel, shape)):
            raise ValueError(
                f"Conv: kernel {kernel} is longer than the signal {shape}; try "
                'boundary="circular" or "zero"'
            )
        vars(self).update(filters=filters, signal_shape=shape, stride=strides)
        vars(self).update(boundary=boundary, dilation=dilations)
        too_long = any(e > N for e, N in zip(self.extent, shape))
        if too_long and max(dilations) > 1:
            raise ValueError(
                f"Conv: kernel {kernel} with dilation {dilations} covers {self.extent} of the "
                f"signal {shape}; try a smaller dilation"
            )
        for what, grid in (("a signal", self.signal_grid), ("a code", self.code_grid)):
            checks.check_memory(grid, filters.dtype, what, "Conv")

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial shape of a filter."""
        return self.filters.shape[-len(self.signal_shape) :]

    @property
    def extent(self) -> tuple[int, ...]:
        """Spatial shape of an atom: the shape of a filter, unless the filter is dilated."""
        return tuple((n - 1) * delta + 1 for n, delta in zip(self.kernel, self.dilation))

    @property
    def positions(self) -> tuple[int, ...]:
        """Number of positions of a filter along each dimension."""
        sizes = zip(self.signal_shape, self.extent, self.stride)
        if self.boundary == "valid":
            return tuple((N - n) // t + 1 for N, n, t in sizes)
        return tuple(-(-N // t) for N, _, t in sizes)

    @property
    def signal_grid(self) -> tuple[int, ...]:
        """(n_channels, *signal_shape)."""
        return (self.filters.shape[-len(self.signal_shape) - 1], *self.signal_shape)

    @property
    def code_grid(self) -> tuple[int, ...]:
        """(n_atoms, *positions)."""
        return (self.filters.shape[-len(self.signal_shape) - 2], *self.positions)

    @property
    def shape(self) -> tuple[int, int]:
        return math.prod(self.signal_grid), math.prod(self.code_grid)

    @property
    def ndim(self) -> int:
        return self.filters.ndim - len(self.signal_shape)

    def analyze(self, r: Array) -> Array:
        r = self._extend(r.reshape(self.signal_grid))
        if any(n > _LONGEST * t for n, t in zip(self.kernel, self.stride)):
            products = lax.conv_general_dilated(
                r[None], self.filters, self.stride, "VALID", rhs_dilation=self.dilation
            )
            return products[0].reshape(-1)
        # One matrix product: on CPUs it is several times as fast as XLA's convolution, and its
        # transpose is many times as fast.
        patches = windows(r, self.kernel, self.stride, self.positions, self.dilation)
        return (self.filters.reshape(self.filters.shape[0], -1) @ patches.T).reshape(-1)

    def synthesize(self, x: Array) -> Array:
        signal = jax.ShapeDtypeStruct((self.shape[0],), x.dtype)
        return programs.adjoint(self.analyze, signal, x)

    def _extend(self, r: Array) -> Array:
        """`r` continued, periodically or by zeros, as far as the last position reaches."""
        sizes = zip(self.positions, self.stride, self.extent, self.signal_shape)
        reach = [(0, max(0, (p - 1) * t + n - N)) for p, t, n, N in sizes]
        if self.boundary == "circular":
            return jnp.pad(r, [(0, 0), *reach], mode="wrap")
        return jnp.pad(r, [(0, 0), *reach])

    @property
    def groups(self) -> tuple[int, ...]:
        """(n_atoms,): the positions of a filter form a group."""
        return self.code_grid[:1]

    @property
    def cuts_atoms(self) -> bool:
        return self.boundary == "zero"

    def unflatten_code(self, x: Array) -> Array:
        """A flat code (..., d) as feature maps (..., n_atoms, *positions)."""
        return x.reshape(*x.shape[:-1], *self.code_grid)

    def spread(self, theta: ArrayLike) -> Array:
        """Repeat one value per filter, (n_atoms,), over the positions, (d,); keep other shapes."""
        theta = jnp.asarray(theta)
        if theta.shape != self.groups:
            return theta
        return _repeated(theta, math.prod(self.positions))

    def scale(self, c: ArrayLike) -> "Conv":
        return jax.tree.map(lambda filters: filters * c, self)

    def normalized(self) -> tuple["Conv", Array]:
        """Unit filters, and their norms spread over the positions.

        The norms are the norms of the atoms unless a border cuts atoms.
        """
        scaled, k = self._scaled()
        axes = tuple(range(1, self.filters.ndim))
        norms = norm(scaled._folded(), axes)
        unit = scaled.scale(1 / jnp.expand_dims(norms, axes))
        return unit, self.spread(times_power(norms, k))

    def column_norms(self) -> Array:
        scaled, k = self._scaled()
        filters = widened(scaled._folded())
        squared = Conv(filters**2, self.signal_shape, self.stride, self.boundary)
        sums = squared.analyze(jnp.ones(self.shape[0], filters.dtype))
        norms = jnp.where(sums == 0, 0, jnp.sqrt(jnp.where(sums == 0, 1, sums)))  # as in `norm`
        return times_power(norms, self.spread(k)).astype(self.filters.dtype)

    def _scaled(self) -> tuple["Conv", Array]:
        """The filters divided by 2^k, so that squares stay in the range of the dtype; and k."""
        k = exponent(self.filters, tuple(range(1, self.filters.ndim)))
        return jax.tree.map(lambda filters: times_power(filters, -k), self), k.reshape(-1)

    def _folded(self) -> Array:
        """The filters as they appear in atoms.

        Dilated filters have zeros between their entries; a kernel longer than a circle wraps
        around.
        """
        filters = self.filters
        lead = filters.ndim - len(self.dilation)
        gaps = [(0, 0, 0)] * lead + [(0, 0, delta - 1) for delta in self.dilation]
        filters = lax.pad(filters, jnp.zeros((), filters.dtype), gaps)
        if self.boundary != "circular":
            return filters
        for axis, N in enumerate(self.signal_shape, start=2):
            n = filters.shape[axis]
            if n > N:
                turns = -(-n // N)
                padding = [(0, turns * N - n if a == axis else 0) for a in range(filters.ndim)]
                split = (*filters.shape[:axis], turns, N, *filters.shape[axis + 1 :])
                filters = jnp.pad(filters, padding).reshape(split).sum(axis)
        return filters

    def spectral_norm(self) -> Array:
        """Norm on a torus around the signal: exact for "circular" with stride 1, else a bound.

        Larger strides keep a subset of the atoms; "valid" and "zero" keep a part of a larger torus.
        """
        torus = self.signal_shape
        if self.boundary != "circular":
            torus = tuple(N + n - 1 for N, n in zip(torus, self.extent))
        axes = tuple(range(-len(torus), 0))
        folded = widened(self._folded())
        k = exponent(folded)
        response = jnp.fft.fftn(times_power(folded, -k), torus, axes)
        response = jnp.moveaxis(
            response.reshape(*response.shape[:2], -1), -1, 0
        )  # (frequencies, n_atoms, n_channels)
        with jax.default_matmul_precision("highest"):
            # Two matrices have the same largest eigenvalue: take the smaller matrix.
            fewer = response.shape[1] < response.shape[2]
            pairs = "fac,fbc->fab" if fewer else "fac,fae->fce"
            gram = jnp.einsum(pairs, response.conj(), response)
        eps = float(jnp.finfo(self.filters.dtype).eps)
        top = largest(jnp.linalg.eigvalsh(gram))
        return times_power(jnp.sqrt(top * (1 + 32 * eps)), k).astype(self.filters.dtype)

    def is_shift_invariant(self) -> bool:
        """Whether all atoms of a filter have the same neighbours, except at a border."""
        divides = all(N % t == 0 for N, t in zip(self.signal_shape, self.stride))
        return self.boundary == "valid" or (self.boundary == "circular" and divides)

    def inner_products(self, W: Dictionary) -> tuple[Array, Array]:
        """Inner products of all filters under all shifts, if W and D are shift-invariant."""
        if not (self.is_shift_invariant() and self.is_shift_of(W)):
            return super().inner_products(W)
        W, D = W.local(1), self.local(1)
        codes = D.corner_codes()
        with jax.default_matmul_precision("highest"):
            return jax.vmap(lambda e: W.synthesize(e) @ D)(codes), codes > 0

    def entries(self) -> Array:
        return self._folded()

    def magnitudes(self) -> "Conv":
        return jax.tree.map(jnp.abs, self)

    @property
    def inner_terms(self) -> int:
        """0, unless filters wrap around a circle, so that several taps add up to an entry."""
        turns = math.prod(-(-n // N) for n, N in zip(self.extent, self.signal_shape))
        return (turns - 1) * max(self.shape)

    def representatives(self) -> np.ndarray:
        """On a circle, the first position of every filter, since all positions are equivalent."""
        atoms = np.arange(self.shape[1])
        return atoms[:: math.prod(self.positions)] if self._is_torus() else atoms

    def neighbourhood(self) -> tuple["Conv", np.ndarray]:
        """The shifts that overlap with a shift in the middle, or all shifts if fewer fit."""
        around = self.local(1)
        if not self.is_shift_invariant() or around is self:
            return self, self.representatives()
        sizes = list(zip(self.positions, self.extent, self.stride))
        sides = [min(p, 2 * ((n - 1) // t) + 1) for p, n, t in sizes]
        shape = tuple((q - 1) * t + n for q, (_, n, t) in zip(sides, sizes))
        around = Conv(self.filters, shape, self.stride, dilation=self.dilation)
        atoms = np.arange(around.shape[1]).reshape(around.code_grid)
        if all(q == 2 * ((n - 1) // t) + 1 for q, (_, n, t) in zip(sides, sizes)):
            middle: Any = (slice(None), *(q // 2 for q in sides))
            atoms = atoms[middle]
        return around, atoms.reshape(-1)

    def replicate(self, W: Array) -> Operator:
        if not self._is_torus():
            return W
        filters = W.T.reshape(self.code_grid[0], *self.signal_grid)
        return Conv(filters, self.signal_shape, self.stride, self.boundary)

    def closed_form(self, ridge: ArrayLike) -> "Conv | None":
        """W as a `Conv`; None if atoms are not shifts of each other, or wrap onto themselves."""
        fits = all(n <= N for n, N in zip(self.extent, self.signal_shape))
        if not (self.is_shift_invariant() and fits):
            return None
        return window_weights(self, ridge)

    def _is_torus(self) -> bool:
        return self.boundary == "circular" and self.is_shift_invariant()

    def stripe_reach(self) -> tuple[tuple[int, ...], bool]:
        """The reach of stripes in every dimension, and whether positions lie on a circle.

        The reach is the largest distance between overlapping atoms, in positions.
        """
        circular = self.boundary == "circular"
        sizes = zip(self.extent, self.stride, self.positions, self.signal_shape)
        # On a circle, the distance from the last position to the first is N - (p-1) t, which is
        # less than t if t does not divide N.
        steps = ((n, t, N - (p - 1) * t if circular else t) for n, t, p, N in sizes)
        return tuple(-(-(n - step) // t) for n, t, step in steps), circular

    def patches(self, r: Array) -> Array:
        """All windows of a signal that are as large as an atom; windows wrap around the borders.

        The result has shape (prod(signal_shape), n_channels prod(extent)). Every sample is in
        prod(extent) windows, or in all windows if the atoms are longer than the signal.
        """
        window = tuple(min(n, N) for n, N in zip(self.extent, self.signal_shape))
        r = r.reshape(self.signal_grid)
        r = jnp.pad(r, [(0, 0), *((0, n - 1) for n in window)], mode="wrap")
        return windows(r, window, (1,) * len(window), self.signal_shape)

    def stripes(self, x: Array) -> Array:
        """The stripe of every position: the entries of a code whose atoms overlap atoms there.

        The result has shape (prod(positions), n_atoms prod(stripe)), where stripe is the number of
        positions in a stripe along each dimension. Zeros stand for positions past a border.
        """
        reach, circular = self.stripe_reach()
        if circular:
            window = tuple(min(2 * r + 1, N) for r, N in zip(reach, self.positions))
            pad = [(w // 2, (w - 1) // 2) for w in window]
        else:
            window = tuple(2 * min(r, N - 1) + 1 for r, N in zip(reach, self.positions))
            pad = [(w // 2, w // 2) for w in window]
        maps = jnp.pad(
            self.unflatten_code(x), [(0, 0), *pad], mode="wrap" if circular else "constant"
        )
        return windows(maps, window, (1,) * len(window), self.positions)

    def local(self, reach: int) -> "Conv":
        """The same filters on a short signal, with shifts up to `reach` times the longest overlap.

        Inner products of atoms depend only on their relative shift, so this small dictionary has
        all inner products. If a circle is too short for the shifts, the dictionary is returned
        unchanged.
        """
        if self.boundary == "circular" and any(
            N < 2 * n - 1 for N, n in zip(self.signal_shape, self.extent)
        ):
            return self
        sizes = zip(self.positions, self.extent, self.stride)
        shape = tuple(reach * min(p - 1, (n - 1) // t) * t + n for p, n, t in sizes)
        return Conv(self.filters, shape, self.stride, dilation=self.dilation)

    def corner_codes(self) -> Array:
        """One-hot codes of atoms that meet all atoms under every relative shift, (rows, d).

        On a circle one position of each filter is enough; under "valid" the corner positions meet
        every shift. The rows of these atoms in the Gram matrix contain all values of the matrix, so
        that the coherence follows from the correlations of the filters.
        """
        last = [p - 1 if self.boundary == "valid" else 0 for p in self.positions]
        corners = sorted(set(itertools.product(*({0, p} for p in last))))
        n_atoms = self.code_grid[0]
        codes = np.zeros((n_atoms, len(corners), *self.code_grid))
        for f, (j, corner) in itertools.product(range(n_atoms), enumerate(corners)):
            codes[(f, j, f, *corner)] = 1
        return jnp.asarray(codes.reshape(-1, self.shape[1]), self.filters.dtype)

    def is_shift_of(self, other: Dictionary) -> TypeGuard["Conv"]:
        """Whether `other` is a `Conv` of the same geometry, so that filters can be compared."""
        return isinstance(other, Conv) and self._geometry() == other._geometry()

    def _geometry(self) -> tuple:
        grids = self.signal_grid, self.code_grid, self.kernel
        return *grids, self.stride, self.boundary, self.dilation


@program("times")
def _repeated(theta: Array, times: int) -> Array:
    # Not jnp.repeat, whose transpose is a scatter.
    return jnp.broadcast_to(theta[:, None], (len(theta), times)).reshape(-1)


def _integers(value: int | tuple[int, ...], dimensions: int, name: str) -> tuple[int, ...]:
    values = value if isinstance(value, (tuple, list)) else (value,) * dimensions
    return tuple(checks.as_index(n, name, "Conv", least=1) for n in values)
