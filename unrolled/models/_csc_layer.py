"""A convolutional layer of flax.nnx that is a pursuit: T more steps after its forward pass."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unrolled import _checks
from unrolled._checks import Array
from unrolled._numbers import exponent, times_power
from unrolled.activations import Activation, relu
from unrolled.layers import as_activation, magnitude
from unrolled.models._layers import check_extent, check_pictures, check_rngs

# The response of a filter of side n is sampled at this many times n frequencies per dimension.
_FINE = 6


class CSCLayer(nnx.Conv):
    r"""A drop-in for `nnx.Conv` followed by its activation: a convolutional sparse coding layer.

    .. math:: x \leftarrow \rho(x + W'(y - s W x) + b), \qquad \text{T + 1 times, from } x = 0,

    where W'y is the convolution and W x its adjoint. T = 0 is the layer rho(conv(y) + b) exactly.
    With ReLU these are steps of ISTA of size 1 / s for the non-negative LASSO

    .. math:: \min_{x \ge 0} \|y - D x\|^2 / 2 - s \, b'x, \qquad D = s W,

    which converge if s norm(W)^2 <= 1, see `step_ratio`. So it starts, for pictures of every size;
    training may leave it. s is one number, which T = 0 does not have; the other params are those of
    `nnx.Conv`.

    Args:
        in_features, out_features, kernel_size, strides: as of `nnx.Conv`.
        unfoldings: T.
        warm: whether calls give a start in place of 0.
        activation: rho, any activation or its name.
        batch_norm: put a batch norm inside of the activation, in place of b. Statistics differ from
            step to step, so that each of the T + 1 has a batch norm of its own. They follow
            `train()` and `eval()` of the model.
        padding: "SAME", "VALID" or "CIRCULAR".
        kernel_dilation, use_bias, options: as of `nnx.Conv`; not `feature_group_count`.

    Raises:
        TypeError: a size is no integer, the activation is none, or rngs is no nnx.Rngs.
        ValueError: a size is below 1, unfoldings < 0, or groups; when called, pictures of other
            channels, filters longer than a picture, or a start of another shape or that `warm` did
            not announce.

    Reference: Sulam, Aberdam, Beck, Elad (2020); Zhang, Zhang (2021) for the start.

    Example:
        >>> from flax import nnx
        >>> from unrolled.models import CSCLayer
        >>> layer = CSCLayer(3, 8, (3, 3), unfoldings=2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((4, 6, 6, 3))).shape, round(float(layer.step_ratio()), 3)
        ((4, 6, 6, 8), 1.0)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, ...],
        strides: int | tuple[int, ...] | None = 1,
        *,
        rngs: nnx.Rngs,
        unfoldings: int = 0,
        warm: bool = False,
        activation: Activation | Callable | str = relu,
        batch_norm: bool = False,
        padding: str = "SAME",
        use_bias: bool = True,
        **options: Any,
    ):
        where = "CSCLayer"
        in_features = _checks.as_index(in_features, "in_features", where, least=1)
        out_features = _checks.as_index(out_features, "out_features", where, least=1)
        kernel_size = _sizes(kernel_size, "kernel_size", where)
        strides = None if strides is None else _sizes(strides, "strides", where)
        if (dilation := options.get("kernel_dilation")) is not None:
            options["kernel_dilation"] = _sizes(dilation, "kernel_dilation", where)
        unfoldings = _checks.as_index(unfoldings, "unfoldings", where)
        activation = as_activation(activation, "activation", where)
        warm, batch_norm, use_bias = (
            _checks.as_bool(flag, name, where)
            for name, flag in (("warm", warm), ("batch_norm", batch_norm), ("use_bias", use_bias))
        )
        if padding not in ("SAME", "VALID", "CIRCULAR"):
            raise ValueError(f'CSCLayer: padding {padding!r}; expected "SAME", "VALID", "CIRCULAR"')
        if "feature_group_count" in options:
            raise ValueError("CSCLayer: feature_group_count is not supported; expected one group")
        if "input_dilation" in options:
            raise ValueError("CSCLayer: input_dilation is not supported; try strides")
        check_rngs(rngs, where)
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            padding=padding,
            use_bias=use_bias and not batch_norm,
            rngs=rngs,
            **options,
        )
        _check_sides(self)
        self.unfoldings, self.activation = unfoldings, activation
        count = unfoldings + 1 if batch_norm else 0
        self.norms = batch_norms(out_features, count, rngs, options.get("dtype")) if count else None
        squared = self._norm_bound() ** 2
        safe = 1 / jnp.where(squared == 0, 1, squared)  # every step is safe for filters of zeros
        self.step = nnx.Param(safe) if unfoldings or warm else None

    def __call__(self, inputs: Array, start: Array | None = None) -> Array:
        """The codes of pictures after T + 1 steps.

        Args:
            inputs: y, (N, H, W, in_features).
            start: x before the first step, of the shape of the codes; None is 0.

        Returns:
            (N, H', W', out_features).
        """
        where = type(self).__name__
        inputs = _checks.as_float(inputs, "the pictures", where)
        check_pictures(inputs, self.in_features, where, sides=self.kernel.ndim - 2)
        check_extent(self, inputs, where)
        convolved, adjoint = jax.vjp(super().__call__, inputs)
        if start is not None:
            start = _checks.as_float(start, "start", where)
            if self.step is None or start.shape != convolved.shape:
                expected = "warm=True" if self.step is None else convolved.shape
                raise ValueError(f"CSCLayer: start has shape {start.shape}; expected {expected}")
            start = start.astype(convolved.dtype)
        x = self._activate(0, convolved) if start is None else self._step(0, inputs, start, adjoint)
        for t in range(1, self.unfoldings + 1):
            x = self._step(t, inputs, x, adjoint)
        return x

    def _step(self, t: int, y: Array, x: Array, adjoint: Callable) -> Array:
        """rho(x + W'(y - s W x) + b)."""
        r = y - self._size() * adjoint(x)[0]
        return self._activate(t, x + super().__call__(r))

    def _activate(self, t: int, v: Array) -> Array:
        return self.activation(v if self.norms is None else self.norms[t](v))

    def _size(self) -> Array:
        """s; 0 without one."""
        return jnp.zeros(()) if self.step is None else magnitude(self.step[...])

    def step_ratio(self) -> Array:
        """s over its safe size 1 / norm(W)^2: up to 1, steps without batch norm converge.

        norm(W) is bounded for pictures of every size, by a few percent for small filters; a
        "CIRCULAR" bound leaves the stride out and may be much larger. A layer with T = 0 takes no
        such steps: 0.
        """
        return self._size() * self._norm_bound() ** 2

    def _norm_bound(self) -> Array:
        kernel, circular = self.kernel[...], self.padding == "CIRCULAR"
        kernel = kernel if self.mask is None else kernel * self.mask
        # On a circle whose length is no multiple of the stride, two windows are closer than it.
        return norm_bound(kernel, (1,) * (kernel.ndim - 2) if circular else self._apart())

    def _apart(self) -> tuple[int, ...]:
        """Strides, in units that the entries of a dilated filter have in common with them."""
        n = self.kernel.ndim - 2
        pairs = zip(*(np.broadcast_to(v or 1, n) for v in (self.strides, self.kernel_dilation)))
        return tuple(int(s // math.gcd(s, dilation)) for s, dilation in pairs)


def _sizes(sizes: Any, name: str, where: str) -> int | tuple[int, ...]:
    """One size for all dimensions, or a tuple of one for each."""
    if isinstance(sizes, tuple | list):
        if not sizes:
            raise ValueError(f"{where}: {name} is {sizes}; expected one size for each side")
        return _checks.as_indices(sizes, name, where, least=1)
    return _checks.as_index(sizes, name, where, least=1)


def _check_sides(layer: nnx.Conv) -> None:
    """Raise ValueError unless strides and dilation have as many sizes as the kernel has sides."""
    for name in ("strides", "kernel_dilation"):
        sizes, sides = getattr(layer, name), layer.kernel.ndim - 2
        if isinstance(sizes, tuple) and len(sizes) != sides:
            raise ValueError(
                f"CSCLayer: {name} is {sizes}; expected one for each of the {sides} sides"
            )


def batch_norms(features: int, count: int, rngs: nnx.Rngs, dtype: Any = None) -> nnx.List:
    """So many batch norms; they follow `train()` and `eval()` of the model that holds them."""
    norms = [_BatchNorm(features, momentum=0.9, dtype=dtype, rngs=rngs) for _ in range(count)]
    return nnx.List(norms)


class _BatchNorm(nnx.BatchNorm):
    """That of flax, with NaN where the variance leaves the range: flax has the features 0 there."""

    def __call__(self, x: Array, *args: Any, **options: Any) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # flax mixes dtypes in half precision
            y = super().__call__(x, *args, **options)
        lost = jnp.where(jnp.isinf(self.var[...]), jnp.nan, 0).astype(y.dtype)
        return y + jnp.broadcast_to(lost, y.shape)


def norm_bound(kernel: Array, strides: tuple[int, ...] | None = None) -> Array:
    """An upper bound of the norm of a convolution, for pictures of every size and every padding.

    The squared response is a trigonometric polynomial of degree n - 1 in every dimension: its
    maximum is at most that over M frequencies, divided by cos(pi (n - 1) / M) for each. A stride s
    makes s frequencies one, with the mean of their squares, of degree (n - 1) // s.

    Args:
        kernel: (*sides, C_in, C_out), with any dilation.
        strides: one of each side; a part of it that is a factor of the dilation has no effect.
    """
    # On the host if it can be: JAX would compile this anew for every layer of a model.
    xp: Any = np if _checks.is_concrete(kernel) else jnp
    k = exponent(jnp.asarray(kernel))  # whose squares stay in the range
    filters = xp.moveaxis(xp.asarray(times_power(jnp.asarray(kernel), -k)), (-2, -1), (0, 1))
    (channels, features), sides = filters.shape[:2], kernel.shape[:-2]
    strides = strides or (1,) * len(sides)
    apart = tuple(-(-_FINE * n // s) for n, s in zip(sides, strides))  # M / s
    fine = tuple(s * M for s, M in zip(strides, apart))
    response = xp.fft.fftn(filters, fine, tuple(range(2, filters.ndim)))
    parts = [size for pair in zip(strides, apart) for size in pair]
    axes = (*range(3, 2 + len(parts), 2), *range(2, 2 + len(parts), 2), 0, 1)
    H = xp.transpose(response.reshape(channels, features, *parts), axes)
    H = H.reshape(math.prod(apart), -1, features)  # frequencies that are one add channels
    H = H if H.shape[1] < H.shape[2] else xp.swapaxes(H, 1, 2)  # the smaller of two products
    gram = H @ xp.swapaxes(H, 1, 2).conj() / math.prod(strides)
    degrees = ((n - 1) // s for n, s in zip(sides, strides))
    between = math.prod(math.cos(math.pi * n / M) for n, M in zip(degrees, apart))
    bound = jnp.sqrt(jnp.asarray(xp.linalg.eigvalsh(gram).max() / between, kernel.dtype))
    return times_power(bound, k)
