"""Theory to params: one function per family, which returns what training returns.

These are host functions: they compute coherences and schedules in float64 from D and W as they are
stored, and their leaves have the dtype of D. If the hypotheses of the theory fail, the params come
back all the same and a `HypothesisWarning` says by how much. `certify` and `weights_table` report
what the theory says of given weights.
"""

from unrolled.analytic._calibrate import calibrate
from unrolled.analytic._params import (
    alista,
    alista_at,
    dsc,
    hyperlista,
    ista,
    lamp,
    lista_cp,
    stored_thresholds,
)
from unrolled.analytic._sample import from_sample
from unrolled.analytic._schedules import (
    Certified,
    HypothesisWarning,
    WeightsRow,
    WeightsTable,
    block_schedule,
    certify,
    chain_schedules,
    plan,
    weights_table,
)
from unrolled.theory import frobenius_weights, minimax_weights

__all__ = [
    "Certified",
    "HypothesisWarning",
    "WeightsRow",
    "WeightsTable",
    "alista",
    "alista_at",
    "block_schedule",
    "calibrate",
    "certify",
    "chain_schedules",
    "dsc",
    "frobenius_weights",
    "from_sample",
    "hyperlista",
    "ista",
    "lamp",
    "lista_cp",
    "minimax_weights",
    "plan",
    "stored_thresholds",
    "weights_table",
]
