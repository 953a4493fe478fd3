"""Experiments with sparse features on images: recipes, resumable runs, and tables of their rows.

`import unrolled` does not import this package, which needs flax.
"""

from unrolled.experiments._data import (
    load,
)
from unrolled.experiments._recipe import (
    Recipe,
    deviations,
    paper_recipe,
)
from unrolled.experiments._run import (
    Outcome,
    run,
)

__all__ = [
    "Outcome",
    "Recipe",
    "deviations",
    "load",
    "paper_recipe",
    "run",
]


def __dir__() -> list[str]:
    return __all__
