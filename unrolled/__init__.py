"""unrolled: sparse-coding solvers as networks in JAX, with weights from theory or from training."""

from unrolled import (
    activations,
    analytic,
    compare,
    datasets,
    dictionaries,
    layers,
    metrics,
    networks,
    nnx,
    plots,
    problems,
    pursuit,
    realize,
    theory,
    training,
)
from unrolled.activations import (
    shrink,
    soft_threshold,
)
from unrolled.layers import (
    alista,
    lista,
    lista_cp,
)
from unrolled.networks import (
    dsc,
)
from unrolled.theory import (
    mutual_coherence,
)
from unrolled.training import (
    fit,
)

__all__ = [
    "activations",
    "alista",
    "analytic",
    "compare",
    "datasets",
    "dictionaries",
    "dsc",
    "fit",
    "layers",
    "lista",
    "lista_cp",
    "metrics",
    "mutual_coherence",
    "networks",
    "nnx",
    "plots",
    "problems",
    "pursuit",
    "realize",
    "shrink",
    "soft_threshold",
    "theory",
    "training",
]
