"""`dictionaries.Conv` on batches of images: strided convolutions and their exact adjoints."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, loops
from unrolled._base.checks import Array
from unrolled._base.numbers import exponent, norm, times_power
from unrolled.dictionaries import Conv, pytree


@pytree(data=("kernel",), static=("side", "stride", "padding"))
@dataclass(frozen=True, eq=False)
class ImageConv:
    r"""A dictionary of filters for batches of images, with `r @ D` and `D @ x`.

    Analysis maps images (N, H, W, C) to codes (N, h, w, m),

    .. math:: (D' r)[n, i, f] = \sum_{k, c} kernel[k, c, f] \; r[n, i t + k - p, c],

    with r = 0 outside of the image, and synthesis is its exact adjoint. Image by image both are
    those of `conv`, on the image framed by p zeros.

    Gradients are those of reverse mode; forward mode is not defined.

    Args:
        kernel: (k, k, C, m).
        side: (H, W) of the images.
        stride: t.
        padding: p, zeros on every side of an image.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is out of range; in a product, images or codes of another shape.

    Example:
        >>> D = ur.vision.models.ImageConv(jnp.ones((3, 3, 1, 2)), (5, 5), stride=2)
        >>> codes = jnp.ones((4, 5, 5, 1)) @ D
        >>> codes.shape, codes[0, 0, 0].tolist(), (D @ codes).shape
        ((4, 2, 2, 2), [9.0, 9.0], (4, 5, 5, 1))
    """

    kernel: Array
    side: tuple[int, int]
    stride: int = 1
    padding: int = 0

    __array_ufunc__ = None  # an array of numpy leaves products to this class

    def __post_init__(self):
        side = checks.as_indices(self.side, "side", "ImageConv", least=1)
        if len(side) != 2:
            raise ValueError(f"ImageConv: side is {self.side}; expected (H, W)")
        object.__setattr__(self, "side", side)  # a list is no static field
        checks.as_index(self.stride, "stride", "ImageConv", least=1)
        checks.as_index(self.padding, "padding", "ImageConv")
        if isinstance(self.kernel, list | tuple):
            object.__setattr__(self, "kernel", checks.as_float(self.kernel, "kernel", "ImageConv"))
        shape = jnp.shape(self.kernel)
        k, other = shape[-4:-2] if len(shape) > 3 else (0, 1)  # of one kernel, or of several
        if k != other or k > min(side) + 2 * self.padding:
            raise ValueError(
                f"ImageConv: the kernel has shape {shape}; expected (k, k, C, m) with k no larger "
                f"than images of {side[0]} x {side[1]} padded by {self.padding}"
            )

    @property
    def positions(self) -> tuple[int, int]:
        """(h, w), the positions of a filter."""
        k = self.kernel.shape[-4]
        h, w = ((n + 2 * self.padding - k) // self.stride + 1 for n in self.side)
        return h, w

    @property
    def conv(self) -> Conv:
        """The dictionary of one image that is framed by its padding."""
        H, W = (n + 2 * self.padding for n in self.side)
        return Conv(self.kernel.transpose(3, 2, 0, 1), (H, W), self.stride)

    def __rmatmul__(self, r: Array) -> Array:
        return _analyze(*self._operands(r, "the images", (*self.side, self.kernel.shape[-2])))

    def __matmul__(self, x: Array) -> Array:
        return _synthesize(
            *self._operands(x, "the codes", (*self.positions, self.kernel.shape[-1]))
        )

    def _operands(
        self, batch: Array, what: str, shape: tuple[int, ...]
    ) -> tuple["ImageConv", Array]:
        """The filters and the batch, checked, in the wider of their dtypes."""
        if np.shape(batch)[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(
                f"ImageConv: {what} have shape {np.shape(batch)}; expected (N, {expected})"
            )
        of_floats = jnp.issubdtype(jnp.result_type(batch), jnp.floating)
        batch = checks.as_float(batch, what, "ImageConv")
        kernel = checks.as_float(self.kernel, "kernel", "ImageConv")
        kind, dtype = batch.dtype, kernel.dtype
        # Pictures of integers take the dtype of the filters.
        dtype = kind if of_floats and jnp.finfo(kind).bits > jnp.finfo(dtype).bits else dtype
        return replace(self, kernel=kernel.astype(dtype)), batch.astype(dtype)


# The gradients of both maps are made of the two maps and the gradient of the filters, which are
# fast in these forms. XLA's transpose of a strided convolution is 40 times as slow on a CPU.

_Saved = tuple[ImageConv, Array]


@jax.custom_vjp
def _analyze(D: ImageConv, r: Array) -> Array:
    return _correlate(D, r)


@jax.custom_vjp
def _synthesize(D: ImageConv, x: Array) -> Array:
    return _spread(D, x)


def _analyze_back(saved: _Saved, g: Array) -> _Saved:
    D, r = saved
    return _of_filters(D, r, g), _synthesize(D, g)


def _synthesize_back(saved: _Saved, g: Array) -> _Saved:
    D, x = saved
    return _of_filters(D, g, x), _analyze(D, g)


_analyze.defvjp(lambda D, r: (_correlate(D, r), (D, r)), _analyze_back)
_synthesize.defvjp(lambda D, x: (_spread(D, x), (D, x)), _synthesize_back)


def _correlate(D: ImageConv, r: Array) -> Array:
    if D.positions == (1, 1) and not D.padding:
        k = len(D.kernel)
        rows = r[:, :k, :k].reshape(len(r), 1, 1, -1)
        return rows @ D.kernel.reshape(-1, D.kernel.shape[-1])
    return lax.conv_general_dilated(
        r,
        D.kernel,
        (D.stride, D.stride),
        [(D.padding, D.padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _of_filters(D: ImageConv, r: Array, x: Array) -> ImageConv:
    """The gradient of sum((r @ D) * x) in the filters."""

    def correlate(kernel):
        return _correlate(replace(D, kernel=kernel), r)

    return replace(D, kernel=loops.adjoint(correlate, D.kernel, x))


# For synthesis an image is cut into blocks as long as the stride, whose pixels are channels. A
# window is q x q blocks, and the windows overlap by whole blocks.


def _spread(D: ImageConv, x: Array) -> Array:
    """D x as a product, whose rows are windows, and the sum of these where they overlap."""
    (N, h, w, _), (k, _, C, _) = x.shape, D.kernel.shape
    if jax.default_backend() != "cpu":
        images = jax.ShapeDtypeStruct((N, *D.side, C), x.dtype)
        return loops.adjoint(partial(_correlate, D), images, x)
    q, t = -(-k // D.stride), D.stride
    windows = x @ _matrix(D).T
    blocks = jnp.zeros((N, h + q - 1, w + q - 1, t * t * C), x.dtype)
    if (h, w) == (1, 1):
        blocks = windows.reshape(blocks.shape)
    else:
        for (i, j), part in zip(np.ndindex(q, q), jnp.split(windows, q * q, -1)):
            # Updated in place. XLA would compute a sum of padded arrays again for each of its uses.
            part = blocks[:, i : i + h, j : j + w] + part
            blocks = lax.dynamic_update_slice(blocks, part, (0, i, j, 0))
    r = blocks.reshape(N, h + q - 1, w + q - 1, t, t, C).transpose(0, 1, 3, 2, 4, 5)
    return _framed(r.reshape(N, (h + q - 1) * t, (w + q - 1) * t, C), D)


def _matrix(D: ImageConv) -> Array:
    """The filters as columns, whose rows are ordered as windows are: block, pixel, channel."""
    k, _, C, m = D.kernel.shape
    q, t = -(-k // D.stride), D.stride
    kernel = jnp.pad(D.kernel, [(0, q * t - k), (0, q * t - k), (0, 0), (0, 0)])
    return kernel.reshape(q, t, q, t, C, m).transpose(0, 2, 1, 3, 4, 5).reshape(-1, m)


def _framed(r: Array, D: ImageConv) -> Array:
    """What of r, which begins with the padding, lies in the image."""
    p = D.padding
    far = [(-p, n + p - length, 0) for n, length in zip(D.side, r.shape[1:3])]
    return lax.pad(r, jnp.zeros((), r.dtype), [(0, 0, 0), *far, (0, 0, 0)])


def norm_from_below(D: Conv, steps: int) -> Array:
    """norm(D, 2) from below, by the steps of Lanczos in D D' from a fixed draw.

    Its square is low by .103 (ln m / (k - 1))^2 of itself after k steps, in the mean over draws,
    whatever the spectrum is (Kuczynski, Wozniakowski 1992, theorem 3.2). The gradient is that of
    norm(D x) at the last x, which is that of the norm if x has converged.
    """
    k = exponent(D.filters)  # products of filters at the ends of the range would leave it
    D = replace(D, filters=times_power(D.filters, -k))
    fixed, (m, _), dtype = lax.stop_gradient(D), D.shape, D.filters.dtype
    steps = min(steps, m)

    def step(n: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        Q, Z = state  # orthonormal rows, and their products with D D'
        z = fixed @ (Q[n] @ fixed)
        left = z - (Q @ z) @ Q
        left -= (Q @ left) @ Q  # once more, for rounding
        size = jnp.linalg.norm(left)
        # What is rounding alone is no direction: the rows before hold all there is.
        ends = size <= m * jnp.finfo(dtype).eps * jnp.linalg.norm(z)
        return Q.at[n + 1].set(left / jnp.where(ends, jnp.inf, size), mode="drop"), Z.at[n].set(z)

    start = jax.random.normal(jax.random.key(0), (m,), dtype)
    Q = jnp.zeros((steps, m), dtype).at[0].set(start / jnp.linalg.norm(start))
    Q, Z = lax.fori_loop(0, steps, step, (Q, jnp.zeros_like(Q)))
    u = jnp.linalg.eigh(Z @ Q.T)[1][:, -1] @ Q
    x = u @ fixed
    size = jnp.linalg.norm(x)
    return times_power(norm(D @ (x / jnp.where(size > 0, size, 1))), k)
