r"""Scores of masks: two classes, the object and the background.

TP and TN count the pixels of the object and of the background that are predicted right, FP those
wrongly given to the object, FN those wrongly given to the background.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from unrolled import _checks
from unrolled._checks import Array

# Counts of pixels are 32-bit integers.
_MOST_PIXELS = 2**31 - 1


def pixel_accuracy(
    predicted: Array, truth: Array, *, pooled: bool = False, empty: ArrayLike = jnp.nan
) -> Array:
    """The share of the pixels that are predicted right: (TP + TN) / (TP + TN + FP + FN).

    Args:
        predicted: (n, ...), n images: bool, 0 and 1, or probabilities in [0, 1], of which those
            above 0.5 mean the object.
        truth: masks of the same shape, bool or 0 and 1.
        pooled: one score, over the pixels of all images.
        empty: the score of a class without pixels, which a share of all pixels does not need; it is
            here as in `mean_iou`.

    Returns:
        One score per image, (n,), or () if pooled; nan where a traced mask has other values.

    Raises:
        TypeError: complex or non-numeric masks.
        ValueError: shapes that differ, have no axis besides that of the images or hold no pixel;
            known values that are no mask or no probability; 2^31 pixels or more.

    The paper (Section 4) calls it PA.

    Example:
        >>> predicted, truth = jnp.array([[[1, 1], [0, 0]]]), jnp.array([[[1, 0], [0, 0]]])
        >>> ur.metrics.pixel_accuracy(predicted, truth).tolist()
        [0.75]
    """
    n = _confusion(predicted, truth, pooled, "pixel_accuracy")
    return _ratio(n.tp + n.tn, n.tp + n.tn + n.fp + n.fn, empty)


def mean_class_precision(
    predicted: Array, truth: Array, *, pooled: bool = False, empty: ArrayLike = jnp.nan
) -> Array:
    """The mean precision of the two classes: (TP / (TP + FP) + TN / (TN + FN)) / 2.

    This is what the paper (Section 4) prints as mean pixel accuracy, mPA. The usual quantity of
    that name is `mean_class_accuracy`.

    Args:
        predicted, truth, pooled: as in `pixel_accuracy`.
        empty: the precision of a class that is nowhere predicted, which is 0/0.

    Returns:
        One score per image, (n,), or () if pooled; nan where a traced mask has other values.

    Raises:
        TypeError, ValueError: as `pixel_accuracy`.

    Example:
        >>> predicted, truth = jnp.array([[[1, 1], [0, 0]]]), jnp.array([[[1, 0], [0, 0]]])
        >>> ur.metrics.mean_class_precision(predicted, truth).tolist()  # of 1/2 and 1
        [0.75]
    """
    n = _confusion(predicted, truth, pooled, "mean_class_precision")
    return (_ratio(n.tp, n.tp + n.fp, empty) + _ratio(n.tn, n.tn + n.fn, empty)) / 2


def mean_class_accuracy(
    predicted: Array, truth: Array, *, pooled: bool = False, empty: ArrayLike = jnp.nan
) -> Array:
    """The mean accuracy of the two classes, their recall: (TP / (TP + FN) + TN / (TN + FP)) / 2.

    Args:
        predicted, truth, pooled: as in `pixel_accuracy`.
        empty: the accuracy of a class that the truth does not have, which is 0/0.

    Returns:
        One score per image, (n,), or () if pooled; nan where a traced mask has other values.

    Raises:
        TypeError, ValueError: as `pixel_accuracy`.

    Example:
        >>> predicted, truth = jnp.array([[[1, 1], [0, 0]]]), jnp.array([[[1, 0], [0, 0]]])
        >>> round(float(ur.metrics.mean_class_accuracy(predicted, truth)[0]), 3)  # of 1 and 2/3
        0.833
    """
    n = _confusion(predicted, truth, pooled, "mean_class_accuracy")
    return (_ratio(n.tp, n.tp + n.fn, empty) + _ratio(n.tn, n.tn + n.fp, empty)) / 2


def mean_iou(
    predicted: Array, truth: Array, *, pooled: bool = False, empty: ArrayLike = jnp.nan
) -> Array:
    """The mean intersection over union: (TP / (TP + FP + FN) + TN / (TN + FP + FN)) / 2.

    Args:
        predicted, truth, pooled: as in `pixel_accuracy`.
        empty: the ratio of a class that is neither predicted nor in the truth, which is 0/0.

    Returns:
        One score per image, (n,), or () if pooled; nan where a traced mask has other values.

    Raises:
        TypeError, ValueError: as `pixel_accuracy`.

    Example:
        >>> predicted, truth = jnp.array([[[1, 1], [0, 0]]]), jnp.array([[[1, 0], [0, 0]]])
        >>> round(float(ur.metrics.mean_iou(predicted, truth)[0]), 3)  # of 1/2 and 2/3
        0.583
        >>> nothing = jnp.zeros((1, 2, 2), bool)
        >>> [float(ur.metrics.mean_iou(nothing, nothing, empty=e)[0]) for e in (jnp.nan, 1.0)]
        [nan, 1.0]
    """
    n = _confusion(predicted, truth, pooled, "mean_iou")
    wrong = n.fp + n.fn
    return (_ratio(n.tp, n.tp + wrong, empty) + _ratio(n.tn, n.tn + wrong, empty)) / 2


class _Confusion(NamedTuple):
    """Counts of pixels, (n,) or (); nan where a mask has other values."""

    tp: Array
    tn: Array
    fp: Array
    fn: Array


def _confusion(predicted: Array, truth: Array, pooled: bool, where: str) -> _Confusion:
    if np.shape(predicted) != np.shape(truth):
        raise ValueError(
            f"{where}: predicted has shape {np.shape(predicted)} and truth {np.shape(truth)}; "
            "expected equal ones"
        )
    if np.ndim(truth) < 2 or not 0 < np.size(truth) <= _MOST_PIXELS:
        raise ValueError(
            f"{where}: masks have shape {np.shape(truth)}; expected (n, ...), images of one pixel "
            "or more and below 2^31 pixels in all; try mask[None] for one image"
        )
    P, P_known = _mask(predicted, "predicted", where, probabilities=True)
    T, T_known = _mask(truth, "truth", where)
    axes = None if pooled else tuple(range(1, T.ndim))
    known = (P_known & T_known).all(axes)
    return _Confusion(
        *(
            jnp.where(known, jnp.sum(pixels, axes, dtype=jnp.int32).astype(float), jnp.nan)
            for pixels in (P & T, ~P & ~T, P & ~T, ~P & T)
        )
    )


def _mask(values: Array, name: str, where: str, probabilities: bool = False) -> tuple[Array, Array]:
    """Which pixels are of the object, and which have a value that says so or not."""
    given = _checks.as_float(values, name, where)
    known = (given == 0) | (given == 1)
    expected = "0 and 1"
    if probabilities and jnp.issubdtype(jnp.asarray(values).dtype, jnp.floating):
        known = (given >= 0) & (given <= 1)
        expected = "probabilities in [0, 1]; try jax.nn.sigmoid of logits"
    if _checks.is_concrete(known) and not known.all():
        wrong = np.asarray(given)[~np.asarray(known)][0]
        raise ValueError(f"{where}: {name} has the value {wrong:g}; expected {expected}")
    return given > 0.5, known


def _ratio(part: Array, whole: Array, empty: ArrayLike) -> Array:
    """part / whole, `empty` where that is 0/0."""
    return jnp.where(whole == 0, jnp.asarray(empty, whole.dtype), part / jnp.maximum(whole, 1))
