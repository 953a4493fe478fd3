"""Dictionaries of imaging: Fourier transforms, orthonormal wavelets, the coils of a scanner."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, checked
from unrolled._base.numbers import norm
from unrolled.dictionaries._base import Operator, Structured, pytree
from unrolled.dictionaries._masked import Masked
from unrolled.dictionaries._pairs import complex_of, to_pairs

__all__ = ["Coils", "Unitary", "coils", "fourier", "wavelet"]

_MOST = 10  # vanishing moments; with more, the roots of the filters lose digits
# Symlets whose energy lies in the later half of the filter, as published; the others are early.
_LATE = 2, 3, 7


@pytree(data=("gain",), static=("name", "grid", "axes", "levels"))
@dataclass(frozen=True, eq=False)
class Unitary(Structured):
    """gain times a unitary transform of arrays: a Fourier transform, or a wavelet synthesis.

    `fourier` and `wavelet` make such dictionaries. All atoms have the norm |gain|, and products
    take O(n log n) or O(n) operations.

    Example:
        >>> D = ur.dictionaries.wavelet((4,), "haar", 1) * 2.0
        >>> D.shape, float(ur.dictionaries.spectral_norm(D))
        ((4, 4), 2.0)
    """

    gain: Array  # ()
    name: str  # "fourier", or a wavelet
    grid: tuple[int, ...]  # n = prod(grid)
    axes: tuple[int, ...]
    levels: int

    @property
    def is_complex(self) -> bool:
        return self.name == "fourier"

    @property
    def shape(self) -> tuple[int, int]:
        n = math.prod(self.grid) * self.block
        return n, n

    @property
    def ndim(self) -> int:
        return 2 + self.gain.ndim

    def synthesize(self, x: Array) -> Array:
        if self.is_complex:
            return self._fourier(jnp.fft.fftn, x)
        return self.gain * self._wavelets(_merged, x, self._filters(x))

    def analyze(self, r: Array) -> Array:
        if self.is_complex:
            return self._fourier(jnp.fft.ifftn, r)
        return self.gain * self._wavelets(_split, r, self._filters(r))

    def scale(self, c: ArrayLike) -> "Unitary":
        return replace(self, gain=self.gain * jnp.asarray(c, self.gain.dtype))

    def column_norms(self) -> Array:
        return jnp.full(self.shape[1], jnp.abs(self.gain))

    def spectral_norm(self) -> Array:
        return jnp.abs(self.gain)

    def magnitudes(self) -> Operator:
        """|D|; for wavelets, the synthesis with the magnitudes of the filters."""
        if self.is_complex:
            return super().magnitudes()
        filters = jnp.abs(self._filters(self.gain))
        columns = jnp.eye(self.shape[1], dtype=self.dtype)
        rows = jax.vmap(lambda x: self._wavelets(_merged, x, filters))(columns)
        return jnp.abs(self.gain) * rows.T

    @property
    def inner_terms(self) -> int:
        """The terms of the filters of all levels and axes."""
        taps = 0 if self.is_complex else 2 * scaling_filter(self.name).size
        return taps * self.levels * len(self.axes)

    def _fourier(self, transform: Callable, v: Array) -> Array:
        z = transform(complex_of(v).reshape(self.grid), axes=self.axes, norm="ortho")
        return self.gain * to_pairs(z.reshape(-1)).astype(v.dtype)

    def _wavelets(self, step: Callable, v: Array, filters: Array) -> Array:
        """The levels of the filter bank, from the finest to the coarsest, or back."""
        v = v.reshape(self.grid)
        levels, axes = range(self.levels), self.axes
        if step is _merged:
            levels, axes = levels[::-1], axes[::-1]
        for level in levels:
            some = tuple(
                slice(n >> level) if axis in axes else slice(n) for axis, n in enumerate(self.grid)
            )
            part = v[some]
            for axis in axes:
                part = jnp.moveaxis(step(jnp.moveaxis(part, axis, -1), filters), -1, axis)
            v = v.at[some].set(part)
        return v.reshape(-1)

    def _filters(self, v: Array) -> Array:
        h = scaling_filter(self.name)
        high = h[::-1] * (-1.0) ** np.arange(1, h.size + 1)
        return jnp.asarray(np.stack([h, high]), v.dtype)


def _shifts(taps: int) -> list[tuple[int, int]]:
    """(p, s) for each tap j: coefficient o contains sample 2 (o + s) + p."""
    return [((taps // 2 - j) % 2, (taps // 2 - j) // 2) for j in range(taps)]


def _split(v: Array, filters: Array) -> Array:
    """The low and the high band of v on a circle, along the last axis."""
    phases = v[..., 0::2], v[..., 1::2]
    bands: Any = [0, 0]
    for j, (p, s) in enumerate(_shifts(filters.shape[1])):
        moved = jnp.roll(phases[p], -s, -1)
        bands = [band + f[j] * moved for band, f in zip(bands, filters)]
    return jnp.concatenate(bands, -1)


def _merged(v: Array, filters: Array) -> Array:
    """The adjoint of `_split`."""
    bands = jnp.split(v, 2, -1)
    phases: Any = [0, 0]
    for j, (p, s) in enumerate(_shifts(filters.shape[1])):
        both = filters[0, j] * bands[0] + filters[1, j] * bands[1]
        phases[p] = phases[p] + jnp.roll(both, s, -1)
    return jnp.stack(phases, -1).reshape(v.shape)


@functools.cache
def scaling_filter(name: str) -> np.ndarray:
    r"""The low-pass filter of an orthonormal wavelet with N vanishing moments, (2 N,).

    The filter is a spectral factor of

    .. math:: 2 \left(\tfrac{1 + \cos w}{2}\right)^N \sum_k \binom{N - 1 + k}{k}
        \left(\tfrac{1 - \cos w}{2}\right)^k.

    Daubechies wavelets take the roots outside the unit circle. Of each pair of roots z and 1 / z,
    symlets take one, such that the phase is nearest to a linear phase in the mean square.
    """
    N = 1 if name == "haar" else int(name.removeprefix("db").removeprefix("sym"))
    # With y = (2 - z - 1/z) / 4, every root y gives a pair of roots z and 1 / z.
    y = np.roots([math.comb(N - 1 + k, k) for k in range(N)][::-1]).astype(complex)
    z = 1 - 2 * y + np.sqrt((1 - 2 * y) ** 2 - 1)
    z = np.where(np.abs(z) > 1, z, 1 / z)
    if not name.startswith("sym"):
        return _factor(N, z)
    alone = [root for root in z if root.imag >= -1e-9]  # one of each conjugate pair
    choices = itertools.product(*((root, 1 / root) for root in alone))
    roots = min((_with_conjugates(choice) for choice in choices), key=_curvature)
    h, k = _factor(N, roots), np.arange(2 * N)
    late = k @ h**2 > N - 0.5
    return h if late == (N in _LATE) else h[::-1]


def _factor(N: int, roots: np.ndarray) -> np.ndarray:
    h = np.convolve(np.poly(np.full(N, -1.0)), np.poly(roots)).real
    h = h * math.sqrt(2) / h.sum()
    # Roots lose digits: one Newton step makes h orthonormal to its shifts by 2, 4, ... entries.
    far = np.pad(h, 2 * N)
    later, earlier = (
        np.stack([far[2 * (N + s * k) :][: 2 * N] for k in range(N)]) for s in (1, -1)
    )
    return h - np.linalg.lstsq(later + earlier, later @ h - np.eye(N)[0], rcond=None)[0]


def _with_conjugates(roots: Sequence[complex]) -> np.ndarray:
    pairs = [[z.real] if abs(z.imag) < 1e-9 else [z, z.conjugate()] for z in roots]
    return np.concatenate(pairs)


def _curvature(roots: np.ndarray) -> float:
    """The mean square distance of the phase of prod (1 - z e^-iw) from a straight line."""
    w = np.linspace(0, np.pi, 1001)
    phase = np.unwrap(np.angle(1 - roots[:, None] * np.exp(-1j * w)), axis=1).sum(0)
    phase = phase - phase[0]
    return float(np.mean((phase - phase[-1] * w / np.pi) ** 2))


@checked
def fourier(
    shape: Sequence[int], mask: ArrayLike | None = None, *, axes: Sequence[int] | None = None
) -> Unitary | Masked:
    """The unitary Fourier transform of complex arrays, on the measured frequencies.

    D x is the transform of the array x, `np.fft.fftn(x, norm="ortho")`, times the mask; arrays are
    flattened, (n,) with n = prod(shape). In the order of `np.fft` the frequency 0 is the first; try
    `np.fft.ifftshift(mask)` for a mask with the frequency 0 in the middle.

    Args:
        shape: the shape of the array, such as (256, 256), or (coils, 256, 256).
        mask: True where a frequency is measured, or weights, as in `Masked`; of the shape of the
            array, or of its last axes. Without a mask all frequencies are measured.
        axes: the axes of the transform; by default all axes.

    Returns:
        A complex dictionary, (n, n): a `Masked` one if there is a mask.

    Raises:
        ValueError: an axis is not in the shape, or the mask does not fit.

    Example:
        >>> D = ur.dictionaries.fourier((4, 4), np.arange(16).reshape(4, 4) % 3 == 0)
        >>> y = ur.synthesize(D, np.ones((1, 16), np.complex64))
        >>> y.shape, y[0, :2].round(3).tolist()
        ((1, 16), [(4+0j), 0j])
    """
    grid, axes = _grid(shape, axes, "fourier")
    D = Unitary(jax.device_put(np.ones((), jnp.result_type(float))), "fourier", grid, axes, 1)
    if mask is None:
        return D
    known: Any = checks.on_host_or_device(mask, "mask", "fourier")
    if known.shape != grid[len(grid) - known.ndim :]:
        raise ValueError(
            f"fourier: mask has shape {known.shape}; expected {grid}, or its last axes"
        )
    xp: Any = np if checks.is_concrete(known) else jnp
    return Masked(D, xp.broadcast_to(known, grid).reshape(-1))


@checked
def wavelet(
    shape: Sequence[int], name: str, levels: int, *, axes: Sequence[int] | None = None
) -> Unitary:
    """Orthonormal wavelets on a circle: D x is the array with the wavelet coefficients x.

    `r @ D` is the transform of an array, flattened. The code has the shape of the array: along each
    axis, the coarse coefficients come first, as in `pywt.coeffs_to_array`. The transform is that of
    PyWavelets with mode="periodization", up to rounding; PyWavelets stores symlets to 1e-12.

    Args:
        shape: the shape of the array.
        name: "haar", "db2" to "db10" (Daubechies), or "sym2" to "sym10" (symlets); the number
            counts the vanishing moments, and a filter has twice as many entries.
        levels: how often the coarse part is split, at least 1.
        axes: the axes of the transform; by default all axes.

    Returns:
        A real dictionary, (n, n) with n = prod(shape). In a product with a complex dictionary, it
        acts on complex arrays.

    Raises:
        ValueError: the name is unknown, an axis is not in the shape, or 2^levels does not divide
            the length of an axis.

    Reference: Daubechies (1992), sections 6.4 and 8.1.

    Example:
        >>> D = ur.dictionaries.wavelet((4,), "haar", 2)
        >>> (jnp.array([1.0, 1.0, 3.0, 3.0]) @ D).round(3).tolist()
        [4.0, -2.0, 0.0, 0.0]
    """
    where = "wavelet"
    grid, axes = _grid(shape, axes, where)
    levels = checks.as_index(levels, "levels", where, least=1)
    names = ["haar", *(f"{kind}{n}" for kind in ("db", "sym") for n in range(2, _MOST + 1))]
    if name not in names:
        raise ValueError(
            f"{where}: name is {name!r}; expected 'haar', 'db2' to 'db{_MOST}', or 'sym2' to "
            f"'sym{_MOST}'"
        )
    for axis in axes:
        if grid[axis] % 2**levels:
            raise ValueError(
                f"{where}: axis {axis} has length {grid[axis]}; expected a multiple of "
                f"2^levels = {2**levels}, try fewer levels or a padded array"
            )
    return Unitary(jax.device_put(np.ones((), jnp.result_type(float))), name, grid, axes, levels)


def _grid(shape: Any, axes: Any, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    grid = tuple(checks.as_indices(shape, "shape", where, least=1))
    if axes is None:
        return grid, tuple(range(len(grid)))
    chosen = tuple(checks.as_indices(axes, "axes", where, least=-len(grid)))
    if not all(axis < len(grid) for axis in chosen) or not chosen:
        raise ValueError(f"{where}: axes are {chosen}; expected axes of the shape {grid}")
    return grid, tuple(sorted({axis % len(grid) for axis in chosen}))


@pytree(data=("real", "imag"))
@dataclass(frozen=True, eq=False)
class Coils(Structured):
    """The diagonal matrices of c maps, one above the other; made by `coils`.

    Example:
        >>> D = ur.dictionaries.coils(np.ones((3, 2), np.complex64))
        >>> D.shape, float(ur.dictionaries.spectral_norm(D)).__round__(3)
        ((12, 4), 1.732)
    """

    real: Array  # (c, n)
    imag: Array

    @property
    def is_complex(self) -> bool:
        return True

    @property
    def shape(self) -> tuple[int, int]:
        c, n = self.real.shape[-2:]
        return 2 * c * n, 2 * n

    @property
    def ndim(self) -> int:
        return self.real.ndim

    def synthesize(self, x: Array) -> Array:
        real, imag = x.reshape(-1, 2).T
        return _flat_pairs(
            self.real * real[None] - self.imag * imag[None],
            self.real * imag[None] + self.imag * real[None],
        )

    def analyze(self, r: Array) -> Array:
        real, imag = jnp.moveaxis(r.reshape(*self.real.shape, 2), -1, 0)
        return _flat_pairs(
            jnp.sum(self.real * real + self.imag * imag, 0),
            jnp.sum(self.real * imag - self.imag * real, 0),
        )

    def scale(self, c: ArrayLike) -> "Coils":
        return Coils(self.real * c, self.imag * c)

    def column_norms(self) -> Array:
        return jnp.repeat(norm(jnp.concatenate([self.real, self.imag]), 0), 2)

    def spectral_norm(self) -> Array:
        return jnp.max(self.column_norms())  # the columns are orthogonal

    def entries(self) -> Array:
        return jnp.stack([self.real, self.imag])


def _flat_pairs(real: Array, imag: Array) -> Array:
    return jnp.stack([real, imag], -1).reshape(-1)


def coils(maps: Any) -> Coils:
    """The images that coils see: D x is x times the map of each coil (SENSE).

    Args:
        maps: complex or real, (c, *shape): the sensitivity of each of c coils.

    Returns:
        A complex dictionary, (c n, n) with n = prod(shape). The measurements of all coils are
        `fourier((c, *shape), mask, axes=...) @ coils(maps)`, with the axes of `shape`.

    Raises:
        TypeError: the maps are not numbers, or their rows have different lengths.
        ValueError: the maps have fewer than two axes, or are not finite.

    Reference: Pruessmann, Weiger, Scheidegger, Boesiger (1999).

    Example:
        >>> maps = np.array([[1, 1j], [0.5, 2]], np.complex64)
        >>> D = ur.dictionaries.fourier((2, 2), axes=(1,)) @ ur.dictionaries.coils(maps)
        >>> D.shape
        (8, 4)
    """
    try:
        maps = maps if isinstance(maps, jax.Array) else np.asarray(maps)
    except ValueError as error:
        message = "coils: maps have rows of different lengths; expected (c, *shape)"
        raise TypeError(message) from error
    if not jnp.iscomplexobj(maps):
        maps = checks.as_float(maps, "maps", "coils")
    if maps.ndim < 2:
        raise ValueError(f"coils: maps have shape {maps.shape}; expected (c, *shape)")
    flat = maps.reshape(len(maps), -1)
    parts = tuple(checks.as_float(part, "maps", "coils") for part in (flat.real, flat.imag))
    checks.finite(parts, "maps", "coils")
    return Coils(*parts)
