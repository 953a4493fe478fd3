"""The doors of functions: checks on the host, then one compiled program; or the host alone."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from unrolled import _checks
from unrolled._arguments import checked
from unrolled._sharded import on_auto_axes

F = TypeVar("F", bound=Callable[..., Any])
_KNOWN = np.zeros((), bool)


def program(*static: str) -> Callable[[F], F]:
    """Compile a function as one program for each shape of its arguments, and keep its type.

    Outside of `jit` every operation on a new shape is a program of its own. A function that checks
    values does that first and hands the arrays to one that is compiled; a function that checks
    shapes at most is compiled itself. Inside another `jit` the function is part of that program, as
    if it were not compiled.

    Args:
        static: names of the arguments that are no arrays. Where one of them has no hash, the
            function runs as it is written.
    """

    def decorate(function: F) -> F:
        compiled = on_auto_axes(jax.jit(function, static_argnames=static, inline=True))
        names = list(inspect.signature(function).parameters)
        places = [names.index(name) for name in static]

        @functools.wraps(function)
        def call(*args, **options):
            try:
                hash(tuple(args[i] for i in places if i < len(args)))
            except TypeError:
                return function(*args, **options)
            return compiled(*args, **options)

        return call  # type: ignore[return-value]  # of the same signature

    return decorate


def host_function(function: F) -> F:
    """A function of known arguments, which a user may call inside of a `jit` of something else.

    There it runs while that is traced, as numpy would, and its result is a constant. Its
    arguments are `checked`.

    Raises:
        TypeError: an argument is traced, or of another kind than its annotation says.

    Example:
        >>> from unrolled._program import host_function
        >>> @host_function
        ... def total(x):
        ...     return float(jnp.sum(x))
        >>> known = jnp.ones(2)
        >>> float(jax.jit(lambda y: y + total(known))(1.0))
        3.0
    """
    names, behind = list(inspect.signature(function).parameters), checked(function)

    @functools.wraps(function)
    def call(*args, **options):
        for name, value in (*zip(names, args), *options.items()):
            _checks.on_host(value, function.__name__, name)
        if not _is_traced():
            return behind(*args, **options)
        with jax.ensure_compile_time_eval():
            return behind(*args, **options)

    return call  # type: ignore[return-value]  # of the same signature


def _is_traced() -> bool:
    """Whether what runs now is traced for a `jit`: there also known arrays become tracers."""
    return not _checks.is_concrete(jax.device_put(_KNOWN))
