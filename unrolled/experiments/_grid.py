"""The runs of an experiment, one after another."""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from unrolled import _checks, _text
from unrolled.datasets import Images
from unrolled.experiments._job import Progress
from unrolled.experiments._recipe import Build, Recipe, build_model
from unrolled.experiments._rows import read_row
from unrolled.experiments._run import Outcome, run
from unrolled.experiments._table import scores_table, summarize


def grid(
    recipe: Recipe,
    *,
    models: Sequence[str],
    activations: Sequence[str],
    gammas: Sequence[float],
    seeds: Sequence[int],
    epochs: Sequence[int],
) -> list[Recipe]:
    """The recipes of all combinations; all of one seed come before the next seed.

    Example:
        >>> from unrolled.experiments import grid, paper_recipe
        >>> recipe = paper_recipe("classification", "cifar10")
        >>> varied = dict(models=["lenet5"], activations=["relu", "elu"], epochs=[20])
        >>> len(grid(recipe, gammas=[0, 1e-3, 1e-2], seeds=[0, 1], **varied))
        12
    """
    fields = ("epochs", "seed", "model", "activation", "gamma")
    combinations = itertools.product(epochs, seeds, models, activations, gammas)
    changes: list[dict[str, Any]] = [dict(zip(fields, values)) for values in combinations]
    return [dataclasses.replace(recipe, **change) for change in changes]


class Sweep(NamedTuple):
    """What became of the runs of a grid."""

    rows: dict[str, dict[str, Any]]  # by name: those that are finished, old and new
    open: list[str]  # stopped by the budget, or not begun
    busy: list[str]  # in the hands of other processes

    def __repr__(self) -> str:
        """The scores, as they fit on a screen, and what is not finished."""
        scores = self.table().splitlines() if self.rows else []
        left = f"{len(self.rows)} runs finished, {len(self.open)} open, {len(self.busy)} elsewhere"
        return _text.screen([left, *scores])

    def table(self, form: str = "markdown") -> Any:
        """`scores_table` of the rows, in the same forms."""
        return scores_table(summarize(self.rows), form)


def sweep(
    recipes: Iterable[Recipe],
    images: Images,
    folder: str | Path,
    *,
    build: Build = build_model,
    minutes: float = math.inf,
    keep_weights: bool = True,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> Sweep:
    """Run all recipes that have no row yet; several processes may share a folder.

    Args:
        recipes, images, folder, build, keep_weights, progress, mesh: as in `run`.
        minutes: the budget. At its end the run in progress stops after its epoch, and is saved.

    Raises:
        ValueError: a budget that is not positive; else as in `run`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ur.experiments.sweep([], ur.experiments.load("digits"), folder).open
        []
    """
    if not _checks.as_number(minutes, "the budget", "experiment") > 0:
        raise ValueError(f"experiment: the budget must be above 0 minutes, got {minutes}")
    until, recipes = time.monotonic() + 60 * minutes, list(recipes)
    options: dict[str, Any] = dict(build=build, keep_weights=keep_weights, until=until, mesh=mesh)
    outcomes: list[Outcome] = []
    for i, recipe in enumerate(recipes, start=1):
        placed = _placed(progress, f"{i} of {len(recipes)}: ")
        outcomes.append(run(recipe, images, folder, progress=placed, **options))
    # Other processes have finished some of theirs meanwhile.
    records = {name: row or read_row(Path(folder), name) for name, row, _ in outcomes}
    rows = {name: row for name, row in records.items() if row}
    return Sweep(
        rows,
        [name for name, row, busy in outcomes if not (row or busy)],
        [name for name, _, busy in outcomes if busy and name not in rows],
    )


def _placed(progress: Progress | None, place: str) -> Progress | None:
    """The progress of a run that is one of many."""
    if progress is None:
        return None

    def tell(name: str, done: int, steps: int, text: str) -> None:
        progress(place + name, done, steps, text)

    return tell
