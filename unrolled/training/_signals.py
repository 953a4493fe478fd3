"""The signals of a run: a sampler or arrays, checked, and the validation batch."""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks, programs
from unrolled._base.checks import Array, Key
from unrolled._base.files import MappedRows, as_data, check_draws, drawing
from unrolled._base.numbers import held_back
from unrolled.dictionaries import Masked, Operator
from unrolled.problems import resampler
from unrolled.training._types import Dictionaries, Sample, Withheld, as_dictionaries

__all__ = ["Signals"]


BATCH = 64  # masked signals in a step, as many as `resampler` draws
_VALIDATION_BATCHES = 8  # number of batches to draw if no validation batch is given
_NO_STEP = np.uint32(2**32 - 1)  # gives the key of validation batches; no run reaches this step


class Signals(NamedTuple):
    """The signals of a run: D, what a training step draws, and what an evaluation judges.

    `Signals.of` checks what a caller gives; every function that trains calls it once.
    """

    D: Any  # the dictionary of the model; a tuple for a network; None for other models
    sample: Sample  # draws the batch of a training step
    validation: tuple  # (Y, X), or (Y, X, Ds)
    key: Array  # of the batches

    @classmethod
    def of(
        cls,
        D: Dictionaries | None,
        sample: Any,
        key: Key,
        validation: tuple | None = None,
        mask: Any = None,
        dtype: Any = None,
        where: str = "Signals",
    ) -> Self:
        """Check signals, hold back or draw a validation batch, and make a sampler of arrays.

        Args:
            D, sample, key, validation, mask: as in `fit`. If D is None, the arrays of a batch may
                have any shapes.
            dtype: the dtype of the params, with which arrays share their dtype.
            where: the name of the caller, with which messages begin.

        Raises:
            TypeError, ValueError: in the same cases as `fit`.

        Example:
            >>> D = ur.dictionaries.gaussian(jax.random.key(0), 4, 6)
            >>> signals = ur.training.Signals.of(D, np.ones((30, 4), np.float32), 0)
            >>> [len(signals.validation[0]), signals.sample(signals.key)[0].shape]
            [3, (64, 4)]
        """
        key = checks.as_key(key, where)
        D = None if D is None else as_dictionaries(D, where)
        judged = where if validation is None else f"{where}, validation"
        if validation is not None:
            validation = jax.tree.map(checks.as_array, dictionaries.flat_batch(D, validation))
        if mask is not None and not is_own(sample):
            raise ValueError(f"{where}: a mask is for arrays; a sampler returns (Y, X, Ds)")
        if is_own(sample):
            arrays = dictionaries.flat_batch(D, sample)
            sample, validation = from_arrays(arrays, validation, dtype, D, where, mask)
        check_sample(sample, where)
        if validation is None:
            validation = _drawn(sample, key)
            check_draws(sample, validation)
        else:  # no other check sees the batches of training
            _check_batch(jax.eval_shape(sample, key), D, where)
        _check_batch(validation, D, judged)
        checks.finite(validation, "the batch", judged)
        return cls(D, sample, validation, key)


def is_own(sample: Any) -> bool:
    """Whether `sample` is an array Y or a pair (Y, X), not a sampler; a data frame is an array."""
    pair = isinstance(sample, tuple) and len(sample) == 2
    first = sample[0] if pair else sample
    return hasattr(first, "__array__") and not callable(sample)


def from_arrays(
    arrays: Any,
    validation: tuple | None,
    dtype: Any,
    D: Dictionaries | None,
    where: str,
    mask: Any = None,
) -> tuple[Sample, tuple]:
    """A sampler of given signals, and the validation batch.

    If no validation batch is given, the last tenth of the signals, at least one and at most 1,000,
    becomes the validation batch, and the sampler never draws these signals. If a mask is given,
    every batch has a dictionary for each signal.
    """
    Y, X = arrays if isinstance(arrays, tuple) else (arrays, None)
    if mask is not None:
        mask = each_known(D, Y, mask, where)
        Y = np.where(mask, np.asarray(Y), 0)
    Y, X = as_data(Y, X, where)
    check_width(Y, D, where)
    like = () if dtype is None else np.empty(0, dtype)
    dtype = checks.common_dtype(like, D, Y, X)
    Y, X = jax.tree.map(lambda array: array.astype(dtype), (Y, X))
    n, cut = len(Y), len(Y)
    if validation is None:
        if n < 2:
            raise ValueError(
                f"{where}: Y has one signal; expected at least 2, to train and to validate on, or "
                "validation=(Y, X)"
            )
        cut = n - held_back(n)
        validation = jax.tree.map(lambda array: jnp.asarray(array[cut:]), (Y, X))
    trained = jax.tree.map(lambda array: array[:cut], (Y, X)) if cut < n else (Y, X)
    parts = (("signals", trained[0]), ("signals held back to validate on", Y[cut:]))
    for what, signals in parts[isinstance(Y, MappedRows) :]:  # a file's first signals stay unread
        if len(signals) and not np.any(np.asarray(signals)):
            raise ValueError(f"{where}: all {what} are zero; expected some signal to fit")
    if mask is None:
        return resampler(*trained), validation
    validation = (*validation, mask[cut:]) if cut < n else validation
    rows = jax.tree_util.Partial(_known_rows, D, (*trained, jnp.asarray(mask[:cut])))
    return rows, known_batch(D, validation, dtype, where)


def known_batch(D: Any, batch: tuple, dtype: Any, where: str) -> tuple:
    """A validation batch (Y, X, mask) as the signals, their codes and their dictionaries."""
    if len(batch) != 3:
        raise ValueError(f"{where}: a validation batch with a mask is (Y, X, mask)")
    Y, X, mask = batch
    known = each_known(D, Y, mask, f"{where}, validation")
    own, Y = dictionaries.known_part(first_of(D), jnp.asarray(Y, dtype), known)
    return Y, X, with_first(D, own)


def each_known(D: Any, Y: Any, mask: Any, where: str) -> np.ndarray:
    """A mask of the known entries of each signal, (n, m)."""
    known = dictionaries.known_entries(first_of(D), mask, len(Y), where)
    return np.broadcast_to(known, (len(Y), known.shape[-1]))


def first_of(D: Any) -> Any:
    """The dictionary of the signals, which is the first dictionary of a chain."""
    return D[0] if isinstance(D, tuple) else D


def is_masked(own: Any) -> bool:
    """Whether the dictionaries of signals are one D, with a mask for each signal."""
    return dictionaries.shared_part(first_of(own)) is not first_of(own)


def with_first(D: Any, own: Operator) -> Any:
    """D, or a chain of dictionaries, with `own` as the dictionary of the signals."""
    return (own, *D[1:]) if isinstance(D, tuple) else own


@programs.program()
def _known_rows(D: Any, arrays: tuple, key: Array) -> tuple:
    """Random signals, their codes, and their dictionaries."""
    rows = jax.random.randint(key, (BATCH,), 0, len(arrays[0]))
    Y, X, known = jax.tree.map(lambda array: array[rows], arrays)
    own, Y = dictionaries.known_part(first_of(D), Y, known)
    return Y, X, with_first(D, own)


def check_width(Y: Array | np.ndarray, D: Dictionaries | None, where: str) -> None:
    """Raise ValueError unless signals and atoms of the first dictionary have the same length."""
    if D is None:
        return
    m, g = first_of(D).shape[0], dictionaries.block_of(first_of(D))
    if Y.shape[1] != m:
        hint = "; the signals seem to be in columns, try Y.T" if len(Y) == m else ""
        if g > 1 and g * Y.shape[1] == m:
            hint = f"; signals of a {type(first_of(D)).__name__} have {g} numbers in each entry"
        raise ValueError(f"{where}: Y has shape {Y.shape}; expected (signals, {m}){hint}")


def check_sample(sample: Sample, where: str) -> None:
    """Raise TypeError unless `sample` is callable."""
    if callable(sample):
        return
    shape = f" of shape {sample.shape}" if hasattr(sample, "shape") else ""
    raise TypeError(
        f"{where}: sample must be a function of a key that returns a batch (Y, X), or arrays, "
        f"got {type(sample).__name__}{shape}; try an array Y for signals alone, (Y, X) with their "
        "codes, or problems.sampler for planted ones"
    )


def _drawn(sample: Sample, key: Array) -> tuple:
    """Batches from keys that no training step uses."""
    keys = jax.random.split(jax.random.fold_in(key, _NO_STEP), _VALIDATION_BATCHES)
    batches = [*map(drawing(sample), keys)]
    if not isinstance(batches[0], tuple) or len(batches[0]) != 3 or not is_masked(batches[0][2]):
        return jax.tree.map(_joined, *batches)
    pairs = jax.tree.map(_joined, *[batch[:2] for batch in batches])  # one D, a mask per signal
    own = batches[0][2]
    mask = _joined(*[first_of(batch[2]).mask for batch in batches])
    return (*pairs, with_first(own, Masked._of(first_of(own).base, mask)))


def _joined(*arrays: Array) -> Array:
    return jnp.concatenate(arrays)


def _check_batch(batch, D: Dictionaries | None, where: str) -> None:
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        raise TypeError(
            f"{where}: a batch must be (Y, X), signals and codes, or (Y, X, Ds) with a "
            f"dictionary each, got {type(batch).__name__}"
        )
    Y, X, *own = batch
    if D is None:
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        if own or len({shape[:1] for shape in shapes} | {()}) != 2:
            raise ValueError(
                f"{where}: the arrays of a batch have shapes {shapes}; expected (Y, X) with as "
                "many rows each"
            )
        return
    Ds = D if isinstance(D, tuple) else (D,)
    if jnp.issubdtype(getattr(Y, "dtype", float), jnp.complexfloating):
        raise TypeError(
            f"{where}: the signals of a sampler are complex; expected pairs of real numbers, try "
            "dictionaries.to_pairs, and dictionaries.Complex for D"
        )
    m = Ds[0].shape[0]
    if np.ndim(Y) != 2 or Y.shape[1] != m or not len(Y):
        raise ValueError(
            f"{where}: signals have shape {np.shape(Y)}; "
            f"expected (batch, {m}) with batch at least 1"
            f"{checks.flattened('Y', np.shape(Y))}"
        )
    targets = X if isinstance(X, tuple) else (X,)
    if isinstance(X, Withheld):
        targets = (None,)
    if len(targets) > len(Ds):
        raise ValueError(
            f"{where}: there are codes of {len(targets)} blocks; expected at most {len(Ds)}"
        )
    for Dj, target in zip(Ds[-len(targets) :], targets):
        if target is not None and np.shape(target) != (len(Y), Dj.shape[1]):
            raise ValueError(
                f"{where}: codes have shape {np.shape(target)}; expected {(len(Y), Dj.shape[1])}"
            )
    if own:
        _check_own(own[0], D, len(Y), where)


def _check_own(own: Any, D: Dictionaries, n: int, where: str) -> None:
    """Raise ValueError unless `own` holds one dictionary like D for each of n signals."""
    axis: tuple[int, ...] = (n,)
    first = first_of(own)
    if is_masked(own) and first.mask.shape == (n, first_of(D).shape[0]):
        axis, own = (), with_first(own, first.base)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(own)]
    expected = [(*axis, *np.shape(leaf)) for leaf in jax.tree.leaves(D)]
    if shapes == expected:  # static fields, such as the boundary of a `Conv`, change (m, d)
        nodes = [tree if isinstance(tree, tuple) else (tree,) for tree in (own, D)]
        shapes, expected = ([Dj.shape[-2:] for Dj in Ds] for Ds in nodes)
    if shapes != expected:
        raise ValueError(
            f"{where}: the dictionaries of the batch have shapes {shapes}; expected {expected}"
        )
