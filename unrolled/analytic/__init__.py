"""Theory to params: one function per family, returning what training returns, and what theory says
of given weights.

Host functions: coherences and schedules are computed in float64 from D and W as they are stored,
and the leaves have the dtype of D. If the hypotheses of the theory fail, params come back all the
same and a `HypothesisWarning` says by how much.
"""

from unrolled.analytic._calibrate import (
    calibrate,
)
from unrolled.analytic._params import (
    alista,
    dsc,
    hyperlista,
    ista,
    lista_cp,
    stored_thresholds,
)
from unrolled.analytic._schedules import (
    Certified,
    HypothesisWarning,
    block_schedule,
    certify,
    chain_schedules,
    plan,
)
from unrolled.analytic._table import (
    WeightsRow,
    WeightsTable,
    finite_or_none,
    line,
    weights_table,
)
from unrolled.theory import (
    frobenius_weights,
    minimax_weights,
)

__all__ = [
    "Certified",
    "HypothesisWarning",
    "WeightsRow",
    "WeightsTable",
    "alista",
    "block_schedule",
    "calibrate",
    "certify",
    "chain_schedules",
    "dsc",
    "finite_or_none",
    "frobenius_weights",
    "hyperlista",
    "ista",
    "line",
    "lista_cp",
    "minimax_weights",
    "plan",
    "stored_thresholds",
    "weights_table",
]
