"""The inputs of a user: a dictionary, signals with or without codes, and pictures; and the coder,
which runs saved weights or a pursuit.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries, problems, training
from unrolled._base import checks
from unrolled._base.checks import ArrayLike
from unrolled._base.files import LARGEST_BYTES, MappedRows
from unrolled._base.numbers import norm
from unrolled._base.text import in_rows
from unrolled.app.commands._console import add_arguments
from unrolled.app.studies import PATCH, Pictures, photograph_patches
from unrolled.dictionaries import Operator, as_chain, as_dictionary, block_of
from unrolled.layers import Layer
from unrolled.networks import Network
from unrolled.pursuit import CHAIN, PURSUITS, pursue
from unrolled.vision import datasets

_APART = 10  # a larger ratio between norms of atoms gives a warning


def read_dictionary(path: Path, dtype: Any = np.float32) -> Operator:
    """D from a file, read by `datasets.read_array` (entry D); cast to `dtype` unless it is None.

    A complex matrix becomes a `dictionaries.Complex`.

    Raises:
        ValueError: there is no such array, or float32, if it is the dtype, would lose an atom.
    """
    stored = datasets.read_array(path, "D", with_complex=True)
    is_complex = np.iscomplexobj(stored)
    D = np.concatenate([stored.real, stored.imag]) if is_complex else stored
    if dtype == np.float32 and D.ndim == 2:
        D = in_float32(D.T, path, what="column").T
    if dtype is not None:
        D = D.astype(dtype)
        _warn_of_norms(np.linalg.norm(D.astype(float), axis=0), path)
    parts: Any = [as_dictionary(part, str(path)) for part in np.split(D, 2 if is_complex else 1)]
    return dictionaries.Complex(*parts) if is_complex else parts[0]


def _warn_of_norms(norms: np.ndarray, path: Path) -> None:
    """Warn if the norms of atoms are far apart: codes hardly use the small atoms."""
    norms = norms[(norms > 0) & np.isfinite(norms)]
    if norms.size and norms.max() > _APART * norms.min():
        checks.warn(
            f"{path}: atoms have norms from {norms.min():.3g} to {norms.max():.3g}; thresholds "
            "treat them alike, so that small ones are hardly used. Try atoms of norm 1, D / norms, "
            "whose codes are norms * x"
        )


def in_float32(array: np.ndarray, path: Path, first: int = 0, what: str = "row") -> np.ndarray:
    """An array of a file, with signals or codes in its rows, cast to float32 for the commands.

    Args:
        array: an array of shape (rows, n).
        path: the file, for messages.
        first: the index of the first row in the file.
        what: the name of a row in messages.

    Raises:
        ValueError: float32 loses a row; see `checks.narrowed`.
    """
    cast, lost = checks.narrowed(array)
    if len(lost):
        raise ValueError(
            f"{path}: leaves the range of float32{in_rows(lost + first, what)}, "
            "where entries become 0 or infinite; try numbers near 1"
        )
    return cast


def read_signals(
    paths: list[Path], D: Operator | tuple[Operator, ...] | None
) -> tuple[Any, Pictures | tuple[np.ndarray, Any]]:
    """Read signals: (D, (Y, X)) if their codes are known, else (D, Pictures).

    If D is None, the dictionary of pictures is an overcomplete DCT. For a chain X is a tuple.

    Raises:
        ValueError: there are several array files, an array has no dictionary, a chain has no
            codes, or shapes do not fit.
    """
    path, several = paths[0], len(paths) > 1
    if isinstance(D, tuple) and (several or path.suffix != ".npz"):
        got = " ".join(map(str, paths))
        raise ValueError(f"compare: a chain needs one .npz file with signals and codes, got {got}")
    if not isinstance(D, tuple) and path.suffix not in (".npy", ".npz", *datasets.READERS):
        return _read_pictures(paths, D)
    if several:
        raise ValueError(f"compare: expected one array file with signals, got {len(paths)}")
    if D is None:
        raise ValueError("compare: signals in an array need --dictionary")
    Y = read_given(path, D)
    if len(Y) < 2:
        raise ValueError(f"{path}: expected at least 2 signals, got {len(Y)}")
    X = read_codes(path, Y, D)
    if X is not None:
        return D, (Y, X)
    if isinstance(D, tuple):
        raise ValueError(f"{path}: has no codes; expected entries X_1 to X_{len(D)}")
    cut = len(Y) * 4 // 5
    return D, Pictures(Y[:cut], Y[cut:], None)


def open_signals(path: Path, D: Operator | tuple[Operator, ...] | None = None) -> np.ndarray:
    """Open signals by `datasets.open_array`; complex signals become pairs.

    Raises:
        ValueError: signals are integers, such as grey values; scale them first.
    """
    Y = as_pairs(datasets.open_array(path, "Y", with_complex=_is_complex(D)))
    if np.issubdtype(Y.dtype, np.integer):
        raise ValueError(
            f"{path}: signals are {Y.dtype}; expected real numbers near 1, try Y / 255 for grey "
            "values, and without their mean"
        )
    return Y


def _is_complex(D: Operator | tuple[Operator, ...] | None) -> bool:
    return isinstance(D, dictionaries.Complex)


def as_pairs(array: np.ndarray) -> np.ndarray:
    """`dictionaries.to_pairs` of an array; a mapped array stays mapped."""
    if not np.iscomplexobj(array) or not array.ndim:
        return array
    rows = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    return rows.view(rows.real.dtype)


def read_given(path: Path, D: Operator | tuple[Operator, ...]) -> np.ndarray:
    """The signals of an array file, of shape (signals, m), in float32, for D or a chain.

    Raises:
        ValueError: signals do not fit D, or float32 would lose a signal.
    """
    open_signals(path, D)
    Y = as_pairs(datasets.read_array(path, "Y", with_complex=_is_complex(D)))
    check_length(path, Y, D)
    return in_float32(Y, path)


def open_given(path: Path, D: Operator | tuple[Operator, ...]) -> np.ndarray | MappedRows:
    """`read_given`, but the rows of a large `.npy` file stay in the file.

    Raises:
        ValueError: signals do not fit D, or float32 would lose a signal of a file that is read
            completely.
    """
    Y = open_signals(path, D)
    if not isinstance(Y, np.memmap) or Y.nbytes <= LARGEST_BYTES:
        return read_given(path, D)
    check_length(path, Y, D)
    return MappedRows(Y, np.float32, f"{path}:")


def _read_pictures(paths: list[Path], D: Operator | None) -> tuple[Operator, Pictures]:
    images = {
        str(path / name if path.is_dir() else path): image
        for path in paths
        for name, image in datasets.read_images(path).items()
    }
    small = [path for path, image in images.items() if min(image.shape) < PATCH]
    if small:
        raise ValueError(f"{', '.join(small)}: smaller than a patch of {PATCH} x {PATCH}")
    pictures = photograph_patches(images)
    D = dictionaries.dct((PATCH, PATCH), (2 * PATCH, 2 * PATCH)) if D is None else D
    check_length(paths[0], pictures.testing, D)
    return D, pictures


def code_names(n: int, chained: bool) -> list[str]:
    """The entries of a `.npz` file with the codes of n layers: X, or for a chain X_1, X_2, ..."""
    return [f"X_{j}" for j in range(1, n + 1)] if chained else ["X"]


def read_codes(path: Path, Y: np.ndarray | MappedRows, D: Operator | tuple[Operator, ...]) -> Any:
    """The codes of the signals Y in a `.npz` file, of shape (signals, d); None without codes.

    For a chain the result is a tuple with the codes of every layer.

    Raises:
        ValueError: only some layers have codes, or codes do not fit Y and D.
    """
    chained = isinstance(D, tuple)
    Ds = D if isinstance(D, tuple) else (D,)
    names = code_names(len(Ds), chained)
    entries = datasets.entries(path) if path.suffix == ".npz" else []
    if not set(names) & set(entries):
        return None
    if missing := [name for name in names if name not in entries]:
        raise ValueError(f"{path}: has no {', '.join(missing)}; expected {', '.join(names)}")
    Xs = tuple(
        as_pairs(datasets.read_array(path, name, with_complex=_is_complex(D_j)))
        for name, D_j in zip(names, Ds)
    )
    for name, X, D_j in zip(names, Xs, Ds):
        if X.shape != (expected := (len(Y), D_j.shape[1])):
            what = f"{name} has" if chained else "codes have"
            raise ValueError(f"{path}: {what} shape {X.shape}; expected {expected}")
    Xs = tuple(in_float32(X, path) for X in Xs)
    return Xs if chained else Xs[0]


def check_length(path: Path, Y: np.ndarray, D: Operator | tuple[Operator, ...]) -> None:
    """Raise ValueError unless Y is (signals, m), for a chain with the m of its first dictionary."""
    D = D[0] if isinstance(D, tuple) else D
    if Y.ndim == 2 and Y.shape[1] == D.shape[0]:
        return
    hint = ""
    if Y.ndim == 2 and len(Y) == D.shape[0]:
        hint = " The signals seem to be in columns: transpose them."
    elif isinstance(D, dictionaries.Complex):
        hint = " D is complex: expected complex signals, or pairs of real numbers."
    raise ValueError(
        f"{path}: signals have shape {Y.shape}; "
        f"expected (signals, {D.shape[0]}) for D {D.shape}.{hint}"
    )


def numbers(text: str, kind: Callable[[str], Any] = float, must: str = "") -> tuple[Any, ...]:
    """Numbers separated by commas; argparse prints the name of this function in messages.

    Args:
        text: the numbers, such as "1,2,3".
        kind: the type of the numbers, int or float.
        must: the start of the message if `text` has other contents.
    """
    try:
        return tuple(map(kind, text.split(",")))
    except ValueError as error:
        raise ValueError(f"{must}, got {text!r}") from error


_OPTIONS: dict[str, dict[str, Any]] = {
    "sparsity": dict(type=int),
    "selection": dict(choices=("correlation", "least_squares")),
    "lam": dict(type=float),
    "ratio": dict(type=float),
    "p": dict(type=float),
    "l2": dict(type=float),
    "nonnegative": dict(action="store_const", const=True),
    "eps": dict(type=float),
    "theta": dict(type=float),
    "lams": dict(type=numbers, metavar="A,B,..."),
    "thetas": dict(type=numbers, metavar="A,B,..."),
    "zeros": dict(type=int),
    "step": dict(type=float),
    "tol": dict(type=float),
    "max_steps": dict(type=int),
}

OPTIONS = tuple(_OPTIONS)
CHUNK = 1000  # signals in a call, few enough for their codes to stay in the cache


class Coder(NamedTuple):
    """A function that computes codes, and its dictionaries."""

    # signals -> codes, and the rows of codes that miss their tolerance
    codes: Callable[[np.ndarray], tuple[Sequence[ArrayLike], np.ndarray]]
    Ds: tuple[Operator, ...]
    chained: bool


def coder_of_weights(weights: Path, dictionaries: list[Path]) -> Coder:
    """The coder that runs the layer or the chain of a weights file."""
    saved = restore_model(weights, dictionaries)
    model: Any = saved.layer
    try:
        model.check(saved.params, saved.D)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{weights}: its weights do not fit its layer: {error}") from error
    chained = isinstance(model, Network)

    def codes(rows):
        X = apply_in_chunks(model.apply, saved.params, saved.D, jnp.asarray(rows))
        return X if chained else (X,), np.zeros(0, int)

    return Coder(codes, saved.D if chained else (saved.D,), chained)


def coder_of_pursuit(name: str, dictionaries: list[Path], options: dict[str, Any]) -> Coder:
    """The coder that runs a pursuit with checked options."""
    Ds = as_chain([read_dictionary(path) for path in dictionaries], "encode")

    def codes(rows):
        coded = pursue(name, Ds, jnp.asarray(rows), options)
        return coded.codes, coded.rows

    return Coder(codes, Ds, PURSUITS[name].takes == CHAIN)


def nonzeros(D: Operator, X: ArrayLike) -> int:
    """The number of nonzero entries, or nonzero parts, of all codes: a complex number is one."""
    rows = np.asarray(X)
    return int((rows.reshape(len(rows), -1, block_of(D)) != 0).any(2).sum())


def residual_norms(Ds: Sequence[Operator], Y: ArrayLike, codes: Sequence[ArrayLike]) -> np.ndarray:
    """The norms of y, and of y - D_1 ... D_j x_j for every layer, float64 (J + 1, signals)."""
    Y = jnp.asarray(Y)
    norms = [norm(Y, 1)]
    for j, X in enumerate(codes, start=1):
        signals = jnp.asarray(X)
        for D in reversed(Ds[:j]):
            signals = problems.synthesize(D, signals)
        norms.append(norm(Y - signals, 1))
    return np.asarray(norms, float)


def restore_model(
    weights: Path, dictionaries: list[Path], advice: str = "--dictionary"
) -> training.Restored:
    """The result of `training.restore`, with a model and the dictionary or dictionaries.

    Raises:
        ValueError: the weights have no layer, or have no dictionary although `dictionaries` is
            empty, or several dictionaries are given for one layer.
    """
    saved = training.restore(weights)
    if saved.layer is None:
        raise ValueError(
            f"{weights}: it names no layer; expected weights that `ur.save(..., layer=layer)` wrote"
        )
    if dictionaries:
        Ds: Any = tuple(map(read_dictionary, dictionaries))
        if isinstance(saved.layer, Layer):
            if len(Ds) > 1:
                raise ValueError(f"{weights}: its layer has one dictionary, got {len(Ds)}")
            Ds = Ds[0]
        saved = training.restore(weights, D=Ds)
        return saved.replace(D=Ds)
    if saved.D is None:
        raise ValueError(f"{weights}: has no dictionary; try {advice}")
    return saved


@partial(jax.jit, static_argnums=0)
def apply_in_chunks(apply: Callable, params: Any, D: Any, Y: jax.Array) -> Any:
    """The codes of many signals, the rows of Y; for a network a tuple of codes."""
    return jax.lax.map(lambda y: apply(params, D, y), Y, batch_size=CHUNK)


def names() -> tuple[str, ...]:
    """The pursuits of the command line.

    Pursuits with local norms are left out: they need a convolutional dictionary, and files hold
    only matrices.
    """
    return tuple(name for name in PURSUITS if not name.startswith("local_"))


def add_options(parser: argparse.ArgumentParser, names: tuple[str, ...] = OPTIONS) -> None:
    """Add options of pursuits to the parser of a command.

    Flags:
        --sparsity: largest number of nonzeros of a code
        --selection: how omp chooses an atom: by its correlation with the residual, or by the
            residual after least squares with the atom
        --lam: weight of the LASSO
        --ratio: lam as a fraction of lam_max, the least lam at which the code is zero (instead of
            --lam)
        --p: power of the penalty, in (0, 1], for half_quadratic
        --l2: weight of the squared norm in the elastic net
        --nonnegative: compute codes without negative entries
        --eps: largest norm of the residual, for bpdn
        --theta: threshold, in units of the code
        --lams: penalty weights, one for each layer of a chain
        --thetas: thresholds, one for each layer
        --zeros: number of zeros of every code between the layers, for holistic
        --step: fraction of the largest step size, for ml_ista and ml_fista
        --tol: accuracy: a duality gap; for omp, a norm of the residual
        --max-steps: largest number of steps
    """
    group = parser.add_argument_group("options of pursuits")
    add_arguments(
        group, add_options, {f"--{name.replace('_', '-')}": _OPTIONS[name] for name in names}
    )


def given_options(arguments: argparse.Namespace, names: tuple[str, ...] = OPTIONS) -> dict:
    """The options that were given, by name."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
