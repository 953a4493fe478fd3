"""Experiments with sparse features on images: recipes, resumable runs, and tables of results.

`import unrolled` does not import this package, which needs flax.
"""

import typing

from unrolled._base import missing as _missing
from unrolled.vision.datasets import shapes
from unrolled.vision.experiments._features import (
    Admitted,
    Codes,
    Features,
    LayerFeatures,
    features,
    features_rows,
    features_table,
    restore,
    row_features,
    trained_on,
)
from unrolled.vision.experiments._layer_dictionary import LayerDictionary, Pursued, layer_dictionary
from unrolled.vision.experiments._recipe import (
    Recipe,
    deviations,
    grid,
    load,
    options_of,
    paper_recipe,
    task_of,
)
from unrolled.vision.experiments._run import Outcome, Sweep, read_pictures, read_rows, run, sweep
from unrolled.vision.experiments._table import (
    Cell,
    Interval,
    holm,
    interval,
    l1_in_training,
    predicted_masks,
    score_in_training,
    scores_by_activation,
    scores_table,
    summarize,
    training_loss,
)

__all__ = [
    "Recipe",
    "deviations",
    "features",
    "features_table",
    "grid",
    "holm",
    "interval",
    "l1_in_training",
    "layer_dictionary",
    "load",
    "paper_recipe",
    "predicted_masks",
    "read_pictures",
    "read_rows",
    "restore",
    "row_features",
    "run",
    "score_in_training",
    "scores_by_activation",
    "scores_table",
    "shapes",
    "summarize",
    "sweep",
    "training_loss",
]
__results__ = [
    "Admitted",
    "Cell",
    "Codes",
    "Features",
    "Interval",
    "LayerDictionary",
    "LayerFeatures",
    "Outcome",
    "Pursued",
    "Sweep",
]


def __getattr__(name: str) -> typing.Any:
    if name == "as_dictionary":  # another name of `layer_dictionary`
        return layer_dictionary
    raise _missing(__name__, name, __all__)


def __dir__() -> list[str]:
    return __all__
