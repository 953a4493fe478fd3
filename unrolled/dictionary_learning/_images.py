"""Images and filters that a caller of `convolutional` gives, checked."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import Conv
from unrolled.dictionary_learning._signals import Signals, as_signals


def checked_images(
    images: ArrayLike,
    filters: tuple[int, ...] | ArrayLike,
    geometry: tuple[int | tuple[int, ...], str],
    weights: ArrayLike | None,
    mask: ArrayLike | None,
    where: str,
) -> tuple[Signals, Conv, bool]:
    """The images in rows, a `Conv` of the right shape, and whether it holds filters to start from.

    Without filters its own are zero.
    """
    _checks.on_host((images, filters, weights, mask), where, "images, filters, weights or mask")
    has_filters = np.ndim(filters) > 1
    bank = _checks.as_float(filters, "filters", where) if has_filters else _zeros(filters, where)
    images = _checks.as_float(images, "images", where)
    dimensions, shape = bank.ndim - 2, images.shape
    if dimensions < 1 or images.ndim not in (dimensions + 1, dimensions + 2) or 0 in shape:
        raise ValueError(
            f"{where}: images have shape {shape} and filters {bank.shape}; expected (n, n_channels,"
            " *signal_shape), or (n, *signal_shape), and (n_atoms, n_channels, *kernel)"
        )
    channels, *kernel = bank.shape[1:]
    planes = shape[1] if images.ndim == dimensions + 2 else 1
    if planes != channels:
        raise ValueError(
            f"{where}: images of shape {shape} have {planes} channels but filters have {channels}"
        )
    signal_shape = shape[-dimensions:]
    if any(n > N for n, N in zip(kernel, signal_shape)):
        raise ValueError(
            f"{where}: filters of shape {tuple(kernel)} are longer than images of {signal_shape}"
        )
    signals = as_signals(
        images.reshape(len(images), -1),
        where,
        _rows(weights, shape, "weights", where),
        _rows(mask, shape, "mask", where),
        "images",
    )
    D = Conv(bank.astype(signals.Y.dtype), signal_shape, *geometry)
    return signals, D, has_filters


def _zeros(shape: Any, where: str) -> Array:
    sizes = [_checks.as_index(n, "filters", where, least=1) for n in np.atleast_1d(shape)]
    return jnp.zeros(sizes)


def _rows(
    value: ArrayLike | None, shape: tuple[int, ...], name: str, where: str
) -> np.ndarray | None:
    """Weights of whole images, or of their samples, in rows."""
    if value is None:
        return None
    value = np.asarray(value)
    if value.shape not in (shape, shape[:1]):
        raise ValueError(
            f"{where}: {name} has shape {value.shape}; expected {shape}, as the images, or "
            f"{shape[:1]}"
        )
    return value.reshape(len(value), -1)
