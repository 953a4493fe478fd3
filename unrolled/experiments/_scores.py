"""Test scores of a trained model."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from unrolled._checks import Array
from unrolled.experiments._data import EXACT
from unrolled.experiments._program import Features, Program, Scores, State


def evaluate(program: Program, state: State, X: Array, Y: Array) -> dict[str, Any]:
    """Loss and scores over test images."""
    parts = [
        Scores(*(np.asarray(part)[skip:] for part in found))
        for found, skip in _batches(program, partial(program.evaluate, *state[1:3], X, Y), len(X))
    ]
    scores = Scores(*map(np.concatenate, zip(*parts)))
    return {"loss": float(np.mean(scores.loss, dtype=np.float64)), **_classified(scores, Y)}


def measure(program: Program, state: State, X: Array) -> dict[str, Any]:
    """What the features of the penalised layers are over test images, a number for each layer."""
    if not program.layers:
        return {}
    parts = [
        Features(*(np.asarray(part)[:, skip:] for part in found))
        for found, skip in _batches(program, partial(program.measure, *state[1:3], X), len(X))
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


def _classified(scores: Scores, labels: Array) -> dict[str, float]:
    """Accuracy, also on the first 1000 images: of CIFAR-10 those that no JPEG has touched."""
    right = scores.predicted == np.asarray(labels)
    found = {"accuracy": float(np.mean(right))}
    if len(right) > EXACT:
        found["accuracy_first_1000"] = float(np.mean(right[:EXACT]))
    return found
