"""The families of layers by name, what each can be asked for, and layers made from what a weights
file says.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from unrolled import layers
from unrolled.layers import Layer

FAMILIES = {
    name: getattr(layers, name)
    for name in (
        *(
            "ista",
            "fista",
            "lista",
            "lista_ss",
            "lista_cp",
            "lista_cpss",
            "alista",
            "tilista",
            "step_lista",
        ),
        *(
            "robust_alista",
            "glista",
            "lfista",
            "lamp",
            "lamp_bg",
            "tista",
            "liht",
            "ada_lista",
            "na_alista",
            "hyperlista",
        ),
    )
}
SET_BY_THEORY = ("lista_cp", "lista_cpss", "alista")  # thresholds for the class of the signals
START_FROM_THEORY = (
    "ista",
    "fista",
    "step_lista",
    *SET_BY_THEORY,
)  # the first three start so anyway
_WITHOUT_THETA = ("step_lista", "lamp", "lamp_bg", "tista", "liht", "na_alista", "hyperlista")
WITH_THETA = tuple(name for name in FAMILIES if name not in _WITHOUT_THETA)
WITHOUT_STEPS = ("na_alista", "hyperlista")  # whose steps share all their params
# These hand their options on to another factory.
_BEHIND = {"lista_ss": layers.lista, "lista_cpss": layers.lista_cp}
_EXECUTION = {"precision", "unroll", "remat"}  # how a layer runs, not what it computes


def option_names(family: str) -> set[str]:
    """The options of a family's factory beside depth, and beside how it runs."""
    factory = _BEHIND.get(family, FAMILIES[family])
    return set(inspect.signature(factory).parameters) - {"depth"} - _EXECUTION


def make_layer(described: Mapping[str, Any]) -> Layer:
    """The layer of {"family": name, "depth": K, and options of its factory}.

    Raises:
        ValueError: no such family, an option that it does not have, or values that it refuses.
    """
    options = dict(described)
    family, depth = options.pop("family", None), options.pop("depth", None)
    if family not in FAMILIES:
        raise ValueError(f"layer: unknown family {family!r}; expected one of {', '.join(FAMILIES)}")
    unknown = sorted(set(options) - option_names(family))
    if unknown:
        raise ValueError(
            f"layer: {family} has no option {', '.join(unknown)}; it has {', '.join(option_names(family))}"
        )
    return FAMILIES[family](depth, **options)
