"""The trained model of a row."""

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from unrolled.experiments import _rows
from unrolled.experiments._models import Build, build_model
from unrolled.experiments._recipe import from_dict
from unrolled.training import restore_tree


def restore(folder: str | Path, row: str, *, build: Build = build_model) -> Any:
    """The trained model of a row, ready to evaluate.

    It takes what the run gave it: images as floats, standardized where the recipe says so with the
    `moments` of the row: (X / 255 - mean) / deviation.

    Args:
        folder: of the experiment.
        row: name of the row, as in `read_rows`.
        build: as in `run`, for a row of your own model.

    Raises:
        FileNotFoundError: no such row, or its weights were not kept.
        CheckpointError: damaged, or weights of another model.

    Example:
        >>> from unrolled import experiments
        >>> net = experiments.restore("runs", "digits-lenet5-...")  # doctest: +SKIP
    """
    record = _rows.read_row(Path(folder), row)
    if record is None:
        raise FileNotFoundError(f"{folder}: has no row {row!r}")
    path = Path(folder) / _rows.WEIGHTS / f"{row}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the weights of this row were not kept")
    recipe, images = from_dict(record["recipe"]), record["images"]
    with jax.enable_x64(False):  # as in the run
        model = build(recipe, tuple(images["shape"]), images["classes"], nnx.Rngs(0))
        model.eval()
        params, others = nnx.state(model, nnx.Param, nnx.Not(nnx.Param))
        like = {"params": nnx.to_pure_dict(params), "others": nnx.to_pure_dict(others)}
        weights, _ = restore_tree(path, like)
        for state, name in ((params, "params"), (others, "others")):
            nnx.replace_by_pure_dict(state, weights[name])
            nnx.update(model, state)
    return model
