"""The figure of what the features of networks are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from unrolled._arguments import checked
from unrolled.plots._curves import figure, note, tidy
from unrolled.plots._styles import styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "zeros": ("Zeros of the code", "share of exact zeros"),
    "gap": ("Objective of the forward code", "(J(c x) - J*) / (J(0) - J*)"),
    "scaled_change": ("Change by the pursuit", "least |x* - c x| / |x*|"),
    "overlap": ("Common support", "in both / in either"),
}
_WIDTH = 0.8  # of the models of a layer, of the distance of two layers


@checked
def features(found: Mapping[str, Any]) -> "Figure":
    """The codes of the layers of networks, as the networks have them and after a pursuit.

    Bars are means over the images, lines on them go from the lower to the upper quartile. A circle
    shows the zeros of the pursuit. A layer whose pursuit has no minimum has no bars.

    Args:
        found: results of `experiments.features` by name, one or several of each, whose images then
            count together; networks with the same layers.

    Raises:
        ValueError: no results, or other layers in one of them.

    Example:
        >>> from flax import nnx
        >>> from unrolled.experiments import features
        >>> net = ur.models.LeNet5(channels=1, side=16, rngs=nnx.Rngs(0))
        >>> result = features(net, np.ones((1, 16, 16, 1), np.float32), ["conv1"], tol=0.1)
        >>> fig = ur.plots.features({"untrained": result})
        >>> [panel.get_title() for panel in fig.axes[:2]]
        ['Zeros of the code', 'Objective of the forward code']
    """
    results = {
        name: list(several)
        if isinstance(several, list | tuple) and not hasattr(several, "layers")
        else [several]
        for name, several in found.items()
    }
    layer_names = {tuple(result.layers) for several in results.values() for result in several}
    if len(layer_names) != 1:
        raise ValueError("features: expected results with the same layers, and at least one")
    (layers,) = layer_names
    fig, panels = figure(1, len(_TITLES), width=3.6, height=3.6)
    # Bars have a colour alone: variants of a family need their own.
    looks = dict(zip(found, styles(f"bar {i}" for i in range(len(found))).values()))
    width = _WIDTH / len(found)
    for panel, (quantity, (title, ylabel)) in zip(panels[0], _TITLES.items()):
        for i, (model, several) in enumerate(results.items()):
            at = np.arange(len(layers)) + (i + 0.5) * width - _WIDTH / 2
            pooled = [[result.layers[name] for result in several] for name in layers]
            low, mean, high = np.transpose([_summary(group, quantity) for group in pooled])
            colour = looks[model]["color"]
            panel.bar(at, mean, 0.9 * width, color=colour, alpha=0.6, label=model)
            panel.vlines(at, low, high, color=colour)
            if quantity == "zeros":
                after = [_summary(group, "zeros of x*")[1] for group in pooled]
                panel.plot(at, after, "o", color=colour, markerfacecolor="white")
        tidy(panel, title=title, xlabel="layer", ylabel=ylabel)
        panel.set_xticks(range(len(layers)), [name.removesuffix(".features") for name in layers])
    note(panels[0, 0], ["circles: after the pursuit"])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(len(found), 6), frameon=False)
    return fig


def _summary(layers: list[Any], quantity: str) -> tuple[float, float, float]:
    """Lower quartile, mean and upper quartile over the images of all results; nan are left out."""
    values = np.concatenate([_values(layer, quantity) for layer in layers])
    values = values[~np.isnan(values)]
    if not values.size:
        return np.nan, np.nan, np.nan
    low, high = np.quantile(values, [0.25, 0.75])
    return float(low), float(np.mean(values)), float(high)


def _values(layer: Any, quantity: str) -> np.ndarray:
    """One number per image."""
    if quantity == "zeros":
        return 1 - layer.codes.nonzeros / layer.codes.entries
    if quantity == "zeros of x*":
        return 1 - layer.pursued.nonzeros / layer.codes.entries
    return getattr(layer.pursued, quantity)
