"""Training with optax, end to end or stage by stage, the losses for it, and the search over a grid
where it is not needed.
"""

from unrolled.training._checkpoint import (
    Checkpoint,
    Steps,
)
from unrolled.training._curriculum import (
    curriculum,
)
from unrolled.training._fit import (
    fit,
)
from unrolled.training._losses import (
    deep,
    lasso,
    log_nmse,
    reconstruction,
    supervised,
)
from unrolled.training._manifest import (
    CheckpointError,
    DamagedError,
)
from unrolled.training._records import (
    Fit,
    History,
    NonFiniteError,
    Record,
    Trained,
)
from unrolled.training._scale_steps import (
    StepRates,
    scale_steps,
)
from unrolled.training._search import (
    Search,
    search,
)
from unrolled.training._split import (
    merge,
    split,
    with_unit_atoms,
)
from unrolled.training._weights import (
    Restored,
    restore,
    save,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DamagedError",
    "Fit",
    "History",
    "NonFiniteError",
    "Record",
    "Restored",
    "Search",
    "StepRates",
    "Steps",
    "Trained",
    "curriculum",
    "deep",
    "fit",
    "lasso",
    "log_nmse",
    "merge",
    "reconstruction",
    "restore",
    "save",
    "scale_steps",
    "search",
    "split",
    "supervised",
    "with_unit_atoms",
]
