"""Layers: solvers cut after K steps. Families define steps and params; one loop runs all steps."""

from unrolled._base import offer as _offer
from unrolled.layers._alista import *
from unrolled.layers._alista import lasso_weights, stable_step
from unrolled.layers._alista_rt import *
from unrolled.layers._bcd import *
from unrolled.layers._hyperlista import *
from unrolled.layers._ista import *
from unrolled.layers._ista import ista_params
from unrolled.layers._layer import *
from unrolled.layers._layer import codes_after, codes_of
from unrolled.layers._lista import *
from unrolled.layers._message_passing import *
from unrolled.layers._records import *
from unrolled.layers._records import (
    along_atoms,
    check_params,
    check_records,
    fold_thresholds,
    is_record,
    is_trained,
    mean_thresholds,
    names_with_role,
    records_of,
)
from unrolled.layers._sae import *
from unrolled.layers._shrinking import *
from unrolled.layers._shrinking import as_activation
from unrolled.pursuit import State as State
from unrolled.records import Interned as Interned
from unrolled.records import option as option

_offer(
    __name__,
    own="Acting Adapting Analytic Belief Coupled Encoder Estimating FAMILIES Fixed FromClosedForm "
    "FromISTA Gamma Gated Hyper Interned Law Layer Looped Matrices MatricesAndThreshold "
    "Matrix Message MomentumMatrices Number Prepared Recipe Recurrent Selecting Shape Shrinking "
    "SignalMatrices Spectrum Square State Step StepAndThreshold Sweep Theta Threshold Unrolled "
    "Visits Weights WeightsAndMomentum WeightsAndThreshold bernoulli_gaussian_mean keep_largest "
    "magnitude option repeat unroll",
)
