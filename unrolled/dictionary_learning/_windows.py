"""Filters made from images: windows where most is left to represent; and shifts of filters."""

import numpy as np

from unrolled.dictionaries import Conv
from unrolled.dictionary_learning._signals import PARALLEL, distinct


def drawn_windows(
    D: Conv, R: np.ndarray, filters: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` unit windows, drawn with a probability in proportion to their energy.

    Args:
        D: which windows there are.
        R: (n, m), the images.
        filters: (others, n_channels prod(kernel)), to which no window is parallel.
        count: how many.
        rng: of the draw.

    Returns:
        (count, n_channels, *kernel); noise where there are not enough that differ.
    """
    grid = (len(R), *D.signal_grid)
    R = _extended(D, R.reshape(grid))
    axes = tuple(range(2, R.ndim))
    # (n, n_channels, *positions, *kernel), a view
    windows = np.lib.stride_tricks.sliding_window_view(R, D.kernel, axes)
    places = tuple(slice(0, (p - 1) * t + 1, t) for p, t in zip(D.positions, D.stride))
    windows = windows[:, :, *places]
    energy = _window_sums(np.sum(R.astype(float) ** 2, 1), D.kernel)[:, *places]
    odds = np.maximum(energy, 0).reshape(-1)
    wanted, size = min(10 * count, int(np.count_nonzero(odds))), filters.shape[1]
    candidates = np.zeros((0, size), R.dtype)
    if wanted:
        chosen = rng.choice(len(odds), wanted, replace=False, p=odds / odds.sum())
        image, *position = np.unravel_index(chosen, energy.shape)
        candidates = np.moveaxis(windows, 1, len(D.kernel) + 1)[image, *position]
    rows = distinct(candidates.reshape(-1, size), filters.T, count, rng)
    return rows.reshape(count, D.signal_grid[0], *D.kernel)


def _extended(D: Conv, R: np.ndarray) -> np.ndarray:
    """Images continued on the far side, as far as the last window reaches."""
    sizes = zip(D.positions, D.stride, D.kernel, D.signal_shape)
    reach = [(0, max(0, (p - 1) * t + n - N)) for p, t, n, N in sizes]
    return np.pad(R, [(0, 0), (0, 0), *reach], "wrap" if D.boundary == "circular" else "constant")


def _window_sums(E: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """Sums over all windows of the kernel: (n, *signal) -> (n, *positions)."""
    for axis, n in enumerate(kernel, start=1):
        sums = np.cumsum(E, axis)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
        length = sums.shape[axis]
        E = sums.take(range(n, length), axis) - sums.take(range(length - n), axis)
    return E


def shifted_copies(filters: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Indices of the filters that are nearly a shift of one that is used more, up to sign."""
    kernel = filters.shape[2:]
    shape = tuple(2 * n - 1 for n in kernel)
    axes = tuple(range(2, filters.ndim))
    spectra = np.fft.rfftn(filters, shape, axes)
    order = np.argsort(-use, kind="stable")
    copies: list[int] = []
    for rank, j in enumerate(order):
        others = order[:rank]
        products = np.sum(spectra[others] * spectra[j].conj(), 1)
        inner = np.fft.irfftn(products, shape, tuple(range(1, products.ndim)))
        if np.abs(inner).max(initial=0) > PARALLEL:
            copies.append(int(j))
    return np.array(sorted(copies), int)


def steps_to_centre(D: Conv) -> np.ndarray:
    """By how many positions each filter is to move to have its centre of energy in the middle.

    Returns:
        (n_atoms, axes), integers.
    """
    energy = np.sum(np.square(D.filters), 1).reshape(len(D.filters), -1)
    places = np.indices(D.kernel).reshape(len(D.kernel), -1)
    total = energy.sum(1, keepdims=True)
    centre = energy @ places.T / np.where(total > 0, total, 1)
    return np.rint(((np.array(D.kernel) - 1) / 2 - centre) / D.stride).astype(int)


def moved(A: np.ndarray, steps: np.ndarray, circular: bool) -> np.ndarray:
    """A with entry k of its last axes at k + step; zeros come in, or what left on the far side."""
    sides = [(max(s, 0), max(-s, 0)) for s in steps.tolist()]
    first = A.ndim - len(sides)
    sides = [(0, 0)] * first + sides
    inside = tuple(slice(after, after + n) for (_, after), n in zip(sides, A.shape))
    return np.pad(A, sides, "wrap" if circular else "constant")[inside]
