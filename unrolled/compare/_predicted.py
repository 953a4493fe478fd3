"""What theory predicts of the methods of a comparison: a typical error, and a local rate."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from unrolled import theory
from unrolled._checks import Array
from unrolled.compare._sampled import Class, class_of
from unrolled.dictionaries import Dictionary, Structured, dense
from unrolled.layers import Layer, Unrolled, unstack

_SUPPORTS = 5  # drawn ones, of which the median rate is taken
_WEIGHTS = {"amp": "dictionary"}  # of `local_rate`, for message passing of this kind


class Predicted(NamedTuple):
    """The median error that state evolution predicts, and the rate once the support is right."""

    nmse: np.ndarray | None  # (K,) dB, of a typical signal after every step
    rate: float | None  # dB per step, of codes without noise
    remark: str  # why a prediction is missing, or empty


def predictions(
    methods: Mapping[str, tuple], D: Dictionary, Y: Array, X: Array
) -> dict[str, Predicted]:
    """What theory predicts of every method (layer, params, D) that is no fixed array of codes."""
    of, models = class_of(D, Y, X), {n: m for n, m in methods.items() if m[0] is not None}
    return {
        name: _prediction(layer, params, D if own is None else own, of)
        for name, (layer, params, own) in models.items()
    }


def _prediction(layer: Layer, params: Unrolled, D: Dictionary, of: Class) -> Predicted:
    nmse, remark, passing = None, "none is known for this family and its options", _passing(layer)
    has_rate = True
    if passing is not None:
        try:
            options: Any = of._asdict()
            evolution = theory.state_evolution(layer, D, **options, params=params)
            nmse = evolution.nmse[1:] if evolution.holds else None
            remark = evolution.reason
            has_rate = evolution.holds or passing.step == "projected"  # a plain step has its own
        except (TypeError, ValueError) as error:  # it says what it does not cover
            remark = str(error).partition(": ")[2].partition(";")[0]
    rate = _rate(layer, params, D, of) if has_rate else None
    return Predicted(nmse, rate, remark)


def _passing(layer: Layer) -> theory.MessagePassing | None:
    described = layer.message_passing is not None and layer.guard is None
    return layer.message_passing() if described else None


def _rate(layer: Layer, params: Unrolled, D: Dictionary, of: Class) -> float | None:
    """In dB per step: of the last weights of a plain step, or of the Onsager term."""
    m, d = D.shape
    s = round(of.probability * d)
    if of.noise > 0 or not 1 <= s <= m <= d:
        return None
    passing = _passing(layer)
    if passing is not None and passing.step != "projected":
        if isinstance(D, Structured):
            return None
        weights = _WEIGHTS.get(passing.step, "frobenius")
        return _decibels(theory.local_rate(m, d, s, weights=weights).accelerated)
    if not layer.is_coupled:
        return None
    shared, steps = unstack(Unrolled(params.shared, jax.device_get(params.steps)))
    W, gamma, _ = layer.weights(shared, steps[-1], D)
    acting: Any = np.asarray(dense(W), float) * (1.0 if gamma is None else np.asarray(gamma, float))
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(d)[:s] for _ in range(_SUPPORTS)]
    return _decibels(float(np.median([theory.support_rate(acting, D, S).plain for S in drawn])))


def _decibels(rate: float) -> float | None:
    """None where it does not converge, or where one step is enough."""
    return 20 * math.log10(rate) if 0 < rate < 1 else None
