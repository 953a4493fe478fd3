"""`unrolled experiment --features`: what the features of the trained networks are."""

from functools import partial
from pathlib import Path
from typing import Any

from unrolled import experiments, plots
from unrolled.commands._console import Say
from unrolled.commands._experiment_report import grouped, section_name
from unrolled.commands._report import Section
from unrolled.datasets import Images
from unrolled.experiments import Features, task_of

_TEXT = """\
The features of a convolutional layer are codes: its filters, scaled to norm 1, are the atoms of a
dictionary D, its biases thresholds theta, its input a signal y. With ReLU the layer is one step of
nonnegative ISTA from zero on J(x) = 1/2 |y - D x|^2 + theta' x. A pursuit with the same D and theta
ends at the minimum x*. Here are means over {n} test images, and over seeds with the half width
of the 95 % t interval. *mu*: coherence of the filters. *admitted*: nonzeros in a stripe (all
coefficients whose atoms overlap one position) up to which theory calls a code unique. *fullest
stripe*: nonzeros in that of an image. *theta < 0*: share of filters with a positive bias, which
rewards entries. *gap*: (J(c x) - J(x*)) / (J(0) - J(x*)) of the forward code x at its best multiple
c; 0 is as good as the pursuit, 1 as good as no code. *scaled change*: least |x* - c x| / |x*|.
*change*: the same at c = 1. *overlap*: nonzeros in both supports over those in either. *explained*:
energy of y in D x*. *certificate*: the most by which J(x*) exceeds the minimum, in units of the
gap, on any image. *none*: J has no bound on large pictures. Of other activations x is the positive
part."""


def features_sections(folder: Path, images: Images, say: Say) -> list[Section]:
    """A table and a figure of the trained rows of every section of the report."""
    rows = {
        name: row
        for name, row in experiments.read_rows(folder).items()
        if _measurable(folder, name, row, images)
    }
    return [_features_section(folder, named, images, say) for named in grouped(rows)]


def _measurable(folder: Path, name: str, row: dict[str, Any], images: Images) -> bool:
    """Whether a row has trained weights of a network with features, on these images."""
    has_weights = (folder / "weights" / f"{name}.npz").is_file()
    convolutional = task_of(row["recipe"]["model"]) != "ml-csc"
    complete = row["status"] == "complete"
    return has_weights and convolutional and complete and experiments.trained_on(row, images)


def _features_section(folder: Path, rows: dict[str, dict], images: Images, say: Say) -> Section:
    """Rows of equal activation and gamma are one line of the table."""
    named: dict[str, list[Features]] = {}
    for name, row in rows.items():
        recipe = row["recipe"]
        say(f"features of {name}")
        label = f"{recipe['activation']}, gamma {recipe['gamma']:g}"
        named.setdefault(label, []).append(experiments.row_features(folder, name, images))
    first = next(iter(named.values()))[0]
    n = min(len(layer.codes.nonzeros) for layer in first.layers.values())
    return Section(
        f"What the features are: {images.name}, {recipe['model']}, {recipe['epochs']} epochs",
        f"features-{section_name(rows)}",
        [_TEXT.format(n=n), "", experiments.features_table(named)],
        {"Codes of the layers, in the network and after a pursuit": partial(plots.features, named)},
        experiments.features_rows(named),
        {label: [result.layers for result in results] for label, results in named.items()},
    )
