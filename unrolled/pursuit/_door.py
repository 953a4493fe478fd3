"""The door of every pursuit: checks on the host, in numpy, which compile nothing, and one program.

Values are checked where they are known. What is made of them is made behind the door, by `run`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import ArrayLike
from unrolled._numbers import wide_dtype
from unrolled.dictionaries import Conv, Dictionary, as_chain, operands, spectral_norm
from unrolled.pursuit import _problem
from unrolled.pursuit._problem import (
    Answer,
    Array,
    DeepPursuit,
    Form,
    Grid,
    Problem,
    Pursuit,
    check_weights,
    run,
)


def single(
    method: Callable[[Problem, Array], Answer],
    where: str,
    D: Dictionary,
    y: ArrayLike,
    *lam: Any,
    **options: Any,
) -> Pursuit:
    """The result of a method on one dictionary; `options` are those of `door_of_one`."""
    if lam and lam[0] is None:
        raise TypeError(f"{where}: {options.get('name', 'lam')} must be real numbers, got None")
    form, arrays = door_of_one(where, D, y, *lam, **options)
    (x,), *rest = run(method, form, *arrays)
    return Pursuit(x, *rest)


def deep(
    method: Callable[[Problem, Array], Answer],
    where: str,
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    lams: Any,
    **options: Any,
) -> DeepPursuit:
    """The result of a method on a chain; `options` are those of `door`."""
    form, arrays = door(where, Ds, y, lams, **options)
    return DeepPursuit(*run(method, form, *arrays))


def door_of_one(
    where: str,
    D: Dictionary,
    y: ArrayLike,
    lam: ArrayLike | None = None,
    *,
    name: str = "lam",
    finite: bool = True,
    sequence: bool = False,
    l2: ArrayLike | None = None,
    level: ArrayLike | None = None,
    start: ArrayLike | None = None,
    size: Callable[[Dictionary], Array] = spectral_norm,
    relative: bool = False,
    nonnegative: bool = False,
) -> tuple[Form, tuple]:
    """The checked arguments of a pursuit in one dictionary, for `run`.

    Args:
        where: the name of the caller, which messages begin with.
        D, y: as in the pursuits; y may be a grid of a `Conv`.
        lam: the penalty, or None.
        name, finite: how messages call it, and whether it must be finite.
        sequence: whether there are several, (n,).
        l2, level, start: further operands, whose scalars the caller has checked.
        size, relative, nonnegative: of the `Form`.
    """
    y, grid = flat_signal(D, y, where)
    D, y, _ = operands(D, y, where)
    wide = wide_dtype(y.dtype)
    lams = () if lam is None else (penalty(D, lam, name, where, wide, finite, sequence),)
    if size in (spectral_norm, _problem.fixed_norm) and is_zero(D):
        raise ValueError(f"{where}: D is zero, so the step size 1 / norm(D)^2 is undefined")
    if l2 is not None:
        check_number(l2, "l2", where)
        _checks.in_range(l2, wide, "l2", where)
    start = _start(D, start, "a code", where)
    form = Form(np.dtype(y.dtype), grid, size, sequence, relative, nonnegative)
    return form, ((D,), y, lams, as_operand(l2, wide), as_operand(level, wide), start)


def door(
    where: str,
    Ds: Sequence[Dictionary],
    y: ArrayLike,
    lams: Any,
    *,
    level: ArrayLike | None = None,
    start: ArrayLike | None = None,
) -> tuple[Form, tuple]:
    """The checked arguments of a pursuit in a chain, for `run`.

    Args:
        where: the name of the caller, which messages begin with.
        Ds, y: as in the pursuits.
        lams: a tuple with one penalty per layer, zeros where the pursuit has no penalties.
        level, start: a bound on the residual, and x_J to begin from.

    Raises:
        TypeError: operands that are not real numbers.
        ValueError: shapes that do not fit, another number of penalties, a penalty that is negative
            or not finite, or a dictionary that is zero.
    """
    Ds = as_chain(Ds, where)
    lams = one_per_layer(lams, "lams", len(Ds), where)
    _, y, Ds = operands(Ds[0], y, where, params=Ds)
    wide = wide_dtype(y.dtype)
    lams = tuple(
        penalty(D, lam, f"lam_{j}", where, wide) for j, (D, lam) in enumerate(zip(Ds, lams), 1)
    )
    for j, D in enumerate(Ds, start=1):
        if is_zero(D):
            raise ValueError(f"{where}: D_{j} is zero, so its step size is undefined")
    start = _start(Ds[-1], start, "x_J", where)
    return Form(np.dtype(y.dtype)), (Ds, y, lams, None, as_operand(level, wide), start)


def penalty(
    D: Dictionary,
    lam: Any,
    name: str,
    where: str,
    dtype: np.dtype,
    finite: bool = True,
    sequence: bool = False,
) -> Any:
    """A checked penalty: one number, one per atom or one per group of atoms; or several, (n,)."""
    _checks.nonnegative(lam, name, where)
    if finite:
        _checks.finite(lam, name, where)
    _checks.in_range(lam, dtype, name, where)
    if not sequence:
        check_weights(D, lam, name, where)
    elif np.ndim(lam) != 1:
        raise ValueError(f"{where}: {name} has shape {np.shape(lam)}; expected a sequence, (n,)")
    return as_operand(lam, dtype)


def _start(D: Dictionary, start: Any, what: str, where: str) -> Any:
    """The code to start from, checked; None without one."""
    if start is None:
        return None
    start, d = _problem.flat_code(D, _checks.as_float(start, "start", where)), D.shape[1]
    if start.shape != (d,):
        raise ValueError(f"{where}: start has shape {start.shape}; expected {what}, ({d},)")
    _checks.finite(start, "start", where)
    return start


def as_operand(value: Any, dtype: np.dtype) -> Any:
    """A number or array of the user for a compiled program, which casts arrays of JAX itself."""
    return value if value is None or isinstance(value, jax.Array) else np.asarray(value, dtype)


def check_number(value: ArrayLike, name: str, where: str) -> None:
    """Raise unless `value` is one real number, not known to be negative or not finite."""
    _checks.nonnegative(value, name, where)
    _checks.finite(value, name, where)
    _checks.one_number(value, name, where)


def is_zero(D: Dictionary) -> bool:
    """Whether a known D is zero, up to numbers below the range of its dtype.

    Only a dictionary with such a leaf is looked at as a whole.
    """
    if not _checks.is_concrete(D):
        return False
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(D)]
    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if all((np.abs(leaf) >= jnp.finfo(leaf.dtype).tiny).any() for leaf in numbers):
        return False
    with jax.ensure_compile_time_eval():  # also inside of a `jit` that knows D
        return not spectral_norm(D) > 0


def one_per_layer(values: Any, name: str, J: int, where: str) -> tuple:
    """`values` as a tuple of one value per layer."""
    if not isinstance(values, (tuple, list)) or len(values) != J:
        got = len(values) if isinstance(values, (tuple, list)) else type(values).__name__
        raise ValueError(f"{where}: expected a tuple of {J} {name}, one per layer, got {got}")
    return tuple(values)


def static_tol(tol: float, where: str, otherwise: str = "") -> float:
    """A tolerance as a number, checked to be positive and finite: any code is within inf.

    Example:
        >>> from unrolled.pursuit._door import static_tol
        >>> static_tol(1e-6, "caller")
        1e-06
    """
    number = _checks.as_number(tol, "tol", where)
    if not 0 < number < math.inf:
        raise ValueError(f"{where}: tol must be positive and finite{otherwise}, got {tol}")
    return number


def static_steps(max_steps: int, where: str) -> int:
    """The most steps as an integer, cut to what a counter of 32 bits holds and none reaches.

    Example:
        >>> from unrolled.pursuit._door import static_steps
        >>> static_steps(100, "caller")
        100
    """
    return min(_checks.as_index(max_steps, "max_steps", where), 2**30)


def flat_signal(D: Dictionary, y: ArrayLike, where: str, *, batch: int = 0) -> tuple[Any, Grid]:
    """y flat, and the grid of its code if y is a grid of D (else None).

    Args:
        D: (m, d).
        y: `D.signal_grid`, or `D.signal_shape` for one channel, after `batch` leading axes;
            anything else is returned as it is.
        where: the name of the caller, which messages begin with.
        batch: the number of leading axes.

    Example:
        >>> from unrolled.pursuit._door import flat_signal
        >>> D = ur.dictionaries.Conv(jnp.ones((2, 1, 2, 2)), (3, 4))
        >>> y, grid = flat_signal(D, jnp.ones((3, 4)), "caller")
        >>> y.shape, grid
        ((12,), (2, 2, 3))
    """
    if not isinstance(D, Conv):
        return y, None
    shape = np.shape(y)
    channels, *spatial = D.signal_grid
    grids = [D.signal_grid] + ([tuple(spatial)] if channels == 1 and len(spatial) > 1 else [])
    if shape[batch:] not in grids:
        return y, None
    return _checks.as_float(y, "y", where).reshape(*shape[:batch], -1), D.code_grid
