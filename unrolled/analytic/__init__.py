"""From theory to params: one function per family, which returns params in the form of training.

The functions run on the host. They compute coherences and schedules in float64 from the stored D
and W, and return leaves in the dtype of D. If the hypotheses of the theory fail, the functions
still return params, and a `HypothesisWarning` says by how much the hypotheses fail.
`certified_weights` and `weights_table` report what the theory certifies for given weights.
"""

from unrolled._base import offer as _offer
from unrolled.analytic._calibrate import *
from unrolled.analytic._params import *
from unrolled.analytic._params import stored_thresholds
from unrolled.analytic._sample import *
from unrolled.analytic._schedules import *
from unrolled.analytic._schedules import bound_remark
from unrolled.theory import frobenius_weights as frobenius_weights
from unrolled.theory import minimax_weights as minimax_weights

_offer(
    __name__,
    "frobenius_weights",
    "minimax_weights",
    results="Certified HypothesisWarning WeightsRow WeightsTable",
)
