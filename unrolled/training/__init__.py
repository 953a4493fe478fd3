"""Training with optax: end to end, stage by stage, or by a search over a grid.

`fit` and `curriculum` train, `save` and `restore` keep the result, and a `Checkpoint` lets a
training resume. `Sample`, `Loss` and `Callback` are the types of the functions that they take.
`sparse_feature_penalty`, `save_tree` and `restore_tree` are for networks of one's own.
"""

from unrolled.networks import exceeds
from unrolled.training._curriculum_and_search import (
    Search,
    StepRates,
    curriculum,
    scale_steps,
    search,
)
from unrolled.training._files import Checkpoint, restore_tree, save_tree
from unrolled.training._fit import fit
from unrolled.training._forms import CheckpointError, digest, versions
from unrolled.training._loop import drive
from unrolled.training._losses import (
    deep,
    lasso,
    log_nmse,
    reconstruction,
    sparse_feature_penalty,
    supervised,
)
from unrolled.training._objective import (
    Callback,
    Fit,
    History,
    Loss,
    NonFiniteError,
    Record,
    Sample,
    Trained,
    as_dictionaries,
    merge,
    split,
    trainable,
    with_unit_atoms,
)
from unrolled.training._recipe import Made, Start, by_recipe, law_of, mostly_last, prepare
from unrolled.training._weights import Restored, restore, save

__all__ = [
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "Fit",
    "History",
    "Loss",
    "Made",
    "NonFiniteError",
    "Record",
    "Restored",
    "Sample",
    "Search",
    "Start",
    "StepRates",
    "Trained",
    "by_recipe",
    "curriculum",
    "deep",
    "digest",
    "exceeds",
    "fit",
    "lasso",
    "law_of",
    "log_nmse",
    "merge",
    "mostly_last",
    "prepare",
    "reconstruction",
    "restore",
    "restore_tree",
    "save",
    "save_tree",
    "scale_steps",
    "search",
    "sparse_feature_penalty",
    "split",
    "supervised",
    "trainable",
    "versions",
    "with_unit_atoms",
]
