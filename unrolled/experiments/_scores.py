"""Test scores of a trained model."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from unrolled import metrics
from unrolled._checks import Array
from unrolled.experiments._data import EXACT
from unrolled.experiments._program import Features, Program, Scores, State

_MASK_SCORES: dict[str, Callable[..., Array]] = {
    "pixel_accuracy": metrics.pixel_accuracy,
    "mean_class_precision": metrics.mean_class_precision,
    "mean_class_accuracy": metrics.mean_class_accuracy,
    "mean_iou": metrics.mean_iou,
}


# The scores that tables show, the first of a row first.
SCORES = ("accuracy", "mean_iou", "pixel_accuracy", "mean_class_precision", "mean_class_accuracy")


def evaluate(program: Program, state: State, X: Array, Y: Array) -> dict[str, Any]:
    """Loss and scores over test images."""
    scores = _scores(program, state, X, Y)
    judged = (_classified if Y.ndim == 1 else _segmented)(scores.predicted, np.asarray(Y))
    return {"loss": float(np.mean(scores.loss, dtype=np.float64)), **judged}


def predict(program: Program, state: State, X: Array, Y: Array) -> np.ndarray:
    """The predicted classes or masks of test images."""
    return np.asarray(_scores(program, state, X, Y).predicted)


def _scores(program: Program, state: State, X: Array, Y: Array) -> Scores:
    parts = [
        Scores(*(np.asarray(part)[skip:] for part in batch))
        for batch, skip in _batches(program, partial(program.evaluate, *state[1:3], X, Y), len(X))
    ]
    return Scores(*map(np.concatenate, zip(*parts)))


def measure(program: Program, state: State, X: Array) -> dict[str, Any]:
    """What the features of the penalised layers are over test images, a number for each layer."""
    if not program.layers:
        return {}
    parts = [
        Features(*(np.asarray(part)[:, skip:] for part in batch))
        for batch, skip in _batches(program, partial(program.measure, *state[1:3], X), len(X))
    ]
    features = Features(*(np.concatenate(part, axis=1) for part in zip(*parts)))
    means = {n: np.mean(part, 1, np.float64).tolist() for n, part in features._asdict().items()}
    return {"layers": list(program.layers), **means}


def _batches(program: Program, call: Callable[..., Any], images: int) -> Iterator[tuple[Any, int]]:
    """What `call(first, n)` returns for batches of one size, and how many images to leave out.

    The last batch overlaps the one before, so that one compiled program serves all.
    """
    n = min(program.recipe.batch, images)
    for first in range(0, images, n):
        begin = min(first, images - n)
        yield call(np.int32(begin), n), first - begin


def _classified(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, also on the first 1000 images: of CIFAR-10, those that are always exact."""
    right = predicted == labels
    scores = {"accuracy": float(np.mean(right))}
    if len(right) > EXACT:
        scores["accuracy_first_1000"] = float(np.mean(right[:EXACT]))
    return scores


def _segmented(predicted: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Each score as mean and deviation over images, and pooled over all pixels.

    Images in which a score is 0/0 are left out of its mean, and counted.
    """
    scores: dict[str, float] = {}
    for name, score in _MASK_SCORES.items():
        each = np.asarray(score(predicted, masks), np.float64)
        defined = each[~np.isnan(each)]
        scores[name] = float(defined.mean()) if defined.size else math.nan
        scores[f"{name}_std"] = float(defined.std()) if defined.size else math.nan
        scores[f"{name}_undefined"] = len(each) - len(defined)
        scores[f"{name}_pooled"] = float(score(predicted, masks, pooled=True))
    return scores
