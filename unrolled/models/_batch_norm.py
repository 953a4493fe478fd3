"""Batch normalisation followed by an activation, with one derivative rule for both."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from unrolled._checks import Array

_EPSILON, _MOMENTUM = 1e-5, 0.9  # the defaults of PyTorch, whose momentum is 1 - 0.9


class BatchNorm(nnx.Module):
    r"""rho(scale (x - mean) / sqrt(var + 1e-5) + bias), per channel, with 2 n params.

    In training, mean and var are those of the batch, and the running ones move a tenth of the way
    to them; `model.eval()` uses the running ones. The running var is that of the batch, with
    divisor N H W, as in flax and unlike PyTorch. Where var leaves the range, rho is of NaN: the
    limit, 0, would look like a feature.
    """

    epsilon = _EPSILON

    def __init__(self, n: int, activation: Callable[[Array], Array]):
        self.scale, self.bias = nnx.Param(jnp.ones(n)), nnx.Param(jnp.zeros(n))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(n)), nnx.BatchStat(jnp.ones(n))
        self.activation = activation
        self.use_running_average = False  # set by `model.train()` and `model.eval()`

    def __call__(self, x: Array) -> Array:
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            return _activated(x, scale, bias, self.mean[...], self.var[...], self.activation)
        y, mean, var = _normalized(x, scale, bias, self.activation)
        for running, found in ((self.mean, mean), (self.var, var)):
            running[...] = _MOMENTUM * running[...] + (1 - _MOMENTUM) * lax.stop_gradient(found)
        return y


def _activated(x, scale, bias, mean, var, activation) -> Array:
    slope = scale * jnp.where(jnp.isinf(var), jnp.nan, lax.rsqrt(var + _EPSILON))
    return activation(_per_channel(x, slope, bias - slope * mean))


def _per_channel(x: Array, slope: Array, offset: Array) -> Array:
    return x * jnp.broadcast_to(slope, x.shape) + jnp.broadcast_to(offset, x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalized(x: Array, scale: Array, bias: Array, activation) -> tuple[Array, Array, Array]:
    """The activated batch, its mean and its var. The latter two have no derivative."""
    mean = jnp.mean(x, (0, 1, 2))
    var = jnp.mean(jnp.square(x - jnp.broadcast_to(mean, x.shape)), (0, 1, 2))
    return _activated(x, scale, bias, mean, var, activation), mean, var


def _forward(x, scale, bias, activation):
    y, mean, var = _normalized(x, scale, bias, activation)
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(activation, saved, cotangents):
    x, scale, bias, mean, var = saved
    inverse = lax.rsqrt(var + _EPSILON)
    z = _per_channel(x, scale * inverse, bias - scale * inverse * mean)
    (g,) = jax.vjp(activation, z)[1](cotangents[0])
    # With u = (x - mean) inverse: d bias = sum g, d scale = sum g u, and what these two directions
    # hold of g does not reach x.
    d_bias = jnp.sum(g, (0, 1, 2))
    d_scale = inverse * (jnp.sum(g * x, (0, 1, 2)) - mean * d_bias)
    n = x.size // x.shape[-1]
    pull = inverse * d_scale / n
    centred = g - _per_channel(x, pull, d_bias / n - pull * mean)
    return centred * jnp.broadcast_to(scale * inverse, x.shape), d_scale, d_bias


_normalized.defvjp(_forward, _backward)
