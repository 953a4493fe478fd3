"""Activations by name, and in a form that JSON can hold."""

from collections.abc import Callable
from typing import overload

import jax

from unrolled._base import checks
from unrolled._base.doors import Array, checked
from unrolled.activations import _activation
from unrolled.activations._activation import Activation, _relu

__all__ = ["NAMED", "by_name", "describe", "from_description"]


# Names for configurations and files; users may add their own activations.
NAMED = {
    "relu": _activation.relu,
    "leaky_relu": _activation.leaky_relu(0.01),
    "elu": _activation.elu(),
    "celu": _activation.celu(),
    "selu": _activation.selu,
    "silu": _activation.silu,
    "gelu": _activation.gelu,
    "gelu_tanh": _activation.gelu_tanh,
    "mish": _activation.mish,
    "softplus": _activation.softplus,
    "hard_swish": _activation.hard_swish,
}

# Functions of JAX with default arguments, and the equal activations of this package.
_TWINS = (
    (jax.nn.relu, _activation.relu),
    (jax.nn.leaky_relu, NAMED["leaky_relu"]),
    (jax.nn.elu, NAMED["elu"]),
    (jax.nn.celu, NAMED["celu"]),
    (jax.nn.selu, _activation.selu),
    (jax.nn.silu, _activation.silu),
    (jax.nn.swish, _activation.silu),
    (jax.nn.gelu, _activation.gelu_tanh),  # approximate=True is the default of JAX
    (jax.nn.mish, _activation.mish),
    (jax.nn.softplus, _activation.softplus),
    (jax.nn.hard_swish, _activation.hard_swish),
    (jax.nn.hard_silu, _activation.hard_swish),
)

# Factories, found by the function of the activations that they return; the parameters of the
# function are the arguments of the factory.
_FACTORIES: dict[Callable[..., Array], Callable[..., Activation]] = {
    _activation._leaky_relu: _activation.leaky_relu,
    _activation._elu: _activation.elu,
    _activation._celu: _activation.celu,
    _activation._scaled: _activation.scale,
    _activation._composed: _activation.compose,
    _activation._sigmoid_sum: _activation.sigmoid_sum,
    _activation._tanh_sum: _activation.tanh_sum,
}

_OWN = frozenset(NAMED.values())

# Functions that are non-decreasing for all parameters that the factories accept.
_RISING = {
    _relu,
    _activation._leaky_relu,
    _activation._elu,
    _activation._celu,
    _activation._selu,
    _activation._softplus,
    _activation._sigmoid_sum,
    _activation._tanh_sum,
}


@checked
def is_known(activation: Activation) -> bool:
    """Whether this package made an activation, and its constants have not been changed since.

    Example:
        >>> rho = ur.activations.elu(0.5)
        >>> import dataclasses
        >>> false = dataclasses.replace(rho, tail_sup=0.1)
        >>> ur.activations.is_known(rho), ur.activations.is_known(false)
        (True, False)
    """
    factory = _FACTORIES.get(activation.function)
    if factory is None:
        return activation in _OWN
    inner = [p for p in activation.parameters if isinstance(p, Activation)]
    return factory(*activation.parameters) == activation and all(map(is_known, inner))


@checked
def is_monotone(activation: Callable[[Array], Array]) -> bool:
    """Whether this package made an activation that is non-decreasing; False if nothing is known.

    Example:
        >>> [ur.activations.is_monotone(rho) for rho in (ur.activations.elu(0.5), jnp.tanh)]
        [True, False]
    """
    if not isinstance(activation, Activation) or not is_known(activation):
        return False
    inner = [p for p in activation.parameters if isinstance(p, Activation)]
    return all(map(is_monotone, inner)) if inner else activation.function in _RISING


@overload
def by_name(name: str | Activation) -> Activation: ...
@overload
def by_name(name: Callable[[Array], Array]) -> Callable[[Array], Array]: ...
def by_name(name: str | Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The activation with a given name, or the activation that equals a function of `jax.nn`.

    Any other callable, including an `Activation`, is returned unchanged.

    Raises:
        ValueError: `NAMED` lacks the name (the message lists the known names).
        TypeError: `name` is neither a string nor callable.

    Example:
        >>> ur.activations.by_name("elu"), ur.activations.by_name(jax.nn.silu)
        (elu(1), silu)
    """
    if isinstance(name, str):
        checks.one_of(name, NAMED, "name", "activation")
        return NAMED[name]
    if not callable(name):
        raise TypeError(
            f"activation: expected an Activation or a function, got {type(name).__name__}"
        )
    return next((twin for function, twin in _TWINS if function is name), name)


@checked
def describe(activation: Callable[[Array], Array]) -> str | list:
    """A form of an activation that JSON can hold; `from_description` restores the activation.

    The form is the name in `NAMED`, or the name of a factory with its arguments. Give your own
    activation a name in `NAMED` before you describe it and before you read its form.

    Raises:
        TypeError: the activation has no name in `NAMED` and none of the factories made it.

    Example:
        >>> rho = ur.activations.scale(ur.activations.compose(ur.activations.elu(0.9), 3), 5.0)
        >>> ur.activations.describe(rho)
        ['scale', ['compose', ['elu', 0.9], 3], 5.0]
    """
    for name, value in NAMED.items():
        if value == activation:
            return name
    if isinstance(activation, Activation) and activation.function in _FACTORIES:
        factory, parameters = _FACTORIES[activation.function], activation.parameters
        if factory(*parameters) == activation:
            return [factory.__name__, *(describe(p) if callable(p) else p for p in parameters)]
    raise TypeError(
        f"activation: {activation!r} has no name; add it to activations.NAMED under a name"
    )


def from_description(form: str | list | tuple) -> Callable[[Array], Array]:
    """The activation that `describe` turned into this form; names are looked up, never evaluated.

    Raises:
        ValueError: a name is unknown, or the factory does not accept the arguments.

    Example:
        >>> ur.activations.from_description(["scale", "silu", 5.0])
        scale(silu, 5)
    """
    if isinstance(form, str):
        return by_name(form)
    factories = {factory.__name__: factory for factory in _FACTORIES.values()}
    name, *arguments = form if isinstance(form, (list, tuple)) and form else (None,)
    if not isinstance(name, str) or name not in factories:
        raise ValueError(
            f"activation: unknown form {form!r}; expected a name or [factory, *arguments] with one "
            f"of {', '.join(factories)}"
        )
    try:
        return factories[name](
            *(from_description(a) if isinstance(a, (str, list, tuple)) else a for a in arguments)
        )
    except TypeError as error:
        raise ValueError(f"activation: cannot read {form!r}: {error}") from error
