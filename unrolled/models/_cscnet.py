"""CSCNet (Simon, Elad 2019): denoising by strided convolutional LISTA, averaged over the shifts of
the picture.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from unrolled import _checks
from unrolled._checks import Array
from unrolled.dictionaries import Conv
from unrolled.layers import Threshold, Unrolled, Weights, lista_cp, magnitude
from unrolled.models._shifts import over_shifts, shift_average


class CSCNet(nnx.Module):
    r"""Denoise grey pictures by K steps of convolutional LISTA with three filter banks that the
    steps share.

    .. math:: x_{k+1} = shrink(x_k + B'(y - A x_k), theta), \quad x_0 = 0, \quad \hat y = C x_K,

    where A, B, C are `dictionaries.Conv` of one geometry: the steps are `layers.lista_cp` with D =
    A and W = B. With a stride near the kernel size the atoms are hardly coherent, but the estimate
    depends on where the grid of positions
    lies: the prediction is the mean over all stride^2 shifts of the grid, on the picture reflected
    at its borders. The mean of the picture is taken off before and put back after. Trained codes
    are not very sparse: see `density`.

    With `noise_adaptive` (as in CDLNet) theta = theta_0 + theta_1 sigma, so that one net serves a
    range of noise levels. Thresholds act as abs(theta): they stay non-negative whatever an
    optimiser does.

    Args:
        n_filters: atoms per position.
        kernel: side n of the square filters.
        stride: s, at most n.
        unfoldings: K.
        rngs: draws the start of the filters, A = B = C.
        filters: the start instead, (n_filters, n, n); either is scaled to norm(A, 2) = 1.
        theta: the thresholds at the start.
        noise_adaptive: theta follows the noise level.

    Raises:
        ValueError: a stride above the kernel, filters of another shape or not finite, counts below
            1, a negative theta; when called, a noise level that is missing or not asked for, a
            picture of another rank or too small.

    Reference: Simon, Elad, "Rethinking the CSC model for natural images" (2019); Janjusevic,
    Khalilian-Gourtani, Wang, "CDLNet" (2022) for the noise level. Ours shares the filters over the
    steps also then; CDLNet does not.
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
    ):
        sizes = dict(n_filters=n_filters, kernel=kernel, stride=stride, unfoldings=unfoldings)
        sizes = {
            name: _checks.as_index(size, name, "CSCNet", least=1) for name, size in sizes.items()
        }
        if sizes["stride"] > sizes["kernel"]:
            raise ValueError(
                f"CSCNet: stride {stride} leaves gaps between kernels of {kernel}; expected at most {kernel}"
            )
        _checks.nonnegative(theta, "theta", "CSCNet")
        self.kernel, self.stride, self.unfoldings = (
            sizes["kernel"],
            sizes["stride"],
            sizes["unfoldings"],
        )
        shape = (sizes["n_filters"], self.kernel, self.kernel)
        filters = jax.random.normal(rngs.params(), shape) if filters is None else filters
        filters = _at_norm_one(_checks.as_float(filters, "filters", "CSCNet"), shape, self.stride)
        self.A, self.B, self.C = (nnx.Param(jnp.copy(filters)) for _ in "ABC")
        self.theta = nnx.Param(jnp.full(shape[0], theta, filters.dtype))
        self.slope = nnx.Param(jnp.zeros(shape[0], filters.dtype)) if noise_adaptive else None

    def __call__(self, noisy: Array, sigma: Array | None = None) -> Array:
        """The estimate, averaged over all shifts: (H, W) as (H, W), or a batch (batch, H, W) one
        after the other.

        `sigma` is the noise level in the unit of the picture, for a noise-adaptive net: a scalar,
        or (batch,).
        """
        noisy, sigma = self._checked(noisy, sigma, batch=True)
        if noisy.ndim == 3:
            sigmas = None if sigma is None else jnp.broadcast_to(sigma, noisy.shape[:1])
            return lax.map(lambda pair: self(*pair), (noisy, sigmas))
        mean = jnp.mean(noisy)

        def estimate(window):
            return self._synthesize(self._code(window, sigma), window.shape)

        return shift_average(estimate, noisy - mean, kernel=self.kernel, stride=self.stride) + mean

    def estimate(self, window: Array, sigma: Array | None = None) -> Array:
        """The estimate of one window by the one grid that begins at its corner, (H, W): what
        training looks at.

        H - kernel and W - kernel must be multiples of the stride. Pixels nearer to the border than
        kernel - stride are under fewer atoms than the others. `jax.vmap` makes batches.
        """
        window, sigma = self._window(window, sigma)
        mean = jnp.mean(window)
        return self._synthesize(self._code(window - mean, sigma), window.shape) + mean

    def code(self, window: Array, sigma: Array | None = None) -> Array:
        """The flat code of one window, in the order of `dictionaries.Conv`; its mean is taken off
        first.
        """
        window, sigma = self._window(window, sigma)
        return self._code(window - jnp.mean(window), sigma)

    def density(self, noisy: Array, sigma: Array | None = None) -> Array:
        """The share of nonzero entries in the codes of one picture (H, W), over all shifts."""
        noisy, sigma = self._checked(noisy, sigma)

        def density(window, _):
            return jnp.mean(self._code(window, sigma) != 0, dtype=window.dtype)

        return jnp.mean(
            over_shifts(density, noisy - jnp.mean(noisy), kernel=self.kernel, stride=self.stride)
        )

    def _code(self, window: Array, sigma: Array | None) -> Array:
        A, B = (Conv(bank[...], window.shape, self.stride) for bank in (self.A, self.B))
        theta = magnitude(self.theta[...])
        if self.slope is not None:
            theta = theta + magnitude(self.slope[...]) * sigma
        params = Unrolled(
            Weights(B), Threshold(jnp.broadcast_to(theta, (self.unfoldings, *theta.shape)))
        )
        return lista_cp(self.unfoldings).apply(params, A, window.reshape(-1))

    def _synthesize(self, x: Array, shape: tuple[int, int]) -> Array:
        return (Conv(self.C[...], shape, self.stride) @ x).reshape(shape)

    def _checked(self, picture, sigma, batch: bool = False) -> tuple[Array, Array | None]:
        picture = _checks.as_float(picture, "the picture", "CSCNet")
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
        sigma = jnp.asarray(sigma, picture.dtype)
        if sigma.shape not in ((), picture.shape[:-2]):
            raise ValueError(
                f"CSCNet: sigma has shape {sigma.shape}; expected () or one per picture of a batch"
            )
        _checks.nonnegative(sigma, "sigma", "CSCNet")
        return picture, sigma

    def _window(self, window, sigma) -> tuple[Array, Array | None]:
        window, sigma = self._checked(window, sigma)
        n, s = self.kernel, self.stride
        if any(N < n or (N - n) % s for N in window.shape):
            raise ValueError(
                f"CSCNet: a window of {window.shape} does not fit; expected sides of {n} + multiples of {s}"
            )
        return window, sigma


def _at_norm_one(filters: Array, shape: tuple[int, ...], stride: int) -> Array:
    """The filters as a bank of one channel, scaled to norm(A, 2) = 1."""
    if filters.shape != shape:
        raise ValueError(f"CSCNet: filters have shape {filters.shape}; expected {shape}")
    _checks.finite(filters, "filters", "CSCNet")
    if _checks.is_concrete(filters) and not jnp.any(filters):
        raise ValueError("CSCNet: the filters are zero; expected a start with some that are not")
    return filters[:, None] / _norm(filters[:, None], stride)


@functools.partial(jax.jit, static_argnames="stride")
def _norm(filters: Array, stride: int) -> Array:
    """norm(A, 2) on a torus of four kernels, by 100 steps of power iteration."""
    side = -(-4 * filters.shape[-1] // stride) * stride
    A = Conv(filters, (side, side), stride, "circular")

    def step(_, x):
        x = (A @ x) @ A
        return x / jnp.linalg.norm(x)

    start = jax.random.normal(jax.random.key(0), A.shape[1:], filters.dtype)
    return jnp.linalg.norm(A @ lax.fori_loop(0, 100, step, start))
