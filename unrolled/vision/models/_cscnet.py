"""CSCNet (Simon, Elad 2019): denoising by strided convolutional LISTA, averaged over shifts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, checked
from unrolled._base.numbers import exponent, times_power
from unrolled.dictionaries import Conv
from unrolled.layers import Threshold, Unrolled, Weights, lista_cp, magnitude
from unrolled.vision.models._layers import check_rngs, norm_from_below

__all__ = ["CSCNet", "shift_average"]


_AT_ONCE = 8  # windows processed together, which bounds the memory


@checked
def shift_average(
    estimate: Callable[[Array], Array], picture: Array, *, kernel: int, stride: int
) -> Array:
    """The mean of an estimate over all stride^2 shifts of a strided grid.

    The picture is padded by reflection so that, under every shift, each pixel is covered by as many
    kernels as on an infinite grid. All windows have the same shape; each side is `kernel` plus a
    multiple of `stride`.

    Args:
        estimate: function that maps a window to an estimate of the same shape; traced once.
        picture: the picture, (H, W).
        kernel: side of the square kernels, in pixels.
        stride: step of the grid, in pixels, from 1 to `kernel`.

    Returns:
        The mean of the estimates, (H, W).

    Raises:
        TypeError: kernel or stride is not an integer, or estimate is not a function.
        ValueError: the picture is not (H, W), the stride is below 1 or above the kernel, or an
            estimate has another shape.

    Reference: Simon, Elad, "Rethinking the CSC model for natural images" (2019). The authors
    average the estimates of all shifts.

    Example:
        >>> from unrolled.vision.models import shift_average
        >>> def block_means(window):  # over blocks of 2 x 2 pixels
        ...     H, W = window.shape
        ...     means = window.reshape(H // 2, 2, W // 2, 2).mean((1, 3))
        ...     return jnp.kron(means, jnp.ones((2, 2)))
        >>> picture = jnp.zeros((5, 5)).at[2, 2].set(16.0)
        >>> shift_average(block_means, picture, kernel=2, stride=2)[2].tolist()
        [0.0, 2.0, 4.0, 2.0, 0.0]
    """
    reach = checks.as_index(kernel, "kernel", "shift_average", least=1) - 1
    picture = checks.as_float(picture, "the picture", "shift_average")

    def one(window: Array, shift: Array) -> Array:
        whole = jnp.asarray(estimate(window))
        if whole.shape != window.shape:
            raise ValueError(
                f"shift_average: the estimate of a window of shape {window.shape} has shape "
                f"{whole.shape}; expected the same"
            )
        return lax.dynamic_slice(whole, (reach - shift[0], reach - shift[1]), picture.shape)

    return jnp.mean(over_shifts(one, picture, kernel=kernel, stride=stride), 0)


def over_shifts(
    function: Callable[[Array, Array], Any], picture: Array, *, kernel: int, stride: int
) -> Any:
    """The results of `function(window, shift)` for all stride^2 shifts, stacked.

    A shift is a pair of numbers of rows and columns, each from 0 to stride - 1. The window of a
    shift begins at row `shift[0] - (kernel - 1)` and column `shift[1] - (kernel - 1)` of the
    picture, which is padded by reflection.
    """
    n, s = checks.as_sizes("shift_average", kernel=kernel, stride=stride)
    picture = checks.as_float(picture, "the picture", "shift_average")
    if picture.ndim != 2 or 0 in picture.shape:
        raise ValueError(f"shift_average: the picture has shape {picture.shape}; expected (H, W)")
    if s > n:
        raise ValueError(
            f"shift_average: stride {s} leaves gaps between kernels of {n}; expected at most {n}"
        )
    sides = [n + s * -(-(n - 1 + N - s) // s) for N in picture.shape]
    padded = jnp.pad(
        picture,
        [(n - 1, side + s - n - N) for side, N in zip(sides, picture.shape)],
        mode="reflect",
    )
    shifts = jnp.stack(jnp.meshgrid(jnp.arange(s), jnp.arange(s), indexing="ij"), -1).reshape(-1, 2)
    return lax.map(
        lambda shift: function(lax.dynamic_slice(padded, shift, sides), shift),
        shifts,
        batch_size=_AT_ONCE,
    )


# The number of Lanczos steps for norm(A, 2), and the side of the torus in multiples of the kernel.
_NORM_STEPS, _NORM_SIDE = 100, 4


class CSCNet(nnx.Module):
    r"""A denoiser for grey pictures: K steps of convolutional LISTA with shared filter banks.

    .. math:: x_{k+1} = shrink(x_k + B'(y - A x_k), theta), \quad x_0 = 0, \quad \hat y = C x_K,

    where A, B, C are `dictionaries.Conv` with the same geometry. The steps are the steps of
    `layers.lista_cp` with D = A and W = B. If the stride is close to the kernel size, the atoms
    have low coherence, but the estimate depends on the position of the grid. The prediction is
    therefore the mean over all stride^2 shifts of the grid on the picture padded by reflection.
    The codes of a trained net are not very sparse (see `density`).

    With `noise_adaptive`, as in CDLNet, theta = theta_0 + theta_1 sigma, so that one net denoises
    pictures with a range of noise levels.

    Args:
        n_filters: number of atoms per position.
        kernel: side n of the square filters, in pixels.
        stride: s, in pixels, at most n.
        unfoldings: K.
        rngs: the nnx.Rngs that draws the initial filters, A = B = C, unless `filters` is given.
        filters: initial filters, (n_filters, n, n). Drawn and given filters are scaled to
            norm(A, 2) = 1.
        theta: initial thresholds.
        noise_adaptive: whether theta depends on the noise level.
        subtract_mean: if True, the mean of the picture is subtracted first and added at the end.
        signed: if True, a negative threshold moves entries away from 0. If False, the thresholds
            are abs(theta) and therefore non-negative with any optimiser.

    Raises:
        TypeError: a size is not an integer, rngs is not an nnx.Rngs but filters are drawn, or
            `subtract_mean` or `signed` is not True or False.
        ValueError: the stride exceeds the kernel, filters have another shape, are zero or are not
            finite, a size is below 1, or theta is negative. A call raises ValueError if the noise
            level is missing or not expected, or if the picture does not fit.

    Reference: Simon, Elad, "Rethinking the CSC model for natural images" (2019). Thresholds that
    depend on the noise level are from Janjusevic, Khalilian-Gourtani, Wang, "CDLNet" (2022). CDLNet
    has separate filters at every step; here all steps share the filters.

    Example:
        >>> from flax import nnx
        >>> from unrolled.vision.models import CSCNet
        >>> net = CSCNet(n_filters=4, kernel=3, stride=2, unfoldings=2, rngs=nnx.Rngs(0))
        >>> noisy = jax.random.uniform(jax.random.key(0), (8, 6))
        >>> net(noisy).shape, net.code(noisy[:7, :5]).shape
        ((8, 6), (24,))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net)))  # A, B, C and theta
        112
    """

    def __init__(
        self,
        n_filters: int,
        kernel: int,
        stride: int,
        unfoldings: int,
        *,
        rngs: nnx.Rngs,
        filters: Array | None = None,
        theta: float = 0.01,
        noise_adaptive: bool = False,
        subtract_mean: bool = True,
        signed: bool = False,
    ):
        n_filters, self.kernel, self.stride, self.unfoldings = checks.as_sizes(
            "CSCNet", n_filters=n_filters, kernel=kernel, stride=stride, unfoldings=unfoldings
        )
        if self.stride > self.kernel:
            raise ValueError(
                f"CSCNet: stride {stride} leaves gaps between kernels of {kernel}; "
                f"expected at most {kernel}"
            )
        checks.nonnegative(theta, "theta", "CSCNet")
        shape = (n_filters, self.kernel, self.kernel)
        if filters is None:
            check_rngs(rngs, "CSCNet")
            filters = jax.random.normal(rngs.params(), shape)
        filters = _at_norm_one(checks.as_float(filters, "filters", "CSCNet"), shape, self.stride)
        self.A, self.B, self.C = (nnx.Param(jnp.copy(filters)) for _ in "ABC")
        self.theta = nnx.Param(jnp.full(shape[0], theta, filters.dtype))
        self.slope = nnx.Param(jnp.zeros(shape[0], filters.dtype)) if noise_adaptive else None
        self.subtract_mean = checks.as_bool(subtract_mean, "subtract_mean", "CSCNet")
        self.signed = checks.as_bool(signed, "signed", "CSCNet")

    def __call__(self, noisy: ArrayLike, sigma: ArrayLike | None = None) -> Array:
        """The denoised picture, averaged over all shifts of the grid.

        Args:
            noisy: a picture, (H, W), or a batch of pictures, (batch, H, W), which are processed one
                by one.
            sigma: noise level in the unit of the picture, of shape () or (batch,), for a
                noise-adaptive net.

        Returns:
            The denoised pictures, in the shape of `noisy`.
        """
        noisy, sigma = self._checked(noisy, sigma, batch=True)
        if noisy.ndim == 3:
            sigmas = None if sigma is None else jnp.broadcast_to(sigma, noisy.shape[:1])
            return lax.map(lambda pair: self(*pair), (noisy, sigmas))
        mean = self._mean(noisy)

        def estimate(window: Array) -> Array:
            return self._synthesize(self._code(window, sigma), window.shape)

        return shift_average(estimate, noisy - mean, kernel=self.kernel, stride=self.stride) + mean

    def estimate(self, window: ArrayLike, sigma: ArrayLike | None = None) -> Array:
        """The estimate of one window with the grid that begins at its first pixel, for training.

        A pixel whose distance from the border is less than kernel - stride is covered by fewer
        atoms than other pixels. Use `jax.vmap` for batches.

        Args:
            window: (H, W); H - kernel and W - kernel must be multiples of the stride.
            sigma: noise level in the unit of the picture, of shape (), for a noise-adaptive net.

        Returns:
            The estimate, (H, W).
        """
        window, sigma = self._window(window, sigma)
        mean = self._mean(window)
        return self._synthesize(self._code(window - mean, sigma), window.shape) + mean

    def code(self, window: ArrayLike, sigma: ArrayLike | None = None) -> Array:
        """The code of one window minus its mean, flat as in `dictionaries.Conv`.

        Args:
            window: (H, W); H - kernel and W - kernel must be multiples of the stride.
            sigma: noise level in the unit of the picture, of shape (), for a noise-adaptive net.

        Returns:
            The code, (d,).
        """
        window, sigma = self._window(window, sigma)
        return self._code(window - self._mean(window), sigma)

    def density(self, noisy: ArrayLike, sigma: ArrayLike | None = None) -> Array:
        """The fraction of nonzero entries in the codes of one picture, over all shifts.

        Args:
            noisy: the picture, (H, W).
            sigma: noise level in the unit of the picture, of shape (), for a noise-adaptive net.

        Returns:
            The fraction, an array of shape () with a value in [0, 1].
        """
        noisy, sigma = self._checked(noisy, sigma)

        def density(window: Array, _: Array) -> Array:
            return jnp.mean(self._code(window, sigma) != 0, dtype=window.dtype)

        return jnp.mean(
            over_shifts(density, noisy - self._mean(noisy), kernel=self.kernel, stride=self.stride)
        )

    def _mean(self, picture: Array) -> ArrayLike:
        """The mean to subtract from a picture, or 0."""
        return jnp.mean(picture) if self.subtract_mean else 0

    def _code(self, window: Array, sigma: Array | None) -> Array:
        A, B = (Conv(bank[...], window.shape, self.stride) for bank in (self.A, self.B))
        sign = (lambda v: v) if self.signed else magnitude
        theta = sign(self.theta[...])
        if self.slope is not None and sigma is not None:  # both are given, or both are None
            theta = theta + sign(self.slope[...]) * sigma
        params = Unrolled(
            Weights(B), Threshold(jnp.broadcast_to(theta, (self.unfoldings, *theta.shape)))
        )
        apply = lista_cp(self.unfoldings).apply
        if self.signed:  # the layer rejects negative thresholds unless they are traced
            apply = jax.jit(apply)
        return apply(params, A, window.reshape(-1))

    def _synthesize(self, x: Array, shape: tuple[int, ...]) -> Array:
        return (Conv(self.C[...], shape, self.stride) @ x).reshape(shape)

    def _checked(
        self, picture: ArrayLike, sigma: ArrayLike | None, batch: bool = False
    ) -> tuple[Array, Array | None]:
        """A picture and its noise level as arrays; raises if an argument does not fit the net."""
        picture = checks.as_float(picture, "the picture", "CSCNet")
        if picture.ndim != 2 and not (batch and picture.ndim == 3) or 0 in picture.shape:
            expected = "(H, W)" + " or (batch, H, W)" * batch
            raise ValueError(f"CSCNet: the picture has shape {picture.shape}; expected {expected}")
        if (sigma is None) != (self.slope is None):
            wants = (
                "takes no sigma; try noise_adaptive=True"
                if self.slope is None
                else "needs the noise level sigma"
            )
            raise ValueError(f"CSCNet: this net {wants}")
        if sigma is None:
            return picture, None
        sigma = checks.as_float(sigma, "sigma", "CSCNet").astype(picture.dtype)
        if sigma.shape not in ((), picture.shape[:-2]):
            raise ValueError(
                f"CSCNet: sigma has shape {sigma.shape}; expected () or one per picture of a batch"
            )
        checks.nonnegative(sigma, "sigma", "CSCNet")
        return picture, sigma

    def _window(self, window: ArrayLike, sigma: ArrayLike | None) -> tuple[Array, Array | None]:
        """A window and its noise level as arrays; raises if the grid does not fit the window."""
        window, sigma = self._checked(window, sigma)
        n, s = self.kernel, self.stride
        if any(N < n or (N - n) % s for N in window.shape):
            raise ValueError(
                f"CSCNet: a window of {window.shape} does not fit; "
                f"expected sides of {n} + multiples of {s}"
            )
        return window, sigma


def _at_norm_one(filters: Array, shape: tuple[int, ...], stride: int) -> Array:
    """The filters as a bank of one channel, scaled to norm(A, 2) = 1."""
    if filters.shape != shape:
        raise ValueError(f"CSCNet: filters have shape {filters.shape}; expected {shape}")
    checks.finite(filters, "filters", "CSCNet")
    if checks.is_concrete(filters) and not jnp.any(filters):
        raise ValueError("CSCNet: the filters are zero; expected some that are not")
    filters = times_power(filters, -exponent(filters))[:, None]  # keeps squares in the range
    side = -(-_NORM_SIDE * filters.shape[-1] // stride) * stride
    bank = Conv(filters, (side, side), stride, "circular")
    return filters / norm_from_below(bank, _NORM_STEPS)
