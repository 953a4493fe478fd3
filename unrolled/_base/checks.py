"""Checks of the arguments that a user passes: static errors are raised here, at trace time.

Every message says what was wrong, what was passed, what was expected and what to try. Values can be
checked only if they are known: under `jit` the value checks pass, and the docstring of the caller
says what the result is in that case. The checks use numpy, since inside `jit` even an operation on
known arrays is traced.
"""

import contextlib
import difflib
import math
import operator
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled._base.text import in_rows

if sys.version_info >= (3, 12):
    from typing import TypeAliasType
else:  # its backport
    from typing_extensions import TypeAliasType

Array = jax.Array
# A separate type, so that help shows the name and not its definition.
ArrayLike = TypeAliasType("ArrayLike", jax.typing.ArrayLike)
DTypeLike = TypeAliasType("DTypeLike", jax.typing.DTypeLike)
# The source of random draws: a typed key, or a seed.
Key = TypeAliasType("Key", jax.Array | int)
# The warnings that `quiet` drops: category, and the pattern with which the text begins.
_QUIET: ContextVar[tuple[tuple[type[Warning], re.Pattern], ...]] = ContextVar("quiet", default=())
# Results of more bytes than this are announced before they are made.
_LARGE_BYTES = 2 * 10**9
# No method, and no plan of slow blocks, needs more steps than this; a table of more steps would
# take too long to compute.
DEEPEST = 10**7
LARGEST = 2**31 - 1  # a size, a count or an index: JAX keeps them in 32 bits
_LONGEST = 60  # characters of a value in a message
# Warnings do not point at lines of these files: this package, JAX, and contextlib, which runs the
# exit of a `with` block.
_INNER = tuple(
    str(Path(file).parents[up]) + os.sep for file, up in ((__file__, 1), (jax.__file__, 0))
)
_INNER += (contextlib.__file__,)


def register(table: dict[str, Any], cls: type, what: str) -> None:
    """Add a class to a table of its kind by its name, unless the name begins with an underscore.

    Raises:
        TypeError: another module has defined a class with this name.
    """
    name, other = cls.__name__, table.get(cls.__name__)
    if name.startswith("_"):
        return
    if other is not None and other.__module__ != cls.__module__:
        raise TypeError(
            f"{cls.__module__}.{name}: {other.__module__} already defines a {what} of this name; "
            "choose another name, or one with a leading underscore"
        )
    table[name] = cls


def brief(value: Any) -> str:
    """A value in a message, of at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        text = f"{type(value).__name__} of too many digits"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most similar to another word; None if no word is similar."""
    return next(iter(difflib.get_close_matches(word, known, 1)), None)


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a message: "; did you mean 'relu'?", or "" if no known word is similar."""
    best = nearest(word, known)
    return f"; did you mean {best!r}?" if best else ""


def is_concrete(tree: Any) -> bool:
    """Whether no leaf of `tree` is a tracer, so that values can be checked."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def may_hold(condition: Any) -> bool:
    """Whether a condition is true, or traced."""
    return not is_concrete(condition) or bool(np.all(np.asarray(condition)))


def on_host(tree: Any, where: str, name: str = "an argument") -> None:
    """Raise TypeError if a leaf is traced: the caller runs on the host."""
    if not is_concrete(tree):
        raise TypeError(
            f"{where}: {name} is traced; this function runs on the host, call it outside jit"
        )


def as_array(x: Any) -> Any:
    """A data frame, a masked array without masked entries, or a big-endian array, as JAX reads it.

    The function returns an array of numpy in the byte order of this machine; it leaves other values
    unchanged. A compiled function would read the bytes of a big-endian array as they are.
    """
    if np.ma.isMaskedArray(x) and not np.ma.is_masked(x):
        x = np.ma.getdata(x)
    elif hasattr(x, "__array__") and not isinstance(x, jax.Array | np.ndarray | np.generic):
        x = x if hasattr(x, "__jax_array__") else np.asarray(x)
    foreign = isinstance(x, np.ndarray) and not x.dtype.isnative
    return x.astype(x.dtype.newbyteorder("=")) if foreign else x


def as_float(x: Any, name: str, where: str) -> Array:
    """`x` as a real floating-point array: integers become the default float.

    Raises:
        TypeError: `x` is complex, masked or not numeric.
        ValueError: numbers exceed the range of float32, but JAX computes in float32.
    """
    if isinstance(x, float):
        return jnp.asarray(within_float32(np.asarray(x), name, where).item())
    x = on_host_or_device(x, name, where)
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def on_host_or_device(x: Any, name: str, where: str) -> Any:
    """`x` as `as_float` reads it, but known numbers that are not in an array of JAX stay in numpy.

    JAX compiles a program for each shape of an array that it copies from numpy.

    Raises:
        TypeError, ValueError: as in `as_float`.
    """
    if isinstance(x, jax.Array) and computes(x.dtype):
        return x
    x = as_array(x)
    was_double = isinstance(x, np.ndarray) and x.dtype == np.float64
    x = as_numbers(x, name, where)
    if is_concrete(x) and not isinstance(x, jax.Array) and not hasattr(x, "__jax_array__"):
        x = np.asarray(x)
    if isinstance(x, np.ndarray) and x.dtype == np.float64 and not _has_double():
        if was_double:
            warn(
                f"{where}: {name} is float64 but JAX runs in float32 here; cast it to float32, or "
                "enable float64 with `jax.config.update('jax_enable_x64', True)`"
            )
        x = in_float32(x, name, where)
    x = x if isinstance(x, np.ndarray) else jnp.asarray(x)
    return x if computes(x.dtype) else x.astype(jnp.result_type(float))


def as_numbers(x: Any, name: str, where: str) -> Any:
    """`x`, a real number or array, as `as_array` reads it; integers that JAX would cut are floats.

    Raises:
        TypeError: `x` is complex, masked or not numeric.
    """
    if isinstance(x, jax.Array):
        return x if computes(x.dtype) else _of_reals(x, x.dtype, name, where)
    inside = isinstance(x, list | tuple) and any(isinstance(v, np.ndarray) for v in x)
    x = type(x)(map(as_array, x)) if inside and type(x) in (list, tuple) else as_array(x)
    if np.ma.isMaskedArray(x) or (isinstance(x, list | tuple) and any(map(np.ma.isMaskedArray, x))):
        raise TypeError(f"{where}: {name} is a masked array; expected one without masked entries")
    if isinstance(x, float) or hasattr(x, "__jax_array__") or not is_concrete(x):
        return x
    try:
        values = np.asarray(x)
    except (TypeError, ValueError, OverflowError):  # rows of different lengths
        values = np.asarray(None)
    if values.dtype.kind in "OSUMm" or values.dtype.names or values.dtype == np.longdouble:
        hint = "; try an array that it returns" if callable(x) else ""
        raise TypeError(f"{where}: {name} is not a numeric array (got {_kind(x)}){hint}")
    _of_reals(x, values.dtype, name, where)
    if values.dtype.kind in "iu" and values.size and _cut(values):
        return float(x) if isinstance(x, int) else values.astype(jnp.result_type(float))
    return x


def _has_double() -> bool:
    return bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]  # set at run time


def _of_reals(x: Any, dtype: Any, name: str, where: str) -> Any:
    """x if its dtype is bool, integer, or real with 16 bits or more; raise TypeError otherwise."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        instead = "signals of a dictionaries.Complex where layers and pursuits take them"
        if name in ("D", "W"):
            instead = f"dictionaries.Complex.of({name}) where they take it"
        raise TypeError(f"{where}: {name} is {dtype}; expected real numbers, or {instead}")
    if not computes(dtype) and not any(jnp.issubdtype(dtype, k) for k in (np.bool_, jnp.integer)):
        raise TypeError(f"{where}: {name} is {dtype}; expected real numbers of 16 bits or more")
    return x


def _cut(values: np.ndarray) -> bool:
    """Whether JAX would cut some of these integers to 32 bits, as it does if float64 is off."""
    held = np.iinfo(jax.dtypes.canonicalize_dtype(values.dtype.newbyteorder("=")))
    if np.iinfo(values.dtype).bits <= held.bits and values.dtype.kind == held.kind:
        return False
    return int(values.min()) < int(held.min) or int(values.max()) > int(held.max)


def within_float32(x: Any, name: str, where: str) -> Any:
    """`x` unchanged; raise ValueError if JAX, in float32, would make entries infinite."""
    if isinstance(x, np.ndarray) and x.dtype == np.float64 and x.size and not _has_double():
        mapped = isinstance(x, np.memmap)  # the array is read, and checked, row by row
        if not mapped and np.finfo(np.float32).max < max(x.max(), -x.min()):
            in_float32(x, name, where)
    return x


def computes(dtype: Any) -> bool:
    """Whether JAX computes with this real dtype; JAX does not compute in 8 bits or less."""
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1


def _kind(x: Any) -> str:
    """The type of an argument that is not a JAX array, for a message."""
    return f"{type(x).__name__} of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__


def in_float32(x: np.ndarray, name: str, where: str) -> np.ndarray:
    """Rows of signals or the atoms of D, cast to float32 if needed; raise if one is lost.

    Raises:
        ValueError: float32 loses some rows or atoms; see `narrowed`.
    """
    is_dictionary = name == "D" and x.ndim == 2
    lines, what = (x.T, "column") if is_dictionary else (x, "row")
    cast, lost = narrowed(lines if x.ndim == 2 else x.reshape(1, -1))
    if len(lost):
        raise ValueError(
            f"{where}: {name} leaves the range of float32"
            f"{in_rows(lost, what) if x.ndim == 2 else ''}, where entries become 0 or infinite; "
            "try numbers near 1, or jax_enable_x64"
        )
    return cast.T if is_dictionary else cast.reshape(x.shape)


def narrowed(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of an array in float32, and the indices of the rows that float32 loses.

    A row is lost if an entry becomes infinite, or if an entry below the least normal number, which
    most operations take for zero, exceeds eps times the largest entry of the row.
    """
    info = np.finfo(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        cast = array.astype(np.float32)
    size = np.maximum(array.max(1, initial=0), -array.min(1, initial=0)).astype(float)
    lost = np.asarray(np.isinf(cast).any(1) & np.isfinite(array).all(1))
    faint = np.flatnonzero((size > 0) & (size < float(info.tiny) / float(info.eps)))
    missed = np.where(np.abs(cast[faint]) < info.tiny, np.abs(array[faint]), 0)
    lost[faint] = missed.max(1, initial=0) > float(info.eps) * size[faint]
    return cast, np.flatnonzero(lost)


def as_rows(x: Any, name: str, where: str, n: int | None = None) -> Array:
    """`x` as a finite floating-point matrix with at least one row, or with `n` rows if given.

    Raises:
        TypeError: `x` is complex or not numeric.
        ValueError: the shape differs, or entries are NaN or infinite; the message names the rows.
    """
    x = as_float(x, name, where)
    check_rows(x.shape, name, where, n)
    if is_concrete(x):
        bad = np.flatnonzero(~np.isfinite(np.asarray(x)).all(1))
        if len(bad):
            raise ValueError(f"{where}: {name} has NaN or infinite entries{in_rows(bad)}")
    return x


def check_rows(shape: tuple[int, ...], name: str, where: str, n: int | None = None) -> None:
    """Raise ValueError unless `shape` is the shape of a matrix with rows, `n` rows if given."""
    if len(shape) != 2 or not shape[0] or n not in (None, shape[0]):
        rows = "(signals, m), with at least one signal" if n is None else f"({n}, ...)"
        flat = flattened(name, shape)
        raise ValueError(f"{where}: {name} has shape {shape}; expected {rows}{flat}")


def flattened(name: str, shape: tuple[int, ...]) -> str:
    """The end of a message about signals with several axes, such as pictures, else ""."""
    return f"; try {name}.reshape(len({name}), -1)" if len(shape) > 2 else ""


def as_signals(Y: Any, name: str, where: str) -> Array:
    """Like `as_rows`, but refuse integers: scale grey values first.

    Raises:
        TypeError: `Y` is integer, complex or not numeric.
        ValueError: the shape differs, or entries are NaN or infinite; the message names the rows.
    """
    Y = as_array(Y)
    dtype = getattr(Y, "dtype", np.dtype(float))
    if any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, np.bool_)):
        raise TypeError(
            f"{where}: {name} is {dtype}; expected real numbers near 1, try {name} / 255 for grey "
            "values, and without their mean"
        )
    return as_rows(Y, name, where)


@dataclass(frozen=True)
class without_codes:
    """Wrap a loss of (codes, X, D, Y) so that X=None raises a clear ValueError.

    `jit` treats two equal wrapped losses as one function.
    """

    loss: Callable[..., Array]
    where: str

    @property
    def lam(self) -> Any:
        return getattr(self.loss, "lam", None)

    def __call__(self, codes: Any, X: Any, D: Any, Y: Array) -> Array:
        try:
            return self.loss(codes, X, D, Y)
        except (TypeError, AttributeError) as error:
            if "NoneType" not in str(error):
                raise
            text = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{self.where}: the loss fails without codes, X = None ({text}); try "
                "training.lasso_loss(lam), or signals with their codes, (Y, X)"
            ) from error


def host_floats(x: Any, name: str, where: str) -> np.ndarray:
    """`x` as a real floating-point numpy array, in its dtype; integers become float64.

    Raises:
        TypeError: `x` is traced, masked, complex or not numeric.
    """
    on_host(x, where, name)
    values = np.asarray(as_numbers(x, name, where))
    return values.astype(np.float64) if values.dtype.kind in "biu" else values


def as_key(key: Any, where: str) -> Array:
    """A key of JAX: a seed becomes `jax.random.key(seed)`, and a key stays unchanged.

    Raises:
        TypeError: the value is neither a key nor an integer.
        ValueError: there are several keys, or a seed is outside 0..2^32 - 1.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return _one_key(key, key.shape, where)
    if isinstance(key, jax.core.Tracer) and not key.ndim:
        return jax.random.key(key)
    if getattr(key, "dtype", None) == np.uint32 and _is_raw(key):
        return _one_key(jnp.asarray(key), key.shape[:-1], where)
    try:
        seed = as_seed(key, "key", where)
    except TypeError as error:
        raise TypeError(
            f"{where}: key must be a key of jax.random, or a seed; got {brief(key)}"
        ) from error
    return jax.random.key(seed)


def _one_key(key: Array, shape: tuple[int, ...], where: str) -> Array:
    if shape:
        raise ValueError(f"{where}: key has shape {shape}; expected one key, try jax.vmap for more")
    return key


def _is_raw(key: Any) -> bool:
    """Whether a value is one key, or an array of keys, in the raw form."""
    try:
        jax.eval_shape(jax.random.wrap_key_data, key)
    except (TypeError, ValueError):
        return False
    return True


def announce(
    shape: tuple[int, ...], dtype: DTypeLike, what: str, where: str, copies: int = 1
) -> None:
    """Warn, with the size, before an array of more than 2 GB is made; see `check_memory`."""
    size, text = check_memory(shape, dtype, what, where, copies)
    if size > _LARGE_BYTES:
        warn(text)


def check_memory(
    shape: tuple[int, ...], dtype: DTypeLike, what: str, where: str, copies: int = 1
) -> tuple[int, str]:
    """The number of bytes that an array will need, and a text with this number.

    Args:
        shape, dtype: shape and dtype of the array.
        what: the name of the array in a message.
        where: the name of the caller, for messages.
        copies: number of arrays of this size that exist at the same time.

    Raises:
        MemoryError: the array needs more than the memory of this machine. Without this check, JAX
            would raise a less clear error, or the system would end the process.
    """
    kind = np.dtype(dtype)
    size = copies * math.prod(shape) * kind.itemsize
    text = f"{where}: {what}, {brief(shape)} in {kind}, takes {_gigabytes(size)} GB of memory"
    if size > host_bytes():
        most = _gigabytes(host_bytes())
        raise MemoryError(f"{text}; expected at most {most}, all of this machine")
    return size, text


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f}" if size < 1e15 else "more than 1,000,000"


def host_bytes() -> float:
    """The memory of this machine; inf if the system does not report it."""
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    available = set(names) <= set(getattr(os, "sysconf_names", ()))
    return float(math.prod(map(os.sysconf, names))) if available else math.inf


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the caller outside of this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INNER):
        frame, level = frame.f_back, level + 1
    if not any(issubclass(category, kind) and text.match(message) for kind, text in _QUIET.get()):
        warnings.warn(message, category, stacklevel=level)


@contextlib.contextmanager
def quiet(category: type[Warning] = Warning, message: str = "") -> Iterator[None]:
    """In a block, drop warnings of this package whose text begins with the pattern `message`.

    Unlike `warnings.catch_warnings`, this function keeps the warnings of other threads.
    """
    token = _QUIET.set((*_QUIET.get(), (category, re.compile(message))))
    try:
        yield
    finally:
        _QUIET.reset(token)


def common_dtype(*trees: Any) -> np.dtype:
    """The dtype of a computation on the floating leaves of `trees`; the default if there are none.

    Python numbers take the dtype of the arrays.
    """
    arrays = (leaf for leaf in jax.tree.leaves(trees) if hasattr(leaf, "dtype"))
    leaves = [as_array(leaf) for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.floating)]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(leaves or [float]))


def cast(tree: Any, dtype: DTypeLike) -> Any:
    """`tree` with its floating leaves in `dtype`."""

    def one(leaf):
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


def cast_on_host(tree: Any, dtype: DTypeLike) -> Any:
    """`cast` for known leaves: numpy casts the leaves, and no program is compiled."""

    def one(leaf):
        values = np.asarray(leaf)
        return values.astype(dtype) if jnp.issubdtype(values.dtype, jnp.floating) else values

    return jax.tree.map(one, tree)


def static(x: Any, name: str, where: str) -> None:
    """Raise TypeError if x is traced, because x determines the program."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"{where}: {name} must be static, got a traced value; try static_argnames")


def whole(n: Any, name: str, where: str) -> int:
    """`n` as a Python integer.

    Raises:
        TypeError: `n` is traced, a bool or not an integer.
    """
    static(n, name, where)
    if isinstance(n, bool) or getattr(n, "dtype", None) == np.bool_:
        raise TypeError(f"{where}: {name} must be an integer, got {n}")
    try:
        return operator.index(n)
    except TypeError as error:
        raise TypeError(f"{where}: {name} must be an integer, got {brief(n)}") from error


def as_index(n: Any, name: str, where: str, *, least: float = 0, most: float = LARGEST) -> int:
    """`n` as a Python integer from `least` to `most`; see `whole`.

    Raises:
        TypeError: `n` is traced, a bool or not an integer.
        ValueError: `n` is below `least`, or above `most`.
    """
    value = whole(n, name, where)
    if value < least:
        raise ValueError(f"{where}: {name} must be at least {least}, got {brief(value)}")
    if value > most:
        raise ValueError(f"{where}: {name} must be at most {most}, got {brief(value)}")
    return value


def as_depth(n: Any, name: str, where: str, *, least: int = 0) -> int:
    """A number of steps as a Python integer; like `as_index`, but at most `DEEPEST`."""
    return as_index(n, name, where, least=least, most=DEEPEST)


def as_seed(n: Any, name: str, where: str) -> int:
    """A seed of 32 bits; like `as_index`. JAX would cut a larger seed unless float64 is enabled."""
    return as_index(n, name, where, most=2**32 - 1)


def as_number(x: Any, name: str, where: str) -> float:
    """`x` as a Python float.

    Raises:
        TypeError: `x` is traced, or not a single real number.
    """
    static(x, name, where)
    try:
        refused = str | bytes | bool | np.bool_
        if isinstance(x, refused) or np.ma.isMaskedArray(x) or np.ndim(x):
            raise TypeError
        if getattr(getattr(x, "dtype", None), "kind", "f") not in "iufV":
            raise TypeError
        return float(x)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{where}: {name} must be a number, got {brief(x)}") from error


def as_fraction(x: Any, name: str, where: str) -> float:
    """`x` as a Python float strictly between 0 and 1.

    Raises:
        TypeError: `x` is traced, or not a single real number.
        ValueError: `x` is outside (0, 1), or NaN.
    """
    value = as_number(x, name, where)
    if not 0 < value < 1:
        raise ValueError(f"{where}: {name} must be in (0, 1), got {value}")
    return value


def as_sizes(where: str, **sizes: Any) -> tuple[int, ...]:
    """The named sizes as Python integers of at least 1; see `as_index`."""
    return tuple(as_index(size, name, where, least=1) for name, size in sizes.items())


def as_bool(x: Any, name: str, where: str) -> bool:
    """`x` if it is True or False; text, numbers and arrays are refused.

    Raises:
        TypeError: `x` is traced, or not a bool.
    """
    static(x, name, where)
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"{where}: {name} must be True or False, got {brief(x)}")
    return bool(x)


def integer(n: Any, name: str, where: str) -> None:
    """Raise TypeError unless n is a single integer, known or traced."""
    kind = getattr(n, "dtype", type(n))
    if getattr(n, "ndim", 0) or not jnp.issubdtype(kind, jnp.integer):
        raise TypeError(f"{where}: {name} must be an integer, got {brief(n)}")


def arrays(tree: Any, name: str, where: str) -> None:
    """Raise TypeError unless every leaf of a tree is an array of real numbers."""
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            as_numbers(leaf, name, where)


def has(x: Any, fields: str, what: str, name: str, where: str) -> None:
    """Raise TypeError unless x has the attributes `fields`, which every instance of `what` has."""
    if not all(hasattr(x, field) for field in fields.split()):
        raise TypeError(f"{where}: {name} must be {what}, got {brief(x)}")


def one_number(x: Any, name: str, where: str) -> None:
    """Raise ValueError unless an array has shape ()."""
    if np.shape(x):
        raise ValueError(f"{where}: {name} has shape {np.shape(x)}; expected one number")


def shaped(x: Any, expected: str, name: str, where: str) -> None:
    """Raise ValueError unless x has as many dimensions as `expected` names: "(m, d)" names two."""
    n_dimensions = len(expected.strip("(),").split(","))
    if np.ndim(x) != n_dimensions:
        raise ValueError(f"{where}: {name} has shape {np.shape(x)}; expected {expected}")


def broadcast(where: str, **arrays: Any) -> None:
    """Raise ValueError unless the shapes of the named arrays broadcast to one shape."""
    several = {np.shape(array) for array in arrays.values()} - {()}
    if len(several) < 2:
        return
    try:
        np.broadcast_shapes(*several)
    except ValueError:
        shapes = " and ".join(f"{name} {np.shape(array)}" for name, array in arrays.items())
        raise ValueError(f"{where}: the shapes of {shapes} do not broadcast") from None


def same_shape(where: str, **arrays: Any) -> None:
    """Raise ValueError unless the named arrays have the same shape."""
    if len({np.shape(array) for array in arrays.values()}) > 1:
        shapes = " but ".join(f"{name} has shape {np.shape(v)}" for name, v in arrays.items())
        raise ValueError(f"{where}: {shapes}; expected equal ones")


def vector(x: Any, name: str, where: str) -> None:
    """Raise ValueError unless x has one dimension: the caller sorts the entries of one code."""
    if jnp.ndim(x) != 1:
        raise ValueError(
            f"{where}: {name} has shape {jnp.shape(x)}; expected (d,), try jax.vmap for a batch"
        )


def as_indices(x: Any, name: str, where: str, *, least: int = 0) -> tuple[int, ...]:
    """A sequence of integers, each checked by `as_index`.

    Raises:
        TypeError: `x` is not a sequence, or an entry is not an integer.
        ValueError: an entry is below `least`.
    """
    if not isinstance(x, Sequence | np.ndarray) or isinstance(x, str) or np.ndim(x) == 0:
        raise TypeError(f"{where}: {name} must be a sequence of integers, got {x!r}; try ({x!r},)")
    return tuple(as_index(n, f"{name}[{i}]", where, least=least) for i, n in enumerate(x))


def one_of(value: Any, choices: Iterable[str], name: str, where: str) -> None:
    """Raise ValueError unless a value is one of the choices; the message suggests a similar one."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        near = f"{', '.join(choices)}{meant(str(value), choices)}"
        raise ValueError(f"{where}: unknown {name} {brief(value)}; expected one of {near}")


def nonnegative(x: Any, name: str, where: str) -> None:
    """Check that a known `x` is real, without a negative or NaN entry (a traced `x` passes).

    Raises:
        TypeError: `x` is complex, masked or not numeric.
        ValueError: an entry is negative or NaN.
    """
    if not is_concrete(x):
        return
    try:
        values = np.asarray(as_numbers(x, name, where))
    except TypeError as error:
        raise TypeError(f"{where}: {name} must be real numbers, got {brief(x)}") from error
    if not np.all(values >= 0):
        shown = values if values.size <= 4 else f"an array with minimum {values.min()}"
        raise ValueError(f"{where}: {name} must be non-negative and not NaN, got {shown}")


def finite(tree: Any, name: str, where: str) -> None:
    """Raise ValueError if a known array has a NaN or an infinity (a traced array passes)."""
    if is_concrete(tree) and not all(_finite(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)):
        raise ValueError(f"{where}: {name} has NaN or infinite entries")


def _finite(x: np.ndarray) -> bool:
    """Whether all entries are finite; their sum of squares nearly always shows it in one pass."""
    if x.dtype in (np.float32, np.float64) and x.flags.forc:
        flat = x.ravel("K")
        with np.errstate(all="ignore"):
            if np.isfinite(np.vdot(flat, flat)):
                return True
    return bool(np.isfinite(x).all())


def in_range(x: Any, dtype: DTypeLike, name: str, where: str) -> None:
    """Raise ValueError if a known positive entry would become 0 or infinite in `dtype`."""
    if not is_concrete(x):
        return
    sizes, info = np.asarray(x, float), jnp.finfo(dtype)
    out = (sizes > 0) & (sizes < np.inf) & ((sizes < info.tiny) | (sizes > info.max))
    if out.any():
        raise ValueError(
            f"{where}: {name}={sizes[out].flat[0]:g} leaves the range of {np.dtype(dtype)}; try "
            f"signals and atoms near 1{or_float64(dtype)}"
        )


def or_float64(dtype: DTypeLike) -> str:
    """The advice ", or float64", unless the dtype is float64."""
    return "" if np.dtype(dtype) == np.float64 else ", or float64"
