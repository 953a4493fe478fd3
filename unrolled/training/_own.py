"""Signals of one's own in place of a sampler: which of them train, and which judge."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import _checks
from unrolled._checks import Array
from unrolled._mapped import Rows, as_data
from unrolled.problems import resampler
from unrolled.training._records import Dictionaries, Sample

# One signal of so many is held back, from the end, and at most so many.
_HELD_BACK, _MOST = 10, 1000


def is_own(sample: Any) -> bool:
    """Whether it is signals Y, or a pair (Y, X), and no sampler; a data frame is an array too."""
    pair = isinstance(sample, tuple) and len(sample) == 2
    first = sample[0] if pair else sample
    return hasattr(first, "__array__") and not callable(sample)


def from_arrays(
    arrays: Any, validation: tuple | None, params: Any, D: Dictionaries | None, where: str
) -> tuple[Sample, tuple]:
    """A sampler of signals of one's own, and the signals to validate on.

    Without a validation batch these are the last tenth, at least one signal and at most 1,000, and
    the sampler never draws them.
    """
    Y, X = arrays if isinstance(arrays, tuple) else (arrays, None)
    Y, X = as_data(Y, X, where)
    _check_width(Y, D, where)
    dtype = _checks.common_dtype(params, D, Y, X)
    Y, X = jax.tree.map(lambda array: array.astype(dtype), (Y, X))
    n, cut = len(Y), len(Y)
    if validation is None:
        if n < 2:
            raise ValueError(
                f"{where}: Y has one signal; expected at least 2, to train and to validate on, or "
                "validation=(Y, X)"
            )
        cut = n - min(max(1, n // _HELD_BACK), _MOST)
        validation = jax.tree.map(lambda array: jnp.asarray(array[cut:]), (Y, X))
    trained = jax.tree.map(lambda array: array[:cut], (Y, X)) if cut < n else (Y, X)
    parts = (("signals", trained[0]), ("signals held back to validate on", Y[cut:]))
    for what, signals in parts[isinstance(Y, Rows) :]:  # of a file the first ones stay unread
        if len(signals) and not np.any(np.asarray(signals)):
            raise ValueError(f"{where}: all {what} are zero; expected some signal to fit")
    return resampler(*trained), validation


def _check_width(Y: Array, D: Dictionaries | None, where: str) -> None:
    if D is None:
        return
    m = (D[0] if isinstance(D, tuple) else D).shape[0]
    if Y.shape[1] != m:
        turned = "; the signals seem to be in columns, try Y.T" if len(Y) == m else ""
        raise ValueError(f"{where}: Y has shape {Y.shape}; expected (signals, {m}){turned}")
