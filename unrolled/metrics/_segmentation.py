r"""Scores of masks: two classes, the object and the background.

TP and TN count the pixels of the object and of the background that are predicted correctly. FP
counts pixels wrongly assigned to the object, and FN counts pixels wrongly assigned to the
background.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, checked, program

__all__ = ["mean_class_accuracy", "mean_class_precision", "mean_iou", "pixel_accuracy"]


# Counts of pixels are 32-bit integers.
_MOST_PIXELS = 2**31 - 1


class _Confusion(NamedTuple):
    """Counts of pixels, one per image or one in all; nan if a mask has invalid values."""

    tp: Array
    tn: Array
    fp: Array
    fn: Array
    empty: Any  # the score of a class without pixels

    def ratio(self, part: Array, whole: Array) -> Array:
        """part / whole, or `empty` if the ratio is 0/0."""
        empty = jnp.asarray(self.empty, whole.dtype)
        return jnp.where(whole == 0, empty, part / jnp.maximum(whole, 1))

    def mean(self, object: Array, background: Array) -> Array:
        """The mean of TP / object and TN / background."""
        return (self.ratio(self.tp, object) + self.ratio(self.tn, background)) / 2


_SCORES: dict[str, Callable[[_Confusion], Array]] = {
    "pixel_accuracy": lambda n: n.ratio(n.tp + n.tn, n.tp + n.tn + n.fp + n.fn),
    "mean_class_precision": lambda n: n.mean(n.tp + n.fp, n.tn + n.fn),
    "mean_class_accuracy": lambda n: n.mean(n.tp + n.fn, n.tn + n.fp),
    "mean_iou": lambda n: n.mean(n.tp + (n.fp + n.fn), n.tn + (n.fp + n.fn)),
}


@checked
def pixel_accuracy(
    predicted: ArrayLike, truth: ArrayLike, *, pooled: bool = False, empty: ArrayLike = jnp.nan
) -> Array:
    """The share of pixels that are predicted correctly: (TP + TN) / (TP + TN + FP + FN).

    Args:
        predicted: (n, ...), n images: bool, 0 and 1, or probabilities in [0, 1]; a probability
            above 0.5 means the object.
        truth: masks of the same shape, bool or 0 and 1.
        pooled: if True, return one score over the pixels of all images.
        empty: the score of a class without pixels. The argument has no effect here; it exists for
            symmetry with `mean_iou`.

    Returns:
        One score per image, (n,), or one score if pooled; nan if a traced mask has invalid values.

    Raises:
        TypeError: masks are complex or not numeric.
        ValueError: shapes differ, have no axis after the axis of images, or contain no pixel, known
            values are neither a mask nor probabilities, or there are 2^31 pixels or more.

    Li, Feng, Zhou (2024, Section 4) call this score PA.

    Example:
        >>> predicted, truth = jnp.array([[[1, 1], [0, 0]]]), jnp.array([[[1, 0], [0, 0]]])
        >>> ur.metrics.pixel_accuracy(predicted, truth).tolist()
        [0.75]
    """
    return _score("pixel_accuracy", predicted, truth, pooled, empty)


@checked
def mean_class_precision(
    predicted: ArrayLike, truth: ArrayLike, *, pooled: bool = False, empty: ArrayLike = jnp.nan
) -> Array:
    """The mean precision of the two classes: (TP / (TP + FP) + TN / (TN + FN)) / 2.

    Li, Feng, Zhou (2024, Section 4) print this score as mean pixel accuracy, mPA. The usual mean
    pixel accuracy is `mean_class_accuracy`.

    Args:
        predicted, truth, pooled: see `pixel_accuracy`.
        empty: the precision of a class that is never predicted, which is 0/0.

    Returns:
        One score per image, (n,), or one score if pooled; nan if a traced mask has invalid values.

    Raises:
        TypeError, ValueError: as in `pixel_accuracy`.

    Example:
        >>> predicted, truth = jnp.array([[[1, 1], [0, 0]]]), jnp.array([[[1, 0], [0, 0]]])
        >>> ur.metrics.mean_class_precision(predicted, truth).tolist()  # of 1/2 and 1
        [0.75]
    """
    return _score("mean_class_precision", predicted, truth, pooled, empty)


@checked
def mean_class_accuracy(
    predicted: ArrayLike, truth: ArrayLike, *, pooled: bool = False, empty: ArrayLike = jnp.nan
) -> Array:
    """The mean accuracy (recall) of the two classes: (TP / (TP + FN) + TN / (TN + FP)) / 2.

    Args:
        predicted, truth, pooled: see `pixel_accuracy`.
        empty: the accuracy of a class without pixels in the truth, which is 0/0.

    Returns:
        One score per image, (n,), or one score if pooled; nan if a traced mask has invalid values.

    Raises:
        TypeError, ValueError: as in `pixel_accuracy`.

    Example:
        >>> predicted, truth = jnp.array([[[1, 1], [0, 0]]]), jnp.array([[[1, 0], [0, 0]]])
        >>> round(float(ur.metrics.mean_class_accuracy(predicted, truth)[0]), 3)  # of 1 and 2/3
        0.833
    """
    return _score("mean_class_accuracy", predicted, truth, pooled, empty)


@checked
def mean_iou(
    predicted: ArrayLike, truth: ArrayLike, *, pooled: bool = False, empty: ArrayLike = jnp.nan
) -> Array:
    """The mean intersection over union: (TP / (TP + FP + FN) + TN / (TN + FP + FN)) / 2.

    Args:
        predicted, truth, pooled: see `pixel_accuracy`.
        empty: the ratio of a class that is neither predicted nor in the truth, which is 0/0.

    Returns:
        One score per image, (n,), or one score if pooled; nan if a traced mask has invalid values.

    Raises:
        TypeError, ValueError: as in `pixel_accuracy`.

    Example:
        >>> predicted, truth = jnp.array([[[1, 1], [0, 0]]]), jnp.array([[[1, 0], [0, 0]]])
        >>> round(float(ur.metrics.mean_iou(predicted, truth)[0]), 3)  # of 1/2 and 2/3
        0.583
        >>> nothing = jnp.zeros((1, 2, 2), bool)
        >>> [float(ur.metrics.mean_iou(nothing, nothing, empty=e)[0]) for e in (jnp.nan, 1.0)]
        [nan, 1.0]
    """
    return _score("mean_iou", predicted, truth, pooled, empty)


def _score(
    where: str, predicted: ArrayLike, truth: ArrayLike, pooled: bool, empty: ArrayLike
) -> Array:
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
    soft = jnp.issubdtype(jnp.asarray(predicted).dtype, jnp.floating)
    P = _mask(predicted, "predicted", soft, where)
    T = _mask(truth, "truth", False, where)
    return _of_masks(where, P, T, soft, bool(pooled), empty)


def _mask(values: ArrayLike, name: str, soft: bool, where: str) -> Array:
    """The mask as floats, checked if it is known."""
    mask = checks.as_float(values, name, where)
    if checks.is_concrete(mask) and not (valid := _is_mask(np.asarray(mask), soft)).all():
        likely = "probabilities in [0, 1]; try jax.nn.sigmoid of logits"
        raise ValueError(
            f"{where}: {name} has the value {np.asarray(mask)[~valid][0]:g}; expected "
            f"{likely if soft else '0 and 1'}"
        )
    return mask


def _is_mask(values: Any, soft: bool) -> Any:
    """Mark where a mask has valid values; probabilities are valid if the mask is soft."""
    return (values >= 0) & (values <= 1) if soft else (values == 0) | (values == 1)


@program("score", "soft", "pooled")
def _of_masks(
    score: str, predicted: Array, truth: Array, soft: bool, pooled: bool, empty: ArrayLike
) -> Array:
    P, T = predicted > 0.5, truth > 0.5
    valid = _is_mask(predicted, soft) & _is_mask(truth, False)
    axes = None if pooled else tuple(range(1, T.ndim))
    valid = valid.all(axes)
    tp, tn, fp, fn = (
        jnp.where(valid, jnp.sum(pixels, axes, dtype=jnp.int32).astype(float), jnp.nan)
        for pixels in (P & T, ~P & ~T, P & ~T, ~P & T)
    )
    return _SCORES[score](_Confusion(tp, tn, fp, fn, empty))
