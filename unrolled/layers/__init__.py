"""Layers: solvers cut after K steps. A family is a `step` and its params; `unroll` runs any of
them.
"""

from unrolled.layers._ada_lista import (
    SignalMatrices,
    ada_lista,
)
from unrolled.layers._alista import (
    alista,
    robust_alista,
    tilista,
)
from unrolled.layers._glista import (
    Gated,
    glista,
)
from unrolled.layers._hyperlista import (
    Analytic,
    Hyper,
    hyperlista,
)
from unrolled.layers._ista import (
    Step,
    StepAndThreshold,
    fista,
    ista,
    ista_params,
    lipschitz,
    step_lista,
)
from unrolled.layers._lamp import (
    Message,
    lamp,
)
from unrolled.layers._lamp_bg import (
    lamp_bg,
)
from unrolled.layers._lfista import (
    MomentumMatrices,
    lfista,
)
from unrolled.layers._liht import (
    keep_largest,
    liht,
)
from unrolled.layers._lista import (
    Matrices,
    MatricesAndThreshold,
    Threshold,
    lista,
    lista_ss,
    repeat,
)
from unrolled.layers._lista_cp import (
    WeightsAndThreshold,
    lista_cp,
    lista_cpss,
)
from unrolled.layers._na_alista import (
    Recurrent,
    na_alista,
)
from unrolled.layers._tista import (
    bernoulli_gaussian_mean,
    tista,
)
from unrolled.layers._unroll import (
    Fixed,
    Layer,
    Unrolled,
    Weights,
    check_params,
    check_precision,
    magnitude,
    stack,
    unroll,
    unstack,
)

__all__ = [
    "Analytic",
    "Fixed",
    "Gated",
    "Hyper",
    "Layer",
    "Matrices",
    "MatricesAndThreshold",
    "Message",
    "MomentumMatrices",
    "Recurrent",
    "SignalMatrices",
    "Step",
    "StepAndThreshold",
    "Threshold",
    "Unrolled",
    "Weights",
    "WeightsAndThreshold",
    "ada_lista",
    "alista",
    "bernoulli_gaussian_mean",
    "check_params",
    "check_precision",
    "fista",
    "glista",
    "hyperlista",
    "ista",
    "ista_params",
    "keep_largest",
    "lamp",
    "lamp_bg",
    "lfista",
    "liht",
    "lipschitz",
    "lista",
    "lista_cp",
    "lista_cpss",
    "lista_ss",
    "magnitude",
    "na_alista",
    "repeat",
    "robust_alista",
    "stack",
    "step_lista",
    "tilista",
    "tista",
    "unroll",
    "unstack",
]
