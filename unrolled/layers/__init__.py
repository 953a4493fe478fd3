"""Layers: solvers cut after K steps. A family is a step and its params; one loop runs all steps."""

from unrolled.layers._ada_lista import SignalMatrices, ada_lista
from unrolled.layers._alista import alista, robust_alista, tilista
from unrolled.layers._alista_at import Adapting, alista_at
from unrolled.layers._bernoulli_gaussian import Estimating, bernoulli_gaussian_mean
from unrolled.layers._closed_form import FromClosedForm, lasso_weights, stable_step
from unrolled.layers._glista import Gated, glista
from unrolled.layers._hyperlista import Analytic, Hyper, hyperlista
from unrolled.layers._ista import Step, StepAndThreshold, fista, ista, ista_params, step_lista
from unrolled.layers._lamp import Message, lamp
from unrolled.layers._lamp_bg import lamp_bg
from unrolled.layers._layer import FAMILIES, Acting, Law, Layer, Looped, Recipe, unroll
from unrolled.layers._lfista import MomentumMatrices, lfista
from unrolled.layers._lfista_cp import WeightsAndMomentum, lfista_cp
from unrolled.layers._liht import keep_largest, liht
from unrolled.layers._lista import Matrices, MatricesAndThreshold, Threshold, lista, lista_ss
from unrolled.layers._lista_cp import WeightsAndThreshold, lista_cp, lista_cpss
from unrolled.layers._na_alista import Recurrent, na_alista
from unrolled.layers._records import (
    Fixed,
    Gamma,
    Matrix,
    Number,
    Shape,
    Square,
    Theta,
    Unrolled,
    Weights,
    along_atoms,
    check_params,
    check_records,
    fold_thresholds,
    is_record,
    magnitude,
    names_with_role,
    records_of,
    repeat,
    stack,
    unstack,
)
from unrolled.layers._shrinking import (
    Coupled,
    FromISTA,
    Selecting,
    Shrinking,
    as_activation,
    as_support,
)
from unrolled.layers._tista import tista
from unrolled.layers._vamp_bg import Belief, Spectrum, vamp_bg
from unrolled.pursuit import State
from unrolled.records import Interned, option

__all__ = [
    "Acting",
    "Adapting",
    "Analytic",
    "Belief",
    "Coupled",
    "Estimating",
    "FAMILIES",
    "Fixed",
    "FromClosedForm",
    "FromISTA",
    "Gamma",
    "Gated",
    "Hyper",
    "Interned",
    "Law",
    "Layer",
    "Looped",
    "Matrices",
    "MatricesAndThreshold",
    "Matrix",
    "Message",
    "MomentumMatrices",
    "Number",
    "Recipe",
    "Recurrent",
    "Selecting",
    "Shape",
    "Shrinking",
    "SignalMatrices",
    "Spectrum",
    "Square",
    "State",
    "Step",
    "StepAndThreshold",
    "Theta",
    "Threshold",
    "Unrolled",
    "Weights",
    "WeightsAndMomentum",
    "WeightsAndThreshold",
    "ada_lista",
    "alista",
    "alista_at",
    "along_atoms",
    "as_activation",
    "as_support",
    "bernoulli_gaussian_mean",
    "check_params",
    "check_records",
    "fista",
    "fold_thresholds",
    "glista",
    "hyperlista",
    "is_record",
    "ista",
    "ista_params",
    "keep_largest",
    "lamp",
    "lamp_bg",
    "lasso_weights",
    "lfista",
    "lfista_cp",
    "liht",
    "lista",
    "lista_cp",
    "lista_cpss",
    "lista_ss",
    "magnitude",
    "na_alista",
    "names_with_role",
    "option",
    "records_of",
    "repeat",
    "robust_alista",
    "stable_step",
    "stack",
    "step_lista",
    "tilista",
    "tista",
    "unroll",
    "unstack",
    "vamp_bg",
]
