"""Convolutions and pooling of pictures (N, H, W, C), in the form that is fastest on the device.

`ImageConv` is `dictionaries.Conv` for batches of pictures.

All forms compute the same sums as `lax.conv_general_dilated`, but in another order. On accelerators
this module calls `lax.conv_general_dilated` itself. On a CPU (jaxlib 0.10),
`lax.conv_general_dilated` uses loops instead of matrix products for few channels and for maps of at
most 2 x 2 pixels. For many channels Winograd's form needs fewer multiplications. For a large map
the gradient of the kernel is faster in strips that stay in the cache. Run `benchmarks/cnn.py` to
see whether the other forms are still faster than `lax.conv_general_dilated`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from unrolled._base import checks, programs
from unrolled._base.checks import Array
from unrolled._base.numbers import wide_dtype
from unrolled.activations import is_monotone
from unrolled.dictionaries import Conv, pytree

__all__ = ["ImageConv"]


_B = np.array([[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]])
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = np.array([[1, 0], [1, 1], [1, -1], [0, -1]])
_TILES_AT_ONCE = 1024  # number of pixels whose tiles stay in the cache

Tile = list[list[Array]]  # the entries are separate arrays because stacking would cost a copy


@jax.custom_vjp
def winograd(x: Array, kernel: Array) -> Array:
    """The padded correlation of x (N, H, W, C_in), with even sides, and kernel (3, 3, C_in, C_out).

    Returns:
        The outputs, (N, H, W, C_out).
    """
    return _correlation(_transform(_G, _entries(kernel)), x, 0)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Tile]]:
    filters = _transform(_G, _entries(kernel))
    return _correlation(filters, x, 0), (x, filters)


def _winograd_backward(saved: tuple[Array, Tile], g: Array) -> tuple[Array, Array]:
    x, filters = saved
    # The transform of a filter rotated by 180 degrees has the same entries in this order.
    turned = [[filters[a][b] for b in (3, 1, 2, 0)] for a in (3, 1, 2, 0)]
    return _correlation(turned, g, 1), _winograd_kernel_gradient(x, g)


def _correlation(filters: Tile, x: Array, axis: int) -> Array:
    """Winograd's sums of pictures and transformed filters; `axis` is the channel axis of x."""

    def outputs(x: Array) -> Array:
        pairs = [zip(*rows) for rows in zip(_tiles(x), filters)]
        products = [[_product(tile, filter, 1, axis) for tile, filter in row] for row in pairs]
        return _pictures(_transform(_A.T, products), *x.shape[:3])

    return lax.map(outputs, _chunks(x)).reshape(*x.shape[:3], -1)


def _winograd_kernel_gradient(x: Array, g: Array) -> Array:
    """The gradient of sum(g * outputs) with respect to the filters, (3, 3, C_in, C_out)."""

    def add(total: Tile, pair: tuple[Array, Array]) -> tuple[Tile, None]:
        x, g = pair
        squares = [[_rows(g[:, a::2, b::2]) for b in (0, 1)] for a in (0, 1)]
        rows = zip(total, _tiles(x), _transform(_A, squares))
        return [
            [sum_ + _product(tile, square, 0, 0, wide) for sum_, tile, square in zip(*row)]
            for row in rows
        ], None

    wide = wide_dtype(x.dtype)  # a long sum in half precision stops growing
    zero = jnp.zeros((x.shape[-1], g.shape[-1]), wide)
    total, _ = programs.scan(add, [[zero] * 4] * 4, (_chunks(x), _chunks(g)))
    return jnp.stack([jnp.stack(row) for row in _transform(_G.T, total)]).astype(x.dtype)


winograd.defvjp(_forward, _winograd_backward)


def _transform(M: np.ndarray, tile: Tile) -> Tile:
    """M tile M'."""
    for _ in range(2):  # multiply M by the columns, which become rows of the result
        tile = [[_combination(row, column) for row in M] for column in zip(*tile)]
    return tile


def _combination(weights: np.ndarray, arrays: tuple[Array, ...]) -> Array:
    terms = [
        array if weight == 1 else -array if weight == -1 else array * weight.astype(array.dtype)
        for weight, array in zip(weights, arrays)
        if weight
    ]
    return functools.reduce(jnp.add, terms)


def _product(a: Array, b: Array, i: int, j: int, dtype: Any = None) -> Array:
    """The matrix product over axis i of a and axis j of b; no transpose is stored in memory."""
    return lax.dot_general(a, b, (((i,), (j,)), ((), ())), preferred_element_type=dtype)


def _entries(kernel: Array) -> Tile:
    return [[kernel[a, b] for b in range(3)] for a in range(3)]


def _tiles(x: Array) -> Tile:
    """B' d B for all tiles d; each entry is (tiles, C)."""
    H, W = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tile = [[_rows(x[:, a : a + H - 1 : 2, b : b + W - 1 : 2]) for b in range(4)] for a in range(4)]
    return _transform(_B.T, tile)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _pictures(squares: Tile, N: int, H: int, W: int) -> Array:
    """Pictures (N, H, W, C) from squares of 2 x 2 outputs."""
    rows = [jnp.stack([y.reshape(N, H // 2, W // 2, -1) for y in row], 3) for row in squares]
    return jnp.stack(rows, 2).reshape(N, H, W, -1)


def _chunks(x: Array) -> Array:
    """Pictures in equal chunks of at most `_TILES_AT_ONCE` pixels, or of one picture."""
    N, H, W, _ = x.shape
    most = max(1, _TILES_AT_ONCE // (H * W))
    size = next(n for n in range(min(N, most), 0, -1) if N % n == 0)
    return x.reshape(-1, size, *x.shape[1:])


_AT_ONCE = 1024  # number of pixels whose neighbours stay in the cache


def plain(x: Array, kernel: Array, padding: str) -> Array:
    """XLA's convolution with stride 1."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers)


@jax.custom_vjp
def in_strips(x: Array, kernel: Array) -> Array:
    """The padded correlation of x (N, H, W, C_in) and kernel (3, 3, C_in, C_out).

    Returns:
        The outputs, (N, H, W, C_out).
    """
    return plain(x, kernel, "SAME")


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (d_x,) = jax.vjp(lambda x: plain(x, kernel, "SAME"), x)[1](g)
    return d_x, _kernel_gradient(x, g)


in_strips.defvjp(lambda x, kernel: (in_strips(x, kernel), (x, kernel)), _backward)


def _kernel_gradient(x: Array, g: Array) -> Array:
    """The sums of x[i + a, j + b] g[i, j] over all pixels, (3, 3, C_in, C_out).

    Each strip of rows needs one matrix product: x shifted by each b times g shifted by each -a. So
    each pixel is copied six times instead of nine times for its nine neighbours.
    """
    (H, W, C_in), C_out = x.shape[1:], g.shape[-1]
    rows = _rows_at_once(H, W)
    strips = x.reshape(-1, rows, W * C_in)
    n, top = np.divmod(np.arange(len(strips), dtype=np.int32) * np.int32(rows), np.int32(H))
    g = jnp.pad(g, ((0, 0), (1, 1), (0, 0), (0, 0))).reshape(-1, W, C_out)

    def add(carry: tuple[Array, Array], strip: tuple[Array, Any]) -> Any:
        total, between_zeros = carry
        x, first = strip
        between_zeros = lax.dynamic_update_slice(between_zeros, x, (0, C_in))
        parts = [lax.dynamic_slice_in_dim(g, first + np.int32(a), rows) for a in range(3)]
        G = jnp.concatenate(parts, -1).reshape(-1, 3 * C_out)
        X = _triples(between_zeros, C_in)
        product = lax.dot_general(G, X, (((0,), (0,)), ((), ())), preferred_element_type=wide)
        return (total + product, between_zeros), None

    wide = wide_dtype(x.dtype)  # a long sum in half precision stops growing
    zeros = jnp.zeros((3 * C_out, 3 * C_in), wide), jnp.zeros((rows, (W + 2) * C_in), x.dtype)
    (total, _), _ = programs.scan(add, zeros, (strips, n * np.int32(H + 2) + top))
    return total.astype(x.dtype).reshape(3, C_out, 3, C_in)[::-1].transpose(0, 2, 3, 1)


def _rows_at_once(H: int, W: int) -> int:
    """The number of rows of a strip, a divisor of H."""
    most = max(1, min(H, _AT_ONCE // W))
    return next(n for n in range(most, 0, -1) if H % n == 0)


def _triples(rows: Array, C: int) -> Array:
    """Each pixel and its two neighbours in the row, contiguous in memory, as (pixels, 3 C)."""
    n = rows.shape[1] // C - 2
    first = np.arange(n, dtype=np.int32)[:, None] * np.int32(C)
    numbers = lax.GatherDimensionNumbers((0, 2), (), (1,))
    X = lax.gather(rows, first, numbers, (len(rows), 3 * C), mode="clip", unique_indices=True)
    return X.reshape(-1, 3 * C)


_MANY_CHANNELS = 64  # with at least this many channels, Winograd's form saves more than it costs
_MANY_PRODUCTS = 2**26  # Winograd's form also needs at least this many products to pay off
_COLOURS = 4  # with at most this many channels, blocks of pixels are faster even without pooling
_FEW_CHANNELS = 16  # with at most this many channels, XLA's convolutions on a CPU are loops
_MANY_PIXELS = 4096  # with at least this many pixels, the kernel's gradient is faster in strips
_COLUMNS = 128  # largest number of columns in the product of blocks of pixels


def convolve(x: Array, kernel: Array, padding: str = "VALID") -> Array:
    """The correlation of pictures with a bank of filters, with stride 1.

    `convolve` and `convolve_and_pool` select the form according to shape and backend.

    Args:
        x: the pictures, (N, H, W, C_in).
        kernel: the filters, (k, k, C_in, C_out).
        padding: "VALID", or "SAME" for an output that has the size of the input.

    Returns:
        The outputs, (N, H', W', C_out).
    """
    if padding == "SAME" and kernel.shape[:2] == (3, 3) and _on_cpu():
        H, W = x.shape[1:3]
        C_in, C_out = kernel.shape[2:]
        if min(H, W) <= 2:
            return _gathered(x, kernel)
        products = x.size * C_out  # number of products for one of the nine pixels of a filter
        even = H % 2 == W % 2 == 0
        if even and min(C_in, C_out) >= _MANY_CHANNELS and products >= _MANY_PRODUCTS:
            return winograd(x, kernel)
        if C_in <= _COLOURS and C_out <= _FEW_CHANNELS:
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            return _features(_convolve_blocks(x, kernel, 2), 2)[:, :H, :W]
        if C_in >= _FEW_CHANNELS and H * W >= _MANY_PIXELS:
            return in_strips(x, kernel)
    return plain(x, kernel, padding)


def up_convolve(x: Array, kernel: Array) -> Array:
    """The transposed convolution with stride 2 and filters of 2 x 2 pixels.

    The outputs do not overlap, so the result is a matrix product whose columns are the pixels of a
    square.

    Args:
        x: the pictures, (N, H, W, C_in).
        kernel: the filters, (2, 2, C_in, C_out).

    Returns:
        The outputs, (N, 2 H, 2 W, C_out).
    """
    C_in, C_out = kernel.shape[2:]
    z = x.reshape(-1, C_in) @ kernel.transpose(2, 0, 1, 3).reshape(C_in, 4 * C_out)
    return _pixels(z.reshape(*x.shape[:3], -1), 2)


def max_pool(x: Array) -> Array:
    """The maxima of squares of 2 x 2 pixels; an odd last row or column is dropped.

    If several pixels attain a maximum, the gradient of the maximum goes to the first pixel.
    """
    return _largest(_squares(x))


def convolve_and_pool(
    x: Array, kernel: Array, bias: Array, activation: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """The features rho(conv(x) + b), without padding, and their maxima over 2 x 2 pixels.

    The maximum of rho(z) is rho at the value of z that attains the maximum. The function computes
    rho again for this quarter of the values, which is faster than storing all features and reading
    the features again.

    Args:
        x: the pictures, (N, H, W, C_in).
        kernel: the filters, (k, k, C_in, C_out).
        bias: b, (C_out,).
        activation: rho, a function of arrays (..., C_out).

    Returns:
        The maxima, (N, H' // 2, W' // 2, C_out), and the features, (N, H', W', C_out), with
        H' = H - k + 1. Under `jit`, unused features cost nothing if rho never decreases.
    """
    r = _block_side(kernel)
    z = convolve(x, kernel) if r == 1 else _convolve_blocks(x, kernel, r)
    parts = _squares if r == 1 else _quarters

    def rho(z: Array) -> Array:
        # Each row is one pixel: if the bias were repeated along a row, XLA would compute the values
        # one by one.
        pixels = z.reshape(*z.shape[:-1], z.shape[-1] // len(bias), len(bias))
        return activation(add(pixels, bias)).reshape(z.shape)

    features = rho(z)
    if is_monotone(activation):
        largest = _largest(parts(z))
    else:
        largest = _where_largest(parts(lax.stop_gradient(features)), parts(z))
    pooled = rho(largest)
    if r > 1:
        H, W = (side - len(kernel) + 1 for side in x.shape[1:3])
        pooled = _pixels(pooled, r // 2)[:, : H // 2, : W // 2]
        features = _features(features, r)[:, :H, :W]
    return pooled, features


def add(x: Array, bias: Array) -> Array:
    """x + bias for x (..., C) and bias (C,)."""
    return x + jnp.broadcast_to(bias, x.shape)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _squares(x: Array) -> list[Array]:
    """The four pixels of every square of 2 x 2 pixels."""
    H, W = (side // 2 * 2 for side in x.shape[1:3])
    return [x[:, a:H:2, b:W:2] for a in (0, 1) for b in (0, 1)]


def _largest(parts: list[Array]) -> Array:
    a, b, c, d = parts
    return _larger(_larger(a, b), _larger(c, d))


def _where_largest(keys: list[Array], values: list[Array]) -> Array:
    """The value at the largest key; the first such value if keys are equal."""
    (a, b, c, d), (va, vb, vc, vd) = keys, values
    first = jnp.where(_precedes(a, b), va, vb)
    second = jnp.where(_precedes(c, d), vc, vd)
    return jnp.where(_precedes(_larger(a, b), _larger(c, d)), first, second)


def _precedes(a: Array, b: Array) -> Array:
    """Whether a is the maximum of a and b; NaN counts as the maximum."""
    return (a >= b) | (a != a)


@jax.custom_jvp
def _larger(a: Array, b: Array) -> Array:
    return jnp.where((b > a) | (b != b), b, a)


@_larger.defjvp
def _larger_jvp(primals, tangents):
    # The gradient of jnp.maximum tests which argument equals the maximum. If XLA computes the
    # arguments again with other rounding errors, no argument equals the maximum, and the gradient
    # vanishes. A comparison of the arguments always selects one argument. The value above compares
    # the arguments in the opposite order. If both comparisons were the same, XLA would store the
    # result for the gradient and read it again for the value, which takes three times as long.
    a, b = primals
    return _larger(a, b), jnp.where(_precedes(a, b), *tangents)


def _gathered(x: Array, kernel: Array) -> Array:
    """The convolution as one product of the neighbours of every pixel and all filters."""
    H, W = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    X = jnp.concatenate([x[:, a : a + H, b : b + W] for a in range(3) for b in range(3)], -1)
    return X @ kernel.reshape(-1, kernel.shape[-1])


# For few channels, blocks of r x r pixels become channels, and the convolution becomes a matrix
# product. The column of W for a pixel of the output block holds the filter, shifted to that pixel.
# More than half of W is zero, but the product is still faster than the loops.
#
# The channels of an output block are ordered as (2, 2, r/2, r/2, C): the pixel in its square of 2 x
# 2 pixels, the square in the block, the filter. So the maxima of the squares are maxima over the
# four quarters of the channels, and the result has the order of input blocks of side r/2.


def _block_side(kernel: Array) -> int:
    """The side r of the blocks, or 1 if the convolution is computed directly."""
    C_in, C_out = kernel.shape[2:]
    if not _on_cpu() or max(C_in, C_out) > _FEW_CHANNELS:
        return 1
    return 4 if 16 * C_out <= _COLUMNS else 2


def _convolve_blocks(x: Array, kernel: Array, r: int) -> Array:
    """The convolution without padding in blocks of side r, (N, blocks, blocks, r r C_out)."""
    K = -(-(len(kernel) + r - 1) // r)  # an output block needs K x K input blocks
    h, w = (-(-(side - len(kernel) + 1) // r) for side in x.shape[1:3])
    X = _blocks(_fit(x, (h + K - 1) * r, (w + K - 1) * r), r)
    X = jnp.concatenate([X[:, a : a + h, b : b + w] for a in range(K) for b in range(K)], -1)
    # XLA has two forms of the gradient of W and uses the slower form without this call.
    W = lax.optimization_barrier(_shifted(kernel, r, K).T).T
    return (X.reshape(-1, X.shape[-1]) @ W).reshape(*X.shape[:3], -1)


def _shifted(kernel: Array, r: int, K: int) -> Array:
    """W, (K K r r C_in, r r C_out): the filters shifted to each pixel of an output block."""
    k, _, C_in, C_out = kernel.shape
    room = K * r - k

    def at(a: int, b: int) -> Array:
        return jnp.pad(kernel, ((a, room - a), (b, room - b), (0, 0), (0, 0)))

    W = jnp.stack([jnp.stack([at(a, b) for b in range(r)], 3) for a in range(r)], 3)
    W = W.reshape(K, r, K, r, C_in, r // 2, 2, r // 2, 2, C_out)
    return W.transpose(0, 2, 1, 3, 4, 6, 8, 5, 7, 9).reshape(K * K * r * r * C_in, -1)


def _fit(x: Array, H: int, W: int) -> Array:
    """The picture padded with zeros below and on the right, or cut off, to (H, W)."""
    pads = [(0, max(new - old, 0)) for new, old in zip((H, W), x.shape[1:3])]
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))[:, :H, :W]


def _blocks(x: Array, r: int) -> Array:
    """Pixels (N, h r, w r, C) as blocks (N, h, w, r r C)."""
    N, H, W, C = x.shape
    x = x.reshape(N, H // r, r, W // r, r, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(N, H // r, W // r, r * r * C)


def _pixels(x: Array, r: int) -> Array:
    """The inverse of `_blocks`; between two layers XLA removes `_pixels` and `_blocks`."""
    N, h, w, _ = x.shape
    return x.reshape(N, h, w, r, r, -1).transpose(0, 1, 3, 2, 4, 5).reshape(N, h * r, w * r, -1)


def _features(z: Array, r: int) -> Array:
    """The pixels (N, h r, w r, C) of output blocks of side r."""
    N, h, w, _ = z.shape
    z = z.reshape(N, h, w, 2, 2, r // 2, r // 2, -1).transpose(0, 1, 5, 3, 2, 6, 4, 7)
    return z.reshape(N, h * r, w * r, -1)


def _quarters(x: Array) -> list[Array]:
    """The four pixels of every square of 2 x 2 pixels in output blocks."""
    return jnp.split(x, 4, -1)


@pytree(data=("kernel",), static=("side", "stride", "padding"))
@dataclass(frozen=True, eq=False)
class ImageConv:
    r"""A dictionary of filters for batches of images, with `r @ D` and `D @ x`.

    Analysis maps images (N, H, W, C) to codes (N, h, w, m),

    .. math:: (D' r)[n, i, f] = \sum_{k, c} kernel[k, c, f] \; r[n, i t + k - p, c],

    with r = 0 outside the image. Synthesis is the exact adjoint of analysis. For each image,
    analysis and synthesis equal the products of `conv` on the image padded with p zeros.

    Gradients use reverse mode; forward mode is not defined.

    Args:
        kernel: the filters, (k, k, C, m).
        side: (H, W) of the images.
        stride: t.
        padding: p, the number of zeros on every side of an image.

    Raises:
        TypeError: a size is not an integer.
        ValueError: a size is out of range. A product raises ValueError if images or codes have
            another shape.

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

    __array_ufunc__ = None  # makes numpy arrays leave products to this class

    def __post_init__(self):
        side = checks.as_indices(self.side, "side", "ImageConv", least=1)
        if len(side) != 2:
            raise ValueError(f"ImageConv: side is {self.side}; expected (H, W)")
        object.__setattr__(self, "side", side)  # a list cannot be a static field
        checks.as_index(self.stride, "stride", "ImageConv", least=1)
        checks.as_index(self.padding, "padding", "ImageConv")
        if isinstance(self.kernel, list | tuple):
            object.__setattr__(self, "kernel", checks.as_float(self.kernel, "kernel", "ImageConv"))
        shape = jnp.shape(self.kernel)
        k, other = shape[-4:-2] if len(shape) > 3 else (0, 1)  # there may be several kernels
        if k != other or k > min(side) + 2 * self.padding:
            raise ValueError(
                f"ImageConv: the kernel has shape {shape}; expected (k, k, C, m) with k no larger "
                f"than images of {side[0]} x {side[1]} padded by {self.padding}"
            )

    @property
    def positions(self) -> tuple[int, int]:
        """The numbers (h, w) of positions of a filter."""
        k = self.kernel.shape[-4]
        h, w = ((n + 2 * self.padding - k) // self.stride + 1 for n in self.side)
        return h, w

    @property
    def conv(self) -> Conv:
        """The dictionary of one padded image."""
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
        """The filters and the checked batch, both in the wider of the two dtypes."""
        if np.shape(batch)[1:] != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(
                f"ImageConv: {what} have shape {np.shape(batch)}; expected (N, {expected})"
            )
        of_floats = jnp.issubdtype(jnp.result_type(batch), jnp.floating)
        batch = checks.as_float(batch, what, "ImageConv")
        kernel = checks.as_float(self.kernel, "kernel", "ImageConv")
        kind, dtype = batch.dtype, kernel.dtype
        # Integer pictures are converted to the dtype of the filters.
        dtype = kind if of_floats and jnp.finfo(kind).bits > jnp.finfo(dtype).bits else dtype
        return replace(self, kernel=kernel.astype(dtype)), batch.astype(dtype)


# The gradients of analysis and synthesis consist of analysis, synthesis and the gradient of the
# filters, which are all fast in these forms. On a CPU, XLA's transpose of a strided convolution
# takes 40 times as long.

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
    """The gradient of sum((r @ D) * x) with respect to the filters."""

    def correlate(kernel):
        return _correlate(replace(D, kernel=kernel), r)

    return replace(D, kernel=programs.adjoint(correlate, D.kernel, x))


# For synthesis an image is divided into blocks. The side of a block is the stride, and the pixels
# of a block are channels. A window has q x q blocks, and windows overlap by whole blocks.


def _spread(D: ImageConv, x: Array) -> Array:
    """D x: a product whose rows are windows, and the sum of the overlapping windows."""
    (N, h, w, _), (k, _, C, _) = x.shape, D.kernel.shape
    if jax.default_backend() != "cpu":
        images = jax.ShapeDtypeStruct((N, *D.side, C), x.dtype)
        return programs.adjoint(partial(_correlate, D), images, x)
    q, t = -(-k // D.stride), D.stride
    windows = x @ _matrix(D).T
    blocks = jnp.zeros((N, h + q - 1, w + q - 1, t * t * C), x.dtype)
    if (h, w) == (1, 1):
        blocks = windows.reshape(blocks.shape)
    else:
        for (i, j), part in zip(np.ndindex(q, q), jnp.split(windows, q * q, -1)):
            # The update is in place: XLA would compute a sum of padded arrays again for each use.
            part = blocks[:, i : i + h, j : j + w] + part
            blocks = lax.dynamic_update_slice(blocks, part, (0, i, j, 0))
    r = blocks.reshape(N, h + q - 1, w + q - 1, t, t, C).transpose(0, 1, 3, 2, 4, 5)
    return _framed(r.reshape(N, (h + q - 1) * t, (w + q - 1) * t, C), D)


def _matrix(D: ImageConv) -> Array:
    """The filters as columns of a matrix; the rows are ordered by block, pixel and channel."""
    k, _, C, m = D.kernel.shape
    q, t = -(-k // D.stride), D.stride
    kernel = jnp.pad(D.kernel, [(0, q * t - k), (0, q * t - k), (0, 0), (0, 0)])
    return kernel.reshape(q, t, q, t, C, m).transpose(0, 2, 1, 3, 4, 5).reshape(-1, m)


def _framed(r: Array, D: ImageConv) -> Array:
    """The part of r inside the image; r begins with the padding."""
    p = D.padding
    far = [(-p, n + p - length, 0) for n, length in zip(D.side, r.shape[1:3])]
    return lax.pad(r, jnp.zeros((), r.dtype), [(0, 0, 0), *far, (0, 0, 0)])
