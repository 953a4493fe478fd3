"""The door of a numeric function: checks on the host, then one compiled program."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from unrolled._sharded import on_auto_axes

F = TypeVar("F", bound=Callable[..., Any])


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
