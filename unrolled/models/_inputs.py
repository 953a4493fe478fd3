"""Checks of what models and layers take: pictures, and what draws their params."""

from typing import Any

from flax import nnx

from unrolled import _checks
from unrolled._checks import Array


def check_rngs(rngs: Any, where: str) -> None:
    """Raise TypeError unless `rngs` can draw params, as `nnx.Rngs(0)` does."""
    if not callable(getattr(rngs, "params", None)):
        raise TypeError(
            f"{where}: rngs draws the params and must be a flax.nnx.Rngs, got "
            f"{type(rngs).__name__}; try rngs=nnx.Rngs(0)"
        )


def as_pictures(x: Array, like: nnx.Param, channels: int, where: str) -> Array:
    """Pictures in the dtype of the param `like`; raises unless they are (N, H, W, channels)."""
    x = _checks.as_float(x, "x", where)
    check_pictures(x, channels, where)
    return x.astype(like.dtype)


def check_pictures(x: Array, channels: int, where: str, *, sides: int = 2) -> None:
    """Raise ValueError unless x is (N, H, W, channels), with so many sides, and not empty."""
    if x.ndim != sides + 2 or x.shape[-1] != channels or 0 in x.shape:
        axes = ", ".join(("N", *"HWD"[:sides], str(channels)))
        raise ValueError(f"{where}: the pictures have shape {x.shape}; expected ({axes})")


def check_extent(conv: nnx.Conv, x: Array, where: str) -> None:
    """Raise ValueError if the filters of a convolution are too long for pictures x."""
    sides, kernel, dilation = x.shape[1:-1], conv.kernel.shape[:-2], conv.kernel_dilation
    each = dilation if isinstance(dilation, tuple | list) else (dilation or 1,) * len(kernel)
    extents = [(n - 1) * delta + 1 for n, delta in zip(kernel, each)]
    # With padding, the outermost entries of a filter in the middle must not miss the picture.
    needed = extents if conv.padding == "VALID" else [e // 2 + 1 for e in extents]
    if any(N < least for N, least in zip(sides, needed)):
        raise ValueError(
            f"{where}: filters of extent {tuple(extents)} are too long for pictures of {sides}; "
            "try a smaller kernel or dilation"
        )
