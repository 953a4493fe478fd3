"""Test scores of a trained model."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from unrolled._checks import Array
from unrolled.experiments._program import Program, Scores, State

_EXACT = 1000


def evaluate(program: Program, state: State, X: Array, Y: Array) -> dict[str, Any]:
    """Loss, scores, and what the features of the penalised layers are, over test images."""
    scores = _joined(program, state, X, Y)
    found = {"loss": float(np.mean(scores.loss, dtype=np.float64))}
    found |= _classified(scores, np.asarray(Y))
    for name in ("l1", "zeros", "below", "hoyer"):
        found[name] = np.mean(getattr(scores, name), axis=1, dtype=np.float64).tolist()
    return found


def _joined(program: Program, state: State, X: Array, Y: Array) -> Scores:
    """The scores of all images, in batches of one shape: the last one overlaps its neighbour."""
    n = min(program.recipe.batch, len(X))
    parts: list[Scores] = []
    for first in range(0, len(X), n):
        begin = min(first, len(X) - n)
        found = program.evaluate(state.params, state.others, X, Y, np.int32(begin), n)
        skip = first - begin
        host = jax.device_get(found)
        parts.append(
            Scores(*(part[skip:] for part in host[:2]), *(part[:, skip:] for part in host[2:]))
        )
    axes = Scores(0, 0, 1, 1, 1, 1)
    return Scores(*(np.concatenate(part, axis) for part, axis in zip(zip(*parts), axes)))


def _classified(scores: Scores, labels: np.ndarray) -> dict[str, float]:
    right = scores.predicted == labels
    return {"accuracy": float(np.mean(right))}
