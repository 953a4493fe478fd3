"""Scores of pictures that look at windows."""

from typing import Any

import numpy as np

from unrolled._base.doors import Array, ArrayLike, checked
from unrolled._base.numbers import wide_dtype
from unrolled.metrics._codes import of_rows, same_shape

__all__ = ["ssim"]

_WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)  # 11 weights of a Gaussian of deviation 1.5
_WINDOW /= _WINDOW.sum()
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2  # the constants of the paper, for pictures of peak 1


@checked
def ssim(estimate: ArrayLike, reference: ArrayLike, peak: float = 1.0) -> Array:
    r"""The structural similarity of pictures: the mean over all windows of 11 x 11 pixels of

    .. math:: \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
        {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)},

    with c_1 = (0.01 peak)^2 and c_2 = (0.03 peak)^2. The means, the variances and the covariance of
    a window have Gaussian weights of deviation 1.5. Windows do not cross the border.

    Args:
        estimate, reference: pictures (..., height, width) of one shape, at least 11 x 11.
        peak: the largest possible value.

    Returns:
        One score per picture, (...,): 1 if the pictures are equal, and less otherwise.

    Raises:
        ValueError: shapes differ, or a side has fewer than 11 pixels.

    Reference: Wang, Bovik, Sheikh, Simoncelli (2004).

    Example:
        >>> picture = np.outer(np.arange(16) % 2, np.ones(16)).astype("float32")
        >>> float(ur.metrics.ssim(picture, picture))
        1.0
        >>> bool(ur.metrics.ssim(1 - picture, picture) < 0)
        True
    """
    estimate, reference = same_shape(estimate, reference, "ssim")
    if min(np.shape(estimate)[-2:], default=0) < len(_WINDOW) or np.ndim(estimate) < 2:
        raise ValueError(
            f"ssim: pictures have shape {np.shape(estimate)}; expected (..., height, width) of at "
            f"least {len(_WINDOW)} x {len(_WINDOW)} pixels"
        )
    return _ssim(estimate, reference, peak)


@of_rows
def _ssim(xp: Any, estimate: Array, reference: Array, peak: ArrayLike) -> Array:
    wide, dtype = wide_dtype(estimate.dtype), estimate.dtype  # variances need more than float16
    x, y = (v.astype(wide) / xp.asarray(peak, wide) for v in (estimate, reference))
    centre = y.mean((-2, -1), keepdims=True)  # variances of what remains lose fewer digits
    u, v = x - centre, y - centre
    mean_u, mean_v = _windows(u), _windows(v)
    spread = (_windows(u * u) - mean_u**2) + (_windows(v * v) - mean_v**2)
    shared = _windows(u * v) - mean_u * mean_v
    mean_x, mean_y = mean_u + centre, mean_v + centre
    light = (2 * mean_x * mean_y + _LUMINANCE) / (mean_x**2 + mean_y**2 + _LUMINANCE)
    return (light * (2 * shared + _CONTRAST) / (spread + _CONTRAST)).mean((-2, -1)).astype(dtype)


def _windows(z: Array) -> Array:
    """The weighted mean of every window."""
    rows, columns = (side - len(_WINDOW) + 1 for side in z.shape[-2:])
    weights = list(enumerate(_WINDOW.tolist()))
    z = sum(w * z[..., i : i + rows, :] for i, w in weights)
    return sum(w * z[..., i : i + columns] for i, w in weights)
