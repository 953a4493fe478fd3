"""The layers of the vision models, checks of arguments, and access to named features."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from unrolled._base import checks
from unrolled._base.doors import Array, checked
from unrolled._base.numbers import exponent, norm, times_power
from unrolled.dictionaries import Conv
from unrolled.vision.models._convolution import add, convolve, convolve_and_pool, up_convolve

__all__ = ["Tapped", "submodule", "tap"]


_RECORD = "tapped_outputs"


@checked
def tap(model: nnx.Module, *names: str, inputs: bool = False) -> "Tapped":
    """A model that also returns the outputs of named submodules.

    In `outputs, features = tap(model, "conv1", "blocks.0")(x)`, features is a dictionary with one
    array per name. The tapped model shares all variables with the given model, which does not
    change. If you train one of the two models, you train the other model, too, and both models
    follow `model.train()` and `model.eval()`. Because the tapped model is a module, `nnx.jit`,
    `nnx.grad` and `nnx.Optimizer` accept the tapped model.

    A name is the path of a submodule, with attributes and indices joined by dots. Each call of the
    submodule gives one feature; k > 1 calls give the k features "name[0]", ..., "name[k-1]". If a
    call of the model sets attributes other than variables, these attributes are lost. A tapped
    model calls copies of its modules, which a second `tap` cannot reach. Pass all names to one call
    of `tap`.

    Args:
        model: any nnx.Module.
        names: paths of submodules.
        inputs: if True, the features are the first arguments of the calls instead of the outputs.

    Raises:
        TypeError: the model is not an nnx.Module, or a name is not a string.
        ValueError: there are no names, a name occurs twice, or a name does not exist (the message
            lists the names that exist). A call raises ValueError if the model does not call a
            named submodule.

    Example:
        >>> from flax import nnx
        >>> class Net(nnx.Module):  # a model of your own
        ...     def __init__(self, rngs):
        ...         sizes = ((4, 3), (3, 2))
        ...         self.layers = nnx.List([nnx.Linear(*size, rngs=rngs) for size in sizes])
        ...     def __call__(self, x):
        ...         return self.layers[1](nnx.relu(self.layers[0](x)))
        >>> net, x = Net(nnx.Rngs(0)), jnp.ones((5, 4))
        >>> tapped = ur.vision.models.tap(net, "layers.0")
        >>> outputs, features = tapped(x)
        >>> outputs.shape, features["layers.0"].shape
        ((5, 2), (5, 3))
    """
    return Tapped(model, names, inputs)


class Tapped(nnx.Module):
    """A model, made by `tap`, that also returns the outputs of named submodules."""

    def __init__(self, model: nnx.Module, names: tuple[str, ...], inputs: bool = False):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tap: expected names that differ, got {names}")
        for name in names:
            submodule(model, name)
        self.model, self.names, self.inputs = model, names, inputs

    def __call__(self, *args: Any, **options: Any) -> tuple[Any, dict[str, Array]]:
        """The outputs of the model, and the features by name."""
        model = nnx.clone(self.model, variables=False)  # separate modules with the same variables
        taps = {name: submodule(model, name) for name in self.names}
        for module in {id(module): module for module in taps.values()}.values():
            module.__class__ = _recording(type(module), self.inputs)
        outputs = model(*args, **options)
        features: dict[str, Array] = {}
        for name, module in taps.items():
            record = getattr(module, _RECORD, None)
            if record is None:
                raise ValueError(f"tap: the model does not call {name!r}; tap what it calls")
            calls = record.get_value()
            if len(calls) == 1:
                features[name] = calls[0]
            else:
                features |= {f"{name}[{k}]": output for k, output in enumerate(calls)}
        return outputs, features


@functools.cache
def _recording(cls: type, inputs: bool) -> type:
    """A subclass whose calls append the output or the input to a variable of the module."""

    class Recording(cls):
        def __call__(self, *args, **options):
            output = super().__call__(*args, **options)
            record = getattr(self, _RECORD, None)
            before = () if record is None else record.get_value()
            recorded = next(iter((*args, *options.values()))) if inputs else output
            setattr(self, _RECORD, nnx.Intermediate((*before, recorded)))
            return output

    Recording.__name__ = cls.__name__
    return Recording


@checked
def submodule(model: nnx.Module, name: str) -> nnx.Module:
    """The submodule at a path, as in `tap`.

    Raises:
        TypeError: the name is not a string.
        ValueError: no callable submodule has this path; the message lists the paths that exist.

    Example:
        >>> from flax import nnx
        >>> net = ur.vision.models.LeNet5(rngs=nnx.Rngs(0))
        >>> ur.vision.models.submodule(net, "conv1") is net.conv1
        True
    """
    node: Any = model
    try:
        for part in name.split("."):
            node = _child(node, part)
    except (AttributeError, LookupError, ValueError):
        node = None
    if not (isinstance(node, nnx.Module) and callable(node)):
        modules = nnx.iter_modules(model)
        names = [".".join(map(str, path)) for path, node in modules if path and callable(node)]
        raise ValueError(
            f"tap: {type(model).__name__} has no submodule {name!r}; it has "
            f"{', '.join(sorted(names)) or 'none'}"
        )
    return node


def _child(node: Any, part: str) -> Any:
    if isinstance(node, Mapping):
        return node[part]
    return node[int(part)] if isinstance(node, Sequence) else getattr(node, part)


_EPSILON, _MOMENTUM = 1e-5, 0.9  # the defaults of PyTorch, which defines momentum as 1 - 0.9


class BatchNorm(nnx.Module):
    r"""Batch norm, rho(scale (x - mean) / sqrt(var + 1e-5) + bias) per channel, with 2 n params.

    During training, mean and var come from the batch, and the running values move a tenth of the
    way towards mean and var. After `model.eval()`, mean and var are the running values. The running
    var follows the var of the batch with divisor N H W, as in flax and unlike PyTorch. If var
    overflows, the result is rho of NaN, because the limit 0 would look like a feature.
    """

    epsilon = _EPSILON

    def __init__(self, n: int, activation: Callable[[Array], Array]):
        self.scale, self.bias = nnx.Param(jnp.ones(n)), nnx.Param(jnp.zeros(n))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(n)), nnx.BatchStat(jnp.ones(n))
        self.activation = activation
        self.use_running_average = False  # `model.train()` and `model.eval()` set this attribute

    def __call__(self, x: Array) -> Array:
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            return _activated(x, scale, bias, self.mean[...], self.var[...], self.activation)
        y, mean, var = _normalized(x, scale, bias, self.activation)
        for running, moment in ((self.mean, mean), (self.var, var)):
            running[...] = _MOMENTUM * running[...] + (1 - _MOMENTUM) * lax.stop_gradient(moment)
        return y


def _activated(x, scale, bias, mean, var, activation) -> Array:
    slope = scale * jnp.where(jnp.isinf(var), jnp.nan, lax.rsqrt(var + _EPSILON))
    return activation(_per_channel(x, slope, bias - slope * mean))


def _per_channel(x: Array, slope: Array, offset: Array) -> Array:
    return x * jnp.broadcast_to(slope, x.shape) + jnp.broadcast_to(offset, x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalized(x: Array, scale: Array, bias: Array, activation) -> tuple[Array, Array, Array]:
    """The activated batch and the mean and var of the batch; mean and var have no derivative."""
    return _forward(x, scale, bias, activation)[0]


def _forward(x, scale, bias, activation):
    mean = jnp.mean(x, (0, 1, 2))
    var = jnp.mean(jnp.square(x - jnp.broadcast_to(mean, x.shape)), (0, 1, 2))
    y = _activated(x, scale, bias, mean, var, activation)
    # The saved mean and var depend on x as computed here, so second derivatives are correct.
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(activation, saved, cotangents):
    x, scale, bias, mean, var = saved
    inverse = lax.rsqrt(var + _EPSILON)
    z = _per_channel(x, scale * inverse, bias - scale * inverse * mean)
    (g,) = jax.vjp(activation, z)[1](cotangents[0])
    # With u = (x - mean) inverse, d bias = sum g and d scale = sum g u. The gradient in x lacks the
    # components of g along these two directions.
    d_bias = jnp.sum(g, (0, 1, 2))
    d_scale = inverse * (jnp.sum(g * x, (0, 1, 2)) - mean * d_bias)
    n = x.size // x.shape[-1]
    pull = inverse * d_scale / n
    centred = g - _per_channel(x, pull, d_bias / n - pull * mean)
    return centred * jnp.broadcast_to(scale * inverse, x.shape), d_scale, d_bias


_normalized.defvjp(_forward, _backward)


def drawn(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int) -> nnx.Param:
    """A uniform draw from [-1, 1] / sqrt(inputs), PyTorch's default for weights and biases."""
    bound = 1 / math.sqrt(inputs)
    return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))


class Convolution(nnx.Module):
    """A padded convolution of stride 1; kernel (3, 3, inputs, outputs), bias (outputs,) or None."""

    padding = "SAME"

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, bias: bool = True):
        self.kernel = drawn(rngs, (3, 3, inputs, outputs), 9 * inputs)
        self.bias = drawn(rngs, (outputs,), 9 * inputs) if bias else None

    def __call__(self, x: Array) -> Array:
        z = convolve(x, self.kernel[...], self.padding)
        return z if self.bias is None else add(z, self.bias[...])


class Dense(nnx.Module):
    """A dense layer with kernel (inputs, outputs) and bias (outputs,)."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = drawn(rngs, (inputs, outputs), inputs)
        self.bias = drawn(rngs, (outputs,), inputs)

    def __call__(self, x: Array) -> Array:
        return add(x @ self.kernel[...], self.bias[...])


class UpConvolution(nnx.Module):
    """The transposed convolution with 2 x 2 filters and stride 2, which doubles the sides.

    The kernel is (2, 2, inputs, outputs), and the bias is (outputs,).
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        fan_in = 4 * outputs  # PyTorch's definition of fan-in for transposed convolutions
        self.kernel = drawn(rngs, (2, 2, inputs, outputs), fan_in)
        self.bias = drawn(rngs, (outputs,), fan_in)

    def __call__(self, x: Array) -> Array:
        return add(up_convolve(x, self.kernel[...]), self.bias[...])


class Features(nnx.Module):
    """The identity, which gives `tap` access to the features of a layer."""

    def __call__(self, x: Array) -> Array:
        return x


class ConvolutionBlock(nnx.Module):
    """A padded convolution with 3 x 3 filters, batch normalisation and an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Callable[[Array], Array],
        *,
        rngs: nnx.Rngs,
        bias: bool = True,
    ):
        self.conv = Convolution(inputs, outputs, bias=bias, rngs=rngs)
        self.norm = BatchNorm(outputs, activation)

    def __call__(self, x: Array) -> Array:
        return self.norm(self.conv(x))


class PooledConvolution(nnx.Module):
    """A convolution without padding, an activation, and maxima over 2 x 2 pixels.

    The attribute `features` gives `tap` access to the values before the maxima.
    """

    padding = "VALID"

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        activation: Callable[[Array], Array],
        *,
        rngs: nnx.Rngs,
    ):
        fan_in = side * side * inputs
        self.kernel = drawn(rngs, (side, side, inputs, outputs), fan_in)
        self.bias = drawn(rngs, (outputs,), fan_in)
        self.activation = activation
        self.features = Features()

    def __call__(self, x: Array) -> Array:
        pooled, features = convolve_and_pool(x, self.kernel[...], self.bias[...], self.activation)
        self.features(features)
        return pooled


def check_rngs(rngs: Any, where: str) -> None:
    """Raise TypeError unless `rngs` can draw params, as `nnx.Rngs(0)` does."""
    if not callable(getattr(rngs, "params", None)):
        raise TypeError(
            f"{where}: rngs draws the params and must be a flax.nnx.Rngs, got "
            f"{type(rngs).__name__}; try rngs=nnx.Rngs(0)"
        )


def as_pictures(x: Array, like: nnx.Param, channels: int, where: str) -> Array:
    """Pictures (N, H, W, channels) in the dtype of the param `like`; raises for other shapes."""
    x = checks.as_float(x, "x", where)
    check_pictures(x, channels, where)
    return x.astype(like.dtype)


def check_pictures(x: Array, channels: int, where: str, *, sides: int = 2) -> None:
    """Raise ValueError unless x is nonempty, of shape (N, *sides, channels) with `sides` sides."""
    if x.ndim != sides + 2 or x.shape[-1] != channels or 0 in x.shape:
        axes = ", ".join(("N", *"HWD"[:sides], str(channels)))
        raise ValueError(f"{where}: the pictures have shape {x.shape}; expected ({axes})")


def check_extent(conv: nnx.Conv, x: Array, where: str) -> None:
    """Raise ValueError if the filters of a convolution are too long for pictures x."""
    sides, kernel, dilation = x.shape[1:-1], conv.kernel.shape[:-2], conv.kernel_dilation
    each = dilation if isinstance(dilation, tuple | list) else (dilation or 1,) * len(kernel)
    extents = [(n - 1) * delta + 1 for n, delta in zip(kernel, each)]
    # With padding, the outermost entries of a centred filter must still overlap the picture.
    needed = extents if conv.padding == "VALID" else [e // 2 + 1 for e in extents]
    if any(N < least for N, least in zip(sides, needed)):
        raise ValueError(
            f"{where}: filters of extent {tuple(extents)} are too long for pictures of {sides}; "
            "try a smaller kernel or dilation"
        )


@functools.partial(jax.jit, static_argnames="steps")
def norm_from_below(D: Conv, steps: int) -> Array:
    """A lower bound on norm(D, 2) from Lanczos steps for D D' that start at a fixed draw.

    For every spectrum, the relative error of the square of the result after k steps exceeds e with
    probability at most 1.648 sqrt(m) exp(-sqrt(e) (2 k - 1)) over draws (Kuczynski, Wozniakowski
    1992, Theorem 4.2). The mean of this error over draws is therefore at most
    (a^2 + 2 a + 2) / (2 k - 1)^2 with a = ln(1.648 sqrt(m)).

    The gradient of the result is the gradient of norm(D x) at the last x, which equals the gradient
    of norm(D, 2) if x has converged.
    """
    k = exponent(D.filters)  # without this scale, products of filters may over- or underflow
    D = replace(D, filters=times_power(D.filters, -k))
    fixed, (m, _), dtype = lax.stop_gradient(D), D.shape, D.filters.dtype
    steps = min(steps, m)

    def step(n: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        Q, Z = state  # orthonormal rows, and the products of these rows with D D'
        z = fixed @ (Q[n] @ fixed)
        left = z - (Q @ z) @ Q
        left -= (Q @ left) @ Q  # a second time because of rounding errors
        size = jnp.linalg.norm(left)
        # If only rounding errors are left, the rows so far span the whole Krylov space.
        ends = size <= m * jnp.finfo(dtype).eps * jnp.linalg.norm(z)
        return Q.at[n + 1].set(left / jnp.where(ends, jnp.inf, size), mode="drop"), Z.at[n].set(z)

    start = jax.random.normal(jax.random.key(0), (m,), dtype)
    Q = jnp.zeros((steps, m), dtype).at[0].set(start / jnp.linalg.norm(start))
    Q, Z = lax.fori_loop(0, steps, step, (Q, jnp.zeros_like(Q)))
    u = jnp.linalg.eigh(Z @ Q.T)[1][:, -1] @ Q
    x = u @ fixed
    size = jnp.linalg.norm(x)
    return times_power(norm(D @ (x / jnp.where(size > 0, size, 1))), k)
