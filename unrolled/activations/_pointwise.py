"""The usual activations with their constants."""

import math

import jax
import jax.numpy as jnp

from unrolled._arguments import checked
from unrolled._numbers import widened
from unrolled.activations._activation import Activation, _relu, one_signed, parameter, shown


# Module-level functions of our own, since those of jax.nn cannot be pickled, and since its celu
# loses NaN as its relu does.
def _leaky_relu(x, slope):
    return jax.nn.leaky_relu(x, slope)


def _elu(x, alpha):
    return jax.nn.elu(x, alpha)


def _celu(x, alpha):
    wide = widened(x)  # alpha may be below the range of half precision
    tail = alpha * jnp.expm1(jnp.where(wide > 0, jnp.zeros_like(wide), wide) / alpha)
    return jnp.where(wide > 0, wide, tail).astype(x.dtype)


def _selu(x):
    return jax.nn.selu(x)


def _silu(x):
    return jax.nn.silu(x)


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x):
    # From 10 on the tanh is +-1 in float64; further out the derivative of the cube overflows.
    clipped = jnp.clip(x, -10, 10)
    return x * (0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (clipped + 0.044715 * clipped**3))))


def _mish(x):
    # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2) with e = exp(x): one exponential, not three
    # functions. From x = 20 on the ratio is 1 in float64. Half precision has no such exponentials.
    wide = widened(x)
    e = jnp.exp(jnp.minimum(wide, jnp.asarray(20, wide.dtype)))
    n = e * (e + 2)
    return (wide * (n / (n + 2))).astype(x.dtype)


def _softplus(x):
    return jax.nn.softplus(x)


def _hard_swish(x):
    return jax.nn.hard_swish(x)


relu = one_signed("relu", _relu, lipschitz=0.0, sup=0.0, gap=0.0, exact=True)
silu = one_signed("silu", _silu, lipschitz=0.5, sup=0.27846455, gap=0.27846455)
gelu = one_signed("gelu", _gelu, lipschitz=0.5, sup=0.16997121, gap=0.16997121)
gelu_tanh = one_signed("gelu_tanh", _gelu_tanh, lipschitz=0.5, sup=0.17004076, gap=0.17004076)
mish = one_signed("mish", _mish, lipschitz=0.6, sup=0.30884342, gap=0.30884342)
softplus = one_signed("softplus", _softplus, lipschitz=0.5, sup=0.69314719, gap=0.69314719)
hard_swish = one_signed("hard_swish", _hard_swish, lipschitz=0.5, sup=0.375, gap=0.375)
# SELU has slope 1.0507 on x > 0, so no scaling brings it near ReLU; selu(k x) / (1.0507 k) is
# scale(elu(1.6732632423543772), k).
selu = Activation("selu", 1.7580994, 1.7580994, 1.7580994, math.inf, _selu)


@checked
def leaky_relu(slope: float) -> Activation:
    """max(x, 0) + slope min(x, 0); its tail is unbounded unless slope = 0.

    Raises:
        ValueError: slope outside [0, 1].

    Example:
        >>> ur.activations.leaky_relu(0.1)(jnp.array([-10.0, 10.0])).tolist()
        [-1.0, 10.0]
    """
    slope = parameter(slope, "slope", "leaky_relu", most=1.0)
    unbounded = math.inf if slope else 0.0
    return one_signed(
        f"leaky_relu({shown(slope)})",
        _leaky_relu,
        (slope,),
        lipschitz=slope,
        sup=unbounded,
        gap=unbounded,
        exact=True,
    )


@checked
def elu(alpha: float = 1.0) -> Activation:
    """x for x >= 0, alpha (exp(x) - 1) below; Theorem 9 requires alpha < 1.

    Raises:
        ValueError: alpha negative, infinite or NaN.

    Example:
        >>> ur.activations.elu(0.5).tail_lipschitz
        0.5
    """
    alpha = parameter(alpha, "alpha", "elu")
    return one_signed(
        f"elu({shown(alpha)})", _elu, (alpha,), lipschitz=alpha, sup=alpha, gap=alpha, exact=True
    )


@checked
def celu(alpha: float = 1.0) -> Activation:
    """x for x >= 0, alpha (exp(x / alpha) - 1) below: slope 1 at 0-, bounded by alpha.

    Raises:
        ValueError: alpha not positive, infinite or NaN.

    Example:
        >>> ur.activations.celu(0.5).tail_lipschitz, ur.activations.celu(0.5).tail_sup
        (1.0, 0.5)
    """
    alpha = parameter(alpha, "alpha", "celu", positive=True)
    return one_signed(
        f"celu({shown(alpha)})", _celu, (alpha,), lipschitz=1.0, sup=alpha, gap=alpha, exact=True
    )
