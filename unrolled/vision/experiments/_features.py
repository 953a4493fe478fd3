"""Features of a network as codes of a dictionary, and measures of these codes."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unrolled import metrics, plots, theory
from unrolled._base import checks
from unrolled._base.doors import Array, ArrayLike, Result, checked
from unrolled._base.files import CheckpointError, write_whole
from unrolled._base.text import markdown, screen, sealed, table, to_json, unsealed
from unrolled.dictionaries import Conv, dense
from unrolled.training import restore_tree
from unrolled.vision.datasets import Images
from unrolled.vision.experiments import _layer_dictionary, _recipe
from unrolled.vision.experiments._layer_dictionary import LayerDictionary, Pursued, pursued
from unrolled.vision.experiments._recipe import Build, build_model
from unrolled.vision.experiments._run import WEIGHTS, read_row
from unrolled.vision.experiments._table import check_fields, interval
from unrolled.vision.models import tap


class Admitted(Result):
    """Admitted numbers of nonzeros: a code with fewer than (1 + 1/mu) / 2 nonzeros is unique."""

    coherence: float  # mu of the filters under all shifts
    weights_coherence: float  # mu_W of the closed-form weights, at least mu~
    generalized: tuple[float, float] | None  # bounds on mu~; None if there are too many atoms
    stripe: int  # admitted nonzeros in a stripe, from the smaller of mu and mu_W
    signal: int  # admitted nonzeros of a code, from the smallest of mu, mu_W and mu~


class Codes(Result):
    """The sparsity of the codes of a layer."""

    zeros: float  # share of exact zeros
    below: float  # share of entries below a fraction of the largest entry of the image
    hoyer: float  # Hoyer's measure, from 0 for dense codes to 1 for sparse codes
    entries: int  # d, the length of a code
    nonzeros: np.ndarray  # (images,)
    stripe: np.ndarray  # (images,) nonzeros in the stripe with the most nonzeros


class LayerFeatures(Result):
    """The measures of the features of one layer."""

    dictionary: LayerDictionary | None  # None if read from a file
    admitted: Admitted  # the limits of theory
    codes: Codes  # the features as codes
    pursued: Pursued  # the codes of a pursuit


class Features(Result):
    """The result of `features`: the measures of each layer."""

    layers: dict[str, LayerFeatures]  # by tap name

    def __repr__(self) -> str:
        """The table, cut to the size of a screen."""
        return screen(self.table().splitlines())

    def table(self, form: str = "markdown") -> Any:
        """A table with one row per layer and means over images; forms as in `scores_table`."""

        def records():
            return [{"layer": name, **_numbers(layer)} for name, layer in self.layers.items()]

        return table(form, *features_rows({"network": self}), (), records, "table")

    def to_json(self) -> str:
        """All fields except the dictionaries, as JSON; numbers that are not finite become null."""
        return to_json(
            {name: layer.replace(dictionary=None) for name, layer in self.layers.items()}
        )

    @staticmethod
    def from_json(text: str) -> "Features":
        """The inverse of `to_json`, without the dictionaries."""
        return Features({name: _layer(numbers) for name, numbers in json.loads(text).items()})

    def plot(self) -> Any:
        """A figure of the codes of every layer, from the network and after a pursuit."""
        return plots.features({"network": self})


# For each name of a model, one result or several results.
Results = Mapping[str, Features | Sequence[Features]]


def _layer(numbers: dict[str, Any]) -> LayerFeatures:
    """The measures of a layer from the numbers in JSON."""

    def arrays(part):
        lists = {name: value for name, value in part.items() if isinstance(value, list)}
        return part | {name: np.array(value, float) for name, value in lists.items()}

    admitted = dict(numbers["admitted"])
    if admitted["generalized"] is not None:
        admitted["generalized"] = tuple(admitted["generalized"])
    return LayerFeatures(
        None,
        Admitted(**admitted),
        Codes(**arrays(numbers["codes"])),
        Pursued(**arrays(numbers["pursued"])),
    )


@checked
def features_table(found: Results) -> str:
    """A Markdown table of results of `features`: a row per model and layer, with means over images.

    If a model has several results, for instance results of several seeds, the table contains the
    mean of the results and half the width of Student's 95 % t interval. The certificate in the
    table is the largest certificate over all images.

    Args:
        found: results by the name of the model.

    Example:
        >>> from unrolled.vision.experiments import features_table
        >>> features_table({}).splitlines()[0][:26]
        '| model | layer | mu | adm'
    """
    return markdown(*features_rows(found))


@checked
def features_rows(found: Results) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of `features_table`.

    Example:
        >>> from unrolled.vision.experiments import features_rows
        >>> features_rows({})[0][:3]
        ['model', 'layer', 'mu']
    """
    rows = []
    for model, results in found.items():
        several = [results] if isinstance(results, Features) else results
        for name in several[0].layers:
            every = [_numbers(result.layers[name]) for result in several]
            cells = [
                _mean_text([numbers[column] for numbers in every], form)
                for column, form in _COLUMNS.items()
            ]
            certificates = np.array([r.layers[name].pursued.certificate.max() for r in several])
            finite = certificates[~np.isnan(certificates)]
            rows.append([model, name, *cells, f"{finite.max():.0e}" if finite.size else "none"])
    return ["model", "layer", *_COLUMNS, "certificate"], rows


_COLUMNS = {
    "mu": ".3f",
    "admitted": ".0f",
    "fullest stripe": ".0f",
    "zeros": ".1%",
    "Hoyer": ".3f",
    "theta < 0": ".0%",
    "gap": ".3f",
    "scaled change": ".3f",
    "change": ".2f",
    "overlap": ".3f",
    "zeros of x*": ".1%",
    "explained": ".1%",
}


def _numbers(layer: LayerFeatures) -> dict[str, float]:
    """The numbers in a row of the table, by column."""
    admitted, codes, pursued = layer.admitted, layer.codes, layer.pursued
    mean = {
        name: float(np.mean(value))
        for name, value in pursued.asdict().items()
        if isinstance(value, np.ndarray)
    }
    values = (
        *(admitted.coherence, admitted.stripe, float(codes.stripe.mean())),
        *(codes.zeros, codes.hoyer, pursued.negative),
        *(mean["gap"], mean["scaled_change"], mean["change"], mean["overlap"]),
        *(1 - mean["nonzeros"] / codes.entries, mean["explained"]),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _mean_text(values: Sequence[float], form: str) -> str:
    """The mean and the 95 % interval as text; if nan values are omitted, the text says so."""
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return "none"
    of = interval(defined)
    text = format(of.mean, form) if of.n == 1 else f"{of.mean:{form}} ± {of.half:{form}}"
    return text if of.n == len(values) else f"{text} ({of.n} of {len(values)})"


# If the weights are in float32, mu may be too low by rounding errors.
_ROUNDING = 1e-6
_COHERENCE_TOL = 1e-3  # relative gap of the linear programs


@checked
def features(
    model: nnx.Module,
    images: ArrayLike,
    layers: Sequence[str] | None = None,
    *,
    norms: Mapping[str, str] | None = None,
    activation: Any = None,
    fraction: float = 0.01,
    tol: float = 1e-3,
    max_steps: int = 4000,
    atoms: int = 600,
) -> Features:
    r"""The dictionaries, codes and pursuits of the convolutional layers of a network.

    A layer with ReLU computes x = relu(D'y - theta) (see `LayerDictionary`). This map is one step
    of nonnegative ISTA from zero, with step size 1, on

    .. math:: J(x) = \tfrac12 \|y - D x\|^2 + \sum_i theta_i x_i, \quad x \ge 0,

    where y is the input of the layer. A pursuit with the same D and theta starts at the best
    multiple of x and ends at the minimiser x*. The distance from x to x*, up to a scale, measures
    how well the layer computes sparse codes (see `Pursued`). For other activations x is the
    positive part of the features.

    A positive bias gives a negative theta. If a shift e of the signal, equal at all positions,
    makes theta + D'e positive, the pursuit solves the LASSO for y + e with the penalties
    theta + D'e; the two objectives differ by a constant. If there is no such shift, `bounded` is
    False: J is unbounded below on large pictures, and a minimum on a small picture is an effect of
    the border.

    Args:
        model: any nnx.Module, which is evaluated as after `model.eval()` and does not change.
        images: (N, H, W, C), the inputs of the model. To estimate the means, 64 images suffice.
        layers: paths of layers as in `layer_dictionary`; None selects the layers that the model
            lists in `convolutions` or in `early`.
        norms: for each layer whose batch norm is outside of the layer, the path of the batch norm.
        activation: as in `layer_dictionary`.
        fraction: `Codes.below` counts entries below this fraction of the largest entry of an image.
        tol: allowed distance of J(x*) from the minimum, relative to J(0) - J(x*).
        max_steps: largest number of steps of FISTA.
        atoms: largest number of atoms for which the linear programs of mu~ are solved.

    Returns:
        Features, with means over images and with one number for each image.

    Raises:
        TypeError, ValueError: as in `layer_dictionary`; also if images are not (N, H, W, C), or if
            the model does not call a layer or calls a layer more than once.

    Not claimed: that x* is unique, or that the network was designed to compute x*. If D has more
    atoms than y has entries, J may have several minimisers; the pursuit ends at a minimiser near x.

    Reference: Papyan, Romano, Elad (2017), who regard layers as pursuits and count nonzeros in
    stripes; Li, Feng, Zhou (2024), Theorem 1.

    Example:
        >>> from flax import nnx
        >>> from unrolled.vision.experiments import features
        >>> net = ur.vision.models.LeNet5(channels=1, side=16, rngs=nnx.Rngs(0))
        >>> images = jax.random.normal(jax.random.key(1), (2, 16, 16, 1))
        >>> measured = features(net, images, ["conv1"], tol=0.1)
        >>> measured.layers["conv1"].pursued.gap.shape
        (2,)
    """
    where = "features"
    early = getattr(model, "convolutions", getattr(model, "early", ()))
    names = tuple(early if layers is None else layers)
    if not names:
        raise ValueError(f"{where}: {type(model).__name__} has no `early`; pass layers")
    images = checks.as_float(images, "images", where)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"{where}: images have shape {images.shape}; expected (N, H, W, C)")
    model = nnx.clone(model)
    model.eval()
    inputs = _inputs(model, images, [_layer_dictionary.block_of(model, name)[0] for name in names])
    measured = {}
    for name, x in zip(names, inputs):
        options: dict[str, Any] = dict(norm=(norms or {}).get(name), activation=activation)
        layer = _layer_dictionary.layer_dictionary(model, name, x.shape[1:3], **options)
        Y = layer.signals(x)
        measured[name] = LayerFeatures(
            layer,
            _admitted(layer.D, atoms),
            _codes(layer, Y, fraction),
            pursued(layer, Y, tol, max_steps),
        )
    return Features(measured)


def _inputs(model: nnx.Module, images: Array, paths: Sequence[str]) -> list[Array]:
    """The inputs of the modules with these paths when the model is called on the images."""
    inner = tuple(dict.fromkeys(path for path in paths if path))
    taken: dict[str, Array] = {"": images}
    if inner:
        taken |= tap(model, *inner, inputs=True)(images)[1]
    for path in paths:
        if path not in taken:
            raise ValueError(f"features: the model calls {path!r} more than once; name another")
    return [taken[path] for path in paths]


def _admitted(D: Conv, atoms: int) -> Admitted:
    d, generalized = D.shape[1], None
    with jax.enable_x64(True):
        unit, mu, mu_W = _coherences(checks.cast(D, np.float64))
        if d <= atoms:
            wide = theory.in_float64(dense(unit), D.dtype)
            coherence = theory.generalized_coherence(wide, _COHERENCE_TOL, only_maximum=True)
            generalized = float(coherence.lower), float(coherence.upper)
        local = min(float(mu), float(mu_W))
    least = local if generalized is None else min(local, generalized[1])
    stripe, signal = (theory.max_sparsity(value * (1 + _ROUNDING), d) for value in (local, least))
    return Admitted(float(mu), float(mu_W), generalized, stripe, signal)


@jax.jit
def _coherences(D: Conv) -> tuple[Conv, Array, Array]:
    """D with atoms of norm 1, the coherence mu, and mu_W of the closed-form weights."""
    unit, _ = D.normalized()
    mu_W = theory.coherence(theory.frobenius_weights(unit), unit).mu_W
    return unit, theory.mutual_coherence(unit), mu_W


def _codes(layer: LayerDictionary, Y: Array, fraction: float) -> Codes:
    X = layer.codes(Y)
    of = metrics.sparsity(X, fraction)
    measures = float(of.zeros), float(of.below), float(of.hoyer)
    return Codes(*measures, X.shape[1], *map(np.asarray, _counts(layer.D, X)))


@jax.jit
def _counts(D: Conv, X: Array) -> tuple[Array, Array]:
    """The numbers of nonzeros of codes (N, d), in the whole code and in the fullest stripe."""
    stripes = partial(theory.stripe_norm, kernel=D.kernel, stride=D.stride)
    return jnp.sum(X != 0, 1), jax.vmap(stripes)(D.unflatten_code(X))


_FOLDER = "features"
_PIXELS = 64 * 32 * 32  # default number of pixels of all measured images


@checked
def restore(folder: str | Path, row: str, *, build: Build = build_model) -> Any:
    """The trained model of a row, in evaluation mode.

    The inputs of the model are floating-point images as in the run: (X / 255 - mean) / deviation
    with the `moments` of the row. If the recipe does not standardize, mean is 0 and deviation is 1.

    Args:
        folder: folder of the experiment.
        row: name of the row, as in `read_rows`.
        build: as in `run`, if the row has your own model.

    Raises:
        FileNotFoundError: the row does not exist, or its weights were not kept.
        CheckpointError: the weights are damaged, or belong to another model.

    Example:
        >>> from unrolled.vision import experiments
        >>> net = experiments.restore("runs", "digits-lenet5-...")  # doctest: +SKIP
    """
    record = read_row(Path(folder), row)
    if record is None:
        raise FileNotFoundError(f"{folder}: has no row {row!r}")
    path = Path(folder) / WEIGHTS / f"{row}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the weights of this row were not kept")
    recipe, images = _recipe.from_dict(record["recipe"]), record["images"]
    with jax.enable_x64(False):  # the run computed in float32
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
    """Whether a row was trained on images with the same pictures, labels and sizes as `images`.

    Args:
        row: a row from `read_rows`.
        images: images from `load`, with the whole test set.

    Example:
        >>> from unrolled.vision import experiments
        >>> images = experiments.load("digits", side=16)
        >>> row = {"recipe": {"test": "whole"}, "images": {"name": "digits", "sha256": "another"}}
        >>> experiments.trained_on(row, images)
        False
    """
    check_fields(row, "images recipe", "row", "trained_on")
    own = row["images"]
    if own["name"] != images.name:
        return False
    return _recipe.digest_of(_recipe.split_images(images, row["recipe"]["test"])) == own["sha256"]


@checked
def row_features(
    folder: str | Path,
    row: str,
    images: Images,
    *,
    build: Build = build_model,
    n: int | None = None,
) -> Features:
    """`features` of the model of a row on the first test images; the folder keeps the result.

    If the recipe names penalised layers, the measured layers are the convolutions of these layers.
    Otherwise the measured layers are the default layers of `features`. The dictionaries of the
    layers are not kept, so the fields `dictionary` are None.

    Args:
        folder: folder of the experiment.
        row: name of the row, as in `read_rows`.
        images: the images of the run, from `load`.
        build: as in `run`, if the row has your own model.
        n: number of images; None selects as many images as have at most 65,536 pixels in total (64
            images of 32 x 32 pixels), but at least one image.

    Raises:
        FileNotFoundError: the row does not exist, or its weights were not kept.
        ValueError: images differ from the images of the run, or as in `features`.
        CheckpointError: the file with earlier measurements is damaged.

    Example:
        >>> from unrolled.vision import experiments
        >>> images = experiments.load("digits")
        >>> experiments.row_features("runs", "digits-lenet5-...", images)  # doctest: +SKIP
    """
    model, record = restore(folder, row, build=build), read_row(Path(folder), row)
    assert record is not None
    recipe = _recipe.from_dict(record["recipe"])
    if not trained_on(record, images):
        raise ValueError(f"row_features: {row} was trained on other images than {images.name}")
    chosen = _recipe.split_images(images, recipe.test)
    height, width = chosen.test[0].shape[1:3]
    X = chosen.test[0][: n or max(1, _PIXELS // (height * width))]
    path = Path(folder) / _FOLDER / f"{row}-{len(X)}.json"
    if not path.is_file():
        mean, deviation = (
            np.asarray(part, np.float32) for part in _recipe.moments_of(chosen.train[0], recipe)
        )
        scaled = (X.astype(np.float32) / np.float32(255) - mean) / deviation
        measured = features(model, scaled, _convolutions(model, recipe.layers))
        path.parent.mkdir(exist_ok=True)
        write_whole(path, to_json(sealed(json.loads(measured.to_json()))).encode())
    try:
        layers = unsealed(json.loads(path.read_text(encoding="utf-8")))
        return Features.from_json(json.dumps(layers))
    except Exception as error:  # foreign JSON may raise many exceptions
        raise CheckpointError(
            f"{path}: not the features of a row ({error}); remove the file to measure them again"
        ) from error


def _convolutions(model: nnx.Module, taps: Sequence[str] | None) -> list[str] | None:
    """The convolutions of the layers with these tap names; None for the default layers."""
    last = dict(zip(getattr(model, "early", ()), getattr(model, "convolutions", ())))
    return [last.get(name, name) for name in taps] if taps else None
