"""The trained models of rows, and what their features are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from unrolled._arguments import checked
from unrolled._files import CheckpointError, write_whole
from unrolled._json import sealed, to_json, unsealed
from unrolled.datasets import Images
from unrolled.experiments import _data, _rows
from unrolled.experiments._feature_records import Features
from unrolled.experiments._features import features
from unrolled.experiments._recipe import Build, build_model, from_dict
from unrolled.training import restore_tree

_FOLDER = "features"
_PIXELS = 64 * 32 * 32  # of all images together


@checked
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


@checked
def trained_on(row: Mapping[str, Any], images: Images) -> bool:
    """Whether a row was trained on these images: the same pictures and labels, at the same size.

    Args:
        row: as `read_rows` returns it.
        images: with their whole test set, from `load`.

    Example:
        >>> from unrolled import experiments
        >>> images = experiments.load("digits", side=16)
        >>> row = {"recipe": {"test": "whole"}, "images": {"name": "digits", "sha256": "another"}}
        >>> experiments.trained_on(row, images)
        False
    """
    own = row["images"]
    if own["name"] != images.name:
        return False
    return _data.digest(_data.split(images, row["recipe"]["test"])) == own["sha256"]


@checked
def row_features(
    folder: str | Path,
    row: str,
    images: Images,
    *,
    build: Build = build_model,
    n: int | None = None,
) -> Features:
    """`features` of the model of a row, on its first test images; kept in the folder.

    The layers are those that the run followed, or those of the model where it followed none. Their
    dictionaries are not kept: they are None.

    Args:
        folder: of the experiment.
        row: name of the row, as in `read_rows`.
        images: those of the run, from `load`.
        build: as in `run`, for a row of your own model.
        n: number of images; None takes 64 of 32 x 32 pixels, and fewer of larger ones.

    Raises:
        FileNotFoundError: no such row, or its weights were not kept.
        ValueError: other images than those of the run; else as in `features`.
        CheckpointError: the file with what was measured before is damaged.

    Example:
        >>> from unrolled import experiments
        >>> images = experiments.load("digits")
        >>> experiments.row_features("runs", "digits-lenet5-...", images)  # doctest: +SKIP
    """
    model, record = restore(folder, row, build=build), _rows.read_row(Path(folder), row)
    assert record is not None
    recipe = from_dict(record["recipe"])
    if not trained_on(record, images):
        raise ValueError(f"row_features: {row} was trained on other images than {images.name}")
    chosen = _data.split(images, recipe.test)
    height, width = chosen.test[0].shape[1:3]
    X = chosen.test[0][: n or max(1, _PIXELS // (height * width))]
    path = Path(folder) / _FOLDER / f"{row}-{len(X)}.json"
    if not path.is_file():
        mean, deviation = (
            np.asarray(part, np.float32) for part in _data.moments(chosen.train[0], recipe)
        )
        scaled = (X.astype(np.float32) / np.float32(255) - mean) / deviation
        measured = features(model, scaled, _convolutions(model, recipe.layers))
        path.parent.mkdir(exist_ok=True)
        write_whole(path, to_json(sealed(json.loads(measured.to_json()))).encode())
    try:
        layers = unsealed(json.loads(path.read_text(encoding="utf-8")))
        return Features.from_json(json.dumps(layers))
    except Exception as error:  # whatever a reader of foreign JSON raises
        raise CheckpointError(
            f"{path}: not the features of a row ({error}); remove the file to measure them again"
        ) from error


def _convolutions(model: nnx.Module, taps: Sequence[str] | None) -> list[str] | None:
    """The layers behind tap names; None leaves them to the model."""
    last = dict(zip(getattr(model, "early", ()), getattr(model, "convolutions", ())))
    return [last.get(name, name) for name in taps] if taps else None
