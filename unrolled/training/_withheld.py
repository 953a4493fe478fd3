"""Training on measured entries alone: a layer sees some of the entries, the loss sees the others.

Yaman, Hosseini, Moeller, Ellermann, Ugurbil, Akcakaya (2020) call this self-supervision by data
undersampling (SSDU).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unrolled import dictionaries
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Key, checked, program
from unrolled.dictionaries import Masked, block_of
from unrolled.training._losses import _of_last, reconstruction
from unrolled.training._signals import check_width, each_known, first_of, is_masked, with_first
from unrolled.training._types import Dictionaries, Sample, Withheld, as_dictionaries

__all__ = ["withheld", "withholding"]


@checked
def withholding(
    D: Dictionaries,
    Y: Any,
    *,
    share: float = 0.4,
    seen: Callable[[Key], Array] | None = None,
    mask: ArrayLike | None = None,
    batch: int = 64,
) -> Sample:
    """A sampler for `fit` that hides entries of signals from the layer; its loss is `withheld`.

    In each training step the layer sees a random part of the known entries of every signal, and the
    loss compares the signal of its code with the entries that were withheld. So a layer is trained
    from incomplete measurements alone, without codes and without complete signals.

    Args:
        D: (m, d), or a tuple for a network.
        Y: (signals, m), or complex signals of a complex D.
        share: the share of known entries that are withheld in the mean, each with equal odds.
        seen: `seen(key)`, bools (m,), one for each entry of a signal: the entries that the layer
            may see, instead of `share`. For c coils, `jnp.tile(rows, c)` withholds the same
            frequencies from all coils.
        mask: the entries that are known, bools, (m,) or in the shape of Y; unknown entries may be
            NaN. By default all are known.
        batch: signals per call.

    Returns:
        `sample(key) -> (Y, X, Ds)`: what the layer sees, what is withheld, and `Masked(D, mask)` of
        each signal.

    Raises:
        TypeError: the mask has entries other than bools.
        ValueError: shapes do not fit, a known entry is not finite, `share` is not between 0 and 1,
            or `batch` is below 1.

    Reference: Yaman et al. (2020), Self-supervised learning of physics-guided reconstruction neural
    networks without fully sampled reference data.

    Not claimed: that the code is the one that codes of complete signals would train. The error of
    the withheld entries has the noise of these entries, which adds a constant to the loss if the
    noise of entries is independent.

    Example:
        >>> D, key = ur.dictionaries.gaussian(0, 10, 20), jax.random.key(0)
        >>> Y, _ = ur.problems.sampler(D, batch=32)(key)
        >>> sample = ur.training.withholding(D, Y, share=0.3, batch=8)
        >>> y, rest, Ds = sample(key)
        >>> y.shape, bool((y[rest.known] == 0).all()), Ds.mask.shape
        ((8, 10), True, (8, 10))
    """
    where = "withholding"
    D = as_dictionaries(D, where)
    batch = checks.as_index(batch, "batch", where, least=1)
    share = checks.as_number(share, "share", where)
    if not 0 < share < 1:
        raise ValueError(f"{where}: share is {share:g}; expected a number between 0 and 1")
    Y = np.asarray(checks.on_host_or_device(dictionaries.flat_batch(D, Y), "Y", where))
    if Y.ndim != 2:
        raise ValueError(f"{where}: Y has shape {Y.shape}; expected (signals, m)")
    check_width(Y, D, where)
    known = np.ones(Y.shape, bool) if mask is None else each_known(D, Y, mask, where)
    Y = checks.as_signals(np.where(known, Y, 0), "Y", where)
    Y = Y.astype(checks.common_dtype(D, Y))
    if seen is not None:
        m, g = first_of(D).shape[0], block_of(first_of(D))
        drawn = jax.eval_shape(seen, jax.random.key(0))
        if drawn.dtype != bool or drawn.shape not in ((m,), (m // g,)):
            raise ValueError(
                f"{where}: seen returns {drawn.dtype} of shape {drawn.shape}; expected bool of "
                f"shape {(m // g,)}"
            )
    arrays = jnp.asarray(Y), jnp.asarray(known)
    return jax.tree_util.Partial(_Withholding(float(share), seen, batch), D, arrays)


@dataclass(frozen=True)
class _Withholding:
    """The function behind `withholding`; equal instances share their programs."""

    share: float
    seen: Callable[[Key], Array] | None
    batch: int

    def __call__(self, D: Any, arrays: tuple, key: Key) -> tuple:
        return _split(D, arrays, checks.as_key(key, "withholding"), self)


@program("how")
def _split(D: Any, arrays: tuple, key: Key, how: _Withholding) -> tuple:
    of_rows, of_entries = jax.random.split(key)
    rows = jax.random.randint(of_rows, (how.batch,), 0, len(arrays[0]))
    Y, known = (array[rows] for array in arrays)
    g, m = block_of(first_of(D)), Y.shape[1]
    if how.seen is None:
        seen = jax.random.bernoulli(of_entries, 1 - how.share, (how.batch, m // g))
    else:
        seen = jax.vmap(how.seen)(jax.random.split(of_entries, how.batch))
    seen = jnp.repeat(seen, m // seen.shape[1], axis=1)  # all numbers of an entry together
    own, y = dictionaries.known_part(first_of(D), Y, known & seen)
    rest = known & ~seen
    return y, Withheld(jnp.where(rest, Y, 0), rest), with_first(D, own)


@checked
@_of_last
def withheld(codes: Any, X: Any, D: Any, Y: Array) -> Array:
    """The loss of a sampler `withholding`: the mean of 1/2 norm(y - D x_K)^2 of withheld entries.

    Args:
        codes, X, D, Y: as for `Loss`; X is a `Withheld` and D has a mask for each signal.

    Raises:
        TypeError: X is not a `Withheld`.

    Example:
        >>> D = ur.dictionaries.gaussian(0, 10, 20)
        >>> y, rest, Ds = ur.training.withholding(D, jnp.ones((6, 10)), batch=4)(jax.random.key(0))
        >>> loss = ur.training.withheld(jnp.zeros((1, 4, 20)), rest, Ds, y)
        >>> float(loss) == float(rest.known.sum() / 4) / 2
        True
    """
    if not isinstance(X, Withheld) or not is_masked(D):
        raise TypeError(
            f"withheld: X is {type(X).__name__}; expected the batch of a sampler "
            "`training.withholding(D, Y)`"
        )
    base = first_of(D).base
    rest = Masked._of(base, X.known.astype(X.Y.dtype))
    return reconstruction(codes, None, with_first(D, rest), X.Y)
