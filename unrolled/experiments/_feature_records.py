"""The results of `features`: records of the layers, their JSON, and their table."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unrolled import plots
from unrolled._arguments import checked
from unrolled._json import to_json
from unrolled._text import markdown, screen, table
from unrolled.experiments._layer_dictionary import LayerDictionary
from unrolled.experiments._layer_pursuit import Pursued
from unrolled.experiments._table import interval


class Admitted(NamedTuple):
    """How many nonzeros theory admits: with fewer than (1 + 1/mu) / 2 a code is unique."""

    coherence: float  # mu of the filters under all shifts
    weights_coherence: float  # mu_W of the closed-form weights, at least mu~
    generalized: tuple[float, float] | None  # bounds of mu~; None: not computed, too many atoms
    stripe: int  # nonzeros in a stripe, by the smaller of mu and mu_W
    signal: int  # nonzeros of a code, by the smallest of all


class Codes(NamedTuple):
    """How sparse the codes of a layer are."""

    zeros: float  # share of exact zeros
    below: float  # share of entries that are small beside the largest of their image
    hoyer: float  # Hoyer's measure, 0 dense to 1 sparse
    entries: int  # d, of a code
    nonzeros: np.ndarray  # (images,)
    stripe: np.ndarray  # (images,) nonzeros of the fullest stripe


class LayerFeatures(NamedTuple):
    """What the features of one layer are."""

    dictionary: LayerDictionary | None  # None if read from a file
    admitted: Admitted  # what theory admits
    codes: Codes  # the features as codes
    pursued: Pursued  # what a pursuit finds


class Features(NamedTuple):
    """The result of `features`: by the name of the layer."""

    layers: dict[str, LayerFeatures]  # by tap name

    def __repr__(self) -> str:
        """The table, as it fits on a screen."""
        return screen(self.table().splitlines())

    def table(self, form: str = "markdown") -> Any:
        """A row per layer, of means over the images, in the forms of `scores_table`."""

        def records():
            return [{"layer": name, **_numbers(layer)} for name, layer in self.layers.items()]

        return table(form, *features_rows({"network": self}), (), records, "table")

    def to_json(self) -> str:
        """All but the dictionaries, as JSON; numbers that are not finite become null."""
        return to_json(
            {name: layer._replace(dictionary=None) for name, layer in self.layers.items()}
        )

    @staticmethod
    def from_json(text: str) -> "Features":
        """What `to_json` gave the text of, without the dictionaries."""
        return Features({name: _layer(numbers) for name, numbers in json.loads(text).items()})

    def plot(self) -> Any:
        """A figure of the codes of every layer, as the network has them and after a pursuit."""
        return plots.features({"network": self})


# By the name of a model: one result, or several.
Results = Mapping[str, Features | Sequence[Features]]


def _layer(numbers: dict[str, Any]) -> LayerFeatures:
    """The numbers of a layer from JSON."""

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
    """A Markdown table of results of `features`, a row per model and layer, of means over images.

    Of several results of one name, such as those of several seeds, it has the mean and the half
    width of the 95 % interval of Student's t. The certificate is the largest of all images.

    Args:
        found: by the name of the model.

    Example:
        >>> from unrolled.experiments import features_table
        >>> features_table({}).splitlines()[0][:26]
        '| model | layer | mu | adm'
    """
    return markdown(*features_rows(found))


@checked
def features_rows(found: Results) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of `features_table`.

    Example:
        >>> from unrolled.experiments import features_rows
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
    """The numbers of a row of the table, by its columns."""
    _, admitted, codes, pursued = layer
    mean = {
        name: float(np.mean(value))
        for name, value in pursued._asdict().items()
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
    """Mean and 95 % interval as text; values that are nan are left out, which the text says."""
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return "none"
    mean, half, n = interval(defined)
    text = format(mean, form) if n == 1 else f"{mean:{form}} ± {half:{form}}"
    return text if n == len(values) else f"{text} ({n} of {len(values)})"
